//! T's code and T's mailbox, used against T.

use super::*;
use ascetic::abi::{PAGE, STEP_KEEP, STEP_STOP, Step};
use ascetic::experiment;
use ascetic::sandbox::Cause;
use ascetic::sys::{Errno, Sysno};
use ascetic::untrusted::call_raw;

pub const CASES: &[Case] = &[
    case("attack_t_code", || t_code(false)),
    case("attack_t_code_off_shows_it", || t_code(true)),
    case("attack_unmap", || unmap(false)),
    case("attack_unmap_off_fails", || unmap(true)),
];

/// U jumps to where scripts are executed, with one of its own: a call, and then the end, with what the call said.
fn t_code(off: bool) {
    static mut SCRIPT: [Step; 2] = [Step { nr: 0, flags: 0, id: 0, pad: 0, args: [0; 6], expect: 0 }; 2];
    extern "C" fn guest(_: usize) -> i32 {
        let (vault, _) = experiment::pages();
        let (mailbox, _) = experiment::mailbox();
        let code = vault.addr() - PAGE + ascetic::trusted::Entry::Untrusted.offset();
        let script = &raw mut SCRIPT;
        // SAFETY: a static of this guest's only thread.
        unsafe {
            (*script)[0] = Step { nr: Sysno::getuid as u32, flags: STEP_KEEP | STEP_STOP, ..Step::default() };
            (*script)[1] = Step { nr: Sysno::exit as u32, args: [66, 0, 0, 0, 0, 0], ..Step::default() };
        }
        // SAFETY: none: the guest ends here.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            core::arch::asm!("mov rbx, {vault}", "mov rbp, {mailbox}", "mov r15, {script}", "jmp {code}",
                vault = in(reg) vault, mailbox = in(reg) mailbox, script = in(reg) script, code = in(reg) code,
                options(noreturn))
        }
        // SAFETY: none: the guest ends here.
        #[cfg(target_arch = "x86")]
        unsafe {
            core::arch::asm!("mov ebx, eax", "mov ebp, ecx", "mov esi, edx", "jmp edi",
                in("eax") vault, in("ecx") mailbox, in("edx") script, in("edi") code,
                options(noreturn))
        }
    }
    let mut config = config();
    config.weaken.no_lockdown = off;
    let outcome = run(&config, guest, 0);
    let expected = if off { outcome.guest == Status::Exited(66) } else { outcome.guest.is_signal(9) };
    check!(expected && outcome.cause == Cause::Guest, "{outcome:?}");
}

/// The guest has its T unmap the mailbox of both.
fn unmap(off: bool) {
    extern "C" fn guest(_: usize) -> i32 {
        let (at, len) = experiment::mailbox();
        // SAFETY: nobody answers, or the answer is a refusal.
        let asked =
            Errno::from_ret(unsafe { call_raw(Sysno::munmap as u32, [at, len.next_multiple_of(PAGE), 0, 0, 0, 0]) });
        check!(matches!(asked, Err(Errno::EPERM | Errno::EINVAL)), "{asked:?}");
        3
    }
    const MEMORY: Policy = POLICY.memory();
    let mut config = Config { policy: &MEMORY, ..config() };
    config.weaken.any_call = off;
    config.weaken.no_mseal = off;
    let outcome = run(&config, guest, 0);
    let dead = outcome.guest.is_signal(11) || outcome.guest.is_signal(9);
    let expected = if off { dead && outcome.left == 0 } else { outcome.guest == Status::Exited(3) };
    check!(expected, "{outcome:?}");
}
