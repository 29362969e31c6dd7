//! Tasks, which are jobs seen through the task protocols.
//!
//! Owns: how a job's state reads as a task's status, and what each question about a task asks of the jobs. May not know:
//! how either protocol is written, sessions.
//!
//! Everything is read from the store, or from the fleet's queue where the store has no such job, so a task outlives its session, its
//! host and any restart. A list of tasks has those of this machine's store.

use std::time::Duration;

use super::consult::{Caller, Consults, finished};
use super::placed;
use super::reply::{self, Detail, Render, Shape};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{JobId, SessionNumber, UnixMillis};
use crate::config::clients::Structured;
use crate::jobs::client::News;
use crate::jobs::store::{JobFilter, MOST_LISTED};
use crate::jobs::{JobRecord, JobState, JobSummary};
use crate::protocol::session::{ClientInfo, Wanted};
use crate::protocol::tasks::{PAGE, TaskAnswer, TaskAsk, TaskCursor, TaskNews, TaskStatus, TaskView};

/// Longest a cancel waits for the job to be over: an agent's grace, the end of its group, a busy disk. Then the caller is
/// told to look again.
const CANCEL_WAIT: Duration = Duration::from_secs(10);

/// How long one question about a job of the fleet waits for its end.
const FLEET_WAIT: Duration = Duration::from_secs(30);

/// A job its caller may look into.
struct Found {
    record: JobRecord,
    /// How it stands, where this machine's store does not have it and the fleet does.
    in_fleet: Option<String>,
}

/// Answers what sessions ask about tasks.
#[derive(Clone)]
pub struct TaskDesk {
    desk: Consults,
    caller: Caller,
}

const fn status(state: JobState) -> TaskStatus {
    match state {
        JobState::Queued | JobState::Running => TaskStatus::Working,
        JobState::Succeeded => TaskStatus::Completed,
        JobState::Failed | JobState::Interrupted => TaskStatus::Failed,
        JobState::Cancelled => TaskStatus::Cancelled,
    }
}

impl TaskDesk {
    /// Tasks over these jobs.
    #[must_use]
    pub fn new(desk: Consults) -> Self {
        Self { desk, caller: Caller::Owner }
    }

    /// The same for the client of this session, which is told of the jobs it may look into.
    #[must_use]
    pub fn of(self, session: SessionNumber) -> Self {
        Self { caller: Caller::Client(session), ..self }
    }

    /// A job its caller may look into, of this machine or of the fleet; one of the fleet when it is over, or after so long.
    async fn found(&self, job: JobId, most: Duration) -> Result<Found, Fault> {
        let unknown = match self.desk.jobs.record(job).await {
            Ok(record) => {
                self.desk.check_job(&record, self.caller).await?;
                return Ok(Found { record, in_fleet: None });
            }
            Err(fault) if fault.code == FaultCode::UnknownJob => fault,
            Err(fault) => return Err(fault),
        };
        let seen = placed::look::see(&self.desk, job, self.caller, most).await?.ok_or(unknown)?;
        let stands = seen.context.phase.unwrap_or_else(|| seen.record.state.as_str().to_owned());
        Ok(Found { record: seen.record, in_fleet: Some(stands) })
    }

    /// Finds out what is asked.
    ///
    /// # Errors
    ///
    /// `unknown_job`, `invalid_input` for a task that is over and was to be cancelled, `store_unavailable`.
    ///
    /// # Cancel safety
    ///
    /// Safe, but a cancel that was asked for goes on.
    pub async fn ask(&self, ask: TaskAsk, client: &ClientInfo) -> Result<TaskAnswer, Fault> {
        self.present()?.answer(ask, client).await
    }

    /// As its caller is now: what a session has brought with it is known when it asks, and not before.
    fn present(&self) -> Result<Self, Fault> {
        Ok(Self { desk: self.desk.of(self.caller)?.into_owned(), caller: self.caller })
    }

