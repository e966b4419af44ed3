//! `cargo xtask test --matrix`: every case on every kernel, on processors of several models and in several numbers, as a table
//! (`docs/kernels.md`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::attacks::{self, End};
use crate::guests::{self, Programs};
use crate::host::{self, Arch};
use crate::kernels::{self, KERNELS};
use crate::qemu::{self, Accel};
use crate::test::{self, Boot, boot_cases, case, cases};
use crate::{cache, root};

/// Where the cases are run.
struct Place {
    /// As in the table.
    name: String,
    /// As in [`KERNELS`].
    kernel: &'static str,
    programs: Arch,
    /// QEMU's name of the processor's model.
    model: &'static str,
    cpus: u32,
}

/// A model of 2008, with neither AVX nor protection keys.
const OLD: &str = "Nehalem";
/// All that QEMU can translate.
const MAX: &str = "max";

/// All places but this machine: each kernel with each architecture's programs on two processors, then one processor, then old ones.
fn places() -> Vec<Place> {
    let mut all = Vec::new();
    let mut add = |kernel: &'static str, programs: Arch, model: &'static str, cpus: u32| {
        let mut name = format!("{programs} on {kernel}");
        if model == OLD {
            name += ", old";
        }
        if cpus == 1 {
            name += ", one";
        }
        all.push(Place { name, kernel, programs, model, cpus });
    };
    let of = |arch: Arch| KERNELS.iter().filter(move |kernel| kernel.arch == arch);
    for kernel in of(Arch::X86_64).chain(of(Arch::I686)) {
        kernel.userlands().iter().for_each(|programs| add(kernel.name, *programs, MAX, 2));
    }
    for (kernel, programs) in [("6.12-x86_64", Arch::X86_64), ("6.1-i686-pae", Arch::I686)] {
        add(kernel, programs, MAX, 1);
        add(kernel, programs, OLD, 2);
    }
    all
}

/// What was seen in a place.
#[derive(serde::Serialize, serde::Deserialize)]
struct Seen {
    name: String,
    release: String,
    features: Vec<String>,
    ends: BTreeMap<String, End>,
    /// The kernel, or QEMU, did not come to the end.
    broken: Option<String>,
}

fn here(name: &str, programs: &Programs, filter: &str) -> Result<Seen> {
    let mut ends = BTreeMap::new();
    for (name, expected) in cases(programs, filter)? {
        let (how, said) = case(programs, &name, false)?;
        ends.insert(name, attacks::end(&expected, &how, &said));
    }
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |feature: &&&str| flags.split_whitespace().any(|flag| flag == **feature);
    let features = FEATURES.iter().filter(has).map(|&feature| feature.to_owned()).collect();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    // What somebody called this build is no use to others.
    let release = release.split('-').next().unwrap_or_default().to_owned();
    Ok(Seen { name: name.to_owned(), release, features, ends, broken: None })
}

/// What of a processor makes a difference, by the kernel's names: as `tests/guests/src/init.rs` has them.
const FEATURES: [&str; 8] = ["lm", "nx", "rdtscp", "fsgsbase", "xsave", "avx", "avx512f", "pku"];

fn in_qemu(accel: Accel, place: &Place, programs: &Programs, filter: &str) -> Result<Seen> {
    let kernel = KERNELS.iter().find(|kernel| kernel.name == place.kernel).context(place.kernel)?;
    let image = kernels::fetch(&cache(), kernel)?;
    let mut boot = Boot::new(kernel.name, image, kernel.arch, &[place.programs], filter);
    (boot.cpu, boot.cpus) = (test::cpu(place.model, kernel.arch), place.cpus);
    let ran = boot_cases(accel, &boot, programs, None)?;
    let missing = ("nothing".to_owned(), "the kernel ended before, or during it".to_owned());
    let read = |(name, expected): (&String, &String)| {
        let (how, said) = ran.ends.get(name).unwrap_or(&missing);
        (name.clone(), attacks::end(expected, how, said))
    };
    let ends = ran.plan.iter().map(read).collect();
    let broken = (ran.outcome.end != qemu::End::Off).then(|| ran.outcome.to_string());
    Ok(Seen { name: place.name.clone(), release: ran.machine.0, features: ran.machine.1, ends, broken })
}

