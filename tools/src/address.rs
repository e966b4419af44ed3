//! Socket addresses as text.
//!
//! A policy lists an address as the first bytes of its `struct sockaddr_*`. That says less than people write: in both
//! internet families the port comes before the address, so "this host at every port" is no such prefix, and a
//! prefix ends at a byte. What it cannot say exactly is refused, never widened.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::names::{INET, INET6, UNIX};

/// The longest address (`struct sockaddr_storage`).
const LONGEST: usize = 128;
/// The most bytes of `sun_path`.
const SUN_PATH: usize = 108;

/// Why a text is no address, and what may have been meant.
pub type Unsayable = (String, Option<String>);

fn no<T>(why: &str) -> Result<T, Unsayable> {
    Err((why.to_owned(), None))
}

/// The first bytes of the addresses of `family` that `text` means.
pub fn parse(family: u16, text: &str) -> Result<Vec<u8>, Unsayable> {
    let mut bytes = family.to_ne_bytes().to_vec();
    if text == "*" {
        return Ok(bytes);
    }
    if let Some(digits) = text.strip_prefix("hex:") {
        return raw(family, digits);
    }
    match family {
        UNIX => unix(&mut bytes, text)?,
        INET => inet(&mut bytes, text)?,
        INET6 => inet6(&mut bytes, text)?,
        _ => return no("addresses of this family are written as `hex:` and their first bytes, or `*` for all"),
    }
    Ok(bytes)
}

/// Bytes, two digits each, spaces between them.
fn raw(family: u16, digits: &str) -> Result<Vec<u8>, Unsayable> {
    let digits: Vec<u8> = digits.bytes().filter(|byte| *byte != b' ').collect();
    let byte = |pair: &[u8]| match pair {
        [a, b] => Some((char::from(*a).to_digit(16)? << 4 | char::from(*b).to_digit(16)?) as u8),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
    let Some(bytes) = bytes else { return no("bytes are pairs of hexadecimal digits") };
    if bytes.len() > LONGEST {
        return no("no socket address is longer than 128 bytes");
    }
    if !bytes.starts_with(&family.to_ne_bytes()) {
        let [a, b] = family.to_ne_bytes();
        return Err((format!("an address of this family begins with the bytes {a:02x} {b:02x}"), None));
    }
    Ok(bytes)
}

fn unix(bytes: &mut Vec<u8>, text: &str) -> Result<(), Unsayable> {
    if text.contains('\0') {
        return no("a name has no zero byte; use `hex:`");
    }
    if let Some(name) = text.strip_prefix('@') {
        let Some(name) = name.strip_suffix('*') else {
            let why = "an abstract name ends where the guest says, so this would allow all that begin with it";
            return Err((why.to_owned(), Some(format!("{text}*"))));
        };
        if name.len() >= SUN_PATH {
            return no("a name has 107 bytes at most");
        }
        bytes.push(0);
        bytes.extend(name.bytes());
        return Ok(());
    }
    if !text.starts_with('/') {
        return no("an address is an absolute path, `@` and an abstract name with `*` at its end, `hex:` or `*`");
    }
    if text.contains('*') {
        return no("a path cannot have `*`: what the guest puts in its place can have `..`");
    }
    if text.len() >= SUN_PATH {
        return no("a path has 107 bytes at most");
    }
    bytes.extend(text.bytes());
    bytes.push(0);
    Ok(())
}

/// Splits off the port, and adds it. `None` for a host that is `*`.
fn port<'t>(bytes: &mut Vec<u8>, text: &'t str, form: &str) -> Result<Option<&'t str>, Unsayable> {
    let portless =
        "needs a port: it comes before the host in the address, so a host at every port is no prefix of bytes";
    // The colons of an IPv6 address are no separators.
    let at = text.rfind(':').filter(|at| text.get(*at..).is_some_and(|rest| !rest.contains(']')));
    let Some((host, port)) = at.and_then(|at| Some((text.get(..at)?, text.get(at + 1..)?))) else {
        return no(portless);
    };
    if port == "*" {
        return match host {
            "*" => Err(("every host at every port is `*`".to_owned(), Some("*".to_owned()))),
            _ => no(portless),
        };
    }
    let number: Option<u16> = port.parse().ok().filter(|number: &u16| number.to_string() == port);
    let Some(number) = number else { return Err((format!("a port is a number up to 65535: {form}"), None)) };
    bytes.extend(number.to_be_bytes());
    Ok((host != "*").then_some(host))
}

