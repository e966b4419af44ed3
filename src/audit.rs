//! The entry audit: is there anything in this process that would let a guest out?
//!
//! Runs in the process that becomes the sandbox, before any guest code. It reads `/proc/self/fd` and
//! `/proc/self/maps`; without `/proc` there is no audit, and without an audit no sandbox.

use crate::error::Finding;
use crate::sys::{self, Errno, Failed, Sysno};
use core::ffi::CStr;

/// What the audit stumbled over.
#[derive(Debug)]
pub enum Refusal {
    /// Something that must not be there.
    Found {
        /// What kind of thing.
        finding: Finding,
        /// Its descriptor; -1 for a mapping.
        fd: i32,
        /// What the kernel calls it.
        name: [u8; crate::abi::NAME_MAX],
        /// Bytes of `name`.
        len: usize,
    },
    /// `/proc` could not be read.
    Proc(Failed),
}

fn found(finding: Finding, fd: i32, what: &[u8]) -> Refusal {
    let mut name = [0; crate::abi::NAME_MAX];
    let len = what.len().min(name.len());
    name.iter_mut().zip(what).for_each(|(to, from)| *to = *from);
    Refusal::Found { finding, fd, name, len }
}

impl From<Failed> for Refusal {
    fn from(failed: Failed) -> Self {
        Self::Proc(failed)
    }
}

/// Counts the threads of this process.
pub fn threads() -> Result<u32, Failed> {
    let mut count = 0;
    each_entry(c"/proc/self/task", |_, _| {
        count += 1;
        Ok(())
    })
    .map_err(|refusal| match refusal {
        Refusal::Proc(failed) => failed,
        Refusal::Found { .. } => Failed(Sysno::getdents64, Errno::EINVAL),
    })?;
    Ok(count)
}

/// Refuses descriptors that defeat the sandbox: any, if the kind does so just by being there; those for which `kept`
/// says yes, if the guest must not hold them.
pub fn descriptors(kept: impl Fn(i32) -> bool) -> Result<(), Refusal> {
    each_entry(c"/proc/self/fd", |dir, name| {
        let Some(fd) = number(name.to_bytes()) else { return Ok(()) };
        let mut target = [0u8; 256];
        let len = match sys::readlinkat(dir, name, &mut target) {
            Ok(len) => len,
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(Failed(Sysno::readlinkat, errno).into()),
        };
        let target = target.get(..len).unwrap_or_default();
        match classify(target) {
            Some(finding @ (Finding::IoUring | Finding::Userfaultfd)) => return Err(found(finding, fd, target)),
            Some(finding) if kept(fd) => return Err(found(finding, fd, target)),
            _ => {}
        }
        if kept(fd) && target.starts_with(b"/") {
            if sys::is_on_proc(fd).map_err(Failed::of(Sysno::fstatfs))? {
                return Err(found(Finding::ProcessMemory, fd, target));
            }
            let facts = sys::file_facts(fd).map_err(Failed::of(Sysno::statx))?;
            if !harmless_file(facts.kind, facts.device) {
                return Err(found(Finding::Unknown, fd, target));
            }
        }
        if kept(fd) && target.starts_with(b"socket:[") {
            let family = sys::socket_family(fd).map_err(Failed::of(Sysno::getsockopt))?;
            if !harmless_family(family) {
                return Err(found(Finding::Unknown, fd, target));
            }
        }
        Ok(())
    })
}

/// Whether a file may be kept by what it is: devices only if they are known to do no more than their name says
/// (`Documentation/admin-guide/devices.txt`): null, zero, full, random, urandom, and terminals.
fn harmless_file(kind: u32, device: (u32, u32)) -> bool {
    match kind {
        sys::S_IFBLK => false,
        sys::S_IFCHR => matches!(device, (1, 3 | 5 | 7 | 8 | 9) | (4 | 5 | 136..=143, _)),
        _ => true,
    }
}

/// Whether a socket may be kept by its family: `AF_UNIX`, `AF_INET`, `AF_INET6`. Others have the kernel at their other end
/// (netlink), a hypervisor (vsock), or the wire (packet).
fn harmless_family(family: u32) -> bool {
    matches!(family, 1 | 2 | 10)
}

