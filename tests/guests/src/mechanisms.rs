//! The three mechanisms that keep handlers out of T, switched on and off one by one: 2⁴ cells.
//!
//! In each cell a guest that is not locked down prepares everything for a handler of its own to run in T, and then takes
//! T's mailbox away. Either the handler runs in T (exit status 42 of T), or T dies of SIGSEGV.

use crate::{check, exit, println};
use ascetic::error::Status;
use ascetic::policy::Policy;
use ascetic::sandbox::{self, Config, Placement};
use ascetic::signal::{SA_ONSTACK, SA_RESTORER, SigAction, SigSet};
use ascetic::sys;
use core::time::Duration;

/// Exit status of a task in which the guest's handler ran.
pub const HANDLER_RAN: u8 = 42;

/// Bit of a cell: T and U share one table of handlers.
pub const SHARED: u8 = 1;
/// Bit of a cell: T has a valid stack pointer.
pub const STACK: u8 = 2;
/// Bit of a cell: T blocks no signal.
pub const UNBLOCKED: u8 = 4;
/// Bit of a cell: T has an alternate stack.
pub const ALTSTACK: u8 = 8;

/// Exits with [`HANDLER_RAN`] without touching a stack or memory.
unsafe extern "C" fn hostile_handler() {
    // SAFETY: ends the task.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!("mov edi, 42", "mov eax, 231", "syscall", options(noreturn))
    }
    // SAFETY: as above.
    #[cfg(target_arch = "x86")]
    unsafe {
        core::arch::asm!("mov ebx, 42", "mov eax, 252", "int 0x80", options(noreturn))
    }
}

/// Prepares handlers, and unmaps the mailbox under T.
extern "C" fn hostile(_: usize) -> i32 {
    let handler = SigAction {
        handler: hostile_handler as *const () as usize,
        flags: SA_ONSTACK | SA_RESTORER,
        restorer: hostile_handler as *const () as usize,
        mask: SigSet::EMPTY,
    };
    for sig in [11, 7, 4] {
        // SAFETY: the handler ends the task.
        check!(unsafe { sys::sigaction(sig, &handler) }.is_ok());
    }
    takes_mailbox(0)
}

/// A guest that unmaps the mailbox under T, which faults. [`let_take_mailbox`] lets it.
pub extern "C" fn takes_mailbox(_: usize) -> i32 {
    let (mailbox, len) = ascetic::experiment::mailbox();
    // SAFETY: this task uses the mailbox no more.
    if let Err(errno) = unsafe { sys::munmap(mailbox, len) } {
        // The kernel sealed it (mseal): make T fault by other means.
        println!("munmap of the mailbox: {errno}");
        return 3;
    }
    loop {
        core::hint::spin_loop();
    }
}

/// Lets a guest take the mailbox away from under T.
pub fn let_take_mailbox(config: &mut Config<'_>) {
    config.weaken.no_lockdown = true;
    config.weaken.no_mseal = true; // or the mailbox could not be taken away
    config.placement = Placement::Floating;
    // T must look at the mailbox when it is gone: it never parks.
    config.spin = Some(u32::MAX >> 1);
}

/// Runs the cell and returns T's end.
pub fn experiment(cell: u8) -> Status {
    const NONE: Policy = Policy::new();
    let mut config = Config { keep: &[1], ..Config::new(&NONE) };
    let_take_mailbox(&mut config);
    config.weaken.share_handlers = cell & SHARED != 0;
    config.weaken.keep_stack = cell & STACK != 0;
    config.weaken.unblock = cell & UNBLOCKED != 0;
    config.weaken.altstack = cell & ALTSTACK != 0;
    match sandbox::spawn(&config, hostile, 0) {
        Ok(mut sandbox) => sandbox.wait(Some(Duration::from_secs(60))).trusted,
        Err(error) => {
            println!("spawn: {error}");
            exit(1)
        }
    }
}

/// Whether a handler can run in T: only if the table is shared, the signal not blocked, and there is some stack.
pub fn handler_can_run(cell: u8) -> bool {
    cell & SHARED != 0 && cell & UNBLOCKED != 0 && cell & (STACK | ALTSTACK) != 0
}
