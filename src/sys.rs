//! The kernel, called without a libc: the few calls that set-up and supervision need, and their constants.
//!
//! Numbers come from the `syscalls` crate; constants from `include/uapi/linux/*.h`, each named as there.

use crate::signal::Info;
use core::ffi::CStr;
use core::time::Duration;
pub use syscalls::{Errno, Sysno};

/// `EFAULT` as a plain number.
pub const EFAULT: i32 = 14;
/// `EINTR` as a plain number.
pub const EINTR: i32 = 4;
/// `EAGAIN` as a plain number.
pub const EAGAIN: i32 = 11;
/// `EINVAL` as a plain number.
pub const EINVAL: i32 = 22;
/// `EBADF` as a plain number.
pub const EBADF: i32 = 9;
/// `ENOSYS` as a plain number.
pub const ENOSYS: i32 = 38;
/// The highest `errno`: results from `-MAX_ERRNO` on are errors (`include/linux/err.h`).
pub const MAX_ERRNO: usize = 4095;
/// An error as calls return it: the negative `errno`.
pub fn failure(errno: Errno) -> usize {
    (-errno.into_raw()) as isize as usize
}

/// All bits of a futex operation but `FUTEX_PRIVATE_FLAG` and `FUTEX_CLOCK_REALTIME`.
pub const FUTEX_CMD_MASK: i32 = !(128 | 256);

/// `PROT_READ`
pub const PROT_READ: usize = 1;
/// `PROT_WRITE`
pub const PROT_WRITE: usize = 2;
/// `PROT_EXEC`
pub const PROT_EXEC: usize = 4;
const MAP_SHARED: usize = 1;
const MAP_PRIVATE: usize = 2;
const MAP_FIXED: usize = 0x10;
const MAP_ANONYMOUS: usize = 0x20;
const MAP_NORESERVE: usize = 0x4000;
const MADV_DONTFORK: usize = 10;
const MFD_CLOEXEC: usize = 1;
const MFD_ALLOW_SEALING: usize = 2;
const MFD_EXEC: usize = 0x10;
const F_DUPFD_CLOEXEC: usize = 1030;
const F_GETFD: usize = 1;
const F_GETFL: usize = 3;
const F_SETFL: usize = 4;
const F_ADD_SEALS: usize = 1033;
/// `F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW`
pub const SEAL_SIZE: usize = 1 | 2 | 4;
/// `F_SEAL_FUTURE_WRITE`
pub const SEAL_FUTURE_WRITE: usize = 0x10;
const O_NONBLOCK: usize = 0o4000;
/// `O_CLOEXEC`
pub const O_CLOEXEC: usize = 0o2_000_000;
const SEEK_CUR: usize = 1;
const RLIMIT_FSIZE: usize = 1;
const WNOHANG: usize = 1;
const WALL: usize = 0x4000_0000;
const CLOCK_MONOTONIC: usize = 1;
/// `PR_SET_PDEATHSIG`
pub const PR_SET_PDEATHSIG: usize = 1;
/// `PR_SET_PTRACER`
pub const PR_SET_PTRACER: usize = 0x5961_6d61;
/// `PR_SET_DUMPABLE`
pub const PR_SET_DUMPABLE: usize = 4;
/// `PR_GET_SECCOMP`
pub const PR_GET_SECCOMP: usize = 21;
/// `PR_SET_SECCOMP`
pub const PR_SET_SECCOMP: usize = 22;
/// `PR_GET_TSC`
pub const PR_GET_TSC: usize = 25;
/// `PR_SET_TSC`
pub const PR_SET_TSC: usize = 26;
/// `PR_TSC_SIGSEGV`
pub const PR_TSC_SIGSEGV: usize = 2;
/// `PR_TSC_ENABLE`
pub const PR_TSC_ENABLE: usize = 1;
/// `PR_SET_SYSCALL_USER_DISPATCH`
pub const PR_SET_SYSCALL_USER_DISPATCH: usize = 59;
/// `PR_SYS_DISPATCH_ON`
pub const PR_SYS_DISPATCH_ON: usize = 1;
/// `RLIMIT_CORE`
pub const RLIMIT_CORE: usize = 4;
/// `RLIMIT_NOFILE`
pub const RLIMIT_NOFILE: usize = 7;
/// `RLIMIT_AS`
pub const RLIMIT_AS: usize = 9;
/// `PR_SET_NO_NEW_PRIVS`
pub const PR_SET_NO_NEW_PRIVS: usize = 38;
/// `READ_IMPLIES_EXEC` (`include/uapi/linux/personality.h`)
pub const READ_IMPLIES_EXEC: usize = 0x40_0000;
/// `PR_SET_NAME`
pub const PR_SET_NAME: usize = 15;
/// `FUTEX_WAIT`
pub const FUTEX_WAIT: usize = 0;
const FUTEX_WAKE: usize = 1;
/// `SIG_SETMASK`
pub const SIG_SETMASK: usize = 2;
/// `AT_MINSIGSTKSZ` of the auxiliary vector (`arch/x86/include/uapi/asm/auxvec.h`).
pub const AT_MINSIGSTKSZ: usize = 51;
/// `AT_HWCAP2`
pub const AT_HWCAP2: usize = 26;
const AT_FDCWD: usize = -100isize as usize;

