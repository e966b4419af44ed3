//! Policies and decisions, slow and plain: sets, maps, lists of names and wide integers instead of tables, masks and wrapping
//! arithmetic. Written down apart from the runtime; of that it uses types and names only. For x86_64.

pub mod broker;
mod changes;
mod files;
pub mod paths;
mod sockets;

use std::collections::{BTreeMap, BTreeSet};

use ascetic::policy::{Bounds, Decision, Rights};
use ascetic::sys::Sysno;

use crate::spec::Step;

/// Calls that T may make: which arguments are descriptors, and what else is looked at.
const DIRECT: &[(&[&str], &[usize], Also)] = &[
    (
        &[
            "getppid",
            "getuid",
            "geteuid",
            "getgid",
            "getegid",
            "getresuid",
            "getresgid",
            "getgroups",
            "getpgrp",
            "uname",
            "sysinfo",
            "gettimeofday",
            "time",
            "nanosleep",
            "sched_yield",
            "getrandom",
            "poll",
            "pipe",
            "pipe2",
            "eventfd2",
            "epoll_create1",
            "timerfd_create",
        ],
        &[],
        Also::Nothing,
    ),
    (&["clock_gettime", "clock_getres", "clock_nanosleep", "sched_getaffinity"], &[], Also::Small),
    (
        &[
            "read",
            "write",
            "readv",
            "writev",
            "pread64",
            "pwrite64",
            "lseek",
            "fstat",
            "fstatfs",
            "fsync",
            "fdatasync",
            "ftruncate",
            "fallocate",
            "getdents64",
            "close",
            "dup",
            "epoll_wait",
            "timerfd_settime",
            "timerfd_gettime",
        ],
        &[0],
        Also::Nothing,
    ),
    (&["sendfile", "dup2", "dup3"], &[0, 1], Also::Nothing),
    (&["epoll_ctl"], &[0, 2], Also::Nothing),
    (&["futex"], &[], Also::Futex),
];

/// Of those, what an ordinary program has no use for.
const NOT_ORDINARY: &[&str] = &[
    "getresuid",
    "getresgid",
    "getgroups",
    "getpgrp",
    "sendfile",
    "timerfd_create",
    "timerfd_settime",
    "timerfd_gettime",
];
/// What a libc tries first, and does without when it is ENOSYS.
const TRIED_FIRST: &[&str] = &[
    "clone3",
    "io_uring_setup",
    "userfaultfd",
    "bpf",
    "perf_event_open",
    "openat2",
    "faccessat2",
    "statx",
    "close_range",
    "membarrier",
    "copy_file_range",
];
/// WAIT, WAKE, REQUEUE, CMP_REQUEUE, WAKE_OP, WAIT_BITSET, WAKE_BITSET
const FUTEX: [u32; 7] = [0, 1, 3, 4, 5, 9, 10];
/// The number of the token's row, the last of 512.
const TOKEN: u32 = 511;

/// What else is looked at in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Also {
    Nothing,
    /// The first argument is below 16.
    Small,
    /// The operation is one of [`FUTEX`].
    Futex,
}

/// A number of a call by its name.
pub(crate) fn nr(name: &str) -> u32 {
    name.parse::<Sysno>().unwrap_or_else(|()| panic!("{name} is no call")) as u32
}

/// A call's name by its number.
pub(crate) fn name(nr: u32) -> &'static str {
    Sysno::new(nr as usize).map_or("", |call| call.name())
}

fn in_list(list: &[&str], nr: u32) -> bool {
    list.contains(&name(nr))
}

/// A root.
#[derive(Clone, Debug)]
pub struct Root {
    /// Its path.
    pub path: Vec<u8>,
    /// What may be done.
    pub rights: Rights,
    /// Whether it is one file.
    pub exact: bool,
}

/// A policy.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "each is named as the builder's function")]
pub struct Model {
    direct: BTreeSet<u32>,
    refused: BTreeMap<u32, i32>,
    default_errno: i32,
    pub roots: Vec<Root>,
    pub no_links: bool,
    pub locks_and_flags: bool,
    pub memory: bool,
    pub executable: bool,
    pub w_xor_x: bool,
    pub families: Vec<(u16, Vec<Vec<u8>>)>,
    pub protocols: Vec<(u16, u32)>,
    pub listen: bool,
    pub options: Vec<(u32, u32)>,
    pub ioctls: Vec<u32>,
    pub signals: bool,
    pub threads: u32,
}

impl Model {
    /// Allows nothing but to ask for the time.
    pub fn new() -> Self {
        let direct = BTreeSet::from([nr("clock_gettime")]);
        Self { direct, default_errno: libc::ENOSYS, threads: 1, ..Self::default() }
    }

    /// Whether the builder would panic.
    pub fn is_full_for(&self, step: &Step) -> bool {
        match step {
            Step::Protocol(..) => self.protocols.len() == 16,
            Step::Option(..) => self.options.len() == 16,
            Step::Ioctl(_) => self.ioctls.len() == 16,
            _ => false,
        }
    }

