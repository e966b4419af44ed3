//! Files that are opened, or looked at: by scripts of T's.

use super::{AT_FDCWD, Case, Decided, Refusal, Verdict, refuse};
use crate::abi::{OpenHow, STEP_FIRST, STEP_KEEP, STEP_SAVE, STEP_STOP};
use crate::broker::path::{self, Place, Whole};
use crate::deep;
use crate::policy::Rights;
use crate::sys::{Errno, Sysno};

pub(super) const AT_SYMLINK_NOFOLLOW: usize = 0x100;
pub(super) const AT_REMOVEDIR: usize = 0x200;
pub(super) const AT_SYMLINK_FOLLOW: usize = 0x400;
pub(super) const AT_EMPTY_PATH: usize = 0x1000;

const O_ACCMODE: usize = 3;
const O_RDONLY: usize = 0;
const O_WRONLY: usize = 1;
const O_CREAT: usize = 0o100;
const O_TRUNC: usize = 0o1000;
const O_NONBLOCK: usize = 0o4000;
/// `O_DIRECTORY`
pub const O_DIRECTORY: usize = 0o200_000;
const O_NOFOLLOW: usize = 0o400_000;
const O_CLOEXEC: usize = 0o2_000_000;
const O_ASYNC: usize = 0o20_000;
/// `O_PATH`
pub const O_PATH: usize = 0o10_000_000;
/// `__O_TMPFILE`
const O_TMPFILE: usize = 0o20_000_000;
/// What `open` knows (`VALID_OPEN_FLAGS`, `include/linux/fcntl.h`), without `O_ASYNC` and `O_DIRECT`.
const O_KNOWN: usize = 0o3
    | 0o100
    | 0o200
    | 0o400
    | 0o1000
    | 0o2000
    | 0o4000
    | 0o10_000
    | 0o100_000
    | 0o200_000
    | 0o400_000
    | 0o1_000_000
    | 0o2_000_000
    | 0o4_010_000
    | 0o10_000_000
    | 0o20_000_000;
/// What counts beside `O_PATH`.
const O_PATH_KNOWN: usize = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;

const RESOLVE_NO_XDEV: u64 = 1;
const RESOLVE_NO_MAGICLINKS: u64 = 2;
const RESOLVE_NO_SYMLINKS: u64 = 4;
const RESOLVE_BENEATH: u64 = 8;

/// `F_DUPFD`, `GETFD`, `SETFD`, `GETFL`, `GETLK`, `SETLK`, `SETLKW`, the same for 64 bits on i386, for open file descriptions,
/// `F_DUPFD_CLOEXEC`, `F_GETPIPE_SZ`, `F_GET_SEALS`. Not `SETOWN` and `SETSIG`, which aim signals.
const FCNTL: [usize; 15] = [0, 1, 2, 3, 5, 6, 7, 12, 13, 14, 36, 37, 38, 1030, 1032];
const F_SETFL: usize = 4;

/// Arguments of an `openat2`, and where that is, if it is not relative to a descriptor of the guest's.
type Opening = ([usize; 6], Option<(Whole, Place, OpenHow)>);

