//! `rdtsc` in strict mode: the kernel turns it into SIGSEGV, and the handler answers.
//!
//! The value comes from T's `clock_gettime`, on the scale of the real counter, because the vDSO computes with it. The
//! supervisor pairs the two clocks when the sandbox is made, and better when it waits; the scale is in the mailbox.

use crate::arch::{self, Frame};
use crate::sys::{self, Sysno};
use crate::untrusted::{self, State};
use core::sync::atomic::{AtomicU32, Ordering};
use spin::Once;

#[cfg(target_arch = "x86")]
use core::arch::x86::_rdtsc;
#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::_rdtsc;

/// General protection: what `rdtsc` raises when it is disabled.
const TRAP_GP: u32 = 13;
const CLOCK_MONOTONIC: usize = 1;
/// A comparison of the clocks over this long, in nanoseconds, is good to some millionths, …
pub(crate) const GOOD: u64 = 5_000_000;
/// Attempts at a comparison, some microseconds each.
const ATTEMPTS: u32 = 100_000;
/// … and one over this long to some ten-thousandths.
const USABLE: u64 = 50_000;

/// How nanoseconds since boot become ticks of the time stamp counter.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scale {
    tsc: u64,
    ns: u64,
    /// Ticks per nanosecond, times 2^24.
    rate: u64,
}

/// The first comparison in this process.
static FIRST: Once<(u64, u64)> = Once::new();

impl Scale {
    /// Makes the first comparison, if nobody did: the sooner, the better.
    pub(crate) fn prepare() {
        if tsc_enabled() {
            FIRST.call_once(pair);
        }
    }

    /// Pairs the clocks, and says whether the comparison is good: the first is, 5 ms after this was first called in a
    /// process. Takes no time but the first time.
    pub(crate) fn measure() -> (Self, bool) {
        if !tsc_enabled() {
            return (Self { tsc: 0, ns: 0, rate: 1 << 24 }, true); // nobody here can compare: a tick a nanosecond
        }
        let first = *FIRST.call_once(pair);
        let mut attempts = 0;
        loop {
            let (tsc, ns) = pair();
            let elapsed = ns.saturating_sub(first.1);
            attempts += 1;
            if attempts == ATTEMPTS {
                return (Self { tsc, ns, rate: 1 << 24 }, true); // a clock that stands still
            }
            if elapsed >= USABLE {
                let ticks = u128::from(tsc.saturating_sub(first.0));
                let rate = ((ticks << 24) / u128::from(elapsed)) as u64;
                return (Self { tsc, ns, rate }, elapsed >= GOOD);
            }
        }
    }

    /// The counter's value at a time.
    fn at(self, ns: u64) -> u64 {
        let passed = ns.saturating_sub(self.ns);
        let (high, low) = (passed >> 32, passed & 0xffff_ffff);
        let ticks = high.wrapping_mul(self.rate).wrapping_shl(8).wrapping_add(low.wrapping_mul(self.rate) >> 24);
        self.tsc.wrapping_add(ticks)
    }
}

/// A scale that the supervisor may replace while the guest reads it.
#[repr(C)]
#[derive(Debug)]
pub struct Published {
    /// Odd while the scale is being written.
    version: u32,
    scale: Scale,
}

/// Replaces a scale.
///
/// # Safety
///
/// `to` is mapped and writable, and nobody else writes there but the guest, who may spoil what it reads.
pub(crate) unsafe fn publish(to: *mut Published, scale: Scale) {
    // SAFETY: the caller's.
    unsafe {
        let version = AtomicU32::from_ptr(&raw mut (*to).version);
        let next = version.load(Ordering::Relaxed) | 1;
        version.store(next, Ordering::SeqCst);
        (&raw mut (*to).scale).write_volatile(scale);
        version.store(next.wrapping_add(1), Ordering::SeqCst);
    }
}

/// Reads a scale; after some attempts, what is there.
///
/// # Safety
///
/// `from` is mapped.
unsafe fn published(from: *const Published) -> Scale {
    let mut scale = Scale::default();
    for _ in 0..1000 {
        // SAFETY: the caller's.
        unsafe {
            let version = AtomicU32::from_ptr((&raw const (*from).version).cast_mut());
            let before = version.load(Ordering::SeqCst);
            scale = (&raw const (*from).scale).read_volatile();
            if before & 1 == 0 && version.load(Ordering::SeqCst) == before {
                break;
            }
        }
    }
    scale
}

