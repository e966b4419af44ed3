//! Races with real threads: what was checked is changed meanwhile. Each is won when its defence is taken out.

use super::files::rooted;
use super::program::{DIRECT, program};
use super::*;
use ascetic::abi::{Mailbox, PAGE, STRIDE};
use ascetic::experiment::{
    self, BELIEVE_ALARM, BELIEVE_BIRTHS, BELIEVE_MAILBOX, GUESTS_POINTER, NOT_BENEATH, READ_AGAIN, UNLINK_BY_T,
};
use ascetic::policy::{Rights, Root};
use ascetic::sys::{self, Errno};
use ascetic::untrusted::{self, call};
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use freestanding::files::{MMAP, Path, Scratch, path};
use freestanding::threads;

pub const CASES: &[Case] = &[
    case("race_path_swapped", || path_swapped(false)),
    case("race_path_swapped_off_shows_it", || path_swapped(true)),
    case("race_mailbox_rewritten", || mailbox_rewritten(false)),
    case("race_mailbox_rewritten_off_shows_it", || mailbox_rewritten(true)),
    case("race_link_swapped", || link_swapped(false)),
    case("race_link_swapped_off_shows_it", || link_swapped(true)),
    case("race_ranges_changed", || ranges_changed(false)),
    case("race_ranges_changed_off_shows_it", || ranges_changed(true)),
    case("race_forged_done", || forged_done(false)),
    case("race_forged_done_off_shows_it", || forged_done(true)),
    case("race_forged_doorbells", || forged_doorbells(false)),
    case("race_forged_doorbells_off_shows_it", || forged_doorbells(true)),
    case("race_forged_births", || forged_births(false)),
    case("race_forged_births_off_shows_it", || forged_births(true)),
    case("race_futex_aimed_at_the_vault", || futex_at_vault(false)),
    case("race_futex_aimed_at_the_vault_off_shows_it", || futex_at_vault(true)),
    case("race_descriptor_rewritten", || descriptor_rewritten(false)),
    case("race_descriptor_rewritten_off_shows_it", || descriptor_rewritten(true)),
    case("race_descriptor_reused", || descriptor_reused(false)),
    case("race_descriptor_reused_off_shows_it", || descriptor_reused(true)),
];

/// Attempts that nothing gets through; and as many at most until something does without the defence.
static ATTEMPTS: AtomicUsize = AtomicUsize::new(1_000_000);
/// Seconds after which an attack was tried often enough, unless the run is a long one: who runs where, and so how long an
/// attempt takes, is the scheduler's affair here.
static ENOUGH: AtomicUsize = AtomicUsize::new(1);

fn attempts() -> usize {
    ATTEMPTS.load(Ordering::Relaxed)
}

fn enough() -> usize {
    ENOUGH.load(Ordering::Relaxed)
}

