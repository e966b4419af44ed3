//! `cargo xtask demo`: a sandbox at work, a crash and its report, and the experiment with the three mechanisms.

use std::fs;
use std::io::Write;

use anyhow::{Context, Result, anyhow, bail, ensure};
use ascetic::fault::classify::Class;
use ascetic::fault::record::{Kind, Record};
use ascetic_tools::dump::minidump;
use ascetic_tools::dump::symbols::Source;
use ascetic_ways::{Crash, Running, WAYS};
use serde_json::{Value, json};

use crate::guests::{self, Programs};
use crate::host::{self, Arch};
use crate::root;

/// One line of the demo.
struct Fact {
    /// What it is about: `trusted`, `untrusted`, `brokered`, `denied`, `fault`, `status` or `mechanism`.
    kind: &'static str,
    /// In words.
    text: String,
    /// Whether it is as it must be.
    good: bool,
    /// The same for machines.
    data: Value,
}

/// All lines so far; prints each as it comes, unless they are for machines.
struct Facts {
    all: Vec<Fact>,
    print: bool,
}

impl Facts {
    fn add(&mut self, kind: &'static str, good: bool, text: impl Into<String>, data: Value) {
        let text = text.into();
        if self.print {
            println!("{kind}: {text}{}", if good { "" } else { "   <-- NOT AS IT MUST BE" });
        }
        self.all.push(Fact { kind, text, good, data });
    }

    fn good(&self) -> bool {
        self.all.iter().all(|fact| fact.good)
    }

    fn json(&self, arch: Arch) -> Value {
        let facts = self.all.iter().map(|fact| {
            let mut value = json!({ "kind": fact.kind, "text": fact.text, "good": fact.good });
            if let (Value::Object(to), Value::Object(from)) = (&mut value, fact.data.clone()) {
                to.extend(from);
            }
            value
        });
        json!({ "arch": arch.to_string(), "good": self.good(), "facts": facts.collect::<Vec<_>>() })
    }
}

/// Runs the demo and prints it; returns whether every line was as it must be.
///
/// # Errors
/// The programs cannot be built or run.
pub fn run(arch: Arch, json: bool) -> Result<bool> {
    let facts = facts(arch, !json)?;
    if json {
        println!("{:#}", facts.json(arch));
    }
    Ok(facts.good())
}

/// Runs the demo silently.
///
/// # Errors
/// Naming the lines that were not as they must be.
pub fn check(arch: Arch) -> Result<()> {
    let facts = facts(arch, false)?;
    let bad: Vec<_> = facts.all.iter().filter(|fact| !fact.good).map(|f| format!("{}: {}", f.kind, f.text)).collect();
    ensure!(bad.is_empty(), "{}", bad.join("\n"));
    Ok(())
}

fn facts(arch: Arch, print: bool) -> Result<Facts> {
    if arch == Arch::I686 && !host::ia32_runs() {
        bail!("this kernel does not run i386 programs; `cargo xtask test --arch i686` runs them in QEMU");
    }
    let programs = guests::build(arch)?;
    let mut facts = Facts { all: Vec::new(), print };
    Demo(Running::start(&programs.demo, &[])?).tell(&programs, &mut facts)?;
    Ok(facts)
}

/// The running program.
struct Demo(Running);

impl Demo {
    /// The next line, split at its first space.
    fn line(&mut self) -> Result<(String, String)> {
        let line = self.0.output.next().ok_or_else(|| anyhow!("the demo program ended too early"))??;
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        ensure!(word != "error", "{rest}");
        Ok((word.to_owned(), rest.to_owned()))
    }

    /// The rest of the next line, which must start with `word`.
    fn expect(&mut self, word: &str) -> Result<String> {
        let (got, rest) = self.line()?;
        ensure!(got == word, "expected `{word}`, got `{got} {rest}`");
        Ok(rest)
    }

    fn tell(&mut self, programs: &Programs, facts: &mut Facts) -> Result<()> {
        let embedder: u32 = self.expect("embedder")?.parse()?;
        let (t, u) = pair(&self.expect("tasks")?)?;
        tasks(facts, embedder, t, u)?;
        self.0.input.write_all(b"\n")?;
        self.calls(facts, embedder, u)?;
        let end = self.expect("ended")?;
        status(facts, &end, "tour", "exit status 0", "the well-behaved guest");

        let crash = self.0.crash()?;
        fault(facts, programs, &crash.record, crash.guest)?;
        status(
            facts,
            &format!("decoder {}", crash.ended),
            "decoder",
            "signal 11 (SIGSEGV)",
            "the guest with the malformed picture",
        );
        ways(facts, &crash);
        for cell in 0..16 {
            let line = self.expect("mechanism")?;
            mechanism(facts, cell, &line)?;
        }
        self.expect("end").map(drop)
    }

