//! Which sessions there are, whose they are, and for how long.
//!
//! Owns: sessions with their lease, the names of processes, how long ended ones are remembered, and every bound on their number. May
//! not know: processes, sockets, clocks; whoever performs its effects does.
//!
//! ```text
//! Opened ──▶ attached ──lost──▶ awaited ──5 s──▶ detached ──lease over──▶ ended: its processes are, and it is forgotten
//!               ▲                  │                │
//!               └──── resumed ─────┴────────────────┘
//! name: free ──reserved──▶ taken ──closed──▶ remembered ──30 s, or too many──▶ free
//! ```
//!
//! Invariants:
//! 1. A session is attached to one connection at most, and what an earlier connection does to it has no effect.
//! 2. A session that is ended is ended once, and never resumed.
//! 3. A name stands for one process as long as it is remembered.
//! 4. Nothing here grows beyond its bound: sessions, names, remembered output.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Sessions at once, attached or not: one user's agents on one machine, four times over.
pub const SESSIONS: usize = 256;

/// Processes of one session that are not over; more than one user may have on most systems.
pub const LIVING: usize = 1024;

/// Processes of one session that are over and remembered, so that whoever was away can read how they ended. The oldest are forgotten.
pub const REMEMBERED: usize = 1024;

/// Bytes of output of such processes, all together, for the whole server: what 64 processes retain. The oldest are forgotten.
pub const REMEMBERED_BYTES: usize = 64 * 1024 * 1024;

/// How long such a process is remembered: longer than anybody's window to come back in.
pub const REMEMBER: Duration = Duration::from_secs(30);

/// How long the processes of a lost session go on as if it had a reader, which is soon there again: a busy one waits with what its
/// reader must not miss. Twice the longest pause between two attempts of a client to come back. After it they are not slowed.
pub const AWAITED: Duration = Duration::from_secs(5);

/// One connection, by a number that is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionNumber(pub u64);