/// Result of a system call.
pub type Result<T> = core::result::Result<T, Errno>;

/// Makes a system call.
///
/// # Safety
///
/// As the call's manual page says of these arguments.
#[inline]
pub unsafe fn call(nr: Sysno, args: [usize; 6]) -> Result<usize> {
    #[cfg(feature = "simulation")]
    if let Some(result) = crate::experiment::simulated(nr, &args) {
        return result;
    }
    let [a, b, c, d, e, f] = args;
    // SAFETY: the caller answers for the call.
    unsafe { syscalls::syscall6(nr, a, b, c, d, e, f) }
}

macro_rules! sys {
    ($nr:ident $(, $arg:expr)* $(,)?) => { sys!(@ $nr, [$($arg,)*], [0, 0, 0, 0, 0, 0]) };
    (@ $nr:ident, [$($arg:expr,)*], $zero:expr) => {{
        let given = [$($arg),*];
        let mut args: [usize; 6] = $zero;
        let mut rest = args.iter_mut();
        for value in given {
            if let Some(slot) = rest.next() {
                *slot = value;
            }
        }
        $crate::sys::call($crate::sys::Sysno::$nr, args)
    }};
}

/// A call that failed, and what the kernel said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed(pub Sysno, pub Errno);

impl Failed {
    /// For `map_err`: it was this call.
    pub fn of(call: Sysno) -> impl Fn(Errno) -> Self + Copy {
        move |errno| Self(call, errno)
    }
}

/// Reserves `len` bytes of address space: private, no access, no memory.
pub fn reserve(len: usize) -> Result<usize> {
    // SAFETY: a new mapping wherever there is room.
    unsafe { mmap(0, len, 0, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, usize::MAX, 0) }
}

/// Maps memory of zeros wherever there is room.
pub fn map_private(len: usize, prot: usize) -> Result<usize> {
    // SAFETY: a new mapping wherever there is room.
    unsafe { mmap(0, len, prot, MAP_PRIVATE | MAP_ANONYMOUS, usize::MAX, 0) }
}

/// Maps `fd` shared wherever there is room.
pub fn map_shared(len: usize, prot: usize, fd: i32) -> Result<usize> {
    // SAFETY: a new mapping wherever there is room.
    unsafe { mmap(0, len, prot, MAP_SHARED, fd as usize, 0) }
}

/// Maps `fd` shared at `addr`, replacing what is there.
///
/// # Safety
///
/// Nothing refers to the memory that is replaced.
pub unsafe fn map_shared_at(addr: usize, len: usize, prot: usize, fd: i32, offset: usize) -> Result<()> {
    // SAFETY: the caller's.
    unsafe { mmap(addr, len, prot, MAP_SHARED | MAP_FIXED, fd as usize, offset) }.map(drop)
}

unsafe fn mmap(addr: usize, len: usize, prot: usize, flags: usize, fd: usize, offset: usize) -> Result<usize> {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's.
    return unsafe { sys!(mmap, addr, len, prot, flags, fd, offset) };
    #[cfg(target_arch = "x86")]
    // SAFETY: the caller's. mmap2 counts the offset in pages.
    return unsafe { sys!(mmap2, addr, len, prot, flags, fd, offset / crate::abi::PAGE) };
}

/// Changes the protection of pages.
///
/// # Safety
///
/// No reference relies on the access that is taken away.
pub unsafe fn mprotect(addr: usize, len: usize, prot: usize) -> Result<()> {
    // SAFETY: the caller's.
    unsafe { sys!(mprotect, addr, len, prot) }.map(drop)
}

/// Unmaps pages.
///
/// # Safety
///
/// Nothing refers to the memory any more.
pub unsafe fn munmap(addr: usize, len: usize) -> Result<()> {
    // SAFETY: the caller's.
    unsafe { sys!(munmap, addr, len) }.map(drop)
}

/// Keeps a mapping out of forked children.
pub fn dont_fork(addr: usize, len: usize) -> Result<()> {
    // SAFETY: changes what children inherit, nothing here.
    unsafe { sys!(madvise, addr, len, MADV_DONTFORK) }.map(drop)
}

/// `mseal(2)`, since Linux 6.10; `ENOSYS` before. Its number is 462 everywhere (`scripts/syscall.tbl`).
pub fn mseal(addr: usize, len: usize) -> Result<()> {
    // SAFETY: forbids later changes of the mappings; their content and access stay.
    Errno::from_ret(unsafe { crate::arch::syscall3(462, addr, len, 0) }).map(drop)
}

