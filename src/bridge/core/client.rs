//! What each line of the client is: answered here, held for whoever serves, or passed on.
//!
//! Owns: which methods need nobody, the keys that make a consult safe to be sent again, batches. May not know: who serves.
//!
//! Invariants: (1) a request that is not answered here is held, or refused at once; (2) a batch is answered with one line,
//! when all its answers are there; (3) what this program does not know is refused here, as `mcp serve` refuses it.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::Value;

use super::calls::{Again, FailsAs, Held, Kind, WAIT, Waits};
use super::{
    Barred, BridgeCore, BridgeEffect, Gathered, Greeting, INITIALIZED, LinkNumber, Lists, OwnRequest, SearchEvent,
    Urgent, ended,
};
use crate::base::fault::{Fault, FaultCode};
use crate::base::lenient;
use crate::bridge::line;
use crate::protocol::catalog::CallRoom;
use crate::protocol::envelope::{self, IdToken, Incoming};
use crate::protocol::frame::Frame;
use crate::protocol::method::Method;
use crate::protocol::session::SessionEffects;
use crate::protocol::version::Version;
use crate::protocol::wire;
use crate::tools::ReplayContract;

/// Members of a batch; as many as a session takes.
const BATCH: usize = 256;

/// Bytes of a batch's answer from which on its members are answered with an error; these have room in the rest of the line.
const BATCH_MOST: usize = wire::LINE_MOST - 1024 * 1024;

/// Withdrawn requests whose answers may still come. Beyond it no request is taken until some are known not to.
const BARRED: usize = 1024;

/// The tool whose calls are given a key.
const CONSULT: &str = "consult";

/// The argument that holds it.
const KEY: &str = "request_key";

/// The tool whose calls wait for what a consult became.
const CONSULT_JOB: &str = "consult_job";

/// Where a client says who it is with each request.
const CLIENT: &str = "io.modelcontextprotocol/clientInfo";

/// Where a message came from: on its own line, or in a batch.
#[derive(Debug, Clone, Copy)]
struct Source {
    batch: Option<u64>,
    now: Instant,
}

/// The members of a request that are looked at.
struct Parts<'a> {
    /// Its own text.
    text: &'a str,
    id: &'a IdToken,
    params: &'a str,
}

impl BridgeCore {
    pub(super) fn on_client(
        &mut self,
        frame: &Frame,
        now: Instant,
        out: &mut BytesMut,
        effects: &mut Vec<BridgeEffect>,
    ) {
        let Frame::Line(bytes) = frame else { return self.answer_here(frame, now, out) };
        let text = lenient::text(bytes);
        match envelope::read(&text) {
            Incoming::Batch(members) if self.takes_batch(&members) => self.on_batch(&members, now, out, effects),
            Incoming::Batch(_) => self.answer_here(frame, now, out),
            message => self.on_message(&message, &text, Source { batch: None, now }, out, effects),
        }
    }

    fn takes_batch(&self, members: &[&str]) -> bool {
        self.negotiated() == Some(Version::V2025_03_26) && (1..=BATCH).contains(&members.len())
    }

    fn on_batch(&mut self, members: &[&str], now: Instant, out: &mut BytesMut, effects: &mut Vec<BridgeEffect>) {
        let number = self.next_batch;
        self.next_batch += 1;
        // The reading of the batch holds a share, so that it is not answered before its last member was read.
        self.batches.insert(number, Gathered { open: 1, parts: BytesMut::new() });
        for member in members {
            let message = match envelope::read(member) {
                Incoming::Request { id, method, .. } if method == Method::Initialize.as_str() => {
                    Incoming::Invalid { id: Some(id), why: "initialize must not be part of a batch", beside: false }
                }
                Incoming::Batch(_) => {
                    Incoming::Invalid { id: None, why: "a batch must not hold a batch", beside: false }
                }
                message => message,
            };
            let mut part = BytesMut::new();
            if let Incoming::Invalid { id, why, .. } = &message {
                let fault = Fault::new(FaultCode::InvalidRequest, format!("{why}."));
                wire::error(&mut part, id.as_ref(), &fault, None);
            } else {
                self.on_message(&message, member, Source { batch: Some(number), now }, &mut part, effects);
            }
            self.gather(number, &part);
        }
        self.close_share(number, out);
    }

