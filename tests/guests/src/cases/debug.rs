//! Debuggers: from outside they attach, and see the guest's frames through a brokered call; the guest attaches to nothing.

use super::program::{DIRECT, both, c, program, raw};
use super::*;
use ascetic::sys::{self, Errno};
use ascetic::untrusted;
use core::hint::black_box;
use core::sync::atomic::AtomicU32;
use freestanding::call;

pub const CASES: &[Case] = &[
    case("debug_attach_from_outside", || both(attach)),
    case("debug_frames_of_a_brokered_call", || both(frames)),
    case("debug_gdb_of_a_brokered_call", || both(gdb)),
    case("debug_guest_attaches_to_nothing", || both(from_inside)),
];

const ATTACH: usize = 16;
const DETACH: usize = 17;
const GETREGS: usize = 12;
const SEIZE: usize = 0x4206;
const INTERRUPT: usize = 0x4207;

/// `struct user_regs_struct`: how many words, and where frame pointer and program counter are.
#[cfg(target_arch = "x86_64")]
pub const REGISTERS: (usize, usize, usize) = (27, 4, 16);
#[cfg(target_arch = "x86")]
const REGISTERS: (usize, usize, usize) = (17, 5, 12);

pub fn ptrace(request: usize, pid: u32, data: usize) -> sys::Result<usize> {
    // SAFETY: a task of the sandbox; what `data` points to is as large as the request says.
    unsafe { call(Sysno::ptrace, [request, pid as usize, 0, data]) }
}

/// Waits until a traced task has stopped: by which signal; `None` if it has ended.
pub fn stopped_by(pid: u32) -> Option<i32> {
    let mut raw = 0i32;
    const WALL: usize = 0x4000_0000;
    // SAFETY: the kernel stores a word.
    let waited = unsafe { call(Sysno::wait4, [pid as usize, &raw mut raw as usize, WALL, 0]) };
    check!(waited == Ok(pid as usize), "{waited:?}");
    (raw & 0xff == 0x7f).then_some(raw >> 8 & 0xff)
}

fn stopped(pid: u32) {
    check!(stopped_by(pid).is_some());
}

/// What the guest reads from.
static FD: AtomicU32 = AtomicU32::new(0);

/// `readv`, which strict mode does not allow U, in whichever way is on. The program's own instruction leaves the frame pointer
/// alone, as a libc's does.
#[inline(always)]
fn readv(fd: usize, iov: &[usize; 2]) -> isize {
    if !raw() {
        // SAFETY: the buffer is the guest's own.
        let read = unsafe { untrusted::call(Sysno::readv, [fd, iov.as_ptr() as usize, 1, 0, 0, 0]) };
        return read.map_or(-1, |n| n as isize);
    }
    let result: isize;
    // SAFETY: as above.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        core::arch::asm!("syscall", inlateout("rax") Sysno::readv as usize => result, in("rdi") fd,
            in("rsi") iov.as_ptr(), in("rdx") 1, out("rcx") _, out("r11") _);
        #[cfg(target_arch = "x86")] // the compiler keeps %ebx to itself
        core::arch::asm!("xchg ebx, edi", "int 0x80", "xchg ebx, edi", inlateout("eax") Sysno::readv as usize => result,
            inout("edi") fd => _, in("ecx") iov.as_ptr(), in("edx") 1);
    }
    result
}

#[inline(never)]
extern "C" fn debug_inner(word: &mut usize) -> usize {
    let mut byte = 0u8;
    let iov = [&raw mut byte as usize, 1];
    let n = readv(FD.load(Ordering::Relaxed) as usize, &iov);
    check!(n == 1, "{n}");
    *word += 1;
    black_box(*word)
}

#[inline(never)]
extern "C" fn debug_outer(word: &mut usize) -> usize {
    black_box(debug_inner(black_box(word))) + 1
}

