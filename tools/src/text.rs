//! What a text says, and the policy that it is.

use std::ffi::CString;
use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use ascetic::abi::{PAIRS, ROW_ALLOW};
use ascetic::direct::DIRECT;
use ascetic::policy::{BadRoot, FAMILIES, Family, LIST, Limits, Policy, Rights, Root};
use ascetic::sys::{Errno, Sysno};
use toml::de::DeTable;

use crate::address;
use crate::error::{Error, Mistake};
use crate::names::{self, ERRNO_MAX, IOCTLS, LEVELS, OPTIONS, POINTERS, RIGHTS, find, name_of, near};
use crate::reader::{Key, Reader, Value};

/// The architecture that texts are read for: the one that this is compiled for.
pub(crate) const ARCH: &str = if cfg!(target_arch = "x86") { "i686" } else { "x86_64" };

const KEYS: [&str; 19] = [
    "default_errno",
    "ordinary",
    "direct",
    "refuse",
    "root",
    "file",
    "no_links",
    "locks_and_flags",
    "memory",
    "executable",
    "w_xor_x",
    "sockets",
    "socket_protocols",
    "listen",
    "socket_options",
    "ioctls",
    "signals",
    "limits",
    "arch",
];

/// A policy as a text says it, checked. It owns what [`policy`](Self::policy) borrows.
#[derive(Debug)]
pub struct Text<'a> {
    default_errno: Option<u32>,
    ordinary: bool,
    direct: Vec<Sysno>,
    refuse: Vec<(Sysno, u32)>,
    roots: Vec<(CString, Rights, bool)>,
    no_links: bool,
    locks_and_flags: bool,
    memory: bool,
    executable: bool,
    w_xor_x: bool,
    sockets: Vec<Sockets>,
    protocols: Vec<(u16, u32)>,
    listen: bool,
    options: Vec<(u32, u32)>,
    ioctls: Vec<u32>,
    signals: bool,
    limits: Limits,
    /// The lists of addresses as a policy wants them: they borrow from `sockets`, and so are made once that stays in place.
    lists: OnceLock<Vec<Vec<&'a [u8]>>>,
}

/// An address family, its name, and its addresses: as they are written, and as a policy has them.
#[derive(Debug)]
struct Sockets {
    family: u16,
    name: String,
    written: Vec<String>,
    addresses: Vec<Vec<u8>>,
}

impl<'a> Text<'a> {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or something is wrong with the text.
    pub fn read(file: &Path) -> Result<Self, Error> {
        let bytes = fs::read(file).map_err(|source| Error::Unreadable { file: file.to_owned(), source })?;
        let name = file.display().to_string();
        match std::str::from_utf8(&bytes) {
            Ok(source) => Self::parse(&name, source),
            Err(error) => {
                let good = String::from_utf8_lossy(bytes.get(..error.valid_up_to()).unwrap_or(&[]));
                let what = "a policy is UTF-8, and the next byte is not".to_owned();
                Err(Error::Wrong(vec![Mistake::new(&name, &good, good.len()..good.len(), what, None)]))
            }
        }
    }

    /// Reads a text. `file` is the name that errors begin with.
    ///
    /// # Errors
    ///
    /// Something is wrong with the text: all of it is told, each with its place.
    pub fn parse(file: &str, source: &str) -> Result<Self, Error> {
        let mut reader = Reader::new(file, source);
        let mut text = Self {
            default_errno: None,
            ordinary: false,
            direct: Vec::new(),
            refuse: Vec::new(),
            roots: Vec::new(),
            no_links: false,
            locks_and_flags: false,
            memory: false,
            executable: false,
            w_xor_x: false,
            sockets: Vec::new(),
            protocols: Vec::new(),
            listen: false,
            options: Vec::new(),
            ioctls: Vec::new(),
            signals: false,
            limits: Policy::new().limits_of(),
            lists: OnceLock::new(),
        };
        if let Some(document) = reader.document() {
            text.document(&mut reader, document.get_ref());
        }
        reader.finish(text)
    }

