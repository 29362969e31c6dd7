//! The consult actor: one attached job, as supervision sees it.
//!
//! Owns: the task that works with the job's custody. May not know: who waits, what the answer is for, pipes. A panic in it
//! costs nothing: the custody (runner, pipes, news) is only borrowed, and the next incarnation goes on with it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::custody::Custody;
use super::messages::JobsMsg;
use crate::actors::child;
use crate::actors::kept::Kept;
use crate::base::ids::JobId;
use crate::base::tasks::TaskSet;
use crate::failpoints::{FaultPoint, Faults};
use crate::jobs::JobRecord;

/// Everything that can wake a consult actor.
#[derive(Debug)]
pub(super) enum ConsultMsg {
    /// The job is attended to.
    Began,
    /// Custody has ended; the job as it ended, where the store could say.
    Ended(Option<Arc<JobRecord>>),
    /// The task that worked with it panicked.
    Panicked,
}

/// The consult actor.
pub(super) struct Consult;

/// What it is started with.
pub(super) struct ConsultArguments {
    /// The job.
    pub job: JobId,
    /// Its custody, to be borrowed.
    pub custody: Arc<Kept<Custody>>,
    /// Its supervisor.
    pub jobs: ActorRef<JobsMsg>,
    /// Fault plan.
    pub faults: Faults,
}

/// The task of a consult actor panicked.
#[derive(Debug, thiserror::Error)]
#[error("attending a job panicked")]
pub(super) struct AttendingPanicked;

/// The actor's state; dropping it gives the custody back.
pub(super) struct ConsultState {
    job: JobId,
    jobs: ActorRef<JobsMsg>,
    faults: Faults,
    _task: TaskSet<()>,
}

#[cfg_attr(feature = "ractor-async-trait", ractor::async_trait)]
impl Actor for Consult {
    type Msg = ConsultMsg;
    type State = ConsultState;
    type Arguments = ConsultArguments;

    async fn pre_start(&self, me: ActorRef<Self::Msg>, a: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        let custody = a.custody;
        let began = me.clone();
        let mut task = TaskSet::new();
        task.spawn(async move {
            let attending = async {
                // The last incarnation may still be giving it back. Nothing to borrow means that it is over.
                let mut lent = custody.lend().await?;
                let _ = began.cast(ConsultMsg::Began);
                let record = lent.get()?.run().await;
                drop(lent.finish());
                record
            };
            let told = match AssertUnwindSafe(attending).catch_unwind().await {
                Ok(record) => ConsultMsg::Ended(record),
                Err(_) => ConsultMsg::Panicked,
            };
            let _ = me.cast(told);
        });
        Ok(ConsultState { job: a.job, jobs: a.jobs, faults: a.faults, _task: task })
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        child::in_time(state.act(me, message)).await?
    }
}

impl ConsultState {
    /// Handles one message.
    async fn act(&mut self, me: ActorRef<ConsultMsg>, message: ConsultMsg) -> Result<(), ActorProcessingErr> {
        if self.faults.is_armed() {
            let operation = match &message {
                ConsultMsg::Began => "began",
                ConsultMsg::Ended(_) => "ended",
                ConsultMsg::Panicked => "panicked",
            };
            child::meet(&self.faults, FaultPoint::ConsultAttend, operation).await?;
        }
        match message {
            ConsultMsg::Began => Ok(()),
            ConsultMsg::Ended(record) => {
                let _ = self.jobs.cast(JobsMsg::Ended { job: self.job, record });
                me.stop(None);
                Ok(())
            }
            ConsultMsg::Panicked => Err(AttendingPanicked.into()),
        }
    }
}
