//! The system calls that a supervisor makes, as far as they are about its sandbox's tasks, its alarm and its socket of births. All
//! others are the real kernel's.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use ascetic::abi::{STRIDE, VERDICT_TO_MAILBOX, Vault};
use ascetic::policy::Policy;
use ascetic::sys::{Errno, Result, Sysno};

use super::tasks::{State, Task};

/// Descriptors that are none of the real kernel's begin here.
const OWN_FDS: usize = 1 << 20;
/// The set-up task, and the first of the sandbox.
const SET_UP: u32 = 1000;
/// Messages that the socket of births holds.
const MESSAGES: usize = 64;
/// What a reading of the clock takes, in nanoseconds.
const READING: u64 = 50_000;
const SIGKILL: i32 = 9;

/// A message in the socket of births: of eight bytes, or of another length.
pub(super) type Message = (u32, Option<[u32; 2]>);

/// All that there is.
pub(crate) struct World {
    input: VecDeque<u8>,
    pub(super) policy: Policy<'static>,
    clock: u64,
    /// Nobody lies, fails or ends any more.
    pub(crate) quiet: bool,
    pub(super) tasks: Vec<Task>,
    pub(super) messages: VecDeque<Message>,
    pub(super) rung: bool,
    /// Descriptors, what epoll tells of them, and whose end they stand for.
    watched: Vec<(usize, Option<u64>, u32)>,
    fds: usize,
    /// The supervisor's views, in the order in which they were made: the vault, the mailboxes.
    views: Vec<usize>,
    turn: usize,
    /// A word of the first mailbox changes all the time.
    pub(super) scribbled: bool,
    /// The roots, if Ts make calls of files, which are the real kernel's then.
    pub(crate) roots: Vec<OwnedFd>,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

pub(crate) fn begin(world: World) {
    WORLD.set(Some(world));
}

pub(crate) fn with<T>(what: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(|world| what(world.as_mut().expect("there is a world")))
}

/// The kernel of [`ascetic::experiment::simulate`].
pub(crate) fn call(nr: Sysno, args: &[usize; 6]) -> Option<Result<usize>> {
    with(|world| world.call(nr, args))
}

impl World {
    pub(crate) fn new(input: &[u8], policy: Policy<'static>) -> Self {
        Self {
            input: input.iter().copied().collect(),
            policy,
            clock: 1_000_000_000_000,
            quiet: false,
            tasks: Vec::new(),
            messages: VecDeque::new(),
            rung: false,
            watched: Vec::new(),
            fds: OWN_FDS,
            views: Vec::new(),
            turn: 0,
            scribbled: false,
            roots: Vec::new(),
        }
    }

    /// A number below `n`, as the input says; in turn when it says nothing more.
    pub(super) fn choose(&mut self, n: usize) -> usize {
        self.turn += 1;
        self.input.pop_front().map_or(self.turn, usize::from) % n
    }

    /// Once in so many, as long as the input says something.
    pub(super) fn at_times(&mut self, n: usize) -> bool {
        !self.quiet && self.input.pop_front().is_some_and(|byte| usize::from(byte) % n == n - 1)
    }

    pub(super) fn is_over(&self) -> bool {
        self.input.is_empty()
    }

    /// Where the supervisor sees the verdict of a pair, its mailbox, and the vault.
    pub(super) fn verdict(&self, pair: usize) -> usize {
        self.views[0] + 4096 + size_of::<Vault>() + pair * STRIDE
    }

    pub(crate) fn mailbox(&self, pair: usize) -> usize {
        self.views[1] + pair * STRIDE
    }

    pub(crate) fn vault(&self) -> &Vault {
        // SAFETY: the view is mapped as long as the sandbox lives, and its first page is written once.
        unsafe { &*((self.views[0] + 4096) as *const Vault) }
    }

    /// The first address of the vault.
    pub(super) fn vault_lo(&self) -> usize {
        self.vault().page.vault_lo
    }

    /// Which pair's mailbox the sandbox has at an address.
    pub(super) fn pair_of(&self, mailbox: usize) -> usize {
        (mailbox - self.vault().page.vault_lo - self.vault().page.vault_len) / STRIDE
    }

    /// Where the supervisor sees what the sandbox has at an address in a verdict; `None` if it is in none.
    pub(crate) fn in_verdict(&self, at: usize) -> Option<usize> {
        let first = self.vault().page.vault_lo + self.vault().page.vault_len - VERDICT_TO_MAILBOX;
        let offset = at.checked_sub(first).filter(|offset| *offset < VERDICT_TO_MAILBOX)?;
        Some(self.verdict(0) + offset)
    }

    /// The task of this process id that was not reaped.
    pub(super) fn remains(&self, pid: u32) -> bool {
        self.tasks.iter().any(|task| task.pid == pid && !task.reaped)
    }

    /// Whether a message fits.
    pub(super) fn say(&mut self, message: Message) -> bool {
        let fits = self.messages.len() < MESSAGES;
        if fits {
            self.messages.push_back(message);
        }
        fits
    }

