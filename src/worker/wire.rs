//! What a host and its worker process say to each other: one JSON message per line, host → worker on the worker's standard
//! input, worker → host on its standard output.
//!
//! Owns: every byte of these lines, their version, their bound. May not know: processes, actors, what a tool does.
//!
//! ```text
//! host ── hello ─▶ worker        once, first
//! host ◀─ ready ── worker        once, first; within the handshake's bound
//! host ── execute, withdraw, session_over, answer, check ─▶ worker
//! host ◀─ settled, progress, ask, alive, panicked ── worker
//! ```
//!
//! A message is an object whose first member's name says what it is: `{"check":{"g":3,"n":1}}`. `g` is the generation, `s`
//! and `c` the session and the call. `execute` has its arguments as a second member, in this order:
//! `{"execute":{"g":3,"s":1,"c":7,"tool":"echo"},"arguments":{…}}`.
//!
//! Invariants: (1) every message carries the generation it belongs to, and those about a call its key; (2) arguments and
//! replies travel as the JSON text they are. A worker does not look at arguments, which its host has read before; a host
//! looks at a reply once, because what it writes to its client must be JSON; neither builds a tree; (3) each function
//! appends exactly one whole line, or nothing.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::asks::{Answer, Question};
use super::outbox::Outbox;
use super::settings::Settings;
use crate::fault::{Fault, FaultCode};
use crate::ids::{Generation, HostId, InvocationId, JobId, SessionNumber};
use crate::protocol::scan;
use crate::protocol::session::{CallNumber, CallOutcome, ClientInfo};
use crate::protocol::wire::{ReplyText, ToolReply};
use crate::tools::{Evidence, ToolCall};

/// The version of this protocol. Host and worker are the same program nearly always; when they are not, the handshake
/// says so instead of a misunderstanding later.
pub const PROTOCOL: u32 = 1;

/// Longest line on these pipes, for a host whose clients may send lines of `client` bytes.
///
/// Arguments are at most a client's line. A reply may be its argument once more as text, in which each quote and each
/// backslash takes two bytes; names and numbers around either fit in the rest.
#[must_use]
pub const fn line_limit(client: usize) -> usize {
    client.saturating_mul(2).saturating_add(64 * 1024)
}

/// A call across all sessions of a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallKey {
    /// The session it came in on.
    pub session: SessionNumber,
    /// The call within it.
    pub call: CallNumber,
}

/// What a host says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWorker<'a> {
    /// Who you are and what you need to know.
    #[serde(borrow)]
    Hello(Hello<'a>),
    /// Run this.
    #[serde(skip)]
    Execute(Execute<'a>),
    /// Nobody waits for this one any more.
    Withdraw {
        /// The generation.
        g: Generation,
        /// The session.
        s: SessionNumber,
        /// The call.
        c: u64,
    },
    /// Nobody waits for anything of this session any more.
    SessionOver {
        /// The generation.
        g: Generation,
        /// The session.
        s: SessionNumber,
    },
    /// The answer to a question.
    Answer {
        /// The generation.
        g: Generation,
        /// Which question.
        id: u64,
        /// The answer.
        answer: Result<Answer, Fault>,
    },
    /// Are you alive?
    Check {
        /// The generation.
        g: Generation,
        /// Comes back in the answer.
        n: u64,
    },
}

/// The first message of a host.
#[derive(Debug, Deserialize)]
pub struct Hello<'a> {
    /// The version it speaks. Read before anything else of this message: the rest may look different in another version.
    pub protocol: u32,
    /// The generation this worker is.
    pub g: Generation,
    /// What its tools need to know.
    #[serde(borrow)]
    pub settings: &'a RawValue,
}

/// The text of one whole JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Json<'a>(pub &'a str);

impl<'de: 'a, 'a> Deserialize<'de> for Json<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        <&'de RawValue>::deserialize(from).map(|raw| Self(raw.get()))
    }
}

/// One attempt.
#[derive(Debug)]
pub struct Execute<'a> {
    /// Everything but the arguments.
    pub head: ExecuteHead<'a>,
    /// The arguments: the JSON text of an object, taken on trust.
    pub arguments: &'a [u8],
}

