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

mod meta;
mod passed;
mod standing;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use self::meta::{Meta, Refusal, SeenClient, invalid};
pub use self::passed::{ClientSnapshot, CoreSnapshot, Unreadable};
use self::standing::{Filter, Standings};
use super::catalog::{Catalog, Room, TaskSupport};
use super::envelope::{self, IdToken, Incoming};
use super::frame::Frame;
use super::method::Method;
use super::tasks::{self, TaskAnswer, TaskAsk, TaskCursor, TaskNews, TaskProtocol};
use super::version::Version;
use super::wire::{self, Identity, ReplyText, Tasks, ToolReply};
use crate::fault::{Fault, FaultCode};
use crate::ids::JobId;
use crate::lenient;

/// Bounds of one session. Reaching one is an answer.
#[derive(Debug, Clone, Copy)]
pub struct SessionLimits {
    /// Calls in flight. Sixteen full bursts of the busiest client seen (64 calls); then `busy`, but for tools that have
    /// places kept for them ([`Room::Kept`]).
    pub calls: usize,
    /// Bytes of arguments in flight; then `busy`.
    pub call_bytes: usize,
    /// Replies about lines that are no JSON, per second; more are dropped, so that a confused peer gets no echo.
    pub parse_errors_per_second: u32,
    /// Members of a batch; more are refused together.
    pub batch: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { calls: 1024, call_bytes: 64 * 1024 * 1024, parse_errors_per_second: 5, batch: 256 }
    }
}

/// Calls, and bytes of their arguments, for which places are kept beyond the bounds all tools share: as many as the busiest
/// client sends at once, each as large as a tool that reads or cancels could need.
const KEPT_CALLS: usize = 64;
const KEPT_BYTES: usize = 1024 * 1024;

/// Bytes of a batch's answer from which on its members are answered with an error; these have room in the rest of the line.
const BATCH_MOST: usize = wire::LINE_MOST - 1024 * 1024;

/// A call within its session; numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallNumber(pub u64);

/// Who called, as far as the client said. Parsed only when somebody asks.
#[derive(Debug, Clone, Default)]
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
}

/// What the session asks of the loop around it.
#[derive(Debug)]
pub enum Effect {
    /// Execute this call.
    Invoke(Call),
    /// Find this out about tasks, for the request of this number.
    Ask {
        /// Which request.
        number: CallNumber,
        /// What.
        ask: TaskAsk,
        /// Who asks.
        client: ClientInfo,
    },
    /// Nobody waits for this call any more.
    Withdraw(CallNumber),
    /// Tell about these tasks from now on, under this number.
    Follow {
        /// The number.
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
        /// Who.
        client: ClientInfo,
        /// From the call's arrival.
        after: Duration,
    },
    /// A request was finished, for the counters.
    Finished(Finished),
}

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
}

