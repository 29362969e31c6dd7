//! Two systems in one process, of which one crashes all the time and the other never notices: `cargo run --example two_systems`.
//!
//! Each has its own tree of actors, its own fault plan and its own count of what happened; the library owns no globals.

#![allow(clippy::print_stdout, reason = "an example says what it did")]

use std::error::Error;
use std::time::Duration;

use phone_opus::{
    Annotations, Faults, Grace, ReplayContract, RestartPolicy, System, Tool, ToolCall, ToolDefinition, ToolFuture,
    ToolReply,
};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

/// Calls of each system.
const CALLS: u64 = 50;

/// Says by which worker it was answered.
struct Which;

impl Tool for Which {
    fn name(&self) -> &str {
        "which"
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
            name: "which".to_owned(),
            title: "Which".to_owned(),
            description: "Says which worker answers.".to_owned(),
            input_schema: json!({"type": "object"}),
            annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
            meta: None,
        }
    }

    fn contract(&self) -> ReplayContract {
        ReplayContract::Convergent
    }

    fn call(&self, call: ToolCall) -> ToolFuture {
        Box::pin(async move { Ok(ToolReply::text(call.generation.to_string())) })
    }
}

/// Calls a system again and again; the generation that answered last.
async fn ask(system: System) -> Result<u64, Box<dyn Error>> {
    let (client, server) = tokio::io::duplex(64 * 1024);
    let (reader, writer) = tokio::io::split(server);
    let serving = tokio::spawn(async move { system.serve(reader, writer).await });
    let (answers, mut requests) = tokio::io::split(client);
    let mut answers = BufReader::new(answers).lines();
    let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "example", "version": "1"}}});
    let calls = (1..=CALLS).map(
        |id| json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "which", "arguments": {}}}),
    );
    let mut last = String::new();
    for request in std::iter::once(hello).chain(calls) {
        requests.write_all(format!("{request}\n").as_bytes()).await?;
        last = answers.next_line().await?.ok_or("the connection is open")?;
    }
    requests.shutdown().await?;
    serving.await??;
    let last: Value = serde_json::from_str(&last)?;
    Ok(last["result"]["content"][0]["text"].as_str().unwrap_or_default().parse()?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // Every tenth call is executed by a worker that dies of it.
    let rules: Vec<String> =
        (1..=CALLS).filter(|call| call % 10 == 0).map(|call| format!("worker.before_execute#{call}=panic")).collect();
    let faults = Faults::armed(&rules.join(";"))?;
    let patient = RestartPolicy { intensity: 100, backoff: Duration::from_millis(1), ..RestartPolicy::default() };
    let crashing = System::builder().tool(Which).faults(faults.clone()).restart_policy(patient).start().await?;
    let quiet = System::builder().tool(Which).start().await?;

    let (crashed, untouched) = tokio::join!(ask(crashing.clone()), ask(quiet.clone()));
    let (crashed, untouched) = (crashed?, untouched?);
    println!("{CALLS} calls each: one system is at worker {crashed}, the other at worker {untouched}");
    crashing.shutdown(Grace::default()).await;
    quiet.shutdown(Grace::default()).await;
    let struck = faults.fired().len() as u64;
    if (crashed, untouched) == (1 + struck, 1) && struck > 0 {
        Ok(())
    } else {
        Err("one was touched by the other".into())
    }
}