/// Whether the caller may read the counter (`PR_SET_TSC`, `prctl(2)`).
fn tsc_enabled() -> bool {
    let mut mode = 0u32;
    // SAFETY: the kernel stores one word.
    let got = unsafe { sys::prctl(sys::PR_GET_TSC, &raw mut mode as usize) };
    got.is_err() || mode != sys::PR_TSC_SIGSEGV as u32
}

/// Both clocks at one moment: the closest of several attempts.
fn pair() -> (u64, u64) {
    let attempt = || {
        // SAFETY: the supervisor may read the counter.
        let before = unsafe { _rdtsc() };
        let ns = sys::now();
        // SAFETY: as above.
        let after = unsafe { _rdtsc() };
        let width = after.wrapping_sub(before);
        (width, before.wrapping_add(width / 2), ns)
    };
    let (_, tsc, ns) = (0..8).map(|_| attempt()).min_by_key(|(width, ..)| *width).unwrap_or_default();
    (tsc, ns)
}

/// If the fault is an `rdtsc` or `rdtscp`, gives it its result and steps over it.
///
/// # Safety
///
/// `frame` is the kernel's for a signal on this thread, and `state` this thread's; the guest is in no brokered call.
pub(crate) unsafe fn emulate(state: *mut State, frame: *mut Frame) -> bool {
    // SAFETY: the caller's. The processor has just read the instruction, so its bytes are there, each only after the one
    // before has said that it has more.
    unsafe {
        if (*frame).trap().0 != TRAP_GP {
            return false;
        }
        let pc = (*frame).pc();
        #[cfg(target_pointer_width = "64")]
        if pc >> 47 != 0 {
            return false; // no instruction was read: it is a jump to where none can be
        }
        let byte = |i: usize| (pc.wrapping_add(i) as *const u8).read_volatile();
        if byte(0) != 0x0f {
            return false;
        }
        let (len, aux) = match byte(1) {
            0x31 => (2, false),
            0x01 if byte(2) == 0xf9 => (3, true),
            _ => return false,
        };
        let mut ts = [0usize; 2];
        let args = [CLOCK_MONOTONIC, ts.as_mut_ptr() as usize, 0, 0, 0, 0];
        untrusted::ask(state, Sysno::clock_gettime as u32, &args, || ());
        let [secs, nanos] = ts;
        let ns = (secs as u64).wrapping_mul(1_000_000_000).wrapping_add(nanos as u64);
        // The scale may have been replaced by a better one since: the counter never goes back.
        let tsc = published(&raw const (*(*state).mailbox).scale).at(ns).max((*state).tsc_last.wrapping_add(1));
        (*state).tsc_last = tsc;
        (*frame).set_tsc(tsc, aux.then(cpu_and_node));
        (*frame).set_pc(pc.wrapping_add(len));
    }
    true
}

/// What `rdtscp` stores in %ecx (TSC_AUX): Linux keeps the same in the limit of a segment.
fn cpu_and_node() -> u32 {
    let limit: u32;
    // SAFETY: `lsl` has no effect but on its destination; a selector that may not be asked for leaves it alone.
    unsafe {
        core::arch::asm!("lsl {0:e}, {1:e}", inout(reg) 0 => limit, in(reg) arch::cpunode_selector(),
            options(nomem, nostack));
    }
    limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_follows_the_counter() {
        Scale::measure();
        std::thread::sleep(std::time::Duration::from_nanos(GOOD));
        let (scale, good) = Scale::measure();
        assert!(good);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let (tsc, ns) = pair();
            let off = scale.at(ns).abs_diff(tsc);
            assert!(off < 3_000_000, "{off} ticks off"); // a millisecond or so
        }
        // Across the split of the multiplication.
        let scale = Scale { tsc: 5, ns: 0, rate: 3 << 24 };
        for ns in [0, 1, u64::from(u32::MAX), 1 << 32, 1 << 40, (1 << 40) + 12345] {
            assert_eq!(scale.at(ns), 5 + 3 * ns);
        }
    }
}
