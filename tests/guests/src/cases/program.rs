//! What an ordinary program does besides files (`files.rs`): memory, sockets, descriptors, ids. Each case runs twice: through the explicit API, and with
//! the guest's own system call instructions, which the kernel turns into SIGSYS. Beside each permission stands its nearest
//! forbidden neighbour.

use super::calls::has_rdtscp;
use super::files::{ALL, RW, one_path, open, rooted, with_root};
use super::*;
use ascetic::policy::Family;
use ascetic::sys::{self, Errno};
use ascetic::untrusted;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use freestanding::files::{Scratch, path};

pub const CASES: &[Case] = &[
    case("program_memory", || both(memory)),
    case("program_memory_own", || both(own_memory)),
    case("program_sockets", || both(sockets)),
    case("program_ioctl_and_fcntl", || both(ioctl_and_fcntl)),
    case("program_other_bytes", || both(other_bytes)),
    case("program_fallbacks", || both(fallbacks)),
    case("program_refused_by_name", || both(by_name)),
    case("program_ids", || both(ids)),
    case("program_exit_status", || status(123)),
    case("program_wild_write", || both(wild_write)),
    case("program_clocks", || both(clocks)),
    case("program_stack_is_aligned", || both(aligned)),
    #[cfg(target_arch = "x86_64")]
    case("program_foreign_numbers", foreign_numbers),
    case("program_refusals_are_recorded", refusals),
];

/// Whether the guest makes its calls itself.
static RAW: AtomicBool = AtomicBool::new(false);

/// A call of the guest's.
///
/// # Safety
///
/// As the manual page says.
pub unsafe fn c<const N: usize>(nr: Sysno, args: [usize; N]) -> sys::Result<usize> {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&args);
    // SAFETY: the caller's.
    unsafe { if RAW.load(Ordering::Relaxed) { sys::call(nr, all) } else { untrusted::call(nr, all) } }
}

/// Runs a case in both ways; the second where the kernel can.
pub fn both(run: fn()) {
    run();
    if has_dispatch() {
        RAW.store(true, Ordering::Relaxed);
        run();
    }
}

/// Whether this kernel has syscall user dispatch.
pub fn has_dispatch() -> bool {
    // SAFETY: turns off what is not on.
    unsafe { sys::prctl(sys::PR_SET_SYSCALL_USER_DISPATCH, 0) }.is_ok()
}

/// Whether the second run is on.
pub fn raw() -> bool {
    RAW.load(Ordering::Relaxed)
}

/// A sandbox for such a program.
pub fn program<'a>(policy: &'a Policy<'a>) -> Config<'a> {
    Config { keep: &[1, 2], dispatch: raw(), ..Config::new(policy) }
}

/// Calls that T may make, for all programs here.
pub const DIRECT: Policy = Policy::new()
    .direct(Sysno::getppid)
    .direct(Sysno::read)
    .direct(Sysno::write)
    .direct(Sysno::pread64)
    .direct(Sysno::pwrite64)
    .direct(Sysno::readv)
    .direct(Sysno::writev)
    .direct(Sysno::lseek)
    .direct(Sysno::close)
    .direct(Sysno::dup)
    .direct(Sysno::dup2)
    .direct(Sysno::pipe2)
    .direct(Sysno::fstat)
    .direct(Sysno::fdatasync)
    .direct(Sysno::ftruncate)
    .direct(Sysno::getdents64)
    .direct(Sysno::futex)
    .direct(Sysno::poll)
    .direct(Sysno::sched_yield)
    .direct(Sysno::nanosleep);

const CWD: usize = -100isize as usize;

/// Asserts a result, and says which call it was.
macro_rules! must {
    ($call:expr, $expected:pat $(if $cond:expr)?) => {{
        let result = $call;
        #[allow(clippy::redundant_pattern_matching, reason = "what is expected is the caller's")]
        let good = matches!(result, $expected $(if $cond)?);
        check!(good, "{}: {:?}", stringify!($call), result);
        result.unwrap_or(usize::MAX)
    }};
}
pub(super) use must;

