//! Paths as text: which root one is below. The kernel has the last word (`openat2` with `RESOLVE_BENEATH`).

use crate::policy::{Policy, Rights};
use core::ffi::CStr;

/// Bytes of a path with its NUL (`PATH_MAX`).
pub const PATH: usize = 4096;

/// An absolute path, without `//` and `/./`, but with its `..` and what its last name asks for: a `/`, or `/.`, at its end.
/// All zeros is an empty one. It is filled in where it is: moving it would cost more than deciding on it.
pub struct Whole {
    /// Ends in NUL.
    text: [u8; PATH],
    len: usize,
}

impl core::fmt::Debug for Whole {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(core::str::from_utf8(self.bytes()).unwrap_or("?"))
    }
}

impl Whole {
    /// An empty path.
    pub const EMPTY: Self = Self { text: [0; PATH], len: 0 };

    /// Becomes the path `path`, seen from the folder `cwd`. `None` if it is too long.
    pub fn set(&mut self, cwd: &[u8], path: &[u8]) -> Option<()> {
        self.len = 0;
        let cwd = if path.starts_with(b"/") { b"" } else { cwd };
        let parts = cwd.split(|byte| *byte == b'/').chain(path.split(|byte| *byte == b'/'));
        for part in parts.filter(|part| !part.is_empty() && *part != b".") {
            self.push(b"/")?;
            self.push(part)?;
        }
        let mut lasts = path.rsplit(|byte| *byte == b'/').skip_while(|part| part.is_empty());
        let dot = lasts.next() == Some(b".");
        if self.len == 0 || dot || path.ends_with(b"/") || path.is_empty() {
            self.push(if dot { b"/." } else { b"/" })?;
        }
        *self.text.get_mut(self.len)? = 0;
        Some(())
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

    /// The part below the root, as C has it; `.` for the root itself.
    pub fn below(&self, place: Place) -> &CStr {
        match self.text.get(place.rest..).and_then(|rest| CStr::from_bytes_until_nul(rest).ok()) {
            Some(rest) if !rest.is_empty() => rest,
            _ => c".",
        }
    }

    /// Cuts the part below the root in two: the folder, and the name in it with what follows it (`/`, at its end). `None` if it
    /// is the root itself.
    pub fn split(&mut self, place: Place) -> Option<(&CStr, &CStr)> {
        let rest = self.text.get_mut(place.rest..=self.len)?;
        let last = rest.iter().rposition(|byte| !matches!(byte, b'/' | 0))?;
        let slash = rest.get(..last)?.iter().rposition(|byte| *byte == b'/');
        let folder = match slash {
            Some(slash) => {
                *rest.get_mut(slash)? = 0;
                CStr::from_bytes_until_nul(rest).ok()?
            }
            None => c".",
        };
        let name = rest.get(slash.map_or(0, |slash| slash + 1)..)?;
        Some((folder, CStr::from_bytes_until_nul(name).ok()?))
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
        whole.below(*self).to_bytes()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(cwd: &str, path: &str) -> Box<Whole> {
        let mut whole = Box::new(Whole::EMPTY);
        whole.text.fill(b'x'); // what was there before
        whole.set(cwd.as_bytes(), path.as_bytes()).unwrap();
        whole
    }

    #[test]
    fn paths_become_absolute_and_plain() {
        for (cwd, path, expected) in [
            ("/w", "a", "/w/a"),
            ("/w", "/a//b/./c", "/a/b/c"),
            ("/", "a", "/a"),
            ("/w", "../a/", "/w/../a/"),
            ("/w", "a/.", "/w/a/."),
            ("/w", ".", "/w/."),
            ("/w", "a//", "/w/a/"),
            ("/w", "a/.//", "/w/a/."),
            ("/w", "./", "/w/."),
            ("/w", "", "/w/"),
            ("/w", "/", "/"),
            ("/w", "//.", "/."),
            ("/w", "a/..", "/w/a/.."),
        ] {
            assert_eq!(whole(cwd, path).bytes(), expected.as_bytes(), "{cwd} {path}");
        }
        let long = "a".repeat(PATH);
        let mut whole = Box::new(Whole::EMPTY);
        assert!(whole.set(b"/", long.as_bytes()).is_none());
        assert!(whole.set(b"/", &long.as_bytes()[2..]).is_some());
    }

    #[test]
    fn what_is_below_a_root_is_a_folder_and_a_name() {
        let policy = Policy::new().root(c"/r", Rights::READ).file(c"/f/x", Rights::READ);
        for (path, below, split) in [
            ("/r", c".", None),
            ("/r/", c".", None),
            ("/r/.", c".", Some((c".", c"."))),
            ("/r/a", c"a", Some((c".", c"a"))),
            ("/r/a/b//", c"a/b/", Some((c"a", c"b/"))),
            ("/r/a/b/..", c"a/b/..", Some((c"a/b", c".."))),
            ("/r/a/.", c"a/.", Some((c"a", c"."))),
            ("/f/x", c"x", Some((c".", c"x"))),
        ] {
            let mut whole = whole("/", path);
            let place = locate(&policy, whole.bytes()).unwrap();
            assert_eq!(whole.below(place), below, "{path}");
            assert_eq!(whole.split(place), split, "{path}");
        }
        for path in ["/", "/rr", "/f", "/f/x/", "/f/x/y", "/f/y"] {
            assert!(locate(&policy, whole("/", path).bytes()).is_none(), "{path}");
        }
    }
}
