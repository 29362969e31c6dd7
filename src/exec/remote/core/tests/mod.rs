//! The core against a server that is played line by line: the twenty cases of a faulty peer, and what the seed's design and
//! other clients got wrong. Numbers in the names are those of the protocol's list of cases.
//!
//! Laws: L5, L7, L9, L20.

use std::cell::Cell;
use std::rc::Rc;

use serde_json::{Value, json};
use tokio::sync::Notify;

use super::*;
use crate::exec::core::{REORDER_BYTES, REORDER_EVENTS};
use crate::exec::invariants::{
    invariant_exactly_one_terminal_and_last, invariant_positions_have_no_gap, invariant_published_is_sent_minus_lagged,
};
use crate::exec::tap::OutputTap;
use crate::exec::{OutputCursor, OutputStream, ProcessEvent};

/// Somebody who waits for an answer.
#[derive(Debug, Clone)]
struct Caller {
    number: u32,
    gone: Rc<Cell<bool>>,
}

impl Caller {
    fn new(number: u32) -> Self {
        Self { number, gone: Rc::default() }
    }
}

impl Reply for Caller {
    fn is_gone(&self) -> bool {
        self.gone.get()
    }
}

mod model;

type Told = Result<Value, ExecError>;

struct Rig {
    core: RemoteCore<Caller>,
    now: Instant,
    /// Requests and notifications sent and not looked at.
    sent: Vec<Value>,
    told: Vec<(u32, Told)>,
    drops: usize,
    ended: bool,
}

/// A started process as its caller sees it.
struct Seen {
    session: ProcessSession,
    tap: OutputTap,
}

impl Seen {
    fn events(&self) -> Vec<ProcessEvent> {
        let mut stream = self.session.subscribe(OutputCursor::start());
        let events: Vec<_> = std::iter::from_fn(|| stream.try_next()).collect();
        invariant_positions_have_no_gap(&events).unwrap();
        events
    }

    fn tapped(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some((_, bytes)) = self.tap.try_next() {
            all.extend_from_slice(&bytes);
        }
        all
    }
}

fn output(seq: u64) -> ProcessEvent {
    let stream = if seq.is_multiple_of(3) { OutputStream::Stderr } else { OutputStream::Stdout };
    ProcessEvent::Output { seq, stream, bytes: Bytes::from(format!("[{seq}]")) }
}

fn line_of(process_id: &str, event: &ProcessEvent) -> Bytes {
    wire::event_line(process_id, event).unwrap().unwrap().into()
}

/// What a server's ring answers to a read.
fn answer(events: &[ProcessEvent], after: u64, evicted_before: u64) -> Value {
    let (mut exited, mut closed, mut chunks) = (None, false, Vec::new());
    for event in events {
        match event {
            ProcessEvent::Output { seq, stream, bytes } if *seq > after && *seq >= evicted_before => {
                let chunk = wire::WireChunk {
                    seq: *seq,
                    stream: (*stream).into(),
                    chunk: crate::base::base64::Base64(bytes.clone()),
                };
                chunks.push(serde_json::to_value(chunk).unwrap());
            }
            ProcessEvent::Exited { code, .. } => exited = Some(*code),
            ProcessEvent::Closed { .. } => closed = true,
            _ => {}
        }
    }
    json!({"chunks": chunks, "nextSeq": events.len() + 1, "exited": exited.is_some(), "exitCode": exited, "closed": closed,
           "failure": null})
}

impl Rig {
    fn new(after_a_cut: AfterACut) -> Self {
        let now = Instant::now();
        let core = RemoteCore::new("test", after_a_cut, 7, now);
        Self { core, now, sent: Vec::new(), told: Vec::new(), drops: 0, ended: false }
    }

    /// A rig that is up.
    fn up() -> Self {
        let mut rig = Self::new(AfterACut::Resumed);
        rig.step(RemoteEvent::Begun);
        rig.greet("s");
        rig
    }

    fn step(&mut self, event: RemoteEvent<Caller>) {
        for effect in self.core.step(event, self.now) {
            match effect {
                RemoteEffect::Send(line) => self.sent.push(serde_json::from_slice(&line).unwrap()),
                RemoteEffect::Answer(caller, outcome) => {
                    let told = outcome.map(|value| serde_json::from_str(value.get()).unwrap());
                    self.told.push((caller.number, told));
                }
                RemoteEffect::Drop => self.drops += 1,
                RemoteEffect::End => self.ended = true,
                RemoteEffect::Connect { .. } => {}
            }
        }
    }

