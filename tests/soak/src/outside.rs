//! What comes from outside: stops, other CPUs, the supervisor's end.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;

use crate::Options;
use crate::worker::Sum;

/// How many workers there are at once.
const WORKERS: usize = 2;
/// How long a worker lives at most that is not killed before, in seconds.
const LIFE: f64 = 8.0;
/// How long all that a killed worker had may take to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A supervisor, and who reads what it says.
struct Worker {
    child: Child,
    seed: u64,
    said: thread::JoinHandle<(Sum, String)>,
    /// When it is killed, if it is.
    dies: Option<Instant>,
}

/// Runs workers until then, each with a seed of its own.
pub fn run(options: &Options, seed: u64, until: Instant) -> Result<()> {
    // SAFETY: the tasks of a worker that was killed become this process's children, so that it sees each end.
    ensure!(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } == 0, "prctl");
    let folder = tempfile::tempdir()?; // for what workers leave that are killed
    let start = Instant::now();
    let mut rng = Rng::with_seed(seed);
    let (mut sum, mut killed, mut stops, mut next) = (Sum::default(), 0, 0, seed);
    let mut workers: Vec<Worker> = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        while workers.len() < WORKERS && !left.is_zero() {
            workers.push(Worker::start(options, folder.path(), next, left, &mut rng)?);
            next = next.wrapping_add(1);
        }
        if workers.is_empty() {
            break;
        }
        for i in (0..workers.len()).rev() {
            let dead = workers[i].dies.is_some_and(|at| Instant::now() > at);
            if dead {
                workers[i].child.kill()?;
                killed += 1;
            } else if workers[i].child.try_wait()?.is_none() {
                stops += workers[i].harass(&mut rng);
                continue;
            }
            sum.add(workers.swap_remove(i).end(dead)?);
        }
        thread::sleep(Duration::from_micros(rng.u64(..5_000)));
    }
    // Both are gone, and so must be all that they had.
    let end = Instant::now() + PATIENCE;
    while reap()? {
        ensure!(
            Instant::now() < end,
            "seed {seed}: tasks outlive their supervisor: {:?}",
            children(std::process::id())?
        );
        thread::sleep(Duration::from_millis(2));
    }
    println!(
        "{} sandboxes, {} not made for want of something, {} crashes with records, {} of them with files from record and \
         ptrace, {} disturbed; {next_workers} supervisors, {killed} killed; {stops} stops and moves; {} counts balanced; \
         seed {seed}; {:.0} s",
        sum.sandboxes,
        sum.refused,
        sum.crashes,
        sum.collected,
        sum.disturbed,
        sum.balanced,
        start.elapsed().as_secs_f32(),
        next_workers = next.wrapping_sub(seed),
    );
    ensure!(sum.sandboxes > 0 && sum.balanced > 0, "nothing was counted");
    Ok(())
}

impl Worker {
    fn start(options: &Options, folder: &Path, seed: u64, left: Duration, rng: &mut Rng) -> Result<Self> {
        let life = left.as_secs_f64().min(LIFE);
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--worker").arg(format!("--seed={seed}")).arg(format!("--seconds={life}"));
        command.arg("--watcher").arg(&options.watcher).stdin(Stdio::null()).stdout(Stdio::piped());
        command.args(options.leak.map(|leak| format!("--leak={}", format!("{leak:?}").to_lowercase())));
        let mut child = command.env("TMPDIR", folder).spawn().context("a worker")?;
        let output = child.stdout.take().context("no output")?;
        let said = thread::spawn(move || {
            let (mut sum, mut more) = (Sum::default(), String::new());
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                match Sum::read(&line) {
                    Some(new) => sum = new,
                    None => more = more + &line + "\n",
                }
            }
            (sum, more)
        });
        let dies =
            (options.leak.is_none() && rng.bool()).then(|| Instant::now() + Duration::from_secs_f64(life * rng.f64()));
        Ok(Self { child, seed, said, dies })
    }

    /// Stops and moves it, or its tasks, at random. How often.
    fn harass(&self, rng: &mut Rng) -> usize {
        let mut pids = children(self.child.id()).unwrap_or_default();
        pids.push(self.child.id());
        let Some(&pid) = rng.choice(&pids) else { return 0 };
        // SAFETY: makes a descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32;
        if fd < 0 {
            return 0; // it has just ended
        }
        // SAFETY: new, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Whoever the descriptor is of, is the worker's if its number still is: it was opened before that was asked.
        if pid != self.child.id() && !children(self.child.id()).is_ok_and(|pids| pids.contains(&pid)) {
            return 0;
        }
        let signal = |signal: i32| {
            // SAFETY: takes no structure.
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, 0, 0) }
        };
        if rng.bool() {
            signal(libc::SIGSTOP);
            thread::sleep(Duration::from_micros(rng.u64(..10_000)));
            signal(libc::SIGCONT);
        } else {
            let mask: u64 = rng.u64(1..4);
            // SAFETY: reads eight bytes. A number that was a task's a moment ago is not another's yet.
            unsafe { libc::syscall(libc::SYS_sched_setaffinity, pid, 8, &raw const mask) };
        }
        1
    }

    /// What it said, when it has ended.
    fn end(mut self, killed: bool) -> Result<Sum> {
        let status = self.child.wait()?;
        let (sum, more) = self.said.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        let good = if killed { status.signal() == Some(libc::SIGKILL) || status.success() } else { status.success() };
        if !good {
            bail!("seed {}: {status}: {}", self.seed, more.trim_end());
        }
        Ok(sum)
    }
}

/// The children of a process.
fn children(pid: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        children.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    Ok(children)
}

/// Reaps what has ended. Whether anything is left.
fn reap() -> Result<bool> {
    loop {
        // SAFETY: no status is wanted.
        match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) } {
            0 => return Ok(true),
            -1 if std::io::Error::last_os_error().raw_os_error() == Some(libc::ECHILD) => return Ok(false),
            -1 => bail!("waitpid: {}", std::io::Error::last_os_error()),
            _ => {}
        }
    }
}
