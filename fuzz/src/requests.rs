//! Requests: a policy, what is known of a sandbox, and what its guest asks, from a fuzzer's bytes.

use arbitrary::{Arbitrary, Result, Unstructured};
use ascetic::abi::{self, DATA, OpenHow, PAYLOAD, STEP_FIRST, STEP_KEEP, STEP_REPLY, STEP_SAVE, STEP_STOP};
use ascetic::broker::decide::{Answer, Change, Request, Verdict, View, decide};
use ascetic::broker::path::{Place, Whole};
use ascetic::policy::{Bounds, Policy};

use crate::model::Model;
use crate::model::broker::{Arg, Asked, Call, Want};
use crate::spec::{self, Spec};

/// Bytes of a page.
const PAGE: usize = abi::PAGE;
/// The most requests of an input.
const REQUESTS: usize = 8;

/// Where everything is in a sandbox.
#[derive(Debug)]
struct Known {
    bounds: Bounds,
    own: (usize, usize),
    root_fds: u32,
    revoked: u32,
    data: usize,
    cwd: Vec<u8>,
}

impl<'a> Arbitrary<'a> for Known {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let place: u8 = u.arbitrary()?;
        let vault_lo = [0x7f12_3456_7000, 0x7000_0000, 0x1_0000_0000, 0x7fff_ffff_0000][usize::from(place % 4)];
        let vault_len = PAGE * (usize::from(place >> 4) + 4);
        let fd_lo = [3, 10, 100, 1000][usize::from(place >> 2 & 3)];
        let roots: u8 = u.arbitrary()?;
        Ok(Self {
            bounds: Bounds { vault_lo, vault_len, fd_lo, fd_len: 8 + u32::from(roots % 16) },
            own: (vault_lo, vault_lo + vault_len + PAGE * (usize::from(roots >> 4) + 1)),
            root_fds: fd_lo + 4,
            revoked: if place & 0x80 == 0 { 0 } else { u.arbitrary()? },
            data: vault_lo + PAGE + 256,
            cwd: [&b"/"[..], b"/a", b"/a/b", b"/ab"][usize::from(roots % 4)].to_vec(),
        })
    }
}

/// One request.
#[derive(Debug)]
struct Said {
    nr: u32,
    args: [usize; 6],
    payload: Vec<u8>,
}

/// An argument: near what counts, or anything.
fn arg(u: &mut Unstructured<'_>, known: &Known) -> Result<usize> {
    let near = |u: &mut Unstructured<'_>, at: usize| Ok(at.wrapping_add_signed(u.arbitrary::<i16>()?.into()));
    let (bounds, own) = (&known.bounds, known.own);
    Ok(match u.arbitrary::<u8>()? % 20 {
        0 => 0,
        1 | 2 => u.arbitrary::<u8>()?.into(),
        3 => u.arbitrary::<u16>()?.into(),
        4 => near(u, bounds.vault_lo)?,
        5 => near(u, bounds.vault_lo + bounds.vault_len)?,
        6 => near(u, own.1)?,
        7 => known.own.0.wrapping_add_signed(PAGE as isize * isize::from(u.arbitrary::<i8>()?)),
        8 => known.own.1.wrapping_add_signed(PAGE as isize * isize::from(u.arbitrary::<i8>()?)),
        9 => bounds.fd_lo as usize + usize::from(u.arbitrary::<u8>()? % 32),
        10 => (u.arbitrary::<u32>()? as usize) << 32 | (bounds.fd_lo + bounds.fd_len) as usize,
        11 => (u.arbitrary::<u32>()? as usize) << 32 | bounds.fd_lo as usize,
        12 => libc::AT_FDCWD as isize as usize,
        13 => libc::AT_FDCWD as u32 as usize,
        14 => u.arbitrary::<u32>()? as usize,
        15 => 1 << (u.arbitrary::<u8>()? % 64),
        16 => 1 << (u.arbitrary::<u8>()? % 24) | 1 << (u.arbitrary::<u8>()? % 24) | usize::from(u.arbitrary::<u8>()?),
        17 => usize::MAX - usize::from(u.arbitrary::<u16>()?),
        18 => own.0.wrapping_neg().wrapping_add_signed(u.arbitrary::<i16>()?.into()),
        _ => u.arbitrary()?,
    })
}

/// Calls that the broker may do something about.
const CALLS: &[&str] = &[
    "open",
    "creat",
    "openat",
    "openat2",
    "stat",
    "lstat",
    "newfstatat",
    "statx",
    "access",
    "faccessat",
    "faccessat2",
    "statfs",
    "fcntl",
    "flock",
    "getcwd",
    "readlink",
    "readlinkat",
    "mkdir",
    "mkdirat",
    "unlink",
    "rmdir",
    "unlinkat",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "chmod",
    "fchmodat",
    "utimensat",
    "truncate",
    "chdir",
    "mmap",
    "munmap",
    "msync",
    "mincore",
    "mprotect",
    "madvise",
    "mremap",
    "brk",
    "socket",
    "socketpair",
    "connect",
    "bind",
    "sendto",
    "listen",
    "recvfrom",
    "accept4",
    "accept",
    "shutdown",
    "getsockname",
    "getpeername",
    "setsockopt",
    "getsockopt",
    "ioctl",
    "prlimit64",
    "clone",
    "exit_group",
    "tgkill",
    "tkill",
    "kill",
];

