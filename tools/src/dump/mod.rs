//! Crash dumps: what is known of a crash, from whichever way it came, and what it is written as.
//!
//! A [`Dump`] is what all ways lead to and all formats are made of.

mod clean;
pub mod core;
pub mod elf;
pub mod facts;
pub mod json;
mod maps;
pub mod minidump;
mod model;
mod names;
mod notes;
pub mod record;
pub mod report;
#[cfg(test)]
mod samples;
pub mod symbols;

use clean::clean;
pub use facts::Facts;
pub use maps::NoMapsEntry;
use names::{arch_name, call_name, signal_name};

pub use model::{
    Call, Dump, Exception, MapsEntry, Memory, Module, Origin, Refusal, Registers, Role, Thread, Way, Words,
};
