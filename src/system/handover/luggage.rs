//! What the embedding program itself passes on to its next image.
//!
//! Owns: the interface. May not know: what is in it. A daemon passes on the lock that is its life, and who it is.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::descriptors::PassedPipe;

/// Asked by each hand-over what to pass on besides the system.
pub trait Luggage: Send + Sync {
    /// What is passed on now. Called with everything at rest, and for a trial, so it must neither wait nor change anything.
    fn pack(&self) -> Packed;
}

/// What an embedding program passes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Packed {
    /// In its own words. Its next image may be of another version.
    pub state: Value,
    /// Open files that go with it; whoever packs them holds them open.
    pub files: Vec<PassedPipe>,
}
