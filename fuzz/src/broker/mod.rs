//! The broker as a state machine: a sandbox of several pairs, whose kernel, Ts and Us are played ([`kernel`], [`tasks`]) as an
//! input says. Its Ts do what T's code does, step by step, by what the broker wrote into their verdicts; its Us ask, lie, end and
//! crash, in any order, also in the middle of what the broker does: whenever it makes a system call, and one of them all the time
//! ([`scribbler`]).

pub(crate) mod kernel;
mod scribbler;
pub(crate) mod tasks;

use std::time::Duration;

use ascetic::experiment::simulate;
use ascetic::policy::Policy;
use ascetic::sandbox::{self, Config, Placement, Sandbox};
use ascetic::sys::Sysno;

use kernel::World;

/// Rounds without lies after which everybody must have an answer.
const PATIENCE: u32 = 3000;

/// What a guest of this sandbox may.
fn policy(pairs: u32) -> Policy<'static> {
    Policy::new().direct(Sysno::getppid).memory().signals().refuse(Sysno::getsid, 7).threads(pairs)
}

extern "C" fn guest(_: usize) -> i32 {
    unreachable!("no guest is run")
}

/// Plays an input.
///
/// # Panics
/// What must never be was seen.
pub fn check(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let policy = policy(2 + u32::from(kind % 3));
    kernel::begin(World::new(bytes, policy.clone()));
    simulate(Some(kernel::call));
    let placement = Placement::Floating;
    let mut sandbox = match sandbox::spawn(&Config { placement, ..Config::new(&policy) }, guest, 0) {
        Ok(sandbox) => sandbox,
        Err(_) => {
            // A call failed, and nothing may be left of it.
            simulate(None);
            return kernel::with(|world| world.nobody_is_left());
        }
    };
    let scribbled = (kind & 0x80 != 0).then(|| kernel::with(World::scribble));
    let mut ended = false;
    while !ended && kernel::with(|world| !world.is_over()) {
        if kernel::with(World::play) {
            ended = serve(&mut sandbox);
        }
    }
    drop(scribbled);
    kernel::with(|world| world.quiet = true);
    let mut rounds = 0;
    while !ended && kernel::with(World::calm) {
        rounds += 1;
        assert!(rounds < PATIENCE, "no answer: {}", kernel::with(|world| world.tell()));
        ended = serve(&mut sandbox);
    }
    let outcome = sandbox.kill();
    assert_eq!(outcome.left, 0, "{outcome:?}");
    drop(sandbox);
    simulate(None);
    kernel::with(|world| world.nobody_is_left());
}

/// Serves once. Whether the sandbox has ended.
fn serve(sandbox: &mut Sandbox<'_>) -> bool {
    let outcome = sandbox.serve(Some(Duration::ZERO));
    for pid in sandbox.tasks().flat_map(|(t, u)| [t, u]) {
        kernel::with(|world| assert!(pid == 0 || world.remains(pid), "{pid} is none of the sandbox's"));
    }
    if let Some(outcome) = outcome {
        assert_eq!(outcome.left, 0, "{outcome:?}");
    }
    outcome.is_some()
}
