//! Texts that are policies, and texts that are not.

use ascetic::abi::ROW_ALLOW;
use ascetic::direct::DIRECT;
use ascetic::policy::{FAMILIES, LIST, Policy, ROOTS, Rights};
use ascetic::sys::{PROT_EXEC, PROT_READ, PROT_WRITE, Sysno};

use crate::names::{FAMILIES as FAMILY_NAMES, IOCTLS, LEVELS, OPTIONS, POINTERS, errnos};
use crate::text::ARCH;
use crate::{Error, Mistake, Text};

const EXAMPLE: &str = include_str!("../examples/policy.toml");

fn mistakes(source: &str) -> Vec<Mistake> {
    match Text::parse("p", source) {
        Err(Error::Wrong(mistakes)) => mistakes,
        other => panic!("{source}\nis {other:?}"),
    }
}

fn good<'a>(source: &str) -> Text<'a> {
    Text::parse("p", source).unwrap_or_else(|error| panic!("{source}\n{error}"))
}

#[test]
fn the_example_says_everything() {
    let text = good(&EXAMPLE.replace("x86_64", ARCH));
    let policy = text.policy();
    let row = |call: Sysno| policy.rows()[call as usize];
    for call in [Sysno::getppid, Sysno::nanosleep, Sysno::read, Sysno::write, Sysno::futex, Sysno::clock_gettime] {
        assert_ne!(row(call) & ROW_ALLOW, 0, "{}", call.name());
    }
    let refused = [Sysno::clone3, Sysno::ptrace, Sysno::getpid, Sysno::openat2].map(|call| policy.errno(call as u32));
    assert_eq!(refused, [38, 13, 1, 38]);
    assert_eq!(policy.errno(u32::MAX), 1);

    let roots: Vec<_> =
        policy.roots().map(|(_, root)| (root.path.to_str().unwrap(), root.rights, root.exact)).collect();
    let all = Rights::READ.and(Rights::WRITE).and(Rights::CREATE);
    assert_eq!(
        roots,
        [
            ("/usr/share", Rights::READ, false),
            ("/var/cache/example", all, false),
            ("/etc/localtime", Rights::READ, true)
        ]
    );
    assert!(policy.allows_locks_and_flags());
    assert!(!policy.follows_links() && policy.maps() && policy.has_signals());
    assert!(policy.allows_protection(PROT_READ | PROT_EXEC, false));
    assert!(!policy.allows_protection(PROT_WRITE | PROT_EXEC, false));

    let addresses = |family| policy.family_of(family).map(|family| family.addresses.to_vec());
    assert_eq!(addresses(1), Some(vec![&b"\x01\0/run/example.sock\0"[..], b"\x01\0\0example/"]));
    let inet: [&[u8]; 3] = [&[2, 0, 0, 80, 127, 0, 0, 1], &[2, 0, 1, 187, 10], &[2, 0, 0, 53]];
    assert_eq!(addresses(2), Some(inet.to_vec()));
    let loopback = [&[10, 0, 0, 80][..], &[0; 19], &[1]].concat();
    assert_eq!(addresses(10), Some(vec![&loopback[..]]));
    assert_eq!(addresses(16), Some(vec![&[16, 0][..]]));
    assert!(policy.allows_protocol(16, 2, 15) && !policy.allows_protocol(16, 2, 9) && policy.listens());
    assert_eq!(addresses(40), None);

    assert!(policy.allows_option(1, 2) && policy.allows_option(6, 1) && policy.allows_option(41, 26));
    assert!(!policy.allows_option(1, 1) && !policy.allows_option(2, 1));
    assert!([0x5413, 0x541b, 0x5401].into_iter().all(|number| policy.allows_ioctl(number)));
    assert!(!policy.allows_ioctl(0x5412));
    let limits = policy.limits_of();
    assert_eq!((limits.threads, limits.mapped, limits.descriptors, limits.calls), (4, 64 << 20, 64, 10_000));
}