    /// Puts what a member of a batch is answered with to the others.
    pub(super) fn gather(&mut self, batch: u64, answer: &[u8]) {
        let Some(batch) = self.batches.get_mut(&batch).filter(|_| !answer.is_empty()) else { return };
        let answer = answer.strip_suffix(b"\n").unwrap_or(answer);
        let mut refused = BytesMut::new();
        let answer = if batch.parts.len() + answer.len() > BATCH_MOST {
            let fault = Fault::new(FaultCode::ReplyTooLarge, "the batch's answer is longer than any line may be.")
                .hint("Send the request on a line of its own.");
            let text = lenient::text(answer);
            let id = envelope::object(&text, ["id"]).ok().and_then(|[id]| IdToken::from_json(id?));
            wire::error(&mut refused, id.as_ref(), &fault, None);
            refused.strip_suffix(b"\n").unwrap_or(&refused)
        } else {
            answer
        };
        batch.parts.put_slice(if batch.parts.is_empty() { b"[" } else { b"," });
        batch.parts.put_slice(answer);
    }

    pub(super) fn close_share(&mut self, number: u64, out: &mut BytesMut) {
        let Some(batch) = self.batches.get_mut(&number) else { return };
        batch.open -= 1;
        if batch.open == 0
            && let Some(batch) = self.batches.remove(&number).filter(|batch| !batch.parts.is_empty())
        {
            out.put_slice(&batch.parts);
            out.put_slice(b"]\n");
        }
    }

    /// Answers without anybody, as the session of a system would.
    fn answer_here(&mut self, frame: &Frame, now: Instant, out: &mut BytesMut) {
        // What it would ask of a system is not asked: only what needs none comes here.
        self.setup.local.on_frame(frame, now, out, &mut SessionEffects::new());
    }

    fn on_message(
        &mut self,
        message: &Incoming<'_>,
        text: &str,
        source: Source,
        out: &mut BytesMut,
        effects: &mut Vec<BridgeEffect>,
    ) {
        match message {
            Incoming::Request { id, method, params } => {
                let parts = Parts { text, id, params: params.unwrap_or("{}") };
                self.on_request(method, &parts, source, out, effects);
            }
            Incoming::Notification { method, params } => self.on_notification(method, *params, text, out, effects),
            Incoming::Response { id, .. } => self.on_answer(id.as_ref(), text, effects),
            Incoming::Invalid { .. } | Incoming::Unparsable | Incoming::Batch(_) => {
                self.answer_here(&Frame::Line(Bytes::copy_from_slice(text.as_bytes())), source.now, out);
            }
        }
    }

    fn on_request(
        &mut self,
        method: &str,
        parts: &Parts<'_>,
        source: Source,
        out: &mut BytesMut,
        effects: &mut Vec<BridgeEffect>,
    ) {
        if self.calls.number(parts.id).is_some() {
            let fault = Fault::new(FaultCode::InvalidRequest, "a request with this id is still in flight.");
            return wire::error(out, Some(parts.id), &fault, None);
        }
        let here = Frame::Line(Bytes::copy_from_slice(parts.text.as_bytes()));
        let enveloped = is_enveloped(parts.params);
        let known = match Method::parse(method) {
            // Before the handshake, and of a method nobody knows, every request is refused as it would be later.
            Some(known) if enveloped || self.negotiated().is_some() || known == Method::Initialize => known,
            _ => return self.answer_here(&here, source.now, out),
        };
        match known {
            Method::Initialize => {
                let before = out.len();
                self.answer_here(&here, source.now, out);
                self.greeted(parts.params, out.get(before..).unwrap_or_default());
            }
            Method::Ping | Method::Discover => self.answer_here(&here, source.now, out),
            Method::ToolsList if self.lists == Lists::Here => {
                self.told = Some(self.setup.local.catalog().digest());
                self.answer_here(&here, source.now, out);
            }
            Method::ToolsList
            | Method::ToolsCall
            | Method::Listen
            | Method::TasksGet
            | Method::TasksResult
            | Method::TasksList
            | Method::TasksCancel
            | Method::TasksUpdate => {
                let version = if enveloped { Version::MODERN } else { self.negotiated().unwrap_or(Version::MODERN) };
                let held = self.held(known, parts, version, source);
                self.hold(held, source, out, effects);
            }
        }
    }

    /// The client introduced itself, and was answered so.
    fn greeted(&mut self, params: &str, answer: &[u8]) {
        let answer = lenient::text(answer);
        let taken = matches!(envelope::read(answer.trim_end()), Incoming::Response { result: Some(_), .. });
        let Some(version) = self.negotiated().filter(|_| taken) else { return };
        // Whoever serves is asked for the version that was agreed upon here.
        let wanted = envelope::object(params, ["protocolVersion"]).ok().and_then(|[wanted]| wanted);
        let agreed = format!("\"{}\"", version.as_str());
        let params = wanted.map_or(Cow::Borrowed(params), |wanted| {
            Cow::Owned(lenient::text(&line::replaced(params, wanted, &agreed)).into_owned())
        });
        let client = name_in(envelope::object(&params, ["clientInfo"]).ok().and_then(|[client]| client));
        self.greeting = Some(Greeting { client, params: params.into_owned(), initialized: false });
        if !self.urgent.contains(&Urgent::Greeting) {
            self.tell(Urgent::Greeting);
        }
    }

