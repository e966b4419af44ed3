//! Symbols of a built program: its sections and labels, and the source behind an address.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use object::{Object, ObjectSection, ObjectSymbol};

use crate::root;

/// A program's bytes and labels.
pub struct Program {
    bytes: Vec<u8>,
}

impl Program {
    /// Reads a program.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self { bytes: fs::read(path).with_context(|| path.display().to_string())? })
    }

    fn object(&self) -> Result<object::File<'_>> {
        Ok(object::File::parse(&*self.bytes)?)
    }

    /// Address and bytes of a section.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn section(&self, name: &str) -> Result<(u64, Vec<u8>)> {
        let object = self.object()?;
        let section = object.section_by_name(name).ok_or_else(|| anyhow!("no section {name}"))?;
        Ok((section.address(), section.data()?.to_vec()))
    }

    /// The word of `size` bytes that the program holds at an address; `None` if it holds none there.
    ///
    /// # Errors
    /// The program is not an object file.
    pub fn word(&self, address: u64, size: usize) -> Result<Option<u64>> {
        let object = self.object()?;
        let bytes = object.sections().find_map(|section| section.data_range(address, size as u64).ok()?);
        Ok(bytes.map(|bytes| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))))
    }

    /// All symbols that have a name: value and size.
    ///
    /// # Errors
    /// The program is not an object file.
    pub fn symbols(&self) -> Result<BTreeMap<String, (u64, u64)>> {
        let object = self.object()?;
        let named = object.symbols().filter_map(|s| Some((s.name().ok()?.to_owned(), (s.address(), s.size()))));
        Ok(named.filter(|(name, _)| !name.is_empty()).collect())
    }
}

/// Where an address is in the source.
#[derive(Clone, Debug)]
pub struct Place {
    /// The function, demangled; `?` if it has no name.
    pub function: String,
    /// `file:line`, relative to the project where it is in it; empty if it is not known.
    pub line: String,
}

/// Finds the source behind addresses of a program that is loaded where it was linked.
pub struct Source(addr2line::Loader);

impl Source {
    /// Reads a program's debug information.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(path: &Path) -> Result<Self> {
        let loader = addr2line::Loader::new(path).map_err(|error| anyhow!("{}: {error}", path.display()))?;
        Ok(Self(loader))
    }

    /// The function at an address and those that it was inlined in, innermost first.
    pub fn places(&self, address: u64) -> Vec<Place> {
        let mut places = Vec::new();
        let symbol = || self.0.find_symbol(address).map(demangle);
        if let Ok(mut frames) = self.0.find_frames(address) {
            while let Ok(Some(frame)) = frames.next() {
                let name = frame.function.as_ref().and_then(|name| Some(name.demangle().ok()?.into_owned()));
                let location = frame.location;
                let line = location.and_then(|l| Some(format!("{}:{}", short(l.file?), l.line?))).unwrap_or_default();
                let name = name.or_else(symbol).unwrap_or_else(|| "?".to_owned());
                places.push(Place { function: plain(&name), line });
            }
        }
        if places.is_empty() {
            let name = symbol().unwrap_or_else(|| "?".to_owned());
            places.push(Place { function: plain(&name), line: String::new() });
        }
        // What was inlined from Rust's own library says nothing of the guest.
        let last = places.len() - 1;
        let own = |(i, place): (usize, &Place)| i == last || !place.line.contains("/library/core/src/");
        let keep: Vec<_> = places.iter().enumerate().map(own).collect();
        let mut keep = keep.into_iter();
        places.retain(|_| keep.next().unwrap_or(true));
        places
    }
}

/// A path as the project's users know it.
fn short(file: &str) -> String {
    let inside = Path::new(file).strip_prefix(root()).ok();
    inside.map_or_else(|| file.to_owned(), |path| path.display().to_string())
}

/// A symbol's name in the source's words.
pub fn demangle(symbol: &str) -> String {
    plain(&addr2line::demangle_auto(symbol.into(), None))
}

/// A function's name without the hash that the compiler adds.
fn plain(name: &str) -> String {
    match name.rsplit_once("::h") {
        Some((plain, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => plain.to_owned(),
        _ => name.to_owned(),
    }
}
