//! What a request carries to the broker in the mailbox, and what it brings back.

use crate::abi::{PAYLOAD, TOKEN_PATH, Token};
use crate::arch;
use crate::broker::decide::AT_FDCWD;
use crate::broker::path::PATH;
use crate::deep::{self, Carry};
use crate::pair::from_state;
use crate::sys::{Errno, Sysno, failure};
use crate::untrusted::State;

/// Copies guest memory into the mailbox: what the call carries, as far as it can be read. What is missing the broker
/// misses, if it comes to that.
///
/// # Safety
///
/// `state` is this thread's.
pub(super) unsafe fn put(state: *mut State, nr: u32, args: &[usize; 6], pc: usize) {
    // SAFETY: the state and the mailbox are mapped; copies of what may not be there go through `asc_copy`.
    unsafe {
        let mailbox = (*state).mailbox;
        let data = (&raw mut (*mailbox).data.0).cast::<u8>();
        let mut used = 0usize;
        for carry in deep::carried(nr, args).into_iter().flatten() {
            let arg = |i: usize| args.get(i).copied().unwrap_or(0);
            let (to, room) = (data.wrapping_add(used), PAYLOAD.wrapping_sub(used));
            let copied = match carry {
                Carry::Path(i) => usize::try_from(arch::asc_copy_string(to, arg(i) as *const u8, room.min(PATH))).ok(),
                Carry::Counted(i, n) if arg(n) <= room => {
                    (arch::copy(to, arg(i) as *const u8, arg(n)) == 0).then_some(arg(n))
                }
                Carry::Fixed(i, n) if n <= room => (arch::copy(to, arg(i) as *const u8, n) == 0).then_some(n),
                _ => None,
            };
            let Some(copied) = copied else { break };
            used = used.wrapping_add(copied);
        }
        (&raw mut (*mailbox).len).write_volatile(used as u32);
        (&raw mut (*mailbox).pc).write_volatile(pc);
    }
}

/// Adds bytes to what is carried already.
///
/// # Safety
///
/// As [`put`].
pub(super) unsafe fn add(state: *mut State, from: *const u8, len: usize) -> bool {
    // SAFETY: as `put`.
    unsafe {
        let mailbox = (*state).mailbox;
        let used = (&raw const (*mailbox).len).read_volatile() as usize;
        let to = (&raw mut (*mailbox).data.0).cast::<u8>().wrapping_add(used);
        if len > PAYLOAD.wrapping_sub(used) || arch::copy(to, from, len) != 0 {
            return false;
        }
        (&raw mut (*mailbox).len).write_volatile(used.wrapping_add(len) as u32);
        true
    }
}

/// Copies from the mailbox to guest memory what came back beside the result. Returns the result.
///
/// # Safety
///
/// As [`put`].
pub(super) unsafe fn get(state: *mut State, nr: u32, args: &[usize; 6], result: usize) -> usize {
    let to = match Sysno::new(nr as usize) {
        Some(Sysno::getcwd) => args[0],
        Some(Sysno::readlink) => args[1],
        // With a descriptor, T has stored it itself.
        Some(Sysno::readlinkat) if args[0] as i32 == AT_FDCWD => args[2],
        _ => return result,
    };
    if Errno::from_ret(result).is_err() || result > PATH {
        return result;
    }
    // SAFETY: as `put`.
    let left = unsafe {
        let data = (&raw const (*(*state).mailbox).data.0).cast::<u8>();
        arch::copy(to as *mut u8, data, result)
    };
    if left == 0 { result } else { failure(Errno::EFAULT) }
}

/// Whether to ask again: the kernel could not tell that `..` stays below the root, because somebody renamed a folder
/// meanwhile (`openat2(2)`, `RESOLVE_BENEATH`). No call that takes a path says so otherwise, but a non-blocking `open`, and
/// those that ask for it (`RESOLVE_CACHED`).
pub(super) fn again(nr: u32, args: &[usize; 6], result: usize) -> bool {
    Errno::from_ret(result) == Err(Errno::EAGAIN)
        && matches!(deep::carried(nr, args), [Some(Carry::Path(_)), None | Some(Carry::Path(_))])
}

/// The token for a call that opens a file, if the broker has left one: the arguments that name it.
///
/// # Safety
///
/// As [`put`].
pub(super) unsafe fn token(state: *mut State, nr: u32, args: &[usize; 6]) -> Option<[usize; 6]> {
    let (path, flags, mode) = match Sysno::new(nr as usize)? {
        Sysno::open => (args[0], args[1], args[2]),
        Sysno::openat => (args[1], args[2], args[3]),
        _ => return None,
    };
    // SAFETY: the vault is mapped, and readable.
    let tokens = unsafe { &raw const (*from_state::vault(state, (*state).pair)).tokens };
    // SAFETY: as above; `asc_copy_string` stops at what is not there.
    unsafe {
        if (&raw const (*tokens)[0].valid).read_volatile() == 0 {
            return None; // none was ever left, or they are no use: do not look further
        }
        let mut text = core::mem::MaybeUninit::<[u8; TOKEN_PATH]>::uninit();
        let len = arch::asc_copy_string(text.as_mut_ptr().cast(), path as *const u8, TOKEN_PATH);
        let len = usize::try_from(len).ok()?.checked_sub(1)?;
        let text = core::slice::from_raw_parts(text.as_ptr().cast::<u8>(), len);
        if text.first() != Some(&b'/') {
            return None;
        }
        let asked = [flags as u32, mode as u32];
        for i in 0..crate::abi::TOKENS {
            let token: *const Token = &raw const (*tokens)[i];
            if (&raw const (*token).len).read_volatile() == 0 {
                return None;
            }
            let known = (*token).len as usize == len && (*token).asked == asked;
            if known && (*token).path.get(..len) == Some(text) && (&raw const (*token).valid).read_volatile() == 1 {
                return Some([i, 0, 0, 0, 0, 0]);
            }
        }
    }
    None
}