/// What becomes of a session whose connection is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// It may be resumed for so long.
    For(Duration),
    /// It ends at once.
    None,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableEvent {
    /// A connection wants a new session, which is to have this name.
    Opened { connection: ConnectionNumber, session: String },
    /// A connection wants to take up this session.
    Resumed { connection: ConnectionNumber, session: String },
    /// A connection is gone.
    Lost { connection: ConnectionNumber },
    /// A process is to be started for a connection.
    Reserved { connection: ConnectionNumber, process: String },
    /// It was not started after all.
    NotStarted { session: String, process: String },
    /// It is over, and retains so much output.
    Closed { session: String, process: String, bytes: usize },
    /// Time has passed.
    Passed,
    /// The server stops.
    Stopped,
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableEffect {
    /// The connection has the session.
    Attach { session: String },
    /// Say that this session is not known.
    SayUnknown,
    /// Say that this session is another connection's, and have that one asked whether it is still there.
    SayAttached { to: ConnectionNumber },
    /// Say that there is no room.
    SayFull { what: &'static str },
    /// Say that the name is taken.
    SayTaken,
    /// Say that the connection has no session.
    SayNone,
    /// The name is the process's.
    Start { session: String },
    /// Nobody reads the session's processes any more; they go on and wait for nobody.
    Detach { session: String },
    /// End the session's processes, whatever they do, and forget them.
    End { session: String },
    /// Forget this process: what it retains, and its name.
    Forget { session: String, process: String },
}

#[derive(Debug, Default)]
struct Session {
    attached: Option<ConnectionNumber>,
    /// While it is awaited: until when.
    awaited: Option<Instant>,
    ends: Option<Instant>,
    processes: HashMap<String, Process>,
    living: usize,
    /// Those that are over, the oldest first.
    over: VecDeque<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    Living,
    /// It is over, retains so much, and is forgotten then.
    Over(usize, Instant),
}

/// The sessions of a server.
#[derive(Debug)]
pub struct SessionTable {
    lease: Lease,
    /// By name; ordered, so that two runs of one schedule do the same.
    sessions: BTreeMap<String, Session>,
    connections: HashMap<ConnectionNumber, String>,
    /// Of processes that are over.
    bytes: usize,
    stopped: bool,
}

impl SessionTable {
    /// No sessions, and what is to become of lost ones.
    #[must_use]
    pub fn new(lease: Lease) -> Self {
        Self { lease, sessions: BTreeMap::new(), connections: HashMap::new(), bytes: 0, stopped: false }
    }

    /// One step.
    pub fn step(&mut self, change: TableEvent, now: Instant) -> Vec<TableEffect> {
        match change {
            TableEvent::Opened { connection, session } => vec![self.open(connection, session)],
            TableEvent::Resumed { connection, session } => vec![self.resume(connection, session)],
            TableEvent::Lost { connection } => self.lose(connection, now),
            TableEvent::Reserved { connection, process } => vec![self.reserve(connection, process)],
            TableEvent::NotStarted { session, process } => self.free(&session, &process),
            TableEvent::Closed { session, process, bytes } => self.close(&session, process, bytes, now),
            TableEvent::Passed => self.pass(now),
            TableEvent::Stopped => {
                self.stopped = true;
                let all: Vec<String> = self.sessions.keys().cloned().collect();
                all.into_iter().filter_map(|session| self.end(session)).collect()
            }
        }
    }

    /// When the next thing is due by itself.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        let leases = self.sessions.values().filter_map(|session| session.awaited.or(session.ends));
        let remembered = self.sessions.values().filter_map(|session| {
            match session.over.front().and_then(|name| session.processes.get(name)) {
                Some(Process::Over(_, until)) => Some(*until),
                _ => None,
            }
        });
        leases.chain(remembered).min()
    }

    /// Whose session a connection has.
    #[must_use]
    pub fn session_of(&self, connection: ConnectionNumber) -> Option<&str> {
        self.connections.get(&connection).map(String::as_str)
    }

    /// Sessions there are, and those of them that have a connection.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.sessions.len(), self.connections.len())
    }

    fn open(&mut self, connection: ConnectionNumber, name: String) -> TableEffect {
        if self.stopped || self.sessions.len() >= SESSIONS {
            return TableEffect::SayFull { what: "sessions" };
        }
        self.connections.insert(connection, name.clone());
        self.sessions.insert(name.clone(), Session { attached: Some(connection), ..Session::default() });
        TableEffect::Attach { session: name }
    }

    fn resume(&mut self, connection: ConnectionNumber, name: String) -> TableEffect {
        match self.sessions.get_mut(&name) {
            None => TableEffect::SayUnknown,
            Some(Session { attached: Some(other), .. }) => TableEffect::SayAttached { to: *other },
            Some(session) => {
                session.attached = Some(connection);
                session.awaited = None;
                session.ends = None;
                self.connections.insert(connection, name.clone());
                TableEffect::Attach { session: name }
            }
        }
    }

    fn lose(&mut self, connection: ConnectionNumber, now: Instant) -> Vec<TableEffect> {
        let Some(name) = self.connections.remove(&connection) else { return Vec::new() };
        let Some(session) = self.sessions.get_mut(&name) else { return Vec::new() };
        match self.lease {
            Lease::For(lease) => {
                session.attached = None;
                session.awaited = Some(now + AWAITED.min(lease));
                session.ends = Some(now + lease);
                Vec::new()
            }
            Lease::None => self.end(name).into_iter().collect(),
        }
    }

    fn reserve(&mut self, connection: ConnectionNumber, process: String) -> TableEffect {
        let Some(name) = self.connections.get(&connection) else { return TableEffect::SayNone };
        let Some(session) = self.sessions.get_mut(name) else { return TableEffect::SayNone };
        if session.processes.contains_key(&process) {
            return TableEffect::SayTaken;
        }
        if session.living >= LIVING {
            return TableEffect::SayFull { what: "processes" };
        }
        session.living += 1;
        session.processes.insert(process, Process::Living);
        TableEffect::Start { session: name.clone() }
    }

    fn free(&mut self, name: &str, process: &str) -> Vec<TableEffect> {
        if let Some(session) = self.sessions.get_mut(name)
            && session.processes.get(process) == Some(&Process::Living)
        {
            session.processes.remove(process);
            session.living -= 1;
        }
        Vec::new()
    }

    fn close(&mut self, name: &str, process: String, bytes: usize, now: Instant) -> Vec<TableEffect> {
        let Some(session) = self.sessions.get_mut(name) else { return Vec::new() };
        let Some(place @ Process::Living) = session.processes.get_mut(&process) else { return Vec::new() };
        *place = Process::Over(bytes, now + REMEMBER);
        session.living -= 1;
        session.over.push_back(process);
        self.bytes += bytes;
        let mut effects = Vec::new();
        if session.over.len() > REMEMBERED {
            effects.extend(self.forget_oldest(name));
        }
        while self.bytes > REMEMBERED_BYTES {
            // Whoever has the oldest one of all.
            let oldest = self.sessions.iter().filter_map(|(name, session)| {
                match session.over.front().and_then(|process| session.processes.get(process)) {
                    Some(Process::Over(_, until)) => Some((*until, name.clone())),
                    _ => None,
                }
            });
            let Some((_, name)) = oldest.min() else { break };
            effects.extend(self.forget_oldest(&name));
        }
        effects
    }

    fn forget_oldest(&mut self, name: &str) -> Option<TableEffect> {
        let session = self.sessions.get_mut(name)?;
        let process = session.over.pop_front()?;
        if let Some(Process::Over(bytes, _)) = session.processes.remove(&process) {
            self.bytes -= bytes;
        }
        Some(TableEffect::Forget { session: name.to_owned(), process })
    }

    fn pass(&mut self, now: Instant) -> Vec<TableEffect> {
        let lapsed = |session: &Session| session.ends.is_some_and(|ends| ends <= now);
        let ended: Vec<String> =
            self.sessions.iter().filter(|(_, session)| lapsed(session)).map(|(name, _)| name.clone()).collect();
        let mut effects: Vec<TableEffect> = ended.into_iter().filter_map(|session| self.end(session)).collect();
        for (name, session) in &mut self.sessions {
            if session.awaited.take_if(|until| *until <= now).is_some() {
                effects.push(TableEffect::Detach { session: name.clone() });
            }
        }
        let names: Vec<String> = self.sessions.keys().cloned().collect();
        for name in names {
            while let Some(session) = self.sessions.get(&name)
                && let Some(Process::Over(_, until)) =
                    session.over.front().and_then(|process| session.processes.get(process))
                && *until <= now
            {
                effects.extend(self.forget_oldest(&name));
            }
        }
        effects
    }

    fn end(&mut self, name: String) -> Option<TableEffect> {
        let session = self.sessions.remove(&name)?;
        if let Some(connection) = session.attached {
            self.connections.remove(&connection);
        }
        for process in session.processes.values() {
            if let Process::Over(bytes, _) = process {
                self.bytes -= bytes;
            }
        }
        Some(TableEffect::End { session: name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);
    const ONE: ConnectionNumber = ConnectionNumber(1);
    const TWO: ConnectionNumber = ConnectionNumber(2);

    fn name(text: &str) -> String {
        text.to_owned()
    }

    fn opened(lease: Lease) -> (SessionTable, Instant) {
        let mut table = SessionTable::new(lease);
        let now = Instant::now();
        let effects = table.step(TableEvent::Opened { connection: ONE, session: name("s") }, now);
        assert_eq!(effects, [TableEffect::Attach { session: name("s") }]);
        (table, now)
    }

    fn reserve(table: &mut SessionTable, connection: ConnectionNumber, process: &str, now: Instant) -> TableEffect {
        table.step(TableEvent::Reserved { connection, process: name(process) }, now).remove(0)
    }

    fn close(table: &mut SessionTable, process: &str, bytes: usize, now: Instant) -> Vec<TableEffect> {
        table.step(TableEvent::Closed { session: name("s"), process: name(process), bytes }, now)
    }

    fn resume(table: &mut SessionTable, connection: ConnectionNumber, now: Instant) -> TableEffect {
        table.step(TableEvent::Resumed { connection, session: name("s") }, now).remove(0)
    }

    #[test]
    fn a_lost_session_is_resumed_within_its_lease_and_ended_after_it() {
        let (mut table, now) = opened(Lease::For(LEASE));
        assert_eq!(resume(&mut table, TWO, now), TableEffect::SayAttached { to: ONE });
        assert_eq!(table.step(TableEvent::Lost { connection: ONE }, now), []);
        // It is awaited for a moment, in which its processes lose nothing.
        assert_eq!(table.next_due(), Some(now + AWAITED));
        let detach = TableEffect::Detach { session: name("s") };
        assert_eq!(table.step(TableEvent::Passed, now + AWAITED), [detach]);
        assert_eq!(table.step(TableEvent::Passed, now + AWAITED), []);
        assert_eq!(table.next_due(), Some(now + LEASE));
        assert_eq!(table.step(TableEvent::Passed, now + LEASE - Duration::from_millis(1)), []);
        assert_eq!(resume(&mut table, TWO, now), TableEffect::Attach { session: name("s") });
        assert_eq!(table.next_due(), None);
        // The earlier connection is nobody.
        assert_eq!(table.step(TableEvent::Lost { connection: ONE }, now), []);
        assert_eq!(reserve(&mut table, ONE, "p", now), TableEffect::SayNone);
        table.step(TableEvent::Lost { connection: TWO }, now);
        assert_eq!(table.step(TableEvent::Passed, now + LEASE), [TableEffect::End { session: name("s") }]);
        assert_eq!(resume(&mut table, TWO, now), TableEffect::SayUnknown);
        assert_eq!(table.step(TableEvent::Passed, now + LEASE), [], "ended once");
        assert_eq!(table.counts(), (0, 0));
    }

    #[test]
    fn without_a_lease_the_end_of_the_connection_is_the_end() {
        let (mut table, now) = opened(Lease::None);
        let lost = table.step(TableEvent::Lost { connection: ONE }, now);
        assert_eq!(lost, [TableEffect::End { session: name("s") }]);
        assert_eq!(resume(&mut table, TWO, now), TableEffect::SayUnknown);
    }

    #[test]
    fn a_name_is_one_processs_while_it_is_remembered() {
        let (mut table, now) = opened(Lease::For(LEASE));
        let start = TableEffect::Start { session: name("s") };
        assert_eq!(reserve(&mut table, ONE, "p", now), start);
        assert_eq!(reserve(&mut table, ONE, "p", now), TableEffect::SayTaken);
        // One that did not start has no name.
        table.step(TableEvent::NotStarted { session: name("s"), process: name("p") }, now);
        assert_eq!(reserve(&mut table, ONE, "p", now), start);
        assert_eq!(close(&mut table, "p", 10, now), []);
        assert_eq!(close(&mut table, "p", 10, now), [], "closed once");
        assert_eq!(reserve(&mut table, ONE, "p", now), TableEffect::SayTaken);
        assert_eq!(table.next_due(), Some(now + REMEMBER));
        let forget = TableEffect::Forget { session: name("s"), process: name("p") };
        assert_eq!(table.step(TableEvent::Passed, now + REMEMBER), [forget]);
        assert_eq!(reserve(&mut table, ONE, "p", now), start);
        // The same name in another session is another process.
        table.step(TableEvent::Opened { connection: TWO, session: name("t") }, now);
        assert_eq!(reserve(&mut table, TWO, "p", now), TableEffect::Start { session: name("t") });
    }

    #[test]
    fn what_is_over_is_remembered_up_to_a_number_and_up_to_so_many_bytes() {
        let (mut table, now) = opened(Lease::For(LEASE));
        for n in 0..=REMEMBERED {
            reserve(&mut table, ONE, &n.to_string(), now);
            let effects = close(&mut table, &n.to_string(), 1, now);
            assert_eq!(effects.len(), usize::from(n == REMEMBERED), "{n}");
        }
        reserve(&mut table, ONE, "large", now);
        // One of one byte makes room for each byte beyond.
        let effects = close(&mut table, "large", REMEMBERED_BYTES - 1000, now);
        assert_eq!(effects.len(), 1 + (REMEMBERED - 1 - 1000), "{}", effects.len());
        assert!(table.bytes <= REMEMBERED_BYTES);
        reserve(&mut table, ONE, "larger", now);
        let effects = close(&mut table, "larger", REMEMBERED_BYTES + 1, now);
        assert!(matches!(effects.last(), Some(TableEffect::Forget { process, .. }) if process == "larger"));
        assert_eq!(table.bytes, 0);
    }

    #[test]
    fn full_is_an_answer() {
        let (mut table, now) = opened(Lease::For(LEASE));
        for n in 0..LIVING {
            assert!(matches!(reserve(&mut table, ONE, &n.to_string(), now), TableEffect::Start { .. }));
        }
        assert_eq!(reserve(&mut table, ONE, "more", now), TableEffect::SayFull { what: "processes" });
        for n in 1..SESSIONS {
            let connection = ConnectionNumber(10 + n as u64);
            table.step(TableEvent::Opened { connection, session: n.to_string() }, now);
        }
        let full = table.step(TableEvent::Opened { connection: TWO, session: name("more") }, now);
        assert_eq!(full, [TableEffect::SayFull { what: "sessions" }]);
        let ends = table.step(TableEvent::Stopped, now);
        assert_eq!(ends.len(), SESSIONS);
        let full = table.step(TableEvent::Opened { connection: TWO, session: name("late") }, now);
        assert_eq!(full, [TableEffect::SayFull { what: "sessions" }]);
    }

    #[test]
    fn whatever_happens_each_session_has_one_connection_and_ends_once() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut table = SessionTable::new(Lease::For(LEASE));
            let mut now = Instant::now();
            let mut ended = std::collections::HashSet::new();
            let mut known: Vec<String> = Vec::new();
            for step in 0..200_u64 {
                let connection = ConnectionNumber(random.u64(1..6));
                let session = random.choice(&known).cloned().unwrap_or_default();
                let process = random.u8(0..4).to_string();
                let change = match random.u8(0..8) {
                    0 if table.session_of(connection).is_none() => {
                        known.push(step.to_string());
                        TableEvent::Opened { connection, session: step.to_string() }
                    }
                    1 if table.session_of(connection).is_none() => TableEvent::Resumed { connection, session },
                    2 => TableEvent::Lost { connection },
                    3 | 4 => TableEvent::Reserved { connection, process },
                    5 => TableEvent::Closed { session, process, bytes: random.usize(0..REMEMBERED_BYTES / 2) },
                    6 => TableEvent::NotStarted { session, process },
                    _ => {
                        now += Duration::from_secs(random.u64(0..20));
                        TableEvent::Passed
                    }
                };
                for effect in table.step(change, now) {
                    match effect {
                        TableEffect::End { session } => assert!(ended.insert(session), "seed {seed}: ended twice"),
                        TableEffect::Attach { session } | TableEffect::Start { session } => {
                            assert!(!ended.contains(&session), "seed {seed}: used after its end");
                        }
                        _ => {}
                    }
                }
                let attached = table.sessions.values().filter_map(|session| session.attached);
                let mut attached: Vec<_> = attached.collect();
                attached.sort_unstable();
                attached.dedup();
                assert_eq!(attached.len(), table.connections.len(), "seed {seed}");
                let bytes = table.sessions.values().flat_map(|session| session.processes.values());
                let bytes: usize = bytes.map(|p| if let Process::Over(bytes, _) = p { *bytes } else { 0 }).sum();
                assert_eq!(bytes, table.bytes, "seed {seed}");
                assert!(table.bytes <= REMEMBERED_BYTES, "seed {seed}");
            }
        }
    }
}
