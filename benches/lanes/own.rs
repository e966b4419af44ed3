//! This crate's direct lane: one sandbox at a time, and many at once.

use crate::host::{Batch, Log, Result, Shared, cpus, pin, pipe};
use ascetic::policy::Policy;
use ascetic::sandbox::{self, Config, Placement, Sandbox};
use ascetic::sys::Sysno;
use ascetic::untrusted;
use serde_json::{Value, json};
use std::os::fd::AsRawFd;
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

/// Measures batches of `getppid`. From clock call to clock call lie the batch and one half each of two clock calls,
/// whence the divisor in [`direct`].
extern "C" fn batches(arg: usize) -> i32 {
    // SAFETY: `direct` passes a shared log.
    let log = unsafe { log(arg) };
    let (batches, calls) = (log.batches.load(Relaxed), log.calls.load(Relaxed));
    for batch in 0..=batches {
        let start = now();
        for _ in 0..calls {
            // SAFETY: getppid touches no memory.
            if unsafe { untrusted::call(Sysno::getppid, [0; 6]) }.is_err() {
                log.wrong.store(CALL_FAILED, Relaxed);
            }
        }
        let end = now();
        if batch > 0 {
            log.push(end.wrapping_sub(start));
        }
    }
    0
}

/// The direct lane in one sandbox. Returns nanoseconds for a call.
pub fn direct(log: &Shared<Log>, config: &Config<'_>, batch: Batch) -> Result<Vec<f64>> {
    log.plan(batch);
    // The memory that is shared by now may be more than when the lane was made.
    let config = Config { share: crate::host::shared(), ..*config };
    let mut sandbox = sandbox::spawn(&config, batches, log.address())?;
    let outcome = sandbox.wait(PATIENCE);
    if outcome.guest != ascetic::error::Status::Exited(0) {
        return Err(format!("the guest {}", outcome.guest).into());
    }
    log.samples((batch.calls + 1) as f64)
}

/// A sandbox that keeps the shared memory, where the results go.
pub fn config() -> Config<'static> {
    Config { share: crate::host::shared(), ..Config::new(&POLICY) }
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
    let made: Result<Vec<Sandbox>> = logs
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
