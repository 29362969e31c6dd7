//! The keys of sessions that were opened here.
//!
//! Owns: which are known, how many. May not know: whose they are.

use std::collections::{HashSet, VecDeque};

/// Sessions whose keys are remembered, so that one that comes again is told so. The oldest are forgotten.
const KEYS: usize = 4096;

/// The keys of sessions that were opened here.
#[derive(Default)]
pub(super) struct Keys {
    known: HashSet<String>,
    order: VecDeque<String>,
}

impl Keys {
    /// Whether the key was known. It is from now on.
    pub(super) fn note(&mut self, key: &str) -> bool {
        if !self.known.insert(key.to_owned()) {
            return true;
        }
        self.order.push_back(key.to_owned());
        if self.order.len() > KEYS
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        false
    }
}