#[test]
fn the_example_has_every_key() {
    let unknown = mistakes("?").len();
    assert_eq!(unknown, 1);
    let message = mistakes("nothing_like_it = 1").remove(0).what;
    let keys = message.strip_prefix("unknown key; known are ").expect("it lists them");
    for key in keys.split(", ") {
        let there = [format!("\n{key} = "), format!("\n[{key}]"), format!("\n[[{key}]]")];
        assert!(there.iter().any(|line| EXAMPLE.contains(line)), "{key} is not in the example");
    }
}

#[test]
fn an_empty_text_is_the_policy_that_allows_nothing() {
    let text = good("");
    let (read, new) = (text.policy(), Policy::new());
    assert_eq!(format!("{read:?}"), format!("{new:?}"));
}

#[test]
fn the_policy_can_be_had_twice() {
    let text = good("sockets.inet = ['*:1']");
    let (a, b) = (text.policy(), text.policy());
    assert_eq!(a.family_of(2).unwrap().addresses, b.family_of(2).unwrap().addresses);
}

#[test]
fn the_summary_tells_every_subject() {
    let shown = good(&EXAMPLE.replace("x86_64", ARCH)).to_string();
    for line in [
        "calls that nothing allows: EPERM",
        "but EACCES: ptrace",
        "folder \"/var/cache/example\": read, write, create",
        "file \"/etc/localtime\": read",
        "symbolic links in folders: not followed",
        "locks and flags of open files: changed",
        "memory: map, unmap, protect, executable or writable",
        "sockets of unix: /run/example.sock, @example/*",
        "sockets of netlink: hex:1000",
        "sockets of netlink: protocol 15, too",
        "sockets: listen",
        "socket option: IPPROTO_IPV6, IPV6_V6ONLY",
        "ioctl: TCGETS",
        "signals: ",
        "threads: 4",
        "bytes mapped: 67108864",
    ] {
        assert!(shown.contains(line), "no `{line}` in\n{shown}");
    }
}

#[test]
fn direct_calls_are_those_of_the_list() {
    for call in Sysno::iter() {
        let source = format!("direct = [\"{}\"]", call.name());
        if DIRECT.iter().any(|row| row.call == call) {
            let text = good(&source);
            assert_ne!(text.policy().rows()[call as usize] & ROW_ALLOW, 0, "{source}");
        } else {
            let error = Policy::new().try_direct(call).expect_err("it is not listed");
            let mistake = mistakes(&source).remove(0);
            assert_eq!((mistake.line, mistake.column, mistake.what), (1, 11, error.to_string()));
        }
    }
}

#[test]
fn every_call_and_every_errno_can_be_refused_by_name() {
    for call in Sysno::iter() {
        let text = good(&format!("refuse.{} = 'EPERM'", call.name()));
        assert_eq!(text.policy().errno(call as u32), libc::EPERM, "{}", call.name());
    }
    for (name, number) in errnos() {
        let text = good(&format!("default_errno = '{name}'"));
        assert_eq!(text.policy().errno(u32::MAX), number as i32, "{name}");
    }
}

#[test]
fn an_ordinary_program_has_its_calls_but_for_those_that_are_refused() {
    let text = good("ordinary = true\nrefuse.getrandom = 'EPERM'");
    let (policy, expected) = (text.policy(), Policy::new().ordinary().refuse(Sysno::getrandom, libc::EPERM as u32));
    assert_eq!(policy.rows(), expected.rows());
    assert_ne!(policy.rows(), Policy::new().ordinary().rows());
}

