//! Threads: through the explicit API, and by `clone` as a thread library makes it.

use super::program::{DIRECT, both, c, program, raw};
use super::*;
use ascetic::sys::{self, Errno};
use ascetic::untrusted;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use freestanding::threads::{self, CHILD_CLEARTID, CHILD_SETTID, PARENT_SETTID, SETTLS, STACK, THREAD};

pub const CASES: &[Case] = &[
    case("threads_join", || both(|| ends(joins, 0, 0))),
    case("threads_many", || both(|| ends(many, 0, 0))),
    case("threads_256", || both(|| must_exit(&program(&MOST), most, 0, 0))),
    case("threads_spread", || both(spread)),
    case("threads_limit", || both(|| ends(limit, 0, 0))),
    case("threads_in_a_row", || both(|| must_exit(&program(&TWO), row, row_length(), 0))),
    case("threads_in_a_row_off_shows_it", || {
        ascetic::experiment::NO_WAITS_FOR_ROOM.store(true, Ordering::Relaxed);
        both(|| must_exit(&program(&TWO), row, row_length(), 7));
    }),
    case("threads_outlive_their_creator", || both(|| ends(creator_exits, 0, 5))),
    case("threads_exit_group", || both(|| ends(group, 0, 44))),
    case("threads_fault_ends_all", || both(fault)),
    case("threads_in_the_record", || both(recorded)),
    case("threads_block_apart", || both(|| ends(blocking, 0, 0))),
    case("threads_clone_flags", || both(|| ends(flags, 0, 0))),
    case("threads_registers", || dispatched(|| ends(registers, 0, 0))),
    case("threads_storage", || dispatched(|| ends(storage, 0, 0))),
    case("threads_bad_storage", || dispatched(|| ends(bad_storage, 0, 0))),
];

const POLICY: Policy = DIRECT.threads(8);
const TWO: Policy = DIRECT.threads(2);
const MOST: Policy = DIRECT.threads(256);

fn ends(guest: extern "C" fn(usize) -> i32, arg: usize, code: u8) {
    must_exit(&program(&POLICY), guest, arg, code);
}

/// Runs what only a program with calls of its own can do.
fn dispatched(run: fn()) {
    both(|| ());
    if !raw() {
        skip("no syscall user dispatch on this kernel");
    }
    run();
}

/// Starts thread number `i`, in whichever way is on; its word is cleared when it ends.
pub fn start(i: usize, f: extern "C" fn(usize), arg: usize, word: &AtomicU32) -> sys::Result<usize> {
    word.store(1, Ordering::SeqCst);
    let at = word.as_ptr() as usize;
    // SAFETY: the stack is this thread's until the word is cleared.
    unsafe {
        if raw() {
            let flags = THREAD | CHILD_CLEARTID | PARENT_SETTID;
            let mut tid = 0u32;
            let result = threads::clone(flags, threads::stack(i), [&raw mut tid as usize, at], 0, f, arg);
            let result = Errno::from_ret(result as usize);
            check!(result.is_err() || result == Ok((&raw const tid).read_volatile() as usize));
            result
        } else {
            untrusted::thread::spawn(f, arg, threads::stack(i), at).map(|tid| tid as usize)
        }
    }
}

/// Waits for the end of a thread.
pub fn join(word: &AtomicU32) {
    threads::join(word, |at, tid| {
        // SAFETY: the word is the guest's.
        let _ = unsafe { c(Sysno::futex, [at, 0, tid as usize, 0]) };
    });
}

static SUM: AtomicUsize = AtomicUsize::new(0);

extern "C" fn adds(n: usize) {
    // SAFETY: no memory.
    check!(unsafe { c(Sysno::getppid, []) }.is_ok());
    SUM.fetch_add(n, Ordering::SeqCst);
}

fn open_descriptors() -> usize {
    let mut n = 0;
    for fd in 0..64 {
        // SAFETY: a descriptor that may not be open.
        if let Ok(dup) = unsafe { c(Sysno::dup, [fd]) } {
            n += 1;
            // SAFETY: the guest's own.
            let _ = unsafe { c(Sysno::close, [dup]) };
        }
    }
    n
}

