//! `consult --placement` and `jobs` about a job of the fleet, with the real program and a PostgreSQL of the test's own.
//!
//! Laws: L3, L7, L19.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::process::{Output, Stdio};

use phone_opus::internals::jobs::JobState;
use phone_opus::testkit::{Rig, TestClient, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::processes;
use crate::private_postgres::PrivateServer;

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn parsed(output: &Output, code: i32) -> Value {
    assert_eq!(output.status.code(), Some(code), "{}", said(output));
    serde_json::from_slice(&output.stdout).expect("JSON and nothing else on stdout")
}

/// A shell in a directory, and another machine that has it.
async fn machines(server: &PrivateServer) -> (Rig, Rig, TestClient) {
    let url = processes::url(&server.database().await);
    let asks = processes::new_rig(&url).with("PHONE_OPUS_LOG", "error").with("NO_COLOR", "1");
    let mut other = processes::new_rig(&url);
    other.set("PHONE_OPUS_WORKSPACES", asks.work().display().to_string());
    let there = other.serve().await;
    (asks, other, there)
}

#[tokio::test]
async fn a_shells_consult_is_answered_on_another_machine_and_read_by_its_id() {
    let Some(server) = PrivateServer::own() else { return };
    let (asks, other, there) = machines(&server).await;
    let prompt = other.answering("from there");
    let reply = asks.run(&["consult", "--placement", "fleet", "--request-key", "k", "--json", &prompt]).await;
    let reply = parsed(&reply, 0);
    assert_eq!(reply["response"], "from there", "{reply:#}");
    assert!(reply["machine"].is_string() && reply["placed_because"].is_string(), "{reply:#}");
    let told = asks.run(&["consult", "--placement", "fleet", "--request-key", "k", &prompt]).await;
    assert_eq!(String::from_utf8_lossy(&told.stdout).trim_end(), "from there");
    assert!(String::from_utf8_lossy(&told.stderr).contains("it has"), "{}", said(&told));
    other.expect_runs(1);
    assert!(asks.jobs().await.is_empty(), "a shell claims nothing");

    let job = reply["job_id"].as_str().expect("a job");
    let shown = parsed(&asks.run(&["jobs", "show", job, "--json"]).await, 0);
    assert_eq!(shown["response"], "from there", "{shown:#}");
    let over = parsed(&asks.run(&["jobs", "cancel", job, "--json"]).await, 0);
    assert_eq!((&over["status"], &over["changed"]), (&"succeeded".into(), &false.into()));
    let tail = asks.run(&["jobs", "tail", job]).await;
    assert_eq!(tail.status.code(), Some(1));
    assert!(said(&tail).contains("is one of the fleet"), "{}", said(&tail));
    let nobodys = asks.run(&["jobs", "show", "3f2504e0-4f89-41d3-9a0c-0305e82c3301"]).await;
    assert_eq!(nobodys.status.code(), Some(1), "{}", said(&nobodys));

    let several = ["consult", "--placement", "fleet", "--agents", "claude,codex", "why?"];
    for (words, what) in [
        (&several[..], "several agents are asked"),
        (&["consult", "--placement", "elsewhere", "why?"], "local, fleet, clone"),
    ] {
        let refused = asks.run(words).await;
        assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
        assert!(said(&refused).contains(what), "{}", said(&refused));
    }
    other.stop_and_check_invariants([there]).await;
    asks.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_background_consult_of_a_shell_goes_on_and_is_waited_for_and_cancelled_from_it() {
    let Some(server) = PrivateServer::own() else { return };
    let (asks, other, there) = machines(&server).await;
    let background = |prompt: String| {
        let asks = &asks;
        async move {
            let reply = asks.run(&["consult", "--placement", "fleet", "--background", "--json", &prompt]).await;
            parsed(&reply, 0)["job_id"].as_str().expect("a job").to_owned()
        }
    };
    let job = background(other.waiting("begun", "go")).await;
    other.wait_for_sign("begun").await;
    let shown = parsed(&asks.run(&["jobs", "show", &job, "--json"]).await, 0);
    assert_eq!(shown["status"], "running", "{shown:#}");
    assert!(shown["machine"].is_string(), "{shown:#}");
    other.give_sign("go");
    let shown = parsed(&asks.run(&["jobs", "show", &job, "--wait", "60", "--json"]).await, 0);
    assert_eq!(shown["status"], "succeeded", "{shown:#}");

    let job = background(other.hanging("again")).await;
    other.wait_for_sign("again").await;
    let cancelled = parsed(&asks.run(&["jobs", "cancel", &job, "--json"]).await, 0);
    assert_eq!((&cancelled["status"], &cancelled["changed"]), (&"cancelled".into(), &true.into()));
    other.expect_no_agent_left().await;
    other.stop_and_check_invariants([there]).await;
    asks.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn ctrl_c_ends_a_shells_consult_on_the_other_machine() {
    let Some(server) = PrivateServer::own() else { return };
    let (asks, other, there) = machines(&server).await;
    let mut command = asks.command(&["consult", "--placement", "fleet", &other.hanging("begun")]);
    let asking = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    other.wait_for_sign("begun").await;
    let pid = asking.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).expect("a pid");
    kill_process(pid, Signal::INT).expect("interrupted");
    let output = asking.wait_with_output().await.expect("it ends");
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("Read it again: phone-opus jobs show "), "{}", said(&output));
    let over = until("it is over there", async || other.jobs().await.pop().filter(|job| job.state.is_terminal())).await;
    assert_eq!(over.state, JobState::Cancelled);
    other.expect_no_agent_left().await;
    other.stop_and_check_invariants([there]).await;
    asks.stop_and_check_invariants([]).await;
}
