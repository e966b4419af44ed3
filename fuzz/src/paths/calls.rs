//! Calls that take paths: their arguments, what they need, and what they answer.

use std::ffi::CString;

use arbitrary::{Arbitrary, Result, Unstructured};
use ascetic::abi::OpenHow;
use ascetic::policy::Rights;

/// A path, or what a link is to say.
#[derive(Debug)]
pub struct Text {
    /// Below the tree: a root, or what is beside one. Without it, it begins where the guest is.
    top: Option<&'static str>,
    names: Vec<&'static str>,
}

impl<'a> Arbitrary<'a> for Text {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        const TOPS: [&str; 13] = ["r", "r", "r", "w", "q", "x/one", "out", "x", "r/d", "r/../w", "q/d", "", "x/link"];
        const NAMES: [&str; 24] = [
            "f", "d", "e", "l", "g", "new", "..", "up", "out", "f", "d", "", ".", "one", "two", "round", "none",
            "slash", "far", "back", "r", "w", "..", "other",
        ];
        let first: u8 = u.arbitrary()?;
        let top = (first < 192).then(|| TOPS[usize::from(first) % TOPS.len()]);
        let count: u8 = u.arbitrary()?;
        let mut names = Vec::new();
        for _ in 0..count % 6 {
            names.push(NAMES[usize::from(u.arbitrary::<u8>()?) % NAMES.len()]);
        }
        if top.is_some_and(|top| top.starts_with("x/")) && count & 0x20 == 0 {
            names.clear(); // nothing is below a file
        }
        if count & 0x80 != 0 && count & 0x40 != 0 {
            names.push("");
        }
        Ok(Self { top, names })
    }
}

impl Text {
    /// In the tree at `base`.
    pub fn text(&self, base: &[u8]) -> Vec<u8> {
        let names = self.names.join("/");
        match self.top {
            Some(top) if names.is_empty() => [base, b"/", top.as_bytes()].concat(),
            Some(top) => [base, b"/", top.as_bytes(), b"/", names.as_bytes()].concat(),
            None => names.into_bytes(),
        }
    }
}

/// The calls.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Open,
    Openat,
    Openat2,
    Creat,
    Stat,
    Lstat,
    Newfstatat,
    Faccessat2,
    Readlink,
    Readlinkat,
    Mkdir,
    Rmdir,
    Unlink,
    Unlinkat,
    Rename,
    Renameat2,
    Link,
    Symlink,
    Chmod,
    Utimensat,
    Truncate,
    Chdir,
}

/// A request.
#[derive(Debug)]
pub struct Asked {
    pub call: Call,
    pub paths: Vec<Text>,
    /// The file that the path is relative to, of those that are open.
    pub dir: Option<u8>,
    flags: usize,
    mode: usize,
}

impl Asked {
    pub fn new(u: &mut Unstructured<'_>) -> Result<Self> {
        let call: Call = u.arbitrary()?;
        let (word, bits): (u8, u16) = u.arbitrary()?;
        let opening = [
            0,
            libc::O_CREAT,
            libc::O_EXCL,
            libc::O_TRUNC,
            libc::O_APPEND,
            libc::O_DIRECTORY,
            libc::O_NOFOLLOW,
            libc::O_PATH,
            libc::O_CREAT,
        ];
        let some = opening.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).fold(0, |all, (_, flag)| all | flag);
        let flags = match call {
            // Most with few flags.
            Call::Open | Call::Openat | Call::Openat2 if word & 0x40 == 0 => {
                opening[usize::from(bits) % 9] | i32::from(word & 3)
            }
            Call::Open | Call::Openat | Call::Openat2 => some | i32::from(word & 3),
            Call::Newfstatat | Call::Utimensat | Call::Faccessat2 => (i32::from(word) & 1) * libc::AT_SYMLINK_NOFOLLOW,
            Call::Unlinkat => (i32::from(word) & 1) * libc::AT_REMOVEDIR,
            Call::Renameat2 => i32::from(word) % 3,
            _ => 0,
        };
        let two = matches!(call, Call::Rename | Call::Renameat2 | Call::Link | Call::Symlink);
        let mut paths = Vec::new();
        for _ in 0..1 + usize::from(two) {
            paths.push(u.arbitrary()?);
        }
        let at = matches!(call, Call::Openat | Call::Openat2 | Call::Newfstatat | Call::Faccessat2 | Call::Readlinkat);
        let dir = (at && word & 0x80 != 0).then_some(word >> 4 & 3);
        Ok(Self { call, paths, dir, flags: flags as usize, mode: usize::from(bits) })
    }
}

