//! The fault reporter: runs in the guest, on its alternate stack, when it crashes.
//!
//! Uses `write` and `read` only, takes no lock, allocates nothing, cannot panic, and reads what may not be there
//! through a pipe, which cannot fault. A fault inside it ends the report, not the truth: every path ends by handing the
//! signal on to the kernel, so that the wait status, and a core if one is wanted, are those of the original fault. One
//! exception: a signal that only the supervisor can send, when it answers no more, ends as SIGSEGV.
//!
//! Guest code can forge, spoil or suppress all of this. It tells; it does not protect.

pub mod classify;
pub mod record;
mod report;
pub mod tsc;

use crate::arch::{self, Frame};
use crate::pair::from_state;
use crate::signal::{self, AltStack, KICK, SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP, SigInfo, SigSet};
use crate::sys;
use crate::untrusted::{self, State, dispatch, gate, signal as guest};
use core::sync::atomic::{AtomicBool, Ordering};

/// Bytes that the reporter copies at a time.
pub(crate) const CHUNK: usize = 4096;
/// `si_code` where the frame has none.
pub(crate) const NO_CODE: i32 = i32::MIN;
/// `si_code` of faults that have no address (`include/uapi/asm-generic/siginfo.h`).
const SI_KERNEL: i32 = 0x80;
/// `si_code` of SIGBUS for memory that has gone bad somewhere (`siginfo.h`).
const BUS_MCEERR_AO: i32 = 5;
/// Overflow (`arch/x86/include/asm/trapnr.h`): a trap, behind the instruction that raised it.
const TRAP_OF: u32 = 4;

/// The reporter's part of a pair's state.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct FaultState {
    stage: u32,
    sig: i32,
    code: i32,
    sent: bool,
    /// The signal that the runtime had sent to itself, where frames do not tell; 0 for none.
    pub(crate) expected: i32,
    frame: *mut Frame,
    /// The frame of the handler that interrupted the guest, and none of the runtime's own.
    outer: *mut Frame,
    /// Whether the handler that makes the guest's calls blocks what the others do: then a call has to leave it.
    blocks: bool,
    /// Whether this thread has stopped because another reports: then `outer` stays as it is.
    stopped: AtomicBool,
    stack: (usize, usize),
    altstack: (usize, usize),
    vault: (usize, usize),
    /// What the kernel says that a signal frame may take (`AT_MINSIGSTKSZ`); 0 if it does not.
    signal_frame: usize,
    /// What is being put together: a section head and a chunk.
    buffer: [u8; CHUNK + 64],
}

/// Whether a thread reports.
static REPORTER: AtomicBool = AtomicBool::new(false);

const IDLE: u32 = 0;
const REPORTING: u32 = 1;
const HANDING_ON: u32 = 2;

impl FaultState {
    /// Notes where things are; addresses from (included) to (excluded).
    pub(crate) fn prepare(&mut self, stack: (usize, usize), alt: AltStack, vault: (usize, usize)) {
        self.stack = stack;
        self.altstack = (alt.sp, alt.sp + alt.size);
        self.vault = vault;
        self.signal_frame = sys::auxv(sys::AT_MINSIGSTKSZ).unwrap_or(0);
        #[cfg(target_arch = "x86_64")]
        FSGSBASE.store(sys::auxv(sys::AT_HWCAP2).unwrap_or(0) & 2 != 0, Ordering::Relaxed);
    }
}

impl FaultState {
    /// Notes the same for another pair, whose guest's stack nobody knows.
    pub(crate) fn again(&mut self, first: &Self, alt: AltStack) {
        self.altstack = (alt.sp, alt.sp.wrapping_add(alt.size));
        self.vault = first.vault;
        self.signal_frame = first.signal_frame;
    }
}

impl FaultState {
    /// Whether nothing was reported.
    pub(crate) fn is_idle(&self) -> bool {
        self.stage == IDLE
    }

    /// The frame of the handler that interrupted the guest.
    pub(crate) fn outer(&self) -> *mut Frame {
        self.outer
    }

    /// Whether a stack pointer is on the alternate stack: handlers run there, and no guest code.
    pub(crate) fn on_altstack(&self, sp: usize) -> bool {
        sp.wrapping_sub(self.altstack.0) <= self.altstack.1.wrapping_sub(self.altstack.0)
    }
}

#[cfg(feature = "experiments")]
impl FaultState {
    pub(crate) fn vault(&self) -> (usize, usize) {
        self.vault
    }
}

/// What handlers block: everything but faults, so that a fault in the reporter is seen, and kicks.
pub(crate) fn blocked() -> SigSet {
    SigSet::of(&[SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS, KICK]).complement()
}

#[cfg(target_arch = "x86_64")]
static FSGSBASE: AtomicBool = AtomicBool::new(false);

