//! Bytes of any kind, given to what reads them first: the laws a fuzzer holds the frame reader and the session to.
//!
//! Owns: the reading of a fuzzer's bytes as what happens to a session, and an account of its answers that shares no code
//! with the session. May not know: where the bytes come from; a fuzzer that learns and a test with fixed seeds use the
//! same functions.
//!
//! What a session is given is what a client would write, so that a corpus is text that can be read. Control characters,
//! which JSON never has, say what else happens; see [`session`].

#![expect(clippy::panic, reason = "a law that is broken is a panic, which is what fuzzers look for")]

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{CallNumber, JobId, UnixMillis};
use crate::base::lenient;
use crate::protocol::catalog::{Catalog, TaskSupport};
use crate::protocol::frame::{Frame, FrameReader};
use crate::protocol::session::{CallOutcome, SessionCore, SessionEffect, SessionEffects, SessionLimits, Wanted};
use crate::protocol::tasks::{TaskAnswer, TaskAsk, TaskNews, TaskStatus, TaskView};
use crate::protocol::wire::{Identity, LINE_MOST, ToolReply};

mod exec;

pub use self::exec::exec_server;

/// Longest line the sessions here take: small, so that longer ones are met.
const LINE: usize = 4096;

/// Calls and bytes in flight, as small.
const LIMITS: SessionLimits =
    SessionLimits { calls: 6, call_bytes: 2048, parse_errors_per_second: 5, batch: 8, structured: |_| true };

/// Most jobs that are told apart.
const JOBS: usize = 8;

/// Splits bytes into lines, in pieces that the first byte chooses the size of, and compares with how they would be split
/// in one go.
///
/// # Panics
///
/// When the lines differ, or more is kept of a line than its limit.
pub fn frames(data: &[u8]) {
    const LIMIT: usize = 64;
    let Some((first, data)) = data.split_first() else { return };
    let piece = usize::from(first % 16) + 1;
    let mut reader = FrameReader::new(LIMIT);
    let mut seen = Vec::new();
    for part in data.chunks(piece) {
        reader.extend(part);
        seen.extend(std::iter::from_fn(|| reader.next_frame()));
        assert!(reader.space().len() <= LIMIT + 1, "more is kept of a line than it may have");
    }
    seen.extend(reader.finish());
    let mut wanted = Vec::new();
    let mut lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    if lines.last().is_some_and(|last| last.is_empty()) {
        lines.pop();
    }
    for line in lines {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > LIMIT {
            wanted.push(None);
        } else if !line.iter().all(u8::is_ascii_whitespace) {
            wanted.push(Some(line));
        }
    }
    let mut told = seen.iter().map(|frame| match frame {
        Frame::Line(line) => Some(line.as_ref()),
        Frame::TooLong { .. } => None,
    });
    for (at, line) in wanted.iter().enumerate() {
        let seen = told.next().unwrap_or_else(|| panic!("line {at} is missing: {line:?}"));
        assert_eq!(seen, *line, "line {at}");
    }
    assert_eq!(told.next(), None, "more lines than there are");
}

/// Gives a session what a client writes, and what happens beside it:
///
/// | byte | what happens |
/// | --- | --- |
/// | 1 | the oldest call or question is answered |
/// | 2 | the newest one fails |
/// | 3 | the oldest call makes progress |
/// | 4 | the oldest call names a job; a question gets an answer that is none to it |
/// | 5 | the tools change |
/// | 6 | there is news of a task that is followed |
/// | 7 | what was written so far arrives |
/// | 8 | a third of a second passes |
/// | 14 | reading the next line is broken off, as by a panic |
///
/// At the end everything that is open is answered, and the client hangs up.
///
/// # Panics
///
/// When a line that is written is not one whole JSON text, an id gets more answers than it was sent in requests, a request
/// that reads well gets none, something is open at the end, or a bound is broken.
pub fn session(data: &[u8]) {
    let mut world = World::new();
    let mut written = Vec::new();
    for byte in data {
        if !matches!(byte, 1..=8 | 14) {
            written.push(*byte);
            continue;
        }
        world.arrives(&written);
        written.clear();
        world.happens(*byte);
    }
    world.arrives(&written);
    world.ends();
}

/// Something the session waits for.
#[derive(Debug)]
enum Open {
    Call(CallNumber),
    Ask(CallNumber, TaskAsk),
}

struct World {
    reader: FrameReader,
    core: SessionCore,
    now: Instant,
    open: VecDeque<Open>,
    followed: VecDeque<(CallNumber, JobId, Wanted)>,
    broken_off: bool,
    happened: usize,
    account: Account,
}