/// Where a call answers.
pub struct Buffer(Box<[u8; 256]>);

impl Buffer {
    pub fn new() -> Self {
        Self(Box::new([0; 256]))
    }
}

/// What U copies out of the mailbox: to where, and how much at most.
pub fn comes_back(nr: u32, args: &[usize; 6]) -> Option<(usize, usize)> {
    match i64::from(nr) {
        libc::SYS_readlink => Some((args[1], args[2])),
        libc::SYS_readlinkat if args[0] as i32 == libc::AT_FDCWD => Some((args[2], args[3])),
        _ => None,
    }
}

impl Call {
    fn nr(self) -> i64 {
        match self {
            Self::Open => libc::SYS_open,
            Self::Openat => libc::SYS_openat,
            Self::Openat2 => libc::SYS_openat2,
            Self::Creat => libc::SYS_creat,
            Self::Stat => libc::SYS_stat,
            Self::Lstat => libc::SYS_lstat,
            Self::Newfstatat => libc::SYS_newfstatat,
            Self::Faccessat2 => libc::SYS_faccessat2,
            Self::Readlink => libc::SYS_readlink,
            Self::Readlinkat => libc::SYS_readlinkat,
            Self::Mkdir => libc::SYS_mkdir,
            Self::Rmdir => libc::SYS_rmdir,
            Self::Unlink => libc::SYS_unlink,
            Self::Unlinkat => libc::SYS_unlinkat,
            Self::Rename => libc::SYS_rename,
            Self::Renameat2 => libc::SYS_renameat2,
            Self::Link => libc::SYS_link,
            Self::Symlink => libc::SYS_symlink,
            Self::Chmod => libc::SYS_chmod,
            Self::Utimensat => libc::SYS_utimensat,
            Self::Truncate => libc::SYS_truncate,
            Self::Chdir => libc::SYS_chdir,
        }
    }

    /// Whether its text number `i` is a path, and not what a link is to say.
    pub fn is_path(self, i: usize) -> bool {
        !(self == Self::Symlink && i == 0)
    }

    pub fn opens(self) -> bool {
        matches!(self, Self::Open | Self::Openat | Self::Openat2 | Self::Creat)
    }

    /// Whether it may change something.
    pub fn changes(self, asked: &Asked) -> bool {
        let looks = matches!(self, Self::Stat | Self::Lstat | Self::Newfstatat | Self::Faccessat2 | Self::Chdir);
        let opens = matches!(self, Self::Open | Self::Openat | Self::Openat2);
        !(looks || self.is_text() || opens && asked.flags & (libc::O_CREAT | libc::O_TRUNC) as usize == 0)
    }

    /// Whether its answer is a text of the file system's.
    pub fn is_text(self) -> bool {
        matches!(self, Self::Readlink | Self::Readlinkat)
    }

    /// Whether it is about the name, number `i`, and not about what is there.
    pub fn names(self, i: usize) -> bool {
        matches!(
            self,
            Self::Mkdir | Self::Rmdir | Self::Unlink | Self::Unlinkat | Self::Rename | Self::Renameat2 | Self::Link
        ) || self == Self::Symlink && i == 1
    }

