//! `cargo xtask fuzz live`: live fuzzing of a real sandbox (`tests/live`), in runs of their own; what fails is made smaller, and kept.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use wait_timeout::ChildExt;

use crate::cache;
use crate::guests::{self, Programs};
use crate::host::Arch;

/// What to run.
#[derive(clap::Args)]
pub struct Options {
    /// The architecture of the sandbox: x86_64 or i686
    #[arg(long, default_value = "x86_64")]
    arch: Arch,
    /// Where to begin; a failure says which seed it was
    #[arg(long)]
    seed: Option<u64>,
    /// How many calls the guests' trusted threads are to make
    #[arg(long, default_value_t = 1_000_000)]
    calls: u64,
    /// The parts of it, as a failure names them (`live::Feature` in tests/live/mod.rs)
    #[arg(long, default_value_t = ALL)]
    features: u32,
}

/// Every part.
const ALL: u32 = 63;
/// Calls of one process: what it prints tells that it goes on.
const PIECE: u64 = 500_000;
/// How long a process may take for each thousand calls, at least a minute.
const LIMIT: Duration = Duration::from_millis(1500);
/// How often a failure is tried again with a part left out, and how many calls each.
const TRIES: (u32, u64) = (3, 100_000);

/// Runs it. Whether nothing was found.
///
/// # Errors
/// The guest programs cannot be built or started.
pub fn run(options: &Options) -> Result<bool> {
    let programs = guests::build(options.arch)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs() << 20);
    let first = options.seed.unwrap_or(now);
    let (start, mut made, mut piece) = (Instant::now(), 0, 0);
    while made < options.calls {
        let calls = PIECE.min(options.calls - made);
        // Far enough apart: each guest takes the next.
        let seed = first.wrapping_add(piece << 24);
        let (good, said) = one(&programs, seed, calls, options.features)?;
        print!("{said}");
        if !good {
            let folder = cache().join("live");
            println!("{}", minimise(&programs, &folder, &said)?);
            return Ok(false);
        }
        (made, piece) = (made + calls, piece + 1);
    }
    println!("{made} calls, {}, in {:.0} s, nothing found", options.arch, start.elapsed().as_secs_f32());
    Ok(true)
}

/// One process: whether it ended well, and what it said.
fn one(programs: &Programs, seed: u64, calls: u64, features: u32) -> Result<(bool, String)> {
    let mut output = tempfile::tempfile()?;
    let mut child = Command::new(&programs.guests)
        .args(["live", &seed.to_string(), &calls.to_string(), &features.to_string()])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()
        .with_context(|| format!("starting {}", programs.guests.display()))?;
    let limit = LIMIT * (calls / 1000) as u32 + Duration::from_secs(60);
    let status = child.wait_timeout(limit)?;
    if status.is_none() {
        child.kill()?; // its sandboxes end with it
        child.wait()?;
    }
    let mut said = String::new();
    std::io::Seek::rewind(&mut output)?;
    output.read_to_string(&mut said)?;
    if status.is_none() {
        said.push_str(&format!("seed {seed} features {features}: hung\n"));
    }
    Ok((status.is_some_and(|status| status.success()), said))
}

/// The number behind a word.
fn number(said: &str, word: &str) -> Option<u64> {
    let mut words = said.split_whitespace().skip_while(|other| *other != word);
    words.nth(1)?.trim_end_matches(':').parse().ok()
}

/// Leaves out one part after the other for as long as it still fails, and keeps what is left in `folder`. How to see it again.
fn minimise(programs: &Programs, folder: &Path, said: &str) -> Result<String> {
    let arch = programs.arch;
    let seed = number(said, "seed").context("a failure without a seed")?;
    let mut features = number(said, "features").map_or(ALL, |features| features as u32);
    let mut last = said.to_owned();
    for part in (0..ALL.count_ones()).map(|bit| 1 << bit).filter(|part| features & part != 0).collect::<Vec<_>>() {
        for _ in 0..TRIES.0 {
            let (good, said) = one(programs, seed, TRIES.1, features & !part)?;
            if !good && said.contains("seed ") {
                features &= !part;
                last = said;
                break;
            }
        }
    }
    fs::create_dir_all(folder)?;
    let file = folder.join(format!("{arch}-{seed}"));
    let again = format!("cargo xtask fuzz live --arch {arch} --seed {seed} --features {features}");
    fs::write(&file, format!("{again}\n\n{last}"))?;
    Ok(format!("found something; again, as far as the scheduler does the same: {again}\nkept in {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_failure_is_made_as_small_as_it_can_be_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let guests = dir.path().join("guests");
        // Fails with two parts on, whatever else is.
        let text = "#!/bin/sh\n[ $(($4 & 9)) = 9 ] || exit 0\necho \"seed $2 features $4: Call\"\nexit 1\n";
        fs::write(&guests, text).unwrap();
        fs::set_permissions(&guests, fs::Permissions::from_mode(0o755)).unwrap();
        let programs = Programs { arch: Arch::X86_64, demo: guests.clone(), guests };
        let (good, said) = one(&programs, 7, 100, ALL).unwrap();
        assert!(!good && said == "seed 7 features 63: Call\n", "{said}");
        let again = minimise(&programs, dir.path(), &said).unwrap();
        assert!(again.contains("--arch x86_64 --seed 7 --features 9\n"), "{again}");
        let kept = fs::read_to_string(dir.path().join("x86_64-7")).unwrap();
        assert!(kept.ends_with("seed 7 features 9: Call\n"), "{kept}");
        assert!(one(&programs, 7, 100, ALL & !8).unwrap().0);
    }
}