/// The bytes of `host` that a prefix of so many bits keeps; the others must be zero.
fn network(host: &[u8], bits: Option<&str>, written: impl Fn(&[u8]) -> String) -> Result<Vec<u8>, Unsayable> {
    let Some(bits) = bits else { return Ok(host.to_vec()) };
    let number: Option<usize> = bits.parse().ok().filter(|number: &usize| number.to_string() == bits);
    let Some(number) = number.filter(|number| *number <= host.len() * 8) else {
        return Err((format!("a prefix has 0 to {} bits", host.len() * 8), None));
    };
    if number % 8 != 0 {
        return no("a prefix of bytes cannot say a network whose number of bits is no multiple of 8");
    }
    let (kept, rest) = host.split_at(number / 8);
    if rest.iter().any(|byte| *byte != 0) {
        let mut base = kept.to_vec();
        base.resize(host.len(), 0);
        return Err(("bits beyond the prefix are not zero".to_owned(), Some(format!("{}/{bits}", written(&base)))));
    }
    Ok(kept.to_vec())
}

fn split(host: &str, by: char) -> (&str, Option<&str>) {
    match host.split_once(by) {
        Some((host, rest)) => (host, Some(rest)),
        None => (host, None),
    }
}

fn inet(bytes: &mut Vec<u8>, text: &str) -> Result<(), Unsayable> {
    let form = "`127.0.0.1:80`, `10.0.0.0/8:80`, `*:80` or `*`";
    let Some(host) = port(bytes, text, form)? else { return Ok(()) };
    let (host, bits) = split(host, '/');
    let Ok(host) = host.parse::<Ipv4Addr>() else {
        return Err((format!("no IPv4 address, and names are not looked up: {form}"), None));
    };
    let written = |octets: &[u8]| octets.iter().map(ToString::to_string).collect::<Vec<_>>().join(".");
    bytes.extend(network(&host.octets(), bits, written)?);
    Ok(())
}

fn inet6(bytes: &mut Vec<u8>, text: &str) -> Result<(), Unsayable> {
    let form = "`[::1]:80`, `[fd00::/8]:80`, `[fe80::1%2]:80`, `*:80` or `*`";
    let Some(host) = port(bytes, text, form)? else { return Ok(()) };
    let Some(host) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) else {
        return Err((format!("an IPv6 address is in brackets: {form}"), None));
    };
    let (host, scope) = split(host, '%');
    let (host, bits) = split(host, '/');
    let Ok(host) = host.parse::<Ipv6Addr>() else {
        return Err((format!("no IPv6 address, and names are not looked up: {form}"), None));
    };
    bytes.extend([0; 4]); // sin6_flowinfo, which programs leave zero
    let written = |octets: &[u8]| <[u8; 16]>::try_from(octets).map_or(String::new(), |o| Ipv6Addr::from(o).to_string());
    bytes.extend(network(&host.octets(), bits, written)?);
    if let Some(scope) = scope {
        let number: Option<u32> = scope.parse().ok().filter(|number: &u32| number.to_string() == scope);
        match number.filter(|_| bits.is_none() && host.is_unicast_link_local()) {
            Some(number) => bytes.extend(number.to_ne_bytes()),
            None => return no("`%` and the number of an interface follow one link-local address (`fe80::`)"),
        }
    }
    Ok(())
}
