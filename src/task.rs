//! A task of a sandbox, as its supervisor sees it.

use crate::error::{Error, Status};
use crate::make::Fd;
use crate::sys::{self, Sysno};

/// A task of a sandbox: a child of this process until it is reaped. Until then its process id is no other's; so it is reaped
/// only when all that it said has been heard.
#[derive(Debug)]
pub(crate) struct Task {
    /// 0 if there is none.
    pub(crate) pid: u32,
    pidfd: Option<Fd>,
    /// How it ended, once that was seen.
    pub(crate) status: Option<Status>,
    reaped: bool,
}

impl Task {
    pub(crate) const fn none() -> Self {
        Self::new(0)
    }

    pub(crate) const fn new(pid: u32) -> Self {
        Self { pid, pidfd: None, status: None, reaped: false }
    }

    /// Has its end told to an epoll, as `data`.
    pub(crate) fn watch(&mut self, epoll: i32, data: u64) -> Result<(), Error> {
        let pidfd = Fd(sys::pidfd_open(self.pid).map_err(Error::of(Sysno::pidfd_open))?);
        sys::epoll_add(epoll, pidfd.0, data, false).map_err(Error::of(Sysno::epoll_ctl))?;
        self.pidfd = Some(pidfd);
        Ok(())
    }

    /// Whether it is this process, reaped or not.
    pub(crate) fn is(&self, pid: u32) -> bool {
        self.pid == pid && pid != 0 && !self.reaped
    }

    /// Whether there is one that has not been seen to end.
    pub(crate) fn lives(&self) -> bool {
        self.pid != 0 && self.status.is_none()
    }

    /// Whether there is one, ended or not, that was not reaped.
    pub(crate) fn remains(&self) -> bool {
        self.pid != 0 && !self.reaped
    }

    /// Looks whether it has ended. Whether that is news.
    pub(crate) fn look(&mut self) -> bool {
        if !self.lives() {
            return false;
        }
        match sys::ended(self.pid) {
            Ok(None) => return false,
            Ok(Some(raw)) => self.status = Some(Status::from_raw(raw)),
            // Somebody else took it: all that is known is that it is gone.
            Err(_) => (self.status, self.reaped) = (Some(Status::Exited(255)), true),
        }
        self.pidfd = None; // it would go on telling its end
        true
    }

    /// Reaps a task that was seen to end.
    pub(crate) fn reap(&mut self) {
        if self.remains() && self.status.is_some() {
            let _ = sys::wait(self.pid, false);
            self.reaped = true;
        }
    }

    /// Sends a signal, if it lives.
    pub(crate) fn signal(&self, sig: i32) {
        if !self.lives() {
            return;
        }
        let _ = match &self.pidfd {
            // Somebody's filter may not know the call; the task is not reaped, so its id is its own.
            Some(fd) => sys::pidfd_send_signal(fd.0, sig).or_else(|_| sys::kill(self.pid, sig)),
            None => sys::kill(self.pid, sig),
        };
    }
}
