//! Ranges of addresses: the kernel judges. A scratch process has memory of its own where a sandbox has its vault; it makes the calls
//! that the broker has a T make; and then all of that memory must be as it was.

use std::fs;

use arbitrary::{Result, Unstructured};
use ascetic::abi::{PAGE, STEP_REPLY};
use ascetic::broker::decide::{Answer, Request, Verdict, View, decide};
use ascetic::policy::{Bounds, Policy};

use crate::requests::Room;

/// What the guest may: to change mappings in every way there is.
const POLICY: Policy = Policy::new().memory().executable();
/// Where the memory that must stay begins: above 4 GiB, and below.
const PLACES: [usize; 2] = [0x2000_0000_0000, 0x2000_0000];
/// Its pages: the vault, the runner's code, the calls that it makes.
const VAULT: usize = 4;
const CODE: usize = VAULT;
const CALLS: usize = VAULT + 1;
const OWN: usize = VAULT + 2;
/// The most requests of an input.
const REQUESTS: usize = 8;
/// What the scratch process may map beyond what it has, in bytes.
const ROOM: u64 = 256 << 20;
/// What the vault is filled with.
const PATTERN: u8 = 0xa5;
/// The calls: all that the broker takes for changes of mappings.
const NUMBERS: [i64; 8] = [
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_brk,
];

// Makes the calls that %rbx leads to, one after the other, and stops the process. It needs no stack, and is copied to where
// everything must stay: so it runs on whatever becomes of the rest.
std::arch::global_asm!(
    ".globl ascetic_runner, ascetic_runner_end",
    "ascetic_runner:",
    "mov (%rbx), %rax",
    "test %rax, %rax",
    "js 1f",
    "mov 8(%rbx), %rdi",
    "mov 16(%rbx), %rsi",
    "mov 24(%rbx), %rdx",
    "mov 32(%rbx), %r10",
    "mov 40(%rbx), %r8",
    "mov 48(%rbx), %r9",
    "syscall",
    "add $56, %rbx",
    "jmp ascetic_runner",
    "1: mov ${getpid}, %eax",
    "syscall",
    "mov %eax, %edi",
    "mov ${stop}, %esi",
    "mov ${kill}, %eax",
    "syscall",
    "ud2",
    "ascetic_runner_end:",
    getpid = const libc::SYS_getpid,
    kill = const libc::SYS_kill,
    stop = const libc::SIGSTOP,
    options(att_syntax)
);

unsafe extern "C" {
    static ascetic_runner: u8;
    static ascetic_runner_end: u8;
}

/// A call: its number and its arguments.
type Call = [usize; 7];

/// An address: mostly near the memory that must stay.
fn addr(u: &mut Unstructured<'_>, base: usize) -> Result<usize> {
    let near = match u.arbitrary::<u8>()? % 8 {
        0..=2 => base,
        3 | 4 => base + OWN * PAGE,
        5 => base.wrapping_add(64 * PAGE),
        6 => 0,
        _ => u.arbitrary()?,
    };
    let pages = near.wrapping_add_signed(isize::from(u.arbitrary::<i8>()?) % 12 * PAGE as isize);
    Ok(if u.ratio(1, 4)? { pages.wrapping_add(usize::from(u.arbitrary::<u16>()?) % PAGE) } else { pages })
}

/// A length: some pages, up to where something is, or around the end of all addresses.
fn len(u: &mut Unstructured<'_>, base: usize, from: usize) -> Result<usize> {
    Ok(match u.arbitrary::<u8>()? % 8 {
        0..=3 => usize::from(u.arbitrary::<u8>()?) % 16 * PAGE,
        4 => usize::from(u.arbitrary::<u16>()?),
        5 => addr(u, base)?.wrapping_sub(from),
        6 => usize::MAX - usize::from(u.arbitrary::<u16>()?),
        _ => from.wrapping_neg().wrapping_add_signed(u.arbitrary::<i16>()?.into()),
    })
}

fn request(u: &mut Unstructured<'_>, base: usize) -> Result<(u32, [usize; 6])> {
    let nr = *u.choose(&NUMBERS)?;
    let from = addr(u, base)?;
    let length = len(u, base, from)?;
    let mut args = [from, length, 0, 0, 0, 0];
    match nr {
        libc::SYS_mmap => {
            let flags = [0x22, 0x32, 0x10_0022, 0x122, 0x8022, 0x4032, 0x132, 0x62];
            args[2] = usize::from(u.arbitrary::<u8>()? % 8);
            args[3] = if u.ratio(1, 8)? { u.arbitrary::<u32>()? as usize } else { *u.choose(&flags)? };
            args[4] = usize::MAX;
        }
        libc::SYS_mremap => {
            let target = addr(u, base)?;
            args[2] = len(u, base, target)?;
            args[3] = usize::from(u.arbitrary::<u8>()? % 9);
            args[4] = target;
        }
        libc::SYS_mincore => args[2] = addr(u, base)?,
        _ => args[2] = usize::from(u.arbitrary::<u8>()? % 26),
    }
    Ok((nr as u32, args))
}