    async fn answer(&self, ask: TaskAsk, client: &ClientInfo) -> Result<TaskAnswer, Fault> {
        let jobs = &self.desk.jobs;
        match ask {
            TaskAsk::Look(job) => {
                let found = self.found(job, Duration::ZERO).await?;
                Ok(TaskAnswer::Task(Box::new(self.view(&found).await)))
            }
            TaskAsk::Read(job) => {
                let found = self.found(job, Duration::ZERO).await?;
                Ok(TaskAnswer::Task(Box::new(self.read(&found, client).await)))
            }
            TaskAsk::Wait(job) => {
                let mut found = self.found(job, FLEET_WAIT).await?;
                while !found.record.state.is_terminal() {
                    if found.in_fleet.is_some() {
                        found = self.found(job, FLEET_WAIT).await?;
                        continue;
                    }
                    let mut follow = jobs.follow(job).await?;
                    found.record = loop {
                        if let News::Finished(record) = follow.next().await? {
                            break (*record).clone();
                        }
                    };
                }
                Ok(TaskAnswer::Task(Box::new(self.read(&found, client).await)))
            }
            TaskAsk::List(after) => self.page(after).await,
            TaskAsk::Cancel(job) => self.cancel(job).await,
            TaskAsk::RequestCancel(job) => {
                match self.found(job, Duration::ZERO).await?.in_fleet {
                    None => drop(jobs.cancel(job).await?),
                    Some(_) => drop(placed::look::end(&self.desk, job, self.caller, Duration::ZERO).await?),
                }
                Ok(TaskAnswer::Done)
            }
            TaskAsk::Update(job) => self.found(job, Duration::ZERO).await.map(|_| TaskAnswer::Done),
            TaskAsk::Which(asked) => {
                let mut known = Vec::new();
                for job in asked {
                    match self.found(job, Duration::ZERO).await {
                        Ok(_) => known.push(job),
                        Err(fault) if matches!(fault.code, FaultCode::UnknownJob | FaultCode::InvalidInput) => {}
                        Err(fault) => return Err(fault),
                    }
                }
                Ok(TaskAnswer::Known(known))
            }
        }
    }

