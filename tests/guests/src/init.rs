//! PID 1 in QEMU: runs every case in a process of its own and prints one verdict for each.

use crate::cases::CASES;
use ascetic::error::Status;
use ascetic::sys::{self, Sysno};
use core::time::Duration;
use freestanding::{Args, call, println};

/// How long a case may take under emulation.
const PATIENCE: Duration = Duration::from_secs(120);

/// Mounts what the cases need, runs those that `ascetic.filter=` on the kernel's command line names (all without it), but none
/// whose name begins as one that `ascetic.without=` lists, and powers off.
pub fn run(args: Args) -> ! {
    let mounts = [(c"devtmpfs", c"/dev"), (c"devpts", c"/dev/pts"), (c"proc", c"/proc"), (c"tmpfs", c"/tmp")];
    for (kind, at) in mounts {
        // SAFETY: the strings end in NUL.
        unsafe {
            let _ = call(Sysno::mkdir, [at.as_ptr() as usize, 0o755]);
            let _ = call(Sysno::mount, [at.as_ptr() as usize, at.as_ptr() as usize, kind.as_ptr() as usize, 0, 0]);
        }
    }
    // SAFETY: the string ends in NUL.
    if let Ok(fd) = unsafe { call(Sysno::open, [c"/dev/ttyS0".as_ptr() as usize, 2 | 0o400]) } {
        for to in 0..3 {
            let _ = sys::dup2(fd as i32, to);
        }
    }
    let mut text = [0u8; 1024];
    let line = sys::open(c"/proc/cmdline").and_then(|fd| sys::read(fd, &mut text)).unwrap_or(0);
    let line = core::str::from_utf8(&text[..line]).unwrap_or("");
    let option = |name| line.split_whitespace().find_map(|word| word.strip_prefix(name)).unwrap_or("");
    let (filter, without) = (option("ascetic.filter="), option("ascetic.without="));
    machine();
    let left_out = |name: &str| without.split(',').any(|begin| !begin.is_empty() && name.starts_with(begin));
    let cases = || CASES.chosen(filter).filter(|case| !left_out(case.name));
    cases().for_each(|case| println!("@plan {} {}", case.name, case.end));
    for case in cases() {
        println!("@start {}", case.name);
        let start = sys::now();
        let verdict = run_case(args, case.name);
        println!("@case {} {verdict} {}", case.name, (sys::now() - start) / 1_000_000);
    }
    println!("@done");
    const POWER_OFF: usize = 0x4321_fedc;
    // SAFETY: ends the machine.
    let _ = unsafe { call(Sysno::reboot, [0xfee1_dead, 672274793, POWER_OFF]) };
    loop {
        core::hint::spin_loop();
    }
}

/// What of a processor makes a difference here, by the kernel's names of it (`proc_cpuinfo(5)`).
const FEATURES: [&str; 8] = ["lm", "nx", "rdtscp", "fsgsbase", "xsave", "avx", "avx512f", "pku"];

/// Says which kernel this is, and what of [`FEATURES`] its processors have.
fn machine() {
    let mut text = [0u8; 4096];
    let mut first = |path, begin: &str, tell: &dyn Fn(&str)| {
        let len = sys::open(path).and_then(|fd| sys::read(fd, &mut text)).unwrap_or(0);
        let line = core::str::from_utf8(&text[..len]).unwrap_or("").lines().find(|line| line.starts_with(begin));
        tell(line.unwrap_or(""));
    };
    first(c"/proc/sys/kernel/osrelease", "", &|line| println!("@kernel {line}"));
    first(c"/proc/cpuinfo", "flags", &|line| {
        let has = |feature: &&&str| line.split_whitespace().any(|flag| flag == **feature);
        FEATURES.iter().filter(has).for_each(|feature| println!("@has {feature}"));
    });
}

struct Verdict(Option<Status>);

impl core::fmt::Display for Verdict {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            Some(Status::Exited(code)) => write!(f, "exit:{code}"),
            Some(Status::Signaled { signal, .. }) => write!(f, "signal:{signal}"),
            None => f.write_str("hung"),
        }
    }
}

fn run_case(args: Args, name: &str) -> Verdict {
    let mut copy = [0u8; 64];
    copy[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the child executes a program at once.
    match unsafe { sys::fork() } {
        Ok(0) => {
            // SAFETY: the first argument is the program's name.
            let program = unsafe { *args.raw() };
            let argv = [program, c"run".as_ptr() as usize, copy.as_ptr() as usize, 0];
            // SAFETY: the strings end in NUL, the lists in a null pointer.
            unsafe {
                let _ = call(Sysno::setpgid, [0, 0]);
                let _ = call(
                    Sysno::execve,
                    [c"/init".as_ptr() as usize, argv.as_ptr() as usize, argv[3..].as_ptr() as usize],
                );
            }
            sys::exit(126)
        }
        Ok(pid) => {
            let end = sys::now() + PATIENCE.as_nanos() as u64;
            while sys::now() < end {
                if let Ok(Some(raw)) = sys::wait(pid, false) {
                    // What the case left behind has become PID 1's.
                    // SAFETY: signals the process group of the case only.
                    let _ = unsafe { call(Sysno::kill, [-(pid as isize) as usize, 9]) };
                    while matches!(sys::wait(u32::MAX, false), Ok(Some(_))) {}
                    return Verdict(Some(Status::from_raw(raw)));
                }
                let _ = sys::poll(&mut [], Some(Duration::from_millis(2)));
            }
            // SAFETY: as above.
            let _ = unsafe { call(Sysno::kill, [-(pid as isize) as usize, 9]) };
            let _ = sys::wait(pid, true);
            Verdict(None)
        }
        Err(_) => Verdict(None),
    }
}
