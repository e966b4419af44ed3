//! The guest's own signal handlers: through the explicit API, and by calls of its own. What must not be there stands beside
//! what must.

use super::program::{DIRECT, both, c, program, raw};
use super::threads::{join, start};
use super::*;
use ascetic::arch::Frame;
use ascetic::experiment::{DAWDLE, LATE_KICKS, LINGER, MISS_KICKS};
use ascetic::fault::classify::Class;
use ascetic::signal::{
    AltStack, Info, SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTART, SA_SIGINFO, SIGABRT, SIGBUS, SIGFPE, SIGILL,
    SIGKILL, SIGSEGV, SIGSYS, SIGTRAP, SigAction, SigSet,
};
use ascetic::sys::{self, Errno};
use core::arch::asm;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering::SeqCst};

pub const CASES: &[Case] = &[
    case("signals_handler", || both(|| ends(handler, 0))),
    case("signals_old_handler", || both(|| ends(old_handler, 0))),
    case("signals_flags", || both(|| ends(flags, 0))),
    case("signals_altstack", || both(|| ends(altstack, 0))),
    case("signals_masks", || both(|| ends(masks, 0))),
    case("signals_many", || both(|| ends(many, 0))),
    case("signals_bad_use", || both(|| ends(bad_use, 0))),
    case("signals_registers", || both(|| ends(registers, 0))),
    case("signals_faults_handled", || both(|| ends(faults, 0))),
    case("signals_faults_without_sending", || both(|| must_exit(&program(&QUIET), faults, 0, 0))),
    case("signals_blocked_fault_kills", || both(|| crash(blocked_fault, 0, SIGSEGV, Class::NullPointer))),
    case("signals_fault_in_handler", || both(|| crash(fault_again, 0, SIGSEGV, Class::NullPointer))),
    case("signals_no_stack", || both(|| crash(no_stack, 0, SIGSEGV, Class::StackOverflow))),
    case("signals_stack_overflow_handled", || both(|| ends(overflow_handled, 0))),
    case("signals_default", || both(default_actions)),
    case("signals_threads", || both(|| ends(threads, 0))),
    case("signals_storm", || both(|| ends(storm, 0))),
    case("signals_process", || both(|| ends(process, 0))),
    case("signals_interrupt", || both(|| ends(interrupt, 0))),
    case("signals_interrupt_off_shows_it", || {
        // A call that was asked for is no obstacle to its handler.
        both(|| {
            if raw() {
                check!(loses(interrupt), "none was lost");
            }
        });
    }),
    case("signals_late", || both(|| ends(late, 0))),
    case("signals_late_off_shows_it", || {
        both(|| {
            if raw() {
                check!(loses(late), "none was lost");
            }
        });
    }),
    case("signals_restart", || both(|| ends(restart, 0))),
    case("signals_suspend", || both(|| ends(suspend, 0))),
    case("signals_wait", || both(|| ends(waits_for_signals, 0))),
    case("signals_queue", || both(|| ends(queues, 0))),
    case("signals_not_allowed", || both(|| must_exit(&program(&QUIET), not_allowed, 0, 0))),
];

const POLICY: Policy = DIRECT.threads(8).signals();
const QUIET: Policy = DIRECT.threads(8);

const USR1: i32 = 10;
const USR2: i32 = 12;
const TERM: i32 = 15;
const BLOCK: usize = 0;
const UNBLOCK: usize = 1;
const SETMASK: usize = 2;

fn ends(guest: extern "C" fn(usize) -> i32, arg: usize) {
    must_exit(&program(&POLICY), guest, arg, 0);
}

fn crash(guest: extern "C" fn(usize) -> i32, arg: usize, signal: i32, class: Class) {
    must_crash(&program(&POLICY), guest, arg, signal, |record| {
        check!(record.class() == class, "{:?}", record.class());
    });
}

static CALLS: AtomicU32 = AtomicU32::new(0);
static SIGNAL: AtomicI32 = AtomicI32::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static SENDER: AtomicU32 = AtomicU32::new(0);
static STACK: AtomicUsize = AtomicUsize::new(0);
static THREAD: AtomicUsize = AtomicUsize::new(0);

/// Its own stack pointer.
fn sp() -> usize {
    let sp;
    // SAFETY: reads a register.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("mov {}, rsp", out(reg) sp, options(nomem, nostack));
        #[cfg(target_arch = "x86")]
        asm!("mov {}, esp", out(reg) sp, options(nomem, nostack));
    }
    sp
}

fn tid() -> usize {
    // SAFETY: no memory.
    unsafe { c(Sysno::gettid, []) }.unwrap_or(0)
}

fn pid() -> usize {
    // SAFETY: no memory.
    unsafe { c(Sysno::getpid, []) }.unwrap_or(0)
}

extern "C" fn notes(sig: i32, info: *const Info, _context: *mut Frame) {
    SIGNAL.store(sig, SeqCst);
    THREAD.store(tid(), SeqCst);
    STACK.store(sp(), SeqCst);
    // SAFETY: the handler was set with SA_SIGINFO.
    unsafe {
        CODE.store((*info).code(), SeqCst);
        SENDER.store((*info).words[0], SeqCst);
    }
    CALLS.fetch_add(1, SeqCst);
}

