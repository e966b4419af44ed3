//! What is known of a crash besides the record: the kernel's core, which must say the same, and calls that nobody allowed.

use super::faults::{FAULTS, Fault, calls, short_file};
use super::program::has_dispatch;
use super::*;
use ascetic::error::Error;
use ascetic::fault::record::Kind;
use ascetic::sandbox::{Core, Hook};
use ascetic::signal::{SIGKILL, SIGSYS, SigInfo};
use ascetic::sys::{self, Errno};
use core::ffi::CStr;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32};
use freestanding::files::{Path, Scratch, path};
use freestanding::{call, mechanisms};

pub const CASES: &[Case] = &[
    case("dump_denied_call", denied),
    case("dump_denied_call_without_dispatch_kernel", denied_off),
    case("dump_memory_by_t", || memory(&memory_config())),
    case("dump_memory_by_t_of_no_dumpable_process", memory_not_dumpable),
    case("dump_memory_by_t_in_empty_chroot", memory_in_chroot),
    case("dump_memory_by_t_of_threads", memory_of_threads),
    case("dump_memory_by_t_needs_a_reporter", memory_of_nobody),
    case("dump_memory_by_t_of_a_guest_that_cheats", memory_of_cheats),
    case("dump_core_limits", limits),
    case("dump_core_beyond_the_hard_limit", beyond),
    case("dump_core_agrees", || agree(Pattern::File, "")),
    case("dump_core_of_trusted_only_if_asked", trusted),
    case("dump_core_in_chroot", in_chroot),
    case("dump_core_to_pipe", || agree(Pattern::Pipe, "")),
    case("dump_core_of_another_uid", other_uid),
    case("dump_core_of_no_dumpable_process", not_dumpable),
];

/// After all others: Yama does not go back from there before the next boot.
pub const LAST: &[Case] = &[case("dump_memory_by_t_of_another_uid", memory_of_other_uid)];

const POLICY: Policy = Policy::new().direct(Sysno::getppid);

fn config() -> Config<'static> {
    Config {
        keep: &[1, 2],
        core: Some(Core { limit: usize::MAX, filter: None, trusted: false }),
        ..Config::new(&POLICY)
    }
}

/// Skips where the policy of the machine or of its administrator keeps a process from having cores.
fn possible() {
    if sys::limit(0, sys::RLIMIT_CORE, None).is_ok_and(|[_, hard]| hard < usize::MAX) {
        skip("the hard limit of cores is finite");
    }
}

fn denied() {
    let config = Config { report_denied: true, ..config() };
    if !has_dispatch() {
        match sandbox::spawn(&config, calls, 0) {
            Err(Error::NoDispatch) => skip("no syscall user dispatch on this kernel"),
            other => check!(false, "{:?}", other.map(|_| ())),
        }
    }
    let quiet = Config { core: None, ..config };
    must_crash(&quiet, calls, 0, SIGSYS, |record| {
        let fault = record.fault.unwrap();
        check!(
            record.complete && record.class() == ascetic::fault::classify::Class::DeniedCall,
            "{:?}",
            record.class()
        );
        check!(fault.nr == Sysno::dup3 as u64 && fault.args[..3] == [11, 12, 13], "{fault:?}");
        check!(record.backtrace().next() == Some(fault.pc));
        // On i386 the sixth argument is in the frame pointer.
        check!(cfg!(target_arch = "x86") || record.backtrace().nth(1).is_some());
        // The program counter is behind the call's instruction. There is a section for each page.
        let byte = |at: u64| {
            let of = |(from, bytes): (u64, &[u8])| bytes.get(usize::try_from(at.checked_sub(from)?).ok()?).copied();
            record.memory(Kind::Code).find_map(of)
        };
        let insn = [byte(fault.pc - 2), byte(fault.pc - 1)];
        let calls = [[0x0f, 0x05], [0xcd, 0x80], [0x0f, 0x34]];
        check!(calls.iter().any(|call| call.map(Some) == insn), "{insn:?}");
    });
}

