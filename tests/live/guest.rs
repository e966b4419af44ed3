//! The guest: threads that make random requests, each by its own mailbox, and scribble over the others'.

use super::*;
use ascetic::abi::{Line, Mailbox, STRIDE};
use ascetic::experiment;
use ascetic::untrusted;
use freestanding::files::{MMAP, STAT};
use freestanding::threads;

/// Calls that T makes by itself, the harmless ones more often: those that wait are rare.
const DIRECT_CALLS: [Sysno; 27] = [
    Sysno::getppid,
    Sysno::getppid,
    Sysno::getppid,
    Sysno::uname,
    Sysno::uname,
    Sysno::getrandom,
    Sysno::sched_yield,
    Sysno::write,
    Sysno::write,
    Sysno::pread64,
    Sysno::pread64,
    Sysno::pwrite64,
    Sysno::pwrite64,
    Sysno::readv,
    Sysno::writev,
    Sysno::lseek,
    Sysno::lseek,
    Sysno::fstat,
    Sysno::fstat,
    Sysno::ftruncate,
    Sysno::getdents64,
    Sysno::close,
    Sysno::dup,
    Sysno::dup2,
    Sysno::read,
    Sysno::clock_gettime,
    Sysno::futex,
];

/// Calls that the broker may allow.
const BROKERED_CALLS: [Sysno; 30] = [
    Sysno::open,
    Sysno::openat,
    Sysno::openat,
    Sysno::openat2,
    Sysno::creat,
    STAT[0],
    STAT[1],
    Sysno::statx,
    Sysno::access,
    Sysno::faccessat2,
    Sysno::readlink,
    Sysno::readlinkat,
    Sysno::mkdir,
    Sysno::rmdir,
    Sysno::unlink,
    Sysno::rename,
    Sysno::link,
    Sysno::symlink,
    Sysno::chmod,
    Sysno::truncate,
    Sysno::fcntl,
    Sysno::prlimit64,
    Sysno::brk,
    MMAP,
    MMAP,
    Sysno::munmap,
    Sysno::mprotect,
    Sysno::mremap,
    Sysno::madvise,
    Sysno::mincore,
];

/// Calls that are refused, and would be of use.
const REFUSED_CALLS: [Sysno; 24] = [
    Sysno::execve,
    Sysno::ptrace,
    Sysno::prctl,
    Sysno::rt_sigaction,
    Sysno::sigaltstack,
    Sysno::process_vm_writev,
    Sysno::userfaultfd,
    Sysno::io_uring_setup,
    Sysno::shmat,
    Sysno::socket,
    Sysno::mount,
    Sysno::setns,
    Sysno::unshare,
    Sysno::rseq,
    Sysno::set_robust_list,
    Sysno::personality,
    Sysno::modify_ldt,
    Sysno::seccomp,
    Sysno::fork,
    Sysno::vfork,
    Sysno::pkey_mprotect,
    Sysno::exit,
    Sysno::rt_sigreturn,
    Sysno::memfd_create,
];

#[repr(C, align(4096))]
struct Arena([u8; 16 * PAGE]);
static mut ARENAS: [Arena; PAIRS] = [const { Arena([0; 16 * PAGE]) }; PAIRS];

fn mailbox(k: usize) -> *mut Mailbox {
    (board().mailbox.load(Ordering::Relaxed) + k * STRIDE) as *mut Mailbox
}

struct Fuzzer {
    k: usize,
    random: Random,
    features: u32,
    arena: usize,
    file: usize,
}

impl Fuzzer {
    fn new(k: usize) -> Self {
        let random = Random::new(board().seed.load(Ordering::Relaxed) ^ (k as u64) << 56);
        // SAFETY: the address of a static.
        let arena = unsafe { (&raw mut ARENAS[k]).addr() };
        Self {
            k,
            random,
            features: board().features.load(Ordering::Relaxed),
            arena,
            file: FILE.load(Ordering::Relaxed),
        }
    }

    fn has(&self, feature: u32) -> bool {
        self.features & feature != 0
    }

