//! Memory by other roads: `/proc/*/mem`, `/proc/*/map_files`.

use super::super::program::{DIRECT, program};
use super::*;
use ascetic::abi::PAGE;
use ascetic::experiment::{self, NOT_BENEATH};
use ascetic::policy::{Rights, Root};
use ascetic::sys::{self, Errno, Sysno};
use ascetic::untrusted::call;
use core::fmt::Write as _;
use core::sync::atomic::Ordering;
use freestanding::Line;

pub const CASES: &[Case] = &[
    case("attack_proc_mem", || proc_mem(false)),
    case("attack_proc_mem_off_shows_it", || proc_mem(true)),
    case("attack_kept_mem", || kept_mem(false)),
    case("attack_kept_mem_off_shows_it", || kept_mem(true)),
    case("attack_map_files", || map_files(false)),
    case("attack_map_files_off_shows_it", || map_files(true)),
];

/// What a guest says that has written where it must not.
const WON: u8 = 66;
/// In memory that cannot be written.
static CONSTANT: [u8; 8] = *b"constant";

fn constant() -> *const [u8; 8] {
    core::hint::black_box(&raw const CONSTANT)
}

/// Whether the kernel writes by `/proc/self/mem` what is mapped read-only (`CONFIG_PROC_MEM_ALWAYS_FORCE`, `fs/proc/base.c`).
fn memory_is_forced() -> bool {
    let at = constant().addr();
    // SAFETY: a path; eight bytes of this process's own, which stay what they are. On i386 an offset takes two registers.
    unsafe {
        let fd = freestanding::call(Sysno::open, [c"/proc/self/mem".as_ptr().addr(), 2]).unwrap();
        let written = freestanding::call(Sysno::pwrite64, [fd, b"constant".as_ptr().addr(), 8, at, 0, 0]);
        freestanding::call(Sysno::close, [fd]).unwrap();
        written == Ok(8)
    }
}

/// Below a root that is `/`, there is `/proc`: but it is another mount.
fn proc_mem(off: bool) {
    extern "C" fn guest(_: usize) -> i32 {
        let mut own = Line::new();
        let _ = write!(own, "/proc/{0}/task/{0}/mem\0", ascetic::untrusted::getpid());
        let texts = ["/proc/self/mem\0", "/proc/thread-self/mem\0", own.as_str()];
        let open = |text: &str| {
            // SAFETY: a path.
            unsafe { call(Sysno::openat, [-100isize as usize, text.as_ptr().addr(), 2, 0, 0, 0]) }
        };
        let mut won = 0;
        for text in texts {
            let fd = match open(text) {
                Err(errno) => {
                    check!(matches!(errno, Errno::EXDEV | Errno::ELOOP | Errno::EACCES), "{text}: {errno}");
                    continue;
                }
                Ok(fd) => fd,
            };
            let at = constant().addr();
            // SAFETY: reads the guest's own bytes. On i386 an offset takes two registers.
            let written = unsafe { call(Sysno::pwrite64, [fd, b"variable".as_ptr().addr(), 8, at, 0, 0]) };
            // SAFETY: a static.
            won += u32::from(written == Ok(8) && unsafe { constant().read_volatile() } == *b"variable");
        }
        if won == texts.len() as u32 { WON.into() } else { won as i32 }
    }
    if off && !memory_is_forced() {
        skip("this kernel does not write by /proc/self/mem what its owner may not");
    }
    NOT_BENEATH.store(off, Ordering::Relaxed);
    let rights = Rights::READ.and(Rights::WRITE);
    let policy = DIRECT.try_root(Root { path: c"/", rights, exact: false }).unwrap();
    must_exit(&program(&policy), guest, 0, if off { WON } else { 0 });
}

/// The embedder has its own memory open; a guest that keeps the descriptor writes there.
fn kept_mem(off: bool) {
    static mut MARK: u64 = 1;
    extern "C" fn guest(fd: usize) -> i32 {
        i32::from(sys::write(fd as i32, &7u64.to_ne_bytes()) != Ok(8))
    }
    let mark = &raw mut MARK;
    // SAFETY: a path; an offset.
    let fd = unsafe {
        let fd = freestanding::call(Sysno::open, [c"/proc/self/mem".as_ptr().addr(), 2]).unwrap();
        check!(freestanding::call(Sysno::lseek, [fd, mark.addr(), 0]).is_ok());
        fd
    };
    let keep = [1, 2, fd as i32];
    let mut config = Config { keep: &keep, ..config() };
    if off {
        config.weaken.no_audit = true;
        must_exit(&config, guest, fd, 0);
    } else {
        check!(matches!(sandbox::spawn(&config, guest, fd), Err(ascetic::error::Error::Found { .. })));
    }
    // SAFETY: the guest has ended.
    let mark = unsafe { mark.read_volatile() };
    check!(mark == if off { 7 } else { 1 }, "{mark}");
}

/// A guest that got around strict mode opens the vault's file by the mapping, and writes to it, and maps it writable.
fn map_files(off: bool) {
    extern "C" fn guest(_: usize) -> i32 {
        let (vault, _) = experiment::pages();
        let mut text = [0u8; 8192];
        let fd = sys::open(c"/proc/self/maps").unwrap();
        let mut len = 0;
        while let Ok(n @ 1..) = sys::read(fd, &mut text[len..]) {
            len += n;
        }
        let text = core::str::from_utf8(&text[..len]).unwrap_or("");
        let mut number = Line::new();
        let _ = write!(number, "{:x}-", vault.addr());
        // The file names of `map_files` have no leading zeros, and lines may.
        let line = text.lines().find(|line| line.trim_start_matches('0').starts_with(number.as_str()));
        let Some(range) = line.and_then(|line| line.split(' ').next()) else { return 1 };
        let mut path = Line::new();
        let _ = write!(path, "/proc/self/map_files/{}\0", range.trim_start_matches('0'));
        // SAFETY: a path.
        let fd = match unsafe { freestanding::call(Sysno::open, [path.as_str().as_ptr().addr(), 2]) } {
            Err(Errno::EPERM | Errno::EACCES) => return 77,
            other => other.unwrap(),
        };
        let mapped = sys::map_shared(PAGE, sys::PROT_READ | sys::PROT_WRITE, fd as i32);
        // SAFETY: writes to the vault, or not: the number of looks that T makes, which is what it was.
        let written = unsafe {
            let spin = &raw const (*vault).spin;
            freestanding::call(Sysno::pwrite64, [fd, spin.addr(), 4, PAGE + (spin.addr() - vault.addr()), 0])
        };
        match (mapped, written) {
            (Ok(_), Ok(4)) => WON.into(),
            (Err(Errno::EPERM), Err(Errno::EPERM)) => 0,
            other => {
                println!("{other:?}");
                1
            }
        }
    }
    let mut config = config();
    config.weaken.no_lockdown = true;
    config.weaken.no_seal = off;
    let outcome = run(&config, guest, 0);
    if outcome.guest == Status::Exited(77) {
        skip("only root may open what is in /proc/self/map_files");
    }
    check!(outcome.guest == Status::Exited(if off { WON } else { 0 }), "{outcome:?}");
}