/// An attempt without its arguments.
#[derive(Debug, Deserialize)]
pub struct ExecuteHead<'a> {
    /// The generation it is given to.
    pub g: Generation,
    /// The session.
    pub s: SessionNumber,
    /// The call.
    pub c: u64,
    /// The tool's name.
    #[serde(borrow)]
    pub tool: std::borrow::Cow<'a, str>,
    /// Whether anybody wants progress.
    #[serde(default)]
    pub progress: bool,
    /// What a probe found.
    #[serde(default)]
    pub evidence: Option<Evidence>,
    /// Who called: a name or an object of the client's.
    #[serde(borrow, default)]
    pub client: Option<Json<'a>>,
}

/// Reads a line of a host.
///
/// # Errors
///
/// It is no message.
pub fn read_host(line: &[u8]) -> Result<ToWorker<'_>, serde_json::Error> {
    let Some(rest) = line.strip_prefix(b"{\"execute\":") else { return serde_json::from_slice(line) };
    let (head, end) = match plain_head(rest) {
        Some(plain) => plain,
        None => {
            let mut heads = serde_json::Deserializer::from_slice(rest).into_iter::<ExecuteHead<'_>>();
            let head = heads.next().unwrap_or_else(|| Err(no_message()))?;
            (head, heads.byte_offset())
        }
    };
    let arguments = rest[end..].strip_prefix(b",\"arguments\":").and_then(|rest| rest.strip_suffix(b"}"));
    match arguments {
        Some(arguments) if arguments.starts_with(b"{") && arguments.ends_with(b"}") => {
            Ok(ToWorker::Execute(Execute { head, arguments }))
        }
        _ => Err(no_message()),
    }
}

/// The head of an attempt as nearly every one is written, and where it ends; the parser reads all others. It is on the
/// path of every call.
fn plain_head(rest: &[u8]) -> Option<(ExecuteHead<'_>, usize)> {
    const TOOL: &[u8] = b",\"tool\":";
    let (g, s, c, at) = keyed_head(rest)?;
    let start = at + TOOL.len();
    let end = scan::string(rest, start).filter(|_| rest[at..].starts_with(TOOL))?;
    let tool = std::str::from_utf8(&rest[start + 1..end - 1]).ok().filter(|tool| !tool.contains('\\'))?;
    let mut at = end;
    let mut client = None;
    if let Some(value) = rest[at..].strip_prefix(b",\"client\":") {
        let end = scan::value(value, 0)?;
        client = Some(Json(std::str::from_utf8(&value[..end]).ok()?));
        at = rest.len() - value.len() + end;
    }
    if rest.get(at) != Some(&b'}') {
        return None;
    }
    let head = ExecuteHead { g, s, c, tool: tool.into(), progress: false, evidence: None, client };
    Some((head, at + 1))
}

/// `{"g":…,"s":…,"c":…` as we write it, and where it ends.
fn keyed_head(text: &[u8]) -> Option<(Generation, SessionNumber, u64, usize)> {
    let mut at = 0;
    let mut number = |name: &[u8]| {
        at += text[at..].starts_with(name).then_some(name.len())?;
        let digits = text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        // What overflows, or leads with a zero, the parser may judge.
        if !(1..20).contains(&digits) || (digits > 1 && text[at] == b'0') {
            return None;
        }
        let value = text[at..at + digits].iter().fold(0_u64, |value, digit| value * 10 + u64::from(digit - b'0'));
        at += digits;
        Some(value)
    };
    let (g, s, c) = (number(b"{\"g\":")?, number(b",\"s\":")?, number(b",\"c\":")?);
    Some((Generation(g), SessionNumber(s), c, at))
}

/// Reads a line of a worker.
///
/// # Errors
///
/// It is no message.
pub fn read_worker(line: &str) -> Result<FromWorker<'_>, serde_json::Error> {
    match plain_settled(line) {
        Some(settled) => Ok(FromWorker::Settled(settled)),
        None => serde_json::from_str(line),
    }
}

/// An outcome as nearly every one is written: a text and nothing else. The parser reads all others.
fn plain_settled(line: &str) -> Option<Settled<'_>> {
    const TEXT: &[u8] = b",\"text\":";
    let body = line.strip_prefix("{\"settled\":")?;
    let bytes = body.as_bytes();
    let (g, s, c, at) = keyed_head(bytes)?;
    let start = at + TEXT.len();
    let end = scan::string(bytes, start).filter(|_| bytes[at..].starts_with(TEXT))?;
    if &bytes[end..] != b"}}" {
        return None;
    }
    let text = Some(Json(&body[start..end]));
    Some(Settled { g, s, c, fault: None, code: None, job: None, path: None, text, structured: None, end: false })
}

