//! When a session wakes by itself, and which calls are late then.
//!
//! Owns: the next deadline, how long reading waits for a worker that is behind, when a session that nobody speaks to gives back
//! the memory it keeps for speed. May not know: timers, bytes, where a call runs.
//!
//! Invariants: (1) one clock serves all calls: it is moved for the first one of a tool, not for each; (2) whenever it fires
//! or a turn broke off, the next deadline is found again among the calls that are open, so none is forgotten.

use std::time::{Duration, Instant};

use super::{SessionStage, SessionTurn, Settling, TurnEffects};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::CallNumber;
use crate::protocol::session::CallOutcome;

/// How long a client is silent until its session gives back what it keeps for the next line: a burst is over by then, and the
/// next line costs one allocation.
const REST: Duration = Duration::from_secs(2);

/// The times a session waits for.
#[derive(Debug, Default)]
pub(super) struct Clockwork {
    /// When the earliest call in flight may be late.
    pub(super) due: Option<Instant>,
    /// The deadline `due` was made from, while it is one call's whole deadline.
    shortest: Option<Duration>,
    /// Until when reading waits for the worker, while it does.
    pub(super) held: Option<Instant>,
    /// When to look whether the client is still silent; nothing is kept where there is no time.
    rest: Option<Instant>,
    /// When it last sent something.
    spoken: Option<Instant>,
}

impl Clockwork {
    /// The client sent something.
    pub(super) fn spoken(&mut self, now: Instant) {
        self.spoken = Some(now);
        if self.rest.is_none() {
            self.rest = Some(now + REST);
        }
    }

    /// Whether it has been silent for long enough.
    fn may_rest(&mut self, now: Instant) -> bool {
        if self.rest.take_if(|rest| now >= *rest).is_none() {
            return false;
        }
        let due = self.spoken.map(|spoken| spoken + REST).filter(|due| now < *due);
        self.rest = due;
        due.is_none()
    }

    /// A call begins that is late after `limit`.
    pub(super) fn begins(&mut self, limit: Duration, now: Instant) {
        // Only the first of a tool's calls moves the clock; when it fires, the calls open then are looked at.
        if self.due.is_none() || self.shortest.is_none_or(|shortest| limit < shortest) {
            let due = now + limit;
            if self.due.is_none_or(|set| due < set) {
                self.due = Some(due);
                self.shortest = Some(limit);
            }
        }
    }

    /// Whether a call may be late; from then on nothing is due until [`Clockwork::found`].
    fn is_due(&mut self, now: Instant) -> bool {
        self.due.take_if(|due| now >= *due).is_some()
    }

    /// The calls were looked at: the next one is late then.
    fn found(&mut self, due: Option<Instant>) {
        self.due = due;
        self.shortest = None;
    }
}

/// The earlier of two times, where there are two.
#[inline]
fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, None) => one,
        (None, other) => other,
    }
}

impl SessionTurn {
    /// When the clock is wanted next.
    pub(in super::super) fn wakes(&self) -> Option<Instant> {
        let end = match self.stage {
            SessionStage::Open => None,
            SessionStage::Lingering(at) | SessionStage::Draining(at) => Some(at),
        };
        earlier(earlier(self.clockwork.rest, self.clockwork.due), earlier(self.clockwork.held, end))
    }

    pub(super) fn on_woke(&mut self, now: Instant, effects: &mut TurnEffects) {
        match self.stage {
            SessionStage::Lingering(end) if now >= end => self.close(now, effects),
            SessionStage::Draining(end) if now >= end => self.outgoing.forget_bytes(),
            _ => {}
        }
        if self.clockwork.is_due(now) {
            self.expire(now, effects);
        }
        if self.clockwork.may_rest(now) {
            self.rest(effects);
        }
    }

    /// Gives back the memory that is kept for speed.
    fn rest(&mut self, effects: &mut TurnEffects) {
        self.incoming.reader.rest();
        self.outgoing.rest();
        self.core.rest();
        self.ledger.rest();
        self.host_calls.shrink_to_fit();
        self.direct.shrink_to_fit();
        self.follows.shrink_to_fit();
        self.asked.shrink_to_fit();
        self.sending.shrink_to_fit();
        self.counted.shrink_to_fit();
        effects.shrink_to_fit();
    }

    /// Answers calls whose tool's deadline has passed, and finds the next one.
    pub(super) fn expire(&mut self, now: Instant, effects: &mut TurnEffects) {
        let mut late: Vec<(CallNumber, usize)> = Vec::new();
        let mut next: Option<Duration> = None;
        let direct = self.direct.iter().map(|(call, direct)| (*call, Some(direct.tool), direct.since));
        for (call, tool, since) in self.core.open_calls().chain(direct) {
            let Some((tool, limit)) = tool.and_then(|tool| Some((tool, self.tools[tool].deadline?))) else { continue };
            match limit.checked_sub(now.saturating_duration_since(since)).filter(|left| !left.is_zero()) {
                None => late.push((call, tool)),
                Some(left) => next = Some(next.map_or(left, |next| next.min(left))),
            }
        }
        self.clockwork.found(next.map(|left| now + left));
        late.sort_unstable();
        for (call, tool) in late {
            self.withdraw(call, effects);
            let fault = Fault::new(FaultCode::DeadlineExceeded, "the tool did not answer within its deadline.")
                .operation(&*self.tools[tool].name);
            self.settle(call, CallOutcome::Fault(Box::new(fault)), Settling::default(), now, effects);
        }
    }
}