/// A new memfd of `len` bytes that can be sealed. `exec` asks for one that may be mapped executable.
pub fn memfd(name: &CStr, len: usize, exec: bool) -> core::result::Result<i32, Failed> {
    let mut limit = [0u64; 2];
    // SAFETY: the kernel stores two numbers.
    unsafe { sys!(prlimit64, 0, RLIMIT_FSIZE, 0, limit.as_mut_ptr() as usize) }
        .map_err(Failed::of(Sysno::prlimit64))?;
    if limit[0] < len as u64 {
        return Err(Failed(Sysno::ftruncate, Errno::EFBIG)); // ftruncate would not only fail, but raise SIGXFSZ
    }
    let flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    // SAFETY: `name` ends in NUL.
    let create = |flags| unsafe { sys!(memfd_create, name.as_ptr() as usize, flags) };
    let fd = match create(if exec { flags | MFD_EXEC } else { flags }) {
        Err(Errno::EINVAL) => create(flags), // before 6.3 there is no MFD_EXEC, and every memfd is executable
        other => other,
    }
    .map_err(Failed::of(Sysno::memfd_create))?;
    // SAFETY: `fd` is ours.
    let sized = unsafe { sys!(ftruncate, fd, len) };
    match sized {
        Ok(_) => Ok(fd as i32),
        Err(errno) => {
            close(fd as i32);
            Err(Failed(Sysno::ftruncate, errno))
        }
    }
}

/// Adds seals to a memfd.
pub fn seal(fd: i32, seals: usize) -> Result<()> {
    // SAFETY: only restricts what can be done with the file.
    unsafe { sys!(fcntl, fd as usize, F_ADD_SEALS, seals) }.map(drop)
}

/// A new eventfd.
pub fn eventfd(blocking: bool) -> Result<i32> {
    let flags = if blocking { O_CLOEXEC } else { O_CLOEXEC | O_NONBLOCK }; // EFD_* are the same numbers
    // SAFETY: makes a descriptor.
    unsafe { sys!(eventfd2, 0, flags) }.map(|fd| fd as i32)
}

/// A new pipe: (read end, write end), neither of which blocks.
pub fn pipe() -> Result<(i32, i32)> {
    pipe_with(O_NONBLOCK)
}

/// A new pipe: (read end, write end), both of which block.
pub fn blocking_pipe() -> Result<(i32, i32)> {
    pipe_with(0)
}

fn pipe_with(flags: usize) -> Result<(i32, i32)> {
    let mut ends = [0i32; 2];
    // SAFETY: the kernel stores two descriptors.
    unsafe { sys!(pipe2, ends.as_mut_ptr() as usize, O_CLOEXEC | flags) }?;
    Ok((ends[0], ends[1]))
}

/// What is asked for as the buffer of [`credential_pair`], in bytes. The kernel doubles it.
pub const SENT: usize = 8192;

/// The same, of messages of memory: room for one of 16 KiB, and for what others that write there can have left.
pub const SENT_MEMORY: usize = 32768;

/// The most messages that a [`credential_pair`] of [`SENT`] bytes holds, besides one for each task that sends: the kernel charges a message, an
/// empty one, too, with its `struct sk_buff` and `struct skb_shared_info`, which are more than 256 bytes on both
/// architectures, and lets whoever finds less than the buffer charged send one more (`sock_alloc_send_pskb`,
/// `net/core/sock.c`).
pub const SENT_MOST: usize = 2 * SENT / 256;

/// A pair of connected sockets that keep messages apart: the first, which does not block, is told who sent each
/// (`SO_PASSCRED`, `unix(7)`).
pub fn credential_pair(sent: usize) -> core::result::Result<(i32, i32), Failed> {
    const AF_UNIX: usize = 1;
    const SOCK_SEQPACKET: usize = 5;
    const SOL_SOCKET: usize = 1;
    const SO_SNDBUF: usize = 7;
    const SO_PASSCRED: usize = 16;
    let mut ends = [0i32; 2];
    // SAFETY: the kernel stores two descriptors.
    unsafe { sys!(socketpair, AF_UNIX, SOCK_SEQPACKET | O_CLOEXEC, 0, ends.as_mut_ptr() as usize) }
        .map_err(Failed::of(Sysno::socketpair))?;
    let set = |end: i32, option, value: i32| {
        // SAFETY: the kernel reads four bytes.
        unsafe { sys!(setsockopt, end as usize, SOL_SOCKET, option, &raw const value as usize, 4) }
            .map_err(Failed::of(Sysno::setsockopt))
    };
    let set = set(ends[0], SO_PASSCRED, 1).and_then(|_| set(ends[1], SO_SNDBUF, sent as i32));
    match set.and_then(|_| set_nonblocking(ends[0]).map_err(Failed::of(Sysno::fcntl))) {
        Ok(()) => Ok((ends[0], ends[1])),
        Err(failed) => {
            ends.into_iter().for_each(close);
            Err(failed)
        }
    }
}