fn no_message() -> serde_json::Error {
    serde::de::Error::custom("an attempt is not as it is written")
}

/// What a worker says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromWorker<'a> {
    /// I can run these tools.
    Ready {
        /// The version it speaks.
        protocol: u32,
        /// The generation it takes itself for.
        g: Generation,
        /// What it can run.
        tools: Vec<String>,
    },
    /// An attempt came out.
    #[serde(borrow)]
    Settled(Settled<'a>),
    /// An attempt made progress.
    Progress {
        /// The generation.
        g: Generation,
        /// The session.
        s: SessionNumber,
        /// The call.
        c: u64,
        /// A value that rises.
        value: f64,
        /// What is going on.
        message: String,
    },
    /// A question that only the host can answer.
    Ask {
        /// The generation.
        g: Generation,
        /// Comes back with the answer.
        id: u64,
        /// The question.
        question: Question,
    },
    /// I am alive.
    Alive {
        /// The generation.
        g: Generation,
        /// The number of the check.
        n: u64,
        /// Attempts it has.
        open: u64,
    },
    /// A tool panicked. This is the worker's last message.
    Panicked {
        /// The generation.
        g: Generation,
        /// The tool.
        tool: String,
    },
}

/// How an attempt came out: a reply or a fault.
#[derive(Debug, Deserialize)]
pub struct Settled<'a> {
    /// The generation.
    pub g: Generation,
    /// The session.
    pub s: SessionNumber,
    /// The call.
    pub c: u64,
    /// It failed below the tool.
    #[serde(default)]
    pub fault: Option<Box<Fault>>,
    /// The code of an error result.
    #[serde(default)]
    pub code: Option<FaultCode>,
    /// The job it is about.
    #[serde(default)]
    pub job: Option<JobId>,
    /// It tells how that job ended.
    #[serde(default)]
    pub end: bool,
    /// The directory it was about.
    #[serde(default)]
    pub path: Option<String>,
    /// The text block: a JSON string.
    #[serde(borrow, default)]
    pub text: Option<Json<'a>>,
    /// The same, structured.
    #[serde(borrow, default)]
    pub structured: Option<Json<'a>>,
}

impl Settled<'_> {
    /// The outcome; its text is a slice of `line`, which this was read from. `None` when it has neither text nor fault.
    #[must_use]
    pub fn outcome(self, line: &Bytes) -> Option<CallOutcome> {
        if let Some(fault) = self.fault {
            return Some(CallOutcome::Fault(fault));
        }
        let text = self.text?.0;
        if !text.starts_with('"') {
            return None;
        }
        Some(CallOutcome::Reply(Box::new(ToolReply {
            text: ReplyText::Json(line.slice_ref(text.as_bytes())),
            structured: self.structured.map(|json| json.0.to_owned()),
            fault: self.code,
            job: self.job,
            tells_end: self.end,
            path_hint: self.path,
        })))
    }
}

impl Execute<'_> {
    /// The call; its arguments are a slice of `line`, which this was read from.
    #[must_use]
    pub fn call(&self, host: HostId, line: &Bytes, progress: crate::actors::reply::ProgressSink) -> ToolCall {
        let client = match self.head.client.map(|json| json.0) {
            None => ClientInfo::Unknown,
            Some(name) if name.starts_with('"') => crate::protocol::envelope::string(name)
                .map_or(ClientInfo::Unknown, |name| ClientInfo::Name((*name).into())),
            Some(object) => ClientInfo::Raw(line.slice_ref(object.as_bytes())),
        };
        ToolCall {
            invocation: InvocationId { host, session: self.head.s, call: self.head.c },
            generation: self.head.g,
            evidence: self.head.evidence,
            arguments: line.slice_ref(self.arguments),
            client,
            progress,
            waited: std::time::Duration::ZERO,
        }
    }

    /// Which call it is.
    #[must_use]
    pub fn key(&self) -> CallKey {
        CallKey { session: self.head.s, call: CallNumber(self.head.c) }
    }
}