/// Without it, the kernel says SIGKILL, and nobody says why.
fn denied_off() {
    let mut sandbox = spawn(&Config::new(&POLICY), calls, 0);
    check!(sandbox.wait(Some(PATIENCE)).guest.is_signal(SIGKILL));
    check!(sandbox.record(&mut [0; 64]).is_empty());
}

extern "C" fn ends(_: usize) -> i32 {
    7
}

/// Pages of [`room`], of which the one in the middle cannot be read.
const ROOM: usize = 41;
const PAGE: usize = 4096;
/// What the guest alone writes, at the end of its room.
const LATE: u64 = 0x6c61_7465;

/// Memory with a hole: the numbers of its words, but for a page that allows nothing.
fn room() -> usize {
    let at = sys::map_private(ROOM * PAGE, sys::PROT_READ | sys::PROT_WRITE).unwrap();
    for i in 0..ROOM * PAGE / 8 {
        // SAFETY: the mapping is this function's.
        unsafe { (at as *mut u64).wrapping_add(i).write_volatile(i as u64) };
    }
    // SAFETY: as above.
    check!(unsafe { sys::mprotect(at + ROOM / 2 * PAGE, PAGE, 0) }.is_ok());
    at
}

extern "C" fn writes_and_crashes(room: usize) -> i32 {
    // SAFETY: the last word of the room; and none: the fault is the point.
    unsafe {
        ((room + ROOM * PAGE - 8) as *mut u64).write_volatile(LATE);
        core::ptr::without_provenance_mut::<u8>(0x18).write_volatile(0);
    }
    0
}

fn memory_config() -> Config<'static> {
    Config { core: None, ..config() }
}

/// T writes what the supervisor asks for, up to a hole and behind it; and neither before the end nor after it.
fn memory(base: &Config<'_>) {
    others_are_spared();
    use ascetic::broker::NoReader;
    static SEEN: AtomicU32 = AtomicU32::new(0);
    static mut INTO: [u8; (ROOM + 1) * PAGE] = [0; (ROOM + 1) * PAGE];
    let at = room();
    let early = |sandbox: &Sandbox<'_>| {
        check!(sandbox.read_memory(at, &mut [0; 8]) == Err(NoReader::NotNow));
        if JAILED.load(Ordering::Relaxed) {
            // SAFETY: a path.
            check!(unsafe { call(Sysno::umount2, [c"/proc".as_ptr() as usize, 0]) }.is_ok());
        }
    };
    let look = |sandbox: &Sandbox<'_>| {
        let into = &raw mut INTO;
        // SAFETY: the only reference, in a program of one thread.
        let into = unsafe { &mut *into };
        let is = |address: usize, bytes: &[u8]| {
            let word = |i: usize| if i == ROOM * PAGE / 8 - 1 { LATE } else { i as u64 };
            bytes.iter().enumerate().all(|(i, byte)| {
                let offset = address + i - at;
                word(offset / 8).to_le_bytes()[offset % 8] == *byte
            })
        };
        let half = ROOM / 2 * PAGE;
        let (before, behind) = (at + 13, at + half + PAGE);
        let start = sys::now();
        let read = sandbox.read_memory(before, into);
        check!(read == Ok(half - 13), "{read:?} instead of {}", half - 13);
        check!(is(before, &into[..half - 13]));
        check!(sandbox.read_memory(at + half, into) == Ok(0));
        check!(sandbox.read_memory(at + half + PAGE - 1, into) == Ok(0));
        let rest = ROOM * PAGE - half - PAGE;
        check!(sandbox.read_memory(behind, &mut into[..rest]) == Ok(rest));
        check!(is(behind, &into[..rest]));
        check!(sandbox.read_memory(behind + 5, &mut into[..1]) == Ok(1) && is(behind + 5, &into[..1]));
        check!(sandbox.read_memory(usize::MAX - 100, into) == Ok(0) && sandbox.read_memory(0, into) == Ok(0));
        check!(sandbox.read_memory(at, &mut []) == Ok(0));
        note!("{} KiB in {} us", (half + rest) / 1024, (sys::now() - start) / 1000);
        SEEN.fetch_add(1, Ordering::Relaxed);
    };
    let config = Config { born: Some(Hook(&early)), dying: Some(Hook(&look)), ..*base };
    let mut sandbox = spawn(&config, writes_and_crashes, at);
    let outcome = sandbox.wait(Some(PATIENCE));
    check!(outcome.guest.is_signal(11) && outcome.cause == sandbox::Cause::Guest && outcome.left == 0, "{outcome:?}");
    check!(SEEN.load(Ordering::Relaxed) == 1);
    check!(sandbox.read_memory(at, &mut [0; 8]) == Err(NoReader::NotNow));
    check!(Record::decode(sandbox.record(&mut [0u8; RECORD_MAX])).is_some_and(|record| record.complete));
    check!(sandbox.refusals().1 == 0);
}