/// The address family of a socket.
pub fn socket_family(socket: i32) -> Result<u32> {
    const SOL_SOCKET: usize = 1;
    const SO_DOMAIN: usize = 39;
    let (mut family, mut len) = (0u32, 4u32);
    // SAFETY: the kernel stores at most four bytes, and how many.
    unsafe {
        let (to, len) = (&raw mut family as usize, &raw mut len as usize);
        sys!(getsockopt, socket as usize, SOL_SOCKET, SO_DOMAIN, to, len)?;
        Ok((&raw const family).read_volatile())
    }
}

/// The execution domain of the caller and its flags; `new` replaces them.
pub fn personality(new: Option<usize>) -> Result<usize> {
    // SAFETY: what is mapped stays as it is.
    unsafe { sys!(personality, new.unwrap_or(0xffff_ffff)) }
}

/// What [`receive`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A message of two words, and the process id of who sent it.
    Words(u32, [u32; 2]),
    /// A message of another size.
    Other,
    /// Nobody holds the other end any more.
    End,
}

/// Receives a message of two words.
pub fn receive(socket: i32) -> Result<Received> {
    let mut bytes = [0u8; 8];
    let (len, sender, told) = message(socket, &mut bytes)?;
    let [a, b, c, d, e, f, g, h] = bytes;
    Ok(match (len, sender) {
        (0, _) if !told => Received::End, // an empty message has a sender
        (8, Some(pid)) => Received::Words(pid, [[a, b, c, d], [e, f, g, h]].map(u32::from_ne_bytes)),
        _ => Received::Other,
    })
}

/// Receives a message of any length: the process id of who sent it (0 if nobody says), and how many bytes it had, as far as
/// `buf` has room.
pub fn receive_from(socket: i32, buf: &mut [u8]) -> Result<(u32, usize)> {
    let (len, sender, told) = message(socket, buf)?;
    if len == 0 && !told { Err(Errno::EPIPE) } else { Ok((sender.unwrap_or(0), len)) }
}

/// Receives a message: how many bytes it has, who sent it, and whether the kernel told anything besides.
fn message(socket: i32, buf: &mut [u8]) -> Result<(usize, Option<u32>, bool)> {
    #[repr(C)]
    struct Message {
        name: [usize; 2],
        iov: [*mut usize; 1],
        iov_len: usize,
        control: *mut Control,
        control_len: usize,
        flags: u32,
    }
    /// `struct cmsghdr` with `struct ucred`.
    #[repr(C)]
    struct Control {
        len: usize,
        level: i32,
        kind: i32,
        pid: u32,
        ids: [u32; 2],
    }
    const SCM_CREDENTIALS: i32 = 2;
    let mut iov = [buf.as_mut_ptr() as usize, buf.len()];
    let mut control = Control { len: 0, level: 0, kind: 0, pid: 0, ids: [0; 2] };
    let mut message = Message {
        name: [0; 2],
        iov: [iov.as_mut_ptr()],
        iov_len: 1,
        control: &raw mut control,
        control_len: size_of::<Control>(),
        flags: 0,
    };
    // SAFETY: the kernel stores into what `message` names.
    let len = unsafe { sys!(recvmsg, socket as usize, &raw mut message as usize, 0) }?;
    // SAFETY: the kernel may have stored there, which the compiler does not see.
    let control = unsafe { (&raw const control).read_volatile() };
    // SAFETY: as above.
    let told = unsafe { (&raw const message.control_len).read_volatile() } > 0;
    let sender = (control.level == 1 && control.kind == SCM_CREDENTIALS).then_some(control.pid);
    Ok((len, sender, told))
}

/// A new epoll.
pub fn epoll() -> Result<i32> {
    // SAFETY: makes a descriptor.
    unsafe { sys!(epoll_create1, O_CLOEXEC) }.map(|fd| fd as i32)
}

/// What epoll says: `struct epoll_event`, which is packed on x86_64.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Event {
    events: u32,
    /// What was given for the descriptor.
    pub data: u64,
}

/// Asks epoll to tell `data` when `fd` is readable; with `edge`, each time that it becomes so.
pub fn epoll_add(epoll: i32, fd: i32, data: u64, edge: bool) -> Result<()> {
    const EPOLL_CTL_ADD: usize = 1;
    const EPOLLIN: u32 = 1;
    const EPOLLET: u32 = 1 << 31;
    let event = Event { events: EPOLLIN | if edge { EPOLLET } else { 0 }, data };
    // SAFETY: the kernel reads the event.
    unsafe { sys!(epoll_ctl, epoll as usize, EPOLL_CTL_ADD, fd as usize, &raw const event as usize) }.map(drop)
}

/// Has epoll tell no more of `fd`, if it did.
pub fn epoll_remove(epoll: i32, fd: i32) {
    const EPOLL_CTL_DEL: usize = 2;
    // SAFETY: the kernel looks at no event.
    let _ = unsafe { sys!(epoll_ctl, epoll as usize, EPOLL_CTL_DEL, fd as usize, 0) };
}

