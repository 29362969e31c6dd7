//! The session's state machine: what each message of a client means, and what it is answered with.
//!
//! Owns: the handshake, the requests in flight with their raw ids, batches, cancellation, what outlives its request
//! (`standing`), the bounds of a session. May not know: how a call is executed, where tasks are kept, actors, I/O, clocks
//! (`now` is passed in).
//!
//! ```text
//!  un-enveloped requests:   before initialize ──initialize──▶ ready(version)     (ping is served in both)
//!  enveloped requests:      served cold, each on its own; the era is decided per request
//!  a call:                  accepted ──settled──▶ answered | ──cancelled──▶ silent
//!  a call as a task:        accepted ──settled, names a job──▶ looked at ──▶ answered with the task
//! ```
//!
//! Invariants: (1) L1: an id gets exactly one response, none after its cancellation; (2) an id in flight is refused
//! to a newcomer and the first request goes on; (3) calls and their bytes are bounded, and beyond the bound a call is
//! refused at once, never parked, so that a cancel or a ping always gets through; (4) no line we write is longer than
//! [`wire::LINE_MOST`].

mod answers;
mod batches;
mod handshake;
mod meta;
mod passed;
mod requests;
mod roots;
mod standing;
mod tasks;

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use self::meta::{Refusal, SeenClient};
pub use self::passed::{ClientSnapshot, CoreSnapshot, Unreadable};
pub use self::roots::Roots;
use self::roots::RootsTalk;
use self::standing::Standings;
use super::catalog::{CallRoom, Catalog};
use super::envelope::{self, IdToken, Incoming};
use super::frame::Frame;
use super::method::Method;
use super::tasks::{TaskAsk, TaskNews, TaskProtocol};
use super::version::Version;
use super::wire::{self, Identity, ToolReply};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::CallNumber;
use crate::base::ids::JobId;
use crate::base::lenient;
use crate::base::trace::TraceContext;

/// Bounds of one session. Reaching one is an answer.
#[derive(Debug, Clone, Copy)]
pub struct SessionLimits {
    /// Calls in flight. Sixteen full bursts of the busiest client seen (64 calls); then `busy`, but for tools that have
    /// places kept for them ([`CallRoom::Kept`]).
    pub calls: usize,
    /// Bytes of arguments in flight; then `busy`.
    pub call_bytes: usize,
    /// Replies about lines that are no JSON, per second; more are dropped, so that a confused peer gets no echo.
    pub parse_errors_per_second: u32,
    /// Members of a batch; more are refused together.
    pub batch: usize,
    /// Whether a client of this name is told a fault's record beside its sentence without asking for it: some show their model
    /// only the one of them that is harder to read.
    pub structured: fn(Option<&str>) -> bool,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { calls: 1024, call_bytes: 64 * 1024 * 1024, parse_errors_per_second: 5, batch: 256, structured: |_| true }
    }
}

/// Calls, and bytes of their arguments, for which places are kept beyond the bounds all tools share: as many as the busiest
/// client sends at once, each as large as a tool that reads or cancels could need.
const KEPT_CALLS: usize = 64;
const KEPT_BYTES: usize = 1024 * 1024;

/// Who called, as far as the client said. Parsed only when somebody asks.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum ClientInfo {
    /// It did not say.
    #[default]
    Unknown,
    /// Its name, from the handshake or an embedding program.
    Name(Arc<str>),
    /// The `clientInfo` object of the request's envelope.
    Raw(Bytes),
}

impl ClientInfo {
    /// The client's name.
    #[must_use]
    pub fn name(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Unknown => None,
            Self::Name(name) => Some(Cow::Borrowed(name)),
            Self::Raw(json) => {
                let text = std::str::from_utf8(json).ok()?;
                let [name] = envelope::object(text, ["name"]).ok()?;
                envelope::string(name?).map(|name| Cow::Owned(name.into_owned()))
            }
        }
    }
}

/// A tool call to be executed.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its number; whatever is reported about it carries it.
    pub number: CallNumber,
    /// The tool's position in the catalogue.
    pub tool: usize,
    /// The JSON text of the arguments: an object.
    pub arguments: Bytes,
    /// Who called.
    pub client: ClientInfo,
    /// Whether the client wants progress.
    pub wants_progress: bool,
    /// What its client says it is part of; nothing for a call that is begun again.
    pub trace: Option<Box<TraceContext>>,
}

