//! Making a sandbox: everything up to the fork, and the fork.

use crate::abi::{FUTEX_OPS, Mailbox, PAGE, STRIDE, Vault, VaultPage, Vector, Verdict};
use crate::arch::{Context, Frame};
use crate::birth::{self, Common};
use crate::broker::Books;
use crate::broker::decide::{O_DIRECTORY, O_NOFOLLOW, O_PATH};
use crate::clone;
use crate::config::{self, Config, RECORD_MAX};
use crate::error::Error;
use crate::fault::tsc::Scale;
use crate::pair::Layout;
use crate::policy::{Policy, ROOTS, Root};
use crate::setup::{self, MADE, OwnFds, Plan};
use crate::signal::SigSet;
use crate::sys::{self, CpuSet, Errno, Sysno};
use crate::trusted::{self, Entry};
use crate::untrusted::{self, LookAway, State};
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
        Self::keep(sys::map_shared(len, sys::PROT_READ | sys::PROT_WRITE, fd), len)
    }

    /// Maps memory of zeros. Under [`FORKS`].
    fn fresh() -> Result<Self, Error> {
        let len = size_of::<T>().next_multiple_of(PAGE);
        Self::keep(sys::map_private(len, sys::PROT_READ | sys::PROT_WRITE), len)
    }

    fn keep(mapped: sys::Result<usize>, len: usize) -> Result<Self, Error> {
        let addr = mapped.map_err(Error::of(Sysno::mmap))?;
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
    pub(crate) vault: Vault,
    /// The first pair's; the others' follow.
    first: Verdict,
}

impl View<VaultView> {
    /// The verdict of pair `k`.
    pub(crate) fn verdict(&self, k: usize) -> *mut Verdict {
        // SAFETY: the address of a field of the mapping.
        unsafe { &raw mut (*self.at).first }.wrapping_add(k)
    }
}

impl View<Mailbox> {
    /// The mailbox of pair `k`.
    pub(crate) fn mailbox(&self, k: usize) -> *mut Mailbox {
        self.at.wrapping_byte_add(k * STRIDE)
    }
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
    mailboxes_fd: Fd,
    pub(crate) vault: View<VaultView>,
    pub(crate) mailboxes: View<Mailbox>,
    pub(crate) books: View<Books>,
    pub(crate) epoll: Fd,
    pub(crate) alarm: Fd,
    pub(crate) crash: Option<Fd>,
    probe: (Fd, Fd),
    pub(crate) answer: (Fd, Fd),
    /// The supervisor's end, and the sandbox's.
    pub(crate) births: (Fd, Fd),
    /// The same, of the socket for memory, if anybody may ask for some.
    pub(crate) memory: Option<(Fd, Fd)>,
    pub(crate) roots: [Option<Fd>; ROOTS],
    /// The CPUs that the caller may use.
    pub(crate) allowed: CpuSet,
}

impl Made {
    fn new(config: &Config<'_>, layout: &Layout) -> Result<Self, Error> {
        let memfd = |name, len, exec| sys::memfd(name, len, exec).map(Fd);
        let seal = |fd: &Fd, seals| sys::seal(fd.0, seals).map_err(Error::of(Sysno::fcntl));
        let vault_fd = memfd(c"ascetic-vault", layout.vault_len(), true)?;
        let vault = View::map(vault_fd.0, layout.vault_len())?;
        let seals = sys::SEAL_SIZE | sys::SEAL_FUTURE_WRITE;
        #[cfg(feature = "experiments")]
        let seals = if config.weaken.no_seal { sys::SEAL_SIZE } else { seals };
        seal(&vault_fd, seals)?;
        let mailboxes_fd = memfd(c"ascetic-mailboxes", layout.mailboxes_len(), false)?;
        let mailboxes = View::map(mailboxes_fd.0, layout.mailboxes_len())?;
        seal(&mailboxes_fd, sys::SEAL_SIZE)?;
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
        let memory = config.dying.map(|_| sys::credential_pair(sys::SENT_MEMORY)).transpose();
        let probe = sys::pipe().map(pair).map_err(Error::of(Sysno::pipe2))?;
        let answer = sys::blocking_pipe().map(pair).map_err(Error::of(Sysno::pipe2))?;
        sys::set_nonblocking(answer.1.0).map_err(Error::of(Sysno::fcntl))?;
        let mut roots = [const { None }; ROOTS];
        for (i, root) in config.policy.roots() {
            roots[i] = Some(open_root(i, root)?);
        }
        Ok(Self {
            vault_fd,
            mailboxes_fd,
            vault,
            mailboxes,
            books: View::fresh()?,
            epoll: sys::epoll().map(Fd).map_err(Error::of(Sysno::epoll_create1))?,
            alarm: sys::eventfd(false).map(Fd).map_err(Error::of(Sysno::eventfd2))?, // the guest may ring without end
            crash,
            probe,
            answer,
            memory: memory?.map(pair),
            births: sys::credential_pair(sys::SENT).map(pair)?,
            roots,
            allowed: sys::affinity().map_err(Error::of(Sysno::sched_getaffinity))?,
        })
    }
}

