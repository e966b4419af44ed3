//! `ascetic-watch` beside guests that crash, end by themselves, are killed or stopped: what it dumps, and that the guest ends as
//! it would have without it.

#![cfg(target_arch = "x86_64")]

use std::cell::RefCell;
use std::fs;
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use ascetic::error::Status;
use ascetic::policy::Policy;
use ascetic::sandbox::{self, Config, Hook, Outcome, Sandbox};
use serde_json::Value;

const POLICY: Policy = Policy::new().ordinary();
const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));

/// A watcher that has seized the tasks of a sandbox.
fn watch(sandbox: &Sandbox<'_>, out: &Path) -> Child {
    let (t, u) = sandbox.pids();
    let mut watcher = Command::new(env!("CARGO_BIN_EXE_ascetic-watch"))
        .args(["--pid", &t.to_string(), "--pid", &u.to_string(), "--out"])
        .arg(out)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(watcher.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    // Whatever else it says has somewhere to go.
    thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    watcher
}

fn config() -> Config<'static> {
    Config { tracer: Some(-1), ..Config::new(&POLICY) }
}

/// Runs a guest beside a watcher, and does something to both meanwhile. How it ended, its process id, and what was dumped.
fn run(
    config: &Config<'_>,
    entry: extern "C" fn(usize) -> i32,
    arg: usize,
    meanwhile: impl FnOnce(&mut Child, (u32, u32)) + Send,
) -> (Outcome, (u32, u32), Option<Value>) {
    let folder = tempfile::tempdir().unwrap();
    let watcher = RefCell::new(None);
    let born = |sandbox: &Sandbox<'_>| *watcher.borrow_mut() = Some(watch(sandbox, folder.path()));
    let config = Config { born: Some(Hook(&born)), ..*config };
    let mut sandbox = sandbox::spawn(&config, entry, arg).unwrap();
    let pids = sandbox.pids();
    let mut watcher = watcher.borrow_mut().take().unwrap();
    let outcome = thread::scope(|scope| {
        scope.spawn(|| meanwhile(&mut watcher, pids));
        sandbox.wait(PATIENCE)
    });
    watcher.wait().unwrap();
    let file = folder.path().join(format!("{}.json", pids.1));
    (outcome, pids, fs::read(file).ok().map(|json| serde_json::from_slice(&json).unwrap()))
}

fn nothing(_: &mut Child, _: (u32, u32)) {}

/// Signals a process that this test has started and not waited for.
fn signal(pid: u32, signal: i32) {
    // SAFETY: stores nothing.
    assert_eq!(unsafe { libc::kill(pid as libc::pid_t, signal) }, 0);
}

fn pause() {
    thread::sleep(Duration::from_millis(100));
}

fn is(status: Status, signal: i32) -> bool {
    matches!(status, Status::Signaled { signal: s, .. } if s == signal)
}

fn number(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap().strip_prefix("0x").unwrap(), 16).unwrap()
}

/// State of a process (`proc_pid_stat(5)`).
fn state(pid: u32) -> char {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    text.rsplit_once(") ").unwrap().1.chars().next().unwrap()
}

extern "C" fn exits(arg: usize) -> i32 {
    arg as i32
}

// Runs at one place.
std::arch::global_asm!("live_spins:", "jmp live_spins", ".globl live_spins");

unsafe extern "C" {
    safe fn live_spins() -> i32;
}

extern "C" fn spins(_: usize) -> i32 {
    live_spins()
}

/// Makes brokered calls without end.
extern "C" fn calls(_: usize) -> i32 {
    loop {
        // SAFETY: touches no memory.
        unsafe { libc::syscall(libc::SYS_getppid) };
    }
}

// Has registers of its own when it crashes.
std::arch::global_asm!(
    "live_crashes:",
    "mov eax, 0x12345678",
    "mov ecx, 0xc0ffee",
    "mov r12d, 0x5eed",
    "live_crashes_here:",
    "mov qword ptr [rax], rcx",
    "ud2",
    ".globl live_crashes, live_crashes_here",
);

unsafe extern "C" {
    safe fn live_crashes(_: usize) -> i32;
    fn live_crashes_here();
}

extern "C" fn crashes(arg: usize) -> i32 {
    live_crashes(arg)
}

/// A call by the gate of i386.
extern "C" fn denied_i386(_: usize) -> i32 {
    // SAFETY: at most an error.
    unsafe { std::arch::asm!("push rbx", "mov ebx, 7", "int 0x80", "pop rbx", in("eax") 63, in("ecx") 8, in("edx") 9) };
    0
}

extern "C" fn recovers(_: usize) -> i32 {
    extern "C" fn handler(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the kernel's context; the instruction that faulted has 7 bytes.
        unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] += 7 };
    }
    // SAFETY: zeros are a value of it, and the instruction is passed over by the handler.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut());
        (0..3).for_each(|_| std::arch::asm!("mov qword ptr [rax], 0", in("rax") 16));
    }
    5
}

#[test]
fn who_ends_by_itself_has_not_crashed() {
    for _ in 0..20 {
        let (outcome, _, dump) = run(&config(), exits, 42, nothing);
        assert_eq!((outcome.guest, dump), (Status::Exited(42), None));
    }
}

