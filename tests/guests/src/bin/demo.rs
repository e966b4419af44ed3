//! The sandbox's side of `cargo xtask demo`: starts sandboxes and prints facts, one a line, for xtask to check and to
//! put in words.

#![no_std]
#![no_main]

use ascetic::policy::Policy;
use ascetic::sandbox::{self, Config, Outcome, Sandbox};
use ascetic::sys::{self, Sysno};
use ascetic::untrusted::{self, call};
use core::time::Duration;
use freestanding::{Args, crash, exit, mechanisms, pcx, println};

freestanding::start!(main);

const POLICY: Policy = Policy::new().direct(Sysno::getppid).direct(Sysno::uname).direct(Sysno::getrandom);

/// Malformed: its last runs do not fit in the picture.
static FILE: &[u8] = include_bytes!("../../data/overlong.pcx");

const PAGE: usize = 4096;

fn main(_: Args) {
    let config = Config { keep: &[0, 1], ..Config::new(&POLICY) };
    println!("embedder {}", sys::pids().0);

    let mut sandbox = spawn(&config, tour, 0);
    let (t, u) = sandbox.pids();
    println!("tasks {t} {u}");
    ended("tour", sandbox.wait(Some(Duration::from_secs(60))));

    let config = Config { core: crash::core(), ..config };
    crash::show(&config, decode, picture(), |_| ());

    for cell in 0..16 {
        println!("mechanism {cell} {}", mechanisms::experiment(cell));
    }
    println!("end");
}

fn spawn<'a>(config: &Config<'a>, guest: extern "C" fn(usize) -> i32, arg: usize) -> Sandbox<'a> {
    sandbox::spawn(config, guest, arg).unwrap_or_else(|error| {
        println!("error {error}");
        exit(1)
    })
}

fn ended(what: &str, outcome: Outcome) {
    println!("ended {what} {:?}; {}; {}", outcome.cause, outcome.guest, outcome.trusted);
}

/// Room for the picture, with nothing behind it: as a large allocation has it.
fn picture() -> usize {
    let room = sys::reserve(2 * PAGE).unwrap();
    // SAFETY: the reservation is new.
    unsafe { sys::mprotect(room, PAGE, sys::PROT_READ | sys::PROT_WRITE) }.unwrap();
    room
}

/// A guest that shows what it can do, once somebody writes to its standard input.
extern "C" fn tour(_: usize) -> i32 {
    let _ = sys::read(0, &mut [0; 1]);
    let mut name = [0u8; 6 * 65];
    let mut random = [0u8; 8];
    // SAFETY: the buffers have room for what the calls store.
    unsafe {
        result(Sysno::getppid, call(Sysno::getppid, [0; 6]));
        result(Sysno::uname, call(Sysno::uname, [name.as_mut_ptr() as usize, 0, 0, 0, 0, 0]));
        result(Sysno::getrandom, call(Sysno::getrandom, [random.as_mut_ptr() as usize, 8, 0, 0, 0, 0]));
        let passwords = c"/etc/shadow".as_ptr() as usize;
        result(Sysno::openat, call(Sysno::openat, [-100isize as usize, passwords, 0, 0, 0, 0]));
        result(Sysno::kill, call(Sysno::kill, [1, 9, 0, 0, 0, 0]));
    }
    let release = name.split(|b| *b == 0).filter(|s| !s.is_empty()).nth(2).unwrap_or(b"?");
    println!("release {}", core::str::from_utf8(release).unwrap_or("?"));
    println!("pid {}", untrusted::getpid());
    let (a, b) = (rdtsc(), rdtsc());
    println!("rdtsc {a} {b}");
    0
}

fn result(nr: Sysno, result: sys::Result<usize>) {
    match result {
        Ok(value) => println!("call {} {value}", nr.name()),
        Err(errno) => println!("call {} -{}", nr.name(), errno.into_raw()),
    }
}

fn rdtsc() -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: no memory.
    unsafe { core::arch::asm!("rdtsc", out("eax") lo, out("edx") hi, options(nomem, nostack)) };
    u64::from(hi) << 32 | u64::from(lo)
}

/// A guest that decodes a stranger's file.
extern "C" fn decode(pixels: usize) -> i32 {
    untrusted::annotate("input", "overlong.pcx");
    // SAFETY: the calls store nothing, or are refused.
    unsafe {
        let _ = call(Sysno::getppid, [0; 6]);
        let _ = call(Sysno::openat, [0; 6]);
    }
    let decoded = pcx::header(FILE).and_then(|header| {
        untrusted::annotate("stage", "pixels");
        // SAFETY: not met: the file is malformed. That is the demo.
        unsafe { pcx::decode(FILE, &header, pixels as *mut u8) }
    });
    decoded.is_err() as i32
}
