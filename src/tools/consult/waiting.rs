//! How long a consult's caller is kept waiting, and what it is told meanwhile.
//!
//! Owns: a wait for news of one job, and how a job goes on without who waited. May not know: arguments, what a reply says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Consults;
use crate::base::fault::Fault;
use crate::base::ids::JobId;
use crate::jobs::JobRecord;
use crate::jobs::client::{Follow, News};
use crate::tools::ToolCall;

impl Consults {
    /// How long a caller is kept waiting: as long as it asked for, else as long as suits its client. The second is the time
    /// after which that client was seen to give up, where the wait is shorter for it.
    pub(in crate::tools) fn wait(&self, asked: Option<Duration>, client: Option<&str>) -> (Duration, Option<Duration>) {
        match asked {
            Some(asked) => (asked, None),
            None => (self.clients.profile(client).wait, self.clients.shortened_by(client)),
        }
    }
}

/// Lets a job go on without its caller; a store that is busy for a moment is asked again.
pub(in crate::tools) async fn hand_over(desk: &Consults, job: JobId) -> Result<(), Fault> {
    let mut tries = 0;
    loop {
        match desk.jobs.hand_over(job).await {
            Ok(()) => return Ok(()),
            Err(fault) if tries < 3 && fault.retryable => tries += 1,
            Err(fault) => return Err(fault.job(job)),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// How a wait ended.
pub(in crate::tools) enum Waited {
    /// The job is over.
    Over(Arc<JobRecord>),
    /// Its run is over, and the store does not take the outcome.
    Unstored(Arc<JobRecord>),
    /// The time is up, or something happened.
    Lapsed,
}

/// What ends a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tools) enum Until {
    /// The job is over.
    Finished,
    /// The job is over, or something happened.
    Anything,
}

/// A wait for news of a job, with progress reports on its own clock.
pub(in crate::tools) struct Watch<'a> {
    progress: &'a ToolCall,
    began: Instant,
    /// Kept from one wait to the next: news that come thick and fast put off no report.
    ticks: tokio::time::Interval,
}

impl<'a> Watch<'a> {
    /// One for this call, which has waited since `began`.
    pub(in crate::tools) fn new(progress: &'a ToolCall, desk: &Consults, began: Instant) -> Self {
        let profile = desk.clients.profile(progress.client.name().as_deref());
        let mut ticks = tokio::time::interval(profile.progress);
        ticks.reset();
        Self { progress, began, ticks }
    }

    /// Waits.
    pub(in crate::tools) async fn until(
        &mut self,
        follow: &mut Follow,
        wait: Duration,
        until: Until,
    ) -> Result<Waited, Fault> {
        let lapse = tokio::time::sleep(wait);
        tokio::pin!(lapse);
        loop {
            tokio::select! {
                news = follow.next() => match news? {
                    News::Finished(record) => return Ok(Waited::Over(record)),
                    News::Unstored(record) => return Ok(Waited::Unstored(record)),
                    News::Changed if until == Until::Anything => return Ok(Waited::Lapsed),
                    News::Changed => {}
                },
                () = &mut lapse => return Ok(Waited::Lapsed),
                _ = self.ticks.tick(), if self.progress.progress.is_wanted() => self.report(follow),
            }
        }
    }

    fn report(&self, follow: &Follow) {
        let elapsed = self.began.elapsed();
        let message = format!("{}, {} s", follow.describe(), elapsed.as_secs());
        self.progress.progress.report(elapsed.as_secs_f64().round(), message);
    }
}
