//! Policies and requests: the builder, T's twin and the broker decide as a slow model does.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Too few bytes are no finding.
    let _ = ascetic_fuzz::requests::check(bytes);
});