fn memory_not_dumpable() {
    // SAFETY: concerns who may look at this process.
    check!(unsafe { sys::prctl(sys::PR_SET_DUMPABLE, 0) }.is_ok());
    memory(&memory_config());
}

/// Whether there is to be no /proc either, once the sandbox is made.
static JAILED: AtomicBool = AtomicBool::new(false);

fn memory_in_chroot() {
    others_are_spared(); // before anything is mounted
    in_qemu("changes the root folder: in QEMU only");
    let empty = c"/tmp/empty";
    // SAFETY: strings that end in NUL.
    unsafe {
        let _ = call(Sysno::mkdir, [empty.as_ptr() as usize, 0o755]);
        let _ = call(Sysno::mkdir, [c"/tmp/empty/proc".as_ptr() as usize, 0o755]);
        let (kind, at) = (c"proc".as_ptr() as usize, c"/tmp/empty/proc".as_ptr() as usize);
        check!(call(Sysno::mount, [kind, at, kind, 0, 0]).is_ok());
        check!(call(Sysno::chroot, [empty.as_ptr() as usize]).is_ok());
        check!(call(Sysno::chdir, [c"/".as_ptr() as usize]).is_ok());
    }
    JAILED.store(true, Ordering::Relaxed);
    memory(&memory_config());
}

fn memory_of_other_uid() {
    in_qemu("needs root: in QEMU only");
    let scope = c"/proc/sys/kernel/yama/ptrace_scope";
    if let Ok(fd) = sys::open_to_write(scope) {
        check!(sys::write(fd, b"3") == Ok(1));
        sys::close(fd);
    }
    become_nobody();
    memory(&memory_config());
}

/// Of the thread that crashes, while another goes on.
fn memory_of_threads() {
    others_are_spared();
    const THREADS: Policy = super::program::DIRECT.threads(8);
    static SEEN: AtomicU32 = AtomicU32::new(0);
    let word = 0x1122_3344_5566_7788u64;
    let at = (&raw const word).addr();
    let look = |sandbox: &Sandbox<'_>| {
        let mut into = [0; 8];
        let read = sandbox.read_memory(at, &mut into);
        check!(read == Ok(8) && u64::from_le_bytes(into) == word, "{read:?} {into:x?}");
        SEEN.fetch_add(1, Ordering::Relaxed);
    };
    let config = Config { policy: &THREADS, dying: Some(Hook(&look)), ..memory_config() };
    // Often: the two meet in many ways.
    for i in 1..=10 {
        let mut sandbox = spawn(&config, super::threads::two_fault, 0);
        let outcome = sandbox.wait(Some(PATIENCE));
        check!(outcome.guest.is_signal(11) && outcome.left == 0, "{outcome:?}");
        check!(SEEN.load(Ordering::Relaxed) == i);
        let mut buffer = [0u8; RECORD_MAX];
        check!(Record::decode(sandbox.record(&mut buffer)).is_some_and(|record| record.complete));
    }
}

/// Whose reporter did not run, leaves nobody who waits: said at once, and no end is kept up by it.
fn memory_of_nobody() {
    use ascetic::broker::NoReader;
    let look = |sandbox: &Sandbox<'_>| {
        let start = sys::now();
        check!(sandbox.read_memory(0x1000, &mut [0; 8]) == Err(NoReader::NobodyWaits));
        check!(sys::now() - start < 100_000_000);
    };
    let config = Config { dying: Some(Hook(&look)), ..memory_config() };
    must_exit(&config, ends, 0, 7);
    check!(run(&config, calls, 0).guest.is_signal(SIGKILL));
    let mut sandbox = spawn(&config, spins, 0);
    check!(sandbox.kill().cause == sandbox::Cause::Killed);
}

