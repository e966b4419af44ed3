//! Writes down which lines ran, in a build that counts them (`cargo xtask coverage`): what the profiling runtime would do at
//! an exit that these programs do not have.

use ascetic::sys::{self, Sysno};

/// Counts of a program of this size take less.
const ROOM: usize = 8 << 20;

unsafe extern "C" {
    fn __llvm_profile_get_size_for_buffer() -> u64;
    fn __llvm_profile_write_buffer(buffer: *mut u8) -> i32;
}

/// That it is here keeps the linker from the profiling runtime's own start, which needs a C library.
#[unsafe(no_mangle)]
static __llvm_profile_runtime: i32 = 0;

/// Stands in for the ELF header, which these programs do not map: it has no notes, so no build id is written.
#[unsafe(no_mangle)]
static __ehdr_start: [u8; 64] = [0; 64];

/// Writes this process's counts into a file of the current folder.
pub fn write() {
    static mut BUFFER: [u8; ROOM] = [0; ROOM];
    let buffer = (&raw mut BUFFER).cast::<u8>();
    // SAFETY: the buffer is used once, at the end, and is large enough or not used.
    let counts = unsafe {
        let size = __llvm_profile_get_size_for_buffer() as usize;
        if size > ROOM || __llvm_profile_write_buffer(buffer) != 0 {
            return;
        }
        core::slice::from_raw_parts(buffer, size)
    };
    let mut name = crate::Line::new();
    let _ = core::fmt::Write::write_fmt(&mut name, format_args!("{}.profraw\0", sys::pids().0));
    const CREATE_TO_WRITE: usize = 0o1101; // O_CREAT | O_TRUNC | O_WRONLY
    // SAFETY: the name ends in zero.
    if let Ok(file) = unsafe { crate::call(Sysno::open, [name.as_str().as_ptr() as usize, CREATE_TO_WRITE, 0o644]) } {
        let mut rest = counts;
        while let Ok(n @ 1..) = sys::write(file as i32, rest) {
            rest = &rest[n..];
        }
    }
}
