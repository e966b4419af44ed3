//! Every kind of fault: the true signal, the class, and what the record says.

use super::*;
use ascetic::experiment;
use ascetic::fault::classify::Class;
use ascetic::fault::record::Kind;
use ascetic::sys;
use ascetic::untrusted;
use core::arch::asm;
use core::hint::black_box;

pub const CASES: &[Case] = &[
    case("fault_null_read", || is(null_read, 11, Class::NullPointer)),
    case("fault_null_write", || is(null_write, 11, Class::NullPointer)),
    case("fault_write_read_only", || is(write_read_only, 11, Class::WriteReadOnly)),
    case("fault_read_unmapped", || is(read_unmapped, 11, Class::ReadUnmapped)),
    case("fault_write_unmapped", || is(write_unmapped, 11, Class::WriteUnmapped)),
    case("fault_execute_data", execute_data),
    case("fault_jump_unmapped", || is(jump_unmapped, 11, Class::JumpUnmapped)),
    #[cfg(target_arch = "x86_64")]
    case("fault_non_canonical", || is(non_canonical, 11, Class::NonCanonical)),
    case("fault_privileged", || is(privileged, 11, Class::Privileged)),
    case("fault_vault", || is(vault, 11, Class::Vault)),
    case("fault_stack_overflow", || is(overflow, 11, Class::StackOverflow)),
    case("fault_wild_stack_pointer", || is(wild_stack, 11, Class::NullPointer)),
    case("fault_misaligned", || if_not_emulated(misaligned, 7, Class::Misaligned)),
    case("fault_beyond_file", beyond_file),
    case("fault_divide", || is(divide, 8, Class::IntegerDivide)),
    case("fault_floating_point", || is(floating, 8, Class::FloatingPoint)),
    case("fault_floating_point_sse", || if_not_emulated(floating_sse, 8, Class::FloatingPoint)),
    case("fault_ud2", || is(ud2, 4, Class::DeliberateTrap)),
    case("fault_illegal", || is(illegal, 4, Class::IllegalInstruction)),
    case("fault_int3", || is(int3, 5, Class::Breakpoint)),
    case("fault_single_step", || is(single_step, 5, Class::SingleStep)),
    case("fault_single_step_before_exit", || is(step_into_exit, 5, Class::SingleStep)),
    case("fault_int4", || is(int4, 11, Class::Protection)),
    case("fault_that_does_not_repeat", || is(bad_sigreturn, 11, Class::Protection)),
    case("fault_sent_sys_in_call", || sent_while_in_call(31)),
    case("fault_sent_segv_after_rdtsc", sent_after_rdtsc),
    case("fault_abort", || is(abort, 6, Class::Abort)),
    case("fault_sent_segv", || sent(11)),
    case("fault_sent_bus", || sent(7)),
    case("fault_sent_fpe", || sent(8)),
    case("fault_sent_ill", || sent(4)),
    case("fault_sent_trap", || sent(5)),
    case("fault_sent_sys", || sent(31)),
    case("fault_sent_abrt", || sent(6)),
    case("fault_sent_term_is_not_ours", sent_term),
    case("fault_sent_while_in_call", || sent_while_in_call(6)),
    case("fault_in_reporter_segv", || nested(null_write, 11)),
    case("fault_in_reporter_fpe", || nested(divide, 8)),
    case("fault_in_reporter_int3", || nested(int3, 5)),
    case("fault_record_contents", contents),
    case("fault_record_near_registers", near),
    case("fault_record_fits_a_pipe", to_pipe),
    case("fault_full_pipe", || bad_pipe(true)),
    case("fault_closed_pipe", || bad_pipe(false)),
    case("fault_flooded_memory", flooded),
    case("fault_two_at_once", two_at_once),
    case("fault_latency", latency),
];

pub type Guest = extern "C" fn(usize) -> i32;

fn is(guest: Guest, signal: i32, class: Class) {
    must_crash(&config(), guest, 0, signal, |record| {
        check!(record.complete);
        check!(record.class() == class, "{}: {:?}", record.text, record.class());
        check!(record.text.starts_with("ascetic: fault signal="));
        check!(record.fault.unwrap().sig == signal);
    });
}

/// QEMU's translator raises neither alignment checks nor SSE exceptions.
fn if_not_emulated(guest: Guest, signal: i32, class: Class) {
    if run(&config(), guest, 0).guest == Status::Exited(0) && hypervisor() == *b"TCGTCGTCGTCG" {
        skip("QEMU's translator does not raise this exception");
    }
    is(guest, signal, class)
}

