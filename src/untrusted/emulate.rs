//! Calls that concern nothing but the calling thread, or the sandbox's own bookkeeping: answered here, in U.

use crate::arch;
use crate::arch::Frame;
use crate::sys::Sysno;
#[cfg(target_arch = "x86_64")]
use crate::sys::{Errno, failure};
use crate::untrusted::{State, brokered, gate, signal, thread};

/// The calls that are answered here, whatever the policy says: one bit each.
const ANSWERED: [u64; crate::abi::TABLE_LEN / 64] = {
    let calls = [
        Sysno::getpid,
        Sysno::gettid,
        Sysno::read,
        Sysno::write,
        Sysno::exit,
        Sysno::exit_group,
        Sysno::set_tid_address,
        Sysno::set_robust_list,
        Sysno::rseq,
        Sysno::clone,
        #[cfg(target_arch = "x86_64")]
        Sysno::arch_prctl,
    ];
    let mut bits = [0; crate::abi::TABLE_LEN / 64];
    let mut i = 0;
    while i < calls.len() {
        bits[calls[i] as usize / 64] |= 1 << (calls[i] as usize % 64);
        i += 1;
    }
    let mut i = 0;
    while i < signal::CALLS.len() {
        bits[signal::CALLS[i] as usize / 64] |= 1 << (signal::CALLS[i] as usize % 64);
        i += 1;
    }
    bits
};

/// Whether a call may be answered here.
pub(super) fn answers(nr: u32) -> bool {
    ANSWERED.get(nr as usize / 64).is_some_and(|word| word >> (nr % 64) & 1 != 0)
}

/// Makes a call for the guest. `frame` is where it was interrupted in making it, null if it asked. Returns a negative
/// `errno` on failure.
///
/// # Safety
///
/// `state` is this thread's; otherwise as the call's manual page says.
pub(crate) unsafe fn call(state: *mut State, nr: u32, args: [usize; 6], pc: usize, frame: *mut Frame) -> usize {
    let call = match Sysno::new(nr as usize) {
        Some(call) if answers(nr) => call,
        // SAFETY: the caller's.
        _ => return unsafe { brokered(state, nr, args, pc) },
    };
    // SAFETY: the caller's.
    unsafe {
        match call {
            // T's would be T's own.
            Sysno::getpid => (*state).pid as usize,
            Sysno::gettid => (*state).tid as usize,
            // Strict mode allows them.
            Sysno::read | Sysno::write => signal::pass(state, nr, args, frame),
            Sysno::exit => exit(state, args[0] as i32),
            Sysno::exit_group => exit_group(state, args[0] as i32),
            Sysno::set_tid_address => {
                (*state).clear_tid = args[0];
                (*state).tid as usize
            }
            // Nobody walks the list when U dies; a libc that is told so does without.
            Sysno::set_robust_list => 0,
            // Success without doing so: a libc whose first thread registered before entry aborts if another's fails, and
            // its readers fall back.
            Sysno::rseq => 0,
            Sysno::clone if (*state).threads => thread::clone(state, args, pc, frame),
            #[cfg(target_arch = "x86_64")]
            Sysno::arch_prctl => arch_prctl(args[0], args[1]),
            Sysno::clone => brokered(state, nr, args, pc),
            _ => signal::call(state, call, args, pc, frame),
        }
    }
}

/// Ends this thread.
///
/// # Safety
///
/// `state` is this thread's.
unsafe fn exit(state: *mut State, status: i32) -> ! {
    const FUTEX_WAKE: usize = 1;
    // SAFETY: the caller's; the guest says that the word is its own.
    unsafe {
        (&raw mut (*state).tid).write_volatile(0); // nobody sends it a signal any more
        let word = (*state).clear_tid;
        let zero = 0u32;
        if word != 0 && arch::copy(word as *mut u8, (&raw const zero).cast(), 4) == 0 {
            brokered(state, Sysno::futex as u32, [word, FUTEX_WAKE, 1, 0, 0, 0], 0);
        }
    }
    gate::exit(status)
}

/// Ends all threads.
///
/// # Safety
///
/// `state` is this thread's.
pub(super) unsafe fn exit_group(state: *mut State, status: i32) -> ! {
    // SAFETY: the caller's.
    unsafe {
        if (*state).threads {
            brokered(state, Sysno::exit_group as u32, [status as usize, 0, 0, 0, 0, 0], 0);
        }
    }
    gate::exit(status)
}

/// Segment bases: where the processor lets user code set them. The runtime's own, %gs, is not the guest's.
#[cfg(target_arch = "x86_64")]
fn arch_prctl(what: usize, arg: usize) -> usize {
    const SET_FS: usize = 0x1002;
    const GET_FS: usize = 0x1003;
    if !crate::fault::fsgsbase() || arg >> 47 != 0 {
        return failure(Errno::EPERM);
    }
    match what {
        SET_FS => {
            // SAFETY: the base is the guest's own, and the runtime does not use it.
            unsafe { core::arch::asm!("wrfsbase {}", in(reg) arg, options(nostack, preserves_flags)) };
            0
        }
        GET_FS => {
            let base: usize;
            // SAFETY: reads a register; the copy stops at what is not there.
            let left = unsafe {
                core::arch::asm!("rdfsbase {}", out(reg) base, options(nostack, preserves_flags, nomem));
                arch::copy(arg as *mut u8, (&raw const base).cast(), size_of::<usize>())
            };
            if left == 0 { 0 } else { failure(Errno::EFAULT) }
        }
        _ => failure(Errno::EINVAL),
    }
}
