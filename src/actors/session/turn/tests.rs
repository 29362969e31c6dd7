//! The turns of a session as tables: an event, and what is done and said then.

mod direct;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::actors::session::SessionSnapshot;
use crate::actors::workers::messages::WorkerHandle;
use crate::protocol::catalog::{Annotations, CallRoom, Catalog, TaskSupport, ToolDefinition};
use crate::protocol::session::SessionLimits;
use crate::protocol::session::{Call, FinishedAs};
use crate::protocol::tasks::TaskNews;
use crate::protocol::wire::{Identity, ToolReply};
use crate::telemetry::{Record, ToolCallRecord};
use crate::tools::progress::{Latest, ProgressListener, ProgressSink};
use crate::tools::{Evidence, ReplayContract, Target};

const G1: Generation = Generation(1);
const G2: Generation = Generation(2);

/// Tools, by position: of a worker with each contract, and of the host.
const AGAIN: &str = "again";
const ONCE: &str = "once";
const ASKED: &str = "asked";
const HERE: &str = "here";
const QUICK: &str = "quick";

fn tools() -> Vec<ToolFacts> {
    let tool = |name: &str, target, contract, deadline, waits| ToolFacts {
        name: Arc::from(name),
        target,
        contract,
        deadline: Some(Duration::from_secs(deadline)),
        waits,
    };
    vec![
        tool(AGAIN, Target::Worker, ReplayContract::Convergent, 60, true),
        tool(ONCE, Target::Worker, ReplayContract::NeverReplay, 60, true),
        tool(ASKED, Target::Worker, ReplayContract::ProbeRequired, 60, true),
        tool(HERE, Target::Host, ReplayContract::Convergent, 60, true),
        tool(QUICK, Target::Host, ReplayContract::NeverReplay, 5, false),
    ]
}

fn catalog() -> Arc<Catalog> {
    let entry = |tool: ToolFacts| {
        let name = tool.name.to_string();
        let define = move || ToolDefinition {
            name: name.clone(),
            title: String::new(),
            description: String::new(),
            input_schema: serde_json::json!({"type": "object"}),
            annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
            meta: None,
        };
        let name = tool.name.to_string();
        (name, CallRoom::Shared, Arc::new(define) as crate::protocol::catalog::Define)
    };
    let catalog = Catalog::new(tools().into_iter().map(entry).collect()).with_tasks([TaskSupport::Optional]);
    Arc::new(catalog)
}

fn identity() -> Arc<Identity> {
    Arc::new(Identity::new("phone-opus", "0", "Ask."))
}

fn core() -> SessionCore {
    SessionCore::new(catalog(), identity(), SessionLimits::default())
}

fn fresh() -> SessionTurn {
    SessionTurn::new((HostId::random(), SessionNumber(1)), core(), tools().into(), 1 << 20, Faults::none())
}

/// A session whose effects are performed by writing down what they are.
struct Rig {
    turn: SessionTurn,
    todo: TurnEffects,
    now: Instant,
    /// Gives host calls something that can be aborted.
    runtime: tokio::runtime::Runtime,
    /// What was done since it was last looked at.
    done: Vec<String>,
}

impl Rig {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut rig = Self { turn: fresh(), todo: TurnEffects::new(), now: Instant::now(), runtime, done: Vec::new() };
        rig.send(r#"{"jsonrpc":"2.0","id":"i","method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#);
        rig.written();
        rig
    }

    /// With a worker of the first generation.
    fn served() -> Self {
        let mut rig = Self::new();
        rig.turn.serving = Serving::Awaited;
        rig.up(G1);
        rig
    }

    fn step(&mut self, event: TurnEvent) -> Vec<String> {
        self.turn.step(event, self.now, &mut self.todo);
        while let Some(effect) = self.todo.pop_front() {
            self.act(effect);
        }
        assert_eq!(self.turn.outgoing.torn(), 0);
        std::mem::take(&mut self.done)
    }

    fn act(&mut self, effect: TurnEffect) {
        let held = |call: &Call| self.turn.host_calls.contains_key(&call.number);
        let done = match effect {
            TurnEffect::Dispatch => {
                let calls = std::mem::take(&mut self.turn.sending);
                let Serving::Up(generation, _) = self.turn.serving else { return };
                let mut text = format!("send to {}:", generation.0);
                for call in calls {
                    if let Some((evidence, attempt, _)) = self.turn.ledger.dispatch(call, generation) {
                        let evidence = evidence.map(|evidence| format!(" {evidence:?}")).unwrap_or_default();
                        let _ = write!(text, " {}#{attempt}{evidence}", call.0);
                    }
                }
                text
            }
            TurnEffect::RunHere(call) if held(&call) => {
                self.begin(call.number);
                format!("run {}", call.number.0)
            }
            TurnEffect::RunAgain(call, waited) => {
                self.begin(call.number);
                format!("run {} again after {} s", call.number.0, waited.as_secs())
            }
            TurnEffect::RunHere(_) => return,
            TurnEffect::Refuse(call, _) => format!("refuse {}", call.0),
            TurnEffect::WantWorker => "want worker".to_owned(),
            TurnEffect::ReportBroken(generation) => format!("broken {}", generation.0),
            TurnEffect::WithdrawFromWorker(call) => format!("worker: withdraw {}", call.0),
            TurnEffect::WithdrawFromJob(invocation) => format!("jobs: withdraw {}", invocation.call),
            TurnEffect::Reopen(open) => {
                let mut open: Vec<_> = open.into_iter().collect();
                open.sort_unstable();
                format!("jobs: open {open:?}")
            }
            TurnEffect::Abort(_) => "abort".to_owned(),
            TurnEffect::Probe(call) => format!("probe {}", call.0),
            TurnEffect::Ask(number, ..) => {
                self.begin(number);
                format!("ask {}", number.0)
            }
            TurnEffect::Follow(number) => {
                let task = self.task();
                self.turn.follows.get_mut(&number).expect("it follows").tasks.push(task);
                format!("follow {}", number.0)
            }
            TurnEffect::Control(number, message) => format!("control {number} {}", message.name()),
            TurnEffect::SetRoots(_) => "roots".to_owned(),
            TurnEffect::NoteGaveUp(..) => "gave up".to_owned(),
            TurnEffect::NoteWaited(..) => "waited".to_owned(),
            TurnEffect::Shown(_) => "shown".to_owned(),
            TurnEffect::Finished(_) => return,
            // One at a time, for the order of what is done.
            TurnEffect::Count => match self.turn.counted.drain(..1).next() {
                Some(Record::ToolCall(call)) => {
                    format!("count {} {:?} of {} after {}", call.tool, call.result, call.generation.0, call.replays)
                }
                _ => return,
            },
            TurnEffect::Stale => "stale".to_owned(),
            TurnEffect::TellQuiet(told) => {
                let _ = told.send(());
                "quiet".to_owned()
            }
            TurnEffect::AnswerDirect(reply, outcome) => {
                let _ = reply.send(*outcome);
                "answer directly".to_owned()
            }
            TurnEffect::TellProgress(..) => "tell progress".to_owned(),
            TurnEffect::Describe(reply, seen) => {
                let _ = reply.send(*seen);
                "describe".to_owned()
            }
            TurnEffect::PassOn(reply, snapshot) => {
                let _ = reply.send(*snapshot);
                "pass on".to_owned()
            }
        };
        self.done.push(done);
    }

