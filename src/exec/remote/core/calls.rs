//! Calls: their order, their places in flight, their ends.
//!
//! Owns: what is sent next, and what becomes of a call by its answer, its deadline or a lost connection. May not know: the
//! handshake, sessions.
//!
//! ```text
//! waiting --place--> in flight --answer--> over
//!    ^                  | deadline: its caller is told; its place is free when the answer comes
//!    +--- lost, may be sent again ---- lost, may not: Ambiguous
//! ```

use std::collections::VecDeque;

use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{
    Asked, CALLS_IN_FLIGHT, CallKind, ExecError, Flight, ROUTES, RemoteCore, RemoteEffect, Reply, Stage, URGENT_CALLS,
    WAITING_CALLS,
};
use crate::exec::wire::{WireError, code};

/// How many of its deadlines a call may wait for its turn: a slow server's turns are long ones, and the queue is bounded.
const TURN_DEADLINES: u32 = 4;

impl<R: Reply> RemoteCore<R> {
    /// Somebody calls.
    pub(super) fn asked(&mut self, asked: Asked<R>, now: Instant) {
        let refusal = match (&self.stage, self.closing) {
            (Stage::Down { reason }, _) => Some(ExecError::Disconnected { reason: reason.clone() }),
            (_, Some(_)) => Some(ExecError::Disconnected { reason: "it is being closed here".to_owned() }),
            _ if self.waiting.len() + self.urgent.len() >= WAITING_CALLS => Some(ExecError::Busy { what: "call" }),
            _ => self.begin_to_follow(&asked, now),
        };
        if let Some(error) = refusal {
            self.effects.push(RemoteEffect::Answer(asked.reply, Err(error)));
            return;
        }
        let mut asked = asked;
        asked.until = asked.until.map(|(_, within)| (now + within * TURN_DEADLINES, within));
        if let Some((until, _)) = asked.until {
            self.look_by(until);
        }
        match asked.kind {
            CallKind::Urgent => self.urgent.push_back(asked),
            _ => self.waiting.push_back(asked),
        }
    }

    /// A start is followed before it is sent. Returns why it cannot be.
    fn begin_to_follow(&mut self, asked: &Asked<R>, now: Instant) -> Option<ExecError> {
        let CallKind::Start(new) = &asked.kind else { return None };
        if self.processes.contains_key(&new.process_id) {
            let error = WireError::new(code::INVALID_REQUEST, format!("process {:?} already exists", new.process_id));
            return Some(ExecError::Refused { method: asked.method, error });
        }
        if self.processes.len() >= ROUTES {
            return Some(ExecError::Busy { what: "process" });
        }
        self.follow(new, now);
        None
    }

    /// Sends what there is a place for.
    pub(super) fn pump(&mut self, now: Instant) {
        if !matches!(self.stage, Stage::Up) {
            return;
        }
        while self.urgent_in_flight < URGENT_CALLS
            && let Some(asked) = self.urgent.pop_front()
        {
            self.put_in_flight(asked, now);
        }
        self.send_dooms();
        while self.ordinary_in_flight() < CALLS_IN_FLIGHT
            && let Some(asked) = self.next_waiting()
        {
            self.put_in_flight(asked, now);
        }
        // A server that answers none of so many has stopped for good (its queues are full of each other).
        let given_up = |flight: &Flight<R>| matches!(flight, Flight::Call { reply: None, .. });
        if self.ordinary_in_flight() >= CALLS_IN_FLIGHT
            && self.flights.values().filter(|flight| !flight.is_urgent()).all(given_up)
        {
            self.lost("it answers no call any more", now);
        }
    }

    pub(super) fn ordinary_in_flight(&self) -> usize {
        self.flights.len() - self.urgent_in_flight
    }

    /// The next call whose process has nothing in flight and whose caller is there.
    fn next_waiting(&mut self) -> Option<Asked<R>> {
        loop {
            let place = self.waiting.iter().position(|asked| match asked.kind.lane() {
                Some(process_id) => !self.busy.contains(process_id),
                None => true,
            })?;
            let asked = self.waiting.remove(place)?;
            if !asked.reply.is_gone() {
                return Some(asked);
            }
            if let CallKind::Start(new) = &asked.kind {
                self.processes.remove(&new.process_id);
            }
        }
    }

    fn put_in_flight(&mut self, asked: Asked<R>, now: Instant) {
        let Asked { method, params, kind, until, sent, reply } = asked;
        // The server has its time from when it is asked; a call that is repeated does not get it again.
        let until = if sent { until } else { until.map(|(_, within)| (now + within, within)) };
        if let Some((until, _)) = until {
            self.look_by(until);
        }
        if let Some(process_id) = kind.lane() {
            self.busy.insert(process_id.to_owned());
        }
        let id = self.send(method, &params);
        self.insert_flight(id, Flight::Call { method, params, kind, until, reply: Some(reply) });
    }

