//! The kit itself: what it finds, ends and freezes is what it says, its tools do what their names say, and a broken law
//! is told.
//!
//! Laws: L1, L2, L3, L7, and that a broken one is told.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::time::Duration;

use phone_opus::internals::tools::{ReplayContract, Tool};
use phone_opus::testkit::invariants::{
    invariant_attempts_follow_their_contract, invariant_effects_happen_once, invariant_nothing_is_left_alive,
};
use phone_opus::testkit::processes::are_visible;
use phone_opus::testkit::rig::{FAULT_SEED, FAULTS};
use phone_opus::testkit::tools::{Crash, Tally, TestTool, blocks, counter, dying_counter, echo, probed};
use phone_opus::testkit::{Rig, Role, Script, Signal, Step, TestClient, tried_program, until};
use serde_json::json;

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

/// Runs a case that must fail, and returns what it said.
async fn failing(case: impl Future<Output = ()> + Send + 'static) -> String {
    let panic = tokio::spawn(case).await.expect_err("the case fails").into_panic();
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .expect("a text")
}

#[tokio::test]
async fn every_process_of_a_consult_is_found_by_its_role() {
    if !are_visible() {
        return println!("skipped: without /proc processes cannot be seen");
    }
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let steps = vec![Step::Fork(phone_opus::testkit::ForkPlace::Group), Step::Touch(rig.sign("begun")), Step::Hang];
    let job = host.consult_in_background(&rig.doing(steps)).await;
    rig.wait_for_sign("begun").await;
    for (role, count) in [
        (Role::Host, 1),
        (Role::Runner, 1),
        (Role::Agent, 1),
        (Role::Offspring, 1),
        (Role::Worker, 0),
        (Role::Other, 0),
    ] {
        assert_eq!(rig.all(role).len(), count, "{role:?} of {:?}", rig.processes());
    }
    assert_eq!(rig.the(Role::Host).await.pid, host.host_pid());
    let left = invariant_nothing_is_left_alive(&rig.processes()).expect_err("four are alive").to_string();
    assert!(left.starts_with("L7: ") && left.contains("Offspring"), "{left}");
    let reply = host.call("consult_cancel", json!({"job_id": job})).await;
    assert_eq!(reply.str("status"), "cancelled");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_frozen_host_answers_when_it_is_thawed() {
    if !are_visible() {
        return println!("skipped: without /proc processes cannot be seen");
    }
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let [frozen] = &rig.freeze(Role::Host)[..] else { panic!("one host") };
    assert!(frozen.lives());
    let sent = host.send("ping", json!({})).await;
    let stopped = || std::fs::read_to_string(format!("/proc/{}/stat", frozen.pid.as_raw_nonzero())).unwrap_or_default();
    until("the kernel has stopped it", async || stopped().contains(") T ").then_some(())).await;
    assert!(tokio::time::timeout(Duration::from_millis(100), host.answer(sent)).await.is_err());
    rig.thaw(Role::Host);
    assert_eq!(host.answer(sent).await["result"], json!({}));
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_killed_host_is_a_broken_law_unless_it_was_announced() {
    if !are_visible() {
        return println!("skipped: without /proc processes cannot be seen");
    }
    for announced in [false, true] {
        let mut rig = new_rig();
        let mut host = rig.serve().await;
        if announced {
            host.expect_end();
        }
        let [killed] = &rig.kill(Role::Host)[..] else { panic!("one host") };
        host.silence().await;
        assert!(!killed.lives() || !announced || host.exit().await.code().is_none());
        let ended = tokio::spawn(rig.stop_and_check_invariants([host])).await;
        assert_eq!(ended.is_ok(), announced);
    }
}

#[tokio::test]
async fn a_broken_law_is_told_with_what_was_seen() {
    // A host that is asked once more than it answers.
    let told = failing(async {
        let mut rig = new_rig();
        let mut host = rig.serve().await;
        let sent = host.send("ping", json!({})).await;
        host.answer(sent).await;
        host.give_up_on(sent);
        rig.stop_and_check_invariants([host]).await;
    })
    .await;
    assert!(told.contains("1 laws are broken") && told.contains("L1: ") && told.contains("request 2 of 2"), "{told}");
    assert!(told.contains("the end of host 1's log"), "{told}");
    // A run of the agent that belongs to no job and was given the key, a file that others may read, and one left at home.
    let told = failing(async {
        let mut rig = new_rig();
        let mut host = rig.serve().await;
        host.consult(&rig.answering("42")).await.expect_success();
        let mut stray = rig.play(&Script { log: Some(rig.path("agent.log")), ..Script::default() }).await;
        assert!(stray.wait().await.success());
        std::fs::write(rig.state_dir().root().join("open"), "").expect("a file");
        std::fs::write(rig.path("home/left"), "").expect("a file");
        rig.stop_and_check_invariants([host]).await;
    })
    .await;
    for law in [
        "4 laws",
        "L3: one accepted consult",
        "2 runs of 1 started",
        "L13: files are 0600",
        "state/open is 644",
        "home/left",
        "the key is in an agent's environment",
    ] {
        assert!(told.contains(law), "{law:?} is not in {told}");
    }
}

#[tokio::test]
async fn waiting_in_vain_says_who_was_there_instead() {
    let told = failing(async {
        let mut rig = new_rig().with_patience(Duration::from_millis(300));
        let _host = rig.serve().await;
        rig.the(Role::Runner).await;
    })
    .await;
    assert!(told.contains("300ms in vain until there is one Runner; last seen: [] among [Host "), "{told}");
}

#[tokio::test]
async fn a_fault_plan_and_its_seed_reach_every_process_of_the_world() {
    let rig = new_rig().with_faults("telemetry.write#7=drop").with_fault_seed(9);
    for (name, value) in [(FAULTS, "telemetry.write#7=drop"), (FAULT_SEED, "9")] {
        let command = rig.command(&["--version"]);
        let set = command.as_std().get_envs().find(|(variable, _)| *variable == name).and_then(|(_, value)| value);
        assert_eq!(set.and_then(|value| value.to_str()), Some(value));
        assert_eq!(rig.environment().get(name).and_then(|value| value.to_str()), Some(value));
    }
    rig.check_invariants().await;
}

#[tokio::test]
async fn health_and_telemetry_are_read_in_verbs() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    assert_eq!(host.generation().await, 0, "no worker was needed yet");
    host.consult(&rig.answering("42")).await.expect_success();
    assert_eq!(host.wait_for_generation(1).await.number("restart_count"), 0);
    let totals = host.totals().await;
    assert!(totals["requests"].as_u64() >= Some(3) && totals["restarts"] == 0, "{totals}");
    host.signal(Signal::TERM);
    assert!(host.exit().await.success());
    rig.stop_and_check_invariants([host]).await;
}

/// Contract × where the first attempt crashes × what the probe knows → what the caller is told, attempts, effects.
#[tokio::test]
async fn a_crash_costs_no_call_a_second_effect_whatever_its_contract() {
    type Make = fn(&Tally) -> TestTool;
    /// What the caller is told: a text, or the code of a fault.
    type Told = Result<&'static str, &'static str>;
    let rows: [(&str, Make, Told, usize, usize); 7] = [
        ("a counter", |tally| counter(tally), Ok("1"), 1, 1),
        ("a counter that dies", |tally| dying_counter(tally).named("counter"), Err("outcome_unknown"), 1, 1),
        ("no crash", |tally| probed(tally, Crash::Nowhere), Ok("done"), 1, 1),
        ("before the effect", |tally| probed(tally, Crash::BeforeEffect), Ok("done"), 2, 1),
        ("after the effect", |tally| probed(tally, Crash::AfterEffect), Ok("attached"), 2, 1),
        ("before, unknown", |tally| probed(tally, Crash::BeforeEffect).forgetful(), Err("outcome_unknown"), 1, 0),
        ("after, unknown", |tally| probed(tally, Crash::AfterEffect).forgetful(), Err("outcome_unknown"), 1, 1),
    ];
    for (name, make, told, attempts, happened) in rows {
        let mut rig = new_rig();
        let effects = Tally::in_file(rig.path("effects"));
        let tool = make(&effects);
        rig.watch(&tool, &effects);
        let (tool_name, tried) = (tool.name().to_owned(), tool.attempts());
        let system = rig.system().tool(tool).tool(echo()).start().await.expect("a system");
        let mut client = TestClient::of(&system).greet().await;
        let reply = client.call(&tool_name, json!({})).await;
        match told {
            Ok(text) => assert_eq!((reply.is_error(), reply.text()), (false, text), "{name}"),
            Err(code) => drop(reply.expect_fault(code)),
        }
        assert_eq!((tried.total(), effects.total()), (attempts, happened), "{name}");
        let crashed = u64::from(attempts > 1 || told.is_err());
        client.wait_for_generation(1 + crashed).await;
        // Any other call is served as before.
        assert_eq!(client.call("echo", json!({"n": 1})).await.text(), "{\"n\":1}", "{name}");
        rig.stop_system_and_check_invariants(system, [client]).await;
    }
}

#[tokio::test]
async fn a_tool_that_blocks_its_thread_answers_when_it_is_done() {
    let rig = new_rig();
    let system = rig.system().tool(blocks(Duration::from_millis(20))).start().await.expect("a system");
    let mut client = TestClient::of(&system).buffer(1024).greet().await;
    assert_eq!(client.call("blocks", json!({})).await.text(), "blocked");
    rig.stop_system_and_check_invariants(system, [client]).await;
}

#[test]
fn a_second_attempt_is_seen_by_the_contract_it_breaks() {
    use phone_opus::internals::base::ids::{Generation, HostId, InvocationId, SessionNumber};
    let call = InvocationId { host: HostId::random(), session: SessionNumber(1), call: 1 };
    let attempts = |generations: &[u64]| {
        let tally = Tally::new();
        generations.iter().for_each(|generation| tally.count(call, Generation(*generation)));
        tally
    };
    use ReplayContract::{Convergent, NeverReplay, ProbeRequired};
    for (contract, generations, kept) in [
        (NeverReplay, &[1][..], true),
        (NeverReplay, &[1, 2], false),
        (Convergent, &[1, 2], true),
        (Convergent, &[1, 2, 3], false),
        (ProbeRequired, &[1, 2, 3], true),
        (ProbeRequired, &[2, 2], false),
        (Convergent, &[2, 1], false),
    ] {
        let checked = invariant_attempts_follow_their_contract(contract, &attempts(generations));
        assert_eq!(checked.is_ok(), kept, "{contract:?} {generations:?}");
    }
    assert!(invariant_effects_happen_once(&attempts(&[1])).is_ok());
    assert!(invariant_effects_happen_once(&attempts(&[1, 2])).is_err());
}
