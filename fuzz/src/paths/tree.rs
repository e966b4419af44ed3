//! Two trees of files that are alike: the guest's calls are made in one, plain ones in the other.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Modification times before this were set by somebody.
const SET: i64 = 1_000_000_000;

/// What is at a name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    mode: u32,
    links: u64,
    /// What the link says.
    says: Vec<u8>,
    /// Of a file, which no other has at first.
    len: u64,
    time: Option<i64>,
}

/// What no guest may change: beside the roots, and in one that may only be read.
const OUTSIDE: [&str; 3] = ["out", "w", "x/two"];

/// Everything below a folder.
type Snapshot = BTreeMap<PathBuf, Node>;

/// The two trees. Their paths have the same length.
pub struct Trees {
    /// The guest's, and the other.
    pub bases: [PathBuf; 2],
    fresh: Snapshot,
    /// What both have.
    state: Option<Snapshot>,
}

/// In memory, if there is such a place.
fn place() -> PathBuf {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() }
}

fn folder(pid: u32) -> PathBuf {
    place().join(format!("ascetic-paths-{pid}"))
}

extern "C" fn clean_up() {
    let _ = fs::remove_dir_all(folder(std::process::id()));
}

impl Trees {
    /// Somewhere of this process's own; what dead processes left there is removed.
    pub fn new() -> Self {
        for entry in fs::read_dir(place()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.strip_prefix("ascetic-paths-")?.parse::<u32>().ok());
            if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let own = folder(std::process::id());
        // SAFETY: a function that takes nothing.
        unsafe { libc::atexit(clean_up) };
        Self { bases: ["s", "t"].map(|name| own.join(name)), fresh: Snapshot::new(), state: None }
    }

    /// Makes both as they are in the beginning.
    pub fn reset(&mut self) {
        if self.state.as_ref() == Some(&self.fresh) {
            return;
        }
        for base in &self.bases {
            let _ = fs::remove_dir_all(base);
            make(base).unwrap_or_else(|error| panic!("{}: {error}", base.display()));
        }
        self.fresh = self.snapshot(0);
        self.compare(true, "at first");
    }

    /// Looks that a call has `changed` what is below the roots in the same way in both, or nothing.
    ///
    /// # Panics
    /// If not.
    pub fn compare(&mut self, changed: bool, told: &str) {
        let ours = self.snapshot(0);
        if changed {
            assert_eq!(ours, self.snapshot(1), "the trees: {told}");
        } else {
            assert_eq!(Some(&ours), self.state.as_ref(), "it failed, and changed something: {told}");
        }
        let outside = |path: &Path| OUTSIDE.iter().any(|kept| path.starts_with(kept));
        let outside = |all: &Snapshot| {
            all.iter()
                .filter(|(path, _)| outside(path))
                .map(|(path, node)| (path.clone(), node.clone()))
                .collect::<Snapshot>()
        };
        assert_eq!(outside(&ours), outside(&self.fresh), "outside: {told}");
        self.state = Some(ours);
    }

    /// What is in a tree. The tree's own path is that of the first everywhere.
    fn snapshot(&self, i: usize) -> Snapshot {
        let mut all = Snapshot::new();
        self.add(i, Path::new(""), &mut all);
        all
    }

    fn add(&self, i: usize, below: &Path, all: &mut Snapshot) {
        let path = self.bases[i].join(below);
        let facts = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let kind = facts.file_type();
        let says = if kind.is_symlink() {
            self.translate(i, 0, fs::read_link(&path).expect("a link").as_os_str().as_bytes())
        } else {
            Vec::new()
        };
        let len = if kind.is_file() { facts.len() } else { 0 };
        let time = Some(facts.mtime()).filter(|time| *time < SET);
        all.insert(below.to_owned(), Node { mode: facts.mode(), links: facts.nlink(), says, len, time });
        if kind.is_dir() {
            for entry in fs::read_dir(&path).expect("a folder") {
                self.add(i, &below.join(entry.expect("an entry").file_name()), all);
            }
        }
    }

    /// A text in which the path of one tree is that of the other.
    pub fn translate(&self, from: usize, to: usize, text: &[u8]) -> Vec<u8> {
        let [from, to] = [from, to].map(|i| self.bases[i].as_os_str().as_bytes());
        match text.strip_prefix(from) {
            Some(rest) => [to, rest].concat(),
            None => text.to_vec(),
        }
    }

    /// Where an open file of this process is, seen from a tree.
    pub fn open_file(&self, i: usize, fd: i32) -> Vec<u8> {
        let path = fs::read_link(format!("/proc/self/fd/{fd}")).expect("an open file");
        self.translate(i, 0, &path.into_os_string().into_vec())
    }
}

/// The roots are `r`, `w`, `q` and the files `x/one` and `x/link`; beside them is what no guest must reach.
fn make(base: &Path) -> std::io::Result<()> {
    for folder in ["r/d/e", "r/g", "w/d", "q/d", "x", "out/d"] {
        fs::create_dir_all(base.join(folder))?;
    }
    let files = ["r/f", "r/d/f", "r/d/e/f", "w/f", "w/d/f", "q/f", "q/d/f", "x/one", "x/two", "out/f", "out/d/f"];
    for (i, file) in files.into_iter().enumerate() {
        fs::write(base.join(file), vec![b'x'; 100 + i])?;
        fs::set_permissions(base.join(file), Permissions::from_mode(0o644))?;
    }
    for (link, target) in [
        ("r/l", "d"),
        ("r/d/l", "../f"),
        ("r/d/e/up", "../../../out"),
        ("r/round", "round"),
        ("r/none", "new"),
        ("r/slash", "d/e/"),
        ("r/far", "d/e/../../../out/f"),
        ("w/l", "d/f"),
        ("w/up", "../r"),
        ("q/l", "d"),
        ("x/link", "two"),
    ] {
        symlink(target, base.join(link))?;
    }
    symlink(base.join("out/f"), base.join("r/out"))?;
    symlink(base.join("r/d"), base.join("r/back"))
}
