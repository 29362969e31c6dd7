//! The session's state machine: what each message of a client means, and what it is answered with.
//!
//! Owns: the handshake, the calls in flight with their raw ids, batches, cancellation, the bounds of a session.
//! May not know: how a call is executed, actors, I/O, clocks (`now` is passed in).
//!
//! ```text
//!  un-enveloped requests:   before initialize ──initialize──▶ ready(version)     (ping is served in both)
//!  enveloped requests:      served cold, each on its own; the era is decided per request
//!  a call:                  accepted ──settled──▶ answered | ──cancelled──▶ silent
//! ```
//!
//! Invariants: (1) L1: an id gets exactly one response, none after its cancellation; (2) an id in flight is refused
//! to a newcomer and the first call goes on; (3) calls and their bytes are bounded, and beyond the bound a call is
//! refused at once, never parked, so that a cancel or a ping always gets through.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};

use super::catalog::{Catalog, Room};
use super::envelope::{self, IdToken, Incoming};
use super::frame::Frame;
use super::version::Version;
use super::wire::{self, Identity, ToolReply};
use crate::fault::{Fault, FaultCode};
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
    /// Nobody waits for this call any more.
    Withdraw(CallNumber),
    /// A request was finished, for the counters.
    Finished(Finished),
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
    tool: usize,
    progress: Option<Box<str>>,
    last_progress: f64,
    bytes: usize,
    batch: Option<u64>,
    since: Instant,
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
            let message = match envelope::read(member) {
                Incoming::Request { id, method, .. } if method == "initialize" => {
                    Incoming::Invalid { id: Some(id), why: "initialize must not be part of a batch" }
                }
                Incoming::Batch(_) => Incoming::Invalid { id: None, why: "a batch must not hold a batch" },
                message => message,
            };
            self.on_message(message, line, Origin { batch: Some(number), now }, &mut part, effects);
            self.put_part(number, &part);
        }
        self.close_share(number, out);
    }

    fn put_part(&mut self, batch: u64, part: &[u8]) {
        if let Some(batch) = self.batches.get_mut(&batch).filter(|_| !part.is_empty()) {
            batch.parts.put_slice(if batch.parts.is_empty() { b"[" } else { b"," });
            batch.parts.put_slice(part.strip_suffix(b"\n").unwrap_or(part));
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
            self.dispatch(&id, method, params, line, origin, out, effects)
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
            method: label(method),
            tool: None,
            request_id: None,
            latency: Duration::ZERO,
            result,
        }));
    }

    #[expect(clippy::too_many_arguments, reason = "one request's parts, passed on once")]
    fn dispatch(
        &mut self,
        id: &IdToken,
        method: &str,
        params: Option<&str>,
        line: &Bytes,
        origin: Origin,
        out: &mut BytesMut,
        effects: &mut Vec<Effect>,
    ) -> Result<Dispatched, Box<Refusal>> {
        let shape = || Fault::new(FaultCode::InvalidInput, "the member params must be an object.");
        let [meta, cursor] = match params.filter(|_| method != "tools/call") {
            // Shape first; `tools/call` reads all of its members in one pass of its own.
            Some(params) => envelope::object(params, ["_meta", "cursor"]).map_err(|_| shape())?,
            None => [None, None],
        };
        match method {
            "tools/call" => {
                let params = params.unwrap_or("{}");
                let members = envelope::object(params, ["name", "arguments", "_meta"]).map_err(|_| shape())?;
                return self.call(id, members, line, origin, effects);
            }
            "initialize" => return self.initialize(id, params.unwrap_or("{}"), out),
            "ping" if !Meta::read(meta)?.enveloped() => wire::pong(out, id),
            "tools/list" => {
                let (version, _) = self.version_of(&Meta::read(meta)?)?;
                if cursor.is_some_and(|cursor| cursor != "null") {
                    return Err(Fault::new(FaultCode::InvalidInput, "the cursor is not one of ours.").into());
                }
                wire::tools(out, id, version, self.catalog.list(version), &self.identity);
            }
            "server/discover" => {
                let meta = Meta::read(meta)?;
                if meta.version.is_none() {
                    return Err(Fault::new(
                        FaultCode::InvalidInput,
                        "server/discover needs the member io.modelcontextprotocol/protocolVersion in params._meta.",
                    )
                    .into());
                }
                self.version_of(&meta)?;
                wire::discovered(out, id, &self.identity);
            }
            _ => {
                return Err(
                    Fault::new(FaultCode::UnknownMethod, format!("there is no method {}.", shortened(method))).into()
                );
            }
        }
        Ok(Dispatched::Answered)
    }

    fn initialize(&mut self, id: &IdToken, params: &str, out: &mut BytesMut) -> Result<Dispatched, Box<Refusal>> {
        let [wanted, client] = envelope::object(params, ["protocolVersion", "clientInfo"])
            .map_err(|_| Fault::new(FaultCode::InvalidInput, "the member params must be an object."))?;
        let Some(wanted) = wanted.and_then(envelope::string) else {
            return Err(
                Fault::new(FaultCode::InvalidInput, "initialize needs params.protocolVersion, a string.").into()
            );
        };
        let version = Version::negotiate(&wanted);
        let client = client
            .and_then(|client| envelope::object(client, ["name"]).ok())
            .and_then(|[name]| name.and_then(envelope::string))
            .map_or(ClientInfo::Unknown, |name| ClientInfo::Name(name.chars().take(200).collect::<String>().into()));
        // A proxy or a restarted front end may send a second one: it is answered again, and its version counts.
        self.handshake = Handshake::Ready { version, client };
        wire::initialized(out, id, version, &self.identity);
        Ok(Dispatched::Answered)
    }

    /// The version a request is served in: its envelope's, else the handshake's.
    fn version_of(&self, meta: &Meta<'_>) -> Result<(Version, ClientInfo), Box<Refusal>> {
        if meta.enveloped() {
            let version = meta.version.and_then(envelope::string);
            if let Some(version) = version.as_deref().filter(|version| *version != Version::MODERN.as_str()) {
                let data = serde_json::json!({"supported": [Version::MODERN.as_str()], "requested": version});
                let fault = Fault::new(
                    FaultCode::UnsupportedVersion,
                    format!(
                        "protocol version {} cannot be used with an envelope; {} can.",
                        shortened(version),
                        Version::MODERN.as_str()
                    ),
                );
                return Err(Box::new(Refusal { fault, data: Some(data) }));
            }
            let mut missing = Vec::new();
            if version.is_none() {
                missing.push("io.modelcontextprotocol/protocolVersion (a string)");
            }
            if meta.capabilities.is_none_or(|json| !json.starts_with('{')) {
                missing.push("io.modelcontextprotocol/clientCapabilities (an object)");
            }
            if !missing.is_empty() {
                let detail = format!("params._meta lacks {}.", missing.join(" and "));
                return Err(Fault::new(FaultCode::InvalidInput, detail).into());
            }
            let client = meta.client.map_or(ClientInfo::Unknown, |json| {
                ClientInfo::Raw(Bytes::copy_from_slice(json.as_bytes().get(..1024).unwrap_or(json.as_bytes())))
            });
            return Ok((Version::MODERN, client));
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

    fn call(
        &mut self,
        id: &IdToken,
        [name, arguments, meta]: [Option<&str>; 3],
        line: &Bytes,
        origin: Origin,
        effects: &mut Vec<Effect>,
    ) -> Result<Dispatched, Box<Refusal>> {
        let meta = Meta::read(meta)?;
        let (version, client) = self.version_of(&meta)?;
        let Some(name) = name.and_then(envelope::string) else {
            return Err(Fault::new(FaultCode::InvalidInput, "tools/call needs params.name, a string.").into());
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
            Some(_) => return Err(Fault::new(FaultCode::InvalidInput, "params.arguments must be an object.").into()),
        };
        let (kept_calls, kept_bytes) = match self.catalog.room(tool) {
            Room::Shared => (0, 0),
            Room::Kept => (KEPT_CALLS, KEPT_BYTES),
        };
        if self.pending.len() >= self.limits.calls + kept_calls
            || self.call_bytes + arguments.len() > self.limits.call_bytes + kept_bytes
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
        self.call_bytes += arguments.len();
        self.by_id.insert(id.clone(), number);
        let progress = meta.progress_token();
        let wants_progress = progress.is_some();
        if let Some(batch) = origin.batch.and_then(|batch| self.batches.get_mut(&batch)) {
            batch.open += 1;
        }
        self.pending.insert(
            number,
            Pending {
                id: id.clone(),
                version,
                tool,
                progress,
                last_progress: f64::NEG_INFINITY,
                bytes: arguments.len(),
                batch: origin.batch,
                since: origin.now,
            },
        );
        effects.push(Effect::Invoke(Call { number: CallNumber(number), tool, arguments, client, wants_progress }));
        Ok(Dispatched::InFlight)
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
            effects.push(Effect::Finished(call.finished(origin.now, FinishedAs::Cancelled)));
            if let Some(batch) = call.batch {
                self.close_share(batch, out);
            }
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
        // It is let go of when its answer is written: whatever interrupts that finds it still open.
        let Some(pending) = self.pending.get(&call.0) else { return };
        let mut part = BytesMut::new();
        let target = if pending.batch.is_some() { &mut part } else { &mut *out };
        let result = self.answer(pending, outcome, target);
        let Some(pending) = self.forget(call.0) else { return };
        effects.push(Effect::Finished(pending.finished(now, result)));
        if let Some(batch) = pending.batch {
            self.put_part(batch, &part);
            self.close_share(batch, out);
        }
    }

    fn answer(&self, pending: &Pending, outcome: CallOutcome, out: &mut BytesMut) -> FinishedAs {
        let mut fault = match outcome {
            CallOutcome::Reply(reply) => {
                wire::called(out, &pending.id, pending.version, &reply, &self.identity);
                return reply.fault.map_or(FinishedAs::Success, FinishedAs::Failed);
            }
            CallOutcome::Fault(fault) => fault,
        };
        fault.operation.get_or_insert_with(|| self.catalog.name(pending.tool).to_owned());
        // Older revisions want bad arguments as a protocol error, newer ones where the model can see and mend them.
        if fault.code == FaultCode::InvalidInput && pending.version < Version::V2025_11_25 {
            wire::error(out, Some(&pending.id), &fault, None);
        } else {
            wire::called(out, &pending.id, pending.version, &ToolReply::fault(&fault), &self.identity);
        }
        FinishedAs::Failed(fault.code)
    }

    /// Progress of a call: sent when the client asked for it, the call is still open and the value rises.
    pub fn on_progress(&mut self, call: CallNumber, value: f64, message: Option<&str>, out: &mut BytesMut) {
        let Some(pending) = self.pending.get_mut(&call.0) else { return };
        if let Some(token) = pending.progress.as_deref().filter(|_| value > pending.last_progress) {
            pending.last_progress = value;
            wire::progress(out, token, value, message);
        }
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

    /// The tool of a call in flight, and when it began.
    pub fn open_calls(&self) -> impl Iterator<Item = (CallNumber, usize, Instant)> {
        self.pending.iter().map(|(number, call)| (CallNumber(*number), call.tool, call.since))
    }

    /// L1 and L9 as far as one session can see them.
    ///
    /// # Errors
    ///
    /// What is broken, in words.
    pub fn invariant_calls_are_consistent_and_bounded(&self) -> Result<(), String> {
        if self.by_id.len() != self.pending.len() {
            return Err(format!("{} ids for {} calls", self.by_id.len(), self.pending.len()));
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
        Finished {
            method: "tools/call",
            tool: Some(self.tool),
            request_id: Some(self.id.clone()),
            latency: now.saturating_duration_since(self.since),
            result,
        }
    }
}

enum Dispatched {
    Answered,
    InFlight,
}

struct Refusal {
    fault: Fault,
    data: Option<serde_json::Value>,
}

impl From<Fault> for Box<Refusal> {
    fn from(fault: Fault) -> Self {
        Self::new(Refusal { fault, data: None })
    }
}

/// The members of `params._meta` we look at.
struct Meta<'a> {
    progress: Option<&'a str>,
    version: Option<&'a str>,
    capabilities: Option<&'a str>,
    client: Option<&'a str>,
}

impl<'a> Meta<'a> {
    fn read(json: Option<&'a str>) -> Result<Self, Box<Refusal>> {
        let Some(json) = json.filter(|json| *json != "null") else {
            return Ok(Self { progress: None, version: None, capabilities: None, client: None });
        };
        let names = [
            "progressToken",
            "io.modelcontextprotocol/protocolVersion",
            "io.modelcontextprotocol/clientCapabilities",
            "io.modelcontextprotocol/clientInfo",
        ];
        let [progress, version, capabilities, client] = envelope::object(json, names)
            .map_err(|_| Fault::new(FaultCode::InvalidInput, "the member params._meta must be an object."))?;
        Ok(Self { progress, version, capabilities, client })
    }

    /// An envelope was meant, even if it is not complete.
    fn enveloped(&self) -> bool {
        self.version.is_some() || self.capabilities.is_some()
    }

    /// The token as it was written; null and objects are none.
    fn progress_token(&self) -> Option<Box<str>> {
        self.progress.filter(|json| matches!(json.as_bytes().first(), Some(b'"' | b'-' | b'0'..=b'9'))).map(Into::into)
    }
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

fn label(method: &str) -> &'static str {
    const KNOWN: [&str; 5] = ["ping", "initialize", "tools/list", "tools/call", "server/discover"];
    KNOWN.into_iter().find(|known| *known == method).unwrap_or("other")
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
