//! The kernels to test on, from Debian's packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::apt::{self, Apt};
use crate::host::{self, Arch};

/// A kernel that can be fetched and booted.
#[derive(Debug)]
pub struct Kernel {
    /// What it is called on the command line and in the cache.
    pub name: &'static str,
    /// What it was built for.
    pub arch: Arch,
    /// The Debian package that stands for the newest build of it.
    package: &'static str,
    /// The Debian suites to find the package in; the first that has it wins.
    suites: &'static [&'static str],
    /// What is run on it unless the user names kernels.
    pub tested: Tested,
}

/// What is run on a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tested {
    /// Every case.
    All,
    /// The ways to a dump, of which newer kernels have more.
    Ways,
    /// Nothing.
    No,
}

impl Kernel {
    /// The architectures whose programs it runs.
    pub fn userlands(&self) -> &'static [Arch] {
        match self.arch {
            Arch::I686 => &[Arch::I686],
            // All of them are built with IA32 emulation.
            Arch::X86_64 => &[Arch::X86_64, Arch::I686],
        }
    }
}

const I686: Arch = Arch::I686;
const X86_64: Arch = Arch::X86_64;

/// All kernels that we know of.
#[rustfmt::skip]
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "6.1-i686",      arch: I686,   package: "linux-image-686",         suites: &["bookworm"],                     tested: Tested::All },
    Kernel { name: "6.1-x86_64",    arch: X86_64, package: "linux-image-cloud-amd64", suites: &["bookworm"],                     tested: Tested::All },
    Kernel { name: "6.12-x86_64",   arch: X86_64, package: "linux-image-cloud-amd64", suites: &["bookworm-backports", "trixie"], tested: Tested::All },
    Kernel { name: "5.10-i686",     arch: I686,   package: "linux-image-686",         suites: &["bullseye"],                     tested: Tested::No },
    Kernel { name: "5.10-i686-pae", arch: I686,   package: "linux-image-686-pae",     suites: &["bullseye"],                     tested: Tested::No },
    Kernel { name: "5.10-x86_64",   arch: X86_64, package: "linux-image-cloud-amd64", suites: &["bullseye"],                     tested: Tested::No },
    Kernel { name: "6.1-i686-pae",  arch: I686,   package: "linux-image-686-pae",     suites: &["bookworm"],                     tested: Tested::No },
    Kernel { name: "newest-x86_64", arch: X86_64, package: "linux-image-cloud-amd64", suites: &["testing"],                      tested: Tested::Ways },
];

/// The kernel image to boot `kernel` with, in the cache. Fetched at the first call, later calls work offline.
///
/// # Errors
/// The package cannot be downloaded, or holds no kernel.
pub fn fetch(cache: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let dir = cache.join("kernels").join(kernel.name);
    if !dir.exists() {
        host::create_dir_atomically(&dir, |dir| extract(cache, kernel, dir))
            .with_context(|| format!("cannot fetch the kernel {}", kernel.name))?;
    }
    image_in(&dir).with_context(|| format!("no kernel image in {}", dir.display()))
}

/// Follows the dependencies from the standing package to the one with the image, and leaves the image in `dir`.
fn extract(cache: &Path, kernel: &Kernel, dir: &Path) -> Result<()> {
    let apt = Apt::new(cache)?;
    let mut packages = vec![kernel.package.to_owned()];
    while let Some(package) = packages.pop() {
        let deb = download_from_first(&apt, &package, kernel)?;
        extract_image(&deb, dir)?;
        let further = apt::dependencies(&deb)?;
        // Not kept: mostly modules, and a cached standing package would not name the newest build for long.
        fs::remove_file(&deb)?;
        if image_in(dir).is_some() {
            return Ok(());
        }
        packages.extend(further.into_iter().filter(|name| {
            // Newer packages keep the image apart, in "binary".
            name.starts_with("linux-image-") || name.starts_with("linux-binary-")
        }));
    }
    bail!("{} leads to no package with a kernel image", kernel.package);
}

fn download_from_first(apt: &Apt, package: &str, kernel: &Kernel) -> Result<PathBuf> {
    let versions = apt.versions(package, kernel.arch, kernel.suites)?;
    let version = versions.first().map(String::as_str);
    apt.download(package, version, kernel.arch, kernel.suites)
}

/// Unpacks the kernel image of `deb`, if it has one, to `dir`: `/boot/vmlinuz-*`, or `vmlinuz` beside the modules.
fn extract_image(deb: &Path, dir: &Path) -> Result<()> {
    let mut tar = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let archive = tar.stdout.take().context("dpkg-deb without output")?;
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        if let Some(name) = path.file_name()
            && name.to_string_lossy().starts_with("vmlinuz")
            && entry.header().entry_type().is_file()
        {
            entry.unpack(dir.join(name))?;
        }
    }
    drop(archive);
    ensure!(tar.wait()?.success(), "cannot unpack {}", deb.display());
    Ok(())
}

fn image_in(dir: &Path) -> Option<PathBuf> {
    fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
}
