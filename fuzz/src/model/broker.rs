//! What the broker decides.

use ascetic::policy::{Bounds, Decision, Rights};

use super::paths::{self, Place};
use super::{Model, files, in_vault, is_own};

/// A request, and what is known of the sandbox.
pub struct Asked<'a> {
    /// The policy.
    pub model: &'a Model,
    /// The vault and the protected descriptors.
    pub bounds: Bounds,
    /// The sandbox's own memory, from and to.
    pub own: (usize, usize),
    /// The roots that were taken back.
    pub revoked: u32,
    /// The first root's descriptor.
    pub root_fds: u32,
    /// The working folder.
    pub cwd: &'a [u8],
    /// The call.
    pub nr: u32,
    /// Its arguments.
    pub args: [usize; 6],
    /// What came with it.
    pub payload: &'a [u8],
}

/// An argument of a step.
#[derive(Debug, PartialEq, Eq)]
pub enum Arg {
    /// As it is.
    Is(usize),
    /// The address of these bytes.
    At(Vec<u8>),
}

/// A call that T is to make: what the step before opened stands in for its first argument with `on_opened`, and with `saves`
/// it opens that.
#[derive(Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "said above")]
pub struct Call {
    pub nr: u32,
    pub args: Vec<Arg>,
    pub saves: bool,
    pub on_opened: bool,
    /// Whether its result is the guest's.
    pub keeps: bool,
}

/// What the broker is to do.
#[derive(Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as the broker's own")]
pub enum Want {
    Refuse(i32),
    Script(Vec<Call>),
    /// A script that may be left as a token: the root, the path below it, flags and mode as they were asked for.
    Open(Vec<Call>, (usize, Vec<u8>), [u32; 2]),
    /// A change: its name, the roots and paths that it is about, and its other arguments.
    Change(&'static str, Vec<(usize, Vec<u8>)>, Vec<u64>, Option<Vec<u8>>),
    Getcwd(usize),
    Clone {
        tls: Option<u64>,
        ids: usize,
        tids: [usize; 2],
    },
    ExitGroup,
    Signal(u32, i32),
}

/// A decision, or the `errno` of a refusal.
pub type Decided<T> = Result<T, i32>;

/// What a call carries, one behind the other.
enum Carried {
    /// Bytes up to and with a zero.
    Path,
    /// So many bytes.
    Bytes(usize),
}

/// A script of one call, with the arguments as they are.
pub fn only(nr: u32, args: [usize; 6]) -> Want {
    Want::Script(vec![one(nr, args.map(Arg::Is).into())])
}

/// One call, whose result is the guest's.
pub fn one(nr: u32, args: Vec<Arg>) -> Call {
    Call { nr, args, saves: false, on_opened: false, keeps: true }
}

impl Asked<'_> {
    /// What the broker is to do.
    pub fn decide(&self) -> Want {
        self.decided().unwrap_or_else(Want::Refuse)
    }

    fn decided(&self) -> Decided<Want> {
        let errno = match self.model.decide(&self.bounds, self.nr, &self.args) {
            Decision::Token => return Err(libc::ESTALE),
            Decision::Allow => return Err(libc::EAGAIN),
            Decision::Ask(errno) => errno,
        };
        if self.model.refuses(self.nr) {
            return Err(errno);
        }
        if !self.model.roots.is_empty()
            && let Some(want) = files::decide(self)?
        {
            return Ok(want);
        }
        if self.model.memory
            && let Some(want) = self.memory()?
        {
            return Ok(want);
        }
        if !self.model.families.is_empty()
            && let Some(want) = super::sockets::decide(self)?
        {
            return Ok(want);
        }
        self.others(errno)
    }

