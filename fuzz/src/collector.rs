//! The collector: whatever the bytes of a record or a core are, what is read of them is in them, and what is written of that is
//! read back by others: a minidump by the reader that is its own crate, a core by this one's.

use ::minidump::{
    Minidump, MinidumpException, MinidumpMemoryList, MinidumpSystemInfo, MinidumpThreadList, MinidumpThreadNames,
};
use arbitrary::{Result, Unstructured};
use ascetic::fault::record::{Arch, STACK_MAX};
use ascetic_tools::dump::symbols::Symbols;
use ascetic_tools::dump::{Dump, Facts, Way, core, elf, json, minidump, record, report};

use crate::record::Model;

/// The first byte of an input that says what a core is made of; any other is a file's.
pub const MADE: u8 = b'C';
/// How much of an input may come out as memory.
const PIECES_MAX: usize = 1024;
/// The kinds of a record's sections that are memory, in the order in which they are taken.
const MEMORY: [u32; 3] = [7, 9, 11];
/// Bytes on each side of a program counter that are taken.
const AROUND: u64 = ascetic::fault::record::CODE_AROUND as u64;

/// Reads, compares, writes, reads again.
///
/// # Errors
/// There are too few bytes.
///
/// # Panics
/// What was read is not in the bytes, or what was written says something else.
pub fn check(bytes: &[u8]) -> Result<()> {
    match bytes.split_first() {
        Some((&MADE, rest)) => Made::new(&mut Unstructured::new(rest))?.check(),
        _ => file(bytes),
    }
    Ok(())
}

fn file(bytes: &[u8]) {
    let facts = Facts::default();
    if let Some(dump) = core::read(bytes, &facts) {
        whole(&dump);
        let Some(segments) = segments(bytes) else { return };
        for memory in &dump.memory {
            for (i, byte) in memory.bytes.iter().enumerate() {
                let at = memory.address + i as u64;
                let has = |(address, piece): &(u64, &[u8])| {
                    at.checked_sub(*address).and_then(|i| piece.get(usize::try_from(i).ok()?)) == Some(byte)
                };
                assert!(segments.iter().any(has), "no segment has {byte:#x} at {at:#x}");
            }
        }
    } else if let Some(dump) = record::read(bytes, &facts) {
        whole(&dump);
        let model = Model::read(bytes).expect("it is a record");
        said(&dump, &model);
    } else {
        assert!(Model::read(bytes).is_none(), "a record is not read");
    }
}

/// Segments of a little-endian core, with the bytes that the file has of them; `None` if this reader does not know.
fn segments(bytes: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    let number = |at: u64, len: usize| -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        Some(bytes.get(at..at.checked_add(len)?)?.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
    };
    let is_64 = number(4, 1)? == 2;
    let word = if is_64 { 8 } else { 4 };
    // e_phoff, e_phentsize, e_phnum; p_offset, p_vaddr, p_filesz
    let (table, size, count) = if is_64 { (32, 54, 56) } else { (28, 42, 44) };
    let (offset, address, len) = if is_64 { (8, 16, 32) } else { (4, 8, 16) };
    let (table, size, count) = (number(table, word)?, number(size, 2)?, number(count, 2)?);
    if number(5, 1)? != 1 || count == 0xffff {
        return None;
    }
    let mut all = Vec::new();
    for i in 0..count {
        let at = table.checked_add(i * size)?;
        if number(at, 4)? == 1 {
            let from = usize::try_from(number(at + offset, word)?).unwrap_or(usize::MAX).min(bytes.len());
            let len = usize::try_from(number(at + len, word)?).unwrap_or(usize::MAX).min(bytes.len() - from);
            all.push((number(at + address, word)?, &bytes[from..from + len]));
        }
    }
    Some(all)
}

/// A dump says what its record says: what happened, and every byte of memory.
fn said(dump: &Dump, model: &Model<'_>) {
    let fault = model.fault();
    let told = dump.exception.as_ref().map(|e| (e.signal, e.code.unwrap_or(i32::MIN), e.address, e.pc));
    assert_eq!(told, fault.map(|fault| (fault.sig, fault.code, fault.addr, fault.pc)));
    let pieces: Vec<(u64, &[u8])> = MEMORY.iter().flat_map(|kind| model.memory(*kind).take(PIECES_MAX)).collect();
    let mut sum = 0;
    for memory in &dump.memory {
        for (i, byte) in memory.bytes.iter().enumerate() {
            let at = memory.address + i as u64;
            let first =
                pieces.iter().find_map(|(address, piece)| piece.get(usize::try_from(at.checked_sub(*address)?).ok()?));
            assert_eq!(first, Some(byte), "at {at:#x}");
        }
        sum += memory.bytes.len();
    }
    for (address, piece) in pieces {
        for i in 0..piece.len() as u64 {
            let Some(at) = address.checked_add(i) else { break };
            assert!(!dump.read(at, 1).is_empty(), "the record has {at:#x}");
        }
    }
    assert!(sum <= model.sections.iter().map(|(_, body)| body.len()).sum());
}

