//! The processes that are followed, and those that are to end.
//!
//! Owns: each one's route, tap and fate; which are doomed. May not know: the handshake, calls' places but its own reads'.
//!
//! ```text
//! Asked --answer: yes--> Started --its session ends--> forgotten
//!   | lost                  ^ the server knows it
//!   +--> Unknown --read-----+
//!                 \ it does not: its caller is told that it was not done
//! released (nobody holds it) --Started--> doomed: it is ended, on every connection until the server has answered
//! ```
//!
//! A tap that is not read stops the reading of the connection, so that the server feels it. Where others share the connection
//! it stops it for a moment only ([`TAP_PATIENCE`]); then it is left behind and gets what the session's ring still has once it
//! is read again. What the ring had to drop is counted as lost.

use std::time::Duration;

use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{
    ExecError, FATE_LOOKS, FATE_PAUSE, Flight, GHOSTS, NewProcess, READS_IN_FLIGHT, RemoteCore, RemoteEffect, Reply,
    Stage, URGENT_CALLS,
};
use crate::exec::ProcessEvent;
use crate::exec::client::CALLS_IN_FLIGHT;
use crate::exec::client::route::{Route, RouteDue};
use crate::exec::core::Tapped;
use crate::exec::tap::TapFeed;
use crate::exec::wire::{EventRead, ReadAnswer, StartResult, TerminateParams, WireError, code, method, read_event};

/// How long a tap that is full may hold up the others of its connection. Halved each time it does.
const TAP_PATIENCE: Duration = Duration::from_secs(2);

/// What a full tap may be given all the same, so that the answer somebody waits for is read: sixteen times what it holds.
const TAP_MOST: usize = 16 * 1024 * 1024;

/// A read that found no place is tried again after this at the latest.
const READ_PAUSE: Duration = Duration::from_millis(20);

/// The same while nothing is read, because a tap is full.
const HELD_PAUSE: Duration = Duration::from_millis(500);

/// A followed process.
#[derive(Debug)]
pub(super) struct Process<R> {
    pub(super) route: Route,
    tap: Tap,
    fate: Fate<R>,
    /// Nobody holds it.
    released: bool,
}

/// Whether the process was started.
#[derive(Debug)]
enum Fate<R> {
    /// The start waits or is in flight.
    Asked,
    /// The start's answer was lost; its caller may wait.
    Unknown { reply: Option<R>, looks: u8, at: Instant },
    /// It was.
    Started,
}

#[derive(Debug)]
struct Tap {
    feed: TapFeed,
    flow: Flow,
    patience: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// It gets what is published; when it is full, since when.
    Along { full_since: Option<Instant> },
    /// It has got everything up to here.
    Behind { after: u64 },
}

/// A process that is to end, and whether the server was told.
#[derive(Debug, Default)]
pub(super) struct Doom {
    told: bool,
}

impl<R> Process<R> {
    /// Carries what was published to the tap; returns whether that is full now.
    fn flush(&mut self, now: Instant) -> bool {
        let tapped = self.route.session.change(crate::exec::ProcessLog::take_tapped);
        let Flow::Along { full_since } = &mut self.tap.flow else { return false };
        for piece in tapped {
            match piece {
                Tapped::Output(stream, bytes) => self.tap.feed.give(stream, bytes),
                Tapped::Lost(positions) => self.tap.feed.lose(positions),
            }
        }
        let full = self.tap.feed.is_full();
        if full {
            full_since.get_or_insert(now);
        } else {
            *full_since = None;
        }
        full
    }

    /// Leaves the tap behind, until it is read again.
    fn leave_behind(&mut self) {
        self.tap.flow = Flow::Behind { after: self.route.session.last_seq() };
        self.tap.patience /= 2;
    }

    /// Gives a tap that was left behind what the ring has.
    fn catch_up(&mut self) {
        let Flow::Behind { mut after } = self.tap.flow else { return };
        // What was published meanwhile and not taken is in the ring, or was announced there as lost.
        while let Some(event) = self.route.session.look(|core| core.next_event(after)) {
            let ended = event.is_terminal();
            match event {
                ProcessEvent::Output { seq, stream, bytes } => {
                    self.tap.feed.give(stream, bytes);
                    after = seq;
                }
                ProcessEvent::Lagged { from, to } => {
                    self.tap.feed.lose(to.saturating_sub(from) + 1);
                    after = to;
                }
                ProcessEvent::Exited { seq, .. } | ProcessEvent::Closed { seq } => after = seq,
                ProcessEvent::Failed { .. } => {}
            }
            if ended {
                break;
            }
        }
        self.route.session.change(crate::exec::ProcessLog::take_tapped);
        self.tap.flow = Flow::Along { full_since: None };
    }
}

