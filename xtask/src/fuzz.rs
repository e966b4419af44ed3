//! `cargo xtask fuzz`: coverage-guided fuzzing of the targets of `fuzz/`, by stable Rust and a C++ compiler.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use wait_timeout::ChildExt;

use crate::host::{self, Arch};
use crate::{coverage, planted, root};

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
    /// Plants each bug of fuzz/planted in a copy of the tree, and fuzzes until it is found; with a name, only that one
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
    planted: Option<String>,
    /// Runs the targets, or one, and then their planted bugs, and writes that into docs/fuzzing.md
    #[arg(long, conflicts_with_all = ["replay_seeds", "planted"])]
    write: bool,
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
/// How long the short run of a target may take, in seconds.
const SHORT_LIMIT: u64 = 60;
/// How much longer than asked for a run may take to start and to stop.
const SLACK: Duration = Duration::from_secs(120);

/// Inputs of the short run that the tests make, which are the same each time.
const SHORT: u32 = 100_000;
/// When it ends at the latest, in seconds: where each input takes a process, it is shorter.
const SHORT_TIME: u64 = 10;

/// A run that found nothing.
pub struct Clean {
    /// The target.
    pub target: String,
    /// How long.
    pub seconds: u64,
    /// Inputs that were tried.
    pub runs: u64,
    /// Edges of the program that were reached.
    pub edges: u64,
}

/// The targets, built.
pub struct Built {
    /// `fuzz/`
    fuzz: PathBuf,
    /// Where the programs are.
    programs: PathBuf,
    /// Where the profiling runtime writes what it counted, in a build that counts.
    counts: Option<PathBuf>,
}

/// What a run showed.
struct Ran {
    /// How it ended; `None` if it hung.
    status: Option<ExitStatus>,
    /// What libFuzzer said.
    said: String,
}

/// Runs it. Whether nothing was found.
///
/// # Errors
/// There is no C++ compiler, no such target, or the build fails.
pub fn run(options: &Options) -> Result<bool> {
    if let Some(name) = &options.planted {
        return planted::run(name);
    }
    let targets = match &options.target {
        None => targets()?,
        Some(name) => vec![known(name)?],
    };
    let built = Built::new(&root(), &root().join("target/fuzz"), &[])?;
    if let (Some(file), [target]) = (&options.replay, &targets[..]) {
        let ran = built.libfuzzer(target, &[], std::slice::from_ref(file), INPUT_LIMIT)?;
        print!("{}", ran.said);
        return Ok(ran.good());
    }
    let (mut good, mut clean) = (true, Vec::new());
    for target in &targets {
        if options.replay_seeds {
            good &= built.replay(target)?;
            continue;
        }
        match built.fuzz(target, options.seconds)? {
            Some(line) => clean.push(line),
            None => good = false,
        }
    }
    if options.write && good {
        good = planted::write(&clean)?;
    }
    Ok(good)
}

/// A step of the tests: every target accepts its seeds, and what a short run makes of them. What was run.
///
/// # Errors
/// The build fails, or a target finds something.
pub fn check() -> Result<String> {
    let built = Built::new(&root(), &root().join("target/fuzz"), &[])?;
    Ok(format!("{SHORT} inputs or {SHORT_TIME} s each: {}", built.short()?.join(", ")))
}

/// Makes the short run with programs that count which lines ran, and write that into `raw`. The programs.
///
/// # Errors
/// As [`check`].
pub fn counted(target_dir: &Path, raw: &Path) -> Result<Vec<PathBuf>> {
    let mut built = Built::new(&root(), target_dir, &[coverage::FLAG])?;
    built.counts = Some(raw.join("fuzz-%p.profraw"));
    Ok(built.short()?.iter().map(|target| built.programs.join(target)).collect())
}

