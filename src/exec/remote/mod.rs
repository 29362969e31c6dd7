//! Processes of another machine, over one connection that may be lost and made again.
//!
//! Owns: the handle its users call, its processes, how a request becomes one of the wire. May not know: how connections are
//! made ([`Connector`]), and every rule about calls and connections ([`core`]).
//!
//! ```text
//! RemoteExec, its processes ──calls──▶ loop ([`drive`]) ──lines──▶ exec server
//!                                       │ lent: core, queues
//!                                       └ panics: the next generation
//! ```
//!
//! Invariants: those of [`backend`](super::backend) and of [`core`]; and a session of this module ends with `Closed` when the
//! server said so, with `Failed` when it can say nothing any more.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use uuid::Uuid;

use self::core::{Asked, CallKind, NewProcess, RemoteCore};
use self::drive::{AnswerTo, Inbox, Note, Shared};
use super::ReadExit;
use super::backend::{
    EnvironmentInfo, ExecBackend, ExecFiles, ExecProcess, FilesError, ProcessLost, ProcessStartError, StartRequest,
    StartedProcess, StdinKind,
};
use super::client::{CALL_DEADLINE, ExecError};
use super::local::{ProcessEnd, SpawnError, TerminalSize, WriteStatus};
use super::session::ProcessSession;
use super::tap::OutputTap;
use super::target::{AfterACut, ExecTarget};
use super::transport::{self, TransportError};
use super::wire::{
    self, CloseStdinParams, ResizeParams, SignalParams, StartParams, StartResult, TerminateAnswer, TerminateParams,
    WireError, WireSignal, WireWriteStatus, WriteAnswer, WriteParams, code, method,
};
use crate::base::base64::Base64;
use crate::base::tasks;
use crate::failpoints::Faults;

pub(super) mod core;
mod drive;
mod files;
#[cfg(test)]
mod tests;

pub use self::core::{RemoteState, Retry, WINDOW};
pub use self::drive::{Connector, NoStreams, Streams};

/// What a tap holds before the reading of the connection stops: the bytes of a local one.
const TAP_BYTES: usize = 1024 * 1024;

/// Calls on their way to the loop; it takes them at once.
const ASKS: usize = 64;

/// The most of one write; longer ones are several, so that none holds the line for long.
const WRITE_BYTES: usize = 256 * 1024;

/// The pause before a write to a process that is still starting is tried again.
const STARTING_PAUSE: Duration = Duration::from_millis(20);

/// How a server is spoken to.
#[derive(Debug, Clone)]
pub struct RemoteOptions {
    /// What we call ourselves.
    pub client_name: String,
    /// Spreads the attempts to connect again.
    pub seed: u64,
    /// The fault plan.
    pub faults: Faults,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self { client_name: "phone-opus".to_owned(), seed: 0, faults: Faults::default() }
    }
}

/// How a connection is, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RemoteHealth {
    /// Where it stands.
    pub state: RemoteState,
    /// Connections made so far.
    pub generation: u64,
    /// Processes followed.
    pub processes: usize,
    /// Requests unanswered.
    pub in_flight: usize,
    /// Messages of earlier connections that were dropped.
    pub stale: u64,
    /// How the last connection that was lost was lost.
    pub last_error: Option<String>,
}

/// An exec server. Clones are handles on the same connection; when the last one and every process of it are dropped, what
/// runs is ended and the connection is closed.
#[derive(Clone)]
pub struct RemoteExec {
    shared: Arc<Shared>,
    asks: mpsc::Sender<Asked<AnswerTo>>,
    notes: mpsc::UnboundedSender<Note>,
}

impl fmt::Debug for RemoteExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteExec").field("health", &self.health()).finish()
    }
}

/// The loop of a connection, for whoever supervises it.
#[derive(Clone)]
pub struct RemoteLoop {
    shared: Arc<Shared>,
}

