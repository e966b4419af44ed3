//! What kind of fault it was, in words that a person can use. A pure function of what the kernel said.

use crate::signal::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP};

/// Addresses below this are null pointers with an offset.
const NULL_AREA: u64 = 0x1_0000;
/// A stack that grows into its guard is touched at most this far below the stack pointer.
const STACK_REACH: u64 = 0x1_0000;
const PAGE: u64 = crate::abi::PAGE as u64;

// Exceptions of the processor (`arch/x86/include/asm/trapnr.h`).
const TRAP_DE: u32 = 0;
const TRAP_DB: u32 = 1;
const TRAP_SS: u32 = 12;
const TRAP_PF: u32 = 14;
const TRAP_AC: u32 = 17;
// Bits of the error code of a page fault (`trap_pf.h`).
const PF_WRITE: u32 = 2;
const PF_FETCH: u32 = 16;
const SEGV_ACCERR: i32 = 2;
const BUS_ADRALN: i32 = 1;

/// Classes of faults. The numbers are part of the record's format.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Class {
    /// None of the others.
    Other = 0,
    /// Access to an address near 0.
    NullPointer = 1,
    /// The stack grew into its guard.
    StackOverflow = 2,
    /// An address that the processor cannot have.
    NonCanonical = 3,
    /// A jump to memory that is not executable.
    ExecuteData = 4,
    /// A jump to where nothing is mapped.
    JumpUnmapped = 5,
    /// A write to memory that may only be read.
    WriteReadOnly = 6,
    /// A read from where nothing is mapped.
    ReadUnmapped = 7,
    /// A write to where nothing is mapped.
    WriteUnmapped = 8,
    /// Access to memory that allows none, such as a guard page. Only where the kernel says so (not on i386).
    Guard = 9,
    /// Access to the sandbox's own memory.
    Vault = 10,
    /// An instruction that user code may not execute.
    Privileged = 11,
    /// An access that is not aligned, with alignment checks on.
    Misaligned = 12,
    /// A mapped file has ended before this address.
    BeyondFile = 13,
    /// Integer division by zero, or with an overflow.
    IntegerDivide = 14,
    /// A floating-point exception that is not masked.
    FloatingPoint = 15,
    /// Not an instruction.
    IllegalInstruction = 16,
    /// The instruction `ud2`: compilers put it where a program must not go on.
    DeliberateTrap = 17,
    /// A breakpoint instruction.
    Breakpoint = 18,
    /// The trap flag.
    SingleStep = 19,
    /// The guest gave up.
    Abort = 20,
    /// A system call that the lock-down forbids.
    DeniedCall = 21,
    /// Somebody sent the signal.
    Sent = 22,
    /// A general protection fault of another kind.
    Protection = 23,
}

impl Class {
    /// All classes, by number.
    pub const ALL: [Self; 24] = [
        Self::Other,
        Self::NullPointer,
        Self::StackOverflow,
        Self::NonCanonical,
        Self::ExecuteData,
        Self::JumpUnmapped,
        Self::WriteReadOnly,
        Self::ReadUnmapped,
        Self::WriteUnmapped,
        Self::Guard,
        Self::Vault,
        Self::Privileged,
        Self::Misaligned,
        Self::BeyondFile,
        Self::IntegerDivide,
        Self::FloatingPoint,
        Self::IllegalInstruction,
        Self::DeliberateTrap,
        Self::Breakpoint,
        Self::SingleStep,
        Self::Abort,
        Self::DeniedCall,
        Self::Sent,
        Self::Protection,
    ];

    /// The class with this number in a record; `Other` for what this version does not know.
    pub fn from_raw(raw: u32) -> Self {
        Self::ALL.get(raw as usize).copied().unwrap_or(Self::Other)
    }

    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Other => "unclassified",
            Self::NullPointer => "null pointer",
            Self::StackOverflow => "stack overflow",
            Self::NonCanonical => "non-canonical address",
            Self::ExecuteData => "jump to memory that is not executable",
            Self::JumpUnmapped => "jump to unmapped memory",
            Self::WriteReadOnly => "write to read-only memory",
            Self::ReadUnmapped => "read of unmapped memory",
            Self::WriteUnmapped => "write to unmapped memory",
            Self::Guard => "access to a guard page or other memory that allows none",
            Self::Vault => "access to the sandbox's own memory",
            Self::Privileged => "privileged instruction",
            Self::Misaligned => "misaligned access",
            Self::BeyondFile => "access beyond the end of a mapped file",
            Self::IntegerDivide => "integer division by zero or with overflow",
            Self::FloatingPoint => "floating-point exception",
            Self::IllegalInstruction => "illegal instruction",
            Self::DeliberateTrap => "ud2: a place that must not be reached",
            Self::Breakpoint => "breakpoint",
            Self::SingleStep => "single step",
            Self::Abort => "abort",
            Self::DeniedCall => "denied system call",
            Self::Sent => "signal sent by a process",
            Self::Protection => "general protection fault",
        }
    }
}

