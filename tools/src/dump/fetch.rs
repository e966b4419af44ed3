//! Memory that the record does not have, read by the sandbox's own T at its end.

use ascetic::sandbox::{RECORD_MAX, Sandbox};

use super::{Dump, Facts, MapsEntry, Memory, record};

/// Bytes below the stack pointer that belong to a function (System V ABI, x86_64).
const RED_ZONE: u64 = 128;
/// Bytes of a thread's stack where nobody knows what is mapped, at most.
const STACK_MAX: u64 = 8 << 20;
/// Bytes that are asked for at once.
const PIECE: usize = 64 << 10;
/// Holes that are named, at most.
const HOLES_MAX: usize = 16;

/// What T read.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    memory: Vec<Memory>,
    missing: Vec<String>,
}

impl Fetched {
    /// Adds it to what the record has.
    pub(super) fn add_to(&self, dump: &mut Dump) {
        self.memory.iter().for_each(|memory| dump.add_memory(memory.address, &memory.bytes));
        dump.missing.extend_from_slice(&self.missing);
    }
}

/// Whole stacks, the crashed thread's first, then the heap and what else the guest can write: up to so many bytes of them that
/// the record does not have.
pub(super) fn all(sandbox: &Sandbox<'_>, facts: &Facts, bytes: usize, cap: usize) -> Fetched {
    let mut fetched = Fetched::default();
    let mut room = vec![0; RECORD_MAX];
    let Some(mut dump) = record::read(sandbox.record(&mut room), facts) else { return fetched };
    let known: usize = dump.memory.iter().map(|memory| memory.bytes.len()).sum();
    let mut left = bytes.min(cap.saturating_sub(known));
    for (from, to) in wanted(&dump) {
        let mut at = from;
        while at < to && left > 0 {
            // What is there already is neither read again nor counted.
            let known = dump.read(at, PIECE).len();
            if known > 0 {
                at += known as u64;
                continue;
            }
            let behind = dump.memory.partition_point(|memory| memory.address <= at);
            let until = dump.memory.get(behind).map_or(to, |next| next.address.min(to));
            let want = usize::try_from(until - at).unwrap_or(usize::MAX).min(PIECE).min(left);
            let mut piece = vec![0; want];
            let got = match usize::try_from(at).map(|at| sandbox.read_memory(at, &mut piece)) {
                Ok(Ok(got)) => got,
                Ok(Err(why)) => {
                    fetched.missing.push(format!("memory beyond what the record has: {why}"));
                    return fetched;
                }
                Err(_) => 0,
            };
            piece.truncate(got);
            if got > 0 {
                dump.add_memory(at, &piece);
                fetched.memory.push(Memory { address: at, bytes: piece });
            }
            (at, left) = (at + got as u64, left - got);
            if got < want {
                if fetched.missing.len() < HOLES_MAX && dump.maps.iter().any(|entry| contains(entry, at)) {
                    fetched.missing.push(format!("memory from {at:#x} on cannot be read"));
                }
                break;
            }
        }
    }
    if left == 0 {
        fetched.missing.push(format!("no more than {bytes} bytes beyond what the record has were asked for"));
    }
    fetched
}

fn contains(entry: &MapsEntry, address: u64) -> bool {
    (entry.start..entry.end).contains(&address)
}

/// From where to where, what tells most first. They may overlap.
fn wanted(dump: &Dump) -> Vec<(u64, u64)> {
    let stack = |sp: u64| {
        let from = sp.saturating_sub(RED_ZONE);
        match dump.maps.iter().find(|entry| contains(entry, sp)) {
            Some(entry) => Some((from.max(entry.start), entry.end)),
            // Up to where it ends, if nobody knows where that is.
            None if dump.maps.is_empty() => Some((from, from.saturating_add(STACK_MAX))),
            None => None,
        }
    };
    let stacks = dump.threads.iter().filter_map(|thread| stack(thread.registers.as_ref().ok()?.sp(dump.arch)?));
    // What is shared is the runtime's, or the embedder's own.
    let own = |entry: &&MapsEntry| entry.permissions.starts_with(b"rw") && entry.permissions[3] == b'p';
    let heap = |entry: &&MapsEntry| entry.name == "[heap]";
    let range = |entry: &MapsEntry| (entry.start, entry.end);
    let heaps = dump.maps.iter().filter(heap).filter(own).map(range);
    let others = dump.maps.iter().filter(|entry| !heap(entry)).filter(own).map(range);
    stacks.chain(heaps).chain(others).collect()
}
