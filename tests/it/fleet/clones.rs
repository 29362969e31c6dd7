//! Consults that another machine answers in a clone of the commit: hosts inside this process over a queue in memory, and real ones over
//! a PostgreSQL of the test's own.
//!
//! Laws: L3, L7, L19.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use phone_opus::internals::fleet::Fleet;
use phone_opus::testkit::{Rig, Role, TestClient, tried_program, until};
use phone_opus::{Config, Grace, System};
use serde_json::json;

use super::hosting::{Hosting, PATTERN, clones_of};
use super::memory::{new_rig, occupied, queue};
use super::processes::url;
use crate::private_postgres::PrivateServer;

async fn host(rig: &Rig, fleet: &Arc<dyn Fleet>, fleet_clone: &[&str]) -> System {
    let fleet_clone = fleet_clone.iter().map(|pattern| (*pattern).to_owned()).collect();
    let config = Config { wait: Some(Duration::from_secs(300)), max_running: 1, fleet_clone, ..Config::default() };
    rig.system().config(config).fleet(Arc::clone(fleet)).start().await.expect("a system")
}

/// Two machines: one that asks and whose one place is taken, and one that has none of its directories and may clone.
struct World {
    asks: Rig,
    other: Rig,
    hosting: Hosting,
    here: System,
    there: System,
    client: TestClient,
    taken: String,
}

impl World {
    async fn new() -> Option<Self> {
        let (mut asks, mut other, fleet) = (new_rig(), new_rig(), queue());
        let hosting = Hosting::of(&asks)?;
        asks.set("PATH", hosting.path());
        other.set("PATH", hosting.path());
        let here = host(&asks, &fleet, &[]).await;
        let mut client = TestClient::of(&here).greet().await;
        let taken = occupied(&asks, &mut client).await;
        let there = host(&other, &fleet, &[PATTERN]).await;
        Some(Self { asks, other, hosting, here, there, client, taken })
    }

    async fn end(mut self) {
        assert!(self.client.call("consult_cancel", json!({"job_id": self.taken})).await.is_result());
        self.client.finish().await;
        drop(self.here.shutdown(Grace::default()).await);
        let other = &self.other;
        until("no clone is left", async || (clones_of(other) == 0).then_some(())).await;
        self.other.stop_system_and_check_invariants(self.there, []).await;
    }
}

/// Where an agent was run.
fn place(rig: &Rig) -> PathBuf {
    let runs = rig.runs();
    PathBuf::from(runs.last().expect("a run").start["cwd"].as_str().expect("a directory"))
}

#[tokio::test]
async fn a_consult_is_answered_in_a_clone_of_the_commit_and_the_reply_says_which_and_what_was_left_out() {
    let Some(mut world) = World::new().await else { return };
    fs::write(world.asks.work().join("told"), "not committed\n").expect("written");
    let commit = Hosting::head(&world.asks.work());
    let arguments = json!({"prompt": world.other.waiting("begun", "go"), "placement": "clone", "background": true});
    let asked = world.client.call("consult", arguments).await;
    for told in [&commit[..], "uncommitted changes were not included", "ssh://git@git.example/team/tool.git"] {
        assert!(asked.str("placed_because").contains(told), "{:#}", asked.0);
    }
    world.other.wait_for_sign("begun").await;
    let tree = place(&world.other);
    assert!(tree.starts_with(fs::canonicalize(world.other.state_dir().clones()).expect("there")), "{}", tree.display());
    assert_eq!(Hosting::head(&tree), commit);
    assert_eq!(fs::read_to_string(tree.join("told")).expect("read"), "committed\n");
    world.other.give_sign("go");
    let read = json!({"job_id": asked["job_id"], "wait_s": 60});
    let read = world.client.call("consult_job", read).await.expect_success();
    assert_eq!(read["status"], "succeeded", "{:#}", read.0);
    for told in ["it cloned commit", &commit, "uncommitted changes were not included"] {
        assert!(read.str("placed_because").contains(told), "{:#}", read.0);
    }
    assert!(!tree.exists(), "it is removed before its end is told");
    let arguments = json!({"prompt": world.other.waiting("again", "on"), "placement": "clone", "changes": true, "background": true});
    let asked = world.client.call("consult", arguments).await;
    world.other.wait_for_sign("again").await;
    assert_eq!(fs::read_to_string(place(&world.other).join("told")).expect("read"), "not committed\n");
    world.other.give_sign("on");
    let read = json!({"job_id": asked["job_id"], "wait_s": 60});
    let read = world.client.call("consult_job", read).await.expect_success();
    assert!(read.str("placed_because").contains("uncommitted changes were included"), "{:#}", read.0);
    world.other.expect_runs(2);
    world.end().await;
}

