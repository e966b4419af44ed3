//! Live processes: a helper outside the sandbox looks with `ptrace(2)` at the moment of a crash.
//!
//! It seizes the tasks without `PTRACE_O_EXITKILL`: if the helper dies, the kernel lets go of them, and with a signal that was
//! about to be delivered goes on as it would have. A stop is fatal when its signal has the default action by then, which is when
//! the runtime has handed it on, so the registers are the original ones; or when a task in strict mode exits by SIGKILL in a
//! call that strict mode does not know. What somebody sent does not repeat when it is handed on: then what was seen before the
//! handler ran counts.
//!
//! A guest that somebody killed, and a trusted thread, crashed only if no guest ended by itself: that is how a supervisor ends
//! the rest of a sandbox. One that ends it early looks like anybody else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use ascetic::fault::classify::Class;
use ascetic::fault::record::Arch;
use object::elf::{NT_PRFPREG, NT_PRSTATUS, NT_PRXFPREG, NT_X86_XSTATE};

use super::core::{call_args, classified};
use super::notes::{self, SigInfo};
use super::{Dump, Exception, Facts, Origin, Registers, Role, Thread, Way, reading};

/// Bytes of extended state, at most.
const EXTENDED_MAX: usize = 64 << 10;
/// How long memory may take to be read, and files, unless somebody says.
const PATIENCE: Duration = Duration::from_millis(500);
/// Looks at a task that is to stop, a millisecond apart.
const STOP_PATIENCE: u32 = 200;
/// Signals that a crash is: those of faults, of abort, and of denied calls.
const CRASH: [i32; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT, libc::SIGSYS];

/// `SECCOMP_MODE_DEAD` (`kernel/seccomp.c`)
const DEAD: u64 = 3;
/// `TRAP_TRACE` (`include/uapi/asm-generic/siginfo.h`)
const TRAP_TRACE: i32 = 2;
/// `PTRACE_GET_SYSCALL_INFO`, since Linux 5.3
const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
/// `AUDIT_ARCH_I386` (`include/uapi/linux/audit.h`)
const AUDIT_ARCH_I386: u32 = 0x4000_0003;

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
    /// It is this process's own child: who waited for it here would take its end from its supervisor.
    #[error("task {0} is a child of this process, which must not trace it")]
    Own(u32),
}

/// The tasks that a helper has seized. Tracing is a thread's: it is of use only in the thread that made it; and that must not be
/// one of the process whose children they are, which could hear of their ends no more.
#[derive(Debug, Default)]
pub struct Tracer {
    tasks: BTreeMap<u32, Role>,
    /// The first guest's.
    process: u32,
    /// What was on its way to a handler and does not repeat, by task.
    caught: BTreeMap<u32, Seen>,
    /// How many guests are about to exit or have, and trusted threads that were killed.
    ends: [u32; 2],
    /// Who is about to exit.
    exiting: BTreeSet<u32>,
    /// How long memory may take to be read, and files.
    patience: Duration,
    /// A reading was not done in time, and still goes on.
    late: bool,
}

/// A signal, and the registers that it met.
#[derive(Debug)]
struct Seen {
    signal: i32,
    info: Option<SigInfo>,
    arch: Arch,
    registers: Registers,
}

impl Seen {
    fn of(pid: u32, signal: i32) -> Option<Self> {
        let (arch, registers, _) = registers(pid)?;
        Some(Self { signal, info: siginfo(pid), arch, registers })
    }

    /// As the handler finds it: in a call that the signal interrupts, the kernel has yet to say so.
    fn caught(pid: u32, signal: i32) -> Option<Self> {
        let mut seen = Self::of(pid, signal)?;
        let in_call = registers(pid)?.2 as i32 >= 0;
        if in_call && RESTARTED.contains(&-result(seen.arch, &seen.registers)) {
            seen.registers.set_result(seen.arch, -libc::EINTR);
        }
        Some(seen)
    }
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
    /// A signal such as SIGSTOP has stopped it: it is not to go on before SIGCONT.
    Group,
    /// It has ended, by this signal if it is not 0.
    Ended(i32),
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
        (false, _) => Event::Ended(if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 }),
        (true, 0) => Event::Signal(libc::WSTOPSIG(status)),
        (true, libc::PTRACE_EVENT_EXIT) => Event::Exit,
        (true, libc::PTRACE_EVENT_STOP) if libc::WSTOPSIG(status) != libc::SIGTRAP => Event::Group,
        (true, _) => Event::Stop,
    };
    Ok(Some((got as u32, event)))
}

