//! The machine that xtask runs on: running commands, finding programs, and what its kernel can do.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use wait_timeout::ChildExt;

/// How many lines of a failed command's standard error go into the error.
const STDERR_TAIL: usize = 15;

/// An architecture that the runtime supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// 32-bit x86.
    I686,
    /// 64-bit x86.
    X86_64,
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::I686 => "i686",
            Self::X86_64 => "x86_64",
        })
    }
}

impl Arch {
    /// The target triple that rustc knows it by.
    pub fn triple(self) -> &'static str {
        match self {
            Self::I686 => "i686-unknown-linux-gnu",
            Self::X86_64 => "x86_64-unknown-linux-gnu",
        }
    }

    /// The name that Debian's package archive knows it by.
    pub fn debian(self) -> &'static str {
        match self {
            Self::I686 => "i386",
            Self::X86_64 => "amd64",
        }
    }
}

/// Runs `command` to its end and returns what it wrote to standard output.
///
/// # Errors
/// The command cannot be started, or fails: the error has the command line and the last lines of its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    finish(command, None)
}

/// Like [`run`], but kills the command after `limit`.
///
/// # Errors
/// As [`run`], and when the limit has passed.
pub fn run_within(command: &mut Command, limit: Duration) -> Result<String> {
    finish(command, Some(limit))
}

fn finish(command: &mut Command, limit: Option<Duration>) -> Result<String> {
    let line = command_line(command);
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let status = match limit {
        None => child.wait()?,
        Some(limit) => match child.wait_timeout(limit)? {
            Some(status) => status,
            None => {
                child.kill()?;
                child.wait()?;
                bail!("`{line}` was killed after {} s", limit.as_secs());
            }
        },
    };
    if !status.success() {
        return Err(failure(&line, status, &mut stderr));
    }
    read_back(&mut stdout)
}

/// The error for a command that ended with `status`: its command line and the tail of what `stderr` holds.
pub fn failure(line: &str, status: ExitStatus, stderr: &mut File) -> anyhow::Error {
    let text = read_back(stderr).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(STDERR_TAIL)..].join("\n");
    anyhow::anyhow!("`{line}` failed ({status})\n{tail}")
}

/// `command` as a person would type it, for messages.
pub fn command_line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

fn read_back(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Where the program `name` is, looked up in `PATH`.
pub fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|path| fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Makes the directory `dest` by letting `fill` write into a fresh one beside it, so that `dest` exists only complete.
///
/// # Errors
/// `fill` fails, or the file system does; `dest` is then as before.
pub fn create_dir_atomically(dest: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = dest.parent().context("a directory without a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let partial = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir_in(parent)?;
    fill(partial.path())?;
    fs::rename(partial.path(), dest)
        .with_context(|| format!("cannot move the finished {} in place", dest.display()))?;
    // Moved away: there is nothing left to delete.
    let _ = partial.keep();
    Ok(())
}

/// Whether the running kernel executes i386 programs, proved by running one. The answer is kept.
pub fn ia32_runs() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| run_ia32_probe().unwrap_or(false))
}

/// A complete ELF32 program: header, one loadable segment, and `mov eax, 1; mov ebx, 42; int 0x80` (exit with 42).
#[rustfmt::skip]
const IA32_PROBE: [u8; 96] = [
    0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    2, 0, 3, 0, 1, 0, 0, 0, 0x54, 0x80, 0x04, 0x08, 52, 0, 0, 0, // executable, i386, entry 0x08048054
    0, 0, 0, 0, 0, 0, 0, 0, 52, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0, // one program header, at 52
    1, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x80, 0x04, 0x08, 0x00, 0x80, 0x04, 0x08, // load at 0x08048000
    96, 0, 0, 0, 96, 0, 0, 0, 5, 0, 0, 0, 0x00, 0x10, 0, 0,
    0xb8, 1, 0, 0, 0, 0xbb, 42, 0, 0, 0, 0xcd, 0x80,
];

fn run_ia32_probe() -> Result<bool> {
    let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempfile()?;
    file.write_all(&IA32_PROBE)?;
    let path = file.into_temp_path();
    loop {
        match Command::new(&path).status() {
            Ok(status) => return Ok(status.code() == Some(42)),
            // Another thread's fork may hold our writable descriptor for a moment.
            Err(e) if e.kind() == ErrorKind::ExecutableFileBusy => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(e.into()),
        }
    }
}
