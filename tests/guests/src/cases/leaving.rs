//! The handler that makes the guest's own calls is left without another (`arch/x86_64/fault.S`): a debugger has a signal come at each
//! of its last instructions.

use super::debug::{REGISTERS, ptrace, stopped_by};
use super::program::{DIRECT, has_dispatch, program};
use super::signals::action;
use super::*;
use ascetic::arch::{asc_leave_from, asc_leave_jump, asc_leave_rest};
use ascetic::experiment::{HALF_LEFT, PEND};
use ascetic::signal::{KICK, SIGTRAP};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;
use freestanding::call;

pub const CASES: &[Case] =
    &[case("leaving_restores_all", || check!(leaves(false))), case("leaving_off_shows_it", || check!(!leaves(true)))];

const SETREGS: usize = 13;
const CONT: usize = 7;
const STEP: usize = 9;
const SEIZE: usize = 0x4206;
const INTERRUPT: usize = 0x4207;
const USR1: i32 = 10;
/// The flags in `struct user_regs_struct`, and the trap flag.
const FLAGS: usize = 18;
const TRAP_FLAG: usize = 1 << 8;
/// Instructions from `asc_leave_from` to the guest's next one, and two of its own.
const STEPS: usize = 24 + 2;

/// How many calls were made, and how many when the last signal was handled.
static CALLS: AtomicU32 = AtomicU32::new(0);
static HANDLED: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);

extern "C" fn counts(_: i32) {
    HANDLED.store(CALLS.load(SeqCst), SeqCst);
}

/// Makes calls until it is told to stop. All registers are as they were, but for the three that are the call's.
extern "C" fn guest(_: usize) -> i32 {
    check!(action(USR1, counts as *const () as usize, 0, &[]) == Ok(0));
    while DONE.load(SeqCst) == 0 {
        let bad: usize;
        CALLS.fetch_add(1, SeqCst);
        // SAFETY: registers only, which are restored; the direction flag is cleared before anything goes by it.
        unsafe {
            core::arch::asm!(
                "push rbx", "push rbp", "sub rsp, 16",
                "mov ebx, 0x1b", "mov ebp, 0x1c", "mov edi, 0x17", "mov esi, 0x16", "mov edx, 0x12", "mov r8d, 0x18",
                "mov r9d, 0x19", "mov r10d, 0x1a", "mov r12d, 0x2c", "mov r13d, 0x2d", "mov r14d, 0x2e",
                "mov r15, 0x123456789abcdef", "movq xmm7, r15", "mov dword ptr [rsp], 0x3fbf", "ldmxcsr [rsp]",
                "mov [rsp + 8], rsp", "mov eax, 110", "std", "stc",
                "syscall",
                "2:", "pushfq", "cld",
                "test rax, rax", "jle 3f", "lea rax, [rip + 2b]", "cmp rcx, rax", "jne 3f",
                "cmp rbx, 0x1b", "jne 3f", "cmp rbp, 0x1c", "jne 3f", "cmp rdi, 0x17", "jne 3f", "cmp rsi, 0x16",
                "jne 3f", "cmp rdx, 0x12", "jne 3f", "cmp r8, 0x18", "jne 3f", "cmp r9, 0x19", "jne 3f",
                "cmp r10, 0x1a", "jne 3f", "cmp r12, 0x2c", "jne 3f", "cmp r13, 0x2d", "jne 3f", "cmp r14, 0x2e",
                "jne 3f", "movq rax, xmm7", "cmp rax, r15", "jne 3f", "lea rax, [rsp + 8]", "cmp rax, [rsp + 16]",
                "jne 3f", "mov rax, [rsp]", "and eax, 0x401", "cmp eax, 0x401", "jne 3f", "stmxcsr [rsp + 8]",
                "cmp dword ptr [rsp + 8], 0x3fbf", "jne 3f", "xor eax, eax", "jmp 4f",
                "3:", "mov eax, 1",
                "4:", "mov dword ptr [rsp + 8], 0x1f80", "ldmxcsr [rsp + 8]", "add rsp, 24", "pop rbp", "pop rbx",
                out("rax") bad, out("rdi") _, out("rsi") _, out("rdx") _, out("rcx") _, out("r8") _, out("r9") _,
                out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _, out("xmm7") _,
            );
        }
        if bad != 0 {
            return 9;
        }
    }
    0
}