extern "C" fn debug_guest(_: usize) -> i32 {
    let mut word = 0;
    let result = debug_outer(black_box(&mut word));
    black_box(result) as i32 - 2
}

/// Runs a guest that sits in a brokered call while `look` looks at its T and U, and that then goes on to its end.
fn sitting(look: impl FnOnce(u32, u32)) {
    let (read, write) = sys::blocking_pipe().unwrap();
    FD.store(read as u32, Ordering::Relaxed);
    let keep = [1, 2, read];
    let mut sandbox = spawn(&Config { keep: &keep, ..program(&DIRECT) }, debug_guest, 0);
    check!(sandbox.serve(Some(Duration::from_millis(100))).is_none());
    while let Some(pause) = sandbox.patience() {
        check!(sandbox.serve(Some(pause)).is_none());
    }
    let _ = sys::poll(&mut [], Some(Duration::from_millis(if emulated() { 500 } else { 50 })));
    let (t, u) = sandbox.pids();
    look(t, u);
    check!(sys::write(write, b"x") == Ok(1));
    let outcome = sandbox.wait(Some(PATIENCE));
    check!(outcome.guest == Status::Exited(0), "{outcome:?}");
    [read, write].into_iter().for_each(sys::close);
}

/// Stopped, looked at and let go, in both ways that there are: neither T nor U takes harm.
fn attach() {
    sitting(|t, u| {
        for pid in [t, u, t, u] {
            for by_signal in [false, true] {
                if by_signal {
                    check!(ptrace(ATTACH, pid, 0).is_ok());
                } else {
                    check!(ptrace(SEIZE, pid, 0).is_ok());
                    check!(ptrace(INTERRUPT, pid, 0).is_ok());
                }
                stopped(pid);
                let mut registers = [0usize; REGISTERS.0];
                check!(ptrace(GETREGS, pid, registers.as_mut_ptr() as usize).is_ok());
                check!(registers[REGISTERS.2] != 0);
                check!(ptrace(DETACH, pid, 0).is_ok());
            }
        }
    });
}

/// The frame pointers lead from the gate to where the guest began, in order, and past the handler of a call of its own.
fn frames() {
    sitting(|_, u| {
        check!(ptrace(SEIZE, u, 0).is_ok());
        check!(ptrace(INTERRUPT, u, 0).is_ok());
        stopped(u);
        let mut registers = [0usize; REGISTERS.0];
        check!(ptrace(GETREGS, u, registers.as_mut_ptr() as usize).is_ok());
        let functions =
            [debug_inner as *const () as usize, debug_outer as *const () as usize, debug_guest as *const () as usize];
        let function = |pc: usize| {
            let begun = functions.iter().filter(|start| **start < pc && pc - **start < 4096);
            begun.max().and_then(|start| functions.iter().position(|f| f == start))
        };
        // Of a call of its own, the innermost is the one that was interrupted: where, the handler's frame says.
        let (mut fp, mut seen) = (registers[REGISTERS.1], usize::from(raw()));
        for _ in 0..64 {
            let mut frame = [0usize; 2];
            let local = [frame.as_mut_ptr() as usize, size_of_val(&frame)];
            let remote = [fp, size_of_val(&frame)];
            // SAFETY: the kernel stores two words.
            let read = unsafe {
                let [local, remote] = [local.as_ptr() as usize, remote.as_ptr() as usize];
                call(Sysno::process_vm_readv, [u as usize, local, 1, remote, 1, 0])
            };
            if read != Ok(size_of_val(&frame)) {
                break;
            }
            if function(frame[1]) == Some(seen) {
                seen += 1;
            }
            fp = frame[0];
        }
        check!(seen == functions.len(), "{seen} of {} frames", functions.len());
        check!(ptrace(DETACH, u, 0).is_ok());
    });
}

