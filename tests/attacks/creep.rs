//! Mappings that grow: `MAP_GROWSDOWN`, and the heap's end.

use super::*;
use ascetic::abi::PAGE;
use ascetic::experiment;
use ascetic::sys::{self, Errno, Sysno};
use ascetic::untrusted::call_raw;
use freestanding::files::MMAP;

pub const CASES: &[Case] = &[
    case("attack_grows_down", || grows_down(false)),
    case("attack_grows_down_off_fails", || grows_down(true)),
    case("attack_brk", || brk(false)),
    case("attack_brk_off_fails", || brk(true)),
];

/// A policy of a guest that maps.
const MEMORY: Policy = POLICY.memory();

fn with(off: bool) -> Config<'static> {
    let mut config = Config { policy: &MEMORY, ..config() };
    config.weaken.any_call = off;
    config.weaken.no_mseal = off;
    config
}

/// As low as it can be above the sandbox's own, and then down, a page at a time, until the guest dies or has gone through.
fn grows_down(off: bool) {
    extern "C" fn guest(_: usize) -> i32 {
        const GROWS_DOWN: usize = 0x22 | 0x100;
        const FIXED_NOREPLACE: usize = 0x10_0000;
        let here = 0u8;
        let (own, vault) = ((&raw const here).addr() & !(PAGE - 1), experiment::vault().0);
        let (mut low, mut at) = (0, own);
        // The first place that is free above the guest's stack, below which all is the sandbox's.
        for _ in 0..1 << 20 {
            at += PAGE;
            let args = [at, PAGE, sys::PROT_READ | sys::PROT_WRITE, GROWS_DOWN | FIXED_NOREPLACE, usize::MAX, 0];
            // SAFETY: nothing is there.
            match Errno::from_ret(unsafe { call_raw(MMAP as u32, args) }) {
                Err(Errno::EEXIST) => {}
                Err(Errno::EINVAL) => return 3,
                other => {
                    check!(other == Ok(at), "{other:?}");
                    low = at;
                    break;
                }
            }
        }
        check!(low > vault);
        while low > vault {
            low -= PAGE;
            // SAFETY: none: that it faults at the next mapping is the point.
            unsafe { (low as *mut u8).write_volatile(1) };
        }
        66
    }
    let outcome = run(&with(off), guest, 0);
    let expected = if off { outcome.guest.is_signal(11) } else { outcome.guest == Status::Exited(3) };
    check!(expected, "{outcome:?}");
}

/// The end of the heap is asked to be where the vault is, and beyond it.
fn brk(off: bool) {
    extern "C" fn guest(_: usize) -> i32 {
        let (from, to) = experiment::vault();
        // SAFETY: what the kernel makes of it is the point.
        let ask = |at: usize| Errno::from_ret(unsafe { call_raw(Sysno::brk as u32, [at, 0, 0, 0, 0, 0]) });
        let before = ask(0);
        check!(before.is_ok(), "{before:?}");
        for at in [to, to + PAGE, to + (1 << 24)] {
            let result = ask(at);
            check!(result == before || matches!(result, Err(Errno::EFAULT | Errno::ENOMEM)), "{at:#x}: {result:?}");
        }
        let (vault, _) = experiment::pages();
        check!(from < vault.addr());
        // SAFETY: the vault is there as before.
        let there = unsafe { (*vault).vault_lo };
        i32::from(there != from)
    }
    must_exit(&with(off), guest, 0, 0);
}
