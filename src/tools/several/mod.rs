//! A consult of several agents: a job for each, and one reply about all of them.
//!
//! Owns: how their consults are accepted, followed and handed over (what is to be done when is decided in `gathering`), and what
//! their caller hears meanwhile. May not know: runners, processes, what a reply looks like.
//!
//! Invariants: (1) each job has a key and an invocation of its own, so that another attempt at the same call joins every job
//! that is there and has only the others accepted; (2) the caller waits for each of them as one call: when it goes away, each
//! that nobody else waits for is ended; (3) a refusal or a failure of one costs the others nothing.

mod gathering;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::select_all;

use self::gathering::{FoundJob, GatherEffect, GatherEvent, Gathering, Patience};
use super::consult::{ConsultOptions, Consults, hand_over};
use super::reply::{self, Context, Reader, SeveralContext, Shape};
use super::{ToolCall, ToolReply};
use crate::base::fault::Fault;
use crate::base::ids::{InvocationId, JobId, UnixMillis};
use crate::jobs::client::{Follow, News};
use crate::jobs::{JobMode, JobRecord, JobState};

/// Longest report of progress: clients show one line.
const REPORT: usize = 190;

/// The parts of a call that asks so many agents.
pub(super) fn parts(invocation: InvocationId, count: usize) -> impl Iterator<Item = InvocationId> {
    (1..=u8::try_from(count).unwrap_or(u8::MAX)).map(move |number| invocation.part(number))
}

/// Who asks several agents.
#[derive(Debug, Clone, Copy)]
pub enum WhoAsks {
    /// A person at a keyboard, who ends what is not over when it goes away.
    Person,
    /// A tool's call.
    Call(InvocationId),
}

/// One of the agents, and how its consult stands.
pub struct Consulted {
    /// The agent.
    pub agent: String,
    /// How it stands.
    pub standing: Standing,
    follow: Option<Follow>,
    /// It joined a job it did not begin, by its key.
    joined: bool,
}

/// How the consult of one agent stands.
#[derive(Debug, Clone)]
pub enum Standing {
    /// It was not asked yet.
    Unasked,
    /// Nothing was started for it.
    Refused(Fault),
    /// Its job, as it was when it was last looked at.
    Open(Box<JobRecord>),
    /// Its job is over; `stored` when the store has the outcome.
    Over {
        /// As it ended.
        record: Arc<JobRecord>,
        /// Whether it is in the store.
        stored: bool,
    },
    /// It has a job, and how that goes on cannot be seen from here.
    Lost {
        /// The job as it was when it was last seen.
        record: Box<JobRecord>,
        /// Why.
        fault: Fault,
    },
}

impl Standing {
    /// Its job, where there is one.
    #[must_use]
    pub fn record(&self) -> Option<&JobRecord> {
        match self {
            Self::Unasked | Self::Refused(_) => None,
            Self::Open(record) | Self::Lost { record, .. } => Some(record),
            Self::Over { record, .. } => Some(record),
        }
    }
}

impl Consulted {
    /// One that stands so.
    #[must_use]
    pub(crate) fn new(agent: &str, standing: Standing) -> Self {
        Self { agent: agent.to_owned(), standing, follow: None, joined: false }
    }

    /// What it is doing, in a few words.
    #[must_use]
    pub fn phase(&self) -> String {
        match &self.standing {
            Standing::Unasked => "waits to be asked".to_owned(),
            Standing::Refused(fault) => format!("refused ({})", fault.code),
            Standing::Open(_) => self.follow.as_ref().map_or_else(|| "accepted".to_owned(), Follow::describe),
            Standing::Over { record, .. } => match record.state {
                JobState::Succeeded => "done".to_owned(),
                state => state.as_str().to_owned(),
            },
            Standing::Lost { .. } => "out of sight".to_owned(),
        }
    }

    /// What it has said so far, where that is known.
    pub async fn said(&self) -> String {
        match (&self.standing, &self.follow) {
            (Standing::Open(_), Some(follow)) => follow.glimpse().await.map(|glimpse| glimpse.text).unwrap_or_default(),
            _ => String::new(),
        }
    }
}

