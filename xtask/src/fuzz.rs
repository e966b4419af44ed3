//! `cargo xtask fuzz`: coverage-guided fuzzing of the targets of `fuzz/`, by stable Rust and a C++ compiler.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use wait_timeout::ChildExt;

use crate::host::{self, Arch};
use crate::root;

/// What to run.
#[derive(clap::Args)]
pub struct Options {
    /// A target, as in fuzz/fuzz_targets; without one, all in turn
    target: Option<String>,
    /// How long each target runs, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Runs the target once, on this input
    #[arg(long, requires = "target")]
    replay: Option<PathBuf>,
    /// Runs each target once over the seeds that are checked in
    #[arg(long)]
    replay_seeds: bool,
}

/// What cargo-fuzz sets, without what needs a nightly compiler (sanitizers). The reporter walks frame pointers.
const FLAGS: [&str; 8] = [
    "-Cforce-frame-pointers=yes",
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0", // each condition of a check is a branch of its own
];
/// The program that libFuzzer is built with.
pub const COMPILER: &str = "c++";
/// What to say where it is not there.
pub const NO_COMPILER: &str =
    "libFuzzer needs a C++ compiler, and there is no `c++`; on Debian or Ubuntu: sudo apt-get install g++";
/// An input that takes longer, in seconds, is a finding.
const INPUT_LIMIT: u64 = 10;
/// An input that takes more memory, in MiB, is a finding.
const MEMORY_LIMIT: u64 = 2048;
/// How much longer than asked for a run may take to start and to stop.
const SLACK: Duration = Duration::from_secs(120);

/// The targets of a tree, built.
pub struct Built {
    /// `fuzz/` of the tree.
    fuzz: PathBuf,
    /// Where the programs are.
    programs: PathBuf,
}

/// What a run showed.
pub struct Ran {
    /// How it ended; `None` if it hung.
    pub status: Option<ExitStatus>,
    /// What libFuzzer said.
    pub said: String,
}

/// Runs it. Whether nothing was found.
///
/// # Errors
/// There is no C++ compiler, no such target, or the build fails.
pub fn run(options: &Options) -> Result<bool> {
    let targets = match &options.target {
        None => targets(&root())?,
        Some(name) => vec![known(name)?],
    };
    let built = Built::new(&root(), &root().join("target/fuzz"))?;
    if let (Some(file), [target]) = (&options.replay, &targets[..]) {
        let ran = built.libfuzzer(target, &[], std::slice::from_ref(file), INPUT_LIMIT)?;
        print!("{}", ran.said);
        return Ok(ran.good());
    }
    let mut good = true;
    for target in &targets {
        good &= if options.replay_seeds { built.replay(target)? } else { built.fuzz(target, options.seconds)? };
    }
    Ok(good)
}

/// A step of the tests: every target accepts its seeds.
///
/// # Errors
/// The build fails, or a target does not accept a seed.
pub fn check_seeds() -> Result<()> {
    let built = Built::new(&root(), &root().join("target/fuzz"))?;
    for target in targets(&root())? {
        if !built.replay(&target)? {
            bail!("{target} fails on a seed");
        }
    }
    Ok(())
}