/// What is wrong with a descriptor whose link in `/proc/self/fd` reads `target`; `None` if its name tells nothing.
fn classify(target: &[u8]) -> Option<Finding> {
    let anonymous = |kind: &[u8]| target.strip_prefix(b"anon_inode:").is_some_and(|rest| rest == kind);
    if anonymous(b"[io_uring]") {
        return Some(Finding::IoUring);
    }
    if anonymous(b"[userfaultfd]") || target == b"/dev/userfaultfd" {
        return Some(Finding::Userfaultfd);
    }
    let known: [&[u8]; 4] = [b"[eventfd]", b"[timerfd]", b"[eventpoll]", b"inotify"];
    let harmless = target.starts_with(b"/")
        || target.starts_with(b"pipe:[")
        || target.starts_with(b"socket:[")
        || known.iter().any(|kind| anonymous(kind));
    (!harmless).then_some(Finding::Unknown)
}

/// Refuses mappings that defeat the sandbox: rings of an io_uring; writable aliases of the vault, which is the file with
/// this identity (device major and minor, inode); and any other memory that the guest could write, or make writable, and
/// somebody outside would see, but for the ranges (from, to) for which `shared` says yes.
pub fn mappings(vault: (u32, u32, u64), shared: impl Fn(usize, usize) -> bool) -> Result<(), Refusal> {
    let fd = sys::open(c"/proc/self/maps").map_err(Failed::of(Sysno::openat))?;
    let mut buf = [0u8; 4096];
    let mut have = 0;
    let result = loop {
        let room = buf.get_mut(have..).unwrap_or_default();
        if room.is_empty() {
            break Err(Failed(Sysno::read, Errno::ENAMETOOLONG).into());
        }
        match sys::read(fd, room) {
            Ok(0) => break Ok(()),
            Ok(read) => have += read,
            Err(errno) => break Err(Failed(Sysno::read, errno).into()),
        }
        let whole = buf.get(..have).and_then(|text| text.iter().rposition(|b| *b == b'\n')).map_or(0, |at| at + 1);
        let lines = buf.get(..whole).unwrap_or_default();
        if let Some(refusal) =
            lines.split(|b| *b == b'\n').find_map(|line| mapping(line, vault, &shared, &can_be_writable))
        {
            break Err(refusal);
        }
        buf.copy_within(whole..have, 0);
        have -= whole;
    };
    sys::close(fd);
    result
}

/// Whether a mapping can be made writable: one of a file that was opened for writing can, whatever its access now. The way to
/// know is to do it; if it is done, there will be no sandbox, and this process ends.
fn can_be_writable(from: usize, to: usize) -> bool {
    let Some(len) = to.checked_sub(from) else { return true };
    // SAFETY: adds an access that nobody uses.
    let done = unsafe { sys::mprotect(from, len, sys::PROT_READ | sys::PROT_WRITE) };
    !matches!(done, Err(Errno::EACCES | Errno::EPERM)) // EPERM: it is sealed (`mseal(2)`)
}

/// What is wrong with one line of `/proc/self/maps` (`proc_pid_maps(5)`).
fn mapping(
    line: &[u8],
    vault: (u32, u32, u64),
    shared: &impl Fn(usize, usize) -> bool,
    can_be_writable: &impl Fn(usize, usize) -> bool,
) -> Option<Refusal> {
    if line.windows(21).any(|w| w == b"anon_inode:[io_uring]") {
        return Some(found(Finding::IoUring, -1, line));
    }
    let mut fields = line.split(|b| *b == b' ').filter(|field| !field.is_empty());
    let mut range = fields.next()?.split(|b| *b == b'-');
    let (from, to) = (hex(range.next()?)? as usize, hex(range.next()?)? as usize);
    let access = fields.next()?;
    let device = fields.nth(1)?;
    let inode = fields.next()?;
    let (major, minor) = device.split_at(device.iter().position(|b| *b == b':')?);
    let is_vault = (hex(major)?, hex(minor.get(1..)?)?, number::<u64>(inode)?)
        == (u64::from(vault.0), u64::from(vault.1), vault.2);
    let (writable, is_shared) = (access.get(1) == Some(&b'w'), access.get(3) == Some(&b's'));
    if is_vault && (writable || is_shared && can_be_writable(from, to)) {
        return Some(found(Finding::WritableAlias, -1, line));
    }
    let listed = || shared(from, to);
    (is_shared && !is_vault && !listed() && (writable || can_be_writable(from, to)))
        .then(|| found(Finding::SharedMemory, -1, line))
}

fn hex(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
}

