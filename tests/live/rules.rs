//! What a T may do: written down again, apart from the broker, so that a mistake there shows.

use super::*;
use ascetic::abi::{Mailbox, OpenHow, STRIDE, VaultPage, Verdict};
use ascetic::policy::{Bounds, Decision};
use freestanding::files::MMAP;

/// What kind of call it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// T's own: it sleeps, wakes its U, waits for the broker.
    Own,
    /// It asks the broker.
    Asks,
    /// Of the direct lane.
    Direct,
    /// Of a verdict.
    Script,
    /// It must not be.
    Forbidden,
}

/// Where everything is.
pub struct Place {
    pub bounds: Bounds,
    page: usize,
    verdict: usize,
    mailbox: usize,
    /// The sandbox's own descriptors: all but the pairs'.
    made: usize,
}

/// Addresses for pairs, and private memory for those that there are, are all the sandbox's own: as `src/pair.rs` lays them out.
const OWN: usize = ascetic::pair::PRIVATE * ascetic::abi::PAIRS;

impl Place {
    pub fn new() -> Self {
        let load = |word: &AtomicUsize| word.load(Ordering::SeqCst);
        let [from, to] = [load(&board().vault[0]), load(&board().vault[1])];
        let (fd_lo, made) = (load(&board().fds), ascetic::experiment::OWN_FDS - 2);
        let fd_len = (made + 1 + 2 * PAIRS) as u32; // and one root
        let bounds = Bounds { vault_lo: from, vault_len: to - from, fd_lo: fd_lo as u32, fd_len };
        Self {
            bounds,
            page: load(&board().pages[0]),
            verdict: load(&board().pages[1]),
            mailbox: load(&board().mailbox),
            made,
        }
    }

    fn in_vault(&self, at: usize) -> bool {
        at.wrapping_sub(self.bounds.vault_lo) < self.bounds.vault_len
    }

    fn own_fd(&self, fd: usize) -> bool {
        (fd as u32).wrapping_sub(self.bounds.fd_lo) < self.bounds.fd_len
    }

    /// Whether a range meets vault, mailboxes or any pair's private memory.
    fn meets_own(&self, at: usize, len: usize) -> bool {
        let end = at.saturating_add(len.max(1)).saturating_add(2 * PAGE);
        let behind = self.mailbox + ascetic::abi::PAIRS * STRIDE + OWN;
        at < behind && end.saturating_sub(2 * PAGE) > self.bounds.vault_lo
    }

