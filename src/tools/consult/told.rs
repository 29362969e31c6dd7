//! What a reply says of a job beyond its record.
//!
//! Owns: what is asked of the jobs for it. May not know: how a reply is written.

use std::path::Path;

use super::Consults;
use crate::base::ids::JobId;
use crate::jobs::JobRecord;
use crate::jobs::client::Follow;
use crate::tools::ToolReply;
use crate::tools::reply::{self, Context, Shape};

impl Consults {
    /// What a reply about this job says beyond its record.
    pub async fn context(&self, record: &JobRecord, follow: Option<&Follow>) -> Context {
        let left_out = self.config.left_out.clone();
        let unread = self.unread(&record.workspace, &[record.id]).await;
        Context { left_out, environment: self.origin, unread, ..self.standing(record, follow).await }
    }

    /// Finished jobs of a workspace that nobody has read, without those that are told of anyway.
    pub(in crate::tools) async fn unread(&self, workspace: &Path, told: &[JobId]) -> Vec<JobId> {
        let mut unread = self.jobs.unread(workspace.to_owned()).await.unwrap_or_default();
        unread.retain(|job| !told.contains(job));
        unread
    }

    /// How a job stands, beyond its record.
    pub(in crate::tools) async fn standing(&self, record: &JobRecord, follow: Option<&Follow>) -> Context {
        let mut context = Context::default();
        if !record.state.is_terminal() {
            context.place = self.jobs.queue_place(record.id).await.unwrap_or_default();
            let live = match follow {
                Some(follow) => follow.glimpse().await,
                None => None,
            };
            match live {
                Some(live) => {
                    context.phase = Some(live.phase);
                    context.text_so_far = live.text;
                }
                None => context.phase = follow.map(Follow::describe),
            }
        }
        context
    }
}

/// The reply about a job that is over.
pub(in crate::tools) async fn finished(desk: &Consults, record: &JobRecord, shape: Shape) -> ToolReply {
    let context = desk.context(record, None).await;
    reply::job(record, &context, shape)
}

/// The reply about a run that is over whose outcome the store does not take: who waits gets the answer all the same.
pub(in crate::tools) async fn unstored(desk: &Consults, record: &JobRecord, shape: Shape) -> ToolReply {
    let context = Context { unstored: true, ..desk.context(record, None).await };
    reply::job(record, &context, shape)
}