/// The hypervisor's name for itself (CPUID leaf 0x4000_0000).
fn hypervisor() -> [u8; 12] {
    #[cfg(target_arch = "x86")]
    use core::arch::x86::__cpuid;
    #[cfg(target_arch = "x86_64")]
    use core::arch::x86_64::__cpuid;
    #[allow(unused_unsafe, reason = "it is safe in newer versions of Rust")]
    // SAFETY: every processor that this runs on has CPUID.
    let leaf = unsafe { __cpuid(0x4000_0000) };
    let mut name = [0; 12];
    for (to, register) in name.chunks_exact_mut(4).zip([leaf.ebx, leaf.ecx, leaf.edx]) {
        to.copy_from_slice(&register.to_le_bytes());
    }
    name
}

/// A fault that a guest can raise.
pub struct Fault {
    /// What it is called.
    pub name: &'static str,
    /// Raises it. Its argument is [`short_file`]'s address.
    pub guest: Guest,
    /// The signal that it is.
    pub signal: i32,
}

const fn fault(name: &'static str, guest: Guest, signal: i32) -> Fault {
    Fault { name, guest, signal }
}

/// One of each kind.
pub const FAULTS: &[Fault] = &[
    fault("read", read_unmapped, 11),
    fault("write", write_read_only, 11),
    fault("null", null_write, 11),
    fault("exec", jump_unmapped, 11),
    fault("privileged", privileged, 11),
    fault("bus", beyond, 7),
    fault("divide", divides, 8),
    fault("floating", floating, 8),
    fault("ill", ud2, 4),
    fault("trap", int3, 5),
    fault("abort", abort, 6),
    fault("denied", calls, 31),
    fault("overflow", overflow, 11),
    fault("wild-stack", wild_stack, 11),
];

extern "C" fn null_read(_: usize) -> i32 {
    // SAFETY: none: the fault is the point, here and below.
    unsafe { i32::from(black_box(8 as *const u8).read_volatile()) }
}

extern "C" fn null_write(_: usize) -> i32 {
    // SAFETY: see above.
    unsafe { black_box(16 as *mut u8).write_volatile(1) };
    0
}

extern "C" fn write_read_only(_: usize) -> i32 {
    static TEXT: [u8; 8] = [1; 8];
    // SAFETY: see above.
    unsafe { black_box(TEXT.as_ptr().cast_mut()).write_volatile(1) };
    0
}

const UNMAPPED: usize = 0x1234_0000;

extern "C" fn read_unmapped(_: usize) -> i32 {
    // SAFETY: see above.
    unsafe { i32::from(black_box(UNMAPPED as *const u8).read_volatile()) }
}

extern "C" fn write_unmapped(_: usize) -> i32 {
    // SAFETY: see above.
    unsafe { black_box(UNMAPPED as *mut u8).write_volatile(1) };
    0
}

fn execute_data() {
    extern "C" fn guest(_: usize) -> i32 {
        static mut CODE: [u8; 8] = [0xc3; 8];
        // SAFETY: see above.
        unsafe { asm!("call {}", in(reg) &raw mut CODE, clobber_abi("C")) };
        5
    }
    let mut sandbox = spawn(&config(), guest, 0);
    let outcome = sandbox.wait(Some(PATIENCE));
    if outcome.guest == Status::Exited(5) {
        skip("this CPU or kernel has no NX: data can be executed");
    }
    is(guest, 11, Class::ExecuteData);
}

extern "C" fn jump_unmapped(_: usize) -> i32 {
    // SAFETY: see above.
    unsafe { asm!("call {}", in(reg) black_box(UNMAPPED), clobber_abi("C")) };
    0
}

#[cfg(target_arch = "x86_64")]
extern "C" fn non_canonical(_: usize) -> i32 {
    // SAFETY: see above.
    unsafe { i32::from(black_box(0x1234_5678_9abc_def0usize as *const u8).read_volatile()) }
}

extern "C" fn privileged(_: usize) -> i32 {
    // SAFETY: see above.
    unsafe { asm!("hlt") };
    0
}

extern "C" fn vault(_: usize) -> i32 {
    // SAFETY: see above.
    unsafe { experiment::pages().0.cast::<u32>().write_volatile(0) };
    0
}

