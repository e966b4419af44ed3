//! Seccomp strict mode with system calls, threads and honest crash reports.
//!
//! Guest code runs in an *untrusted thread*, U, which the kernel allows four system calls: `read`, `write`, `exit` and
//! (`rt_`)`sigreturn`. Its others are made by a *trusted thread*, T, in the same address space: assembly that has no
//! stack, no signal handlers and no writable memory that it relies on. When the guest crashes, a reporter in the guest
//! writes a record, and the kernel's wait status stays true.
//!
//! ```no_run
//! use ascetic::{policy::Policy, sandbox, sys::Sysno, untrusted};
//!
//! const POLICY: Policy = Policy::new().direct(Sysno::getppid);
//!
//! extern "C" fn guest(_: usize) -> i32 {
//!     // SAFETY: getppid touches no memory.
//!     let parent = unsafe { untrusted::call(Sysno::getppid, [0; 6]) };
//!     i32::from(parent.is_err())
//! }
//!
//! let mut sandbox = sandbox::spawn(&sandbox::Config::new(&POLICY), guest, 0)?;
//! println!("{}", sandbox.wait(None).guest);
//! # Ok::<(), ascetic::error::Error>(())
//! ```
//!
//! Where things are: `ARCHITECTURE.md`. What is promised, and what is not: `SECURITY.md`.

#![cfg_attr(not(test), no_std)]
#![deny(missing_docs)]

/// The README's program runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod abi;
pub mod arch;
mod audit;
pub mod birth;
pub mod broker;
pub mod clone;
mod config;
pub mod deep;
pub mod direct;
pub mod error;
#[cfg(feature = "experiments")]
pub mod experiment;
pub mod fault;
mod make;
pub mod pair;
pub mod policy;
pub mod poller;
pub mod sandbox;
pub mod seccomp;
mod setup;
pub mod signal;
pub mod sys;
mod task;
pub mod trusted;
pub mod untrusted;
