//! The C interface: its header, its example, its test, and code that other people wrote in C as guests.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::apt::{self, Apt};
use crate::host::Arch;
use crate::{cache, host, root};

/// The modules that the header is made of, in its order.
const MODULES: [&str; 5] = ["error", "policy", "config", "sandbox", "guest"];

/// What the compiler is to say of a C program.
const FLAGS: [&str; 7] = ["-std=c11", "-D_DEFAULT_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Werror"];

/// Libraries of other people's, as Debian built them: package, what to link, and the folders of headers.
const PARTS: [(&str, &str, &[&str]); 3] = [
    ("libsqlite3-dev", "libsqlite3.a", &[""]),
    ("zlib1g-dev", "libz.a", &["", "x86_64-linux-gnu"]),
    ("liblua5.4-dev", "liblua5.4.a", &["lua5.4", "x86_64-linux-gnu"]),
];

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
    pub fn compile(&self, source: &str, more: &[PathBuf]) -> Result<PathBuf> {
        let source = root().join(source);
        let program = self.dir.join(source.file_stem().context("a source has a name")?);
        let mut cc = Command::new("cc");
        cc.args(FLAGS).arg(&source).arg("-I").arg(root().join("include"));
        cc.args(more).arg("-L").arg(&self.dir).args(["-lascetic", "-pthread", "-ldl", "-lm", "-o"]).arg(&program);
        host::run(&mut cc)?;
        Ok(program)
    }

    /// Compiles a C program of ours with this library and another, fetched from Debian's archive at the first call.
    fn compile_with(&self, source: &str, package: &str) -> Result<PathBuf> {
        let (_, archive, headers) = PARTS.iter().find(|part| part.0 == package).context("a package of the list")?;
        let dir = cache().join("libraries").join(package);
        if !dir.exists() {
            let deb = Apt::new(&cache())?.download(package, None, Arch::X86_64, &["bookworm"])?;
            host::create_dir_atomically(&dir, |dir| apt::unpack(&deb, dir))?;
        }
        let mut more = Vec::new();
        for folder in *headers {
            more.extend([PathBuf::from("-isystem"), dir.join("usr/include").join(folder)]);
        }
        more.push(dir.join("usr/lib/x86_64-linux-gnu").join(archive));
        self.compile(source, &more)
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

    /// Compiles and runs `tests/c/signals.c`: handlers, masks, jumps and cancellation as glibc makes them.
    ///
    /// # Errors
    /// It does not compile, or finds that something is not as it must be.
    pub fn signals(&self) -> Result<()> {
        let program = self.compile("tests/c/signals.c", &[])?;
        says(&mut Command::new(program), &["guest: all as it must be", "supervisor: exit status 0"])
    }

    /// SQLite works in its folder, sees locks, and opens no database beside it; what it wrote can be read outside.
    ///
    /// # Errors
    /// The library cannot be had, or something is not so.
    pub fn sqlite(&self) -> Result<()> {
        let program = self.compile_with("tests/c/sqlite.c", "libsqlite3-dev")?;
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("inside"))?;
        let lines = [
            "inside: 5000 rows, integrity ok",
            "neighbour: unable to open database file",
            "refused: newfstatat",
            "outside: 5000 rows, integrity ok",
        ];
        says(Command::new(program).arg(fs::canonicalize(dir.path())?), &lines)
    }

    /// zlib works in four threads on 100 MB; there is no fifth thread, and there are no files.
    ///
    /// # Errors
    /// The library cannot be had, or something is not so.
    pub fn zlib(&self) -> Result<()> {
        let program = self.compile_with("tests/c/zlib.c", "zlib1g-dev")?;
        let lines =
            ["threads: 4, bytes there and back: 104857600", "as many threads as the policy allows", "exit status 0"];
        says(&mut Command::new(program), &lines)
    }

    /// Lua runs a script that it may read, and that finds that it can do nothing else.
    ///
    /// # Errors
    /// The library cannot be had, or something is not so.
    pub fn lua(&self) -> Result<()> {
        let program = self.compile_with("tests/c/lua.c", "liblua5.4-dev")?;
        let lines = ["script: all as it must be", "refused: openat /etc/shadow", "exit status 0"];
        says(Command::new(program).arg(fs::canonicalize(root().join("tests/c/script.lua"))?), &lines)
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
