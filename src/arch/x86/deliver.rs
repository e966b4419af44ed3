//! Frames of the guest's own signal handlers: `struct sigframe_ia32` and `struct rt_sigframe_ia32`
//! (`arch/x86/include/asm/sigframe.h`), built on the guest's stack as the kernel would (`arch/x86/kernel/signal_32.c`).

use super::{EAX, ECX, EDX, ESP, Frame};
use crate::arch::{self, Entry};
use crate::signal::{AltStack, Info, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP, SigSet};
use memoffset::offset_of;

/// `struct sigcontext_32`: what both frames have; the beginning of [`Frame`].
const CONTEXT: usize = offset_of!(Frame, unused);

#[repr(C)]
struct OldFrame {
    restorer: usize,
    sig: i32,
    context: Frame,
    code: [u8; 8],
}

#[repr(C)]
struct InfoFrame {
    restorer: usize,
    sig: i32,
    info_at: usize,
    context_at: usize,
    info: Info,
    // `struct ucontext_ia32`
    flags: u32,
    link: u32,
    alt: AltStack,
    context: [u8; CONTEXT],
    mask: SigSet,
    code: [u8; 8],
}

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
            let (fsave, _) = Frame::FXSAVE;
            let fx = entry.top.wrapping_sub(extended.wrapping_sub(fsave)) & !63;
            let fp = if extended == 0 { 0 } else { fx.wrapping_sub(fsave) };
            let below = if fp == 0 { entry.top } else { fp };
            let mut context = *self;
            context.fpstate = fp as u32;
            [context.oldmask, context.extramask] = entry.mask.words();
            let at = |size: usize| (below.wrapping_sub(size).wrapping_add(RETURN) & !15).wrapping_sub(RETURN);
            let (at, pointers, left) = if entry.siginfo {
                let at = at(size_of::<InfoFrame>());
                let mut frame = InfoFrame {
                    restorer: entry.restorer,
                    sig: entry.sig,
                    info_at: at.wrapping_add(offset_of!(InfoFrame, info)),
                    context_at: at.wrapping_add(offset_of!(InfoFrame, flags)),
                    info: *info,
                    flags: u32::from(extended != 0), // UC_FP_XSTATE
                    link: 0,
                    alt: entry.alt,
                    context: [0; CONTEXT],
                    mask: entry.mask,
                    code: [0; 8],
                };
                arch::copy((&raw mut frame.context).cast(), (&raw const context).cast(), CONTEXT);
                let pointers = [frame.info_at as u32, frame.context_at as u32];
                (at, pointers, arch::copy(at as *mut u8, (&raw const frame).cast(), size_of::<InfoFrame>()))
            } else {
                let at = at(size_of::<OldFrame>());
                let frame = OldFrame { restorer: entry.restorer, sig: entry.sig, context, code: [0; 8] };
                (at, [0; 2], arch::copy(at as *mut u8, (&raw const frame).cast(), size_of::<OldFrame>()))
            };
            if left != 0 || extended != 0 && arch::copy(fp as *mut u8, self.fpstate as *const u8, extended) != 0 {
                return false;
            }
            self.eip = entry.handler as u32;
            self.gregs[ESP] = at as u32;
            self.gregs[EAX] = entry.sig as u32;
            [self.gregs[EDX], self.gregs[ECX]] = pointers;
            self.eflags &= !arch::EFLAGS_NOT_IN_HANDLERS;
            self.fpstate = 0; // a clean one
            true
        }
    }

    /// Takes down the frame of a handler that returned with the stack pointer `sp`: the interrupted code goes on as it says.
    /// `siginfo` tells which kind of frame. The signal mask that it says, and the alternate stack, if it has one; `None` if
    /// it is not there.
    ///
    /// # Safety
    ///
    /// As [`Self::enter_handler`].
    pub(crate) unsafe fn leave_handler(&mut self, sp: usize, siginfo: bool) -> Option<(SigSet, Option<AltStack>)> {
        let at = sp.wrapping_sub(RETURN);
        let mut context = *self;
        let (mut mask, mut alt) = (SigSet::EMPTY, AltStack::NONE);
        let part = |offset: usize| at.wrapping_add(offset) as *const u8;
        // SAFETY: as above.
        unsafe {
            let mut left;
            if siginfo {
                left = arch::copy((&raw mut context).cast(), part(offset_of!(InfoFrame, context)), CONTEXT);
                left |= arch::copy((&raw mut mask).cast(), part(offset_of!(InfoFrame, mask)), size_of::<SigSet>());
                left |= arch::copy((&raw mut alt).cast(), part(offset_of!(InfoFrame, alt)), size_of::<AltStack>());
            } else {
                left = arch::copy((&raw mut context).cast(), part(offset_of!(OldFrame, context)), size_of::<Frame>());
                mask = SigSet::from_bits(u64::from(context.oldmask) | u64::from(context.extramask) << 32);
            }
            let room = self.extended();
            if context.fpstate == 0 || room == 0 {
                self.fpstate = 0;
            } else {
                left |= arch::copy(self.fpstate as *mut u8, context.fpstate as *const u8, room);
            }
            if left != 0 {
                return None;
            }
        }
        self.gregs = context.gregs;
        self.eip = context.eip;
        self.segments[0] = context.segments[0]; // %gs: thread-local storage. %fs is the runtime's.
        self.eflags = self.eflags & !arch::EFLAGS_OF_RETURN | context.eflags & arch::EFLAGS_OF_RETURN;
        Some((mask, siginfo.then_some(alt)))
    }
}

/// What the old frame does not say of a fault, from the processor's exception (`arch/x86/kernel/traps.c`, `fault.c`).
pub(crate) fn fault_info(sig: i32, frame: &Frame) -> Info {
    const SI_KERNEL: i32 = 0x80;
    let (trap, error) = frame.trap();
    let pc = frame.pc();
    let (code, addr) = match (sig, trap) {
        (SIGSEGV, 14) => (if error & 1 == 0 { 1 } else { 2 }, frame.cr2()), // SEGV_MAPERR, SEGV_ACCERR
        (SIGBUS, 14) => (2, frame.cr2()),                                   // BUS_ADRERR
        (SIGBUS, _) => (1, 0),                                              // BUS_ADRALN
        (SIGFPE, 0) => (1, pc),                                             // FPE_INTDIV
        (SIGFPE, _) => (14, pc),                                            // FPE_FLTUNK
        (SIGILL, _) => (2, pc),                                             // ILL_ILLOPN
        (SIGSYS, _) => (2, pc),                                             // SYS_USER_DISPATCH
        (SIGTRAP, 1) => (2, pc),                                            // TRAP_TRACE
        _ => (SI_KERNEL, 0),
    };
    Info::new(sig, code, [addr as u32, 0], 0)
}
