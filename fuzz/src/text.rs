//! Policies as text: what is read is what a builder makes of the same steps, and what is wrong has its place in the text.

use std::collections::BTreeSet;
use std::fmt::Write;

use arbitrary::{Result, Unstructured};
use ascetic::policy::{Policy, Rights};
use ascetic_tools::{Error, Mistake, Text};
use toml::Value;

use crate::spec::{self, Spec, Step};

/// The most bytes of a text: longer ones show nothing that shorter ones do not.
const LONGEST: usize = 1 << 14;

/// Reads a text, or steps of building a policy (`spec`) as the text that says them.
///
/// # Errors
/// There are too few bytes.
pub fn check(bytes: &[u8]) -> Result<()> {
    match bytes.split_first() {
        Some((b'#', _)) => read(bytes),
        Some((_, rest)) => return built(rest),
        None => {}
    }
    Ok(())
}

/// Any text: it is read, or what is wrong is told.
fn read(bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes.get(..LONGEST).unwrap_or(bytes)) else { return };
    match Text::parse("p", source) {
        Ok(text) => {
            let shown = text.to_string();
            assert!(shown.lines().all(|line| !line.chars().any(char::is_control)), "{shown:?}");
            let policy = text.policy();
            assert!(policy.roots().count() <= ascetic::policy::ROOTS, "{policy:?}");
        }
        Err(error) => places(source, &error),
    }
}

/// Each mistake is where it is said to be.
fn places(source: &str, error: &Error) {
    let Error::Wrong(mistakes) = error else { panic!("{error}") };
    assert!(!mistakes.is_empty(), "{source}");
    for mistake in mistakes {
        let Mistake { line, column, text, what, .. } = mistake;
        assert!(*line >= 1 && *column >= 1 && !what.is_empty(), "{mistake:?}");
        // The end of a text is behind its last line.
        let there = source.split('\n').nth(line - 1).unwrap_or_else(|| panic!("{mistake:?}\n{source}"));
        assert!(*column <= there.chars().count() + 1, "{mistake:?}\n{source}");
        assert!(!text.chars().any(char::is_control) && text.chars().count() <= 61, "{mistake:?}");
        // What is quoted begins there.
        let quoted: String = text.trim_end_matches('…').to_owned();
        let rest: String =
            there.chars().skip(column - 1).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        assert!(rest.starts_with(&quoted), "{mistake:?}\n{source}");
    }
}

/// Steps that a text can say, in the order in which a text is read.
fn sayable(spec: Spec) -> Vec<Step> {
    let is = |wanted: fn(&Step) -> bool| spec.0.iter().any(wanted);
    let memory = is(|step| matches!(step, Step::Memory));
    let executable = memory && is(|step| matches!(step, Step::Executable));
    let rooted = is(|step| matches!(step, Step::Root { path, .. } if path.to_str().is_ok()));
    let direct: BTreeSet<u32> = spec
        .0
        .iter()
        .filter_map(|step| if let Step::Direct(call) = step { Some(*call as u32) } else { None })
        .collect();
    let families: BTreeSet<u16> = spec
        .0
        .iter()
        .filter_map(|step| if let Step::Family { family, .. } = step { Some(*family) } else { None })
        .collect();
    let mut seen = BTreeSet::new();
    let mut steps: Vec<(u8, String, Step)> = Vec::new();
    for step in spec.0 {
        // When it is read; what there is one of.
        let (turn, name) = match &step {
            Step::DefaultErrno(_) => (0, String::new()),
            Step::Ordinary => (1, String::new()),
            Step::Direct(call) => (2, call.name().to_owned()),
            Step::Refuse(call, _) if !direct.contains(&(*call as u32)) => (3, call.name().to_owned()),
            Step::Root { path, exact, .. } => {
                let Ok(path) = path.to_str() else { continue };
                if !seen.insert(format!("path {path}")) {
                    continue;
                }
                (4 + u8::from(*exact), String::new())
            }
            Step::NoLinks if rooted => (6, String::new()),
            Step::LocksAndFlags if rooted => (7, String::new()),
            Step::Memory => (8, String::new()),
            Step::Executable if memory => (9, String::new()),
            Step::WXorX if memory => (10, String::new()),
            Step::Signals => (11, String::new()),
            // A table's keys come in their own order.
            Step::Family { family, .. } => (12, family.to_string()),
            Step::Protocol(family, protocol) if families.contains(family) => (13, format!("{family} {protocol}")),
            Step::Listen if !families.is_empty() => (14, String::new()),
            // Lower levels have options whose values have pointers.
            Step::Option(level @ 64.., name) if !families.is_empty() => (15, format!("{level} {name}")),
            Step::Ioctl(number) => (16, number.to_string()),
            Step::Threads(_) => (17, String::new()),
            _ => continue,
        };
        if !matches!(step, Step::Root { .. }) && !seen.insert(format!("{turn} {name}")) {
            continue;
        }
        let step = match step {
            Step::Root { path, rights, exact } if !executable => {
                let rest = [Rights::READ, Rights::WRITE, Rights::CREATE].into_iter().filter(|right| rights.has(*right));
                Step::Root { path, rights: rest.fold(Rights::NONE, Rights::and), exact }
            }
            Step::Family { family, addresses } => {
                let mut known = BTreeSet::new();
                let fits = |bytes: &Vec<u8>| bytes.starts_with(&family.to_ne_bytes()) && bytes.len() <= 128;
                let addresses = addresses.into_iter().filter(|bytes| fits(bytes) && known.insert(bytes.clone()));
                Step::Family { family, addresses: addresses.collect() }
            }
            step => step,
        };
        // The order of what is sorted by name is that of the name; of all else, that in which it came.
        steps.push((turn, if turn == 12 { name } else { String::new() }, step));
    }
    steps.sort_by(|(a, b, _), (c, d, _)| (a, b).cmp(&(c, d)));
    steps.into_iter().map(|(.., step)| step).collect()
}