impl World {
    fn new() -> Self {
        let catalog = Catalog::of_echo_and_look(TaskSupport::Optional);
        let identity = Identity::new("phone-opus", "0", "Ask.");
        Self {
            reader: FrameReader::new(LINE),
            core: SessionCore::new(Arc::new(catalog), Arc::new(identity), LIMITS),
            now: Instant::now(),
            open: VecDeque::new(),
            followed: VecDeque::new(),
            broken_off: false,
            happened: 0,
            account: Account::default(),
        }
    }

    fn arrives(&mut self, bytes: &[u8]) {
        self.reader.extend(bytes);
        while let Some(frame) = self.reader.next_frame() {
            self.frame(&frame);
        }
        assert!(self.reader.space().len() <= LINE + 1, "more is kept of a line than it may have");
    }

    fn frame(&mut self, frame: &Frame) {
        self.account.asked(frame, self.broken_off);
        if std::mem::take(&mut self.broken_off) {
            self.act(|core, _, out, _| core.abandon(frame, out));
        } else {
            self.act(|core, now, out, effects| {
                let _was = core.on_frame(frame, now, out, effects);
            });
        }
    }

    fn happens(&mut self, what: u8) {
        self.happened += 1;
        match what {
            1 => self.answer_oldest(false),
            2 => match self.open.pop_back() {
                Some(Open::Call(number)) => self.settle(number, CallOutcome::Fault(fault())),
                Some(Open::Ask(number, _)) => self.tell(number, Err(fault())),
                None => {}
            },
            3 => {
                let value = self.happened as f64;
                let call = self.open.iter().find_map(|open| match open {
                    Open::Call(number) => Some(*number),
                    Open::Ask(..) => None,
                });
                if let Some(number) = call {
                    self.act(|core, _, out, _| core.on_progress(number, value, Some("on it \u{1f4de}"), out));
                }
            }
            4 => self.answer_oldest(true),
            5 => self.act(|core, _, out, _| core.on_tools_changed(out)),
            6 => self.news(),
            8 => self.now += Duration::from_millis(333),
            14 => self.broken_off = true,
            _ => {}
        }
    }

    fn answer_oldest(&mut self, otherwise: bool) {
        match self.open.pop_front() {
            Some(Open::Call(number)) => {
                let mut reply = ToolReply::text("done: \"\\\u{0}\u{7f}\u{2028}\u{1f4de}");
                reply.job = otherwise.then(|| job(self.happened));
                self.settle(number, CallOutcome::Reply(Box::new(reply)));
            }
            Some(Open::Ask(number, _)) if otherwise => self.tell(number, Ok(TaskAnswer::Done)),
            Some(Open::Ask(number, ask)) => {
                let status = [TaskStatus::Working, TaskStatus::Completed][self.happened % 2];
                let answer = match ask {
                    TaskAsk::Look(job) | TaskAsk::Cancel(job) => TaskAnswer::Task(Box::new(task(job, status, false))),
                    TaskAsk::Read(job) => TaskAnswer::Task(Box::new(task(job, status, status.is_final()))),
                    TaskAsk::Wait(job) => TaskAnswer::Task(Box::new(task(job, TaskStatus::Completed, true))),
                    TaskAsk::List(_) => TaskAnswer::Page(vec![task(job(1), status, false)], None),
                    TaskAsk::RequestCancel(_) | TaskAsk::Update(_) => TaskAnswer::Done,
                    TaskAsk::Which(jobs) => TaskAnswer::Known(jobs),
                };
                self.tell(number, Ok(answer));
            }
            None => {}
        }
    }

    fn news(&mut self) {
        let Some((number, job, wanted)) = self.followed.pop_front() else { return };
        let news = match (self.happened % 4, wanted) {
            (0, _) => TaskNews::Lost(job),
            (1, _) => TaskNews::Changed(Box::new(task(job, TaskStatus::Completed, true))),
            (_, Wanted::Status | Wanted::End) => TaskNews::Changed(Box::new(task(job, TaskStatus::Working, false))),
            (_, Wanted::Progress) => TaskNews::Progress { value: self.happened as f64, message: "on it".into() },
        };
        if self.happened % 4 > 1 {
            self.followed.push_back((number, job, wanted));
        }
        self.act(|core, _, out, effects| core.on_task(number, &news, out, effects));
    }

    fn settle(&mut self, number: CallNumber, outcome: CallOutcome) {
        self.act(|core, now, out, effects| core.on_settled(number, outcome, now, out, effects));
    }

