//! Whether a caller may have a directory looked into, and read the jobs of it.
//!
//! Owns: how [`Consults`] put the rule of [`places`](crate::places) to a directory: what is looked at, in which order, how long.
//! May not know: the rule.
//!
//! A client's roots are asked about only when they could decide: most consults ask about the directory of the server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::consult::{Consults, LOOK_BOUND, look_at, within};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::SessionNumber;
use crate::jobs::{JobRecord, JobSummary};
use crate::places::{self, Grounds, PlaceRefused};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Whoever runs this program: an embedding program, a person at a keyboard.
    Owner,
    /// The client of a session.
    Client(SessionNumber),
}

/// What is wrong with a directory, and what is accepted instead.
pub(super) type Wrong = (&'static str, &'static str);

/// What is accepted where there is no directory at all.
pub(super) const DIRECTORY: &str = "the absolute path of an existing directory";

impl Consults {
    /// A directory its caller may have looked into, made canonical.
    pub(super) async fn place(&self, dir: PathBuf, caller: Caller) -> Result<PathBuf, Wrong> {
        if !dir.is_absolute() {
            return Err(("is not absolute", DIRECTORY));
        }
        let found = look_at(dir).await.map_err(|wrong| (wrong, DIRECTORY))?;
        if found.to_str().is_none() {
            return Err(("is not UTF-8", "a directory whose path is, links followed"));
        }
        match self.judge(found.clone(), caller).await {
            Ok(()) => Ok(found),
            Err(refused) => Err((refused.wrong(), refused.accepted())),
        }
    }

    /// Whether a caller may look into this resolved directory.
    async fn judge(&self, dir: PathBuf, caller: Caller) -> Result<(), PlaceRefused> {
        let Caller::Client(session) = caller else {
            return self.looked(dir, Vec::new(), |grounds, dir| grounds.judge_secrets(dir)).await;
        };
        // A start directory that grants nothing by itself gives way to roots, so they come first there.
        let broad = self.places.is_broad();
        let first = if broad { self.roots.paths(session).await } else { Vec::new() };
        let judged = self.looked(dir.clone(), first, Grounds::judge).await;
        if broad || judged != Err(PlaceRefused::Outside) {
            return judged;
        }
        let roots = self.roots.paths(session).await;
        if roots.is_empty() { judged } else { self.looked(dir, roots, Grounds::judge).await }
    }

    async fn looked(
        &self,
        dir: PathBuf,
        roots: Vec<PathBuf>,
        judge: fn(&Grounds, &Path) -> Result<(), PlaceRefused>,
    ) -> Result<(), PlaceRefused> {
        let places = Arc::clone(&self.places);
        let look = move || {
            if dir.ancestors().any(places::is_state) {
                return Ok(Err(PlaceRefused::Secrets));
            }
            Ok(judge(&places.resolve(&roots), &dir))
        };
        within(LOOK_BOUND, look).await.unwrap_or(Err(PlaceRefused::Outside))
    }

    /// Everything that grants a caller anything, resolved; `None` for who may see everything.
    async fn grounds(&self, caller: Caller) -> Option<Grounds> {
        let Caller::Client(session) = caller else { return None };
        let roots = self.roots.paths(session).await;
        let places = Arc::clone(&self.places);
        Some(within(LOOK_BOUND, move || Ok(places.resolve(&roots))).await.unwrap_or_default())
    }

    /// Whether a caller may read this job, or end it.
    ///
    /// # Errors
    ///
    /// `invalid_input`: it belongs to a directory the caller may not look into.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn check_job(&self, record: &JobRecord, caller: Caller) -> Result<(), Fault> {
        if caller == Caller::Owner || self.is_ours(&record.workspace) {
            return Ok(());
        }
        self.judge(record.workspace.clone(), caller).await.map_err(|refused| {
            let (wrong, accepted) = (refused.wrong(), refused.accepted());
            let detail = format!("the job's directory {wrong}; accepted: jobs of {accepted}.");
            Fault::new(FaultCode::InvalidInput, detail).job(record.id)
        })
    }

    /// Those of these jobs that a caller may read.
    pub(super) async fn allowed(&self, mut rows: Vec<JobSummary>, caller: Caller) -> Vec<JobSummary> {
        if rows.iter().all(|row| self.is_ours(&row.workspace)) {
            return rows;
        }
        if let Some(grounds) = self.grounds(caller).await {
            rows.retain(|row| grounds.judge(&row.workspace).is_ok());
        }
        rows
    }

    /// Whether a job's directory, which was resolved when it was accepted, lies below a start directory that grants it: what
    /// most jobs are, and no look at the disk.
    fn is_ours(&self, workspace: &Path) -> bool {
        let state = self.places.state.as_deref().is_some_and(|state| workspace.starts_with(state));
        let start = self.places.start.as_deref().is_some_and(|start| workspace.starts_with(start));
        start && !self.places.is_broad() && !state && !places::is_secret(workspace)
    }
}
