//! The broker's decisions: a pure function from a request and what is known of the sandbox to a verdict.
//!
//! Nothing here makes a system call. What comes out is either a script for T, whose pointers lead into the verdict or to
//! guest memory that only the kernel looks at, or something for the broker to do itself.

use crate::abi::{DATA, NR_TOKEN, OpenHow, PAGE, STEP_FIRST, STEP_KEEP, STEP_REPLY, STEP_SAVE, STEP_STOP, STEPS, Step};
use crate::birth::Thread;
use crate::broker::path::{self, Place, Whole};
use crate::deep::{self, Carry};
use crate::policy::{Bounds, Decision, Policy, Rights};
use crate::sys::{Errno, Sysno};

/// `AT_FDCWD`
pub const AT_FDCWD: i32 = -100;
const AT_SYMLINK_NOFOLLOW: usize = 0x100;
const AT_REMOVEDIR: usize = 0x200;
const AT_SYMLINK_FOLLOW: usize = 0x400;
const AT_EMPTY_PATH: usize = 0x1000;

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

const MAP_FIXED: usize = 0x10;
const MAP_ANONYMOUS: usize = 0x20;
const MAP_FIXED_NOREPLACE: usize = 0x10_0000;
/// `MAP_SHARED`, `PRIVATE`, `SHARED_VALIDATE`, `FIXED`, `ANONYMOUS`, `32BIT`, `DENYWRITE`, `EXECUTABLE`, `NORESERVE`,
/// `POPULATE`, `NONBLOCK`, `STACK`, `FIXED_NOREPLACE`. Not `GROWSDOWN`, which moves by itself, nor `LOCKED`.
const MAP_KNOWN: usize = 0x3 | 0x10 | 0x20 | 0x40 | 0x800 | 0x1000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000 | 0x10_0000;
const PROT_KNOWN: usize = 7;
const MREMAP_MAYMOVE: usize = 1;
const MREMAP_FIXED: usize = 2;
const MREMAP_DONTUNMAP: usize = 4;
/// The lowest address that a guest may map (`mmap_min_addr` may be lower, or not apply).
const LOW: usize = 64 * 1024;
/// `MADV_NORMAL` to `DONTNEED`, `FREE`, `HUGEPAGE`, `NOHUGEPAGE`, `DONTDUMP`, `DODUMP`, `COLD`, `PAGEOUT`.
const MADVICE: [usize; 12] = [0, 1, 2, 3, 4, 8, 14, 15, 16, 17, 20, 21];

/// `F_DUPFD`, `GETFD`, `SETFD`, `GETFL`, `GETLK`, `SETLK`, `SETLKW`, the same for 64 bits on i386, for open file descriptions,
/// `F_DUPFD_CLOEXEC`, `F_GETPIPE_SZ`, `F_GET_SEALS`. Not `SETOWN` and `SETSIG`, which aim signals.
const FCNTL: [usize; 15] = [0, 1, 2, 3, 5, 6, 7, 12, 13, 14, 36, 37, 38, 1030, 1032];
const F_SETFL: usize = 4;

/// What the broker knows of a sandbox when it decides.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The policy.
    pub policy: &'a Policy<'a>,
    /// The vault and the protected descriptors.
    pub bounds: Bounds,
    /// What no change of mappings may meet: from (included) to (excluded).
    pub own: (usize, usize),
    /// The roots that were taken back, a bit for each.
    pub revoked: u32,
    /// The number of the first root's descriptor in the sandbox.
    pub root_fds: u32,
    /// The guest's working folder: absolute, without NUL.
    pub cwd: &'a [u8],
    /// Where in the sandbox the verdict's data is.
    pub data: usize,
}

/// A request, as copied from the mailbox: an allegation.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The call's number.
    pub nr: u32,
    /// Its arguments.
    pub args: [usize; 6],
    /// What its pointers lead to ([`deep::carried`]).
    pub payload: &'a [u8],
}

/// A script for T and the data that its pointers lead to.
#[derive(Debug)]
pub struct Answer<'a> {
    /// The steps.
    pub script: &'a mut [Step; STEPS],
    /// The data.
    pub data: &'a mut [u8; DATA],
}

