//! The core against a model of a server under random cuts, lost answers, refused sessions and callers that go away.
//!
//! What is checked, whatever happens: a process is started at most once; a call is answered at most once, and by the end unless
//! its caller has gone; a write is taken at most once, and once if it was accepted; a session has one terminal event, last, and
//! publishes what happened but for what it announces; what comes by an earlier connection changes nothing; a process nobody
//! holds does not outlive the first connection that holds.
//!
//! Laws: L5, L7, L9, L20.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use serde_json::{Value, json};
use tokio::sync::Notify;

use super::super::*;
use super::Caller;
use crate::exec::invariants::{
    invariant_exactly_one_terminal_and_last, invariant_positions_have_no_gap, invariant_published_is_sent_minus_lagged,
};
use crate::exec::tap::OutputTap;
use crate::exec::{OutputCursor, OutputStream, ProcessEvent};

/// Schedules run by default, and the variable that asks for more.
const SCHEDULES: u64 = 300;
const SCHEDULES_VARIABLE: &str = "PHONE_OPUS_EXEC_SCHEDULES";

/// A process at the server.
#[derive(Default)]
struct There {
    events: Vec<ProcessEvent>,
    evicted_before: u64,
    starts: u32,
    writes: Vec<String>,
    exited: bool,
    closed: bool,
}

impl There {
    fn read(&self, after: u64) -> Value {
        let mut chunks = Vec::new();
        for event in &self.events {
            if let ProcessEvent::Output { seq, stream, bytes } = event
                && *seq > after.max(self.evicted_before)
            {
                let (stream, chunk) = ((*stream).into(), crate::base::base64::Base64(bytes.clone()));
                chunks.push(serde_json::to_value(wire::WireChunk { seq: *seq, stream, chunk }).unwrap());
            }
        }
        // Ours says where the exit stands; others' guesses are the property of the log.
        let exit = self.events.iter().find_map(|event| match event {
            ProcessEvent::Exited { seq, code, .. } => Some((*seq, *code)),
            _ => None,
        });
        json!({"chunks": chunks, "nextSeq": self.events.len() + 1, "exited": exit.is_some(),
               "exitCode": exit.map(|(_, code)| code), "exitedSeq": exit.map(|(seq, _)| seq), "closed": self.closed,
               "failure": null})
    }
}

/// A process at the client.
struct Here {
    session: ProcessSession,
    _tap: OutputTap,
    caller: Caller,
    released: bool,
}