impl RemoteLoop {
    /// Works until the connection is down for good.
    ///
    /// # Cancel safety
    /// Dropping the future, or a panic in it, closes the connection. Another run makes the next one, and the sessions go on.
    pub async fn run(&self) {
        drive::run(&self.shared).await;
    }

    /// Nobody will run it again: everything that is open fails.
    pub fn give_up(&self, reason: &str) {
        self.shared.give_up(reason);
    }

    /// How the connection is.
    #[must_use]
    pub fn health(&self) -> RemoteHealth {
        health(&self.shared)
    }
}

fn health(shared: &Shared) -> RemoteHealth {
    let core = shared.core();
    let (processes, in_flight, stale) = core.counts();
    RemoteHealth {
        state: core.state(),
        generation: core.generation(),
        processes,
        in_flight,
        stale,
        last_error: core.last_error().map(ToOwned::to_owned),
    }
}

impl RemoteExec {
    /// Connects to a server and makes the handshake, with a keeper of its own that starts the loop again should it fail.
    ///
    /// # Errors
    /// When the server is not reached, refuses, or speaks something else; it is tried once.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn connect(target: ExecTarget, token: Option<String>, options: RemoteOptions) -> Result<Self, ExecError> {
        let after_a_cut = target.after_a_cut();
        Self::connect_by(connector(target, token), after_a_cut, options).await
    }

    /// [`RemoteExec::connect`] by whatever makes its streams.
    ///
    /// # Errors
    /// As [`RemoteExec::connect`].
    pub async fn connect_by(
        connector: Connector,
        after_a_cut: AfterACut,
        options: RemoteOptions,
    ) -> Result<Self, ExecError> {
        let (remote, work) = Self::lent(connector, after_a_cut, options);
        // It ends with the last handle, and ends what runs when the runtime does.
        tasks::spawn(drive::keep(work.shared));
        remote.up().await?;
        Ok(remote)
    }

    /// A server whose loop is run by somebody else. Nothing is connected before that.
    #[must_use]
    pub fn lent(connector: Connector, after_a_cut: AfterACut, options: RemoteOptions) -> (Self, RemoteLoop) {
        let (asks, asked) = mpsc::channel(ASKS);
        let (notes, noted) = mpsc::unbounded_channel();
        let core = RemoteCore::new(&options.client_name, after_a_cut, options.seed, Instant::now());
        let inbox = Inbox { asks: asked, notes: noted };
        let shared = Arc::new(Shared::new(core, inbox, connector, options.faults));
        (Self { shared: Arc::clone(&shared), asks, notes }, RemoteLoop { shared })
    }

    /// Waits until the connection is up.
    ///
    /// # Errors
    /// When it is down for good.
    ///
    /// # Cancel safety
    /// It only waits.
    pub async fn up(&self) -> Result<(), ExecError> {
        let mut state = self.shared.state();
        let settled = |state: &RemoteState| matches!(state, RemoteState::Up | RemoteState::Down);
        match state.wait_for(settled).await.as_deref() {
            Ok(RemoteState::Up) => Ok(()),
            _ => Err(self.gone()),
        }
    }

    /// How the connection is.
    #[must_use]
    pub fn health(&self) -> RemoteHealth {
        health(&self.shared)
    }

    fn gone(&self) -> ExecError {
        let reason = self.shared.core().down_reason().unwrap_or("its loop stopped").to_owned();
        ExecError::Disconnected { reason }
    }

    async fn call<P: Serialize, T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: &P,
        kind: CallKind,
        within: Option<Duration>,
    ) -> Result<T, ExecError> {
        let nonsense = |error: serde_json::Error| ExecError::Nonsense { method, reason: error.to_string() };
        let params = serde_json::value::to_raw_value(params).map_err(nonsense)?;
        let until = within.map(|within| (Instant::now() + within, within));
        let (reply, answer) = oneshot::channel();
        let asked = Asked { method, params, kind, until, sent: false, reply };
        self.asks.send(asked).await.map_err(|_| self.gone())?;
        let answer = match answer.await {
            Ok(outcome) => outcome?,
            // Its loop panicked with the answer in its hands.
            Err(_) => {
                let reason = "the loop of the connection stopped".to_owned();
                return Err(ExecError::Ambiguous { method, reason });
            }
        };
        serde_json::from_str(answer.get()).map_err(nonsense)
    }

    async fn info(&self) -> Result<EnvironmentInfo, ExecError> {
        let known = self.shared.core().environment().cloned();
        if let Some(info) = known {
            return Ok(info);
        }
        let asked = self.call(method::ENVIRONMENT_INFO, &(), CallKind::Harmless, Some(CALL_DEADLINE)).await;
        match asked {
            Err(ExecError::Refused { error: WireError { code: code::UNKNOWN_METHOD, .. }, .. }) => {
                Ok(EnvironmentInfo::default())
            }
            other => other,
        }
    }

    async fn start_there(
        &self,
        request: StartRequest,
        session: ProcessSession,
    ) -> Result<StartedProcess, ProcessStartError> {
        let process_id = request.process_id.clone();
        let unsupported = |what| ProcessStartError::Unsupported { process_id: process_id.clone(), what };
        let unreachable = |error: ExecError| ProcessStartError::Unreachable {
            process_id: process_id.clone(),
            reason: error.to_string(),
        };
        let info = self.info().await.map_err(unreachable)?;
        let input = match &request.stdin {
            StdinKind::Bytes(bytes) if !bytes.is_empty() => Some(bytes.clone()),
            _ => None,
        };
        if input.is_some() && !info.can("processCloseStdin") {
            return Err(unsupported("its server cannot end a standard input"));
        }
        let params = start_params(&request, input.is_some(), &info).map_err(unsupported)?;
        // From here on a caller that goes away takes the process along, whether it is started yet or not.
        let hold = Hold { remote: self.clone(), process_id: process_id.clone() };
        let (feed, tap) = OutputTap::levelled(TAP_BYTES, self.shared.room());
        let new = NewProcess { process_id: process_id.clone(), session: session.clone(), tap: feed };
        let kind = CallKind::Start(Box::new(new));
        let started = self.call::<_, StartResult>(method::START, &params, kind, Some(CALL_DEADLINE)).await;
        if let Err(error) = started {
            return Err(self.why_not_started(request, error).await);
        }
        let writer = Writer { hold: Arc::new(hold), can_close: info.can("processCloseStdin") };
        let feeder = input.map(|input| {
            let writer = writer.clone();
            let feed = async move {
                // A process that does not read its input has decided so; how it ends says the rest.
                if writer.write(input, None).await.is_ok() {
                    let _ = writer.close().await;
                }
            };
            AbortOnDrop(tasks::spawn(feed).abort_handle())
        });
        let process = RemoteProcess {
            writer,
            session,
            graceful: info.can("terminateGrace"),
            resizes: info.can("processResize"),
            terminated: AtomicBool::new(false),
            _feeder: feeder,
        };
        Ok((Arc::new(process), tap))
    }

    /// Says why a process was not started as a machine would.
    async fn why_not_started(&self, request: StartRequest, error: ExecError) -> ProcessStartError {
        let StartRequest { process_id, program, cwd, .. } = request;
        let reason = error.to_string();
        let error = match error {
            ExecError::Refused { error, .. } => error,
            ExecError::Disconnected { .. } | ExecError::NotDone { .. } | ExecError::Busy { .. } => {
                return ProcessStartError::Unreachable { process_id, reason };
            }
            ExecError::Ambiguous { .. } | ExecError::Deadline { .. } | ExecError::Nonsense { .. } => {
                return ProcessStartError::Ambiguous { process_id, reason };
            }
        };
        if let Some(data) = &error.data {
            return SpawnError::of_kind(&data.kind, &error.message, &program, &cwd).into();
        }
        let says = |words: &[&str]| words.iter().any(|word| error.message.contains(word));
        match error.code {
            code::INVALID_REQUEST if says(&["already", "duplicate", "exists"]) => {
                return ProcessStartError::DuplicateId { process_id };
            }
            code::INTERNAL => {}
            _ => return ProcessStartError::Refused { process_id, error },
        }
        // Servers that are not ours pass on what their system said.
        let kind = match os_error(&error.message) {
            Some(2) => match ExecFiles::metadata(self, &cwd).await {
                Err(FilesError::Missing { .. }) => "cwdMissing",
                _ => "programMissing",
            },
            Some(20) => "cwdNotADirectory",
            Some(8 | 13) => "notExecutable",
            Some(7) => "argumentsTooLarge",
            Some(26) => "busy",
            Some(11 | 12 | 23 | 24) => "noRoom",
            _ => "other",
        };
        SpawnError::of_kind(kind, &error.message, &program, &cwd).into()
    }
}

