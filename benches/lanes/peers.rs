//! What there is besides: the bare call, and the other ways to have somebody else make it.
//!
//! Every lane measures a call, mostly `getppid`, in a process of its own, made anew for every round, which takes the time
//! with its own clock (the vDSO's, not a call).

use crate::host::{Batch, Child, FAST, Log, Result, SLOW, checked, getppid, getppid_with, pin};
use crate::own::{FOLDER, MAPPED};
use std::ffi::CStr;
use std::hint::spin_loop;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// What the peers answer: no process id.
const ANSWER: usize = 0x5ca1ab1e;
/// The argument of the last call: the broker answers and ends.
const LAST: usize = 1;
/// Bytes of a page, and of the longest path.
const PAGE: usize = 4096;
/// [`Log::wrong`]: the answer was another.
const WRONG_ANSWER: u64 = 1;

/// The bare call.
pub fn native(log: &Log, cpu: usize) -> Result<()> {
    Child::fork(|| {
        pin(&[cpu])?;
        FAST.run(log, || {
            getppid();
        });
        Ok(())
    })?
    .wait()
}

/// Measures `work`, natively, on a CPU; it says whether it went well.
fn native_work(log: &Log, cpu: usize, work: impl Fn() -> bool) -> Result<()> {
    Child::fork(|| {
        pin(&[cpu])?;
        SLOW.run(log, || {
            if !work() {
                log.wrong.store(WRONG_ANSWER, Relaxed);
            }
        });
        Ok(())
    })?
    .wait()
}

/// `openat` and `close`.
pub fn native_open(log: &Log, cpu: usize) -> Result<()> {
    native_work(log, cpu, open_and_close)
}

/// Opens [`FOLDER`] and closes it; whether it went well.
fn open_and_close() -> bool {
    // SAFETY: a descriptor of this function's own.
    unsafe { libc::close(open_folder()) == 0 }
}

fn open_folder() -> i32 {
    // SAFETY: a path.
    unsafe { libc::openat(libc::AT_FDCWD, FOLDER.as_ptr(), libc::O_RDONLY) }
}

/// `stat`
pub fn native_stat(log: &Log, cpu: usize) -> Result<()> {
    let mut stat = [0u64; 32];
    let at = stat.as_mut_ptr();
    // SAFETY: a path, and room for the result.
    native_work(log, cpu, || unsafe { libc::syscall(libc::SYS_stat, FOLDER.as_ptr(), at) == 0 })
}

/// `mmap` and `munmap`.
pub fn native_map(log: &Log, cpu: usize) -> Result<()> {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: memory that the kernel chose and nobody else uses.
    native_work(log, cpu, || unsafe {
        libc::munmap(libc::mmap(std::ptr::null_mut(), MAPPED, prot, flags, -1, 0), MAPPED) == 0
    })
}

/// A thread of the library's, created and joined.
pub fn native_thread(log: &Log, cpu: usize) -> Result<()> {
    native_work(log, cpu, || std::thread::spawn(|| ()).join().is_ok())
}

/// Measures calls that must be answered with [`ANSWER`].
fn answered(log: &Log, batch: Batch) {
    batch.run(log, || {
        if getppid() != ANSWER {
            log.wrong.store(WRONG_ANSWER, Relaxed);
        }
    });
}

/// What a caller asks for, and a broker answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// `getppid`, which is answered with a number.
    Getppid,
    /// `openat`, whose path has to be read from the caller's memory and whose descriptor has to get there. The `close` that
    /// follows is the caller's own.
    Open,
}

impl Asked {
    fn nr(self) -> libc::c_long {
        match self {
            Self::Getppid => libc::SYS_getppid,
            Self::Open => libc::SYS_openat,
        }
    }

    /// Measures it.
    fn measure(self, log: &Log) {
        match self {
            Self::Getppid => answered(log, SLOW),
            Self::Open => SLOW.run(log, || {
                if !open_and_close() {
                    log.wrong.store(WRONG_ANSWER, Relaxed);
                }
            }),
        }
    }

    /// Asks with [`LAST`].
    fn last(self) {
        match self {
            Self::Getppid => _ = getppid_with(LAST),
            // SAFETY: a path.
            Self::Open => _ = unsafe { libc::openat(LAST as i32, FOLDER.as_ptr(), libc::O_RDONLY) },
        }
    }
}

/// Reads a path from another process into `text`: up to the end of its page, with its NUL.
fn read_path(pid: libc::pid_t, at: u64, text: &mut [u8; PAGE]) -> Result<&CStr> {
    let len = PAGE - at as usize % PAGE;
    let own = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: len };
    let theirs = libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(at as usize), iov_len: len };
    // SAFETY: the kernel stores at most `len` bytes, for which there is room.
    checked(unsafe { libc::process_vm_readv(pid, &raw const own, 1, &raw const theirs, 1, 0) })?;
    Ok(CStr::from_bytes_until_nul(text)?)
}