struct World {
    random: fastrand::Rng,
    now: Instant,
    core: RemoteCore<Caller>,
    /// The generation being connected, and the connected one.
    connecting: Option<u64>,
    linked: Option<u64>,
    to_server: VecDeque<(u64, Value)>,
    to_client: VecDeque<(u64, Bytes)>,
    there: BTreeMap<String, There>,
    here: BTreeMap<String, Here>,
    greeted: HashSet<u64>,
    answers: HashMap<u32, Vec<bool>>,
    asked: BTreeMap<u32, Caller>,
    accepted: BTreeSet<String>,
    writes: HashMap<u32, String>,
    next: u32,
    over: bool,
    calm: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let mut world = Self {
            random: fastrand::Rng::with_seed(seed),
            now,
            core: RemoteCore::new("model", AfterACut::Resumed, seed, now),
            connecting: None,
            linked: None,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            there: BTreeMap::new(),
            here: BTreeMap::new(),
            greeted: HashSet::new(),
            answers: HashMap::new(),
            asked: BTreeMap::new(),
            accepted: BTreeSet::new(),
            writes: HashMap::new(),
            next: 0,
            over: false,
            calm: false,
        };
        world.step(RemoteEvent::Begun);
        world
    }

    fn step(&mut self, event: RemoteEvent<Caller>) {
        let mut failed = Vec::new();
        for effect in self.core.step(event, self.now) {
            match effect {
                RemoteEffect::Connect { generation } => self.connecting = Some(generation),
                RemoteEffect::Send(line) => {
                    let generation = self.core.generation();
                    assert_eq!(self.linked, Some(generation), "something is sent without a connection");
                    self.to_server.push_back((generation, serde_json::from_slice(&line).unwrap()));
                }
                RemoteEffect::Drop => (self.linked, self.connecting) = (None, None),
                RemoteEffect::Answer(caller, outcome) => {
                    if let Some(write) = self.writes.get(&caller.number)
                        && outcome.is_ok()
                    {
                        self.accepted.insert(write.clone());
                    }
                    if outcome.is_err() {
                        failed.push(caller.number);
                    }
                    self.answers.entry(caller.number).or_default().push(outcome.is_ok());
                }
                RemoteEffect::End => self.over = true,
            }
        }
        let (_, in_flight, _) = self.core.counts();
        assert!(in_flight <= CALLS_IN_FLIGHT + URGENT_CALLS);
        // A start that failed is let go of by its caller.
        for number in failed {
            let its = self.here.iter_mut().find(|(_, here)| here.caller.number == number);
            if let Some((process_id, here)) = its {
                here.released = true;
                let process_id = process_id.clone();
                self.step(RemoteEvent::Released { process_id });
            }
        }
    }

    fn caller(&mut self) -> Caller {
        self.next += 1;
        let caller = Caller::new(self.next);
        self.asked.insert(self.next, caller.clone());
        caller
    }

    fn ask(&mut self, caller: Caller, method: &'static str, params: &Value, kind: CallKind) {
        let within = Duration::from_secs(30);
        let params = serde_json::value::to_raw_value(params).unwrap();
        let until = Some((self.now + within, within));
        self.step(RemoteEvent::Asked(Asked { method, params, kind, until, sent: false, reply: caller }));
    }

    fn some_process(&mut self) -> Option<String> {
        let all: Vec<_> = self.here.keys().cloned().collect();
        self.random.choice(all)
    }

    fn client_acts(&mut self) {
        match self.random.u8(0..10) {
            0..=2 if self.here.len() < 5 => {
                let caller = self.caller();
                let process_id = format!("p{}", caller.number);
                let session = ProcessSession::new();
                let (tap, ours) = OutputTap::levelled(1 << 20, std::sync::Arc::new(Notify::new()));
                let new = NewProcess { process_id: process_id.clone(), session: session.clone(), tap };
                let here = Here { session, _tap: ours, caller: caller.clone(), released: false };
                self.here.insert(process_id.clone(), here);
                self.ask(caller, method::START, &json!({"processId": process_id}), CallKind::Start(Box::new(new)));
            }
            3..=5 => {
                if let Some(process_id) = self.some_process() {
                    let caller = self.caller();
                    let write = format!("w{}", caller.number);
                    self.writes.insert(caller.number, write.clone());
                    let params = json!({"processId": process_id, "writeId": write});
                    self.ask(caller, method::WRITE, &params, CallKind::Repeated { process_id });
                }
            }
            6 => {
                if let Some(process_id) = self.some_process() {
                    let caller = self.caller();
                    self.ask(caller, method::SIGNAL, &json!({"processId": process_id}), CallKind::Urgent);
                }
            }
            7 => {
                let caller = self.caller();
                self.ask(caller, "fs/getMetadata", &json!({}), CallKind::Harmless);
            }
            8 => {
                if let Some(process_id) = self.some_process() {
                    self.release(&process_id);
                }
            }
            _ => {}
        }
    }

    fn release(&mut self, process_id: &str) {
        if let Some(here) = self.here.get_mut(process_id) {
            here.released = true;
            here.caller.gone.set(true);
            self.step(RemoteEvent::Released { process_id: process_id.to_owned() });
        }
    }

    fn push(&mut self, process_id: &str, event: &ProcessEvent) {
        // Nobody hears what happens while nobody is connected, and some of the rest is lost.
        let Some(linked) = self.linked.filter(|linked| self.greeted.contains(linked)) else { return };
        let line = Bytes::from(wire::event_line(process_id, event).unwrap().unwrap());
        if !self.calm && self.random.u8(0..12) == 0 {
            return;
        }
        if !self.calm && self.random.u8(0..10) == 0 && !self.to_client.is_empty() {
            let place = self.random.usize(0..self.to_client.len());
            self.to_client.insert(place, (linked, line));
        } else {
            self.to_client.push_back((linked, line));
        }
    }

    fn happen(&mut self, process_id: &str, make: impl FnOnce(u64) -> ProcessEvent) {
        let Some(there) = self.there.get_mut(process_id).filter(|there| !there.closed) else { return };
        let event = make(there.events.len() as u64 + 1);
        there.closed |= event.is_terminal();
        there.exited |= matches!(event, ProcessEvent::Exited { .. });
        there.events.push(event.clone());
        self.push(process_id, &event);
    }

    fn finish(&mut self, process_id: &str) {
        if self.there.get(process_id).is_some_and(|there| !there.exited) {
            self.happen(process_id, |seq| ProcessEvent::Exited { seq, code: 3, signal: None });
        }
        self.happen(process_id, |seq| ProcessEvent::Closed { seq });
    }

    fn process_acts(&mut self) {
        let all: Vec<_> = self.there.keys().cloned().collect();
        let Some(process_id) = self.random.choice(all) else { return };
        match self.random.u8(0..24) {
            0 => self.finish(&process_id),
            1 => {
                if let Some(there) = self.there.get_mut(&process_id) {
                    there.evicted_before = self.random.u64(0..=there.events.len() as u64);
                }
            }
            2 if self.there.get(&process_id).is_some_and(|there| !there.exited) => {
                self.happen(&process_id, |seq| ProcessEvent::Exited { seq, code: 3, signal: None });
            }
            _ => self.happen(&process_id, |seq| ProcessEvent::Output {
                seq,
                stream: OutputStream::Stdout,
                bytes: Bytes::from(format!("{seq};")),
            }),
        }
    }

    /// The server does the next thing it was asked, also what came by a connection that is lost.
    fn server_acts(&mut self) {
        let Some((generation, message)) = self.to_server.pop_front() else { return };
        let (params, id) = (&message["params"], &message["id"]);
        let process_id = params["processId"].as_str().unwrap_or_default().to_owned();
        let known = self.there.contains_key(&process_id);
        let unknown = || json!({"error": {"code": -32600, "message": "unknown process id"}});
        let mut answer = match message["method"].as_str().unwrap() {
            method::INITIALIZE if !self.calm && self.random.u8(0..6) == 0 => {
                json!({"error": {"code": -32010, "message": "attached"}})
            }
            method::INITIALIZE => {
                self.greeted.insert(generation);
                json!({"result": {"sessionId": "s"}})
            }
            method::START => {
                let there = self.there.entry(process_id).or_default();
                there.starts += 1;
                json!({"result": {"processId": params["processId"]}})
            }
            method::READ if known => {
                json!({"result": self.there[&process_id].read(params["afterSeq"].as_u64().unwrap())})
            }
            method::READ => unknown(),
            method::WRITE if known => {
                let write = params["writeId"].as_str().unwrap().to_owned();
                let there = self.there.get_mut(&process_id).unwrap();
                if !there.writes.contains(&write) {
                    there.writes.push(write);
                }
                json!({"result": {"status": "accepted"}})
            }
            method::WRITE => json!({"error": {"code": -32603, "message": "no such process"}}),
            method::TERMINATE => {
                let running = self.there.get(&process_id).is_some_and(|there| !there.closed);
                self.finish(&process_id);
                json!({"result": {"running": running}})
            }
            method::INITIALIZED => return,
            _ => json!({"result": {}}),
        };
        answer["id"] = id.clone();
        if self.linked == Some(generation) {
            self.to_client.push_back((generation, answer.to_string().into()));
        }
    }

    fn deliver(&mut self) {
        let Some((generation, line)) = self.to_client.pop_front() else { return };
        self.step(RemoteEvent::Line { generation, line });
    }

    /// Something an earlier connection brings late: it would break every law if it were taken.
    fn stale(&mut self) {
        let generation = self.core.generation();
        if generation < 2 {
            return;
        }
        let bogus = json!({"method": "process/closed", "params": {"processId": format!("p{}", self.next), "seq": 1}});
        self.step(RemoteEvent::Line { generation: generation - 1, line: bogus.to_string().into() });
        self.step(RemoteEvent::Lost { generation: generation - 1, reason: "late".to_owned() });
    }

    fn cut(&mut self) {
        let Some(generation) = self.linked else { return };
        // Some of what was written arrives all the same, from the front.
        let arrives = self.random.usize(0..=self.to_server.len());
        let heard = self.random.usize(0..=self.to_client.len());
        for _ in 0..heard {
            self.deliver();
        }
        self.to_server.truncate(arrives);
        self.to_client.clear();
        self.linked = None;
        self.step(RemoteEvent::Lost { generation, reason: "cut".to_owned() });
    }

    fn connect(&mut self) {
        let Some(generation) = self.connecting.take() else { return };
        if !self.calm && self.random.u8(0..4) == 0 && generation > 1 {
            let reason = "refused".to_owned();
            return self.step(RemoteEvent::Unreachable { generation, reason, retry: Retry::Later });
        }
        self.linked = Some(generation);
        self.step(RemoteEvent::Connected { generation });
    }

    fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        self.step(RemoteEvent::Tick);
    }

    fn act(&mut self) {
        match self.random.u8(0..100) {
            0..20 => self.client_acts(),
            20..45 => self.server_acts(),
            45..70 => self.deliver(),
            70..85 => self.process_acts(),
            85..88 => self.cut(),
            88..91 => self.connect(),
            91 => self.stale(),
            92 => {
                let ms = self.random.u64(0..6000);
                self.pass(ms);
            }
            _ => {
                let ms = self.random.u64(0..150);
                self.pass(ms);
            }
        }
    }

    /// Nothing fails any more: everything comes to rest.
    fn settle(&mut self, seed: u64, rounds: usize) {
        self.calm = true;
        for _ in 0..rounds {
            let quiet = self.core.counts().0 == 0 && self.core.counts().1 == 0 && self.core.waiting.is_empty();
            if quiet && self.core.state() == RemoteState::Up || self.over {
                break;
            }
            self.connect();
            while !self.to_server.is_empty() || !self.to_client.is_empty() {
                self.server_acts();
                self.deliver();
            }
            self.pass(100);
        }
        assert!(self.over || self.core.state() == RemoteState::Up, "seed {seed}: {:?}", self.core.state());
    }

    fn check(&mut self, seed: u64) {
        self.settle(seed, 60);
        if !self.over {
            for (process_id, here) in &self.here {
                let closed = self.there.get(process_id).is_none_or(|there| there.closed);
                assert!(!here.released || closed, "seed {seed}: {process_id} is held by nobody and runs");
            }
        }
        for process_id in self.there.keys().cloned().collect::<Vec<_>>() {
            self.finish(&process_id);
        }
        self.settle(seed, 400);
        for (process_id, there) in &self.there {
            assert!(there.starts <= 1, "seed {seed}: {process_id} was started {} times", there.starts);
            let mut once = there.writes.clone();
            once.sort();
            once.dedup();
            assert_eq!(once.len(), there.writes.len(), "seed {seed}");
        }
        for write in &self.accepted {
            let taken = self.there.values().filter(|there| there.writes.contains(write)).count();
            assert_eq!(taken, 1, "seed {seed}: {write} was accepted");
        }
        for (number, caller) in &self.asked {
            let answers = self.answers.get(number).map_or(0, Vec::len);
            assert!(answers <= 1, "seed {seed}: call {number} was answered {answers} times");
            assert!(answers == 1 || caller.gone.get(), "seed {seed}: call {number} was never answered");
        }
        for (process_id, here) in &self.here {
            let started = self.answers.get(&here.caller.number).is_some_and(|answers| answers == &[true]);
            let mut stream = here.session.subscribe(OutputCursor::start());
            let events: Vec<_> = std::iter::from_fn(|| stream.try_next()).collect();
            let context = format!("seed {seed}, {process_id}: {events:?}");
            invariant_positions_have_no_gap(&events).unwrap_or_else(|error| panic!("{error}; {context}"));
            if !started {
                continue;
            }
            invariant_exactly_one_terminal_and_last(&events).unwrap_or_else(|error| panic!("{error}; {context}"));
            if matches!(events.last(), Some(ProcessEvent::Closed { .. })) {
                invariant_published_is_sent_minus_lagged(&self.there[process_id].events, &events)
                    .unwrap_or_else(|error| panic!("{error}; {context}"));
            } else {
                assert!(self.over, "failed without a reason: {context}");
            }
        }
    }
}

#[test]
fn whatever_is_cut_lost_or_late_nothing_is_started_twice_and_every_session_ends_once() {
    let schedules = std::env::var(SCHEDULES_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(SCHEDULES);
    let first = 20_261_126_u64;
    println!("seeds {first}..{}", first + schedules);
    let (mut down, mut generations) = (0, 0);
    for seed in first..first + schedules {
        let mut world = World::new(seed);
        let steps = world.random.usize(50..600);
        for _ in 0..steps {
            world.act();
        }
        world.check(seed);
        down += u64::from(world.over);
        generations += world.core.generation();
    }
    println!("{generations} generations, {down} schedules ended down");
    assert!(generations > schedules * 2 && down < schedules, "the schedules reach what they are for");
}
