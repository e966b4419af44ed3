//! Birth scripts: the system calls that T and U make before they serve, or run guest code.
//!
//! T's interpreter runs both (`arch/*/birth.S`). The supervisor writes them into the pair's verdict before either task
//! exists. The first pair's tasks are made by the set-up task, every other pair's T by the T of the thread that creates it,
//! and its U by its own T. Those announce themselves before they do anything that others see: whoever did not runs no guest code.

use crate::abi::{
    Mailbox, STEP_AGAIN, STEP_CHECK, STEP_CLONE_U, STEP_MUST, STEP_SERVE, Step, UserDesc, Vault, VaultPage, Verdict,
};
use crate::arch::{self, Frame};
use crate::clone;
use crate::pair::Layout;
use crate::seccomp::{self, Lockdown, Program};
use crate::setup::OwnFds;
use crate::signal::{self, KICK, REPORTED, SIGABRT, SIGBUS, SIGSEGV, SIGSYS, SigAction, SigSet};
use crate::sys::{self, CpuSet, Errno, Sysno};
use memoffset::offset_of;

/// What the scripts of every pair of a sandbox depend on.
#[derive(Clone, Copy, Debug)]
pub struct Common {
    /// Where everything is.
    pub layout: Layout,
    /// Process id of the supervisor: T and U end if their parent is another.
    pub supervisor: u32,
    /// The sandbox's own descriptors.
    pub fds: OwnFds,
    /// How U is locked down.
    pub lockdown: Lockdown,
    /// Where T and U run.
    pub cpus: Cpus,
    /// Whether calls that the guest makes by itself are caught, and the handlers are set to stay.
    pub dispatch: bool,
    /// Whether those are caught that nothing but the lock-down's end awaits.
    pub report_denied: bool,
    /// The process that may trace; 0 for none.
    pub tracer: usize,
    /// Soft and hard limit of the size of cores, of U …
    pub core: [usize; 2],
    /// … and of T.
    pub core_t: [usize; 2],
}

/// What is different for a thread that the guest creates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thread {
    /// Its thread-local storage, if it was given some: an address in the first two (x86_64), or `struct user_desc`.
    pub tls: Option<[u32; 4]>,
    /// Which of `CLONE_PARENT_SETTID`, `CLONE_CHILD_SETTID` and `CLONE_CHILD_CLEARTID` it was asked for with: the kernel
    /// stores its id before it runs, and 0 when it ends.
    pub ids: usize,
    /// Where: the creator's and its own.
    pub tids: [usize; 2],
}

/// Where T and U run.
pub type Cpus = Option<[CpuSet; 2]>;

/// What U blocks for good: a broken crash pipe or a file-size limit is an error of `write`, not a death.
pub fn guest_mask() -> SigSet {
    SigSet::of(&[signal::SIGPIPE, signal::SIGXFSZ])
}

/// What a task says to the supervisor in [`Verdict::born`].
pub const BORN_T: u32 = 0;
/// As [`BORN_T`], of a U that exists.
pub const BORN_U: u32 = 1;
/// As [`BORN_T`], of a U in which nothing of the guest's choosing can go wrong any more: it waits for [`Verdict::go`].
pub const READY_U: u32 = 2;

/// Appends steps; each is named by its place, which is its exit status on failure.
struct Script<'a> {
    steps: core::slice::IterMut<'a, Step>,
    id: u32,
    /// There was no room for a step.
    full: bool,
    /// Address of zeros, for structures that are nothing else.
    zeros: usize,
}

impl<'a> Script<'a> {
    fn new(steps: &'a mut [Step], zeros: usize) -> Self {
        Self { steps: steps.iter_mut(), id: 0, full: false, zeros }
    }

    fn push(&mut self, nr: u32, args: [usize; 6], expect: Option<usize>) {
        self.id += 1;
        let flags = if expect.is_some() { STEP_CHECK } else { 0 };
        self.flagged(nr, args, flags, expect.unwrap_or(0));
    }

    fn flagged(&mut self, nr: u32, args: [usize; 6], flags: u32, expect: usize) {
        match self.steps.next() {
            Some(step) => *step = Step { nr, flags, id: self.id, args, expect, ..Step::default() },
            None => self.full = true,
        }
    }

    fn end(self) -> sys::Result<()> {
        if self.full { Err(Errno::E2BIG) } else { Ok(()) }
    }

    /// A call that must return `expect`.
    fn must<const N: usize>(&mut self, call: Sysno, args: [usize; N], expect: usize) {
        self.push(call as u32, widen(args), Some(expect));
    }

    /// A call whose result does not matter.
    fn may<const N: usize>(&mut self, call: Sysno, args: [usize; N]) {
        self.push(call as u32, widen(args), None);
    }