extern "C" fn joins(_: usize) -> i32 {
    let before = open_descriptors();
    let word = AtomicU32::new(0);
    // SAFETY: no memory.
    let me = unsafe { c(Sysno::gettid, []) };
    for i in 1..=20 {
        let tid = start(0, adds, i, &word);
        check!(tid.is_ok() && tid != me, "{tid:?}");
        join(&word);
    }
    check!(SUM.load(Ordering::SeqCst) == 210);
    check!(open_descriptors() == before);
    0
}

/// The CPUs on which this thread's T may run: one, and that is U's, too.
fn place() -> usize {
    let mut set = [0usize; 128 / size_of::<usize>()];
    // SAFETY: the buffer is the guest's own.
    check!(unsafe { c(Sysno::sched_getaffinity, [0, size_of_val(&set), set.as_mut_ptr() as usize]) }.is_ok());
    let count: u32 = set.iter().map(|word| word.count_ones()).sum();
    check!(count == 1, "{count}");
    set.iter().position(|word| *word != 0).map_or(0, |i| i * usize::BITS as usize + set[i].trailing_zeros() as usize)
}

static PLACE: AtomicUsize = AtomicUsize::new(0);

extern "C" fn places(_: usize) {
    PLACE.store(place(), Ordering::SeqCst);
}

extern "C" fn spreads(_: usize) -> i32 {
    let word = AtomicU32::new(0);
    check!(start(0, places, 0, &word).is_ok());
    join(&word);
    check!(PLACE.load(Ordering::SeqCst) != place());
    0
}

/// A second thread has a CPU of its own, although the supervisor waits on that of the first.
fn spread() {
    const POLICY: Policy = DIRECT.threads(2).direct(Sysno::sched_getaffinity);
    if sys::affinity().is_ok_and(|set| set.iter().count() < 2) {
        skip("one CPU only");
    }
    must_exit(&program(&POLICY), spreads, 0, 0);
}

extern "C" fn many(_: usize) -> i32 {
    let words: [AtomicU32; 7] = [const { AtomicU32::new(0) }; 7];
    for _ in 0..20 {
        for (i, word) in words.iter().enumerate() {
            // A pair that ended a moment ago may not be buried yet.
            while start(i, adds, 1, word) == Err(Errno::EAGAIN) {}
        }
        words.iter().for_each(join);
    }
    check!(SUM.load(Ordering::SeqCst) == 140);
    0
}

static GO: AtomicU32 = AtomicU32::new(0);

/// Waits for [`GO`].
extern "C" fn waits(n: usize) {
    while GO.load(Ordering::SeqCst) == 0 {
        // SAFETY: the word is the guest's.
        let _ = unsafe { c(Sysno::futex, [GO.as_ptr() as usize, 0, 0, 0]) };
    }
    SUM.fetch_add(n, Ordering::SeqCst);
}

fn release() {
    GO.store(1, Ordering::SeqCst);
    // SAFETY: the word is the guest's.
    check!(unsafe { c(Sysno::futex, [GO.as_ptr() as usize, 1, i32::MAX as usize]) }.is_ok());
}

extern "C" fn most(_: usize) -> i32 {
    static WORDS: [AtomicU32; 255] = [const { AtomicU32::new(0) }; 255];
    for (i, word) in WORDS.iter().enumerate() {
        let tid = start(i, waits, 1, word);
        check!(tid.is_ok(), "{i}: {tid:?}");
    }
    check!(start(255, adds, 1, &AtomicU32::new(0)) == Err(Errno::EAGAIN));
    release();
    WORDS.iter().for_each(join);
    check!(SUM.load(Ordering::SeqCst) == 255);
    0
}

extern "C" fn limit(_: usize) -> i32 {
    let words: [AtomicU32; 8] = [const { AtomicU32::new(0) }; 8];
    for (i, word) in words.iter().enumerate().take(7) {
        check!(start(i, waits, 1, word).is_ok());
    }
    check!(start(7, waits, 1, &words[7]) == Err(Errno::EAGAIN));
    release();
    words[..7].iter().for_each(join);
    // What is over can be used again.
    while start(0, adds, 1, &words[0]) == Err(Errno::EAGAIN) {}
    join(&words[0]);
    check!(SUM.load(Ordering::SeqCst) == 8);
    0
}

