//! The supervisor: makes sandboxes, waits for them, ends them.
//!
//! Two ways in, one machinery. [`spawn`] forks a child that becomes the sandbox and runs a function in it.
//! [`enter`] forks, too, and lets the *copy* go on as the guest, at the same place with the same memory, while the
//! process that called it becomes the supervisor and ends as the guest ends. T and U are therefore never tasks that
//! lived before entry, and what supervises them is never in reach of their memory.

pub use crate::config::{Config, Core, DEFAULT_SPIN, DEFAULT_STACK, Hook, Placement, RECORD_MAX};

use crate::abi::{Mailbox, PAIRS};
use crate::arch::{self, Context};
use crate::birth;
use crate::broker::reads::Reader;
use crate::broker::{ALARM, BIRTH, Books, Phase};
use crate::error::{Error, Finding, Name, SetupStage, Status};
use crate::fault::record::CheckBody;
use crate::fault::tsc::{self, Scale};
use crate::make::{self, Fd, Made, Start, VaultView, View};
use crate::policy::{Policy, ROOTS};
use crate::setup;
use crate::signal::{self, SIGKILL, SigSet};
use crate::sys::{self, CpuSet, Errno, Failed, PollFd, Sysno};
use crate::task::Task;
use core::cell::Cell;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;

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
    /// Tasks that were killed and have not ended: they are in a call that the kernel does not interrupt, as on a file system
    /// that does not answer, or somebody traces them. None runs guest code any more. Dropping the sandbox looks again.
    pub left: u32,
}

/// How long the end of a sandbox waits while none of its tasks ends, in nanoseconds. A task that was killed ends as soon as it
/// runs, unless it is in a call that cannot be interrupted; on a machine with more to do than it can, that has been seen to
/// take more than two seconds.
const PATIENCE: u64 = 10_000_000_000;

/// Sandboxes of this process that have not ended.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// How many sandboxes of this process live.
pub(crate) fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// A running sandbox. Dropping it kills it.
#[derive(Debug)]
pub struct Sandbox<'a> {
    pub(crate) policy: &'a Policy<'a>,
    pub(crate) books: View<Books>,
    pub(crate) vault: View<VaultView>,
    pub(crate) mailboxes: View<Mailbox>,
    pub(crate) roots: [Option<Fd>; ROOTS],
    /// The roots that were taken back, a bit for each.
    pub(crate) revoked: u32,
    /// Tells of alarms, births and deaths.
    pub(crate) epoll: Fd,
    pub(crate) alarm: Fd,
    pub(crate) births: Fd,
    /// The socket for memory, if anybody may ask for some.
    pub(crate) memory: Option<Fd>,
    /// Who writes there.
    pub(crate) reader: Cell<Reader>,
    /// Signals asked for so far.
    pub(crate) alarms: u32,
    /// The pair whose request was served last.
    pub(crate) last: usize,
    /// Both ends of the pipe: with no reader left, writing would raise SIGPIPE here.
    pub(crate) answer: (Fd, Option<Fd>),
    crash: Option<Fd>,
    dying: Option<Hook<'a>>,
    /// Process ids of the first pair.
    pids: (u32, u32),
    /// The process whose children its tasks are. A forked copy of this value, in another, has no books.
    pub(crate) owner: u32,
    /// The CPUs that its tasks may be spread over: those of the thread that made it, which in `wait` has one only.
    pub(crate) allowed: CpuSet,
    /// Whether the guest's scale of the time stamp counter is a good one.
    pub(crate) good_scale: bool,
    /// The pair that asked for the end of all: there are no new ones any more.
    pub(crate) group: Option<usize>,
    /// Whether all are killed, and whoever turns up.
    pub(crate) over: bool,
    /// When to look again at what seems to ask, in nanoseconds; 0: at once.
    pub(crate) retry: Option<u64>,
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
pub fn spawn<'a>(config: &Config<'a>, entry: extern "C" fn(usize) -> i32, arg: usize) -> Result<Sandbox<'a>, Error> {
    let (made, pid) = make::create(config, Start::Call { entry, arg })?;
    await_birth(config, made, pid)
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
        Err(Failed(call, errno)) => {
            return Err(Error::Setup { stage: SetupStage::Proc, call: Some(call), errno });
        }
    }
    let mut call = Enter { config, context: Context::default(), result: Ok(()) };
    arch::save_control_words(&mut call.context);
    let data = &raw mut call;
    // SAFETY: both pointers are to `call`, which outlives the call; the context is resumed in the sandbox only, in a
    // copy of the address space, by `Frame::resume`, when nothing runs on this stack there any more.
    let result = unsafe { arch::asc_capture(&raw mut (*data).context, enter_captured, data.cast()) };
    if result == 0 {
        arch::load_control_words(&call.context);
        crate::untrusted::begin();
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
    match made.and_then(|(made, pid)| await_birth(call.config, made, pid)) {
        Ok(sandbox) => supervise(sandbox, call.config),
        Err(error) => {
            call.result = Err(error);
            -1
        }
    }
}

