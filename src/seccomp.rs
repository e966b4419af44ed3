//! How U is locked down.
//!
//! [`Lockdown::Strict`] is the default: `SECCOMP_MODE_STRICT`, four calls, no program to get wrong. Newer x86_64 kernels let
//! `uretprobe` pass as well, and then `uprobe` (`kernel/seccomp.c`, `mode1_syscalls`): called from anywhere but the kernel's own
//! trampoline, which is there for tasks that are probed, they do nothing but fail. The kernel refuses strict mode
//! to a task that has a filter already; [`Lockdown::Filter`] is for those, and for guests whose `read` and `write`
//! are to be pinned to descriptors: a filter that lets the same four calls pass and turns every other into SIGSYS.

use crate::arch;
use crate::sys::Sysno;

/// `SECCOMP_MODE_STRICT`
pub const MODE_STRICT: usize = 1;
/// `SECCOMP_MODE_FILTER`
pub const MODE_FILTER: usize = 2;

/// How U is locked down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    /// `SECCOMP_MODE_STRICT`: `read`, `write`, `exit` and (`rt_`)`sigreturn`, on any descriptor. Any other call ends the
    /// task with SIGKILL.
    Strict,
    /// The same four calls by a filter. Any other call is SIGSYS: reported, then the end. Does not disable the time
    /// stamp counter.
    Filter {
        /// Descriptors that `read` may use, besides the sandbox's own; `None` for all.
        read: Pins,
        /// Descriptors that `write` may use, besides the sandbox's own; `None` for all.
        write: Pins,
    },
}

/// Up to eight descriptors, or all.
pub type Pins = Option<[Option<u32>; 8]>;

/// One instruction of classic BPF: `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Insn {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

/// `struct sock_fprog`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Number of instructions.
    pub len: u16,
    /// The first.
    pub insns: usize,
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JEQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JGE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RET: u16 = 0x06; // BPF_RET | BPF_K
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_TRAP: u32 = 0x0003_0000;
const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;
const DATA_ARG0: u32 = 16; // low half: the kernel looks at 32 bits of a descriptor

/// Instructions that a filter may have.
pub const FILTER_LEN: usize = 56;

/// Collects instructions; what does not fit is refused at the end.
struct Assembler {
    insns: [Insn; FILTER_LEN],
    len: usize,
}

impl Assembler {
    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) {
        if let Some(slot) = self.insns.get_mut(self.len) {
            *slot = Insn { code, jt, jf, k };
        }
        self.len += 1;
    }

    /// Allows call `nr`, on the given descriptors and on `own` (first, behind the last).
    fn allow(&mut self, nr: i32, pins: Pins, own: (u32, u32)) {
        let Some(pins) = pins else {
            self.push(JEQ, 0, 1, nr as u32);
            return self.push(RET, 0, 0, RET_ALLOW);
        };
        let count = pins.iter().flatten().count() as u8;
        // nr? load the descriptor; a pinned one or the sandbox's own? allow, else trap.
        self.push(JEQ, 0, count * 2 + 5, nr as u32);
        self.push(LOAD, 0, 0, DATA_ARG0);
        for fd in pins.iter().flatten() {
            self.push(JEQ, 0, 1, *fd);
            self.push(RET, 0, 0, RET_ALLOW);
        }
        self.push(JGE, 0, 2, own.0);
        self.push(JGE, 1, 0, own.1);
        self.push(RET, 0, 0, RET_ALLOW);
        self.push(RET, 0, 0, RET_TRAP);
    }
}

/// The filter that is equivalent to strict mode, for calls of this architecture only. `own` is the sandbox's own range
/// of descriptors: the first, and the one behind the last. Returns the instructions and their number.
pub fn filter(read: Pins, write: Pins, own: (u32, u32)) -> ([Insn; FILTER_LEN], usize) {
    let mut asm = Assembler { insns: [Insn::default(); FILTER_LEN], len: 0 };
    asm.push(LOAD, 0, 0, DATA_ARCH);
    asm.push(JEQ, 1, 0, arch::AUDIT_ARCH);
    asm.push(RET, 0, 0, RET_TRAP);
    asm.push(LOAD, 0, 0, DATA_NR);
    asm.allow(Sysno::exit as i32, None, own);
    asm.allow(arch::NR_SIGRETURN, None, own);
    asm.allow(Sysno::read as i32, read, own);
    asm.allow(Sysno::write as i32, write, own);
    asm.push(RET, 0, 0, RET_TRAP);
    (asm.insns, asm.len)
}

// The longest filter: eight pins for each of two calls.
static_assertions::const_assert!(4 + 2 * 2 + 2 * (2 + 8 * 2 + 4) < FILTER_LEN);
