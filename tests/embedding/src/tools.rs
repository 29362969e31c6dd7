//! Tools of the program's own: one with an effect that must not happen twice, one that takes its process along.
//!
//! Owns: the book. May not know: who calls, and which worker runs it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use phone_opus::{
    Annotations, Evidence, InvocationId, ProbeFuture, ReplayContract, Tool, ToolCall, ToolDefinition, ToolFuture,
    ToolReply,
};
use serde_json::json;

/// The bookings, and how often each was made.
#[derive(Clone, Default)]
pub struct Book(Arc<Mutex<BTreeMap<String, usize>>>);

impl Book {
    pub fn bookings(&self) -> Vec<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().copied().collect()
    }

    fn enter(&self, invocation: InvocationId) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(invocation.to_string()).or_default() += 1;
    }

    fn has(&self, invocation: InvocationId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&invocation.to_string())
    }
}

/// `charge`: books, and answers with the generation of its worker.
pub struct Charge(pub Book);

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
            call.progress.report(1.0, "booking".to_owned());
            if call.evidence != Some(Evidence::Accepted) {
                book.enter(call.invocation);
            }
            Ok(ToolReply::text(format!("booked by worker {}", call.generation)))
        })
    }
}

/// `abort`: ends the process it runs in.
pub struct Abort;

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