/// The rest of the life of a process that called [`enter`].
fn supervise(mut sandbox: Sandbox<'_>, config: &Config<'_>) -> ! {
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

/// How many requests of a thread are served, when each is there at once, before the kernel is asked what else there is.
const IN_A_ROW: u32 = 16;

static NO_CORE: [usize; 2] = [0; 2];

/// Follows set-up and births until guest code runs.
fn await_birth<'a>(config: &Config<'a>, made: Made, set_up: u32) -> Result<Sandbox<'a>, Error> {
    // It runs none of the guest's code, and nothing of the guest's choosing keeps it.
    let status = sys::wait(set_up, true).ok().flatten().map_or(Status::Exited(255), Status::from_raw);
    // SAFETY: the view is mapped; no guest code runs yet, so what the set-up task wrote is its own.
    let report = unsafe { (&raw const (*made.mailboxes.at).setup).read_volatile() };
    let Made {
        vault,
        mailboxes,
        books,
        epoll,
        allowed,
        alarm,
        crash,
        answer,
        births: (births, theirs),
        memory,
        roots,
        ..
    } = made;
    drop(theirs); // the socket ends when the sandbox has let go of it
    // From here on, dropping the sandbox ends and reaps T and U.
    let mut sandbox = Sandbox {
        policy: config.policy,
        dying: None, // nothing that ends before guest code runs is worth telling
        books,
        vault,
        mailboxes,
        roots,
        revoked: 0,
        epoll,
        alarm,
        births,
        memory: memory.map(|(ours, _)| ours),
        reader: Cell::new(Reader::Closed),
        alarms: 0,
        last: 0,
        answer: (answer.0, Some(answer.1)),
        crash,
        pids: (report.t, report.u),
        owner: sys::pids().0,
        allowed,
        good_scale: false,
        group: None,
        over: false,
        retry: None,
        outcome: None,
        _live: Live::new(),
    };
    let slot = sandbox.slot(0);
    (slot.t, slot.u) = (Task::new(report.t), Task::new(report.u));
    slot.phase = Phase::Alive;
    let errno = Errno::new(report.errno as i32);
    match (status, SetupStage::ALL.into_iter().find(|stage| *stage as u32 == report.stage)) {
        (Status::Exited(0), None) => {}
        (_, Some(SetupStage::Audit)) => {
            let name = Name::new(report.name, report.name_len as usize);
            return Err(Error::Found { finding: Finding::from_raw(report.finding), fd: report.fd, name });
        }
        (_, Some(SetupStage::Keep)) => return Err(Error::ClosedDescriptor { fd: report.fd }),
        (_, Some(stage)) => return Err(Error::Setup { stage, call: Sysno::new(report.call as usize), errno }),
        (Status::Exited(code), None) if i32::from(code) > setup::NO_MAILBOX => {
            let errno = Errno::new(i32::from(code) - setup::NO_MAILBOX);
            return Err(Error::Setup { stage: SetupStage::Vault, call: Some(Sysno::mmap), errno });
        }
        (status, None) => return Err(Error::Died { task: "set-up task", status }),
    }
    sandbox.watch(0)?;
    let births = (sandbox.pairs() > 1).then_some((sandbox.births.0, BIRTH, false));
    for (fd, what, edge) in [(sandbox.alarm.0, ALARM, true)].into_iter().chain(births) {
        sys::epoll_add(sandbox.epoll.0, fd, what, edge).map_err(Error::of(Sysno::epoll_ctl))?;
    }
    // T is born while nothing else runs; U only then, because it is a guest as soon as it is born.
    sandbox.await_ring()?;
    // SAFETY: the view is mapped; the word is aligned.
    let go = unsafe { &raw mut (*sandbox.vault.verdict(0)).go };
    // SAFETY: as above; only the kernel reads it, for futex calls.
    unsafe { core::sync::atomic::AtomicU32::from_ptr(go) }.store(1, Ordering::SeqCst);
    sys::futex_wake(go).map_err(Error::of(Sysno::futex))?;
    sandbox.await_ring()?;
    sandbox.scale();
    sandbox.limit()?;
    if let Some(Hook(tell)) = config.born {
        tell(&sandbox);
    }
    sandbox.answer().map_err(Error::of(Sysno::write))?; // guest code may run
    sandbox.dying = config.dying;
    Ok(sandbox)
}

