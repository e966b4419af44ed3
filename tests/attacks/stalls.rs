//! Page faults that others answer, or do not: userfaultfd.

use super::*;
use ascetic::error::{Error, Finding};
use ascetic::sys::{self, Sysno};
use core::time::Duration;

pub const CASES: &[Case] =
    &[case("attack_userfaultfd", || userfaultfd(false)), case("attack_userfaultfd_off_shows_it", || userfaultfd(true))];

const PAGE: usize = 4096;

/// The embedder's page faults are told to whoever reads the descriptor. A guest that does learns where, and the embedder waits.
fn userfaultfd(off: bool) {
    const USER_MODE_ONLY: usize = 1;
    const API: usize = 0xc018_aa3f;
    const REGISTER: usize = 0xc020_aa00;
    const MISSING: u64 = 1;
    /// Reads `struct uffd_msg`: an event, and behind it an address.
    extern "C" fn guest(fd: usize) -> i32 {
        let mut message = [0u8; 32];
        let read = sys::read(fd as i32, &mut message);
        let at = u64::from_ne_bytes(message[16..24].try_into().unwrap_or_default()) as usize & !(PAGE - 1);
        i32::from(
            read != Ok(32) || at != core::sync::atomic::AtomicUsize::load(&AT, core::sync::atomic::Ordering::SeqCst),
        )
    }
    static AT: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(0);
    let at = sys::map_private(PAGE, sys::PROT_READ | sys::PROT_WRITE).unwrap();
    AT.store(at, core::sync::atomic::Ordering::SeqCst);
    // SAFETY: makes a descriptor.
    let Ok(fd) = (unsafe { freestanding::call(Sysno::userfaultfd, [USER_MODE_ONLY]) }) else {
        skip("no userfaultfd on this kernel");
    };
    let mut api = [0xaau64, 0, 0];
    let mut register = [at as u64, PAGE as u64, MISSING, 0];
    // SAFETY: structures of this function's own.
    unsafe {
        let asked = freestanding::call(Sysno::ioctl, [fd, API, api.as_mut_ptr().addr()]);
        check!(asked.is_ok(), "{asked:?}");
        let asked = freestanding::call(Sysno::ioctl, [fd, REGISTER, register.as_mut_ptr().addr()]);
        check!(asked.is_ok(), "{asked:?}");
    }
    let keep = [1, 2, fd as i32];
    let mut config = Config { keep: &keep, ..config() };
    if !off {
        let found = sandbox::spawn(&config, guest, fd).map(drop);
        return check!(matches!(found, Err(Error::Found { finding: Finding::Userfaultfd, .. })), "{found:?}");
    }
    config.weaken.no_audit = true;
    let mut sandbox = spawn(&config, guest, fd);
    touch_in_a_thread(at);
    let outcome = sandbox.wait(Some(Duration::from_secs(20)));
    check!(outcome.guest == Status::Exited(0), "{outcome:?}");
    drop(sandbox);
    end_children();
    // SAFETY: ends the thread, which waits for its page, too.
    let _ = unsafe { freestanding::call(Sysno::exit_group, [0]) };
}

/// A thread of the embedder's that touches a page, and stays there.
fn touch_in_a_thread(at: usize) {
    use freestanding::threads::{THREAD, stack};
    // SAFETY: the child has a stack of its own, touches the page, and stays.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        core::arch::asm!("syscall", "test eax, eax", "jnz 3f", "mov byte ptr [r12], 1", "2: pause", "jmp 2b", "3:",
            inlateout("rax") Sysno::clone as usize => _, in("rdi") THREAD, in("rsi") stack(0) - 64, in("rdx") 0,
            in("r10") 0, in("r8") 0, in("r12") at, out("rcx") _, out("r11") _);
        #[cfg(target_arch = "x86")]
        core::arch::asm!("xchg ebx, edi", "int 0x80", "xchg ebx, edi", "test eax, eax", "jnz 3f",
            "mov byte ptr [edx], 1", "2: pause", "jmp 2b", "3:",
            inlateout("eax") Sysno::clone as usize => _, inout("edi") THREAD => _, in("ecx") stack(0) - 64, in("edx") at);
    }
}
