//! Fault records: whatever the bytes are, the decoder's answers hold together.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = ascetic::fault::record::Record::decode(bytes);
});
