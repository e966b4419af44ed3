//! What T may do for the guest: pure data, pure decisions.
//!
//! ```
//! use ascetic::{policy::Policy, sys::Sysno};
//! const POLICY: Policy = Policy::new().direct(Sysno::getppid).direct(Sysno::nanosleep).refuse(Sysno::clone3, 38);
//! ```
//!
//! A call that may not be direct does not compile:
//!
//! ```compile_fail
//! use ascetic::{policy::Policy, sys::Sysno};
//! const POLICY: Policy = Policy::new().direct(Sysno::kill);
//! ```

use crate::abi::{ROW_ALLOW, ROW_ERRNO, ROW_FDS, ROW_SMALL, SMALL, TABLE_LEN};
use crate::direct::{DIRECT, why_not};
use crate::sys::{EBADF, EFAULT, EINVAL, Sysno};
use static_assertions::const_assert;

const ENOSYS: u32 = 38;
const_assert!(Sysno::table_size() <= TABLE_LEN);

/// A policy: one row for every call number. Build it as a `const`, so that mistakes do not compile.
#[derive(Clone, Debug)]
pub struct Policy {
    rows: [u32; TABLE_LEN],
    default_errno: u32,
}

impl Policy {
    /// Refuses every call with `ENOSYS`, so that a libc falls back, except for `clock_gettime`: the runtime needs that
    /// to answer the guest's `rdtsc`.
    pub const fn new() -> Self {
        let none = Self { rows: [ENOSYS; TABLE_LEN], default_errno: ENOSYS };
        none.direct(Sysno::clock_gettime)
    }

    /// Refuses calls that are not mentioned otherwise with this `errno` (1 to 4095) instead. Say it first.
    pub const fn default_errno(mut self, errno: u32) -> Self {
        check_errno(errno);
        let mut nr = 0;
        while nr < TABLE_LEN {
            if self.rows[nr] & ROW_ALLOW == 0 {
                self.rows[nr] = errno;
            }
            nr += 1;
        }
        self.default_errno = errno;
        self
    }

    /// Allows a call in the direct lane.
    ///
    /// # Panics
    ///
    /// In a `const`, that is: does not compile. If the call is not on the [list](crate::direct::DIRECT).
    pub const fn direct(self, call: Sysno) -> Self {
        match self.try_direct(call) {
            Ok(policy) => policy,
            Err(error) => refuse_to_build(error),
        }
    }

    /// Allows a call in the direct lane, for policies that are not built at compile time.
    ///
    /// # Errors
    ///
    /// If the call is not on the [list](crate::direct::DIRECT).
    pub const fn try_direct(mut self, call: Sysno) -> Result<Self, NotDirect> {
        let mut i = 0;
        while i < DIRECT.len() {
            if DIRECT[i].call as usize == call as usize {
                self.rows[call as usize] = ROW_ALLOW | DIRECT[i].row;
                return Ok(self);
            }
            i += 1;
        }
        Err(NotDirect { call, why: why_not(call) })
    }

    /// Refuses a call with an `errno` of its own (1 to 4095).
    pub const fn refuse(mut self, call: Sysno, errno: u32) -> Self {
        check_errno(errno);
        self.rows[call as usize] = errno;
        self
    }

    /// The table, as T reads it.
    pub fn rows(&self) -> &[u32; TABLE_LEN] {
        &self.rows
    }

    /// The `errno` for numbers beyond the table.
    pub fn errno_beyond(&self) -> u32 {
        self.default_errno
    }

    /// What T decides: the readable twin of `arch/*/direct.S`, against which tests hold the assembly.
    pub fn decide(&self, bounds: &Bounds, nr: u32, args: &[usize; 6]) -> Decision {
        let Some(row) = self.rows.get(nr as usize) else {
            return Decision::Refuse(self.default_errno as i32);
        };
        if row & ROW_ALLOW == 0 {
            return Decision::Refuse((row & ROW_ERRNO) as i32);
        }
        for (i, arg) in args.iter().enumerate() {
            if arg.wrapping_sub(bounds.vault_lo) < bounds.vault_len {
                return Decision::Refuse(EFAULT);
            }
            let is_fd = row & ROW_FDS & (1 << i) != 0;
            if is_fd && (*arg as u32).wrapping_sub(bounds.fd_lo) < bounds.fd_len {
                return Decision::Refuse(EBADF);
            }
            if i == 0 && row & ROW_SMALL != 0 && *arg as u32 >= SMALL {
                return Decision::Refuse(EINVAL);
            }
        }
        Decision::Allow
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new()
    }
}

/// A call that may not be direct: the embedder's mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotDirect {
    /// The call.
    pub call: Sysno,
    /// Why not.
    pub why: &'static str,
}

impl core::fmt::Display for NotDirect {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "`{}` may not be a direct call: {}", self.call.name(), self.why)
    }
}

impl core::error::Error for NotDirect {}