/// The names of all targets of a tree.
fn targets(tree: &Path) -> Result<Vec<String>> {
    let folder = tree.join("fuzz/fuzz_targets");
    let files = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut names = Vec::new();
    for file in files {
        let path = file?.path();
        names
            .extend(path.file_stem().filter(|_| path.extension().is_some_and(|e| e == "rs")).map(|s| s.to_os_string()));
    }
    let mut names: Vec<String> = names.into_iter().filter_map(|name| name.into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// A target's name, if there is such a target.
fn known(name: &str) -> Result<String> {
    let all = targets(&root())?;
    if !all.iter().any(|target| target == name) {
        bail!("`{name}` is none of the targets {}", all.join(", "));
    }
    Ok(name.to_owned())
}

impl Ran {
    /// Whether nothing was found.
    fn good(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// The last number behind a word.
    fn number(&self, word: &str) -> Option<u64> {
        let behind = &self.said[self.said.rfind(word)? + word.len()..];
        behind.split_whitespace().next()?.parse().ok()
    }

    /// The file that libFuzzer keeps a finding in.
    fn artifact(&self) -> Option<&str> {
        self.said.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, file)| file.trim())
    }
}

impl Built {
    /// Builds the targets of the tree at `tree`.
    ///
    /// # Errors
    /// There is no C++ compiler, or the build fails.
    pub fn new(tree: &Path, target_dir: &Path) -> Result<Self> {
        if host::find(COMPILER).is_none() {
            bail!(NO_COMPILER);
        }
        let triple = Arch::X86_64.triple();
        let mut cargo = Command::new("cargo");
        cargo.env("CARGO_TARGET_DIR", target_dir).env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
        // A target of its own, so that the flags are not those of build scripts and macros.
        cargo.current_dir(tree.join("fuzz")).args(["build", "--quiet", "--release", "--bins", "--target", triple]);
        host::run(&mut cargo).context("fuzzing targets")?;
        Ok(Self { fuzz: tree.join("fuzz"), programs: target_dir.join(triple).join("release") })
    }

    /// Runs a target by libFuzzer for at most `seconds`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn libfuzzer(&self, target: &str, options: &[String], inputs: &[PathBuf], seconds: u64) -> Result<Ran> {
        let artifacts = self.fuzz.join("artifacts").join(target);
        fs::create_dir_all(&artifacts)?;
        let log = artifacts.join("log");
        let output = File::create(&log)?;
        let program = self.programs.join(target);
        let mut child = Command::new(&program)
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(format!("-timeout={INPUT_LIMIT}"))
            .arg(format!("-rss_limit_mb={MEMORY_LIMIT}"))
            .args(options)
            .args(inputs)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let status = child.wait_timeout(Duration::from_secs(seconds) + SLACK)?;
        if status.is_none() {
            child.kill()?;
            child.wait()?;
        }
        Ok(Ran { status, said: String::from_utf8_lossy(&fs::read(&log)?).into_owned() })
    }

    /// Fuzzes from the seeds and what earlier runs grew. Whether nothing was found.
    fn fuzz(&self, target: &str, seconds: u64) -> Result<bool> {
        let corpus = self.fuzz.join("corpus").join(target);
        fs::create_dir_all(&corpus)?;
        let ran = self.grow(target, seconds, &[corpus, self.seeds(target)])?;
        if ran.good() {
            let number = |word| ran.number(word).unwrap_or(0);
            let (runs, edges) = (number("stat::number_of_executed_units:"), number("cov: "));
            println!("{target}: {runs} runs in {seconds} s, {edges} edges, nothing found");
        } else {
            self.tell(target, &ran);
        }
        Ok(ran.good())
    }

    /// Fuzzes from these folders; the first one grows.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn grow(&self, target: &str, seconds: u64, folders: &[PathBuf]) -> Result<Ran> {
        let mut options = vec![format!("-max_total_time={seconds}"), "-print_final_stats=1".to_owned()];
        let words = self.fuzz.join("dictionaries").join(target);
        if words.exists() {
            options.push(format!("-dict={}", words.display()));
        }
        let there: Vec<PathBuf> = folders.iter().filter(|folder| folder.exists()).cloned().collect();
        self.libfuzzer(target, &options, &there, seconds)
    }

    /// The folder of a target's seeds.
    pub fn seeds(&self, target: &str) -> PathBuf {
        self.fuzz.join("seeds").join(target)
    }

    /// Runs a target once over its seeds. Whether it accepts all.
    fn replay(&self, target: &str) -> Result<bool> {
        let mut seeds = Vec::new();
        for file in fs::read_dir(self.seeds(target)).with_context(|| format!("{target} has no seeds"))? {
            seeds.push(file?.path());
        }
        if seeds.is_empty() {
            bail!("{target} has no seeds");
        }
        let ran = self.libfuzzer(target, &[], &seeds, INPUT_LIMIT * seeds.len() as u64)?;
        if ran.good() {
            println!("{target}: {} seeds", seeds.len());
        } else {
            self.tell(target, &ran);
        }
        Ok(ran.good())
    }

    /// Says what was found, and how to see it again.
    fn tell(&self, target: &str, ran: &Ran) {
        let lines: Vec<&str> = ran.said.lines().collect();
        println!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        match (ran.artifact(), ran.status) {
            (Some(file), _) => println!("{target}: found something; again: cargo xtask fuzz {target} --replay {file}"),
            (None, Some(status)) => println!("{target}: ended with {status}"),
            (None, None) => println!("{target}: hung"),
        }
    }
}
