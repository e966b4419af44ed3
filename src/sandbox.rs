//! The supervisor: makes sandboxes, waits for them, ends them.
//!
//! Two ways in, one machinery. [`spawn`] forks a child that becomes the sandbox and runs a function in it.
//! [`enter`] forks, too, and lets the *copy* go on as the guest, at the same place with the same memory, while the
//! process that called it becomes the supervisor and ends as the guest ends. T and U are therefore never tasks that
//! lived before entry, and what supervises them is never in reach of their memory.

use crate::abi::{Mailbox, PAGE, VaultPage, VerdictPage};
use crate::arch::{self, Context, Frame};
use crate::birth::{self, Parents};
use crate::clone;
use crate::error::{Error, Finding, Name, SetupStage, Status};
use crate::fault::tsc::{self, Scale};
use crate::pair::{Layout, VAULT_PAGES};
use crate::policy::Policy;
use crate::seccomp::{self, Lockdown};
use crate::setup::{self, OWN_FDS, OwnFds, Plan};
use crate::signal::{self, SIGKILL, SigSet};
use crate::sys::{self, CpuSet, Errno, PollFd, Sysno};
use crate::trusted::{self, Entry};
use crate::untrusted::{self, State};
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use spin::{Mutex, Once};

/// The stack that guest code gets when nothing else is asked for, in bytes.
pub const DEFAULT_STACK: usize = 256 * 1024;
/// How often T and U look before they sleep when they have a CPU each: some tens of microseconds.
pub const DEFAULT_SPIN: u32 = 2000;
/// Alarms that a guest may raise: an abort takes two. After that nobody listens, so that a flood costs only the guest.
const ALARMS: u32 = 16;
/// Bytes that a crash report may have.
pub const RECORD_MAX: usize = 256 * 1024;

/// Where T and U run. What wakes T matters little, where it runs a lot: on one CPU a call costs two context switches,
/// on two idle CPUs of a virtual machine ten times that, and on two CPUs while both spin, next to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// [`Apart`](Self::Apart) while every sandbox of this process can have two CPUs to itself, else
    /// [`Together`](Self::Together). Decided when the sandbox is made.
    Auto,
    /// On one CPU, nobody spins.
    Together,
    /// On two CPUs, both spin for a while before they sleep.
    Apart,
    /// Where the scheduler likes; nobody spins.
    Floating,
}

/// What a sandbox is to be.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// What T may do for the guest.
    pub policy: &'a Policy,
    /// The guest's stack for [`spawn`], in bytes. [`enter`] keeps the caller's.
    pub stack: usize,
    /// The descriptors that the guest keeps, under their numbers. All others are closed in the sandbox.
    pub keep: &'a [i32],
    /// Shared memory that the guest keeps: address and length in bytes of mappings that are writable and shared. What the
    /// guest writes there, others see; any other such mapping is refused.
    pub share: &'a [(usize, usize)],
    /// Where crash reports go; it is made non-blocking. `None`: memory of the supervisor's, see
    /// [`Sandbox::record`].
    pub crash: Option<i32>,
    /// How U is locked down.
    pub lockdown: Lockdown,
    /// Where T and U run.
    pub placement: Placement,
    /// How often T and U look before they sleep; `None` for [`DEFAULT_SPIN`] when apart, else 0.
    pub spin: Option<u32>,
    /// For [`enter`]: called in the supervising process when the guest has ended, before that process ends, too.
    pub report: Option<fn(&Sandbox, &Outcome)>,
    /// For [`enter`]: how long the guest may run.
    pub deadline: Option<Duration>,
    /// Defences to leave out.
    #[cfg(feature = "experiments")]
    pub weaken: crate::experiment::Weaken,
}

impl<'a> Config<'a> {
    /// A sandbox under `policy`: strict mode, no descriptors, a stack of [`DEFAULT_STACK`].
    pub fn new(policy: &'a Policy) -> Self {
        Self {
            policy,
            stack: DEFAULT_STACK,
            keep: &[],
            share: &[],
            crash: None,
            lockdown: Lockdown::Strict,
            placement: Placement::Auto,
            spin: None,
            report: None,
            deadline: None,
            #[cfg(feature = "experiments")]
            weaken: crate::experiment::Weaken::default(),
        }
    }
}

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

/// A descriptor that is closed when it is dropped.
#[derive(Debug)]
struct Fd(i32);

impl Drop for Fd {
    fn drop(&mut self) {
        sys::close(self.0);
    }
}

