//! State that a new task has from its creator: flags, MXCSR, the x87's control word.

use super::super::debug::{ptrace, stopped_by};
use super::super::program::{DIRECT, program};
use super::*;
use ascetic::arch;
use ascetic::sys::Sysno;
use ascetic::untrusted::{self, call};
use core::sync::atomic::AtomicU32;
use freestanding::threads;

pub const CASES: &[Case] = &[
    case("attack_control_words", || control_words(false)),
    case("attack_control_words_off_shows_it", || control_words(true)),
    case("attack_inherited_flags", inherited_flags),
    case("attack_flags", || must_exit(&program(&THREADS), flags, 0, 0)),
];

const THREADS: Policy = DIRECT.threads(4);
/// Division by zero raises an exception; rounds down.
const MXCSR: u32 = 0x1f80 & !0x200 | 0x2000;
/// The same, of the x87.
const CONTROL: u16 = 0x037f & !4 | 0x400;
const CLEAN: (u32, u16) = (0x1f80, 0x037f);

fn set(mxcsr: u32, control: u16) {
    // SAFETY: nothing here computes with fractions.
    unsafe {
        core::arch::asm!("ldmxcsr [{}]", in(reg) &mxcsr);
        core::arch::asm!("fldcw [{}]", in(reg) &control);
    }
}

/// Traces a task, and stops it.
fn stop(task: u32) {
    const SEIZE: usize = 0x4206;
    const INTERRUPT: usize = 0x4207;
    for request in [SEIZE, INTERRUPT] {
        let done = ptrace(request, task, 0);
        check!(done.is_ok(), "{request:#x}: {done:?}");
    }
    check!(stopped_by(task).is_some());
}

/// What T has: MXCSR and the x87's control word, by `ptrace`, where the state is as `fxsave` stores it.
fn words_of(t: u32) -> (u32, u16) {
    const GET: usize = if cfg!(target_arch = "x86_64") { 14 } else { 18 }; // PTRACE_GETFPREGS, PTRACE_GETFPXREGS
    #[repr(C, align(16))]
    struct Area([u32; 128]);
    let mut area = Area([0; 128]);
    stop(t);
    check!(ptrace(GET, t, (&raw mut area).addr()).is_ok());
    (area.0[6], area.0[0] as u16)
}

/// The embedder computes in a way of its own; T does not. T uses neither, so that this is a second line: the first is that it
/// has no such instruction (`cargo xtask audit`).
fn control_words(off: bool) {
    extern "C" fn guest(_: usize) -> i32 {
        loop {
            core::hint::spin_loop();
        }
    }
    let mut config = config();
    config.weaken.unclean = off;
    set(MXCSR, CONTROL);
    let mut sandbox = spawn(&config, guest, 0);
    set(CLEAN.0, CLEAN.1);
    let words = words_of(sandbox.pids().0);
    check!(words == if off { (MXCSR, CONTROL) } else { CLEAN }, "{words:x?}");
    sandbox.kill();
}

/// What can be set of the flags without harm to the code that starts a sandbox: the identification flag.
const FLAG: usize = 1 << 21;

fn set_flags(change: impl FnOnce(usize) -> usize) {
    let flags: usize;
    // SAFETY: pushes a word, and pops it.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!("pushfq", "pop {}", out(reg) flags);
        core::arch::asm!("push {}", "popfq", in(reg) change(flags));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "x86")]
    unsafe {
        core::arch::asm!("pushfd", "pop {}", out(reg) flags);
        core::arch::asm!("push {}", "popfd", in(reg) change(flags));
    }
}

/// A T has none of the flags that the embedder had: no more than any task that runs.
fn inherited_flags() {
    extern "C" fn guest(_: usize) -> i32 {
        loop {
            core::hint::spin_loop();
        }
    }
    const GET: usize = 12; // PTRACE_GETREGS
    const FLAGS: usize = if cfg!(target_arch = "x86_64") { 18 } else { 14 };
    const ARITHMETIC: usize = 0x8d5;
    set_flags(|flags| flags | FLAG);
    let mut sandbox = spawn(&config(), guest, 0);
    let mut own = 0;
    set_flags(|flags| {
        own = flags;
        flags & !FLAG
    });
    check!(own & FLAG != 0, "the embedder has lost it: {own:#x}");
    let mut registers = [0usize; 27];
    stop(sandbox.pids().0);
    check!(ptrace(GET, sandbox.pids().0, registers.as_mut_ptr().addr()).is_ok());
    let flags = registers[FLAGS];
    check!(flags & !ARITHMETIC == arch::EFLAGS_CLEAN as usize, "{flags:#x}");
    sandbox.kill();
}

/// Runs `f` with exceptions of both units on, and one that waits.
fn harmed<T>(f: impl FnOnce() -> T) -> T {
    set(0, 0);
    // SAFETY: a pending exception of the x87, which waits for the next instruction that asks for it: there is none.
    unsafe { core::arch::asm!("fldz", "fld1", "fdivrp", out("st(0)") _, out("st(1)") _) };
    let result = f();
    // SAFETY: clears it.
    unsafe { core::arch::asm!("fnclex", "fninit") };
    set(CLEAN.0, CLEAN.1);
    result
}

extern "C" fn flags(_: usize) -> i32 {
    extern "C" fn calls(_: usize) {
        // SAFETY: touches no memory.
        check!((0..100).all(|_| unsafe { call(Sysno::getppid, [0; 6]) }.is_ok()));
    }
    let word = AtomicU32::new(1);
    for _ in 0..10 {
        word.store(1, core::sync::atomic::Ordering::SeqCst);
        // SAFETY: the stack is the thread's until its word is cleared.
        let born = harmed(|| unsafe { untrusted::thread::spawn(calls, 0, threads::stack(0), word.as_ptr() as usize) });
        check!(born.is_ok(), "{born:?}");
        harmed(|| calls(0));
        threads::join(&word, |at, tid| {
            // SAFETY: the word is the guest's.
            let _ = unsafe { call(Sysno::futex, [at, 0, tid as usize, 0, 0, 0]) };
        });
    }
    0
}
