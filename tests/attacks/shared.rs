//! Memory that others see: SysV's. (A memfd is in `misuse.rs` of the guest cases.)

use super::*;
use ascetic::error::{Error, Finding};
use ascetic::sys::{Result, Sysno};

pub const CASES: &[Case] = &[case("attack_sysv", || sysv(false)), case("attack_sysv_off_shows_it", || sysv(true))];

/// Makes a segment that goes with its last user, and attaches it. A kernel before 5.1 has one call for both on i386; those of
/// its own are newer.
fn attach() -> Result<usize> {
    const PRIVATE: usize = 0;
    const REMOVE: usize = 0;
    // SAFETY: new memory; i386's structures are not used.
    unsafe {
        let id = freestanding::call(Sysno::shmget, [PRIVATE, 4096, 0o1600])?;
        let at = freestanding::call(Sysno::shmat, [id, 0, 0]);
        let _ = freestanding::call(Sysno::shmctl, [id, REMOVE, 0]);
        at
    }
}

fn sysv(off: bool) {
    extern "C" fn guest(at: usize) -> i32 {
        // SAFETY: the segment, as the embedder attached it.
        unsafe { (at as *mut u32).write_volatile(77) };
        0
    }
    let at = match attach() {
        Err(ascetic::sys::Errno::ENOSYS) => skip("this kernel has no memory of SysV"),
        other => other.unwrap(),
    };
    let mut config = config();
    if off {
        config.weaken.no_audit = true;
        must_exit(&config, guest, at, 0);
    } else {
        let found = sandbox::spawn(&config, guest, at).map(drop);
        check!(matches!(found, Err(Error::Found { finding: Finding::SharedMemory, .. })), "{found:?}");
        // What the guest has made is not refused, but it cannot make any.
        extern "C" fn makes(_: usize) -> i32 {
            // SAFETY: T refuses it.
            let made = unsafe { ascetic::untrusted::call(Sysno::shmget, [0, 4096, 0o1600, 0, 0, 0]) };
            i32::from(made != Err(ascetic::sys::Errno::ENOSYS))
        }
        // SAFETY: nobody uses it.
        check!(unsafe { freestanding::call(Sysno::shmdt, [at]) }.is_ok());
        return must_exit(&config, makes, 0, 0);
    }
    // SAFETY: attached, and the guest has ended.
    check!(unsafe { (at as *const u32).read_volatile() } == 77);
}