    fn own(&mut self) -> usize {
        self.arena + self.random.below(15 * PAGE)
    }

    /// Somewhere.
    fn pointer(&mut self) -> usize {
        let load = |word: &AtomicUsize| word.load(Ordering::Relaxed);
        let r = &mut self.random;
        if self.features & Feature::WILD == 0 || !r.one_in(3) {
            return self.own();
        }
        let (from, to) = (load(&board().vault[0]), load(&board().vault[1]));
        match r.below(16) {
            0..=3 => from.wrapping_add(r.below(to - from + 2 * PAGE)).wrapping_sub(PAGE),
            4 | 5 => load(&board().pages[0]) - PAGE + r.below(PAGE), // T's code
            6 | 7 => load(&board().pages[0]) + r.below(5 * PAGE),
            8 | 9 => load(&board().pages[1]) + r.below(PAIRS * STRIDE),
            10 | 11 => load(&board().mailbox) + r.below(PAIRS * STRIDE),
            12 => from.wrapping_sub(1 + r.below(64)),
            13 => usize::MAX - r.below(8192),
            14 => to + r.below(64),
            _ if r.one_in(40) => [load(&board().altstack), threads::stack(0)][r.below(2)].wrapping_sub(r.below(PAGE)),
            _ => (r.next() as usize) << r.below(32),
        }
    }

    fn descriptor(&mut self) -> usize {
        let own = board().fds.load(Ordering::Relaxed);
        let r = &mut self.random;
        match r.below(8) {
            0..=3 => self.file,
            4 => own + r.below(20),
            5 => r.below(200),
            6 => ((r.next() as usize) << 32_u32.min(usize::BITS - 1)) | (own + r.below(20)),
            _ => (r.below(9) as isize - 110) as usize,
        }
    }

    fn number(&mut self) -> usize {
        let r = &mut self.random;
        match r.below(6) {
            0 => 0,
            1 => r.below(64),
            2 => 1 << r.below(20),
            3 => r.below(3 * PAGE),
            4 => PAGE * r.below(8),
            _ => {
                if r.one_in(8) {
                    r.next() as usize
                } else {
                    r.below(16)
                }
            }
        }
    }

    /// A path in the arena: some inside, some not.
    fn path(&mut self) -> usize {
        let names =
            ["in/file", "in/other", "in/new", "in/escape", "outside", "in/../outside", "in/dir", "/in/file", "", "in"];
        let text = path(self.random.of(&names));
        let at = self.arena + 15 * PAGE + self.random.below(8) * 256; // behind it are some bytes more
        // SAFETY: inside this thread's arena.
        unsafe { core::ptr::copy_nonoverlapping(text.as_ptr(), at as *mut u8, text.as_c().count_bytes() + 1) };
        at
    }