/// What no argument may point to.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// First address of the vault.
    pub vault_lo: usize,
    /// Its length in bytes.
    pub vault_len: usize,
    /// First protected descriptor.
    pub fd_lo: u32,
    /// How many are protected.
    pub fd_len: u32,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// T makes the call.
    Allow,
    /// T answers with this `errno`.
    Refuse(i32),
}

const fn check_errno(errno: u32) {
    assert!(errno >= 1 && errno <= ROW_ERRNO, "an errno is a number from 1 to 4095");
}

/// Says which call and why: the message of the compiler's error, which cannot format.
const fn refuse_to_build(error: NotDirect) -> ! {
    let mut text = [0u8; 192];
    let mut len = 0;
    let parts = ["`", error.call.name(), "` may not be a direct call: ", error.why];
    let mut p = 0;
    while p < parts.len() {
        let bytes = parts[p].as_bytes();
        let mut i = 0;
        while i < bytes.len() && len < text.len() {
            text[len] = bytes[i];
            len += 1;
            i += 1;
        }
        p += 1;
    }
    match core::str::from_utf8(text.split_at(len).0) {
        Ok(text) => panic!("{}", text),
        Err(_) => panic!("this call may not be direct"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { vault_lo: 0x7000_0000, vault_len: 0x5000, fd_lo: 10, fd_len: 6 };

    #[test]
    fn every_listed_call_is_accepted_and_its_neighbours_are_as_the_list_says() {
        let none = Policy::new();
        for row in DIRECT {
            let policy = none.clone().direct(row.call);
            assert_eq!(policy.decide(&BOUNDS, row.call as u32, &[0; 6]), Decision::Allow, "{}", row.call.name());
            for nr in [row.call as u32 - u32::from(row.call as u32 > 0), row.call as u32 + 1] {
                let neighbour = policy.decide(&BOUNDS, nr, &[0; 6]);
                let expected = nr == row.call as u32 || nr == Sysno::clock_gettime as u32;
                assert_eq!(neighbour == Decision::Allow, expected, "{} beside {}", nr, row.call.name());
            }
        }
    }

    #[test]
    fn what_is_not_listed_is_refused_by_the_builder() {
        let listed = |call: Sysno| DIRECT.iter().any(|row| row.call == call);
        for call in Sysno::iter().filter(|call| !listed(*call)) {
            let built = std::panic::catch_unwind(|| Policy::new().direct(call));
            let message = *built.expect_err(call.name()).downcast::<String>().unwrap();
            let error = Policy::new().try_direct(call).expect_err("it is not listed");
            assert_eq!(message, error.to_string());
        }
    }

    #[test]
    fn no_argument_may_point_into_the_vault() {
        let policy = Policy::new().direct(Sysno::getppid);
        for i in 0..6 {
            for (at, refused) in [(0x6fff_ffff, false), (0x7000_0000, true), (0x7000_4fff, true), (0x7000_5000, false)]
            {
                let mut args = [0; 6];
                args[i] = at;
                let decision = policy.decide(&BOUNDS, Sysno::getppid as u32, &args);
                assert_eq!(decision == Decision::Refuse(EFAULT), refused, "argument {i} = {at:#x}");
            }
        }
    }

    #[test]
    fn protected_descriptors_are_refused_by_their_low_half() {
        let policy = Policy::new().direct(Sysno::dup2);
        let decide = |a, b| policy.decide(&BOUNDS, Sysno::dup2 as u32, &[a, b, 10, 0, 0, 0]);
        assert_eq!(decide(9, 16), Decision::Allow);
        assert_eq!(decide(10, 1), Decision::Refuse(EBADF));
        assert_eq!(decide(1, 15), Decision::Refuse(EBADF));
        #[cfg(target_pointer_width = "64")]
        assert_eq!(decide(1 << 32 | 10, 1), Decision::Refuse(EBADF));
    }

    #[test]
    fn the_numbers_agree_with_a_second_table() {
        #[cfg(target_arch = "x86_64")]
        for (ours, theirs) in [
            (Sysno::read, sc::nr::READ),
            (Sysno::write, sc::nr::WRITE),
            (Sysno::exit, sc::nr::EXIT),
            (Sysno::rt_sigreturn, sc::nr::RT_SIGRETURN),
            (Sysno::clone, sc::nr::CLONE),
            (Sysno::prctl, sc::nr::PRCTL),
            (Sysno::futex, sc::nr::FUTEX),
            (Sysno::getppid, sc::nr::GETPPID),
            (Sysno::close, sc::nr::CLOSE),
            (Sysno::dup2, sc::nr::DUP2),
            (Sysno::clock_gettime, sc::nr::CLOCK_GETTIME),
            (Sysno::sigaltstack, sc::nr::SIGALTSTACK),
            (Sysno::rt_sigaction, sc::nr::RT_SIGACTION),
            (Sysno::close_range, sc::nr::CLOSE_RANGE),
        ] {
            assert_eq!(ours as usize, theirs, "{}", ours.name());
        }
    }
}