/// The address behind a piece.
fn end(memory: &ascetic_tools::dump::Memory) -> u128 {
    u128::from(memory.address) + memory.bytes.len() as u128
}

/// What holds of every dump, and of what is written of it.
fn whole(dump: &Dump) {
    assert!(dump.memory.iter().all(|memory| !memory.bytes.is_empty() && end(memory) <= 1 << 64));
    assert!(dump.memory.windows(2).all(|two| end(&two[0]) <= u128::from(two[1].address)), "memory overlaps");
    read_minidump(dump);
    read_core(dump);
    let text = report::write(dump, &Symbols::default());
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text}");
    let json = json::report(dump).to_string();
    assert!(!json.contains(char::is_control), "{json}");
    // What is taken out is gone, and nothing else.
    if let [.., last] = &dump.memory[..] {
        let range = last.address..last.address.saturating_add(last.bytes.len() as u64 / 2);
        let (mut cut, total) = (dump.clone(), dump.memory.iter().map(|memory| memory.bytes.len()).sum::<usize>());
        cut.redact(&range);
        let left = cut.memory.iter().map(|memory| memory.bytes.len()).sum::<usize>();
        assert_eq!(left as u64, total as u64 - (range.end - range.start));
        assert!(range.is_empty() || cut.read(range.start, 1).is_empty());
        cut.cap(left / 2);
        assert!(cut.memory.iter().map(|memory| memory.bytes.len()).sum::<usize>() <= left / 2);
    }
}

/// A register's value as far as the architecture has room for it: a record may lie.
fn low(arch: Arch, value: Option<u64>) -> Option<u64> {
    value.map(|value| if arch == Arch::X86 { value & u64::from(u32::MAX) } else { value })
}

fn read_minidump(dump: &Dump) {
    let bytes = minidump::write(dump);
    let file = Minidump::read(bytes).expect("a minidump");
    let system = file.get_stream::<MinidumpSystemInfo>().expect("system");
    let threads = file.get_stream::<MinidumpThreadList>().expect("threads");
    assert_eq!(threads.threads.len(), dump.threads.len());
    for (is, was) in threads.threads.iter().zip(&dump.threads) {
        assert_eq!(is.raw.thread_id, was.id);
        let context = is.context(&system, None);
        assert_eq!(context.is_some(), was.registers.is_ok());
        if let (Some(context), Ok(registers)) = (context, &was.registers) {
            let is = [context.get_instruction_pointer(), context.get_stack_pointer()];
            assert_eq!(
                is.map(Some),
                [registers.pc(dump.arch), registers.sp(dump.arch)].map(|value| low(dump.arch, value))
            );
        }
    }
    if let Some(happened) = &dump.exception {
        let exception = file.get_stream::<MinidumpException>().expect("exception");
        assert_eq!(exception.get_crashing_thread_id(), happened.thread);
        let record = &exception.raw.exception_record;
        assert_eq!((record.exception_code as i32, record.exception_address), (happened.signal, happened.address));
        let of = dump.threads.iter().find(|thread| thread.id == happened.thread);
        let registers = of.and_then(|thread| thread.registers.as_ref().ok());
        let context = exception.context(&system, None);
        assert_eq!(
            context.map(|context| context.get_instruction_pointer()),
            registers.and_then(|registers| low(dump.arch, registers.pc(dump.arch)))
        );
    }
    file.get_stream::<MinidumpThreadNames>().expect("names");
    // The reader leaves out what ends where addresses do.
    if dump.memory.iter().all(|memory| memory.address.checked_add(memory.bytes.len() as u64).is_some()) {
        let list = file.get_stream::<MinidumpMemoryList<'_>>().expect("memory");
        for memory in &dump.memory {
            let there = list.memory_at_address(memory.address).expect("a piece of memory");
            assert_eq!((there.base_address, there.bytes), (memory.address, &memory.bytes[..]));
        }
    }
}

