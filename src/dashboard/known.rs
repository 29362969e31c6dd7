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
