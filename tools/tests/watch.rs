//! `ascetic-watch`: what becomes of a guest whose watcher dies; calls that strict mode denies; tasks that cannot be watched.

use std::cell::RefCell;
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use ascetic::error::Status;
use ascetic::fault::record::Record;
use ascetic::policy::Policy;
use ascetic::sandbox::{self, Config, Hook, RECORD_MAX, Sandbox};
use ascetic_tools::dump::collect::{Collector, Ways};

const WATCH: &str = env!("CARGO_BIN_EXE_ascetic-watch");
const POLICY: Policy = Policy::new();
const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));

/// Crashes after a while.
extern "C" fn crashes_late(_: usize) -> i32 {
    (0..50_000_000).for_each(|i| _ = black_box(i));
    // SAFETY: none: this is the bug.
    unsafe { black_box(0x1234 as *mut u8).write_volatile(1) };
    0
}

/// Makes a call that is none of strict mode's.
extern "C" fn denied(_: usize) -> i32 {
    // SAFETY: at most an error.
    unsafe { libc::syscall(libc::SYS_dup3, 11, 12, 13) as i32 }
}

#[test]
fn a_watcher_that_dies_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let born = |sandbox: &Sandbox<'_>| {
        let (t, u) = sandbox.pids();
        let mut watcher = Command::new(WATCH)
            .args(["--pid", &t.to_string(), "--pid", &u.to_string(), "--out"])
            .arg(folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(watcher.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        watcher.kill().unwrap();
        watcher.wait().unwrap();
    };
    let config = Config { born: Some(Hook(&born)), tracer: Some(-1), ..Config::new(&POLICY) };
    let mut sandbox = sandbox::spawn(&config, crashes_late, 0).unwrap();
    let outcome = sandbox.wait(PATIENCE);
    assert!(matches!(outcome.guest, Status::Signaled { signal: 11, .. }), "{outcome:?}");
    let mut room = vec![0; RECORD_MAX];
    let record = Record::decode(sandbox.record(&mut room)).unwrap();
    assert!(record.complete && record.fault.unwrap().addr == 0x1234);
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

#[test]
fn a_call_that_strict_mode_denies_is_named() {
    let told = RefCell::new(Vec::new());
    let ways = Ways { record: false, core: false, ptrace: true };
    let collector = Collector::new(ways).watcher(WATCH).tell(|dump| told.borrow_mut().push(dump.exception.clone()));
    let (outcome, crash) = collector.run(&Config::new(&POLICY), denied, 0, PATIENCE).unwrap();
    assert!(matches!(outcome.guest, Status::Signaled { signal: 9, .. }), "{outcome:?}");
    let crash = crash.unwrap();
    assert_eq!(crash.missing, [""; 0]);
    let exception = told.borrow()[0].clone().unwrap();
    let (nr, args) = exception.denied.unwrap();
    assert_eq!((nr, &args[..3]), (libc::SYS_dup3 as u64, &[11, 12, 13][..]));
    // Behind the call's instruction, in the C library.
    let dump = &crash.dumps[0];
    assert!(dump.modules.iter().any(|module| (module.base..module.base + module.size).contains(&exception.pc)));
    assert!(dump.backtrace_of(&dump.threads[0]).len() > 1);
}

#[test]
fn who_cannot_be_watched_is_said() {
    let output = Command::new(WATCH).args(["--pid", "4194303"]).output().unwrap(); // no process has the last number
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "ascetic-watch: there is no task 4194303\n");
}
