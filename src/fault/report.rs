//! Writes the report: a line of text, then the record (`docs/fault-record.md`).

use crate::arch::{self, Frame};
use crate::fault::classify::{Facts, classify};
use crate::fault::record::{
    Arch, BACKTRACE_MAX, CODE_AROUND, CheckBody, FaultBody, Kind, LayoutBody, MAGIC, MemoryBody, NEAR, STACK_MAX,
    THREAD_STACK_MAX, THREADS_STACK_MAX, ThreadBody, VERSION,
};
use crate::fault::{CHUNK, NO_CODE, drain, extended_len, peek};
use crate::signal;
use crate::sys::Errno;
use crate::untrusted::signal::others;
use crate::untrusted::{self, CallRecord, RING, State, gate};
use core::sync::atomic::Ordering;

/// Attempts at a descriptor that says `EAGAIN`: some tens of milliseconds.
const PATIENCE: u32 = 100_000;
/// Bytes of stack that are shown when the stack pointer leads nowhere.
const LOST_STACK: usize = 16 * 1024;

/// The crash descriptor; after an error nothing more is written.
struct Out {
    fd: i32,
    good: bool,
    total: u64,
}

impl Out {
    fn write(&mut self, mut bytes: &[u8]) {
        let mut patience = PATIENCE;
        while self.good && !bytes.is_empty() {
            match gate::write(self.fd, bytes) {
                Ok(n) => {
                    self.total = self.total.wrapping_add(n as u64);
                    bytes = bytes.get(n..).unwrap_or_default();
                }
                Err(Errno::EAGAIN) if patience > 0 => patience = patience.wrapping_sub(1),
                Err(Errno::EINTR) => {}
                Err(_) => self.good = false,
            }
        }
    }

    /// Writes a section: its kind, the length of its body, its body.
    fn section(&mut self, kind: Kind, parts: [&[u8]; 2]) {
        let len = parts.iter().fold(0u32, |sum, part| sum.wrapping_add(part.len() as u32));
        let mut head = [0u8; 8];
        put(&mut head, 0, &(kind as u32).to_le_bytes());
        put(&mut head, 4, &len.to_le_bytes());
        self.write(&head);
        parts.iter().for_each(|part| self.write(part));
    }
}

fn put(to: &mut [u8], at: usize, from: &[u8]) {
    let room = to.get_mut(at..).unwrap_or_default();
    room.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}

/// A line of text of bounded length.
struct Line {
    text: [u8; 200],
    len: usize,
}

impl Line {
    fn new() -> Self {
        Self { text: [0; 200], len: 0 }
    }

    fn byte(&mut self, byte: u8) {
        if let Some(slot) = self.text.get_mut(self.len) {
            *slot = byte;
            self.len = self.len.wrapping_add(1);
        }
    }

    fn str(&mut self, text: &str) -> &mut Self {
        text.bytes().for_each(|byte| self.byte(byte));
        self
    }

    fn hex(&mut self, value: usize) -> &mut Self {
        self.str("0x");
        let digits = (usize::BITS.wrapping_sub(value.leading_zeros())).div_ceil(4).max(1);
        (0..digits).rev().for_each(|i| self.byte(digit(value >> i.wrapping_mul(4) & 15)));
        self
    }

    fn dec(&mut self, value: i32) -> &mut Self {
        if value < 0 {
            self.byte(b'-');
        }
        let value = value.unsigned_abs();
        let mut scale = 1_000_000_000u32;
        while scale > 0 {
            if value >= scale || scale == 1 {
                self.byte(digit((value.wrapping_div(scale) % 10) as usize));
            }
            scale /= 10;
        }
        self
    }

    fn bytes(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or_default()
    }
}

fn digit(value: usize) -> u8 {
    let value = value as u8;
    if value < 10 { value.wrapping_add(b'0') } else { value.wrapping_add(b'a' - 10) }
}

