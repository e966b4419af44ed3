//! Changes of names and attributes of files, which the broker makes itself.

use super::files::{AT_EMPTY_PATH, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, AT_SYMLINK_NOFOLLOW};
use super::{AT_FDCWD, Case, Change, Refusal, refuse};
use crate::policy::Rights;
use crate::sys::{Errno, Sysno};

impl<'a> Case<'_, 'a, '_, '_> {
    /// Changes that the broker makes itself: between two steps of T's, another thread of the guest could put a descriptor of
    /// its own in the place of the folder.
    pub(super) fn changes(&mut self, call: Sysno, args: &[usize; 6]) -> Result<Option<Change<'a>>, Refusal> {
        const CWD: usize = AT_FDCWD as usize;
        let [a, b, c, d, e, _] = *args;
        let create = Rights::CREATE;
        let path = |i: usize| self.carried(i);
        Ok(Some(match call {
            Sysno::mkdir | Sysno::mkdirat => {
                let (dir, mode) = if call == Sysno::mkdir { (CWD, b) } else { (a, c) };
                let (whole, place) = self.place(dir, path(0)?, create)?;
                Change::Mkdir(whole, place, (mode & 0o777) as u32)
            }
            Sysno::unlink | Sysno::rmdir | Sysno::unlinkat => {
                let dir = if call == Sysno::unlinkat { a } else { CWD };
                let (whole, place) = self.place(dir, path(0)?, create)?;
                Change::Unlink(whole, place, call == Sysno::rmdir || call == Sysno::unlinkat && c & AT_REMOVEDIR != 0)
            }
            Sysno::rename | Sysno::renameat | Sysno::renameat2 => {
                let dirs = if call == Sysno::rename { [CWD; 2] } else { [a, c] };
                let flags = if call == Sysno::renameat2 { e } else { 0 };
                if flags & !3 != 0 {
                    return Err(refuse(Errno::EINVAL, "renameat2 with more than is known here"));
                }
                let from = self.place(dirs[0], path(0)?, create)?;
                Change::Rename([from, self.place(dirs[1], path(1)?, create)?], flags)
            }
            Sysno::link | Sysno::linkat => {
                let dirs = if call == Sysno::link { [CWD; 2] } else { [a, c] };
                if call == Sysno::linkat && e & (AT_SYMLINK_FOLLOW | AT_EMPTY_PATH) != 0 {
                    return Err(refuse(Errno::EACCES, "linkat does not follow links here"));
                }
                // The new name gives the file the rights of its root: the old root must have as many.
                let to = self.place(dirs[1], path(1)?, create)?;
                let from = self.place(dirs[0], path(0)?, create.and(to.1.rights))?;
                Change::Link([from, to])
            }
            Sysno::symlink | Sysno::symlinkat => {
                let (dir, target) = (if call == Sysno::symlink { CWD } else { b }, path(0)?);
                let (whole, place) = self.place(dir, path(1)?, create)?;
                Change::Symlink(target, whole, place)
            }
            Sysno::chmod | Sysno::fchmodat => {
                let (dir, mode) = if call == Sysno::chmod { (CWD, b) } else { (a, c) };
                let (whole, place) = self.place(dir, path(0)?, Rights::WRITE)?;
                Change::Chmod(whole, place, (mode & 0o777) as u32)
            }
            Sysno::utimensat if b != 0 => {
                let (whole, place) = self.place(a, path(0)?, Rights::WRITE)?;
                let times = if c == 0 { None } else { Some(self.carried(1)?) };
                if d & !AT_SYMLINK_NOFOLLOW != 0 {
                    return Err(refuse(Errno::EINVAL, "utimensat with more than is known here"));
                }
                Change::Utimens(whole, place, times)
            }
            Sysno::chdir => {
                let (whole, place) = self.place(CWD, path(0)?, Rights::READ)?;
                Change::Chdir(whole, place)
            }
            _ => return Ok(None),
        }))
    }
}