fn number<N: core::str::FromStr>(digits: &[u8]) -> Option<N> {
    core::str::from_utf8(digits).ok()?.parse().ok()
}

/// Calls `f` with the open folder and the name of each entry but `.` and `..`.
fn each_entry(path: &CStr, mut f: impl FnMut(i32, &CStr) -> Result<(), Refusal>) -> Result<(), Refusal> {
    const NAME: usize = 19; // of struct linux_dirent64: ino, off (8 bytes each), reclen (2), type (1)
    let dir = sys::open(path).map_err(Failed::of(Sysno::openat))?;
    let mut buf = [0u8; 2048];
    let result = 'read: loop {
        let len = match sys::getdents(dir, &mut buf) {
            Ok(0) => break Ok(()),
            Ok(len) => len,
            Err(errno) => break Err(Failed(Sysno::getdents64, errno).into()),
        };
        let mut rest = buf.get(..len).unwrap_or_default();
        while let Some(&[lo, hi]) = rest.get(16..18) {
            let (entry, next) = rest.split_at(usize::from(u16::from_ne_bytes([lo, hi])).clamp(NAME, rest.len()));
            rest = next;
            let Ok(name) = CStr::from_bytes_until_nul(entry.get(NAME..).unwrap_or_default()) else { continue };
            if name.to_bytes().starts_with(b".") {
                continue;
            }
            if let Err(refusal) = f(dir, name) {
                break 'read Err(refusal);
            }
        }
    };
    sys::close(dir);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_by_kind() {
        let harmless: [&[u8]; 5] =
            [b"/tmp/x", b"pipe:[1]", b"socket:[2]", b"anon_inode:[eventfd]", b"anon_inode:inotify"];
        harmless.iter().for_each(|target| assert_eq!(classify(target), None));
        assert_eq!(classify(b"anon_inode:[io_uring]"), Some(Finding::IoUring));
        assert_eq!(classify(b"anon_inode:[userfaultfd]"), Some(Finding::Userfaultfd));
        let unknown: [&[u8]; 4] = [b"anon_inode:[pidfd]", b"pidfd:[7]", b"anon_inode:bpf-prog", b"anon_inode:kvm-vm"];
        unknown.iter().for_each(|target| assert_eq!(classify(target), Some(Finding::Unknown)));
        assert!(harmless_file(0o100_000, (0, 0)) && harmless_file(sys::S_IFCHR, (1, 3)));
        assert!(harmless_family(1) && harmless_family(10) && !harmless_family(16) && !harmless_family(17));
        assert!(!harmless_file(sys::S_IFCHR, (1, 1)) && !harmless_file(sys::S_IFBLK, (8, 0)));
    }

    #[test]
    fn mappings_by_line() {
        let vault = (0, 1, 77);
        let check_with = |line: &str, can| match mapping(
            line.as_bytes(),
            vault,
            &|from, to| (from, to) == (0x5000, 0x6000),
            &|_, _| can,
        ) {
            Some(Refusal::Found { finding, .. }) => Some(finding),
            _ => None,
        };
        let check = |line: &str| check_with(line, false);
        let vault_at = |access: &str| format!("7f00-7f10 {access} 00000000 00:01 77   /memfd:ascetic-vault (deleted)");
        assert_eq!(check(&vault_at("r--s")), None);
        assert_eq!(check(&vault_at("rw-s")), Some(Finding::WritableAlias));
        assert_eq!(check("7f00-7f10 rw-s 00000000 00:01 78   /memfd:other"), Some(Finding::SharedMemory));
        assert_eq!(check("5000-6000 rw-s 00000000 00:01 78   /memfd:other"), None);
        for access in ["r--s", "---s", "r-xs"] {
            let line = format!("7f00-7f10 {access} 00000000 00:01 78   /memfd:other");
            assert_eq!(check(&line), None);
            assert_eq!(check_with(&line, true), Some(Finding::SharedMemory));
            assert_eq!(check_with(&line.replace("7f00-7f10", "5000-6000"), true), None);
            assert_eq!(check_with(&vault_at(access), true), Some(Finding::WritableAlias));
        }
        assert_eq!(check_with("7f00-7f10 r--p 00000000 00:01 78   /etc/file", true), None);
        assert_eq!(check("7f00-7f10 rw-s 00000000 00:0e 9   anon_inode:[io_uring]"), Some(Finding::IoUring));
        assert_eq!(check("7f00-7f10 rw-p 00000000 00:00 0"), None);
    }
}