/// Writes the whole report.
///
/// # Safety
///
/// As [`handler`](super::handler); the state's stage keeps a second report out.
pub(super) unsafe fn report(state: *mut State, sig: i32, code: i32, addr: usize, frame: *mut Frame) {
    // SAFETY: the state is this thread's; the frame is the kernel's. References to parts of the state do not overlap.
    unsafe {
        let mut out = Out { fd: (*state).crash, good: true, total: 0 };
        let (pc, sp) = ((*frame).pc(), (*frame).sp());
        let mut line = Line::new();
        line.str("ascetic: fault signal=").dec(sig).str(" (").str(signal::name(sig)).str(") code=");
        if code == NO_CODE {
            line.str("?")
        } else {
            line.dec(code)
        };
        line.str(" addr=").hex(addr).str(" pc=").hex(pc).str(" thread=").dec((*state).pid as i32).str("\n");
        out.write(line.bytes());

        let mut head = [0u8; 16];
        put(&mut head, 0, &MAGIC);
        put(&mut head, 8, &VERSION.to_le_bytes());
        put(&mut head, 10, &(arch::AUDIT_ARCH as u16).to_le_bytes());
        put(&mut head, 12, &(size_of::<usize>() as u32).to_le_bytes());
        out.write(&head);

        drain(state);
        let body = fault(state, sig, code, addr, frame);
        out.section(Kind::Fault, [&body.to_bytes(), &[]]);
        #[cfg(feature = "experiments")]
        crate::experiment::fault_in_reporter();
        registers(&mut out, frame);
        backtrace(&mut out, state, frame);
        calls(&mut out, state);
        let annotations = &(*state).annotations;
        let used = annotations.get(..(*state).annotations_len as usize).unwrap_or(annotations);
        out.section(Kind::Annotations, [used, &[]]);
        layout(&mut out, state);
        let code = memory(&mut out, state, Kind::Code, pc.wrapping_sub(CODE_AROUND), 2 * CODE_AROUND);
        extended(&mut out, state, (*frame).fpstate());
        let mut stack = memory(&mut out, state, Kind::Stack, sp.wrapping_sub(arch::RED_ZONE), STACK_MAX);
        if stack.is_none() {
            let top = (*state).fault.stack.1;
            stack = memory(&mut out, state, Kind::Stack, top.wrapping_sub(LOST_STACK), LOST_STACK);
        }
        near(&mut out, state, frame, addr, [code, stack]);
        threads(&mut out, state);
        let total = out.total;
        out.section(Kind::End, [&total.to_le_bytes(), &[]]);
        forget(state);
        untrusted::stay(state);
    }
}

/// Says that the reporter itself faulted.
///
/// # Safety
///
/// As [`report`].
pub(super) unsafe fn nested(state: *mut State, sig: i32, frame: *mut Frame) {
    let mut line = Line::new();
    // SAFETY: the state is this thread's; the frame is the kernel's.
    let (fd, pc, addr) = unsafe { ((*state).crash, (*frame).pc(), (*frame).cr2()) };
    line.str("\nascetic: fault in the reporter signal=").dec(sig).str(" pc=").hex(pc).str(" addr=").hex(addr).str("\n");
    Out { fd, good: true, total: 0 }.write(line.bytes());
    // SAFETY: as `report`.
    unsafe { forget(state) };
}

/// Leaves no copy of the guest's memory behind: whoever takes a range out of a core would not find it there.
unsafe fn forget(state: *mut State) {
    // SAFETY: as `report`.
    unsafe { (&raw mut (*state).fault.buffer).write_bytes(0, 1) };
}

unsafe fn fault(state: *mut State, sig: i32, code: i32, addr: usize, frame: *mut Frame) -> FaultBody {
    // SAFETY: as `report`.
    unsafe {
        let (pc, sp) = ((*frame).pc(), (*frame).sp());
        let mut insn = [0u8; 2];
        peek(state, pc, insn.as_mut_ptr(), insn.len());
        let mut byte = 0u8;
        let range = |(from, to): (usize, usize)| (from as u64, to as u64);
        let facts = Facts {
            sig,
            code: (code != NO_CODE).then_some(code),
            sent: (*state).fault.sent,
            trap: (*frame).trap(),
            addr: addr as u64,
            pc: pc as u64,
            sp: sp as u64,
            stack: range((*state).fault.stack),
            vault: range((*state).fault.vault),
            readable: peek(state, addr, &raw mut byte, 1) == 1,
            sp_readable: peek(state, sp, &raw mut byte, 1) == 1,
            non_canonical: non_canonical(&(*frame).registers()),
            insn,
        };
        let denied = sig == signal::SIGSYS;
        FaultBody {
            sig,
            code,
            addr: addr as u64,
            pc: pc as u64,
            sp: sp as u64,
            trap: [facts.trap.0, facts.trap.1],
            class: classify(&facts) as u32,
            pid: (*state).pid,
            sent: u32::from(facts.sent),
            pad: 0,
            nr: if denied { (*frame).syscall_nr() as u64 } else { u64::MAX },
            args: if denied { (*frame).syscall_args().map(|arg| arg as u64) } else { [0; 6] },
        }
    }
}

