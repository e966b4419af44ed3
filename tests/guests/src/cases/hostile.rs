//! Hostile guests: forged requests, forbidden arguments, other instruction sets, attacks on the vault. Where a defence can
//! be switched off, the same attack is seen to succeed without it.

use super::*;
use ascetic::abi::{Mailbox, NR_STAY, NR_TOKEN, PAGE, TABLE_LEN, VERDICT_TO_MAILBOX};
use ascetic::experiment;
use ascetic::policy::{Bounds, Decision};
use ascetic::sys::{self, Errno};
use ascetic::untrusted::{call, call_raw};

/// The sandbox's own descriptors, counted.
const OWN: usize = ascetic::experiment::OWN_FDS;

pub const CASES: &[Case] = &[
    case("forged_numbers", || must_exit(&config(), numbers, 0, 0)),
    case("forged_sequence", || must_exit(&config(), sequence, 0, 0)),
    case("forged_mailbox", || must_exit(&config(), scribbles, 0, 0)),
    case("forged_doorbells", || must_exit(&config(), doorbells, 0, 0)),
    case("policy_agrees_with_its_twin", || must_exit(&config(), twin, if emulated() { 4_000 } else { 20_000 }, 0)),
    case("vault_arguments_refused", || must_exit(&config(), vault_arguments, 1, 0)),
    case("vault_arguments_off_shows_it", || {
        let mut config = config();
        config.weaken.no_vault_check = true;
        must_exit(&config, vault_arguments, 0, 0)
    }),
    case("clock_ids_of_others_refused", || must_exit(&config(), clock_ids, 0, 0)),
    case("own_descriptors_refused", || must_exit(&config(), own_descriptors, 1, 0)),
    case("own_descriptors_off_shows_it", || {
        let mut config = config();
        config.weaken.no_fd_check = true;
        must_exit(&config, own_descriptors, 0, 0)
    }),
    case("vault_write_dies", || {
        let outcome = run(&config(), write_policy, 0);
        check!(outcome.guest.is_signal(11), "{:?}", outcome);
    }),
    case("vault_write_off_shows_it", || {
        let mut config = config();
        config.weaken.no_seal = true;
        must_exit(&config, write_policy, 0, 55)
    }),
    case("vault_stands_without_lockdown", || {
        let mut config = config();
        config.weaken.no_lockdown = true;
        config.weaken.no_mseal = true; // the memfd's seals alone
        must_exit(&config, attack_vault, 1, 0)
    }),
    case("vault_stands_off_shows_it", || {
        let mut config = config();
        config.weaken.no_lockdown = true;
        config.weaken.no_seal = true;
        must_exit(&config, attack_vault, 0, 0)
    }),
    case("mappings_are_sealed", || sealed(true)),
    case("mappings_are_sealed_off_shows_it", || sealed(false)),
    #[cfg(target_arch = "x86_64")]
    case("i386_call_from_64_bit_code", || {
        let outcome = run(&config(), int80_getpid, 0);
        check!(outcome.guest.is_signal(9), "{:?}", outcome);
    }),
    #[cfg(target_arch = "x86_64")]
    case("i386_call_off_shows_it", || {
        let mut config = config();
        config.weaken.no_lockdown = true;
        must_exit(&config, int80_getpid, 0, 66)
    }),
    #[cfg(target_arch = "x86_64")]
    case("far_jump_to_32_bit_code", || far_jump(false)),
    #[cfg(target_arch = "x86_64")]
    case("far_jump_off_shows_it", || far_jump(true)),
    case("t_dies_with_the_mailbox", || {
        let end = freestanding::mechanisms::experiment(0);
        check!(end.is_signal(11), "T: {end}");
    }),
    case("t_code_cannot_be_used", || {
        let outcome = run(&config(), jumps_into_t, 0);
        check!(outcome.guest.is_signal(9) || outcome.guest.is_signal(11), "{:?}", outcome);
    }),
];

/// Numbers that no table has: beyond it, negative, x32.
extern "C" fn numbers(_: usize) -> i32 {
    let x32 = 0x4000_0000;
    for nr in [
        TABLE_LEN as u32,
        TABLE_LEN as u32 - 1,
        NR_STAY,
        0x7fff_ffff,
        0x8000_0000,
        u32::MAX,
        -(Sysno::getppid as i32) as u32,
        x32 | Sysno::getppid as u32,
        x32 | 514,
        0x1_0000 | Sysno::getppid as u32,
    ] {
        // SAFETY: the request is forged; T must refuse it.
        let result = unsafe { call_raw(nr, [0; 6]) } as isize;
        // One is the token's, and there is none.
        check!(result == if nr == NR_TOKEN { -116 } else { -38 }, "{nr:#x}: {result}");
    }
    // SAFETY: touches no memory.
    check!(unsafe { call(Sysno::getppid, [0; 6]) }.is_ok());
    0
}

