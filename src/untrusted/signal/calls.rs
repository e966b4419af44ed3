//! The calls that are about signals, and those that signals interrupt.

use super::send::{queue, send};
use super::{
    IGNORE, NEVER, PROCESS, RESTART, SI_USER, action, bit, is_ignored, mask, of, ready, set_action, set_busy, take,
};
use crate::arch::{self, Frame};
use crate::signal::{AltStack, Info, NSIG, SA_RESTART, SIGPIPE, SigAction, SigSet};
use crate::sys::{Errno, Sysno, failure};
use crate::untrusted::{State, gate};
use core::sync::atomic::Ordering;

/// The smallest alternate stack that the kernel takes (`MINSIGSTKSZ`).
const MIN_ALTSTACK: usize = 2048;
/// Behind the highest signal.
const NONE: i32 = NSIG + 1;

/// The calls that are about signals.
pub(crate) const CALLS: &[Sysno] = &[
    Sysno::rt_sigaction,
    Sysno::rt_sigprocmask,
    Sysno::rt_sigpending,
    Sysno::rt_sigsuspend,
    Sysno::rt_sigtimedwait,
    Sysno::pause,
    Sysno::sigaltstack,
    Sysno::kill,
    Sysno::tkill,
    Sysno::tgkill,
    Sysno::rt_sigqueueinfo,
    Sysno::rt_tgsigqueueinfo,
    #[cfg(target_arch = "x86")]
    Sysno::sigaction,
    #[cfg(target_arch = "x86")]
    Sysno::sigprocmask,
    #[cfg(target_arch = "x86")]
    Sysno::sigpending,
    #[cfg(target_arch = "x86")]
    Sysno::sigsuspend,
];

/// Makes one of [`CALLS`]. `frame` is where the guest was interrupted in making it, null if it
/// asked.
///
/// # Safety
///
/// As [`emulate::call`](crate::untrusted::emulate::call).
pub(crate) unsafe fn call(state: *mut State, call: Sysno, args: [usize; 6], pc: usize, frame: *mut Frame) -> usize {
    let [a, b, c, d, ..] = args;
    // SAFETY: the caller's.
    unsafe {
        match call {
            Sysno::rt_sigaction => sigaction(a as i32, b, c, d),
            #[cfg(target_arch = "x86")]
            Sysno::sigaction => old::sigaction(a as i32, b, c),
            Sysno::rt_sigprocmask => sigprocmask(state, a, b, c, d),
            #[cfg(target_arch = "x86")]
            Sysno::sigprocmask => sigprocmask(state, a, b, c, 4),
            Sysno::rt_sigpending => pending(state, a, b),
            #[cfg(target_arch = "x86")]
            Sysno::sigpending => pending(state, a, 4),
            Sysno::rt_sigsuspend => match mask_at(a, b) {
                Ok(mask) => suspend(state, mask),
                Err(errno) => failure(errno),
            },
            #[cfg(target_arch = "x86")]
            Sysno::sigsuspend => suspend(state, c as u64),
            Sysno::rt_sigtimedwait => wait(state, a, b, c, d),
            Sysno::pause => suspend(state, mask(state)),
            Sysno::sigaltstack => {
                let here = if frame.is_null() { (&raw const args).addr() } else { (*frame).sp() };
                sigaltstack(state, a, b, here)
            }
            Sysno::kill => send(state, (call, args, pc), a as i32, b as i32, None, None),
            Sysno::tkill => send(state, (call, args, pc), a as i32, b as i32, Some(a as u32), None),
            Sysno::tgkill => send(state, (call, args, pc), a as i32, c as i32, Some(b as u32), None),
            Sysno::rt_sigqueueinfo => queue(state, (call, args, pc), a as i32, b as i32, None, c),
            Sysno::rt_tgsigqueueinfo => queue(state, (call, args, pc), a as i32, c as i32, Some(b as u32), d),
            _ => failure(Errno::ENOSYS),
        }
    }
}

