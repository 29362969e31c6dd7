//! The consult actor: one attached job, from its runner's start to its terminal state.
//!
//! Owns: the runner's process and the pipes to it, the news of the job. May not know: who waits, what the answer is for.
//!
//! The runner needs nobody; this actor is how its host hears of it at once. Invariants: (1) a runner is started for a
//! job the store has, never the other way round; (2) the pipe's end is not the truth: what became of the job is read
//! from the store; (3) a runner that is gone without an outcome leaves a job that is settled here, with the job's lock
//! as evidence.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::jobs::JobsMsg;
use crate::agents::{AgentEvent, OutputReader};
use crate::exec::client::ExecClient;
use crate::exec::{Cursor, OutputStream, ProcessEvent};
use crate::fault::{Fault, FaultCode};
use crate::ids::JobId;
use crate::jobs::live::{JobLive, Phase};
use crate::jobs::sweep;
use crate::jobs::{JobRecord, JobState};
use crate::runner::RunnerCommand;
use crate::state_dir::StateDir;
use crate::store::StoreHandle;

/// Runners started for one job as long as none of them got to start the agent.
const RUNNER_STARTS: u32 = 2;

/// How long a runner that has said everything may take to exit.
const EXIT_LIMIT: Duration = Duration::from_secs(5);

/// How often a queued job's place is looked at.
const PLACE_EVERY: Duration = Duration::from_secs(2);

/// Everything that can wake a consult actor.
pub enum ConsultMsg {
    /// Ask the runner to end the job.
    Terminate,
    /// Custody has ended.
    Ended(Option<Arc<JobRecord>>),
}

/// The consult actor.
pub struct Consult;

/// What it is started with.
pub struct ConsultArguments {
    /// The job.
    pub job: JobId,
    /// The agent that answers it, whose output is read for news.
    pub agent: String,
    /// Its supervisor.
    pub jobs: ActorRef<JobsMsg>,
    /// The truth.
    pub store: StoreHandle,
    /// Where locks lie.
    pub dir: StateDir,
    /// How the runner is started.
    pub runner: Arc<RunnerCommand>,
    /// Where the news go.
    pub news: watch::Sender<JobLive>,
}

/// The actor's state; dropping it lets go of the pipes, which the runner notices.
pub struct ConsultState {
    job: JobId,
    jobs: ActorRef<JobsMsg>,
    terminate: mpsc::Sender<()>,
    _custody: JoinSet<()>,
}

impl Actor for Consult {
    type Msg = ConsultMsg;
    type State = ConsultState;
    type Arguments = ConsultArguments;

    async fn pre_start(&self, me: ActorRef<Self::Msg>, a: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        // One place: a second request to end adds nothing to the first.
        let (terminate, asked) = mpsc::channel(1);
        let (job, jobs) = (a.job, a.jobs.clone());
        let mut custody = JoinSet::new();
        let told = Told(Some(me));
        custody.spawn(async move {
            let record = Custody { a, asked }.run().await;
            told.tell(record);
        });
        Ok(ConsultState { job, jobs, terminate, _custody: custody })
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ConsultMsg::Terminate => drop(state.terminate.try_send(())),
            ConsultMsg::Ended(record) => {
                let _ = state.jobs.cast(JobsMsg::Ended { job: state.job, record });
                me.stop(None);
            }
        }
        Ok(())
    }
}

/// Tells the actor that custody has ended, also when the task panicked.
struct Told(Option<ActorRef<ConsultMsg>>);

impl Told {
    fn tell(mut self, record: Option<Arc<JobRecord>>) {
        if let Some(to) = self.0.take() {
            let _ = to.cast(ConsultMsg::Ended(record));
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(to) = self.0.take() {
            let _ = to.cast(ConsultMsg::Ended(None));
        }
    }
}

struct Custody {
    a: ConsultArguments,
    asked: mpsc::Receiver<()>,
}

impl Custody {
    async fn run(mut self) -> Option<Arc<JobRecord>> {
        let mut why = None;
        for _ in 0..RUNNER_STARTS {
            match self.attend().await {
                Ok(()) => {}
                Err(fault) => {
                    tracing::warn!(job = %self.a.job, %fault, "a runner was not attended to its end");
                    why = Some(fault);
                }
            }
            match self.a.store.job(self.a.job).await {
                Ok(record) if record.state.is_terminal() => return Some(self.publish(record)),
                // No agent was started, so another runner may try.
                Ok(record) if record.state == JobState::Queued => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::error!(job = %self.a.job, %error, "the store cannot say what became of a job");
                    return None;
                }
            }
        }
        let why =
            why.unwrap_or_else(|| Fault::new(FaultCode::RunnerLost, "the job's runner ended without an outcome."));
        match sweep::settle(&self.a.store, &self.a.dir, self.a.job, why).await {
            Ok(Some(record)) => Some(self.publish(record)),
            // Another process holds the job's lock, so it is in good hands.
            Ok(None) => None,
            Err(error) => {
                tracing::error!(job = %self.a.job, %error, "a lost job was not settled");
                None
            }
        }
    }