/// A consult of several agents under way.
pub struct Several<'a> {
    desk: &'a Consults,
    each: &'a [ConsultOptions],
    asker: WhoAsks,
    gathering: Gathering,
    /// What is to be done, in this order; the first one may be under way.
    due: VecDeque<GatherEffect>,
    agents: Vec<Consulted>,
    /// Whose news are listened to first; another one's each time, so that one that says much keeps nobody waiting.
    first: usize,
    /// Whether jobs that are joined may be those of an earlier attempt at the same call.
    again: bool,
}

impl<'a> Several<'a> {
    /// A consult with these options, one for each agent. Nothing is asked yet.
    #[must_use]
    pub fn new(desk: &'a Consults, each: &'a [ConsultOptions], asker: WhoAsks) -> Self {
        let background = each.iter().any(|options| options.background);
        let patience = if background { Patience::GoesOn } else { Patience::Waits };
        let agents = each.iter().map(|options| Consulted::new(&options.request.agent, Standing::Unasked));
        Self {
            gathering: Gathering::new(each.len(), patience),
            due: VecDeque::new(),
            agents: agents.collect(),
            desk,
            each,
            asker,
            first: 0,
            again: false,
        }
    }

    /// Has all of them accepted and followed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not undo what was accepted; who waits for it withdraws.
    pub async fn begin(&mut self) {
        self.happened(GatherEvent::Begun);
        self.settle().await;
    }

    /// The agents, in the order they were named.
    #[must_use]
    pub fn agents(&self) -> &[Consulted] {
        &self.agents
    }