fn row_length() -> usize {
    if emulated() { 300 } else { 2000 }
}

/// There is room for one more thread, and always for the next when one was joined.
extern "C" fn row(length: usize) -> i32 {
    let word = AtomicU32::new(0);
    for _ in 0..length {
        match start(0, adds, 1, &word) {
            Ok(_) => join(&word),
            Err(errno) => {
                check!(errno == Errno::EAGAIN);
                return 7;
            }
        }
    }
    0
}

/// The first thread ends; another goes on, and is the last. The sandbox's status is the first's.
extern "C" fn creator_exits(_: usize) -> i32 {
    extern "C" fn outlives(_: usize) {
        for _ in 0..200 {
            // SAFETY: no memory.
            check!(unsafe { c(Sysno::getppid, []) }.is_ok());
        }
        check!(open_descriptors() > 0);
    }
    static WORD: AtomicU32 = AtomicU32::new(0);
    check!(start(0, outlives, 1, &WORD).is_ok());
    // SAFETY: does not return.
    let _ = unsafe { c(Sysno::exit, [5]) };
    1
}

extern "C" fn group(_: usize) -> i32 {
    extern "C" fn ends_all(_: usize) {
        // SAFETY: does not return.
        let _ = unsafe { c(Sysno::exit_group, [44]) };
    }
    static WORD: AtomicU32 = AtomicU32::new(0);
    check!(start(0, waits, 1, &WORD).is_ok());
    check!(start(1, ends_all, 1, &WORD).is_ok());
    waits(1);
    1
}

fn fault() {
    extern "C" fn guest(_: usize) -> i32 {
        extern "C" fn faults(_: usize) {
            // SAFETY: none: the fault is the point.
            unsafe { core::ptr::without_provenance_mut::<u8>(16).write_volatile(0) };
        }
        static WORD: AtomicU32 = AtomicU32::new(0);
        check!(start(0, faults, 1, &WORD).is_ok());
        waits(1);
        1
    }
    let config = program(&POLICY);
    must_crash(&config, guest, 0, ascetic::signal::SIGSEGV, |record| {
        check!(record.fault.unwrap().addr == 16);
    });
}

const MARK: usize = 0x1234_5678;

/// A guest of which one thread faults; of the others, one computes and two wait in a call.
pub extern "C" fn many_and_a_fault(_: usize) -> i32 {
    extern "C" fn computes(_: usize) {
        GO.fetch_add(2, Ordering::SeqCst);
        // SAFETY: changes nothing.
        unsafe { core::arch::asm!("2: pause", "jmp 2b", in("edi") MARK) };
    }
    extern "C" fn waits(_: usize) {
        static NEVER: AtomicU32 = AtomicU32::new(0);
        GO.fetch_add(2, Ordering::SeqCst);
        loop {
            // SAFETY: the word is the guest's.
            let _ = unsafe { c(Sysno::futex, [NEVER.as_ptr() as usize, 0, 0, 0]) };
        }
    }
    extern "C" fn faults(_: usize) {
        while GO.load(Ordering::SeqCst) != 6 {
            core::hint::spin_loop();
        }
        faults_at(16);
    }
    static WORDS: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];
    for (i, f) in [computes, waits, faults].into_iter().enumerate() {
        check!(start(i, f, 0, &WORDS[i]).is_ok());
    }
    waits(0);
    1
}

extern "C" fn faults_at(at: usize) {
    // SAFETY: none: the fault is the point.
    unsafe { core::ptr::without_provenance_mut::<u8>(at).write_volatile(0) };
}

/// A guest of which two threads fault at once, at the same address.
pub extern "C" fn two_fault(_: usize) -> i32 {
    extern "C" fn together(_: usize) {
        GO.fetch_add(1, Ordering::SeqCst);
        while GO.load(Ordering::SeqCst) < 2 {
            core::hint::spin_loop();
        }
        faults_at(16);
    }
    static WORD: AtomicU32 = AtomicU32::new(0);
    check!(start(0, together, 0, &WORD).is_ok());
    together(0);
    1
}

