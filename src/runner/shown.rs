//! What a runner shows to its host: the agent as one process, and beside it the outcome for a host that asks.
//!
//! Owns: under which names they are reached, and the host's request to end. May not know: the store, how an agent is ended.

use tokio::sync::mpsc;

use super::ending::{Told, outcome_channel};
use crate::exec::ProcessSession;
use crate::exec::server::ProcessTable;

/// The one process a runner shows to its host; it exists before the agent does.
pub(super) struct OneProcess {
    pub(super) id: String,
    pub(super) session: ProcessSession,
    /// Its outcome, for a host whose caller waits, when the store does not take it. Not pushed: asked for.
    pub(super) told: Told,
    /// One place: asking twice adds nothing.
    pub(super) ask: mpsc::Sender<()>,
}

impl ProcessTable for OneProcess {
    fn exposed(&self) -> Vec<String> {
        vec![self.id.clone()]
    }

    fn session(&self, process_id: &str) -> Option<ProcessSession> {
        if process_id == self.id {
            return Some(self.session.clone());
        }
        (process_id == outcome_channel(&self.id)).then(|| {
            if self.told.session.has_ended() {
                self.told.fetched.notify_one();
            }
            self.told.session.clone()
        })
    }

    fn terminate(&self, process_id: &str) -> bool {
        if process_id != self.id || self.session.has_ended() {
            return false;
        }
        let _ = self.ask.try_send(());
        true
    }
}
