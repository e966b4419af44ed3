//! `rdtsc` in strict mode: the kernel turns it into SIGSEGV, and the handler answers.
//!
//! The value comes from T's `clock_gettime`, on the scale of the real counter, because the vDSO computes with it: the
//! two clocks are paired when the sandbox is made.

use crate::arch::{self, Frame};
use crate::fault::peek;
use crate::sys::{self, Sysno};
use crate::untrusted::{self, State};
use spin::Once;

#[cfg(target_arch = "x86")]
use core::arch::x86::_rdtsc;
#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::_rdtsc;

/// General protection: what `rdtsc` raises when it is disabled.
const TRAP_GP: u32 = 13;
const CLOCK_MONOTONIC: usize = 1;
/// The clocks are compared over at least this long, in nanoseconds: a few millionths of error.
const BASELINE: u64 = 5_000_000;

/// How nanoseconds since boot become ticks of the time stamp counter.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scale {
    tsc: u64,
    ns: u64,
    /// Ticks per nanosecond, times 2^24.
    rate: u64,
}

impl Scale {
    /// Pairs the clocks. The first time in a process this takes [`BASELINE`]; later, no time.
    pub(crate) fn measure() -> Self {
        static FIRST: Once<(u64, u64)> = Once::new();
        let first = *FIRST.call_once(pair);
        loop {
            let (tsc, ns) = pair();
            let elapsed = ns.saturating_sub(first.1);
            if elapsed >= BASELINE {
                let ticks = u128::from(tsc.saturating_sub(first.0));
                return Self { tsc, ns, rate: ((ticks << 24) / u128::from(elapsed)) as u64 };
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
    let mut insn = [0u8; 3];
    // SAFETY: the caller's.
    unsafe {
        if (*frame).trap().0 != TRAP_GP {
            return false;
        }
        let pc = (*frame).pc();
        let read = peek(state, pc, insn.as_mut_ptr(), insn.len());
        let (len, aux) = match (read, insn) {
            (2.., [0x0f, 0x31, _]) => (2, false),
            (3, [0x0f, 0x01, 0xf9]) => (3, true),
            _ => return false,
        };
        let mut ts = [0usize; 2];
        untrusted::ask(state, Sysno::clock_gettime as u32, [CLOCK_MONOTONIC, ts.as_mut_ptr() as usize, 0, 0, 0, 0]);
        let [secs, nanos] = ts;
        let ns = (secs as u64).wrapping_mul(1_000_000_000).wrapping_add(nanos as u64);
        (*frame).set_tsc((*state).tsc.at(ns), aux.then(cpu_and_node));
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
        let scale = Scale::measure();
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
