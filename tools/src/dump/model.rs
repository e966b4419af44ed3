//! What is known of a crash.

use ascetic::fault::classify::Class;
pub use ascetic::fault::record::Arch;
use ascetic::fault::record::BACKTRACE_MAX;
use serde::{Deserialize, Serialize};

/// Who says so. What the guest says may be forged; what it cannot say is the kernel's or the supervisor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The kernel: a wait status, a core, `ptrace`, `/proc`.
    Kernel,
    /// The supervisor's own knowledge.
    Supervisor,
    /// The sandbox: a record.
    Guest,
}

impl Origin {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Supervisor => "supervisor",
            Self::Guest => "guest",
        }
    }
}

/// How the facts got out of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The reporter in the sandbox wrote a record.
    Record,
    /// The kernel wrote a core.
    Core,
    /// A helper looked with `ptrace`.
    Ptrace,
}

impl Way {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Core => "core",
            Self::Ptrace => "ptrace",
        }
    }
}

/// What a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// An untrusted thread: guest code.
    Guest,
    /// A trusted thread. Its stack pointer is 0, and that is no mistake.
    Trusted,
}

impl Role {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Trusted => "trusted",
        }
    }
}

/// The registers of a thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// General registers, in the order of [`Arch::registers`]; 0 where nobody says.
    pub general: Vec<u64>,
    /// Extended state as the kernel writes it into cores (`NT_X86_XSTATE`): FXSAVE, and behind it XSAVE's header and components
    /// if there are any. Empty if nobody says.
    pub extended: Vec<u8>,
}

impl Registers {
    /// The register of this name.
    pub fn get(&self, arch: Arch, name: &str) -> Option<u64> {
        let i = arch.registers().iter().position(|register| *register == name)?;
        self.general.get(i).copied()
    }

    /// Replaces a call's result.
    pub(super) fn set_result(&mut self, arch: Arch, result: i32) {
        let (name, value) = match arch {
            Arch::X86_64 => ("rax", i64::from(result) as u64),
            Arch::X86 => ("eax", u64::from(result as u32)),
        };
        if let Some(i) = arch.registers().iter().position(|register| *register == name)
            && let Some(register) = self.general.get_mut(i)
        {
            *register = value;
        }
    }

    /// The program counter.
    pub fn pc(&self, arch: Arch) -> Option<u64> {
        self.get(arch, if arch == Arch::X86_64 { "rip" } else { "eip" })
    }

    /// The stack pointer.
    pub fn sp(&self, arch: Arch) -> Option<u64> {
        self.get(arch, if arch == Arch::X86_64 { "rsp" } else { "esp" })
    }

    /// The frame pointer.
    pub fn fp(&self, arch: Arch) -> Option<u64> {
        self.get(arch, if arch == Arch::X86_64 { "rbp" } else { "ebp" })
    }
}

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its id, in the supervisor's process id namespace.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Its registers, or why there are none.
    pub registers: Result<Registers, String>,
    /// Who says so.
    pub origin: Origin,
}

/// What ended the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The thread that it happened to.
    pub thread: u32,
    /// Signal number.
    pub signal: i32,
    /// `si_code`, where there is one.
    pub code: Option<i32>,
    /// `si_addr`; 0 where the signal has none.
    pub address: u64,
    /// The program counter.
    pub pc: u64,
    /// What kind of fault it was.
    pub class: Class,
    /// The system call that was denied: its number and arguments.
    pub denied: Option<(u64, [u64; 6])>,
    /// Who says so.
    pub origin: Origin,
}

/// Memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Its address.
    pub address: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A line of `/proc/<pid>/maps` (`proc_pid_maps(5)`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MapsEntry {
    /// Its first address.
    pub start: u64,
    /// The address behind its last.
    pub end: u64,
    /// `rwxp` or `rwxs`, with `-` for what is not.
    pub permissions: [u8; 4],
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// The file's device and inode.
    pub file: (String, u64),
    /// The path, or a name in brackets; empty if there is none.
    pub name: String,
}

/// A mapped program or library.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Where its first segment is.
    pub base: u64,
    /// Up to where its last segment reaches, from `base`, in bytes.
    pub size: u64,
    /// Its path, as the supervisor sees it.
    pub path: String,
    /// Its build id (`NT_GNU_BUILD_ID`); empty if it has none.
    #[serde(with = "hex::serde")]
    pub build_id: Vec<u8>,
}

/// A brokered call of the guest's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub nr: u32,
    /// Its arguments.
    pub args: [u64; 6],
    /// Its result; `None` while it is under way.
    pub result: Option<i64>,
}

/// A call that the policy refused, as the broker recorded it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Its number.
    pub nr: u32,
    /// Its arguments.
    pub args: [u64; 6],
    /// Where it was made, as the guest says.
    pub pc: u64,
    /// The path that it was about; empty if there was none.
    pub path: String,
    /// What the guest was told.
    pub errno: i32,
    /// The rule that refused it.
    pub rule: String,
}

/// Words with a name and a value, in order.
pub type Words = Vec<(String, String)>;

/// Everything that is known of a crash.
#[derive(Clone, Debug)]
pub struct Dump {
    /// The architecture of the guest.
    pub arch: Arch,
    /// How the facts got out.
    pub way: Way,
    /// The process id by which the sandbox is known: that of its first untrusted thread.
    pub process: u32,
    /// When it was taken: seconds since 1970.
    pub time: u64,
    /// What ended the guest; `None` if nothing says so.
    pub exception: Option<Exception>,
    /// The threads; the one of the exception first.
    pub threads: Vec<Thread>,
    /// Memory, by address, without overlaps.
    pub memory: Vec<Memory>,
    /// Mapped programs and libraries.
    pub modules: Vec<Module>,
    /// What is mapped.
    pub maps: Vec<MapsEntry>,
    /// Return addresses as the reporter followed them, the program counter first; empty if there was none.
    pub backtrace: Vec<u64>,
    /// The auxiliary vector, as in `/proc/<pid>/auxv`.
    pub auxv: Vec<u8>,
    /// Arguments of the command line, each ended by a zero byte.
    pub command_line: Vec<u8>,
    /// The last brokered calls, oldest first.
    pub calls: Vec<Call>,
    /// The last refusals, oldest first.
    pub refusals: Vec<Refusal>,
    /// What guest and embedder noted, and who.
    pub annotations: Vec<(Origin, String, String)>,
    /// What the set-up found of itself: alternate stack, dumpable, limits, `core_pattern`, Yama.
    pub self_check: Words,
    /// The line of text of a record.
    pub text: String,
    /// What is missing, and why.
    pub missing: Vec<String>,
}

impl Dump {
    /// A dump in which nothing is known.
    pub fn new(arch: Arch, way: Way) -> Self {
        Self {
            arch,
            way,
            process: 0,
            time: 0,
            exception: None,
            threads: Vec::new(),
            memory: Vec::new(),
            modules: Vec::new(),
            maps: Vec::new(),
            backtrace: Vec::new(),
            auxv: Vec::new(),
            command_line: Vec::new(),
            calls: Vec::new(),
            refusals: Vec::new(),
            annotations: Vec::new(),
            self_check: Vec::new(),
            text: String::new(),
            missing: Vec::new(),
        }
    }

    /// Takes a range of addresses out of the memory.
    pub fn redact(&mut self, range: &std::ops::Range<u64>) {
        let pieces = std::mem::take(&mut self.memory);
        for piece in pieces {
            let end = piece.address.saturating_add(piece.bytes.len() as u64);
            let cut =
                |address: u64| usize::try_from(address.clamp(piece.address, end) - piece.address).unwrap_or(usize::MAX);
            let (from, to) = (cut(range.start), cut(range.end).max(cut(range.start)));
            let kept = [(piece.address, &piece.bytes[..from]), (piece.address + to as u64, &piece.bytes[to..])];
            for (address, bytes) in kept.into_iter().filter(|(_, bytes)| !bytes.is_empty()) {
                self.memory.push(Memory { address, bytes: bytes.to_vec() });
            }
        }
    }

