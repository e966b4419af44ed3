//! Files that are opened, or looked at: by scripts of T's.

use super::{AT_FDCWD, Case, Decided, Refusal, Script, Verdict, refuse};
use crate::abi::{OpenHow, STEP_FIRST, STEP_KEEP, STEP_SAVE, STEP_STOP};
use crate::broker::path::{self, Place};
use crate::deep;
use crate::policy::Rights;
use crate::sys::{Errno, Sysno};

pub(super) const AT_SYMLINK_NOFOLLOW: usize = 0x100;
pub(super) const AT_REMOVEDIR: usize = 0x200;
pub(super) const AT_SYMLINK_FOLLOW: usize = 0x400;
pub(super) const AT_EMPTY_PATH: usize = 0x1000;
const AT_EACCESS: usize = 0x200;
const AT_NO_AUTOMOUNT: usize = 0x800;
/// `AT_STATX_FORCE_SYNC | AT_STATX_DONT_SYNC`
const AT_SYNC: usize = 0x6000;

const O_ACCMODE: usize = 3;
const O_RDONLY: usize = 0;
const O_WRONLY: usize = 1;
const O_CREAT: usize = 0o100;
const O_TRUNC: usize = 0o1000;
/// `O_DIRECTORY`
pub const O_DIRECTORY: usize = 0o200_000;
/// `O_NOFOLLOW`
pub const O_NOFOLLOW: usize = 0o400_000;
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
const RESOLVE_IN_ROOT: u64 = 0x10;
/// `RESOLVE_*` as far as it is known: up to `RESOLVE_CACHED`.
const RESOLVE_KNOWN: u64 = 0x3f;

/// `F_DUPFD`, `GETFD`, `SETFD`, `GETFL`, `GETLK`, the same for 64 bits on i386 and for open file descriptions,
/// `F_DUPFD_CLOEXEC`, `F_GETPIPE_SZ`, `F_GET_SEALS`. Not `SETOWN` and `SETSIG`, which aim signals.
const FCNTL: [usize; 9] = [0, 1, 2, 3, 5, 12, 36, 1030, 1032];
/// `F_SETLK`, `SETLKW`, the same for 64 bits on i386 and for open file descriptions.
const FCNTL_LOCKS: [usize; 6] = [6, 7, 13, 14, 37, 38];
const F_SETFL: usize = 4;

/// `AT_FDCWD`, as an argument.
pub(super) const CWD: usize = AT_FDCWD as usize;

/// Where a path begins: at a descriptor of the guest's, or below a root.
#[derive(Clone, Copy)]
enum Start {
    Descriptor(usize),
    Root(Place),
}

impl Script<'_> {
    /// Arguments of an `openat2` that opens `path` as seen from `dir`.
    fn openat2(&mut self, dir: usize, path: &[u8], how: OpenHow) -> Result<[usize; 6], Refusal> {
        let OpenHow { flags, mode, resolve } = how;
        let how = self.put(&[&flags.to_ne_bytes(), &mode.to_ne_bytes(), &resolve.to_ne_bytes()])?;
        let path = self.put(&[path, &[0]])?;
        Ok([dir, path, how, size_of::<OpenHow>(), 0, 0])
    }

    /// Opens a file only to look at it, makes `call` on it, and closes it. `args[0]` stands for the descriptor. Another thread
    /// of the guest may put another descriptor there meanwhile, and then that is what is looked at.
    fn look(&mut self, open: [usize; 6], call: Sysno, args: [usize; 6]) {
        self.step(Sysno::openat2, open, STEP_SAVE | STEP_STOP);
        self.step(call, args, STEP_KEEP | STEP_FIRST);
        self.step(Sysno::close, [0; 6], STEP_FIRST);
        self.reply_kept();
    }
}

impl<'a> Case<'_, 'a, '_> {
    /// Where a path leads: it is noted as number `i`. `dir` is the descriptor that it is relative to.
    fn locate(&mut self, i: usize, dir: usize, path: &[u8]) -> Result<Place, Refusal> {
        let Some(whole) = self.paths.get_mut(i).and_then(|whole| whole.set(self.view.cwd, path).map(|()| whole)) else {
            return Err(refuse(Errno::ENAMETOOLONG, "the path is too long"));
        };
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
        Ok(place)
    }

    /// Where a path leads, if that may be done there.
    pub(super) fn place(&mut self, i: usize, dir: usize, path: &[u8], needs: Rights) -> Result<Place, Refusal> {
        let place = self.locate(i, dir, path)?;
        granted(place, needs)?;
        Ok(place)
    }

