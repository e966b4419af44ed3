//! `ascetic-watch --pid PID… --out DIR`: traces the tasks of a sandbox, and writes a dump if one of them crashes.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ascetic_tools::dump::live::Tracer;
use ascetic_tools::dump::{self, symbols::Symbols};
use clap::Parser;

/// Traces the tasks of a sandbox, and writes PID.dmp, PID.core, PID.json and PID.txt if one crashes. Says `ready` when it has
/// seized them. If it is killed, they go on as if it had never been.
#[derive(Parser)]
#[command(name = "ascetic-watch", version)]
struct Cli {
    /// A task, by its process id
    #[arg(long = "pid", required = true)]
    pids: Vec<u32>,
    /// Where the dump goes
    #[arg(long, default_value = ".")]
    out: PathBuf,
    /// Milliseconds that tasks may be kept from going on
    #[arg(long, default_value_t = 2000)]
    deadline: u64,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("ascetic-watch: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), String> {
    static HELD: AtomicU64 = AtomicU64::new(0);
    let start = Instant::now();
    let now = move || start.elapsed().as_millis() as u64 + 1;
    let deadline = cli.deadline;
    let tracer = Tracer::seize(&cli.pids).map_err(|error| error.to_string())?;
    // Memory and files, whose reading can take as long as somebody likes, have a part of the time each.
    let mut tracer = tracer.patience(Duration::from_millis(deadline / 4));
    // For whatever else may take long. At its end, the kernel lets go of whatever the main thread traces.
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(deadline.clamp(1, 20)));
            let since = HELD.load(Ordering::Relaxed);
            if since != 0 && now().saturating_sub(since) > deadline {
                eprintln!("ascetic-watch: not done in {deadline} ms: no dump, and the tasks go on");
                println!("late\ndone");
                std::process::exit(3);
            }
        }
    });
    println!("ready");
    std::io::stdout().flush().map_err(|error| error.to_string())?;
    let mut found = None;
    let followed = tracer.follow(
        || HELD.store(now(), Ordering::Relaxed),
        || HELD.store(0, Ordering::Relaxed),
        |dump| found = Some(dump.clone()),
    );
    if let Some(found) = found {
        let stem = found.process.to_string();
        dump::write_all(&found, &cli.out, &stem, &Symbols::default()).map_err(|error| error.to_string())?;
        println!("dumped {}", cli.out.join(stem).display());
    }
    // A thread that still reads may keep this process from being gone, and its output from being at an end.
    println!("done");
    followed.map_err(|error| error.to_string())
}
