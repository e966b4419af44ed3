//! Failures, as C sees them.

use core::ffi::{CStr, c_char};
use core::fmt::{self, Write};
use runtime::error::{self, Party};
use runtime::policy::{BadFamily, BadRoot, NotDirect, Redirect};

/// An argument is NULL, or not one of the values that it may have.
pub const ASCETIC_E_ARGUMENT: i32 = -1;
/// No memory.
pub const ASCETIC_E_MEMORY: i32 = -2;
/// The call may not be direct: `text` says why.
pub const ASCETIC_E_NOT_DIRECT: i32 = -3;
/// There is no such system call.
pub const ASCETIC_E_NO_CALL: i32 = -4;
/// The path of a root is not absolute, or not plain.
pub const ASCETIC_E_PATH: i32 = -5;
/// A list of the policy is full.
pub const ASCETIC_E_FULL: i32 = -6;
/// The policy is that of a sandbox, and cannot change any more.
pub const ASCETIC_E_IN_USE: i32 = -7;
/// The sandbox is only lent, as to a report: it can be asked, but not waited for or killed.
pub const ASCETIC_E_LENT: i32 = -8;
/// Two things that the policy allows would together allow more than it says: `text` names both.
pub const ASCETIC_E_CONFLICT: i32 = -9;

/// The guest's stack is too small, or too large to map.
pub const ASCETIC_E_STACK: i32 = -20;
/// A descriptor to keep is not open.
pub const ASCETIC_E_CLOSED_DESCRIPTOR: i32 = -21;
/// The descriptor for crash reports is not open.
pub const ASCETIC_E_CLOSED_CRASH_DESCRIPTOR: i32 = -22;
/// ascetic_enter() in a process with more than one thread.
pub const ASCETIC_E_MULTI_THREADED: i32 = -23;
/// The entry audit found something that would let the guest out.
pub const ASCETIC_E_FOUND: i32 = -24;
/// The kernel has no seccomp.
pub const ASCETIC_E_NO_SECCOMP: i32 = -25;
/// The caller has a seccomp filter: strict mode is not to be had, ASCETIC_LOCKDOWN_FILTER is.
pub const ASCETIC_E_FILTER_IN_FORCE: i32 = -26;
/// The caller is in strict mode already.
pub const ASCETIC_E_ALREADY_STRICT: i32 = -27;
/// The placement asks for CPUs that the caller may not use.
pub const ASCETIC_E_PLACEMENT: i32 = -28;
/// A root of the policy cannot be opened, or is to be one file and is a folder.
pub const ASCETIC_E_ROOT: i32 = -29;
/// The kernel has no openat2 (Linux 5.6).
pub const ASCETIC_E_NO_OPENAT2: i32 = -30;
/// The kernel has no syscall user dispatch (Linux 5.11).
pub const ASCETIC_E_NO_DISPATCH: i32 = -31;
/// A system call of the supervisor failed.
pub const ASCETIC_E_SUPERVISOR: i32 = -32;
/// A step of the set-up failed.
pub const ASCETIC_E_SETUP: i32 = -33;
/// The birth of a thread failed.
pub const ASCETIC_E_BIRTH: i32 = -34;
/// A task of the new sandbox ended before guest code ran.
pub const ASCETIC_E_DIED: i32 = -35;
/// The process uses tagged addresses (ARCH_ENABLE_TAGGED_ADDR).
pub const ASCETIC_E_TAGGED_ADDRESSES: i32 = -36;
/// A core is to have more bytes than the hard limit allows (RLIMIT_CORE).
pub const ASCETIC_E_CORE_LIMIT: i32 = -37;
/// Something else.
pub const ASCETIC_E_OTHER: i32 = -99;

/// The program that calls this library has to change something.
pub const ASCETIC_PARTY_EMBEDDER: u32 = 1;
/// The kernel, or how the machine is set up, has to change.
pub const ASCETIC_PARTY_KERNEL: u32 = 2;
/// This library has to change.
pub const ASCETIC_PARTY_RUNTIME: u32 = 3;

/// Bytes of an error's text, its zero included.
pub const ASCETIC_TEXT: usize = 256;

/// Why a call failed.
#[repr(C)]
pub struct Error {
    /// What the call returned: ASCETIC_E_*
    pub code: i32,
    /// Who has to change something: ASCETIC_PARTY_*
    pub party: u32,
    /// What the kernel said, as in errno; 0 if it was not asked.
    pub sys_errno: i32,
    /// The whole story in a sentence; cut if it is too long.
    pub text: [c_char; ASCETIC_TEXT],
}

