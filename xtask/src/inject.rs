//! `cargo xtask inject`: has each system call of a sandbox's life fail in turn (`tests/inject`).

use std::process::Command;

use anyhow::{Context, Result};

use crate::guests;
use crate::host::Arch;
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
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).args(["run", "--quiet", "--package", "ascetic-inject", "--"]).arg(&programs.guests);
    cargo.args(options.first.map(|first| format!("--first={first}")));
    cargo.args(options.only.as_ref().map(|only| format!("--only={only}")));
    cargo.args(options.list.then_some("--list"));
    Ok(cargo.status().context("cargo")?.success())
}