#[test]
fn what_fits_is_taken_and_one_more_is_not() {
    let list = |count: usize, item: fn(usize) -> String| (0..count).map(item).collect::<Vec<_>>().join(", ");
    let roots = |count: usize| {
        let root = |i: usize| format!("[[{}]]\npath = '/{i}'\nrights = []\n", ["root", "file"][i % 2]);
        (0..count).map(root).collect::<String>()
    };
    let families = |count: usize| (0..count).map(|i| format!("sockets.{} = []\n", 20 + i)).collect::<String>();
    let options = |count| format!("sockets.1 = []\nsocket_options = [{}]", list(count, |i| format!("[7, {i}]")));
    let protocols =
        |count| format!("sockets.1 = []\nsocket_protocols = [{}]", list(count, |i| format!("['unix', {i}]")));
    let ioctls = |count| format!("ioctls = [{}]", list(count, |i| i.to_string()));
    for (most, source) in [
        (ROOTS, &roots as &dyn Fn(usize) -> String),
        (FAMILIES, &families),
        (LIST, &options),
        (LIST, &ioctls),
        (LIST, &protocols),
    ] {
        good(&source(most)).policy();
        let found = mistakes(&source(most + 1));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].what.starts_with("one too many: a policy has"), "{found:?}");
    }
    good("limits.threads = 256").policy();
}

#[test]
fn addresses_are_the_bytes_that_they_mean() {
    let link_local = [&[10, 0, 0, 80, 0, 0, 0, 0, 0xfe, 0x80][..], &[0; 13], &[1, 2, 0, 0, 0]].concat();
    let any6 = [10, 0, 0, 80, 0, 0, 0, 0];
    let cases: &[(u16, &str, &str, &[u8])] = &[
        (1, "unix", "*", b"\x01\0"),
        (1, "unix", "@*", b"\x01\0\0"),
        (1, "unix", "hex:0100 2f", b"\x01\0/"),
        (2, "inet", "*", &[2, 0]),
        (2, "inet", "0.0.0.0:0", &[2, 0, 0, 0, 0, 0, 0, 0]),
        (2, "inet", "10.1.2.0/24:65535", &[2, 0, 255, 255, 10, 1, 2]),
        (2, "inet", "0.0.0.0/0:80", &[2, 0, 0, 80]),
        (2, "inet", "1.2.3.4/32:80", &[2, 0, 0, 80, 1, 2, 3, 4]),
        (10, "inet6", "*:80", &[10, 0, 0, 80]),
        (10, "inet6", "[::/0]:80", &any6),
        (10, "inet6", "[fd00::/8]:80", &[10, 0, 0, 80, 0, 0, 0, 0, 0xfd]),
        (10, "inet6", "[fe80::1%2]:80", &link_local),
        (40, "vsock", "*", &[40, 0]),
        (99, "99", "hex:63007f", &[99, 0, 0x7f]),
    ];
    for (family, name, written, bytes) in cases {
        let text = good(&format!("sockets.{name} = ['{written}']"));
        assert_eq!(text.policy().family_of(*family).unwrap().addresses, [*bytes], "{written}");
    }
}

