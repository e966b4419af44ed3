//! U's side: how guest code asks for system calls. No heap, no libc, no lock.
//!
//! Everything here runs in the guest's own hands: it can be changed, skipped or forged by guest code, and nothing
//! outside depends on it.

mod carry;
pub(crate) mod dispatch;
mod emulate;
pub(crate) mod gate;
pub(crate) mod signal;
pub mod thread;

use crate::abi::{Mailbox, PAGE, ROW_ALLOW, TABLE_LEN};
use crate::arch;
use crate::config;
use crate::sys::{self, Errno, Sysno};
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use static_assertions::const_assert;

/// Brokered calls that are remembered for the reporter.
pub const RING: usize = 32;
/// How often a call with a path is made while others rename folders.
const TRIES: u32 = 64;
/// How many kinds of calls are told apart by how long they take.
pub(crate) const CLASSES: usize = 16;
/// Bytes of annotations.
pub const ANNOTATIONS: usize = 1024;

/// A brokered call with its result.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CallRecord {
    /// The arguments.
    pub args: [usize; 6],
    /// What came back: a negative `errno` on failure.
    pub result: usize,
    /// The call's number.
    pub nr: u32,
    /// 1 when the call is under way, 2 when it has returned.
    pub state: u32,
}

/// How long U lets T work before it looks for the answer.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct LookAway {
    /// How long, in pauses.
    pub(crate) pauses: u32,
    /// How many answers in a row were there at the first look.
    pub(crate) in_time: u32,
}

impl LookAway {
    /// What to begin with: as long as two calls that do nothing take. `most` is as long as [`CALLS`](config::CALLS).
    pub(crate) fn begin(most: u32) -> [Self; CLASSES] {
        [Self { pauses: most / (config::CALLS / 2), in_time: 0 }; CLASSES]
    }
}

/// The state of U's runtime: private memory of the sandbox, beside the mailbox.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct State {
    /// This state's own address: where the runtime's segment begins.
    pub(crate) this: *mut State,
    /// The number of the pair.
    pub(crate) pair: usize,
    pub(crate) mailbox: *mut Mailbox,
    pub(crate) entry: extern "C" fn(usize) -> i32,
    pub(crate) arg: usize,
    pub(crate) doorbell_t: i32,
    pub(crate) doorbell_u: i32,
    pub(crate) alarm: i32,
    pub(crate) crash: i32,
    pub(crate) probe_read: i32,
    pub(crate) probe_write: i32,
    pub(crate) answer: i32,
    pub(crate) spin: u32,
    /// How long T takes for a call, as far as U has seen; by the last bits of its number.
    pub(crate) look_away: [LookAway; CLASSES],
    pub(crate) look_away_most: u32,
    pub(crate) turn: u32,
    pub(crate) pid: u32,
    /// 0 when this thread is gone.
    pub(crate) tid: u32,
    pub(crate) uid: u32,
    /// How many pairs have a state.
    pub(crate) pairs: u32,
    /// Whether calls that the guest makes itself are caught.
    pub(crate) dispatch: bool,
    /// Whether the kernel catches them: also those that are only to be reported.
    pub(crate) selector: bool,
    /// Whether there can be other threads.
    pub(crate) threads: bool,
    /// Whether T is to wait for the supervisor when this thread has crashed.
    pub(crate) stays: bool,
    /// Where the guest wants 0 when this thread ends (`set_tid_address`); 0 for nowhere.
    pub(crate) clear_tid: usize,
    pub(crate) calls: u32,
    pub(crate) raises: u32,
    pub(crate) ring: [CallRecord; RING],
    pub(crate) annotations_len: u32,
    pub(crate) annotations: [u8; ANNOTATIONS],
    pub(crate) tsc_last: u64,
    pub(crate) fault: crate::fault::FaultState,
    pub(crate) signals: signal::Signals,
    /// What a new thread starts from.
    pub(crate) start: thread::Start,
}

const_assert!(size_of::<State>() <= 6 * PAGE);
const_assert!(core::mem::offset_of!(State, this) == 0);

/// Whether this is a sandbox. Set in the sandbox's copy of memory only.
static GUEST: AtomicBool = AtomicBool::new(false);

/// Makes this process a sandbox. Called by set-up code, in the sandbox.
pub(crate) fn adopt() {
    GUEST.store(true, Ordering::Relaxed);
}

