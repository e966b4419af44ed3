//! Files that are opened or looked at.

use ascetic::policy::Rights;

use super::broker::{Arg, Asked, Call, Decided, Want, one, only};
use super::paths::Place;
use super::{changes, nr};

/// `RESOLVE_*` (`include/uapi/linux/openat2.h`)
const NO_XDEV: u64 = 1;
const NO_MAGICLINKS: u64 = 2;
const NO_SYMLINKS: u64 = 4;
const BENEATH: u64 = 8;
const CACHED: u64 = 32;

const CWD: usize = libc::AT_FDCWD as isize as usize;

/// `O_LARGEFILE` of the kernel, and `__O_TMPFILE`.
const LARGEFILE: i32 = 0o100_000;
const TMPFILE: i32 = libc::O_TMPFILE & !libc::O_DIRECTORY;

fn bits(list: &[i32]) -> usize {
    list.iter().fold(0, |all, one| all | *one as usize)
}

/// What `open` knows: all but `O_ASYNC` and `O_DIRECT`.
fn known() -> usize {
    bits(&[
        libc::O_ACCMODE,
        libc::O_CREAT,
        libc::O_EXCL,
        libc::O_NOCTTY,
        libc::O_TRUNC,
        libc::O_APPEND,
        libc::O_NONBLOCK,
        libc::O_DSYNC,
        libc::O_SYNC,
        libc::O_DIRECTORY,
        libc::O_NOFOLLOW,
        libc::O_NOATIME,
        libc::O_CLOEXEC,
        libc::O_PATH,
        LARGEFILE,
        TMPFILE,
    ])
}

fn known_with(flags: usize) -> usize {
    match flags & libc::O_PATH as usize {
        0 => known(),
        _ => bits(&[libc::O_PATH, libc::O_DIRECTORY, libc::O_NOFOLLOW, libc::O_CLOEXEC]),
    }
}

fn creates(flags: usize) -> bool {
    flags & libc::O_PATH as usize == 0 && flags & bits(&[libc::O_CREAT, TMPFILE]) != 0
}

/// Where a path begins.
enum Start {
    Descriptor(usize),
    Root(Place),
}

fn start(asked: &Asked<'_>, dir: usize, path: &[u8]) -> Decided<Start> {
    if path.first().is_some_and(|first| *first != b'/') && dir as i32 != libc::AT_FDCWD {
        asked.guests(dir)?;
        return Ok(Start::Descriptor(dir));
    }
    asked.locate(dir, path).map(Start::Root)
}

/// How a file is opened.
#[derive(Clone, Copy)]
struct How {
    flags: usize,
    mode: usize,
    resolve: u64,
}

fn how(asked: &Asked<'_>, flags: usize, mode: usize) -> How {
    let links = if asked.model.no_links { NO_SYMLINKS } else { 0 };
    How { flags, mode, resolve: BENEATH | NO_XDEV | NO_MAGICLINKS | links }
}

/// The call that opens a path.
fn opening(asked: &Asked<'_>, start: &Start, path: &[u8], needs: Rights, mut how: How) -> Decided<Call> {
    let (dir, path) = match start {
        Start::Descriptor(_) if !asked.model.common().has(needs) => return Err(libc::EACCES),
        Start::Descriptor(dir) => (*dir, path.to_vec()),
        Start::Root(place) => {
            Asked::granted(place, needs)?;
            if place.exact {
                how.resolve |= NO_SYMLINKS;
                if how.flags & libc::O_DIRECTORY as usize != 0 {
                    return Err(libc::ENOTDIR);
                }
            }
            (asked.root_fds as usize + place.root, place.below.clone())
        }
    };
    let words = [how.flags as u64, how.mode as u64, how.resolve];
    let words: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    if words.len() + path.len() + 1 > ascetic::abi::DATA {
        return Err(libc::ENAMETOOLONG);
    }
    let path = [path, vec![0]].concat();
    Ok(one(nr("openat2"), vec![Arg::Is(dir), Arg::At(path), Arg::At(words), Arg::Is(24), Arg::Is(0), Arg::Is(0)]))
}

/// Opens to look at something, makes a call on it, closes it.
fn look(mut open: Call, name: &str, args: Vec<Arg>) -> Want {
    (open.saves, open.keeps) = (true, false);
    let look = Call { on_opened: true, ..one(nr(name), args) };
    let none = [0; 6].map(Arg::Is).into();
    let close = Call { nr: nr("close"), args: none, saves: false, on_opened: true, keeps: false };
    Want::Script(vec![open, look, close])
}

fn open(asked: &Asked<'_>, dir: usize, flags: usize, mode: usize) -> Decided<Want> {
    let known = flags & known_with(flags);
    let modes = if creates(known) { mode & 0o777 } else { 0 };
    open_as(asked, dir, how(asked, known, modes), Some([flags as u32, mode as u32]))
}