impl<R: Reply> RemoteCore<R> {
    /// Follows a process whose start is not sent yet.
    pub(super) fn follow(&mut self, new: &NewProcess, now: Instant) {
        new.session.change(crate::exec::ProcessLog::tap);
        let process = Process {
            route: Route::new(new.session.clone(), now),
            tap: Tap { feed: new.tap.clone(), flow: Flow::Along { full_since: None }, patience: TAP_PATIENCE },
            fate: Fate::Asked,
            released: false,
        };
        self.processes.insert(new.process_id.clone(), process);
    }

    /// The server answered a start.
    pub(super) fn start_answered(&mut self, process_id: &str, started: bool, now: Instant) {
        if !started {
            self.processes.remove(process_id);
            self.close_if_done();
            return;
        }
        let Some(process) = self.processes.get_mut(process_id) else {
            // Its caller went before it was known, and its entry with him.
            self.doom_unknown(process_id);
            return;
        };
        process.fate = Fate::Started;
        process.route.heard(now);
        let (due, released) = (process.route.due_at(), process.released);
        self.look_by(due);
        if released {
            self.doom(process_id);
        }
        self.retire(process_id);
    }

    /// The connection was lost with a start in flight.
    pub(super) fn start_lost(&mut self, process_id: &str, reply: Option<R>) {
        let at = self.heard;
        if let Some(process) = self.processes.get_mut(process_id) {
            process.fate = Fate::Unknown { reply, looks: 0, at };
        }
    }

    /// What all processes lose with the connection.
    pub(super) fn park_processes(&mut self) {
        for process in self.processes.values_mut() {
            process.route.session.change(crate::exec::ProcessLog::begin_recovery);
        }
        for doom in self.doomed.values_mut() {
            doom.told = false;
        }
    }

    /// There is a new connection: everything is read again.
    pub(super) fn take_up(&mut self, now: Instant) {
        for process in self.processes.values_mut() {
            process.route.read_again(now);
            if let Fate::Unknown { at, .. } = &mut process.fate {
                *at = now;
            }
        }
    }

    /// The server told something about a process.
    pub(super) fn notified(&mut self, name: &str, params: &RawValue, now: Instant) {
        let Some((process_id, event)) = read_event(name, params) else { return };
        let Some(process) = self.processes.get_mut(&process_id) else {
            if self.ghosts.contains(&process_id) {
                self.doom_unknown(&process_id);
            }
            return;
        };
        process.route.session.change(|core| match event {
            EventRead::Event(event) => core.receive(event),
            EventRead::Unreadable(seq) => core.receive_unreadable(seq),
        });
        process.route.heard(now);
        let (due, full) = (process.route.due_at(), process.flush(now));
        if matches!(process.fate, Fate::Started) {
            self.look_by(due);
        }
        if full && !self.full.contains(&process_id) {
            self.full.insert(process_id.clone());
        }
        self.retire(&process_id);
    }

    /// The server answered a read of ours.
    pub(super) fn read_answered(
        &mut self,
        id: i64,
        process_id: &str,
        after: u64,
        outcome: Result<Box<RawValue>, WireError>,
        now: Instant,
    ) {
        let Some(process) = self.processes.get_mut(process_id) else { return };
        process.route.answered(id, after, outcome, now);
        let (due, full) = (process.route.due_at(), process.flush(now));
        self.look_by(due);
        if full {
            self.full.insert(process_id.to_owned());
        }
        self.retire(process_id);
    }

    /// The server answered whether there is a process whose start was lost.
    pub(super) fn fate_answered(&mut self, process_id: &str, outcome: Result<Box<RawValue>, WireError>, now: Instant) {
        let Some(process) = self.processes.get_mut(process_id) else { return };
        let Fate::Unknown { reply, looks, at } = &mut process.fate else { return };
        let refused = match outcome {
            Ok(answer) => {
                let reply = reply.take();
                if let Ok(answer) = crate::exec::wire::read_params::<ReadAnswer>(&answer) {
                    process.route.session.change(|core| core.receive_read(0, answer.into()));
                }
                if process.flush(now) {
                    self.full.insert(process_id.to_owned());
                }
                if let Some(reply) = reply {
                    let outcome = started(process_id);
                    self.effects.push(RemoteEffect::Answer(reply, outcome));
                }
                return self.start_answered(process_id, true, now);
            }
            Err(error) => error,
        };
        *looks += 1;
        // The server may still be starting it: what came by the lost connection is done behind the new one's back.
        if *looks < FATE_LOOKS {
            *at = now + FATE_PAUSE;
            let at = *at;
            return self.look_by(at);
        }
        if let Some(reply) = reply.take() {
            let reason = format!("the connection was lost, and the server has no such process: {}", refused.message);
            let error = match refused.code {
                code::INVALID_REQUEST => ExecError::NotDone { method: method::START, reason },
                _ => ExecError::Ambiguous { method: method::START, reason },
            };
            self.effects.push(RemoteEffect::Answer(reply, Err(error)));
        }
        self.processes.remove(process_id);
        self.remember_ghost(process_id);
        self.close_if_done();
    }

