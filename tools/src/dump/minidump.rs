//! A [`Dump`] as a minidump, which Breakpad's, rust-minidump's and LLDB's readers know.
//!
//! Everything that tells of the crash is first and memory last, so that a file that is cut short still says what happened. The
//! layouts are those of the crate `minidump-common`.

use ascetic::fault::record::Arch;
use minidump_common::format::{
    CONTEXT_AMD64, CONTEXT_X86, CPU_INFORMATION, ContextFlagsCpu, MINIDUMP_DIRECTORY, MINIDUMP_EXCEPTION,
    MINIDUMP_EXCEPTION_STREAM, MINIDUMP_HEADER, MINIDUMP_LOCATION_DESCRIPTOR, MINIDUMP_MEMORY_DESCRIPTOR,
    MINIDUMP_MODULE, MINIDUMP_SIGNATURE, MINIDUMP_STREAM_TYPE as Stream, MINIDUMP_SYSTEM_INFO, MINIDUMP_THREAD,
    MINIDUMP_THREAD_NAME, MINIDUMP_VERSION, PlatformId, ProcessorArchitecture,
};
use scroll::ctx::{SizeWith, TryIntoCtx};
use scroll::{Endian, Pwrite};

use super::{Dump, Exception, Registers, Role, Thread, json};

/// A stream of this crate's own: the [JSON report](json::report), UTF-8. It has what a minidump has no place for.
pub const JSON_STREAM: u32 = 0x4153_4301;
/// A stream of this crate's own: for each thread with extended state, its id (4 bytes), the length (4 bytes), and the state as
/// the kernel saved it: FXSAVE, then XSAVE's header and components.
pub const EXTENDED_STREAM: u32 = 0x4153_4302;

/// `CV_INFO_ELF`'s signature: the build id follows.
const CV_ELF: u32 = 0x4270_454c;
/// What FXSAVE takes, in bytes.
const FXSAVE: usize = 512;

type Location = MINIDUMP_LOCATION_DESCRIPTOR;

/// The file so far.
struct Out(Vec<u8>);

impl Out {
    /// Appends bytes, at a multiple of 8.
    fn bytes(&mut self, bytes: &[u8]) -> Location {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        let rva = self.0.len() as u32;
        self.0.extend(bytes);
        Location { data_size: bytes.len() as u32, rva }
    }

    /// Appends a structure.
    fn put<T>(&mut self, value: T) -> Location
    where
        T: TryIntoCtx<Endian, Error = scroll::Error> + SizeWith<Endian>,
    {
        let bytes = encode(value);
        self.bytes(&bytes)
    }

    /// Appends a list: how many, then each. As all lists of a minidump are.
    fn list<T>(&mut self, all: Vec<T>) -> Location
    where
        T: TryIntoCtx<Endian, Error = scroll::Error> + SizeWith<Endian>,
    {
        let mut bytes = (all.len() as u32).to_le_bytes().to_vec();
        all.into_iter().for_each(|one| bytes.extend(encode(one)));
        self.bytes(&bytes)
    }

    /// Replaces what was appended before.
    fn replace(&mut self, at: Location, by: &Self) {
        let from = at.rva as usize;
        self.0[from..from + at.data_size as usize].copy_from_slice(&by.0[by.0.len() - at.data_size as usize..]);
    }

    /// A string: its length in bytes, then UTF-16.
    fn string(&mut self, text: &str) -> Location {
        let words: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let mut bytes = (words.len() as u32).to_le_bytes().to_vec();
        bytes.extend(words);
        bytes.extend([0, 0]);
        self.bytes(&bytes)
    }
}

fn encode<T>(value: T) -> Vec<u8>
where
    T: TryIntoCtx<Endian, Error = scroll::Error> + SizeWith<Endian>,
{
    let mut bytes = vec![0; T::size_with(&Endian::Little)];
    let written = bytes.pwrite_with(value, 0, Endian::Little);
    debug_assert!(written.is_ok());
    bytes
}

