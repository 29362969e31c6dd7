//! The asking side of the exec protocol, over any pair of byte streams.
//!
//! Owns: one connection's handshake, its calls in flight, and turning a peer's notifications into sessions that are complete
//! or say what they lack. May not know: how the streams came to be, and what the processes are.
//!
//! One *driver* task owns the connection's state: it takes lines, commands and its own timers. A *writer* task alone
//! writes. Gaps are decided by the sessions' cores; the driver only reads when a [`route`] asks for it.
//!
//! Invariants:
//! 1. A call ends by its answer, its deadline or the end of the connection; its id is never used again.
//! 2. When the connection ends every open session fails once, every call ends, and later ones are refused.
//! 3. A session is subscribed before its first event counts, and what was pushed earlier is read back.
//! 4. What cannot be understood harms its own session at most, unless nothing can be.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use self::route::{Route, RouteDue};
use super::core::ProcessLog;
use super::lines::LineReader;
use super::session::{EventStream, ProcessSession};
use super::wire::{
    self, EventRead, InitializeParams, InitializeResult, ReadAnswer, ReadParams, SignalParams, TerminateAnswer,
    TerminateParams, WireError, WireId, WireIncoming, WireOutgoing, WireSignal, WireWriteStatus, WriteAnswer,
    WriteParams, code, method,
};
use super::{OutputCursor, ReadResult};
use crate::base::base64::Base64;
use crate::base::tasks;

pub(super) mod route;

/// What the peer gets to answer `initialize`; it has nothing else to do at that time.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// What the peer gets to answer a call, on top of a wait the call asked for.
pub const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// Calls in flight on one connection. Servers exist that stop for good with 300; 200 was always well.
pub const CALLS_IN_FLIGHT: usize = 64;

/// Signals and terminations in flight beside them: they must not wait behind what they are to end.
pub(super) const URGENT_CALLS: usize = 16;

/// Lines that may wait for the peer to read them: all calls, and as many reads of our own.
const OUTBOX_LINES: usize = 2 * (CALLS_IN_FLIGHT + URGENT_CALLS);

/// Processes followed over one connection; far more than a host runs jobs.
pub(super) const ROUTES: usize = 1024;

/// What the writer gets to write the lines that are queued when the connection is closed here.
const LAST_LINES: Duration = Duration::from_secs(1);

/// So many messages in a row that cannot be understood mean that the peer speaks something else.
pub(super) const NONSENSE_LIMIT: u32 = 8;

/// Why a call did not get its answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// The connection has ended.
    #[error("reach the exec server: {reason}")]
    Disconnected {
        /// How it ended.
        reason: String,
    },
    /// No answer in time. Whether the peer did it is not known.
    #[error("get an answer to {method} within {} s", within.as_secs())]
    Deadline {
        /// The call.
        method: &'static str,
        /// The deadline.
        within: Duration,
    },
    /// The peer said no.
    #[error("have {method} done: {error}")]
    Refused {
        /// The call.
        method: &'static str,
        /// What it said.
        error: WireError,
    },
    /// The answer is not one to this call.
    #[error("understand the answer to {method}: {reason}")]
    Nonsense {
        /// The call.
        method: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The connection was lost with the call on its way: whether it was done is not known, and it is not repeated.
    #[error("learn whether {method} was done: {reason}")]
    Ambiguous {
        /// The call.
        method: &'static str,
        /// How the connection was lost.
        reason: String,
    },
    /// The call is known not to have been done.
    #[error("have {method} done: {reason}")]
    NotDone {
        /// The call.
        method: &'static str,
        /// Why not.
        reason: String,
    },
    /// A bound was reached: calls in flight, lines unread by the peer, or processes followed.
    #[error("take another {what}: too many already")]
    Busy {
        /// Of what there are too many.
        what: &'static str,
    },
}

/// What an established connection needs to be taken up by the next image of the same program, besides its two streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Handover {
    /// Bytes that were read and belong to no complete message yet.
    pub unread: Vec<u8>,
    /// The next request id.
    pub next_id: i64,
    /// The last position published of each process followed, to subscribe again after it.
    pub positions: Vec<(String, u64)>,
}

/// A connection to an exec server. Clones are the same connection; dropping the last one closes it and fails its sessions.
#[derive(Debug, Clone)]
pub struct ExecClient {
    commands: mpsc::Sender<Command>,
    permits: Arc<Permits>,
    /// How the connection ended.
    down: watch::Receiver<Option<String>>,
}

#[derive(Debug)]
struct Permits {
    calls: Semaphore,
    urgent: Semaphore,
}

