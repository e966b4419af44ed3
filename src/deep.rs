//! What a request to the broker carries: for each call, which of its pointers lead to something that the decision needs.
//!
//! U copies that into its mailbox, in this order, one behind the other; the broker reads it from there. A path is carried
//! with its NUL, bytes as many as the call says.

use crate::sys::Sysno;

/// One thing that is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carry {
    /// The path that this argument points to.
    Path(usize),
    /// The bytes that the first argument points to, as many as the second says.
    Counted(usize, usize),
    /// The bytes that this argument points to, this many.
    Fixed(usize, usize),
}

/// Bytes of `struct open_how`, as far as it is known here.
pub const HOW: usize = 24;
/// Bytes of two `struct timespec`.
const TIMES: usize = 4 * size_of::<usize>();
/// Bytes of `struct user_desc`.
pub const DESC: usize = 16;
/// `CLONE_SETTLS`
pub const CLONE_SETTLS: usize = 0x8_0000;

/// What call `nr` carries.
pub fn carried(nr: u32, args: &[usize; 6]) -> [Option<Carry>; 2] {
    use Carry::{Counted, Fixed, Path};
    let Some(call) = Sysno::new(nr as usize) else { return [None; 2] };
    let one = |carry| [Some(carry), None];
    let two = |a, b| [Some(a), Some(b)];
    match call {
        Sysno::open
        | Sysno::creat
        | Sysno::stat
        | Sysno::lstat
        | Sysno::access
        | Sysno::readlink
        | Sysno::mkdir
        | Sysno::rmdir
        | Sysno::unlink
        | Sysno::chmod
        | Sysno::truncate
        | Sysno::statfs
        | Sysno::chdir => one(Path(0)),
        Sysno::openat
        | Sysno::statx
        | Sysno::faccessat
        | Sysno::faccessat2
        | Sysno::readlinkat
        | Sysno::mkdirat
        | Sysno::unlinkat
        | Sysno::fchmodat => one(Path(1)),
        #[cfg(target_arch = "x86_64")]
        Sysno::newfstatat => one(Path(1)),
        #[cfg(target_arch = "x86")]
        Sysno::fstatat64 => one(Path(1)),
        #[cfg(target_arch = "x86")]
        Sysno::stat64 | Sysno::lstat64 | Sysno::truncate64 | Sysno::statfs64 => one(Path(0)),
        Sysno::openat2 if args[3] >= HOW => two(Path(1), Fixed(2, HOW)),
        Sysno::rename | Sysno::link | Sysno::symlink => two(Path(0), Path(1)),
        Sysno::renameat | Sysno::renameat2 | Sysno::linkat => two(Path(1), Path(3)),
        Sysno::symlinkat => two(Path(0), Path(2)),
        Sysno::utimensat if args[1] != 0 && args[2] != 0 => two(Path(1), Fixed(2, TIMES)),
        Sysno::utimensat if args[1] != 0 => one(Path(1)),
        Sysno::bind | Sysno::connect => one(Counted(1, 2)),
        Sysno::sendto if args[4] != 0 => one(Counted(4, 5)),
        #[cfg(target_arch = "x86")]
        Sysno::clone if args[0] & CLONE_SETTLS != 0 => one(Fixed(3, DESC)),
        _ => [None; 2],
    }
}
