//! The kernel's own core, without what must not be in it.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use object::elf::{FileHeader32, FileHeader64, PT_LOAD, ProgramHeader32, ProgramHeader64};
use object::endian::{U32, U64};
use object::pod::{self, Pod};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, FileKind, ReadCache, ReadRef};

/// Bytes that are copied at a time.
const PIECE: u64 = 64 << 10;
/// Segments, at most: as many as there are mappings by default (`vm.max_map_count`), and some.
const SEGMENTS_MAX: usize = 70_000;

/// Copies a core: with zeros where `redacted` says so, and with no more than `cap` bytes of memory, of which those segments go
/// last that have an address of `first` in them. What is cut is not in the file: its segment is shorter.
///
/// # Errors
/// It cannot be read or written, or is no core.
pub(super) fn copy(from: &Path, to: &Path, redacted: &[Range<u64>], cap: u64, first: &[u64]) -> io::Result<()> {
    let source = super::open(from)?;
    let cache = ReadCache::new(source.try_clone()?);
    let target = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to)?;
    let job = Job { source: &source, target: &target, redacted, cap, first };
    match FileKind::parse(&cache) {
        Ok(FileKind::Elf32) => job.of::<FileHeader32<Endianness>, _>(&cache),
        Ok(FileKind::Elf64) => job.of::<FileHeader64<Endianness>, _>(&cache),
        _ => Err(bad()),
    }
}

fn bad() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "this is no ELF core")
}

/// A program header whose length in the file can be changed.
trait Cut: Pod {
    fn cut(&mut self, endian: Endianness, len: u64);
}

impl Cut for ProgramHeader32<Endianness> {
    fn cut(&mut self, endian: Endianness, len: u64) {
        self.p_filesz = U32::new(endian, u32::try_from(len).unwrap_or(u32::MAX));
    }
}

impl Cut for ProgramHeader64<Endianness> {
    fn cut(&mut self, endian: Endianness, len: u64) {
        self.p_filesz = U64::new(endian, len);
    }
}

/// What is left of a range of addresses, as distances from its start.
fn kept(range: Range<u64>, redacted: &[Range<u64>]) -> Vec<Range<u64>> {
    let base = range.start;
    let mut kept: Vec<_> = std::iter::once(range).collect();
    for cut in redacted.iter().filter(|cut| cut.start < cut.end) {
        let sides = |piece: Range<u64>| {
            let (end, start) = (piece.end.min(cut.start), piece.start.max(cut.end));
            [piece.start..end, start..piece.end]
        };
        kept = kept.into_iter().flat_map(sides).filter(|piece| piece.start < piece.end).collect();
    }
    kept.into_iter().map(|piece| piece.start - base..piece.end - base).collect()
}

struct Job<'a> {
    source: &'a File,
    target: &'a File,
    redacted: &'a [Range<u64>],
    cap: u64,
    first: &'a [u64],
}

impl Job<'_> {
    fn of<'d, H, R: ReadRef<'d>>(&self, data: R) -> io::Result<()>
    where
        H: FileHeader<Endian = Endianness>,
        H::ProgramHeader: Cut,
    {
        let header = H::parse(data).map_err(|_| bad())?;
        let endian = header.endian().map_err(|_| bad())?;
        let mut headers = header.program_headers(endian, data).map_err(|_| bad())?.to_vec();
        if headers.len() > SEGMENTS_MAX {
            return Err(bad());
        }
        // What tells of more than 65535 segments is a section header.
        let sections = header.section_headers(endian, data).unwrap_or_default();
        self.target.write_all_at(pod::bytes_of(header), 0)?;
        self.target.write_all_at(pod::bytes_of_slice(sections), header.e_shoff(endian).into())?;
        let loaded = |one: &H::ProgramHeader| one.p_type(endian) == PT_LOAD;
        let range = |one: &H::ProgramHeader| {
            let start: u64 = one.p_vaddr(endian).into();
            start..start.saturating_add(one.p_filesz(endian).into())
        };
        let mut order: Vec<usize> = (0..headers.len()).filter(|i| loaded(&headers[*i])).collect();
        order.sort_by_key(|i| {
            let range = range(&headers[*i]);
            self.first.iter().position(|address| range.contains(address)).unwrap_or(usize::MAX)
        });
        let mut room = self.cap;
        for i in order {
            let len = range(&headers[i]).end.saturating_sub(range(&headers[i]).start).min(room);
            headers[i].cut(endian, len);
            room -= len;
        }
        self.target.write_all_at(pod::bytes_of_slice(&headers), header.e_phoff(endian).into())?;
        let mut end = self.target.metadata()?.len();
        for one in &headers {
            let (offset, len) = one.file_range(endian);
            let (addresses, redacted) = if loaded(one) { (range(one), self.redacted) } else { (0..len, &[][..]) };
            for piece in kept(addresses, redacted) {
                self.piece(offset.saturating_add(piece.start), piece.end - piece.start)?;
            }
            end = end.max(offset.saturating_add(len));
        }
        // Zeros at the end, which nobody wrote, as far as the kernel's own file goes.
        self.target.set_len(end.min(self.source.metadata()?.len()))
    }

    /// Copies bytes, but for zeros: both files have holes for these.
    fn piece(&self, mut at: u64, mut len: u64) -> io::Result<()> {
        let mut buffer = vec![0; PIECE as usize];
        while len > 0 {
            let want = (PIECE - at % PIECE).min(len);
            let got = self.source.read_at(&mut buffer[..want as usize], at)?;
            if got == 0 {
                return Ok(()); // it is cut short
            }
            if buffer[..got].iter().any(|byte| *byte != 0) {
                self.target.write_all_at(&buffer[..got], at)?;
            }
            (at, len) = (at + got as u64, len - got as u64);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::{Facts, core, samples};

    #[test]
    fn what_is_taken_out_is_gone_and_the_rest_is_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        for (arch, bytes) in samples::cores() {
            std::fs::write(&from, bytes).unwrap();
            let whole = core::read(bytes, &Facts::default()).unwrap();
            let sp = whole.threads[0].registers.as_ref().unwrap().sp(arch).unwrap();
            copy(&from, &to, &[], u64::MAX, &[]).unwrap();
            let again = core::read_file(&to, &Facts::default()).unwrap();
            assert_eq!(
                (&again.memory, &again.threads, &again.missing),
                (&whole.memory, &whole.threads, &whole.missing)
            );
            copy(&from, &to, &[sp + 8..sp + 24, sp..sp], u64::MAX, &[]).unwrap();
            let redacted = core::read_file(&to, &Facts::default()).unwrap();
            assert_eq!((redacted.read(sp, 8), redacted.read(sp + 8, 16)), (whole.read(sp, 8), &[0; 16][..]));
            assert_eq!(redacted.read(sp + 24, 16), whole.read(sp + 24, 16));
            copy(&from, &to, &[], 4096, &[sp]).unwrap();
            let capped = core::read_file(&to, &Facts::default()).unwrap();
            assert!(capped.memory.iter().map(|memory| memory.bytes.len()).sum::<usize>() <= 4096);
            assert_eq!(capped.exception.as_ref().map(|e| e.pc), whole.exception.as_ref().map(|e| e.pc));
        }
        std::fs::write(&from, b"nothing").unwrap();
        assert!(copy(&from, &to, &[], 0, &[]).is_err());
    }
}