/// Waits for events for up to `timeout` milliseconds; -1 for ever.
pub fn epoll_wait(epoll: i32, events: &mut [Event], timeout: i32) -> Result<usize> {
    // SAFETY: the kernel stores into `events` only.
    unsafe { sys!(epoll_wait, epoll as usize, events.as_mut_ptr() as usize, events.len(), timeout as isize as usize) }
}

/// Opens a file as `how` says; a descriptor.
pub fn openat2(dir: i32, path: &CStr, how: &crate::abi::OpenHow) -> Result<i32> {
    let how_at = core::ptr::from_ref(how) as usize;
    // SAFETY: `path` ends in NUL; the kernel reads the rest.
    unsafe { sys!(openat2, dir as isize as usize, path.as_ptr() as usize, how_at, size_of_val(how)) }
        .map(|fd| fd as i32)
}

/// Changes the length of the file at the path that `path` is the address of.
pub fn truncate(path: usize, len: i64) -> Result<()> {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: touches no memory but the path, which the kernel looks for.
    let done = unsafe { sys!(truncate, path, len as usize) };
    #[cfg(target_arch = "x86")]
    // SAFETY: as above. The length takes two registers, low half first.
    let done = unsafe { sys!(truncate64, path, len as usize, (len >> 32) as usize) };
    done.map(drop)
}

/// Soft and hard limit of a process (0: the caller), and sets them.
pub fn limit(pid: u32, which: usize, new: Option<[usize; 2]>) -> Result<[usize; 2]> {
    let wide = |word: usize| if word == usize::MAX { u64::MAX } else { word as u64 };
    let new = new.map(|pair| pair.map(wide));
    let mut old = [0u64; 2];
    let at = new.as_ref().map_or(0, |new| new.as_ptr() as usize);
    // SAFETY: the kernel reads and stores two numbers.
    unsafe { sys!(prlimit64, pid as usize, which, at, old.as_mut_ptr() as usize) }?;
    Ok(old.map(|word| usize::try_from(word).unwrap_or(usize::MAX)))
}

/// Wakes up to `n` who sleep on a futex word that processes share; returns how many.
pub fn futex_wake_some(word: *const u32, n: usize) -> Result<usize> {
    // SAFETY: wakes only.
    unsafe { sys!(futex, word as usize, FUTEX_WAKE, n) }
}

/// Moves one who sleeps at `from`, if that holds `value`, to sleep at `to`; returns whether there was one.
pub fn futex_requeue(from: *const u32, to: *const u32, value: u32) -> Result<bool> {
    const FUTEX_CMP_REQUEUE: usize = 4;
    // SAFETY: moves only.
    unsafe { sys!(futex, from as usize, FUTEX_CMP_REQUEUE, 0, 1, to as usize, value as usize) }.map(|n| n == 1)
}

