//! What each line of whoever serves is: an answer for the client, news for it, a question, or something between the two of us.
//!
//! Owns: which answer belongs to whom, what the client is spared of a change of daemons. May not know: what is asked.
//!
//! Invariants: (1) what is passed on leaves as it came, but for the id of a question and of an answer that was written another
//! way; (2) an answer to what nobody asked, or withdrew, is dropped; (3) a subscription ends only by its client's will, or with
//! an error before it stood.

use std::time::Instant;

use bytes::{BufMut as _, BytesMut};

use super::calls::{Again, Kind};
use super::{BridgeCore, BridgeEffect, LinkNumber, Lists, OwnRequest, QUESTIONS, Question, SearchEvent};
use crate::base::fault::FaultCode;
use crate::base::lenient;
use crate::bridge::line;
use crate::daemon::control::{self, DaemonAnswer};
use crate::protocol::envelope::{self, IdToken, Incoming};
use crate::protocol::frame::Frame;
use crate::protocol::wire;

/// What begins the id of a question of a daemon, as the client is asked it.
const ASKED: &str = "phone-opus-bridge-";

impl BridgeCore {
    pub(super) fn on_line(
        &mut self,
        link: LinkNumber,
        frame: &Frame,
        now: Instant,
        out: &mut BytesMut,
        effects: &mut Vec<BridgeEffect>,
    ) {
        let Frame::Line(bytes) = frame else {
            return effects.push(BridgeEffect::Note("a line was too long and was dropped.".to_owned()));
        };
        let text = lenient::text(bytes);
        if self.link == Some(link) && self.search.is_opening() {
            return self.on_said(&text, now, out, effects);
        }
        match envelope::read(&text) {
            Incoming::Response { id: Some(id), result } => {
                let answer = Answer { link, id: &id, result, text: &text };
                self.on_response(&answer, now, out, effects);
            }
            Incoming::Request { id, .. } => self.on_question(link, id, &text, out),
            Incoming::Notification { method, params } => self.on_news(&method, params, &text, out),
            // The last that is heard of a daemon that somebody stops, but for answers.
            Incoming::Invalid { .. } if self.link == Some(link) && control::says_stopped(text.as_bytes()) => {
                self.on_leaving(SearchEvent::Stopped, now, out, effects);
            }
            // A control message's answer; an error that belongs to no request of the client.
            Incoming::Response { id: None, .. }
            | Incoming::Batch(_)
            | Incoming::Invalid { .. }
            | Incoming::Unparsable => {}
        }
    }

    /// Before the session is open only control messages are spoken.
    fn on_said(&mut self, text: &str, now: Instant, out: &mut BytesMut, effects: &mut Vec<BridgeEffect>) {
        let event = match DaemonAnswer::read(text.as_bytes()) {
            Some(DaemonAnswer::SessionOpened(opened)) => {
                self.catalog = read_digest(&opened.catalog);
                if !opened.settings_ignored.is_empty() {
                    let names = opened.settings_ignored.join(", ");
                    effects.push(BridgeEffect::Note(format!("the daemon has these settings otherwise: {names}.")));
                }
                SearchEvent::Opened(Some(opened.build))
            }
            Some(DaemonAnswer::Hello { build, .. }) => SearchEvent::Named(Some(build)),
            Some(DaemonAnswer::Error { message, .. }) => SearchEvent::Refused(message),
            Some(DaemonAnswer::Restarting) if control::says_stopped(text.as_bytes()) => SearchEvent::Stopped,
            Some(DaemonAnswer::Restarting) => SearchEvent::Restarting,
            Some(DaemonAnswer::Status(_) | DaemonAnswer::Dashboard { .. } | DaemonAnswer::Ok { .. }) | None => return,
        };
        self.look(event, now, out, effects);
    }

    fn on_response(&mut self, answer: &Answer<'_>, now: Instant, out: &mut BytesMut, effects: &mut Vec<BridgeEffect>) {
        let Answer { link, id, result, text } = *answer;
        if self.own.get(id).is_some_and(|(to, _)| *to == link)
            && let Some((_, request)) = self.own.remove(id)
        {
            return self.on_own(request, result, effects);
        }
        if self.barred.get(id).is_some_and(|barred| barred.link == link) {
            return;
        }
        let number = self.calls.number(id).filter(|number| self.calls.sent_to(*number) == Some(link));
        let Some((number, kind)) = number.and_then(|number| Some((number, self.calls.get_mut(number)?.kind.clone())))
        else {
            return;
        };
        if kind.is_stream() && result.is_some() {
            // Whoever serves goes away for good, and says so. The next one is asked for the same.
            return;
        }
        let ends = kind != Kind::Call(Again::No) && self.ending.is_none() && says_that_it_ends(result, text);
        if ends && self.calls.again(number).is_none() {
            // What it refuses because it ends, its successor takes.
            if self.link == Some(link) {
                self.on_leaving(SearchEvent::Ended, now, out, effects);
            }
            return;
        }
        let Some(held) = self.calls.take(number) else { return };
        if self.link == Some(link) {
            self.search.answered();
        }
        if kind == Kind::List && result.is_some() {
            self.told = Some(self.catalog);
        }
        let mut answer = BytesMut::from(&line::with_id(text, held.id.as_str())[..]);
        answer.put_slice(b"\n");
        self.deliver(&held, &answer, out);
    }

