//! Bad use by the embedder: a typed error that names what was wrong, and nothing left behind.

use super::*;
use ascetic::error::{Error, Finding, Party};
use ascetic::sandbox::Placement;
use ascetic::seccomp::{Insn, Lockdown, Program};
use ascetic::sys::{self, Errno};
use freestanding::call;

pub const CASES: &[Case] = &[
    case("misuse_zero_stack", || refused(&Config { stack: 0, ..config() }, |e| matches!(e, Error::Stack { bytes: 0 }))),
    case("misuse_huge_stack", || {
        for stack in [isize::MAX as usize, usize::MAX, usize::MAX - 4095] {
            refused(&Config { stack, ..config() }, |e| matches!(e, Error::Stack { .. }));
        }
    }),
    case("misuse_closed_crash_descriptor", || {
        for fd in [-1, 55, i32::MAX] {
            refused(
                &Config { crash: Some(fd), ..config() },
                |e| matches!(e, Error::ClosedCrashDescriptor { fd: f } if *f == fd),
            );
        }
    }),
    case("misuse_closed_kept_descriptor", || {
        for fd in [-1, 55, i32::MAX] {
            refused(
                &Config { keep: &[1, fd], ..config() },
                |e| matches!(e, Error::ClosedDescriptor { fd: f } if *f == fd),
            );
        }
    }),
    case("misuse_policy", || {
        let policy = Policy::new().try_direct(Sysno::getppid).and_then(|policy| policy.try_direct(Sysno::kill));
        let error = policy.expect_err("kill is not direct");
        check!(error.call == Sysno::kill && error.why.contains("signal tasks"));
    }),
    case("misuse_threaded_enter", threaded_enter),
    case("misuse_one_cpu_apart", one_cpu_apart),
    case("misuse_no_seccomp", no_seccomp),
    case("misuse_under_a_filter", under_filter),
    case("audit_finds_io_uring", || io_uring(false, true)),
    case("audit_finds_io_uring_mapping", || io_uring(true, true)),
    case("audit_off_shows_it", || io_uring(false, false)),
    case("audit_finds_userfaultfd", userfaultfd),
    case("audit_finds_process_memory", process_memory),
    case("audit_finds_unknown_kinds", unknown_kind),
    case("audit_finds_shared_memory", || shared_memory(true)),
    case("audit_finds_shared_memory_off_shows_it", || shared_memory(false)),
    case("audit_finds_shared_memory_that_can_be_writable", can_be_writable),
    case("audit_finds_sockets_of_other_families", other_families),
    case("audit_finds_vault_alias", vault_alias),
    #[cfg(target_arch = "x86_64")]
    case("misuse_tagged_addresses", tagged_addresses),
    case("read_does_not_imply_exec", read_implies_exec),
    case("audit_needs_proc", needs_proc),
    case("misuse_small_file_limit", file_limit),
    case("unlisted_descriptors_are_closed", unlisted),
];

/// Open descriptors of this process, counted.
pub fn open_descriptors() -> usize {
    (0..256).filter(|fd| sys::is_open(*fd)).count()
}

/// Whether this process has any child, of any kind.
pub fn has_children() -> bool {
    sys::wait(u32::MAX, false) != Err(Errno::ECHILD)
}

/// How many children this process has, of any kind. `each` gets the process id of each.
pub fn children(mut each: impl FnMut(u32)) -> usize {
    use core::fmt::Write as _;
    let mut path = freestanding::Line::new();
    let pid = sys::pids().0;
    let _ = write!(path, "/proc/{pid}/task/{pid}/children\0");
    let path = core::ffi::CStr::from_bytes_until_nul(path.as_str().as_bytes()).unwrap();
    let mut text = [0u8; 4096];
    let len = sys::open(path).and_then(|fd| {
        let len = sys::read(fd, &mut text);
        sys::close(fd);
        len
    });
    let text = core::str::from_utf8(&text[..len.unwrap()]).unwrap();
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(&mut each).count()
}

