//! A supervisor's life: batches of sandboxes that run at once, are killed at random points, or crash; then the count.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ascetic::error::Status;
use ascetic::fault::record::Record;
use ascetic::sandbox::{self, Cause, Config, Outcome, RECORD_MAX, Sandbox};
use ascetic_tools::dump::collect::{Collector, Ways};
use fastrand::Rng;

use crate::Leak;
use crate::count::Count;
use crate::guests::{End, GUESTS, Guest, POLICY};

/// How long a guest may take that ends by itself: other processes have the machine, too, and stop it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long what ends may take to be gone, and what does not end.
const GOING: Duration = Duration::from_secs(10);
const STAYING: Duration = Duration::from_secs(1);
/// What the child that eats memory eats, in bytes.
const MEAL: usize = 256 << 20;
/// Batches before the first count: what is set up once is set up then.
const WARM: u64 = 3;

/// What has been.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Sandboxes that were made.
    pub sandboxes: u64,
    /// Those that could not be, for want of what was limited.
    pub refused: u64,
    /// Crashes, each with its record.
    pub crashes: u64,
    /// Those with a minidump, core, JSON and text each from the record and by `ptrace`.
    pub collected: u64,
    /// Sandboxes that somebody interfered with.
    pub disturbed: u64,
    /// How often everything was counted, and nothing was left.
    pub balanced: u64,
}

impl Sum {
    /// The numbers, in the order of a line.
    fn numbers(&mut self) -> [&mut u64; 6] {
        [
            &mut self.sandboxes,
            &mut self.refused,
            &mut self.crashes,
            &mut self.collected,
            &mut self.disturbed,
            &mut self.balanced,
        ]
    }

    /// A line that [`Self::read`] reads.
    fn line(mut self) -> String {
        self.numbers().map(|n| n.to_string()).join(" ")
    }

    /// From a line.
    pub fn read(line: &str) -> Option<Self> {
        let mut sum = Self::default();
        let mut words = line.split(' ');
        for to in sum.numbers() {
            *to = words.next()?.parse().ok()?;
        }
        Some(sum)
    }

    /// One more process's.
    pub fn add(&mut self, mut other: Self) {
        self.numbers().into_iter().zip(other.numbers()).for_each(|(to, from)| *to += *from);
    }
}

/// A sandbox that runs.
struct Running {
    sandbox: Sandbox<'static>,
    guest: &'static Guest,
    /// Whether anything was done to it that changes its end.
    disturbed: bool,
    end: Instant,
}

/// Lives for a while.
pub struct Worker {
    rng: Rng,
    folder: tempfile::TempDir,
    watcher: PathBuf,
    leak: Option<Leak>,
    sum: Sum,
}

impl Worker {
    /// With a seed.
    pub fn new(seed: u64, watcher: &Path, leak: Option<Leak>) -> Result<Self> {
        Ok(Self {
            rng: Rng::with_seed(seed),
            folder: tempfile::tempdir()?,
            watcher: watcher.to_owned(),
            leak,
            sum: Sum::default(),
        })
    }

    /// Runs batches until then, and says after each what has been.
    pub fn run(&mut self, until: Instant) -> Result<()> {
        let mut before = None;
        let mut batch = 0;
        let going = if self.leak.is_some() { STAYING } else { GOING };
        while Instant::now() < until {
            let eater = self.rng.u8(..4).eq(&0).then(eat).transpose()?;
            self.batch()?;
            if self.rng.u8(..3) == 0 {
                self.collect()?;
            }
            if let Some(eater) = eater {
                reap(eater)?;
            }
            batch += 1;
            match &before {
                _ if batch < WARM => {}
                None => before = Some(Count::now(self.folder.path())?),
                Some(before) => {
                    if let Some(left) = before.balance(self.folder.path(), going)? {
                        bail!("batch {batch}: something is left\n{left}");
                    }
                    self.sum.balanced += 1;
                }
            }
            println!("{}", self.sum.line());
            std::io::stdout().flush()?;
        }
        Ok(())
    }

