//! What the fuzzing targets share: slow models, written down apart from the code that they judge, and mutators that know the
//! formats. The seeds are records of real crashes, and of the policies and requests that a run of four minutes grew the hundred
//! that reached most that was new.

#![deny(missing_docs)]

pub mod broker;
pub mod collector;
pub mod model;
pub mod mutate;
pub mod paths;
pub mod ranges;
pub mod record;
pub mod requests;
pub mod spec;
pub mod text;
