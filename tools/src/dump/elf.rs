//! A [`Dump`] as an ELF core, which debuggers know.

use ascetic::fault::record::Arch;
use object::Endianness;
use object::elf::{
    ELFOSABI_NONE, EM_386, EM_X86_64, ET_CORE, NT_AUXV, NT_FILE, NT_PRFPREG, NT_PRSTATUS, NT_PRXFPREG, NT_SIGINFO,
    NT_X86_XSTATE, PF_R, PT_LOAD, PT_NOTE,
};
use object::write::elf::{FileHeader, ProgramHeader, Writer};

use super::notes::{self, SigInfo, Status};
use super::{Dump, Registers};

/// What FXSAVE takes, in bytes.
const FXSAVE: usize = 512;
/// `si_code` where nobody knows it.
pub(super) const NO_CODE: i32 = i32::MIN;
/// The page size in which `NT_FILE` counts.
const PAGE: u64 = 4096;

/// The core could not be put together.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the core: {0}")]
pub struct NotWritten(#[from] object::write::Error);

/// The core, as bytes: threads with registers, the crashed one first; files; memory. What a core has no place for is left out.
///
/// # Errors
/// It is larger than the format allows.
pub fn write(dump: &Dump) -> Result<Vec<u8>, NotWritten> {
    let notes = notes(dump);
    let mut bytes = Vec::new();
    let is_64 = dump.arch == Arch::X86_64;
    let mut writer = Writer::new(Endianness::Little, is_64, &mut bytes);
    writer.reserve_file_header();
    writer.reserve_program_headers(dump.memory.len() as u32 + 1);
    let notes_at = writer.reserve(notes.len(), 4);
    let places: Vec<usize> = dump.memory.iter().map(|memory| writer.reserve(memory.bytes.len(), 8)).collect();
    writer.write_file_header(&FileHeader {
        os_abi: ELFOSABI_NONE,
        abi_version: 0,
        e_type: ET_CORE,
        e_machine: if is_64 { EM_X86_64 } else { EM_386 },
        e_entry: 0,
        e_flags: 0,
    })?;
    writer.write_align_program_headers();
    let header = |p_type, p_flags, at: usize, p_vaddr, len: usize| ProgramHeader {
        p_type,
        p_flags,
        p_offset: at as u64,
        p_vaddr,
        p_paddr: 0,
        p_filesz: len as u64,
        p_memsz: if p_type == PT_LOAD { len as u64 } else { 0 },
        p_align: if p_type == PT_LOAD { 1 } else { 4 },
    };
    writer.write_program_header(&header(PT_NOTE, 0, notes_at, 0, notes.len()));
    for (memory, at) in dump.memory.iter().zip(&places) {
        writer.write_program_header(&header(PT_LOAD, PF_R, *at, memory.address, memory.bytes.len()));
    }
    writer.write_align(4);
    writer.write(&notes);
    for memory in &dump.memory {
        writer.write_align(8);
        writer.write(&memory.bytes);
    }
    Ok(bytes)
}

fn notes(dump: &Dump) -> Vec<u8> {
    let mut all = Vec::new();
    let signal = dump.exception.as_ref().map_or(0, |exception| exception.signal);
    let stopped = dump.threads.iter().filter_map(|thread| Some((thread.id, thread.registers.as_ref().ok()?)));
    for (i, (pid, registers)) in stopped.enumerate() {
        let registers_in_order = in_order(dump.arch, registers);
        let signal = if i == 0 { signal } else { 0 };
        let status = Status { pid, signal, registers: registers_in_order };
        note(&mut all, "CORE", NT_PRSTATUS, &notes::write_status(dump.arch, &status));
        if i == 0 {
            if let Some(e) = &dump.exception {
                let call = e.denied.map_or(0, |(nr, _)| nr as i32);
                let info = SigInfo { signal: e.signal, code: e.code.unwrap_or(NO_CODE), address: e.address, call };
                note(&mut all, "CORE", NT_SIGINFO, &notes::write_siginfo(dump.arch, &info));
            }
            note(&mut all, "CORE", NT_AUXV, &dump.auxv);
            note(&mut all, "CORE", NT_FILE, &files(dump));
        }
        let extended = &registers.extended;
        if let Some(fxsave) = extended.get(..FXSAVE) {
            match dump.arch {
                Arch::X86_64 => note(&mut all, "CORE", NT_PRFPREG, fxsave),
                Arch::X86 => note(&mut all, "LINUX", NT_PRXFPREG, fxsave),
            }
            if extended.len() > FXSAVE {
                note(&mut all, "LINUX", NT_X86_XSTATE, extended);
            }
        }
    }
    all
}

/// Registers in the kernel's order, of those in a record's.
fn in_order(arch: Arch, registers: &Registers) -> Vec<u64> {
    let get = |name: &&str| registers.get(arch, name).unwrap_or(if *name == notes::ORIG { u64::MAX } else { 0 });
    notes::order(arch).iter().map(get).collect()
}

fn note(all: &mut Vec<u8>, name: &str, kind: u32, desc: &[u8]) {
    if desc.is_empty() {
        return;
    }
    for word in [name.len() as u32 + 1, desc.len() as u32, kind] {
        all.extend(word.to_le_bytes());
    }
    for part in [name.as_bytes(), &[0]].concat().chunks(4).chain(desc.chunks(4)) {
        all.extend(part);
        all.extend(&[0; 4][part.len()..]);
    }
}

/// `NT_FILE` (`fs/binfmt_elf.c`, `fill_files_note`).
fn files(dump: &Dump) -> Vec<u8> {
    let files: Vec<_> = dump.maps.iter().filter(|entry| entry.name.starts_with('/')).collect();
    let mut bytes = Vec::new();
    if files.is_empty() {
        return bytes;
    }
    let word = |bytes: &mut Vec<u8>, value: u64| match dump.arch {
        Arch::X86_64 => bytes.extend(value.to_le_bytes()),
        Arch::X86 => bytes.extend((value as u32).to_le_bytes()),
    };
    word(&mut bytes, files.len() as u64);
    word(&mut bytes, PAGE);
    for file in &files {
        [file.start, file.end, file.offset / PAGE].into_iter().for_each(|value| word(&mut bytes, value));
    }
    for file in &files {
        bytes.extend(file.name.as_bytes());
        bytes.push(0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::{Facts, core, record, samples};

    #[test]
    fn what_is_written_is_read() {
        let records = samples::records().map(|(_, bytes)| record::read(bytes, &Facts::default()).unwrap());
        let cores = samples::cores().map(|(_, bytes)| core::read(bytes, &Facts::default()).unwrap());
        for dump in records.into_iter().chain(cores) {
            let bytes = write(&dump).unwrap();
            let again = core::read(&*bytes, &Facts::default()).unwrap();
            assert_eq!(again.auxv, dump.auxv);
            let (is, was) = (again.exception.as_ref().unwrap(), dump.exception.as_ref().unwrap());
            let told = (is.signal, is.address, is.pc, is.thread);
            assert_eq!(told, (was.signal, was.address, was.pc, was.thread));
            let (is, was) = (again.threads[0].registers.clone().unwrap(), dump.threads[0].registers.clone().unwrap());
            for (i, name) in dump.arch.registers().iter().enumerate() {
                let kept = notes::order(dump.arch).contains(name);
                assert_eq!(is.general[i], if kept { was.general[i] } else { 0 }, "{name}");
            }
            assert_eq!(is.extended, was.extended);
            for piece in &dump.memory {
                assert_eq!(again.read(piece.address, piece.bytes.len()), piece.bytes, "{:#x}", piece.address);
            }
        }
    }
}