/// What is known of a fault.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// Signal number.
    pub sig: i32,
    /// `si_code`; `None` if the frame has none.
    pub code: Option<i32>,
    /// Whether somebody sent the signal.
    pub sent: bool,
    /// The processor's exception and its error code.
    pub trap: (u32, u32),
    /// The address of the fault.
    pub addr: u64,
    /// Program counter.
    pub pc: u64,
    /// Stack pointer.
    pub sp: u64,
    /// The guest's stack: from, to.
    pub stack: (u64, u64),
    /// The vault: from, to.
    pub vault: (u64, u64),
    /// Whether the address can be read now.
    pub readable: bool,
    /// Whether the stack pointer leads to memory that can be read.
    pub sp_readable: bool,
    /// Whether a general register holds an address that the processor cannot have.
    pub non_canonical: bool,
    /// The first bytes of the instruction, as far as they can be read.
    pub insn: [u8; 2],
}

/// Classifies a fault.
pub fn classify(f: &Facts) -> Class {
    match f.sig {
        SIGABRT => Class::Abort,
        _ if f.sent => Class::Sent,
        SIGSEGV if f.trap.0 == TRAP_PF => page_fault(f),
        SIGSEGV => match f.insn {
            // hlt, cli, sti, in, out, ins, outs
            [0xf4 | 0xfa | 0xfb | 0xe4..=0xe7 | 0xec..=0xef | 0x6c..=0x6f, _] => Class::Privileged,
            // lgdt and kin, clts, invd, wbinvd, moves to control and debug registers, wrmsr, rdmsr
            [0x0f, 0x00 | 0x01 | 0x06 | 0x08 | 0x09 | 0x20..=0x23 | 0x30 | 0x32] => Class::Privileged,
            _ if f.non_canonical => Class::NonCanonical,
            _ => Class::Protection,
        },
        SIGBUS if f.code == Some(BUS_ADRALN) || f.trap.0 == TRAP_AC => Class::Misaligned,
        SIGBUS if f.trap.0 == TRAP_SS => Class::NonCanonical,
        SIGBUS => Class::BeyondFile,
        SIGFPE if f.trap.0 == TRAP_DE => Class::IntegerDivide,
        SIGFPE => Class::FloatingPoint,
        SIGILL if f.insn == [0x0f, 0x0b] => Class::DeliberateTrap,
        SIGILL => Class::IllegalInstruction,
        SIGTRAP if f.trap.0 == TRAP_DB => Class::SingleStep,
        SIGTRAP => Class::Breakpoint,
        SIGSYS => Class::DeniedCall,
        _ => Class::Other,
    }
}

fn page_fault(f: &Facts) -> Class {
    let within = |(from, to): (u64, u64)| (from..to).contains(&f.addr);
    let write = f.trap.1 & PF_WRITE != 0;
    let mapped = f.readable || f.code == Some(SEGV_ACCERR);
    if f.addr < NULL_AREA {
        return Class::NullPointer;
    }
    if within((f.stack.0.saturating_sub(PAGE), f.stack.0)) {
        return Class::StackOverflow;
    }
    if within(f.vault) {
        return Class::Vault;
    }
    // Processors that cannot tell memory that is not executable do not say that it was a fetch.
    if f.trap.1 & PF_FETCH != 0 || f.addr == f.pc && !f.readable && !write {
        return if f.readable { Class::ExecuteData } else { Class::JumpUnmapped };
    }
    // A stack that is not ours, as after `enter`: an access near its pointer, and just below it or below all stack.
    let near = f.addr.abs_diff(f.sp) < STACK_REACH && (f.addr < f.sp.saturating_add(8) || !f.sp_readable);
    if near && !mapped && !(f.stack.0..=f.stack.1).contains(&f.sp) {
        return Class::StackOverflow;
    }
    match (write, f.readable, mapped) {
        (_, false, true) => Class::Guard,
        (true, true, _) => Class::WriteReadOnly,
        (true, false, _) => Class::WriteUnmapped,
        (false, true, _) => Class::Other, // it was not there a moment ago
        (false, false, _) => Class::ReadUnmapped,
    }
}
