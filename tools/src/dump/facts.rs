//! What the supervisor knows of a sandbox without asking it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::time::{SystemTime, UNIX_EPOCH};

use ascetic::broker::Refused;
use ascetic::sandbox::Sandbox;
use object::elf::{ELF_NOTE_GNU, FileHeader32, FileHeader64, NT_GNU_BUILD_ID};
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader, SectionHeader};
use object::{Endianness, FileKind};
use serde::{Deserialize, Serialize};

use super::{Dump, MapsEntry, Module, Origin, Refusal, Role, Thread, Words};

/// Bytes of `/proc/<pid>/maps` that are read, at most.
const MAPS_MAX: u64 = 8 << 20;
/// Bytes of `/proc/<pid>/auxv` that are read, at most.
const AUXV_MAX: u64 = 4096;
/// Bytes of `/proc/<pid>/cmdline` that are read, at most.
const COMMAND_LINE_MAX: u64 = 64 << 10;
/// Bytes of a module in which its build id is looked for.
const MODULE_MAX: u64 = 64 << 20;
/// Bytes of all modules together.
const ALL_MODULES_MAX: u64 = 256 << 20;
/// Bytes of a build id, at most.
const BUILD_ID_MAX: usize = 64;
/// Modules that are looked at, at most.
const MODULES_MAX: usize = 1024;

/// What the check of the alternate stack is called.
pub(super) const ALTSTACK: &str = "alternate stack";

/// A task of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its process id, in the supervisor's namespace.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub role: Role,
}

/// How the first task ended that a signal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Its process id.
    pub task: u32,
    /// The signal, by its wait status.
    pub signal: i32,
}

/// What the supervisor knows. What is left out is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Facts {
    /// The process id by which the sandbox is known.
    pub process: u32,
    /// When it ended: seconds since 1970.
    pub time: u64,
    /// The task that a signal ended.
    pub ended: Option<Ended>,
    /// The tasks.
    pub tasks: Vec<Task>,
    /// What is mapped.
    pub maps: Vec<MapsEntry>,
    /// Mapped programs and libraries.
    pub modules: Vec<Module>,
    /// The auxiliary vector, as in `/proc/<pid>/auxv`.
    #[serde(with = "hex::serde")]
    pub auxv: Vec<u8>,
    /// Arguments of the command line, each ended by a zero byte.
    #[serde(with = "hex::serde")]
    pub command_line: Vec<u8>,
    /// The last refusals, oldest first.
    pub refusals: Vec<Refusal>,
    /// What the set-up found of itself.
    pub self_check: Words,
    /// What the embedder noted: name and value.
    pub annotations: Words,
    /// What could not be read, and why.
    pub missing: Vec<String>,
}

impl Facts {
    /// Reads what `/proc` says of a process: `maps`, `auxv`, `cmdline`, and the build ids of the files that `maps` names.
    /// What cannot be read is in [`Facts::missing`].
    pub fn of_process(pid: u32) -> Self {
        let mut facts = Self { process: pid, ..Self::default() };
        let maps = facts.file("maps", MAPS_MAX);
        facts.maps = String::from_utf8_lossy(&maps).lines().filter_map(|line| line.parse().ok()).collect();
        facts.auxv = facts.file("auxv", AUXV_MAX);
        facts.command_line = facts.file("cmdline", COMMAND_LINE_MAX);
        facts.modules = modules(&facts.maps);
        facts
    }

    /// What is known of a sandbox: for [`Config::dying`](ascetic::sandbox::Config::dying), when the guest may be gone and T, which
    /// has the same memory, is still there.
    pub fn of_sandbox(sandbox: &Sandbox<'_>) -> Self {
        let (t, u) = sandbox.pids();
        let mut facts = Self::of_process(t);
        facts.process = u;
        facts.time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        facts.ended = sandbox.crashed().map(|(task, signal)| Ended { task, signal });
        for (t, u) in sandbox.tasks() {
            [(t, Role::Trusted), (u, Role::Guest)]
                .into_iter()
                .filter(|(id, _)| *id != 0)
                .for_each(|(id, role)| facts.add_task(id, role));
        }
        facts.refusals = sandbox.refusals().0.map(refusal).collect();
        facts.self_check.push((ALTSTACK.to_owned(), sandbox.altstack().to_string()));
        facts.self_check.extend(super::kernel::self_check(t));
        facts
    }

    /// Adds a task, with the name that `/proc` has for it.
    pub fn add_task(&mut self, id: u32, role: Role) {
        let name = read(&format!("/proc/{id}/comm"), 64).unwrap_or_default();
        let name = super::clean(String::from_utf8_lossy(&name).trim_end());
        self.tasks.push(Task { id, name, role });
    }

    fn file(&mut self, name: &str, max: u64) -> Vec<u8> {
        let path = format!("/proc/{}/{name}", self.process);
        match read(&path, max) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.missing.push(format!("{path}: {error}"));
                Vec::new()
            }
        }
    }
}