    fn tell(&mut self, number: CallNumber, answer: Result<TaskAnswer, Box<Fault>>) {
        self.act(|core, now, out, effects| core.on_told(number, answer, now, out, effects));
    }

    /// One step of the session, and what follows from it.
    fn act(&mut self, step: impl FnOnce(&mut SessionCore, Instant, &mut BytesMut, &mut SessionEffects)) {
        let (mut out, mut effects) = (BytesMut::new(), SessionEffects::new());
        step(&mut self.core, self.now, &mut out, &mut effects);
        for effect in effects {
            match effect {
                SessionEffect::Invoke(call) => self.open.push_back(Open::Call(call.number)),
                SessionEffect::Ask { number, ask, .. } => self.open.push_back(Open::Ask(number, ask)),
                SessionEffect::Follow { number, jobs, news, .. } => {
                    self.followed.extend(jobs.into_iter().take(JOBS).map(|job| (number, job, news)));
                }
                SessionEffect::Unfollow(number) => self.followed.retain(|(follows, ..)| *follows != number),
                // What was withdrawn may come out all the same.
                SessionEffect::Withdraw(_)
                | SessionEffect::GaveUp { .. }
                | SessionEffect::Waited { .. }
                | SessionEffect::Roots(_)
                | SessionEffect::Finished(_) => {}
            }
        }
        self.account.answered(&out);
        if let Err(broken) = self.core.invariant_calls_are_consistent_and_bounded() {
            panic!("{broken}");
        }
    }

    fn ends(mut self) {
        if let Some(frame) = self.reader.finish() {
            self.frame(&frame);
        }
        while !self.open.is_empty() {
            self.answer_oldest(false);
        }
        assert_eq!(self.core.in_flight(), 0, "what nobody works on is open");
        self.account.is_complete();
        self.act(|core, now, _, effects| core.on_closed(now, effects));
        assert_eq!(self.core.in_flight(), 0, "something is open after the end");
    }
}

fn job(number: usize) -> JobId {
    let id = format!("00000000-0000-4000-8000-{:012x}", number % JOBS);
    id.parse().unwrap_or_else(|_| panic!("{id} is a job's id"))
}

fn task(job: JobId, status: TaskStatus, with_result: bool) -> TaskView {
    let result = with_result.then(|| ToolReply::text("done"));
    TaskView { job, status, message: "so so".into(), created: UnixMillis(1), updated: UnixMillis(2), result }
}

fn fault() -> Box<Fault> {
    Box::new(Fault::new(FaultCode::Internal, "it failed."))
}

/// What was asked and what was answered, read by other code than the session's.
#[derive(Debug, Default)]
struct Account {
    /// For each id, how many answers it may get.
    allowed: HashMap<String, usize>,
    /// Lines in which an id could not be found with certainty: it may be anything they have in them.
    unclear: Vec<String>,
    answers: HashMap<String, usize>,
    /// Ids of requests that read well, and have to be answered.
    due: HashMap<String, usize>,
    /// A request may have been withdrawn, or have been lost with the line it was in.
    forgiving: bool,
    lines: usize,
}

/// The members of a message this account looks at, as they were written; of a repeated one the last.
#[derive(Debug, Default)]
struct Message<'a> {
    id: Option<&'a RawValue>,
    method: Option<&'a RawValue>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Message<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Message<'de>;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
                let mut message = Message::default();
                while let Some((name, value)) = members.next_entry::<Cow<'de, str>, &RawValue>()? {
                    match name.as_ref() {
                        "id" => message.id = Some(value),
                        "method" => message.method = Some(value),
                        _ => {}
                    }
                }
                Ok(message)
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// A message of ours.
#[derive(Debug, serde::Deserialize)]
struct Answer<'a> {
    jsonrpc: &'a str,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
}

