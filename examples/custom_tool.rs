//! A tool with an effect that must not happen twice, and what becomes of a call whose worker crashes under it.
//!
//! `charge` books an amount. It is *probe required*: after a crash it is asked whether the booking was made, and only a call
//! that left none is run again. This program crashes the first worker after the booking, and shows that there is one.

#![allow(clippy::panic, clippy::print_stdout, reason = "an example says what it did, and crashes on purpose")]

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use phone_opus::{
    Annotations, Evidence, Grace, InvocationId, ProbeFuture, ReplayContract, System, Tool, ToolCall, ToolDefinition,
    ToolFuture, ToolReply,
};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

/// The book, by invocation. Yours would be a table with a unique key.
#[derive(Clone, Default)]
struct Book(Arc<Mutex<BTreeSet<String>>>);

impl Book {
    fn enter(&self, invocation: InvocationId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(invocation.to_string());
    }

    fn has(&self, invocation: InvocationId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&invocation.to_string())
    }

    fn entries(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

struct Charge(Book);

impl Tool for Charge {
    fn name(&self) -> &str {
        "charge"
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
            name: "charge".to_owned(),
            title: "Charge".to_owned(),
            description: "Books an amount once.".to_owned(),
            input_schema: json!({"type": "object", "properties": {"cents": {"type": "integer"}}}),
            annotations: Annotations { read_only: false, destructive: false, idempotent: false, open_world: false },
            meta: None,
        }
    }

    fn contract(&self) -> ReplayContract {
        ReplayContract::ProbeRequired
    }

    fn probe(&self, invocation: InvocationId) -> ProbeFuture {
        let made = self.0.has(invocation);
        Box::pin(async move { if made { Evidence::Accepted } else { Evidence::NotAccepted } })
    }

    fn call(&self, call: ToolCall) -> ToolFuture {
        let book = self.0.clone();
        Box::pin(async move {
            if call.evidence != Some(Evidence::Accepted) {
                book.enter(call.invocation);
            }
            if call.generation.0 == 1 {
                panic!("the first worker crashes after the booking");
            }
            Ok(ToolReply::text(format!("booked, and answered by worker {}", call.generation)))
        })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let book = Book::default();
    let system = System::builder().tool(Charge(book.clone())).start().await?;

    // A client, in the same process. Any pair of streams will do.
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
    let call = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {
        "name": "charge", "arguments": {"cents": 500}}});
    for request in [hello, call] {
        requests.write_all(format!("{request}\n").as_bytes()).await?;
        println!("{}", answers.next_line().await?.ok_or("the connection is open")?);
    }
    requests.shutdown().await?;
    serving.await??;
    system.shutdown(Grace::default()).await;
    println!("{} booking", book.entries());
    if book.entries() == 1 { Ok(()) } else { Err("the booking was made twice".into()) }
}
