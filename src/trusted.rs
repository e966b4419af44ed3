//! T's code: where it is, and what it stands for.
//!
//! The code itself is `arch/*/birth.S` and `arch/*/direct.S`. It is position-independent and is copied into the vault,
//! where nobody can change it; what the linker placed is only the original.

use crate::arch;

/// Exit status of T when its doorbell does not answer as an eventfd does.
pub const EXIT_DOORBELL: u8 = 254;

/// The bytes of T's code, as linked.
pub fn code() -> &'static [u8] {
    let start = arch::asc_trusted_birth as *const u8;
    let len = (arch::asc_trusted_end as *const ()).addr() - start.addr();
    // SAFETY: both labels are in one section of one object, in this order; it is mapped readable and never written.
    unsafe { core::slice::from_raw_parts(start, len) }
}

/// Where in [`code`] a task starts.
#[derive(Clone, Copy, Debug)]
pub enum Entry {
    /// T: poisons its stack pointer, cleans its state, runs its script, serves.
    Trusted,
    /// T without the poison: experiments only.
    Unpoisoned,
    /// U: runs its script.
    Untrusted,
}

impl Entry {
    /// Offset in [`code`], in bytes.
    pub fn offset(self) -> usize {
        let label = match self {
            Self::Trusted => arch::asc_trusted_birth as *const (),
            Self::Unpoisoned => arch::asc_trusted_birth_unpoisoned as *const (),
            Self::Untrusted => arch::asc_script as *const (),
        };
        label.addr() - (arch::asc_trusted_birth as *const ()).addr()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_code_fits_in_a_page() {
        let len = super::code().len();
        assert!(len > 0 && len <= crate::abi::PAGE, "{len}");
    }
}
