//! A pair's memory: one reservation, made by the supervisor and inherited by the sandbox at the same addresses.
//!
//! ```text
//! low   guard   T's code   vault page   verdict page   guard     the vault: sealed memfd, read-only (code: executable)
//!       mailbox                                                  memfd shared with the supervisor
//!       guest state                                              private: U's runtime and reporter
//!       guard   alternate stack                                  private: where U's handlers run
//!       guard   stack                                            private: where guest code runs
//! high  guard
//! ```

use crate::abi::{Mailbox, PAGE, VaultPage, VerdictPage};
use crate::error::Error;
use crate::policy::Bounds;
use crate::signal::AltStack;
use crate::sys::{self, Errno, Sysno};
use crate::untrusted::State;
use static_assertions::const_assert;

/// The smallest stack for guest code, in bytes.
pub const MIN_STACK: usize = 4 * PAGE;
/// Bytes of alternate stack that the reporter uses itself, besides the kernel's frames.
const REPORTER_STACK: usize = 4 * PAGE;
/// Pages of the vault that have content: code, vault page, verdict page.
pub const VAULT_PAGES: usize = 3;

const_assert!(size_of::<State>() % PAGE == 0);

/// The addresses of a pair.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    base: usize,
    len: usize,
    altstack: usize,
    altstack_len: usize,
    stack: usize,
    stack_len: usize,
}

impl Layout {
    /// Reserves a pair's addresses, with memory for its state and stacks. `stack_len` is in bytes.
    pub fn reserve(stack_len: usize) -> Result<Self, Error> {
        let frame = sys::auxv(sys::AT_MINSIGSTKSZ).unwrap_or(2 * PAGE); // before 5.14 the kernel does not say
        // Two frames: a fault in the reporter gets one, too.
        let altstack_len = (2 * frame + REPORTER_STACK).next_multiple_of(PAGE);
        if stack_len < MIN_STACK || stack_len > isize::MAX as usize / 2 {
            return Err(Error::Stack { bytes: stack_len });
        }
        let stack_len = stack_len.next_multiple_of(PAGE);
        let vault_and_mailbox = (VAULT_PAGES + 3) * PAGE;
        let len = vault_and_mailbox + size_of::<State>() + 3 * PAGE + altstack_len + stack_len;
        let base = sys::reserve(len).map_err(|errno| Error::Supervisor { call: Sysno::mmap, errno })?;
        let altstack = base + vault_and_mailbox + size_of::<State>() + PAGE;
        let stack = altstack + altstack_len + PAGE;
        let layout = Self { base, len, altstack, altstack_len, stack, stack_len };
        let rw = sys::PROT_READ | sys::PROT_WRITE;
        for (addr, len) in [(layout.state().addr(), size_of::<State>()), (altstack, altstack_len), (stack, stack_len)] {
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
        let _ = unsafe { sys::munmap(self.base, self.len) };
    }

    /// Maps the mailbox over the reservation, in the process that becomes the sandbox.
    ///
    /// # Safety
    ///
    /// `mailbox` is a memfd of one page.
    pub unsafe fn map_mailbox(&self, mailbox: i32) -> Result<(), Errno> {
        let rw = sys::PROT_READ | sys::PROT_WRITE;
        // SAFETY: the address is reserved for this and holds nothing yet.
        unsafe { sys::map_shared_at(self.mailbox().addr(), PAGE, rw, mailbox, 0) }
    }

    /// Maps the vault over the reservation, in the process that becomes the sandbox. `writable`, for experiments, leaves
    /// it open to writes.
    ///
    /// # Safety
    ///
    /// `vault` is a memfd of [`VAULT_PAGES`].
    pub unsafe fn map_vault(&self, vault: i32, writable: bool) -> Result<(), Errno> {
        let (r, rw, rx) = (sys::PROT_READ, sys::PROT_READ | sys::PROT_WRITE, sys::PROT_READ | sys::PROT_EXEC);
        // SAFETY: the addresses are reserved for this and hold nothing yet.
        unsafe {
            sys::map_shared_at(self.code(), PAGE, rx, vault, 0)?;
            sys::map_shared_at(self.vault().addr(), 2 * PAGE, if writable { rw } else { r }, vault, PAGE)
        }
    }

    /// Seals what T depends on: nobody can unmap, move or replace it. `ENOSYS` before Linux 6.10.
    pub fn seal(&self) -> Result<(), Errno> {
        sys::mseal(self.base, (VAULT_PAGES + 3) * PAGE)
    }

    /// What no argument of a direct call may point to.
    pub fn bounds(&self, fd_lo: u32, fd_len: u32) -> Bounds {
        Bounds { vault_lo: self.base, vault_len: (VAULT_PAGES + 2) * PAGE, fd_lo, fd_len }
    }

    /// T's code.
    pub fn code(&self) -> usize {
        self.base + PAGE
    }
    /// T's base page.
    pub fn vault(&self) -> *const VaultPage {
        (self.base + 2 * PAGE) as *const VaultPage
    }
    /// The pair's verdict page.
    pub fn verdict(&self) -> *const VerdictPage {
        (self.base + 3 * PAGE) as *const VerdictPage
    }
    /// The pair's mailbox.
    pub fn mailbox(&self) -> *mut Mailbox {
        (self.base + (VAULT_PAGES + 2) * PAGE) as *mut Mailbox
    }
    /// The state of U's runtime.
    pub fn state(&self) -> *mut State {
        (self.base + (VAULT_PAGES + 3) * PAGE) as *mut State
    }
    /// U's alternate stack.
    pub fn altstack(&self) -> AltStack {
        AltStack { sp: self.altstack, flags: 0, size: self.altstack_len }
    }
    /// Lowest address and length of the guest's stack, in bytes.
    pub fn stack(&self) -> (usize, usize) {
        (self.stack, self.stack_len)
    }
    /// Lowest address and length of the whole, in bytes.
    pub fn whole(&self) -> (usize, usize) {
        (self.base, self.len)
    }
}