    /// Some sandboxes at once, to their ends.
    fn batch(&mut self) -> Result<()> {
        let mut running: Vec<Running> = Vec::new();
        for _ in 0..self.rng.usize(1..=4) {
            running.extend(self.start()?);
        }
        while !running.is_empty() {
            let i = self.rng.usize(..running.len());
            let one = &mut running[i];
            let ended = if Instant::now() > one.end {
                ensure!(one.disturbed, "`{}` does not end", one.guest.name);
                Some(one.sandbox.kill())
            } else {
                match self.rng.u8(..200) {
                    // SIGKILL, or a fault that there was not, to one of its tasks.
                    0 => {
                        one.disturbed |= signal_some(&one.sandbox, &mut self.rng);
                        None
                    }
                    1 if self.rng.u8(..4) == 0 => {
                        one.disturbed = true;
                        Some(one.sandbox.kill())
                    }
                    2 if self.rng.u8(..4) == 0 => {
                        self.sum.disturbed += 1;
                        running.swap_remove(i); // which kills it
                        continue;
                    }
                    _ => one.sandbox.serve(Some(Duration::from_micros(300))),
                }
            };
            if let Some(outcome) = ended {
                let one = running.swap_remove(i);
                self.judge(&one, outcome)?;
                match self.leak {
                    Some(Leak::Sandbox) => std::mem::forget(one.sandbox),
                    Some(Leak::Task) => drop(eat()?),
                    Some(Leak::File) => drop(std::fs::File::create(self.folder.path().join(one.guest.name))?),
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// Makes a sandbox, now and then with too little of something.
    fn start(&mut self) -> Result<Option<Running>> {
        let guest = self.rng.choice(&GUESTS).context("a guest")?;
        let (arg, scarce) = (self.rng.usize(..2000), self.rng.u8(..8));
        let limited = match scarce {
            0 => {
                let open = std::fs::read_dir("/proc/self/fd")?.count() as u64;
                Some(Limited::set(libc::RLIMIT_NOFILE, open + self.rng.u64(..24))?)
            }
            1 => {
                let statm = std::fs::read_to_string("/proc/self/statm")?;
                let pages: u64 = statm.split(' ').next().context("statm")?.parse()?;
                Some(Limited::set(libc::RLIMIT_AS, pages * 4096 + (self.rng.u64(..64) << 20))?)
            }
            _ => None,
        };
        let config = Config { dispatch: true, ..Config::new(&POLICY) };
        let made = sandbox::spawn(&config, guest.entry, arg);
        let disturbed = limited.is_some();
        drop(limited);
        match made {
            Ok(sandbox) => {
                self.sum.sandboxes += 1;
                let patience = match guest.end {
                    End::Never => Duration::from_micros(self.rng.u64(..50_000)),
                    _ => PATIENCE,
                };
                let disturbed = disturbed || guest.end == End::Never;
                Ok(Some(Running { sandbox, guest, disturbed, end: Instant::now() + patience }))
            }
            Err(error) => {
                ensure!(disturbed, "no sandbox: {error}");
                self.sum.refused += 1;
                Ok(None)
            }
        }
    }

    /// Whether that is how it may end.
    fn judge(&mut self, one: &Running, outcome: Outcome) -> Result<()> {
        let name = one.guest.name;
        ensure!(outcome.left == 0, "`{name}`: {} tasks are left", outcome.left);
        if one.disturbed {
            self.sum.disturbed += 1;
            return Ok(());
        }
        let is = match (one.guest.end, outcome.guest) {
            (End::Exit(status), Status::Exited(is)) => status == is,
            (End::Crash(expected), Status::Signaled { signal, .. }) => expected == signal,
            _ => false,
        };
        ensure!(is && outcome.cause == Cause::Guest, "`{name}` ended so: {outcome:?}");
        if let End::Crash(signal) = one.guest.end {
            let mut room = vec![0; RECORD_MAX];
            let record =
                Record::decode(one.sandbox.record(&mut room)).with_context(|| format!("`{name}`: no record"))?;
            let recorded = record.fault.map(|fault| fault.sig);
            ensure!(recorded == Some(signal), "`{name}`: the record has signal {recorded:?}");
            self.sum.crashes += 1;
        }
        Ok(())
    }

    /// A crash with dumps from the record and by `ptrace`, as files.
    fn collect(&mut self) -> Result<()> {
        let crashes = GUESTS.each_ref().into_iter().filter(|guest| matches!(guest.end, End::Crash(_)));
        let guest = self.rng.choice(crashes.collect::<Vec<_>>()).context("a guest")?;
        let ways = Ways { ptrace: true, ..Ways::RECORD };
        let config = Config { dispatch: true, ..Config::new(&POLICY) };
        let collector = Collector::new(ways).folder(self.folder.path()).watcher(&self.watcher);
        let (outcome, crash) = collector.run(&config, guest.entry, self.rng.usize(..2000), Some(PATIENCE))?;
        self.sum.sandboxes += 1;
        let crash = crash.with_context(|| format!("`{}`, collected: no crash: {outcome:?}", guest.name))?;
        let files = std::fs::read_dir(self.folder.path())?.collect::<Result<Vec<_>, _>>()?;
        ensure!(
            crash.dumps.len() == 2 && files.len() == 8,
            "`{}`: {} dumps, {} files, and {:?}",
            guest.name,
            crash.dumps.len(),
            files.len(),
            crash.missing
        );
        files.iter().try_for_each(|file| std::fs::remove_file(file.path()))?;
        self.sum.crashes += 1;
        self.sum.collected += 1;
        Ok(())
    }
}

/// A limit of this process, until dropped.
struct Limited(libc::__rlimit_resource_t, libc::rlimit);

impl Limited {
    /// Sets the soft limit.
    fn set(resource: libc::__rlimit_resource_t, limit: u64) -> Result<Self> {
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: writes one structure.
        let known = unsafe { libc::getrlimit(resource, &raw mut before) };
        let less = libc::rlimit { rlim_cur: limit.min(before.rlim_max), ..before };
        // SAFETY: reads one structure.
        let set = known == 0 && unsafe { libc::setrlimit(resource, &raw const less) } == 0;
        ensure!(set, "rlimit: {}", std::io::Error::last_os_error());
        Ok(Self(resource, before))
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // SAFETY: reads one structure.
        unsafe { libc::setrlimit(self.0, &raw const self.1) };
    }
}

/// Sends one of a sandbox's tasks a signal. Whether there was one.
fn signal_some(sandbox: &Sandbox<'_>, rng: &mut Rng) -> bool {
    let tasks: Vec<u32> = sandbox.tasks().flat_map(|(t, u)| [t, u]).filter(|pid| *pid != 0).collect();
    let Some(&pid) = rng.choice(&tasks) else { return false };
    let signal = *rng.choice(&[libc::SIGKILL, libc::SIGSEGV, libc::SIGTERM]).unwrap_or(&libc::SIGKILL);
    // SAFETY: a child that is not reaped, as long as the sandbox has it.
    unsafe { libc::kill(pid as i32, signal) };
    true
}

/// A child that takes all the memory that it may have, holds it for a moment, and ends.
fn eat() -> Result<i32> {
    // SAFETY: this process has one thread; the child makes system calls only.
    match unsafe { libc::fork() } {
        -1 => bail!("fork: {}", std::io::Error::last_os_error()),
        // SAFETY: maps new memory, and ends.
        0 => unsafe {
            let memory = libc::mmap(
                std::ptr::null_mut(),
                MEAL,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            );
            libc::usleep(20_000);
            libc::_exit(i32::from(memory == libc::MAP_FAILED))
        },
        child => Ok(child),
    }
}

/// Waits for a child.
fn reap(child: i32) -> Result<()> {
    // SAFETY: no status is wanted.
    let pid = unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    ensure!(pid == child, "waitpid: {}", std::io::Error::last_os_error());
    Ok(())
}
