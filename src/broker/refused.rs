//! What was refused: a ring of the last refusals, for the embedder and for reports.

use crate::broker::decide::Refusal;
use crate::sys::Sysno;

/// Refusals that are kept.
const KEPT: usize = 32;
/// Bytes that are kept of a path.
const PATH: usize = 120;

/// A refused call. Number, arguments, path and program counter are what the guest said.
#[derive(Clone, Copy)]
pub struct Refused {
    /// The pair that asked.
    pub pair: usize,
    /// The call's number.
    pub nr: u32,
    /// Its arguments.
    pub args: [usize; 6],
    /// Where the guest made it.
    pub pc: usize,
    /// What the guest was told.
    pub errno: i32,
    /// The rule that refused it, in words.
    pub rule: &'static str,
    path: [u8; PATH],
    len: u8,
}

impl core::fmt::Debug for Refused {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { pair, args, pc, errno, rule, .. } = self;
        write!(f, "pair {pair}: {}({args:x?}) path {:?} pc {pc:#x}: errno {errno}, {rule}", self.name(), self.path())
    }
}

impl Refused {
    pub(crate) fn new(pair: usize, nr: u32, args: [usize; 6], pc: usize, path: &[u8], refusal: Refusal) -> Self {
        let mut kept = [0; PATH];
        let len = path.len().min(PATH);
        kept[..len].copy_from_slice(&path[..len]);
        Self { pair, nr, args, pc, errno: refusal.errno, rule: refusal.rule, path: kept, len: len as u8 }
    }

    /// The call's name; `?` if there is no such call.
    pub fn name(&self) -> &'static str {
        Sysno::new(self.nr as usize).map_or("?", |call| call.name())
    }

    /// The first path of the call as the guest gave it, cut at 120 bytes and at what is not UTF-8.
    pub fn path(&self) -> &str {
        let bytes = self.path.get(..usize::from(self.len)).unwrap_or_default();
        bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
    }
}

/// The ring. All zeros is an empty one.
pub(crate) struct Log {
    ring: [Option<Refused>; KEPT],
    total: u64,
}

impl Log {
    pub(crate) const fn new() -> Self {
        Self { ring: [None; KEPT], total: 0 }
    }

    pub(crate) fn add(&mut self, refused: Refused) {
        if let Some(slot) = self.ring.get_mut((self.total % KEPT as u64) as usize) {
            *slot = Some(refused);
        }
        self.total += 1;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Refused> + '_ {
        let oldest = (self.total % KEPT as u64) as usize;
        (0..KEPT).filter_map(move |i| self.ring.get((oldest + i) % KEPT).and_then(Option::as_ref))
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}
