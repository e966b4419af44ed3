//! `cargo xtask test`: one line that runs everything, here and in QEMU.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use wait_timeout::ChildExt;

use crate::guests::{self, Programs};
use crate::host::{self, Arch};
use crate::initramfs::{self, Entry};
use crate::kernels::{self, KERNELS, Tested};
use crate::qemu::{self, Accel, End, Machine};
use crate::{audit, cache, capi, demo, fuzz, inject, matrix, readers, root, soak, tidy};

/// How long a case may take here.
const CASE_LIMIT: Duration = Duration::from_secs(90);
/// How long a case may take in a long run.
const LONG_LIMIT: Duration = Duration::from_secs(1800);
/// How long a kernel may take for all cases, under emulation.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// A case that takes longer in QEMU, in milliseconds, is named.
const SLOW: u32 = 10_000;
/// Exit status of a case that says why it was skipped.
pub const SKIPPED: &str = "exit:77";

/// Cases that may find that something is not there: NX, exceptions that QEMU does not raise, mseal (6.10), io_uring and
/// userfaultfd (build options), syscall user dispatch (5.11), a T that outlives its guest's core (5.16), a second CPU,
/// pseudo-terminals, real-time policies, a machine of one's own to change.
const MAY_SKIP: [&str; 40] = [
    "attack_frame_mode",
    "attack_frame_stack",
    "attack_io_uring",
    "attack_map_files",
    "attack_modify_ldt",
    "attack_proc_mem_off",
    "attack_rseq",
    "attack_sysv",
    "attack_userfaultfd",
    "attack_vsyscall",
    "attack_x32",
    "audit_finds_io_uring",
    "audit_finds_userfaultfd",
    "audit_needs_proc",
    "audit_off_shows_it",
    "births_end_leaves_nobody_off_shows_it",
    "calls_apart",
    "debug_gdb_of_a_brokered_call",
    "dump_core_in_chroot",
    "dump_core_of_another_uid",
    "dump_core_of_trusted",
    "dump_core_to_pipe",
    "dump_denied_call",
    "dump_memory_by_t",
    "dump_ways",
    "fault_execute_data",
    "fault_floating_point_sse",
    "fault_misaligned",
    "leaving_",
    "mappings_are_sealed",
    "mechanism_",
    "program_foreign_numbers",
    "race_",
    "supervisor_real_time",
    "supervisor_terminal",
    "threads_bad_storage",
    "threads_registers",
    "threads_spread",
    "threads_storage",
    "twin_of_trusted_with",
];

/// Whether a case may find that something is not there.
pub fn may_skip(name: &str) -> bool {
    MAY_SKIP.iter().any(|begin| name.starts_with(begin))
}

/// What to run.
#[derive(clap::Args)]
pub struct Options {
    /// Does not boot kernels in QEMU
    #[arg(long)]
    no_qemu: bool,
    /// Only one architecture of guest programs: x86_64 or i686
    #[arg(long)]
    arch: Option<Arch>,
    /// Boots this kernel image instead of Debian's; it is taken to be of the architecture that --arch says (x86_64)
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Only guest cases whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// Lets guest cases with a bound in time go on until they have done all: every race its 10^6 attempts. Natively only
    #[arg(long)]
    long: bool,
    /// Runs the guest cases on every kernel, processor and number of processors that there is, and writes docs/kernels.md
    #[arg(long, conflicts_with_all = ["no_qemu", "arch", "kernel", "long"])]
    matrix: bool,
    /// Of the matrix, only places in whose name this is; of the others, the document has what was seen last
    #[arg(long, requires = "matrix", default_value = "")]
    place: String,
}

/// Counts verdicts, and prints each.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: usize,
}

impl Tally {
    fn pass(&mut self, count: usize) {
        self.passed += count;
    }

    fn fail(&mut self, what: &str, why: &str) {
        println!("FAILED {what}: {}", why.trim());
        self.failed.push(what.to_owned());
    }

