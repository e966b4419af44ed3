//! Boots a kernel in QEMU and reads its console until it ends.

use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use wait_timeout::ChildExt;

use crate::apt;
use crate::host::{self, Arch};

/// How many of the last console lines an [`Outcome`] keeps.
const LAST_LINES: usize = 20;

/// How long the console is still read after the kernel has said that it is lost.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long QEMU may take to die of SIGKILL.
const DEATH: Duration = Duration::from_secs(10);

/// How long the boot that proves KVM may take.
const KVM_PROOF: Duration = Duration::from_secs(8);

/// What the kernel prints when it cannot go on.
const FATAL: [&str; 4] = ["Kernel panic - not syncing", "BUG: soft lockup", "BUG: unable to handle", "watchdog: BUG:"];

/// How QEMU executes the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// By translation: slow, works everywhere.
    Tcg,
    /// On the processor itself: see [`kvm_works`].
    Kvm,
}

/// A machine to boot.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    /// The kernel image.
    pub kernel: &'a Path,
    /// The files that the kernel starts with; without them it panics once it looks for PID 1.
    pub initramfs: Option<&'a Path>,
    /// What the machine's processor is, not the programs: that of the kernel.
    pub arch: Arch,
    /// How the guest is executed.
    pub accel: Accel,
    /// QEMU's name of the processor: `max` has all that can be had. For an i686 kernel with several processors say
    /// `max,vendor=GenuineIntel`, or the kernel takes it for an old AMD one not meant for that, and warns.
    pub cpu: &'a str,
    /// The number of processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// Kernel parameters besides those for the console; those after ` -- ` go to PID 1.
    pub cmdline: &'a str,
    /// When to give up, from the start.
    pub deadline: Duration,
}

/// How a boot ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why it ended.
    pub end: End,
    /// How long it ran.
    pub elapsed: Duration,
    /// The last lines of the console.
    pub last_lines: Vec<String>,
}

/// Why a boot ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest switched itself off or rebooted.
    Off,
    /// The kernel said this, and that it cannot go on.
    Lost(String),
    /// It was still running at the deadline and was killed.
    Hung,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f32();
        match &self.end {
            End::Off => return write!(f, "switched itself off after {seconds:.1} s"),
            End::Lost(line) => write!(f, "the kernel gave up after {seconds:.1} s: {line}")?,
            End::Hung => write!(f, "hung, killed after {seconds:.1} s")?,
        }
        write!(f, "; last lines:\n{}", self.last_lines.join("\n"))
    }
}

/// Boots `machine` and hands each line of its console to `on_line` as it comes, without the line end.
///
/// # Errors
/// QEMU is missing and cannot be installed, cannot be started, or fails by itself. A guest that panics or hangs is no
/// error but an [`Outcome`].
pub fn boot(machine: &Machine<'_>, mut on_line: impl FnMut(&str)) -> Result<Outcome> {
    let mut command = command(machine)?;
    let mut stderr = tempfile::tempfile()?;
    let start = Instant::now();
    let mut qemu = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr.try_clone()?)
        .spawn()
        .map(Qemu)
        .with_context(|| format!("cannot start `{}`", host::command_line(&command)))?;
    let console = qemu.0.stdout.take().context("QEMU without a console")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || send_lines(console, &sender));

    let mut last_lines = VecDeque::with_capacity(LAST_LINES);
    let mut keep = |line: String| {
        on_line(&line);
        if last_lines.len() == LAST_LINES {
            last_lines.pop_front();
        }
        last_lines.push_back(line);
    };
    let mut give_up = start + machine.deadline;
    let mut lost = None;
    let killed = loop {
        match lines.recv_timeout(give_up.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if lost.is_none() && is_fatal(&line) {
                    lost = Some(line.clone());
                    give_up = give_up.min(Instant::now() + LAST_WORDS);
                }
                keep(line);
            }
            Err(RecvTimeoutError::Timeout) => {
                qemu.0.kill()?;
                break true;
            }
            Err(RecvTimeoutError::Disconnected) => break false,
        }
    };
    let status = qemu.wait()?;
    // What came in between, and the unfinished line that a hang may leave.
    lines.iter().for_each(&mut keep);
    let end = match lost {
        Some(line) => End::Lost(line),
        None if killed => End::Hung,
        None if status.success() => End::Off,
        None => {
            return Err(host::failure(&host::command_line(&command), status, &mut stderr));
        }
    };
    Ok(Outcome { end, elapsed: start.elapsed(), last_lines: last_lines.into() })
}

/// Whether KVM runs `kernel`, an image for `arch`. A `/dev/kvm` that exists may hang all the same, so this boots the
/// kernel as far as its complaint that it has no PID 1. The answer is kept.
pub fn kvm_works(kernel: &Path, arch: Arch) -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let machine = Machine {
            kernel,
            initramfs: None,
            arch,
            accel: Accel::Kvm,
            cpu: "max",
            cpus: 1,
            memory: 256,
            cmdline: "",
            deadline: KVM_PROOF,
        };
        let usable = std::fs::File::options().read(true).write(true).open("/dev/kvm");
        usable.is_ok() && boot(&machine, |_| ()).is_ok_and(|outcome| matches!(outcome.end, End::Lost(_)))
    })
}

fn command(machine: &Machine<'_>) -> Result<Command> {
    let program = match machine.arch {
        Arch::I686 => "qemu-system-i386",
        Arch::X86_64 => "qemu-system-x86_64",
    };
    let accel = match machine.accel {
        Accel::Tcg => "tcg,thread=multi",
        Accel::Kvm => "kvm",
    };
    let mut command = Command::new(apt::ensure_installed(program, "qemu-system-x86")?);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-serial", "stdio", "-no-reboot"])
        .args(["-accel", accel, "-cpu", machine.cpu])
        .args(["-smp", &machine.cpus.to_string()])
        .args(["-m", &machine.memory.to_string()])
        .arg("-kernel")
        .arg(machine.kernel)
        .arg("-append")
        .arg(format!("console=ttyS0 quiet panic=-1 {}", machine.cmdline));
    if let Some(initramfs) = machine.initramfs {
        command.arg("-initrd").arg(initramfs);
    }
    Ok(command)
}

/// Whether the kernel, whose lines begin with a time stamp, says that it is lost; the guest's own lines do not count.
fn is_fatal(line: &str) -> bool {
    line.starts_with('[') && FATAL.iter().any(|marker| line.contains(marker))
}

/// Sends the console's lines until its end. An unfinished last line counts.
fn send_lines(console: impl Read, lines: &Sender<String>) {
    for line in BufReader::new(console).split(b'\n') {
        let Ok(line) = line else { return };
        let line = String::from_utf8_lossy(&line).replace('\r', "");
        if lines.send(line).is_err() {
            return;
        }
    }
}

/// A running QEMU that does not outlive its owner.
struct Qemu(Child);

impl Qemu {
    /// Waits for its end, which must be near: it has closed its console or was killed.
    fn wait(&mut self) -> Result<ExitStatus> {
        self.0.wait_timeout(DEATH)?.context("QEMU does not die: it hangs in the kernel, perhaps in KVM")
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Fails if it has ended, as it should have.
        if self.0.kill().is_ok() {
            let _ = self.0.wait_timeout(DEATH);
        }
    }
}