fn open_as(asked: &Asked<'_>, dir: usize, how: How, asks: Option<[u32; 2]>) -> Decided<Want> {
    let path = asked.carried(0)?;
    let mut needs = match (how.flags & libc::O_ACCMODE as usize) as i32 {
        libc::O_RDONLY => Rights::READ,
        libc::O_WRONLY => Rights::WRITE,
        _ => Rights::READ.and(Rights::WRITE),
    };
    if how.flags & libc::O_TRUNC as usize != 0 {
        needs = needs.and(Rights::WRITE);
    }
    if creates(how.flags) {
        needs = needs.and(Rights::CREATE);
    }
    let start = start(asked, dir, &path)?;
    let call = opening(asked, &start, &path, needs, how)?;
    Ok(match (start, asks) {
        (Start::Root(place), Some(asks)) => Want::Open(vec![call], (place.root, place.below), asks),
        _ => Want::Script(vec![call]),
    })
}

fn openat2(asked: &Asked<'_>) -> Decided<Want> {
    let [dir, _, _, size, ..] = asked.args;
    if size != 24 {
        return Err(if size < 24 { libc::EINVAL } else { libc::E2BIG });
    }
    let path = asked.carried(0)?;
    let bytes = asked.carried(1)?;
    let word = |i: usize| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().unwrap());
    let (flags, mode, resolve) = (word(0) as usize, word(1) as usize, word(2));
    let modes = if creates(flags) { 0o7777 } else { 0 };
    let resolves = NO_XDEV | NO_MAGICLINKS | NO_SYMLINKS | BENEATH | CACHED;
    if flags & !known_with(flags) != 0 || mode & !modes != 0 || resolve & !resolves != 0 {
        return Err(libc::EINVAL);
    }
    if resolve & BENEATH != 0 {
        if path.starts_with(b"/") {
            return Err(libc::EXDEV);
        }
        if dir as i32 == libc::AT_FDCWD {
            return Err(libc::EINVAL);
        }
    }
    let mut how = how(asked, flags, mode & 0o777);
    how.resolve |= resolve;
    open_as(asked, dir, how, (resolve == 0).then_some([flags as u32, mode as u32]))
}

/// Has a call made on what a path leads to. `args` are those behind the descriptor.
fn facts(asked: &Asked<'_>, dir: usize, flags: usize, name: &str, args: Vec<Arg>, writes: bool) -> Decided<Want> {
    let on = |fd: usize, args: Vec<Arg>| [vec![Arg::Is(fd)], args].concat_args();
    let mut path = asked.carried(0)?;
    if path.is_empty() && flags & libc::AT_EMPTY_PATH as usize != 0 {
        if dir as i32 != libc::AT_FDCWD {
            asked.guests(dir)?;
            return Ok(Want::Script(vec![one(nr(name), on(dir, args))]));
        }
        path = b".".to_vec();
    }
    let start = start(asked, dir, &path)?;
    if let Start::Root(place) = &start
        && place.rights == Rights::NONE
        && !place.exact
        && place.below == b"."
        && !writes
    {
        return Ok(Want::Script(vec![one(nr(name), on(asked.root_fds as usize + place.root, args))]));
    }
    let needs = if writes { Rights::READ.and(Rights::WRITE) } else { Rights::READ };
    let follows = if flags & libc::AT_SYMLINK_NOFOLLOW as usize != 0 { libc::O_NOFOLLOW } else { 0 };
    let open = opening(asked, &start, &path, needs, how(asked, bits(&[libc::O_PATH, libc::O_CLOEXEC, follows]), 0))?;
    Ok(look(open, name, on(0, args)))
}

/// Lists of arguments, put together.
trait ConcatArgs {
    fn concat_args(self) -> Vec<Arg>;
}

impl ConcatArgs for [Vec<Arg>; 2] {
    fn concat_args(self) -> Vec<Arg> {
        self.into_iter().flatten().collect()
    }
}

fn int(arg: usize) -> i32 {
    arg as u32 as i32
}

const STAT: i32 = libc::AT_SYMLINK_NOFOLLOW
    | libc::AT_NO_AUTOMOUNT
    | libc::AT_EMPTY_PATH
    | libc::AT_STATX_FORCE_SYNC
    | libc::AT_STATX_DONT_SYNC;

fn stat(asked: &Asked<'_>, dir: usize, flags: usize, to: usize) -> Decided<Want> {
    asked.outside(&[to])?;
    if int(flags) & !STAT != 0 {
        return Err(libc::EINVAL);
    }
    facts(asked, dir, flags, "fstat", [to, 0, 0, 0, 0].map(Arg::Is).into(), false)
}

fn statx(asked: &Asked<'_>) -> Decided<Want> {
    let [dir, _, flags, mask, to, _] = asked.args;
    asked.outside(&[to])?;
    if int(flags) & !STAT != 0 {
        return Err(libc::EINVAL);
    }
    let sync = flags & bits(&[libc::AT_STATX_FORCE_SYNC, libc::AT_STATX_DONT_SYNC]);
    let flags_of_call = libc::AT_EMPTY_PATH as usize | sync;
    let args = vec![Arg::At(vec![0]), Arg::Is(flags_of_call), Arg::Is(mask), Arg::Is(to), Arg::Is(0)];
    facts(asked, dir, flags, "statx", args, false)
}

