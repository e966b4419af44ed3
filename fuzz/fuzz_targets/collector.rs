//! Records and cores, as files: what is read is in them; a minidump of it, and a core, are read back by others.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|bytes: &[u8]| {
    // Too few bytes are no finding.
    let _ = ascetic_fuzz::collector::check(bytes);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    match if seed.is_multiple_of(2) { ascetic_fuzz::mutate::record(data, size, max_size, seed) } else { 0 } {
        0 => fuzzer_mutate(data, size, max_size),
        size => size,
    }
});
