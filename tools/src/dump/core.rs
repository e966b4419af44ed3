//! Cores: what the kernel wrote, as a [`Dump`].
//!
//! A core's memory is the guest's, and its notes are the kernel's; but whoever hands in a core may have made it up, so nothing
//! in it is trusted to be in bounds.

use std::path::Path;

use ascetic::fault::classify::{self, Class};
use ascetic::fault::record::{Arch, CODE_AROUND, NEAR, STACK_MAX, THREAD_STACK_MAX, THREADS_STACK_MAX};
use object::elf::{
    EM_386, EM_X86_64, ET_CORE, FileHeader32, FileHeader64, NT_AUXV, NT_FILE, NT_PRFPREG, NT_PRSTATUS, NT_PRXFPREG,
    NT_SIGINFO, NT_X86_XSTATE, PT_LOAD, PT_NOTE,
};
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader};
use object::{Endianness, FileKind, ReadCache, ReadRef};

use super::elf::NO_CODE;
use super::notes::{self, SigInfo};
use super::{Deadline, Dump, Exception, Facts, MapsEntry, Origin, Registers, Role, Thread, Way, clean};

/// Bytes of notes, at most.
const NOTES_MAX: u64 = 16 << 20;
/// Threads, at most.
const THREADS_MAX: usize = 512;
/// Mapped files, at most.
const FILES_MAX: usize = 4096;
/// Segments, at most.
const SEGMENTS_MAX: usize = 65_536;
/// Bytes of extended state, at most.
const EXTENDED_MAX: usize = 64 << 10;
/// Bytes below the stack pointer that belong to a function (System V ABI, x86_64).
const RED_ZONE: u64 = 128;
/// `SIGSYS`
const SIGSYS: i32 = 31;

/// What is wrong with a core.
#[derive(Debug, thiserror::Error)]
pub enum NoCore {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It is none.
    #[error("this is no ELF core of x86")]
    None,
}

/// Reads a core, and adds what the supervisor knows.
///
/// # Errors
/// It cannot be read, or is none.
pub fn read_file(path: &Path, facts: &Facts) -> Result<Dump, NoCore> {
    read_file_within(path, facts, &Deadline::never())
}

/// [`read_file`], up to a deadline.
///
/// # Errors
/// It cannot be read, or is none.
pub fn read_file_within(path: &Path, facts: &Facts, deadline: &Deadline) -> Result<Dump, NoCore> {
    let cache = ReadCache::new(super::open(path)?);
    read_within(&cache, facts, deadline).ok_or(NoCore::None)
}

/// Reads a core; `None` if it is none.
pub fn read<'a, R: ReadRef<'a>>(data: R, facts: &Facts) -> Option<Dump> {
    read_within(data, facts, &Deadline::never())
}

/// [`read`], up to a deadline: signal and registers of the first thread are there in any case, memory as far as time allowed.
pub fn read_within<'a, R: ReadRef<'a>>(data: R, facts: &Facts, deadline: &Deadline) -> Option<Dump> {
    match FileKind::parse(data).ok()? {
        FileKind::Elf32 => of::<FileHeader32<Endianness>, R>(data, facts, deadline),
        FileKind::Elf64 => of::<FileHeader64<Endianness>, R>(data, facts, deadline),
        _ => None,
    }
}

/// A range of memory, and where its bytes are in the file.
struct Segment {
    address: u64,
    offset: u64,
    len: u64,
}