    fn task(&self) -> AbortHandle {
        self.runtime.spawn(std::future::pending::<()>()).abort_handle()
    }

    fn begin(&mut self, call: CallNumber) {
        let task = self.task();
        self.turn.begun(call, task);
    }

    fn heard(&mut self, event: SessionEvent) -> Vec<String> {
        self.step(TurnEvent::Heard(event))
    }

    fn send(&mut self, lines: &str) -> Vec<String> {
        self.turn.incoming.reader.extend(lines.as_bytes());
        self.turn.incoming.reader.extend(b"\n");
        self.step(TurnEvent::Read)
    }

    /// Calls a tool; the id of the request is the number the session gives the call.
    fn call(&mut self, tool: &str, id: u64) -> Vec<String> {
        self.send(&call(tool, id))
    }

    fn up(&mut self, generation: Generation) -> Vec<String> {
        let (worker, _) = WorkerHandle::new();
        self.heard(SessionEvent::WorkerUp { generation, worker })
    }

    fn gone(&mut self, generation: Generation) -> Vec<String> {
        self.heard(SessionEvent::WorkerGone { generation })
    }

    fn settled(&mut self, generation: Generation, call: u64) -> Vec<String> {
        self.heard(SessionEvent::Settled { generation, call: CallNumber(call), outcome: good() })
    }

    fn host_settled(&mut self, call: u64) -> Vec<String> {
        self.heard(SessionEvent::HostSettled { call: CallNumber(call), outcome: good() })
    }

    /// What was said since, each as the id it answers and the word for how; then it is written.
    fn said(&mut self) -> String {
        let text = String::from_utf8(self.turn.outgoing.bytes().to_vec()).expect("text");
        let mut said = Vec::new();
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let code = line.pointer("/error/data/fault/code").or_else(|| line.pointer("/error/data/code"));
            let code = code.or_else(|| line.pointer("/result/structuredContent/fault/code"));
            let result = code.and_then(serde_json::Value::as_str).unwrap_or("ok").to_owned();
            let word = |member: &str| line.get(member).and_then(serde_json::Value::as_str);
            said.push(match (word("method"), word("type")) {
                (Some(method), _) => method.to_owned(),
                (None, Some(kind)) => format!("{kind}:{}", word("to").unwrap_or("-")),
                (None, None) => format!("{}:{result}", line["id"]),
            });
        }
        self.written();
        said.join(" ")
    }

    fn written(&mut self) -> Vec<String> {
        let count = self.turn.outgoing.bytes().len();
        self.step(TurnEvent::Written(count))
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// What every session holds between two turns.
    fn check(&self) {
        self.turn.core.invariant_calls_are_consistent_and_bounded().expect("the state machine's laws");
        for (call, ..) in self.turn.core.open_calls() {
            let places = (self.turn.ledger.holds(call), self.turn.host_calls.contains_key(&call));
            assert!(places.0 != places.1, "call {} is in one place: {places:?}", call.0);
        }
        assert_eq!(self.turn.ledger.len() + self.turn.host_calls.len(), self.turn.core.in_flight());
    }
}

fn call(tool: &str, id: u64) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{tool}","arguments":{{}}}}}}"#)
}

fn cancel(id: u64) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id}}}}}"#)
}

fn good() -> CallOutcome {
    CallOutcome::Reply(Box::new(ToolReply::text("done")))
}

