//! An embedder's crashes: in the ways that it asks for, with what it and the guest add, and without what it takes out.

use std::cell::RefCell;
use std::hint::black_box;
use std::time::Duration;

use ascetic::policy::Policy;
use ascetic::sandbox::Config;
use ascetic::sys::Sysno;
use ascetic::untrusted;
use ascetic_tools::dump::collect::{Collector, Ways};
use ascetic_tools::dump::kernel::Pattern;
use ascetic_tools::dump::{Dump, Origin, Role, Way};

const POLICY: Policy = Policy::new().direct(Sysno::getppid);
const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));

/// What must be in no dump that it is taken out of.
static SECRET: [u8; 32] = *b"the secret of this guest's stack";

extern "C" fn crashes(_: usize) -> i32 {
    let secret = black_box(SECRET);
    untrusted::annotate("stage", "reading");
    // SAFETY: refused, so nobody looks at the arguments.
    let _ = unsafe { untrusted::call(Sysno::openat, [1, 2, 3, 0, 0, 0]) };
    // SAFETY: none: this is the bug.
    unsafe { black_box(0x1234 as *mut u8).write_volatile(1) };
    black_box(secret)[0].into()
}

/// What is in memory that nothing points to but a register of the guest that crashes.
static OBJECT: [u8; 64] = *b"0123456789abcdef the object that the guest was working on, 64 b.";

extern "C" fn crashes_with_pointer(at: usize) -> i32 {
    // SAFETY: none: this is the bug.
    unsafe { std::arch::asm!("mov [rcx], al", in("rcx") 0x1234usize, in("r12") at + 16) };
    0
}

/// A secret that is in memory once: this computes it, and keeps none of it.
fn secret_byte(i: usize) -> u8 {
    (black_box(i) * 37 + 11) as u8 ^ 0x5a
}
const SECRET_LEN: usize = 48;

extern "C" fn ends(_: usize) -> i32 {
    3
}

extern "C" fn spins(_: usize) -> i32 {
    loop {
        std::hint::spin_loop();
    }
}

fn has_secret(dump: &Dump) -> bool {
    dump.memory.iter().any(|memory| memory.bytes.windows(SECRET.len()).any(|window| *window == SECRET))
}