impl Said {
    fn new(u: &mut Unstructured<'_>, known: &Known) -> Result<Self> {
        let nr = match u.arbitrary::<u8>()? % 4 {
            0 => spec::call(u)? as u32,
            1 => u.arbitrary()?,
            _ => {
                let i = usize::from(u.arbitrary::<u8>()?) % CALLS.len();
                crate::model::nr(CALLS[i])
            }
        };
        let mut args = [0; 6];
        for one in &mut args {
            *one = arg(u, known)?;
        }
        let mut payload = Vec::new();
        let kind: u8 = u.arbitrary()?;
        match kind % 8 {
            0 => {}
            1 => {
                let len = usize::from(u.arbitrary::<u8>()?).min(u.len());
                payload = u.bytes(len)?.to_vec();
            }
            2 | 3 => payload.extend([spec::path(u)?, vec![0]].concat()),
            4 => payload.extend([spec::path(u)?, vec![0], spec::path(u)?, vec![0]].concat()),
            5 => {
                payload.extend([spec::path(u)?, vec![0]].concat());
                let words = [arg(u, known)?, arg(u, known)?, arg(u, known)? & 0x3f, 0];
                payload.extend(words.into_iter().flat_map(usize::to_le_bytes));
            }
            6 => {
                payload = [spec::path(u)?, vec![b'x'; usize::from(u.arbitrary::<u16>()? % 9000)]].concat();
                payload.push(0);
            }
            _ => {
                let family = spec::family(u)?;
                payload = spec::address(u, family)?;
            }
        }
        payload.truncate(PAYLOAD);
        // As long as the call says, mostly.
        if kind & 0x80 == 0 && kind % 8 == 7 {
            args[2] = payload.len();
            args[5] = payload.len();
        }
        if kind & 0x40 != 0 {
            args[3] = size_of::<OpenHow>();
        }
        Ok(Self { nr, args, payload })
    }
}

/// The builder and the model agree on a policy, T and its twin on what is direct, the broker and the model on the rest.
///
/// # Errors
/// There are too few bytes.
///
/// # Panics
/// If not.
pub fn check(bytes: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(bytes);
    let spec: Spec = u.arbitrary()?;
    let lists = spec.lists();
    let (mut policy, mut model) = (Policy::new(), Model::new());
    for (step, addresses) in spec.0.iter().zip(&lists) {
        if model.is_full_for(step) {
            continue;
        }
        let built = spec::build(&policy, step, addresses);
        assert_eq!(built.is_some(), model.build(step), "may it be built? {step:?}");
        policy = built.unwrap_or(policy);
    }
    let known: Known = u.arbitrary()?;
    for _ in 0..REQUESTS {
        if u.is_empty() {
            break;
        }
        let said = Said::new(&mut u, &known)?;
        let decided = policy.decide(&known.bounds, said.nr, &said.args);
        assert_eq!(decided, model.decide(&known.bounds, said.nr, &said.args), "T: {said:x?}\n{known:x?}\n{spec:?}");
        brokered(&policy, &model, &known, &said, &spec);
    }
    Ok(())
}

fn brokered(policy: &Policy<'_>, model: &Model, known: &Known, said: &Said, spec: &Spec) {
    let Known { bounds, own, root_fds, revoked, data, cwd } = known;
    let view = View { policy, bounds: *bounds, own: *own, revoked: *revoked, root_fds: *root_fds, cwd, data: *data };
    let asked = Asked {
        model,
        bounds: *bounds,
        own: *own,
        revoked: *revoked,
        root_fds: *root_fds,
        cwd,
        nr: said.nr,
        args: said.args,
        payload: &said.payload,
    };
    let request = Request { nr: said.nr, args: said.args, payload: &said.payload };
    let mut room = Room::new();
    let Room { script, data: bytes, paths } = &mut *room;
    let verdict = decide(&view, &request, &mut Answer { script, data: bytes, paths });
    let got = room.got(verdict, *data);
    let want = asked.decide();
    assert_eq!(got, want, "the broker: {said:x?}\n{known:x?}\n{spec:?}");
}

/// What a decision is written to.
pub(crate) struct Room {
    pub(crate) script: [abi::Step; abi::STEPS],
    pub(crate) data: [u8; DATA],
    pub(crate) paths: [Whole; 2],
}