    /// Lets time pass, in as many steps as the core wants.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.core.due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.step(RemoteEvent::Tick);
        }
        self.now = end;
        self.step(RemoteEvent::Tick);
    }

    fn wait_ms(&mut self, ms: u64) {
        self.wait(Duration::from_millis(ms));
    }

    /// The connection is there, and the server takes up this session.
    fn greet(&mut self, session: &str) {
        self.connected();
        let hello = self.take(method::INITIALIZE);
        self.reply(&hello, json!({"sessionId": session}));
    }

    fn connected(&mut self) {
        let generation = self.core.generation();
        self.step(RemoteEvent::Connected { generation });
    }

    fn hear(&mut self, line: impl Into<Bytes>) {
        let generation = self.core.generation();
        self.step(RemoteEvent::Line { generation, line: line.into() });
    }

    fn say(&mut self, message: &Value) {
        self.hear(message.to_string());
    }

    fn happens(&mut self, process_id: &str, event: &ProcessEvent) {
        self.hear(line_of(process_id, event));
    }

    fn cut(&mut self) {
        let generation = self.core.generation();
        self.step(RemoteEvent::Lost { generation, reason: "cut".to_owned() });
    }

    /// Cuts, waits and connects again.
    fn cut_and_resume(&mut self) {
        self.cut();
        self.wait_ms(100);
        self.greet("s");
    }

    fn ask(&mut self, number: u32, method: &'static str, params: &Value, kind: CallKind) -> Caller {
        let caller = Caller::new(number);
        let params = serde_json::value::to_raw_value(params).unwrap();
        let within = Duration::from_secs(30);
        let until = Some((self.now + within, within));
        self.step(RemoteEvent::Asked(Asked { method, params, kind, until, sent: false, reply: caller.clone() }));
        caller
    }

    fn ask_to_start(&mut self, number: u32, process_id: &str) -> Seen {
        let session = ProcessSession::new();
        let (feed, tap) = OutputTap::levelled(1024 * 1024, std::sync::Arc::new(Notify::new()));
        let new = NewProcess { process_id: process_id.to_owned(), session: session.clone(), tap: feed };
        self.ask(number, method::START, &json!({"processId": process_id}), CallKind::Start(Box::new(new)));
        Seen { session, tap }
    }

    fn start(&mut self, process_id: &str) -> Seen {
        let seen = self.ask_to_start(1000, process_id);
        let start = self.take(method::START);
        self.reply(&start, json!({"processId": process_id}));
        assert_eq!(self.told.pop().map(|(number, told)| (number, told.is_ok())), Some((1000, true)));
        seen
    }

    fn write(&mut self, number: u32, process_id: &str, write_id: &str) {
        let kind = CallKind::Repeated { process_id: process_id.to_owned() };
        self.ask(number, method::WRITE, &json!({"processId": process_id, "writeId": write_id}), kind);
    }

    /// The first request of this method that was sent and not looked at.
    fn take(&mut self, method: &str) -> Value {
        self.try_take(method).unwrap_or_else(|| panic!("{method} was not sent; sent: {:?}", self.sent))
    }

    fn try_take(&mut self, method: &str) -> Option<Value> {
        let place = self.sent.iter().position(|message| message["method"] == method)?;
        Some(self.sent.remove(place))
    }

    fn reply(&mut self, request: &Value, result: Value) {
        self.say(&json!({"id": request["id"], "result": result}));
    }

    fn refuse(&mut self, request: &Value, code: i64, message: &str) {
        self.say(&json!({"id": request["id"], "error": {"code": code, "message": message}}));
    }

    /// Answers the next read out of what has happened.
    fn answer_read(&mut self, events: &[ProcessEvent], evicted_before: u64) {
        let read = self.take(method::READ);
        let after = read["params"]["afterSeq"].as_u64().unwrap();
        self.reply(&read, answer(events, after, evicted_before));
    }

    fn told(&mut self) -> Vec<(u32, Told)> {
        std::mem::take(&mut self.told)
    }
}

fn run_of(outputs: u64) -> Vec<ProcessEvent> {
    let mut events: Vec<_> = (1..=outputs).map(output).collect();
    events.push(ProcessEvent::Exited { seq: outputs + 1, code: 7, signal: None });
    events.push(ProcessEvent::Closed { seq: outputs + 2 });
    events
}

#[test]
fn case_20_reversed_doubled_and_late_events_are_published_once_and_in_order() {
    let mut rig = Rig::up();
    let mut seen = rig.start("p");
    let sent = run_of(40);
    for event in sent.iter().rev() {
        rig.happens("p", event);
        rig.happens("p", event);
    }
    for event in &sent {
        rig.happens("p", event);
    }
    assert_eq!(seen.events(), sent);
    let whole: String = (1..=40).map(|seq| format!("[{seq}]")).collect();
    assert_eq!((String::from_utf8(seen.tapped()).unwrap(), seen.tap.lost()), (whole, 0));
    // Nothing is left of it, and what comes now is nobody's.
    assert_eq!(rig.core.counts().0, 0);
    rig.happens("p", &output(41));
    assert_eq!(seen.events(), sent);
}

#[test]
fn case_21_position_zero_and_a_far_future_position_disturb_nothing() {
    let mut rig = Rig::up();
    let seen = rig.start("p");
    let zero = ProcessEvent::Output { seq: 0, stream: OutputStream::Stdout, bytes: Bytes::from_static(b"zero") };
    rig.happens("p", &zero);
    rig.happens("p", &output(100_000));
    let sent = run_of(3);
    for event in &sent {
        rig.happens("p", event);
    }
    assert_eq!(seen.events(), sent);
}

