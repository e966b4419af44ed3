//! Paths, with the kernel as the judge. There are two trees that are alike. What a guest asks for, the broker and a played T
//! ([`World`](crate::broker::kernel::World)) really do in the one; a plain call is made in the other, unless a walk name by name
//! ([`walk`]) or a right that is not there says that nothing may happen. The result must be the same, and so must both trees.

mod calls;
mod tree;
mod walk;

use std::cell::RefCell;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::slice;

use arbitrary::Unstructured;
use ascetic::deep::{self, Carry};
use ascetic::experiment::simulate;
use ascetic::policy::{self, Policy, Rights};
use ascetic::sandbox::{self, Config, Placement, Sandbox};

use crate::broker::kernel::{self, World};
use crate::model::Root;
use crate::model::paths::{fits, locate};
use calls::{Asked, Buffer, Call};
use tree::Trees;

/// The most requests of an input.
const REQUESTS: usize = 12;
/// Rounds in which a request must be answered.
const PATIENCE: u32 = 64;
/// The most files that stay open.
const OPEN: usize = 4;
/// How often a call is made again that did not know whether `..` stays inside: U does so, too (`openat2(2)`).
const AGAIN: u32 = 256;

const ALL: Rights = Rights::READ.and(Rights::WRITE).and(Rights::CREATE);
/// The roots: folders, and single files, of which one is a link.
const ROOTS: [(&str, Rights, bool); 5] = [
    ("x/link", ALL, true),
    ("r", ALL, false),
    ("w", Rights::READ, false),
    ("q", Rights::READ.and(Rights::CREATE), false),
    ("x/one", ALL, true),
];

/// What there is once for all inputs.
struct Scratch {
    trees: Trees,
    /// With links that are followed, and without.
    policies: [Policy<'static>; 2],
    roots: Vec<Root>,
}

impl Scratch {
    fn new() -> Self {
        let trees = Trees::new();
        let path = |name: &str| trees.bases[0].join(name).as_os_str().as_bytes().to_vec();
        let mut policy = Policy::new();
        for (name, rights, exact) in ROOTS {
            let path = Box::leak(CString::new(path(name)).expect("no NUL").into_boxed_c_str());
            policy = policy.try_root(policy::Root { path, rights, exact }).expect("a root");
        }
        let roots = ROOTS.map(|(name, rights, exact)| Root { path: path(name), rights, exact }).to_vec();
        Self { trees, policies: [policy.clone(), policy.no_links()], roots }
    }
}

thread_local! {
    static SCRATCH: RefCell<Option<Scratch>> = const { RefCell::new(None) };
}

impl World {
    /// A T's call, made for real. The roots' descriptors are before the doorbells of the one pair.
    pub(crate) fn real_call(&self, nr: u32, args: &[usize; 6]) -> usize {
        let page = &self.vault().page;
        let first = page.fd_lo as usize + page.fd_len as usize - 2 - self.roots.len();
        let mut real = args.map(|arg| self.in_verdict(arg).unwrap_or(arg));
        if let Some(root) = args[0].checked_sub(first).and_then(|i| self.roots.get(i)) {
            real[0] = root.as_raw_fd() as usize;
        }
        plain(nr, real)
    }
}

/// The result of a system call, as the kernel returns it.
fn plain(nr: u32, [a, b, c, d, e, f]: [usize; 6]) -> usize {
    // SAFETY: the callers' calls are of files, with buffers that live.
    let result = unsafe { libc::syscall(i64::from(nr), a, b, c, d, e, f) };
    if result == -1 { -std::io::Error::last_os_error().raw_os_error().unwrap_or(0) as usize } else { result as usize }
}

/// Files that the guest has open, and the same files of the other tree.
type Open = Vec<[OwnedFd; 2]>;

/// What may become of a request.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    /// An error, and nothing changes.
    Error,
    /// What a plain call does.
    Plain,
}

/// One input's guest.
struct Guest<'s> {
    trees: &'s mut Trees,
    roots: &'s [Root],
    sandbox: Sandbox<'s>,
    links: bool,
    cwd: Vec<u8>,
    open: Open,
}

extern "C" fn never(_: usize) -> i32 {
    unreachable!("no guest is run")
}

/// Plays an input.
///
/// # Panics
/// What must never be was seen.
pub fn check(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    SCRATCH.with_borrow_mut(|scratch| {
        let Scratch { trees, policies, roots } = scratch.get_or_insert_with(Scratch::new);
        trees.reset();
        let links = first & 1 == 0;
        let policy = &policies[usize::from(!links)];
        let mut world = World::new(&[], policy.clone());
        world.quiet = true;
        for (name, _, exact) in ROOTS {
            let path = trees.bases[0].join(name);
            let folder = if exact { path.parent().expect("a folder").to_owned() } else { path };
            world.roots.push(File::open(folder).expect("a root").into());
        }
        kernel::begin(world);
        simulate(Some(kernel::call));
        let config = Config { placement: Placement::Floating, ..Config::new(policy) };
        let sandbox = sandbox::spawn(&config, never, 0).expect("a sandbox");
        let cwd = std::env::current_dir().expect("a working folder").as_os_str().as_bytes().to_vec();
        let mut guest = Guest { trees, roots, sandbox, links, cwd, open: Vec::new() };
        let mut input = Unstructured::new(bytes);
        for _ in 0..REQUESTS {
            let Ok(asked) = Asked::new(&mut input) else { break };
            guest.play(&asked);
            if input.is_empty() {
                break;
            }
        }
        let Guest { mut sandbox, .. } = guest;
        assert_eq!(sandbox.kill().left, 0);
        simulate(None);
        kernel::with(|world| world.nobody_is_left());
    });
}