    /// What the crashed thread's general registers hold, and the address of the fault: perhaps addresses.
    pub fn pointers(&self) -> Vec<u64> {
        let registers = self.threads.first().and_then(|thread| thread.registers.as_ref().ok());
        let general = registers.into_iter().flat_map(|registers| &registers.general).take(self.arch.general()).copied();
        general.chain(self.exception.as_ref().map(|exception| exception.address)).collect()
    }

    /// What the general registers of a thread point to, as far as it is in the dump: each by its name, with up to `len` bytes.
    pub fn pointed_to(&self, thread: &Thread, len: usize) -> Vec<(&'static str, &[u8])> {
        let Ok(registers) = &thread.registers else { return Vec::new() };
        let names = self.arch.registers().iter().take(self.arch.general());
        let all = names.zip(&registers.general).map(|(name, value)| (*name, self.read(*value, len)));
        all.filter(|(_, bytes)| !bytes.is_empty()).collect()
    }

    /// Cuts memory to so many bytes: of the crashed thread, what is nearest above its stack pointer and around its program
    /// counter goes last, and before that what its registers point to.
    pub fn cap(&mut self, bytes: usize) {
        let crashed = self.threads.first().and_then(|thread| thread.registers.as_ref().ok());
        let places = crashed.map(|registers| [registers.pc(self.arch), registers.sp(self.arch)]);
        let pointers = self.pointers();
        let near = |piece: &Memory| {
            let range = piece.address..piece.address.saturating_add(piece.bytes.len() as u64);
            let place = places.into_iter().flatten().flatten().position(|place| range.contains(&place));
            place.unwrap_or(if pointers.iter().any(|at| range.contains(at)) { 2 } else { 3 })
        };
        let mut order: Vec<usize> = (0..self.memory.len()).collect();
        order.sort_by_key(|i| near(&self.memory[*i]));
        let (mut room, mut cut) = (bytes, false);
        for i in order {
            let piece = &mut self.memory[i];
            cut |= piece.bytes.len() > room;
            piece.bytes.truncate(room);
            room -= piece.bytes.len();
        }
        self.memory.retain(|piece| !piece.bytes.is_empty());
        if cut {
            self.missing.push(format!("memory beyond {bytes} bytes was not asked for"));
        }
    }

    /// The bytes at an address, as far as they are in the dump and up to `len`.
    pub fn read(&self, address: u64, len: usize) -> &[u8] {
        let behind = self.memory.partition_point(|memory| memory.address <= address);
        let Some(memory) = behind.checked_sub(1).and_then(|i| self.memory.get(i)) else { return &[] };
        let from = usize::try_from(address - memory.address).unwrap_or(usize::MAX);
        let rest = memory.bytes.get(from..).unwrap_or_default();
        rest.get(..len).unwrap_or(rest)
    }