impl Dump {
    /// Adds what only the supervisor says, but for the tasks.
    pub(super) fn add_facts(&mut self, facts: &Facts) {
        self.process = facts.process;
        self.time = facts.time;
        self.missing.clone_from(&facts.missing);
        self.maps.clone_from(&facts.maps);
        self.modules.clone_from(&facts.modules);
        self.auxv.clone_from(&facts.auxv);
        self.command_line.clone_from(&facts.command_line);
        self.refusals.clone_from(&facts.refusals);
        self.self_check.clone_from(&facts.self_check);
        let noted = facts.annotations.iter().cloned();
        self.annotations.extend(noted.map(|(key, value)| (Origin::Supervisor, key, value)));
    }

    /// Adds the tasks of which nothing else is known; `why` there is nothing of a guest's thread.
    pub(super) fn add_tasks(&mut self, facts: &Facts, why: &str) {
        for task in &facts.tasks {
            if self.threads.iter().any(|known| known.id == task.id) {
                continue;
            }
            let why = match task.role {
                Role::Guest => format!("not stopped: {why}"),
                Role::Trusted => "a trusted thread: no handler interrupts it, and its stack pointer is 0".to_owned(),
            };
            self.threads.push(Thread {
                id: task.id,
                name: super::clean(&task.name),
                role: task.role,
                registers: Err(why),
                origin: Origin::Supervisor,
            });
        }
    }
}

fn refusal(refused: &Refused) -> Refusal {
    Refusal {
        nr: refused.nr,
        args: refused.args.map(|arg| arg as u64),
        pc: refused.pc as u64,
        path: super::clean(refused.path()),
        errno: refused.errno,
        rule: refused.rule.to_owned(),
    }
}

/// The first bytes of a file.
fn read(path: &str, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The files that are mapped executable, each with all its mappings.
fn modules(maps: &[MapsEntry]) -> Vec<Module> {
    let mut modules: Vec<Module> = Vec::new();
    let mut budget = ALL_MODULES_MAX;
    let executable =
        |entry: &&MapsEntry| entry.permissions[2] == b'x' && entry.file.1 != 0 && entry.name.starts_with('/');
    for entry in maps.iter().filter(executable) {
        if modules.len() == MODULES_MAX || modules.iter().any(|module| module.path == entry.name) {
            continue;
        }
        let same = maps.iter().filter(|other| other.file == entry.file && other.name == entry.name);
        let (start, end) = same.fold((entry.start, entry.end), |(a, b), other| (a.min(other.start), b.max(other.end)));
        let build_id = build_id(&entry.name, entry.file.1, &mut budget).unwrap_or_default();
        modules.push(Module { base: start, size: end - start, path: entry.name.clone(), build_id });
    }
    modules
}

/// The build id of the file that is mapped: not of another that has its name now.
fn build_id(path: &str, inode: u64, budget: &mut u64) -> Option<Vec<u8>> {
    let regular = |meta: fs::Metadata| meta.is_file() && meta.ino() == inode;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok()?;
    regular(file.metadata().ok()?).then_some(())?;
    let mut bytes = Vec::new();
    *budget -= file.take(MODULE_MAX.min(*budget)).read_to_end(&mut bytes).ok()? as u64;
    match FileKind::parse(&*bytes).ok()? {
        FileKind::Elf32 => build_id_in::<FileHeader32<Endianness>>(&bytes),
        FileKind::Elf64 => build_id_in::<FileHeader64<Endianness>>(&bytes),
        _ => None,
    }
}

fn build_id_in<H: FileHeader<Endian = Endianness>>(bytes: &[u8]) -> Option<Vec<u8>> {
    let header = H::parse(bytes).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, bytes).unwrap_or_default();
    let in_segments =
        segments.iter().filter_map(|segment| segment.notes(endian, bytes).ok()?).find_map(|n| gnu(endian, n));
    // A linker script need not give the notes a segment.
    let sections = || header.section_headers(endian, bytes).unwrap_or_default().iter();
    in_segments
        .or_else(|| sections().filter_map(|section| section.notes(endian, bytes).ok()?).find_map(|n| gnu(endian, n)))
}

/// The build id among notes.
fn gnu<H: FileHeader<Endian = Endianness>>(endian: Endianness, mut notes: NoteIterator<'_, H>) -> Option<Vec<u8>> {
    while let Ok(Some(note)) = notes.next() {
        if note.name() == ELF_NOTE_GNU && note.n_type(endian) == NT_GNU_BUILD_ID {
            return Some(note.desc().iter().copied().take(BUILD_ID_MAX).collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_this_process() {
        let mut facts = Facts::of_process(std::process::id());
        facts.add_task(std::process::id(), Role::Guest);
        assert_eq!(facts.missing, [""; 0]);
        let program = std::env::current_exe().unwrap();
        let module = facts.modules.iter().find(|module| *module.path == *program).expect("this program");
        let here = of_this_process as *const () as u64;
        assert!((module.base..module.base + module.size).contains(&here));
        assert!(facts.maps.iter().any(|entry| entry.name == "[stack]"));
        assert!(!facts.auxv.is_empty() && !facts.command_line.is_empty());
        let json = serde_json::to_string(&facts).unwrap();
        assert_eq!(serde_json::from_str::<Facts>(&json).unwrap(), facts);
    }

    #[test]
    fn nobody_is_said_to_be_missing() {
        let facts = Facts::of_process(u32::MAX);
        assert_eq!((facts.missing.len(), facts.modules.len()), (3, 0));
    }
}