    /// What the guest could do, and what not.
    fn calls(&mut self, facts: &mut Facts, embedder: u32, u: u32) -> Result<()> {
        for (name, shown, check) in CALLS {
            let line = self.expect("call")?;
            let (got, result) = line.split_once(' ').context("a call without a result")?;
            ensure!(got == name, "expected {name}, got {got}");
            let value: i64 = result.parse()?;
            let data = json!({ "call": name, "result": value });
            match check {
                Some(errno) => {
                    let word = syscalls::Errno::new(errno).name().unwrap_or("?");
                    facts.add("denied", value == i64::from(-errno), format!("{shown} = {value} ({word})"), data);
                }
                None if name == "getppid" => {
                    let text = format!("{shown} = {value}, the process that embeds it");
                    facts.add("brokered", value == i64::from(embedder), text, data);
                }
                None => facts.add("brokered", value >= 0, format!("{shown} = {value}"), data),
            }
        }
        let release = self.expect("release")?;
        let ours = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let text = format!("uname said that this is Linux {release}");
        facts.add("brokered", release == ours.trim(), text, json!({ "release": release }));
        let pid: u32 = self.expect("pid")?.parse()?;
        facts.add("untrusted", pid == u, format!("getpid() = {pid}, answered inside"), json!({ "getpid": pid }));
        let (a, b) = pair::<u64>(&self.expect("rdtsc")?)?;
        let text = format!("rdtsc works: {a}, then {b} (the instruction faults in strict mode; the handler answers)");
        facts.add("untrusted", a > 0 && b > a, text, json!({ "rdtsc": [a, b] }));
        Ok(())
    }
}

/// The calls of the tour: name, how to show it, and the `errno` with which it must be refused.
const CALLS: [(&str, &str, Option<i32>); 5] = [
    ("getppid", "getppid()", None),
    ("uname", "uname(buffer)", None),
    ("getrandom", "getrandom(buffer, 8, 0)", None),
    ("openat", "openat(AT_FDCWD, \"/etc/shadow\", O_RDONLY)", Some(38)),
    ("kill", "kill(1, SIGKILL)", Some(38)),
];

fn pair<N: std::str::FromStr>(line: &str) -> Result<(N, N)> {
    let (a, b) = line.split_once(' ').with_context(|| format!("`{line}` is no pair"))?;
    let parse = |s: &str| s.parse().map_err(|_| anyhow!("`{s}` is no number"));
    Ok((parse(a)?, parse(b)?))
}

/// A field of `/proc/<pid>/status`.
fn field(pid: u32, name: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("status of {pid}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map(|value| value.trim().to_owned()).with_context(|| format!("no {name} in /proc/{pid}/status"))
}

/// Who T and U are, and what the kernel says of them.
fn tasks(facts: &mut Facts, embedder: u32, t: u32, u: u32) -> Result<()> {
    // T parks as soon as nobody asks; its registers can be read then.
    let syscall = (0..200)
        .map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            fs::read_to_string(format!("/proc/{t}/syscall")).unwrap_or_default()
        })
        .find(|line| line.split_whitespace().count() == 9);
    let sp = syscall.as_deref().and_then(|line| line.split_whitespace().nth(7)).unwrap_or("unknown").to_owned();
    let name = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).map(|name| name.trim().to_owned());
    let text = format!("process {t} ({}), child of {embedder}", name(t)?);
    facts.add("trusted", field(t, "PPid")? == embedder.to_string(), text, json!({ "pid": t }));
    let expectations: [(&'static str, u32, &str, &str, &str); 7] = [
        ("trusted", t, "Seccomp", "0", "may make calls"),
        ("trusted", t, "SigBlk", "fffffffffffbfeff", "every signal that can be blocked is"),
        ("trusted", t, "SigCgt", "0000000000000000", "no handlers"),
        ("untrusted", u, "Seccomp", "1", "strict mode: read, write, exit, sigreturn"),
        ("untrusted", u, "SigBlk", "0000000001001000", "SIGPIPE and SIGXFSZ are errors of write, not deaths"),
        ("untrusted", u, "SigCgt", "80000000400004f8", "the seven signals of the fault reporter, and the kick"),
        ("untrusted", u, "NoNewPrivs", "1", "for good"),
    ];
    for (i, (kind, pid, key, expected, meaning)) in expectations.into_iter().enumerate() {
        if i == 3 {
            let text = format!("stack pointer {sp} (/proc/{t}/syscall): no signal frame can be built");
            facts.add("trusted", sp == "0x0", text, json!({ "stack_pointer": sp }));
            let text = format!("process {u} ({}), child of {embedder}", name(u)?);
            facts.add("untrusted", field(u, "PPid")? == embedder.to_string(), text, json!({ "pid": u }));
        }
        let value = field(pid, key)?;
        let text = format!("{key} {value} (/proc/{pid}/status): {meaning}");
        facts.add(kind, value == expected, text, json!({ "field": key, "value": value }));
    }
    Ok(())
}