    /// Tells about a task from how it stands until it is over.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn follow(self, job: JobId, wanted: Wanted, client: ClientInfo, tell: impl Fn(TaskNews) + Send + Sync) {
        let followed = async { self.present()?.follow_to_the_end(job, wanted, &client, &tell).await };
        if let Err(fault) = followed.await {
            tracing::debug!(%fault, %job, "a task is followed no more");
            tell(TaskNews::Lost(job));
        }
    }

    async fn follow_to_the_end(
        &self,
        job: JobId,
        wanted: Wanted,
        client: &ClientInfo,
        tell: &(impl Fn(TaskNews) + Send + Sync),
    ) -> Result<(), Fault> {
        let jobs = &self.desk.jobs;
        let mut follow = match jobs.follow(job).await {
            Err(fault) if fault.code == FaultCode::UnknownJob && self.desk.fleet.is_some() => {
                return self.follow_in_fleet(job, wanted, client, tell).await;
            }
            follow => follow?,
        };
        let profile = self.desk.clients.profile(client.name().as_deref());
        let mut ticks = tokio::time::interval(profile.progress);
        ticks.reset();
        let mut told = None;
        loop {
            // A job is queued, then running, then over; what happens while it runs changes nothing about its status.
            if told != Some(JobState::Running) {
                let record = jobs.record(job).await?;
                if told != Some(record.state) {
                    told = Some(record.state);
                    tell(self.news(&record, wanted, client).await);
                }
                if record.state.is_terminal() {
                    return Ok(());
                }
            }
            tokio::select! {
                news = follow.next() => if let News::Finished(record) = news? {
                    tell(self.news(&record, wanted, client).await);
                    return Ok(());
                },
                _ = ticks.tick(), if wanted == Wanted::Progress => {
                    let elapsed = Duration::from_millis(UnixMillis::now().since(jobs.record(job).await?.accepted_at));
                    let message = format!("{}, {} s", follow.describe(), elapsed.as_secs());
                    tell(TaskNews::Progress { value: elapsed.as_secs_f64().round(), message });
                }
            }
        }
    }

    /// The same of a job that another machine has, or none yet: asked again and again, as nothing there tells us.
    async fn follow_in_fleet(
        &self,
        job: JobId,
        wanted: Wanted,
        client: &ClientInfo,
        tell: &(impl Fn(TaskNews) + Send + Sync),
    ) -> Result<(), Fault> {
        let pace = self.desk.clients.profile(client.name().as_deref()).progress;
        let mut told = None;
        loop {
            let most = if told.is_some() { pace } else { Duration::ZERO };
            let found = self.found(job, most).await?;
            let state = found.record.state;
            let is_news = told.replace(state) != Some(state);
            if is_news {
                tell(self.told(&found, wanted, client).await);
            } else if let (Wanted::Progress, Some(stands)) = (wanted, &found.in_fleet) {
                let elapsed = Duration::from_millis(UnixMillis::now().since(found.record.accepted_at));
                let message = format!("{stands}, {} s", elapsed.as_secs());
                tell(TaskNews::Progress { value: elapsed.as_secs_f64().round(), message });
            }
            if state.is_terminal() {
                return Ok(());
            }
        }
    }

    /// Only who is told the result has read it.
    async fn news(&self, record: &JobRecord, wanted: Wanted, client: &ClientInfo) -> TaskNews {
        self.told(&Found { record: record.clone(), in_fleet: None }, wanted, client).await
    }

    async fn told(&self, found: &Found, wanted: Wanted, client: &ClientInfo) -> TaskNews {
        TaskNews::Changed(Box::new(match wanted {
            Wanted::Status => self.read(found, client).await,
            Wanted::Progress | Wanted::End => self.view(found).await,
        }))
    }

    /// How a task stands.
    async fn view(&self, found: &Found) -> TaskView {
        let record = &found.record;
        let fault = record.outcome.as_ref().and_then(|outcome| outcome.fault.as_ref());
        let message = match (record.state, fault, &found.in_fleet) {
            (JobState::Queued | JobState::Running, _, Some(stands)) => stands.clone(),
            (JobState::Queued, _, None) => "waiting for its turn".to_owned(),
            (JobState::Running, _, None) => match self.desk.jobs.follow(record.id).await {
                Ok(follow) => follow.describe(),
                Err(_) => record.state.as_str().to_owned(),
            },
            (_, Some(fault), _) => fault.detail.clone(),
            (state, None, _) => state.as_str().to_owned(),
        };
        TaskView {
            job: record.id,
            status: status(record.state),
            message,
            created: record.accepted_at,
            updated: record.finished_at.or(record.started_at).unwrap_or(record.accepted_at),
            result: None,
        }
    }

    /// The same with the result of a task that is over, which counts as read once it is written.
    async fn read(&self, found: &Found, client: &ClientInfo) -> TaskView {
        let (mut view, record) = (self.view(found).await, &found.record);
        if record.state.is_terminal() {
            let profile = self.desk.clients.profile(client.name().as_deref());
            let (budget, structured) = (profile.response_chars, profile.structured == Structured::Always);
            let shape = Shape { render: Render::Porcelain, detail: Detail::Concise, budget, structured };
            view.result = Some(match found.in_fleet {
                None => finished(&self.desk, record, shape).await,
                // Whether it was read is noted by the machine that ran it.
                Some(_) => reply::job(record, &self.desk.context(record, None).await, shape),
            });
        }
        view
    }

    /// Newest first: a job that is accepted meanwhile shifts no page.
    async fn page(&self, after: Option<TaskCursor>) -> Result<TaskAnswer, Fault> {
        let filter = JobFilter { workspace: None, state: None, limit: MOST_LISTED };
        let rows = self.desk.jobs.list(filter).await?;
        let mut rows = self.desk.allowed(rows, self.caller).await;
        let key = |row: &JobSummary| (row.accepted_at, row.id);
        rows.sort_unstable_by_key(|row| std::cmp::Reverse(key(row)));
        let mut rows = rows.into_iter().filter(|row| after.is_none_or(|c| key(row) < (c.accepted_at, c.job)));
        let page: Vec<TaskView> = rows.by_ref().take(PAGE).map(|row| listed(&row)).collect();
        let last = page.last().map(|task| TaskCursor { accepted_at: task.created, job: task.job });
        Ok(TaskAnswer::Page(page, last.filter(|_| rows.next().is_some())))
    }

    async fn cancel(&self, job: JobId) -> Result<TaskAnswer, Fault> {
        let jobs = &self.desk.jobs;
        let over = |state: JobState| {
            Fault::new(FaultCode::InvalidInput, format!("task {job} is over already: it is {}.", state.as_str()))
        };
        let long = || {
            Fault::new(FaultCode::Busy, format!("task {job} is being ended, which takes long."))
                .hint("Look again with tasks/get.")
        };
        let found = self.found(job, Duration::ZERO).await?;
        if found.record.state.is_terminal() {
            return Err(over(found.record.state));
        }
        if let Some(stands) = found.in_fleet {
            return match placed::look::end(&self.desk, job, self.caller, CANCEL_WAIT).await? {
                Some((_, Some(was))) => Err(over(was)),
                Some((record, None)) if record.state == JobState::Cancelled => {
                    let found = Found { record, in_fleet: Some(stands) };
                    Ok(TaskAnswer::Task(Box::new(self.view(&found).await)))
                }
                Some((record, None)) if record.state.is_terminal() => Err(over(record.state)),
                Some(_) | None => Err(long()),
            };
        }
        let mut follow = jobs.follow(job).await?;
        let _ = jobs.cancel(job).await?;
        let ended = async {
            loop {
                if let News::Finished(record) = follow.next().await? {
                    return Ok::<_, Fault>(record);
                }
            }
        };
        match tokio::time::timeout(CANCEL_WAIT, ended).await {
            Ok(record) => match record? {
                record if record.state == JobState::Cancelled => {
                    let found = Found { record: (*record).clone(), in_fleet: None };
                    Ok(TaskAnswer::Task(Box::new(self.view(&found).await)))
                }
                // It ended by itself in the same moment.
                record => Err(over(record.state)),
            },
            Err(_) => Err(long()),
        }
    }
}

fn listed(row: &JobSummary) -> TaskView {
    TaskView {
        job: row.id,
        status: status(row.state),
        message: row.state.as_str().to_owned(),
        created: row.accepted_at,
        updated: row.finished_at.unwrap_or(row.accepted_at),
        result: None,
    }
}
