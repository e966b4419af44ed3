//! Supervision: everything dies together, statuses are true, nothing is left.

use super::misuse::{has_children, open_descriptors};
use super::*;
use ascetic::sandbox::Cause;
use ascetic::sys::{self, Errno};
use freestanding::call;

pub const CASES: &[Case] = &[
    case("supervisor_deadline", deadline),
    case("supervisor_kill", kill),
    case("supervisor_alarm_flood", alarm_flood),
    case("supervisor_alarm_taken_back", alarm_taken_back),
    case("supervisor_alarms_used_up", alarms_used_up),
    case("supervisor_alarm_at_its_end", alarm_at_its_end),
    case("supervisor_cannot_reap", cannot_reap),
    case("supervisor_real_time", real_time),
    case("supervisor_waits_once", waits_once),
    case("supervisor_terminal", terminal),
    case("supervisor_dropped_in_a_fork", dropped_in_a_fork),
    case("supervisor_t_killed", || killed(true)),
    case("supervisor_u_killed", || killed(false)),
    case("supervisor_embedder_killed", || embedder_killed(true)),
    case("supervisor_embedder_off_shows_it", || embedder_killed(false)),
    case("supervisor_drop_kills", drop_kills),
    case("supervisor_state_of_tasks", state_of_tasks),
    case("supervisor_1000_spawns", thousand),
    case("supervisor_many_at_once", many_at_once),
];

extern "C" fn hangs(_: usize) -> i32 {
    loop {
        core::hint::spin_loop();
    }
}

extern "C" fn calls_for_ever(_: usize) -> i32 {
    loop {
        // SAFETY: touches no memory.
        let _ = unsafe { ascetic::untrusted::call(Sysno::getppid, [0; 6]) };
    }
}

fn deadline() {
    let outcome = spawn(&config(), hangs, 0).wait(Some(Duration::from_millis(50)));
    check!(
        outcome.cause == Cause::Deadline && outcome.guest.is_signal(9) && outcome.trusted.is_signal(9),
        "{:?}",
        outcome
    );
    check!(!has_children());
}

/// A guest that raises alarms without end: the deadline holds, and the supervisor sleeps.
fn alarm_flood() {
    extern "C" fn guest(_: usize) -> i32 {
        let own = ascetic::experiment::first_own_fd();
        loop {
            let _ = sys::write(own + 2, &1u64.to_ne_bytes());
        }
    }
    /// User and system time of this process so far, in nanoseconds (CLOCK_PROCESS_CPUTIME_ID).
    fn cpu_time() -> u64 {
        let mut ts = [0usize; 2];
        // SAFETY: the kernel stores a timespec.
        check!(unsafe { call(Sysno::clock_gettime, [2, ts.as_mut_ptr() as usize]) }.is_ok());
        ts[0] as u64 * 1_000_000_000 + ts[1] as u64
    }
    let mut sandbox = spawn(&config(), guest, 0);
    let before = cpu_time();
    let outcome = sandbox.wait(Some(Duration::from_millis(500)));
    check!(outcome.cause == Cause::Deadline && outcome.guest.is_signal(9), "{:?}", outcome);
    let used = cpu_time() - before;
    check!(used < 100_000_000, "{used} ns");
}

/// A guest that takes its rings back the moment they are heard: neither `spawn` nor `wait` hangs.
fn alarm_taken_back() {
    extern "C" fn guest(_: usize) -> i32 {
        let alarm = ascetic::experiment::first_own_fd() + 2;
        loop {
            let _ = sys::read(alarm, &mut [0; 8]);
            let _ = sys::write(alarm, &1u64.to_ne_bytes());
        }
    }
    for _ in 0..20 {
        let outcome = spawn(&config(), guest, 0).wait(Some(Duration::from_millis(20)));
        check!(outcome.cause == Cause::Deadline, "{:?}", outcome);
    }
}

/// A guest that counts the alarm up to where nobody can ring any more: its own calls are heard all the same.
fn alarm_at_its_end() {
    extern "C" fn guest(_: usize) -> i32 {
        let alarm = ascetic::experiment::first_own_fd();
        for _ in 0..100 {
            let _ = sys::write(alarm, &(u64::MAX - 1).to_ne_bytes());
            // SAFETY: touches no memory; refused by the broker.
            check!(unsafe { ascetic::untrusted::call(Sysno::ptrace, [0; 6]) } == Err(Errno::ENOSYS));
        }
        0
    }
    must_exit(&config(), guest, 0, 0);
}

