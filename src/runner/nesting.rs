//! Which chain of nested consults a process belongs to, and how deep in it.
//!
//! Owns: how that is read from an environment. May not know: how deep is too deep.

use crate::agents::{CHAIN_VARIABLE, DEPTH_VARIABLE, Environment};
use crate::base::ids::ChainId;

/// The variables by which nested consults know of each other.
#[must_use]
pub fn nesting(environment: &Environment) -> (Option<ChainId>, u32) {
    let text = |name: &str| environment.get(name).and_then(|value| value.to_str()).map(str::to_owned);
    let chain = text(CHAIN_VARIABLE).and_then(|chain| chain.parse().ok());
    let depth = text(DEPTH_VARIABLE).and_then(|depth| depth.parse().ok()).unwrap_or(0);
    (chain, depth)
}