/// The text that says these steps.
fn said(steps: &[Step]) -> String {
    let (mut top, mut tables) = (String::new(), String::new());
    let quoted = |text: &str| Value::String(text.to_owned()).to_string();
    let list = |items: Vec<String>| format!("[{}]", items.join(", "));
    let all = |of: fn(&Step) -> Option<String>| list(steps.iter().filter_map(of).collect());
    let _ = writeln!(
        top,
        "direct = {}",
        all(|s| if let Step::Direct(call) = s { Some(format!("{:?}", call.name())) } else { None })
    );
    let _ = writeln!(top, "ioctls = {}", all(|s| if let Step::Ioctl(n) = s { Some(n.to_string()) } else { None }));
    let pair = all(|s| if let Step::Protocol(a, b) = s { Some(format!("[{a}, {b}]")) } else { None });
    let _ = writeln!(top, "socket_protocols = {pair}");
    let pair = all(|s| if let Step::Option(a, b) = s { Some(format!("[{a}, {b}]")) } else { None });
    let _ = writeln!(top, "socket_options = {pair}");
    let (mut refuse, mut sockets) = (String::from("[refuse]\n"), String::from("[sockets]\n"));
    for step in steps {
        let _ = match step {
            Step::Ordinary => writeln!(top, "ordinary = true"),
            Step::DefaultErrno(errno) => writeln!(top, "default_errno = {errno}"),
            Step::NoLinks => writeln!(top, "no_links = true"),
            Step::LocksAndFlags => writeln!(top, "locks_and_flags = true"),
            Step::Memory => writeln!(top, "memory = true"),
            Step::Executable => writeln!(top, "executable = true"),
            Step::WXorX => writeln!(top, "w_xor_x = true"),
            Step::Listen => writeln!(top, "listen = true"),
            Step::Signals => writeln!(top, "signals = true"),
            Step::Threads(threads) => writeln!(tables, "[limits]\nthreads = {threads}"),
            Step::Refuse(call, errno) => writeln!(refuse, "{} = {errno}", call.name()),
            Step::Root { path, rights, exact } => {
                let names = [
                    ("read", Rights::READ),
                    ("write", Rights::WRITE),
                    ("create", Rights::CREATE),
                    ("execute", Rights::EXECUTE),
                ];
                let names = names.iter().filter(|(_, right)| rights.has(*right)).map(|(name, _)| format!("{name:?}"));
                let rights = list(names.collect());
                let path = quoted(path.to_str().unwrap_or_default());
                writeln!(tables, "[[{}]]\npath = {path}\nrights = {rights}", if *exact { "file" } else { "root" })
            }
            Step::Family { family, addresses } => {
                let hex =
                    |bytes: &Vec<u8>| bytes.iter().fold("hex:".to_owned(), |text, byte| format!("{text}{byte:02x}"));
                writeln!(sockets, "{family} = {}", list(addresses.iter().map(|bytes| quoted(&hex(bytes))).collect()))
            }
            _ => Ok(()),
        };
    }
    top + &refuse + &sockets + &tables
}

/// Steps by the builder, and as text.
fn built(bytes: &[u8]) -> Result<()> {
    let spec: Spec = Unstructured::new(bytes).arbitrary()?;
    let spec = Spec(sayable(spec));
    let lists = spec.lists();
    let mut policy = Policy::new();
    let mut refused = false;
    let mut model = crate::model::Model::new();
    for (step, addresses) in spec.0.iter().zip(&lists) {
        if model.is_full_for(step) {
            refused = true;
            break;
        }
        model.build(step);
        match spec::build(&policy, step, addresses) {
            Some(next) => policy = next,
            None => refused = true,
        }
    }
    let source = said(&spec.0);
    match Text::parse("p", &source) {
        Ok(text) => {
            assert!(!refused, "a builder refuses this:\n{source}");
            assert_eq!(format!("{:?}", text.policy()), format!("{policy:?}"), "{source}");
        }
        Err(error) => {
            assert!(refused, "a builder accepts this:\n{source}\n{error}");
            places(&source, &error);
        }
    }
    Ok(())
}
