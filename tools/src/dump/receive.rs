//! Cores that the kernel sends to an AF_UNIX socket (`core_pattern` beginning with `@`, since Linux 6.16; with `@@`, since 6.17,
//! where it asks what to do first).
//!
//! The kernel finds the socket from the machine's root folder, with its own rights: whatever root and user the crashed process
//! has. Anybody else who may connect could send what looks like a core, so only those are heard whom the kernel says to be
//! dumping: by a pidfd of the peer, which it notes before it connects. If it is asked to, it lets the process end only when the
//! core has been taken: always with `@@`, with `@` if `core_pipe_limit` is not 0.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What an ELF file begins with.
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// Bytes that are looked at at a time, and not written if they are zeros.
const BLOCK: usize = 4096;
/// Bytes of a request, at most.
const REQUEST_MAX: u32 = 4096;

/// `SO_PEERPIDFD` (`include/uapi/asm-generic/socket.h`), since Linux 6.5
const SO_PEERPIDFD: libc::c_int = 77;
/// `PIDFD_INFO_COREDUMP` (`include/uapi/linux/pidfd.h`)
const INFO_COREDUMP: u64 = 1 << 4;
/// `PIDFD_INFO_COREDUMP_SIGNAL`
const INFO_SIGNAL: u64 = 1 << 6;
/// `PIDFD_COREDUMPED`
const COREDUMPED: u32 = 1;
/// `COREDUMP_KERNEL` (`include/uapi/linux/coredump.h`): the kernel writes the core.
const BY_KERNEL: u64 = 1;
/// `COREDUMP_WAIT`: the process ends when the connection does.
const WAIT: u64 = 8;
/// `COREDUMP_MARK_REQACK`: the answer was understood. The header says that marks are single bytes; what is sent is the whole
/// `enum` (`coredump_sock_mark` in `fs/coredump.c`).
const UNDERSTOOD: u32 = 0;

/// `struct pidfd_info` (`include/uapi/linux/pidfd.h`), as far as coredumps are concerned.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    /// Process, thread group, parent; users and groups.
    ids: [u32; 11],
    exit_code: i32,
    coredump_mask: u32,
    coredump_signal: u32,
}

/// `PIDFD_GET_INFO`: `_IOWR(0xff, 11, struct pidfd_info)`
const GET_INFO: libc::Ioctl = (3 << 30 | (size_of::<PidfdInfo>() << 16) | 0xff << 8 | 11) as libc::Ioctl;

/// `struct coredump_req`: what the kernel can do; longer ones may come.
#[repr(C)]
#[derive(Clone, Copy)]
struct Request {
    size: u32,
    /// Of the answer that it knows.
    size_ack: u32,
    mask: u64,
}

/// How much of a core is taken.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes, at most.
    pub bytes: u64,
    /// How long, at most: a core that is not there by then is cut short.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 1 << 30, time: Duration::from_secs(30) }
    }
}

/// Why a core is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It is longer than it may be.
    Bytes,
    /// It took longer than it may.
    Time,
}

/// A core that was received.
#[derive(Debug)]
pub struct Received {
    /// Who crashed, in this process's pid namespace.
    pub pid: u32,
    /// By which signal, where the kernel says.
    pub signal: Option<i32>,
    /// Where the core is: `core.PID`.
    pub file: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Why it is not whole.
    pub cut: Option<Cut>,
}

/// A core was not received.
#[derive(Debug, thiserror::Error)]
pub enum NotReceived {
    /// The system's error.
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
    /// Whoever connected does not dump core.
    #[error("process {0}: the kernel does not say that it dumps core")]
    Forged(u32),
    /// What came is neither a core nor a request to send one.
    #[error("process {0}: it sent neither a core nor a request")]
    NoCore(u32),
    /// The kernel did not take the answer.
    #[error("the kernel did not take the answer to its request: {0}")]
    Refused(u32),
}

fn at(what: &'static str) -> impl Fn(io::Error) -> NotReceived {
    move |error| NotReceived::Io(what, error)
}

/// Where the kernel sends cores to.
#[derive(Debug)]
pub struct Receiver {
    listener: UnixListener,
    path: PathBuf,
}