fn access(asked: &Asked<'_>, dir: usize, mode: usize, flags: usize) -> Decided<Want> {
    let known = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EACCESS | libc::AT_EMPTY_PATH;
    if int(mode) & !7 != 0 || int(flags) & !known != 0 {
        return Err(libc::EINVAL);
    }
    let flags_of_call = libc::AT_EMPTY_PATH as usize | flags & libc::AT_EACCESS as usize;
    let args = vec![Arg::At(vec![0]), Arg::Is(mode), Arg::Is(flags_of_call), Arg::Is(0), Arg::Is(0)];
    facts(asked, dir, flags, "faccessat2", args, mode & libc::W_OK as usize != 0)
}

fn statfs(asked: &Asked<'_>, to: usize) -> Decided<Want> {
    asked.outside(&[to])?;
    let path = asked.carried(0)?;
    let start = start(asked, CWD, &path)?;
    let open = opening(asked, &start, &path, Rights::READ, how(asked, bits(&[libc::O_PATH, libc::O_CLOEXEC]), 0))?;
    Ok(look(open, "fstatfs", [0, to, 0, 0, 0, 0].map(Arg::Is).into()))
}

fn readlinkat(asked: &Asked<'_>, dir: usize, to: usize, len: usize) -> Decided<Want> {
    asked.outside(&[to])?;
    let path = asked.carried(0)?;
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let (name, folders) = names.split_last().unwrap();
    if name.is_empty() || *name == b"." || *name == b".." {
        return Err(libc::EINVAL);
    }
    let is_root = |place: Place| !place.exact && place.below == b".";
    if path.starts_with(b"/") && asked.locate(dir, &path).is_ok_and(is_root) {
        return Err(libc::EINVAL);
    }
    let folder = match folders {
        [] => b".".to_vec(),
        [b""] => b"/".to_vec(),
        folders => folders.join(&b'/'),
    };
    let start = start(asked, dir, &folder)?;
    if !asked.model.common().has(Rights::READ) {
        return Err(libc::EACCES);
    }
    let how = how(asked, bits(&[libc::O_PATH, libc::O_CLOEXEC, libc::O_DIRECTORY]), 0);
    let open = opening(asked, &start, &folder, Rights::READ, how)?;
    let name = [name, &[0][..]].concat();
    let args = vec![Arg::Is(0), Arg::At(name), Arg::Is(to), Arg::Is(len), Arg::Is(0), Arg::Is(0)];
    Ok(look(open, "readlinkat", args))
}

fn fcntl(asked: &Asked<'_>) -> Decided<Want> {
    let [fd, command, arg, ..] = asked.args;
    asked.guests(fd)?;
    asked.outside(&[arg])?;
    let asks = [
        libc::F_DUPFD,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_GETLK,
        12, // F_GETLK64 of i386
        libc::F_OFD_GETLK,
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETPIPE_SZ,
    ];
    let locks = [libc::F_SETLK, libc::F_SETLKW, 13, 14, libc::F_OFD_SETLK, libc::F_OFD_SETLKW];
    let is = |list: &[i32]| list.iter().any(|known| *known as usize == command);
    if is(&locks) || is(&[libc::F_SETFL]) && arg & libc::O_ASYNC as usize == 0 {
        if !asked.model.locks_and_flags {
            return Err(libc::EPERM);
        }
    } else if !is(&asks) {
        return Err(libc::EINVAL);
    }
    Ok(only(asked.nr, [fd, command, arg, 0, 0, 0]))
}

/// Calls on files.
pub fn decide(asked: &Asked<'_>) -> Decided<Option<Want>> {
    let [a, b, c, d, ..] = asked.args;
    let nofollow = libc::AT_SYMLINK_NOFOLLOW as usize;
    let want = match asked.name() {
        "open" => open(asked, CWD, b, c)?,
        "creat" => open(asked, CWD, bits(&[libc::O_CREAT, libc::O_WRONLY, libc::O_TRUNC]), b)?,
        "openat" => open(asked, a, c, d)?,
        "openat2" => openat2(asked)?,
        "stat" => stat(asked, CWD, 0, b)?,
        "lstat" => stat(asked, CWD, nofollow, b)?,
        "newfstatat" => stat(asked, a, d, c)?,
        "statx" => statx(asked)?,
        "access" => access(asked, CWD, b, 0)?,
        "faccessat" => access(asked, a, c, 0)?,
        "faccessat2" => access(asked, a, c, d)?,
        "statfs" => statfs(asked, b)?,
        "fcntl" => fcntl(asked)?,
        "flock" => {
            asked.guests(a)?;
            if !asked.model.locks_and_flags {
                return Err(libc::EPERM);
            }
            only(asked.nr, [a, b, 0, 0, 0, 0])
        }
        "getcwd" => Want::Getcwd(b),
        "readlinkat" if a as i32 != libc::AT_FDCWD => readlinkat(asked, a, c, d)?,
        _ => return changes::decide(asked),
    };
    Ok(Some(want))
}
