//! An io_uring that was made before entry, with a kernel thread that looks for work (SQPOLL): whoever can write to its rings makes
//! system calls without one. The work is done in the embedder's name, in its table of descriptors.

use super::*;
use ascetic::error::{Error, Finding};
use ascetic::sys::{self, Sysno};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};
use core::time::Duration;
use freestanding::files::MMAP;

pub const CASES: &[Case] =
    &[case("attack_io_uring", || io_uring(false)), case("attack_io_uring_off_shows_it", || io_uring(true))];

/// Where the rings are mapped, and where in them what is (`struct io_uring_params`).
static RINGS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
static OFFSETS: [AtomicU32; 6] = [const { AtomicU32::new(0) }; 6];

fn ring_word<'a>(ring: usize, at: u32) -> &'a AtomicU32 {
    // SAFETY: inside a mapped ring.
    unsafe { AtomicU32::from_ptr((RINGS[ring].load(Ordering::Relaxed) + at as usize) as *mut u32) }
}

/// Opens a file by the ring: its descriptor, in the table of whoever made the ring.
extern "C" fn guest(_: usize) -> i32 {
    const OPENAT: u8 = 18;
    let at = |i: usize| OFFSETS[i].load(Ordering::Relaxed);
    let (tail, array, done, results) = (at(0), at(1), at(2), at(3));
    // struct io_uring_sqe: opcode, flags, ioprio; fd; off; addr (the path); len (mode); open_flags.
    let entry = RINGS[1].load(Ordering::Relaxed) as *mut u8;
    // SAFETY: the first entry of the mapped array of entries.
    unsafe {
        entry.write_bytes(0, 64);
        entry.write(OPENAT);
        entry.add(4).cast::<i32>().write(-100);
        entry.add(16).cast::<u64>().write(c"/proc/version".as_ptr().addr() as u64);
    }
    ring_word(0, array).store(0, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    ring_word(0, tail).store(1, Ordering::SeqCst);
    while ring_word(0, done).load(Ordering::SeqCst) == 0 {
        core::hint::spin_loop();
    }
    // struct io_uring_cqe: user_data, res.
    ring_word(0, results + 8).load(Ordering::SeqCst) as i32 & 0xff
}

fn io_uring(off: bool) {
    const SETUP: usize = 425;
    const SQPOLL: u32 = 2;
    let mut params = [0u32; 30];
    (params[2], params[4]) = (SQPOLL, 60_000);
    // SAFETY: the kernel fills in the parameters.
    let fd = unsafe { ascetic::arch::syscall3(SETUP, 4, params.as_mut_ptr().addr(), 0) } as isize as i32;
    if fd < 0 {
        skip("io_uring_setup fails: no io_uring on this kernel");
    }
    let rw = sys::PROT_READ | sys::PROT_WRITE;
    // The kernel chooses where they are: the entries at an offset of 1 << 28, which i386 counts in pages.
    let offset = if cfg!(target_arch = "x86") { 0x1000_0000 / 4096 } else { 0x1000_0000 };
    let map = |at| {
        // SAFETY: new memory.
        unsafe { freestanding::call(MMAP, [0, 4096, rw, 1, fd as usize, at]) }
    };
    let (rings, entries) = (map(0).unwrap_or(0), map(offset).unwrap_or(0));
    let ring = Ring { fd, maps: [rings, entries] };
    check!(rings != 0 && entries != 0);
    RINGS[0].store(rings, Ordering::Relaxed);
    RINGS[1].store(entries, Ordering::Relaxed);
    // sq_off: head, tail, mask, entries, flags, dropped, array; cq_off, 40 bytes on: head, tail, mask, entries, overflow, cqes.
    for (to, from) in OFFSETS.iter().zip([11, 16, 21, 25]) {
        to.store(params[from], Ordering::Relaxed);
    }
    let mut config = config();
    if !off {
        let found = sandbox::spawn(&config, guest, 0).map(drop);
        drop(ring);
        return check!(matches!(found, Err(Error::Found { finding: Finding::IoUring, .. })), "{found:?}");
    }
    config.weaken.no_audit = true;
    // The thread sleeps until the ring is used first, and then looks for work for as long as it was told to.
    const WAKE: usize = 2;
    const NEEDS_WAKING: u32 = 1;
    let sleeps = || ring_word(0, params[14]).load(Ordering::SeqCst) & NEEDS_WAKING != 0;
    // Neither takes long; and a thread that does not sleep at first needs no waking.
    let wait = |until: &dyn Fn() -> bool| {
        let start = sys::now();
        while !until() && sys::now() - start < 500_000_000 {
            sys::yield_now();
        }
    };
    wait(&sleeps);
    // SAFETY: wakes it.
    check!(unsafe { freestanding::call(Sysno::io_uring_enter, [fd as usize, 0, 0, WAKE, 0, 0]) }.is_ok());
    wait(&|| !sleeps());
    let outcome = spawn(&config, guest, 0).wait(Some(Duration::from_secs(10)));
    drop(ring);
    let Status::Exited(opened) = outcome.guest else { return check!(false, "{outcome:?}") };
    check!(opened > 2 && i32::from(opened) != fd && sys::is_open(opened.into()), "{opened}");
}

/// A ring, whose kernel thread counts among those of its process, which does not end while it lives.
struct Ring {
    fd: i32,
    maps: [usize; 2],
}

impl Drop for Ring {
    fn drop(&mut self) {
        sys::close(self.fd);
        for at in self.maps.into_iter().filter(|at| *at != 0) {
            // SAFETY: nobody uses it any more.
            let _ = unsafe { sys::munmap(at, 4096) };
        }
    }
}
