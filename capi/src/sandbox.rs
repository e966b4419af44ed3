//! Sandboxes.

use crate::config::{Config, SHARED};
use crate::error::{Error, Failure, tell};
use crate::memory;
use crate::policy::Policy;
use core::ffi::{c_char, c_int, c_void};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, Ordering};
use core::time::Duration;
use runtime::error::Status;
use runtime::sandbox::{self, Cause};

/// The guest ended: by itself, by a fault, or by a call that its lock-down forbids.
pub const ASCETIC_CAUSE_GUEST: u32 = 0;
/// The trusted thread ended, which it never does by itself; the guest was killed.
pub const ASCETIC_CAUSE_TRUSTED_DIED: u32 = 1;
/// The deadline passed; both were killed.
pub const ASCETIC_CAUSE_DEADLINE: u32 = 2;
/// ascetic_kill() was called.
pub const ASCETIC_CAUSE_KILLED: u32 = 3;
/// Nothing was done: the sandbox is another process's, and this handle a copy made by fork().
pub const ASCETIC_CAUSE_FOREIGN: u32 = 4;

/// For ascetic_wait() and ascetic_serve(): without end. No other number of milliseconds means that: one that is negative, as a
/// time that is left and was computed may be, is over.
pub const ASCETIC_FOREVER: i64 = i64::MAX;

/// Bytes that a crash record may have.
pub const ASCETIC_RECORD_MAX: usize = 262_144;

const _: () = assert!(ASCETIC_RECORD_MAX == sandbox::RECORD_MAX);