    /// A case that did not run. Only those that may need what is not there may say so.
    fn skip_case(&mut self, what: &str, why: &str) {
        if may_skip(what) {
            self.skip(what, why);
        } else {
            self.fail(what, &format!("must not be skipped: {why}"));
        }
    }

    fn skip(&mut self, what: &str, why: &str) {
        println!("skipped {what}: {}", why.trim());
        self.skipped += 1;
    }

    /// A step that passes by returning.
    fn step(&mut self, what: &str, result: Result<()>) {
        self.told(what, result.map(|()| String::new()));
    }

    /// The same of one that has something to tell.
    fn told(&mut self, what: &str, result: Result<String>) {
        match result {
            Ok(told) => {
                println!("ok {what}{}{told}", if told.is_empty() { "" } else { ": " });
                self.pass(1);
            }
            Err(error) => self.fail(what, &format!("{error:#}")),
        }
    }

    /// One verdict on one case.
    fn case(&mut self, what: &str, expected: &str, end: &str, output: &str) {
        match end {
            SKIPPED => self.skip_case(what, output),
            _ if end == expected => {
                output
                    .lines()
                    .filter_map(|line| line.strip_prefix("note: "))
                    .for_each(|note| println!("{what}: {note}"));
                self.pass(1);
            }
            "hung" => self.fail(what, &format!("hung, killed; expected {expected}; it said: {output}")),
            _ => self.fail(what, &format!("ended with {end}, expected {expected}; it said: {output}")),
        }
    }
}

/// Runs everything that `options` ask for; returns whether all of it passed. Ends with one line that counts.
///
/// # Errors
/// None of the tests': those are counted. What cannot be built or set up is counted as failed, too.
pub fn run(options: &Options) -> Result<bool> {
    if options.matrix {
        return matrix::run(&options.filter, &options.place);
    }
    let start = Instant::now();
    let mut tally = Tally::default();
    let everything = options.filter.is_empty() && options.kernel.is_none();
    if everything {
        for (what, args) in tidy::CARGO {
            tally.step(what, tidy::cargo(args));
        }
        tally.step("both architectures have the same files", tidy::parity());
        tally.step("links in the documentation lead somewhere", tidy::links());
        units(&mut tally, "runtime", &["test", "--quiet", "--package", "ascetic"]);
        units(&mut tally, "tools", &["test", "--quiet", "--package", "ascetic-tools"]);
        units(&mut tally, "xtask", &["test", "--quiet", "--package", "xtask"]);
    }
    let mut built = Vec::new();
    for arch in [Arch::X86_64, Arch::I686] {
        if options.arch.is_some_and(|only| only != arch) {
            continue;
        }
        match guests::build(arch) {
            Ok(programs) => built.push(programs),
            Err(error) => tally.fail(&format!("build for {arch}"), &format!("{error:#}")),
        }
    }
    if everything {
        tally.step("oldest supported Rust", tidy::oldest_rust());
        for programs in &built {
            tally.step(&format!("audit of the trusted code, {}", programs.arch), audit::check(programs));
            tally.step(&format!("the reporter cannot panic, {}", programs.arch), audit::no_panic(programs));
        }
        tally.step("a policy that may not be does not compile", tidy::refused_policy());
        tally.step("linker/trusted.ld beside the default script", tidy::layered_script());
        tally.step("example embed", example("embed", 0, &EMBED));
        tally.step("example enter", example("enter", 6, &["before: process", "a guest: true, sum 6"]));
        let program = ["refused: /etc/shadow: Permission denied", "threads: [0, 499500, 1999000, 4498500]"];
        tally.step("example program", example("program", 0, &program));
        in_c(&mut tally);
        match host::find(fuzz::COMPILER) {
            Some(_) => tally.told("fuzzing", fuzz::check()),
            None => tally.skip("fuzzing targets", fuzz::NO_COMPILER),
        }
        tally.told("soak", soak::check());
        tally.told("a collector whose calls fail", inject::check_collector());
    }
    for programs in &built {
        natively(&mut tally, programs, options)?;
        if everything && (programs.runs_here()) {
            tally.step(&format!("demo, {}", programs.arch), demo::check(programs.arch));
            tally.told(&format!("calls that fail, {}", programs.arch), inject::check(programs));
            if programs.arch == Arch::X86_64 {
                tally.step("births that nobody hears of are found", inject::check_silent(programs)); // takes a deadline
            }
        }
    }
    for programs in built.iter().filter(|_| everything || options.filter == "dumps") {
        if programs.runs_here() {
            tally.step(&format!("minidump-stackwalk, gdb and LLDB, {}", programs.arch), readers::check(programs));
            let ways = ascetic_ways::matrix(&programs.guests);
            tally.told(&format!("three ways to a dump agree, {}", programs.arch), ways);
        }
    }
    if !options.no_qemu && !options.long {
        in_qemu(&mut tally, &built, options)?;
    }
    if tally.passed + tally.failed.len() + tally.skipped == 0 {
        tally.fail("the selection", "nothing was run: does any case have this in its name?");
    }
    println!("took {:.0} s", start.elapsed().as_secs_f32());
    for what in &tally.failed {
        println!("failed: {what}");
    }
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed.len(), tally.skipped);
    Ok(tally.failed.is_empty())
}

