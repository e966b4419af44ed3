//! Paths as lists of names.

use ascetic::policy::Rights;

use super::{Model, Root};

/// The names in a path, empty ones and `.` left out.
fn names(path: &[u8]) -> Vec<&[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").collect()
}

/// What a path asks for at its end: `.`, with or without `/` behind it, nothing but `/`, or nothing.
fn end(path: &[u8]) -> Option<&[u8]> {
    let all: Vec<_> = path.split(|byte| *byte == b'/').collect();
    match all.iter().rev().find(|name| !name.is_empty()) {
        Some(&b".") => Some(b"."),
        _ => all.last().is_none_or(|last| last.is_empty()).then_some(b""),
    }
}

/// Absolute, and nothing but names.
fn is_plain(path: &[u8]) -> bool {
    if path == b"/" {
        return true;
    }
    let Some(rest) = path.strip_prefix(b"/") else { return false };
    rest.split(|byte| *byte == b'/').all(|name| !name.is_empty() && name != b"." && name != b"..")
}

/// Whether a path is a root or, as text, in it.
fn is_in(path: &[u8], root: &Root) -> bool {
    if root.path == b"/" {
        return path.is_empty() || path[0] == b'/';
    }
    path == root.path || !root.exact && path.starts_with(&[&root.path[..], b"/"].concat())
}

/// Whether a policy can have a root, too.
pub fn root_fits(model: &Model, root: &Root) -> bool {
    let bad = |inner: &Root, outer: &Root| {
        let less = !inner.rights.has(outer.rights);
        let more = !outer.rights.has(inner.rights);
        is_in(&inner.path, outer) && (less || more && outer.rights.has(Rights::CREATE))
    };
    is_plain(&root.path)
        && !(root.exact && root.path == b"/")
        && model.roots.len() < 16
        && !model.roots.iter().any(|other| bad(root, other) || bad(other, root))
        && !model.families.iter().any(|(family, addresses)| redirects(root, *family, addresses))
}

/// Whether an address of a family is where the guest may put what it likes.
pub fn redirects(root: &Root, family: u16, addresses: &[Vec<u8>]) -> bool {
    let one = |address: &Vec<u8>| {
        let Some(path) = address.get(2..) else { return false };
        let end = path.iter().position(|byte| *byte == 0);
        let path = &path[..end.unwrap_or(path.len())];
        // An abstract name, or all that there are.
        if path.is_empty() || path == b"/" {
            return false;
        }
        is_in(path, root) || end.is_none() && root.path.starts_with(path) || !is_plain(path)
    };
    family == 1 && root.rights.has(Rights::CREATE) && addresses.iter().any(one)
}

/// Where a path leads.
pub struct Place {
    /// The root's number.
    pub root: usize,
    /// What may be done there.
    pub rights: Rights,
    /// Whether the root is one file.
    pub exact: bool,
    /// The path below the root, `.` for the root itself.
    pub below: Vec<u8>,
}

/// Whether the absolute form of a path fits in `PATH_MAX` bytes with its NUL.
pub fn fits(cwd: &[u8], path: &[u8]) -> bool {
    let from = if path.starts_with(b"/") { b"" } else { cwd };
    let all: Vec<_> = names(from).into_iter().chain(names(path)).collect();
    let mut len: usize = all.iter().map(|name| 1 + name.len()).sum();
    let end = end(path);
    if all.is_empty() || end.is_some() {
        len += 1 + end.unwrap_or_default().len();
    }
    len < 4096
}

/// The root that a path is below, seen from the working folder: the one of the longest path.
pub fn locate(roots: &[Root], cwd: &[u8], path: &[u8]) -> Option<Place> {
    let from = if path.starts_with(b"/") { b"" } else { cwd };
    let all: Vec<_> = names(from).into_iter().chain(names(path)).collect();
    let folder = end(path);
    let mut best: Option<(usize, Place)> = None;
    for (number, root) in roots.iter().enumerate() {
        let base = names(&root.path);
        if !all.starts_with(&base) || root.exact && (all.len() > base.len() || folder.is_some()) {
            continue;
        }
        let mut below = all[base.len()..].join(&b'/');
        if root.exact {
            below = base.last().map(|name| name.to_vec()).unwrap_or_default();
        } else if let Some(last) = folder {
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend(last);
        }
        if below.is_empty() {
            below = b".".to_vec();
        }
        if best.as_ref().is_none_or(|(len, _)| root.path.len() > *len) {
            let place = Place { root: number, rights: root.rights, exact: root.exact, below };
            best = Some((root.path.len(), place));
        }
    }
    best.map(|(_, place)| place)
}
