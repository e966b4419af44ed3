//! A crash, dumped in all three ways at once: what each says, side by side. For `xtask` here, and for the program `ways` in QEMU.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use ascetic_tools::dump::facts::Ended;
use ascetic_tools::dump::{Dump, Facts, Registers, Role, kernel, live, record};

/// The lines that a program prints.
pub type Output = Lines<BufReader<ChildStdout>>;

/// The ways, in the order of a comparison's columns.
pub const WAYS: [&str; 3] = ["record", "core", "ptrace"];

/// A crash as each way tells of it, or why one does not.
pub struct Crash {
    /// The record's bytes.
    pub record: Vec<u8>,
    /// The process id of the first guest's thread.
    pub guest: u32,
    /// `cause; guest's end; T's end`
    pub ended: String,
    /// In the order of [`WAYS`].
    pub ways: [Result<Dump, String>; 3],
}

/// Follows a program that shows a crash (`freestanding::crash`), whose core is put into `cores`, up to the end of the crash.
///
/// # Errors
/// It says something else.
pub fn follow(input: &mut ChildStdin, output: &mut Output, cores: &Path) -> Result<Crash> {
    let numbers = |line: &str| -> Result<Vec<u32>> {
        line.split_whitespace().skip(1).map(|n| n.parse().with_context(|| format!("`{line}`"))).collect()
    };
    let mut next = || -> Result<String> { Ok(output.next().ok_or_else(|| anyhow!("the program ended too early"))??) };
    let line = next()?;
    ensure!(line.starts_with("born "), "expected `born`, got `{line}`");
    let pair = numbers(&line)?;
    let [t, u] = pair[..] else { bail!("`{line}` is no pair") };
    let (seized, is_seized) = mpsc::channel();
    let tracer = thread::spawn(move || live::watch(&[t, u], &seized));
    is_seized.recv().context("the tracer ended")?;
    input.write_all(b"\n")?;

    let mut facts = Facts::default();
    let mut bytes = Vec::new();
    let ended = loop {
        let line = next()?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("dying", _) => {
                let ended = numbers(&line)?;
                // The guest is gone, but T has the same memory.
                facts = Facts::of_process(t);
                facts.process = u;
                facts.ended = match ended[..] {
                    [task, signal] if task != 0 => Some(Ended { task, signal: signal.try_into()? }),
                    _ => None,
                };
            }
            ("tasks", _) => {
                for (pid, role) in numbers(&line)?.into_iter().zip([Role::Trusted, Role::Guest]) {
                    facts.add_task(pid, role);
                }
            }
            ("all", _) => input.write_all(b"\n")?,
            ("record", hex) => bytes.extend(unhex(hex)?),
            ("ended", rest) => break rest.to_owned(),
            _ => bail!("`{line}` was not expected"),
        }
    };
    let traced = tracer.join().map_err(|_| anyhow!("the tracer panicked"))?;
    let recorded = record::read(&bytes, &facts).ok_or_else(|| "none: the guest did not live to write one".to_owned());
    let task = facts.ended.map_or(u, |ended| ended.task);
    let cored = kernel::core_of(cores, task, &facts, None).map_err(|why| why.to_string());
    Ok(Crash { record: bytes, guest: u, ended, ways: [recorded, cored, traced] })
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let digits = text.as_bytes().chunks_exact(2);
    digits.map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?)).collect()
}

/// A program that shows a crash.
pub struct Running {
    child: Child,
    /// Its standard input.
    pub input: ChildStdin,
    /// What it prints.
    pub output: Output,
    /// Where cores are put.
    cores: PathBuf,
    /// Removes the folder when it goes.
    owned: Option<tempfile::TempDir>,
}

impl Running {
    /// Starts a program in a folder of its own.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(program: &Path, args: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut command = Command::new(program);
        command.args(args);
        let mut this = Self::start_in(command, dir.path())?;
        this.owned = Some(dir);
        Ok(this)
    }

    /// Starts a program in a folder.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_in(mut command: Command, dir: &Path) -> Result<Self> {
        let mut child = command
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?).lines();
        Ok(Self { child, input, output, cores: dir.to_owned(), owned: None })
    }

    /// Has cores be looked for in another folder than the program's.
    #[must_use]
    pub fn cores_in(mut self, dir: &Path) -> Self {
        dir.clone_into(&mut self.cores);
        self
    }

    /// Follows the crash.
    ///
    /// # Errors
    /// As [`follow`].
    pub fn crash(&mut self) -> Result<Crash> {
        follow(&mut self.input, &mut self.output, &self.cores)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error says that it is gone already; its sandboxes follow it into death.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A row of the comparison.
pub struct Row {
    /// What is compared.
    pub field: &'static str,
    /// What each way says; `None` where it does not.
    pub values: [Option<String>; 3],
}

impl Row {
    /// Whether those that say something say the same.
    pub fn agrees(&self) -> bool {
        let mut said = self.values.iter().flatten();
        let first = said.next();
        said.all(|value| Some(value) == first)
    }
}

/// Registers that all ways have, and that mean the same in all.
const COMPARED: [&str; 24] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "esp",
];