impl Sandbox<'_> {
    /// Process ids of T and of U of every pair that was not buried; 0 for one that there is not.
    pub fn tasks(&self) -> impl Iterator<Item = (u32, u32)> {
        let slots = (0..self.pairs()).map(|k| self.slot_ref(k));
        let id = |task: &Task| if task.remains() { task.pid } else { 0 };
        slots.map(move |slot| (id(&slot.t), id(&slot.u))).filter(|ids| *ids != (0, 0))
    }

    /// The task that a signal ended first, as far as is known, and the signal.
    pub fn crashed(&self) -> Option<(u32, i32)> {
        let tasks = (0..self.pairs()).map(|k| self.slot_ref(k)).flat_map(|slot| [&slot.u, &slot.t]);
        let ended = |task: &Task| match task.status {
            Some(Status::Signaled { signal, .. }) if task.remains() => Some((task.pid, signal)),
            _ => None,
        };
        tasks.filter_map(ended).next()
    }

    /// The alternate stack of each of the guest's threads, beside what the kernel wants of it.
    pub fn altstack(&self) -> CheckBody {
        let frame = sys::auxv(sys::AT_MINSIGSTKSZ).unwrap_or(0);
        CheckBody { altstack: self.common().layout.altstack(0).size as u64, frame: frame as u64 }
    }

    /// Process ids of T and of U of the first pair.
    pub fn pids(&self) -> (u32, u32) {
        self.pids
    }

    /// Waits until T or U rings for its birth, or has failed.
    fn await_ring(&mut self) -> Result<(), Error> {
        loop {
            let mut fds = [PollFd::readable(self.alarm.0), PollFd::readable(self.epoll.0)];
            match sys::poll(&mut fds, None) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::Supervisor { call: Sysno::poll, errno }),
            }
            if fds[0].revents != 0 {
                return sys::read(self.alarm.0, &mut [0; 8]).map(drop).map_err(Error::of(Sysno::read));
            }
            let (vault, mailboxes) = (self.vault.verdict(0), self.mailboxes.at);
            let slot = self.slot(0);
            for (is_t, task) in [(true, &mut slot.t), (false, &mut slot.u)] {
                task.look();
                let Some(status) = task.status else { continue };
                let name = if is_t { "trusted thread" } else { "untrusted thread" };
                // SAFETY: the views are mapped; no guest code has run: T precedes U, and U did not ring.
                let (page, result) = unsafe { (&*vault, (&raw const (*mailboxes).birth_result).read_volatile()) };
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

    /// T's limits are those of the sandbox: the kernel looks at them when T maps memory and opens files.
    fn limit(&self) -> Result<(), Error> {
        let limits = self.policy.limits_of();
        let (t, _) = self.pids();
        let set = |which, most: usize| {
            let old = sys::limit(t, which, None)?;
            sys::limit(t, which, Some([most.min(old[0]), most.min(old[1])])).map(drop)
        };
        let done = (|| {
            if limits.descriptors > 0 {
                // The sandbox's own are made: what is opened from now on is the guest's.
                set(sys::RLIMIT_NOFILE, limits.descriptors as usize)?;
            }
            if limits.mapped > 0 {
                set(sys::RLIMIT_AS, sys::mapped(t)?.saturating_add(limits.mapped))?;
            }
            Ok(())
        })();
        done.map_err(Error::of(Sysno::prlimit64))
    }

    /// Waits until the sandbox ends, and then for all of its tasks; kills it after `deadline`.
    ///
    /// This is also what answers the guest's calls that ask the broker. If a T dies the guest is killed; if the guest dies
    /// T is. Call this, or [`serve`](Self::serve): while nobody does, such calls wait, and a guest without its T hangs.
    ///
    /// Meanwhile the calling thread runs where T does, unless that is left to the scheduler: a wake-up on one CPU costs a
    /// tenth of one across two that are idle. Afterwards it runs where it did.
    pub fn wait(&mut self, deadline: Option<Duration>) -> Outcome {
        if let Some(outcome) = self.known() {
            return outcome;
        }
        let place = self.common().cpus.map(|[t, _]| t);
        let before = place.and_then(|t| sys::affinity().ok().filter(|_| sys::set_affinity(&t).is_ok()));
        let outcome = self.wait_until(deadline);
        if let Some(before) = before {
            let _ = sys::set_affinity(&before);
        }
        outcome
    }

    fn wait_until(&mut self, deadline: Option<Duration>) -> Outcome {
        let until = deadline.map(|d| sys::now().saturating_add(d.as_nanos().min(u64::MAX.into()) as u64));
        loop {
            let left = until.map(|until| until.saturating_sub(sys::now()));
            if left == Some(0) {
                let cause = self.look().unwrap_or(Cause::Deadline);
                return self.end(cause);
            }
            if let Some(outcome) = self.serve_own(left.map(Duration::from_nanos)) {
                return outcome;
            }
            let mut more = IN_A_ROW;
            while more > 0 && self.serve_again() {
                more -= 1;
            }
        }
    }

    /// A descriptor that is readable when [`serve`](Self::serve) has something to do: for whoever serves many sandboxes with
    /// one thread, and not by a [`Poller`](crate::poller::Poller).
    pub fn descriptor(&self) -> i32 {
        self.epoll.0
    }

    /// How long the sandbox can be left alone although its [`descriptor`](Self::descriptor) is not readable.
    pub fn patience(&self) -> Option<Duration> {
        (self.owner == sys::pids().0).then(|| self.due()).flatten()
    }

    /// Waits for up to `timeout` for something to do, and does it. `Some` when the sandbox has ended.
    pub fn serve(&mut self, timeout: Option<Duration>) -> Option<Outcome> {
        if let Some(outcome) = self.known() {
            return Some(outcome);
        }
        self.serve_own(timeout)
    }

    /// [`serve`](Self::serve) of a sandbox that is this process's and has not ended.
    fn serve_own(&mut self, timeout: Option<Duration>) -> Option<Outcome> {
        let cause = match self.step(timeout) {
            Ok(cause) => cause?,
            Err(_) => self.look().unwrap_or(Cause::Killed), // cannot watch it any more: fail closed
        };
        Some(self.end(cause))
    }

    /// What there is to say without looking: how the sandbox ended, or that it is not this process's.
    fn known(&self) -> Option<Outcome> {
        let nothing = Status::Exited(255);
        let foreign = Outcome { cause: Cause::Foreign, guest: nothing, trusted: nothing, left: 0 };
        self.outcome.or((self.owner != sys::pids().0).then_some(foreign))
    }

    /// Tells the guest how nanoseconds become ticks of the time stamp counter, as well as that is known now.
    pub(crate) fn scale(&mut self) {
        let (scale, good) = Scale::measure();
        for k in 0..self.pairs() {
            // SAFETY: the view is mapped, and only this process writes there, but for a guest that spoils its own clock.
            unsafe { tsc::publish(&raw mut (*self.mailboxes.mailbox(k)).scale, scale) };
        }
        self.good_scale = good;
    }

    /// Lets those go on that wait for an answer. Never blocks, and only this process can write there.
    pub(crate) fn answer(&self) -> Result<(), Errno> {
        let everybody = [1; PAIRS];
        let some = everybody.get(..self.living().max(1)).unwrap_or(&everybody);
        self.answer.1.as_ref().map_or(Ok(()), |answer| sys::write(answer.0, some).map(drop))
    }

    /// Kills all tasks and waits for them; not for ever for one that cannot be killed ([`Outcome::left`]).
    pub fn kill(&mut self) -> Outcome {
        if let Some(outcome) = self.known() {
            return outcome;
        }
        let cause = self.look().unwrap_or(Cause::Killed);
        self.end(cause)
    }

    fn end(&mut self, cause: Cause) -> Outcome {
        let first = self.group.or(self.culprit()).unwrap_or(0);
        if let Some(Hook(tell)) = self.dying.take() {
            self.reader.set(Reader::Open);
            tell(self);
            self.reader.set(Reader::Closed);
        }
        self.over = true;
        (0..self.pairs()).for_each(|k| self.kill_pair(k));
        let patience = PATIENCE;
        #[cfg(feature = "experiments")]
        let patience = if crate::experiment::HURRY.load(Ordering::Relaxed) { patience / 10 } else { patience };
        let left = self.clear(patience);
        let slot = self.slot_ref(first);
        let status = |task: &Task| match (task.status, task.pid) {
            (Some(status), _) => status,
            (None, 0) => Status::Exited(255),
            (None, _) => Status::Signaled { signal: SIGKILL, core: false }, // it will be
        };
        let (trusted, guest) = (status(&slot.t), status(&slot.u));
        // Kernels before 5.16 end all that share the memory of a task that could dump core, with its signal and before it
        // (`fs/coredump.c`, `zap_threads`). T blocks its signals, and U cannot take its memory: it was U.
        let shared = matches!(guest, Status::Signaled { signal, .. } if signal != SIGKILL && trusted.is_signal(signal));
        let cause = if cause == Cause::TrustedDied && shared { Cause::Guest } else { cause };
        *self.outcome.insert(Outcome { cause, guest, trusted, left })
    }

    /// Reads what the crash reporter wrote into `buf`, if the report goes to memory of the supervisor's
    /// ([`Config::crash`] is `None`). Returns the bytes read; decode them with [`Record`](crate::fault::record::Record).
    pub fn record<'b>(&self, buf: &'b mut [u8]) -> &'b [u8] {
        let Some(fd) = &self.crash else { return &[] };
        let end = sys::offset(fd.0).unwrap_or(0).min(RECORD_MAX).min(buf.len());
        let mut have = 0;
        while have < end {
            let Some(rest) = buf.get_mut(have..end) else { break };
            match sys::pread(fd.0, rest, have) {
                Ok(n) if n > 0 => have += n,
                _ => break,
            }
        }
        buf.get(..have).unwrap_or_default()
    }
}
