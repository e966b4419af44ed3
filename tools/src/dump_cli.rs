//! `ascetic-dump convert INPUT`: a fault record or a core as minidump, core, text or JSON. `ascetic-dump receive --socket PATH`:
//! saves the cores that the kernel sends to a socket.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ascetic_tools::dump::receive::{Cut, Limits, NotReceived, Receiver};
use ascetic_tools::dump::symbols::Names;
use ascetic_tools::dump::{self, Deadline, Dump, Facts};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "ascetic-dump", version, about = "Crash dumps of ascetic's sandboxes")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Writes what a fault record or a core says as minidump, core, JSON or text (text to the terminal if nothing is named)
    Convert(Convert),
    /// Saves cores that the kernel sends to a socket, each as core.PID: `@PATH` or `@@PATH` in core_pattern. Says `ready`, and
    /// for each core where it is
    Receive(Receive),
}

#[derive(clap::Args)]
struct Receive {
    /// The socket, as in core_pattern; it is made
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Where the cores go
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Bytes of a core, at most
    #[arg(long, default_value_t = Limits::default().bytes)]
    max: u64,
    /// Milliseconds that a core may take
    #[arg(long, default_value_t = Limits::default().time.as_millis() as u64)]
    deadline: u64,
    /// Ends after so many cores
    #[arg(long)]
    count: Option<u64>,
}

#[derive(clap::Args)]
struct Convert {
    /// A fault record, or an ELF core that the kernel wrote
    input: PathBuf,
    /// What the supervisor knows, in JSON, as it was written by the embedder
    #[arg(long, value_name = "FILE")]
    facts: Option<PathBuf>,
    /// Programs and libraries with symbols, for the text
    #[arg(long, value_name = "FILE")]
    symbols: Vec<PathBuf>,
    /// Source files below this folder are named relative to it
    #[arg(long, value_name = "DIR", default_value = ".")]
    source: PathBuf,
    /// Where the minidump goes
    #[arg(long, value_name = "FILE")]
    minidump: Option<PathBuf>,
    /// Where the core goes
    #[arg(long, value_name = "FILE")]
    core: Option<PathBuf>,
    /// Where the JSON goes
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the text goes; - for the terminal
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Milliseconds after which memory, functions and lines that are not there yet are left out
    #[arg(long, default_value_t = 10_000)]
    deadline: u64,
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Convert(convert) => run(&convert),
        Task::Receive(options) => receive(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run(convert: &Convert) -> Result<(), String> {
    let facts = match &convert.facts {
        Some(path) => {
            let text = read(path)?;
            serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))?
        }
        None => Facts::default(),
    };
    let deadline = Deadline::after(Duration::from_millis(convert.deadline));
    let dump = input(&convert.input, &facts, &deadline)?;
    if let Some(path) = &convert.minidump {
        write(path, &dump::minidump::write(&dump))?;
    }
    if let Some(path) = &convert.core {
        write(path, &dump::elf::write(&dump).map_err(|error| error.to_string())?)?;
    }
    if let Some(path) = &convert.json {
        write(path, format!("{:#}\n", dump::json::report(&dump)).as_bytes())?;
    }
    let named = [&convert.minidump, &convert.core, &convert.json].iter().any(|path| path.is_some());
    let (names, found) = match &convert.text {
        None if named => (Names::default(), Ok(())),
        _ => Names::within(&dump, &convert.symbols, &convert.source, &deadline),
    };
    let text = dump::report::write_with(&dump, &names);
    match &convert.text {
        Some(path) if path != Path::new("-") => write(path, text.as_bytes())?,
        None if named => {}
        _ => match write!(std::io::stdout(), "{text}") {
            // Whoever closes the pipe has read enough.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error.to_string()),
            _ => {}
        },
    }
    // What is written is true as far as it goes.
    found.map_err(|error| error.to_string())?;
    deadline.kept().map_err(|exceeded| exceeded.to_string())
}

/// Receives cores, one after the other: others wait, each for no longer than the deadline.
fn receive(options: &Receive) -> Result<(), String> {
    // A crash of this program must not send it a core.
    // SAFETY: the arguments are numbers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    let receiver = Receiver::bind(&options.socket).map_err(|error| format!("{}: {error}", options.socket.display()))?;
    let limits = Limits { bytes: options.max, time: Duration::from_millis(options.deadline) };
    let say = |text: String| writeln!(std::io::stdout(), "{text}").map_err(|error| error.to_string());
    say("ready".to_owned())?;
    let mut received = 0;
    while options.count.is_none_or(|count| received < count) {
        match receiver.receive(&options.out, limits) {
            Ok(core) => {
                received += 1;
                let cut = match core.cut {
                    None => "",
                    Some(Cut::Bytes) => ", cut short: it is longer than it may be",
                    Some(Cut::Time) => ", cut short: it took longer than it may",
                };
                say(format!("received {} ({} bytes{cut})", core.file.display(), core.bytes))?;
            }
            Err(error @ NotReceived::Io("accept", _)) => return Err(error.to_string()),
            Err(error) => eprintln!("{error}"),
        }
    }
    Ok(())
}

/// Reads a core, or else a record.
fn input(path: &Path, facts: &Facts, deadline: &Deadline) -> Result<Dump, String> {
    let at = |error: &dyn ToString| format!("{}: {}", path.display(), error.to_string());
    match dump::core::read_file_within(path, facts, deadline) {
        Ok(dump) => return Ok(dump),
        Err(dump::core::NoCore::Io(error)) => return Err(at(&error)),
        Err(dump::core::NoCore::None) => {}
    }
    let bytes = read(path)?;
    dump::record::read_within(&bytes, facts, deadline)
        .ok_or_else(|| at(&"neither a fault record nor an ELF core of x86"))
}

/// The first bytes of a file: of a record, nothing that is longer is needed.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read;
    const MAX: u64 = 16 << 20;
    let mut bytes = Vec::new();
    let file = dump::open(path).and_then(|file| file.take(MAX).read_to_end(&mut bytes));
    file.map(|_| bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// Writes a file, or leaves none: half a dump looks like one.
fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let mut file = fs::File::create(path);
    let written = file.as_mut().map_err(|error| error.to_string());
    let written = written.and_then(|file| file.write_all(bytes).map_err(|error| error.to_string()));
    if written.is_err() && file.is_ok_and(|file| file.metadata().is_ok_and(|facts| facts.is_file())) {
        let _ = fs::remove_file(path);
    }
    written.map_err(|error| format!("{}: {error}", path.display()))
}