#[test]
fn case_22_s1_b5_a_lost_event_is_read_back_within_a_second_and_the_session_ends() {
    let mut rig = Rig::up();
    let seen = rig.start("p");
    let sent = run_of(3);
    for event in sent.iter().filter(|event| event.reached() != Some(2)) {
        rig.happens("p", event);
    }
    assert_eq!(seen.events(), [output(1)]);
    rig.wait_ms(250);
    rig.answer_read(&sent, 0);
    assert_eq!(seen.events(), sent);
    assert_eq!(rig.core.counts().0, 0, "a session that has ended leaves no route");
}

#[test]
fn case_23_a_lost_close_is_found_out_within_a_second() {
    let mut rig = Rig::up();
    let seen = rig.start("p");
    let sent = run_of(2);
    for event in &sent[..3] {
        rig.happens("p", event);
    }
    rig.wait_ms(600);
    rig.answer_read(&sent, 0);
    assert_eq!(seen.events(), sent);
}

#[test]
fn case_24_what_is_lost_and_evicted_is_announced_and_the_rest_goes_on() {
    let mut rig = Rig::up();
    let mut seen = rig.start("p");
    let sent = run_of(9);
    rig.happens("p", &sent[0]);
    rig.happens("p", &sent[8]);
    rig.wait_ms(250);
    rig.answer_read(&sent[..9], 6);
    for event in &sent[9..] {
        rig.happens("p", event);
    }
    let events = seen.events();
    assert_eq!(events[..3], [output(1), ProcessEvent::Lagged { from: 2, to: 5 }, output(6)]);
    invariant_published_is_sent_minus_lagged(&sent, &events).unwrap();
    invariant_exactly_one_terminal_and_last(&events).unwrap();
    assert_eq!((seen.tapped(), seen.tap.lost()), (b"[1][6][7][8][9]".to_vec(), 4));
}

#[test]
fn case_25_s6_an_undecodable_event_is_its_own_sessions_and_is_read_back() {
    let mut rig = Rig::up();
    let (hurt, other) = (rig.start("p"), rig.start("q"));
    rig.happens("p", &output(1));
    rig.say(
        &json!({"method": "process/output", "params": {"processId": "p", "seq": 2, "stream": "stdout", "chunk": "!"}}),
    );
    rig.happens("q", &output(1));
    rig.wait_ms(250);
    rig.answer_read(&[output(1), output(2)], 0);
    rig.happens("q", &output(2));
    assert_eq!(hurt.events(), [output(1), output(2)]);
    assert_eq!(other.events(), [output(1), output(2)]);
    assert_eq!(rig.core.state(), RemoteState::Up);
}

#[test]
fn eight_messages_in_a_row_that_are_none_are_a_lost_connection() {
    let mut rig = Rig::up();
    let seen = rig.start("p");
    for _ in 0..7 {
        rig.hear("not a message");
    }
    rig.happens("p", &output(1));
    for _ in 0..8 {
        rig.hear("not a message");
    }
    assert_eq!(rig.core.state(), RemoteState::Recovering);
    rig.wait_ms(100);
    rig.greet("s");
    rig.answer_read(&run_of(1), 0);
    assert_eq!(seen.events(), run_of(1));
}

#[test]
fn case_26_s9_a_cut_in_the_middle_loses_nothing_and_doubles_nothing() {
    let mut rig = Rig::up();
    let mut seen = rig.start("p");
    let sent = run_of(20);
    for event in &sent[..7] {
        rig.happens("p", event);
    }
    rig.cut();
    assert_eq!((rig.core.state(), rig.drops), (RemoteState::Recovering, 1));
    let old = rig.core.generation();
    rig.wait_ms(100);
    assert_eq!(rig.core.generation(), old + 1);
    rig.connected();
    let hello = rig.take(method::INITIALIZE);
    assert_eq!(hello["params"]["resumeSessionId"], "s");
    rig.reply(&hello, json!({"sessionId": "s"}));
    let read = rig.take(method::READ);
    assert_eq!(read["params"]["afterSeq"], 7, "it goes on where it was");
    // Live ones come before the read is answered, some of them twice.
    for event in &sent[9..15] {
        rig.happens("p", event);
    }
    rig.reply(&read, answer(&sent[..15], 7, 0));
    for event in &sent[12..] {
        rig.happens("p", event);
    }
    assert_eq!(seen.events(), sent);
    assert_eq!((seen.tapped().len(), seen.tap.lost()), ((1..=20).map(output_len).sum::<usize>(), 0));
}

fn output_len(seq: u64) -> usize {
    format!("[{seq}]").len()
}

