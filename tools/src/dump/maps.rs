//! Lines of `/proc/<pid>/maps`, as text and back.

use std::fmt;
use std::str::FromStr;

use super::MapsEntry;

impl fmt::Display for MapsEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let permissions = String::from_utf8_lossy(&self.permissions);
        write!(f, "{:08x}-{:08x} {permissions} {:08x} ", self.start, self.end, self.offset)?;
        write!(f, "{} {}", self.file.0, self.file.1)?;
        if self.name.is_empty() { Ok(()) } else { write!(f, " {}", self.name) }
    }
}

/// A line is none of `/proc/<pid>/maps`.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no line of /proc/<pid>/maps")]
pub struct NoMapsEntry(String);

impl FromStr for MapsEntry {
    type Err = NoMapsEntry;

    fn from_str(line: &str) -> Result<Self, NoMapsEntry> {
        parse(line).ok_or_else(|| NoMapsEntry(super::clean(line)))
    }
}

impl From<MapsEntry> for String {
    fn from(entry: MapsEntry) -> Self {
        entry.to_string()
    }
}

impl TryFrom<String> for MapsEntry {
    type Error = NoMapsEntry;

    fn try_from(line: String) -> Result<Self, NoMapsEntry> {
        line.parse()
    }
}

fn parse(line: &str) -> Option<MapsEntry> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let mut fields = rest.splitn(5, ' ');
    let mut field = || fields.next();
    let (permissions, offset, device, inode) = (field()?, field()?, field()?, field()?);
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    Some(MapsEntry {
        start,
        end: (end >= start).then_some(end)?,
        permissions: permissions.as_bytes().try_into().ok()?,
        offset: hex(offset)?,
        file: (device.to_owned(), inode.parse().ok()?),
        name: super::clean(field().unwrap_or_default().trim_start()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_written() {
        let line = "7f0000001000-7f0000002000 r-xp 00001000 fd:01 1234                       /lib/a b.so";
        let entry: MapsEntry = line.parse().unwrap();
        assert_eq!(
            (entry.start, entry.offset, entry.file.1, &*entry.name),
            (0x7f00_0000_1000, 0x1000, 1234, "/lib/a b.so")
        );
        assert_eq!(entry.to_string().parse::<MapsEntry>().unwrap(), entry);
        let anonymous: MapsEntry = "00400000-00401000 rw-p 00000000 00:00 0".parse().unwrap();
        assert_eq!((anonymous.name.as_str(), anonymous.to_string().parse().unwrap()), ("", anonymous.clone()));
        for bad in ["", "1000 rw-p 0 00:00 0", "2000-1000 rw-p 0 00:00 0", "1-2 rw 0 00:00 0", "1-2 rw-p 0 00:00 x"] {
            assert!(bad.parse::<MapsEntry>().is_err(), "{bad}");
        }
    }
}
