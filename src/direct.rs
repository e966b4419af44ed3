//! The calls that may be direct: an allow list, one line of reason each.
//!
//! A direct call is made by T after checks on six registers. It may be on this list only if nothing more is needed:
//! it must not act on the calling task (that is T, not U), not create, stop or signal tasks, not change mappings, and
//! must not follow pointers in memory to anything but memory that the kernel itself checks. A policy picks from the
//! list; what is not here, and any number that the kernel may add, does not compile ([`Policy::direct`]).
//!
//! The vault is read-only memory between guard pages, so a call that only fills or reads buffers cannot harm it even
//! through an `iovec`; a pointer into it in a register is refused all the same. So is what only looks like one: on i386 half of
//! a 64-bit offset, which is EFAULT then.
//!
//! [`Policy::direct`]: crate::policy::Policy::direct

use crate::abi::{ROW_FUTEX, ROW_SMALL};
use crate::sys::Sysno;

/// One call of the list.
#[derive(Clone, Copy, Debug)]
pub struct Direct {
    /// The call.
    pub call: Sysno,
    /// Conditions of its row: bit `i` is set when argument `i` is a descriptor, where protected ones are refused;
    /// [`ROW_SMALL`]; [`ROW_FUTEX`].
    pub row: u32,
    /// Why T may make it on registers alone.
    pub reason: &'static str,
}

const fn d(call: Sysno, row: u32, reason: &'static str) -> Direct {
    Direct { call, row, reason }
}

const FD: u32 = 0b1;
const FD_FD: u32 = 0b11;
const CLOCK: u32 = ROW_SMALL;

