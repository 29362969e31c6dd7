//! What happens to a program that embeds the library, from outside: its runner is killed, it is killed itself, the next version of it
//! is put in its place, its agents run on machines of its own.
//!
//! Laws: L1, L3, L7, L15.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

use phone_opus::JobState;
use phone_opus::testkit::{PATIENCE, Rig, Role, Signal, TestClient, Waiting};
use serde_json::json;

/// The program (`tests/programs/embedded.rs`), which lies beside this one's folder when all of this package's tests are built.
fn program() -> PathBuf {
    let this = std::env::current_exe().expect("this program");
    let program = this.parent().and_then(Path::parent).expect("a build directory").join("examples/embedded");
    assert!(program.is_file(), "{} is not built: cargo build --example embedded", program.display());
    program
}

/// A world around a copy of the program, which can be replaced.
fn rig_of_a_copy() -> (Rig, PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let copy = dir.path().join("embedded");
    std::fs::copy(program(), &copy).expect("a copy");
    (Rig::new(&copy), copy, dir)
}

/// Where the image that runs was restored from: another one for each image, none for the first.
fn image(host: &TestClient) -> Option<String> {
    let words = std::fs::read(format!("/proc/{}/cmdline", host.host_pid().as_raw_nonzero())).expect("it runs");
    let words: Vec<_> = words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let at = words.iter().position(|word| word == "--restore")?;
    words.get(at + 1).cloned()
}

async fn next_image(host: &TestClient, before: &Option<String>) {
    let waiting = Waiting::until("another image runs", PATIENCE);
    while image(host) == *before {
        waiting.again(|| format!("{before:?}")).await;
    }
}

/// Whether an agent runs here or on a machine of the program's own, what is left when its runner is killed is ended, and the job is
/// interrupted after its one run.
#[tokio::test]
async fn a_killed_runner_of_an_embedding_program_leaves_an_interrupted_job_and_nothing_alive() {
    for agent in ["claude", "boxed", "streamed"] {
        let mut rig = Rig::new(program());
        let mut host = rig.serve().await;
        let call = host.start("consult", json!({"prompt": rig.hanging("begun"), "agent": agent})).await;
        rig.wait_for_sign("begun").await;
        rig.the(Role::Runner).await.kill();
        host.reply(call).await.expect_fault("runner_lost");
        let job = rig.only_job_over().await;
        assert_eq!(job.state, JobState::Interrupted, "{agent}");
        rig.expect_no_agent_left().await;
        rig.expect_runs(1);
        rig.stop_and_check_invariants([host]).await;
    }
}

/// The program's end, however it comes, costs no job in the background: the next start has its answer.
#[tokio::test]
async fn a_killed_embedding_program_leaves_its_background_job_to_its_next_start() {
    for agent in ["claude", "boxed"] {
        let mut rig = Rig::new(program());
        let mut host = rig.serve().await;
        let prompt = rig.waiting("begun", "go");
        let accepted = host.call("consult", json!({"prompt": prompt, "agent": agent, "background": true})).await;
        let job = accepted.str("job_id").to_owned();
        rig.wait_for_sign("begun").await;
        host.signal(Signal::KILL);
        host.exit().await;
        assert_eq!((rig.agents().len(), rig.runners().len()), (1, 1), "{agent}: it goes on by itself");
        let mut next = rig.serve().await;
        rig.give_sign("go");
        let reply = next.call("consult_job", json!({"job_id": job, "wait_s": 60})).await.expect_success();
        assert_eq!(reply.str("status"), "succeeded", "{agent}");
        rig.expect_runs(1);
        rig.stop_and_check_invariants([next]).await;
    }
}