/// A text, where its only mistake is, and a part of the message.
const BAD: &[(&str, usize, usize, &str)] = &[
    // The text itself.
    ("direct = [", 1, 11, "unclosed array, expected `]`"),
    ("memory = true\nmemory = true", 2, 1, "duplicate key"),
    ("[limits]\nthreads = 1\n[limits]", 3, 2, "duplicate key"),
    ("refuse = { ptrace = 1, ptrace = 2 }", 1, 24, "duplicate key"),
    ("memory = maybe", 1, 10, "`maybe`"),
    // Keys.
    ("\nmemry = true", 2, 1, "`memry`: unknown key; known are default_errno, ordinary"),
    ("memry = true", 1, 1, "did you mean `memory`?"),
    ("[limits]\nthread = 4", 2, 1, "did you mean `threads`?"),
    ("[[root]]\npath = '/a'\nrights = []\nexact = true", 4, 1, "unknown key; known are path, rights"),
    // Types.
    ("direct = 'getppid'", 1, 10, "expected an array of calls, found a string"),
    ("direct = [39]", 1, 11, "`39`: expected a call's name, found an integer"),
    ("memory = 1", 1, 10, "expected true or false, found an integer"),
    ("limits = []", 1, 10, "expected a table, found an array"),
    ("limits.threads = 1.5", 1, 18, "expected a number, found a float"),
    ("root = 1", 1, 8, "expected tables that begin with [[root]], found an integer"),
    ("sockets.inet = true", 1, 16, "expected an array of addresses, found a boolean"),
    ("sockets.inet = [80]", 1, 17, "expected an address, found an integer"),
    ("ioctls = [[1]]", 1, 11, "expected an ioctl's name or number, found an array"),
    ("default_errno = true", 1, 17, "expected an errno's name or number"),
    // Architecture.
    ("arch = 'mips'", 1, 8, "no architecture"),
    ("arch = 'x86_46'", 1, 8, "did you mean `x86_64`?"),
    // Errnos.
    ("default_errno = 'EPREM'", 1, 17, "`'EPREM'`: no errno; did you mean `EPERM`?"),
    ("default_errno = 0", 1, 17, "expected a number from 1 to 4095"),
    ("default_errno = 4096", 1, 17, "expected a number from 1 to 4095"),
    ("default_errno = -1", 1, 17, "expected a number from 1 to 4095"),
    ("refuse.clone3 = 'enosys'", 1, 17, "did you mean `ENOSYS`?"),
    // Calls.
    ("direct = ['getppid',\n  'getpppid']", 2, 3, "`'getpppid'`: no system call of"),
    ("direct = ['getpppid']", 1, 11, "did you mean `getppid`?"),
    ("direct = ['kill']", 1, 11, "`kill` may not be a direct call: it can create, stop or signal tasks"),
    ("direct = ['mprotect']", 1, 11, "it changes mappings"),
    ("direct = ['acct']", 1, 11, "it is not on the direct allow list"),
    ("direct = ['dup', 'dup']", 1, 18, "is there twice"),
    ("refuse.clone4 = 38", 1, 8, "`clone4`: no system call of"),
    ("refuse.clone4 = 38", 1, 8, "did you mean `clone"),
    ("direct = ['dup']\n[refuse]\ndup = 1", 3, 1, "`dup`: is direct, and cannot be refused, too"),
    // Roots.
    ("[[root]]\nrights = []", 1, 1, "has no path"),
    ("[[file]]\npath = '/a'", 1, 1, "has no rights"),
    ("[[root]]\npath = 'a'\nrights = []", 2, 8, "`'a'`: the path of a root must begin with /"),
    ("[[root]]\npath = '/a/../b'\nrights = []", 2, 8, "must not have `.`, `..`"),
    ("[[root]]\npath = '/a/'\nrights = []", 2, 8, "must not have"),
    ("[[file]]\npath = '/'\nrights = []", 2, 8, "the root folder is no file"),
    ("[[root]]\npath = \"/a\\u0000\"\nrights = []", 2, 8, "a path has no zero byte"),
    ("[[root]]\npath = '/a'\nrights = ['raed']", 3, 11, "no right: there are read, write, create and execute"),
    ("[[root]]\npath = '/a'\nrights = ['raed']", 3, 11, "did you mean `read`?"),
    ("[[root]]\npath = '/a'\nrights = 'read'", 3, 10, "expected an array of rights"),
    ("[[root]]\npath = '/a'\nrights = ['read', 'read']", 3, 19, "is there twice"),
    ("[[root]]\npath = '/a'\nrights = []\n[[file]]\npath = '/a'\nrights = []", 5, 8, "is there twice"),
    (
        "[[root]]\npath = '/a/b'\nrights = []\n[[root]]\npath = '/a'\nrights = ['read']",
        5,
        8,
        "the root `/a/b` is in the root `/a`: it must allow what that does",
    ),
    (
        "[[root]]\npath = '/a'\nrights = ['create']\n[[file]]\npath = '/a/b'\nrights = ['create', 'read']",
        5,
        8,
        "the root `/a/b` is in the root `/a`",
    ),
    (
        "[[root]]\npath = '/run'\nrights = ['create']\n[sockets]\nunix = ['/var/s', '/run/s']",
        5,
        19,
        "the socket address `/run/s` is in the root `/run`, which lets names be created",
    ),
    // What has no effect.
    ("no_links = true", 1, 1, "has no effect without [[root]] or [[file]]"),
    ("locks_and_flags = true", 1, 1, "has no effect without [[root]] or [[file]]"),
    ("executable = true", 1, 1, "has no effect without memory = true"),
    ("memory = false\nw_xor_x = true", 2, 1, "has no effect without memory = true"),
    ("socket_options = [[1, 4]]", 1, 1, "has no effect without [sockets]"),
    ("socket_options = [[1, 4]]\n[sockets]", 1, 1, "has no effect without [sockets]"),
    ("[[root]]\npath = '/a'\nrights = ['execute']", 3, 11, "has no effect without memory = true"),
    (
        "memory = true\n[[root]]\npath = '/a'\nrights = ['execute']\n[[file]]\npath = '/b'\nrights = ['read']",
        4,
        11,
        "has no effect unless every root and file has it",
    ),
    // Sockets.
    ("sockets.ient = []", 1, 9, "did you mean `inet`?"),
    ("sockets.inet = []\nsockets.2 = []", 1, 9, "as a name and as a number"),
    ("sockets.65536 = []", 1, 9, "no address family"),
    ("sockets.inet = ['127.0.0.1']", 1, 17, "needs a port"),
    ("sockets.inet = ['127.0.0.1:*']", 1, 17, "a host at every port is no prefix of bytes"),
    ("sockets.inet = ['*:*']", 1, 17, "did you mean `*`?"),
    ("sockets.inet = ['127.0.0.1:80', '127.0.0.1:80']", 1, 33, "is there twice"),
    ("sockets.inet = ['127.0.0.1:65536']", 1, 17, "a port is a number up to 65535"),
    ("sockets.inet = ['127.0.0.1:080']", 1, 17, "a port is a number up to 65535"),
    ("sockets.inet = ['localhost:80']", 1, 17, "names are not looked up"),
    ("sockets.inet = ['10.0.0.0/9:80']", 1, 17, "no multiple of 8"),
    ("sockets.inet = ['10.0.0.0/40:80']", 1, 17, "a prefix has 0 to 32 bits"),
    ("sockets.inet = ['10.0.0.1/8:80']", 1, 17, "did you mean `10.0.0.0/8`?"),
    ("sockets.inet = ['[::1]:80']", 1, 17, "no IPv4 address"),
    ("sockets.inet6 = ['::1:80']", 1, 18, "an IPv6 address is in brackets"),
    ("sockets.inet6 = ['[::1]']", 1, 18, "needs a port"),
    ("sockets.inet6 = ['[::g]:80']", 1, 18, "no IPv6 address"),
    ("sockets.inet6 = ['[fd00::1/8]:80']", 1, 18, "did you mean `fd00::/8`?"),
    ("sockets.inet6 = ['[::1%2]:80']", 1, 18, "one link-local address"),
    ("sockets.inet6 = ['[fe80::1%eth0]:80']", 1, 18, "the number of an interface"),
    ("sockets.unix = ['@name']", 1, 17, "did you mean `@name*`?"),
    ("sockets.unix = ['run/socket']", 1, 17, "an address is an absolute path"),
    ("sockets.unix = ['/run/*']", 1, 17, "a path cannot have `*`"),
    ("sockets.netlink = ['0']", 1, 20, "addresses of this family are written as `hex:`"),
    ("sockets.netlink = ['hex:0200']", 1, 20, "begins with the bytes 10 00"),
    ("sockets.netlink = ['hex:']", 1, 20, "begins with the bytes 10 00"),
    ("sockets.netlink = ['hex:100']", 1, 20, "pairs of hexadecimal digits"),
    ("sockets.netlink = ['hex:+1+2']", 1, 20, "pairs of hexadecimal digits"),
    // Protocols.
    ("listen = true", 1, 1, "has no effect without [sockets]"),
    ("socket_protocols = [[1, 4]]", 1, 1, "has no effect without [sockets]"),
    ("socket_protocols = [['inet', 1]]\nsockets.unix = []", 1, 22, "[sockets] does not have the family"),
    ("socket_protocols = [['ient', 1]]\nsockets.inet = []", 1, 22, "did you mean `inet`?"),
    ("socket_protocols = [['inet']]\nsockets.inet = []", 1, 21, "expected two elements"),
    ("socket_protocols = [['inet', -1]]\nsockets.inet = []", 1, 30, "expected a number from 0"),
    // Options and ioctls.
    ("sockets.1 = []\nsocket_options = ['SO_ERROR']", 2, 19, "expected a pair of level and name, found a string"),
    ("sockets.1 = []\nsocket_options = [['SOL_SOCKET']]", 2, 19, "expected two elements"),
    ("sockets.1 = []\nsocket_options = [['SOL_SOKET', 1]]", 2, 20, "did you mean `SOL_SOCKET`?"),
    ("sockets.1 = []\nsocket_options = [['SOL_SOCKET', 'SO_REUSEADR']]", 2, 34, "did you mean `SO_REUSEADDR`?"),
    (
        "sockets.1 = []\nsocket_options = [['SOL_SOCKET', 'TCP_NODELAY']]",
        2,
        34,
        "is an option of the level IPPROTO_TCP",
    ),
    ("sockets.1 = []\nsocket_options = [['SOL_SOCKET', 'SO_ERROR'], [1, 4]]", 2, 47, "is there twice"),
    ("sockets.1 = []\nsocket_options = [['SOL_SOCKET', 'SO_ATTACH_FILTER']]", 2, 34, "has pointers"),
    ("sockets.1 = []\nsocket_options = [[6, 35]]", 2, 23, "`35`: the option's value has pointers"),
    ("sockets.1 = []\nsocket_options = [[1, -1]]", 2, 23, "expected a number from 0 to 4294967295"),
    ("ioctls = ['TIOCGWINSIZE']", 1, 11, "did you mean `TIOCGWINSZ`?"),
    ("ioctls = ['TIOCSTI']", 1, 11, "no ioctl that is known by name"),
    ("ioctls = ['FIONREAD', 0x541B]", 1, 23, "`0x541B`: is there twice"),
    ("ioctls = [0x100000000]", 1, 11, "expected a number from 0 to 4294967295"),
    // Limits.
    ("limits.threads = 0", 1, 18, "expected a number from 1 to 256"),
    ("limits.threads = 257", 1, 18, "expected a number from 1 to 256"),
    ("limits.calls = 0", 1, 16, "expected a number from 1 to"),
    ("limits.descriptors = 99999999999999999999", 1, 22, "expected a number from 1 to"),
    ("limits.mapped = '64MB'", 1, 17, "did you mean `64MiB`?"),
    ("limits.mapped = '64 m'", 1, 17, "did you mean `64MiB`?"),
    ("limits.mapped = 'MiB'", 1, 17, "expected bytes"),
    ("limits.mapped = '0KiB'", 1, 17, "expected 1 to"),
    ("limits.mapped = '99999999TiB'", 1, 17, "expected 1 to"),
    ("limits.mapped = 0", 1, 17, "expected a number from 1 to"),
];