/// One test: it changes this process's folder, where cores go.
#[test]
fn an_embedder_gets_what_it_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    std::env::set_current_dir(&folder).unwrap();
    let files = matches!(Pattern::in_force(), Ok(Pattern::File(name)) if !name.starts_with('/'));
    let ways = Ways { core: files, ..Ways::ALL };
    let told = RefCell::new(Vec::new());
    let collector = Collector::new(ways)
        .folder(folder.path())
        .watcher(env!("CARGO_BIN_EXE_ascetic-watch"))
        .annotate("version", "1.2")
        .tell(|dump| told.borrow_mut().push(dump.way));
    let config = Config::new(&POLICY);
    let (outcome, crash) = collector.run(&config, crashes, 0, PATIENCE).unwrap();
    let crash = crash.unwrap_or_else(|| panic!("{outcome:?}"));
    assert_eq!(crash.missing, [""; 0]);
    let expected: &[Way] = if files { &[Way::Record, Way::Core, Way::Ptrace] } else { &[Way::Record, Way::Ptrace] };
    assert_eq!(*told.borrow(), expected);
    let mut places = Vec::new();
    for (dump, file) in crash.dumps.iter().zip(&crash.files) {
        let happened = dump.exception.as_ref().unwrap();
        assert_eq!((happened.signal, happened.address), (11, 0x1234), "{:?}", dump.way);
        places.push((happened.pc, happened.thread, dump.threads[0].registers.clone().unwrap().sp(dump.arch)));
        assert!(
            dump.annotations.contains(&(Origin::Supervisor, "version".to_owned(), "1.2".to_owned())),
            "{:?}",
            dump.way
        );
        assert!(dump.threads.iter().any(|thread| thread.role == Role::Trusted), "{:?}", dump.way);
        assert!(dump.modules.iter().any(|module| std::env::current_exe().is_ok_and(|exe| *module.path == exe)));
        assert!(has_secret(dump), "{:?}", dump.way);
        for end in ["dmp", "core", "json", "txt"] {
            let file = format!("{}.{end}", file.display());
            assert!(std::path::Path::new(&file).is_file(), "{file}");
        }
    }
    places.dedup();
    assert_eq!(places.len(), 1, "{places:x?}");
    let record = &crash.dumps[0];
    assert!(record.annotations.contains(&(Origin::Guest, "stage".to_owned(), "reading".to_owned())));
    assert_eq!(record.refusals.len(), 1, "{:?}", record.refusals);
    for name in ["alternate stack", "core limit", "cores go", "dumpable", "yama/ptrace_scope"] {
        assert!(record.self_check.iter().any(|(known, _)| known == name), "{name}");
    }
    assert!(record.self_check.iter().all(|(_, found)| !found.contains("TOO SMALL")), "{:?}", record.self_check);

    // What a register points to is in all dumps, and in all that is written of them.
    let collector = Collector::new(ways).folder(folder.path()).watcher(env!("CARGO_BIN_EXE_ascetic-watch"));
    // The kernel's core has no memory that is a file's.
    let heap = OBJECT.to_vec();
    let (_, pointing) = collector.run(&config, crashes_with_pointer, heap.as_ptr() as usize, PATIENCE).unwrap();
    let pointing = pointing.unwrap();
    assert_eq!(pointing.dumps.len(), expected.len());
    for (dump, file) in pointing.dumps.iter().zip(&pointing.files) {
        assert_eq!(dump.read(heap.as_ptr() as u64, 64), OBJECT, "{:?}", dump.way);
        for (end, what) in
            [("dmp", &OBJECT[..]), ("core", &OBJECT[..]), ("txt", b" the object that"), ("json", b"20746865")]
        {
            let bytes = std::fs::read(format!("{}.{end}", file.display())).unwrap();
            assert!(bytes.windows(what.len()).any(|window| window == what), "{:?}: {end}", dump.way);
        }
    }

    // What is taken out is in nothing that is written, and what is not, is where that way has it.
    for taken_out in [true, false] {
        // the other way round, this process would have copies of it
        let folder = tempfile::tempdir().unwrap();
        let secret: Vec<u8> = (0..black_box(SECRET_LEN)).map(secret_byte).collect();
        let at = secret.as_ptr() as u64;
        let collector = Collector::new(ways).folder(folder.path()).watcher(env!("CARGO_BIN_EXE_ascetic-watch"));
        let mut collector = collector.fetch(256 << 20).whole_core();
        if taken_out {
            collector = collector.redact(at..at + SECRET_LEN as u64);
        }
        let (_, crash) = collector.run(&config, crashes_with_pointer, at as usize, PATIENCE).unwrap();
        let crash = crash.unwrap();
        assert_eq!(crash.dumps.len(), expected.len());
        let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 4 * expected.len() + usize::from(ways.core));
        for file in files {
            let bytes = std::fs::read(&file).unwrap();
            let found = bytes.windows(SECRET_LEN).any(|window| (0..SECRET_LEN).all(|i| window[i] == secret_byte(i)));
            let is = |ends: &[&str]| ends.iter().any(|end| file.extension().is_some_and(|is| is == *end));
            assert_eq!(found, is(&["dmp", "core", "kernel"]) && !taken_out, "{}", file.display());
            // Nor is a part of it in the text; a minidump has the JSON, too.
            let text = String::from_utf8_lossy(&bytes);
            let part: String = (16..24).map(|i| format!("{:02x}", secret_byte(i))).collect();
            assert_eq!(text.contains(&part), is(&["dmp", "json", "txt"]) && !taken_out, "{}", file.display());
        }
        assert!(std::fs::read_dir(".").unwrap().all(|entry| !entry.unwrap().file_name().eq("core")));
    }

    // What is taken out is in no dump, and no dump has more than was asked for.
    let stack = places[0].2.unwrap();
    let watcher = env!("CARGO_BIN_EXE_ascetic-watch");
    let collector = Collector::new(ways).watcher(watcher).redact(stack..stack + (1 << 20)).cap(100);
    let (_, again) = collector.run(&config, crashes, 0, PATIENCE).unwrap();
    for dump in again.unwrap().dumps {
        let bytes: usize = dump.memory.iter().map(|memory| memory.bytes.len()).sum();
        assert!(bytes <= 100 && !dump.missing.is_empty(), "{:?}: {bytes}", dump.way);
    }
    // Who does not crash leaves nothing.
    for (guest, patience) in [(ends as extern "C" fn(usize) -> i32, PATIENCE), (spins, Some(Duration::from_millis(50)))]
    {
        let (outcome, crash) = collector.run(&config, guest, 0, patience).unwrap();
        assert!(crash.is_none(), "{outcome:?}: {crash:?}");
    }
}

#[test]
fn a_range_is_taken_out_of_memory() {
    let mut dump = Dump::new(ascetic_tools::dump::Arch::X86_64, Way::Record);
    dump.add_memory(0x1000, &[1; 0x1000]);
    dump.redact(&(0x1100..0x1200));
    let pieces: Vec<_> = dump.memory.iter().map(|memory| (memory.address, memory.bytes.len())).collect();
    assert_eq!(pieces, [(0x1000, 0x100), (0x1200, 0xe00)]);
    dump.redact(&(0..u64::MAX));
    assert!(dump.memory.is_empty());
}
