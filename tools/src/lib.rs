//! A policy as text.
//!
//! A policy that is not fixed when an embedder is compiled can be a TOML file: [`Text`] reads it, and hands out the
//! [`Policy`](ascetic::policy::Policy). Nothing is ignored: an unknown key or name, a value of another type or beyond
//! what a policy holds, or anything there twice is a [`Mistake`] with its line and column.
//!
//! ```
//! use ascetic_tools::Text;
//!
//! let text = Text::parse("policy.toml", r#"direct = ["getppid"]"#)?;
//! let policy = text.policy(); // for sandbox::Config::new
//!
//! let error = Text::parse("policy.toml", r#"direct = ["kill"]"#).unwrap_err();
//! let why = "it can create, stop or signal tasks";
//! assert_eq!(error.to_string(), format!("policy.toml:1:11: `\"kill\"`: `kill` may not be a direct call: {why}"));
//! # Ok::<(), ascetic_tools::Error>(())
//! ```
//!
//! # Keys
//!
//! What is left out is not allowed. This example has all of them:
//!
//! ```toml
#![doc = include_str!("../examples/policy.toml")]
//! ```
//!
//! # Addresses of sockets
//!
//! A policy lists addresses as their first bytes ([`Family`](ascetic::policy::Family)), and a text says only what such
//! a prefix says exactly:
//!
//! | family | forms |
//! |---|---|
//! | all | `*`: every address; `hex:` and the first bytes, family included |
//! | `unix` | `/run/socket`: this path, as the guest writes it, with its zero byte; `@name*`: abstract names that begin so |
//! | `inet` | `127.0.0.1:80`; `10.0.0.0/8:80`, in steps of 8 bits; `*:80` |
//! | `inet6` | `[::1]:80`; `[fd00::/8]:80`; `[fe80::1%2]:80`: by interface 2 only; `*:80` |
//!
//! The port comes first in an address of either internet family, so one host at every port is refused. The flow label of an
//! IPv6 address must be zero, except with `*`, which like `*:80` includes IPv4 peers (`::ffff:0:0/96`), unless the
//! embedder sees to `IPV6_V6ONLY`.

#![deny(missing_docs)]

mod address;
pub mod dump;
mod error;
mod names;
mod reader;
#[cfg(test)]
mod tests;
mod text;

pub use error::{Error, Mistake};
pub use text::Text;
