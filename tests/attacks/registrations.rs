//! Addresses that a task registers, and that the kernel then writes to or jumps by: rseq, robust futexes, clear-child-tid. They
//! must never be T's.

use super::*;
use ascetic::abi::PAGE;
use ascetic::experiment;
use ascetic::sandbox::Placement;
use ascetic::sys::{self, Errno, Sysno};
use ascetic::untrusted::call_raw;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use core::time::Duration;

pub const CASES: &[Case] = &[
    case("attack_rseq", || rseq(false)),
    case("attack_rseq_off_shows_it", || rseq(true)),
    case("attack_robust_list", || at_the_end(false, robust_list)),
    case("attack_robust_list_off_shows_it", || at_the_end(true, robust_list)),
    case("attack_clear_tid", || at_the_end(false, clear_tid)),
    case("attack_clear_tid_off_shows_it", || at_the_end(true, clear_tid)),
];

/// Exit status of a T in which the guest's code ran.
const HANDLER_RAN: u8 = freestanding::mechanisms::HANDLER_RAN;
/// Exit status of a guest that was refused.
const REFUSED: u8 = 3;
/// Exit status of a guest whose kernel has no such call.
const MISSING: u8 = 77;

/// Has T make a call; ends if it is refused.
fn ask(nr: Sysno, args: [usize; 6]) {
    // SAFETY: what the kernel does with T is the point.
    match Errno::from_ret(unsafe { call_raw(nr as u32, args) }) {
        Err(Errno::ENOSYS) if allowed() => sys::exit(MISSING.into()),
        Err(Errno::ENOSYS) => sys::exit(REFUSED.into()),
        other => check!(other.is_ok(), "{other:?}"),
    }
}

/// Whether T makes any call.
fn allowed() -> bool {
    // SAFETY: the vault is mapped, and readable.
    unsafe { (*experiment::pages().0).table[Sysno::rseq as usize] == ascetic::abi::ROW_ALLOW }
}

// The guest's code for T, behind the signature that the kernel wants before it.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(".long 0x53053053", "attack_abort: mov edi, 42", "mov eax, 231", "syscall", "ud2");
#[cfg(target_arch = "x86")]
core::arch::global_asm!(".long 0x53053053", "attack_abort: mov ebx, 42", "mov eax, 252", "int 0x80", "ud2");
unsafe extern "C" {
    fn attack_abort();
}

/// T is told that all of its code is a critical section, and the guest's where to go on when it was interrupted there.
fn rseq(off: bool) {
    /// `struct rseq` and `struct rseq_cs` (`include/uapi/linux/rseq.h`).
    #[repr(C, align(32))]
    struct Area {
        cpu: [u32; 2],
        section: u64,
        flags: u32,
        rest: [u32; 3],
    }
    #[repr(C, align(32))]
    struct Section {
        version: u32,
        flags: u32,
        start: u64,
        len: u64,
        abort: u64,
    }
    static mut AREA: Area = Area { cpu: [0; 2], section: 0, flags: 0, rest: [0; 3] };
    static mut SECTION: Section = Section { version: 0, flags: 0, start: 0, len: PAGE as u64, abort: 0 };
    extern "C" fn guest(_: usize) -> i32 {
        let code = experiment::pages().0.addr() - PAGE;
        // SAFETY: statics of this guest's only thread.
        unsafe {
            (&raw mut SECTION.start).write(code as u64);
            (&raw mut SECTION.abort).write((attack_abort as *const ()).addr() as u64);
            ask(Sysno::rseq, [(&raw const AREA).addr(), size_of::<Area>(), 0, 0x5305_3053, 0, 0]);
            (&raw mut AREA.section).write_volatile((&raw const SECTION).addr() as u64);
            loop {
                let _ = call_raw(Sysno::getppid as u32, [0; 6]);
                // The kernel clears it when T was interrupted elsewhere.
                (&raw mut AREA.section).write_volatile((&raw const SECTION).addr() as u64);
            }
        }
    }
    let mut config = Config { placement: Placement::Together, ..config() };
    config.weaken.any_call = off;
    let outcome = run(&config, guest, 0);
    if outcome.guest == Status::Exited(MISSING) {
        skip("this kernel has no rseq");
    }
    let ran = outcome.trusted == Status::Exited(HANDLER_RAN);
    check!(ran == off && (off || outcome.guest == Status::Exited(REFUSED)), "{outcome:?}");
}

