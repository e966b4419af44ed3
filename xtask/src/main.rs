//! `cargo xtask`: everything that is done with this project.

#![deny(missing_docs)]

mod apt;
mod attacks;
mod audit;
mod bench;
mod capi;
mod coverage;
mod demo;
mod fuzz;
mod guests;
mod host;
mod i686;
mod initramfs;
mod inject;
mod kernels;
mod live;
mod matrix;
mod planted;
mod qemu;
mod readers;
mod soak;
mod symbols;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use host::Arch;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Everything that is done with ascetic")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Shows what it is: a sandbox at work, a crash, its report
    Demo {
        /// Prints the same facts as one JSON document
        #[arg(long)]
        json: bool,
        /// The architecture of the sandbox: x86_64 or i686
        #[arg(long, default_value = "x86_64")]
        arch: Arch,
    },
    /// Runs all tests, and sets up what they need
    Test(test::Options),
    /// Runs each known attack with its defence on and off, and prints what became of it
    Attacks(attacks::Options),
    /// Fuzzes, guided by coverage, what takes bytes that a guest may have written
    Fuzz(Fuzz),
    /// Counts which lines of policy, broker, decoder and collector the tests and a short fuzzing run reach
    Coverage(coverage::Options),
    /// Has each system call of a sandbox's life fail in turn, and looks that nothing hangs or is left
    Inject(inject::Options),
    /// Makes, crashes, stops and kills sandboxes by the thousand, and counts what they leave
    Soak(soak::Options),
    /// Measures calls, spawns and faults beside what others do, and draws a plot
    Bench {
        /// Some seconds instead of half a minute, and less exact
        #[arg(long)]
        quick: bool,
    },
    /// Audits the final bytes of the trusted thread's code, on both architectures
    Audit {
        /// Prints the code, too
        #[arg(long)]
        verbose: bool,
    },
    /// Makes include/ascetic.h of the C interface's source
    Header,
}

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
struct Fuzz {
    #[command(subcommand)]
    task: Option<FuzzTask>,
    #[command(flatten)]
    options: fuzz::Options,
}

#[derive(Subcommand)]
enum FuzzTask {
    /// Plays random guests against a real sandbox, and looks at all that it does
    Live(live::Options),
}

impl std::str::FromStr for Arch {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "x86_64" => Ok(Self::X86_64),
            "i686" => Ok(Self::I686),
            _ => Err(format!("`{name}` is none of the architectures x86_64 and i686")),
        }
    }
}

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace").to_owned()
}

/// Where downloads and what is made of them are kept.
fn cache() -> PathBuf {
    root().join("target/ascetic")
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Demo { json, arch } => demo::run(arch, json),
        Task::Test(options) => test::run(&options),
        Task::Attacks(options) => attacks::run(&options),
        Task::Fuzz(Fuzz { task: Some(FuzzTask::Live(options)), .. }) => live::run(&options),
        Task::Fuzz(Fuzz { task: None, options }) => fuzz::run(&options),
        Task::Coverage(options) => coverage::run(&options),
        Task::Inject(options) => inject::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Bench { quick } => bench::run(&root(), quick).map(|()| true),
        Task::Audit { verbose } => audit::run(verbose),
        Task::Header => capi::write_header().map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
