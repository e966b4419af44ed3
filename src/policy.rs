//! What T may do for the guest: pure data, pure decisions.
//!
//! ```
//! use ascetic::{policy::Policy, sys::Sysno};
//! const POLICY: Policy = Policy::new().direct(Sysno::getppid).direct(Sysno::nanosleep).refuse(Sysno::clone3, 38);
//! ```
//!
//! A call that may not be direct does not compile:
//!
//! ```compile_fail
//! use ascetic::{policy::Policy, sys::Sysno};
//! const POLICY: Policy = Policy::new().direct(Sysno::kill);
//! ```

mod bad;

pub use bad::{BadFamily, BadRoot, NotDirect, Redirect};

use crate::abi::{
    FUTEX_OPS, NR_TOKEN, PAIRS, ROW_ALLOW, ROW_ERRNO, ROW_FDS, ROW_FUTEX, ROW_REFUSED, ROW_SMALL, ROW_TOKEN, SMALL,
    TABLE_LEN,
};
use crate::direct::{DIRECT, ORDINARY, why_not};
use crate::sys::{EBADF, EFAULT, EINVAL, ENOSYS, FUTEX_CMD_MASK, Sysno};
use bad::{check_path, nested, redirects, refuse_to_build, unwrap_root};
use core::ffi::CStr;
use static_assertions::const_assert;

const_assert!(Sysno::table_size() <= NR_TOKEN as usize);

/// A set of things that may be done below a [`Root`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights(u8);

impl Rights {
    /// Nothing but to know that a folder itself is there, and its attributes. For those on the way to other roots: what
    /// resolves names by itself, as `realpath(3)` does, looks at each of them. Of a file, nothing. It takes nothing away: in a
    /// root that allows more it cannot be ([`BadRoot::Nested`]).
    pub const NONE: Self = Self(0);
    /// Open for reading, list, look at attributes, follow links of the file system.
    pub const READ: Self = Self(1);
    /// Open for writing, truncate, change attributes.
    pub const WRITE: Self = Self(2);
    /// Create, rename and remove names.
    pub const CREATE: Self = Self(4);
    /// Map executable. A mapping's file is known by its descriptor only, so all roots must have this for any to be of use.
    pub const EXECUTE: Self = Self(8);

    /// Both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in this.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What both have.
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// A folder, or one file, and what may be done with what is there. The folder is opened before the sandbox exists; what
/// is mounted below it is not part of it and needs a root of its own.
///
/// Rights are those of names: what has names below several roots can be used by each as that root says. A root inside
/// another can therefore only add rights, and only where the outer one does not let the guest bring other files to the
/// inner one's name; a policy that says otherwise is not built ([`BadRoot::Nested`]). Names that lead to one place in ways
/// that the text does not show (symbolic links in the path of a root, hard links, bind mounts) are the embedder's to know.
#[derive(Clone, Copy, Debug)]
pub struct Root<'a> {
    /// Its absolute path, as the guest names it.
    pub path: &'a CStr,
    /// What may be done.
    pub rights: Rights,
    /// Whether this is one file and not a folder. It need not be there; if it is a folder, there is no sandbox
    /// ([`RootIsFolder`](crate::error::Error::RootIsFolder)). The guest can put none there; whoever else does gives it what is
    /// in it.
    pub exact: bool,
}

/// The most roots of a policy.
pub const ROOTS: usize = 16;

/// An address family of sockets, and whom a guest may talk to in it.
#[derive(Clone, Copy, Debug)]
pub struct Family<'a> {
    /// `AF_*`
    pub family: u16,
    /// The addresses (`struct sockaddr_*` from its first byte on, as many bytes as matter) that it may connect to, bind and
    /// send to. Empty for none: then there is no `socket` of the family, which can reach others without an address, and only
    /// `socketpair` (of `AF_UNIX`) and descriptors that it was given are of use. A datagram socket that has sent has a port of
    /// its own, and gets what anybody sends there.
    pub addresses: &'a [&'a [u8]],
}

/// The most families of a policy, and the most entries of its lists.
pub const FAMILIES: usize = 4;
/// The most `ioctl` numbers and the most socket options of a policy.
pub const LIST: usize = 16;