#[test]
fn a_fault_is_seen_as_it_was() {
    let (outcome, (t, u), dump) = run(&config(), crashes, 0, nothing);
    assert!(is(outcome.guest, libc::SIGSEGV), "{outcome:?}");
    let dump = dump.unwrap();
    let exception = &dump["exception"];
    assert_eq!((&exception["thread"], &exception["signal"]), (&u.into(), &libc::SIGSEGV.into()));
    assert_eq!(number(&exception["address"]), 0x1234_5678);
    assert_eq!(number(&exception["pc"]), live_crashes_here as *const () as u64);
    let registers = &dump["threads"][0]["registers"];
    assert_eq!(["rax", "rcx", "r12"].map(|name| number(&registers[name])), [0x1234_5678, 0xc0ffee, 0x5eed]);
    let trusted = &dump["threads"][1];
    assert_eq!((&trusted["id"], &trusted["role"]), (&t.into(), &"trusted".into()));
    assert_eq!(number(&trusted["registers"]["rsp"]), 0);
}

#[test]
fn a_fault_that_the_guest_handles_is_none() {
    let (outcome, _, dump) = run(&Config { dispatch: true, ..config() }, recovers, 0, nothing);
    assert_eq!((outcome.guest, dump), (Status::Exited(5), None));
}

#[test]
fn who_is_killed_was_denied_nothing() {
    for (dispatch, entry) in [(false, spins as extern "C" fn(usize) -> i32), (true, calls)].into_iter().cycle().take(20)
    {
        let kill = |_: &mut Child, (_, u): (u32, u32)| {
            pause();
            signal(u, libc::SIGKILL);
        };
        let (outcome, (_, u), dump) = run(&Config { dispatch, ..config() }, entry, 0, kill);
        assert!(is(outcome.guest, libc::SIGKILL), "{outcome:?}");
        let exception = &dump.unwrap()["exception"];
        assert_eq!((&exception["thread"], &exception["signal"]), (&u.into(), &9.into()), "{exception}");
        assert_eq!(exception["denied"], Value::Null, "{exception}");
    }
}

#[test]
fn a_trusted_thread_that_is_killed_is_named() {
    let (outcome, (t, _), dump) = run(&config(), spins, 0, |_, (t, _)| {
        pause();
        signal(t, libc::SIGKILL);
    });
    assert!(is(outcome.trusted, libc::SIGKILL), "{outcome:?}");
    let dump = dump.unwrap();
    assert_eq!((&dump["exception"]["thread"], &dump["threads"][0]["role"]), (&t.into(), &"trusted".into()));
}

#[test]
fn a_signal_that_somebody_sent_is_seen_where_it_came() {
    for sent in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT] {
        let (outcome, _, dump) = run(&config(), spins, 0, |_, (_, u)| {
            pause();
            signal(u, sent);
        });
        assert!(is(outcome.guest, sent), "{outcome:?}");
        let dump = dump.unwrap();
        assert_eq!(number(&dump["exception"]["pc"]), live_spins as *const () as u64, "{sent}: {}", dump["exception"]);
        assert_eq!((&dump["exception"]["code"], &dump["exception"]["signal"]), (&0.into(), &sent.into()));
    }
}

/// A call that a signal interrupts has failed with EINTR as far as the guest can see, whatever it returns inside of the kernel.
#[test]
fn a_signal_that_interrupts_a_call_is_seen_as_the_handler_sees_it() {
    extern "C" fn reads(pipe: usize) -> i32 {
        let mut byte = 0u8;
        // SAFETY: the kernel stores a byte.
        unsafe { libc::read(pipe as i32, (&raw mut byte).cast(), 1) as i32 }
    }
    let (quiet, _open) = std::io::pipe().unwrap();
    let pipe = quiet.as_raw_fd();
    let keep = [pipe];
    for sent in [libc::SIGSEGV, libc::SIGABRT] {
        let config = Config { keep: &keep, ..config() };
        let (outcome, _, dump) = run(&config, reads, pipe as usize, |_, (_, u)| {
            pause();
            signal(u, sent);
        });
        assert!(is(outcome.guest, sent), "{outcome:?}");
        let rax = number(&dump.unwrap()["threads"][0]["registers"]["rax"]);
        assert_eq!(rax as i64, -i64::from(libc::EINTR), "{sent}");
    }
}

#[test]
fn who_is_stopped_stays_so() {
    let (outcome, _, dump) = run(&config(), spins, 0, |_, (_, u)| {
        signal(u, libc::SIGSTOP);
        pause();
        let stopped = state(u);
        signal(u, libc::SIGCONT);
        pause();
        let goes_on = state(u);
        signal(u, libc::SIGSEGV);
        assert!(matches!(stopped, 't' | 'T') && goes_on == 'R', "{stopped} {goes_on}");
    });
    assert!(is(outcome.guest, libc::SIGSEGV) && dump.is_some(), "{outcome:?}");
}

#[test]
fn a_denied_call_of_the_other_architecture_has_its_own_arguments() {
    let (outcome, _, dump) = run(&config(), denied_i386, 0, nothing);
    assert!(is(outcome.guest, libc::SIGKILL), "{outcome:?}");
    let dump = dump.unwrap();
    let denied = &dump["exception"]["denied"];
    assert_eq!(denied["nr"], 63);
    assert_eq!([0, 1, 2].map(|i| number(&denied["args"][i])), [7, 8, 9]);
}

/// The watcher does nothing at all any more when the guest crashes, and is then killed: the guest ends as if alone.
#[test]
fn a_watcher_that_dies_while_it_holds_the_guest_changes_nothing() {
    extern "C" fn late(arg: usize) -> i32 {
        (0..50_000_000).for_each(|i| _ = black_box(i));
        live_crashes(arg)
    }
    let (outcome, _, dump) = run(&config(), late, 0, |watcher, (_, u)| {
        signal(watcher.id(), libc::SIGSTOP);
        while state(u) != 't' {
            thread::sleep(Duration::from_millis(1));
        }
        watcher.kill().unwrap();
    });
    assert!(is(outcome.guest, libc::SIGSEGV) && dump.is_none(), "{outcome:?}");
}
