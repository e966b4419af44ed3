//! The deadline of `ascetic-watch`: reading that never ends does not keep a guest from ending. What never ends is a file system of
//! this test's own (FUSE), which answers everything but reads; the guest has a program of it mapped, whose build id the watcher
//! looks for while the guest stands still.

#![cfg(target_arch = "x86_64")]

use std::cell::RefCell;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ascetic::error::Status;
use ascetic::policy::Policy;
use ascetic::sandbox::{self, Cause, Config, Core, Hook, Sandbox};
use serde_json::Value;

const POLICY: Policy = Policy::new();
/// When the test has waited long enough, and kills the watcher.
const PATIENCE: Duration = Duration::from_secs(5);

/// Requests (`enum fuse_opcode` in `include/uapi/linux/fuse.h`).
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;

/// A mounted file system, in which every name is a file that cannot be read to its end.
struct Endless<'a>(&'a Path);

impl<'a> Endless<'a> {
    /// `None` where that needs what is not there: root, FUSE.
    fn mount(at: &'a Path) -> Option<Self> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").ok()?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let (target, options) = (CString::new(at.as_os_str().as_bytes()).ok()?, CString::new(options).ok()?);
        let kind = c"fuse".as_ptr();
        // SAFETY: the strings end in NUL.
        let mounted = unsafe { libc::mount(kind, target.as_ptr(), kind, 0, options.as_ptr().cast()) };
        (mounted == 0).then(|| {
            thread::spawn(move || serve(device));
            Self(at)
        })
    }
}

impl Drop for Endless<'_> {
    fn drop(&mut self) {
        let target = CString::new(self.0.as_os_str().as_bytes()).unwrap();
        // SAFETY: a string that ends in NUL.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) };
    }
}

/// Words in the kernel's order, as bytes.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// `struct fuse_attr`: a folder, or a file of a page.
fn attributes(node: u64) -> Vec<u8> {
    let mode = if node == 1 { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o755 };
    let [number, size, blocks] = [node as u32, 4096, 8].map(|low| [low, 0]);
    let times = [0; 9];
    let rest = [mode, 1, 0, 0, 0, 4096, 0]; // links, user, group, device, size of a block, flags
    words(&[&number[..], &size, &blocks, &times, &rest].concat())
}

/// Answers until the file system is gone.
fn serve(mut device: File) {
    let mut room = vec![0; 1 << 20];
    while let Ok(n) = device.read(&mut room) {
        let word = |i: usize| u32::from_ne_bytes(room[4 * i..4 * i + 4].try_into().unwrap());
        // `struct fuse_in_header`: length, request, its number, the node.
        let (request, number, node) = (word(1), [word(2), word(3)], u64::from(word(4)));
        assert!(n >= 40);
        let (error, answer) = match request {
            // `struct fuse_init_out`: version, read-ahead, flags, queues, bytes to write; zeros.
            INIT => (0, words(&[&[7, 31, 0, 0, 0, 4096, 1][..], &[0; 9]].concat())),
            // `struct fuse_entry_out`: node, generation, how long it holds; attributes.
            LOOKUP => (0, [words(&[2, 0, 0, 0, 3600, 0, 3600, 0, 0, 0]), attributes(2)].concat()),
            // `struct fuse_attr_out`
            GETATTR => (0, [words(&[3600, 0, 0, 0]), attributes(node)].concat()),
            OPEN => (0, words(&[0; 4])),
            RELEASE => (0, Vec::new()),
            READ | FORGET | INTERRUPT => continue,
            _ => (-libc::ENOSYS, Vec::new()),
        };
        let length = 16 + answer.len() as u32;
        let head = words(&[length, error as u32, number[0], number[1]]);
        // Who asked may be gone.
        let _ = device.write(&[head, answer].concat());
    }
}

extern "C" fn crashes(_: usize) -> i32 {
    // SAFETY: none: this is the bug.
    unsafe { std::hint::black_box(0x1234 as *mut u8).write_volatile(1) };
    0
}

/// Has the sandbox watched, and another task that goes on when the guest has ended.
fn watch(sandbox: &Sandbox<'_>, other: u32, out: &Path, deadline: u32) -> Child {
    let (t, u) = sandbox.pids();
    let mut watcher = Command::new(env!("CARGO_BIN_EXE_ascetic-watch"))
        .args([t, u, other].map(|pid| format!("--pid={pid}")))
        .arg(format!("--deadline={deadline}"))
        .arg("--out")
        .arg(out)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    watcher.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"ready\n");
    watcher
}

/// Maps a page of the file.
fn map(folder: &Path) -> *mut libc::c_void {
    let file = File::open(folder.join("program")).unwrap();
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    // SAFETY: a new mapping, which nobody touches.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
    assert_ne!(mapped, libc::MAP_FAILED);
    mapped
}