extern "C" fn counts(sig: i32) {
    SIGNAL.store(sig, SeqCst);
    CALLS.fetch_add(1, SeqCst);
}

pub fn action(sig: i32, handler: usize, flags: usize, mask: &[i32]) -> sys::Result<usize> {
    let new = SigAction { handler, flags, restorer: 0, mask: SigSet::of(mask) };
    // SAFETY: a `struct sigaction`.
    unsafe { c(Sysno::rt_sigaction, [sig as usize, &raw const new as usize, 0, 8]) }
}

fn action_of(sig: i32) -> SigAction {
    let mut old = SigAction::IGNORE;
    // SAFETY: as above.
    check!(unsafe { c(Sysno::rt_sigaction, [sig as usize, 0, &raw mut old as usize, 8]) } == Ok(0));
    old
}

/// Changes the mask; the old one.
fn mask(how: usize, signals: &[i32]) -> SigSet {
    let (new, mut old) = (SigSet::of(signals), SigSet::EMPTY);
    let at = |set: *const SigSet| set as usize;
    // SAFETY: sets.
    check!(unsafe { c(Sysno::rt_sigprocmask, [how, at(&raw const new), at(&raw mut old), 8]) } == Ok(0));
    old
}

fn blocked() -> SigSet {
    mask(BLOCK, &[])
}

fn pending() -> SigSet {
    let mut set = SigSet::ALL;
    // SAFETY: a set.
    check!(unsafe { c(Sysno::rt_sigpending, [&raw mut set as usize, 8]) } == Ok(0));
    set
}

fn kill(sig: i32) -> sys::Result<usize> {
    // SAFETY: the guest itself.
    unsafe { c(Sysno::kill, [pid(), sig as usize]) }
}

fn raise(sig: i32) -> sys::Result<usize> {
    send(tid(), sig)
}

fn send(tid: usize, sig: i32) -> sys::Result<usize> {
    // SAFETY: a thread of the guest's.
    unsafe { c(Sysno::tgkill, [pid(), tid, sig as usize]) }
}

const NOTES: usize = SA_SIGINFO;

extern "C" fn handler(_: usize) -> i32 {
    let handler = notes as *const () as usize;
    check!(action(USR1, handler, NOTES, &[]) == Ok(0));
    let set = action_of(USR1);
    check!(set.handler == handler && set.flags == NOTES && set.mask == SigSet::EMPTY);
    check!(raise(USR1) == Ok(0));
    check!(CALLS.load(SeqCst) == 1 && SIGNAL.load(SeqCst) == USR1, "{}", CALLS.load(SeqCst));
    check!(CODE.load(SeqCst) == -6 && SENDER.load(SeqCst) as usize == pid(), "{}", CODE.load(SeqCst));
    let here = sp();
    check!(STACK.load(SeqCst) < here && here - STACK.load(SeqCst) < 32768);
    check!(kill(USR1) == Ok(0));
    check!(CALLS.load(SeqCst) == 2 && CODE.load(SeqCst) == 0);
    // Another's is not touched, and an ignored one does nothing.
    check!(action_of(USR2).handler == 0);
    check!(action(USR2, 1, 0, &[]) == Ok(0));
    check!(raise(USR2) == Ok(0) && CALLS.load(SeqCst) == 2);
    check!(raise(0) == Ok(0) && CALLS.load(SeqCst) == 2);
    0
}

extern "C" fn old_handler(_: usize) -> i32 {
    check!(action(USR1, counts as *const () as usize, 0, &[]) == Ok(0));
    for i in 1..=3 {
        check!(raise(USR1) == Ok(0));
        check!(CALLS.load(SeqCst) == i && SIGNAL.load(SeqCst) == USR1);
    }
    #[cfg(target_arch = "x86")]
    // SAFETY: the structures are those of the old calls.
    unsafe {
        let new = [counts as *const () as usize, 1 << (USR1 - 1), 0, 0];
        let mut old = [0usize; 4];
        let at = |words: &[usize; 4]| words.as_ptr() as usize;
        check!(c(Sysno::sigaction, [USR2 as usize, at(&new), 0]) == Ok(0));
        check!(c(Sysno::sigaction, [USR2 as usize, 0, old.as_mut_ptr() as usize]) == Ok(0));
        check!(old == new);
        let (set, mut before) = (1u32 << (USR2 - 1), 0u32);
        let both = [&raw const set as usize, &raw mut before as usize];
        check!(c(Sysno::sigprocmask, [BLOCK, both[0], both[1]]) == Ok(0) && before == 0);
        check!(raise(USR2) == Ok(0) && CALLS.load(SeqCst) == 3);
        check!(c(Sysno::sigpending, [both[1]]) == Ok(0) && before == set);
        check!(c(Sysno::sigprocmask, [UNBLOCK, both[0], 0]) == Ok(0) && CALLS.load(SeqCst) == 4);
    }
    0
}

static INNER: AtomicU32 = AtomicU32::new(0);

