//! Live fuzzing: a real sandbox, strict mode on, whose guest makes random calls with random pointers from several threads that
//! scribble over each other's requests, while its embedder sends signals.
//!
//! What is asserted: T makes no call but its own, those that [`Policy::decide`] allows, and those of a verdict ([`rules`]), as a
//! tracer sees it that looks at every system call of every T ([`observer`]); T's code and the policy never change; files beside
//! the root, a process beside the sandbox and memory of the embedder stay as they were; and every end is one that may be.
//!
//! A seed says what the guest's threads do, not how the scheduler mixes them: a failure is found again by repeating it.

mod guest;
mod observer;
mod rules;

use super::files::{ALL, rooted};
use super::*;
use ascetic::abi::PAGE;
use ascetic::error::Status;
use ascetic::experiment::Weaken;
use ascetic::policy::Limits;
use ascetic::sandbox::Cause;
use ascetic::sys;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use freestanding::files::{Scratch, path};

pub const CASES: &[Case] = &[
    case("live_fuzz", || {
        let (seconds, calls) = if emulated() { (2, 20_000) } else { (3, 60_000) };
        fuzz(sys::now(), calls, Feature::ALL, Some(Duration::from_secs(seconds)));
    }),
    case("live_fuzz_off_shows_it", off),
];

/// Pairs of the sandbox.
const PAIRS: usize = 3;
/// Requests after which a guest ends by itself.
const REQUESTS: u32 = 50_000;

/// What a guest does: for smaller failures, parts can be left out.
pub struct Feature;

impl Feature {
    /// Other threads scribble over the requests.
    const SCRIBBLES: u32 = 1;
    /// Other threads scribble over whose turn it is, too.
    const TURNS: u32 = 2;
    /// Calls that only the broker allows.
    const BROKERED: u32 = 4;
    /// Pointers to where nothing of the guest's is.
    const WILD: u32 = 8;
    /// The embedder sends signals.
    const SIGNALS: u32 = 16;
    /// Jumps into T's code.
    const JUMPS: u32 = 32;
    /// All of them.
    pub const ALL: u32 = 63;
}

/// What supervisor, guest and observer share.
#[repr(C)]
struct Board {
    seed: AtomicU64,
    features: AtomicU32,
    /// The guest is ready; the observer is; the guest may go; it is done.
    ready: AtomicU32,
    attached: AtomicU32,
    go: AtomicU32,
    done: AtomicU32,
    /// Where things are, as the guest said before anything hostile began.
    vault: [AtomicUsize; 2],
    pages: [AtomicUsize; 2],
    mailbox: AtomicUsize,
    altstack: AtomicUsize,
    fds: AtomicUsize,
    /// System calls of all Ts and of the first; of them, those that were made for the guest, by T alone and by verdicts; requests
    /// that were taken to the broker.
    calls: AtomicU64,
    first: AtomicU64,
    direct: AtomicU64,
    scripts: AtomicU64,
    asked: AtomicU64,
    /// Comparisons of T's code and the policy with what they were.
    compared: AtomicU64,
    /// What was found: 0 for nothing, 1 for a call that must not be, 2 for a vault that has changed.
    found: AtomicU32,
    /// The call that must not be: the pair, the number, the arguments.
    what: [AtomicUsize; 8],
}

const LEN: usize = size_of::<Board>().next_multiple_of(PAGE);
static BOARD: AtomicUsize = AtomicUsize::new(0);

fn board() -> &'static Board {
    // SAFETY: mapped before any guest was made, and never unmapped; zeros are valid.
    unsafe { &*(BOARD.load(Ordering::Relaxed) as *const Board) }
}

/// What T may do by itself: time, bytes through descriptors, none of it waiting for long.
const DIRECT: Policy = Policy::new()
    .direct(Sysno::getppid)
    .direct(Sysno::uname)
    .direct(Sysno::getrandom)
    .direct(Sysno::sched_yield)
    .direct(Sysno::read)
    .direct(Sysno::write)
    .direct(Sysno::pread64)
    .direct(Sysno::pwrite64)
    .direct(Sysno::readv)
    .direct(Sysno::writev)
    .direct(Sysno::lseek)
    .direct(Sysno::fstat)
    .direct(Sysno::ftruncate)
    .direct(Sysno::getdents64)
    .direct(Sysno::close)
    .direct(Sysno::dup)
    .direct(Sysno::dup2)
    .direct(Sysno::pipe2)
    .direct(Sysno::eventfd2)
    .direct(Sysno::futex)
    .memory()
    .signals()
    .limits(Limits { threads: PAIRS as u32, mapped: 64 << 20, descriptors: 200, calls: 0 });

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n.max(1)
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// What became of one guest.
enum End {
    /// As may be.
    Fine,
    /// T was asked for something that waits: the guest was ended.
    Stalled,
    /// By a signal.
    Signal(i32),
    /// Not as may be.
    Found(Found),
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// A T made a call that it must not make.
    Call,
    /// T's code or the policy has changed.
    Vault,
    /// An end that may not be.
    End,
}

