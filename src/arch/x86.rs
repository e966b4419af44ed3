//! x86 (i686): `int $0x80`, `sigreturn`, the old frame without siginfo.

mod deliver;

pub(crate) use deliver::fault_info;

use crate::abi::UserDesc;
use crate::signal::{AltStack, SigSet};
use syscalls::Sysno;

assembly!("x86", context_ebx = ebx, context_esi = esi, context_edi = edi, context_ebp = ebp);

/// The architecture's name, as in target triples.
pub const NAME: &str = "i686";
/// `AUDIT_ARCH_I386` (`include/uapi/linux/audit.h`): what a seccomp filter sees.
pub const AUDIT_ARCH: u32 = 0x4000_0003;
/// Flags of a task without direction, alignment check, trap or nested task.
pub const EFLAGS_CLEAN: u32 = 0x202;
/// The alignment-check flag.
pub const EFLAGS_AC: u32 = 1 << 18;
/// The trap flag.
pub const EFLAGS_TF: u32 = 1 << 8;
/// The call that ends a signal handler in strict mode.
pub const NR_SIGRETURN: i32 = Sysno::sigreturn as i32;
/// Flags of a handler beyond `SA_ONSTACK` and `SA_RESTORER`: none. With `SA_SIGINFO` the kernel would build a frame
/// that only `rt_sigreturn` can take down, and strict mode forbids that here.
pub const SA_FRAME: usize = 0;
/// Whether the handler that makes the guest's calls can be left without one: no register is free here.
pub const LEAVES: bool = false;
/// Bytes of a system call instruction.
pub const CALL_LEN: usize = 2;
/// Bytes below the stack pointer that a function may use (System V ABI).
pub const RED_ZONE: usize = 0;
/// The bytes of a trap that is not repeated by returning to it, and how far behind it the program counter is.
pub const BREAKPOINTS: [(&[u8], usize); 3] = [(&[0xcc], 1), (&[0xf1], 1), (&[0xcd, 3], 2)];

/// The most bytes that a [`Frame`] has.
pub const FRAME_MAX: usize = 1024;

/// Whether this is a 32-bit kernel: its segments are elsewhere than a 64-bit one's (`arch/x86/include/asm/segment.h`).
fn is_32_bit_kernel() -> bool {
    let cs: u32;
    // SAFETY: reading a segment selector has no effect.
    unsafe { core::arch::asm!("mov {0:e}, cs", out(reg) cs, options(nomem, nostack, preserves_flags)) };
    cs & 0xffff == 0x73
}

/// The last of the three segments that a thread can set (`GDT_ENTRY_TLS_MAX`): the runtime's. A libc takes the first.
fn state_entry() -> u32 {
    if is_32_bit_kernel() { 8 } else { 14 }
}

/// The calls that give U its segments: the runtime's state, where %fs begins, and the thread-local storage that the guest
/// asked for (`struct user_desc`), where its own selector says. `descriptors` puts them where the sandbox can read them.
pub fn segment_calls(
    state: usize,
    tls: Option<[u32; 4]>,
    descriptors: impl FnOnce([UserDesc; 2]) -> usize,
) -> [Option<(Sysno, [usize; 2])>; 2] {
    const SEG_32BIT_PAGES_USEABLE: u32 = 1 | 1 << 4 | 1 << 6;
    let ours = UserDesc { entry: state_entry(), base: state as u32, limit: 0xf_ffff, flags: SEG_32BIT_PAGES_USEABLE };
    let [entry, base, limit, flags] = tls.unwrap_or_default();
    // A guest that takes the runtime's own is refused by the kernel: there is no such segment.
    let entry = if entry == state_entry() { 0 } else { entry };
    let at = descriptors([ours, UserDesc { entry, base, limit, flags }]);
    let call = |i: usize| (Sysno::set_thread_area, [at + i * size_of::<UserDesc>(), 0]);
    [Some(call(0)), tls.map(|_| call(1))]
}

/// The first word where the runtime's segment begins: in a guest, the address of its state.
pub fn segment_word() -> usize {
    let word;
    // SAFETY: a guest's segment begins with its state, which is mapped; only guests call this.
    unsafe { core::arch::asm!("mov {}, fs:[0]", out(reg) word, options(nostack, preserves_flags, readonly)) };
    word
}

/// About where the caller is.
#[inline(always)]
pub fn here() -> usize {
    let pc;
    // SAFETY: computes an address; the stack is as it was.
    unsafe { core::arch::asm!("call 2f", "2: pop {}", out(reg) pc, options(preserves_flags)) };
    pc
}

/// The registers that a called function preserves, and where the caller goes on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    /// %ebx
    pub ebx: usize,
    /// %esi
    pub esi: usize,
    /// %edi
    pub edi: usize,
    /// %ebp
    pub ebp: usize,
    /// The return address.
    pub pc: usize,
    /// The stack pointer after the return.
    pub sp: usize,
    /// MXCSR: rounding and exceptions of SSE.
    pub mxcsr: u32,
    /// The control word of the x87.
    pub x87: u16,
}