    fn start(&mut self, dir: usize, path: &[u8]) -> Result<Start, Refusal> {
        if !path.starts_with(b"/") && dir as i32 != AT_FDCWD && !path.is_empty() {
            return self.guest_fd(dir).map(Start::Descriptor);
        }
        self.locate(0, dir, path).map(Start::Root)
    }

    /// The descriptor of the root that a path is, if that root may only be known to be there. It is looked at as it is: if it
    /// were opened for that, another thread of the guest could use the descriptor as a folder to begin at.
    fn bare(&self, start: Start) -> Option<usize> {
        let Start::Root(place) = start else { return None };
        self.is_bare(place).then_some(self.view.root_fds as usize + place.root)
    }

    /// Whether the first path is a root that is a folder.
    fn is_root(&self, place: Place) -> bool {
        !place.exact && place.rest(&self.paths[0]) == b"."
    }

    /// Whether it is one that may only be known to be there.
    pub(super) fn is_bare(&self, place: Place) -> bool {
        place.rights == Rights::NONE && self.is_root(place)
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

    /// Arguments of an `openat2` for a path of the guest's, and how it opens what is below a root.
    fn opening(
        &mut self,
        start: Start,
        path: &[u8],
        needs: Rights,
        how: OpenHow,
    ) -> Result<([usize; 6], OpenHow), Refusal> {
        match start {
            Start::Descriptor(dir) => {
                // Nobody knows of which root the descriptor is: it grants what all do.
                if !self.view.policy.common_rights().has(needs) {
                    return Err(refuse(Errno::EACCES, "relative to a descriptor, all roots must allow it"));
                }
                Ok((self.script.openat2(dir, path, how)?, how))
            }
            Start::Root(place) => {
                granted(place, needs)?;
                let mut how = how;
                if place.exact {
                    how.resolve |= RESOLVE_NO_SYMLINKS;
                    if how.flags & O_DIRECTORY as u64 != 0 {
                        return Err(refuse(Errno::ENOTDIR, "the root is one file"));
                    }
                }
                let root = self.view.root_fds as usize + place.root;
                Ok((self.script.openat2(root, place.rest(&self.paths[0]), how)?, how))
            }
        }
    }

    /// A script that opens a path only to look at it (`O_PATH`) and makes `call` on it.
    fn look(
        &mut self,
        start: Start,
        path: &[u8],
        needs: Rights,
        follow: bool,
        (call, args): (Sysno, [usize; 6]),
    ) -> Result<(), Refusal> {
        let how = self.how(O_PATH | O_CLOEXEC | if follow { 0 } else { O_NOFOLLOW }, 0);
        let (open, _) = self.opening(start, path, needs, how)?;
        self.script.look(open, call, args);
        Ok(())
    }

    fn open(&mut self, dir: usize, flags: usize, mode: usize) -> Decided<'a> {
        let asked = [flags as u32, mode as u32];
        let flags = if flags & O_PATH != 0 { flags & O_PATH_KNOWN } else { flags & O_KNOWN };
        let mode = if creates(flags) { mode & 0o777 } else { 0 };
        self.open_as(dir, self.how(flags, mode), Some(asked))
    }

    /// As `open`, but for what is not known: that is an error.
    fn openat2(&mut self, dir: usize, size: usize) -> Decided<'a> {
        match size {
            deep::HOW => {}
            ..deep::HOW => return Err(refuse(Errno::EINVAL, "openat2 with less than there ever was")),
            _ => return Err(refuse(Errno::E2BIG, "openat2 with more than is known here")),
        }
        let path = self.carried(0)?;
        let how = self.carried(1)?;
        let word = |i: usize| how.get(8 * i..8 * i + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
        let (flags, mode, resolve) = (word(0), word(1), word(2));
        let known = if flags & O_PATH as u64 != 0 { O_PATH_KNOWN } else { O_KNOWN };
        let modes = if creates(flags as usize) { 0o7777 } else { 0 };
        if flags & !(known as u64) != 0 || mode & !modes != 0 {
            return Err(refuse(Errno::EINVAL, "openat2 with flags or a mode that are not allowed"));
        }
        if resolve & !RESOLVE_KNOWN != 0 || resolve & RESOLVE_IN_ROOT != 0 {
            return Err(refuse(Errno::EINVAL, "openat2 does not resolve so here"));
        }
        if resolve & RESOLVE_BENEATH != 0 {
            if path.starts_with(b"/") {
                return Err(refuse(Errno::EXDEV, "an absolute path is not beneath a folder"));
            }
            if dir as i32 == AT_FDCWD {
                return Err(refuse(Errno::EINVAL, "the working folder is a name here: open it, and begin there"));
            }
        }
        let mut how = self.how(flags as usize, (mode & 0o777) as usize);
        how.resolve |= resolve;
        // A token is for what `open` asks.
        self.open_as(dir, how, (resolve == 0).then_some([flags as u32, mode as u32]))
    }

