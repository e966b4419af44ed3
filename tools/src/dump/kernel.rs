//! What the kernel does with cores on this machine, and what else of it matters to dumps.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::{Dump, Facts, core, rewrite};

/// Where the kernel writes cores (`core(5)`, `/proc/sys/kernel/core_pattern`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Files of this name, with `%` for what is filled in; in the folder where the process is unless it begins with `/`, and
    /// below the process's own root.
    File(String),
    /// Standard input of this program, which runs as root, outside of every sandbox.
    Pipe(String),
    /// This AF_UNIX socket (since Linux 6.16), where [`receive`](super::receive) takes them.
    Socket {
        /// From the machine's root folder, whatever the process's is.
        path: String,
        /// Whether the kernel asks first what to do (since Linux 6.17), and then always waits until the core is taken.
        request: bool,
    },
    /// Nowhere.
    Nowhere,
}

impl Pattern {
    /// What is in force.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn in_force() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/sys/kernel/core_pattern")?;
        let uses_pid = fs::read_to_string("/proc/sys/kernel/core_uses_pid").is_ok_and(|text| text.trim() == "1");
        Ok(Self::parse(text.trim_end_matches('\n'), uses_pid))
    }

    fn parse(text: &str, uses_pid: bool) -> Self {
        match text.as_bytes().first() {
            None => Self::Nowhere,
            Some(b'|') => Self::Pipe(text[1..].to_owned()),
            Some(b'@') => {
                let request = text.starts_with("@@");
                Self::Socket { path: text.trim_start_matches('@').to_owned(), request }
            }
            Some(_) if uses_pid && !text.contains("%p") => Self::File(format!("{text}.%p")),
            Some(_) => Self::File(text.to_owned()),
        }
    }

    /// The file's name for a process, if only its id is filled in.
    fn file_of(&self, pid: u32) -> Result<String, NoCore> {
        match self {
            Self::File(name) => {
                let name = name.replace("%p", &pid.to_string());
                if name.contains('%') || name.starts_with('/') {
                    Err(NoCore::Elsewhere(self.clone()))
                } else {
                    Ok(name)
                }
            }
            // So it is saved by who receives it.
            Self::Socket { .. } => Ok(format!("core.{pid}")),
            _ => Err(NoCore::Elsewhere(self.clone())),
        }
    }

    /// How long it may take until the core is there when the process is gone: its receiver may still be at work.
    fn patience(&self, facts: &Facts) -> Duration {
        let killed = facts.ended.is_none_or(|ended| ended.signal == libc::SIGKILL);
        match self {
            Self::Socket { request: false, .. } if !killed => Duration::from_secs(1),
            _ => Duration::ZERO,
        }
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(name) => write!(f, "to files `{name}`"),
            Self::Pipe(program) => write!(f, "to the program `{program}`"),
            Self::Socket { path, .. } => write!(f, "to the socket `{path}`"),
            Self::Nowhere => f.write_str("nowhere"),
        }
    }
}

/// There is no core to read.
#[derive(Debug, thiserror::Error)]
pub enum NoCore {
    /// `/proc` cannot be read.
    #[error("core_pattern: {0}")]
    Proc(#[from] io::Error),
    /// It went where this program does not look.
    #[error("by core_pattern it goes elsewhere: {0}")]
    Elsewhere(Pattern),
    /// There is none.
    #[error(
        "none: the kernel writes none for SIGKILL, nor beyond RLIMIT_CORE, nor where the process may not write ({0}: {1})"
    )]
    None(String, core::NoCore),
    /// There is one, and it is another process's: it stays where it is.
    #[error("{0} is of another process")]
    Others(String),
    /// It was read and removed, but could not be kept.
    #[error("{0}: {1}")]
    NotKept(PathBuf, io::Error),
}

/// How the kernel's own file is kept: all memory that it has, but for what is taken out.
#[derive(Clone, Debug)]
pub struct Keep {
    /// Where to.
    pub to: PathBuf,
    /// Addresses whose memory is zeros there.
    pub redacted: Vec<Range<u64>>,
    /// Bytes of memory, at most.
    pub cap: u64,
}

/// Reads the core of a task that has ended in `folder`, and removes it: where the kernel, or who receives its cores, has put
/// it. A copy of it is kept if that is asked for.
///
/// # Errors
/// It is not there, or elsewhere, or of another process.
pub fn core_of(folder: &Path, pid: u32, facts: &Facts, keep: Option<&Keep>) -> Result<Dump, NoCore> {
    let pattern = Pattern::in_force()?;
    let name = pattern.file_of(pid)?;
    let path = folder.join(&name);
    let end = Instant::now() + pattern.patience(facts);
    while !path.exists() && Instant::now() < end {
        thread::sleep(Duration::from_millis(5));
    }
    match (take(&path, &name, pid, facts, keep), pattern) {
        // Whoever receives it puts it somewhere else.
        (Err(NoCore::None(..)), pattern @ Pattern::Socket { .. }) if !path.exists() => Err(NoCore::Elsewhere(pattern)),
        (taken, _) => taken,
    }
}

