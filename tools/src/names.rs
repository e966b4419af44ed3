//! Names that a text may use for numbers. Those of calls and errnos are the runtime's; the rest is here, and a test holds
//! it against libc.

use ascetic::policy::Rights;
use ascetic::sys::Errno;

/// What may be done below a root.
pub const RIGHTS: [(&str, Rights); 4] =
    [("read", Rights::READ), ("write", Rights::WRITE), ("create", Rights::CREATE), ("execute", Rights::EXECUTE)];

/// Address families. Those without a notation of their own here take addresses as bytes.
pub const FAMILIES: [(&str, u16); 6] =
    [("unix", UNIX), ("inet", INET), ("inet6", INET6), ("netlink", 16), ("packet", 17), ("vsock", 40)];

/// `AF_UNIX`
pub const UNIX: u16 = 1;
/// `AF_INET`
pub const INET: u16 = 2;
/// `AF_INET6`
pub const INET6: u16 = 10;

/// Levels of socket options; the first name of a number is the one that is shown.
pub const LEVELS: [(&str, u32); 10] = [
    ("SOL_SOCKET", SOCKET),
    ("IPPROTO_IP", IP),
    ("SOL_IP", IP),
    ("IPPROTO_TCP", TCP),
    ("SOL_TCP", TCP),
    ("IPPROTO_UDP", UDP),
    ("SOL_UDP", UDP),
    ("IPPROTO_IPV6", IPV6),
    ("SOL_IPV6", IPV6),
    ("SOL_NETLINK", 270),
];

const SOCKET: u32 = 1;
const IP: u32 = 0;
const TCP: u32 = 6;
const UDP: u32 = 17;
const IPV6: u32 = 41;

/// Socket options: level, name, number.
pub const OPTIONS: [(u32, &str, u32); 49] = [
    (SOCKET, "SO_REUSEADDR", 2),
    (SOCKET, "SO_TYPE", 3),
    (SOCKET, "SO_ERROR", 4),
    (SOCKET, "SO_BROADCAST", 6),
    (SOCKET, "SO_SNDBUF", 7),
    (SOCKET, "SO_RCVBUF", 8),
    (SOCKET, "SO_KEEPALIVE", 9),
    (SOCKET, "SO_OOBINLINE", 10),
    (SOCKET, "SO_PRIORITY", 12),
    (SOCKET, "SO_LINGER", 13),
    (SOCKET, "SO_REUSEPORT", 15),
    (SOCKET, "SO_PASSCRED", 16),
    (SOCKET, "SO_PEERCRED", 17),
    (SOCKET, "SO_RCVLOWAT", 18),
    (SOCKET, "SO_SNDLOWAT", 19),
    (SOCKET, "SO_RCVTIMEO", 20),
    (SOCKET, "SO_SNDTIMEO", 21),
    (SOCKET, "SO_TIMESTAMP", 29),
    (SOCKET, "SO_ACCEPTCONN", 30),
    (SOCKET, "SO_PROTOCOL", 38),
    (SOCKET, "SO_DOMAIN", 39),
    (SOCKET, "SO_INCOMING_CPU", 49),
    (IP, "IP_TOS", 1),
    (IP, "IP_TTL", 2),
    (IP, "IP_PKTINFO", 8),
    (IP, "IP_MTU_DISCOVER", 10),
    (IP, "IP_RECVERR", 11),
    (IP, "IP_MTU", 14),
    (IP, "IP_MULTICAST_TTL", 33),
    (IP, "IP_MULTICAST_LOOP", 34),
    (TCP, "TCP_NODELAY", 1),
    (TCP, "TCP_MAXSEG", 2),
    (TCP, "TCP_CORK", 3),
    (TCP, "TCP_KEEPIDLE", 4),
    (TCP, "TCP_KEEPINTVL", 5),
    (TCP, "TCP_KEEPCNT", 6),
    (TCP, "TCP_SYNCNT", 7),
    (TCP, "TCP_DEFER_ACCEPT", 9),
    (TCP, "TCP_INFO", 11),
    (TCP, "TCP_QUICKACK", 12),
    (TCP, "TCP_CONGESTION", 13),
    (TCP, "TCP_USER_TIMEOUT", 18),
    (TCP, "TCP_FASTOPEN", 23),
    (TCP, "TCP_NOTSENT_LOWAT", 25),
    (UDP, "UDP_SEGMENT", 103),
    (UDP, "UDP_GRO", 104),
    (IPV6, "IPV6_UNICAST_HOPS", 16),
    (IPV6, "IPV6_V6ONLY", 26),
    (IPV6, "IPV6_TCLASS", 67),
];

/// Options whose value has pointers, which the broker does not look at: no policy may list them.
pub const POINTERS: [(u32, &str, u32); 4] = [
    (SOCKET, "SO_ATTACH_FILTER", 26),
    (SOCKET, "SO_GET_FILTER", 26),
    (SOCKET, "SO_ATTACH_REUSEPORT_CBPF", 51),
    (TCP, "TCP_ZEROCOPY_RECEIVE", 35),
];

/// `ioctl` numbers. Of two names for one number the first is shown.
pub const IOCTLS: [(&str, u32); 22] = [
    ("TCGETS", 0x5401),
    ("TCSETS", 0x5402),
    ("TCSETSW", 0x5403),
    ("TCSETSF", 0x5404),
    ("TCSBRK", 0x5409),
    ("TCXONC", 0x540a),
    ("TCFLSH", 0x540b),
    ("TIOCEXCL", 0x540c),
    ("TIOCNXCL", 0x540d),
    ("TIOCGPGRP", 0x540f),
    ("TIOCOUTQ", 0x5411),
    ("TIOCGWINSZ", 0x5413),
    ("TIOCSWINSZ", 0x5414),
    ("FIONREAD", 0x541b),
    ("TIOCINQ", 0x541b),
    ("FIONBIO", 0x5421),
    ("TIOCGETD", 0x5424),
    ("TIOCGSID", 0x5429),
    ("TIOCGPTN", 0x8004_5430),
    ("TIOCSPTLCK", 0x4004_5431),
    ("FIONCLEX", 0x5450),
    ("FIOCLEX", 0x5451),
];

/// Errnos that have two names.
const ALIASES: [(&str, Errno); 3] =
    [("EWOULDBLOCK", Errno::EAGAIN), ("EDEADLOCK", Errno::EDEADLK), ("ENOTSUP", Errno::EOPNOTSUPP)];

/// The largest errno.
pub const ERRNO_MAX: u32 = 4095;

/// The errnos that have names.
pub fn errnos() -> impl Iterator<Item = (&'static str, u32)> {
    let named = (1..=ERRNO_MAX).filter_map(|number| Some((Errno::new(number as i32).name()?, number)));
    named.chain(ALIASES.map(|(name, errno)| (name, errno.into_raw() as u32)))
}

/// What a table has under a name.
pub fn find<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

/// The name that a table has for a number.
pub fn name_of<T: PartialEq>(table: &[(&'static str, T)], value: &T) -> Option<&'static str> {
    table.iter().find(|(_, known)| known == value).map(|(name, _)| *name)
}

/// What may have been meant: the closest name, if it is close.
pub fn near<'n>(word: &str, names: impl IntoIterator<Item = &'n str>) -> Option<String> {
    let word = word.to_lowercase();
    let far = (word.chars().count() / 3).clamp(1, 3);
    let distances = names.into_iter().map(|name| (strsim::damerau_levenshtein(&word, &name.to_lowercase()), name));
    let (_, name) = distances.filter(|(distance, _)| *distance <= far).min_by_key(|(distance, _)| *distance)?;
    Some(name.to_owned())
}