/// The same by gdb, which goes by what the assembly says of its frames.
fn gdb() {
    const GDB: &core::ffi::CStr = c"/usr/bin/gdb";
    if sys::open(GDB).map(sys::close).is_err() {
        skip("there is no /usr/bin/gdb");
    }
    sitting(|_, u| {
        let (read, write) = sys::blocking_pipe().unwrap();
        // SAFETY: this process has one thread; the child executes a program at once.
        let child = unsafe { sys::fork() }.unwrap();
        if child == 0 {
            let mut pid = freestanding::Line::new();
            let _ = fmt::Write::write_fmt(&mut pid, format_args!("{u}\0"));
            let words = [GDB, c"-nx", c"-batch", c"-ex", c"set debuginfod enabled off", c"-ex", c"bt", c"-p"];
            let mut argv = [0usize; 10];
            argv.iter_mut().zip(words).for_each(|(to, from)| *to = from.as_ptr() as usize);
            argv[words.len()] = pid.as_str().as_ptr() as usize;
            let env = [c"HOME=/".as_ptr() as usize, 0];
            let _ = sys::dup2(write, 1).and(sys::dup2(write, 2));
            // SAFETY: the strings end in NUL, the lists in a null pointer.
            let _ =
                unsafe { call(Sysno::execve, [GDB.as_ptr() as usize, argv.as_ptr() as usize, env.as_ptr() as usize]) };
            sys::exit(126);
        }
        sys::close(write);
        let (mut text, mut len) = ([0u8; 16384], 0);
        while let Ok(n @ 1..) = sys::read(read, &mut text[len..]) {
            len += n;
        }
        sys::close(read);
        check!(sys::wait(child, true).is_ok());
        let text = core::str::from_utf8(&text[..len]).unwrap_or("");
        if text.contains("Operation not permitted") {
            skip("gdb may not attach here");
        }
        let mut from = 0;
        for name in ["debug_inner", "debug_outer", "debug_guest"] {
            match text[from..].find(name) {
                Some(at) => from += at,
                None => {
                    text.lines().for_each(|line| println!("{line}"));
                    check!(false, "no {name}");
                }
            }
        }
        check!(!raw() || text.contains("<signal handler called>"));
    });
}

/// Everything by which a task reaches into another is refused, whatever else is allowed.
fn from_inside() {
    extern "C" fn guest(supervisor: usize) -> i32 {
        let mut word = [0usize; 32];
        let at = word.as_mut_ptr() as usize;
        let iov = [at, 8];
        let iov = iov.as_ptr() as usize;
        // SAFETY: refused.
        unsafe {
            let me = c(Sysno::getpid, []).unwrap();
            for pid in [0, me, me - 1, me + 1, supervisor] {
                for request in [0, 1, ATTACH, SEIZE, GETREGS, 4] {
                    check!(c(Sysno::ptrace, [request, pid, 0, at]) == Err(Errno::ENOSYS));
                }
                check!(c(Sysno::process_vm_readv, [pid, iov, 1, iov, 1, 0]) == Err(Errno::ENOSYS));
                check!(c(Sysno::process_vm_writev, [pid, iov, 1, iov, 1, 0]) == Err(Errno::ENOSYS));
                check!(c(Sysno::pidfd_open, [pid, 0]) == Err(Errno::ENOSYS));
                check!(c(Sysno::pidfd_getfd, [1, 1, 0]) == Err(Errno::ENOSYS));
                check!(c(Sysno::kcmp, [pid, pid, 0, 1, 1]) == Err(Errno::ENOSYS));
                check!(c(Sysno::prctl, [0x5961_6d61, pid]) == Err(Errno::ENOSYS)); // PR_SET_PTRACER
                check!(c(Sysno::perf_event_open, [at, pid, 0, 0, 0]) == Err(Errno::ENOSYS));
            }
            check!(c(Sysno::getppid, []) == Ok(supervisor));
        }
        0
    }
    let policy = Policy::new().ordinary().memory().executable().signals().threads(2);
    must_exit(&program(&policy), guest, sys::pids().0 as usize, 0);
}
