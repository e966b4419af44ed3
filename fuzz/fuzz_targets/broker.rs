//! The broker's books: several pairs, any order of events, guests that lie, crash and forge, a kernel that fails; played, and judged by what each task sees.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| ascetic_fuzz::broker::check(bytes));