/// Runs the cases in whose name `filter` is in the places in whose name `only` is. Without a filter, what is seen is kept, and the
/// document is made of what is kept once that is of all places. Whether all ended as they must.
///
/// # Errors
/// Something cannot be built, fetched or started.
pub fn run(filter: &str, only: &str) -> Result<bool> {
    let built = [Arch::X86_64, Arch::I686].map(guests::build).into_iter().collect::<Result<Vec<_>>>()?;
    let (mut good, mut accel) = (true, None);
    let native: Vec<(String, &Programs)> = built
        .iter()
        .filter(|programs| programs.runs_here())
        .map(|programs| (format!("{}, natively", programs.arch), programs))
        .collect();
    for (name, programs) in native.iter().filter(|(name, _)| name.contains(only)) {
        good &= told(&here(name, programs, filter)?, filter)?;
    }
    let places = places();
    for place in places.iter().filter(|place| place.name.contains(only)) {
        let programs = built.iter().find(|programs| programs.arch == place.programs).context("programs")?;
        let accel = *accel.get_or_insert_with(|| accelerator(place.kernel));
        good &= told(&in_qemu(accel, place, programs, filter)?, filter)?;
    }
    let names = native.iter().map(|(name, _)| name).chain(places.iter().map(|place| &place.name));
    let all: Option<Vec<Seen>> = names.map(|name| serde_json::from_slice(&fs::read(kept(name)).ok()?).ok()).collect();
    match all {
        Some(all) if filter.is_empty() => fs::write(root().join("docs/kernels.md"), render(&all)?)?,
        _ => {}
    }
    Ok(good)
}

/// Where what was seen in a place is kept.
fn kept(name: &str) -> std::path::PathBuf {
    cache().join("matrix").join(format!("{name}.json"))
}

/// A /dev/kvm that is there may hang: it is used only after it has booted something.
fn accelerator(kernel: &str) -> Accel {
    let works = KERNELS
        .iter()
        .find(|known| known.name == kernel)
        .is_some_and(|kernel| kernels::fetch(&cache(), kernel).is_ok_and(|image| qemu::kvm_works(&image, kernel.arch)));
    if works { Accel::Kvm } else { Accel::Tcg }
}

impl Seen {
    fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.ends.iter().filter_map(|(name, end)| match end {
            End::Failed(why) => Some((name.as_str(), why.as_str())),
            End::Skipped(why) if !test::may_skip(name) => Some((name, why)),
            _ => None,
        })
    }
}

/// Says what became of a place, and keeps it if all cases were run. Whether all ended as they must.
fn told(seen: &Seen, filter: &str) -> Result<bool> {
    for (name, why) in seen.failures() {
        println!("FAILED {name} ({}): {why}", seen.name);
    }
    if let Some(why) = &seen.broken {
        println!("FAILED {}: {why}", seen.name);
    }
    let passed = seen.ends.values().filter(|end| matches!(end, End::AsAsserted)).count();
    println!("{passed} of {} cases passed: {}, Linux {}", seen.ends.len(), seen.name, seen.release);
    if filter.is_empty() {
        let path = kept(&seen.name);
        fs::create_dir_all(path.with_file_name(""))?;
        fs::write(path, serde_json::to_vec(seen)?)?;
    }
    Ok(seen.broken.is_none() && seen.failures().next().is_none())
}

const HEAD: &str = "\
# Kernels