fn bad() -> CallOutcome {
    CallOutcome::Fault(Box::new(Fault::new(FaultCode::Internal, "it failed.")))
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_call_goes_to_the_worker_that_is_known() {
    let mut rig = Rig::new();
    assert_eq!(rig.up(G1), NOTHING, "nobody was asked, so it speaks to an earlier incarnation");
    assert_eq!(rig.call(AGAIN, 1), ["want worker"]);
    assert_eq!(rig.call(AGAIN, 2), NOTHING, "one was asked for");
    assert_eq!(rig.up(G1), ["send to 1: 1#1 2#1"]);
    assert_eq!(rig.send(&[call(AGAIN, 3), call(ONCE, 4)].join("\n")), ["send to 1: 3#1 4#1"], "in one message");
    assert_eq!(rig.gone(G1), ["jobs: withdraw 4", "count once Failed(OutcomeUnknown) of 1 after 0"]);
    assert_eq!(rig.up(G1), NOTHING, "it is known to be gone");
    assert_eq!(rig.up(G2), ["send to 2: 1#2 2#2 3#2"]);
}

#[test]
fn what_becomes_of_a_call_whose_worker_is_lost_is_its_contract_s_to_say() {
    // The tool, what a lost worker brings, what the next worker is given, what is said by then.
    let table: [(&str, &[&str], &[&str], &str); 3] = [
        (AGAIN, &[], &["send to 2: 1#2"], ""),
        (ONCE, &["jobs: withdraw 1", "count once Failed(OutcomeUnknown) of 1 after 0"], &[], "1:outcome_unknown"),
        (ASKED, &["probe 1"], &[], ""),
    ];
    for (tool, lost, next, said) in table {
        let mut rig = Rig::served();
        rig.call(tool, 1);
        assert_eq!(rig.gone(G1), lost, "{tool}");
        assert_eq!(rig.up(G2), next, "{tool}");
        assert_eq!(rig.said(), said, "{tool}");
        rig.check();
    }
    for (evidence, done) in [
        (Evidence::Accepted, &["send to 2: 1#2 Accepted"][..]),
        (Evidence::NotAccepted, &["send to 2: 1#2 NotAccepted"][..]),
        (Evidence::Unknown, &["jobs: withdraw 1", "count asked Failed(OutcomeUnknown) of 1 after 0"][..]),
    ] {
        let mut rig = Rig::served();
        rig.call(ASKED, 1);
        rig.gone(G1);
        rig.up(G2);
        let probed = || SessionEvent::Probed { call: CallNumber(1), evidence };
        assert_eq!(rig.heard(probed()), done, "{evidence:?}");
        assert_eq!(rig.heard(probed()), NOTHING, "{evidence:?}: nobody asked again");
    }
}

#[test]
fn an_outcome_counts_once_and_from_the_generation_that_has_the_call() {
    let mut rig = Rig::served();
    rig.call(AGAIN, 1);
    rig.gone(G1);
    rig.up(G2);
    assert_eq!(rig.settled(G1, 1), ["stale"]);
    assert_eq!(rig.settled(G2, 1), ["count again Success of 2 after 1"]);
    assert_eq!(rig.settled(G2, 1), ["stale"], "it has left the ledger");
    assert_eq!(rig.said(), "1:ok");
    rig.call(AGAIN, 2);
    let failed = SessionEvent::Settled { generation: G2, call: CallNumber(2), outcome: bad() };
    assert_eq!(rig.heard(failed), ["jobs: withdraw 2", "count again Failed(Internal) of 2 after 0"]);
    rig.check();
}

#[test]
fn a_worker_that_drops_a_call_it_has_is_broken() {
    for (generation, call, done) in [(G1, 1, &["broken 1"][..]), (G2, 1, &[]), (G1, 2, &[])] {
        let mut rig = Rig::served();
        rig.call(AGAIN, 1);
        let dropped = SessionEvent::Dropped { generation, call: CallNumber(call) };
        assert_eq!(rig.heard(dropped), done, "{generation:?} {call}");
        rig.check();
    }
}

#[test]
fn a_call_that_reached_no_worker_is_no_attempt() {
    let mut rig = Rig::served();
    rig.call(ONCE, 1);
    let undelivered = TurnEvent::Undelivered { generation: G1, calls: vec![CallNumber(1)] };
    assert_eq!(rig.step(undelivered), ["want worker"]);
    assert_eq!(rig.up(G1), NOTHING, "it is gone");
    assert_eq!(rig.up(G2), ["send to 2: 1#1"]);
    assert_eq!(rig.settled(G2, 1), ["count once Success of 2 after 0"]);
}

#[test]
fn where_workers_are_given_up_worker_calls_fail_and_the_host_s_go_on() {
    let mut rig = Rig::served();
    rig.send(&[call(AGAIN, 1), call(HERE, 2), call(ASKED, 3)].join("\n"));
    let gave_up = SessionEvent::WorkersGaveUp { period: Duration::from_secs(3) };
    let failed = |tool: &str| format!("count {tool} Failed(WorkerLost) of 0 after 0");
    let done = ["jobs: withdraw 1".to_owned(), failed(AGAIN), "jobs: withdraw 3".to_owned(), failed(ASKED)];
    assert_eq!(rig.heard(gave_up), done);
    assert_eq!(rig.said(), "1:worker_lost 3:worker_lost");
    assert_eq!(rig.host_settled(2), ["count here Success of 0 after 0"]);
    assert_eq!(rig.call(AGAIN, 4), ["want worker"], "the next call asks for one again");
    rig.check();
}

#[test]
fn a_call_of_the_host_begins_at_once_and_ends_once() {
    let mut rig = Rig::new();
    assert_eq!(rig.call(HERE, 1), ["run 1"]);
    assert_eq!(rig.host_settled(1), ["count here Success of 0 after 0"]);
    assert_eq!(rig.host_settled(1), NOTHING);
    assert_eq!(rig.said(), "1:ok");
    rig.call(HERE, 2);
    assert_eq!(rig.send(&cancel(2)), ["abort", "gave up", "count here Cancelled of 0 after 0"]);
    assert_eq!(rig.host_settled(2), NOTHING, "it was withdrawn");
    assert_eq!(rig.said(), "");
    rig.check();
}

#[test]
fn a_call_that_is_withdrawn_in_the_turn_it_came_in_begins_nowhere() {
    for (tool, id) in [(AGAIN, 1), (HERE, 1)] {
        let mut rig = Rig::served();
        let done = rig.send(&[call(tool, id), cancel(id)].join("\n"));
        assert!(!done.iter().any(|done| done.starts_with("run") || done.contains('#')), "{tool}: {done:?}");
        assert_eq!(rig.said(), "");
        rig.check();
    }
}

#[test]
fn a_withdrawal_reaches_whoever_works_at_the_call() {
    // Which worker there is, and what a withdrawal brings before it is counted.
    type Act = fn(&mut Rig);
    let told: [(Act, &[&str]); 3] = [
        (|_| (), &["worker: withdraw 1", "jobs: withdraw 1"]),
        (|rig| drop(rig.gone(G1)), &["jobs: withdraw 1"]),
        (
            |rig| {
                rig.gone(G1);
                rig.up(G2);
            },
            &["worker: withdraw 1", "jobs: withdraw 1"],
        ),
    ];
    for (before, done) in told {
        let mut rig = Rig::served();
        rig.call(AGAIN, 1);
        before(&mut rig);
        let rest = ["gave up", "count again Cancelled of 0 after 0"];
        assert_eq!(rig.send(&cancel(1)), [done, &rest[..]].concat());
        assert_eq!(rig.said(), "");
        rig.check();
    }
}

#[test]
fn a_client_that_sends_nothing_more_still_hears_what_comes_soon() {
    for (later, ends) in [(Duration::from_millis(499), false), (LINGER, true)] {
        let mut rig = Rig::served();
        rig.send(&[call(AGAIN, 1), call(HERE, 2)].join("\n"));
        // The last line counts although nothing ends it.
        rig.turn.incoming.reader.extend(call(AGAIN, 3).as_bytes());
        assert_eq!(rig.step(TurnEvent::ReadAll), ["send to 1: 3#1"]);
        assert!(!rig.turn.reads(None) && !rig.turn.is_over());
        assert_eq!(rig.turn.wakes(), Some(rig.now + LINGER));
        assert_eq!(rig.settled(G1, 1), ["count again Success of 1 after 0"]);
        assert_eq!(rig.said(), "1:ok");
        rig.pass(later);
        let done = rig.step(TurnEvent::Woke);
        assert_eq!(done.contains(&"worker: withdraw 3".to_owned()) && done.contains(&"abort".to_owned()), ends);
        assert_eq!(rig.turn.is_over(), ends);
        rig.check();
    }
    let mut rig = Rig::served();
    rig.call(AGAIN, 1);
    rig.step(TurnEvent::ReadAll);
    rig.settled(G1, 1);
    assert!(!rig.turn.is_over(), "the answer is not written");
    rig.written();
    assert!(rig.turn.is_over(), "nothing is open");
}

#[test]
fn each_stage_ends_in_its_own_way() {
    type Act = fn(&mut Rig);
    let stages: [(&str, Act); 3] = [
        ("open", |_| ()),
        ("lingering", |rig| drop(rig.step(TurnEvent::ReadAll))),
        ("draining", |rig| drop(rig.heard(SessionEvent::Stop))),
    ];
    // What ends it, and what the client has been told by then where it could still be told.
    for (stage, reach) in stages {
        let mut rig = Rig::served();
        rig.send(&[call(AGAIN, 1), call(HERE, 2)].join("\n"));
        reach(&mut rig);
        let first = rig.heard(SessionEvent::Stop);
        let told = if stage == "lingering" { "" } else { "1:stopping 2:stopping" };
        assert_eq!(rig.said(), told, "{stage}");
        assert_eq!(first.contains(&"jobs: withdraw 1".to_owned()), stage != "draining", "{stage}: once");
        assert!(rig.turn.is_over(), "{stage}");
        rig.check();

        let mut rig = Rig::served();
        rig.send(&[call(AGAIN, 1), call(HERE, 2)].join("\n"));
        reach(&mut rig);
        rig.step(TurnEvent::HungUp);
        assert!(rig.turn.is_over() && rig.turn.outgoing.bytes().is_empty(), "{stage}: there is nobody to write to");
        rig.check();
    }
}

#[test]
fn what_a_client_does_not_take_in_time_is_given_up() {
    let mut rig = Rig::served();
    rig.call(AGAIN, 1);
    rig.heard(SessionEvent::Stop);
    assert!(!rig.turn.is_over(), "its last answer is to be written");
    rig.pass(crate::actors::session::DRAIN - Duration::from_millis(1));
    rig.step(TurnEvent::Woke);
    assert!(!rig.turn.is_over());
    rig.pass(Duration::from_millis(1));
    assert!(rig.turn.wakes().is_some_and(|at| at <= rig.now));
    rig.step(TurnEvent::Woke);
    assert!(rig.turn.is_over());
}

#[test]
fn a_client_that_is_silent_has_no_room_kept_and_is_not_looked_at_again() {
    let mut rig = Rig::new();
    rig.said();
    let at = |rig: &Rig| rig.turn.wakes().map(|at| at.saturating_duration_since(rig.now));
    assert_eq!(at(&rig), Some(Duration::from_secs(2)));
    rig.pass(Duration::from_millis(1500));
    rig.send(&ping(1));
    rig.said();
    assert_eq!(at(&rig), Some(Duration::from_millis(500)), "one look for a burst");
    rig.pass(Duration::from_millis(500));
    rig.step(TurnEvent::Woke);
    assert_eq!((at(&rig), rig.turn.incoming.reader.keeps_nothing()), (Some(Duration::from_millis(1500)), false));
    rig.pass(Duration::from_millis(1500));
    rig.step(TurnEvent::Woke);
    assert_eq!((at(&rig), rig.turn.incoming.reader.keeps_nothing()), (None, true));
    rig.send(&ping(2));
    assert_eq!(rig.said(), "2:ok");
}

#[test]
fn a_late_call_is_answered_and_the_next_deadline_found() {
    let mut rig = Rig::served();
    let start = rig.now;
    rig.call(AGAIN, 1);
    assert_eq!(rig.turn.clockwork.due, Some(start + Duration::from_secs(60)));
    rig.pass(Duration::from_secs(10));
    rig.call(AGAIN, 2);
    assert_eq!(
        rig.turn.clockwork.due,
        Some(start + Duration::from_secs(60)),
        "the first of a tool's calls moves the clock"
    );
    rig.call(QUICK, 3);
    assert_eq!(rig.turn.clockwork.due, Some(start + Duration::from_secs(15)), "a shorter one moves it nearer");
    rig.pass(Duration::from_secs(4));
    assert_eq!(rig.step(TurnEvent::Woke), NOTHING, "nothing is late");
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.step(TurnEvent::Woke), ["abort", "count quick Failed(DeadlineExceeded) of 0 after 0"]);
    assert_eq!(rig.turn.clockwork.due, Some(start + Duration::from_secs(60)));
    rig.settled(G1, 1);
    rig.pass(Duration::from_secs(45));
    assert_eq!(rig.step(TurnEvent::Woke), NOTHING, "its call was answered");
    assert_eq!(rig.turn.clockwork.due, Some(start + Duration::from_secs(70)));
    rig.pass(Duration::from_secs(10));
    let late =
        ["worker: withdraw 2", "jobs: withdraw 2", "waited", "count again Failed(DeadlineExceeded) of 0 after 0"];
    assert_eq!(rig.step(TurnEvent::Woke), late);
    assert_eq!(rig.turn.clockwork.due, None);
    assert_eq!(rig.said(), "3:deadline_exceeded 1:ok 2:deadline_exceeded");
    rig.check();
}

