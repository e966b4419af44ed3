//! The fault record: its layout, and a decoder that survives any bytes.
//!
//! The layout is described in `docs/fault-record.md`. Everything in a record comes from the guest and may be forged.

use crate::fault::classify::Class;
use static_assertions::const_assert;

/// The first bytes of a record, after the line of text.
pub const MAGIC: [u8; 8] = *b"\0ASCETIC";
/// The version that this crate writes.
pub const VERSION: u16 = 1;
/// Return addresses in a backtrace, at most.
pub const BACKTRACE_MAX: usize = 64;
/// Bytes of code before and after the program counter.
pub const CODE_AROUND: usize = 64;
/// Bytes of stack, at most.
pub const STACK_MAX: usize = 64 * 1024;
/// Bytes of another thread's stack, at most, …
pub const THREAD_STACK_MAX: usize = 16 * 1024;
/// … and of all others' together.
pub const THREADS_STACK_MAX: usize = 96 * 1024;
/// Bytes before and after what a register points to.
pub const NEAR: [usize; 2] = [128, 256];
/// Bytes of a record's head: magic, version, architecture, word size.
const HEAD: usize = 16;

/// Kinds of sections.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// What happened: [`FaultBody`].
    Fault = 1,
    /// General registers: 8 bytes each, in the order of [`Arch::registers`].
    Registers = 2,
    /// Program counter and return addresses: 8 bytes each.
    Backtrace = 3,
    /// Recent brokered calls: [`Call`], 64 bytes each.
    Calls = 4,
    /// `key=value` lines.
    Annotations = 5,
    /// Where things are: [`LayoutBody`].
    Layout = 6,
    /// Code around the program counter: [`MemoryBody`], then bytes.
    Code = 7,
    /// Extended state as the kernel saved it: [`MemoryBody`], then bytes.
    ExtendedState = 8,
    /// Stack: [`MemoryBody`], then bytes.
    Stack = 9,
    /// Another thread: [`ThreadBody`], then its general registers as in [`Registers`](Self::Registers), if it stopped.
    Thread = 10,
    /// Memory that a general register or the address of the fault points to: [`MemoryBody`], then bytes.
    Near = 11,
    /// What the set-up found of itself: [`CheckBody`].
    Check = 12,
    /// The record is complete: 8 bytes, the number of bytes before this section, the line of text included.
    End = 0xff,
}

macro_rules! body {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }

        impl $name {
            /// The length in a record, in bytes.
            pub const LEN: usize = size_of::<Self>();

            /// As in a record: both architectures are little-endian, and the fields leave no gaps.
            pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
                // SAFETY: the struct has no padding (asserted below), so all its bytes are initialised.
                unsafe { core::mem::transmute::<Self, [u8; size_of::<Self>()]>(self) }
            }

            /// From the first bytes of a section; `None` if there are too few.
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                let bytes: [u8; size_of::<Self>()] = bytes.get(..size_of::<Self>())?.try_into().ok()?;
                // SAFETY: every field is a number, or an array of numbers, for which any bytes are valid.
                Some(unsafe { core::mem::transmute::<[u8; size_of::<Self>()], Self>(bytes) })
            }
        }

        const_assert!(size_of::<$name>() == 0 $(+ size_of::<$ty>())*);
    };
}

body! {
    /// What happened.
    FaultBody {
        /// Signal number.
        sig: i32,
        /// `si_code`; `i32::MIN` where the kernel gives none (i386).
        code: i32,
        /// The address of the fault.
        addr: u64,
        /// Program counter.
        pc: u64,
        /// Stack pointer.
        sp: u64,
        /// The processor's exception and its error code.
        trap: [u32; 2],
        /// [`Class`]
        class: u32,
        /// The process id that the guest is told.
        pid: u32,
        /// 1 if somebody sent the signal.
        sent: u32,
        /// Padding.
        pad: u32,
        /// The denied call's number; all ones if there is none.
        nr: u64,
        /// The denied call's arguments.
        args: [u64; 6],
    }
}

