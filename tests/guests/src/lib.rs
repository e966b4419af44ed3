//! What a program needs that has no libc: a start, memory functions, output, an end.

#![no_std]

#[cfg(feature = "coverage")]
pub mod coverage;
pub mod crash;
pub mod files;
pub mod mechanisms;
pub mod pcx;
pub mod threads;
pub mod vdso;

use ascetic::sys::{self, Sysno};
use core::fmt;

/// Where the kernel starts a program: the stack pointer leads to the argument count.
#[macro_export]
macro_rules! start {
    ($main:path) => {
        #[cfg(target_arch = "x86_64")]
        core::arch::global_asm!(
            ".globl _start",
            "_start: xor %ebp, %ebp",
            "mov %rsp, %rdi",
            "and $-16, %rsp",
            "call {main}",
            "ud2",
            main = sym begin,
            options(att_syntax)
        );
        #[cfg(target_arch = "x86")]
        core::arch::global_asm!(
            ".globl _start",
            "_start: xor %ebp, %ebp",
            "mov %esp, %eax",
            "and $-16, %esp",
            "sub $12, %esp",
            "push %eax",
            "call {main}",
            "ud2",
            main = sym begin,
            options(att_syntax)
        );

        unsafe extern "C" fn begin(stack: *const usize) -> ! {
            // SAFETY: the kernel put the arguments there.
            $main(unsafe { $crate::Args::new(stack) });
            $crate::exit(0)
        }

        #[panic_handler]
        fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
            $crate::println!("{info}");
            $crate::exit(101)
        }
    };
}

/// The program's arguments.
#[derive(Clone, Copy)]
pub struct Args(*const usize);

impl Args {
    /// # Safety
    ///
    /// `stack` is what the kernel handed over.
    pub unsafe fn new(stack: *const usize) -> Self {
        Self(stack)
    }

    /// Argument `i`, 0 being the program; empty if there is none.
    pub fn get(self, i: usize) -> &'static str {
        // SAFETY: the kernel put a count there and behind it as many pointers to strings, which stay.
        unsafe {
            if i >= *self.0 {
                return "";
            }
            let text = core::ffi::CStr::from_ptr((*self.0.add(1 + i)) as *const _);
            text.to_str().unwrap_or("")
        }
    }

    /// The arguments as `execve` takes them.
    pub fn raw(self) -> *const usize {
        // SAFETY: the pointers follow the count.
        unsafe { self.0.add(1) }
    }
}

/// Ends the process.
pub fn exit(status: i32) -> ! {
    #[cfg(feature = "coverage")]
    coverage::write();
    sys::exit(status)
}

/// Standard output.
pub struct Out;

impl fmt::Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            match sys::write(1, rest) {
                Ok(n) => rest = &rest[n..],
                Err(sys::Errno::EINTR | sys::Errno::EAGAIN) => {}
                Err(_) => return Err(fmt::Error),
            }
        }
        Ok(())
    }
}

/// A line of output, written at once.
pub struct Line {
    text: [u8; 1024],
    len: usize,
}

impl Line {
    /// An empty line.
    pub fn new() -> Self {
        Self { text: [0; 1024], len: 0 }
    }

    /// The text so far.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.text[..self.len]).unwrap_or("?")
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.text[self.len..];
        let n = text.len().min(room.len());
        room[..n].copy_from_slice(&text.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}

/// Prints a line to standard output.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        let mut line = $crate::Line::new();
        let _ = writeln!(line, $($arg)*);
        let _ = $crate::Out.write_str(line.as_str());
    }};
}

/// Ends the process as failed unless a condition holds.
#[macro_export]
macro_rules! check {
    ($cond:expr $(, $($arg:tt)+)?) => {
        if !$cond {
            $crate::println!("{}:{}: {}", file!(), line!(), stringify!($cond));
            $($crate::println!($($arg)+);)?
            $crate::exit(1)
        }
    };
}

/// Makes a system call of the test program itself.
///
/// # Safety
///
/// As the manual page says.
pub unsafe fn call<const N: usize>(nr: Sysno, args: [usize; N]) -> sys::Result<usize> {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&args);
    // SAFETY: the caller's.
    unsafe { sys::call(nr, all) }
}

#[cfg(target_arch = "x86_64")]
mod memory {
    /// Copies upwards.
    pub unsafe fn copy(to: *mut u8, from: *const u8, n: usize) {
        // SAFETY: the caller's.
        unsafe {
            core::arch::asm!("rep movsb", inout("rcx") n => _, inout("rdi") to => _, inout("rsi") from => _,
                options(nostack, preserves_flags));
        }
    }
    /// Fills.
    pub unsafe fn fill(to: *mut u8, byte: u8, n: usize) {
        // SAFETY: the caller's.
        unsafe {
            core::arch::asm!("rep stosb", inout("rcx") n => _, inout("rdi") to => _, in("al") byte,
                options(nostack, preserves_flags));
        }
    }
}

#[cfg(target_arch = "x86")]
mod memory {
    /// Copies upwards.
    pub unsafe fn copy(to: *mut u8, from: *const u8, n: usize) {
        // SAFETY: the caller's.
        unsafe {
            core::arch::asm!("xchg esi, {0}", "rep movsb", "mov esi, {0}", inout(reg) from => _, inout("ecx") n => _,
                inout("edi") to => _, options(nostack, preserves_flags));
        }
    }
    /// Fills.
    pub unsafe fn fill(to: *mut u8, byte: u8, n: usize) {
        // SAFETY: the caller's.
        unsafe {
            core::arch::asm!("rep stosb", inout("ecx") n => _, inout("edi") to => _, in("al") byte,
                options(nostack, preserves_flags));
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the contract of memcpy.
    unsafe { memory::copy(to, from, n) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= n {
        // SAFETY: upwards does not overwrite what is still to be read.
        unsafe { memory::copy(to, from, n) };
    } else {
        for i in (0..n).rev() {
            // SAFETY: the contract of memmove. Volatile, or the compiler would call memmove.
            unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
        }
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
    // SAFETY: the contract of memset.
    unsafe { memory::fill(to, byte as u8, n) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    for i in 0..n {
        // SAFETY: the contract of memcmp. Volatile, or the compiler would call memcmp.
        let (a, b) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, n) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut n = 0;
    // SAFETY: the contract of strlen.
    while unsafe { text.add(n).read_volatile() } != 0 {
        n += 1;
    }
    n
}

/// The precompiled `core` names it; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
