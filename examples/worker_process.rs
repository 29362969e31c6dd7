//! Tools in a process of their own: one that ends its process costs its call, and neither the connection nor the program.
//!
//! The worker process is this program again: it begins with `dispatch`, which serves the host on its standard streams until
//! the host is gone. The same registry has the tools in either place, so that the two cannot disagree.

#![allow(clippy::print_stdout, reason = "an example says what it did")]

use std::error::Error;
use std::process::ExitCode;

use phone_opus::process::{Registry, dispatch};
use phone_opus::{Annotations, Grace, Isolation, System, Tool, ToolCall, ToolDefinition, ToolFuture, WorkerCommand};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

/// Ends the process it runs in.
struct Abort;

impl Tool for Abort {
    fn name(&self) -> &str {
        "abort"
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
            name: "abort".to_owned(),
            title: "Abort".to_owned(),
            description: "Ends its process.".to_owned(),
            input_schema: json!({"type": "object"}),
            annotations: Annotations { read_only: false, destructive: true, idempotent: false, open_world: false },
            meta: None,
        }
    }

    fn call(&self, _: ToolCall) -> ToolFuture {
        Box::pin(async { std::process::abort() })
    }
}

fn main() -> ExitCode {
    let registry = Registry::new().tool(Abort);
    if let Some(code) = dispatch(std::env::args_os(), &registry) {
        return code;
    }
    match host(&registry) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn host(registry: &Registry) -> Result<(), Box<dyn Error>> {
    let isolation = Isolation::Process(WorkerCommand::own_program());
    let system = System::builder().program(registry).isolation(isolation).start().await?;
    let (client, server) = tokio::io::duplex(64 * 1024);
    let (reader, writer) = tokio::io::split(server);
    let serving = tokio::spawn({
        let system = system.clone();
        async move { system.serve(reader, writer).await }
    });
    let (answers, mut requests) = tokio::io::split(client);
    let mut answers = BufReader::new(answers).lines();
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "example", "version": "1"}}});
    let call = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "abort", "arguments": {}}});
    let ping = json!({"jsonrpc": "2.0", "id": 3, "method": "ping"});
    let mut last = String::new();
    for request in [hello, call, ping] {
        requests.write_all(format!("{request}\n").as_bytes()).await?;
        last = answers.next_line().await?.ok_or("the connection is open")?;
        println!("{last}");
    }
    requests.shutdown().await?;
    serving.await??;
    system.shutdown(Grace::default()).await;
    if last.contains("\"result\"") { Ok(()) } else { Err("the connection did not outlive the worker".into()) }
}
