//! Memory that the record does not have, read by T at the end, and dumps that are no files. A program of its own: it changes who
//! may look at this process.

use std::hint::black_box;
use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

use ascetic::policy::Policy;
use ascetic::sandbox::Config;
use ascetic_tools::dump::Dump;
use ascetic_tools::dump::collect::{Collector, Ways};

static POLICY: Policy = Policy::new();
const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));

/// Bytes of stack and of heap that a record alone does not have.
const MUCH: usize = 200 << 10;

/// What is at an offset in stack or heap.
fn mark(i: usize) -> u8 {
    (i / 256 + i) as u8
}

extern "C" fn crashes_deep_down(heap: usize) -> i32 {
    let mut stack = [0u8; MUCH];
    stack.iter_mut().enumerate().for_each(|(i, byte)| *byte = mark(i));
    // SAFETY: a word of the heap, which is told where the stack is; and none: this is the bug.
    unsafe {
        (heap as *mut usize).write_volatile(black_box(&mut stack).as_ptr() as usize);
        std::arch::asm!("mov [rcx], al", in("rcx") 0x1234usize);
    }
    black_box(&stack)[0].into()
}

/// A minidump goes where it is told to, without any file; who does not take it is named.
#[test]
fn a_minidump_can_go_to_a_descriptor() {
    use minidump::{Minidump, MinidumpException, MinidumpMemoryList};
    let config = Config { stack: 2 * MUCH, ..Config::new(&POLICY) };
    let file = tempfile::tempfile().unwrap();
    let descriptor = std::os::fd::OwnedFd::from(file.try_clone().unwrap());
    let collector = Collector::new(Ways::RECORD).minidump_to(std::fs::File::from(descriptor));
    let heap = [0u8; 64];
    let (_, crash) = collector.run(&config, crashes_deep_down, heap.as_ptr() as usize, PATIENCE).unwrap();
    assert_eq!(crash.unwrap().files.len(), 0);
    let mut bytes = Vec::new();
    (&file).seek(SeekFrom::Start(0)).unwrap();
    (&file).read_to_end(&mut bytes).unwrap();
    let minidump = Minidump::read(bytes).unwrap();
    let exception = minidump.get_stream::<MinidumpException<'_>>().unwrap();
    assert_eq!(
        (exception.raw.exception_record.exception_code, exception.raw.exception_record.exception_address),
        (11, 0x1234)
    );
    assert!(minidump.get_stream::<MinidumpMemoryList<'_>>().unwrap().iter().count() > 0);
    // Into a variable; nothing of a guest that does not crash.
    let mut bytes = Vec::new();
    let collector = Collector::new(Ways::RECORD).minidump_to(&mut bytes);
    assert!(collector.run(&config, ends, 0, PATIENCE).unwrap().1.is_none());
    drop(collector);
    assert!(bytes.is_empty());
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let collector = Collector::new(Ways::RECORD).minidump_to(full);
    let error = collector.run(&config, crashes_deep_down, heap.as_ptr() as usize, PATIENCE).unwrap_err().to_string();
    assert!(error.starts_with("minidump: "), "{error}");
}

extern "C" fn ends(_: usize) -> i32 {
    0
}

/// T reads whole stacks and heaps, and no more than is asked for; also of a process that nobody may look at.
#[test]
fn stacks_and_heaps_are_whole() {
    let heap: Vec<u8> = (0..MUCH).map(mark).collect();
    let at = heap.as_ptr() as u64;
    let config = Config { stack: 2 * MUCH, ..Config::new(&POLICY) };
    let folder = tempfile::tempdir().unwrap();
    let has = |dump: &Dump| {
        // In pieces, where the record has some of it.
        let byte = |address: u64| dump.read(address, 1).first().copied();
        let whole = |address: u64, from: usize| (from..MUCH).all(|i| byte(address + i as u64) == Some(mark(i)));
        let word = dump.word(at).filter(|_| dump.read(at, 8).len() == 8);
        (word.is_some_and(|stack| whole(stack, 0)), whole(at, 8))
    };
    let run = |collector: Collector<'_>| {
        let (_, crash) = collector.run(&config, crashes_deep_down, at as usize, PATIENCE).unwrap();
        crash.unwrap().dumps.remove(0)
    };
    assert_eq!(has(&run(Collector::new(Ways::RECORD))), (false, false));
    let all = run(Collector::new(Ways::RECORD).fetch(256 << 20).folder(folder.path()));
    assert_eq!(has(&all), (true, true));
    assert_eq!(all.missing, [""; 0]);
    let written = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let dumped: Vec<_> = written.filter(|path| path.extension().is_some_and(|end| end == "dmp")).collect();
    assert!(std::fs::metadata(&dumped[0]).unwrap().len() > 2 * MUCH as u64);
    let bytes = |dump: &Dump| dump.memory.iter().map(|memory| memory.bytes.len()).sum::<usize>();
    let some = run(Collector::new(Ways::RECORD).fetch(MUCH + (64 << 10)));
    assert_eq!((has(&some).1, bytes(&some) < 2 * MUCH, some.missing.len()), (false, true, 1), "{:?}", some.missing);
    let capped = run(Collector::new(Ways::RECORD).fetch(256 << 20).cap(300 << 10));
    assert!(bytes(&capped) <= 300 << 10 && bytes(&capped) > 250 << 10);
    // What is taken out stays out.
    let redacted = run(Collector::new(Ways::RECORD).fetch(256 << 20).redact(at + 4096..at + 8192));
    assert!(redacted.read(at + 4095, 9).len() == 1 && redacted.read(at + 8192, 9).len() == 9);
    // SAFETY: concerns who may look at this process.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) }, 0);
    assert!(has(&run(Collector::new(Ways::RECORD).fetch(256 << 20))).0);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) }, 0);
}