impl Receiver {
    /// Makes the socket, for root alone; one that a receiver has left behind is replaced.
    ///
    /// # Errors
    /// The system's.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
            fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        // Who connects before this is asked who it is like everybody.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Waits for a core, and saves it as `core.PID` in a folder. Whoever else connects is an error, and over.
    ///
    /// # Errors
    /// The system's; or somebody has connected who does not dump core.
    pub fn receive(&self, folder: &Path, limits: Limits) -> Result<Received, NotReceived> {
        let (stream, _) = self.listener.accept().map_err(at("accept"))?;
        let end = Instant::now() + limits.time;
        let peer = peer(&stream)?;
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(at("a file for the core"))?;
        let (bytes, cut) = take(&stream, file.as_file_mut(), peer.pid, limits.bytes, end)?;
        let path = folder.join(format!("core.{}", peer.pid));
        file.persist(&path).map_err(|error| NotReceived::Io("the core's file", error.error))?;
        // The kernel may be waiting for the end of the connection: who waits for the process finds the core in place.
        drop(stream);
        Ok(Received { pid: peer.pid, signal: peer.signal, file: path, bytes, cut })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Somebody may have replaced or removed it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Who is at the other end.
struct Peer {
    pid: u32,
    signal: Option<i32>,
}

/// Reads an option of a socket.
fn option<T>(stream: &UnixStream, name: libc::c_int, mut value: T) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    let room = (&raw mut value).cast();
    // SAFETY: the kernel stores at most so many bytes; both options that are asked for are numbers.
    match unsafe { libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, name, room, &raw mut len) } {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Who has connected, if the kernel says that it dumps core.
fn peer(stream: &UnixStream) -> Result<Peer, NotReceived> {
    let nobody = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let pid = option(stream, libc::SO_PEERCRED, nobody).map_err(at("SO_PEERCRED"))?.pid as u32;
    let pidfd = option(stream, SO_PEERPIDFD, -1).map_err(at("SO_PEERPIDFD"))?;
    // SAFETY: the kernel has made the descriptor for this call.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let mut info = PidfdInfo { mask: INFO_COREDUMP | INFO_SIGNAL, ..PidfdInfo::default() };
    // SAFETY: the kernel stores as many bytes as the request says, which are the structure's.
    let asked = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO, &raw mut info) };
    if asked != 0 || info.mask & INFO_COREDUMP == 0 || info.coredump_mask & COREDUMPED == 0 {
        return Err(NotReceived::Forged(pid));
    }
    let signal = (info.mask & INFO_SIGNAL != 0).then_some(info.coredump_signal as i32);
    Ok(Peer { pid, signal })
}

/// The length of a core, and why it is not whole.
type Taken = Result<(u64, Option<Cut>), NotReceived>;

/// Takes a core: at once, or after the kernel's request.
fn take(stream: &UnixStream, to: &mut File, pid: u32, max: u64, end: Instant) -> Taken {
    let mut stream = Timed { stream, end };
    let mut head = [0; 4];
    stream.read_exact(&mut head).map_err(at("the core"))?;
    if head == ELF_MAGIC {
        return copy(head.chain(stream), to, max);
    }
    let size = u32::from_ne_bytes(head);
    if !(size_of::<Request>() as u32..=REQUEST_MAX).contains(&size) {
        return Err(NotReceived::NoCore(pid));
    }
    answer(&mut stream, size)?;
    copy(stream, to, max)
}

/// Answers the kernel's request, of which the first number is known: it is to write the core, and to wait.
fn answer(stream: &mut Timed<'_>, size: u32) -> Result<(), NotReceived> {
    let mut rest = [[0; 4]; size_of::<Request>() / 4 - 1];
    rest.iter_mut().try_for_each(|word| stream.read_exact(word)).map_err(at("the request"))?;
    let [size_ack, low, high] = rest.map(u32::from_ne_bytes);
    let request = Request { size, size_ack, mask: u64::from(low) | u64::from(high) << 32 };
    // What newer kernels say besides.
    let more = u64::from(request.size) - size_of::<Request>() as u64;
    io::copy(&mut stream.by_ref().take(more), &mut io::sink()).map_err(at("the request"))?;
    let size = (size_of::<Request>() as u32).min(request.size_ack);
    let mask = (BY_KERNEL | WAIT) & request.mask;
    // `struct coredump_ack`: its size, nothing, and what is wanted.
    let ack = [&size.to_ne_bytes()[..], &[0; 4], &mask.to_ne_bytes()].concat();
    stream.stream.write_all(&ack).map_err(at("the answer"))?;
    let mut mark = [0; 4];
    stream.read_exact(&mut mark).map_err(at("the mark"))?;
    match u32::from_ne_bytes(mark) {
        UNDERSTOOD => Ok(()),
        mark => Err(NotReceived::Refused(mark)),
    }
}