/// Milliseconds, as a limit.
fn limit(ms: i64) -> Option<Duration> {
    (ms != ASCETIC_FOREVER).then(|| Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
}

/// A running sandbox, or one that has ended.
pub struct Sandbox {
    inner: Inner,
    /// For `trampoline`; the guest has a copy.
    start: Start,
}

#[expect(clippy::large_enum_variant, reason = "the small one is on the stack, once")]
enum Inner {
    /// With its policy, of which it is a user.
    Own(sandbox::Sandbox<'static>, *mut Policy),
    /// For as long as a report takes.
    Lent(*const sandbox::Sandbox<'static>),
}

/// How a sandbox ended: the kernel's word for each task, for WIFEXITED() and the like.
#[repr(C)]
pub struct Outcome {
    /// Why: ASCETIC_CAUSE_*
    pub cause: u32,
    /// The guest's wait status.
    pub guest: c_int,
    /// The trusted thread's wait status.
    pub trusted: c_int,
    /// Tasks that were killed and have not ended, because they are in a call that cannot be interrupted. None runs guest code.
    pub left: u32,
}

/// A refused call. Number, arguments, path and program counter are what the guest said: the path may have any characters, and
/// is nothing to show on a terminal as it is.
#[repr(C)]
pub struct Refusal {
    /// The call's number.
    pub call: u32,
    /// What the guest was told, an errno.
    pub sys_errno: i32,
    /// The call's arguments.
    pub args: [usize; 6],
    /// Where the guest made it.
    pub pc: usize,
    /// The call's name; "?" if there is no such call. Not ended by a zero.
    pub name: *const c_char,
    /// Bytes of the name.
    pub name_len: usize,
    /// The rule that refused it, in words. Not ended by a zero.
    pub rule: *const c_char,
    /// Bytes of the rule.
    pub rule_len: usize,
    /// The first path of the call, as far as it is kept. Not ended by a zero.
    pub path: *const c_char,
    /// Bytes of the path.
    pub path_len: usize,
}

/// Told of a refusal, which is there until this returns.
pub type Refused = Option<unsafe extern "C" fn(refusal: *const Refusal, user: *mut c_void)>;

/// What a guest runs. What it returns is the exit status.
pub type Entry = Option<unsafe extern "C" fn(arg: *mut c_void) -> c_int>;

#[derive(Clone, Copy)]
struct Start {
    entry: Entry,
    arg: *mut c_void,
}

/// Where a spawned guest begins: `start` is the address of a [`Start`].
extern "C" fn trampoline(start: usize) -> c_int {
    // SAFETY: `ascetic_spawn` filled it in before the fork, and nothing takes it away from the copy that the guest has.
    let start = unsafe { *(start as *const Start) };
    // SAFETY: the embedder says that it may be called so, once.
    start.entry.map_or(127, |entry| unsafe { entry(start.arg) })
}

impl From<&sandbox::Outcome> for Outcome {
    fn from(outcome: &sandbox::Outcome) -> Self {
        let word = |status| match status {
            Status::Exited(code) => c_int::from(code) << 8,
            Status::Signaled { signal, core } => signal | if core { 0x80 } else { 0 },
        };
        let cause = match outcome.cause {
            Cause::Guest => ASCETIC_CAUSE_GUEST,
            Cause::TrustedDied => ASCETIC_CAUSE_TRUSTED_DIED,
            Cause::Deadline => ASCETIC_CAUSE_DEADLINE,
            Cause::Killed => ASCETIC_CAUSE_KILLED,
            Cause::Foreign => ASCETIC_CAUSE_FOREIGN,
        };
        Self { cause, guest: word(outcome.guest), trusted: word(outcome.trusted), left: outcome.left }
    }
}

impl Sandbox {
    fn get(&self) -> &sandbox::Sandbox<'static> {
        match &self.inner {
            Inner::Own(sandbox, _) => sandbox,
            // SAFETY: whoever lends it keeps it as long as this is to be had.
            Inner::Lent(sandbox) => unsafe { &**sandbox },
        }
    }
}

/// # Safety
///
/// `sandbox` is NULL or a sandbox, and nobody else uses it meanwhile.
unsafe fn owned<'a>(sandbox: *mut Sandbox) -> Result<&'a mut sandbox::Sandbox<'static>, Failure> {
    // SAFETY: the caller's.
    match unsafe { sandbox.as_mut() } {
        None => Err(Failure::Argument("the sandbox is NULL")),
        Some(Sandbox { inner: Inner::Own(sandbox, _), .. }) => Ok(sandbox),
        Some(Sandbox { inner: Inner::Lent(_), .. }) => Err(Failure::Lent),
    }
}

/// # Safety
///
/// `to` is NULL or has room for an [`Outcome`].
unsafe fn put(outcome: &sandbox::Outcome, to: *mut Outcome) {
    if !to.is_null() {
        // SAFETY: the caller's.
        unsafe { to.write(outcome.into()) };
    }
}

/// What the report of `ascetic_enter` needs. A process enters once, and with one thread.
static ENTERED: AtomicPtr<Config> = AtomicPtr::new(core::ptr::null_mut());

fn report(sandbox: &sandbox::Sandbox<'_>, outcome: &sandbox::Outcome) {
    // SAFETY: null, or in the frame of `ascetic_enter`, which does not return in this process.
    let Some(config) = (unsafe { ENTERED.load(Ordering::Relaxed).as_ref() }) else { return };
    let Some(report) = config.report else { return };
    let start = Start { entry: None, arg: core::ptr::null_mut() };
    let mut lent = Sandbox { inner: Inner::Lent(core::ptr::from_ref(sandbox).cast()), start };
    // SAFETY: the embedder says that it may be called so; both live until it returns.
    unsafe { report(&raw mut lent, &outcome.into(), config.user) };
}

/// Makes the caller the guest: returns 0 in the sandbox, in a copy of the calling process. That process itself supervises
/// it, and never returns: after the configuration's report it ends as the guest ends. It must have one thread. What
/// streams hold in their buffers goes into the copy: fflush() before. A failure is told in the calling process, which is
/// then what it was before. `config` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_enter(policy: *const Policy, config: *const Config, error: *mut Error) -> c_int {
    let enter = || {
        // SAFETY: the caller's.
        let policy = unsafe { policy.as_ref() }.ok_or(Failure::Argument("the policy is NULL"))?.held()?;
        // SAFETY: the caller's.
        let mut read = unsafe { Config::read(config) }?;
        let mut ranges = [(0, 0); SHARED];
        // SAFETY: the caller's.
        let plain = unsafe { read.plain(&policy.policy, &mut ranges) }?;
        let plain = sandbox::Config { report: Some(report), ..plain };
        ENTERED.store(&raw mut read, Ordering::Relaxed);
        let entered = sandbox::enter(&plain);
        ENTERED.store(core::ptr::null_mut(), Ordering::Relaxed);
        Ok(entered.map(|()| 0)?)
    };
    // SAFETY: the caller's.
    unsafe { tell(enter(), error) }
}

