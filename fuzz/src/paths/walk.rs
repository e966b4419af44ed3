//! Where a path leads, name by name.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// The most links of a path (`MAXSYMLINKS`, `include/linux/namei.h`).
const LINKS: u32 = 40;

/// Whether a path leads out of the folder `root` that it begins at, or by a link that must not be followed: an absolute one, or, without
/// `links`, any. `last`: the link that its last name is, too.
pub fn leaves(root: &Path, path: &[u8], last: bool, links: bool) -> bool {
    let mut todo: VecDeque<Vec<u8>> = path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
    let (mut at, mut followed) = (Vec::new(), 0);
    while let Some(name) = todo.pop_front() {
        let here = at.iter().fold(root.to_owned(), |path, name: &Vec<u8>| path.join(OsStr::from_bytes(name)));
        if !here.is_dir() {
            return false; // it leads nowhere
        }
        match &name[..] {
            b"" | b"." => continue,
            b".." if at.pop().is_none() => return true,
            b".." => continue,
            _ => {}
        }
        let target = fs::read_link(here.join(OsStr::from_bytes(&name)));
        match target {
            Ok(target) if last || !todo.is_empty() => {
                let target = target.into_os_string().into_vec();
                followed += 1;
                if followed > LINKS {
                    return false; // nor does this
                }
                if !links || target.starts_with(b"/") {
                    return true;
                }
                target.split(|byte| *byte == b'/').rev().for_each(|name| todo.push_front(name.to_vec()));
            }
            _ => at.push(name),
        }
    }
    false
}
