//! Debian packages without touching the system: a private apt state for each suite and architecture.
//!
//! A state of its own per suite and architecture matters: apt drops a suite's indexes all together when one of them
//! is out of step with its release file, which mirrors are for hours at a time.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use deb822_fast::{Deb822, Paragraph};

use crate::host::{self, Arch};

/// Names the Debian mirror where apt's configuration has none (other distributions).
const MIRROR_VARIABLE: &str = "ASCETIC_DEBIAN_MIRROR";

/// Where the `debian-archive-keyring` package puts the keys of all suites.
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg"];

/// Downloads Debian packages into a cache.
pub struct Apt {
    cache: PathBuf,
    mirror: Mirror,
    /// States whose indexes were fetched by this process: once is enough.
    updated: RefCell<HashSet<PathBuf>>,
}

impl Apt {
    /// An apt that keeps its state in `cache/apt` and what it downloads in `cache/debs`.
    ///
    /// # Errors
    /// No Debian mirror or no keyring is known to this system.
    pub fn new(cache: &Path) -> Result<Self> {
        if host::find("apt-get").is_none() || host::find("dpkg-deb").is_none() {
            bail!("apt-get and dpkg-deb are needed to fetch Debian packages");
        }
        Ok(Self { cache: cache.to_owned(), mirror: Mirror::find()?, updated: RefCell::default() })
    }

    /// The versions of `package` that `suites` have, in the order of the suites and newest first in each.
    ///
    /// # Errors
    /// None of the suites has the package; the error says what fetching their indexes said.
    pub fn versions(&self, package: &str, arch: Arch, suites: &[&str]) -> Result<Vec<String>> {
        let mut versions = Vec::new();
        let mut complaints = String::new();
        for suite in suites {
            let state = self.state(suite, arch)?;
            let mut found = state.versions(package);
            if found.is_empty()
                && let Err(e) = self.update(&state)
            {
                complaints += &format!("\n{e:#}");
            }
            if found.is_empty() {
                found = state.versions(package);
            }
            versions.extend(found);
        }
        if versions.is_empty() {
            bail!("no package {package}:{} in {}{complaints}", arch.debian(), suites.join(", "));
        }
        Ok(versions)
    }

    /// The `.deb` of `package` in the cache, downloaded from the first of `suites` that has it if need be.
    ///
    /// Without a `version`, one that is in the cache already will do; else it is the suite's newest.
    ///
    /// # Errors
    /// None of the suites has that package, or the download failed from all that have it.
    pub fn download(&self, package: &str, version: Option<&str>, arch: Arch, suites: &[&str]) -> Result<PathBuf> {
        let debs = self.cache.join("debs");
        if let Some(deb) = find_deb(&debs, package, version, arch) {
            return Ok(deb);
        }
        let mut errors = String::new();
        for suite in suites {
            let state = self.state(suite, arch)?;
            let first = state.download(package, version, &debs);
            // An index that is missing or behind the archive names files that are gone: fetch it and try again.
            let outcome = first.or_else(|_| {
                let update = self.update(&state);
                state.download(package, version, &debs).or_else(|e| update.and(Err(e)))
            });
            match outcome {
                Ok(()) => break,
                Err(e) => errors += &format!("\n{suite}: {e:#}"),
            }
        }
        find_deb(&debs, package, version, arch)
            .with_context(|| format!("cannot download the Debian package {package}:{}{errors}", arch.debian()))
    }

    /// Unpacks `packages` of x86_64 below `dir`, and all that they depend on but `without`.
    ///
    /// # Errors
    /// As [`Self::download`] and [`unpack`].
    pub fn unpack_all(&self, packages: Vec<String>, without: &[&str], suites: &[&str], dir: &Path) -> Result<()> {
        let mut seen: HashSet<String> = without.iter().map(|&name| name.to_owned()).collect();
        let mut left = packages;
        while let Some(package) = left.pop() {
            if seen.insert(package.clone()) {
                let deb = self.download(&package, None, Arch::X86_64, suites)?;
                unpack(&deb, dir)?;
                left.extend(dependencies(&deb)?);
            }
        }
        Ok(())
    }

