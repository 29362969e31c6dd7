//! Jobs whose host was killed: the next host adopts them within their time, and whoever asks again by key gets the one
//! answer. On the real program, with hosts whose jobs wait a few seconds instead of half a minute.
//!
//! Laws: L3, L4, L7, L15.

#![cfg(target_os = "linux")]

use std::time::{Duration, Instant};

use phone_opus::internals::base::fault::FaultCode;
use phone_opus::internals::base::ids::HostId;
use phone_opus::internals::jobs::host_lock::HostLock;
use phone_opus::internals::jobs::{JobMode, JobRecord, JobState};
use phone_opus::testkit::client::REVISION;
use phone_opus::testkit::{
    ForkPlace, PATIENCE, Reply, Rig, Role, Sent, Signal, Step, TestClient, Waiting, tried_program, until,
};
use serde_json::{Value, json};

/// How long jobs wait to be adopted here: longer than a busy machine takes to start the next host.
const GRACE: Duration = Duration::from_secs(6);

fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

/// A host whose jobs may be adopted, and that adopts.
async fn host(rig: &mut Rig) -> TestClient {
    let grace = GRACE.as_secs().to_string();
    let mut client = rig.host_with(&["mcp", "serve", "--orphan-grace-s", &grace], &rig.work());
    client.handshake(REVISION).await;
    client
}

/// Ends a host on the spot, whatever it was asked.
async fn kill(mut host: TestClient, lost: impl IntoIterator<Item = Sent>) {
    lost.into_iter().for_each(|sent| host.give_up_on(sent));
    host.signal(Signal::KILL);
    host.exit().await;
}

async fn health(host: &mut TestClient) -> Reply {
    host.call("health_snapshot", json!({})).await
}

/// Waits until a host has adopted so many jobs.
async fn adopted(host: &mut TestClient, jobs: u64) {
    let waiting = Waiting::until(format!("{jobs} jobs are adopted"), PATIENCE);
    loop {
        let health = health(host).await;
        if health["adopted_jobs"] == jobs {
            return;
        }
        waiting.again(|| format!("{:#}", health.0)).await;
    }
}

fn fault(job: &JobRecord) -> Option<FaultCode> {
    job.outcome.as_ref().and_then(|outcome| outcome.fault.as_ref()).map(|fault| fault.code)
}

/// An agent that does not want to end, with a child in its group and one in a session of its own.
fn stubborn(rig: &Rig) -> String {
    rig.doing(vec![
        Step::Text("at work".into()),
        Step::IgnoreTerm,
        Step::Fork(ForkPlace::Group),
        Step::Fork(ForkPlace::Session),
        Step::Touch(rig.sign("begun")),
        Step::Hang,
    ])
}

