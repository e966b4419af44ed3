//! The three ways to a dump under settings that only a machine of its own can have: Yama's scopes, other users, processes that are
//! not dumpable, other roots. Runs as root in QEMU, beside the guests' program; prints one line that says what held, or what did
//! not.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use ascetic::fault::record::Record;
use ascetic_tools::dump::receive::{Limits, NotReceived, Receiver};
use ascetic_ways::{Crash, Running, check, expected};

/// The programs that show crashes: of the architecture that is tested, and for i386, which may not be there.
const GUESTS: [&str; 2] = ["/init", "/guests-i686"];
/// Kinds of crashes that are shown where not all are.
const SOME: [&str; 6] = ["null", "abort", "denied", "strict", "overflow", "outside"];
/// Kinds that QEMU's translator does not raise.
const REAL: [&str; 1] = ["floating"];
/// Somebody who is not root.
const NOBODY: u32 = 65534;
const SCOPE: &str = "/proc/sys/kernel/yama/ptrace_scope";
/// Where the kernel sends cores.
const SOCKET: &str = "/tmp/ways-socket";
/// A folder that is a guest's root.
const JAIL: &str = "/tmp/ways-jail";
/// A scope under which not all settings have all kinds.
const LESS: usize = 1;
/// Scopes that Yama has (`Documentation/admin-guide/LSM/Yama.rst`).
const SCOPES: usize = 4;

/// Who traces.
#[derive(Clone, Copy, PartialEq)]
enum Tracer {
    /// Root, who has `CAP_SYS_PTRACE`, outside of whatever root folder the guest has.
    Root,
    /// The guest's user, who has started it.
    Ancestor,
    /// The guest's user, who has not.
    Stranger,
}

/// A process that crashes, and who traces it.
struct Setting {
    name: &'static str,
    tracer: Tracer,
    /// Whether the guest has a root folder of its own.
    chroot: bool,
    /// What the process is told to be (`guests crash`).
    options: &'static [&'static str],
    /// Whether it has a core.
    core: bool,
    /// A word of the reason why it cannot be traced, for each of Yama's scopes; empty if it can.
    refused: [&'static str; SCOPES],
}

const ROOT: [&str; SCOPES] = ["", "", "", "ptrace_scope is 3"];
const SETTINGS: [Setting; 9] = [
    Setting { name: "root", tracer: Tracer::Root, chroot: false, options: &[], core: true, refused: ROOT },
    Setting {
        name: "another uid",
        tracer: Tracer::Root,
        chroot: false,
        options: &["nobody"],
        core: true,
        refused: ROOT,
    },
    Setting {
        name: "another uid, not dumpable",
        tracer: Tracer::Root,
        chroot: false,
        options: &["nobody", "no-core"],
        core: false,
        refused: ROOT,
    },
    Setting {
        name: "chroot, another uid",
        tracer: Tracer::Root,
        chroot: true,
        options: &["nobody"],
        core: true,
        refused: ROOT,
    },
    Setting {
        name: "chroot, another uid, not dumpable",
        tracer: Tracer::Root,
        chroot: true,
        options: &["nobody", "no-core"],
        core: false,
        refused: ROOT,
    },
    Setting {
        name: "not root, ancestor",
        tracer: Tracer::Ancestor,
        chroot: false,
        options: &[],
        core: true,
        refused: ["", "", "ptrace_scope is 2", "ptrace_scope is 3"],
    },
    Setting {
        name: "not root, not dumpable",
        tracer: Tracer::Ancestor,
        chroot: false,
        options: &["not-dumpable", "no-core"],
        core: false,
        refused: ["it is not dumpable", "of a dumpable process", "ptrace_scope is 2", "ptrace_scope is 3"],
    },
    Setting {
        name: "not root, stranger",
        tracer: Tracer::Stranger,
        chroot: false,
        options: &[],
        core: true,
        refused: ["", "Config::tracer", "ptrace_scope is 2", "ptrace_scope is 3"],
    },
    Setting {
        name: "not root, stranger that is named",
        tracer: Tracer::Stranger,
        chroot: false,
        options: &["tracer"],
        core: true,
        refused: ["", "", "ptrace_scope is 2", "ptrace_scope is 3"],
    },
];

