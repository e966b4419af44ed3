//! What can go wrong before guest code runs, and whose fault it is.

use crate::abi::NAME_MAX;
use crate::signal;
use crate::sys::{Errno, Failed, Sysno};
use core::fmt;

/// Who has to change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// The program that calls this crate.
    Embedder,
    /// The kernel, or how the machine is set up.
    Kernel,
    /// This crate.
    Runtime,
}

/// Why there is no sandbox. Nothing is left running, and no descriptor open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The guest's stack is smaller than [`MIN_STACK`](crate::pair::MIN_STACK) or too large to map.
    Stack {
        /// Bytes asked for.
        bytes: usize,
    },
    /// A descriptor that the guest was to keep is not open, is negative, or is listed too high for the table.
    ClosedDescriptor {
        /// Its number.
        fd: i32,
    },
    /// The descriptor for crash reports is not open.
    ClosedCrashDescriptor {
        /// Its number.
        fd: i32,
    },
    /// [`enter`](crate::sandbox::enter) was called in a process with more than one thread.
    MultiThreaded {
        /// How many there are.
        threads: u32,
    },
    /// The entry audit found something that would let the guest out.
    Found {
        /// What kind of thing.
        finding: Finding,
        /// Its descriptor; -1 for a mapping.
        fd: i32,
        /// What the kernel calls it.
        name: Name,
    },
    /// The kernel has no seccomp (`CONFIG_SECCOMP`).
    NoSeccomp,
    /// The caller has a seccomp filter, and the kernel does not let such a task enter strict mode.
    FilterInForce,
    /// The caller is in strict mode already.
    AlreadyStrict,
    /// Two CPUs were asked for and one is available, or a CPU that the caller may not use.
    Placement,
    /// A root of the policy cannot be opened, or is of a proc file system (`EPERM`).
    Root {
        /// Its number in the policy.
        number: usize,
        /// What the kernel said.
        errno: Errno,
    },
    /// A root of the policy is to be one file, and there is a folder: its descriptor would give all that is in it.
    RootIsFolder {
        /// Its number in the policy.
        number: usize,
    },
    /// A core is to have more bytes than the process's hard limit allows (`RLIMIT_CORE`).
    CoreLimit {
        /// What is asked for, in bytes.
        limit: usize,
        /// The hard limit, in bytes.
        hard: usize,
    },
    /// The process has linear address masking on (`arch_prctl(ARCH_ENABLE_TAGGED_ADDR)`, x86_64): the kernel would take for an
    /// address of the vault what no check does.
    TaggedAddresses,
    /// The policy has roots, and the kernel has no `openat2` (Linux 5.6).
    NoOpenat2,
    /// Calls are to be caught, and the kernel has no syscall user dispatch (Linux 5.11).
    NoDispatch,
    /// A system call of the supervisor failed.
    Supervisor {
        /// The call.
        call: Sysno,
        /// What the kernel said.
        errno: Errno,
    },
    /// A step of the set-up task failed.
    Setup {
        /// Which.
        stage: SetupStage,
        /// The call; `None` if it is one that [`Sysno`] has no name for: `mseal`.
        call: Option<Sysno>,
        /// What the kernel said.
        errno: Errno,
    },
    /// A call of a birth script failed.
    Birth {
        /// `"trusted thread"` or `"untrusted thread"`.
        task: &'static str,
        /// The call.
        call: Sysno,
        /// What the kernel said.
        errno: Errno,
    },
    /// A task of the new sandbox ended before guest code ran.
    Died {
        /// `"set-up task"`, `"trusted thread"` or `"untrusted thread"`.
        task: &'static str,
        /// How.
        status: Status,
    },
}

impl Error {
    /// Makes the error of a supervisor's call from what the kernel said.
    pub(crate) fn of(call: Sysno) -> impl Fn(Errno) -> Self {
        move |errno| Failed(call, errno).into()
    }