/// `what cause; guest's end; T's end`
fn status(facts: &mut Facts, line: &str, what: &str, guest: &str, who: &str) {
    let parts: Vec<_> = line.split("; ").collect();
    let good = matches!(parts[..], [cause, g, t] if cause == format!("{what} Guest") && g.starts_with(guest) && t == "signal 9 (SIGKILL)");
    let (g, t) = (parts.get(1).unwrap_or(&"?"), parts.get(2).unwrap_or(&"?"));
    let text = format!("{who}: {g}; its trusted thread: {t}, by the supervisor");
    facts.add("status", good, text, json!({ "guest": g, "trusted": t }));
}

/// The report as a person wants to read it.
fn fault(facts: &mut Facts, programs: &Programs, bytes: &[u8], pid: u32) -> Result<()> {
    let record = Record::decode(bytes).with_context(|| format!("no fault record in {} bytes", bytes.len()))?;
    let body = record.fault.context("the record says nothing of the fault")?;
    let source = Source::of(&programs.demo, &root())?;
    let text: String = record.text.chars().filter(|c| !c.is_control()).collect(); // it is the guest's
    facts.add("fault", body.pid == pid, text, json!({ "line": record.text }));
    let text = format!("{} at address {:#x}", record.class().describe(), body.addr);
    // The page behind the picture allows no access; i386 frames do not tell that from one that is not there.
    let class = if programs.arch == Arch::X86_64 { Class::Guard } else { Class::WriteUnmapped };
    let good = body.sig == 11 && record.class() == class;
    let data =
        json!({ "signal": body.sig, "code": body.code, "address": body.addr, "class": record.class().describe() });
    facts.add("fault", good, text, data);

    let mut functions = Vec::new();
    for (i, pc) in record.backtrace().enumerate() {
        // A return address belongs to the call before it.
        let places = source.places(if i == 0 { pc } else { pc - 1 });
        for (k, place) in places.iter().enumerate() {
            let inlined = if k + 1 < places.len() { " (inlined)" } else { "" };
            let text = format!("  #{i} {pc:#010x} {}{inlined} {}", place.function, place.line);
            let data = json!({ "frame": i, "pc": pc, "function": place.function, "line": place.line });
            facts.add("fault", place.function != "?", text, data);
            functions.push(place.clone());
        }
    }
    let has = |name: &str| functions.iter().any(|place| place.function.ends_with(name) && place.line.contains(".rs:"));
    let named = has("pcx::run") && has("pcx::decode") && has("demo::decode");
    facts.add(
        "fault",
        named,
        "the backtrace leads from the guest's entry to the planted bug",
        json!({ "named": named }),
    );

    let registers: Vec<_> = record.registers().collect();
    for line in registers.chunks(4) {
        let text: Vec<_> = line.iter().map(|(name, value)| format!("{name:>7} {value:016x}")).collect();
        facts.add(
            "fault",
            true,
            format!("  {}", text.join(" ")),
            json!({ "registers": line.iter().map(|(n, v)| json!({ *n: v })).collect::<Vec<_>>() }),
        );
    }
    let pc_name = if programs.arch == Arch::X86_64 { "rip" } else { "eip" };
    let agree = registers.iter().any(|(name, value)| *name == pc_name && *value == body.pc);
    let sum = |kind| record.memory(kind).map(|(_, bytes)| bytes.len()).sum::<usize>();
    let (stack, extended, code) = (sum(Kind::Stack), sum(Kind::ExtendedState), sum(Kind::Code));
    let text =
        format!("{stack} bytes of stack, {extended} of extended state, {code} of code; complete: {}", record.complete);
    let good = agree && record.complete && stack > 0 && extended >= 512 && code > 0;
    facts.add(
        "fault",
        good,
        text,
        json!({ "stack": stack, "extended": extended, "code": code, "complete": record.complete }),
    );
    let noted = record.annotations().any(|note| note == ("stage", "pixels"));
    let called = record.calls().count();
    let text = format!("{called} brokered calls and the guest's notes are in the report");
    facts.add("fault", noted && called == 2, text, json!({ "calls": called, "noted": noted }));
    for (key, value) in record.annotations() {
        facts.add("fault", true, format!("the guest noted: {key} = {value}"), json!({ "key": key, "value": value }));
    }
    for call in record.calls() {
        let name = match programs.arch {
            Arch::X86_64 => syscalls::x86_64::Sysno::new(call.nr as usize).map(|nr| nr.name()),
            Arch::I686 => syscalls::x86::Sysno::new(call.nr as usize).map(|nr| nr.name()),
        };
        let name = name.unwrap_or("?");
        let text = format!("last calls: {name} = {}", call.result);
        facts.add("fault", true, text, json!({ "call": name, "result": call.result }));
    }
    Ok(())
}