/// Whether a register holds an address that the processor cannot have (48 bits, sign-extended; 57 are taken for none).
fn non_canonical(registers: &[u64]) -> bool {
    let high = |value: u64| (value as i64) >> 56;
    size_of::<usize>() == 8 && registers.iter().take(17).any(|value| !matches!(high(*value), 0 | -1))
}

/// Bytes of the general registers.
const REGISTERS_LEN: usize = 8 * arch::REGISTERS.len();

/// The general registers, as in a record.
unsafe fn general(frame: *mut Frame) -> [u8; REGISTERS_LEN] {
    // SAFETY: as `report`.
    let values = unsafe { (*frame).registers() };
    let mut bytes = [0u8; REGISTERS_LEN];
    bytes.chunks_exact_mut(8).zip(values).for_each(|(to, value)| put(to, 0, &value.to_le_bytes()));
    bytes
}

unsafe fn registers(out: &mut Out, frame: *mut Frame) {
    // SAFETY: as `report`.
    let bytes = unsafe { general(frame) };
    out.section(Kind::Registers, [&bytes, &[]]);
}

/// Has the other threads stop, and tells where they are.
unsafe fn threads(out: &mut Out, state: *mut State) {
    // SAFETY: as `report`; the states of all pairs are mapped. What another thread says of itself is read when it has stopped,
    // and otherwise can be any number.
    unsafe {
        let living = || others(state).filter(|other| (&raw const (**other).tid).read_volatile() != 0);
        let count = living().count();
        if count == 0 || !untrusted::ask_for_signal(state, signal::KICK) {
            return;
        }
        let mut patience = PATIENCE;
        let room = THREADS_STACK_MAX.wrapping_div(count).min(THREAD_STACK_MAX);
        for other in living() {
            let stopped = || (*other).fault.stopped.load(Ordering::Acquire);
            while !stopped() && patience > 0 {
                patience = patience.wrapping_sub(1);
                let _ = gate::read((*state).probe_read, &mut [0; 1]); // empty: takes a moment, and no more
            }
            // Who was kicked at the very beginning of a handler has not said yet where the guest was.
            let frame =
                if stopped() { (&raw const (*other).fault.outer).read_volatile() } else { core::ptr::null_mut() };
            let stopped = !frame.is_null();
            let (pair, tid) = ((&raw const (*other).pair).read_volatile(), (&raw const (*other).tid).read_volatile());
            let body = ThreadBody { pair: pair as u32, tid, stopped: u32::from(stopped), pad: 0 }.to_bytes();
            if !stopped {
                out.section(Kind::Thread, [&body, &[]]);
                continue;
            }
            out.section(Kind::Thread, [&body, &general(frame)]);
            memory(out, state, Kind::Stack, (*frame).sp().wrapping_sub(arch::RED_ZONE), room);
        }
    }
}

/// Return addresses along the chain of frame pointers, each read through the probe.
unsafe fn backtrace(out: &mut Out, state: *mut State, frame: *mut Frame) {
    let mut bytes = [0u8; 8 * BACKTRACE_MAX];
    let mut len = 0usize;
    let mut add = |pc: usize| {
        put(&mut bytes, len, &(pc as u64).to_le_bytes());
        len = len.wrapping_add(8);
    };
    // SAFETY: as `report`.
    unsafe {
        let pc = (*frame).pc();
        add(pc);
        let mut word = [0usize; 2];
        let size = size_of::<usize>();
        // A call to nowhere: the caller's address is on top of the stack.
        if peek(state, pc, word.as_mut_ptr().cast(), 1) == 0
            && peek(state, (*frame).sp(), word.as_mut_ptr().cast(), size) == size
        {
            add(word[0]);
        }
        let mut fp = (*frame).fp();
        for _ in 2..BACKTRACE_MAX {
            if fp % size != 0 || peek(state, fp, word.as_mut_ptr().cast(), 2 * size) != 2 * size {
                break;
            }
            let [next, back] = word;
            if back == 0 {
                break;
            }
            add(back);
            if next <= fp {
                break; // frames lie upwards
            }
            fp = next;
        }
    }
    out.section(Kind::Backtrace, [bytes.get(..len).unwrap_or(&bytes), &[]]);
}