/// What a sandbox may use at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Pairs at once, the first included (1 to [`PAIRS`]).
    pub threads: u32,
    /// Bytes that the guest may map, beyond what the sandbox starts with; 0 for no limit but the kernel's.
    pub mapped: usize,
    /// Numbers of descriptors below this are the guest's to use; 0 for no limit but the kernel's.
    pub descriptors: u32,
    /// Calls a second that ask the broker; 0 for no limit. Calls beyond wait.
    pub calls: u32,
}

/// A policy: one row for every call number, and what the broker needs to decide on the rest. Build it as a `const`, so
/// that mistakes do not compile.
#[derive(Clone, Debug)]
pub struct Policy<'a> {
    rows: [u32; TABLE_LEN],
    default_errno: u32,
    roots: [Option<Root<'a>>; ROOTS],
    no_links: bool,
    locks_and_flags: bool,
    memory: bool,
    exec: bool,
    w_xor_x: bool,
    families: [Option<Family<'a>>; FAMILIES],
    protocols: [Option<(u16, u32)>; LIST],
    listen: bool,
    options: [Option<(u32, u32)>; LIST],
    ioctls: [Option<u32>; LIST],
    signals: bool,
    limits: Limits,
}

impl<'a> Policy<'a> {
    /// Refuses every call with `ENOSYS`, so that a libc falls back, except for `clock_gettime`: the runtime needs that
    /// to answer the guest's `rdtsc`.
    pub const fn new() -> Self {
        let mut none = Self {
            rows: [ENOSYS as u32; TABLE_LEN],
            default_errno: ENOSYS as u32,
            roots: [None; ROOTS],
            no_links: false,
            locks_and_flags: false,
            memory: false,
            exec: false,
            w_xor_x: false,
            families: [None; FAMILIES],
            protocols: [None; LIST],
            listen: false,
            options: [None; LIST],
            ioctls: [None; LIST],
            signals: false,
            limits: Limits { threads: 1, mapped: 0, descriptors: 0, calls: 0 },
        };
        none.rows[NR_TOKEN as usize] = ROW_TOKEN;
        none.direct(Sysno::clock_gettime)
    }

    /// Allows in the direct lane what an ordinary program's libc needs besides files, memory and threads: time, bytes
    /// through descriptors that the guest holds anyway, new descriptors of kinds that reach nobody else, its own ids. Not what
    /// is [refused](Self::refuse) by name, before or after.
    pub const fn ordinary(mut self) -> Self {
        let mut i = 0;
        while i < ORDINARY.len() {
            if !self.refuses(ORDINARY[i] as u32) {
                self = self.direct(ORDINARY[i]);
            }
            i += 1;
        }
        self
    }

    /// Allows what `rights` say with the folder at `path` (absolute, without `.`, `..` and `//`) and what is below it.
    ///
    /// # Panics
    ///
    /// In a `const`, that is: does not compile. If a policy cannot have the root ([`BadRoot`]).
    pub const fn root(self, path: &'a CStr, rights: Rights) -> Self {
        unwrap_root(self.try_root(Root { path, rights, exact: false }))
    }

    /// Allows what `rights` say with the one file at `path`.
    ///
    /// # Panics
    ///
    /// As [`root`](Self::root).
    pub const fn file(self, path: &'a CStr, rights: Rights) -> Self {
        unwrap_root(self.try_root(Root { path, rights, exact: true }))
    }

    /// Like [`root`](Self::root) and [`file`](Self::file), for policies that are not built at compile time.
    ///
    /// # Errors
    ///
    /// Why the policy cannot have it.
    pub const fn try_root(mut self, root: Root<'a>) -> Result<Self, BadRoot<'a>> {
        if let Err(error) = check_path(root.path.to_bytes()) {
            return Err(error);
        }
        if root.exact && root.path.to_bytes().len() == 1 {
            return Err(BadRoot::NotAFile);
        }
        let mut i = 0;
        while i < FAMILIES {
            if let Some(family) = &self.families[i] {
                if let Some(redirect) = redirects(&root, family) {
                    return Err(BadRoot::Redirects(redirect));
                }
            }
            i += 1;
        }
        let mut i = 0;
        while i < ROOTS {
            match &self.roots[i] {
                None => {
                    self.roots[i] = Some(root);
                    return Ok(self);
                }
                Some(other) => {
                    if let Some(bad) = nested(&root, other) {
                        return Err(bad);
                    }
                    if let Some(bad) = nested(other, &root) {
                        return Err(bad);
                    }
                }
            }
            i += 1;
        }
        Err(BadRoot::TooMany)
    }

    /// Follows no symbolic link below any root.
    pub const fn no_links(mut self) -> Self {
        self.no_links = true;
        self
    }

    /// Where there are roots, allows locks (`flock`, `fcntl`) and the flags of open files (`F_SETFL`): of every descriptor that
    /// the guest has. Those that it keeps it shares with the embedder: one who takes away a log's `O_APPEND`, makes a terminal
    /// non-blocking, or holds a lock for ever, does so to all who have it open.
    pub const fn locks_and_flags(mut self) -> Self {
        self.locks_and_flags = true;
        self
    }

    /// Allows to map, unmap and protect memory: not executable, unless [`executable`](Self::executable) says so too. What the
    /// embedder had mapped writable and executable stays so.
    pub const fn memory(mut self) -> Self {
        self.memory = true;
        self
    }

    /// Allows to make memory executable, as a JIT compiler needs.
    pub const fn executable(mut self) -> Self {
        self.exec = true;
        self
    }

    /// Refuses mappings that are writable and executable at once.
    pub const fn w_xor_x(mut self) -> Self {
        self.w_xor_x = true;
        self
    }

    /// Allows sockets of a family.
    ///
    /// # Panics
    ///
    /// In a `const`, that is: does not compile. If a policy cannot have the family ([`BadFamily`]).
    pub const fn family(self, family: Family<'a>) -> Self {
        match self.try_family(family) {
            Ok(policy) => policy,
            Err(error) => refuse_to_build(&error.parts()),
        }
    }

    /// Like [`family`](Self::family), for policies that are not built at compile time.
    ///
    /// # Errors
    ///
    /// Why the policy cannot have it.
    pub const fn try_family(mut self, family: Family<'a>) -> Result<Self, BadFamily<'a>> {
        let mut i = 0;
        while i < family.addresses.len() {
            if family.addresses[i].is_empty() {
                return Err(BadFamily::NoBytes);
            }
            i += 1;
        }
        let mut i = 0;
        while i < ROOTS {
            if let Some(root) = &self.roots[i] {
                if let Some(redirect) = redirects(root, &family) {
                    return Err(BadFamily::Redirected(redirect));
                }
            }
            i += 1;
        }
        let mut i = 0;
        while i < FAMILIES {
            match &self.families[i] {
                None => {
                    self.families[i] = Some(family);
                    return Ok(self);
                }
                Some(other) if other.family == family.family => return Err(BadFamily::Twice),
                Some(_) => {}
            }
            i += 1;
        }
        Err(BadFamily::TooMany)
    }

    /// Allows sockets of a protocol (`IPPROTO_*`, `NETLINK_*`, …) beside the family's usual ones: TCP streams and UDP datagrams
    /// of `AF_INET` and `AF_INET6`, 0 of all other families.
    ///
    /// # Panics
    ///
    /// If there are [`LIST`] already.
    pub const fn protocol(mut self, family: u16, protocol: u32) -> Self {
        let mut i = 0;
        while i < LIST {
            if self.protocols[i].is_none() {
                self.protocols[i] = Some((family, protocol));
                return self;
            }
            i += 1;
        }
        panic!("too many protocols")
    }

    /// Allows sockets to listen, whatever their family: a descriptor does not say of which it is. One of an internet family
    /// that was not bound before listens at all addresses of the machine, at a port that the kernel chooses.
    pub const fn listen(mut self) -> Self {
        self.listen = true;
        self
    }

    /// Allows to set and to ask for a socket option (`level`, `name`) whose value has no pointers.
    ///
    /// # Panics
    ///
    /// If there are [`LIST`] already.
    pub const fn option(mut self, level: u32, name: u32) -> Self {
        let mut i = 0;
        while i < LIST {
            if self.options[i].is_none() {
                self.options[i] = Some((level, name));
                return self;
            }
            i += 1;
        }
        panic!("too many socket options")
    }

    /// Allows an `ioctl` by its number. What it stores, it stores where the guest says.
    ///
    /// # Panics
    ///
    /// If there are [`LIST`] already.
    pub const fn ioctl(mut self, number: u32) -> Self {
        let mut i = 0;
        while i < LIST {
            if self.ioctls[i].is_none() {
                self.ioctls[i] = Some(number);
                return self;
            }
            i += 1;
        }
        panic!("too many ioctls")
    }

    /// Allows the guest to send signals to its own threads. Without it, a thread can send itself what it handles, and
    /// the signals of the fault reporter.
    pub const fn signals(mut self) -> Self {
        self.signals = true;
        self
    }

    /// Allows this much of everything.
    ///
    /// # Panics
    ///
    /// If the number of threads is not one of 1 to [`PAIRS`].
    pub const fn limits(mut self, limits: Limits) -> Self {
        assert!(limits.threads >= 1 && limits.threads as usize <= PAIRS, "a sandbox has 1 to 256 threads");
        self.limits = limits;
        self
    }

    /// Allows this many threads.
    ///
    /// # Panics
    ///
    /// As [`limits`](Self::limits).
    pub const fn threads(self, threads: u32) -> Self {
        let limits = Limits { threads, ..self.limits };
        self.limits(limits)
    }

    /// The roots, by their numbers.
    pub fn roots(&self) -> impl Iterator<Item = (usize, &Root<'a>)> + '_ {
        self.roots.iter().enumerate().filter_map(|(i, root)| root.as_ref().map(|root| (i, root)))
    }

    /// How many roots there are.
    pub fn roots_len(&self) -> usize {
        self.roots().count()
    }

    /// What all roots allow: that is what a descriptor of a folder, which can be of any root, allows. A root that allows
    /// nothing does not count, because nothing of it is ever opened.
    pub fn common_rights(&self) -> Rights {
        let opened = self.roots().map(|(_, root)| root.rights).filter(|rights| *rights != Rights::NONE);
        opened.reduce(Rights::common).unwrap_or(Rights::NONE)
    }

    /// Whether symbolic links below roots are followed.
    pub fn follows_links(&self) -> bool {
        !self.no_links
    }
    /// Whether locks and flags of open files may be changed.
    pub fn allows_locks_and_flags(&self) -> bool {
        self.locks_and_flags
    }
    /// Whether memory may be mapped.
    pub fn maps(&self) -> bool {
        self.memory
    }
    /// Whether a mapping with `prot` (`PROT_*`) may be made.
    pub fn allows_protection(&self, prot: usize, of_file: bool) -> bool {
        let (write, exec) = (prot & crate::sys::PROT_WRITE != 0, prot & crate::sys::PROT_EXEC != 0);
        let executable = self.exec || of_file && self.common_rights().has(Rights::EXECUTE);
        !exec || executable && !(write && self.w_xor_x)
    }
    /// The family of a socket, if it is allowed.
    pub fn family_of(&self, family: u16) -> Option<&Family<'a>> {
        self.families.iter().flatten().find(|f| f.family == family)
    }
    /// Whether any family is allowed.
    pub fn has_sockets(&self) -> bool {
        self.families[0].is_some()
    }
    /// Whether a socket of this family, type (`SOCK_*` without flags) and protocol may be made.
    pub fn allows_protocol(&self, family: u16, kind: u32, protocol: u32) -> bool {
        const INET: u16 = 2;
        const INET6: u16 = 10;
        const STREAM: u32 = 1;
        const DATAGRAM: u32 = 2;
        const TCP: u32 = 6;
        const UDP: u32 = 17;
        let usual = match (family, kind) {
            (INET | INET6, STREAM) => matches!(protocol, 0 | TCP),
            (INET | INET6, DATAGRAM) => matches!(protocol, 0 | UDP),
            (INET | INET6, _) => false, // 0 is SCTP
            _ => protocol == 0,
        };
        usual || self.protocols.contains(&Some((family, protocol)))
    }
    /// Whether sockets may listen.
    pub fn listens(&self) -> bool {
        self.listen
    }
    /// Whether a socket option is allowed.
    pub fn allows_option(&self, level: u32, name: u32) -> bool {
        self.options.contains(&Some((level, name)))
    }
    /// Whether an `ioctl` is allowed.
    pub fn allows_ioctl(&self, number: u32) -> bool {
        self.ioctls.contains(&Some(number))
    }
    /// Whether the guest may send signals to its own threads.
    pub fn has_signals(&self) -> bool {
        self.signals
    }
    /// The limits.
    pub fn limits_of(&self) -> Limits {
        self.limits
    }

    /// Refuses calls that nothing allows, and nothing refuses by name, with this `errno` (1 to 4095) instead of `ENOSYS`, but
    /// for those that a libc tries first and does without when they are `ENOSYS`.
    pub const fn default_errno(mut self, errno: u32) -> Self {
        check_errno(errno);
        let mut nr = 0;
        while nr < NR_TOKEN as usize {
            if self.rows[nr] & (ROW_ALLOW | ROW_REFUSED) == 0 && !falls_back(nr) {
                self.rows[nr] = errno;
            }
            nr += 1;
        }
        self.default_errno = errno;
        self
    }

    /// Allows a call in the direct lane.
    ///
    /// # Panics
    ///
    /// In a `const`, that is: does not compile. If the call is not on the [list](crate::direct::DIRECT), or was
    /// [refused](Self::refuse).
    pub const fn direct(self, call: Sysno) -> Self {
        match self.try_direct(call) {
            Ok(policy) => policy,
            Err(error) => refuse_to_build(&error.parts()),
        }
    }

    /// Allows a call in the direct lane, for policies that are not built at compile time.
    ///
    /// # Errors
    ///
    /// If the call is not on the [list](crate::direct::DIRECT), or was [refused](Self::refuse).
    pub const fn try_direct(mut self, call: Sysno) -> Result<Self, NotDirect> {
        if self.refuses(call as u32) {
            return Err(NotDirect { call, why: "the policy refuses it by name" });
        }
        let mut i = 0;
        while i < DIRECT.len() {
            if DIRECT[i].call as usize == call as usize {
                self.rows[call as usize] = ROW_ALLOW | DIRECT[i].row;
                return Ok(self);
            }
            i += 1;
        }
        Err(NotDirect { call, why: why_not(call) })
    }

    /// Refuses a call with an `errno` of its own (1 to 4095), whatever else allows it: roots, memory, threads and all the
    /// rest. Another call that does the same is another call (`open` and `openat`). What the runtime answers in the guest
    /// itself (`getpid`, `gettid`, `set_tid_address`, `set_robust_list`, `rseq`, its signals, and what strict mode leaves it) is
    /// not asked for.
    pub const fn refuse(mut self, call: Sysno, errno: u32) -> Self {
        check_errno(errno);
        self.rows[call as usize] = ROW_REFUSED | errno;
        self
    }

    /// Whether a call is refused by name.
    pub const fn refuses(&self, nr: u32) -> bool {
        (nr as usize) < TABLE_LEN && self.rows[nr as usize] & ROW_REFUSED != 0
    }

    /// The table, as T reads it.
    pub fn rows(&self) -> &[u32; TABLE_LEN] {
        &self.rows
    }

    /// The `errno` with which a call is refused that nothing allows.
    pub fn errno(&self, nr: u32) -> i32 {
        match self.rows.get(nr as usize) {
            Some(row) if row & (ROW_ALLOW | ROW_TOKEN) == 0 => (row & ROW_ERRNO) as i32,
            _ => self.default_errno as i32,
        }
    }

    /// What T decides: the readable twin of `arch/*/direct.S`, against which tests hold the assembly, and what the broker
    /// says of calls that T did not make itself.
    pub fn decide(&self, bounds: &Bounds, nr: u32, args: &[usize; 6]) -> Decision {
        let row = self.rows.get(nr as usize).copied().unwrap_or(0);
        if row & ROW_TOKEN != 0 {
            return Decision::Token;
        }
        if row & ROW_ALLOW == 0 {
            return Decision::Ask(self.errno(nr));
        }
        for (i, arg) in args.iter().enumerate() {
            if arg.wrapping_sub(bounds.vault_lo) < bounds.vault_len {
                return Decision::Ask(EFAULT);
            }
            let is_fd = row & ROW_FDS & (1 << i) != 0;
            if is_fd && (*arg as u32).wrapping_sub(bounds.fd_lo) < bounds.fd_len {
                return Decision::Ask(EBADF);
            }
            if i == 0 && row & ROW_SMALL != 0 && *arg as u32 >= SMALL {
                return Decision::Ask(EINVAL);
            }
            if i == 1 && row & ROW_FUTEX != 0 {
                let op = *arg as u32 & FUTEX_CMD_MASK as u32;
                if op >= 32 || FUTEX_OPS >> op & 1 == 0 {
                    return Decision::Ask(ENOSYS);
                }
            }
        }
        Decision::Allow
    }
}

impl Default for Policy<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// What no argument may point to.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// First address of the vault.
    pub vault_lo: usize,
    /// Its length in bytes.
    pub vault_len: usize,
    /// First protected descriptor.
    pub fd_lo: u32,
    /// How many are protected.
    pub fd_len: u32,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// T makes the call.
    Allow,
    /// T executes a token.
    Token,
    /// T asks the broker, which refuses with this `errno` unless it knows better.
    Ask(i32),
}

const fn falls_back(nr: usize) -> bool {
    let calls = [
        Sysno::clone3,
        Sysno::io_uring_setup,
        Sysno::userfaultfd,
        Sysno::bpf,
        Sysno::perf_event_open,
        Sysno::openat2,
        Sysno::faccessat2,
        Sysno::statx,
        Sysno::close_range,
        Sysno::membarrier,
        Sysno::copy_file_range,
    ];
    let mut i = 0;
    while i < calls.len() {
        if calls[i] as usize == nr {
            return true;
        }
        i += 1;
    }
    false
}

const fn check_errno(errno: u32) {
    assert!(errno >= 1 && errno <= ROW_ERRNO, "an errno is a number from 1 to 4095");
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { vault_lo: 0x7000_0000, vault_len: 0x5000, fd_lo: 10, fd_len: 6 };

    #[test]
    fn every_listed_call_is_accepted_and_its_neighbours_are_as_the_list_says() {
        let none = Policy::new();
        for row in DIRECT {
            let policy = none.clone().direct(row.call);
            assert_eq!(policy.decide(&BOUNDS, row.call as u32, &[0; 6]), Decision::Allow, "{}", row.call.name());
            for nr in [row.call as u32 - u32::from(row.call as u32 > 0), row.call as u32 + 1] {
                let neighbour = policy.decide(&BOUNDS, nr, &[0; 6]);
                let expected = nr == row.call as u32 || nr == Sysno::clock_gettime as u32;
                assert_eq!(neighbour == Decision::Allow, expected, "{} beside {}", nr, row.call.name());
            }
        }
    }

    #[test]
    fn what_is_not_listed_is_refused_by_the_builder() {
        let listed = |call: Sysno| DIRECT.iter().any(|row| row.call == call);
        for call in Sysno::iter().filter(|call| !listed(*call)) {
            let built = std::panic::catch_unwind(|| Policy::new().direct(call));
            let message = *built.expect_err(call.name()).downcast::<String>().unwrap();
            let error = Policy::new().try_direct(call).expect_err("it is not listed");
            assert_eq!(message, error.to_string());
        }
    }

    #[test]
    fn what_is_refused_by_name_is_refused_in_any_order() {
        let after = Policy::new().ordinary().default_errno(1).refuse(Sysno::getrandom, 2);
        let before = Policy::new().refuse(Sysno::getrandom, 2).default_errno(1).ordinary();
        assert_eq!(after.rows(), before.rows());
        assert_eq!(after.decide(&BOUNDS, Sysno::getrandom as u32, &[0; 6]), Decision::Ask(2));
        assert!(after.refuses(Sysno::getrandom as u32) && !after.refuses(Sysno::getppid as u32));
        assert!(!after.refuses(NR_TOKEN) && !after.refuses(u32::MAX));
        let error = before.try_direct(Sysno::getrandom).map(drop).unwrap_err();
        assert!(error.to_string().ends_with("the policy refuses it by name"), "{error}");
    }

    #[test]
    fn a_descriptor_grants_what_all_roots_do_from_which_there_can_be_one() {
        let (both, way) = (Rights::READ.and(Rights::WRITE), Policy::new().root(c"/", Rights::NONE));
        assert_eq!(Policy::new().common_rights(), Rights::NONE);
        assert_eq!(way.common_rights(), Rights::NONE);
        assert_eq!(way.clone().root(c"/a", both).common_rights(), both);
        assert_eq!(way.root(c"/a", both).file(c"/b", Rights::READ).common_rights(), Rights::READ);
    }

    #[test]
    fn a_root_in_another_adds_rights_where_names_stay() {
        use Rights as R;
        let root = |path, rights, exact| Root { path, rights, exact };
        let build = |a: Root<'static>, b: Root<'static>| {
            let built = Policy::new().try_root(a).and_then(|policy| policy.try_root(b)).map(drop);
            // In either order.
            assert_eq!(Policy::new().try_root(b).and_then(|policy| policy.try_root(a)).map(drop), built);
            built
        };
        let (rw, all) = (R::READ.and(R::WRITE), R::READ.and(R::WRITE).and(R::CREATE));
        for exact in [false, true] {
            let bad = Err(BadRoot::Nested { outer: c"/a", inner: c"/a/b" });
            for (outer, inner, expected) in [
                (R::READ, R::NONE, bad),
                (rw, R::READ, bad),
                (R::READ, R::WRITE, bad),
                (all, rw, bad),
                (R::READ.and(R::CREATE), all, bad),
                (R::READ, R::READ, Ok(())),
                (R::READ, all, Ok(())),
                (all, all, Ok(())),
                (R::NONE, R::READ, Ok(())),
                (R::NONE, R::NONE, Ok(())),
            ] {
                let built = build(root(c"/a", outer, false), root(c"/a/b", inner, exact));
                assert_eq!(built, expected, "{outer:?} {inner:?}");
            }
            // A neighbour whose name only begins so, and what is below a file, are not inside.
            assert_eq!(build(root(c"/a", R::READ, false), root(c"/ab", R::NONE, exact)), Ok(()));
            assert_eq!(build(root(c"/a", R::READ, true), root(c"/a/b", R::NONE, exact)), Ok(()));
            let bad = Err(BadRoot::Nested { outer: c"/", inner: c"/b" });
            assert_eq!(build(root(c"/", R::READ, false), root(c"/b", R::NONE, exact)), bad);
        }
        let twice = Policy::new().root(c"/a", R::READ).try_root(root(c"/a", rw, false)).map(drop).unwrap_err();
        assert!(twice.to_string().contains("the root `/a` is in the root `/a`"), "{twice}");
        let built = std::panic::catch_unwind(|| Policy::new().root(c"/a", R::READ).root(c"/a/b", R::NONE));
        let message = *built.expect_err("it is nested").downcast::<String>().unwrap();
        assert_eq!(message, BadRoot::Nested { outer: c"/a", inner: c"/a/b" }.to_string());
    }

    #[test]
    fn a_socket_where_names_can_be_created_is_not_an_address() {
        let root = |path, rights| Root { path, rights, exact: false };
        let build = |root: Root<'static>, addresses: &'static [&'static [u8]]| {
            let family = Family { family: 1, addresses };
            let one = Policy::new().try_root(root).unwrap().try_family(family).map(drop);
            let other = Policy::new().try_family(family).unwrap().try_root(root).map(drop);
            match (one, other) {
                (Ok(()), Ok(())) => None,
                (Err(BadFamily::Redirected(a)), Err(BadRoot::Redirects(b))) if a == b => Some(a.address),
                other => panic!("{other:?}"),
            }
        };
        let run = root(c"/run", Rights::READ.and(Rights::CREATE));
        assert_eq!(build(run, &[b"\x01\0/run/s\0"]), Some(&b"/run/s"[..]));
        assert_eq!(build(run, &[b"\x01\0/running/s\0"]), None);
        assert_eq!(build(run, &[b"\x01\0\0/run/s"]), None); // abstract
        assert_eq!(build(run, &[b"\x01\0/ru"]), Some(&b"/ru"[..])); // begins so
        assert_eq!(build(run, &[b"\x01\0/ru\0"]), None);
        assert_eq!(build(run, &[b"\x01\0/x/../run/s\0"]), Some(&b"/x/../run/s"[..]));
        assert_eq!(build(run, &[b"\x01\0s\0"]), Some(&b"s"[..]));
        assert_eq!(build(run, &[b"\x01\0"]), None); // all there are
        assert_eq!(build(run, &[b"\x01\0/"]), None);
        assert_eq!(build(root(c"/run", Rights::READ.and(Rights::WRITE)), &[b"\x01\0/run/s\0"]), None);
        assert_eq!(build(root(c"/", Rights::CREATE), &[b"\x01\0/run/s\0"]), Some(&b"/run/s"[..]));
        assert_eq!(build(Root { exact: true, ..root(c"/s", Rights::CREATE) }, &[b"\x01\0/s\0"]), Some(&b"/s"[..]));
        assert_eq!(build(Root { exact: true, ..root(c"/s", Rights::CREATE) }, &[b"\x01\0/s/t\0"]), None);
        let family = |family, addresses| {
            Policy::new()
                .family(Family { family: 1, addresses: &[] })
                .try_family(Family { family, addresses })
                .map(drop)
        };
        assert_eq!(family(1, &[]), Err(BadFamily::Twice));
        assert_eq!(family(2, &[b""]), Err(BadFamily::NoBytes));
        assert_eq!(family(2, &[b"\x02"]), Ok(()));
    }

    #[test]
    fn protocols_are_the_usual_ones_and_those_that_are_listed() {
        let policy = Policy::new().protocol(16, 15).protocol(2, 132);
        for family in [2, 10] {
            for (kind, protocol) in [(1, 0), (1, 6), (2, 0), (2, 17)] {
                assert!(policy.allows_protocol(family, kind, protocol), "{family} {kind} {protocol}");
            }
            for (kind, protocol) in [(1, 17), (1, 262), (2, 1), (2, 6), (2, 136), (5, 0), (5, 6)] {
                assert!(!policy.allows_protocol(family, kind, protocol), "{family} {kind} {protocol}");
            }
        }
        assert!(policy.allows_protocol(2, 5, 132) && !policy.allows_protocol(10, 5, 132));
        assert!(policy.allows_protocol(16, 2, 15) && !policy.allows_protocol(16, 2, 9));
        assert!(policy.allows_protocol(1, 5, 0) && !policy.allows_protocol(1, 1, 1));
    }

    #[test]
    fn no_argument_may_point_into_the_vault() {
        let policy = Policy::new().direct(Sysno::getppid);
        for i in 0..6 {
            for (at, refused) in [(0x6fff_ffff, false), (0x7000_0000, true), (0x7000_4fff, true), (0x7000_5000, false)]
            {
                let mut args = [0; 6];
                args[i] = at;
                let decision = policy.decide(&BOUNDS, Sysno::getppid as u32, &args);
                assert_eq!(decision == Decision::Ask(EFAULT), refused, "argument {i} = {at:#x}");
            }
        }
    }

    #[test]
    fn protected_descriptors_are_refused_by_their_low_half() {
        let policy = Policy::new().direct(Sysno::dup2);
        let decide = |a, b| policy.decide(&BOUNDS, Sysno::dup2 as u32, &[a, b, 10, 0, 0, 0]);
        assert_eq!(decide(9, 16), Decision::Allow);
        assert_eq!(decide(10, 1), Decision::Ask(EBADF));
        assert_eq!(decide(1, 15), Decision::Ask(EBADF));
        #[cfg(target_pointer_width = "64")]
        assert_eq!(decide(1 << 32 | 10, 1), Decision::Ask(EBADF));
    }

    #[test]
    fn the_numbers_agree_with_a_second_table() {
        #[cfg(target_arch = "x86_64")]
        for (ours, theirs) in [
            (Sysno::read, sc::nr::READ),
            (Sysno::write, sc::nr::WRITE),
            (Sysno::exit, sc::nr::EXIT),
            (Sysno::rt_sigreturn, sc::nr::RT_SIGRETURN),
            (Sysno::clone, sc::nr::CLONE),
            (Sysno::prctl, sc::nr::PRCTL),
            (Sysno::futex, sc::nr::FUTEX),
            (Sysno::getppid, sc::nr::GETPPID),
            (Sysno::close, sc::nr::CLOSE),
            (Sysno::dup2, sc::nr::DUP2),
            (Sysno::clock_gettime, sc::nr::CLOCK_GETTIME),
            (Sysno::sigaltstack, sc::nr::SIGALTSTACK),
            (Sysno::rt_sigaction, sc::nr::RT_SIGACTION),
            (Sysno::close_range, sc::nr::CLOSE_RANGE),
        ] {
            assert_eq!(ours as usize, theirs, "{}", ours.name());
        }
    }
}