/// All threads are in the record.
fn recorded() {
    must_crash(&program(&POLICY), many_and_a_fault, 0, ascetic::signal::SIGSEGV, |record| {
        check!(record.complete && record.fault.unwrap().addr == 16);
        let names = record.arch.registers();
        let at = |name| names.iter().position(|n| *n == name).unwrap();
        let (di, sp) = if names.len() > 20 { (at("rdi"), at("rsp")) } else { (at("edi"), at("esp")) };
        let (mut pairs, mut marked, mut stacks) = (0, 0, 0);
        for (thread, registers) in record.threads() {
            check!(thread.stopped == 1 && thread.pair < 3 && thread.tid != 0, "{thread:?}");
            pairs |= 1 << thread.pair;
            let mut values = [0; 32];
            check!(values.iter_mut().zip(registers).map(|(to, from)| *to = from).count() == names.len());
            marked += u32::from(values[di] == MARK as u64);
            let below = |(from, bytes): &(u64, &[u8])| {
                from.wrapping_add(bytes.len() as u64) > values[sp] && *from <= values[sp]
            };
            stacks += usize::from(record.memory(ascetic::fault::record::Kind::Stack).any(|m| below(&m)));
        }
        check!((pairs, marked, stacks) == (0b111, 1, 3), "{pairs:b} {marked} {stacks}");
    });
}

/// Two threads can sit in blocking calls without blocking each other, or a third.
extern "C" fn blocking(_: usize) -> i32 {
    static WORDS: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
    static ENDS: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];
    extern "C" fn reads(i: usize) {
        let mut byte = [0u8; 1];
        let fd = ENDS[2 * i].load(Ordering::SeqCst) as usize;
        let iov = [byte.as_mut_ptr() as usize, 1];
        // SAFETY: the buffer is the guest's own. Through T, by a call that strict mode does not allow U.
        check!(unsafe { c(Sysno::readv, [fd, iov.as_ptr() as usize, 1]) } == Ok(1));
    }
    for i in 0..2 {
        let ends = ENDS[2 * i].as_ptr() as usize;
        // SAFETY: two words.
        check!(unsafe { c(Sysno::pipe2, [ends, 0]) } == Ok(0));
        check!(start(i, reads, i, &WORDS[i]).is_ok());
    }
    for _ in 0..1000 {
        // SAFETY: no memory.
        check!(unsafe { c(Sysno::getppid, []) }.is_ok());
    }
    for i in [1, 0] {
        let fd = ENDS[2 * i + 1].load(Ordering::SeqCst) as usize;
        // SAFETY: a byte.
        check!(unsafe { c(Sysno::write, [fd, b"x".as_ptr() as usize, 1]) } == Ok(1));
        join(&WORDS[i]);
    }
    0
}

extern "C" fn flags(_: usize) -> i32 {
    // SAFETY: all are refused.
    unsafe {
        for flags in
            [0, 17, 0x100, 0x100 | 0x4000, THREAD & !0x1_0000, THREAD | 0x1000_0000, THREAD | 0x2000, THREAD | 17]
        {
            let result = c(Sysno::clone, [flags, threads::stack(0), 0, 0, 0]);
            check!(result == Err(Errno::EPERM), "{flags:#x}: {result:?}");
        }
        for nr in [Sysno::fork, Sysno::vfork, Sysno::clone3] {
            check!(c(nr, [0, 0]) == Err(Errno::ENOSYS));
        }
    }
    0
}