/// The minidump, as bytes.
pub fn write(dump: &Dump) -> Vec<u8> {
    let mut out = Out(Vec::new());
    let streams = 12;
    let header = MINIDUMP_HEADER {
        signature: MINIDUMP_SIGNATURE,
        version: MINIDUMP_VERSION,
        stream_count: streams,
        stream_directory_rva: MINIDUMP_HEADER::size_with(&Endian::Little) as u32,
        checksum: 0,
        time_date_stamp: u32::try_from(dump.time).unwrap_or(0),
        flags: 0,
    };
    out.put(header);
    let mut all = Vec::new();
    let directory = out.bytes(&vec![0; streams as usize * MINIDUMP_DIRECTORY::size_with(&Endian::Little)]);
    all.push((Stream::SystemInfoStream as u32, system(dump, &mut out)));
    let contexts: Vec<Location> = dump.threads.iter().map(|thread| context(dump.arch, thread, &mut out)).collect();
    if let Some(exception) = &dump.exception {
        let at = dump.threads.iter().position(|thread| thread.id == exception.thread);
        let context = at.and_then(|i| contexts.get(i)).copied().unwrap_or_default();
        all.push((Stream::ExceptionStream as u32, out.put(self::exception(exception, context))));
    }
    let nowhere = vec![Location::default(); dump.memory.len()];
    let threads = out.list(self::threads(dump, &contexts, &nowhere));
    all.push((Stream::ThreadListStream as u32, threads));
    all.push((Stream::ModuleListStream as u32, modules(dump, &mut out)));
    let memory = out.list(self::memory(dump, &nowhere));
    all.push((Stream::MemoryListStream as u32, memory));
    all.push((Stream::ThreadNamesStream as u32, names(dump, &mut out)));
    let maps: String = dump.maps.iter().map(|entry| format!("{entry}\n")).collect();
    all.push((Stream::LinuxMaps as u32, out.bytes(maps.as_bytes())));
    all.push((Stream::LinuxCmdLine as u32, out.bytes(&dump.command_line)));
    all.push((Stream::LinuxAuxv as u32, out.bytes(&dump.auxv)));
    let status = format!("Pid:\t{}\nTgid:\t{}\n", dump.process, dump.process);
    all.push((Stream::LinuxProcStatus as u32, out.bytes(status.as_bytes())));
    all.push((JSON_STREAM, out.bytes(json::report(dump).to_string().as_bytes())));
    all.push((EXTENDED_STREAM, out.bytes(&extended(dump))));
    let places: Vec<Location> = dump.memory.iter().map(|memory| out.bytes(&memory.bytes)).collect();

    let mut again = Out(Vec::new());
    again.list(self::threads(dump, &contexts, &places));
    out.replace(threads, &again);
    again.list(self::memory(dump, &places));
    out.replace(memory, &again);
    let entries = all.into_iter().map(|(stream_type, location)| encode(MINIDUMP_DIRECTORY { stream_type, location }));
    let mut entries: Vec<u8> = entries.flatten().collect();
    entries.resize(directory.data_size as usize, 0); // of type 0: unused
    out.replace(directory, &Out(entries));
    out.0
}

fn system(dump: &Dump, out: &mut Out) -> Location {
    let csd = out.string("");
    let architecture = match dump.arch {
        Arch::X86 => ProcessorArchitecture::PROCESSOR_ARCHITECTURE_INTEL,
        Arch::X86_64 => ProcessorArchitecture::PROCESSOR_ARCHITECTURE_AMD64,
    };
    out.put(MINIDUMP_SYSTEM_INFO {
        processor_architecture: architecture as u16,
        processor_level: 0,
        processor_revision: 0,
        number_of_processors: 0,
        product_type: 0,
        major_version: 0,
        minor_version: 0,
        build_number: 0,
        platform_id: PlatformId::Linux as u32,
        csd_version_rva: csd.rva,
        suite_mask: 0,
        reserved2: 0,
        cpu: CPU_INFORMATION { data: [0; 24] },
    })
}

fn exception(exception: &Exception, thread_context: Location) -> MINIDUMP_EXCEPTION_STREAM {
    let mut information = [0; 15];
    if let Some((nr, args)) = exception.denied {
        information[0] = nr;
        information[1..7].copy_from_slice(&args);
    }
    MINIDUMP_EXCEPTION_STREAM {
        thread_id: exception.thread,
        __align: 0,
        exception_record: MINIDUMP_EXCEPTION {
            exception_code: exception.signal as u32,
            exception_flags: exception.code.unwrap_or(super::elf::NO_CODE) as u32,
            exception_record: 0,
            exception_address: exception.address,
            number_parameters: if exception.denied.is_some() { 7 } else { 0 },
            __align: 0,
            exception_information: information,
        },
        thread_context,
    }
}

