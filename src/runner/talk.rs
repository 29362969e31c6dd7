//! What is said to an agent that is talked to while it runs.
//!
//! Owns: what waits to be written to its standard input, how it is asked to stop in its own words, and when that has taken too long.
//! May not know: what is said, who reads the agent's output.
//!
//! Invariants: (1) an agent that does not read makes nobody wait, and is not written to without end; (2) its standard input is open
//! until nothing more will be said; (3) one that has answered and does not leave, or was asked to stop and does not, is ended.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::process::Steering;
use crate::agents::{OutputParser, Replies};
use crate::base::fault::{Fault, FaultCode};
use crate::exec::local::WriteStatus;

/// Bytes that may wait to be read by it. The longest prompt has six times its bytes as JSON at worst; what else is said is short, and
/// an answer to something it wrote.
const WAITING_MOST: usize = 8 << 20;

/// How long it may take to stop once it was told so. Real ones answer at once, when what they were at can be broken off.
const STOPS_WITHIN: Duration = Duration::from_millis(500);

/// How long it may take to leave when nothing more will be said to it. It was started for this one question, and some never leave.
const LEAVES_WITHIN: Duration = Duration::from_millis(1500);

/// The talk with one agent.
pub(super) struct Talk {
    /// Taken by whoever reads the output.
    dialogue: Option<Box<dyn OutputParser>>,
    control: Steering,
    is_one: bool,
    waiting: VecDeque<Bytes>,
    bytes: usize,
    over: bool,
    closed: bool,
    /// When it is ended, if it is there then.
    due: Option<Instant>,
}

impl Talk {
    /// With this agent; without a dialogue nothing is ever said.
    pub(super) fn new(dialogue: Option<Box<dyn OutputParser>>, control: Steering) -> Self {
        let is_one = dialogue.is_some();
        Self { dialogue, control, is_one, waiting: VecDeque::new(), bytes: 0, over: false, closed: !is_one, due: None }
    }

    /// What reads its output and knows what to say.
    pub(super) fn take_dialogue(&mut self) -> Option<Box<dyn OutputParser>> {
        self.dialogue.take()
    }

    /// Takes what is to be said.
    ///
    /// # Errors
    ///
    /// It does not read what was said before.
    pub(super) fn take(&mut self, replies: Replies, now: Instant) -> Result<(), Fault> {
        if !self.is_one {
            return Ok(());
        }
        if !replies.bytes.is_empty() && !self.closed {
            self.bytes += replies.bytes.len();
            self.waiting.push_back(replies.bytes.into());
        }
        if replies.over && !self.over {
            self.over = true;
            self.due = Some(self.due.unwrap_or(now + LEAVES_WITHIN).min(now + LEAVES_WITHIN));
        }
        if self.bytes > WAITING_MOST {
            self.drop_waiting();
            let detail = "The agent asks and asks, and does not read what it is answered.";
            return Err(Fault::new(FaultCode::AgentProtocol, detail));
        }
        Ok(())
    }

    /// Whether there is something to write or to close.
    pub(super) fn has_work(&self) -> bool {
        !self.closed && (!self.waiting.is_empty() || self.over)
    }

    /// Writes a part of what waits, or closes.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was not taken waits on.
    pub(super) async fn work(&mut self) {
        let Some(next) = self.waiting.front().cloned() else {
            self.closed = true;
            self.control.close_stdin();
            return;
        };
        let length = next.len();
        match self.control.write(next).await {
            WriteStatus::Accepted => {
                self.waiting.pop_front();
                self.bytes -= length;
            }
            // What it says now decides.
            WriteStatus::StdinClosed => {
                self.closed = true;
                self.drop_waiting();
            }
        }
    }

    fn drop_waiting(&mut self) {
        self.waiting.clear();
        self.bytes = 0;
    }

    /// It was told to stop.
    pub(super) fn told_to_stop(&mut self, now: Instant) {
        self.due.get_or_insert(now + STOPS_WITHIN);
    }

    /// Whether it is still to be waited for when the run is to end.
    pub(super) fn is_stopping(&self, now: Instant) -> bool {
        !self.over && self.due.is_some_and(|due| now < due)
    }

    /// Whether it should have left by now.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| now >= due)
    }
}
