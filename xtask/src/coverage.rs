//! `cargo xtask coverage`: which lines of the code that decides about, or reads, what a guest wrote are reached by the tests and
//! by a short fuzzing run.
//!
//! The compiler counts (`-Cinstrument-coverage`), and LLVM's own tools, of the version that the compiler was built with, say
//! what the counts mean. They are unpacked from Debian's packages, with their libraries and loader.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::apt::Apt;
use crate::host::{self, Arch};
use crate::{cache, fuzz, guests, root, test};

/// What must be reached, in percent of the lines of each part.
const WANTED: f64 = 90.0;

/// What is looked at: a name, and where its code is.
const PARTS: [(&str, &[&str]); 4] = [
    ("policy", &["src/policy.rs", "src/policy/", "src/direct.rs", "tools/src/text.rs"]),
    ("broker", &["src/broker/"]),
    ("decoder", &["src/fault/record.rs"]),
    ("collector", &["tools/src/dump/"]),
];

/// Has the compiler count.
pub const FLAG: &str = "-Cinstrument-coverage";

/// What to run.
#[derive(clap::Args)]
pub struct Options {
    /// Prints the lines that nothing reached, too
    #[arg(long)]
    lines: bool,
}

/// Of each file, below the workspace's folder: how often each line ran.
type Lines = BTreeMap<PathBuf, BTreeMap<usize, u64>>;

/// Runs it. Whether enough is reached.
///
/// # Errors
/// Something cannot be built, or LLVM's tools cannot be had.
pub fn run(options: &Options) -> Result<bool> {
    let llvm = Llvm::ensure()?;
    let dir = root().join("target/coverage");
    let raw = dir.join("raw");
    if raw.exists() {
        fs::remove_dir_all(&raw)?;
    }
    fs::create_dir_all(&raw)?;
    let mut objects = unit_tests(&dir, &raw)?;
    objects.extend(fuzz::counted(&dir.join("fuzz"), &raw)?);
    objects.push(cases(&raw)?);
    let lines = llvm.lines(&dir, &raw, &objects)?;
    let mut good = true;
    for (part, places) in PARTS {
        let (mut all, mut reached) = (0, 0);
        for (file, counts) in &lines {
            if !places.iter().any(|place| file.to_string_lossy().starts_with(place)) {
                continue;
            }
            let (here, missed) = (counts.len(), counts.iter().filter(|(_, n)| **n == 0).map(|(line, _)| *line));
            let missed: Vec<usize> = missed.collect();
            all += here;
            reached += here - missed.len();
            if options.lines && !missed.is_empty() {
                println!("{}: {} of {here} lines not reached: {missed:?}", file.display(), missed.len());
            }
        }
        ensure!(all > 0, "no code of {part} was counted");
        let percent = 100.0 * reached as f64 / all as f64;
        println!("{part}: {percent:.1} % of {all} lines");
        good &= percent > WANTED;
    }
    Ok(good)
}

/// Runs the unit and integration tests of the runtime and the tools. The programs that ran.
fn unit_tests(dir: &Path, raw: &Path) -> Result<Vec<PathBuf>> {
    let flags = format!("-Cforce-frame-pointers=yes\x1f{FLAG}"); // the variable replaces what .cargo/config.toml has
    let cargo = |more: &[&str]| {
        let mut cargo = Command::new("cargo");
        cargo.env("CARGO_TARGET_DIR", dir.join("tests")).env("CARGO_ENCODED_RUSTFLAGS", &flags);
        cargo.env("LLVM_PROFILE_FILE", raw.join("test-%p-%m.profraw"));
        cargo.current_dir(root()).args(["test", "--quiet", "--package", "ascetic", "--package", "ascetic-tools"]);
        cargo.args(["--lib", "--bins", "--tests", "--target", Arch::X86_64.triple()]).args(more);
        cargo
    };
    let built = host::run(&mut cargo(&["--no-run", "--message-format=json"])).context("counted tests")?;
    host::run(&mut cargo(&[])).context("counted tests")?;
    let artifacts = built.lines().map(serde_json::from_str::<serde_json::Value>).collect::<Result<Vec<_>, _>>()?;
    Ok(artifacts.iter().filter_map(|one| one["executable"].as_str()).map(PathBuf::from).collect())
}