    /// Does a step; whether the builder takes it.
    pub fn build(&mut self, step: &Step) -> bool {
        let may_be_direct = |nr: u32| DIRECT.iter().any(|(list, ..)| in_list(list, nr));
        match step {
            Step::Direct(call) => {
                let nr = *call as u32;
                if self.refused.contains_key(&nr) || !may_be_direct(nr) {
                    return false;
                }
                self.direct.insert(nr);
            }
            Step::Ordinary => {
                for nr in DIRECT.iter().flat_map(|(list, ..)| *list).map(|name| nr(name)) {
                    if !self.refused.contains_key(&nr) && !in_list(NOT_ORDINARY, nr) {
                        self.direct.insert(nr);
                    }
                }
            }
            Step::Refuse(call, errno) => {
                self.direct.remove(&(*call as u32));
                self.refused.insert(*call as u32, *errno as i32);
            }
            Step::DefaultErrno(errno) => self.default_errno = *errno as i32,
            Step::Root { path, rights, exact } => {
                let root = Root { path: path.to_bytes().to_vec(), rights: *rights, exact: *exact };
                if !paths::root_fits(self, &root) {
                    return false;
                }
                self.roots.push(root);
            }
            Step::NoLinks => self.no_links = true,
            Step::LocksAndFlags => self.locks_and_flags = true,
            Step::Memory => self.memory = true,
            Step::Executable => self.executable = true,
            Step::WXorX => self.w_xor_x = true,
            Step::Family { family, addresses } => {
                let known = self.families.iter().any(|(known, _)| known == family);
                let redirected = self.roots.iter().any(|root| paths::redirects(root, *family, addresses));
                if known || redirected || self.families.len() == 4 || addresses.iter().any(Vec::is_empty) {
                    return false;
                }
                self.families.push((*family, addresses.clone()));
            }
            Step::Protocol(family, protocol) => self.protocols.push((*family, *protocol)),
            Step::Listen => self.listen = true,
            Step::Option(level, name) => self.options.push((*level, *name)),
            Step::Ioctl(number) => self.ioctls.push(*number),
            Step::Signals => self.signals = true,
            Step::Threads(threads) => self.threads = *threads,
        }
        true
    }

    /// Whether a call is refused by name.
    pub fn refuses(&self, nr: u32) -> bool {
        self.refused.contains_key(&nr)
    }

    /// With what a call is refused that nothing allows.
    pub fn errno(&self, nr: u32) -> i32 {
        match self.refused.get(&nr) {
            Some(errno) => *errno,
            None if in_list(TRIED_FIRST, nr) => libc::ENOSYS,
            None => self.default_errno,
        }
    }

    /// What T decides.
    pub fn decide(&self, bounds: &Bounds, nr: u32, args: &[usize; 6]) -> Decision {
        if nr == TOKEN {
            return Decision::Token;
        }
        if !self.direct.contains(&nr) {
            return Decision::Ask(self.errno(nr));
        }
        let row = DIRECT.iter().find(|(list, ..)| in_list(list, nr));
        let (_, descriptors, also) = row.expect("it was taken");
        for (i, arg) in args.iter().enumerate() {
            let int = *arg as u32;
            if in_vault(bounds, *arg) {
                return Decision::Ask(libc::EFAULT);
            }
            if descriptors.contains(&i) && is_own(bounds, *arg) {
                return Decision::Ask(libc::EBADF);
            }
            if i == 0 && *also == Also::Small && int >= 16 {
                return Decision::Ask(libc::EINVAL);
            }
            // Without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME.
            if i == 1 && *also == Also::Futex && !FUTEX.contains(&(int & !128 & !256)) {
                return Decision::Ask(libc::ENOSYS);
            }
        }
        Decision::Allow
    }

    /// What every root allows that allows anything.
    pub fn common(&self) -> Rights {
        let mut all = [Rights::READ, Rights::WRITE, Rights::CREATE, Rights::EXECUTE].to_vec();
        let opened: Vec<_> = self.roots.iter().filter(|root| root.rights != Rights::NONE).collect();
        all.retain(|right| !opened.is_empty() && opened.iter().all(|root| root.rights.has(*right)));
        all.into_iter().fold(Rights::NONE, Rights::and)
    }
}

/// Whether an address is in the vault.
pub(crate) fn in_vault(bounds: &Bounds, at: usize) -> bool {
    let (from, len) = (bounds.vault_lo as u128, bounds.vault_len as u128);
    (from..from + len).contains(&(at as u128))
}

/// Whether what the kernel takes as a descriptor is one of the sandbox's own.
pub(crate) fn is_own(bounds: &Bounds, fd: usize) -> bool {
    let (from, len) = (u64::from(bounds.fd_lo), u64::from(bounds.fd_len));
    (from..from + len).contains(&u64::from(fd as u32))
}