#[derive(Debug)]
enum Command {
    Call { method: &'static str, params: Box<RawValue>, reply: oneshot::Sender<Result<Box<RawValue>, ExecError>> },
    Subscribe { process_id: String, cursor: OutputCursor, reply: oneshot::Sender<Result<EventStream, ExecError>> },
    Detach { reply: oneshot::Sender<Handover> },
}

impl ExecClient {
    /// Makes the handshake on a fresh connection, within [`HANDSHAKE_DEADLINE`].
    ///
    /// # Errors
    /// When the peer is gone, silent, refuses, or speaks something else.
    ///
    /// # Cancel safety
    /// Dropping the future closes the streams.
    pub async fn connect<R, W>(reader: R, mut writer: W, client_name: &str) -> Result<Self, ExecError>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        const FIRST_ID: i64 = 1;
        let mut lines = LineReader::after(&[], reader);
        let handshake = async {
            let params = InitializeParams { client_name: client_name.to_owned(), resume_session_id: None };
            let hello = WireOutgoing::Request { id: FIRST_ID, method: method::INITIALIZE, params };
            write_line(&mut writer, &hello).await?;
            loop {
                let Some(line) = lines.next().await.map_err(|error| disconnected(error.to_string()))? else {
                    return Err(disconnected("it ended during the handshake"));
                };
                // Whatever else comes before the answer is about sessions nobody has subscribed to yet.
                match WireIncoming::parse(&line) {
                    Ok(WireIncoming::Response { id: WireId::Number(FIRST_ID), outcome }) => {
                        let answer =
                            outcome.map_err(|error| ExecError::Refused { method: method::INITIALIZE, error })?;
                        let _: InitializeResult = read_answer(method::INITIALIZE, &answer)?;
                        break;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        return Err(ExecError::Nonsense { method: method::INITIALIZE, reason: error.to_string() });
                    }
                }
            }
            let ready = WireOutgoing::Notification { method: method::INITIALIZED, params: serde_json::Map::new() };
            write_line(&mut writer, &ready).await
        };
        match tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await {
            Ok(done) => done?,
            Err(_) => {
                return Err(ExecError::Deadline { method: method::INITIALIZE, within: HANDSHAKE_DEADLINE });
            }
        }
        Ok(Self::over(lines, writer, FIRST_ID + 1))
    }

