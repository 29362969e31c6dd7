//! phone-opus lets a coding agent phone another one: an MCP server whose tool `consult` runs an agent's program read-only and
//! hands back its answer, and loses no consult and no connection when one of its parts crashes.
//!
//! The program `phone-opus` is what most people want. This library is the same actor system inside your own program: it
//! serves MCP clients on any streams, runs your tools under supervision, and takes consults from your own code. It owns no
//! globals: your program keeps its signals, its logger, its environment and its exit, and two systems can run side by side.
//!
//! A tool says what it does and when a call may be run again after a crash. A [`System`] serves it:
//!
//! ```
//! use phone_opus::{Annotations, Client, ReplayContract, ReplyText, Shutdown, System, Tool, ToolCall, ToolDefinition, ToolFuture, ToolReply};
//! use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
//!
//! struct Greet;
//!
//! impl Tool for Greet {
//!     fn name(&self) -> &str { "greet" }
//!     fn definition(&self) -> ToolDefinition {
//!         ToolDefinition {
//!             name: "greet".into(), title: "Greet".into(), description: "Says hello.".into(),
//!             input_schema: serde_json::json!({"type": "object"}),
//!             annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
//!             meta: None,
//!         }
//!     }
//!     fn contract(&self) -> ReplayContract { ReplayContract::Convergent }   // twice is as good as once
//!     fn call(&self, _: ToolCall) -> ToolFuture { Box::pin(async { Ok(ToolReply::text("Hello!")) }) }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let system = System::builder().tool(Greet).start().await?;
//! let (client, server) = tokio::io::duplex(64 * 1024);                     // or any other pair of streams
//! let (reader, writer) = tokio::io::split(server);
//! tokio::spawn({ let system = system.clone(); async move { system.serve(reader, writer).await } });
//!
//! let (answers, mut requests) = tokio::io::split(client);
//! let call = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"greet","arguments":{}}}"#;
//! # let hello = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"doc","version":"1"}}}"#;
//! # requests.write_all(format!("{hello}\n").as_bytes()).await?;
//! requests.write_all(format!("{call}\n").as_bytes()).await?;               // after the handshake
//! # let mut answers = BufReader::new(answers).lines();
//! # answers.next_line().await?;
//! let answer = answers.next_line().await?.unwrap_or_default();
//! assert!(answer.contains("Hello!"));
//!
//! let session = system.open_session(Client::new("my-runtime")).await?;     // your own code needs no protocol
//! let reply = session.call("greet", serde_json::json!({})).await?;
//! assert!(matches!(reply.text, ReplyText::Plain(text) if text == "Hello!"));
//! assert!(matches!(system.shutdown(Default::default()).await, Shutdown::InOrder));
//! # Ok(()) }
//! ```
//!
//! With a state directory and a program that runs each job, a session consults agents ([`Session::consult`]). Consults are run by
//! processes that outlive their host, and tools can have a process of their own; [`process`] makes your program all of these in
//! one line. `examples/` has a program for each, and the first page of each row begins with a few lines that compile:
//!
//! | about | begin with |
//! | --- | --- |
//! | what a system is given, and what it does | [`SystemBuilder`], [`System`] |
//! | tools of your own, and what a crash means to a call | [`Tool`], [`ReplayContract`], [`ToolCall`], [`ProgressSink`] |
//! | sessions without bytes, and typed consults | [`Session`], [`Client`], [`Consult`], [`ConsultFault`] |
//! | jobs, their events and their records | [`JobDesk`], [`JobEvents`], [`JobRecord`] |
//! | agents of your own | [`Agent`], [`AgentProfile`], [`OutputParser`], [`RunSummary`] |
//! | machines of your own, such as containers | [`machine`], [`AgentElsewhere`] |
//! | your program as runner, worker and agent | [`process`], [`Isolation`], [`serve_worker`] |
//! | your program as a server that is upgraded in place | [`serve_program`] |
//! | sockets, a ractor tree of your own, and the end | [`Listening`], [`System::actor`], [`Down`], [`Grace`] |
//! | what goes wrong, by name, and how it is made to | [`Fault`], [`FaultCode`], [`Faults`], `testkit` |

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the rooms are private, and rustdoc takes them for public because `internals` opens them"
)]

#[cfg(panic = "abort")]
compile_error!("phone-opus survives panics of its actors and must be built with panic = \"unwind\"");

#[cfg(not(unix))]
compile_error!("phone-opus runs on Linux and macOS; Windows is not supported");

