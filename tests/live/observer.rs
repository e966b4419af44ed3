//! The tracer of all Ts: sees every system call that they make, before the kernel does anything, and the vault at their end.

use super::rules::{Kind, Place};
use super::*;
use ascetic::trusted;

const SEIZE: usize = 0x4206;
const INTERRUPT: usize = 0x4207;
const SYSCALL: usize = 24;
const CALL_INFO: usize = 0x420e;
const SYSGOOD_AND_EXIT: usize = 1 | 0x40;
const EVENT_EXIT: i32 = 6;

/// `struct ptrace_syscall_info` (`include/uapi/linux/ptrace.h`).
#[repr(C)]
#[derive(Default)]
struct Info {
    op: u8,
    pad: [u8; 3],
    arch: u32,
    ip: u64,
    sp: u64,
    nr: u64,
    args: [u64; 6],
    rest: u64,
}

fn ptrace(request: usize, pid: u32, addr: usize, data: usize) -> sys::Result<usize> {
    // SAFETY: a task of the sandbox; what `data` points to is as large as is said.
    unsafe { freestanding::call(Sysno::ptrace, [request, pid as usize, addr, data]) }
}

/// Reads memory of the sandbox; whether all of it was there.
pub fn read(t: u32, at: usize, to: &mut [u8]) -> bool {
    let (local, remote) = ([to.as_mut_ptr().addr(), to.len()], [at, to.len()]);
    let args = [t as usize, local.as_ptr().addr(), 1, remote.as_ptr().addr(), 1, 0];
    // SAFETY: the buffer is as long as it is said to be.
    unsafe { freestanding::call(Sysno::process_vm_readv, args) == Ok(to.len()) }
}

/// T's code, which nobody has changed, and the policy's page, which must be as it was first.
struct Vault {
    at: usize,
    page: [u8; PAGE],
}

impl Vault {
    fn is_whole(&mut self, t: u32, first: bool) -> bool {
        let (mut code, mut page) = ([0u8; PAGE], [0u8; PAGE]);
        if !read(t, self.at - PAGE, &mut code) || !read(t, self.at, &mut page) {
            return false;
        }
        if first {
            self.page = page;
        }
        board().compared.fetch_add(1, Ordering::Relaxed);
        code.starts_with(trusted::code()) && code[trusted::code().len()..].iter().all(|b| *b == 0) && page == self.page
    }
}

fn find(what: u32) {
    let _ = board().found.compare_exchange(0, what, Ordering::SeqCst, Ordering::SeqCst);
}

/// Traces these Ts until they have ended.
pub fn run(ts: &[u32; PAIRS], policy: &Policy<'_>) -> ! {
    /// So many system calls between two comparisons of the vault.
    const OFTEN: u64 = 4096;
    let (board, place) = (board(), Place::new());
    let mut vault = Vault { at: board.pages[0].load(Ordering::SeqCst), page: [0; PAGE] };
    for t in ts {
        let seized = ptrace(SEIZE, *t, 0, SYSGOOD_AND_EXIT);
        check!(seized.is_ok(), "PTRACE_SEIZE: {seized:?}");
        check!(ptrace(INTERRUPT, *t, 0, 0).is_ok());
    }
    if !vault.is_whole(ts[0], true) {
        find(2);
    }
    let (mut left, mut fresh) = (ts.len(), ts.len());
    while left > 0 {
        const WALL: usize = 0x4000_0000;
        let mut raw = 0i32;
        // SAFETY: the kernel stores a word.
        let Ok(pid) = (unsafe { freestanding::call(Sysno::wait4, [usize::MAX, (&raw mut raw).addr(), WALL, 0]) })
        else {
            break;
        };
        let t = pid as u32;
        if raw & 0xff != 0x7f {
            left -= 1;
            continue;
        }
        let (signal, event) = (raw >> 8 & 0xff, raw >> 16);
        let calls = board.calls.load(Ordering::Relaxed);
        if signal == 0x80 | 5 {
            let mut info = Info::default();
            let size = size_of::<Info>();
            if ptrace(CALL_INFO, t, size, (&raw mut info).addr()).is_ok() && info.op == 1 {
                let k = ts.iter().position(|known| *known == t).unwrap_or(0);
                let args: [usize; 6] = core::array::from_fn(|i| info.args[i] as usize);
                board.calls.fetch_add(1, Ordering::Relaxed);
                board.first.fetch_add(u64::from(k == 0), Ordering::Relaxed);
                match place.kind(policy, t, k, info.nr as u32, &args) {
                    Kind::Own => {}
                    Kind::Asks => _ = board.asked.fetch_add(1, Ordering::Relaxed),
                    Kind::Direct => _ = board.direct.fetch_add(1, Ordering::Relaxed),
                    Kind::Script => _ = board.scripts.fetch_add(1, Ordering::Relaxed),
                    Kind::Forbidden if IGNORE_CALLS.load(Ordering::Relaxed) => {}
                    Kind::Forbidden => {
                        let what = [k, info.nr as usize].into_iter().chain(args);
                        board.what.iter().zip(what).for_each(|(to, from)| to.store(from, Ordering::SeqCst));
                        find(1);
                    }
                }
                if calls % OFTEN == 0 && !vault.is_whole(t, false) {
                    find(2);
                }
            }
        } else if event == EVENT_EXIT {
            if !vault.is_whole(t, false) {
                find(2);
            }
        } else if fresh > 0 {
            fresh -= 1;
            if fresh == 0 {
                board.attached.store(1, Ordering::SeqCst);
            }
        }
        let _ = ptrace(SYSCALL, t, 0, 0); // ESRCH: it was killed meanwhile
    }
    sys::exit(0)
}