    /// The state for `suite` and `arch`, its configuration written anew.
    fn state(&self, suite: &str, arch: Arch) -> Result<State> {
        let state = State { dir: self.cache.join("apt").join(format!("{suite}-{}", arch.debian())) };
        state
            .write(&self.mirror, suite, arch)
            .with_context(|| format!("cannot write apt's state {}", state.dir.display()))?;
        Ok(state)
    }

    /// Fetches the indexes of `state`, once in the life of this process.
    fn update(&self, state: &State) -> Result<()> {
        if !self.updated.borrow_mut().insert(state.dir.clone()) {
            return Ok(());
        }
        host::run(state.command("apt-get").arg("update")).map(drop)
    }
}

/// A directory with everything that apt reads and writes.
struct State {
    dir: PathBuf,
}

impl State {
    fn write(&self, mirror: &Mirror, suite: &str, arch: Arch) -> Result<()> {
        let dir = fs::canonicalize({
            fs::create_dir_all(self.dir.join("lists/partial"))?;
            fs::create_dir_all(self.dir.join("cache/archives/partial"))?;
            &self.dir
        })?;
        let (dir, arch) = (dir.display(), arch.debian());
        fs::write(self.dir.join("debian.sources"), mirror.source(suite).to_string())?;
        // No package counts as installed.
        fs::write(self.dir.join("status"), "")?;
        fs::write(
            self.dir.join("apt.conf"),
            format!(
                r#"#clear APT::Architectures;
#clear APT::Update;
#clear Acquire::IndexTargets::deb::DEP-11;
APT::Architecture "{arch}";
APT::Architectures {{ "{arch}"; }};
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Dir::Etc::SourceList "{dir}/debian.sources";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State::Lists "{dir}/lists";
Dir::State::Status "{dir}/status";
Dir::Cache "{dir}/cache";
"#
            ),
        )?;
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // `-c` and not APT_CONFIG: it is read after the system's own files and so can clear their lists.
        command.env("LC_ALL", "C").arg("-c").arg(self.dir.join("apt.conf"));
        command
    }

    /// The versions of `package` in the indexes as they are, newest first.
    fn versions(&self, package: &str) -> Vec<String> {
        let Ok(text) = host::run(self.command("apt-cache").args(["show", package])) else {
            return Vec::new();
        };
        let Ok(paragraphs) = text.parse::<Deb822>() else {
            return Vec::new();
        };
        paragraphs
            .iter()
            .filter(|p| p.get("Package") == Some(package))
            .filter_map(|p| p.get("Version").map(str::to_owned))
            .collect()
    }

    /// Downloads `package` into `debs`; a `.deb` there is always complete.
    fn download(&self, package: &str, version: Option<&str>, debs: &Path) -> Result<()> {
        fs::create_dir_all(debs)?;
        let partial = tempfile::tempdir_in(debs)?;
        let name = version.map_or(package.to_owned(), |v| format!("{package}={v}"));
        host::run(self.command("apt-get").args(["download", &name]).current_dir(partial.path()))?;
        for file in fs::read_dir(partial.path())? {
            let file = file?;
            fs::rename(file.path(), debs.join(file.file_name()))?;
        }
        Ok(())
    }
}

/// A `.deb` in `debs` by its name, `package_version_arch.deb`, where a version's colon is written `%3a`.
fn find_deb(debs: &Path, package: &str, version: Option<&str>, arch: Arch) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(debs)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let Some(stem) = path.file_name().and_then(|n| n.to_str()?.strip_suffix(".deb")) else {
                return false;
            };
            let [p, v, a] = stem.split('_').collect::<Vec<_>>()[..] else {
                return false;
            };
            p == package
                && version.is_none_or(|version| version == v.replace("%3a", ":"))
                && [arch.debian(), "all"].contains(&a)
        })
        .collect();
    found.sort_by_key(|path| fs::metadata(path).and_then(|m| m.modified()).ok());
    found.pop()
}