/// A task that is in no strict mode and has no handlers is a trusted thread. Who supervises may be in a filter, and so T.
fn role(pid: u32) -> Role {
    let strict = matches!(status(pid, "Seccomp", 10), Some(1 | DEAD));
    if !strict && status(pid, "SigCgt", 16) == Some(0) { Role::Trusted } else { Role::Guest }
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
    /// One of them cannot be traced. Those that already are go on being so until this thread ends.
    pub fn seize(pids: &[u32]) -> Result<Self, NotTraced> {
        let mut this = Self { patience: PATIENCE, ..Self::default() };
        let options =
            libc::PTRACE_O_TRACEEXIT | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK;
        for pid in pids {
            if status(*pid, "PPid", 10) == Some(std::process::id().into()) {
                return Err(NotTraced::Own(*pid));
            }
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

    /// How long the guest's memory may take to be read, and as long again what files say: what is not there by then is missing in
    /// the dump.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    fn add(&mut self, pid: u32) {
        let role = role(pid);
        if role == Role::Guest && self.process == 0 {
            self.process = pid;
        }
        self.tasks.insert(pid, role);
    }

    /// Follows the tasks until all have ended, or something could not be read in time: whoever still reads then keeps the tasks
    /// from ending (`reading.rs`), until this process exits. When one crashes, `look` is given what there was to see while the
    /// tasks stood still: once, at the end if only then it is clear that it was a crash. `begin` and `end` are called around
    /// each time that tasks stand still.
    ///
    /// # Errors
    /// The kernel's.
    pub fn follow(&mut self, begin: impl Fn(), end: impl Fn(), mut look: impl FnMut(&Dump)) -> io::Result<()> {
        let mut done = false;
        let mut killed: Option<Dump> = None;
        loop {
            let (pid, event) = match wait(None, true) {
                Ok(Some(event)) => event,
                Ok(None) => continue,
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            begin();
            let mut dump = None;
            if self.ends(pid, event) {
                killed = None; // the others were killed because it ended
            }
            if !done && let Some(exception) = self.crash(pid, event) {
                let kill = exception.signal == libc::SIGKILL && exception.denied.is_none();
                if !kill || killed.is_none() {
                    dump = self.capture(pid, event, exception).map(|dump| (dump, kill));
                }
            }
            go_on(pid, event);
            self.forget(pid, event);
            end();
            match dump {
                Some((dump, true)) => killed = Some(dump),
                Some((dump, false)) => {
                    done = true;
                    look(&dump);
                }
                None => {}
            }
            if self.late {
                break;
            }
        }
        if let Some(dump) = killed.filter(|_| !done) {
            look(&dump);
        }
        Ok(())
    }
    /// Notes what a task has come to. Whether it is a guest that ends by itself.
    fn ends(&mut self, pid: u32, event: Event) -> bool {
        // A thread that was born since.
        let known = self.tasks.entry(pid).or_insert(Role::Guest);
        let signal = match event {
            Event::Exit => {
                *known = role(pid);
                self.exiting.insert(pid);
                exit_signal(pid)
            }
            // Who is killed need not stop before (`ptrace(2)`, BUGS).
            Event::Ended(signal) if !self.exiting.contains(&pid) => Some(signal),
            _ => return false,
        };
        let [guests, trusted] = &mut self.ends;
        match known {
            Role::Guest => *guests += 1,
            Role::Trusted if signal == Some(libc::SIGKILL) => *trusted += 1,
            Role::Trusted => {}
        }
        *known == Role::Guest && signal == Some(0)
    }

    /// Forgets a task that has ended.
    fn forget(&mut self, pid: u32, event: Event) {
        if matches!(event, Event::Ended(_)) {
            self.tasks.remove(&pid);
            self.caught.remove(&pid);
            self.exiting.remove(&pid);
        }
    }

    /// Stops the other tasks, looks at everything, and lets the others go on. `None` if it turns out that the task was killed
    /// because a guest had ended.
    fn capture(&mut self, pid: u32, event: Event, mut exception: Exception) -> Option<Dump> {
        let others: Vec<u32> = self.tasks.keys().copied().filter(|other| *other != pid).collect();
        let mut all = vec![(pid, event)];
        all.extend(others.into_iter().filter_map(|pid| Some((pid, stop(pid)?))));
        let mut by_itself = false;
        for &(other, event) in &all[1..] {
            by_itself |= self.ends(other, event);
        }
        // A supervisor kills a guest first, and then its T.
        if self.tasks.get(&pid) == Some(&Role::Trusted) {
            let mut guests = all[1..].iter().filter(|(other, _)| self.tasks.get(other) == Some(&Role::Guest));
            let ending = guests.find(|(_, event)| matches!(event, Event::Exit | Event::Ended(_))).copied();
            if let Some(crash) = ending.and_then(|(guest, event)| self.crash(guest, event)) {
                exception = crash;
            }
        }
        let stands = |(pid, event): &(u32, Event)| (!matches!(event, Event::Ended(_))).then_some(*pid);
        let there: Vec<u32> = all.iter().filter_map(stands).collect();
        let dump = (!by_itself).then(|| self.dump(&exception, &there));
        for &(other, event) in &all[1..] {
            go_on(other, event);
            self.forget(other, event);
        }
        dump
    }

    /// What there is to see of tasks that stand still.
    fn dump(&mut self, exception: &Exception, there: &[u32]) -> Dump {
        let pid = exception.thread;
        let seen = self.caught.remove(&pid).filter(|seen| seen.signal == exception.signal);
        let seen = seen.map(|seen| (pid, seen.arch, seen.registers));
        let now = |pid: &u32| registers(*pid).map(|(arch, registers, _)| (*pid, arch, registers));
        let first = seen.or_else(|| now(there.iter().find(|other| **other == pid)?));
        let others = there.iter().filter(|other| **other != pid).filter_map(now);
        let threads: Vec<_> = first.into_iter().chain(others).collect();
        // All have the same memory; who has ended has none.
        let whose = threads.first().map_or(pid, |(there, ..)| *there);
        let mut late = Vec::new();
        let mut facts = reading::within(self.patience, move || Facts::of_process(whose)).unwrap_or_else(|| {
            late.push(format!("what /proc says of {whose}: not read in {:?}", self.patience));
            Facts::default()
        });
        facts.process = if self.process == 0 { pid } else { self.process };
        facts.time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        for (task, role) in &mut self.tasks {
            if there.contains(task) {
                *role = self::role(*task); // a thread that was born since has become what it is
            }
            facts.add_task(*task, *role);
        }
        let arch = threads.first().map_or(Arch::X86_64, |(_, arch, _)| *arch);
        let places: Vec<_> = threads.iter().map(|(id, _, registers)| (*id, registers.clone())).collect();
        let mut dump = Dump::new(arch, Way::Ptrace);
        dump.add_facts(&facts);
        if threads.first().is_none_or(|(first, ..)| *first != pid) {
            let role = self.tasks.get(&pid).copied().unwrap_or(Role::Guest);
            let registers = Err("it was killed, and gone before anybody could look".to_owned());
            dump.threads.push(Thread { id: pid, name: String::new(), role, registers, origin: Origin::Kernel });
        }
        for (id, _, registers) in threads {
            thread(&mut dump, &facts, id, registers);
        }
        // What the address of the fault leads to is of interest, too.
        dump.exception = Some(exception.clone());
        if !reading::memory(self.patience, &mut dump, pid, places) {
            late.push(format!("memory that registers lead to: not read in {:?}", self.patience));
        }
        self.late |= !late.is_empty();
        dump.missing.extend(late);
        dump.add_tasks(&facts, "it did not stop in time");
        let class = if exception.denied.is_some() { Class::DeniedCall } else { classified(&dump, exception) };
        if exception.denied.is_some() && arch == Arch::X86_64 && call_arch(pid) == Some(Arch::X86) {
            dump.annotations.push((Origin::Kernel, "denied.abi".to_owned(), "i386".to_owned()));
        }
        dump.exception = Some(Exception { class, ..exception.clone() });
        dump
    }

    /// Whether a stop is that of a crash, and which.
    fn crash(&mut self, pid: u32, event: Event) -> Option<Exception> {
        match event {
            Event::Signal(signal) if CRASH.contains(&signal) => self.signalled(pid, signal),
            Event::Exit => self.killed(pid, exit_signal(pid)?),
            Event::Ended(signal) if !self.exiting.contains(&pid) => self.killed(pid, signal),
            _ => None,
        }
    }

    fn signalled(&mut self, pid: u32, signal: i32) -> Option<Exception> {
        let handled = status(pid, "SigCgt", 16)? | status(pid, "SigIgn", 16)?;
        if handled >> (signal - 1) & 1 == 1 {
            let code = siginfo(pid)?.code;
            if code <= 0 || (signal, code) == (libc::SIGTRAP, TRAP_TRACE) {
                self.caught.insert(pid, Seen::caught(pid, signal)?);
            } else if self.caught.get(&pid).is_some_and(|seen| seen.signal == signal) {
                self.caught.remove(&pid); // an instruction raised this one, which repeats
            }
            return None;
        }
        let now = Seen::of(pid, signal)?;
        let seen = self.caught.get(&pid).filter(|seen| seen.signal == signal).unwrap_or(&now);
        let info = seen.info.as_ref();
        let sys = info.filter(|info| info.signal == libc::SIGSYS && info.code > 0);
        let call = call_arch(pid).unwrap_or(seen.arch);
        Some(Exception {
            thread: pid,
            signal,
            code: info.map(|info| info.code),
            address: info.map_or(0, |info| if info.code > 0 { info.address } else { 0 }),
            pc: seen.registers.pc(seen.arch).unwrap_or(0),
            class: Class::Other,
            denied: sys.map(|info| (u64::from(info.call as u32), arguments(seen.arch, &seen.registers, call))),
            origin: Origin::Kernel,
        })
    }

    fn killed(&self, pid: u32, signal: i32) -> Option<Exception> {
        let [guests, trusted] = self.ends;
        let is_trusted = self.tasks.get(&pid) == Some(&Role::Trusted);
        // A guest that ends takes its T with it.
        if signal != libc::SIGKILL || is_trusted && trusted <= guests {
            return None;
        }
        let exception = Exception {
            thread: pid,
            signal,
            code: None,
            address: 0,
            pc: 0,
            class: Class::Other,
            denied: None,
            origin: Origin::Kernel,
        };
        let Some((arch, registers, nr)) = registers(pid) else { return Some(exception) };
        let call = call_arch(pid).unwrap_or(arch);
        let nr = if call == Arch::X86 { u64::from(nr as u32) } else { nr };
        let denied = match status(pid, "Seccomp", 10) {
            // Newer kernels mark a task that seccomp kills (`SECCOMP_MODE_DEAD`, since 5.17).
            Some(DEAD) => true,
            // Nobody has had the call yet. What is caught (SIGSYS) looks as before the call, whoever kills the task then.
            Some(1) => !is_trusted && !strict_allows(call, nr) && result(arch, &registers) == -libc::ENOSYS,
            _ => false,
        };
        let denied = denied.then(|| (nr, arguments(arch, &registers, call)));
        Some(Exception { pc: registers.pc(arch).unwrap_or(0), denied, ..exception })
    }
}

/// Adds a thread.
fn thread(dump: &mut Dump, facts: &Facts, pid: u32, registers: Registers) {
    let task = facts.tasks.iter().find(|task| task.id == pid);
    dump.threads.push(Thread {
        id: pid,
        name: task.map(|task| task.name.clone()).unwrap_or_default(),
        role: task.map_or(Role::Guest, |task| task.role),
        registers: Ok(registers),
        origin: Origin::Kernel,
    });
}

/// Registers of a task that has stopped, and the number of the call that it is in.
fn registers(pid: u32) -> Option<(Arch, Registers, u64)> {
    let bytes = register_set(pid, NT_PRSTATUS, 512);
    let (arch, size) =
        if bytes.len() == 8 * notes::order(Arch::X86_64).len() { (Arch::X86_64, 8) } else { (Arch::X86, 4) };
    let word = |chunk: &[u8]| chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let values: Vec<u64> = bytes.chunks_exact(size).map(word).collect();
    let orig = notes::order(arch).iter().position(|name| *name == notes::ORIG)?;
    let (general, call) = (notes::general(arch, &values), *values.get(orig)?);
    let mut extended = register_set(pid, NT_X86_XSTATE, EXTENDED_MAX);
    if extended.is_empty() {
        // Without XSAVE: what FXSAVE has.
        let kind = if arch == Arch::X86_64 { NT_PRFPREG } else { NT_PRXFPREG };
        extended = register_set(pid, kind, EXTENDED_MAX);
    }
    Some((arch, Registers { general, extended }, call))
}

/// The architecture whose call a task is in: `int $0x80` makes those of i386 from 64-bit code, too. `None` if the kernel does not
/// tell.
fn call_arch(pid: u32) -> Option<Arch> {
    let mut head = [0u32; 6]; // `struct ptrace_syscall_info` up to its first union: the operation, the architecture, addresses
    // SAFETY: the kernel stores up to so many bytes.
    unsafe { ptrace(GET_SYSCALL_INFO, pid, size_of_val(&head), (&raw mut head) as usize) }.ok()?;
    Some(if head[1] == AUDIT_ARCH_I386 { Arch::X86 } else { Arch::X86_64 })
}

/// The arguments of a call of one architecture, in a task of one.
fn arguments(arch: Arch, registers: &Registers, call: Arch) -> [u64; 6] {
    match (arch, call) {
        (Arch::X86_64, Arch::X86) => {
            let names = ["rbx", "rcx", "rdx", "rsi", "rdi", "rbp"];
            names.map(|name| registers.get(arch, name).unwrap_or(0) & u64::from(u32::MAX))
        }
        _ => call_args(arch, registers),
    }
}

/// The signal by which a task is about to exit; 0 if none is. Without the mark of a core.
fn exit_signal(pid: u32) -> Option<i32> {
    let mut code: libc::c_ulong = 0;
    // SAFETY: the kernel stores a word.
    unsafe { ptrace(libc::PTRACE_GETEVENTMSG, pid, 0, (&raw mut code) as usize) }.ok()?;
    Some((code & 0x7f) as i32)
}

/// Has a task stop, and waits a while for it: what it then is about to do.
fn stop(pid: u32) -> Option<Event> {
    // SAFETY: the request takes nothing.
    unsafe { ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0) }.ok()?;
    for _ in 0..STOP_PATIENCE {
        match wait(Some(pid), false) {
            Ok(Some((_, event))) => return Some(event),
            Ok(None) => thread::sleep(Duration::from_millis(1)),
            Err(_) => return None,
        }
    }
    None
}

/// Lets a task that has stopped go on: to get its signal, to exit, or as before.
fn go_on(pid: u32, event: Event) {
    let (request, signal) = match event {
        Event::Signal(signal) => (libc::PTRACE_CONT, signal),
        Event::Group => (libc::PTRACE_LISTEN, 0),
        Event::Ended(_) => return,
        _ => (libc::PTRACE_CONT, 0),
    };
    // SAFETY: the signal is a number. A task that was killed meanwhile goes on by itself.
    let _ = unsafe { ptrace(request, pid, 0, signal as usize) };
}

/// What calls that a signal interrupts return inside of the kernel, and to a handler without `SA_RESTART`, as the runtime's are,
/// as EINTR (`include/linux/errno.h`; `handle_signal` in `arch/x86/kernel/signal.c`).
const RESTARTED: [i32; 3] = [512, 514, 516];

/// Where a call's result will be: the kernel begins with ENOSYS (`arch/x86/entry/entry_64.S`, `entry_32.S`).
fn result(arch: Arch, registers: &Registers) -> i32 {
    registers.get(arch, if arch == Arch::X86_64 { "rax" } else { "eax" }).unwrap_or(0) as i32
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