/// Bytes that a process has mapped (`proc(5)`, `statm`).
pub fn mapped(pid: u32) -> Result<usize> {
    let mut path = *b"/proc/0000000000/statm\0";
    let mut rest = pid;
    for i in (6..16).rev() {
        path[i] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    // A process id is written without zeros in front.
    let zeros = path[6..16].iter().take_while(|digit| **digit == b'0').count();
    path.copy_within(6 + zeros.., 6);
    let fd = open(CStr::from_bytes_until_nul(&path).map_err(|_| Errno::EINVAL)?)?;
    let mut text = [0u8; 64];
    let read = read(fd, &mut text);
    close(fd);
    let digits = text.get(..read?).unwrap_or_default().iter().take_while(|byte| byte.is_ascii_digit());
    Ok(digits.fold(0usize, |pages, digit| pages * 10 + usize::from(digit - b'0')) * crate::abi::PAGE)
}

/// Lets others run.
pub fn yield_now() {
    // SAFETY: gives up the CPU.
    let _ = unsafe { sys!(sched_yield) };
}

/// The user id.
pub fn getuid() -> u32 {
    // `getuid` of i386 has 16 bits.
    #[cfg(target_arch = "x86")]
    // SAFETY: no arguments.
    let uid = unsafe { sys!(getuid32) };
    #[cfg(target_arch = "x86_64")]
    // SAFETY: no arguments.
    let uid = unsafe { sys!(getuid) };
    uid.unwrap_or(0) as u32
}

/// The caller's working folder into `buf`; its length without the NUL.
pub fn getcwd(buf: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel stores at most `buf.len()` bytes.
    unsafe { sys!(getcwd, buf.as_mut_ptr() as usize, buf.len()) }.map(|len| len.saturating_sub(1))
}

/// Closes a descriptor that is the caller's own.
pub fn close(fd: i32) {
    // SAFETY: the caller owns it. Linux closes it whatever close() returns.
    let _ = unsafe { sys!(close, fd as usize) };
}

/// Closes all descriptors from `first` to `last`.
pub fn close_range(first: u32, last: u32) -> Result<()> {
    // SAFETY: the caller owns the table: it is a process of its own.
    unsafe { sys!(close_range, first as usize, last as usize, 0) }.map(drop)
}

/// Whether `fd` is open.
pub fn is_open(fd: i32) -> bool {
    // SAFETY: asks only.
    unsafe { sys!(fcntl, fd as usize, F_GETFD) }.is_ok()
}

/// Sets `O_NONBLOCK` on the file that `fd` refers to.
pub fn set_nonblocking(fd: i32) -> Result<()> {
    // SAFETY: changes a status flag.
    let flags = unsafe { sys!(fcntl, fd as usize, F_GETFL) }?;
    // SAFETY: as above.
    unsafe { sys!(fcntl, fd as usize, F_SETFL, flags | O_NONBLOCK) }.map(drop)
}

/// Duplicates `fd` to the lowest free number from `min` on.
pub fn dup_from(fd: i32, min: i32) -> Result<i32> {
    // SAFETY: makes a descriptor.
    unsafe { sys!(fcntl, fd as usize, F_DUPFD_CLOEXEC, min as usize) }.map(|fd| fd as i32)
}

/// Duplicates `from` as `to`, which stays open over `execve`.
pub fn dup2(from: i32, to: i32) -> Result<()> {
    // SAFETY: the caller owns `to`.
    unsafe { sys!(dup2, from as usize, to as usize) }.map(drop)
}

/// Reads into `buf`.
pub fn read(fd: i32, buf: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel stores at most `buf.len()` bytes.
    unsafe { sys!(read, fd as usize, buf.as_mut_ptr() as usize, buf.len()) }
}

/// Writes `buf`.
pub fn write(fd: i32, buf: &[u8]) -> Result<usize> {
    // SAFETY: the kernel reads at most `buf.len()` bytes.
    unsafe { write_from(fd, buf.as_ptr() as usize, buf.len()) }
}

/// Writes memory that may not be there: `EFAULT` tells.
///
/// # Safety
///
/// None for memory; the bytes go to `fd`.
pub unsafe fn write_from(fd: i32, addr: usize, len: usize) -> Result<usize> {
    // SAFETY: the kernel checks the addresses.
    unsafe { sys!(write, fd as usize, addr, len) }
}

/// Reads at an offset of a file.
pub fn pread(fd: i32, buf: &mut [u8], offset: usize) -> Result<usize> {
    // SAFETY: the kernel stores at most `buf.len()` bytes. On i386 the offset takes two registers, low half first.
    unsafe { sys!(pread64, fd as usize, buf.as_mut_ptr() as usize, buf.len(), offset, 0) }
}

/// The file offset of `fd`.
pub fn offset(fd: i32) -> Result<usize> {
    // SAFETY: asks only.
    unsafe { sys!(lseek, fd as usize, 0, SEEK_CUR) }
}

/// Opens a file to read.
pub fn open(path: &CStr) -> Result<i32> {
    // SAFETY: `path` ends in NUL.
    unsafe { sys!(openat, AT_FDCWD, path.as_ptr() as usize, O_CLOEXEC, 0) }.map(|fd| fd as i32)
}

/// Opens a file to write to it.
pub fn open_to_write(path: &CStr) -> Result<i32> {
    const O_WRONLY: usize = 1;
    // SAFETY: `path` ends in NUL.
    unsafe { sys!(openat, AT_FDCWD, path.as_ptr() as usize, O_WRONLY | O_CLOEXEC, 0) }.map(|fd| fd as i32)
}

/// Reads the target of the link `name` in the folder `dir`.
pub fn readlinkat(dir: i32, name: &CStr, buf: &mut [u8]) -> Result<usize> {
    // SAFETY: `name` ends in NUL; the kernel stores at most `buf.len()` bytes.
    unsafe { sys!(readlinkat, dir as usize, name.as_ptr() as usize, buf.as_mut_ptr() as usize, buf.len()) }
}

/// Reads entries of a folder (`struct linux_dirent64`).
pub fn getdents(fd: i32, buf: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel stores at most `buf.len()` bytes.
    unsafe { sys!(getdents64, fd as usize, buf.as_mut_ptr() as usize, buf.len()) }
}

/// What `statx(2)` says of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Device (major, minor) and inode: the file's identity.
    pub identity: (u32, u32, u64),
    /// `S_IFMT` part of the mode.
    pub kind: u32,
    /// For a device file: (major, minor).
    pub device: (u32, u32),
}

/// `S_IFCHR`
pub const S_IFCHR: u32 = 0o020_000;
/// `S_IFDIR`
pub const S_IFDIR: u32 = 0o040_000;
/// `S_IFBLK`
pub const S_IFBLK: u32 = 0o060_000;

/// Asks what an open file is.
pub fn file_facts(fd: i32) -> Result<FileFacts> {
    const AT_EMPTY_PATH: usize = 0x1000;
    const STATX_BASIC_STATS: usize = 0x7ff;
    const S_IFMT: u32 = 0o170_000;
    // struct statx: mode at byte 28 (16 bits), inode at 32 (64), rdev major, minor, dev major, minor at 128 (32 each)
    let mut statx = [0u32; 64];
    let at = statx.as_mut_ptr() as usize;
    // SAFETY: the kernel stores 256 bytes.
    unsafe { sys!(statx, fd as usize, c"".as_ptr() as usize, AT_EMPTY_PATH, STATX_BASIC_STATS, at) }?;
    Ok(FileFacts {
        identity: (statx[34], statx[35], u64::from(statx[8]) | u64::from(statx[9]) << 32),
        kind: statx[7] & S_IFMT,
        device: (statx[32], statx[33]),
    })
}

