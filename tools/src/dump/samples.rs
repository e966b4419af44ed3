//! Records and cores (`tests/samples/README.md`).

use ascetic::fault::record::Arch;

/// Records that the demo wrote.
pub(super) fn records() -> [(Arch, &'static [u8]); 2] {
    [
        (Arch::X86_64, include_bytes!("../../tests/samples/x86_64.record")),
        (Arch::X86, include_bytes!("../../tests/samples/i686.record")),
    ]
}

/// Cores that the kernel wrote.
pub(super) fn cores() -> [(Arch, &'static [u8]); 2] {
    [
        (Arch::X86_64, include_bytes!("../../tests/samples/x86_64.core")),
        (Arch::X86, include_bytes!("../../tests/samples/i686.core")),
    ]
}