/// The number in a text that ends as Rust's own errors do, `(os error 2)`.
fn os_error(text: &str) -> Option<i32> {
    let (_, rest) = text.rsplit_once("(os error ")?;
    rest.split_once(')')?.0.parse().ok()
}

/// The request as it is sent. An error is what of it cannot be.
fn start_params(request: &StartRequest, input: bool, info: &EnvironmentInfo) -> Result<StartParams, &'static str> {
    let text = |text: &OsStr| text.to_str().map(ToOwned::to_owned);
    let not_text = "what is not UTF-8 cannot be said to its server";
    let mut argv = vec![text(request.program.as_os_str()).ok_or(not_text)?];
    for argument in &request.args {
        argv.push(text(argument).ok_or(not_text)?);
    }
    let mut env = std::collections::BTreeMap::new();
    for (name, value) in &request.env {
        env.insert(text(name).ok_or(not_text)?, text(value).ok_or(not_text)?);
    }
    if !request.cwd.is_absolute() {
        return Err("its directory is not an absolute path");
    }
    let policy = request.env_policy.as_ref().map(serde_json::to_value).transpose();
    Ok(StartParams {
        process_id: request.process_id.clone(),
        argv,
        cwd: wire::cwd_uri(&request.cwd),
        env,
        tty: request.tty,
        pipe_stdin: input || matches!(request.stdin, StdinKind::Piped),
        arg0: request.arg0.as_deref().map(|name| text(name).ok_or(not_text)).transpose()?,
        env_policy: policy.map_err(|_| not_text)?,
        sandbox: None,
        enforce_managed_network: false,
        managed_network: None,
        metadata: request.metadata.clone(),
        ends_with_leader: request.ends_with_leader && info.can("endsWithLeader"),
        marked_by: request.marked_by.clone().filter(|_| info.can("markedBy")),
    })
}

