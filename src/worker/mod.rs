//! A worker in a process of its own, seen from inside, and what it shares with its host.
//!
//! Owns: the process side of the pipe ([`serve`]), the protocol ([`wire`]), what runs tools on either side
//! ([`executor`]). May not know: sessions, the ledger, restarts, stores; what its tools need of jobs they ask the host for
//! ([`asks`]).
//!
//! An embedding program can be such a process too: it calls [`serve`] with the same tools it gives its
//! [`System`](crate::system::System).
//!
//! Invariants: (1) it ends when its host is gone: its input ends then; (2) it takes every message of the host while tools
//! run, so a check is answered unless a tool blocks the thread; (3) a tool's panic is its last message: what it left behind
//! is unknown; (4) it opens no store, reads no configuration, and knows what the host told it.

pub mod asks;
pub mod client;
pub mod executor;
pub mod outbox;
pub mod settings;
pub mod vigil;
pub mod wire;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::poll_immediate;
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

use self::asks::{Asked, Asker, HostAnswer};
use self::executor::{CONCURRENT, Executor, Mishap, ToolPanicked, Work};
use self::outbox::Outbox;
use self::settings::{WorkerSettings, told_environment};
use self::wire::{Hello, ToWorker};
use crate::agents::Environment;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::CallKey;
use crate::base::ids::{Generation, HostId};
use crate::base::image::own_program;
use crate::config::clients::Clients;
use crate::failpoints::{Broken, FaultPoint, Faults, Operation};
use crate::protocol::frame::LINE_LIMIT;
use crate::protocol::frame::{Frame, FrameReader};
use crate::protocol::session::CallOutcome;
use crate::tools::Tool;
use crate::tools::callers::{CallerContext, CallerOrigin, Callers};
use crate::tools::consult::{ConsultTool, Consults};
use crate::tools::progress::{Latest, ProgressListener, ProgressSink};

/// Where a system's worker tools run.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Isolation {
    /// In the host's own process.
    #[default]
    InProcess,
    /// In a process of their own.
    Process(WorkerCommand),
}

/// What is started for each worker: a program that begins with [`crate::process::dispatch`], or calls [`serve`] itself. The host
/// adds `--generation N`.
#[derive(Debug, Clone)]
pub struct WorkerCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its whole environment; the host process's own when `None`.
    pub env: Option<Environment>,
}

impl WorkerCommand {
    /// The words by which a program is told to be a worker, where it begins with [`crate::process::dispatch`].
    pub const WORDS: [&str; 2] = ["mcp", "worker"];

    /// This program, which begins with [`crate::process::dispatch`] and has the same tools there.
    #[must_use]
    pub fn own_program() -> Self {
        Self { program: own_program(), args: Self::WORDS.map(OsString::from).into(), env: None }
    }
}

/// How long a worker process may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerPolicy {
    /// From its start to its greeting. A start takes milliseconds; a machine under load takes its time.
    pub handshake: Duration,
    /// Without a word while it has work, before it is asked whether it is alive; and again, before it is given up.
    pub quiet: Duration,
}

impl Default for WorkerPolicy {
    fn default() -> Self {
        Self { handshake: Duration::from_secs(5), quiet: Duration::from_secs(5) }
    }
}

/// How a worker process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerEnd {
    /// Its host closed the pipe, or is gone.
    HostGone,
    /// A tool panicked; the host was told.
    Panicked(ToolPanicked),
    /// A fault plan wanted it.
    Injected,
}

