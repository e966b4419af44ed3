//! The broker's decisions: a pure function from a request and what is known of the sandbox to a verdict.
//!
//! Nothing here makes a system call. What comes out is either a script for T, whose pointers lead into the verdict or to
//! guest memory that only the kernel looks at, or something for the broker to do itself.

mod changes;
mod files;
mod memory;
mod sockets;

pub use changes::RENAME_EXCHANGE;
pub use files::{O_DIRECTORY, O_NOFOLLOW, O_PATH};

use crate::abi::{DATA, NR_TOKEN, OpenHow, STEP_KEEP, STEP_REPLY, STEPS, Step};
use crate::birth::Thread;
use crate::broker::path::{Place, Whole};
use crate::deep::{self, Carry};
use crate::policy::{Bounds, Decision, Policy};
use crate::sys::{Errno, Sysno};
use core::ffi::CStr;

/// `AT_FDCWD`
pub const AT_FDCWD: i32 = -100;

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

/// Where a decision is written.
#[derive(Debug)]
pub struct Answer<'a> {
    /// The script for T: its steps,
    pub script: &'a mut [Step; STEPS],
    /// and the data that its pointers lead to.
    pub data: &'a mut [u8; DATA],
    /// The paths that the decision is about: a [`Place`] of the verdict is where the first of them is, or the first two.
    pub paths: &'a mut [Whole; 2],
}

/// What is to be done about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// T executes the script in the [`Answer`].
    Script,
    /// T executes the script, and what it opens, in this way, may be left as a token.
    Open {
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

/// A change of names or attributes of files, below roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// `mkdir`
    Mkdir(Place, u32),
    /// `unlink`, or with `true` `rmdir`
    Unlink(Place, bool),
    /// `rename`, with the flags of `renameat2`
    Rename([Place; 2], usize),
    /// `link`
    Link([Place; 2]),
    /// `symlink`: what it says, and where it is
    Symlink(&'a CStr, Place),
    /// `chmod`
    Chmod(Place, u32),
    /// `utimensat`: the times, or now; of a symbolic link itself with `true`
    Utimens(Place, Option<&'a [u8]>, bool),
    /// `truncate`
    Truncate(Place, i64),
    /// `chdir`
    Chdir(Place),
    /// `readlink`, which changes nothing: so many bytes are free for it
    Readlink(Place, usize),
}

type Decided<'a> = core::result::Result<Verdict<'a>, Refusal>;

fn refuse(errno: Errno, rule: &'static str) -> Refusal {
    Refusal { errno: errno.into_raw(), rule }
}

/// Decides.
pub fn decide<'a>(view: &View<'_>, request: &Request<'a>, answer: &mut Answer<'_>) -> Verdict<'a> {
    let Answer { script, data, paths } = answer;
    let script = Script { script, data, at: view.data, steps: 0, used: 0 };
    Case { view, request, script, paths }.decide().unwrap_or_else(Verdict::Refuse)
}

/// The script under construction.
struct Script<'m> {
    script: &'m mut [Step; STEPS],
    data: &'m mut [u8; DATA],
    /// Where in the sandbox the data is.
    at: usize,
    /// Steps and bytes of data so far.
    steps: usize,
    used: usize,
}

impl Script<'_> {
    fn step(&mut self, call: Sysno, args: [usize; 6], flags: u32) {
        if let Some(step) = self.script.get_mut(self.steps) {
            *step = Step { nr: call as u32, flags, args, ..Step::default() };
            self.steps += 1;
        }
    }

    /// Ends the script; the reply is what a step kept.
    fn reply_kept(&mut self) {
        self.end([0; 6], STEP_KEEP);
    }

    fn end(&mut self, args: [usize; 6], flags: u32) {
        if let Some(step) = self.script.get_mut(self.steps) {
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
            let room = self.data.get_mut(self.used..self.used + part.len());
            room.ok_or(refuse(Errno::ENAMETOOLONG, "what the arguments point to is too long"))?.copy_from_slice(part);
            self.used += part.len();
        }
        self.used = self.used.next_multiple_of(8);
        Ok(self.at + start)
    }
}

struct Case<'v, 'a, 'm> {
    view: &'v View<'v>,
    request: &'v Request<'a>,
    script: Script<'m>,
    paths: &'m mut [Whole; 2],
}

impl<'a> Case<'_, 'a, '_> {
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

    /// The path that was carried as number `i`, as C has it: its NUL is behind it.
    fn carried_path(&self, i: usize) -> Result<&'a CStr, Refusal> {
        let begin = self.carried(i)?.as_ptr().addr() - self.request.payload.as_ptr().addr();
        let path = self.request.payload.get(begin..).and_then(|bytes| CStr::from_bytes_until_nul(bytes).ok());
        path.ok_or(refuse(Errno::ENAMETOOLONG, "the path has no end"))
    }

    /// A descriptor that may be the guest's. A negative one is none: `AT_FDCWD` would be T's working folder.
    fn guest_fd(&self, fd: usize) -> Result<usize, Refusal> {
        let bounds = &self.view.bounds;
        if (fd as i32) < 0 {
            return Err(refuse(Errno::EBADF, "there are no negative descriptors"));
        }
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

    fn others(&mut self, call: Sysno, args: &[usize; 6], unknown: Refusal) -> Decided<'a> {
        let [a, b, c, d, e, _] = *args;
        let policy = self.view.policy;
        match call {
            Sysno::ioctl if policy.allows_ioctl(b as u32) => {
                self.guest_fd(a)?;
                self.target(c)?;
                self.script.only(call, [a, b & u32::MAX as usize, c, 0, 0, 0]);
                Ok(Verdict::Script)
            }
            // What may be used, asked only: T's limits are those of the sandbox.
            Sysno::prlimit64 if policy.maps() && a == 0 && c == 0 => {
                self.target(d)?;
                self.script.only(call, [0, b, 0, d, 0, 0]);
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
