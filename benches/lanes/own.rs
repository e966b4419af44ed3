//! This crate's lanes: one sandbox at a time, and many at once.

use crate::host::{Batch, Log, Result, Shared, cpus, pin, pipe};
use ascetic::policy::{Policy, Rights};
use ascetic::sandbox::{self, Config, Placement, Sandbox};
use ascetic::sys::Sysno;
use ascetic::untrusted;
use serde_json::{Value, json};
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// What the measured guests need; `clock_gettime` is in every policy.
pub const POLICY: Policy = Policy::new().direct(Sysno::getppid);

const PATIENCE: Option<Duration> = Some(Duration::from_secs(20));
const CLOCK_MONOTONIC: usize = 1;
/// [`Log::wrong`]: a call failed that must not.
const CALL_FAILED: u64 = 2;

/// The log that a guest was given.
///
/// # Safety
///
/// `arg` is the address of a [`Shared`] log that was mapped when the sandbox was made.
pub unsafe fn log<'a>(arg: usize) -> &'a Log {
    // SAFETY: the caller's; a guest has the memory of the process that made it, shared mappings included.
    unsafe { &*(arg as *const Log) }
}

/// The guest's clock, the same as [`crate::host::now`]. The time stamp counter is closed to guests, so it is a call.
pub fn now() -> u64 {
    let mut ts = [0u64; 2];
    let at = (&raw mut ts).expose_provenance();
    // SAFETY: the kernel stores a timespec, which is two words.
    let got = unsafe { untrusted::call(Sysno::clock_gettime, [CLOCK_MONOTONIC, at, 0, 0, 0, 0]) };
    // SAFETY: a local array.
    let [secs, nanos] = unsafe { (&raw const ts).read_volatile() };
    got.map_or(0, |_| secs * 1_000_000_000 + nanos)
}

/// What a measured guest does again and again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// `getppid` through the direct lane.
    Getppid,
    /// `getppid` by an instruction of the guest's own.
    Unmodified,
    /// `openat` and `close`, the first decided by the broker.
    Open,
    /// The same by a token.
    Token,
    /// `stat`
    Stat,
    /// `mmap` and `munmap` of 64 KiB.
    Map,
    /// A thread that does nothing, created and joined.
    Thread,
}

impl Work {
    /// The policy that it needs.
    pub const fn policy(self) -> &'static Policy<'static> {
        const FILES: Policy = POLICY.direct(Sysno::close).root(c"/usr", Rights::READ);
        const MEMORY: Policy = POLICY.memory();
        const THREADS: Policy = POLICY.direct(Sysno::futex).threads(4);
        match self {
            Self::Getppid | Self::Unmodified => &POLICY,
            Self::Open | Self::Token | Self::Stat => &FILES,
            Self::Map => &MEMORY,
            Self::Thread => &THREADS,
        }
    }

    /// Does it once, in a guest; whether it went well.
    fn once(self) -> bool {
        // The `//` is no name that a token was left for.
        const DEEP: &std::ffi::CStr = c"/usr//share";
        // SAFETY: paths, and memory that the kernel chose and nobody else uses.
        unsafe {
            let call = |nr, args| untrusted::call(nr, args);
            match self {
                Self::Getppid => call(Sysno::getppid, [0; 6]).is_ok(),
                Self::Unmodified => libc::syscall(libc::SYS_getppid) > 0,
                Self::Open | Self::Token => {
                    let path = if self == Self::Open { DEEP } else { FOLDER };
                    call(Sysno::openat, [0, path.as_ptr().expose_provenance(), 0, 0, 0, 0])
                        .is_ok_and(|fd| call(Sysno::close, [fd, 0, 0, 0, 0, 0]).is_ok())
                }
                Self::Stat => {
                    let mut stat = [0u64; 32];
                    let at = stat.as_mut_ptr().expose_provenance();
                    call(Sysno::stat, [FOLDER.as_ptr().expose_provenance(), at, 0, 0, 0, 0]).is_ok()
                }
                Self::Map => call(Sysno::mmap, [0, MAPPED, 3, 0x22, usize::MAX, 0])
                    .is_ok_and(|at| call(Sysno::munmap, [at, MAPPED, 0, 0, 0, 0]).is_ok()),
                Self::Thread => thread(),
            }
        }
    }
}

/// What is opened and asked about.
pub const FOLDER: &std::ffi::CStr = c"/usr/share";
/// Bytes that are mapped.
pub const MAPPED: usize = 64 * 1024;

