//! Symbols of a built program: its sections and labels.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use object::{Object, ObjectSection, ObjectSymbol};

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
