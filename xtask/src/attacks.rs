//! `cargo xtask attacks`: every known attack with its defence on and off, here and in QEMU, as a table.
//!
//! The list of attacks is `tests/attacks/mod.rs`, which the guest programs print; each is a case of theirs that ends as asserted
//! or fails, so that the table says what was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::guests::{self, Programs};
use crate::host::{self, Arch};
use crate::kernels::{self, KERNELS, Tested};
use crate::qemu::{self, Accel};
use crate::test::{Boot, Ran, SKIPPED, boot_cases, case, cases};
use crate::{cache, root};

/// What to run.
#[derive(clap::Args)]
pub struct Options {
    /// Does not boot kernels in QEMU
    #[arg(long)]
    no_qemu: bool,
    /// Writes the table to docs/attacks.md
    #[arg(long, conflicts_with = "no_qemu")]
    write: bool,
}

/// The filter by which the guest programs choose the cases of the table.
const FILTER: &str = "@attacks";

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attack {
    kind: String,
    tries: String,
    defence: String,
    on: String,
    off: Off,
}

/// The run without the defence.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Off {
    /// The attack succeeds.
    Wins(String),
    /// It fails even so: the case, and why.
    Fails(String, String),
    /// There is none, and why.
    None(String),
}

/// What became of the cases in one place.
struct Place {
    name: String,
    /// By the case's name: as it should have ended, or `Err` with what it said; skipped with a reason.
    ends: BTreeMap<String, End>,
}

/// How a case ended.
#[derive(serde::Serialize, serde::Deserialize)]
pub enum End {
    /// As it says that it must.
    AsAsserted,
    /// It found that something is not there, and said what.
    Skipped(String),
    /// Otherwise, and what it said.
    Failed(String),
}

fn attacks(programs: &Programs) -> Result<Vec<Attack>> {
    let text = host::run(Command::new(&programs.guests).arg("attacks"))?;
    let parse = |line: &str| {
        let [kind, tries, defence, on, how, case, why] = line.split('\t').collect::<Vec<_>>()[..] else {
            bail!("not a row: {line}")
        };
        let off = match how {
            "wins" => Off::Wins(case.to_owned()),
            "fails" => Off::Fails(case.to_owned(), why.to_owned()),
            _ => Off::None(why.to_owned()),
        };
        let [kind, tries, defence, on] = [kind, tries, defence, on].map(str::to_owned);
        Ok(Attack { kind, tries, defence, on, off })
    };
    text.lines().map(parse).collect()
}

impl Attack {
    fn cases(&self) -> impl Iterator<Item = &str> {
        let off = match &self.off {
            Off::Wins(case) | Off::Fails(case, _) => Some(case.as_str()),
            Off::None(_) => None,
        };
        [self.on.as_str()].into_iter().chain(off)
    }
}

/// Reads the end of a case.
pub fn end(expected: &str, end: &str, said: &str) -> End {
    match end {
        SKIPPED => {
            let why = said.lines().find_map(|line| line.strip_prefix("skip: ")).unwrap_or("it does not say why");
            End::Skipped(why.to_owned())
        }
        _ if end == expected => End::AsAsserted,
        _ => End::Failed(format!("ended with {end}; it said: {}", said.trim())),
    }
}

fn natively(programs: &Programs, attacks: &[Attack]) -> Result<Place> {
    let expected = cases(programs, "")?;
    let mut ends = BTreeMap::new();
    for name in attacks.iter().flat_map(Attack::cases).collect::<BTreeSet<_>>() {
        let (how, said) = case(programs, name, false)?;
        let expected = expected.get(name).with_context(|| format!("no case {name}"))?;
        ends.insert(name.to_owned(), end(expected, &how, &said));
    }
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel.split('.').take(2).collect::<Vec<_>>().join(".");
    Ok(Place { name: format!("{}, this machine's {kernel}", programs.arch), ends })
}

fn in_qemu(built: &[Programs], places: &mut Vec<Place>) -> Result<()> {
    let mut boots = Vec::new();
    for kernel in KERNELS.iter().filter(|kernel| kernel.tested == Tested::All) {
        let image = kernels::fetch(&cache(), kernel)?;
        boots.push(Boot::new(kernel.name, image, kernel.arch, kernel.userlands(), FILTER));
    }
    let kvm = boots.first().is_some_and(|boot| qemu::kvm_works(&boot.image, boot.arch));
    let accel = if kvm { Accel::Kvm } else { Accel::Tcg };
    for boot in &boots {
        for programs in built.iter().filter(|programs| boot.userlands.contains(&programs.arch)) {
            let Ran { place, plan, ends, .. } = boot_cases(accel, boot, programs, None)?;
            println!("ran {} of {} cases: {place}", ends.len(), plan.len());
            let missing = ("nothing".to_owned(), "it did not run".to_owned());
            let read = |(name, expected): (&String, &String)| {
                let (how, said) = ends.get(name).unwrap_or(&missing);
                (name.clone(), end(expected, how, said))
            };
            let kernel = boot.name.split('-').next().unwrap_or_default();
            let bits = if boot.arch == programs.arch { "" } else { ", 64 bits" };
            places.push(Place {
                name: format!("{}, {kernel}{bits}", programs.arch),
                ends: plan.iter().map(read).collect(),
            });
        }
    }
    Ok(())
}

