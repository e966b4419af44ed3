//! What a policy cannot have, and why.

use super::{Family, Policy, Rights, Root};
use crate::sys::Sysno;
use core::ffi::CStr;

/// A call that may not be direct: the embedder's mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotDirect {
    /// The call.
    pub call: Sysno,
    /// Why not.
    pub why: &'static str,
}

impl NotDirect {
    pub(super) const fn parts(&self) -> Parts<'static> {
        [b"`", self.call.name().as_bytes(), b"` may not be a direct call: ", self.why.as_bytes(), b""]
    }
}

impl core::fmt::Display for NotDirect {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write_parts(f, &self.parts())
    }
}

impl core::error::Error for NotDirect {}

/// A root that a policy cannot have: the embedder's mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRoot<'a> {
    /// The path does not begin with `/`.
    NotAbsolute,
    /// The path has `.`, `..` or an empty part.
    NotPlain,
    /// `/` is no file.
    NotAFile,
    /// There are [`ROOTS`](super::ROOTS) already.
    TooMany,
    /// Two roots, one inside the other or both the same, that no check could keep apart. What is below the outer one can be
    /// reached by its rights in many ways (`..`, links, descriptors of folders, new names), so the inner one must allow all
    /// that the outer one does. And where names can be created, any file below the outer one can get a name in the inner
    /// one, which then must not allow more either.
    Nested {
        /// The outer root.
        outer: &'a CStr,
        /// The root inside it.
        inner: &'a CStr,
    },
    /// The address of a socket is below the root.
    Redirects(Redirect<'a>),
}

/// A family that a policy cannot have: the embedder's mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadFamily<'a> {
    /// There are [`FAMILIES`](super::FAMILIES) already.
    TooMany,
    /// The family is there already.
    Twice,
    /// An address of no bytes would allow all.
    NoBytes,
    /// An address is below a root.
    Redirected(Redirect<'a>),
}

/// The address of an `AF_UNIX` socket that the guest may talk to, and a root where it may create names: a symbolic link or
/// another file, put where the socket is, would let it talk to any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirect<'a> {
    /// The root.
    pub root: &'a CStr,
    /// The path in the address, as far as the policy says it.
    pub address: &'a [u8],
}

/// A message, in parts: in a `const` nothing can be formatted.
pub(super) type Parts<'a> = [&'a [u8]; 5];

impl<'a> BadRoot<'a> {
    pub(super) const fn parts(&self) -> Parts<'a> {
        match self {
            Self::NotAbsolute => just("the path of a root must begin with /"),
            Self::NotPlain => just("the path of a root must not have `.`, `..`, `//` or a `/` at its end"),
            Self::NotAFile => just("the root folder is no file"),
            Self::TooMany => just("a policy has 16 roots at most"),
            Self::Nested { outer, inner } => [
                b"the root `",
                inner.to_bytes(),
                b"` is in the root `",
                outer.to_bytes(),
                b"`: it must allow what that does, and no more if that lets names be created",
            ],
            Self::Redirects(redirect) => redirect.parts(),
        }
    }
}

impl<'a> BadFamily<'a> {
    pub(super) const fn parts(&self) -> Parts<'a> {
        match self {
            Self::TooMany => just("a policy has 4 address families at most"),
            Self::Twice => just("the address family is there twice"),
            Self::NoBytes => just("an address of no bytes would allow all"),
            Self::Redirected(redirect) => redirect.parts(),
        }
    }
}

impl<'a> Redirect<'a> {
    pub(super) const fn parts(&self) -> Parts<'a> {
        [
            b"the socket address `",
            self.address,
            b"` is in the root `",
            self.root.to_bytes(),
            b"`, which lets names be created: the guest could have it lead to any socket",
        ]
    }
}

const fn just(text: &str) -> Parts<'_> {
    [text.as_bytes(), b"", b"", b"", b""]
}

fn write_parts(f: &mut core::fmt::Formatter<'_>, parts: &[&[u8]]) -> core::fmt::Result {
    // The path of a root may be anything.
    parts.iter().try_for_each(|part| match core::str::from_utf8(part) {
        Ok(text) if !text.contains(char::is_control) => f.write_str(text),
        _ => write!(f, "{}", part.escape_ascii()),
    })
}

impl core::fmt::Display for BadRoot<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write_parts(f, &self.parts())
    }
}

