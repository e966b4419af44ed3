//! Changes of names and attributes of files, which the broker makes itself, with descriptors that no guest can reach.

use crate::abi::{OpenHow, PAYLOAD};
use crate::broker::decide::{Change, O_DIRECTORY, O_NOFOLLOW, O_PATH, RENAME_EXCHANGE};
use crate::broker::path::{PATH, Place, Whole};
use crate::make::Fd;
use crate::sandbox::Sandbox;
use crate::sys::{self, Errno, O_CLOEXEC, Sysno};
use core::ffi::CStr;

/// `RESOLVE_BENEATH | NO_MAGICLINKS | NO_XDEV`
const BENEATH: u64 = 8 | 2 | 1;
const NO_SYMLINKS: u64 = 4;
const AT_REMOVEDIR: usize = 0x200;
const AT_EMPTY_PATH: usize = 0x1000;
const CWD: usize = crate::broker::decide::AT_FDCWD as usize;

/// How often a path with `..` is tried while others rename folders.
const TRIES: usize = 64;

/// What to say where a name is needed, and there is the root itself or `..`, or there is `.`.
struct Instead {
    root: Errno,
    dot: Errno,
    dots: Errno,
}

impl Instead {
    const fn all(errno: Errno) -> Self {
        Self { root: errno, dot: errno, dots: errno }
    }
}

/// As `fs/namei.c` has it: of a new name, `rmdir`, `unlink`, `rename`, and an old name of `link`.
const NEW: Instead = Instead::all(Errno::EEXIST);
const RMDIR: Instead = Instead { root: Errno::EBUSY, dot: Errno::EINVAL, dots: Errno::ENOTEMPTY };
const UNLINK: Instead = Instead::all(Errno::EISDIR);
const RENAME: Instead = Instead::all(Errno::EBUSY);
const LINK: Instead = Instead::all(Errno::EPERM);

/// The path by which a process finds an open file of its own.
struct Own([u8; 32]);

impl Own {
    fn new(fd: &Fd) -> Self {
        const FOLDER: &[u8] = b"/proc/thread-self/fd/";
        let mut text = [0; 32];
        text[..FOLDER.len()].copy_from_slice(FOLDER);
        let digits = fd.0.unsigned_abs().checked_ilog10().unwrap_or(0) as usize + 1;
        let mut rest = fd.0.unsigned_abs();
        for digit in text.iter_mut().skip(FOLDER.len()).take(digits).rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        Self(text)
    }

    fn at(&self) -> usize {
        self.0.as_ptr() as usize
    }
}

fn at(text: &CStr) -> usize {
    text.as_ptr() as usize
}

fn call(nr: Sysno, args: [usize; 6]) -> Result<usize, Errno> {
    // SAFETY: the descriptors and the texts are the caller's own and live as long as the call.
    unsafe { sys::call(nr, args) }
}

/// Opens what is at `path` as seen from `dir`, and not outside.
fn open_in(dir: &Fd, path: &CStr, flags: usize, links: u64) -> Result<Fd, Errno> {
    let how = OpenHow { flags: (flags | O_PATH | O_CLOEXEC) as u64, mode: 0, resolve: BENEATH | links };
    let mut tried = 0;
    loop {
        // That `..` stays inside cannot be told while folders are renamed, anywhere: EAGAIN (`openat2(2)`).
        match sys::openat2(dir.0, path, &how) {
            Err(Errno::EAGAIN) if tried < TRIES => tried += 1,
            other => return other.map(Fd),
        }
    }
}