/// What is in C: the header, the example, the test of the interface.
fn in_c(tally: &mut Tally) {
    tally.step("include/ascetic.h is what its source says", capi::check_header());
    if host::find("cc").is_none() {
        return tally
            .skip("programs in C", "there is no `cc`; on Debian or Ubuntu: sudo apt-get install gcc libc6-dev");
    }
    match capi::Library::build() {
        Ok(library) => {
            tally.step("example embed.c", library.example());
            tally.step("the C interface", library.interface());
            tally.step("signals of a libc program", library.signals());
            for (what, run) in [
                ("SQLite as a guest", capi::Library::sqlite as fn(&capi::Library) -> Result<()>),
                ("zlib as a guest, in four threads", capi::Library::zlib),
                ("Lua as a guest", capi::Library::lua),
            ] {
                match host::find("apt-get") {
                    Some(_) => tally.step(what, run(&library)),
                    None => tally.skip(what, "there is no apt-get to fetch the library with"),
                }
            }
        }
        Err(error) => tally.fail("libascetic.a", &format!("{error:#}")),
    }
}

/// Runs `cargo test` and counts what it counts.
fn units(tally: &mut Tally, what: &str, args: &[&str]) {
    let output = Command::new("cargo").current_dir(root()).args(args).output();
    let output = match output {
        Ok(output) => output,
        Err(error) => return tally.fail(what, &format!("cargo: {error}")),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let mut passed = 0;
    for line in text.lines().filter_map(|line| line.strip_prefix("test result: ")) {
        let number = |label: &str| -> usize {
            let part = line.split([';', '.']).find_map(|part| part.trim().strip_suffix(label));
            part.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
        };
        passed += number("passed");
    }
    tally.pass(passed);
    if output.status.success() && passed > 0 {
        println!("ok {passed} unit tests of {what}");
    } else {
        let errors = String::from_utf8_lossy(&output.stderr);
        tally.fail(&format!("unit tests of {what}"), &format!("{text}{errors}"));
    }
}

/// The cases of a program: name and expected end.
pub fn cases(programs: &Programs, filter: &str) -> Result<BTreeMap<String, String>> {
    let text = host::run(Command::new(&programs.guests).arg("cases"))?;
    let pair = |line: &str| line.split_once(' ').map(|(name, end)| (name.to_owned(), end.to_owned()));
    Ok(text.lines().filter_map(pair).filter(|(name, _)| name.contains(filter)).collect())
}

/// Runs the cases here, each in a process group of its own.
fn natively(tally: &mut Tally, programs: &Programs, options: &Options) -> Result<()> {
    if options.kernel.is_some() {
        return Ok(());
    }
    let arch = programs.arch;
    if arch == Arch::I686 && !host::ia32_runs() {
        tally.skip("i686 natively", "this kernel does not run i386 programs; QEMU runs them below");
        return Ok(());
    }
    let before = tally.passed;
    let start = Instant::now();
    for (name, expected) in cases(programs, &options.filter)? {
        let (end, output) = case(programs, &name, options.long)?;
        tally.case(&format!("{name} ({arch}, natively)"), &expected, &end, &output);
    }
    println!("ok {} cases, {arch}, natively, in {:.0} s", tally.passed - before, start.elapsed().as_secs_f32());
    Ok(())
}

/// Runs one case; returns its end and what it printed.
pub fn case(programs: &Programs, name: &str, long: bool) -> Result<(String, String)> {
    case_in(Path::new("."), programs, name, long)
}

/// Runs one case in a folder.
pub fn case_in(folder: &Path, programs: &Programs, name: &str, long: bool) -> Result<(String, String)> {
    let mut output = tempfile::tempfile()?;
    let mut child = Command::new(&programs.guests)
        .current_dir(folder)
        .args([if long { "long" } else { "run" }, name])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", programs.guests.display()))?;
    let status = child.wait_timeout(if long { LONG_LIMIT } else { CASE_LIMIT })?;
    if status.is_none() {
        // The group is of the case's own making, and its leader is not reaped yet.
        host::run(Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())])).ok();
        child.wait()?;
    }
    let mut text = String::new();
    std::io::Seek::rewind(&mut output)?;
    output.read_to_string(&mut text)?;
    let end = match status {
        None => "hung".to_owned(),
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit:{code}"),
            (_, signal) => format!("signal:{}", signal.unwrap_or(0)),
        },
    };
    Ok((end, text))
}

