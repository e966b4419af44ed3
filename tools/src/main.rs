//! `ascetic-policy check FILE`: what a policy allows, or what is wrong with it.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use ascetic_tools::Text;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "ascetic-policy", version, about = "Policies of ascetic as text")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Prints what a policy allows, or everything that is wrong with it
    Check {
        /// The policy, in TOML
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let Task::Check { file } = Cli::parse().task;
    match Text::read(&file) {
        // Whoever closes the pipe has read enough.
        Ok(text) => match write!(std::io::stdout(), "{text}") {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => fail(&error.to_string()),
            _ => ExitCode::SUCCESS,
        },
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("{message}");
    ExitCode::FAILURE
}
