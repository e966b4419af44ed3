//! Making a sandbox: everything up to the fork, and the fork.

use crate::abi::{Mailbox, PAGE, VaultPage, VerdictPage};
use crate::arch::{Context, Frame};
use crate::birth::{self, Parents};
use crate::clone;
use crate::config::{self, Config, RECORD_MAX};
use crate::error::Error;
use crate::fault::tsc::Scale;
use crate::pair::{Layout, VAULT_PAGES};
use crate::policy::Policy;
use crate::setup::{self, OWN_FDS, OwnFds, Plan};
use crate::signal::SigSet;
use crate::sys::{self, Sysno};
use crate::trusted::{self, Entry};
use crate::untrusted::{self, State};
use spin::Mutex;

/// A descriptor that is closed when it is dropped.
#[derive(Debug)]
pub(crate) struct Fd(pub(crate) i32);

impl Drop for Fd {
    fn drop(&mut self) {
        sys::close(self.0);
    }
}

/// A mapping of the supervisor's own, which no child inherits.
#[derive(Debug)]
pub(crate) struct View<T> {
    pub(crate) at: *mut T,
    len: usize,
    /// The process that mapped it. A forked copy of this value has nothing there, or something else.
    owner: u32,
}

// SAFETY: a view is plain memory, shared with a sandbox but with no thread of this process.
unsafe impl<T> Send for View<T> {}

impl<T> View<T> {
    /// Maps `len` bytes of a memfd. Under [`FORKS`], so that no sandbox is forked before it is marked.
    fn map(fd: i32, len: usize) -> Result<Self, Error> {
        let addr = sys::map_shared(len, sys::PROT_READ | sys::PROT_WRITE, fd).map_err(Error::of(Sysno::mmap))?;
        let view = Self { at: addr as *mut T, len, owner: sys::pids().0 };
        sys::dont_fork(addr, len).map_err(Error::of(Sysno::madvise))?;
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
pub(crate) struct VaultView {
    code: [u8; PAGE],
    vault: VaultPage,
    pub(crate) verdict: VerdictPage,
}

impl core::fmt::Debug for VaultView {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("VaultView").finish_non_exhaustive()
    }
}

/// Serialises the making of views with forks: a sandbox must not inherit another's vault writable.
static FORKS: Mutex<()> = Mutex::new(());

/// How guest code starts.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    Call { entry: extern "C" fn(usize) -> i32, arg: usize },
    Resume { context: &'a Context },
}

extern "C" fn no_entry(_: usize) -> i32 {
    0
}

/// Everything that is made before the fork.
pub(crate) struct Made {
    vault_fd: Fd,
    mailbox_fd: Fd,
    pub(crate) vault: View<VaultView>,
    pub(crate) mailbox: View<Mailbox>,
    doorbell_t: Fd,
    doorbell_u: Fd,
    pub(crate) alarm: Fd,
    pub(crate) crash: Option<Fd>,
    probe: (Fd, Fd),
    pub(crate) answer: (Fd, Fd),
}

impl Made {
    fn new(config: &Config<'_>) -> Result<Self, Error> {
        let vault_len = VAULT_PAGES * PAGE;
        let memfd = |name, len, exec| sys::memfd(name, len, exec).map(Fd).map_err(Error::of(Sysno::memfd_create));
        let seal = |fd: &Fd, seals| sys::seal(fd.0, seals).map_err(Error::of(Sysno::fcntl));
        let eventfd = |blocking| sys::eventfd(blocking).map(Fd).map_err(Error::of(Sysno::eventfd2));
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
        let probe = sys::pipe().map(pair).map_err(Error::of(Sysno::pipe2))?;
        let answer = sys::blocking_pipe().map(pair).map_err(Error::of(Sysno::pipe2))?;
        sys::set_nonblocking(answer.1.0).map_err(Error::of(Sysno::fcntl))?;
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

/// Makes what a sandbox needs, and forks its set-up task: returns the former, and the process id of the latter.
pub(crate) fn create(config: &Config<'_>, start: Start<'_>) -> Result<(Made, u32), Error> {
    Scale::prepare();
    config::check(config)?;
    let (cpus, spin) = config::place(config)?;
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
        let mask = sys::sigmask(SigSet::ALL).map_err(Error::of(Sysno::rt_sigprocmask))?;
        // SAFETY: the child runs set-up code, which uses its stack and system calls only.
        let pid = unsafe { sys::fork() };
        if pid == Ok(0) {
            setup::run(&plan);
        }
        let _ = sys::sigmask(mask);
        Ok((made, pid.map_err(Error::of(Sysno::clone))?))
    })();
    layout.release();
    forked
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
        state.look_away_most = if spin > 0 { config::look_away() } else { 0 };
        state.look_away = state.look_away_most;
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