/// Whether an open file is of a proc file system, wherever it is mounted (`PROC_SUPER_MAGIC`, `statfs(2)`).
pub fn is_on_proc(fd: i32) -> Result<bool> {
    const PROC_SUPER_MAGIC: usize = 0x9fa0;
    let mut statfs = [0usize; 32];
    // SAFETY: struct statfs is smaller; its first word is the type on both architectures.
    unsafe { sys!(fstatfs, fd as usize, statfs.as_mut_ptr() as usize) }?;
    Ok(statfs[0] == PROC_SUPER_MAGIC)
}

/// `prctl(2)`.
///
/// # Safety
///
/// As the manual page says of `option`.
pub unsafe fn prctl(option: usize, arg: usize) -> Result<usize> {
    // SAFETY: the caller's.
    unsafe { sys!(prctl, option, arg) }
}

/// The process id of the caller's parent.
pub fn parent() -> u32 {
    // SAFETY: cannot fail.
    unsafe { sys!(getppid) }.unwrap_or(0) as u32
}

/// The process id of the caller, and that of its parent.
pub fn pids() -> (u32, u32) {
    // SAFETY: cannot fail.
    (unsafe { sys!(getpid) }.unwrap_or(0) as u32, parent())
}

/// Replaces the signal mask of the calling thread; returns the old one.
pub fn sigmask(new: crate::signal::SigSet) -> Result<crate::signal::SigSet> {
    let mut old = crate::signal::SigSet::EMPTY;
    // SAFETY: both sets are 8 bytes.
    unsafe { sys!(rt_sigprocmask, SIG_SETMASK, &raw const new as usize, &raw mut old as usize, 8) }?;
    Ok(old)
}

/// Sets the action of a signal.
///
/// # Safety
///
/// The handler, if there is one, may run at any time from now on.
pub unsafe fn sigaction(sig: i32, action: &crate::signal::SigAction) -> Result<()> {
    // SAFETY: the caller's.
    unsafe { sys!(rt_sigaction, sig as usize, core::ptr::from_ref(action) as usize, 0, 8) }.map(drop)
}

/// Creates a child with a copy of the address space and no exit signal: `wait` needs `__WALL`, so that the embedder's
/// own `wait(-1)` does not meet it. Returns 0 in the child.
///
/// # Safety
///
/// The child may use only what a signal handler may: other threads may have held any lock.
pub unsafe fn fork() -> Result<u32> {
    // SAFETY: the caller's.
    unsafe { sys!(clone, 0, 0, 0, 0, 0) }.map(|pid| pid as u32)
}

/// Ends the calling task.
pub fn exit(status: i32) -> ! {
    loop {
        // SAFETY: does not return.
        let _ = unsafe { sys!(exit, status as usize) };
    }
}

/// Whether a child of any kind has ended, and how: the first word of `wait4(2)`. It is not reaped. `ECHILD` if there is no
/// such child.
pub fn ended(pid: u32) -> Result<Option<i32>> {
    const P_PID: usize = 1;
    const WEXITED: usize = 4;
    const WNOWAIT: usize = 0x100_0000;
    const CLD_EXITED: i32 = 1;
    const CLD_DUMPED: i32 = 3;
    let mut info = Info::new(0, 0, [0; 2], 0);
    let at = &raw mut info;
    // SAFETY: the kernel stores a siginfo: of SIGCHLD, process and user id, and the status where a sent one has its value.
    let info = unsafe {
        sys!(waitid, P_PID, pid as usize, at as usize, WEXITED | WNOWAIT | WNOHANG | WALL, 0)?;
        at.read_volatile()
    };
    let status = info.value as i32;
    let word = match info.code() {
        CLD_EXITED => (status & 0xff) << 8,
        CLD_DUMPED => status & 0x7f | 0x80,
        _ => status & 0x7f,
    };
    Ok((info.words[0] != 0).then_some(word))
}

/// Waits for a child of any kind. `None` when `block` is false and it still lives.
pub fn wait(pid: u32, block: bool) -> Result<Option<i32>> {
    let mut status = 0i32;
    loop {
        // SAFETY: the kernel stores a status word.
        let got =
            unsafe { sys!(wait4, pid as usize, &raw mut status as usize, WALL | if block { 0 } else { WNOHANG }, 0) };
        match got {
            Err(Errno::EINTR) => {}
            other => return other.map(|id| (id != 0).then_some(status)),
        }
    }
}

