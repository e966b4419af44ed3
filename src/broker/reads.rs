//! Memory of a sandbox at its end, which its T writes into a socket.
//!
//! The guest is gone, and T has the same memory: no `ptrace` and no `/proc` is needed, so neither Yama, nor another uid, nor a
//! process that is not dumpable, nor an empty root folder is in the way. T does what it always does: it waits for a verdict,
//! and the verdict's script is one `write`. T's part in it is the kernel's word: that it waits, and that a message is of its
//! process id.
//!
//! How T comes to wait: the reporter, when its record is complete, leaves a request that nobody answers ([`NR_STAY`]). So a guest
//! can keep its memory from being read, as it can suppress its record.

use crate::abi::{NR_STAY, STEP_BORE, Step};
use crate::broker::births::Waits;
use crate::broker::{At, Phase};
use crate::sandbox::Sandbox;
use crate::sys::{self, PollFd, Sysno};
use core::time::Duration;

/// Bytes that T writes at once, at most: what the socket takes of one message.
const PIECE: usize = 16 * 1024;
/// What can be read or not as a whole.
const PAGE: usize = crate::abi::PAGE;
/// How long T may take for anything, in nanoseconds: it rings, and waits again, twice in this time.
const PATIENCE: u64 = 250_000_000;
/// Messages of others that are passed over at once: whoever floods the socket does not keep this from looking at the time.
const FOREIGN: usize = 64;
/// As often is that done when T has written: more than the socket holds.
const HELD: usize = 2 * sys::SENT_MEMORY / 256 / FOREIGN + 1;
const NOW: Option<Duration> = Some(Duration::ZERO);
/// Looks that give up the CPU, before those that sleep for a millisecond.
const LOOKS: u32 = 64;
/// Looks in vain before nobody waits any longer: this process, or the machine, may have slept meanwhile.
const LOOKS_AT_LEAST: u32 = LOOKS + 100;

/// Why the memory of a sandbox cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoReader {
    /// It is not at its end: only [`Config::dying`](crate::sandbox::Config::dying) can have it read.
    NotNow,
    /// No T of a thread that has ended waits: the guest was killed, or its reporter did not come to its end; or the kernel ended
    /// T with it (before Linux 5.16, by a core).
    NobodyWaits,
    /// T does not answer any more.
    Lost,
}

impl core::fmt::Display for NoReader {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NotNow => "memory can be read when the sandbox is at its end, and not before or after",
            Self::NobodyWaits => {
                "no trusted thread waits: the guest was killed, or its reporter did not come to its end"
            }
            Self::Lost => "the trusted thread does not answer",
        })
    }
}

impl core::error::Error for NoReader {}

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// The sandbox is not at its end.
    Closed,
    /// It is, and nobody was asked yet.
    Open,
    /// The T of this pair, which was taken.
    Taken(usize),
    /// Nobody, for this reason.
    Nobody(NoReader),
}