/// Sends itself the same signal; notes how often it ran inside itself.
extern "C" fn nests(sig: i32) {
    let depth = INNER.fetch_add(1, SeqCst);
    if CALLS.fetch_add(1, SeqCst) == 0 {
        let _ = raise(sig);
        SIGNAL.store(CALLS.load(SeqCst) as i32, SeqCst); // 2 if it ran meanwhile
    }
    STACK.fetch_max(depth as usize, SeqCst);
    INNER.fetch_sub(1, SeqCst);
}

extern "C" fn flags(_: usize) -> i32 {
    let handler = nests as *const () as usize;
    for (flags, inside) in [(0, 1), (SA_NODEFER, 2)] {
        CALLS.store(0, SeqCst);
        check!(action(USR1, handler, flags, &[]) == Ok(0));
        check!(raise(USR1) == Ok(0));
        check!(CALLS.load(SeqCst) == 2 && SIGNAL.load(SeqCst) == inside, "{}", SIGNAL.load(SeqCst));
        check!(blocked() == SigSet::EMPTY);
    }
    CALLS.store(0, SeqCst);
    check!(action(USR1, counts as *const () as usize, SA_RESETHAND, &[]) == Ok(0));
    check!(raise(USR1) == Ok(0) && CALLS.load(SeqCst) == 1);
    check!(action_of(USR1).handler == 0);
    // `sa_mask` is blocked as long as the handler runs.
    extern "C" fn looks(_: i32) {
        CODE.store(blocked().bits() as i32, SeqCst);
    }
    check!(action(USR1, looks as *const () as usize, 0, &[USR2, SIGKILL]) == Ok(0));
    check!(raise(USR1) == Ok(0));
    check!(CODE.load(SeqCst) == SigSet::of(&[USR1, USR2]).bits() as i32, "{:x}", CODE.load(SeqCst));
    check!(blocked() == SigSet::EMPTY);
    0
}

#[repr(C, align(16))]
struct Room([u8; 65536]);
static mut ROOM: Room = Room([0; 65536]);

fn room() -> (usize, usize) {
    ((&raw mut ROOM) as usize, size_of::<Room>())
}

fn altstack_is(new: Option<AltStack>) -> (sys::Result<usize>, AltStack) {
    let mut old = AltStack::NONE;
    let new = new.as_ref().map_or(0, |new| core::ptr::from_ref(new) as usize);
    // SAFETY: both are what the call takes.
    (unsafe { c(Sysno::sigaltstack, [new, &raw mut old as usize]) }, old)
}

extern "C" fn altstack(_: usize) -> i32 {
    let (sp, size) = room();
    let on = |sp: usize| (room().0..=room().0 + room().1).contains(&sp);
    check!(altstack_is(None).1.flags == AltStack::DISABLE);
    let none = AltStack { sp, flags: 0, size: 100 };
    check!(altstack_is(Some(none)).0 == Err(Errno::ENOMEM));
    check!(altstack_is(Some(AltStack { flags: 77, size, ..none })).0 == Err(Errno::EINVAL));
    check!(altstack_is(Some(AltStack { size, ..none })).0 == Ok(0));
    check!(altstack_is(None).1.sp == sp);
    let handler = notes as *const () as usize;
    check!(action(USR1, handler, NOTES, &[]) == Ok(0) && raise(USR1) == Ok(0));
    check!(!on(STACK.load(SeqCst)));
    check!(action(USR1, handler, NOTES | SA_ONSTACK, &[]) == Ok(0) && raise(USR1) == Ok(0));
    check!(on(STACK.load(SeqCst)));
    extern "C" fn changes(_: i32) {
        let (now, was) = altstack_is(Some(AltStack::NONE));
        check!(now == Err(Errno::EPERM) && was.flags == AltStack::NONE.flags, "{:?} {:?}", now, was);
        check!(altstack_is(None).1.flags == AltStack::ONSTACK);
        // One more signal stays on it.
        let outer = self::sp();
        check!(raise(USR2) == Ok(0));
        check!(STACK.load(SeqCst) < outer && outer - STACK.load(SeqCst) < 32768);
        CALLS.store(100, SeqCst);
    }
    check!(action(USR2, handler, NOTES | SA_ONSTACK, &[]) == Ok(0));
    check!(action(USR1, changes as *const () as usize, SA_ONSTACK, &[]) == Ok(0) && raise(USR1) == Ok(0));
    check!(CALLS.load(SeqCst) == 100);
    check!(altstack_is(Some(AltStack::NONE)).0 == Ok(0) && altstack_is(None).1.flags == AltStack::DISABLE);
    0
}