/// The state of this thread's pair; null outside a sandbox.
pub(crate) fn state() -> *mut State {
    if GUEST.load(Ordering::Relaxed) { arch::segment_word() as *mut State } else { core::ptr::null_mut() }
}

/// Whether the caller is a guest.
pub fn is_guest() -> bool {
    !state().is_null()
}

/// Where guest code starts, from the registers that the birth script's sigreturn loads.
pub(crate) extern "C" fn start(state: *mut State) -> ! {
    // SAFETY: set-up filled the state in; it stays mapped, and no other thread of this pair exists.
    let (entry, arg) = unsafe { ((*state).entry, (*state).arg) };
    begin();
    let status = entry(arg);
    exit(status)
}

/// From here on, the guest's own calls are caught, if they are to be.
pub(crate) fn begin() {
    let state = state();
    // SAFETY: a guest's state is mapped; the kernel reads the selector at every call.
    unsafe { (&raw mut (*(*state).mailbox).selector).write_volatile(u8::from((*state).selector)) };
}

/// Makes a system call: through T, unless strict mode allows it, or it concerns nothing but this thread.
///
/// # Errors
///
/// The kernel's, or the policy's refusal: `ENOSYS` or the `errno` chosen for the call; `EFAULT` for an argument that
/// points into the vault; `EBADF` for a descriptor of the sandbox itself. `EPERM` outside a sandbox.
///
/// # Safety
///
/// As the call's manual page says of these arguments.
#[inline(always)]
pub unsafe fn call(nr: Sysno, args: [usize; 6]) -> sys::Result<usize> {
    let pc = arch::here();
    // SAFETY: the caller's.
    Errno::from_ret(unsafe { call_at(nr as u32, &args, pc) })
}

/// Makes a call that the guest asked for, and delivers the signals that came meanwhile.
///
/// # Safety
///
/// As [`call`].
#[inline(never)]
unsafe fn call_at(nr: u32, args: &[usize; 6], pc: usize) -> usize {
    let state = state();
    if state.is_null() {
        return sys::failure(Errno::EPERM);
    }
    loop {
        // SAFETY: the caller's; the state is this thread's.
        let result = unsafe {
            signal::undisturbed(state, || {
                if is_direct(state, nr) && !emulate::answers(nr) {
                    direct(state, nr, args, pc)
                } else {
                    emulate::call(state, nr, *args, pc, core::ptr::null_mut())
                }
            })
        };
        if result != signal::RESTART {
            return result;
        }
    }
}

/// Like [`call`], by number, with nothing answered here: what T says to it. Returns a negative `errno` on failure.
///
/// # Safety
///
/// The caller is a guest; otherwise as [`call`].
pub unsafe fn call_raw(nr: u32, args: [usize; 6]) -> usize {
    let state = state();
    // SAFETY: the caller's; the state is this thread's.
    unsafe { signal::undisturbed(state, || brokered(state, nr, args, arch::here())) }
}

/// Has T make a call, with what it carries, and notes it.
///
/// # Safety
///
/// `state` is this thread's; otherwise as [`call`].
pub(crate) unsafe fn brokered(state: *mut State, nr: u32, args: [usize; 6], pc: usize) -> usize {
    // SAFETY: a guest's state is mapped and its own.
    unsafe {
        if is_direct(state, nr) {
            return direct(state, nr, &args, pc);
        }
        let by_token = |token| ask(state, crate::abi::NR_TOKEN, &token, || note(state, nr, &args));
        let stale = |result: &usize| Errno::from_ret(*result) == Err(Errno::ESTALE);
        let mut result = carry::token(state, nr, &args).map(by_token).filter(|result| !stale(result));
        let mut left = TRIES;
        while left > 0 && result.is_none_or(|result| carry::again(nr, &args, result)) {
            left = left.wrapping_sub(1);
            carry::put(state, nr, &args, pc);
            result = Some(ask(state, nr, &args, || note(state, nr, &args)));
        }
        let result = result.unwrap_or(0);
        noted(state, carry::get(state, nr, &args, result))
    }
}

/// Has T make a call that it makes by itself, and notes it.
///
/// # Safety
///
/// As [`brokered`].
#[inline(always)]
unsafe fn direct(state: *mut State, nr: u32, args: &[usize; 6], pc: usize) -> usize {
    // SAFETY: the caller's.
    unsafe {
        let result = ask(state, nr, args, || {
            (&raw mut (*(*state).mailbox).pc).write_volatile(pc);
            note(state, nr, args);
        });
        noted(state, result)
    }
}

