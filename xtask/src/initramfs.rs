//! Builds the archive of files that a kernel starts with.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cpio::newc::{self, Builder, ModeFileType};

/// One file of the archive.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where it is in the guest, relative to the root: `init`, `tests/fault`.
    pub path: String,
    /// The file on this machine with its content.
    pub source: PathBuf,
    /// Permission bits, such as `0o755`.
    pub mode: u32,
}

/// Writes an archive of `entries` to `out`, with the directories they are in, an empty `/dev` and `/dev/console`
/// (without which PID 1 starts with no descriptors). It is not compressed: unpacking costs a slow guest more than
/// reading does.
///
/// # Errors
/// A file cannot be read, or the archive cannot be written.
pub fn build(entries: &[Entry], out: &Path) -> Result<()> {
    let mut archive = Vec::new();
    let mut directories = BTreeSet::from(["dev", "proc", "sys", "tmp"].map(PathBuf::from));
    for entry in entries {
        let parents = Path::new(&entry.path).ancestors().skip(1);
        directories.extend(parents.map(Path::to_owned));
    }
    // Sorted, so a directory comes before what is in it.
    for dir in directories {
        if !dir.as_os_str().is_empty() {
            let header = Builder::new(&dir.to_string_lossy()).mode(0o755).set_mode_file_type(ModeFileType::Directory);
            append(&mut archive, header, &[])?;
        }
    }
    let console =
        Builder::new("dev/console").mode(0o600).set_mode_file_type(ModeFileType::Char).rdev_major(5).rdev_minor(1);
    append(&mut archive, console, &[])?;
    for entry in entries {
        let content = fs::read(&entry.source).with_context(|| format!("cannot read {}", entry.source.display()))?;
        let header = Builder::new(&entry.path).mode(entry.mode).set_mode_file_type(ModeFileType::Regular);
        append(&mut archive, header, &content)?;
    }
    newc::trailer(&mut archive)?;
    fs::write(out, archive).with_context(|| format!("cannot write {}", out.display()))
}

fn append(archive: &mut Vec<u8>, header: Builder, content: &[u8]) -> Result<()> {
    let size = u32::try_from(content.len()).context("a file of 4 GiB or more")?;
    let mut writer = header.write(archive, size);
    writer.write_all(content)?;
    writer.finish().map(drop).map_err(io::Error::into)
}
