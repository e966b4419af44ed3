//! For embedders: runs a guest, and makes a dump of it if it crashes, in the ways that are asked for.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ascetic::fault::classify::Class;
use ascetic::sandbox::{self, Cause, Config, Core, Hook, Outcome, RECORD_MAX, Sandbox};

use super::fetch::Fetched;
use super::kernel::{self, Keep};
use super::symbols::Symbols;
use super::{Dump, Facts, NotWritten, Way, core, fetch, json, minidump, record, write_all};

/// Which ways to a dump are gone. Each is on or off for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ways {
    /// The reporter in the sandbox writes a record. Always possible; a guest can forge or suppress it.
    pub record: bool,
    /// The kernel writes a core, where `core_pattern` says. With files, `core` in the current folder is taken from there.
    pub core: bool,
    /// A helper process traces the sandbox: `ascetic-watch`, which [`Collector::watcher`] names.
    pub ptrace: bool,
}

impl Ways {
    /// All three.
    pub const ALL: Self = Self { record: true, core: true, ptrace: true };
    /// What needs nothing of the machine.
    pub const RECORD: Self = Self { record: true, core: false, ptrace: false };
}

/// A crash: a dump by each way that was gone and led to one, and why others did not.
#[derive(Debug)]
pub struct Crash {
    /// The dumps, in the order record, core, ptrace.
    pub dumps: Vec<Dump>,
    /// The files that were written, without what tells formats apart.
    pub files: Vec<PathBuf>,
    /// Why a way that was gone led to nothing.
    pub missing: Vec<String>,
}

/// Who is told of a dump before it is written.
type Told<'a> = Box<dyn Fn(&Dump) + 'a>;

/// What to do about crashes.
///
/// ```no_run
/// use ascetic::{policy::Policy, sandbox::Config};
/// use ascetic_tools::dump::collect::{Collector, Ways};
///
/// extern "C" fn guest(_: usize) -> i32 {
///     0
/// }
/// let policy = Policy::new();
/// let collector = Collector::new(Ways::ALL).folder("crashes").annotate("version", "1.2").cap(1 << 20);
/// let (outcome, crash) = collector.run(&Config::new(&policy), guest, 0, None)?;
/// for dump in crash.iter().flat_map(|crash| &crash.dumps) {
///     println!("{outcome:?}: {:?}", dump.exception);
/// }
/// # Ok::<(), ascetic_tools::dump::collect::Error>(())
/// ```
pub struct Collector<'a> {
    ways: Ways,
    folder: Option<PathBuf>,
    cap: usize,
    fetch: usize,
    whole_core: bool,
    annotations: Vec<(String, String)>,
    redacted: Vec<Range<u64>>,
    symbols: Symbols,
    watcher: PathBuf,
    told: Option<Told<'a>>,
    stream: Option<RefCell<Box<dyn Write + 'a>>>,
}

/// A guest could not be run, or its dump not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sandbox could not be made.
    #[error("{0}")]
    Sandbox(ascetic::error::Error),
    /// There is no room for what the helper writes.
    #[error("a folder for what is traced: {0}")]
    Scratch(std::io::Error),
    /// A dump could not be written; the guest has run.
    #[error(transparent)]
    Written(#[from] NotWritten),
}

impl<'a> Collector<'a> {
    /// In these ways; nothing is written anywhere yet.
    pub fn new(ways: Ways) -> Self {
        let (annotations, redacted) = (Vec::new(), Vec::new());
        let (symbols, watcher) = (Symbols::default(), PathBuf::from("ascetic-watch"));
        Self {
            ways,
            folder: None,
            cap: usize::MAX,
            fetch: 0,
            whole_core: false,
            annotations,
            redacted,
            symbols,
            watcher,
            told: None,
            stream: None,
        }
    }

    /// Writes each dump in all formats into a folder: `<pid>-<way>.dmp`, `.core`, `.json`, `.txt`.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Writes a minidump to a descriptor (`File::from(OwnedFd)`), or whatever else takes bytes: for whoever may not, or will not,
    /// create files. It is that of the first way that led to a dump; what a folder or a callback gets does not change.
    #[must_use]
    pub fn minidump_to(mut self, stream: impl Write + 'a) -> Self {
        self.stream = Some(RefCell::new(Box::new(stream)));
        self
    }

    /// Bytes of memory in a dump, at most. What tells most is kept: what is near the crashed thread's program counter and stack
    /// pointer.
    #[must_use]
    pub fn cap(mut self, bytes: usize) -> Self {
        self.cap = bytes;
        self
    }

    /// Has the dump of the record's way have so many bytes of memory more, at most, as far as [`cap`](Self::cap) allows: whole
    /// stacks, the heap, and what else the guest can write. The sandbox's own T reads it, so that nobody needs to be allowed to
    /// trace the sandbox ([`Sandbox::read_memory`]).
    #[must_use]
    pub fn fetch(mut self, bytes: usize) -> Self {
        self.fetch = bytes;
        self
    }