/// What makes the connections to a target. The token is sent where the target takes one.
#[must_use]
pub fn connector(target: ExecTarget, token: Option<String>) -> Connector {
    let (target, token) = (Arc::new(target), Arc::new(token));
    Box::new(move |_generation| {
        let (target, token) = (Arc::clone(&target), Arc::clone(&token));
        async move {
            match transport::connect(&target, token.as_deref()).await {
                Ok((reader, writer, guard)) => Ok(Streams { reader, writer, ending: Some(guard.end().boxed()) }),
                Err(error) => {
                    let retry = match &error {
                        TransportError::Unreachable { .. } | TransportError::TimedOut { .. } => Retry::Later,
                        TransportError::Refused { .. } | TransportError::NotBuilt { .. } => Retry::Never,
                    };
                    let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
                    Err(NoStreams { reason: format!("{error}{}", source.unwrap_or_default()), retry })
                }
            }
        }
        .boxed()
    })
}

impl ExecBackend for RemoteExec {
    fn start(
        &self,
        request: StartRequest,
        session: ProcessSession,
    ) -> BoxFuture<'_, Result<StartedProcess, ProcessStartError>> {
        self.start_there(request, session).boxed()
    }

    fn files(&self) -> Option<&dyn ExecFiles> {
        Some(self)
    }

    fn is_heard(&self) -> bool {
        self.health().state == RemoteState::Up
    }

    fn environment(&self) -> BoxFuture<'_, Result<EnvironmentInfo, ExecError>> {
        self.info().boxed()
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        async {
            let _ = self.notes.send(Note::Closing);
            let mut state = self.shared.state();
            let _ = state.wait_for(|state| *state == RemoteState::Down).await;
        }
        .boxed()
    }
}