/// Ends whoever a defence that was taken out would have ended.
pub fn end_children() {
    while has_children() {
        children(|pid| _ = sys::kill(pid, 9));
        while sys::wait(u32::MAX, true).is_ok() {}
    }
}

extern "C" fn never(_: usize) -> i32 {
    println!("guest code ran");
    1
}

fn refused(config: &Config<'_>, expected: impl Fn(&Error) -> bool) {
    let before = open_descriptors();
    match sandbox::spawn(config, never, 0) {
        Ok(_) => check!(false),
        Err(error) => {
            check!(expected(&error), "{:?}", error);
            check!(error.party() != Party::Runtime);
            println!("{error}");
        }
    }
    check!(open_descriptors() == before);
    check!(!has_children());
}

/// A second thread that waits for ever.
fn start_thread() {
    const STACK: usize = 16384;
    static mut MEMORY: [u8; STACK] = [0; STACK];
    const THREAD: usize = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000; // VM FS FILES SIGHAND THREAD SYSVSEM
    let top = (&raw mut MEMORY).addr() + STACK - 64;
    // SAFETY: the child has a stack of its own and stays in the loop.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        core::arch::asm!("syscall", "test eax, eax", "jnz 3f", "2: pause", "jmp 2b", "3:",
            inlateout("rax") Sysno::clone as usize => _, in("rdi") THREAD, in("rsi") top, in("rdx") 0, in("r10") 0, in("r8") 0,
            out("rcx") _, out("r11") _);
        #[cfg(target_arch = "x86")]
        core::arch::asm!("int 0x80", "test eax, eax", "jnz 3f", "2: pause", "jmp 2b", "3:",
            inlateout("eax") Sysno::clone as usize => _, in("ebx") THREAD, in("ecx") top, in("edx") 0, in("edi") 0);
    }
}

fn exit_group(status: usize) -> ! {
    // SAFETY: ends all threads.
    let _ = unsafe { call(Sysno::exit_group, [status]) };
    unreachable!()
}

fn threaded_enter() {
    start_thread();
    match sandbox::enter(&config()) {
        Err(Error::MultiThreaded { threads: 2 }) => {}
        Err(error) => check!(false, "{error}"),
        Ok(()) => check!(false),
    }
    check!(!has_children());
    // But such a process may spawn.
    extern "C" fn fine(_: usize) -> i32 {
        7
    }
    must_exit(&config(), fine, 0, 7);
    exit_group(0)
}

fn one_cpu_apart() {
    let one = sys::CpuSet::one(sys::current_cpu().unwrap());
    // SAFETY: reads the set.
    let set = unsafe { call(Sysno::sched_setaffinity, [0, size_of_val(&one), (&raw const one) as usize]) };
    check!(set.is_ok());
    refused(&Config { placement: Placement::Apart, ..config() }, |e| *e == Error::Placement);
    must_exit(&config(), one_call, 0, 0);
}

extern "C" fn one_call(_: usize) -> i32 {
    // SAFETY: touches no memory.
    unsafe { ascetic::untrusted::call(Sysno::getppid, [0; 6]) }.is_err() as i32
}

/// Installs a seccomp filter on this process: `prctl(PR_GET_SECCOMP)` fails with `errno`, all else passes.
fn install_filter(errno: u32) {
    install(Sysno::prctl, 21, if errno == 0 { 0x7fff_0000 } else { 0x5_0000 | errno });
}

/// Installs a seccomp filter on this process: `what` becomes of a call with this first argument, all else passes.
fn install(nr: Sysno, arg: u32, what: u32) {
    // SAFETY: struct sock_filter, by hand: load the number; the call? load argument 0; this one? `what`.
    let insns: [Insn; 6] = unsafe {
        core::mem::transmute::<[(u16, u8, u8, u32); 6], _>([
            (0x20, 0, 0, 0),
            (0x15, 0, 3, nr as u32),
            (0x20, 0, 0, 16),
            (0x15, 0, 1, arg),
            (0x06, 0, 0, what),
            (0x06, 0, 0, 0x7fff_0000),
        ])
    };
    let program = Program { len: 6, insns: insns.as_ptr() as usize };
    // SAFETY: restricts this process.
    unsafe {
        check!(sys::prctl(sys::PR_SET_NO_NEW_PRIVS, 1).is_ok());
        check!(call(Sysno::prctl, [sys::PR_SET_SECCOMP, 2, (&raw const program) as usize]).is_ok());
    }
}

