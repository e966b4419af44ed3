//! Changes of names and attributes.

use ascetic::policy::Rights;

use super::broker::{Asked, Decided, Want};
use super::paths::Place;

const CWD: usize = libc::AT_FDCWD as isize as usize;

fn path(asked: &Asked<'_>, i: usize, dir: usize, needs: Rights) -> Decided<Place> {
    let place = asked.locate(dir, &asked.carried(i)?)?;
    Asked::granted(&place, needs)?;
    Ok(place)
}

fn change(name: &'static str, places: Vec<Place>, numbers: Vec<u64>, bytes: Option<Vec<u8>>) -> Decided<Option<Want>> {
    let places = places.into_iter().map(|place| (place.root, place.below)).collect();
    Ok(Some(Want::Change(name, places, numbers, bytes)))
}

fn int(arg: usize) -> i32 {
    arg as u32 as i32
}

/// Calls that change names and attributes, or tell what a link says.
pub fn decide(asked: &Asked<'_>) -> Decided<Option<Want>> {
    let [a, b, c, d, e, _] = asked.args;
    let (create, write) = (Rights::CREATE, Rights::WRITE);
    let at = |name: &str, at: &str| asked.is(name) || asked.is(at);
    if at("mkdir", "mkdirat") {
        let (dir, mode) = if asked.is("mkdir") { (CWD, b) } else { (a, c) };
        let place = path(asked, 0, dir, create)?;
        if place.exact {
            return Err(libc::ENOTDIR);
        }
        return change("mkdir", vec![place], vec![mode as u64 & 0o777], None);
    }
    if at("unlink", "rmdir") {
        return change("unlink", vec![path(asked, 0, CWD, create)?], vec![asked.is("rmdir").into()], None);
    }
    if asked.is("unlinkat") {
        if int(c) & !libc::AT_REMOVEDIR != 0 {
            return Err(libc::EINVAL);
        }
        return change("unlink", vec![path(asked, 0, a, create)?], vec![(int(c) != 0).into()], None);
    }
    if at("rename", "renameat") || asked.is("renameat2") {
        let [old, new] = if asked.is("rename") { [CWD; 2] } else { [a, c] };
        let flags = if asked.is("renameat2") { int(e) as u32 } else { 0 };
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 {
            return Err(libc::EINVAL);
        }
        let to = path(asked, 1, new, create)?;
        let from = path(asked, 0, old, create.and(to.rights))?;
        if flags & libc::RENAME_EXCHANGE != 0 && from.rights != to.rights {
            return Err(libc::EACCES);
        }
        return change("rename", vec![from, to], vec![flags.into()], None);
    }
    if at("link", "linkat") {
        let [old, new] = if asked.is("link") { [CWD; 2] } else { [a, c] };
        let flags = if asked.is("link") { 0 } else { int(e) };
        if flags & !(libc::AT_SYMLINK_FOLLOW | libc::AT_EMPTY_PATH) != 0 {
            return Err(libc::EINVAL);
        }
        if flags != 0 {
            return Err(libc::EACCES);
        }
        let to = path(asked, 1, new, create)?;
        let from = path(asked, 0, old, create.and(to.rights))?;
        return change("link", vec![from, to], vec![], None);
    }
    if at("symlink", "symlinkat") {
        let dir = if asked.is("symlink") { CWD } else { b };
        let target = asked.carried(0)?;
        if target.is_empty() {
            return Err(libc::ENOENT);
        }
        return change("symlink", vec![path(asked, 1, dir, create)?], vec![], Some(target));
    }
    if at("chmod", "fchmodat") {
        let (dir, mode) = if asked.is("chmod") { (CWD, b) } else { (a, c) };
        return change("chmod", vec![path(asked, 0, dir, write)?], vec![mode as u64 & 0o777], None);
    }
    if asked.is("utimensat") && b != 0 {
        if int(d) & !libc::AT_SYMLINK_NOFOLLOW != 0 {
            return Err(libc::EINVAL);
        }
        let place = path(asked, 0, a, write)?;
        let times = if c == 0 { None } else { Some(asked.carried(1)?) };
        return change("utimens", vec![place], vec![(int(d) != 0).into()], times);
    }
    if asked.is("truncate") {
        return change("truncate", vec![path(asked, 0, CWD, write)?], vec![b as u64], None);
    }
    if at("readlink", "readlinkat") {
        let (dir, size) = if asked.is("readlink") { (CWD, c) } else { (a, d) };
        if int(size) <= 0 {
            return Err(libc::EINVAL);
        }
        let place = path(asked, 0, dir, Rights::NONE)?;
        if place.rights == Rights::NONE && !place.exact && place.below == b"." {
            return Err(libc::EINVAL);
        }
        Asked::granted(&place, Rights::READ)?;
        return change("readlink", vec![place], vec![int(size) as u64], None);
    }
    if asked.is("chdir") {
        let place = path(asked, 0, CWD, Rights::READ)?;
        if place.exact {
            return Err(libc::ENOTDIR);
        }
        return change("chdir", vec![place], vec![], None);
    }
    Ok(None)
}