    /// The policy. It borrows this text, which can then no longer move: keep the text beside the sandbox.
    pub fn policy(&'a self) -> Policy<'a> {
        let list = |sockets: &'a Sockets| sockets.addresses.iter().map(Vec::as_slice).collect();
        self.build(self.lists.get_or_init(|| self.sockets.iter().map(list).collect()))
    }

    /// None of the builder's panics can happen: what they are about was checked when the text was read.
    fn build<'p>(&'p self, lists: &'p [Vec<&'p [u8]>]) -> Policy<'p> {
        let mut policy = self.with_roots();
        if let Some(errno) = self.default_errno {
            policy = policy.default_errno(errno);
        }
        if self.ordinary {
            policy = policy.ordinary();
        }
        for call in &self.direct {
            policy = policy.direct(*call);
        }
        for (call, errno) in &self.refuse {
            policy = policy.refuse(*call, *errno);
        }
        if self.no_links {
            policy = policy.no_links();
        }
        if self.locks_and_flags {
            policy = policy.locks_and_flags();
        }
        if self.memory {
            policy = policy.memory();
        }
        if self.executable {
            policy = policy.executable();
        }
        if self.w_xor_x {
            policy = policy.w_xor_x();
        }
        if self.signals {
            policy = policy.signals();
        }
        for (sockets, addresses) in self.sockets.iter().zip(lists) {
            policy = policy.family(Family { family: sockets.family, addresses });
        }
        for (family, protocol) in &self.protocols {
            policy = policy.protocol(*family, *protocol);
        }
        if self.listen {
            policy = policy.listen();
        }
        for (level, name) in &self.options {
            policy = policy.option(*level, *name);
        }
        for number in &self.ioctls {
            policy = policy.ioctl(*number);
        }
        policy.limits(self.limits)
    }

    fn document(&mut self, reader: &mut Reader<'_>, document: &DeTable<'_>) {
        reader.only(document, &KEYS);
        if let Some(arch) = document.get("arch") {
            check_arch(reader, arch);
        }
        self.default_errno = document.get("default_errno").and_then(|value| errno(reader, value));
        if let Some(value) = document.get("direct") {
            self.direct(reader, value);
        }
        if let Some(table) = document.get("refuse").and_then(|value| reader.table(value)) {
            for (key, value) in table {
                self.refuse(reader, key, value);
            }
        }
        let mut execute = Vec::new();
        for (key, exact) in [("root", false), ("file", true)] {
            let Some(value) = document.get(key) else { continue };
            for value in reader.array(value, &format!("tables that begin with [[{key}]]")) {
                self.root(reader, value, exact, &mut execute);
            }
        }
        let mut switch = |key| document.get(key).and_then(|value| reader.boolean(value)).unwrap_or(false);
        self.ordinary = switch("ordinary");
        self.no_links = switch("no_links");
        self.locks_and_flags = switch("locks_and_flags");
        self.memory = switch("memory");
        self.executable = switch("executable");
        self.w_xor_x = switch("w_xor_x");
        self.signals = switch("signals");
        self.listen = switch("listen");
        // What is there but wrong is told already, and is no reason for another mistake.
        let memory = document.get("memory").is_some_and(|value| value.get_ref().as_bool() != Some(false));
        let roots = document.contains_key("root") || document.contains_key("file");
        let sockets =
            document.get("sockets").is_some_and(|value| value.get_ref().as_table().is_none_or(|t| !t.is_empty()));
        let some = |key| {
            let list = document.get(key).and_then(|value| value.get_ref().as_array());
            list.is_some_and(|list| !list.is_empty())
        };
        for (key, set, needed, there) in [
            ("executable", self.executable, "memory = true", memory),
            ("w_xor_x", self.w_xor_x, "memory = true", memory),
            ("no_links", self.no_links, "[[root]] or [[file]]", roots),
            ("locks_and_flags", self.locks_and_flags, "[[root]] or [[file]]", roots),
            ("socket_protocols", some("socket_protocols"), "[sockets]", sockets),
            ("listen", self.listen, "[sockets]", sockets),
            ("socket_options", some("socket_options"), "[sockets]", sockets),
        ] {
            if let Some((key, _)) = document.get_key_value(key).filter(|_| set && !there) {
                reader.wrong(key.span(), format_args!("has no effect without {needed}"));
            }
        }
        let opened = self.roots.iter().filter(|(_, rights, _)| *rights != Rights::NONE);
        let all = opened.map(|(_, rights, _)| *rights).all(|rights| rights.has(Rights::EXECUTE));
        for span in execute.into_iter().filter(|_| !self.executable) {
            if !memory {
                reader.wrong(span, "has no effect without memory = true");
            } else if !all {
                // A mapping's file is known by its descriptor only, and that can be of any root.
                reader.wrong(span, "has no effect unless every root and file has it, or executable = true");
            }
        }
        if let Some(table) = document.get("sockets").and_then(|value| reader.table(value)) {
            for (key, value) in table {
                self.family(reader, key, value);
            }
        }
        if let Some(value) = document.get("socket_protocols") {
            for value in reader.array(value, "an array of pairs of family and protocol") {
                self.protocol(reader, value);
            }
        }
        if let Some(value) = document.get("socket_options") {
            for value in reader.array(value, "an array of pairs of level and name") {
                self.option(reader, value);
            }
        }
        if let Some(value) = document.get("ioctls") {
            for value in reader.array(value, "an array of ioctls") {
                self.ioctl(reader, value);
            }
        }
        if let Some(table) = document.get("limits").and_then(|value| reader.table(value)) {
            self.limits(reader, table);
        }
    }

    fn direct(&mut self, reader: &mut Reader<'_>, value: &Value<'_>) {
        for value in reader.array(value, "an array of calls") {
            let Some(name) = reader.string(value, "a call's name") else { continue };
            let Ok(call) = name.parse::<Sysno>() else {
                let near = near(name, DIRECT.iter().map(|row| row.call.name()));
                reader.wrong_near(value.span(), format_args!("no system call of {ARCH}"), near);
                continue;
            };
            match Policy::new().try_direct(call) {
                Ok(_) => reader.add(&mut self.direct, call, value.span(), DIRECT.len(), "direct calls"),
                Err(error) => reader.wrong(value.span(), error),
            }
        }
    }

    fn refuse(&mut self, reader: &mut Reader<'_>, key: &Key<'_>, value: &Value<'_>) {
        let errno = errno(reader, value);
        let Ok(call) = key.get_ref().parse::<Sysno>() else {
            let near = near(key.get_ref(), Sysno::iter().map(|call| call.name()));
            return reader.wrong_near(key.span(), format_args!("no system call of {ARCH}"), near);
        };
        if self.direct.contains(&call) {
            return reader.wrong(key.span(), "is direct, and cannot be refused, too");
        }
        if let Some(errno) = errno {
            self.refuse.push((call, errno));
        }
    }

    fn root(&mut self, reader: &mut Reader<'_>, value: &Value<'_>, exact: bool, execute: &mut Vec<Range<usize>>) {
        let Some(table) = reader.table(value) else { return };
        reader.only(table, &["path", "rights"]);
        let mut required = |key| {
            if table.get(key).is_none() {
                reader.wrong(value.span(), format_args!("has no {key}"));
            }
            table.get(key)
        };
        let (path, rights) = (required("path"), required("rights"));
        let rights = rights.map(|value| {
            let mut seen = Vec::new();
            for value in reader.array(value, "an array of rights") {
                let Some(name) = reader.string(value, "a right") else { continue };
                match find(&RIGHTS, name) {
                    Some(right) => {
                        if right == Rights::EXECUTE && !seen.contains(&right) {
                            execute.push(value.span());
                        }
                        reader.add(&mut seen, right, value.span(), RIGHTS.len(), "rights");
                    }
                    None => {
                        let near = near(name, RIGHTS.map(|(name, _)| name));
                        reader.wrong_near(value.span(), "no right: there are read, write, create and execute", near);
                    }
                }
            }
            seen.into_iter().fold(Rights::NONE, Rights::and)
        });
        let Some((value, name)) = path.and_then(|value| Some((value, reader.string(value, "a path")?))) else { return };
        let Ok(path) = CString::new(name) else { return reader.wrong(value.span(), "a path has no zero byte") };
        let rights = rights.unwrap_or(Rights::NONE);
        if self.roots.iter().any(|(known, ..)| *known == path) {
            return reader.wrong(value.span(), "is there twice");
        }
        match self.with_roots().try_root(Root { path: &path, rights, exact }) {
            Ok(_) => {}
            Err(BadRoot::TooMany) => {
                return reader.wrong(value.span(), format_args!("one too many: {}", BadRoot::TooMany));
            }
            Err(error) => return reader.wrong(value.span(), error),
        }
        self.roots.push((path, rights, exact));
    }

    /// The roots that were read, as a policy.
    fn with_roots(&self) -> Policy<'_> {
        let mut policy = Policy::new();
        for (path, rights, exact) in &self.roots {
            policy = if *exact { policy.file(path, *rights) } else { policy.root(path, *rights) };
        }
        policy
    }

    fn family(&mut self, reader: &mut Reader<'_>, key: &Key<'_>, value: &Value<'_>) {
        let name = key.get_ref().as_ref();
        let number = name.parse().ok().filter(|number: &u16| number.to_string() == name);
        let Some(family) = find(&names::FAMILIES, name).or(number) else {
            let known = names::FAMILIES.map(|(name, _)| name);
            let what = format!("no address family: there are {}, and numbers", known.join(", "));
            return reader.wrong_near(key.span(), what, near(name, known));
        };
        if self.sockets.iter().any(|known| known.family == family) {
            return reader.wrong(key.span(), "the family is there twice, as a name and as a number");
        }
        if self.sockets.len() == FAMILIES {
            return reader.wrong(key.span(), format_args!("one too many: a policy has {FAMILIES} families at most"));
        }
        let mut sockets = Sockets { family, name: name.to_owned(), written: Vec::new(), addresses: Vec::new() };
        for value in reader.array(value, "an array of addresses") {
            let Some(written) = reader.string(value, "an address") else { continue };
            match address::parse(family, written) {
                Ok(bytes) => {
                    let family = Family { family, addresses: &[&bytes] };
                    if let Err(error) = self.with_roots().try_family(family) {
                        reader.wrong(value.span(), error);
                        continue;
                    }
                    sockets.written.push(written.to_owned());
                    reader.add(&mut sockets.addresses, bytes, value.span(), usize::MAX, "addresses");
                }
                Err((what, near)) => reader.wrong_near(value.span(), what, near),
            }
        }
        self.sockets.push(sockets);
    }

    fn protocol(&mut self, reader: &mut Reader<'_>, value: &Value<'_>) {
        let Some([family, protocol]) = reader.pair(value, "family and protocol") else { return };
        let span = family.span();
        let family = reader.listed(family, ("an", "address family"), u16::MAX.into(), &names::FAMILIES);
        let protocol = reader.number(protocol, "a protocol's number", 0, u32::MAX.into());
        let (Some(family), Some(protocol)) = (family, protocol) else { return };
        let family = family as u16;
        if !self.sockets.iter().any(|known| known.family == family) {
            // Without any that is told already.
            if !self.sockets.is_empty() {
                reader.wrong(span, "has no effect: [sockets] does not have the family");
            }
            return;
        }
        reader.add(&mut self.protocols, (family, protocol as u32), value.span(), LIST, "protocols");
    }

    fn option(&mut self, reader: &mut Reader<'_>, value: &Value<'_>) {
        let Some([level, option]) = reader.pair(value, "level and name") else { return };
        let level = reader.listed(level, ("a", "level"), u32::MAX, &LEVELS);
        let Some(level) = level else { return };
        let span = option.span();
        let number = reader.name_or_number(option, "an option's name or number", (0, u32::MAX), |reader, name| {
            option_number(reader, level, name, span.clone())
        });
        let Some(number) = number else { return };
        if POINTERS.iter().any(|(l, _, n)| (*l, *n) == (level, number)) {
            return reader.wrong(span, "the option's value has pointers, which the broker does not look at");
        }
        reader.add(&mut self.options, (level, number), value.span(), LIST, "socket options");
    }

    fn ioctl(&mut self, reader: &mut Reader<'_>, value: &Value<'_>) {
        let number = reader.listed(value, ("an", "ioctl"), u32::MAX, &IOCTLS);
        if let Some(number) = number {
            reader.add(&mut self.ioctls, number, value.span(), LIST, "ioctls");
        }
    }

    fn limits(&mut self, reader: &mut Reader<'_>, table: &DeTable<'_>) {
        reader.only(table, &["threads", "mapped", "descriptors", "calls"]);
        // The builder's 0 is "no limit": here, that is not to say anything.
        let mut limit = |key, most| {
            let value = table.get(key)?;
            reader.number(value, "a number", 1, most).map(|number| number as u32)
        };
        let threads = limit("threads", PAIRS as u64);
        let descriptors = limit("descriptors", u32::MAX.into());
        let calls = limit("calls", u32::MAX.into());
        let mapped = table.get("mapped").and_then(|value| size(reader, value));
        self.limits.threads = threads.unwrap_or(self.limits.threads);
        self.limits.descriptors = descriptors.unwrap_or(self.limits.descriptors);
        self.limits.calls = calls.unwrap_or(self.limits.calls);
        self.limits.mapped = mapped.unwrap_or(self.limits.mapped);
    }
}

