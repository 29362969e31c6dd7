//! What a call costs an embedding program: in a session of its own, over bytes in the same process, and over the standard streams of
//! another process; on a runtime of one thread and of several. Time of each, and allocations where they are this thread's. Then the
//! same of a consult.
//!
//! Figures are for reading, as ratios of one run; nothing here passes or fails.
//!
//! ```sh
//! cargo bench --bench embedding                               # builds the program of the consults as it is shipped
//! cargo bench --bench embedding -- --only calls
//! cargo bench --bench embedding -- --only consults --program target/release/phone-opus --count 30
//! ```

#![expect(clippy::print_stdout, reason = "what a bench tells")]

#[path = "embedding/consults.rs"]
mod consults;
#[path = "consult/floor.rs"]
#[expect(dead_code, reason = "shared with the bench of consults, which measures more")]
mod floor;
#[path = "common/shipped.rs"]
mod shipped;
#[path = "consult/world.rs"]
#[expect(dead_code, reason = "shared with the bench of consults, which measures more")]
mod world;

use std::error::Error;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use phone_opus::{
    Annotations, Client, Consult, Grace, ReplayContract, Session, System, Tool, ToolCall, ToolDefinition, ToolFuture,
    ToolReply,
};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, Lines};
use tokio::runtime::Runtime;

/// Calls of a measurement; rounds of them, in turns, of which the least disturbed counts.
const CALLS: u32 = 2_000;
const ROUNDS: usize = 7;

/// What agents are asked.
const PROMPT: &str = "hello";

/// Anything that went wrong; it ends the run with its words.
type Trouble = Box<dyn Error>;

struct Options {
    only: Vec<String>,
    program: Option<PathBuf>,
    /// Consults of each way, and of each agent.
    count: usize,
    dir: PathBuf,
    /// On how many threads this program is to serve, when it is a bench's child.
    serve: Option<usize>,
}

impl Options {
    fn read() -> Self {
        let dir = std::env::temp_dir();
        let mut options = Self { only: Vec::new(), program: None, count: 30, dir, serve: None };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_default();
            match word.as_str() {
                "--only" => options.only = value().split(',').map(str::to_owned).collect(),
                "--program" => options.program = Some(value().into()),
                "--count" => options.count = value().parse().unwrap_or(options.count),
                "--dir" => options.dir = value().into(),
                "--serve" => options.serve = value().parse().ok(),
                _ => {}
            }
        }
        options
    }

    fn wants(&self, table: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == table)
    }
}

struct Echo;

impl Tool for Echo {
    fn name(&self) -> &str {
        "echo"
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
            name: "echo".into(),
            title: String::new(),
            description: String::new(),
            input_schema: json!({"type": "object"}),
            annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
            meta: None,
        }
    }

    fn contract(&self) -> ReplayContract {
        ReplayContract::Convergent
    }

    fn call(&self, call: ToolCall) -> ToolFuture {
        let text = String::from_utf8_lossy(&call.arguments).into_owned();
        Box::pin(async { Ok(ToolReply::text(text)) })
    }
}

/// An MCP client of any streams: one request at a time.
struct Bytes {
    answers: Lines<BufReader<Box<dyn AsyncRead + Send + Unpin>>>,
    requests: Box<dyn AsyncWrite + Send + Unpin>,
    last: u64,
}

impl Bytes {
    async fn over(
        from: impl AsyncRead + Send + Unpin + 'static,
        to: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Self, Trouble> {
        let from: Box<dyn AsyncRead + Send + Unpin> = Box::new(from);
        let mut bytes = Self { answers: BufReader::new(from).lines(), requests: Box::new(to), last: 0 };
        let client = json!({"name": "bench", "version": "1"});
        let hello = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client});
        bytes.ask("initialize", &hello).await?;
        bytes.requests.write_all(b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}\n").await?;
        Ok(bytes)
    }

    async fn send(&mut self, method: &str, params: &Value) -> Result<(), Trouble> {
        self.last += 1;
        let line = json!({"jsonrpc": "2.0", "id": self.last, "method": method, "params": params});
        Ok(self.requests.write_all(format!("{line}\n").as_bytes()).await?)
    }

    async fn next(&mut self) -> Result<String, Trouble> {
        Ok(self.answers.next_line().await?.ok_or("the stream ended")?)
    }

    async fn ask(&mut self, method: &str, params: &Value) -> Result<String, Trouble> {
        self.send(method, params).await?;
        let answer = self.next().await?;
        if answer.contains("\"error\":{") { Err(answer.into()) } else { Ok(answer) }
    }

    async fn call(&mut self, tool: &str, arguments: Value) -> Result<(), Trouble> {
        self.ask("tools/call", &json!({"name": tool, "arguments": arguments})).await.map(drop)
    }

    /// One answer, read as a client reads it.
    async fn consult(&mut self, agent: &str) -> Result<(), Trouble> {
        let arguments = json!({"prompt": PROMPT, "agent": agent, "render": "json"});
        self.send("tools/call", &json!({"name": "consult", "arguments": arguments})).await?;
        loop {
            let answer: Value = serde_json::from_str(&self.next().await?)?;
            if answer["id"] == json!(self.last) {
                let status = &answer["result"]["structuredContent"]["status"];
                return if *status == json!("succeeded") { Ok(()) } else { Err(answer.to_string().into()) };
            }
        }
    }
}

/// In which way a call is made.
enum Way {
    Typed(Session),
    Streams(Bytes),
}