/// What a kernel without seccomp says, said by a filter.
fn no_seccomp() {
    install_filter(22);
    refused(&config(), |e| *e == Error::NoSeccomp);
}

fn under_filter() {
    install_filter(0);
    refused(&config(), |e| *e == Error::FilterInForce);
    must_exit(&Config { lockdown: Lockdown::Filter { read: None, write: None }, ..config() }, one_call, 0, 0);
}

/// An io_uring, as a descriptor or only as a mapping. Without the audit the guest runs, with the ring in reach.
fn io_uring(mapping: bool, audited: bool) {
    const SETUP: usize = 425;
    let mut params = [0u32; 30];
    // SAFETY: the kernel fills in the parameters.
    let fd = unsafe { ascetic::arch::syscall3(SETUP, 4, params.as_mut_ptr() as usize, 0) } as isize;
    if fd < 0 {
        skip("io_uring_setup fails: no io_uring on this kernel");
    }
    if mapping {
        check!(sys::map_shared(4096, sys::PROT_READ | sys::PROT_WRITE, fd as i32).is_ok());
        sys::close(fd as i32);
    }
    if !audited {
        let mut config = config();
        config.weaken.no_audit = true;
        return must_exit(&config, one_call, 0, 0);
    }
    let at = if mapping { -1 } else { fd as i32 };
    refused(
        &config(),
        |e| matches!(e, Error::Found { finding: Finding::IoUring, fd, name } if *fd == at && name.as_str().contains("io_uring")),
    );
}

fn userfaultfd() {
    const USER_MODE_ONLY: usize = 1;
    // SAFETY: makes a descriptor.
    let Ok(uffd) = (unsafe { call(Sysno::userfaultfd, [USER_MODE_ONLY]) }) else {
        skip("no userfaultfd on this kernel");
    };
    refused(&config(), |e| matches!(e, Error::Found { finding: Finding::Userfaultfd, fd, .. } if *fd == uffd as i32));
}

fn process_memory() {
    let mem = sys::open(c"/proc/self/mem").unwrap();
    refused(
        &Config { keep: &[1, mem], ..config() },
        |e| matches!(e, Error::Found { finding: Finding::ProcessMemory, fd, .. } if *fd == mem),
    );
    // Not kept, it is closed, and harmless.
    must_exit(&config(), one_call, 0, 0);
}

fn unknown_kind() {
    let pidfd = sys::pidfd_open(sys::pids().0).unwrap();
    // Since 6.9 pidfds have a file system of their own, and read "pidfd:[…]".
    refused(
        &Config { keep: &[1, pidfd], ..config() },
        |e| matches!(e, Error::Found { finding: Finding::Unknown, fd, .. } if *fd == pidfd),
    );
}

