//! A sandbox's birth, its death, and its memory: measured in an embedder of its own, which is small.
//!
//! A sandbox is forked, so what its making costs depends on the embedder's memory. The measuring program has grown by
//! then; it starts itself again for each round, and that process does nothing but this.

use crate::host::{Batch, Log, Result, Shared, now, pipe};
use crate::own::{self, log};
use ascetic::fault::record::Record;
use ascetic::sandbox::{self, Config, RECORD_MAX};
use serde_json::{Value, json};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// The argument that makes this program an embedder.
pub const EMBEDDER: &str = "--embedder";
const PATIENCE: Option<Duration> = Some(Duration::from_secs(10));

/// Starts this program as an embedder with so much touched heap, and returns what it says.
pub fn embedder(heap_mib: usize, sandboxes: usize) -> Result<Value> {
    let output = Command::new("/proc/self/exe")
        .args([EMBEDDER, &heap_mib.to_string(), &sandboxes.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("the embedder ended with {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The embedder: prints one JSON object. `args` are those of [`embedder`].
pub fn embed(args: &[String]) -> Result<()> {
    let number = |i: usize| args.get(i).and_then(|arg| arg.parse::<usize>().ok());
    let (heap_mib, count) = (number(0).unwrap_or(0), number(1).unwrap_or(1).max(1));
    let heap = touched(heap_mib << 20);
    let log = Shared::<Log>::new()?;
    let births: Result<Vec<[u64; 2]>> = (0..count).map(|_| birth(&log)).collect();
    let mut births = births?;
    let first = births.remove(0); // pairs the clocks, which takes its time once in a process
    let deaths: Result<Vec<[u64; 2]>> = (1..count).map(|_| death(&log)).collect();
    let deaths = deaths?;
    let column = |rows: &[[u64; 2]], i: usize| rows.iter().map(|row| row[i]).collect::<Vec<_>>();
    let report = json!({
        "first_birth": first[0],
        "born": column(&births, 0),
        "spawn_returned": column(&births, 1),
        "waited": column(&deaths, 0),
        "decoded": column(&deaths, 1),
        "memory": memory(&log)?,
    });
    println!("{report}");
    drop(heap);
    Ok(())
}

/// Heap that is in use, in small pages as a heap that grew piece by piece has them.
fn touched(bytes: usize) -> Vec<u8> {
    let mut heap = Vec::with_capacity(bytes);
    // SAFETY: the range is the vector's own; the advice changes the size of pages, not their content.
    unsafe { libc::madvise(page_of(heap.as_mut_ptr()), bytes, libc::MADV_NOHUGEPAGE) };
    heap.resize(bytes, 1);
    heap
}

fn page_of(at: *mut u8) -> *mut libc::c_void {
    at.map_addr(|addr| addr & !4095).cast()
}

/// The guest's first act is to read the clock, through T; its next to note what it read.
extern "C" fn newborn(arg: usize) -> i32 {
    let born = own::now();
    // SAFETY: `birth` passes a shared log.
    unsafe { log(arg) }.mark.store(born, Relaxed);
    0
}

/// From before `spawn` to guest code, and to where `spawn` has returned.
///
/// The guest has no clock of its own (no time stamp counter, and a store that another CPU polls would take that CPU
/// from T): it asks T, so the time is too long by half a call, the first, for which T may be asleep. It is never too
/// short.
fn birth(log: &Shared<Log>) -> Result<[u64; 2]> {
    log.plan(Batch { batches: 0, calls: 0 });
    let start = now();
    let mut sandbox = sandbox::spawn(&own::config(), newborn, log.address())?;
    let returned = now();
    sandbox.wait(PATIENCE);
    match log.mark.load(Relaxed) {
        0 => Err("the guest was not born".into()),
        born => Ok([born - start, returned - start]),
    }
}

/// Notes the time and stores to address 8.
extern "C" fn faulty(arg: usize) -> i32 {
    let time = own::now();
    // SAFETY: `death` passes a shared log.
    unsafe { log(arg) }.mark.store(time, Relaxed);
    // SAFETY: none: this is the fault.
    unsafe { std::ptr::without_provenance_mut::<u64>(8).write_volatile(1) };
    0
}

/// From just before a fault to where `wait` has returned, and to where the record has been read and decoded to its
/// end. The guest's time is T's when it made the call, so this is too long by half a call.
fn death(log: &Shared<Log>) -> Result<[u64; 2]> {
    log.plan(Batch { batches: 0, calls: 0 });
    let mut bytes = vec![0; RECORD_MAX];
    let mut sandbox = sandbox::spawn(&own::config(), faulty, log.address())?;
    sandbox.wait(PATIENCE);
    let waited = now();
    let record = Record::decode(sandbox.record(&mut bytes));
    let complete = record.is_some_and(|record| record.complete);
    let decoded = now();
    match log.mark.load(Relaxed) {
        fault if fault > 0 && complete => Ok([waited - fault, decoded - fault]),
        _ => Err("the fault left no complete record".into()),
    }
}

/// Calls, says where its stack is, and stays until it is killed: in U's own `read`.
extern "C" fn resident(arg: usize) -> i32 {
    // SAFETY: `memory` passes a shared log.
    let log = unsafe { log(arg) };
    (0..100).for_each(|_| log.push(own::now()));
    let here = (&raw const arg).addr();
    let gate = log.calls.load(Relaxed) as i32;
    log.mark.store(here as u64, Relaxed);
    let _ = ascetic::sys::read(gate, &mut [0]);
    0
}

/// Private memory of a pair, in KiB, when the guest has made a hundred calls.
///
/// `pair` is what the target is about: of the reservation that a sandbox adds, from the vault to the guest's stack,
/// the stack left out, all private pages (`Private_Clean` and `Private_Dirty`: the guest's state, its alternate stack)
/// and the pages of the vault and the mailbox that are in memory (`Rss`), which the supervisor maps, too, so that the
/// kernel does not call them private, but which are there for this pair alone. `process` is every private page of
/// the process, the guest's stack and what it copied of the embedder's memory included; `page_tables` is the kernel's.
fn memory(log: &Shared<Log>) -> Result<Value> {
    let (gate, opener) = pipe()?;
    log.plan(Batch { batches: 0, calls: gate.as_raw_fd() as u64 });
    let keep = [gate.as_raw_fd()];
    let config = Config { keep: &keep, ..own::config() };
    let sandbox = sandbox::spawn(&config, resident, log.address())?;
    let pid = sandbox.pids().1;
    let until = now() + 5_000_000_000;
    while log.mark.load(Relaxed) == 0 && now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    let stack = log.mark.load(Relaxed) as usize;
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    drop((sandbox, opener));

    let areas = Area::all(&smaps);
    let vault = areas.iter().find(|area| area.name.contains("memfd:ascetic-vault"));
    let vault = vault.ok_or("the vault is not mapped")?;
    let in_reservation = |area: &&Area| area.from >= vault.from && area.to <= stack;
    let pair = areas.iter().filter(in_reservation);
    let pair: usize = pair.map(|area| if area.ours() { area.rss } else { area.private }).sum();
    let process: usize = areas.iter().map(|area| area.private).sum();
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(kib);
    Ok(json!({ "pair": pair, "process": process, "page_tables": field("VmPTE:") }))
}

/// One mapping of `/proc/*/smaps`; sizes in KiB.
struct Area {
    from: usize,
    to: usize,
    name: String,
    private: usize,
    rss: usize,
}

impl Area {
    fn all(smaps: &str) -> Vec<Self> {
        let mut areas: Vec<Self> = Vec::new();
        for line in smaps.lines() {
            let mut words = line.split_ascii_whitespace();
            let first = words.next().unwrap_or_default();
            if let Some((from, to)) = first.split_once('-') {
                let hex = |digits| usize::from_str_radix(digits, 16).unwrap_or(0);
                let name = words.nth(4).unwrap_or_default().to_owned();
                areas.push(Self { from: hex(from), to: hex(to), name, private: 0, rss: 0 });
            } else if let Some(area) = areas.last_mut() {
                let rest = line.strip_prefix(first).unwrap_or_default();
                match first {
                    "Private_Clean:" | "Private_Dirty:" => area.private += kib(rest),
                    "Rss:" => area.rss = kib(rest),
                    _ => {}
                }
            }
        }
        areas
    }

    /// Whether it is a memfd that belongs to the pair.
    fn ours(&self) -> bool {
        self.name.contains("memfd:ascetic-")
    }
}

/// The number of ` 12 kB`.
fn kib(text: &str) -> usize {
    text.split_ascii_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
