//! Dumps in the hands of the programs that people read dumps with: `minidump-stackwalk`, gdb, LLDB.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use ascetic_tools::dump::{Dump, elf, minidump};
use ascetic_ways::{Crash, Running, WAYS};

use crate::guests::Programs;
use crate::{apt, cache, host};

/// The functions that the demo's crash must be seen to be in, innermost first.
const FUNCTIONS: [&str; 3] = ["pcx::run", "pcx::decode", "demo::decode"];

/// A crate with a program, and its version.
struct Tool {
    name: &'static str,
    version: &'static str,
    args: &'static [&'static str],
}

const STACKWALK: Tool = Tool { name: "minidump-stackwalk", version: "0.27.0", args: &[] };
const DUMP_SYMS: Tool =
    Tool { name: "dump_syms", version: "2.3.9", args: &["--no-default-features", "--features", "cli"] };

impl Tool {
    /// The program, built if it is not there. Both share what they build, without optimisation: it is built once and used for
    /// seconds.
    fn ensure(&self) -> Result<PathBuf> {
        let root = cache().join(format!("{}-{}", self.name, self.version));
        let program = root.join("bin").join(self.name);
        if !program.exists() {
            let mut cargo = Command::new("cargo");
            cargo.env("CARGO_PROFILE_DEV_DEBUG", "0").env_remove("CARGO_ENCODED_RUSTFLAGS");
            cargo.args(["install", "--quiet", "--debug", "--locked", "--root"]).arg(&root);
            cargo.arg("--target-dir").arg(cache().join("readers")).args(["--version", self.version]);
            host::run(cargo.args(self.args).arg(self.name))?;
        }
        Ok(program)
    }
}

/// The crash of the demo's decoder.
fn crash(programs: &Programs) -> Result<Crash> {
    let mut demo = Running::start(&programs.demo, &[])?;
    demo.input.write_all(b"\n")?; // the tour waits for that
    loop {
        let line = demo.output.next().context("the demo ended too early")??;
        if line.starts_with("ended tour") {
            return demo.crash();
        }
    }
}

/// Has the readers read the demo's crash, by every way that there is.
///
/// # Errors
/// Naming the reader, and what it did not say.
pub fn check(programs: &Programs) -> Result<()> {
    let (stackwalk, dump_syms) = (STACKWALK.ensure()?, DUMP_SYMS.ensure()?);
    let debuggers = [GDB, LLDB].map(|debugger| Ok((apt::ensure_installed(debugger.name, debugger.name)?, debugger)));
    let debuggers = debuggers.into_iter().collect::<Result<Vec<_>>>()?;
    let dir = tempfile::tempdir()?;
    let symbols = dir.path().join("symbols");
    host::run(Command::new(dump_syms).arg("--store").arg(&symbols).arg(&programs.demo))?;
    let crash = crash(programs)?;
    let mut read = 0;
    for (name, way) in WAYS.iter().zip(&crash.ways) {
        let Ok(dump) = way else { continue };
        let path = dir.path().join(format!("{name}.dmp"));
        fs::write(&path, minidump::write(dump))?;
        let text = host::run(Command::new(&stackwalk).arg("--symbols-path").arg(&symbols).arg(&path))?;
        stackwalked(dump, &text).with_context(|| format!("minidump-stackwalk on {name}:\n{text}"))?;
        let path = dir.path().join(format!("{name}.core"));
        fs::write(&path, elf::write(dump)?)?;
        for (program, debugger) in &debuggers {
            let text = host::run(debugger.command(program, &programs.demo, &path).env("LC_ALL", "C"))?;
            debugger.debugged(dump, &text).with_context(|| format!("{} on {name}:\n{text}", debugger.name))?;
        }
        read += 1;
    }
    ensure!(read >= 1, "no way led to a dump: {:?}", crash.ways.map(|way| way.err()));
    Ok(())
}

/// What `minidump-stackwalk` must say.
fn stackwalked(dump: &Dump, text: &str) -> Result<()> {
    let exception = dump.exception.as_ref().context("no exception")?;
    let has =
        |line: String| text.lines().any(|l| l.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(&line));
    ensure!(has("Crash reason: SIGSEGV".to_owned()), "no reason");
    ensure!(
        has(format!("Crash address: {:#018x}", exception.address))
            || has(format!("Crash address: {:#010x}", exception.address)),
        "no address"
    );
    let crashed = text.split("(crashed)").nth(1).context("no crashed thread")?;
    let crashed = crashed.split("\n\n").next().unwrap_or(crashed);
    in_order(crashed)
}

/// The crashing function and its callers, in their order.
fn in_order(text: &str) -> Result<()> {
    let mut rest = text;
    for function in FUNCTIONS {
        let at = rest.find(function).with_context(|| format!("{function} is not where it must be"))?;
        rest = &rest[at..];
    }
    Ok(())
}

/// A debugger, and the commands to give it.
struct Debugger {
    name: &'static str,
    args: &'static [&'static str],
    /// What the next argument is a command by.
    option: &'static str,
    commands: [&'static str; 4],
    /// What goes before the instruction at the program counter.
    arrow: &'static str,
    /// What is between a register's name and its value.
    is: &'static str,
}

const GDB: Debugger = Debugger {
    name: "gdb",
    args: &["-batch", "-nx"],
    option: "-ex",
    commands: ["bt", "info registers", "x/4i $pc", "info threads"],
    arrow: "=> ",
    is: " ",
};
const LLDB: Debugger = Debugger {
    name: "lldb",
    args: &["--batch", "--no-lldbinit", "--script-language", "none"],
    option: "-o",
    commands: ["bt", "register read", "x/4i $pc", "thread list"],
    arrow: "-> ",
    is: " = ",
};

impl Debugger {
    /// Has it read a core.
    fn command(&self, debugger: &Path, program: &Path, core: &Path) -> Command {
        let mut command = Command::new(debugger);
        command.args(self.args).args(self.commands.iter().flat_map(|text| [self.option, text]));
        match self.name {
            "lldb" => command.arg(program).arg("--core").arg(core),
            _ => command.arg(program).arg(core),
        };
        command
    }

    /// What it must say: function and callers, the same registers, the instruction.
    fn debugged(&self, dump: &Dump, text: &str) -> Result<()> {
        in_order(text)?;
        let thread = dump.threads.first().context("no thread")?;
        let registers = thread.registers.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
        let mut compared = 0;
        for (name, value) in dump.arch.registers().iter().zip(&registers.general) {
            let line = text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(self.is));
            let hex = |line: &str| u64::from_str_radix(line.split_whitespace().next()?.strip_prefix("0x")?, 16).ok();
            let said = line.and_then(hex);
            // Where a record has no segment base or selector, 0 is no value.
            if name.len() == 3 && !name.starts_with("cr") && *name != "err" {
                ensure!(said == Some(*value), "{name} is {value:#x} in the dump, and {said:x?} here");
                compared += 1;
            }
        }
        ensure!(compared >= 9, "only {compared} registers");
        let pc = registers.pc(dump.arch).context("no program counter")?;
        let at = |line: &str| line.starts_with(self.arrow) && line.contains(&format!("{pc:#x}"));
        ensure!(text.lines().any(at), "no instruction");
        Ok(())
    }
}
