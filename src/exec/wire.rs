//! The texts of the exec protocol: JSON-RPC without its version field, one object per line.
//!
//! Owns: the message shapes, both dialects on input, the 0.169.0 dialect on output, the error codes.
//! May not know: sessions, processes, connections.
//!
//! Unknown fields are ignored everywhere: both dialects add some, and later ones will.

use std::collections::BTreeMap;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::local::SpawnError;
use super::{OutputChunk, OutputStream, ProcessEvent, ReadExit, ReadResult};
use crate::base::base64::{self, Base64};

/// Method names.
pub mod method {
    /// Request: begins a connection.
    pub const INITIALIZE: &str = "initialize";
    /// Notification: the client is ready for events.
    pub const INITIALIZED: &str = "initialized";
    /// Request: starts a process.
    pub const START: &str = "process/start";
    /// Request: retained output.
    pub const READ: &str = "process/read";
    /// Request: bytes for standard input.
    pub const WRITE: &str = "process/write";
    /// Request: interrupts.
    pub const SIGNAL: &str = "process/signal";
    /// Request: ends a process.
    pub const TERMINATE: &str = "process/terminate";
    /// Request, an extension: the end of standard input.
    pub const CLOSE_STDIN: &str = "process/closeStdin";
    /// Request, an extension: the size of a terminal.
    pub const RESIZE: &str = "process/resize";
    /// Request: what the machine is like.
    pub const ENVIRONMENT_INFO: &str = "environment/info";
    /// Request: whether it can be used.
    pub const ENVIRONMENT_STATUS: &str = "environment/status";
    /// Notification: output.
    pub const OUTPUT: &str = "process/output";
    /// Notification: the exit.
    pub const EXITED: &str = "process/exited";
    /// Notification: the end.
    pub const CLOSED: &str = "process/closed";
}

/// Error codes of the protocol.
pub mod code {
    /// The request was not acceptable, or not where the connection stands.
    pub const INVALID_REQUEST: i64 = -32600;
    /// There is no such method.
    pub const UNKNOWN_METHOD: i64 = -32601;
    /// The parameters were not acceptable.
    pub const INVALID_PARAMS: i64 = -32602;
    /// The system refused.
    pub const INTERNAL: i64 = -32603;
    /// A file does not exist.
    pub const NOT_FOUND: i64 = -32004;
    /// The session to resume is attached elsewhere; try again.
    pub const SESSION_ATTACHED: i64 = -32010;
}

/// The id of an error about a message whose id could not be read.
pub const UNREADABLE_ID: WireId = WireId::Number(-1);

/// A request id, echoed as it came.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum WireId {
    /// An integer.
    Number(i64),
    /// A string.
    Text(String),
}

/// An error as it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct WireError {
    /// One of [`code`].
    pub code: i64,
    /// One sentence for people.
    pub message: String,
    /// The same for programs. Ours only.
    #[serde(default, deserialize_with = "understood", skip_serializing_if = "Option::is_none")]
    pub data: Option<ErrorData>,
}

/// What an error says to programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorData {
    /// [`SpawnError::kind`].
    #[serde(default)]
    pub kind: String,
}

impl WireError {
    /// An error of this code.
    #[must_use]
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    /// Why a process was not started.
    #[must_use]
    pub fn of_spawn(error: &SpawnError) -> Self {
        let text = match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let data = error.kind().map(|kind| ErrorData { kind: kind.to_owned() });
        Self { code: code::INTERNAL, message: text, data }
    }
}

/// A message that was received.
#[derive(Debug)]
pub enum WireIncoming {
    /// Wants an answer.
    Request {
        /// To be echoed.
        id: WireId,
        /// What is wanted.
        method: String,
        /// With what; `null` when absent.
        params: Box<RawValue>,
    },
    /// Wants none.
    Notification {
        /// What happened.
        method: String,
        /// With what; `null` when absent.
        params: Box<RawValue>,
    },
    /// Answers one of ours.
    Response {
        id: WireId,
        /// The answer.
        outcome: Result<Box<RawValue>, WireError>,
    },
}