#[test]
fn case_27_b7_what_streams_in_before_the_recovery_read_is_kept_whatever_it_weighs() {
    let mut rig = Rig::up();
    let mut seen = rig.start("p");
    let piece = Bytes::from(vec![b'x'; 4096]);
    let event = |seq| ProcessEvent::Output { seq, stream: OutputStream::Stdout, bytes: piece.clone() };
    rig.happens("p", &event(1));
    rig.cut_and_resume();
    let read = rig.take(method::READ);
    // 50 MB behind a hole, where any other bound would have it fail or discard.
    let last = 50_000_000 / 4096;
    for seq in 3..=last {
        rig.happens("p", &event(seq));
    }
    assert!(last as usize > REORDER_EVENTS && last as usize * 4096 > REORDER_BYTES);
    rig.reply(&read, answer(&[event(1), event(2)], 1, 0));
    assert_eq!(seen.session.last_seq(), last);
    assert_eq!((seen.tapped().len(), seen.tap.lost()), (last as usize * 4096, 0));
    assert_eq!(rig.try_take(method::READ), None, "nothing has to be read again");
}

#[test]
fn b6_two_busy_streams_far_apart_are_whole() {
    // The most ever seen: 755 positions and 2.2 MB apart; here twice as far.
    let mut rig = Rig::up();
    let mut seen = rig.start("p");
    let piece = Bytes::from(vec![b'x'; 4096]);
    let event = |seq| ProcessEvent::Output { seq, stream: OutputStream::Stdout, bytes: piece.clone() };
    for block in 0..3 {
        let first = block * 1500 + 1;
        for seq in (first + 1..first + 1500).chain([first]) {
            rig.happens("p", &event(seq));
        }
        assert_eq!(seen.session.last_seq(), first + 1499);
    }
    assert_eq!((seen.tapped().len(), seen.tap.lost()), (3 * 1500 * 4096, 0));
}

#[test]
fn case_28_an_attached_session_is_asked_for_again_until_it_is_free() {
    let mut rig = Rig::up();
    let seen = rig.start("p");
    rig.happens("p", &output(1));
    rig.cut();
    for pause in [100, 200, 400] {
        rig.wait_ms(pause);
        rig.connected();
        let hello = rig.take(method::INITIALIZE);
        rig.refuse(&hello, code::SESSION_ATTACHED, "attached elsewhere");
        assert_eq!(rig.core.state(), RemoteState::Recovering);
    }
    rig.wait_ms(800);
    rig.greet("s");
    assert_eq!((rig.core.state(), rig.core.generation()), (RemoteState::Up, 5));
    rig.answer_read(&run_of(1), 0);
    assert_eq!(seen.events(), run_of(1));
}

fn is_failed_with(seen: &Seen, words: &[&str]) {
    let events = seen.events();
    invariant_exactly_one_terminal_and_last(&events).unwrap();
    let Some(ProcessEvent::Failed { message }) = events.last() else { panic!("not failed: {events:?}") };
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
}

#[test]
fn case_29_an_unknown_session_fails_everything_once_and_says_why() {
    let mut rig = Rig::up();
    let (one, two) = (rig.start("p"), rig.start("q"));
    rig.happens("p", &output(1));
    rig.happens("p", &output(3));
    rig.cut();
    rig.wait_ms(100);
    rig.connected();
    let hello = rig.take(method::INITIALIZE);
    rig.refuse(&hello, code::INVALID_REQUEST, "unknown session id s");
    for seen in [&one, &two] {
        is_failed_with(seen, &["transport disconnected: cut", "failed to resume", "unknown session id s"]);
    }
    // What waited behind a hole is shown first, and the hole is announced.
    assert_eq!(one.events()[..3], [output(1), ProcessEvent::Lagged { from: 2, to: 2 }, output(3)]);
    assert!(rig.ended && rig.core.state() == RemoteState::Down);
}

#[test]
fn case_30_another_session_than_ours_is_final() {
    let mut rig = Rig::up();
    let seen = rig.start("p");
    rig.cut();
    rig.wait_ms(100);
    rig.greet("somebody else's");
    is_failed_with(&seen, &["another session"]);
    assert!(rig.ended);
}

#[test]
fn a_server_that_stays_away_is_waited_for_its_lease_or_25_seconds_and_no_longer() {
    for (lease, window) in [(None, 25), (Some(60_000), 25), (Some(10_000), 10)] {
        let mut rig = Rig::new(AfterACut::Resumed);
        rig.step(RemoteEvent::Begun);
        rig.connected();
        let hello = rig.take(method::INITIALIZE);
        rig.reply(&hello, json!({"sessionId": "s", "environmentInfo": {"leaseMs": lease}}));
        let seen = rig.start("p");
        let began = rig.now;
        rig.cut();
        let mut attempts = 0;
        while !rig.ended {
            rig.wait_ms(10);
            let generation = rig.core.generation();
            if matches!(rig.core.stage, Stage::Connecting { .. }) {
                attempts += 1;
                let reason = "refused".to_owned();
                rig.step(RemoteEvent::Unreachable { generation, reason, retry: Retry::Later });
            }
        }
        let took = rig.now - began;
        assert!(took <= Duration::from_secs(window + 1) && took >= Duration::from_secs(window - 1), "{took:?}");
        assert!((8..30).contains(&attempts), "{attempts} attempts in {window} s");
        is_failed_with(&seen, &["transport disconnected: cut; failed to resume: refused"]);
    }
}