/// The turn word jumps and wraps; T serves each new value once.
extern "C" fn sequence(_: usize) -> i32 {
    for start in [5, 1 << 31, u32::MAX - 2, 77, 3] {
        // SAFETY: the guest's own state.
        unsafe { experiment::turn().write_volatile(start) };
        for _ in 0..5 {
            // SAFETY: touches no memory.
            check!(unsafe { call(Sysno::getppid, [0; 6]) }.is_ok());
        }
    }
    0
}

fn random(seed: &mut u64) -> u32 {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*seed >> 33) as u32
}

/// Random words all over the mailbox, the sequence word among them, while T works: T lives, and then serves.
extern "C" fn scribbles(_: usize) -> i32 {
    let (mailbox, len) = experiment::mailbox();
    let mut seed = 7;
    for _ in 0..200_000 {
        let at = random(&mut seed) as usize % if random(&mut seed) % 4 == 0 { len / 4 } else { 40 };
        let value = match random(&mut seed) % 3 {
            0 => random(&mut seed),
            1 => random(&mut seed) % 512,
            _ => 0,
        };
        // The alarm to the supervisor is a request to be killed; leave it out.
        if at * 4 != core::mem::offset_of!(Mailbox, raise) {
            // SAFETY: inside the mailbox, which is the guest's to write.
            unsafe { ((mailbox + at * 4) as *mut u32).write_volatile(value) };
        }
    }
    // T may still be at some call that the scribbles asked for, and answers that one. Ask until it has heard us.
    // SAFETY: the address of a field of the mapped mailbox.
    let line = unsafe { &raw mut (*(mailbox as *mut Mailbox)).line };
    for attempt in 0..1000u32 {
        let turn = 0x7000_0000 + attempt * 16;
        // SAFETY: the guest's own state and mailbox.
        unsafe {
            (&raw mut (*line).u_asleep).write_volatile(0);
            (&raw mut (*line).nr).write_volatile(Sysno::getppid as u32);
            (&raw mut (*line).args).write_volatile([0; 6]);
            (&raw mut (*line).turn).write_volatile(turn);
            let _ = sys::write(experiment::doorbells().0, &1u64.to_ne_bytes());
            for _ in 0..10_000_000 {
                if (&raw const (*line).turn).read_volatile() == turn + 1 {
                    experiment::turn().write_volatile(turn + 1);
                    check!(call(Sysno::getppid, [0; 6]).is_ok());
                    return 0;
                }
                core::hint::spin_loop();
            }
        }
    }
    1
}

/// Rings that mean nothing.
extern "C" fn doorbells(_: usize) -> i32 {
    let (t, u) = experiment::doorbells();
    for _ in 0..1000 {
        for bell in [t, u, experiment::first_own_fd()] {
            check!(sys::write(bell, &1u64.to_ne_bytes()) == Ok(8));
        }
        // SAFETY: touches no memory.
        check!(unsafe { call(Sysno::getppid, [0; 6]) }.is_ok());
    }
    0
}

/// Requests at random: what the policy's twin refuses, T refuses with the same errno, and nothing else.
extern "C" fn twin(requests: usize) -> i32 {
    let (from, to) = experiment::vault();
    let own = experiment::first_own_fd();
    let bounds = Bounds { vault_lo: from, vault_len: to - from, fd_lo: own as u32, fd_len: OWN as u32 };
    let mut seed = 99;
    let mut refused = 0;
    for _ in 0..requests {
        // Half of the requests are for calls that the policy allows, and that do no harm with any arguments.
        let allowed = random(&mut seed) % 2 == 0;
        let nr = if allowed { Sysno::getppid as u32 } else { random(&mut seed) % 600 };
        let nr = if POLICY.rows().get(nr as usize).is_some_and(|row| row >> 31 == 1) && !allowed { 599 } else { nr };
        let args = core::array::from_fn(|_| match random(&mut seed) % 8 {
            0 => from.wrapping_add(random(&mut seed) as usize % (to - from + 64)).wrapping_sub(32),
            1 => from.wrapping_sub(1),
            2 => to,
            3 => own as usize + random(&mut seed) as usize % 8,
            _ => random(&mut seed) as usize,
        });
        let expected = POLICY.decide(&bounds, nr, &args);
        // SAFETY: getppid ignores its arguments; the rest is refused.
        let result = unsafe { call_raw(nr, args) } as isize;
        match expected {
            Decision::Ask(errno) => {
                refused += 1;
                check!(result == -(errno as isize), "{nr} {args:x?}: {result}");
            }
            Decision::Token => check!(result == -(Errno::ESTALE.into_raw() as isize), "{result}"),
            Decision::Allow => check!(result > 0, "{nr} {args:x?}: {result}"),
        }
    }
    check!(refused > requests / 4);
    0
}