    /// The word of the architecture at an address.
    pub fn word(&self, address: u64) -> Option<u64> {
        let len = if self.arch == Arch::X86_64 { 8 } else { 4 };
        let bytes = self.read(address, len);
        (bytes.len() == len).then(|| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
    }

    /// Whether anything is known to be at an address.
    fn is_mapped(&self, address: u64) -> bool {
        let within = |entry: &MapsEntry| (entry.start..entry.end).contains(&address);
        !self.read(address, 1).is_empty() || self.maps.iter().any(within)
    }

    /// The program counter of a thread and the return addresses along its frame pointers, as far as memory has them.
    pub fn walk(&self, registers: &Registers) -> Vec<u64> {
        let size = if self.arch == Arch::X86_64 { 8 } else { 4 };
        let (Some(pc), Some(mut fp)) = (registers.pc(self.arch), registers.fp(self.arch)) else { return Vec::new() };
        let mut all = vec![pc];
        // A call to nowhere: the caller's address is on top of the stack.
        if !self.is_mapped(pc)
            && let Some(back) = registers.sp(self.arch).and_then(|sp| self.word(sp))
        {
            all.push(back);
        }
        for _ in 2..BACKTRACE_MAX {
            if fp % size != 0 {
                break;
            }
            let (Some(next), Some(back)) = (self.word(fp), self.word(fp.wrapping_add(size))) else { break };
            if back == 0 {
                break;
            }
            all.push(back);
            if next <= fp {
                break; // frames lie upwards
            }
            fp = next;
        }
        all
    }

    /// The backtrace of a thread: of the crashed one as the reporter followed it, if it did.
    pub fn backtrace_of(&self, thread: &Thread) -> Vec<u64> {
        let crashed = self.exception.as_ref().is_some_and(|exception| exception.thread == thread.id);
        match &thread.registers {
            Ok(_) if crashed && !self.backtrace.is_empty() => self.backtrace.clone(),
            Ok(registers) => self.walk(registers),
            Err(_) => Vec::new(),
        }
    }

    /// Adds memory; what is there already stays as it is. What touches becomes one.
    pub fn add_memory(&mut self, mut address: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let behind = self.memory.partition_point(|memory| memory.address <= address);
            let known = self.read(address, bytes.len()).len();
            if known > 0 {
                (address, bytes) = (address.saturating_add(known as u64), &bytes[known..]);
                continue;
            }
            let until = self.memory.get(behind).map_or(1 << 64, |next| u128::from(next.address)) - u128::from(address);
            let len = bytes.len().min(usize::try_from(until).unwrap_or(usize::MAX));
            let (new, rest) = bytes.split_at(len);
            let before = behind.checked_sub(1).and_then(|i| self.memory.get_mut(i));
            let i = match before.filter(|before| before.address.checked_add(before.bytes.len() as u64) == Some(address))
            {
                Some(before) => {
                    before.bytes.extend(new);
                    behind - 1
                }
                None => {
                    self.memory.insert(behind, Memory { address, bytes: new.to_vec() });
                    behind
                }
            };
            let Some(next) = address.checked_add(len as u64) else { break };
            if self.memory.get(i + 1).is_some_and(|above| above.address == next) {
                let above = self.memory.remove(i + 1);
                self.memory[i].bytes.extend(above.bytes);
            }
            (address, bytes) = (next, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_does_not_overlap_and_has_no_seams() {
        let mut dump = Dump::new(Arch::X86_64, Way::Record);
        dump.add_memory(0x1010, &[1; 16]);
        dump.add_memory(0x1000, &[2; 64]);
        dump.add_memory(u64::MAX, &[3; 2]);
        let places: Vec<_> = dump.memory.iter().map(|m| (m.address, m.bytes.len())).collect();
        assert_eq!(places, [(0x1000, 64), (u64::MAX, 1)]);
        assert_eq!(
            (dump.read(0x100f, 2), dump.read(0x1018, 99).len(), dump.read(0x1040, 1)),
            (&[2, 1][..], 40, &[][..])
        );
    }

    #[test]
    fn what_registers_point_to_is_cut_before_what_nothing_points_to() {
        let mut dump = Dump::new(Arch::X86_64, Way::Record);
        let mut general = vec![0; Arch::X86_64.registers().len()];
        general[9] = 0x3008; // rsi
        let registers = Ok(Registers { general, extended: Vec::new() });
        dump.threads.push(Thread { id: 1, name: String::new(), role: Role::Guest, registers, origin: Origin::Guest });
        dump.add_memory(0x1000, &[1; 16]);
        dump.add_memory(0x3000, &[3; 16]);
        assert_eq!(dump.pointed_to(&dump.threads[0], 4), [("rsi", &[3; 4][..])]);
        dump.cap(16);
        assert_eq!(dump.memory, [Memory { address: 0x3000, bytes: vec![3; 16] }]);
    }
}