fn memory() {
    extern "C" fn guest(_: usize) -> i32 {
        const ANON: usize = 0x22;
        let rw = sys::PROT_READ | sys::PROT_WRITE;
        let map = freestanding::files::MMAP;
        // SAFETY: memory of the guest's own.
        unsafe {
            let at = c(map, [0, 0x10000, rw, ANON, usize::MAX, 0]).unwrap();
            (at as *mut u8).write(7);
            must!(c(Sysno::mprotect, [at, 0x1000, sys::PROT_READ]), Ok(0));
            must!(c(Sysno::mprotect, [at, 0x1000, rw]), Ok(0));
            must!(c(Sysno::madvise, [at, 0x1000, 4]), Ok(0));
            check!((at as *mut u8).read() == 0);
            must!(c(Sysno::madvise, [at, 0x1000, 100]), Err(Errno::EINVAL)); // MADV_HWPOISON
            let moved = c(Sysno::mremap, [at, 0x10000, 0x40000, 1, 0]).unwrap();
            must!(c(Sysno::munmap, [moved, 0x40000]), Ok(0));
            must!(c(map, [moved, 0x1000, rw, ANON | 0x10, usize::MAX, 0]), Ok(at) if at == moved);
            must!(c(Sysno::munmap, [moved, 0x1000]), Ok(0));
            // No executable memory, no growing, no low address, no wrapping.
            must!(c(map, [0, 0x1000, 7, ANON, usize::MAX, 0]), Err(Errno::EACCES));
            must!(c(map, [0, 0x1000, rw, ANON | 0x100, usize::MAX, 0]), Err(Errno::EINVAL));
            must!(c(map, [0x1000, 0x1000, rw, ANON | 0x10, usize::MAX, 0]), Err(Errno::EPERM));
            must!(c(map, [0x1000, 0x1000, rw, ANON | 0x10_0000, usize::MAX, 0]), Err(Errno::EPERM));
            // A wish for a low address is not heard, wherever the kernel's own limit is.
            must!(c(map, [0x1000, 0x1000, rw, ANON, usize::MAX, 0]), Ok(at) if at >= 0x10000);
            must!(c(map, [0xf000, 0x1000, rw, ANON, usize::MAX, 0]), Ok(at) if at >= 0x10000);
            must!(c(map, [0x10_0000, 0x1000, rw, ANON, usize::MAX, 0]), Ok(0x10_0000));
            must!(c(Sysno::munmap, [usize::MAX & !0xfff, 0x2000]), Err(Errno::EINVAL));
            let at = c(map, [0, 0x1000, rw, ANON, usize::MAX, 0]).unwrap();
            must!(c(Sysno::mprotect, [at, 0x1000, 5]), Err(Errno::EACCES));
            let end = c(Sysno::brk, [0]).unwrap();
            must!(c(Sysno::brk, [end + 0x3000]), Ok(new) if new == end + 0x3000);
            ((end + 0x2000) as *mut u8).write(1);
            must!(c(Sysno::brk, [end]), Ok(new) if new == end);
        }
        0
    }
    let policy = DIRECT.clone().memory();
    must_exit(&program(&policy), guest, 0, 0);
    // With a limit, which the kernel keeps.
    extern "C" fn limited(_: usize) -> i32 {
        let rw = sys::PROT_READ | sys::PROT_WRITE;
        let map = freestanding::files::MMAP;
        // SAFETY: memory of the guest's own.
        unsafe {
            must!(c(map, [0, 0x10_0000, rw, 0x22, usize::MAX, 0]), Ok(_));
            must!(c(map, [0, 0x40_0000, rw, 0x22, usize::MAX, 0]), Err(Errno::ENOMEM));
        }
        0
    }
    let limits = ascetic::policy::Limits { threads: 1, mapped: 0x20_0000, descriptors: 0, calls: 0 };
    let policy = DIRECT.clone().memory().limits(limits);
    must_exit(&program(&policy), limited, 0, 0);
}

/// Nothing of the sandbox's own is unmapped, protected, moved or mapped over, however the range is put.
fn own_memory() {
    extern "C" fn guest(_: usize) -> i32 {
        let (from, to) = ascetic::experiment::vault();
        let (mailbox, _) = ascetic::experiment::mailbox();
        let rw = sys::PROT_READ | sys::PROT_WRITE;
        let map = freestanding::files::MMAP;
        for (at, len) in [
            (from, 0x1000),
            (from - 0x1000, 0x2000),
            (from - 0x1000, 0x1001),
            (to - 0x1000, 0x1000),
            (mailbox, 0x1000),
            (mailbox + 0x2000, 1),
            (from - 0x100_0000, 0x200_0000),
            (from + 0x2000, 1),
            (from - 1, 2),
        ] {
            // SAFETY: all are refused.
            unsafe {
                must!(c(Sysno::munmap, [at, len]), Err(Errno::EPERM));
                must!(c(Sysno::mprotect, [at, len, rw]), Err(Errno::EPERM));
                must!(c(Sysno::madvise, [at, len, 4]), Err(Errno::EPERM));
                must!(c(Sysno::mremap, [at, len, 0x1000, 1, 0]), Err(Errno::EPERM));
                must!(c(map, [at, len, rw, 0x32, usize::MAX, 0]), Err(Errno::EPERM));
                must!(c(map, [at, len, rw, 0x10_0022, usize::MAX, 0]), Err(Errno::EPERM));
            }
        }
        // SAFETY: refused.
        unsafe {
            must!(c(Sysno::mremap, [mailbox, 0, 0x1000, 1, 0]), Err(Errno::EPERM));
            let mine = c(map, [0, 0x2000, rw, 0x22, usize::MAX, 0]).unwrap();
            must!(c(Sysno::mremap, [mine, 0x1000, 0x1000, 3, mailbox]), Err(Errno::EPERM));
            must!(c(Sysno::brk, [mailbox]), Err(Errno::ENOMEM));
            // The neighbours can be used.
            must!(c(Sysno::munmap, [mine, 0x2000]), Ok(0));
            // SysV shared memory, and the other roads to a second mapping.
            for nr in
                [Sysno::shmget, Sysno::shmat, Sysno::remap_file_pages, Sysno::pkey_mprotect, Sysno::process_vm_writev]
            {
                must!(c(nr, [0, 0, 0]), Err(Errno::ENOSYS));
            }
        }
        0
    }
    let policy = DIRECT.clone().memory();
    must_exit(&program(&policy), guest, 0, 0);
}