/// A message is larger than the pipe takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("send a message of {bytes} bytes where {limit} are accepted")]
pub struct TooLarge {
    /// Its size.
    pub bytes: usize,
    /// The bound.
    pub limit: usize,
}

struct Sink<'a>(&'a mut BytesMut);

impl io::Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn json(out: &mut BytesMut, value: &(impl Serialize + ?Sized)) {
    // For values of ours whose serialiser cannot fail: strings, numbers, faults.
    let written: Result<(), serde_json::Error> = serde_json::to_writer(Sink(out), value);
    debug_assert!(written.is_ok());
}

fn number(out: &mut BytesMut, name: &str, value: u64) {
    out.put_slice(name.as_bytes());
    json(out, &value);
}

fn keyed(out: &mut BytesMut, what: &str, generation: Generation, key: CallKey) {
    out.put_slice(what.as_bytes());
    number(out, "{\"g\":", generation.0);
    number(out, ",\"s\":", key.session.0);
    number(out, ",\"c\":", key.call.0);
}

/// Takes back what was appended since `start` when it is over the limit.
fn bounded(out: &mut BytesMut, start: usize, limit: usize) -> Result<(), TooLarge> {
    let bytes = out.len() - start;
    if bytes > limit {
        out.truncate(start);
        return Err(TooLarge { bytes, limit });
    }
    Ok(())
}

/// `hello`.
///
/// # Errors
///
/// The settings hold something that is no JSON: a path that is not UTF-8.
pub fn hello(out: &mut BytesMut, generation: Generation, settings: &Settings) -> Result<(), serde_json::Error> {
    let settings = serde_json::to_string(settings)?;
    number(out, "{\"hello\":{\"protocol\":", u64::from(PROTOCOL));
    number(out, ",\"g\":", generation.0);
    out.put_slice(b",\"settings\":");
    out.put_slice(settings.as_bytes());
    out.put_slice(b"}}\n");
    Ok(())
}

/// `execute`.
///
/// # Errors
///
/// The line would be over the limit; nothing was appended.
pub fn execute(out: &mut Outbox, key: CallKey, tool: &str, call: &ToolCall, limit: usize) -> Result<(), TooLarge> {
    let start = out.tail().len();
    let to = out.tail();
    keyed(to, "{\"execute\":", call.generation, key);
    to.put_slice(b",\"tool\":");
    json(to, tool);
    if call.progress.is_wanted() {
        to.put_slice(b",\"progress\":true");
    }
    if let Some(evidence) = call.evidence {
        to.put_slice(b",\"evidence\":");
        json(to, &evidence);
    }
    match &call.client {
        ClientInfo::Unknown => {}
        ClientInfo::Name(name) => {
            to.put_slice(b",\"client\":");
            json(to, &**name);
        }
        // Where a client's object was cut to its first kilobyte it is no JSON any more.
        ClientInfo::Raw(object) if object.ends_with(b"}") => {
            to.put_slice(b",\"client\":");
            to.put_slice(object);
        }
        ClientInfo::Raw(_) => {}
    }
    to.put_slice(b"},\"arguments\":");
    bounded(to, start, limit.saturating_sub(call.arguments.len() + 2))?;
    out.attach(&call.arguments);
    out.tail().put_slice(b"}\n");
    Ok(())
}

/// `withdraw`.
pub fn withdraw(out: &mut BytesMut, generation: Generation, key: CallKey) {
    keyed(out, "{\"withdraw\":", generation, key);
    out.put_slice(b"}}\n");
}

/// `session_over`.
pub fn session_over(out: &mut BytesMut, generation: Generation, session: SessionNumber) {
    number(out, "{\"session_over\":{\"g\":", generation.0);
    number(out, ",\"s\":", session.0);
    out.put_slice(b"}}\n");
}

/// `check`.
pub fn check(out: &mut BytesMut, generation: Generation, n: u64) {
    number(out, "{\"check\":{\"g\":", generation.0);
    number(out, ",\"n\":", n);
    out.put_slice(b"}}\n");
}

/// `answer`; one that cannot be written or is too large becomes a fault.
pub fn answer(out: &mut BytesMut, generation: Generation, id: u64, answer: &Result<Answer, Fault>, limit: usize) {
    let text = match serde_json::to_string(answer) {
        Ok(text) if text.len() + 128 <= limit => text,
        Ok(text) => {
            let why = TooLarge { bytes: text.len(), limit };
            refusal(&why)
        }
        Err(error) => refusal(&error),
    };
    number(out, "{\"answer\":{\"g\":", generation.0);
    number(out, ",\"id\":", id);
    out.put_slice(b",\"answer\":");
    out.put_slice(text.as_bytes());
    out.put_slice(b"}}\n");
}