/// A T that was killed and is not let go, here by a tracer, as it could be by a file system: the end comes all the same,
/// and says so.
fn cannot_reap() {
    const PTRACE_SEIZE: usize = 0x4206;
    let mut sandbox = spawn(&config(), hangs, 0);
    let (t, _) = sandbox.pids();
    let ((read, write), (hold, release)) = (sys::pipe().unwrap(), sys::blocking_pipe().unwrap());
    // SAFETY: this process has one thread.
    let tracer = unsafe { sys::fork() }.unwrap();
    if tracer == 0 {
        sys::close(release);
        // SAFETY: attaches.
        let seized = unsafe { call(Sysno::ptrace, [PTRACE_SEIZE, t as usize, 0, 0]) };
        let _ = sys::write(write, if seized.is_ok() { b"y" } else { b"n" });
        let _ = sys::read(hold, &mut [0; 1]);
        sys::exit(0);
    }
    let _ = sys::poll(&mut [sys::PollFd::readable(read)], Some(PATIENCE));
    let mut seized = [0];
    check!(sys::read(read, &mut seized) == Ok(1));
    if seized != *b"y" {
        sys::close(release);
        check!(sys::wait(tracer, true).is_ok());
        skip("no ptrace");
    }
    ascetic::experiment::HURRY.store(true, core::sync::atomic::Ordering::Relaxed);
    let start = sys::now();
    let outcome = sandbox.kill();
    let took = sys::now() - start;
    check!(outcome.left == 1 && outcome.guest.is_signal(9) && outcome.trusted.is_signal(9), "{outcome:?}");
    check!(took < 40_000_000_000, "{took} ns");
    sys::close(release);
    check!(sys::wait(tracer, true).is_ok());
    check!(has_children());
    drop(sandbox);
    check!(!has_children());
}

/// A guest that has used up its alarms ends all the same when it aborts, if not with its signal.
fn alarms_used_up() {
    extern "C" fn guest(rings: usize) -> i32 {
        let (alarm, mailbox) = (ascetic::experiment::first_own_fd(), ascetic::experiment::mailbox().0);
        for i in 1..=rings {
            let raise = mailbox + core::mem::offset_of!(ascetic::abi::Mailbox, raise);
            // SAFETY: inside the mailbox, which is the guest's to write. It asks for no signal.
            unsafe { (raise as *mut u32).write_volatile((i as u32) << 8) };
            check!(sys::write(alarm, &1u64.to_ne_bytes()) == Ok(8));
            // The answer comes when the ring was heard; at the end of all answers the pipe ends.
            let _ = sys::read(alarm + 4, &mut [0; 1]);
        }
        ascetic::untrusted::abort()
    }
    for (rings, end) in
        [(0, Status::Signaled { signal: 6, core: false }), (62, Status::Signaled { signal: 6, core: false })]
    {
        let outcome = run(&config(), guest, rings);
        check!(outcome.guest == end, "{rings}: {outcome:?}");
    }
    for rings in [63, 64, 100] {
        let outcome = run(&config(), guest, rings);
        check!(outcome.cause == Cause::Guest, "{rings}: {outcome:?}");
    }
}

/// A real-time embedder: T and U are ordinary, or a guest that loops would keep the supervisor from its deadline.
fn real_time() {
    const SCHED_FIFO: usize = 1;
    let priority = 1u32;
    // SAFETY: reads the priority.
    let set = unsafe { call(Sysno::sched_setscheduler, [0, SCHED_FIFO, (&raw const priority) as usize]) };
    if set.is_err() {
        skip("no real-time policy for this user");
    }
    let mut sandbox = spawn(&config(), hangs, 0);
    let (t, u) = sandbox.pids();
    for pid in [t, u] {
        // SAFETY: asks only.
        check!(unsafe { call(Sysno::sched_getscheduler, [pid as usize]) } == Ok(0));
    }
    check!(sandbox.wait(Some(Duration::from_millis(50))).cause == Cause::Deadline);
}

/// How it ended is told again; a forked copy of a sandbox knows nothing.
fn waits_once() {
    let mut sandbox = spawn(&config(), hangs, 0);
    // SAFETY: this process has one thread.
    let child = unsafe { sys::fork() }.unwrap();
    if child == 0 {
        check!(sandbox.wait(None).cause == Cause::Foreign && sandbox.kill().cause == Cause::Foreign);
        sys::exit(0);
    }
    check!(sys::wait(child, true).is_ok_and(|raw| raw == Some(0)));
    let outcome = sandbox.wait(Some(Duration::from_millis(20)));
    check!(outcome.cause == Cause::Deadline);
    check!(sandbox.wait(None) == outcome && sandbox.kill() == outcome);
}