    fn request(&mut self) -> (u32, [usize; 6]) {
        let brokered = self.has(Feature::BROKERED);
        let nr = match self.random.below(20) {
            0..=11 => self.random.of(&DIRECT_CALLS) as u32,
            12..=16 if brokered => self.random.of(&BROKERED_CALLS) as u32,
            17 | 18 => self.random.of(&REFUSED_CALLS) as u32,
            19 => match self.random.below(4) {
                0 => 500 + self.random.below(16) as u32,
                1 => 0x4000_0000 | self.random.below(550) as u32,
                _ => self.random.next() as u32 | 0x400,
            },
            _ => Sysno::getppid as u32,
        };
        let is = |call: Sysno| nr == call as u32;
        let mut args: [usize; 6] = core::array::from_fn(|_| match self.random.below(4) {
            0 => self.number(),
            1 => self.descriptor(),
            _ => self.pointer(),
        });
        // What makes it likely that something happens.
        let with_fd = [
            Sysno::read,
            Sysno::write,
            Sysno::pread64,
            Sysno::pwrite64,
            Sysno::readv,
            Sysno::writev,
            Sysno::lseek,
            Sysno::fstat,
            Sysno::close,
            Sysno::dup,
            Sysno::dup2,
            Sysno::ftruncate,
            Sysno::fcntl,
            Sysno::getdents64,
        ];
        if with_fd.iter().any(|call| is(*call)) {
            args[0] = self.descriptor();
            args[2] = self.number();
            if is(Sysno::dup2) {
                args[1] = self.descriptor();
            }
        }
        let maps = [MMAP, Sysno::munmap, Sysno::mprotect, Sysno::mremap, Sysno::madvise, Sysno::mincore];
        if maps.iter().any(|call| is(*call)) {
            // Mostly the first pages of this thread's arena.
            if !self.random.one_in(3) || !self.has(Feature::WILD) {
                args[0] = self.arena + PAGE * self.random.below(8);
            }
            args[1] = PAGE * (1 + self.random.below(3));
            args[2] = self.random.below(8);
            args[3] = self.random.of(&[0x22, 0x32, 0x10_0022, 0x122, 1, 2, 0x11]);
            if is(Sysno::mremap) {
                (args[2], args[3], args[4]) = (PAGE, self.random.below(8), self.pointer());
            }
        }
        let at_folder = [Sysno::openat, Sysno::openat2, Sysno::faccessat2, Sysno::statx, Sysno::readlinkat];
        if at_folder.iter().any(|call| is(*call)) {
            args[0] = if self.random.one_in(3) { self.descriptor() } else { -100isize as usize };
            args[1] = self.path();
            if is(Sysno::openat) {
                args[2] = self.random.of(&[0, 1, 2, 0o100, 0o101, 0o200_000, 0o1002]);
            }
        } else if brokered && BROKERED_CALLS[..20].iter().any(|call| is(*call)) {
            args[0] = self.path();
            if is(Sysno::rename) || is(Sysno::link) || is(Sysno::symlink) {
                args[1] = self.path();
            }
        }
        if is(Sysno::getrandom) {
            args[1] = self.random.below(256);
        }
        if is(Sysno::futex) {
            args[1] = self.random.of(&[1, 3, 4, 5, 10, 129, 131, 6, 7, 11, 33]);
        }
        (nr, args)
    }

    /// Asks as the runtime does, and waits once: a lost ring is made up for by the others.
    fn ask(&mut self) {
        let (nr, args) = self.request();
        let mailbox = mailbox(self.k);
        let own = board().fds.load(Ordering::Relaxed);
        let bell = (own + experiment::OWN_FDS - 2 + 1 + 2 * self.k) as i32;
        // What the pointers lead to, as U's gate would copy it; now and then something else. Only from where the guest changes no
        // mappings.
        let readable = self.arena + 12 * PAGE..self.arena + 16 * PAGE - 512;
        let carried = if self.random.one_in(30) { self.own() } else { args[usize::from(args[0] as i32 == -100)] };
        let carried = if readable.contains(&carried) { carried } else { readable.start };
        // SAFETY: the thread's mailbox, and its arena.
        unsafe {
            let data = (&raw mut (*mailbox).data.0).cast::<u8>();
            core::ptr::copy_nonoverlapping(carried as *const u8, data, 256);
            if readable.contains(&args[1]) && args[0] != -100isize as usize {
                let len = (0..256).take_while(|i| (carried as *const u8).add(*i).read() != 0).count();
                core::ptr::copy_nonoverlapping(args[1] as *const u8, data.add(len + 1), 256);
            }
            (&raw mut (*mailbox).len).write_volatile(512 + self.random.below(64) as u32);
            let line: *mut Line = &raw mut (*mailbox).line;
            (&raw mut (*line).nr).write_volatile(nr);
            (&raw mut (*line).args).write_volatile(args);
            (&raw mut (*line).u_asleep).write_volatile(1);
            let turn = AtomicU32::from_ptr(&raw mut (*line).turn);
            let asked = turn.load(Ordering::SeqCst).wrapping_add(1);
            turn.store(asked, Ordering::SeqCst);
            let _ = sys::write(bell, &1u64.to_ne_bytes());
            if turn.load(Ordering::SeqCst) == asked {
                let _ = sys::read(bell + 1, &mut [0; 8]);
            }
            (&raw mut (*line).u_asleep).write_volatile(0);
        }
    }