/// A guest that leaves a request of its own, or has its T wait before its time, hurts itself at most.
fn memory_of_cheats() {
    others_are_spared();
    use ascetic::abi::NR_STAY;
    extern "C" fn stays(_: usize) -> i32 {
        // SAFETY: nobody answers.
        unsafe { ascetic::untrusted::call_raw(NR_STAY, [0; 6]) };
        7
    }
    let look = |sandbox: &Sandbox<'_>| {
        let _ = sandbox.read_memory(0x1000, &mut [0; 8]);
    };
    let config = Config { dying: Some(Hook(&look)), ..memory_config() };
    let mut sandbox = spawn(&config, stays, 0);
    let outcome = sandbox.wait(Some(core::time::Duration::from_millis(300)));
    check!(outcome.cause == sandbox::Cause::Deadline && outcome.left == 0, "{outcome:?}");
    // The socket for memory is the guest's, too: what it leaves there is not taken for memory.
    extern "C" fn floods(_: usize) -> i32 {
        let socket = ascetic::experiment::first_own_fd() + 6;
        for _ in 0..60 {
            let _ = sys::write(socket, &[0xaa; 8]);
        }
        // SAFETY: none: the fault is the point.
        unsafe { core::ptr::without_provenance_mut::<u8>(0x18).write_volatile(0) };
        0
    }
    static SEEN: AtomicU32 = AtomicU32::new(0);
    let word = 0x1122_3344_5566_7788u64;
    let at = (&raw const word).addr();
    let look = |sandbox: &Sandbox<'_>| {
        let mut into = [0; 8];
        check!(sandbox.read_memory(0x10, &mut into) == Ok(0));
        check!(sandbox.read_memory(at, &mut into) == Ok(8) && u64::from_le_bytes(into) == word, "{into:x?}");
        SEEN.fetch_add(1, Ordering::Relaxed);
    };
    let config = Config { dying: Some(Hook(&look)), ..memory_config() };
    check!(run(&config, floods, 0).guest.is_signal(11) && SEEN.load(Ordering::Relaxed) == 1);
}

/// What is asked for is in force: seen at the end, when the guest is gone and T still is there.
fn limits() {
    possible();
    static SEEN: AtomicU32 = AtomicU32::new(0);
    let look = |sandbox: &Sandbox<'_>| {
        let (t, u) = sandbox.pids();
        check!(sys::limit(t, sys::RLIMIT_CORE, None).is_ok_and(|[soft, _]| soft == 0));
        check!(sandbox.tasks().any(|ids| ids.0 == t), "{u}");
        let mut text = [0u8; 16];
        let name = proc(t, b"coredump_filter");
        let fd = sys::open(CStr::from_bytes_until_nul(&name).unwrap()).unwrap();
        let n = sys::read(fd, &mut text).unwrap();
        sys::close(fd);
        check!(text[..n] == *b"00000033\n" || text[..n] == *b"00000031\n", "{:?}", &text[..n]);
        SEEN.fetch_add(1, Ordering::Relaxed);
    };
    let core = Core { limit: 1 << 20, filter: Some(0x31), trusted: false };
    let config = Config { core: Some(core), dying: Some(Hook(&look)), ..config() };
    let mut sandbox = spawn(&config, ends, 0);
    check!(sandbox.wait(Some(PATIENCE)).guest == Status::Exited(7) && SEEN.load(Ordering::Relaxed) == 1);
}

/// `/proc/<pid>/<name>`, ending in NUL.
fn proc(pid: u32, name: &[u8]) -> [u8; 64] {
    let mut path = [0u8; 64];
    let mut digits = [0u8; 10];
    let (mut rest, mut n) = (pid, 0);
    while rest > 0 {
        digits[n] = b'0' + (rest % 10) as u8;
        (rest, n) = (rest / 10, n + 1);
    }
    let digits = digits[..n].iter().rev();
    let bytes = b"/proc/".iter().chain(digits).chain(b"/").chain(name);
    path.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    path
}