#[inline(never)]
#[allow(unconditional_recursion, reason = "the overflow is the point")]
fn recurse(depth: usize) -> usize {
    let frame = black_box([depth; 64]);
    recurse(depth + 1) + frame[depth % 64]
}

extern "C" fn overflow(_: usize) -> i32 {
    black_box(recurse(0)) as i32
}

extern "C" fn wild_stack(_: usize) -> i32 {
    // SAFETY: see above.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("mov rsp, 0x1230", "push rax", options(noreturn))
    }
    // SAFETY: see above.
    #[cfg(target_arch = "x86")]
    unsafe {
        asm!("mov esp, 0x1230", "push eax", options(noreturn))
    }
}

extern "C" fn misaligned(_: usize) -> i32 {
    let bytes = black_box([0u8; 16]);
    // SAFETY: see above.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("pushfq", "or qword ptr [rsp], 0x40000", "popfq", "mov eax, [{0} + 1]", "mov eax, [{0} + 2]",
            in(reg) bytes.as_ptr(), out("eax") _);
    }
    // SAFETY: see above.
    #[cfg(target_arch = "x86")]
    unsafe {
        asm!("pushfd", "or dword ptr [esp], 0x40000", "popfd", "mov eax, [{0} + 1]", "mov eax, [{0} + 2]",
            in(reg) bytes.as_ptr(), out("eax") _);
    }
    0
}

/// Maps two pages of a file that has one: address and length.
pub fn short_file() -> (usize, usize) {
    let fd = sys::memfd(c"short", 4096, false).unwrap();
    (sys::map_shared(8192, sys::PROT_READ, fd).unwrap(), 8192)
}

/// Reads the second page of [`short_file`]'s two.
extern "C" fn beyond(at: usize) -> i32 {
    // SAFETY: see above.
    unsafe { i32::from(((at + 4096) as *const u8).read_volatile()) }
}

/// A call of the guest's own, which strict mode does not allow.
pub extern "C" fn calls(_: usize) -> i32 {
    // SAFETY: at most an error.
    let _ = unsafe { freestanding::call(Sysno::dup3, [11, 12, 13]) };
    3
}

fn beyond_file() {
    let (at, len) = short_file();
    must_crash(&Config { share: &[(at, len)], ..config() }, beyond, at, 7, |record| {
        check!(record.class() == Class::BeyondFile, "{:?}", record.class());
        check!(record.fault.unwrap().addr == at as u64 + 4096);
    });
}

extern "C" fn divide(zero: usize) -> i32 {
    // SAFETY: see above.
    unsafe { asm!("xor edx, edx", "div {0:e}", in(reg) zero, inout("eax") 1 => _, out("edx") _) };
    0
}

extern "C" fn divides(_: usize) -> i32 {
    divide(black_box(0))
}

extern "C" fn floating(_: usize) -> i32 {
    // SAFETY: see above. Division by zero is unmasked.
    unsafe { asm!("fldcw [{}]", "fld1", "fldz", "fdivp", "fwait", in(reg) &0x037bu16) };
    0
}

extern "C" fn floating_sse(_: usize) -> i32 {
    // SAFETY: see above. All SSE exceptions are unmasked.
    unsafe {
        asm!("ldmxcsr [{}]", in(reg) &0u32);
        asm!("xorps xmm0, xmm0", "divss xmm0, xmm0", out("xmm0") _);
    }
    0
}

extern "C" fn ud2(_: usize) -> i32 {
    // SAFETY: see above.
    unsafe { asm!("ud2") };
    0
}

extern "C" fn illegal(_: usize) -> i32 {
    // SAFETY: see above.
    unsafe { asm!(".byte 0x0f, 0xff, 0xc0") };
    0
}

extern "C" fn int3(_: usize) -> i32 {
    // SAFETY: see above.
    unsafe { asm!("int3") };
    0
}

extern "C" fn single_step(_: usize) -> i32 {
    // SAFETY: see above.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "nop")
    };
    // SAFETY: see above.
    #[cfg(target_arch = "x86")]
    unsafe {
        asm!("pushfd", "or dword ptr [esp], 0x100", "popfd", "nop", "nop")
    };
    0
}

