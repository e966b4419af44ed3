//! Forged signal frames: `sigreturn` is one of the four calls that a guest has, and sets every register, flag and selector.

use super::*;
use crate::cases::others_are_spared;
use ascetic::arch::{Frame, asc_sigreturn};
use ascetic::experiment;
use ascetic::sandbox::Cause;
use ascetic::signal::{AltStack, SigSet};
use ascetic::sys::Sysno;
use ascetic::untrusted::call;
use core::time::Duration;
use freestanding::threads;

pub const CASES: &[Case] = &[
    case("attack_frame_mode", || mode(false)),
    case("attack_frame_mode_off_shows_it", || mode(true)),
    #[cfg(target_arch = "x86_64")]
    case("attack_frame_stack", || stack(false)),
    #[cfg(target_arch = "x86_64")]
    case("attack_frame_stack_off_shows_it", || stack(true)),
    case("attack_frame_flags", flags),
    case("attack_frame_mask", mask),
];

/// Where selector and flags are in a frame, in bytes: `struct sigcontext_64` and `struct sigcontext_32`
/// (`arch/x86/include/uapi/asm/sigcontext.h`).
#[cfg(target_arch = "x86_64")]
const FIELDS: (usize, usize) = (40 + 18 * 8, 40 + 17 * 8);
#[cfg(target_arch = "x86")]
const FIELDS: (usize, usize) = (4 * (4 + 8 + 3), 4 * (4 + 8 + 4));

/// A frame that calls `f`, on a stack of its own, with these changes.
fn frame(f: usize, mask: SigSet, alt: AltStack) -> Frame {
    // SAFETY: the top of a stack that nobody uses.
    let mut frame = unsafe { Frame::call(f, 0, threads::stack(0), mask, alt) };
    frame.set_state_segment();
    frame
}

fn put<T>(frame: &mut Frame, at: usize, value: T) {
    // SAFETY: inside the frame, of which any bytes are valid.
    unsafe { (&raw mut *frame).cast::<u8>().wrapping_add(at).cast::<T>().write_unaligned(value) };
}

/// Selectors of user code of the other mode (`arch/x86/include/asm/segment.h`).
const OTHER: u16 = if cfg!(target_arch = "x86_64") { 0x23 } else { 0x33 };
/// What a guest says that has made the call.
const WON: u8 = 66;

// `getpid` in the other mode, and the end by its number: with `WON` if there was a process id.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".code32",
    "attack_other_mode: movl $20, %eax",
    "int $0x80",
    "xorl %ebx, %ebx",
    "testl %eax, %eax",
    "jle 1f",
    "movl $66, %ebx",
    "1: movl $1, %eax",
    "int $0x80",
    "ud2",
    ".code64",
    options(att_syntax)
);
// The bytes of: mov $39, %eax; syscall; xor %edi, %edi; test %eax, %eax; jle 1f; mov $66, %edi; 1: mov $60, %eax; syscall; ud2.
#[cfg(target_arch = "x86")]
core::arch::global_asm!(
    "attack_other_mode: .byte 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x31, 0xff, 0x85, 0xc0, 0x7e, 5, 0xbf, 66, 0, 0, 0",
    ".byte 0xb8, 60, 0, 0, 0, 0x0f, 0x05, 0x0f, 0x0b",
    options(att_syntax)
);
unsafe extern "C" {
    fn attack_other_mode();
}

fn mode(off: bool) {
    extern "C" fn guest(_: usize) -> i32 {
        let mut frame = frame(attack_other_mode as *const () as usize, SigSet::EMPTY, AltStack::NONE);
        put(&mut frame, FIELDS.0, OTHER);
        // SAFETY: none: that the guest ends is the point.
        unsafe { asc_sigreturn(&frame) }
    }
    let mut config = config();
    config.weaken.no_lockdown = off;
    let outcome = run(&config, guest, 0);
    if cfg!(target_arch = "x86") && (outcome.guest.is_signal(11) || outcome.guest.is_signal(4)) {
        skip("there is no 64-bit mode on this kernel: the selector is none of code, or `syscall` no instruction");
    }
    let expected = if off { outcome.guest == Status::Exited(WON) } else { outcome.guest.is_signal(9) };
    check!(expected, "{outcome:?}");
}