impl Way {
    async fn echo(&mut self) -> Result<(), Trouble> {
        match self {
            Self::Typed(session) => Ok(session.call("echo", json!({"text": "hello"})).await.map(drop)?),
            Self::Streams(bytes) => bytes.call("echo", json!({"text": "hello"})).await,
        }
    }

    async fn consult(&mut self, agent: &str) -> Result<(), Trouble> {
        match self {
            Self::Typed(session) => Ok(session.consult(Consult::new(PROMPT).agent(agent)).await.map(drop)?),
            Self::Streams(bytes) => bytes.consult(agent).await,
        }
    }
}

async fn typed(system: &System) -> Result<Way, Trouble> {
    Ok(Way::Typed(system.open_session(Client::new("bench")).await?))
}

async fn duplex(system: &System) -> Result<Way, Trouble> {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (reader, writer) = tokio::io::split(theirs);
    let system = system.clone();
    tokio::spawn(async move { system.serve(reader, writer).await.map(drop) });
    let (from, to) = tokio::io::split(ours);
    Ok(Way::Streams(Bytes::over(from, to).await?))
}

/// This program once more, as a server over its standard streams.
fn server(words: &[&str]) -> Result<tokio::process::Child, Trouble> {
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    Ok(command.spawn()?)
}

async fn stdio(child: &mut tokio::process::Child) -> Result<Way, Trouble> {
    let (from, to) = (child.stdout.take().ok_or("no stdout")?, child.stdin.take().ok_or("no stdin")?);
    Ok(Way::Streams(Bytes::over(from, to).await?))
}

/// The least time a call takes, of all rounds.
fn times(runtime: &Runtime, ways: &mut [(&'static str, Way)]) -> Result<Vec<Duration>, Trouble> {
    let mut least = vec![Duration::MAX; ways.len()];
    for _ in 0..ROUNDS {
        for (best, (_, way)) in least.iter_mut().zip(ways.iter_mut()) {
            let began = Instant::now();
            runtime.block_on(async {
                for _ in 0..CALLS {
                    way.echo().await?;
                }
                Ok::<(), Trouble>(())
            })?;
            *best = (*best).min(began.elapsed() / CALLS);
        }
    }
    Ok(least)
}

/// Allocations of a call and their bytes, on this thread: all of them where the runtime has one.
fn allocations(runtime: &Runtime, way: &mut Way) -> Result<(f64, f64), Trouble> {
    let mut ended = Ok(());
    let info = allocation_counter::measure(|| {
        ended = runtime.block_on(async {
            for _ in 0..CALLS {
                way.echo().await?;
            }
            Ok(())
        });
    });
    ended.map(|()| (info.count_total as f64 / f64::from(CALLS), info.bytes_total as f64 / f64::from(CALLS)))
}

fn runtime(threads: usize) -> std::io::Result<Runtime> {
    match threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        more => tokio::runtime::Builder::new_multi_thread().worker_threads(more).enable_all().build(),
    }
}

fn calls(threads: usize) -> Result<(), Trouble> {
    let runtime = runtime(threads)?;
    let (system, mut child) = runtime.block_on(async {
        let system = System::builder().tool(Echo).start().await?;
        Ok::<_, Trouble>((system, server(&["--serve", &threads.to_string()])?))
    })?;
    let mut ways = runtime.block_on(async {
        let ways = [("session", typed(&system).await?), ("bytes", duplex(&system).await?)];
        Ok::<_, Trouble>(ways.into_iter().chain([("stdio", stdio(&mut child).await?)]).collect::<Vec<_>>())
    })?;
    let least = times(&runtime, &mut ways)?;
    for (place, (name, way)) in ways.iter_mut().enumerate() {
        let counted = match (threads, &*name) {
            (1, &"session" | &"bytes") => {
                let (count, bytes) = allocations(&runtime, way)?;
                format!("{count:>8.1} {bytes:>8.0}")
            }
            _ => format!("{:>8} {:>8}", "-", "-"),
        };
        let (time, least) = (least[place].as_secs_f64() * 1e6, least[0].as_secs_f64() * 1e6);
        println!("{name:<10} {threads:>8} {time:>10.1} {:>8.2} {counted}", time / least);
    }
    drop(ways);
    runtime.block_on(async {
        system.shutdown(Grace::default()).await;
        let _ = child.wait().await;
    });
    Ok(())
}

/// Serves over its standard streams, on so many threads.
fn serve(threads: usize) -> Result<(), Trouble> {
    runtime(threads)?.block_on(async {
        let system = System::builder().tool(Echo).start().await?;
        system.serve_standard(phone_opus::Input::stdin()?, phone_opus::Output::stdout()?).await?;
        system.shutdown(Grace::default()).await;
        Ok(())
    })
}

fn main() -> Result<(), Trouble> {
    let options = Options::read();
    if let Some(threads) = options.serve {
        return serve(threads);
    }
    if options.wants("calls") {
        println!("{:<10} {:>8} {:>10} {:>8} {:>8} {:>8}", "call", "threads", "us a call", "ratio", "allocs", "bytes");
        for threads in [1, 2] {
            calls(threads)?;
        }
    }
    if options.wants("consults") {
        let program = options.program.map_or_else(|| shipped::build("phone-opus", &["--bin"]), Ok)?.canonicalize()?;
        consults::table(&consults::Plan { program: &program, count: options.count, dir: &options.dir })?;
    }
    Ok(())
}
