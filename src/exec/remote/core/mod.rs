//! What a client does about one exec server, whatever becomes of the connections to it.
//!
//! Owns: where the connection stands, what is in flight on it and what waits for it, the processes that are followed, and
//! what of all that goes over to the next connection. May not know: sockets, tasks, who calls.
//!
//! ```text
//! Idle --Begun--> Connecting --Connected--> Greeting --answer--> Up
//!                     ^                        |                  | lost
//!                     |       lost, -32010     v                  v
//!                     +----- after a pause -- Pausing <-----------+
//! any --refused, another session, window over, closed, nothing to resume--> Down
//! ```
//!
//! Invariants:
//! 1. Each connection is a generation, counted from 1; what comes from another one than the current is counted and dropped.
//! 2. A call is answered once. What was in flight when its connection was lost is sent again only where that cannot be seen
//!    (a write keeps its id, a read changes nothing); anything else ends [`ExecError::Ambiguous`].
//! 3. A start is sent once. After a lost connection the server is asked whether there is such a process; it is adopted if its
//!    caller still waits, and ended otherwise. So is a process whose start was cancelled, whenever it turns up.
//! 4. A session is followed before its start is sent, and has exactly one terminal event: its own, or the failure that took
//!    everything down. Nobody follows a session after that failure.
//! 5. At most [`CALLS_IN_FLIGHT`] requests are unanswered, the reads of our own included, and beside them
//!    [`URGENT_CALLS`] signals and ends. Starts and writes of one process are sent one after the other.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use self::processes::{Doom, Process};
use super::super::backend::EnvironmentInfo;
use super::super::client::{CALLS_IN_FLIGHT, ExecError, HANDSHAKE_DEADLINE, NONSENSE_LIMIT, ROUTES, URGENT_CALLS};
use super::super::session::ProcessSession;
use super::super::tap::TapFeed;
use super::super::target::AfterACut;
use super::super::wire::{self, InitializeParams, WireError, WireId, WireIncoming, WireOutgoing, code, method};

mod calls;
mod processes;
#[cfg(test)]
mod tests;

/// How long a lost connection may be missed. Servers keep what runs for a lease after it; the shortest ever seen was 30 s, and
/// resuming must be over before that. Then everything has failed.
pub const WINDOW: Duration = Duration::from_secs(25);

/// The pauses before a new connection; jitter takes up to a fifth, so that clients of one server do not come as one.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LAST: Duration = Duration::from_secs(2);

/// What a connection gets to be made.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Calls that may wait for a place in flight, or for the connection. The 500 starts of the largest known burst, twice over;
/// beyond it a call is refused.
const WAITING_CALLS: usize = 1024;

/// Reads of our own in flight; the other places are the callers'.
const READS_IN_FLIGHT: usize = 16;

/// Starts that failed without a word on whether they did, and must be ended should they turn up. The oldest is forgotten
/// beyond it; it has had time to turn up.
const GHOSTS: usize = 256;

/// What the server gets to end what runs when the connection is closed here.
const CLOSING: Duration = Duration::from_secs(2);

/// How often a server is asked for a process whose start was lost, and the pause between.
const FATE_LOOKS: u8 = 3;
const FATE_PAUSE: Duration = Duration::from_millis(300);

/// Whoever waits for an answer. Dropping it tells him that there will be none.
pub(super) trait Reply {
    /// Whether he has gone.
    fn is_gone(&self) -> bool;
}

/// A call.
#[derive(Debug)]
pub(super) struct Asked<R> {
    pub(super) method: &'static str,
    pub(super) params: Box<RawValue>,
    pub(super) kind: CallKind,
    /// Until when it is waited for, and how long its answer is once it was sent; `None` for ever.
    pub(super) until: Option<(Instant, Duration)>,
    /// Whether it was sent before, by a connection that is lost.
    pub(super) sent: bool,
    pub(super) reply: R,
}

/// What a call is to the rules above.
#[derive(Debug)]
pub(super) enum CallKind {
    /// Starts a process. Its session is followed from now on.
    Start(Box<NewProcess>),
    /// May be sent again, in its place among the calls of its process.
    Repeated {
        /// Whose.
        process_id: String,
    },
    /// May be sent again: it changes nothing, or nothing more than it did.
    Harmless,
    /// Is sent once.
    Once,
    /// Is sent once, before all others and beside the places.
    Urgent,
}

