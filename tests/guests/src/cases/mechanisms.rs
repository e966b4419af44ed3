//! The three mechanisms that keep handlers out of T, switched on and off one by one: 2⁴ cells.
//!
//! In each cell a guest that is not locked down prepares everything for a handler of its own to run in T, and then takes
//! T's mailbox away. Either the handler runs in T (exit status 42 of T), or T dies of SIGSEGV.

use super::*;
use ascetic::signal::{SA_ONSTACK, SA_RESTORER, SigAction, SigSet};
use ascetic::sys;

macro_rules! cells {
    ($($name:literal $cell:literal)*) => {
        pub const CASES: &[Case] = &[
            $(case(concat!("mechanism_", $name), || cell($cell)),)*
            case("mechanism_hostile_u_kills_t_only", || cell(0)),
        ];
    };
}

cells! {
    "00" 0 "01" 1 "02" 2 "03" 3 "04" 4 "05" 5 "06" 6 "07" 7
    "08" 8 "09" 9 "10" 10 "11" 11 "12" 12 "13" 13 "14" 14 "15" 15
}

/// Exit status of a task in which the guest's handler ran.
const HANDLER_RAN: u8 = 42;

/// Bits of a cell: which defence is *off*.
const SHARED: u8 = 1;
const STACK: u8 = 2;
const UNBLOCKED: u8 = 4;
const ALTSTACK: u8 = 8;

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

/// Runs the cell and returns T's end.
pub fn experiment(cell: u8) -> Status {
    let mut config = config();
    config.weaken.no_lockdown = true;
    config.weaken.no_mseal = true; // or the mailbox could not be taken away
    config.weaken.share_handlers = cell & SHARED != 0;
    config.weaken.keep_stack = cell & STACK != 0;
    config.weaken.unblock = cell & UNBLOCKED != 0;
    config.weaken.altstack = cell & ALTSTACK != 0;
    config.placement = sandbox::Placement::Floating;
    // T must look at the mailbox when it is gone: it never parks.
    config.spin = Some(u32::MAX >> 1);
    run(&config, hostile, 0).trusted
}

/// Whether a handler can run in T: only if the table is shared, the signal not blocked, and there is some stack.
pub fn handler_can_run(cell: u8) -> bool {
    cell & SHARED != 0 && cell & UNBLOCKED != 0 && cell & (STACK | ALTSTACK) != 0
}

fn cell(cell: u8) {
    let end = experiment(cell);
    let expected =
        if handler_can_run(cell) { Status::Exited(HANDLER_RAN) } else { Status::Signaled { signal: 11, core: false } };
    check!(end == expected, "T: {end}, expected {expected}");
}
