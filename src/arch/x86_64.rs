//! x86_64: `syscall`, `rt_sigreturn`, the siginfo frame.

mod deliver;

pub(crate) use deliver::fault_info;

use crate::abi::UserDesc;
use crate::signal::{AltStack, SigSet};
use syscalls::Sysno;

assembly!(
    "x86_64",
    context_rbx = rbx,
    context_rbp = rbp,
    context_r12 = r12,
    context_r13 = r13,
    context_r14 = r14,
    context_r15 = r15;
    frame_sp = FRAME_PC - (RIP - RSP) * size_of::<u64>(),
    frame_eflags = FRAME_PC + (EFLAGS - RIP) * size_of::<u64>(),
    frame_fpstate = offset_of!(Frame, fpstate),
    fpstate_features = crate::fault::FEATURES,
);

/// The architecture's name, as in target triples.
pub const NAME: &str = "x86_64";
/// `AUDIT_ARCH_X86_64` (`include/uapi/linux/audit.h`): what a seccomp filter sees.
pub const AUDIT_ARCH: u32 = 0xc000_003e;
/// Flags of a task without direction, alignment check, trap or nested task.
pub const EFLAGS_CLEAN: u32 = 0x202;
/// The alignment-check flag.
pub const EFLAGS_AC: u32 = 1 << 18;
/// The trap flag.
pub const EFLAGS_TF: u32 = 1 << 8;
/// The call that ends a signal handler in strict mode.
pub const NR_SIGRETURN: i32 = Sysno::rt_sigreturn as i32;
/// Flags of a handler beyond `SA_ONSTACK` and `SA_RESTORER`: `SA_SIGINFO`.
pub const SA_FRAME: usize = 4;
/// Whether the handler that makes the guest's calls can be left without one.
pub const LEAVES: bool = true;
/// Bytes of a system call instruction.
pub const CALL_LEN: usize = 2;
/// Bytes below the stack pointer that a function may use (System V ABI).
pub const RED_ZONE: usize = 128;
/// The bytes of a trap that is not repeated by returning to it, and how far behind it the program counter is.
pub const BREAKPOINTS: [(&[u8], usize); 3] = [(&[0xcc], 1), (&[0xf1], 1), (&[0xcd, 3], 2)];

/// The most bytes that a [`Frame`] has.
pub const FRAME_MAX: usize = 1024;
const ARCH_SET_GS: usize = 0x1001;
const ARCH_SET_FS: usize = 0x1002;

/// The calls that give U its segments: the runtime's state, where %gs begins, and the thread-local storage that the guest
/// asked for, where %fs does.
pub fn segment_calls(
    state: usize,
    tls: Option<[u32; 4]>,
    _descriptors: impl FnOnce([UserDesc; 2]) -> usize,
) -> [Option<(Sysno, [usize; 2])>; 2] {
    let tls = tls.map(|[lo, hi, ..]| (u64::from(lo) | u64::from(hi) << 32) as usize);
    [Some((Sysno::arch_prctl, [ARCH_SET_GS, state])), tls.map(|tls| (Sysno::arch_prctl, [ARCH_SET_FS, tls]))]
}

/// The first word where the runtime's segment begins: in a guest, the address of its state.
pub fn segment_word() -> usize {
    let word;
    // SAFETY: a guest's segment begins with its state, which is mapped; only guests call this.
    unsafe { core::arch::asm!("mov {}, gs:[0]", out(reg) word, options(nostack, preserves_flags, readonly)) };
    word
}

/// About where the caller is.
#[inline(always)]
pub fn here() -> usize {
    let pc;
    // SAFETY: computes an address.
    unsafe { core::arch::asm!("lea {}, [rip]", out(reg) pc, options(nostack, preserves_flags, nomem)) };
    pc
}

/// The registers that a called function preserves, and where the caller goes on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    /// %rbx
    pub rbx: usize,
    /// %rbp
    pub rbp: usize,
    /// %r12
    pub r12: usize,
    /// %r13
    pub r13: usize,
    /// %r14
    pub r14: usize,
    /// %r15
    pub r15: usize,
    /// The return address.
    pub pc: usize,
    /// The stack pointer after the return.
    pub sp: usize,
    /// MXCSR: rounding and exceptions of SSE.
    pub mxcsr: u32,
    /// The control word of the x87.
    pub x87: u16,
}