/// Memory that the embedder sees, too: its address.
static SHARED: AtomicUsize = AtomicUsize::new(0);

fn shared<'a>() -> &'a [AtomicU32; 1024] {
    // SAFETY: mapped before any guest, for good.
    unsafe { &*(SHARED.load(Ordering::Relaxed) as *const [AtomicU32; 1024]) }
}

/// What the guest has the kernel write to at T's end. It is in shared memory: the guest may be gone by then.
fn word<'a>() -> &'a AtomicU32 {
    &shared()[0]
}

/// What the word holds before.
const BEFORE: u32 = 0x1234;

/// Runs a guest that registers something for T's end: does the kernel write there?
fn at_the_end(off: bool, guest: extern "C" fn(usize) -> i32) {
    let fd = sys::memfd(c"words", PAGE, false).unwrap();
    let at = sys::map_shared(PAGE, sys::PROT_READ | sys::PROT_WRITE, fd).unwrap();
    SHARED.store(at, Ordering::Relaxed);
    let share = [(at, PAGE)];
    let mut config = Config { share: &share, ..config() };
    config.weaken.any_call = off;
    word().store(BEFORE, Ordering::SeqCst);
    let mut sandbox = spawn(&config, guest, 0);
    // Of a list of robust futexes those count that name the task that ends.
    let t = sandbox.pids().0;
    shared()[1].store(t, Ordering::SeqCst);
    let outcome = sandbox.wait(Some(Duration::from_secs(20)));
    if outcome.guest == Status::Exited(MISSING) {
        skip("this kernel has no such call");
    }
    let left = word().load(Ordering::SeqCst);
    check!((left != BEFORE && left != t) == off, "{left:#x}: {outcome:?}");
    check!(off || outcome.guest == Status::Exited(REFUSED), "{outcome:?}");
}

/// Ends T, by a call that only a T makes that makes any, and stays until it is killed for that.
fn end_t() -> ! {
    let mailbox = experiment::mailbox().0 as *mut ascetic::abi::Mailbox;
    // SAFETY: the guest's own mailbox and doorbell. T does not answer.
    unsafe {
        (&raw mut (*mailbox).line.nr).write_volatile(Sysno::exit as u32);
        (&raw mut (*mailbox).line.args).write_volatile([0; 6]);
        let turn = &raw mut (*mailbox).line.turn;
        turn.write_volatile(turn.read_volatile().wrapping_add(1));
    }
    let _ = sys::write(experiment::doorbells().0, &1u64.to_ne_bytes());
    loop {
        core::hint::spin_loop();
    }
}

extern "C" fn robust_list(_: usize) -> i32 {
    /// `struct robust_list_head`: the first entry, where from an entry its word is, the entry that is under way; and an entry.
    static LIST: [AtomicUsize; 5] = [const { AtomicUsize::new(0) }; 5];
    let t = loop {
        match shared()[1].load(Ordering::SeqCst) {
            0 => core::hint::spin_loop(),
            t => break t,
        }
    };
    let entry = LIST[4].as_ptr().addr();
    LIST[0].store(entry, Ordering::SeqCst);
    LIST[1].store(word().as_ptr().addr().wrapping_sub(entry), Ordering::SeqCst);
    LIST[4].store(LIST[0].as_ptr().addr(), Ordering::SeqCst);
    ask(Sysno::set_robust_list, [LIST[0].as_ptr().addr(), 3 * size_of::<usize>(), 0, 0, 0, 0]);
    word().store(t, Ordering::SeqCst);
    end_t()
}

extern "C" fn clear_tid(_: usize) -> i32 {
    ask(Sysno::set_tid_address, [word().as_ptr().addr(), 0, 0, 0, 0, 0]);
    end_t()
}