fn threads(dump: &Dump, contexts: &[Location], memory: &[Location]) -> Vec<MINIDUMP_THREAD> {
    let of = |(thread, context): (&Thread, &Location)| {
        let sp = thread.registers.as_ref().ok().and_then(|registers| registers.sp(dump.arch));
        let stack = sp.and_then(|sp| {
            let i = dump
                .memory
                .iter()
                .position(|m| (m.address..m.address.saturating_add(m.bytes.len() as u64)).contains(&sp))?;
            Some(MINIDUMP_MEMORY_DESCRIPTOR { start_of_memory_range: dump.memory[i].address, memory: *memory.get(i)? })
        });
        MINIDUMP_THREAD {
            thread_id: thread.id,
            suspend_count: 0,
            priority_class: 0,
            priority: 0,
            teb: 0,
            stack: stack.unwrap_or_default(),
            thread_context: *context,
        }
    };
    dump.threads.iter().zip(contexts).map(of).collect()
}

fn names(dump: &Dump, out: &mut Out) -> Location {
    let of = |thread: &Thread| {
        let name = match (thread.role, &thread.registers) {
            (Role::Trusted, _) => format!("{} (trusted thread)", thread.name),
            (Role::Guest, Err(_)) => format!("{} (not stopped)", thread.name),
            (Role::Guest, Ok(_)) => thread.name.clone(),
        };
        let thread_name_rva = u64::from(out.string(name.trim_start()).rva);
        MINIDUMP_THREAD_NAME { thread_id: thread.id, thread_name_rva }
    };
    let all = dump.threads.iter().map(of).collect();
    out.list(all)
}

fn modules(dump: &Dump, out: &mut Out) -> Location {
    let mut all = Vec::new();
    for module in &dump.modules {
        let mut record = CV_ELF.to_le_bytes().to_vec();
        record.extend(&module.build_id);
        let cv_record = if module.build_id.is_empty() { Location::default() } else { out.bytes(&record) };
        all.push(MINIDUMP_MODULE {
            base_of_image: module.base,
            size_of_image: u32::try_from(module.size).unwrap_or(u32::MAX),
            module_name_rva: out.string(&module.path).rva,
            cv_record,
            ..MINIDUMP_MODULE::default()
        });
    }
    out.list(all)
}

fn memory(dump: &Dump, places: &[Location]) -> Vec<MINIDUMP_MEMORY_DESCRIPTOR> {
    let all = dump.memory.iter().zip(places);
    all.map(|(of, memory)| MINIDUMP_MEMORY_DESCRIPTOR { start_of_memory_range: of.address, memory: *memory }).collect()
}

fn extended(dump: &Dump) -> Vec<u8> {
    let mut all = Vec::new();
    for thread in &dump.threads {
        let Ok(registers) = &thread.registers else { continue };
        if !registers.extended.is_empty() {
            all.extend(thread.id.to_le_bytes());
            all.extend((registers.extended.len() as u32).to_le_bytes());
            all.extend(&registers.extended);
        }
    }
    all
}

/// The registers of a thread; nowhere if it has none.
fn context(arch: Arch, thread: &Thread, out: &mut Out) -> Location {
    let Ok(registers) = &thread.registers else { return Location::default() };
    match arch {
        Arch::X86_64 => out.put(amd64(registers)),
        Arch::X86 => out.put(x86(registers)),
    }
}

/// The FXSAVE part of the extended state, with zeros for what there is not.
fn fxsave(registers: &Registers) -> [u8; FXSAVE] {
    let mut area = [0; FXSAVE];
    area.iter_mut().zip(&registers.extended).for_each(|(to, from)| *to = *from);
    area
}