extern "C" fn masks(_: usize) -> i32 {
    check!(action(USR1, counts as *const () as usize, 0, &[]) == Ok(0));
    check!(mask(BLOCK, &[USR1, SIGKILL]) == SigSet::EMPTY);
    check!(blocked() == SigSet::of(&[USR1]));
    for _ in 0..3 {
        check!(raise(USR1) == Ok(0) && CALLS.load(SeqCst) == 0);
    }
    check!(pending() == SigSet::of(&[USR1]));
    mask(UNBLOCK, &[USR1]);
    check!(CALLS.load(SeqCst) == 1 && pending() == SigSet::EMPTY);
    // One sent to the process waits for anybody.
    mask(SETMASK, &[USR1]);
    check!(kill(USR1) == Ok(0) && pending() == SigSet::of(&[USR1]));
    mask(SETMASK, &[]);
    check!(CALLS.load(SeqCst) == 2);
    // One that comes to be ignored is gone.
    mask(SETMASK, &[USR1]);
    check!(raise(USR1) == Ok(0) && action(USR1, 1, 0, &[]) == Ok(0));
    mask(SETMASK, &[]);
    check!(CALLS.load(SeqCst) == 2);
    0
}

/// All numbers at once, on one stack.
extern "C" fn many(_: usize) -> i32 {
    let all = || (1..=64).filter(|sig| ![SIGKILL, 19].contains(sig));
    for sig in all() {
        check!(action(sig, counts as *const () as usize, 0, &[]) == Ok(0), "{sig}");
    }
    mask(SETMASK, &[]);
    let set = SigSet::ALL;
    // SAFETY: a set.
    check!(unsafe { c(Sysno::rt_sigprocmask, [SETMASK, &raw const set as usize, 0, 8]) } == Ok(0));
    for sig in all() {
        check!(raise(sig) == Ok(0), "{sig}");
    }
    check!(CALLS.load(SeqCst) == 0);
    mask(SETMASK, &[]);
    check!(CALLS.load(SeqCst) == 62, "{}", CALLS.load(SeqCst));
    check!(blocked() == SigSet::EMPTY && pending() == SigSet::EMPTY);
    0
}

extern "C" fn bad_use(_: usize) -> i32 {
    let handler = counts as *const () as usize;
    for sig in [0, 65, -1, SIGKILL, 19] {
        check!(action(sig, handler, 0, &[]) == Err(Errno::EINVAL), "{sig}");
    }
    // SAFETY: addresses that lead nowhere, sizes that are wrong.
    unsafe {
        check!(c(Sysno::rt_sigaction, [10, 8, 0, 8]) == Err(Errno::EFAULT));
        check!(c(Sysno::rt_sigaction, [10, 0, 8, 8]) == Err(Errno::EFAULT));
        check!(c(Sysno::rt_sigaction, [10, 0, 0, 4]) == Err(Errno::EINVAL));
        check!(c(Sysno::rt_sigprocmask, [SETMASK, 8, 0, 8]) == Err(Errno::EFAULT));
        check!(c(Sysno::rt_sigprocmask, [SETMASK, 0, 8, 8]) == Err(Errno::EFAULT));
        let set = SigSet::EMPTY;
        check!(c(Sysno::rt_sigprocmask, [7, &raw const set as usize, 0, 8]) == Err(Errno::EINVAL));
        check!(c(Sysno::rt_sigprocmask, [7, 0, 0, 8]) == Ok(0));
        check!(c(Sysno::sigaltstack, [8, 0]) == Err(Errno::EFAULT));
        check!(c(Sysno::rt_sigpending, [8, 8]) == Err(Errno::EFAULT));
    }
    check!(raise(65) == Err(Errno::EINVAL) && kill(-1) == Err(Errno::EINVAL));
    check!(send(1, USR1).is_err());
    // SAFETY: not the guest's.
    check!(unsafe { c(Sysno::kill, [1, 15]) }.is_err());
    0
}

/// Spoils what it can.
extern "C" fn spoils(_: i32) {
    CALLS.fetch_add(1, SeqCst);
    // SAFETY: these registers are the compiler's to lose.
    unsafe {
        asm!("pxor xmm0, xmm0", "pxor xmm5, xmm5", "fninit", "fldz", "fstp st(0)", out("xmm0") _, out("xmm5") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _, out("st(4)") _, out("st(5)") _,
            out("st(6)") _, out("st(7)") _);
        let word = 0x1f80u32 | 0x6000;
        asm!("ldmxcsr [{}]", in(reg) &raw const word);
        let clean = 0x1f80u32;
        let _ = raise(0);
        asm!("ldmxcsr [{}]", in(reg) &raw const clean);
    }
}

/// Registers, vector registers and control words are as they were.
extern "C" fn registers(_: usize) -> i32 {
    check!(action(SIGILL, skips as *const () as usize, SA_SIGINFO, &[]) == Ok(0));
    for i in 0..100usize {
        let (mut a, mut b, mut vector) = (i, i ^ 0x5555, [0u8; 16]);
        let odd = [i as u8; 16];
        let (control, mut after) = (0x1f80u32 | 0x2000, 0u32);
        // SAFETY: the handler goes on behind the trap, and nothing else has changed.
        unsafe {
            asm!("movdqu xmm5, [{v}]", "ldmxcsr [{c}]", "ud2", "stmxcsr [{d}]", "movdqu [{w}], xmm5",
                v = in(reg) &raw const odd, c = in(reg) &raw const control, d = in(reg) &raw mut after,
                w = in(reg) &raw mut vector, inout("eax") a, inout("edx") b, out("xmm5") _);
            let clean = 0x1f80u32;
            asm!("ldmxcsr [{}]", in(reg) &raw const clean);
        }
        check!(a == i && b == i ^ 0x5555 && vector == odd && after == control, "{i}");
    }
    check!(CALLS.load(SeqCst) == 100);
    0
}