/// A guest that reads its terminal from the background gets an error, and stops nobody.
fn terminal() {
    const TIOCSCTTY: usize = 0x540e;
    const TIOCGPTN: usize = 0x8004_5430;
    const TIOCSPTLCK: usize = 0x4004_5431;
    extern "C" fn guest(fd: usize) -> i32 {
        (sys::read(fd as i32, &mut [0; 1]) != Err(Errno::EIO)) as i32
    }
    // SAFETY: this process leads a session of its own, with a terminal of its own, whose foreground is another group.
    unsafe {
        let Ok(master) = call(Sysno::open, [c"/dev/ptmx".as_ptr() as usize, 2 | 0o400]) else {
            skip("no pseudo-terminals")
        };
        let (mut number, unlock) = (0u32, 0u32);
        check!(call(Sysno::ioctl, [master, TIOCSPTLCK, (&raw const unlock) as usize]).is_ok());
        check!(call(Sysno::ioctl, [master, TIOCGPTN, (&raw mut number) as usize]).is_ok());
        let leader = sys::fork().unwrap();
        if leader != 0 {
            let status = sys::wait(leader, true).unwrap().unwrap();
            check!(Status::from_raw(status) == Status::Exited(0), "{}", Status::from_raw(status));
            return;
        }
        check!(call(Sysno::setsid, []).is_ok());
        // TIOCGPTPEER: the other end, without a path.
        let Ok(slave) = call(Sysno::ioctl, [master, 0x5441, 2]) else { sys::exit(0) };
        check!(call(Sysno::ioctl, [slave, TIOCSCTTY, 0]).is_ok());
        let child = sys::fork().unwrap();
        if child == 0 {
            check!(call(Sysno::setpgid, [0, 0]).is_ok()); // the background
            let keep = [1, slave as i32];
            must_exit(&Config { keep: &keep, ..config() }, guest, slave, 0);
            sys::exit(0);
        }
        let status = sys::wait(child, true).unwrap().unwrap();
        sys::exit((Status::from_raw(status) != Status::Exited(0)) as i32)
    }
}

/// A forked copy of a sandbox is nobody's: dropping it ends nothing.
fn dropped_in_a_fork() {
    let mut sandbox = spawn(&config(), hangs, 0);
    // SAFETY: this process has one thread.
    let child = unsafe { sys::fork() }.unwrap();
    if child == 0 {
        drop(sandbox);
        sys::exit(0);
    }
    check!(sys::wait(child, true).is_ok_and(|raw| raw == Some(0)));
    check!(sandbox.wait(Some(Duration::from_millis(50))).cause == Cause::Deadline);
}

fn kill() {
    let outcome = spawn(&config(), hangs, 0).kill();
    check!(
        outcome.cause == Cause::Killed && outcome.guest.is_signal(9) && outcome.trusted.is_signal(9),
        "{:?}",
        outcome
    );
    check!(!has_children());
}

fn killed(trusted: bool) {
    let mut sandbox = spawn(&config(), calls_for_ever, 0);
    let (t, u) = sandbox.pids();
    check!(sys::kill(if trusted { t } else { u }, 9).is_ok());
    let outcome = sandbox.wait(Some(PATIENCE));
    check!(outcome.cause == if trusted { Cause::TrustedDied } else { Cause::Guest }, "{:?}", outcome);
    check!(outcome.guest.is_signal(9) && outcome.trusted.is_signal(9), "{:?}", outcome);
    check!(!has_children());
}

/// The embedder is a child of this case; when it is killed, T and U become this case's children, and must be dead.
fn embedder_killed(follow: bool) {
    const PR_SET_CHILD_SUBREAPER: usize = 36;
    // SAFETY: adopts orphans.
    check!(unsafe { sys::prctl(PR_SET_CHILD_SUBREAPER, 1) }.is_ok());
    let (read, write) = sys::pipe().unwrap();
    // SAFETY: this process has one thread.
    let embedder = unsafe { sys::fork() }.unwrap();
    if embedder == 0 {
        let mut config = config();
        config.weaken.no_follow = !follow;
        let mut sandbox = spawn(&config, calls_for_ever, 0);
        let (t, u) = sandbox.pids();
        let _ = sys::write(write, &[t.to_ne_bytes(), u.to_ne_bytes()].concat_bytes());
        sandbox.wait(None);
        sys::exit(0);
    }
    let mut pids = [0u8; 8];
    let _ = sys::poll(&mut [sys::PollFd::readable(read)], Some(PATIENCE));
    check!(sys::read(read, &mut pids) == Ok(8));
    let (t, u) = pids.split_at(4);
    let tasks = [t, u].map(|id| u32::from_ne_bytes(id.try_into().unwrap()));
    check!(sys::kill(embedder, 9).is_ok());
    check!(sys::wait(embedder, true).is_ok());
    for pid in tasks {
        if !follow {
            let _ = sys::poll(&mut [], Some(Duration::from_millis(20)));
            check!(sys::wait(pid, false) == Ok(None), "it should have lived on");
            check!(sys::kill(pid, 9).is_ok());
        }
        let raw = sys::wait(pid, true).unwrap().unwrap();
        check!(Status::from_raw(raw).is_signal(9), "{}", Status::from_raw(raw));
    }
    check!(!has_children());
}