/// What the session asks of the loop around it.
#[derive(Debug)]
pub enum SessionEffect {
    /// Execute this call.
    Invoke(Call),
    /// Find this out about tasks, for the request of this number.
    Ask {
        /// Which request.
        number: CallNumber,
        ask: TaskAsk,
        /// Who asks.
        client: ClientInfo,
    },
    /// Nobody waits for this call any more.
    Withdraw(CallNumber),
    /// Tell about these tasks from now on, under this number.
    Follow {
        number: CallNumber,
        /// The tasks.
        jobs: Vec<JobId>,
        /// What is wanted.
        news: Wanted,
        /// Who follows.
        client: ClientInfo,
    },
    /// Nobody listens under this number any more.
    Unfollow(CallNumber),
    /// The client withdrew a call it had waited for this long; it may have a limit of its own.
    GaveUp {
        client: ClientInfo,
        /// From the call's arrival.
        after: Duration,
    },
    /// What is known of the client's roots changed.
    Roots(Roots),
    /// A call was answered although its client had waited this long for it.
    Waited {
        client: ClientInfo,
        /// From the call's arrival.
        so_long: Duration,
    },
    /// A request was finished, for the counters.
    Finished(Finished),
}

/// What the session asks for and nobody has decided about yet, oldest first.
pub type SessionEffects = VecDeque<SessionEffect>;

/// Which news of a task are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// Whenever its status changes, and its result once it is over.
    Status,
    /// How it gets on, and that it is over.
    Progress,
    /// That it is over.
    End,
}

/// What telemetry is told about a finished request.
#[derive(Debug, Clone)]
pub struct Finished {
    /// `ping`, `tools/list`, … or `tools/call`; unknown methods are `other`.
    pub method: &'static str,
    /// The tool's position in the catalogue, for `tools/call`.
    pub tool: Option<usize>,
    /// The call's number, for `tools/call`.
    pub call: Option<CallNumber>,
    /// The id as the client wrote it, for `tools/call`.
    pub request_id: Option<IdToken>,
    /// When it was.
    pub at: Instant,
    /// From the line's arrival to its answer.
    pub latency: Duration,
    /// How it ended.
    pub result: FinishedAs,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishedAs {
    /// Answered with a result.
    Success,
    /// Answered with an error or an error result.
    Failed(FaultCode),
    /// Withdrawn by the client, not answered.
    Cancelled,
}

/// How a call came out.
#[derive(Debug)]
pub enum CallOutcome {
    /// The tool answered.
    Reply(Box<ToolReply>),
    /// It failed below the tool, or its arguments were refused.
    Fault(Box<Fault>),
}

#[derive(Debug)]
struct Pending {
    id: IdToken,
    version: Version,
    client: ClientInfo,
    work: Work,
    bytes: usize,
    batch: Option<u64>,
    since: Instant,
    /// Whether a fault is told with its record, beside its sentence.
    structured: bool,
}

/// What a request in flight waits for.
#[derive(Debug)]
enum Work {
    Tool {
        tool: usize,
        progress: Option<Box<str>>,
        last_progress: f64,
        task: Option<TaskProtocol>,
    },
    /// How the task stands that a call of this tool became.
    Created {
        tool: usize,
        progress: Option<Box<str>>,
        last_progress: f64,
        protocol: TaskProtocol,
    },
    /// Something about tasks.
    Ask(Method),
    /// Which of the tasks of a subscription exist.
    Listen {
        tools: bool,
    },
    /// A tool that was there before an upgrade and is no more; an error is all there is left to say.
    Gone,
}

impl Work {
    fn tool(&self) -> Option<usize> {
        match self {
            Self::Tool { tool, .. } | Self::Created { tool, .. } => Some(*tool),
            Self::Ask(_) | Self::Listen { .. } | Self::Gone => None,
        }
    }

    fn method(&self) -> Method {
        match self {
            Self::Tool { .. } | Self::Created { .. } | Self::Gone => Method::ToolsCall,
            Self::Ask(method) => *method,
            Self::Listen { .. } => Method::Listen,
        }
    }
}

#[derive(Debug)]
struct Batch {
    open: usize,
    parts: BytesMut,
}

/// What a line was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineWas {
    /// A message, good or bad; what follows from it was decided.
    Message,
    /// Something beside JSON-RPC, on a connection where such a thing may be understood; nothing was decided.
    Beside,
}

#[derive(Debug)]
enum Handshake {
    Before,
    Ready { version: Version, client: ClientInfo },
}