/// What a request in flight waits for.
#[derive(Debug)]
enum Work {
    /// A tool.
    Tool { tool: usize, progress: Option<Box<str>>, last_progress: f64, task: Option<TaskProtocol> },
    /// How the task stands that a call of this tool became.
    Created { tool: usize, progress: Option<Box<str>>, last_progress: f64, protocol: TaskProtocol },
    /// Something about tasks.
    Ask(Method),
    /// Which of the tasks of a subscription exist.
    Listen { tools: bool },
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
    seen: SeenClient,
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
            seen: SeenClient::default(),
            standings: Standings::default(),
            pending: HashMap::default(),
            by_id: HashMap::default(),
            call_bytes: 0,
            next_call: 1,
            batches: HashMap::new(),
            next_batch: 1,
            answered: false,
            complaints: Complaints::default(),
        }
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
    pub fn on_frame(&mut self, frame: &Frame, now: Instant, out: &mut BytesMut, effects: &mut Vec<Effect>) {
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
                return;
            }
        };
        let text = lenient::text(line);
        match envelope::read(&text) {
            Incoming::Batch(members) => self.on_batch(&members, line, now, out, effects),
            message => self.on_message(message, line, Origin { batch: None, now }, out, effects),
        }
    }

    fn on_batch(
        &mut self,
        members: &[&str],
        line: &Bytes,
        now: Instant,
        out: &mut BytesMut,
        effects: &mut Vec<Effect>,
    ) {
        let allowed = matches!(self.handshake, Handshake::Ready { version: Version::V2025_03_26, .. });
        let problem = if !allowed {
            Some("batches are not part of the protocol version in use; send one message per line.")
        } else if members.is_empty() {
            Some("a batch must not be empty.")
        } else if members.len() > self.limits.batch {
            Some("the batch has more members than this server takes (256).")
        } else {
            None
        };
        if let Some(problem) = problem {
            wire::error(out, None, &Fault::new(FaultCode::InvalidRequest, problem), None);
            return;
        }
        let number = self.next_batch;
        self.next_batch += 1;
        // The batch itself holds one share, so that it cannot close before its last member was read.
        self.batches.insert(number, Batch { open: 1, parts: BytesMut::new() });
        for member in members {
            let mut part = BytesMut::new();
            let message = envelope::read(member);
            let id = match &message {
                Incoming::Request { id, .. } => Some(id.clone()),
                _ => None,
            };
            let message = match message {
                Incoming::Request { id, method, .. } if method == "initialize" => {
                    Incoming::Invalid { id: Some(id), why: "initialize must not be part of a batch" }
                }
                Incoming::Batch(_) => Incoming::Invalid { id: None, why: "a batch must not hold a batch" },
                message => message,
            };
            self.on_message(message, line, Origin { batch: Some(number), now }, &mut part, effects);
            self.put_part(number, id.as_ref(), part);
        }
        self.close_share(number, out);
    }

    fn put_part(&mut self, batch: u64, id: Option<&IdToken>, mut part: BytesMut) {
        if let Some(batch) = self.batches.get_mut(&batch).filter(|_| !part.is_empty()) {
            if batch.parts.len() + part.len() > BATCH_MOST {
                part.clear();
                let fault = Fault::new(FaultCode::ReplyTooLarge, "the batch's answer is longer than any line may be.")
                    .hint("Send the request on a line of its own.");
                wire::error(&mut part, id, &fault, None);
            }
            batch.parts.put_slice(if batch.parts.is_empty() { b"[" } else { b"," });
            batch.parts.put_slice(part.strip_suffix(b"\n").unwrap_or(&part));
        }
    }

    fn close_share(&mut self, number: u64, out: &mut BytesMut) {
        let Some(batch) = self.batches.get_mut(&number) else { return };
        batch.open -= 1;
        if batch.open == 0
            && let Some(batch) = self.batches.remove(&number).filter(|batch| !batch.parts.is_empty())
        {
            out.put_slice(&batch.parts);
            out.put_slice(b"]\n");
        }
    }

    fn on_message(
        &mut self,
        message: Incoming<'_>,
        line: &Bytes,
        origin: Origin,
        out: &mut BytesMut,
        effects: &mut Vec<Effect>,
    ) {
        match message {
            Incoming::Request { id, method, params } => {
                self.on_request(id, &method, params, line, origin, out, effects);
            }
            Incoming::Notification { method, params } => self.on_notification(&method, params, origin, out, effects),
            Incoming::Response => {}
            Incoming::Invalid { id, why } => {
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
        if !self.answered {
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

    #[expect(clippy::too_many_arguments, reason = "one request's parts, passed on once")]
    fn on_request(
        &mut self,
        id: IdToken,
        method: &str,
        params: Option<&str>,
        line: &Bytes,
        origin: Origin,
        out: &mut BytesMut,
        effects: &mut Vec<Effect>,
    ) {
        self.answered = true;
        let answer = if self.by_id.contains_key(&id) {
            Err(Fault::new(FaultCode::InvalidRequest, "a request with this id is still in flight.").into())
        } else {
            match Method::parse(method) {
                Some(Method::ToolsCall) => self.call(&id, params.unwrap_or("{}"), line, origin, effects),
                known => self.dispatch(&id, known, method, params, origin, out, effects),
            }
        };
        let result = match answer {
            Ok(Dispatched::Answered) => FinishedAs::Success,
            Ok(Dispatched::InFlight) => return,
            Err(refusal) => {
                wire::error(out, Some(&id), &refusal.fault, refusal.data);
                FinishedAs::Failed(refusal.fault.code)
            }
        };
        effects.push(Effect::Finished(Finished {
            method: Method::parse(method).map_or("other", Method::as_str),
            tool: None,
            request_id: None,
            at: origin.now,
            latency: Duration::ZERO,
            result,
        }));
    }

    #[expect(clippy::too_many_arguments, reason = "one request's parts, passed on once")]
    fn dispatch(
        &mut self,
        id: &IdToken,
        method: Option<Method>,
        name: &str,
        params: Option<&str>,
        origin: Origin,
        out: &mut BytesMut,
        effects: &mut Vec<Effect>,
    ) -> Result<Dispatched, Box<Refusal>> {
        let members = ["_meta", "cursor", "taskId", "notifications", "protocolVersion"];
        let [meta, cursor, task, wishes, wanted] = envelope::object(params.unwrap_or("{}"), members)
            .map_err(|_| invalid("the member params must be an object."))?;
        let meta = Meta::read(meta)?;
        let unknown = || Fault::new(FaultCode::UnknownMethod, format!("there is no method {}.", shortened(name)));
        let method = method.ok_or_else(unknown)?;
        match method {
            // With an envelope it is one of the stateless era, which has none; but whoever names a version means it.
            Method::Initialize if !meta.enveloped() || wanted.is_some() => {
                return self.initialize(id, params.unwrap_or("{}"), out);
            }
            Method::Ping if !meta.enveloped() => {
                wire::pong(out, id);
                return Ok(Dispatched::Answered);
            }
            // Whoever looks for it without an envelope does not know the stateless era well enough to be told less.
            Method::Discover if !meta.enveloped() => {
                let lacking =
                    "server/discover needs the member io.modelcontextprotocol/protocolVersion in params._meta.";
                return Err(invalid(lacking));
            }
            _ => {}
        }
        let era = if meta.enveloped() { Some(Version::MODERN) } else { self.negotiated() };
        if era.is_some_and(|version| !method.exists_in(version)) {
            return Err(unknown().into());
        }
        let (version, client) = self.version_of(method, &meta)?;
        match method {
            Method::ToolsList => {
                let cursor = cursor.filter(|cursor| *cursor != "null");
                let cursor = cursor.map(|cursor| envelope::string(cursor).unwrap_or(Cow::Borrowed("")));
                let Some(page) = self.catalog.list(version, cursor.as_deref()) else {
                    return Err(invalid("the cursor is not one of ours."));
                };
                wire::tools(out, id, version, page, &self.identity);
                Ok(Dispatched::Answered)
            }
            Method::Discover => {
                wire::discovered(out, id, &self.identity, self.tasks());
                Ok(Dispatched::Answered)
            }
            Method::Listen => {
                let filter = filter(wishes)?;
                if filter.tasks.is_some() && !meta.knows_tasks() {
                    return Err(meta::tasks_needed());
                }
                self.listen(id, filter, client, origin, out, effects)
            }
            Method::TasksGet | Method::TasksResult | Method::TasksList | Method::TasksCancel | Method::TasksUpdate => {
                let ask = ask(method, version, task, cursor)?;
                if version == Version::MODERN && !meta.knows_tasks() {
                    return Err(meta::tasks_needed());
                }
                if !self.catalog.offers_tasks() {
                    return Err(Fault::new(FaultCode::UnknownMethod, "this server has no tasks.").into());
                }
                let number = self.pend(id, version, client.clone(), Work::Ask(method), 0, origin)?;
                effects.push(Effect::Ask { number, ask, client });
                Ok(Dispatched::InFlight)
            }
            Method::Initialize | Method::Ping | Method::ToolsCall => Err(unknown().into()),
        }
    }

    fn tasks(&self) -> Tasks {
        if self.catalog.offers_tasks() { Tasks::Offered } else { Tasks::None }
    }

    fn negotiated(&self) -> Option<Version> {
        match &self.handshake {
            Handshake::Ready { version, .. } => Some(*version),
            Handshake::Before => None,
        }
    }

    fn initialize(&mut self, id: &IdToken, params: &str, out: &mut BytesMut) -> Result<Dispatched, Box<Refusal>> {
        let [wanted, client] = envelope::object(params, ["protocolVersion", "clientInfo"])
            .map_err(|_| invalid("the member params must be an object."))?;
        let Some(wanted) = wanted.and_then(envelope::string) else {
            return Err(invalid("initialize needs params.protocolVersion, a string."));
        };
        let version = Version::negotiate(&wanted);
        let client = client
            .and_then(|client| envelope::object(client, ["name"]).ok())
            .and_then(|[name]| name.and_then(envelope::string))
            .map_or(ClientInfo::Unknown, |name| ClientInfo::Name(name.chars().take(200).collect::<String>().into()));
        // A proxy or a restarted front end may send a second one: it is answered again, and its version counts.
        self.handshake = Handshake::Ready { version, client };
        wire::initialized(out, id, version, &self.identity, self.tasks());
        Ok(Dispatched::Answered)
    }

    /// The version a request is served in: its envelope's, else the handshake's.
    fn version_of(&mut self, method: Method, meta: &Meta<'_>) -> Result<(Version, ClientInfo), Box<Refusal>> {
        if meta.enveloped() {
            return Ok((Version::MODERN, meta.check(method, &mut self.seen)?));
        }
        match &self.handshake {
            Handshake::Ready { version, client } => Ok((*version, client.clone())),
            Handshake::Before => {
                Err(Fault::new(FaultCode::NotInitialized, "this connection has not been initialized.")
                    .hint("Send initialize first, or put the 2026-07-28 envelope into params._meta of each request.")
                    .into())
            }
        }
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
            Work::Ask(_) => Room::Kept,
            Work::Listen { .. } | Work::Gone => Room::Shared,
        };
        let (kept_calls, kept_bytes) = match room {
            Room::Shared => (0, 0),
            Room::Kept => (KEPT_CALLS, KEPT_BYTES),
        };
        if self.pending.len() >= self.limits.calls + kept_calls
            || self.call_bytes + bytes > self.limits.call_bytes + kept_bytes
        {
            return Err(Fault::new(
                FaultCode::Busy,
                "as many calls are in flight on this connection as may be (1024, or 64 MiB of arguments).",
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
        let pending = Pending { id: id.clone(), version, client, work, bytes, batch: origin.batch, since: origin.now };
        self.pending.insert(number, pending);
        Ok(CallNumber(number))
    }

    fn listen(
        &mut self,
        id: &IdToken,
        filter: Filter,
        client: ClientInfo,
        origin: Origin,
        out: &mut BytesMut,
        effects: &mut Vec<Effect>,
    ) -> Result<Dispatched, Box<Refusal>> {
        let asked = self.pending.values().filter(|pending| matches!(pending.work, Work::Listen { .. })).count();
        if self.standings.streams() + asked >= standing::STREAMS {
            let fault =
                Fault::new(FaultCode::Busy, "as many subscriptions are open on this connection as may be (32).");
            return Err(fault.hint("Cancel one of them.").into());
        }
        match filter.tasks {
            Some(jobs) if self.catalog.offers_tasks() => {
                let work = Work::Listen { tools: filter.tools };
                let number = self.pend(id, Version::MODERN, client.clone(), work, 0, origin)?;
                effects.push(Effect::Ask { number, ask: TaskAsk::Which(jobs), client });
            }
            tasks => {
                let number = self.next_call;
                self.next_call += 1;
                self.by_id.insert(id.clone(), number);
                let none: &[JobId] = &[];
                wire::subscribed(out, id, filter.tools, tasks.map(|_| none));
                self.standings.open_stream(number, id.clone(), filter.tools);
            }
        }
        Ok(Dispatched::InFlight)
    }

    fn call(
        &mut self,
        id: &IdToken,
        params: &str,
        line: &Bytes,
        origin: Origin,
        effects: &mut Vec<Effect>,
    ) -> Result<Dispatched, Box<Refusal>> {
        let [name, arguments, meta, task] = envelope::object(params, ["name", "arguments", "_meta", "task"])
            .map_err(|_| invalid("the member params must be an object."))?;
        let meta = Meta::read(meta)?;
        let (version, client) = self.version_of(Method::ToolsCall, &meta)?;
        let Some(name) = name.and_then(envelope::string) else {
            return Err(invalid("tools/call needs params.name, a string."));
        };
        let Some(tool) = self.catalog.position(&name) else {
            let known: Vec<&str> = self.catalog.names().collect();
            return Err(Fault::new(FaultCode::InvalidInput, format!("there is no tool {}.", shortened(&name)))
                .hint(format!("Tools are {}.", known.join(", ")))
                .into());
        };
        let arguments = match arguments {
            None | Some("null") => Bytes::from_static(b"{}"),
            Some(json) if json.starts_with('{') => within(line, json),
            Some(_) => return Err(invalid("params.arguments must be an object.")),
        };
        let task = self.as_task(tool, version, task, &arguments, &meta)?;
        // What the tool is told, it would also be told by a model that does not want to wait.
        let arguments = if task.is_some() { in_background(&arguments) } else { arguments };
        let progress = meta.progress_token();
        let wants_progress = progress.is_some() && task.is_none();
        let work = Work::Tool { tool, progress, last_progress: f64::NEG_INFINITY, task };
        let number = self.pend(id, version, client.clone(), work, arguments.len(), origin)?;
        effects.push(Effect::Invoke(Call { number, tool, arguments, client, wants_progress }));
        Ok(Dispatched::InFlight)
    }

    /// Whether a call becomes a task. In the core its client asks for it; in the extension we decide, and give one to every
    /// client that can take it, unless the caller wants to go on at once: then the job itself is what it asked for.
    fn as_task(
        &self,
        tool: usize,
        version: Version,
        task: Option<&str>,
        arguments: &Bytes,
        meta: &Meta<'_>,
    ) -> Result<Option<TaskProtocol>, Box<Refusal>> {
        let support = self.catalog.tasks(tool);
        match version {
            Version::V2025_11_25 => match task.filter(|task| *task != "null") {
                None => Ok(None),
                Some(task) if !task.starts_with('{') => Err(invalid("params.task must be an object.")),
                Some(_) if support == TaskSupport::Forbidden => {
                    let detail = format!("calls of {} cannot become tasks.", self.catalog.name(tool));
                    Err(Fault::new(FaultCode::UnknownMethod, detail).into())
                }
                Some(_) => Ok(Some(TaskProtocol::Core)),
            },
            Version::V2026_07_28 if support == TaskSupport::Optional && meta.knows_tasks() => {
                let text = lenient::text(arguments);
                let background = envelope::object(&text, ["background"]).ok().and_then(|[background]| background);
                Ok((background != Some("true")).then_some(TaskProtocol::Extension))
            }
            _ => Ok(None),
        }
    }

    fn on_notification(
        &mut self,
        method: &str,
        params: Option<&str>,
        origin: Origin,
        out: &mut BytesMut,
        effects: &mut Vec<Effect>,
    ) {
        // Everything else is none of our business: a request method without an id must not start anything.
        if method != "notifications/cancelled" {
            return;
        }
        let Some(Ok([Some(id)])) = params.map(|params| envelope::object(params, ["requestId"])) else { return };
        let Some(number) = IdToken::from_json(id).and_then(|id| self.by_id.get(&id).copied()) else { return };
        if let Some(call) = self.forget(number) {
            effects.push(Effect::Withdraw(CallNumber(number)));
            let finished = call.finished(origin.now, FinishedAs::Cancelled);
            if call.work.tool().is_some() {
                effects.push(Effect::GaveUp { client: call.client, after: finished.latency });
            }
            effects.push(Effect::Finished(finished));
            if let Some(batch) = call.batch {
                self.close_share(batch, out);
            }
        } else if let Some(id) = self.standings.end(number) {
            // A subscription its client ends gets no result.
            self.by_id.remove(&id);
            effects.push(Effect::Unfollow(CallNumber(number)));
        }
    }

    fn forget(&mut self, number: u64) -> Option<Pending> {
        let call = self.pending.remove(&number)?;
        self.by_id.remove(&call.id);
        self.call_bytes -= call.bytes;
        Some(call)
    }

    /// A call came out. Nothing happens when it was cancelled meanwhile: that is where the two are decided.
    pub fn on_settled(
        &mut self,
        call: CallNumber,
        outcome: CallOutcome,
        now: Instant,
        out: &mut BytesMut,
        effects: &mut Vec<Effect>,
    ) {
        // The call of a task is answered when it is known how the task stands.
        if let CallOutcome::Reply(reply) = &outcome
            && let Some(job) = reply.job
            && let Some(pending) = self.pending.get_mut(&call.0)
            && let Work::Tool { tool, progress, last_progress, task: Some(protocol) } = &mut pending.work
        {
            let (tool, progress, last_progress, protocol) = (*tool, progress.take(), *last_progress, *protocol);
            pending.work = Work::Created { tool, progress, last_progress, protocol };
            let client = pending.client.clone();
            let ask = match protocol {
                TaskProtocol::Core => TaskAsk::Look(job),
                TaskProtocol::Extension => TaskAsk::Read(job),
            };
            effects.push(Effect::Ask { number: call, ask, client });
            return;
        }
        self.deliver(call, now, out, effects, |core, pending, out| core.answer(pending, outcome, out));
    }

    /// Something about tasks was found out.
    pub fn on_told(
        &mut self,
        number: CallNumber,
        answer: Result<TaskAnswer, Box<Fault>>,
        now: Instant,
        out: &mut BytesMut,
        effects: &mut Vec<Effect>,
    ) {
        let Some(pending) = self.pending.get_mut(&number.0) else { return };
        let answer = match answer {
            Ok(answer) => answer,
            Err(fault) => {
                return self.deliver(number, now, out, effects, |_, pending, out| {
                    wire::error(out, Some(&pending.id), &fault, None);
                    FinishedAs::Failed(fault.code)
                });
            }
        };
        match (&mut pending.work, answer) {
            (Work::Listen { tools }, TaskAnswer::Known(jobs)) => {
                let tools = *tools;
                wire::subscribed(out, &pending.id, tools, Some(&jobs));
                let Some(pending) = self.forget(number.0) else { return };
                self.by_id.insert(pending.id.clone(), number.0);
                self.standings.open_stream(number.0, pending.id, tools);
                if !jobs.is_empty() {
                    effects.push(Effect::Follow { number, jobs, news: Wanted::Status, client: pending.client });
                }
            }
            (Work::Created { progress, last_progress, protocol, .. }, TaskAnswer::Task(task)) => {
                let (protocol, last) = (*protocol, *last_progress);
                // The token of such a call lives until its task is over; a task of the extension has no progress, and is
                // told of to those who subscribe to it.
                let token = progress.take();
                let client = pending.client.clone();
                let jobs = vec![task.job];
                self.deliver(number, now, out, effects, |core, pending, out| match &task.result {
                    // It was over at once: a task would only make its client look for what is there.
                    Some(reply) if protocol == TaskProtocol::Extension => {
                        wire::called(out, &pending.id, pending.version, reply, &core.identity);
                        reply.fault.map_or(FinishedAs::Success, FinishedAs::Failed)
                    }
                    _ => {
                        tasks::created(out, &pending.id, protocol, &task, &core.identity);
                        FinishedAs::Success
                    }
                });
                let news = if token.is_some() { Wanted::Progress } else { Wanted::End };
                if protocol == TaskProtocol::Core && self.standings.tell_of_task(number.0, token, last) {
                    effects.push(Effect::Follow { number, jobs, news, client });
                }
            }
            (Work::Ask(method), answer) => {
                let method = *method;
                self.deliver(number, now, out, effects, |core, pending, out| core.tell(pending, method, answer, out));
            }
            (Work::Tool { .. } | Work::Created { .. } | Work::Listen { .. } | Work::Gone, _) => {
                self.deliver(number, now, out, effects, |_, pending, out| misunderstood(out, &pending.id));
            }
        }
    }

    /// Writes an answer about tasks.
    fn tell(&self, pending: &Pending, method: Method, answer: TaskAnswer, out: &mut BytesMut) -> FinishedAs {
        let protocol = TaskProtocol::of(pending.version);
        match (method, protocol, answer) {
            (Method::TasksResult, _, TaskAnswer::Task(task)) => {
                let Some(reply) = &task.result else { return misunderstood(out, &pending.id) };
                tasks::payload(out, &pending.id, pending.version, task.job, reply);
            }
            (_, _, TaskAnswer::Task(task)) => tasks::shown(out, &pending.id, protocol, &task, &self.identity),
            (_, TaskProtocol::Core, TaskAnswer::Page(page, next)) => tasks::listed(out, &pending.id, &page, next),
            (_, TaskProtocol::Extension, TaskAnswer::Done) => wire::acknowledged(out, &pending.id, &self.identity),
            _ => return misunderstood(out, &pending.id),
        }
        FinishedAs::Success
    }

    /// Lets an answer be written where it belongs, not longer than a line may be, and counts its request, which is let go
    /// of when its answer is written: whatever interrupts that finds it still open.
    fn deliver(
        &mut self,
        number: CallNumber,
        now: Instant,
        out: &mut BytesMut,
        effects: &mut Vec<Effect>,
        write: impl FnOnce(&Self, &Pending, &mut BytesMut) -> FinishedAs,
    ) {
        let Some(pending) = self.pending.get(&number.0) else { return };
        let mut part = BytesMut::new();
        let target = if pending.batch.is_some() { &mut part } else { &mut *out };
        let start = target.len();
        let mut result = write(self, pending, target);
        if target.len() - start > wire::LINE_MOST {
            target.truncate(start);
            let fault =
                Fault::new(FaultCode::ReplyTooLarge, "the reply is longer than 8 MiB, the most a line may have.")
                    .hint("Ask for less of it, or for a page.");
            wire::error(target, Some(&pending.id), &fault, None);
            result = FinishedAs::Failed(fault.code);
        }
        let Some(pending) = self.forget(number.0) else { return };
        effects.push(Effect::Finished(pending.finished(now, result)));
        if let Some(batch) = pending.batch {
            self.put_part(batch, Some(&pending.id), part);
            self.close_share(batch, out);
        }
    }

    fn answer(&self, pending: &Pending, outcome: CallOutcome, out: &mut BytesMut) -> FinishedAs {
        // Who waits for a task of the core, or for something else than a tool, expects no tool's result.
        let as_task = match &pending.work {
            Work::Tool { task, .. } => *task == Some(TaskProtocol::Core),
            Work::Created { protocol, .. } => *protocol == TaskProtocol::Core,
            Work::Ask(_) | Work::Listen { .. } | Work::Gone => true,
        };
        let mut fault = match outcome {
            CallOutcome::Reply(reply) if as_task => {
                // No job, so there is no task to be told about, and its client expects nothing else.
                let text = match &reply.text {
                    ReplyText::Plain(text) => Cow::Borrowed(text.as_str()),
                    ReplyText::Json(json) => {
                        let text = std::str::from_utf8(json).ok().and_then(envelope::string);
                        Cow::Owned(text.unwrap_or_default().into_owned())
                    }
                };
                Box::new(Fault::new(reply.fault.unwrap_or(FaultCode::Internal), text))
            }
            CallOutcome::Reply(reply) => {
                wire::called(out, &pending.id, pending.version, &reply, &self.identity);
                return reply.fault.map_or(FinishedAs::Success, FinishedAs::Failed);
            }
            CallOutcome::Fault(fault) => fault,
        };
        if let Some(tool) = pending.work.tool() {
            fault.operation.get_or_insert_with(|| self.catalog.name(tool).to_owned());
        }
        // Older revisions want bad arguments as a protocol error, newer ones where the model can see and mend them.
        if as_task || (fault.code == FaultCode::InvalidInput && pending.version < Version::V2025_11_25) {
            wire::error(out, Some(&pending.id), &fault, None);
        } else {
            wire::called(out, &pending.id, pending.version, &ToolReply::fault(&fault), &self.identity);
        }
        FinishedAs::Failed(fault.code)
    }

    /// Progress of a call: sent when the client asked for it, the call is still open and the value rises.
    pub fn on_progress(&mut self, call: CallNumber, value: f64, message: Option<&str>, out: &mut BytesMut) {
        let Some(pending) = self.pending.get_mut(&call.0) else { return };
        if let Work::Tool { progress: Some(token), last_progress, task: None, .. } = &mut pending.work
            && value > *last_progress
        {
            *last_progress = value;
            wire::progress(out, token, value, message);
        }
    }

    /// News of a task that is followed under this number.
    pub fn on_task(&mut self, number: CallNumber, news: &TaskNews, out: &mut BytesMut, effects: &mut Vec<Effect>) {
        if self.standings.on_task(number.0, news, out) {
            self.standings.end(number.0);
            effects.push(Effect::Unfollow(number));
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
    pub fn on_stopping(&mut self, out: &mut BytesMut, effects: &mut Vec<Effect>) {
        self.standings.say_goodbye(out, &self.identity);
        self.end_standings(effects);
    }

    fn end_standings(&mut self, effects: &mut Vec<Effect>) {
        let ended = self.standings.end_all();
        self.by_id.retain(|_, number| self.pending.contains_key(number));
        effects.extend(ended.into_iter().map(|number| Effect::Unfollow(CallNumber(number))));
    }

    /// The connection is over: nobody waits for anything any more.
    pub fn on_closed(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let mut open: Vec<u64> = self.pending.keys().copied().collect();
        open.sort_unstable();
        for number in open {
            if let Some(call) = self.forget(number) {
                effects.push(Effect::Withdraw(CallNumber(number)));
                effects.push(Effect::Finished(call.finished(now, FinishedAs::Cancelled)));
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
    fn finished(&self, now: Instant, result: FinishedAs) -> Finished {
        let tool = self.work.tool();
        Finished {
            method: self.work.method().as_str(),
            tool,
            request_id: tool.map(|_| self.id.clone()),
            at: now,
            latency: now.saturating_duration_since(self.since),
            result,
        }
    }
}

enum Dispatched {
    Answered,
    InFlight,
}

/// A slice of the line where the text lies in it, a copy where it had to be repaired.
fn within(line: &Bytes, text: &str) -> Bytes {
    let lines = line.as_ptr_range();
    if lines.contains(&text.as_ptr()) {
        line.slice_ref(text.as_bytes())
    } else {
        Bytes::copy_from_slice(text.as_bytes())
    }
}

/// The same arguments with `background` set: of a repeated member the last one counts.
fn in_background(arguments: &Bytes) -> Bytes {
    let inner = arguments.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}")).unwrap_or_default();
    let mut text = BytesMut::with_capacity(arguments.len() + 24);
    text.put_slice(b"{");
    if !inner.trim_ascii().is_empty() {
        text.put_slice(inner);
        text.put_slice(b",");
    }
    text.put_slice(b"\"background\":true}");
    text.freeze()
}

/// What a subscription asks for; what we do not have is not honoured.
fn filter(wishes: Option<&str>) -> Result<Filter, Box<Refusal>> {
    let wrong = || invalid("subscriptions/listen needs params.notifications, an object.");
    let [tools, ids] =
        envelope::object(wishes.ok_or_else(wrong)?, ["toolsListChanged", "taskIds"]).map_err(|_| wrong())?;
    let tasks = match ids.filter(|ids| *ids != "null") {
        None => None,
        Some(ids) => {
            let ids: Vec<Cow<'_, str>> = serde_json::from_str(ids)
                .map_err(|_| invalid("params.notifications.taskIds must be an array of strings."))?;
            let mut jobs: Vec<JobId> = ids.iter().filter_map(|id| id.parse().ok()).take(tasks::FOLLOWED).collect();
            let mut known = std::collections::BTreeSet::new();
            jobs.retain(|job| known.insert(*job));
            Some(jobs)
        }
    };
    Ok(Filter { tools: tools == Some("true"), tasks })
}

/// What a request about tasks asks.
fn ask(method: Method, version: Version, task: Option<&str>, cursor: Option<&str>) -> Result<TaskAsk, Box<Refusal>> {
    if method == Method::TasksList {
        let cursor = match cursor.filter(|cursor| *cursor != "null") {
            None => None,
            Some(cursor) => {
                let cursor = envelope::string(cursor).and_then(|text| TaskCursor::parse(&text));
                Some(cursor.ok_or_else(|| invalid("the cursor is not one of ours."))?)
            }
        };
        return Ok(TaskAsk::List(cursor));
    }
    let Some(task) = task.and_then(envelope::string) else {
        return Err(invalid(format!("{} needs params.taskId, a string.", method.as_str())));
    };
    // An id we could not have handed out is like one that has expired.
    let job = task
        .parse()
        .map_err(|_| Fault::new(FaultCode::UnknownJob, format!("there is no task {}.", shortened(&task))))?;
    Ok(match (method, version) {
        (Method::TasksResult, _) => TaskAsk::Wait(job),
        (Method::TasksCancel, Version::V2026_07_28) => TaskAsk::RequestCancel(job),
        (Method::TasksCancel, _) => TaskAsk::Cancel(job),
        (Method::TasksUpdate, _) => TaskAsk::Update(job),
        (_, Version::V2026_07_28) => TaskAsk::Read(job),
        _ => TaskAsk::Look(job),
    })
}

fn misunderstood(out: &mut BytesMut, id: &IdToken) -> FinishedAs {
    let fault = Fault::new(FaultCode::Internal, "the answer about a task was not understood.");
    wire::error(out, Some(id), &fault, None);
    FinishedAs::Failed(fault.code)
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