    /// Scribbles over the mailbox of another thread, and rings its bells.
    fn scribble(&mut self) {
        let other = self.random.below(PAIRS);
        let (nr, args) = self.request();
        let mailbox = mailbox(other);
        // SAFETY: any thread of the guest can write to any mailbox.
        unsafe {
            let line: *mut Line = &raw mut (*mailbox).line;
            match self.random.below(6) {
                0 => (&raw mut (*line).nr).write_volatile(nr),
                1 | 2 => {
                    let i = self.random.below(6);
                    (&raw mut (*line).args).cast::<usize>().add(i).write_volatile(args[i]);
                }
                3 => (&raw mut (*mailbox).asks).write_volatile(self.random.next() as u32),
                4 => {
                    let at = self.random.below(600);
                    let byte = self.random.next() as u8;
                    (&raw mut (*mailbox).data.0).cast::<u8>().add(at).write_volatile(byte);
                    (&raw mut (*mailbox).len).write_volatile(self.number() as u32);
                }
                _ if self.has(Feature::TURNS) => (&raw mut (*line).turn).write_volatile(self.random.next() as u32),
                _ => {}
            }
        }
        let own = board().fds.load(Ordering::Relaxed);
        let bells = own + experiment::OWN_FDS - 2 + 1 + 2 * other;
        for bell in [bells, bells + 1, own] {
            if self.random.one_in(4) {
                let _ = sys::write(bell as i32, &1u64.to_ne_bytes());
            }
        }
    }

    /// Jumps to somewhere in T's code: no call of it helps, whatever it is, and the guest ends.
    fn jump(&mut self) {
        let code = board().pages[0].load(Ordering::Relaxed) - PAGE + self.random.below(ascetic::trusted::code().len());
        // SAFETY: none.
        let f: extern "C" fn() = unsafe { core::mem::transmute(code) };
        f();
    }
}

static FILE: AtomicUsize = AtomicUsize::new(0);

extern "C" fn works(k: usize) {
    let mut fuzzer = Fuzzer::new(k);
    while board().go.load(Ordering::SeqCst) == 0 {
        core::hint::spin_loop();
    }
    for i in 0..REQUESTS {
        if fuzzer.has(Feature::SCRIBBLES) && k > 0 {
            fuzzer.scribble();
        }
        fuzzer.ask();
        if k == 0 && i % 16 == 0 && fuzzer.has(Feature::JUMPS) && fuzzer.random.one_in(2000) {
            fuzzer.jump();
        }
    }
}

/// The guest: says where everything is, and goes.
pub extern "C" fn run(file: usize) -> i32 {
    let board = board();
    let (vault, pages, mailbox) = (experiment::vault(), experiment::pages(), experiment::mailbox().0);
    let put = |word: &AtomicUsize, value: usize| word.store(value, Ordering::SeqCst);
    put(&board.vault[0], vault.0);
    put(&board.vault[1], vault.1);
    put(&board.pages[0], pages.0.addr());
    put(&board.pages[1], pages.1.addr());
    put(&board.mailbox, mailbox);
    put(&board.altstack, experiment::altstack());
    put(&board.fds, experiment::first_own_fd() as usize);
    FILE.store(file, Ordering::SeqCst);
    static WORDS: [AtomicU32; PAIRS] = [const { AtomicU32::new(1) }; PAIRS];
    for (k, word) in WORDS.iter().enumerate().skip(1) {
        // SAFETY: the stacks are the threads' for good.
        let born = unsafe { untrusted::thread::spawn(works, k, threads::stack(k), word.as_ptr().addr()) };
        check!(born.is_ok(), "{born:?}");
    }
    board.ready.store(1, Ordering::SeqCst);
    works(0);
    board.done.store(1, Ordering::SeqCst);
    loop {
        core::hint::spin_loop();
    }
}
