//! Sockets.

use super::{Case, Refusal, refuse};
use crate::sys::{Errno, Sysno};

impl Case<'_, '_, '_> {
    pub(super) fn sockets(&mut self, call: Sysno, args: &[usize; 6]) -> Result<bool, Refusal> {
        const SOCK_TYPE: usize = 0xf;
        const AF_UNIX: usize = 1;
        let [a, b, c, d, e, f] = *args;
        match call {
            Sysno::socket => {
                let family = self.view.policy.family_of(a as u16).filter(|_| a <= usize::from(u16::MAX));
                let family = family.ok_or(refuse(Errno::EAFNOSUPPORT, "the policy has no such address family"))?;
                if !matches!(b & SOCK_TYPE, 1 | 2 | 5) {
                    return Err(refuse(Errno::EACCES, "only stream, datagram and sequenced packet sockets"));
                }
                // It could do without: netlink has the kernel at the other end, a packet socket gets everything.
                if family.addresses.is_empty() {
                    return Err(refuse(Errno::EACCES, "the policy lists no address of this family"));
                }
                if !self.view.policy.allows_protocol(family.family, (b & SOCK_TYPE) as u32, c as u32) {
                    return Err(refuse(Errno::EPROTONOSUPPORT, "the policy does not list this protocol"));
                }
            }
            Sysno::socketpair => {
                if a != AF_UNIX || !matches!(b & SOCK_TYPE, 1 | 2 | 5) {
                    return Err(refuse(Errno::EAFNOSUPPORT, "pairs are AF_UNIX"));
                }
                self.target(d)?;
            }
            Sysno::connect | Sysno::bind => {
                self.guest_fd(a)?;
                let address = self.address(0)?;
                self.script.only(call, [a, address, c, 0, 0, 0]);
                return Ok(true);
            }
            Sysno::sendto => {
                self.guest_fd(a)?;
                self.target(b)?;
                let address = if e == 0 { 0 } else { self.address(0)? };
                self.script.only(call, [a, b, c, d, address, f]);
                return Ok(true);
            }
            Sysno::listen if !self.view.policy.listens() => {
                return Err(refuse(Errno::EACCES, "the policy does not let sockets listen"));
            }
            Sysno::recvfrom
            | Sysno::listen
            | Sysno::accept4
            | Sysno::shutdown
            | Sysno::getsockname
            | Sysno::getpeername => {
                self.guest_fd(a)?;
                self.targets(args)?;
            }
            #[cfg(target_arch = "x86_64")]
            Sysno::accept => {
                self.guest_fd(a)?;
                self.targets(args)?;
            }
            Sysno::setsockopt | Sysno::getsockopt => {
                self.guest_fd(a)?;
                self.targets(args)?;
                if !self.view.policy.allows_option(b as u32, c as u32) {
                    return Err(refuse(Errno::ENOPROTOOPT, "the policy does not list this option"));
                }
            }
            _ => return Ok(false),
        }
        self.script.only(call, *args);
        Ok(true)
    }

    /// A socket address that the policy allows, in the verdict's data.
    fn address(&mut self, i: usize) -> Result<usize, Refusal> {
        let address = self.carried(i)?;
        let family = address.get(..2).and_then(|two| two.try_into().ok()).map(u16::from_ne_bytes);
        let family = family.and_then(|family| self.view.policy.family_of(family));
        let allowed = family.is_some_and(|family| family.addresses.iter().any(|listed| address.starts_with(listed)));
        if !allowed {
            return Err(refuse(Errno::EACCES, "the policy does not list this address"));
        }
        self.script.put(&[address])
    }
}
