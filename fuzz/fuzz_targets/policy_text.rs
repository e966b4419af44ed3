//! Policies as text: what is read is what was said, and a mistake has its place.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Too few bytes are no finding.
    let _ = ascetic_fuzz::text::check(bytes);
});
