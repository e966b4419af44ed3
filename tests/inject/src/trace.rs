//! A tracer that has one call fail.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{Read, Seek};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Option of `prctl` that stands for a mark (`tests/guests/src/cases/injected.rs`).
const MARK: u64 = 0x6173_6365;
/// `include/uapi/linux/audit.h`
const AUDIT_ARCH_I386: u32 = 0x4000_0003;

/// What is run.
pub struct Subject {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// From where on its calls are counted: from where it opens this file, or from its first mark to its second.
    pub begins: Option<PathBuf>,
}

/// A call that is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    /// The task, in the order of birth; 0 is the supervisor.
    pub task: usize,
    /// Its place among the task's calls.
    pub nth: usize,
    /// What it is called.
    pub name: &'static str,
    /// What the descriptor is of that it reads or writes.
    pub file: String,
}

/// A call to fail. If another is made in its place, none does.
#[derive(Clone)]
pub struct Fault {
    /// The call.
    pub call: Call,
    /// What it is to fail with.
    pub errno: Errno,
}

/// What a program did.
pub struct Run {
    /// The calls that are counted.
    pub calls: Vec<Call>,
    /// What it printed.
    pub output: String,
    /// Its exit status, or its signal plus 128.
    pub status: i32,
    /// The call that failed, if it was made.
    pub failed: Option<Call>,
    /// Whether it had to be killed, or something that it had started.
    pub hung: bool,
}

/// What is known of a task.
#[derive(Default)]
struct Task {
    /// Its place in the order of birth.
    order: usize,
    /// Its calls so far.
    calls: usize,
    /// Its registers when it entered the call that is to fail.
    failing: Option<libc::user_regs_struct>,
    /// Whether it has stopped for the first time.
    seen: bool,
}

/// Runs a program, has a call fail, and waits until it and all that it started have ended.
///
/// # Errors
/// It cannot be started or traced.
pub fn run(subject: &Subject, fault: Option<Fault>, limit: Duration) -> Result<Run> {
    let mut output = tempfile::tempfile()?;
    let mut command = Command::new(&subject.program);
    command.args(&subject.arguments).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
    command.process_group(0);
    // SAFETY: the hook makes one system call.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    let child = command.spawn().with_context(|| subject.program.display().to_string())?;
    let main = Pid::from_raw(child.id().try_into()?);
    ensure!(matches!(waitpid(main, None)?, WaitStatus::Stopped(..)), "it did not stop");
    ptrace::setoptions(
        main,
        Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_EXITKILL,
    )?;
    let (ended, has_ended) = mpsc::channel::<()>();
    let guard = thread::spawn(move || {
        let late = has_ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
        // The group is not gone: the tracer has not reaped all of it, or it would have said so.
        late && killpg(main, Signal::SIGKILL).is_ok()
    });
    let begins = subject.begins.clone();
    let mut tracer =
        Tracer { main, fault, begins, marks: 0, tasks: HashMap::new(), born: 0, calls: Vec::new(), failed: None };
    tracer.tasks.insert(main, Task { seen: true, ..Task::default() });
    let status = tracer.follow();
    drop(ended);
    let hung = guard.join().unwrap_or(true);
    let mut text = String::new();
    output.rewind()?;
    output.read_to_string(&mut text)?;
    Ok(Run { calls: tracer.calls, output: text, status: status?, failed: tracer.failed, hung })
}

struct Tracer {
    main: Pid,
    fault: Option<Fault>,
    begins: Option<PathBuf>,
    /// How many marks were passed.
    marks: usize,
    tasks: HashMap<Pid, Task>,
    /// Tasks born since the first mark.
    born: usize,
    calls: Vec<Call>,
    failed: Option<Call>,
}