#[test]
fn what_cannot_be_resumed_is_over_with_its_connection() {
    let mut rig = Rig::new(AfterACut::Over);
    rig.step(RemoteEvent::Begun);
    rig.greet("s");
    let seen = rig.start("p");
    rig.cut();
    is_failed_with(&seen, &["cut"]);
    assert!(rig.ended);
}

#[test]
fn case_31_s7_a_server_that_never_answers_is_an_answer_and_at_last_a_lost_connection() {
    let mut rig = Rig::up();
    for number in 0..64 {
        rig.ask(number, "environment/info", &json!(null), CallKind::Harmless);
    }
    rig.ask(64, "environment/info", &json!(null), CallKind::Harmless);
    let sent = |rig: &Rig| rig.sent.iter().filter(|message| message["method"] == "environment/info").count();
    assert_eq!(sent(&rig), 64, "at most so many are in flight");
    rig.wait_ms(29_000);
    assert!(rig.told().is_empty());
    rig.wait_ms(1_500);
    let told = rig.told();
    assert_eq!(told.len(), 64);
    for (number, outcome) in told {
        assert!(matches!(outcome, Err(ExecError::Deadline { .. })), "{number}: {outcome:?}");
    }
    assert_eq!(rig.core.state(), RemoteState::Recovering, "it answers nothing any more");
    rig.wait_ms(120_000);
    let told = rig.told();
    assert!(matches!(&told[..], [(64, Err(ExecError::Disconnected { .. } | ExecError::NotDone { .. }))]), "{told:?}");
}

#[test]
fn a_call_that_waited_for_its_turn_has_its_time_from_when_it_is_sent() {
    let mut rig = Rig::up();
    for number in 0..65 {
        rig.ask(number, "environment/info", &json!(null), CallKind::Harmless);
    }
    let first = rig.take("environment/info");
    rig.wait_ms(29_000);
    rig.reply(&first, json!({}));
    assert_eq!(rig.told().len(), 1, "the last one has its turn now");
    rig.wait_ms(1_500);
    assert_eq!(rig.told().len(), 63, "the others lapse, and the last one's time has only begun");
    rig.wait_ms(29_000);
    assert!(matches!(&rig.told()[..], [(64, Err(ExecError::Deadline { .. }))]));
}

#[test]
fn a_call_that_is_repeated_gets_no_second_time() {
    // Its first connection was lost with so much of its 30 s gone; the next one is up half a second later.
    for (gone, left) in [(0, 29_500), (10_000, 19_500), (29_000, 500)] {
        let mut rig = Rig::up();
        let _seen = rig.start("p");
        rig.write(1, "p", "first");
        let first = rig.take(method::WRITE);
        rig.wait_ms(gone);
        rig.cut();
        rig.wait_ms(500);
        rig.greet("s");
        let again = rig.take(method::WRITE);
        assert_ne!(again["id"], first["id"], "{gone} ms: it is sent again");
        rig.wait_ms(left - 1);
        assert!(rig.told().is_empty(), "{gone} ms: its time is not over");
        rig.wait_ms(1);
        let told = rig.told();
        assert!(matches!(&told[..], [(1, Err(ExecError::Deadline { .. }))]), "{gone} ms: {told:?}");
        // Its place is free when the answer comes, and nobody is told twice.
        rig.write(2, "p", "second");
        assert_eq!(rig.try_take(method::WRITE), None);
        rig.reply(&again, json!({"status": "accepted"}));
        assert_eq!((rig.told().len(), rig.take(method::WRITE)["params"]["writeId"].as_str()), (0, Some("second")));
    }
}

#[test]
fn signals_and_ends_pass_what_waits_for_a_place() {
    let mut rig = Rig::up();
    for number in 0..100 {
        rig.ask(number, "environment/info", &json!(null), CallKind::Harmless);
    }
    rig.ask(200, method::TERMINATE, &json!({"processId": "p"}), CallKind::Urgent);
    assert_eq!(rig.sent.last().unwrap()["method"], method::TERMINATE);
}

#[test]
fn case_32_s5_nobody_follows_a_session_after_the_failure() {
    let mut rig = Rig::up();
    rig.cut();
    rig.wait_ms(100);
    rig.connected();
    let hello = rig.take(method::INITIALIZE);
    rig.refuse(&hello, code::INVALID_REQUEST, "unknown session id");
    let seen = rig.ask_to_start(1, "late");
    rig.ask(2, method::TERMINATE, &json!({}), CallKind::Urgent);
    let told = rig.told();
    assert_eq!(told.len(), 2);
    for (_, outcome) in told {
        assert!(matches!(outcome, Err(ExecError::Disconnected { .. })), "{outcome:?}");
    }
    assert_eq!((rig.core.counts().0, seen.session.last_seq()), (0, 0));
}

