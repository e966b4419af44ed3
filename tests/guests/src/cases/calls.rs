//! Brokered calls: results, refusals, time, lock-down.

use super::*;
use ascetic::sandbox::Placement;
use ascetic::seccomp::Lockdown;
use ascetic::sys::Errno;
use ascetic::untrusted::{self, call};
use core::hint::black_box;

pub const CASES: &[Case] = &[
    case("calls_exit_status", || must_exit(&config(), exits, 123, 123)),
    case("calls_results", || must_exit(&config(), results, ascetic::sys::pids().0 as usize, 0)),
    case("calls_refused", || must_exit(&config(), refused, 0, 0)),
    case("calls_one_pid", one_pid),
    case("calls_rdtsc", || must_exit(&config(), rdtsc, 0, 0)),
    case("calls_registers_survive", || must_exit(&config(), registers, 0, 0)),
    case("calls_stack_is_aligned", || must_exit(&config(), aligned, 0, 0)),
    case("calls_blocking", || must_exit(&config(), sleeps, 0, 0)),
    case("calls_together", || many(Placement::Together, None)),
    case("calls_apart", || apart(None)),
    case("calls_apart_no_spin", || apart(Some(0))),
    case("calls_apart_short_spin", || apart(Some(3))),
    case("calls_apart_always_spin", || apart(Some(u32::MAX))),
    case("calls_floating", || many(Placement::Floating, Some(7))),
    case("lockdown_strict_kills", || violation(Lockdown::Strict)),
    case("lockdown_filter_reports", filter_reports),
    case("lockdown_filter_calls", || must_exit(&filtered(), results, ascetic::sys::pids().0 as usize, 0)),
    case("lockdown_filter_pins", filter_pins),
    case("lockdown_off_shows_it", lockdown_off),
];

extern "C" fn exits(code: usize) -> i32 {
    code as i32
}

extern "C" fn results(parent: usize) -> i32 {
    // SAFETY: the calls fill the buffers that they are given.
    unsafe {
        check!(call(Sysno::getppid, [0; 6]) == Ok(parent));
        let mut name = [0u8; 6 * 65];
        check!(call(Sysno::uname, [name.as_mut_ptr() as usize, 0, 0, 0, 0, 0]) == Ok(0));
        check!(name.starts_with(b"Linux\0"));
        let mut random = [0u8; 64];
        check!(call(Sysno::getrandom, [random.as_mut_ptr() as usize, 64, 0, 0, 0, 0]) == Ok(64));
        check!(random != [0; 64]);
        check!(call(Sysno::close, [999, 0, 0, 0, 0, 0]) == Err(Errno::EBADF));
    }
    0
}

extern "C" fn refused(_: usize) -> i32 {
    // SAFETY: refused before anybody looks at the arguments.
    unsafe {
        check!(call(Sysno::kill, [1, 15, 0, 0, 0, 0]) == Err(Errno::ENOSYS));
        for nr in [Sysno::openat, Sysno::mmap, Sysno::prctl, Sysno::fork, Sysno::ptrace] {
            check!(call(nr, [0; 6]) == Err(Errno::ENOSYS), "{}", nr.name());
        }
        check!(call(Sysno::clone3, [0; 6]) == Err(Errno::EPERM));
    }
    0
}

fn one_pid() {
    extern "C" fn guest(_: usize) -> i32 {
        // SAFETY: answered without a call.
        let ids = unsafe { (call(Sysno::getpid, [0; 6]), call(Sysno::gettid, [0; 6])) };
        check!(ids == (Ok(untrusted::getpid() as usize), Ok(untrusted::getpid() as usize)));
        // The parent compares it with what it knows.
        (untrusted::getpid() & 0x7f) as i32
    }
    let mut sandbox = spawn(&config(), guest, 0);
    let pid = sandbox.pids().1;
    check!(sandbox.wait(Some(PATIENCE)).guest == Status::Exited((pid & 0x7f) as u8));
}

/// Whether the processor has `rdtscp` (Intel's manual, CPUID).
pub fn has_rdtscp() -> bool {
    #[cfg(target_arch = "x86")]
    use core::arch::x86::__cpuid;
    #[cfg(target_arch = "x86_64")]
    use core::arch::x86_64::__cpuid;
    const EXTENDED: u32 = 0x8000_0000;
    __cpuid(EXTENDED).eax > EXTENDED && __cpuid(EXTENDED + 1).edx >> 27 & 1 == 1
}

fn read_tsc() -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: no memory.
    unsafe { core::arch::asm!("rdtsc", out("eax") lo, out("edx") hi, options(nomem, nostack)) };
    u64::from(hi) << 32 | u64::from(lo)
}

extern "C" fn rdtsc(_: usize) -> i32 {
    let mut last = read_tsc();
    for _ in 0..100 {
        let next = read_tsc();
        check!(next > last);
        last = next;
    }
    if !has_rdtscp() {
        return 0;
    }
    let (lo, hi, aux): (u32, u32, u32);
    // SAFETY: no memory.
    unsafe { core::arch::asm!("rdtscp", out("eax") lo, out("edx") hi, out("ecx") aux, options(nomem, nostack)) };
    check!((u64::from(hi) << 32 | u64::from(lo)) > last);
    check!(aux & 0xfff < 1024, "{aux:#x}");
    0
}

