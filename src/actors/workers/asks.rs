//! What a worker process asks of jobs, answered by the host's own handle.
//!
//! Owns: the jobs each worker process follows, the questions in progress. May not know: bytes, calls. It belongs to one
//! incarnation, and what is in progress ends with it: a verb the store has begun is carried out, and nobody hears of it.

use std::collections::HashMap;

use tokio::task::AbortHandle;

use crate::base::fault::{Fault, FaultCode};
use crate::base::tasks::TaskSet;
use crate::jobs::client::{Accepted, Follow, JobsHandle, News, View};
use crate::tools::placed::placing::Placing;
use crate::tools::roots::RootsHandle;
use crate::worker::asks::{HostAnswer, Question};
use crate::worker::executor::CONCURRENT;

/// Questions in progress. A call has one or two open for each agent it asks, which are five at most; beyond that many the
/// worker is out of order, and is told so.
const MOST: usize = 10 * CONCURRENT;

/// One followed job.
struct Followed {
    /// Absent while somebody waits for news.
    follow: Option<Follow>,
    view: View,
    waiting: Option<AbortHandle>,
}

/// A question that was answered.
pub(super) struct Answered {
    /// Which question.
    pub(super) id: u64,
    /// The answer.
    pub(super) answer: Result<HostAnswer, Fault>,
    /// A follow that comes back from waiting, or is new.
    follow: Option<(u64, Follow)>,
}

/// What the fleet says to a question about it.
async fn of_fleet(fleet: &Placing, question: Question) -> Result<HostAnswer, Fault> {
    match question {
        Question::Place { ask } => fleet.place(*ask).await.map(|placed| HostAnswer::Placed { placed }),
        Question::PlacedView { job, most } => {
            fleet.view(job, most).await.map(|view| HostAnswer::PlacedView { view: view.map(Box::new) })
        }
        Question::Settle { call } => {
            fleet.settle(call).await;
            Ok(HostAnswer::Done)
        }
        _ => Err(Fault::new(FaultCode::WorkerProtocol, "the question is none about a fleet.")),
    }
}

/// Questions in progress.
pub(super) struct Asks {
    jobs: JobsHandle,
    roots: RootsHandle,
    fleet: Option<Placing>,
    follows: HashMap<u64, Followed>,
    tasks: TaskSet<Answered>,
}

impl Asks {
    pub(super) fn new(jobs: JobsHandle, roots: RootsHandle, fleet: Option<Placing>) -> Self {
        Self { jobs, roots, fleet, follows: HashMap::new(), tasks: TaskSet::new() }
    }

    /// Whether there is anything to wait for in [`Asks::answered`].
    pub(super) fn is_open(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// Takes a question; an answer that is known at once is given back.
    pub(super) fn ask(&mut self, id: u64, question: Question) -> Option<Result<HostAnswer, Fault>> {
        // What is answered at once is never refused: the end of an interest least of all.
        let at_once = matches!(question, Question::Live { .. } | Question::Unfollow { .. });
        let new = matches!(question, Question::Follow { .. });
        if !at_once && self.tasks.len() >= MOST || new && self.follows.len() >= MOST {
            return Some(Err(Fault::new(FaultCode::Busy, "the host answers as many questions as it may.")));
        }
        let jobs = self.jobs.clone();
        let answered = move |answer| Answered { id, answer, follow: None };
        match question {
            Question::Follow { job, follow } => {
                // Known from now on, so that an end of the interest that overtakes the answer finds it.
                let followed = Followed { follow: None, view: View::default(), waiting: None };
                self.follows.insert(follow, followed);
                self.tasks.spawn(async move {
                    match jobs.follow(job).await {
                        Ok(found) => {
                            let phase = found.describe();
                            Answered { id, answer: Ok(HostAnswer::Following { phase }), follow: Some((follow, found)) }
                        }
                        Err(fault) => Answered { id, answer: Err(fault), follow: None },
                    }
                });
            }
            Question::Next { follow } => {
                let known = self.follows.get_mut(&follow);
                let Some((followed, mut waiting)) = known.and_then(|known| known.follow.take().map(|f| (known, f)))
                else {
                    return Some(Err(Fault::new(FaultCode::WorkerProtocol, "nothing is followed under this number.")));
                };
                let task = self.tasks.spawn(async move {
                    let answer = match waiting.next().await {
                        Ok(News::Finished(record)) => Ok(HostAnswer::Finished { record: Box::new((*record).clone()) }),
                        Ok(News::Unstored(record)) => Ok(HostAnswer::Unstored { record: Box::new((*record).clone()) }),
                        Ok(News::Changed) => Ok(HostAnswer::Changed { phase: waiting.describe() }),
                        Err(fault) => Err(fault),
                    };
                    Answered { id, answer, follow: Some((follow, waiting)) }
                });
                followed.waiting = Some(task);
            }
            Question::Live { follow } => {
                let glimpse = self.follows.get(&follow).and_then(|followed| followed.view.glimpse());
                return Some(Ok(HostAnswer::Live { glimpse }));
            }
            Question::Unfollow { follow } => {
                if let Some(task) = self.follows.remove(&follow).and_then(|followed| followed.waiting) {
                    task.abort();
                }
            }
            Question::Accept { job, caller } => drop(self.tasks.spawn(async move {
                let accepted = jobs.accept(*job, caller).await;
                answered(
                    accepted
                        .map(|Accepted { record, joined }| HostAnswer::Accepted { record: Box::new(record), joined }),
                )
            })),
            Question::Record { job } => drop(self.tasks.spawn(async move {
                answered(jobs.record(job).await.map(|record| HostAnswer::Record { record: Box::new(record) }))
            })),
            Question::QueuePlace { job } => {
                drop(self.tasks.spawn(async move {
                    answered(jobs.queue_place(job).await.map(|place| HostAnswer::Place { place }))
                }))
            }
            Question::Unread { workspace } => drop(
                self.tasks
                    .spawn(async move { answered(jobs.unread(workspace).await.map(|jobs| HostAnswer::Jobs { jobs })) }),
            ),
            Question::HandOver { job } => {
                drop(self.tasks.spawn(async move { answered(jobs.hand_over(job).await.map(|()| HostAnswer::Done)) }))
            }
            Question::Roots { session } => {
                let roots = self.roots.clone();
                drop(
                    self.tasks
                        .spawn(async move { answered(Ok(HostAnswer::Roots { uris: roots.uris(session).await })) }),
                );
            }
            Question::Place { .. } | Question::PlacedView { .. } | Question::Settle { .. } => {
                let Some(fleet) = self.fleet.clone() else {
                    return Some(Err(Fault::new(FaultCode::WorkerProtocol, "this host has no fleet.")));
                };
                self.tasks.spawn(async move { answered(of_fleet(&fleet, question).await) });
            }
            Question::MarkRead { job } => drop(self.tasks.spawn(async move {
                jobs.mark_read(job).await;
                answered(Ok(HostAnswer::Done))
            })),
        }
        None
    }

    /// Waits for an answer; for ever when no question is open.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is lost when the future is dropped.
    pub(super) async fn answered(&mut self) -> Answered {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(mut answered)) => {
                    if let Some((number, follow)) = answered.follow.take()
                        && let Some(followed) = self.follows.get_mut(&number)
                    {
                        followed.view = follow.view();
                        followed.follow = Some(follow);
                        followed.waiting = None;
                    }
                    return answered;
                }
                // Nobody wants the answer of a wait that was cancelled.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }
}