impl Sandbox<'_> {
    /// Whether symbolic links are followed below a place's root.
    fn links(&self, place: Place) -> u64 {
        if self.policy.follows_links() && !place.exact { 0 } else { NO_SYMLINKS }
    }

    fn root(&self, place: Place) -> Result<&Fd, Errno> {
        self.roots.get(place.root).and_then(Option::as_ref).ok_or(Errno::EACCES)
    }

    /// A path's file, not opened but found: nothing happens to it, whatever it is.
    fn find(&self, whole: &Whole, place: Place, flags: usize) -> Result<Fd, Errno> {
        open_in(self.root(place)?, whole.below(place), flags, self.links(place))
    }

    /// The folder that a path is in, and its name there, with what follows it.
    fn parent<'w>(&self, whole: &'w mut Whole, place: Place, instead: &Instead) -> Result<(Fd, &'w CStr), Errno> {
        let (folder, name) = whole.split(place).ok_or(instead.root)?;
        let folder = open_in(self.root(place)?, folder, O_DIRECTORY, self.links(place))?;
        let end = name.to_bytes().iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        match name.to_bytes().get(..end) {
            Some(b".") => Err(instead.dot),
            Some(b"..") => Err(instead.dots),
            _ => Ok((folder, name)),
        }
    }

    /// What is to get the name of a root that is one file is no folder.
    fn no_folder(&self, place: Place, folder: &Fd, name: &CStr) -> Result<(), Errno> {
        if !place.exact {
            return Ok(());
        }
        let found = open_in(folder, name, O_NOFOLLOW, 0)?;
        if sys::file_facts(found.0)?.kind == sys::S_IFDIR { Err(Errno::ENOTDIR) } else { Ok(()) }
    }

    /// Makes a change that was decided on for pair `k`; the result of the call.
    pub(super) fn change(&mut self, k: usize, change: &Change<'_>) -> Result<usize, Errno> {
        // SAFETY: the view is mapped and this value's own; of it, only the working folder is used below besides.
        let [first, second] = unsafe { &mut (*self.books.at).paths };
        match *change {
            Change::Mkdir(place, mode) => {
                let (folder, name) = self.parent(first, place, &NEW)?;
                call(Sysno::mkdirat, [folder.0 as usize, at(name), mode as usize, 0, 0, 0])
            }
            Change::Unlink(place, is_folder) => {
                let (flags, instead) = if is_folder { (AT_REMOVEDIR, &RMDIR) } else { (0, &UNLINK) };
                let (folder, name) = self.parent(first, place, instead)?;
                call(Sysno::unlinkat, [folder.0 as usize, at(name), flags, 0, 0, 0])
            }
            Change::Rename([a, b], flags) => {
                let (from, old) = self.parent(first, a, &RENAME)?;
                let (to, new) = self.parent(second, b, &RENAME)?;
                self.no_folder(b, &from, old)?;
                if flags & RENAME_EXCHANGE != 0 {
                    self.no_folder(a, &to, new)?;
                }
                call(Sysno::renameat2, [from.0 as usize, at(old), to.0 as usize, at(new), flags, 0])
            }
            Change::Link([a, b]) => {
                let (from, old) = self.parent(first, a, &LINK)?;
                let (to, new) = self.parent(second, b, &NEW)?;
                if old.to_bytes().ends_with(b"/") {
                    // `linkat` would follow a link, to anywhere, to find that a folder has one name only.
                    return open_in(&from, old, O_DIRECTORY, self.links(a)).and(Err(Errno::EPERM));
                }
                call(Sysno::linkat, [from.0 as usize, at(old), to.0 as usize, at(new), 0, 0])
            }
            Change::Symlink(target, place) => {
                let (folder, name) = self.parent(first, place, &NEW)?;
                call(Sysno::symlinkat, [at(target), folder.0 as usize, at(name), 0, 0, 0])
            }
            Change::Chmod(place, mode) => {
                let file = self.find(first, place, 0)?;
                call(Sysno::fchmodat, [CWD, Own::new(&file).at(), mode as usize, 0, 0, 0])
            }
            Change::Utimens(place, times, itself) => {
                let file = self.find(first, place, if itself { O_NOFOLLOW } else { 0 })?;
                let mut words = [0usize; 4];
                for (to, from) in words.iter_mut().zip(times.unwrap_or_default().chunks_exact(size_of::<usize>())) {
                    *to = from.try_into().map_or(0, usize::from_ne_bytes);
                }
                let times = if times.is_some() { words.as_ptr() as usize } else { 0 };
                call(Sysno::utimensat, [file.0 as usize, at(c""), times, AT_EMPTY_PATH, 0, 0])
            }
            Change::Truncate(place, len) => {
                let file = self.find(first, place, 0)?;
                sys::truncate(Own::new(&file).at(), len).map(|()| 0)
            }
            Change::Chdir(place) => {
                drop(self.find(first, place, O_DIRECTORY)?);
                self.set_cwd(first.bytes()).map(|()| 0)
            }
            Change::Readlink(place, size) => {
                let link = self.find(first, place, O_NOFOLLOW)?;
                // SAFETY: the address of a field of the view, which is mapped; the guest gets what it finds there.
                let to = unsafe { &raw mut (*self.mailboxes.mailbox(k)).data.0 }.addr();
                match call(Sysno::readlinkat, [link.0 as usize, at(c""), to, size.min(PAYLOAD), 0, 0]) {
                    Err(Errno::ENOENT) => Err(Errno::EINVAL), // it is there, and no link
                    other => other,
                }
            }
        }
    }

    /// Notes the guest's working folder. `..` goes up by text: the folder is there, and what its name leads to is checked
    /// again with every call.
    fn set_cwd(&mut self, path: &[u8]) -> Result<(), Errno> {
        let mut text = [0u8; PATH];
        let mut len = 0;
        for part in path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")) {
            if part == b".." {
                len = text.get(..len).and_then(|text| text.iter().rposition(|byte| *byte == b'/')).unwrap_or(0);
                continue;
            }
            let end = len + 1 + part.len();
            let to = text.get_mut(len..end).filter(|_| end < PATH).ok_or(Errno::ENAMETOOLONG)?;
            to[0] = b'/';
            to[1..].copy_from_slice(part);
            len = end;
        }
        // SAFETY: the view is mapped and this value's own.
        let books = unsafe { &mut *self.books.at };
        books.cwd = text;
        books.cwd_len = len;
        if len == 0 {
            (books.cwd[0], books.cwd_len) = (b'/', 1);
        }
        Ok(())
    }
}
