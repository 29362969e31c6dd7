//! Sockets in the file system, and who may come in by one.
//!
//! Owns: where one may lie, how it is bound so that nobody comes in before it is closed to others, how it is known again, what a failed
//! connect and a failed accept mean, whose process a peer must be. May not know: who listens, what is said.

pub mod accept;
pub mod listener;
pub mod paths;
pub mod peer;
pub mod reach;
