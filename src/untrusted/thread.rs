//! Threads of the guest: `clone` on the side of the caller, and the start on the side of the new thread.
//!
//! The registers with which a new thread goes on travel with the request and come back in the new pair's verdict, so that
//! nobody has to wait for anybody.

use crate::abi::{DATA, Verdict};
use crate::arch::{self, Frame};
use crate::birth::guest_mask;
use crate::pair::from_state;
use crate::signal::{AltStack, SigSet};
use crate::sys::{Errno, Sysno, failure};
use crate::untrusted::{LookAway, State, ask, carry, emulate, gate, signal};
use core::mem::offset_of;

/// Bytes of extended state that a new thread takes over.
const EXTENDED: usize = 3328;

/// What a new thread needs from its creator: what the request carries, before the extended state.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Context {
    flags: usize,
    /// Bytes of extended state that follow; 0 for a clean one.
    extended: usize,
    tls: [u32; 4],
    /// What the new thread blocks.
    mask: [u32; 2],
    frame: Frame,
}

/// Room for a frame and its extended state, aligned as XRSTOR wants it.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct Start {
    /// On i386 the FXSAVE part, which XRSTOR reads, is this far behind the beginning.
    pad: [u8; 64 - Frame::FXSAVE.0 % 64],
    extended: [u8; EXTENDED],
    frame: [u8; arch::FRAME_MAX],
}

static_assertions::const_assert!(size_of::<Context>() + EXTENDED <= DATA);

/// `clone` for the guest.
///
/// # Safety
///
/// As [`emulate::call`].
pub(super) unsafe fn clone(state: *mut State, args: [usize; 6], pc: usize, frame: *mut Frame) -> usize {
    let [flags, stack, ..] = args;
    if frame.is_null() {
        return failure(Errno::EPERM); // there is nothing for the new thread to go on with: see `spawn`
    }
    // SAFETY: the frame is the kernel's, the state this thread's.
    unsafe {
        let extended = (*frame).fpstate();
        let len = Some((*frame).extended()).filter(|len| *len <= EXTENDED).unwrap_or(0);
        let mut context = Context { flags, extended: len, tls: [0; 4], mask: [0; 2], frame: *frame };
        context.frame.set_result(0);
        if stack != 0 {
            context.frame.set_sp(stack);
        }
        request(state, args, pc, &mut context, extended as *const u8)
    }
}

/// # Safety
///
/// `state` is this thread's; `extended` has as many bytes as the context says.
unsafe fn request(state: *mut State, args: [usize; 6], pc: usize, context: &mut Context, extended: *const u8) -> usize {
    let nr = Sysno::clone as u32;
    // SAFETY: the caller's.
    unsafe {
        context.mask = SigSet::from_bits(signal::mask(state)).words();
        carry::put(state, nr, &args, pc);
        if cfg!(target_arch = "x86") && args[0] & crate::deep::CLONE_SETTLS != 0 {
            context.tls = (&raw const (*(*state).mailbox).data.0).cast::<[u32; 4]>().read_volatile();
        }
        let fits = carry::add(state, core::ptr::from_ref(context).cast(), size_of::<Context>())
            && carry::add(state, extended, context.extended);
        if !fits {
            return failure(Errno::ENOMEM);
        }
        ask(state, nr, &args, || ())
    }
}

/// Starts a thread that runs `f(arg)` on the stack whose top is `sp`, a multiple of 16. Its id; it ends when `f` does, and
/// `clear_tid`, if it is not 0, is the address of a word where the kernel then stores 0 and wakes whoever waits
/// (`FUTEX_WAIT`).
///
/// # Errors
///
/// `EAGAIN` if there are as many threads as the policy allows; `EPERM` outside a sandbox.
///
/// # Safety
///
/// The memory below `sp` is the new thread's own until it has ended. `f` may run in another thread.
pub unsafe fn spawn(f: extern "C" fn(usize), arg: usize, sp: usize, clear_tid: usize) -> Result<u32, Errno> {
    const THREAD: usize = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;
    const CHILD_CLEARTID: usize = 0x20_0000;
    let state = crate::untrusted::state();
    if state.is_null() {
        return Err(Errno::EPERM);
    }
    let flags = THREAD | if clear_tid != 0 { CHILD_CLEARTID } else { 0 };
    let args =
        if cfg!(target_arch = "x86_64") { [flags, sp, 0, clear_tid, 0, 0] } else { [flags, sp, 0, 0, clear_tid, 0] };
    // SAFETY: the caller says that the memory below `sp` is the new thread's: the function and its argument go there.
    let frame = unsafe {
        let top = sp.wrapping_sub(4 * size_of::<usize>()) as *mut usize;
        top.write(f as usize);
        top.wrapping_add(1).write(arg);
        let alt = AltStack { sp: 0, flags: 0, size: 0 };
        Frame::call(run as *const () as usize, top.addr(), top.addr() & !15, guest_mask(), alt)
    };
    let mut context = Context { flags, extended: 0, tls: [0; 4], mask: [0; 2], frame };
    // SAFETY: the state is this thread's; nothing follows the context.
    let tid =
        unsafe { signal::undisturbed(state, || request(state, args, arch::here(), &mut context, core::ptr::null())) };
    Errno::from_ret(tid).map(|tid| tid as u32)
}

