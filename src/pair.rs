//! The memory of a sandbox and its pairs: one reservation, made by the supervisor and inherited at the same addresses.
//!
//! ```text
//! low   guard   T's code   vault   a verdict for each pair   guard     sealed memfd, read-only (code: executable)
//!       a mailbox for each pair                                        memfd shared with the supervisor
//!       for each pair: state   guard   alternate stack   guard         private: U's runtime, and where its handlers run
//!       stack   guard                                                  private: where the first pair's guest code runs
//! high
//! ```
//!
//! There are addresses for [`PAIRS`] pairs at fixed distances, and memory for as many as the policy allows.

use crate::abi::{Mailbox, PAGE, PAIRS, STRIDE, VERDICT_TO_MAILBOX, Vault, Verdict};
use crate::error::Error;
use crate::policy::Bounds;
use crate::signal::AltStack;
use crate::sys::{self, Errno, Sysno};
use crate::untrusted::State;
use static_assertions::const_assert;

/// The smallest stack for guest code, in bytes.
pub const MIN_STACK: usize = 4 * PAGE;
/// Bytes of alternate stack that the runtime uses itself, besides the kernel's frames.
const HANDLER_STACK: usize = 6 * PAGE;

/// Bytes of alternate stack that there must be where the kernel's frame takes up to `frame` (`AT_MINSIGSTKSZ`). Three of them: a
/// call's, a copy of a guest's for its handler, and that of a fault in the reporter.
pub(crate) const fn altstack_needs(frame: usize) -> usize {
    frame.saturating_mul(3).saturating_add(HANDLER_STACK)
}
/// Bytes of the vault before the first verdict: T's code and the [`Vault`].
pub const VAULT_HEAD: usize = PAGE + size_of::<Vault>();
/// Bytes from one pair's private memory to the next. A power of two, to which the first is aligned: a stack pointer in a
/// handler tells the pair.
pub const PRIVATE: usize = 128 * 1024;

/// Bytes from the reservation's start to the first verdict, to the first mailbox, to the private memory.
const VERDICTS: usize = PAGE + VAULT_HEAD;
const MAILBOXES: usize = VERDICTS + VERDICT_TO_MAILBOX;
const STATES: usize = MAILBOXES + PAIRS * STRIDE;

const_assert!(size_of::<State>() % PAGE == 0);
const_assert!(size_of::<Mailbox>() <= STRIDE);

/// The addresses of a sandbox.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    reserved: (usize, usize),
    base: usize,
    pairs: usize,
    altstack_len: usize,
    stack: usize,
    stack_len: usize,
}

impl Layout {
    /// Reserves a sandbox's addresses, with memory for the state and the stacks of `pairs` pairs. `stack_len`, the stack of
    /// the first, is in bytes.
    pub fn reserve(pairs: usize, stack_len: usize) -> Result<Self, Error> {
        let frame = sys::auxv(sys::AT_MINSIGSTKSZ).unwrap_or(2 * PAGE); // before 5.14 the kernel does not say
        let altstack_len = altstack_needs(frame).next_multiple_of(PAGE);
        if stack_len < MIN_STACK || stack_len > isize::MAX as usize / 2 {
            return Err(Error::Stack { bytes: stack_len });
        }
        let errno = Errno::ENOMEM;
        if size_of::<State>() + altstack_len + 2 * PAGE > PRIVATE || pairs == 0 || pairs > PAIRS {
            return Err(Error::Supervisor { call: Sysno::sigaltstack, errno });
        }
        let stack_len = stack_len.next_multiple_of(PAGE);
        let len = STATES + PAIRS * PRIVATE + stack_len + PAGE;
        let reserved = sys::reserve(len + PRIVATE).map_err(|errno| Error::Supervisor { call: Sysno::mmap, errno })?;
        let base = (reserved + STATES).next_multiple_of(PRIVATE) - STATES;
        let stack = base + STATES + PAIRS * PRIVATE;
        let layout = Self { reserved: (reserved, len + PRIVATE), base, pairs, altstack_len, stack, stack_len };
        let private = (0..pairs).flat_map(|k| {
            [(layout.state(k).addr(), size_of::<State>()), (layout.altstack(k).sp, layout.altstack(k).size)]
        });
        let rw = sys::PROT_READ | sys::PROT_WRITE;
        for (addr, len) in private.chain([(stack, stack_len)]) {
            // SAFETY: the reservation is new; nobody refers to it.
            if let Err(errno) = unsafe { sys::mprotect(addr, len, rw) } {
                layout.release();
                return Err(Error::Supervisor { call: Sysno::mprotect, errno });
            }
        }
        Ok(layout)
    }

    /// Gives the addresses back, in the process that calls this.
    pub fn release(self) {
        // SAFETY: the reservation is this value's own; what pointed into it is gone with the sandbox's set-up.
        let _ = unsafe { sys::munmap(self.reserved.0, self.reserved.1) };
    }

    /// Bytes of the vault's file.
    pub fn vault_len(&self) -> usize {
        VAULT_HEAD + self.pairs * STRIDE
    }
    /// Bytes of the mailboxes' file.
    pub fn mailboxes_len(&self) -> usize {
        self.pairs * STRIDE
    }

