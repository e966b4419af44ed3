//! Builds the freestanding programs of `tests/guests`, and `ways` of `tests/ways`, which QEMU runs beside them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::host::{self, Arch};
use crate::{cache, coverage, i686, root};

/// At a fixed address, because nothing relocates them; with frame pointers, for backtraces.
const FLAGS: [&str; 2] = ["-Crelocation-model=static", "-Cforce-frame-pointers=yes"];

/// The built programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Their architecture.
    pub arch: Arch,
    /// The test cases.
    pub guests: PathBuf,
    /// The demo.
    pub demo: PathBuf,
}

impl Programs {
    /// Whether this machine runs them.
    pub fn runs_here(&self) -> bool {
        self.arch == Arch::X86_64 || host::ia32_runs()
    }
}

/// One file, because in QEMU there are no libraries; with frame pointers, like everything.
const STATIC: [&str; 3] = ["-Ctarget-feature=+crt-static", "-Cforce-frame-pointers=yes", "-Cstrip=symbols"];

/// Builds the program that takes dumps in QEMU, for x86_64.
///
/// # Errors
/// The build fails: most likely there is no static C library.
pub fn ways() -> Result<PathBuf> {
    let (target_dir, triple) = (root().join("target/ways"), Arch::X86_64.triple());
    let mut cargo = Command::new("cargo");
    cargo.env("CARGO_TARGET_DIR", &target_dir).env("CARGO_ENCODED_RUSTFLAGS", STATIC.join("\x1f"));
    cargo.current_dir(root()).args(["build", "--quiet", "--release", "--package", "ascetic-ways"]);
    host::run(cargo.args(["--target", triple])).context("ways")?;
    Ok(target_dir.join(triple).join("release/ways"))
}

/// Builds the programs for x86_64 so that they write down which lines ran, as `PID.profraw` in the folder where they run.
///
/// # Errors
/// The build fails.
pub fn counted() -> Result<Programs> {
    let target_dir = root().join("target/coverage/guests");
    let flags = [&FLAGS[..], &[coverage::FLAG]].concat().join("\x1f");
    let mut cargo = Command::new("cargo");
    cargo.env("CARGO_TARGET_DIR", &target_dir).env("CARGO_ENCODED_RUSTFLAGS", flags);
    finish(Arch::X86_64, cargo, &target_dir, &["--features", "coverage"])
}

/// Builds the programs for `arch`, with the toolchain that can.
///
/// # Errors
/// There is no toolchain for i686, or the build fails.
pub fn build(arch: Arch) -> Result<Programs> {
    let (cargo, target_dir) = match arch {
        Arch::X86_64 => {
            let target_dir = root().join("target/guests");
            let mut cargo = Command::new("cargo");
            cargo.env("CARGO_TARGET_DIR", &target_dir).env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
            (cargo, target_dir)
        }
        Arch::I686 => {
            let toolchain = i686::ensure(&cache()).context("a compiler for i686")?;
            (toolchain.cargo(&FLAGS), toolchain.target_dir)
        }
    };
    finish(arch, cargo, &target_dir, &[])
}

/// Builds them by a cargo that is set up for it.
fn finish(arch: Arch, mut cargo: Command, target_dir: &Path, more: &[&str]) -> Result<Programs> {
    cargo.current_dir(root()).args(["build", "--quiet", "--release", "--package", "ascetic-guests"]);
    host::run(cargo.args(["--target", arch.triple()]).args(more))
        .with_context(|| format!("guest programs for {arch}"))?;
    let dir = target_dir.join(arch.triple()).join("release");
    Ok(Programs { arch, guests: dir.join("guests"), demo: dir.join("demo") })
}
