//! The C interface: its header, its example, and its test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{cache, host, root};

/// The modules that the header is made of, in its order.
const MODULES: [&str; 5] = ["error", "policy", "config", "sandbox", "guest"];

/// What the compiler is to say of a C program.
const FLAGS: [&str; 7] = ["-std=c11", "-D_DEFAULT_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Werror"];

/// How long a C program may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Where the header is.
fn header() -> PathBuf {
    root().join("include/ascetic.h")
}

/// The header, as cbindgen makes it of the source.
fn generate() -> Result<String> {
    let capi = root().join("capi");
    let config = cbindgen::Config::from_file(capi.join("cbindgen.toml")).map_err(anyhow::Error::msg)?;
    let sources = MODULES.map(|module| capi.join("src").join(module).with_extension("rs"));
    let builder = sources.iter().fold(cbindgen::Builder::new().with_config(config), cbindgen::Builder::with_src);
    let mut text = Vec::new();
    builder.generate().context("cbindgen")?.write(&mut text);
    Ok(String::from_utf8(text)?)
}

/// Writes the header anew.
///
/// # Errors
/// The source cannot be read, or the header not written.
pub fn write_header() -> Result<()> {
    fs::write(header(), generate()?).with_context(|| header().display().to_string())
}

/// The header is what cbindgen makes of the source now.
///
/// # Errors
/// It is not; the error names the first line that differs.
pub fn check_header() -> Result<()> {
    let (now, kept) = (generate()?, fs::read_to_string(header()).unwrap_or_default());
    let differs = now.lines().zip(kept.lines()).position(|(now, kept)| now != kept);
    let line = differs.unwrap_or(now.lines().count().min(kept.lines().count())) + 1;
    ensure!(now == kept, "include/ascetic.h differs in line {line}: `cargo xtask header` makes it anew");
    Ok(())
}

/// `libascetic.a`, built.
pub struct Library {
    dir: PathBuf,
}

impl Library {
    /// Builds it.
    ///
    /// # Errors
    /// It does not build.
    pub fn build() -> Result<Self> {
        let target = cache().join("capi");
        let mut cargo = Command::new("cargo");
        cargo.current_dir(root()).env("CARGO_TARGET_DIR", &target);
        host::run(cargo.args(["build", "--quiet", "--release", "--package", "ascetic-c"]))?;
        Ok(Self { dir: target.join("release") })
    }

    /// Compiles a C program of ours with it, and with what `more` says.
    ///
    /// # Errors
    /// The compiler finds something, or the linker misses something.
    pub fn compile(&self, source: &str, more: &[&Path]) -> Result<PathBuf> {
        let source = root().join(source);
        let program = self.dir.join(source.file_stem().context("a source has a name")?);
        let mut cc = Command::new("cc");
        cc.args(FLAGS).arg(&source).arg("-I").arg(root().join("include"));
        cc.args(more).arg("-L").arg(&self.dir).args(["-lascetic", "-pthread", "-ldl", "-lm", "-o"]).arg(&program);
        host::run(&mut cc)?;
        Ok(program)
    }

    /// Compiles and runs `examples/embed.c`, which judges itself.
    ///
    /// # Errors
    /// It does not compile, or finds that something is not as it must be.
    pub fn example(&self) -> Result<()> {
        let program = self.compile("examples/embed.c", &[])?;
        let lines = [
            "no policy: `kill` may not be a direct call",
            "allowed: /etc/hostname says",
            "thread: sum 6",
            "refused: /etc/shadow: Permission denied",
            "supervisor: exit status 0, calls refused: 1",
        ];
        says(&mut Command::new(program), &lines)
    }

    /// Compiles and runs `tests/c/interface.c`.
    ///
    /// # Errors
    /// It does not compile, or says what is not as it must be.
    pub fn interface(&self) -> Result<()> {
        let program = self.compile("tests/c/interface.c", &[])?;
        says(&mut Command::new(program), &["guest, 0 failures", "reported, 0 failures"])
    }
}

/// The command ends well, and says all of `lines`.
///
/// # Errors
/// It does not.
pub fn says(command: &mut Command, lines: &[&str]) -> Result<()> {
    let text = host::run_within(command, LIMIT)?;
    match lines.iter().find(|line| !text.contains(**line)) {
        Some(line) => anyhow::bail!("no `{line}` in:\n{text}"),
        None => Ok(()),
    }
}