    /// What kind of call this is of the T of pair `k`.
    pub fn kind(&self, policy: &Policy<'_>, t: u32, k: usize, nr: u32, args: &[usize; 6]) -> Kind {
        let [a, b, c, d, e, _] = *args;
        let first = self.bounds.fd_lo as usize;
        let bell = first + self.made + 1 + 2 * k;
        let (page, mailbox) = (self.page as *const VaultPage, (self.mailbox + k * STRIDE) as *const Mailbox);
        let verdict = (self.verdict + k * STRIDE) as *const Verdict;
        // SAFETY: addresses of fields, in another address space; nothing is read.
        let (one, patience, scratch, ask, bore, data) = unsafe {
            (
                (&raw const (*page).one).addr(),
                (&raw const (*page).patience).addr(),
                (&raw const (*mailbox).scratch).addr(),
                (&raw const (*verdict).ask).addr(),
                (&raw const (*verdict).bore).addr(),
                (&raw const (*verdict).data).addr(),
            )
        };
        let is = |call: Sysno| nr == call as u32;
        if is(Sysno::read) && (a, b, c) == (bell, scratch, 8)
            || is(Sysno::write) && (a, b, c) == (bell + 1, one, 8)
            || is(Sysno::futex) && (a == ask || a == bore) && b == 0 && d == patience
            || is(Sysno::restart_syscall)
        {
            return Kind::Own;
        }
        if is(Sysno::write) && (a, b, c) == (first, one, 8) {
            return Kind::Asks;
        }
        if policy.decide(&self.bounds, nr, args) == Decision::Allow {
            return Kind::Direct;
        }
        // A verdict's: pointers lead nowhere in the vault but to the verdict's own data.
        let in_data = |at: usize| at.wrapping_sub(data) < ascetic::abi::DATA;
        let outside = |list: &[usize]| list.iter().all(|at| !self.in_vault(*at));
        let free = |at: usize, len: usize| !self.meets_own(at, len);
        let fits = match Sysno::new(nr as usize) {
            Some(Sysno::munmap | Sysno::msync | Sysno::madvise) => free(a, b),
            Some(Sysno::mincore) => free(a, b) && outside(&[c]),
            Some(Sysno::mprotect) => free(a, b) && c & 4 == 0,
            Some(Sysno::mremap) => free(a, b) && (d & 6 == 0 || free(e, c)),
            Some(call) if call as u32 == MMAP as u32 => {
                const FIXED: usize = 0x10 | 0x10_0000;
                const GROWS_DOWN: usize = 0x100;
                c & 4 == 0
                    && d & GROWS_DOWN == 0
                    && (d & FIXED == 0 || free(a, b))
                    && (d & 0x20 != 0 || !self.own_fd(e))
            }
            Some(Sysno::brk) => a == 0 || free(a, 1),
            Some(Sysno::prlimit64) => a == 0 && c == 0 && outside(&[d]),
            Some(Sysno::openat2) => {
                let token = |at: usize| {
                    let tokens = self.page + PAGE;
                    at.wrapping_sub(tokens) < ascetic::abi::TOKENS << ascetic::abi::TOKEN_SHIFT
                };
                let root = first + self.made;
                let from = a == root || a as i32 >= 0 && !self.own_fd(a);
                from && (in_data(b) && in_data(c) || token(b) && token(c)) && d == size_of::<OpenHow>() && beneath(t, c)
            }
            // Of what a step before has opened, or of the root.
            Some(Sysno::close) => !self.own_fd(a),
            Some(Sysno::fstat | Sysno::fstatfs | Sysno::flock) => {
                !self.own_fd(a) && outside(&[b, c]) || a == first + self.made
            }
            #[cfg(target_arch = "x86")]
            Some(Sysno::fstat64 | Sysno::fstatfs64) => !self.own_fd(a) && outside(&[b, c]) || a == first + self.made,
            Some(Sysno::statx) => (!self.own_fd(a) || a == first + self.made) && in_data(b) && outside(&[e]),
            Some(Sysno::faccessat2) => (!self.own_fd(a) || a == first + self.made) && in_data(b),
            Some(Sysno::readlinkat) => (!self.own_fd(a) || a == first + self.made) && in_data(b) && outside(&[c]),
            Some(Sysno::fcntl) => !self.own_fd(a) && asks_only(b) && outside(&[c]),
            #[cfg(target_arch = "x86")]
            Some(Sysno::fcntl64) => !self.own_fd(a) && asks_only(b) && outside(&[c]),
            _ => false,
        };
        if fits { Kind::Script } else { Kind::Forbidden }
    }
}

/// Whether an operation of `fcntl` changes no more than the descriptor itself: DUPFD, GETFD, SETFD, GETFL, GETLK in its forms,
/// DUPFD_CLOEXEC, GETPIPE_SZ, GET_SEALS. Not those that aim signals, lock, or change what others share.
fn asks_only(operation: usize) -> bool {
    matches!(operation, 0..=3 | 5 | 12 | 36 | 1030 | 1032 | 1034)
}

/// Whether a file is opened as it must be: beneath a root, across no mount, by no magic link. The structure is in the vault, so
/// what is read is what the kernel gets.
fn beneath(t: u32, at: usize) -> bool {
    const NO_XDEV: u64 = 1;
    const NO_MAGICLINKS: u64 = 2;
    const BENEATH: u64 = 8;
    const ALL: u64 = NO_XDEV | NO_MAGICLINKS | BENEATH;
    let mut how = OpenHow::default();
    let bytes = (&raw mut how).cast::<u8>();
    // SAFETY: a structure of numbers.
    observer::read(t, at, unsafe { core::slice::from_raw_parts_mut(bytes, size_of::<OpenHow>()) })
        && how.resolve & ALL == ALL
}
