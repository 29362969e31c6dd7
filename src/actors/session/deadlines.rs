//! The session's clock, and the deadlines of its calls.
//!
//! Owns: when the loop wakes by itself, which calls are late then. May not know: bytes, where a call runs.
//!
//! Invariants: (1) one clock serves all calls: it is moved for the first one of a tool, not for each; (2) whenever it fires
//! or a turn broke off, the next deadline is found again among the calls that are open, so none is forgotten.

use std::time::Duration;

use super::calls::Settling;
use super::{SessionLoop, SessionStage};
use crate::actors::clock;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::CallNumber;
use crate::protocol::session::CallOutcome;

impl SessionLoop {
    /// Sets the clock to when it is wanted next. It is left to run out when it turns out not to be needed: setting it
    /// anew for each call would cost more than the one needless look.
    pub(super) fn set_clock(&mut self) {
        let end = match self.stage {
            SessionStage::Open => None,
            SessionStage::Lingering(at) | SessionStage::Draining(at) => Some(at),
        };
        let wanted = [self.due, end, self.held].into_iter().flatten().min();
        if let Some(at) = wanted.filter(|at| self.clock_at.is_none_or(|set| *at < set)) {
            self.clock.as_mut().reset(at);
            self.clock_at = Some(at);
        }
    }

    pub(super) fn on_time(&mut self) {
        let now = tokio::time::Instant::now();
        self.clock_at = None;
        match self.stage {
            SessionStage::Lingering(end) if now >= end => self.close(),
            SessionStage::Draining(end) if now >= end => {
                self.out.clear();
                self.whole = 0;
            }
            _ => {}
        }
        if self.due.is_some_and(|due| now >= due) {
            self.due = None;
            self.expire();
        }
    }

    /// Notes when a call that begins now is late.
    pub(super) fn note_deadline(&mut self, tool: usize) {
        let Some(limit) = self.deadlines[tool] else { return };
        // Only the first of a tool's calls moves the clock; when it fires, the calls open then are looked at.
        if self.due.is_none() || self.shortest.is_none_or(|shortest| limit < shortest) {
            let due = tokio::time::Instant::now() + limit;
            if self.due.is_none_or(|set| due < set) {
                self.due = Some(due);
                self.shortest = Some(limit);
            }
        }
    }

    /// Answers calls whose tool's deadline has passed, and sets the clock for the next one.
    pub(super) fn expire(&mut self) {
        let now = clock::now();
        self.shortest = None;
        let mut late: Vec<(CallNumber, usize)> = Vec::new();
        let mut next: Option<Duration> = None;
        for (call, tool, since) in self.core.open_calls() {
            let Some((tool, limit)) = tool.and_then(|tool| Some((tool, self.deadlines[tool]?))) else { continue };
            match limit.checked_sub(now.saturating_duration_since(since)).filter(|left| !left.is_zero()) {
                None => late.push((call, tool)),
                Some(left) => next = Some(next.map_or(left, |next| next.min(left))),
            }
        }
        self.due = next.map(|left| tokio::time::Instant::now() + left);
        late.sort_unstable();
        for (call, tool) in late {
            self.withdraw(call);
            let fault = Fault::new(FaultCode::DeadlineExceeded, "the tool did not answer within its deadline.")
                .operation(&*self.names[tool]);
            self.settle(call, CallOutcome::Fault(Box::new(fault)), Settling::default());
        }
    }
}