/// The registers of the interrupted code, as the handler sees them.
fn interrupted(context: *mut Frame) -> *mut Frame {
    // On i386, `struct ucontext_ia32` has 20 bytes before them.
    if cfg!(target_arch = "x86") { context.wrapping_byte_add(20) } else { context }
}

/// Goes on behind an instruction of two bytes.
extern "C" fn skips(sig: i32, info: *const Info, context: *mut Frame) {
    spoils(sig);
    SIGNAL.store(sig, SeqCst);
    // SAFETY: set with SA_SIGINFO.
    unsafe {
        CODE.store((*info).code(), SeqCst);
        #[cfg(target_pointer_width = "64")]
        let addr = (*info).words[0] as usize | ((*info).words[1] as usize) << 32;
        #[cfg(target_pointer_width = "32")]
        let addr = (*info).words[0] as usize;
        STACK.store(addr, SeqCst);
        let frame = interrupted(context);
        (*frame).set_pc((*frame).pc() + 2);
    }
}

/// Stores a byte, by an instruction of two bytes.
unsafe fn store(at: usize) {
    // SAFETY: the caller handles the fault.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("mov [rax], cl", in("rax") at);
        #[cfg(target_arch = "x86")]
        asm!("mov [eax], cl", in("eax") at);
    }
}

/// Faults that the guest handles: twice each, and no report.
extern "C" fn faults(_: usize) -> i32 {
    for sig in [SIGSEGV, SIGFPE, SIGILL, SIGTRAP] {
        check!(action(sig, skips as *const () as usize, SA_SIGINFO, &[]) == Ok(0));
    }
    let is = |sig: i32, code: i32| {
        let seen = (SIGNAL.load(SeqCst), CODE.load(SeqCst));
        check!(seen == (sig, code), "{sig}: {seen:?}");
    };
    for _ in 0..2 {
        // SAFETY: the handler goes on behind each; all have two bytes.
        unsafe {
            store(0x123);
            is(SIGSEGV, 1); // SEGV_MAPERR
            check!(STACK.load(SeqCst) == 0x123);
            store(faults as *const () as usize);
            is(SIGSEGV, 2); // SEGV_ACCERR
            check!(STACK.load(SeqCst) == faults as *const () as usize);
            asm!("div ecx", inout("eax") 7 => _, inout("edx") 0 => _, in("ecx") 0);
            is(SIGFPE, 1);
            asm!("ud2");
            is(SIGILL, 2);
            asm!("int3", "nop", "nop", "nop"); // it goes on two bytes behind what is behind it
            is(SIGTRAP, 0x80);
        }
    }
    // SAFETY: no memory: still answered by the runtime.
    let tsc = unsafe {
        let (lo, _hi): (u32, u32);
        asm!("rdtsc", out("eax") lo, out("edx") _hi);
        lo
    };
    check!(tsc != 1 && CALLS.load(SeqCst) >= 10);
    0
}

fn null_write() {
    // SAFETY: no memory is there, which is the point.
    unsafe { asm!("mov byte ptr [{}], 1", in(reg) 0usize) };
}

extern "C" fn blocked_fault(_: usize) -> i32 {
    check!(action(SIGSEGV, skips as *const () as usize, SA_SIGINFO, &[]) == Ok(0));
    mask(SETMASK, &[SIGSEGV]);
    null_write();
    0
}

extern "C" fn fault_again(_: usize) -> i32 {
    extern "C" fn faults(_: i32) {
        null_write();
    }
    check!(action(SIGSEGV, faults as *const () as usize, 0, &[]) == Ok(0));
    null_write();
    0
}

#[allow(unconditional_recursion, reason = "the point")]
#[inline(never)]
fn recurse(n: usize) -> usize {
    let room = core::hint::black_box([n; 64]);
    recurse(n + 1) + room[n % 64]
}

extern "C" fn no_stack(_: usize) -> i32 {
    check!(action(SIGSEGV, skips as *const () as usize, SA_SIGINFO, &[]) == Ok(0));
    recurse(0) as i32
}

extern "C" fn overflow_handled(_: usize) -> i32 {
    extern "C" fn leaves(_: i32) {
        ascetic::untrusted::exit(0)
    }
    let (sp, size) = room();
    check!(altstack_is(Some(AltStack { sp, flags: 0, size })).0 == Ok(0));
    check!(action(SIGSEGV, leaves as *const () as usize, SA_ONSTACK, &[]) == Ok(0));
    recurse(0);
    1
}

extern "C" fn raises(sig: usize) -> i32 {
    let _ = raise(sig as i32);
    1
}