    /// Adds a name and a value to every dump. The guest adds its own by `untrusted::annotate`.
    #[must_use]
    pub fn annotate(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.annotations.push((name.into(), value.into()));
        self
    }

    /// Keeps addresses of the guest out of every dump that is written here. The kernel's own core is removed when it has been
    /// read. One that it would not write to a file in the current folder, but elsewhere, where nothing can be taken out, is not
    /// asked for, unless [`Config::core`] does.
    #[must_use]
    pub fn redact(mut self, range: Range<u64>) -> Self {
        self.redacted.push(range);
        self
    }

    /// Keeps the kernel's own core in the folder, too, as `<pid>-core.kernel`: with all memory that the kernel gave it, but for
    /// redacted ranges, which are zeros there, and what [`cap`](Self::cap) cuts.
    #[must_use]
    pub fn whole_core(mut self) -> Self {
        self.whole_core = true;
        self
    }

    /// Programs whose functions, files and lines the text names.
    #[must_use]
    pub fn symbols(mut self, symbols: Symbols) -> Self {
        self.symbols = symbols;
        self
    }

    /// Where the program `ascetic-watch` is, if not in `PATH`.
    #[must_use]
    pub fn watcher(mut self, program: impl Into<PathBuf>) -> Self {
        self.watcher = program.into();
        self
    }

    /// Tells somebody of each dump, before it is written.
    #[must_use]
    pub fn tell(mut self, told: impl Fn(&Dump) + 'a) -> Self {
        self.told = Some(Box::new(told));
        self
    }

    /// Runs `entry(arg)` in a sandbox to its end, or to `deadline`. `None` if it did not crash: it exited, or whoever killed it
    /// is this process.
    ///
    /// # Errors
    /// There is no sandbox, or a dump cannot be written.
    pub fn run(
        &self,
        config: &Config<'_>,
        entry: extern "C" fn(usize) -> i32,
        arg: usize,
        deadline: Option<Duration>,
    ) -> Result<(Outcome, Option<Crash>), Error> {
        let facts = RefCell::new(Facts::default());
        let fetched = RefCell::new(Fetched::default());
        let tracing = RefCell::new(None);
        // What the helper writes is read again, for what is added and taken out here.
        let scratch = self.ways.ptrace.then(tempfile::tempdir).transpose().map_err(Error::Scratch)?;
        let born = |sandbox: &Sandbox<'_>| {
            if let Some(scratch) = &scratch {
                *tracing.borrow_mut() = Some(Tracing::start(&self.watcher, sandbox, scratch.path()));
            }
            if let Some(Hook(more)) = config.born {
                more(sandbox);
            }
        };
        let dying = |sandbox: &Sandbox<'_>| {
            *facts.borrow_mut() = Facts::of_sandbox(sandbox);
            if self.ways.record && self.fetch > 0 {
                *fetched.borrow_mut() = fetch::all(sandbox, &facts.borrow(), self.fetch, self.cap);
            }
            if let Some(Hook(more)) = config.dying {
                more(sandbox);
            }
        };
        // With a limit of 1, the kernel has no program take a core either (`fs/coredump.c`).
        let out_of_reach = self.ways.core && !self.redacted.is_empty() && !kernel::leaves_files();
        let limits = Core { limit: if out_of_reach { 1 } else { usize::MAX }, filter: None, trusted: false };
        let core = if self.ways.core { config.core.or(Some(limits)) } else { config.core };
        // The helper is a child of this process, and so no ancestor of the tasks.
        let tracer = if self.ways.ptrace { config.tracer.or(Some(-1)) } else { config.tracer };
        let config = Config { born: Some(Hook(&born)), dying: Some(Hook(&dying)), core, tracer, ..*config };
        let mut sandbox = sandbox::spawn(&config, entry, arg).map_err(Error::Sandbox)?;
        let outcome = sandbox.wait(deadline);
        let mut room = vec![0; RECORD_MAX];
        let recorded = sandbox.record(&mut room).to_vec();
        let (_, guest) = sandbox.pids();
        drop(sandbox);
        let mut facts = facts.into_inner();
        facts.annotations.clone_from(&self.annotations);
        let traced = tracing.into_inner().map(|tracer| tracer.and_then(|tracer| tracer.dump(&facts)));
        if !matches!(outcome.cause, Cause::Guest | Cause::TrustedDied) || facts.ended.is_none() {
            return Ok((outcome, None));
        }
        let mut found = Vec::new();
        let mut missing = Vec::new();
        let mut add = |way: &str, dump: Result<Dump, String>| match dump {
            Ok(dump) => found.push((way.to_owned(), dump)),
            Err(why) => missing.push(format!("{way}: {why}")),
        };
        if self.ways.record {
            let mut dump = record::read(&recorded, &facts);
            if let Some(dump) = &mut dump {
                fetched.borrow().add_to(dump);
            }
            add("record", dump.ok_or_else(|| "the guest did not live to write one".to_owned()));
        }
        if self.ways.core {
            let task = facts.ended.map_or(guest, |ended| ended.task);
            let keep = self.folder.as_ref().filter(|_| self.whole_core).map(|folder| Keep {
                to: folder.join(format!("{}-core.kernel", facts.process)),
                redacted: self.redacted.clone(),
                cap: u64::try_from(self.cap).unwrap_or(u64::MAX),
            });
            let core = kernel::core_of(Path::new("."), task, &facts, keep.as_ref());
            add("core", core.map_err(|why| why.to_string()));
        }
        if let Some(traced) = traced {
            add("ptrace", traced);
        }
        let mut crash = Crash { dumps: Vec::new(), files: Vec::new(), missing };
        for (way, mut dump) in found {
            self.redacted.iter().for_each(|range| dump.redact(range));
            dump.cap(self.cap);
            if let Some(told) = &self.told {
                told(&dump);
            }
            if let Some(folder) = &self.folder {
                let stem = format!("{}-{way}", dump.process);
                write_all(&dump, folder, &stem, &self.symbols)?;
                crash.files.push(folder.join(stem));
            }
            if let Some(stream) = self.stream.as_ref().filter(|_| crash.dumps.is_empty()) {
                let stream = &mut *stream.borrow_mut();
                let written = stream.write_all(&minidump::write(&dump)).and_then(|()| stream.flush());
                written.map_err(NotWritten::Stream)?;
            }
            crash.dumps.push(dump);
        }
        Ok((outcome, Some(crash)))
    }
}