/// A process to be followed.
#[derive(Debug)]
pub(super) struct NewProcess {
    pub(super) process_id: String,
    pub(super) session: ProcessSession,
    pub(super) tap: TapFeed,
}

/// Everything that can wake the core.
#[derive(Debug)]
pub(super) enum RemoteEvent<R> {
    /// A loop works for the core. If one did before, its streams are gone.
    Begun,
    /// The streams are there.
    Connected { generation: u64 },
    /// They could not be had.
    Unreachable { generation: u64, reason: String, retry: Retry },
    /// A line came.
    Line { generation: u64, line: Bytes },
    /// The streams are gone.
    Lost { generation: u64, reason: String },
    /// Somebody calls.
    Asked(Asked<R>),
    /// Nobody holds the process any more, or waits for its start.
    Released { process_id: String },
    /// The process is to be killed.
    Killed { process_id: String },
    /// Nobody needs the server any more.
    Closing,
    /// No loop will work for the core any more.
    Abandoned { reason: String },
    /// Time has passed, or a tap has room.
    Tick,
}

/// Whether it may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It may.
    Later,
    /// It would not help.
    Never,
}

/// What is to be done then, in order.
#[derive(Debug)]
pub(super) enum RemoteEffect<R> {
    /// Make the streams of this generation.
    Connect { generation: u64 },
    /// Write this line.
    Send(Vec<u8>),
    /// Close the streams.
    Drop,
    /// Tell him.
    Answer(R, Result<Box<RawValue>, ExecError>),
    /// The loop is over.
    End,
}

/// Where a connection stands, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RemoteState {
    /// It was never up yet.
    Connecting,
    /// It is up.
    Up,
    /// It was lost and is being made again.
    Recovering,
    /// It will not be made again.
    Down,
}

#[derive(Debug)]
enum Stage {
    Idle,
    Pausing { at: Instant },
    Connecting { until: Instant },
    Greeting { id: i64, until: Instant },
    Up,
    Down { reason: String },
}

/// Since when there is no connection.
#[derive(Debug)]
struct Outage {
    until: Instant,
    reason: String,
    pause: Duration,
}

/// What is unanswered on the current connection.
#[derive(Debug)]
enum Flight<R> {
    /// A call; without its reply once its caller was told that it takes too long.
    Call {
        method: &'static str,
        params: Box<RawValue>,
        kind: CallKind,
        until: Option<(Instant, Duration)>,
        reply: Option<R>,
    },
    /// A read for a session.
    Read { process_id: String, after: u64 },
    /// A read that asks whether there is such a process.
    Fate { process_id: String },
    /// The end of a process nobody holds.
    Doom { process_id: String },
}

impl<R> Flight<R> {
    const fn is_urgent(&self) -> bool {
        matches!(self, Self::Doom { .. } | Self::Call { kind: CallKind::Urgent, .. })
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct RemoteCore<R> {
    client_name: String,
    after_a_cut: AfterACut,
    stage: Stage,
    outage: Option<Outage>,
    generation: u64,
    session_id: Option<String>,
    environment: Option<EnvironmentInfo>,
    next_id: i64,
    flights: BTreeMap<i64, Flight<R>>,
    urgent_in_flight: usize,
    reads_in_flight: usize,
    waiting: VecDeque<Asked<R>>,
    urgent: VecDeque<Asked<R>>,
    /// Processes of which a start or a write is in flight.
    busy: HashSet<String>,
    processes: BTreeMap<String, Process<R>>,
    doomed: BTreeMap<String, Doom>,
    ghosts: VecDeque<String>,
    /// Processes whose tap was full when last looked at.
    full: BTreeSet<String>,
    /// Processes whose tap was left behind.
    lagging: BTreeSet<String>,
    closing: Option<Instant>,
    nonsense: u32,
    jitter: u64,
    heard: Instant,
    stale: u64,
    last_error: Option<String>,
    /// The next look at everything that has a time; later than something's only if that was noted.
    look_at: Option<Instant>,
    effects: Vec<RemoteEffect<R>>,
}

/// The session this connection belongs to, in either place where servers say their lease.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Greeting {
    session_id: String,
    #[serde(default)]
    environment_info: Option<serde_json::Value>,
    #[serde(default)]
    lease_ms: Option<u64>,
}

impl<R: Reply> RemoteCore<R> {
    /// A core for a server that was never reached.
    pub(super) fn new(client_name: &str, after_a_cut: AfterACut, seed: u64, now: Instant) -> Self {
        Self {
            client_name: client_name.to_owned(),
            after_a_cut,
            stage: Stage::Idle,
            outage: None,
            generation: 0,
            session_id: None,
            environment: None,
            next_id: 1,
            flights: BTreeMap::new(),
            urgent_in_flight: 0,
            reads_in_flight: 0,
            waiting: VecDeque::new(),
            urgent: VecDeque::new(),
            busy: HashSet::new(),
            processes: BTreeMap::new(),
            doomed: BTreeMap::new(),
            ghosts: VecDeque::new(),
            full: BTreeSet::new(),
            lagging: BTreeSet::new(),
            closing: None,
            nonsense: 0,
            jitter: seed,
            heard: now,
            stale: 0,
            last_error: None,
            look_at: None,
            effects: Vec::new(),
        }
    }

