//! Writing the lines of host and worker.
//!
//! Owns: every byte of them, and what becomes of what cannot be sent. May not know: who writes, and when it is sent.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;

use super::super::asks::{HostAnswer, Question};
use super::super::outbox::Outbox;
use super::super::settings::{CallerSettings, WorkerSettings};
use super::PROTOCOL;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{CallKey, Generation, SessionNumber};
use crate::protocol::session::{CallOutcome, ClientInfo};
use crate::protocol::wire::{ReplyText, ToolReply};
use crate::tools::ToolCall;

/// A message is larger than the pipe takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("send a message of {bytes} bytes where {limit} are accepted")]
pub struct TooLarge {
    /// Its size.
    pub bytes: usize,
    /// The bound.
    pub limit: usize,
}

fn json(out: &mut BytesMut, value: &(impl Serialize + ?Sized)) {
    // For values of ours whose serialiser cannot fail: strings, numbers, faults.
    let written: Result<(), serde_json::Error> = serde_json::to_writer(out.writer(), value);
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
pub fn hello(out: &mut BytesMut, generation: Generation, settings: &WorkerSettings) -> Result<(), serde_json::Error> {
    let settings = serde_json::to_string(settings)?;
    number(out, "{\"hello\":{\"protocol\":", u64::from(PROTOCOL));
    number(out, ",\"g\":", generation.0);
    out.put_slice(b",\"settings\":");
    out.put_slice(settings.as_bytes());
    out.put_slice(b"}}\n");
    Ok(())
}

/// `caller`.
pub fn caller(out: &mut BytesMut, generation: Generation, session: SessionNumber, caller: &CallerSettings) {
    number(out, "{\"caller\":{\"g\":", generation.0);
    number(out, ",\"s\":", session.0);
    out.put_slice(b",\"caller\":");
    // Its paths are text, which is seen to where it is made.
    json(out, caller);
    out.put_slice(b"}}\n");
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

pub fn withdraw(out: &mut BytesMut, generation: Generation, key: CallKey) {
    keyed(out, "{\"withdraw\":", generation, key);
    out.put_slice(b"}}\n");
}

pub fn session_over(out: &mut BytesMut, generation: Generation, session: SessionNumber) {
    number(out, "{\"session_over\":{\"g\":", generation.0);
    number(out, ",\"s\":", session.0);
    out.put_slice(b"}}\n");
}

pub fn check(out: &mut BytesMut, generation: Generation, n: u64) {
    number(out, "{\"check\":{\"g\":", generation.0);
    number(out, ",\"n\":", n);
    out.put_slice(b"}}\n");
}

/// `answer`; one that cannot be written or is too large becomes a fault.
pub fn answer(out: &mut BytesMut, generation: Generation, id: u64, answer: &Result<HostAnswer, Fault>, limit: usize) {
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
    let answer: Result<HostAnswer, Fault> = Err(fault);
    serde_json::to_string(&answer).unwrap_or_else(|_| "null".to_owned())
}

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
    if !reply.ends.is_empty() {
        to.put_slice(b",\"ends\":");
        json(to, &reply.ends);
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

pub fn alive(out: &mut BytesMut, generation: Generation, n: u64, open: usize) {
    number(out, "{\"alive\":{\"g\":", generation.0);
    number(out, ",\"n\":", n);
    number(out, ",\"open\":", open as u64);
    out.put_slice(b"}}\n");
}

pub fn panicked(out: &mut BytesMut, generation: Generation, tool: &str) {
    number(out, "{\"panicked\":{\"g\":", generation.0);
    out.put_slice(b",\"tool\":");
    json(out, tool);
    out.put_slice(b"}}\n");
}

#[cfg(test)]
mod tests {
    use super::super::tests::{G, KEY, LIMIT, call, fault, line, outcome_of};
    use super::super::{ToWorker, read_host};
    use super::*;
    use crate::base::ids::JobId;
    use crate::tools::callers::{CallerContext, CallerOrigin};

    #[test]
    fn a_callers_context_comes_without_its_environment() {
        let odd = std::os::unix::ffi::OsStringExt::from_vec(b"/w/\xff".to_vec());
        let odd: std::ffi::OsString = odd;
        let context = CallerContext {
            cwd: Some("/w".into()),
            environment: [("HOME", "/home/me"), ("CANARY", "s3cr3t")].into_iter().collect(),
            config: std::sync::Arc::new(crate::config::Config {
                claude_bin: Some(odd.into()),
                workspaces: vec!["/x".into()],
                max_queued: 7,
                ..crate::config::Config::default()
            }),
            nesting: (None, 1),
            key_withheld: true,
            origin: CallerOrigin::Caller,
        };
        let mut out = Outbox::default();
        caller(out.tail(), G, KEY.session, &CallerSettings::from(&context));
        let line = line(out);
        assert!(!line.windows(6).any(|part| part == b"s3cr3t"), "{line:?}");
        let Ok(ToWorker::Caller { g: G, s, caller }) = read_host(&line) else { panic!("{line:?}") };
        let told = CallerContext::from(*caller);
        assert_eq!((s, told.cwd.as_deref(), told.home()), (KEY.session, context.cwd.as_deref(), context.home()));
        assert_eq!((told.nesting, told.origin, told.config.max_queued), (context.nesting, context.origin, 7));
    }

    #[test]
    fn a_client_that_was_cut_is_left_out() {
        let sent = call("{}", ClientInfo::Raw(Bytes::from_static(b"{\"name\":\"a")));
        let mut out = Outbox::default();
        execute(&mut out, KEY, "t", &sent, LIMIT).expect("it fits");
        let line = line(out);
        assert!(read_host(&line).is_ok(), "{line:?}");
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
    fn an_answer_that_cannot_be_sent_is_a_fault() {
        let mut out = Outbox::default();
        let jobs = HostAnswer::Jobs { jobs: vec![JobId::random(); 100] };
        answer(out.tail(), G, 4, &Ok(jobs), 1024);
        let line = line(out);
        let Ok(ToWorker::Answer { id: 4, answer: Err(fault), .. }) = read_host(&line) else { panic!("{line:?}") };
        assert!(fault.detail.contains("where 1024 are accepted"), "{fault}");
    }
}
