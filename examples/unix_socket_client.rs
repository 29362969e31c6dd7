//! A system that listens on a Unix socket, and a client of another language: `cargo run --example unix_socket_client`.
//!
//! The client is `unix_socket_client.py` beside this file, which is run where there is a `python3`.

#![allow(clippy::print_stdout, reason = "an example says what it did")]

use std::error::Error;
use std::io::ErrorKind;

use phone_opus::{Annotations, Grace, System, Tool, ToolCall, ToolDefinition, ToolFuture, ToolReply};
use serde_json::{Value, json};

/// Says hello to whoever it is told.
struct Greet;

impl Tool for Greet {
    fn name(&self) -> &str {
        "greet"
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
            name: "greet".to_owned(),
            title: "Greet".to_owned(),
            description: "Says hello.".to_owned(),
            input_schema: json!({"type": "object", "properties": {"name": {"type": "string"}}}),
            annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
            meta: None,
        }
    }

    fn call(&self, call: ToolCall) -> ToolFuture {
        Box::pin(async move {
            let arguments: Value = serde_json::from_slice(&call.arguments).unwrap_or_default();
            Ok(ToolReply::text(format!("Hello, {}!", arguments["name"].as_str().unwrap_or("whoever you are"))))
        })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let system = System::builder().tool(Greet).start().await?;
    // Its directory is made for this user alone, and whoever comes in must be this user, by the kernel's word.
    let listening = system.listen(dir.path().join("run/socket"))?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/unix_socket_client.py");
    let client = tokio::process::Command::new("python3").arg(script).arg(listening.path()).output().await;
    system.shutdown(Grace::default()).await;
    match client {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("SKIPPED: there is no python3 here, so no client of another language has connected");
            Ok(())
        }
        Err(error) => Err(error.into()),
        Ok(client) => {
            let said = String::from_utf8_lossy(&client.stdout);
            print!("{said}{}", String::from_utf8_lossy(&client.stderr));
            if said.contains("Hello, Python!") { Ok(()) } else { Err("the client was not answered".into()) }
        }
    }
}