fn beyond() {
    let hard = 4096;
    sys::limit(0, sys::RLIMIT_CORE, Some([0, hard])).unwrap();
    match sandbox::spawn(&config(), ends, 0) {
        Err(Error::CoreLimit { limit: usize::MAX, hard: 4096 }) => {}
        other => check!(false, "{:?}", other.map(|_| ())),
    }
    let core = Some(Core { limit: hard, filter: None, trusted: false });
    must_exit(&Config { core, ..config() }, ends, 0, 7);
}

/// Where the kernel writes a core to.
#[derive(Clone, Copy, PartialEq)]
enum Pattern {
    /// A file, `core` in the folder where the process is.
    File,
    /// A program.
    Pipe,
}

/// Has the kernel write cores where the pattern says; skips where that would change somebody's machine.
fn set(pattern: Pattern) {
    let at = c"/proc/sys/kernel/core_pattern";
    let mut text = [0u8; 128];
    let fd = sys::open(at).unwrap();
    let n = sys::read(fd, &mut text).unwrap();
    sys::close(fd);
    if !emulated() && (text[..n] != *b"core\n" || pattern != Pattern::File) {
        skip("would change the machine's core_pattern: in QEMU only");
    }
    if emulated() {
        let to: &[u8] = if pattern == Pattern::File { b"core" } else { b"|/init save-core" };
        // The kernel waits for that many programs, so that the core is there when the process is gone.
        write(c"/proc/sys/kernel/core_pipe_limit", b"4");
        write(c"/proc/sys/kernel/core_uses_pid", b"0");
        write(at, to);
    }
}

fn write(at: &CStr, text: &[u8]) {
    let fd = sys::open_to_write(at).unwrap();
    check!(sys::write(fd, text) == Ok(text.len()), "{at:?}");
    sys::close(fd);
}

/// Where [`Pattern::Pipe`]'s program saves a core.
const SAVED: &CStr = c"/tmp/saved-core";

/// What the kernel has as its core helper run: saves its standard input.
pub fn save() {
    // SAFETY: a path.
    let fd = unsafe { call(Sysno::open, [SAVED.as_ptr() as usize, 0o1101, 0o644]) }.unwrap() as i32;
    let mut bytes = [0u8; 4096];
    while let Ok(n @ 1..) = sys::read(0, &mut bytes) {
        if sys::write(fd, &bytes[..n]) != Ok(n) {
            break;
        }
    }
}

fn remove(path: &CStr) -> sys::Result<usize> {
    // SAFETY: a path.
    unsafe { call(Sysno::unlink, [path.as_ptr() as usize]) }
}

/// Every fault: the core says what the record says. `cwd` is where the process is; empty for a folder of its own.
fn agree(pattern: Pattern, cwd: &str) {
    possible();
    set(pattern);
    let scratch = cwd.is_empty().then(Scratch::new);
    if scratch.is_some() {
        go_to(&path(""));
    }
    FAULTS.iter().for_each(|fault| one(fault, pattern));
}

fn go_to(path: &Path) {
    // SAFETY: a path.
    check!(unsafe { call(Sysno::chdir, [path.as_ptr() as usize]) }.is_ok());
}

fn one(fault: &Fault, pattern: Pattern) {
    let at = if pattern == Pattern::File { c"core" } else { SAVED };
    let _ = remove(at);
    let report_denied = has_dispatch();
    if fault.signal == SIGSYS && !report_denied {
        return note!("{}: no syscall user dispatch on this kernel", fault.name);
    }
    let short = short_file();
    let share = [short];
    let config = Config { share: &share, report_denied, ..config() };
    let mut sandbox = spawn(&config, fault.guest, short.0);
    let outcome = sandbox.wait(Some(PATIENCE));
    let cored = matches!(outcome.guest, Status::Signaled { core: true, .. });
    check!(outcome.guest.is_signal(fault.signal) && cored, "{}: {:?}", fault.name, outcome);
    let mut buffer = [0u8; RECORD_MAX];
    let record = Record::decode(sandbox.record(&mut buffer)).unwrap();
    let fd = sys::open(at);
    check!(fd.is_ok(), "{}: no core, {fd:?}", fault.name);
    compare(fault.name, &record, fd.unwrap_or(-1));
    sys::close(fd.unwrap_or(-1));
    check!(remove(at).is_ok());
    // SAFETY: the mapping was this function's.
    check!(unsafe { call(Sysno::munmap, [short.0, short.1]) }.is_ok());
}

