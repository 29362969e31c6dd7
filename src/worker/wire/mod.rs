//! What a host and its worker process say to each other: one JSON message per line, host → worker on the worker's standard
//! input, worker → host on its standard output.
//!
//! Owns: every byte of these lines, their version, their bound. May not know: processes, actors, what a tool does.
//!
//! ```text
//! host ── hello ─▶ worker        once, first
//! host ◀─ ready ── worker        once, first; within the handshake's bound
//! host ── caller, execute, withdraw, session_over, answer, check ─▶ worker
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

mod read;
mod write;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

pub use self::read::{read_host, read_worker};
pub use self::write::{
    TooLarge, alive, answer, ask, caller, check, execute, hello, panicked, progress, ready, session_over, settled,
    withdraw,
};
use super::asks::{HostAnswer, Question};
use super::settings::CallerSettings;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{CallKey, CallNumber, Generation, HostId, InvocationId, JobId, SessionNumber};
use crate::protocol::session::{CallOutcome, ClientInfo};
use crate::protocol::wire::{ReplyText, ToolReply};
use crate::tools::{Evidence, ToolCall};

/// The version of this protocol. Host and worker are the same program nearly always; when they are not, the handshake
/// says so instead of a misunderstanding later.
pub const PROTOCOL: u32 = 2;

/// Longest line on these pipes, for a host whose clients may send lines of `client` bytes.
///
/// Arguments are at most a client's line. A reply may be its argument once more as text, in which each quote and each
/// backslash takes two bytes; names and numbers around either fit in the rest.
#[must_use]
pub const fn line_limit(client: usize) -> usize {
    client.saturating_mul(2).saturating_add(64 * 1024)
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
    /// The calls of this session that follow are in a context of its own.
    Caller {
        /// The generation.
        g: Generation,
        /// The session.
        s: SessionNumber,
        /// What tools need to know of it.
        caller: Box<CallerSettings>,
    },
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
        answer: Result<HostAnswer, Fault>,
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
    Settled(SettledAttempt<'a>),
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
        tool: String,
    },
}

/// How an attempt came out: a reply or a fault.
#[derive(Debug, Deserialize)]
pub struct SettledAttempt<'a> {
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
    /// It tells how these jobs ended.
    #[serde(default)]
    pub ends: Vec<JobId>,
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

impl SettledAttempt<'_> {
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
            ends: self.ends,
            path_hint: self.path,
        })))
    }
}

impl Execute<'_> {
    /// The call; its arguments are a slice of `line`, which this was read from.
    #[must_use]
    pub fn call(&self, host: HostId, line: &Bytes, progress: crate::tools::progress::ProgressSink) -> ToolCall {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::progress::ProgressSink;
    use crate::worker::outbox::Outbox;

    pub(super) const KEY: CallKey = CallKey { session: SessionNumber(2), call: CallNumber(9) };
    pub(super) const G: Generation = Generation(3);
    pub(super) const LIMIT: usize = 1 << 20;

    pub(super) fn call(arguments: &str, client: ClientInfo) -> ToolCall {
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
    pub(super) fn line(mut out: Outbox) -> Bytes {
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

    pub(super) fn text(line: &Bytes) -> &str {
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

    pub(super) fn outcome_of(sent: &CallOutcome, limit: usize) -> CallOutcome {
        let mut out = Outbox::default();
        settled(&mut out, G, KEY, sent, limit);
        let line = line(out);
        let FromWorker::Settled(read) = read_worker(text(&line)).expect("a message") else { panic!("{line:?}") };
        assert_eq!((read.g, read.s, read.c), (G, KEY.session, KEY.call.0));
        read.outcome(&line).expect("an outcome")
    }

    pub(super) fn fault(outcome: CallOutcome) -> Fault {
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
            ends: vec![JobId::random(), job],
            path_hint: Some("/a b".to_owned()),
        };
        let ends = sent.ends.clone();
        let CallOutcome::Reply(got) = outcome_of(&CallOutcome::Reply(Box::new(sent)), LIMIT) else { panic!("a reply") };
        let ReplyText::Json(text) = &got.text else { panic!("{got:?}") };
        assert_eq!(&text[..], "\"é \\\"quoted\\\"\\n\"".as_bytes());
        assert_eq!(got.structured.as_deref(), Some("{\"a\":1}"), "one line, whatever the tool wrote");
        assert!(got.tells_end && got.ends == ends);
        assert_eq!((got.fault, got.job, got.path_hint.as_deref()), (Some(FaultCode::Busy), Some(job), Some("/a b")));
    }

    #[test]
    fn a_fault_comes_out_as_it_went_in() {
        let sent = Fault::new(FaultCode::RequestKeyConflict, "x.").hint("y").job(JobId::random());
        assert_eq!(fault(outcome_of(&CallOutcome::Fault(Box::new(sent.clone())), LIMIT)), sent);
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
}