/// What the three ways to a dump say of the crash, side by side.
fn ways(facts: &mut Facts, crash: &Crash) {
    for (name, way) in WAYS.iter().zip(&crash.ways) {
        let (good, text) = match way {
            Ok(dump) => {
                let memory: usize = dump.memory.iter().map(|memory| memory.bytes.len()).sum();
                let minidump = minidump::write(dump).len();
                let text = format!(
                    "{} threads, {} modules, {memory} bytes of memory; as a minidump {minidump} bytes",
                    dump.threads.len(),
                    dump.modules.len()
                );
                (true, text)
            }
            // A matter of the machine's.
            Err(why) => (why.contains("goes elsewhere") || why.contains("cannot be traced"), why.clone()),
        };
        facts.add("dump", good, format!("by {name:6} {text}"), json!({ "way": name, "available": way.is_ok() }));
    }
    for row in ascetic_ways::compare(crash) {
        let cut = |value: &Option<String>| {
            let value = value.as_deref().unwrap_or("-");
            value.char_indices().nth(22).map_or_else(|| value.to_owned(), |(at, _)| format!("{}...", &value[..at]))
        };
        let [record, core, ptrace] = [0, 1, 2].map(|i| cut(&row.values[i]));
        let word = if row.agrees() { "agree" } else { "DIFFER" };
        let text = format!("{:16} {record:26} {core:26} {ptrace:26} {word}", row.field);
        facts.add("dump", row.agrees(), text, json!({ "field": row.field, "values": row.values }));
    }
}

/// One cell of the experiment: which mechanisms are off, and what became of T.
fn mechanism(facts: &mut Facts, cell: u8, line: &str) -> Result<()> {
    let (number, end) = line.split_once(' ').context("a cell without an end")?;
    ensure!(number == cell.to_string(), "expected cell {cell}, got {number}");
    let off = |bit: u8| cell & bit != 0;
    let (shared, stack, unblocked, alt) = (off(1), off(2), off(4), off(8));
    let ran = end == "exit status 42";
    let expected = shared && unblocked && (stack || alt);
    let end = if ran { "the guest's handler RAN IN T" } else { end };
    let text = format!(
        "handlers {:8} stack pointer {:8} signals {:9} alternate stack {:3} -> {}{end}",
        if shared { "shared," } else { "own," },
        if stack { "valid," } else { "0," },
        if unblocked { "open," } else { "blocked," },
        if alt { "yes" } else { "no" },
        if ran { "" } else { "T died: " },
    );
    let data = json!({ "cell": cell, "shared": shared, "stack": stack, "unblocked": unblocked, "altstack": alt, "handler_ran": ran });
    facts.add("mechanism", ran == expected && (ran || end.starts_with("signal 11")), text, data);
    Ok(())
}
