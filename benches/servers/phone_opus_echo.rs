//! `phone-opus`: our server with the three tools of every peer, made through the library's own tool trait. With
//! `BENCH_ISOLATION=process` it is `phone-opus-process`: the tools run in a worker process, which is this program again.
//!
//! Everything else is there too, as in `phone-opus mcp serve`: jobs and their store (opened when first needed), the
//! telemetry log, all in a scratch directory. Our own tools alone are not offered, because no peer has the like.
//!
//! It owes the harness what every server here does: a tool `echo {text}` that returns the text; a panic inside the
//! tool when the text is `please panic`; a longest line of `BENCH_MAX_LINE` bytes when that is set, else the default.
//! With a path in `BENCH_LISTEN` it listens there, for many clients, until its standard input ends.
//! With `BENCH_RESTARTS=any` it never gives up on its worker and never waits before a restart, for as many kills as the
//! harness likes; without it the product's own policy holds.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use phone_opus::internals::actors::callers::{CallerContext, HostSide};
use phone_opus::internals::actors::doors::desk::{ControlDesk, ControlReply};
use phone_opus::internals::actors::doors::handle::ListenOptions;
use phone_opus::internals::actors::supervision::slot::RestartPolicy;
use phone_opus::internals::agents::{AgentRegistry, Environment};
use phone_opus::internals::base::fault::{Fault, FaultCode};
use phone_opus::internals::base::ids::{Generation, SessionNumber};
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::base::stdio::{Input, Output};
use phone_opus::internals::daemon::control::ControlMessage;
use phone_opus::internals::protocol::envelope;
use phone_opus::internals::protocol::frame::LINE_LIMIT;
use phone_opus::internals::system::{Grace, OwnTools, System, SystemBuilder};
use phone_opus::internals::tools::{
    Annotations, ReplayContract, ReplyText, Tool, ToolCall, ToolDefinition, ToolFuture, ToolReply,
};
use phone_opus::internals::worker::{self, Isolation, WorkerCommand};

/// One of the three tools every server here offers.
#[derive(Clone, Copy)]
enum BenchTool {
    /// Returns the text; it may be asked again.
    Echo,
    /// Returns the length of the text. It is never run twice, as an embedder's tool is not unless it says so.
    Sink,
    /// Returns a text of that size.
    Blob,
}

const TOOLS: [BenchTool; 3] = [BenchTool::Echo, BenchTool::Sink, BenchTool::Blob];

impl BenchTool {
    const fn argument(self) -> &'static str {
        match self {
            Self::Echo | Self::Sink => "text",
            Self::Blob => "size",
        }
    }
}

fn wrong() -> Fault {
    Fault::new(FaultCode::InvalidInput, "the argument is missing or of another type.")
}

impl Tool for BenchTool {
    fn name(&self) -> &str {
        match self {
            Self::Echo => "echo",
            Self::Sink => "sink",
            Self::Blob => "blob",
        }
    }

    fn definition(&self) -> ToolDefinition {
        let (title, description, kind) = match self {
            Self::Echo => ("Echo", "Returns the text.", "string"),
            Self::Sink => ("Sink", "Returns the length of the text.", "string"),
            Self::Blob => ("Blob", "Returns a text of that size.", "integer"),
        };
        let name = self.argument();
        ToolDefinition {
            name: self.name().to_owned(),
            title: title.to_owned(),
            description: description.to_owned(),
            input_schema: serde_json::json!({
                "type": "object", "properties": {name: {"type": kind}}, "required": [name]
            }),
            annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
            meta: None,
        }
    }

    fn contract(&self) -> ReplayContract {
        match self {
            Self::Echo | Self::Blob => ReplayContract::Convergent,
            Self::Sink => ReplayContract::NeverReplay,
        }
    }

    fn call(&self, call: ToolCall) -> ToolFuture {
        let tool = *self;
        Box::pin(async move {
            let json = std::str::from_utf8(&call.arguments).map_err(|_| wrong())?;
            let [argument] = envelope::object(json, [tool.argument()]).map_err(|_| wrong())?;
            let argument = argument.ok_or_else(wrong)?;
            match tool {
                Self::Echo => {
                    if !argument.starts_with('"') {
                        return Err(wrong());
                    }
                    if argument == "\"please panic\"" {
                        asked_to_panic();
                    }
                    // The string goes out as it came in: a slice of the request's line.
                    let text = ReplyText::Json(call.arguments.slice_ref(argument.as_bytes()));
                    Ok(ToolReply { text, ..ToolReply::default() })
                }
                Self::Sink => {
                    let text = envelope::string(argument).ok_or_else(wrong)?;
                    Ok(ToolReply::text(text.len().to_string()))
                }
                Self::Blob => Ok(ToolReply::text("x".repeat(argument.parse().map_err(|_| wrong())?))),
            }
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
        .restart_policy(restarts())
        .own_tools(OwnTools::None)
        .line_limit(limit);
    let builder = TOOLS.into_iter().fold(builder, SystemBuilder::tool);
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
        if let Some(path) = std::env::var_os("BENCH_LISTEN") {
            let listening = UnixListener::bind(path)
                .and_then(|listener| listener.set_nonblocking(true).map(|()| OwnedFd::from(listener)))
                .map_err(|error| Fault::new(FaultCode::Internal, error.to_string()))
                .and_then(|listener| {
                    system.listen_at(listener, ListenOptions { desk: Arc::new(NoDesk), context: base() })
                });
            if let Err(fault) = listening {
                return failed("the socket", &fault);
            }
        }
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

/// Whose every connection by the socket is.
fn base() -> CallerContext {
    let agents = AgentRegistry::standard(None, std::env::current_exe().unwrap_or_default());
    HostSide::new(Arc::default(), Environment::capture(), agents).base()
}

/// Nobody says anything beside JSON-RPC here.
struct NoDesk;

impl ControlDesk for NoDesk {
    fn control(&self, _session: SessionNumber, _message: ControlMessage, reply: ControlReply) {
        drop(reply);
    }
}

fn isolation(program: std::path::PathBuf) -> Isolation {
    match std::env::var("BENCH_ISOLATION").as_deref() {
        Ok("process") => Isolation::Process(WorkerCommand { program, args: vec!["worker".into()], env: None }),
        _ => Isolation::InProcess,
    }
}

fn restarts() -> RestartPolicy {
    match std::env::var("BENCH_RESTARTS").as_deref() {
        Ok("any") => RestartPolicy { intensity: usize::MAX, backoff: Duration::ZERO, ..RestartPolicy::default() },
        _ => RestartPolicy::default(),
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
        let tools = TOOLS.map(|tool| -> Arc<dyn Tool> { Arc::new(tool) });
        match worker::serve(generation, tools, phone_opus::internals::failpoints::Faults::none(), input, output).await {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => failed("the worker", &error),
        }
    })
}