/// What has no handler ends the guest, by the true signal; and so does what had one, but no longer.
fn default_actions() {
    extern "C" fn no_longer(sig: usize) -> i32 {
        check!(action(sig as i32, counts as *const () as usize, SA_RESETHAND, &[]) == Ok(0));
        check!(raise(sig as i32) == Ok(0) && CALLS.load(SeqCst) == 1);
        raises(sig)
    }
    extern "C" fn when_unblocked(sig: usize) -> i32 {
        mask(SETMASK, &[sig as i32]);
        check!(raise(sig as i32) == Ok(0));
        mask(SETMASK, &[]);
        1
    }
    for guest in [raises, no_longer, when_unblocked] {
        for sig in [SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS] {
            must_crash(&program(&POLICY), guest, sig as usize, sig, |record| {
                check!(record.fault.is_some_and(|fault| fault.sig == sig));
            });
        }
        for sig in [USR1, TERM, 40] {
            let outcome = run(&program(&POLICY), guest, sig as usize);
            check!(outcome.guest.is_signal(sig), "{}", outcome.guest);
        }
    }
    for sig in [17, 18, 23, 28] {
        must_exit(&program(&POLICY), raises, sig, 1);
    }
}

static GO: AtomicU32 = AtomicU32::new(0);
static WORD: AtomicU32 = AtomicU32::new(0);

fn wait_for(word: &AtomicU32, value: u32) {
    while word.load(SeqCst) != value {
        core::hint::spin_loop();
    }
}

/// A thread that computes is interrupted, with its own mask and nobody else's.
extern "C" fn threads(_: usize) -> i32 {
    extern "C" fn computes(_: usize) {
        check!(blocked() == SigSet::of(&[USR2])); // as its creator
        mask(SETMASK, &[TERM]);
        GO.store(1, SeqCst);
        wait_for(&CALLS, 1);
        check!(THREAD.load(SeqCst) == tid() && blocked() == SigSet::of(&[TERM]));
        check!(altstack_is(None).1.flags == AltStack::DISABLE);
        GO.store(2, SeqCst);
    }
    let (sp, size) = room();
    check!(altstack_is(Some(AltStack { sp, flags: 0, size })).0 == Ok(0));
    check!(action(USR1, notes as *const () as usize, NOTES, &[]) == Ok(0));
    mask(SETMASK, &[USR2]);
    let other = start(0, computes, 0, &WORD).unwrap_or(0);
    wait_for(&GO, 1);
    check!(blocked() == SigSet::of(&[USR2]));
    check!(send(other, USR1) == Ok(0));
    wait_for(&GO, 2);
    check!(THREAD.load(SeqCst) == other);
    join(&WORD);
    check!(send(other, USR1).is_err(), "it is gone");
    0
}

/// Threads that compute, call and handle signals at once, while others send them: nothing is lost, nothing breaks.
extern "C" fn storm(_: usize) -> i32 {
    static SENT: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];
    static WORDS: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];
    extern "C" fn works(i: usize) {
        while GO.load(SeqCst) == 0 {
            // SAFETY: no memory.
            check!(unsafe { c(Sysno::getppid, []) }.is_ok());
            mask(BLOCK, &[USR1]);
            mask(UNBLOCK, &[USR1]);
            SENT[i].fetch_add(1, SeqCst);
        }
    }
    extern "C" fn calls(sig: i32) {
        // SAFETY: no memory.
        check!(unsafe { c(Sysno::getppid, []) }.is_ok());
        counts(sig);
    }
    for sig in [USR1, USR2] {
        check!(action(sig, calls as *const () as usize, 0, &[]) == Ok(0));
    }
    let tids: [usize; 3] = core::array::from_fn(|i| start(i, works, i, &WORDS[i]).unwrap_or(0));
    for tid in tids {
        for n in 0..100 {
            let before = CALLS.load(SeqCst);
            check!(send(tid, if n % 2 == 0 { USR1 } else { USR2 }) == Ok(0));
            while CALLS.load(SeqCst) == before {
                core::hint::spin_loop();
            }
        }
    }
    GO.store(1, SeqCst);
    WORDS.iter().for_each(join);
    check!(CALLS.load(SeqCst) == 300 && SENT.iter().all(|n| n.load(SeqCst) > 0));
    0
}

/// One for the process goes to a thread that does not block it.
extern "C" fn process(_: usize) -> i32 {
    extern "C" fn takes(_: usize) {
        mask(SETMASK, &[]);
        GO.store(1, SeqCst);
        wait_for(&CALLS, 1);
    }
    check!(action(USR1, notes as *const () as usize, NOTES, &[]) == Ok(0));
    mask(SETMASK, &[USR1]);
    let other = start(0, takes, 0, &WORD).unwrap_or(0);
    wait_for(&GO, 1);
    check!(kill(USR1) == Ok(0));
    join(&WORD);
    check!(THREAD.load(SeqCst) == other && CODE.load(SeqCst) == 0);
    0
}

static PIPE: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
static RESULT: AtomicI32 = AtomicI32::new(0);

fn make_pipe() {
    let mut ends = [0u32; 2];
    // SAFETY: room for two descriptors.
    check!(unsafe { c(Sysno::pipe2, [ends.as_mut_ptr() as usize, 0]) } == Ok(0));
    PIPE.iter().zip(ends).for_each(|(to, end)| to.store(end, SeqCst));
}