    fn ended(&self, pid: u32) -> Option<i32> {
        self.tasks.iter().find(|task| task.pid == pid)?.status
    }

    fn call(&mut self, nr: Sysno, args: &[usize; 6]) -> Option<Result<usize>> {
        let [a, b, c, d, e, f] = *args;
        Some(match nr {
            Sysno::mmap => {
                // SAFETY: the caller's call.
                let at = unsafe { libc::syscall(libc::SYS_mmap, a, b, c, d, e, f) };
                if d & libc::MAP_SHARED as usize != 0 && at > 0 {
                    self.views.push(at as usize);
                }
                Errno::from_ret(at as usize)
            }
            Sysno::clone => Ok(SET_UP as usize),
            Sysno::clock_gettime => {
                self.clock += READING;
                // SAFETY: a timespec of the caller's.
                unsafe { (b as *mut [u64; 2]).write([self.clock / 1_000_000_000, self.clock % 1_000_000_000]) };
                Ok(0)
            }
            Sysno::wait4 if a as u32 == SET_UP => {
                self.set_up();
                // SAFETY: a status of the caller's.
                unsafe { (b as *mut i32).write(0) };
                Ok(a)
            }
            Sysno::wait4 => self.wait(a as u32, b),
            Sysno::waitid => self.waitid(b as u32, c),
            Sysno::kill => self.kill(a as u32, b as i32),
            Sysno::pidfd_open if self.at_times(32) => Err(Errno::EMFILE),
            Sysno::pidfd_open => {
                assert!(self.remains(a as u32), "a descriptor of {a}, which is none of the sandbox's");
                self.fds += 1;
                self.watched.push((self.fds, None, a as u32));
                Ok(self.fds)
            }
            Sysno::pidfd_send_signal => match self.watched.iter().find(|(fd, ..)| *fd == a) {
                Some((_, _, pid)) if self.ended(*pid).is_none() => self.kill(*pid, b as i32),
                _ => Err(Errno::ESRCH),
            },
            Sysno::close if a >= OWN_FDS => {
                let before = self.watched.len();
                self.watched.retain(|(fd, ..)| *fd != a);
                assert_ne!(self.watched.len(), before, "descriptor {a} is closed twice");
                Ok(0)
            }
            Sysno::epoll_ctl if c >= OWN_FDS => {
                // SAFETY: an event of the caller's: its data is behind 4 bytes.
                let data = unsafe { ((d + 4) as *const u64).read_unaligned() };
                self.watched.iter_mut().filter(|(fd, ..)| *fd == c).for_each(|watch| watch.1 = Some(data));
                Ok(0)
            }
            Sysno::epoll_wait => self.epoll_wait(b, c, d as i32),
            Sysno::poll => {
                // SAFETY: descriptors of the caller's: for its births, the alarm is the first.
                (0..b.min(1)).for_each(|_| unsafe { ((a + 6) as *mut i16).write(1) });
                self.pass(c as i32);
                Ok(b.min(1))
            }
            Sysno::sched_yield => {
                self.pass(0);
                Ok(0)
            }
            Sysno::read => {
                self.rung = false;
                Ok(8)
            }
            Sysno::recvmsg => self.receive(b),
            Sysno::futex => {
                self.between();
                const REQUEUE: usize = 4;
                if b == REQUEUE { self.requeue(a, e, f as u32) } else { Ok(self.wake(a, c)) }
            }
            _ => return None,
        })
    }

    fn wait(&mut self, pid: u32, status: usize) -> Result<usize> {
        let said = self.messages.iter().any(|(sender, _)| *sender == pid);
        let task = self.tasks.iter_mut().find(|task| task.pid == pid && !task.reaped).ok_or(Errno::ECHILD)?;
        let Some(raw) = task.status else { return Ok(0) };
        assert!(!said, "{pid} is reaped before it was heard");
        task.reaped = true;
        // SAFETY: a status of the caller's.
        unsafe { (status as *mut i32).write(raw) };
        Ok(pid as usize)
    }

    /// `waitid` with `WNOWAIT`: signal, code and status in a siginfo.
    fn waitid(&mut self, pid: u32, info: usize) -> Result<usize> {
        self.between();
        if !self.remains(pid) {
            return Err(Errno::ECHILD);
        }
        if let Some(raw) = self.ended(pid) {
            let (code, status) = if raw & 0x7f == 0 { (1, raw >> 8) } else { (2, raw & 0x7f) };
            // SAFETY: a siginfo of the caller's (`include/uapi/asm-generic/siginfo.h`).
            unsafe {
                (info as *mut [i32; 3]).write([libc::SIGCHLD, 0, code]);
                ((info + 16) as *mut [i32; 3]).write([pid as i32, 0, status]);
            }
        }
        Ok(0)
    }

    fn kill(&mut self, pid: u32, sig: i32) -> Result<usize> {
        assert!(self.remains(pid), "signal {sig} for {pid}, which is none of the sandbox's");
        if sig == SIGKILL {
            self.tasks.iter_mut().filter(|task| task.pid == pid).for_each(|task| task.killed = true);
        }
        self.between();
        Ok(0)
    }

