//! Memory layouts that the assembly, the sandbox and the supervisor share.
//!
//! **Accessed by assembly: do not change a field without reading `arch/*/offsets.S`.** No offset is typed by hand
//! there; [`crate::arch`] hands every one over as a Rust `const` operand.
//!
//! Three pages belong to each [pair](crate::pair):
//!
//! | page | written by | read by | trust |
//! |---|---|---|---|
//! | [`VaultPage`] | the supervisor, before entry | T | relied on |
//! | [`VerdictPage`] | the supervisor | T and U at birth | relied on |
//! | [`Mailbox`] | U, T, the kernel for T | everyone | an allegation |

use crate::arch::Frame;
use crate::fault::tsc::Published;
use crate::seccomp::{FILTER_LEN, Insn, Program};
use crate::signal::{AltStack, REPORTED, SigAction, SigSet};
use crate::sys::CpuSet;
use static_assertions::const_assert;

/// Size of a page, in bytes, on both architectures.
pub const PAGE: usize = 4096;

/// Number of rows of the policy table: more than any call number the kernel has (`syscall_64.tbl`, `syscall_32.tbl`).
pub const TABLE_LEN: usize = 512;

/// Policy row: the call may be made by T.
pub const ROW_ALLOW: u32 = 1 << 31;

/// Policy row of an allowed call: bit `i` is set when argument `i` is a descriptor.
pub const ROW_FDS: u32 = 0x3f;

/// Policy row of an allowed call: its first argument must be below [`SMALL`].
pub const ROW_SMALL: u32 = 1 << 30;

/// The bound of [`ROW_SMALL`]: clock ids are below it (`MAX_CLOCKS`, `include/linux/time.h`). Negative ones would name the
/// CPU clocks of other processes.
pub const SMALL: u32 = 16;

/// Policy row of a refused call: the `errno` that U is given.
pub const ROW_ERRNO: u32 = 0xfff;

/// What T needs to know, in the vault. T's base register points here for its whole life.
#[repr(C, align(4096))]
#[derive(Clone, Debug)]
pub struct VaultPage {
    /// First address of the vault, its guard pages included.
    pub vault_lo: usize,
    /// Length of the vault in bytes, its guard pages included.
    pub vault_len: usize,
    /// First of the protected descriptors.
    pub fd_lo: u32,
    /// How many descriptors, from `fd_lo` on, are protected.
    pub fd_len: u32,
    /// How often T looks at the sequence word before it parks.
    pub spin: u32,
    /// The eventfd in which T sleeps.
    pub doorbell_t: u32,
    /// The eventfd in which U sleeps.
    pub doorbell_u: u32,
    /// The `errno` for call numbers beyond the table.
    pub default_errno: u32,
    /// MXCSR as a new task has it: all exceptions masked, round to nearest.
    pub mxcsr: u32,
    /// Padding.
    pub pad: u32,
    /// The number 1, as an eventfd wants it.
    pub one: u64,
    /// The policy: one row per call number.
    pub table: [u32; TABLE_LEN],
}

const_assert!(size_of::<VaultPage>() == PAGE);

/// [`Step::check`]: the result must equal [`Step::expect`], or the task ends with [`Step::id`] as exit status.
pub const STEP_CHECK: u32 = 1;

/// [`Step::nr`] of the end of T's script: T begins to serve.
pub const STEP_SERVE: u32 = u32::MAX;

/// One system call of a script.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    /// The call's number, or [`STEP_SERVE`].
    pub nr: u32,
    /// [`STEP_CHECK`] or 0.
    pub check: u32,
    /// The exit status that names this step when its check fails (1 to 255).
    pub id: u32,
    /// Padding.
    pub pad: u32,
    /// The arguments.
    pub args: [usize; 6],
    /// The result that [`STEP_CHECK`] demands.
    pub expect: usize,
}

/// Steps of T's birth script.
pub const T_STEPS: usize = 13;
/// Steps of U's birth script.
pub const U_STEPS: usize = 24;

/// The scripts of one pair and the data that they point to. Written by the supervisor only; read-only in the sandbox.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct VerdictPage {
    /// What T runs before it serves.
    pub t: [Step; T_STEPS],
    /// What U runs before guest code.
    pub u: [Step; U_STEPS],
    /// U waits here (a futex word) until it is 1.
    pub go: u32,
    /// An alternate stack for T: in experiments only.
    #[cfg(feature = "experiments")]
    pub t_altstack: AltStack,
    /// T's signal mask: everything.
    pub t_mask: SigSet,
    /// The processors of T and of U.
    pub cpus: [CpuSet; 2],
    /// The names of T and of U, as `ps` shows them.
    pub names: [[u8; 16]; 2],
    /// For structures that are nothing but zeros: no core (`struct rlimit`), no priority (`struct sched_param`).
    pub zeros: [usize; 2],
    /// U's alternate stack.
    pub altstack: AltStack,
    /// U's handlers, in the order of [`REPORTED`].
    pub actions: [SigAction; REPORTED.len()],
    /// U's filter, if it has one, …
    pub program: Program,
    /// … and its instructions.
    pub filter: [Insn; FILTER_LEN],
    /// The registers with which guest code starts.
    pub start: Frame,
}

const_assert!(size_of::<VerdictPage>() == PAGE);

/// A request and its reply: one cache line, so that each way moves one line between the processors.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Line {
    /// The arguments. T stores the result in the first.
    pub args: [usize; 6],
    /// The call's number.
    pub nr: u32,
    /// Whose turn it is. U changes it when a request is complete; T then adds 1 to what it read when it has answered.
    /// Written last by both.
    pub turn: u32,
    /// Not 0 when U sleeps in its doorbell.
    pub u_asleep: u32,
    /// Not 0 when T sleeps in its doorbell.
    pub t_asleep: u32,
}

/// The page through which U asks and T answers.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Mailbox {
    /// The request under way, or the last reply.
    pub line: Line,
    /// Where the kernel stores what T reads from its doorbell.
    pub scratch: u64,
    /// The result of the birth step that failed (both births; the exit status tells which step).
    pub birth_result: usize,
    /// The signal that U asks the supervisor to send it, in the low byte, and above it a number of U's: it cannot send
    /// itself any signal.
    pub raise: u32,
    /// What the supervisor read there, when that signal is pending.
    pub raised: u32,
    /// How `rdtsc` is answered; written by the supervisor.
    pub scale: Published,
    /// How set-up went; read by the supervisor before any guest code runs.
    pub setup: SetupReport,
}

const_assert!(size_of::<Mailbox>() == PAGE);
const_assert!(size_of::<Line>() == 64);

/// What the set-up task tells the supervisor before it exits.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SetupReport {
    /// Process id of T, 0 before it exists.
    pub t: u32,
    /// Process id of U, 0 before it exists.
    pub u: u32,
    /// The [`SetupStage`](crate::error::SetupStage) that failed, 0 if none did.
    pub stage: u32,
    /// The kernel's `errno`.
    pub errno: u32,
    /// The descriptor that was at fault.
    pub fd: i32,
    /// Bytes used of `name`.
    pub name_len: u32,
    /// What was found, as the kernel names it.
    pub name: [u8; NAME_MAX],
}

/// Bytes kept of the name of an audit finding.
pub const NAME_MAX: usize = 96;