/// What the kernel saves and `rt_sigreturn` restores: `struct ucontext` with `struct sigcontext_64`
/// (`arch/x86/include/uapi/asm/{ucontext,sigcontext}.h`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    uc_flags: u64,
    uc_link: u64,
    uc_stack: AltStack,
    /// r8..r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags.
    gregs: [u64; 18],
    cs: u16,
    gs: u16,
    fs: u16,
    ss: u16,
    err: u64,
    trapno: u64,
    oldmask: u64,
    cr2: u64,
    fpstate: u64,
    reserved: [u64; 8],
    sigmask: SigSet,
}

const RBP: usize = 10;
const RBX: usize = 11;
const RDI: usize = 8;
const RSI: usize = 9;
const RAX: usize = 13;
const RDX: usize = 12;
const RCX: usize = 14;
const RSP: usize = 15;
const RIP: usize = 16;
const EFLAGS: usize = 17;
const FRAME_PC: usize = core::mem::offset_of!(Frame, gregs) + RIP * size_of::<u64>();
/// `UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS`: %ss is in the frame and is to be restored.
const UC_FLAGS: u64 = 2 | 4;
/// Selectors of 64-bit user code and data (`arch/x86/include/asm/segment.h`).
const USER_CS: u16 = 0x33;
const USER_DS: u16 = 0x2b;

/// Names of the registers in [`Frame::registers`], in order.
pub const REGISTERS: [&str; 27] = [
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp",
    "rip", "eflags", "cs", "gs", "fs", "ss", "err", "trapno", "cr2", "fs_base", "gs_base",
];

impl Frame {
    fn with(gregs: [u64; 18], mask: SigSet, alt: AltStack) -> Self {
        Self {
            uc_flags: UC_FLAGS,
            uc_link: 0,
            uc_stack: alt,
            gregs,
            cs: USER_CS,
            gs: 0,
            fs: 0,
            ss: USER_DS,
            err: 0,
            trapno: 0,
            oldmask: 0,
            cr2: 0,
            fpstate: 0, // none: the kernel gives a clean one
            reserved: [0; 8],
            sigmask: mask,
        }
    }

    /// A frame that starts `f(arg)` on an empty stack whose top is `sp` (a multiple of 16).
    ///
    /// # Safety
    ///
    /// `sp` is the top of writable memory.
    pub unsafe fn call(f: usize, arg: usize, sp: usize, mask: SigSet, alt: AltStack) -> Self {
        let mut gregs = [0; 18];
        gregs[RIP] = f as u64;
        gregs[RDI] = arg as u64;
        gregs[RSP] = sp as u64 - 8; // as after a call; the return address is 0: backtraces end here
        gregs[EFLAGS] = u64::from(EFLAGS_CLEAN);
        Self::with(gregs, mask, alt)
    }

    /// A frame that resumes `context`, whose call then returns 0.
    pub fn resume(context: &Context, mask: SigSet, alt: AltStack) -> Self {
        let mut gregs = [0; 18];
        gregs[4] = context.r12 as u64;
        gregs[5] = context.r13 as u64;
        gregs[6] = context.r14 as u64;
        gregs[7] = context.r15 as u64;
        gregs[RBP] = context.rbp as u64;
        gregs[RBX] = context.rbx as u64;
        gregs[RSP] = context.sp as u64;
        gregs[RIP] = context.pc as u64;
        gregs[EFLAGS] = u64::from(EFLAGS_CLEAN);
        Self::with(gregs, mask, alt)
    }

    /// A frame that starts a new thread's runtime: `f` gets `state` and `k` in its first registers.
    pub fn thread(f: usize, state: usize, k: usize, sp: usize, mask: SigSet, alt: AltStack) -> Self {
        let mut gregs = [0; 18];
        gregs[RIP] = f as u64;
        gregs[RDI] = state as u64;
        gregs[RSI] = k as u64;
        gregs[RSP] = sp as u64 - 8;
        gregs[EFLAGS] = u64::from(EFLAGS_CLEAN);
        Self::with(gregs, mask, alt)
    }