/// The step ends where the next instruction is the guest's exit.
extern "C" fn step_into_exit(_: usize) -> i32 {
    // SAFETY: see above.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "mov eax, 60",
            "mov edi, 7",
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            "nop",
            "syscall",
            options(noreturn)
        )
    }
    // SAFETY: see above.
    #[cfg(target_arch = "x86")]
    unsafe {
        asm!(
            "mov eax, 1",
            "mov ebx, 7",
            "pushfd",
            "or dword ptr [esp], 0x100",
            "popfd",
            "nop",
            "int 0x80",
            options(noreturn)
        )
    }
}

/// A sigreturn from nowhere: the kernel's SIGSEGV, with the program counter behind the call.
extern "C" fn bad_sigreturn(_: usize) -> i32 {
    // SAFETY: see above. The stack pointer leads nowhere while the kernel looks for a frame.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("mov r12, rsp", "xor esp, esp", "mov eax, 15", "syscall", "mov rsp, r12", out("rax") _, out("rcx") _, out("r11") _, out("r12") _)
    }
    // SAFETY: see above.
    #[cfg(target_arch = "x86")]
    unsafe {
        asm!("mov edi, esp", "mov esp, 8", "mov eax, 119", "int 0x80", "mov esp, edi", out("eax") _, out("edi") _)
    }
    0
}

/// A trap: the program counter is behind it, so that it does not repeat.
extern "C" fn int4(_: usize) -> i32 {
    // SAFETY: see above.
    unsafe { asm!("int 4") };
    33
}

/// A sent SIGSEGV finds the exception number of the last `rdtsc`; it must not be taken for another.
fn sent_after_rdtsc() {
    extern "C" fn guest(_: usize) -> i32 {
        loop {
            // SAFETY: no memory.
            unsafe { asm!("rdtsc", out("eax") _, out("edx") _, options(nomem, nostack)) };
        }
    }
    for _ in 0..10 {
        let mut sandbox = spawn(&config(), guest, 0);
        let _ = sys::poll(&mut [], Some(Duration::from_millis(3)));
        check!(sys::kill(sandbox.pids().1, 11).is_ok());
        let outcome = sandbox.wait(Some(Duration::from_secs(20)));
        // The old frame does not tell a sent signal from an rdtsc that it hit; the guest then goes on.
        check!(outcome.guest.is_signal(11) || cfg!(target_arch = "x86"), "{:?}", outcome);
        if cfg!(target_arch = "x86") {
            return;
        }
    }
}

extern "C" fn abort(_: usize) -> i32 {
    untrusted::abort()
}

extern "C" fn spins(_: usize) -> i32 {
    loop {
        core::hint::spin_loop();
    }
}

/// A signal that somebody sends ends the guest, with that signal, and the report says that it was sent.
fn sent(signal: i32) {
    let mut sandbox = spawn(&config(), spins, 0);
    check!(sys::kill(sandbox.pids().1, signal).is_ok());
    let outcome = sandbox.wait(Some(PATIENCE));
    check!(outcome.guest.is_signal(signal), "{:?}", outcome);
    let mut buffer = [0u8; RECORD_MAX];
    let record = Record::decode(sandbox.record(&mut buffer)).unwrap();
    check!(record.complete);
    let class = record.class();
    // The old frame does not tell of SIGSEGV and others whether they were sent.
    check!(cfg!(target_arch = "x86") || class == Class::Sent || signal == 6, "{class:?}");
}

fn sent_term() {
    let mut sandbox = spawn(&config(), spins, 0);
    check!(sys::kill(sandbox.pids().1, 15).is_ok());
    check!(sandbox.wait(Some(PATIENCE)).guest.is_signal(15));
}

/// U sleeps in its doorbell, behind a system call instruction, which must not be taken for the cause.
fn sent_while_in_call(signal: i32) {
    extern "C" fn guest(_: usize) -> i32 {
        let hour = [3600usize, 0];
        // SAFETY: reads a timespec.
        let _ = unsafe { untrusted::call(Sysno::nanosleep, [hour.as_ptr() as usize, 0, 0, 0, 0, 0]) };
        1
    }
    let mut sandbox = spawn(&config(), guest, 0);
    let _ = sys::poll(&mut [], Some(Duration::from_millis(50)));
    check!(sys::kill(sandbox.pids().1, signal).is_ok());
    let outcome = sandbox.wait(Some(PATIENCE));
    check!(outcome.guest.is_signal(signal), "{outcome:?}");
}

