//! The supervisor: makes sandboxes, waits for them, ends them.
//!
//! Two ways in, one machinery. [`spawn`] forks a child that becomes the sandbox and runs a function in it.
//! [`enter`] forks, too, and lets the *copy* go on as the guest, at the same place with the same memory, while the
//! process that called it becomes the supervisor and ends as the guest ends. T and U are therefore never tasks that
//! lived before entry, and what supervises them is never in reach of their memory.

pub use crate::config::{Config, DEFAULT_SPIN, DEFAULT_STACK, Placement, RECORD_MAX};

use crate::abi::Mailbox;
use crate::arch::{self, Context};
use crate::birth;
use crate::error::{Error, Finding, Name, SetupStage, Status};
use crate::fault::tsc::{self, Scale};
use crate::make::{self, Fd, Made, Start, VaultView, View};
use crate::setup;
use crate::signal::{self, SIGKILL, SigSet};
use crate::sys::{self, Errno, PollFd, Sysno};
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;

/// Alarms that a guest may raise: an abort takes two. After that nobody listens, so that a flood costs only the guest.
const ALARMS: u32 = 16;

/// Why a sandbox ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The guest ended: by itself, by a fault, or by a call that its lock-down forbids.
    Guest,
    /// T ended, which it never does by itself; the guest was killed.
    TrustedDied,
    /// The deadline passed; both were killed.
    Deadline,
    /// [`Sandbox::kill`] was called.
    Killed,
    /// Nothing was done: this value is a copy, made by a fork, of another process's sandbox. The statuses mean nothing.
    Foreign,
}

/// How a sandbox ended: the kernel's word for each task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why.
    pub cause: Cause,
    /// The guest's wait status.
    pub guest: Status,
    /// T's wait status: SIGKILL, unless it died first.
    pub trusted: Status,
}

/// Sandboxes of this process that have not ended.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// How many sandboxes of this process live.
pub(crate) fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// A running sandbox. Dropping it kills it.
#[derive(Debug)]
pub struct Sandbox {
    t: Task,
    u: Task,
    alarm: Fd,
    alarms: u32,
    /// Both ends of the pipe: with no reader left, writing would raise SIGPIPE here.
    answer: (Fd, Option<Fd>),
    crash: Option<Fd>,
    mailbox: View<Mailbox>,
    vault: View<VaultView>,
    /// Whether the guest's scale of the time stamp counter is a good one.
    good_scale: bool,
    /// How it ended.
    outcome: Option<Outcome>,
    _live: Live,
}

/// Counts a sandbox as long as it lives.
#[derive(Debug)]
struct Live;

