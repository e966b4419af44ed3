//! Records and cores that are cut short, damaged, or made to cost much: `ascetic-dump` ends, soon, and without a panic.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use ascetic_tools::dump::symbols::Symbols;
use ascetic_tools::dump::{Dump, Facts, core, elf, json, minidump, record, report};

/// What one input may take.
const TIME: Duration = Duration::from_secs(2);
/// Bytes of address space that the program may have.
const MEMORY: u64 = 256 << 20;
/// Damaged inputs, all samples together.
const DAMAGED: usize = 100_000;
/// Of so many damaged inputs, the first of each sample is written in each format; the others are only read.
const WRITTEN: usize = 40;

const RECORDS: [&[u8]; 2] = [include_bytes!("samples/x86_64.record"), include_bytes!("samples/i686.record")];
const CORES: [&[u8]; 2] = [include_bytes!("samples/x86_64.core"), include_bytes!("samples/i686.core")];

fn read(bytes: &[u8]) -> Option<Dump> {
    core::read(bytes, &Facts::default()).or_else(|| record::read(bytes, &Facts::default()))
}

/// Reads, and writes in each format.
fn convert(bytes: &[u8]) -> Option<Dump> {
    let start = Instant::now();
    let dump = read(bytes)?;
    assert!(!minidump::write(&dump).is_empty() && elf::write(&dump).is_ok());
    let report = report::write(&dump, &Symbols::default());
    assert!(report.chars().all(|c| c == '\n' || !c.is_control()), "{report}");
    json::report(&dump);
    assert!(start.elapsed() < TIME);
    Some(dump)
}

/// Signal and program counter.
fn reason(dump: &Dump) -> Option<(i32, u64)> {
    dump.exception.as_ref().map(|happened| (happened.signal, happened.pc))
}

#[test]
fn what_is_cut_short_still_tells_the_reason() {
    for (samples, enough) in [(RECORDS, 300), (CORES, 1200)] {
        for whole in samples {
            let told = convert(whole).and_then(|dump| reason(&dump)).unwrap();
            for len in (0..whole.len()).step_by(64) {
                let cut = convert(&whole[..len]);
                if len >= enough {
                    assert_eq!(cut.and_then(|dump| reason(&dump)), Some(told), "of {len} bytes");
                }
            }
        }
    }
}

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }
}

#[test]
fn damaged_bytes_do_no_harm() {
    let mut random = Random(0x1234_5678_9abc_def1);
    for i in 0..DAMAGED {
        let sample = [RECORDS, CORES][i / 2 % 2][i % 2];
        let mut bytes = sample.to_vec();
        // The heads are where structure is.
        let reach = if random.below(2) == 0 { 4096.min(bytes.len()) } else { bytes.len() };
        for _ in 0..1 + random.below(4) {
            let at = random.below(reach);
            bytes[at] = [random.below(256) as u8, 0, 0xff, bytes[at] ^ 1 << random.below(8)][random.below(4)];
        }
        if i % WRITTEN < 4 {
            convert(&bytes);
        } else {
            let start = Instant::now();
            read(&bytes);
            assert!(start.elapsed() < TIME);
        }
    }
}

/// Runs the program with little memory.
fn run(input: &Path, folder: &Path) -> Output {
    run_with(input, folder, &[])
}

fn run_with(input: &Path, folder: &Path, more: &[&str]) -> Output {
    let start = Instant::now();
    let mut command = Command::new("prlimit");
    command.arg(format!("--as={MEMORY}")).arg(env!("CARGO_BIN_EXE_ascetic-dump")).arg("convert").arg(input);
    for format in ["minidump", "core", "json", "text"] {
        command.arg(format!("--{format}")).arg(folder.join(format));
    }
    let output = command.args(more).output().unwrap();
    assert!(start.elapsed() < TIME, "{}: {:?}", input.display(), start.elapsed());
    output
}

/// A core of `segments` program headers and of notes, and the length of its file.
fn costly(segments: u32, len: u64, notes: &[u8]) -> (Vec<u8>, u64) {
    let mut bytes = CORES[0][..64].to_vec();
    let at_notes = 64 + 56 * u64::from(segments + 1);
    bytes[56..58].copy_from_slice(&(segments as u16 + 1).to_le_bytes());
    let header = |kind: u32, offset: u64, address: u64, len: u64| {
        let words = [offset, address, 0, len, len, 1];
        [u64::from(kind) | 7 << 32].iter().chain(&words).flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>()
    };
    bytes.extend(header(4, at_notes, 0, notes.len() as u64));
    (0..segments).for_each(|i| bytes.extend(header(1, 0, 0x1_0000 + u64::from(i) * len.min(1 << 30), len)));
    bytes.extend(notes);
    (bytes, 64 << 30) // A length, of which the file system stores little.
}

