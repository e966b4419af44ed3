//! A decoder for PCX pictures (ZSoft's format, version 5, 8 bits per pixel), with a planted bug: runs are not held
//! against the room that is left.

/// A picture's head.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Pixels across.
    pub width: usize,
    /// Pixels down.
    pub height: usize,
    /// Bytes of a line, decoded.
    pub stride: usize,
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Not this format.
    Format,
    /// It ends too early.
    Short,
}

const HEADER: usize = 128;
const MAKER: u8 = 10;
const RUN: u8 = 0xc0;

/// Reads the head.
pub fn header(file: &[u8]) -> Result<Header, Bad> {
    let head = file.get(..HEADER).ok_or(Bad::Short)?;
    let word = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
    if head[0] != MAKER || head[2] != 1 || head[3] != 8 || head[65] != 1 || word(8) < word(4) || word(10) < word(6) {
        return Err(Bad::Format);
    }
    Ok(Header { width: word(8) - word(4) + 1, height: word(10) - word(6) + 1, stride: word(66) })
}

/// Decodes the pixels; `pixels` leads to room for `stride * height` bytes.
///
/// # Safety
///
/// The file's runs end with the picture. This is the bug: files come from strangers.
#[inline(never)]
pub unsafe fn decode(file: &[u8], header: &Header, pixels: *mut u8) -> Result<usize, Bad> {
    let body = file.get(HEADER..file.len().saturating_sub(769)).ok_or(Bad::Short)?;
    let mut bytes = body.iter().copied();
    let mut at = 0;
    while let Some(byte) = bytes.next() {
        let (count, value) =
            if byte & RUN == RUN { (usize::from(byte & !RUN), bytes.next().ok_or(Bad::Short)?) } else { (1, byte) };
        // SAFETY: the caller's, and the bug: `at + count` may pass the picture's end.
        unsafe { run(pixels.wrapping_add(at), value, count) };
        at += count;
    }
    if at < header.stride * header.height { Err(Bad::Short) } else { Ok(at) }
}

/// Stores a run of pixels.
///
/// # Safety
///
/// There is room for `count` bytes.
#[inline(never)]
unsafe fn run(to: *mut u8, value: u8, count: usize) {
    for i in 0..count {
        // SAFETY: the caller's.
        unsafe { to.add(i).write_volatile(value) };
    }
}