extern "C" fn reads(_: usize) {
    let mut byte = 0u8;
    GO.store(1, SeqCst);
    // SAFETY: room for a byte.
    let result = unsafe { c(Sysno::read, [PIPE[0].load(SeqCst) as usize, &raw mut byte as usize, 1]) };
    RESULT.store(result.map_or_else(|errno| -errno.into_raw(), |n| n as i32), SeqCst);
}

/// One signal is enough, whenever it comes: its handler runs, before a read that waits or instead of it.
extern "C" fn interrupt(off: usize) -> i32 {
    make_pipe();
    check!(action(USR1, counts as *const () as usize, 0, &[]) == Ok(0));
    MISS_KICKS.store(off != 0, SeqCst);
    let mut interrupted = 0;
    for i in 0..200u32 {
        // Most come just before the system call.
        DAWDLE.store(if i % 4 == 0 { 0 } else { 4000 }, SeqCst);
        GO.store(0, SeqCst);
        RESULT.store(0, SeqCst);
        let other = start(0, reads, 0, &WORD).unwrap_or(0);
        wait_for(&GO, 1);
        (0..i * 7).for_each(|_| core::hint::spin_loop());
        let before = CALLS.load(SeqCst);
        let sent = send(other, USR1);
        check!(sent == Ok(0), "{i}: {sent:?}, {}", RESULT.load(SeqCst));
        handled(before);
        // If the handler ran before the read began, that waits.
        let (byte, [read, write]) = (0u8, [0, 1].map(|end: usize| PIPE[end].load(SeqCst) as usize));
        let at = &raw const byte as usize;
        // SAFETY: a byte.
        check!(unsafe { c(Sysno::write, [write, at, 1]) } == Ok(1));
        join(&WORD);
        if RESULT.load(SeqCst) == -4 {
            interrupted += 1;
            // SAFETY: room for the byte that nobody took.
            check!(unsafe { c(Sysno::read, [read, at, 1]) } == Ok(1));
        } else {
            check!(RESULT.load(SeqCst) == 1, "{i}: {}", RESULT.load(SeqCst));
        }
    }
    check!(CALLS.load(SeqCst) == 200 && interrupted > 50, "{interrupted}");
    0
}

/// Waits until one more signal was handled; ends the guest if none is.
fn handled(before: u32) {
    let mut patience = 2000;
    while CALLS.load(SeqCst) == before {
        let pause = [0, 1_000_000usize];
        // SAFETY: a timespec.
        let _ = unsafe { c(Sysno::nanosleep, [pause.as_ptr() as usize, 0]) };
        patience -= 1;
        if patience == 0 {
            ascetic::untrusted::exit(LOST);
        }
    }
}

/// A signal that comes when a call's handler has looked for the last time finds a thread that makes no further call.
extern "C" fn late(off: usize) -> i32 {
    extern "C" fn calls_once(before: usize) {
        LINGER.store(if before % 4 == 0 { 0 } else { 20_000 }, SeqCst);
        GO.store(1, SeqCst);
        // SAFETY: no memory.
        check!(unsafe { c(Sysno::getppid, []) }.is_ok_and(|pid| pid > 0));
        while CALLS.load(SeqCst) as usize == before {
            core::hint::spin_loop();
        }
    }
    check!(action(USR1, counts as *const () as usize, 0, &[]) == Ok(0));
    LATE_KICKS.store(off != 0, SeqCst);
    for _ in 0..50 {
        LINGER.store(0, SeqCst);
        GO.store(0, SeqCst);
        let before = CALLS.load(SeqCst);
        let other = start(0, calls_once, before as usize, &WORD).unwrap_or(0);
        while GO.load(SeqCst) == 0 {
            core::hint::spin_loop();
        }
        check!(send(other, USR1) == Ok(0));
        LINGER.store(0, SeqCst);
        handled(before);
        join(&WORD);
    }
    0
}

/// The exit status of a guest that lost a signal.
const LOST: i32 = 42;

/// Whether the guest loses a signal in one of some runs, its defence being off.
fn loses(guest: extern "C" fn(usize) -> i32) -> bool {
    (0..50).any(|_| run(&program(&POLICY), guest, 1).guest == Status::Exited(LOST as u8))
}

/// With `SA_RESTART` it goes on.
extern "C" fn restart(_: usize) -> i32 {
    make_pipe();
    check!(action(USR1, counts as *const () as usize, SA_RESTART, &[]) == Ok(0));
    let other = start(0, reads, 0, &WORD).unwrap_or(0);
    wait_for(&GO, 1);
    for n in 1..=20 {
        check!(send(other, USR1) == Ok(0));
        wait_for(&CALLS, n);
    }
    check!(WORD.load(SeqCst) != 0 && RESULT.load(SeqCst) == 0);
    // SAFETY: a byte.
    check!(unsafe { c(Sysno::write, [PIPE[1].load(SeqCst) as usize, b"x".as_ptr() as usize, 1]) } == Ok(1));
    join(&WORD);
    check!(RESULT.load(SeqCst) == 1);
    0
}

