//! A [`Dump`] as text, for people: what happened, where, and what is known besides.

use std::fmt::{self, Display, Write};

use super::symbols::{Names, Symbols, called};
use super::{Dump, Origin, Thread};

/// The report. `symbols` tells functions, files and lines, as far as it knows the programs.
pub fn write(dump: &Dump, symbols: &Symbols) -> String {
    write_with(dump, &Names::of(dump, symbols))
}

/// The report, with functions, files and lines that are known already.
pub fn write_with(dump: &Dump, names: &Names) -> String {
    let mut text = String::new();
    // A string takes everything.
    let _ = all(&mut text, dump, names);
    text
}

fn all(out: &mut String, dump: &Dump, names: &Names) -> fmt::Result {
    writeln!(out, "process {} ({}), by its {}", dump.process, super::arch_name(dump.arch), dump.way.word())?;
    match &dump.exception {
        Some(e) => {
            write!(out, "signal {} ({})", e.signal, super::signal_name(e.signal))?;
            if let Some(code) = e.code {
                write!(out, ", code {code}")?;
            }
            writeln!(out, ", address {:#x}, program counter {:#x}, in thread {}", e.address, e.pc, e.thread)?;
            writeln!(out, "  {} [{}]", e.class.describe(), e.origin.word())?;
            if let Some((nr, args)) = e.denied {
                writeln!(out, "  denied call: {}", call(dump, nr, &args))?;
            }
        }
        None => writeln!(out, "nothing says what ended it")?,
    }
    for thread in &dump.threads {
        self::thread(out, dump, thread, names)?;
    }
    section(out, "last brokered calls, oldest first [guest]", &dump.calls, |c| {
        let result = c.result.map_or("under way".to_owned(), |result| result.to_string());
        format!("{} = {result}", call(dump, c.nr.into(), &c.args))
    })?;
    section(out, "last refusals, oldest first [supervisor]", &dump.refusals, |r| {
        let path = if r.path.is_empty() { String::new() } else { format!(" \"{}\"", super::clean(&r.path)) };
        format!("{}{path}: error {}, by {}", call(dump, r.nr.into(), &r.args), r.errno, r.rule)
    })?;
    section(out, "annotations", &dump.annotations, |(origin, key, value)| {
        format!("{key} = {value} [{}]", origin.word())
    })?;
    section(out, "self-check", &dump.self_check, |(what, found)| format!("{what}: {found}"))?;
    section(out, "modules", &dump.modules, |m| {
        format!("{:#x} to {:#x} {} {}", m.base, m.base.saturating_add(m.size), m.path, hex::encode(&m.build_id))
    })?;
    section(out, "memory", &dump.memory, |m| format!("{:#x}, {} bytes", m.address, m.bytes.len()))?;
    section(out, "missing", &dump.missing, Clone::clone)
}

fn section<T, D: Display>(out: &mut String, title: &str, all: &[T], line: impl Fn(&T) -> D) -> fmt::Result {
    if all.is_empty() {
        return Ok(());
    }
    writeln!(out, "{title}:")?;
    all.iter().try_for_each(|one| writeln!(out, "  {}", line(one)))
}

fn call(dump: &Dump, nr: u64, args: &[u64; 6]) -> String {
    let args: Vec<String> = args.iter().map(|arg| format!("{arg:#x}")).collect();
    format!("{}({})", super::call_name(dump.arch, nr), args.join(", "))
}

fn thread(out: &mut String, dump: &Dump, thread: &Thread, sources: &Names) -> fmt::Result {
    let name = if thread.name.is_empty() { String::new() } else { format!(" \"{}\"", thread.name) };
    let origin = if thread.origin == Origin::Guest { " [guest]" } else { "" };
    writeln!(out, "thread {}{name}, {}:{origin}", thread.id, thread.role.word())?;
    let registers = match &thread.registers {
        Ok(registers) => registers,
        Err(why) => return writeln!(out, "  no registers: {why}"),
    };
    for (i, address) in dump.backtrace_of(thread).into_iter().enumerate() {
        let places = sources.places(called(i, address));
        if places.is_empty() {
            writeln!(out, "  #{i:<2} {address:#x}")?;
        }
        for place in places {
            writeln!(out, "  #{i:<2} {address:#x} {} {}", place.function, place.line)?;
        }
    }
    let names = dump.arch.registers().iter().zip(&registers.general);
    let all: Vec<String> = names.map(|(name, value)| format!("{name}={value:#x}")).collect();
    all.chunks(6).try_for_each(|some| writeln!(out, "  {}", some.join(" ")))?;
    for (name, bytes) in dump.pointed_to(thread, super::POINTED) {
        let plain = |b: &u8| if matches!(b, b' '..=b'~') { char::from(*b) } else { '.' };
        let shown: String = bytes.iter().map(plain).collect();
        let (hex, width) = (hex::encode(bytes), 2 * super::POINTED);
        writeln!(out, "  {name:>3} -> {hex:<width$}  {shown}")?;
    }
    Ok(())
}
