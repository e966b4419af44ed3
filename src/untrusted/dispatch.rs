//! Calls that guest code makes itself: the kernel turns them into SIGSYS (syscall user dispatch), and they are brokered.
//!
//! A convenience, not the enforcement: a guest that turns it off meets strict mode.

use crate::arch::{self, Frame};
use crate::signal::SigInfo;
use crate::sys::{Errno, failure};
use crate::untrusted::{State, emulate, signal};

/// `SYS_USER_DISPATCH` (`include/uapi/asm-generic/siginfo.h`)
const SYS_USER_DISPATCH: i32 = 2;
/// Numbers of the x32 table (`__X32_SYSCALL_BIT`).
const X32: usize = 0x4000_0000;

/// Makes the call that SIGSYS interrupted; false if it was not for a call.
///
/// # Safety
///
/// `state` is this thread's; `info` (null in an old frame) and `frame` are the kernel's.
pub(crate) unsafe fn handle(state: *mut State, info: *const SigInfo, frame: *mut Frame) -> bool {
    // SAFETY: the caller's.
    unsafe {
        if !(*state).dispatch {
            return false;
        }
        let native = if info.is_null() {
            // An old frame says no more than the registers do. Behind a call, and with the number of one: it was that.
            if (*state).fault.expected == crate::signal::SIGSYS || !crate::fault::behind_call(frame) {
                return false;
            }
            (*frame).is_native()
        } else {
            if (*info).code != SYS_USER_DISPATCH {
                return false;
            }
            (*info).arch == arch::AUDIT_ARCH && (*frame).is_native()
        };
        let nr = (*frame).syscall_nr();
        if native && nr < crate::abi::TABLE_LEN {
            if let Some(left) = signal::sigreturn(state, nr as u32, frame) {
                return left;
            }
        }
        // Another architecture's numbers mean other calls.
        let result = if !native || nr & X32 != 0 || nr > u32::MAX as usize {
            failure(Errno::ENOSYS)
        } else {
            emulate::call(state, nr as u32, (*frame).syscall_args(), (*frame).pc(), frame)
        };
        if result == signal::RESTART {
            (*frame).set_pc((*frame).pc().wrapping_sub(arch::CALL_LEN));
        } else {
            (*frame).set_result(result);
        }
        true
    }
}
