//! Where a caller lets a consult run.
//!
//! Owns: the three words. May not know: which hosts there are.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a consult may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Placement {
    /// On this machine.
    #[default]
    Local,
    /// On whichever machine of the fleet has this workspace.
    Fleet,
    /// On another machine as well, with a clone of the exact commit.
    Clone,
}
