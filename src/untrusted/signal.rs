//! The guest's signals. Actions, masks, pending signals, alternate stacks and frames are the runtime's own affair: the
//! kernel's handlers stay those of the fault reporter, which delivers to the guest's what is the guest's (`fault/mod.rs`).
//!
//! What a thread sends itself needs no call. To another it is left in that thread's state, and the thread is kicked with a
//! real signal ([`KICK`]). A signal whose action is the default one is sent by the kernel, so that the end is a true one.
//!
//! A signal is delivered to guest code only: one that finds the runtime at work waits for its end. While T makes a call for
//! the thread, that is the end of the call: the kernel cannot be asked to interrupt T.

use crate::arch::{self, Entry, Frame};
use crate::pair::{PRIVATE, from_state};
use crate::signal::{
    AltStack, Info, KICK, NSIG, REPORTED, SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTART, SA_RESTORER, SA_SIGINFO,
    SIGCHLD, SIGCONT, SIGILL, SIGKILL, SIGPIPE, SIGSTOP, SIGURG, SIGWINCH, SigAction, SigInfo, SigSet,
};
use crate::sys::{EINTR, Errno, Sysno};
use crate::untrusted::{State, ask_for_signal, brokered, gate, ring};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// `ERESTARTSYS` (`include/linux/errno.h`): the call is made again when the handler has returned. Never seen by the guest.
pub(crate) const RESTART: usize = -512isize as usize;
/// `SI_USER`, `SI_TKILL` (`siginfo.h`)
const SI_USER: i32 = 0;
const SI_TKILL: i32 = -6;
/// `SIG_DFL`, `SIG_IGN`
const DEFAULT: usize = 0;
const IGNORE: usize = 1;
/// The smallest alternate stack that the kernel takes (`MINSIGSTKSZ`).
const MIN_ALTSTACK: usize = 2048;
/// Looks at a table that somebody changes.
const PATIENCE: u32 = 10_000;
/// Signals that cannot be blocked, and have no action but the default one.
const NEVER: u64 = bit(SIGKILL) | bit(SIGSTOP);
/// Signals that do nothing by default.
const QUIET: u64 = bit(SIGCHLD) | bit(SIGCONT) | bit(SIGURG) | bit(SIGWINCH);

const fn bit(sig: i32) -> u64 {
    1 << (sig.wrapping_sub(1) & 63)
}

fn failure(errno: Errno) -> usize {
    (-errno.into_raw()) as isize as usize
}

/// What a thread knows of its signals.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Signals {
    /// Not 0 while the runtime is at work for an explicit call, and so no handler of the guest's may run.
    busy: u32,
    /// Set by a kick.
    kicked: u32,
    /// Whether the last handler was to have calls made again.
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

/// Marks the runtime as at work, or no longer, for an explicit call.
///
/// # Safety
///
/// `state` is this thread's.
pub(super) unsafe fn set_busy(state: *mut State, busy: bool) {
    // SAFETY: the caller's. The handler that looks runs in this thread.
    unsafe { (&raw mut (*state).signals.busy).write_volatile(u32::from(busy)) };
}