impl Sandbox<'_> {
    /// Reads memory of a sandbox that is at its end, in [`Config::dying`](crate::sandbox::Config::dying): its T writes it.
    /// Works where nobody may trace the sandbox. Returns how many bytes were read, from `addr` on: fewer than `buf` has if
    /// there is memory that cannot be read, and 0 if `addr` itself cannot. What lies behind a hole, another call reads.
    ///
    /// What threads of the guest do that still run is seen half done, and they can change all that is read.
    ///
    /// # Errors
    ///
    /// There is nobody to read it.
    pub fn read_memory(&self, addr: usize, buf: &mut [u8]) -> Result<usize, NoReader> {
        let k = match self.reader.get() {
            _ if self.owner != sys::pids().0 => return Err(NoReader::NotNow),
            Reader::Closed => return Err(NoReader::NotNow),
            Reader::Taken(k) => k,
            Reader::Nobody(why) => return Err(why),
            Reader::Open => {
                let found = self.who_waits().ok_or(NoReader::NobodyWaits);
                self.reader.set(found.map_or_else(Reader::Nobody, Reader::Taken));
                found?
            }
        };
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = addr.wrapping_add(done);
            let size = rest.len().min(PIECE - at % PIECE);
            let mut got = self.written(k, at, &mut rest[..size])?;
            if got == 0 && at % PAGE + size > PAGE {
                // A message is whole or not at all. Up to the first page that cannot be read, it is what there is.
                while got < size {
                    let page = (size - got).min(PAGE - (at + got) % PAGE);
                    match self.written(k, at + got, &mut rest[got..got + page])? {
                        0 => break,
                        n => got += n,
                    }
                }
            }
            done += got;
            if got < size {
                break;
            }
        }
        Ok(done)
    }

    /// Takes a T that was left to wait by a thread that has ended.
    fn who_waits(&self) -> Option<usize> {
        let stays = |k: &usize| {
            let slot = self.slot_ref(*k);
            // SAFETY: the view is mapped. What is read there keeps from waiting in vain, no more.
            let nr = unsafe { (&raw const (*self.mailboxes.mailbox(*k)).line.nr).read_volatile() };
            let gone = slot.phase == Phase::Alive && slot.waits == Waits::Nothing && slot.u.status.is_some();
            // T may have ended, too, and nobody have looked yet.
            gone && slot.t.lives() && nr == NR_STAY && sys::ended(slot.t.pid) == Ok(None)
        };
        let until = sys::now().saturating_add(PATIENCE);
        let mut vain = 0;
        loop {
            if let Some(k) = (0..self.pairs()).filter(stays).find(|k| self.waits_at(*k, At::Ask)) {
                return Some(k);
            }
            let late = sys::now() >= until && vain >= LOOKS_AT_LEAST;
            if late || !(0..self.pairs()).any(|k| stays(&k)) {
                return None;
            }
            self.pause(&mut vain);
        }
    }

    /// Has the T of pair `k`, which was taken, write a range, and takes it again. How many bytes came: all, or none.
    fn written(&self, k: usize, addr: usize, buf: &mut [u8]) -> Result<usize, NoReader> {
        let Some(socket) = &self.memory else { return Err(NoReader::NotNow) };
        let args = [self.common().fds.memory as usize, addr, buf.len(), 0, 0, 0];
        let write = Step { nr: Sysno::write as u32, args, ..Step::default() };
        // Behind it T waits at a word of its own, without a ring: that it does shows that it has written, or could not.
        self.script(k, &[write, Step { nr: STEP_BORE, ..Step::default() }]);
        self.hand_over(k);
        let (pid, len) = (self.slot_ref(k).t.pid, buf.len());
        let mut receive = || {
            let mut got = 0;
            for _ in 0..FOREIGN {
                match sys::receive_from(socket.0, buf) {
                    Ok((sender, n)) if sender == pid && n == len => {
                        got = n;
                        break;
                    }
                    Ok(_) => {} // others that still run, or ran, can write there, too
                    Err(_) => break,
                }
            }
            got
        };
        let until = sys::now().saturating_add(PATIENCE);
        let (mut got, mut vain) = (0, 0);
        loop {
            // What others write is received, too, so that T is not kept from writing.
            if got == 0 {
                got = receive();
            }
            if self.waits_at(k, At::Bore) {
                // What it wrote is there by now, behind what others wrote.
                let mut left = HELD;
                while got == 0 && left > 0 && sys::poll(&mut [PollFd::readable(socket.0)], NOW).is_ok_and(|n| n > 0) {
                    got = receive();
                    left -= 1;
                }
                return Ok(got);
            }
            if sys::now() >= until && vain >= LOOKS_AT_LEAST {
                self.reader.set(Reader::Nobody(NoReader::Lost));
                return Err(NoReader::Lost);
            }
            self.pause(&mut vain);
        }
    }

    fn pause(&self, vain: &mut u32) {
        *vain += 1;
        match &self.memory {
            Some(socket) if *vain > LOOKS => {
                let _ = sys::poll(&mut [PollFd::readable(socket.0)], Some(Duration::from_millis(1)));
            }
            _ => sys::yield_now(),
        }
    }
}
