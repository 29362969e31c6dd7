//! Consults that a host runs on the workspace's machine by its exec server: that machine has no host of the fleet.
//!
//! The machine is this one, reached by an exec server that the host starts as its child, so that the kernel proves the workspace.
//!
//! Laws: L3, L7, L19.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::sync::Arc;
use std::time::Duration;

use phone_opus::internals::fleet::Fleet;
use phone_opus::testkit::processes::Process;
use phone_opus::testkit::{Rig, Role, Signal, TestClient};
use phone_opus::{AgentRegistry, AgentSite, AgentSites, Config, ExecTarget, Grace, System, TargetWords};
use serde_json::json;

use super::memory::{new_rig, occupied, queue};

/// A host that has no directory of `of`, and an agent on a machine that has.
async fn reaching(rig: &Rig, of: &Rig, fleet: &Arc<dyn Fleet>) -> System {
    let server = ["exec-server", "--listen", "stdio"].map(str::to_owned);
    let words = [rig.program().display().to_string()].into_iter().chain(server).collect();
    let site = AgentSite {
        agent: "claude".to_owned(),
        target: ExecTarget::parse(&TargetWords::Program(words)).expect("a target"),
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

#[tokio::test]
async fn a_host_that_reaches_the_workspaces_machine_runs_a_job_there_and_one_whose_runner_or_server_is_lost_is_interrupted()
 {
    let (asks, other, fleet) = (new_rig(), new_rig(), queue());
    let config = Config { wait: Some(Duration::from_secs(300)), max_running: 1, ..Config::default() };
    let here = asks.system().config(config).fleet(Arc::clone(&fleet)).start().await.expect("a system");
    let mut client = TestClient::of(&here).greet().await;
    let taken = occupied(&asks, &mut client).await;
    let there = reaching(&other, &asks, &fleet).await;
    let arguments = json!({"prompt": other.answering("from there"), "placement": "fleet"});
    let reply = client.call("consult", arguments).await.expect_success();
    assert_eq!(reply.str("response"), "from there", "{:#}", reply.0);
    assert!(reply.str("placed_because").contains("by its exec server"), "{:#}", reply.0);
    // Whatever it was lost by: what a killed server or a connection that is gone for good leaves is told alike (`exec_consult::kills`).
    for (lost, code) in [("runner", "runner_lost"), ("server", "exec_lost")] {
        let arguments = json!({"prompt": other.hanging(lost), "placement": "fleet", "background": true});
        let reply = client.call("consult", arguments).await;
        other.wait_for_sign(lost).await;
        match lost {
            "runner" => drop(other.kill(Role::Runner)),
            // One may take another along.
            _ => servers(&other).iter().for_each(|server| _ = server.send(Signal::KILL)),
        }
        let read = client.call("consult_job", json!({"job_id": reply["job_id"], "wait_s": 60})).await;
        let read = read.expect_fault(code);
        assert_eq!(read["status"], "interrupted", "{lost}: {:#}", read.0);
        assert!(
            !read.text().contains("host") || !read.text().contains("is gone, and whether"),
            "{lost}: {}",
            read.text()
        );
        other.expect_no_agent_left().await;
    }
    assert!(client.call("consult_cancel", json!({"job_id": taken})).await.is_result());
    client.finish().await;
    drop(here.shutdown(Grace::default()).await);
    other.stop_system_and_check_invariants(there, []).await;
}