/// Whether user code may read segment bases (`HWCAP2_FSGSBASE`).
#[cfg(target_arch = "x86_64")]
pub(crate) fn fsgsbase() -> bool {
    FSGSBASE.load(Ordering::Relaxed)
}

/// U's handler for all reported signals; entered from `arch/*/fault.S`. `info` is null where the frame has none. Returns
/// whether to leave without a call.
///
/// # Safety
///
/// Called by the kernel, with a frame that it built on this thread's alternate stack.
pub(crate) unsafe extern "C" fn handler(sig: i32, info: *const SigInfo, frame: *mut Frame) -> u32 {
    // Whatever the guest made of its segments: the handler runs on the pair's alternate stack.
    let state = from_state::of(frame.addr());
    // SAFETY: the frame and the info are the kernel's; the state is mapped and this thread's own.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        (*frame).finish_leaving();
        if !(*state).fault.on_altstack((*frame).sp()) {
            (*state).fault.outer = frame;
            (*state).fault.blocks = !arch::LEAVES || sig != SIGSYS || !(*state).dispatch;
        }
        handle(state, sig, info, frame);
        let leaves = guest::settle(state, frame) && !(*state).fault.blocks && frame == (*state).fault.outer;
        #[cfg(target_arch = "x86_64")]
        return u32::from(leaves && (*frame).leaves());
        #[cfg(target_arch = "x86")]
        0
    }
}

/// Does what the signal asks for.
///
/// # Safety
///
/// As [`handler`].
unsafe fn handle(state: *mut State, sig: i32, info: *const SigInfo, frame: *mut Frame) {
    // SAFETY: the caller's.
    unsafe {
        if matches!(sig, SIGSEGV | SIGBUS) && copies(frame) {
            return;
        }
        let idle = (*state).fault.stage == IDLE;
        if sig == KICK {
            if idle && REPORTER.load(Ordering::Acquire) {
                stop(state);
            }
            if idle {
                guest::kicked(state, frame); // else the reporter has more to do
            }
            return;
        }
        if idle {
            let done = match sig {
                SIGSYS => dispatch::handle(state, info, frame),
                SIGILL => guest::trap(state, frame),
                _ => false,
            };
            if done {
                return;
            }
        }
        let (code, addr) = if info.is_null() {
            (NO_CODE, arch::fault_info(sig, &*frame).words[0] as usize) // as the kernel has it, which does not say so here
        } else {
            ((*info).code, if (*info).code > 0 { (*info).addr } else { 0 }) // who sent it is in the same place
        };
        match (*state).fault.stage {
            // What somebody sent can have the exception number of an earlier fault.
            IDLE if sig == SIGSEGV && matches!(code, SI_KERNEL | NO_CODE) && tsc::emulate(state, frame) => {}
            IDLE if guest::fault(state, sig, info, frame) => {}
            IDLE => {
                block(state);
                // Sent while the runtime makes a call for the guest: the guest is what was meant.
                let inside = sig == SIGABRT && (*state).fault.on_altstack((*frame).sp());
                let frame = if inside { (*state).fault.outer } else { frame };
                if REPORTER.swap(true, Ordering::AcqRel) {
                    stop(state); // two reports in one would be none
                }
                (*state).fault.stage = REPORTING;
                (*state).fault.sig = sig;
                (*state).fault.code = code;
                (*state).fault.frame = frame;
                (*state).fault.sent = was_sent(state, sig, code, frame);
                report::report(state, sig, code, addr, frame);
                (*state).fault.stage = HANDING_ON;
                hand_on(state, frame);
                if inside {
                    arch::asc_sigreturn(frame);
                }
            }
            REPORTING => {
                // The reporter faulted. What is written is written; end as the guest was to end.
                (*state).fault.stage = HANDING_ON;
                report::nested(state, sig, frame);
                let original = (*state).fault.frame;
                hand_on(state, original);
                arch::asc_sigreturn(original);
            }
            _ => {
                // Returned to, the instruction did not fault: the signal was sent by somebody.
                (*state).fault.sent = true;
                hand_on(state, frame);
            }
        }
    }
}

/// From here on, a handler blocks what the others do, and has to be left by a call.
///
/// # Safety
///
/// `state` is this thread's, in a handler.
pub(crate) unsafe fn block(state: *mut State) {
    // SAFETY: the caller's.
    unsafe {
        if (*state).fault.blocks {
            return;
        }
        (*state).fault.blocks = true;
        #[cfg(target_arch = "x86_64")]
        {
            let (lo, behind) = (*state).fault.altstack;
            let alt = AltStack { sp: lo, flags: 0, size: behind.wrapping_sub(lo) };
            let mut frame = Frame::call(0, 0, size_of::<usize>(), blocked(), alt);
            arch::asc_block(&raw mut frame);
        }
    }
}

