//! Records that the demo wrote (`tests/samples/README.md`).

use ascetic::fault::record::Arch;

/// One of each architecture.
pub(super) fn records() -> [(Arch, &'static [u8]); 2] {
    [
        (Arch::X86_64, include_bytes!("../../tests/samples/x86_64.record")),
        (Arch::X86, include_bytes!("../../tests/samples/i686.record")),
    ]
}