/// Runs what `spawn` left at the top of the stack.
extern "C" fn run(top: *const usize) -> ! {
    // SAFETY: `spawn` wrote both words; the first is a function of this type.
    unsafe {
        let f = core::mem::transmute::<usize, extern "C" fn(usize)>(top.read());
        f(top.wrapping_add(1).read());
        emulate::call(crate::untrusted::state(), Sysno::exit as u32, [0; 6], 0, core::ptr::null_mut());
    }
    gate::exit(0)
}

/// Where a new thread's runtime starts (`arch/*/gate.S`), on its alternate stack: sets its state up, and goes on as its
/// creator said.
///
/// # Safety
///
/// Called once for each pair, with its state and its number.
pub(crate) unsafe extern "C" fn start(state: *mut State, pair: usize) -> ! {
    let verdict = from_state::verdict(state, pair);
    // SAFETY: the memory is this pair's own; a dead pair may have left something there, which is of no use. The verdict
    // holds what the request carried until this thread asks for something.
    unsafe {
        init(state, pair, verdict);
        let context: *const Context = (&raw const (*verdict).data).cast();
        let context = context.read_unaligned();
        let [lo, hi] = context.mask;
        signal::inherit(state, u64::from(lo) | u64::from(hi) << 32);
        let room = &raw mut (*state).start;
        let extended = (&raw mut (*room).extended).cast::<u8>();
        let len = context.extended.min(EXTENDED);
        arch::copy(extended, (&raw const (*verdict).data).cast::<u8>().wrapping_add(size_of::<Context>()), len);
        let frame = (&raw mut (*room).frame).cast::<Frame>();
        frame.write_unaligned(context.frame);
        let mut copy = context.frame;
        copy.adopt(guest_mask(), (*verdict).altstack, if len == 0 { 0 } else { extended.addr() });
        copy.set_state_segment();
        if context.flags & crate::deep::CLONE_SETTLS != 0 {
            copy.set_tls(context.tls);
        }
        frame.write_unaligned(copy);
        crate::untrusted::begin();
        gate::resume(frame)
    }
}

/// # Safety
///
/// As [`start`].
unsafe fn init(state: *mut State, pair: usize, verdict: *const Verdict) {
    // SAFETY: the caller's. What all pairs share is in the first one's state; zeros are valid for the rest, and the entry is
    // never called.
    unsafe {
        let first = from_state::first(state, pair);
        let mailbox = from_state::mailbox(state, pair);
        state.cast::<u8>().write_bytes(0, size_of::<State>());
        (&raw mut (*state).this).write(state);
        (&raw mut (*state).entry).write((*first).entry);
        (&raw mut (*state).mailbox).write(mailbox);
        let state = &mut *state;
        state.pair = pair;
        (state.doorbell_t, state.doorbell_u) = ((*verdict).doorbell_t as i32, (*verdict).doorbell_u as i32);
        (state.alarm, state.crash, state.answer) = ((*first).alarm, (*first).crash, (*first).answer);
        (state.probe_read, state.probe_write) = ((*first).probe_read, (*first).probe_write);
        (state.spin, state.look_away_most) = ((*first).spin, (*first).look_away_most);
        state.look_away = LookAway::begin(state.look_away_most);
        (state.pid, state.tid, state.uid) = ((*first).pid, (*verdict).tid, (*first).uid);
        (state.dispatch, state.selector) = ((*first).dispatch, (*first).selector);
        (state.threads, state.stays) = ((*first).threads, (*first).stays);
        state.fault.again(&(*first).fault, (*verdict).altstack);
    }
}

const _: () = assert!((offset_of!(Start, extended) + Frame::FXSAVE.0) % 64 == 0);
