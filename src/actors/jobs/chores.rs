//! What the jobs' supervisor has done beside itself: verbs of the store that take a while, and what a sweep does.
//!
//! Owns: the order of verbs within one chore. May not know: who waits for a job.

use super::attachments::Attachment;
use crate::base::ids::{JobId, UnixMillis};
use crate::base::state_dir::StateDir;
use crate::base::tasks;
use crate::jobs::store::{Accept, AcceptLimits, CancelState, RetentionPolicy, StoreError, StoreHandle};
use crate::jobs::{CancelReason, NewJob, reserve};

/// Accepts what may have been accepted before. An invocation finds its job by itself; without one the job is known by the id
/// it was to have.
pub(super) async fn accept_again(
    store: &StoreHandle,
    job: &NewJob,
    limits: AcceptLimits,
) -> Result<Accept, StoreError> {
    match store.job(job.id).await {
        Ok(record) => Ok(Accept::Inserted(record)),
        Err(StoreError::UnknownJob(_)) => store.accept(job.clone(), limits).await,
        Err(error) => Err(error),
    }
}

/// Asks for the end of a job nobody waits for any more, unless somebody has taken it over.
pub(super) async fn end_for_lost_caller(store: StoreHandle, attachment: Attachment, job: JobId) {
    // The reason first, so that the runner finds it when it is asked to end.
    match store.request_cancel(job, CancelReason::CallerLost).await {
        Ok(CancelState::GoesOn | CancelState::Ended { .. }) => return,
        Ok(CancelState::Requested { .. } | CancelState::AlreadyRequested { .. }) => {}
        Err(error) => tracing::warn!(%error, "the reason of a cancel was not recorded"),
    }
    attachment.terminate();
}

/// Keeps a little room on the disk for an answer that finds it full.
pub(super) async fn keep_reserve(dir: &StateDir) {
    let dir = dir.clone();
    let kept = tasks::spawn_blocking(move || reserve::keep(&dir)).await;
    if let Ok(Err(error)) = kept {
        tracing::debug!(%error, "no room is kept on the disk");
    }
}

/// Forgets jobs that were kept long enough.
pub(super) async fn prune(store: &StoreHandle, dir: &StateDir) {
    match store.prune(RetentionPolicy::default(), UnixMillis::now()).await {
        Ok(pruned) => {
            for job in pruned.jobs {
                if let Err(error) = dir.remove_job_dir(job) {
                    tracing::debug!(%error, "the directory of a forgotten job stays");
                }
            }
        }
        Err(error) => tracing::warn!(%error, "old jobs were not forgotten"),
    }
}