/// Runs `entry(arg)` in a sandbox: in a child with a copy of this process's memory, as after fork(). `sandbox` gets a
/// handle for it, which ascetic_free() ends. The guest's calls are answered while ascetic_wait() or ascetic_serve() runs.
/// `config` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_spawn(
    policy: *mut Policy,
    config: *const Config,
    entry: Entry,
    arg: *mut c_void,
    sandbox: *mut *mut Sandbox,
    error: *mut Error,
) -> c_int {
    let spawn = || {
        // SAFETY: the caller's. As its user, the sandbox keeps the policy where it is and as it is.
        let of = unsafe { policy.as_ref::<'static>() }.ok_or(Failure::Argument("the policy is NULL"))?.held()?;
        if entry.is_none() || sandbox.is_null() {
            return Err(Failure::Argument("entry or sandbox is NULL"));
        }
        // SAFETY: the caller's.
        let read = unsafe { Config::read(config) }?;
        let at = memory::room::<Sandbox>().ok_or(Failure::Memory)?;
        let made = spawn_in(at, of, &read, Start { entry, arg });
        match made {
            Ok(running) => {
                of.share();
                // SAFETY: the room is new; its `start` was written, and is again as it was.
                unsafe {
                    at.write(Sandbox { inner: Inner::Own(running, policy), start: Start { entry, arg } });
                    sandbox.write(at.as_ptr());
                }
                Ok(0)
            }
            Err(failure) => {
                // SAFETY: of `room`, and nobody has seen it.
                unsafe { memory::give_back(at.as_ptr()) };
                Err(failure)
            }
        }
    };
    // SAFETY: the caller's.
    unsafe { tell(spawn(), error) }
}

/// Spawns a guest that finds its `start` in `at`.
fn spawn_in(
    at: NonNull<Sandbox>,
    policy: &'static Policy,
    config: &Config,
    start: Start,
) -> Result<sandbox::Sandbox<'static>, Failure> {
    let mut ranges = [(0, 0); SHARED];
    let room = &raw mut ranges;
    // SAFETY: the embedder says so; its arrays and ours are looked at before `spawn` returns, and the sandbox refers to the
    // policy only.
    let plain = unsafe { config.plain(&policy.policy, &mut *room) }?;
    // SAFETY: the room is new, and ours.
    let start = unsafe {
        let place = &raw mut (*at.as_ptr()).start;
        place.write(start);
        place.addr()
    };
    Ok(sandbox::spawn(&plain, trampoline, start)?)
}

/// Waits until the sandbox ends, and answers its calls meanwhile; kills it after `deadline_ms` milliseconds, unless that is
/// ASCETIC_FOREVER. `outcome` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_wait(
    sandbox: *mut Sandbox,
    deadline_ms: i64,
    outcome: *mut Outcome,
    error: *mut Error,
) -> c_int {
    // SAFETY: the caller's.
    let waited = unsafe { owned(sandbox) }.map(|sandbox| {
        let ended = sandbox.wait(limit(deadline_ms));
        // SAFETY: the caller's.
        unsafe { put(&ended, outcome) };
        0
    });
    // SAFETY: the caller's.
    unsafe { tell(waited, error) }
}

/// Waits for up to `timeout_ms` milliseconds, or ASCETIC_FOREVER, for one thing to do, and does it. 1 if the sandbox has
/// ended, and then `outcome`, which may be NULL, is filled in; 0 if it has not.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_serve(
    sandbox: *mut Sandbox,
    timeout_ms: i64,
    outcome: *mut Outcome,
    error: *mut Error,
) -> c_int {
    // SAFETY: the caller's.
    let served = unsafe { owned(sandbox) }.map(|sandbox| {
        let ended = sandbox.serve(limit(timeout_ms));
        if let Some(ended) = &ended {
            // SAFETY: the caller's.
            unsafe { put(ended, outcome) };
        }
        c_int::from(ended.is_some())
    });
    // SAFETY: the caller's.
    unsafe { tell(served, error) }
}