/// Reads or writes words of the guest's, code included.
fn memory(u: u32, at: *const u32, write: Option<u32>) -> u32 {
    const PEEK: usize = 1;
    const POKE: usize = 4;
    let mut word = 0usize;
    let access = |request, data: usize| {
        // SAFETY: the kernel stores at most a word.
        let done = unsafe { call(Sysno::ptrace, [request, u as usize, at.addr(), data]) };
        check!(done.is_ok(), "{done:?}");
    };
    access(PEEK, &raw mut word as usize);
    if let Some(half) = write {
        access(POKE, word & !0xffff_ffff | half as usize);
    }
    word as u32
}

/// Goes on with a signal, and with all that come, until a trap; `None` if it ends.
fn goes_on(u: u32, with: i32) -> Option<i32> {
    let mut by = with;
    loop {
        check!(ptrace(CONT, u, by as usize).is_ok());
        by = stopped_by(u)?;
        if by == SIGTRAP {
            return Some(by);
        }
    }
}

fn registers(u: u32) -> [usize; REGISTERS.0] {
    let mut registers = [0; REGISTERS.0];
    check!(ptrace(12, u, registers.as_mut_ptr() as usize).is_ok());
    registers
}

/// Whether all went well with a signal at each instruction.
fn leaves(off: bool) -> bool {
    if !has_dispatch() {
        skip("no syscall user dispatch on this kernel");
    }
    if core::arch::x86_64::__cpuid(1).ecx >> 26 & 1 == 0 {
        skip("no XSAVE: the handler is left by rt_sigreturn");
    }
    HALF_LEFT.store(off, SeqCst);
    let mut sandbox = spawn(&Config { dispatch: true, ..program(&DIRECT) }, guest, 0);
    let (_, u) = sandbox.pids();
    check!(ptrace(SEIZE, u, 0).is_ok() && ptrace(INTERRUPT, u, 0).is_ok());
    check!(stopped_by(u).is_some());
    let from = asc_leave_from as *const () as usize;
    let (rest, jump) = (asc_leave_rest as *const () as usize, asc_leave_jump as *const () as usize);
    let code = memory(u, from as *const u32, None);
    let trap = || _ = memory(u, from as *const u32, Some(code & !0xff | 0xcc));
    let mut met = [false; 3];
    let well = (0..STEPS).all(|steps| {
        trap();
        let by = goes_on(u, 0);
        if by != Some(SIGTRAP) {
            check!(off, "{by:?} after {steps} steps");
            return false;
        }
        let mut at = registers(u);
        check!(off || at[REGISTERS.2] == from + 1, "{:#x}", at[REGISTERS.2]);
        at[REGISTERS.2] = from;
        check!(ptrace(SETREGS, u, at.as_mut_ptr() as usize).is_ok());
        memory(u, from as *const u32, Some(code));
        let calls = memory(u, CALLS.as_ptr(), None);
        for step in 0..steps {
            check!(ptrace(STEP, u, 0).is_ok());
            let by = stopped_by(u);
            check!(by == Some(SIGTRAP), "{by:?} at step {step} of {steps}");
        }
        // Of a step over `popf` the kernel thinks that the trap flag is the task's own.
        let mut at = registers(u);
        at[FLAGS] &= !TRAP_FLAG;
        check!(ptrace(SETREGS, u, at.as_mut_ptr() as usize).is_ok());
        let pc = at[REGISTERS.2];
        met.iter_mut().zip([from, rest, jump]).for_each(|(met, label)| *met |= pc == label);
        // The signal comes now, and there is something to deliver. The guest handles it before it calls again.
        memory(u, PEND.as_ptr(), Some(USR1 as u32));
        trap();
        let by = goes_on(u, KICK);
        if by != Some(SIGTRAP) {
            check!(off, "{by:?} after a kick behind {steps} steps");
            return false;
        }
        let mut at = registers(u);
        check!(off || at[REGISTERS.2] == from + 1, "{:#x}", at[REGISTERS.2]);
        at[REGISTERS.2] = from;
        check!(ptrace(SETREGS, u, at.as_mut_ptr() as usize).is_ok());
        memory(u, from as *const u32, Some(code));
        memory(u, HANDLED.as_ptr(), None) == calls
    });
    check!(off || met == [true; 3], "{met:?}");
    if well {
        memory(u, DONE.as_ptr(), Some(1));
        check!(ptrace(17, u, 0).is_ok());
        return sandbox.wait(Some(PATIENCE)).guest == Status::Exited(0);
    }
    false
}
