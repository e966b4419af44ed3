//! The guest's signals. Actions, masks, pending signals, alternate stacks and frames are the runtime's own affair: the
//! kernel's handlers stay those of the fault reporter, which delivers to the guest's what is the guest's (`fault/mod.rs`).
//!
//! What a thread sends itself needs no call. To another it is left in that thread's state, and the thread is kicked with a
//! real signal ([`KICK`](crate::signal::KICK)). A signal whose action is the default one is sent by the kernel, so that the end is a true one.
//!
//! A signal is delivered to guest code only: one that finds the runtime at work waits for its end. While T makes a call for
//! the thread, that is the end of the call: the kernel cannot be asked to interrupt T.

mod calls;
mod deliver;
mod send;

pub(super) use calls::{CALLS, call, pass};
pub(crate) use deliver::{fault, kicked, settle, sigreturn, trap};
pub(crate) use send::others;

use crate::arch;
use crate::signal::{AltStack, Info, NSIG, SIGCHLD, SIGCONT, SIGKILL, SIGSTOP, SIGURG, SIGWINCH, SigAction, SigSet};
use crate::untrusted::State;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// `ERESTARTSYS` (`include/linux/errno.h`): the call is made again when the handler has returned. Never seen by the guest.
pub(crate) const RESTART: usize = -512isize as usize;
/// `SI_USER` (`siginfo.h`)
const SI_USER: i32 = 0;
/// `SIG_DFL`, `SIG_IGN`
const DEFAULT: usize = 0;
const IGNORE: usize = 1;
/// Looks at a table that somebody changes.
const PATIENCE: u32 = 10_000;
/// Signals that cannot be blocked, and have no action but the default one.
const NEVER: u64 = bit(SIGKILL) | bit(SIGSTOP);
/// Signals that do nothing by default.
const QUIET: u64 = bit(SIGCHLD) | bit(SIGCONT) | bit(SIGURG) | bit(SIGWINCH);

const fn bit(sig: i32) -> u64 {
    1 << (sig.wrapping_sub(1) & 63)
}

/// What a thread knows of its signals.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Signals {
    /// Not 0 while the runtime is at work for an explicit call, and so no handler of the guest's may run.
    busy: u32,
    /// Set by a kick.
    kicked: u32,
    /// Whether every handler that ran since a call began wants that made again.
    restart: bool,
    /// The mask that the next handler's frame is to say, if another than the mask: `sigsuspend`.
    suspended: bool,
    before: u64,
    /// What is blocked.
    mask: AtomicU64,
    /// What `sigwait` waits for.
    wanted: AtomicU64,
    alt: AltStack,
    pending: Pending,
}

/// Signals that wait, and what is known of each.
#[derive(Debug)]
struct Pending {
    set: AtomicU64,
    sent: [Sent; NSIG as usize],
}

/// Who sent a signal.
#[derive(Debug)]
struct Sent {
    code: AtomicU32,
    pid: AtomicU32,
    uid: AtomicU32,
    value: AtomicUsize,
}

impl Sent {
    const fn nobody() -> Self {
        Self { code: AtomicU32::new(0), pid: AtomicU32::new(0), uid: AtomicU32::new(0), value: AtomicUsize::new(0) }
    }
}

impl Pending {
    /// Adds a signal. One that waits already stays as it is: there is no queue.
    fn add(&self, sig: i32, info: &Info) {
        if self.set.load(Ordering::Acquire) & bit(sig) != 0 {
            return;
        }
        if let Some(sent) = self.sent.get(sig.wrapping_sub(1) as usize) {
            sent.code.store(info.code() as u32, Ordering::Relaxed);
            sent.pid.store(info.words[0], Ordering::Relaxed);
            sent.uid.store(info.words[1], Ordering::Relaxed);
            sent.value.store(info.value, Ordering::Relaxed);
            self.set.fetch_or(bit(sig), Ordering::SeqCst);
        }
    }

    /// Takes the first of these signals that waits.
    fn take(&self, which: u64) -> Option<(i32, Info)> {
        let sig = (self.set.load(Ordering::Acquire) & which).trailing_zeros() as i32 + 1;
        let sent = self.sent.get(sig.wrapping_sub(1) as usize)?;
        let word = |word: &AtomicU32| word.load(Ordering::Relaxed);
        let code = word(&sent.code) as i32;
        let info = Info::new(sig, code, [word(&sent.pid), word(&sent.uid)], sent.value.load(Ordering::Relaxed));
        let before = self.set.fetch_and(!bit(sig), Ordering::AcqRel);
        (before & bit(sig) != 0).then_some((sig, info))
    }
}

/// What waits for any thread.
static PROCESS: Pending = Pending { set: AtomicU64::new(0), sent: [const { Sent::nobody() }; NSIG as usize] };

/// The actions, and how often they were changed: odd while they are.
static ACTIONS: [Action; NSIG as usize] = [const { Action::default() }; NSIG as usize];
static CHANGES: AtomicU32 = AtomicU32::new(0);

struct Action {
    handler: AtomicUsize,
    flags: AtomicUsize,
    restorer: AtomicUsize,
    mask: AtomicU64,
}