/// Runs the guests' cases, x86_64, natively. The program.
fn cases(raw: &Path) -> Result<PathBuf> {
    let programs = guests::counted()?;
    for name in test::cases(&programs, "")?.into_keys() {
        test::case_in(raw, &programs, &name, false)?;
    }
    Ok(programs.guests)
}

/// LLVM's tools, unpacked.
struct Llvm {
    root: PathBuf,
    major: String,
}

impl Llvm {
    /// Those of the version that the compiler was built with.
    fn ensure() -> Result<Self> {
        let text = host::run(Command::new("rustc").arg("-vV"))?;
        let version = text.lines().find_map(|line| line.strip_prefix("LLVM version: "));
        let major = version.and_then(|v| v.split('.').next()).context("rustc -vV names no LLVM")?.to_owned();
        let root = cache().join(format!("llvm-{major}"));
        if !root.exists() {
            let package = format!("llvm-{major}");
            let without = [format!("{package}-runtime"), format!("{package}-linker-tools")];
            let without = without.each_ref().map(String::as_str);
            // A cache of its own: these libraries are of another suite than the compiler's.
            let apt = Apt::new(&cache().join("llvm"))?;
            host::create_dir_atomically(&root, |dir| apt.unpack_all(vec![package], &without, &["sid"], dir))
                .context("cannot fetch LLVM's tools")?;
        }
        Ok(Self { root, major })
    }

    /// Runs a tool by its own loader: its C library is newer than the host's.
    fn tool(&self, name: &str) -> Command {
        let mut tool = Command::new(self.root.join("usr/lib64/ld-linux-x86-64.so.2"));
        tool.arg("--library-path").arg(self.root.join("usr/lib/x86_64-linux-gnu"));
        tool.arg(self.root.join(format!("usr/lib/llvm-{}/bin/{name}", self.major)));
        tool
    }

    /// What ran, from all counts in `raw` that the programs `objects` wrote. Unit tests are no lines.
    fn lines(&self, dir: &Path, raw: &Path, objects: &[PathBuf]) -> Result<Lines> {
        let (list, merged) = (dir.join("list"), dir.join("merged"));
        let mut names = String::new();
        for file in fs::read_dir(raw)? {
            let path = file?.path();
            if path.extension().is_some_and(|end| end == "profraw") {
                names += &format!("{}\n", path.display());
            }
        }
        fs::write(&list, names)?;
        // A program that was killed at its end leaves a file that is cut short.
        let mut profdata = self.tool("llvm-profdata");
        profdata.args(["merge", "--sparse", "--failure-mode=all", "--output"]).arg(&merged);
        host::run(profdata.arg(format!("--input-files={}", list.display())))?;
        let mut cov = self.tool("llvm-cov");
        cov.args(["export", "--format=lcov", "--instr-profile"]).arg(&merged);
        for object in objects {
            cov.arg("--object").arg(object);
        }
        let text = host::run(&mut cov)?;
        let (mut lines, mut file, mut end) = (Lines::new(), PathBuf::new(), usize::MAX);
        for line in text.lines() {
            if let Some(path) = line.strip_prefix("SF:") {
                file = Path::new(path).strip_prefix(root()).unwrap_or(Path::new("")).to_owned();
                let source = fs::read_to_string(root().join(&file)).unwrap_or_default();
                end = source.lines().position(|line| line == "#[cfg(test)]").unwrap_or(usize::MAX);
            } else if let Some((line, count)) = line.strip_prefix("DA:").and_then(|data| data.split_once(',')) {
                let (line, count) = (line.parse()?, count.parse::<u64>()?);
                if line <= end && !file.ends_with("tests.rs") {
                    *lines.entry(file.clone()).or_default().entry(line).or_default() += count;
                }
            }
        }
        Ok(lines)
    }
}