/// Waiting for a signal misses none, and takes another mask for as long as it waits.
extern "C" fn suspend(_: usize) -> i32 {
    extern "C" fn waits(n: usize) {
        mask(SETMASK, &[USR1]);
        GO.store(1, SeqCst);
        for i in 0..n as u32 {
            let empty = SigSet::EMPTY;
            // SAFETY: a set.
            let result = unsafe { c(Sysno::rt_sigsuspend, [&raw const empty as usize, 8]) };
            check!(result == Err(Errno::EINTR) && CALLS.load(SeqCst) == i + 1 && blocked() == SigSet::of(&[USR1]));
            GO.store(i + 2, SeqCst);
        }
    }
    const N: u32 = 300;
    check!(action(USR1, counts as *const () as usize, 0, &[]) == Ok(0));
    let other = start(0, waits, N as usize, &WORD).unwrap_or(0);
    for i in 0..N {
        wait_for(&GO, i + 1);
        check!(send(other, USR1) == Ok(0));
    }
    join(&WORD);
    check!(CALLS.load(SeqCst) == N);
    0
}

/// `sigwait`: what is blocked is taken, with what is known of it, and no handler runs.
extern "C" fn waits_for_signals(_: usize) -> i32 {
    extern "C" fn sends(to: usize) {
        for i in 0..200 {
            wait_for(&GO, i);
            // SAFETY: the guest itself.
            let sent = unsafe { if i % 2 == 0 { send(to, USR1) } else { c(Sysno::kill, [pid(), USR2 as usize]) } };
            check!(sent == Ok(0));
        }
    }
    let set = SigSet::of(&[USR1, USR2]);
    let wait = |timeout: usize, info: &mut Info| {
        let at = [&raw const set as usize, core::ptr::from_mut(info) as usize];
        // SAFETY: a set, and room for what is told.
        unsafe { c(Sysno::rt_sigtimedwait, [at[0], at[1], timeout, 8]) }
    };
    let mut info = Info::new(0, 0, [0; 2], 0);
    mask(SETMASK, &[USR1, USR2]);
    check!(action(USR1, counts as *const () as usize, 0, &[]) == Ok(0));
    check!(action(USR2, counts as *const () as usize, 0, &[]) == Ok(0));
    check!(wait([0usize; 2].as_ptr() as usize, &mut info) == Err(Errno::EAGAIN));
    check!(start(0, sends, tid(), &WORD).is_ok());
    for i in 0..200 {
        let expected = if i % 2 == 0 { USR1 } else { USR2 };
        check!(wait(0, &mut info) == Ok(expected as usize), "{i}");
        check!(info.words[0] as usize == pid() && info.code() == if i % 2 == 0 { -6 } else { 0 });
        GO.store(i + 1, SeqCst);
    }
    join(&WORD);
    check!(CALLS.load(SeqCst) == 0 && pending() == SigSet::EMPTY);
    0
}

/// `sigqueue`: a value goes along; nobody can say that the kernel sent it.
extern "C" fn queues(_: usize) -> i32 {
    extern "C" fn takes(sig: i32, info: *const Info, _context: *mut Frame) {
        // SAFETY: set with SA_SIGINFO.
        unsafe {
            CODE.store((*info).code(), SeqCst);
            STACK.store((*info).value, SeqCst);
        }
        counts(sig);
    }
    let send = |code: i32, sig: i32| {
        let info = Info::new(sig, code, [pid() as u32, 0], 0x1234);
        // SAFETY: a siginfo.
        unsafe { c(Sysno::rt_tgsigqueueinfo, [pid(), tid(), sig as usize, &raw const info as usize]) }
    };
    check!(action(USR1, takes as *const () as usize, SA_SIGINFO, &[]) == Ok(0));
    check!(send(-1, USR1) == Ok(0) && CALLS.load(SeqCst) == 1);
    check!(CODE.load(SeqCst) == -1 && STACK.load(SeqCst) == 0x1234);
    check!(send(0x80, USR1) == Err(Errno::EPERM) && send(-6, USR1) == Err(Errno::EPERM));
    // SAFETY: not there.
    check!(unsafe { c(Sysno::rt_sigqueueinfo, [pid(), USR1 as usize, 8]) } == Err(Errno::EFAULT));
    check!(CALLS.load(SeqCst) == 1);
    0
}

/// Without the policy's word there are handlers, for itself, but nothing for others.
extern "C" fn not_allowed(_: usize) -> i32 {
    extern "C" fn waits(_: usize) {
        GO.store(1, SeqCst);
        wait_for(&GO, 2);
    }
    check!(action(USR1, counts as *const () as usize, 0, &[]) == Ok(0));
    check!(raise(USR1) == Ok(0) && CALLS.load(SeqCst) == 1);
    let other = start(0, waits, 0, &WORD).unwrap_or(0);
    wait_for(&GO, 1);
    check!(send(other, USR1).is_err());
    GO.store(2, SeqCst);
    join(&WORD);
    check!(CALLS.load(SeqCst) == 1 && raise(TERM).is_err());
    0
}