/// A process beside the sandbox, that must not notice anything.
struct Bystander(u32);

impl Bystander {
    fn new() -> Self {
        // SAFETY: the child only waits.
        match unsafe { sys::fork() }.unwrap() {
            0 => loop {
                let _ = sys::poll(&mut [], None);
            },
            pid => Self(pid),
        }
    }

    fn is_well(&self) -> bool {
        const WUNTRACED_NOHANG_WALL: usize = 1 | 2 | 0x4000_0000;
        let mut raw = 0i32;
        // SAFETY: the kernel stores a word.
        let waited = unsafe {
            freestanding::call(Sysno::wait4, [self.0 as usize, (&raw mut raw).addr(), WUNTRACED_NOHANG_WALL, 0])
        };
        waited == Ok(0)
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = sys::kill(self.0, 9);
        let _ = sys::wait(self.0, true);
    }
}

/// Whether a file still has what was written there, and nothing else.
fn is_as_it_was(name: &str, bytes: &[u8]) -> bool {
    let mut read = [0u8; 32];
    let fd = sys::open(path(name).as_c());
    fd.is_ok_and(|fd| {
        let len = sys::read(fd, &mut read);
        sys::close(fd);
        len == Ok(bytes.len()) && read.starts_with(bytes)
    })
}

fn make_board() {
    let fd = sys::memfd(c"board", LEN, false).unwrap();
    BOARD.store(sys::map_shared(LEN, sys::PROT_READ | sys::PROT_WRITE, fd).unwrap(), Ordering::Relaxed);
    sys::close(fd);
}

fn files() -> Scratch {
    let scratch = Scratch::with_file();
    scratch.file("in/other", b"other");
    scratch.link("in/escape", "../outside");
    scratch
}

/// With a defence taken out, the observer finds what it is there for.
fn off() {
    make_board();
    let _scratch = files();
    let root = path("in");
    let policy = rooted(DIRECT, &root, ALL);
    let none = Weaken::default();
    let own = Weaken { no_fd_check: true, ..none };
    let vault = Weaken { no_vault_check: true, ..none };
    let open = Weaken { no_vault_check: true, no_seal: true, ..none };
    for (weaken, expected) in [(open, Found::Vault), (own, Found::Call), (vault, Found::Call)] {
        // What is found first may be another: a call, before it has done anything, or the end that it makes.
        IGNORE_CALLS.store(expected == Found::Vault, Ordering::Relaxed);
        let found = (0..200)
            .any(|seed| matches!(one(seed, Feature::ALL, &policy, weaken), End::Found(found) if found == expected));
        check!(found, "{weaken:?}: {expected:?} is not found");
    }
}

/// When guests are ended: the time of the run is over.
static UNTIL: AtomicU64 = AtomicU64::new(u64::MAX);
/// The observer does not mind calls that T must not make: to see what becomes of them.
static IGNORE_CALLS: AtomicBool = AtomicBool::new(false);

/// Runs guests with this seed and the next ones until their Ts have made so many calls, or the time is over.
pub fn fuzz(seed: u64, calls: u64, features: u32, time: Option<Duration>) {
    make_board();
    let _scratch = files();
    let root = path("in");
    let policy = rooted(DIRECT, &root, ALL);
    let bystander = Bystander::new();
    let canary = core::hint::black_box([0x5au8; 4096]);
    let start = sys::now();
    let until = time.map_or(u64::MAX, |time| start + time.as_nanos() as u64);
    UNTIL.store(until, Ordering::Relaxed);
    let (mut guests, mut stalled, mut signals) = (0u64, 0u64, [0u32; 65]);
    let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let made = || count(&board().direct) + count(&board().asked);
    while made() < calls && sys::now() < until {
        let this = seed.wrapping_add(guests);
        match one(this, features, &policy, Weaken::default()) {
            End::Fine => {}
            End::Found(found) => check!(false, "seed {this} features {features}: {found:?}"),
            End::Stalled => stalled += 1,
            End::Signal(signal) => signals[signal as usize & 63] += 1,
        }
        guests += 1;
        let untouched = is_as_it_was("outside", b"outside") && bystander.is_well() && canary.iter().all(|b| *b == 0x5a);
        check!(untouched, "seed {this} features {features}: somebody outside was touched");
    }
    note!(
        "{} calls: {} by T alone, {} taken to the broker, whose verdicts had T make {}; {guests} guests, {stalled} stalled; {} system calls of Ts looked at, {} comparisons of the vault, in {} s, from seed {seed}",
        made(),
        count(&board().direct),
        count(&board().asked),
        count(&board().scripts),
        count(&board().calls),
        count(&board().compared),
        (sys::now() - start) / 1_000_000_000
    );
    let mut line = freestanding::Line::new();
    for (signal, count) in signals.iter().enumerate().filter(|(_, count)| **count > 0) {
        use core::fmt::Write as _;
        let _ = write!(line, " {count} by signal {signal}");
    }
    note!("guests ended{}", line.as_str());
    let scripts = count(&board().scripts) > 0 || features & Feature::BROKERED == 0;
    check!(count(&board().direct) > 0 && scripts && count(&board().compared) >= guests);
}