    /// What the call is called.
    pub fn name(&self) -> &'static str {
        super::name(self.nr)
    }

    /// Whether it is the call of this name.
    pub fn is(&self, name: &str) -> bool {
        self.name() == name
    }

    /// The bytes that were carried as number `i`, without a path's zero.
    pub fn carried(&self, i: usize) -> Decided<Vec<u8>> {
        let mut rest = self.payload;
        for (n, what) in self.carries().into_iter().enumerate() {
            let (thing, behind) = match what {
                Carried::Path if rest.is_empty() => return Err(libc::EFAULT),
                Carried::Path => {
                    let end = rest.iter().position(|byte| *byte == 0).ok_or(libc::ENAMETOOLONG)?;
                    (&rest[..end], &rest[end + 1..])
                }
                Carried::Bytes(len) if len > rest.len() => return Err(libc::EFAULT),
                Carried::Bytes(len) => rest.split_at(len),
            };
            if n == i {
                return Ok(thing.to_vec());
            }
            rest = behind;
        }
        Err(libc::EFAULT)
    }

    fn carries(&self) -> Vec<Carried> {
        use Carried::{Bytes, Path};
        let [_, _, c, d, e, f] = self.args;
        match self.name() {
            "open" | "creat" | "stat" | "lstat" | "access" | "readlink" | "mkdir" | "rmdir" | "unlink" | "chmod"
            | "truncate" | "statfs" | "chdir" | "openat" | "statx" | "faccessat" | "faccessat2" | "readlinkat"
            | "mkdirat" | "unlinkat" | "fchmodat" | "newfstatat" => vec![Path],
            "rename" | "link" | "symlink" | "renameat" | "renameat2" | "linkat" | "symlinkat" => vec![Path, Path],
            "openat2" if d >= 24 => vec![Path, Bytes(24)],
            "utimensat" if c != 0 => vec![Path, Bytes(32)],
            "utimensat" => vec![Path],
            "bind" | "connect" => vec![Bytes(c)],
            "sendto" if e != 0 => vec![Bytes(f)],
            _ => vec![],
        }
    }

    /// A descriptor of the guest's.
    pub fn guests(&self, fd: usize) -> Decided<()> {
        if (fd as u32 as i32) < 0 || is_own(&self.bounds, fd) { Err(libc::EBADF) } else { Ok(()) }
    }

    /// Addresses at which the kernel may store.
    pub fn outside(&self, list: &[usize]) -> Decided<()> {
        if list.iter().any(|at| in_vault(&self.bounds, *at)) { Err(libc::EFAULT) } else { Ok(()) }
    }

    /// Where a path leads: not relative to a descriptor.
    pub fn locate(&self, dir: usize, path: &[u8]) -> Decided<Place> {
        if !paths::fits(self.cwd, path) {
            return Err(libc::ENAMETOOLONG);
        }
        if path.is_empty() {
            return Err(libc::ENOENT);
        }
        if path[0] != b'/' && dir as i32 != libc::AT_FDCWD {
            return Err(libc::EACCES);
        }
        let place = paths::locate(&self.model.roots, self.cwd, path).ok_or(libc::EACCES)?;
        let revoked = self.revoked.to_le_bytes()[place.root / 8] >> (place.root % 8) & 1 == 1;
        if revoked { Err(libc::EACCES) } else { Ok(place) }
    }

    /// Whether a place allows something.
    pub fn granted(place: &Place, needs: Rights) -> Decided<()> {
        if place.rights.has(needs) { Ok(()) } else { Err(libc::EACCES) }
    }

    /// The pages that a range touches, and one more where it does not begin with a page, are not the sandbox's.
    fn free(&self, addr: usize, len: usize) -> Decided<()> {
        const PAGE: u128 = 4096;
        let (from, len) = (addr as u128 / PAGE * PAGE, (len.max(1) as u128).div_ceil(PAGE) * PAGE);
        let end = from + len + if (addr as u128).is_multiple_of(PAGE) { 0 } else { PAGE };
        if end >= 1 << 64 {
            return Err(libc::EINVAL);
        }
        let meets = (self.own.0 as u128) < end && from < self.own.1 as u128;
        if meets { Err(libc::EPERM) } else { Ok(()) }
    }

    fn protection(&self, prot: usize, of_file: bool) -> Decided<()> {
        let has = |bit: i32| prot & bit as usize != 0;
        let known = prot < 8;
        let may_execute = self.model.executable || of_file && self.model.common().has(Rights::EXECUTE);
        let both = has(libc::PROT_EXEC) && has(libc::PROT_WRITE);
        if known && (!has(libc::PROT_EXEC) || may_execute) && !(both && self.model.w_xor_x) {
            Ok(())
        } else {
            Err(libc::EACCES)
        }
    }

    fn memory(&self) -> Decided<Option<Want>> {
        let [mut a, b, c, d, e, f] = self.args;
        let low = |at: usize| if at < 65536 { Err(libc::EPERM) } else { Ok(()) };
        if self.is("mmap") {
            let known = [
                libc::MAP_SHARED,
                libc::MAP_PRIVATE,
                libc::MAP_FIXED,
                libc::MAP_ANONYMOUS,
                libc::MAP_32BIT,
                libc::MAP_DENYWRITE,
                libc::MAP_EXECUTABLE,
                libc::MAP_NORESERVE,
                libc::MAP_POPULATE,
                libc::MAP_NONBLOCK,
                libc::MAP_STACK,
                libc::MAP_FIXED_NOREPLACE,
            ];
            let known: usize = known.iter().map(|flag| *flag as usize).sum();
            if d | known != known {
                return Err(libc::EINVAL);
            }
            let of_file = d & libc::MAP_ANONYMOUS as usize == 0;
            self.protection(c, of_file)?;
            if d & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) as usize != 0 {
                self.free(a, b)?;
                low(a)?;
            } else if a < 65536 {
                a = 0;
            }
            if of_file {
                self.guests(e)?;
            }
            return Ok(Some(only(self.nr, [a, b, c, d, e, f])));
        }
        match self.name() {
            "brk" if a >= self.own.0 && a < self.own.1 => return Err(libc::ENOMEM),
            "brk" => {}
            name @ ("munmap" | "msync" | "mincore" | "mprotect" | "madvise" | "mremap") => {
                self.free(a, b)?;
                match name {
                    "mincore" => self.outside(&[c])?,
                    "mprotect" => self.protection(c, false)?,
                    "madvise" => {
                        let known = [
                            libc::MADV_NORMAL,
                            libc::MADV_RANDOM,
                            libc::MADV_SEQUENTIAL,
                            libc::MADV_WILLNEED,
                            libc::MADV_DONTNEED,
                            libc::MADV_FREE,
                            libc::MADV_HUGEPAGE,
                            libc::MADV_NOHUGEPAGE,
                            libc::MADV_DONTDUMP,
                            libc::MADV_DODUMP,
                            libc::MADV_COLD,
                            libc::MADV_PAGEOUT,
                        ];
                        if !known.iter().any(|known| *known as usize == c) {
                            return Err(libc::EINVAL);
                        }
                    }
                    "mremap" => {
                        let (fixed, stays) = (d & 2 != 0, d & 4 != 0);
                        if d > 7 {
                            return Err(libc::EINVAL);
                        }
                        if fixed || stays {
                            self.free(e, c)?;
                        }
                        if fixed || stays && e != 0 {
                            low(e)?;
                        }
                    }
                    _ => {}
                }
            }
            _ => return Ok(None),
        }
        Ok(Some(only(self.nr, self.args)))
    }

    fn others(&self, errno: i32) -> Decided<Want> {
        let [a, b, c, d, e, _] = self.args;
        let threads = self.model.threads > 1;
        if self.is("ioctl") && self.model.ioctls.contains(&(b as u32)) {
            self.guests(a)?;
            self.outside(&[c])?;
            return Ok(only(self.nr, [a, b as u32 as usize, c, 0, 0, 0]));
        }
        if self.is("prlimit64") && self.model.memory && a == 0 && c == 0 {
            self.outside(&[d])?;
            return Ok(only(self.nr, [0, b, 0, d, 0, 0]));
        }
        if self.is("clone") && threads {
            let must = [
                libc::CLONE_VM,
                libc::CLONE_FS,
                libc::CLONE_FILES,
                libc::CLONE_SIGHAND,
                libc::CLONE_THREAD,
                libc::CLONE_SYSVSEM,
            ];
            let ids = [libc::CLONE_PARENT_SETTID, libc::CLONE_CHILD_CLEARTID, libc::CLONE_CHILD_SETTID];
            let may = [libc::CLONE_SETTLS, libc::CLONE_DETACHED];
            let sum = |list: &[i32]| list.iter().map(|flag| *flag as usize).sum::<usize>();
            let all = sum(&must) + sum(&ids) + sum(&may);
            if !must.iter().all(|flag| a & *flag as usize != 0) || a | all != all {
                return Err(libc::EPERM);
            }
            self.outside(&[c, d])?;
            let tls = (a & libc::CLONE_SETTLS as usize != 0).then_some(e as u64);
            return Ok(Want::Clone { tls, ids: a & sum(&ids), tids: [c, d] });
        }
        match self.name() {
            "exit_group" if threads => Ok(Want::ExitGroup),
            "tgkill" if self.model.signals => Ok(Want::Signal(b as u32, c as i32)),
            "tkill" | "kill" if self.model.signals => Ok(Want::Signal(a as u32, b as i32)),
            _ => Err(errno),
        }
    }
}