fn take(path: &Path, name: &str, pid: u32, facts: &Facts, keep: Option<&Keep>) -> Result<Dump, NoCore> {
    let dump = core::read_file(path, facts).map_err(|error| NoCore::None(name.to_owned(), error))?;
    if dump.exception.as_ref().is_none_or(|exception| exception.thread != pid) {
        return Err(NoCore::Others(name.to_owned()));
    }
    let kept = keep.map_or(Ok(()), |keep| {
        let registers = dump.threads.first().and_then(|thread| thread.registers.as_ref().ok());
        let places = registers.map(|registers| [registers.pc(dump.arch), registers.sp(dump.arch)]);
        let first: Vec<u64> = places.into_iter().flatten().flatten().chain(dump.pointers()).collect();
        rewrite::copy(path, &keep.to, &keep.redacted, keep.cap, &first)
            .map_err(|error| NoCore::NotKept(keep.to.clone(), error))
    });
    let _ = fs::remove_file(path);
    kept.map(|()| dump)
}

/// Whether the kernel writes the cores of this process's children to files that [`core_of`] finds.
pub(super) fn leaves_files() -> bool {
    Pattern::in_force().is_ok_and(|pattern| matches!(pattern, Pattern::File(_)) && pattern.file_of(1).is_ok())
}

/// What the set-up finds of itself: each by its name, as the kernel has it.
pub(super) fn self_check(pid: u32) -> Vec<(String, String)> {
    let setting =
        |path: &str| fs::read_to_string(path).map_or_else(|error| error.to_string(), |text| text.trim().to_owned());
    let limits = setting(&format!("/proc/{pid}/limits"));
    let line =
        |name: &str| limits.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("unknown").trim().to_owned();
    let pattern = Pattern::in_force().map_or_else(|error| error.to_string(), |pattern| pattern.to_string());
    let owner = fs::metadata(format!("/proc/{pid}/mem")).map(|meta| std::os::unix::fs::MetadataExt::uid(&meta));
    let own = fs::metadata("/proc/self/mem").map(|meta| std::os::unix::fs::MetadataExt::uid(&meta));
    // Files of a process that is not dumpable belong to root (`proc(5)`); of root's, nobody can tell.
    let dumpable = match (owner, own) {
        (Ok(0), Ok(0)) => "unknown: root's",
        (Ok(0), Ok(_)) => "no",
        (Ok(_), _) => "yes",
        (Err(_), _) => "unknown",
    };
    [
        ("core limit", line("Max core file size")),
        ("cores go", pattern),
        ("coredump_filter", setting(&format!("/proc/{pid}/coredump_filter"))),
        ("dumpable", dumpable.to_owned()),
        ("yama/ptrace_scope", setting("/proc/sys/kernel/yama/ptrace_scope")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_of_another_process_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("core");
        let (_, bytes) = crate::dump::samples::cores()[0];
        let pid = core::read(bytes, &Facts::default()).unwrap().exception.unwrap().thread;
        fs::write(&path, bytes).unwrap();
        let keep = Keep { to: folder.path().join("kept"), redacted: Vec::new(), cap: u64::MAX };
        let others = take(&path, "core", pid + 1, &Facts::default(), Some(&keep));
        assert!(matches!(others, Err(NoCore::Others(_))) && path.exists() && !keep.to.exists());
        assert!(take(&path, "core", pid, &Facts::default(), Some(&keep)).is_ok() && !path.exists());
        assert!(core::read_file(&keep.to, &Facts::default()).is_ok());
    }

    #[test]
    fn patterns() {
        let of = |text, uses_pid| Pattern::parse(text, uses_pid);
        assert_eq!(of("core", true).file_of(7).unwrap(), "core.7");
        assert_eq!(of("c-%p", true).file_of(7).unwrap(), "c-7");
        assert_eq!(of("core", false).file_of(7).unwrap(), "core");
        for (text, request) in [("@/run/s", false), ("@@/run/s", true)] {
            let pattern = of(text, true);
            assert_eq!(pattern, Pattern::Socket { path: "/run/s".to_owned(), request });
            assert_eq!(pattern.file_of(7).unwrap(), "core.7");
        }
        for elsewhere in ["", "|/bin/x %p", "/var/core", "core.%e"] {
            assert!(matches!(of(elsewhere, false).file_of(7), Err(NoCore::Elsewhere(_))), "{elsewhere}");
        }
    }
}