// In a private room, what a name says needs no comment; `missing_docs` cannot tell a room from the front door.
mod actors;
mod agents;
mod base;
#[allow(missing_docs, reason = "see above")]
mod bridge;
#[allow(missing_docs, reason = "see above")]
mod checkout;
mod config;
mod daemon;
#[cfg(feature = "see")]
mod dashboard;
#[allow(missing_docs, reason = "see above")]
mod exec;
mod failpoints;
#[allow(missing_docs, reason = "see above")]
mod fleet;
#[allow(missing_docs, reason = "see above")]
mod jobs;
mod places;
pub mod process;
#[allow(missing_docs, reason = "see above")]
mod protocol;
#[allow(missing_docs, reason = "see above")]
mod rollout;
#[allow(missing_docs, reason = "see above")]
mod runner;
#[allow(missing_docs, reason = "see above")]
mod seen;
mod system;
#[allow(missing_docs, reason = "see above")]
mod telemetry;
#[cfg(feature = "testkit")]
pub mod testkit;
mod tools;
#[allow(missing_docs, reason = "see above")]
mod waiting;
#[allow(missing_docs, reason = "see above")]
mod worker;

pub use actors::health::HealthSource;
pub use actors::root::Down;
pub use actors::sessions::messages::SessionEnd;
pub use actors::supervision::slot::RestartPolicy;
pub use agents::{
    Agent, AgentCommand, AgentElsewhere, AgentEvent, AgentProfile, AgentRegistry, AgentResult, AgentSite, AgentSites,
    ClaudeCode, CliAgent, CodexStream, Credential, CustomAgent, CustomAgents, Environment, ExtraUsage, Offline,
    OutputParser, PayerKnown, Payment, PlainText, PrepareFuture, ResumedId, RunEnd, RunRequest, RunSummary, RunVerdict,
    SpawnFailure, Started, StopCause, StreamJson, find_program,
};
pub use base::fault::{Fault, FaultClass, FaultCode, Stage};
pub use base::ids::{
    AgentSessionId, ChainId, Generation, HostId, InvocationId, JobId, RunToken, SessionNumber, UnixMillis,
};
pub use base::state_dir::StateDir;
pub use base::stdio::{Input, Output};
pub use config::clients::ClientSettings;
pub use config::{Config, LeftOut, OtlpTarget, RolloutMode, WorkerIsolation};
pub use exec::{ExecTarget, ServerUrl, TargetWords};
pub use failpoints::{FaultPlan, Faults, Fired};
pub use fleet::{FleetAddress, Placement};
pub use jobs::client::JobsHandle;
// Of hidden verbs: the news of one job.
#[doc(hidden)]
pub use jobs::client::{Follow, News};
pub use jobs::store::{CancelState, JobFilter};
pub use jobs::{
    AskedDiff, Billing, CancelReason, CloneChanges, CloneOf, ClonePatch, ConsultRequest, JobMode, JobOutcome,
    JobRecord, JobState, JobSummary, JournalEntry, JournalEvent, PermissionDenial, RunExit,
};
pub use protocol::session::{ClientInfo, SessionLimits};
/// The actors under a system, for a tree that [`System::actor`] or [`SystemBuilder::supervised_by`] puts it into.
pub use ractor;
// Of hidden verbs: upgrades in place, which need more of a next image than can be had from here.
#[doc(hidden)]
pub use rollout::{LaunchPath, NotAdopted, RolloutSetup, Trigger};
#[doc(hidden)]
pub use system::handover::{HandOverError, HostSnapshot, NewImage};
pub use system::{
    Client, Consult, ConsultFault, ConsultOutcome, Cursor, Grace, JobDesk, JobEvent, JobEvents, Listening, OwnTools,
    Session, Shutdown, System, SystemBuilder, ToolCalling, serve_program,
};
pub use tools::progress::ProgressSink;
pub use tools::{
    Annotations, Evidence, ProbeFuture, ReplayContract, ReplyText, Target, TaskSupport, Tool, ToolCall, ToolDefinition,
    ToolFuture, ToolReply,
};
pub use worker::{Isolation, ServeError, WorkerCommand, WorkerEnd, WorkerPolicy, host_gone, serve as serve_worker};

/// Machines of a program's own: its agents run where and how it says. [`Machine`](machine::Machine) begins with what it promises.
pub mod machine {
    pub use crate::exec::machine::{
        Machine, MachineEnd, MachineError, MachineFuture, MachineProcess, MachineStart, MachineSteering,
    };
}

/// What other errors and ends are made of; each says in a sentence what was wrong.
pub mod errors {
    pub use crate::base::ids::{NotASessionId, NotAUuid};
    pub use crate::base::state_dir::StateDirError;
    pub use crate::failpoints::{ArmError, CountersError, PlanError, PlanPlace, PlanProblem};
    pub use crate::worker::executor::ToolPanicked;
}

/// The rest, for the program, the tests and the benches of this package. No API: it changes without notice.
#[doc(hidden)]
pub mod internals {
    macro_rules! open {
        ($($room:ident)*) => { $(pub mod $room { pub use crate::$room::*; })* };
    }
    #[cfg(feature = "see")]
    open! { dashboard }
    open! {
        actors agents base bridge checkout config daemon exec failpoints fleet jobs places process protocol rollout runner seen system telemetry tools
        waiting worker
    }
}
