//! `phone-opus`: our server with one echo tool, made through the library's own tool trait.
//!
//! Everything else is there too, as in `phone-opus mcp serve`: the consult tools, the job store (opened when first
//! needed), the telemetry log, all in a scratch directory.
//!
//! It owes the harness what every server here does: one tool `echo {text}` that returns the text; a panic inside the
//! tool when the text is `please panic`; a longest line of `BENCH_MAX_LINE` bytes when that is set, else the default.
//! With `BENCH_ISOLATION=process` the tool runs in a worker process, which is this program again.

use std::process::ExitCode;
use std::sync::Arc;

use phone_opus::agents::AgentRegistry;
use phone_opus::fault::{Fault, FaultCode};
use phone_opus::ids::Generation;
use phone_opus::protocol::envelope;
use phone_opus::state_dir::StateDir;
use phone_opus::stdio::{Input, Output};
use phone_opus::system::{Grace, LINE_LIMIT, System};
use phone_opus::tools::{
    Annotations, ReplayContract, ReplyText, Tool, ToolCall, ToolDefinition, ToolFuture, ToolReply,
};
use phone_opus::worker::{self, Isolation, WorkerCommand};

struct Echo;

impl Tool for Echo {
    fn name(&self) -> &str {
        "echo"
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
            name: "echo".to_owned(),
            title: "Echo".to_owned(),
            description: "Returns the text.".to_owned(),
            input_schema: serde_json::json!({
                "type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]
            }),
            annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
            meta: None,
        }
    }

    fn contract(&self) -> ReplayContract {
        ReplayContract::Convergent
    }

    fn call(&self, call: ToolCall) -> ToolFuture {
        Box::pin(async move {
            let wrong = || Fault::new(FaultCode::InvalidInput, "`text` is missing; accepted: a string.");
            let json = std::str::from_utf8(&call.arguments).map_err(|_| wrong())?;
            let [text] = envelope::object(json, ["text"]).map_err(|_| wrong())?;
            let text = text.filter(|text| text.starts_with('"')).ok_or_else(wrong)?;
            if text == "\"please panic\"" {
                asked_to_panic();
            }
            // The string goes out as it came in: a slice of the request's line.
            let text = ReplyText::Json(call.arguments.slice_ref(text.as_bytes()));
            Ok(ToolReply { text, ..ToolReply::default() })
        })
    }
}

#[expect(clippy::panic, reason = "the harness asks for it")]
fn asked_to_panic() {
    panic!("as asked");
}

#[expect(clippy::print_stderr, reason = "the harness shows the last line of a server that cannot start")]
fn failed(what: &str, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("{what}: {error}");
    ExitCode::from(2)
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("worker") {
        let generation = arguments.nth(1).and_then(|text| text.parse().ok()).unwrap_or_default();
        return work(Generation(generation));
    }
    let limit = std::env::var("BENCH_MAX_LINE").ok().and_then(|text| text.parse().ok()).unwrap_or(LINE_LIMIT);
    let scratch = std::env::temp_dir().join(format!("phone-opus-bench-{}", std::process::id()));
    let program = std::env::current_exe().unwrap_or_default();
    let builder = System::builder()
        .state_dir(StateDir::at(&scratch))
        .agents(AgentRegistry::standard(None, program.clone()))
        .runner(program.clone())
        .isolation(isolation(program))
        .tool(Echo)
        .line_limit(limit);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed("the runtime", &error),
    };
    let code = runtime.block_on(async {
        let (input, output) = match (Input::stdin(), Output::stdout()) {
            (Ok(input), Ok(output)) => (input, output),
            (Err(error), _) | (_, Err(error)) => return failed("the standard streams", &error),
        };
        let system = match builder.start().await {
            Ok(system) => system,
            Err(fault) => return failed("the system", &fault),
        };
        let served = system.serve(input, output).await;
        system.shutdown(Grace::default()).await;
        match served {
            Ok(_) => ExitCode::SUCCESS,
            Err(fault) => failed("the session", &fault),
        }
    });
    // It is there only when something was logged or stored.
    let _ = std::fs::remove_dir_all(&scratch);
    code
}

fn isolation(program: std::path::PathBuf) -> Isolation {
    match std::env::var("BENCH_ISOLATION").as_deref() {
        Ok("process") => Isolation::Process(WorkerCommand { program, args: vec!["worker".into()], env: None }),
        _ => Isolation::InProcess,
    }
}

/// The worker process.
fn work(generation: Generation) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed("the runtime", &error),
    };
    runtime.block_on(async {
        let (input, output) = match (Input::stdin(), Output::stdout()) {
            (Ok(input), Ok(output)) => (input, output),
            (Err(error), _) | (_, Err(error)) => return failed("the standard streams", &error),
        };
        let echo: Arc<dyn Tool> = Arc::new(Echo);
        match worker::serve(generation, [echo], phone_opus::faults::Faults::none(), input, output).await {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => failed("the worker", &error),
        }
    })
}
