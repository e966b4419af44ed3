//! A folder of a test's own, and paths in it.

use crate::call;
use ascetic::sys::{self, Sysno};
use core::ffi::CStr;

/// The forms of `stat` that take a path and a buffer.
#[cfg(target_arch = "x86_64")]
pub const STAT: [Sysno; 2] = [Sysno::stat, Sysno::lstat];
/// The forms of `stat` that take a path and a buffer.
#[cfg(target_arch = "x86")]
pub const STAT: [Sysno; 4] = [Sysno::stat, Sysno::lstat, Sysno::stat64, Sysno::lstat64];
/// `fstatat`
#[cfg(target_arch = "x86_64")]
pub const FSTATAT: Sysno = Sysno::newfstatat;
/// `fstatat`
#[cfg(target_arch = "x86")]
pub const FSTATAT: Sysno = Sysno::fstatat64;
/// `mmap`
#[cfg(target_arch = "x86_64")]
pub const MMAP: Sysno = Sysno::mmap;
/// `mmap`
#[cfg(target_arch = "x86")]
pub const MMAP: Sysno = Sysno::mmap2;

/// A path, ending in NUL.
#[derive(Clone, Copy)]
pub struct Path {
    text: [u8; 160],
    len: usize,
}

impl Path {
    /// As C has it.
    pub fn as_c(&self) -> &CStr {
        CStr::from_bytes_with_nul(&self.text[..=self.len]).unwrap_or_default()
    }

    /// Its address.
    pub fn as_ptr(&self) -> *const u8 {
        self.text.as_ptr()
    }

    fn push(&mut self, bytes: &[u8]) {
        self.text[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

static mut OWNER: u32 = 0;

/// The path of `name` in the scratch folder of this test; of the folder itself if the name is empty.
pub fn path(name: &str) -> Path {
    let mut path = Path { text: [0; 160], len: 0 };
    path.push(b"/tmp/ascetic-");
    // SAFETY: written once, before any guest runs.
    let mut rest = unsafe { OWNER };
    let mut digits = [0u8; 10];
    let mut n = 0;
    while rest > 0 || n == 0 {
        digits[n] = b'0' + (rest % 10) as u8;
        rest /= 10;
        n += 1;
    }
    digits[..n].iter().rev().for_each(|digit| path.push(&[*digit]));
    if !name.is_empty() {
        path.push(b"/");
        path.push(name.as_bytes());
    }
    path
}

/// The scratch folder of this test: made anew, and removed when this is dropped.
pub struct Scratch(());

impl Scratch {
    /// Makes it.
    #[allow(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        // SAFETY: no guest runs, and this program has one thread; paths.
        unsafe {
            OWNER = sys::pids().0;
            let _ = call(Sysno::mkdir, [c"/tmp".as_ptr() as usize, 0o777]);
        }
        let scratch = Self(());
        remove(path("").as_c(), 0); // a process that had this id may have been killed
        scratch.folder("");
        scratch
    }

    /// Makes it with the folder `in`, in that the file `file`, and the file `outside` beside it.
    pub fn with_file() -> Self {
        let scratch = Self::new();
        scratch.folder("in");
        scratch.file("in/file", b"inside");
        scratch.file("outside", b"outside");
        scratch
    }

    /// Makes a folder.
    pub fn folder(&self, name: &str) {
        // SAFETY: a path.
        unsafe { call(Sysno::mkdir, [path(name).as_ptr() as usize, 0o755]) }.expect("mkdir");
    }

    /// Makes a file.
    pub fn file(&self, name: &str, bytes: &[u8]) {
        // SAFETY: a path.
        let fd = unsafe { call(Sysno::open, [path(name).as_ptr() as usize, 0o101, 0o644]) }.expect("open") as i32;
        sys::write(fd, bytes).expect("write");
        sys::close(fd);
    }

    /// Makes a symbolic link.
    pub fn link(&self, name: &str, target: &str) {
        let mut to = Path { text: [0; 160], len: 0 };
        to.push(target.as_bytes());
        // SAFETY: paths.
        unsafe { call(Sysno::symlink, [to.as_ptr() as usize, path(name).as_ptr() as usize]) }.expect("symlink");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(path("").as_c(), 0);
    }
}

/// Removes a folder and what is in it.
fn remove(folder: &CStr, depth: usize) {
    const AT_REMOVEDIR: usize = 0x200;
    const DIRECTORY: usize = 0o200_000;
    // SAFETY: paths and buffers of this function's own.
    unsafe {
        let Ok(dir) = call(Sysno::open, [folder.as_ptr() as usize, DIRECTORY]) else { return };
        let mut entries = [0u8; 1024];
        while let Ok(n @ 1..) = call(Sysno::getdents64, [dir, entries.as_mut_ptr() as usize, entries.len()]) {
            let mut at = 0;
            while at < n {
                // struct linux_dirent64: length at byte 16, name at 19.
                let len = usize::from(u16::from_ne_bytes([entries[at + 16], entries[at + 17]]));
                let name = CStr::from_bytes_until_nul(&entries[at + 19..at + len]).unwrap_or_default();
                if name != c"." && name != c".." {
                    let file = call(Sysno::unlinkat, [dir, name.as_ptr() as usize, 0]);
                    if file.is_err() && depth < 4 {
                        let mut below = Path { text: [0; 160], len: 0 };
                        below.push(folder.to_bytes());
                        below.push(b"/");
                        below.push(name.to_bytes());
                        remove(below.as_c(), depth + 1);
                        let _ = call(Sysno::unlinkat, [dir, name.as_ptr() as usize, AT_REMOVEDIR]);
                    }
                }
                at += len;
            }
        }
        sys::close(dir as i32);
        let _ = call(Sysno::rmdir, [folder.as_ptr() as usize]);
    }
}
