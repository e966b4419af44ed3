//! The three ways to a dump, `ptrace` included: in QEMU, where the machine's settings can be changed, by the program `ways`
//! (`tests/ways`), which is built with std and so only there for x86_64.

use super::*;
use ascetic::sys::{self, Errno};
use core::ffi::CStr;
use freestanding::call;

pub const CASES: &[Case] = &[
    case("dump_ways_agree", || run(c"agree")),
    case("dump_ways_socket", || run(c"socket")),
    // The last of all: Yama does not go back from there before the next boot.
    case("dump_ways_where_nobody_may_trace", || run(c"untraced")),
];

/// Goes on as the program.
fn run(what: &CStr) {
    if !emulated() {
        skip("changes the machine's settings: in QEMU only");
    }
    others_are_spared();
    t_spins();
    let program = c"/ways";
    let argv = [program.as_ptr() as usize, what.as_ptr() as usize, 0];
    // SAFETY: the strings end in NUL, the lists in a null pointer.
    let error = unsafe {
        call(Sysno::execve, [program.as_ptr() as usize, argv.as_ptr() as usize, (&raw const argv[2]) as usize])
    };
    match error {
        Err(Errno::ENOENT) if cfg!(target_arch = "x86") => skip("the tracer is a program for x86_64"),
        other => check!(false, "{program:?}: {other:?}"),
    }
    sys::exit(126)
}
