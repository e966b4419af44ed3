//! What the guests do.

use std::hint::black_box;
use std::thread;

use ascetic::policy::{Policy, Rights};
use ascetic::sys::Sysno;
use ascetic::untrusted;

/// The file that guests open.
const FILE: &str = "/proc/version";

/// What they may.
pub const POLICY: Policy =
    Policy::new().ordinary().memory().threads(8).direct(Sysno::getppid).file(c"/etc/hostname", Rights::READ);

/// A guest, and how it ends if nobody interferes.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// What it is called.
    pub name: &'static str,
    /// Its code.
    pub entry: extern "C" fn(usize) -> i32,
    /// Its end.
    pub end: End,
}

/// How a guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this status.
    Exit(u8),
    /// By this signal, with a record.
    Crash(i32),
    /// Not by itself.
    Never,
}

/// All of them.
pub const GUESTS: [Guest; 11] = [
    Guest { name: "ends", entry: ends, end: End::Exit(3) },
    Guest { name: "calls", entry: calls, end: End::Exit(4) },
    Guest { name: "opens", entry: opens, end: End::Exit(5) },
    Guest { name: "maps", entry: maps, end: End::Exit(6) },
    Guest { name: "threads", entry: threads, end: End::Exit(7) },
    Guest { name: "spins", entry: spins, end: End::Never },
    Guest { name: "waits", entry: waits, end: End::Never },
    Guest { name: "segv", entry: segv, end: End::Crash(libc::SIGSEGV) },
    Guest { name: "ill", entry: ill, end: End::Crash(libc::SIGILL) },
    Guest { name: "aborts", entry: aborts, end: End::Crash(libc::SIGABRT) },
    Guest { name: "crashes among threads", entry: among_threads, end: End::Crash(libc::SIGSEGV) },
];

extern "C" fn ends(_: usize) -> i32 {
    3
}

fn call_often(times: usize) {
    for _ in 0..times {
        // SAFETY: has no arguments.
        let _ = unsafe { untrusted::call(Sysno::getppid, [0; 6]) };
    }
}

extern "C" fn calls(arg: usize) -> i32 {
    call_often(arg);
    4
}

extern "C" fn opens(arg: usize) -> i32 {
    for _ in 0..arg % 64 {
        let _ = std::fs::read("/etc/hostname");
        let _ = std::fs::read(FILE); // refused
    }
    5
}

extern "C" fn maps(arg: usize) -> i32 {
    for i in 0..arg % 64 {
        let mut memory: Vec<u8> = Vec::new();
        if memory.try_reserve_exact((i + 1) << 18).is_ok() {
            memory.resize((i + 1) << 12, 1);
        }
        black_box(memory);
    }
    6
}

/// Threads that call, as many as there can be; without room for one there are fewer.
fn busy(arg: usize) -> Vec<thread::JoinHandle<()>> {
    let start = |i| thread::Builder::new().stack_size(64 << 10).spawn(move || call_often(arg * i)).ok();
    (1..=3).filter_map(start).collect()
}

extern "C" fn threads(arg: usize) -> i32 {
    for handle in busy(arg) {
        let _ = handle.join();
    }
    7
}

extern "C" fn spins(_: usize) -> i32 {
    loop {
        std::hint::spin_loop();
    }
}

extern "C" fn waits(_: usize) -> i32 {
    loop {
        thread::park();
    }
}

extern "C" fn segv(arg: usize) -> i32 {
    call_often(arg % 16);
    // SAFETY: none: this is the bug.
    unsafe { black_box(0x1234 as *mut u8).write_volatile(1) };
    0
}

extern "C" fn ill(_: usize) -> i32 {
    // SAFETY: none: this is the bug.
    unsafe { std::arch::asm!("ud2") };
    0
}

extern "C" fn aborts(_: usize) -> i32 {
    untrusted::abort()
}

extern "C" fn among_threads(arg: usize) -> i32 {
    let handles = busy(1000 + arg);
    segv(arg);
    handles.len() as i32
}