impl Tracer {
    /// Follows all tasks until there is none.
    fn follow(&mut self) -> Result<i32> {
        let mut status = None;
        go_on(self.main, None)?;
        loop {
            match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::PtraceSyscall(pid)) => {
                    // It can be killed while it is stopped; then there is nothing to look at.
                    match self.call(pid) {
                        Ok(()) | Err(Errno::ESRCH) => {}
                        Err(error) => return Err(error.into()),
                    }
                    go_on(pid, None)?;
                }
                Ok(WaitStatus::PtraceEvent(pid, ..)) => go_on(pid, None)?,
                Ok(WaitStatus::Stopped(pid, signal)) => {
                    // The first stop is what tracing begins with.
                    let first = !std::mem::replace(&mut self.task(pid).seen, true);
                    go_on(pid, (!first || signal != Signal::SIGSTOP).then_some(signal))?;
                }
                Ok(WaitStatus::Exited(pid, code)) => self.gone(pid, code, &mut status),
                Ok(WaitStatus::Signaled(pid, signal, _)) => self.gone(pid, 128 + signal as i32, &mut status),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => return status.context("the program's end was not seen"),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn gone(&mut self, pid: Pid, code: i32, status: &mut Option<i32>) {
        self.tasks.remove(&pid);
        if pid == self.main {
            *status = Some(code);
        }
    }

    fn task(&mut self, pid: Pid) -> &mut Task {
        let (born, marks) = (&mut self.born, self.marks);
        self.tasks.entry(pid).or_insert_with(|| {
            *born += usize::from(marks > 0);
            // Those before the mark are nobody's.
            Task { order: if marks > 0 { *born } else { usize::MAX }, ..Task::default() }
        })
    }

    /// A task enters or leaves a call.
    fn call(&mut self, pid: Pid) -> nix::Result<()> {
        let info = syscall_info(pid)?;
        let i386 = info.arch == AUDIT_ARCH_I386;
        match info.op {
            libc::PTRACE_SYSCALL_INFO_ENTRY => {
                // SAFETY: the kernel says which of the union's fields it has filled.
                let entry = unsafe { info.u.entry };
                if self.main == pid && entry.args[0] == MARK && name(entry.nr, i386) == "prctl" {
                    self.marks += 1;
                    return Ok(());
                }
                if self.marks == 0 && name(entry.nr, i386) == "openat" {
                    let opened = text(pid, entry.args[1]);
                    self.marks += usize::from(opened.is_some() && opened == self.begins);
                }
                if self.marks != 1 {
                    return Ok(());
                }
                let planned = self.fault.as_ref().map(|fault| fault.call.clone());
                let task = self.task(pid);
                let name = name(entry.nr, i386);
                let link = || std::fs::read_link(format!("/proc/{pid}/fd/{}", entry.args[0] as u32));
                let file = if ["read", "write"].contains(&name) { link().unwrap_or_default() } else { PathBuf::new() };
                // Without an inode's number, which is another in each run.
                let file = file.to_string_lossy().trim_end_matches(|c: char| c.is_ascii_digit() || c == ']').to_owned();
                let call = Call { task: task.order, nth: task.calls, name, file };
                task.calls += 1;
                if planned.as_ref() == Some(&call) {
                    let registers = ptrace::getregs(pid)?;
                    task.failing = Some(registers);
                    // A `read` of no descriptor in its place: strict mode, too, lets it pass.
                    let (read, mut instead) = (if i386 { 3 } else { 0 }, registers);
                    instead.orig_rax = read;
                    *(if i386 { &mut instead.rbx } else { &mut instead.rdi }) = u64::from(u32::MAX);
                    ptrace::setregs(pid, instead)?;
                    self.failed = Some(call.clone());
                }
                self.calls.push(call);
            }
            libc::PTRACE_SYSCALL_INFO_EXIT => {
                if let (Some(mut registers), Some(fault)) = (self.task(pid).failing.take(), &self.fault) {
                    registers.rax = i64::from(-(fault.errno as i32)) as u64;
                    ptrace::setregs(pid, registers)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// A path in a task's memory; `None` if it is not there, or very long.
fn text(pid: Pid, at: u64) -> Option<PathBuf> {
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut bytes = [0; 256];
    let len = memory.read_at(&mut bytes, at).ok()?;
    let end = bytes[..len].iter().position(|byte| *byte == 0)?;
    Some(PathBuf::from(OsString::from_vec(bytes[..end].to_vec())))
}

/// What the kernel says of the call that a task has stopped at. (nix 0.30 has this, and asks for no bytes of it.)
fn syscall_info(pid: Pid) -> nix::Result<libc::ptrace_syscall_info> {
    let mut info = std::mem::MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    // SAFETY: the kernel writes at most `size` bytes there.
    Errno::result(unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid.as_raw(), size, info.as_mut_ptr()) })?;
    // SAFETY: integers and a union of such, zero where the kernel wrote nothing.
    Ok(unsafe { info.assume_init() })
}

/// Lets a task go on to its next call; one that is gone need not.
fn go_on(pid: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::syscall(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What a call is called.
fn name(nr: u64, i386: bool) -> &'static str {
    let nr = nr as usize;
    if nr == 462 {
        return "mseal"; // younger than the list
    }
    let name = if i386 {
        syscalls::x86::Sysno::new(nr).map(|nr| nr.name())
    } else {
        syscalls::x86_64::Sysno::new(nr).map(|nr| nr.name())
    };
    name.unwrap_or("unknown")
}
