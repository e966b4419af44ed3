//! Threads of a guest that has no thread library: stacks, `clone` as a program makes it, joins.

use core::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a thread's stack.
pub const STACK: usize = 32 * 1024;
/// How many stacks there are.
pub const STACKS: usize = 300;

#[repr(C, align(16))]
struct Stacks([[u8; STACK]; STACKS]);

static mut ALL: Stacks = Stacks([[0; STACK]; STACKS]);

/// The top of stack `i`.
pub fn stack(i: usize) -> usize {
    // SAFETY: the address of a static.
    (&raw mut ALL) as usize + (i + 1) * STACK
}

/// `CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM`
pub const THREAD: usize = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;
/// `CLONE_SETTLS`
pub const SETTLS: usize = 0x8_0000;
/// `CLONE_PARENT_SETTID`
pub const PARENT_SETTID: usize = 0x10_0000;
/// `CLONE_CHILD_CLEARTID`
pub const CHILD_CLEARTID: usize = 0x20_0000;
/// `CLONE_CHILD_SETTID`
pub const CHILD_SETTID: usize = 0x100_0000;

/// `clone(2)` by the program's own instruction. The child runs `f(arg)` on its stack, and ends by `exit(7)`. It traps if a
/// register that the call must preserve is not what it was.
///
/// # Safety
///
/// As the manual page says; calls of the program's own are caught.
pub unsafe fn clone(
    flags: usize,
    sp: usize,
    ids: [usize; 2],
    tls: usize,
    f: extern "C" fn(usize),
    arg: usize,
) -> isize {
    let top = sp - 4 * size_of::<usize>();
    // SAFETY: the caller says that the stack is the child's.
    unsafe {
        (top as *mut usize).write(f as usize);
        (top as *mut usize).add(1).write(arg);
    }
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's.
    unsafe {
        core::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 3f",
            "cmp r12, 0x1234",
            "jne 2f",
            "cmp r13, 0x1235",
            "jne 2f",
            "xor ebp, ebp",
            "pop rax",
            "pop rdi",
            "call rax",
            "mov edi, 7",
            "mov eax, 60",
            "syscall",
            "2: ud2",
            "3:",
            inlateout("rax") 56isize => result,
            in("rdi") flags, in("rsi") top, in("rdx") ids[0], in("r10") ids[1], in("r8") tls,
            in("r12") 0x1234usize, in("r13") 0x1235usize,
            out("rcx") _, out("r11") _,
        );
    }
    #[cfg(target_arch = "x86")]
    // SAFETY: the caller's.
    unsafe {
        (top as *mut usize).add(2).write(ids[0]);
        result = guests_clone(flags, top, ids[0], tls, ids[1]);
    }
    result
}

#[cfg(target_arch = "x86")]
core::arch::global_asm!(
    "guests_clone:",
    "push %ebx",
    "push %esi",
    "push %edi",
    "mov 16(%esp), %ebx",
    "mov 20(%esp), %ecx",
    "mov 24(%esp), %edx",
    "mov 28(%esp), %esi",
    "mov 32(%esp), %edi",
    "mov $120, %eax",
    "int $0x80",
    "test %eax, %eax",
    "jnz 3f",
    "cmp 8(%esp), %edx",
    "jne 2f",
    "xor %ebp, %ebp",
    "mov (%esp), %eax",
    "mov 4(%esp), %ecx",
    "sub $16, %esp",
    "mov %ecx, (%esp)",
    "call *%eax",
    "mov $7, %ebx",
    "mov $1, %eax",
    "int $0x80",
    "2: ud2",
    "3: pop %edi",
    "pop %esi",
    "pop %ebx",
    "ret",
    options(att_syntax)
);

#[cfg(target_arch = "x86")]
unsafe extern "C" {
    fn guests_clone(flags: usize, sp: usize, parent_tid: usize, tls: usize, child_tid: usize) -> isize;
}

/// Waits until the kernel has stored 0 in `word`, as it does when a thread with `CLONE_CHILD_CLEARTID` ends.
pub fn join(word: &AtomicU32, wait: impl Fn(usize, u32)) {
    loop {
        let tid = word.load(Ordering::SeqCst);
        if tid == 0 {
            return;
        }
        wait(word.as_ptr() as usize, tid);
    }
}