/// The text was not a message.
#[derive(Debug, thiserror::Error)]
pub enum NotAMessage {
    /// Not JSON, or a field of the wrong type.
    #[error("read a message: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON without the fields that would make it a request, a notification or a response.
    #[error("read a message: it is neither a request, a notification nor a response")]
    Shape,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(default, deserialize_with = "present")]
    id: Option<WireId>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default, borrow)]
    params: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<WireError>,
}

/// Reads a field that is there, so that `null` is a value of its type and not an absence.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Reads a field whose shape is ours; of others it is left out.
fn understood<'de, T: DeserializeOwned, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(deserializer)?).ok())
}

impl WireIncoming {
    /// Reads one line.
    ///
    /// # Errors
    /// When it is not a message of this protocol. Arrays (batches) and ids that are neither integers nor strings are not.
    pub fn parse(line: &[u8]) -> Result<Self, NotAMessage> {
        // An array would deserialise as the envelope's fields in order.
        if line.trim_ascii_start().first() != Some(&b'{') {
            return Err(NotAMessage::Shape);
        }
        let envelope: Envelope<'_> = serde_json::from_slice(line)?;
        let params = || envelope.params.map_or_else(|| RawValue::NULL.to_owned(), ToOwned::to_owned);
        match envelope {
            Envelope { id: Some(id), method: Some(method), .. } => Ok(Self::Request { id, method, params: params() }),
            Envelope { id: None, method: Some(method), .. } => Ok(Self::Notification { method, params: params() }),
            Envelope { id: Some(id), error: Some(error), .. } => Ok(Self::Response { id, outcome: Err(error) }),
            Envelope { id: Some(id), result: Some(result), .. } => {
                Ok(Self::Response { id, outcome: Ok(result.to_owned()) })
            }
            _ => Err(NotAMessage::Shape),
        }
    }
}

/// A message to be sent. [`WireOutgoing::to_line`] gives its text.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum WireOutgoing<'a, T> {
    /// Wants an answer.
    Request {
        /// Ours.
        id: i64,
        /// What is wanted.
        method: &'a str,
        /// With what.
        params: T,
    },
    /// Wants none.
    Notification {
        /// What happened.
        method: &'a str,
        /// With what.
        params: T,
    },
    /// A good answer.
    Result {
        /// The request's.
        id: &'a WireId,
        /// The answer.
        result: T,
    },
    /// A bad answer.
    Error {
        /// The request's, or [`UNREADABLE_ID`].
        id: &'a WireId,
        error: WireError,
    },
}

impl<T: Serialize> WireOutgoing<'_, T> {
    /// The message as one line with its end.
    ///
    /// # Errors
    /// When a value cannot be JSON, which none of the types in this module can cause.
    pub fn to_line(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }
}

/// The line of a bad answer.
///
/// # Errors
/// As [`WireOutgoing::to_line`].
pub fn error_line(id: &WireId, error: WireError) -> Result<Vec<u8>, serde_json::Error> {
    let message: WireOutgoing<'_, ()> = WireOutgoing::Error { id, error };
    message.to_line()
}

/// Reads parameters or a result.
///
/// # Errors
/// [`code::INVALID_PARAMS`] with what was wrong.
pub fn read_params<T: DeserializeOwned>(params: &RawValue) -> Result<T, WireError> {
    serde_json::from_str(params.get()).map_err(|error| WireError::new(code::INVALID_PARAMS, error.to_string()))
}

/// Parameters of [`method::INITIALIZE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InitializeParams {
    /// Who asks.
    pub client_name: String,
    /// The session to take up again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_session_id: Option<String>,
}

/// Answer to [`method::INITIALIZE`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InitializeResult {
    /// The session of this connection.
    pub session_id: String,
    /// What the machine is like; servers of the older dialect do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment_info: Option<Value>,
    /// How long what runs outlives its connection, in milliseconds. Ours only; absent where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
}

