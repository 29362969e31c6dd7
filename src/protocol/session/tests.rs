//! What goes in and what comes out of the state machine, by era.
//!
//! Laws: L1, L9.

use super::*;
use crate::base::ids::UnixMillis;
use crate::protocol::catalog::TaskSupport;
use crate::protocol::tasks::{TaskAnswer, TaskStatus, TaskView};

struct Rig {
    core: SessionCore,
    now: Instant,
    invoked: Vec<Call>,
    asked: Vec<(CallNumber, TaskAsk)>,
    withdrawn: Vec<CallNumber>,
    followed: Vec<(CallNumber, Vec<JobId>, Wanted)>,
    unfollowed: Vec<CallNumber>,
    gave_up: Vec<Duration>,
    waited: Vec<Duration>,
    finished: Vec<Finished>,
    roots: Vec<Roots>,
}

impl Rig {
    fn new() -> Self {
        Self::with_limits(SessionLimits::default())
    }

    fn with_limits(limits: SessionLimits) -> Self {
        Self::made(limits, TaskSupport::Forbidden)
    }

    /// A session whose tool's calls may become tasks, in either era.
    fn with_tasks() -> Self {
        let mut rig = Self::made(SessionLimits::default(), TaskSupport::Optional);
        rig.send(r#"{"jsonrpc":"2.0","id":"i","method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#);
        rig
    }

    fn made(limits: SessionLimits, tasks: TaskSupport) -> Self {
        let catalog = Catalog::of_echo_and_look(tasks);
        let identity = Identity::new("phone-opus", "0", "Ask.");
        Self {
            core: SessionCore::new(Arc::new(catalog), Arc::new(identity), limits),
            now: Instant::now(),
            invoked: Vec::new(),
            asked: Vec::new(),
            withdrawn: Vec::new(),
            followed: Vec::new(),
            unfollowed: Vec::new(),
            gave_up: Vec::new(),
            waited: Vec::new(),
            finished: Vec::new(),
            roots: Vec::new(),
        }
    }

    /// After each step another image goes on: whatever these tables say holds across upgrades, too.
    fn pass_on(&mut self) {
        let text = serde_json::to_string(&self.core.snapshot(self.now)).expect("JSON");
        let passed: CoreSnapshot = serde_json::from_str(&text).expect("the same");
        let (catalog, identity) = (Arc::clone(&self.core.catalog), Arc::clone(&self.core.identity));
        let core = SessionCore::restored(catalog, identity, self.core.limits, &passed, self.now, Duration::ZERO);
        let complaints = std::mem::take(&mut self.core.complaints);
        self.core = core.expect("it makes sense");
        assert_eq!(self.core.snapshot(self.now), passed, "what is passed on twice is passed on whole");
        // How often somebody was complained to in this second is forgotten, and that is well.
        self.core.complaints = complaints;
    }

    fn legacy(version: &str) -> Self {
        let mut rig = Self::new();
        rig.send(&format!(
            r#"{{"jsonrpc":"2.0","id":"i","method":"initialize","params":{{"protocolVersion":"{version}","capabilities":{{}},"clientInfo":{{"name":"t","version":"1"}}}}}}"#
        ));
        rig
    }

    fn send(&mut self, line: &str) -> String {
        self.frame(&Frame::Line(Bytes::copy_from_slice(line.as_bytes())))
    }

    fn frame(&mut self, frame: &Frame) -> String {
        let mut out = BytesMut::new();
        let mut effects = SessionEffects::new();
        self.core.on_frame(frame, self.now, &mut out, &mut effects);
        self.take(effects, &out)
    }

    fn settle(&mut self, call: usize, outcome: CallOutcome) -> String {
        let mut out = BytesMut::new();
        let mut effects = SessionEffects::new();
        let number = self.invoked[call].number;
        self.core.on_settled(number, outcome, self.now, &mut out, &mut effects);
        self.take(effects, &out)
    }

    fn tell(&mut self, ask: usize, answer: Result<TaskAnswer, Fault>) -> String {
        let mut out = BytesMut::new();
        let mut effects = SessionEffects::new();
        let number = self.asked[ask].0;
        self.core.on_told(number, answer.map_err(Box::new), self.now, &mut out, &mut effects);
        self.take(effects, &out)
    }

    fn news(&mut self, number: CallNumber, news: &TaskNews) -> String {
        let mut out = BytesMut::new();
        let mut effects = SessionEffects::new();
        self.core.on_task(number, news, &mut out, &mut effects);
        self.take(effects, &out)
    }

    fn tools_changed(&mut self) -> String {
        let mut out = BytesMut::new();
        self.core.on_tools_changed(&mut out);
        self.take(SessionEffects::new(), &out)
    }

    fn reply(&mut self, call: usize, text: &str) -> String {
        self.settle(call, CallOutcome::Reply(Box::new(ToolReply::text(text))))
    }

    fn take(&mut self, effects: SessionEffects, out: &BytesMut) -> String {
        for effect in effects {
            match effect {
                SessionEffect::Invoke(call) => self.invoked.push(call),
                SessionEffect::Ask { number, ask, .. } => self.asked.push((number, ask)),
                SessionEffect::Withdraw(call) => self.withdrawn.push(call),
                SessionEffect::Follow { number, jobs, news, .. } => self.followed.push((number, jobs, news)),
                SessionEffect::Unfollow(number) => self.unfollowed.push(number),
                SessionEffect::GaveUp { after, .. } => self.gave_up.push(after),
                SessionEffect::Roots(roots) => self.roots.push(roots),
                SessionEffect::Waited { so_long, .. } => self.waited.push(so_long),
                SessionEffect::Finished(finished) => self.finished.push(finished),
            }
        }
        self.core.invariant_calls_are_consistent_and_bounded().expect("the invariant holds");
        self.pass_on();
        String::from_utf8(out.to_vec()).expect("we write UTF-8")
    }
}

const ENVELOPE: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;

fn call(id: &str, rest: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"echo"{rest}}}}}"#)
}

