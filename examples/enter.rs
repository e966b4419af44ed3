//! A std program that becomes its own guest: after `enter` it goes on where it was, in strict mode.
//!
//! `cargo run --example enter`

use ascetic::{
    error::Error,
    policy::Policy,
    sandbox::{self, Config},
    sys::Sysno,
    untrusted,
};

const POLICY: Policy = Policy::new().direct(Sysno::getppid);

fn main() -> Result<(), Error> {
    let work: Vec<i32> = (1..=3).collect(); // made before entry; the guest has it
    println!("before: process {}, a guest: {}", std::process::id(), untrusted::is_guest());

    let report = |_: &sandbox::Sandbox, outcome: &sandbox::Outcome| eprintln!("supervisor: {}", outcome.guest);
    sandbox::enter(&Config { keep: &[1, 2], report: Some(report), ..Config::new(&POLICY) })?;

    // From here on: read, write, exit, sigreturn, and getppid.
    let sum: i32 = work.iter().sum();
    println!("after: process {}, a guest: {}, sum {sum}", untrusted::getpid(), untrusted::is_guest());
    untrusted::exit(sum)
}
