//! Births and ends at the worst moment: nobody runs that the supervisor does not know, and nobody is left.

use super::misuse::{children, has_children};
use super::program::{DIRECT, program};
use super::*;
use ascetic::abi::{Mailbox, STRIDE};
use ascetic::experiment::{self, BELIEVE_ASKS, FORGET_UNBORN, HOLD_GATES, LOOKS, NO_PAUSES, OPEN_GATES};
use ascetic::sandbox::Cause;
use ascetic::sys::{self, Errno};
use ascetic::untrusted;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use freestanding::threads::{self, THREAD};

pub const CASES: &[Case] = &[
    case("births_end_leaves_nobody", || check!(ends_leave(if emulated() { 30 } else { 150 }) == 0)),
    case("births_end_leaves_nobody_off_shows_it", || {
        FORGET_UNBORN.store(true, Ordering::Relaxed);
        if ends_leave(4000) == 0 {
            skip("none of 4000 ends met a birth at the moment when its task is known to nobody");
        }
    }),
    case("births_creator_exits", creator_exits),
    case("births_creator_exits_others_go_on", others_go_on),
    case("births_forged_asks", || forged_asks(false)),
    case("births_forged_asks_off_shows_it", || forged_asks(true)),
    case("births_exit_group", exit_group),
    case("births_messages_of_the_dead", messages_of_the_dead),
    case("births_doorbells_open_no_gate", || doorbells(false)),
    case("births_open_gate_shows_it", || doorbells(true)),
    case("births_forger_slows_itself", || forger_slows_itself(false)),
    case("births_forger_off_shows_it", || forger_slows_itself(true)),
    case("births_forger_uses_up_no_calls", forger_uses_up_no_calls),
];

const POLICY: Policy = DIRECT.threads(8);

fn spin(n: usize) {
    (0..n).for_each(|_| core::hint::spin_loop());
}

fn mailbox(k: usize) -> *mut Mailbox {
    (MAILBOX.load(Ordering::SeqCst) + k * STRIDE) as *mut Mailbox
}
static MAILBOX: AtomicUsize = AtomicUsize::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
static ARG: AtomicUsize = AtomicUsize::new(0);

fn ring(fd: i32) {
    let _ = sys::write(fd, &1u64.to_ne_bytes());
}

/// The doorbells of T and of U of pair `k`, of a guest without roots.
fn bells(k: usize) -> (i32, i32) {
    let first = experiment::first_own_fd() + experiment::OWN_FDS as i32 - 2;
    (first + 2 * k as i32, first + 2 * k as i32 + 1)
}

fn spawn_thread(i: usize, f: extern "C" fn(usize), arg: usize, word: &AtomicU32) -> sys::Result<u32> {
    word.store(1, Ordering::SeqCst);
    // SAFETY: the stack is this thread's until its word is cleared, or not used at all.
    unsafe { untrusted::thread::spawn(f, arg, threads::stack(i), word.as_ptr() as usize) }
}

fn join(word: &AtomicU32) {
    threads::join(word, |at, tid| {
        // SAFETY: the word is the guest's.
        let _ = unsafe { untrusted::call(Sysno::futex, [at, 0, tid as usize, 0, 0, 0]) };
    });
}

/// A thread that ends at once.
fn spawn_and_join(i: usize) -> sys::Result<u32> {
    extern "C" fn nothing(_: usize) {}
    let word = AtomicU32::new(0);
    let tid = spawn_thread(i, nothing, 0, &word)?;
    join(&word);
    Ok(tid)
}

