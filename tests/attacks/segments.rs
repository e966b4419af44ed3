//! Segments of the guest's own: the table of `modify_ldt` is the address space's, and so T's, too.

use super::*;
use ascetic::abi::UserDesc;
use ascetic::sys::{self, Errno, Sysno};
use ascetic::untrusted::call_raw;

pub const CASES: &[Case] =
    &[case("attack_modify_ldt", || modify_ldt(false)), case("attack_modify_ldt_off_shows_it", || modify_ldt(true))];

/// What a guest says that has a segment.
const WON: u8 = 66;
/// What is at the base of the segment.
static WORD: u32 = 0x1234_5678;

/// Through T it is refused; by the guest's own instruction it is its end. Otherwise there is a segment, by which a word is read.
fn modify_ldt(off: bool) {
    extern "C" fn guest(_: usize) -> i32 {
        const WRITE: usize = 0x11;
        // Data, 32 bits, in pages, usable (`struct user_desc`).
        let desc = UserDesc { entry: 0, base: (&raw const WORD).addr() as u32, limit: 0xfffff, flags: 0x51 };
        let args = [WRITE, (&raw const desc).addr(), size_of::<UserDesc>(), 0, 0, 0];
        // SAFETY: T refuses it.
        let asked = Errno::from_ret(unsafe { call_raw(Sysno::modify_ldt as u32, args) });
        check!(asked == Err(Errno::ENOSYS), "{asked:?}");
        // SAFETY: an entry that nobody uses.
        let made = unsafe { freestanding::call(Sysno::modify_ldt, [args[0], args[1], args[2]]) };
        if made == Err(Errno::ENOSYS) {
            sys::exit(77);
        }
        check!(made.is_ok(), "{made:?}");
        let word: u32;
        // SAFETY: the segment leads to the word. 64-bit code looks at the base of %fs and %gs only.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            core::arch::asm!("mov {old:e}, fs", "mov fs, {new:e}", "mov {word:e}, fs:[0]", "mov fs, {old:e}",
                old = out(reg) _, new = in(reg) 7, word = out(reg) word);
            #[cfg(target_arch = "x86")]
            core::arch::asm!("mov {old:e}, es", "mov es, {new:e}", "mov {word:e}, es:[0]", "mov es, {old:e}",
                old = out(reg) _, new = in(reg) 7, word = out(reg) word);
        }
        if word == WORD { WON.into() } else { 0 }
    }
    let mut config = config();
    config.weaken.no_lockdown = off;
    let outcome = run(&config, guest, 0);
    if outcome.guest == Status::Exited(77) {
        skip("this kernel has no modify_ldt");
    }
    let expected = if off { outcome.guest == Status::Exited(WON) } else { outcome.guest.is_signal(9) };
    check!(expected, "{outcome:?}");
}