    /// Nobody holds the process, or waits for its start.
    pub(super) fn released(&mut self, process_id: &str) {
        let Some(process) = self.processes.get_mut(process_id) else {
            // A start that ended without a word on whether it was done.
            return;
        };
        process.released = true;
        match process.fate {
            Fate::Started => self.doom(process_id),
            Fate::Asked => {
                // A start that was not sent is not sent any more.
                let is_its = |asked: &super::Asked<R>| asked.kind.lane() == Some(process_id);
                let before = self.waiting.len();
                let is_start = |asked: &super::Asked<R>| matches!(asked.kind, super::CallKind::Start(_));
                let had = self.waiting.iter().any(|asked| is_its(asked) && is_start(asked));
                self.waiting.retain(|asked| !(is_its(asked) && is_start(asked)));
                if had && self.waiting.len() < before {
                    self.processes.remove(process_id);
                }
            }
            Fate::Unknown { .. } => {}
        }
    }

    /// Has the process ended, as soon as the server can be told, and told again until it has answered.
    pub(super) fn doom(&mut self, process_id: &str) {
        let ended = self.processes.get(process_id).is_none_or(|process| process.route.session.has_ended());
        if !ended {
            self.doomed.entry(process_id.to_owned()).or_default();
        }
    }

    fn doom_unknown(&mut self, process_id: &str) {
        self.doomed.entry(process_id.to_owned()).or_default();
    }

    fn remember_ghost(&mut self, process_id: &str) {
        if self.ghosts.len() >= GHOSTS {
            self.ghosts.pop_front();
        }
        self.ghosts.push_back(process_id.to_owned());
    }

    pub(super) fn send_dooms(&mut self) {
        if self.doomed.is_empty() {
            return;
        }
        let wanted: Vec<String> =
            self.doomed.iter().filter(|(_, doom)| !doom.told).map(|(process_id, _)| process_id.clone()).collect();
        for process_id in wanted {
            if self.urgent_in_flight >= URGENT_CALLS {
                return;
            }
            let params = TerminateParams { process_id: process_id.clone(), grace_ms: self.kill_at_once() };
            let id = self.send(method::TERMINATE, params);
            if let Some(doom) = self.doomed.get_mut(&process_id) {
                doom.told = true;
            }
            self.insert_flight(id, Flight::Doom { process_id });
        }
    }

    /// The grace of a process nobody holds: none, where the server gives one at all.
    fn kill_at_once(&self) -> Option<u64> {
        self.environment.as_ref().is_some_and(|info| info.can("terminateGrace")).then_some(0)
    }

    /// Does what is due for the processes: reads, and giving up on reads.
    pub(super) fn look_at_processes(&mut self, now: Instant) {
        if !matches!(self.stage, Stage::Up) {
            return;
        }
        let (mut reads, mut fates, mut given_up) = (Vec::new(), Vec::new(), Vec::new());
        let mut next: Option<Instant> = None;
        let mut note = |at: Instant| next = Some(next.map_or(at, |known: Instant| known.min(at)));
        let mut places = CALLS_IN_FLIGHT
            .saturating_sub(self.ordinary_in_flight())
            .min(READS_IN_FLIGHT.saturating_sub(self.reads_in_flight));
        let held = self
            .full
            .iter()
            .any(|process_id| self.processes.get(process_id).is_some_and(|process| process.tap.feed.is_full()));
        self.processes.retain(|_, process| {
            !(matches!(process.fate, Fate::Started) && process.released && process.route.session.is_alone())
        });
        for (process_id, process) in &mut self.processes {
            match &process.fate {
                Fate::Asked => {}
                Fate::Unknown { at, .. } if *at > now => note(*at),
                Fate::Unknown { .. } if places == 0 => note(now + READ_PAUSE),
                Fate::Unknown { .. } => {
                    places -= 1;
                    fates.push(process_id.clone());
                }
                // While nothing is read no answer would be either.
                Fate::Started if held => note(process.route.due_at().max(now + HELD_PAUSE)),
                Fate::Started if process.route.due_at() > now => note(process.route.due_at()),
                Fate::Started if places == 0 => note(now + READ_PAUSE),
                Fate::Started => match process.route.due(now) {
                    Some(RouteDue::Read(after)) => {
                        places -= 1;
                        reads.push((process_id.clone(), after));
                    }
                    Some(RouteDue::GiveUp(id)) => {
                        given_up.push(id);
                        note(process.route.due_at());
                    }
                    None => note(process.route.due_at()),
                },
            }
        }
        if let Some(next) = next {
            self.look_by(next);
        }
        for id in given_up {
            self.take_flight(id);
        }
        for (process_id, after) in reads {
            let id = self.send(method::READ, Route::params(&process_id, after));
            if let Some(process) = self.processes.get_mut(&process_id) {
                process.route.sent(id, now);
                let due = process.route.due_at();
                self.look_by(due);
            }
            self.insert_flight(id, Flight::Read { process_id, after });
        }
        for process_id in fates {
            let id = self.send(method::READ, Route::params(&process_id, 0));
            if let Some(Process { fate: Fate::Unknown { at, .. }, .. }) = self.processes.get_mut(&process_id) {
                // Until it is answered; the connection is made again before that.
                *at = now + super::HANDSHAKE_DEADLINE;
            }
            self.insert_flight(id, Flight::Fate { process_id });
        }
    }