/// A kernel image, its name and architecture, and the architectures whose programs it is to run.
pub struct Boot {
    /// Its name.
    pub name: String,
    /// The kernel.
    pub image: PathBuf,
    /// Its architecture.
    pub arch: Arch,
    /// The architectures whose programs it is to run.
    pub userlands: Vec<Arch>,
    /// What is in the names of the cases to run.
    pub filter: String,
    /// What the names of cases begin with that are left out.
    without: &'static [&'static str],
    /// QEMU's name of the processor.
    pub cpu: String,
    /// How many there are.
    pub cpus: u32,
}

impl Boot {
    /// One that runs on a processor with all that QEMU can translate, two of them.
    pub fn new(name: &str, image: PathBuf, arch: Arch, userlands: &[Arch], filter: &str) -> Self {
        let (name, filter, userlands) = (name.to_owned(), filter.to_owned(), userlands.to_vec());
        Self { name, image, arch, userlands, filter, without: &[], cpu: cpu("max", arch), cpus: 2 }
    }
}

/// QEMU's name of a processor of this model for a kernel.
pub fn cpu(model: &str, arch: Arch) -> String {
    match arch {
        Arch::I686 => format!("{model},vendor=GenuineIntel"),
        // QEMU 7.2 translates cmpxchg16b wrongly now and then, and a kernel that uses it crashes; without it, none does.
        Arch::X86_64 => format!("{model},-cx16"),
    }
}

/// What the names of cases begin with that take long in QEMU: of several kernels, the last runs them.
const LONG: [&str; 5] = ["dump_ways", "live_", "many_", "policy_agrees", "race_"];

/// What the names of cases begin with that are about the ways to a dump.
const WAYS: &str = "dump_ways";

