//! The four calls of strict mode, made from the gates (`arch/*/gate.S`), which no dispatch catches.

use crate::arch::{self, Frame};
use crate::sys::{Errno, Result, Sysno};

/// Reads into `buf`.
pub(crate) fn read(fd: i32, buf: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel stores at most `buf.len()` bytes.
    Errno::from_ret(unsafe { arch::asc_gate(Sysno::read as u32, fd as usize, buf.as_mut_ptr() as usize, buf.len()) })
}

/// Writes `buf`.
pub(crate) fn write(fd: i32, buf: &[u8]) -> Result<usize> {
    // SAFETY: the kernel reads at most `buf.len()` bytes.
    unsafe { write_from(fd, buf.as_ptr() as usize, buf.len()) }
}

/// Writes memory that may not be there: `EFAULT` tells.
///
/// # Safety
///
/// None for memory; the bytes go to `fd`.
pub(crate) unsafe fn write_from(fd: i32, addr: usize, len: usize) -> Result<usize> {
    // SAFETY: the kernel checks the addresses.
    Errno::from_ret(unsafe { arch::asc_gate(Sysno::write as u32, fd as usize, addr, len) })
}

/// Ends this task.
pub(crate) fn exit(status: i32) -> ! {
    loop {
        // SAFETY: does not return.
        unsafe { arch::asc_gate(Sysno::exit as u32, status as usize, 0, 0) };
    }
}

/// Goes on with a frame.
///
/// # Safety
///
/// The frame is one that the kernel accepts, and what it says may go on.
pub(crate) unsafe fn resume(frame: *const Frame) -> ! {
    // SAFETY: the caller's.
    unsafe { arch::asc_sigreturn(frame) }
}