    /// Whether the connection must not be read now, because a tap is full.
    pub(in crate::exec::remote) fn holds(&mut self, now: Instant) -> bool {
        if self.full.is_empty() {
            return false;
        }
        let shared = self.processes.len() > 1;
        let awaited = self.flights.values().any(|flight| matches!(flight, Flight::Call { reply: Some(_), .. }));
        let (mut holds, mut wake, mut free, mut behind) = (false, None, Vec::new(), Vec::new());
        for process_id in &self.full {
            let Some(process) = self.processes.get_mut(process_id) else {
                free.push(process_id.clone());
                continue;
            };
            let Flow::Along { full_since } = &mut process.tap.flow else {
                free.push(process_id.clone());
                continue;
            };
            if !process.tap.feed.is_full() {
                *full_since = None;
                free.push(process_id.clone());
                continue;
            }
            let until = full_since.get_or_insert(now).checked_add(process.tap.patience).unwrap_or(now);
            let over = process.tap.feed.is_over(TAP_MOST);
            if until <= now && (shared || (awaited && over)) {
                process.leave_behind();
                behind.push(process_id.clone());
            } else if !awaited || over {
                holds = true;
                wake = Some(wake.map_or(until, |known: Instant| known.min(until)));
            }
        }
        for process_id in free.into_iter().chain(behind.iter().cloned()) {
            self.full.remove(&process_id);
        }
        self.lagging.extend(behind);
        // A tap that holds nobody up is waited for without a clock.
        if let Some(wake) = wake.filter(|wake| *wake > now && (shared || awaited)) {
            self.look_by(wake);
        }
        holds
    }

    /// Gives taps that were left behind and are read again what they lack.
    pub(super) fn catch_up(&mut self) {
        let ready = |process: &Process<R>| process.tap.feed.is_empty() || process.tap.feed.is_dropped();
        let ids: Vec<String> = self
            .lagging
            .iter()
            .filter(|process_id| self.processes.get(*process_id).is_none_or(ready))
            .cloned()
            .collect();
        for process_id in ids {
            self.lagging.remove(&process_id);
            if let Some(process) = self.processes.get_mut(&process_id) {
                process.catch_up();
                if process.tap.feed.is_full() {
                    self.full.insert(process_id);
                }
            }
        }
    }

    /// Forgets a process that has ended or that nobody follows any more.
    fn retire(&mut self, process_id: &str) {
        let Some(process) = self.processes.get_mut(process_id) else { return };
        let ended = process.route.session.has_ended();
        if !ended || !matches!(process.fate, Fate::Started) {
            return;
        }
        // The ring is bounded, so a tap that was left behind is given the rest whether it is read or not.
        process.catch_up();
        self.processes.remove(process_id);
        self.lagging.remove(process_id);
        self.full.remove(process_id);
        if self.doomed.get(process_id).is_some_and(|doom| !doom.told) {
            self.doomed.remove(process_id);
        }
        self.close_if_done();
    }

    /// The end of everything, for the processes.
    pub(super) fn fail_processes(&mut self, reason: &str) {
        for (process_id, mut process) in std::mem::take(&mut self.processes) {
            match process.fate {
                Fate::Started => process.route.session.publish_failed(reason),
                Fate::Unknown { ref mut reply, .. } => {
                    if let Some(reply) = reply.take() {
                        let error = ExecError::Ambiguous { method: method::START, reason: reason.to_owned() };
                        self.effects.push(RemoteEffect::Answer(reply, Err(error)));
                    }
                }
                // Its call is among those that wait.
                Fate::Asked => {}
            }
            tracing::debug!(process_id, "a process is not followed any more");
            process.flush(self.heard);
            process.catch_up();
        }
        self.full.clear();
        self.lagging.clear();
    }
}

/// What a server answers to a start.
fn started(process_id: &str) -> Result<Box<RawValue>, ExecError> {
    let result = StartResult { process_id: process_id.to_owned(), sandbox_type: None };
    serde_json::value::to_raw_value(&result)
        .map_err(|error| ExecError::Nonsense { method: method::START, reason: error.to_string() })
}
