//! What the fuzzing targets share: slow models, written down apart from the code that they judge, and mutators that know the
//! formats.

#![deny(missing_docs)]

pub mod model;
pub mod mutate;
pub mod record;
pub mod requests;
pub mod spec;
