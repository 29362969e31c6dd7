//! Custody of a job, passed on to the next image of this program.
//!
//! Owns: what is written down of it, and how it is taken up again. May not know: who waits, how a hand-over is led.
//!
//! Invariant: what cannot be passed on is settled by what it leaves: a runner whose pipes did not come along is waited for,
//! and the store says what became of its job.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::Custody;
use super::core::{CustodyCore, CustodyEvent, CustodyPast, CustodyStage, HandIn, Ours, RUNNER_STARTS};
use super::link::{Ends, Link};
use crate::actors::callers::CallerSnapshot;
use crate::actors::jobs::attachments::{Attachment, Attachments};
use crate::actors::jobs::core::JobsEvent;
use crate::actors::jobs::means::Means;
use crate::actors::jobs::room::RoomSnapshot;
use crate::actors::jobs::runner_child::RunnerChild;
use crate::agents::OutputReader;
use crate::base::base64::Base64;
use crate::base::descriptors::{InheritedPipes, PassedPipe};
use crate::base::fault::Fault;
use crate::base::ids::{InvocationId, JobId};
use crate::base::procfs;
use crate::base::tasks::TaskSet;
use crate::exec::client::Handover;
use crate::jobs::JobMode;
use crate::jobs::live::{JobLive, Phase};

/// Custody of one job, passed on to the next image of this program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CustodySnapshot {
    job: JobId,
    agent: String,
    mode: JobMode,
    callers: Vec<InvocationId>,
    starts: u32,
    why: Option<Fault>,
    stage: StageSnapshot,
    phase: Phase,
    text: String,
    events: u64,
    /// The runner was asked to end its job.
    asked: bool,
    overdue: bool,
    /// Seconds its agent may run; 0 where an earlier image did not say.
    #[serde(default)]
    timeout_s: u64,
    /// Whose job it is, where it is not run with the environment of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    caller: Option<Box<CallerSnapshot>>,
    /// Its row names this host.
    #[serde(default)]
    by_row: bool,
    /// It was adopted and is watched in the store. An image that does not know of this judges it, finds it in other hands, and
    /// leaves it to them.
    #[serde(default)]
    watched: bool,
    /// Callers of the host it was adopted from may still come back.
    #[serde(default)]
    awaited: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
enum StageSnapshot {
    Waiting,
    Starting,
    Following(Box<LinkSnapshot>),
    Leaving { pid: i32 },
    Judging,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct LinkSnapshot {
    pid: i32,
    input: PassedPipe,
    output: PassedPipe,
    unread: Base64,
    next_id: i64,
    /// The last event that was looked at.
    seen: u64,
    /// What was read of a line of the agent's.
    partial: Base64,
}

impl CustodySnapshot {
    /// The job.
    #[must_use]
    pub fn job(&self) -> JobId {
        self.job
    }

    /// The pipes that go with it.
    pub fn pipes(&self) -> impl Iterator<Item = &PassedPipe> {
        let link = if let StageSnapshot::Following(link) = &self.stage { Some(link) } else { None };
        link.into_iter().flat_map(|link| [&link.input, &link.output])
    }

