//! Changes of names and attributes of files, which the broker makes itself, with descriptors that no guest can reach.

use crate::abi::OpenHow;
use crate::broker::decide::{Change, O_DIRECTORY, O_PATH};
use crate::broker::path::{PATH, Place, Whole};
use crate::make::Fd;
use crate::sandbox::Sandbox;
use crate::sys::{self, Errno, O_CLOEXEC, Sysno};
use core::ffi::CStr;

/// `RESOLVE_BENEATH | NO_MAGICLINKS | NO_XDEV`
const BENEATH: u64 = 8 | 2 | 1;
const NO_SYMLINKS: u64 = 4;
const O_RDONLY_NONBLOCK: usize = 0o4000 | 0o400; // and no controlling terminal
const AT_REMOVEDIR: usize = 0x200;

/// A path with its NUL.
struct Text([u8; PATH]);

impl Text {
    fn new(bytes: &[u8]) -> Result<Self, Errno> {
        let mut text = [0; PATH];
        text.get_mut(..bytes.len()).filter(|_| bytes.len() < PATH).ok_or(Errno::ENAMETOOLONG)?.copy_from_slice(bytes);
        Ok(Self(text))
    }

    fn as_c(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }

    fn at(&self) -> usize {
        self.0.as_ptr() as usize
    }
}

impl Sandbox<'_> {
    fn open_below(&self, place: Place, path: &[u8], flags: usize) -> Result<Fd, Errno> {
        let root = self.roots.get(place.root).and_then(Option::as_ref).ok_or(Errno::EACCES)?;
        let links = if self.policy.follows_links() && !place.exact { 0 } else { NO_SYMLINKS };
        let how = OpenHow { flags: (flags | O_CLOEXEC) as u64, mode: 0, resolve: BENEATH | links };
        sys::openat2(root.0, Text::new(path)?.as_c(), &how).map(Fd)
    }

    /// The folder that a path is in, and its name there.
    fn parent(&self, whole: &Whole, place: Place) -> Result<(Fd, Text), Errno> {
        let (folder, name) = place.split(whole).ok_or(Errno::EBUSY)?;
        Ok((self.open_below(place, folder, O_PATH | O_DIRECTORY)?, Text::new(name)?))
    }

    /// Makes a change that was decided on.
    pub(super) fn change(&mut self, change: &Change<'_>) -> Result<(), Errno> {
        let call = |nr, args: [usize; 6]| {
            // SAFETY: the descriptors and the texts are this function's own and live as long as the call.
            unsafe { sys::call(nr, args) }.map(drop)
        };
        match *change {
            Change::Mkdir(ref whole, place, mode) => {
                let (folder, name) = self.parent(whole, place).map_err(exists)?;
                call(Sysno::mkdirat, [folder.0 as usize, name.at(), mode as usize, 0, 0, 0])
            }
            Change::Unlink(ref whole, place, is_folder) => {
                let (folder, name) = self.parent(whole, place)?;
                let flags = if is_folder { AT_REMOVEDIR } else { 0 };
                call(Sysno::unlinkat, [folder.0 as usize, name.at(), flags, 0, 0, 0])
            }
            Change::Rename(ref ends, flags) => {
                let [(from, a), (to, b)] = ends;
                let ((from, old), (to, new)) = (self.parent(from, *a)?, self.parent(to, *b)?);
                call(Sysno::renameat2, [from.0 as usize, old.at(), to.0 as usize, new.at(), flags, 0])
            }
            Change::Link(ref ends) => {
                let [(from, a), (to, b)] = ends;
                let ((from, old), (to, new)) = (self.parent(from, *a)?, self.parent(to, *b)?);
                call(Sysno::linkat, [from.0 as usize, old.at(), to.0 as usize, new.at(), 0, 0])
            }
            Change::Symlink(target, ref whole, place) => {
                let (folder, name) = self.parent(whole, place)?;
                let target = Text::new(target)?;
                call(Sysno::symlinkat, [target.at(), folder.0 as usize, name.at(), 0, 0, 0])
            }
            Change::Chmod(ref whole, place, mode) => {
                let file = self.open_below(place, place.rest(whole), O_RDONLY_NONBLOCK)?;
                call(Sysno::fchmod, [file.0 as usize, mode as usize, 0, 0, 0, 0])
            }
            Change::Utimens(ref whole, place, times) => {
                let file = self.open_below(place, place.rest(whole), O_RDONLY_NONBLOCK)?;
                let mut words = [0usize; 4];
                for (to, from) in words.iter_mut().zip(times.unwrap_or_default().chunks_exact(size_of::<usize>())) {
                    *to = from.try_into().map_or(0, usize::from_ne_bytes);
                }
                let at = if times.is_some() { words.as_ptr() as usize } else { 0 };
                call(Sysno::utimensat, [file.0 as usize, 0, at, 0, 0, 0])
            }
            Change::Chdir(ref whole, place) => {
                drop(self.open_below(place, place.rest(whole), O_PATH | O_DIRECTORY)?);
                self.set_cwd(whole.bytes())
            }
        }
    }

    /// Notes the guest's working folder. `..` goes up by text: the folder is there, and what its name leads to is checked
    /// again with every call.
    fn set_cwd(&mut self, path: &[u8]) -> Result<(), Errno> {
        let mut text = [0u8; PATH];
        let mut len = 0;
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
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

/// The root itself, which has no name below it, is there.
fn exists(errno: Errno) -> Errno {
    if errno == Errno::EBUSY { Errno::EEXIST } else { errno }
}