/// Parameters of [`method::START`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartParams {
    /// Chosen by the client.
    pub process_id: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// A `file:` URI, or a native absolute path in the older dialect; see [`read_cwd`].
    pub cwd: String,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// Whether it runs on a terminal.
    pub tty: bool,
    /// Whether its standard input can be written.
    #[serde(default)]
    pub pipe_stdin: bool,
    /// Its own name, when not the program's.
    #[serde(default)]
    pub arg0: Option<String>,
    /// What of the server's environment it inherits.
    #[serde(default)]
    pub env_policy: Option<Value>,
    /// A sandbox; a server that cannot enforce it must refuse.
    #[serde(default)]
    pub sandbox: Option<Value>,
    /// Network rules; as for the sandbox.
    #[serde(default)]
    pub enforce_managed_network: bool,
    /// Network rules.
    #[serde(default)]
    pub managed_network: Option<Value>,
    /// Whatever the client likes.
    #[serde(default)]
    pub metadata: Option<Value>,
    /// Whether the rest of its group ends when the leader does. An extension; without it the rest lives on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ends_with_leader: bool,
    /// The name in `env` of a variable that nothing else has: what carries it ends with the process, wherever it went. An
    /// extension; without it what left the group lives on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marked_by: Option<String>,
}

/// Answer to [`method::START`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartResult {
    /// As asked.
    pub process_id: String,
    /// The sandbox it runs in; absent in the older dialect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_type: Option<String>,
}

/// Parameters of [`method::READ`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadParams {
    /// Which process.
    pub process_id: String,
    /// The last position already seen.
    #[serde(default)]
    pub after_seq: Option<u64>,
    /// At most so many bytes of whole chunks, but at least one chunk.
    #[serde(default)]
    pub max_bytes: Option<u64>,
    /// How long to wait for something.
    #[serde(default)]
    pub wait_ms: Option<u64>,
}

/// Answer to [`method::READ`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadAnswer {
    /// Retained output.
    pub chunks: Vec<WireChunk>,
    /// See [`ReadResult::next_seq`].
    pub next_seq: u64,
    /// Whether it exited.
    pub exited: bool,
    pub exit_code: Option<i32>,
    /// Whether it is over.
    pub closed: bool,
    /// Why the session failed.
    #[serde(default)]
    pub failure: Option<String>,
    /// Always false: we have no sandbox that denies.
    #[serde(default)]
    pub sandbox_denied: bool,
    /// The position of the exit. Ours only; without it a client has to guess from the holes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exited_seq: Option<u64>,
    /// The signal it died of. Ours only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_signal: Option<i32>,
}

/// One piece of output in a [`ReadAnswer`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireChunk {
    /// Position in the session.
    pub seq: u64,
    /// Where it was written.
    pub stream: WireStream,
    /// What was written.
    pub chunk: Base64,
}

/// A stream's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A terminal, which has only one direction.
    Pty,
}

impl From<OutputStream> for WireStream {
    fn from(stream: OutputStream) -> Self {
        match stream {
            OutputStream::Stdout => Self::Stdout,
            OutputStream::Stderr => Self::Stderr,
        }
    }
}

impl From<WireStream> for OutputStream {
    fn from(stream: WireStream) -> Self {
        match stream {
            WireStream::Stdout | WireStream::Pty => Self::Stdout,
            WireStream::Stderr => Self::Stderr,
        }
    }
}

impl From<ReadResult> for ReadAnswer {
    fn from(result: ReadResult) -> Self {
        let (exited, exit_code, exit_signal, exited_seq) = match result.exit {
            ReadExit::NotYet => (false, None, None, None),
            ReadExit::Exited { code, signal, seq } => (true, code, signal, seq),
        };
        let chunks = result.chunks.into_iter().map(|chunk| WireChunk {
            seq: chunk.seq,
            stream: chunk.stream.into(),
            chunk: Base64(chunk.bytes),
        });
        Self {
            chunks: chunks.collect(),
            next_seq: result.next_seq,
            exited,
            exit_code,
            closed: result.closed,
            failure: result.failure,
            sandbox_denied: false,
            exited_seq,
            exit_signal,
        }
    }
}

impl From<ReadAnswer> for ReadResult {
    fn from(answer: ReadAnswer) -> Self {
        let chunks = answer.chunks.into_iter().map(|chunk| OutputChunk {
            seq: chunk.seq,
            stream: chunk.stream.into(),
            bytes: chunk.chunk.0,
        });
        let exit = if answer.exited {
            ReadExit::Exited { code: answer.exit_code, signal: answer.exit_signal, seq: answer.exited_seq }
        } else {
            ReadExit::NotYet
        };
        Self {
            chunks: chunks.collect(),
            next_seq: answer.next_seq,
            exit,
            closed: answer.closed,
            failure: answer.failure,
        }
    }
}