fn of<'a, H: FileHeader<Endian = Endianness>, R: ReadRef<'a>>(
    data: R,
    facts: &Facts,
    deadline: &Deadline,
) -> Option<Dump> {
    let header = H::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let arch = match (header.e_machine(endian), header.is_type_64()) {
        (EM_X86_64, true) => Arch::X86_64,
        (EM_386, false) => Arch::X86,
        _ => return None,
    };
    if header.e_type(endian) != ET_CORE {
        return None;
    }
    let mut dump = Dump::new(arch, Way::Core);
    let mut found = Found::default();
    let (mut segments, mut notes_left) = (Vec::new(), NOTES_MAX);
    let headers = header.program_headers(endian, data).unwrap_or_default();
    if headers.is_empty() {
        dump.missing.push("the core has no program headers".to_owned());
    }
    for one in headers.iter().take(SEGMENTS_MAX) {
        let (offset, len) = one.file_range(endian);
        if one.p_type(endian) == PT_LOAD && len > 0 {
            segments.push(Segment { address: one.p_vaddr(endian).into(), offset, len });
        }
        if one.p_type(endian) != PT_NOTE {
            continue;
        }
        // Notes that are cut short are read as far as they go.
        let have = data.len().unwrap_or(0).saturating_sub(offset).min(len).min(notes_left);
        notes_left -= have;
        if have < len {
            dump.missing.push("the core's notes are cut short".to_owned());
        }
        let bytes = data.read_bytes_at(offset, have).unwrap_or_else(|()| {
            dump.missing.push("the core's notes cannot be read".to_owned());
            &[]
        });
        if let Ok(notes) = NoteIterator::<H>::new(endian, one.p_align(endian), bytes) {
            self::notes(arch, endian, notes, &mut found, deadline);
        }
    }
    segments.sort_by_key(|segment| segment.address);
    fill(&mut dump, found, facts);
    memory(&mut dump, data, &segments, deadline);
    dump.missing.extend(deadline.kept().err().map(|exceeded| exceeded.to_string()));
    Some(dump)
}

/// What the notes say.
#[derive(Default)]
struct Found {
    threads: Vec<(u32, i32, Registers)>,
    info: Option<SigInfo>,
    auxv: Vec<u8>,
    maps: Vec<MapsEntry>,
}

fn notes<H: FileHeader<Endian = Endianness>>(
    arch: Arch,
    endian: Endianness,
    mut notes: NoteIterator<'_, H>,
    to: &mut Found,
    deadline: &Deadline,
) {
    while let Ok(Some(note)) = notes.next() {
        // There are no more than fit in `NOTES_MAX`: what happened is looked for among all of them.
        if !to.threads.is_empty() && to.info.is_some() && deadline.passed("reading the core's notes") {
            break;
        }
        let desc = note.desc();
        match note.n_type(endian) {
            NT_PRSTATUS if to.threads.len() < THREADS_MAX => {
                let Some(status) = notes::read_status(arch, desc) else { continue };
                let general = notes::general(arch, &status.registers);
                to.threads.push((status.pid, status.signal, Registers { general, extended: Vec::new() }));
            }
            // XSAVE begins with FXSAVE, and comes behind it; on i386, FSAVE comes before.
            NT_X86_XSTATE | NT_PRXFPREG | NT_PRFPREG => {
                if note.n_type(endian) == NT_PRFPREG && arch == Arch::X86 {
                    continue;
                }
                let last = to.threads.last_mut().filter(|(_, _, registers)| desc.len() > registers.extended.len());
                if let Some((_, _, registers)) = last {
                    registers.extended = desc.iter().copied().take(EXTENDED_MAX).collect();
                }
            }
            NT_SIGINFO => to.info = to.info.take().or(notes::read_siginfo(arch, desc)),
            NT_AUXV => to.auxv = desc.iter().copied().take(4096).collect(),
            NT_FILE => to.maps = files(arch, desc),
            _ => {}
        }
    }
}

