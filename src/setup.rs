//! The set-up task: a forked child that turns its address space into a sandbox, starts T and U, and exits.
//!
//! It is single-threaded, blocks every signal, and uses only its stack. What it finds wrong it reports in the mailbox,
//! which the supervisor reads when the task has ended and before any guest code runs.

use crate::abi::{Mailbox, NAME_MAX, PAGE};
use crate::arch;
use crate::audit::{self, Refusal};
use crate::birth;
use crate::config::Core;
use crate::error::SetupStage;
use crate::pair::Layout;
use crate::policy::ROOTS;
use crate::signal::{self, NSIG, SIGKILL, SigAction};
use crate::sys::{self, Errno, Failed, Sysno};
use crate::trusted::Entry;
use crate::untrusted;

/// Descriptors of the sandbox's own that the supervisor makes, besides roots.
pub const MADE: usize = 7;

/// The sandbox's own descriptors, as they are numbered in the sandbox: consecutive, from `lo` on.
#[derive(Clone, Copy, Debug)]
pub struct OwnFds {
    /// The eventfd by which births, requests and the reporter call the supervisor.
    pub alarm: i32,
    /// Where crash reports go.
    pub crash: i32,
    /// The pipe through which the reporter reads memory that may not be there.
    pub probe_read: i32,
    /// Its other end.
    pub probe_write: i32,
    /// The pipe by which the supervisor answers an alarm; its other end is not in the sandbox.
    pub answer: i32,
    /// The socket in which the tasks of new threads announce themselves. The kernel adds who it was.
    pub births: i32,
    /// The socket in which T writes memory when the supervisor wants it to, at the end; as `births` where it never does.
    pub memory: i32,
    roots: i32,
    pairs: i32,
}

impl OwnFds {
    /// The numbers from `lo` on, for so many roots and pairs.
    pub fn from(lo: i32, roots: usize, pairs: usize) -> Self {
        Self {
            alarm: lo,
            crash: lo + 1,
            probe_read: lo + 2,
            probe_write: lo + 3,
            answer: lo + 4,
            births: lo + 5,
            memory: lo + 6,
            roots: roots as i32,
            pairs: pairs as i32,
        }
    }

    /// The descriptor of root `i`.
    pub fn root(self, i: usize) -> u32 {
        (self.alarm + MADE as i32) as u32 + i as u32
    }

    /// The eventfds in which T and U of pair `k` sleep.
    pub fn doorbells(self, k: usize) -> (u32, u32) {
        let t = self.root(self.roots as usize) + 2 * k as u32;
        (t, t + 1)
    }

    /// The first, and the one behind the last.
    pub fn range(self) -> (u32, u32) {
        (self.alarm as u32, self.doorbells(self.pairs as usize).0)
    }
}

/// What the set-up task is to do.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Where everything goes.
    pub layout: Layout,
    /// The vault's memfd.
    pub vault: i32,
    /// The mailboxes' memfd.
    pub mailboxes: i32,
    /// The descriptors that the supervisor made for the sandbox, as they are numbered now, in the order of their numbers there.
    pub made: &'a [i32],
    /// Where crash reports go, as it is numbered now.
    pub crash: i32,
    /// The sandbox's own descriptors, as they will be numbered.
    pub own: OwnFds,
    /// The descriptors that the guest keeps.
    pub keep: &'a [i32],
    /// The shared memory that the guest keeps: address and length.
    pub share: &'a [(usize, usize)],
    /// What the kernel is to dump.
    pub core: Option<Core>,
    /// Process id of the supervisor.
    pub supervisor: u32,
    /// The process id that the guest is told; 0 for U's own.
    pub pid: u32,
    /// How T and U are cloned.
    pub clone_flags: usize,
    /// Where T starts, and with which stack pointer.
    pub trusted: (Entry, usize),
    /// Whether the entry audit is made.
    #[cfg(feature = "experiments")]
    pub audit: bool,
    /// Whether the mappings are sealed.
    #[cfg(feature = "experiments")]
    pub mseal: bool,
    /// Whether the vault is left writable.
    #[cfg(feature = "experiments")]
    pub vault_writable: bool,
}

impl Plan<'_> {
    /// Whether the defences are in force that only experiments leave out: audit, sealed mappings, read-only vault.
    #[cfg(not(feature = "experiments"))]
    fn defences(&self) -> (bool, bool, bool) {
        (true, true, true)
    }
    #[cfg(feature = "experiments")]
    fn defences(&self) -> (bool, bool, bool) {
        (self.audit, self.mseal, !self.vault_writable)
    }
}

/// Exit status of the set-up task, plus the `errno`, when it could not even map the mailbox.
pub const NO_MAILBOX: i32 = 100;