/// Opens a root's folder, or the folder that its one file is in: no folder itself, which it could become by others' hands only.
fn open_root(number: usize, root: &Root<'_>) -> Result<Fd, Error> {
    const CWD: i32 = crate::broker::decide::AT_FDCWD;
    let how = |flags: usize| crate::abi::OpenHow { flags: flags as u64, mode: 0, resolve: 0 };
    let mut folder = [0u8; crate::broker::path::PATH];
    let path = root.path.to_bytes();
    let end = if root.exact { path.iter().rposition(|byte| *byte == b'/').unwrap_or(0).max(1) } else { path.len() };
    let bad = |errno| Error::Root { number, errno };
    folder.get_mut(..end).ok_or(bad(Errno::ENAMETOOLONG))?.copy_from_slice(&path[..end]);
    let path = core::ffi::CStr::from_bytes_until_nul(&folder).map_err(|_| bad(Errno::ENAMETOOLONG))?;
    let fd = match sys::openat2(CWD, path, &how(O_PATH | O_DIRECTORY | sys::O_CLOEXEC)) {
        Err(Errno::ENOSYS) => return Err(Error::NoOpenat2),
        other => Fd(other.map_err(bad)?),
    };
    if sys::is_on_proc(fd.0).map_err(bad)? {
        return Err(bad(Errno::EPERM));
    }
    if root.exact {
        let name = root.path.to_bytes_with_nul().get(end..).unwrap_or_default();
        let name = name.strip_prefix(b"/").unwrap_or(name);
        let name = core::ffi::CStr::from_bytes_until_nul(name).unwrap_or_default();
        match sys::openat2(fd.0, name, &how(O_PATH | O_NOFOLLOW | sys::O_CLOEXEC)).map(Fd) {
            Ok(file) if sys::file_facts(file.0).map_err(bad)?.kind == sys::S_IFDIR => {
                return Err(Error::RootIsFolder { number });
            }
            Ok(_) | Err(Errno::ENOENT) => {} // it may come yet
            Err(errno) => return Err(bad(errno)),
        }
    }
    Ok(fd)
}

/// As long as this lives, what is mapped readable is not executable by that (`READ_IMPLIES_EXEC`, which old programs have). The
/// sandbox's tasks, forked meanwhile, stay so.
struct PlainAccess(Option<usize>);

impl PlainAccess {
    fn begin() -> sys::Result<Self> {
        let before = sys::personality(None)?;
        if before & sys::READ_IMPLIES_EXEC == 0 {
            return Ok(Self(None));
        }
        sys::personality(Some(before & !sys::READ_IMPLIES_EXEC))?;
        Ok(Self(Some(before)))
    }
}

impl Drop for PlainAccess {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            let _ = sys::personality(Some(before));
        }
    }
}

