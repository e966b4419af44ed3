//! Frames of the guest's own signal handlers: `struct rt_sigframe` (`arch/x86/include/asm/sigframe.h`), built on the
//! guest's stack as the kernel would (`arch/x86/kernel/signal_64.c`).

use super::{EFLAGS, Frame, RAX, RDI, RDX, RIP, RSI, RSP, UC_FLAGS};
use crate::arch::{self, Entry};
use crate::signal::{AltStack, Info, SigSet};
use memoffset::offset_of;

#[repr(C)]
struct SignalFrame {
    restorer: usize,
    context: Frame,
    info: Info,
}

/// `UC_FP_XSTATE`: there is more than FXSAVE has.
const UC_FP_XSTATE: u64 = 1;

/// Bytes that the return address takes.
const RETURN: usize = size_of::<usize>();

impl Frame {
    /// Makes the interrupted code one that just entered a handler. False if there is no memory for the handler's frame; then
    /// nothing has changed.
    ///
    /// # Safety
    ///
    /// This is the kernel's frame of a handler that runs, or a copy that is resumed as such.
    pub(crate) unsafe fn enter_handler(&mut self, entry: &Entry, info: &Info) -> bool {
        // SAFETY: the extended state is the kernel's; copies stop at what is not there.
        unsafe {
            let extended = self.extended();
            let fp = if extended == 0 { 0 } else { entry.top.wrapping_sub(extended) & !63 };
            let below = if fp == 0 { entry.top } else { fp };
            let at = (below.wrapping_sub(size_of::<SignalFrame>()) & !15).wrapping_sub(RETURN);
            let mut frame = SignalFrame { restorer: entry.restorer, context: *self, info: *info };
            frame.context.uc_stack = entry.alt;
            frame.context.sigmask = entry.mask;
            frame.context.fpstate = fp as u64;
            if arch::copy(at as *mut u8, (&raw const frame).cast(), size_of::<SignalFrame>()) != 0
                || extended != 0 && arch::copy(fp as *mut u8, self.fpstate as *const u8, extended) != 0
            {
                return false;
            }
            self.gregs[RIP] = entry.handler as u64;
            self.gregs[RSP] = at as u64;
            self.gregs[RDI] = entry.sig as u64;
            self.gregs[RSI] = at.wrapping_add(offset_of!(SignalFrame, info)) as u64;
            self.gregs[RDX] = at.wrapping_add(offset_of!(SignalFrame, context)) as u64;
            self.gregs[RAX] = 0;
            self.gregs[EFLAGS] &= !u64::from(arch::EFLAGS_NOT_IN_HANDLERS);
            self.fpstate = 0; // a clean one
            self.uc_flags &= !UC_FP_XSTATE;
            true
        }
    }

    /// Takes down the frame of a handler that returned with the stack pointer `sp`: the interrupted code goes on as it says.
    /// The signal mask and the alternate stack that it says; `None` if the frame is not there.
    ///
    /// # Safety
    ///
    /// As [`Self::enter_handler`].
    pub(crate) unsafe fn leave_handler(&mut self, sp: usize, _siginfo: bool) -> Option<(SigSet, Option<AltStack>)> {
        let at = sp.wrapping_sub(RETURN);
        let mut context = *self;
        let from = at.wrapping_add(offset_of!(SignalFrame, context)) as *const u8;
        // SAFETY: as above.
        unsafe {
            if arch::copy((&raw mut context).cast(), from, size_of::<Frame>()) != 0 {
                return None;
            }
            let room = self.extended();
            if context.fpstate == 0 || room == 0 {
                self.fpstate = 0;
                self.uc_flags &= !UC_FP_XSTATE;
            } else if arch::copy(self.fpstate as *mut u8, context.fpstate as *const u8, room) != 0 {
                return None;
            }
        }
        let (flags, fix) = (self.gregs[EFLAGS], u64::from(arch::EFLAGS_OF_RETURN));
        self.gregs = context.gregs;
        self.gregs[EFLAGS] = flags & !fix | context.gregs[EFLAGS] & fix;
        self.uc_flags |= UC_FLAGS;
        Some((context.sigmask, Some(context.uc_stack)))
    }
}

/// What an i386 frame lacks; here, the kernel always says.
pub(crate) fn fault_info(_sig: i32, _frame: &Frame) -> Info {
    Info::new(0, 0, [0; 2], 0)
}
