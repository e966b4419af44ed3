//! Delivering signals to the guest: in the handlers of the fault reporter.

use super::calls::set_alt;
use super::send::by_kernel;
use super::{DEFAULT, IGNORE, NEVER, action, bit, is_ignored, mask, of, ready, set_action, take};
use crate::arch::{self, Entry, Frame};
use crate::fault::block;
use crate::signal::{
    AltStack, Info, SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTART, SA_RESTORER, SA_SIGINFO, SIGSEGV, SigAction,
    SigInfo, SigSet,
};
use crate::sys::Sysno;
use crate::untrusted::State;
use core::sync::atomic::{Ordering, compiler_fence};

/// Whether a handler interrupted the runtime: then no code of the guest's runs until that is done.
///
/// # Safety
///
/// `state` is this thread's; `frame` the kernel's.
unsafe fn at_work(state: *mut State, frame: *mut Frame) -> bool {
    // SAFETY: the caller's.
    unsafe { (*state).fault.on_altstack((*frame).sp()) || (&raw const (*state).signals.busy).read_volatile() != 0 }
}

/// Delivers what waits, at the end of a handler that interrupted the guest, and from then on the handler of a kick does:
/// none comes too late to be seen. Whether it was the guest that was interrupted, and goes on.
///
/// # Safety
///
/// As the fault handler.
pub(crate) unsafe fn settle(state: *mut State, frame: *mut Frame) -> bool {
    // SAFETY: the caller's.
    unsafe {
        if !(*state).fault.is_idle() || at_work(state, frame) {
            return false;
        }
        loop {
            deliver(state, frame);
            (*frame).set_settled(true);
            compiler_fence(Ordering::SeqCst); // the handler that looks runs in this thread
            if ready(state) == 0 {
                #[cfg(feature = "experiments")]
                linger();
                return true;
            }
            (*frame).set_settled(false);
        }
    }
}

#[cfg(feature = "experiments")]
fn linger() {
    (0..crate::experiment::LINGER.load(Ordering::Relaxed)).for_each(|_| core::hint::spin_loop());
}

/// The handler of [`KICK`](crate::signal::KICK).
///
/// # Safety
///
/// As the fault handler.
pub(crate) unsafe fn kicked(state: *mut State, frame: *mut Frame) {
    // SAFETY: the caller's.
    unsafe {
        #[cfg(feature = "experiments")]
        match crate::experiment::PEND.swap(0, Ordering::Relaxed) as i32 {
            0 => {}
            sig => of(state).pending.add(sig, &Info::new(sig, 0, [0; 2], 0)),
        }
        if ready(state) == 0 {
            return;
        }
        (&raw mut (*state).signals.kicked).write_volatile(1);
        let (from, to) = (arch::asc_pass_from as *const () as usize, arch::asc_pass_call as *const () as usize);
        if (from..=to).contains(&(*frame).pc()) {
            (*frame).set_pc(arch::asc_pass_interrupted as *const () as usize);
        }
        // A handler that has looked already does not look again. One that has just begun has not said yet which frame is its.
        let (sp, outer) = ((*frame).sp(), (*state).fault.outer());
        #[cfg(feature = "experiments")]
        if crate::experiment::LATE_KICKS.load(Ordering::Relaxed) {
            return;
        }
        if (*state).fault.on_altstack(sp) && outer.addr() > sp && (*outer).is_settled() {
            (*outer).set_settled(false);
            deliver(state, outer);
            arch::asc_sigreturn(outer);
        }
    }
}

/// The handler of SIGILL: whether it was one of the runtime's own traps.
///
/// # Safety
///
/// As the fault handler.
pub(crate) unsafe fn trap(state: *mut State, frame: *mut Frame) -> bool {
    const UD2: usize = 2;
    // SAFETY: the caller's.
    unsafe {
        let pc = (*frame).pc();
        if pc == arch::asc_deliver_at as *const () as usize {
            (*frame).set_pc(pc.wrapping_add(UD2));
            return true;
        }
        let siginfo = pc == arch::asc_return as *const () as usize;
        (siginfo || pc == arch::asc_return_old as *const () as usize) && leave(state, frame, (*frame).sp(), siginfo)
    }
}

/// The guest's `sigreturn` and `rt_sigreturn`: whether the call was one of these, and its frame is there.
///
/// # Safety
///
/// As the fault handler.
pub(crate) unsafe fn sigreturn(state: *mut State, nr: u32, frame: *mut Frame) -> Option<bool> {
    // SAFETY: the caller's.
    let sp = unsafe { (*frame).sp() };
    let (sp, siginfo) = match Sysno::new(nr as usize)? {
        Sysno::rt_sigreturn => (sp, true),
        // The restorer has taken the signal's number off the stack.
        #[cfg(target_arch = "x86")]
        Sysno::sigreturn => (sp.wrapping_sub(size_of::<usize>()), false),
        _ => return None,
    };
    // SAFETY: the caller's.
    Some(unsafe { leave(state, frame, sp, siginfo) })
}

