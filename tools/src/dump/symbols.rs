//! The source behind addresses, of programs that whoever asks names: no path that a dump has is opened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use super::{Deadline, Dump, Exceeded, Module};

/// Where an address is in the source.
#[derive(Clone, Debug)]
pub struct Place {
    /// The function, demangled; `?` if it has no name.
    pub function: String,
    /// `file:line`, relative to the root where it is below it; empty if it is not known.
    pub line: String,
}

/// Finds the source behind addresses of a program, as it was linked.
pub struct Source {
    loader: addr2line::Loader,
    /// Source files below it are shown relative to it.
    root: PathBuf,
}

/// A program's debug information cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
pub struct NoSource {
    path: PathBuf,
    error: String,
}

impl Source {
    /// Reads a program's debug information.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(path: &Path, root: &Path) -> Result<Self, NoSource> {
        let no = |error: &dyn ToString| NoSource { path: path.to_owned(), error: error.to_string() };
        let loader = addr2line::Loader::new(path).map_err(|error| no(&error))?;
        Ok(Self { loader, root: root.to_owned() })
    }

    /// The function at an address and those that it was inlined in, innermost first.
    pub fn places(&self, address: u64) -> Vec<Place> {
        let mut places = Vec::new();
        let symbol = || self.loader.find_symbol(address).map(demangle);
        if let Ok(mut frames) = self.loader.find_frames(address) {
            while let Ok(Some(frame)) = frames.next() {
                let name = frame.function.as_ref().and_then(|name| Some(name.demangle().ok()?.into_owned()));
                let location = frame.location;
                let line =
                    location.and_then(|l| Some(format!("{}:{}", self.short(l.file?), l.line?))).unwrap_or_default();
                let name = name.or_else(symbol).unwrap_or_else(|| "?".to_owned());
                places.push(Place { function: plain(&name), line });
            }
        }
        if places.is_empty() {
            let name = symbol().unwrap_or_else(|| "?".to_owned());
            places.push(Place { function: plain(&name), line: String::new() });
        }
        // What was inlined from Rust's own library says nothing of the guest.
        let last = places.len() - 1;
        let own = |(i, place): (usize, &Place)| i == last || !place.line.contains("/library/core/src/");
        let keep: Vec<_> = places.iter().enumerate().map(own).collect();
        let mut keep = keep.into_iter();
        places.retain(|_| keep.next().unwrap_or(true));
        places
    }

    /// A path as the project's users know it.
    fn short(&self, file: &str) -> String {
        let inside = Path::new(file).strip_prefix(&self.root).ok();
        inside.map_or_else(|| file.to_owned(), |path| path.display().to_string())
    }
}

/// A symbol's name in the source's words.
pub fn demangle(symbol: &str) -> String {
    plain(&addr2line::demangle_auto(symbol.into(), None))
}