impl Room {
    pub(crate) fn new() -> Box<Self> {
        Box::new(Self { script: [abi::Step::default(); abi::STEPS], data: [0; DATA], paths: [Whole::EMPTY; 2] })
    }

    fn below(&self, i: usize, place: Place) -> (usize, Vec<u8>) {
        (place.root, self.paths[i].below(place).to_bytes().to_vec())
    }

    /// The verdict, as the model says it.
    fn got(&self, verdict: Verdict<'_>, at: usize) -> Want {
        match verdict {
            Verdict::Refuse(refusal) => Want::Refuse(refusal.errno),
            Verdict::Script => Want::Script(self.calls(at)),
            Verdict::Open { place, asked, how } => {
                let calls = self.calls(at);
                let words = [how.flags, how.mode, how.resolve].into_iter().flat_map(u64::to_le_bytes).collect();
                assert_eq!(calls[0].args[2], Arg::At(words), "a token opens in the same way");
                Want::Open(calls, self.below(0, place), asked)
            }
            Verdict::Files(change) => self.change(change),
            Verdict::Getcwd { size } => Want::Getcwd(size),
            Verdict::Clone { thread } => {
                let tls = thread.tls.map(|tls| u64::from(tls[0]) | u64::from(tls[1]) << 32);
                Want::Clone { tls, ids: thread.ids, tids: thread.tids }
            }
            Verdict::ExitGroup => Want::ExitGroup,
            Verdict::Signal { tid, sig } => Want::Signal(tid, sig),
        }
    }

    fn change(&self, change: Change<'_>) -> Want {
        let want = |name, places: &[Place], numbers: &[u64], bytes: Option<&[u8]>| {
            let places = places.iter().enumerate().map(|(i, place)| self.below(i, *place)).collect();
            Want::Change(name, places, numbers.to_vec(), bytes.map(<[u8]>::to_vec))
        };
        match change {
            Change::Mkdir(place, mode) => want("mkdir", &[place], &[mode.into()], None),
            Change::Unlink(place, folder) => want("unlink", &[place], &[folder.into()], None),
            Change::Rename(places, flags) => want("rename", &places, &[flags as u64], None),
            Change::Link(places) => want("link", &places, &[], None),
            Change::Symlink(target, place) => {
                let bytes = Some(target.to_bytes().to_vec());
                Want::Change("symlink", vec![self.below(0, place)], vec![], bytes)
            }
            Change::Chmod(place, mode) => want("chmod", &[place], &[mode.into()], None),
            Change::Utimens(place, times, link) => want("utimens", &[place], &[link.into()], times),
            Change::Truncate(place, len) => want("truncate", &[place], &[len as u64], None),
            Change::Chdir(place) => want("chdir", &[place], &[], None),
            Change::Readlink(place, size) => want("readlink", &[place], &[size as u64], None),
        }
    }

    /// The steps of the script up to its reply. What leads into the data is as long as what stands there.
    fn calls(&self, at: usize) -> Vec<Call> {
        let end = self.script.iter().position(|step| step.nr == STEP_REPLY).expect("a script replies");
        assert_eq!(self.script[end].flags, STEP_KEEP, "the reply is what a call returned");
        self.script[..end].iter().map(|step| self.call(step, at)).collect()
    }

    fn call(&self, step: &abi::Step, at: usize) -> Call {
        let (saves, first) = (step.flags & STEP_SAVE != 0, step.flags & STEP_FIRST != 0);
        assert_eq!(saves, step.flags & STEP_STOP != 0, "nothing is made of what was not opened");
        assert_eq!(step.flags & !(STEP_SAVE | STEP_STOP | STEP_FIRST | STEP_KEEP), 0);
        let is = |name| crate::model::name(step.nr) == name;
        // Which arguments are bytes that T hands to the kernel: how long they are, the call says.
        let at = |arg: usize, len: Option<usize>| match arg.checked_sub(at).and_then(|from| self.data.get(from..)) {
            Some(bytes) => {
                let end = bytes.iter().position(|byte| *byte == 0).map_or(0, |end| end + 1);
                Arg::At(bytes[..len.unwrap_or(end)].to_vec())
            }
            None => Arg::Is(arg),
        };
        let mut args: Vec<Arg> = step.args.map(Arg::Is).into();
        if is("openat2") {
            args[1] = at(step.args[1], None);
            args[2] = at(step.args[2], Some(step.args[3]));
        } else if is("statx") || is("faccessat2") || is("readlinkat") {
            args[1] = at(step.args[1], None);
        } else if is("bind") || is("connect") {
            args[1] = at(step.args[1], Some(step.args[2]));
        } else if is("sendto") && step.args[4] != 0 {
            args[4] = at(step.args[4], Some(step.args[5]));
        }
        Call { nr: step.nr, args, saves, on_opened: first, keeps: step.flags & STEP_KEEP != 0 }
    }
}