/// What turns a call into SIGSYS.
#[derive(Clone, Copy)]
pub enum Trap {
    /// A seccomp filter.
    Filter,
    /// Syscall user dispatch.
    Dispatch,
}

/// A SIGSYS whose handler returns a value: what a call costs that is caught in the process itself.
pub fn sigsys(log: &Log, cpu: usize, trap: Trap) -> Result<()> {
    Child::fork(|| {
        pin(&[cpu])?;
        // SAFETY: all zero is a valid action.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_sigsys as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the handler touches nothing but its frame.
        checked(unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) })?;
        match trap {
            Trap::Filter => filter(libc::SYS_getppid, libc::SECCOMP_RET_TRAP, 0).map(drop)?,
            Trap::Dispatch => {
                // Calls made from up here, where the shared libraries are, pass; this program's own do not.
                const LIBRARIES: usize = 0x7000_0000_0000;
                const SET_DISPATCH: i32 = 59; // PR_SET_SYSCALL_USER_DISPATCH
                const ON: usize = 1;
                let (from, len) = (LIBRARIES, (1usize << 47) - LIBRARIES);
                let own = getppid as *const () as usize;
                if own >= LIBRARIES || (libc::getpid as *const () as usize) < LIBRARIES {
                    return Err("program and libc are not where dispatch can tell them apart".into());
                }
                // SAFETY: from here on, this thread makes no calls of its own but the measured ones.
                checked(unsafe { libc::prctl(SET_DISPATCH, ON, from, len, 0usize) })?;
            }
        }
        answered(log, SLOW);
        Ok(())
    })?
    .wait()
}

extern "C" fn on_sigsys(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel passes the frame that it will restore.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_RAX as usize] = ANSWER as i64 };
}

/// Filters the calling thread: `action` for call `nr`, everything else passes. Returns what `seccomp` does.
fn filter(nr: libc::c_long, action: u32, flags: libc::c_ulong) -> io::Result<i64> {
    let insn = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut insns = [
        insn(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0), // the call's number
        insn(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, nr as u32),
        insn(libc::BPF_RET | libc::BPF_K, 0, 0, action),
        insn(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: insns.len() as u16, filter: insns.as_mut_ptr() };
    // SAFETY: restricts the calling thread only, which is in a child made for that; the kernel reads the program.
    unsafe {
        checked(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        checked(libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program))
    }
}

/// Whether the broker is another process, as it must be to guard anything, or a thread: what is saved by not changing
/// the address space, as T and U do not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Broker {
    /// Another process.
    Process,
    /// A thread of the same process.
    Thread,
}

/// Where the two sides run: the side that calls, the other side. The same twice is one CPU.
pub type Where = [usize; 2];

