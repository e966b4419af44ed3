//! Reading of what a guest chose: memory, files. It can take for ever (FUSE, a network), and no signal need end it then, SIGKILL
//! included: a thread that does it must not be the one that traces, which keeps the tasks for as long as it lives. And while it
//! reads memory, the tasks cannot change theirs, which they do when they end (`mmap_lock`, `access_remote_vm` in mm/memory.c).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use ascetic::fault::record::{CODE_AROUND, NEAR, STACK_MAX, THREAD_STACK_MAX};

use super::{Dump, Registers};

/// Bytes below the stack pointer that belong to a function (System V ABI, x86_64).
const RED_ZONE: u64 = 128;
const PAGE: u64 = 4096;

/// What a thread of its own does, if it is done in time.
pub(super) fn within<T: Send + 'static>(patience: Duration, what: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        // Who has lost patience does not hear it.
        let _ = done.send(what());
    });
    is_done.recv_timeout(patience).ok()
}

/// Adds to a dump, which has its threads and its exception, the memory that the registers of tasks lead to, the crashed one's more of
/// it: what there is of it, and could be read in time. Whether all could.
pub(super) fn memory(patience: Duration, dump: &mut Dump, crashed: u32, tasks: Vec<(u32, Registers)>) -> bool {
    let (arch, pointers) = (dump.arch, dump.pointers());
    let (send, pages) = mpsc::channel();
    thread::spawn(move || {
        for (pid, registers) in tasks {
            let Ok(memory) = File::open(format!("/proc/{pid}/mem")) else { continue };
            let [pc, sp, fp] =
                [registers.pc(arch), registers.sp(arch), registers.fp(arch)].map(Option::unwrap_or_default);
            let stack = if pid == crashed { STACK_MAX as u64 } else { THREAD_STACK_MAX as u64 };
            read(&memory, pc.saturating_sub(CODE_AROUND as u64), 2 * CODE_AROUND as u64, &send);
            read(&memory, sp.saturating_sub(RED_ZONE), RED_ZONE, &send);
            if !read(&memory, sp, stack.saturating_sub(RED_ZONE), &send) {
                read(&memory, fp, stack, &send); // the stack pointer leads nowhere
            }
        }
        // What the address of the fault leads to is of interest, too.
        let Ok(memory) = File::open(format!("/proc/{crashed}/mem")) else { return };
        for at in pointers {
            read(&memory, at.saturating_sub(NEAR[0] as u64), (NEAR[0] + NEAR[1]) as u64, &send);
        }
    });
    let until = Instant::now() + patience;
    loop {
        match pages.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((at, bytes)) => dump.add_memory(at, &bytes),
            Err(end) => return end == RecvTimeoutError::Disconnected,
        }
    }
}

/// Sends what there is of a range, page by page. Whether its first byte is there.
fn read(memory: &File, from: u64, len: u64, to: &Sender<(u64, Vec<u8>)>) -> bool {
    let (mut at, end) = (from, from.saturating_add(len));
    let mut first = false;
    while at < end {
        let want = (PAGE - at % PAGE).min(end - at);
        let mut page = vec![0; want as usize];
        if let Ok(n @ 1..) = memory.read_at(&mut page, at) {
            first |= at == from;
            page.truncate(n);
            // Who has lost patience does not hear it.
            let _ = to.send((at, page));
        }
        at += want;
    }
    first
}
