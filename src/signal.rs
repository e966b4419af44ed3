//! Signals as the kernel wants them: sets, actions, alternate stacks, and what it tells a handler.

/// `SIGILL`
pub const SIGILL: i32 = 4;
/// `SIGTRAP`
pub const SIGTRAP: i32 = 5;
/// `SIGABRT`
pub const SIGABRT: i32 = 6;
/// `SIGBUS`
pub const SIGBUS: i32 = 7;
/// `SIGFPE`
pub const SIGFPE: i32 = 8;
/// `SIGKILL`
pub const SIGKILL: i32 = 9;
/// `SIGSEGV`
pub const SIGSEGV: i32 = 11;
/// `SIGPIPE`
pub const SIGPIPE: i32 = 13;
/// `SIGCHLD`
pub const SIGCHLD: i32 = 17;
/// `SIGCONT`
pub const SIGCONT: i32 = 18;
/// `SIGSTOP`
pub const SIGSTOP: i32 = 19;
/// `SIGTTIN`
pub const SIGTTIN: i32 = 21;
/// `SIGTTOU`
pub const SIGTTOU: i32 = 22;
/// `SIGURG`
pub const SIGURG: i32 = 23;
/// `SIGWINCH`
pub const SIGWINCH: i32 = 28;
/// `SIGXFSZ`
pub const SIGXFSZ: i32 = 25;
/// `SIGSYS`
pub const SIGSYS: i32 = 31;
/// The highest signal number.
pub const NSIG: i32 = 64;
/// What a guest's thread sends another, so that it looks for signals of the guest's (`untrusted/signal/`): the last
/// real-time signal, of which the kernel sends none by itself.
pub const KICK: i32 = NSIG;

/// The signals that the fault reporter handles.
pub const REPORTED: [i32; 7] = [SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS];

/// `SA_ONSTACK`: on the alternate stack.
pub const SA_ONSTACK: usize = 0x0800_0000;
/// `SA_RESTORER`: the handler returns to the address given.
pub const SA_RESTORER: usize = 0x0400_0000;
/// `SA_SIGINFO`: the handler gets a `siginfo_t` and a `ucontext_t`.
pub const SA_SIGINFO: usize = 4;
/// `SA_RESTART`: a call that the signal interrupted is made again.
pub const SA_RESTART: usize = 0x1000_0000;
/// `SA_NODEFER`: the signal is not blocked while the handler runs.
pub const SA_NODEFER: usize = 0x4000_0000;
/// `SA_RESETHAND`: the action is the default one again when the handler starts.
pub const SA_RESETHAND: usize = 0x8000_0000;

/// The name of a signal of [`REPORTED`], or `SIG?`.
pub const fn name(sig: i32) -> &'static str {
    match sig {
        SIGSEGV => "SIGSEGV",
        SIGBUS => "SIGBUS",
        SIGILL => "SIGILL",
        SIGFPE => "SIGFPE",
        SIGTRAP => "SIGTRAP",
        SIGABRT => "SIGABRT",
        SIGSYS => "SIGSYS",
        SIGKILL => "SIGKILL",
        _ => "SIG?",
    }
}

/// A set of signals, 64 bits on both architectures.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SigSet([u32; 2]);

impl SigSet {
    /// No signal.
    pub const EMPTY: Self = Self([0; 2]);
    /// Every signal. The kernel leaves out SIGKILL and SIGSTOP itself.
    pub const ALL: Self = Self([u32::MAX; 2]);

    /// The set with these signals.
    pub fn of(signals: &[i32]) -> Self {
        let mut set = Self::EMPTY;
        signals.iter().for_each(|sig| set.add(*sig));
        set
    }

    /// The signals that are not in this set.
    pub fn complement(self) -> Self {
        Self(self.0.map(|word| !word))
    }

    /// Adds a signal.
    pub fn add(&mut self, sig: i32) {
        let bit = (sig - 1) as u32;
        if let Some(word) = self.0.get_mut(bit as usize / 32) {
            *word |= 1 << (bit % 32);
        }
    }