impl Guest<'_> {
    /// Has the guest make a call, and makes it plainly.
    fn play(&mut self, asked: &Asked) {
        let base = self.trees.bases[0].as_os_str().as_bytes();
        let paths: Vec<Vec<u8>> = asked.paths.iter().map(|path| path.text(base)).collect();
        let expected = self.expected(asked, &paths);
        let dir = self.dir(asked);
        let told = format!("{asked:?} of {:?} in {:?}", lossy(&paths), lossy(slice::from_ref(&self.cwd)));
        let mut buffers = [Buffer::new(), Buffer::new()];
        let mut result = self.ask(asked, dir.map_or(libc::AT_FDCWD, |fds| fds[0]), &paths, &mut buffers[0]);
        let is_error = |result: usize| result >= -4095isize as usize;
        match expected {
            Expected::Error => assert!(is_error(result), "it must fail: {told}"),
            Expected::Plain => {
                let translated: Vec<Vec<u8>> =
                    paths.iter().enumerate().map(|(i, path)| self.translated(asked, i, path)).collect();
                let dir = dir.map_or(libc::AT_FDCWD, |fds| fds[1]);
                let mut plain = asked.call.make(asked, dir, &translated, &mut buffers[1]);
                if asked.call.opens() && !is_error(result) && !is_error(plain) {
                    // SAFETY: two new descriptors.
                    let fds = [result, plain].map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) });
                    self.compare_open(&fds, &told);
                    self.open.truncate(OPEN - 1);
                    self.open.insert(0, fds.map(far));
                    (result, plain) = (0, 0);
                }
                let either = is_error(result) && is_error(plain) && asked.call.fails_otherwise(&paths);
                assert!(either || result == plain, "{}, not {}: {told}", result as isize, plain as isize);
                if asked.call == Call::Chdir && result == 0 {
                    self.chdir(&paths[0]);
                }
                if !is_error(result) {
                    let [ours, theirs] = [(0, &buffers[0]), (1, &buffers[1])].map(|(i, buffer)| {
                        let text = asked.call.answer(buffer, result);
                        if asked.call.is_text() { self.trees.translate(i, 0, &text) } else { text }
                    });
                    assert_eq!(lossy(&[ours]), lossy(&[theirs]), "what it says: {told}");
                }
            }
        }
        if asked.call.changes(asked) {
            self.trees.compare(!is_error(result), &told);
        }
    }

    /// The descriptors that a request's path is relative to.
    fn dir(&self, asked: &Asked) -> Option<[i32; 2]> {
        let fds = self.open.get(usize::from(asked.dir?))?;
        Some([fds[0].as_raw_fd(), fds[1].as_raw_fd()])
    }

    /// The path for the other tree. One that is not absolute begins where the guest's working folder is.
    fn translated(&self, asked: &Asked, i: usize, path: &[u8]) -> Vec<u8> {
        let relative = !path.starts_with(b"/") && !path.is_empty();
        if relative && asked.call.is_path(i) && self.dir(asked).is_none() {
            let whole = [&self.cwd[..], b"/", path].concat();
            return self.trees.translate(0, 1, &whole);
        }
        self.trees.translate(0, 1, path)
    }

    /// Whether the text, a walk by name, and the roots' rights let the call be made.
    fn expected(&self, asked: &Asked, paths: &[Vec<u8>]) -> Expected {
        let mut targets = Vec::new();
        for (i, path) in paths.iter().enumerate().filter(|(i, _)| asked.call.is_path(*i)) {
            if path.is_empty() || !fits(&self.cwd, path) {
                return Expected::Error;
            }
            if let Some(dir) = self.dir(asked).filter(|_| !path.starts_with(b"/")) {
                let all = self.roots.iter().fold(ALL, |all, root| all.common(root.rights));
                let needs = asked.call.needs(asked, i, Rights::NONE);
                let root = self.trees.open_file(0, dir[0]);
                let root = Path::new(OsStr::from_bytes(&root)).to_owned();
                if !all.has(needs) || walk::leaves(&root, path, asked.call.follows(asked, i), self.links) {
                    return Expected::Error;
                }
                continue;
            }
            let Some(place) = locate(self.roots, &self.cwd, path) else { return Expected::Error };
            let root = &self.trees.bases[0].join(ROOTS[place.root].0);
            if place.exact && asked.call == Call::Readlinkat && self.dir(asked).is_some() {
                return Expected::Error; // T reads it by its folder, which is in no root
            }
            let root = if place.exact { root.parent().expect("a folder") } else { root };
            let links = self.links && !place.exact && !asked.call.is_strict(asked);
            if walk::leaves(root, &place.below, asked.call.follows(asked, i), links) {
                return Expected::Error;
            }
            targets.push((place, root.to_owned()));
        }
        let other = |i: usize| targets.get(1 - i).map_or(Rights::NONE, |(place, _)| place.rights);
        for (i, (place, _)) in targets.iter().enumerate() {
            let at_root = asked.call.names(i) && place.below == b".";
            let folder = place.exact && asked.call.wants_folder(asked);
            let becomes_folder = place.exact
                && asked.call.moves().is_some_and(|exchanges| {
                    let (from, folder) = &targets[1 - i];
                    let moved = folder.join(OsStr::from_bytes(&from.below));
                    (i == 1 || exchanges(asked)) && std::fs::symlink_metadata(moved).is_ok_and(|facts| facts.is_dir())
                });
            if !place.rights.has(asked.call.needs(asked, i, other(i))) || at_root || folder || becomes_folder {
                return Expected::Error;
            }
        }
        Expected::Plain
    }

    /// Has the guest ask, and waits for the answer.
    fn ask(&mut self, asked: &Asked, dir: i32, paths: &[Vec<u8>], buffer: &mut Buffer) -> usize {
        let mut tries = 0;
        loop {
            let result = asked.call.with_arguments(asked, dir, paths, buffer, |nr, args| self.request(nr, args));
            tries += 1;
            if result != -libc::EAGAIN as usize || tries > AGAIN {
                return result;
            }
        }
    }

    /// Writes a request as U does, and serves it.
    fn request(&mut self, nr: u32, args: [usize; 6]) -> usize {
        // SAFETY: the view is mapped as long as the sandbox lives, and nothing else refers to it meanwhile.
        let mailbox = unsafe { &mut *(kernel::with(|world| world.mailbox(0)) as *mut ascetic::abi::Mailbox) };
        let mut payload = Vec::new();
        for carry in deep::carried(nr, &args).into_iter().flatten() {
            match carry {
                Carry::Path(i) => {
                    // SAFETY: the argument is a text that lives, and ends in NUL.
                    let path = unsafe { CStr::from_ptr(args[i] as *const _) };
                    payload.extend(path.to_bytes_with_nul());
                }
                // SAFETY: the argument is the address of so many bytes.
                Carry::Fixed(i, len) => payload.extend(unsafe { slice::from_raw_parts(args[i] as *const u8, len) }),
                Carry::Counted(..) => unreachable!("no sockets"),
            }
        }
        mailbox.data.0[..payload.len()].copy_from_slice(&payload);
        mailbox.len = payload.len() as u32;
        (mailbox.line.nr, mailbox.line.args) = (nr, args);
        mailbox.line.turn = mailbox.line.turn.wrapping_add(1);
        let mut rounds = 0;
        while kernel::with(World::calm) {
            rounds += 1;
            assert!(rounds < PATIENCE, "no answer: {}", kernel::with(|world| world.tell()));
            assert!(self.sandbox.serve(Some(std::time::Duration::ZERO)).is_none(), "it has ended");
        }
        let result = mailbox.line.args[0];
        // As U does with what came beside it.
        if let Some((to, room)) = calls::comes_back(nr, &args)
            && result <= room
        {
            // SAFETY: a buffer of the caller's, with so much room.
            unsafe { std::ptr::copy_nonoverlapping(mailbox.data.0.as_ptr(), to as *mut u8, result) };
        }
        result
    }

    /// Looks that the same file is open, in the same way.
    fn compare_open(&self, fds: &[OwnedFd; 2], told: &str) {
        let [ours, theirs] = [0, 1].map(|i| self.trees.open_file(i, fds[i].as_raw_fd()));
        assert_eq!(lossy(&[ours]), lossy(&[theirs]), "what is open: {told}");
        // SAFETY: descriptors.
        let [ours, theirs] = [0, 1].map(|i| unsafe { libc::fcntl(fds[i].as_raw_fd(), libc::F_GETFL) });
        assert_eq!(ours, theirs, "how it is open: {told}");
    }

    /// As text: `..` goes up by a name.
    fn chdir(&mut self, path: &[u8]) {
        let from: &[u8] = if path.starts_with(b"/") { b"" } else { &self.cwd };
        let mut names: Vec<&[u8]> = Vec::new();
        for name in from.split(|byte| *byte == b'/').chain(path.split(|byte| *byte == b'/')) {
            match name {
                b"" | b"." => {}
                b".." => drop(names.pop()),
                _ => names.push(name),
            }
        }
        self.cwd = [b"/", &names.join(&b'/')[..]].concat();
    }
}

/// The same file by a number that is none of the sandbox's own.
fn far(fd: OwnedFd) -> OwnedFd {
    const FAR: i32 = 600;
    // SAFETY: a new descriptor, of which nobody else knows.
    let far = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, FAR) };
    assert!(far >= FAR, "{}", std::io::Error::last_os_error());
    // SAFETY: as above.
    unsafe { OwnedFd::from_raw_fd(far) }
}

/// For people.
fn lossy(texts: &[Vec<u8>]) -> Vec<String> {
    texts.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}