/// The list.
pub const DIRECT: &[Direct] = &[
    // Facts that are the same for T and U.
    d(Sysno::getppid, 0, "the supervisor is the parent of T and of U"),
    d(Sysno::getuid, 0, "credentials are the same for both, and fixed"),
    d(Sysno::geteuid, 0, "as getuid"),
    d(Sysno::getgid, 0, "as getuid"),
    d(Sysno::getegid, 0, "as getuid"),
    d(Sysno::getresuid, 0, "as getuid; fills memory"),
    d(Sysno::getresgid, 0, "as getuid; fills memory"),
    d(Sysno::getgroups, 0, "as getuid; fills memory"),
    d(Sysno::getpgrp, 0, "T and U are in one process group"),
    d(Sysno::uname, 0, "fills memory with constants of the machine"),
    d(Sysno::sysinfo, 0, "fills memory with counters of the machine"),
    // Time.
    d(Sysno::clock_gettime, CLOCK, "fills memory; T's CPU clocks tell of T, the others of the machine"),
    d(Sysno::clock_getres, CLOCK, "fills memory"),
    d(Sysno::gettimeofday, 0, "fills memory"),
    d(Sysno::time, 0, "fills memory"),
    d(Sysno::nanosleep, 0, "T sleeps for U; nobody else waits for T"),
    d(Sysno::clock_nanosleep, CLOCK, "as nanosleep"),
    d(Sysno::sched_yield, 0, "gives up the CPU"),
    d(Sysno::getrandom, 0, "fills memory"),
    d(Sysno::sched_getaffinity, CLOCK, "fills memory with T's processors, or those of a kernel thread below 16"),
    // Bytes through descriptors that the guest holds anyway.
    d(Sysno::read, FD, "U may make it itself; fills memory"),
    d(Sysno::write, FD, "U may make it itself; reads memory"),
    d(Sysno::readv, FD, "as read; the kernel checks the buffers that the iovec names"),
    d(Sysno::writev, FD, "as write; everything mapped is readable by U anyway"),
    d(Sysno::pread64, FD, "as read"),
    d(Sysno::pwrite64, FD, "as write"),
    d(Sysno::lseek, FD, "moves the offset of a file that the guest holds"),
    d(Sysno::fstat, FD, "fills memory with facts of a file that the guest holds"),
    d(Sysno::fstatfs, FD, "as fstat"),
    d(Sysno::fsync, FD, "of a file that the guest holds"),
    d(Sysno::fdatasync, FD, "as fsync"),
    d(Sysno::ftruncate, FD, "of a file that the guest holds open for writing"),
    d(Sysno::fallocate, FD, "as ftruncate"),
    d(Sysno::getdents64, FD, "lists a folder that the guest holds; fills memory"),
    d(Sysno::sendfile, FD_FD, "as read and write"),
    d(Sysno::poll, 0, "looks at descriptors; a doorbell may be looked at"),
    d(Sysno::futex, ROW_FUTEX, "waits for and wakes by guest memory; never by the vault's; no priority inheritance"),
    // The table of descriptors.
    d(Sysno::close, FD, "of the guest's own; the sandbox's are refused"),
    d(Sysno::dup, FD, "as close"),
    d(Sysno::dup2, FD_FD, "as close, both ways"),
    d(Sysno::dup3, FD_FD, "as close, both ways"),
    d(Sysno::pipe, 0, "new descriptors of a kind that reaches nobody else"),
    d(Sysno::pipe2, 0, "as pipe; a notification pipe needs an ioctl to be of any use"),
    d(Sysno::eventfd2, 0, "as pipe"),
    d(Sysno::epoll_create1, 0, "as pipe"),
    d(Sysno::epoll_ctl, 0b101, "both descriptors are the guest's"),
    d(Sysno::epoll_wait, FD, "fills memory"),
    d(Sysno::timerfd_create, 0, "as pipe; no signal"),
    d(Sysno::timerfd_settime, FD, "as timerfd_create"),
    d(Sysno::timerfd_gettime, FD, "as timerfd_create"),
    // The same on i386, with 64-bit arguments or results.
    #[cfg(target_arch = "x86")]
    d(Sysno::getuid32, 0, "as getuid"),
    #[cfg(target_arch = "x86")]
    d(Sysno::geteuid32, 0, "as getuid"),
    #[cfg(target_arch = "x86")]
    d(Sysno::getgid32, 0, "as getuid"),
    #[cfg(target_arch = "x86")]
    d(Sysno::getegid32, 0, "as getuid"),
    #[cfg(target_arch = "x86")]
    d(Sysno::clock_gettime64, CLOCK, "as clock_gettime"),
    #[cfg(target_arch = "x86")]
    d(Sysno::clock_getres_time64, CLOCK, "as clock_getres"),
    #[cfg(target_arch = "x86")]
    d(Sysno::clock_nanosleep_time64, CLOCK, "as nanosleep"),
    #[cfg(target_arch = "x86")]
    d(Sysno::_llseek, FD, "as lseek; fills memory"),
    #[cfg(target_arch = "x86")]
    d(Sysno::fstat64, FD, "as fstat"),
    #[cfg(target_arch = "x86")]
    d(Sysno::fstatfs64, FD, "as fstatfs"),
    #[cfg(target_arch = "x86")]
    d(Sysno::ftruncate64, FD, "as ftruncate"),
    #[cfg(target_arch = "x86")]
    d(Sysno::futex_time64, ROW_FUTEX, "as futex"),
    #[cfg(target_arch = "x86")]
    d(Sysno::sendfile64, FD_FD, "as sendfile"),
];

