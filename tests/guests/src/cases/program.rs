//! What an ordinary program does: files, memory, sockets, threads. Each case runs twice: through the explicit API, and with
//! the guest's own system call instructions, which the kernel turns into SIGSYS. Beside each permission stands its nearest
//! forbidden neighbour.

use super::*;
use ascetic::policy::{Family, Rights, Root};
use ascetic::sys::{self, Errno};
use ascetic::untrusted;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use freestanding::files::{Scratch, path};

pub const CASES: &[Case] = &[
    case("program_files", || both(files)),
    case("program_files_outside", || both(outside)),
    case("program_files_way", || both(way)),
    case("program_files_changes", || both(changes)),
    case("program_files_read_only", || both(read_only)),
    case("program_files_without_roots", || both(no_roots)),
    case("program_files_tokens", || both(tokens)),
    case("program_files_taken_back", || both(taken_back)),
    case("program_memory", || both(memory)),
    case("program_memory_own", || both(own_memory)),
    case("program_sockets", || both(sockets)),
    case("program_ioctl_and_fcntl", || both(ioctl_and_fcntl)),
    case("program_other_bytes", || both(other_bytes)),
    case("program_fallbacks", || both(fallbacks)),
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
    // SAFETY: turns off what is not on.
    if unsafe { sys::prctl(sys::PR_SET_SYSCALL_USER_DISPATCH, 0) }.is_ok() {
        RAW.store(true, Ordering::Relaxed);
        run();
    }
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

const RW: usize = 2;
const CREAT: usize = 0o100;
const TRUNC: usize = 0o1000;
const DIRECTORY: usize = 0o200_000;
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

/// Everything but the folder below the scratch folder, which every case here knows by the same names.
fn open(name: &str, flags: usize) -> sys::Result<usize> {
    let path = path(name);
    // SAFETY: a path.
    unsafe { c(Sysno::openat, [CWD, path.as_ptr() as usize, flags, 0o644]) }
}

fn one_path(nr: Sysno, name: &str, rest: [usize; 2]) -> sys::Result<usize> {
    let path = path(name);
    // SAFETY: a path; what the rest points to is the caller's.
    unsafe { c(nr, [path.as_ptr() as usize, rest[0], rest[1]]) }
}

fn two_paths(nr: Sysno, from: &str, to: &str) -> sys::Result<usize> {
    let (from, to) = (path(from), path(to));
    // SAFETY: paths.
    unsafe { c(nr, [from.as_ptr() as usize, to.as_ptr() as usize]) }
}

const ALL: Rights = Rights::READ.and(Rights::WRITE).and(Rights::CREATE);

/// Runs a guest with the scratch folder's `in` as a root with these rights.
fn with_root(rights: Rights, guest: extern "C" fn(usize) -> i32) {
    let scratch = Scratch::new();
    scratch.folder("in");
    scratch.file("in/file", b"inside");
    scratch.file("outside", b"outside");
    scratch.link("in/link", "file");
    scratch.link("in/escape", "../outside");
    scratch.link("in/absolute", "/etc/hostname");
    let root = path("in");
    let policy = DIRECT.clone().try_root(Root { path: root.as_c(), rights, exact: false });
    let policy = policy.unwrap();
    must_exit(&program(&policy), guest, 0, 0);
}

fn files() {
    extern "C" fn guest(_: usize) -> i32 {
        let fd = open("in/file", 0).unwrap();
        let mut buffer = [0u8; 16];
        // SAFETY: the buffers are the guest's own.
        unsafe {
            must!(c(Sysno::read, [fd, buffer.as_mut_ptr() as usize, 16]), Ok(6));
            check!(buffer.starts_with(b"inside"));
            must!(c(Sysno::close, [fd]), Ok(0));
            must!(c(Sysno::close, [fd]), Err(Errno::EBADF));
            // By a link inside, twice, from a folder's descriptor, from the working folder.
            let fd = open("in/link", 0).unwrap();
            must!(c(Sysno::close, [fd]), Ok(0));
            let dir = open("in", DIRECTORY).unwrap();
            let fd = must!(c(Sysno::openat, [dir, c"file".as_ptr() as usize, 0]), Ok(_));
            must!(c(Sysno::close, [fd]), Ok(0));
            must!(one_path(Sysno::chdir, "in", [0; 2]), Ok(0));
            let fd = must!(c(Sysno::openat, [CWD, c"./file".as_ptr() as usize, 0]), Ok(_));
            let mut cwd = [0u8; 256];
            let len = must!(c(Sysno::getcwd, [cwd.as_mut_ptr() as usize, 256]), Ok(_));
            check!(&cwd[..len] == path("in").as_c().to_bytes_with_nul());
            must!(c(Sysno::getcwd, [cwd.as_mut_ptr() as usize, len - 1]), Err(Errno::ERANGE));
            // Attributes, by every form that there is.
            let mut stat = [0u8; 256];
            let at = stat.as_mut_ptr() as usize;
            for nr in freestanding::files::STAT {
                must!(one_path(nr, "in/file", [at, 0]), Ok(0));
                must!(one_path(nr, "in/nothing", [at, 0]), Err(Errno::ENOENT));
                must!(one_path(nr, "outside", [at, 0]), Err(Errno::EACCES));
            }
            let file = path("in/file");
            must!(c(freestanding::files::FSTATAT, [CWD, file.as_ptr() as usize, at, 0]), Ok(0));
            must!(c(freestanding::files::FSTATAT, [fd, c"".as_ptr() as usize, at, 0x1000]), Ok(0));
            must!(c(Sysno::statx, [CWD, file.as_ptr() as usize, 0, 0x7ff, at]), Ok(0));
            must!(c(Sysno::statx, [dir, c"file".as_ptr() as usize, 0, 0x7ff, at]), Ok(0));
            must!(one_path(Sysno::access, "in/file", [4, 0]), Ok(0));
            must!(one_path(Sysno::access, "outside", [4, 0]), Err(Errno::EACCES));
            must!(c(Sysno::faccessat, [CWD, file.as_ptr() as usize, 2]), Ok(0));
            let mut link = [0u8; 16];
            must!(one_path(Sysno::readlink, "in/link", [link.as_mut_ptr() as usize, 16]), Ok(4));
            check!(link.starts_with(b"file"));
            must!(one_path(Sysno::readlink, "in/file", [link.as_mut_ptr() as usize, 16]), Err(Errno::EINVAL));
            // A folder's entries.
            let n = must!(c(Sysno::getdents64, [dir, at, 256]), Ok(1..));
            check!(stat[..n].windows(5).any(|name| name == b"link\0"));
            // What nobody can read is EFAULT, and what is too long is that.
            must!(c(Sysno::openat, [CWD, 8, 0]), Err(Errno::EFAULT));
            static LONG: [u8; 5000] = [b'a'; 5000];
            must!(c(Sysno::openat, [CWD, LONG.as_ptr() as usize, 0]), Err(Errno::ENAMETOOLONG));
            must!(c(Sysno::openat, [CWD, c"".as_ptr() as usize, 0]), Err(Errno::ENOENT));
        }
        // The result may not be stored in the vault.
        let vault = ascetic::experiment::vault().0 + 3 * ascetic::abi::PAGE;
        for nr in freestanding::files::STAT {
            must!(one_path(nr, "in/file", [vault, 0]), Err(Errno::EFAULT));
        }
        must!(one_path(Sysno::readlink, "in/link", [vault, 16]), Err(Errno::EFAULT));
        0
    }
    with_root(ALL, guest);
}

fn outside() {
    extern "C" fn guest(_: usize) -> i32 {
        for name in ["outside", "in/../outside", "in/escape", "in/absolute", "", "in/file/..", "inside"] {
            let result = open(name, 0);
            check!(matches!(result, Err(Errno::EACCES | Errno::EXDEV | Errno::ENOTDIR)), "{name}: {result:?}");
        }
        // SAFETY: paths.
        unsafe {
            for name in [c"/etc/shadow", c"/proc/self/mem", c"/proc/self/fd/1", c"/dev/null", c"/", c"outside", c".."] {
                let result = c(Sysno::openat, [CWD, name.as_ptr() as usize, 0]);
                check!(result == Err(Errno::EACCES), "{name:?}: {result:?}");
            }
            // Nor is it told what is there, not even the folder that the root is in.
            let mut stat = [0u8; 256];
            for nr in freestanding::files::STAT {
                must!(one_path(nr, "", [stat.as_mut_ptr() as usize, 0]), Err(Errno::EACCES));
            }
            let dir = open("in", DIRECTORY).unwrap();
            for name in [c"../outside", c"escape", c"..", c"absolute"] {
                let result = c(Sysno::openat, [dir, name.as_ptr() as usize, 0]);
                check!(result == Err(Errno::EXDEV), "{name:?}: {result:?}");
            }
            // The sandbox's own descriptors are no folders to begin at.
            let own = ascetic::experiment::first_own_fd() as usize;
            for fd in own..own + ascetic::experiment::OWN_FDS + 1 {
                must!(c(Sysno::openat, [fd, c"file".as_ptr() as usize, 0]), Err(Errno::EBADF));
            }
        }
        must!(two_paths(Sysno::rename, "in/file", "elsewhere"), Err(Errno::EACCES));
        must!(two_paths(Sysno::link, "outside", "in/mine"), Err(Errno::EACCES));
        must!(one_path(Sysno::unlink, "outside", [0; 2]), Err(Errno::EACCES));
        must!(one_path(Sysno::unlink, "in/../outside", [0; 2]), Err(Errno::EXDEV));
        must!(one_path(Sysno::mkdir, "elsewhere", [0o755, 0]), Err(Errno::EACCES));
        must!(one_path(Sysno::chdir, "", [0; 2]), Err(Errno::EACCES));
        must!(one_path(Sysno::truncate, "outside", [0; 2]), Err(Errno::EACCES));
        0
    }
    with_root(ALL, guest);
}

/// A folder on the way to a root, which may be known to be there: nothing else comes of that.
fn way() {
    extern "C" fn guest(_: usize) -> i32 {
        let mut stat = [0u8; 256];
        let at = stat.as_mut_ptr() as usize;
        let vault = ascetic::experiment::vault().0 + 3 * ascetic::abi::PAGE;
        let folder = path("");
        for nr in freestanding::files::STAT {
            must!(one_path(nr, "", [at, 0]), Ok(0));
            must!(one_path(nr, "in/file", [at, 0]), Ok(0));
            must!(one_path(nr, "outside", [at, 0]), Err(Errno::EACCES));
            must!(one_path(nr, "", [vault, 0]), Err(Errno::EFAULT));
            // SAFETY: a path.
            unsafe { must!(c(nr, [c"/tmp".as_ptr() as usize, at]), Err(Errno::EACCES)) };
        }
        // SAFETY: paths and the guest's own buffers.
        unsafe {
            must!(c(freestanding::files::FSTATAT, [CWD, folder.as_ptr() as usize, at, 0x100]), Ok(0));
            must!(c(Sysno::statx, [CWD, folder.as_ptr() as usize, 0, 0x7ff, at]), Ok(0));
            must!(c(Sysno::statx, [CWD, folder.as_ptr() as usize, 0, 0x7ff, vault]), Err(Errno::EFAULT));
            must!(c(Sysno::utimensat, [CWD, folder.as_ptr() as usize, 0, 0]), Err(Errno::EACCES));
        }
        must!(one_path(Sysno::access, "", [0, 0]), Ok(0));
        must!(one_path(Sysno::access, "", [2, 0]), Err(Errno::EACCES));
        must!(one_path(Sysno::readlink, "", [at, 16]), Err(Errno::EINVAL));
        must!(one_path(Sysno::readlink, "outside", [at, 16]), Err(Errno::EACCES));
        for flags in [0, DIRECTORY, 0o10_000_000, 0o20_200_000 | RW] {
            must!(open("", flags), Err(Errno::EACCES));
        }
        must!(one_path(Sysno::chdir, "", [0; 2]), Err(Errno::EACCES));
        must!(one_path(Sysno::statfs, "", [at, 0]), Err(Errno::EACCES));
        must!(one_path(Sysno::mkdir, "new", [0o755, 0]), Err(Errno::EACCES));
        must!(one_path(Sysno::chmod, "", [0o777, 0]), Err(Errno::EACCES));
        // What is relative to a descriptor is what the roots allow from which there can be one.
        let dir = open("in", DIRECTORY).unwrap();
        // SAFETY: paths.
        unsafe {
            must!(c(Sysno::openat, [dir, c"file".as_ptr() as usize, 0]), Ok(_));
            must!(c(Sysno::openat, [dir, c"file".as_ptr() as usize, RW]), Err(Errno::EACCES));
            must!(c(Sysno::openat, [dir, c"..".as_ptr() as usize, 0]), Err(Errno::EXDEV));
        }
        0
    }
    let scratch = Scratch::new();
    scratch.folder("in");
    scratch.file("in/file", b"inside");
    scratch.file("outside", b"outside");
    let (way, root) = (path(""), path("in"));
    let policy = DIRECT.clone();
    let policy = policy.try_root(Root { path: way.as_c(), rights: Rights::NONE, exact: false }).unwrap();
    let policy = policy.try_root(Root { path: root.as_c(), rights: Rights::READ, exact: false }).unwrap();
    must_exit(&program(&policy), guest, 0, 0);
}

fn changes() {
    extern "C" fn guest(_: usize) -> i32 {
        must!(one_path(Sysno::mkdir, "in/folder", [0o755, 0]), Ok(0));
        must!(one_path(Sysno::mkdir, "in/folder", [0o755, 0]), Err(Errno::EEXIST));
        let fd = open("in/folder/new", CREAT | RW).unwrap();
        // SAFETY: the buffer is the guest's own.
        unsafe { must!(c(Sysno::write, [fd, b"12345".as_ptr() as usize, 5]), Ok(5)) };
        must!(two_paths(Sysno::rename, "in/folder/new", "in/renamed"), Ok(0));
        must!(open("in/folder/new", 0), Err(Errno::ENOENT));
        must!(two_paths(Sysno::link, "in/renamed", "in/folder/again"), Ok(0));
        must!(two_paths(Sysno::symlink, "in/renamed", "in/symbolic"), Ok(0));
        must!(one_path(Sysno::chmod, "in/renamed", [0o600, 0]), Ok(0));
        must!(one_path(Sysno::truncate, "in/renamed", [2, 0]), Ok(0));
        let mut bytes = [0u8; 8];
        // SAFETY: the buffer is the guest's own; a path.
        unsafe {
            must!(c(Sysno::pread64, [fd, bytes.as_mut_ptr() as usize, 8, 0, 0]), Ok(2));
            let file = path("in/renamed");
            must!(c(Sysno::utimensat, [CWD, file.as_ptr() as usize, 0, 0]), Ok(0));
        }
        must!(one_path(Sysno::rmdir, "in/folder", [0; 2]), Err(Errno::ENOTEMPTY));
        must!(one_path(Sysno::unlink, "in/folder/again", [0; 2]), Ok(0));
        must!(one_path(Sysno::rmdir, "in/folder", [0; 2]), Ok(0));
        must!(one_path(Sysno::unlink, "in/renamed", [0; 2]), Ok(0));
        must!(one_path(Sysno::unlink, "in/nothing", [0; 2]), Err(Errno::ENOENT));
        must!(one_path(Sysno::rmdir, "in", [0; 2]), Err(Errno::EBUSY));
        0
    }
    with_root(ALL, guest);
}

fn read_only() {
    extern "C" fn guest(_: usize) -> i32 {
        must!(open("in/file", 0), Ok(_));
        for flags in [1, RW, CREAT, CREAT | RW, TRUNC, TRUNC | RW, 0o20_200_000 | RW] {
            must!(open("in/file", flags), Err(Errno::EACCES));
        }
        let dir = open("in", DIRECTORY).unwrap();
        // SAFETY: a path.
        unsafe { must!(c(Sysno::openat, [dir, c"file".as_ptr() as usize, RW]), Err(Errno::EACCES)) };
        must!(one_path(Sysno::access, "in/file", [2, 0]), Err(Errno::EACCES));
        must!(one_path(Sysno::mkdir, "in/new", [0o755, 0]), Err(Errno::EACCES));
        must!(one_path(Sysno::unlink, "in/file", [0; 2]), Err(Errno::EACCES));
        must!(one_path(Sysno::chmod, "in/file", [0o777, 0]), Err(Errno::EACCES));
        must!(one_path(Sysno::truncate, "in/file", [0; 2]), Err(Errno::EACCES));
        must!(two_paths(Sysno::rename, "in/file", "in/new"), Err(Errno::EACCES));
        must!(two_paths(Sysno::link, "in/file", "in/new"), Err(Errno::EACCES));
        must!(two_paths(Sysno::symlink, "in/file", "in/new"), Err(Errno::EACCES));
        0
    }
    with_root(Rights::READ, guest);
}

fn no_roots() {
    extern "C" fn guest(_: usize) -> i32 {
        // SAFETY: paths.
        unsafe {
            for nr in [Sysno::open, Sysno::stat, Sysno::access, Sysno::unlink, Sysno::chdir, Sysno::truncate] {
                must!(c(nr, [c"/etc/hostname".as_ptr() as usize, 0, 0]), Err(Errno::ENOSYS));
            }
            must!(c(Sysno::openat, [CWD, c"/etc/hostname".as_ptr() as usize, 0]), Err(Errno::ENOSYS));
        }
        0
    }
    must_exit(&program(&DIRECT), guest, 0, 0);
}

/// An approved open is repeated without the broker: while it sleeps. What was not approved is not.
fn tokens() {
    static STAGE: AtomicU32 = AtomicU32::new(0);
    extern "C" fn guest(_: usize) -> i32 {
        let fd = open("in/file", 0).unwrap();
        for _ in 0..100 {
            let again = open("in/file", 0).unwrap();
            let mut byte = [0u8; 1];
            // SAFETY: the buffer is the guest's own.
            unsafe {
                must!(c(Sysno::read, [again, byte.as_mut_ptr() as usize, 1]), Ok(1));
                must!(c(Sysno::close, [again]), Ok(0));
            }
        }
        must!(open("in/file", RW), Ok(_)); // asked for, and approved
        let (_, verdict) = ascetic::experiment::pages();
        // SAFETY: the verdict can be read by the guest.
        let verdicts = || unsafe { (&raw const (*verdict).seq).read_volatile() };
        let before = verdicts();
        must!(open("in/file", 0), Ok(_));
        check!(verdicts() == before, "the broker was asked");
        must!(open("in/link", 0), Ok(_));
        check!(verdicts() == before + 1);
        STAGE.store(1, Ordering::Relaxed);
        let _ = fd;
        0
    }
    with_root(ALL, guest);
}

/// A root that is taken back while the guest runs: no path below it leads anywhere any more, by token or not.
fn taken_back() {
    static ENDS: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
    extern "C" fn guest(_: usize) -> i32 {
        let fd = open("in/file", 0).unwrap();
        must!(open("in/file", 0), Ok(_)); // by token
        let [say, hear] = [&ENDS[0], &ENDS[1]].map(|end| end.load(Ordering::Relaxed) as usize);
        let mut bytes = [0u8; 8];
        let at = bytes.as_mut_ptr() as usize;
        // SAFETY: the buffer is the guest's own.
        unsafe {
            must!(c(Sysno::write, [say, at, 1]), Ok(1));
            must!(c(Sysno::read, [hear, at, 1]), Ok(1));
        }
        must!(open("in/file", 0), Err(Errno::EACCES));
        must!(open("/in/file", 0), Err(Errno::EACCES));
        must!(one_path(Sysno::access, "in/file", [0, 0]), Err(Errno::EACCES));
        must!(one_path(Sysno::unlink, "in/file", [0; 2]), Err(Errno::EACCES));
        // SAFETY: the buffer is the guest's own.
        unsafe { must!(c(Sysno::pread64, [fd, at, 8, 0, 0]), Ok(6)) };
        0
    }
    let scratch = Scratch::new();
    scratch.folder("in");
    scratch.file("in/file", b"inside");
    let root = path("in");
    let policy = DIRECT.clone().try_root(Root { path: root.as_c(), rights: ALL, exact: false }).unwrap();
    let (heard, say) = sys::blocking_pipe().unwrap();
    let (hear, said) = sys::blocking_pipe().unwrap();
    ENDS[0].store(say as u32, Ordering::Relaxed);
    ENDS[1].store(hear as u32, Ordering::Relaxed);
    let keep = [1, 2, say, hear];
    let mut sandbox = spawn(&Config { keep: &keep, ..program(&policy) }, guest, 0);
    let mut asked = [sys::PollFd::readable(heard)];
    while sys::poll(&mut asked, Some(Duration::ZERO)) == Ok(0) {
        check!(sandbox.serve(Some(Duration::from_millis(5))).is_none());
    }
    sandbox.revoke(0);
    check!(sys::write(said, b"x") == Ok(1));
    check!(sandbox.wait(Some(PATIENCE)).guest == Status::Exited(0));
    [heard, say, hear, said].into_iter().for_each(sys::close);
}

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
    let policy = policy.try_root(Root { path: root.as_c(), rights: ALL, exact: false }).unwrap();
    must_exit(&program(&policy), guest, 0, 0);
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
    let policy = policy.try_root(Root { path: root.as_c(), rights: ALL, exact: false }).unwrap();
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