/// Where Debian's packages come from and whose signature they must bear.
struct Mirror {
    main: String,
    security: String,
    signed_by: String,
}

impl Mirror {
    /// Reads apt's own configuration, so that a mirror near by is used; [`MIRROR_VARIABLE`] goes before it.
    fn find() -> Result<Self> {
        let sources = system_sources();
        let named = |name: &str| sources.iter().find(|s| stem(&s.uri) == name);
        let (main, key) = match std::env::var(MIRROR_VARIABLE) {
            Ok(uri) => (uri, None),
            Err(_) => {
                let source = named("debian").with_context(|| {
                    format!(
                        "apt's configuration names no Debian mirror. Set {MIRROR_VARIABLE} to the URI of one, \
                         ending in /debian"
                    )
                })?;
                (source.uri.clone(), source.signed_by.clone())
            }
        };
        let security = match named("debian-security") {
            Some(source) => source.uri.clone(),
            None => sibling(&main),
        };
        let signed_by = KEYRINGS
            .iter()
            .find(|path| Path::new(path).exists())
            .map(|path| (*path).to_owned())
            .or(key.filter(|key| !key.starts_with('/') || Path::new(key).exists()))
            .context("the keys of Debian's archive are missing: apt-get install debian-archive-keyring")?;
        Ok(Self { main, security, signed_by })
    }

    /// The source for one suite, as apt reads it.
    fn source(&self, suite: &str) -> Paragraph {
        let uri = if suite.ends_with("-security") { &self.security } else { &self.main };
        [("Types", "deb"), ("URIs", uri), ("Suites", suite), ("Components", "main"), ("Signed-By", &self.signed_by)]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }
}

/// The last part of an archive's URI, without the `.list` of a file of mirrors.
fn stem(uri: &str) -> &str {
    let uri = uri.trim_end_matches('/');
    let last = uri.rsplit('/').next().unwrap_or(uri);
    last.strip_suffix(".list").unwrap_or(last)
}

/// The security archive beside the main archive `uri`.
fn sibling(uri: &str) -> String {
    match uri.rfind("debian") {
        Some(at) => format!("{}debian-security{}", &uri[..at], &uri[at + 6..]),
        None => format!("{}-security", uri.trim_end_matches('/')),
    }
}

/// One archive in the system's configuration.
struct Source {
    uri: String,
    signed_by: Option<String>,
}

/// The archives that the system's apt is set up with, in both formats that it reads.
fn system_sources() -> Vec<Source> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(
        fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())),
    );
    files.sort();
    files
        .iter()
        .filter_map(|path| Some((path.extension()?.to_str()?, fs::read_to_string(path).ok()?)))
        .flat_map(|(extension, text)| match extension {
            "sources" => deb822_sources(&text),
            "list" => text.lines().filter_map(one_line_source).collect(),
            _ => Vec::new(),
        })
        .collect()
}

fn deb822_sources(text: &str) -> Vec<Source> {
    let Ok(paragraphs) = text.parse::<Deb822>() else {
        return Vec::new();
    };
    paragraphs
        .iter()
        .filter(|p| p.get("Enabled") != Some("no"))
        .flat_map(|p| {
            let uris = p.get("URIs").unwrap_or_default().split_whitespace();
            uris.map(|uri| Source { uri: uri.to_owned(), signed_by: p.get("Signed-By").map(str::to_owned) })
        })
        .collect()
}

/// Reads `deb [option=value …] uri suite component…`.
fn one_line_source(line: &str) -> Option<Source> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    Some(Source { uri: rest.split_whitespace().next()?.to_owned(), signed_by: signed_by.map(str::to_owned) })
}

