//! Policies step by step: what a fuzzer's bytes build, by the builder of the runtime, as a [model](crate::model), and as text.

use std::ffi::{CStr, CString};

use arbitrary::{Arbitrary, Result, Unstructured};
use ascetic::policy::{Family, Policy, Rights, Root};
use ascetic::sys::Sysno;

/// One step of building a policy.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is named as the builder's function")]
pub enum Step {
    Direct(Sysno),
    Ordinary,
    Refuse(Sysno, u32),
    DefaultErrno(u32),
    Root { path: CString, rights: Rights, exact: bool },
    NoLinks,
    LocksAndFlags,
    Memory,
    Executable,
    WXorX,
    Family { family: u16, addresses: Vec<Vec<u8>> },
    Protocol(u16, u32),
    Listen,
    Option(u32, u32),
    Ioctl(u32),
    Signals,
    Threads(u32),
}

/// The most steps of a policy.
const STEPS: usize = 24;

/// A name of a path: few of them, so that they meet.
pub fn name(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    const NAMES: [&[u8]; 12] = [b"a", b"b", b"ab", b"a", b"b", b"..", b".", b"", b"...", b"a.b", b".a", b"c c"];
    match u.arbitrary::<u8>()? {
        raw @ 240.. => Ok(u.bytes(usize::from(raw - 240).min(u.len()))?.iter().copied().filter(|b| *b != 0).collect()),
        i => Ok(NAMES[usize::from(i) % NAMES.len()].to_vec()),
    }
}

/// A path of such names.
pub fn path(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let first = u.arbitrary::<u8>()?;
    let mut path = if first & 0x80 == 0 { b"/".to_vec() } else { Vec::new() };
    for i in 0..first & 7 {
        if i > 0 {
            path.push(b'/');
        }
        path.extend(name(u)?);
    }
    if first & 0x40 != 0 {
        path.push(b'/');
    }
    Ok(path)
}

/// An address: mostly of a socket in the file system, or of the internet.
pub fn address(u: &mut Unstructured<'_>, family: u16) -> Result<Vec<u8>> {
    let mut bytes = family.to_ne_bytes().to_vec();
    match u.arbitrary::<u8>()? % 6 {
        0 => bytes.extend(path(u)?),
        1 | 2 => bytes.extend([path(u)?, vec![0]].concat()),
        3 => bytes.extend([&[0][..], &path(u)?].concat()),
        4 => bytes.truncate(usize::from(u.arbitrary::<u8>()? % 3)),
        _ => {
            let len = usize::from(u.arbitrary::<u8>()? % 20).min(u.len());
            bytes.extend(u.bytes(len)?);
        }
    }
    Ok(bytes)
}

/// A family: mostly one that is known.
pub fn family(u: &mut Unstructured<'_>) -> Result<u16> {
    Ok([1, 1, 2, 10, 16, 17, 40, u.arbitrary::<u8>()?.into()][usize::from(u.arbitrary::<u8>()? % 8)])
}

/// Any call.
pub fn call(u: &mut Unstructured<'_>) -> Result<Sysno> {
    let nr = usize::from(u.arbitrary::<u16>()?) % Sysno::table_size();
    Ok(Sysno::new(nr).unwrap_or(Sysno::getppid))
}

impl<'a> Arbitrary<'a> for Step {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match u.arbitrary::<u8>()? % 24 {
            0 | 1 => Self::Direct(call(u)?),
            2 => Self::Direct(
                ascetic::direct::DIRECT[usize::from(u.arbitrary::<u8>()?) % ascetic::direct::DIRECT.len()].call,
            ),
            3 => Self::Ordinary,
            4 => Self::Refuse(call(u)?, u32::from(u.arbitrary::<u16>()?) % 4095 + 1),
            5 => Self::DefaultErrno(u32::from(u.arbitrary::<u16>()?) % 4095 + 1),
            6..=9 => {
                let path = CString::new(path(u)?).unwrap_or_default();
                let bits = u.arbitrary::<u8>()?;
                Self::Root { path, rights: rights(bits), exact: bits & 0x30 == 0x30 }
            }
            10 => Self::NoLinks,
            11 => Self::LocksAndFlags,
            12 | 13 => Self::Memory,
            14 => Self::Executable,
            15 => Self::WXorX,
            16 | 17 => {
                let family = family(u)?;
                let addresses = (0..u.arbitrary::<u8>()? % 4).map(|_| address(u, family)).collect::<Result<_>>()?;
                Self::Family { family, addresses }
            }
            18 => Self::Protocol(family(u)?, u32::from(u.arbitrary::<u8>()?)),
            19 => Self::Listen,
            20 => Self::Option(u.arbitrary::<u8>()?.into(), u.arbitrary::<u8>()?.into()),
            21 => Self::Ioctl(u.arbitrary::<u16>()?.into()),
            22 => Self::Signals,
            _ => Self::Threads(u32::from(u.arbitrary::<u8>()?) + 1),
        })
    }
}

/// Rights by the low four bits.
pub fn rights(bits: u8) -> Rights {
    let all = [Rights::READ, Rights::WRITE, Rights::CREATE, Rights::EXECUTE];
    let chosen = all.into_iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1);
    chosen.fold(Rights::NONE, |rights, (_, one)| rights.and(one))
}

/// A policy in steps.
#[derive(Debug)]
pub struct Spec(pub Vec<Step>);

impl<'a> Arbitrary<'a> for Spec {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let count = usize::from(u.arbitrary::<u8>()?) % (STEPS + 1);
        Ok(Self((0..count).map(|_| u.arbitrary()).collect::<Result<_>>()?))
    }
}

/// What the lists of addresses look like to the builder.
pub type Lists<'s> = Vec<Vec<&'s [u8]>>;

impl Spec {
    /// The addresses of each step, as the builder wants them.
    pub fn lists(&self) -> Lists<'_> {
        self.0
            .iter()
            .map(|step| match step {
                Step::Family { addresses, .. } => addresses.iter().map(Vec::as_slice).collect(),
                _ => Vec::new(),
            })
            .collect()
    }
}

/// Does a step by the runtime's builder; `None` if it refuses.
pub fn build<'p>(policy: &Policy<'p>, step: &'p Step, addresses: &'p [&'p [u8]]) -> Option<Policy<'p>> {
    let policy = policy.clone();
    Some(match step {
        Step::Direct(call) => return policy.try_direct(*call).ok(),
        Step::Ordinary => policy.ordinary(),
        Step::Refuse(call, errno) => policy.refuse(*call, *errno),
        Step::DefaultErrno(errno) => policy.default_errno(*errno),
        Step::Root { path, rights, exact } => {
            let path: &CStr = path;
            return policy.try_root(Root { path, rights: *rights, exact: *exact }).ok();
        }
        Step::NoLinks => policy.no_links(),
        Step::LocksAndFlags => policy.locks_and_flags(),
        Step::Memory => policy.memory(),
        Step::Executable => policy.executable(),
        Step::WXorX => policy.w_xor_x(),
        Step::Family { family, .. } => return policy.try_family(Family { family: *family, addresses }).ok(),
        Step::Protocol(family, protocol) => policy.protocol(*family, *protocol),
        Step::Listen => policy.listen(),
        Step::Option(level, name) => policy.option(*level, *name),
        Step::Ioctl(number) => policy.ioctl(*number),
        Step::Signals => policy.signals(),
        Step::Threads(threads) => policy.threads(*threads),
    })
}