#[test]
fn mistakes_are_told_with_their_places() {
    let mut other = String::new();
    for (source, line, column, fragment) in BAD {
        let found = mistakes(source);
        let message = found[0].to_string();
        if found.len() > 1 || !message.starts_with(&format!("p:{line}:{column}: ")) || !message.contains(fragment) {
            other += &format!("{source}\n    expected p:{line}:{column}: {fragment}\n    found {found:?}\n");
        }
    }
    assert!(other.is_empty(), "{other}");
}

#[test]
fn all_mistakes_are_told_in_their_order() {
    let found = mistakes("signals = 1\ndirect = ['kill', 'fork']\n[limits]\nthreads = 0\n[[root]]\npath = 'a'\n");
    let places: Vec<_> = found.iter().map(|mistake| (mistake.line, mistake.column)).collect();
    assert_eq!(places, [(1, 11), (2, 11), (2, 19), (4, 11), (5, 1), (6, 8)]);
}

#[test]
fn columns_are_characters_and_quotes_are_short_and_plain() {
    let found = mistakes("direct = ['é', 'kill']").pop().unwrap();
    assert_eq!(found.column, 16);
    let long = mistakes(&format!("direct = ['{}']", "x".repeat(200))).remove(0);
    assert_eq!(long.text.chars().count(), 61);
    let escape = mistakes("direct = ['\u{1b}[2J']").remove(0).to_string();
    assert!(!escape.contains('\u{1b}'), "{escape:?}");
}