#[test]
fn each_request_gets_the_code_of_the_table() {
    let cases: &[(&str, &str, &str)] = &[
        // before initialize, no envelope
        ("new", r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, "\"result\":{}"),
        ("new", r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#, "-32602"),
        ("new", r#"{"jsonrpc":"2.0","id":1,"method":"prompts/list"}"#, "-32601"),
        ("new", r#"{"jsonrpc":"2.0","id":1,"method":"initialize"}"#, "-32602"),
        ("new", r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":7}}"#, "-32602"),
        ("new", r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":[]}"#, "-32602"),
        ("new", "nonsense", ""),
        // after it
        ("legacy", r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#, "\"tools\":[{"),
        ("legacy", r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":null}"#, "\"tools\":[{"),
        ("legacy", r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":[]}"#, "-32602"),
        ("legacy", r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":"x"}}"#, "-32602"),
        ("legacy", r#"{"jsonrpc":"2.0","id":1,"method":"logging/setLevel","params":{"level":"debug"}}"#, "-32601"),
        ("legacy", r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#, "-32602"),
        ("legacy", r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":7}}"#, "-32602"),
        ("legacy", r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"nope"}}"#, "-32602"),
        (
            "legacy",
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":[]}}"#,
            "-32602",
        ),
        ("legacy", r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":"x"}"#, "-32602"),
        ("legacy", r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, "\"id\":null,\"error\":{\"code\":-32600"),
        ("legacy", r#"{"id":5,"method":"ping"}"#, "\"id\":5,\"error\":{\"code\":-32600"),
        ("legacy", "7", "\"id\":null,\"error\":{\"code\":-32600"),
        ("legacy", "nonsense", "\"id\":null,\"error\":{\"code\":-32700"),
        ("legacy", r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, "\"id\":null,\"error\":{\"code\":-32600"),
        ("legacy", r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, ""),
        ("legacy", r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"echo"}}"#, ""),
        ("legacy", r#"{"jsonrpc":"2.0","method":"notifications/unheard_of"}"#, ""),
        ("legacy", r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":{}}}"#, ""),
        // the stateless era, cold
        ("new", r#"{"jsonrpc":"2.0","id":1,"method":"server/discover"}"#, "-32602"),
        (
            "new",
            r#"{"jsonrpc":"2.0","id":1,"method":"server/discover","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2099-01-01"}}}"#,
            "-32022",
        ),
        (
            "new",
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#,
            "-32602",
        ),
    ];
    for (state, line, want) in cases {
        let mut rig = if *state == "new" { Rig::new() } else { Rig::legacy("2025-06-18") };
        let got = rig.send(line);
        assert!(if want.is_empty() { got.is_empty() } else { got.contains(want) }, "{state} {line}\n -> {got}");
        assert!(got.is_empty() || (got.ends_with('\n') && got.lines().count() == 1), "{got:?}");
    }
}

#[test]
fn the_stateless_era_is_served_cold_and_beside_a_legacy_session() {
    for mut rig in [Rig::new(), Rig::legacy("2025-06-18")] {
        let discover =
            rig.send(&format!(r#"{{"jsonrpc":"2.0","id":"d","method":"server/discover","params":{{{ENVELOPE}}}}}"#));
        assert!(discover.contains(r#""supportedVersions":["2026-07-28"]"#), "{discover}");
        assert!(discover.contains(r#""resultType":"complete""#) && discover.contains(r#""ttlMs":0"#), "{discover}");
        let list = rig.send(&format!(r#"{{"jsonrpc":"2.0","id":2,"method":"tools/list","params":{{{ENVELOPE}}}}}"#));
        assert!(list.contains("resultType") && list.contains("cacheScope") && list.contains("serverInfo"), "{list}");
        assert_eq!(rig.send(&call("3", &format!(r#","arguments":{{"text":"x"}},{ENVELOPE}"#))), "");
        let answer = rig.reply(0, "hi");
        assert!(answer.contains(r#""id":3"#) && answer.contains("resultType"), "{answer}");
        let ping = rig.send(&format!(r#"{{"jsonrpc":"2.0","id":4,"method":"ping","params":{{{ENVELOPE}}}}}"#));
        assert!(ping.contains("-32601"), "{ping}");
        serde_json::from_str::<serde_json::Value>(&discover).expect("discover is JSON");
        serde_json::from_str::<serde_json::Value>(&answer).expect("the answer is JSON");
    }
}

#[test]
fn ids_are_echoed_token_for_token_and_answered_once() {
    for id in ["0", "-5", "7", "\"7\"", "7.0", "1e3", "12345678901234567890123", "\"\"", "\"\\u00e9\\\"\"", "\"é\""] {
        let mut rig = Rig::legacy("2025-11-25");
        assert_eq!(rig.send(&call(id, "")), "");
        let answer = rig.reply(0, "x");
        assert!(answer.starts_with(&format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\"")), "{answer}");
        assert_eq!(rig.reply(0, "again"), "", "a second outcome is not an answer");
    }
}

#[test]
fn an_id_in_flight_is_refused_to_the_newcomer_and_the_first_goes_on() {
    let mut rig = Rig::legacy("2025-11-25");
    rig.send(&call("7", ""));
    assert!(rig.send(&call("7", "")).contains("-32600"));
    assert!(rig.send(r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#).contains("-32600"));
    assert_eq!(rig.send(&call("\"7\"", "")), "", "another id");
    assert!(rig.reply(0, "first").contains("first"));
    assert_eq!(rig.send(&call("7", "")), "", "a finished id may be used again");
    assert_eq!(rig.invoked.len(), 3);
}

#[test]
fn nothing_is_said_about_a_cancelled_call() {
    let mut rig = Rig::legacy("2025-11-25");
    rig.send(&call("7", r#","_meta":{"progressToken":0}"#));
    rig.send(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"7"}}"#);
    assert!(rig.withdrawn.is_empty(), "\"7\" is another id");
    rig.send(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}"#);
    assert_eq!(rig.withdrawn, [rig.invoked[0].number]);
    assert_eq!(rig.reply(0, "late"), "");
    let mut out = BytesMut::new();
    rig.core.on_progress(rig.invoked[0].number, 1.0, None, &mut out);
    assert!(out.is_empty());
    assert_eq!(rig.finished.last().map(|f| f.result), Some(FinishedAs::Cancelled));
}

#[test]
fn progress_needs_a_token_and_strictly_rises() {
    for (meta, want) in [(r#"{"progressToken":0}"#, "0"), (r#"{"progressToken":"a"}"#, "\"a\"")] {
        let mut rig = Rig::legacy("2025-11-25");
        rig.send(&call("1", &format!(r#","_meta":{meta}"#)));
        assert!(rig.invoked[0].wants_progress);
        let mut out = BytesMut::new();
        for value in [5.0, 5.0, 4.0, 10.0] {
            rig.core.on_progress(CallNumber(1), value, Some("reading"), &mut out);
        }
        let text = String::from_utf8(out.to_vec()).expect("UTF-8");
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains(&format!("\"progressToken\":{want},\"progress\":5")), "{text}");
    }
    for meta in [r#"{"progressToken":null}"#, r#"{"progressToken":{}}"#, "{}"] {
        let mut rig = Rig::legacy("2025-11-25");
        rig.send(&call("1", &format!(r#","_meta":{meta}"#)));
        assert!(!rig.invoked[0].wants_progress, "{meta}");
    }
}

#[test]
fn bad_arguments_are_a_protocol_error_before_2025_11_25_and_a_tool_result_after() {
    for (version, protocol_error) in
        [("2024-11-05", true), ("2025-03-26", true), ("2025-06-18", true), ("2025-11-25", false)]
    {
        let mut rig = Rig::legacy(version);
        rig.send(&call("1", ""));
        let answer =
            rig.settle(0, CallOutcome::Fault(Box::new(Fault::new(FaultCode::InvalidInput, "text is missing."))));
        assert_eq!(answer.contains("-32602"), protocol_error, "{version}: {answer}");
        assert_eq!(answer.contains("\"isError\":true"), !protocol_error, "{version}: {answer}");
    }
}

#[test]
fn calls_beyond_the_bound_are_refused_while_ping_and_cancel_are_served() {
    let mut rig = Rig::with_limits(SessionLimits { calls: 2, ..SessionLimits::default() });
    rig.send(r#"{"jsonrpc":"2.0","id":"i","method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#);
    for id in 1..=2 {
        assert_eq!(rig.send(&call(&id.to_string(), "")), "");
    }
    let refused = rig.send(&call("3", ""));
    assert!(refused.contains("\"code\":\"busy\"") && refused.contains("\"id\":3"), "{refused}");
    assert!(rig.send(r#"{"jsonrpc":"2.0","id":4,"method":"ping"}"#).contains("\"result\":{}"));
    rig.send(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#);
    assert_eq!(rig.send(&call("5", "")), "");
}

#[test]
fn a_few_places_are_kept_for_tools_that_look_and_they_are_bounded_too() {
    let mut rig = Rig::with_limits(SessionLimits { calls: 2, ..SessionLimits::default() });
    rig.send(r#"{"jsonrpc":"2.0","id":"i","method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#);
    let look = |id: usize| call(&id.to_string(), "").replace("\"echo\"", "\"look\"");
    for id in 1..=2 {
        assert_eq!(rig.send(&call(&id.to_string(), "")), "");
    }
    assert!(rig.send(&call("3", "")).contains("\"code\":\"busy\""));
    for id in 4..4 + KEPT_CALLS {
        assert_eq!(rig.send(&look(id)), "");
        assert_eq!(rig.core.invariant_calls_are_consistent_and_bounded(), Ok(()));
    }
    assert!(rig.send(&look(1000)).contains("\"code\":\"busy\""));
    // A kept place is nobody else's.
    assert!(rig.reply(2, "looked").contains("looked"));
    assert!(rig.send(&call("1001", "")).contains("\"code\":\"busy\""));
}

#[test]
fn a_batch_is_answered_with_one_array_when_its_last_member_is_done() {
    let mut rig = Rig::legacy("2025-03-26");
    let batch = format!(
        r#"[{},{{"jsonrpc":"2.0","id":2,"method":"ping"}},{{"jsonrpc":"2.0","method":"n"}},{},{{"jsonrpc":"2.0","id":9,"method":"initialize"}},7]"#,
        call("1", ""),
        call("3", "")
    );
    assert_eq!(rig.send(&batch), "");
    assert_eq!(rig.reply(1, "three"), "");
    let answer = rig.reply(0, "one");
    let array: Vec<serde_json::Value> = serde_json::from_str(&answer).expect("one array");
    let mut ids: Vec<String> = array.iter().map(|member| member["id"].to_string()).collect();
    ids.sort();
    assert_eq!(ids, ["1", "2", "3", "9", "null"]);
    assert!(rig.core.batches.is_empty());

    assert!(rig.send("[]").contains("-32600"));
    assert_eq!(rig.send(r#"[{"jsonrpc":"2.0","method":"n"}]"#), "", "only notifications: nothing");
    rig.send(&format!("[{},{}]", call("11", ""), call("12", "")));
    rig.send(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":11}}"#);
    let answer = rig.reply(3, "twelve");
    assert_eq!(serde_json::from_str::<Vec<serde_json::Value>>(&answer).expect("an array").len(), 1);
}

#[test]
fn complaints_without_an_id_wait_for_the_first_answer_and_are_rationed() {
    let mut rig = Rig::new();
    assert_eq!(rig.send("nonsense"), "");
    rig.send(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#);
    let answered = (0..50).filter(|_| !rig.send("nonsense").is_empty()).count();
    assert_eq!(answered, 5);
    rig.now += Duration::from_secs(1);
    assert!(!rig.send("nonsense").is_empty());
}

#[test]
fn an_over_long_line_is_refused_with_its_id() {
    let mut rig = Rig::legacy("2025-11-25");
    let head = Bytes::from_static(br#"{"jsonrpc":"2.0","id":42,"method":"tools/call","params":{"#);
    let answer = rig.frame(&Frame::TooLong { head });
    assert!(answer.contains("\"id\":42,\"error\":{\"code\":-32600"), "{answer}");
}

#[test]
fn undecodable_text_is_repaired_and_its_request_answered() {
    let mut rig = Rig::legacy("2025-11-25");
    let mut line = call("1", r#","arguments":{"text":"x"}"#).into_bytes();
    let at = line.windows(3).position(|w| w == b"\"x\"").expect("the text is there");
    line[at + 1] = 0xff;
    assert_eq!(rig.frame(&Frame::Line(Bytes::from(line))), "");
    assert_eq!(&rig.invoked[0].arguments[..], "{\"text\":\"\u{fffd}\"}".as_bytes());
}

#[test]
fn a_closed_connection_withdraws_every_call() {
    let mut rig = Rig::legacy("2025-11-25");
    for id in 1..=3 {
        rig.send(&call(&id.to_string(), ""));
    }
    let mut effects = SessionEffects::new();
    rig.core.on_closed(rig.now, &mut effects);
    rig.take(effects, &BytesMut::new());
    assert_eq!(rig.withdrawn.len(), 3);
    assert_eq!(rig.core.in_flight(), 0);
}

#[test]
fn a_message_whose_handling_was_broken_off_is_answered_once_unless_it_became_a_call() {
    let abandon = |rig: &mut Rig, line: &str| {
        let mut out = BytesMut::new();
        rig.core.abandon(&Frame::Line(Bytes::copy_from_slice(line.as_bytes())), &mut out);
        String::from_utf8_lossy(&out).into_owned()
    };
    let mut rig = Rig::legacy("2025-11-25");
    let said = abandon(&mut rig, r#"{"jsonrpc":"2.0","id":"a","method":"ping"}"#);
    assert!(said.contains(r#""id":"a""#) && said.contains("internal"), "{said}");
    // A notification and what is no message have nobody to be answered to.
    assert_eq!(abandon(&mut rig, r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#), "");
    assert_eq!(abandon(&mut rig, "nonsense"), "");
    let call = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{}}}"#;
    rig.send(call);
    assert_eq!(abandon(&mut rig, call), "", "it is in flight and will be answered as such");
    assert!(rig.settle(0, CallOutcome::Reply(Box::new(ToolReply::text("done")))).contains(r#""id":7"#));
}

#[test]
fn a_batch_that_was_broken_off_comes_apart_and_each_of_its_requests_is_answered_once() {
    let mut rig = Rig::legacy("2025-03-26");
    let call = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{}}}"#;
    let batch = format!(r#"[{call},{{"jsonrpc":"2.0","id":8,"method":"ping"}}]"#);
    assert_eq!(rig.send(&batch), "", "the batch waits for its call");
    let mut out = BytesMut::new();
    rig.core.abandon(&Frame::Line(Bytes::from(batch)), &mut out);
    let said = String::from_utf8_lossy(&out).into_owned();
    assert!(said.contains(r#""id":8"#) && !said.contains(r#""id":7"#), "{said}");
    let said = rig.settle(0, CallOutcome::Reply(Box::new(ToolReply::text("done"))));
    assert!(said.starts_with('{') && said.contains(r#""id":7"#), "it stands alone: {said}");
}

const TASKS: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"extensions":{"io.modelcontextprotocol/tasks":{}}}}"#;

fn job_reply() -> (JobId, CallOutcome) {
    let job = JobId::random();
    (job, CallOutcome::Reply(Box::new(ToolReply { job: Some(job), ..ToolReply::text("accepted") })))
}

fn view(job: JobId, status: TaskStatus) -> Box<TaskView> {
    let result = status.is_final().then(|| ToolReply::text("42"));
    let (created, updated) = (UnixMillis(0), UnixMillis(1000));
    Box::new(TaskView { job, status, message: "so so".into(), created, updated, result })
}

#[test]
fn a_call_as_a_task_runs_in_the_background_and_is_answered_when_it_is_known_how_it_stands() {
    for (given, told) in [
        ("", r#"{"background":true}"#),
        (r#","arguments":{ }"#, r#"{"background":true}"#),
        (r#","arguments":{"a":"}","background":false}"#, r#"{"a":"}","background":false,"background":true}"#),
    ] {
        let mut rig = Rig::with_tasks();
        assert_eq!(rig.send(&call("1", &format!(r#","task":{{}},"_meta":{{"progressToken":5}}{given}"#))), "");
        assert_eq!(rig.invoked[0].arguments, told);
        assert!(!rig.invoked[0].wants_progress, "its token is for the task");
        let (job, outcome) = job_reply();
        assert_eq!(rig.settle(0, outcome), "", "nothing is said before it is known");
        assert_eq!(rig.asked[0].1, TaskAsk::Look(job));
        let created = rig.tell(0, Ok(TaskAnswer::Task(view(job, TaskStatus::Working))));
        assert!(created.starts_with(r#"{"jsonrpc":"2.0","id":1,"result":{"task":{"#), "{created}");
        assert!(created.contains(r#""status":"working""#) && !created.contains("resultType"), "{created}");
        // Its progress goes on until it is over, and not a word longer.
        let (number, jobs, wanted) = rig.followed[0].clone();
        assert_eq!((jobs, wanted), (vec![job], Wanted::Progress));
        let at = |value: f64| TaskNews::Progress { value, message: "at work".into() };
        assert!(rig.news(number, &at(1.0)).contains(r#""progressToken":5,"progress":1.0"#));
        assert_eq!(rig.news(number, &at(1.0)), "", "it must rise");
        assert_eq!(rig.news(number, &TaskNews::Changed(view(job, TaskStatus::Working))), "", "it was created as that");
        let over = rig.news(number, &TaskNews::Changed(view(job, TaskStatus::Completed)));
        let begins = r#"{"jsonrpc":"2.0","method":"notifications/tasks/status","params":{"#;
        assert!(over.starts_with(begins) && over.contains(r#""status":"completed""#), "{over}");
        assert!(over.contains(&job.to_string()) && !over.contains("result"), "it is fetched: {over}");
        assert_eq!(rig.unfollowed, [number]);
        assert_eq!(rig.news(number, &at(9.0)), "");
    }
}

#[test]
fn a_task_of_the_core_without_a_progress_token_is_followed_to_its_end_only() {
    let mut rig = Rig::with_tasks();
    rig.send(&call("1", r#","task":{}"#));
    let (job, outcome) = job_reply();
    rig.settle(0, outcome);
    // It was over before its client heard of it, which it is told of like of any other end.
    let created = rig.tell(0, Ok(TaskAnswer::Task(view(job, TaskStatus::Failed))));
    assert!(created.contains(r#""status":"working""#), "{created}");
    let (number, jobs, wanted) = rig.followed[0].clone();
    assert_eq!((jobs, wanted), (vec![job], Wanted::End));
    let at_work = TaskNews::Progress { value: 1.0, message: "at work".into() };
    assert_eq!(rig.news(number, &at_work), "");
    assert!(rig.news(number, &TaskNews::Changed(view(job, TaskStatus::Failed))).contains(r#""status":"failed""#));
    assert_eq!(rig.unfollowed, [number]);
}

#[test]
fn a_task_of_the_extension_is_ours_to_give_and_never_has_progress() {
    // Not to a client that cannot take it, nor to a caller that wants to go on at once, nor where it is asked for.
    for more in [format!(r#","task":{{}},{ENVELOPE}"#), format!(r#","arguments":{{"background":true}},{TASKS}"#)] {
        let mut rig = Rig::with_tasks();
        rig.send(&call("1", &more));
        let (_, outcome) = job_reply();
        assert!(rig.settle(0, outcome).contains(r#""text":"accepted""#), "{more}");
    }
    for (status, want) in [
        (TaskStatus::Working, r#""resultType":"task""#),
        (TaskStatus::Completed, r#""content":[{"type":"text","text":"42"}],"resultType":"complete""#),
    ] {
        let mut rig = Rig::with_tasks();
        let meta = TASKS.replacen('{', r#"{"progressToken":0,"#, 1);
        rig.send(&call("1", &format!(r#","arguments":{{}},{meta}"#)));
        assert_eq!(rig.invoked[0].arguments, r#"{"background":true}"#);
        let (job, outcome) = job_reply();
        assert_eq!(rig.settle(0, outcome), "");
        assert_eq!(rig.asked[0].1, TaskAsk::Read(job));
        let answer = rig.tell(0, Ok(TaskAnswer::Task(view(job, status))));
        assert!(answer.contains(want), "{answer}");
        assert!(rig.followed.is_empty());
    }
}

#[test]
fn a_call_that_is_more_than_one_job_becomes_no_task_whoever_wants_one() {
    for (list, becomes_a_task) in
        [(r#"["a","b"]"#, false), (r#" [ "a" ]"#, false), ("[ ]", true), ("null", true), (r#""a""#, true)]
    {
        for more in [r#","task":{}"#.to_owned(), format!(",{TASKS}")] {
            let mut rig = Rig::made(SessionLimits::default(), TaskSupport::OptionalWithout("of"));
            rig.send(r#"{"jsonrpc":"2.0","id":"i","method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#);
            rig.send(&call("1", &format!(r#","arguments":{{"of":{list}}}{more}"#)));
            let told = String::from_utf8_lossy(&rig.invoked[0].arguments).into_owned();
            assert_eq!(told.contains("background"), becomes_a_task, "{list} {more}");
            let (_, outcome) = job_reply();
            let answer = rig.settle(0, outcome);
            assert_eq!(answer.is_empty(), becomes_a_task, "{list} {more}: {answer}");
            assert_eq!(answer.contains(r#""text":"accepted""#), !becomes_a_task, "{list} {more}: {answer}");
        }
    }
}

#[test]
fn a_task_that_was_cancelled_failed_or_lost_on_its_way_is_answered_once_or_not_at_all() {
    let mut rig = Rig::with_tasks();
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
    rig.send(&call("1", r#","task":{}"#));
    let (job, outcome) = job_reply();
    rig.settle(0, outcome);
    assert_eq!(rig.send(cancel), "");
    assert_eq!(rig.tell(0, Ok(TaskAnswer::Task(view(job, TaskStatus::Working)))), "", "it was cancelled");
    // A fault on the way, and a reply that names no job, are errors: whoever waits for a task expects no tool's result.
    rig.send(&call("2", r#","task":{}"#));
    let (_, outcome) = job_reply();
    rig.settle(1, outcome);
    let failed = rig.tell(1, Err(Fault::new(FaultCode::StoreUnavailable, "the disk is full.")));
    assert!(failed.contains(r#""id":2,"error":{"code":-31999"#), "{failed}");
    rig.send(&call("3", r#","task":{}"#));
    assert!(rig.settle(2, CallOutcome::Fault(Box::new(Fault::new(FaultCode::InvalidInput, "no.")))).contains("-32602"));
    rig.send(&call("4", r#","task":{}"#));
    assert!(rig.reply(3, "no job").contains(r#""id":4,"error""#));
}

#[test]
fn a_subscription_says_what_was_asked_from_its_acknowledgement_to_its_end() {
    let mut rig = Rig::with_tasks();
    let listen = |id: &str, wishes: &str| {
        format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"subscriptions/listen","params":{{"notifications":{wishes},{TASKS}}}}}"#
        )
    };
    let open = rig.send(&listen("\"a\"", r#"{"toolsListChanged":true}"#));
    assert!(open.contains("subscriptions/acknowledged") && open.contains(r#"subscriptionId":"a""#), "{open}");
    assert!(rig.send(&listen("\"a\"", "{}")).contains("-32600"), "its id is in flight");
    // One about tasks is acknowledged when it is known which of them exist; nothing is said on it before.
    let (one, other) = (JobId::random(), JobId::random());
    let wishes = format!(r#"{{"toolsListChanged":true,"taskIds":["{one}","{other}","{one}","x"]}}"#);
    assert_eq!(rig.send(&listen("7", &wishes)), "");
    assert_eq!(rig.asked[0].1, TaskAsk::Which(vec![one, other]));
    assert_eq!(rig.tools_changed().lines().count(), 2, "the legacy session and the first stream");
    let open = rig.tell(0, Ok(TaskAnswer::Known(vec![one])));
    assert!(open.contains(&format!(r#""notifications":{{"toolsListChanged":true,"taskIds":["{one}"]}}"#)), "{open}");
    assert_eq!(rig.followed[0].1, [one]);
    let number = rig.followed[0].0;
    let told = rig.news(number, &TaskNews::Changed(view(one, TaskStatus::Completed)));
    assert!(told.contains(r#""method":"notifications/tasks""#) && told.contains(r#"subscriptionId":7"#), "{told}");
    assert!(told.contains(r#""resultType":"complete"}"#), "{told}");
    assert_eq!(rig.tools_changed().lines().count(), 3);
    // Its client ends it: not a word more, and its id is free.
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}"#;
    assert_eq!(rig.send(cancel), "");
    assert_eq!(rig.unfollowed, [number]);
    assert_eq!(rig.news(number, &TaskNews::Changed(view(one, TaskStatus::Completed))), "");
    assert_eq!(rig.tools_changed().lines().count(), 2);
    assert!(rig.send(&listen("7", "{}")).contains("acknowledged"));
    // We end: each gets a result with its id.
    let (mut out, mut effects) = (BytesMut::new(), SessionEffects::new());
    rig.core.on_stopping(&mut out, &mut effects);
    let last = rig.take(effects, &out);
    assert_eq!(last.lines().count(), 2);
    assert!(last.contains(r#""id":"a","result":{"resultType":"complete""#), "{last}");
    assert_eq!(rig.tools_changed().lines().count(), 1, "the legacy session is told untagged");
}

#[test]
fn a_closed_connection_ends_its_subscriptions_without_a_word() {
    let mut rig = Rig::with_tasks();
    let job = JobId::random();
    rig.send(&format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{{"notifications":{{"taskIds":["{job}"]}},{TASKS}}}}}"#
    ));
    rig.tell(0, Ok(TaskAnswer::Known(vec![job])));
    let mut effects = SessionEffects::new();
    rig.core.on_closed(rig.now, &mut effects);
    rig.take(effects, &BytesMut::new());
    assert_eq!(rig.unfollowed, [rig.followed[0].0]);
}

#[test]
fn no_line_is_longer_than_clients_take() {
    let mut rig = Rig::legacy("2025-03-26");
    rig.send(&call("1", ""));
    let refused = rig.reply(0, &"x".repeat(wire::LINE_MOST));
    assert!(refused.len() < 1000 && refused.contains(r#""id":1,"error""#), "{} bytes", refused.len());
    assert!(refused.contains("reply_too_large"), "{refused}");
    // The parts of a batch are one line.
    let members: Vec<String> = (2..=8).map(|id| call(&id.to_string(), "")).collect();
    assert_eq!(rig.send(&format!("[{}]", members.join(","))), "");
    let mut answer = String::new();
    for member in 1..=7 {
        assert_eq!(answer, "");
        answer = rig.reply(member, &"x".repeat(wire::LINE_MOST / 4));
    }
    assert!(answer.len() <= wire::LINE_MOST, "{} bytes", answer.len());
    let parts: Vec<serde_json::Value> = serde_json::from_str(&answer).expect("an array");
    assert_eq!(parts.len(), 7);
    let whole = parts.iter().filter(|part| part.get("result").is_some()).count();
    assert_eq!(whole, 3);
    assert!(parts.iter().all(|part| part["id"].is_u64()));
}

#[test]
fn a_withdrawn_call_says_how_long_its_client_has_waited() {
    let mut rig = Rig::legacy("2025-06-18");
    rig.send(&call("1", ""));
    rig.now += Duration::from_secs(30);
    rig.send(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#);
    assert_eq!(rig.gave_up, [Duration::from_secs(30)]);
    rig.send(&call("2", ""));
    rig.reply(1, "in time");
    assert_eq!(rig.gave_up.len(), 1);
}

#[test]
fn a_call_that_is_answered_late_says_how_long_its_client_has_waited() {
    let mut rig = Rig::legacy("2025-06-18");
    for (number, seconds, want) in [(0, 19, 0), (1, 20, 1), (2, 70, 2)] {
        rig.send(&call(&number.to_string(), ""));
        rig.now += Duration::from_secs(seconds);
        rig.reply(number, "at last");
        assert_eq!(rig.waited.len(), want, "{seconds} s");
    }
    assert_eq!(rig.waited, [Duration::from_secs(20), Duration::from_secs(70)]);
}

#[test]
fn an_id_is_known_by_its_value_and_answered_as_it_was_written() {
    for (asked, other) in [
        (r#""caf\u00e9""#, "\"café\""),
        ("\"café\"", r#""caf\u00E9""#),
        (r#""a\/b""#, "\"a/b\""),
        ("1234", "1234.0"),
        ("1234.0", "1234"),
        ("1e3", "1000"),
        ("-0", "0"),
    ] {
        let mut rig = Rig::legacy("2025-06-18");
        assert_eq!(rig.send(&call(asked, "")), "");
        let twice = rig.send(&call(other, ""));
        assert!(twice.contains(&format!("\"id\":{other},\"error\"")) && twice.contains("still in flight"), "{twice}");
        let answer = rig.reply(0, "done");
        assert!(answer.contains(&format!("\"id\":{asked},\"result\"")), "{answer}");
        assert_eq!(rig.send(&call(asked, "")), "");
        rig.send(&format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{other}}}}}"#
        ));
        assert_eq!(rig.withdrawn.len(), 1, "{asked} by {other}");
        assert_eq!(rig.reply(1, "too late"), "");
    }
    let mut rig = Rig::legacy("2025-06-18");
    for id in ["7", "\"7\"", "7.5", "70"] {
        assert_eq!(rig.send(&call(id, "")), "", "{id} is an id of its own");
    }
}

#[test]
fn every_request_whose_id_is_too_long_is_refused_under_its_own_id() {
    let mut rig = Rig::legacy("2025-06-18");
    for n in 0..50 {
        let id = format!("\"{n}{}\"", "x".repeat(64 * 1024));
        for line in [call(&id, ""), format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#)] {
            let refused = rig.send(&line);
            assert!(refused.contains(&format!("\"id\":{id},\"error\"")), "{n}: {}", &refused[..80]);
            assert!(refused.contains("64 KiB"));
        }
    }
    assert_eq!(rig.core.in_flight(), 0);
    // One that leaves no room for the refusal is answered without it, as often as other complaints.
    let longest = format!("\"{}\"", "x".repeat(wire::LINE_MOST));
    let refused: Vec<bool> = (0..8).map(|_| rig.send(&call(&longest, "")).contains("\"id\":null")).collect();
    assert_eq!(refused.iter().filter(|refused| **refused).count(), 5);
}

#[test]
fn a_client_without_tasks_is_told_so_before_anything_about_the_task() {
    let mut rig = Rig::with_tasks();
    for params in [r#""taskId":"nobody","#, r#""taskId":7,"#, ""] {
        for method in ["tasks/get", "tasks/update", "tasks/cancel"] {
            let said =
                rig.send(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{{params}{ENVELOPE}}}}}"#));
            assert!(said.contains("-32021") && said.contains("requiredCapabilities"), "{method} {params}: {said}");
        }
    }
    for ids in [r#"["nobody"]"#, "[7]", "7"] {
        let said = rig.send(&format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{{"notifications":{{"taskIds":{ids}}},{ENVELOPE}}}}}"#
        ));
        assert!(said.contains("-32021"), "{ids}: {said}");
    }
}

#[test]
fn a_fault_is_told_in_the_text_alone_to_clients_that_show_only_one() {
    for (client, arguments, structured) in [
        ("claude-code", "{}", false),
        ("claude-code", r#"{"render":"json"}"#, true),
        ("codex-mcp-client", "{}", false),
        ("another", "{}", true),
    ] {
        let shows_one = |client: Option<&str>| !matches!(client, Some("claude-code" | "codex-mcp-client"));
        let mut rig = Rig::with_limits(SessionLimits { structured: shows_one, ..SessionLimits::default() });
        rig.send(&format!(
            r#"{{"jsonrpc":"2.0","id":"i","method":"initialize","params":{{"protocolVersion":"2025-11-25","capabilities":{{}},"clientInfo":{{"name":"{client}","version":"1"}}}}}}"#
        ));
        rig.send(&format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"echo","arguments":{arguments}}}}}"#
        ));
        let fault = Fault::new(FaultCode::Busy, "it is busy.").hint("Wait.");
        let said = rig.settle(0, CallOutcome::Fault(Box::new(fault)));
        assert!(said.contains("busy: it is busy. Wait.") && said.contains("\"isError\":true"), "{said}");
        assert_eq!(said.contains("structuredContent"), structured, "{client} {arguments}: {said}");
    }
}

#[test]
fn the_client_of_an_envelope_is_checked_and_passed_on_whatever_came_before() {
    let mut rig = Rig::new();
    let with = |id: u32, client: &str| {
        let meta = ENVELOPE.replacen('{', &format!(r#"{{"io.modelcontextprotocol/clientInfo":{client},"#), 1);
        call(&id.to_string(), &format!(",{meta}"))
    };
    for (id, client, name) in [
        (1, r#"{"name":"a","version":"1"}"#, Some("a")),
        (2, r#"{"name":"a","version":"1"}"#, Some("a")),
        (3, r#"{"name":"b","version":"1","title":"B"}"#, Some("b")),
    ] {
        assert_eq!(rig.send(&with(id, client)), "");
        assert_eq!(rig.invoked.last().and_then(|call| call.client.name().map(Cow::into_owned)).as_deref(), name);
    }
    for client in [r#"{"name":"b"}"#, r#"{"version":"1"}"#, r#"{"name":7,"version":"1"}"#, "7", "null"] {
        assert!(rig.send(&with(9, client)).contains("-32602"), "{client}");
    }
}

#[test]
fn a_call_of_a_tool_the_next_program_does_not_have_is_answered_with_an_error() {
    for (version, wants) in [("2025-03-26", "error"), ("2025-11-25", "error")] {
        let mut rig = Rig::legacy(version);
        rig.send(&call("7", ""));
        let passed = rig.core.snapshot(rig.now);
        let none = Arc::new(Catalog::new(Vec::new()));
        let (identity, limits) = (Arc::clone(&rig.core.identity), rig.core.limits);
        rig.core =
            SessionCore::restored(none, identity, limits, &passed, rig.now, Duration::ZERO).expect("it makes sense");
        let fault = Fault::new(FaultCode::OutcomeUnknown, "the tool is gone.");
        let said = rig.settle(0, CallOutcome::Fault(Box::new(fault)));
        assert!(said.contains("\"id\":7") && said.contains(wants), "{said}");
        assert_eq!(rig.core.in_flight(), 0);
    }
}

#[test]
fn a_call_keeps_its_age() {
    let mut rig = Rig::legacy("2025-06-18");
    rig.send(&call("7", ""));
    rig.now += Duration::from_secs(5);
    let passed = rig.core.snapshot(rig.now);
    let (catalog, identity) = (Arc::clone(&rig.core.catalog), Arc::clone(&rig.core.identity));
    let limits = rig.core.limits;
    rig.core =
        SessionCore::restored(catalog, identity, limits, &passed, rig.now, Duration::from_secs(1)).expect("sense");
    rig.reply(0, "x");
    let latency = rig.finished.last().expect("it is finished").latency;
    assert_eq!(latency, Duration::from_secs(6), "and what the exec took counts");
}

#[test]
fn a_damaged_snapshot_is_refused_and_never_believed() {
    let mut rig = Rig::legacy("2025-06-18");
    rig.send(&call("7", ""));
    let whole = serde_json::to_value(rig.core.snapshot(rig.now)).expect("JSON");
    for (pointer, value) in [
        ("/pending/0/id", serde_json::json!("null")),
        ("/pending/0/version", serde_json::json!("1999-01-01")),
        ("/pending/0/bytes", serde_json::json!(1_u64 << 40)),
        ("/pending/0/work/kind", serde_json::json!("nothing")),
    ] {
        let mut damaged = whole.clone();
        *damaged.pointer_mut(pointer).expect("it is there") = value;
        let Ok(passed) = serde_json::from_value::<CoreSnapshot>(damaged) else { continue };
        let (catalog, identity) = (Arc::clone(&rig.core.catalog), Arc::clone(&rig.core.identity));
        let restored = SessionCore::restored(catalog, identity, rig.core.limits, &passed, rig.now, Duration::ZERO);
        assert!(restored.is_err(), "{pointer}");
    }
}

const ROOTED: &str = r#"{"jsonrpc":"2.0","id":"i","method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"roots":{"listChanged":true}}}}"#;
const READY: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
const CHANGED: &str = r#"{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}"#;

fn rooted(number: u64, uri: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":"phone-opus-roots-{number}","result":{{"roots":[{{"uri":"{uri}","name":"x"}}]}}}}"#
    )
}

fn question(number: u64) -> String {
    format!("{{\"jsonrpc\":\"2.0\",\"id\":\"phone-opus-roots-{number}\",\"method\":\"roots/list\"}}\n")
}

fn known(uri: &str) -> Roots {
    Roots::Known(vec![uri.to_owned()])
}

#[test]
fn roots_are_asked_for_where_they_were_declared_and_one_question_is_open_at_a_time() {
    let mut rig = Rig::new();
    let initialized = rig.send(ROOTED);
    assert!(initialized.lines().count() == 1 && !initialized.contains("roots/list"), "initialize waits for nothing");
    assert_eq!(rig.send(READY), question(1));
    assert_eq!((rig.send(READY), rig.send(&call("1", ""))), (String::new(), String::new()), "asked once");
    assert_eq!(rig.send(&rooted(7, "file:///never")), "", "another answer is none");
    assert_eq!(rig.send(&rooted(1, "file:///a")), "");
    assert_eq!(rig.roots, [Roots::Awaited, known("file:///a")]);
    // They change twice before the answer to the first question has come: it does not count.
    assert_eq!((rig.send(CHANGED), rig.send(CHANGED)), (question(2), String::new()));
    assert_eq!(rig.send(&rooted(2, "file:///old")), question(3));
    assert_eq!(*rig.core.roots(), Roots::Awaited);
    rig.send(&rooted(3, "file:///new"));
    assert_eq!(*rig.core.roots(), known("file:///new"));
    rig.send(&rooted(3, "file:///twice"));
    assert_eq!(*rig.core.roots(), known("file:///new"), "an answer counts once");
    assert_eq!(rig.send(CHANGED), question(4));
    rig.send(r#"{"jsonrpc":"2.0","id":"phone-opus-roots-4","error":{"code":-32601,"message":"no"}}"#);
    assert_eq!(*rig.core.roots(), Roots::Known(Vec::new()), "an error is none");
}

#[test]
fn a_client_that_never_says_it_is_ready_is_asked_with_its_first_call_and_one_without_roots_never() {
    let mut rig = Rig::new();
    rig.send(ROOTED);
    assert_eq!(rig.send(&call("1", "")), question(1));
    let mut bare = Rig::legacy("2025-11-25");
    for line in [READY, CHANGED, &call("1", ""), &rooted(1, "file:///a")] {
        assert_eq!(bare.send(line), "", "{line}");
    }
    assert_eq!((bare.core.roots(), bare.roots.len()), (&Roots::None, 0));
    let mut batched = Rig::new();
    batched.send(&ROOTED.replace("2025-11-25", "2025-03-26"));
    assert_eq!(batched.send(&format!("[{READY},{}]", call("1", ""))), "", "an answer of a batch holds no question");
    let mut stateless = Rig::new();
    assert_eq!(stateless.send(&call("1", &format!(",{ENVELOPE}"))), "");
    assert_eq!(stateless.core.roots(), &Roots::None);
}

#[test]
fn what_a_client_says_about_its_roots_is_bounded() {
    let mut rig = Rig::new();
    rig.send(ROOTED);
    rig.send(READY);
    let uris: Vec<String> = (0..1000).map(|n| format!(r#"{{"uri":"file:///{n}"}}"#)).collect();
    rig.send(&format!(r#"{{"jsonrpc":"2.0","id":"phone-opus-roots-1","result":{{"roots":[{}]}}}}"#, uris.join(",")));
    assert!(matches!(rig.core.roots(), Roots::Known(uris) if uris.len() == crate::places::ROOTS));
    rig.send(CHANGED);
    rig.send(&rooted(2, &format!("file:///{}", "x".repeat(100_000))));
    assert_eq!(*rig.core.roots(), Roots::Known(Vec::new()));
    rig.send(CHANGED);
    rig.send(r#"{"jsonrpc":"2.0","id":"phone-opus-roots-3","result":{"roots":"x"}}"#);
    assert_eq!(*rig.core.roots(), Roots::Known(Vec::new()));
}

#[test]
fn a_calls_trace_is_what_its_client_says_or_none_and_refuses_nothing() {
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let read = |meta: String| {
        let mut rig = Rig::legacy("2025-06-18");
        rig.send(&format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"echo","arguments":{{}},"_meta":{meta}}}}}"#
        ));
        let call = rig.invoked.pop().expect("it is called, whatever the trace is");
        rig.invoked.push(call.clone());
        rig.reply(0, "done");
        assert_eq!(rig.finished.last().and_then(|finished| finished.call), Some(call.number));
        call.trace.map(|trace| (trace.traceparent(), trace.state))
    };
    let whole = Some((parent.to_owned(), None));
    assert_eq!(read(format!(r#"{{"traceparent":"{parent}"}}"#)), whole);
    assert_eq!(
        read(format!(r#"{{"traceparent":"{parent}","tracestate":"a=1"}}"#)).and_then(|read| read.1),
        Some("a=1".into())
    );
    assert_eq!(read(format!(r#"{{"traceparent":"{parent}","tracestate":[1]}}"#)), whole);
    assert_eq!(read(format!(r#"{{"traceparent":"{parent}","tracestate":"{}"}}"#, "x".repeat(9000))), whole);
    for hostile in ["7", "null", "{}", r#""00""#, r#""ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01""#] {
        assert_eq!(read(format!(r#"{{"traceparent":{hostile}}}"#)), None, "{hostile}");
    }
    assert_eq!(read(format!(r#"{{"traceparent":"{}"}}"#, "0".repeat(100_000))), None);
    assert_eq!(read(r#"{"tracestate":"a=1"}"#.to_owned()), None);
}
