//! Entry in place.

use super::*;
use ascetic::untrusted;
use core::hint::black_box;

pub const CASES: &[Case] = &[
    Case { name: "enter_exit_status", end: End::Exit(23), run: || exits(23) },
    Case { name: "enter_fault", end: End::Signal(11), run: faults },
    Case { name: "enter_violation", end: End::Signal(9), run: violates },
    Case { name: "enter_abort", end: End::Signal(6), run: aborts },
    Case { name: "enter_stack_overflow", end: End::Signal(11), run: overflows },
    Case { name: "enter_deadline", end: End::Signal(9), run: hangs },
    Case { name: "enter_report", end: End::Exit(44), run: reports },
];

fn enter(config: &Config<'_>) {
    if let Err(error) = sandbox::enter(config) {
        println!("enter: {error}");
        freestanding::exit(1)
    }
    check!(untrusted::is_guest());
}

fn exits(code: i32) {
    let before = ascetic::sys::pids();
    let local = black_box([7u64; 32]);
    let (round_up, mut control, mut mxcsr) = (0x0b7fu16, 0u16, 0u32);
    // SAFETY: legal control words; the rest are stores to locals.
    unsafe { core::arch::asm!("fldcw [{}]", "ldmxcsr [{}]", in(reg) &round_up, in(reg) &0x5f80u32) };
    check!(!untrusted::is_guest() && untrusted::getpid() == 0);
    enter(&config());
    check!(local == [7; 32]);
    // SAFETY: as above.
    unsafe { core::arch::asm!("fnstcw [{}]", "stmxcsr [{}]", in(reg) &mut control, in(reg) &mut mxcsr) };
    check!((control, mxcsr & !0x3f) == (round_up, 0x5f80), "{control:#x} {mxcsr:#x}");
    check!(untrusted::getpid() == before.0);
    // SAFETY: touches no memory. The parent of T and U is the process that entered.
    check!(unsafe { untrusted::call(Sysno::getppid, [0; 6]) } == Ok(before.0 as usize));
    // SAFETY: refused before anybody looks at the arguments.
    check!(unsafe { untrusted::call(Sysno::openat, [0; 6]) }.is_err());
    untrusted::exit(code)
}

fn faults() {
    enter(&config());
    // SAFETY: none: the fault is the point.
    unsafe { (0x10 as *mut u8).write_volatile(1) };
}

fn violates() {
    enter(&config());
    // SAFETY: a real call, which strict mode must stop.
    let _ = unsafe { freestanding::call(Sysno::getppid, []) };
}

fn aborts() {
    enter(&config());
    untrusted::abort()
}

#[inline(never)]
#[allow(unconditional_recursion, reason = "the overflow is the point")]
fn recurse(depth: usize) -> usize {
    let frame = black_box([depth; 64]);
    recurse(depth + 1) + frame[depth % 64]
}

fn overflows() {
    enter(&Config {
        report: Some(|sandbox, _| {
            let mut buffer = [0; RECORD_MAX];
            let Some(record) = Record::decode(sandbox.record(&mut buffer)) else { freestanding::exit(1) };
            if record.class() != ascetic::fault::classify::Class::StackOverflow {
                println!("{}: {}", record.text, record.class().describe());
                freestanding::exit(2)
            }
        }),
        ..config()
    });
    black_box(recurse(0));
}

fn hangs() {
    enter(&Config { deadline: Some(Duration::from_millis(100)), ..config() });
    loop {
        core::hint::spin_loop();
    }
}

fn reports() {
    enter(&Config {
        report: Some(|sandbox, outcome| {
            let mut buffer = [0; RECORD_MAX];
            let complete = Record::decode(sandbox.record(&mut buffer)).is_some_and(|record| record.complete);
            freestanding::exit(if complete && outcome.guest.is_signal(4) { 44 } else { 1 })
        }),
        ..config()
    });
    // SAFETY: raises SIGILL.
    unsafe { core::arch::asm!("ud2") };
}