/// Creates a thread that does nothing, and waits for its end.
fn thread() -> bool {
    extern "C" fn nothing(_: usize) {}
    #[repr(align(16))]
    struct Stack(#[allow(dead_code, reason = "it is a thread's")] [u8; 16 * 1024]);
    static mut STACK: Stack = Stack([0; 16 * 1024]);
    static ENDED: AtomicU32 = AtomicU32::new(0);
    ENDED.store(1, Relaxed);
    let word = ENDED.as_ptr().expose_provenance();
    let top = (&raw mut STACK).expose_provenance() + size_of::<Stack>();
    // SAFETY: the stack is the thread's until the kernel has stored 0 in the word.
    if unsafe { untrusted::thread::spawn(nothing, 0, top, word) }.is_err() {
        return false;
    }
    loop {
        match ENDED.load(Relaxed) {
            0 => return true,
            // SAFETY: waits for a word of this guest's.
            tid => _ = unsafe { untrusted::call(Sysno::futex, [word, 0, tid as usize, 0, 0, 0]) },
        }
    }
}

/// What the next guest does. A guest has the memory of the process that makes it.
static WORK: AtomicU32 = AtomicU32::new(0);
const WORKS: [Work; 7] =
    [Work::Getppid, Work::Unmodified, Work::Open, Work::Token, Work::Stat, Work::Map, Work::Thread];

/// Measures batches of work. From clock call to clock call lie the batch and one half each of two clock calls; two that
/// follow each other tell how long that is, the shortest time being the one that nothing else is part of.
extern "C" fn batches(arg: usize) -> i32 {
    // SAFETY: `guest` passes a shared log.
    let log = unsafe { log(arg) };
    let (batches, calls) = (log.batches.load(Relaxed), log.calls.load(Relaxed));
    let work = WORKS[WORK.load(Relaxed) as usize % WORKS.len()];
    let mut clock = u64::MAX;
    for batch in 0..=batches {
        let start = now();
        for _ in 0..calls {
            if !work.once() {
                log.wrong.store(CALL_FAILED, Relaxed);
            }
        }
        let end = now();
        clock = clock.min(now().wrapping_sub(end));
        if batch > 0 {
            log.push(end.wrapping_sub(start).saturating_sub(clock));
        }
    }
    0
}

/// One sandbox that does some work. Returns nanoseconds for once.
pub fn guest(log: &Shared<Log>, config: &Config<'_>, work: Work, batch: Batch) -> Result<Vec<f64>> {
    log.plan(batch);
    WORK.store(WORKS.iter().position(|known| *known == work).unwrap_or(0) as u32, Relaxed);
    // The memory that is shared by now may be more than when the lane was made.
    let config = Config { share: crate::host::shared(), ..*config };
    let mut sandbox = sandbox::spawn(&config, batches, log.address())?;
    let outcome = sandbox.wait(PATIENCE);
    if outcome.guest != ascetic::error::Status::Exited(0) {
        return Err(format!("the guest {}", outcome.guest).into());
    }
    log.samples(batch.calls as f64)
}

/// A sandbox that keeps the shared memory, where the results go.
pub fn config() -> Config<'static> {
    Config { share: crate::host::shared(), ..Config::new(&POLICY) }
}

/// A configuration for some work.
pub fn working(work: Work, placement: Placement) -> Config<'static> {
    Config { policy: work.policy(), dispatch: work == Work::Unmodified, ..placed(placement) }
}

/// A configuration with a placement, and the runtime's own choice of spinning for it.
pub fn placed(placement: Placement) -> Config<'static> {
    Config { placement, ..config() }
}

/// Most sandboxes at once.
pub const CROWD: usize = 64;

/// Reads the clock without a pause until a given time: every difference is a call's time, waiting for a CPU included.
extern "C" fn until(arg: usize) -> i32 {
    // SAFETY: `crowd` passes a shared log.
    let log = unsafe { log(arg) };
    // Until the supervisor closes its end of the pipe: `read` is U's own.
    let gate = log.batches.load(Relaxed) as i32;
    let _ = ascetic::sys::read(gate, &mut [0]);
    let end = log.mark.load(Relaxed);
    let mut before = now();
    while before < end {
        let after = now();
        if after <= before {
            log.wrong.store(CALL_FAILED, Relaxed);
            return 1;
        }
        log.push(after - before);
        before = after;
    }
    0
}

/// `count` sandboxes that call as fast as they can for `length`. Returns calls a second, all together, and times of
/// single calls. With `spread`, the sandboxes are parked and dealt out to the CPUs; without, they are placed by
/// [`Placement::Auto`].
pub fn crowd(logs: &Shared<[Log; CROWD]>, count: usize, spread: bool, length: Duration) -> Result<(f64, Vec<f64>)> {
    let (gate, opener) = pipe()?;
    let keep = [gate.as_raw_fd()];
    let config = Config { keep: &keep, ..placed(if spread { Placement::Together } else { Placement::Auto }) };
    let all = cpus();
    let made: Result<Vec<Sandbox<'_>>> = logs
        .iter()
        .zip(all.iter().cycle())
        .take(count)
        .map(|(log, cpu)| {
            let gate = Batch { batches: gate.as_raw_fd() as u64, calls: 0 };
            log.plan(gate);
            if spread {
                pin(&[*cpu])?; // `Together` is the CPU of the supervisor
            }
            let arg = (&raw const *log).expose_provenance();
            Ok(sandbox::spawn(&config, until, arg)?)
        })
        .collect();
    pin(&all)?;
    let mut made = made?;
    let end = crate::host::now() + length.as_nanos() as u64;
    logs.iter().take(count).for_each(|log| log.mark.store(end, Relaxed));
    drop(opener);
    for sandbox in &mut made {
        let outcome = sandbox.wait(PATIENCE);
        if outcome.guest != ascetic::error::Status::Exited(0) {
            return Err(format!("a guest {}", outcome.guest).into());
        }
    }
    let calls: u64 = logs.iter().take(count).map(|log| log.pushed.load(Relaxed)).sum();
    let mut samples = Vec::new();
    // A guest that never had the CPU counts as what it is: no calls.
    for log in logs.iter().take(count).filter(|log| log.pushed.load(Relaxed) > 0) {
        samples.extend(log.samples(1.0)?);
    }
    Ok((calls as f64 / length.as_secs_f64(), samples))
}

/// The crowd as JSON.
pub fn crowd_summary(count: usize, spread: bool, rates: &[f64], samples: &[f64]) -> Value {
    let [rate, rate_p5, rate_p95] = crate::stats::spread(rates);
    let [median, p5, p95] = crate::stats::spread(samples);
    json!({
        "sandboxes": count,
        "placement": if spread { "parked, dealt out to the CPUs" } else { "auto" },
        "calls_per_second": rate, "calls_per_second_p5": rate_p5, "calls_per_second_p95": rate_p95,
        "median": median, "p5": p5, "p95": p95,
    })
}