/// The next signal's frame is to be written over the tokens of the vault: the guest raises one by `rdtsc`. Whether something was
/// written there, the embedder sees before T is killed.
#[cfg(target_arch = "x86_64")]
fn stack(off: bool) {
    use ascetic::abi::PAGE;
    use ascetic::sandbox::{Hook, Sandbox};
    use ascetic::sys;
    use core::sync::atomic::{AtomicUsize, Ordering};
    /// Shared memory, where the guest says where the tokens are.
    static BOARD: AtomicUsize = AtomicUsize::new(0);
    static WRITTEN: AtomicUsize = AtomicUsize::new(0);
    fn board<'a>() -> &'a AtomicUsize {
        // SAFETY: mapped before any guest, for good.
        unsafe { &*(BOARD.load(Ordering::Relaxed) as *const AtomicUsize) }
    }
    extern "C" fn goes_on(_: usize) -> i32 {
        // SAFETY: reads a counter, which raises the signal.
        unsafe { core::arch::asm!("rdtsc", out("eax") _, out("edx") _, options(nomem, nostack)) };
        sys::exit(3)
    }
    extern "C" fn guest(_: usize) -> i32 {
        let tokens = experiment::pages().0.addr() + PAGE;
        board().store(tokens, Ordering::SeqCst);
        let alt = AltStack { sp: tokens, flags: 0, size: 4 * PAGE };
        let frame = frame(goes_on as *const () as usize, SigSet::EMPTY, alt);
        // SAFETY: none, as above.
        unsafe { asc_sigreturn(&frame) }
    }
    fn look(sandbox: &Sandbox<'_>) {
        let mut bytes = [0u8; 4 * PAGE];
        let (local, remote) = ([bytes.as_mut_ptr().addr(), bytes.len()], [board().load(Ordering::SeqCst), 4 * PAGE]);
        let args = [sandbox.pids().0 as usize, local.as_ptr().addr(), 1, remote.as_ptr().addr(), 1, 0];
        // SAFETY: the buffer is as long as it is said to be.
        let read = unsafe { freestanding::call(Sysno::process_vm_readv, args) };
        check!(read == Ok(4 * PAGE), "{read:?}");
        WRITTEN.store(1 + usize::from(bytes.iter().any(|byte| *byte != 0)), Ordering::SeqCst);
    }
    others_are_spared();
    let fd = sys::memfd(c"board", PAGE, false).unwrap();
    let at = sys::map_shared(PAGE, sys::PROT_READ | sys::PROT_WRITE, fd).unwrap();
    BOARD.store(at, Ordering::Relaxed);
    let share = [(at, PAGE)];
    let mut config = Config { share: &share, dying: Some(Hook(&look)), ..config() };
    config.weaken.no_seal = off;
    let outcome = run(&config, guest, 0);
    // What is written over the sandbox's pages ends it, or leaves it without an answer.
    let ends = outcome.guest.is_signal(11) && outcome.cause == Cause::Guest;
    check!(ends || off && outcome.cause == Cause::Deadline, "{outcome:?}");
    check!(WRITTEN.load(Ordering::SeqCst) == 1 + usize::from(off));
}

/// I/O privilege, nested task, virtual mode, resume, alignment checks, interrupts off: the guest then turns interrupts off,
/// which is a fault, and before that makes calls, which T answers.
fn flags() {
    extern "C" fn goes_on(_: usize) -> i32 {
        for _ in 0..100 {
            // SAFETY: touches no memory.
            check!(unsafe { call(Sysno::getppid, [0; 6]) }.is_ok());
        }
        // SAFETY: none: that it faults is the point.
        unsafe { core::arch::asm!("cli") };
        ascetic::sys::exit(WON.into())
    }
    extern "C" fn guest(_: usize) -> i32 {
        const IOPL: u32 = 3 << 12;
        const NT_RF_VM_AC_VIF_VIP: u32 = 1 << 14 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20;
        let mut frame = frame(goes_on as *const () as usize, SigSet::EMPTY, ascetic_altstack());
        put(&mut frame, FIELDS.1, IOPL | NT_RF_VM_AC_VIF_VIP);
        // SAFETY: as above.
        unsafe { asc_sigreturn(&frame) }
    }
    let outcome = run(&config(), guest, 0);
    // Alignment checks make a guest of misaligned data end by SIGBUS, before.
    check!(outcome.cause == Cause::Guest && (outcome.guest.is_signal(11) || outcome.guest.is_signal(7)), "{outcome:?}");
}

/// The alternate stack as it is.
fn ascetic_altstack() -> AltStack {
    // SAFETY: the verdict is mapped, and readable.
    unsafe { (*experiment::pages().1).altstack }
}

/// Everything blocked, and SIGKILL with it: the deadline ends the guest even so.
fn mask() {
    extern "C" fn for_ever(_: usize) -> i32 {
        loop {
            core::hint::spin_loop();
        }
    }
    extern "C" fn guest(_: usize) -> i32 {
        let frame = frame(for_ever as *const () as usize, SigSet::ALL, ascetic_altstack());
        // SAFETY: as above.
        unsafe { asc_sigreturn(&frame) }
    }
    let outcome = spawn(&config(), guest, 0).wait(Some(Duration::from_millis(100)));
    check!(outcome.guest.is_signal(9) && outcome.cause == Cause::Deadline && outcome.left == 0, "{outcome:?}");
}
