//! `cargo xtask inject`: has each system call of a sandbox's life, and of a collector's, fail in turn (`tests/inject`).

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::guests::{self, Programs};
use crate::host::{self, Arch};
use crate::root;

/// What to run.
#[derive(clap::Args)]
pub struct Options {
    /// The architecture of the sandbox: x86_64 or i686
    #[arg(long, default_value = "x86_64")]
    arch: Arch,
    /// Only the first N of a task's calls of one name
    #[arg(long, value_name = "N")]
    first: Option<usize>,
    /// Only calls of this name
    #[arg(long)]
    only: Option<String>,
    /// Only the first error that a call can have
    #[arg(long)]
    quick: bool,
    /// Says what came of each
    #[arg(long)]
    list: bool,
}

/// Runs it. Whether nothing was found.
///
/// # Errors
/// The programs cannot be built or started.
pub fn run(options: &Options) -> Result<bool> {
    let programs = guests::build(options.arch)?;
    let mut cargo = injector(&programs);
    cargo.args(options.first.map(|first| format!("--first={first}")));
    cargo.args(options.only.as_ref().map(|only| format!("--only={only}")));
    cargo.args(options.quick.then_some("--quick"));
    cargo.args(options.list.then_some("--list"));
    let good = cargo.status().context("cargo")?.success();
    if options.only.is_none() {
        println!("{}", check_collector()?);
    }
    Ok(good)
}

/// Has each call of a collector fail that converts a record, or a core, of each architecture. What came of it.
///
/// # Errors
/// What was found.
pub fn check_collector() -> Result<String> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).args(["build", "--quiet", "--package", "ascetic-inject", "--package", "ascetic-tools"]);
    host::run(&mut cargo)?;
    let mut all = Vec::new();
    for sample in ["x86_64.record", "i686.record", "x86_64.core", "i686.core"] {
        let mut inject = Command::new(root().join("target/debug/ascetic-inject"));
        inject.arg(root().join("target/debug/ascetic-dump"));
        inject.arg("--convert").arg(root().join("tools/tests/samples").join(sample));
        let text = host::run(&mut inject)?;
        all.push(format!("{sample}: {}", text.lines().last().unwrap_or_default()));
    }
    Ok(all.join("\n"))
}

fn injector(programs: &Programs) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).args(["run", "--quiet", "--package", "ascetic-inject", "--"]).arg(&programs.guests);
    cargo
}

/// A short run: one error of the first call of each name. What came of it.
///
/// # Errors
/// What was found.
pub fn check(programs: &Programs) -> Result<String> {
    let text = host::run(injector(programs).args(["--first=1", "--quick"]))?;
    Ok(text.lines().last().unwrap_or_default().to_owned())
}

/// Without what makes births heard, a birth that nobody hears of is found.
///
/// # Errors
/// It is not.
pub fn check_silent(programs: &Programs) -> Result<()> {
    let silent = injector(programs).args(["--only=write", "--quick", "--silent"]).output()?;
    let found = String::from_utf8_lossy(&silent.stdout).contains("FOUND write");
    ensure!(found && !silent.status.success(), "a birth that nobody hears of is not found");
    Ok(())
}
