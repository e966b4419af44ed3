//! Files, as an ordinary program uses them. Each case runs in both ways, and beside each permission stands its nearest
//! forbidden neighbour, as in `program.rs`.

use super::program::{DIRECT, both, c, must, program};
use super::*;
use ascetic::policy::{BadRoot, Rights, Root};
use ascetic::sys::{self, Errno};
use core::sync::atomic::{AtomicU32, Ordering};
use freestanding::files::{Scratch, path};

pub const CASES: &[Case] = &[
    case("program_files", || both(files)),
    case("program_files_outside", || both(outside)),
    case("program_files_way", || both(way)),
    case("program_files_nested", || both(nested)),
    case("program_files_changes", || both(changes)),
    case("program_files_read_only", || both(read_only)),
    case("program_files_without_roots", || both(no_roots)),
    case("program_files_tokens", || both(tokens)),
    case("program_files_taken_back", || both(taken_back)),
];

pub const RW: usize = 2;
const CREAT: usize = 0o100;
const TRUNC: usize = 0o1000;
const DIRECTORY: usize = 0o200_000;
const CWD: usize = -100isize as usize;

/// Everything but the folder below the scratch folder, which every case here knows by the same names.
pub fn open(name: &str, flags: usize) -> sys::Result<usize> {
    let path = path(name);
    // SAFETY: a path.
    unsafe { c(Sysno::openat, [CWD, path.as_ptr() as usize, flags, 0o644]) }
}

pub fn one_path(nr: Sysno, name: &str, rest: [usize; 2]) -> sys::Result<usize> {
    let path = path(name);
    // SAFETY: a path; what the rest points to is the caller's.
    unsafe { c(nr, [path.as_ptr() as usize, rest[0], rest[1]]) }
}

fn two_paths(nr: Sysno, from: &str, to: &str) -> sys::Result<usize> {
    let (from, to) = (path(from), path(to));
    // SAFETY: paths.
    unsafe { c(nr, [from.as_ptr() as usize, to.as_ptr() as usize]) }
}

pub const ALL: Rights = Rights::READ.and(Rights::WRITE).and(Rights::CREATE);

/// Runs a guest with the scratch folder's `in` as a root with these rights.
pub fn with_root(rights: Rights, guest: extern "C" fn(usize) -> i32) {
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

/// A root in another allows more by its own name only; one that would allow less is not built.
fn nested() {
    extern "C" fn guest(_: usize) -> i32 {
        must!(open("in/sub/file", RW), Ok(_));
        must!(one_path(Sysno::mkdir, "in/sub/new", [0o755, 0]), Ok(0));
        must!(open("in/file", 0), Ok(_));
        must!(open("in/file", RW), Err(Errno::EACCES));
        // By way of the other, one is below that.
        must!(open("in/sub/../file", RW), Err(Errno::EXDEV));
        must!(open("in/other/../sub/file", RW), Err(Errno::EACCES));
        must!(open("in/other/../sub/file", 0), Ok(_));
        must!(two_paths(Sysno::rename, "in/file", "in/sub/mine"), Err(Errno::EACCES));
        must!(two_paths(Sysno::rename, "in/sub/file", "in/mine"), Err(Errno::EACCES));
        must!(two_paths(Sysno::symlink, "../file", "in/sub/symbolic"), Ok(0));
        must!(open("in/sub/symbolic", RW), Err(Errno::EXDEV));
        0
    }
    let scratch = Scratch::new();
    scratch.folder("in");
    scratch.folder("in/sub");
    scratch.folder("in/other");
    scratch.file("in/file", b"outer");
    scratch.file("in/sub/file", b"inner");
    let (outer, inner) = (path("in"), path("in/sub"));
    let build = |a, b| {
        let policy = DIRECT.clone().try_root(Root { path: outer.as_c(), rights: a, exact: false }).unwrap();
        policy.try_root(Root { path: inner.as_c(), rights: b, exact: false })
    };
    must_exit(&program(&build(Rights::READ, ALL).unwrap()), guest, 0, 0);
    let bad = BadRoot::Nested { outer: outer.as_c(), inner: inner.as_c() };
    for (a, b) in [(Rights::READ, Rights::NONE), (ALL, Rights::READ), (Rights::CREATE, ALL)] {
        check!(build(a, b).map(drop) == Err(bad), "{a:?} {b:?}");
    }
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