/// The names of all targets.
pub fn targets() -> Result<Vec<String>> {
    let folder = root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for file in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let name = file?.file_name();
        names.extend(name.to_str().and_then(|name| name.strip_suffix(".rs")).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// A target's name, if there is such a target.
fn known(name: &str) -> Result<String> {
    let all = targets()?;
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
    /// Builds those of a tree in a folder, with flags more.
    pub fn new(tree: &Path, target_dir: &Path, more: &[&str]) -> Result<Self> {
        if host::find(COMPILER).is_none() {
            bail!(NO_COMPILER);
        }
        let (fuzz, triple) = (tree.join("fuzz"), Arch::X86_64.triple());
        let mut cargo = Command::new("cargo");
        cargo.env("CARGO_TARGET_DIR", target_dir);
        cargo.env("CARGO_ENCODED_RUSTFLAGS", [&FLAGS[..], more].concat().join("\x1f"));
        // A target of its own, so that the flags are not those of build scripts and macros.
        cargo.current_dir(&fuzz).args(["build", "--quiet", "--release", "--bins", "--target", triple]);
        host::run(&mut cargo).context("fuzzing targets")?;
        Ok(Self { fuzz, programs: target_dir.join(triple).join("release"), counts: None })
    }

    /// Runs each target over its seeds, and over what a short run makes of them. The targets.
    fn short(&self) -> Result<Vec<String>> {
        let targets = targets()?;
        for target in &targets {
            let short = ["-seed=1".to_owned(), format!("-runs={SHORT}"), format!("-max_total_time={SHORT_TIME}")];
            ensure!(self.replay(target)?, "{target} fails on a seed");
            let grows = tempfile::tempdir()?; // libFuzzer adds to the first folder
            let ran = self.libfuzzer(target, &short, &[grows.path().to_owned(), self.seeds(target)], SHORT_LIMIT)?;
            ensure!(self.told(target, &ran), "{target} finds something");
        }
        Ok(targets)
    }

    /// Runs a target by libFuzzer for at most `seconds`.
    fn libfuzzer(&self, target: &str, options: &[String], inputs: &[PathBuf], seconds: u64) -> Result<Ran> {
        let artifacts = self.fuzz.join("artifacts").join(target);
        fs::create_dir_all(&artifacts)?;
        // A replay keeps what was said of the finding.
        let log = artifacts.join(if options.is_empty() { "replay.log" } else { "log" });
        let output = File::create(&log)?;
        let program = self.programs.join(target);
        let mut child = Command::new(&program)
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(format!("-timeout={INPUT_LIMIT}"))
            .arg(format!("-rss_limit_mb={MEMORY_LIMIT}"))
            .args(options)
            .args(inputs)
            .envs(self.counts.iter().map(|file| ("LLVM_PROFILE_FILE", file)))
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

    /// Fuzzes from the seeds and what earlier runs grew. What it did, if nothing was found.
    fn fuzz(&self, target: &str, seconds: u64) -> Result<Option<Clean>> {
        let corpus = self.fuzz.join("corpus").join(target);
        fs::create_dir_all(&corpus)?;
        let options = [format!("-max_total_time={seconds}"), "-print_final_stats=1".to_owned()];
        let ran = self.libfuzzer(target, &options, &[corpus, self.seeds(target)], seconds)?;
        if !self.told(target, &ran) {
            return Ok(None);
        }
        let number = |word| ran.number(word).unwrap_or(0);
        let (runs, edges) = (number("stat::number_of_executed_units:"), number("cov: "));
        println!("{target}: {runs} runs in {seconds} s, {edges} edges, nothing found");
        Ok(Some(Clean { target: target.to_owned(), seconds, runs, edges }))
    }

    /// Fuzzes from the seeds alone until something is found. How long that took; `None` if nothing was in time.
    pub fn find(&self, target: &str, seconds: u64) -> Result<Option<Duration>> {
        let grows = tempfile::tempdir()?; // libFuzzer adds to the first folder
        let start = Instant::now();
        let options = [format!("-max_total_time={seconds}")];
        let ran = self.libfuzzer(target, &options, &[grows.path().to_owned(), self.seeds(target)], seconds)?;
        Ok((!ran.good()).then(|| start.elapsed()))
    }

    /// The folder of a target's seeds.
    fn seeds(&self, target: &str) -> PathBuf {
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
        }
        Ok(self.told(target, &ran))
    }

    /// Whether nothing was found; else says what, and how to see it again.
    fn told(&self, target: &str, ran: &Ran) -> bool {
        if ran.good() {
            return true;
        }
        let lines: Vec<&str> = ran.said.lines().collect();
        println!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        match (ran.artifact(), ran.status) {
            (Some(file), _) => println!("{target}: found something; again: cargo xtask fuzz {target} --replay {file}"),
            (None, Some(status)) => println!("{target}: ended with {status}"),
            (None, None) => println!("{target}: hung"),
        }
        false
    }
}