/// The reporter itself faults: the wait status is that of the first fault, and the text line is there.
fn nested(guest: Guest, signal: i32) {
    experiment::FAULT_IN_REPORTER.store(true, core::sync::atomic::Ordering::Relaxed);
    must_crash(&config(), guest, 0, signal, |record| {
        check!(!record.complete);
        check!(record.fault.unwrap().sig == signal);
        check!(record.text.starts_with("ascetic: fault signal="), "{}", record.text);
    });
}

const MARK: usize = 0x5ec0_4d12;

extern "C" fn contents_guest(_: usize) -> i32 {
    untrusted::annotate("format", "pcx");
    // SAFETY: touches no memory, or is refused.
    unsafe {
        for _ in 0..40 {
            let _ = untrusted::call(Sysno::getppid, [1, 2, 3, 4, 5, 6]);
        }
        let _ = untrusted::call(Sysno::openat, [MARK, 0, 0, 0, 0, 0]);
    }
    outer(1)
}

#[inline(never)]
fn outer(x: usize) -> i32 {
    black_box(inner(x + 1)) + 1
}

#[inline(never)]
fn inner(x: usize) -> i32 {
    let local = black_box([MARK + x; 4]);
    // SAFETY: the fault is the point.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("movq xmm5, {0}", "mov r13, {0}", "mov [{1}], al", in(reg) MARK, in(reg) 0x18usize, out("r13") _)
    };
    // SAFETY: the fault is the point.
    #[cfg(target_arch = "x86")]
    unsafe {
        asm!("movd xmm5, {0}", "mov edi, {0}", "mov [{1}], al", in(reg) MARK, in(reg) 0x18usize, out("edi") _)
    };
    local[x % 4] as i32
}

fn contents() {
    must_crash(&config(), contents_guest, 0, 11, |record| {
        check!(record.fault.unwrap().addr == 0x18);
        let register = |name| record.registers().find(|r| r.0 == name).unwrap().1;
        check!(register(if cfg!(target_arch = "x86") { "edi" } else { "r13" }) == MARK as u64);
        check!(record.annotations().next() == Some(("format", "pcx")));
        let (check, layout) = (record.check.unwrap(), record.layout.unwrap());
        check!(check.altstack == layout.altstack[1] - layout.altstack[0]);
        check!(check.frame == sys::auxv(sys::AT_MINSIGSTKSZ).unwrap_or(0) as u64);
        check!(check.enough() != Some(false) && (check.frame == 0 || check.enough() == Some(true)), "{check}");

        let calls = record.calls().count();
        check!(calls == untrusted::RING, "{calls}");
        let last = record.calls().last().unwrap();
        check!(last.nr == Sysno::openat as u32 && last.args[0] == MARK as u64 && last.result == -38 && last.state == 2);

        // The marks are on the stack; the words around the saved registers hold xmm5.
        let has = |kind, needle: &[u8]| {
            record.memory(kind).any(|(_, bytes)| bytes.windows(needle.len()).any(|w| w == needle))
        };
        check!(has(Kind::Stack, &(MARK + 2).to_le_bytes()));
        check!(has(Kind::ExtendedState, &(MARK as u64).to_le_bytes()));
        let extended: usize = record.memory(Kind::ExtendedState).map(|(_, bytes)| bytes.len()).sum();
        check!(extended >= 512, "{extended}");

        // The code is there, and the program counter is inside it.
        let pc = record.fault.unwrap().pc;
        check!(record.memory(Kind::Code).any(|(at, bytes)| (at..at + bytes.len() as u64).contains(&pc)));
        let depth = record.backtrace().count();
        check!(depth >= 3, "{depth}");
    });
}