    fn epoll_wait(&mut self, events: usize, room: usize, timeout: i32) -> Result<usize> {
        // What the broker has these told as.
        const ALARM: u64 = 1 << 32;
        const BIRTH: u64 = 2 << 32;
        self.between();
        let mut told: Vec<u64> = Vec::new();
        told.extend(
            self.watched.iter().filter(|(.., pid)| self.ended(*pid).is_some()).filter_map(|(_, data, _)| *data),
        );
        if std::mem::take(&mut self.rung) {
            told.push(ALARM);
        }
        if !self.messages.is_empty() {
            told.push(BIRTH);
        }
        if told.is_empty() {
            self.pass(timeout.max(0));
        }
        if told.len() > 1 {
            let by = self.choose(told.len());
            told.rotate_left(by);
        }
        for (i, data) in told.iter().take(room).enumerate() {
            // SAFETY: events of the caller's, of 12 bytes.
            unsafe { ((events + 12 * i + 4) as *mut u64).write_unaligned(*data) };
        }
        if told.iter().skip(room).any(|data| *data == ALARM) {
            self.rung = true;
        }
        Ok(told.len().min(room))
    }

    fn receive(&mut self, message: usize) -> Result<usize> {
        self.between();
        // SAFETY: a message header of the caller's, with room for eight bytes and credentials.
        let header = unsafe { &mut *(message as *mut libc::msghdr) };
        match self.messages.pop_front() {
            Some((pid, words)) => {
                // SAFETY: as above.
                unsafe {
                    (*header.msg_iov).iov_base.cast::<[u32; 2]>().write_unaligned(words.unwrap_or_default());
                    let control = header.msg_control.cast::<libc::cmsghdr>();
                    ((*control).cmsg_level, (*control).cmsg_type) = (libc::SOL_SOCKET, libc::SCM_CREDENTIALS);
                    control.add(1).cast::<u32>().write(pid);
                }
                Ok(if words.is_some() { 8 } else { 5 })
            }
            None if self.tasks.iter().all(|task| task.status.is_some()) => {
                header.msg_controllen = 0;
                Ok(0)
            }
            None => Err(Errno::EAGAIN),
        }
    }

    /// `FUTEX_CMP_REQUEUE` of one.
    fn requeue(&mut self, from: usize, to: usize, value: u32) -> Result<usize> {
        // SAFETY: a word of a view.
        if unsafe { (from as *const u32).read_volatile() } != value {
            return Err(Errno::EAGAIN);
        }
        for task in self.tasks.iter_mut().filter(|task| task.status.is_none() && !task.killed) {
            if let State::Wait { word, woken: false, .. } = &mut task.state
                && *word == from
            {
                *word = to;
                task.taken();
                return Ok(1);
            }
        }
        Ok(0)
    }

    fn wake(&mut self, at: usize, most: usize) -> usize {
        self.opened(at);
        let mut n = 0;
        for task in self.tasks.iter_mut().filter(|task| task.status.is_none()) {
            if let State::Wait { word, woken, .. } | State::Gate { word, woken, .. } = &mut task.state
                && *word == at
                && !*woken
                && n < most
            {
                *woken = true;
                n += 1;
            }
        }
        n
    }

    /// Time passes, in milliseconds: everybody goes on.
    fn pass(&mut self, ms: i32) {
        self.clock += ms.max(0) as u64 * 1_000_000;
        for i in 0..self.tasks.len() {
            if self.quiet || self.is_over() || self.choose(2) == 0 {
                self.advance(i);
            }
        }
    }

    /// Somebody does something while the broker makes a call.
    fn between(&mut self) {
        if self.at_times(4) && !self.tasks.is_empty() {
            let i = self.choose(self.tasks.len());
            self.advance(i);
        }
    }

    /// The next thing happens. Whether it is that the broker is let go on.
    pub(super) fn play(&mut self) -> bool {
        let i = self.choose(self.tasks.len() + 2);
        if i < self.tasks.len() {
            self.advance(i);
        }
        i >= self.tasks.len()
    }

    /// Everybody goes on, without lies. Whether anybody still waits for an answer.
    pub(crate) fn calm(&mut self) -> bool {
        self.pass(1);
        self.anybody_waits()
    }

    /// What the set-up task does: there are a T and a U.
    fn set_up(&mut self) {
        let (t, u) = (SET_UP + 1, SET_UP + 2);
        self.tasks.push(Task::first(t, true));
        self.tasks.push(Task::first(u, false));
        let mailbox = self.mailbox(0) as *mut ascetic::abi::Mailbox;
        // SAFETY: the view is mapped.
        unsafe { ((*mailbox).setup.t, (*mailbox).setup.u) = (t, u) };
    }

    /// A process id that nobody had.
    pub(super) fn new_pid(&self) -> u32 {
        SET_UP + 1 + self.tasks.len() as u32
    }
}