/// Makes what a sandbox needs, and forks its set-up task: returns the former, and the process id of the latter.
pub(crate) fn create(config: &Config<'_>, start: Start<'_>) -> Result<(Made, u32), Error> {
    Scale::prepare();
    config::check(config)?;
    let (cpus, spin) = config::place(config)?;
    let supervisor = sys::pids().0;
    let (roots, pairs) = (config.policy.roots_len(), config.policy.limits_of().threads as usize);
    let highest = config.keep.iter().copied().max().unwrap_or(2).max(2);
    let most = (2 * (MADE + roots) + 2 * pairs) as i32;
    let fd_lo = highest.checked_add(1).filter(|lo| lo.checked_add(most).is_some());
    let fd_lo = fd_lo.ok_or(Error::ClosedDescriptor { fd: highest })?;

    let core = config.core;
    let [soft, hard] = sys::limit(0, sys::RLIMIT_CORE, None).map_err(Error::of(Sysno::prlimit64))?;

    let _plain = PlainAccess::begin().map_err(Error::of(Sysno::personality))?;
    let layout = Layout::reserve(pairs, config.stack)?;
    let forked = (|| {
        let _guard = FORKS.lock();
        let made = Made::new(config, &layout)?;
        let own = OwnFds::from(fd_lo, roots, pairs);
        let common = Common {
            layout,
            supervisor,
            fds: own,
            lockdown: config.lockdown,
            cpus,
            dispatch: config.dispatch,
            report_denied: config.report_denied,
            tracer: config.tracer.map_or(0, |pid| pid as isize as usize),
            core: [core.map_or(soft, |core| core.limit), hard],
            core_t: [core.filter(|core| core.trusted).map_or(0, |core| core.limit), hard],
        };
        // SAFETY: the views were just mapped, at their full size, and the reservation with its state is new.
        unsafe {
            fill_state(&layout, &own, spin, start, config);
            let vault = &mut *made.vault.at;
            vault.code.iter_mut().zip(trusted::code()).for_each(|(to, from)| *to = *from);
            fill_vault(&mut vault.vault.page, &layout, config.policy, &own, spin);
            let frame = frame(&layout, start);
            birth::write(&mut vault.first, 0, &common, None, frame).map_err(Error::of(Sysno::clone))?;
            #[cfg(feature = "experiments")]
            config.weaken.apply(&mut vault.vault.page, &mut vault.first, &layout);
            (*made.books.at).start(&common);
        }
        let crash = config.crash.or(made.crash.as_ref().map(|fd| fd.0)).unwrap_or(-1);
        let mut list = [-1; MADE + ROOTS];
        let births = made.births.1.0;
        let memory = made.memory.as_ref().map_or(births, |(_, theirs)| theirs.0);
        let fds = [made.alarm.0, crash, made.probe.0.0, made.probe.1.0, made.answer.0.0, births, memory];
        let fds = fds.into_iter().chain(made.roots.iter().flatten().map(|fd| fd.0));
        list.iter_mut().zip(fds).for_each(|(to, from)| *to = from);
        let plan = Plan {
            layout,
            vault: made.vault_fd.0,
            mailboxes: made.mailboxes_fd.0,
            made: &list[..MADE + roots],
            crash,
            own,
            keep: config.keep,
            share: config.share,
            core,
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
pub(crate) const POISON: usize = 1;

/// # Safety
///
/// The reservation is new, and its state is writable.
unsafe fn fill_state(layout: &Layout, own: &OwnFds, spin: u32, start: Start<'_>, config: &Config<'_>) {
    let (entry, arg) = match start {
        Start::Call { entry, arg } => (entry, arg),
        Start::Resume { .. } => (no_entry as extern "C" fn(usize) -> i32, 0),
    };
    let (stack, stack_len) = layout.stack();
    // SAFETY: the caller says that the memory is writable; it is zero, which is valid for everything not set here but
    // the entry, which is set without being looked at.
    unsafe {
        let state: *mut State = layout.state(0);
        (&raw mut (*state).entry).write(entry);
        (&raw mut (*state).mailbox).write(layout.mailbox(0));
        (&raw mut (*state).this).write(state);
        let state = &mut *state;
        state.arg = arg;
        (state.doorbell_t, state.doorbell_u) = (own.doorbells(0).0 as i32, own.doorbells(0).1 as i32);
        state.alarm = own.alarm;
        state.crash = own.crash;
        state.probe_read = own.probe_read;
        state.probe_write = own.probe_write;
        state.answer = own.answer;
        state.spin = spin;
        state.dispatch = config.dispatch;
        state.selector = config.dispatch || config.report_denied;
        state.threads = layout.pairs() > 1;
        state.pairs = layout.pairs() as u32;
        state.stays = config.dying.is_some();
        state.uid = sys::getuid();
        state.look_away_most = if spin > 0 { config::look_away() } else { 0 };
        state.look_away = LookAway::begin(state.look_away_most);
        untrusted::signal::inherit(&raw mut *state, 0);
        let bounds = layout.bounds(0, 0);
        state.fault.prepare(
            (stack, stack + stack_len),
            layout.altstack(0),
            (bounds.vault_lo, bounds.vault_lo + bounds.vault_len),
        );
    }
}

fn fill_vault(page: &mut VaultPage, layout: &Layout, policy: &Policy<'_>, own: &OwnFds, spin: u32) {
    let (fd_lo, fd_behind) = own.range();
    let bounds = layout.bounds(fd_lo, fd_behind - fd_lo);
    *page = VaultPage {
        vault_lo: bounds.vault_lo,
        vault_len: bounds.vault_len,
        fd_lo: bounds.fd_lo,
        fd_len: bounds.fd_len,
        spin,
        alarm: own.alarm as u32,
        mxcsr: 0x1f80,
        futex_ops: FUTEX_OPS,
        patience: [0, PATIENCE],
        one: 1,
        second: Vector([0, 1, 0, 0]),
        table: *policy.rows(),
    };
}

/// Nanoseconds for which T waits before it rings again.
const PATIENCE: usize = 100_000_000;

/// # Safety
///
/// The guest's stack is writable.
unsafe fn frame(layout: &Layout, start: Start<'_>) -> Frame {
    let (stack, len) = layout.stack();
    let mut frame = match start {
        // SAFETY: the caller's.
        Start::Call { .. } => unsafe {
            let f = untrusted::start as *const () as usize;
            Frame::call(f, layout.state(0).addr(), stack + len, birth::guest_mask(), layout.altstack(0))
        },
        Start::Resume { context } => Frame::resume(context, birth::guest_mask(), layout.altstack(0)),
    };
    frame.set_state_segment();
    frame
}
