//! Fault records: what the reporter in the sandbox wrote, beside what the supervisor knows.

use ascetic::fault::classify::Class;
use ascetic::fault::record::{Arch, FaultBody, Kind, Record};

use scroll::{Endian, Pread};

use super::facts::{ALTSTACK, Facts};
use super::{Call, Deadline, Dump, Exception, Origin, Registers, Role, Thread, Way, clean};

/// What an i386 signal frame has before FXSAVE: FSAVE, in bytes.
const FSAVE: usize = 112;
/// Bytes of extended state, at most: more than AMX needs.
const EXTENDED_MAX: usize = 64 << 10;
/// Pieces of memory, at most.
const PIECES_MAX: usize = 1024;
/// Threads, at most.
const THREADS_MAX: usize = 256;
/// Calls and annotations, at most of each.
const ENTRIES_MAX: usize = 256;

/// What a record says, and what the supervisor adds. `None` if there is no record in `bytes`.
///
/// The record is the guest's word. Where the supervisor knows better, its word goes before.
pub fn read(bytes: &[u8], facts: &Facts) -> Option<Dump> {
    read_within(bytes, facts, &Deadline::never())
}

/// [`read`], up to a deadline: signal and registers are there in any case, memory as far as time allowed.
pub fn read_within(bytes: &[u8], facts: &Facts, deadline: &Deadline) -> Option<Dump> {
    let record = Record::decode(bytes)?;
    let mut dump = Dump::new(record.arch, Way::Record);
    dump.text = clean(record.text);
    dump.add_facts(facts);
    let crashed = crashed(&record, facts);
    if dump.process == 0 {
        dump.process = crashed;
    }
    exception(&mut dump, &record, facts, crashed);
    threads(&mut dump, &record, facts, crashed);
    for kind in [Kind::Code, Kind::Stack, Kind::Near] {
        for (address, bytes) in record.memory(kind).take(PIECES_MAX) {
            if deadline.passed("reading the record's memory") {
                break;
            }
            dump.add_memory(address, bytes);
        }
    }
    dump.backtrace = record.backtrace().collect();
    dump.calls = record.calls().take(ENTRIES_MAX).map(call).collect();
    let noted = record.annotations().take(ENTRIES_MAX);
    dump.annotations.extend(noted.map(|(key, value)| (Origin::Guest, clean(key), clean(value))));
    if let Some(check) = record.check
        && !dump.self_check.iter().any(|(name, _)| name == ALTSTACK)
    {
        dump.self_check.push((ALTSTACK.to_owned(), format!("{check}, says the record")));
    }
    complain(&mut dump, &record);
    dump.missing.extend(deadline.kept().err().map(|exceeded| exceeded.to_string()));
    Some(dump)
}

/// The task that the record is about: by its wait status; else the one that the record names, if there is such a one.
fn crashed(record: &Record<'_>, facts: &Facts) -> u32 {
    let named = record.fault.map_or(0, |fault| fault.pid);
    let guests = || facts.tasks.iter().filter(|task| task.role == Role::Guest);
    match facts.ended {
        Some(ended) => ended.task,
        None if facts.tasks.is_empty() || guests().any(|task| task.id == named) => named,
        None => guests().next().map_or(named, |task| task.id),
    }
}

fn exception(dump: &mut Dump, record: &Record<'_>, facts: &Facts, crashed: u32) {
    let Some(fault) = record.fault else {
        dump.exception = facts.ended.map(|ended| Exception {
            thread: crashed,
            signal: ended.signal,
            code: None,
            address: 0,
            pc: 0,
            class: Class::Other,
            denied: None,
            origin: Origin::Kernel,
        });
        return;
    };
    if let Some(ended) = facts.ended.filter(|ended| ended.signal != fault.sig) {
        let what = format!(
            "the record is of signal {}; the kernel says that signal {} ended the task",
            fault.sig, ended.signal
        );
        dump.missing.push(what);
    }
    dump.exception = Some(Exception {
        thread: crashed,
        signal: fault.sig,
        code: (fault.code != i32::MIN).then_some(fault.code),
        address: fault.addr,
        pc: fault.pc,
        class: record.class(),
        denied: (fault.nr != u64::MAX).then_some((fault.nr, fault.args)),
        origin: Origin::Guest,
    });
}