/// Why a worker process could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// What came in is not what a host of this version says.
    #[error("understand the host: {0}")]
    Protocol(&'static str),
    /// The pipe failed.
    #[error("use the pipe to the host")]
    Pipe(#[from] io::Error),
}

/// Output that may wait for the host to read it before no more calls are taken: one pipe's worth many times over.
const BACKLOG: usize = 1024 * 1024;

/// Serves as the worker of this generation until the host is gone. The tools are the host's own, and `consult` is added
/// when the host offers it.
///
/// A tool that blocks the thread blocks this too; [`host_gone`] is for whoever wants to end the process even then.
///
/// # Errors
///
/// The host does not speak this protocol; the pipe failed.
///
/// # Cancel safety
///
/// Dropping the future ends every tool at its next await.
///
/// ```no_run
/// # async fn worker(generation: phone_opus::Generation) -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use phone_opus::{Faults, Input, Output, Tool, WorkerEnd, host_gone, serve_worker};
///
/// std::thread::spawn(|| host_gone(std::io::stdin()).map(|()| std::process::exit(1)));
/// let tools: Vec<Arc<dyn Tool>> = Vec::new();                          // those of the host; `generation` is its last word
/// let end = serve_worker(generation, tools, Faults::none(), Input::stdin()?, Output::stdout()?).await?;
/// assert_eq!(end, WorkerEnd::HostGone);
/// # Ok(()) }
/// ```
pub async fn serve(
    generation: Generation,
    tools: impl IntoIterator<Item = Arc<dyn Tool>>,
    faults: Faults,
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin,
) -> Result<WorkerEnd, ServeError> {
    let (asker, questions) = Asker::new();
    let (progress, reports) = mpsc::unbounded_channel();
    let inside = Inside {
        generation,
        host: None,
        callers: None,
        limit: wire::line_limit(LINE_LIMIT),
        tools: tools.into_iter().map(|tool| (tool.name().to_owned(), tool)).collect(),
        executor: Executor::new(CONCURRENT, faults.clone()),
        faults,
        manners: Manners::default(),
        asker,
        questions,
        asked: HashMap::new(),
        next: 0,
        progress,
        reports,
        out: Outbox::default(),
    };
    match inside.run(input, output).await {
        // It went while something was on its way to it.
        Err(ServeError::Pipe(error)) if is_nobody_there(&error) => Ok(WorkerEnd::HostGone),
        end => end,
    }
}

/// Whether a pipe failed because nobody is at its other end any more.
fn is_nobody_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Waits, in the calling thread, until nobody is left at the other end of this pipe; what there is to read does not matter.
///
/// For a thread of its own in a worker's program, which ends the process a moment later: the loop of [`serve`] ends by
/// itself at once, unless a tool blocks its thread.
///
/// # Errors
///
/// The descriptor cannot be waited for.
pub fn host_gone(pipe: impl AsFd) -> io::Result<()> {
    loop {
        let mut fds = [PollFd::new(&pipe, PollFlags::empty())];
        match poll(&mut fds, None) {
            Ok(_) if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether to go on.
enum Turn {
    Goes,
    Ends(WorkerEnd),
    Mishap(Mishap),
}

/// A report of a tool on its way to the host.
struct Progress {
    key: CallKey,
    latest: Latest,
}

/// The host listens to the progress of one call.
struct ToHost {
    reports: mpsc::UnboundedSender<Progress>,
    key: CallKey,
}

impl ProgressListener for ToHost {
    fn reported(&self, latest: Latest) {
        // Nobody reads the reports of a worker that is ending.
        let _ = self.reports.send(Progress { key: self.key, latest });
    }
}

/// What a fault plan has made of it.
#[derive(Debug, Default)]
struct Manners {
    /// It says nothing any more.
    mute: bool,
    /// It reads nothing any more.
    deaf: bool,
}

struct Inside {
    generation: Generation,
    /// Known once it has greeted.
    host: Option<HostId>,
    /// Whose sessions there are, where the host has consults.
    callers: Option<Callers>,
    limit: usize,
    /// Named by our own host, so the hash need not resist anybody.
    tools: HashMap<String, Arc<dyn Tool>, foldhash::fast::RandomState>,
    executor: Executor<()>,
    faults: Faults,
    manners: Manners,
    asker: Asker,
    questions: mpsc::UnboundedReceiver<Asked>,
    asked: HashMap<u64, oneshot::Sender<Result<HostAnswer, Fault>>>,
    next: u64,
    progress: mpsc::UnboundedSender<Progress>,
    reports: mpsc::UnboundedReceiver<Progress>,
    out: Outbox,
}

impl Inside {
    async fn run(
        mut self,
        mut input: impl AsyncRead + Unpin,
        mut output: impl AsyncWrite + Unpin,
    ) -> Result<WorkerEnd, ServeError> {
        let mut reader = FrameReader::new(self.limit);
        if let Some(broken) = self.faults.meet(FaultPoint::WorkerStart, Operation::None).await
            && let Some(end) = self.break_down(broken, &mut output).await?
        {
            return Ok(end);
        }
        loop {
            if self.manners.mute {
                self.out = Outbox::default();
            }
            while !self.out.is_empty() {
                match poll_immediate(output.write(self.out.front())).await {
                    Some(written) => self.on_written(written)?,
                    None => break,
                }
            }
            if self.executor.has_settled()
                && self.out.is_empty()
                && let Some(broken) = self.executor.after_replies().await
                && let Some(end) = self.break_down(broken, &mut output).await?
            {
                return Ok(end);
            }
            let taking = self.out.len() <= BACKLOG && !self.manners.deaf;
            let turn = tokio::select! {
                biased;
                ended = self.executor.ended(), if self.executor.is_running() => {
                    let (out, generation, limit) = (&mut self.out, self.generation, self.limit);
                    let settle = |key, (), outcome: CallOutcome| wire::settled(out, generation, key, &outcome, limit);
                    Ok(self.executor.settle(ended, settle).map_or_else(Turn::Mishap, |()| Turn::Goes))
                }
                Some(asked) = self.questions.recv() => {
                    self.ask(asked);
                    Ok(Turn::Goes)
                }
                Some(report) = self.reports.recv() => {
                    if let Some((value, message)) = report.latest.take() {
                        wire::progress(self.out.tail(), self.generation, report.key, value, &message);
                    }
                    Ok(Turn::Goes)
                }
                read = input.read_buf(reader.space()), if taking => match read? {
                    0 => Ok(Turn::Ends(WorkerEnd::HostGone)),
                    _ => self.take_frames(&mut reader),
                },
                written = output.write(self.out.front()), if !self.out.is_empty() => {
                    self.on_written(written)?;
                    Ok(Turn::Goes)
                }
            };
            match turn? {
                Turn::Goes => {}
                Turn::Mishap(Mishap::Broken(_, broken)) => {
                    if let Some(end) = self.break_down(broken, &mut output).await? {
                        return Ok(end);
                    }
                }
                Turn::Mishap(Mishap::Panicked(panicked)) => {
                    wire::panicked(self.out.tail(), self.generation, &panicked.tool);
                    self.write_all(&mut output).await?;
                    output.flush().await?;
                    return Ok(WorkerEnd::Panicked(panicked));
                }
                Turn::Ends(end) => return Ok(end),
            }
        }
    }

    /// Writes all there is.
    async fn write_all(&mut self, output: &mut (impl AsyncWrite + Unpin)) -> Result<(), ServeError> {
        while !self.out.is_empty() {
            let written = output.write(self.out.front()).await;
            self.on_written(written)?;
        }
        Ok(output.flush().await?)
    }

    /// Does to itself what a fault plan wants; its end, if that is it.
    async fn break_down(
        &mut self,
        broken: Broken,
        output: &mut (impl AsyncWrite + Unpin),
    ) -> Result<Option<WorkerEnd>, ServeError> {
        tracing::warn!(?broken, "a fault point breaks this worker");
        match broken {
            Broken::Silence => self.manners.mute = true,
            Broken::StopReading => self.manners.deaf = true,
            Broken::Garbage => self.out.tail().put_slice(b"what a worker must not say\n"),
            // The first half of a message is all that is heard of it.
            Broken::Torn => {
                let mut line = BytesMut::new();
                wire::alive(&mut line, self.generation, 0, self.executor.open());
                self.out.tail().put_slice(&line[..line.len() / 2]);
                self.write_all(output).await?;
                return Ok(Some(WorkerEnd::Injected));
            }
            Broken::Error(_) | Broken::Drop => return Ok(Some(WorkerEnd::Injected)),
        }
        Ok(None)
    }

    fn on_written(&mut self, written: io::Result<usize>) -> Result<(), ServeError> {
        match written? {
            0 => Err(ServeError::Pipe(io::ErrorKind::WriteZero.into())),
            count => {
                self.out.written(count);
                Ok(())
            }
        }
    }

    fn take_frames(&mut self, reader: &mut FrameReader) -> Result<Turn, ServeError> {
        while let Some(frame) = reader.next_frame() {
            let Frame::Line(line) = frame else { return Err(ServeError::Protocol("a line is too long")) };
            let message = match wire::read_host(&line) {
                Ok(message) => message,
                Err(error) => {
                    tracing::error!(%error, "a line of the host was not understood");
                    return Err(ServeError::Protocol("a line is no message"));
                }
            };
            let turn = self.on_message(message, &line)?;
            if !matches!(turn, Turn::Goes) {
                return Ok(turn);
            }
        }
        Ok(Turn::Goes)
    }

    fn on_message(&mut self, message: ToWorker<'_>, line: &Bytes) -> Result<Turn, ServeError> {
        let Some(host) = self.host else {
            let ToWorker::Hello(hello) = message else { return Err(ServeError::Protocol("no greeting came first")) };
            return self.on_hello(&hello);
        };
        let (out, generation, limit) = (&mut self.out, self.generation, self.limit);
        let settle = |key, (), outcome: CallOutcome| wire::settled(out, generation, key, &outcome, limit);
        let done = match message {
            ToWorker::Hello(_) => return Err(ServeError::Protocol("a second greeting came")),
            ToWorker::Execute(execute) if execute.head.g == generation => {
                let key = execute.key();
                let Some(tool) = self.tools.get(&*execute.head.tool) else {
                    let detail = format!("the worker has no tool {}.", execute.head.tool);
                    let fault = Fault::new(FaultCode::WorkerProtocol, detail);
                    wire::settled(&mut self.out, generation, key, &CallOutcome::Fault(Box::new(fault)), limit);
                    return Ok(Turn::Goes);
                };
                let progress = if execute.head.progress {
                    ProgressSink::new(ToHost { reports: self.progress.clone(), key })
                } else {
                    ProgressSink::closed()
                };
                let call = execute.call(host, line, progress);
                self.executor.execute(Work { key, token: (), tool: Arc::clone(tool), call }, settle)
            }
            ToWorker::Withdraw { g, s, c } if g == generation => {
                let key = CallKey { session: s, call: crate::base::ids::CallNumber(c) };
                self.executor.withdraw(|running| *running == key, drop, settle)
            }
            ToWorker::Caller { g, s, caller } if g == generation => {
                if let Some(callers) = &self.callers {
                    callers.admit_as(s, (*caller).into());
                }
                Ok(())
            }
            ToWorker::SessionOver { g, s } if g == generation => {
                if let Some(callers) = &self.callers {
                    callers.forget(s);
                }
                self.executor.withdraw(|running| running.session == s, drop, settle)
            }
            ToWorker::Answer { g, id, answer } if g == generation => {
                if let Some(reply) = self.asked.remove(&id) {
                    // Whoever asked may have gone.
                    let _ = reply.send(answer);
                }
                Ok(())
            }
            ToWorker::Check { g, n } if g == generation => {
                wire::alive(self.out.tail(), g, n, self.executor.open());
                Ok(())
            }
            // Meant for another generation; it cannot come down this pipe, and changes nothing if it does.
            ToWorker::Execute(_)
            | ToWorker::Caller { .. }
            | ToWorker::Withdraw { .. }
            | ToWorker::SessionOver { .. }
            | ToWorker::Answer { .. }
            | ToWorker::Check { .. } => Ok(()),
        };
        Ok(match done {
            Ok(()) => Turn::Goes,
            Err(mishap) => Turn::Mishap(mishap),
        })
    }

    fn on_hello(&mut self, hello: &Hello<'_>) -> Result<Turn, ServeError> {
        if hello.protocol == wire::PROTOCOL {
            let settings: WorkerSettings = serde_json::from_str(RawValue::get(hello.settings)).map_err(|error| {
                tracing::error!(%error, "the host's settings were not understood");
                ServeError::Protocol("the settings are none")
            })?;
            self.host = Some(settings.host);
            self.limit = settings.line_limit;
            if let Some(desk) = settings.desk {
                let config = Arc::new(desk.config);
                let callers = Callers::copy_of(CallerContext {
                    cwd: desk.default_cwd.clone(),
                    environment: told_environment(desk.places.home.clone(), desk.search_path),
                    config: Arc::clone(&config),
                    nesting: desk.nesting,
                    key_withheld: false,
                    origin: CallerOrigin::Host,
                });
                self.callers = Some(callers.clone());
                let desk = Consults {
                    jobs: client::jobs_of_host(self.asker.clone()),
                    agents: desk.agents,
                    clients: Clients::new(Arc::clone(&config), desk.observed),
                    config,
                    default_cwd: desk.default_cwd,
                    places: Arc::new(desk.places),
                    roots: client::roots_of_host(self.asker.clone()),
                    nesting: desk.nesting,
                    callers,
                    origin: CallerOrigin::Host,
                    fleet: desk.fleet.map(|machine| client::fleet_of_host(self.asker.clone(), machine)),
                };
                let consult = ConsultTool::new(desk);
                self.tools.insert(consult.name().to_owned(), Arc::new(consult));
            }
        }
        // The host decides what to do about a version or a generation that is not the one it expects.
        wire::ready(self.out.tail(), self.generation, self.tools.keys().map(String::as_str));
        Ok(Turn::Goes)
    }

    fn ask(&mut self, Asked { question, reply }: Asked) {
        let id = self.next;
        self.next += 1;
        if let Err(error) = wire::ask(self.out.tail(), self.generation, id, &question) {
            let fault = Fault::new(FaultCode::Internal, format!("the question cannot be sent to the host: {error}."));
            if let Some(reply) = reply {
                let _ = reply.send(Err(fault));
            }
            return;
        }
        if let Some(reply) = reply {
            self.asked.insert(id, reply);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_host_that_is_gone_before_it_was_answered_is_gone_and_no_failure() {
        let settings = WorkerSettings { host: HostId::random(), line_limit: wire::line_limit(LINE_LIMIT), desk: None };
        let mut greeting = BytesMut::new();
        wire::hello(&mut greeting, Generation(1), &settings).expect("a greeting");
        let (input, mut host) = tokio::io::duplex(64 * 1024);
        host.write_all(&greeting).await.expect("it is taken");
        let (output, answers) = tokio::io::duplex(64 * 1024);
        drop(answers);
        let tools: [Arc<dyn Tool>; 0] = [];
        let end = serve(Generation(1), tools, Faults::none(), input, output).await;
        assert!(matches!(end, Ok(WorkerEnd::HostGone)), "{end:?}");
    }
}