fn refusal(why: &dyn std::error::Error) -> String {
    let fault = Fault::new(FaultCode::Internal, format!("the host failed to {why}."));
    let answer: Result<Answer, Fault> = Err(fault);
    serde_json::to_string(&answer).unwrap_or_else(|_| "null".to_owned())
}

/// `ready`.
pub fn ready<'n>(out: &mut BytesMut, generation: Generation, tools: impl Iterator<Item = &'n str>) {
    number(out, "{\"ready\":{\"protocol\":", u64::from(PROTOCOL));
    number(out, ",\"g\":", generation.0);
    out.put_slice(b",\"tools\":");
    json(out, &tools.collect::<Vec<_>>());
    out.put_slice(b"}}\n");
}

/// `settled`. A reply that is no JSON where it says it is, or too large, becomes a fault.
pub fn settled(out: &mut Outbox, generation: Generation, key: CallKey, outcome: &CallOutcome, limit: usize) {
    let start = out.tail().len();
    let refused = match outcome {
        CallOutcome::Reply(reply) => match replied(out, generation, key, reply, limit) {
            Ok(()) => return,
            Err(why) => Fault::new(FaultCode::Internal, format!("the tool's reply {why}.")),
        },
        CallOutcome::Fault(fault) => Fault::clone(fault),
    };
    let to = out.tail();
    to.truncate(start);
    keyed(to, "{\"settled\":", generation, key);
    to.put_slice(b",\"fault\":");
    json(to, &refused);
    to.put_slice(b"}}\n");
}

/// Appends a reply. What is wrong with one that cannot be sent; only the tail was written to then.
fn replied(
    out: &mut Outbox,
    generation: Generation,
    key: CallKey,
    reply: &ToolReply,
    limit: usize,
) -> Result<(), String> {
    let too_large = |bytes: usize| format!("has {bytes} bytes; at most {limit} are accepted");
    let structured = reply.structured.as_deref().map(one_line).transpose()?;
    let structured_bytes = structured.as_ref().map_or(0, |text| text.len());
    let to = out.tail();
    let start = to.len();
    keyed(to, "{\"settled\":", generation, key);
    if let Some(code) = reply.fault {
        to.put_slice(b",\"code\":");
        json(to, &code);
    }
    if let Some(job) = reply.job {
        to.put_slice(b",\"job\":");
        json(to, &job);
    }
    if reply.tells_end {
        to.put_slice(b",\"end\":true");
    }
    if let Some(path) = &reply.path_hint {
        to.put_slice(b",\"path\":");
        json(to, path);
    }
    to.put_slice(b",\"text\":");
    let raw = match &reply.text {
        ReplyText::Plain(text) => {
            json(to, text);
            None
        }
        // The line's end is the one thing the other side cannot forgive.
        ReplyText::Json(text) if memchr::memchr(b'\n', text).is_some() => {
            return Err("has a text with a line break in it, which is no JSON string".to_owned());
        }
        ReplyText::Json(text) => Some(text),
    };
    let bytes = to.len() - start + raw.map_or(0, Bytes::len) + structured_bytes + 32;
    if bytes > limit {
        return Err(too_large(bytes));
    }
    if let Some(text) = raw {
        out.attach(text);
    }
    let to = out.tail();
    if let Some(structured) = structured {
        to.put_slice(b",\"structured\":");
        to.put_slice(structured.as_bytes());
    }
    to.put_slice(b"}}\n");
    Ok(())
}

/// JSON without line breaks.
fn one_line(json: &str) -> Result<std::borrow::Cow<'_, str>, String> {
    if memchr::memchr(b'\n', json.as_bytes()).is_none() {
        return Ok(json.into());
    }
    // Printed over several lines; the same without them.
    let value: serde_json::Value =
        serde_json::from_str(json).map_err(|error| format!("has structured content that is no JSON: {error}"))?;
    Ok(value.to_string().into())
}