/// What was being done, the call that failed, as far as it is one that has a name, and what the kernel said.
type Fault = (SetupStage, Option<Sysno>, Errno);

/// Does it, and exits: 0 if T and U exist.
pub fn run(plan: &Plan<'_>) -> ! {
    let mailbox = plan.layout.mailbox(0);
    // SAFETY: it is the mailboxes' memfd; mapped first, so that the rest can be reported.
    if let Err(errno) = unsafe { plan.layout.map_mailboxes(plan.mailboxes) } {
        sys::exit(NO_MAILBOX + errno.into_raw()); // nowhere to say so but here
    }
    let status = match steps(plan, mailbox) {
        Ok(()) => 0,
        Err((stage, call, errno)) => {
            // SAFETY: the mailbox is mapped, and no guest code runs yet.
            let setup = unsafe { &mut (*mailbox).setup };
            setup.stage = stage as u32;
            setup.call = call.map_or(u32::MAX, |call| call as u32);
            setup.errno = errno.into_raw() as u32;
            1
        }
    };
    sys::exit(status)
}

fn steps(plan: &Plan<'_>, mailbox: *mut Mailbox) -> Result<(), Fault> {
    let at = |stage| move |Failed(call, errno)| (stage, Some(call), errno);
    let call = |stage, call| move |errno| (stage, Some(call), errno);
    // SAFETY: it is the vault's memfd.
    unsafe { plan.layout.map_vault(plan.vault, !plan.defences().2) }.map_err(call(SetupStage::Vault, Sysno::mmap))?;
    // SAFETY: follows the supervisor into death.
    unsafe { sys::prctl(sys::PR_SET_PDEATHSIG, SIGKILL as usize) }.map_err(call(SetupStage::Parent, Sysno::prctl))?;
    if sys::pids().1 != plan.supervisor {
        return Err((SetupStage::Parent, Some(Sysno::getppid), Errno::ESRCH));
    }
    for sig in 1..=NSIG {
        // A guest that reads its terminal from the background would have its process group, the supervisor included,
        // stopped (`tty_io.c`, `__tty_check_change`); ignored, it gets EIO.
        let ignored = matches!(sig, signal::SIGTTIN | signal::SIGTTOU);
        let action = if ignored { SigAction::IGNORE } else { SigAction::DEFAULT };
        // SAFETY: neither action runs code. SIGKILL and SIGSTOP say EINVAL: theirs cannot be changed.
        match unsafe { sys::sigaction(sig, &action) } {
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err((SetupStage::Handlers, Some(Sysno::rt_sigaction), errno)),
        }
    }
    let (audited, sealed, _) = plan.defences();
    if audited {
        let vault = sys::file_facts(plan.vault).map_err(call(SetupStage::Vault, Sysno::statx))?;
        let kept = |fd| plan.keep.contains(&fd) || fd == plan.crash;
        audit::descriptors(kept).map_err(|refusal| report(mailbox, refusal))?;
        let shared = |from, to| {
            let ours = (mailbox.addr(), plan.layout.mailboxes_len());
            let end = |(at, len): &(usize, usize)| at.saturating_add(len.checked_next_multiple_of(PAGE).unwrap_or(0));
            // The kernel shows neighbours as one mapping: what counts is that all of it is listed.
            let mut at = from;
            while at < to {
                let next = plan.share.iter().chain([&ours]).find(|range| range.0 <= at && at < end(range)).map(end);
                let Some(next) = next else { return false };
                at = next;
            }
            true
        };
        audit::mappings(vault.identity, shared).map_err(|refusal| report(mailbox, refusal))?;
    }
    if let Some(fd) = plan.keep.iter().find(|fd| !sys::is_open(**fd)) {
        // SAFETY: the mailbox is mapped, and no guest code runs yet.
        unsafe { (*mailbox).setup.fd = *fd };
        return Err((SetupStage::Keep, None, Errno::EBADF));
    }
    if let Some(core) = plan.core {
        dumpable(core).map_err(at(SetupStage::Core))?;
    }
    arrange(plan).map_err(at(SetupStage::Descriptors))?;
    if sealed {
        match plan.layout.seal() {
            Ok(()) | Err(Errno::ENOSYS) => {}
            Err(errno) => return Err((SetupStage::Seal, None, errno)),
        }
    }
    untrusted::adopt();

    let verdict = plan.layout.verdict(0);
    // SAFETY: field addresses of a mapped page.
    let (t_script, u_script) = unsafe { (&raw const (*verdict).t, &raw const (*verdict).u) };
    let (entry, sp) = plan.trusted;
    // The kernel reports them, before they run: this task may be killed at any time.
    // SAFETY: field addresses of a mapped page.
    let (t_id, u_id) = unsafe { (&raw mut (*mailbox).setup.t, &raw mut (*mailbox).setup.u) };
    clone(plan, sp, entry, t_script.cast(), t_id).map_err(call(SetupStage::CloneTrusted, Sysno::clone))?;
    let u = clone(plan, birth::start_sp(&plan.layout, 0), Entry::Untrusted, u_script.cast(), u_id)
        .map_err(call(SetupStage::CloneUntrusted, Sysno::clone))?;
    // SAFETY: the state is mapped; U waits for the supervisor's word before it looks at it.
    unsafe {
        let state = plan.layout.state(0);
        (*state).pid = if plan.pid == 0 { u } else { plan.pid };
        (*state).tid = (*state).pid;
    }
    Ok(())
}

