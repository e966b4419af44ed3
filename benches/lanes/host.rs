//! What every measurement needs: children, CPUs, a clock, and memory in which a child leaves its samples.

use std::error::Error;
use std::io;
use std::ops::Deref;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A measurement's result, or why there is none.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Samples that a [`Log`] holds; later ones replace the oldest.
const SAMPLES: usize = 8192;

/// Where whoever measures, in whichever process, leaves what it found. All zero is an empty log.
#[repr(C)]
pub struct Log {
    /// Batches to measure.
    pub batches: AtomicU64,
    /// Calls in a batch.
    pub calls: AtomicU64,
    /// A time on [`now`]'s clock: when to stop, or when something happened.
    pub mark: AtomicU64,
    /// Samples pushed so far.
    pub pushed: AtomicU64,
    /// What went wrong; 0 for nothing.
    pub wrong: AtomicU64,
    samples: [AtomicU64; SAMPLES],
}

impl Log {
    /// Empties the log and says what to measure.
    pub fn plan(&self, batch: Batch) {
        self.batches.store(batch.batches, Relaxed);
        self.calls.store(batch.calls, Relaxed);
        self.mark.store(0, Relaxed);
        self.pushed.store(0, Relaxed);
        self.wrong.store(0, Relaxed);
    }

    /// Adds a sample.
    pub fn push(&self, sample: u64) {
        let at = self.pushed.load(Relaxed);
        self.samples[at as usize % SAMPLES].store(sample, Relaxed);
        self.pushed.store(at + 1, Relaxed);
    }

    /// The samples, each divided by `by`; an error if something went wrong or samples are missing.
    pub fn samples(&self, by: f64) -> Result<Vec<f64>> {
        let count = self.pushed.load(Relaxed) as usize;
        let wrong = self.wrong.load(Relaxed);
        if wrong != 0 {
            return Err(format!("failed with code {wrong}").into());
        }
        let raw = self.samples.iter().take(count);
        let samples: Vec<f64> = raw.map(|ns| ns.load(Relaxed) as f64 / by).collect();
        // Where the clock is a call, a lane that answers calls answers those to the clock, too.
        match samples.iter().all(|sample| *sample > 0.0) {
            true if count > 0 => Ok(samples),
            true => Err("no samples: the measured process died".into()),
            false => Err("the clock stood still".into()),
        }
    }
}

/// How much is measured at a time: a sample is the mean of a batch, so that the clock costs next to nothing.
#[derive(Clone, Copy)]
pub struct Batch {
    /// Batches.
    pub batches: u64,
    /// Calls in each.
    pub calls: u64,
}

/// For lanes of a few hundred nanoseconds.
pub const FAST: Batch = Batch { batches: 40, calls: 200 };
/// For lanes of some microseconds.
pub const SLOW: Batch = Batch { batches: 40, calls: 20 };

impl Batch {
    /// Measures `call` into `log`, after one batch that is not counted.
    pub fn run(self, log: &Log, mut call: impl FnMut()) {
        for batch in 0..=self.batches {
            let start = now();
            (0..self.calls).for_each(|_| call());
            if batch > 0 {
                log.push(now() - start);
            }
        }
    }
}

/// Memory that children share.
pub struct Shared<T: Words>(*mut T);

/// # Safety
///
/// All zero is a valid value, and every field may change at any time.
pub unsafe trait Words {}
// SAFETY: atomic integers only.
unsafe impl Words for Log {}
// SAFETY: as its elements.
unsafe impl<T: Words, const N: usize> Words for [T; N] {}

impl<T: Words> Shared<T> {
    /// New memory, all zero. It stays for the life of the process.
    pub fn new() -> Result<Self> {
        let (rw, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping wherever there is room.
        let addr = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<T>(), rw, flags, -1, 0) };
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().into());
        }
        SHARED.lock().map_err(|_| "a panic before")?.push((addr.addr(), size_of::<T>()));
        Ok(Self(addr.cast()))
    }

    /// Where it is, here and in children.
    pub fn address(&self) -> usize {
        self.0.expose_provenance()
    }
}

/// Address and length of all shared memory of this process.
static SHARED: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// Address and length of all shared memory, for the sandboxes that keep it. What is returned is never freed.
pub fn shared() -> &'static [(usize, usize)] {
    SHARED.lock().map_or(&[], |all| Vec::leak(all.clone()))
}

impl<T: Words> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: mapped for good, zeroed, and `Words` says that zero is a value and that sharing is no race.
        unsafe { &*self.0 }
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn now() -> u64 {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel stores one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut ts) };
    ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64
}

/// `getppid` by its instruction: no libc in between.
#[inline(always)]
pub fn getppid() -> usize {
    getppid_with(0)
}

/// The same with an argument that the kernel ignores, and a broker sees.
#[inline(always)]
pub fn getppid_with(arg: usize) -> usize {
    let result;
    // SAFETY: the call touches no memory; the instruction changes %rcx and %r11.
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") libc::SYS_getppid => result, in("rdi") arg,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// `-1` as an error, anything else as it is.
pub fn checked<N: PartialOrd + Default>(result: N) -> io::Result<N> {
    if result < N::default() { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A pipe: the end to read and the end to write.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the kernel stores two descriptors, which nobody else knows.
    unsafe {
        checked(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// The CPUs that this process may use.
pub fn cpus() -> Vec<usize> {
    // SAFETY: all zero is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel stores at most the size of the set.
    let got = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    if got != 0 {
        return Vec::new();
    }
    // SAFETY: the numbers are within the set.
    (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
}

/// Lets the calling thread run on these CPUs only.
pub fn pin(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: all zero is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the numbers came from `cpus`, so they are within the set.
    cpus.iter().for_each(|cpu| unsafe { libc::CPU_SET(*cpu, &mut set) });
    // SAFETY: the kernel reads the set.
    checked(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) }).map(drop)
}

/// A child process; killed, should it still live, and reaped when this is dropped.
pub struct Child(pub libc::pid_t);

impl Child {
    /// Runs `body` in a copy of this process, which then ends: with status 1 after an error.
    pub fn fork(body: impl FnOnce() -> Result<()>) -> io::Result<Self> {
        // SAFETY: this program has one thread wherever it forks, so the child may do all that it may.
        let pid = checked(unsafe { libc::fork() })?;
        if pid == 0 {
            // SAFETY: asks to be killed with the parent.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let status = match body() {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("lanes: {error}");
                    1
                }
            };
            // SAFETY: ends the child without running what the parent registered.
            unsafe { libc::_exit(status) };
        }
        Ok(Self(pid))
    }

    /// Waits until the child has ended.
    pub fn wait(mut self) -> Result<()> {
        let mut status = 0;
        let pid = std::mem::take(&mut self.0);
        // SAFETY: the kernel stores the status of a child of this process.
        checked(unsafe { libc::waitpid(pid, &raw mut status, 0) })?;
        match status {
            0 => Ok(()),
            _ => Err(format!("the child ended with wait status {status:#x}").into()),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.0 > 0 {
            // SAFETY: a child that nobody has reaped; nothing is stored.
            unsafe {
                libc::kill(self.0, libc::SIGKILL);
                libc::waitpid(self.0, std::ptr::null_mut(), 0);
            }
        }
    }
}