/// `struct elf_prstatus` (`include/linux/elfcore.h`).
#[repr(C)]
struct PrStatus {
    siginfo: [i32; 3],
    cursig: i16,
    pending: [usize; 2],
    ids: [i32; 4],
    times: [[usize; 2]; 4],
    registers: [usize; CORE_REGISTERS.len()],
}

/// `struct user_regs_struct` (`arch/x86/include/asm/user_64.h`), by the names that a record has; "" for what is not compared.
#[cfg(target_arch = "x86_64")]
const CORE_REGISTERS: [&str; 27] = [
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "", "rip",
    "", "", "rsp", "", "", "", "", "", "", "",
];
/// `struct user_regs_struct` (`arch/x86/include/asm/user_32.h`), by the names that a record has; "" for what is not compared.
#[cfg(target_arch = "x86")]
const CORE_REGISTERS: [&str; 17] =
    ["ebx", "ecx", "edx", "esi", "edi", "ebp", "eax", "", "", "", "", "", "eip", "", "", "esp", ""];

/// The ELF header and a program header, as far as they are of use (`elf(5)`).
#[cfg(target_arch = "x86_64")]
mod elf {
    #[repr(C)]
    pub struct Header {
        pub ident: [u8; 24],
        pub entry: u64,
        pub phoff: u64,
    }
    #[repr(C)]
    pub struct Segment {
        pub kind: u32,
        pub flags: u32,
        pub offset: u64,
        pub addresses: [u64; 2],
        pub len: u64,
    }
}
/// The ELF header and a program header, as far as they are of use (`elf(5)`).
#[cfg(target_arch = "x86")]
mod elf {
    #[repr(C)]
    pub struct Header {
        pub ident: [u8; 24],
        pub entry: u32,
        pub phoff: u32,
    }
    #[repr(C)]
    pub struct Segment {
        pub kind: u32,
        pub offset: u32,
        pub addresses: [u32; 2],
        pub len: u32,
    }
}

fn get<T>(bytes: &[u8], at: usize) -> T {
    check!(at + size_of::<T>() <= bytes.len(), "{at} is beyond {}", bytes.len());
    // SAFETY: there are as many bytes; the structures here are numbers only.
    unsafe { bytes[at..].as_ptr().cast::<T>().read_unaligned() }
}

/// Compares what a core says of its first thread with a record.
fn compare(name: &str, record: &Record<'_>, core: i32) {
    const NT_PRSTATUS: u32 = 1;
    const NT_SIGINFO: u32 = 0x5349_4749;
    const PT_NOTE: u32 = 4;
    static mut ROOM: [u8; 32 << 10] = [0; 32 << 10];
    let room = &raw mut ROOM;
    // SAFETY: the only reference, in a program of one thread.
    let room = unsafe { &mut *room };
    let mut have = 0;
    while let Ok(n @ 1..) = sys::read(core, &mut room[have..]) {
        have += n;
    }
    let bytes = &room[..have];
    check!(bytes.starts_with(b"\x7fELF"), "{name}: {have}");
    let segment: elf::Segment = get(bytes, get::<elf::Header>(bytes, 0).phoff as usize);
    check!(segment.kind == PT_NOTE, "{name}");
    let (mut at, end) = (segment.offset as usize, (segment.offset + segment.len) as usize);
    let (mut status, mut info) = (None, None);
    while at + 12 <= end.min(have) {
        let [name, len, kind]: [u32; 3] = get(bytes, at);
        let desc = at + 12 + (name as usize).next_multiple_of(4);
        match kind {
            NT_PRSTATUS if status.is_none() => status = Some(get::<PrStatus>(bytes, desc)),
            NT_SIGINFO => info = Some(get::<SigInfo>(bytes, desc)),
            _ => {}
        }
        at = desc + (len as usize).next_multiple_of(4);
    }
    let (status, fault) = (status.unwrap(), record.fault.unwrap());
    check!(i32::from(status.cursig) == fault.sig, "{name}: {}", status.cursig);
    for (which, value) in CORE_REGISTERS.iter().zip(status.registers) {
        let said = record.registers().find(|(name, _)| name == which).map(|(_, value)| value as usize);
        check!(
            which.is_empty() || said == Some(value),
            "{name}: {which} is {value:#x} in the core, {said:x?} in the record"
        );
    }
    let info = info.unwrap();
    check!(info.signo == fault.sig, "{name}");
    // An i386 frame does not tell a SIGSYS that was sent from one that a call raised, so the call is not made again: the kernel
    // ends the guest by one that was sent.
    if fault.sent == 0 && !(cfg!(target_arch = "x86") && fault.sig == SIGSYS) {
        check!(info.addr as u64 == fault.addr, "{name}: {:#x} in the core, {:#x} in the record", info.addr, fault.addr);
    }
    const { assert!(offset_of!(PrStatus, registers) % size_of::<usize>() == 0) };
}