    /// Takes up an established connection that [`ExecClient::detach`] gave away. There is no handshake.
    #[must_use]
    pub fn adopt<R, W>(reader: R, writer: W, handover: &Handover) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        Self::over(LineReader::after(&handover.unread, reader), writer, handover.next_id)
    }

    fn over<R, W>(lines: LineReader<R>, writer: W, next_id: i64) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        // Every holder of a permit has at most one command here, so sending never waits for long.
        let (commands, receiver) = mpsc::channel(CALLS_IN_FLIGHT + URGENT_CALLS);
        let (down_sender, down) = watch::channel(None);
        let (outbox, outbox_receiver) = mpsc::channel(OUTBOX_LINES);
        // Neither task is joined: the driver ends with its last client or with its peer, which `down` says, and ends the writer.
        let writer = tasks::spawn(write_lines(writer, outbox_receiver));
        let driver = Driver { outbox, next_id, calls: HashMap::new(), routes: HashMap::new(), nonsense: 0 };
        tasks::spawn(driver.run(lines, receiver, down_sender, writer));
        let permits = Permits { calls: Semaphore::new(CALLS_IN_FLIGHT), urgent: Semaphore::new(URGENT_CALLS) };
        Self { commands, permits: Arc::new(permits), down }
    }

    /// The events of a process after `cursor`, from now on kept complete by this connection.
    ///
    /// Subscribers of one process share one session, which begins where the first of them began.
    ///
    /// # Errors
    /// When the connection has ended or too many processes are followed.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn subscribe(&self, process_id: &str, cursor: OutputCursor) -> Result<EventStream, ExecError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Subscribe { process_id: process_id.to_owned(), cursor, reply };
        self.commands.send(command).await.map_err(|_| self.lost())?;
        answer.await.map_err(|_| self.lost())?
    }

    /// Asks the peer to end a process; returns whether there was anything to end. Never waits behind other calls.
    ///
    /// # Errors
    /// See [`ExecError`]. After a lost answer it may be asked again.
    ///
    /// # Cancel safety
    /// What was sent stays sent.
    pub async fn terminate(&self, process_id: &str) -> Result<bool, ExecError> {
        let params = TerminateParams { process_id: process_id.to_owned(), grace_ms: None };
        let answer: TerminateAnswer =
            self.call(&self.permits.urgent, method::TERMINATE, &params, CALL_DEADLINE).await?;
        Ok(answer.running)
    }

    /// Asks the peer to interrupt a process. Never waits behind other calls.
    ///
    /// # Errors
    /// See [`ExecError`].
    ///
    /// # Cancel safety
    /// What was sent stays sent.
    pub async fn interrupt(&self, process_id: &str) -> Result<(), ExecError> {
        let params = SignalParams { process_id: process_id.to_owned(), signal: WireSignal::Interrupt };
        let _: serde::de::IgnoredAny = self.call(&self.permits.urgent, method::SIGNAL, &params, CALL_DEADLINE).await?;
        Ok(())
    }

    /// Reads retained output from the peer itself.
    ///
    /// # Errors
    /// See [`ExecError`].
    ///
    /// # Cancel safety
    /// Reading changes nothing.
    pub async fn read(
        &self,
        process_id: &str,
        after: u64,
        max_bytes: Option<u64>,
        wait: Duration,
    ) -> Result<ReadResult, ExecError> {
        let params = ReadParams {
            process_id: process_id.to_owned(),
            after_seq: Some(after),
            max_bytes,
            wait_ms: Some(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        };
        let deadline = CALL_DEADLINE.saturating_add(wait);
        let answer: ReadAnswer = self.call(&self.permits.calls, method::READ, &params, deadline).await?;
        Ok(answer.into())
    }

    /// Writes to a process's standard input. A lost answer leaves it unknown whether the bytes were taken.
    ///
    /// # Errors
    /// See [`ExecError`].
    ///
    /// # Cancel safety
    /// What was sent stays sent.
    pub async fn write(&self, process_id: &str, bytes: Bytes) -> Result<WireWriteStatus, ExecError> {
        let params = WriteParams {
            process_id: process_id.to_owned(),
            chunk: Base64(bytes),
            write_id: Some(Uuid::new_v4().to_string()),
        };
        let answer: WriteAnswer = self.call(&self.permits.calls, method::WRITE, &params, CALL_DEADLINE).await?;
        Ok(answer.status)
    }

    /// Waits for the end of the connection and says how it ended.
    ///
    /// # Cancel safety
    /// It only waits.
    pub async fn disconnected(&self) -> String {
        let mut down = self.down.clone();
        match down.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(reason)) => reason.clone(),
            _ => "its driver stopped".to_owned(),
        }
    }

    /// Lets go of the connection between two messages, so that another image of the program can [`ExecClient::adopt`] it.
    ///
    /// Calls in flight end as disconnected and open sessions fail here. Queued lines are written first, however long the
    /// peer takes to read them; bound the wait. The streams given to this client are closed, so whoever hands them on keeps
    /// duplicates.
    ///
    /// # Errors
    /// When the connection has ended already.
    ///
    /// # Cancel safety
    /// Once polled the connection is given up, even if the future is dropped.
    pub async fn detach(self) -> Result<Handover, ExecError> {
        let (reply, handover) = oneshot::channel();
        self.commands.send(Command::Detach { reply }).await.map_err(|_| self.lost())?;
        handover.await.map_err(|_| self.lost())
    }

    async fn call<T: DeserializeOwned>(
        &self,
        permits: &Semaphore,
        method: &'static str,
        params: &impl Serialize,
        within: Duration,
    ) -> Result<T, ExecError> {
        let params = serde_json::value::to_raw_value(params)
            .map_err(|error| ExecError::Nonsense { method, reason: error.to_string() })?;
        let exchange = async {
            let _permit = permits.acquire().await.map_err(|_| self.lost())?;
            let (reply, answer) = oneshot::channel();
            self.commands.send(Command::Call { method, params, reply }).await.map_err(|_| self.lost())?;
            answer.await.map_err(|_| self.lost())?
        };
        let answer = match tokio::time::timeout(within, exchange).await {
            Ok(answer) => answer?,
            Err(_) => return Err(ExecError::Deadline { method, within }),
        };
        read_answer(method, &answer)
    }

    fn lost(&self) -> ExecError {
        disconnected(self.down.borrow().as_deref().unwrap_or("its driver stopped"))
    }
}

fn disconnected(reason: impl Into<String>) -> ExecError {
    ExecError::Disconnected { reason: reason.into() }
}

fn read_answer<T: DeserializeOwned>(method: &'static str, answer: &RawValue) -> Result<T, ExecError> {
    serde_json::from_str(answer.get()).map_err(|error| ExecError::Nonsense { method, reason: error.to_string() })
}