/// Parameters of [`method::WRITE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WriteParams {
    /// Which process.
    pub process_id: String,
    /// What to write.
    pub chunk: Base64,
    /// Makes a repeated write harmless; absent in the older dialect, always sent by us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_id: Option<String>,
}

/// Answer to [`method::WRITE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteAnswer {
    /// What became of it.
    pub status: WireWriteStatus,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WireWriteStatus {
    /// Queued.
    Accepted,
    /// There is no such process.
    UnknownProcess,
    /// It has no open standard input.
    StdinClosed,
    /// It is being started; try again.
    Starting,
}

/// Parameters of [`method::SIGNAL`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignalParams {
    /// Which process.
    pub process_id: String,
    /// Which signal.
    pub signal: WireSignal,
}

/// Signals the protocol has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireSignal {
    /// As Ctrl-C on a terminal.
    Interrupt,
}

/// Parameters of [`method::TERMINATE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TerminateParams {
    /// Which process.
    pub process_id: String,
    /// What it gets between being asked and being killed. An extension; without it, it is killed at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
}

/// Parameters of [`method::CLOSE_STDIN`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CloseStdinParams {
    /// Which process.
    pub process_id: String,
}

/// Parameters of [`method::RESIZE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResizeParams {
    /// Which process.
    pub process_id: String,
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// Answer to [`method::TERMINATE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminateAnswer {
    /// Whether there was anything to end.
    pub running: bool,
}

/// Parameters of [`method::OUTPUT`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutputParams {
    /// Which process.
    pub process_id: String,
    /// Position in the session.
    pub seq: u64,
    /// Where it was written.
    pub stream: WireStream,
    /// What was written.
    pub chunk: Base64,
}

/// Parameters of [`method::EXITED`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitedParams {
    /// Which process.
    pub process_id: String,
    /// Position in the session.
    pub seq: u64,
    pub exit_code: i32,
    /// Always sent, because its absence costs the peer a round trip.
    #[serde(default)]
    pub sandbox_denied: bool,
    /// The signal it died of. Ours only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_signal: Option<i32>,
}

/// Parameters of [`method::CLOSED`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClosedParams {
    /// Which process.
    pub process_id: String,
    /// Position in the session.
    pub seq: u64,
}

/// The two fields every event notification has: enough to know what was lost when the rest cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventHead {
    /// Which process.
    pub process_id: String,
    /// Position in the session.
    #[serde(default)]
    pub seq: u64,
}

/// The line that announces an event, of a process without a terminal; `None` where [`append_event`] appends nothing.
///
/// # Errors
/// As [`WireOutgoing::to_line`].
pub fn event_line(process_id: &str, event: &ProcessEvent) -> Result<Option<Vec<u8>>, serde_json::Error> {
    let mut line = Vec::new();
    append_event(&mut line, process_id, WireStream::Stdout, event);
    Ok(Some(line).filter(|line| !line.is_empty()))
}

/// Appends the line that announces an event; nothing for events a peer finds out by itself: `Lagged` is a hole in the positions,
/// `Failed` is in every read's `failure`. `output` is what standard output is called: a terminal has only one direction.
///
/// Written by hand: it is made for every piece of every process's output.
pub(super) fn append_event(text: &mut Vec<u8>, process_id: &str, output: WireStream, event: &ProcessEvent) {
    let (name, seq) = match event {
        ProcessEvent::Output { seq, .. } => (method::OUTPUT, seq),
        ProcessEvent::Exited { seq, .. } => (method::EXITED, seq),
        ProcessEvent::Closed { seq } => (method::CLOSED, seq),
        ProcessEvent::Failed { .. } | ProcessEvent::Lagged { .. } => return,
    };
    text.extend_from_slice(b"{\"method\":\"");
    text.extend_from_slice(name.as_bytes());
    text.extend_from_slice(b"\",\"params\":{\"processId\":");
    append_json(text, process_id);
    text.extend_from_slice(b",\"seq\":");
    append_json(text, seq);
    match event {
        ProcessEvent::Output { stream, bytes, .. } => {
            text.extend_from_slice(b",\"stream\":\"");
            let stream = match stream {
                OutputStream::Stdout => output,
                OutputStream::Stderr => WireStream::Stderr,
            };
            text.extend_from_slice(match stream {
                WireStream::Stdout => b"stdout",
                WireStream::Stderr => b"stderr",
                WireStream::Pty => b"pty",
            });
            text.extend_from_slice(b"\",\"chunk\":\"");
            base64::append(text, bytes);
            text.push(b'"');
        }
        ProcessEvent::Exited { code, signal, .. } => {
            text.extend_from_slice(b",\"exitCode\":");
            append_json(text, code);
            // Always sent, because its absence costs the peer a round trip.
            text.extend_from_slice(b",\"sandboxDenied\":false");
            if let Some(signal) = signal {
                text.extend_from_slice(b",\"exitSignal\":");
                append_json(text, signal);
            }
        }
        _ => {}
    }
    text.extend_from_slice(b"}}\n");
}

