//! Fault records, as `docs/fault-record.md` describes them: a reader that takes one field after the other.

use ascetic::fault::record::{Arch, CheckBody, FaultBody, Kind, LayoutBody, MAGIC, Record};

/// Bytes of a record's head.
const HEAD: usize = 16;
/// The kinds that may be cut short: code, extended state, stack, near.
const MEMORY: [u32; 4] = [7, 8, 9, 11];
/// The kind of the last section.
const END: u32 = 255;

/// What a record says.
pub struct Model<'a> {
    /// The last line before it, as far as it is UTF-8.
    pub text: &'a str,
    /// The version in its head.
    pub version: u16,
    /// The architecture in its head.
    pub arch: u16,
    /// Where in the bytes its head begins.
    pub head: usize,
    /// Kinds and bodies.
    pub sections: Vec<(u32, &'a [u8])>,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from(bytes[at]) | u16::from(bytes[at + 1]) << 8
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Eight bytes each, as far as they are there.
fn words(bytes: &[u8]) -> Vec<u64> {
    (0..bytes.len() / 8).map(|i| u64_at(bytes, 8 * i)).collect()
}

fn utf8(bytes: &[u8]) -> &str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap(),
    }
}

impl<'a> Model<'a> {
    /// Reads the first record in `bytes`.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let head = (0..bytes.len()).find(|at| bytes[*at..].starts_with(b"\0ASCETIC"))?;
        if bytes.len() < head + HEAD {
            return None;
        }
        let (version, arch) = (u16_at(bytes, head + 8), u16_at(bytes, head + 10));
        if arch != 3 && arch != 62 {
            return None;
        }
        let mut line = &bytes[..head];
        if line.last() == Some(&b'\n') {
            line = &line[..line.len() - 1];
        }
        if let Some(at) = line.iter().rposition(|byte| *byte == b'\n') {
            line = &line[at + 1..];
        }
        let (mut sections, mut at) = (Vec::new(), head + HEAD);
        while at + 8 <= bytes.len() {
            let (kind, len) = (u32_at(bytes, at), u32_at(bytes, at + 4) as usize);
            at += 8;
            let there = bytes.len() - at;
            if len > there && !MEMORY.contains(&kind) {
                break;
            }
            sections.push((kind, &bytes[at..at + len.min(there)]));
            if kind == END || len > there {
                break;
            }
            at += len;
        }
        Some(Self { text: utf8(line), version, arch, head, sections })
    }

    /// As bytes, every section with the length that it has.
    pub fn write(&self) -> Vec<u8> {
        let mut bytes = format!("{}\n", self.text).into_bytes();
        bytes.extend(MAGIC);
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.arch.to_le_bytes());
        bytes.extend(if self.arch == 62 { 8u32 } else { 4 }.to_le_bytes());
        for (kind, body) in &self.sections {
            bytes.extend(kind.to_le_bytes());
            bytes.extend((body.len() as u32).to_le_bytes());
            bytes.extend(*body);
        }
        bytes
    }

    fn all(&self, kind: u32) -> Vec<&'a [u8]> {
        self.sections.iter().filter(|(k, _)| *k == kind).map(|(_, body)| *body).collect()
    }

    /// The first body of a kind that has a length.
    fn whole(&self, kind: u32, len: usize) -> Option<&'a [u8]> {
        self.all(kind).into_iter().find(|body| body.len() >= len)
    }

    /// What happened.
    pub fn fault(&self) -> Option<FaultBody> {
        self.whole(1, 112).map(fault)
    }

    /// Addresses and bytes of the sections of a kind that is memory.
    pub fn memory(&self, kind: u32) -> impl Iterator<Item = (u64, &'a [u8])> {
        let whole = self.all(kind).into_iter().filter(|body| body.len() >= 8);
        whole.map(|body| (u64_at(body, 0), &body[8..]))
    }

    fn first(&self, kind: u32) -> &'a [u8] {
        self.all(kind).first().copied().unwrap_or_default()
    }
}

