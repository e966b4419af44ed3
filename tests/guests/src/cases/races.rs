//! Races with real threads: what was checked is changed meanwhile. Each is won when its defence is taken out.

use super::program::{DIRECT, program};
use super::*;
use ascetic::abi::{Mailbox, STRIDE};
use ascetic::experiment::{self, BELIEVE_BIRTHS, BELIEVE_MAILBOX, NOT_BENEATH, READ_AGAIN};
use ascetic::policy::{Family, Rights, Root};
use ascetic::sys::{self, Errno};
use ascetic::untrusted::{self, call};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use freestanding::files::{Path, Scratch, path};
use freestanding::threads;

pub const CASES: &[Case] = &[
    case("race_mailbox_rewritten", || mailbox_rewritten(false)),
    case("race_mailbox_rewritten_off_shows_it", || mailbox_rewritten(true)),
    case("race_link_swapped", || link_swapped(false)),
    case("race_link_swapped_off_shows_it", || link_swapped(true)),
    case("race_forged_done", || forged_done(false)),
    case("race_forged_done_off_shows_it", || forged_done(true)),
    case("race_forged_births", || forged_births(false)),
    case("race_forged_births_off_shows_it", || forged_births(true)),
    case("race_futex_aimed_at_the_vault", || futex_at_vault(true)),
    case("race_futex_aimed_at_the_vault_off_shows_it", || futex_at_vault(false)),
];

/// Attempts that nothing gets through; and as many at most until something does without the defence.
fn attempts() -> usize {
    if emulated() { 20_000 } else { 1_000_000 }
}

/// Seconds after which a case has tried often enough, if it is slow: who runs where, and so how long an attempt takes, is
/// the scheduler's affair here.
const ENOUGH: usize = 20;

