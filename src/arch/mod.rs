//! What differs between the architectures. Each defines the same set of names; nothing else in the crate asks which
//! one it is built for, except for the lists of call numbers.
//!
//! The assembly in `arch/` is joined here. `offsets.S` comes first and gives every number a name; the other files use
//! the names, one transition or loop per file.

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
compile_error!("ascetic runs on x86 and x86_64 Linux only: its trusted thread is written in their assembly");

/// Joins the assembly of one architecture, with the operands that both have and those that one adds.
macro_rules! assembly {
    ($arch:literal, $($name:ident = $field:ident),* $(,)?) => {
        use crate::abi::{Line, Mailbox, Step, VaultPage};
        core::arch::global_asm!(
            include_str!(concat!("../../arch/", $arch, "/offsets.S")),
            include_str!("../../arch/macros.S"),
            include_str!(concat!("../../arch/", $arch, "/clone.S")),
            include_str!(concat!("../../arch/", $arch, "/birth.S")),
            include_str!(concat!("../../arch/", $arch, "/direct.S")),
            include_str!(concat!("../../arch/", $arch, "/enter.S")),
            include_str!(concat!("../../arch/", $arch, "/fault.S")),
            word = const size_of::<usize>(),
            eflags_clean = const EFLAGS_CLEAN,
            eflags_ac = const EFLAGS_AC,
            event_size = const size_of::<u64>(),
            exit_doorbell = const crate::trusted::EXIT_DOORBELL,
            efault = const crate::sys::EFAULT,
            ebadf = const crate::sys::EBADF,
            einval = const crate::sys::EINVAL,
            nr_read = const syscalls::Sysno::read as i32,
            nr_write = const syscalls::Sysno::write as i32,
            nr_clone = const syscalls::Sysno::clone as i32,
            nr_exit = const syscalls::Sysno::exit as i32,
            nr_sigreturn = const NR_SIGRETURN,
            vault_lo = const memoffset::offset_of!(VaultPage, vault_lo),
            vault_len = const memoffset::offset_of!(VaultPage, vault_len),
            vault_fd_lo = const memoffset::offset_of!(VaultPage, fd_lo),
            vault_fd_len = const memoffset::offset_of!(VaultPage, fd_len),
            vault_spin = const memoffset::offset_of!(VaultPage, spin),
            vault_doorbell_t = const memoffset::offset_of!(VaultPage, doorbell_t),
            vault_doorbell_u = const memoffset::offset_of!(VaultPage, doorbell_u),
            vault_default_errno = const memoffset::offset_of!(VaultPage, default_errno),
            vault_mxcsr = const memoffset::offset_of!(VaultPage, mxcsr),
            vault_one = const memoffset::offset_of!(VaultPage, one),
            vault_table = const memoffset::offset_of!(VaultPage, table),
            table_len = const crate::abi::TABLE_LEN,
            row_allow = const crate::abi::ROW_ALLOW,
            row_small = const crate::abi::ROW_SMALL,
            small = const crate::abi::SMALL,
            step_nr = const memoffset::offset_of!(Step, nr),
            step_flags = const memoffset::offset_of!(Step, check),
            step_id = const memoffset::offset_of!(Step, id),
            step_args = const memoffset::offset_of!(Step, args),
            step_expect = const memoffset::offset_of!(Step, expect),
            step_size = const size_of::<Step>(),
            step_check = const crate::abi::STEP_CHECK,
            step_serve = const crate::abi::STEP_SERVE as i32,
            mailbox_args = const memoffset::offset_of!(Mailbox, line) + memoffset::offset_of!(Line, args),
            mailbox_nr = const memoffset::offset_of!(Mailbox, line) + memoffset::offset_of!(Line, nr),
            mailbox_turn = const memoffset::offset_of!(Mailbox, line) + memoffset::offset_of!(Line, turn),
            mailbox_u_asleep = const memoffset::offset_of!(Mailbox, line) + memoffset::offset_of!(Line, u_asleep),
            mailbox_t_asleep = const memoffset::offset_of!(Mailbox, line) + memoffset::offset_of!(Line, t_asleep),
            mailbox_scratch = const memoffset::offset_of!(Mailbox, scratch),
            mailbox_birth_result = const memoffset::offset_of!(Mailbox, birth_result),
            context_pc = const memoffset::offset_of!(Context, pc),
            context_sp = const memoffset::offset_of!(Context, sp),
            $($name = const memoffset::offset_of!(Context, $field),)*
            fault_handler = sym crate::fault::handler,
            options(att_syntax)
        );
    };
}

#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
mod imp;
#[cfg(target_arch = "x86")]
#[path = "x86.rs"]
mod imp;

pub use imp::*;

use crate::abi::{Mailbox, Step, VaultPage};

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
        vault: *const VaultPage,
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
    /// `arch/*/fault.S`: the restorer of signal handlers.
    pub fn asc_restore();
    /// `arch/*/fault.S`: leaves all handlers for a saved context.
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