/// A mask that the guest has at an address, `size` bytes long.
///
/// # Safety
///
/// The caller is a guest.
unsafe fn mask_at(at: usize, size: usize) -> Result<u64, Errno> {
    let mut mask = 0u64;
    if size != 8 && !(cfg!(target_arch = "x86") && size == 4) {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the copy stops at what is not there.
    match unsafe { arch::copy((&raw mut mask).cast(), at as *const u8, size) } {
        0 => Ok(mask),
        _ => Err(Errno::EFAULT),
    }
}

/// Copies something to the guest, if it wants it: 0, or `EFAULT`.
///
/// # Safety
///
/// The caller is a guest.
unsafe fn tell<T>(at: usize, what: &T, size: usize) -> usize {
    // SAFETY: the copy stops at what is not there.
    let left = if at == 0 { 0 } else { unsafe { arch::copy(at as *mut u8, core::ptr::from_ref(what).cast(), size) } };
    if left == 0 { 0 } else { failure(Errno::EFAULT) }
}

unsafe fn sigaction(sig: i32, new: usize, old: usize, size: usize) -> usize {
    if size != size_of::<SigSet>() {
        return failure(Errno::EINVAL);
    }
    let mut action = SigAction::DEFAULT;
    // SAFETY: the copies stop at what is not there.
    unsafe {
        if new != 0 && arch::copy((&raw mut action).cast(), new as *const u8, size_of::<SigAction>()) != 0 {
            return failure(Errno::EFAULT);
        }
        match change(sig, (new != 0).then_some(&action)) {
            Ok(before) => tell(old, &before, size_of::<SigAction>()),
            Err(errno) => failure(errno),
        }
    }
}

/// Looks at the action for a signal, and changes it, if there is a new one; the old one.
fn change(sig: i32, new: Option<&SigAction>) -> Result<SigAction, Errno> {
    if !(1..=NSIG).contains(&sig) || new.is_some() && bit(sig) & NEVER != 0 {
        return Err(Errno::EINVAL);
    }
    let Some(new) = new else { return Ok(action(sig)) };
    let old = set_action(sig, new, None);
    if is_ignored(sig, new) {
        PROCESS.set.fetch_and(!bit(sig), Ordering::Relaxed);
    }
    Ok(old)
}

#[cfg(target_arch = "x86")]
mod old {
    //! i386's first call, with masks of 32 bits.
    use super::*;

    /// `struct old_sigaction32` (`include/linux/compat.h`)
    #[repr(C)]
    struct OldAction {
        handler: usize,
        mask: u32,
        flags: usize,
        restorer: usize,
    }

    pub(super) unsafe fn sigaction(sig: i32, new: usize, old: usize) -> usize {
        let mut action = OldAction { handler: 0, mask: 0, flags: 0, restorer: 0 };
        // SAFETY: the copies stop at what is not there.
        unsafe {
            if new != 0 && arch::copy((&raw mut action).cast(), new as *const u8, size_of::<OldAction>()) != 0 {
                return failure(Errno::EFAULT);
            }
            let OldAction { handler, mask, flags, restorer } = action;
            let action = SigAction { handler, flags, restorer, mask: SigSet::from_bits(u64::from(mask)) };
            match change(sig, (new != 0).then_some(&action)) {
                Ok(before) => {
                    let SigAction { handler, flags, restorer, mask } = before;
                    let before = OldAction { handler, mask: mask.bits() as u32, flags, restorer };
                    tell(old, &before, size_of::<OldAction>())
                }
                Err(errno) => failure(errno),
            }
        }
    }
}

unsafe fn sigprocmask(state: *mut State, how: usize, new: usize, old: usize, size: usize) -> usize {
    const BLOCK: usize = 0;
    const UNBLOCK: usize = 1;
    const SETMASK: usize = 2;
    // SAFETY: the state is this thread's; the rest as the functions say.
    unsafe {
        let before = mask(state);
        let part = if size == 4 { !u64::from(u32::MAX) & before } else { 0 };
        if new != 0 || size != 8 {
            let set = if new == 0 { Ok(0) } else { mask_at(new, size) };
            let set = match (set, how) {
                (Err(errno), _) => return failure(errno),
                (Ok(_), _) if new == 0 => before,
                (Ok(set), BLOCK) => before | set,
                (Ok(set), UNBLOCK) => before & !set,
                (Ok(set), SETMASK) => set | part,
                _ => return failure(Errno::EINVAL),
            };
            of(state).mask.store(set & !NEVER, Ordering::SeqCst);
        }
        tell(old, &before, size)
    }
}

unsafe fn pending(state: *mut State, at: usize, size: usize) -> usize {
    if size > 8 {
        return failure(Errno::EINVAL);
    }
    // SAFETY: the state is this thread's.
    unsafe {
        let waiting = of(state).pending.set.load(Ordering::Relaxed) | PROCESS.set.load(Ordering::Relaxed);
        let waiting = waiting & mask(state);
        if at == 0 { failure(Errno::EFAULT) } else { tell(at, &waiting, size) }
    }
}

/// Waits for a signal with another mask. Whoever leaves one here rings the doorbell that U sleeps in, so none is missed.
unsafe fn suspend(state: *mut State, with: u64) -> usize {
    // SAFETY: the state is this thread's.
    unsafe {
        let signals = of(state);
        let before = signals.mask.swap(with & !NEVER, Ordering::SeqCst);
        loop {
            let sig = ready(state).trailing_zeros() as i32 + 1;
            if sig > NSIG {
                let _ = gate::read((*state).doorbell_u, &mut [0; 8]);
            } else if is_ignored(sig, &action(sig)) {
                _ = take(state, bit(sig));
            } else {
                break;
            }
        }
        (*state).signals.suspended = true;
        (*state).signals.before = before;
        failure(Errno::EINTR)
    }
}

/// Takes a signal that is blocked, when there is one.
unsafe fn wait(state: *mut State, which: usize, info_at: usize, timeout: usize, size: usize) -> usize {
    let mut limit = [1usize; 2];
    // SAFETY: the state is this thread's; copies stop at what is not there.
    unsafe {
        let which = match mask_at(which, size) {
            Ok(which) => which & !NEVER,
            Err(errno) => return failure(errno),
        };
        if timeout != 0 && arch::copy((&raw mut limit).cast(), timeout as *const u8, size_of_val(&limit)) != 0 {
            return failure(Errno::EFAULT);
        }
        let signals = of(state);
        signals.wanted.store(which, Ordering::SeqCst);
        let result = loop {
            if let Some((sig, info)) = take(state, which) {
                let told = tell(info_at, &info, size_of::<Info>());
                break if told == 0 { sig as usize } else { told };
            }
            if ready(state) != 0 {
                break failure(Errno::EINTR);
            }
            if timeout != 0 {
                // There is no clock to sleep by: a look is possible, a wait with an end is not.
                break failure(if limit == [0; 2] { Errno::EAGAIN } else { Errno::ENOSYS });
            }
            let _ = gate::read((*state).doorbell_u, &mut [0; 8]);
        };
        signals.wanted.store(0, Ordering::SeqCst);
        result
    }
}

unsafe fn sigaltstack(state: *mut State, new: usize, old: usize, here: usize) -> usize {
    // SAFETY: the state is this thread's; copies stop at what is not there.
    unsafe {
        let mut told = (*state).signals.alt;
        let on = told.holds(here);
        if on {
            told.flags |= AltStack::ONSTACK;
        }
        if new != 0 {
            let mut alt = AltStack::NONE;
            if arch::copy((&raw mut alt).cast(), new as *const u8, size_of::<AltStack>()) != 0 {
                return failure(Errno::EFAULT);
            }
            if on && told.flags & AltStack::AUTODISARM == 0 {
                return failure(Errno::EPERM);
            }
            if let Err(errno) = set_alt(state, alt) {
                return failure(errno);
            }
        }
        tell(old, &told, size_of::<AltStack>())
    }
}

/// Gives the thread another alternate stack, or none.
///
/// # Safety
///
/// `state` is this thread's.
pub(super) unsafe fn set_alt(state: *mut State, alt: AltStack) -> Result<(), Errno> {
    let alt = match alt.flags & !AltStack::AUTODISARM {
        AltStack::DISABLE => AltStack::NONE,
        0 | AltStack::ONSTACK if alt.size < MIN_ALTSTACK => return Err(Errno::ENOMEM),
        0 | AltStack::ONSTACK => AltStack { flags: alt.flags & AltStack::AUTODISARM, ..alt },
        _ => return Err(Errno::EINVAL),
    };
    // SAFETY: the state is this thread's.
    unsafe { (*state).signals.alt = alt };
    Ok(())
}

#[cfg(feature = "experiments")]
unsafe fn dawdle(state: *mut State) {
    use crate::experiment::{DAWDLE, MISS_KICKS};
    (0..DAWDLE.load(Ordering::Relaxed)).for_each(|_| core::hint::spin_loop());
    if MISS_KICKS.load(Ordering::Relaxed) {
        // SAFETY: the state is this thread's.
        unsafe { (&raw mut (*state).signals.kicked).write_volatile(0) };
    }
}

/// Makes the guest's own `read` or `write`, which a signal interrupts as it does with the kernel's.
///
/// # Safety
///
/// `state` is this thread's; otherwise as the manual page says.
pub(crate) unsafe fn pass(state: *mut State, nr: u32, args: [usize; 6], frame: *mut Frame) -> usize {
    // SAFETY: the caller's. In an explicit call the guest's handlers may run meanwhile.
    unsafe {
        let signals = &raw mut (*state).signals;
        (&raw mut (*signals).restart).write_volatile(true);
        (&raw mut (*signals).kicked).write_volatile(0);
        if frame.is_null() {
            set_busy(state, false);
        }
        let result = if ready(state) == 0 {
            #[cfg(feature = "experiments")]
            dawdle(state);
            arch::asc_pass(nr, args[0], args[1], args[2], &raw const (*signals).kicked)
        } else {
            failure(Errno::EINTR)
        };
        if frame.is_null() {
            set_busy(state, true);
        }
        if result == failure(Errno::EPIPE) && action(SIGPIPE).handler > IGNORE {
            of(state).pending.add(SIGPIPE, &Info::new(SIGPIPE, SI_USER, [(*state).pid, (*state).uid], 0));
        }
        if result != failure(Errno::EINTR) {
            return result;
        }
        // Whether it is made again says the action of the signal that waits, or those that ran: all of them.
        let again = match ready(state).trailing_zeros() as i32 + 1 {
            NONE.. => (&raw const (*signals).restart).read_volatile(),
            sig => is_ignored(sig, &action(sig)) || action(sig).flags & SA_RESTART != 0,
        };
        if again { RESTART } else { result }
    }
}