/// A consult is under way while the program is replaced, once because it was asked for and once by a new file; it is answered by
/// the third image, of the run that the first one began.
#[tokio::test]
async fn an_embedding_program_is_upgraded_in_place_with_a_consult_under_way() {
    let (mut rig, copy, _dir) = rig_of_a_copy();
    let mut host = rig.serve().await;
    let pid = host.host_pid();
    let call = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    for _ in 0..2 {
        let before = image(&host);
        let new = copy.with_extension("new");
        std::fs::copy(program(), &new).expect("a copy");
        std::fs::rename(&new, &copy).expect("it is put in place");
        rustix::process::kill_process(pid, Signal::USR2).expect("it runs");
        next_image(&host, &before).await;
        host.ping().await;
    }
    rig.give_sign("go");
    host.reply(call).await.expect_success();
    assert_eq!(host.host_pid(), pid);
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host]).await;
}

/// A file at the path that says another name, or nothing that is understood, is nobody's next version, however able it is.
#[tokio::test]
async fn a_file_of_another_program_is_not_adopted() {
    let (rig, copy, _dir) = rig_of_a_copy();
    let named = rig.path("name");
    let mut rig = rig.with("EMBEDDED_NAME", named.display().to_string());
    let mut host = rig.serve().await;
    std::fs::write(&named, "another").expect("written");
    for (file, verdict) in [(program(), "garbled"), (env!("CARGO_BIN_EXE_phone-opus").into(), "exited")] {
        let new = copy.with_extension("new");
        std::fs::copy(file, &new).expect("a copy");
        std::fs::rename(&new, &copy).expect("it is put in place");
        rustix::process::kill_process(host.host_pid(), Signal::USR2).expect("it runs");
        let waiting = Waiting::until("the verdict", PATIENCE);
        loop {
            let rollout = host.health().await["rollout"].to_string();
            if rollout.contains(&format!("\"{verdict}\"")) {
                break;
            }
            waiting.again(|| rollout).await;
        }
        assert_eq!(image(&host), None, "{verdict}");
    }
    rig.stop_and_check_invariants([host]).await;
}

/// By name, and each in the way its machine has.
#[tokio::test]
async fn agents_on_machines_of_a_programs_own_answer_and_are_cancelled_as_any() {
    let mut rig = Rig::new(program());
    let mut host = rig.serve().await;
    for agent in ["boxed", "streamed"] {
        let arguments = json!({"prompt": rig.answering("42"), "agent": agent, "detail": "full"});
        let reply = host.call("consult", arguments).await.expect_success();
        assert_eq!((reply.str("response"), reply.str("machine")), ("42", &*format!("own:{agent}")));
        let call = host.start("consult", json!({"prompt": rig.hanging(agent), "agent": agent})).await;
        rig.wait_for_sign(agent).await;
        host.cancel(call).await;
        rig.expect_no_agent_left().await;
    }
    // A directory that no workspace holds is refused before anything is started.
    let elsewhere = json!({"prompt": rig.answering("42"), "agent": "boxed", "cwd": "/etc"});
    host.call("consult", elsewhere).await.expect_fault("invalid_input");
    rig.expect_runs(4);
    rig.stop_and_check_invariants([host]).await;
}

/// They stand in its configuration and nowhere in the program: its host, its runners and the runner's environment know of them.
#[tokio::test]
async fn commands_of_an_embedding_programs_user_answer_as_agents() {
    let mut rig = Rig::new(program()).with("EMBEDDED_TOLD", "of its own").with("EMBEDDED_OTHER", "not told");
    let mut host = rig.serve().await;
    let asked = json!({"prompt": "what is the question", "agent": "echoed"});
    let reply = host.call("consult", asked).await.expect_success();
    assert!(reply.str("response").contains("what is the question"), "{}", reply.str("response"));
    let reply = host.call("consult", json!({"prompt": "?", "agent": "told"})).await.expect_success();
    let said = reply.str("response");
    assert!(said.contains("EMBEDDED_TOLD=of its own") && !said.contains("EMBEDDED_OTHER"), "{said}");
    let unknown = host.call("consult", json!({"prompt": "?", "agent": "nobody"})).await;
    unknown.expect_fault("invalid_input");
    rig.stop_and_check_invariants([host]).await;
}
