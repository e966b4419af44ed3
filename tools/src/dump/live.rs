//! Live processes: a helper outside the sandbox looks with `ptrace(2)` at the moment of a crash.
//!
//! It seizes the tasks without `PTRACE_O_EXITKILL`: if the helper dies, the kernel lets go of them, and with a signal that was
//! about to be delivered goes on as it would have. A stop is fatal when its signal has the default action by then, which is when
//! the runtime has handed it on, so the registers are the original ones; or when a task in strict mode exits by SIGKILL in a
//! call that strict mode does not know.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use ascetic::fault::classify::Class;
use ascetic::fault::record::{Arch, CODE_AROUND, STACK_MAX, THREAD_STACK_MAX};

use super::core::{call_args, classified};
use super::notes::{self, SigInfo};
use super::{Dump, Exception, Facts, Origin, Registers, Role, Thread, Way};

/// Bytes below the stack pointer that belong to a function (System V ABI, x86_64).
const RED_ZONE: u64 = 128;
/// Bytes of extended state, at most.
const EXTENDED_MAX: usize = 64 << 10;
/// Looks at a task that is to stop, a millisecond apart.
const STOP_PATIENCE: u32 = 200;
/// Signals that a crash is: those of faults, of abort, and of denied calls.
const CRASH: [i32; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT, libc::SIGSYS];

/// `SECCOMP_MODE_DEAD` (`kernel/seccomp.c`)
const DEAD: u64 = 3;

/// A task cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum NotTraced {
    /// The kernel refused.
    #[error("task {pid} cannot be traced: {error}; {why}")]
    Refused {
        /// Its process id.
        pid: u32,
        /// What the kernel said.
        error: io::Error,
        /// What can be the reason.
        why: String,
    },
    /// There is no such task.
    #[error("there is no task {0}")]
    Gone(u32),
}

/// The tasks that a helper has seized. Tracing is a thread's: it is of use only in the thread that made it; and that must not be
/// one of the process whose children they are, which could hear of their ends no more.
#[derive(Debug, Default)]
pub struct Tracer {
    tasks: BTreeMap<u32, Role>,
    /// The first guest's.
    process: u32,
}

/// A raw request. What `data` must be, the request says.
///
/// # Safety
///
/// `data` is what the request takes.
unsafe fn ptrace(request: libc::c_uint, pid: u32, addr: usize, data: usize) -> io::Result<libc::c_long> {
    // SAFETY: the caller's.
    match unsafe { libc::ptrace(request, pid as libc::pid_t, addr, data) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// A register set; empty if there is none.
fn register_set(pid: u32, kind: u32, room: usize) -> Vec<u8> {
    let mut bytes = vec![0; room];
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: room };
    // SAFETY: the kernel stores at most as many bytes as the vector says, and how many.
    match unsafe { ptrace(libc::PTRACE_GETREGSET, pid, kind as usize, (&raw mut vector) as usize) } {
        Ok(_) => bytes.truncate(vector.iov_len),
        Err(_) => bytes.clear(),
    }
    bytes
}

/// What a wait says of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// It is about to get a signal.
    Signal(i32),
    /// It is about to exit.
    Exit,
    /// Another stop.
    Stop,
    /// It has ended.
    Ended,
}

/// Waits for a task (all if `None`).
fn wait(pid: Option<u32>, block: bool) -> io::Result<Option<(u32, Event)>> {
    let mut status = 0;
    // This thread's, and nobody else's: whoever uses the library has children, too.
    let flags = libc::__WALL | libc::__WNOTHREAD | if block { 0 } else { libc::WNOHANG };
    let whom = pid.map_or(-1, |pid| pid as libc::pid_t);
    // SAFETY: the kernel stores a word.
    let got = unsafe { libc::waitpid(whom, &raw mut status, flags) };
    if got <= 0 {
        return if got == 0 { Ok(None) } else { Err(io::Error::last_os_error()) };
    }
    let event = match (libc::WIFSTOPPED(status), status >> 16) {
        (false, _) => Event::Ended,
        (true, 0) => Event::Signal(libc::WSTOPSIG(status)),
        (true, libc::PTRACE_EVENT_EXIT) => Event::Exit,
        (true, _) => Event::Stop,
    };
    Ok(Some((got as u32, event)))
}