/// `NT_FILE` (`fs/binfmt_elf.c`, `fill_files_note`): how many, the page size, from, to and offset in pages of each, the names.
fn files(arch: Arch, desc: &[u8]) -> Vec<MapsEntry> {
    let size = if arch == Arch::X86_64 { 8 } else { 4 };
    let word = |i: usize| {
        let bytes = desc.get(i.checked_mul(size)?..)?.get(..size)?;
        Some(bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
    };
    let count = word(0).and_then(|count| usize::try_from(count).ok()).unwrap_or(0).min(FILES_MAX);
    let page = word(1).unwrap_or(0);
    let names = desc.get((2 + 3 * count) * size..).unwrap_or_default().split(|byte| *byte == 0);
    let one = |(i, name): (usize, &[u8])| {
        let (start, end, offset) = (word(2 + 3 * i)?, word(3 + 3 * i)?, word(4 + 3 * i)?);
        (end >= start).then(|| MapsEntry {
            start,
            end,
            permissions: *b"????",
            offset: offset.saturating_mul(page),
            file: (String::new(), 0),
            name: clean(&String::from_utf8_lossy(name)),
        })
    };
    (0..count).zip(names).filter_map(one).collect()
}

fn fill(dump: &mut Dump, found: Found, facts: &Facts) {
    dump.add_facts(facts);
    if dump.auxv.is_empty() {
        dump.auxv = found.auxv;
    }
    if dump.maps.is_empty() {
        dump.maps = found.maps;
    }
    let arch = dump.arch;
    if let Some((pid, signal, registers)) = found.threads.first() {
        let info = found.info.filter(|info| info.signal == *signal);
        if info.is_none() {
            dump.missing.push("the core has no siginfo of its signal".to_owned());
        }
        if dump.process == 0 {
            dump.process = *pid;
        }
        let denied = info.as_ref().filter(|info| info.signal == SIGSYS && info.code > 0);
        let denied = denied.map(|info| (u64::from(info.call as u32), call_args(arch, registers)));
        let (code, address) = info.map_or((None, 0), |info| {
            let code = (info.code != NO_CODE).then_some(info.code);
            (code, if code.is_none_or(|code| code > 0) { info.address } else { 0 })
        });
        dump.exception = Some(Exception {
            thread: *pid,
            signal: *signal,
            code,
            address,
            pc: registers.pc(arch).unwrap_or(0),
            class: Class::Other,
            denied,
            origin: Origin::Kernel,
        });
    } else {
        dump.missing.push("the core has no thread".to_owned());
    }
    for (id, _, registers) in found.threads {
        let known = facts.tasks.iter().find(|task| task.id == id);
        dump.threads.push(Thread {
            id,
            name: known.map(|task| clean(&task.name)).unwrap_or_default(),
            role: known.map_or(Role::Guest, |task| task.role),
            registers: Ok(registers),
            origin: Origin::Kernel,
        });
    }
    dump.add_tasks(facts, "the kernel dumps the task that crashed, and no other of its sandbox");
}

/// The arguments of a system call, as the registers have them.
pub(super) fn call_args(arch: Arch, registers: &Registers) -> [u64; 6] {
    let names = match arch {
        Arch::X86_64 => ["rdi", "rsi", "rdx", "r10", "r8", "r9"],
        Arch::X86 => ["ebx", "ecx", "edx", "esi", "edi", "ebp"],
    };
    names.map(|name| registers.get(arch, name).unwrap_or(0))
}

/// Takes the memory that tells of the crash: what is near program counters and stack pointers.
fn memory<'a, R: ReadRef<'a>>(dump: &mut Dump, data: R, segments: &[Segment], deadline: &Deadline) {
    let others = dump.threads.len().saturating_sub(1).max(1);
    let wanted: Vec<_> = dump
        .threads
        .iter()
        .enumerate()
        .filter_map(|(i, thread)| {
            let registers = thread.registers.as_ref().ok()?;
            let len = if i == 0 { STACK_MAX } else { THREAD_STACK_MAX.min(THREADS_STACK_MAX / others) };
            Some(([registers.pc(dump.arch)?, registers.sp(dump.arch)?, registers.fp(dump.arch)?], len as u64))
        })
        .collect();
    for ([pc, sp, fp], len) in wanted {
        copy(dump, data, segments, pc.saturating_sub(CODE_AROUND as u64), 2 * CODE_AROUND as u64, deadline);
        copy(dump, data, segments, sp.saturating_sub(RED_ZONE), len, deadline);
        if dump.read(sp, 1).is_empty() {
            copy(dump, data, segments, fp, len, deadline); // the stack pointer leads nowhere
        }
    }
    for at in dump.pointers() {
        copy(dump, data, segments, at.saturating_sub(NEAR[0] as u64), (NEAR[0] + NEAR[1]) as u64, deadline);
    }
    if let Some(exception) = dump.exception.clone() {
        let class = classified(dump, &exception);
        dump.exception = Some(Exception { class, ..exception });
    }
}

/// What kind of fault it was, as far as signal and memory tell, without the processor's exception and its error code.
pub(super) fn classified(dump: &Dump, exception: &Exception) -> Class {
    let insn = dump.read(exception.pc, 2);
    let sp = dump.threads.first().and_then(|thread| thread.registers.as_ref().ok()?.sp(dump.arch)).unwrap_or(0);
    let class = classify::classify(&classify::Facts {
        sig: exception.signal,
        code: exception.code,
        sent: exception.code.is_some_and(|code| code <= 0),
        // By signal and code (`arch/x86/kernel/traps.c`).
        trap: match (exception.signal, exception.code) {
            (11, Some(1 | 2)) => (14, if exception.address == exception.pc { PF_FETCH } else { 0 }),
            (11, _) => (13, 0),
            (8, Some(1)) => (0, 0),
            (5, Some(2)) => (1, 0),
            _ => (u32::MAX, 0),
        },
        addr: exception.address,
        pc: exception.pc,
        sp,
        stack: (0, 0),
        vault: (0, 0),
        readable: !dump.read(exception.address, 1).is_empty(),
        sp_readable: !dump.read(sp, 1).is_empty(),
        non_canonical: false,
        insn: [insn.first().copied().unwrap_or(0), insn.get(1).copied().unwrap_or(0)],
    });
    match class {
        // A read or a write: nothing tells.
        Class::ReadUnmapped | Class::WriteUnmapped | Class::WriteReadOnly | Class::Guard => Class::Other,
        class => class,
    }
}

/// That the fault was an instruction fetch (`arch/x86/include/asm/trap_pf.h`, `X86_PF_INSTR`).
const PF_FETCH: u32 = 16;

/// Copies memory as far as the core has it.
fn copy<'a, R: ReadRef<'a>>(dump: &mut Dump, data: R, segments: &[Segment], from: u64, len: u64, deadline: &Deadline) {
    let to = from.saturating_add(len);
    let first = segments.partition_point(|segment| segment.address.saturating_add(segment.len) <= from);
    for segment in segments.iter().skip(first).take_while(|segment| segment.address < to) {
        if deadline.passed("reading the core's memory") {
            return;
        }
        let (a, b) = (segment.address.max(from), segment.address.saturating_add(segment.len).min(to));
        let Some(len) = b.checked_sub(a).filter(|len| *len > 0) else { continue };
        let offset = segment.offset.saturating_add(a - segment.address);
        let have = data.len().unwrap_or(0).saturating_sub(offset).min(len);
        match data.read_bytes_at(offset, have) {
            Ok(bytes) if have == len => dump.add_memory(a, bytes),
            Ok(bytes) => {
                dump.add_memory(a, bytes);
                dump.missing.push(format!("memory at {:#x}: the core is cut short", a.saturating_add(have)));
            }
            Err(()) => dump.missing.push(format!("memory at {a:#x}: the core cannot be read there")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::samples;

    #[test]
    fn of_both_architectures() {
        for (arch, bytes) in samples::cores() {
            let dump = read(bytes, &Facts::default()).unwrap();
            let happened = dump.exception.as_ref().unwrap();
            let told = (happened.signal, happened.code, happened.address, happened.class, happened.origin);
            assert_eq!(told, (11, Some(1), 0x10, Class::NullPointer, Origin::Kernel));
            let registers = dump.threads[0].registers.as_ref().unwrap();
            let (name, value) =
                if arch == Arch::X86_64 { ("r15", 0x1122_3344_5566_7788) } else { ("esi", 0x1122_3344) };
            assert_eq!((registers.get(arch, name), registers.pc(arch)), (Some(value), Some(happened.pc)));
            // The register xmm5.
            assert_eq!(registers.extended[160 + 5 * 16..][..8], u64::to_le_bytes(value));
            assert!(dump.read(registers.sp(arch).unwrap(), 64).len() == 64 && dump.read(happened.pc, 2).len() == 2);
            // `_start` calls `middle`, which calls `inner`.
            assert!(dump.walk(registers).len() >= 3);
            assert_eq!(&dump.missing[..], &[""; 0]);
        }
    }
}