/// A pointer into the vault in any argument, wherever in the vault; just outside it is none.
extern "C" fn vault_arguments(defended: usize) -> i32 {
    // Guard, code, vault page, verdict page, guard: from where the pages are, not from what T is told.
    let (vault, verdict) = experiment::pages();
    let (from, to) = (vault.addr() - 2 * PAGE, verdict.addr() + VERDICT_TO_MAILBOX);
    for i in 0..6 {
        for (at, inside) in [
            (from - 1, false),
            (from, true),
            (from + PAGE, true),
            (vault.addr() + 8, true),
            (verdict.addr() + 8, true),
            (to - 1, true),
            (to, false),
        ] {
            let mut args = [0; 6];
            args[i] = at;
            // SAFETY: getppid ignores its arguments.
            let result = unsafe { call(Sysno::getppid, args) };
            check!((result == Err(Errno::EFAULT)) == (inside && defended == 1), "argument {i}: {at:#x}: {result:?}");
        }
    }
    // With the check off the kernel still cannot write there.
    // SAFETY: the pointer leads into the vault, on purpose.
    let result = unsafe { call(Sysno::getrandom, [from + 2 * PAGE, 8, 0, 0, 0, 0]) };
    check!(result == Err(Errno::EFAULT));
    0
}

/// A negative clock id names the CPU clock of any process (`clock_getcpuclockid(3)`), and so tells who is there.
extern "C" fn clock_ids(_: usize) -> i32 {
    let mut ts = [0usize; 2];
    for (id, good) in
        [(0usize, true), (1, true), (7, true), (16, false), (!1usize << 3 | 2, false), (usize::MAX, false)]
    {
        // SAFETY: the kernel stores a timespec.
        let result = unsafe { call(Sysno::clock_gettime, [id, ts.as_mut_ptr() as usize, 0, 0, 0, 0]) };
        check!(result == if good { Ok(0) } else { Err(Errno::EINVAL) }, "{id:#x}: {result:?}");
    }
    0
}

/// The sandbox's own descriptors, as they are and with bits that the kernel does not look at.
extern "C" fn own_descriptors(defended: usize) -> i32 {
    let own = experiment::first_own_fd() as usize;
    // SAFETY: descriptors only.
    unsafe {
        for fd in own..own + OWN {
            let expected = if defended == 1 { Err(Errno::EBADF) } else { Ok(1) };
            check!(call(Sysno::dup2, [fd, 1, 0, 0, 0, 0]) == expected);
            #[cfg(target_pointer_width = "64")]
            check!(call(Sysno::dup2, [1 << 32 | fd, 1, 0, 0, 0, 0]) == expected);
        }
        if defended == 1 {
            for fd in own..own + OWN {
                check!(call(Sysno::close, [fd, 0, 0, 0, 0, 0]) == Err(Errno::EBADF));
                check!(call(Sysno::dup2, [1, fd, 0, 0, 0, 0]) == Err(Errno::EBADF));
                check!(Errno::from_ret(call_raw(Sysno::read as u32, [fd, 0, 0, 0, 0, 0])) == Err(Errno::EBADF));
            }
            // The neighbours are the guest's own affair.
            check!(call(Sysno::close, [own - 1, 0, 0, 0, 0, 0]) == Ok(0));
            check!(call(Sysno::dup2, [1, own + OWN, 0, 0, 0, 0]) == Ok(own + OWN));
        }
    }
    0
}

/// Writes itself a permission, and uses it.
extern "C" fn write_policy(_: usize) -> i32 {
    let (vault, _) = experiment::pages();
    // SAFETY: none: that it dies is the point.
    unsafe {
        (&raw mut (*vault).table[Sysno::umask as usize]).write_volatile(1 << 31);
        if call(Sysno::umask, [0o22, 0, 0, 0, 0, 0]).is_ok() { 55 } else { 1 }
    }
}

