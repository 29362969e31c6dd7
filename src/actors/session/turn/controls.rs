//! What a session is told beside JSON-RPC, on a connection where that is understood.
//!
//! Owns: which control messages are handed on, in which order their answers are written, that a session is opened once and
//! before its first call. May not know: what a control message says, who answers it.
//!
//! ```text
//!  line without `jsonrpc` ──known──▶ Control ──answered, or its token dropped──▶ its line, behind those asked for before
//!        └──unknown──▶ -32600                └── session_open: no line is looked at until then
//! ```
//!
//! Invariants: (1) each control message gets exactly one line; (2) no more than [`WAITING`] wait for an answer: one more is
//! refused at once; (3) JSON-RPC lines never come here.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::{Outgoing, SessionTurn, TurnEffect, TurnEffects};
use crate::daemon::control::{self, ControlMessage, ControlRefusal};

/// Control messages of one connection that may wait for an answer. A bridge has one at a time, and a person one.
const WAITING: usize = 16;

/// Whether a session was opened by the caller it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Opened {
    #[default]
    No,
    /// By the control message of this number, which is not answered yet.
    Asked(u64),
    Yes,
}

/// One that was handed on.
#[derive(Debug)]
struct Asked {
    number: u64,
    kind: &'static str,
    /// Its answer, while one that was asked for before has none.
    line: Option<String>,
}

/// Control messages of a connection.
#[derive(Debug, Default)]
pub(in super::super) struct Controls {
    next: u64,
    waiting: VecDeque<Asked>,
    opened: Opened,
    /// What is said to whoever opened the session, once that is answered.
    unsaid: Option<String>,
}

/// The same, passed on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(in super::super) struct ControlsSnapshot {
    opened: bool,
    waiting: Vec<AskedSnapshot>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct AskedSnapshot {
    #[serde(rename = "type")]
    kind: String,
    line: Option<String>,
}

impl Controls {
    /// Whether none waits for its answer.
    pub(super) fn are_answered(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether another image can go on with those that wait: an upgrade is the answer to the wish for one.
    pub(in super::super) fn are_quiet(&self) -> bool {
        self.waiting.iter().all(|asked| asked.kind == "reload")
    }

    /// Whether no line is looked at for the moment: whose session it is has to be known first.
    pub(super) const fn hold_lines(&self) -> bool {
        matches!(self.opened, Opened::Asked(_))
    }

    /// Takes one in, where it may be asked for.
    fn admit(&mut self, message: &ControlMessage, has_begun: bool) -> Result<u64, ControlRefusal> {
        let kind = message.name();
        let refused = |why: &str| Err(ControlRefusal::new(kind, why));
        if self.waiting.len() >= WAITING {
            return refused("as many control messages wait for an answer on this connection as may (16)");
        }
        let opens = matches!(message, ControlMessage::SessionOpen(_));
        if opens && self.opened != Opened::No {
            return refused("this session is open already; a connection has one session");
        }
        if opens && has_begun {
            return refused("a session is opened before its first call, and this one has made calls");
        }
        let number = self.next;
        self.next += 1;
        if opens {
            self.opened = Opened::Asked(number);
        }
        self.waiting.push_back(Asked { number, kind, line: None });
        Ok(number)
    }

    /// One that is not handed on is answered in its turn, or at once when too many wait.
    fn refuse(&mut self, refusal: &ControlRefusal, out: &mut BytesMut) {
        if self.waiting.is_empty() || self.waiting.len() >= WAITING {
            put_line(&refusal.line(), out);
        } else {
            self.waiting.push_back(Asked { number: self.next, kind: refusal.to, line: Some(refusal.line()) });
            self.next += 1;
        }
    }

    /// One was answered. Whether lines were held for it.
    fn answered(&mut self, number: u64, line: String, refused: bool) -> bool {
        if let Some(asked) = self.waiting.iter_mut().find(|asked| asked.number == number) {
            asked.line.get_or_insert(line);
        }
        let held = self.opened == Opened::Asked(number);
        if held {
            self.opened = if refused { Opened::No } else { Opened::Yes };
        }
        held
    }

    /// Writes the answers that are not behind one that is missing.
    fn write(&mut self, out: &mut BytesMut) {
        while let Some(line) = self.waiting.front_mut().and_then(|asked| asked.line.take()) {
            put_line(&line, out);
            self.waiting.pop_front();
        }
        if self.opened == Opened::Yes
            && let Some(line) = self.unsaid.take()
        {
            put_line(&line, out);
        }
    }

    /// What is passed on.
    pub(in super::super) fn snapshot(&self) -> ControlsSnapshot {
        let waiting = |asked: &Asked| AskedSnapshot { kind: asked.kind.to_owned(), line: asked.line.clone() };
        ControlsSnapshot { opened: self.opened == Opened::Yes, waiting: self.waiting.iter().map(waiting).collect() }
    }

    /// Goes on where another image stood: whoever was to answer there is gone.
    pub(in super::super) fn take_over(&mut self, snapshot: &ControlsSnapshot, outgoing: &mut Outgoing) {
        self.opened = if snapshot.opened { Opened::Yes } else { Opened::No };
        for AskedSnapshot { kind, line } in &snapshot.waiting {
            let cut_off = || match control::named(kind) {
                // It was what was asked for.
                Some("reload") => control::done("reload"),
                kind => {
                    ControlRefusal::new(kind.unwrap_or("connect"), "an upgrade of the daemon cut it off; ask again")
                        .line()
                }
            };
            put_line(&line.clone().unwrap_or_else(cut_off), &mut outgoing.out);
            outgoing.line_ended();
        }
    }
}

fn put_line(line: &str, out: &mut BytesMut) {
    out.put_slice(line.as_bytes());
    out.put_u8(b'\n');
}

impl SessionTurn {
    /// A line that is no JSON-RPC.
    pub(super) fn on_beside(&mut self, line: &Bytes, now: Instant, effects: &mut TurnEffects) {
        let out = &mut self.outgoing.out;
        let Some(read) = control::read(line) else { return self.core.on_unknown(line, now, out) };
        let admitted = read
            .and_then(|message| self.controls.admit(&message, self.core.has_begun()).map(|number| (number, message)));
        match admitted {
            Ok((number, message)) => effects.push_back(TurnEffect::Control(number, message)),
            Err(refusal) => self.controls.refuse(&refusal, out),
        }
    }

    /// Whoever opened this session is told this. A client that has not is no bridge and would not understand it.
    pub(super) fn say_beside(&mut self, line: String) {
        if self.controls.opened != Opened::No {
            self.controls.unsaid = Some(line);
            self.controls.write(&mut self.outgoing.out);
            self.outgoing.line_ended();
        }
    }

    /// A control message was answered.
    pub(super) fn on_control_answered(
        &mut self,
        number: u64,
        line: String,
        refused: bool,
        now: Instant,
        effects: &mut TurnEffects,
    ) {
        let held = self.controls.answered(number, line, refused);
        self.controls.write(&mut self.outgoing.out);
        self.outgoing.line_ended();
        if held {
            // The lines behind it.
            self.on_read(now, effects);
        }
    }
}
