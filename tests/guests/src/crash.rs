//! A guest that crashes, for whoever takes dumps of it: says when to look, and waits to be told that they have.

use ascetic::sandbox::{self, Config, Core, Hook, Outcome, RECORD_MAX, Sandbox};
use ascetic::sys;

use crate::{exit, println};

/// Cores without a limit, if that can be had.
pub fn core() -> Option<Core> {
    let hard = sys::limit(0, sys::RLIMIT_CORE, None).map_or(0, |[_, hard]| hard);
    (hard == usize::MAX).then_some(Core { limit: hard, filter: None, trusted: false })
}

/// Runs a guest to its end. Prints `born T U` before guest code runs, then what `begun` does; `dying TASK SIGNAL` while T still is
/// there (0 0 if no signal ended anybody); `record HEX`, a piece of the crash report in each; and `ended CAUSE; GUEST; TRUSTED`.
/// After `born` and `dying` it waits for a line.
pub fn show(
    config: &Config<'_>,
    guest: extern "C" fn(usize) -> i32,
    arg: usize,
    begun: impl Fn(&Sandbox<'_>),
) -> Outcome {
    let born = |sandbox: &Sandbox<'_>| {
        let (t, u) = sandbox.pids();
        println!("born {t} {u}");
        pause();
    };
    let dying = |sandbox: &Sandbox<'_>| {
        let (task, signal) = sandbox.crashed().unwrap_or((0, 0));
        println!("dying {task} {signal}");
        for (t, u) in sandbox.tasks() {
            println!("tasks {t} {u}");
        }
        println!("all");
        pause();
    };
    let config = Config { born: Some(Hook(&born)), dying: Some(Hook(&dying)), ..*config };
    let mut sandbox = sandbox::spawn(&config, guest, arg).unwrap_or_else(|error| {
        println!("error {error}");
        exit(1)
    });
    begun(&sandbox);
    let outcome = sandbox.wait(Some(core::time::Duration::from_secs(60)));
    record(&sandbox);
    println!("ended {:?}; {}; {}", outcome.cause, outcome.guest, outcome.trusted);
    outcome
}

/// Waits for a line, or the end of input.
fn pause() {
    let mut byte = [0];
    while sys::read(0, &mut byte) == Ok(1) && byte != *b"\n" {}
}

/// Prints the crash report in hex.
fn record(sandbox: &Sandbox<'_>) {
    static mut BUFFER: [u8; RECORD_MAX] = [0; RECORD_MAX];
    let buffer = &raw mut BUFFER;
    // SAFETY: the only reference, in a program of one thread.
    let bytes = sandbox.record(unsafe { &mut *buffer });
    for chunk in bytes.chunks(256) {
        let mut text = [0u8; 512];
        for (to, byte) in text.chunks_exact_mut(2).zip(chunk) {
            to[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            to[1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        println!("record {}", core::str::from_utf8(&text[..2 * chunk.len()]).unwrap_or(""));
    }
}