/// Notes a call that is under way.
///
/// # Safety
///
/// `state` is this thread's.
#[inline(always)]
unsafe fn note(state: *mut State, nr: u32, args: &[usize; 6]) {
    // SAFETY: the caller's; the index is below the length.
    unsafe {
        let slot = (&raw mut (*state).ring).cast::<CallRecord>().wrapping_add((*state).calls as usize % RING);
        (*slot).state = 1;
        (*slot).nr = nr;
        (*slot).args = *args;
    }
}

/// Notes the result of the call under way.
///
/// # Safety
///
/// As [`note`].
#[inline(always)]
unsafe fn noted(state: *mut State, result: usize) -> usize {
    // SAFETY: as `note`.
    unsafe {
        let slot = (&raw mut (*state).ring).cast::<CallRecord>().wrapping_add((*state).calls as usize % RING);
        (*slot).result = result;
        (*slot).state = 2;
        (*state).calls = (*state).calls.wrapping_add(1);
    }
    result
}

/// Whether the policy lets T make a call by itself: then nothing is carried.
///
/// # Safety
///
/// `state` is this thread's.
unsafe fn is_direct(state: *mut State, nr: u32) -> bool {
    // SAFETY: the vault is mapped, and readable.
    let table = unsafe { &raw const (*crate::pair::from_state::vault(state, (*state).pair)).page.table };
    // SAFETY: as above; the number is below the table's length.
    (nr as usize) < TABLE_LEN && unsafe { table.cast::<u32>().wrapping_add(nr as usize).read() } & ROW_ALLOW != 0
}

/// Asks T, does something `meanwhile`, and waits. Both sides publish "I sleep" and look again before they do, so no wake-up is lost.
///
/// # Safety
///
/// `state` is this thread's.
pub(crate) unsafe fn ask(state: *mut State, nr: u32, args: &[usize; 6], meanwhile: impl FnOnce()) -> usize {
    // SAFETY: the state and the mailbox are mapped; what T writes is read through atomics.
    unsafe {
        let line = &raw mut (*(*state).mailbox).line;
        let turn = atomic(&raw mut (*line).turn);
        let asked = (*state).turn.wrapping_add(1);
        let answered = asked.wrapping_add(1);
        (*state).turn = answered;
        (&raw mut (*line).nr).write_volatile(nr);
        (&raw mut (*line).args).write_volatile(*args);
        turn.store(asked, Ordering::Release); // no fence: whether T sleeps is looked at again before U does
        let (u_asleep, t_asleep) = (atomic(&raw mut (*line).u_asleep), atomic(&raw mut (*line).t_asleep));
        let wake = || {
            if t_asleep.load(Ordering::Relaxed) != 0 {
                t_asleep.store(0, Ordering::Relaxed);
                ring((*state).doorbell_t);
            }
        };
        meanwhile();
        let mut left = (*state).spin;
        if left > 0 {
            look_away(state, nr, || turn.load(Ordering::Acquire) == answered);
        }
        while turn.load(Ordering::Acquire) != answered {
            if left > 0 {
                wake();
                left -= 1;
                spin_loop();
                continue;
            }
            u_asleep.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst); // "U sleeps" and the request are out before the last look, at both words:
            if turn.load(Ordering::Acquire) == answered {
                break; // T rings, or we see the reply;
            }
            wake(); // T sees the request, or we ring
            let _ = gate::read((*state).doorbell_u, &mut [0; 8]);
        }
        if left == 0 {
            u_asleep.store(0, Ordering::Relaxed);
        }
        (&raw const (*line).args[0]).read_volatile()
    }
}

/// Lets T work. Looking before an answer can be there takes the line from T, which needs it to answer, and costs more
/// than looking late; so the time creeps down while answers are there at the first look, and up when one is not.
///
/// # Safety
///
/// `state` is this thread's.
unsafe fn look_away(state: *mut State, nr: u32, answered: impl Fn() -> bool) {
    const PATIENCE: u32 = 3;
    // SAFETY: the caller's; the index is below the length.
    unsafe {
        let away = (&raw mut (*state).look_away).cast::<LookAway>().wrapping_add(nr as usize % CLASSES);
        let LookAway { pauses, in_time } = *away;
        (0..pauses).for_each(|_| spin_loop());
        *away = if !answered() {
            LookAway { pauses: pauses.wrapping_add(1).min((*state).look_away_most), in_time: 0 }
        } else if in_time < PATIENCE {
            LookAway { pauses, in_time: in_time.wrapping_add(1) }
        } else {
            LookAway { pauses: pauses.saturating_sub(1), in_time: 0 }
        };
    }
}