/// Call numbers and the calls that may be direct differ between architectures; a text that depends on one can say so.
fn check_arch(reader: &mut Reader<'_>, value: &Value<'_>) {
    match reader.string(value, "an architecture") {
        None => {}
        Some(name) if name == ARCH => {}
        Some("x86_64" | "i686") => reader.wrong(value.span(), format_args!("this program is for {ARCH}")),
        Some(name) => {
            let near = near(name, ["x86_64", "i686"]);
            reader.wrong_near(value.span(), "no architecture: there are x86_64 and i686", near);
        }
    }
}

fn errno(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<u32> {
    reader.name_or_number(value, "an errno's name or number", (1, ERRNO_MAX), |reader, name| {
        let found = names::errnos().find(|(known, _)| *known == name).map(|(_, number)| number);
        if found.is_none() {
            let near = near(name, names::errnos().map(|(name, _)| name));
            reader.wrong_near(value.span(), "no errno", near);
        }
        found
    })
}

fn option_number(reader: &mut Reader<'_>, level: u32, name: &str, span: Range<usize>) -> Option<u32> {
    let all = || OPTIONS.iter().chain(&POINTERS).copied();
    if let Some((_, _, number)) = all().find(|(l, known, _)| (*l, *known) == (level, name)) {
        return Some(number);
    }
    match all().find(|(_, known, _)| *known == name).and_then(|(other, ..)| name_of(&LEVELS, &other)) {
        Some(other) => reader.wrong(span, format_args!("is an option of the level {other}")),
        None => {
            let near = near(name, OPTIONS.iter().filter(|(l, ..)| *l == level).map(|(_, name, _)| *name));
            reader.wrong_near(span, "no option of this level that is known by name; a number is taken, too", near);
        }
    }
    None
}

/// Bytes: a number, or a number and its unit.
fn size(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<usize> {
    const UNITS: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
    let Some(text) = value.get_ref().as_str() else {
        let number = reader.number(value, "bytes, such as 4096 or \"64MiB\"", 1, usize::MAX as u64);
        return number.map(|number| number as usize);
    };
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let (Ok(number), Some(unit)) = (digits.parse::<u64>(), find(&UNITS, unit)) else {
        let letter = unit.trim_start().chars().next().map(|c| c.to_ascii_uppercase());
        let meant = UNITS.iter().find(|(unit, _)| unit.chars().next() == letter);
        let meant = meant.filter(|_| !digits.is_empty()).map(|(unit, _)| format!("{digits}{unit}"));
        reader.wrong_near(value.span(), "expected bytes, such as 4096 or \"64MiB\"; units are KiB to TiB", meant);
        return None;
    };
    let bytes = number.checked_mul(unit).and_then(|bytes| usize::try_from(bytes).ok()).filter(|bytes| *bytes > 0);
    if bytes.is_none() {
        reader.wrong(value.span(), format_args!("expected 1 to {} bytes", usize::MAX));
    }
    bytes
}

/// What the policy allows, for people: a line for each subject.
impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = self.build(&[]);
        let row = |call: &Sysno| policy.rows().get(*call as usize).copied().unwrap_or(0);
        let (direct, others): (Vec<_>, Vec<_>) = Sysno::iter().partition(|call| row(call) & ROW_ALLOW != 0);
        let names = |calls: &[Sysno]| calls.iter().map(|call| call.name()).collect::<Vec<_>>().join(", ");
        writeln!(f, "direct calls: {}", names(&direct))?;

        let default = policy.errno(u32::MAX);
        writeln!(f, "calls that nothing allows: {}", errno_name(default))?;
        let mut special: Vec<i32> = others.iter().map(|call| policy.errno(*call as u32)).collect();
        special.sort_unstable();
        special.dedup();
        for errno in special.into_iter().filter(|errno| *errno != default) {
            let with: Vec<_> = others.iter().copied().filter(|call| policy.errno(*call as u32) == errno).collect();
            writeln!(f, "  but {}: {}", errno_name(errno), names(&with))?;
        }

        for (path, rights, exact) in &self.roots {
            let rights: Vec<_> = RIGHTS.iter().filter(|(_, right)| rights.has(*right)).map(|(name, _)| *name).collect();
            let rights = if rights.is_empty() { "nothing".to_owned() } else { rights.join(", ") };
            writeln!(f, "{} {path:?}: {rights}", if *exact { "file" } else { "folder" })?;
        }
        if !self.roots.is_empty() {
            writeln!(f, "symbolic links in folders: {}followed", if self.no_links { "not " } else { "" })?;
        }
        if self.locks_and_flags {
            writeln!(f, "locks and flags of open files: changed, those of kept descriptors, too")?;
        }
        if self.memory {
            let executable = match (self.executable, self.w_xor_x) {
                (false, _) => "",
                (true, false) => ", executable",
                (true, true) => ", executable or writable",
            };
            writeln!(f, "memory: map, unmap, protect{executable}")?;
        }
        for sockets in &self.sockets {
            let none = sockets.written.is_empty().then_some("no address, pairs only");
            let written = sockets.written.iter().map(|text| text.escape_debug().to_string()).collect::<Vec<_>>();
            writeln!(f, "sockets of {}: {}", sockets.name, none.map_or(written.join(", "), str::to_owned))?;
        }
        for (family, protocol) in &self.protocols {
            let shown = name_of(&names::FAMILIES, family).map_or(family.to_string(), str::to_owned);
            writeln!(f, "sockets of {shown}: protocol {protocol}, too")?;
        }
        if self.listen {
            writeln!(f, "sockets: listen")?;
        }
        for (level, number) in &self.options {
            let shown = name_of(&LEVELS, level).map_or(level.to_string(), str::to_owned);
            let name = OPTIONS.iter().find(|(l, _, n)| (l, n) == (level, number)).map(|(_, name, _)| *name);
            writeln!(f, "socket option: {shown}, {}", name.map_or(number.to_string(), str::to_owned))?;
        }
        for number in &self.ioctls {
            writeln!(f, "ioctl: {}", name_of(&IOCTLS, number).map_or(format!("{number:#x}"), str::to_owned))?;
        }
        if self.signals {
            writeln!(f, "signals: sending to own threads")?;
        }
        let Limits { threads, mapped, descriptors, calls, .. } = self.limits;
        writeln!(f, "threads: {threads}")?;
        for (what, limit) in [
            ("bytes mapped", mapped as u64),
            ("numbers of descriptors, below", descriptors.into()),
            ("calls a second that ask the broker", calls.into()),
        ] {
            match limit {
                0 => writeln!(f, "{what}: no limit")?,
                _ => writeln!(f, "{what}: {limit}")?,
            }
        }
        Ok(())
    }
}

fn errno_name(errno: i32) -> String {
    Errno::new(errno).name().map_or(errno.to_string(), str::to_owned)
}