    /// Makes the frame one that this thread's kernel accepts, whoever wrote it: with the alternate stack and the mask that
    /// are given, and extended state at `fpstate` (0 for none).
    pub fn adopt(&mut self, mask: SigSet, alt: AltStack, fpstate: usize) {
        self.uc_flags = UC_FLAGS | if fpstate != 0 { self.uc_flags & 1 } else { 0 }; // UC_FP_XSTATE
        self.uc_stack = alt;
        self.sigmask = mask;
        self.fpstate = fpstate as u64;
    }

    /// The result of a call.
    pub fn set_result(&mut self, result: usize) {
        self.gregs[RAX] = result as u64;
    }
    /// Sets the stack pointer.
    pub fn set_sp(&mut self, sp: usize) {
        self.gregs[RSP] = sp as u64;
    }
    /// Whether the interrupted code runs in this architecture's mode.
    pub fn is_native(&self) -> bool {
        self.cs == USER_CS
    }
    /// Sets the runtime's segment: nothing to do, the base stays.
    pub fn set_state_segment(&mut self) {}
    /// Sets the selector of the thread-local storage that `tls` (`struct user_desc`) describes: none here.
    pub fn set_tls(&mut self, _tls: [u32; 4]) {}

    /// All registers, as [`REGISTERS`] names them.
    pub fn registers(&self) -> [u64; 27] {
        let mut all = [0; 27];
        for (to, from) in all.iter_mut().zip(self.gregs) {
            *to = from;
        }
        let (fs_base, gs_base) = segment_bases();
        let rest = [
            u64::from(self.cs),
            u64::from(self.gs),
            u64::from(self.fs),
            u64::from(self.ss),
            self.err,
            self.trapno,
            self.cr2,
            fs_base,
            gs_base,
        ];
        for (to, from) in all.iter_mut().skip(18).zip(rest) {
            *to = from;
        }
        all
    }

    /// Program counter.
    pub fn pc(&self) -> usize {
        self.gregs[RIP] as usize
    }
    /// Sets the program counter.
    pub fn set_pc(&mut self, pc: usize) {
        self.gregs[RIP] = pc as u64;
    }
    /// Stack pointer.
    pub fn sp(&self) -> usize {
        self.gregs[RSP] as usize
    }
    /// Frame pointer.
    pub fn fp(&self) -> usize {
        self.gregs[RBP] as usize
    }
    /// Number of the call that a filter trapped.
    pub fn syscall_nr(&self) -> usize {
        self.gregs[RAX] as usize
    }
    /// Arguments of the call that a filter trapped.
    pub fn syscall_args(&self) -> [usize; 6] {
        // rdi, rsi, rdx, r10, r8, r9
        [RDI, RSI, RDX, 2, 0, 1].map(|i| self.gregs.get(i).map_or(0, |v| *v as usize))
    }
    /// Sets the trap flag: one instruction of the interrupted code runs.
    pub fn single_step(&mut self) {
        self.gregs[EFLAGS] |= u64::from(EFLAGS_TF);
    }
    /// Clears the trap flag.
    pub fn forget_step(&mut self) {
        self.gregs[EFLAGS] &= !u64::from(EFLAGS_TF);
    }
    /// Whether the trap flag is set.
    pub fn single_steps(&self) -> bool {
        self.gregs[EFLAGS] & u64::from(EFLAGS_TF) != 0
    }
    /// Stores the result of `rdtsc`, and with `aux` that of `rdtscp`.
    pub fn set_tsc(&mut self, tsc: u64, aux: Option<u32>) {
        self.gregs[RAX] = tsc & 0xffff_ffff;
        self.gregs[RDX] = tsc >> 32;
        if let Some(aux) = aux {
            self.gregs[RCX] = u64::from(aux);
        }
    }
    /// Adds a signal to the mask that comes back into force.
    pub fn block(&mut self, sig: i32) {
        self.sigmask.add(sig);
    }
    /// Removes a signal from the mask that comes back into force.
    pub fn unblock(&mut self, sig: i32) {
        self.sigmask.remove(sig);
    }
    /// Number of the processor's exception (14: page fault), and its error code.
    pub fn trap(&self) -> (u32, u32) {
        (self.trapno as u32, self.err as u32)
    }
    /// The address that the last page fault was about.
    pub fn cr2(&self) -> usize {
        self.cr2 as usize
    }
    /// Where the extended state was saved (FXSAVE layout, then XSAVE), 0 if nowhere.
    pub fn fpstate(&self) -> usize {
        self.fpstate as usize
    }
    /// Notes that the handler of this frame is about to leave, where the kernel puts 0 when it enters one, and looks no more
    /// (`x64_setup_rt_frame`, `arch/x86/kernel/signal_64.c`).
    pub(crate) fn set_settled(&mut self, settled: bool) {
        self.uc_link = u64::from(settled);
    }
    /// Whether it is.
    pub(crate) fn is_settled(&self) -> bool {
        self.uc_link != 0
    }

