//! A task of a sandbox, as its supervisor sees it.

use crate::error::{Error, Status};
use crate::make::Fd;
use crate::signal::SIGKILL;
use crate::sys::{self, Sysno};

/// A task of a sandbox: a child of this process until it is reaped.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) pid: u32,
    pidfd: Option<Fd>,
    pub(crate) status: Option<Status>,
    /// The process whose child it is.
    owner: u32,
}

impl Task {
    pub(crate) fn new(pid: u32) -> Self {
        Self { pid, pidfd: None, status: None, owner: sys::pids().0 }
    }

    /// Has its end told to an epoll, as `data`.
    pub(crate) fn watch(&mut self, epoll: i32, data: u64) -> Result<(), Error> {
        let pidfd = Fd(sys::pidfd_open(self.pid).map_err(Error::of(Sysno::pidfd_open))?);
        sys::epoll_add(epoll, pidfd.0, data, false).map_err(Error::of(Sysno::epoll_ctl))?;
        self.pidfd = Some(pidfd);
        Ok(())
    }

    /// Whether there is nothing to be ended any more.
    pub(crate) fn gone(&self) -> bool {
        self.pid == 0 || self.status.is_some()
    }

    /// Takes the status if the task has ended.
    pub(crate) fn reap(&mut self, block: bool) -> Option<Status> {
        if self.status.is_none() && self.pid != 0 {
            self.status = match sys::wait(self.pid, block) {
                Ok(raw) => raw.map(Status::from_raw),
                // Somebody else took it: all that is known is that it is gone.
                Err(_) => Some(Status::Exited(255)),
            };
        }
        if self.status.is_some() {
            self.pidfd = None; // it would go on telling its end
        }
        self.status
    }

    /// Sends a signal, if the task was made.
    pub(crate) fn signal(&self, sig: i32) {
        let _ = match &self.pidfd {
            // Somebody's filter may not know the call; the task is not reaped, so its id is its own.
            Some(fd) => sys::pidfd_send_signal(fd.0, sig).or_else(|_| sys::kill(self.pid, sig)),
            None if self.pid != 0 => sys::kill(self.pid, sig),
            None => Ok(()),
        };
    }

    pub(crate) fn end(&mut self) -> Status {
        if self.reap(false).is_none() {
            self.signal(SIGKILL);
        }
        self.reap(true).unwrap_or(Status::Exited(255))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // A forked copy of this value, in a process that is not the parent, ends nothing.
        if self.owner == sys::pids().0 {
            self.end();
        }
    }
}