body! {
    /// Where things are: from, to.
    LayoutBody {
        /// The guest's stack.
        stack: [u64; 2],
        /// The alternate stack.
        altstack: [u64; 2],
        /// The vault.
        vault: [u64; 2],
    }
}

body! {
    /// What the set-up found of itself.
    CheckBody {
        /// Bytes of the alternate stack, on which handlers run.
        altstack: u64,
        /// Bytes that the kernel may take of it for a signal frame (`AT_MINSIGSTKSZ`); 0 where it does not say (before 5.14).
        frame: u64,
    }
}

impl CheckBody {
    /// Whether the alternate stack has room for the handlers; `None` if nobody knows.
    pub fn enough(&self) -> Option<bool> {
        let needs = crate::pair::altstack_needs(usize::try_from(self.frame).unwrap_or(usize::MAX));
        (self.frame > 0).then_some(self.altstack >= needs as u64)
    }
}

impl core::fmt::Display for CheckBody {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { altstack, frame } = self;
        match self.enough() {
            None => write!(f, "{altstack} bytes; the kernel does not say what a signal frame takes"),
            Some(true) => write!(f, "{altstack} bytes, enough: a signal frame takes up to {frame}"),
            Some(false) => write!(f, "{altstack} bytes, TOO SMALL: a signal frame takes up to {frame}"),
        }
    }
}

body! {
    /// The address of the bytes that follow.
    MemoryBody {
        /// Address.
        addr: u64,
    }
}

body! {
    /// Another thread than the one that the record is about.
    ThreadBody {
        /// Its pair's number.
        pair: u32,
        /// The thread id that the guest is told.
        tid: u32,
        /// 1 if it stopped.
        stopped: u32,
        /// Padding.
        pad: u32,
    }
}

body! {
    /// A brokered call.
    Call {
        /// Its number.
        nr: u32,
        /// 1: under way; 2: returned.
        state: u32,
        /// Its result: a negative `errno` on failure.
        result: i64,
        /// Its arguments.
        args: [u64; 6],
    }
}

/// The architecture of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// i386
    X86,
    /// x86_64
    X86_64,
}

impl Arch {
    fn from_raw(raw: u16) -> Option<Self> {
        match raw {
            3 => Some(Self::X86),
            62 => Some(Self::X86_64),
            _ => None,
        }
    }

    /// How many of the [`registers`](Self::registers), from the first on, can hold whatever the guest likes, addresses
    /// included: all but the program counter, flags, segments, and what the kernel adds.
    pub const fn general(self) -> usize {
        match self {
            Self::X86 => 8,
            Self::X86_64 => 16,
        }
    }

    /// Names of the general registers, in the order of a record.
    pub fn registers(self) -> &'static [&'static str] {
        match self {
            Self::X86 => &[
                "edi", "esi", "ebp", "esp", "ebx", "edx", "ecx", "eax", "eip", "eflags", "cs", "ss", "ds", "es", "fs",
                "gs", "err", "trapno", "cr2",
            ],
            Self::X86_64 => &[
                "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx",
                "rsp", "rip", "eflags", "cs", "gs", "fs", "ss", "err", "trapno", "cr2", "fs_base", "gs_base",
            ],
        }
    }
}

/// A decoded record: views into the bytes that it was decoded from.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The line of text.
    pub text: &'a str,
    /// The architecture.
    pub arch: Arch,
    /// The format's version.
    pub version: u16,
    /// What happened.
    pub fault: Option<FaultBody>,
    /// Where things are.
    pub layout: Option<LayoutBody>,
    /// What the set-up found of itself.
    pub check: Option<CheckBody>,
    /// Whether the record was written to its end.
    pub complete: bool,
    sections: &'a [u8],
}