impl Live {
    fn new() -> Self {
        LIVE.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A task of a sandbox: a child of this process until it is reaped.
#[derive(Debug)]
struct Task {
    pid: u32,
    pidfd: Option<Fd>,
    status: Option<Status>,
    /// The process whose child it is.
    owner: u32,
}

impl Task {
    fn new(pid: u32) -> Self {
        Self { pid, pidfd: None, status: None, owner: sys::pids().0 }
    }

    fn watch(&mut self) -> Result<(), Error> {
        self.pidfd = Some(Fd(sys::pidfd_open(self.pid).map_err(Error::of(Sysno::pidfd_open))?));
        Ok(())
    }

    fn poll_fd(&self) -> PollFd {
        PollFd::readable(self.pidfd.as_ref().map_or(-1, |fd| fd.0))
    }

    /// Takes the status if the task has ended.
    fn reap(&mut self, block: bool) -> Option<Status> {
        if self.status.is_none() && self.pid != 0 {
            self.status = match sys::wait(self.pid, block) {
                Ok(raw) => raw.map(Status::from_raw),
                // Somebody else took it: all that is known is that it is gone.
                Err(_) => Some(Status::Exited(255)),
            };
        }
        self.status
    }

    /// Sends a signal, if the task was made.
    fn signal(&self, sig: i32) {
        let _ = match &self.pidfd {
            // Somebody's filter may not know the call; the task is not reaped, so its id is its own.
            Some(fd) => sys::pidfd_send_signal(fd.0, sig).or_else(|_| sys::kill(self.pid, sig)),
            None if self.pid != 0 => sys::kill(self.pid, sig),
            None => Ok(()),
        };
    }

    fn end(&mut self) -> Status {
        if self.reap(false).is_none() {
            self.signal(SIGKILL);
        }
        self.reap(true).unwrap_or(Status::Exited(255))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // A forked copy of this value, in a process that is not the parent, ends nothing.
        if self.owner == sys::pids().0 {
            self.end();
        }
    }
}

/// Runs `entry(arg)` in a sandbox: in a child process with a copy of this one's memory. Its result is the exit status.
///
/// The child is a copy of a process that may have threads, as after `fork(2)`: locks that other threads hold stay
/// locked in it. A panic in `entry` aborts, which strict mode turns into SIGKILL: use
/// [`abort`](crate::untrusted::abort) for a report. The child's end is not announced by SIGCHLD, and a `wait` without
/// `__WALL` does not see it. The sandbox follows the *thread* that calls this into death (`PR_SET_PDEATHSIG`, `prctl(2)`).
///
/// # Errors
///
/// Says what was wrong and who is at fault; nothing is left running.
pub fn spawn(config: &Config<'_>, entry: extern "C" fn(usize) -> i32, arg: usize) -> Result<Sandbox, Error> {
    let (made, pid) = make::create(config, Start::Call { entry, arg })?;
    await_birth(made, Task::new(pid))
}

/// Makes the caller the guest: returns in the sandbox, in a copy of the calling process, where the caller was.
///
/// The calling process itself supervises. It never returns: it ends as the guest ends, with the same status, after
/// [`Config::report`]. The guest's [`getpid`](crate::untrusted::getpid) goes on telling the caller's process id.
/// The calling process must have one thread.
///
/// # Errors
///
/// In the calling process, which then is what it was before.
pub fn enter(config: &Config<'_>) -> Result<(), Error> {
    match crate::audit::threads() {
        Ok(1) => {}
        Ok(threads) => return Err(Error::MultiThreaded { threads }),
        Err(errno) => return Err(Error::Setup { stage: SetupStage::Proc, errno }),
    }
    let mut call = Enter { config, context: Context::default(), result: Ok(()) };
    arch::save_control_words(&mut call.context);
    let data = &raw mut call;
    // SAFETY: both pointers are to `call`, which outlives the call; the context is resumed in the sandbox only, in a
    // copy of the address space, by `Frame::resume`, when nothing runs on this stack there any more.
    let result = unsafe { arch::asc_capture(&raw mut (*data).context, enter_captured, data.cast()) };
    if result == 0 {
        arch::load_control_words(&call.context);
    }
    call.result
}

struct Enter<'a> {
    config: &'a Config<'a>,
    context: Context,
    /// Stays as it is in the guest.
    result: Result<(), Error>,
}

unsafe extern "C" fn enter_captured(data: *mut core::ffi::c_void) -> isize {
    // SAFETY: `enter` passes its own `Enter`, which nobody else uses meanwhile.
    let call = unsafe { &mut *data.cast::<Enter<'_>>() };
    let made = make::create(call.config, Start::Resume { context: &call.context });
    match made.and_then(|(made, pid)| await_birth(made, Task::new(pid))) {
        Ok(sandbox) => supervise(sandbox, call.config),
        Err(error) => {
            call.result = Err(error);
            -1
        }
    }
}

/// The rest of the life of a process that called [`enter`].
fn supervise(mut sandbox: Sandbox, config: &Config<'_>) -> ! {
    let outcome = sandbox.wait(config.deadline);
    if let Some(report) = config.report {
        report(&sandbox, &outcome);
    }
    drop(sandbox);
    let status = match outcome.guest {
        Status::Exited(code) => i32::from(code),
        Status::Signaled { signal, .. } => {
            // SAFETY: the default action runs no code; no core of a process that did nothing wrong.
            unsafe {
                let _ = sys::sigaction(signal, &signal::SigAction::DEFAULT);
                let _ = sys::call(Sysno::setrlimit, [4, (&raw const NO_CORE) as usize, 0, 0, 0, 0]);
            }
            let _ = sys::sigmask(SigSet::of(&[signal]).complement());
            let _ = sys::kill(sys::pids().0, signal);
            128 + signal
        }
    };
    loop {
        // SAFETY: does not return.
        let _ = unsafe { sys::call(Sysno::exit_group, [status as usize, 0, 0, 0, 0, 0]) };
    }
}

static NO_CORE: [usize; 2] = [0; 2];

/// Follows set-up and births until guest code runs.
fn await_birth(made: Made, mut set_up: Task) -> Result<Sandbox, Error> {
    let status = set_up.reap(true).unwrap_or(Status::Exited(255));
    // SAFETY: the view is mapped; no guest code runs yet, so what the set-up task wrote is its own.
    let report = unsafe { (&raw const (*made.mailbox.at).setup).read_volatile() };
    let Made { vault, mailbox, alarm, crash, answer, .. } = made;
    // From here on, dropping the sandbox ends and reaps T and U.
    let mut sandbox = Sandbox {
        t: Task::new(report.t),
        u: Task::new(report.u),
        alarm,
        alarms: 0,
        answer: (answer.0, Some(answer.1)),
        crash,
        mailbox,
        vault,
        good_scale: false,
        outcome: None,
        _live: Live::new(),
    };
    let errno = Errno::new(report.errno as i32);
    match (status, SetupStage::ALL.into_iter().find(|stage| *stage as u32 == report.stage)) {
        (Status::Exited(0), None) => {}
        (_, Some(SetupStage::Audit)) => {
            let name = Name::new(report.name, report.name_len as usize);
            return Err(Error::Found { finding: Finding::from_raw(report.errno), fd: report.fd, name });
        }
        (_, Some(SetupStage::Keep)) => return Err(Error::ClosedDescriptor { fd: report.fd }),
        (_, Some(stage)) => return Err(Error::Setup { stage, errno }),
        (Status::Exited(code), None) if i32::from(code) > setup::NO_MAILBOX => {
            let errno = Errno::new(i32::from(code) - setup::NO_MAILBOX);
            return Err(Error::Setup { stage: SetupStage::Vault, errno });
        }
        (status, None) => return Err(Error::Died { task: "set-up task", status }),
    }
    sandbox.t.watch()?;
    sandbox.u.watch()?;
    // T is born while nothing else runs; U only then, because it is a guest as soon as it is born.
    sandbox.await_ring()?;
    // SAFETY: the view is mapped; the word is aligned.
    let go = unsafe { &raw mut (*sandbox.vault.at).verdict.go };
    // SAFETY: as above; only the kernel reads it, for futex calls.
    unsafe { core::sync::atomic::AtomicU32::from_ptr(go) }.store(1, Ordering::SeqCst);
    sys::futex_wake(go).map_err(Error::of(Sysno::futex))?;
    sandbox.await_ring()?;
    sandbox.scale();
    sandbox.answer().map_err(Error::of(Sysno::write))?; // guest code may run
    Ok(sandbox)
}

impl Sandbox {
    /// Process ids of T and of U.
    pub fn pids(&self) -> (u32, u32) {
        (self.t.pid, self.u.pid)
    }

    /// Waits until T or U rings for its birth, or has failed.
    fn await_ring(&mut self) -> Result<(), Error> {
        loop {
            let mut fds = [PollFd::readable(self.alarm.0), self.t.poll_fd(), self.u.poll_fd()];
            match sys::poll(&mut fds, None) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::Supervisor { call: Sysno::poll, errno }),
            }
            if fds[0].revents != 0 {
                return sys::read(self.alarm.0, &mut [0; 8]).map(drop).map_err(Error::of(Sysno::read));
            }
            for (is_t, task) in [(true, &mut self.t), (false, &mut self.u)] {
                let Some(status) = task.reap(false) else { continue };
                let name = if is_t { "trusted thread" } else { "untrusted thread" };
                // SAFETY: the views are mapped; no guest code has run: T precedes U, and U did not ring.
                let (page, result) = unsafe {
                    (&(*self.vault.at).verdict, (&raw const (*self.mailbox.at).birth_result).read_volatile())
                };
                if let Status::Exited(step) = status {
                    if let Some(call) = birth::failed_step(page, is_t, step) {
                        let errno = Errno::from_ret(result).err().unwrap_or(Errno::new(0));
                        return Err(Error::Birth { task: name, call, errno });
                    }
                }
                return Err(Error::Died { task: name, status });
            }
        }
    }

