//! What differs between the architectures. Each defines the same set of names; nothing else in the crate asks which
//! one it is built for, except for the lists of call numbers.
//!
//! The assembly in `arch/` is joined here. `offsets.S` comes first and gives every number a name; the other files use
//! the names, one transition or loop per file.

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
compile_error!("ascetic runs on x86 and x86_64 Linux only: its trusted thread is written in their assembly");

/// Joins the assembly of one architecture, with the operands that both have and those that one adds.
macro_rules! assembly {
    ($arch:literal, $($name:ident = $field:ident),* $(; $($only:ident = $value:expr),* $(,)?)?) => {
        use crate::abi::{self, Line, Mailbox, OpenHow, Step, Token, Vault, VaultPage, Verdict};
        use memoffset::offset_of;
        core::arch::global_asm!(
            include_str!(concat!("../../arch/", $arch, "/offsets.S")),
            include_str!("../../arch/macros.S"),
            include_str!(concat!("../../arch/", $arch, "/clone.S")),
            include_str!(concat!("../../arch/", $arch, "/birth.S")),
            include_str!(concat!("../../arch/", $arch, "/direct.S")),
            include_str!(concat!("../../arch/", $arch, "/deep.S")),
            include_str!(concat!("../../arch/", $arch, "/enter.S")),
            include_str!(concat!("../../arch/", $arch, "/fault.S")),
            include_str!(concat!("../../arch/", $arch, "/gate.S")),
            include_str!(concat!("../../arch/", $arch, "/signal.S")),
            include_str!(concat!("../../arch/", $arch, "/copy.S")),
            word = const size_of::<usize>(),
            eflags_clean = const EFLAGS_CLEAN,
            eflags_ac = const EFLAGS_AC,
            event_size = const size_of::<u64>(),
            exit_doorbell = const crate::trusted::EXIT_DOORBELL,
            max_errno = const crate::sys::MAX_ERRNO,
            eintr = const crate::sys::EINTR,
            futex_cmd_mask = const crate::sys::FUTEX_CMD_MASK,
            nr_futex = const syscalls::Sysno::futex as i32,
            nr_openat2 = const syscalls::Sysno::openat2 as i32,
            nr_read = const syscalls::Sysno::read as i32,
            nr_write = const syscalls::Sysno::write as i32,
            nr_clone = const syscalls::Sysno::clone as i32,
            nr_exit = const syscalls::Sysno::exit as i32,
            nr_sigreturn = const NR_SIGRETURN,
            vault_lo = const offset_of!(VaultPage, vault_lo),
            vault_len = const offset_of!(VaultPage, vault_len),
            vault_fd_lo = const offset_of!(VaultPage, fd_lo),
            vault_fd_len = const offset_of!(VaultPage, fd_len),
            vault_spin = const offset_of!(VaultPage, spin),
            vault_alarm = const offset_of!(VaultPage, alarm),
            vault_futex_ops = const offset_of!(VaultPage, futex_ops),
            vault_patience = const offset_of!(VaultPage, patience),
            vault_second = const offset_of!(VaultPage, second),
            vault_tokens = const offset_of!(Vault, tokens),
            vault_mxcsr = const offset_of!(VaultPage, mxcsr),
            vault_one = const offset_of!(VaultPage, one),
            vault_table = const offset_of!(VaultPage, table),
            table_len = const abi::TABLE_LEN,
            row_allow = const abi::ROW_ALLOW,
            row_small = const abi::ROW_SMALL,
            small = const abi::SMALL,
            row_futex = const abi::ROW_FUTEX,
            row_token = const abi::ROW_TOKEN,
            tokens = const abi::TOKENS,
            token_shift = const abi::TOKEN_SHIFT,
            token_valid = const offset_of!(Token, valid),
            token_root = const offset_of!(Token, root),
            token_rest = const offset_of!(Token, rest),
            token_path = const offset_of!(Token, path),
            token_how = const offset_of!(Token, how),
            how_size = const size_of::<OpenHow>(),
            step_nr = const offset_of!(Step, nr),
            step_flags = const offset_of!(Step, flags),
            step_id = const offset_of!(Step, id),
            step_args = const offset_of!(Step, args),
            step_expect = const offset_of!(Step, expect),
            step_size = const size_of::<Step>(),
            step_check = const abi::STEP_CHECK,
            step_must = const abi::STEP_MUST,
            step_stop = const abi::STEP_STOP,
            step_save = const abi::STEP_SAVE,
            step_keep = const abi::STEP_KEEP,
            step_clone_t = const abi::STEP_CLONE_T,
            step_clone = const abi::STEP_CLONE_T | abi::STEP_CLONE_U,
            step_serve = const abi::STEP_SERVE as i32,
            step_tell = const abi::STEP_TELL,
            step_again = const abi::STEP_AGAIN,
            step_bore = const abi::STEP_BORE as i32,
            verdict = const -(abi::VERDICT_TO_MAILBOX as isize),
            verdict_ask = const offset_of!(Verdict, ask),
            verdict_seq = const offset_of!(Verdict, seq),
            verdict_bore = const offset_of!(Verdict, bore),
            verdict_doorbell_t = const offset_of!(Verdict, doorbell_t),
            verdict_doorbell_u = const offset_of!(Verdict, doorbell_u),
            verdict_script = const offset_of!(Verdict, script),
            verdict_t = const offset_of!(Verdict, t),
            verdict_u = const offset_of!(Verdict, u),
            mailbox_args = const offset_of!(Mailbox, line) + offset_of!(Line, args),
            mailbox_nr = const offset_of!(Mailbox, line) + offset_of!(Line, nr),
            mailbox_turn = const offset_of!(Mailbox, line) + offset_of!(Line, turn),
            mailbox_u_asleep = const offset_of!(Mailbox, line) + offset_of!(Line, u_asleep),
            mailbox_t_asleep = const offset_of!(Mailbox, line) + offset_of!(Line, t_asleep),
            mailbox_asks = const offset_of!(Mailbox, asks),
            mailbox_scratch = const offset_of!(Mailbox, scratch),
            mailbox_birth_result = const offset_of!(Mailbox, birth_result),
            frame_registers = const offset_of!(Frame, gregs),
            frame_pc = const FRAME_PC,
            context_pc = const offset_of!(Context, pc),
            context_sp = const offset_of!(Context, sp),
            $($name = const offset_of!(Context, $field),)*
            $($($only = const $value,)*)?
            fault_handler = sym crate::fault::handler,
            thread_start = sym crate::untrusted::thread::start,
            options(att_syntax)
        );
    };
}