    pub(super) fn insert_flight(&mut self, id: i64, flight: Flight<R>) {
        self.urgent_in_flight += usize::from(flight.is_urgent());
        self.reads_in_flight += usize::from(matches!(flight, Flight::Read { .. } | Flight::Fate { .. }));
        self.flights.insert(id, flight);
    }

    pub(super) fn take_flight(&mut self, id: i64) -> Option<Flight<R>> {
        let flight = self.flights.remove(&id)?;
        self.urgent_in_flight -= usize::from(flight.is_urgent());
        self.reads_in_flight -= usize::from(matches!(flight, Flight::Read { .. } | Flight::Fate { .. }));
        Some(flight)
    }

    /// The server answered.
    pub(super) fn answered(&mut self, id: i64, outcome: Result<Box<RawValue>, WireError>, now: Instant) {
        match self.take_flight(id) {
            Some(Flight::Call { method, kind, reply, .. }) => {
                if let Some(process_id) = kind.lane() {
                    self.busy.remove(process_id);
                }
                if let CallKind::Start(new) = &kind {
                    self.start_answered(&new.process_id, outcome.is_ok(), now);
                }
                if let Some(reply) = reply {
                    let outcome = outcome.map_err(|error| ExecError::Refused { method, error });
                    self.effects.push(RemoteEffect::Answer(reply, outcome));
                }
            }
            Some(Flight::Read { process_id, after }) => self.read_answered(id, &process_id, after, outcome, now),
            Some(Flight::Fate { process_id }) => self.fate_answered(&process_id, outcome, now),
            Some(Flight::Doom { process_id }) => {
                self.doomed.remove(&process_id);
                self.close_if_done();
            }
            // Its caller was told that it takes too long and a connection was lost since, or the server invents answers.
            None => {}
        }
    }

    /// The connection is lost: what is in flight waits for the next one, or is over.
    pub(super) fn park(&mut self, reason: &str) {
        let flights = std::mem::take(&mut self.flights);
        self.urgent_in_flight = 0;
        self.reads_in_flight = 0;
        self.busy.clear();
        let mut again = VecDeque::new();
        for flight in flights.into_values() {
            let Flight::Call { method, params, kind, until, reply } = flight else { continue };
            let Some(reply) = reply else {
                if let CallKind::Start(new) = &kind {
                    self.start_lost(&new.process_id, None);
                }
                continue;
            };
            match kind {
                CallKind::Repeated { .. } | CallKind::Harmless => {
                    again.push_back(Asked { method, params, kind, until, sent: true, reply });
                }
                CallKind::Start(new) => self.start_lost(&new.process_id, Some(reply)),
                CallKind::Once | CallKind::Urgent => {
                    let error = ExecError::Ambiguous { method, reason: reason.to_owned() };
                    self.effects.push(RemoteEffect::Answer(reply, Err(error)));
                }
            }
        }
        again.append(&mut self.waiting);
        self.waiting = again;
        self.park_processes();
    }

    /// Tells callers whose deadline has passed.
    pub(super) fn look_at_calls(&mut self, now: Instant) {
        let mut next: Option<Instant> = None;
        let mut note = |until: Instant| next = Some(next.map_or(until, |known: Instant| known.min(until)));
        for flight in self.flights.values_mut() {
            let Flight::Call { method, until: Some((until, within)), reply, .. } = flight else { continue };
            if reply.is_none() {
                continue;
            }
            if *until > now {
                note(*until);
            } else if let Some(reply) = reply.take() {
                let error = ExecError::Deadline { method, within: *within };
                self.effects.push(RemoteEffect::Answer(reply, Err(error)));
            }
        }
        for queue in [&mut self.urgent, &mut self.waiting] {
            let mut kept = VecDeque::with_capacity(queue.len());
            for asked in queue.drain(..) {
                match asked.until {
                    Some((until, _)) if until <= now => {
                        if let CallKind::Start(new) = &asked.kind {
                            self.processes.remove(&new.process_id);
                        }
                        let reason = "it could not be sent within its time".to_owned();
                        let error = ExecError::NotDone { method: asked.method, reason };
                        self.effects.push(RemoteEffect::Answer(asked.reply, Err(error)));
                    }
                    until => {
                        if let Some((until, _)) = until {
                            note(until);
                        }
                        kept.push_back(asked);
                    }
                }
            }
            *queue = kept;
        }
        if let Some(next) = next {
            self.look_by(next);
        }
    }
}

impl CallKind {
    /// The process among whose calls this has its place.
    pub(super) fn lane(&self) -> Option<&str> {
        match self {
            Self::Start(new) => Some(&new.process_id),
            Self::Repeated { process_id } => Some(process_id),
            Self::Harmless | Self::Once | Self::Urgent => None,
        }
    }
}