impl Setting {
    /// Whether nothing but the kind of crash could make a difference.
    fn plain(&self) -> bool {
        self.tracer == Tracer::Root && !self.chroot && self.options.is_empty()
    }

    /// The kinds of crashes of a program to look at, each with its signal.
    fn kinds(&self, scope: usize, program: &str) -> Result<Vec<(String, String)>> {
        let mut all = ascetic_ways::kinds(Path::new(program))?;
        let some: &[&str] =
            if self.tracer == Tracer::Root && (scope == 0 || self.plain()) { &SOME } else { &SOME[..1] };
        let translated = fs::read_to_string("/proc/cpuinfo")?.contains("QEMU TCG");
        all.retain(|(kind, _)| {
            let kind = &kind.as_str();
            some.contains(kind) || self.plain() && scope == 0 && !(translated && REAL.contains(kind))
        });
        Ok(all)
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<String> {
    match *args {
        ["agree"] => agree(),
        ["untraced"] => untraced(),
        ["socket"] => socket(),
        // What this program starts itself as, to be another user.
        ["one", program, setting, scope] => {
            let done = one(program, &SETTINGS[setting.parse::<usize>()?], scope.parse()?, None)?;
            Ok(format!("{} {} {}", done.crashes, done.dumps, done.refusals))
        }
        _ => bail!("usage: ways agree | socket | untraced"),
    }
}

/// What has been seen to be as it must.
#[derive(Default)]
struct Done {
    crashes: usize,
    dumps: usize,
    refusals: usize,
}

impl Done {
    fn add(&mut self, other: &Self) {
        self.crashes += other.crashes;
        self.dumps += other.dumps;
        self.refusals += other.refusals;
    }
}

/// Under every scope but the last.
fn agree() -> Result<String> {
    set_up()?;
    let mut done = Done::default();
    let scopes = if yama() { &[0, 1, 2][..] } else { &[0] };
    for scope in scopes {
        set_scope(*scope)?;
        done.add(&all(GUESTS[0], *scope)?);
    }
    set_scope(0)?;
    let mut also = "";
    if Path::new(GUESTS[1]).exists() {
        done.add(&all(GUESTS[1], 0)?);
        also = ", i386 programs under scope 0";
    }
    let names: Vec<_> = SETTINGS.iter().map(|setting| setting.name).collect();
    let yama = if yama() { "Yama's scopes 0, 1, 2" } else { "no Yama" };
    Ok(format!("note: {yama}{also}: {}; {}", say(&done), names.join("; ")))
}

/// Under the last scope: nobody traces, and the record needs nobody to.
fn untraced() -> Result<String> {
    if !yama() {
        return Ok("note: no Yama, and so no scope 3".to_owned());
    }
    set_up()?;
    set_scope(3)?;
    Ok(format!("note: Yama's scope 3: {}", say(&all(GUESTS[0], 3)?)))
}

/// Cores go to a socket, which is outside of every guest's root: without a request and with one.
fn socket() -> Result<String> {
    let kernel = release()?;
    if kernel < (6, 16) {
        return Ok("note: cores go to no sockets before Linux 6.16".to_owned());
    }
    set_up()?;
    // With a request, the kernel waits by itself until the core has been taken.
    fs::write("/proc/sys/kernel/core_pipe_limit", "0")?;
    set_scope(LESS)?;
    let (mut done, mut ways) = (Done::default(), 0);
    for (pattern, since) in [("@", (6, 16)), ("@@", (6, 17))] {
        if kernel < since {
            continue;
        }
        fs::write("/proc/sys/kernel/core_pattern", format!("{pattern}{SOCKET}"))?;
        done.add(&received().with_context(|| format!("{pattern}{SOCKET}"))?);
        ways += 1;
    }
    forged()?;
    set_scope(0)?;
    fs::write("/proc/sys/kernel/core_pattern", "core")?;
    Ok(format!("note: cores by {ways} kinds of sockets: {}", say(&done)))
}

/// Crashes whose cores are received: every setting where root looks and there is a core.
fn received() -> Result<Done> {
    let receiver = Receiver::bind(Path::new(SOCKET))?;
    let cores = tempfile::tempdir()?;
    let settings = || SETTINGS.iter().filter(|setting| setting.tracer == Tracer::Root && setting.core);
    let mut count = 0;
    for setting in settings() {
        count += setting.kinds(LESS, GUESTS[0])?.iter().filter(|(kind, _)| expected(kind).contains(&1)).count();
    }
    let mut done = Done::default();
    thread::scope(|scope| -> Result<()> {
        let receiving = scope.spawn(|| -> Result<()> {
            for _ in 0..count {
                let core = receiver.receive(cores.path(), Limits::default())?;
                ensure!(core.cut.is_none(), "{core:?}");
            }
            Ok(())
        });
        let crashed = settings().try_for_each(|setting| -> Result<()> {
            done.add(&one(GUESTS[0], setting, LESS, Some(cores.path())).with_context(|| setting.name)?);
            Ok(())
        });
        if crashed.is_err() {
            // The receiver waits for more: that nobody crashed here is an error to it.
            drop(UnixStream::connect(SOCKET)?);
        }
        let received = receiving.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?;
        crashed.and(received)
    })?;
    Ok(done)
}

/// Somebody who has not crashed, and sends a core.
fn forged() -> Result<()> {
    let receiver = Receiver::bind(Path::new(SOCKET))?;
    let dir = tempfile::tempdir()?;
    let mut forger = UnixStream::connect(SOCKET)?;
    forger.write_all(b"\x7fELF")?;
    match receiver.receive(dir.path(), Limits::default()) {
        Err(NotReceived::Forged(pid)) if pid == std::process::id() => Ok(()),
        other => bail!("a forged core: {other:?}"),
    }
}

/// The kernel's version.
fn release() -> Result<(u32, u32)> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let mut next = || numbers.next().and_then(Result::ok).with_context(|| text.clone());
    Ok((next()?, next()?))
}

fn say(done: &Done) -> String {
    format!(
        "{} crashes, {} dumps that agree, {} refusals to trace that say why",
        done.crashes, done.dumps, done.refusals
    )
}

fn yama() -> bool {
    Path::new(SCOPE).exists()
}

fn set_scope(scope: usize) -> Result<()> {
    if yama() {
        fs::write(SCOPE, scope.to_string()).context(SCOPE)?;
    }
    Ok(())
}

/// Cores go to files, and there is a folder to be a root.
fn set_up() -> Result<()> {
    fs::write("/proc/sys/kernel/core_pattern", "core")?;
    fs::write("/proc/sys/kernel/core_uses_pid", "0")?;
    if Path::new(JAIL).exists() {
        return Ok(());
    }
    fs::create_dir_all(format!("{JAIL}/proc"))?;
    everybody(Path::new(JAIL))?;
    for program in GUESTS.iter().filter(|program| Path::new(program).exists()) {
        fs::copy(program, format!("{JAIL}{program}"))?;
    }
    let target = std::ffi::CString::new(format!("{JAIL}/proc"))?;
    let proc = c"proc".as_ptr();
    // SAFETY: the strings end in NUL; proc takes no data.
    let mounted = unsafe { libc::mount(proc, target.as_ptr(), proc, 0, std::ptr::null()) };
    ensure!(mounted == 0, "{JAIL}/proc: {}", io::Error::last_os_error());
    Ok(())
}

/// Lets everybody write in a folder.
fn everybody(dir: &Path) -> Result<()> {
    Ok(fs::set_permissions(dir, fs::Permissions::from_mode(0o777))?)
}

fn all(program: &str, scope: usize) -> Result<Done> {
    let mut done = Done::default();
    for (i, setting) in SETTINGS.iter().enumerate() {
        let root = setting.tracer == Tracer::Root;
        let one = if root { one(program, setting, scope, None) } else { as_nobody(program, i, scope) };
        done.add(&one.with_context(|| format!("{program}, {}, scope {scope}", setting.name))?);
    }
    Ok(done)
}

/// Has this program look at a setting as somebody else.
fn as_nobody(program: &str, setting: usize, scope: usize) -> Result<Done> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["one", program, &setting.to_string(), &scope.to_string()]).uid(NOBODY).gid(NOBODY);
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let numbers: Vec<usize> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [crashes, dumps, refusals] = numbers[..] else { bail!("{text}") };
    Ok(Done { crashes, dumps, refusals })
}