/// The crashed thread, then the others: as the record has them, and those that only the supervisor knows.
fn threads(dump: &mut Dump, record: &Record<'_>, facts: &Facts, crashed: u32) {
    let name =
        |id: u32| facts.tasks.iter().find(|task| task.id == id).map(|task| clean(&task.name)).unwrap_or_default();
    dump.threads.push(Thread {
        id: crashed,
        name: name(crashed),
        role: Role::Guest,
        registers: registers(record),
        origin: Origin::Guest,
    });
    for (thread, general) in record.threads().take(THREADS_MAX) {
        // The first thread's guest may have been told the embedder's id.
        let id = if thread.pair == 0 && facts.process != 0 { facts.process } else { thread.tid };
        if dump.threads.iter().any(|known| known.id == id) {
            continue;
        }
        let mut general: Vec<u64> = general.take(record.arch.registers().len()).collect();
        general.resize(record.arch.registers().len(), 0);
        let registers = if thread.stopped == 1 {
            Ok(Registers { general, extended: Vec::new() })
        } else {
            Err("not stopped: it did not hear the reporter".to_owned())
        };
        dump.threads.push(Thread { id, name: name(id), role: Role::Guest, registers, origin: Origin::Guest });
    }
    dump.add_tasks(facts, "the record does not tell of it");
}

/// The registers that the record is about, or why there are none.
fn registers(record: &Record<'_>) -> Result<Registers, String> {
    let mut general: Vec<u64> = record.registers().map(|(_, value)| value).collect();
    if general.is_empty() {
        general = record.fault.map(|fault| few(record.arch, &fault)).ok_or("the record has no registers")?;
    }
    general.resize(record.arch.registers().len(), 0);
    Ok(Registers { general, extended: extended(record) })
}

/// The registers that the fault itself names, for a record that is cut short.
fn few(arch: Arch, fault: &FaultBody) -> Vec<u64> {
    let value = |name: &&str| match *name {
        "rip" | "eip" => fault.pc,
        "rsp" | "esp" => fault.sp,
        "trapno" => fault.trap[0].into(),
        "err" => fault.trap[1].into(),
        _ => 0,
    };
    arch.registers().iter().map(value).collect()
}

/// `struct _fpx_sw_bytes` (`uapi/asm/sigcontext.h`): what a signal frame says of XSAVE, in bytes that FXSAVE leaves to software.
#[derive(Pread)]
struct Software {
    magic: u32,
    _len: u32,
    features: u64,
    state_len: u32,
}

/// The extended state, from FXSAVE on, in the form that cores and `ptrace` have: there, the components that the kernel saves
/// are where a signal frame says that there are such.
fn extended(record: &Record<'_>) -> Vec<u8> {
    const SOFTWARE: std::ops::Range<usize> = 464..512;
    const MAGIC: u32 = 0x4650_5853;
    let mut bytes = Vec::new();
    for (_, piece) in record.memory(Kind::ExtendedState) {
        bytes.extend(&piece[..piece.len().min(EXTENDED_MAX - bytes.len())]);
    }
    let mut bytes = bytes.split_off(if record.arch == Arch::X86 { FSAVE.min(bytes.len()) } else { 0 });
    let Some(said) = bytes.get_mut(SOFTWARE) else { return bytes };
    let software: Result<Software, scroll::Error> = (*said).pread_with(0, Endian::Little);
    said.fill(0);
    match software {
        Ok(software) if software.magic == MAGIC => {
            said[..8].copy_from_slice(&software.features.to_le_bytes());
            bytes.truncate(software.state_len as usize);
        }
        _ => bytes.truncate(SOFTWARE.end),
    }
    bytes
}

fn call(call: ascetic::fault::record::Call) -> Call {
    Call { nr: call.nr, args: call.args, result: (call.state != 1).then_some(call.result) }
}

