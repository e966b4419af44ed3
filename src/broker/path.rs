//! Paths as text: which root one is below. The kernel has the last word (`openat2` with `RESOLVE_BENEATH`).

use crate::policy::{Policy, Rights};

/// Bytes of a path with its NUL (`PATH_MAX`).
pub const PATH: usize = 4096;

/// An absolute path, without `//` and `/./`, but with its `..`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Whole {
    text: [u8; PATH],
    len: usize,
}

impl core::fmt::Debug for Whole {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(core::str::from_utf8(self.bytes()).unwrap_or("?"))
    }
}

impl Whole {
    /// The path `path`, seen from the folder `cwd`. `None` if it is too long.
    pub fn of(cwd: &[u8], path: &[u8]) -> Option<Self> {
        let mut whole = Self { text: [0; PATH], len: 0 };
        let relative = !path.starts_with(b"/");
        let parts = cwd.split(|byte| *byte == b'/').filter(|_| relative).chain(path.split(|byte| *byte == b'/'));
        for part in parts.filter(|part| !part.is_empty() && *part != b".") {
            whole.push(b"/")?;
            whole.push(part)?;
        }
        // A `/` at the end asks for a folder, and so does a last `.`.
        if whole.len == 0 || path.ends_with(b"/") || path.ends_with(b"/.") {
            whole.push(b"/")?;
        }
        Some(whole)
    }

    fn push(&mut self, bytes: &[u8]) -> Option<()> {
        let to = self.text.get_mut(self.len..self.len + bytes.len()).filter(|_| self.len + bytes.len() < PATH)?;
        to.copy_from_slice(bytes);
        self.len += bytes.len();
        Some(())
    }

    /// The text.
    pub fn bytes(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or_default()
    }
}

/// Where a path is: below which root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The root's number.
    pub root: usize,
    /// Where in the path the part below the root begins.
    pub rest: usize,
    /// What may be done there.
    pub rights: Rights,
    /// Whether the root is this one file; the part below it is the file's name then.
    pub exact: bool,
}

impl Place {
    /// The part of the path below the root; `.` for the root itself.
    pub fn rest<'p>(&self, whole: &'p Whole) -> &'p [u8] {
        match whole.bytes().get(self.rest..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => b".",
        }
    }

    /// The same, as the folder and the name in it: `None` if there is no name, or it is `.` or `..`.
    pub fn split<'p>(&self, whole: &'p Whole) -> Option<(&'p [u8], &'p [u8])> {
        let rest = self.rest(whole);
        let rest = rest.strip_suffix(b"/").unwrap_or(rest);
        let (folder, name) = match rest.iter().rposition(|byte| *byte == b'/') {
            Some(i) => (rest.get(..i)?, rest.get(i + 1..)?),
            None => (b".".as_slice(), rest),
        };
        (!matches!(name, b"" | b"." | b"..")).then_some((folder, name))
    }
}

/// The root that an absolute path is below, as far as the text tells: the one with the longest path.
pub fn locate(policy: &Policy<'_>, whole: &[u8]) -> Option<Place> {
    let mut best: Option<(usize, Place)> = None;
    for (number, root) in policy.roots() {
        let path = root.path.to_bytes();
        let base = if path == b"/" { b"".as_slice() } else { path };
        let Some(rest) = whole.strip_prefix(base).filter(|rest| rest.is_empty() || rest.starts_with(b"/")) else {
            continue;
        };
        if root.exact && !rest.is_empty() {
            continue;
        }
        let begins = if root.exact {
            path.iter().rposition(|byte| *byte == b'/').map_or(0, |i| i + 1)
        } else {
            (whole.len() - rest.len() + 1).min(whole.len())
        };
        let place = Place { root: number, rest: begins, rights: root.rights, exact: root.exact };
        if best.is_none_or(|(len, _)| path.len() > len) {
            best = Some((path.len(), place));
        }
    }
    best.map(|(_, place)| place)
}
