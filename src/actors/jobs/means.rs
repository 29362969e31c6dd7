//! What custody of a job works with.

use std::sync::Arc;

use crate::agents::OutputReader;
use crate::base::state_dir::StateDir;
use crate::jobs::store::StoreHandle;
use crate::runner::RunnerCommand;

/// Bytes of an output line that is looked at for news: sixteen times the text that is kept of them. The answer may be in a
/// longer one; it is read from the store, and a host that attends to many jobs must not hold one such line for each.
const NEWS_LINE: usize = 1 << 20;

/// What custody works with.
#[derive(Clone)]
pub struct Means {
    /// The truth.
    pub store: StoreHandle,
    /// Where locks lie.
    pub dir: StateDir,
    /// How a runner of the job's caller is started.
    pub runner: Arc<RunnerCommand>,
}

impl Means {
    /// Reads what the agent of a job says, for news.
    pub(super) fn reader(&self, agent: &str) -> Option<OutputReader> {
        let agent = self.runner.agents().get(agent).ok();
        agent.map(|agent| OutputReader::bounded(agent.parser(), NEWS_LINE))
    }
}