/// Runs them all and prints the table. Whether each ended as asserted.
///
/// # Errors
/// Something cannot be built, fetched or started.
pub fn run(options: &Options) -> Result<bool> {
    let built = [Arch::X86_64, Arch::I686].map(guests::build).into_iter().collect::<Result<Vec<_>>>()?;
    let mut table: Vec<Attack> = Vec::new();
    let mut places = Vec::new();
    for programs in &built {
        let these = attacks(programs)?;
        if programs.runs_here() {
            places.push(natively(programs, &these)?);
        }
        table.extend(these.into_iter().filter(|attack| !table.contains(attack)).collect::<Vec<_>>());
    }
    if !options.no_qemu {
        in_qemu(&built, &mut places)?;
    }
    let mut failures = 0;
    for place in &places {
        for (name, end) in &place.ends {
            if let End::Failed(why) = end {
                println!("FAILED {name} ({}): {why}", place.name);
                failures += 1;
            }
        }
    }
    let text = render(&table, &places);
    print!("{text}");
    if options.write && failures == 0 {
        fs::write(root().join("docs/attacks.md"), &text)?;
    }
    println!("{} attacks, {} places, {failures} failed", table.len(), places.len());
    Ok(failures == 0)
}

const HEAD: &str = "\
# Attacks

Made by `cargo xtask attacks --write`, from runs: the list of attacks is [tests/attacks/mod.rs](../tests/attacks/mod.rs), and each
is a program that ends as asserted, once with the defence in force and once with it taken out
([src/experiment.rs](../src/experiment.rs)). Two words for each place: what becomes of the attack with the defence, and without.

- **fails / wins**: what the defence is worth.
- **fails / fails**: it does not succeed without the defence either; below the table is why.
- **fails / –**: there is nothing to take out; below the table is why.
- a number in brackets: the place does not have what the attack needs; below the table is what it said.

Not in the table: a file system (FUSE) that does not answer, because it takes a server. A T that opens a file there waits; names
and attributes the broker changes itself, and such a file system holds it up ([SECURITY.md](../SECURITY.md)).
";

/// The table, with its notes.
fn render(table: &[Attack], places: &[Place]) -> String {
    let mut notes: Vec<String> = Vec::new();
    let mut note = |why: &str| {
        let at = notes.iter().position(|other| other == why).unwrap_or_else(|| {
            notes.push(why.to_owned());
            notes.len() - 1
        });
        at + 1
    };
    let mut text = HEAD.to_owned();
    let mut kind = "";
    for attack in table {
        if kind != attack.kind {
            kind = &attack.kind;
            let names: Vec<_> = places.iter().map(|place| place.name.as_str()).collect();
            let _ = writeln!(text, "\n## {}{}\n", kind[..1].to_uppercase(), &kind[1..]);
            let _ = writeln!(text, "| it tries | in its way | {} |", names.join(" | "));
            let _ = writeln!(text, "|---|---|{}", "---|".repeat(places.len()));
        }
        let _ = write!(text, "| {} | {} |", attack.tries, attack.defence);
        let why = match &attack.off {
            Off::Wins(_) => String::new(),
            Off::Fails(_, why) | Off::None(why) => format!(" ({})", note(why)),
        };
        for place in places {
            let mut word = |case: &str, as_asserted: &str| match place.ends.get(case) {
                None => "·".to_owned(),
                Some(End::AsAsserted) => as_asserted.to_owned(),
                Some(End::Skipped(why)) => format!("({})", note(why)),
                Some(End::Failed(_)) => "**unexpected**".to_owned(),
            };
            let on = word(&attack.on, "fails");
            let off = match &attack.off {
                Off::Wins(case) => word(case, "wins"),
                Off::Fails(case, _) => word(case, "fails"),
                Off::None(_) => "–".to_owned(),
            };
            let cell = if on == "·" { "·".to_owned() } else { format!("{on} / {off}{why}") };
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    text.push_str("\n## Notes\n\n");
    for (i, why) in notes.iter().enumerate() {
        let _ = writeln!(text, "{}. {why}", i + 1);
    }
    text.push_str("\n·: not for this architecture.\n");
    text
}