#[test]
fn paths_of_sockets_are_as_long_as_the_kernel_takes() {
    for (len, name) in [(107, "/"), (108, "@")] {
        good(&format!("sockets.unix = ['{name}{}{}']", "a".repeat(len - 1), if name == "@" { "*" } else { "" }));
        let long = format!("sockets.unix = ['{name}{}{}']", "a".repeat(len), if name == "@" { "*" } else { "" });
        assert!(mistakes(&long)[0].what.contains("107 bytes at most"));
    }
    assert!(mistakes(&format!("sockets.1 = ['hex:0100{}']", "00".repeat(127)))[0].what.contains("128 bytes"));
}

/// The names in a list with libc's values.
macro_rules! libc {
    ($($name:ident)*) => { [$((stringify!($name), libc::$name as u32)),*] };
}

#[test]
fn the_numbers_agree_with_a_second_table() {
    let options = libc!(SO_REUSEADDR SO_TYPE SO_ERROR SO_BROADCAST SO_SNDBUF SO_RCVBUF SO_KEEPALIVE SO_OOBINLINE SO_PRIORITY
        SO_LINGER SO_REUSEPORT SO_PASSCRED SO_PEERCRED SO_RCVLOWAT SO_SNDLOWAT SO_RCVTIMEO SO_SNDTIMEO SO_TIMESTAMP
        SO_ACCEPTCONN SO_PROTOCOL SO_DOMAIN SO_INCOMING_CPU IP_TOS IP_TTL IP_PKTINFO IP_MTU_DISCOVER IP_RECVERR IP_MTU
        IP_MULTICAST_TTL IP_MULTICAST_LOOP TCP_NODELAY TCP_MAXSEG TCP_CORK TCP_KEEPIDLE TCP_KEEPINTVL TCP_KEEPCNT
        TCP_SYNCNT TCP_DEFER_ACCEPT TCP_INFO TCP_QUICKACK TCP_CONGESTION TCP_USER_TIMEOUT TCP_FASTOPEN TCP_NOTSENT_LOWAT
        UDP_SEGMENT UDP_GRO IPV6_UNICAST_HOPS IPV6_V6ONLY IPV6_TCLASS);
    assert_eq!(OPTIONS.map(|(_, name, number)| (name, number)), options);
    let pointers = libc!(SO_ATTACH_FILTER SO_GET_FILTER SO_ATTACH_REUSEPORT_CBPF TCP_ZEROCOPY_RECEIVE);
    assert_eq!(POINTERS.map(|(_, name, number)| (name, number)), pointers);
    let levels = libc!(SOL_SOCKET IPPROTO_IP SOL_IP IPPROTO_TCP SOL_TCP IPPROTO_UDP SOL_UDP IPPROTO_IPV6 SOL_IPV6
        SOL_NETLINK);
    assert_eq!(LEVELS, levels);
    let ioctls = libc!(TCGETS TCSETS TCSETSW TCSETSF TCSBRK TCXONC TCFLSH TIOCEXCL TIOCNXCL TIOCGPGRP TIOCOUTQ TIOCGWINSZ
        TIOCSWINSZ FIONREAD TIOCINQ FIONBIO TIOCGETD TIOCGSID TIOCGPTN TIOCSPTLCK FIONCLEX FIOCLEX);
    assert_eq!(IOCTLS, ioctls);
    let families = libc!(AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET AF_VSOCK).map(|(_, number)| number as u16);
    assert_eq!(FAMILY_NAMES.map(|(_, number)| number), families);
    for (name, number) in libc!(EPERM ENOSYS EACCES EWOULDBLOCK ENOTSUP EDEADLOCK ENOTRECOVERABLE) {
        assert!(errnos().any(|known| known == (name, number)), "{name}");
    }
}
