//! What a sandbox is to be, and what of it can be seen to be wrong before anything is made.

use crate::birth;
use crate::error::Error;
use crate::policy::Policy;
use crate::sandbox::{Outcome, Sandbox, live};
use crate::seccomp::{self, Lockdown};
use crate::sys::{self, CpuSet, Errno, Sysno};
use core::time::Duration;
use spin::Once;

/// The stack that guest code gets when nothing else is asked for, in bytes.
pub const DEFAULT_STACK: usize = 256 * 1024;

/// How often T and U look before they sleep when they have a CPU each: some tens of microseconds.
pub const DEFAULT_SPIN: u32 = 2000;
/// Bytes that a crash report may have.
pub const RECORD_MAX: usize = 256 * 1024;

/// Where T and U run. What wakes T matters little, where it runs a lot: on one CPU a call costs two context switches,
/// on two idle CPUs of a virtual machine ten times that, and on two CPUs while both spin, next to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// [`Apart`](Self::Apart) while every sandbox of this process can have two CPUs to itself, else
    /// [`Together`](Self::Together), as always where the policy allows threads. Decided when the sandbox is made.
    Auto,
    /// Each pair on one CPU, the next for each; nobody spins.
    Together,
    /// On two CPUs, the same two for all pairs; both spin for a while before they sleep.
    Apart,
    /// Where the scheduler likes; nobody spins unless [`Config::spin`] says so.
    Floating,
}

/// What the kernel dumps of a sandbox that crashes (`core(5)`). Where to, says the machine (`/proc/sys/kernel/core_pattern`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Core {
    /// Bytes of a core, at most (`RLIMIT_CORE`); `usize::MAX` for no limit. The process is made dumpable
    /// (`PR_SET_DUMPABLE`): then others of the same user may trace it.
    pub limit: usize,
    /// Which mappings it has (`/proc/<pid>/coredump_filter`); `None`: as the embedder's own.
    pub filter: Option<u32>,
    /// Whether T may have one, too.
    pub trusted: bool,
}

/// Whom the supervising process tells something of a sandbox.
#[derive(Clone, Copy)]
pub struct Hook<'a>(pub &'a dyn Fn(&Sandbox<'_>));

impl core::fmt::Debug for Hook<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Hook")
    }
}

/// What a sandbox is to be.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// What T may do for the guest.
    pub policy: &'a Policy<'a>,
    /// The guest's stack for [`spawn`](crate::sandbox::spawn), in bytes. [`enter`](crate::sandbox::enter) keeps the
    /// caller's.
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
    /// Whether calls that guest code makes itself, as an ordinary program does, are caught and brokered (syscall user
    /// dispatch, since Linux 5.11). Without it, guest code uses [`untrusted::call`](crate::untrusted::call).
    pub dispatch: bool,
    /// Whether a call that the lock-down forbids, and that nobody catches, is reported: the guest then ends by SIGSYS, with a
    /// record and a core, and not by SIGKILL, with neither (syscall user dispatch, since Linux 5.11).
    pub report_denied: bool,
    /// What of a crash the kernel dumps; `None`: as the embedder's own limits and attributes say, and T nothing.
    pub core: Option<Core>,
    /// The process that may trace the sandbox's tasks although it is none of their ancestors (`PR_SET_PTRACER`, where Yama is in
    /// force); `Some(-1)`: any that could without Yama.
    pub tracer: Option<i32>,
    /// Called when the sandbox is made and locked down, before guest code runs.
    pub born: Option<Hook<'a>>,
    /// Called when the sandbox is at its end, before its tasks are killed. While T lives, `/proc/<pid of T>` shows what is
    /// mapped, whatever became of the guest, and [`Sandbox::read_memory`] reads it.
    pub dying: Option<Hook<'a>>,
    /// For [`enter`](crate::sandbox::enter): called in the supervising process when the guest has ended, before that
    /// process ends, too.
    pub report: Option<fn(&Sandbox<'_>, &Outcome)>,
    /// For [`enter`](crate::sandbox::enter): how long the guest may run.
    pub deadline: Option<Duration>,
    /// Defences to leave out.
    #[cfg(feature = "experiments")]
    pub weaken: crate::experiment::Weaken,
}

impl<'a> Config<'a> {
    /// A sandbox under `policy`: strict mode, no descriptors, a stack of [`DEFAULT_STACK`].
    pub fn new(policy: &'a Policy<'a>) -> Self {
        Self {
            policy,
            stack: DEFAULT_STACK,
            keep: &[],
            share: &[],
            crash: None,
            lockdown: Lockdown::Strict,
            placement: Placement::Auto,
            spin: None,
            dispatch: false,
            report_denied: false,
            core: None,
            tracer: None,
            born: None,
            dying: None,
            report: None,
            deadline: None,
            #[cfg(feature = "experiments")]
            weaken: crate::experiment::Weaken::default(),
        }
    }
}