/// The signals that wait for this thread and are not blocked.
///
/// # Safety
///
/// `state` is this thread's.
pub(crate) unsafe fn ready(state: *mut State) -> u64 {
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

// Calls.

/// The calls that are about signals.
pub(super) const CALLS: &[Sysno] = &[
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

/// Makes one of [`CALLS`]; `None` for others. `frame` is where the guest was interrupted in making it, null if it
/// asked.
///
/// # Safety
///
/// As [`emulate::call`](super::emulate::call).
pub(super) unsafe fn call(
    state: *mut State,
    call: Sysno,
    args: [usize; 6],
    pc: usize,
    frame: *mut Frame,
) -> Option<usize> {
    let [a, b, c, d, ..] = args;
    // SAFETY: the caller's.
    unsafe {
        Some(match call {
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
            _ => return None,
        })
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
                _ = signals.pending.take(bit(sig)).or_else(|| PROCESS.take(bit(sig)));
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
            if let Some((sig, info)) = signals.pending.take(which).or_else(|| PROCESS.take(which)) {
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

unsafe fn set_alt(state: *mut State, alt: AltStack) -> Result<(), Errno> {
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

// Sending.

/// A call as it was made: which, with what, where.
type Made = (Sysno, [usize; 6], usize);

/// Sends a signal with the sender's own word for it, which cannot be the kernel's.
unsafe fn queue(state: *mut State, made: Made, pid: i32, sig: i32, tid: Option<u32>, at: usize) -> usize {
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
unsafe fn send(state: *mut State, made: Made, pid: i32, sig: i32, tid: Option<u32>, said: Option<&Info>) -> usize {
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
unsafe fn others(state: *mut State) -> impl Iterator<Item = *mut State> {
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
unsafe fn by_kernel(state: *mut State, sig: i32) -> usize {
    // SAFETY: the state is this thread's.
    unsafe {
        if REPORTED.contains(&sig) {
            (*state).fault.expected = sig;
            _ = ask_for_signal(state, sig);
            return 0;
        }
        brokered(state, Sysno::tgkill as u32, [(*state).pid as usize, (*state).tid as usize, sig as usize, 0, 0, 0], 0)
    }
}

/// Makes the guest's own `read` or `write`, which a signal interrupts as it does with the kernel's.
///
/// # Safety
///
/// `state` is this thread's; otherwise as the manual page says.
pub(super) unsafe fn pass(state: *mut State, nr: u32, args: [usize; 6], frame: *mut Frame) -> usize {
    // SAFETY: the caller's. In an explicit call the guest's handlers may run meanwhile.
    unsafe {
        let signals = &raw mut (*state).signals;
        (&raw mut (*signals).restart).write_volatile(true);
        (&raw mut (*signals).kicked).write_volatile(0);
        if frame.is_null() {
            set_busy(state, false);
        }
        let result = if ready(state) == 0 {
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

/// Behind the highest signal.
const NONE: i32 = NSIG + 1;

// Delivering: in the handlers of the fault reporter.

/// Whether a handler interrupted the runtime: then no code of the guest's runs until that is done.
///
/// # Safety
///
/// `state` is this thread's; `frame` the kernel's.
unsafe fn at_work(state: *mut State, frame: *mut Frame) -> bool {
    // SAFETY: the caller's.
    unsafe { (*state).fault.on_altstack((*frame).sp()) || (&raw const (*state).signals.busy).read_volatile() != 0 }
}

/// The handler of [`KICK`].
///
/// # Safety
///
/// As the fault handler.
pub(crate) unsafe fn kicked(state: *mut State, frame: *mut Frame) {
    // SAFETY: the caller's.
    unsafe {
        if ready(state) == 0 {
            return;
        }
        (&raw mut (*state).signals.kicked).write_volatile(1);
        let (from, to) = (arch::asc_pass_from as *const () as usize, arch::asc_pass_call as *const () as usize);
        if (from..=to).contains(&(*frame).pc()) {
            (*frame).set_pc(arch::asc_pass_interrupted as *const () as usize);
        }
        if !at_work(state, frame) {
            deliver(state, frame);
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
            deliver(state, frame);
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
        if alt.flags != Frame::NO_ALT {
            _ = set_alt(state, alt); // as the kernel does: what it would refuse changes nothing
        }
        deliver(state, frame);
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
pub(crate) unsafe fn deliver(state: *mut State, frame: *mut Frame) {
    // SAFETY: the caller's.
    unsafe {
        loop {
            let which = ready(state);
            if which == 0 {
                break;
            }
            let Some((sig, info)) = of(state).pending.take(which).or_else(|| PROCESS.take(which)) else { continue };
            let action = action(sig);
            if is_ignored(sig, &action) {
                continue;
            }
            if action.handler == DEFAULT {
                _ = by_kernel(state, sig);
            } else if !enter(state, frame, sig, &info, &action) {
                // There is no stack for it: what the kernel makes a SIGSEGV that has no handler.
                set_action(crate::signal::SIGSEGV, &SigAction::DEFAULT, None);
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

/// For explicit calls: delivers what waits. `EINTR` of calls that are made again is [`RESTART`] until then.
///
/// # Safety
///
/// `state` is this thread's, and the runtime not at work.
pub(super) unsafe fn deliver_here(state: *mut State) {
    // SAFETY: the trap is one of the runtime's own.
    unsafe {
        if ready(state) != 0 {
            arch::asc_deliver();
        }
    }
}

const _: () = assert!(EINTR == 4 && SIGILL == 4);