    /// A request as it is held: with a key, where it is a consult without one.
    fn held(&mut self, method: Method, parts: &Parts<'_>, version: Version, source: Source) -> Held {
        let mut line = None;
        let mut room = CallRoom::Kept;
        let mut fails_as = FailsAs::Error;
        let mut waits = None;
        let kind = match method {
            Method::ToolsCall => {
                let members = ["name", "arguments", "task"];
                let [name, arguments, task] = envelope::object(parts.params, members).unwrap_or_default();
                let name = name.and_then(envelope::string).unwrap_or_default();
                room = self.room(&name);
                if task.is_none_or(|task| task == "null") || version == Version::MODERN {
                    fails_as = FailsAs::Reply;
                }
                let total = self.wait(&name, arguments, parts.params);
                waits = total.map(|total| Waits { since: source.now, total });
                let again = match self.contract(&name) {
                    ReplayContract::Convergent => Again::Yes,
                    ReplayContract::ProbeRequired if name == CONSULT => self.keyed(parts.text, arguments, &mut line),
                    ReplayContract::ProbeRequired | ReplayContract::NeverReplay => Again::No,
                };
                Kind::Call(again)
            }
            Method::ToolsList => Kind::List,
            Method::Listen => Kind::Listen { tools: asks_for_tools(parts.params), acknowledged: false },
            _ => Kind::Ask,
        };
        let line = line.unwrap_or_else(|| Bytes::copy_from_slice(parts.text.trim().as_bytes()));
        let progress = progress_token(parts.params).map(|token| (token, f64::NEG_INFINITY));
        Held { id: parts.id.clone(), line, kind, version, fails_as, room, batch: source.batch, progress, waits }
    }

    /// A consult is safe to be sent again when it has a key: with the same one it joins the job it began (L3).
    fn keyed(&mut self, text: &str, arguments: Option<&str>, line: &mut Option<Bytes>) -> Again {
        let Some(arguments) = arguments.filter(|json| json.starts_with('{')) else { return Again::No };
        let Ok([key]) = envelope::object(arguments, [KEY]) else { return Again::No };
        if line::says_nothing(key) {
            let key = Value::String((self.setup.key)());
            *line = Some(line::with_argument(text, arguments, KEY, &key));
        }
        Again::Yes
    }

    /// How long the caller of a tool is kept waiting, where the bridge can tell.
    fn wait(&self, tool: &str, arguments: Option<&str>, params: &str) -> Option<Duration> {
        let [asked, background] = envelope::object(arguments?, [WAIT, "background"]).ok()?;
        let asked = asked.and_then(|asked| asked.trim_matches('"').parse().ok()).map(Duration::from_secs);
        match tool {
            CONSULT if background == Some("true") => None,
            CONSULT => asked.or_else(|| {
                let [client] = envelope::object(meta(params).unwrap_or("{}"), [CLIENT]).unwrap_or_default();
                let name = name_in(client).or_else(|| self.greeting.as_ref()?.client.clone());
                Some((self.setup.wait)(name.as_deref()))
            }),
            CONSULT_JOB => asked,
            _ => None,
        }
    }

    fn room(&self, tool: &str) -> CallRoom {
        let catalog = self.setup.local.catalog();
        catalog.position(tool).map_or(CallRoom::Shared, |position| catalog.room(position))
    }

    fn contract(&self, tool: &str) -> ReplayContract {
        let found = self.setup.contracts.iter().find(|(name, _)| name == tool);
        found.map_or(ReplayContract::NeverReplay, |(_, contract)| *contract)
    }

    /// Holds a request, unless there is no room.
    fn hold(&mut self, held: Held, source: Source, out: &mut BytesMut, effects: &mut Vec<BridgeEffect>) {
        let served = self.search.is_served();
        if !self.calls.has_room(held.room, held.line.len(), served) || self.barred.len() >= BARRED {
            let detail = if served {
                "as many calls are in flight on this connection as may be."
            } else {
                "as many calls wait for the daemon as may."
            };
            let fault = Fault::new(FaultCode::Busy, detail).hint("Wait for one of them and send the call again.");
            return wire::error(out, Some(&held.id), &fault, None);
        }
        if let Some(batch) = source.batch.and_then(|batch| self.batches.get_mut(&batch)) {
            batch.open += 1;
        }
        self.calls.hold(held);
        // It is looked for from the beginning; this is for the request after a search that found nobody.
        self.look(SearchEvent::Wanted, source.now, out, effects);
    }