    /// Waits until the sandbox ends, and then for both of its tasks; kills it after `deadline`.
    ///
    /// If T dies the guest is killed; if the guest dies T is. Call this: while nobody does, a guest without its T hangs
    /// in its next call.
    pub fn wait(&mut self, deadline: Option<Duration>) -> Outcome {
        if let Some(outcome) = self.known() {
            return outcome;
        }
        let until = deadline.map(|d| sys::now().saturating_add(d.as_nanos().min(u64::MAX.into()) as u64));
        let mut cause = None;
        while cause.is_none() {
            let left = until.map(|until| Duration::from_nanos(until.saturating_sub(sys::now())));
            if !self.good_scale {
                self.scale();
            }
            let soon = (!self.good_scale).then(|| Duration::from_nanos(tsc::GOOD));
            let pause = left.into_iter().chain(soon).min();
            let alarm = if self.alarms < ALARMS { self.alarm.0 } else { -1 };
            let mut fds = [PollFd::readable(alarm), self.t.poll_fd(), self.u.poll_fd()];
            match sys::poll(&mut fds, pause) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => cause = Some(Cause::Killed), // cannot watch it any more: fail closed
            }
            if left.is_some_and(|left| left.is_zero()) {
                cause = Some(Cause::Deadline);
            }
            // A task that ended before the deadline was noticed has ended by itself.
            cause = self.ended().or(cause);
            if cause.is_none() && fds[0].revents != 0 {
                self.answer_alarm();
            }
        }
        self.end(cause.unwrap_or(Cause::Killed))
    }

    /// What there is to say without looking: how the sandbox ended, or that it is not this process's.
    fn known(&self) -> Option<Outcome> {
        let nothing = Status::Exited(255);
        let foreign = Outcome { cause: Cause::Foreign, guest: nothing, trusted: nothing };
        self.outcome.or((self.u.owner != sys::pids().0).then_some(foreign))
    }

    /// Whether a task has ended, and what that means.
    fn ended(&mut self) -> Option<Cause> {
        // T first: what is seen of U is then not older.
        let t = self.t.reap(false);
        let u = self.u.reap(false);
        match (t, u) {
            (None, None) => None,
            (Some(t), Some(u)) if u.is_signal(SIGKILL) && !t.is_signal(SIGKILL) => Some(Cause::TrustedDied),
            (_, Some(_)) => Some(Cause::Guest),
            (Some(_), None) => Some(Cause::TrustedDied),
        }
    }

    /// U asks for a signal. That it does is an allegation; that it gets one is its own affair.
    fn answer_alarm(&mut self) {
        let _ = sys::read(self.alarm.0, &mut [0; 8]);
        // SAFETY: the view is mapped; a racing guest can only change which signal it gets.
        let (raise, raised) = unsafe { (&raw mut (*self.mailbox.at).raise, &raw mut (*self.mailbox.at).raised) };
        // SAFETY: as above.
        let request = unsafe { raise.read_volatile() };
        let sig = (request & 0xff) as i32;
        if signal::REPORTED.contains(&sig) {
            self.u.signal(sig);
        }
        // SAFETY: as above.
        unsafe { raised.write_volatile(request) };
        let _ = self.answer();
        self.alarms += 1;
        if self.alarms == ALARMS {
            self.answer.1 = None; // who waits for another answer finds the pipe at its end
        }
    }

    /// Tells U how nanoseconds become ticks of the time stamp counter, as well as that is known now.
    fn scale(&mut self) {
        let (scale, good) = Scale::measure();
        // SAFETY: the view is mapped, and only this process writes there, but for a guest that spoils its own clock.
        unsafe { tsc::publish(&raw mut (*self.mailbox.at).scale, scale) };
        self.good_scale = good;
    }

    /// Lets U go on that waits for an answer. Never blocks, and only this process can write there.
    fn answer(&self) -> Result<(), Errno> {
        self.answer.1.as_ref().map_or(Ok(()), |answer| sys::write(answer.0, &[1]).map(drop))
    }

    /// Kills both tasks and waits for them.
    pub fn kill(&mut self) -> Outcome {
        if let Some(outcome) = self.known() {
            return outcome;
        }
        let cause = self.ended().unwrap_or(Cause::Killed);
        self.end(cause)
    }

    fn end(&mut self, cause: Cause) -> Outcome {
        if self.u.reap(false).is_none() {
            self.u.signal(SIGKILL);
        }
        let trusted = self.t.end();
        let guest = self.u.end();
        // Kernels before 5.16 end all that share the memory of a task that could dump core, with its signal and before it
        // (`fs/coredump.c`, `zap_threads`). T blocks its signals, and U cannot take its memory: it was U.
        let shared = matches!(guest, Status::Signaled { signal, .. } if signal != SIGKILL && trusted.is_signal(signal));
        let cause = if cause == Cause::TrustedDied && shared { Cause::Guest } else { cause };
        *self.outcome.insert(Outcome { cause, guest, trusted })
    }

    /// Reads what the crash reporter wrote into `buf`, if the report goes to memory of the supervisor's
    /// ([`Config::crash`] is `None`). Returns the bytes read; decode them with [`Record`](crate::fault::record::Record).
    pub fn record<'b>(&self, buf: &'b mut [u8]) -> &'b [u8] {
        let Some(fd) = &self.crash else { return &[] };
        let written = sys::offset(fd.0).unwrap_or(0);
        let mut have = 0;
        while have < written {
            let Some(rest) = buf.get_mut(have..written.min(RECORD_MAX)).filter(|rest| !rest.is_empty()) else { break };
            match sys::pread(fd.0, rest, have) {
                Ok(n) if n > 0 => have += n,
                _ => break,
            }
        }
        buf.get(..have).unwrap_or_default()
    }
}
