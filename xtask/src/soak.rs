//! `cargo xtask soak`: storms of sandboxes that crash and are killed, and a count of what they leave (`tests/soak`).

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::host;
use crate::root;

/// What to run.
#[derive(clap::Args)]
pub struct Options {
    /// How long
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Where to begin; a finding says which seed it was
    #[arg(long)]
    seed: Option<u64>,
}

/// The short run of the tests, in seconds.
const SHORT: f64 = 10.0;

/// Runs it. Whether nothing was found.
///
/// # Errors
/// The programs cannot be built or started.
pub fn run(options: &Options) -> Result<bool> {
    let mut soak = soak(60.0 * options.minutes)?;
    soak.args(options.seed.map(|seed| format!("--seed={seed}")));
    Ok(soak.status().context("soak")?.success())
}

/// A step of the tests: a short run, which finds nothing; and one of a supervisor that forgets its sandboxes, which does. What the
/// first did.
///
/// # Errors
/// What was found, or that nothing was.
pub fn check() -> Result<String> {
    let output = soak(SHORT)?.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let leaks = soak(SHORT)?.args(["--leak=sandbox", "--seed=1"]).output()?;
    let found = String::from_utf8_lossy(&leaks.stdout).contains("something is left");
    ensure!(found && !leaks.status.success(), "sandboxes that are left are not found");
    Ok(text.lines().last().unwrap_or_default().to_owned())
}

/// The program, built, to run for so many seconds.
fn soak(seconds: f64) -> Result<Command> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).args(["build", "--quiet", "--package", "ascetic-soak", "--package", "ascetic-tools"]);
    host::run(&mut cargo)?;
    let programs = root().join("target/debug");
    let mut soak = Command::new(programs.join("ascetic-soak"));
    soak.arg("--watcher").arg(programs.join("ascetic-watch")).arg(format!("--seconds={seconds}"));
    Ok(soak)
}
