//! The kernel's own library in every process, as a libc finds it: `clock_gettime` without a system call.

use ascetic::sys;
use core::ffi::CStr;

/// `AT_SYSINFO_EHDR`
const HEADER: usize = 33;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_HASH: usize = 4;
const DT_STRTAB: usize = 5;
const DT_SYMTAB: usize = 6;

#[cfg(target_pointer_width = "64")]
mod elf {
    /// Offsets in `Elf64_Ehdr`: of the program headers' place, their size, their count.
    pub const EHDR: (usize, usize, usize) = (32, 54, 56);
    /// In `Elf64_Phdr`: offset and address.
    pub const PHDR: (usize, usize) = (8, 16);
    /// In `Elf64_Sym`: size, value, section.
    pub const SYM: (usize, usize, usize) = (24, 8, 6);
}

#[cfg(target_pointer_width = "32")]
mod elf {
    /// Offsets in `Elf32_Ehdr`: of the program headers' place, their size, their count.
    pub const EHDR: (usize, usize, usize) = (28, 42, 44);
    /// In `Elf32_Phdr`: offset and address.
    pub const PHDR: (usize, usize) = (4, 8);
    /// In `Elf32_Sym`: size, value, section.
    pub const SYM: (usize, usize, usize) = (16, 4, 14);
}

/// # Safety
///
/// A `T` is there.
unsafe fn get<T: Copy>(at: usize) -> T {
    // SAFETY: the caller's.
    unsafe { (at as *const T).read_unaligned() }
}

/// `clock_gettime(clock, timespec)` as the kernel's library has it.
pub type ClockGettime = extern "C" fn(i32, *mut [usize; 2]) -> i32;

/// The kernel's `clock_gettime`, if there is one.
pub fn clock_gettime() -> Option<ClockGettime> {
    let base = sys::auxv(HEADER)?;
    // SAFETY: the kernel maps a whole ELF file there, with all that its headers and its dynamic section name.
    unsafe {
        let headers = base + get::<usize>(base + elf::EHDR.0);
        let (size, count) = (get::<u16>(base + elf::EHDR.1), get::<u16>(base + elf::EHDR.2));
        let find = |kind| (0..count).map(|i| headers + usize::from(i * size)).find(|at| get::<u32>(*at) == kind);
        let load = find(PT_LOAD)?;
        let slide = base + get::<usize>(load + elf::PHDR.0) - get::<usize>(load + elf::PHDR.1);
        let dynamic = slide + get::<usize>(find(PT_DYNAMIC)? + elf::PHDR.1);
        let entry = |tag| {
            let entries = (0..).map(|i| get::<[usize; 2]>(dynamic + i * 2 * size_of::<usize>()));
            entries.take_while(|entry| entry[0] != 0).find(|entry| entry[0] == tag).map(|entry| slide + entry[1])
        };
        let (strings, symbols) = (entry(DT_STRTAB)?, entry(DT_SYMTAB)?);
        // The chains are as many as the symbols.
        let count = get::<u32>(entry(DT_HASH)? + 4) as usize;
        let named = (0..count).map(|i| symbols + i * elf::SYM.0).find(|at| {
            let name = CStr::from_ptr((strings + get::<u32>(*at) as usize) as *const _);
            name == c"__vdso_clock_gettime" && get::<u16>(*at + elf::SYM.2) != 0
        })?;
        Some(core::mem::transmute::<usize, ClockGettime>(slide + get::<usize>(named + elf::SYM.1)))
    }
}