#[test]
fn a_frozen_session_is_quiet_when_another_image_can_go_on() {
    // The tool that is at work, and whether its call is waited for.
    for (tool, waited_for) in [(None, false), (Some(AGAIN), false), (Some(HERE), false), (Some(QUICK), true)] {
        let mut rig = Rig::served();
        if let Some(tool) = tool {
            rig.call(tool, 1);
        }
        let (reply, mut told) = oneshot::channel();
        assert_eq!(rig.heard(SessionEvent::Freeze(reply)), NOTHING);
        assert!(!rig.turn.reads(None), "{tool:?}: nothing more is read");
        rig.turn.tell_when_quiet(true, &mut rig.todo);
        assert!(rig.todo.is_empty(), "{tool:?}: something besides calls is under way");
        rig.turn.tell_when_quiet(false, &mut rig.todo);
        assert_eq!(rig.todo.is_empty(), waited_for, "{tool:?}");
        if waited_for {
            rig.host_settled(1);
            rig.turn.tell_when_quiet(false, &mut rig.todo);
        }
        let effect = rig.todo.pop_front().expect("it is told");
        rig.act(effect);
        assert_eq!(told.try_recv(), Ok(()), "{tool:?}");
        rig.turn.tell_when_quiet(false, &mut rig.todo);
        assert!(rig.todo.is_empty(), "{tool:?}: it is told once");
    }
    for end in [TurnEvent::ReadAll, TurnEvent::Heard(SessionEvent::Stop), TurnEvent::HungUp] {
        let mut rig = Rig::served();
        rig.call(QUICK, 1);
        let what = format!("{end:?}");
        rig.step(end);
        let (reply, mut told) = oneshot::channel();
        rig.heard(SessionEvent::Freeze(reply));
        assert_eq!(told.try_recv(), Err(oneshot::error::TryRecvError::Closed), "{what}: it is ending");
        let (reply, mut told) = oneshot::channel();
        rig.heard(SessionEvent::HoldStill(reply));
        assert_eq!(told.try_recv().err(), Some(oneshot::error::TryRecvError::Closed), "{what}");
    }
}