/// Has the process ended when it is dropped.
struct Hold {
    remote: RemoteExec,
    process_id: String,
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hold").field(&self.process_id).finish()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _ = self.remote.notes.send(Note::Released(std::mem::take(&mut self.process_id)));
    }
}

#[derive(Debug)]
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The way to a process's standard input.
#[derive(Debug, Clone)]
struct Writer {
    hold: Arc<Hold>,
    can_close: bool,
}

impl Writer {
    /// Writes in pieces, each under an id of its own, so that one that is sent again is written once.
    async fn write(&self, bytes: Bytes, within: Option<Duration>) -> Result<WriteStatus, ExecError> {
        let mut rest = bytes;
        loop {
            let piece = rest.split_to(rest.len().min(WRITE_BYTES));
            let status = self.write_piece(piece, within).await?;
            if status == WriteStatus::StdinClosed || rest.is_empty() {
                return Ok(status);
            }
        }
    }

    async fn write_piece(&self, piece: Bytes, within: Option<Duration>) -> Result<WriteStatus, ExecError> {
        let process_id = &self.hold.process_id;
        loop {
            let params = WriteParams {
                process_id: process_id.clone(),
                chunk: Base64(piece.clone()),
                write_id: Some(Uuid::new_v4().to_string()),
            };
            let kind = CallKind::Repeated { process_id: process_id.clone() };
            let answer: Result<WriteAnswer, _> = self.hold.remote.call(method::WRITE, &params, kind, within).await;
            match answer {
                Ok(WriteAnswer { status: WireWriteStatus::Accepted }) => return Ok(WriteStatus::Accepted),
                Ok(WriteAnswer { status: WireWriteStatus::StdinClosed | WireWriteStatus::UnknownProcess }) => {
                    return Ok(WriteStatus::StdinClosed);
                }
                Ok(WriteAnswer { status: WireWriteStatus::Starting }) => tokio::time::sleep(STARTING_PAUSE).await,
                // What servers say that are not ours when the process has just exited.
                Err(ExecError::Refused { error: WireError { code: code::INTERNAL, .. }, .. }) => {
                    return Ok(WriteStatus::StdinClosed);
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn close(&self) -> Result<(), ExecError> {
        if !self.can_close {
            let reason = "its server cannot end a standard input".to_owned();
            return Err(ExecError::NotDone { method: method::CLOSE_STDIN, reason });
        }
        let process_id = self.hold.process_id.clone();
        let params = CloseStdinParams { process_id: process_id.clone() };
        let kind = CallKind::Repeated { process_id };
        let _: IgnoredAny = self.hold.remote.call(method::CLOSE_STDIN, &params, kind, Some(CALL_DEADLINE)).await?;
        Ok(())
    }
}

/// A process of another machine.
#[derive(Debug)]
struct RemoteProcess {
    writer: Writer,
    session: ProcessSession,
    graceful: bool,
    resizes: bool,
    terminated: AtomicBool,
    /// Writes what was given with the start. Declared last: it holds the process too.
    _feeder: Option<AbortOnDrop>,
}

impl RemoteProcess {
    fn remote(&self) -> &RemoteExec {
        &self.writer.hold.remote
    }
}

impl Drop for RemoteProcess {
    fn drop(&mut self) {
        // The feeder's handle on the process goes when it is polled next; the process must not wait for that.
        let _ = self.remote().notes.send(Note::Released(self.id().to_owned()));
    }
}

impl ExecProcess for RemoteProcess {
    fn id(&self) -> &str {
        &self.writer.hold.process_id
    }

    fn session(&self) -> &ProcessSession {
        &self.session
    }

    fn pid(&self) -> Option<u32> {
        None
    }

    fn start_time(&self) -> u64 {
        0
    }

    fn write(&self, bytes: Bytes) -> BoxFuture<'_, Result<WriteStatus, ExecError>> {
        self.writer.write(bytes, None).boxed()
    }

    fn close_stdin(&self) -> BoxFuture<'_, Result<(), ExecError>> {
        self.writer.close().boxed()
    }

    fn interrupt(&self) -> BoxFuture<'_, Result<(), ExecError>> {
        async {
            let params = SignalParams { process_id: self.id().to_owned(), signal: WireSignal::Interrupt };
            let urgent = CallKind::Urgent;
            let _: IgnoredAny = self.remote().call(method::SIGNAL, &params, urgent, Some(CALL_DEADLINE)).await?;
            Ok(())
        }
        .boxed()
    }

    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, Result<bool, ExecError>> {
        async move {
            if !self.resizes {
                let reason = "its server cannot change the size of a terminal".to_owned();
                return Err(ExecError::NotDone { method: method::RESIZE, reason });
            }
            let params = ResizeParams { process_id: self.id().to_owned(), cols: size.cols, rows: size.rows };
            let harmless = CallKind::Harmless;
            match self.remote().call(method::RESIZE, &params, harmless, Some(CALL_DEADLINE)).await {
                Ok(IgnoredAny) => Ok(true),
                Err(ExecError::Refused { error: WireError { code: code::INVALID_REQUEST, .. }, .. }) => Ok(false),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn terminate(&self, grace: Option<Duration>) -> BoxFuture<'_, Result<bool, ExecError>> {
        async move {
            let grace = grace.unwrap_or(super::local::GRACE);
            let grace_ms = self.graceful.then(|| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
            let params = TerminateParams { process_id: self.id().to_owned(), grace_ms };
            self.terminated.store(true, Ordering::Release);
            let urgent = CallKind::Urgent;
            let answer: TerminateAnswer =
                self.remote().call(method::TERMINATE, &params, urgent, Some(CALL_DEADLINE)).await?;
            Ok(answer.running)
        }
        .boxed()
    }

    fn kill(&self) {
        self.terminated.store(true, Ordering::Release);
        let _ = self.remote().notes.send(Note::Killed(self.id().to_owned()));
    }

    fn end(&self) -> BoxFuture<'_, Result<ProcessEnd, ProcessLost>> {
        async {
            let mut wake = self.session.wake();
            while !self.session.has_ended() && wake.changed().await.is_ok() {}
            let last = self.session.look(|core| core.read(u64::MAX, Some(0)));
            if let Some(message) = last.failure {
                return Err(ProcessLost { message, heard: self.remote().shared.core().heard().into_std() });
            }
            let (code, signal) = match last.exit {
                ReadExit::Exited { code: Some(code), signal, .. } => (code, signal),
                _ => (-1, None),
            };
            let terminated = self.terminated.load(Ordering::Acquire);
            Ok(ProcessEnd { code, signal, reaped: 0, left: 0, terminated, pipes_leaked: false })
        }
        .boxed()
    }
}

/// A path as it is said to a server.
fn uri(path: &Path) -> Result<String, FilesError> {
    if path.is_absolute() { Ok(wire::cwd_uri(path)) } else { Err(FilesError::Unnameable { path: path.to_owned() }) }
}
