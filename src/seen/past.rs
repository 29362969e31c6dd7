//! The past of a period: its jobs, and what telemetry's file says of it.
//!
//! Owns: what is read, and how much of it at most. May not know: what is made of it.

use serde::Serialize;

use super::said::{self, LogSaid};
use crate::base::ids::UnixMillis;
use crate::base::state_dir::StateDir;
use crate::base::tasks;
use crate::jobs::row::{JobRow, ROWS_MOST};
use crate::jobs::store::{StoreError, StoreHandle};

/// Most jobs one past has: a year of five hundred a day. The newest are left out then, and [`Past::more`] says so.
pub const JOBS_MOST: usize = 200_000;

/// From when to when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Period {
    /// The first moment that belongs to it.
    pub since: UnixMillis,
    /// The last one: when it was looked at.
    pub until: UnixMillis,
}

impl Period {
    /// Whether a moment lies in it.
    #[must_use]
    pub const fn has(&self, at: UnixMillis) -> bool {
        self.since.0 <= at.0 && at.0 <= self.until.0
    }
}

/// What happened in a period.
#[derive(Debug, Clone, PartialEq)]
pub struct Past {
    /// When.
    pub period: Period,
    /// The jobs that are not over or ended in it, in the order of acceptance.
    pub jobs: Vec<JobRow>,
    /// There are more jobs than are looked at.
    pub more: bool,
    /// What telemetry's file has of it.
    pub said: LogSaid,
}

/// Reads it.
///
/// # Errors
///
/// The store cannot be used. A file of telemetry that is not there says nothing, and is no error.
///
/// # Cancel safety
///
/// Safe: it only reads.
pub async fn past(store: &StoreHandle, dir: &StateDir, period: Period) -> Result<Past, StoreError> {
    let (mut jobs, mut more) = (Vec::new(), false);
    // Where nothing was ever asked there is no store, and none is made.
    while dir.database().exists() {
        let after = jobs.last().map_or(0, |row: &JobRow| row.sequence);
        let page = store.job_rows(period.since, after).await?;
        let whole = page.len() == ROWS_MOST;
        jobs.extend(page);
        if !whole {
            break;
        }
        if jobs.len() >= JOBS_MOST {
            more = true;
            break;
        }
    }
    // A job that was accepted while we look belongs to the next period.
    jobs.retain(|row| row.accepted_at <= period.until);
    let file = dir.telemetry();
    let said = tasks::spawn_blocking(move || said::read(&file, period)).await.unwrap_or_default();
    Ok(Past { period, jobs, more, said })
}