/// What the kernel saves and `sigreturn` restores: `struct sigframe_ia32` from its `sigcontext_32` on
/// (`arch/x86/include/asm/sigframe.h`, `uapi/asm/sigcontext.h`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// gs, fs, es, ds: 16 bits each, padded.
    segments: [u32; 4],
    /// edi, esi, ebp, esp, ebx, edx, ecx, eax.
    gregs: [u32; 8],
    trapno: u32,
    err: u32,
    eip: u32,
    cs: u32,
    eflags: u32,
    sp_at_signal: u32,
    ss: u32,
    fpstate: u32,
    oldmask: u32,
    cr2: u32,
    /// `struct _fpstate_32`, which the kernel no longer uses.
    unused: [u32; 156],
    extramask: u32,
}

const EDI: usize = 0;
const ESI: usize = 1;
const EBP: usize = 2;
const ESP: usize = 3;
const EBX: usize = 4;
const EDX: usize = 5;
const ECX: usize = 6;
const EAX: usize = 7;
const FRAME_PC: usize = core::mem::offset_of!(Frame, eip);

/// Names of the registers in [`Frame::registers`], in order.
pub const REGISTERS: [&str; 19] = [
    "edi", "esi", "ebp", "esp", "ebx", "edx", "ecx", "eax", "eip", "eflags", "cs", "ss", "ds", "es", "fs", "gs", "err",
    "trapno", "cr2",
];

impl Frame {
    fn with(gregs: [u32; 8], pc: usize, mask: SigSet) -> Self {
        let (cs, ss, ds, es, fs, gs): (u32, u32, u32, u32, u32, u32);
        // SAFETY: reading segment selectors has no effect.
        unsafe {
            core::arch::asm!(
                "mov {0:e}, cs", "mov {1:e}, ss", "mov {2:e}, ds", "mov {3:e}, es", "mov {4:e}, fs", "mov {5:e}, gs",
                out(reg) cs, out(reg) ss, out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs,
                options(nomem, nostack, preserves_flags)
            );
        }
        let [lo, hi] = mask.words();
        Self {
            segments: [gs, fs, es, ds],
            gregs,
            trapno: 0,
            err: 0,
            eip: pc as u32,
            cs,
            eflags: EFLAGS_CLEAN,
            sp_at_signal: 0,
            ss,
            fpstate: 0, // none: the kernel gives a clean one
            oldmask: lo,
            cr2: 0,
            unused: [0; 156],
            extramask: hi,
        }
    }

    /// A frame that starts `f(arg)` on an empty stack whose top is `sp` (a multiple of 16).
    ///
    /// # Safety
    ///
    /// `sp` is the top of writable memory: the argument is stored there.
    pub unsafe fn call(f: usize, arg: usize, sp: usize, mask: SigSet, _alt: AltStack) -> Self {
        let esp = sp - 20; // as after a call, on 16 bytes with the argument; the return address is 0
        // SAFETY: the caller says that the memory below `sp` is writable.
        unsafe { ((esp + 4) as *mut usize).write(arg) };
        let mut gregs = [0; 8];
        gregs[ESP] = esp as u32;
        Self::with(gregs, f, mask)
    }

    /// A frame that resumes `context`, whose call then returns 0.
    pub fn resume(context: &Context, mask: SigSet, _alt: AltStack) -> Self {
        let mut gregs = [0; 8];
        gregs[EBX] = context.ebx as u32;
        gregs[ESI] = context.esi as u32;
        gregs[EDI] = context.edi as u32;
        gregs[EBP] = context.ebp as u32;
        gregs[ESP] = context.sp as u32;
        Self::with(gregs, context.pc, mask)
    }

    /// A frame that starts a new thread's runtime: `f` gets `state` and `k` in its registers.
    pub fn thread(f: usize, state: usize, k: usize, sp: usize, mask: SigSet, _alt: AltStack) -> Self {
        let mut gregs = [0; 8];
        gregs[EAX] = state as u32;
        gregs[EDX] = k as u32;
        gregs[ESP] = sp as u32;
        Self::with(gregs, f, mask)
    }

    /// Makes the frame one that this thread's kernel accepts, whoever wrote it: with the mask that is given, and extended
    /// state at `fpstate` (0 for none).
    pub fn adopt(&mut self, mask: SigSet, _alt: AltStack, fpstate: usize) {
        [self.oldmask, self.extramask] = mask.words();
        self.fpstate = fpstate as u32;
    }

    /// The result of a call.
    pub fn set_result(&mut self, result: usize) {
        self.gregs[EAX] = result as u32;
    }
    /// Sets the stack pointer.
    pub fn set_sp(&mut self, sp: usize) {
        self.gregs[ESP] = sp as u32;
    }
    /// Whether the interrupted code runs in this architecture's mode.
    pub fn is_native(&self) -> bool {
        matches!(self.cs & 0xffff, 0x23 | 0x73)
    }
    /// Sets the selector of the runtime's segment.
    pub fn set_state_segment(&mut self) {
        self.segments[1] = state_entry() << 3 | 3;
    }
    /// Sets the selector of the thread-local storage that `tls` (`struct user_desc`) describes.
    pub fn set_tls(&mut self, tls: [u32; 4]) {
        self.segments[0] = tls[0] << 3 | 3;
    }