fn note(kind: u32, body: &[u8]) -> Vec<u8> {
    let head = [5, body.len() as u32, kind].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let mut note = [&head[..], b"CORE\0\0\0\0", body].concat();
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

/// A thread's registers, with a stack pointer and a program counter.
fn thread(sp: u64, pc: u64) -> Vec<u8> {
    let mut body = [0; 336];
    body[12] = 11;
    body[112 + 19 * 8..][..8].copy_from_slice(&sp.to_le_bytes());
    body[112 + 16 * 8..][..8].copy_from_slice(&pc.to_le_bytes());
    note(1, &body)
}

/// As long as it may take is not always long enough: what happened is said all the same, and what took too long.
#[test]
fn a_deadline_leaves_what_happened() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input");
    let json =
        || -> serde_json::Value { serde_json::from_slice(&fs::read(folder.path().join("json")).unwrap()).unwrap() };
    let (core, _) = costly(60_000, u64::MAX, &thread(0x1_0000, 0x4711));
    for (bytes, doing) in
        [(&core[..], "the core's memory"), (CORES[0], "the core's notes"), (RECORDS[0], "the record's memory")]
    {
        fs::write(&input, bytes).unwrap();
        let output = run_with(&input, folder.path(), &["--deadline", "0"]);
        let expected = format!("the deadline of 0 ms was exceeded while reading {doing}\n");
        assert_eq!(
            (output.status.code(), String::from_utf8_lossy(&output.stderr)),
            (Some(1), expected.as_str().into())
        );
        let json = json();
        assert_eq!((&json["exception"]["signal"], json["memory"].as_array().unwrap().len()), (&11.into(), 0));
        assert!(
            json["exception"]["pc"].as_str().unwrap().len() > 3
                && json["missing"].to_string().contains(expected.trim())
        );
    }
    // A program with symbols that is never read to its end.
    let symbols = folder.path().join("symbols");
    assert!(Command::new("mkfifo").arg(&symbols).status().unwrap().success());
    let output = run_with(&input, folder.path(), &["--deadline", "200", "--symbols", symbols.to_str().unwrap()]);
    let expected = "the deadline of 200 ms was exceeded while reading the programs with symbols\n";
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr)), (Some(1), expected.into()));
    assert!(fs::read_to_string(folder.path().join("text")).unwrap().contains("signal 11 (SIGSEGV)"));
    assert_ne!(json()["memory"].as_array().unwrap().len(), 0);
}

#[test]
fn what_is_made_to_cost_much_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let threads: Vec<u8> = (0..4000).flat_map(|i| thread(0x1_0000 + i * 65536, 0)).collect();
    let files = |count: usize| {
        let words = (0..count as u64).flat_map(|i| [0x1_0000 + i * 16, u64::MAX, i]);
        let body: Vec<u8> = [count as u64, u64::MAX].into_iter().chain(words).flat_map(u64::to_le_bytes).collect();
        let names: Vec<u8> = (0..count).flat_map(|i| format!("/{i:0300}\0").into_bytes()).collect();
        note(0x4649_4c45, &[body, names].concat())
    };
    let inputs = [
        costly(1, 1 << 40, &threads),                                   // Much stack.
        costly(60_000, 16, &[threads.clone(), files(60_000)].concat()), // Many small pieces, and many files.
        costly(60_000, u64::MAX, &threads),                             // All overlap.
        (vec![b'\n'; 4 << 20], 0),                                      // No record, but long.
        ([RECORDS[0], &RECORDS[0].repeat(1000)].concat(), 0),
    ];
    for (i, (bytes, len)) in inputs.into_iter().enumerate() {
        let input = folder.path().join(format!("input-{i}"));
        fs::write(&input, &bytes).unwrap();
        fs::OpenOptions::new().append(true).open(&input).unwrap().set_len(len.max(bytes.len() as u64)).unwrap();
        let start = Instant::now();
        let output = run(&input, folder.path());
        println!("input {i}: {} ms", start.elapsed().as_millis());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            matches!(output.status.code(), Some(0 | 1)) && errors.lines().count() <= 1,
            "{i}: {}: {errors}",
            output.status
        );
    }
}

#[test]
fn the_program_writes_what_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input");
    for sample in RECORDS.into_iter().chain(CORES) {
        fs::write(&input, sample).unwrap();
        let output = run(&input, folder.path());
        assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(&fs::read(folder.path().join("minidump")).unwrap()[..4], b"MDMP");
        assert_eq!(&fs::read(folder.path().join("core")).unwrap()[..4], b"\x7fELF");
        let json: serde_json::Value = serde_json::from_slice(&fs::read(folder.path().join("json")).unwrap()).unwrap();
        assert_eq!(json["exception"]["name"], "SIGSEGV");
        assert!(fs::read_to_string(folder.path().join("text")).unwrap().contains("signal 11 (SIGSEGV)"));
    }
    fs::write(&input, "nothing").unwrap();
    let output = run(&input, folder.path());
    let expected = format!("{}: neither a fault record nor an ELF core of x86\n", input.display());
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr)), (Some(1), expected.into()));
    let output = run(folder.path(), folder.path());
    assert!(String::from_utf8_lossy(&output.stderr).ends_with(": not a regular file\n"));
}