/// The words at the beginning of FXSAVE (Intel's manual, volume 1, table 10-2).
#[derive(scroll::Pread)]
struct Fxsave {
    control: u16,
    status: u16,
    tag: u8,
    _reserved: u8,
    _opcode: u16,
    error_offset: u32,
    error_selector: u32,
    data_offset: u32,
    data_selector: u32,
    mx_csr: u32,
    _mx_csr_mask: u32,
    stack: [[u8; 16]; 8],
}

fn words(area: &[u8; FXSAVE]) -> Fxsave {
    use scroll::Pread;
    let read = area.pread_with(0, Endian::Little);
    read.unwrap_or_else(|_: scroll::Error| unreachable!("FXSAVE is shorter than what is read of it"))
}

fn amd64(registers: &Registers) -> CONTEXT_AMD64 {
    const PARTS: u32 = 0xf; // control, integer, segments, floating point
    let get = |name| registers.get(Arch::X86_64, name).unwrap_or(0);
    let area = fxsave(registers);
    CONTEXT_AMD64 {
        context_flags: ContextFlagsCpu::CONTEXT_AMD64.bits() | PARTS,
        mx_csr: words(&area).mx_csr,
        cs: get("cs") as u16,
        fs: get("fs") as u16,
        gs: get("gs") as u16,
        ss: get("ss") as u16,
        eflags: get("eflags") as u32,
        rax: get("rax"),
        rcx: get("rcx"),
        rdx: get("rdx"),
        rbx: get("rbx"),
        rsp: get("rsp"),
        rbp: get("rbp"),
        rsi: get("rsi"),
        rdi: get("rdi"),
        r8: get("r8"),
        r9: get("r9"),
        r10: get("r10"),
        r11: get("r11"),
        r12: get("r12"),
        r13: get("r13"),
        r14: get("r14"),
        r15: get("r15"),
        rip: get("rip"),
        float_save: area,
        ..CONTEXT_AMD64::default()
    }
}

/// FSAVE's two bits for each register, of FXSAVE's one: 0 a number, 1 zero, 2 special, 3 empty. The tags are in the order of
/// the registers, and what is stored is in that of the stack (Intel's manual, volume 1, 8.1.7 and 10.5.1.1).
fn tags(words: &Fxsave) -> u32 {
    let top = usize::from(words.status >> 11 & 7);
    (0..8).fold(0, |tags, i| {
        let value = u128::from_le_bytes(words.stack[(i + 8 - top) % 8]);
        let (mantissa, exponent) = (value as u64, (value >> 64) as u16 & 0x7fff);
        let tag = match exponent {
            _ if words.tag >> i & 1 == 0 => 3,
            0 if mantissa == 0 => 1,
            0 | 0x7fff => 2,
            _ if mantissa >> 63 == 0 => 2,
            _ => 0,
        };
        tags | tag << (2 * i)
    })
}

fn x86(registers: &Registers) -> CONTEXT_X86 {
    const PARTS: u32 = 0x2f; // control, integer, segments, floating point, extended
    let get = |name| registers.get(Arch::X86, name).unwrap_or(0) as u32;
    let area = fxsave(registers);
    let mut context = CONTEXT_X86 {
        context_flags: ContextFlagsCpu::CONTEXT_X86.bits() | PARTS,
        gs: get("gs"),
        fs: get("fs"),
        es: get("es"),
        ds: get("ds"),
        edi: get("edi"),
        esi: get("esi"),
        ebx: get("ebx"),
        edx: get("edx"),
        ecx: get("ecx"),
        eax: get("eax"),
        ebp: get("ebp"),
        eip: get("eip"),
        cs: get("cs"),
        eflags: get("eflags"),
        esp: get("esp"),
        ss: get("ss"),
        extended_registers: area,
        ..CONTEXT_X86::default()
    };
    let words = words(&area);
    let float = &mut context.float_save;
    (float.control_word, float.status_word) = (words.control.into(), words.status.into());
    float.tag_word = tags(&words);
    (float.error_offset, float.error_selector) = (words.error_offset, words.error_selector);
    (float.data_offset, float.data_selector) = (words.data_offset, words.data_selector);
    let values = words.stack.iter().flat_map(|register| &register[..10]);
    float.register_area.iter_mut().zip(values).for_each(|(to, from)| *to = *from);
    context
}

#[cfg(test)]
mod tests;