/// Into memory, of a text or a number, neither of which can be refused.
fn append_json<T: Serialize + ?Sized>(text: &mut Vec<u8>, value: &T) {
    let _ = serde_json::to_writer(text, value);
}

/// What a notification about a process says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventRead {
    /// This happened.
    Event(ProcessEvent),
    /// Something happened at this position, and the rest cannot be read.
    Unreadable(u64),
}

/// The process and the event a notification announces; `None` where it announces none.
#[must_use]
pub fn read_event(name: &str, params: &RawValue) -> Option<(String, EventRead)> {
    let read = match name {
        method::OUTPUT => read_params(params).map(|OutputParams { process_id, seq, stream, chunk: Base64(bytes) }| {
            (process_id, ProcessEvent::Output { seq, stream: stream.into(), bytes })
        }),
        method::EXITED => {
            read_params(params).map(|ExitedParams { process_id, seq, exit_code: code, exit_signal: signal, .. }| {
                (process_id, ProcessEvent::Exited { seq, code, signal })
            })
        }
        method::CLOSED => {
            read_params(params).map(|ClosedParams { process_id, seq }| (process_id, ProcessEvent::Closed { seq }))
        }
        _ => return None,
    };
    match read {
        Ok((process_id, event)) => Some((process_id, EventRead::Event(event))),
        Err(error) => {
            let EventHead { process_id, seq } = read_params(params).ok()?;
            tracing::debug!(%error, process_id, "an event cannot be read and will be asked for");
            Some((process_id, EventRead::Unreadable(seq)))
        }
    }
}

/// A `cwd` was neither a native absolute path nor a `file:` URI of this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read cwd {0:?}: neither an absolute path nor a file URI of this machine")]
pub struct NotACwd(pub String);