    /// Whether the last name is followed if it is a link. A `/` behind it asks for that as well.
    pub fn follows(self, asked: &Asked, _: usize) -> bool {
        let has = |flag: i32| asked.flags & flag as usize != 0;
        match self {
            Self::Open | Self::Openat | Self::Openat2 => {
                let new = has(libc::O_CREAT) && has(libc::O_EXCL) && !has(libc::O_PATH);
                !has(libc::O_NOFOLLOW) && !new
            }
            Self::Newfstatat | Self::Utimensat | Self::Faccessat2 => !has(libc::AT_SYMLINK_NOFOLLOW),
            Self::Creat | Self::Stat | Self::Chmod | Self::Truncate | Self::Chdir => true,
            _ => false,
        }
    }

    /// Whether it asks for links not to be followed.
    pub fn is_strict(self, asked: &Asked) -> bool {
        self == Self::Openat2 && asked.mode & 0x100 != 0
    }

    /// Whether only a folder will do.
    pub fn wants_folder(self, asked: &Asked) -> bool {
        matches!(self, Self::Mkdir | Self::Chdir) || self.opens() && asked.flags & libc::O_DIRECTORY as usize != 0
    }

    /// Whether it moves something to its second name; and, if that is so, whether to the first as well.
    pub fn moves(self) -> Option<fn(&Asked) -> bool> {
        matches!(self, Self::Rename | Self::Renameat2).then_some(|asked| asked.flags == libc::RENAME_EXCHANGE as usize)
    }

    /// Whether what is wrong in two ways may fail as the other one: what is to be linked is not looked at before the folder of its new
    /// name; a link that is to be a folder, and is to be read; `..` that is to be another name, in a folder that is not there.
    pub fn fails_otherwise(self, paths: &[Vec<u8>]) -> bool {
        let is_folder = |path: &Vec<u8>| {
            let last = path.split(|byte| *byte == b'/').rfind(|name| !name.is_empty());
            path.ends_with(b"/") || matches!(last, Some(b"." | b".."))
        };
        let (first, any) = (is_folder(&paths[0]), paths.iter().any(is_folder));
        self == Self::Link || any && paths.len() == 2 || first && self == Self::Readlinkat
    }

    /// What the root of path `i` must allow. `other`: what that of the other path allows.
    pub fn needs(self, asked: &Asked, i: usize, other: Rights) -> Rights {
        let (read, write, create) = (Rights::READ, Rights::WRITE, Rights::CREATE);
        match self {
            Self::Open | Self::Openat | Self::Openat2 | Self::Creat => {
                let flags = if self == Self::Creat {
                    libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC
                } else {
                    asked.flags as i32
                };
                if flags & libc::O_PATH != 0 {
                    return read;
                }
                let mut all = [read, write, read.and(write), read.and(write)][flags as usize & 3];
                if flags & libc::O_TRUNC != 0 {
                    all = all.and(write);
                }
                if flags & libc::O_CREAT != 0 {
                    all = all.and(create);
                }
                all
            }
            Self::Faccessat2 if asked.mode & 2 != 0 => read.and(write),
            Self::Stat
            | Self::Lstat
            | Self::Newfstatat
            | Self::Faccessat2
            | Self::Readlink
            | Self::Readlinkat
            | Self::Chdir => read,
            Self::Mkdir | Self::Rmdir | Self::Unlink | Self::Unlinkat | Self::Symlink => create,
            Self::Rename | Self::Renameat2 | Self::Link => {
                let both = i == 0 || self.moves().is_some_and(|exchanges| exchanges(asked));
                if both { create.and(other) } else { create }
            }
            Self::Chmod | Self::Utimensat | Self::Truncate => write,
        }
    }