/// The guest's clock, in seconds.
fn seconds() -> usize {
    let mut ts = [0usize; 2];
    // SAFETY: the kernel stores a timespec of two words.
    let _ = unsafe { call(Sysno::clock_gettime, [1, ts.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    ts[0]
}

const CWD: usize = -100isize as usize;
static MAILBOX: AtomicUsize = AtomicUsize::new(0);
/// The id of the thread that disturbs.
static DISTURBER: AtomicU32 = AtomicU32::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
static STOPPED: AtomicU32 = AtomicU32::new(1);

/// Starts a thread that disturbs until [`STOP`].
fn disturb(f: extern "C" fn(usize)) {
    MAILBOX.store(experiment::mailbox().0, Ordering::SeqCst);
    // SAFETY: the stack is the thread's until its word is cleared.
    let tid = unsafe { untrusted::thread::spawn(f, 0, threads::stack(0), STOPPED.as_ptr() as usize) };
    check!(tid.is_ok(), "{tid:?}");
    DISTURBER.store(tid.unwrap_or(0), Ordering::SeqCst);
}

/// Opens a path again and again, and says whether it ever led to what `is_won` sees; `n` attempts.
fn opens(path: &Path, n: usize, is_won: impl Fn(&[u8]) -> bool) -> bool {
    let mut opened = 0;
    let start = seconds();
    for i in 0..n {
        if i % 1024 == 0 && seconds() > start + ENOUGH {
            println!("{i} attempts of {n} in {ENOUGH} s");
            check!(i > 10_000);
            break;
        }
        let mut bytes = [0u8; 8];
        // SAFETY: a path; the buffer is the guest's own.
        unsafe {
            let Ok(fd) = call(Sysno::openat, [CWD, path.as_ptr() as usize, 0, 0, 0, 0]) else { continue };
            opened += 1;
            let _ = call(Sysno::pread64, [fd, bytes.as_mut_ptr() as usize, 8, 0, 0, 0]);
            let _ = call(Sysno::close, [fd, 0, 0, 0, 0, 0]);
        }
        if is_won(&bytes) {
            return true;
        }
    }
    check!(opened > 100, "only {opened} were opened");
    false
}

fn finish(won: bool) -> i32 {
    STOP.store(true, Ordering::SeqCst);
    threads::join(&STOPPED, |at, tid| {
        // SAFETY: the word is the guest's.
        let _ = unsafe { call(Sysno::futex, [at, 0, tid as usize, 0, 0, 0]) };
    });
    i32::from(won)
}

/// The name in the mailbox changes while the broker decides: one file is allowed, the one beside it is not.
fn mailbox_rewritten(off: bool) {
    extern "C" fn rewrites(_: usize) {
        // The path has a `//` in it, so that no token is used; its name is the last four bytes.
        let at = MAILBOX.load(Ordering::SeqCst) + core::mem::offset_of!(Mailbox, data);
        let len = path("/in/file").as_c().to_bytes().len();
        let name = (at + len - 4) as *mut [u8; 4];
        while !STOP.load(Ordering::Relaxed) {
            // SAFETY: inside the mailbox of the other thread, which any thread of the guest can write.
            unsafe {
                name.write_volatile(*b"else");
                name.write_volatile(*b"file");
            }
        }
    }
    extern "C" fn guest(n: usize) -> i32 {
        disturb(rewrites);
        finish(opens(&path("/in/file"), n, |bytes| bytes.starts_with(b"secret")))
    }
    let scratch = Scratch::new();
    scratch.folder("in");
    scratch.file("in/file", b"inside");
    scratch.file("in/else", b"secret");
    let file = path("in/file");
    let policy = DIRECT.clone().threads(2);
    let policy = policy.try_root(Root { path: file.as_c(), rights: Rights::READ, exact: true }).unwrap();
    READ_AGAIN.store(off, Ordering::Relaxed);
    must_exit(&apart(&policy), guest, attempts(), u8::from(off));
}

/// Two processors, if there are: the race needs both sides to run at once.
fn apart<'a>(policy: &'a Policy<'a>) -> Config<'a> {
    Config { placement: sandbox::Placement::Floating, ..program(policy) }
}

/// A link below the root leads to a file inside and one outside, by turns.
fn link_swapped(off: bool) {
    extern "C" fn swaps(_: usize) {
        let (a, b) = (path("in/a"), path("in/b"));
        while !STOP.load(Ordering::Relaxed) {
            const EXCHANGE: usize = 2;
            // SAFETY: paths.
            let swapped =
                unsafe { call(Sysno::renameat2, [CWD, a.as_ptr() as usize, CWD, b.as_ptr() as usize, EXCHANGE, 0]) };
            check!(swapped == Ok(0), "{swapped:?}");
        }
    }
    extern "C" fn guest(n: usize) -> i32 {
        disturb(swaps);
        finish(opens(&path("/in/a"), n, |bytes| bytes.starts_with(b"outside")))
    }
    let scratch = Scratch::new();
    scratch.folder("in");
    scratch.file("in/file", b"inside");
    scratch.file("outside", b"outside");
    scratch.link("in/a", "file");
    scratch.link("in/b", "../outside");
    let root = path("in");
    let rights = Rights::READ.and(Rights::CREATE);
    let policy = DIRECT.clone().threads(2).try_root(Root { path: root.as_c(), rights, exact: false }).unwrap();
    NOT_BENEATH.store(off, Ordering::Relaxed);
    must_exit(&apart(&policy), guest, attempts() / 10, u8::from(off));
}

/// A guest that could wait at the word where its T waits would speak in T's name.
fn futex_at_vault(defended: bool) {
    extern "C" fn guest(defended: usize) -> i32 {
        let (_, verdict) = experiment::pages();
        // SAFETY: the address of a word that can be read.
        let ask = unsafe { &raw const (*verdict).ask } as usize;
        let mut word = 0u32;
        let own = &raw mut word as usize;
        // FUTEX_WAKE and FUTEX_CMP_REQUEUE there, as either word.
        // SAFETY: the guest's own word, and the vault's, on purpose.
        let results = unsafe {
            [
                call(Sysno::futex, [ask, 1, 1, 0, 0, 0]),
                call(Sysno::futex, [own, 4, 0, 1, ask, 0]),
                call(Sysno::futex, [ask, 0, u32::MAX as usize, 0, 0, 0]),
            ]
        };
        let expected = if defended == 1 { [Err(Errno::EFAULT); 3] } else { [Ok(0), Ok(0), Err(Errno::EAGAIN)] };
        check!(results == expected, "{results:?}");
        0
    }
    let mut config = program(&DIRECT);
    config.weaken.no_vault_check = !defended;
    must_exit(&config, guest, usize::from(defended), 0);
}

fn pause() {
    let ts = [0usize, 30_000_000];
    // SAFETY: the kernel reads a timespec.
    let _ = unsafe { call(Sysno::nanosleep, [ts.as_ptr() as usize, 0, 0, 0, 0, 0]) };
}

/// A thread whose T is busy with a verdict, and another that says in its name that it asks: a broker that believed the
/// mailbox would overwrite what T executes, and T would take the forged verdict for that of its next request.
fn forged_done(off: bool) {
    static ENDS: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
    static RESULT: AtomicU32 = AtomicU32::new(0);
    extern "C" fn busy(_: usize) {
        let mut byte = 0u8;
        let fd = ENDS[0].load(Ordering::SeqCst) as usize;
        // SAFETY: the buffer is the thread's own; a path.
        unsafe {
            // What comes back may be spoilt: it is in the mailbox.
            let _ = call(Sysno::recvfrom, [fd, &raw mut byte as usize, 1, 0, 0, 0]);
            // Refused, if the verdict is this request's.
            let shadow = call(Sysno::openat, [CWD, c"/etc/shadow".as_ptr() as usize, 0, 0, 0, 0]);
            RESULT.store(u32::from(shadow != Err(Errno::EACCES)), Ordering::SeqCst);
        }
    }
    extern "C" fn guest(_: usize) -> i32 {
        // SAFETY: the kernel stores two descriptors.
        check!(unsafe { call(Sysno::socketpair, [1, 1, 0, ENDS.as_ptr() as usize, 0, 0]) } == Ok(0));
        disturb(busy);
        pause();
        let other = (MAILBOX.load(Ordering::SeqCst) + STRIDE) as *mut Mailbox;
        let file = path("/in/file");
        let text = file.as_c().to_bytes_with_nul();
        // SAFETY: the mailbox of the other thread, which any thread of the guest can write.
        unsafe {
            (&raw mut (*other).line.nr).write_volatile(Sysno::openat as u32);
            (&raw mut (*other).line.args).write_volatile([CWD, 0, 0, 0, 0, 0]);
            (&raw mut (*other).data.0).cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len());
            (&raw mut (*other).len).write_volatile(text.len() as u32);
            (&raw mut (*other).asks).write_volatile(0x7777_7777);
        }
        check!(sys::write(experiment::first_own_fd(), &1u64.to_ne_bytes()) == Ok(8));
        pause();
        let fd = ENDS[1].load(Ordering::SeqCst) as usize;
        // SAFETY: a byte.
        check!(unsafe { call(Sysno::sendto, [fd, b"x".as_ptr() as usize, 1, 0, 0, 0]) } == Ok(1));
        finish(false);
        RESULT.load(Ordering::SeqCst) as i32
    }
    let scratch = Scratch::new();
    scratch.folder("in");
    scratch.file("in/file", b"inside");
    let root = path("in");
    let policy = DIRECT.clone().threads(2).family(Family { family: 1, addresses: &[] });
    let policy = policy.try_root(Root { path: root.as_c(), rights: Rights::READ, exact: false }).unwrap();
    BELIEVE_MAILBOX.store(off, Ordering::Relaxed);
    must_exit(&program(&policy), guest, 0, u8::from(off));
}

/// A thread that announces the births of others: a broker that believed the message would take it for the new thread.
fn forged_births(off: bool) {
    extern "C" fn forges(_: usize) {
        let births = experiment::first_own_fd() + 5;
        while !STOP.load(Ordering::Relaxed) {
            for what in 0..3u8 {
                check!(sys::write(births, &[2, 0, 0, 0, what, 0, 0, 0]) == Ok(8));
            }
        }
    }
    extern "C" fn nothing(_: usize) {}
    extern "C" fn guest(_: usize) -> i32 {
        static WORD: AtomicU32 = AtomicU32::new(0);
        disturb(forges);
        for _ in 0..200 {
            WORD.store(1, Ordering::SeqCst);
            let word = WORD.as_ptr() as usize;
            // SAFETY: the stack is the thread's until its word is cleared.
            match unsafe { untrusted::thread::spawn(nothing, 0, threads::stack(1), word) } {
                Ok(tid) if tid == DISTURBER.load(Ordering::SeqCst) => return 1,
                Ok(_) => {}
                Err(Errno::EAGAIN) => continue, // the last one is not buried yet
                Err(errno) => check!(false, "{errno}"),
            }
            threads::join(&WORD, |at, tid| {
                // SAFETY: the word is the guest's.
                let _ = unsafe { call(Sysno::futex, [at, 0, tid as usize, 0, 0, 0]) };
            });
        }
        finish(false)
    }
    let policy = DIRECT.clone().threads(3);
    BELIEVE_BIRTHS.store(off, Ordering::Relaxed);
    must_exit(&program(&policy), guest, 0, u8::from(off));
}