Made by `cargo xtask test --matrix`, from the runs that it tells of. Each case is a process that must end as it says
([tests/guests/](../tests/guests/src/cases/mod.rs)). In QEMU, without KVM, the kernels are Debian's, on two processors of the model
`max` if nothing else is said: \"one\" is one processor, and \"old\" are two Nehalems. What QEMU does not translate (AVX-512)
is in the places that are native, if this machine has it.

";

/// The document.
fn render(all: &[Seen]) -> Result<String> {
    let qemu = host::run(Command::new("qemu-system-x86_64").arg("--version"))?;
    let mut text = HEAD.to_owned();
    writeln!(text, "{}.\n", qemu.lines().next().unwrap_or_default())?;
    writeln!(text, "| place | Linux | {} | passed | not there | failed |", FEATURES.join(" | "))?;
    writeln!(text, "|---|---|{}---:|---:|---:|", "---|".repeat(FEATURES.len()))?;
    for (i, seen) in all.iter().enumerate() {
        let has = |feature: &&str| if seen.features.iter().any(|has| has == feature) { "yes" } else { "–" };
        let features: Vec<&str> = FEATURES.iter().map(has).collect();
        let (passed, failed) = (seen.passed(""), seen.failures().count());
        let rest = seen.ends.len() - passed - failed;
        let (name, release) = (&seen.name, &seen.release);
        writeln!(text, "| {i}: {name} | {release} | {} | {passed} | {rest} | {failed} |", features.join(" | "))?;
    }
    let subject = |name: &str| name.split('_').next().unwrap_or_default().to_owned();
    let subjects: BTreeSet<String> = all.iter().flat_map(|seen| seen.ends.keys()).map(|name| subject(name)).collect();
    text += "\nCases that passed, by what they are about and in which place; behind a `/`, those that there are, if some did not. A dot: there are none.\n\n";
    let places: Vec<String> = (0..all.len()).map(|i| i.to_string()).collect();
    writeln!(text, "| about | {} |\n|---|{}", places.join(" | "), "---:|".repeat(all.len()))?;
    for subject in &subjects {
        let of = |seen: &Seen| {
            let begin = format!("{subject}_");
            let count = seen.ends.keys().filter(|name| *name == subject || name.starts_with(&begin)).count();
            match seen.passed(subject) {
                _ if count == 0 => "·".to_owned(),
                passed if passed == count => format!("{count}"),
                passed => format!("{passed}/{count}"),
            }
        };
        writeln!(text, "| {subject} | {} |", all.iter().map(of).collect::<Vec<_>>().join(" | "))?;
    }
    for (title, failed) in [("What failed", true), ("What was not there", false)] {
        let mut reasons: BTreeMap<String, BTreeMap<&str, Vec<usize>>> = BTreeMap::new();
        for (i, seen) in all.iter().enumerate() {
            for (name, end) in &seen.ends {
                let (End::Failed(why) | End::Skipped(why)) = end else { continue };
                if failed == seen.failures().any(|(failure, _)| failure == name) {
                    let why = why.lines().next().unwrap_or_default().replace('|', "/");
                    reasons.entry(why).or_default().entry(name).or_default().push(i);
                }
            }
        }
        if reasons.is_empty() {
            continue;
        }
        writeln!(text, "\n## {title}\n")?;
        for (why, cases) in reasons {
            let cases = cases.iter().map(|(name, places)| {
                let places: Vec<String> = places.iter().map(usize::to_string).collect();
                format!("`{name}` ({})", places.join(", "))
            });
            writeln!(text, "- {why}: {}", cases.collect::<Vec<_>>().join(", "))?;
        }
    }
    Ok(text)
}

impl Seen {
    /// How many cases about this passed.
    fn passed(&self, subject: &str) -> usize {
        let begin = format!("{subject}_");
        let about = |name: &str| subject.is_empty() || name == subject || name.starts_with(&begin);
        self.ends.iter().filter(|(name, end)| about(name) && matches!(end, End::AsAsserted)).count()
    }
}