/// `progress`.
pub fn progress(out: &mut BytesMut, generation: Generation, key: CallKey, value: f64, message: &str) {
    keyed(out, "{\"progress\":", generation, key);
    out.put_slice(b",\"value\":");
    json(out, &if value.is_finite() { value } else { 0.0 });
    out.put_slice(b",\"message\":");
    json(out, message);
    out.put_slice(b"}}\n");
}

/// `ask`.
///
/// # Errors
///
/// The question holds a path that is not UTF-8.
pub fn ask(out: &mut BytesMut, generation: Generation, id: u64, question: &Question) -> Result<(), serde_json::Error> {
    let question = serde_json::to_string(question)?;
    number(out, "{\"ask\":{\"g\":", generation.0);
    number(out, ",\"id\":", id);
    out.put_slice(b",\"question\":");
    out.put_slice(question.as_bytes());
    out.put_slice(b"}}\n");
    Ok(())
}

/// `alive`.
pub fn alive(out: &mut BytesMut, generation: Generation, n: u64, open: usize) {
    number(out, "{\"alive\":{\"g\":", generation.0);
    number(out, ",\"n\":", n);
    number(out, ",\"open\":", open as u64);
    out.put_slice(b"}}\n");
}

/// `panicked`.
pub fn panicked(out: &mut BytesMut, generation: Generation, tool: &str) {
    number(out, "{\"panicked\":{\"g\":", generation.0);
    out.put_slice(b",\"tool\":");
    json(out, tool);
    out.put_slice(b"}}\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::reply::ProgressSink;

    const KEY: CallKey = CallKey { session: SessionNumber(2), call: CallNumber(9) };
    const G: Generation = Generation(3);
    const LIMIT: usize = 1 << 20;

    fn call(arguments: &str, client: ClientInfo) -> ToolCall {
        ToolCall {
            invocation: InvocationId { host: HostId::random(), session: KEY.session, call: KEY.call.0 },
            generation: G,
            evidence: Some(Evidence::NotAccepted),
            arguments: Bytes::copy_from_slice(arguments.as_bytes()),
            client,
            progress: ProgressSink::closed(),
            waited: std::time::Duration::ZERO,
        }
    }

    /// The one line in `out`.
    fn line(mut out: Outbox) -> Bytes {
        let mut line = Vec::new();
        while !out.is_empty() {
            let piece = out.front().len();
            line.extend_from_slice(out.front());
            out.written(piece);
        }
        let mut line = Bytes::from(line);
        assert_eq!(memchr::memchr_iter(b'\n', &line).collect::<Vec<_>>(), [line.len() - 1], "{line:?}");
        line.truncate(line.len() - 1);
        line
    }

    fn text(line: &Bytes) -> &str {
        std::str::from_utf8(line).expect("UTF-8")
    }

    #[test]
    fn a_call_comes_out_as_it_went_in_byte_for_byte() {
        let clients = [
            ClientInfo::Unknown,
            ClientInfo::Name("a \"client\"".into()),
            ClientInfo::Raw(Bytes::from_static(b"{\"name\":\"a \\\"client\\\"\"}")),
        ];
        for client in clients {
            let arguments = "{ \"a\" : [1.0, 1e3, \"\\u00e9é\\n\"],\t\"b\":{} }";
            let sent = call(arguments, client);
            let mut out = Outbox::default();
            execute(&mut out, KEY, "a \"tool\"", &sent, LIMIT).expect("it fits");
            let line = line(out);
            let ToWorker::Execute(read) = read_host(&line).expect("a message") else { panic!("{line:?}") };
            let head = &read.head;
            assert_eq!((head.g, read.key(), &*head.tool, head.progress), (G, KEY, "a \"tool\"", false));
            let got = read.call(sent.invocation.host, &line, ProgressSink::closed());
            assert_eq!(
                (got.invocation, got.evidence, &got.arguments),
                (sent.invocation, sent.evidence, &sent.arguments)
            );
            assert_eq!(got.client.name(), sent.client.name());
        }
    }

    #[test]
    fn a_client_that_was_cut_is_left_out() {
        let sent = call("{}", ClientInfo::Raw(Bytes::from_static(b"{\"name\":\"a")));
        let mut out = Outbox::default();
        execute(&mut out, KEY, "t", &sent, LIMIT).expect("it fits");
        let line = line(out);
        assert!(read_host(&line).is_ok(), "{line:?}");
    }

    fn outcome_of(sent: &CallOutcome, limit: usize) -> CallOutcome {
        let mut out = Outbox::default();
        settled(&mut out, G, KEY, sent, limit);
        let line = line(out);
        let FromWorker::Settled(read) = read_worker(text(&line)).expect("a message") else { panic!("{line:?}") };
        assert_eq!((read.g, read.s, read.c), (G, KEY.session, KEY.call.0));
        read.outcome(&line).expect("an outcome")
    }

    fn fault(outcome: CallOutcome) -> Fault {
        let CallOutcome::Fault(fault) = outcome else { panic!("{outcome:?}") };
        *fault
    }

    #[test]
    fn a_reply_comes_out_as_it_went_in() {
        let job = JobId::random();
        let sent = ToolReply {
            text: ReplyText::Plain("é \"quoted\"\n".to_owned()),
            structured: Some("{\n  \"a\": 1\n}".to_owned()),
            fault: Some(FaultCode::Busy),
            job: Some(job),
            tells_end: true,
            path_hint: Some("/a b".to_owned()),
        };
        let CallOutcome::Reply(got) = outcome_of(&CallOutcome::Reply(Box::new(sent)), LIMIT) else { panic!("a reply") };
        let ReplyText::Json(text) = &got.text else { panic!("{got:?}") };
        assert_eq!(&text[..], "\"é \\\"quoted\\\"\\n\"".as_bytes());
        assert_eq!(got.structured.as_deref(), Some("{\"a\":1}"), "one line, whatever the tool wrote");
        assert!(got.tells_end);
        assert_eq!((got.fault, got.job, got.path_hint.as_deref()), (Some(FaultCode::Busy), Some(job), Some("/a b")));
    }

    #[test]
    fn a_fault_comes_out_as_it_went_in() {
        let sent = Fault::new(FaultCode::RequestKeyConflict, "x.").hint("y").job(JobId::random());
        assert_eq!(fault(outcome_of(&CallOutcome::Fault(Box::new(sent.clone())), LIMIT)), sent);
    }

    #[test]
    fn a_reply_the_pipe_cannot_take_becomes_a_fault() {
        let json =
            |text: &'static [u8]| ToolReply { text: ReplyText::Json(Bytes::from_static(text)), ..ToolReply::default() };
        let broken = ToolReply { structured: Some("{\n\"a\":".to_owned()), ..ToolReply::text("") };
        let cases = [
            (json(b"\"line\nbreak\""), "line break"),
            (broken, "no JSON"),
            (ToolReply::text("x".repeat(1000)), "at most 512"),
        ];
        for (reply, part) in cases {
            let got = fault(outcome_of(&CallOutcome::Reply(Box::new(reply)), 512));
            assert!(got.code == FaultCode::Internal && got.detail.contains(part), "{got:?}");
        }
    }

    #[test]
    fn a_call_the_pipe_cannot_take_is_not_sent() {
        let sent = call(&format!("{{\"a\":\"{}\"}}", "x".repeat(1000)), ClientInfo::Unknown);
        let mut out = Outbox::default();
        out.tail().put_slice(b"before");
        assert!(execute(&mut out, KEY, "t", &sent, 512).is_err());
        assert_eq!(out.front(), b"before");
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for wrong in [
            "",
            "{}",
            "[]",
            "null",
            "{\"settled\":{}}",
            "{\"settled\":{\"g\":1,\"s\":1,\"c\":1,\"text\":\"x}}",
            "{\"settled\":{\"g\":1,\"s\":1,\"c\":1,\"text\":tru}}",
            "{\"unheard\":{\"g\":1}}",
            "{\"alive\":{\"g\":1,\"n\":1,\"open\":0}} ",
            "{\"alive\":{\"g\":-1,\"n\":1,\"open\":0}}",
            "{\"alive\":{\"g\":1,\"n\":1,\"open\":0},\"alive\":{\"g\":1,\"n\":1,\"open\":0}}",
        ] {
            let read = read_worker(wrong);
            // White space around a message is no harm.
            assert_eq!(read.is_ok(), wrong.ends_with(' '), "{wrong}");
        }
        let no_text = r#"{"settled":{"g":1,"s":1,"c":1,"text":5}}"#;
        let line = Bytes::from_static(no_text.as_bytes());
        let Ok(FromWorker::Settled(read)) = read_worker(text(&line)) else { panic!("it reads") };
        assert!(read.outcome(&line).is_none(), "a text must be a string");
    }

    #[test]
    fn large_texts_come_out_as_they_went_in() {
        let large = format!("\"{}\"", "x".repeat(100_000));
        let sent = call(&format!("{{\"a\":{large}}}"), ClientInfo::Unknown);
        let mut out = Outbox::default();
        execute(&mut out, KEY, "t", &sent, LIMIT).expect("it fits");
        let line = line(out);
        let ToWorker::Execute(read) = read_host(&line).expect("a message") else { panic!("no attempt") };
        assert_eq!(read.arguments, &sent.arguments[..]);
        let text = ReplyText::Json(Bytes::from(large.clone()));
        let sent = ToolReply { text, structured: Some("{}".to_owned()), ..ToolReply::default() };
        let CallOutcome::Reply(got) = outcome_of(&CallOutcome::Reply(Box::new(sent)), LIMIT) else { panic!("a reply") };
        assert!(matches!(&got.text, ReplyText::Json(text) if text == large.as_bytes()));
        assert_eq!(got.structured.as_deref(), Some("{}"));
    }

    /// What is read without the parser is what the parser reads, and what is damaged is left to it.
    #[test]
    fn the_short_way_reads_what_the_parser_reads() {
        let clients = [
            ClientInfo::Unknown,
            ClientInfo::Name("a \"b\"".into()),
            ClientInfo::Raw(Bytes::from_static(b"{\"name\":[1]}")),
        ];
        for client in clients {
            let sent = ToolCall { evidence: None, ..call("{\"a\":1}", client) };
            let mut out = Outbox::default();
            execute(&mut out, KEY, "tool", &sent, LIMIT).expect("it fits");
            let line = line(out);
            let rest = line.strip_prefix(b"{\"execute\":").expect("an attempt");
            let (head, end) = plain_head(rest).expect("as nearly every one");
            let mut heads = serde_json::Deserializer::from_slice(rest).into_iter::<ExecuteHead<'_>>();
            let parsed = heads.next().expect("a head").expect("JSON");
            assert_eq!((format!("{head:?}"), end), (format!("{parsed:?}"), heads.byte_offset()));
        }
        let mut out = Outbox::default();
        settled(&mut out, G, KEY, &CallOutcome::Reply(Box::new(ToolReply::text("é \"x\"\n"))), LIMIT);
        let line = line(out);
        let line = text(&line);
        let parsed: FromWorker<'_> = serde_json::from_str(line).expect("a message");
        let FromWorker::Settled(parsed) = parsed else { panic!("{line}") };
        assert_eq!(format!("{:?}", plain_settled(line).expect("as nearly every one")), format!("{parsed:?}"));
        for cut in (0..line.len()).filter(|cut| line.is_char_boundary(*cut)) {
            assert!(read_worker(&line[..cut]).is_err(), "{cut}");
        }
        for (part, other) in
            [("\"g\":3", "\"g\":03"), ("\"c\":9", "\"c\":99999999999999999999"), ("\\n", "\\q"), ("}}", "}}}")]
        {
            let wrong = line.replacen(part, other, 1);
            assert!(wrong != line && read_worker(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_attempt_that_is_cut_is_refused() {
        let mut out = Outbox::default();
        execute(&mut out, KEY, "t", &call("{\"a\":{}}", ClientInfo::Unknown), LIMIT).expect("it fits");
        let line = line(out);
        assert!(read_host(&line).is_ok());
        for cut in 0..line.len() - 1 {
            // Two braces can be missing before it shows that one is; a host's pipe gives whole lines.
            assert!(read_host(&line[..cut]).is_err() || cut + 2 >= line.len(), "{cut} bytes");
        }
    }

    #[test]
    fn an_answer_that_cannot_be_sent_is_a_fault() {
        let mut out = Outbox::default();
        let jobs = Answer::Jobs { jobs: vec![JobId::random(); 100] };
        answer(out.tail(), G, 4, &Ok(jobs), 1024);
        let line = line(out);
        let Ok(ToWorker::Answer { id: 4, answer: Err(fault), .. }) = read_host(&line) else { panic!("{line:?}") };
        assert!(fault.detail.contains("where 1024 are accepted"), "{fault}");
    }
}