    fn on_notification(
        &mut self,
        method: &str,
        params: Option<&str>,
        text: &str,
        out: &mut BytesMut,
        effects: &mut Vec<BridgeEffect>,
    ) {
        match method {
            "notifications/initialized" => {
                let Some(greeting) = &mut self.greeting else { return };
                // Where the greeting has not gone out yet, it says so itself.
                if !std::mem::replace(&mut greeting.initialized, true) && !self.urgent.contains(&Urgent::Greeting) {
                    self.tell(Urgent::Line(Bytes::from_static(INITIALIZED)));
                }
            }
            "notifications/roots/list_changed"
                if self.greeting.is_some() && !self.urgent.contains(&Urgent::RootsChanged) =>
            {
                self.tell(Urgent::RootsChanged);
            }
            "notifications/cancelled" => {
                let Some(Ok([Some(id)])) = params.map(|params| envelope::object(params, ["requestId"])) else { return };
                let Some(number) = IdToken::from_json(id).and_then(|id| self.calls.number(&id)) else { return };
                self.withdraw(number, text, out, effects);
            }
            // Everything else is none of our business.
            _ => {}
        }
    }

    /// The client withdrew a request: it gets no answer, and whoever has it is told.
    fn withdraw(&mut self, number: u64, text: &str, out: &mut BytesMut, effects: &mut Vec<BridgeEffect>) {
        let sent = self.calls.sent_to(number);
        let Some(held) = self.calls.take(number) else { return };
        if let Some(link) = sent {
            self.say_to(link, Bytes::copy_from_slice(text.trim().as_bytes()), effects);
            self.bar(link, held.id, effects);
        }
        if let Some(batch) = held.batch {
            self.close_share(batch, out);
        }
    }

    /// An answer to this id may be under way. Until it is known that none is, a new request with the same id waits.
    fn bar(&mut self, link: LinkNumber, id: IdToken, effects: &mut Vec<BridgeEffect>) {
        let barrier = self.next_own;
        let Some(own) = self.own_request(link, OwnRequest::Barrier(barrier)) else { return };
        self.barred.insert(id, Barred { link, barrier });
        let ping = format!("{{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"ping\"}}", own.as_str());
        self.say_to(link, ping.into(), effects);
    }

    /// Says something to whoever has a request.
    fn say_to(&mut self, link: LinkNumber, line: Bytes, effects: &mut Vec<BridgeEffect>) {
        if self.link == Some(link) {
            self.tell(Urgent::Line(line));
        } else {
            effects.push(BridgeEffect::Send(link, ended(&line)));
        }
    }

    /// An answer of the client: to whoever asked, where it is still there.
    fn on_answer(&mut self, id: Option<&IdToken>, text: &str, effects: &mut Vec<BridgeEffect>) {
        let number = id.and_then(|id| self.question_of(id));
        let Some(question) = number.and_then(|number| self.questions.remove(&number)) else { return };
        if Some(question.link) == self.link || self.leaving.contains(&question.link) {
            self.say_to(question.link, line::with_id(text.trim(), question.id.as_str()), effects);
        }
    }

    /// Says something to whoever serves; the next one is told what it has to know when it comes.
    fn tell(&mut self, urgent: Urgent) {
        if self.search.is_served() {
            self.urgent.push_back(urgent);
        }
    }
}

/// Whether a request carries the envelope of the stateless era, even one that is not complete.
fn is_enveloped(params: &str) -> bool {
    let names = ["io.modelcontextprotocol/protocolVersion", "io.modelcontextprotocol/clientCapabilities"];
    meta(params)
        .and_then(|meta| envelope::object(meta, names).ok())
        .is_some_and(|[version, capabilities]| version.is_some() || capabilities.is_some())
}

/// The name in a client's description of itself.
fn name_in(client: Option<&str>) -> Option<String> {
    let [name] = envelope::object(client?, ["name"]).ok()?;
    name.and_then(envelope::string).map(Cow::into_owned)
}

fn meta(params: &str) -> Option<&str> {
    envelope::object(params, ["_meta"]).ok().and_then(|[meta]| meta)
}

/// The token under which a request's progress is told, as it was written.
fn progress_token(params: &str) -> Option<Box<str>> {
    let [token] = envelope::object(meta(params)?, ["progressToken"]).ok()?;
    token.filter(|token| token.len() <= 1024).map(Into::into)
}

fn asks_for_tools(params: &str) -> bool {
    let wishes = envelope::object(params, ["notifications"]).ok().and_then(|[wishes]| wishes);
    wishes.and_then(|wishes| envelope::object(wishes, ["toolsListChanged"]).ok()) == Some([Some("true")])
}