/// Refuses what can be seen to be wrong before anything is made.
pub(crate) fn check(config: &Config<'_>) -> Result<(), Error> {
    if let Some(fd) = config.keep.iter().find(|fd| **fd < 0 || !sys::is_open(**fd)) {
        return Err(Error::ClosedDescriptor { fd: *fd });
    }
    if let Some(fd) = config.crash.filter(|fd| *fd < 0 || !sys::is_open(*fd)) {
        return Err(Error::ClosedCrashDescriptor { fd });
    }
    // SAFETY: turns off what is not on.
    let dispatch = || unsafe { sys::prctl(sys::PR_SET_SYSCALL_USER_DISPATCH, 0) };
    if (config.dispatch || config.report_denied) && dispatch().is_err() {
        return Err(Error::NoDispatch);
    }
    if let Some(core) = config.core {
        let [_, hard] = sys::limit(0, sys::RLIMIT_CORE, None).map_err(Error::of(Sysno::prlimit64))?;
        if core.limit > hard {
            return Err(Error::CoreLimit { limit: core.limit, hard });
        }
    }
    if !crate::arch::plain_addresses() {
        return Err(Error::TaggedAddresses);
    }
    // SAFETY: asks only. A task in strict mode would not get this far.
    match unsafe { sys::prctl(sys::PR_GET_SECCOMP, 0) } {
        Err(Errno::EINVAL) => Err(Error::NoSeccomp),
        Err(errno) => Err(Error::Supervisor { call: Sysno::prctl, errno }),
        Ok(seccomp::MODE_STRICT) => Err(Error::AlreadyStrict),
        Ok(seccomp::MODE_FILTER) if config.lockdown == Lockdown::Strict => Err(Error::FilterInForce),
        Ok(_) => Ok(()),
    }
}

/// Where T and U run, and how often they look before they sleep.
pub(crate) fn place(config: &Config<'_>) -> Result<(birth::Cpus, u32), Error> {
    let allowed = sys::affinity().map_err(Error::of(Sysno::sched_getaffinity))?;
    let count = allowed.iter().count();
    let apart = match config.placement {
        Placement::Auto => config.policy.limits_of().threads == 1 && count >= 2 * (live() + 1),
        Placement::Apart if count < 2 => return Err(Error::Placement),
        Placement::Apart => true,
        Placement::Together => false,
        Placement::Floating => return Ok((None, spin_limit(config, 0, count))),
    };
    let current = sys::current_cpu().map_err(Error::of(Sysno::getcpu))?;
    // From the caller's CPU on, round about: each sandbox that lives takes the next, so that they spread.
    let mut around = allowed.starting_at(current).skip(live() % count.max(1));
    let here = around.next().unwrap_or(current);
    let next = around.next().unwrap_or(here);
    let cpus = if apart { [CpuSet::one(next), CpuSet::one(here)] } else { [CpuSet::one(here); 2] };
    Ok((Some(cpus), spin_limit(config, if apart { DEFAULT_SPIN } else { 0 }, if apart { count } else { 1 })))
}

/// Where the tasks of pair `k` run, given where those of the first do: both where the first's are, if these are two, and
/// else together on the next CPU of `allowed` for each.
pub(crate) fn spread(first: [CpuSet; 2], k: usize, allowed: &CpuSet) -> [CpuSet; 2] {
    let (t, u) = (first[0].iter().next(), first[1].iter().next());
    match (t, u) {
        (Some(t), Some(u)) if t == u => {
            let count = allowed.iter().count().max(1);
            [CpuSet::one(allowed.starting_at(u).nth(k % count).unwrap_or(u)); 2]
        }
        _ => first,
    }
}

fn spin_limit(config: &Config<'_>, default: u32, cpus: usize) -> u32 {
    // T counts down below 0.
    if cpus < 2 { 0 } else { config.spin.unwrap_or(default).min(i32::MAX as u32) }
}

/// How many calls that do nothing U looks away for, at most.
pub(crate) const CALLS: u32 = 32;

/// How many pauses U makes at most before it first looks for a reply, where it spins: as many as [`CALLS`] take here.
/// Measured once in a process; a pause takes 10 cycles on some processors and 140 on others.
pub(crate) fn look_away() -> u32 {
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
        (call.saturating_mul(CALLS.into()) / pause.max(1)).min(1024) as u32
    })
}