fn sockets() {
    /// `struct sockaddr_in`: 127.0.0.1, port 9 (nobody is there).
    const HOME: [u8; 8] = [2, 0, 0, 9, 127, 0, 0, 1];
    extern "C" fn guest(_: usize) -> i32 {
        let address = |port: u8, last: u8| [2u8, 0, 0, port, 127, 0, 0, last, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: the buffers are the guest's own.
        unsafe {
            let s = c(Sysno::socket, [2, 1, 0]).unwrap();
            must!(
                c(Sysno::connect, [s, address(9, 1).as_ptr() as usize, 16]),
                Err(Errno::ECONNREFUSED | Errno::ENETUNREACH)
            );
            must!(c(Sysno::connect, [s, address(10, 1).as_ptr() as usize, 16]), Err(Errno::EACCES));
            must!(c(Sysno::connect, [s, address(9, 2).as_ptr() as usize, 16]), Err(Errno::EACCES));
            must!(c(Sysno::connect, [s, address(9, 1).as_ptr() as usize, 1]), Err(Errno::EACCES));
            must!(c(Sysno::bind, [s, address(0, 1).as_ptr() as usize, 16]), Err(Errno::EACCES));
            must!(c(Sysno::listen, [s, 1]), Err(Errno::EACCES)); // it would get a port
            must!(c(Sysno::socket, [2, 1, 6]), Ok(_));
            must!(c(Sysno::socket, [2, 2 | 0o4000, 17]), Ok(_));
            must!(c(Sysno::socket, [2, 1, 262]), Err(Errno::EPROTONOSUPPORT)); // MPTCP
            must!(c(Sysno::socket, [2, 2, 1]), Err(Errno::EPROTONOSUPPORT)); // ping
            must!(c(Sysno::socket, [2, 5, 0]), Err(Errno::EPROTONOSUPPORT)); // SCTP
            must!(c(Sysno::socket, [2, 3, 0]), Err(Errno::EACCES)); // raw
            must!(c(Sysno::socket, [16, 2, 0]), Err(Errno::EAFNOSUPPORT)); // netlink
            must!(c(Sysno::socket, [10, 1, 0]), Err(Errno::EAFNOSUPPORT));
            let one = 1u32;
            let value = &raw const one as usize;
            must!(c(Sysno::setsockopt, [s, 1, 2, value, 4]), Ok(0)); // SO_REUSEADDR
            must!(c(Sysno::setsockopt, [s, 1, 8, value, 4]), Err(Errno::ENOPROTOOPT)); // SO_RCVBUF
            must!(c(Sysno::setsockopt, [s, 1, 26, value, 4]), Err(Errno::ENOPROTOOPT)); // SO_ATTACH_FILTER
            let mut ends = [0u32; 2];
            must!(c(Sysno::socketpair, [1, 1, 0, ends.as_mut_ptr() as usize]), Ok(0));
            must!(c(Sysno::sendto, [ends[0] as usize, b"ab".as_ptr() as usize, 2, 0, 0, 0]), Ok(2));
            let mut bytes = [0u8; 4];
            must!(c(Sysno::recvfrom, [ends[1] as usize, bytes.as_mut_ptr() as usize, 4, 0, 0, 0]), Ok(2));
            must!(c(Sysno::shutdown, [ends[0] as usize, 1]), Ok(0));
            must!(c(Sysno::sendmsg, [ends[0] as usize, bytes.as_ptr() as usize, 0]), Err(Errno::ENOSYS));
            let own = ascetic::experiment::first_own_fd() as usize;
            must!(c(Sysno::sendto, [own + 5, b"ab".as_ptr() as usize, 2, 0, 0, 0]), Err(Errno::EBADF));
        }
        0
    }
    let addresses: &[&[u8]] = &[&HOME];
    let policy = DIRECT.clone().family(Family { family: 2, addresses }).option(1, 2);
    must_exit(&program(&policy), guest, 0, 0);
    // Where sockets may listen; a family without addresses; a protocol that is listed.
    extern "C" fn more(_: usize) -> i32 {
        let mut ends = [0u32; 2];
        // SAFETY: the buffers are the guest's own.
        unsafe {
            let s = c(Sysno::socket, [2, 1, 0]).unwrap();
            let any_port = [2u8, 0, 0, 0, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
            must!(c(Sysno::bind, [s, any_port.as_ptr() as usize, 16]), Ok(0) | Err(Errno::EADDRNOTAVAIL));
            must!(c(Sysno::listen, [s, 1]), Ok(0));
            let own = ascetic::experiment::first_own_fd() as usize;
            must!(c(Sysno::listen, [own + 5, 1]), Err(Errno::EBADF));
            must!(c(Sysno::socket, [1, 1, 0]), Err(Errno::EACCES));
            must!(c(Sysno::socketpair, [1, 1, 0, ends.as_mut_ptr() as usize]), Ok(0));
            must!(c(Sysno::socket, [16, 2, 15]), Ok(_)); // NETLINK_KOBJECT_UEVENT
            must!(c(Sysno::socket, [16, 2, 9]), Err(Errno::EPROTONOSUPPORT)); // NETLINK_AUDIT
        }
        0
    }
    let addresses: &[&[u8]] = &[&[2, 0, 0, 0, 127, 0, 0, 1]];
    let policy = DIRECT.clone().listen().family(Family { family: 2, addresses });
    let policy = policy.family(Family { family: 1, addresses: &[] });
    let policy = policy.family(Family { family: 16, addresses: &[&[16, 0]] }).protocol(16, 15);
    must_exit(&program(&policy), more, 0, 0);
    extern "C" fn none(_: usize) -> i32 {
        // SAFETY: refused.
        unsafe {
            must!(c(Sysno::socket, [2, 1, 0]), Err(Errno::ENOSYS));
            must!(c(Sysno::socketpair, [1, 1, 0, 0]), Err(Errno::ENOSYS));
        }
        0
    }
    must_exit(&program(&DIRECT), none, 0, 0);
}

fn ioctl_and_fcntl() {
    extern "C" fn guest(_: usize) -> i32 {
        const FIONREAD: usize = 0x541b;
        const TIOCSTI: usize = 0x5412;
        let mut ends = [0u32; 2];
        // SAFETY: the buffers are the guest's own.
        unsafe {
            must!(c(Sysno::pipe2, [ends.as_mut_ptr() as usize, 0]), Ok(0));
            let [read, write] = ends.map(|fd| fd as usize);
            must!(c(Sysno::write, [write, b"abc".as_ptr() as usize, 3]), Ok(3));
            let mut n = 0u32;
            must!(c(Sysno::ioctl, [read, FIONREAD, &raw mut n as usize]), Ok(0));
            check!((&raw const n).read_volatile() == 3);
            must!(c(Sysno::ioctl, [1, 0x5413, ends.as_mut_ptr() as usize]), Ok(0) | Err(Errno::ENOTTY));
            must!(c(Sysno::ioctl, [read, TIOCSTI, &raw mut n as usize]), Err(Errno::ENOSYS));
            let own = ascetic::experiment::first_own_fd() as usize;
            must!(c(Sysno::ioctl, [own, FIONREAD, &raw mut n as usize]), Err(Errno::EBADF));
            let dup = must!(c(Sysno::fcntl, [read, 0, 40]), Ok(40..));
            must!(c(Sysno::fcntl, [dup, 3, 0]), Ok(_));
            must!(c(Sysno::fcntl, [dup, 4, 0o4000]), Ok(0));
            must!(c(Sysno::flock, [open("in/new", RW | 0o100).unwrap(), 2 | 4]), Ok(0));
            must!(c(Sysno::fcntl, [dup, 4, 0o20_000]), Err(Errno::EINVAL)); // O_ASYNC
            must!(c(Sysno::fcntl, [dup, 8, 1]), Err(Errno::EINVAL)); // F_SETOWN
            must!(c(Sysno::fcntl, [dup, 10, 9]), Err(Errno::EINVAL)); // F_SETSIG
            must!(c(Sysno::fcntl, [own, 0, 0]), Err(Errno::EBADF));
        }
        0
    }
    let scratch = Scratch::new();
    scratch.folder("in");
    let root = path("in");
    let policy = DIRECT.clone().ioctl(0x541b).ioctl(0x5413);
    let policy = rooted(policy, &root, ALL);
    must_exit(&program(&policy.clone().locks_and_flags()), guest, 0, 0);
    // What others may share is not changed unless the policy says so.
    extern "C" fn without(_: usize) -> i32 {
        let fd = open("in/new", RW | 0o100).unwrap();
        let lock = [1usize, 0, 0, 0, 0];
        // SAFETY: the buffers are the guest's own.
        unsafe {
            must!(c(Sysno::fcntl, [fd, 3, 0]), Ok(_));
            must!(c(Sysno::fcntl, [fd, 4, 0o4000]), Err(Errno::EPERM));
            must!(c(Sysno::fcntl, [1, 4, 0o4000]), Err(Errno::EPERM));
            must!(c(Sysno::flock, [1, 2]), Err(Errno::EPERM));
            for cmd in [6, 7, 37, 38] {
                must!(c(Sysno::fcntl, [fd, cmd, lock.as_ptr() as usize]), Err(Errno::EPERM));
            }
        }
        0
    }
    must_exit(&program(&policy), without, 0, 0);
}

/// Bytes through descriptors, with partial results, errors and bad pointers as the kernel gives them.
fn other_bytes() {
    extern "C" fn guest(_: usize) -> i32 {
        let fd = open("in/file", RW).unwrap();
        // SAFETY: the buffers are the guest's own.
        unsafe {
            let mut bytes = [0u8; 32];
            let at = bytes.as_mut_ptr() as usize;
            must!(c(Sysno::lseek, [fd, 2, 0]), Ok(2));
            let iov = [at, 2usize, at + 2, 30];
            must!(c(Sysno::readv, [fd, iov.as_ptr() as usize, 2]), Ok(4));
            check!(bytes.starts_with(b"side"));
            must!(c(Sysno::writev, [fd, iov.as_ptr() as usize, 1]), Ok(2));
            must!(c(Sysno::pwrite64, [fd, b"XY".as_ptr() as usize, 2, 1, 0]), Ok(2));
            must!(c(Sysno::pread64, [fd, at, 32, 0, 0]), Ok(8));
            check!(bytes.starts_with(b"iXYidesi"));
            must!(c(Sysno::fdatasync, [fd]), Ok(0));
            must!(c(Sysno::ftruncate, [fd, 3]), Ok(0));
            must!(c(Sysno::pread64, [fd, at, 32, 0, 0]), Ok(3));
            must!(c(Sysno::read, [fd, 8, 5]), Ok(0) | Err(Errno::EFAULT));
            must!(c(Sysno::write, [fd, 8, 5]), Err(Errno::EFAULT));
            must!(c(Sysno::read, [fd, at, usize::MAX]), Ok(0) | Err(Errno::EFAULT | Errno::EINVAL));
            let mut ends = [0u32; 2];
            must!(c(Sysno::pipe2, [ends.as_mut_ptr() as usize, 0o4000]), Ok(0));
            must!(c(Sysno::read, [ends[0] as usize, at, 1]), Err(Errno::EAGAIN));
            static BIG: [u8; 100_000] = [1; 100_000];
            let n = must!(c(Sysno::write, [ends[1] as usize, BIG.as_ptr() as usize, BIG.len()]), Ok(_));
            check!(n < BIG.len(), "{n}");
        }
        0
    }
    with_root(ALL, guest);
}

/// What a libc tries first and does without.
fn fallbacks() {
    extern "C" fn guest(_: usize) -> i32 {
        // SAFETY: refused, or of no effect.
        unsafe {
            for nr in [Sysno::clone3, Sysno::io_uring_setup, Sysno::userfaultfd, Sysno::bpf, Sysno::perf_event_open] {
                must!(c(nr, [0; 6]), Err(Errno::ENOSYS));
            }
            must!(c(Sysno::kill, [1, 15]), Err(Errno::EPERM));
            for nr in [Sysno::ptrace, Sysno::fork, Sysno::execve, Sysno::prctl, Sysno::setrlimit] {
                must!(c(nr, [0; 6]), Err(Errno::EPERM));
            }
            must!(c(Sysno::rseq, [0; 6]), Ok(0));
            must!(c(Sysno::set_robust_list, [0; 6]), Ok(0));
        }
        0
    }
    let policy = Policy::new().default_errno(1).direct(Sysno::write);
    must_exit(&program(&policy), guest, 0, 0);
}

/// What a policy refuses by name, nothing else of it allows; the calls beside it are allowed as before.
fn by_name() {
    extern "C" fn guest(_: usize) -> i32 {
        let mut stat = [0u8; 256];
        let (at, map) = (stat.as_mut_ptr() as usize, freestanding::files::MMAP);
        // SAFETY: refused, or the guest's own memory.
        unsafe {
            must!(one_path(Sysno::unlink, "in/file", [0; 2]), Err(Errno::EROFS));
            must!(one_path(Sysno::rmdir, "in/folder", [0; 2]), Ok(0));
            must!(one_path(freestanding::files::STAT[1], "in/file", [at, 0]), Err(Errno::EROFS));
            must!(one_path(freestanding::files::STAT[0], "in/file", [at, 0]), Ok(0));
            must!(open("in/file", RW), Ok(_));
            let page = c(map, [0, 0x1000, 3, 0x22, usize::MAX, 0]).unwrap();
            must!(c(Sysno::mprotect, [page, 0x1000, 1]), Err(Errno::EROFS));
            must!(c(Sysno::munmap, [page, 0x1000]), Ok(0));
            must!(c(Sysno::socketpair, [1, 1, 0, at]), Err(Errno::EROFS));
            must!(c(Sysno::ioctl, [1, 0x541b, at]), Err(Errno::EROFS));
            must!(c(Sysno::prlimit64, [0, 7, 0, at]), Err(Errno::EROFS));
            must!(c(Sysno::getppid, []), Err(Errno::EROFS));
            must!(c(Sysno::sched_yield, []), Ok(0));
        }
        0
    }
    const EROFS: u32 = 30;
    let scratch = Scratch::new();
    scratch.folder("in");
    scratch.folder("in/folder");
    scratch.file("in/file", b"inside");
    let root = path("in");
    let policy = DIRECT.clone().memory().ioctl(0x541b).family(Family { family: 1, addresses: &[] });
    let mut policy = rooted(policy, &root, ALL);
    let by_link = freestanding::files::STAT[1];
    for call in
        [Sysno::unlink, by_link, Sysno::mprotect, Sysno::socketpair, Sysno::ioctl, Sysno::prlimit64, Sysno::getppid]
    {
        policy = policy.refuse(call, EROFS);
    }
    let mut sandbox = spawn(&program(&policy), guest, 0);
    check!(sandbox.wait(Some(PATIENCE)).guest == Status::Exited(0));
    let (mut log, total) = sandbox.refusals();
    check!(total == 7 && log.all(|refused| refused.rule.contains("by name")), "{total}");
}

fn ids() {
    extern "C" fn guest(_: usize) -> i32 {
        // SAFETY: no memory.
        let (pid, tid) = unsafe { (c(Sysno::getpid, []), c(Sysno::gettid, [])) };
        check!(pid == Ok(untrusted::getpid() as usize) && pid == tid, "{pid:?} {tid:?}");
        // SAFETY: no memory.
        unsafe { must!(c(Sysno::set_tid_address, [0]), Ok(id) if Ok(id) == tid) };
        0
    }
    must_exit(&program(&DIRECT), guest, 0, 0);
}

fn status(code: u8) {
    extern "C" fn guest(code: usize) -> i32 {
        // SAFETY: does not return.
        let _ = unsafe { c(Sysno::exit_group, [code]) };
        1
    }
    both(|| must_exit(&program(&DIRECT), guest, 123, 123));
    let _ = code;
}

/// A write to where nothing is ends the guest by SIGSEGV; one beside it, to where something is, does not.
fn wild_write() {
    extern "C" fn guest(offset: usize) -> i32 {
        let map = freestanding::files::MMAP;
        // SAFETY: memory of the guest's own, and with an offset not: the fault is the point.
        unsafe {
            let at = c(map, [0, 0x2000, sys::PROT_READ | sys::PROT_WRITE, 0x22, usize::MAX, 0]).unwrap();
            must!(c(Sysno::munmap, [at + 0x1000, 0x1000]), Ok(0));
            ((at + 0xfff + offset) as *mut u8).write_volatile(1);
        }
        7
    }
    let policy = DIRECT.clone().memory();
    must_exit(&program(&policy), guest, 0, 7);
    must_crash(&program(&policy), guest, 1, ascetic::signal::SIGSEGV, |record| {
        check!(record.fault.is_some_and(|fault| fault.addr % 0x1000 == 0 && fault.addr != 0));
    });
}

fn tsc() -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: reads a counter, or is answered.
    unsafe { core::arch::asm!("rdtsc", out("eax") lo, out("edx") hi, options(nomem, nostack)) };
    u64::from(hi) << 32 | u64::from(lo)
}

fn tscp() -> u64 {
    if !has_rdtscp() {
        return tsc();
    }
    let (lo, hi): (u32, u32);
    // SAFETY: as above.
    unsafe { core::arch::asm!("rdtscp", out("eax") lo, out("edx") hi, out("ecx") _, options(nomem, nostack)) };
    u64::from(hi) << 32 | u64::from(lo)
}

/// The counter and a clock: the closest of several attempts.
fn at_once(clock: fn() -> u64) -> (u64, u64) {
    let attempt = || {
        let (before, tsc, after) = (clock(), tsc(), clock());
        (after - before, tsc, before + (after - before) / 2)
    };
    let (_, tsc, clock) = (0..8).map(|_| attempt()).min_by_key(|(width, ..)| *width).unwrap_or_default();
    (tsc, clock)
}

/// The counter grows, on the hardware's scale and from its origin; the clock without a system call tells what the call tells.
fn clocks() {
    use core::sync::atomic::AtomicU64;
    /// The hardware's counter, and how much it grows in a second, before there was a guest.
    static BEFORE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    static mut VDSO: Option<freestanding::vdso::ClockGettime> = None;
    const SECOND: u64 = 1_000_000_000;
    fn clock() -> u64 {
        let mut ts = [0usize; 2];
        // SAFETY: the kernel stores a timespec.
        unsafe { must!(c(Sysno::clock_gettime, [1, ts.as_mut_ptr() as usize]), Ok(0)) };
        ts[0] as u64 * SECOND + ts[1] as u64
    }
    fn sleep(ms: usize) {
        let time = [0usize, ms * 1_000_000];
        // SAFETY: the kernel reads a timespec.
        unsafe { must!(c(Sysno::nanosleep, [time.as_ptr() as usize, 0]), Ok(0)) };
    }
    extern "C" fn guest(_: usize) -> i32 {
        sleep(20); // until the scale is a good one
        let [before, rate] = [&BEFORE[0], &BEFORE[1]].map(|word| word.load(Ordering::Relaxed));
        let mut last = tsc();
        check!(last > before && last - before < 60 * rate, "{last} {before} {rate}");
        for i in 0..100 {
            let next = if i % 2 == 0 { tscp() } else { tsc() };
            check!(next > last, "{next} {last}");
            last = next;
        }
        let (from, start) = at_once(clock);
        sleep(100);
        let (to, end) = at_once(clock);
        let expected = (u128::from(end - start) * u128::from(rate) / u128::from(SECOND)) as u64;
        check!((to - from).abs_diff(expected) < expected / 10, "{} {expected}", to - from);
        // Where the kernel's clock is not the counter, its library makes the call after all.
        // SAFETY: found before there was a guest, which has the same memory.
        let Some(vdso) = (unsafe { VDSO }).filter(|_| raw()) else { return 0 };
        for _ in 0..20 {
            let (mut ts, before) = ([0usize; 2], clock());
            let told = vdso(1, &mut ts);
            let (now, after) = (ts[0] as u64 * SECOND + ts[1] as u64, clock());
            const OFF: u64 = 5_000_000;
            check!(told == 0 && now + OFF > before && now < after + OFF, "{before} {now} {after}");
        }
        0
    }
    // SAFETY: there is one thread.
    unsafe { VDSO = freestanding::vdso::clock_gettime() };
    // SAFETY: as above.
    check!(unsafe { VDSO }.is_some());
    let (from, start) = at_once(sys::now);
    let _ = sys::poll(&mut [], Some(Duration::from_millis(100)));
    let (to, end) = at_once(sys::now);
    let rate = u128::from(to - from) * u128::from(SECOND) / u128::from(end - start);
    BEFORE[0].store(from, Ordering::Relaxed);
    BEFORE[1].store(rate as u64, Ordering::Relaxed);
    must_exit(&program(&DIRECT), guest, 0, 0);
}

// Functions that tell how far the stack pointer is from where the ABI has it at their entry: behind the return address a
// multiple of 16.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    "guests_aligned: lea 8(%rsp), %rax",
    "and $15, %eax",
    "mov %eax, {told}(%rip)",
    "ret",
    told = sym TOLD,
    options(att_syntax)
);
#[cfg(target_arch = "x86")]
core::arch::global_asm!(
    "guests_aligned: lea 4(%esp), %eax",
    "and $15, %eax",
    "mov %eax, {told}",
    "ret",
    told = sym TOLD,
    options(att_syntax)
);