impl Account {
    fn asked(&mut self, frame: &Frame, broken_off: bool) {
        self.lines += 1;
        let line: &Bytes = match frame {
            Frame::Line(line) => line,
            Frame::TooLong { head } => {
                self.unclear.push(lenient::text(head).into_owned());
                return;
            }
        };
        let text = lenient::text(line);
        self.forgiving |= broken_off || text.contains("cancel") || text.contains("\\u");
        let read = if text.trim_start().starts_with('[') {
            self.forgiving = true;
            serde_json::from_str::<Vec<&RawValue>>(&text).map(|members| {
                // What is no object has no id.
                members.iter().filter_map(|member| serde_json::from_str(member.get()).ok()).collect()
            })
        } else {
            serde_json::from_str::<Message<'_>>(&text).map(|message| vec![message])
        };
        let messages: Vec<Message<'_>> = match read {
            Ok(messages) => messages,
            // It may have an id that only its own reader finds, such as one with half a character in a name.
            Err(_) => return self.unclear.push(text.into_owned()),
        };
        for message in &messages {
            let Some(id) = message.id.map(|id| id.get().to_owned()) else { continue };
            *self.allowed.entry(id.clone()).or_default() += 1;
            let method = message.method.and_then(|method| serde_json::from_str::<String>(method.get()).ok());
            let plain = id.parse::<i64>().is_ok() || id.starts_with('"');
            // A subscription is answered when it ends; an id that is too long is none.
            if plain && id.len() < 200 && method.is_some_and(|method| method != "subscriptions/listen") {
                *self.due.entry(id).or_default() += 1;
            }
        }
        if text.contains("\\u") {
            self.unclear.push(text.into_owned());
        }
    }

    fn answered(&mut self, out: &[u8]) {
        if out.is_empty() {
            return;
        }
        assert_eq!(out.last(), Some(&b'\n'), "a line is not whole");
        for line in out[..out.len() - 1].split(|byte| *byte == b'\n') {
            assert!(line.len() <= LINE_MOST, "a line is too long");
            let shown = String::from_utf8_lossy(line);
            let answers: Result<Vec<Answer<'_>>, _> = match line.first() {
                Some(b'[') => serde_json::from_slice(line),
                _ => serde_json::from_slice(line).map(|answer| vec![answer]),
            };
            let answers = answers.unwrap_or_else(|error| panic!("a line is no message: {error}: {shown}"));
            for answer in answers {
                self.answer(&answer, &shown);
            }
        }
    }

    fn answer(&mut self, answer: &Answer<'_>, shown: &str) {
        assert_eq!(answer.jsonrpc, "2.0", "{shown}");
        if answer.method.is_some_and(|method| method.get() == "\"roots/list\"") {
            // The one thing we ask a client, with an id of our own.
            assert!(answer.id.is_some() && answer.result.is_none() && answer.error.is_none(), "{shown}");
            return;
        }
        if answer.method.is_some() {
            assert!(answer.id.is_none() && answer.result.is_none() && answer.error.is_none(), "{shown}");
            return;
        }
        assert!(answer.result.is_some() != answer.error.is_some(), "{shown}");
        let Some(id) = answer.id else {
            assert!(answer.error.is_some(), "a result for nobody: {shown}");
            return;
        };
        let id = id.get();
        let answers = self.answers.entry(id.to_owned()).or_default();
        *answers += 1;
        let anywhere: usize = self.unclear.iter().map(|line| line.matches(id).count()).sum();
        let allowed = self.allowed.get(id).copied().unwrap_or(0) + anywhere;
        assert!(*answers <= allowed, "{answers} answers for {allowed} requests of id {id}: {shown}");
    }

    /// Every request that reads well was answered, unless something may have been withdrawn.
    fn is_complete(&self) {
        if self.forgiving {
            return;
        }
        for (id, due) in &self.due {
            let answers = self.answers.get(id).copied().unwrap_or(0);
            assert!(answers >= *due, "{answers} answers for {due} requests of id {id}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: &[u8] = br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    const PONG: &[u8] = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n";

    fn asked(line: &'static [u8]) -> Account {
        let mut account = Account::default();
        account.asked(&Frame::Line(Bytes::from_static(line)), false);
        account
    }

    #[test]
    fn one_answer_to_one_request_is_as_it_should_be() {
        let mut account = asked(PING);
        account.answered(PONG);
        account.is_complete();
    }

    #[test]
    #[should_panic(expected = "2 answers for 1 requests")]
    fn a_second_answer_is_noticed() {
        let mut account = asked(PING);
        account.answered(PONG);
        account.answered(PONG);
    }

    #[test]
    #[should_panic(expected = "0 answers for 1 requests")]
    fn a_missing_answer_is_noticed() {
        asked(PING).is_complete();
    }

    #[test]
    #[should_panic(expected = "1 answers for 0 requests")]
    fn an_answer_under_another_id_is_noticed() {
        asked(br#"{"jsonrpc":"2.0","id":"1","method":"ping"}"#).answered(PONG);
    }

    #[test]
    #[should_panic(expected = "a line is no message")]
    fn half_a_line_is_noticed() {
        asked(PING).answered(b"{\"jsonrpc\":\"2.0\",\"id\":1,\n\"result\":{}}\n");
    }
}
