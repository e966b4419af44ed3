//! Changes of names and attributes of files, which the broker makes itself.

use super::files::{AT_EMPTY_PATH, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, AT_SYMLINK_NOFOLLOW, CWD, int};
use super::{Case, Change, Refusal, refuse};
use crate::broker::path::Place;
use crate::policy::Rights;
use crate::sys::{Errno, Sysno};

/// `RENAME_EXCHANGE`
pub const RENAME_EXCHANGE: usize = 2;
/// `RENAME_NOREPLACE` and that.
const RENAME_KNOWN: usize = 1 | RENAME_EXCHANGE;

impl<'a> Case<'_, 'a, '_> {
    /// Changes that the broker makes itself: between two steps of T's, another thread of the guest could put a descriptor of
    /// its own in the place of the folder or the file. What a link says is told in the same way.
    pub(super) fn changes(&mut self, call: Sysno, args: &[usize; 6]) -> Result<Option<Change<'a>>, Refusal> {
        let [a, b, c, d, e, _] = *args;
        let create = Rights::CREATE;
        Ok(Some(match call {
            Sysno::mkdir | Sysno::mkdirat => {
                let (dir, mode) = if call == Sysno::mkdir { (CWD, b) } else { (a, c) };
                let place = self.path(0, dir, create)?;
                folder(place)?;
                Change::Mkdir(place, (mode & 0o777) as u32)
            }
            Sysno::unlink | Sysno::rmdir => Change::Unlink(self.path(0, CWD, create)?, call == Sysno::rmdir),
            Sysno::unlinkat => {
                if int(c) & !AT_REMOVEDIR != 0 {
                    return Err(refuse(Errno::EINVAL, "unlinkat with flags that are not known here"));
                }
                Change::Unlink(self.path(0, a, create)?, c & AT_REMOVEDIR != 0)
            }
            Sysno::rename | Sysno::renameat | Sysno::renameat2 => {
                let dirs = if call == Sysno::rename { [CWD; 2] } else { [a, c] };
                let flags = if call == Sysno::renameat2 { int(e) } else { 0 };
                if flags & !RENAME_KNOWN != 0 {
                    return Err(refuse(Errno::EINVAL, "renameat2 with flags that are not known here"));
                }
                // A new name gives a file the rights of its root: the old root must have as many.
                let to = self.path(1, dirs[1], create)?;
                let from = self.path(0, dirs[0], create.and(to.rights))?;
                if flags & RENAME_EXCHANGE != 0 && !to.rights.has(from.rights) {
                    return Err(refuse(Errno::EACCES, "the roots do not allow the same"));
                }
                Change::Rename([from, to], flags)
            }
            Sysno::link | Sysno::linkat => {
                let dirs = if call == Sysno::link { [CWD; 2] } else { [a, c] };
                match if call == Sysno::link { 0 } else { int(e) } {
                    0 => {}
                    flags if flags & !(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH) != 0 => {
                        return Err(refuse(Errno::EINVAL, "linkat with flags that are not known here"));
                    }
                    _ => return Err(refuse(Errno::EACCES, "linkat does not follow links here")),
                }
                // As for `rename`.
                let to = self.path(1, dirs[1], create)?;
                Change::Link([self.path(0, dirs[0], create.and(to.rights))?, to])
            }
            Sysno::symlink | Sysno::symlinkat => {
                let (dir, target) = (if call == Sysno::symlink { CWD } else { b }, self.carried_path(0)?);
                if target.is_empty() {
                    return Err(refuse(Errno::ENOENT, "a link says something"));
                }
                let path = self.carried(1)?;
                Change::Symlink(target, self.place(0, dir, path, create)?)
            }
            Sysno::chmod | Sysno::fchmodat => {
                let (dir, mode) = if call == Sysno::chmod { (CWD, b) } else { (a, c) };
                Change::Chmod(self.path(0, dir, Rights::WRITE)?, (mode & 0o777) as u32)
            }
            Sysno::utimensat if b != 0 => {
                if int(d) & !AT_SYMLINK_NOFOLLOW != 0 {
                    return Err(refuse(Errno::EINVAL, "utimensat with flags that are not known here"));
                }
                let place = self.path(0, a, Rights::WRITE)?;
                let times = if c == 0 { None } else { Some(self.carried(1)?) };
                Change::Utimens(place, times, d & AT_SYMLINK_NOFOLLOW != 0)
            }
            #[cfg(target_arch = "x86_64")]
            Sysno::truncate => Change::Truncate(self.path(0, CWD, Rights::WRITE)?, b as i64),
            #[cfg(target_arch = "x86")]
            Sysno::truncate => Change::Truncate(self.path(0, CWD, Rights::WRITE)?, i64::from(b as i32)),
            #[cfg(target_arch = "x86")]
            Sysno::truncate64 => {
                let len = (b as u64 | (c as u64) << 32) as i64;
                Change::Truncate(self.path(0, CWD, Rights::WRITE)?, len)
            }
            Sysno::readlink | Sysno::readlinkat => {
                let (dir, size) = if call == Sysno::readlink { (CWD, c) } else { (a, d) };
                if size as i32 <= 0 {
                    return Err(refuse(Errno::EINVAL, "there is no room for what the link says"));
                }
                let place = self.path(0, dir, Rights::NONE)?;
                if self.is_bare(place) {
                    return Err(refuse(Errno::EINVAL, "a root is no symbolic link"));
                }
                Change::Readlink(self.path(0, dir, Rights::READ)?, int(size))
            }
            Sysno::chdir => {
                let place = self.path(0, CWD, Rights::READ)?;
                folder(place)?;
                Change::Chdir(place)
            }
            _ => return Ok(None),
        }))
    }

    /// Where the path leads that was carried as number `i`, if that may be done there.
    fn path(&mut self, i: usize, dir: usize, needs: Rights) -> Result<Place, Refusal> {
        let path = self.carried(i)?;
        self.place(i, dir, path, needs)
    }
}

/// What is to be a folder is no root that is one file: the descriptor of a folder would give what is below it.
fn folder(place: Place) -> Result<(), Refusal> {
    if place.exact { Err(refuse(Errno::ENOTDIR, "the root is one file")) } else { Ok(()) }
}