/// Why a call failed, before it is told.
pub(crate) enum Failure {
    /// The name of the argument, and what is wrong with it.
    Argument(&'static str),
    Memory,
    NotDirect(NotDirect),
    NoCall,
    Path(BadRoot<'static>),
    Redirected(Redirect<'static>),
    Full(&'static str),
    InUse,
    Lent,
    Runtime(error::Error),
}

impl From<error::Error> for Failure {
    fn from(error: error::Error) -> Self {
        Self::Runtime(error)
    }
}

impl From<BadRoot<'static>> for Failure {
    fn from(error: BadRoot<'static>) -> Self {
        match error {
            BadRoot::TooMany => Self::Full("a policy has 16 roots at most"),
            BadRoot::Redirects(redirect) => Self::Redirected(redirect),
            _ => Self::Path(error),
        }
    }
}

impl From<BadFamily<'static>> for Failure {
    fn from(error: BadFamily<'static>) -> Self {
        match error {
            BadFamily::TooMany => Self::Full("a policy has 4 address families at most"),
            BadFamily::Twice => Self::Argument("the policy has the address family already"),
            BadFamily::NoBytes => Self::Argument("an address of no bytes would allow all"),
            BadFamily::Redirected(redirect) => Self::Redirected(redirect),
        }
    }
}

impl From<NotDirect> for Failure {
    fn from(error: NotDirect) -> Self {
        Self::NotDirect(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(what) | Self::Full(what) => f.write_str(what),
            Self::NotDirect(error) => error.fmt(f),
            Self::Path(error) => error.fmt(f),
            Self::Redirected(error) => error.fmt(f),
            Self::Runtime(error) => error.fmt(f),
            Self::Memory | Self::NoCall | Self::InUse | Self::Lent => {
                f.write_str(describe(self.code()).to_str().unwrap_or_default())
            }
        }
    }
}

impl Failure {
    fn code(&self) -> i32 {
        use error::Error as E;
        match self {
            Self::Argument(_) => ASCETIC_E_ARGUMENT,
            Self::Memory => ASCETIC_E_MEMORY,
            Self::NotDirect(_) => ASCETIC_E_NOT_DIRECT,
            Self::NoCall => ASCETIC_E_NO_CALL,
            Self::Path(BadRoot::Nested { .. }) | Self::Redirected(_) => ASCETIC_E_CONFLICT,
            Self::Path(_) => ASCETIC_E_PATH,
            Self::Full(_) => ASCETIC_E_FULL,
            Self::InUse => ASCETIC_E_IN_USE,
            Self::Lent => ASCETIC_E_LENT,
            Self::Runtime(error) => match error {
                E::Stack { .. } => ASCETIC_E_STACK,
                E::ClosedDescriptor { .. } => ASCETIC_E_CLOSED_DESCRIPTOR,
                E::ClosedCrashDescriptor { .. } => ASCETIC_E_CLOSED_CRASH_DESCRIPTOR,
                E::MultiThreaded { .. } => ASCETIC_E_MULTI_THREADED,
                E::Found { .. } => ASCETIC_E_FOUND,
                E::NoSeccomp => ASCETIC_E_NO_SECCOMP,
                E::FilterInForce => ASCETIC_E_FILTER_IN_FORCE,
                E::AlreadyStrict => ASCETIC_E_ALREADY_STRICT,
                E::Placement => ASCETIC_E_PLACEMENT,
                E::Root { .. } | E::RootIsFolder { .. } => ASCETIC_E_ROOT,
                E::CoreLimit { .. } => ASCETIC_E_CORE_LIMIT,
                E::TaggedAddresses => ASCETIC_E_TAGGED_ADDRESSES,
                E::NoOpenat2 => ASCETIC_E_NO_OPENAT2,
                E::NoDispatch => ASCETIC_E_NO_DISPATCH,
                E::Supervisor { .. } => ASCETIC_E_SUPERVISOR,
                E::Setup { .. } => ASCETIC_E_SETUP,
                E::Birth { .. } => ASCETIC_E_BIRTH,
                E::Died { .. } => ASCETIC_E_DIED,
                _ => ASCETIC_E_OTHER,
            },
        }
    }

    fn party(&self) -> u32 {
        match self {
            Self::Runtime(error) => match error.party() {
                Party::Embedder => ASCETIC_PARTY_EMBEDDER,
                Party::Kernel => ASCETIC_PARTY_KERNEL,
                Party::Runtime => ASCETIC_PARTY_RUNTIME,
            },
            Self::Memory => ASCETIC_PARTY_KERNEL,
            _ => ASCETIC_PARTY_EMBEDDER,
        }
    }

    fn sys_errno(&self) -> i32 {
        use error::Error as E;
        match self {
            Self::Runtime(
                E::Root { errno, .. } | E::Supervisor { errno, .. } | E::Setup { errno, .. } | E::Birth { errno, .. },
            ) => errno.into_raw(),
            _ => 0,
        }
    }
}

/// Writes text as far as there is room, without cutting a character, and a zero behind it.
struct Text<'a> {
    room: &'a mut [c_char; ASCETIC_TEXT],
    len: usize,
}

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let left = ASCETIC_TEXT - 1 - self.len;
        let mut end = text.len().min(left);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let room = self.room.iter_mut().skip(self.len);
        room.zip(text.bytes().take(end)).for_each(|(to, byte)| *to = byte as c_char);
        self.len += end;
        if end == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Ends a function that can fail: its result, or the code of the failure, which is told where `error` points.
///
/// # Safety
///
/// `error` is NULL or has room for an [`Error`].
pub(crate) unsafe fn tell(result: Result<i32, Failure>, error: *mut Error) -> i32 {
    let failure = match result {
        Ok(result) => return result,
        Err(failure) => failure,
    };
    let code = failure.code();
    if !error.is_null() {
        let mut text = [0; ASCETIC_TEXT];
        let _ = write!(Text { room: &mut text, len: 0 }, "{failure}");
        // SAFETY: the caller says that there is room.
        unsafe { error.write(Error { code, party: failure.party(), sys_errno: failure.sys_errno(), text }) };
    }
    code
}

fn describe(code: i32) -> &'static CStr {
    match code {
        0.. => c"success",
        ASCETIC_E_ARGUMENT => c"an argument is not one that there may be",
        ASCETIC_E_MEMORY => c"no memory",
        ASCETIC_E_NOT_DIRECT => c"the call may not be direct",
        ASCETIC_E_NO_CALL => c"there is no such system call",
        ASCETIC_E_PATH => c"the path of a root must be absolute, without `.`, `..`, `//` and a `/` at its end",
        ASCETIC_E_FULL => c"a list of the policy is full",
        ASCETIC_E_IN_USE => c"the policy is that of a sandbox, and cannot change any more",
        ASCETIC_E_LENT => c"the sandbox is only lent: it cannot be waited for, killed or freed",
        ASCETIC_E_CONFLICT => c"two things that the policy allows would together allow more than it says",
        ASCETIC_E_STACK => c"the guest's stack is too small, or too large to map",
        ASCETIC_E_CLOSED_DESCRIPTOR => c"a descriptor to keep is not open",
        ASCETIC_E_CLOSED_CRASH_DESCRIPTOR => c"the descriptor for crash reports is not open",
        ASCETIC_E_MULTI_THREADED => c"only a process with a single thread can become the guest",
        ASCETIC_E_FOUND => c"the entry audit found something that would let the guest out",
        ASCETIC_E_NO_SECCOMP => c"this kernel has no seccomp",
        ASCETIC_E_FILTER_IN_FORCE => c"a seccomp filter is in force, and the kernel does not mix modes",
        ASCETIC_E_ALREADY_STRICT => c"the caller is in seccomp strict mode already",
        ASCETIC_E_PLACEMENT => c"the placement asks for CPUs that the caller may not use",
        ASCETIC_E_ROOT => c"a root of the policy cannot be opened, or is to be one file and is a folder",
        ASCETIC_E_NO_OPENAT2 => c"this kernel has no openat2 (Linux 5.6)",
        ASCETIC_E_NO_DISPATCH => c"this kernel has no syscall user dispatch (Linux 5.11)",
        ASCETIC_E_SUPERVISOR => c"a system call of the supervisor failed",
        ASCETIC_E_SETUP => c"a step of the set-up failed",
        ASCETIC_E_BIRTH => c"the birth of a thread failed",
        ASCETIC_E_DIED => c"a task of the new sandbox ended before guest code ran",
        ASCETIC_E_TAGGED_ADDRESSES => c"the process uses tagged addresses",
        ASCETIC_E_CORE_LIMIT => c"the hard limit of cores is less than what is asked for",
        _ => c"an error that this version does not know",
    }
}

/// What a code means, in general; what happened in one case, ascetic_error.text says better. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn ascetic_strerror(code: i32) -> *const c_char {
    describe(code).as_ptr()
}
