//! Sending signals.

use super::{DEFAULT, NEVER, PROCESS, SI_USER, action, bit, is_ignored, of};
use crate::arch;
use crate::fault::block;
use crate::pair::{PRIVATE, from_state};
use crate::signal::{Info, KICK, NSIG, REPORTED};
use crate::sys::{Errno, Sysno, failure};
use crate::untrusted::{State, ask_for_signal, brokered, ring};
use core::sync::atomic::Ordering;

/// `SI_TKILL` (`siginfo.h`)
const SI_TKILL: i32 = -6;

/// A call as it was made: which, with what, where.
type Made = (Sysno, [usize; 6], usize);

/// Sends a signal with the sender's own word for it, which cannot be the kernel's.
pub(super) unsafe fn queue(state: *mut State, made: Made, pid: i32, sig: i32, tid: Option<u32>, at: usize) -> usize {
    let mut info = Info::new(sig, 0, [0; 2], 0);
    // SAFETY: the copy stops at what is not there.
    let left = unsafe { arch::copy((&raw mut info).cast(), at as *const u8, size_of::<Info>()) };
    match info.code() {
        _ if left != 0 => failure(Errno::EFAULT),
        0.. | SI_TKILL => failure(Errno::EPERM),
        // SAFETY: the state is this thread's.
        _ => unsafe { send(state, made, pid, sig, tid, Some(&info)) },
    }
}

/// Sends a signal, to a thread or to the process. To others than the guest's it is the policy's affair.
pub(super) unsafe fn send(
    state: *mut State,
    made: Made,
    pid: i32,
    sig: i32,
    tid: Option<u32>,
    said: Option<&Info>,
) -> usize {
    let (call, args, pc) = made;
    // SAFETY: the state is this thread's.
    unsafe {
        let ask = || brokered(state, call as u32, args, pc);
        let own = |pid: i32| pid as u32 == (*state).pid;
        if !(0..=NSIG).contains(&sig) {
            return failure(Errno::EINVAL);
        }
        let ours = match call {
            Sysno::tkill => true,
            Sysno::kill | Sysno::rt_sigqueueinfo => own(pid) || pid == 0 && call == Sysno::kill,
            _ => own(pid),
        };
        let to = match tid {
            Some(tid) if tid == (*state).tid => Some(state),
            Some(tid) => others(state).find(|other| (&raw const (**other).tid).read_volatile() == tid),
            None => Some(receiver(state, sig)),
        };
        if !ours || sig != 0 && bit(sig) & NEVER != 0 {
            return ask();
        }
        let Some(to) = to else { return failure(Errno::ESRCH) };
        if sig == 0 {
            return 0;
        }
        let action = action(sig);
        let blocked = of(to).mask.load(Ordering::Relaxed) & bit(sig) != 0;
        if is_ignored(sig, &action) && !blocked {
            return 0;
        }
        if action.handler == DEFAULT && !blocked {
            return if to == state && REPORTED.contains(&sig) { by_kernel(state, sig) } else { ask() };
        }
        let code = if tid.is_some() { SI_TKILL } else { SI_USER };
        let info = Info::new(sig, code, [(*state).pid, (*state).uid], 0);
        let pending = if tid.is_none() && blocked { &PROCESS } else { &of(to).pending };
        pending.add(sig, said.unwrap_or(&info));
        // Whoever unblocks it, or begins to wait for it, looks afterwards whether it is there; so look now who does.
        let to = if tid.is_none() && blocked { receiver(state, sig) } else { to };
        let signals = of(to);
        if signals.wanted.load(Ordering::SeqCst) & bit(sig) != 0 {
            ring((&raw const (*to).doorbell_u).read_volatile());
        }
        if to == state || signals.mask.load(Ordering::SeqCst) & bit(sig) != 0 { 0 } else { kick(state, to, pc) }
    }
}

/// The states of the other threads, dead ones' too.
///
/// # Safety
///
/// `state` is this thread's.
pub(crate) unsafe fn others(state: *mut State) -> impl Iterator<Item = *mut State> {
    // SAFETY: the caller's; the states of all pairs are mapped.
    let (first, pairs) = unsafe {
        let first = from_state::first(state, (*state).pair);
        (first, (&raw const (*first).pairs).read_volatile())
    };
    (0..pairs as usize)
        .map(move |k| first.wrapping_byte_add(k.wrapping_mul(PRIVATE)))
        .filter(move |other| *other != state)
}

/// The thread that a signal for the process goes to: this one, if it does not block it, or one that does not, or waits for
/// it.
unsafe fn receiver(state: *mut State, sig: i32) -> *mut State {
    // SAFETY: the states of all pairs are mapped.
    unsafe {
        let takes = |other: *mut State| {
            of(other).mask.load(Ordering::SeqCst) & bit(sig) == 0
                || of(other).wanted.load(Ordering::SeqCst) & bit(sig) != 0
        };
        let lives = |other: *mut State| (&raw const (*other).tid).read_volatile() != 0;
        if takes(state) {
            return state;
        }
        others(state).find(|other| lives(*other) && takes(*other)).unwrap_or(state)
    }
}

/// Has another thread look for signals, wherever it is.
unsafe fn kick(state: *mut State, to: *mut State, pc: usize) -> usize {
    // SAFETY: the states of all pairs are mapped.
    unsafe {
        ring((&raw const (*to).doorbell_u).read_volatile());
        let tid = (&raw const (*to).tid).read_volatile();
        let args = [(*state).pid as usize, tid as usize, KICK as usize, 0, 0, 0];
        let kicked = brokered(state, Sysno::tgkill as u32, args, pc);
        // It saw the signal before the kick, and has ended since.
        if kicked == failure(Errno::ESRCH) { 0 } else { kicked }
    }
}

/// Has a signal take its default action.
pub(super) unsafe fn by_kernel(state: *mut State, sig: i32) -> usize {
    // SAFETY: the state is this thread's.
    unsafe {
        if (*state).fault.on_altstack((&raw const sig).addr()) {
            block(state); // it is to come when the guest goes on
        }
        if REPORTED.contains(&sig) {
            (*state).fault.expected = sig;
            if !ask_for_signal(state, sig) {
                (*state).fault.expected = 0;
            }
            return 0;
        }
        brokered(state, Sysno::tgkill as u32, [(*state).pid as usize, (*state).tid as usize, sig as usize, 0, 0, 0], 0)
    }
}
