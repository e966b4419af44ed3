//! The C interface: `libascetic.a`, and `include/ascetic.h`, which is made from what is here.
//!
//! All functions have one contract, the head of the header's: what it says of pointers is what makes a call safe.
//!
//! Freestanding like the runtime. Handles are in memory of the C program's `malloc`; everything else is the caller's.

#![no_std]
#![deny(missing_docs)]

mod config;
mod error;
mod guest;
mod memory;
mod policy;
mod sandbox;

/// Nothing here can panic as long as the checks before each call are right. A guest ends with a report, and the embedder
/// with SIGABRT.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    if runtime::untrusted::is_guest() {
        runtime::untrusted::abort();
    }
    // SAFETY: libc's, which has no conditions.
    unsafe { memory::abort() }
}

// The precompiled `core` names it; nothing unwinds here. Weak, for programs that have one because they hold more Rust.
core::arch::global_asm!(
    ".pushsection .text.rust_eh_personality,\"ax\",@progbits",
    ".weak rust_eh_personality",
    ".hidden rust_eh_personality",
    ".type rust_eh_personality,@function",
    "rust_eh_personality: ud2",
    ".size rust_eh_personality, . - rust_eh_personality",
    ".popsection",
);
