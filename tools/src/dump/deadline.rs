//! How long it may take to make sense of what others wrote.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// A time by which a conversion is to be done. Whoever works looks at it and leaves off; what tells most comes first, so that
/// what there is then still says what happened.
#[derive(Debug)]
pub struct Deadline {
    at: Option<Instant>,
    limit: Duration,
    exceeded: Cell<Option<&'static str>>,
}

/// A conversion took too long. What it led to is incomplete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline of {} ms was exceeded while {doing}", limit.as_millis())]
pub struct Exceeded {
    /// The time that there was.
    pub limit: Duration,
    /// What was being done.
    pub doing: &'static str,
}

impl Deadline {
    /// So much time from now on.
    pub fn after(limit: Duration) -> Self {
        Self { at: Instant::now().checked_add(limit), limit, exceeded: Cell::new(None) }
    }

    /// As much time as it takes.
    pub fn never() -> Self {
        Self { at: None, limit: Duration::MAX, exceeded: Cell::new(None) }
    }

    /// How much is left; `None` for no end.
    pub fn left(&self) -> Option<Duration> {
        self.at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether it has passed; what was being done then is remembered.
    pub fn passed(&self, doing: &'static str) -> bool {
        let passed = self.left() == Some(Duration::ZERO);
        if passed && self.exceeded.get().is_none() {
            self.exceeded.set(Some(doing));
        }
        passed
    }

    /// What was being done when somebody left off, if anybody did.
    ///
    /// # Errors
    /// Naming it.
    pub fn kept(&self) -> Result<(), Exceeded> {
        self.exceeded.get().map_or(Ok(()), |doing| Err(Exceeded { limit: self.limit, doing }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_leaves_off_is_named() {
        let deadline = Deadline::after(Duration::ZERO);
        assert!(deadline.kept().is_ok());
        assert!(deadline.passed("reading") && deadline.passed("writing"));
        let said = deadline.kept().unwrap_err().to_string();
        assert_eq!(said, "the deadline of 0 ms was exceeded while reading");
        let never = Deadline::never();
        assert!(!never.passed("reading") && never.left().is_none() && never.kept().is_ok());
        assert!(!Deadline::after(Duration::MAX).passed("reading"));
    }
}