    /// Has `make` called with its number and its arguments.
    pub fn with_arguments<T>(
        self,
        asked: &Asked,
        dir: i32,
        paths: &[Vec<u8>],
        buffer: &mut Buffer,
        make: impl FnOnce(u32, [usize; 6]) -> T,
    ) -> T {
        let texts: Vec<CString> = paths.iter().map(|path| CString::new(&path[..]).expect("no NUL")).collect();
        let at = |i: usize| texts.get(i).map_or(0, |text| text.as_ptr() as usize);
        let (dir, here, to) = (dir as isize as usize, libc::AT_FDCWD as isize as usize, buffer.0.as_mut_ptr() as usize);
        let (flags, mode) = (asked.flags, asked.mode);
        let creates = flags & libc::O_CREAT as usize != 0 && flags & libc::O_PATH as usize == 0;
        let how = OpenHow {
            flags: flags as u64,
            mode: if creates { mode as u64 & 0o777 } else { 0 },
            resolve: if self.is_strict(asked) { libc::RESOLVE_NO_SYMLINKS } else { 0 },
        };
        let times = [mode as u64, 7, mode as u64 * 3, 9];
        let args = match self {
            Self::Open => [at(0), flags, mode & 0o777, 0, 0, 0],
            Self::Openat => [dir, at(0), flags, mode & 0o777, 0, 0],
            Self::Openat2 => [dir, at(0), &raw const how as usize, size_of::<OpenHow>(), 0, 0],
            Self::Stat | Self::Lstat => [at(0), to, 0, 0, 0, 0],
            Self::Newfstatat => [dir, at(0), to, flags, 0, 0],
            Self::Faccessat2 => [dir, at(0), mode & 7, flags, 0, 0],
            Self::Readlink => [at(0), to, mode % 200 + 1, 0, 0, 0],
            Self::Readlinkat => [dir, at(0), to, mode % 200 + 1, 0, 0],
            Self::Creat => [at(0), mode & 0o777, 0, 0, 0, 0],
            // Of a folder, its owner must see what is there.
            Self::Mkdir | Self::Chmod => [at(0), mode & 0o77 | 0o700, 0, 0, 0, 0],
            Self::Rmdir | Self::Unlink | Self::Chdir => [at(0), 0, 0, 0, 0, 0],
            Self::Unlinkat => [here, at(0), flags, 0, 0, 0],
            Self::Rename | Self::Link | Self::Symlink => [at(0), at(1), 0, 0, 0, 0],
            Self::Renameat2 => [here, at(0), here, at(1), flags, 0],
            Self::Utimensat => [here, at(0), times.as_ptr() as usize, flags, 0, 0],
            Self::Truncate => [at(0), mode % 64, 0, 0, 0, 0],
        };
        make(self.nr() as u32, args)
    }

    /// Makes it plainly.
    pub fn make(self, asked: &Asked, dir: i32, paths: &[Vec<u8>], buffer: &mut Buffer) -> usize {
        if self == Self::Chdir {
            // Only a name is noted, if a folder is there.
            let path = CString::new(&paths[0][..]).expect("no NUL");
            // SAFETY: a path.
            let fd = unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) };
            let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
            // SAFETY: the new descriptor.
            return if fd >= 0 { unsafe { libc::close(fd) as usize } } else { -errno as usize };
        }
        self.with_arguments(asked, dir, paths, buffer, super::plain)
    }

    /// What it has written, as far as it must be the same in both trees.
    pub fn answer(self, buffer: &Buffer, result: usize) -> Vec<u8> {
        match self {
            Self::Stat | Self::Lstat | Self::Newfstatat => {
                // SAFETY: the kernel filled it in; any bytes are one.
                let facts = unsafe { buffer.0.as_ptr().cast::<libc::stat>().read_unaligned() };
                format!("{:o} {} {} {}", facts.st_mode, facts.st_nlink, facts.st_uid, facts.st_gid).into_bytes()
            }
            Self::Readlink | Self::Readlinkat => buffer.0[..result.min(buffer.0.len())].to_vec(),
            _ => Vec::new(),
        }
    }
}