/// What is to be done about a request.
#[allow(clippy::large_enum_variant, reason = "there is no heap to put the paths on, and one of these at a time")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// T executes the script in the [`Answer`].
    Script,
    /// T executes the script, and what it opens, in this way, may be left as a token.
    Open {
        /// The path as the guest gave it, absolute.
        whole: Whole,
        /// Where it is.
        place: Place,
        /// Flags and mode as the guest gave them.
        asked: [u32; 2],
        /// How it is opened.
        how: OpenHow,
    },
    /// Refused.
    Refuse(Refusal),
    /// The broker does it, with descriptors that no guest can reach.
    Files(Change<'a>),
    /// The guest wants to know its working folder: `size` bytes are free for it.
    Getcwd {
        /// Bytes.
        size: usize,
    },
    /// A new thread.
    Clone {
        /// What is different about it.
        thread: Thread,
    },
    /// Every thread ends.
    ExitGroup,
    /// A signal for a thread of the guest, by its id; 0, or the guest's process id, for the first.
    Signal {
        /// The thread.
        tid: u32,
        /// The signal.
        sig: i32,
    },
}

/// A refusal: the `errno`, and the rule that it follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the guest is told.
    pub errno: i32,
    /// The rule, in words.
    pub rule: &'static str,
}

/// A change of names or attributes of files. The paths are below roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// `mkdir`
    Mkdir(Whole, Place, u32),
    /// `unlink`, or with `true` `rmdir`
    Unlink(Whole, Place, bool),
    /// `rename`, with the flags of `renameat2`
    Rename([(Whole, Place); 2], usize),
    /// `link`
    Link([(Whole, Place); 2]),
    /// `symlink`: what it says, and where it is
    Symlink(&'a [u8], Whole, Place),
    /// `chmod`
    Chmod(Whole, Place, u32),
    /// `utimensat`: the times, or now
    Utimens(Whole, Place, Option<&'a [u8]>),
    /// `chdir`
    Chdir(Whole, Place),
}

/// Arguments of an `openat2`, and where that is, if it is not relative to a descriptor of the guest's.
type Opening = ([usize; 6], Option<(Whole, Place, OpenHow)>);

type Decided<'a> = core::result::Result<Verdict<'a>, Refusal>;

fn refuse(errno: Errno, rule: &'static str) -> Refusal {
    Refusal { errno: errno.into_raw(), rule }
}

/// Decides.
pub fn decide<'a>(view: &View<'_>, request: &Request<'a>, answer: &mut Answer<'_>) -> Verdict<'a> {
    Case { view, request, answer, steps: 0, used: 0 }.decide().unwrap_or_else(Verdict::Refuse)
}

struct Case<'v, 'a, 'm, 'w> {
    view: &'v View<'v>,
    request: &'v Request<'a>,
    answer: &'m mut Answer<'w>,
    steps: usize,
    used: usize,
}