trait ConcatBytes {
    fn concat_bytes(self) -> [u8; 8];
}

impl ConcatBytes for [[u8; 4]; 2] {
    fn concat_bytes(self) -> [u8; 8] {
        let mut all = [0; 8];
        all[..4].copy_from_slice(&self[0]);
        all[4..].copy_from_slice(&self[1]);
        all
    }
}

fn drop_kills() {
    let before = open_descriptors();
    drop(spawn(&config(), hangs, 0));
    check!(!has_children());
    check!(open_descriptors() == before);
}

/// What the kernel says of T and of U.
fn state_of_tasks() {
    let sandbox = spawn(&config(), hangs, 0);
    let (t, u) = sandbox.pids();
    let mut text = [0u8; 4096];
    // The last that U does before guest code is to take its own mask.
    for _ in 0..100 {
        let _ = sys::poll(&mut [], Some(Duration::from_millis(50)));
        if field(u, "SigBlk:", &mut text) == "0000000001001000" {
            break;
        }
    }
    check!(field(t, "Seccomp:", &mut text) == "0");
    check!(field(t, "SigBlk:", &mut text) == "fffffffffffbfeff"); // all but SIGKILL and SIGSTOP
    check!(field(t, "SigCgt:", &mut text) == "0000000000000000");
    check!(field(t, "NoNewPrivs:", &mut text) == "1");
    check!(field(u, "Seccomp:", &mut text) == "1");
    check!(field(u, "SigBlk:", &mut text) == "0000000001001000"); // SIGPIPE, SIGXFSZ
    check!(field(u, "SigCgt:", &mut text) == "80000000400004f8"); // the seven, and the kick
    check!(field(u, "NoNewPrivs:", &mut text) == "1");
    let syscall = read_proc(t, "syscall", &mut text);
    // "number six-arguments stack-pointer program-counter": T sleeps in read, with no stack.
    let sp = syscall.split_whitespace().nth(7).unwrap_or("?");
    check!(sp == "0x0", "{syscall}");
}

pub fn read_proc<'a>(pid: u32, file: &str, text: &'a mut [u8]) -> &'a str {
    use core::fmt::Write as _;
    let mut path = freestanding::Line::new();
    let _ = write!(path, "/proc/{pid}/{file}\0");
    let path = core::ffi::CStr::from_bytes_until_nul(path.as_str().as_bytes()).unwrap();
    let len = sys::open(path).and_then(|fd| {
        let len = sys::read(fd, text);
        sys::close(fd);
        len
    });
    core::str::from_utf8(&text[..len.unwrap_or(0)]).unwrap_or("")
}

pub fn field<'a>(pid: u32, name: &str, text: &'a mut [u8]) -> &'a str {
    let status = read_proc(pid, "status", text);
    status.lines().find_map(|line| line.strip_prefix(name)).map_or("", str::trim)
}

fn thousand() {
    extern "C" fn guest(_: usize) -> i32 {
        // SAFETY: touches no memory.
        unsafe { ascetic::untrusted::call(Sysno::getppid, [0; 6]) }.is_err() as i32
    }
    // Emulated machines are slow.
    let count = if emulated() { 100 } else { 1000 };
    let before = open_descriptors();
    for _ in 0..count {
        must_exit(&config(), guest, 0, 0);
    }
    check!(open_descriptors() == before);
    check!(!has_children());
}

fn many_at_once() {
    extern "C" fn guest(count: usize) -> i32 {
        for _ in 0..count {
            // SAFETY: touches no memory.
            check!(unsafe { ascetic::untrusted::call(Sysno::getppid, [0; 6]) } != Err(Errno::ENOSYS));
        }
        0
    }
    let mut sandboxes: [Sandbox; 16] = core::array::from_fn(|_| spawn(&config(), guest, 500));
    for sandbox in &mut sandboxes {
        let outcome = sandbox.wait(Some(PATIENCE));
        check!(outcome.guest == Status::Exited(0), "{:?}", outcome);
    }
    drop(sandboxes);
    check!(!has_children());
}