/// Unpacks the files of `deb` below `dir`; runs nothing from it.
///
/// # Errors
/// `dpkg-deb` fails.
pub fn unpack(deb: &Path, dir: &Path) -> Result<()> {
    host::run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(dir)).map(drop)
}

/// The packages that `deb` depends on: the first alternative of each, without versions.
///
/// # Errors
/// `dpkg-deb` fails.
pub fn dependencies(deb: &Path) -> Result<Vec<String>> {
    let field = host::run(Command::new("dpkg-deb").arg("-f").arg(deb).arg("Depends"))?;
    Ok(field
        .split(',')
        .filter_map(|one| one.split_whitespace().next())
        .map(|name| name.split(':').next().unwrap_or(name).to_owned())
        .collect())
}

/// The host program `binary`; if it is missing, `package` is installed, by root or through `sudo -n`.
///
/// # Errors
/// It is missing and cannot be installed; the error names the command that would.
pub fn ensure_installed(binary: &str, package: &str) -> Result<PathBuf> {
    if let Some(path) = host::find(binary) {
        return Ok(path);
    }
    let install = ["install", "-y", "--no-install-recommends", package];
    let advice = || format!("{binary} is missing. Install it, on Debian or Ubuntu: sudo apt-get install {package}");
    if host::find("apt-get").is_none() {
        bail!(advice());
    }
    // The indexes need not all be in step, as long as the package can be had.
    let update = host::run(&mut system_apt(&["update"]));
    if let Err(install) = host::run(&mut system_apt(&install)) {
        let update = update.err().map_or(String::new(), |e| format!("\n{e:#}"));
        return Err(install.context(advice() + &update));
    }
    host::find(binary).with_context(advice)
}

fn system_apt(args: &[&str]) -> Command {
    let mut command = if host::is_root() {
        Command::new("env")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "env"]);
        sudo
    };
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(args);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_source_formats() {
        let modern = "Types: deb\n# a remark\nURIs: http://one.example/debian\nSuites: bookworm bookworm-updates\n\
                      Signed-By: /keys.gpg\n\nTypes: deb\nEnabled: no\nURIs: http://two.example/debian\n";
        let found = deb822_sources(modern);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].uri, "http://one.example/debian");
        assert_eq!(found[0].signed_by.as_deref(), Some("/keys.gpg"));

        let old = one_line_source("deb [ arch=amd64 signed-by=/keys.gpg ] http://one.example/debian bookworm main");
        let old = old.expect("a source");
        assert_eq!(old.uri, "http://one.example/debian");
        assert_eq!(old.signed_by.as_deref(), Some("/keys.gpg"));
        assert!(one_line_source("# deb http://one.example/debian bookworm main").is_none());
        assert!(one_line_source("deb-src http://one.example/debian bookworm main").is_none());
    }

    #[test]
    fn finds_the_security_archive_beside_the_main_one() {
        assert_eq!(stem("http://one.example/debian/"), "debian");
        assert_eq!(stem("mirror+file:/etc/apt/mirrors/debian.list"), "debian");
        assert_eq!(sibling("http://one.example/debian"), "http://one.example/debian-security");
        assert_eq!(sibling("http://debian.example/debian/"), "http://debian.example/debian-security/");
    }

    #[test]
    fn finds_a_deb_by_its_exact_name_and_version() -> Result<()> {
        let debs = tempfile::tempdir()?;
        fs::write(debs.path().join("libx_1%3a2.0_amd64.deb"), "")?;
        fs::write(debs.path().join("libx-dev_1%3a2.0_all.deb"), "")?;
        let find = |package, version, arch| find_deb(debs.path(), package, version, arch);
        assert!(find("libx", None, Arch::X86_64).is_some());
        assert!(find("libx", Some("1:2.0"), Arch::X86_64).is_some());
        assert!(find("libx", Some("2.0"), Arch::X86_64).is_none());
        assert!(find("libx", None, Arch::I686).is_none());
        assert!(find("libx-dev", None, Arch::I686).is_some());
        Ok(())
    }
}
