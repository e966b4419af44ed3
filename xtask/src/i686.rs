//! Compilers for the freestanding i686 programs, and the Rust 1.85 that is the oldest supported.
//!
//! rustup's i686 target is used if it is there or can be added. Otherwise Debian has the same thing precompiled: an
//! amd64 rustc with a `core` for i386 of the same version. Its packages are unpacked in the cache, not installed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::apt::{self, Apt};
use crate::host::{self, Arch};

/// How long rustup may take to add a target before it counts as without a network.
const RUSTUP_LIMIT: Duration = Duration::from_secs(60);

/// The suites with Debian's [`MSRV`] compiler, of which the first that has all parts of one version is used.
const SUITES: [&str; 3] = ["bookworm", "bookworm-updates", "bookworm-security"];

/// The oldest Rust that the runtime supports, which is what Debian packages.
const MSRV: &str = "1.85.";

/// Shared libraries that come from the host, because they belong to its dynamic loader or are everywhere.
const HOST_LIBRARIES: [&str; 4] = ["libc6", "libgcc-s1", "libstdc++6", "gcc-12-base"];

/// A Rust compiler and the place for what it builds.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The compiler to use; `None` is the one that cargo finds by itself.
    rustc: Option<PathBuf>,
    /// Its version, such as `1.85.0`.
    pub release: String,
    /// Where its builds go, apart from those of other compilers.
    pub target_dir: PathBuf,
}

impl Toolchain {
    /// A `cargo` that compiles with this toolchain, without arguments yet.
    ///
    /// The flags go to code for the target only as long as `--target` is among the arguments: build scripts and
    /// procedural macros are then built for the host as usual. With no flags those of the configuration stay in force.
    pub fn cargo(&self, rustflags: &[&str]) -> Command {
        let mut cargo = Command::new("cargo");
        cargo.env("CARGO_TARGET_DIR", &self.target_dir);
        if let Some(rustc) = &self.rustc {
            cargo.env("RUSTC", rustc);
            // Wrappers belong to the other compiler.
            cargo.env("RUSTC_WRAPPER", "");
            cargo.env("RUSTC_WORKSPACE_WRAPPER", "");
        }
        if !rustflags.is_empty() {
            cargo.env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\x1f"));
        }
        cargo
    }
}

/// A toolchain that compiles for i686: rustup's if possible, else [`rustc_185`].
///
/// # Errors
/// Neither can be had; the error says what was tried.
pub fn ensure(cache: &Path) -> Result<Toolchain> {
    if active_has_i686()? {
        return active(cache);
    }
    // Asking rustup again on every run would cost its time-out where it has no network.
    if root(cache).exists() {
        return rustc_185(cache);
    }
    let rustup = host::run_within(Command::new("rustup").args(["target", "add", Arch::I686.triple()]), RUSTUP_LIMIT);
    match rustup {
        Ok(_) if active_has_i686()? => active(cache),
        Ok(_) => rustc_185(cache),
        Err(e) => rustc_185(cache).with_context(|| format!("{e:#}")),
    }
}

/// Debian's Rust 1.85, which compiles for both architectures. Fetched at the first call, later calls work offline.
///
/// # Errors
/// The packages cannot be had, or the compiler does not run on this host (an older C library, for example).
pub fn rustc_185(cache: &Path) -> Result<Toolchain> {
    let root = root(cache);
    if !root.exists() {
        host::create_dir_atomically(&root, |dir| unpack_packages(cache, dir))
            .context("cannot fetch Debian's Rust compiler")?;
    }
    // Written each time: it holds absolute paths, and the cache may have been moved.
    let rustc = cache.join("rustc-1.85");
    write_wrapper(&rustc, &fs::canonicalize(&root)?.join("usr"))?;
    let rustc = fs::canonicalize(rustc)?;
    let release = release(&rustc).context("Debian's Rust compiler does not run on this host")?;
    ensure!(release.starts_with(MSRV), "{} is version {release}", rustc.display());
    Ok(Toolchain { rustc: Some(rustc), release, target_dir: cache.join("build-1.85") })
}

fn root(cache: &Path) -> PathBuf {
    cache.join("rust-1.85")
}

/// The toolchain that is active anyway.
fn active(cache: &Path) -> Result<Toolchain> {
    Ok(Toolchain { rustc: None, release: release(Path::new("rustc"))?, target_dir: cache.join("build-i686") })
}

/// Whether the active toolchain holds `core` for i686.
fn active_has_i686() -> Result<bool> {
    let dir = host::run(Command::new("rustc").args(["--print", "target-libdir", "--target", Arch::I686.triple()]))?;
    Ok(Path::new(dir.trim()).exists())
}

/// The version of the compiler `rustc`.
fn release(rustc: &Path) -> Result<String> {
    let text = host::run(Command::new(rustc).arg("-vV"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("release: "))
        .map(str::to_owned)
        .with_context(|| format!("{} -vV prints no release", rustc.display()))
}

/// Unpacks the compiler, its standard library for both architectures and its shared libraries into one tree. Because
/// all is in one tree, in the places that Debian built it for, the compiler finds both libraries by itself.
fn unpack_packages(cache: &Path, dir: &Path) -> Result<()> {
    let apt = Apt::new(cache)?;
    let parts =
        [("rustc-web", Arch::X86_64), ("libstd-rust-web-dev", Arch::X86_64), ("libstd-rust-web-dev", Arch::I686)];
    let version = common_version(&apt, &parts)?;
    let mut libraries = Vec::new();
    for (package, arch) in parts {
        let deb = apt.download(package, Some(&version), arch, &SUITES)?;
        apt::unpack(&deb, dir)?;
        if arch == Arch::X86_64 && package.starts_with("libstd") {
            libraries = apt::dependencies(&deb)?;
        }
    }
    apt.unpack_all(libraries, &HOST_LIBRARIES, &SUITES, dir)
}

/// The first version that all `parts` are there in: one archive may be ahead for one architecture.
fn common_version(apt: &Apt, parts: &[(&str, Arch)]) -> Result<String> {
    let mut common: Option<Vec<String>> = None;
    for (package, arch) in parts {
        let mut versions = apt.versions(package, *arch, &SUITES)?;
        versions.retain(|v| v.starts_with(MSRV) && common.as_ref().is_none_or(|c| c.contains(v)));
        common = Some(versions);
    }
    match common.unwrap_or_default().into_iter().next() {
        Some(version) => Ok(version),
        None => bail!("Debian has no version {MSRV}x of {parts:?} that all of them are there in"),
    }
}

/// Writes a script that starts the compiler below `usr` with its own shared libraries. It goes through the loader and
/// not LD_LIBRARY_PATH, because the linker that the compiler starts must not see those.
fn write_wrapper(script: &Path, usr: &Path) -> Result<()> {
    let lib = usr.join("lib/x86_64-linux-gnu");
    let libraries = [lib.clone(), multiarch_of_root(usr)];
    let path = std::env::join_paths(libraries)?;
    let text = format!(
        "#!/bin/sh\nexec /lib64/ld-linux-x86-64.so.2 --library-path '{}' '{}' \"$@\"\n",
        path.display(),
        usr.join("bin/rustc").display()
    );
    fs::write(script, text)?;
    fs::set_permissions(script, Permissions::from_mode(0o755))?;
    Ok(())
}

/// The directory of the libraries that Debian 12 still keeps outside `/usr`.
fn multiarch_of_root(usr: &Path) -> PathBuf {
    usr.with_file_name("lib").join("x86_64-linux-gnu")
}
