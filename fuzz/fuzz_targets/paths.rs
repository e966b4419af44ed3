//! Paths: what a guest asks for is done in a real tree, and must be what a plain call does in another, or nothing if it leads out.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| ascetic_fuzz::paths::check(bytes));