/// Sends a signal to the process behind a pidfd.
pub fn pidfd_send_signal(pidfd: i32, sig: i32) -> Result<()> {
    // SAFETY: the descriptor stands for one process, whatever becomes of its id.
    unsafe { sys!(pidfd_send_signal, pidfd as usize, sig as usize) }.map(drop)
}

/// Sends a signal to a process, which the caller has not reaped.
pub fn kill(pid: u32, sig: i32) -> Result<()> {
    // SAFETY: signals only.
    unsafe { sys!(kill, pid as usize, sig as usize) }.map(drop)
}

/// A descriptor that becomes readable when the process ends.
pub fn pidfd_open(pid: u32) -> Result<i32> {
    // SAFETY: makes a descriptor (close-on-exec).
    unsafe { sys!(pidfd_open, pid as usize, 0) }.map(|fd| fd as i32)
}

/// One descriptor to poll: `struct pollfd`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PollFd {
    /// The descriptor; negative ones are passed over.
    pub fd: i32,
    /// What is asked for.
    pub events: i16,
    /// What is there.
    pub revents: i16,
}

impl PollFd {
    /// Asks whether `fd` can be read.
    pub fn readable(fd: i32) -> Self {
        Self { fd, events: 1, revents: 0 }
    }
}

/// Waits until one of `fds` is ready or `timeout` has passed; returns how many are.
pub fn poll(fds: &mut [PollFd], timeout: Option<Duration>) -> Result<usize> {
    let ms = timeout.map_or(usize::MAX, |t| (t.as_micros().div_ceil(1000)).min(i32::MAX as u128) as usize);
    // SAFETY: the kernel stores into `fds` only.
    unsafe { sys!(poll, fds.as_mut_ptr() as usize, fds.len(), ms) }
}

/// Time since boot, without suspend (`CLOCK_MONOTONIC`), in nanoseconds.
pub fn now() -> u64 {
    let mut ts = [0usize; 2];
    // SAFETY: the kernel stores a timespec of two words.
    let _ = unsafe { sys!(clock_gettime, CLOCK_MONOTONIC, ts.as_mut_ptr() as usize) };
    ts[0] as u64 * 1_000_000_000 + ts[1] as u64
}

/// Wakes everybody who sleeps on a futex word that processes share.
pub fn futex_wake(word: *const u32) -> Result<usize> {
    futex_wake_some(word, i32::MAX as usize)
}

/// Which processors the calling thread may run on.
pub fn affinity() -> Result<CpuSet> {
    let mut set = CpuSet::default();
    // SAFETY: the kernel stores at most the size given.
    unsafe { sys!(sched_getaffinity, 0, size_of::<CpuSet>(), set.0.as_mut_ptr() as usize) }?;
    Ok(set)
}

/// Has the calling thread run on these processors only.
pub fn set_affinity(set: &CpuSet) -> Result<()> {
    // SAFETY: the kernel reads the size given.
    unsafe { sys!(sched_setaffinity, 0, size_of::<CpuSet>(), set.0.as_ptr() as usize) }.map(drop)
}

/// The processor that the caller runs on.
pub fn current_cpu() -> Result<usize> {
    let mut cpu = 0u32;
    // SAFETY: the kernel stores one word.
    unsafe { sys!(getcpu, &raw mut cpu as usize, 0, 0) }?;
    Ok(cpu as usize)
}

/// A set of processors, as `sched_setaffinity(2)` takes it: up to 1024.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CpuSet([usize; 128 / size_of::<usize>()]);

impl Default for CpuSet {
    fn default() -> Self {
        Self([0; 128 / size_of::<usize>()])
    }
}

impl CpuSet {
    /// Only `cpu`.
    pub fn one(cpu: usize) -> Self {
        let mut set = Self::default();
        if let Some(word) = set.0.get_mut(cpu / usize::BITS as usize) {
            *word = 1 << (cpu % usize::BITS as usize);
        }
        set
    }

    /// The processors of the set without end, in order, from `first` or the next one in the set on.
    pub fn starting_at(&self, first: usize) -> impl Iterator<Item = usize> + '_ {
        let before = self.iter().take_while(move |cpu| *cpu < first).count();
        self.iter().skip(before).chain(core::iter::repeat_with(|| self.iter()).take(1024).flatten())
    }

    /// The processors of the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        let bits = usize::BITS as usize;
        (0..1024).filter(move |cpu| self.0.get(cpu / bits).is_some_and(|word| word >> (cpu % bits) & 1 == 1))
    }
}

/// A value of the auxiliary vector, read from `/proc/self/auxv`; `None` if it is not there.
pub fn auxv(key: usize) -> Option<usize> {
    let fd = open(c"/proc/self/auxv").ok()?;
    let mut words = [0usize; 128];
    // SAFETY: the kernel stores at most the size of `words`.
    let read = unsafe { sys!(read, fd as usize, words.as_mut_ptr() as usize, size_of_val(&words)) };
    close(fd);
    let len = read.ok()? / size_of::<usize>();
    words.get(..len)?.chunks_exact(2).find(|pair| pair[0] == key).map(|pair| pair[1])
}