/// Milliseconds of the guest's clock.
fn ms() -> usize {
    let mut ts = [0usize; 2];
    // SAFETY: the kernel stores a timespec of two words.
    let _ = unsafe { untrusted::call(Sysno::clock_gettime, [1, ts.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    ts[0] * 1000 + ts[1] / 1_000_000
}

/// Asks as the runtime of pair `k` does, without its help, and does not wait for the reply. What the request carries is
/// what the last one did.
fn ask(k: usize, nr: Sysno, args: [usize; 6]) -> u32 {
    let mailbox = mailbox(k);
    // SAFETY: the thread's own mailbox.
    let turn = unsafe {
        (&raw mut (*mailbox).len).write_volatile(ascetic::abi::PAYLOAD as u32);
        (&raw mut (*mailbox).line.nr).write_volatile(nr as u32);
        (&raw mut (*mailbox).line.args).write_volatile(args);
        let turn = &raw mut (*mailbox).line.turn;
        turn.write_volatile(turn.read_volatile().wrapping_add(1));
        turn.read_volatile()
    };
    ring(bells(k).0);
    turn
}

/// Asks for a thread like the last one, and ends as soon as the broker has told its T to make one, or a little later.
fn leave_a_birth(k: usize, delay: usize, status: i32) -> ! {
    // SAFETY: the address of a word that can be read.
    let seq = unsafe { &raw const (*experiment::pages().1).seq };
    // SAFETY: as above.
    let before = unsafe { seq.read_volatile() };
    ask(k, Sysno::clone, [THREAD, 0, 0, 0, 0, 0]);
    // SAFETY: as above.
    while unsafe { seq.read_volatile() } == before {}
    spin(delay);
    sys::exit(status)
}

/// Starts threads without end.
extern "C" fn bears_for_ever(_: usize) -> i32 {
    loop {
        let _ = spawn_and_join(0);
    }
}

/// Ends a guest that starts threads, in every way there is, and says which end left somebody, if one did.
fn ends_leave(attempts: u64) -> u64 {
    for i in 0..attempts {
        let mut sandbox = spawn(&program(&POLICY), bears_for_ever, 0);
        let until = Duration::from_micros(2000 + i * 37 % 3000);
        let outcome = match i % 3 {
            0 => Some(sandbox.wait(Some(until))),
            way => {
                let start = sys::now();
                while sys::now() - start < until.as_nanos() as u64 {
                    check!(sandbox.serve(Some(Duration::ZERO)).is_none());
                }
                (way == 1).then(|| sandbox.kill())
            }
        };
        check!(outcome.is_none_or(|outcome| outcome.left == 0), "{outcome:?}");
        drop(sandbox);
        if has_children() {
            return i + 1;
        }
    }
    0
}

/// The only thread ends while its T makes another: the sandbox ends, and nobody waits for that one.
fn creator_exits() {
    extern "C" fn guest(n: usize) -> i32 {
        MAILBOX.store(experiment::mailbox().0, Ordering::SeqCst);
        check!(spawn_and_join(0).is_ok());
        leave_a_birth(0, n * 100, 5)
    }
    for n in 0..100 {
        let outcome = run(&Config { placement: sandbox::Placement::Floating, ..program(&POLICY) }, guest, n);
        check!(outcome.cause == Cause::Guest && outcome.guest == Status::Exited(5), "{outcome:?}");
        check!(outcome.left == 0 && !has_children());
    }
}

/// Threads end while their Ts make others: what those had can be used again, and the rest go on.
fn others_go_on() {
    extern "C" fn leaves(n: usize) {
        let pair = (experiment::mailbox().0 - MAILBOX.load(Ordering::SeqCst)) / STRIDE;
        // A stack that nobody else uses: the birth may succeed.
        while spawn_and_join(2 + n).is_err() {}
        leave_a_birth(pair, n % 50 * 100, 0)
    }
    extern "C" fn guest(_: usize) -> i32 {
        MAILBOX.store(experiment::mailbox().0, Ordering::SeqCst);
        static WORD: AtomicU32 = AtomicU32::new(0);
        let start = ms();
        for n in 0..100 {
            while let Err(errno) = spawn_thread(0, leaves, n, &WORD) {
                check!(errno == Errno::EAGAIN && ms() < start + 20_000, "{errno}");
            }
            join(&WORD);
        }
        // There is room for as many as ever; but for those that a T was killed over before it could make them.
        let mut done = 0;
        while done < 20 {
            done += usize::from(spawn_and_join(1).is_ok());
            check!(ms() < start + 20_000);
        }
        0
    }
    let policy = DIRECT.threads(256);
    let config = Config { placement: sandbox::Placement::Floating, ..program(&policy) };
    let outcome = run(&config, guest, 0);
    check!(outcome.guest == Status::Exited(0) && outcome.left == 0, "{outcome:?}");
    check!(!has_children());
}

/// Says in the name of the first thread that it asks for something, and rings.
extern "C" fn forges_asks(_: usize) {
    let alarm = experiment::first_own_fd();
    let mut n = 0x4000_0000u32;
    while !STOP.load(Ordering::Relaxed) {
        n += 1;
        // SAFETY: the mailbox of the first thread, which any thread of the guest can write.
        unsafe { (&raw mut (*mailbox(0)).asks).write_volatile(n) };
        ring(alarm);
        spin(50);
    }
}

/// Ten thousand births, while another thread says that their creator asks for something else: every pair has one T.
fn forged_asks(off: bool) {
    extern "C" fn guest(fd: usize) -> i32 {
        MAILBOX.store(experiment::mailbox().0, Ordering::SeqCst);
        static WORD: AtomicU32 = AtomicU32::new(0);
        check!(spawn_thread(0, forges_asks, 0, &WORD).is_ok());
        let (start, births) = (ms(), ARG.load(Ordering::SeqCst));
        let mut done = 0;
        while done < births && ms() < start + 10_000 {
            done += usize::from(spawn_and_join(1).is_ok());
        }
        let _ = sys::write(fd as i32, b"x");
        loop {
            spin(1000);
        }
    }
    let (read, write) = sys::pipe().unwrap();
    ARG.store(if emulated() { 500 } else { 3_000 }, Ordering::SeqCst);
    BELIEVE_ASKS.store(off, Ordering::Relaxed);
    let keep = [1, 2, write];
    let placement = sandbox::Placement::Floating;
    let mut sandbox = spawn(&Config { keep: &keep, placement, ..program(&POLICY) }, guest, write as usize);
    let serve = |sandbox: &mut Sandbox<'_>, ms: u64| {
        let start = sys::now();
        while sys::now() - start < ms * 1_000_000 && sys::read(read, &mut [0; 1]) != Ok(1) {
            check!(sandbox.serve(Some(Duration::from_millis(1))).is_none());
        }
    };
    serve(&mut sandbox, if off { 2000 } else { 40_000 });
    serve(&mut sandbox, 200);
    // Two pairs; and those that nobody knows.
    let count = children(|_| ());
    check!(if off { count > 4 } else { count == 4 }, "{count}");
    drop(sandbox);
    if !off {
        check!(!has_children());
    }
}

/// All are to end while threads are born, and who asked for that goes on: it makes no more of them, and its end is the end.
fn exit_group() {
    extern "C" fn bears(i: usize) {
        loop {
            let _ = spawn_and_join(i);
        }
    }
    extern "C" fn guest(n: usize) -> i32 {
        static WORDS: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
        MAILBOX.store(experiment::mailbox().0, Ordering::SeqCst);
        for (i, word) in WORDS.iter().enumerate() {
            check!(spawn_thread(i, bears, 2 + i, word).is_ok());
        }
        spin(n * 1000);
        // The call itself: the runtime's would end this thread, too.
        let turn = ask(0, Sysno::exit_group, [44, 0, 0, 0, 0, 0]);
        // SAFETY: the mailbox is the guest's.
        while unsafe { (&raw const (*mailbox(0)).line.turn).read_volatile() } == turn {}
        // SAFETY: the runtime's idea of whose turn it is.
        unsafe { experiment::turn().write_volatile(turn.wrapping_add(1)) };
        for _ in 0..10 {
            let result = spawn_and_join(5);
            check!(result == Err(Errno::EAGAIN), "{result:?}");
        }
        sys::exit(44)
    }
    for n in 0..if emulated() { 10 } else { 100 } {
        let outcome = run(&program(&POLICY), guest, n);
        check!(outcome.guest == Status::Exited(44) && outcome.left == 0, "{outcome:?}");
        check!(!has_children());
    }
}

/// Threads that announce births of every pair and are gone before anybody looks.
fn messages_of_the_dead() {
    extern "C" fn announces(_: usize) {
        let births = experiment::first_own_fd() + 5;
        for what in [0, 1, 0, 2, 1] {
            for k in 1..8 {
                check!(sys::write(births, &[k, 0, 0, 0, what, 0, 0, 0]) == Ok(8));
            }
        }
    }
    extern "C" fn guest(fd: usize) -> i32 {
        static WORDS: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];
        let (start, mut done) = (ms(), 0);
        while done < ARG.load(Ordering::SeqCst) && ms() < start + 15_000 {
            for (i, word) in WORDS.iter().enumerate() {
                if word.load(Ordering::SeqCst) == 0 && spawn_thread(i, announces, 0, word).is_err() {
                    word.store(0, Ordering::SeqCst);
                }
            }
            match spawn_and_join(3) {
                Ok(_) => done += 1,
                Err(errno) => check!(errno == Errno::EAGAIN, "{errno}"),
            }
        }
        check!(done >= 50, "{done}");
        WORDS.iter().for_each(join);
        let _ = sys::write(fd as i32, b"x");
        loop {
            spin(1000);
        }
    }
    ARG.store(if emulated() { 50 } else { 1000 }, Ordering::SeqCst);
    let (read, write) = sys::pipe().unwrap();
    let keep = [1, 2, write];
    let mut sandbox = spawn(&Config { keep: &keep, ..program(&POLICY) }, guest, write as usize);
    while sys::read(read, &mut [0; 1]) != Ok(1) {
        check!(sandbox.serve(Some(Duration::from_millis(1))).is_none());
    }
    let start = sys::now();
    while children(|_| ()) != 2 && sys::now() - start < 2_000_000_000 {
        check!(sandbox.serve(Some(Duration::from_millis(1))).is_none());
    }
    check!(children(|_| ()) == 2);
    drop(sandbox);
    check!(!has_children());
}

/// A thread that the supervisor does not let go does not run, whoever rings.
fn doorbells(open: bool) {
    extern "C" fn runs(_: usize) {
        ARG.store(1, Ordering::SeqCst);
    }
    extern "C" fn rings(n: usize) {
        // It is the first thread's clone that is never answered: this one tells.
        for _ in 0..n {
            (1..8).for_each(|k| ring(bells(k).1));
            spin(20_000);
        }
        let ran = ARG.load(Ordering::SeqCst).min(1);
        // SAFETY: ends all.
        let _ = unsafe { untrusted::call(Sysno::exit_group, [10 + ran, 0, 0, 0, 0, 0]) };
    }
    extern "C" fn guest(fd: usize) -> i32 {
        static WORDS: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
        check!(spawn_thread(0, rings, 300, &WORDS[0]).is_ok());
        let _ = sys::write(fd as i32, b"x");
        let _ = sys::read(ARG.swap(0, Ordering::SeqCst) as i32, &mut [0; 1]);
        let _ = spawn_thread(1, runs, 0, &WORDS[1]);
        sys::exit(1)
    }
    let ((read, write), (go_on, held)) = (sys::pipe().unwrap(), sys::blocking_pipe().unwrap());
    let keep = [1, 2, write, go_on];
    ARG.store(go_on as usize, Ordering::SeqCst);
    let mut sandbox = spawn(&Config { keep: &keep, ..program(&POLICY) }, guest, write as usize);
    while sys::read(read, &mut [0; 1]) != Ok(1) {
        check!(sandbox.serve(Some(Duration::from_millis(1))).is_none());
    }
    HOLD_GATES.store(true, Ordering::Relaxed);
    OPEN_GATES.store(open, Ordering::Relaxed);
    let _ = sys::write(held, b"x");
    let outcome = sandbox.wait(Some(PATIENCE));
    check!(outcome.guest == Status::Exited(if open { 11 } else { 10 }), "{outcome:?}");
}

const IDLE: usize = 60;

/// A guest that has all its threads seem to ask is looked at less and less often: it slows down itself, not those that the
/// same thread serves.
fn forger_slows_itself(off: bool) {
    extern "C" fn idles(_: usize) {
        let mut word = 0u32;
        // SAFETY: the word is the thread's own.
        let _ = unsafe { untrusted::call(Sysno::futex, [&raw mut word as usize, 0, 0, 0, 0, 0]) };
    }
    extern "C" fn guest(_: usize) -> i32 {
        static WORDS: [AtomicU32; IDLE] = [const { AtomicU32::new(0) }; IDLE];
        MAILBOX.store(experiment::mailbox().0, Ordering::SeqCst);
        for (i, word) in WORDS.iter().enumerate() {
            check!(spawn_thread(i, idles, 0, word).is_ok());
        }
        let alarm = experiment::first_own_fd();
        for n in 0x4000_0000u32.. {
            for k in 1..=IDLE {
                // SAFETY: the mailboxes of other threads, which any thread of the guest can write.
                unsafe { (&raw mut (*mailbox(k)).asks).write_volatile(n) };
            }
            ring(alarm);
        }
        0
    }
    NO_PAUSES.store(off, Ordering::Relaxed);
    let policy = DIRECT.threads(IDLE as u32 + 1);
    let mut sandbox = spawn(&program(&policy), guest, 0);
    let start = sys::now();
    while children(|_| ()) < 2 * (IDLE + 1) {
        check!(sandbox.serve(Some(Duration::from_millis(10))).is_none() && sys::now() - start < 30_000_000_000);
    }
    LOOKS.store(0, Ordering::Relaxed);
    let start = sys::now();
    let mut turns = 0;
    while turns < 1000 || sys::now() - start < 500_000_000 {
        check!(sandbox.serve(Some(Duration::from_millis(1))).is_none());
        turns += 1;
    }
    // Eight at once, eleven on the way to the longest pause, and then as many as there are such pauses.
    let most = IDLE as u64 * (8 + 12 + (sys::now() - start) / 50_000_000);
    let looks = u64::from(LOOKS.load(Ordering::Relaxed));
    println!("{looks} looks in {turns} turns, at most {most} to be");
    check!((looks > most) == off);
}

/// Under a limit of calls, what seems to be one counts for nothing.
fn forger_uses_up_no_calls() {
    extern "C" fn guest(_: usize) -> i32 {
        static WORD: AtomicU32 = AtomicU32::new(0);
        extern "C" fn forges(_: usize) {
            let alarm = experiment::first_own_fd();
            for n in 0x4000_0000u32.. {
                // SAFETY: its own mailbox, which its T does not look at.
                unsafe { (&raw mut (*mailbox(1)).asks).write_volatile(n) };
                ring(alarm);
            }
        }
        MAILBOX.store(experiment::mailbox().0, Ordering::SeqCst);
        check!(spawn_thread(0, forges, 0, &WORD).is_ok());
        let start = ms();
        for _ in 0..10 {
            // SAFETY: touches no memory.
            check!(unsafe { untrusted::call(Sysno::ptrace, [0; 6]) }.is_err());
        }
        i32::from(ms() - start > 900)
    }
    use ascetic::policy::Limits;
    let policy = DIRECT.limits(Limits { threads: 2, mapped: 0, descriptors: 0, calls: 200 });
    must_exit(&program(&policy), guest, 0, 0);
}
