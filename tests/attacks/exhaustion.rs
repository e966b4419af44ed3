//! Exhaustion: of tasks, memory, descriptors, of the broker's time, of the memory for crash records.

use super::super::files::rooted;
use super::super::program::{DIRECT, program};
use super::*;
use ascetic::abi::PAGE;
use ascetic::experiment;
use ascetic::policy::{Limits, Rights};
use ascetic::sandbox::RECORD_MAX;
use ascetic::sys::{self, Sysno};
use ascetic::untrusted::{self, call};
use core::sync::atomic::AtomicU32;
use freestanding::files::{MMAP, Scratch, path};
use freestanding::threads;

pub const CASES: &[Case] = &[
    case("attack_tasks", || tasks(false)),
    case("attack_tasks_off_shows_it", || tasks(true)),
    case("attack_memory", || memory(false)),
    case("attack_memory_off_shows_it", || memory(true)),
    case("attack_descriptors", || descriptors(false)),
    case("attack_descriptors_off_shows_it", || descriptors(true)),
    case("attack_calls", || calls(false)),
    case("attack_calls_off_shows_it", || calls(true)),
    case("attack_records", || records(false)),
    case("attack_records_off_shows_it", || records(true)),
];

const NONE: Limits = Limits { threads: 1, mapped: 0, descriptors: 0, calls: 0 };

/// Runs a guest that counts what it gets: no more than `most`, unless there is no limit.
fn gets(config: &Config<'_>, guest: extern "C" fn(usize) -> i32, most: u8, off: bool) {
    let outcome = run(config, guest, 0);
    let Status::Exited(got) = outcome.guest else { return check!(false, "{outcome:?}") };
    check!(if off { got > most } else { got <= most && got > 0 }, "{got}");
}

/// Threads that wait for ever.
fn tasks(off: bool) {
    extern "C" fn waits(_: usize) {
        static NEVER: AtomicU32 = AtomicU32::new(0);
        loop {
            // SAFETY: the word is the guest's.
            let _ = unsafe { call(Sysno::futex, [NEVER.as_ptr().addr(), 0, 0, 0, 0, 0]) };
        }
    }
    extern "C" fn guest(_: usize) -> i32 {
        static WORD: AtomicU32 = AtomicU32::new(1);
        let spawned =
            // SAFETY: the stacks are the threads' for good.
            |i: &usize| unsafe { untrusted::thread::spawn(waits, 0, threads::stack(*i), WORD.as_ptr().addr()) }.is_ok();
        (0..20).take_while(spawned).count() as i32
    }
    let policy = DIRECT.threads(if off { 30 } else { 4 });
    gets(&program(&policy), guest, 3, off);
}

/// MiB after MiB.
fn memory(off: bool) {
    extern "C" fn guest(_: usize) -> i32 {
        let rw = sys::PROT_READ | sys::PROT_WRITE;
        // SAFETY: new memory.
        let mapped = |_: &i32| unsafe { call(MMAP, [0, 1 << 20, rw, 0x22, usize::MAX, 0]) }.is_ok();
        (0..100).take_while(mapped).count() as i32
    }
    let policy = DIRECT.memory().limits(Limits { mapped: if off { 0 } else { 8 << 20 }, ..NONE });
    gets(&program(&policy), guest, 8, off);
}

fn descriptors(off: bool) {
    extern "C" fn guest(_: usize) -> i32 {
        // SAFETY: new descriptors.
        (0..100).take_while(|_| unsafe { call(Sysno::dup, [1, 0, 0, 0, 0, 0]) }.is_ok()).count() as i32
    }
    let policy = DIRECT.limits(Limits { descriptors: if off { 0 } else { 40 }, ..NONE });
    gets(&program(&policy), guest, 40, off);
}

/// Calls to the broker for a tenth of a second: more than the ten that a second allows?
fn calls(off: bool) {
    extern "C" fn guest(_: usize) -> i32 {
        let file = path("/in/file"); // there is a `//` in it, so that no token is used
        let ms = || {
            let mut ts = [0usize; 2];
            // SAFETY: the kernel stores a timespec of two words.
            let _ = unsafe { call(Sysno::clock_gettime, [1, ts.as_mut_ptr().addr(), 0, 0, 0, 0]) };
            ts[0].wrapping_mul(1000).wrapping_add(ts[1] / 1_000_000)
        };
        let start = ms();
        let mut made = 0;
        while made < 200 && ms().wrapping_sub(start) < 1000 {
            // SAFETY: a path.
            let opened = unsafe { call(Sysno::openat, [-100isize as usize, file.as_ptr().addr(), 0, 0, 0, 0]) };
            check!(opened.is_ok(), "{opened:?}");
            // SAFETY: the guest's own.
            let _ = unsafe { call(Sysno::close, [opened.unwrap_or(0), 0, 0, 0, 0, 0]) };
            made += 1;
        }
        made
    }
    let _scratch = Scratch::with_file();
    let root = path("in");
    let limits = Limits { calls: if off { 0 } else { 10 }, ..NONE };
    let policy = rooted(DIRECT.limits(limits), &root, Rights::READ);
    gets(&program(&policy), guest, 30, off);
}

/// The guest writes where crash records go, until nothing more fits: into memory of the supervisor's.
fn records(off: bool) {
    const PIECE: usize = 16 * PAGE;
    extern "C" fn guest(_: usize) -> i32 {
        static BYTES: [u8; PIECE] = [b'x'; PIECE];
        let crash = experiment::first_own_fd() + 1;
        let written = |_: &i32| sys::write(crash, &BYTES).is_ok_and(|n| n > 0);
        (0..100).take_while(written).count() as i32
    }
    let fd = sys::memfd(c"record", 0, false).unwrap();
    let config = Config { crash: off.then_some(fd), ..config() };
    gets(&config, guest, (RECORD_MAX / PIECE) as u8, off);
}