#[test]
fn case_33_s2_a_close_and_a_failure_make_one_terminal_in_either_order() {
    for close_first in [true, false] {
        let mut rig = Rig::up();
        let seen = rig.start("p");
        let sent = run_of(2);
        for event in &sent[..3] {
            rig.happens("p", event);
        }
        let generation = rig.core.generation();
        let closed = line_of("p", &sent[3]);
        if close_first {
            rig.step(RemoteEvent::Line { generation, line: closed });
        }
        rig.step(RemoteEvent::Abandoned { reason: "given up".to_owned() });
        if !close_first {
            rig.hear(line_of("p", &sent[3]));
        }
        let events = seen.events();
        invariant_exactly_one_terminal_and_last(&events).unwrap();
        assert_eq!(matches!(events.last(), Some(ProcessEvent::Closed { .. })), close_first);
        assert_eq!(events[..3], sent[..3]);
    }
}

#[test]
fn case_34_s10_a_failed_session_still_gives_what_it_has() {
    let mut rig = Rig::up();
    let mut seen = rig.start("p");
    rig.happens("p", &output(1));
    rig.happens("p", &output(2));
    rig.step(RemoteEvent::Abandoned { reason: "given up".to_owned() });
    let read = seen.session.look(|core| core.read(1, None));
    assert_eq!(read.chunks.len(), 1);
    assert!(read.closed && read.exit == crate::exec::ReadExit::NotYet && read.failure.is_some());
    assert_eq!(seen.tapped(), b"[1][2]");
}

#[test]
fn case_35_s12_a_start_whose_answer_is_lost_is_adopted_or_ended_and_never_repeated() {
    // (the server has it, the caller still waits)
    for (there, waits) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut rig = Rig::up();
        let mut seen = rig.ask_to_start(5, "p");
        rig.take(method::START);
        rig.cut();
        if !waits {
            rig.step(RemoteEvent::Released { process_id: "p".to_owned() });
        }
        rig.wait_ms(100);
        rig.greet("s");
        for _ in 0..FATE_LOOKS {
            let Some(read) = rig.try_take(method::READ) else { break };
            assert_eq!(read["params"]["afterSeq"], 0);
            if there {
                rig.reply(&read, answer(&[output(1)], 0, 0));
            } else {
                rig.refuse(&read, code::INVALID_REQUEST, "unknown process id p");
                rig.wait_ms(400);
            }
        }
        let told = rig.told();
        let adopted = told.iter().any(|(number, outcome)| *number == 5 && outcome.is_ok());
        let not_done = told.iter().any(|(_, outcome)| matches!(outcome, Err(ExecError::NotDone { .. })));
        assert_eq!((told.len(), adopted, not_done), (1, there, !there), "there: {there}, waits: {waits}");
        assert_eq!(rig.try_take(method::TERMINATE).is_some(), there && !waits, "there: {there}, waits: {waits}");
        assert_eq!(rig.try_take(method::START), None);
        assert_eq!(seen.tapped(), if there { &b"[1]"[..] } else { b"" });
        if !there {
            // It turns up after all: the server was still starting it.
            rig.happens("p", &output(1));
            assert!(rig.try_take(method::TERMINATE).is_some());
        }
    }
}

#[test]
fn case_16_a_start_that_is_cancelled_leaves_no_process_at_any_moment() {
    // Before it is sent.
    let mut rig = Rig::up();
    rig.cut();
    rig.ask_to_start(1, "p");
    rig.step(RemoteEvent::Released { process_id: "p".to_owned() });
    rig.wait_ms(100);
    rig.greet("s");
    assert_eq!(rig.try_take(method::START), None);
    // While it is in flight.
    let _seen = rig.ask_to_start(2, "q");
    let start = rig.take(method::START);
    rig.step(RemoteEvent::Released { process_id: "q".to_owned() });
    assert_eq!(rig.try_take(method::TERMINATE), None, "there is nothing to end yet");
    rig.reply(&start, json!({"processId": "q"}));
    let end = rig.take(method::TERMINATE);
    assert_eq!(end["params"]["processId"], "q");
    // The end's answer is lost: it is told again.
    rig.cut_and_resume();
    let end = rig.take(method::TERMINATE);
    rig.reply(&end, json!({"running": true}));
    rig.cut_and_resume();
    assert_eq!(rig.try_take(method::TERMINATE), None);
    // And it was not answered in time.
    rig.ask_to_start(3, "r");
    let start = rig.take(method::START);
    rig.wait_ms(31_000);
    assert!(rig.told().iter().any(|(number, told)| *number == 3 && matches!(told, Err(ExecError::Deadline { .. }))));
    rig.step(RemoteEvent::Released { process_id: "r".to_owned() });
    rig.reply(&start, json!({"processId": "r"}));
    assert_eq!(rig.take(method::TERMINATE)["params"]["processId"], "r");
}