/// A field of `/proc/<pid>/status`, as a hexadecimal or decimal number.
fn status(pid: u32, name: &str, radix: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    u64::from_str_radix(line.trim(), radix).ok()
}

/// Why the kernel may have refused to trace a task.
fn reason(error: &io::Error) -> String {
    if error.raw_os_error() != Some(libc::EPERM) {
        return "it may have ended".to_owned();
    }
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match scope.trim() {
        "3" => "Yama's ptrace_scope is 3: nobody may trace until the next boot",
        "2" => "Yama's ptrace_scope is 2: that takes CAP_SYS_PTRACE",
        "1" => "Yama's ptrace_scope is 1: be an ancestor, or have the embedder name you (Config::tracer); and be the same user, of a \
                dumpable process; or have CAP_SYS_PTRACE",
        _ => "somebody else may trace it; or you are not the same user, or it is not dumpable, and you lack CAP_SYS_PTRACE",
    }
    .to_owned()
}

impl Tracer {
    /// Seizes tasks. They go on running.
    ///
    /// # Errors
    /// One of them cannot be traced. Those that already are go on being so until this process ends.
    pub fn seize(pids: &[u32]) -> Result<Self, NotTraced> {
        let mut this = Self::default();
        let options =
            libc::PTRACE_O_TRACEEXIT | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK;
        for pid in pids {
            // SAFETY: the options are a number.
            unsafe { ptrace(libc::PTRACE_SEIZE, *pid, 0, options as usize) }.map_err(|error| {
                match error.raw_os_error() {
                    Some(libc::ESRCH) => NotTraced::Gone(*pid),
                    _ => NotTraced::Refused { pid: *pid, why: reason(&error), error },
                }
            })?;
            this.add(*pid);
        }
        Ok(this)
    }

    fn add(&mut self, pid: u32) {
        let role = if status(pid, "Seccomp", 10) == Some(0) { Role::Trusted } else { Role::Guest };
        if role == Role::Guest && self.process == 0 {
            self.process = pid;
        }
        self.tasks.insert(pid, role);
    }