/// Shows a setting's crashes; `cores` is where their cores are put if not where they happen.
fn one(program: &str, setting: &Setting, scope: usize, cores: Option<&Path>) -> Result<Done> {
    let kinds = setting.kinds(scope, program)?;
    let mut done = Done { crashes: kinds.len(), ..Done::default() };
    for (kind, signal) in &kinds {
        let crash = crash(program, setting, kind, cores)?;
        done.add(&judge(setting, scope, kind, signal, &crash).with_context(|| kind.clone())?);
    }
    Ok(done)
}

fn judge(setting: &Setting, scope: usize, kind: &str, signal: &str, crash: &Crash) -> Result<Done> {
    let refused = setting.refused[scope];
    let possible = |way: &&usize| match way {
        1 => setting.core,
        2 => refused.is_empty(),
        _ => true,
    };
    let ways: Vec<usize> = expected(kind).iter().filter(possible).copied().collect();
    let dumps = check(crash, kind, signal, &ways)?;
    ensure!(dumps == ways.len(), "{dumps} dumps of {ways:?}");
    ensure!(crash.ended.contains(&format!("signal {signal}")), "it ended so: {}", crash.ended);
    if ways.contains(&0) {
        ensure!(Record::decode(&crash.record).is_some_and(|record| record.complete), "the record is not whole");
    }
    match &crash.ways[2] {
        Err(why) if !refused.is_empty() => {
            ensure!(why.contains("cannot be traced") && why.contains(refused), "no `{refused}` in: {why}");
            Ok(Done { dumps, refusals: 1, ..Done::default() })
        }
        _ => Ok(Done { dumps, ..Done::default() }),
    }
}