    /// Who has to change something.
    pub fn party(&self) -> Party {
        match self {
            Self::Stack { .. }
            | Self::ClosedDescriptor { .. }
            | Self::ClosedCrashDescriptor { .. }
            | Self::MultiThreaded { .. }
            | Self::Found { .. }
            | Self::FilterInForce
            | Self::AlreadyStrict
            | Self::Placement
            | Self::Root { .. }
            | Self::RootIsFolder { .. }
            | Self::CoreLimit { .. }
            | Self::TaggedAddresses => Party::Embedder,
            Self::NoSeccomp
            | Self::NoOpenat2
            | Self::NoDispatch
            | Self::Supervisor { .. }
            | Self::Setup { .. }
            | Self::Birth { .. } => Party::Kernel,
            Self::Died { .. } => Party::Runtime,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stack { bytes } => {
                write!(f, "guest stack of {bytes} bytes: at least {} are needed", crate::pair::MIN_STACK)
            }
            Self::ClosedDescriptor { fd } => write!(f, "descriptor {fd} is to be kept, but it is not open"),
            Self::ClosedCrashDescriptor { fd } => write!(f, "crash descriptor {fd} is not open"),
            Self::MultiThreaded { threads } => {
                write!(f, "enter: the process has {threads} threads, and only a single one can become the guest")
            }
            Self::Found { finding, fd: -1, name } => write!(f, "mapping {name}: {finding}"),
            Self::Found { finding, fd, name } => write!(f, "descriptor {fd} ({name}): {finding}"),
            Self::NoSeccomp => f.write_str("this kernel has no seccomp (CONFIG_SECCOMP)"),
            Self::FilterInForce => f.write_str(
                "a seccomp filter is in force (a container's?), and the kernel does not mix modes: use Lockdown::Filter",
            ),
            Self::AlreadyStrict => f.write_str("the caller is in seccomp strict mode already"),
            Self::Placement => f.write_str("placement asks for CPUs that the caller may not use"),
            Self::Root { number, errno: Errno::EPERM } => {
                write!(f, "root {number} of the policy is of a proc file system, which leads to the memory of processes")
            }
            Self::Root { number, errno } => write!(f, "root {number} of the policy cannot be opened: {errno}"),
            Self::RootIsFolder { number } => {
                write!(f, "root {number} of the policy is to be one file, and is a folder")
            }
            Self::TaggedAddresses => f.write_str(
                "the process uses tagged addresses (ARCH_ENABLE_TAGGED_ADDR), which the checks of arguments do not know",
            ),
            Self::NoOpenat2 => f.write_str("this kernel has no openat2 (Linux 5.6), without which paths can be raced"),
            Self::NoDispatch => f.write_str(
                "this kernel has no syscall user dispatch (Linux 5.11): leave Config::dispatch and Config::report_denied off and use untrusted::call",
            ),
            Self::CoreLimit { limit, hard } => {
                write!(f, "a core of {limit} bytes is asked for, and the hard limit (RLIMIT_CORE) is {hard}")
            }
            Self::Supervisor { call, errno } => write!(f, "{}: {errno}", call.name()),
            Self::Setup { stage, call: Some(call), errno } => {
                write!(f, "set-up, {}: {}: {errno}", stage.describe(), call.name())
            }
            Self::Setup { stage, call: None, errno } => write!(f, "set-up, {}: {errno}", stage.describe()),
            Self::Birth { task, call, errno } => write!(f, "birth of the {task}, {}: {errno}", call.name()),
            Self::Died { task, status } => write!(f, "the {task} ended before guest code ran: {status}"),
        }
    }
}

impl core::error::Error for Error {}

impl From<Failed> for Error {
    fn from(Failed(call, errno): Failed) -> Self {
        Self::Supervisor { call, errno }
    }
}