/// Another thread reports, and ends all: stays here, with the guest's registers in the frame.
///
/// # Safety
///
/// As [`handler`].
unsafe fn stop(state: *mut State) -> ! {
    // SAFETY: the caller's.
    unsafe {
        (*state).fault.stopped.store(true, Ordering::Release);
        loop {
            let _ = gate::read((*state).doorbell_u, &mut [0; 8]);
        }
    }
}

/// If a copy of guest memory faulted, has it go on where it says so.
///
/// # Safety
///
/// As [`handler`].
unsafe fn copies(frame: *mut Frame) -> bool {
    let labels: [(unsafe extern "C" fn(), unsafe extern "C" fn()); 2] =
        [(arch::asc_copy_at, arch::asc_copy_fault), (arch::asc_copy_string_at, arch::asc_copy_string_fault)];
    // SAFETY: the caller's.
    unsafe {
        let pc = (*frame).pc();
        for (at, on) in labels {
            if pc == at as usize {
                (*frame).set_pc(on as usize);
                return true;
            }
        }
    }
    false
}

/// Whether the program counter is behind a system call instruction.
///
/// # Safety
///
/// As [`handler`].
pub(crate) unsafe fn behind_call(frame: *mut Frame) -> bool {
    let mut behind = [0u8; 2];
    // SAFETY: the caller's.
    let left = unsafe { arch::copy(behind.as_mut_ptr(), (*frame).pc().wrapping_sub(2) as *const u8, 2) };
    // `int $0x80`, `sysenter`, `syscall`
    left == 0 && matches!(behind, [0xcd, 0x80] | [0x0f, 0x34] | [0x0f, 0x05])
}

/// Whether a program counter is in the gates, whose calls nobody catches.
fn in_gates(pc: usize) -> bool {
    let (from, len) = arch::gates();
    pc.wrapping_sub(from) <= len
}

/// Whether somebody sent the signal, rather than an instruction causing it. Where the frame does not tell, what the runtime
/// has had sent and what cannot be a fault was sent; the rest shows when the instruction is repeated.
///
/// # Safety
///
/// As [`handler`].
unsafe fn was_sent(state: *mut State, sig: i32, code: i32, frame: *mut Frame) -> bool {
    if code != NO_CODE {
        return code <= 0 || sig == SIGABRT;
    }
    // SAFETY: the caller's.
    unsafe {
        match sig {
            SIGABRT => true,
            _ if sig == (*state).fault.expected => true,
            SIGTRAP => breakpoint_len(state, frame) == 0 && !(*frame).single_steps(),
            _ => false,
        }
    }
}

/// Arranges that leaving the handler ends the guest with its true signal.
///
/// # Safety
///
/// As [`handler`].
unsafe fn hand_on(state: *mut State, frame: *mut Frame) {
    // SAFETY: the caller's.
    unsafe {
        let sig = (*state).fault.sig;
        let breakpoint = if sig == SIGTRAP { breakpoint_len(state, frame) } else { 0 };
        // Behind a trap that is no instruction's own, such as a single step, the guest would go on.
        // Without a code, a SIGSYS behind a call may have been sent, and the call must not be made again.
        // If calls are caught there, the next one is, too.
        let caught = (*state).selector && behind_call(frame) && !in_gates((*frame).pc());
        let unsure = sig == SIGSYS && (*state).fault.code == NO_CODE && !caught;
        let gone = (*state).fault.sent || unsure || (sig == SIGTRAP && breakpoint == 0);
        if gone || (sig == SIGSEGV && (*frame).trap().0 == TRAP_OF) {
            (*frame).forget_step();
            if let Some(place) = cause(state, sig) {
                // Its action is not reset, so it is caused, and finds itself blocked.
                if sig == SIGBUS {
                    (*frame).set_result(from_state::behind_vault(state, (*state).pair, (*state).pairs as usize));
                }
                (*frame).set_pc(place);
                (*frame).block(sig);
            } else {
                (*frame).unblock(sig);
                // Pending until the frame unblocks it, and then the default. Without a supervisor, a fault has to do.
                if !untrusted::ask_for_signal(state, sig) {
                    (*frame).set_pc(usize::MAX - 15);
                    (*frame).block(SIGSEGV);
                }
            }
            return;
        }
        // The fault repeats; the kernel finds the signal blocked, resets its action and ends the task.
        (*frame).block(sig);
        let pc = (*frame).pc();
        match sig {
            SIGTRAP => (*frame).set_pc(pc.wrapping_sub(breakpoint)),
            SIGSYS => (*frame).set_pc(pc.wrapping_sub(2)), // `syscall`, `sysenter` and `int $0x80` have two bytes
            // Without a code, or with the kernel's, nobody knows that the instruction will fault again. If it does not, the
            // step after it tells.
            _ if matches!((*state).fault.code, NO_CODE | SI_KERNEL | BUS_MCEERR_AO) => (*frame).single_step(),
            _ => {}
        }
    }
}

