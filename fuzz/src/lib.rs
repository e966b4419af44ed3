//! What the fuzzing targets share.

#![deny(missing_docs)]
