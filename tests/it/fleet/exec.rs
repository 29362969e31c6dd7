//! Consults that a host runs on the workspace's machine by its exec server: that machine has no host of the fleet.
//!
//! The machine is this one, reached by an exec server that the host starts as its child or at a socket, so that the kernel proves the
//! workspace.
//!
//! Laws: L3, L7, L19.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::os::unix::fs::DirBuilderExt as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use phone_opus::internals::fleet::Fleet;
use phone_opus::testkit::{PATIENCE, Process, Rig, Role, Signal, TestClient};
use phone_opus::{AgentRegistry, AgentSite, AgentSites, Config, ExecTarget, Grace, System, TargetWords};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use super::memory::{new_rig, occupied, queue};

/// What a server does without its client, where a case waits for that.
const LEASE_S: &str = "3";

/// The words by which a host starts a server of its own.
fn child_of(rig: &Rig) -> TargetWords {
    let server = ["exec-server", "--listen", "stdio"].map(str::to_owned);
    TargetWords::Program([rig.program().display().to_string()].into_iter().chain(server).collect())
}

/// A host that has no directory of `of`, and an agent on a machine that has, reached by these words.
async fn reaching(rig: &Rig, of: &Rig, fleet: &Arc<dyn Fleet>, words: &TargetWords) -> System {
    let site = AgentSite {
        agent: "claude".to_owned(),
        target: ExecTarget::parse(words).expect("a target"),
        token_file: None,
        program: Some(rig.player().display().to_string()),
        workspaces: vec![of.work()],
    };
    let agents = AgentSites::from([("box".to_owned(), site)]);
    let config = Config { wait: Some(Duration::from_secs(300)), max_running: 1, agents, ..Config::default() };
    let registry = AgentRegistry::standard(None, rig.program().to_owned()).with_sites(&config.agents);
    rig.system().agents(registry).config(config).fleet(Arc::clone(fleet)).start().await.expect("a system")
}

/// The exec servers that run. A runner's words name the server too.
fn servers(rig: &Rig) -> Vec<Process> {
    let serves = |process: &Process| process.role == Role::Other && process.command.contains("exec-server");
    rig.processes().into_iter().filter(serves).collect()
}

/// A server at a socket of this machine, once it listens.
async fn server_at(rig: &Rig, listen: &str) -> Child {
    let mut command = rig.command(&["exec-server", "--listen", listen, "--lease-s", LEASE_S]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a server");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let said = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("in time").expect("read");
    assert!(said.is_some(), "it says where it listens");
    child
}

#[tokio::test]
async fn a_host_that_reaches_the_workspaces_machine_runs_a_job_there() {
    let (asks, other, fleet) = (new_rig(), new_rig(), queue());
    let config = Config { wait: Some(Duration::from_secs(300)), max_running: 1, ..Config::default() };
    let here = asks.system().config(config).fleet(Arc::clone(&fleet)).start().await.expect("a system");
    let mut client = TestClient::of(&here).greet().await;
    let taken = occupied(&asks, &mut client).await;
    let there = reaching(&other, &asks, &fleet, &child_of(&other)).await;
    let arguments = json!({"prompt": other.answering("from there"), "placement": "fleet"});
    let reply = client.call("consult", arguments).await.expect_success();
    assert_eq!(reply.str("response"), "from there", "{:#}", reply.0);
    assert!(reply.str("placed_because").contains("by its exec server"), "{:#}", reply.0);
    assert!(client.call("consult_cancel", json!({"job_id": taken})).await.is_result());
    client.finish().await;
    drop(here.shutdown(Grace::default()).await);
    other.stop_system_and_check_invariants(there, []).await;
}

/// What is lost of a job that runs by an exec server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    Runner,
    /// And with it the connection, for good.
    Server,
    /// Another server listens at the same place a moment later, and knows nothing of the job.
    ServerForAnother,
}

#[tokio::test]
async fn a_job_whose_runner_or_exec_server_is_lost_is_interrupted_and_says_by_what() {
    let rows = [
        (false, Lost::Runner, "runner_lost"),
        (false, Lost::Server, "exec_lost"),
        (true, Lost::Runner, "runner_lost"),
        (true, Lost::Server, "exec_lost"),
        (true, Lost::ServerForAnother, "exec_lost"),
    ];
    // At once: a host says what it reaches with its next renewal.
    join_all(rows.map(|(by_socket, lost, code)| loses(by_socket, lost, code))).await;
}

async fn loses(by_socket: bool, lost: Lost, code: &str) {
    let (asks, other, fleet) = (new_rig(), new_rig(), queue());
    let config = Config { wait: Some(Duration::from_secs(300)), max_running: 1, ..Config::default() };
    let here = asks.system().config(config).fleet(Arc::clone(&fleet)).start().await.expect("a system");
    let mut client = TestClient::of(&here).greet().await;
    let taken = occupied(&asks, &mut client).await;
    // A directory nobody else can enter, or it does not listen there.
    let dir = other.path("box");
    std::fs::DirBuilder::new().mode(0o700).create(&dir).expect("made");
    let listen = format!("unix:{}", dir.join("server").display());
    let mut server = if by_socket { Some(server_at(&other, &listen).await) } else { None };
    let words = if by_socket { TargetWords::Text(listen.clone()) } else { child_of(&other) };
    let there = reaching(&other, &asks, &fleet, &words).await;
    let arguments = json!({"prompt": other.hanging("begun"), "placement": "fleet", "background": true});
    let reply = client.call("consult", arguments).await;
    other.wait_for_sign("begun").await;
    match lost {
        Lost::Runner => drop(other.kill(Role::Runner)),
        // One may take another along.
        Lost::Server | Lost::ServerForAnother => {
            servers(&other).iter().for_each(|server| _ = server.send(Signal::KILL));
            if let Some(mut server) = server.take() {
                server.wait().await.expect("it ended");
            }
        }
    }
    if lost == Lost::ServerForAnother {
        server = Some(server_at(&other, &listen).await);
    }
    let read = client.call("consult_job", json!({"job_id": reply["job_id"], "wait_s": 120})).await;
    let read = read.expect_fault(code);
    assert_eq!(read["status"], "interrupted", "by a socket: {by_socket}, {lost:?}: {:#}", read.0);
    other.expect_no_agent_left().await;
    other.expect_runs(1);
    if let Some(mut server) = server {
        server.kill().await.expect("it ended");
    }
    assert!(client.call("consult_cancel", json!({"job_id": taken})).await.is_result());
    client.finish().await;
    drop(here.shutdown(Grace::default()).await);
    other.stop_system_and_check_invariants(there, []).await;
}