/// What an ordinary program's libc needs besides files, memory and threads: time, bytes through descriptors that it holds
/// anyway, new descriptors of kinds that reach nobody else, its own ids.
pub(crate) const ORDINARY: &[Sysno] = &[
    Sysno::getppid,
    Sysno::getuid,
    Sysno::geteuid,
    Sysno::getgid,
    Sysno::getegid,
    Sysno::uname,
    Sysno::sysinfo,
    Sysno::clock_gettime,
    Sysno::clock_getres,
    Sysno::gettimeofday,
    Sysno::time,
    Sysno::nanosleep,
    Sysno::clock_nanosleep,
    Sysno::sched_yield,
    Sysno::sched_getaffinity,
    Sysno::getrandom,
    Sysno::read,
    Sysno::write,
    Sysno::readv,
    Sysno::writev,
    Sysno::pread64,
    Sysno::pwrite64,
    Sysno::lseek,
    Sysno::fstat,
    Sysno::fstatfs,
    Sysno::fsync,
    Sysno::fdatasync,
    Sysno::ftruncate,
    Sysno::fallocate,
    Sysno::getdents64,
    Sysno::poll,
    Sysno::futex,
    Sysno::close,
    Sysno::dup,
    Sysno::dup2,
    Sysno::dup3,
    Sysno::pipe,
    Sysno::pipe2,
    Sysno::eventfd2,
    Sysno::epoll_create1,
    Sysno::epoll_ctl,
    Sysno::epoll_wait,
    #[cfg(target_arch = "x86")]
    Sysno::getuid32,
    #[cfg(target_arch = "x86")]
    Sysno::geteuid32,
    #[cfg(target_arch = "x86")]
    Sysno::getgid32,
    #[cfg(target_arch = "x86")]
    Sysno::getegid32,
    #[cfg(target_arch = "x86")]
    Sysno::clock_gettime64,
    #[cfg(target_arch = "x86")]
    Sysno::clock_getres_time64,
    #[cfg(target_arch = "x86")]
    Sysno::clock_nanosleep_time64,
    #[cfg(target_arch = "x86")]
    Sysno::_llseek,
    #[cfg(target_arch = "x86")]
    Sysno::fstat64,
    #[cfg(target_arch = "x86")]
    Sysno::fstatfs64,
    #[cfg(target_arch = "x86")]
    Sysno::ftruncate64,
    #[cfg(target_arch = "x86")]
    Sysno::futex_time64,
];

/// Why a call may not be direct, for those that people are likely to try.
pub(crate) const fn why_not(call: Sysno) -> &'static str {
    match call {
        Sysno::prctl
        | Sysno::arch_prctl
        | Sysno::set_thread_area
        | Sysno::modify_ldt
        | Sysno::rt_sigaction
        | Sysno::rt_sigprocmask
        | Sysno::sigaltstack
        | Sysno::rt_sigtimedwait
        | Sysno::signalfd
        | Sysno::signalfd4
        | Sysno::set_tid_address
        | Sysno::set_robust_list
        | Sysno::rseq
        | Sysno::personality
        | Sysno::unshare
        | Sysno::setns
        | Sysno::alarm
        | Sysno::setitimer
        | Sysno::exit
        | Sysno::exit_group
        | Sysno::execve
        | Sysno::execveat
        | Sysno::getpid
        | Sysno::gettid
        | Sysno::seccomp
        | Sysno::ppoll
        | Sysno::pselect6
        | Sysno::epoll_pwait => "it acts on the calling task, and that is the trusted thread",
        Sysno::clone
        | Sysno::clone3
        | Sysno::fork
        | Sysno::vfork
        | Sysno::kill
        | Sysno::tkill
        | Sysno::tgkill
        | Sysno::rt_sigqueueinfo
        | Sysno::timer_create
        | Sysno::ptrace
        | Sysno::pidfd_send_signal
        | Sysno::fcntl => "it can create, stop or signal tasks",
        Sysno::mmap
        | Sysno::mprotect
        | Sysno::munmap
        | Sysno::mremap
        | Sysno::brk
        | Sysno::remap_file_pages
        | Sysno::shmat
        | Sysno::madvise
        | Sysno::pkey_mprotect => "it changes mappings",
        Sysno::process_vm_writev | Sysno::userfaultfd | Sysno::io_uring_setup | Sysno::io_uring_enter => {
            "it reaches memory by another road"
        }
        Sysno::open | Sysno::openat | Sysno::openat2 | Sysno::stat | Sysno::access | Sysno::connect => {
            "its decision needs memory that the guest can change meanwhile"
        }
        _ => "it is not on the direct allow list (src/direct.rs)",
    }
}
