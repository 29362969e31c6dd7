//! What every other part may use, and which uses no other part.
//!
//! Owns: small things without a subject of their own, one file each. May not know: any other folder of this crate.

pub mod base64;
pub(crate) mod beside;
pub mod descriptors;
pub mod fault;
pub mod ids;
pub mod image;
pub mod lenient;
pub mod local_time;
pub mod nearest;
pub mod procfs;
pub mod signals;
pub mod socket;
pub mod state_dir;
pub mod stdio;
pub(crate) mod tasks;
pub mod trace;