/// A mapping of the supervisor's own, which no child inherits.
#[derive(Debug)]
struct View<T> {
    at: *mut T,
    len: usize,
    /// The process that mapped it. A forked copy of this value has nothing there, or something else.
    owner: u32,
}

// SAFETY: a view is plain memory, shared with a sandbox but with no thread of this process.
unsafe impl<T> Send for View<T> {}

impl<T> View<T> {
    /// Maps `len` bytes of a memfd. Under [`FORKS`], so that no sandbox is forked before it is marked.
    fn map(fd: i32, len: usize) -> Result<Self, Error> {
        let addr = sys::map_shared(len, sys::PROT_READ | sys::PROT_WRITE, fd).map_err(failed(Sysno::mmap))?;
        let view = Self { at: addr as *mut T, len, owner: sys::pids().0 };
        sys::dont_fork(addr, len).map_err(failed(Sysno::madvise))?;
        Ok(view)
    }
}

impl<T> Drop for View<T> {
    fn drop(&mut self) {
        if self.owner == sys::pids().0 {
            // SAFETY: this process mapped it, and the view is its only user.
            let _ = unsafe { sys::munmap(self.at.addr(), self.len) };
        }
    }
}

/// The vault, as the supervisor sees it: the only writable view that there ever is.
#[repr(C)]
struct VaultView {
    code: [u8; PAGE],
    vault: VaultPage,
    verdict: VerdictPage,
}

/// Serialises the making of views with forks: a sandbox must not inherit another's vault writable.
static FORKS: Mutex<()> = Mutex::new(());
/// Sandboxes of this process that have not ended.
static LIVE: AtomicUsize = AtomicUsize::new(0);

fn failed(call: Sysno) -> impl Fn(Errno) -> Error {
    move |errno| Error::Supervisor { call, errno }
}