    /// The runner's process.
    fn pid(&self) -> Option<i32> {
        match &self.stage {
            StageSnapshot::Following(link) => Some(link.pid),
            StageSnapshot::Leaving { pid } => Some(*pid),
            StageSnapshot::Waiting | StageSnapshot::Starting | StageSnapshot::Judging => None,
        }
    }
}

/// What cannot be passed on at this moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pass on the runner of job {job}: {why}")]
pub struct NotNow {
    /// The job whose runner cannot be passed on now.
    pub job: JobId,
    /// Why not.
    pub why: &'static str,
}

/// How long a handshake under way, or a runner that has yet to read what it was told, is waited for before an upgrade.
const LET_GO: Duration = Duration::from_secs(1);

impl Attachment {
    /// What would be passed on, as far as that can be said without taking it from whoever works with it.
    #[must_use]
    pub fn peek(&self) -> CustodySnapshot {
        let (mode, callers) = self.claim();
        let news = self.news();
        let live = news.borrow();
        CustodySnapshot {
            job: self.job(),
            agent: String::new(),
            mode,
            callers,
            starts: RUNNER_STARTS,
            why: None,
            stage: StageSnapshot::Judging,
            phase: live.phase.clone(),
            text: live.text.clone(),
            events: live.events,
            asked: false,
            overdue: false,
            timeout_s: 0,
            caller: None,
            by_row: false,
            watched: false,
            awaited: self.is_awaited(),
        }
    }
}

impl Custody {
    fn passed(&self, attachment: &Attachment, stage: StageSnapshot) -> CustodySnapshot {
        let live = self.news.borrow();
        let (mode, callers) = attachment.claim();
        let CustodyPast { ours, starts, why, overdue, stage: at } = self.core.past();
        CustodySnapshot {
            job: self.job,
            agent: self.agent.clone(),
            mode,
            callers,
            starts,
            why,
            stage,
            phase: live.phase.clone(),
            text: live.text.clone(),
            events: live.events,
            asked: self.core.is_end_wanted() || !self.asked.is_empty(),
            overdue,
            timeout_s: self.core.timeout().as_secs(),
            caller: self.means.runner.caller().map(|caller| Box::new(CallerSnapshot::from(&**caller))),
            by_row: ours == Ours::ByItsRow,
            watched: at == CustodyStage::Watching,
            awaited: attachment.is_awaited(),
        }
    }

    /// Lets go of the pipes between two messages, so that the next image can go on with them. Nobody may work with the
    /// custody meanwhile. When there is no next image, [`Custody::run`] goes on by itself.
    ///
    /// # Errors
    ///
    /// Not at this moment; nothing is lost by having tried, unless its runner reads nothing any more.
    ///
    /// # Cancel safety
    ///
    /// Not safe: the connection may be let go of and not taken up again.
    pub async fn let_go(&mut self, attachment: &Attachment) -> Result<CustodySnapshot, NotNow> {
        let stage = match self.core.stage() {
            CustodyStage::Waiting(_) => StageSnapshot::Waiting,
            CustodyStage::Starting => StageSnapshot::Starting,
            CustodyStage::Following => self.let_go_of_runner().await?,
            CustodyStage::Leaving => self.leaving_snapshot(),
            CustodyStage::Judging | CustodyStage::Watching => StageSnapshot::Judging,
        };
        Ok(self.passed(attachment, stage))
    }

    fn leaving_snapshot(&self) -> StageSnapshot {
        let pid = self.leaving.as_ref().and_then(RunnerChild::pid);
        pid.map_or(StageSnapshot::Judging, |pid| StageSnapshot::Leaving { pid })
    }