/// Decides requests, and has a scratch process do what is allowed.
///
/// # Errors
/// There are too few bytes.
///
/// # Panics
/// Memory that must stay has changed, or a refusal names it that is not about it.
pub fn check(bytes: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(bytes);
    let base = *u.choose(&PLACES)?;
    let own = (base, base + OWN * PAGE);
    let bounds = Bounds { vault_lo: base, vault_len: VAULT * PAGE, fd_lo: 3, fd_len: 8 };
    let view = View { policy: &POLICY, bounds, own, revoked: 0, root_fds: 7, cwd: b"/", data: base + PAGE + 256 };
    let mut calls: Vec<Call> = Vec::new();
    let mut room = Room::new();
    for _ in 0..REQUESTS {
        if u.is_empty() {
            break;
        }
        let (nr, args) = request(&mut u, base)?;
        let Room { script, data, paths } = &mut *room;
        match decide(&view, &Request { nr, args, payload: &[] }, &mut Answer { script, data, paths }) {
            Verdict::Script => {
                for step in room.script.iter().take_while(|step| step.nr != STEP_REPLY) {
                    let [a, b, c, d, e, f] = step.args;
                    calls.push([step.nr as usize, a, b, c, d, e, f]);
                }
            }
            Verdict::Refuse(refusal) => {
                if refusal.errno == libc::EPERM && refusal.rule.contains("meets") {
                    assert!(meets(nr, &args, own), "nothing of {own:x?} is in {nr} {args:x?}: {}", refusal.rule);
                }
            }
            other => panic!("{nr} {args:x?}: {other:?}"),
        }
    }
    if !calls.is_empty() {
        scratch(base, &calls);
    }
    Ok(())
}

/// Whether a range of these arguments, as wide as the kernel may take it, has a part of `own`.
fn meets(nr: u32, args: &[usize; 6], own: (usize, usize)) -> bool {
    let page = PAGE as u128;
    let touches = |from: usize, len: usize| {
        let end = (from as u128 + len.max(1) as u128).next_multiple_of(page) + page;
        (from as u128) < own.1 as u128 && end > own.0 as u128
    };
    touches(args[0], args[1]) || i64::from(nr) == libc::SYS_mremap && touches(args[4], args[2])
}

/// Has a process with such memory make the calls.
fn scratch(base: usize, calls: &[Call]) {
    // SAFETY: the child makes system calls and copies bytes; it needs no lock.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        // SAFETY: a process of its own, of one thread.
        0 => unsafe { child(base, calls) },
        pid => {
            let mut status = 0;
            // libFuzzer's timer interrupts.
            // SAFETY: a child of this process.
            while unsafe { libc::waitpid(pid, &raw mut status, libc::WUNTRACED) } == -1 {
                let error = std::io::Error::last_os_error();
                assert!(error.kind() == std::io::ErrorKind::Interrupted, "waitpid: {error}");
            }
            let stopped = libc::WIFSTOPPED(status);
            let found = if stopped { look(pid, base) } else { Some(format!("the process ended with {status:#x}")) };
            if stopped {
                // SAFETY: not reaped yet.
                unsafe {
                    libc::kill(pid, libc::SIGKILL);
                    libc::waitpid(pid, &raw mut status, 0);
                }
            }
            if let Some(found) = found {
                panic!("{found}; the broker allowed {calls:x?}");
            }
        }
    }
}

/// Maps what must stay, and makes the calls. Never returns.
///
/// # Safety
///
/// This process is a copy of which nothing else is needed.
unsafe fn child(base: usize, calls: &[Call]) -> ! {
    // SAFETY: new memory where nothing is, filled before it is made read-only; the runner never returns.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let own = libc::mmap(base as *mut _, OWN * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if own as usize != base {
            libc::_exit(3);
        }
        let at = |page: usize| (base + page * PAGE) as *mut u8;
        at(0).write_bytes(PATTERN, VAULT * PAGE);
        let code = &raw const ascetic_runner;
        let code_len = (&raw const ascetic_runner_end).offset_from_unsigned(code);
        at(CODE).copy_from_nonoverlapping(code, code_len);
        let list = at(CALLS).cast::<Call>();
        list.copy_from_nonoverlapping(calls.as_ptr(), calls.len());
        list.add(calls.len()).write([usize::MAX; 7]);
        libc::mprotect(own, OWN * PAGE, libc::PROT_READ);
        libc::mprotect(at(CODE).cast(), PAGE, libc::PROT_READ | libc::PROT_EXEC);
        // Something of the guest's on both sides, to change.
        for guest in [base - 8 * PAGE, base + OWN * PAGE] {
            libc::mmap(guest as *mut _, 8 * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        }
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
        let mapped =
            fs::read_to_string("/proc/self/statm").ok().and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        let limit = mapped.unwrap_or(0) * PAGE as u64 + ROOM;
        libc::setrlimit(libc::RLIMIT_AS, &libc::rlimit { rlim_cur: limit, rlim_max: limit });
        std::arch::asm!(
            "mov rbx, {list}",
            "jmp {code}",
            list = in(reg) at(CALLS),
            code = in(reg) at(CODE),
            options(noreturn)
        );
    }
}

/// What is not as it was, of a process that has stopped.
fn look(pid: i32, base: usize) -> Option<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let permissions: Vec<String> = (0..OWN)
        .map(|page| {
            let at = base + page * PAGE;
            let holds = |line: &&str| {
                let (from, rest) = line.split_once('-')?;
                let to = rest.split(' ').next()?;
                let (from, to) = (usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?);
                (from..to).contains(&at).then(|| rest.split(' ').nth(1).unwrap_or_default().to_owned())
            };
            maps.lines().find_map(|line| holds(&line)).unwrap_or_default()
        })
        .collect();
    let wanted: Vec<&str> = (0..OWN).map(|page| if page == CODE { "r-xp" } else { "r--p" }).collect();
    if permissions != wanted {
        return Some(format!("the pages are {permissions:?}"));
    }
    let mut bytes = vec![0u8; VAULT * PAGE];
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: base as *mut _, iov_len: bytes.len() };
    // SAFETY: the buffer is as long as is said.
    let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    let whole = read == bytes.len() as isize && bytes.iter().all(|byte| *byte == PATTERN);
    (!whole).then(|| "the vault's bytes have changed".to_owned())
}