/// # Safety
///
/// `word` is mapped and aligned for as long as the reference lives.
unsafe fn atomic<'a>(word: *mut u32) -> &'a AtomicU32 {
    // SAFETY: the caller's.
    unsafe { AtomicU32::from_ptr(word) }
}

fn ring(doorbell: i32) {
    let _ = gate::write(doorbell, &1u64.to_ne_bytes());
}

/// The guest's process id: the same before and after [`enter`](crate::sandbox::enter), and that of U after
/// [`spawn`](crate::sandbox::spawn). 0 outside a sandbox.
pub fn getpid() -> u32 {
    let state = state();
    // SAFETY: a guest's state is mapped and its own.
    if state.is_null() { 0 } else { unsafe { (*state).pid } }
}

/// The guest's id of this thread. 0 outside a sandbox.
pub fn gettid() -> u32 {
    let state = state();
    // SAFETY: a guest's state is mapped and its own.
    if state.is_null() { 0 } else { unsafe { (*state).tid } }
}

/// Ends the guest, all threads of it, with an exit status.
pub fn exit(status: i32) -> ! {
    let state = state();
    if !state.is_null() {
        // SAFETY: a guest's state is mapped and its own.
        unsafe { emulate::exit_group(state, status) }
    }
    sys::exit(status)
}

/// Ends the guest with SIGABRT: reported like a fault, with this place in the backtrace.
pub fn abort() -> ! {
    let state = state();
    if !state.is_null() {
        // SAFETY: a guest's state is mapped and its own.
        unsafe { _ = ask_for_signal(state, crate::signal::SIGABRT) };
    }
    exit(128 + crate::signal::SIGABRT)
}

/// Asks the supervisor to send this task a signal, which it cannot do itself, and waits until it is pending. Returns
/// whether it is: the supervisor does not answer for ever.
///
/// # Safety
///
/// `state` is this thread's.
pub(crate) unsafe fn ask_for_signal(state: *mut State, sig: i32) -> bool {
    // SAFETY: the state and the mailbox are mapped.
    unsafe {
        let mailbox = (*state).mailbox;
        (*state).raises = (*state).raises.wrapping_add(1);
        let request = (*state).raises << 8 | sig as u32 & 0xff;
        let raised = atomic(&raw mut (*mailbox).raised);
        atomic(&raw mut (*mailbox).raise).store(request, Ordering::Release);
        ring((*state).alarm);
        // The supervisor answers after it has sent the signal. The pipe ends if it dies, or will answer no more.
        while raised.load(Ordering::Acquire) != request {
            match gate::read((*state).answer, &mut [0; 1]) {
                Ok(1..) | Err(Errno::EINTR) => {}
                _ => return false,
            }
        }
        true
    }
}

/// At the end of this thread: has T wait for the supervisor, which can then have it read memory. Nobody answers, and nobody
/// waits for an answer. Not while T makes a call.
///
/// # Safety
///
/// As [`ask_for_signal`].
pub(crate) unsafe fn stay(state: *mut State) {
    // SAFETY: the state and the mailbox are mapped.
    unsafe {
        let line = &raw mut (*(*state).mailbox).line;
        let turn = atomic(&raw mut (*line).turn);
        if (*state).stays && turn.load(Ordering::Acquire) == (*state).turn {
            (&raw mut (*line).nr).write_volatile(crate::abi::NR_STAY);
            turn.store((*state).turn.wrapping_add(1), Ordering::Release);
            ring((*state).doorbell_t); // whether it sleeps or not
        }
    }
}

/// Adds `key=value` to what a crash report says. What no longer fits in [`ANNOTATIONS`] bytes is cut.
pub fn annotate(key: &str, value: &str) {
    let state = state();
    if state.is_null() {
        return;
    }
    // SAFETY: a guest's state is mapped and its own; nobody else writes to it.
    let (len, text) = unsafe { (&mut (*state).annotations_len, &mut (*state).annotations) };
    let mut end = *len as usize;
    for byte in key.bytes().chain(*b"=").chain(value.bytes()).chain(*b"\n") {
        if let Some(slot) = text.get_mut(end) {
            *slot = byte;
            end += 1;
        }
    }
    *len = end as u32;
}