impl<'a> Record<'a> {
    /// Decodes the first report in `bytes`, which may hold other things before it. `None` if there is none.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let start = bytes.windows(MAGIC.len()).position(|window| window == MAGIC)?;
        let (before, record) = bytes.split_at(start);
        let head: &[u8; HEAD] = record.first_chunk()?;
        let arch = Arch::from_raw(u16::from_le_bytes([head[10], head[11]]))?;
        let text = before.strip_suffix(b"\n").unwrap_or(before).rsplit(|b| *b == b'\n').next().unwrap_or_default();
        let mut this = Self {
            text: text.utf8_chunks().next().map_or("", |chunk| chunk.valid()),
            arch,
            version: u16::from_le_bytes([head[8], head[9]]),
            fault: None,
            layout: None,
            check: None,
            complete: false,
            sections: &record[HEAD..],
        };
        for (kind, body) in this.sections() {
            match kind {
                k if k == Kind::Fault as u32 => this.fault = this.fault.or(FaultBody::from_bytes(body)),
                k if k == Kind::Layout as u32 => this.layout = this.layout.or(LayoutBody::from_bytes(body)),
                k if k == Kind::Check as u32 => this.check = this.check.or(CheckBody::from_bytes(body)),
                k if k == Kind::End as u32 => this.complete = true,
                _ => {}
            }
        }
        Some(this)
    }

    /// The sections: kind and body. Ends at the end section, or where the bytes end; a body that is cut short is left
    /// out, except that of memory, which is given as far as it goes.
    pub fn sections(&self) -> impl Iterator<Item = (u32, &'a [u8])> + use<'a> {
        let mut rest = self.sections;
        core::iter::from_fn(move || {
            let head: &[u8; 8] = rest.first_chunk()?;
            let kind = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
            let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
            let behind = &rest[8..];
            let memory = [Kind::Code, Kind::ExtendedState, Kind::Stack, Kind::Near].iter().any(|k| *k as u32 == kind);
            let body = match behind.get(..len) {
                Some(body) => body,
                None if memory => behind,
                None => return None,
            };
            rest = if kind == Kind::End as u32 { &[] } else { behind.get(len..).unwrap_or_default() };
            Some((kind, body))
        })
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.sections().filter(move |(k, _)| *k == kind as u32).map(|(_, body)| body)
    }

    /// What kind of fault it was.
    pub fn class(&self) -> Class {
        Class::from_raw(self.fault.map_or(0, |fault| fault.class))
    }

    /// General registers: name and value.
    pub fn registers(&self) -> impl Iterator<Item = (&'static str, u64)> + use<'a> {
        self.arch.registers().iter().copied().zip(words(self.of_kind(Kind::Registers).next().unwrap_or_default()))
    }

    /// The other threads, each with the values of its general registers in the order of [`Arch::registers`]; none if it did
    /// not stop.
    pub fn threads(&self) -> impl Iterator<Item = (ThreadBody, impl Iterator<Item = u64> + use<'a>)> + use<'a> {
        self.of_kind(Kind::Thread).filter_map(|body| {
            let thread = ThreadBody::from_bytes(body)?;
            Some((thread, words(body.get(ThreadBody::LEN..).unwrap_or_default())))
        })
    }

    /// The program counter and the return addresses, innermost first.
    pub fn backtrace(&self) -> impl Iterator<Item = u64> + use<'a> {
        words(self.of_kind(Kind::Backtrace).next().unwrap_or_default()).take(BACKTRACE_MAX)
    }

    /// Recent brokered calls, oldest first.
    pub fn calls(&self) -> impl Iterator<Item = Call> + use<'a> {
        self.of_kind(Kind::Calls).next().unwrap_or_default().chunks_exact(Call::LEN).filter_map(Call::from_bytes)
    }

    /// The guest's annotations: key and value.
    pub fn annotations(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let bytes = self.of_kind(Kind::Annotations).next().unwrap_or_default();
        let text = bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        text.lines().filter_map(|line| line.split_once('='))
    }

    /// Memory of one kind ([`Kind::Code`], [`Kind::Stack`], [`Kind::ExtendedState`] or [`Kind::Near`]): address and bytes, in
    /// order.
    pub fn memory(&self, kind: Kind) -> impl Iterator<Item = (u64, &'a [u8])> + use<'a> {
        self.of_kind(kind).filter_map(|body| {
            let MemoryBody { addr } = MemoryBody::from_bytes(body)?;
            Some((addr, &body[MemoryBody::LEN..]))
        })
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + use<'_> {
    bytes.chunks_exact(8).filter_map(|chunk| Some(u64::from_le_bytes(chunk.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn register_names_are_those_of_the_writer() {
        let arch = Arch::from_raw(crate::arch::AUDIT_ARCH as u16).unwrap();
        assert_eq!(arch.registers(), crate::arch::REGISTERS);
        // What comes behind the general ones is the program counter, and the stack pointer is one of them.
        let general = &arch.registers()[..arch.general()];
        let is = |name: &str, letter| name.ends_with(letter) && name.len() == 3;
        let sp = if arch == Arch::X86 { "esp" } else { "rsp" };
        assert!(general.contains(&sp) && !general.iter().any(|name| name.contains("fl") || is(name, "ip")));
    }

    fn sample() -> Vec<u8> {
        let mut bytes = b"junk\nascetic: fault signal=11\n".to_vec();
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(62u16.to_le_bytes());
        bytes.extend(8u32.to_le_bytes());
        let fault = FaultBody {
            sig: 11,
            code: 1,
            addr: 8,
            pc: 0x1000,
            sp: 0x2000,
            trap: [14, 6],
            class: 1,
            pid: 7,
            sent: 0,
            pad: 0,
            nr: u64::MAX,
            args: [0; 6],
        };
        let mut section = |kind: Kind, body: &[u8]| {
            bytes.extend((kind as u32).to_le_bytes());
            bytes.extend((body.len() as u32).to_le_bytes());
            bytes.extend(body);
        };
        section(Kind::Fault, &fault.to_bytes());
        section(Kind::Backtrace, &[1; 24]);
        section(Kind::Annotations, b"input=x.pcx\n");
        section(Kind::Stack, &[&0x2000u64.to_le_bytes()[..], &[5; 100]].concat());
        section(Kind::End, &0u64.to_le_bytes());
        bytes
    }

    #[test]
    fn an_alternate_stack_that_is_too_small_is_called_so() {
        let check = |altstack, frame| CheckBody { altstack, frame };
        assert_eq!(check(36864, 3376).enough(), Some(true));
        assert_eq!(check(8192, 3376).enough(), Some(false));
        assert_eq!(check(36864, 11_952).enough(), Some(false)); // AMX
        assert_eq!(check(8192, 0).enough(), None);
        assert!(check(8192, 3376).to_string().contains("TOO SMALL") && !check(8192, 0).to_string().contains("TOO"));
    }

    #[test]
    fn decodes_and_tells_what_is_missing() {
        let whole = sample();
        let record = Record::decode(&whole).unwrap();
        assert!(record.complete);
        assert_eq!(record.text, "ascetic: fault signal=11");
        assert_eq!((record.class(), record.fault.unwrap().addr), (Class::NullPointer, 8));
        assert_eq!(record.backtrace().count(), 3);
        assert_eq!(record.annotations().next(), Some(("input", "x.pcx")));
        let cut = Record::decode(&whole[..whole.len() - 40]).unwrap();
        assert!(!cut.complete);
        assert_eq!(cut.memory(Kind::Stack).next().unwrap().1.len(), 76);
        assert_eq!(cut.fault, record.fault);
    }

    #[test]
    fn survives_any_bytes() {
        let whole = sample();
        let look = |bytes: &[u8]| {
            let Some(record) = Record::decode(bytes) else { return };
            record.registers().count();
            record.backtrace().count();
            record.calls().count();
            record.annotations().count();
            record.memory(Kind::Stack).count();
            record.threads().for_each(|(_, registers)| _ = registers.count());
            record.class().describe();
        };
        (0..=whole.len()).for_each(|len| look(&whole[..len]));
        let mut seed = 1u64;
        for _ in 0..200_000 {
            let mut bytes = whole.clone();
            for _ in 0..3 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = (seed >> 33) as usize % bytes.len();
                bytes[at] = (seed >> 20) as u8;
            }
            look(&bytes);
        }
    }
}