    /// Whether nothing is waited for any more.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.gathering.is_complete()
    }

    /// Waits for news of those that are not over.
    ///
    /// # Cancel safety
    ///
    /// Safe: what is to be done is kept in `self` until it is done.
    pub async fn news(&mut self) {
        self.settle().await;
        self.first += 1;
        let count = self.agents.len().max(1);
        let (gathering, first) = (&self.gathering, self.first);
        let followed = self.agents.iter_mut().enumerate().filter_map(|(at, consulted)| {
            let follow = consulted.follow.as_mut().filter(|_| gathering.is_waited_for(at))?;
            Some((at, follow))
        });
        let mut followed: Vec<_> = followed.collect();
        followed.sort_by_key(|(at, _)| (at + first) % count);
        if followed.is_empty() {
            // Everything is at an end, which whoever waits looks at next.
            return;
        }
        let news = followed.into_iter().map(|(at, follow)| Box::pin(async move { (at, follow.next().await) }));
        let ((at, news), ..) = select_all(news).await;
        let event = match news {
            Ok(News::Changed) => return,
            Ok(News::Finished(record)) => {
                self.agents[at].standing = Standing::Over { record, stored: true };
                GatherEvent::Ended(at)
            }
            Ok(News::Unstored(record)) => {
                self.agents[at].standing = Standing::Over { record, stored: false };
                GatherEvent::Ended(at)
            }
            Err(fault) => {
                self.lose(at, fault);
                GatherEvent::Lost(at)
            }
        };
        self.happened(event);
    }

    /// The caller waits no longer: what is not over goes on in the background.
    pub async fn lapse(&mut self) {
        self.happened(GatherEvent::Lapsed);
        self.settle().await;
    }

    /// Ends all that is not over, asks nobody else, and waits for the ends.
    ///
    /// # Cancel safety
    ///
    /// Safe, but what was asked for goes on.
    pub async fn cancel(&mut self) {
        self.due.clear();
        for consulted in &self.agents {
            if let Standing::Open(record) = &consulted.standing
                && let Err(error) = self.desk.jobs.cancel(record.id).await
            {
                tracing::debug!(%error, job = %record.id, "the end of a job could not be asked for");
            }
        }
        while (0..self.agents.len()).any(|at| self.gathering.is_waited_for(at)) {
            self.news().await;
        }
    }

    fn happened(&mut self, event: GatherEvent) {
        let mut effects = Vec::new();
        self.gathering.step(event, &mut effects);
        self.due.extend(effects);
    }

    /// Does what is to be done, and what follows from that.
    async fn settle(&mut self) {
        while let Some(effect) = self.due.front().copied() {
            let event = self.perform(effect).await;
            self.due.pop_front();
            if let Some(event) = event {
                self.happened(event);
            }
        }
    }

    async fn perform(&mut self, effect: GatherEffect) -> Option<GatherEvent> {
        match effect {
            GatherEffect::Ask(at) => Some(self.ask(at).await),
            GatherEffect::Follow(at) => {
                let job = self.agents[at].standing.record()?.id;
                match self.desk.jobs.follow(job).await {
                    Ok(follow) => {
                        self.agents[at].follow = Some(follow);
                        Some(GatherEvent::Followed(at))
                    }
                    Err(fault) => {
                        self.lose(at, fault);
                        Some(GatherEvent::Lost(at))
                    }
                }
            }
            GatherEffect::HandOver(at) => {
                let job = self.agents[at].standing.record()?.id;
                match hand_over(self.desk, job).await {
                    Ok(()) => {
                        if let Standing::Open(record) | Standing::Lost { record, .. } = &mut self.agents[at].standing {
                            record.mode = JobMode::Background;
                        }
                        Some(GatherEvent::HandedOver(at))
                    }
                    Err(fault) => {
                        self.lose(at, fault);
                        Some(GatherEvent::Lost(at))
                    }
                }
            }
            GatherEffect::Tell => None,
        }
    }

    async fn ask(&mut self, at: usize) -> GatherEvent {
        let options = &self.each[at];
        let (part, caller) = match self.asker {
            WhoAsks::Person => (None, None),
            WhoAsks::Call(call) => (parts(call, self.each.len()).nth(at), (!options.background).then_some(call)),
        };
        let accepted = self.desk.jobs.accept(self.desk.job(options, part), caller).await;
        let consulted = &mut self.agents[at];
        match accepted {
            Err(fault) => {
                consulted.standing = Standing::Refused(fault);
                GatherEvent::Refused(at)
            }
            Ok(accepted) => {
                let record = accepted.record;
                consulted.joined = accepted.joined && options.is_keyed_by_caller() && !self.again;
                let found = match (record.state.is_terminal(), record.mode) {
                    (true, _) => FoundJob::Over,
                    (false, JobMode::Sync) => FoundJob::Dependent,
                    (false, JobMode::Background) => FoundJob::Independent,
                };
                consulted.standing = match found {
                    FoundJob::Over => Standing::Over { record: Arc::new(record), stored: true },
                    FoundJob::Dependent | FoundJob::Independent => Standing::Open(Box::new(record)),
                };
                GatherEvent::Accepted(at, found)
            }
        }
    }

    fn lose(&mut self, at: usize, fault: Fault) {
        let standing = std::mem::replace(&mut self.agents[at].standing, Standing::Unasked);
        self.agents[at].standing = match standing {
            Standing::Open(record) => Standing::Lost { fault: fault.job(record.id), record },
            // The first reason says more than what followed from it.
            other => other,
        };
    }

    /// How long ago the first of these jobs was accepted, of those that are this very call's.
    fn since_accepted(&self, now: UnixMillis) -> Duration {
        let WhoAsks::Call(call) = self.asker else { return Duration::ZERO };
        let ours: Vec<String> = parts(call, self.each.len()).map(|part| part.to_string()).collect();
        let records = self.agents.iter().filter_map(|consulted| consulted.standing.record());
        let records = records.filter(|record| record.invocation.as_ref().is_some_and(|part| ours.contains(part)));
        Duration::from_millis(records.map(|record| now.since(record.accepted_at)).max().unwrap_or(0))
    }

    /// What they are doing, in one line.
    #[must_use]
    pub fn describe(&self) -> String {
        let most = REPORT / self.agents.len().max(1) - 2;
        let each = self.agents.iter().map(|consulted| {
            let told = format!("{}: {}", consulted.agent, consulted.phase());
            if told.chars().count() <= most {
                return told;
            }
            told.chars().take(most - 1).chain(['…']).collect()
        });
        each.collect::<Vec<_>>().join("; ")
    }

    /// The reply about all of them as they are now.
    pub async fn reply(&mut self, shape: Shape, reader: Reader, gave_up_after: Option<Duration>) -> ToolReply {
        let background = self.each.iter().any(|options| options.background);
        let lapsed = self.gathering.is_complete() && !background;
        let mut told = Vec::new();
        for consulted in &mut self.agents {
            if let Standing::Open(record) = &consulted.standing
                && lapsed
            {
                // It may have begun, or be over, since it was accepted.
                let id = record.id;
                match self.desk.jobs.record(id).await {
                    Ok(now) if now.state.is_terminal() => {
                        consulted.standing = Standing::Over { record: Arc::new(now), stored: true };
                    }
                    Ok(now) => consulted.standing = Standing::Open(Box::new(now)),
                    Err(error) => tracing::debug!(%error, job = %id, "a job is told as it was accepted"),
                }
            }
            let context = match &consulted.standing {
                Standing::Open(record) => self.desk.standing(record, consulted.follow.as_ref()).await,
                Standing::Over { stored, .. } => Context { unstored: !stored, ..Context::default() },
                Standing::Unasked | Standing::Refused(_) | Standing::Lost { .. } => Context::default(),
            };
            told.push(Context { joined: consulted.joined, reader, ..context });
        }
        let jobs: Vec<JobId> = self.agents.iter().filter_map(|told| told.standing.record()).map(|job| job.id).collect();
        let unread = match self.each.first() {
            Some(options) => self.desk.unread(&options.workspace, &jobs).await,
            None => Vec::new(),
        };
        let open = self.agents.iter().any(|consulted| matches!(consulted.standing, Standing::Open(_)));
        let context = SeveralContext {
            mode: if background || (lapsed && open) { JobMode::Background } else { JobMode::Sync },
            handed_over: lapsed,
            gave_up_after,
            unread,
            left_out: self.desk.config.left_out.clone(),
            environment: self.desk.origin,
            reader,
        };
        reply::several(&self.agents, &told, &context, shape)
    }
}