#[test]
fn a_session_that_stands_still_keeps_what_it_hears_for_a_thaw() {
    for (ended, done) in [
        (Generation::NONE, &["count again Success of 1 after 0"][..]),
        // Its worker was ended for the upgrade: what is kept of it is stale, and the call goes to the next one uncharged.
        (G1, &["want worker", "stale"][..]),
    ] {
        let mut rig = Rig::served();
        rig.call(AGAIN, 1);
        rig.heard(SessionEvent::Freeze(oneshot::channel().0));
        let (reply, mut passed) = oneshot::channel();
        assert_eq!(rig.heard(SessionEvent::HoldStill(reply)), ["pass on"]);
        assert_eq!(passed.try_recv().expect("a snapshot").calls(), 1);
        assert_eq!(rig.settled(G1, 1), NOTHING, "nothing is decided");
        assert_eq!(rig.said(), "");
        assert_eq!(rig.heard(SessionEvent::Thaw(ended)), done, "{ended:?}");
        assert!(rig.turn.reads(None));
        if ended == G1 {
            assert_eq!(rig.up(G2), ["send to 2: 1#1"], "the attempt was not charged");
            rig.settled(G2, 1);
        }
        assert_eq!(rig.said(), "1:ok");
        rig.check();
    }
    let mut rig = Rig::served();
    rig.call(AGAIN, 1);
    rig.heard(SessionEvent::Freeze(oneshot::channel().0));
    rig.heard(SessionEvent::HoldStill(oneshot::channel().0));
    rig.settled(G1, 1);
    rig.heard(SessionEvent::Stop);
    assert_eq!(rig.said(), "1:ok", "what was kept is decided before it stops");
    assert!(rig.turn.is_over());
}

#[test]
fn what_a_panic_left_half_done_is_made_whole() {
    let mut rig = Rig::served();
    rig.send(&[call(AGAIN, 1), call(HERE, 2), call(QUICK, 3)].join("\n"));
    // A line that was being written, a message that was being read, and a call whose effect was being performed.
    rig.turn.outgoing.out.extend_from_slice(b"{\"half\":");
    rig.turn.incoming.reading = Some(Frame::Line(Bytes::from(call(HERE, 9))));
    rig.turn.host_calls.get_mut(&CallNumber(3)).expect("it is held").task = None;
    // A line that had arrived behind it.
    rig.turn.incoming.reader.extend(format!("{}\n", call(HERE, 4)).as_bytes());
    assert_eq!(rig.step(TurnEvent::Interrupted), NOTHING);
    let done = ["count quick Failed(Internal) of 0 after 0", "jobs: open [1, 2]", "want worker", "run 4"];
    assert_eq!(rig.step(TurnEvent::Resumed), done);
    assert_eq!(rig.said(), "9:internal 3:internal");
    rig.check();
    assert_eq!(rig.up(G1), NOTHING, "the worker has the call already");
    rig.settled(G1, 1);
    rig.host_settled(2);
    assert_eq!(rig.said(), "1:ok 2:ok");
}

#[test]
fn what_was_decided_and_not_done_outlives_a_panic() {
    let mut rig = Rig::served();
    // The state machine has answered a cancelled call, and the panic came before that was decided about.
    rig.call(AGAIN, 1);
    rig.turn.asked.push_back(SessionEffect::Withdraw(CallNumber(1)));
    assert_eq!(rig.step(TurnEvent::Interrupted), ["worker: withdraw 1", "jobs: withdraw 1"]);
    // What was counted is recorded, even if it was the recording that broke off.
    rig.turn.counted.push(Record::ToolCall(counted_call()));
    assert_eq!(rig.step(TurnEvent::Interrupted), ["count asked Success of 1 after 0"]);
    // A call in nobody's hands is answered; one nobody waits for is withdrawn.
    rig.turn.ledger.record(
        CallNumber(8),
        ReplayContract::Convergent,
        Payload { tool: 0, arguments: Bytes::new(), client: ClientInfo::Unknown, wants_progress: false },
    );
    let done = rig.step(TurnEvent::Resumed);
    assert!(done.contains(&"jobs: withdraw 8".to_owned()), "{done:?}");
    assert_eq!(rig.said(), "1:internal");
    rig.check();
}

#[test]
fn the_next_image_goes_on_with_what_can_be_begun_again() {
    let mut rig = Rig::served();
    rig.send(&[call(AGAIN, 1), call(HERE, 2), call(QUICK, 3), call(ONCE, 4)].join("\n"));
    rig.turn.incoming.reader.extend(b"{\"half");
    rig.heard(SessionEvent::Freeze(oneshot::channel().0));
    let (reply, mut passed) = oneshot::channel();
    rig.heard(SessionEvent::HoldStill(reply));
    let snapshot = passed.try_recv().expect("a snapshot");
    let text = serde_json::to_string(&snapshot).expect("JSON");
    let snapshot: SessionSnapshot = serde_json::from_str(&text).expect("the same");

    let mut next = Rig::new();
    next.now = rig.now + Duration::from_secs(7);
    let since = Duration::from_secs(7);
    let (catalog, limits) = (catalog(), SessionLimits::default());
    let core = SessionCore::restored(catalog, identity(), limits, &snapshot.core, next.now, since);
    next.turn.core = core.expect("it makes sense");
    next.turn.take_over(&snapshot);
    assert_eq!(next.step(TurnEvent::Interrupted), ["run 2 again after 7 s"]);
    let done = [
        "count quick Failed(OutcomeUnknown) of 0 after 0",
        "jobs: open [1, 2, 4]",
        "jobs: withdraw 4",
        "count once Failed(OutcomeUnknown) of 1 after 0",
        "want worker",
    ];
    assert_eq!(next.step(TurnEvent::Resumed), done);
    assert_eq!(next.said(), "3:outcome_unknown 4:outcome_unknown");
    assert_eq!(next.up(G2), ["send to 2: 1#1"], "the attempt that was cut off is not charged");
    next.check();
}

