//! A sandbox's whole life, for whoever makes the kernel's calls fail one by one (`tests/inject`). Ends with what came of it: every
//! way that this can go is an end of the sandbox, or an error and no sandbox.

use super::files::{open, rooted};
use super::misuse::open_descriptors;
use super::program::{DIRECT, c, program};
use super::threads::{join, start};
use super::*;
use ascetic::policy::Rights;
use ascetic::sandbox::Cause;
use ascetic::sys;
use core::sync::atomic::AtomicU32;
use freestanding::exit;
use freestanding::files::{Scratch, path};

/// An option that `prctl` does not have. The calls between two of these are those to fail.
const MARK: usize = 0x6173_6365;
/// The exit status if there was no sandbox; 0 if there was one.
const REFUSED: i32 = 3;
/// The exit status if something is left of the sandbox.
const LEFT: i32 = 4;

/// Prints `guest`, if guest code runs; `refused ERROR`, or `ended CAUSE; GUEST; TRUSTED; record WHETHER COMPLETE`.
pub fn run(silent: bool) -> ! {
    ascetic::experiment::SILENT_BIRTHS.store(silent, Ordering::Relaxed);
    let scratch = Scratch::with_file();
    let root = path("in");
    let policy = rooted(DIRECT.clone().memory().threads(4), &root, Rights::READ);
    let config = Config { report_denied: false, ..program(&policy) };
    life(&config); // what is made once in a process is made here
    let before = (open_descriptors(), mappings());
    mark();
    let ended = life(&config);
    mark();
    let after = (open_descriptors(), mappings());
    drop(scratch);
    if after != before || has_children() {
        println!("left: descriptors and mappings {before:?}, now {after:?}; children: {}", has_children());
        exit(LEFT);
    }
    exit(if ended { 0 } else { REFUSED })
}

fn mark() {
    // SAFETY: there is no such option.
    let _ = unsafe { sys::prctl(MARK, 0) };
}

fn life(config: &Config<'_>) -> bool {
    let mut sandbox = match sandbox::spawn(config, guest, 0) {
        Ok(sandbox) => sandbox,
        Err(error) => {
            println!("refused {error}");
            return false;
        }
    };
    let outcome = sandbox.wait(Some(Duration::from_secs(8)));
    let mut buffer = [0u8; RECORD_MAX];
    let complete = Record::decode(sandbox.record(&mut buffer)).is_some_and(|record| record.complete);
    println!("ended {:?}; {}; {}; record {complete}", outcome.cause, outcome.guest, outcome.trusted);
    if outcome.cause == Cause::Deadline || outcome.left > 0 {
        println!("left: {outcome:?}");
        exit(LEFT);
    }
    true
}

/// Does something of everything, and crashes.
extern "C" fn guest(_: usize) -> i32 {
    extern "C" fn other(_: usize) {
        // SAFETY: no memory.
        let _ = unsafe { c(Sysno::getppid, []) };
    }
    println!("guest");
    let map = if cfg!(target_arch = "x86") { Sysno::from(192) } else { Sysno::from(9) };
    // SAFETY: new memory, and a descriptor of the guest's own.
    unsafe {
        let Ok(_) = c(map, [0, 4096, 3, 0x22, usize::MAX, 0]) else { return 10 };
        let Ok(fd) = open("in/file", 0) else { return 11 };
        let Ok(_) = c(Sysno::close, [fd]) else { return 12 };
    }
    let word = AtomicU32::new(0);
    match start(0, other, 0, &word) {
        Ok(_) => join(&word),
        Err(_) => return 13,
    }
    // SAFETY: none: the fault is the point.
    unsafe { core::ptr::without_provenance_mut::<u8>(24).write_volatile(0) };
    0
}

/// How many mappings this process has.
fn mappings() -> usize {
    let mut text = [0u8; 512];
    let Ok(fd) = sys::open(c"/proc/self/maps") else { return 0 };
    let mut lines = 0;
    while let Ok(len @ 1..) = sys::read(fd, &mut text) {
        lines += text[..len].iter().filter(|byte| **byte == b'\n').count();
    }
    sys::close(fd);
    lines
}