unsafe extern "C" {
    safe fn guests_aligned(_: usize) -> i32;
}

static TOLD: AtomicU32 = AtomicU32::new(99);

/// Where the guest begins, where a thread of its begins, and where its handlers begin.
fn aligned() {
    extern "C" fn guest(_: usize) -> i32 {
        extern "C" fn thread(arg: usize) {
            guests_aligned(arg);
        }
        static WORD: AtomicU32 = AtomicU32::new(0);
        let begun = guests_aligned as extern "C" fn(usize) -> i32 as *const ();
        for i in 0..2 {
            TOLD.store(99, Ordering::SeqCst);
            // SAFETY: the function takes a word that it does not look at, and what it returns a thread ignores.
            let at_once = unsafe { core::mem::transmute::<*const (), extern "C" fn(usize)>(begun) };
            let f = if i == 0 { thread } else { at_once };
            check!(super::threads::start(i, f, 0, &WORD).is_ok());
            super::threads::join(&WORD);
            check!(TOLD.load(Ordering::SeqCst) == 0, "{i}: {}", TOLD.load(Ordering::SeqCst));
        }
        for flags in [0, ascetic::signal::SA_SIGINFO] {
            TOLD.store(99, Ordering::SeqCst);
            let mask = ascetic::signal::SigSet::EMPTY;
            let action = ascetic::signal::SigAction { handler: begun as usize, flags, restorer: 0, mask };
            // SAFETY: a `struct sigaction`; the handler looks at nothing.
            unsafe {
                must!(c(Sysno::rt_sigaction, [10, &raw const action as usize, 0, 8]), Ok(0));
                must!(c(Sysno::kill, [c(Sysno::getpid, []).unwrap_or(0), 10]), Ok(0));
            }
            check!(TOLD.load(Ordering::SeqCst) == 0, "{flags:#x}: {}", TOLD.load(Ordering::SeqCst));
        }
        0
    }
    let policy = DIRECT.clone().threads(3).signals();
    must_exit(&program(&policy), guests_aligned, 0, 0);
    must_exit(&program(&policy), guest, 0, 0);
}