    fn publish(&self, record: JobRecord) -> Arc<JobRecord> {
        let record = Arc::new(record);
        self.a.news.send_modify(|live| {
            live.events += 1;
            live.phase = Phase::Ending;
            live.finished = Some(Arc::clone(&record));
        });
        record
    }

    /// Starts a runner and follows it to its end.
    async fn attend(&mut self) -> Result<(), Fault> {
        let spawn_failed = |detail: String| Fault::new(FaultCode::RunnerSpawnFailed, detail);
        let mut child = self
            .a
            .runner
            .command(self.a.job)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| spawn_failed(format!("the job's runner could not be started: {error}.")))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(spawn_failed("the job's runner has no pipes.".to_owned()));
        };
        let followed = self.follow(output, input).await;
        // The pipes are gone by now; a runner that has ended its job exits at once.
        if tokio::time::timeout(EXIT_LIMIT, child.wait()).await.is_err() {
            tracing::warn!(job = %self.a.job, "a runner did not exit after its job");
        }
        followed
    }

    async fn follow(
        &mut self,
        output: tokio::process::ChildStdout,
        input: tokio::process::ChildStdin,
    ) -> Result<(), Fault> {
        let job = self.a.job.to_string();
        let failed = |error: crate::exec::client::ExecError| {
            Fault::new(FaultCode::RunnerProtocol, format!("the pipe to the job's runner failed: {error}."))
        };
        let client = ExecClient::connect(output, input, "phone-opus").await.map_err(failed)?;
        let mut events = client.subscribe(&job, Cursor::start()).await.map_err(failed)?;
        let mut reader = self.a.runner.agents().get(&self.a.agent).ok().map(|agent| OutputReader::new(agent.parser()));
        let mut reported: Vec<AgentEvent> = Vec::new();
        let mut terminating = JoinSet::new();
        let mut looks = tokio::time::interval(PLACE_EVERY);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(ProcessEvent::Output { stream: OutputStream::Stdout, bytes, .. }) => {
                        let Some(reader) = &mut reader else { continue };
                        reader.push(&bytes, &mut reported);
                        if !reported.is_empty() {
                            self.a.news.send_modify(|live| reported.drain(..).for_each(|event| live.fold(&event)));
                        }
                    }
                    Some(ProcessEvent::Output { .. } | ProcessEvent::Exited { .. } | ProcessEvent::Lagged { .. }) => {}
                    // Closed means: terminal, durable, nothing left alive.
                    Some(ProcessEvent::Closed { .. }) | None => return Ok(()),
                    Some(ProcessEvent::Failed { message }) => {
                        return Err(Fault::new(FaultCode::RunnerLost, format!("the pipe to the job's runner ended: {message}.")));
                    }
                },
                Some(()) = self.asked.recv() => {
                    let (client, job) = (client.clone(), job.clone());
                    terminating.spawn(async move {
                        if let Err(error) = client.terminate(&job).await {
                            tracing::debug!(%error, "a runner was not told to end its job; it finds the request in the store");
                        }
                    });
                }
                _ = looks.tick(), if matches!(self.a.news.borrow().phase, Phase::Queued(_)) => self.look().await,
            }
        }
    }

    /// Looks where a queued job stands.
    async fn look(&self) {
        let Ok(rows) = self.a.store.queue().await else { return };
        let mut waiting = rows.iter().filter(|row| row.state == JobState::Queued);
        let place = waiting.position(|row| row.job == self.a.job);
        let running = rows.iter().any(|row| row.job == self.a.job && row.state == JobState::Running);
        self.a.news.send_if_modified(|live| {
            let phase = match place {
                Some(place) => Phase::Queued(Some(place + 1)),
                None if running => Phase::Starting,
                None => return false,
            };
            let changed = matches!(live.phase, Phase::Queued(_)) && live.phase != phase;
            if changed {
                live.phase = phase;
            }
            changed
        });
    }
}
