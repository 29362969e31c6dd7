//! A test of one's own tool: its worker is taken away in each bad moment, and the effect happens once.
//!
//! In a crate of yours the loop below is the body of a `#[tokio::test]`; the kit is the feature `testkit` of the dependency,
//! which belongs into `[dev-dependencies]`. `docs/fault-injection.md` has the chapter.

#![allow(clippy::print_stdout, reason = "an example says what it did")]

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use phone_opus::testkit::TestClient;
use phone_opus::{
    Annotations, Evidence, Faults, Grace, InvocationId, ProbeFuture, ReplayContract, System, Tool, ToolCall,
    ToolDefinition, ToolFuture, ToolReply,
};
use serde_json::json;

/// What was booked, by invocation. Yours would be a table with a unique key.
#[derive(Clone, Default)]
struct Book(Arc<Mutex<(BTreeSet<String>, usize)>>);

impl Book {
    fn enter(&self, invocation: InvocationId) {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.0.insert(invocation.to_string());
        book.1 += 1;
    }

    fn has(&self, invocation: InvocationId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.contains(&invocation.to_string())
    }

    fn bookings(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// Books an amount. After a crash it is asked whether it has.
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
            Ok(ToolReply::text(format!("booked, and answered by worker {}", call.generation)))
        })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // Before the tool has begun, with the reply in its hands, and after the reply has left.
    for point in ["worker.before_execute", "worker.before_reply", "worker.after_reply"] {
        let plan = format!("{point}@tools/call:charge=panic");
        let (book, faults) = (Book::default(), Faults::armed(&plan)?);
        let system = System::builder().tool(Charge(book.clone())).faults(faults.clone()).start().await?;
        let mut client = TestClient::of(&system).greet().await;
        let reply = client.call("charge", json!({"cents": 500})).await.expect_success();
        // The connection has outlived its worker.
        client.ping().await;
        println!("{plan}: {}, {} booking", reply.text(), book.bookings());
        client.finish().await;
        system.shutdown(Grace::default()).await;
        // A test whose fault did not happen has shown nothing.
        let never_met = faults.never_met();
        if book.bookings() != 1 || !never_met.is_empty() {
            return Err(format!("{} bookings; never met: {never_met:?}", book.bookings()).into());
        }
    }
    Ok(())
}
