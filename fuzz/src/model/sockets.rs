//! Sockets.

use super::broker::{Arg, Asked, Decided, Want, one, only};

fn address(asked: &Asked<'_>) -> Decided<Arg> {
    let bytes = asked.carried(0)?;
    let listed = |(family, list): &(u16, Vec<Vec<u8>>)| {
        bytes.starts_with(&family.to_le_bytes()) && list.iter().any(|listed| bytes.starts_with(listed))
    };
    if !asked.model.families.iter().any(listed) {
        return Err(libc::EACCES);
    }
    // What the verdict has room for.
    if bytes.len() > ascetic::abi::DATA { Err(libc::ENAMETOOLONG) } else { Ok(Arg::At(bytes)) }
}

fn protocol_allowed(asked: &Asked<'_>, family: u16, kind: usize, protocol: u32) -> bool {
    let internet = family == libc::AF_INET as u16 || family == libc::AF_INET6 as u16;
    let usual = match (internet, kind as i32) {
        (true, libc::SOCK_STREAM) => protocol == 0 || protocol == libc::IPPROTO_TCP as u32,
        (true, libc::SOCK_DGRAM) => protocol == 0 || protocol == libc::IPPROTO_UDP as u32,
        (true, _) => false,
        (false, _) => protocol == 0,
    };
    usual || asked.model.protocols.contains(&(family, protocol))
}

/// Calls on sockets.
pub fn decide(asked: &Asked<'_>) -> Decided<Option<Want>> {
    let [a, b, c, d, e, f] = asked.args;
    let kind = b & 0xf;
    let known_kind =
        [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET].iter().any(|known| *known as usize == kind);
    match asked.name() {
        "socket" => {
            let family = asked.model.families.iter().find(|(family, _)| usize::from(*family) == a);
            let (family, addresses) = family.ok_or(libc::EAFNOSUPPORT)?;
            if !known_kind || addresses.is_empty() {
                return Err(libc::EACCES);
            }
            if !protocol_allowed(asked, *family, kind, c as u32) {
                return Err(libc::EPROTONOSUPPORT);
            }
        }
        "socketpair" => {
            if a != libc::AF_UNIX as usize || !known_kind {
                return Err(libc::EAFNOSUPPORT);
            }
            asked.outside(&[d])?;
        }
        "connect" | "bind" => {
            asked.guests(a)?;
            let args = vec![Arg::Is(a), address(asked)?, Arg::Is(c), Arg::Is(0), Arg::Is(0), Arg::Is(0)];
            return Ok(Some(Want::Script(vec![one(asked.nr, args)])));
        }
        "sendto" => {
            asked.guests(a)?;
            asked.outside(&[b])?;
            let to = if e == 0 { Arg::Is(0) } else { address(asked)? };
            let args = vec![Arg::Is(a), Arg::Is(b), Arg::Is(c), Arg::Is(d), to, Arg::Is(f)];
            return Ok(Some(Want::Script(vec![one(asked.nr, args)])));
        }
        "listen" if !asked.model.listen => return Err(libc::EACCES),
        name @ ("listen" | "recvfrom" | "accept4" | "accept" | "shutdown" | "getsockname" | "getpeername"
        | "setsockopt" | "getsockopt") => {
            asked.guests(a)?;
            asked.outside(&asked.args)?;
            let option = (b as u32, c as u32);
            if name.ends_with("sockopt") && !asked.model.options.contains(&option) {
                return Err(libc::ENOPROTOOPT);
            }
        }
        _ => return Ok(None),
    }
    Ok(Some(only(asked.nr, asked.args)))
}
