//! Memory layouts that the assembly, the sandbox and the supervisor share.
//!
//! **Accessed by assembly: do not change a field without reading `arch/*/offsets.S`.** No offset is typed by hand
//! there; [`crate::arch`] hands every one over as a Rust `const` operand.
//!
//! A sandbox has one [`Vault`], and each of its [pairs](crate::pair) a [`Verdict`] and a [`Mailbox`]:
//!
//! | memory | written by | read by | trust |
//! |---|---|---|---|
//! | [`Vault`] | the supervisor | T | relied on |
//! | [`Verdict`] | the supervisor, while T has nothing to do with it | T, and U at birth | relied on |
//! | [`Mailbox`] | every U, T, the kernel for T, the supervisor | everyone | an allegation |

use crate::arch::{self, Frame};
use crate::fault::tsc::Published;
use crate::seccomp::{FILTER_LEN, Insn, Program};
use crate::signal::{AltStack, SigAction, SigSet};
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

/// Policy row of an allowed call: the operation in its second argument must be one of [`FUTEX_OPS`].
pub const ROW_FUTEX: u32 = 1 << 29;

/// The operations of [`ROW_FUTEX`], without `FUTEX_PRIVATE_FLAG` and `FUTEX_CLOCK_REALTIME` (`include/uapi/linux/futex.h`):
/// WAIT, WAKE, REQUEUE, CMP_REQUEUE, WAKE_OP, WAIT_BITSET, WAKE_BITSET. Those with priority inheritance would make T the
/// owner of a lock.
pub const FUTEX_OPS: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 9 | 1 << 10;

/// Policy row of [`NR_TOKEN`]: T executes a token.
pub const ROW_TOKEN: u32 = 1 << 27;

/// Policy row of a call that the policy refuses by name: the broker does not know better.
pub const ROW_REFUSED: u32 = 1 << 26;

/// Policy row of a call that T may not make by itself, so that it asks the broker: the `errno` with which the broker
/// refuses it, unless it knows better.
pub const ROW_ERRNO: u32 = 0xfff;

/// A number beside the kernel's own: opens the file of the [`Token`] whose number is the first argument.
pub const NR_TOKEN: u32 = TABLE_LEN as u32 - 1;

/// A number that no kernel has: T takes it to the broker, which does not answer. The reporter leaves T there at the end, so
/// that the supervisor can have it read memory. Where none is to be read, it is a call as any that there is not.
pub const NR_STAY: u32 = 0x7fff_5354;

/// The most pairs of a sandbox.
pub const PAIRS: usize = 256;

/// Bytes from a pair's [`Verdict`] to the next pair's, and from its [`Mailbox`] to the next.
pub const STRIDE: usize = 4 * PAGE;

/// Bytes from a pair's [`Verdict`] to its [`Mailbox`], the same for every pair: T finds the one by the other.
pub const VERDICT_TO_MAILBOX: usize = PAIRS * STRIDE + PAGE;

/// Tokens of a sandbox.
pub const TOKENS: usize = 64;
/// Bytes of a token, as a power of two.
pub const TOKEN_SHIFT: usize = 8;

/// `struct open_how` (`include/uapi/linux/openat2.h`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenHow {
    /// `O_*`
    pub flags: u64,
    /// Mode of a new file.
    pub mode: u64,
    /// `RESOLVE_*`
    pub resolve: u64,
}

/// An approved way to open a file, which T may take again without asking. Once valid it never changes but to invalid.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct Token {
    /// 1 while it may be used.
    pub valid: u32,
    /// The root's descriptor.
    pub root: u32,
    /// Flags as the guest gave them, and the mode: what a request is recognised by, besides its path.
    pub asked: [u32; 2],
    /// How to open.
    pub how: OpenHow,
    /// Where in `path` the part below the root begins.
    pub rest: u32,
    /// Bytes of `path` without its NUL.
    pub len: u32,
    /// The path as the guest gave it, absolute, ending in NUL.
    pub path: [u8; TOKEN_PATH],
}

/// Bytes of a token's path.
pub const TOKEN_PATH: usize = (1 << TOKEN_SHIFT) - 48;

const_assert!(size_of::<Token>() == 1 << TOKEN_SHIFT);