/// A descriptor that is readable when ascetic_serve() has something to do: for whoever polls. -1 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_descriptor(sandbox: *const Sandbox) -> c_int {
    // SAFETY: the caller's.
    unsafe { sandbox.as_ref() }.map_or(-1, |sandbox| sandbox.get().descriptor())
}

/// After how many milliseconds to call ascetic_serve() although the descriptor is not readable; -1 for never, as poll() has it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_patience(sandbox: *const Sandbox) -> i64 {
    // SAFETY: the caller's.
    let patience = unsafe { sandbox.as_ref() }.and_then(|sandbox| sandbox.get().patience());
    patience.map_or(-1, |time| time.as_micros().div_ceil(1000).min(i64::MAX as u128) as i64)
}

/// Kills all of a sandbox and waits for its end. `outcome` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_kill(sandbox: *mut Sandbox, outcome: *mut Outcome, error: *mut Error) -> c_int {
    // SAFETY: the caller's.
    let killed = unsafe { owned(sandbox) }.map(|sandbox| {
        // SAFETY: the caller's.
        unsafe { put(&sandbox.kill(), outcome) };
        0
    });
    // SAFETY: the caller's.
    unsafe { tell(killed, error) }
}

/// Process ids of the first thread and its trusted thread. Either pointer may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_pids(
    sandbox: *const Sandbox,
    trusted: *mut c_int,
    guest: *mut c_int,
    error: *mut Error,
) -> c_int {
    // SAFETY: the caller's.
    let sandbox = unsafe { sandbox.as_ref() }.ok_or(Failure::Argument("the sandbox is NULL"));
    let told = sandbox.map(|sandbox| {
        let (t, u) = sandbox.get().pids();
        for (to, pid) in [(trusted, t), (guest, u)] {
            if !to.is_null() {
                // SAFETY: the caller's.
                unsafe { to.write(pid as c_int) };
            }
        }
        0
    });
    // SAFETY: the caller's.
    unsafe { tell(told, error) }
}

/// Copies what the crash reporter wrote to `room`, which has `len` bytes; ASCETIC_RECORD_MAX are enough. Returns how many
/// there are: 0 if there was no crash, or the configuration's `crash` is where it is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_record(sandbox: *const Sandbox, room: *mut c_void, len: usize) -> usize {
    // SAFETY: the caller's.
    let Some(sandbox) = (unsafe { sandbox.as_ref() }) else { return 0 };
    if room.is_null() {
        return 0;
    }
    let room = room.cast::<u8>();
    // SAFETY: the caller says how much there is, and it is written to before it is looked at.
    let room = unsafe {
        room.write_bytes(0, len);
        core::slice::from_raw_parts_mut(room, len)
    };
    sandbox.get().record(room).len()
}

/// Tells `each` of the last refused calls, the oldest first, and returns how many were refused in all. `each` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_refusals(sandbox: *const Sandbox, each: Refused, user: *mut c_void) -> u64 {
    // SAFETY: the caller's.
    let Some(sandbox) = (unsafe { sandbox.as_ref() }) else { return 0 };
    let (last, total) = sandbox.get().refusals();
    let Some(each) = each else { return total };
    for refused in last {
        let (name, path) = (refused.name(), refused.path());
        let refusal = Refusal {
            call: refused.nr,
            sys_errno: refused.errno,
            args: refused.args,
            pc: refused.pc,
            name: name.as_ptr().cast(),
            name_len: name.len(),
            rule: refused.rule.as_ptr().cast(),
            rule_len: refused.rule.len(),
            path: path.as_ptr().cast(),
            path_len: path.len(),
        };
        // SAFETY: the embedder says that it may be called so; all of it lives until it returns.
        unsafe { each(&raw const refusal, user) };
    }
    total
}

/// Kills a sandbox that has not ended, and frees its handle, or nothing if it is NULL. One that is lent stays.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ascetic_free(sandbox: *mut Sandbox) {
    // SAFETY: the caller's; the policy of a sandbox of its own is of `ascetic_policy_new`, and is used until it is gone.
    unsafe {
        let Some(Sandbox { inner: Inner::Own(_, policy), .. }) = sandbox.as_ref() else { return };
        let policy = *policy;
        sandbox.drop_in_place();
        memory::give_back(sandbox);
        Policy::release(policy);
    }
}
