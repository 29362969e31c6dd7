//! What is known of the listed jobs beside their listing: when each began, what it cost.
//!
//! Owns: which rows are read again. May not know: what is shown of them.
//!
//! A job that is over does not change any more, so only the rows behind the last of those are read: with ten thousand jobs as with
//! ten.
//!
//! Invariant: what is kept is what is listed, and what is listed is kept.

use std::collections::HashMap;

use crate::base::ids::{JobId, UnixMillis};
use crate::jobs::JobSummary;
use crate::jobs::row::{JobRow, ROWS_MOST};
use crate::jobs::store::{StoreError, StoreHandle};

/// What a listing does not say.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownJob {
    /// When a runner took it.
    pub started_at: Option<UnixMillis>,
    /// What it cost in US dollars.
    pub cost_usd: Option<f64>,
    /// Why it did not succeed, as one word.
    pub code: Option<String>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct KnownJobs {
    jobs: HashMap<JobId, KnownJob>,
    /// Up to here every job is over, and was read.
    settled: u64,
}

impl KnownJobs {
    /// Reads what is not known of these, and forgets the others.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    pub async fn read(&mut self, store: &StoreHandle, listed: &[JobSummary]) -> Result<(), StoreError> {
        self.read_on(store).await?;
        if listed.iter().any(|row| !self.jobs.contains_key(&row.id)) && self.settled > 0 {
            // Another store lies there, or one is listed again that was not for a while.
            self.settled = 0;
            self.read_on(store).await?;
        }
        let wanted: HashMap<JobId, ()> = listed.iter().map(|row| (row.id, ())).collect();
        self.jobs.retain(|id, _| wanted.contains_key(id));
        Ok(())
    }

    async fn read_on(&mut self, store: &StoreHandle) -> Result<(), StoreError> {
        let mut after = self.settled;
        let mut settles = true;
        loop {
            let rows = store.job_rows(UnixMillis(0), after).await?;
            let whole = rows.len() == ROWS_MOST;
            for row in rows {
                after = row.sequence;
                settles &= row.state.is_terminal();
                if settles {
                    self.settled = row.sequence;
                }
                self.take(row);
            }
            if !whole {
                return Ok(());
            }
        }
    }

    fn take(&mut self, row: JobRow) {
        let JobRow { id, started_at, cost_usd, code, .. } = row;
        self.jobs.insert(id, KnownJob { started_at, cost_usd, code });
    }

    /// What is known of one.
    #[must_use]
    pub fn of(&self, row: &JobSummary) -> Option<&KnownJob> {
        self.jobs.get(&row.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::ChainId;
    use crate::base::state_dir::StateDir;
    use crate::jobs::store::{Accept, AcceptLimits, JobFilter, StartOutcome, Transition};
    use crate::jobs::{ConsultRequest, JobMode, JobOutcome, JobState, NewJob};

    async fn accept(store: &StoreHandle) -> JobId {
        let job = NewJob {
            id: JobId::random(),
            invocation: None,
            request_key: None,
            given: None,
            workspace: "/w".into(),
            mode: JobMode::Background,
            request: ConsultRequest::new("why?").cwd("/w"),
            chain: ChainId::random(),
            depth: 0,
            accepted_at: UnixMillis(1),
            environment: None,
            account: String::new(),
            host: None,
            trace: None,
        };
        let id = job.id;
        let accepted = store.accept(job, AcceptLimits { max_queued: 100 }).await.expect("accepted");
        assert!(matches!(accepted, Accept::Inserted(_)));
        id
    }

    async fn begin(store: &StoreHandle, job: JobId, at: i64) {
        assert_eq!(store.start(job, UnixMillis(at)).await.expect("started"), StartOutcome::Started);
    }

    async fn end(store: &StoreHandle, job: JobId, cost: f64) {
        let outcome = JobOutcome { cost_usd: Some(cost), ..JobOutcome::default() };
        let ended = store.finish(job, JobState::Succeeded, outcome, UnixMillis(9)).await.expect("ended");
        assert_eq!(ended, Transition::Done);
    }

    /// What is known of the jobs that are listed now, in the order of these.
    async fn known(
        all: &mut KnownJobs,
        store: &StoreHandle,
        jobs: &[JobId],
    ) -> Vec<Option<(Option<i64>, Option<f64>)>> {
        let filter = JobFilter { workspace: None, state: None, limit: 100 };
        let listed = store.list(filter).await.expect("listed");
        all.read(store, &listed).await.expect("read");
        let of = |job: &JobId| listed.iter().find(|row| row.id == *job).and_then(|row| all.of(row));
        jobs.iter().map(|job| of(job).map(|known| (known.started_at.map(|at| at.0), known.cost_usd))).collect()
    }

    #[tokio::test]
    async fn what_is_over_is_read_once_and_what_is_not_each_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = StoreHandle::sqlite(StateDir::at(dir.path()));
        let mut all = KnownJobs::default();
        let jobs = [accept(&store).await, accept(&store).await, accept(&store).await];
        begin(&store, jobs[0], 2).await;
        assert_eq!(
            known(&mut all, &store, &jobs).await,
            [Some((Some(2), None)), Some((None, None)), Some((None, None))]
        );
        assert_eq!(all.settled, 0);
        end(&store, jobs[0], 0.5).await;
        // One that is over behind one that is not is read again, and does no harm.
        begin(&store, jobs[2], 3).await;
        end(&store, jobs[2], 0.25).await;
        let seen = [Some((Some(2), Some(0.5))), Some((None, None)), Some((Some(3), Some(0.25)))];
        assert_eq!(known(&mut all, &store, &jobs).await, seen);
        let first = all.settled;
        begin(&store, jobs[1], 4).await;
        end(&store, jobs[1], 1.0).await;
        let seen = [Some((Some(2), Some(0.5))), Some((Some(4), Some(1.0))), Some((Some(3), Some(0.25)))];
        assert_eq!(known(&mut all, &store, &jobs).await, seen);
        assert!(first > 0 && all.settled > first);
        // Another store at this place has other jobs under the same numbers.
        let elsewhere = tempfile::tempdir().expect("a directory");
        let other = StoreHandle::sqlite(StateDir::at(elsewhere.path()));
        let only = [accept(&other).await];
        assert_eq!(known(&mut all, &other, &only).await, [Some((None, None))]);
        assert_eq!(all.jobs.len(), 1);
        store.close().await;
        other.close().await;
    }
}
