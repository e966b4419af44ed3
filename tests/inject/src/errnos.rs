//! What a call can fail with, by its manual page, when nothing is wrong with the caller.

use nix::errno::Errno::{
    self, EACCES, EAGAIN, EINTR, EINVAL, EIO, EMFILE, ENFILE, ENOENT, ENOMEM, ENOSYS, EOPNOTSUPP, EPERM, ESRCH,
};

/// The errors of a call; none if it has none, or if it has done its work even so. `file` is what its descriptor is of.
pub fn of(call: &str, file: &str) -> &'static [Errno] {
    match call {
        // One more than is counted always fits (`eventfd(2)`).
        "write" if file.contains("eventfd") => &[],
        "read" if file.contains("eventfd") => &[EINTR],
        // What is counted is there, and so is memory of ours; nothing waits.
        "waitid" | "wait4" | "rt_sigprocmask" => &[],
        // Wakes somebody, or moves him if he is still there (`futex(2)`).
        "futex" | "futex_time64" => &[EAGAIN],
        // They cannot fail, or do not come back.
        "exit" | "exit_group" | "rt_sigreturn" | "sigreturn" | "getpid" | "gettid" | "getppid" | "sched_yield" => &[],
        // A descriptor is closed whatever `close` says. What `munmap` does not unmap, nobody can.
        "close" | "munmap" => &[],
        "getrandom" => &[EINTR, ENOSYS],
        // The clock is there.
        "clock_gettime" | "clock_gettime64" => &[],
        "mmap" | "mmap2" | "mremap" => &[ENOMEM, EPERM, EAGAIN],
        "mprotect" => &[ENOMEM, EACCES],
        "clone" | "clone3" | "fork" | "vfork" => &[EAGAIN, ENOMEM],
        "memfd_create" | "eventfd2" | "pipe2" | "socketpair" | "pidfd_open" | "epoll_create1" | "dup" | "dup2"
        | "dup3" => &[EMFILE, ENFILE, ENOMEM, EPERM],
        "open" | "openat" | "openat2" => &[EMFILE, ENFILE, ENOENT, EACCES, EINTR, EAGAIN, ENOMEM],
        "read" | "write" | "pread64" | "pwrite64" | "recvmsg" | "sendmsg" => &[EINTR, EIO, EAGAIN, ENOMEM],
        "poll" | "ppoll" | "ppoll_time64" => &[EINTR, ENOMEM],
        "kill" | "tgkill" | "pidfd_send_signal" => &[EPERM, ESRCH],
        "fcntl" | "fcntl64" => &[EPERM, EAGAIN, ENOMEM],
        _ => &[EPERM, EINVAL, ENOSYS, EOPNOTSUPP, ENOMEM],
    }
}