extern "C" fn registers(_: usize) -> i32 {
    let mut control = 0u16;
    let mut mxcsr = 0u32;
    // SAFETY: the control words are set to legal values; the buffers are the asm's own.
    unsafe {
        core::arch::asm!("fldcw [{}]", in(reg) &0x0b7fu16);
        core::arch::asm!("ldmxcsr [{}]", in(reg) &0x9fc0u32);
        core::arch::asm!("fld1", "fldpi");
        let before: u64 = black_box(0x0123_4567_89ab_cdef);
        core::arch::asm!("movq xmm6, [{}]", in(reg) &before);
        for _ in 0..50 {
            check!(call(Sysno::getppid, [0; 6]).is_ok());
        }
        core::arch::asm!("fnstcw [{}]", in(reg) &mut control);
        core::arch::asm!("stmxcsr [{}]", in(reg) &mut mxcsr);
        let mut pi = 0f64;
        let mut one = 0f64;
        core::arch::asm!("fstp qword ptr [{}]", "fstp qword ptr [{}]", in(reg) &mut pi, in(reg) &mut one);
        // Rounded up, as the control word says.
        check!((pi, one) == (f64::from_bits(core::f64::consts::PI.to_bits() + 1), 1.0));
    }
    check!(control == 0x0b7f && mxcsr & 0xffc0 == 0x9fc0, "{control:#x} {mxcsr:#x}");
    0
}

extern "C" fn aligned(_: usize) -> i32 {
    #[repr(align(16))]
    struct Aligned([u8; 16]);
    let here = black_box(Aligned([0; 16]));
    check!((&raw const here).addr() % 16 == 0);
    // SAFETY: an aligned store to a local.
    unsafe { core::arch::asm!("movaps [{}], xmm0", in(reg) &raw const here.0) };
    0
}

extern "C" fn sleeps(_: usize) -> i32 {
    let time = [0usize, 20_000_000];
    let before = read_tsc();
    // SAFETY: reads a timespec.
    check!(unsafe { call(Sysno::nanosleep, [time.as_ptr() as usize, 0, 0, 0, 0, 0]) } == Ok(0));
    check!(read_tsc() - before > 1_000_000);
    0
}

extern "C" fn hammers(count: usize) -> i32 {
    for _ in 0..count {
        // SAFETY: touches no memory.
        check!(unsafe { call(Sysno::getppid, [0; 6]) }.is_ok());
    }
    0
}

/// Many calls: a lost wake-up would hang.
fn many(placement: Placement, spin: Option<u32>) {
    must_exit(&Config { placement, spin, ..config() }, hammers, if emulated() { 1_000 } else { 20_000 }, 0);
}

fn apart(spin: Option<u32>) {
    if ascetic::sys::affinity().is_ok_and(|set| set.iter().count() < 2) {
        skip("one CPU only");
    }
    many(Placement::Apart, spin);
}

extern "C" fn violates(_: usize) -> i32 {
    // SAFETY: a real call, which the lock-down must stop.
    let _ = unsafe { freestanding::call(Sysno::getppid, []) };
    9
}

fn violation(lockdown: Lockdown) {
    let outcome = run(&Config { lockdown, ..config() }, violates, 0);
    check!(outcome.guest.is_signal(9), "{:?}", outcome);
    check!(outcome.cause == sandbox::Cause::Guest);
}

/// The same guest, not locked down, gets its answer: the test sees what it is about.
fn lockdown_off() {
    let mut config = config();
    config.weaken.no_lockdown = true;
    must_exit(&config, violates, 0, 9);
}

fn filtered() -> Config<'static> {
    Config { lockdown: Lockdown::Filter { read: None, write: None }, ..config() }
}

fn filter_reports() {
    must_crash(&filtered(), violates, 0, 31, |record| {
        let fault = record.fault.unwrap();
        check!(fault.nr == Sysno::getppid as u64, "{}", fault.nr);
        check!(record.class() == ascetic::fault::classify::Class::DeniedCall);
    });
}

fn filter_pins() {
    extern "C" fn guest(fd: usize) -> i32 {
        check!(ascetic::sys::write(1, &[]).is_ok());
        // SAFETY: touches no memory.
        check!(unsafe { call(Sysno::getppid, [0; 6]) }.is_ok());
        ascetic::sys::write(fd as i32, &[]).is_ok() as i32
    }
    let mut pins = [None; 8];
    pins[0] = Some(1);
    let config = Config { lockdown: Lockdown::Filter { read: None, write: Some(pins) }, ..config() };
    must_exit(&config, guest, 1, 1);
    must_crash(&config, guest, 2, 31, |record| check!(record.fault.unwrap().nr == Sysno::write as u64));
}