fn in_qemu(tally: &mut Tally, built: &[Programs], options: &Options) -> Result<()> {
    let mut boots = Vec::new();
    match &options.kernel {
        Some(image) => {
            let arch = options.arch.unwrap_or(Arch::X86_64);
            let name = image.display().to_string();
            boots.push(Boot::new(&name, image.clone(), arch, &[arch], &options.filter));
        }
        None => {
            for kernel in KERNELS {
                let filter = match kernel.tested {
                    Tested::All => options.filter.clone(),
                    // For x86_64 only.
                    Tested::Ways if options.arch == Some(Arch::I686) => continue,
                    Tested::Ways if WAYS.contains(&options.filter) => WAYS.to_owned(),
                    Tested::Ways if options.filter.starts_with(WAYS) => options.filter.clone(),
                    Tested::Ways | Tested::No => continue,
                };
                let own = std::slice::from_ref(&kernel.arch);
                let userlands = if kernel.tested == Tested::All { kernel.userlands() } else { own };
                match kernels::fetch(&cache(), kernel) {
                    Ok(image) => boots.push(Boot::new(kernel.name, image, kernel.arch, userlands, &filter)),
                    Err(error) => tally.fail(&format!("kernel {}", kernel.name), &format!("{error:#}")),
                }
            }
            // All i386 programs on a 64-bit kernel: here, or else on the last that runs them. What is asked for, on all.
            if options.filter.is_empty() {
                let last = boots.iter().rposition(|boot| boot.userlands.len() > 1).unwrap_or(0);
                let without = if host::ia32_runs() { boots.len() } else { last };
                boots.iter_mut().take(without).for_each(|boot| boot.userlands.retain(|arch| *arch == boot.arch));
                for i in 0..boots.len() {
                    let again = |later: &Boot| later.arch == boots[i].arch && later.filter.is_empty();
                    if boots[i + 1..].iter().any(again) {
                        boots[i].without = &LONG;
                    }
                }
            }
        }
    }
    // A /dev/kvm that is there may hang: it is used only after it has booted something.
    let kvm = boots.first().is_some_and(|boot| qemu::kvm_works(&boot.image, boot.arch));
    let accel = if kvm { Accel::Kvm } else { Accel::Tcg };
    for boot in &boots {
        for programs in built.iter().filter(|programs| boot.userlands.contains(&programs.arch)) {
            // Where nothing else is run, there is time for both.
            let ways = boot.filter.starts_with(WAYS);
            let i686 = built.iter().find(|programs| ways && programs.arch == Arch::I686);
            if let Err(error) = one_boot(tally, accel, boot, programs, i686) {
                tally.fail(&format!("{} on kernel {}", programs.arch, boot.name), &format!("{error:#}"));
            }
        }
    }
    Ok(())
}

/// What a boot showed.
pub struct Ran {
    /// What kind of program, and which kernel.
    pub place: String,
    /// The cases, and the end that each should have.
    pub plan: BTreeMap<String, String>,
    /// The end that each had, and what it printed.
    pub ends: BTreeMap<String, (String, String)>,
    /// The kernel's release, and what makes a difference of what the processors have.
    pub machine: (String, Vec<String>),
    /// The case that was running last, if it did not end.
    running: String,
    /// Whether all of the plan was run.
    done: bool,
    /// How the kernel ended.
    pub outcome: qemu::Outcome,
}