fn crash(program: &str, setting: &Setting, kind: &str, cores: Option<&Path>) -> Result<Crash> {
    let mut command = Command::new(program);
    command.arg("crash").arg(kind).args(setting.options);
    if setting.tracer == Tracer::Stranger {
        // SAFETY: the hook makes one system call, and another to end.
        unsafe { command.pre_exec(leave) };
    }
    if setting.chroot {
        // SAFETY: the hook makes two system calls.
        unsafe { command.pre_exec(enter_jail) };
        let jail = Path::new(JAIL);
        return Running::start_in(command, jail)?.cores_in(cores.unwrap_or(jail)).crash();
    }
    let dir = tempfile::tempdir()?;
    everybody(dir.path())?;
    Running::start_in(command, dir.path())?.cores_in(cores.unwrap_or(dir.path())).crash()
}

/// Goes on as a child whose parent is gone: whoever started this is no ancestor of it then.
fn leave() -> io::Result<()> {
    // SAFETY: the child goes on to execute a program; the parent ends at once.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(()),
        // SAFETY: ends the process.
        _ => unsafe { libc::_exit(0) },
    }
}

/// Makes the folder where this is the root.
fn enter_jail() -> io::Result<()> {
    // SAFETY: strings that end in NUL.
    let done = unsafe { libc::chroot(c".".as_ptr()) == 0 && libc::chdir(c"/".as_ptr()) == 0 };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}