/// How long it takes a guest to end whose watcher has this deadline; how long the watcher, which also follows a task that goes on,
/// to be done; and what was dumped. The watcher is killed when patience is at its end, and then that task. `None` where there is no
/// such file system.
fn ended_after(deadline: u32) -> Option<([Duration; 2], Option<Value>)> {
    let folder = tempfile::tempdir().unwrap();
    let mut mounted = Some(Endless::mount(folder.path())?);
    let mapped = map(folder.path());
    let out = tempfile::tempdir().unwrap();
    let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
    let (watcher, goes_on) = (RefCell::new(None), other.id());
    let born = |sandbox: &Sandbox<'_>| *watcher.borrow_mut() = Some(watch(sandbox, goes_on, out.path(), deadline));
    // A core would be read from the file, too.
    let core = Some(Core { limit: 0, filter: None, trusted: false });
    let config = Config { born: Some(Hook(&born)), tracer: Some(-1), core, ..Config::new(&POLICY) };
    let mut sandbox = sandbox::spawn(&config, crashes, 0).unwrap();
    let (_, guest) = sandbox.pids();
    let mut watcher = watcher.borrow_mut().take().unwrap();
    let (start, ended) = (Instant::now(), AtomicBool::new(false));
    let elapsed = thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) && start.elapsed() < PATIENCE {
                thread::sleep(Duration::from_millis(10));
            }
            if !ended.load(Ordering::Relaxed) {
                watcher.kill().unwrap();
                mounted.take(); // the kernel may wait for the file even so
            }
        });
        let outcome = sandbox.wait(Some(10 * PATIENCE));
        let elapsed = start.elapsed();
        ended.store(true, Ordering::Relaxed);
        assert!(matches!(outcome.guest, Status::Signaled { signal: libc::SIGSEGV, .. }), "{outcome:?}");
        elapsed
    });
    let (done, is_done) = mpsc::channel::<()>();
    let killer = thread::spawn(move || {
        let _ = is_done.recv_timeout(PATIENCE.saturating_sub(start.elapsed()));
        other.kill().unwrap();
        other.wait().unwrap();
    });
    let mut said = String::new();
    let mut output = BufReader::new(watcher.stdout.take().unwrap());
    // Nothing more comes from who was killed, but its other thread keeps the pipe open.
    while elapsed < PATIENCE && output.read_line(&mut said).is_ok_and(|n| n > 0) && !said.ends_with("done\n") {}
    let told = start.elapsed();
    drop(done);
    killer.join().unwrap();
    // Only now what the watcher's other thread does comes to an end.
    drop(mounted);
    watcher.wait().unwrap();
    // SAFETY: the mapping is this function's.
    unsafe { libc::munmap(mapped, 4096) };
    let dump = fs::read(out.path().join(format!("{guest}.json"))).ok();
    Some(([elapsed, told], dump.map(|json| serde_json::from_slice(&json).unwrap())))
}

#[test]
fn reading_that_never_ends_does_not_keep_a_guest() {
    let Some(([elapsed, told], dump)) = ended_after(2000) else {
        return eprintln!("skipped: needs root and FUSE");
    };
    assert!(elapsed < PATIENCE / 2, "{elapsed:?}");
    // The watcher does not wait for the rest: its reading could keep the guest, too.
    assert!(told < PATIENCE, "{told:?}");
    // What does not come from the file is there.
    let dump = dump.unwrap();
    assert_eq!((&dump["exception"]["signal"], &dump["exception"]["address"]), (&11.into(), &"0x1234".into()));
    assert!(dump["missing"].to_string().contains("not read in 500ms"), "{}", dump["missing"]);
    // As if there were no deadline: only who kills the watcher frees the guest.
    let ([elapsed, _], dump) = ended_after(3_600_000).unwrap();
    assert!(elapsed >= PATIENCE && dump.is_none(), "{elapsed:?}");
}

/// The reporter, in the guest, waits for a page that never comes, and the kernel need not let go of the guest even if it is killed.
/// Who waits for the guest is told so at the deadline.
#[test]
fn a_page_that_never_comes_keeps_nobody_but_the_guest() {
    extern "C" fn crashes(page: usize) -> i32 {
        // SAFETY: none: this is the bug. What is to be stored leads to the page.
        unsafe { std::hint::black_box(0x1230 as *mut usize).write_volatile(page) };
        0
    }
    let folder = tempfile::tempdir().unwrap();
    let Some(mounted) = Endless::mount(folder.path()) else {
        return eprintln!("skipped: needs root and FUSE");
    };
    let mapped = map(folder.path());
    let mut sandbox = sandbox::spawn(&Config::new(&POLICY), crashes, mapped.addr()).unwrap();
    let start = Instant::now();
    let outcome = sandbox.wait(Some(Duration::from_secs(1)));
    assert!(start.elapsed() < 4 * PATIENCE, "{outcome:?} after {:?}", start.elapsed());
    assert!(outcome.cause == Cause::Deadline && outcome.left <= 1, "{outcome:?}");
    drop(mounted);
    drop(sandbox);
    // SAFETY: the mapping is this function's.
    unsafe { libc::munmap(mapped, 4096) };
}
