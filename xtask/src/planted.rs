//! Bugs that are planted (`fuzz/planted`) to show that fuzzing finds them, and `docs/fuzzing.md`.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::fuzz::{self, Built, Clean};
use crate::host;
use crate::root;

/// How long a bug may take to be found, in seconds, once it is built.
const LIMIT: u64 = 300;

/// A bug, as its patch says.
struct Planted {
    name: String,
    patch: PathBuf,
    /// The target that finds it.
    target: String,
    kind: String,
    what: String,
}

impl Planted {
    /// All, by their names.
    fn all() -> Result<Vec<Self>> {
        let folder = root().join("fuzz/planted");
        let mut all = Vec::new();
        for file in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let patch = file?.path();
            let text = fs::read_to_string(&patch)?;
            let field = |name: &str| -> Result<String> {
                let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                Ok(line.with_context(|| format!("{} says no {name}", patch.display()))?.to_owned())
            };
            let (target, kind, what) = (field("Target")?, field("Kind")?, field("What")?);
            let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            all.push(Self { name, patch, target, kind, what });
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        ensure!(!all.is_empty(), "{} has no patches", folder.display());
        Ok(all)
    }

    /// Plants it in the tree, which has none of it, and fuzzes. How long it took to be found, if it was.
    fn find(&self, tree: &Path) -> Result<Option<Duration>> {
        copy(tree)?;
        let mut git = Command::new("git");
        // The copy is in a folder of the repository, and not to be taken for a part of it.
        git.env("GIT_CEILING_DIRECTORIES", tree.parent().unwrap_or(tree)).current_dir(tree).arg("apply");
        host::run(git.arg(&self.patch)).with_context(|| format!("`{}` cannot be planted any more", self.name))?;
        let built = Built::new(tree, &tree.with_file_name("build"), &[])?;
        let found = built.find(&self.target, LIMIT)?;
        match found {
            Some(took) => println!("{}: found by {} in {:.0} s", self.name, self.target, took.as_secs_f32().ceil()),
            None => println!("{}: NOT found by {} in {LIMIT} s", self.name, self.target),
        }
        Ok(found)
    }
}

/// Makes `tree` a copy of the files of this one that git knows. What is the same is not written again, so that it is not built
/// again.
fn copy(tree: &Path) -> Result<()> {
    let listed = host::run(Command::new("git").current_dir(root()).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    for name in listed.lines() {
        let (from, to) = (root().join(name), tree.join(name));
        let Ok(bytes) = fs::read(&from) else { continue }; // removed, or a folder
        if fs::read(&to).is_ok_and(|there| there == bytes) {
            continue;
        }
        fs::create_dir_all(to.parent().unwrap_or(tree))?;
        fs::write(&to, bytes)?;
    }
    Ok(())
}

/// The copy.
fn tree() -> PathBuf {
    root().join("target/planted/tree")
}

/// Plants the bug of this name, or each. Whether all are found.
///
/// # Errors
/// There is none of this name, or it cannot be planted or built.
pub fn run(name: &str) -> Result<bool> {
    let mut good = true;
    let all = Planted::all()?;
    ensure!(name.is_empty() || all.iter().any(|bug| bug.name == name), "fuzz/planted has no `{name}.patch`");
    for bug in all.iter().filter(|bug| name.is_empty() || bug.name == name) {
        good &= bug.find(&tree())?.is_some();
    }
    Ok(good)
}

/// Plants each that is for a target that was run, and writes the document, in which the rows of others stay as they are.
/// Whether all are found.
///
/// # Errors
/// As [`run`].
pub fn write(clean: &[Clean]) -> Result<bool> {
    let path = root().join("docs/fuzzing.md");
    let before = fs::read_to_string(&path).unwrap_or_default();
    let kept = |begin: &str| before.lines().find(|line| line.starts_with(begin)).map(str::to_owned);
    let mut text = String::from(HEAD);
    writeln!(text, "| target | judges | inputs | in | edges reached | found |\n|---|---|---:|---:|---:|---|")?;
    for target in fuzz::targets()? {
        let source = fs::read_to_string(root().join(format!("fuzz/fuzz_targets/{target}.rs")))?;
        let judges = source.lines().next().and_then(|line| line.strip_prefix("//! ")).unwrap_or_default();
        let begin = format!("| `{target}` |");
        let row = match clean.iter().find(|run| run.target == target) {
            Some(Clean { seconds, runs, edges, .. }) => {
                Some(format!("{begin} {judges} | {runs} | {seconds} s | {edges} | nothing |"))
            }
            None => kept(&begin),
        };
        row.into_iter().try_for_each(|row| writeln!(text, "{row}"))?;
    }
    text += PLANTED;
    writeln!(text, "| bug | kind | what it does | target | found in |\n|---|---|---|---|---:|")?;
    let mut good = true;
    for bug in Planted::all()? {
        let Planted { name, target, kind, what, .. } = &bug;
        let begin = format!("| [{name}](../fuzz/planted/{name}.patch) |");
        let row = if clean.iter().any(|run| run.target == *target) {
            let found = bug.find(&tree())?;
            good &= found.is_some();
            found.map(|took| format!("{begin} {kind} | {what} | `{target}` | {:.0} s |", took.as_secs_f32().ceil()))
        } else {
            kept(&begin)
        };
        row.into_iter().try_for_each(|row| writeln!(text, "{row}"))?;
    }
    if good {
        fs::write(path, text)?;
    }
    Ok(good)
}

const HEAD: &str = "# Fuzzing

Made by `cargo xtask fuzz [TARGET] --seconds 600 --write`, from the runs that it tells of. [fuzz/](../fuzz/src/lib.rs) is laid out as `cargo fuzz`
wants it. What each target is judged by is a slow model, written apart from the code that it judges. Besides these, `cargo xtask fuzz live`
fuzzes a real sandbox ([tests/live/](../tests/live/mod.rs)).

";

const PLANTED: &str = "
## Planted bugs

Each is planted in a copy of the tree, built, and looked for from the seeds that are checked in, for five minutes at most. One of them
again: `cargo xtask fuzz --planted NAME`.

";