/// T's end leaves no core, unless that is asked for.
fn trusted() {
    possible();
    others_are_spared();
    t_spins();
    set(Pattern::File);
    let _scratch = Scratch::new();
    go_to(&path(""));
    for asked in [false, true] {
        let _ = remove(c"core");
        let core = Core { limit: usize::MAX, filter: None, trusted: asked };
        let mut config = Config { core: Some(core), ..config() };
        mechanisms::let_take_mailbox(&mut config);
        let mut sandbox = spawn(&config, mechanisms::takes_mailbox, 0);
        let outcome = sandbox.wait(Some(PATIENCE));
        check!(outcome.cause == sandbox::Cause::TrustedDied, "{outcome:?}");
        check!(matches!(outcome.trusted, Status::Signaled { signal: 11, core } if core == asked), "{outcome:?}");
        check!(remove(c"core").is_ok() == asked);
    }
}

fn in_qemu(why: &str) {
    if !emulated() {
        skip(why);
    }
}

/// A process whose root is a folder with nothing in it but /proc: the core is below that root.
fn in_chroot() {
    in_qemu("changes the root folder: in QEMU only");
    set(Pattern::File);
    let jail = c"/tmp/jail";
    // SAFETY: strings that end in NUL.
    unsafe {
        let _ = call(Sysno::mkdir, [jail.as_ptr() as usize, 0o755]);
        let _ = call(Sysno::mkdir, [c"/tmp/jail/proc".as_ptr() as usize, 0o755]);
        let (kind, at) = (c"proc".as_ptr() as usize, c"/tmp/jail/proc".as_ptr() as usize);
        check!(call(Sysno::mount, [kind, at, kind, 0, 0]).is_ok());
        check!(call(Sysno::chroot, [jail.as_ptr() as usize]).is_ok());
        check!(call(Sysno::chdir, [c"/".as_ptr() as usize]).is_ok());
    }
    FAULTS.iter().for_each(|fault| one(fault, Pattern::File));
}

/// Becomes somebody who is not root.
fn become_nobody() {
    const NOBODY: usize = 65534;
    #[cfg(target_arch = "x86_64")]
    let calls = [Sysno::setgid, Sysno::setuid];
    #[cfg(target_arch = "x86")]
    let calls = [Sysno::setgid32, Sysno::setuid32];
    // SAFETY: changes who this process is.
    calls.iter().for_each(|nr| check!(unsafe { call(*nr, [NOBODY]) }.is_ok()));
}

/// Another user's process, which has become that by `setuid` and so is not dumpable by itself.
fn other_uid() {
    in_qemu("needs root: in QEMU only");
    set(Pattern::File);
    let _scratch = Scratch::new();
    go_to(&path(""));
    // SAFETY: a path.
    check!(unsafe { call(Sysno::chmod, [path("").as_ptr() as usize, 0o777]) }.is_ok());
    become_nobody();
    FAULTS.iter().for_each(|fault| one(fault, Pattern::File));
}