    /// Removes a signal.
    pub fn remove(&mut self, sig: i32) {
        let bit = (sig - 1) as u32;
        if let Some(word) = self.0.get_mut(bit as usize / 32) {
            *word &= !(1 << (bit % 32));
        }
    }

    /// Low and high half.
    pub fn words(self) -> [u32; 2] {
        self.0
    }

    /// Signal 1 in the lowest bit.
    pub fn bits(self) -> u64 {
        u64::from(self.0[0]) | u64::from(self.0[1]) << 32
    }

    /// The set that these bits are.
    pub fn from_bits(bits: u64) -> Self {
        Self([bits as u32, (bits >> 32) as u32])
    }
}

/// `struct sigaction` of the kernel (`include/linux/signal_types.h`), not of a libc.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SigAction {
    /// Handler, 0 for the default action.
    pub handler: usize,
    /// `SA_*`
    pub flags: usize,
    /// Where the handler returns to.
    pub restorer: usize,
    /// What is blocked while it runs.
    pub mask: SigSet,
}

impl SigAction {
    /// `SIG_IGN`
    pub const IGNORE: Self = Self { handler: 1, flags: 0, restorer: 0, mask: SigSet::EMPTY };
    /// The default action.
    pub const DEFAULT: Self = Self { handler: 0, flags: 0, restorer: 0, mask: SigSet::EMPTY };
}

/// `stack_t`: an alternate signal stack.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AltStack {
    /// Lowest address.
    pub sp: usize,
    /// `SS_*`, 0 for "in use".
    pub flags: i32,
    /// Bytes.
    pub size: usize,
}

impl AltStack {
    /// `SS_ONSTACK`
    pub const ONSTACK: i32 = 1;
    /// `SS_DISABLE`
    pub const DISABLE: i32 = 2;
    /// `SS_AUTODISARM`
    pub const AUTODISARM: i32 = i32::MIN;
    /// None.
    pub const NONE: Self = Self { sp: 0, flags: Self::DISABLE, size: 0 };

    /// Whether a stack pointer is on it.
    pub fn holds(&self, sp: usize) -> bool {
        sp.wrapping_sub(self.sp) <= self.size && self.size != 0
    }
}

/// Bytes of a `siginfo_t` before what depends on the signal.
const INFO_HEAD: usize = if cfg!(target_pointer_width = "64") { 4 } else { 3 };
/// Words of a `siginfo_t` behind that.
const INFO_REST: usize = 32 - INFO_HEAD - 2 - size_of::<usize>() / 4;

/// `siginfo_t`, whole: 128 bytes (`include/uapi/asm-generic/siginfo.h`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// Signal, `errno`, code; and padding where pointers have 64 bits.
    head: [i32; INFO_HEAD],
    /// Sent: process and user id. A fault: its address.
    pub words: [u32; 2],
    /// Sent with a value (`sigqueue`): that.
    pub value: usize,
    rest: [u32; INFO_REST],
}

impl Info {
    /// That of a signal with a code.
    pub fn new(sig: i32, code: i32, words: [u32; 2], value: usize) -> Self {
        let mut head = [0; INFO_HEAD];
        (head[0], head[2]) = (sig, code);
        Self { head, words, value, rest: [0; INFO_REST] }
    }

    /// `si_code`
    pub fn code(&self) -> i32 {
        self.head[2]
    }
}

static_assertions::const_assert!(size_of::<Info>() == 128);

/// The part of `siginfo_t` that a fault handler looks at (`include/uapi/asm-generic/siginfo.h`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SigInfo {
    /// Signal number.
    pub signo: i32,
    /// Unused on x86.
    pub errno: i32,
    /// What kind of fault, or who sent it (0 and below).
    pub code: i32,
    /// Padding.
    #[cfg(target_pointer_width = "64")]
    pub pad: i32,
    /// Address of the fault; after SIGSYS, of the call.
    pub addr: usize,
    /// After SIGSYS: the call's number …
    pub syscall: i32,
    /// … and its architecture (`AUDIT_ARCH_*`).
    pub arch: u32,
}