#[test]
fn reading_stops_for_a_client_that_does_not_read_and_waits_for_a_worker_that_is_behind() {
    let mut rig = Rig::served();
    assert!(rig.turn.reads(None));
    rig.turn.outgoing.out.extend_from_slice(&vec![b' '; 1 << 20]);
    rig.turn.outgoing.line_ended();
    assert!(rig.turn.reads(None), "a backlog is more than that");
    rig.turn.outgoing.out.extend_from_slice(b"\n");
    rig.turn.outgoing.line_ended();
    assert!(!rig.turn.reads(None));
    rig.written();
    assert!(rig.turn.reads(None));
    let lines: Vec<String> = (1..=257).map(|id| call(AGAIN, id)).collect();
    rig.send(&lines.join("\n"));
    assert!(rig.turn.is_crowded());
    assert!(!rig.turn.reads(Some(rig.now)), "the worker gets its turn");
    assert!(rig.turn.wakes().is_some_and(|at| at <= rig.now + Duration::from_millis(50)));
    rig.pass(Duration::from_millis(50));
    assert!(rig.turn.reads(Some(rig.now)), "it has had it");
    rig.settled(G1, 1);
    assert!(!rig.turn.is_crowded());
    rig.check();
}

#[test]
fn the_end_of_a_job_is_shown_once_it_is_with_the_client() {
    let reply = || ToolReply { job: Some(JobId::random()), tells_end: true, ..ToolReply::text("done") };
    let settle = |rig: &mut Rig| {
        rig.call(HERE, 1);
        let outcome = CallOutcome::Reply(Box::new(reply()));
        rig.heard(SessionEvent::HostSettled { call: CallNumber(1), outcome })
    };
    let mut rig = Rig::new();
    assert_eq!(settle(&mut rig), ["count here Success of 0 after 0"]);
    assert_eq!(rig.written(), NOTHING, "the sink may hold it");
    assert_eq!(rig.step(TurnEvent::Flushed), ["shown"]);
    assert_eq!(rig.step(TurnEvent::Flushed), NOTHING);
    assert!(!rig.turn.outgoing.is_due());
    let mut rig = Rig::new();
    settle(&mut rig);
    assert_eq!(rig.step(TurnEvent::WrittenThrough), ["shown"], "no sink holds it");
    assert!(!rig.turn.outgoing.is_due());
    let mut rig = Rig::new();
    settle(&mut rig);
    rig.turn.outgoing.owes_change = true;
    assert_eq!(rig.step(TurnEvent::WrittenThrough), ["shown"]);
    assert!(!rig.turn.outgoing.owes_change && rig.turn.outgoing.is_due(), "the change is told behind it");
    let mut rig = Rig::new();
    settle(&mut rig);
    rig.step(TurnEvent::HungUp);
    assert_eq!(rig.step(TurnEvent::Flushed), NOTHING, "it reached nobody");
}

#[test]
fn a_reply_about_several_jobs_shows_each_end_that_it_tells() {
    let mut rig = Rig::new();
    rig.call(HERE, 1);
    let ends = vec![JobId::random(), JobId::random()];
    let reply = ToolReply { ends, ..ToolReply::text("done") };
    rig.heard(SessionEvent::HostSettled { call: CallNumber(1), outcome: CallOutcome::Reply(Box::new(reply)) });
    assert_eq!(rig.step(TurnEvent::WrittenThrough), ["shown", "shown"]);
}

#[test]
fn however_often_the_tools_change_the_client_is_told_once_it_has_read() {
    let mut rig = Rig::new();
    rig.turn.outgoing.out.extend_from_slice(&vec![b' '; (1 << 20) + 1]);
    rig.turn.outgoing.line_ended();
    for _ in 0..3 {
        rig.heard(SessionEvent::ToolsChanged);
    }
    assert!(rig.turn.outgoing.owes_change, "it is behind");
    rig.written();
    assert_eq!(rig.said(), "notifications/tools/list_changed");
    assert!(!rig.turn.outgoing.owes_change);
    rig.heard(SessionEvent::Stop);
    rig.heard(SessionEvent::ToolsChanged);
    assert_eq!(rig.said(), "", "a session that ends says nothing of it");
}

/// A report of progress, as a tool's sink makes it.
fn progress(value: f64) -> Latest {
    struct Keep(mpsc::UnboundedSender<Latest>);
    impl ProgressListener for Keep {
        fn reported(&self, latest: Latest) {
            let _ = self.0.send(latest);
        }
    }
    let (keep, mut kept) = mpsc::unbounded_channel();
    ProgressSink::new(Keep(keep)).report(value, "at work".to_owned());
    kept.try_recv().expect("it was reported")
}

#[test]
fn progress_is_left_out_for_a_client_that_is_slow_to_read() {
    let mut rig = Rig::served();
    rig.send(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"again","arguments":{},"_meta":{"progressToken":5}}}"#);
    let news = |value| SessionEvent::Progress { call: CallNumber(1), latest: progress(value) };
    rig.heard(news(1.0));
    assert_eq!(rig.said(), "notifications/progress");
    rig.turn.outgoing.out.extend_from_slice(&vec![b' '; (1 << 18) + 1]);
    rig.turn.outgoing.line_ended();
    let before = rig.turn.outgoing.bytes().len();
    rig.heard(news(2.0));
    assert_eq!(rig.turn.outgoing.bytes().len(), before);
    rig.written();
    rig.heard(news(3.0));
    assert_eq!(rig.said(), "notifications/progress");
}