fn fault(body: &[u8]) -> FaultBody {
    FaultBody {
        sig: u32_at(body, 0) as i32,
        code: u32_at(body, 4) as i32,
        addr: u64_at(body, 8),
        pc: u64_at(body, 16),
        sp: u64_at(body, 24),
        trap: [u32_at(body, 32), u32_at(body, 36)],
        class: u32_at(body, 40),
        pid: u32_at(body, 44),
        sent: u32_at(body, 48),
        pad: u32_at(body, 52),
        nr: u64_at(body, 56),
        args: [64, 72, 80, 88, 96, 104].map(|at| u64_at(body, at)),
    }
}

fn layout(body: &[u8]) -> LayoutBody {
    let pair = |at| [u64_at(body, at), u64_at(body, at + 8)];
    LayoutBody { stack: pair(0), altstack: pair(16), vault: pair(32) }
}

/// The decoder says what the model says.
///
/// # Panics
/// If not.
pub fn check(bytes: &[u8]) {
    let (model, record) = (Model::read(bytes), Record::decode(bytes));
    let (Some(model), Some(record)) = (&model, &record) else {
        return assert_eq!(model.is_some(), record.is_some(), "is it a record?");
    };
    agree(model, record);
    let again = model.write();
    let whole = Model::read(&again).expect("what was written is a record");
    assert_eq!((&whole.sections, whole.text), (&model.sections, model.text), "it can be written again");
    agree(&whole, &Record::decode(&again).expect("what was written is a record"));
}

fn agree(model: &Model<'_>, record: &Record<'_>) {
    assert_eq!((record.text, record.version), (model.text, model.version));
    assert_eq!(record.arch, if model.arch == 3 { Arch::X86 } else { Arch::X86_64 });
    assert_eq!(record.sections().collect::<Vec<_>>(), model.sections);
    assert_eq!(record.complete, model.sections.iter().any(|(kind, _)| *kind == END));
    assert_eq!(record.fault, model.fault());
    assert_eq!(record.layout, model.whole(6, 48).map(layout));
    let check = model.whole(12, 16).map(|b| CheckBody { altstack: u64_at(b, 0), frame: u64_at(b, 8) });
    assert_eq!(record.check, check);
    if let Some(check) = check {
        let said = check.to_string();
        assert_eq!(check.enough() == Some(false), said.contains("TOO SMALL"));
        assert!(check.enough() != Some(true) || check.altstack >= check.frame, "{said}");
    }
    assert!(!record.class().describe().is_empty());

    let registers: Vec<(&str, u64)> = record.arch.registers().iter().copied().zip(words(model.first(2))).collect();
    assert_eq!(record.registers().collect::<Vec<_>>(), registers);
    let mut backtrace = words(model.first(3));
    backtrace.truncate(64);
    assert_eq!(record.backtrace().collect::<Vec<_>>(), backtrace);

    let calls = model.first(4);
    let calls: Vec<_> = (0..calls.len() / 64).map(|i| &calls[64 * i..64 * i + 64]).collect();
    assert_eq!(record.calls().count(), calls.len());
    for (call, body) in record.calls().zip(calls) {
        assert_eq!((call.nr, call.state), (u32_at(body, 0), u32_at(body, 4)));
        assert_eq!((call.result as u64, &call.args[..]), (u64_at(body, 8), &words(&body[16..])[..]));
    }

    let noted = utf8(model.first(5));
    let noted: Vec<_> = noted.lines().filter_map(|line| Some((line.find('=')?, line))).collect();
    let noted: Vec<_> = noted.into_iter().map(|(at, line)| (&line[..at], &line[at + 1..])).collect();
    assert_eq!(record.annotations().collect::<Vec<_>>(), noted);

    for kind in [Kind::Code, Kind::ExtendedState, Kind::Stack, Kind::Near] {
        assert_eq!(record.memory(kind).collect::<Vec<_>>(), model.memory(kind as u32).collect::<Vec<_>>(), "{kind:?}");
    }

    let threads: Vec<_> = model.all(10).into_iter().filter(|body| body.len() >= 16).collect();
    assert_eq!(record.threads().count(), threads.len());
    for ((thread, registers), body) in record.threads().zip(threads) {
        let said = [thread.pair, thread.tid, thread.stopped, thread.pad];
        assert_eq!(said, [0, 4, 8, 12].map(|at| u32_at(body, at)));
        assert_eq!(registers.collect::<Vec<_>>(), words(&body[16..]));
    }
}