    /// Maps the mailboxes over the reservation, in the process that becomes the sandbox.
    ///
    /// # Safety
    ///
    /// `mailboxes` is a memfd of [`mailboxes_len`](Self::mailboxes_len).
    pub unsafe fn map_mailboxes(&self, mailboxes: i32) -> Result<(), Errno> {
        let rw = sys::PROT_READ | sys::PROT_WRITE;
        // SAFETY: the addresses are reserved for this and hold nothing yet.
        unsafe { sys::map_shared_at(self.mailbox(0).addr(), self.mailboxes_len(), rw, mailboxes, 0) }
    }

    /// Maps the vault over the reservation, in the process that becomes the sandbox. `writable`, for experiments, leaves
    /// it open to writes.
    ///
    /// # Safety
    ///
    /// `vault` is a memfd of [`vault_len`](Self::vault_len).
    pub unsafe fn map_vault(&self, vault: i32, writable: bool) -> Result<(), Errno> {
        let (r, rw, rx) = (sys::PROT_READ, sys::PROT_READ | sys::PROT_WRITE, sys::PROT_READ | sys::PROT_EXEC);
        let (data, len) = (self.vault().addr(), self.vault_len()); // one page more than the file has: `behind_vault`
        // SAFETY: the addresses are reserved for this and hold nothing yet.
        unsafe {
            sys::map_shared_at(self.code(), PAGE, rx, vault, 0)?;
            sys::map_shared_at(data, len, if writable { rw } else { r }, vault, PAGE)
        }
    }

    /// Seals what T depends on: nobody can unmap, move or replace it. `ENOSYS` before Linux 6.10.
    pub fn seal(&self) -> Result<(), Errno> {
        sys::mseal(self.base, STATES)
    }

    /// What no argument of a direct call may point to.
    pub fn bounds(&self, fd_lo: u32, fd_len: u32) -> Bounds {
        Bounds { vault_lo: self.base, vault_len: MAILBOXES, fd_lo, fd_len }
    }

    /// What no change of mappings may meet: from (included) to (excluded).
    pub fn own(&self) -> (usize, usize) {
        (self.reserved.0, self.stack)
    }

    /// T's code.
    pub fn code(&self) -> usize {
        self.base + PAGE
    }
    /// T's base.
    pub fn vault(&self) -> *const Vault {
        (self.base + 2 * PAGE) as *const Vault
    }
    /// The verdict of pair `k`.
    pub fn verdict(&self, k: usize) -> *const Verdict {
        (self.base + VERDICTS + k * STRIDE) as *const Verdict
    }
    /// The mailbox of pair `k`.
    pub fn mailbox(&self, k: usize) -> *mut Mailbox {
        (self.base + MAILBOXES + k * STRIDE) as *mut Mailbox
    }
    /// The state of U's runtime in pair `k`.
    pub fn state(&self, k: usize) -> *mut State {
        (self.base + STATES + k * PRIVATE) as *mut State
    }
    /// The alternate stack of pair `k`.
    pub fn altstack(&self, k: usize) -> AltStack {
        AltStack { sp: self.state(k).addr() + size_of::<State>() + PAGE, flags: 0, size: self.altstack_len }
    }
    /// Lowest address and length of the first pair's stack, in bytes.
    pub fn stack(&self) -> (usize, usize) {
        (self.stack, self.stack_len)
    }
    /// How many pairs there can be.
    pub fn pairs(&self) -> usize {
        self.pairs
    }
}

/// In U's runtime: what lies at fixed distances from a pair's state, given the pair's number.
pub mod from_state {
    use super::*;

    /// The pair's mailbox.
    pub fn mailbox(state: *mut State, k: usize) -> *mut Mailbox {
        let first = state.addr() - k * PRIVATE;
        state.with_addr(first - STATES + MAILBOXES + k * STRIDE).cast()
    }
    /// The pair's verdict.
    pub fn verdict(state: *mut State, k: usize) -> *const Verdict {
        state.with_addr(mailbox(state, k).addr() - VERDICT_TO_MAILBOX).cast()
    }
    /// The vault.
    pub fn vault(state: *mut State, k: usize) -> *const Vault {
        state.with_addr(state.addr() - k * PRIVATE - STATES + 2 * PAGE).cast()
    }
    /// Mapped, but behind the end of the vault's file: reading it raises SIGBUS.
    pub fn behind_vault(state: *mut State, k: usize, pairs: usize) -> usize {
        let first = mailbox(state, k).addr().wrapping_sub(k.wrapping_mul(STRIDE));
        first.wrapping_sub(VERDICT_TO_MAILBOX).wrapping_add(pairs.wrapping_mul(STRIDE))
    }
    /// The state of the first pair.
    pub fn first(state: *mut State, k: usize) -> *mut State {
        state.with_addr(state.addr() - k * PRIVATE)
    }
    /// The state that an address in private memory belongs to.
    pub fn of(private: usize) -> *mut State {
        (private & !(PRIVATE - 1)) as *mut State
    }
}