/// A function's name without the hash that the compiler adds.
fn plain(name: &str) -> String {
    match name.rsplit_once("::h") {
        Some((plain, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => plain.to_owned(),
        _ => name.to_owned(),
    }
}

/// Programs whose source is known.
#[derive(Default)]
pub struct Symbols(Vec<Program>);

struct Program {
    path: PathBuf,
    build_id: Vec<u8>,
    source: Source,
    /// Whether it is loaded anywhere, rather than where it was linked.
    relocatable: bool,
}

impl Symbols {
    /// Adds a program or library, whose addresses are then told.
    ///
    /// # Errors
    /// It cannot be read, or is no ELF file.
    pub fn add(&mut self, path: &Path, root: &Path) -> Result<(), NoSource> {
        use object::{Object, ObjectKind};
        let no = |error: &dyn ToString| NoSource { path: path.to_owned(), error: error.to_string() };
        let bytes = std::fs::read(path).map_err(|error| no(&error))?;
        let object = object::File::parse(&*bytes).map_err(|error| no(&error))?;
        let build_id = object.build_id().ok().flatten().unwrap_or_default().to_vec();
        let relocatable = object.kind() == ObjectKind::Dynamic;
        let source = Source::of(path, root)?;
        self.0.push(Program { path: path.to_owned(), build_id, source, relocatable });
        Ok(())
    }

    /// Where an address of a dump is in the source; empty if it is in none of these programs.
    pub fn places(&self, dump: &Dump, address: u64) -> Vec<Place> {
        self.places_in(&dump.modules, address)
    }

    fn places_in(&self, modules: &[Module], address: u64) -> Vec<Place> {
        let module =
            modules.iter().find(|module| (module.base..module.base.saturating_add(module.size)).contains(&address));
        // A dump without modules is taken to be of the one program that there is, if that is loaded where it was linked.
        let program = match (module, &self.0[..]) {
            (Some(module), all) => all.iter().find(|program| {
                let same_file = program.path.file_name() == Path::new(&module.path).file_name();
                if module.build_id.is_empty() { same_file } else { program.build_id == module.build_id }
            }),
            (None, [only]) if modules.is_empty() && !only.relocatable => Some(only),
            _ => None,
        };
        let Some(program) = program else { return Vec::new() };
        let base = if program.relocatable { module.map_or(0, |module| module.base) } else { 0 };
        program.source.places(address.wrapping_sub(base))
    }
}

/// Where the addresses of a dump's backtraces are in the source.
#[derive(Debug, Default)]
pub struct Names(BTreeMap<u64, Vec<Place>>);

impl Names {
    /// Of programs that are read already. Takes as long as it takes.
    pub fn of(dump: &Dump, symbols: &Symbols) -> Self {
        Self(addresses(dump).into_iter().map(|address| (address, symbols.places(dump, address))).collect())
    }

    /// Reads programs and looks addresses up, up to a deadline. Nobody knows how long one step of that takes with a file that
    /// is made to cost much, so a thread does it, which is left to itself if it is late; what it has found by then is returned.
    ///
    /// # Errors
    /// A program cannot be read; [`Deadline::kept`] says whether there was time enough.
    pub fn within(dump: &Dump, programs: &[PathBuf], root: &Path, deadline: &Deadline) -> (Self, Result<(), NotNamed>) {
        const LOADING: &str = "reading the programs with symbols";
        const LOOKING: &str = "looking up functions and lines";
        let mut names = Self::default();
        if programs.is_empty() {
            return (names, Ok(()));
        }
        let (sender, receiver) = mpsc::channel();
        let (modules, addresses) = (dump.modules.clone(), addresses(dump));
        let (programs, root) = (programs.to_vec(), root.to_owned());
        thread::spawn(move || {
            let mut symbols = Symbols::default();
            let loaded = programs.iter().try_for_each(|path| symbols.add(path, &root));
            // An error says that nobody waits any more.
            let mut told = sender.send(Told::Loaded(loaded));
            for address in addresses {
                told = told.and_then(|()| sender.send(Told::Place(address, symbols.places_in(&modules, address))));
            }
        });
        let mut doing = LOADING;
        loop {
            let told = match deadline.left() {
                None => receiver.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                Some(left) => receiver.recv_timeout(left),
            };
            match told {
                Ok(Told::Loaded(Ok(()))) => doing = LOOKING,
                Ok(Told::Loaded(Err(error))) => return (names, Err(error.into())),
                Ok(Told::Place(address, places)) => _ = names.0.insert(address, places),
                Err(mpsc::RecvTimeoutError::Disconnected) => return (names, Ok(())),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    deadline.passed(doing);
                    return (names, deadline.kept().map_err(NotNamed::from));
                }
            }
        }
    }

    /// Where an address is; empty if nobody knows.
    pub fn places(&self, address: u64) -> &[Place] {
        self.0.get(&address).map_or(&[], Vec::as_slice)
    }
}

/// What the thread that looks things up says.
enum Told {
    Loaded(Result<(), NoSource>),
    Place(u64, Vec<Place>),
}

/// Not all addresses have their names.
#[derive(Debug, thiserror::Error)]
pub enum NotNamed {
    /// A program cannot be read.
    #[error(transparent)]
    NoSource(#[from] NoSource),
    /// It took too long.
    #[error(transparent)]
    Exceeded(#[from] Exceeded),
}

/// The addresses that a report names.
fn addresses(dump: &Dump) -> Vec<u64> {
    let of = |thread| dump.backtrace_of(thread).into_iter().enumerate().map(|(i, address)| called(i, address));
    dump.threads.iter().flat_map(of).collect()
}

/// The address to look up for a frame of a backtrace: a return address is behind the call.
pub(super) fn called(i: usize, address: u64) -> u64 {
    if i == 0 { address } else { address.wrapping_sub(1) }
}