#[test]
fn a_question_about_tasks_is_a_call_of_the_host_and_a_follower_ends_with_its_subscription() {
    const TASKS: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"extensions":{"io.modelcontextprotocol/tasks":{}}}}"#;
    let job = JobId::random();
    let mut rig = Rig::new();
    let listen = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{{"notifications":{{"taskIds":["{job}"]}},{TASKS}}}}}"#
    );
    assert_eq!(rig.send(&listen), ["ask 1"]);
    rig.check();
    let answer = Ok(TaskAnswer::Known(vec![job]));
    assert_eq!(rig.heard(SessionEvent::Told { call: CallNumber(1), answer }), ["follow 1"]);
    rig.said();
    rig.heard(SessionEvent::TaskNews { number: CallNumber(1), news: TaskNews::Lost(job) });
    let done = rig.send(&cancel(1));
    assert!(done.is_empty() || done == ["abort"], "{done:?}");
    assert!(rig.turn.follows.is_empty());
    rig.check();
    assert_eq!(rig.send(&listen.replace(r#""id":1"#, r#""id":2"#)), ["ask 2"]);
    assert_eq!(rig.send(&cancel(2)), ["abort"]);
    rig.check();
}

/// Any order of events leaves each call in one place and answers each id at most once.
#[test]
fn sessions_at_random_answer_each_call_once_and_lose_none() {
    for seed in 1..=300_u64 {
        let mut state = seed;
        let mut draw = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut rig = Rig::new();
        let (mut asked, mut answered, mut generation) = (0, BTreeMap::<String, u32>::new(), 0);
        for _ in 0..80 {
            let any = 1 + draw(asked + 1);
            match draw(14) {
                0..=3 => {
                    asked += 1;
                    rig.call([AGAIN, ONCE, ASKED, HERE, QUICK][usize::try_from(draw(5)).expect("small")], asked);
                }
                4 => drop(rig.send(&cancel(any))),
                5 => {
                    generation += 1;
                    rig.up(Generation(generation));
                }
                6 => drop(rig.gone(Generation(draw(generation + 1)))),
                7 | 8 => drop(rig.settled(Generation(generation), any)),
                9 => {
                    if rig.turn.host_calls.contains_key(&CallNumber(any)) {
                        rig.host_settled(any);
                    }
                }
                10 => {
                    let evidence = [Evidence::Accepted, Evidence::NotAccepted, Evidence::Unknown];
                    let evidence = evidence[usize::try_from(draw(3)).expect("small")];
                    rig.heard(SessionEvent::Probed { call: CallNumber(any), evidence });
                }
                11 => {
                    rig.pass(Duration::from_secs(draw(20)));
                    rig.step(TurnEvent::Woke);
                }
                12 => {
                    rig.step(TurnEvent::Interrupted);
                    rig.step(TurnEvent::Resumed);
                }
                _ => drop(rig.heard(SessionEvent::WorkersGaveUp { period: Duration::ZERO })),
            }
            rig.check();
            for said in rig.said().split_whitespace() {
                let id = said.split(':').next().unwrap_or_default().to_owned();
                let times = answered.entry(id).or_default();
                *times += 1;
                assert_eq!(*times, 1, "seed {seed}: {said}");
            }
        }
        rig.heard(SessionEvent::Stop);
        for said in rig.said().split_whitespace() {
            let times = answered.entry(said.split(':').next().unwrap_or_default().to_owned()).or_default();
            *times += 1;
            assert_eq!(*times, 1, "seed {seed}: {said}");
        }
        assert!(rig.turn.is_over() && rig.turn.ledger.is_empty() && rig.turn.host_calls.is_empty(), "seed {seed}");
    }
}

/// A session whose connection came in by a door that takes control messages, before its first line.
fn at_door() -> Rig {
    let mut rig = Rig::new();
    rig.turn = SessionTurn::new(
        (HostId::random(), SessionNumber(1)),
        core().with_control(),
        tools().into(),
        1 << 20,
        Faults::none(),
    );
    rig
}

const OPEN: &str = r#"{"type":"session_open","proto":1,"session":"s","cwd":"/"}"#;

fn answered(number: u64, line: &str) -> SessionEvent {
    SessionEvent::ControlAnswered { number, line: line.to_owned(), refused: false }
}

fn ping(id: u64) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#)
}

#[test]
fn each_line_beside_json_rpc_gets_one_line_and_the_next_one_is_served() {
    let control: &[&str] = &["control 0 status"];
    let table: [(&str, &[&str], &str); 14] = [
        (r#"{"type":"status"}"#, control, ""),
        (r#" {"id":7,"type":"status","more":[1]} "#, control, ""),
        (r#"{"type":"shutdown","mode":"now"}"#, &[], "error:shutdown"),
        (r#"{"type":"session_open"}"#, &[], "error:session_open"),
        (r#"{"type":"session_open","proto":1,"session":"s","cwd":"here"}"#, &[], "error:session_open"),
        (
            r#"{"type":"session_open","proto":1,"session":"s","cwd":"/","env":{"A":"\u0000"}}"#,
            &[],
            "error:session_open",
        ),
        (r#"{"type":"frobnicate"}"#, &[], "null:invalid_request"),
        (r#"{"type":7,"id":3}"#, &[], "3:invalid_request"),
        (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, &[], "null:invalid_request"),
        (r#"{"jsonrpc":"2.0","type":"status"}"#, &[], "null:invalid_request"),
        ("status", &[], "null:parse_error"),
        (r#"{"type":"status""#, &[], "null:parse_error"),
        ("[1]", &[], "null:invalid_request"),
        ("7", &[], "null:invalid_request"),
    ];
    for (line, done, said) in table {
        let mut rig = at_door();
        assert_eq!(rig.send(line), done, "{line}");
        assert_eq!(rig.said(), said, "{line}");
        rig.send(&ping(1));
        assert_eq!(rig.said(), "1:ok", "{line}");
    }
    // Where only clients come in it is not understood.
    let mut rig = Rig::new();
    assert_eq!(rig.send(r#"{"type":"status"}"#), NOTHING);
    assert_eq!(rig.said(), "null:invalid_request");
}

#[test]
fn a_control_message_in_a_batch_is_refused_and_the_others_are_served() {
    let mut rig = at_door();
    rig.send(r#"{"jsonrpc":"2.0","id":"i","method":"initialize","params":{"protocolVersion":"2025-03-26"}}"#);
    rig.written();
    assert_eq!(rig.send(&format!(r#"[{},{{"type":"shutdown"}},{}]"#, ping(1), ping(2))), NOTHING);
    let said = String::from_utf8(rig.turn.outgoing.bytes().to_vec()).expect("text");
    let answers: Vec<serde_json::Value> = serde_json::from_str(said.trim()).expect("one batch");
    let ids: Vec<_> = answers.iter().map(|answer| answer["id"].clone()).collect();
    assert_eq!(ids, [serde_json::json!(1), serde_json::Value::Null, serde_json::json!(2)]);
    assert!(answers[1]["error"]["message"].as_str().is_some_and(|why| why.contains("batch")), "{}", answers[1]);
}

#[test]
fn a_session_is_opened_once_and_before_its_first_call() {
    let mut rig = at_door();
    assert_eq!(rig.send(OPEN), ["control 0 session_open"]);
    assert_eq!(rig.heard(answered(0, r#"{"type":"session_opened"}"#)), NOTHING);
    assert_eq!(rig.said(), "session_opened:-");
    assert_eq!(rig.send(OPEN), NOTHING);
    assert_eq!(rig.said(), "error:session_open");
    // One that was refused may be sent again.
    let mut rig = at_door();
    rig.send(OPEN);
    let line = REFUSED.to_owned();
    rig.heard(SessionEvent::ControlAnswered { number: 0, line, refused: true });
    assert_eq!(rig.said(), "error:session_open");
    assert_eq!(rig.send(OPEN), ["control 1 session_open"]);
    // After the handshake it is time still, after a call it is not.
    let mut rig = at_door();
    rig.send(r#"{"jsonrpc":"2.0","id":"i","method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#);
    rig.call(HERE, 1);
    rig.written();
    assert_eq!(rig.send(OPEN), NOTHING);
    assert_eq!(rig.said(), "error:session_open");
}

#[test]
fn only_who_has_opened_its_session_is_told_beside_json_rpc_and_after_it_was_opened() {
    let last = || SessionEvent::SayBeside(r#"{"type":"restarting","stopped":true}"#.to_owned());
    let mut rig = at_door();
    rig.heard(last());
    assert_eq!(rig.said(), "", "a plain client would not understand it");
    rig.send(OPEN);
    rig.heard(last());
    assert_eq!(rig.said(), "", "it is not open yet");
    rig.heard(answered(0, r#"{"type":"session_opened"}"#));
    assert_eq!(rig.said(), "session_opened:- restarting:-");
    rig.heard(last());
    assert_eq!(rig.said(), "restarting:-");
}

const REFUSED: &str = r#"{"type":"error","to":"session_open","message":"no"}"#;

#[test]
fn lines_behind_the_opening_of_a_session_wait_for_its_answer() {
    let mut rig = at_door();
    assert_eq!(rig.send(&format!("{OPEN}\n{}\n{}", call(HERE, 1), ping(2))), ["control 0 session_open"]);
    assert!(!rig.turn.reads(None), "the caller's context is not known");
    assert_eq!(rig.said(), "");
    assert_eq!(rig.step(TurnEvent::ReadAll), NOTHING, "the client may have closed its end");
    assert!(!rig.turn.is_over());
    // The call is refused, as there was no handshake; that it is looked at is what counts.
    rig.heard(answered(0, r#"{"type":"session_opened"}"#));
    assert_eq!(rig.said(), "session_opened:- 1:not_initialized 2:ok");
    assert!(rig.turn.is_over());
}

#[test]
fn answers_are_written_in_the_order_of_the_questions_and_so_many_may_be_missing() {
    let status = r#"{"type":"status"}"#;
    let mut rig = at_door();
    assert_eq!(
        rig.send(&[status, r#"{"type":"shutdown","mode":1}"#, status].join("\n")),
        ["control 0 status", "control 2 status"]
    );
    rig.heard(answered(2, r#"{"type":"b"}"#));
    assert_eq!(rig.said(), "", "the first one is missing");
    rig.send(&ping(1));
    assert_eq!(rig.said(), "1:ok", "nobody else waits for it");
    rig.heard(answered(0, r#"{"type":"a"}"#));
    assert_eq!(rig.said(), "a:- error:shutdown b:-");
    assert_eq!(rig.send(&vec![status; 20].join("\n")).len(), 16);
    assert_eq!(rig.said(), ["error:status"; 4].join(" "));
    for number in (0..100).rev() {
        rig.heard(answered(number, r#"{"type":"a"}"#));
    }
    assert_eq!(rig.said(), ["a:-"; 16].join(" "), "each once");
}

#[test]
fn a_client_that_closed_its_end_is_answered_what_it_asked_before() {
    let mut rig = at_door();
    rig.turn.incoming.reader.extend(br#"{"type":"hello"}"#);
    assert_eq!(rig.step(TurnEvent::ReadAll), ["control 0 hello"], "half a line counts at the end");
    assert!(!rig.turn.is_over());
    rig.heard(answered(0, r#"{"type":"hello"}"#));
    assert!(!rig.turn.is_over());
    assert_eq!(rig.said(), "hello:-");
    assert!(rig.turn.is_over());
}

#[test]
fn what_is_said_beside_json_rpc_goes_on_in_the_next_image() {
    let mut rig = at_door();
    rig.send(OPEN);
    rig.heard(answered(0, r#"{"type":"session_opened"}"#));
    rig.send(&[r#"{"type":"reload"}"#, r#"{"type":"status"}"#, r#"{"type":"hello"}"#].join("\n"));
    rig.heard(answered(3, r#"{"type":"hello"}"#));
    rig.said();
    let snapshot = rig.turn.snapshot(rig.now);
    let mut next = at_door();
    next.turn.take_over(&snapshot);
    assert_eq!(next.said(), "ok:reload error:status hello:-");
    assert_eq!(next.send(OPEN), NOTHING, "it is open");
    assert_eq!(next.said(), "error:session_open");
}

#[test]
fn a_client_that_floods_gives_way_and_one_that_is_alone_does_not() {
    let mut rig = Rig::new();
    let lines: Vec<String> = (1..=200).map(ping).collect();
    let answers = |rig: &mut Rig| rig.said().split_whitespace().count();
    rig.send(&lines.join("\n"));
    assert_eq!((answers(&mut rig), rig.turn.is_behind()), (200, false));
    rig.turn.incoming.alone = false;
    rig.send(&lines.join("\n"));
    let mut turns = vec![answers(&mut rig)];
    while rig.turn.is_behind() {
        rig.step(TurnEvent::Read);
        turns.push(answers(&mut rig));
    }
    assert_eq!(turns, [LINES, LINES, LINES, 200 - 3 * LINES]);
    // A few long lines are a turn as well.
    let long = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{"x":"{}"}}}}"#, "x".repeat(40_000));
    rig.send(&vec![long; 4].join("\n"));
    assert_eq!((answers(&mut rig), rig.turn.is_behind()), (2, true));
    // What is left is passed on by an upgrade, and the end of input is seen behind it.
    rig.step(TurnEvent::ReadAll);
    assert_eq!((answers(&mut rig), rig.turn.stage), (2, SessionStage::Open));
    rig.step(TurnEvent::Read);
    assert!(matches!(rig.turn.stage, SessionStage::Lingering(_)));
}

fn counted_call() -> ToolCallRecord {
    ToolCallRecord {
        at: Instant::now(),
        session: SessionNumber(1),
        request_id: None,
        tool: Arc::from(ASKED),
        path_hint: None,
        latency: Duration::ZERO,
        result: FinishedAs::Success,
        job: None,
        generation: G1,
        replays: 0,
        trace: None,
    }
}
