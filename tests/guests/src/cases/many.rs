//! Many sandboxes that one thread serves: nothing is lost, nothing is left, nobody is served at the others' cost.

use super::files::rooted;
use super::misuse::has_children;
use super::program::DIRECT;
use super::supervisor::field;
use super::*;
use ascetic::abi::PAGE;
use ascetic::experiment;
use ascetic::policy::Rights;
use ascetic::poller::Poller;
use ascetic::sys;
use ascetic::untrusted::{self, call};
use core::sync::atomic::AtomicU32;
use freestanding::files::{MMAP, STAT, Scratch, path};
use freestanding::threads;

pub const CASES: &[Case] = &[
    case("many_hammer_the_broker", hammer),
    case("many_beside_a_flood_of_rings", || beside(rings)),
    case("many_beside_a_flood_of_forged_requests", || beside(forges)),
];

/// The most sandboxes of a case.
const MOST: usize = 64;
/// Threads of each.
const THREADS: usize = 4;

/// What sandboxes and supervisor share.
#[repr(C)]
struct Board {
    stop: AtomicU32,
    /// Calls that each thread has made.
    calls: [[AtomicU32; THREADS]; MOST + 1],
}

static BOARD: core::sync::atomic::AtomicPtr<Board> = core::sync::atomic::AtomicPtr::new(core::ptr::null_mut());
const LEN: usize = size_of::<Board>().next_multiple_of(PAGE);

fn board() -> &'static Board {
    // SAFETY: mapped before any guest was made, and never unmapped; zeros are valid.
    unsafe { &*BOARD.load(Ordering::Relaxed) }
}

impl Board {
    fn calls(&self, sandbox: usize) -> u32 {
        self.calls[sandbox].iter().map(|calls| calls.load(Ordering::Relaxed)).sum()
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) != 0
    }
}

static SANDBOX: AtomicU32 = AtomicU32::new(0);

/// Calls that the broker decides, until the end is written on the board.
extern "C" fn calls(thread: usize) {
    let sandbox = SANDBOX.load(Ordering::Relaxed) as usize;
    let file = path("/in/file"); // there is a `//` in it, so that no token is used
    let mut stat = [0u8; 256];
    while !board().stopped() {
        // SAFETY: a path, a buffer and memory of the guest's own.
        unsafe {
            let fd = call(Sysno::openat, [-100isize as usize, file.as_ptr() as usize, 0, 0, 0, 0]);
            check!(fd.is_ok(), "{fd:?}");
            let closed = call(Sysno::close, [fd.unwrap_or(0), 0, 0, 0, 0, 0]);
            check!(closed == Ok(0), "{closed:?}");
            let looked = call(STAT[0], [file.as_ptr() as usize, stat.as_mut_ptr() as usize, 0, 0, 0, 0]);
            check!(looked == Ok(0), "{looked:?}");
            let at = call(MMAP, [0, PAGE, sys::PROT_READ | sys::PROT_WRITE, 0x22, usize::MAX, 0]);
            check!(at.is_ok(), "{at:?}");
            let unmapped = call(Sysno::munmap, [at.unwrap_or(0), PAGE, 0, 0, 0, 0]);
            check!(unmapped == Ok(0), "{unmapped:?}");
        }
        board().calls[sandbox][thread].fetch_add(5, Ordering::Relaxed);
    }
}

/// Runs `f` in all threads.
fn in_all(f: extern "C" fn(usize)) -> i32 {
    let words: [AtomicU32; THREADS - 1] = [const { AtomicU32::new(1) }; THREADS - 1];
    for (i, word) in words.iter().enumerate() {
        // SAFETY: the stack is the thread's until its word is cleared.
        let tid = unsafe { untrusted::thread::spawn(f, i + 1, threads::stack(i), word.as_ptr() as usize) };
        check!(tid.is_ok(), "{tid:?}");
    }
    f(0);
    for word in &words {
        threads::join(word, |at, tid| {
            // SAFETY: the word is the guest's.
            let _ = unsafe { call(Sysno::futex, [at, 0, tid as usize, 0, 0, 0]) };
        });
    }
    0
}

extern "C" fn works(sandbox: usize) -> i32 {
    SANDBOX.store(sandbox as u32, Ordering::Relaxed);
    in_all(calls)
}

/// Rings without a pause, and asks for nothing.
extern "C" fn rings(_: usize) -> i32 {
    extern "C" fn rings(_: usize) {
        while !board().stopped() {
            let _ = sys::write(experiment::first_own_fd(), &1u64.to_ne_bytes());
        }
    }
    in_all(rings)
}

/// The same, and each time says that it asks.
extern "C" fn forges(_: usize) -> i32 {
    extern "C" fn forges(_: usize) {
        let mailbox = experiment::mailbox().0 as *mut ascetic::abi::Mailbox;
        let mut asks = 0x7777_7777u32;
        while !board().stopped() {
            asks = asks.wrapping_add(1);
            // SAFETY: inside the mailbox, which is the guest's to write.
            unsafe { (&raw mut (*mailbox).asks).write_volatile(asks) };
            let _ = sys::write(experiment::first_own_fd(), &1u64.to_ne_bytes());
        }
    }
    in_all(forges)
}

/// Only takes the processors' time.
extern "C" fn spins(_: usize) -> i32 {
    extern "C" fn spins(_: usize) {
        while !board().stopped() {
            core::hint::spin_loop();
        }
    }
    in_all(spins)
}