/// Numbers of the x32 table, numbers that no table has, and calls by another architecture's instruction, are no calls that
/// the table of this one has under such a number.
#[cfg(target_arch = "x86_64")]
fn foreign_numbers() {
    extern "C" fn guest(_: usize) -> i32 {
        /// As the program's own instruction makes it.
        fn syscall(nr: usize, arg: usize) -> isize {
            let result;
            // SAFETY: of no effect: refused, or an id.
            unsafe {
                core::arch::asm!("syscall", inlateout("rax") nr => result, in("rdi") arg, in("rsi") 0, in("rdx") 0,
                    out("rcx") _, out("r11") _);
            }
            result
        }
        /// i386's way, with i386's numbers.
        fn int80(nr: usize, arg: usize) -> isize {
            let result;
            // SAFETY: as above. The compiler keeps %rbx to itself.
            unsafe {
                core::arch::asm!("xchg rbx, {arg}", "int 0x80", "xchg rbx, {arg}", arg = inout(reg) arg => _,
                    inlateout("rax") nr => result, in("rcx") 0, in("rdx") 0,
                    out("r8") _, out("r9") _, out("r10") _, out("r11") _);
            }
            result
        }
        const NO: isize = -38;
        const X32: usize = 0x4000_0000;
        let parent = syscall(Sysno::getppid as usize, 0);
        check!(parent > 1, "{parent}");
        for nr in [Sysno::getppid, Sysno::getpid, Sysno::write, Sysno::close, Sysno::exit_group] {
            for nr in [X32 | nr as usize, 1 << 31 | nr as usize, 1 << 32 | nr as usize, usize::MAX << 32 | nr as usize]
            {
                check!(syscall(nr, 1) == NO, "{nr:#x}");
            }
        }
        check!(syscall(X32 | 512, 0) == NO && syscall(X32 | 520, 0) == NO && syscall(usize::MAX, 0) == NO);
        // i386's exit, fork, read, write, close, getpid, getppid, dup2, exit_group; what has these numbers here too.
        for nr in [1, 2, 3, 4, 6, 20, 63, 64, 252, Sysno::getppid as usize, Sysno::exit_group as usize, 60, X32 | 64] {
            check!(int80(nr, 1) == NO, "{nr}");
        }
        check!(syscall(Sysno::getppid as usize, 0) == parent);
        0
    }
    both(|| ());
    if !raw() {
        skip("no syscall user dispatch on this kernel");
    }
    must_exit(&program(&DIRECT), guest, 0, 0);
}