    /// One event and everything that follows from it.
    pub(super) fn step(&mut self, event: RemoteEvent<R>, now: Instant) -> Vec<RemoteEffect<R>> {
        let current = self.generation;
        match event {
            RemoteEvent::Begun => self.begun(now),
            RemoteEvent::Connected { generation } if generation == current => self.greet(now),
            RemoteEvent::Unreachable { generation, reason, retry } if generation == current => {
                self.unreachable(reason, retry, now);
            }
            RemoteEvent::Line { generation, line } if generation == current => self.line(&line, now),
            RemoteEvent::Lost { generation, reason } if generation == current => self.lost(&reason, now),
            RemoteEvent::Connected { .. }
            | RemoteEvent::Unreachable { .. }
            | RemoteEvent::Line { .. }
            | RemoteEvent::Lost { .. } => self.stale += 1,
            RemoteEvent::Asked(asked) => self.asked(asked, now),
            RemoteEvent::Released { process_id } => self.released(&process_id),
            RemoteEvent::Killed { process_id } => self.doom(&process_id),
            RemoteEvent::Closing => self.close(now),
            RemoteEvent::Abandoned { reason } => self.fail(&reason),
            RemoteEvent::Tick => self.catch_up(),
        }
        if self.look_at.is_some_and(|at| at <= now) {
            self.look_around(now);
        }
        self.pump(now);
        std::mem::take(&mut self.effects)
    }

    /// When it wants a `Tick` at the latest.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.look_at
    }

    pub(super) const fn state(&self) -> RemoteState {
        match (&self.stage, &self.session_id) {
            (Stage::Up, _) => RemoteState::Up,
            (Stage::Down { .. }, _) => RemoteState::Down,
            (_, None) => RemoteState::Connecting,
            (_, Some(_)) => RemoteState::Recovering,
        }
    }

    /// Why it is down.
    pub(super) fn down_reason(&self) -> Option<&str> {
        match &self.stage {
            Stage::Down { reason } => Some(reason),
            _ => None,
        }
    }