/// Memory that the guest could write and the embedder would see; listed, it is the embedder's will.
fn shared_memory(audited: bool) {
    extern "C" fn guest(at: usize) -> i32 {
        // SAFETY: mapped, shared memory.
        unsafe { (at as *mut u32).write_volatile(77) };
        0
    }
    let fd = sys::memfd(c"shared", 4096, false).unwrap();
    let at = sys::map_shared(4096, sys::PROT_READ | sys::PROT_WRITE, fd).unwrap();
    let mut config = config();
    if audited {
        refused(
            &config,
            |e| matches!(e, Error::Found { finding: Finding::SharedMemory, fd: -1, name } if name.as_str().contains("memfd:shared")),
        );
        refused(&Config { share: &[(at + 4096, 4096), (at, 0)], ..config }, |e| {
            matches!(e, Error::Found { finding: Finding::SharedMemory, .. })
        });
        must_exit(&Config { share: &[(at, 4096)], ..config }, guest, at, 0);
        // Two halves, each listed: the kernel shows them as one.
        let fd = sys::memfd(c"two", 8192, false).unwrap();
        let two = sys::map_shared(8192, sys::PROT_READ | sys::PROT_WRITE, fd).unwrap();
        let share = [(two, 4096), (at, 4096), (two + 4096, 4096)];
        return must_exit(&Config { share: &share, ..config }, guest, two + 4096, 0);
    }
    config.weaken.no_audit = true;
    must_exit(&config, guest, at, 0);
    // SAFETY: mapped, and the guest has ended.
    check!(unsafe { (at as *const u32).read_volatile() } == 77);
}

/// A mapping that is not writable, of a file that was opened for writing, is one that the guest can make so. One of a file that
/// was opened to read is not.
fn can_be_writable() {
    let fd = sys::memfd(c"shared", 8192, false).unwrap();
    let finding = |e: &Error| matches!(e, Error::Found { finding: Finding::SharedMemory, fd: -1, name } if name.as_str().contains("memfd:shared"));
    for prot in [sys::PROT_READ, 0, sys::PROT_READ | sys::PROT_EXEC] {
        let Ok(at) = sys::map_shared(4096, prot, fd) else { continue };
        refused(&config(), finding);
        must_exit(&Config { share: &[(at, 4096)], ..config() }, one_call, 0, 0);
        // SAFETY: nothing refers to it.
        check!(unsafe { sys::munmap(at, 4096) }.is_ok());
    }
    let mut path = *b"/proc/self/fd/0\0";
    path[14] += fd as u8;
    check!(fd < 10);
    let to_read = sys::open(core::ffi::CStr::from_bytes_with_nul(&path).unwrap_or_default()).unwrap();
    check!(sys::map_shared(4096, sys::PROT_READ, to_read).is_ok());
    must_exit(&config(), one_call, 0, 0);
    // SAFETY: nothing refers to it.
    check!(unsafe { sys::map_shared_at(0x2000_0000, 4096, sys::PROT_READ, fd, 0) }.is_ok());
    refused(&config(), finding);
}

/// Sockets are kept that have another program at their other end, and no others.
fn other_families() {
    // SAFETY: makes descriptors.
    let socket = |family, kind| unsafe { call(Sysno::socket, [family, kind, 0]) }.map(|fd| fd as i32);
    for family in [1, 2, 10] {
        let Ok(fd) = socket(family, 1) else { continue };
        must_exit(&Config { keep: &[1, fd], ..config() }, one_call, 0, 0);
    }
    let netlink = socket(16, 2).unwrap();
    refused(
        &Config { keep: &[1, netlink], ..config() },
        |e| matches!(e, Error::Found { finding: Finding::Unknown, fd, .. } if *fd == netlink),
    );
    // Not kept, it is closed.
    must_exit(&config(), one_call, 0, 0);
}

/// What a kernel says in whose answer upper bits of addresses count for nothing, said by a filter: nothing, and success.
#[cfg(target_arch = "x86_64")]
fn tagged_addresses() {
    install(Sysno::arch_prctl, 0x4001, 0x5_0000);
    let config = Config { lockdown: Lockdown::Filter { read: None, write: None }, ..config() };
    refused(&config, |e| *e == Error::TaggedAddresses);
}