impl Action {
    const fn default() -> Self {
        Self {
            handler: AtomicUsize::new(DEFAULT),
            flags: AtomicUsize::new(0),
            restorer: AtomicUsize::new(0),
            mask: AtomicU64::new(0),
        }
    }

    fn load(&self) -> SigAction {
        SigAction {
            handler: self.handler.load(Ordering::Relaxed),
            flags: self.flags.load(Ordering::Relaxed),
            restorer: self.restorer.load(Ordering::Relaxed),
            mask: SigSet::from_bits(self.mask.load(Ordering::Relaxed)),
        }
    }

    fn store(&self, action: &SigAction) {
        self.handler.store(action.handler, Ordering::Relaxed);
        self.flags.store(action.flags, Ordering::Relaxed);
        self.restorer.store(action.restorer, Ordering::Relaxed);
        self.mask.store(action.mask.bits() & !NEVER, Ordering::Relaxed);
    }
}

/// The action for a signal. Waits for nobody for ever: a table that somebody holds open is read as it is.
fn action(sig: i32) -> SigAction {
    let Some(slot) = ACTIONS.get(sig.wrapping_sub(1) as usize) else { return SigAction::DEFAULT };
    let mut patience = PATIENCE;
    loop {
        let before = CHANGES.load(Ordering::Acquire);
        let action = slot.load();
        fence(Ordering::Acquire);
        if before & 1 == 0 && before == CHANGES.load(Ordering::Relaxed) || patience == 0 {
            return action;
        }
        patience = patience.wrapping_sub(1);
        core::hint::spin_loop();
    }
}

/// Changes the action for a signal, if it is still that of `only` (a handler; `None` for whatever it is); the old one.
fn set_action(sig: i32, new: &SigAction, only: Option<usize>) -> SigAction {
    let Some(slot) = ACTIONS.get(sig.wrapping_sub(1) as usize) else { return SigAction::DEFAULT };
    let open = |n: u32| (n & 1 == 0).then_some(n.wrapping_add(1));
    while CHANGES.fetch_update(Ordering::Acquire, Ordering::Relaxed, open).is_err() {
        core::hint::spin_loop();
    }
    let old = slot.load();
    if only.is_none_or(|handler| handler == old.handler) {
        slot.store(new);
    }
    CHANGES.fetch_add(1, Ordering::Release);
    old
}

fn is_ignored(sig: i32, action: &SigAction) -> bool {
    action.handler == IGNORE || action.handler == DEFAULT && bit(sig) & QUIET != 0
}

/// # Safety
///
/// `state` is mapped.
unsafe fn of<'a>(state: *mut State) -> &'a Signals {
    // SAFETY: the caller's. Others change atomics only; what is none, its own thread changes, and looks at no copy of.
    unsafe { &(*state).signals }
}

/// Marks the runtime as at work for an explicit call, or not.
///
/// # Safety
///
/// `state` is this thread's.
unsafe fn set_busy(state: *mut State, busy: bool) {
    // SAFETY: the caller's. The handler that looks runs in this thread.
    unsafe { (&raw mut (*state).signals.busy).write_volatile(u32::from(busy)) };
}

/// Does something for an explicit call: no handler of the guest's runs meanwhile, and what came runs afterwards.
///
/// # Safety
///
/// `state` is this thread's, and the runtime not at work.
#[inline(always)]
pub(super) unsafe fn undisturbed(state: *mut State, f: impl FnOnce() -> usize) -> usize {
    // SAFETY: the caller's; the trap is one of the runtime's own.
    unsafe {
        set_busy(state, true);
        let result = f();
        set_busy(state, false);
        if ready(state) != 0 {
            arch::asc_deliver();
        }
        result
    }
}

/// Takes the first of these signals that waits for this thread, or for any.
///
/// # Safety
///
/// As [`mask`].
#[inline(never)]
unsafe fn take(state: *mut State, which: u64) -> Option<(i32, Info)> {
    // SAFETY: the caller's.
    unsafe { of(state) }.pending.take(which).or_else(|| PROCESS.take(which))
}

/// The signals that wait for this thread and are not blocked.
///
/// # Safety
///
/// `state` is this thread's.
unsafe fn ready(state: *mut State) -> u64 {
    // SAFETY: the caller's.
    let signals = unsafe { of(state) };
    let waiting = signals.pending.set.load(Ordering::Relaxed) | PROCESS.set.load(Ordering::Relaxed);
    waiting & !signals.mask.load(Ordering::Relaxed)
}

/// What is blocked: a new thread starts with what its creator blocks.
///
/// # Safety
///
/// `state` is this thread's.
pub(super) unsafe fn mask(state: *mut State) -> u64 {
    // SAFETY: the caller's.
    unsafe { of(state) }.mask.load(Ordering::Relaxed)
}

/// The beginning of a thread: what it blocks; it has no alternate stack.
///
/// # Safety
///
/// As [`mask`].
pub(crate) unsafe fn inherit(state: *mut State, mask: u64) {
    // SAFETY: the caller's.
    unsafe {
        of(state).mask.store(mask, Ordering::Relaxed);
        (*state).signals.alt = AltStack::NONE;
    }
}