fn refusals() {
    extern "C" fn guest(_: usize) -> i32 {
        // SAFETY: refused.
        unsafe {
            must!(
                untrusted::call(Sysno::openat, [CWD, c"/etc/shadow".as_ptr() as usize, 0, 0, 0, 0]),
                Err(Errno::EACCES)
            );
            must!(untrusted::call(Sysno::ptrace, [1, 2, 3, 4, 0, 0]), Err(Errno::ENOSYS));
            let own = ascetic::experiment::first_own_fd() as usize;
            must!(untrusted::call(Sysno::close, [own, 0, 0, 0, 0, 0]), Err(Errno::EBADF));
        }
        0
    }
    let scratch = Scratch::new();
    scratch.folder("in");
    let root = path("in");
    let policy = DIRECT.clone();
    let policy = rooted(policy, &root, ALL);
    let mut sandbox = spawn(&program(&policy), guest, 0);
    check!(sandbox.wait(Some(PATIENCE)).guest == Status::Exited(0));
    let (mut log, total) = sandbox.refusals();
    check!(total == 3, "{total}");
    let (shadow, ptrace, close) = (log.next().unwrap(), log.next().unwrap(), log.next().unwrap());
    check!(shadow.name() == "openat" && shadow.path() == "/etc/shadow" && shadow.errno == 13, "{shadow:?}");
    let code = guest as *const () as usize;
    check!(shadow.pc.wrapping_sub(code) < 4096, "{shadow:?} {code:#x}");
    check!(ptrace.name() == "ptrace" && ptrace.args[..4] == [1, 2, 3, 4] && !ptrace.rule.is_empty(), "{ptrace:?}");
    check!(close.name() == "close" && close.errno == 9, "{close:?}");
    check!(log.next().is_none());
}
