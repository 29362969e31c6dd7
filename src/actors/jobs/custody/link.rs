//! The pipes to a runner: its greeting, what it says, what it is asked.
//!
//! Owns: our ends of the pipes, the connection over them. May not know: what follows from anything the runner says.

use std::time::Duration;

use rustix::fd::{AsFd, OwnedFd};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::actors::jobs::runner_child::RunnerChild;
use crate::actors::jobs::starting::Started;
use crate::agents::{AgentEvent, OutputReader};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::JobId;
use crate::base::tasks::TaskSet;
use crate::exec::client::{ExecClient, ExecError, Handover};
use crate::exec::session::EventStream;
use crate::exec::{OutputCursor, OutputStream, ProcessEvent};
use crate::jobs::JobRecord;
use crate::jobs::live::JobLive;
use crate::runner::outcome_channel;

/// How long a runner whose time is over may take to answer anything.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A runner that is spoken to.
pub(super) struct Link {
    pub(super) child: RunnerChild,
    /// The same two pipes once more: the next image of this program goes on with them. `None` when there was no room for
    /// them, and then there is no upgrade while the job runs.
    pub(super) ends: Option<Ends>,
    /// The connection while nobody has it: between two images, or between letting go and going on after all.
    pub(super) resting: Option<(Handover, u64)>,
    /// The handshake; a task of its own, so that nobody who stops waiting for it loses the pipes.
    pub(super) connecting: TaskSet<Result<(ExecClient, EventStream), Fault>>,
    pub(super) connected: Option<(ExecClient, EventStream)>,
    pub(super) reader: Option<OutputReader>,
}

/// Our ends of a runner's pipes.
pub(super) struct Ends {
    /// What the runner reads.
    pub(super) input: OwnedFd,
    /// What it writes.
    pub(super) output: OwnedFd,
}

/// What a runner has said that custody is to decide about.
pub(super) enum RunnerWord {
    /// The agent is over.
    AgentOver,
    /// It has said everything: the job is terminal and durable, and nothing is left alive.
    Closed,
    /// The pipe ended without that.
    Failed(Fault),
}

impl Link {
    /// The first words to a runner: the job is durable.
    pub(super) fn greet(started: Started, job: JobId, reader: Option<OutputReader>) -> Self {
        let Started { child, input, output } = started;
        let ends = Ends::again(&input, &output).ok();
        let job = job.to_string();
        let mut connecting = TaskSet::new();
        connecting.spawn(async move {
            let client = ExecClient::connect(output, input, "phone-opus").await.map_err(pipe_failed)?;
            let events = client.subscribe(&job, OutputCursor::start()).await.map_err(pipe_failed)?;
            Ok((client, events))
        });
        Self { child, ends, resting: None, connecting, connected: None, reader }
    }

    /// Waits until the runner has greeted, or until its pipes are taken up again.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub(super) async fn connect(&mut self, job: JobId) -> Result<(), Fault> {
        if let (Some((handover, seen)), Some(ends)) = (self.resting.take(), &self.ends) {
            self.connecting = ends.take_up(job, handover, seen);
        }
        if self.connected.is_none() {
            self.connected = match self.connecting.join_next().await {
                Some(Ok(connected)) => Some(connected?),
                Some(Err(_)) | None => {
                    return Err(Fault::new(FaultCode::RunnerProtocol, "the greeting of the job's runner failed."));
                }
            };
        }
        Ok(())
    }

    /// The way to ask it something.
    pub(super) fn client(&self) -> Option<&ExecClient> {
        self.connected.as_ref().map(|(client, _)| client)
    }

    /// What the runner says next that is more than news of the job, which go to whoever follows it.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub(super) async fn next(&mut self, news: &watch::Sender<JobLive>) -> RunnerWord {
        let Some((_, events)) = &mut self.connected else { return RunnerWord::Closed };
        let mut reported: Vec<AgentEvent> = Vec::new();
        loop {
            match events.next().await {
                Some(ProcessEvent::Output { stream: OutputStream::Stdout, bytes, .. }) => {
                    let Some(reader) = &mut self.reader else { continue };
                    reader.push(&bytes, &mut reported);
                    if !reported.is_empty() {
                        news.send_modify(|live| reported.drain(..).for_each(|event| live.fold(&event)));
                    }
                }
                Some(ProcessEvent::Output { .. } | ProcessEvent::Lagged { .. }) => {}
                Some(ProcessEvent::Exited { .. }) => return RunnerWord::AgentOver,
                // Closed means: terminal, durable, nothing left alive.
                Some(ProcessEvent::Closed { .. }) | None => return RunnerWord::Closed,
                Some(ProcessEvent::Failed { message }) => {
                    let detail = format!("the job's runner is gone: {message}.");
                    return RunnerWord::Failed(Fault::new(FaultCode::RunnerLost, detail));
                }
            }
        }
    }
}

/// Asks a runner for an outcome the store does not take. `None` when it has none.
pub(super) async fn ask_outcome(client: ExecClient, job: JobId) -> Result<Option<JobRecord>, ExecError> {
    let channel = outcome_channel(&job.to_string());
    let read = client.read(&channel, 0, None, Duration::ZERO);
    let limit = || ExecError::Deadline { method: "process/read", within: ANSWER_LIMIT };
    let read = tokio::time::timeout(ANSWER_LIMIT, read).await.map_err(|_| limit())?;
    match read {
        Ok(read) if read.closed => {
            let bytes: Vec<u8> = read.chunks.iter().flat_map(|chunk| chunk.bytes.iter().copied()).collect();
            Ok(serde_json::from_slice(&bytes).ok())
        }
        // A runner that knows no such thing answers as well.
        Ok(_) | Err(ExecError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Tells a runner to end its job.
pub(super) async fn ask_to_end(client: ExecClient, job: JobId) {
    if let Err(error) = client.terminate(&job.to_string()).await {
        tracing::debug!(%error, "a runner was not told to end its job; it finds the request in the store");
    }
}

impl Ends {
    /// The same pipes once more.
    pub(super) fn again(input: &impl AsFd, output: &impl AsFd) -> std::io::Result<Self> {
        let again = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned();
        Ok(Self { input: again(input)?, output: again(output)? })
    }

    /// Takes up the connection that was let go of at this position.
    pub(super) fn take_up(
        &self,
        job: JobId,
        handover: Handover,
        seen: u64,
    ) -> TaskSet<Result<(ExecClient, EventStream), Fault>> {
        let ends = Self::again(&self.input, &self.output);
        let mut connecting = TaskSet::new();
        connecting.spawn(async move {
            let lost = |error: std::io::Error| {
                Fault::new(FaultCode::RunnerLost, format!("the pipes of the job's runner were lost: {error}."))
            };
            let ends = ends.map_err(lost)?;
            let writer = pipe::Sender::from_owned_fd(ends.input).map_err(lost)?;
            let reader = pipe::Receiver::from_owned_fd(ends.output).map_err(lost)?;
            let client = ExecClient::adopt(reader, writer, &handover);
            let events = client.subscribe(&job.to_string(), OutputCursor::after(seen)).await.map_err(pipe_failed)?;
            Ok((client, events))
        });
        connecting
    }
}

fn pipe_failed(error: ExecError) -> Fault {
    // A runner that dies while it greets has said nothing wrong.
    match error {
        ExecError::Disconnected { reason } => {
            Fault::new(FaultCode::RunnerLost, format!("the job's runner is gone: its pipes were lost: {reason}."))
        }
        error => Fault::new(FaultCode::RunnerProtocol, format!("the pipe to the job's runner failed: {error}.")),
    }
}