    pub(super) const fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) const fn environment(&self) -> Option<&EnvironmentInfo> {
        self.environment.as_ref()
    }

    /// When the server was last heard of.
    pub(super) const fn heard(&self) -> Instant {
        self.heard
    }

    pub(super) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Processes followed, requests unanswered, messages of earlier generations dropped.
    pub(super) fn counts(&self) -> (usize, usize, u64) {
        (self.processes.len(), self.flights.len(), self.stale)
    }

    fn look_by(&mut self, at: Instant) {
        self.look_at = Some(self.look_at.map_or(at, |known| known.min(at)));
    }

    fn begun(&mut self, now: Instant) {
        match self.stage {
            Stage::Idle => self.connect(now),
            Stage::Pausing { at } => self.look_by(at),
            Stage::Connecting { .. } | Stage::Greeting { .. } | Stage::Up => {
                self.lost("the loop of the connection stopped", now);
            }
            Stage::Down { .. } => self.effects.push(RemoteEffect::End),
        }
    }

    fn connect(&mut self, now: Instant) {
        self.generation += 1;
        let mut until = now + CONNECT_DEADLINE;
        if let Some(outage) = &self.outage {
            // The last attempt has a moment, however late it begins.
            until = until.min(outage.until.max(now + Duration::from_secs(1)));
        }
        self.stage = Stage::Connecting { until };
        self.look_by(until);
        self.effects.push(RemoteEffect::Connect { generation: self.generation });
    }

    fn greet(&mut self, now: Instant) {
        if !matches!(self.stage, Stage::Connecting { .. }) {
            return;
        }
        self.nonsense = 0;
        let params =
            InitializeParams { client_name: self.client_name.clone(), resume_session_id: self.session_id.clone() };
        let id = self.send(method::INITIALIZE, params);
        let until = now + HANDSHAKE_DEADLINE;
        self.stage = Stage::Greeting { id, until };
        self.look_by(until);
    }

    fn unreachable(&mut self, reason: String, retry: Retry, now: Instant) {
        if !matches!(self.stage, Stage::Connecting { .. }) {
            return;
        }
        match (retry, &self.session_id) {
            (Retry::Never, None) => self.fail(&reason),
            // A server that took us once is not what refuses now: what stands before it does, while it is away.
            (Retry::Later | Retry::Never, _) => self.lost(&reason, now),
        }
    }

    /// The streams of this generation are gone, or are to go.
    fn lost(&mut self, reason: &str, now: Instant) {
        if matches!(self.stage, Stage::Idle | Stage::Pausing { .. } | Stage::Down { .. }) {
            return;
        }
        self.effects.push(RemoteEffect::Drop);
        self.last_error = Some(reason.to_owned());
        self.park(reason);
        if self.closing.is_some() || self.session_id.is_none() || self.after_a_cut == AfterACut::Over {
            return self.fail(reason);
        }
        let outage = self.outage.get_or_insert_with(|| {
            let lease = self.environment.as_ref().and_then(|info| info.lease_ms).map(Duration::from_millis);
            let window = lease.map_or(WINDOW, |lease| lease.min(WINDOW));
            Outage { until: now + window, reason: reason.to_owned(), pause: PAUSE_FIRST }
        });
        if now >= outage.until {
            return self.fail(reason);
        }
        let pause = jittered(&mut self.jitter, outage.pause);
        outage.pause = (outage.pause * 2).min(PAUSE_LAST);
        let at = (now + pause).min(outage.until);
        self.stage = Stage::Pausing { at };
        self.look_by(at);
    }

    /// The end of everything: nothing can be heard of the server any more.
    fn fail(&mut self, reason: &str) {
        if matches!(self.stage, Stage::Down { .. }) {
            return;
        }
        let reason = match (self.outage.take(), self.closing) {
            (_, Some(_)) => "it was closed here".to_owned(),
            (Some(outage), None) => format!("transport disconnected: {}; failed to resume: {reason}", outage.reason),
            (None, None) => reason.to_owned(),
        };
        self.effects.push(RemoteEffect::Drop);
        self.park(&reason);
        // Nobody can follow a session from here on, so none is missed below.
        self.stage = Stage::Down { reason: reason.clone() };
        self.last_error.get_or_insert_with(|| reason.clone());
        self.fail_processes(&reason);
        self.doomed.clear();
        for asked in self.urgent.drain(..).chain(self.waiting.drain(..)) {
            let error = ExecError::Disconnected { reason: reason.clone() };
            self.effects.push(RemoteEffect::Answer(asked.reply, Err(error)));
        }
        self.look_at = None;
        self.effects.push(RemoteEffect::End);
    }

    fn close(&mut self, now: Instant) {
        if matches!(self.stage, Stage::Down { .. }) || self.closing.is_some() {
            return;
        }
        self.closing = Some(now + CLOSING);
        self.look_by(now + CLOSING);
        if !matches!(self.stage, Stage::Up) {
            return self.fail("it was closed here");
        }
        let all: Vec<String> = self.processes.keys().cloned().collect();
        for process_id in all {
            self.released(&process_id);
        }
        self.close_if_done();
    }

    /// Ends once nothing runs any more that was asked to end.
    fn close_if_done(&mut self) {
        if self.closing.is_some() && self.processes.is_empty() && self.doomed.is_empty() {
            self.fail("it was closed here");
        }
    }

    /// Takes one line of the server.
    fn line(&mut self, line: &[u8], now: Instant) {
        if matches!(self.stage, Stage::Idle | Stage::Pausing { .. } | Stage::Connecting { .. } | Stage::Down { .. }) {
            return;
        }
        self.heard = now;
        match WireIncoming::parse(line) {
            Ok(WireIncoming::Notification { method, params }) => {
                self.nonsense = 0;
                self.notified(&method, &params, now);
            }
            Ok(WireIncoming::Response { id: WireId::Number(id), outcome }) => {
                self.nonsense = 0;
                match self.stage {
                    Stage::Greeting { id: hello, .. } if hello == id => self.greeted(outcome, now),
                    _ => self.answered(id, outcome, now),
                }
            }
            // Ours are numbers, so this answers nothing of ours.
            Ok(WireIncoming::Response { .. }) => {}
            Ok(WireIncoming::Request { id, method, .. }) => {
                let error = WireError::new(code::UNKNOWN_METHOD, format!("the method {method:?} is unknown"));
                if let Ok(line) = wire::error_line(&id, error) {
                    self.effects.push(RemoteEffect::Send(line));
                }
            }
            Err(error) => {
                self.nonsense += 1;
                tracing::debug!(%error, "an exec server sent something else than a message");
                if self.nonsense >= NONSENSE_LIMIT {
                    self.lost(&format!("it speaks something else: {error}"), now);
                }
            }
        }
    }

    /// The answer to `initialize`.
    fn greeted(&mut self, outcome: Result<Box<RawValue>, WireError>, now: Instant) {
        let greeting: Greeting = match outcome {
            Err(error) if error.code == code::SESSION_ATTACHED => return self.lost(&error.to_string(), now),
            Err(error) => return self.fail(&error.to_string()),
            Ok(answer) => match serde_json::from_str(answer.get()) {
                Ok(greeting) => greeting,
                Err(error) => return self.fail(&format!("its greeting cannot be read: {error}")),
            },
        };
        match &self.session_id {
            Some(known) if *known != greeting.session_id => {
                return self.fail("the server took up another session than this one");
            }
            _ => self.session_id = Some(greeting.session_id),
        }
        if let Some(info) = greeting.environment_info {
            // What a machine says of itself in other words than these is not worth the connection.
            let mut info: EnvironmentInfo = serde_json::from_value(info).unwrap_or_default();
            info.lease_ms = info.lease_ms.or(greeting.lease_ms);
            self.environment = Some(info);
        } else if greeting.lease_ms.is_some() {
            self.environment.get_or_insert_default().lease_ms = greeting.lease_ms;
        }
        self.stage = Stage::Up;
        self.outage = None;
        let ready = WireOutgoing::Notification { method: method::INITIALIZED, params: serde_json::Map::new() };
        if let Ok(line) = ready.to_line() {
            self.effects.push(RemoteEffect::Send(line));
        }
        self.take_up(now);
        self.look_by(now);
    }

    /// Does what time has made due.
    fn look_around(&mut self, now: Instant) {
        self.look_at = None;
        match self.stage {
            Stage::Pausing { at } if at <= now => self.connect(now),
            Stage::Pausing { at } => self.look_by(at),
            Stage::Connecting { until } if until <= now => {
                self.lost("no connection within its time", now);
            }
            Stage::Greeting { until, .. } if until <= now => self.lost("no answer to initialize", now),
            Stage::Connecting { until } | Stage::Greeting { until, .. } => self.look_by(until),
            Stage::Idle | Stage::Up | Stage::Down { .. } => {}
        }
        match self.closing {
            Some(until) if until <= now => self.fail("it was closed here"),
            Some(until) => self.look_by(until),
            None => {}
        }
        if matches!(self.stage, Stage::Down { .. }) {
            self.look_at = None;
            return;
        }
        self.look_at_calls(now);
        self.look_at_processes(now);
    }

    /// Sends a request and returns its id.
    fn send(&mut self, method: &str, params: impl Serialize) -> i64 {
        let id = self.next_id;
        self.next_id += 1;
        // None of the types that are sent can fail to be JSON; a call without its line would end by its deadline.
        if let Ok(line) = (WireOutgoing::Request { id, method, params }).to_line() {
            self.effects.push(RemoteEffect::Send(line));
        }
        id
    }
}

/// `pause` less up to a fifth of it.
fn jittered(state: &mut u64, pause: Duration) -> Duration {
    // splitmix64: any seed is good, and one of two clients is enough to spread them.
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let part = u32::try_from((mixed ^ (mixed >> 31)) % 1000).unwrap_or(0);
    pause - pause / 5 * part / 1000
}