async fn write_line<T: Serialize>(
    writer: &mut (impl AsyncWrite + Unpin),
    message: &WireOutgoing<'_, T>,
) -> Result<(), ExecError> {
    let line = message.to_line().map_err(|error| disconnected(error.to_string()))?;
    writer.write_all(&line).await.map_err(|error| disconnected(error.to_string()))?;
    writer.flush().await.map_err(|error| disconnected(error.to_string()))
}

async fn write_lines(mut writer: impl AsyncWrite + Unpin, mut outbox: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = outbox.recv().await {
        let written = async {
            writer.write_all(&line).await?;
            writer.flush().await
        };
        if let Err(error) = written.await {
            tracing::debug!(%error, "an exec server does not read any more");
            return;
        }
    }
}

/// Who waits for an answer.
enum Waiting {
    Caller(&'static str, oneshot::Sender<Result<Box<RawValue>, ExecError>>),
    /// A read of our own, for a session's core.
    Recovery {
        process_id: String,
        after: u64,
    },
}

/// What ended the driver.
enum DriverEnd {
    Lost(String),
    Detached(oneshot::Sender<Handover>),
}

/// Owns the connection's state. Everything that can wake it is an arm of the one `select` in [`Driver::drive`].
struct Driver {
    outbox: mpsc::Sender<Vec<u8>>,
    next_id: i64,
    calls: HashMap<i64, Waiting>,
    routes: HashMap<String, Route>,
    nonsense: u32,
}

impl Driver {
    async fn run<R: AsyncRead + Unpin>(
        mut self,
        mut lines: LineReader<R>,
        mut commands: mpsc::Receiver<Command>,
        down: watch::Sender<Option<String>>,
        mut writer: JoinHandle<()>,
    ) {
        let end = self.drive(&mut lines, &mut commands).await;
        let reason = match &end {
            DriverEnd::Lost(reason) => reason.clone(),
            DriverEnd::Detached(_) => "it was handed over".to_owned(),
        };
        // Refuse first, then fail: nobody can subscribe to a session that will never be failed.
        down.send_replace(Some(reason.clone()));
        commands.close();
        let positions: Vec<_> =
            self.routes.iter().map(|(process, route)| (process.clone(), route.session.last_seq())).collect();
        for (_, route) in self.routes.drain() {
            route.session.publish_failed(format!("its pipes were lost: {reason}"));
        }
        // Dropping their replies ends the calls in flight, and those that were still queued.
        self.calls.clear();
        drop(commands);
        let next_id = self.next_id;
        drop(self);
        if let DriverEnd::Detached(reply) = end {
            let _ = writer.await;
            let _ = reply.send(Handover { unread: lines.into_unread(), next_id, positions });
        } else if tokio::time::timeout(LAST_LINES, &mut writer).await.is_err() {
            writer.abort();
        }
    }

    async fn drive<R: AsyncRead + Unpin>(
        &mut self,
        lines: &mut LineReader<R>,
        commands: &mut mpsc::Receiver<Command>,
    ) -> DriverEnd {
        loop {
            let due = self.routes.values().map(Route::due_at).min();
            tokio::select! {
                line = lines.next() => match line {
                    Ok(Some(line)) => {
                        if let Err(reason) = self.accept(&line) {
                            return DriverEnd::Lost(reason);
                        }
                    }
                    Ok(None) => return DriverEnd::Lost("it closed the connection".to_owned()),
                    Err(error) => return DriverEnd::Lost(error.to_string()),
                },
                command = commands.recv() => match command {
                    Some(Command::Call { method, params, reply }) => self.call(method, &params, reply),
                    Some(Command::Subscribe { process_id, cursor, reply }) => {
                        // A subscriber that went away meanwhile drops the stream, and with it the route.
                        let _ = reply.send(self.subscribe(process_id, cursor));
                    }
                    Some(Command::Detach { reply }) => return DriverEnd::Detached(reply),
                    None => return DriverEnd::Lost("it was closed here".to_owned()),
                },
                () = self.outbox.closed() => return DriverEnd::Lost("it does not read any more".to_owned()),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.look_around(),
            }
        }
    }

    fn call(
        &mut self,
        method: &'static str,
        params: &RawValue,
        reply: oneshot::Sender<Result<Box<RawValue>, ExecError>>,
    ) {
        // Callers that gave up leave their entry; it goes at the latest when as many others are in flight.
        if self.calls.len() >= CALLS_IN_FLIGHT + URGENT_CALLS {
            self.calls.retain(|_, waiting| match waiting {
                Waiting::Caller(_, reply) => !reply.is_closed(),
                Waiting::Recovery { .. } => true,
            });
        }
        match self.send(method, params) {
            Ok(id) => _ = self.calls.insert(id, Waiting::Caller(method, reply)),
            Err(error) => _ = reply.send(Err(error)),
        }
    }