fn read_core(dump: &Dump) {
    // An i386 core has no place for more.
    let fits = dump.arch == Arch::X86_64 || dump.memory.iter().all(|memory| end(memory) <= 1 << 32);
    let Ok(bytes) = elf::write(dump) else { return };
    let again = core::read(&bytes[..], &Facts::default()).expect("a core");
    assert_eq!((again.arch, again.way), (dump.arch, Way::Core));
    let stopped: Vec<_> = dump.threads.iter().filter(|thread| thread.registers.is_ok()).collect();
    assert_eq!(again.threads.len(), stopped.len().min(512));
    for (is, was) in again.threads.iter().zip(&stopped) {
        let (Ok(registers), Ok(before)) = (&is.registers, &was.registers) else { panic!("it has registers") };
        let all = |of: &ascetic_tools::dump::Registers| {
            [of.pc(dump.arch), of.sp(dump.arch), of.fp(dump.arch)].map(|value| low(dump.arch, value))
        };
        assert_eq!((is.id, all(registers)), (was.id, all(before)));
    }
    if fits {
        for memory in &again.memory {
            assert_eq!(dump.read(memory.address, memory.bytes.len()), memory.bytes, "{:#x}", memory.address);
        }
    }
}

/// A core that is made of what an input says, so that what must be read of it is known.
struct Made {
    is_64: bool,
    /// Process id, signal, registers.
    threads: Vec<(u32, u8, Vec<u64>)>,
    /// Signal, code, address.
    info: Option<(i32, i32, u64)>,
    extended: u16,
    /// Addresses and lengths. Where they overlap, they say the same.
    segments: Vec<(u64, u16)>,
    /// Bytes that the file lacks at its end.
    cut: u16,
}

/// The byte at an address.
fn byte_at(address: u64) -> u8 {
    (address ^ address >> 8).wrapping_mul(31) as u8
}

impl Made {
    fn new(u: &mut Unstructured<'_>) -> Result<Self> {
        let is_64 = u.arbitrary()?;
        let top = if is_64 { u64::MAX } else { u32::MAX.into() };
        let mut segments = Vec::new();
        for _ in 0..u.int_in_range(0..=5)? {
            let near = *u.choose(&[0, 0x1000, 0x40_0000, 0x40_0100, top - 0x200])?;
            segments.push(((near + u64::from(u.arbitrary::<u8>()?)).min(top), u.arbitrary::<u16>()? % 1024));
        }
        let mut threads = Vec::new();
        for _ in 0..u.int_in_range(0..=3)? {
            let mut registers = Vec::new();
            for _ in 0..if is_64 { 27 } else { 17 } {
                registers.push(match u.arbitrary::<u8>()? % 4 {
                    0 => 0,
                    1 => u.arbitrary::<u64>()? & top,
                    _ if segments.is_empty() => 1,
                    _ => u.choose(&segments)?.0.wrapping_add_signed(u.arbitrary::<i16>()?.into()) & top,
                });
            }
            threads.push((u.arbitrary()?, u.int_in_range(0..=70)?, registers));
        }
        let info = if u.arbitrary()? {
            let signal = threads.first().map_or(11, |(_, signal, _)| i32::from(*signal));
            let address = u.arbitrary::<u64>()? & top;
            Some((if u.ratio(1, 4)? { u.arbitrary()? } else { signal }, u.arbitrary()?, address))
        } else {
            None
        };
        let cut = if u.ratio(1, 4)? { u.arbitrary::<u16>()? % 4096 } else { 0 };
        Ok(Self { is_64, threads, info, extended: u.arbitrary::<u16>()? % 1024, segments, cut })
    }

    fn word(&self, to: &mut Vec<u8>, value: u64) {
        to.extend(&value.to_le_bytes()[..if self.is_64 { 8 } else { 4 }]);
    }

    fn note(to: &mut Vec<u8>, kind: u32, desc: &[u8]) {
        [5, desc.len() as u32, kind].into_iter().for_each(|word| to.extend(word.to_le_bytes()));
        to.extend(b"CORE\0\0\0\0");
        to.extend(desc);
        to.resize(to.len().next_multiple_of(4), 0);
    }

    /// `NT_PRSTATUS`, `NT_SIGINFO` and extended state, as the kernel orders them.
    fn notes(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for (i, (pid, signal, registers)) in self.threads.iter().enumerate() {
            let mut status = Vec::new();
            [u32::from(*signal), 0, 0, u32::from(*signal)]
                .into_iter()
                .for_each(|word| status.extend(word.to_le_bytes()));
            (0..2).for_each(|_| self.word(&mut status, 0)); // pending and held
            [*pid, 0, 0, 0].into_iter().for_each(|word| status.extend(word.to_le_bytes()));
            (0..8).for_each(|_| self.word(&mut status, 0)); // times
            registers.iter().for_each(|value| self.word(&mut status, *value));
            self.word(&mut status, 0);
            Self::note(&mut all, 1, &status);
            if let (0, Some((signal, code, address))) = (i, self.info) {
                let mut info: Vec<u8> = [signal, 0, code].into_iter().flat_map(i32::to_le_bytes).collect();
                if self.is_64 {
                    info.extend([0; 4]);
                }
                self.word(&mut info, address);
                info.resize(128, 0);
                Self::note(&mut all, 0x5349_4749, &info);
            }
            Self::note(&mut all, 0x202, &vec![i as u8; self.extended.into()]);
        }
        all
    }

