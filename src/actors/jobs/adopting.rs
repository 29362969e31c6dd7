//! Jobs whose host is gone: which of them this host adopts, and which are left alone for a while.
//!
//! Owns: the evidence (the host's lock is free, somebody works at the job), the one change of custody in the store, for how
//! long a waiting job is spared. May not know: who waits for a job, how it is followed.
//!
//! Invariants: (1) a job is adopted only while somebody works at it or waits with it: what is left of the others is the
//! sweep's; (2) L3: of two hosts that adopt it one does, by the store; (3) nobody ends a waiting synchronous job for want of a
//! host before its callers have had the time to come back.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::host_life::HostLife;
use crate::base::fault::Fault;
use crate::base::ids::{JobId, WaiterId};
use crate::base::state_dir::StateDir;
use crate::jobs::evidence::JobEvidence;
use crate::jobs::host_lock::{HostLock, LivingHosts, ORPHAN_GRACE};
use crate::jobs::lock::JobLock;
use crate::jobs::store::{Adoption, StoreHandle};
use crate::jobs::{JobMode, JobRecord, JobState};

/// Whether anybody works at a job that was adopted, or waits with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtWork {
    /// A runner, or who waits with it.
    Somebody,
    /// Its host died before it had begun with it.
    Nobody,
}

/// Whether somebody works at a job, or waits with it. What cannot be looked at counts as held.
fn at_work(
    dir: &StateDir,
    evidence: &mut JobEvidence<'_>,
    job: JobId,
    state: JobState,
    waiter: Option<WaiterId>,
) -> AtWork {
    let waits = state == JobState::Queued && evidence.waits(waiter);
    if waits || JobLock::is_held(dir, job).unwrap_or(true) { AtWork::Somebody } else { AtWork::Nobody }
}

/// Adopts a job if its host is gone, and this one adopts any. `None` when it is as it was.
pub(super) async fn adopt(
    store: &StoreHandle,
    dir: &StateDir,
    life: &HostLife,
    record: &mut JobRecord,
) -> Option<AtWork> {
    life.grace()?;
    let from = record.host.filter(|host| *host != life.host())?;
    if record.state.is_terminal() || HostLock::lives(dir, from) {
        return None;
    }
    let found = at_work(dir, &mut JobEvidence::new(dir), record.id, record.state, record.waiter);
    if record.state == JobState::Running && found == AtWork::Nobody {
        // Its runner is gone as well, and the sweep settles it.
        return None;
    }
    let by = life.hold()?;
    match store.adopt(record.id, from, by).await {
        Ok(Adoption::Adopted) => {
            life.count_adopted();
            record.host = Some(by);
            tracing::info!(job = %record.id, %from, "a job whose host is gone was adopted");
            Some(found)
        }
        Ok(Adoption::Elsewhere) => {
            // Perhaps this very host, by its sweep.
            record.host = store.job(record.id).await.ok().and_then(|now| now.host);
            None
        }
        Ok(Adoption::Over { .. }) => None,
        Err(error) => {
            tracing::warn!(job = %record.id, %error, "a job whose host is gone was not adopted");
            None
        }
    }
}

/// What a look for jobs of other hosts found.
#[derive(Debug, Default)]
pub(super) struct Looked {
    /// Jobs in the custody of this host at which somebody works whom another host started.
    pub(super) adopted: Vec<JobRecord>,
    /// Jobs that nobody is to end for want of a host yet.
    pub(super) spared: HashSet<JobId>,
    /// Another host lives whose jobs may have to be adopted.
    pub(super) others: bool,
}

/// Looks at the jobs that are not `ours`, and adopts those whose host is gone where this host adopts any. Jobs with these
/// `environments` may be begun here.
///
/// # Errors
///
/// The queue cannot be read.
pub(super) async fn look(
    store: &StoreHandle,
    dir: &StateDir,
    life: &HostLife,
    ours: &HashSet<JobId>,
    environments: &HashSet<Option<String>>,
    alone: &LeftAlone,
) -> Result<Looked, Fault> {
    let mut looked = Looked::default();
    if !dir.hosts().exists() {
        // No host has ever been here whose jobs may be adopted.
        return Ok(looked);
    }
    let (mut evidence, mut hosts) = (JobEvidence::new(dir), LivingHosts::new(dir));
    let mut left = HashSet::new();
    for row in store.queue().await? {
        let Some(from) = row.host.filter(|_| !ours.contains(&row.job)) else { continue };
        let is_own = from == life.host();
        if is_own && row.state == JobState::Queued && evidence.is_fresh(row.job, row.accepted_at) {
            // It is being accepted. Any other one of ours was adopted, and lost on the way to who looks after it.
            continue;
        }
        if !is_own && hosts.lives(from) {
            looked.others = true;
            continue;
        }
        match at_work(dir, &mut evidence, row.job, row.state, row.waiter) {
            AtWork::Somebody if life.adopts_what_is_left() || is_own => match store.job(row.job).await {
                Ok(mut record) => {
                    if is_own || adopt(store, dir, life, &mut record).await == Some(AtWork::Somebody) {
                        looked.adopted.push(record);
                    }
                }
                // One job that cannot be read must not keep the others from being adopted.
                Err(error) => tracing::warn!(job = %row.job, %error, "a job whose host is gone cannot be read"),
            },
            // Its caller may come back, or whoever has the environment it is to be run with.
            AtWork::Nobody
                if row.state == JobState::Queued
                    && (row.mode == JobMode::Sync || !environments.contains(&row.environment)) =>
            {
                left.insert(row.job);
            }
            AtWork::Somebody | AtWork::Nobody => {}
        }
    }
    looked.spared = alone.spared(left, life.grace().unwrap_or(ORPHAN_GRACE), Instant::now());
    Ok(looked)
}

/// Waiting jobs of hosts that are gone with which nobody waits, and since when they were seen so by this host: time it saw
/// pass, so that no jump of a clock ends one early.
#[derive(Debug, Default)]
pub(super) struct LeftAlone(Mutex<HashMap<JobId, Instant>>);

impl LeftAlone {
    /// Which of those that are `left` alone now have not been so for `grace` yet.
    fn spared(&self, left: HashSet<JobId>, grace: Duration, now: Instant) -> HashSet<JobId> {
        // Nothing that can panic leaves it half changed.
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.retain(|job, _| left.contains(job));
        let is_spared = |job: &JobId, since: &mut HashMap<JobId, Instant>| {
            now.saturating_duration_since(*since.entry(*job).or_insert(now)) < grace
        };
        left.into_iter().filter(|job| is_spared(job, &mut since)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_is_left_alone_is_spared_for_its_grace_and_one_that_is_looked_after_again_begins_anew() {
        let (alone, job, other) = (LeftAlone::default(), JobId::random(), JobId::random());
        let (grace, now) = (Duration::from_secs(30), Instant::now());
        let spared = |jobs: &[JobId], seconds| {
            let left = jobs.iter().copied().collect();
            let found = alone.spared(left, grace, now + Duration::from_secs(seconds));
            jobs.iter().map(|job| found.contains(job)).collect::<Vec<_>>()
        };
        assert_eq!(spared(&[job], 0), [true]);
        assert_eq!(spared(&[job, other], 29), [true, true]);
        assert_eq!(spared(&[job, other], 30), [false, true]);
        assert_eq!(spared(&[other], 31), [true], "somebody has the first one");
        assert_eq!(spared(&[job, other], 60), [true, false]);
    }
}