/// Where an instruction raises this signal; `None` for those whose action was reset when the handler was entered.
///
/// # Safety
///
/// `state` is this thread's.
unsafe fn cause(state: *mut State, sig: i32) -> Option<usize> {
    Some(match sig {
        SIGSEGV => usize::MAX.wrapping_sub(15), // the last bytes, which are no user's
        SIGBUS => arch::asc_cause_bus as *const () as usize,
        SIGILL => arch::asc_cause_ill as *const () as usize,
        SIGFPE => arch::asc_cause_fpe as *const () as usize,
        SIGTRAP => arch::asc_cause_trap as *const () as usize,
        // SAFETY: the caller's.
        SIGSYS if unsafe { (*state).dispatch } => arch::asc_cause_sys as *const () as usize,
        _ => return None,
    })
}

/// Length of the breakpoint instruction that ends at the program counter; 0 if none does.
unsafe fn breakpoint_len(state: *mut State, frame: *mut Frame) -> usize {
    let mut behind = [0u8; 2];
    // SAFETY: the frame is the kernel's.
    let pc = unsafe { (*frame).pc() };
    for (insn, len) in arch::BREAKPOINTS {
        // SAFETY: the state is this thread's.
        let read = unsafe { peek(state, pc.wrapping_sub(len), behind.as_mut_ptr(), len) };
        if read == len && behind.get(..len) == Some(insn) {
            return len;
        }
    }
    0
}

/// Copies memory that may not be there; returns how many bytes it got. Through a pipe, page by page, because a pipe
/// fails as a whole.
///
/// # Safety
///
/// `state` is this thread's; `to` has room for `len` bytes.
pub(crate) unsafe fn peek(state: *mut State, from: usize, to: *mut u8, len: usize) -> usize {
    let mut done = 0;
    while done < len {
        let at = from.wrapping_add(done);
        let in_page = CHUNK.wrapping_sub(at & (CHUNK - 1));
        let want = len.wrapping_sub(done).min(in_page);
        // SAFETY: the kernel checks `at`; `to` has room for what was asked.
        let got = unsafe {
            match gate::write_from((*state).probe_write, at, want) {
                Ok(n) => {
                    let room = core::slice::from_raw_parts_mut(to.wrapping_add(done), n);
                    gate::read((*state).probe_read, room).unwrap_or(0)
                }
                Err(_) => 0,
            }
        };
        done = done.wrapping_add(got);
        if got < want {
            break;
        }
    }
    done
}

/// Where FXSAVE leaves bytes to software.
const SW_BYTES: usize = 464;
/// Where those say which components there are.
#[cfg(target_arch = "x86_64")]
pub(crate) const FEATURES: usize = SW_BYTES + 8;

/// Bytes of XSAVE's header (`struct xstate_header`, `arch/x86/include/asm/fpu/types.h`).
const XSAVE_HEADER: usize = 64;

/// How long the extended state is that the kernel saved at `fpstate`, in bytes; 0 if there is none. Its size is in the
/// bytes that FXSAVE leaves to software (`struct _fpx_sw_bytes`, `uapi/asm/sigcontext.h`), which `read` reads. On a processor
/// without XSAVE the kernel counts a word behind it that is not there (`save_xstate_epilog`, `arch/x86/kernel/fpu/signal.c`).
pub(crate) fn extended_len(fpstate: usize, read: impl FnOnce(usize, *mut u8, usize)) -> usize {
    const MAGIC1: u32 = 0x4650_5853;
    if fpstate == 0 {
        return 0;
    }
    let (fxsave, legacy) = Frame::FXSAVE;
    let mut words = [0u32; 2];
    read(fpstate.wrapping_add(fxsave).wrapping_add(SW_BYTES), words.as_mut_ptr().cast(), size_of_val(&words));
    let len = words[1] as usize;
    if words[0] == MAGIC1 && len >= legacy.wrapping_add(XSAVE_HEADER) { len } else { legacy }
}

/// Empties the probe pipe, should the guest have put something there.
///
/// # Safety
///
/// `state` is this thread's.
pub(crate) unsafe fn drain(state: *mut State) {
    // A pipe has at most 1 MiB by default limits; whatever is left spoils the guest's own report.
    for _ in 0..256 {
        // SAFETY: the caller's.
        let (fd, buffer) = unsafe { ((*state).probe_read, &mut (*state).fault.buffer) };
        if !matches!(gate::read(fd, buffer), Ok(n) if n > 0) {
            return;
        }
    }
}

/// The highest reported signal fits in the low word of a mask: the old frame has no more in its `sigcontext`.
const _: () = assert!(signal::SIGSYS < 32);