    fn open_as(&mut self, dir: usize, how: OpenHow, asked: Option<[u32; 2]>) -> Decided<'a> {
        let path = self.carried(0)?;
        let flags = how.flags as usize;
        let mut needs = match flags & O_ACCMODE {
            O_RDONLY => Rights::READ,
            O_WRONLY => Rights::WRITE,
            _ => Rights::READ.and(Rights::WRITE),
        };
        if flags & O_TRUNC != 0 {
            needs = needs.and(Rights::WRITE);
        }
        if creates(flags) {
            needs = needs.and(Rights::CREATE);
        }
        let start = self.start(dir, path)?;
        let (args, how) = self.opening(start, path, needs, how)?;
        self.script.only(Sysno::openat2, args);
        Ok(match (start, asked) {
            (Start::Root(place), Some(asked)) => Verdict::Open { place, asked, how },
            _ => Verdict::Script,
        })
    }

    fn stat(&mut self, dir: usize, flags: usize, call: Sysno, args: [usize; 6]) -> Result<(), Refusal> {
        self.targets(&args)?;
        if int(flags) & !(AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH | AT_SYNC) != 0 {
            return Err(refuse(Errno::EINVAL, "stat with flags that are not known here"));
        }
        self.facts(dir, flags, call, args)
    }

    fn statx(&mut self, dir: usize, flags: usize, mask: usize, to: usize) -> Result<(), Refusal> {
        self.target(to)?;
        if int(flags) & !(AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH | AT_SYNC) != 0 {
            return Err(refuse(Errno::EINVAL, "statx with flags that are not known here"));
        }
        let empty = self.script.put(&[&[0]])?;
        self.facts(dir, flags, Sysno::statx, [0, empty, AT_EMPTY_PATH | flags & AT_SYNC, mask, to, 0])
    }

    fn access(&mut self, dir: usize, mode: usize, flags: usize) -> Result<(), Refusal> {
        if int(mode) & !7 != 0 || int(flags) & !(AT_SYMLINK_NOFOLLOW | AT_EACCESS | AT_EMPTY_PATH) != 0 {
            return Err(refuse(Errno::EINVAL, "access with flags that are not known here"));
        }
        let empty = self.script.put(&[&[0]])?;
        self.facts(dir, flags, Sysno::faccessat2, [0, empty, mode, AT_EMPTY_PATH | flags & AT_EACCESS, 0, 0])
    }

    /// Has `call` made on what a path leads to; with `AT_EMPTY_PATH` that is a descriptor, or the working folder.
    fn facts(&mut self, dir: usize, flags: usize, call: Sysno, args: [usize; 6]) -> Result<(), Refusal> {
        const W_OK: usize = 2;
        let [_, rest @ ..] = args;
        let on = |fd: usize| [fd, rest[0], rest[1], rest[2], rest[3], rest[4]];
        let mut path = self.carried(0)?;
        if path.is_empty() && flags & AT_EMPTY_PATH != 0 {
            if dir as i32 != AT_FDCWD {
                let fd = self.guest_fd(dir)?;
                self.script.only(call, on(fd));
                return Ok(());
            }
            path = b".";
        }
        let writes = call == Sysno::faccessat2 && args[2] & W_OK != 0;
        let start = self.start(dir, path)?;
        if let Some(root) = self.bare(start).filter(|_| !writes) {
            self.script.only(call, on(root));
            return Ok(());
        }
        let needs = if writes { Rights::READ.and(Rights::WRITE) } else { Rights::READ };
        self.look(start, path, needs, flags & AT_SYMLINK_NOFOLLOW == 0, (call, args))
    }

    fn statfs(&mut self, call: Sysno, args: [usize; 6]) -> Result<(), Refusal> {
        self.targets(&args)?;
        let path = self.carried(0)?;
        let start = self.start(CWD, path)?;
        self.look(start, path, Rights::READ, true, (call, args))
    }

    /// A link relative to a descriptor, which the broker does not have: T reads it by the name in its folder. If the guest puts
    /// another folder there meanwhile, it could as well have named that.
    fn readlinkat(&mut self, dir: usize, to: usize, len: usize) -> Result<(), Refusal> {
        self.target(to)?;
        let path = self.carried(0)?;
        let (folder, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(0) => (b"/".as_slice(), path.get(1..).unwrap_or_default()),
            Some(i) => (path.get(..i).unwrap_or_default(), path.get(i + 1..).unwrap_or_default()),
            None => (b".".as_slice(), path),
        };
        if matches!(name, b"" | b"." | b"..") {
            return Err(refuse(Errno::EINVAL, "a folder is no symbolic link"));
        }
        if path.starts_with(b"/") && self.locate(0, dir, path).is_ok_and(|place| self.is_root(place)) {
            return Err(refuse(Errno::EINVAL, "a root is no symbolic link"));
        }
        let start = self.start(dir, folder)?;
        if !self.view.policy.common_rights().has(Rights::READ) {
            return Err(refuse(Errno::EACCES, "relative to a descriptor, all roots must allow it"));
        }
        let how = self.how(O_PATH | O_CLOEXEC | O_DIRECTORY, 0);
        let (open, _) = self.opening(start, folder, Rights::READ, how)?;
        let name = self.script.put(&[name, &[0]])?;
        self.script.look(open, Sysno::readlinkat, [0, name, to, len, 0, 0]);
        Ok(())
    }

    pub(super) fn files(&mut self, call: Sysno, args: &[usize; 6]) -> Result<Option<Verdict<'a>>, Refusal> {
        let [a, b, c, d, e, _] = *args;
        match call {
            Sysno::open => return self.open(CWD, b, c).map(Some),
            Sysno::creat => return self.open(CWD, O_CREAT | O_WRONLY | O_TRUNC, b).map(Some),
            Sysno::openat => return self.open(a, c, d).map(Some),
            Sysno::openat2 => return self.openat2(a, d).map(Some),
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
            Sysno::statx => self.statx(a, c, d, e)?,
            Sysno::access => self.access(CWD, b, 0)?,
            Sysno::faccessat => self.access(a, c, 0)?,
            Sysno::faccessat2 => self.access(a, c, d)?,
            Sysno::statfs => self.statfs(Sysno::fstatfs, [0, b, 0, 0, 0, 0])?,
            #[cfg(target_arch = "x86")]
            Sysno::statfs64 => self.statfs(Sysno::fstatfs64, [0, b, c, 0, 0, 0])?,
            Sysno::fcntl => return self.fcntl(call, args).map(|()| Some(Verdict::Script)),
            #[cfg(target_arch = "x86")]
            Sysno::fcntl64 => return self.fcntl(call, args).map(|()| Some(Verdict::Script)),
            Sysno::flock => {
                self.guest_fd(a)?;
                self.shared_state()?;
                self.script.only(call, [a, b, 0, 0, 0, 0]);
            }
            Sysno::readlinkat if a as i32 != AT_FDCWD => self.readlinkat(a, c, d)?,
            Sysno::getcwd => return Ok(Some(Verdict::Getcwd { size: b })),
            _ => return self.changes(call, args).map(|change| change.map(Verdict::Files)),
        }
        Ok(Some(Verdict::Script))
    }

    fn fcntl(&mut self, call: Sysno, args: &[usize; 6]) -> Result<(), Refusal> {
        let [fd, cmd, arg, ..] = *args;
        self.guest_fd(fd)?;
        self.target(arg)?;
        if FCNTL_LOCKS.contains(&cmd) || cmd == F_SETFL && arg & O_ASYNC == 0 {
            self.shared_state()?;
        } else if !FCNTL.contains(&cmd) {
            return Err(refuse(Errno::EINVAL, "this operation of fcntl is not allowed"));
        }
        self.script.only(call, [fd, cmd, arg, 0, 0, 0]);
        Ok(())
    }

    /// Whether what a descriptor shares with all that have the same open file may be changed. The descriptor may be one that
    /// the embedder has, too.
    fn shared_state(&self) -> Result<(), Refusal> {
        match self.view.policy.allows_locks_and_flags() {
            true => Ok(()),
            false => Err(refuse(Errno::EPERM, "the policy does not allow locks and flags of open files")),
        }
    }
}

/// An argument that the kernel takes as an `int`: what is above is nobody's.
pub(super) fn int(arg: usize) -> usize {
    arg as u32 as usize
}

fn granted(place: Place, needs: Rights) -> Result<(), Refusal> {
    if place.rights.has(needs) { Ok(()) } else { Err(refuse(Errno::EACCES, "the root does not allow it")) }
}

/// Whether flags of `open` create files: on a root without that right they open what is there, and say EACCES for what is not.
fn creates(flags: usize) -> bool {
    flags & (O_CREAT | O_TMPFILE) != 0 && flags & O_PATH == 0
}
