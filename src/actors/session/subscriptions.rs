//! What a client learns beside its calls: how tasks stand, their news, that the tools differ.
//!
//! Owns: the questions about tasks that are under way, who follows tasks for the client, the change it has yet to hear of.
//! May not know: which task there is, which words it is told of in.
//!
//! Invariants: (1) a question that panics is answered, as a host tool is; (2) however often the tools changed, the client
//! is told once, after it has read what was sent before.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

use super::passed::{Following, HostCall, HostWork};
use super::{BACKLOG, SessionEvent, SessionLoop, SessionStage};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{CallNumber, JobId};
use crate::protocol::session::{ClientInfo, Wanted};
use crate::protocol::tasks::TaskAsk;

impl SessionLoop {
    /// Finds out about tasks, beside the session.
    pub(super) fn ask(&mut self, number: CallNumber, ask: TaskAsk, client: ClientInfo) {
        let desk = self.task_desk.clone();
        let mailbox = self.mailbox.clone();
        let work = HostWork::Ask(ask.clone(), client.clone());
        let task = self.tasks.spawn(async move {
            let answer = async move {
                match desk {
                    Some(desk) => desk.ask(ask, &client).await,
                    None => Err(Fault::new(FaultCode::Internal, "there are no tasks here.")),
                }
            };
            let answer = AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!("a question about tasks panicked");
                Err(Fault::new(FaultCode::Internal, "the question failed in a way it must not."))
            });
            let _ = mailbox.send(SessionEvent::Told { call: number, answer: answer.map_err(Box::new) });
        });
        self.host_calls.insert(number, HostCall { task, work });
    }

    /// Follows tasks for the client, beside the session.
    pub(super) fn follow(&mut self, number: CallNumber, jobs: Vec<JobId>, wanted: Wanted, client: &ClientInfo) {
        let Some(desk) = &self.task_desk else { return };
        let mut following = Vec::with_capacity(jobs.len());
        for job in jobs.iter().copied() {
            let mailbox = self.mailbox.clone();
            let tell = move |news| drop(mailbox.send(SessionEvent::TaskNews { number, news }));
            following.push(self.tasks.spawn(desk.clone().follow(job, wanted, client.clone(), tell)));
        }
        self.follows.insert(number, Following { tasks: following, jobs, wanted, client: client.clone() });
    }

    pub(super) fn unfollow(&mut self, number: CallNumber) {
        for task in self.follows.remove(&number).into_iter().flat_map(|following| following.tasks) {
            task.abort();
        }
    }

    /// Says that the tools differ, once the client has read what it was sent before: however often they changed, it lists
    /// them once.
    pub(super) fn say_change(&mut self) {
        if self.stage == SessionStage::Open && self.out.len() <= BACKLOG {
            self.owes_change = false;
            self.core.on_tools_changed(&mut self.out);
            self.whole = self.out.len();
        }
    }
}
