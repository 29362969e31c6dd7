//! A runner takes the turn that has come: a run permit, and the mark `running` in the store (L6).
//!
//! Owns: how long a permit and a busy store are waited for. May not know: agents, who else is queued: whoever started this
//! runner has seen to that.

use std::time::{Duration, Instant};

use super::patience::is_passing;
use super::{Runner, RunnerError};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::UnixMillis;
use crate::jobs::lock::RunPermit;
use crate::jobs::store::{Glance, StartOutcome};
use crate::jobs::{JobRecord, JobState};

/// How long a permit is tried for. Who started us saw one come free; its holder gives it back within a moment of its job's lock.
const PERMIT_PATIENCE: Duration = Duration::from_secs(2);

/// The first pause between two tries, and the longest.
const PERMIT_PAUSE: Duration = Duration::from_millis(1);
const PERMIT_PAUSE_MOST: Duration = Duration::from_millis(100);

/// How long a runner whose agent is not started yet waits for a store that is busy or full before it gives up. Nothing is lost by it.
const STORE_PATIENCE: Duration = Duration::from_secs(60);

/// What came of a try to start.
pub(super) enum Turn {
    /// The job is `running`.
    Started(RunPermit),
    /// It waits on.
    Later,
    /// It must end.
    Over,
}

impl Runner {
    /// Takes the turn that has come: whoever started us has seen that a permit is free and nobody is due before.
    pub(super) async fn take_turn(&mut self, record: &JobRecord) -> Result<Turn, RunnerError> {
        let began = Instant::now();
        // Read a moment ago, so the first try need not look again.
        let mut glance = Some(Glance::of(record));
        let mut pause = PERMIT_PAUSE;
        let mut failing: Option<Instant> = None;
        loop {
            match self.try_to_start(glance.take()).await {
                Ok(Turn::Later) if began.elapsed() < PERMIT_PATIENCE => failing = None,
                Ok(turn) => return Ok(turn),
                // A store that is busy for a moment is no reason to lose an accepted job.
                Err(RunnerError::Store(error)) if is_passing(&error) => {
                    let since = *failing.get_or_insert_with(Instant::now);
                    if since.elapsed() >= STORE_PATIENCE {
                        return Err(error.into());
                    }
                    tracing::warn!(%error, "the queue cannot be looked at");
                }
                Err(error) => return Err(error),
            }
            self.pause(pause).await;
            pause = (pause * 2).min(PERMIT_PAUSE_MOST);
            self.heed().await;
        }
    }

    async fn try_to_start(&mut self, glance: Option<Glance>) -> Result<Turn, RunnerError> {
        let glance = match glance {
            Some(glance) => glance,
            None => self.store.glance(self.options.job).await?,
        };
        self.core.glanced(&glance);
        self.look_for_host();
        if self.core.tick(Instant::now()).is_some() {
            return Ok(Turn::Over);
        }
        let Some(permit) = RunPermit::try_acquire_any(&self.options.dir, self.options.max_running)? else {
            return Ok(Turn::Later);
        };
        match self.store.start(self.options.job, UnixMillis::now()).await? {
            StartOutcome::Started => Ok(Turn::Started(permit)),
            StartOutcome::SessionBusy { .. } => Ok(Turn::Later),
            // It waited while another run learnt of the limit.
            StartOutcome::Limited(limit) => {
                self.core.faulted(limit.fault(UnixMillis::now()));
                Ok(Turn::Over)
            }
            StartOutcome::Refused { current: JobState::Running } => {
                // Our own first try reached the disk although it seemed to fail: nobody else holds the job's lock.
                Ok(Turn::Started(permit))
            }
            StartOutcome::Refused { current } => {
                let detail = format!("the job was {} when its turn came.", current.as_str());
                self.core.faulted(Fault::new(FaultCode::IllegalTransition, detail));
                Ok(Turn::Over)
            }
        }
    }
}