impl core::fmt::Display for BadFamily<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write_parts(f, &self.parts())
    }
}

impl core::fmt::Display for Redirect<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write_parts(f, &self.parts())
    }
}

impl core::error::Error for BadRoot<'_> {}

impl core::error::Error for BadFamily<'_> {}

pub(super) const fn unwrap_root<'a>(built: Result<Policy<'a>, BadRoot<'a>>) -> Policy<'a> {
    match built {
        Ok(policy) => policy,
        Err(error) => refuse_to_build(&error.parts()),
    }
}

/// What is wrong with `inner` if it is inside `outer`, as [`BadRoot::Nested`] says.
pub(super) const fn nested<'a>(inner: &Root<'a>, outer: &Root<'a>) -> Option<BadRoot<'a>> {
    if !is_in(inner.path.to_bytes(), outer) {
        return None;
    }
    let less = !inner.rights.has(outer.rights);
    let more = !outer.rights.has(inner.rights);
    if less || more && outer.rights.has(Rights::CREATE) {
        return Some(BadRoot::Nested { outer: outer.path, inner: inner.path });
    }
    None
}

/// Whether a path is a root, or below it.
const fn is_in(path: &[u8], root: &Root<'_>) -> bool {
    let base = root.path.to_bytes();
    let base = if base.len() == 1 { b"" } else { base };
    begins(path, base) && (path.len() == base.len() || !root.exact && path[base.len()] == b'/')
}

const fn begins(text: &[u8], with: &[u8]) -> bool {
    let mut i = 0;
    while i < with.len() {
        if i >= text.len() || text[i] != with[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// An address of the family that the guest could have lead elsewhere, because it may create names in the root.
pub(super) const fn redirects<'a>(root: &Root<'a>, family: &Family<'a>) -> Option<Redirect<'a>> {
    const AF_UNIX: u16 = 1;
    if family.family != AF_UNIX || !root.rights.has(Rights::CREATE) {
        return None;
    }
    let mut i = 0;
    while i < family.addresses.len() {
        let (path, whole) = unix_path(family.addresses[i]);
        // One that says nothing, or `/`, allows every path anyway.
        let all = path.is_empty() || path.len() == 1 && path[0] == b'/';
        // A path that ends with its zero is that path; one that does not may go on with what is below the root. Where one
        // that is not plain leads, the text does not tell.
        let below = is_in(path, root) || !whole && begins(root.path.to_bytes(), path);
        if !all && (below || check_path(path).is_err()) {
            return Some(Redirect { root: root.path, address: path });
        }
        i += 1;
    }
    None
}

/// The path in a `struct sockaddr_un`, and whether its end is there; no path if it is an abstract name.
const fn unix_path(address: &[u8]) -> (&[u8], bool) {
    if address.len() <= 2 {
        return (b"", false);
    }
    let path = address.split_at(2).1;
    let mut len = 0;
    while len < path.len() && path[len] != 0 {
        len += 1;
    }
    (path.split_at(len).0, len < path.len())
}

pub(super) const fn check_path(path: &[u8]) -> Result<(), BadRoot<'static>> {
    if path.is_empty() || path[0] != b'/' {
        return Err(BadRoot::NotAbsolute);
    }
    let mut i = 1;
    let mut dots = 0; // of a part that so far has nothing but dots
    let mut len = 0;
    while path.len() > 1 && i <= path.len() {
        if i == path.len() || path[i] == b'/' {
            if len == 0 || (len == dots && dots <= 2) {
                return Err(BadRoot::NotPlain);
            }
            (dots, len) = (0, 0);
        } else {
            len += 1;
            if path[i] == b'.' && dots + 1 == len {
                dots += 1;
            }
        }
        i += 1;
    }
    Ok(())
}

/// Says what is wrong: the message of the compiler's error, which cannot format.
pub(super) const fn refuse_to_build(parts: &Parts<'_>) -> ! {
    let mut text = [0u8; 512];
    let mut len = 0;
    let mut p = 0;
    while p < parts.len() {
        let mut i = 0;
        while i < parts[p].len() && len < text.len() {
            text[len] = parts[p][i];
            len += 1;
            i += 1;
        }
        p += 1;
    }
    match core::str::from_utf8(text.split_at(len).0) {
        Ok(text) => panic!("{}", text),
        Err(_) => panic!("a policy cannot have this"),
    }
}