    /// Whether a handler that changed nothing but registers can put them back itself (`arch/x86_64/fault.S`): behind
    /// `syscall`, in plain 64-bit code, with extended state in XSAVE's form.
    ///
    /// # Safety
    ///
    /// This is the kernel's frame of a handler that runs.
    pub(crate) unsafe fn leaves(&self) -> bool {
        let plain = self.cs == USER_CS && self.ss == USER_DS && !self.single_steps();
        // SAFETY: the caller's.
        plain && self.gregs[RCX] == self.gregs[RIP] && unsafe { self.extended() } > Self::FXSAVE.1
    }

    /// If a signal interrupted a handler that had all registers put back but these, puts back the rest.
    ///
    /// # Safety
    ///
    /// This is the kernel's frame of a handler that runs.
    pub(crate) unsafe fn finish_leaving(&mut self) {
        let (rest, jump) = (super::asc_leave_rest as *const () as usize, super::asc_leave_jump as *const () as usize);
        if !(rest..=jump).contains(&self.pc()) {
            return;
        }
        #[cfg(feature = "experiments")]
        if crate::experiment::HALF_LEFT.load(core::sync::atomic::Ordering::Relaxed) {
            return;
        }
        if self.pc() != jump {
            // SAFETY: the stack pointer leads to these words of the frame of the handler that was about to leave.
            let [sp, pc] = unsafe { (self.sp() as *const [u64; 2]).read() };
            (self.gregs[RSP], self.gregs[RCX]) = (sp, pc);
        }
        self.gregs[RIP] = self.gregs[RCX];
    }

    /// Where the FXSAVE part of the extended state begins, and the length of the whole in bytes without XSAVE.
    pub const FXSAVE: (usize, usize) = (0, 512);
}

/// %fs and %gs base, where the kernel lets user code read them (`HWCAP2_FSGSBASE` in the auxiliary vector).
fn segment_bases() -> (u64, u64) {
    if !crate::fault::fsgsbase() {
        return (0, 0);
    }
    let (fs, gs): (u64, u64);
    // SAFETY: the kernel said that it set CR4.FSGSBASE, so the instructions exist and do not fault.
    unsafe {
        core::arch::asm!("rdfsbase {}", "rdgsbase {}", out(reg) fs, out(reg) gs, options(nomem, nostack, preserves_flags));
    }
    (fs, gs)
}

/// A system call that the `syscalls` crate has no number for.
///
/// # Safety
///
/// As the call's manual says.
pub unsafe fn syscall3(nr: usize, a: usize, b: usize, c: usize) -> usize {
    let ret;
    // SAFETY: the caller answers for the call; `syscall` clobbers nothing else.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") nr => ret, in("rdi") a, in("rsi") b, in("rdx") c,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    ret
}

/// Whether an address is what it says. With linear address masking (`arch_prctl(2)`, `ARCH_ENABLE_TAGGED_ADDR`) the kernel
/// takes some of its upper bits for nothing, and checks of ranges do not know. Kernels without it say EINVAL.
pub fn plain_addresses() -> bool {
    const ARCH_GET_UNTAG_MASK: usize = 0x4001;
    let mut mask = 0usize;
    // SAFETY: the kernel stores a word.
    match unsafe { crate::sys::call(Sysno::arch_prctl, [ARCH_GET_UNTAG_MASK, (&raw mut mask) as usize, 0, 0, 0, 0]) } {
        // SAFETY: the kernel may have stored there, which the compiler does not see.
        Ok(_) => unsafe { (&raw const mask).read_volatile() == usize::MAX },
        Err(errno) => errno == crate::sys::Errno::EINVAL,
    }
}

/// Selector whose limit holds the processor's number (`__CPUNODE_SEG`, `arch/x86/include/asm/segment.h`).
pub fn cpunode_selector() -> u32 {
    0x7b
}