/// A running sandbox. Dropping it kills it.
#[derive(Debug)]
pub struct Sandbox {
    t: Task,
    u: Task,
    alarm: Fd,
    alarms: u32,
    answer: (Fd, Fd),
    crash: Option<Fd>,
    mailbox: View<Mailbox>,
    vault: View<VaultView>,
    /// Whether the guest's scale of the time stamp counter is a good one.
    good_scale: bool,
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

impl core::fmt::Debug for VaultView {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("VaultView").finish_non_exhaustive()
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
        self.pidfd = Some(Fd(sys::pidfd_open(self.pid).map_err(failed(Sysno::pidfd_open))?));
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
            Some(fd) => sys::pidfd_send_signal(fd.0, sig),
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
/// locked in it. Its end is not announced by SIGCHLD, and a `wait` without `__WALL` does not see it.
/// The sandbox follows the *thread* that calls this into death (`PR_SET_PDEATHSIG`, `prctl(2)`).
///
/// # Errors
///
/// Says what was wrong and who is at fault; nothing is left running.
pub fn spawn(config: &Config<'_>, entry: extern "C" fn(usize) -> i32, arg: usize) -> Result<Sandbox, Error> {
    create(config, Start::Call { entry, arg })
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
    let mut call = Enter { config, context: Context::default(), error: None };
    let data = &raw mut call;
    // SAFETY: both pointers are to `call`, which outlives the call; the context is resumed in the sandbox only, in a
    // copy of the address space, by `Frame::resume`, when nothing runs on this stack there any more.
    let result = unsafe { arch::asc_capture(&raw mut (*data).context, enter_captured, data.cast()) };
    match (result, call.error) {
        (0, _) => Ok(()),
        (_, error) => Err(error.unwrap_or(Error::Placement)),
    }
}

struct Enter<'a> {
    config: &'a Config<'a>,
    context: Context,
    error: Option<Error>,
}

unsafe extern "C" fn enter_captured(data: *mut core::ffi::c_void) -> isize {
    // SAFETY: `enter` passes its own `Enter`, which nobody else uses meanwhile.
    let call = unsafe { &mut *data.cast::<Enter<'_>>() };
    match create(call.config, Start::Resume { context: &call.context }) {
        Ok(sandbox) => supervise(sandbox, call.config),
        Err(error) => {
            call.error = Some(error);
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
            let _ = sys::sigmask(SigSet::EMPTY);
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

/// How guest code starts.
#[derive(Clone, Copy)]
enum Start<'a> {
    Call { entry: extern "C" fn(usize) -> i32, arg: usize },
    Resume { context: &'a Context },
}

extern "C" fn no_entry(_: usize) -> i32 {
    0
}

/// Refuses what can be seen to be wrong before anything is made.
fn check(config: &Config<'_>) -> Result<(), Error> {
    if let Some(fd) = config.keep.iter().find(|fd| **fd < 0 || !sys::is_open(**fd)) {
        return Err(Error::ClosedDescriptor { fd: *fd });
    }
    if let Some(fd) = config.crash.filter(|fd| *fd < 0 || !sys::is_open(*fd)) {
        return Err(Error::ClosedCrashDescriptor { fd });
    }
    // SAFETY: asks only. A task in strict mode would not get this far.
    match unsafe { sys::prctl(sys::PR_GET_SECCOMP, 0) } {
        Err(_) => Err(Error::NoSeccomp),
        Ok(seccomp::MODE_STRICT) => Err(Error::AlreadyStrict),
        Ok(seccomp::MODE_FILTER) if config.lockdown == Lockdown::Strict => Err(Error::FilterInForce),
        Ok(_) => Ok(()),
    }
}

/// Where T and U run, and how often they look before they sleep.
fn place(config: &Config<'_>) -> Result<(birth::Cpus, u32), Error> {
    let allowed = sys::affinity().map_err(failed(Sysno::sched_getaffinity))?;
    let count = allowed.iter().count();
    let apart = match config.placement {
        Placement::Auto => count >= 2 * (LIVE.load(Ordering::Relaxed) + 1),
        Placement::Apart if count < 2 => return Err(Error::Placement),
        Placement::Apart => true,
        Placement::Together => false,
        Placement::Floating => return Ok((None, spin_limit(config, 0, count))),
    };
    let here = sys::current_cpu().map_err(failed(Sysno::getcpu))?;
    // The next CPU in the set, round about; with one CPU, that one.
    let next = allowed.iter().find(|cpu| *cpu > here).or_else(|| allowed.iter().next()).unwrap_or(here);
    let cpus = if apart { [CpuSet::one(next), CpuSet::one(here)] } else { [CpuSet::one(here); 2] };
    Ok((Some(cpus), spin_limit(config, if apart { DEFAULT_SPIN } else { 0 }, if apart { count } else { 1 })))
}

fn spin_limit(config: &Config<'_>, default: u32, cpus: usize) -> u32 {
    if cpus < 2 { 0 } else { config.spin.unwrap_or(default) }
}

/// How many pauses U makes before it first looks for a reply, where it spins: as many as a call and three quarters take
/// here. Measured once in a process; a pause takes 10 cycles on some processors and 140 on others.
fn look_away() -> u32 {
    const REPEAT: u64 = 64;
    static PAUSES: Once<u32> = Once::new();
    *PAUSES.call_once(|| {
        let attempt = || {
            let start = sys::now();
            (0..REPEAT).for_each(|_| _ = sys::parent());
            let called = sys::now();
            (0..REPEAT).for_each(|_| core::hint::spin_loop());
            (called.saturating_sub(start), sys::now().saturating_sub(called))
        };
        let fastest = |a: (u64, u64), b: (u64, u64)| (a.0.min(b.0), a.1.min(b.1));
        let (call, pause) = (0..8).map(|_| attempt()).fold((u64::MAX, u64::MAX), fastest);
        (call.saturating_mul(7) / 4 / pause.max(1)).min(64) as u32
    })
}

/// Everything that is made before the fork.
struct Made {
    vault_fd: Fd,
    mailbox_fd: Fd,
    vault: View<VaultView>,
    mailbox: View<Mailbox>,
    doorbell_t: Fd,
    doorbell_u: Fd,
    alarm: Fd,
    crash: Option<Fd>,
    probe: (Fd, Fd),
    answer: (Fd, Fd),
}

impl Made {
    fn new(config: &Config<'_>) -> Result<Self, Error> {
        let vault_len = VAULT_PAGES * PAGE;
        let memfd = |name, len, exec| sys::memfd(name, len, exec).map(Fd).map_err(failed(Sysno::memfd_create));
        let seal = |fd: &Fd, seals| sys::seal(fd.0, seals).map_err(failed(Sysno::fcntl));
        let eventfd = |blocking| sys::eventfd(blocking).map(Fd).map_err(failed(Sysno::eventfd2));
        let vault_fd = memfd(c"ascetic-vault", vault_len, true)?;
        let vault = View::map(vault_fd.0, vault_len)?;
        let seals = sys::SEAL_SIZE | sys::SEAL_FUTURE_WRITE;
        #[cfg(feature = "experiments")]
        let seals = if config.weaken.no_seal { sys::SEAL_SIZE } else { seals };
        seal(&vault_fd, seals)?;
        let mailbox_fd = memfd(c"ascetic-mailbox", PAGE, false)?;
        let mailbox = View::map(mailbox_fd.0, PAGE)?;
        seal(&mailbox_fd, sys::SEAL_SIZE)?;
        let crash = match config.crash {
            Some(fd) => {
                sys::set_nonblocking(fd).map_err(|_| Error::ClosedCrashDescriptor { fd })?;
                None
            }
            None => {
                let fd = memfd(c"ascetic-crash", RECORD_MAX, false)?;
                seal(&fd, sys::SEAL_SIZE)?;
                Some(fd)
            }
        };
        let pair = |(read, write)| (Fd(read), Fd(write));
        let probe = sys::pipe().map(pair).map_err(failed(Sysno::pipe2))?;
        let answer = sys::blocking_pipe().map(pair).map_err(failed(Sysno::pipe2))?;
        sys::set_nonblocking(answer.1.0).map_err(failed(Sysno::fcntl))?;
        Ok(Self {
            vault_fd,
            mailbox_fd,
            vault,
            mailbox,
            doorbell_t: eventfd(true)?,
            doorbell_u: eventfd(true)?,
            alarm: eventfd(false)?, // the guest may take back its ring: whoever reads must not wait
            crash,
            probe,
            answer,
        })
    }
}

fn create(config: &Config<'_>, start: Start<'_>) -> Result<Sandbox, Error> {
    Scale::prepare();
    check(config)?;
    let (cpus, spin) = place(config)?;
    let supervisor = sys::pids().0;
    let highest = config.keep.iter().copied().max().unwrap_or(2).max(2);
    let fd_lo = highest.checked_add(1).filter(|lo| lo.checked_add(2 * OWN_FDS as i32).is_some());
    let fd_lo = fd_lo.ok_or(Error::ClosedDescriptor { fd: highest })?;

    let layout = Layout::reserve(config.stack)?;
    let forked = (|| {
        let _guard = FORKS.lock();
        let made = Made::new(config)?;
        let own = OwnFds {
            doorbell_t: made.doorbell_t.0,
            doorbell_u: made.doorbell_u.0,
            alarm: made.alarm.0,
            crash: config.crash.or(made.crash.as_ref().map(|fd| fd.0)).unwrap_or(-1),
            probe_read: made.probe.0.0,
            probe_write: made.probe.1.0,
            answer: made.answer.0.0,
        };
        let inside = OwnFds::from(fd_lo);
        let parents = Parents {
            supervisor,
            fds: (fd_lo as u32, (fd_lo as usize + OWN_FDS) as u32),
            alarm: inside.alarm,
            answer: inside.answer,
        };
        // SAFETY: the views were just mapped, at their full size, and the reservation with its state is new.
        unsafe {
            fill_state(&layout, &inside, spin, start);
            let vault = &mut *made.vault.at;
            vault.code.iter_mut().zip(trusted::code()).for_each(|(to, from)| *to = *from);
            fill_vault(&mut vault.vault, &layout, config.policy, &inside, spin);
            let frame = frame(&layout, start);
            birth::write(&mut vault.verdict, &layout, &parents, config.lockdown, cpus, frame);
            #[cfg(feature = "experiments")]
            config.weaken.apply(&mut vault.vault, &mut vault.verdict, &layout);
        }
        let plan = Plan {
            layout,
            vault: made.vault_fd.0,
            mailbox: made.mailbox_fd.0,
            own,
            fd_lo,
            keep: config.keep,
            share: config.share,
            supervisor,
            pid: if matches!(start, Start::Resume { .. }) { supervisor } else { 0 },
            clone_flags: clone::PAIR.bits(),
            trusted: (Entry::Trusted, POISON),
            #[cfg(feature = "experiments")]
            audit: true,
            #[cfg(feature = "experiments")]
            mseal: true,
            #[cfg(feature = "experiments")]
            vault_writable: false,
        };
        #[cfg(feature = "experiments")]
        let plan = config.weaken.plan(plan);
        let mask = sys::sigmask(SigSet::ALL).map_err(failed(Sysno::rt_sigprocmask))?;
        // SAFETY: the child runs set-up code, which uses its stack and system calls only.
        let pid = unsafe { sys::fork() };
        if pid == Ok(0) {
            setup::run(&plan);
        }
        let _ = sys::sigmask(mask);
        Ok((made, pid.map_err(failed(Sysno::clone))?))
    })();
    layout.release();
    let (made, pid) = forked?;
    await_birth(made, Task::new(pid))
}

/// T's stack pointer for the few instructions between its clone and its poisoning: not a mapped address either.
const POISON: usize = 1;

/// # Safety
///
/// The reservation is new, and its state is writable.
unsafe fn fill_state(layout: &Layout, inside: &OwnFds, spin: u32, start: Start<'_>) {
    let (entry, arg) = match start {
        Start::Call { entry, arg } => (entry, arg),
        Start::Resume { .. } => (no_entry as extern "C" fn(usize) -> i32, 0),
    };
    let (stack, stack_len) = layout.stack();
    // SAFETY: the caller says that the memory is writable; it is zero, which is valid for everything not set here but
    // the entry, which is set without being looked at.
    unsafe {
        let state: *mut State = layout.state();
        (&raw mut (*state).entry).write(entry);
        (&raw mut (*state).mailbox).write(layout.mailbox());
        let state = &mut *state;
        state.arg = arg;
        state.doorbell_t = inside.doorbell_t;
        state.doorbell_u = inside.doorbell_u;
        state.alarm = inside.alarm;
        state.crash = inside.crash;
        state.probe_read = inside.probe_read;
        state.probe_write = inside.probe_write;
        state.answer = inside.answer;
        state.spin = spin;
        state.look_away = if spin > 0 { look_away() } else { 0 };
        let bounds = layout.bounds(0, 0);
        state.fault.prepare(
            (stack, stack + stack_len),
            layout.altstack(),
            (bounds.vault_lo, bounds.vault_lo + bounds.vault_len),
        );
    }
}

fn fill_vault(page: &mut VaultPage, layout: &Layout, policy: &Policy, inside: &OwnFds, spin: u32) {
    let bounds = layout.bounds(inside.list()[0] as u32, OWN_FDS as u32);
    *page = VaultPage {
        vault_lo: bounds.vault_lo,
        vault_len: bounds.vault_len,
        fd_lo: bounds.fd_lo,
        fd_len: bounds.fd_len,
        spin,
        doorbell_t: inside.doorbell_t as u32,
        doorbell_u: inside.doorbell_u as u32,
        default_errno: policy.errno_beyond(),
        mxcsr: 0x1f80,
        pad: 0,
        one: 1,
        table: *policy.rows(),
    };
}

/// # Safety
///
/// The guest's stack is writable.
unsafe fn frame(layout: &Layout, start: Start<'_>) -> Frame {
    let (stack, len) = layout.stack();
    match start {
        // SAFETY: the caller's.
        Start::Call { .. } => unsafe {
            let f = untrusted::start as *const () as usize;
            Frame::call(f, layout.state().addr(), stack + len, birth::guest_mask(), layout.altstack())
        },
        Start::Resume { context } => Frame::resume(context, birth::guest_mask(), layout.altstack()),
    }
}

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
        answer,
        crash,
        mailbox,
        vault,
        good_scale: false,
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
    sys::futex_wake(go).map_err(failed(Sysno::futex))?;
    sandbox.await_ring()?;
    sandbox.scale();
    sandbox.answer().map_err(failed(Sysno::write))?; // guest code may run
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
                return sys::read(self.alarm.0, &mut [0; 8]).map(drop).map_err(failed(Sysno::read));
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

    /// Whether a task has ended, and what that means.
    fn ended(&mut self) -> Option<Cause> {
        // T first: what is seen of U is then not older. Kernels before 5.16 kill all that share the memory of a task
        // that dumps core, so with both gone the one that was not killed is the one that started it.
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
        sys::write(self.answer.1.0, &[1]).map(drop)
    }

    /// Kills both tasks and waits for them.
    pub fn kill(&mut self) -> Outcome {
        let cause = self.ended().unwrap_or(Cause::Killed);
        self.end(cause)
    }

    fn end(&mut self, cause: Cause) -> Outcome {
        if self.u.reap(false).is_none() {
            self.u.signal(SIGKILL);
        }
        let trusted = self.t.end();
        let guest = self.u.end();
        Outcome { cause, guest, trusted }
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
