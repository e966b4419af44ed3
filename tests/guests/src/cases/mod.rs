//! The cases. One file per subject; [`CASES`] is all of them, with the exact end of each.

#[path = "../../../attacks/mod.rs"]
pub mod attacks;
mod births;
mod calls;
mod debug;
mod dumps;
mod enter;
mod faults;
mod files;
mod hostile;
mod injected;
#[cfg(target_arch = "x86_64")]
mod leaving;
#[path = "../../../live/mod.rs"]
pub mod live;
mod many;
mod mechanisms;
mod misuse;
mod program;
mod races;
mod signals;
mod supervisor;
mod threads;
#[path = "../../../twin/mod.rs"]
mod twin;
mod ways;

use ascetic::error::Status;
use ascetic::fault::record::Record;
use ascetic::policy::Policy;
use ascetic::sandbox::{self, Config, Outcome, RECORD_MAX, Sandbox};
use ascetic::sys::Sysno;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use freestanding::{check, println};

/// How a case's process must end.
#[derive(Clone, Copy)]
pub enum End {
    /// With this exit status.
    Exit(u8),
    /// By this signal.
    Signal(i32),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exit:{code}"),
            Self::Signal(signal) => write!(f, "signal:{signal}"),
        }
    }
}

/// A test.
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// The end of its process.
    pub end: End,
    /// What it does.
    pub run: fn(),
}

/// A case that passes by coming back.
const fn case(name: &'static str, run: fn()) -> Case {
    Case { name, end: End::Exit(0), run }
}

/// A case's exit status when what it needs is not there; it has said what.
pub const SKIPPED: i32 = 77;

/// Ends the case as skipped.
fn skip(why: &str) -> ! {
    println!("skip: {why}");
    freestanding::exit(SKIPPED)
}

/// The first two numbers of the kernel's version.
fn kernel() -> (u32, u32) {
    let mut text = [0u8; 64];
    let read = ascetic::sys::open(c"/proc/sys/kernel/osrelease").and_then(|fd| {
        let read = ascetic::sys::read(fd, &mut text);
        ascetic::sys::close(fd);
        read
    });
    let text = core::str::from_utf8(&text[..read.unwrap_or(0)]).unwrap_or("");
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Whether a task that could dump core ends no other (`fs/coredump.c`, `zap_threads`).
fn cores_spare_others() -> bool {
    kernel() >= (5, 16)
}

/// Skips where they do not: T ends with its guest.
fn others_are_spared() {
    if !cores_spare_others() {
        skip("before Linux 5.16, a task that could dump core ends all that share its memory");
    }
}

/// How many processors there are for this process.
fn processors() -> usize {
    ascetic::sys::affinity().map_or(1, |set| set.iter().count())
}

/// Skips where T never spins, so that it does not miss its mailbox.
fn t_spins() {
    if processors() < 2 {
        skip("on one processor T sleeps, and does not fault when its mailbox is taken away");
    }
}

/// Concatenates the lists of cases.
pub struct Cases(&'static [&'static [Case]]);

/// All cases.
pub static CASES: Cases = Cases(&[
    births::CASES,
    calls::CASES,
    debug::CASES,
    dumps::CASES,
    enter::CASES,
    faults::CASES,
    files::CASES,
    hostile::CASES,
    #[cfg(target_arch = "x86_64")]
    leaving::CASES,
    live::CASES,
    many::CASES,
    mechanisms::CASES,
    misuse::CASES,
    program::CASES,
    races::CASES,
    signals::CASES,
    supervisor::CASES,
    threads::CASES,
    twin::CASES,
    // The last: they leave a machine where nobody may trace.
    ways::CASES,
    dumps::LAST,
]);

impl Cases {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &'static Case> + '_ {
        let (first, last) = self.0.split_at(self.0.len() - LAST);
        first.iter().chain(attacks::CASES).chain(last).flat_map(|list| list.iter())
    }

