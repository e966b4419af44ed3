//! Other ways into the kernel than the one that strict mode was written for: x32 numbers, the vsyscall page.

use super::super::supervisor::read_proc;
use super::*;
use ascetic::sys;

pub const CASES: &[Case] = &[
    case("attack_x32", || x32(false)),
    case("attack_x32_off_shows_it", || x32(true)),
    case("attack_vsyscall", || vsyscall(false)),
    case("attack_vsyscall_off_shows_it", || vsyscall(true)),
];

/// What a guest says that has made the call.
const WON: u8 = 66;

/// `getpid` as x32 numbers it.
fn getpid_x32() -> isize {
    let result;
    // SAFETY: touches no memory.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") 0x4000_0000usize | 39 => result, out("rcx") _, out("r11") _);
    }
    result
}

fn x32(off: bool) {
    extern "C" fn guest(_: usize) -> i32 {
        if getpid_x32() > 0 { WON.into() } else { 0 }
    }
    let mut config = config();
    config.weaken.no_lockdown = off;
    if off && getpid_x32() < 0 {
        skip("this kernel has no x32");
    }
    let outcome = run(&config, guest, 0);
    let expected = if off { outcome.guest == Status::Exited(WON) } else { outcome.guest.is_signal(9) };
    check!(expected, "{outcome:?}");
}

/// `time` of the vsyscall page, which is at the same address in every process. The kernel makes the call in its stead.
fn vsyscall(off: bool) {
    extern "C" fn guest(_: usize) -> i32 {
        // SAFETY: the address of a function of the kernel's, if it is there.
        let time: extern "C" fn(usize) -> isize = unsafe { core::mem::transmute(0xffff_ffff_ff60_0400usize) };
        if time(0) > 0 { WON.into() } else { 0 }
    }
    let mut text = [0; 4096];
    if !read_proc(sys::pids().0, "maps", &mut text).contains("[vsyscall]") {
        skip("this kernel has no vsyscall page");
    }
    let mut config = config();
    config.weaken.no_lockdown = off;
    let outcome = run(&config, guest, 0);
    let expected = if off { outcome.guest == Status::Exited(WON) } else { outcome.guest.is_signal(9) };
    check!(expected, "{outcome:?}");
}
