//! Birth scripts: the system calls that T and U make before they serve, or run guest code.
//!
//! T's interpreter runs both (`arch/*/birth.S`). The supervisor writes them into the verdict page before the sandbox
//! exists, and nobody writes there afterwards but the supervisor.

use crate::abi::{Mailbox, STEP_CHECK, STEP_SERVE, Step, T_STEPS, U_STEPS, VaultPage, VerdictPage};
use crate::arch::{self, Frame};
use crate::pair::Layout;
use crate::seccomp::{self, Lockdown, Program};
use crate::signal::{self, REPORTED, SigAction, SigSet};
use crate::sys::{self, CpuSet, Sysno};
use memoffset::offset_of;

/// What the scripts depend on.
pub struct Parents {
    /// Process id of the supervisor: T and U end if their parent is another.
    pub supervisor: u32,
    /// The protected descriptors: the first, and the one behind the last.
    pub fds: (u32, u32),
    /// The eventfd that both ring when they are born.
    pub alarm: i32,
    /// The pipe in which U, born and locked down, waits until the supervisor has seen that it is.
    pub answer: i32,
}

/// Where T and U run.
pub type Cpus = Option<[CpuSet; 2]>;

/// What U blocks for good: a broken crash pipe or a file-size limit is an error of `write`, not a death.
pub fn guest_mask() -> SigSet {
    SigSet::of(&[signal::SIGPIPE, signal::SIGXFSZ])
}

/// Appends steps; each is named by its place, which is its exit status on failure.
struct Script<'a> {
    steps: core::slice::IterMut<'a, Step>,
    id: u32,
    /// Address of zeros, for structures that are nothing else.
    zeros: usize,
}

impl<'a> Script<'a> {
    fn new(steps: &'a mut [Step], zeros: usize) -> Self {
        Self { steps: steps.iter_mut(), id: 0, zeros }
    }

    fn push(&mut self, nr: u32, args: [usize; 6], expect: Option<usize>) {
        self.id += 1;
        let check = if expect.is_some() { STEP_CHECK } else { 0 };
        if let Some(step) = self.steps.next() {
            *step = Step { nr, check, id: self.id, args, expect: expect.unwrap_or(0), ..Step::default() };
        }
    }

    /// A call that must return `expect`.
    fn must<const N: usize>(&mut self, call: Sysno, args: [usize; N], expect: usize) {
        self.push(call as u32, widen(args), Some(expect));
    }

    /// A call whose result does not matter.
    fn may<const N: usize>(&mut self, call: Sysno, args: [usize; N]) {
        self.push(call as u32, widen(args), None);
    }