impl<'a> Case<'_, 'a, '_, '_> {
    fn decide(&mut self) -> Decided<'a> {
        let (nr, args) = (self.request.nr, self.request.args);
        let errno = match self.view.policy.decide(&self.view.bounds, nr, &args) {
            Decision::Ask(errno) => errno,
            // T asked even so: the mailbox changed meanwhile, or a token is no longer good.
            Decision::Token => return Err(refuse(Errno::ESTALE, "the token is not valid")),
            Decision::Allow => return Err(refuse(Errno::EAGAIN, "the request changed while it was made")),
        };
        if self.view.policy.refuses(nr) {
            return Err(Refusal { errno, rule: "the policy refuses the call by name" });
        }
        let unknown = Refusal { errno, rule: "no rule allows the call with these arguments" };
        if nr == NR_TOKEN {
            return Err(unknown);
        }
        let call = Sysno::new(nr as usize).ok_or(unknown)?;
        let policy = self.view.policy;
        if policy.roots_len() > 0 {
            if let Some(verdict) = self.files(call, &args)? {
                return Ok(verdict);
            }
        }
        if policy.maps() && self.memory(call, &args)? {
            return Ok(Verdict::Script);
        }
        if policy.has_sockets() && self.sockets(call, &args)? {
            return Ok(Verdict::Script);
        }
        self.others(call, &args, unknown)
    }

    // Scripts.

    fn step(&mut self, call: Sysno, args: [usize; 6], flags: u32) {
        if let Some(step) = self.answer.script.get_mut(self.steps) {
            *step = Step { nr: call as u32, flags, args, ..Step::default() };
            self.steps += 1;
        }
    }

    /// Ends the script; the reply is what a step kept.
    fn reply_kept(&mut self) {
        self.end([0; 6], STEP_KEEP);
    }

    fn end(&mut self, args: [usize; 6], flags: u32) {
        if let Some(step) = self.answer.script.get_mut(self.steps) {
            *step = Step { nr: STEP_REPLY, flags, args, ..Step::default() };
        }
    }

    /// A script of one call.
    fn only(&mut self, call: Sysno, args: [usize; 6]) {
        self.step(call, args, STEP_KEEP);
        self.reply_kept();
    }

    /// Puts bytes where the script can point to, and returns where that is in the sandbox.
    fn put(&mut self, parts: &[&[u8]]) -> Result<usize, Refusal> {
        let start = self.used;
        for part in parts {
            let room = self.answer.data.get_mut(self.used..self.used + part.len());
            room.ok_or(refuse(Errno::ENAMETOOLONG, "what the arguments point to is too long"))?.copy_from_slice(part);
            self.used += part.len();
        }
        self.used = self.used.next_multiple_of(8);
        Ok(self.view.data + start)
    }

    // What a request carries.

    /// The thing that was carried as number `i`; paths without their NUL.
    fn carried(&self, i: usize) -> Result<&'a [u8], Refusal> {
        let mut rest = self.request.payload;
        let missing = refuse(Errno::EFAULT, "what the arguments point to cannot be read");
        for (n, carry) in deep::carried(self.request.nr, &self.request.args).into_iter().flatten().enumerate() {
            let (thing, behind) = match carry {
                Carry::Path(_) => {
                    if rest.is_empty() {
                        return Err(missing);
                    }
                    let end = rest.iter().position(|byte| *byte == 0);
                    let end = end.ok_or(refuse(Errno::ENAMETOOLONG, "the path has no end"))?;
                    (rest.get(..end), rest.get(end + 1..))
                }
                Carry::Counted(_, len) => {
                    let len = self.request.args.get(len).copied().unwrap_or(0);
                    (rest.get(..len), rest.get(len..))
                }
                Carry::Fixed(_, len) => (rest.get(..len), rest.get(len..)),
            };
            let thing = thing.ok_or(missing)?;
            if n == i {
                return Ok(thing);
            }
            rest = behind.unwrap_or_default();
        }
        Err(missing)
    }

    fn guest_fd(&self, fd: usize) -> Result<usize, Refusal> {
        let bounds = &self.view.bounds;
        if (fd as u32).wrapping_sub(bounds.fd_lo) < bounds.fd_len {
            return Err(refuse(Errno::EBADF, "the descriptor is the sandbox's own"));
        }
        Ok(fd)
    }

    /// Where the kernel is to store a result.
    fn target(&self, at: usize) -> Result<usize, Refusal> {
        if at.wrapping_sub(self.view.bounds.vault_lo) < self.view.bounds.vault_len {
            return Err(refuse(Errno::EFAULT, "the address is in the vault"));
        }
        Ok(at)
    }

    /// No argument leads into the vault.
    fn targets(&self, args: &[usize; 6]) -> Result<(), Refusal> {
        args.iter().try_for_each(|arg| self.target(*arg).map(drop))
    }

    // Files.

    /// Where a path leads, if it may be looked at with these rights. `dir` is the descriptor that it is relative to.
    fn place(&self, dir: usize, path: &[u8], needs: Rights) -> Result<(Whole, Place), Refusal> {
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

    fn files(&mut self, call: Sysno, args: &[usize; 6]) -> Result<Option<Verdict<'a>>, Refusal> {
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

    /// Changes that the broker makes itself: between two steps of T's, another thread of the guest could put a descriptor of
    /// its own in the place of the folder.
    fn changes(&mut self, call: Sysno, args: &[usize; 6]) -> Result<Option<Change<'a>>, Refusal> {
        const CWD: usize = AT_FDCWD as usize;
        let [a, b, c, d, e, _] = *args;
        let create = Rights::CREATE;
        let path = |i: usize| self.carried(i);
        Ok(Some(match call {
            Sysno::mkdir | Sysno::mkdirat => {
                let (dir, mode) = if call == Sysno::mkdir { (CWD, b) } else { (a, c) };
                let (whole, place) = self.place(dir, path(0)?, create)?;
                Change::Mkdir(whole, place, (mode & 0o777) as u32)
            }
            Sysno::unlink | Sysno::rmdir | Sysno::unlinkat => {
                let dir = if call == Sysno::unlinkat { a } else { CWD };
                let (whole, place) = self.place(dir, path(0)?, create)?;
                Change::Unlink(whole, place, call == Sysno::rmdir || call == Sysno::unlinkat && c & AT_REMOVEDIR != 0)
            }
            Sysno::rename | Sysno::renameat | Sysno::renameat2 => {
                let dirs = if call == Sysno::rename { [CWD; 2] } else { [a, c] };
                let flags = if call == Sysno::renameat2 { e } else { 0 };
                if flags & !3 != 0 {
                    return Err(refuse(Errno::EINVAL, "renameat2 with more than is known here"));
                }
                let from = self.place(dirs[0], path(0)?, create)?;
                Change::Rename([from, self.place(dirs[1], path(1)?, create)?], flags)
            }
            Sysno::link | Sysno::linkat => {
                let dirs = if call == Sysno::link { [CWD; 2] } else { [a, c] };
                if call == Sysno::linkat && e & (AT_SYMLINK_FOLLOW | AT_EMPTY_PATH) != 0 {
                    return Err(refuse(Errno::EACCES, "linkat does not follow links here"));
                }
                // The new name gives the file the rights of its root: the old root must have as many.
                let to = self.place(dirs[1], path(1)?, create)?;
                let from = self.place(dirs[0], path(0)?, create.and(to.1.rights))?;
                Change::Link([from, to])
            }
            Sysno::symlink | Sysno::symlinkat => {
                let (dir, target) = (if call == Sysno::symlink { CWD } else { b }, path(0)?);
                let (whole, place) = self.place(dir, path(1)?, create)?;
                Change::Symlink(target, whole, place)
            }
            Sysno::chmod | Sysno::fchmodat => {
                let (dir, mode) = if call == Sysno::chmod { (CWD, b) } else { (a, c) };
                let (whole, place) = self.place(dir, path(0)?, Rights::WRITE)?;
                Change::Chmod(whole, place, (mode & 0o777) as u32)
            }
            Sysno::utimensat if b != 0 => {
                let (whole, place) = self.place(a, path(0)?, Rights::WRITE)?;
                let times = if c == 0 { None } else { Some(self.carried(1)?) };
                if d & !AT_SYMLINK_NOFOLLOW != 0 {
                    return Err(refuse(Errno::EINVAL, "utimensat with more than is known here"));
                }
                Change::Utimens(whole, place, times)
            }
            Sysno::chdir => {
                let (whole, place) = self.place(CWD, path(0)?, Rights::READ)?;
                Change::Chdir(whole, place)
            }
            _ => return Ok(None),
        }))
    }

    // Memory.

    /// A range, rounded to pages, that meets nothing of the sandbox's own.
    fn range(&self, addr: usize, len: usize) -> Result<(), Refusal> {
        let rounded = len.max(1).checked_next_multiple_of(PAGE).and_then(|len| (addr & !(PAGE - 1)).checked_add(len));
        // An address within a page moves the end by one more.
        let end = rounded.and_then(|end| end.checked_add(if addr % PAGE == 0 { 0 } else { PAGE }));
        let end = end.ok_or(refuse(Errno::EINVAL, "the range wraps around"))?;
        if addr < self.view.own.1 && end > self.view.own.0 {
            return Err(refuse(Errno::EPERM, "the range meets the sandbox's own memory"));
        }
        Ok(())
    }

    fn memory(&mut self, call: Sysno, args: &[usize; 6]) -> Result<bool, Refusal> {
        let [a, b, c, d, e, _] = *args;
        let low = |addr: usize| if addr < LOW { Err(refuse(Errno::EPERM, "the address is too low")) } else { Ok(()) };
        let protection = |prot: usize, of_file| {
            let known = prot & !PROT_KNOWN == 0;
            match known && self.view.policy.allows_protection(prot, of_file) {
                true => Ok(()),
                false => Err(refuse(Errno::EACCES, "the policy does not allow this protection")),
            }
        };
        match call {
            #[cfg(target_arch = "x86_64")]
            Sysno::mmap => {}
            #[cfg(target_arch = "x86")]
            Sysno::mmap2 => {}
            Sysno::munmap | Sysno::msync | Sysno::mincore => self.range(a, b)?,
            Sysno::mprotect => {
                self.range(a, b)?;
                protection(c, false)?;
            }
            Sysno::madvise => {
                self.range(a, b)?;
                if !MADVICE.contains(&c) {
                    return Err(refuse(Errno::EINVAL, "this advice is not allowed"));
                }
            }
            Sysno::mremap => {
                self.range(a, b)?; // where it grows in place, or moves to, nothing is: the kernel sees to that
                if d & !(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP) != 0 {
                    return Err(refuse(Errno::EINVAL, "mremap with more than is known here"));
                }
                if d & (MREMAP_FIXED | MREMAP_DONTUNMAP) != 0 {
                    self.range(e, c)?;
                }
                if d & MREMAP_FIXED != 0 {
                    low(e)?;
                }
            }
            Sysno::brk => {
                // Between the old and the new end lies what the kernel gives or takes; it never maps over anything.
                if a >= self.view.own.0 && a < self.view.own.1 {
                    return Err(refuse(Errno::ENOMEM, "the range meets the sandbox's own memory"));
                }
            }
            _ => return Ok(false),
        }
        let maps = !matches!(
            call,
            Sysno::munmap
                | Sysno::msync
                | Sysno::mincore
                | Sysno::mprotect
                | Sysno::madvise
                | Sysno::mremap
                | Sysno::brk
        );
        if maps {
            if d & !MAP_KNOWN != 0 {
                return Err(refuse(Errno::EINVAL, "mmap with flags that are not allowed"));
            }
            protection(c, d & MAP_ANONYMOUS == 0)?;
            if d & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0 {
                self.range(a, b)?;
                low(a)?;
            }
            if d & MAP_ANONYMOUS == 0 {
                self.guest_fd(e)?;
            }
        } else if call == Sysno::mincore {
            self.target(c)?;
        }
        self.only(call, *args);
        Ok(true)
    }

    // Sockets.

    fn sockets(&mut self, call: Sysno, args: &[usize; 6]) -> Result<bool, Refusal> {
        const SOCK_TYPE: usize = 0xf;
        const AF_UNIX: usize = 1;
        let [a, b, c, d, e, f] = *args;
        match call {
            Sysno::socket => {
                let family = self.view.policy.family_of(a as u16).filter(|_| a <= usize::from(u16::MAX));
                let family = family.ok_or(refuse(Errno::EAFNOSUPPORT, "the policy has no such address family"))?;
                if !matches!(b & SOCK_TYPE, 1 | 2 | 5) {
                    return Err(refuse(Errno::EACCES, "only stream, datagram and sequenced packet sockets"));
                }
                // It could do without: netlink has the kernel at the other end, a packet socket gets everything.
                if family.addresses.is_empty() {
                    return Err(refuse(Errno::EACCES, "the policy lists no address of this family"));
                }
                if !self.view.policy.allows_protocol(family.family, (b & SOCK_TYPE) as u32, c as u32) {
                    return Err(refuse(Errno::EPROTONOSUPPORT, "the policy does not list this protocol"));
                }
            }
            Sysno::socketpair => {
                if a != AF_UNIX || !matches!(b & SOCK_TYPE, 1 | 2 | 5) {
                    return Err(refuse(Errno::EAFNOSUPPORT, "pairs are AF_UNIX"));
                }
                self.target(d)?;
            }
            Sysno::connect | Sysno::bind => {
                self.guest_fd(a)?;
                let address = self.address(0)?;
                self.only(call, [a, address, c, 0, 0, 0]);
                return Ok(true);
            }
            Sysno::sendto => {
                self.guest_fd(a)?;
                self.target(b)?;
                let address = if e == 0 { 0 } else { self.address(0)? };
                self.only(call, [a, b, c, d, address, f]);
                return Ok(true);
            }
            Sysno::listen if !self.view.policy.listens() => {
                return Err(refuse(Errno::EACCES, "the policy does not let sockets listen"));
            }
            Sysno::recvfrom
            | Sysno::listen
            | Sysno::accept4
            | Sysno::shutdown
            | Sysno::getsockname
            | Sysno::getpeername => {
                self.guest_fd(a)?;
                self.targets(args)?;
            }
            #[cfg(target_arch = "x86_64")]
            Sysno::accept => {
                self.guest_fd(a)?;
                self.targets(args)?;
            }
            Sysno::setsockopt | Sysno::getsockopt => {
                self.guest_fd(a)?;
                self.targets(args)?;
                if !self.view.policy.allows_option(b as u32, c as u32) {
                    return Err(refuse(Errno::ENOPROTOOPT, "the policy does not list this option"));
                }
            }
            _ => return Ok(false),
        }
        self.only(call, *args);
        Ok(true)
    }

    /// A socket address that the policy allows, in the verdict's data.
    fn address(&mut self, i: usize) -> Result<usize, Refusal> {
        let address = self.carried(i)?;
        let family = address.get(..2).and_then(|two| two.try_into().ok()).map(u16::from_ne_bytes);
        let family = family.and_then(|family| self.view.policy.family_of(family));
        let allowed = family.is_some_and(|family| family.addresses.iter().any(|listed| address.starts_with(listed)));
        if !allowed {
            return Err(refuse(Errno::EACCES, "the policy does not list this address"));
        }
        self.put(&[address])
    }

    // The rest.

    fn others(&mut self, call: Sysno, args: &[usize; 6], unknown: Refusal) -> Decided<'a> {
        let [a, b, c, d, e, _] = *args;
        let policy = self.view.policy;
        match call {
            Sysno::ioctl if policy.allows_ioctl(b as u32) => {
                self.guest_fd(a)?;
                self.target(c)?;
                self.only(call, [a, b & u32::MAX as usize, c, 0, 0, 0]);
                Ok(Verdict::Script)
            }
            // What may be used, asked only: T's limits are those of the sandbox.
            Sysno::prlimit64 if policy.maps() && a == 0 && c == 0 => {
                self.target(d)?;
                self.only(call, [0, b, 0, d, 0, 0]);
                Ok(Verdict::Script)
            }
            Sysno::clone if policy.limits_of().threads > 1 => self.clone(a, c, d, e),
            Sysno::exit_group if policy.limits_of().threads > 1 => Ok(Verdict::ExitGroup),
            Sysno::tgkill if policy.has_signals() => Ok(Verdict::Signal { tid: b as u32, sig: c as i32 }),
            Sysno::tkill if policy.has_signals() => Ok(Verdict::Signal { tid: a as u32, sig: b as i32 }),
            Sysno::kill if policy.has_signals() => Ok(Verdict::Signal { tid: a as u32, sig: b as i32 }),
            _ => Err(unknown),
        }
    }

    fn clone(&mut self, flags: usize, parent_tid: usize, d: usize, e: usize) -> Decided<'a> {
        const THREAD: usize = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000; // VM FS FILES SIGHAND THREAD SYSVSEM
        const SETTLS: usize = deep::CLONE_SETTLS;
        const IDS: usize = 0x10_0000 | 0x20_0000 | 0x100_0000; // PARENT_SETTID, CHILD_CLEARTID, CHILD_SETTID
        const DETACHED: usize = 0x40_0000;
        if flags & THREAD != THREAD || flags & !(THREAD | SETTLS | IDS | DETACHED) != 0 {
            return Err(refuse(Errno::EPERM, "clone makes threads only"));
        }
        let (child_tid, tls) = if cfg!(target_arch = "x86_64") { (d, e) } else { (e, d) };
        let tids = [parent_tid, child_tid];
        for tid in tids {
            self.target(tid)?;
        }
        let tls = match flags & SETTLS {
            0 => None,
            _ if cfg!(target_arch = "x86_64") => Some([tls as u32, (tls as u64 >> 32) as u32, 0, 0]),
            _ => {
                let desc = self.carried(0)?;
                let word =
                    |i: usize| desc.get(4 * i..4 * i + 4).and_then(|w| w.try_into().ok()).map_or(0, u32::from_ne_bytes);
                Some([word(0), word(1), word(2), word(3)])
            }
        };
        Ok(Verdict::Clone { thread: Thread { tls, ids: flags & IDS, tids } })
    }
}