/// Boots a kernel with the test program as PID 1, which runs the cases that are asked for. `i686` are further programs to take
/// dumps of.
///
/// # Errors
/// There is no QEMU, or it fails; a kernel that ends is no error.
pub fn boot_cases(accel: Accel, boot: &Boot, programs: &Programs, i686: Option<&Programs>) -> Result<Ran> {
    let place = format!("{} on kernel {}", programs.arch, boot.name);
    let dir = tempfile::tempdir()?;
    let archive = dir.path().join("initramfs");
    let mut files = vec![Entry { path: "init".to_owned(), source: programs.guests.clone(), mode: 0o755 }];
    if programs.arch == Arch::X86_64 {
        files.push(Entry { path: "ways".to_owned(), source: guests::ways()?, mode: 0o755 });
        files.extend(i686.map(|i686| Entry {
            path: "guests-i686".to_owned(),
            source: i686.guests.clone(),
            mode: 0o755,
        }));
    }
    initramfs::build(&files, &archive)?;
    let cmdline = format!("{LEGACY} ascetic.filter={} ascetic.without={}", boot.filter, boot.without.join(","));
    let machine = Machine {
        kernel: &boot.image,
        initramfs: Some(&archive),
        arch: boot.arch,
        accel,
        cpu: &boot.cpu,
        cpus: boot.cpus,
        memory: 512,
        cmdline: &cmdline,
        deadline: BOOT_LIMIT,
    };
    let (mut plan, mut ends) = (BTreeMap::new(), BTreeMap::new());
    let (mut running, mut said, mut done) = (String::new(), String::new(), false);
    let mut machine_is = (String::new(), Vec::new());
    let outcome = qemu::boot(&machine, |line| match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["@plan", name, end] => {
            plan.insert(name.to_owned(), end.to_owned());
        }
        ["@start", name] => {
            running = name.to_owned();
            said.clear();
        }
        ["@case", name, end, milliseconds] => {
            if milliseconds.parse().unwrap_or(0) > SLOW {
                println!("slow: {name} ({place}): {milliseconds} ms");
            }
            ends.insert(name.to_owned(), (end.to_owned(), std::mem::take(&mut said)));
            running.clear();
        }
        ["@kernel", release] => machine_is.0 = release.to_owned(),
        ["@has", feature] => machine_is.1.push(feature.to_owned()),
        ["@done"] => done = true,
        _ => {
            said.push_str(line);
            said.push('\n');
        }
    })?;
    Ok(Ran { place, plan, ends, machine: machine_is, running, done, outcome })
}

/// Ways into the kernel that Debian leaves shut unless they are asked for: attacks try them.
const LEGACY: &str = "syscall.x32=y vsyscall=xonly";

/// Boots a kernel, and counts the verdict on each case.
fn one_boot(tally: &mut Tally, accel: Accel, boot: &Boot, programs: &Programs, i686: Option<&Programs>) -> Result<()> {
    let Ran { place, plan, ends, running, done, outcome, .. } = boot_cases(accel, boot, programs, i686)?;
    let before = tally.passed;
    // A line of the plan that the console spoilt would hide its case.
    if let Ok(all) = cases(programs, &boot.filter) {
        let left_out = |name: &str| boot.without.iter().any(|begin| name.starts_with(begin));
        for name in all.keys().filter(|name| !plan.contains_key(*name) && !left_out(name)) {
            tally.fail(&format!("{name} ({place})"), "is not in the plan that the console showed");
        }
    }
    for (name, expected) in &plan {
        let what = format!("{name} ({place})");
        match ends.get(name) {
            Some((end, said)) => tally.case(&what, expected, end, said),
            None if *name == running => tally.fail(&what, &format!("{outcome}")),
            None => tally.fail(&what, "did not run: the kernel ended before"),
        }
    }
    if outcome.end != End::Off || !done || (plan.is_empty() && boot.filter.is_empty()) {
        tally.fail(&format!("boot of {place}"), &outcome.to_string());
    }
    println!("ok {} cases, {place}, in {:.0} s", tally.passed - before, outcome.elapsed.as_secs_f32());
    Ok(())
}

/// What the example says.
const EMBED: [&str; 3] =
    ["well behaved: exit status 42", "crashes: signal 11 (SIGSEGV)", "null pointer; complete: true"];

/// An example of `examples/` ends as it should, and says what it should.
fn example(name: &str, status: i32, lines: &[&str]) -> Result<()> {
    let mut cargo = Command::new("cargo");
    let output = cargo.current_dir(root()).args(["run", "--quiet", "--example", name]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.code() != Some(status) {
        bail!("{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    match lines.iter().find(|line| !text.contains(**line)) {
        Some(line) => bail!("no `{line}` in:\n{text}"),
        None => Ok(()),
    }
}