/// One client's session.
#[derive(Debug)]
pub struct SessionCore {
    limits: SessionLimits,
    catalog: Arc<Catalog>,
    identity: Arc<Identity>,
    handshake: Handshake,
    /// The version of its client's program, from the handshake.
    client_version: Option<Box<str>>,
    seen: SeenClient,
    roots: RootsTalk,
    standings: Standings,
    pending: HashMap<u64, Pending, foldhash::fast::RandomState>,
    /// The client chooses the ids, but only so many are in flight that even the worst ones cost little.
    by_id: HashMap<IdToken, u64, foldhash::fast::RandomState>,
    call_bytes: usize,
    next_call: u64,
    batches: HashMap<u64, Batch>,
    next_batch: u64,
    answered: bool,
    complaints: Complaints,
    /// Whether lines beside JSON-RPC may be understood: then the other end is no client that takes the first line it reads
    /// for the answer to its handshake.
    takes_control: bool,
}

#[derive(Debug, Default)]
struct Complaints {
    window: Option<Instant>,
    used: u32,
}

/// Where a message came from: on its own line, or in a batch.
#[derive(Debug, Clone, Copy)]
struct Origin {
    batch: Option<u64>,
    now: Instant,
}

impl SessionCore {
    /// A session before its first message.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>, identity: Arc<Identity>, limits: SessionLimits) -> Self {
        Self {
            limits,
            catalog,
            identity,
            handshake: Handshake::Before,
            client_version: None,
            seen: SeenClient::default(),
            roots: RootsTalk::default(),
            standings: Standings::default(),
            pending: HashMap::default(),
            by_id: HashMap::default(),
            call_bytes: 0,
            next_call: 1,
            batches: HashMap::new(),
            next_batch: 1,
            answered: false,
            complaints: Complaints::default(),
            takes_control: false,
        }
    }

    /// The same on a connection where lines beside JSON-RPC may be understood.
    #[must_use]
    pub fn with_control(self) -> Self {
        Self { takes_control: true, ..self }
    }

    /// Gives back the memory that tables keep for what they do not hold.
    pub fn rest(&mut self) {
        self.pending.shrink_to_fit();
        self.by_id.shrink_to_fit();
        self.batches.shrink_to_fit();
    }

    /// Whether a call, or anything else that is answered later, was ever taken in.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.next_call > 1
    }

    /// Its bounds.
    #[must_use]
    pub const fn limits(&self) -> SessionLimits {
        self.limits
    }

    /// Calls in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Bytes of their arguments.
    #[must_use]
    pub fn bytes_in_flight(&self) -> usize {
        self.call_bytes
    }

    /// The tools offered.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// One line of input.
    pub fn on_frame(
        &mut self,
        frame: &Frame,
        now: Instant,
        out: &mut BytesMut,
        effects: &mut SessionEffects,
    ) -> LineWas {
        let line = match frame {
            Frame::Line(line) => line,
            Frame::TooLong { head } => {
                let id = envelope::id_in_head(&lenient::text(head));
                if id.is_some() || self.may_complain(now) {
                    let fault = Fault::new(
                        FaultCode::InvalidRequest,
                        "the line is longer than this server takes (8 MiB unless configured otherwise).",
                    );
                    wire::error(out, id.as_ref(), &fault, None);
                }
                return LineWas::Message;
            }
        };
        let text = lenient::text(line);
        match envelope::read(&text) {
            Incoming::Batch(members) => self.on_batch(&members, line, now, out, effects),
            Incoming::Invalid { beside: true, .. } if self.takes_control => return LineWas::Beside,
            message => self.on_message(message, line, Origin { batch: None, now }, out, effects),
        }
        LineWas::Message
    }

    /// A line beside JSON-RPC turned out to be nothing that is understood there either.
    pub fn on_unknown(&mut self, line: &Bytes, now: Instant, out: &mut BytesMut) {
        let id = match envelope::read(&lenient::text(line)) {
            Incoming::Invalid { id, .. } => id,
            _ => None,
        };
        if id.is_some() || self.may_complain(now) {
            let why = "the line is neither JSON-RPC, whose member jsonrpc must be \"2.0\", nor a control message with a known type.";
            wire::error(out, id.as_ref(), &Fault::new(FaultCode::InvalidRequest, why), None);
        }
    }

    fn on_message(
        &mut self,
        message: Incoming<'_>,
        line: &Bytes,
        origin: Origin,
        out: &mut BytesMut,
        effects: &mut SessionEffects,
    ) {
        match message {
            Incoming::Request { id, method, params } => {
                self.on_request(id, &method, params, line, origin, out, effects);
            }
            Incoming::Notification { method, params } => self.on_notification(&method, params, origin, out, effects),
            Incoming::Response { id, result } => self.on_response(id.as_ref(), result, origin, out, effects),
            Incoming::Invalid { id, why, .. } => {
                if id.is_some() || self.may_complain(origin.now) {
                    wire::error(out, id.as_ref(), &Fault::new(FaultCode::InvalidRequest, format!("{why}.")), None);
                }
            }
            Incoming::Unparsable | Incoming::Batch(_) => {
                if self.may_complain(origin.now) {
                    wire::error(out, None, &Fault::new(FaultCode::ParseError, "the line is not JSON."), None);
                }
            }
        }
    }

    /// Whether an error that belongs to no request may be sent: some clients take one that comes before the answer
    /// to their first request for that answer.
    fn may_complain(&mut self, now: Instant) -> bool {
        if !self.answered && !self.takes_control {
            return false;
        }
        let c = &mut self.complaints;
        if c.window.is_none_or(|start| now.saturating_duration_since(start) >= Duration::from_secs(1)) {
            c.window = Some(now);
            c.used = 0;
        }
        c.used += 1;
        c.used <= self.limits.parse_errors_per_second
    }

    /// Takes a request in that is answered later.
    fn pend(
        &mut self,
        id: &IdToken,
        version: Version,
        client: ClientInfo,
        work: Work,
        bytes: usize,
        origin: Origin,
    ) -> Result<CallNumber, Box<Refusal>> {
        let room = match &work {
            Work::Tool { tool, .. } | Work::Created { tool, .. } => self.catalog.room(*tool),
            // What is asked about a task is what a tool that looks or cancels is called for.
            Work::Ask(_) => CallRoom::Kept,
            Work::Listen { .. } | Work::Gone => CallRoom::Shared,
        };
        let (kept_calls, kept_bytes) = match room {
            CallRoom::Shared => (0, 0),
            CallRoom::Kept => (KEPT_CALLS, KEPT_BYTES),
        };
        if self.pending.len() >= self.limits.calls + kept_calls
            || self.call_bytes + bytes > self.limits.call_bytes + kept_bytes
        {
            let SessionLimits { calls, call_bytes, .. } = self.limits;
            return Err(Fault::new(
                FaultCode::Busy,
                format!(
                    "as many calls are in flight on this connection as may be ({calls}, or {call_bytes} bytes of arguments)."
                ),
            )
            .hint("Wait for one of them and send the call again.")
            .into());
        }
        let number = self.next_call;
        self.next_call += 1;
        self.call_bytes += bytes;
        self.by_id.insert(id.clone(), number);
        if let Some(batch) = origin.batch.and_then(|batch| self.batches.get_mut(&batch)) {
            batch.open += 1;
        }
        let pending = Pending {
            id: id.clone(),
            version,
            client,
            work,
            bytes,
            batch: origin.batch,
            since: origin.now,
            structured: true,
        };
        self.pending.insert(number, pending);
        Ok(CallNumber(number))
    }

    fn on_notification(
        &mut self,
        method: &str,
        params: Option<&str>,
        origin: Origin,
        out: &mut BytesMut,
        effects: &mut SessionEffects,
    ) {
        // Everything else is none of our business: a request method without an id must not start anything.
        match method {
            "notifications/cancelled" => {}
            "notifications/initialized" => return self.ask_roots(origin, out, effects),
            "notifications/roots/list_changed" => return self.roots_changed(origin, out, effects),
            _ => return,
        }
        let Some(Ok([Some(id)])) = params.map(|params| envelope::object(params, ["requestId"])) else { return };
        let Some(number) = IdToken::from_json(id).and_then(|id| self.by_id.get(&id).copied()) else { return };
        if let Some(call) = self.forget(number) {
            effects.push_back(SessionEffect::Withdraw(CallNumber(number)));
            let finished = call.finished(CallNumber(number), origin.now, FinishedAs::Cancelled);
            if call.work.tool().is_some() {
                effects.push_back(SessionEffect::GaveUp { client: call.client, after: finished.latency });
            }
            effects.push_back(SessionEffect::Finished(finished));
            if let Some(batch) = call.batch {
                self.close_share(batch, out);
            }
        } else if let Some(id) = self.standings.end(number) {
            // A subscription its client ends gets no result.
            self.by_id.remove(&id);
            effects.push_back(SessionEffect::Unfollow(CallNumber(number)));
        }
    }

    fn forget(&mut self, number: u64) -> Option<Pending> {
        let call = self.pending.remove(&number)?;
        self.by_id.remove(&call.id);
        self.call_bytes -= call.bytes;
        Some(call)
    }

    /// News of a task that is followed under this number.
    pub fn on_task(&mut self, number: CallNumber, news: &TaskNews, out: &mut BytesMut, effects: &mut SessionEffects) {
        if self.standings.on_task(number.0, news, out) {
            self.standings.end(number.0);
            effects.push_back(SessionEffect::Unfollow(number));
        }
    }

    /// The tools differ from what clients were told: the legacy session hears of it, and each subscription that asked.
    pub fn on_tools_changed(&mut self, out: &mut BytesMut) {
        if self.negotiated().is_some() {
            wire::tools_changed(out, None);
        }
        self.standings.tools_changed(out);
    }

    /// The server goes away for good while the client may still listen: its subscriptions end with a result.
    pub fn on_stopping(&mut self, out: &mut BytesMut, effects: &mut SessionEffects) {
        self.standings.say_goodbye(out, &self.identity);
        self.end_standings(effects);
    }

    fn end_standings(&mut self, effects: &mut SessionEffects) {
        let ended = self.standings.end_all();
        self.by_id.retain(|_, number| self.pending.contains_key(number));
        effects.extend(ended.into_iter().map(|number| SessionEffect::Unfollow(CallNumber(number))));
    }

    /// The connection is over: nobody waits for anything any more.
    pub fn on_closed(&mut self, now: Instant, effects: &mut SessionEffects) {
        let mut open: Vec<u64> = self.pending.keys().copied().collect();
        open.sort_unstable();
        for number in open {
            if let Some(call) = self.forget(number) {
                effects.push_back(SessionEffect::Withdraw(CallNumber(number)));
                let finished = call.finished(CallNumber(number), now, FinishedAs::Cancelled);
                effects.push_back(SessionEffect::Finished(finished));
            }
        }
        self.end_standings(effects);
        self.batches.clear();
    }

    /// Answers a message whose handling was broken off by a panic, unless it became a call, which is still in flight.
    ///
    /// A request gets one error; a batch comes apart: each of its requests that is not in flight gets one error, and the
    /// others are answered by themselves.
    pub fn abandon(&mut self, frame: &Frame, out: &mut BytesMut) {
        let fault = Fault::new(FaultCode::Internal, "the session failed while it read this request.");
        let Frame::Line(line) = frame else { return };
        let text = lenient::text(line);
        let members = match envelope::read(&text) {
            Incoming::Request { id, .. } => vec![id],
            Incoming::Batch(members) => {
                // Only a batch that was whole has left the table of batches. What was collected for the others goes out.
                for batch in std::mem::take(&mut self.batches).into_values().filter(|batch| !batch.parts.is_empty()) {
                    out.put_slice(&batch.parts);
                    out.put_slice(b"]\n");
                }
                self.pending.values_mut().for_each(|call| call.batch = None);
                let id = |member: &&str| match envelope::read(member) {
                    Incoming::Request { id, .. } => Some(id),
                    _ => None,
                };
                members.iter().filter_map(id).collect()
            }
            _ => return,
        };
        for id in members.into_iter().filter(|id| !self.by_id.contains_key(id)) {
            wire::error(out, Some(&id), &fault, None);
        }
    }

    /// Whether this call is in flight.
    #[must_use]
    pub fn is_open(&self, call: CallNumber) -> bool {
        self.pending.contains_key(&call.0)
    }

    /// The tool of a request in flight, if it is about one, and when it began.
    pub fn open_calls(&self) -> impl Iterator<Item = (CallNumber, Option<usize>, Instant)> {
        self.pending.iter().map(|(number, call)| (CallNumber(*number), call.work.tool(), call.since))
    }

    /// L1 and L9 as far as one session can see them.
    ///
    /// # Errors
    ///
    /// What is broken, in words.
    pub fn invariant_calls_are_consistent_and_bounded(&self) -> Result<(), String> {
        if self.by_id.len() != self.pending.len() + self.standings.streams() {
            let (calls, streams) = (self.pending.len(), self.standings.streams());
            return Err(format!("{} ids for {calls} calls and {streams} subscriptions", self.by_id.len()));
        }
        if self.pending.len() > self.limits.calls + KEPT_CALLS || self.call_bytes > self.limits.call_bytes + KEPT_BYTES
        {
            return Err(format!("{} calls with {} bytes in flight", self.pending.len(), self.call_bytes));
        }
        let bytes: usize = self.pending.values().map(|call| call.bytes).sum();
        if bytes != self.call_bytes {
            return Err(format!("{bytes} bytes counted as {}", self.call_bytes));
        }
        Ok(())
    }
}

impl Pending {
    fn finished(&self, number: CallNumber, now: Instant, result: FinishedAs) -> Finished {
        let tool = self.work.tool();
        Finished {
            method: self.work.method().as_str(),
            tool,
            call: tool.map(|_| number),
            request_id: tool.map(|_| self.id.clone()),
            at: now,
            latency: now.saturating_duration_since(self.since),
            result,
        }
    }
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(80).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

#[cfg(test)]
mod tests;