    /// An answer to what the bridge asked itself.
    fn on_own(&mut self, request: OwnRequest, result: Option<&str>, effects: &mut Vec<BridgeEffect>) {
        match request {
            OwnRequest::Barrier(barrier) => self.barred.retain(|_, barred| barred.barrier != barrier),
            OwnRequest::Greeting => {
                let agreed = self.negotiated().map(|version| format!("\"{}\"", version.as_str()));
                let said = result.and_then(|result| envelope::object(result, ["protocolVersion"]).ok());
                if said.and_then(|[version]| version) != agreed.as_deref() {
                    effects.push(BridgeEffect::Note("the daemon speaks another version than the client.".to_owned()));
                }
            }
        }
    }

    /// A question for the client. It goes out under an id of ours: the next daemon asks under the same ids.
    fn on_question(&mut self, link: LinkNumber, id: IdToken, text: &str, out: &mut BytesMut) {
        let number = self.next_question;
        self.next_question += 1;
        if self.questions.len() >= QUESTIONS {
            self.questions.pop_first();
        }
        self.questions.insert(number, Question { link, id });
        out.put_slice(&line::with_id(text, &format!("\"{ASKED}{number}\"")));
        out.put_slice(b"\n");
    }

    /// Which question an answer belongs to.
    pub(super) fn question_of(&self, id: &IdToken) -> Option<u64> {
        let number = envelope::string(id.as_str())?.strip_prefix(ASKED)?.parse().ok()?;
        self.questions.contains_key(&number).then_some(number)
    }

    fn on_news(&mut self, method: &str, params: Option<&str>, text: &str, out: &mut BytesMut) {
        match method {
            "notifications/progress" if !self.rises(params) => return,
            "notifications/subscriptions/acknowledged" => return self.on_acknowledged(params, text, out),
            "notifications/cancelled" => {
                // It ends a subscription that cannot be kept; the client listens again.
                let id = params.and_then(|params| envelope::object(params, ["requestId"]).ok());
                let number = id.and_then(|[id]| self.calls.number(&IdToken::from_json(id?)?));
                if let Some(number) = number {
                    self.calls.take(number);
                }
            }
            "notifications/tools/list_changed" => {
                self.lists = Lists::There;
                self.catalog = UNKNOWN;
            }
            _ => {}
        }
        out.put_slice(text.as_bytes());
        out.put_slice(b"\n");
    }

    /// Whether a progress is further than the last one that was told: a call that was sent again begins anew.
    fn rises(&mut self, params: Option<&str>) -> bool {
        let members = params.and_then(|params| envelope::object(params, ["progressToken", "progress"]).ok());
        let Some([Some(token), Some(value)]) = members else { return true };
        let Ok(value) = value.parse::<f64>() else { return true };
        match self.calls.told_under(token) {
            // That of a task, which outlives its call.
            None => true,
            Some(last) if value > *last => {
                *last = value;
                true
            }
            Some(_) => false,
        }
    }

    /// A subscription stands. Its client is told so once, however often it was asked for again.
    fn on_acknowledged(&mut self, params: Option<&str>, text: &str, out: &mut BytesMut) {
        let meta = params.and_then(|params| envelope::object(params, ["_meta"]).ok()).and_then(|[meta]| meta);
        let id = meta.and_then(|meta| envelope::object(meta, ["io.modelcontextprotocol/subscriptionId"]).ok());
        let number = id.and_then(|[id]| self.calls.number(&IdToken::from_json(id?)?));
        let Some(held) = number.and_then(|number| self.calls.get_mut(number)) else { return };
        let id = held.id.clone();
        let Kind::Listen { tools, acknowledged } = &mut held.kind else { return };
        if std::mem::replace(acknowledged, true) {
            return;
        }
        let tools = *tools;
        out.put_slice(text.as_bytes());
        out.put_slice(b"\n");
        // It may have been asked for before it was known that the tools differ.
        if tools && self.lists == Lists::There {
            wire::tools_changed(out, Some(&id));
        }
    }
}

/// An answer of whoever serves.
#[derive(Clone, Copy)]
struct Answer<'a> {
    link: LinkNumber,
    id: &'a IdToken,
    result: Option<&'a str>,
    text: &'a str,
}

/// Whether an answer says that the request was not served because its server ends.
fn says_that_it_ends(result: Option<&str>, text: &str) -> bool {
    let stopping = FaultCode::Stopping.as_str();
    match result {
        Some(result) => {
            let Ok([Some("true"), Some(content)]) = envelope::object(result, ["isError", "content"]) else {
                return false;
            };
            let Some(block) = content.trim_start().strip_prefix('[') else { return false };
            let Ok([Some(said)]) = envelope::object(block, ["text"]) else { return false };
            said.strip_prefix('"')
                .and_then(|said| said.strip_prefix(stopping))
                .is_some_and(|rest| rest.starts_with(": "))
        }
        None => {
            let data =
                envelope::object(text, ["error"]).ok().and_then(|[error]| envelope::object(error?, ["data"]).ok());
            let code = data.and_then(|[data]| envelope::object(data?, ["code"]).ok());
            code.and_then(|[code]| envelope::string(code?)).is_some_and(|code| code == stopping)
        }
    }
}

/// The digest of tools nobody knows: like no other.
const UNKNOWN: u64 = 0;

/// A digest as it is written: sixteen hexadecimal digits.
fn read_digest(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap_or(UNKNOWN)
}