/// Asks all of them, waits as long as the caller waits, and tells about all of them.
pub(super) async fn consult(desk: &Consults, call: &ToolCall, each: &[ConsultOptions], shape: Shape) -> ToolReply {
    let client = call.client.name();
    let client = client.as_deref();
    let mut several = Several::new(desk, each, WhoAsks::Call(call.invocation));
    several.again = call.evidence.is_some();
    several.begin().await;
    let (wait, gave_up_after) = desk.wait(each.iter().find_map(|options| options.wait), client);
    // An attempt after a lost worker waits for the rest only.
    let waited = if several.again { several.since_accepted(UnixMillis::now()) } else { Duration::ZERO };
    let began = Instant::now().checked_sub(waited).unwrap_or_else(Instant::now);
    let lapse = tokio::time::sleep(wait.saturating_sub(waited));
    tokio::pin!(lapse);
    let mut ticks = tokio::time::interval(desk.clients.profile(client).progress);
    ticks.reset();
    let mut lapsed = false;
    while !several.is_complete() {
        tokio::select! {
            () = several.news() => {}
            () = &mut lapse, if !lapsed => {
                lapsed = true;
                several.lapse().await;
            }
            _ = ticks.tick(), if call.progress.is_wanted() => {
                let elapsed = began.elapsed();
                let message = format!("{}, {} s", several.describe(), elapsed.as_secs());
                call.progress.report(elapsed.as_secs_f64().round(), message);
            }
        }
    }
    several.reply(shape, Reader::Model, gave_up_after.filter(|_| lapsed)).await
}
