//! A board for one's own tools: every fault point a call passes, with everything that can go wrong there, and what the tools'
//! contracts promise. `cargo run --example tool_board` plays it, `cargo run --example tool_board -- list` shows it.
//!
//! This program is also the server that is struck (`serve`) and its worker process. Its tools append a line to a file for each
//! effect, which is what they are held to.

#![allow(clippy::print_stdout, reason = "an example says what it did")]

use std::error::Error;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::ExitCode;

use phone_opus::process::{Registry, armed, dispatch};
use phone_opus::testkit::scoreboard::{StruckTool, TriedServer, run_for, tool_rows};
use phone_opus::{
    Annotations, Evidence, Grace, Input, InvocationId, Isolation, Output, ProbeFuture, ReplayContract, System, Tool,
    ToolCall, ToolDefinition, ToolFuture, ToolReply, WorkerCommand,
};
use serde_json::json;

/// A tool with an effect: a line in a file of its name, with the invocation it belongs to.
struct Write {
    name: &'static str,
    contract: ReplayContract,
}

const TOOLS: [Write; 3] = [
    Write { name: "set", contract: ReplayContract::Convergent },
    Write { name: "charge", contract: ReplayContract::ProbeRequired },
    Write { name: "send", contract: ReplayContract::NeverReplay },
];

impl Tool for Write {
    fn name(&self) -> &str {
        self.name
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
            name: self.name.to_owned(),
            title: self.name.to_owned(),
            description: "Writes a line.".to_owned(),
            input_schema: json!({"type": "object"}),
            annotations: Annotations { read_only: false, destructive: false, idempotent: false, open_world: false },
            meta: None,
        }
    }

    fn contract(&self) -> ReplayContract {
        self.contract
    }

    fn probe(&self, invocation: InvocationId) -> ProbeFuture {
        let text = std::fs::read_to_string(self.name).unwrap_or_default();
        let made = text.lines().any(|line| line == invocation.to_string());
        Box::pin(async move { if made { Evidence::Accepted } else { Evidence::NotAccepted } })
    }

    fn call(&self, call: ToolCall) -> ToolFuture {
        let (name, line) = (self.name, format!("{}\n", call.invocation));
        Box::pin(async move {
            if call.evidence != Some(Evidence::Accepted) {
                let written = OpenOptions::new().create(true).append(true).open(name);
                written
                    .and_then(|mut file| file.write_all(line.as_bytes()))
                    .map_err(|error| phone_opus::Fault::new(phone_opus::FaultCode::Internal, error.to_string()))?;
            }
            Ok(ToolReply::text("written"))
        })
    }
}

fn main() -> ExitCode {
    let registry = TOOLS.into_iter().fold(Registry::new(), Registry::tool);
    if let Some(code) = dispatch(std::env::args_os(), &registry) {
        return code;
    }
    let done = match std::env::args().nth(1).as_deref() {
        Some("serve") => serve(&registry),
        word => board(word == Some("list")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The server: what a program of yours has anyway, and the plan of its environment.
#[tokio::main(flavor = "current_thread")]
async fn serve(registry: &Registry) -> Result<(), Box<dyn Error>> {
    let isolation = Isolation::Process(WorkerCommand::own_program());
    let system = System::builder().program(registry).isolation(isolation).faults(armed()?).start().await?;
    system.serve_standard(Input::stdin()?, Output::stdout()?).await?;
    system.shutdown(Grace::default()).await;
    Ok(())
}

/// The board.
#[tokio::main(flavor = "current_thread")]
async fn board(is_list: bool) -> Result<(), Box<dyn Error>> {
    let server = TriedServer::new(std::env::current_exe()?, ["serve"]).isolated();
    let tools = TOOLS.map(|tool| StruckTool::new(tool.name, tool.contract).effects(tool.name));
    if is_list {
        for row in tool_rows(&server, &tools) {
            println!("{:<60} {}, {:?} effects", row.name(), row.answer, row.effects);
        }
        return Ok(());
    }
    let scores = run_for(&server, &tools, 8, |row, score| {
        let verdict = if score.holds() { "ok" } else { "FAIL" };
        println!("{verdict:<4} {:<60} {:<18} {} effects", row.name(), score.answered, score.runs);
        score.broken.iter().for_each(|broken| println!("     {broken}"));
    })
    .await;
    let broken = scores.iter().filter(|(_, score)| !score.holds()).count();
    println!("{} rows, {broken} broken", scores.len());
    if broken == 0 && !scores.is_empty() { Ok(()) } else { Err("a promise was broken".into()) }
}
