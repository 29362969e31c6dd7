//! Consults of a fleet as tasks, by both protocols, over a database and two hosts: looked at, waited for, read after a restart of the host
//! that asked, and cancelled.
//!
//! Laws: L3, L4, L19.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::time::Duration;

use phone_opus::testkit::client::{REVISION, envelope};
use phone_opus::testkit::{Step, TestClient, until};
use serde_json::{Value, json};

use super::world::World;
use crate::private_postgres::PrivateServer;

const LEASE: Duration = Duration::from_secs(4);

/// How a client speaks of tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tasks {
    /// As the protocol of 2025-11-25 has it.
    Protocol,
    /// By the extension.
    Extension,
}

impl Tasks {
    async fn greets(self, client: &mut TestClient) {
        if self == Self::Protocol {
            client.handshake(REVISION).await;
        }
    }

    fn with_meta(self, mut params: Value) -> Value {
        if self == Self::Extension {
            params["_meta"] = envelope();
            params["_meta"]["io.modelcontextprotocol/clientCapabilities"] =
                json!({"extensions": {"io.modelcontextprotocol/tasks": {}}});
        }
        params
    }

    /// The id of the task a consult became.
    async fn begins(self, client: &mut TestClient, arguments: &Value) -> String {
        let mut params = self.with_meta(json!({"name": "consult", "arguments": arguments}));
        if self == Self::Protocol {
            params["task"] = json!({});
        }
        let answer = client.request("tools/call", params).await;
        let task = if self == Self::Protocol { &answer["result"]["task"] } else { &answer["result"] };
        assert_eq!(task["status"], "working", "{self:?}: {answer:#}");
        task["taskId"].as_str().expect("an id").to_owned()
    }

    async fn asks(self, client: &mut TestClient, method: &str, task: &str) -> Value {
        let answer = client.request(method, self.with_meta(json!({"taskId": task}))).await;
        assert!(answer.get("error").is_none(), "{self:?}: {answer:#}");
        answer["result"].clone()
    }

    /// The result of a task that is over or will be, as its own protocol gives it.
    async fn reads(self, client: &mut TestClient, task: &str) -> Value {
        match self {
            Self::Protocol => self.asks(client, "tasks/result", task).await,
            Self::Extension => {
                until("the task is over", async || {
                    let task = self.asks(client, "tasks/get", task).await;
                    (task["status"] != "working").then(|| task["result"].clone())
                })
                .await
            }
        }
    }
}

#[tokio::test]
async fn a_consult_of_two_hosts_over_a_database_is_a_task_of_either_protocol() {
    for by in [Tasks::Protocol, Tasks::Extension] {
        let Some(server) = PrivateServer::shared() else { return };
        let mut world = World::new(server, LEASE, 2, 1, 1).await;
        let workspace = world.workspaces[0].clone();
        let asking = |world: &World, key: &str, then: Step| {
            let mut arguments = world.asking(key, &workspace, vec![Step::Touch(world.sign(key)), then]);
            arguments.as_object_mut().expect("arguments").remove("background");
            arguments
        };
        world.machines[0].client = Some(world.machines[0].rig.host());
        by.greets(world.machines[0].up()).await;
        world.is_in(1).await;
        // The one that asks takes nothing itself.
        world.sql("UPDATE phone_opus.host SET drained = true").await;
        world.machines[1].start().await;
        world.is_in(2).await;
        let begun = async |world: &World, key: &str| {
            let sign = world.sign(key);
            until("its agent runs", async || sign.exists().then_some(())).await;
        };

        let arguments = asking(&world, "read", Step::WaitForFile(world.sign("go")));
        let task = by.begins(world.machines[0].up(), &arguments).await;
        begun(&world, "read").await;
        let seen = by.asks(world.machines[0].up(), "tasks/get", &task).await;
        assert_eq!(seen["status"], "working", "{by:?}: {seen:#}");
        let message = seen["statusMessage"].as_str().expect("a message");
        assert!(message.contains("on host"), "{by:?}: {seen:#}");
        std::fs::write(world.sign("go"), "").expect("a sign");
        let result = by.reads(world.machines[0].up(), &task).await;
        assert_eq!(result["structuredContent"]["response"], "answer to read", "{by:?}: {result:#}");
        let seen = by.asks(world.machines[0].up(), "tasks/get", &task).await;
        assert_eq!(seen["status"], "completed", "{by:?}: {seen:#}");

        let hangs = asking(&world, "hangs", Step::Hang);
        let cancelled = by.begins(world.machines[0].up(), &hangs).await;
        begun(&world, "hangs").await;
        by.asks(world.machines[0].up(), "tasks/cancel", &cancelled).await;
        until("it is cancelled", async || {
            let seen = by.asks(world.machines[0].up(), "tasks/get", &cancelled).await;
            (seen["status"] == "cancelled").then_some(())
        })
        .await;

        // A task outlives the host that was asked for it.
        let mut first = world.machines[0].client.take().expect("it is up");
        first.finish().await;
        world.machines[0].client = Some(world.machines[0].rig.host());
        by.greets(world.machines[0].up()).await;
        let again = by.reads(world.machines[0].up(), &task).await;
        assert_eq!(again["structuredContent"]["response"], "answer to read", "{by:?}: {again:#}");
        let seen = by.asks(world.machines[0].up(), "tasks/get", &cancelled).await;
        assert_eq!(seen["status"], "cancelled", "{by:?}: {seen:#}");

        assert_eq!((world.runs("read"), world.runs("hangs").0), ((1, 1), 1), "{by:?}");
        assert!(world.machines[0].rig.jobs().await.is_empty(), "{by:?}: the other one ran them");
        world.settle().await;
        let ends = world.end().await;
        assert_eq!((ends.get("succeeded"), ends.get("cancelled")), (Some(&1), Some(&1)), "{by:?}: {ends:?}");
    }
}