    /// Follows the tasks until all have ended. When one crashes, `look` is given what there is to see, while the tasks stand
    /// still; then they go on. `begin` and `end` are called around each time that they do.
    ///
    /// # Errors
    /// The kernel's.
    pub fn follow(&mut self, begin: impl Fn(), end: impl Fn(), mut look: impl FnMut(&Dump)) -> io::Result<()> {
        let mut done = false;
        loop {
            let (pid, event) = match wait(None, true) {
                Ok(Some(event)) => event,
                Ok(None) => continue,
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if event == Event::Ended {
                self.tasks.remove(&pid);
                continue;
            }
            // A thread that was born since.
            let role = *self.tasks.entry(pid).or_insert(Role::Guest);
            begin();
            let crash = if done { None } else { crash(pid, role, event) };
            if let Some(exception) = crash {
                done = true;
                self.capture(pid, exception, &mut look);
            }
            go_on(pid, event);
            end();
        }
    }

    /// Stops the other tasks, shows everything, and lets the others go on.
    fn capture(&mut self, pid: u32, exception: Exception, look: &mut impl FnMut(&Dump)) {
        let others: Vec<u32> = self.tasks.keys().copied().filter(|other| *other != pid).collect();
        let stopped: Vec<(u32, Option<Event>)> = others.into_iter().map(|other| (other, stop(other))).collect();
        let mut facts = Facts::of_process(pid);
        facts.process = if self.process == 0 { pid } else { self.process };
        facts.time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        for (task, role) in &mut self.tasks {
            // A thread that was born since has become what it is.
            if *role == Role::Guest && status(*task, "Seccomp", 10) == Some(0) {
                *role = Role::Trusted;
            }
            facts.add_task(*task, *role);
        }
        let arch = general(pid).map_or(Arch::X86_64, |(arch, _, _)| arch);
        let mut dump = Dump::new(arch, Way::Ptrace);
        dump.add_facts(&facts);
        self.thread(&mut dump, &facts, pid, STACK_MAX);
        for (other, event) in &stopped {
            if event.is_some_and(|event| event != Event::Ended) {
                self.thread(&mut dump, &facts, *other, THREAD_STACK_MAX);
            }
        }
        dump.add_tasks(&facts, "it did not stop in time");
        let class = if exception.denied.is_some() { Class::DeniedCall } else { classified(&dump, &exception) };
        dump.exception = Some(Exception { class, ..exception });
        look(&dump);
        for (other, event) in stopped {
            match event {
                Some(Event::Ended) => drop(self.tasks.remove(&other)),
                Some(event) => go_on(other, event),
                None => {}
            }
        }
    }

    fn thread(&self, dump: &mut Dump, facts: &Facts, pid: u32, stack: usize) {
        let Some((arch, general, _)) = general(pid) else { return };
        let xsave = register_set(pid, object::elf::NT_X86_XSTATE, EXTENDED_MAX);
        let registers = Registers { general, extended: xsave };
        let at = |place: Option<u64>| place.unwrap_or(0);
        let (pc, sp, fp) = (at(registers.pc(arch)), at(registers.sp(arch)), at(registers.fp(arch)));
        if let Ok(memory) = File::open(format!("/proc/{pid}/mem")) {
            copy(dump, &memory, pc.saturating_sub(CODE_AROUND as u64), 2 * CODE_AROUND);
            copy(dump, &memory, sp.saturating_sub(RED_ZONE), stack);
            if dump.read(sp, 1).is_empty() {
                copy(dump, &memory, fp, stack); // the stack pointer leads nowhere
            }
        }
        let task = facts.tasks.iter().find(|task| task.id == pid);
        dump.threads.push(Thread {
            id: pid,
            name: task.map(|task| task.name.clone()).unwrap_or_default(),
            role: task.map_or(Role::Guest, |task| task.role),
            registers: Ok(registers),
            origin: Origin::Kernel,
        });
    }
}

/// Copies what there is of a range, page by page.
fn copy(dump: &mut Dump, memory: &File, from: u64, len: usize) {
    let mut page = [0; 4096];
    let (mut at, end) = (from, from.saturating_add(len as u64));
    while at < end {
        let want = (4096 - at % 4096).min(end - at) as usize;
        match memory.read_at(&mut page[..want], at) {
            Ok(n) if n > 0 => dump.add_memory(at, &page[..n]),
            _ => {}
        }
        at += want as u64;
    }
}

/// General registers of a task that has stopped, and the number of the call that it is in.
fn general(pid: u32) -> Option<(Arch, Vec<u64>, u64)> {
    let bytes = register_set(pid, object::elf::NT_PRSTATUS, 512);
    let (arch, size) =
        if bytes.len() == 8 * notes::order(Arch::X86_64).len() { (Arch::X86_64, 8) } else { (Arch::X86, 4) };
    let word = |chunk: &[u8]| chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let values: Vec<u64> = bytes.chunks_exact(size).map(word).collect();
    let orig = notes::order(arch).iter().position(|name| *name == notes::ORIG)?;
    Some((arch, notes::general(arch, &values), *values.get(orig)?))
}

/// Has a task stop, and waits a while for it: what it then is about to do.
fn stop(pid: u32) -> Option<Event> {
    // SAFETY: the request takes nothing.
    unsafe { ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0) }.ok()?;
    for _ in 0..STOP_PATIENCE {
        match wait(Some(pid), false) {
            Ok(Some((_, event))) => return Some(event),
            Ok(None) => std::thread::sleep(std::time::Duration::from_millis(1)),
            Err(_) => return None,
        }
    }
    None
}