#[cfg(target_arch = "x86")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86")]
pub use x86::*;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

use crate::abi::{Mailbox, Step, Vault};
use crate::signal::{AltStack, SigSet};

/// Flags that a handler starts without: direction, resume, trap.
const EFLAGS_NOT_IN_HANDLERS: u32 = 1 << 10 | 1 << 16 | EFLAGS_TF;
/// Flags that a handler that returns may change (`FIX_EFLAGS`, `arch/x86/kernel/signal.c`): AC OF DF TF SF ZF AF PF CF RF.
const EFLAGS_OF_RETURN: u32 = EFLAGS_AC | EFLAGS_NOT_IN_HANDLERS | 0x8d5;

impl Frame {
    /// Bytes of extended state at [`Self::fpstate`].
    ///
    /// # Safety
    ///
    /// This is the kernel's frame of a handler that runs, or a copy that is resumed as such.
    pub(crate) unsafe fn extended(&self) -> usize {
        let read = |from, to: *mut u8, len| {
            // SAFETY: what the kernel saved is there.
            unsafe { _ = copy(to, from as *const u8, len) }
        };
        crate::fault::extended_len(self.fpstate(), read)
    }
}

/// How a handler of the guest's is entered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub sig: i32,
    pub handler: usize,
    /// Where the handler returns to.
    pub restorer: usize,
    /// Whether it gets a `siginfo_t` and a `ucontext_t`.
    #[cfg_attr(target_arch = "x86_64", expect(dead_code, reason = "it always does here"))]
    pub siginfo: bool,
    /// The frame goes below this address.
    pub top: usize,
    /// What the frame says of the mask and of the alternate stack.
    pub mask: SigSet,
    /// As `mask`.
    pub alt: AltStack,
}

/// Notes the control words of the FPU, which belong to what a called function preserves.
pub fn save_control_words(context: &mut Context) {
    // SAFETY: both store to the field that is given.
    unsafe {
        core::arch::asm!("stmxcsr [{}]", "fnstcw [{}]", in(reg) &raw mut context.mxcsr, in(reg) &raw mut context.x87,
            options(nostack, preserves_flags));
    }
}

/// Sets the control words of the FPU as they were noted.
pub fn load_control_words(context: &Context) {
    // SAFETY: both words were valid when they were noted.
    unsafe {
        core::arch::asm!("ldmxcsr [{}]", "fldcw [{}]", in(reg) &raw const context.mxcsr, in(reg) &raw const context.x87,
            options(nostack, preserves_flags, readonly));
    }
}

/// Copies memory that may not be there; returns how much was not copied. One place that calls the assembly: called in a
/// row, the compiler would call it through a register, and the way could not be followed in the linked program.
///
/// # Safety
///
/// The caller is a guest. What can be written to is its own.
#[inline(never)]
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, n: usize) -> usize {
    // SAFETY: the caller's.
    unsafe { asc_copy(to, from, n) }
}

/// Address and length of the gates.
pub fn gates() -> (usize, usize) {
    let from = asc_gate as *const () as usize;
    // The kernel compares with the address behind the instruction.
    (from, asc_gate_end as *const () as usize - from)
}