    fn bytes(&self) -> Vec<u8> {
        let (head, each) = if self.is_64 { (64, 56) } else { (52, 32) };
        let notes = self.notes();
        let count = self.segments.len() + 1;
        let mut at = head + count * each;
        let mut all = b"\x7fELF".to_vec();
        all.extend([if self.is_64 { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        all.extend([4, 0, if self.is_64 { 62 } else { 3 }, 0, 1, 0, 0, 0]);
        [0, head as u64, 0].into_iter().for_each(|value| self.word(&mut all, value));
        all.extend([0; 4]);
        [head, each, count, 0, 0, 0].into_iter().for_each(|value| all.extend((value as u16).to_le_bytes()));
        let loads = self.segments.iter().map(|(address, len)| (1u32, *address, usize::from(*len)));
        for (kind, address, len) in [(4, 0, notes.len())].into_iter().chain(loads) {
            all.extend(kind.to_le_bytes());
            if self.is_64 {
                all.extend(4u32.to_le_bytes());
            }
            [at as u64, address, 0, len as u64, len as u64].into_iter().for_each(|value| self.word(&mut all, value));
            if !self.is_64 {
                all.extend(4u32.to_le_bytes());
            }
            self.word(&mut all, 4);
            at += len;
        }
        all.extend(notes);
        for (address, len) in &self.segments {
            all.extend((0..u64::from(*len)).map(|i| byte_at(address.wrapping_add(i))));
        }
        all.truncate(all.len() - usize::from(self.cut).min(all.len() - head));
        all
    }

    fn overlaps(&self) -> bool {
        let mut sorted = self.segments.clone();
        sorted.sort_unstable();
        sorted.windows(2).any(|two| u128::from(two[0].0) + u128::from(two[0].1) > u128::from(two[1].0))
    }

    fn check(&self) {
        let bytes = self.bytes();
        file(&bytes);
        let dump = core::read(&bytes[..], &Facts::default()).expect("a core");
        for memory in &dump.memory {
            for (i, byte) in memory.bytes.iter().enumerate() {
                let at = memory.address + i as u64;
                assert_eq!(*byte, byte_at(at), "{at:#x}");
            }
        }
        // A kernel's core is whole, and has each address once; of others, not all is found.
        if self.cut > 0 || self.overlaps() {
            return;
        }
        let Some((pid, signal, _)) = self.threads.first() else { return assert!(dump.exception.is_none()) };
        let happened = dump.exception.as_ref().expect("what happened");
        assert_eq!((happened.thread, happened.signal), (*pid, i32::from(*signal)));
        let info = self.info.filter(|info| info.0 == i32::from(*signal) && info.1 != i32::MIN);
        assert_eq!(happened.code, info.map(|info| info.1));
        // Those of a signal that was sent are the sender's.
        let address = info.filter(|info| info.1 > 0).map_or(0, |info| info.2);
        assert!(happened.address == address || self.info.is_some_and(|info| info.1 == i32::MIN));
        assert_eq!(dump.threads.len(), self.threads.len());
        let (pc, sp) = if self.is_64 { (16, 19) } else { (12, 15) };
        let arch = if self.is_64 { Arch::X86_64 } else { Arch::X86 };
        for (i, (thread, (pid, _, values))) in dump.threads.iter().zip(&self.threads).enumerate() {
            let registers = thread.registers.as_ref().expect("registers");
            assert_eq!((thread.id, registers.pc(arch), registers.sp(arch)), (*pid, Some(values[pc]), Some(values[sp])));
            assert_eq!(registers.extended, vec![i as u8; self.extended.into()]);
            // Code around the program counter is there, and stack from the stack pointer on, as far as the core has it.
            let stack = if i == 0 { STACK_MAX as u64 } else { 1024 };
            for (from, len) in [(values[pc].saturating_sub(AROUND), 2 * AROUND), (values[sp], stack.min(1024))] {
                for at in (0..len).map_while(|i| from.checked_add(i)) {
                    let has = |(address, len): &(u64, u16)| {
                        at.checked_sub(*address).is_some_and(|i| i < u64::from(*len))
                            && address.checked_add(u64::from(*len)).is_some()
                    };
                    assert!(!self.segments.iter().any(has) || !dump.read(at, 1).is_empty(), "{at:#x} is not there");
                }
            }
        }
    }
}