/// What all Ts of a sandbox need to know. T's base register points here for its whole life.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Vault {
    /// The first page: bounds, numbers, the policy.
    pub page: VaultPage,
    /// The tokens.
    pub tokens: [Token; TOKENS],
}

/// The first page of a [`Vault`].
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
    /// The eventfd by which T tells the broker that it asks.
    pub alarm: u32,
    /// MXCSR as a new task has it: all exceptions masked, round to nearest.
    pub mxcsr: u32,
    /// [`FUTEX_OPS`]
    pub futex_ops: u32,
    /// How long T waits for the broker before it rings again: `struct timespec`.
    pub patience: [usize; 2],
    /// The number 1, as an eventfd wants it.
    pub one: u64,
    /// The number 1 in the second of four places: what i386's T adds to its sequence number.
    pub second: Vector,
    /// The policy: one row per call number.
    pub table: [u32; TABLE_LEN],
}

/// Four numbers, aligned as vector instructions want them.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug)]
pub struct Vector(pub [u32; 4]);

const_assert!(size_of::<VaultPage>() == PAGE);

/// [`Step::flags`]: the first argument is not the one given, but the result of the last step with [`STEP_SAVE`]. Bits 1 to 5
/// say the same of the others.
pub const STEP_FIRST: u32 = 1;
/// [`Step::flags`]: the result must equal [`Step::expect`], or the task ends with [`Step::id`] as exit status.
pub const STEP_CHECK: u32 = 1 << 8;
/// [`Step::flags`]: the result must not be an error, or the task ends with [`Step::id`] as exit status.
pub const STEP_MUST: u32 = 1 << 9;
/// [`Step::flags`]: an error ends the script, and is the reply.
pub const STEP_STOP: u32 = 1 << 10;
/// [`Step::flags`]: the result stands in for arguments of later steps. It is kept in a register.
pub const STEP_SAVE: u32 = 1 << 11;
/// [`Step::flags`]: the result is the reply, unless the script stops.
pub const STEP_KEEP: u32 = 1 << 12;
/// [`Step::flags`]: the call is a `clone` of a T, whose mailbox is [`Step::expect`].
pub const STEP_CLONE_T: u32 = 1 << 13;
/// [`Step::flags`]: the call is a `clone` of a U, whose mailbox is [`Step::expect`].
pub const STEP_CLONE_U: u32 = 1 << 14;
/// [`Step::flags`]: an error ends the script, and T asks again, at [`Verdict::ask`]; the next verdict goes on with the same
/// request.
pub const STEP_TELL: u32 = 1 << 15;
/// [`Step::flags`]: where the task would end because of the result, it goes on with the step before.
pub const STEP_AGAIN: u32 = 1 << 16;

/// [`Step::nr`] of the end of T's birth script: T begins to serve.
pub const STEP_SERVE: u32 = u32::MAX;
/// [`Step::nr`] of the end of a verdict's script: the first argument is the reply, unless a step with [`STEP_KEEP`] made it.
pub const STEP_REPLY: u32 = u32::MAX - 1;
/// [`Step::nr`]: T, which has made another T, waits at [`Verdict::bore`]; the next verdict goes on with the same request.
pub const STEP_BORE: u32 = u32::MAX - 2;

/// One system call of a script.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    /// The call's number, or one of [`STEP_SERVE`], [`STEP_REPLY`], [`STEP_BORE`].
    pub nr: u32,
    /// `STEP_*` or 0.
    pub flags: u32,
    /// The exit status that names this step when its check fails (1 to 255).
    pub id: u32,
    /// Padding.
    pub pad: u32,
    /// The arguments.
    pub args: [usize; 6],
    /// The result that [`STEP_CHECK`] demands, or the mailbox of a new task.
    pub expect: usize,
}

/// Steps of T's birth script.
pub const T_STEPS: usize = 16;
/// Steps of U's birth script.
pub const U_STEPS: usize = 32;
/// Steps of a verdict.
pub const STEPS: usize = 6;
/// Bytes of a verdict's data: what its pointers lead to.
pub const DATA: usize = 8448; // two paths and more: what STRIDE leaves