    /// What both do first: die with the supervisor, and make sure that it still lives.
    fn follow(&mut self, parents: &Parents) {
        self.must(Sysno::prctl, [sys::PR_SET_PDEATHSIG, signal::SIGKILL as usize], 0);
        self.must(Sysno::getppid, [], parents.supervisor as usize);
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

/// Writes both scripts, and what they point to, for a pair at `layout`. `page` is the supervisor's view of the page
/// that the sandbox will see at `layout.verdict()`.
pub fn write(page: &mut VerdictPage, layout: &Layout, parents: &Parents, lockdown: Lockdown, cpus: Cpus, start: Frame) {
    let at = layout.verdict().addr();
    let one = layout.vault().addr() + offset_of!(VaultPage, one);
    page.t_mask = SigSet::ALL;
    page.names = [*b"ascetic:trusted\0", *b"ascetic:guest\0\0\0"];
    page.altstack = layout.altstack();
    page.actions = REPORTED.map(action);
    page.start = start;
    if let Some(cpus) = cpus {
        page.cpus = cpus;
    }
    let name = |i: usize| at + offset_of!(VerdictPage, names) + i * 16;
    let cpu = |i: usize| at + offset_of!(VerdictPage, cpus) + i * size_of::<CpuSet>();
    let born = [parents.alarm as usize, one, 8];

    let zeros = at + offset_of!(VerdictPage, zeros);
    let mut t = Script::new(&mut page.t, zeros);
    t.follow(parents);
    t.must(Sysno::rt_sigprocmask, [sys::SIG_SETMASK, at + offset_of!(VerdictPage, t_mask), 0, 8], 0);
    t.must(Sysno::prctl, [sys::PR_SET_TSC, sys::PR_TSC_SIGSEGV], 0);
    t.must(Sysno::prctl, [sys::PR_SET_NO_NEW_PRIVS, 1], 0);
    t.must(Sysno::setrlimit, [4, zeros], 0); // RLIMIT_CORE
    t.may(Sysno::prctl, [sys::PR_SET_NAME, name(0)]);
    if cpus.is_some() {
        t.must(Sysno::sched_setaffinity, [0, size_of::<CpuSet>(), cpu(0)], 0);
    }
    t.must(Sysno::write, born, 8);
    t.push(STEP_SERVE, [0; 6], None);

    let mut u = Script::new(&mut page.u, zeros);
    u.follow(parents);
    u.must(Sysno::sigaltstack, [at + offset_of!(VerdictPage, altstack)], 0);
    for (i, sig) in REPORTED.into_iter().enumerate() {
        let action = at + offset_of!(VerdictPage, actions) + i * size_of::<SigAction>();
        u.must(Sysno::rt_sigaction, [sig as usize, action, 0, 8], 0);
    }
    u.may(Sysno::prctl, [sys::PR_SET_NAME, name(1)]);
    if cpus.is_some() {
        u.must(Sysno::sched_setaffinity, [0, size_of::<CpuSet>(), cpu(1)], 0);
    }
    u.must(Sysno::prctl, [sys::PR_SET_NO_NEW_PRIVS, 1], 0);
    // Until the set-up task is gone, and T born: nobody else runs in this address space any more.
    let go = at + offset_of!(VerdictPage, go);
    u.may(Sysno::futex, [go, sys::FUTEX_WAIT]);
    u.must(Sysno::futex, [go, sys::FUTEX_WAIT], (-sys::EAGAIN) as isize as usize); // it is 1
    match lockdown {
        Lockdown::Strict => u.must(Sysno::prctl, [sys::PR_SET_SECCOMP, seccomp::MODE_STRICT], 0),
        Lockdown::Filter { read, write } => {
            let (insns, len) = seccomp::filter(read, write, parents.fds);
            page.filter = insns;
            page.program = Program { len: len as u16, insns: at + offset_of!(VerdictPage, filter) };
            let program = at + offset_of!(VerdictPage, program);
            u.must(Sysno::prctl, [sys::PR_SET_SECCOMP, seccomp::MODE_FILTER, program], 0);
        }
    }
    u.must(Sysno::write, born, 8);
    // No guest code before the ring was heard: it could take it back.
    let scratch = layout.mailbox().addr() + offset_of!(Mailbox, scratch);
    u.must(Sysno::read, [parents.answer as usize, scratch, 1], 1);
    u.push(arch::NR_SIGRETURN as u32, [0; 6], None);
}

/// The handler of one signal: on the alternate stack, with everything blocked but faults, so that a fault in the
/// reporter is seen. Reset on entry, so that the signal can be handed on; SIGSEGV stays, because `rdtsc` is one.
fn action(sig: i32) -> SigAction {
    let faults = [signal::SIGSEGV, signal::SIGBUS, signal::SIGILL, signal::SIGFPE, signal::SIGTRAP, signal::SIGSYS];
    let reset = if sig == signal::SIGSEGV { 0 } else { signal::SA_RESETHAND };
    SigAction {
        handler: arch::asc_fault_entry as *const () as usize,
        flags: signal::SA_ONSTACK | signal::SA_RESTORER | arch::SA_FRAME | reset,
        restorer: arch::asc_restore as *const () as usize,
        mask: SigSet::of(&faults).complement(),
    }
}

/// The call that a birth's exit status names; `None` if it names none.
pub fn failed_step(page: &VerdictPage, trusted: bool, status: u8) -> Option<Sysno> {
    let steps: &[Step] = if trusted { &page.t } else { &page.u };
    let step = steps.iter().find(|step| step.id == u32::from(status))?;
    Sysno::new(step.nr as usize)
}

/// Stack pointer of U while its script runs: where its last call, the sigreturn, finds the frame.
pub fn start_sp(layout: &Layout) -> usize {
    layout.verdict().addr() + offset_of!(VerdictPage, start)
}

static_assertions::const_assert!(T_STEPS >= 13 && U_STEPS >= 22);