/// What registers point to is in the record, once, up to where it ends; what cannot be read harms nothing.
fn near() {
    const LEN: usize = 2 * 4096;
    #[repr(align(4096))]
    struct Pages([u8; LEN]);
    static mut HEAP: Pages = Pages([0; LEN]);
    extern "C" fn guest(heap: usize) -> i32 {
        // SAFETY: the fault is the point; the two registers that compilers keep for themselves are left alone.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!("mov [rcx], al", in("r12") heap + 4096, in("r13") heap + 4096 + 8, in("rcx") 0x18usize,
                in("r14") usize::MAX - 7, in("r15") 0x1234_0000usize)
        };
        // SAFETY: see above.
        #[cfg(target_arch = "x86")]
        unsafe {
            asm!("mov [ecx], al", in("edi") heap + 4096, in("edx") heap + 4096 + 8, in("ecx") 0x18usize,
                in("eax") usize::MAX - 7)
        };
        0
    }
    // SAFETY: the address of a field; no reference.
    let heap = unsafe { &raw mut HEAP.0 }.cast::<u8>();
    for i in 0..LEN {
        // SAFETY: within the array, of which there is no reference.
        unsafe { heap.wrapping_add(i).write_volatile((i / 16) as u8) };
    }
    must_crash(&config(), guest, heap.addr(), 11, |record| {
        check!(record.complete && record.fault.unwrap().addr == 0x18);
        let at = heap.addr() as u64 + 4096;
        for place in at - 128..at + 256 + 8 {
            let has = |(from, bytes): (u64, &[u8])| bytes.get(place.checked_sub(from)? as usize).copied();
            let mut found = record.memory(Kind::Near).filter_map(has);
            check!(found.next() == Some(((place - heap.addr() as u64) / 16) as u8), "{:#x}", place - at);
            check!(found.next().is_none(), "twice: {:#x}", place - at);
        }
        let all: usize = record.memory(Kind::Near).map(|(_, bytes)| bytes.len()).sum();
        check!(all <= 17 * 384, "{all}");
    });
}

/// The embedder's own pipe, read while the guest writes.
fn to_pipe() {
    let (read, write) = sys::pipe().unwrap();
    let mut sandbox = spawn(&Config { crash: Some(write), ..config() }, null_write, 0);
    sys::close(write);
    let mut buffer = [0u8; RECORD_MAX];
    let mut have = 0;
    loop {
        let _ = sys::poll(&mut [sys::PollFd::readable(read)], Some(Duration::from_secs(20)));
        match sys::read(read, &mut buffer[have..]) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(sys::Errno::EAGAIN) => {}
            Err(errno) => check!(false, "{errno}"),
        }
        if have > 0 && Record::decode(&buffer[..have]).is_some_and(|record| record.complete) {
            break;
        }
    }
    check!(sandbox.wait(Some(PATIENCE)).guest.is_signal(11));
    check!(Record::decode(&buffer[..have]).is_some_and(|record| record.complete));
}

/// Nobody reads, or nobody can: the end is the true one all the same, and soon.
fn bad_pipe(full: bool) {
    let (read, write) = sys::pipe().unwrap();
    if full {
        while sys::write(write, &[0; 4096]).is_ok() {}
    } else {
        sys::close(read);
    }
    let mut sandbox = spawn(&Config { crash: Some(write), ..config() }, divide, 0);
    let outcome = sandbox.wait(Some(PATIENCE));
    check!(outcome.guest.is_signal(8), "{:?}", outcome);
}

/// The guest fills the memory for its own report: its loss, and nobody else's.
fn flooded() {
    extern "C" fn guest(_: usize) -> i32 {
        let crash = experiment::first_own_fd() + 3;
        while sys::write(crash, &[b'x'; 4096]).is_ok_and(|n| n > 0) {}
        divide(0)
    }
    let outcome = run(&config(), guest, 0);
    check!(outcome.guest.is_signal(8), "{:?}", outcome);
}

fn two_at_once() {
    extern "C" fn guest(fd: usize) -> i32 {
        // Both wait for the same line.
        let _ = sys::read(fd as i32, &mut [0; 1]);
        null_write(0)
    }
    let mut ends = [0i32; 2];
    // SAFETY: the kernel stores two descriptors.
    check!(unsafe { freestanding::call(Sysno::pipe2, [ends.as_mut_ptr() as usize, 0]) }.is_ok());
    let keep = [1, ends[0]];
    let config = Config { keep: &keep, ..config() };
    let mut both = [spawn(&config, guest, ends[0] as usize), spawn(&config, guest, ends[0] as usize)];
    check!(sys::write(ends[1], &[0; 2]) == Ok(2));
    let mut buffer = [0u8; RECORD_MAX];
    for sandbox in &mut both {
        check!(sandbox.wait(Some(PATIENCE)).guest.is_signal(11));
        let record = Record::decode(sandbox.record(&mut buffer)).unwrap();
        check!(record.complete && record.fault.unwrap().pid == sandbox.pids().1);
    }
}

/// From the fault to the end of the record; a bound that holds under emulation, too. The benchmark measures.
fn latency() {
    let mut sandbox = spawn(&config(), null_write, 0);
    let start = sys::now();
    let _ = sandbox.wait(Some(PATIENCE));
    let took = sys::now() - start;
    check!(took < 500_000_000, "{took} ns");
}