/// How long the helper may take to begin, and to end when the sandbox has.
const HELP: Duration = Duration::from_secs(10);

/// A process that traces a sandbox, and the lines that it prints.
struct Tracing(Child, mpsc::Receiver<String>);

impl Tracing {
    /// Has the program trace a sandbox, and waits until it does.
    fn start(program: &Path, sandbox: &Sandbox<'_>, folder: &Path) -> Result<Self, String> {
        let mut command = Command::new(program);
        for pid in sandbox.tasks().flat_map(|(t, u)| [t, u]).filter(|pid| *pid != 0) {
            command.arg("--pid").arg(pid.to_string());
        }
        let child =
            command.arg("--out").arg(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| format!("{}: {error}", program.display()))?;
        let output = child.stdout.take().ok_or("no output")?;
        let (line, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut said = BufReader::new(output).lines().map_while(Result::ok);
            said.all(|text| line.send(text).is_ok())
        });
        let this = Self(child, lines);
        match this.1.recv_timeout(HELP) {
            Ok(text) if text == "ready" => Ok(this),
            _ => Err(this.end().err().unwrap_or_else(|| "it is not ready".to_owned())),
        }
    }

    /// Waits until it has done, as it has when the sandbox has ended; the lines that it printed. A helper that is stuck, or stopped,
    /// is killed.
    fn end(mut self) -> Result<Vec<String>, String> {
        let end = Instant::now() + HELP;
        let mut said = Vec::new();
        let gone = loop {
            match self.1.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(text) if text == "done" => break false,
                Ok(text) => said.push(text),
                Err(mpsc::RecvTimeoutError::Disconnected) => break true,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let _ = self.0.kill();
                    self.reap(); // if it can be
                    return Err(format!("the helper is not done {} s after the sandbox", HELP.as_secs()));
                }
            }
        };
        // What still reads somewhere may keep it from being gone.
        match if gone { self.0.wait().ok() } else { self.reap() } {
            Some(status) if !status.success() => {
                let mut errors = String::new();
                if let Some(mut stderr) = self.0.stderr.take() {
                    let _ = stderr.read_to_string(&mut errors);
                }
                Err(errors.trim().to_owned())
            }
            _ if said.iter().any(|text| text == "late") => Err("the helper was not done in time".to_owned()),
            _ => Ok(said),
        }
    }

    /// Waits a second for its end.
    fn reap(&mut self) -> Option<ExitStatus> {
        for _ in 0..100 {
            match self.0.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(10)),
                ended => return ended.ok().flatten(),
            }
        }
        None
    }

    /// What it dumped: its core, and of its JSON the denied call, for which a core has no place if the signal is SIGKILL.
    fn dump(self, facts: &Facts) -> Result<Dump, String> {
        let said = self.end()?;
        let stem = said.iter().find_map(|line| line.strip_prefix("dumped ")).ok_or("no task crashed")?;
        let mut dump = core::read_file(Path::new(&format!("{stem}.core")), facts).map_err(|error| error.to_string())?;
        dump.way = Way::Ptrace;
        let denied = std::fs::read(format!("{stem}.json")).ok().and_then(|json| json::denied(&json));
        if let Some(exception) = dump.exception.as_mut().filter(|_| denied.is_some()) {
            (exception.denied, exception.class) = (denied, Class::DeniedCall);
        }
        Ok(dump)
    }
}
