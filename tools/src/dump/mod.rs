//! Crash dumps: what is known of a crash, from whichever way it came, and what it is written as.
//!
//! A [`Dump`] is what all ways lead to and all formats are made of.

mod clean;
pub mod collect;
pub mod core;
pub mod deadline;
pub mod elf;
pub mod facts;
mod fetch;
pub mod json;
pub mod kernel;
pub mod live;
mod maps;
pub mod minidump;
mod model;
mod names;
mod notes;
mod reading;
pub mod receive;
pub mod record;
pub mod report;
mod rewrite;
#[cfg(test)]
mod samples;
pub mod symbols;

use clean::clean;
pub use deadline::{Deadline, Exceeded};
pub use facts::Facts;
pub use maps::NoMapsEntry;
use names::{arch_name, call_name, signal_name};

pub use model::{
    Arch, Call, Dump, Exception, MapsEntry, Memory, Module, Origin, Refusal, Registers, Role, Thread, Way, Words,
};

/// Bytes that JSON and text show of what a register points to.
const POINTED: usize = 16;

/// Opens a file to read, and waits for nobody if it is something else, such as a pipe.
///
/// # Errors
/// It cannot be opened, or is no regular file.
pub fn open(path: &std::path::Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file"))
}

/// What could not be written.
#[derive(Debug, thiserror::Error)]
pub enum NotWritten {
    /// A file.
    #[error("{}: {error}", path.display())]
    File {
        /// Its path.
        path: std::path::PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A minidump to a stream.
    #[error("minidump: {0}")]
    Stream(std::io::Error),
    /// The core.
    #[error(transparent)]
    Core(#[from] elf::NotWritten),
}

/// Writes a dump in all formats: `<stem>.dmp`, `.core`, `.json` and `.txt` in a folder.
///
/// # Errors
/// One cannot be written; those before it are.
pub fn write_all(
    dump: &Dump,
    folder: &std::path::Path,
    stem: &str,
    symbols: &symbols::Symbols,
) -> Result<(), NotWritten> {
    let json = format!("{:#}\n", json::report(dump)).into_bytes();
    let text = report::write(dump, symbols).into_bytes();
    for (end, bytes) in [("dmp", minidump::write(dump)), ("core", elf::write(dump)?), ("json", json), ("txt", text)] {
        let path = folder.join(format!("{stem}.{end}"));
        std::fs::write(&path, bytes).map_err(|error| NotWritten::File { path, error })?;
    }
    Ok(())
}