unsafe extern "C" {
    /// `arch/*/clone.S`. Returns the child's id or a negative `errno`; the child goes to `entry`.
    ///
    /// # Safety
    ///
    /// `entry` is a label of T's code in a mapped vault; `vault`, `mailbox` and `script` are what `birth.S` says, and
    /// stay mapped as long as the child lives. `id` is writable.
    pub fn asc_clone(
        flags: usize,
        sp: usize,
        entry: usize,
        vault: *const Vault,
        mailbox: *const Mailbox,
        script: *const Step,
        id: *mut u32,
    ) -> isize;
    /// `arch/*/enter.S`. Returns what `f(data)` returns; in the guest, 0.
    ///
    /// # Safety
    ///
    /// As [`crate::sandbox::enter`] uses it: the context is resumed at most once, in a copy of the address space in
    /// which the frames above the caller's are as they were.
    pub fn asc_capture(
        context: *mut Context,
        f: unsafe extern "C" fn(*mut core::ffi::c_void) -> isize,
        data: *mut core::ffi::c_void,
    ) -> isize;
    /// `arch/*/fault.S`: the signal handler that the kernel enters.
    pub fn asc_fault_entry();
    /// `arch/x86_64/fault.S`: goes on with another mask.
    ///
    /// # Safety
    ///
    /// The frame is one that the kernel accepts, with this thread's alternate stack.
    #[cfg(target_arch = "x86_64")]
    pub fn asc_block(frame: *mut Frame);
    /// `arch/x86_64/fault.S`: where a handler begins to leave without a call.
    #[cfg(target_arch = "x86_64")]
    pub fn asc_leave_from();
    /// `arch/x86_64/fault.S`: from here on, a handler that leaves without a call has no frame to go back to, …
    #[cfg(target_arch = "x86_64")]
    pub fn asc_leave_rest();
    /// … and here the last register is to be put back.
    #[cfg(target_arch = "x86_64")]
    pub fn asc_leave_jump();
    /// `arch/*/gate.S`: a system call that strict mode allows.
    ///
    /// # Safety
    ///
    /// As the call's manual page says of these arguments.
    pub fn asc_gate(nr: u32, a: usize, b: usize, c: usize) -> usize;
    /// `arch/*/gate.S`: the same for a call that a signal of the guest's interrupts: `EINTR` if `kicked` is not 0.
    ///
    /// # Safety
    ///
    /// As [`asc_gate`]; `kicked` is readable.
    pub fn asc_pass(nr: u32, a: usize, b: usize, c: usize, kicked: *const u32) -> usize;
    /// `arch/*/gate.S`: from here to [`asc_pass_call`] (included), the call has not been made …
    pub fn asc_pass_from();
    /// See [`asc_pass_from`].
    pub fn asc_pass_call();
    /// … and is not made by going on here.
    pub fn asc_pass_interrupted();
    /// `arch/*/signal.S`: has the handler deliver the guest's signals, before it returns.
    pub fn asc_deliver();
    /// `arch/*/signal.S`: where that traps.
    pub fn asc_deliver_at();
    /// `arch/*/signal.S`: where handlers of the guest's return to that have no restorer, or need none.
    pub fn asc_return();
    /// As [`asc_return`], for a handler without `SA_SIGINFO`.
    pub fn asc_return_old();
    /// `arch/*/signal.S`: an instruction that raises SIGILL, …
    pub fn asc_cause_ill();
    /// … SIGFPE, …
    pub fn asc_cause_fpe();
    /// … SIGTRAP, …
    pub fn asc_cause_trap();
    /// … SIGBUS, if the result register has an address behind the end of a file, …
    pub fn asc_cause_bus();
    /// … SIGSYS, if the guest's calls are caught.
    pub fn asc_cause_sys();
    /// `arch/*/gate.S`: behind the last gate.
    pub fn asc_gate_end();
    /// `arch/*/gate.S`: where a new thread starts.
    pub fn asc_thread();
    /// `arch/*/copy.S`: copies memory that may not be there; returns how much was not copied.
    ///
    /// # Safety
    ///
    /// The caller is a guest. What can be written to is its own.
    pub fn asc_copy(to: *mut u8, from: *const u8, n: usize) -> usize;
    /// `arch/*/copy.S`: the same for text that ends in 0; returns how much was copied, or -1.
    ///
    /// # Safety
    ///
    /// As [`asc_copy`].
    pub fn asc_copy_string(to: *mut u8, from: *const u8, n: usize) -> isize;
    /// `arch/*/copy.S`: where `asc_copy` faults, and where it then goes on.
    pub fn asc_copy_at();
    /// See [`asc_copy_at`].
    pub fn asc_copy_fault();
    /// `arch/*/copy.S`: where `asc_copy_string` faults when it reads, and where it then goes on.
    pub fn asc_copy_string_at();
    /// See [`asc_copy_string_at`].
    pub fn asc_copy_string_fault();
    /// `arch/*/gate.S`: the restorer of signal handlers.
    pub fn asc_restore();
    /// `arch/*/gate.S`: leaves all handlers for a saved context.
    ///
    /// # Safety
    ///
    /// `frame` was written by the kernel for a signal on this thread.
    pub fn asc_sigreturn(frame: *const Frame) -> !;
    /// First byte of T's code.
    pub fn asc_trusted_birth();
    /// Behind the last byte of T's code.
    pub fn asc_trusted_end();
    /// T's entry after the stack pointer was poisoned. For experiments with that defence off.
    pub fn asc_trusted_birth_unpoisoned();
    /// The script interpreter: U's entry.
    pub fn asc_script();
}