#[test]
fn case_36_a_write_whose_answer_is_lost_is_sent_again_under_its_id_and_in_its_place() {
    let mut rig = Rig::up();
    let _seen = rig.start("p");
    rig.write(1, "p", "first");
    rig.write(2, "p", "second");
    let first = rig.take(method::WRITE);
    assert_eq!(rig.try_take(method::WRITE), None, "one write of a process at a time");
    rig.ask(3, method::SIGNAL, &json!({"processId": "p"}), CallKind::Urgent);
    rig.cut_and_resume();
    assert!(matches!(&rig.told()[..], [(3, Err(ExecError::Ambiguous { .. }))]), "a signal is not sent again");
    assert_eq!(
        rig.try_take(method::SIGNAL).map(|signal| signal["id"].clone()),
        Some(json!(first["id"].as_i64().unwrap() + 1))
    );
    let again = rig.take(method::WRITE);
    assert_eq!(again["params"]["writeId"], "first");
    assert_ne!(again["id"], first["id"]);
    // The old connection's answer comes late: it is of another generation.
    let generation = rig.core.generation() - 1;
    let line = json!({"id": again["id"], "result": {"status": "stdinClosed"}}).to_string().into();
    rig.step(RemoteEvent::Line { generation, line });
    assert!(rig.told().is_empty() && rig.core.counts().2 == 1);
    rig.reply(&again, json!({"status": "accepted"}));
    let second = rig.take(method::WRITE);
    assert_eq!(second["params"]["writeId"], "second");
    rig.reply(&second, json!({"status": "accepted"}));
    assert_eq!(
        rig.told().iter().map(|(number, told)| (*number, told.is_ok())).collect::<Vec<_>>(),
        [(1, true), (2, true)]
    );
}

#[test]
fn case_37_s3_s4_the_wake_value_grows_with_what_is_visible_and_without_anybody_watching() {
    let mut rig = Rig::up();
    let seen = rig.start("p");
    let wake = || *seen.session.wake().borrow();
    let mut last = wake();
    rig.happens("p", &output(2));
    assert_eq!(wake(), last, "nothing became visible");
    for event in [output(1), output(3), output(4)] {
        rig.happens("p", &event);
        assert!(wake() > last);
        last = wake();
    }
    assert_eq!(seen.session.look(|core| core.read(0, None)).next_seq, 5);
}

#[test]
fn s8_a_late_subscriber_is_told_what_it_missed_and_the_end_ends_it() {
    let mut rig = Rig::up();
    let seen = rig.start("p");
    let sent = run_of(1000);
    for event in &sent {
        rig.happens("p", event);
    }
    let events = seen.events();
    assert!(matches!(events[0], ProcessEvent::Lagged { from: 1, .. }));
    invariant_exactly_one_terminal_and_last(&events).unwrap();
    invariant_published_is_sent_minus_lagged(&sent, &events).unwrap();
}

#[test]
fn s11_no_words_of_a_server_are_taken_for_a_lost_connection() {
    let mut rig = Rig::up();
    rig.ask(1, "environment/info", &json!(null), CallKind::Harmless);
    let info = rig.take("environment/info");
    rig.refuse(&info, -32000, "JSON-RPC transport closed");
    assert!(matches!(&rig.told()[..], [(1, Err(ExecError::Refused { .. }))]));
    assert_eq!(rig.core.state(), RemoteState::Up);
}

#[test]
fn b1_a_burst_of_five_hundred_starts_keeps_to_its_window() {
    let mut rig = Rig::up();
    let _seen: Vec<_> = (0..500).map(|number| rig.ask_to_start(number, &format!("p{number}"))).collect();
    let mut answered = 0;
    while answered < 500 {
        assert!(rig.core.counts().1 <= CALLS_IN_FLIGHT, "{:?}", rig.core.counts());
        let start = rig.take(method::START);
        rig.reply(&start, json!({"processId": start["params"]["processId"]}));
        answered += 1;
    }
    assert_eq!(rig.told().len(), 500);
}

#[test]
fn b4_starts_and_writes_of_one_process_are_one_after_the_other_and_of_others_beside_it() {
    let mut rig = Rig::up();
    let _seen = rig.ask_to_start(1, "p");
    rig.write(2, "p", "a");
    let _other = rig.ask_to_start(3, "q");
    let start = rig.take(method::START);
    assert_eq!(rig.take(method::START)["params"]["processId"], "q");
    assert_eq!(rig.try_take(method::WRITE), None);
    rig.reply(&start, json!({"processId": "p"}));
    assert_eq!(rig.take(method::WRITE)["params"]["writeId"], "a");
}

#[test]
fn case_15_a_process_nobody_holds_is_ended_and_heard_to_its_end() {
    let mut rig = Rig::up();
    let seen = rig.start("p");
    rig.step(RemoteEvent::Released { process_id: "p".to_owned() });
    let end = rig.take(method::TERMINATE);
    rig.reply(&end, json!({"running": true}));
    for event in run_of(0) {
        rig.happens("p", &event);
    }
    assert_eq!(seen.events(), run_of(0));
}

