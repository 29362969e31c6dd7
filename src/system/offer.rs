//! What a system would offer its clients, without one.
//!
//! Owns: the answer to that question, for whoever answers a client before there is a system. May not know: who asks.

use std::sync::Arc;

use super::SystemBuilder;
use super::assembly::Assembly;
use crate::protocol::catalog::Catalog;
use crate::protocol::wire::Identity;
use crate::tools::ReplayContract;

/// What clients are told of a system before they call anything.
pub struct Offer {
    /// Its tools.
    pub catalog: Arc<Catalog>,
    /// Who it says it is.
    pub identity: Arc<Identity>,
    /// When a call of each tool may run again.
    pub contracts: Vec<(String, ReplayContract)>,
}

impl SystemBuilder {
    /// What this system would offer. Nothing is opened, started or written.
    #[must_use]
    #[doc(hidden)]
    pub fn offer(self) -> Offer {
        let (served, _) = Assembly::new(self.dry(), None).served();
        let contracts = served.tools.iter().map(|tool| (tool.name().to_owned(), tool.contract())).collect();
        Offer { catalog: served.catalog, identity: served.identity, contracts }
    }
}