/// Compares what the ways say of a crash, field by field.
pub fn compare(crash: &Crash) -> Vec<Row> {
    let all = |of: &dyn Fn(&Dump) -> Option<String>| [0, 1, 2].map(|i| crash.ways[i].as_ref().ok().and_then(of));
    let exception = |of: &dyn Fn(&ascetic_tools::dump::Exception) -> Option<String>| {
        all(&|dump: &Dump| dump.exception.as_ref().and_then(of))
    };
    let registers = |dump: &Dump| -> Option<Registers> { dump.threads.first()?.registers.clone().ok() };
    let hex = |value: u64| Some(format!("{value:#x}"));
    let state = |dump: &Dump| {
        let registers = registers(dump)?;
        let values: BTreeMap<_, _> =
            COMPARED.iter().filter_map(|name| Some((name, registers.get(dump.arch, name)?))).collect();
        Some(values.iter().map(|(name, value)| format!("{name}={value:x}")).collect::<Vec<_>>().join(" "))
    };
    let vectors = |dump: &Dump| {
        let mut extended = registers(dump)?.extended;
        // The kernel's 32-bit sigreturn loses the last opcode of x87 (`arch/x86/kernel/fpu/regset.c`, `convert_to_fxsr`).
        extended.get_mut(FXSAVE_OPCODE)?.fill(0);
        // Behind each register of x87 FXSAVE leaves bytes as they are; XSAVE's kernel clears them before.
        extended.get_mut(FXSAVE_X87)?.chunks_exact_mut(16).for_each(|register| register[10..].fill(0));
        Some(hex::encode(extended.get(..FXSAVE_REGISTERS)?))
    };
    let backtrace = |dump: &Dump| {
        let frames = dump.backtrace_of(dump.threads.first()?);
        Some(frames.iter().map(|frame| format!("{frame:#x}")).collect::<Vec<_>>().join(" "))
    };
    vec![
        Row { field: "thread", values: exception(&|e| Some(e.thread.to_string())) },
        Row { field: "signal", values: exception(&|e| Some(e.signal.to_string())) },
        Row { field: "code", values: exception(&|e| e.code.map(|code| code.to_string())) },
        Row { field: "address", values: exception(&|e| hex(e.address)) },
        Row { field: "program counter", values: exception(&|e| hex(e.pc)) },
        Row { field: "denied call", values: exception(&|e| e.denied.map(|(nr, args)| format!("{nr} {args:x?}"))) },
        Row { field: "backtrace", values: all(&backtrace) },
        Row { field: "registers", values: all(&state) },
        Row { field: "x87 and SSE", values: all(&vectors) },
    ]
}

/// Where FXSAVE has the opcode of the last x87 instruction.
const FXSAVE_OPCODE: std::ops::Range<usize> = 6..8;
/// Where it has x87's registers, in 16 bytes each, of which 10 count.
const FXSAVE_X87: std::ops::Range<usize> = 32..160;
/// Bytes of FXSAVE that hold registers, on both architectures: control words, eight of x87's and eight of SSE's.
const FXSAVE_REGISTERS: usize = 288;

/// Kinds of crashes of which only some ways can tell: the kind, and the ways. Nothing runs in the sandbox any more when SIGKILL
/// ends a task, and the kernel writes no core then. T has no reporter.
const ONLY: [(&str, &[usize]); 4] =
    [("strict", &[2]), ("outside", &[2]), ("trusted", &[1, 2]), ("trusted-outside", &[2])];

/// The ways that can tell of a kind of crash.
pub fn expected(kind: &str) -> &'static [usize] {
    ONLY.iter().find(|(only, _)| *only == kind).map_or(&[0, 1, 2], |(_, ways)| ways)
}

/// The kinds of crashes that a program can show, each with the signal by which it ends.
///
/// # Errors
/// It does not say.
pub fn kinds(program: &Path) -> Result<Vec<(String, String)>> {
    let output = Command::new(program).arg("crashes").output().with_context(|| program.display().to_string())?;
    let text = String::from_utf8(output.stdout)?;
    let pair = |line: &str| line.split_once(' ').map(|(kind, signal)| (kind.to_owned(), signal.to_owned()));
    text.lines().map(|line| pair(line).with_context(|| format!("`{line}`"))).collect()
}

/// Where a core does not go to a file, there is none to compare.
fn elsewhere(way: &Result<Dump, String>) -> bool {
    matches!(way, Err(why) if why.contains("goes elsewhere"))
}

/// Checks that the ways that are expected to tell of a crash do, no others do, and all say the same; how many there are.
///
/// # Errors
/// What is wrong.
pub fn check(crash: &Crash, kind: &str, signal: &str, expected: &[usize]) -> Result<usize> {
    let mut problems = Vec::new();
    for (i, way) in crash.ways.iter().enumerate() {
        match way {
            Ok(dump) if !expected.contains(&i) => {
                problems.push(format!("{}: a dump, and there should be none: {:?}", WAYS[i], dump.exception));
            }
            Err(why) if expected.contains(&i) && !elsewhere(way) => problems.push(format!("{}: {why}", WAYS[i])),
            _ => {}
        }
    }
    for row in compare(crash) {
        let mut said = row.values.iter().flatten();
        match row.field {
            _ if !row.agrees() => problems.push(format!("{}: {:#?}", row.field, row.values)),
            "signal" if said.any(|value| value != signal) => {
                problems.push(format!("signal {signal} was expected: {:?}", row.values));
            }
            "denied call" if ["denied", "strict"].contains(&kind) && !expected.is_empty() && said.next().is_none() => {
                problems.push("nobody names the call".to_owned());
            }
            _ => {}
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(crash.ways.iter().flatten().count())
}

/// Has every kind of crash happen, and checks that all ways say the same; what they said, in short.
///
/// # Errors
/// Naming what differs.
pub fn matrix(program: &Path) -> Result<String> {
    let kinds = kinds(program)?;
    let (mut problems, mut dumps) = (Vec::new(), 0);
    for (kind, signal) in &kinds {
        let crash = Running::start(program, &["crash", kind])?.crash().with_context(|| kind.clone())?;
        match check(&crash, kind, signal, expected(kind)) {
            Ok(count) => dumps += count,
            Err(error) => problems.push(format!("{kind}: {error}")),
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(format!("{} kinds of crashes, {dumps} dumps", kinds.len()))
}