/// `SECCOMP_RET_USER_NOTIF`: a broker receives the call and answers it. `sync` asks for
/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP` (Linux 6.6).
pub fn user_notif(log: &Log, on: Where, asked: Asked, sync: bool, broker: Broker) -> Result<()> {
    /// [`Log::mark`] while the caller has no listener yet, and when it could not have one.
    const NONE: u64 = 0;
    const FAILED: u64 = u64::MAX;
    let caller = move || -> Result<()> {
        let new_listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        let listener = pin(&on[..1]).and_then(|()| filter(asked.nr(), libc::SECCOMP_RET_USER_NOTIF, new_listener));
        log.mark.store(*listener.as_ref().unwrap_or(&-1) as u64, Relaxed);
        listener?;
        asked.measure(log);
        asked.last();
        Ok(())
    };
    let listener = || {
        while log.mark.load(Relaxed) == NONE {
            std::thread::yield_now();
        }
        match log.mark.load(Relaxed) {
            FAILED => Err("the filter was refused"),
            fd => Ok(fd as i32),
        }
    };
    Child::fork(|| {
        pin(&on[1..])?;
        if broker == Broker::Thread {
            return std::thread::scope(|scope| {
                scope.spawn(move || caller().is_ok());
                // SAFETY: the other thread made it and leaves it to this one.
                serve(unsafe { OwnedFd::from_raw_fd(listener()?) }, asked, sync)
            });
        }
        let child = Child::fork(caller)?;
        let theirs = listener()?;
        // SAFETY: makes descriptors; the child lives, because its first call waits for this process.
        let own = unsafe {
            let pidfd = checked(libc::syscall(libc::SYS_pidfd_open, child.0, 0))?;
            let pidfd = OwnedFd::from_raw_fd(pidfd as i32);
            let fd = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), theirs, 0);
            OwnedFd::from_raw_fd(checked(fd)? as i32)
        };
        serve(own, asked, sync)?;
        child.wait()
    })?
    .wait()
}

/// Answers calls until the last.
fn serve(listener: OwnedFd, asked: Asked, sync: bool) -> Result<()> {
    const SYNC_WAKE_UP: u64 = 1;
    let fd = listener.as_raw_fd();
    // SAFETY: sets flags of the listener.
    if sync && unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    loop {
        // SAFETY: all zero is a valid value, and what the kernel wants to find.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel stores one notification.
        checked(unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) })?;
        if asked == Asked::Open && call.data.args[0] != LAST as u64 {
            inject(fd, &call)?;
            continue;
        }
        let answer = libc::seccomp_notif_resp { id: call.id, val: ANSWER as i64, error: 0, flags: 0 };
        // SAFETY: the kernel reads one response.
        checked(unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) })?;
        if call.data.args[0] == LAST as u64 {
            return Ok(());
        }
    }
}

/// Opens what the caller wants to open, and gives it the descriptor, which is the answer, too (`SECCOMP_ADDFD_FLAG_SEND`,
/// Linux 5.14; the lane asks for 6.6). The path is opened as it is: a broker that confines it has more to do.
fn inject(listener: i32, call: &libc::seccomp_notif) -> Result<()> {
    let mut text = [0; PAGE];
    let path = read_path(call.pid as libc::pid_t, call.data.args[1], &mut text)?;
    let flags = call.data.args[2] as i32;
    // SAFETY: a path, and a new descriptor, which nobody else knows.
    let file = unsafe { OwnedFd::from_raw_fd(checked(libc::openat(libc::AT_FDCWD, path.as_ptr(), flags))?) };
    let give = libc::seccomp_notif_addfd {
        id: call.id,
        flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
        srcfd: file.as_raw_fd() as u32,
        newfd: 0,
        newfd_flags: 0,
    };
    // SAFETY: the kernel reads the structure.
    checked(unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const give) })?;
    Ok(())
}

/// ptrace, with a filter (`SECCOMP_RET_TRACE`) that stops the caller at `openat` and at nothing else: the tracer reads the
/// path and lets the caller go on. One stop for a call is the least that ptrace can do; that nobody changes the path
/// after it was read, as another thread could, a broker would have to see to besides.
pub fn ptrace_open(log: &Log, on: Where) -> Result<()> {
    Child::fork(|| {
        pin(&on[1..])?;
        let child = Child::fork(|| {
            pin(&on[..1])?;
            // SAFETY: stops until the tracer has seen it.
            unsafe {
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::raise(libc::SIGSTOP);
            }
            filter(Asked::Open.nr(), libc::SECCOMP_RET_TRACE, 0)?;
            Asked::Open.measure(log);
            Asked::Open.last();
            Ok(())
        })?;
        let mut text = [0; PAGE];
        loop {
            let mut status = 0;
            // SAFETY: all zero is a valid value.
            let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
            // SAFETY: the child is traced by this process; the kernel stores a status and the registers.
            unsafe {
                checked(libc::waitpid(child.0, &raw mut status, 0))?;
                if !libc::WIFSTOPPED(status) {
                    return Err("the traced process ended".into());
                }
                checked(libc::ptrace(libc::PTRACE_GETREGS, child.0, 0, &raw mut registers))?;
            }
            if status >> 8 != libc::SIGTRAP | libc::PTRACE_EVENT_SECCOMP << 8 {
                // SAFETY: sets options of the stopped child.
                checked(unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, child.0, 0, libc::PTRACE_O_TRACESECCOMP) })?;
            } else if registers.rdi == LAST as u64 {
                return Ok(()); // dropping the child kills it
            } else if read_path(child.0, registers.rsi, &mut text)? != FOLDER {
                return Err("the traced process opens something else".into());
            }
            // SAFETY: lets the stopped child run on, without the signal that stopped it.
            checked(unsafe { libc::ptrace(libc::PTRACE_CONT, child.0, 0, 0) })?;
        }
    })?
    .wait()
}

/// `PTRACE_SYSEMU`: a tracer sees the call's registers and answers instead of the kernel.
pub fn ptrace(log: &Log, on: Where) -> Result<()> {
    Child::fork(|| {
        pin(&on[1..])?;
        let child = Child::fork(|| {
            pin(&on[..1])?;
            // SAFETY: stops until the tracer has seen it.
            unsafe {
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::raise(libc::SIGSTOP);
            }
            answered(log, SLOW);
            getppid_with(LAST);
            Ok(())
        })?;
        loop {
            let mut status = 0;
            // SAFETY: all zero is a valid value.
            let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
            // SAFETY: the child is traced by this process; the kernel stores a status and the registers.
            unsafe {
                checked(libc::waitpid(child.0, &raw mut status, 0))?;
                if !libc::WIFSTOPPED(status) {
                    return Err("the traced process ended".into());
                }
                checked(libc::ptrace(libc::PTRACE_GETREGS, child.0, 0, &raw mut registers))?;
            }
            if registers.orig_rax as i64 == libc::SYS_getppid {
                if registers.rdi == LAST as u64 {
                    return Ok(()); // dropping the child kills it
                }
                let rax = std::mem::offset_of!(libc::user_regs_struct, rax);
                // SAFETY: sets one register of the stopped child.
                checked(unsafe { libc::ptrace(libc::PTRACE_POKEUSER, child.0, rax, ANSWER) })?;
            }
            // SAFETY: lets the stopped child run on, without the signal that stopped it.
            checked(unsafe { libc::ptrace(libc::PTRACE_SYSEMU, child.0, 0, 0) })?;
        }
    })?
    .wait()
}

/// Two eventfds between two processes or threads: what two wake-ups cost, and nothing else.
pub fn ping_pong(log: &Log, on: Where, broker: Broker) -> Result<()> {
    const GO_ON: u64 = 1;
    const STOP: u64 = 2;
    fn send(fd: &OwnedFd, value: u64) {
        // SAFETY: the kernel reads eight bytes.
        unsafe { libc::write(fd.as_raw_fd(), (&raw const value).cast(), 8) };
    }
    fn receive(fd: &OwnedFd) -> u64 {
        let mut value = 0u64;
        // SAFETY: the kernel stores eight bytes.
        unsafe { libc::read(fd.as_raw_fd(), (&raw mut value).cast(), 8) };
        value
    }
    // SAFETY: makes descriptors.
    let eventfd = || unsafe { checked(libc::eventfd(0, 0)).map(|fd| OwnedFd::from_raw_fd(fd)) };
    let (there, back) = (eventfd()?, eventfd()?);
    let echo = || -> Result<()> {
        pin(&on[1..])?;
        while receive(&there) != STOP {
            send(&back, GO_ON);
        }
        Ok(())
    };
    let measure = || -> Result<()> {
        pin(&on[..1])?;
        SLOW.run(log, || {
            send(&there, GO_ON);
            receive(&back);
        });
        send(&there, STOP);
        Ok(())
    };
    Child::fork(|| match broker {
        Broker::Thread => std::thread::scope(|scope| {
            scope.spawn(|| echo().is_ok());
            measure()
        }),
        Broker::Process => {
            let other = Child::fork(echo)?;
            measure()?;
            other.wait()
        }
    })?
    .wait()
}

/// How words go there and back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In two cache lines.
    Apart,
    /// In one.
    Together,
    /// In one, and the other side makes a call before it answers.
    WithCall,
    /// In one, twice, and the other side opens [`FOLDER`] before it answers, or closes it.
    WithOpen,
}

/// A word there and a word back between two CPUs that both spin: what the hardware asks for a question and an answer. With
/// a call, that is the plainest way to have a thread make it for another: no argument, no check, no seccomp, no sandbox.
pub fn words(log: &Log, on: Where, way: Way) -> Result<()> {
    #[repr(align(128))] // processors fetch lines in pairs
    struct Lines([[AtomicUsize; 8]; 4]);
    const STOP: usize = usize::MAX;
    static LINES: Lines = Lines([const { [const { AtomicUsize::new(0) }; 8] }; 4]);
    let (there, back) = (&LINES.0[0][0], if way == Way::Apart { &LINES.0[2][0] } else { &LINES.0[0][1] });
    let wait_for = |word: &AtomicUsize, seen: usize| loop {
        let value = word.load(Acquire);
        if value != seen {
            return value;
        }
        spin_loop();
    };
    Child::fork(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _ = pin(&on[1..]); // unpinned it is slower, and goes on
                let (mut seen, mut open) = (0, -1);
                while seen != STOP {
                    seen = wait_for(there, seen);
                    match way {
                        Way::Apart | Way::Together => {}
                        Way::WithCall => _ = std::hint::black_box(getppid()),
                        Way::WithOpen if open < 0 => open = open_folder(),
                        // SAFETY: a descriptor of this thread's own.
                        Way::WithOpen => open = unsafe { libc::close(open) } - 1,
                    }
                    back.store(seen, Release);
                }
            });
            pin(&on[..1])?;
            let mut count = 0;
            let mut ask = || {
                there.store(count + 1, Release);
                count = wait_for(back, count);
            };
            match way {
                Way::WithOpen => SLOW.run(log, || (0..2).for_each(|_| ask())),
                _ => FAST.run(log, ask),
            }
            there.store(STOP, Release);
            Ok(())
        })
    })?
    .wait()
}