impl<'a> Case<'_, 'a, '_, '_> {
    /// Where a path leads, if it may be looked at with these rights. `dir` is the descriptor that it is relative to.
    pub(super) fn place(&self, dir: usize, path: &[u8], needs: Rights) -> Result<(Whole, Place), Refusal> {
        let whole = Whole::of(self.view.cwd, path).ok_or(refuse(Errno::ENAMETOOLONG, "the path is too long"))?;
        if path.is_empty() {
            return Err(refuse(Errno::ENOENT, "the path is empty"));
        }
        if !path.starts_with(b"/") && dir as i32 != AT_FDCWD {
            return Err(refuse(Errno::EACCES, "relative to a descriptor, all roots must allow it"));
        }
        let place = path::locate(self.view.policy, whole.bytes());
        let place = place.ok_or(refuse(Errno::EACCES, "the path is below no root"))?;
        if self.view.revoked >> place.root & 1 == 1 {
            return Err(refuse(Errno::EACCES, "the root was taken back"));
        }
        if !place.rights.has(needs) {
            return Err(refuse(Errno::EACCES, "the root does not allow it"));
        }
        Ok((whole, place))
    }

    /// The descriptor of the root that a path is, if that root may only be known to be there. It is looked at as it is: if it
    /// were opened for that, another thread of the guest could use the descriptor as a folder to begin at.
    fn bare_root(&self, dir: usize, path: &[u8]) -> Option<usize> {
        if path.is_empty() || !path.starts_with(b"/") && dir as i32 != AT_FDCWD {
            return None;
        }
        let whole = Whole::of(self.view.cwd, path)?;
        let place = path::locate(self.view.policy, whole.bytes())?;
        let bare = place.rights == Rights::NONE && !place.exact && place.rest(&whole) == b".";
        let bare = bare && self.view.revoked >> place.root & 1 == 0;
        bare.then_some(self.view.root_fds as usize + place.root)
    }

    fn how(&self, flags: usize, mode: usize) -> OpenHow {
        let policy = self.view.policy;
        let links = if policy.follows_links() { 0 } else { RESOLVE_NO_SYMLINKS };
        let resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV | links;
        #[cfg(feature = "experiments")]
        let off = crate::experiment::NOT_BENEATH.load(core::sync::atomic::Ordering::Relaxed);
        #[cfg(feature = "experiments")]
        let resolve = if off { 0 } else { resolve };
        OpenHow { flags: flags as u64, mode: mode as u64, resolve }
    }

    /// Arguments of an `openat2` that opens `path` as seen from `dir`.
    fn openat2(&mut self, dir: usize, path: &[u8], how: OpenHow) -> Result<[usize; 6], Refusal> {
        let OpenHow { flags, mode, resolve } = how;
        let how = self.put(&[&flags.to_ne_bytes(), &mode.to_ne_bytes(), &resolve.to_ne_bytes()])?;
        let path = self.put(&[path, &[0]])?;
        Ok([dir, path, how, size_of::<OpenHow>(), 0, 0])
    }

    /// Arguments of an `openat2` for a path of the guest's, relative to one of its descriptors or not.
    fn opening(
        &mut self,
        dir: usize,
        path: &[u8],
        needs: Rights,
        flags: usize,
        mode: usize,
    ) -> Result<Opening, Refusal> {
        let how = self.how(flags, mode);
        if !path.starts_with(b"/") && dir as i32 != AT_FDCWD && !path.is_empty() {
            // Nobody knows of which root the descriptor is: it grants what all do.
            if !self.view.policy.common_rights().has(needs) {
                return Err(refuse(Errno::EACCES, "relative to a descriptor, all roots must allow it"));
            }
            let dir = self.guest_fd(dir)?;
            return Ok((self.openat2(dir, path, how)?, None));
        }
        let (whole, place) = self.place(dir, path, needs)?;
        let mut how = how;
        if place.exact {
            how.resolve |= RESOLVE_NO_SYMLINKS;
        }
        let root = self.view.root_fds as usize + place.root;
        let args = self.openat2(root, place.rest(&whole), how)?;
        Ok((args, Some((whole, place, how))))
    }

    /// Opens a path only to look at it (`O_PATH`), makes `call` on it, and closes it. `args[0]` stands for the descriptor.
    fn look(&mut self, dir: usize, path: &[u8], follow: bool, call: Sysno, args: [usize; 6]) -> Result<(), Refusal> {
        let flags = O_PATH | O_CLOEXEC | if follow { 0 } else { O_NOFOLLOW };
        self.on_opened(dir, path, Rights::READ, flags, call, args)
    }

    fn on_opened(
        &mut self,
        dir: usize,
        path: &[u8],
        needs: Rights,
        flags: usize,
        call: Sysno,
        args: [usize; 6],
    ) -> Result<(), Refusal> {
        self.targets(&args)?;
        let (open, _) = self.opening(dir, path, needs, flags, 0)?;
        self.opened(open, call, args);
        Ok(())
    }

    fn open(&mut self, dir: usize, flags: usize, mode: usize) -> Decided<'a> {
        let path = self.carried(0)?;
        let asked = [flags as u32, mode as u32];
        let flags = if flags & O_PATH != 0 { flags & O_PATH_KNOWN } else { flags & O_KNOWN };
        let creates = flags & (O_CREAT | O_TMPFILE) != 0 && flags & O_PATH == 0;
        let mut needs = match flags & O_ACCMODE {
            O_RDONLY => Rights::READ,
            O_WRONLY => Rights::WRITE,
            _ => Rights::READ.and(Rights::WRITE),
        };
        if flags & O_TRUNC != 0 {
            needs = needs.and(Rights::WRITE);
        }
        if creates {
            needs = needs.and(Rights::CREATE);
        }
        // O_CREAT on a root without that right opens what is there, and says EACCES for what is not.
        let mode = if creates { mode & 0o777 } else { 0 };
        let (args, placed) = self.opening(dir, path, needs, flags, mode)?;
        self.step(Sysno::openat2, args, STEP_KEEP);
        self.reply_kept();
        Ok(match placed {
            Some((whole, place, how)) => Verdict::Open { whole, place, asked, how },
            None => Verdict::Script,
        })
    }

    fn stat(&mut self, dir: usize, flags: usize, call: Sysno, args: [usize; 6]) -> Result<(), Refusal> {
        let path = self.carried(0)?;
        if path.is_empty() && flags & AT_EMPTY_PATH != 0 {
            self.targets(&args)?;
            let mut args = args;
            args[0] = self.guest_fd(dir)?;
            self.only(call, args);
            return Ok(());
        }
        if let Some(root) = self.bare_root(dir, path) {
            self.targets(&args)?;
            self.only(call, [root, args[1], 0, 0, 0, 0]);
            return Ok(());
        }
        self.look(dir, path, flags & AT_SYMLINK_NOFOLLOW == 0, call, args)
    }

    pub(super) fn files(&mut self, call: Sysno, args: &[usize; 6]) -> Result<Option<Verdict<'a>>, Refusal> {
        const CWD: usize = AT_FDCWD as usize;
        let [a, b, c, d, e, _] = *args;
        match call {
            Sysno::open => return self.open(CWD, b, c).map(Some),
            Sysno::creat => return self.open(CWD, O_CREAT | O_WRONLY | O_TRUNC, b).map(Some),
            Sysno::openat => return self.open(a, c, d).map(Some),
            Sysno::openat2 => {
                let how = self.carried(1)?;
                let word =
                    |i: usize| how.get(8 * i..8 * i + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
                if word(2) & !0x3f != 0 || d != deep::HOW {
                    return Err(refuse(Errno::E2BIG, "openat2 with more than is known here"));
                }
                return self.open(a, word(0) as usize, word(1) as usize).map(Some);
            }
            Sysno::stat => self.stat(CWD, 0, Sysno::fstat, [0, b, 0, 0, 0, 0])?,
            Sysno::lstat => self.stat(CWD, AT_SYMLINK_NOFOLLOW, Sysno::fstat, [0, b, 0, 0, 0, 0])?,
            #[cfg(target_arch = "x86_64")]
            Sysno::newfstatat => self.stat(a, d, Sysno::fstat, [0, c, 0, 0, 0, 0])?,
            #[cfg(target_arch = "x86")]
            Sysno::stat64 => self.stat(CWD, 0, Sysno::fstat64, [0, b, 0, 0, 0, 0])?,
            #[cfg(target_arch = "x86")]
            Sysno::lstat64 => self.stat(CWD, AT_SYMLINK_NOFOLLOW, Sysno::fstat64, [0, b, 0, 0, 0, 0])?,
            #[cfg(target_arch = "x86")]
            Sysno::fstatat64 => self.stat(a, d, Sysno::fstat64, [0, c, 0, 0, 0, 0])?,
            Sysno::statx => {
                let empty = self.put(&[&[0]])?;
                self.statx(a, c, empty, d, e)?;
            }
            Sysno::access => self.access(CWD, b, 0)?,
            Sysno::faccessat => self.access(a, c, 0)?,
            Sysno::faccessat2 => self.access(a, c, d)?,
            Sysno::readlink => self.readlink(CWD, b, c)?,
            Sysno::readlinkat => self.readlink(a, c, d)?,
            Sysno::statfs => {
                let path = self.carried(0)?;
                self.look(CWD, path, true, Sysno::fstatfs, [0, b, 0, 0, 0, 0])?;
            }
            #[cfg(target_arch = "x86")]
            Sysno::statfs64 => {
                let path = self.carried(0)?;
                self.look(CWD, path, true, Sysno::fstatfs64, [0, b, c, 0, 0, 0])?;
            }
            Sysno::truncate => {
                let path = self.carried(0)?;
                let flags = O_WRONLY | O_NONBLOCK | O_CLOEXEC;
                self.on_opened(CWD, path, Rights::WRITE, flags, Sysno::ftruncate, [0, b, 0, 0, 0, 0])?;
            }
            #[cfg(target_arch = "x86")]
            Sysno::truncate64 => {
                let path = self.carried(0)?;
                let flags = O_WRONLY | O_NONBLOCK | O_CLOEXEC;
                self.on_opened(CWD, path, Rights::WRITE, flags, Sysno::ftruncate64, [0, b, c, 0, 0, 0])?;
            }
            Sysno::fcntl => return self.fcntl(call, args).map(|()| Some(Verdict::Script)),
            #[cfg(target_arch = "x86")]
            Sysno::fcntl64 => return self.fcntl(call, args).map(|()| Some(Verdict::Script)),
            Sysno::flock => {
                self.guest_fd(a)?;
                self.only(call, [a, b, 0, 0, 0, 0]);
            }
            Sysno::getcwd => return Ok(Some(Verdict::Getcwd { size: b })),
            _ => return self.changes(call, args).map(|change| change.map(Verdict::Files)),
        }
        Ok(Some(Verdict::Script))
    }

    fn statx(&mut self, dir: usize, flags: usize, empty: usize, mask: usize, to: usize) -> Result<(), Refusal> {
        self.target(to)?;
        // The path is the verdict's own, which `targets` would refuse.
        let path = self.carried(0)?;
        let args = [0, empty, AT_EMPTY_PATH, mask, to, 0];
        if path.is_empty() && flags & AT_EMPTY_PATH != 0 {
            let fd = self.guest_fd(dir)?;
            self.only(Sysno::statx, [fd, empty, AT_EMPTY_PATH, mask, to, 0]);
            return Ok(());
        }
        if let Some(root) = self.bare_root(dir, path) {
            self.only(Sysno::statx, [root, empty, AT_EMPTY_PATH, mask, to, 0]);
            return Ok(());
        }
        let nofollow = if flags & AT_SYMLINK_NOFOLLOW != 0 { O_NOFOLLOW } else { 0 };
        let (open, _) = self.opening(dir, path, Rights::READ, O_PATH | O_CLOEXEC | nofollow, 0)?;
        self.opened(open, Sysno::statx, args);
        Ok(())
    }

    fn opened(&mut self, open: [usize; 6], call: Sysno, args: [usize; 6]) {
        self.step(Sysno::openat2, open, STEP_SAVE | STEP_STOP);
        self.step(call, args, STEP_KEEP | STEP_FIRST);
        self.step(Sysno::close, [0; 6], STEP_FIRST);
        self.reply_kept();
    }

    fn access(&mut self, dir: usize, mode: usize, flags: usize) -> Result<(), Refusal> {
        const W_OK: usize = 2;
        let path = self.carried(0)?;
        let empty = self.put(&[&[0]])?;
        if let Some(root) = self.bare_root(dir, path).filter(|_| mode & W_OK == 0) {
            self.only(Sysno::faccessat2, [root, empty, mode & 7, AT_EMPTY_PATH, 0, 0]);
            return Ok(());
        }
        let needs = if mode & W_OK != 0 { Rights::READ.and(Rights::WRITE) } else { Rights::READ };
        let nofollow = if flags & AT_SYMLINK_NOFOLLOW != 0 { O_NOFOLLOW } else { 0 };
        let (open, _) = self.opening(dir, path, needs, O_PATH | O_CLOEXEC | nofollow, 0)?;
        self.opened(open, Sysno::faccessat2, [0, empty, mode & 7, AT_EMPTY_PATH, 0, 0]);
        Ok(())
    }

    fn readlink(&mut self, dir: usize, to: usize, len: usize) -> Result<(), Refusal> {
        self.target(to)?;
        let path = self.carried(0)?;
        if self.bare_root(dir, path).is_some() {
            return Err(refuse(Errno::EINVAL, "a root is no symbolic link"));
        }
        // By the name in its folder: a link that is opened itself says ENOENT where it should say EINVAL.
        let (folder, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(0) => (b"/".as_slice(), path.get(1..).unwrap_or_default()),
            Some(i) => (path.get(..i).unwrap_or_default(), path.get(i + 1..).unwrap_or_default()),
            None => (b".".as_slice(), path),
        };
        let is_root = self.view.policy.roots().any(|(_, root)| root.path.to_bytes() == path);
        if matches!(name, b"" | b"." | b"..") || is_root {
            let empty = self.put(&[&[0]])?;
            let (open, _) = self.opening(dir, path, Rights::READ, O_PATH | O_CLOEXEC | O_NOFOLLOW, 0)?;
            self.opened(open, Sysno::readlinkat, [0, empty, to, len, 0, 0]);
            return Ok(());
        }
        let name = self.put(&[name, &[0]])?;
        let (open, _) = self.opening(dir, folder, Rights::READ, O_PATH | O_CLOEXEC | O_DIRECTORY, 0)?;
        self.opened(open, Sysno::readlinkat, [0, name, to, len, 0, 0]);
        Ok(())
    }

    fn fcntl(&mut self, call: Sysno, args: &[usize; 6]) -> Result<(), Refusal> {
        let [fd, cmd, arg, ..] = *args;
        self.guest_fd(fd)?;
        self.target(arg)?;
        let known = FCNTL.contains(&cmd) || cmd == F_SETFL && arg & O_ASYNC == 0;
        if !known {
            return Err(refuse(Errno::EINVAL, "this operation of fcntl is not allowed"));
        }
        self.only(call, [fd, cmd, arg, 0, 0, 0]);
        Ok(())
    }
}