/// A program in which all that can be read can be executed: not in its sandbox.
fn read_implies_exec() {
    extern "C" fn guest(executable: usize) -> i32 {
        let map = freestanding::files::MMAP;
        // SAFETY: memory of the guest's own: a return instruction, called.
        unsafe {
            let Ok(at) = ascetic::untrusted::call(map, [0, 0x1000, 3, 0x22, usize::MAX, 0]) else { return 1 };
            (at as *mut u8).write_volatile(0xc3);
            if executable != 0 && ascetic::untrusted::call(Sysno::mprotect, [at, 0x1000, 5, 0, 0, 0]).is_err() {
                return 2;
            }
            core::mem::transmute::<usize, extern "C" fn()>(at)();
        }
        0
    }
    let policy = POLICY.memory();
    let before = sys::personality(None).unwrap();
    check!(sys::personality(Some(before | sys::READ_IMPLIES_EXEC)).is_ok());
    let config = Config { policy: &policy, ..config() };
    if cfg!(target_arch = "x86_64") {
        // Elsewhere there may be no such bit in the page tables.
        must_crash(&config, guest, 0, 11, |_| ());
    }
    extern "C" fn waits(_: usize) -> i32 {
        let time = [60usize, 0];
        // SAFETY: the guest's own structure.
        unsafe { ascetic::untrusted::call(Sysno::nanosleep, [time.as_ptr() as usize, 0, 0, 0, 0, 0]) }.is_err() as i32
    }
    let mut sandbox = spawn(&config, waits, 0);
    for pid in [sandbox.pids().0, sandbox.pids().1] {
        let mut text = [0u8; 16];
        let flags = usize::from_str_radix(super::supervisor::read_proc(pid, "personality", &mut text).trim(), 16);
        check!(flags.clone().is_ok_and(|flags| flags & sys::READ_IMPLIES_EXEC == 0), "{flags:?}");
    }
    sandbox.kill();
    // The embedder has what it had, and a policy may allow it.
    check!(sys::personality(None) == Ok(before | sys::READ_IMPLIES_EXEC));
    let policy = POLICY.memory().executable();
    must_exit(&Config { policy: &policy, ..config }, guest, 1, 0);
}

/// Mappings of the vault that can be written: planted by the switch that leaves it open.
fn vault_alias() {
    let mut config = config();
    config.weaken.no_seal = true;
    config.weaken.audit_anyway = true;
    refused(&config, |e| matches!(e, Error::Found { finding: Finding::WritableAlias, fd: -1, .. }));
}

/// A limit on file sizes would make set-up raise SIGXFSZ; it is an error instead, and a crash descriptor avoids it.
fn file_limit() {
    let limit = [100_000u64, 100_000];
    // SAFETY: reads two numbers.
    check!(unsafe { call(Sysno::prlimit64, [0, 1, (&raw const limit) as usize, 0]) }.is_ok());
    refused(&config(), |e| matches!(e, Error::Supervisor { call: Sysno::ftruncate, errno: Errno::EFBIG }));
    let (_, write) = sys::pipe().unwrap();
    must_exit(&Config { crash: Some(write), ..config() }, one_call, 0, 0);
}

/// Only where this is the machine's only user: in QEMU.
fn needs_proc() {
    if !emulated() {
        skip("changes the root folder: in QEMU only");
    }
    // SAFETY: strings that end in NUL.
    unsafe {
        let _ = call(Sysno::mkdir, [c"/tmp/empty".as_ptr() as usize, 0o700]);
        check!(call(Sysno::chroot, [c"/tmp/empty".as_ptr() as usize]).is_ok());
    }
    refused(&config(), |e| matches!(e, Error::Setup { stage: ascetic::error::SetupStage::Proc, .. }));
}

fn unlisted() {
    extern "C" fn guest(fd: usize) -> i32 {
        (sys::write(fd as i32, &[]) != Err(Errno::EBADF)) as i32
    }
    let fd = sys::memfd(c"secret", 4096, false).map(|fd| sys::dup_from(fd, 100).unwrap()).unwrap();
    must_exit(&config(), guest, fd as usize, 0);
    // Kept under its number, however high.
    let high = sys::dup_from(fd, 200).unwrap();
    must_exit(&Config { keep: &[1, high], ..config() }, guest, high as usize, 1);
    must_exit(&Config { keep: &[1, high], ..config() }, guest, fd as usize, 0);
}