#[tokio::test]
async fn a_commit_that_is_not_pushed_fails_by_name_and_no_agent_is_started() {
    let Some(mut world) = World::new().await else { return };
    fs::write(world.asks.work().join("told"), "later\n").expect("written");
    let commit = world.hosting.commit();
    let arguments = json!({"prompt": "why?", "placement": "clone"});
    let failed = world.client.call("consult", arguments.clone()).await.expect_fault("workspace_unavailable");
    assert!(failed.text().contains(&commit) && failed.text().contains("is it pushed?"), "{}", failed.text());
    world.hosting.answers("echo 'ssh: connect to host git.example: refused' >&2; exit 255");
    let failed = world.client.call("consult", arguments).await.expect_fault("workspace_unavailable");
    assert!(failed.text().contains("connect to host"), "{}", failed.text());
    world.other.expect_runs(0);
    world.end().await;
}

#[tokio::test]
async fn what_no_other_machine_could_clone_is_refused_before_anything_is_accepted() {
    let (mut asks, fleet) = (new_rig(), queue());
    let Some(hosting) = Hosting::of(&asks) else { return };
    asks.set("PATH", hosting.path());
    let here = host(&asks, &fleet, &[]).await;
    let mut client = TestClient::of(&here).greet().await;
    let mut refused = async |arguments: serde_json::Value, told: &str| {
        let refused = client.call("consult", arguments).await.expect_fault("invalid_input");
        assert!(refused.text().contains(told), "{} and not {told}", refused.text());
    };
    let session = "6f0c4f0e-5f0b-4c0e-9a57-0d7a1f0e8b11";
    refused(json!({"prompt": "p", "placement": "clone", "session_id": session}), "a session is gone on with").await;
    refused(json!({"prompt": "p", "changes": true}), "`placement` is not `clone`").await;
    let config = asks.work().join(".git/config");
    let whole = fs::read_to_string(&config).expect("read");
    for (address, told) in [
        ("https://ada:secret@git.example/a", "holds a login"),
        ("/srv/tool.git", "is a directory"),
        ("ext::sh", "program of git's"),
        ("http://git.example/a", "neither https nor ssh"),
    ] {
        fs::write(&config, whole.replace(super::hosting::ADDRESS, address)).expect("written");
        refused(json!({"prompt": "p", "placement": "clone"}), told).await;
    }
    fs::write(&config, whole.replace("remote \"origin\"", "remote \"none\"")).expect("written");
    refused(json!({"prompt": "p", "placement": "clone"}), "without a remote").await;
    fs::remove_dir_all(asks.work().join(".git")).expect("removed");
    refused(json!({"prompt": "p", "placement": "clone"}), "there is none at or above").await;
    asks.expect_runs(0);
    asks.stop_system_and_check_invariants(here, [client]).await;
}

#[tokio::test]
async fn a_clone_outlives_its_killed_host_as_long_as_its_job_runs_and_one_that_nobody_runs_in_is_swept() {
    let Some(server) = PrivateServer::own() else { return };
    let url = url(&server.database().await);
    let program = || tried_program(env!("CARGO_BIN_EXE_phone-opus"));
    let rig = || Rig::new(program()).with("PHONE_OPUS_FLEET", &url).with("PHONE_OPUS_MAX_RUNNING", "1");
    let (mut asks, mut other) = (rig(), rig());
    let Some(hosting) = Hosting::of(&asks) else { return };
    asks.set("PATH", hosting.path());
    other.set("PATH", hosting.path());
    other.set("PHONE_OPUS_FLEET_CLONE", PATTERN);
    let canary = hosting.traps(&mut other);
    let mut client = asks.serve().await;
    let taken = occupied(&asks, &mut client).await;
    let there = other.serve().await;
    let arguments = json!({"prompt": other.waiting("begun", "go"), "placement": "clone", "background": true});
    let reply = client.call("consult", arguments).await;
    other.wait_for_sign("begun").await;
    let tree = place(&other);
    assert_eq!(Hosting::head(&tree), Hosting::head(&asks.work()));
    other.kill(Role::Host);
    drop(there);
    let there = other.serve().await;
    other.give_sign("go");
    let read = client.call("consult_job", json!({"job_id": reply["job_id"], "wait_s": 120})).await.expect_success();
    assert_eq!(read["status"], "succeeded", "{:#}", read.0);
    until("its clone is removed", async || (clones_of(&other) == 0).then_some(())).await;
    // One whose host is killed while it is fetched.
    hosting.answers(&format!("touch {}; cat >/dev/null", other.sign("fetching").display()));
    let arguments = json!({"prompt": "why?", "placement": "clone", "background": true});
    let reply = client.call("consult", arguments).await;
    other.wait_for_sign("fetching").await;
    assert_eq!(clones_of(&other), 1);
    other.kill(Role::Host);
    drop(there);
    let there = other.serve().await;
    until("the other one is swept", async || (clones_of(&other) == 0).then_some(())).await;
    for job in [&reply["job_id"], &json!(taken)] {
        assert!(client.call("consult_cancel", json!({"job_id": job})).await.is_result());
    }
    other.expect_runs(1);
    assert!(!canary.exists(), "something of the user's configuration or of the repository was run");
    client.finish().await;
    other.stop_and_check_invariants([there]).await;
}