/// Says what the record should have and has not.
fn complain(dump: &mut Dump, record: &Record<'_>) {
    let mut lacks = |is: bool, what: &str| {
        if is {
            dump.missing.push(what.to_owned());
        }
    };
    lacks(!record.complete, "the record is cut short");
    lacks(record.fault.is_none(), "the record says nothing of the fault");
    lacks(record.registers().next().is_none(), "the record has no registers but what the fault names");
    lacks(record.memory(Kind::Stack).next().is_none(), "the record has no stack");
    lacks(record.memory(Kind::Stack).nth(PIECES_MAX).is_some(), "the record has too many pieces of memory");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::facts::{Ended, Task};
    use crate::dump::samples;

    #[test]
    fn of_both_architectures() {
        for (arch, bytes) in samples::records() {
            let dump = read(bytes, &Facts::default()).unwrap();
            assert_eq!(dump.arch, arch);
            let exception = dump.exception.as_ref().unwrap();
            assert_eq!((exception.signal, exception.thread, exception.denied), (11, dump.process, None));
            let registers = dump.threads[0].registers.as_ref().unwrap();
            assert_eq!(registers.pc(arch), Some(exception.pc));
            // The control words that a process begins with: FXSAVE is where it must be.
            assert_eq!(
                (&registers.extended[..2], &registers.extended[24..28]),
                (&[0x7f, 3][..], &[0x80, 0x1f, 0, 0][..])
            );
            assert_eq!(registers.extended[464] & 7, 7, "x87, SSE and AVX are saved");
            assert!(dump.read(registers.sp(arch).unwrap(), 64).len() == 64 && dump.read(exception.pc, 16).len() == 16);
            assert_eq!((dump.calls.len(), dump.backtrace[0], &dump.missing[..]), (2, exception.pc, &[][..]));
            assert!(dump.annotations.contains(&(Origin::Guest, "stage".to_owned(), "pixels".to_owned())));
        }
    }

    #[test]
    fn a_small_alternate_stack_is_in_every_report() {
        let (_, bytes) = samples::records()[0];
        let text = |bytes: &[u8], facts: &Facts| {
            let dump = read(bytes, facts).unwrap();
            let report = crate::dump::report::write(&dump, &crate::dump::symbols::Symbols::default());
            [report, crate::dump::json::report(&dump).to_string()]
        };
        let check = ascetic::fault::record::CheckBody { altstack: 2048, frame: 3376 };
        let (kind, len) = ((Kind::Check as u32).to_le_bytes(), 16u32.to_le_bytes());
        let head = bytes.windows(8).position(|window| window == b"\0ASCETIC").unwrap() + 16;
        let with = [&bytes[..head], &kind, &len, &check.to_bytes(), &bytes[head..]].concat();
        for text in text(&with, &Facts::default()) {
            assert!(text.contains("2048 bytes, TOO SMALL: a signal frame takes up to 3376, says the record"), "{text}");
        }
        // The supervisor's word goes before.
        let known = (ALTSTACK.to_owned(), "as it is".to_owned());
        let facts = Facts { self_check: vec![known], ..Facts::default() };
        assert!(text(&with, &facts).iter().all(|text| text.contains("as it is") && !text.contains("TOO SMALL")));
    }

    #[test]
    fn the_supervisor_goes_before() {
        let (arch, bytes) = samples::records()[0];
        let guest = |id| Task { id, name: format!("guest-{id}"), role: Role::Guest };
        let trusted = Task { id: 1002, name: "trusted".to_owned(), role: Role::Trusted };
        let mut facts = Facts { process: 1001, tasks: vec![guest(1001), trusted, guest(1003)], ..Facts::default() };
        facts.ended = Some(Ended { task: 1003, signal: 6 });
        let dump = read(bytes, &facts).unwrap();
        let threads: Vec<_> = dump.threads.iter().map(|t| (t.id, t.role, t.registers.is_ok())).collect();
        assert_eq!(threads, [(1003, Role::Guest, true), (1001, Role::Guest, false), (1002, Role::Trusted, false)]);
        assert_eq!((dump.process, dump.exception.as_ref().unwrap().thread), (1001, 1003));
        assert!(dump.missing[0].contains("signal 6"), "{:?}", dump.missing);
        // The end of a head, and nothing more.
        let head = bytes.windows(8).position(|window| window == b"\0ASCETIC").unwrap() + 16;
        let cut = read(&bytes[..head], &facts).unwrap();
        assert_eq!((cut.arch, cut.exception.as_ref().unwrap().signal), (arch, 6));
        assert!(cut.threads[0].registers.is_err());
    }
}
