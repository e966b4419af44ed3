//! Changes of mappings: what the broker allows is really done, in a process beside, and what must stay there stays.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Too few bytes are no finding.
    let _ = ascetic_fuzz::ranges::check(bytes);
});
