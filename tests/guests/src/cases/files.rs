//! Files, as an ordinary program uses them. Each case runs in both ways, and beside each permission stands its nearest
//! forbidden neighbour, as in `program.rs`.

use super::program::{DIRECT, both, c, must, program};
use super::*;
use ascetic::policy::{BadRoot, Rights, Root};
use ascetic::sys::{self, Errno};
use core::sync::atomic::{AtomicU32, Ordering};
use freestanding::files::{Path, Scratch, path};

pub const CASES: &[Case] = &[
    case("program_files", || both(files)),
    case("program_files_outside", || both(outside)),
    case("program_files_way", || both(way)),
    case("program_files_nested", || both(nested)),
    case("program_files_changes", || both(changes)),
    case("program_files_last_names", || both(last_names)),
    case("program_files_attributes", || both(attributes)),
    case("program_files_not_opened", || both(not_opened)),
    case("program_files_moved_to_more_rights", || both(more_rights)),
    case("program_files_one_file", || both(one_file)),
    case("program_files_working_folder", || both(working_folder)),
    case("program_files_openat2", || both(openat2)),
    case("program_files_links", || both(links)),
    case("program_files_while_folders_move", || both(while_folders_move)),
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

/// The policy, with a folder as a root with these rights.
pub fn rooted<'a>(policy: Policy<'a>, folder: &'a Path, rights: Rights) -> Policy<'a> {
    policy.try_root(Root { path: folder.as_c(), rights, exact: false }).unwrap()
}

/// Runs a guest with the scratch folder's `in` as a root with these rights.
pub fn with_root(rights: Rights, guest: extern "C" fn(usize) -> i32) {
    let scratch = Scratch::with_file();
    scratch.link("in/link", "file");
    scratch.link("in/escape", "../outside");
    scratch.link("in/absolute", "/etc/hostname");
    let root = path("in");
    let policy = rooted(DIRECT.clone(), &root, rights);
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
    let _scratch = Scratch::with_file();
    let (way, root) = (path(""), path("in"));
    let policy = DIRECT.clone();
    let policy = rooted(policy, &way, Rights::NONE);
    let policy = rooted(policy, &root, Rights::READ);
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
        let policy = rooted(DIRECT.clone(), &outer, a);
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

/// What ends in `/`, `.` or `..` is what the kernel says of it.
fn last_names() {
    extern "C" fn guest(_: usize) -> i32 {
        must!(one_path(Sysno::mkdir, "in/folder/", [0o755, 0]), Ok(0));
        must!(one_path(Sysno::mkdir, "in/folder/new/.", [0o755, 0]), Err(Errno::ENOENT));
        for (nr, name, errno) in [
            (Sysno::mkdir, "in/folder/.", Errno::EEXIST),
            (Sysno::mkdir, "in/folder/..", Errno::EEXIST),
            (Sysno::rmdir, "in/folder/.", Errno::EINVAL),
            (Sysno::rmdir, "in/folder/..", Errno::ENOTEMPTY),
            (Sysno::rmdir, "in/file/", Errno::ENOTDIR),
            (Sysno::rmdir, "in/to_folder/", Errno::ENOTDIR),
            (Sysno::rmdir, "in/.", Errno::EINVAL),
            (Sysno::unlink, "in/file/", Errno::ENOTDIR),
            (Sysno::unlink, "in/folder/", Errno::EISDIR),
            (Sysno::unlink, "in/folder/.", Errno::EISDIR),
            (Sysno::unlink, "in/link/", Errno::ENOTDIR),
        ] {
            let result = one_path(nr, name, [0; 2]);
            check!(result == Err(errno), "{} {name}: {result:?}", nr.name());
        }
        for (nr, from, to, errno) in [
            (Sysno::rename, "in/folder/.", "in/new", Errno::EBUSY),
            (Sysno::rename, "in/folder/..", "in/new", Errno::EBUSY),
            (Sysno::rename, "in/file", "in/folder/.", Errno::EBUSY),
            (Sysno::rename, "in/file/", "in/new", Errno::ENOTDIR),
            (Sysno::rename, "in/file", "in/new/", Errno::ENOTDIR),
            (Sysno::link, "in/file/", "in/new", Errno::ENOTDIR),
            (Sysno::link, "in/file", "in/new/", Errno::ENOENT),
            (Sysno::link, "in/folder/", "in/new", Errno::EPERM),
            (Sysno::link, "in/out/", "in/new", Errno::EXDEV),
            (Sysno::link, "in/file", "in/folder/.", Errno::EEXIST),
        ] {
            let result = two_paths(nr, from, to);
            check!(result == Err(errno), "{} {from} {to}: {result:?}", nr.name());
        }
        must!(two_paths(Sysno::rename, "in/folder/", "in/renamed/"), Ok(0));
        must!(one_path(Sysno::rmdir, "in/renamed//", [0; 2]), Ok(0));
        must!(open("in/file/", 0), Err(Errno::ENOTDIR));
        must!(open("in/file/.", 0), Err(Errno::ENOTDIR));
        must!(open("in/", DIRECTORY), Ok(_));
        // SAFETY: a path.
        unsafe {
            let file = path("in/file");
            must!(c(Sysno::unlinkat, [CWD, file.as_ptr() as usize, 0x400]), Err(Errno::EINVAL));
            must!(c(Sysno::unlinkat, [CWD, file.as_ptr() as usize, 0x200]), Err(Errno::ENOTDIR));
            must!(c(Sysno::unlinkat, [CWD, file.as_ptr() as usize, 0]), Ok(0));
        }
        0
    }
    let scratch = Scratch::new();
    scratch.folder("in");
    scratch.file("in/file", b"inside");
    scratch.link("in/link", "file");
    scratch.link("in/to_folder", "folder");
    scratch.link("in/out", "..");
    let root = path("in");
    let policy = rooted(DIRECT.clone(), &root, ALL);
    must_exit(&program(&policy), guest, 0, 0);
}

/// Seconds of the last change of a file, or of a link itself.
fn changed(name: &str, flags: usize) -> u64 {
    let (path, mut statx) = (path(name), [0u64; 32]);
    // SAFETY: a path, and the guest's own buffer. stx_mtime is at byte 112.
    unsafe {
        must!(c(Sysno::statx, [CWD, path.as_ptr() as usize, flags, 0x7ff, statx.as_mut_ptr() as usize]), Ok(0));
        statx.as_ptr().add(14).read_volatile()
    }
}

/// Times of a link are the link's, and a flag that nobody knows is an error.
fn attributes() {
    extern "C" fn guest(_: usize) -> i32 {
        const NOFOLLOW: usize = 0x100;
        let times = |seconds| [seconds, 0usize, seconds, 0];
        let set = |name, seconds, flags| {
            let (path, times) = (path(name), times(seconds));
            // SAFETY: a path, and the guest's own times.
            unsafe { c(Sysno::utimensat, [CWD, path.as_ptr() as usize, times.as_ptr() as usize, flags]) }
        };
        must!(set("in/file", 1000, 0), Ok(0));
        must!(set("in/link", 2000, NOFOLLOW), Ok(0));
        check!((changed("in/file", 0), changed("in/link", NOFOLLOW)) == (1000, 2000));
        must!(set("in/link", 3000, 0), Ok(0));
        check!((changed("in/file", 0), changed("in/link", NOFOLLOW)) == (3000, 2000));
        must!(set("in/escape", 4000, NOFOLLOW), Ok(0));
        must!(set("in/escape", 4000, 0), Err(Errno::EXDEV));
        must!(set("in/file", 1, 0x800), Err(Errno::EINVAL));
        let (file, mut stat) = (path("in/file"), [0u8; 256]);
        let (file, at) = (file.as_ptr() as usize, stat.as_mut_ptr() as usize);
        // SAFETY: a path, and the guest's own buffer.
        unsafe {
            for flags in [0, 0x100, 0x800, 0x2000] {
                must!(c(freestanding::files::FSTATAT, [CWD, file, at, flags]), Ok(0));
                must!(c(Sysno::statx, [CWD, file, flags, 0x7ff, at]), Ok(0));
            }
            for flags in [0x200, 0x400, 1] {
                must!(c(freestanding::files::FSTATAT, [CWD, file, at, flags]), Err(Errno::EINVAL));
                must!(c(Sysno::statx, [CWD, file, flags, 0x7ff, at]), Err(Errno::EINVAL));
            }
            must!(c(Sysno::faccessat2, [CWD, file, 4, 0x200]), Ok(0));
            must!(c(Sysno::faccessat2, [CWD, file, 4, 0x800]), Err(Errno::EINVAL));
            must!(c(Sysno::faccessat, [CWD, file, 8]), Err(Errno::EINVAL));
        }
        0
    }
    with_root(ALL, guest);
}

/// Attributes are changed without opening what has them: whoever waits for a reader of a pipe goes on waiting.
fn not_opened() {
    extern "C" fn guest(_: usize) -> i32 {
        must!(one_path(Sysno::chmod, "in/pipe", [0o600, 0]), Ok(0));
        let pipe = path("in/pipe");
        // SAFETY: a path.
        unsafe { must!(c(Sysno::utimensat, [CWD, pipe.as_ptr() as usize, 0, 0]), Ok(0)) };
        must!(one_path(Sysno::truncate, "in/pipe", [0; 2]), Err(Errno::EINVAL));
        must!(one_path(Sysno::truncate, "in/link", [2, 0]), Ok(0));
        must!(one_path(Sysno::truncate, "in/link", [usize::MAX, 0]), Err(Errno::EINVAL));
        must!(one_path(Sysno::truncate, "in", [0; 2]), Err(Errno::EISDIR));
        must!(one_path(Sysno::truncate, "in/escape", [0; 2]), Err(Errno::EXDEV));
        // No step of T's: the descriptor could be another by the next.
        // SAFETY: the verdict can be read by the guest.
        let step = || unsafe { (&raw const (*ascetic::experiment::pages().1).script[0].nr).read_volatile() };
        must!(one_path(Sysno::truncate, "in/file", [1, 0]), Ok(0));
        check!(step() == ascetic::abi::STEP_REPLY);
        let mut link = [0u8; 4];
        must!(one_path(Sysno::readlink, "in/link", [link.as_mut_ptr() as usize, 4]), Ok(4));
        check!(step() == ascetic::abi::STEP_REPLY);
        0
    }
    let scratch = Scratch::with_file();
    scratch.link("in/link", "file");
    scratch.link("in/escape", "../outside");
    let (pipe, root) = (path("in/pipe"), path("in"));
    // SAFETY: a path.
    unsafe { freestanding::call(Sysno::mknod, [pipe.as_ptr() as usize, 0o010_644, 0]) }.unwrap();
    // SAFETY: the child opens a pipe, and ends.
    let writer = unsafe { sys::fork() }.unwrap();
    if writer == 0 {
        // SAFETY: follows the case into death.
        let _ = unsafe { sys::prctl(sys::PR_SET_PDEATHSIG, 9) };
        // SAFETY: a path.
        let _ = unsafe { freestanding::call(Sysno::open, [pipe.as_ptr() as usize, 1]) };
        sys::exit(0);
    }
    let policy = rooted(DIRECT.clone(), &root, ALL);
    must_exit(&program(&policy), guest, 0, 0);
    check!(sys::wait(writer, false) == Ok(None), "the pipe was opened");
    let _ = sys::kill(writer, 9);
    let _ = sys::wait(writer, true);
}

/// A new name gives no rights that the old one did not.
fn more_rights() {
    extern "C" fn guest(_: usize) -> i32 {
        const EXCHANGE: usize = 2;
        let exchange = |from: &str, to: &str| {
            let (from, to) = (path(from), path(to));
            // SAFETY: paths.
            unsafe { c(Sysno::renameat2, [CWD, from.as_ptr() as usize, CWD, to.as_ptr() as usize, EXCHANGE]) }
        };
        must!(open("less/file", RW), Err(Errno::EACCES));
        must!(two_paths(Sysno::rename, "less/file", "more/new"), Err(Errno::EACCES));
        must!(two_paths(Sysno::link, "less/file", "more/new"), Err(Errno::EACCES));
        must!(exchange("less/file", "more/file"), Err(Errno::EACCES));
        must!(exchange("more/file", "less/file"), Err(Errno::EACCES));
        must!(two_paths(Sysno::rename, "less/file", "less/new"), Ok(0));
        must!(exchange("less/new", "less/other"), Ok(0));
        must!(two_paths(Sysno::rename, "more/file", "less/was_more"), Ok(0));
        must!(open("less/was_more", RW), Err(Errno::EACCES));
        must!(two_paths(Sysno::rename, "less/was_more", "more/file"), Err(Errno::EACCES));
        0
    }
    let scratch = Scratch::new();
    for folder in ["less", "more"] {
        scratch.folder(folder);
    }
    for file in ["less/file", "less/other", "more/file"] {
        scratch.file(file, b"bytes");
    }
    let (less, more) = (path("less"), path("more"));
    let root = |path, rights| Root { path, rights, exact: false };
    let policy = DIRECT.clone().try_root(root(less.as_c(), Rights::READ.and(Rights::CREATE)));
    let policy = policy.and_then(|policy| policy.try_root(root(more.as_c(), ALL))).unwrap();
    must_exit(&program(&policy), guest, 0, 0);
}

/// A root that is one file is never a folder, whose descriptor would give all that is in it.
fn one_file() {
    extern "C" fn guest(_: usize) -> i32 {
        const O_PATH: usize = 0o10_000_000;
        must!(open("in/one", RW), Ok(_));
        must!(open("in/one", O_PATH), Ok(_));
        must!(open("in/beside", 0), Err(Errno::EACCES));
        must!(open("in/one", DIRECTORY), Err(Errno::ENOTDIR));
        must!(open("in/one", DIRECTORY | O_PATH), Err(Errno::ENOTDIR));
        must!(open("in/one", 0o20_200_000 | RW), Err(Errno::ENOTDIR)); // O_TMPFILE
        must!(one_path(Sysno::chdir, "in/one", [0; 2]), Err(Errno::ENOTDIR));
        must!(one_path(Sysno::unlink, "in/one", [0; 2]), Ok(0));
        must!(one_path(Sysno::mkdir, "in/one", [0o755, 0]), Err(Errno::ENOTDIR));
        must!(two_paths(Sysno::rename, "other/folder", "in/one"), Err(Errno::ENOTDIR));
        must!(two_paths(Sysno::rename, "other/file", "in/one"), Ok(0));
        let (one, folder) = (path("in/one"), path("other/folder"));
        for (from, to) in [(one, folder), (folder, one)] {
            // SAFETY: paths.
            unsafe {
                let exchange = c(Sysno::renameat2, [CWD, from.as_ptr() as usize, CWD, to.as_ptr() as usize, 2]);
                must!(exchange, Err(Errno::ENOTDIR));
            }
        }
        must!(two_paths(Sysno::rename, "in/one", "other/file"), Ok(0));
        // A link is not followed there.
        must!(two_paths(Sysno::symlink, "beside", "in/one"), Ok(0));
        must!(open("in/one", 0), Err(Errno::ELOOP));
        must!(one_path(Sysno::chmod, "in/one", [0o777, 0]), Err(Errno::ELOOP));
        0
    }
    let scratch = Scratch::new();
    for folder in ["in", "in/folder", "other", "other/folder"] {
        scratch.folder(folder);
    }
    for file in ["in/one", "in/beside", "other/file"] {
        scratch.file(file, b"bytes");
    }
    let (one, folder, other) = (path("in/one"), path("in/folder"), path("other"));
    let with = |path, exact| Root { path, rights: ALL, exact };
    let policy = DIRECT.clone().try_root(with(other.as_c(), false)).unwrap();
    let bad = policy.clone().try_root(with(folder.as_c(), true)).unwrap();
    let error = sandbox::spawn(&program(&bad), guest, 0).map(drop);
    check!(error == Err(ascetic::error::Error::RootIsFolder { number: 1 }), "{error:?}");
    let policy = policy.try_root(with(one.as_c(), true)).unwrap();
    must_exit(&program(&policy), guest, 0, 0);
}

/// The working folder is the guest's, which is a name: T's, which is the embedder's, is out of reach.
fn working_folder() {
    extern "C" fn guest(_: usize) -> i32 {
        const EMPTY_PATH: usize = 0x1000;
        let mut statx = [[0u64; 32]; 2];
        let [at, folder] = [statx[0].as_mut_ptr() as usize, statx[1].as_mut_ptr() as usize];
        let empty = c"".as_ptr() as usize;
        // SAFETY: paths and the guest's own buffers.
        unsafe {
            for flags in [EMPTY_PATH, EMPTY_PATH | 0x100] {
                must!(c(Sysno::statx, [CWD, empty, flags, 0x7ff, at]), Err(Errno::EACCES));
                must!(c(freestanding::files::FSTATAT, [CWD, empty, at, flags]), Err(Errno::EACCES));
                must!(c(Sysno::faccessat2, [CWD, empty, 4, flags]), Err(Errno::EACCES));
            }
            must!(c(Sysno::statx, [CWD, empty, 0, 0x7ff, at]), Err(Errno::ENOENT));
            for fd in [-1isize, -100, -101, i32::MIN as isize] {
                let errno = if fd == -100 { Errno::EACCES } else { Errno::EBADF };
                must!(c(Sysno::statx, [fd as u32 as usize, empty, EMPTY_PATH, 0x7ff, at]), Err(e) if e == errno);
            }
            must!(one_path(Sysno::chdir, "in", [0; 2]), Ok(0));
            must!(c(Sysno::statx, [CWD, empty, EMPTY_PATH, 0x7ff, at]), Ok(0));
            must!(c(freestanding::files::FSTATAT, [CWD, empty, folder, EMPTY_PATH]), Ok(0));
            must!(c(Sysno::faccessat2, [CWD, empty, 4, EMPTY_PATH]), Ok(0));
            let root = path("in");
            must!(c(Sysno::statx, [CWD, root.as_ptr() as usize, 0, 0x7ff, folder]), Ok(0));
            check!(statx[0][4] == statx[1][4], "another inode");
            let dir = open("in", DIRECTORY).unwrap();
            must!(c(Sysno::statx, [dir, empty, EMPTY_PATH, 0x7ff, folder]), Ok(0));
            must!(c(Sysno::faccessat2, [dir, empty, 4, EMPTY_PATH]), Ok(0));
        }
        0
    }
    with_root(ALL, guest);
}

/// What a guest asks of `openat2` beyond what every path gets.
fn openat2() {
    extern "C" fn guest(_: usize) -> i32 {
        const NO_SYMLINKS: u64 = 4;
        const BENEATH: u64 = 8;
        let ask = |dir: usize, name: &core::ffi::CStr, how: [u64; 3], size: usize| {
            // SAFETY: a path, and the guest's own structure.
            unsafe { c(Sysno::openat2, [dir, name.as_ptr() as usize, how.as_ptr() as usize, size]) }
        };
        let (file, link) = (path("in/file"), path("in/link"));
        let (file, link) = (file.as_c(), link.as_c());
        let dir = open("in", DIRECTORY).unwrap();
        must!(ask(CWD, file, [0; 3], 24), Ok(_));
        must!(ask(CWD, link, [0; 3], 24), Ok(_));
        for resolve in [1, 2, 3] {
            must!(ask(CWD, link, [0, 0, resolve], 24), Ok(_));
        }
        must!(ask(CWD, link, [0, 0, NO_SYMLINKS], 24), Err(Errno::ELOOP));
        must!(ask(CWD, file, [0, 0, NO_SYMLINKS], 24), Ok(_));
        must!(open("in/link", 0), Ok(_)); // a token of the other kind would say ELOOP
        must!(ask(dir, c"link", [0, 0, NO_SYMLINKS], 24), Err(Errno::ELOOP));
        must!(ask(dir, c"link", [0, 0, BENEATH], 24), Ok(_));
        must!(ask(dir, c"../in/file", [0, 0, BENEATH], 24), Err(Errno::EXDEV));
        must!(ask(dir, file, [0, 0, BENEATH], 24), Err(Errno::EXDEV));
        must!(ask(CWD, c"file", [0, 0, BENEATH], 24), Err(Errno::EINVAL));
        for resolve in [0x10, 0x18, 0x40, 1 << 63] {
            must!(ask(CWD, file, [0, 0, resolve], 24), Err(Errno::EINVAL));
        }
        // Flags that `open` would pass over.
        for flags in [0o20_000, 1 << 30, 1 << 32, 0o10_000_001] {
            must!(ask(CWD, file, [flags, 0, 0], 24), Err(Errno::EINVAL));
        }
        must!(open("in/file", 1 << 30), Ok(_));
        must!(ask(CWD, file, [0, 0o644, 0], 24), Err(Errno::EINVAL));
        must!(ask(CWD, file, [0o100, 0o10_000, 0], 24), Err(Errno::EINVAL));
        must!(ask(CWD, file, [0o100, 0o644, 0], 24), Ok(_));
        must!(ask(CWD, file, [0; 3], 16), Err(Errno::EINVAL));
        must!(ask(CWD, file, [0; 3], 32), Err(Errno::E2BIG));
        0
    }
    with_root(ALL, guest);
}

/// What links say, by every form that there is.
fn links() {
    extern "C" fn guest(_: usize) -> i32 {
        let mut text = [0u8; 64];
        let at = text.as_mut_ptr() as usize;
        let (link, file) = (path("in/link"), path("in/file"));
        let dir = open("in", DIRECTORY).unwrap();
        // SAFETY: paths and the guest's own buffers.
        unsafe {
            must!(c(Sysno::readlinkat, [CWD, link.as_ptr() as usize, at, 64]), Ok(4));
            check!(text.starts_with(b"file\0"));
            must!(one_path(Sysno::readlink, "in/absolute", [at, 5]), Ok(5));
            check!(text.starts_with(b"/etc/\0"));
            must!(c(Sysno::readlinkat, [dir, c"escape".as_ptr() as usize, at, 64]), Ok(10));
            check!(text.starts_with(b"../outside\0"));
            must!(c(Sysno::readlinkat, [dir, link.as_ptr() as usize, at, 64]), Ok(4));
            check!(text.starts_with(b"file"));
            must!(c(Sysno::readlinkat, [dir, c"file".as_ptr() as usize, at, 64]), Err(Errno::EINVAL));
            must!(c(Sysno::readlinkat, [dir, c"none".as_ptr() as usize, at, 64]), Err(Errno::ENOENT));
            must!(c(Sysno::readlinkat, [dir, c"../outside".as_ptr() as usize, at, 64]), Err(Errno::EXDEV));
            must!(c(Sysno::readlinkat, [CWD, file.as_ptr() as usize, at, 64]), Err(Errno::EINVAL));
            must!(one_path(Sysno::readlink, "in/none", [at, 64]), Err(Errno::ENOENT));
            must!(one_path(Sysno::readlink, "in/link/", [at, 64]), Err(Errno::ENOTDIR | Errno::EINVAL));
            must!(one_path(Sysno::readlink, "in", [at, 64]), Err(Errno::EINVAL));
            must!(one_path(Sysno::readlink, "in/link", [8, 64]), Err(Errno::EFAULT));
            for size in [0, usize::MAX, 1 << 31] {
                must!(one_path(Sysno::readlink, "in/link", [at, size]), Err(Errno::EINVAL));
            }
        }
        0
    }
    with_root(Rights::READ, guest);
}

/// That `..` stays inside cannot be told while folders are renamed, anywhere, and the kernel says EAGAIN. A guest is not told.
fn while_folders_move() {
    const UP: &str = "in/a/../b/../a/../b/../a/../b/../a/../b/../a/../b/../a/../b/../file";
    extern "C" fn guest(tries: usize) -> i32 {
        for _ in 0..tries {
            let fd = must!(open(UP, 0), Ok(_));
            // SAFETY: the guest's own.
            unsafe { must!(c(Sysno::close, [fd]), Ok(0)) };
            must!(one_path(Sysno::chmod, UP, [0o644, 0]), Ok(0));
        }
        0
    }
    let scratch = Scratch::new();
    for folder in ["in", "in/a", "in/b", "move", "move/here", "move/there", "move/here/it"] {
        scratch.folder(folder);
    }
    scratch.file("in/file", b"inside");
    // SAFETY: the child renames, until it is killed.
    let mover = unsafe { sys::fork() }.unwrap();
    if mover == 0 {
        // SAFETY: follows the case into death.
        let _ = unsafe { sys::prctl(sys::PR_SET_PDEATHSIG, 9) };
        let ends = [path("move/here/it"), path("move/there/it")];
        loop {
            // SAFETY: paths.
            unsafe {
                let _ = freestanding::call(Sysno::rename, [ends[0].as_ptr() as usize, ends[1].as_ptr() as usize]);
                let _ = freestanding::call(Sysno::rename, [ends[1].as_ptr() as usize, ends[0].as_ptr() as usize]);
            }
        }
    }
    let file = path(UP);
    let how = ascetic::abi::OpenHow { flags: 0, mode: 0, resolve: 8 };
    let base = sys::openat2(-100, c"/", &ascetic::abi::OpenHow::default()).unwrap();
    let below = core::ffi::CStr::from_bytes_with_nul(&file.as_c().to_bytes_with_nul()[1..]).unwrap_or_default();
    let refused = |_| match sys::openat2(base, below, &how) {
        Ok(fd) => {
            sys::close(fd);
            false
        }
        Err(errno) => errno == Errno::EAGAIN,
    };
    let tries = if emulated() { 300 } else { 3000 };
    if !(0..100 * tries).any(refused) {
        println!("nobody was told EAGAIN: the guest would not be either");
    }
    let root = path("in");
    let policy = rooted(DIRECT.clone(), &root, ALL);
    must_exit(&program(&policy), guest, tries, 0);
    let _ = sys::kill(mover, 9);
    let _ = sys::wait(mover, true);
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
    let _scratch = Scratch::with_file();
    let root = path("in");
    let policy = rooted(DIRECT.clone(), &root, ALL);
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
