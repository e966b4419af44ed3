//! Names of numbers, for people.

use ascetic::fault::record::Arch;
use syscalls::{x86, x86_64};

/// The architecture, as in target triples.
pub(super) fn arch_name(arch: Arch) -> &'static str {
    match arch {
        Arch::X86 => "i686",
        Arch::X86_64 => "x86_64",
    }
}

/// A system call's name, or its number if it has none.
pub(super) fn call_name(arch: Arch, nr: u64) -> String {
    let name = usize::try_from(nr).ok().and_then(|nr| match arch {
        Arch::X86 => Some(x86::Sysno::new(nr)?.name()),
        Arch::X86_64 => Some(x86_64::Sysno::new(nr)?.name()),
    });
    name.map_or_else(|| format!("call {nr}"), str::to_owned)
}

/// A signal's name, or its number if it has none.
pub(super) fn signal_name(signal: i32) -> &'static str {
    ascetic::signal::name(signal)
}