/// Serves `count` sandboxes that work, and one that runs `beside`, for a while; all must end well. The fewest calls that one
/// has made, the most, and those of all.
fn serve(config: &Config<'_>, count: usize, beside: Option<extern "C" fn(usize) -> i32>, time: Duration) -> [u32; 3] {
    let mut poller = Poller::<{ MOST + 1 }>::new().unwrap();
    let mut sandboxes: [Option<Sandbox>; MOST + 1] = [const { None }; MOST + 1];
    board().stop.store(0, Ordering::Relaxed);
    board().calls.iter().flatten().for_each(|calls| calls.store(0, Ordering::Relaxed));
    for (key, place) in sandboxes.iter_mut().enumerate().take(count + usize::from(beside.is_some())) {
        let guest = beside.filter(|_| key == count).unwrap_or(works);
        check!(poller.add(key, place.insert(spawn(config, guest, key))).is_ok());
    }
    check!(poller.add(0, sandboxes[0].as_ref().unwrap()).is_err());
    // What counts begins when all are there, and ends when they are told to.
    let mut before = [0; MOST];
    let mut made = [0; MOST];
    let (start, mut begun) = (sys::now(), false);
    let time = time.as_nanos() as u64;
    let warm = time / 10;
    while !poller.is_empty() {
        let key = poller.wait(Some(Duration::from_millis(10))).unwrap();
        let spent = sys::now() - start;
        let stopped = board().stopped();
        if !begun && spent > warm {
            begun = true;
            before = core::array::from_fn(|i| board().calls(i));
        }
        if !stopped && spent > warm + time {
            made = core::array::from_fn(|i| board().calls(i) - before[i]);
            board().stop.store(1, Ordering::Relaxed);
        }
        check!(spent < warm + time + PATIENCE.as_nanos() as u64, "they do not end");
        let Some(key) = key else { continue };
        let Some(sandbox) = &mut sandboxes[key] else { continue };
        if let Some(outcome) = poller.serve(key, sandbox) {
            check!(stopped && outcome.guest == Status::Exited(0), "{key}: {outcome:?}");
            let (_, refused) = sandbox.refusals();
            check!(refused == 0 || key == count, "{refused} were refused");
            sandboxes[key] = None;
        }
    }
    let made = &made[..count];
    [made.iter().copied().min().unwrap_or(0), made.iter().copied().max().unwrap_or(0), made.iter().sum()]
}

/// Descriptors, and kilobytes of memory: all, resident.
fn used() -> [usize; 3] {
    let mut text = [0u8; 4096];
    let pid = sys::pids().0;
    let mut number = |name| field(pid, name, &mut text).split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    let (size, resident) = (number("VmSize:"), number("VmRSS:"));
    [(0..8192).filter(|fd| sys::is_open(*fd)).count(), size, resident]
}

/// Runs something with a policy for programs that work, and a board.
fn with_board(run: impl FnOnce(&Config<'_>)) {
    let scratch = Scratch::new();
    scratch.folder("in");
    scratch.file("in/file", b"inside");
    let fd = sys::memfd(c"board", LEN, false).unwrap();
    let at = sys::map_shared(LEN, sys::PROT_READ | sys::PROT_WRITE, fd).unwrap();
    sys::close(fd);
    BOARD.store(at as *mut Board, Ordering::Relaxed);
    // A descriptor for each task, and some more for each sandbox.
    let [_, most] = sys::limit(0, sys::RLIMIT_NOFILE, None).unwrap();
    check!(sys::limit(0, sys::RLIMIT_NOFILE, Some([most.min(8192), most])).is_ok());
    let root = path("in");
    let policy = DIRECT.clone().threads(THREADS as u32).memory();
    let policy = rooted(policy, &root, Rights::READ);
    run(&Config { keep: &[1, 2], share: &[(at, LEN)], ..Config::new(&policy) });
}

fn hammer() {
    let (count, time) = match (emulated(), is_long()) {
        (true, _) => (4, Duration::from_secs(2)),
        (_, true) => (MOST, Duration::from_secs(60)),
        _ => (MOST, Duration::from_secs(2)),
    };
    with_board(|config| {
        serve(config, 2, None, Duration::from_millis(100)); // what is made once is made
        let before = used();
        let [least, most, all] = serve(config, count, None, time);
        let after = used();
        note!("{count} sandboxes made {all} calls in {} s, each {least} to {most}", time.as_secs());
        check!(least > 0 && most <= 2 * least, "{least} to {most}");
        check!(!has_children());
        // Kernels before 6.2 count up to 64 pages late, each of files, of shared memory, and of no file (`SPLIT_RSS_COUNTING`,
        // mm/memory.c).
        let slack = if emulated() { 3 * 256 } else { 64 };
        check!(after[..2] == before[..2] && after[2] <= before[2] + slack, "{before:?} {after:?}");
    });
}

/// Some that work beside one with the given guest: it costs them what one costs that only takes time, and some more at most.
fn beside(floods: extern "C" fn(usize) -> i32) {
    let (count, time) = if emulated() { (2, Duration::from_secs(2)) } else { (8, Duration::from_secs(1)) };
    with_board(|config| {
        let [_, _, quiet] = serve(config, count, Some(spins), time);
        let [least, most, flooded] = serve(config, count, Some(floods), time);
        note!("{quiet} calls beside one that spins, {flooded} beside the flood, each {least} to {most}");
        check!(flooded > quiet / 4 && most <= 2 * least);
    });
}
