//! A std program that runs a function in a sandbox, and reads the report when it crashes.
//!
//! `cargo run --example embed`

use ascetic::{
    fault::record::Record,
    policy::Policy,
    sandbox::{self, Config, RECORD_MAX},
    sys::Sysno,
    untrusted,
};
use std::time::Duration;

/// What the trusted thread may do for the guest; every other call is answered with ENOSYS.
const POLICY: Policy = Policy::new().direct(Sysno::getppid).direct(Sysno::uname);

extern "C" fn well_behaved(arg: usize) -> i32 {
    // SAFETY: getppid touches no memory.
    let parent = unsafe { untrusted::call(Sysno::getppid, [0; 6]) };
    // SAFETY: the call is refused before anybody looks at the arguments.
    let denied = unsafe { untrusted::call(Sysno::openat, [0; 6]) };
    (parent.is_ok() && denied.is_err()) as i32 + arg as i32
}

extern "C" fn crashes(arg: usize) -> i32 {
    untrusted::annotate("input", "example");
    // SAFETY: none: this is the bug.
    unsafe { (arg as *mut u8).write_volatile(1) };
    0
}

fn main() -> Result<(), ascetic::error::Error> {
    let config = Config { keep: &[1, 2], ..Config::new(&POLICY) };

    let mut sandbox = sandbox::spawn(&config, well_behaved, 41)?;
    println!("well behaved: {}", sandbox.wait(Some(Duration::from_secs(5))).guest);

    let mut sandbox = sandbox::spawn(&config, crashes, 0x1234)?;
    let outcome = sandbox.wait(Some(Duration::from_secs(5)));
    println!("crashes: {}", outcome.guest);
    let mut bytes = vec![0; RECORD_MAX];
    if let Some(record) = Record::decode(sandbox.record(&mut bytes)) {
        println!("  {}", record.text);
        println!("  {}; complete: {}", record.class().describe(), record.complete);
        for pc in record.backtrace() {
            println!("  at {pc:#x}");
        }
    }
    Ok(())
}