    fn send(&mut self, method: &str, params: impl Serialize) -> Result<i64, ExecError> {
        let id = self.next_id;
        let line =
            WireOutgoing::Request { id, method, params }.to_line().map_err(|error| disconnected(error.to_string()))?;
        self.outbox.try_send(line).map_err(|_| ExecError::Busy { what: "line for a peer that does not read" })?;
        self.next_id += 1;
        Ok(id)
    }

    fn subscribe(&mut self, process_id: String, cursor: OutputCursor) -> Result<EventStream, ExecError> {
        if let Some(route) = self.routes.get(&process_id) {
            return Ok(route.session.subscribe(cursor));
        }
        if self.routes.len() >= ROUTES {
            return Err(ExecError::Busy { what: "process" });
        }
        let session = ProcessSession::over(ProcessLog::resumed_after(cursor.seen()));
        let stream = session.subscribe(cursor);
        self.routes.insert(process_id, Route::new(session, Instant::now()));
        Ok(stream)
    }

    /// Takes one line. An error ends the connection.
    fn accept(&mut self, line: &[u8]) -> Result<(), String> {
        match WireIncoming::parse(line) {
            Ok(WireIncoming::Notification { method, params }) => {
                self.nonsense = 0;
                self.notified(&method, &params);
            }
            Ok(WireIncoming::Response { id: WireId::Number(id), outcome }) => {
                self.nonsense = 0;
                self.answered(id, outcome);
            }
            // Ours are numbers, so this answers nothing of ours.
            Ok(WireIncoming::Response { .. }) => {}
            Ok(WireIncoming::Request { id, method, .. }) => {
                let error = WireError::new(code::UNKNOWN_METHOD, format!("the method {method:?} is unknown"));
                if let Ok(line) = wire::error_line(&id, error) {
                    let _ = self.outbox.try_send(line);
                }
            }
            Err(error) => {
                self.nonsense += 1;
                tracing::debug!(%error, "an exec server sent something else than a message");
                if self.nonsense >= NONSENSE_LIMIT {
                    return Err(format!("it speaks something else: {error}"));
                }
            }
        }
        Ok(())
    }

    fn notified(&mut self, name: &str, params: &RawValue) {
        if !matches!(name, method::OUTPUT | method::EXITED | method::CLOSED) {
            return;
        }
        let Some((process_id, event)) = wire::read_event(name, params) else { return };
        let Some(route) = self.routes.get_mut(&process_id) else { return };
        route.session.change(|core| match event {
            EventRead::Event(event) => core.receive(event),
            EventRead::Unreadable(seq) => core.receive_unreadable(seq),
        });
        route.heard(Instant::now());
        self.retire(&process_id);
    }

    fn answered(&mut self, id: i64, outcome: Result<Box<RawValue>, WireError>) {
        match self.calls.remove(&id) {
            Some(Waiting::Caller(method, reply)) => {
                let _ = reply.send(outcome.map_err(|error| ExecError::Refused { method, error }));
            }
            Some(Waiting::Recovery { process_id, after }) => {
                if let Some(route) = self.routes.get_mut(&process_id) {
                    route.answered(id, after, outcome, Instant::now());
                }
                self.retire(&process_id);
            }
            // Its caller has given up, or another image of this program asked.
            None => {}
        }
    }

    /// Does what has become due: reads, and giving up on reads.
    fn look_around(&mut self) {
        let now = Instant::now();
        self.routes.retain(|_, route| !route.session.is_alone());
        let mut reads = Vec::new();
        for (process_id, route) in &mut self.routes {
            match route.due(now) {
                Some(RouteDue::Read(after)) => reads.push((process_id.clone(), after)),
                Some(RouteDue::GiveUp(id)) => _ = self.calls.remove(&id),
                None => {}
            }
        }
        for (process_id, after) in reads {
            let sent = self.send(method::READ, Route::params(&process_id, after));
            let Some(route) = self.routes.get_mut(&process_id) else { continue };
            match sent {
                Ok(id) => {
                    route.sent(id, now);
                    self.calls.insert(id, Waiting::Recovery { process_id, after });
                }
                Err(_) => route.not_sent(now),
            }
        }
    }

    /// Forgets a process that has ended or that nobody follows any more.
    fn retire(&mut self, process_id: &str) {
        if self.routes.get(process_id).is_some_and(|route| route.session.has_ended() || route.session.is_alone()) {
            self.routes.remove(process_id);
        }
    }
}

#[cfg(test)]
mod tests;