unsafe fn leave(state: *mut State, frame: *mut Frame, sp: usize, siginfo: bool) -> bool {
    // SAFETY: the state is this thread's, the frame the kernel's.
    unsafe {
        let Some((mask, alt)) = (*frame).leave_handler(sp, siginfo) else { return false };
        of(state).mask.store(mask.bits() & !NEVER, Ordering::SeqCst);
        if let Some(alt) = alt {
            _ = set_alt(state, alt); // as the kernel does: what it would refuse changes nothing
        }
        block(state); // the frame may be of the guest's making: the kernel is to look at it
        true
    }
}

/// Hands a fault to the guest's handler, if it has one and does not block the signal.
///
/// # Safety
///
/// As the fault handler. `info` is null where the frame has none.
pub(crate) unsafe fn fault(state: *mut State, sig: i32, info: *const SigInfo, frame: *mut Frame) -> bool {
    // SAFETY: the caller's.
    unsafe {
        if at_work(state, frame) || mask(state) & bit(sig) != 0 {
            return false;
        }
        let action = action(sig);
        if action.handler <= IGNORE {
            return false;
        }
        let info = if info.is_null() { arch::fault_info(sig, &*frame) } else { info.cast::<Info>().read() };
        enter(state, frame, sig, &info, &action)
    }
}

/// Delivers what waits for this thread and is not blocked.
///
/// # Safety
///
/// As the fault handler, at a place where guest code goes on.
unsafe fn deliver(state: *mut State, frame: *mut Frame) {
    // SAFETY: the caller's.
    unsafe {
        loop {
            let which = ready(state);
            if which == 0 {
                break;
            }
            let Some((sig, info)) = take(state, which) else { continue };
            let action = action(sig);
            if is_ignored(sig, &action) {
                continue;
            }
            if action.handler == DEFAULT {
                _ = by_kernel(state, sig);
            } else if !enter(state, frame, sig, &info, &action) {
                // There is no stack for it: what the kernel makes a SIGSEGV that has no handler.
                set_action(SIGSEGV, &SigAction::DEFAULT, None);
                (*frame).set_pc(usize::MAX.wrapping_sub(15));
                break;
            }
        }
        if (*state).signals.suspended {
            (*state).signals.suspended = false;
            of(state).mask.store((*state).signals.before, Ordering::SeqCst);
        }
    }
}

unsafe fn enter(state: *mut State, frame: *mut Frame, sig: i32, info: &Info, action: &SigAction) -> bool {
    // SAFETY: as `deliver`.
    unsafe {
        let signals = &raw mut (*state).signals;
        let flags = action.flags;
        let mut alt = (*signals).alt;
        let sp = (*frame).sp();
        let on = alt.holds(sp) && alt.flags & AltStack::AUTODISARM == 0;
        let switch = flags & SA_ONSTACK != 0 && alt.size != 0 && !on;
        if on {
            alt.flags |= AltStack::ONSTACK;
        }
        let siginfo = flags & SA_SIGINFO != 0;
        let own = if siginfo || cfg!(target_arch = "x86_64") { arch::asc_return } else { arch::asc_return_old };
        let entry = Entry {
            sig,
            handler: action.handler,
            // The guest's own makes a call, which has to be caught.
            restorer: if flags & SA_RESTORER != 0 && (*state).dispatch {
                action.restorer
            } else {
                own as *const () as usize
            },
            siginfo,
            top: if switch { alt.sp.wrapping_add(alt.size) } else { sp.wrapping_sub(arch::RED_ZONE) },
            mask: SigSet::from_bits(if (*signals).suspended { (*signals).before } else { mask(state) }),
            alt,
        };
        // On an alternate stack that is full there is no more room for frames than below it.
        if on && !alt.holds(entry.top.wrapping_sub(arch::FRAME_MAX)) || !(*frame).enter_handler(&entry, info) {
            return false;
        }
        (*signals).suspended = false;
        if flags & SA_RESTART == 0 {
            (&raw mut (*signals).restart).write_volatile(false);
        }
        if alt.flags & AltStack::AUTODISARM != 0 {
            (*signals).alt = AltStack::NONE;
        }
        if flags & SA_RESETHAND != 0 {
            set_action(sig, &SigAction { flags, ..SigAction::DEFAULT }, Some(action.handler));
        }
        let also = if flags & SA_NODEFER != 0 { 0 } else { bit(sig) };
        of(state).mask.fetch_or((action.mask.bits() | also) & !NEVER, Ordering::Relaxed);
        true
    }
}