/// A process that is not dumpable has no core unless it asks; the record is there all the same.
fn not_dumpable() {
    possible();
    set(Pattern::File);
    let _scratch = Scratch::new();
    go_to(&path(""));
    let fault = &FAULTS[0];
    // SAFETY: concerns who may look at this process.
    check!(unsafe { sys::prctl(sys::PR_SET_DUMPABLE, 0) }.is_ok());
    must_crash(&Config { core: None, ..config() }, fault.guest, 0, fault.signal, |record| check!(record.complete));
    check!(sys::open(c"core") == Err(Errno::ENOENT));
    one(fault, Pattern::File);
}

/// Kinds of crashes that are no fault of the guest's own: name, how it must end.
const OTHERS: [(&str, i32); 7] = [
    ("strict", 9),
    ("outside", 9),
    ("trusted", 11),
    ("trusted-outside", 9),
    ("handler", 11),
    ("threads", 11),
    ("threads-many", 11),
];

/// Prints what [`crash`] can show: name and signal.
pub fn crashes() {
    FAULTS.iter().for_each(|fault| println!("{} {}", fault.name, fault.signal));
    OTHERS.iter().for_each(|(name, signal)| println!("{name} {signal}"));
}

/// Shows one crash (`freestanding::crash`), of a process that is as the options say: `nobody`'s, `not-dumpable`; of a sandbox with
/// `no-core`, or one that any `tracer` may trace.
pub fn crash(name: &str, options: impl Iterator<Item = &'static str>) {
    const THREADS: Policy = super::program::DIRECT.threads(8);
    let short = short_file();
    let share = [short];
    let denied = has_dispatch();
    let mut base = Config { share: &share, report_denied: denied, core: freestanding::crash::core(), ..config() };
    for option in options.take_while(|option| !option.is_empty()) {
        match option {
            "nobody" => become_nobody(),
            // SAFETY: concerns who may look at this process.
            "not-dumpable" => check!(unsafe { sys::prctl(sys::PR_SET_DUMPABLE, 0) }.is_ok()),
            "no-core" => base.core = None,
            "tracer" => base.tracer = Some(-1),
            _ => check!(false, "no option {option}"),
        }
    }
    let show = |config: &Config<'_>, guest, arg| freestanding::crash::show(config, guest, arg, |_| ());
    if let Some(fault) = FAULTS.iter().find(|fault| fault.name == name) {
        show(&base, fault.guest, short.0);
        return;
    }
    match name {
        "strict" => show(&Config { report_denied: false, ..base }, calls, 0),
        "outside" => freestanding::crash::show(&base, spins, 0, |sandbox| {
            let _ = sys::kill(sandbox.pids().1, SIGKILL);
        }),
        "trusted" => {
            let core = base.core.map(|core| Core { trusted: true, ..core });
            let mut config = Config { core, report_denied: false, ..base };
            mechanisms::let_take_mailbox(&mut config);
            show(&config, mechanisms::takes_mailbox, 0)
        }
        "trusted-outside" => freestanding::crash::show(&base, spins, 0, |sandbox| {
            let _ = sys::kill(sandbox.pids().0, SIGKILL);
        }),
        "handler" => show(&Config { policy: &THREADS, ..base }, in_handler, 0),
        "threads" => show(&Config { policy: &THREADS, ..base }, super::threads::two_fault, 0),
        "threads-many" => show(&Config { policy: &THREADS, ..base }, super::threads::many_and_a_fault, 0),
        _ => {
            println!("error no crash {name}");
            freestanding::exit(2)
        }
    };
}

extern "C" fn spins(_: usize) -> i32 {
    loop {
        core::hint::spin_loop();
    }
}

/// A guest whose handler for a fault faults itself.
extern "C" fn in_handler(_: usize) -> i32 {
    extern "C" fn handler(_: i32) {
        // SAFETY: none: the fault is the point.
        unsafe { core::ptr::without_provenance_mut::<u8>(24).write_volatile(0) };
    }
    check!(super::signals::action(ascetic::signal::SIGFPE, handler as *const () as usize, 0, &[]).is_ok());
    FAULTS.iter().find(|fault| fault.name == "divide").map_or(1, |fault| (fault.guest)(0))
}