/// What one pair's tasks are to execute, and the data that it points to. Written by the supervisor only; read-only in
/// the sandbox.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Verdict {
    /// T waits here (a futex word) for the broker to take its request; the same number as `seq`.
    pub ask: u32,
    /// How many verdicts there have been: T executes each once. The broker moves T here (`FUTEX_CMP_REQUEUE`), which
    /// succeeds only while T waits at `ask`: the kernel's word that T is done with the last one.
    pub seq: u32,
    /// T waits here (a futex word) instead when it has made another T, and only then; the same number as `seq`. That it does
    /// is the kernel's word that there is one, as that it waits at `ask` is that there never was.
    pub bore: u32,
    /// The eventfd in which T sleeps.
    pub doorbell_t: u32,
    /// The eventfd in which U sleeps.
    pub doorbell_u: u32,
    /// The verdict.
    pub script: [Step; STEPS],
    /// What T runs before it serves.
    pub t: [Step; T_STEPS],
    /// What U runs before guest code.
    pub u: [Step; U_STEPS],
    /// U waits here (a futex word) until it is 1: before that no guest code runs in this pair.
    pub go: u32,
    /// What T and U write to the supervisor when they are born: the pair's number, and what happened (`birth::BORN_T`, …).
    pub born: [[u32; 2]; 3],
    /// The process id of a new thread's U, which it cannot ask for itself. Written before `go`.
    pub tid: u32,
    /// An alternate stack for T: in experiments only.
    #[cfg(feature = "experiments")]
    pub t_altstack: AltStack,
    /// The signal mask of T, and of U until guest code starts: everything.
    pub mask: SigSet,
    /// The processors of T and of U.
    pub cpus: [CpuSet; 2],
    /// The names of T and of U, as `ps` shows them.
    pub names: [[u8; 16]; 2],
    /// For structures that are nothing but zeros: no priority (`struct sched_param`).
    pub zeros: [usize; 2],
    /// Soft and hard limit (`struct rlimit`) of cores: T's, U's.
    pub limits: [[usize; 2]; 2],
    /// U's alternate stack.
    pub altstack: AltStack,
    /// U's handlers (`birth.rs` says which).
    pub actions: [SigAction; 4],
    /// U's segment descriptors (i386): where the runtime's state is, and the guest's thread-local storage.
    pub segments: [UserDesc; 2],
    /// U's filter, if it has one, …
    pub program: Program,
    /// … and its instructions.
    pub filter: [Insn; FILTER_LEN],
    /// The registers with which guest code starts.
    pub start: Frame,
    /// What the pointers of the verdict lead to.
    pub data: [u8; DATA],
}

const_assert!(size_of::<Verdict>() == STRIDE);
const_assert!(size_of::<Frame>() <= arch::FRAME_MAX);

/// `struct user_desc` (`arch/x86/include/uapi/asm/ldt.h`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct UserDesc {
    /// Which entry.
    pub entry: u32,
    /// First address.
    pub base: u32,
    /// Last offset, in bytes or pages.
    pub limit: u32,
    /// The flags, as bits.
    pub flags: u32,
}

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

/// Where U asks and T answers.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Mailbox {
    /// The request under way, or the last reply.
    pub line: Line,
    /// The turn word of a request that T takes to the broker. It tells the broker whom to look at, no more.
    pub asks: u32,
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
    /// Whether calls that the guest makes itself are caught (1) or pass (0): the kernel looks here at every call.
    pub selector: u8,
    /// Where the guest made the call.
    pub pc: usize,
    /// Bytes used of `data`.
    pub len: u32,
    /// What the pointers of the request lead to, copied by U; and what the broker answers beyond a number.
    pub data: Payload,
}

/// Bytes that a request can carry: two paths.
pub const PAYLOAD: usize = 2 * PAGE;

/// What the pointers of a request lead to.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Payload(pub [u8; PAYLOAD]);

const_assert!(size_of::<Mailbox>() <= STRIDE);
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
    /// The number of the call that failed; `u32::MAX` for one without a name.
    pub call: u32,
    /// The kernel's `errno`.
    pub errno: u32,
    /// The [`Finding`](crate::error::Finding) of the entry audit.
    pub finding: u32,
    /// The descriptor that was at fault.
    pub fd: i32,
    /// Bytes used of `name`.
    pub name_len: u32,
    /// What was found, as the kernel names it.
    pub name: [u8; NAME_MAX],
}

/// Bytes kept of the name of an audit finding.
pub const NAME_MAX: usize = 96;