/// The guest's clock, in seconds. Who rewrites the request meanwhile may spoil it, so it is asked until it answers.
fn seconds() -> usize {
    let mut ts = [0usize; 2];
    while ts[0] == 0 {
        // SAFETY: the kernel stores a timespec of two words.
        let _ = unsafe { call(Sysno::clock_gettime, [1, ts.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    }
    ts[0]
}

/// Makes attempts until something gets through, or there were enough, and says how many. Whether something got through.
fn tries(mut attempt: impl FnMut(usize) -> bool) -> bool {
    let start = seconds();
    for i in 0..attempts() {
        if attempt(i) {
            note!("attempt {} got through", i + 1);
            return true;
        }
        if i % 256 == 255 && seconds() > start + enough() {
            note!("{} attempts of {} in {} s", i + 1, attempts(), enough());
            return false;
        }
    }
    note!("{} attempts in {} s", attempts(), seconds() - start);
    false
}

const CWD: usize = -100isize as usize;
static MAILBOX: AtomicUsize = AtomicUsize::new(0);
/// The id of the thread that disturbs.
static DISTURBER: AtomicU32 = AtomicU32::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
static STOPPED: AtomicU32 = AtomicU32::new(1);

fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Starts a thread that disturbs until [`STOP`].
fn disturb(f: extern "C" fn(usize)) {
    MAILBOX.store(experiment::mailbox().0, Ordering::SeqCst);
    // SAFETY: the stack is the thread's until its word is cleared.
    let tid = unsafe { untrusted::thread::spawn(f, 0, threads::stack(0), STOPPED.as_ptr() as usize) };
    check!(tid.is_ok(), "{tid:?}");
    DISTURBER.store(tid.unwrap_or(0), Ordering::SeqCst);
}

/// The mailbox of the thread that is disturbed.
fn disturbed() -> *mut Mailbox {
    MAILBOX.load(Ordering::SeqCst) as *mut Mailbox
}

/// Argument `i` of the request of the thread that is disturbed.
fn argument(i: usize) -> *mut usize {
    // SAFETY: the address of a field of a mapped mailbox.
    unsafe { (&raw mut (*disturbed()).line.args).cast::<usize>().add(i) }
}

fn finish(won: bool) -> i32 {
    STOP.store(true, Ordering::SeqCst);
    threads::join(&STOPPED, |at, tid| {
        // SAFETY: the word is the guest's.
        let _ = unsafe { call(Sysno::futex, [at, 0, tid as usize, 0, 0, 0]) };
    });
    i32::from(won) * WON
}

/// The exit status of a guest that got through.
const WON: i32 = 42;

/// Two processors, if there are: the race needs both sides to run at once.
fn apart<'a>(policy: &'a Policy<'a>) -> Config<'a> {
    Config { placement: sandbox::Placement::Floating, ..program(policy) }
}

/// Runs a guest that attacks: it says whether it got through.
fn attack(config: &Config<'_>, guest: extern "C" fn(usize) -> i32, off: bool) {
    if emulated() && !off {
        ATTEMPTS.store(20_000, Ordering::Relaxed);
    }
    let bound = match (off, is_long()) {
        (true, _) => 50, // until something gets through
        (false, true) => usize::MAX / 2,
        (false, false) => enough(),
    };
    ENOUGH.store(bound, Ordering::Relaxed);
    let outcome = spawn(config, guest, usize::from(off)).wait(Some(if is_long() { PATIENCE * 20 } else { PATIENCE }));
    if off && processors() < 2 && outcome.guest == Status::Exited(0) {
        skip("on one processor, nobody happened to be interrupted between the two looks");
    }
    check!(outcome.guest == Status::Exited(u8::from(off) * WON as u8), "{outcome:?}");
}

fn open(nr: Sysno, path: &Path) -> sys::Result<usize> {
    static HOW: [u64; 3] = [0; 3];
    let rest = if nr == Sysno::openat2 { [HOW.as_ptr() as usize, size_of_val(&HOW)] } else { [0; 2] };
    // SAFETY: a path, and what belongs to it.
    unsafe { call(nr, [CWD, path.as_ptr() as usize, rest[0], rest[1], 0, 0]) }
}

/// Whether a path leads to a file that begins with `text`.
fn leads_to(nr: Sysno, path: &Path, text: &[u8]) -> bool {
    let mut bytes = [0u8; 8];
    let Ok(fd) = open(nr, path) else { return false };
    // SAFETY: the buffer is the guest's own.
    unsafe {
        let _ = call(Sysno::pread64, [fd, bytes.as_mut_ptr() as usize, 8, 0, 0, 0]);
        let _ = call(Sysno::close, [fd, 0, 0, 0, 0, 0]);
    }
    bytes.starts_with(text)
}

/// Where the name is that changes.
static NAME: AtomicUsize = AtomicUsize::new(0);

extern "C" fn renames(_: usize) {
    let name = NAME.load(Ordering::SeqCst) as *mut [u8; 4];
    while !stopped() {
        // SAFETY: memory of the guest's, or the mailbox of the other thread, which any thread of the guest can write.
        unsafe {
            name.write_volatile(*b"else");
            name.write_volatile(*b"file");
        }
    }
}

/// One file is allowed, the one beside it is not.
fn beside(guest: extern "C" fn(usize) -> i32, off: bool) {
    let scratch = Scratch::new();
    scratch.folder("in");
    scratch.file("in/file", b"inside");
    scratch.file("in/else", b"secret");
    let file = path("in/file");
    let policy = DIRECT.clone().threads(2);
    let policy = policy.try_root(Root { path: file.as_c(), rights: Rights::READ, exact: true }).unwrap();
    attack(&apart(&policy), guest, off);
}

/// The path in the guest's memory changes: what is opened is what was decided on.
fn path_swapped(off: bool) {
    extern "C" fn guest(_: usize) -> i32 {
        let text = path("in/file");
        NAME.store(text.as_ptr() as usize + text.as_c().count_bytes() - 4, Ordering::SeqCst);
        disturb(renames);
        finish(tries(|_| leads_to(Sysno::openat2, &text, b"secret")))
    }
    GUESTS_POINTER.store(off, Ordering::Relaxed);
    beside(guest, off);
}

/// The same name in the mailbox changes while the broker decides.
fn mailbox_rewritten(off: bool) {
    extern "C" fn guest(_: usize) -> i32 {
        let text = path("/in/file"); // there is a `//` in it, so that no token is used
        NAME.store(
            experiment::mailbox().0 + offset_of!(Mailbox, data) + text.as_c().count_bytes() - 4,
            Ordering::SeqCst,
        );
        disturb(renames);
        finish(tries(|_| leads_to(Sysno::openat, &text, b"secret")))
    }
    READ_AGAIN.store(off, Ordering::Relaxed);
    beside(guest, off);
}

/// A link below the root leads to a file inside and one outside, by turns; a folder, from which `..` leads inside, is by
/// turns a link to one from which `..` leads outside.
fn link_swapped(off: bool) {
    extern "C" fn swaps(_: usize) {
        let links = [path("in/a"), path("in/b"), path("in/d"), path("in/e")];
        while !stopped() {
            const EXCHANGE: usize = 2;
            for pair in links.chunks_exact(2) {
                let [a, b] = [&pair[0], &pair[1]].map(|path| path.as_ptr() as usize);
                // SAFETY: paths.
                let swapped = unsafe { call(Sysno::renameat2, [CWD, a, CWD, b, EXCHANGE, 0]) };
                check!(swapped == Ok(0), "{swapped:?}");
            }
        }
    }
    extern "C" fn guest(_: usize) -> i32 {
        disturb(swaps);
        let paths = [path("/in/a"), path("/in/d/../file")];
        finish(tries(|i| leads_to(Sysno::openat, &paths[i % 2], b"outside")))
    }
    let scratch = Scratch::new();
    ["in", "in/d", "out", "out/d"].into_iter().for_each(|folder| scratch.folder(folder));
    scratch.file("in/file", b"inside");
    scratch.file("out/file", b"outside");
    scratch.link("in/a", "file");
    scratch.link("in/b", "../out/file");
    scratch.link("in/e", "../out/d");
    let root = path("in");
    let rights = Rights::READ.and(Rights::CREATE);
    let policy = rooted(DIRECT.clone().threads(2), &root, rights);
    NOT_BENEATH.store(off, Ordering::Relaxed);
    attack(&apart(&policy), guest, off);
}

/// Where the memory is that calls of the disturbed thread name, and what the disturber would have them name.
static OWN: AtomicUsize = AtomicUsize::new(0);
static TARGETS: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];

/// The range that a call names changes while the broker decides: to the alternate stack and the mailbox of another pair, to
/// T's code, to its verdict.
fn ranges_changed(off: bool) {
    const ANON_FIXED: usize = 0x32;
    const MAYMOVE_FIXED: usize = 3;
    const DONTNEED: usize = 4;
    const RW: usize = sys::PROT_READ | sys::PROT_WRITE;
    extern "C" fn moves(_: usize) {
        // The lowest page, which no handler gets to.
        let at = experiment::altstack();
        // SAFETY: nobody uses it.
        unsafe { (at as *mut u64).write_volatile(1) };
        TARGETS[0].store(at, Ordering::SeqCst);
        let maps = [Sysno::mprotect, Sysno::munmap, Sysno::mremap, Sysno::madvise, MMAP].map(|nr| nr as u32);
        while !stopped() {
            for target in &TARGETS {
                let (own, target) = (OWN.load(Ordering::Relaxed), target.load(Ordering::Relaxed));
                // SAFETY: inside the mailbox of the other thread, which any thread of the guest can write.
                unsafe {
                    if target == 0 || own == 0 || !maps.contains(&(&raw const (*disturbed()).line.nr).read_volatile()) {
                        continue;
                    }
                    argument(0).write_volatile(target);
                    argument(4).write_volatile(target);
                    argument(0).write_volatile(own);
                    if TARGETS[1].load(Ordering::Relaxed) != 0 {
                        argument(1).write_volatile(target + PAGE - own);
                        argument(1).write_volatile(PAGE);
                    }
                }
            }
        }
    }
    extern "C" fn guest(off: usize) -> i32 {
        // SAFETY: new memory and a new descriptor.
        let (own, event) = unsafe {
            let own = call(MMAP, [0, 4 * PAGE, RW, 0x22, usize::MAX, 0]).unwrap();
            (own, call(Sysno::eventfd2, [0; 6]).unwrap() as i32)
        };
        disturb(moves);
        let target = || TARGETS[0].load(Ordering::SeqCst);
        while target() == 0 {
            core::hint::spin_loop();
        }
        check!(own < target());
        if off == 0 {
            let (mailbox, (vault, verdict)) = (experiment::mailbox().0, experiment::pages());
            // The others, and all that is up to there, whose end would be the sandbox's.
            let others = [mailbox + STRIDE, vault.addr() - PAGE, verdict.addr()];
            TARGETS[1..].iter().zip(others).for_each(|(to, from)| to.store(from, Ordering::SeqCst));
        }
        OWN.store(own, Ordering::SeqCst);
        let won = tries(|i| {
            let (nr, args) = match i % 5 {
                0 => (Sysno::mprotect, [own, PAGE, 0, 0, 0, 0]),
                1 => (Sysno::munmap, [own, PAGE, 0, 0, 0, 0]),
                2 => (Sysno::mremap, [own, PAGE, PAGE, MAYMOVE_FIXED, own + 2 * PAGE, 0]),
                3 => (Sysno::madvise, [own, PAGE, DONTNEED, 0, 0, 0]),
                _ => (MMAP, [own, PAGE, RW, ANON_FIXED, usize::MAX, 0]),
            };
            // SAFETY: memory of the guest's own, and with luck not.
            let _ = unsafe { call(nr, args) };
            // The result may be spoilt: what counts is whether the page is there, and what is in it.
            // SAFETY: strict mode allows the call, which reads what is there; after it, the page is.
            unsafe { sys::write_from(event, target(), 8).is_err() || (target() as *const u64).read_volatile() != 1 }
        });
        OWN.store(0, Ordering::SeqCst);
        finish(won)
    }
    let policy = DIRECT.clone().threads(2).memory().direct(Sysno::eventfd2);
    READ_AGAIN.store(off, Ordering::Relaxed);
    let mut config = apart(&policy);
    config.weaken.no_mseal = true; // the broker's check alone
    attack(&config, guest, off);
}

/// A thread that says again and again in another's name that it asks, and rings: a broker that believed the mailbox would
/// overwrite what T executes, and T would take the forged verdict for that of its next request.
fn forged_done(off: bool) {
    extern "C" fn forges(_: usize) {
        let mut asks = 0x7777_7777u32;
        while !stopped() {
            asks = asks.wrapping_add(1);
            // SAFETY: inside the mailbox of the other thread, which any thread of the guest can write.
            unsafe { (&raw mut (*disturbed()).asks).write_volatile(asks) };
            check!(sys::write(experiment::first_own_fd(), &1u64.to_ne_bytes()) == Ok(8));
        }
    }
    extern "C" fn guest(_: usize) -> i32 {
        disturb(forges);
        let (inside, outside) = (path("/in/file"), path("/outside"));
        finish(tries(|_| {
            let refused = open(Sysno::openat, &outside);
            let Ok(fd) = open(Sysno::openat, &inside) else { return true };
            // SAFETY: the guest's own.
            let closed = unsafe { call(Sysno::close, [fd, 0, 0, 0, 0, 0]) };
            refused != Err(Errno::EACCES) || closed != Ok(0)
        }))
    }
    let _scratch = Scratch::with_file();
    let root = path("in");
    let policy = rooted(DIRECT.clone().threads(2), &root, Rights::READ);
    BELIEVE_MAILBOX.store(off, Ordering::Relaxed);
    attack(&apart(&policy), guest, off);
}

/// A thread that rings every bell that another's calls depend on, and takes rings back and gives them again: each call is
/// executed once, and none is lost. A broker that believed the alarm would execute some twice.
fn forged_doorbells(off: bool) {
    extern "C" fn rings(_: usize) {
        let bells = || [experiment::first_own_fd(), BELLS[0].load(Ordering::SeqCst), BELLS[1].load(Ordering::SeqCst)];
        let ring = |bell| check!(sys::write(bell, &1u64.to_ne_bytes()) == Ok(8));
        while !stopped() {
            for bell in bells() {
                ring(bell);
                let _ = sys::read(bell, &mut [0; 8]); // the alarm's never waits; another's, until somebody rings
                ring(bell);
            }
        }
    }
    static BELLS: [core::sync::atomic::AtomicI32; 2] = [const { core::sync::atomic::AtomicI32::new(0) }; 2];
    extern "C" fn guest(_: usize) -> i32 {
        const F_DUPFD: usize = 0;
        const LEAST: usize = 40;
        let (t, u) = experiment::doorbells();
        BELLS[0].store(t, Ordering::SeqCst);
        BELLS[1].store(u, Ordering::SeqCst);
        let file = open(Sysno::openat, &path("in/file")).unwrap();
        disturb(rings);
        let won = tries(|i| {
            // What is executed twice, or not at all, shows in the next result: one by T alone, one by the broker, of which
            // each asks for something else.
            let least = LEAST + i % 2;
            // SAFETY: the guest's own descriptors.
            unsafe {
                let moved = call(Sysno::lseek, [file, 1, 1, 0, 0, 0]) == Ok(i + 1);
                let dup = call(Sysno::fcntl, [file, F_DUPFD, least, 0, 0, 0]) == Ok(least);
                !(moved && dup && call(Sysno::close, [least, 0, 0, 0, 0, 0]) == Ok(0))
            }
        });
        STOP.store(true, Ordering::SeqCst);
        while STOPPED.load(Ordering::SeqCst) != 0 {
            for bell in [t, u] {
                let _ = sys::write(bell, &1u64.to_ne_bytes()); // it may wait there
            }
        }
        i32::from(won) * WON
    }
    let _scratch = Scratch::with_file();
    let root = path("in");
    let policy = rooted(DIRECT.clone().threads(2), &root, Rights::READ);
    BELIEVE_ALARM.store(off, Ordering::Relaxed);
    attack(&apart(&policy), guest, off);
}

/// A thread that announces the births of others: a broker that believed the message would take it for the new thread.
fn forged_births(off: bool) {
    static FORGED: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn forges(_: usize) {
        let births = experiment::first_own_fd() + 5;
        while !stopped() {
            for what in 0..3u8 {
                check!(sys::write(births, &[2, 0, 0, 0, what, 0, 0, 0]) == Ok(8));
                FORGED.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    extern "C" fn nothing(_: usize) {}
    extern "C" fn guest(_: usize) -> i32 {
        static WORD: AtomicU32 = AtomicU32::new(0);
        disturb(forges);
        let (start, mut births) = (seconds(), 0);
        // An attempt is a message.
        while FORGED.load(Ordering::Relaxed) < attempts() && seconds() <= start + enough() {
            WORD.store(1, Ordering::SeqCst);
            let word = WORD.as_ptr() as usize;
            // SAFETY: the stack is the thread's until its word is cleared.
            match unsafe { untrusted::thread::spawn(nothing, 0, threads::stack(1), word) } {
                Ok(tid) if tid == DISTURBER.load(Ordering::SeqCst) => {
                    note!("one of {} messages got through", FORGED.load(Ordering::Relaxed));
                    return WON;
                }
                Ok(_) => births += 1,
                Err(Errno::EAGAIN) => continue, // the last one is not buried yet
                Err(errno) => check!(false, "{errno}"),
            }
            threads::join(&WORD, |at, tid| {
                // SAFETY: the word is the guest's.
                let _ = unsafe { call(Sysno::futex, [at, 0, tid as usize, 0, 0, 0]) };
            });
        }
        note!("{} messages during {births} births in {} s", FORGED.load(Ordering::Relaxed), seconds() - start);
        finish(false)
    }
    let policy = DIRECT.clone().threads(3);
    BELIEVE_BIRTHS.store(off, Ordering::Relaxed);
    attack(&program(&policy), guest, off);
}

/// A guest that could wait at the word where its T waits would speak in T's name. The address changes to that one while T
/// checks it.
fn futex_at_vault(off: bool) {
    static WORD: AtomicU32 = AtomicU32::new(0x5555_5555);
    static ASK: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn aims(_: usize) {
        while !stopped() {
            // SAFETY: inside the mailbox of the other thread, which any thread of the guest can write.
            unsafe {
                if (&raw const (*disturbed()).line.nr).read_volatile() == Sysno::futex as u32 {
                    argument(0).write_volatile(ASK.load(Ordering::Relaxed));
                    argument(0).write_volatile(WORD.as_ptr() as usize);
                }
            }
        }
    }
    extern "C" fn guest(off: usize) -> i32 {
        let (_, verdict) = experiment::pages();
        // SAFETY: the address of a word that can be read.
        let ask = unsafe { &raw const (*verdict).ask };
        let own = WORD.as_ptr() as usize;
        // FUTEX_WAKE and FUTEX_CMP_REQUEUE there, as either word; FUTEX_WAIT.
        // SAFETY: the guest's own word, and the vault's, on purpose.
        let results = unsafe {
            [
                call(Sysno::futex, [ask as usize, 1, 1, 0, 0, 0]),
                call(Sysno::futex, [own, 4, 0, 1, ask as usize, 0x5555_5555]),
                call(Sysno::futex, [ask as usize, 0, u32::MAX as usize, 0, 0, 0]),
            ]
        };
        let expected = if off == 0 { [Err(Errno::EFAULT); 3] } else { [Ok(0), Ok(0), Err(Errno::EAGAIN)] };
        check!(results == expected, "{results:?}");
        ASK.store(ask as usize, Ordering::SeqCst);
        disturb(aims);
        let brief = [0usize, 1];
        finish(tries(|_| {
            // SAFETY: the word can be read; what it says is not what the guest's own says. Who waits there gets a timeout.
            let waited = unsafe {
                let value = ask.read_volatile() as usize;
                call(Sysno::futex, [own, 0, value, brief.as_ptr() as usize, 0, 0])
            };
            waited == Err(Errno::ETIMEDOUT)
        }))
    }
    let policy = DIRECT.clone().threads(2);
    let mut config = apart(&policy);
    config.weaken.no_vault_check = off;
    attack(&config, guest, off);
}

/// The descriptor that a call names changes to one of the sandbox's own while T checks it.
fn descriptor_rewritten(off: bool) {
    /// The crash record, whose loss nobody notices at once.
    fn target() -> usize {
        experiment::first_own_fd() as usize + 1
    }
    static SPARE: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn aims(_: usize) {
        while !stopped() {
            // SAFETY: inside the mailbox of the other thread, which any thread of the guest can write.
            unsafe {
                if (&raw const (*disturbed()).line.nr).read_volatile() == Sysno::dup2 as u32 {
                    argument(1).write_volatile(target());
                    argument(1).write_volatile(SPARE.load(Ordering::Relaxed));
                }
            }
        }
    }
    extern "C" fn guest(_: usize) -> i32 {
        // SAFETY: the guest's own descriptors.
        let spare = unsafe { call(Sysno::dup, [1, 0, 0, 0, 0, 0]) }.unwrap();
        SPARE.store(spare, Ordering::SeqCst);
        disturb(aims);
        // SAFETY: as above.
        finish(tries(|_| unsafe { call(Sysno::dup2, [1, spare, 0, 0, 0, 0]) } == Ok(target())))
    }
    let policy = DIRECT.clone().threads(2);
    let mut config = apart(&policy);
    config.weaken.no_fd_check = off;
    attack(&config, guest, off);
}

/// Descriptors are closed and used again for a folder of fewer rights, while another thread's calls are between two steps
/// that share a descriptor: no name is removed there, nothing outside is opened, the sandbox's own are what they were.
fn descriptor_reused(off: bool) {
    static FOLDER: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn reuses(_: usize) {
        let folder = FOLDER.load(Ordering::SeqCst);
        let own = experiment::first_own_fd() as usize;
        let lowest = || {
            // SAFETY: the guest's own.
            let fd = unsafe { call(Sysno::dup, [folder, 0, 0, 0, 0, 0]) }.unwrap_or(folder + 1);
            fd.max(folder + 1)
        };
        while !stopped() {
            let from = lowest();
            for fd in from..from + 3 {
                // SAFETY: what is the guest's, whoever uses it.
                unsafe {
                    let _ = call(Sysno::dup2, [folder, fd, 0, 0, 0, 0]);
                    check!(call(Sysno::dup2, [folder, own + fd % 8, 0, 0, 0, 0]) == Err(Errno::EBADF));
                    check!(call(Sysno::close, [own + fd % 8, 0, 0, 0, 0, 0]) == Err(Errno::EBADF));
                }
            }
            for fd in from..from + 3 {
                // SAFETY: as above.
                let _ = unsafe { call(Sysno::close, [fd, 0, 0, 0, 0, 0]) };
            }
        }
    }
    extern "C" fn guest(_: usize) -> i32 {
        const DIRECTORY: usize = 0o200_000;
        let folder = path("read");
        // SAFETY: a path.
        let folder = unsafe { call(Sysno::openat, [CWD, folder.as_ptr() as usize, DIRECTORY, 0, 0, 0]) }.unwrap();
        FOLDER.store(folder, Ordering::SeqCst);
        disturb(reuses);
        let (name, kept, token) = (path("write/name"), path("/read/name"), path("read/name"));
        let won = tries(|i| {
            let mut bytes = [0u8; 256];
            let at = bytes.as_mut_ptr() as usize;
            // SAFETY: paths, and a buffer of the guest's own.
            unsafe {
                match i % 4 {
                    // The folder is opened, and the name removed there.
                    0 => _ = call(Sysno::unlink, [name.as_ptr() as usize, 0, 0, 0, 0, 0]),
                    // The file is opened, and looked at.
                    1 => _ = call(Sysno::statx, [CWD, kept.as_ptr() as usize, 0, 0x7ff, at, 0]),
                    2 => {
                        let out = c"../outside".as_ptr() as usize;
                        if call(Sysno::openat, [folder, out, 0, 0, 0, 0]).is_ok() {
                            return true;
                        }
                    }
                    _ => {
                        if leads_to(Sysno::openat, if i % 8 == 3 { &kept } else { &token }, b"outside") {
                            return true;
                        }
                    }
                }
                i % 64 == 0 && call(Sysno::access, [kept.as_ptr() as usize, 0, 0, 0, 0, 0]) == Err(Errno::ENOENT)
            }
        });
        let result = finish(won);
        // The pipe by which memory is read, and the crash record.
        let own = experiment::first_own_fd();
        check!(sys::write(own + 3, b"p") == Ok(1) && sys::read(own + 2, &mut [0; 8]) == Ok(1));
        check!(sys::write(own + 1, b"c") == Ok(1) && sys::write(own, &1u64.to_ne_bytes()) == Ok(8));
        result
    }
    let scratch = Scratch::new();
    ["read", "write"].into_iter().for_each(|folder| scratch.folder(folder));
    scratch.file("read/name", b"inside");
    scratch.file("outside", b"outside");
    let (read, write) = (path("read"), path("write"));
    let policy = rooted(DIRECT.clone().threads(2), &read, Rights::READ);
    let all = Rights::READ.and(Rights::WRITE).and(Rights::CREATE);
    let policy = rooted(policy, &write, all);
    UNLINK_BY_T.store(off, Ordering::Relaxed);
    attack(&apart(&policy), guest, off);
    check!(sys::open(path("read/name").as_c()).is_ok() != off);
}
