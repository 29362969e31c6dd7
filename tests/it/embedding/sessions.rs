//! Sessions without bytes: consults with a typed answer or a typed fault, tools, and who may see which job.
//!
//! Laws: L1, L2, L3, L7, L8, L17.

#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use phone_opus::internals::failpoints::{Ends, FaultCounters};
use phone_opus::testkit::scripted_agent::Step;
use phone_opus::testkit::tools::{TestTool, boom, echo, stuck, stumbles};
use phone_opus::testkit::{Rig, until};
use phone_opus::{
    Client, Config, Consult, ConsultFault, Cursor, FaultCode, FaultPlan, Faults, JobEvent, JobMode, JobState,
    JournalEvent, ReplyText, Session, System, ToolReply,
};
use serde_json::json;

use super::new_rig;

async fn open(system: &System, client: Client) -> Session {
    system.open_session(client).await.expect("a session")
}

fn text(reply: &ToolReply) -> &str {
    match &reply.text {
        ReplyText::Plain(text) => text,
        other => panic!("a text that came in: {other:?}"),
    }
}

/// Waits until the only job is over in this state.
async fn expect_over(rig: &Rig, state: JobState) {
    until("the job is over", async || {
        let jobs = rig.jobs().await;
        (jobs.len() == 1 && jobs[0].state == state).then_some(())
    })
    .await;
}