/// What the entry audit refuses.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// An io_uring: with SQPOLL it makes system calls on behalf of whoever writes to its rings.
    IoUring = 1,
    /// A userfaultfd: it can hold up whoever touches memory, T and the kernel included.
    Userfaultfd = 2,
    /// A writable mapping of the vault.
    WritableAlias = 3,
    /// A file of `/proc`: `/proc/*/mem` goes past every read-only mapping.
    ProcessMemory = 4,
    /// A kind of descriptor that this runtime does not know to be harmless.
    Unknown = 5,
    /// Memory that is shared with somebody, writable or to be made so, and not listed in
    /// [`Config::share`](crate::sandbox::Config::share).
    SharedMemory = 6,
}

impl Finding {
    pub(crate) fn from_raw(raw: u32) -> Self {
        match raw {
            1 => Self::IoUring,
            2 => Self::Userfaultfd,
            3 => Self::WritableAlias,
            4 => Self::ProcessMemory,
            6 => Self::SharedMemory,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IoUring => "an io_uring makes system calls that seccomp does not see; close and unmap it first",
            Self::Userfaultfd => "a userfaultfd can stall the trusted thread; close it first",
            Self::WritableAlias => "a writable alias of the vault",
            Self::ProcessMemory => "a file of /proc, which can lead to the memory of a process",
            Self::SharedMemory => {
                "memory that others share, and that is writable or can be made so; list it in Config::share, unmap it, or mark \
                 it MADV_DONTFORK"
            }
            Self::Unknown => "not a kind of descriptor that a guest is known to be able to hold safely",
        })
    }
}

/// What the kernel calls something, cut at [`NAME_MAX`] bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name {
    bytes: [u8; NAME_MAX],
    len: usize,
}

impl Name {
    pub(crate) fn new(bytes: [u8; NAME_MAX], len: usize) -> Self {
        Self { bytes, len: len.min(NAME_MAX) }
    }

    /// The name; what is not UTF-8 is left out.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.len).unwrap_or_default();
        bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// What the set-up task was doing.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is its description")]
pub enum SetupStage {
    Parent = 1,
    Handlers,
    Proc,
    Audit,
    Keep,
    Descriptors,
    Vault,
    Seal,
    CloneTrusted,
    CloneUntrusted,
    Core,
}

impl SetupStage {
    pub(crate) const ALL: [Self; 11] = [
        Self::Parent,
        Self::Handlers,
        Self::Proc,
        Self::Audit,
        Self::Keep,
        Self::Descriptors,
        Self::Vault,
        Self::Seal,
        Self::CloneTrusted,
        Self::CloneUntrusted,
        Self::Core,
    ];

    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Parent => "following the supervisor into death",
            Self::Handlers => "resetting signal handlers",
            Self::Proc => "reading /proc/self for the entry audit (is /proc mounted?)",
            Self::Audit => "entry audit",
            Self::Keep => "checking the descriptors to keep",
            Self::Descriptors => "arranging descriptors",
            Self::Vault => "mapping the vault",
            Self::Seal => "mseal of the vault",
            Self::CloneTrusted => "clone of the trusted thread",
            Self::CloneUntrusted => "clone of the untrusted thread",
            Self::Core => "arranging for a core (PR_SET_DUMPABLE, /proc/self/coredump_filter)",
        }
    }
}

/// How a task ended: its wait status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// By `exit`.
    Exited(u8),
    /// By a signal.
    Signaled {
        /// Its number.
        signal: i32,
        /// Whether the kernel wrote a core.
        core: bool,
    },
}

impl Status {
    /// From the word that `wait4(2)` stores.
    pub fn from_raw(raw: i32) -> Self {
        match raw & 0x7f {
            0 => Self::Exited((raw >> 8) as u8),
            signal => Self::Signaled { signal, core: raw & 0x80 != 0 },
        }
    }

    /// Whether a signal ended the task, and this one.
    pub fn is_signal(self, sig: i32) -> bool {
        matches!(self, Self::Signaled { signal, .. } if signal == sig)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit status {code}"),
            Self::Signaled { signal, core } => {
                write!(f, "signal {signal} ({}){}", signal::name(*signal), if *core { ", core dumped" } else { "" })
            }
        }
    }
}