    /// Those that a filter chooses: by a part of their names, or with [`ATTACKS`] those of the table of attacks.
    pub fn chosen<'a>(&'a self, filter: &'a str) -> impl Iterator<Item = &'static Case> + 'a {
        let chosen = move |case: &&Case| match filter {
            ATTACKS => {
                attacks::ATTACKS.iter().any(|attack| attack.exists() && attack.cases().any(|name| name == case.name))
            }
            _ => case.name.contains(filter),
        };
        self.iter().filter(chosen)
    }
}

/// How many of the lists of [`CASES`] come after the attacks: the last, which leave a machine where nobody may trace.
const LAST: usize = 2;
/// The filter that chooses the cases of the table of attacks.
const ATTACKS: &str = "@attacks";

/// Whether there is a case of this name.
pub fn is_case(name: &str) -> bool {
    CASES.iter().any(|case| case.name == name)
}

/// A policy with a few harmless calls.
pub const POLICY: Policy = Policy::new()
    .direct(Sysno::getppid)
    .direct(Sysno::uname)
    .direct(Sysno::getrandom)
    .direct(Sysno::nanosleep)
    .direct(Sysno::close)
    .direct(Sysno::dup)
    .direct(Sysno::dup2)
    .direct(Sysno::read)
    .direct(Sysno::write)
    .direct(Sysno::pipe2)
    .refuse(Sysno::clone3, 1);

/// A sandbox that may print.
pub fn config() -> Config<'static> {
    Config { keep: &[1, 2], ..Config::new(&POLICY) }
}

static LONG: AtomicBool = AtomicBool::new(false);

/// Makes this a long run: cases that have a bound in time go on until they have done all.
pub fn make_long() {
    LONG.store(true, Ordering::Relaxed);
}

/// Whether this is a long run.
pub fn is_long() -> bool {
    LONG.load(Ordering::Relaxed)
}

/// Prints something that whoever runs a case is to be told although it passes.
macro_rules! note {
    ($($arg:tt)*) => { println!("note: {}", format_args!($($arg)*)) };
}
use note;

/// Whether this runs as the only program of a machine, in QEMU: slow, and free to change settings.
pub fn emulated() -> bool {
    ascetic::sys::pids().1 == 1 && ascetic::sys::open(c"/init").map(ascetic::sys::close).is_ok()
}

/// Long enough for anything, under emulation, too.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub use dumps::{crash, crashes, save as save_core};
pub use injected::run as injected;
pub use misuse::{end_children, has_children};

/// Starts a guest; a failure to do so fails the case.
pub fn spawn<'a>(config: &Config<'a>, guest: extern "C" fn(usize) -> i32, arg: usize) -> Sandbox<'a> {
    match sandbox::spawn(config, guest, arg) {
        Ok(sandbox) => sandbox,
        Err(error) => {
            println!("spawn: {error}");
            freestanding::exit(1)
        }
    }
}

/// Runs a guest to its end.
pub fn run(config: &Config<'_>, guest: extern "C" fn(usize) -> i32, arg: usize) -> Outcome {
    spawn(config, guest, arg).wait(Some(PATIENCE))
}

/// Runs a guest that must end with this exit status.
pub fn must_exit(config: &Config<'_>, guest: extern "C" fn(usize) -> i32, arg: usize, code: u8) {
    let outcome = run(config, guest, arg);
    check!(outcome.guest == Status::Exited(code), "{}", outcome.guest);
}

/// Runs a guest that must end with this signal, and gives its record to `look`.
pub fn must_crash(
    config: &Config<'_>,
    guest: extern "C" fn(usize) -> i32,
    arg: usize,
    signal: i32,
    look: impl FnOnce(&Record<'_>),
) {
    let mut sandbox = spawn(config, guest, arg);
    let outcome = sandbox.wait(Some(PATIENCE));
    check!(outcome.guest.is_signal(signal) && outcome.cause == sandbox::Cause::Guest, "{:?}", outcome);
    let mut buffer = [0u8; RECORD_MAX];
    let bytes = sandbox.record(&mut buffer);
    let Some(record) = Record::decode(bytes) else {
        println!("no record in {} bytes", bytes.len());
        freestanding::exit(1)
    };
    look(&record);
}