async fn an_answer_is_typed(rig: Rig) {
    let system = rig.system().start().await.expect("a system");
    let session = open(&system, Client::new("runtime")).await;
    let outcome =
        session.consult(Consult::new(rig.answering("42")).timeout(Duration::from_secs(60))).await.expect("an answer");
    assert_eq!((outcome.response.as_str(), outcome.joined, outcome.stored), ("42", false, true));
    assert_eq!(outcome.exit.map(|exit| (exit.code, exit.reaped)), Some((0, 0)));
    assert!(outcome.session_id.is_some() && outcome.model.is_some(), "{outcome:?}");
    assert_eq!(outcome.record.state, JobState::Succeeded);
    let read = until("it counts as read", async || {
        let record = session.job(outcome.job_id).await.expect("a job");
        record.read_at.is_some().then_some(record)
    })
    .await;
    assert_eq!(read.id, outcome.job_id);
    // All of its journal, and then the end.
    let mut events = system.jobs().subscribe(outcome.job_id, Cursor::START);
    let mut kinds = Vec::new();
    let ended = loop {
        match events.next().await.expect("not over").expect("it can be read") {
            JobEvent::Entry(entry) => {
                assert_eq!(entry.seq, kinds.len() as u64 + 1);
                kinds.push(entry.event);
            }
            JobEvent::Ended(record) => break record,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(events.next().await, None);
    assert_eq!((ended.id, ended.last_event), (outcome.job_id, kinds.len() as u64));
    assert!(matches!(kinds.first(), Some(JournalEvent::Dispatched)), "{kinds:?}");
    assert!(matches!(kinds.last(), Some(JournalEvent::ProcessClosed)), "{kinds:?}");
    rig.expect_runs(1);
    drop(session);
    rig.stop_system_and_check_invariants(system, []).await;
}

#[tokio::test]
async fn a_consult_of_a_session_has_a_typed_answer_and_a_journal_to_its_end() {
    an_answer_is_typed(new_rig()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_consult_of_a_session_has_a_typed_answer_on_several_threads_as_well() {
    an_answer_is_typed(new_rig()).await;
}

#[tokio::test]
async fn what_is_wrong_is_refused_by_name_and_what_failed_is_a_fault_with_its_record() {
    let rig = new_rig();
    let system = rig.system().start().await.expect("a system");
    let session = open(&system, Client::new("runtime")).await;
    let refused = session.consult(Consult::new(" ").agent("nobody").max_turns(0)).await.expect_err("refused");
    let ConsultFault::Refused(fault) = &refused else { panic!("{refused:?}") };
    assert_eq!((fault.code, refused.job_id()), (FaultCode::InvalidInput, None));
    for name in ["prompt", "agent", "max_turns"] {
        assert!(fault.detail.contains(name), "{fault}");
    }
    let failing = rig.doing(vec![Step::Exit(3)]);
    let failed = session.consult(Consult::new(failing)).await.expect_err("no answer");
    let record = failed.record().expect("it is over").clone();
    assert_eq!((failed.job_id(), record.state), (Some(record.id), JobState::Failed));
    assert!(std::error::Error::source(&failed).is_some_and(|source| source.to_string() == failed.fault().to_string()));
    drop(session);
    rig.stop_system_and_check_invariants(system, []).await;
}

#[tokio::test]
async fn a_wait_that_is_dropped_ends_its_consult_and_so_does_a_session_that_is() {
    for by_session in [false, true] {
        let rig = new_rig();
        let system = rig.system().start().await.expect("a system");
        let session = open(&system, Client::new("runtime")).await;
        let consulting = tokio::spawn({
            let (session, prompt) = (session.clone(), rig.hanging("begun"));
            async move { session.consult(Consult::new(prompt)).await }
        });
        rig.wait_for_sign("begun").await;
        if by_session {
            drop(session);
        }
        consulting.abort();
        expect_over(&rig, JobState::Cancelled).await;
        rig.expect_no_agent_left().await;
        rig.stop_system_and_check_invariants(system, []).await;
    }
}

#[tokio::test]
async fn a_consult_in_the_background_outlives_its_session_and_is_followed_from_anywhere() {
    let rig = new_rig();
    let system = rig.system().start().await.expect("a system");
    let session = open(&system, Client::new("runtime")).await;
    let job = session.start(Consult::new(rig.waiting("begun", "go"))).await.expect("accepted");
    rig.wait_for_sign("begun").await;
    drop(session);
    let mut events = system.jobs().subscribe(job, Cursor::START);
    let first = events.next().await.expect("not over").expect("it can be read");
    assert!(matches!(&first, JobEvent::Entry(entry) if entry.seq == 1), "{first:?}");
    assert_eq!(system.jobs().get(job).await.expect("a job").mode, JobMode::Background);
    rig.give_sign("go");
    let mut last = first;
    while let Some(event) = events.next().await {
        last = event.expect("it can be read");
    }
    assert!(matches!(&last, JobEvent::Ended(record) if record.state == JobState::Succeeded), "{last:?}");
    rig.stop_system_and_check_invariants(system, []).await;
}

#[tokio::test]
async fn one_key_is_one_run_from_whatever_session_and_the_last_caller_to_leave_ends_it() {
    let rig = new_rig();
    let system = rig.system().start().await.expect("a system");
    let prompt = rig.waiting("begun", "go");
    #[expect(clippy::async_yields_async, reason = "it is awaited once both were asked")]
    let asking = async |name: &str| {
        let session = open(&system, Client::new(name)).await;
        let consult = Consult::new(prompt.clone()).request_key("mine");
        tokio::spawn(async move { session.consult(consult).await })
    };
    let first = asking("one").await;
    rig.wait_for_sign("begun").await;
    let second = asking("two").await;
    until("both wait", async || (rig.jobs().await.len() == 1).then_some(())).await;
    let other = open(&system, Client::new("three")).await;
    let conflict = other.consult(Consult::new("another question").request_key("mine")).await.expect_err("a conflict");
    assert_eq!(conflict.fault().code, FaultCode::RequestKeyConflict);
    first.abort();
    let _ = first.await;
    rig.give_sign("go");
    let outcome = second.await.expect("no panic").expect("an answer");
    assert!(outcome.joined && outcome.response == "done", "{outcome:?}");
    rig.expect_runs(1);
    drop(other);
    rig.stop_system_and_check_invariants(system, []).await;
}

#[tokio::test]
async fn a_session_with_a_directory_of_its_own_asks_there_and_sees_the_jobs_of_it_and_no_others() {
    let rig = new_rig();
    // A caller's environment says nothing of our own settings.
    let config = Config { claude_bin: Some(rig.player()), ..Config::default() };
    let system = rig.system().config(config).start().await.expect("a system");
    let place = |name: &str| {
        let dir = rig.path(name);
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::canonicalize(dir).expect("a path")
    };
    let (here, there) = (place("here"), place("there"));
    let client = |dir: &std::path::Path| Client::new("runtime").cwd(dir).environment(rig.environment());
    let (one, two) = (open(&system, client(&here)).await, open(&system, client(&there)).await);
    assert!(one.has_its_own_context() && !open(&system, Client::new("plain")).await.has_its_own_context());
    let outcome = one.consult(Consult::new(rig.answering("42"))).await.expect("an answer");
    assert_eq!(outcome.record.workspace, here);
    assert_eq!(one.job(outcome.job_id).await.expect("its own").id, outcome.job_id);
    let hidden = two.job(outcome.job_id).await.expect_err("another directory's");
    assert_eq!(hidden.code, FaultCode::InvalidInput);
    assert!(two.subscribe(outcome.job_id, Cursor::START).await.is_err() && two.cancel(outcome.job_id).await.is_err());
    let outside = two.consult(Consult::new("why?").cwd(&here)).await.expect_err("another directory");
    assert!(outside.fault().detail.contains("cwd"), "{outside:?}");
    let nowhere = system.open_session(Client::new("lost").cwd(rig.path("gone"))).await.expect_err("no such directory");
    assert!(nowhere.code == FaultCode::InvalidInput && nowhere.detail.contains("does not exist"), "{nowhere}");
    drop((one, two));
    rig.stop_system_and_check_invariants(system, []).await;
}

#[tokio::test]
async fn tools_are_called_with_their_contracts_and_a_lost_worker_costs_what_they_allow() {
    let rig = new_rig();
    let system = rig.system().tool(echo()).tool(boom()).tool(stumbles()).start().await.expect("a system");
    let session = open(&system, Client::new("runtime")).await;
    let echoed = session.call("echo", json!({"text": "hello"})).await.expect("a reply");
    assert!(format!("{:?}", echoed.text).contains("hello"), "{echoed:?}");
    let again = session.call("stumbles", json!({})).await.expect("run again by its contract");
    assert_eq!(text(&again), "attempt 2");
    let lost = session.call("boom", json!({})).await.expect_err("never run again");
    assert_eq!(lost.code, FaultCode::OutcomeUnknown);
    let wrong = session.call("ecko", json!({})).await.expect_err("no such tool");
    assert!(wrong.code == FaultCode::InvalidInput && wrong.hint.is_some_and(|hint| hint.contains("echo")));
    let wrong = session.call("echo", json!([])).await.expect_err("no object");
    assert_eq!(wrong.code, FaultCode::InvalidInput);
    let health = session.call("health_snapshot", json!({})).await.expect("a reply");
    assert!(text(&health).contains("ready") || text(&health).len() > 10, "{health:?}");
    drop(session);
    rig.stop_system_and_check_invariants(system, []).await;
}

#[tokio::test]
async fn a_calls_progress_is_heard_and_a_call_that_is_dropped_is_withdrawn() {
    let rig = new_rig();
    let dropped = Arc::new(());
    let held = Arc::clone(&dropped);
    let telling = TestTool::new("telling", |_, call| {
        Box::pin(async move {
            for value in 1..=3 {
                call.progress.report(f64::from(value), format!("step {value}"));
                tokio::task::yield_now().await;
            }
            Ok(ToolReply::text("told"))
        })
    });
    let hanging = TestTool::new("hanging", move |_, _| {
        let held = Arc::clone(&held);
        Box::pin(async move {
            let _held = held;
            std::future::pending().await
        })
    });
    let system = rig.system().tool(telling).tool(hanging).tool(stuck()).start().await.expect("a system");
    let session = open(&system, Client::new("runtime")).await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    let call = session.call("telling", json!({}));
    let call = call.on_progress(move |value, text| hears.lock().expect("whole").push((value, text.to_owned())));
    assert_eq!(text(&call.await.expect("a reply")), "told");
    let heard = heard.lock().expect("whole").clone();
    assert!(!heard.is_empty() && heard.windows(2).all(|pair| pair[0].0 < pair[1].0), "{heard:?}");
    let before = Arc::strong_count(&dropped);
    let waited =
        tokio::time::timeout(Duration::from_millis(50), session.call("hanging", json!({})).into_future()).await;
    assert!(waited.is_err());
    until("the tool's future is dropped", async || (Arc::strong_count(&dropped) == before).then_some(())).await;
    drop(session);
    rig.stop_system_and_check_invariants(system, []).await;
}

#[tokio::test]
async fn a_crash_of_a_session_costs_neither_its_consults_nor_its_calls() {
    let rig = new_rig();
    let plan =
        "session.dispatch#2=panic; ledger.record#4=panic; sessions.supervise@gone=panic; jobs.supervise@attach=panic";
    let plan = FaultPlan::parse(plan, 0).expect("a plan");
    let faults = Faults::arm(plan, Ends::Nothing, FaultCounters::Memory).expect("armed");
    let system = rig.system().faults(faults.clone()).tool(echo()).start().await.expect("a system");
    let session = open(&system, Client::new("runtime")).await;
    let consulting = tokio::spawn({
        let (session, prompt) = (session.clone(), rig.waiting("begun", "go"));
        async move { session.consult(Consult::new(prompt)).await }
    });
    rig.wait_for_sign("begun").await;
    for _ in 0..6 {
        // Answered each time: what the panic cut off by a fault, the others by their tool.
        let answered = session.call("echo", json!({"text": "x"})).await;
        assert!(answered.as_ref().map_or_else(|fault| fault.code == FaultCode::Internal, |_| true), "{answered:?}");
    }
    until("the plan has struck", async || (faults.fired().len() >= 3).then_some(())).await;
    rig.give_sign("go");
    let outcome = consulting.await.expect("no panic").expect("an answer");
    assert_eq!(outcome.response, "done");
    rig.expect_runs(1);
    drop(session);
    rig.stop_system_and_check_invariants(system, []).await;
}

#[tokio::test]
async fn a_session_of_a_system_that_stops_is_told_so() {
    let rig = new_rig();
    let system = rig.system().tool(stuck()).start().await.expect("a system");
    let session = open(&system, Client::new("runtime")).await;
    let consulting = tokio::spawn({
        let (session, prompt) = (session.clone(), rig.hanging("begun"));
        async move { session.consult(Consult::new(prompt)).await }
    });
    rig.wait_for_sign("begun").await;
    rig.stop_system_and_check_invariants(system, []).await;
    let fault = consulting.await.expect("no panic").expect_err("no answer");
    assert!(fault.job_id().is_some(), "{fault:?}");
    let fault = session.call("stuck", json!({})).await.expect_err("nobody is there");
    assert_eq!(fault.code, FaultCode::Stopping);
}