fn hosts_left(rig: &Rig) -> Vec<HostId> {
    let entries = std::fs::read_dir(rig.state_dir().hosts()).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[tokio::test]
async fn a_consult_whose_host_was_killed_goes_on_and_whoever_asks_again_gets_the_one_answer() {
    let mut rig = new_rig();
    let mut first = host(&mut rig).await;
    let steps = vec![Step::Text("so far".into()), Step::Touch(rig.sign("begun")), Step::WaitForFile(rig.sign("go"))];
    let asked = json!({"prompt": rig.doing(steps), "request_key": "one"});
    let lost = first.start("consult", asked.clone()).await;
    rig.wait_for_sign("begun").await;
    kill(first, [lost]).await;
    // Long enough for a runner that does not wait: it is its two seconds, after which it must not have acted.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let mut next = host(&mut rig).await;
    let sent = next.start("consult", asked.clone()).await;
    adopted(&mut next, 1).await;
    let other = next.start("consult", asked).await;
    // Longer than a job waits for a host, and for its callers: it has both.
    tokio::time::sleep(GRACE + Duration::from_millis(500)).await;
    let job = rig.jobs().await.pop().expect("a job");
    assert_eq!((job.state, job.mode), (JobState::Running, JobMode::Sync));
    let read = next.call("consult_job", json!({"job_id": job.id.to_string()})).await;
    assert!(read.0.to_string().contains("so far"), "what was said is known here: {:#}", read.0);
    rig.give_sign("go");
    for sent in [sent, other] {
        let reply = next.reply(sent).await.expect_success();
        assert_eq!((reply.str("response"), reply.str("mode")), ("done", "sync"));
        assert_eq!(reply.str("job_id"), job.id.to_string());
    }
    rig.expect_runs(1);
    rig.stop_and_check_invariants([next]).await;
}

#[tokio::test]
async fn three_hosts_are_killed_in_a_row_and_when_no_fourth_comes_nothing_is_left_running() {
    let mut rig = new_rig();
    let mut one = host(&mut rig).await;
    let lost = one.start("consult", json!({"prompt": stubborn(&rig), "request_key": "one"})).await;
    rig.wait_for_sign("begun").await;
    kill(one, [lost]).await;
    for _ in 0..2 {
        // Most of its time passes each time, more than all of it in the end.
        tokio::time::sleep(GRACE / 2).await;
        let mut next = host(&mut rig).await;
        adopted(&mut next, 1).await;
        tokio::time::sleep(GRACE / 2).await;
        kill(next, []).await;
    }
    let last = Instant::now();
    assert_eq!(rig.jobs().await.pop().map(|job| job.state), Some(JobState::Running), "it was adopted twice");
    assert!(!rig.agents().is_empty());
    let job = rig.only_job_over().await;
    let took = last.elapsed();
    assert_eq!((job.state, fault(&job)), (JobState::Cancelled, Some(FaultCode::CallerLost)));
    let about = GRACE - Duration::from_secs(1)..GRACE + Duration::from_secs(12);
    assert!(about.contains(&took), "it ended {took:?} after the last host");
    rig.expect_no_agent_left().await;
    rig.expect_runs(1);
    rig.check_invariants().await;
}

#[tokio::test]
async fn an_adopted_consult_nobody_asks_for_again_is_ended_by_the_host_that_adopted_it() {
    let mut rig = new_rig();
    let mut first = host(&mut rig).await;
    let lost = first.start("consult", json!({"prompt": stubborn(&rig), "request_key": "one"})).await;
    rig.wait_for_sign("begun").await;
    kill(first, [lost]).await;
    let mut next = host(&mut rig).await;
    adopted(&mut next, 1).await;
    let began = Instant::now();
    let job = rig.only_job_over().await;
    assert!(began.elapsed() > GRACE - Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!((job.state, fault(&job)), (JobState::Cancelled, Some(FaultCode::CallerLost)));
    assert_eq!(rig.agents().len(), 0, "{:?}", rig.agents());
    rig.stop_and_check_invariants([next]).await;
}

#[tokio::test]
async fn a_caller_that_came_back_and_a_cancel_end_an_adopted_consult_as_any_other() {
    for withdraws in [true, false] {
        let mut rig = new_rig();
        let mut first = host(&mut rig).await;
        let asked = json!({"prompt": stubborn(&rig), "request_key": "one"});
        let lost = first.start("consult", asked.clone()).await;
        rig.wait_for_sign("begun").await;
        kill(first, [lost]).await;
        let mut next = host(&mut rig).await;
        let sent = next.start("consult", asked).await;
        adopted(&mut next, 1).await;
        let job = rig.jobs().await.pop().expect("a job");
        if withdraws {
            // Others it had may come back until then.
            tokio::time::sleep(GRACE + Duration::from_millis(500)).await;
            next.cancel(sent).await;
        } else {
            let reply = next.call("consult_cancel", json!({"job_id": job.id.to_string()})).await;
            assert_eq!(reply.str("status"), "cancelled", "{:#}", reply.0);
            next.reply(sent).await.expect_fault("cancelled");
        }
        let job = rig.only_job_over().await;
        let code = if withdraws { FaultCode::CallerLost } else { FaultCode::Cancelled };
        assert_eq!((job.state, fault(&job)), (JobState::Cancelled, Some(code)));
        rig.expect_no_agent_left().await;
        rig.expect_runs(1);
        rig.stop_and_check_invariants([next]).await;
    }
}

#[tokio::test]
async fn a_background_job_is_adopted_again_and_again_and_ends_with_its_answer() {
    let mut rig = new_rig();
    let mut one = host(&mut rig).await;
    let prompt = rig.waiting("begun", "go");
    let job = one.consult_in_background(&prompt).await;
    rig.wait_for_sign("begun").await;
    kill(one, []).await;
    let mut next = host(&mut rig).await;
    adopted(&mut next, 1).await;
    kill(next, []).await;
    // Nobody has to come for it in time.
    tokio::time::sleep(GRACE + Duration::from_millis(500)).await;
    let mut last = host(&mut rig).await;
    adopted(&mut last, 1).await;
    let waiting = last.start("consult_job", json!({"job_id": job, "wait_s": 60})).await;
    last.ping().await;
    rig.give_sign("go");
    let reply = last.reply(waiting).await.expect_success();
    assert_eq!(reply["response"], "done");
    rig.expect_runs(1);
    rig.stop_and_check_invariants([last]).await;
}

/// Waits until there are so many jobs, and somebody waits with each that has not begun.
async fn handed_in(rig: &Rig, count: usize) {
    until("all are handed in", async || {
        let jobs = rig.jobs().await;
        let waits = |job: &JobRecord| job.state != JobState::Queued || job.waiter.is_some();
        (jobs.len() == count && jobs.iter().all(waits)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn consults_that_wait_for_their_turn_are_adopted_with_who_waits_with_them() {
    let mut rig = new_rig().with("PHONE_OPUS_MAX_RUNNING", "1");
    let mut first = host(&mut rig).await;
    let running = json!({"prompt": rig.waiting("begun", "go"), "request_key": "running"});
    let queued = json!({"prompt": rig.answering("the second"), "request_key": "queued"});
    let nobodys = json!({"prompt": rig.answering("nobody hears it"), "request_key": "nobody's"});
    let mut lost = vec![first.start("consult", running.clone()).await];
    rig.wait_for_sign("begun").await;
    lost.push(first.start("consult", queued.clone()).await);
    handed_in(&rig, 2).await;
    lost.push(first.start("consult", nobodys).await);
    handed_in(&rig, 3).await;
    kill(first, lost).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let mut next = host(&mut rig).await;
    adopted(&mut next, 3).await;
    let sent = [next.start("consult", running).await, next.start("consult", queued).await];
    // The one nobody asks for again is ended in its time, the others wait on.
    until("one is over", async || {
        let over: Vec<JobRecord> = rig.jobs().await.into_iter().filter(|job| job.state.is_terminal()).collect();
        (over.len() == 1 && over[0].request_key.as_deref() == Some("nobody's")).then_some(())
    })
    .await;
    rig.give_sign("go");
    let answers = ["done", "the second"];
    for (sent, answer) in sent.into_iter().zip(answers) {
        let reply = next.reply(sent).await.expect_success();
        assert_eq!((reply.str("response"), reply.str("mode")), (answer, "sync"));
    }
    rig.expect_runs(2);
    until("nobody waits any more", async || rig.all(Role::Waiting).is_empty().then_some(())).await;
    rig.stop_and_check_invariants([next]).await;
}

#[tokio::test]
async fn consults_that_wait_for_their_turn_end_when_no_host_comes() {
    let mut rig = new_rig().with("PHONE_OPUS_MAX_RUNNING", "1");
    let mut first = host(&mut rig).await;
    let mut lost = vec![first.start("consult", json!({"prompt": stubborn(&rig), "request_key": "running"})).await];
    rig.wait_for_sign("begun").await;
    let queued = json!({"prompt": rig.answering("nobody hears it"), "request_key": "queued"});
    lost.push(first.start("consult", queued).await);
    handed_in(&rig, 2).await;
    kill(first, lost).await;
    let mut next = host(&mut rig).await;
    adopted(&mut next, 2).await;
    kill(next, []).await;
    let killed = Instant::now();
    until("both are over", async || rig.jobs().await.iter().all(|job| job.state.is_terminal()).then_some(())).await;
    assert!(killed.elapsed() > GRACE - Duration::from_secs(1), "{:?}", killed.elapsed());
    for job in rig.jobs().await {
        assert_eq!((job.state, fault(&job)), (JobState::Cancelled, Some(FaultCode::CallerLost)));
    }
    rig.expect_runs(1);
    until("nobody waits any more", async || rig.all(Role::Waiting).is_empty().then_some(())).await;
    rig.check_invariants().await;
}

#[tokio::test]
async fn a_consult_that_was_accepted_and_never_begun_is_run_by_the_host_it_is_asked_of_again() {
    let mut rig = new_rig().with_faults("jobs.after_accept=kill");
    let mut first = host(&mut rig).await;
    let asked = json!({"prompt": rig.answering("42"), "request_key": "one"});
    let lost = first.start("consult", asked.clone()).await;
    first.give_up_on(lost);
    first.exit().await;
    let job = rig.jobs().await.pop().expect("it is durable");
    assert_eq!(job.state, JobState::Queued);
    rig.unset("PHONE_OPUS_FAULTS");
    let mut next = host(&mut rig).await;
    let reply = next.call("consult", asked).await.expect_success();
    assert_eq!((reply.str("response"), reply.str("mode")), ("42", "sync"));
    assert_eq!(reply.str("job_id"), job.id.to_string());
    rig.expect_runs(1);
    rig.stop_and_check_invariants([next]).await;
}

#[tokio::test]
async fn the_lock_of_a_host_lives_through_its_upgrade_and_is_removed_with_it() {
    let mut rig = new_rig();
    let mut first = host(&mut rig).await;
    assert_eq!(hosts_left(&rig), [], "nothing is made before the first job");
    let asked = json!({"prompt": rig.waiting("begun", "go"), "request_key": "one"});
    let sent = first.start("consult", asked).await;
    rig.wait_for_sign("begun").await;
    let hosts = hosts_left(&rig);
    assert_eq!(hosts.len(), 1);
    // Whoever blocks on the lock is told of the smallest gap.
    let (dir, id) = (rig.state_dir(), hosts[0]);
    let lapse = std::thread::spawn(move || HostLock::wait_until_gone(&dir, id));
    rustix::process::kill_process(first.host_pid(), Signal::USR2).expect("it runs");
    let waiting = Waiting::until("another image serves", PATIENCE);
    while health(&mut first).await["rollout"]["adopted"] != 1 {
        waiting.again(|| "not yet".to_owned()).await;
    }
    assert!(HostLock::lives(&rig.state_dir(), id) && !lapse.is_finished(), "the lock was let go");
    rig.give_sign("go");
    first.reply(sent).await.expect_success();
    // The next image holds it for its own jobs as well.
    first.consult(&rig.answering("42")).await.expect_success();
    assert_eq!(hosts_left(&rig), [id]);
    first.finish().await;
    lapse.join().expect("no panic").expect("it could be waited for");
    assert_eq!(hosts_left(&rig), [], "an ordered end leaves nothing");
    rig.stop_and_check_invariants([first]).await;
}

#[tokio::test]
async fn what_a_killed_host_left_is_removed_by_the_next_one() {
    let mut rig = new_rig();
    let mut first = host(&mut rig).await;
    first.consult(&rig.answering("42")).await.expect_success();
    let left = hosts_left(&rig);
    kill(first, []).await;
    assert_eq!(hosts_left(&rig), left);
    let next = host(&mut rig).await;
    until("it is removed", async || hosts_left(&rig).is_empty().then_some(())).await;
    rig.stop_and_check_invariants([next]).await;
}

/// A server on its client's standard streams has no part in it: its client is gone with it.
#[tokio::test]
async fn a_server_that_was_not_asked_to_holds_no_lock_and_adopts_nothing() {
    let mut rig = new_rig();
    let mut plain = rig.serve().await;
    plain.consult(&rig.answering("42")).await.expect_success();
    assert_eq!(hosts_left(&rig), []);
    assert_eq!(health(&mut plain).await["adopted_jobs"], Value::Null);
    assert!(rig.jobs().await.iter().all(|job| job.host.is_none()));
    // Nor does it end what another one may adopt, before that one's time is over.
    let mut first = host(&mut rig).await;
    let asked = json!({"prompt": rig.waiting("begun", "go"), "request_key": "one"});
    let lost = first.start("consult", asked.clone()).await;
    rig.wait_for_sign("begun").await;
    kill(first, [lost]).await;
    let joined = plain.start("consult", asked).await;
    rig.give_sign("go");
    plain.reply(joined).await.expect_success();
    rig.stop_and_check_invariants([plain]).await;
}