/// The directory a `cwd` of either dialect names.
///
/// # Errors
/// Relative paths, other schemes, other hosts, a query or a fragment, bad escapes.
pub fn read_cwd(text: &str) -> Result<PathBuf, NotACwd> {
    let refuse = || NotACwd(text.to_owned());
    if text.starts_with('/') {
        return Ok(PathBuf::from(text));
    }
    let rest = text.strip_prefix("file:").ok_or_else(refuse)?;
    let path = match rest.strip_prefix("//") {
        Some(authority) => authority.strip_prefix("localhost").unwrap_or(authority),
        None => rest,
    };
    if !path.starts_with('/') || path.contains(['?', '#']) {
        return Err(refuse());
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let digits = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok()).ok_or_else(refuse)?;
            let byte = u8::from_str_radix(digits, 16).map_err(|_| refuse())?;
            if byte == 0 || digits.starts_with('+') {
                return Err(refuse());
            }
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    Ok(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

/// The `file:` URI of a directory.
#[must_use]
pub fn cwd_uri(path: &Path) -> String {
    let mut uri = String::from("file://");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => uri.push(char::from(*byte)),
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_dialects_name_the_same_directory() {
        for text in ["/a b/c", "file:///a%20b/c", "file:/a%20b/c", "file://localhost/a%20b/c"] {
            assert_eq!(read_cwd(text), Ok(PathBuf::from("/a b/c")), "{text}");
        }
        for wrong in [
            "a",
            "",
            "http:///a",
            "file://other/a",
            "file:///a?b",
            "file:///a#b",
            "file:///%4",
            "file:///%00",
            "file:///%+1",
        ] {
            assert_eq!(read_cwd(wrong), Err(NotACwd(wrong.to_owned())), "{wrong}");
        }
        let odd = PathBuf::from("/ä /%?#");
        assert_eq!(read_cwd(&cwd_uri(&odd)), Ok(odd));
    }

    #[test]
    fn the_hand_written_line_is_what_the_types_read() {
        let text = |event: &ProcessEvent, output| {
            let mut line = Vec::new();
            append_event(&mut line, "p \"\u{e4}\"", output, event);
            String::from_utf8(line).unwrap()
        };
        for size in 0..70 {
            let bytes: Vec<u8> = (0..size).map(|byte: u8| byte.wrapping_mul(37)).collect();
            let event = ProcessEvent::Output { seq: 7, stream: OutputStream::Stdout, bytes: bytes.clone().into() };
            let line = text(&event, WireStream::Pty);
            let Ok(WireIncoming::Notification { method, params }) = WireIncoming::parse(line.as_bytes()) else {
                panic!("{line}")
            };
            let read: OutputParams = serde_json::from_str(params.get()).unwrap();
            assert_eq!(method, method::OUTPUT);
            assert_eq!((read.process_id.as_str(), read.seq, read.stream), ("p \"\u{e4}\"", 7, WireStream::Pty));
            assert_eq!(read.chunk.0.as_ref(), bytes);
        }
        let exited = text(&ProcessEvent::Exited { seq: 8, code: -1, signal: None }, WireStream::Stdout);
        assert_eq!(
            exited,
            "{\"method\":\"process/exited\",\"params\":{\"processId\":\"p \\\"\u{e4}\\\"\",\"seq\":8,\"exitCode\":-1,\"sandboxDenied\":false}}\n"
        );
        let killed = ProcessEvent::Exited { seq: 8, code: 137, signal: Some(9) };
        let line = text(&killed, WireStream::Stdout);
        let Ok(WireIncoming::Notification { method, params }) = WireIncoming::parse(line.as_bytes()) else {
            panic!("{line}")
        };
        assert_eq!(read_event(&method, &params), Some(("p \"\u{e4}\"".to_owned(), EventRead::Event(killed))));
        assert!(text(&ProcessEvent::Closed { seq: 9 }, WireStream::Stdout).contains("\"seq\":9"));
        assert_eq!(text(&ProcessEvent::Lagged { from: 1, to: 2 }, WireStream::Stdout), "");
    }

    #[test]
    fn ids_are_integers_or_strings_and_nothing_else() {
        for good in [r#"{"id":1,"method":"m"}"#, r#"{"method":"m","id":"x","jsonrpc":"2.0","params":null}"#] {
            assert!(matches!(WireIncoming::parse(good.as_bytes()), Ok(WireIncoming::Request { .. })), "{good}");
        }
        for bad in [
            r#"{"id":null,"method":"m"}"#,
            r#"{"id":1.5,"method":"m"}"#,
            r#"[{"id":1,"method":"m"}]"#,
            r#"[1,"m"]"#,
            r#"{"id":1}"#,
            r#"{}"#,
            "7",
            "{",
        ] {
            assert!(WireIncoming::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let null = WireIncoming::parse(br#"{"result":null,"id":3}"#);
        assert!(matches!(null, Ok(WireIncoming::Response { outcome: Ok(_), .. })), "{null:?}");
    }

    #[test]
    fn the_older_dialect_is_read_too() {
        let write: WriteParams = serde_json::from_str(r#"{"processId":"p","chunk":"aGk="}"#).unwrap();
        assert_eq!((write.chunk.0.as_ref(), write.write_id), (&b"hi"[..], None));
        let read: ReadAnswer = serde_json::from_str(
            r#"{"chunks":[],"nextSeq":1,"exited":false,"exitCode":null,"closed":false,"failure":null}"#,
        )
        .unwrap();
        assert!(!read.sandbox_denied);
        let start: StartParams =
            serde_json::from_str(r#"{"processId":"p","argv":["a"],"cwd":"/","env":{},"tty":false,"new":1}"#).unwrap();
        assert!(!start.pipe_stdin && start.sandbox.is_none());
        let exited: ExitedParams = serde_json::from_str(r#"{"processId":"p","seq":2,"exitCode":0}"#).unwrap();
        assert!(!exited.sandbox_denied);
    }
}
