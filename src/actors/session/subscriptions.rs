//! What a client learns beside its calls: how tasks stand, and their news.
//!
//! Owns: how a question about tasks is put, how a task is followed. May not know: which task there is, which words the client
//! is told of it in, who asked.
//!
//! Invariant: a question that panics is answered, as a host tool is.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

use super::{SessionEvent, SessionLoop};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::CallNumber;
use crate::protocol::session::ClientInfo;
use crate::protocol::tasks::TaskAsk;

impl SessionLoop {
    /// Finds out about tasks, beside the session.
    // Not a part of who performs effects: it makes what is spawned on the stack, and every server's stack would grow by that.
    #[inline(never)]
    pub(super) fn ask(&mut self, number: CallNumber, ask: TaskAsk, client: ClientInfo) {
        if !self.turn.host_calls.contains_key(&number) {
            return;
        }
        let desk = self.neighbours.task_desk.clone();
        let mailbox = self.mailbox.clone();
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
        self.turn.begun(number, task);
    }

    /// Follows the tasks of this number, beside the session.
    #[inline(never)]
    pub(super) fn follow(&mut self, number: CallNumber) {
        let Some(desk) = &self.neighbours.task_desk else {
            self.turn.follows.remove(&number);
            return;
        };
        // A subscription may have ended in the turn it began in.
        let Some(following) = self.turn.follows.get_mut(&number) else { return };
        for job in following.jobs.iter().copied() {
            let mailbox = self.mailbox.clone();
            let tell = move |news| drop(mailbox.send(SessionEvent::TaskNews { number, news }));
            let follower = desk.clone().follow(job, following.wanted, following.client.clone(), tell);
            following.tasks.push(self.tasks.spawn(follower));
        }
    }
}