fn clone(
    plan: &Plan<'_>,
    sp: usize,
    entry: Entry,
    script: *const crate::abi::Step,
    id: *mut u32,
) -> Result<u32, Errno> {
    let layout = &plan.layout;
    let code = layout.code() + entry.offset();
    // SAFETY: `code` is a label of T's code in the vault, which is mapped, as are the pages handed over; all stay so.
    // `id` is in the mailbox.
    let pid = unsafe { arch::asc_clone(plan.clone_flags, sp, code, layout.vault(), layout.mailbox(0), script, id) };
    Errno::from_ret(pid as usize).map(|pid| pid as u32)
}

fn report(mailbox: *mut Mailbox, refusal: Refusal) -> Fault {
    match refusal {
        Refusal::Proc(Failed(call, errno)) => (SetupStage::Proc, Some(call), errno),
        Refusal::Found { finding, fd, name, len } => {
            // SAFETY: the mailbox is mapped, and no guest code runs yet.
            let setup = unsafe { &mut (*mailbox).setup };
            setup.finding = finding as u32;
            setup.fd = fd;
            setup.name = name;
            setup.name_len = len.min(NAME_MAX) as u32;
            (SetupStage::Audit, None, Errno::EPERM)
        }
    }
}

/// Has the kernel write a core of this memory when it crashes, with the mappings that are asked for.
fn dumpable(core: Core) -> Result<(), Failed> {
    // SAFETY: changes who may look at this process, which is what was asked for.
    unsafe { sys::prctl(sys::PR_SET_DUMPABLE, 1) }.map_err(Failed::of(Sysno::prctl))?;
    let Some(filter) = core.filter else { return Ok(()) };
    let mut text = *b"0x00000000";
    for (i, digit) in text.iter_mut().skip(2).enumerate() {
        *digit = b"0123456789abcdef"[(filter >> (28 - 4 * i) & 15) as usize];
    }
    let fd = sys::open_to_write(c"/proc/self/coredump_filter").map_err(Failed::of(Sysno::openat))?;
    let written = sys::write(fd, &text);
    sys::close(fd);
    written.map(drop).map_err(Failed::of(Sysno::write))
}

/// Gives the sandbox's own descriptors their numbers, closes all that nobody keeps, and makes the doorbells.
fn arrange(plan: &Plan<'_>) -> Result<(), Failed> {
    let (lo, behind) = plan.own.range();
    let (lo, behind) = (lo as i32, behind as i32);
    let mut high = [0; MADE + ROOTS];
    for (to, fd) in high.iter_mut().zip(plan.made) {
        *to = sys::dup_from(*fd, behind).map_err(Failed::of(Sysno::fcntl))?; // out of the way of the numbers that they get
    }
    for (i, fd) in high.iter().take(plan.made.len()).enumerate() {
        sys::dup2(*fd, lo + i as i32).map_err(Failed::of(Sysno::dup2))?;
    }
    let mut next = 0;
    while next < lo {
        let kept = plan.keep.iter().copied().filter(|fd| *fd >= next).min().unwrap_or(lo).min(lo);
        if kept > next {
            sys::close_range(next as u32, kept as u32 - 1).map_err(Failed::of(Sysno::close_range))?;
        }
        next = kept + 1;
    }
    sys::close_range(lo as u32 + plan.made.len() as u32, u32::MAX).map_err(Failed::of(Sysno::close_range))?;
    for fd in lo + plan.made.len() as i32..behind {
        let made = sys::eventfd(true).map_err(Failed::of(Sysno::eventfd2))?; // the lowest free number, which is not always the next
        if made != fd {
            sys::dup2(made, fd).map_err(Failed::of(Sysno::dup2))?;
            sys::close(made);
        }
    }
    Ok(())
}