/// What a guest that got around strict mode could do to the vault: nothing.
extern "C" fn attack_vault(defended: usize) -> i32 {
    let (from, _) = experiment::vault();
    let page = from + 2 * PAGE;
    let rw = sys::PROT_READ | sys::PROT_WRITE;
    // SAFETY: attacks on memory that nothing in this task refers to.
    unsafe {
        let writable = sys::mprotect(page, PAGE, rw).is_ok();
        check!(writable == (defended == 0));
        if defended == 0 {
            return 0;
        }
        check!(sys::open(c"/proc/self/maps").is_ok());
        let mem = freestanding::call(Sysno::open, [c"/proc/self/mem".as_ptr() as usize, 2]).unwrap();
        for at in [from + PAGE, page, page + PAGE] {
            let written = freestanding::call(Sysno::pwrite64, [mem, [0u8; 8].as_ptr() as usize, 8, at, 0]);
            check!(written.is_err(), "{at:#x}");
        }
    }
    0
}

/// Since 6.10 the mappings themselves are sealed: unmapping, replacing, protecting.
fn sealed(defended: bool) {
    extern "C" fn guest(defended: usize) -> i32 {
        let (from, _) = experiment::vault();
        let rw = sys::PROT_READ | sys::PROT_WRITE;
        // The first guard page: T does not notice when it is gone. MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS.
        let map = Sysno::new(if cfg!(target_arch = "x86") { 192 } else { Sysno::mmap as usize }).unwrap();
        // SAFETY: attacks on memory that nothing in this task refers to.
        let results = unsafe {
            [
                sys::mprotect(from, PAGE, rw),
                freestanding::call(map, [from, PAGE, rw, 0x32, usize::MAX, 0]).map(drop),
                sys::munmap(from, PAGE),
            ]
        };
        let expected = if defended == 1 { Err(Errno::EPERM) } else { Ok(()) };
        check!(results == [expected; 3], "{results:?}");
        0
    }
    if sys::mseal(0, 0) == Err(Errno::ENOSYS) {
        skip("no mseal on this kernel");
    }
    let mut config = config();
    config.weaken.no_lockdown = true;
    config.weaken.no_mseal = !defended;
    must_exit(&config, guest, usize::from(defended), 0);
}

/// `int $0x80` from 64-bit code: i386 numbers, on which strict mode has its own opinion (20 is getpid there).
#[cfg(target_arch = "x86_64")]
extern "C" fn int80_getpid(_: usize) -> i32 {
    let result: usize;
    // SAFETY: a call that strict mode must stop.
    unsafe {
        core::arch::asm!("int 0x80", inlateout("rax") 20usize => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _)
    };
    // On kernels without IA32 emulation this is a fault instead.
    if result as isize > 0 { 66 } else { 67 }
}

/// 32-bit code in a 64-bit process: `int $0x80` there must die like anywhere.
#[cfg(target_arch = "x86_64")]
fn far_jump(off: bool) {
    extern "C" fn guest(_: usize) -> i32 {
        // SAFETY: the code is below 4 GiB (linker/freestanding.ld), uses registers only, and comes back.
        let result: usize = unsafe {
            let result;
            core::arch::asm!(
                "mov {sp}, rsp",
                "jmp fword ptr [rip + 4f]",
                "4: .long 2f",
                ".word 0x23",
                ".code32",
                "2: mov eax, 20",
                "int 0x80",
                ".byte 0xea", // ljmp $0x33, $3f
                ".long 3f",
                ".word 0x33",
                ".code64",
                "3: mov rsp, {sp}",
                sp = out(reg) _,
                out("rax") result,
                out("rcx") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
            result
        };
        if result > 0 { 66 } else { 67 }
    }
    let mut config = config();
    config.weaken.no_lockdown = off;
    let outcome = run(&config, guest, 0);
    let expected = if off { outcome.guest == Status::Exited(66) } else { outcome.guest.is_signal(9) };
    check!(expected, "{:?}", outcome);
}

/// T's code gives U nothing: its calls are U's own calls, under U's lock-down.
extern "C" fn jumps_into_t(_: usize) -> i32 {
    let (vault, verdict) = experiment::pages();
    let (mailbox, _) = experiment::mailbox();
    let code = vault.addr() - PAGE + ascetic::trusted::Entry::Untrusted.offset();
    // SAFETY: none: the guest ends here.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!("mov rbx, {vault}", "mov rbp, {mailbox}", "mov r15, {script}", "jmp {code}",
            vault = in(reg) vault, mailbox = in(reg) mailbox, script = in(reg) &raw const (*verdict).u, code = in(reg) code,
            options(noreturn))
    }
    // SAFETY: none: the guest ends here.
    #[cfg(target_arch = "x86")]
    unsafe {
        core::arch::asm!("mov ebx, eax", "mov ebp, ecx", "mov esi, edx", "jmp edi",
            in("eax") vault, in("ecx") mailbox, in("edx") &raw const (*verdict).u, in("edi") code,
            options(noreturn))
    }
}