extern "C" fn registers(_: usize) -> i32 {
    static IDS: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
    extern "C" fn child(sp: usize) {
        let here = 0u8;
        let at = (&raw const here) as usize;
        check!(at < sp && at > sp - STACK);
        // SAFETY: no memory.
        let tid = unsafe { c(Sysno::gettid, []) }.unwrap() as u32;
        check!(IDS[0].load(Ordering::SeqCst) == tid && IDS[1].load(Ordering::SeqCst) == tid);
        let (mut mxcsr, mut control) = (0u32, 0u16);
        // SAFETY: both store to the variable that is given.
        unsafe {
            core::arch::asm!("stmxcsr [{}]", in(reg) &mut mxcsr);
            core::arch::asm!("fnstcw [{}]", in(reg) &mut control);
        }
        check!(mxcsr & 0xffc0 == 0x9fc0 && control == 0x0b7f, "{mxcsr:#x} {control:#x}");
        SUM.store(1, Ordering::SeqCst);
    }
    // SAFETY: legal control words; the stack is the child's until its id is cleared.
    unsafe {
        core::arch::asm!("ldmxcsr [{}]", in(reg) &0x9fc0u32);
        core::arch::asm!("fldcw [{}]", in(reg) &0x0b7fu16);
        let ids = [IDS[0].as_ptr() as usize, IDS[1].as_ptr() as usize];
        let flags = THREAD | PARENT_SETTID | CHILD_SETTID | CHILD_CLEARTID;
        IDS[1].store(1, Ordering::SeqCst);
        let tid = threads::clone(flags, threads::stack(0), ids, 0, child, threads::stack(0));
        check!(tid > 0 && IDS[0].load(Ordering::SeqCst) == tid as u32, "{tid}");
    }
    join(&IDS[1]);
    check!(SUM.load(Ordering::SeqCst) == 1);
    0
}

/// A thread's own storage: its segment, beside the runtime's.
fn tls_word() -> usize {
    let word;
    // SAFETY: the segment begins with a word of the guest's.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        core::arch::asm!("mov {}, fs:[0]", out(reg) word);
        #[cfg(target_arch = "x86")]
        core::arch::asm!("mov {}, gs:[0]", out(reg) word);
    }
    word
}

#[repr(C)]
struct Desc {
    entry: u32,
    base: u32,
    limit: u32,
    flags: u32,
}

/// What `clone` takes as thread-local storage that begins at `base`.
fn tls(base: usize, desc: &mut Desc) -> usize {
    if cfg!(target_arch = "x86_64") {
        return base;
    }
    let cs: u32;
    // SAFETY: reading a segment selector has no effect.
    unsafe { core::arch::asm!("mov {:e}, cs", out(reg) cs) };
    *desc = Desc { entry: if cs & 0xffff == 0x73 { 6 } else { 12 }, base: base as u32, limit: 0xf_ffff, flags: 0x51 };
    core::ptr::from_ref(desc) as usize
}

extern "C" fn storage(_: usize) -> i32 {
    static WORD: AtomicU32 = AtomicU32::new(1);
    static AREAS: [AtomicUsize; 2] = [AtomicUsize::new(1111), AtomicUsize::new(2222)];
    extern "C" fn child(_: usize) {
        check!(tls_word() == 1111);
        for _ in 0..100 {
            // SAFETY: no memory.
            check!(unsafe { c(Sysno::getppid, []) }.is_ok());
        }
        check!(tls_word() == 1111);
        SUM.store(1, Ordering::SeqCst);
    }
    let mut desc = Desc { entry: 0, base: 0, limit: 0, flags: 0 };
    let at = tls(AREAS[0].as_ptr() as usize, &mut desc);
    let flags = THREAD | SETTLS | CHILD_CLEARTID;
    // SAFETY: the stack is the child's until its id is cleared.
    let tid = unsafe { threads::clone(flags, threads::stack(0), [0, WORD.as_ptr() as usize], at, child, 0) };
    check!(tid > 0, "{tid}");
    join(&WORD);
    check!(SUM.load(Ordering::SeqCst) == 1);
    0
}

/// Storage that no thread can have: the birth fails, the caller is told, nothing stays behind.
extern "C" fn bad_storage(_: usize) -> i32 {
    static WORD: AtomicU32 = AtomicU32::new(1);
    extern "C" fn child(_: usize) {
        check!(false);
    }
    let bad = Desc { entry: 1, base: 0, limit: 0, flags: 0x51 };
    let at = if cfg!(target_arch = "x86_64") { 1 << (usize::BITS - 2) } else { (&raw const bad) as usize };
    for _ in 0..20 {
        let flags = THREAD | SETTLS | CHILD_CLEARTID;
        // SAFETY: no thread comes of it.
        let tid = unsafe { threads::clone(flags, threads::stack(0), [0, WORD.as_ptr() as usize], at, child, 0) };
        check!(tid == -(Errno::EAGAIN.into_raw() as isize), "{tid}");
    }
    // And a good one after that.
    joins(0)
}
