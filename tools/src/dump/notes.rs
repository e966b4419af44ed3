//! Notes of ELF cores, as the kernel lays them out, to read and to write.

use ascetic::fault::record::Arch;
use scroll::{Endian, Pread, Pwrite, SizeWith};

/// `struct elf_prstatus` (`include/linux/elfcore.h`) of x86_64.
#[derive(Default, Pread, Pwrite, SizeWith)]
pub(super) struct PrStatus64 {
    siginfo: [i32; 3],
    cursig: i16,
    _pad: u16,
    masks: [u64; 2],
    pid: u32,
    others: [u32; 3],
    times: [u64; 8],
    registers: [u64; 27],
    fpvalid: i32,
    _end: u32,
}

/// The same of i386.
#[derive(Default, Pread, Pwrite, SizeWith)]
pub(super) struct PrStatus32 {
    siginfo: [i32; 3],
    cursig: i16,
    _pad: u16,
    masks: [u32; 2],
    pid: u32,
    others: [u32; 3],
    times: [u32; 8],
    registers: [u32; 17],
    fpvalid: i32,
}

/// `siginfo_t` of x86_64 (`include/uapi/asm-generic/siginfo.h`), as far as it is of use.
#[derive(Pread)]
struct SigInfo64 {
    signo: i32,
    _errno: i32,
    code: i32,
    _pad: u32,
    addr: u64,
    syscall: i32,
    _arch: u32,
}

/// The same of i386.
#[derive(Pread)]
struct SigInfo32 {
    signo: i32,
    _errno: i32,
    code: i32,
    addr: u32,
    syscall: i32,
    _arch: u32,
}

/// `struct user_regs_struct` (`arch/x86/include/asm/user_{32,64}.h`), by a record's names.
pub(super) fn order(arch: Arch) -> &'static [&'static str] {
    match arch {
        Arch::X86_64 => &[
            "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
            ORIG, "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
        ],
        Arch::X86 => &[
            "ebx", "ecx", "edx", "esi", "edi", "ebp", "eax", "ds", "es", "fs", "gs", ORIG, "eip", "cs", "eflags",
            "esp", "ss",
        ],
    }
}

/// The number of the call under way, which is no register of the processor's.
pub(super) const ORIG: &str = "orig_ax";

/// General registers in a record's order, of those in the kernel's.
pub(super) fn general(arch: Arch, values: &[u64]) -> Vec<u64> {
    let get =
        |name: &str| order(arch).iter().position(|n| *n == name).and_then(|i| values.get(i)).copied().unwrap_or(0);
    arch.registers().iter().map(|name| get(name)).collect()
}

/// What a thread's status says.
pub(super) struct Status {
    pub(super) pid: u32,
    pub(super) signal: i32,
    /// In the kernel's order.
    pub(super) registers: Vec<u64>,
}

/// Reads `NT_PRSTATUS`.
pub(super) fn read_status(arch: Arch, bytes: &[u8]) -> Option<Status> {
    Some(match arch {
        Arch::X86_64 => {
            let s: PrStatus64 = bytes.pread_with(0, Endian::Little).ok()?;
            Status { pid: s.pid, signal: s.cursig.into(), registers: s.registers.to_vec() }
        }
        Arch::X86 => {
            let s: PrStatus32 = bytes.pread_with(0, Endian::Little).ok()?;
            Status { pid: s.pid, signal: s.cursig.into(), registers: s.registers.map(u64::from).to_vec() }
        }
    })
}

/// `NT_PRSTATUS`'s bytes.
pub(super) fn write_status(arch: Arch, status: &Status) -> Vec<u8> {
    let cursig = i16::try_from(status.signal).unwrap_or(0);
    let siginfo = [status.signal, 0, 0];
    match arch {
        Arch::X86_64 => {
            let mut s = PrStatus64 { siginfo, cursig, pid: status.pid, ..PrStatus64::default() };
            s.registers.iter_mut().zip(&status.registers).for_each(|(to, from)| *to = *from);
            bytes(s)
        }
        Arch::X86 => {
            let mut s = PrStatus32 { siginfo, cursig, pid: status.pid, ..PrStatus32::default() };
            s.registers.iter_mut().zip(&status.registers).for_each(|(to, from)| *to = *from as u32);
            bytes(s)
        }
    }
}

fn bytes<T>(value: T) -> Vec<u8>
where
    T: scroll::ctx::TryIntoCtx<Endian, Error = scroll::Error> + scroll::ctx::SizeWith<Endian>,
{
    let mut bytes = vec![0; T::size_with(&Endian::Little)];
    let written = bytes.pwrite_with(value, 0, Endian::Little);
    debug_assert!(written.is_ok());
    bytes
}

/// What is known of a signal.
#[derive(Debug)]
pub(super) struct SigInfo {
    pub(super) signal: i32,
    pub(super) code: i32,
    pub(super) address: u64,
    /// The number of the call that SIGSYS is about.
    pub(super) call: i32,
}

/// Reads `NT_SIGINFO`.
pub(super) fn read_siginfo(arch: Arch, bytes: &[u8]) -> Option<SigInfo> {
    Some(match arch {
        Arch::X86_64 => {
            let i: SigInfo64 = bytes.pread_with(0, Endian::Little).ok()?;
            SigInfo { signal: i.signo, code: i.code, address: i.addr, call: i.syscall }
        }
        Arch::X86 => {
            let i: SigInfo32 = bytes.pread_with(0, Endian::Little).ok()?;
            SigInfo { signal: i.signo, code: i.code, address: i.addr.into(), call: i.syscall }
        }
    })
}

/// `NT_SIGINFO`'s bytes: `siginfo_t` has 128.
pub(super) fn write_siginfo(arch: Arch, info: &SigInfo) -> Vec<u8> {
    let mut bytes: Vec<u8> = [info.signal, 0, info.code].iter().flat_map(|word| word.to_le_bytes()).collect();
    match arch {
        Arch::X86_64 => {
            bytes.extend([0; 4]);
            bytes.extend(info.address.to_le_bytes());
        }
        Arch::X86 => bytes.extend((info.address as u32).to_le_bytes()),
    }
    bytes.extend(info.call.to_le_bytes());
    bytes.resize(128, 0);
    bytes
}