    /// What a new task says of itself. Until it has, nobody knows its process id, so nobody would see it end: if it cannot (the
    /// kernel has no memory for the message) it tries again, for as long as its supervisor lives.
    fn announce(&mut self, born: [usize; 3], supervisor: u32) {
        self.must(Sysno::getppid, [], supervisor as usize);
        self.id += 1;
        let flags = STEP_CHECK | STEP_AGAIN;
        #[cfg(feature = "experiments")]
        let silent = crate::experiment::SILENT_BIRTHS.load(core::sync::atomic::Ordering::Relaxed);
        #[cfg(feature = "experiments")]
        let flags = if silent { STEP_CHECK } else { flags };
        self.flagged(Sysno::write as u32, widen(born), flags, 8);
    }

    /// What both do first: die with the supervisor, and make sure that it still lives.
    fn follow(&mut self, supervisor: u32) {
        self.must(Sysno::prctl, [sys::PR_SET_PDEATHSIG, signal::SIGKILL as usize], 0);
        self.must(Sysno::getppid, [], supervisor as usize);
        // Neither may keep the supervisor from running: no real-time policy (SCHED_OTHER is 0, and so is its priority).
        self.may(Sysno::sched_setscheduler, [0, 0, self.zeros]);
    }
}

fn widen<const N: usize>(args: [usize; N]) -> [usize; 6] {
    let mut all = [0; 6];
    for (to, from) in all.iter_mut().zip(args) {
        *to = from;
    }
    all
}

/// Writes both scripts of pair `k`, and what they point to. `page` is the supervisor's view of the memory that the sandbox
/// sees at `layout.verdict(k)`. `thread` is given for all but the first.
///
/// # Errors
///
/// `E2BIG` if a script does not fit.
pub fn write(page: &mut Verdict, k: usize, common: &Common, thread: Option<&Thread>, start: Frame) -> sys::Result<()> {
    let Common { layout, supervisor, fds, lockdown, cpus, .. } = *common;
    let at = layout.verdict(k).addr();
    let one = layout.vault().addr() + offset_of!(Vault, page) + offset_of!(VaultPage, one);
    (page.doorbell_t, page.doorbell_u) = fds.doorbells(k);
    page.mask = SigSet::ALL;
    page.names = [*b"ascetic:trusted\0", *b"ascetic:guest\0\0\0"];
    page.altstack = layout.altstack(k);
    page.actions = actions();
    page.start = start;
    page.born = [BORN_T, BORN_U, READY_U].map(|what| [k as u32, what]);
    page.limits = [common.core_t, common.core];
    if let Some(cpus) = cpus {
        page.cpus = cpus;
    }
    let zeros = at + offset_of!(Verdict, zeros);
    let limit = |i: usize| at + offset_of!(Verdict, limits) + i * size_of::<[usize; 2]>();
    let name = |i: usize| at + offset_of!(Verdict, names) + i * 16;
    let mask = [sys::SIG_SETMASK, at + offset_of!(Verdict, mask), 0, 8];
    let cpu = |i: usize| at + offset_of!(Verdict, cpus) + i * size_of::<CpuSet>();
    let ring = [fds.alarm as usize, one, 8];
    let born = |what: u32| [fds.births as usize, at + offset_of!(Verdict, born) + what as usize * 8, 8];

    let mut t = Script::new(&mut page.t, zeros);
    if thread.is_some() {
        t.announce(born(BORN_T), supervisor);
    }
    t.follow(supervisor);
    t.must(Sysno::rt_sigprocmask, mask, 0);
    t.must(Sysno::prctl, [sys::PR_SET_TSC, sys::PR_TSC_SIGSEGV], 0);
    t.must(Sysno::prctl, [sys::PR_SET_NO_NEW_PRIVS, 1], 0);
    t.must(Sysno::setrlimit, [sys::RLIMIT_CORE, limit(0)], 0);
    if common.tracer != 0 {
        t.may(Sysno::prctl, [sys::PR_SET_PTRACER, common.tracer]); // EINVAL: no Yama, no need
    }
    t.may(Sysno::prctl, [sys::PR_SET_NAME, name(0)]);
    if cpus.is_some() {
        t.must(Sysno::sched_setaffinity, [0, size_of::<CpuSet>(), cpu(0)], 0);
    }
    match thread {
        None => t.must(Sysno::write, ring, 8),
        Some(thread) => {
            t.id += 1;
            let [parent, child] = thread.tids;
            let rest = if cfg!(target_arch = "x86_64") { [child, 0] } else { [0, child] };
            let args = [clone::THREAD.bits() | thread.ids, start_sp(&layout, k), parent, rest[0], rest[1], 0];
            t.flagged(Sysno::clone as u32, args, STEP_MUST | STEP_CLONE_U, layout.mailbox(k).addr());
        }
    }
    t.push(STEP_SERVE, [0; 6], None);
    t.end()?;

    let mut u = Script::new(&mut page.u, zeros);
    // No handler before guest code starts, whose mask the last step sets. U has handlers and calls are caught before it is
    // locked down, and other threads can write all that these go by: a handler would run guest code outside strict mode.
    // What is blocked and must be handled ends U instead (`force_sig_info_to_task`, kernel/signal.c).
    u.must(Sysno::rt_sigprocmask, mask, 0);
    if thread.is_some() {
        u.announce(born(BORN_U), supervisor);
    }
    u.follow(supervisor);
    u.must(Sysno::sigaltstack, [at + offset_of!(Verdict, altstack)], 0);
    for sig in REPORTED.into_iter().chain([KICK]) {
        let which = match sig {
            SIGABRT => 0,
            SIGSYS if !common.dispatch => 0,
            SIGSYS if arch::LEAVES => 3,
            SIGSEGV | SIGBUS => 2,
            _ => 1,
        };
        let action = at + offset_of!(Verdict, actions) + which * size_of::<SigAction>();
        u.must(Sysno::rt_sigaction, [sig as usize, action, 0, 8], 0);
    }
    if common.tracer != 0 {
        u.may(Sysno::prctl, [sys::PR_SET_PTRACER, common.tracer]);
    }
    u.may(Sysno::prctl, [sys::PR_SET_NAME, name(1)]);
    u.must(Sysno::setrlimit, [sys::RLIMIT_CORE, limit(1)], 0);
    if cpus.is_some() {
        u.must(Sysno::sched_setaffinity, [0, size_of::<CpuSet>(), cpu(1)], 0);
    }
    u.must(Sysno::prctl, [sys::PR_SET_NO_NEW_PRIVS, 1], 0);
    for (call, args) in
        arch::segment_calls(layout.state(k).addr(), thread.and_then(|thread| thread.tls), |desc: [UserDesc; 2]| {
            page.segments = desc;
            at + offset_of!(Verdict, segments)
        })
        .into_iter()
        .flatten()
    {
        u.must(call, args, 0);
    }
    if thread.is_some() {
        if lockdown != Lockdown::Strict {
            u.may(Sysno::prctl, [sys::PR_SET_TSC, sys::PR_TSC_ENABLE]); // its T, whose child it is, gave it up
        }
        u.must(Sysno::write, born(READY_U), 8);
    }
    // The gate, which only the supervisor opens, and nobody else can: the word is the vault's. The first pair's, when T is
    // born and the set-up task gone, so that nobody else runs in this address space any more.
    let go = at + offset_of!(Verdict, go);
    u.may(Sysno::futex, [go, sys::FUTEX_WAIT]);
    u.must(Sysno::futex, [go, sys::FUTEX_WAIT], (-sys::EAGAIN) as isize as usize); // it is 1
    if common.dispatch || common.report_denied {
        let (from, len) = arch::gates();
        let selector = layout.mailbox(k).addr() + offset_of!(Mailbox, selector);
        u.must(Sysno::prctl, [sys::PR_SET_SYSCALL_USER_DISPATCH, sys::PR_SYS_DISPATCH_ON, from, len, selector], 0);
    }
    match lockdown {
        Lockdown::Strict => u.must(Sysno::prctl, [sys::PR_SET_SECCOMP, seccomp::MODE_STRICT], 0),
        Lockdown::Filter { read, write } => {
            let (insns, len) = seccomp::filter(read, write, fds.range());
            page.filter = insns;
            page.program = Program { len: len as u16, insns: at + offset_of!(Verdict, filter) };
            let program = at + offset_of!(Verdict, program);
            u.must(Sysno::prctl, [sys::PR_SET_SECCOMP, seccomp::MODE_FILTER, program], 0);
        }
    }
    if thread.is_none() {
        let scratch = layout.mailbox(k).addr() + offset_of!(Mailbox, scratch);
        u.must(Sysno::write, ring, 8);
        // No guest code before the ring was heard: it could take it back.
        u.must(Sysno::read, [fds.answer as usize, scratch, 1], 1);
    }
    u.push(arch::NR_SIGRETURN as u32, [0; 6], None);
    u.end()
}