/// Lets a task that has stopped go on: to get its signal, to exit, or as before.
fn go_on(pid: u32, event: Event) {
    let signal = if let Event::Signal(signal) = event { signal } else { 0 };
    // SAFETY: the signal is a number. A task that was killed meanwhile goes on by itself.
    let _ = unsafe { ptrace(libc::PTRACE_CONT, pid, 0, signal as usize) };
}

/// Whether a stop is that of a crash, and which.
fn crash(pid: u32, role: Role, event: Event) -> Option<Exception> {
    let (arch, general, call) = general(pid)?;
    let registers = Registers { general, extended: Vec::new() };
    let exception = |signal, info: Option<SigInfo>, denied| Exception {
        thread: pid,
        signal,
        code: info.as_ref().map(|info| info.code),
        address: info.map_or(0, |info| if info.code > 0 { info.address } else { 0 }),
        pc: registers.pc(arch).unwrap_or(0),
        class: Class::Other,
        denied,
        origin: Origin::Kernel,
    };
    match event {
        Event::Signal(signal) if CRASH.contains(&signal) => {
            let handled = status(pid, "SigCgt", 16)? | status(pid, "SigIgn", 16)?;
            if handled >> (signal - 1) & 1 == 1 {
                return None;
            }
            let info = siginfo(pid);
            let sys = info.as_ref().filter(|info| info.signal == libc::SIGSYS && info.code > 0);
            let denied = sys.map(|info| (u64::from(info.call as u32), call_args(arch, &registers)));
            Some(exception(signal, info, denied))
        }
        Event::Exit => {
            let mut code: libc::c_ulong = 0;
            // SAFETY: the kernel stores a word.
            unsafe { ptrace(libc::PTRACE_GETEVENTMSG, pid, 0, (&raw mut code) as usize) }.ok()?;
            if code & 0x7f != libc::SIGKILL as libc::c_ulong {
                return None;
            }
            // Newer kernels mark a task that seccomp kills (`SECCOMP_MODE_DEAD`, since 5.17).
            let mode = status(pid, "Seccomp", 10);
            let nr = if arch == Arch::X86 { u64::from(call as u32) } else { call };
            let denied = match mode {
                Some(DEAD) => true,
                Some(1) => role == Role::Guest && !strict_allows(arch, nr) && nr as i32 != -1,
                _ => false,
            };
            Some(exception(libc::SIGKILL, None, denied.then(|| (nr, call_args(arch, &registers)))))
        }
        _ => None,
    }
}

/// The calls of strict mode (`kernel/seccomp.c`, `mode1_syscalls`): read, write, exit, sigreturn.
fn strict_allows(arch: Arch, nr: u64) -> bool {
    match arch {
        Arch::X86_64 => [0, 1, 60, 15].contains(&nr),
        Arch::X86 => [3, 4, 1, 119].contains(&nr),
    }
}

/// What is known of the signal that a task is about to get. In this program's layout, whatever the task's is.
fn siginfo(pid: u32) -> Option<SigInfo> {
    // SAFETY: the structure is numbers only.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel stores one.
    unsafe { ptrace(libc::PTRACE_GETSIGINFO, pid, 0, (&raw mut info) as usize) }.ok()?;
    // SAFETY: its bytes are initialised: zeros, or the kernel's.
    let bytes = unsafe { std::slice::from_raw_parts((&raw const info).cast::<u8>(), size_of_val(&info)) };
    notes::read_siginfo(if cfg!(target_pointer_width = "64") { Arch::X86_64 } else { Arch::X86 }, bytes)
}

/// Traces tasks until all have ended; says when it has begun. What it saw of a crash.
///
/// # Errors
/// They cannot be traced, or none crashed.
pub fn watch(pids: &[u32], begun: &std::sync::mpsc::Sender<()>) -> Result<Dump, String> {
    let tracer = Tracer::seize(pids).map_err(|error| error.to_string());
    let _ = begun.send(());
    let mut found = None;
    let followed = tracer?.follow(|| (), || (), |dump| found = Some(dump.clone()));
    followed.map_err(|error| error.to_string())?;
    found.ok_or_else(|| "no task crashed".to_owned())
}
