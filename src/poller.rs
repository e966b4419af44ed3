//! Serving many sandboxes with one thread, in fair turns.
//!
//! ```no_run
//! use ascetic::{error::Error, poller::Poller, sandbox::{Outcome, Sandbox}};
//!
//! fn serve_all(sandboxes: &mut [Sandbox], ended: impl Fn(usize, Outcome)) -> Result<(), Error> {
//!     let mut poller = Poller::<64>::new()?;
//!     for (key, sandbox) in sandboxes.iter().enumerate() {
//!         poller.add(key, sandbox)?;
//!     }
//!     while !poller.is_empty() {
//!         let Some(key) = poller.wait(None)? else { continue };
//!         if let Some(outcome) = poller.serve(key, &mut sandboxes[key]) {
//!             ended(key, outcome);
//!         }
//!     }
//!     Ok(())
//! }
//! ```
//!
//! A round gives one turn to each sandbox that wants one, and a turn serves at most one request of each of its threads. A
//! guest that never stops ringing has its turn in every round, and no more.

use crate::error::Error;
use crate::make::Fd;
use crate::sandbox::{Outcome, Sandbox};
use crate::sys::{self, Errno, Event, Sysno};
use core::time::Duration;

/// Tells which of up to `N` sandboxes is to be served next. Each is known by a key below `N`, which the caller chooses.
#[derive(Debug)]
pub struct Poller<const N: usize> {
    epoll: Fd,
    /// When each is to have a turn whatever its descriptor says, in nanoseconds; `None` where there is none.
    due: [Option<u64>; N],
    /// Who has a turn in this round.
    wants: [bool; N],
    /// Who was asked last, plus 1.
    at: usize,
    events: [Event; N],
}

/// The time of those that can be left alone.
const NEVER: u64 = u64::MAX;

/// The time in a while.
fn after(span: Duration) -> u64 {
    sys::now().saturating_add(span.as_nanos().min(u64::MAX.into()) as u64)
}

impl<const N: usize> Poller<N> {
    /// For no sandbox yet.
    ///
    /// # Errors
    ///
    /// There is no descriptor left.
    pub fn new() -> Result<Self, Error> {
        let epoll = Fd(sys::epoll().map_err(Error::of(Sysno::epoll_create1))?);
        Ok(Self { epoll, due: [None; N], wants: [false; N], at: 0, events: [Event::default(); N] })
    }

    /// Adds a sandbox, which from then on is to be served here and nowhere else.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the key is not below `N`, `EEXIST` if it is taken or the sandbox has been added; the kernel's.
    pub fn add(&mut self, key: usize, sandbox: &Sandbox<'_>) -> Result<(), Error> {
        let failed = Error::of(Sysno::epoll_ctl);
        match self.due.get_mut(key) {
            None => Err(failed(Errno::EINVAL)),
            Some(Some(_)) => Err(failed(Errno::EEXIST)),
            Some(due) => {
                sys::epoll_add(self.epoll.0, sandbox.descriptor(), key as u64, false).map_err(failed)?;
                *due = Some(0);
                Ok(())
            }
        }
    }

    /// Forgets a sandbox: before it is dropped, unless [`serve`](Self::serve) has told its end.
    pub fn remove(&mut self, key: usize, sandbox: &Sandbox<'_>) {
        sys::epoll_remove(self.epoll.0, sandbox.descriptor());
        if let Some(due) = self.due.get_mut(key) {
            *due = None;
        }
    }

    /// Whether there is no sandbox left.
    pub fn is_empty(&self) -> bool {
        self.due.iter().all(Option::is_none)
    }

    /// Waits for up to `timeout` until it is a sandbox's turn. Its key, for [`serve`](Self::serve); `None` when the time is
    /// over.
    ///
    /// # Errors
    ///
    /// The kernel's, which the sandboxes have no part in.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Option<usize>, Error> {
        let until = timeout.map_or(NEVER, after);
        loop {
            while let Some(wants) = self.wants.get_mut(self.at) {
                let key = self.at;
                self.at += 1;
                if core::mem::take(wants) && self.due[key].is_some() {
                    return Ok(Some(key));
                }
            }
            self.at = 0;
            let now = sys::now();
            let first = self.due.iter().flatten().copied().min().unwrap_or(NEVER);
            let ms = match first.min(until) {
                NEVER => -1,
                then => then.saturating_sub(now).div_ceil(1_000_000).min(i32::MAX as u64) as i32,
            };
            let n = match sys::epoll_wait(self.epoll.0, &mut self.events, ms) {
                Err(Errno::EINTR) => 0,
                other => other.map_err(Error::of(Sysno::epoll_wait))?,
            };
            for event in self.events.iter().take(n) {
                if let Some(wants) = self.wants.get_mut(event.data as usize) {
                    *wants = true;
                }
            }
            let now = sys::now();
            let due = |due: &Option<u64>| due.is_some_and(|due| due <= now);
            self.wants.iter_mut().zip(&self.due).for_each(|(wants, at)| *wants |= due(at));
            if now >= until && !self.wants.contains(&true) {
                return Ok(None);
            }
        }
    }

    /// Gives the sandbox of this key its turn. `Some` when it has ended; it is forgotten then. An end takes as long as the
    /// kernel takes to kill its tasks.
    pub fn serve(&mut self, key: usize, sandbox: &mut Sandbox<'_>) -> Option<Outcome> {
        let outcome = sandbox.serve(Some(Duration::ZERO));
        if outcome.is_some() {
            self.remove(key, sandbox);
        } else if let Some(due) = self.due.get_mut(key) {
            *due = Some(sandbox.patience().map_or(NEVER, after));
        }
        outcome
    }
}