/// The ring of brokered calls, oldest first.
unsafe fn calls(out: &mut Out, state: *mut State) {
    const SIZE: usize = 8 + 8 * 7;
    let mut bytes = [0u8; RING * SIZE];
    let mut len = 0usize;
    // SAFETY: as `report`.
    let (ring, calls) = unsafe { (&(*state).ring, (*state).calls as usize) };
    for i in 0..RING {
        let Some(call) = ring.get(calls.wrapping_add(i) % RING) else { continue };
        let CallRecord { args, result, nr, state } = *call;
        let Some(to) = bytes.get_mut(len..len.wrapping_add(SIZE)).filter(|_| state != 0) else { continue };
        put(to, 0, &nr.to_le_bytes());
        put(to, 4, &state.to_le_bytes());
        put(to, 8, &(result as isize as i64).to_le_bytes());
        args.iter()
            .enumerate()
            .for_each(|(i, arg)| put(to, i.wrapping_mul(8).wrapping_add(16), &(*arg as u64).to_le_bytes()));
        len = len.wrapping_add(SIZE);
    }
    out.section(Kind::Calls, [bytes.get(..len).unwrap_or(&bytes), &[]]);
}

/// Where things are, and whether the handlers' stack is as large as the kernel wants it.
unsafe fn layout(out: &mut Out, state: *mut State) {
    // SAFETY: as `report`.
    let fault = unsafe { &(*state).fault };
    let range = |(from, to): (usize, usize)| [from as u64, to as u64];
    let body = LayoutBody { stack: range(fault.stack), altstack: range(fault.altstack), vault: range(fault.vault) };
    out.section(Kind::Layout, [&body.to_bytes(), &[]]);
    let altstack = fault.altstack.1.wrapping_sub(fault.altstack.0);
    let check = CheckBody { altstack: altstack as u64, frame: fault.signal_frame as u64 };
    out.section(Kind::Check, [&check.to_bytes(), &[]]);
}

/// Writes what can be read of a range, page by page; skips what cannot be read before the first page that can, and
/// stops at what cannot be read after it. Returns from where to where there was something.
unsafe fn memory(out: &mut Out, state: *mut State, kind: Kind, from: usize, len: usize) -> Option<(usize, usize)> {
    let mut any: Option<(usize, usize)> = None;
    let mut done = 0usize;
    while done < len {
        let at = from.wrapping_add(done);
        let want = len.wrapping_sub(done).min(CHUNK.wrapping_sub(at & (CHUNK - 1)));
        // SAFETY: as `report`; the buffer has room for a chunk.
        let got = unsafe {
            let buffer = &mut (*state).fault.buffer;
            let got = peek(state, at, buffer.as_mut_ptr(), want);
            if let Some(bytes) = buffer.get(..got).filter(|bytes| !bytes.is_empty()) {
                out.section(kind, [&MemoryBody { addr: at as u64 }.to_bytes(), bytes]);
            }
            got
        };
        if got > 0 {
            any = Some((any.map_or(at, |(first, _)| first), at.wrapping_add(got)));
        } else if any.is_some() {
            break;
        }
        done = done.wrapping_add(want);
    }
    any
}

/// This architecture, as a record names it.
const ARCH: Arch = if cfg!(target_arch = "x86_64") { Arch::X86_64 } else { Arch::X86 };
/// What may be pointed to: by each general register, and by the fault.
const POINTERS: usize = ARCH.general() + 1;

/// What is around the addresses in the general registers and the address of the fault, but for what is there already:
/// `known`, and what an earlier register led to. What is no address cannot be read, and leaves nothing.
unsafe fn near(out: &mut Out, state: *mut State, frame: *mut Frame, addr: usize, known: [Option<(usize, usize)>; 2]) {
    let mut written = [(0usize, 0usize); POINTERS + 2];
    written.iter_mut().zip(known.into_iter().flatten()).for_each(|(to, range)| *to = range);
    // SAFETY: as `report`.
    let values = unsafe { (*frame).registers() };
    let general = values.into_iter().take(ARCH.general()).map(|value| value as usize);
    for (at, slot) in general.chain([addr]).zip(2..) {
        let (mut from, mut to) = (at.saturating_sub(NEAR[0]), at.saturating_add(NEAR[1]));
        for (first, end) in written {
            if first <= from && from < end {
                from = end;
            }
            if first < to && to <= end {
                to = first;
            }
        }
        if from < to {
            // SAFETY: as `report`.
            let range = unsafe { memory(out, state, Kind::Near, from, to.wrapping_sub(from)) };
            written.iter_mut().skip(slot).take(1).zip(range).for_each(|(to, range)| *to = range);
        }
    }
}

/// The extended state as the kernel saved it.
unsafe fn extended(out: &mut Out, state: *mut State, fpstate: usize) {
    const SANE: usize = 32 * 1024;
    // SAFETY: as `report`.
    unsafe {
        let len = extended_len(fpstate, |from, to, len| _ = peek(state, from, to, len)).min(SANE);
        memory(out, state, Kind::ExtendedState, fpstate, len);
    }
}