/// The handlers: on the alternate stack. First those that are reset on entry, because nothing but the default action ends the guest by such a signal; then
/// those that are not, because the guest may handle it; then those that can happen in a handler, in a copy of guest memory;
/// then the one that makes the guest's calls, where it blocks nothing, so that it can be left without a call.
fn actions() -> [SigAction; 4] {
    let action = |flags, mask| SigAction {
        handler: arch::asc_fault_entry as *const () as usize,
        flags: signal::SA_ONSTACK | signal::SA_RESTORER | arch::SA_FRAME | flags,
        restorer: arch::asc_restore as *const () as usize,
        mask,
    };
    let most = crate::fault::blocked();
    [
        action(signal::SA_RESETHAND, most),
        action(0, most),
        action(signal::SA_NODEFER, most),
        action(signal::SA_NODEFER, SigSet::EMPTY),
    ]
}

/// The call that a birth's exit status names; `None` if it names none.
pub fn failed_step(page: &Verdict, trusted: bool, status: u8) -> Option<Sysno> {
    let steps: &[Step] = if trusted { &page.t } else { &page.u };
    let step = steps.iter().find(|step| step.id == u32::from(status))?;
    Sysno::new(step.nr as usize)
}

/// Stack pointer of U while its script runs: where its last call, the sigreturn, finds the frame.
pub fn start_sp(layout: &Layout, k: usize) -> usize {
    layout.verdict(k).addr() + offset_of!(Verdict, start)
}