    async fn let_go_of_runner(&mut self) -> Result<StageSnapshot, NotNow> {
        let job = self.job;
        let not_now = |why| NotNow { job, why };
        let Some(link) = &mut self.link else { return Ok(StageSnapshot::Judging) };
        if link.ends.is_none() {
            return Err(not_now("there was no room for its pipes"));
        }
        if link.connected.is_none() {
            match tokio::time::timeout(LET_GO, link.connecting.join_next()).await {
                Err(_) => return Err(not_now("it has not greeted yet")),
                Ok(Some(Ok(Ok(connected)))) => link.connected = Some(connected),
                // It failed: what became of its job is read from the store.
                Ok(_) => {}
            }
        }
        let let_go = match link.connected.take() {
            None => None,
            Some((client, events)) => {
                let seen = events.cursor().seen();
                match tokio::time::timeout(LET_GO, client.detach()).await {
                    Err(_) => return Err(not_now("it does not read what it was told")),
                    Ok(Ok(handover)) => Some((handover, seen)),
                    Ok(Err(_)) => None,
                }
            }
        };
        if let Some((handover, seen)) = let_go {
            link.resting = Some((handover.clone(), seen));
            let passed = link.passed(handover, seen);
            return Ok(passed.map_or(StageSnapshot::Judging, |link| StageSnapshot::Following(Box::new(link))));
        }
        // The pipe is over. Whoever comes next waits for the process and reads the store.
        self.step(CustodyEvent::PipesOver(None));
        Ok(self.leaving_snapshot())
    }
}

impl Link {
    fn passed(&self, handover: Handover, seen: u64) -> Option<LinkSnapshot> {
        let ends = self.ends.as_ref()?;
        Some(LinkSnapshot {
            pid: self.child.pid()?,
            input: PassedPipe::of(&ends.input).ok()?,
            output: PassedPipe::of(&ends.output).ok()?,
            unread: Base64(handover.unread.into()),
            next_id: handover.next_id,
            seen,
            partial: Base64(self.reader.as_ref().map_or(&[][..], OutputReader::unfinished).to_vec().into()),
        })
    }
}

/// A runner another image started.
enum PassedRunner {
    /// With its pipes.
    Followed(Box<Link>),
    /// Without.
    Leaving(RunnerChild),
}

/// Where custody stands that another image passed on, and the runner it has.
fn stage(passed: &CustodySnapshot, pipes: &mut InheritedPipes, means: &Means) -> (CustodyStage, Option<PassedRunner>) {
    let leaving = |pid: Option<i32>| match pid.and_then(RunnerChild::inherited) {
        Some(child) => (CustodyStage::Leaving, Some(PassedRunner::Leaving(child))),
        None => (CustodyStage::Judging, None),
    };
    match &passed.stage {
        StageSnapshot::Waiting => (CustodyStage::Waiting(HandIn::Again), None),
        StageSnapshot::Starting => (CustodyStage::Starting, None),
        StageSnapshot::Judging if passed.watched => (CustodyStage::Watching, None),
        StageSnapshot::Judging => (CustodyStage::Judging, None),
        StageSnapshot::Leaving { pid } => leaving(Some(*pid)),
        StageSnapshot::Following(link) => {
            let ends = pipes.take(&link.input).zip(pipes.take(&link.output));
            let Some(((input, output), child)) = ends.zip(RunnerChild::inherited(link.pid)) else {
                // Its pipes did not come along, so the runner is told nothing any more.
                tracing::error!(job = %passed.job, "the pipes of a runner were not passed on");
                return leaving(passed.pid());
            };
            let handover = Handover { unread: link.unread.0.to_vec(), next_id: link.next_id, positions: Vec::new() };
            let mut reader = means.reader(&passed.agent);
            if let Some(reader) = &mut reader {
                // Less than a line, so nothing is reported.
                reader.push(&link.partial.0, &mut Vec::new());
            }
            let link = Link {
                child,
                ends: Some(Ends { input, output }),
                resting: Some((handover, link.seen)),
                connecting: TaskSet::new(),
                connected: None,
                reader,
            };
            (CustodyStage::Following, Some(PassedRunner::Followed(Box::new(link))))
        }
    }
}

/// Sees to it that children nobody passed on are waited for when they end: a runner that was let go lives on. To be called
/// before this image starts a child of its own.
pub fn inherit_the_rest(passed: &[CustodySnapshot], waiting: Option<&RoomSnapshot>) {
    let known: HashSet<i32> =
        passed.iter().filter_map(CustodySnapshot::pid).chain(waiting.map(RoomSnapshot::pid)).collect();
    let children = procfs::children().into_iter().map(|pid| pid.as_raw_nonzero().get());
    children.filter(|pid| !known.contains(pid)).for_each(|pid| {
        // Dropped is waited for.
        drop(RunnerChild::inherited(pid));
    });
}

impl Attachments {
    /// Takes in what another image passed on.
    pub fn inherit(&self, passed: &CustodySnapshot, pipes: &mut InheritedPipes, mut means: Means) {
        if let Some(caller) = passed.caller.as_deref().cloned() {
            means.runner = Arc::new(means.runner.for_caller(&Arc::new(caller.into())));
        }
        let (stage, runner) = stage(passed, pipes, &means);
        let live = JobLive {
            phase: passed.phase.clone(),
            text: passed.text.clone(),
            events: passed.events,
            by_store: passed.watched,
            ..JobLive::default()
        };
        let (news, followed) = watch::channel(live);
        let (terminate, asked) = mpsc::channel(1);
        let CustodySnapshot { starts, ref why, overdue, .. } = *passed;
        let ours = if passed.by_row { Ours::ByItsRow } else { Ours::ByItsPipes };
        let past = CustodyPast { ours, stage, starts, why: why.clone(), overdue };
        let core = CustodyCore::inherited(past, Duration::from_secs(passed.timeout_s));
        let (job, agent, room) = (passed.job, passed.agent.clone(), self.room().clone());
        let mut custody = Custody::of(job, agent, core, means, None, room, news, asked);
        match runner {
            Some(PassedRunner::Followed(link)) => custody.link = Some(link),
            Some(PassedRunner::Leaving(child)) => custody.leaving = Some(child),
            None => {}
        }
        if passed.asked {
            // To be asked twice adds nothing.
            let _ = terminate.try_send(());
        }
        let claim = JobsEvent::Inherited {
            job: passed.job,
            mode: passed.mode,
            callers: passed.callers.clone(),
            awaited: passed.awaited,
        };
        self.take_in(passed.job, claim, custody, followed, terminate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::{AgentRegistry, Environment};
    use crate::base::state_dir::StateDir;
    use crate::config::Config;
    use crate::jobs::store::StoreHandle;
    use crate::jobs::{ConsultRequest, JobRecord, JobState};
    use crate::runner::RunnerCommand;
    use crate::tools::callers::{CallerContext, CallerOrigin};

    /// What a custody works with in an image of a host with this environment.
    fn means(host: &str) -> Means {
        let dir = StateDir::at("/nonexistent");
        let environment: Environment = [("PATH", host)].into_iter().collect();
        let agents = AgentRegistry::standard(None, "/p".into());
        let runner =
            RunnerCommand::new("/p".into(), dir.clone(), &Arc::default(), agents, Some(environment), Vec::new());
        Means { store: StoreHandle::sqlite(dir.clone()), dir, runner: Arc::new(runner) }
    }

    async fn passed_on(attachments: &Attachments, job: JobId) -> CustodySnapshot {
        let attachment = attachments.get(job).expect("attached");
        let mut lent = attachment.custody().lend().await.expect("nobody has it");
        lent.get().expect("it").let_go(&attachment).await.expect("nothing is under way")
    }

    #[tokio::test]
    async fn a_waiting_job_takes_its_callers_environment_along_to_the_next_image_and_to_the_one_after() {
        let caller = CallerContext {
            cwd: Some("/w".into()),
            environment: [("PATH", "/caller"), ("LANG", "c4n4ry")].into_iter().collect(),
            config: Arc::new(Config { stall: Duration::from_secs(11), ..Config::default() }),
            nesting: (None, 0),
            key_withheld: true,
            origin: CallerOrigin::Caller,
        };
        let record = JobRecord::plain(JobState::Queued, ConsultRequest::new("why?").cwd("/w"));
        for caller in [None, Some(Arc::new(caller))] {
            let own = means("/one");
            let runner =
                caller.as_ref().map_or_else(|| RunnerCommand::clone(&own.runner), |it| own.runner.for_caller(it));
            let (job, manner) = (record.id, runner.callers_manner().cloned());
            let mut attachments = Attachments::default();
            attachments.attach(&record, Means { runner: Arc::new(runner), ..own }, None);
            for _ in 0..2 {
                let snapshot = passed_on(&attachments, job).await;
                assert!(!format!("{snapshot:?}").contains("c4n4ry"));
                let text = serde_json::to_string(&snapshot).expect("JSON");
                assert_eq!(text.contains("\"caller\""), caller.is_some(), "the host's own is not written down");
                let snapshot: CustodySnapshot = serde_json::from_str(&text).expect("a snapshot");
                let passed = snapshot.caller.as_deref().cloned().map(CallerContext::from);
                assert_eq!(passed.as_ref(), caller.as_deref());
                attachments = Attachments::default();
                attachments.inherit(&snapshot, &mut InheritedPipes::these([].iter()), means("/next"));
                let attachment = attachments.get(job).expect("attached");
                let mut lent = attachment.custody().lend().await.expect("nobody has it");
                let runner = &lent.get().expect("it").means.runner;
                assert_eq!(runner.callers_manner(), manner.as_ref(), "as it was, whatever the next host has");
                assert_eq!(runner.caller(), caller.as_ref());
            }
        }
    }
}
