//! `cargo xtask soak`: storms of sandboxes. Supervisors (workers) make sandboxes that end, crash and are killed at random points,
//! with too little memory and too few descriptors now and then; from outside, they and their tasks are stopped, moved between
//! CPUs, and the supervisors killed. Nothing may be left, and no crash be without its dump.
//!
//! A seed decides what is done; what the machine makes of it, it does not.

mod count;
mod guests;
mod outside;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

#[derive(Parser)]
struct Options {
    /// How long, in seconds
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// The first worker's seed; the others' follow
    #[arg(long)]
    seed: Option<u64>,
    /// Where `ascetic-watch` is
    #[arg(long)]
    watcher: PathBuf,
    /// Has each worker leave something, which must be found
    #[arg(long)]
    leak: Option<Leak>,
    /// Is a worker
    #[arg(long, hide = true)]
    worker: bool,
}

/// What can be left on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Leak {
    /// A sandbox that ended, and was not dropped: descriptors and mappings
    Sandbox,
    /// A child that nobody waits for
    Task,
    /// A file where dumps go
    File,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let until = Instant::now() + Duration::from_secs_f64(options.seconds);
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    let result = if options.worker {
        // SAFETY: a worker ends with the process that looks after it.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        worker::Worker::new(seed, &options.watcher, options.leak).and_then(|mut worker| worker.run(until))
    } else {
        outside::run(&options, seed, until)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("FOUND {error:#}");
            ExitCode::FAILURE
        }
    }
}