/// Copies a core. Blocks of zeros, which most of a core is, take no room.
fn copy(mut from: impl Read, to: &mut File, max: u64) -> Taken {
    let mut block = [0; BLOCK];
    let mut len = 0;
    let cut = loop {
        let room = (max - len).min(BLOCK as u64) as usize;
        match from.read(&mut block[..room.max(1)]) {
            Ok(0) => break None,
            Ok(_) if room == 0 => break Some(Cut::Bytes),
            Ok(n) => {
                let bytes = &block[..n];
                len += n as u64;
                if bytes.iter().all(|byte| *byte == 0) {
                    to.seek(SeekFrom::Current(n as i64)).map_err(at("the core's file"))?;
                } else {
                    to.write_all(bytes).map_err(at("the core's file"))?;
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
                break Some(Cut::Time);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(NotReceived::Io("the core", error)),
        }
    };
    to.set_len(len).map_err(at("the core's file"))?;
    Ok((len, cut))
}

/// A connection that is read from until some time.
struct Timed<'a> {
    stream: &'a UnixStream,
    end: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const SOON: Duration = Duration::from_millis(200);

    /// Has somebody send, and takes what comes.
    fn taken(max: u64, send: impl FnOnce(&mut UnixStream) + Send) -> (Taken, Vec<u8>) {
        let (mut there, here) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let result = thread::scope(|scope| {
            scope.spawn(move || send(&mut there));
            let result = take(&here, &mut file, 7, max, Instant::now() + SOON);
            drop(here);
            result
        });
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        (result, bytes)
    }

    fn core() -> Vec<u8> {
        [&ELF_MAGIC[..], &[1; 5000], &[0; 20_000], &[2; 3], &[0; 9000]].concat()
    }

    #[test]
    fn a_core_comes_as_it_is() {
        let (result, bytes) = taken(1 << 20, |stream| stream.write_all(&core()).unwrap());
        assert_eq!(result.unwrap(), (core().len() as u64, None));
        assert!(bytes == core());
    }

    #[test]
    fn a_core_has_a_size_and_a_time() {
        // Whoever sends finds that nobody takes the rest.
        let (result, bytes) = taken(6000, |stream| _ = stream.write_all(&core()));
        assert_eq!(result.unwrap(), (6000, Some(Cut::Bytes)));
        assert!(bytes == core()[..6000]);
        let whole = core().len() as u64;
        assert_eq!(taken(whole, |stream| stream.write_all(&core()).unwrap()).0.unwrap(), (whole, None));
        let (result, bytes) = taken(1 << 20, |stream| {
            stream.write_all(&core()[..100]).unwrap();
            thread::sleep(2 * SOON);
        });
        assert_eq!(result.unwrap(), (100, Some(Cut::Time)));
        assert!(bytes == core()[..100]);
    }

    /// As the kernel does it: a request of a size that grows, an answer, a mark, the core.
    #[test]
    fn a_request_is_answered() {
        for more in [0u32, 16] {
            let (result, bytes) = taken(1 << 20, |stream| {
                stream.write_all(&[(16 + more).to_ne_bytes(), 16u32.to_ne_bytes()].concat()).unwrap();
                stream.write_all(&0xfu64.to_ne_bytes()).unwrap();
                stream.write_all(&vec![9; more as usize]).unwrap();
                let mut ack = [0; 16];
                stream.read_exact(&mut ack).unwrap();
                let expected = [&16u32.to_ne_bytes()[..], &[0; 4], &(BY_KERNEL | WAIT).to_ne_bytes()].concat();
                assert_eq!(ack[..], expected);
                stream.write_all(&UNDERSTOOD.to_ne_bytes()).unwrap();
                stream.write_all(&core()).unwrap();
            });
            assert_eq!(result.unwrap(), (core().len() as u64, None));
            assert!(bytes == core());
        }
    }

    #[test]
    fn nothing_else_is_taken() {
        let (result, bytes) = taken(1 << 20, |stream| stream.write_all(b"GET / HTTP/1.1\r\n").unwrap());
        assert!(matches!(result, Err(NotReceived::NoCore(7))) && bytes.is_empty(), "{result:?}");
        let (result, _) = taken(1 << 20, |stream| stream.write_all(&ELF_MAGIC[..2]).unwrap());
        assert!(matches!(result, Err(NotReceived::Io(..))), "{result:?}");
        let (result, _) = taken(1 << 20, |stream| {
            stream.write_all(&[16u32, 16, 0xf, 0].map(u32::to_ne_bytes).concat()).unwrap();
            stream.read_exact(&mut [0; 16]).unwrap();
            stream.write_all(&3u32.to_ne_bytes()).unwrap();
        });
        assert!(matches!(result, Err(NotReceived::Refused(3))), "{result:?}");
    }

    /// A process that has not crashed, and sends a core: this one.
    #[test]
    fn who_does_not_dump_is_not_heard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let receiver = Receiver::bind(&path).unwrap();
        let forger = UnixStream::connect(&path).unwrap();
        (&forger).write_all(&core()).unwrap();
        match receiver.receive(folder.path(), Limits::default()) {
            Err(NotReceived::Forged(pid)) => assert_eq!(pid, std::process::id()),
            // Before Linux 6.5.
            Err(NotReceived::Io("SO_PEERPIDFD", _)) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the socket");
        drop(receiver);
        assert!(!path.exists());
    }
}