/// Runs one guest to its end. What is found it prints.
fn one(seed: u64, features: u32, policy: &Policy<'_>, weaken: Weaken) -> End {
    const STALL: u64 = 300_000_000;
    let board = board();
    for word in [&board.ready, &board.attached, &board.go, &board.done, &board.found] {
        word.store(0, Ordering::SeqCst);
    }
    board.seed.store(seed, Ordering::SeqCst);
    board.features.store(features, Ordering::SeqCst);
    let (file, null) = (sys::memfd(c"kept", 8192, false).unwrap(), sys::open(c"/dev/null").unwrap());
    let (keep, share) = ([file, null], [(BOARD.load(Ordering::Relaxed), LEN)]);
    let placement = sandbox::Placement::Floating;
    let config = Config { keep: &keep, share: &share, placement, tracer: Some(-1), weaken, ..Config::new(policy) };
    let mut sandbox = spawn(&config, guest::run, file as usize);
    let serve = |sandbox: &mut Sandbox<'_>, flag: &AtomicU32| {
        let start = sys::now();
        while flag.load(Ordering::SeqCst) == 0 {
            let ended = sandbox.serve(Some(Duration::from_millis(1)));
            check!(ended.is_none(), "seed {seed}: {ended:?} before it began");
            check!(sys::now() - start < PATIENCE.as_nanos() as u64, "seed {seed}: it does not begin");
        }
    };
    serve(&mut sandbox, &board.ready);
    let mut ts = [0; PAIRS];
    ts.iter_mut().zip(sandbox.tasks()).for_each(|(to, (t, _))| *to = t);
    check!(ts.iter().all(|t| *t != 0), "seed {seed}: {ts:?}");
    // SAFETY: the child is a program of its own from here on, with this one's memory.
    let observer = match unsafe { sys::fork() }.unwrap() {
        0 => observer::run(&ts, policy),
        pid => pid,
    };
    serve(&mut sandbox, &board.attached);
    board.go.store(1, Ordering::SeqCst);
    let mut random = Random::new(seed ^ 0x51);
    let (mut seen, mut at) = (0, sys::now());
    let mut stalled = false;
    let us: [u32; PAIRS] = {
        let mut us = [0; PAIRS];
        us.iter_mut().zip(sandbox.tasks()).for_each(|(to, (_, u))| *to = u);
        us
    };
    let outcome = loop {
        if let Some(outcome) = sandbox.serve(Some(Duration::from_millis(5))) {
            break outcome;
        }
        // Some that are harmless, some that end it: of those the reporter tells. Never to a task that was reaped.
        if features & Feature::SIGNALS != 0 && random.one_in(400) && sandbox.tasks().eq(ts.into_iter().zip(us)) {
            let signal =
                if random.one_in(20) { random.of(&[4, 5, 6, 7, 8, 11, 31]) } else { random.of(&[17, 23, 28, 64]) };
            let _ = sys::kill(random.of(&us), signal);
        }
        let first = board.first.load(Ordering::Relaxed);
        let now = sys::now();
        if first != seen {
            (seen, at) = (first, now);
        }
        stalled = now - at > STALL;
        if now > UNTIL.load(Ordering::Relaxed) {
            break sandbox.kill();
        }
        if stalled || board.done.load(Ordering::SeqCst) != 0 || board.found.load(Ordering::SeqCst) != 0 {
            break sandbox.kill();
        }
    };
    let observed = sys::wait(observer, true).unwrap().map(Status::from_raw);
    sys::close(file);
    sys::close(null);
    let what: [usize; 8] = core::array::from_fn(|i| board.what[i].load(Ordering::SeqCst));
    let found = board.found.load(Ordering::SeqCst);
    check!(observed == Some(Status::Exited(0)), "seed {seed}: the observer: {observed:?}");
    match found {
        0 => {}
        1 => {
            println!("T {} made call {} {:x?}", what[0], what[1], &what[2..]);
            return End::Found(Found::Call);
        }
        _ => return End::Found(Found::Vault),
    }
    let allowed = match outcome.guest {
        Status::Exited(_) => true,
        Status::Signaled { signal, .. } => {
            [4, 5, 6, 7, 8, 9, 11, 31].contains(&signal) || features & Feature::BROKERED != 0
        }
    };
    // T ends by the supervisor's hand only, or with its guest where a core ends all.
    let with_guest = matches!(outcome.guest, Status::Signaled { signal, .. } if outcome.trusted.is_signal(signal));
    let well = outcome.trusted.is_signal(9) || with_guest && !cores_spare_others();
    if !allowed || outcome.left != 0 || !well || outcome.cause == Cause::TrustedDied {
        println!("{outcome:?}");
        return End::Found(Found::End);
    }
    match outcome.guest {
        _ if stalled => End::Stalled,
        Status::Signaled { signal, .. } if outcome.cause == Cause::Guest => End::Signal(signal),
        _ => End::Fine,
    }
}