    /// All registers, as [`REGISTERS`] names them.
    pub fn registers(&self) -> [u64; 19] {
        let g = &self.gregs;
        let [gs, fs, es, ds] = self.segments;
        [
            g[EDI],
            g[ESI],
            g[EBP],
            g[ESP],
            g[EBX],
            g[EDX],
            g[ECX],
            g[EAX],
            self.eip,
            self.eflags,
            self.cs & 0xffff,
            self.ss & 0xffff,
            ds & 0xffff,
            es & 0xffff,
            fs & 0xffff,
            gs & 0xffff,
            self.err,
            self.trapno,
            self.cr2,
        ]
        .map(u64::from)
    }

    /// Program counter.
    pub fn pc(&self) -> usize {
        self.eip as usize
    }
    /// Sets the program counter.
    pub fn set_pc(&mut self, pc: usize) {
        self.eip = pc as u32;
    }
    /// Stack pointer.
    pub fn sp(&self) -> usize {
        self.gregs[ESP] as usize
    }
    /// Frame pointer.
    pub fn fp(&self) -> usize {
        self.gregs[EBP] as usize
    }
    /// Number of the call that a filter trapped.
    pub fn syscall_nr(&self) -> usize {
        self.gregs[EAX] as usize
    }
    /// Arguments of the call that a filter trapped.
    pub fn syscall_args(&self) -> [usize; 6] {
        [EBX, ECX, EDX, ESI, EDI, EBP].map(|i| self.gregs.get(i).map_or(0, |v| *v as usize))
    }
    /// Sets the trap flag: one instruction of the interrupted code runs.
    pub fn single_step(&mut self) {
        self.eflags |= EFLAGS_TF;
    }
    /// Clears the trap flag.
    pub fn forget_step(&mut self) {
        self.eflags &= !EFLAGS_TF;
    }
    /// Whether the trap flag is set.
    pub fn single_steps(&self) -> bool {
        self.eflags & EFLAGS_TF != 0
    }
    /// Stores the result of `rdtsc`, and with `aux` that of `rdtscp`.
    pub fn set_tsc(&mut self, tsc: u64, aux: Option<u32>) {
        self.gregs[EAX] = tsc as u32;
        self.gregs[EDX] = (tsc >> 32) as u32;
        if let Some(aux) = aux {
            self.gregs[ECX] = aux;
        }
    }
    /// Adds a signal (below 32) to the mask that comes back into force.
    pub fn block(&mut self, sig: i32) {
        self.oldmask |= 1 << ((sig - 1) & 31);
    }
    /// Removes a signal (below 32) from the mask that comes back into force.
    pub fn unblock(&mut self, sig: i32) {
        self.oldmask &= !(1 << ((sig - 1) & 31));
    }
    /// Number of the processor's exception (14: page fault), and its error code.
    pub fn trap(&self) -> (u32, u32) {
        (self.trapno, self.err)
    }
    /// The address that the last page fault was about.
    pub fn cr2(&self) -> usize {
        self.cr2 as usize
    }
    /// Where the extended state was saved (FSAVE, then FXSAVE, then XSAVE layout), 0 if nowhere.
    pub fn fpstate(&self) -> usize {
        self.fpstate as usize
    }
    /// Notes that the handler of this frame is about to leave, where the kernel puts the stack pointer when it enters one, and
    /// looks no more (`__unsafe_setup_sigcontext32`, `arch/x86/kernel/signal_32.c`).
    pub(crate) fn set_settled(&mut self, settled: bool) {
        self.sp_at_signal = if settled { u32::MAX } else { self.gregs[ESP] };
    }
    /// Whether it is.
    pub(crate) fn is_settled(&self) -> bool {
        self.sp_at_signal == u32::MAX
    }

    /// Where the FXSAVE part of the extended state begins, and the length of the whole in bytes without XSAVE.
    pub const FXSAVE: (usize, usize) = (112, 112 + 512);
}

/// A system call that the `syscalls` crate has no number for.
///
/// # Safety
///
/// As the call's manual says.
pub unsafe fn syscall3(nr: usize, a: usize, b: usize, c: usize) -> usize {
    let ret;
    // SAFETY: the caller answers for the call; `int 0x80` clobbers nothing else.
    unsafe {
        core::arch::asm!("int 0x80", inlateout("eax") nr => ret, in("ebx") a, in("ecx") b, in("edx") c,
            options(nostack));
    }
    ret
}

/// Whether an address is what it says: there are no bits to spare.
pub fn plain_addresses() -> bool {
    true
}

/// Selector whose limit holds the processor's number (`GDT_ENTRY_CPUNODE`, `arch/x86/include/asm/segment.h`): a
/// 32-bit kernel, whose user code segment is 0x73, has it elsewhere than a 64-bit one.
pub fn cpunode_selector() -> u32 {
    if is_32_bit_kernel() { 28 * 8 + 3 } else { 0x7b }
}