#[test]
fn a_tap_that_is_not_read_holds_its_connection_and_with_others_for_a_moment_only() {
    let piece = Bytes::from(vec![b'x'; 64 * 1024]);
    let event = |seq| ProcessEvent::Output { seq, stream: OutputStream::Stdout, bytes: piece.clone() };
    // Alone, it holds for as long as it takes.
    let mut rig = Rig::up();
    let mut slow = rig.start("slow");
    for seq in 1..=16 {
        rig.happens("slow", &event(seq));
    }
    assert!(rig.core.holds(rig.now));
    rig.wait_ms(60_000);
    assert!(rig.core.holds(rig.now));
    assert!(slow.tapped().len() == 16 * piece.len() && !rig.core.holds(rig.now));
    // With another, for two seconds; then it is left behind, and catches up when it is read.
    let other = rig.start("other");
    for seq in 17..=32 {
        rig.happens("slow", &event(seq));
    }
    assert!(rig.core.holds(rig.now));
    rig.wait_ms(2_100);
    assert!(!rig.core.holds(rig.now));
    rig.happens("other", &output(1));
    for seq in 33..=80 {
        rig.happens("slow", &event(seq));
    }
    assert!(!rig.core.holds(rig.now), "it holds nobody up any more");
    assert_eq!(other.events(), [output(1)]);
    assert_eq!(slow.tapped().len(), 16 * piece.len());
    rig.step(RemoteEvent::Tick);
    let rest = slow.tapped().len();
    assert_eq!((rest, slow.tap.lost()), (16 * piece.len(), 32), "what the ring had; what it had not is told");
    rig.happens("slow", &event(81));
    assert_eq!(slow.tapped().len(), piece.len());
}

#[test]
fn an_answer_somebody_waits_for_is_read_though_a_tap_is_full() {
    let piece = Bytes::from(vec![b'x'; 64 * 1024]);
    let mut rig = Rig::up();
    let _slow = rig.start("slow");
    for seq in 1..=16 {
        rig.happens("slow", &ProcessEvent::Output { seq, stream: OutputStream::Stdout, bytes: piece.clone() });
    }
    assert!(rig.core.holds(rig.now));
    rig.ask(1, method::TERMINATE, &json!({"processId": "slow"}), CallKind::Urgent);
    assert!(!rig.core.holds(rig.now));
    let end = rig.take(method::TERMINATE);
    rig.reply(&end, json!({"running": true}));
    assert!(rig.core.holds(rig.now) && rig.told().len() == 1);
}

#[test]
fn a_loop_that_stopped_is_a_lost_connection() {
    let mut rig = Rig::up();
    let seen = rig.start("p");
    rig.happens("p", &output(1));
    rig.step(RemoteEvent::Begun);
    assert_eq!(rig.core.state(), RemoteState::Recovering);
    rig.wait_ms(100);
    rig.greet("s");
    rig.answer_read(&run_of(1), 0);
    assert_eq!((seen.events(), rig.core.generation()), (run_of(1), 2));
}

#[test]
fn closing_ends_what_runs_and_waits_for_it_for_two_seconds() {
    for answers in [true, false] {
        let mut rig = Rig::up();
        let seen = rig.start("p");
        rig.step(RemoteEvent::Closing);
        let end = rig.take(method::TERMINATE);
        rig.ask(1, "environment/info", &json!(null), CallKind::Harmless);
        assert!(matches!(&rig.told()[..], [(1, Err(ExecError::Disconnected { .. }))]));
        if answers {
            rig.reply(&end, json!({"running": true}));
            assert!(!rig.ended);
            for event in run_of(0) {
                rig.happens("p", &event);
            }
            assert_eq!(seen.events(), run_of(0));
        } else {
            rig.wait_ms(2_000);
            is_failed_with(&seen, &["closed here"]);
        }
        assert!(rig.ended);
    }
}

#[test]
fn the_first_connection_is_tried_once() {
    let mut rig = Rig::new(AfterACut::Resumed);
    rig.step(RemoteEvent::Begun);
    assert_eq!(rig.core.state(), RemoteState::Connecting);
    rig.step(RemoteEvent::Unreachable { generation: 1, reason: "refused".to_owned(), retry: Retry::Later });
    assert!(rig.ended && rig.core.down_reason() == Some("refused"));
}

#[test]
fn a_refusal_is_final_unless_the_server_had_taken_us_before() {
    let refused = |generation| RemoteEvent::Unreachable { generation, reason: "401".to_owned(), retry: Retry::Never };
    let mut rig = Rig::new(AfterACut::Resumed);
    rig.step(RemoteEvent::Begun);
    rig.step(refused(1));
    assert!(rig.ended && rig.core.down_reason() == Some("401"));
    let mut rig = Rig::up();
    let seen = rig.start("p");
    rig.cut();
    rig.wait_ms(100);
    rig.step(refused(2));
    assert_eq!(rig.core.state(), RemoteState::Recovering);
    rig.wait_ms(200);
    rig.greet("s");
    rig.answer_read(&run_of(1), 0);
    assert_eq!(seen.events(), run_of(1));
}

#[test]
fn a_process_the_server_forgot_fails_alone() {
    let mut rig = Rig::up();
    let (lost, kept) = (rig.start("p"), rig.start("q"));
    rig.cut_and_resume();
    for _ in 0..2 {
        let read = rig.take(method::READ);
        if read["params"]["processId"] == "p" {
            rig.refuse(&read, code::INVALID_REQUEST, "unknown process id p");
        } else {
            rig.reply(&read, answer(&[output(1)], 0, 0));
        }
    }
    is_failed_with(&lost, &["does not know the process"]);
    assert_eq!(kept.events(), [output(1)]);
}
