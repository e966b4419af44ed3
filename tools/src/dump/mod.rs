//! Crash dumps: what is known of a crash, from whichever way it came, and what it is written as.
//!
//! A [`Dump`] is what all ways lead to and all formats are made of.

mod model;

pub use model::{
    Call, Dump, Exception, MapsEntry, Memory, Module, Origin, Refusal, Registers, Role, Thread, Way, Words,
};
