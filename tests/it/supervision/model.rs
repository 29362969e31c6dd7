//! The model test: the real actors, random faults, a paused clock.
//!
//! A seed makes a fault plan and a workload: clients that call convergent, never-replayed, probed and host tools, ping,
//! list, cancel and talk nonsense, while panics, errors, losses and delays strike every point that exists inside one
//! process. After every step the laws that hold at any time are checked, at the end all of them; and the same seed must
//! come out the same. A seed that fails is printed with its plan; put it into `SEEDS_THAT_FAILED`.
//!
//! What a run says is only as good as the faults that struck in it, so the test also demands that every point it arms
//! has fired somewhere.
//!
//! Laws: L1, L2, L5, L8, L11, L16.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use phone_opus::internals::failpoints::{Ends, FaultCounters, FaultPlan, Faults};
use phone_opus::internals::system::{Grace, Shutdown, System};
use phone_opus::internals::tools::{Evidence, ReplayContract, ToolReply};
use phone_opus::testkit::invariants::{
    invariant_attempts_follow_their_contract, invariant_effects_happen_once, invariant_generations_never_go_back,
};
use phone_opus::testkit::tools::{Tally, TestTool};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, WriteHalf};

/// Seeds that once failed; they run first.
const SEEDS_THAT_FAILED: &[u64] = &[568, 1033];

/// Seeds under the paused clock, each run twice; requests per seed.
const SEEDS: u64 = 2000;
const REQUESTS: usize = 60;

/// Longest a request may stay without an answer, on whatever clock runs.
const PATIENCE: Duration = Duration::from_secs(600);

// --- faults ------------------------------------------------------------------------------------------------------

/// Rules that make sense inside one process, with the operations they are about. `{n}` becomes a small number.
const RULES: &[&str] = &[
    "stdio.read#{n}=panic",
    "stdio.read#{n}=delay:{n}",
    "stdio.write#{n}=panic",
    "stdio.write#{n}=delay:{n}",
    "session.dispatch#{n}=panic",
    "session.dispatch@tools/call:{tool}#{n}=drop",
    "session.dispatch@tools/call:{tool}#{n}=error",
    "session.dispatch#{n}=delay:{n}",
    "ledger.record#{n}=panic",
    "ledger.record@tools/call:{tool}#{n}=error",
    "worker.start#{few}=panic",
    "worker.start#{few}=error",
    "worker.start#{few}=delay:{n}",
    "worker.before_execute@tools/call:{tool}#{n}=panic",
    "worker.before_execute@tools/call:{tool}#{n}=error",
    "worker.before_execute@tools/call:{tool}#{n}=drop",
    "worker.before_execute#{n}=delay:{n}",
    "worker.before_execute@tools/call:{tool}#{n}=hang",
    "worker.before_execute#p0.05=panic",
    "worker.before_reply@tools/call:{tool}#{n}=panic",
    "worker.before_reply@tools/call:{tool}#{n}=error",
    "worker.before_reply@tools/call:{tool}#{n}=drop",
    "worker.before_reply#p0.05=panic",
    "worker.before_reply#{n}=delay:{n}",
    "worker.after_reply#{n}=panic",
    "worker.after_reply#{n}=error",
    "worker.after_reply#p0.03=panic",
    "workers.supervise#{few}=panic",
    "workers.supervise@up#{few}=error",
    "workers.supervise@gone=panic",
    "sessions.supervise#{few}=panic",
    "sessions.supervise@opened#{few}=error",
    "jobs.supervise#{few}=panic",
    "jobs.supervise@withdrawn=error",
    "telemetry.write#{few}=panic",
    "telemetry.write#*=drop",
];

/// Sessions are given up after three panics in a minute, and parts after four; a plan stays below that, so that a
/// connection that ends is a broken law.
fn plan(rng: &mut Rng) -> String {
    let mut rules = Vec::new();
    let mut strikes = BTreeMap::from([("session", 0), ("part", 0)]);
    for _ in 0..rng.usize(0..=5) {
        let rule = RULES[rng.usize(0..RULES.len())];
        let level = match rule.split('.').next() {
            Some("stdio" | "session" | "ledger") => "session",
            Some("workers" | "sessions" | "jobs") => "part",
            _ => "below",
        };
        let strikes = strikes.entry(level).or_default();
        if level != "below" && *strikes == 2 {
            continue;
        }
        *strikes += 1;
        let tool = ["echo", "slow", "counter", "probed"][rng.usize(0..4)];
        let rule = rule
            .replace("{n}", &rng.usize(1..=20).to_string())
            .replace("{few}", &rng.usize(1..=3).to_string())
            .replace("{tool}", tool);
        rules.push(rule);
    }
    rules.join(";")
}

// --- tools -------------------------------------------------------------------------------------------------------

struct Tools {
    echo: TestTool,
    slow: TestTool,
    counter: TestTool,
    probed: TestTool,
    host: TestTool,
    /// What `counter` and `probed` did to the world.
    effects: [Tally; 2],
}

fn number(arguments: &[u8], field: &str) -> u64 {
    let value: Value = serde_json::from_slice(arguments).expect("the arguments are ours");
    value[field].as_u64().unwrap_or(0)
}

fn text(arguments: &[u8]) -> String {
    String::from_utf8_lossy(arguments).into_owned()
}

/// Waits as long as the call says, in pieces.
async fn wait(arguments: &[u8]) {
    let wait = number(arguments, "wait_ms");
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(wait / 2)).await;
    }
}

fn tools(deadline: Duration) -> Tools {
    let effects = [Tally::new(), Tally::new()];
    let echo =
        TestTool::new("echo", |_, call| Box::pin(std::future::ready(Ok(ToolReply::text(text(&call.arguments))))));
    let slow = TestTool::new("slow", |_, call| {
        Box::pin(async move {
            wait(&call.arguments).await;
            Ok(ToolReply::text(text(&call.arguments)))
        })
    });
    let book = effects[0].clone();
    let counter = TestTool::new("counter", move |_, call| {
        let book = book.clone();
        Box::pin(async move {
            wait(&call.arguments).await;
            book.count(call.invocation, call.generation);
            wait(&call.arguments).await;
            Ok(ToolReply::text(text(&call.arguments)))
        })
    });
    // What an effect leaves behind is found by whoever looks, however it was interrupted.
    let book = effects[1].clone();
    let probed = TestTool::new("probed", move |_, call| {
        let book = book.clone();
        Box::pin(async move {
            wait(&call.arguments).await;
            if call.evidence != Some(Evidence::Accepted) {
                book.count(call.invocation, call.generation);
            }
            wait(&call.arguments).await;
            Ok(ToolReply::text(text(&call.arguments)))
        })
    });
    let host = TestTool::new("host", |_, call| {
        Box::pin(async move {
            wait(&call.arguments).await;
            Ok(ToolReply::text(text(&call.arguments)))
        })
    });
    Tools {
        echo: echo.under(ReplayContract::Convergent).within(deadline),
        slow: slow.under(ReplayContract::Convergent).within(deadline),
        counter: counter.within(deadline),
        probed: probed.under(ReplayContract::ProbeRequired).probing(&effects[1]).within(deadline),
        host: host.in_the_host().within(deadline),
        effects,
    }
}

// --- clients -----------------------------------------------------------------------------------------------------

/// What one client was sent, by the text of the request's id.
#[derive(Default)]
struct Heard {
    answers: BTreeMap<u64, Vec<Value>>,
    broken: Vec<String>,
    over: bool,
}

struct TestClient {
    input: Option<WriteHalf<DuplexStream>>,
    heard: Arc<Mutex<Heard>>,
    sent: BTreeMap<u64, String>,
    cancelled: BTreeSet<u64>,
}

fn look<T>(heard: &Mutex<Heard>, at: impl FnOnce(&mut Heard) -> T) -> T {
    at(&mut heard.lock().unwrap_or_else(PoisonError::into_inner))
}

impl TestClient {
    fn connect(system: &System) -> Self {
        let (ours, theirs) = tokio::io::duplex(256 * 1024);
        let (input, output) = tokio::io::split(theirs);
        let system = system.clone();
        tokio::spawn(async move { system.serve(input, output).await });
        let (output, input) = tokio::io::split(ours);
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let inbox = Arc::clone(&heard);
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                look(&inbox, |heard| match serde_json::from_str::<Value>(&line) {
                    Ok(message) => match message["id"].as_u64() {
                        Some(id) => heard.answers.entry(id).or_default().push(message),
                        None if message["id"].is_null() && message.get("error").is_some() => {}
                        None => heard.broken.push(line),
                    },
                    Err(_) => heard.broken.push(line),
                });
            }
            look(&inbox, |heard| heard.over = true);
        });
        Self { input: Some(input), heard, sent: BTreeMap::new(), cancelled: BTreeSet::new() }
    }

    async fn line(&mut self, line: &str) {
        let input = self.input.as_mut().expect("the client is there");
        input.write_all(line.as_bytes()).await.expect("the connection is open");
        input.write_all(b"\n").await.expect("the connection is open");
    }

    async fn request(&mut self, method: &str, params: Value, expected: String) -> u64 {
        let id = self.sent.len() as u64;
        self.sent.insert(id, expected);
        self.line(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()).await;
        id
    }

    fn is_answered(&self, id: u64) -> bool {
        look(&self.heard, |heard| heard.answers.contains_key(&id))
    }

    /// The laws that hold at any time.
    fn check(&self) -> Result<(), String> {
        look(&self.heard, |heard| {
            if !heard.broken.is_empty() {
                return Err(format!("L11: {:?}", heard.broken));
            }
            if heard.over && self.input.is_some() {
                return Err("L8: the connection was closed".to_owned());
            }
            for (id, answers) in &heard.answers {
                let Some(expected) = self.sent.get(id) else { return Err(format!("L1: an answer to {id}, unasked")) };
                if answers.len() > 1 {
                    return Err(format!("L1: {} answers to {id}: {answers:?}", answers.len()));
                }
                let text = answers[0]["result"]["content"][0]["text"].as_str().unwrap_or_default();
                if !expected.is_empty() && outcome(&answers[0]) == "ok" && text != expected {
                    return Err(format!("the answer to {id} is {text}, not {expected}"));
                }
            }
            Ok(())
        })
    }

    /// What still waits for an answer.
    fn open(&self) -> Vec<u64> {
        look(&self.heard, |heard| {
            let waits = |id: &&u64| !heard.answers.contains_key(id) && !self.cancelled.contains(id);
            self.sent.keys().filter(waits).copied().collect()
        })
    }
}

/// How a request came out, in a word.
fn outcome(answer: &Value) -> String {
    let structured = &answer["result"]["structuredContent"]["fault"]["code"];
    match (structured.as_str(), answer["error"]["code"].as_i64()) {
        (Some(code), _) => code.to_owned(),
        (None, Some(code)) => code.to_string(),
        (None, None) => "ok".to_owned(),
    }
}

// --- a run -------------------------------------------------------------------------------------------------------

/// Everything a run can be judged by.
struct Ran {
    /// The outcome of each request, in order: the same for the same seed.
    digest: String,
    fired: Vec<String>,
}

async fn run(seed: u64, deadline: Duration) -> Result<Ran, String> {
    let mut rng = Rng::with_seed(seed);
    let plan = plan(&mut rng);
    let faults = FaultPlan::parse(&plan, seed).expect("the rules are written well");
    let faults = Faults::arm(faults, Ends::Nothing, FaultCounters::Memory).expect("armed");
    let told = |law: String| format!("seed {seed}, plan {plan:?}: {law}");
    let tools = tools(deadline);
    let system = System::builder()
        .faults(faults.clone())
        .tool(tools.echo.clone())
        .tool(tools.slow.clone())
        .tool(tools.counter.clone())
        .tool(tools.probed.clone())
        .tool(tools.host.clone())
        .start()
        .await
        .expect("a system");
    let mut clients: Vec<TestClient> = Vec::new();
    for _ in 0..rng.usize(1..=3) {
        let mut client = TestClient::connect(&system);
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}});
        client.request("initialize", params, String::new()).await;
        clients.push(client);
    }
    for n in 0..REQUESTS {
        let which = rng.usize(0..clients.len());
        let client = &mut clients[which];
        step(client, n, &mut rng).await;
        if rng.u8(0..3) == 0 {
            tokio::time::sleep(Duration::from_millis(rng.u64(0..30))).await;
        }
        for client in &clients {
            client.check().map_err(told)?;
        }
        let broken = system.health().gauges.broken_laws();
        if !broken.is_empty() {
            return Err(told(format!("after request {n}: {broken:?}")));
        }
    }
    // Everything that is owed comes, and what was withdrawn is let go of.
    let until = tokio::time::Instant::now() + PATIENCE;
    let in_flight = || system.health().gauges.in_flight.load(std::sync::atomic::Ordering::SeqCst);
    while clients.iter().any(|client| !client.open().is_empty()) || in_flight() > 0 {
        if tokio::time::Instant::now() >= until {
            let open: Vec<Vec<u64>> = clients.iter().map(TestClient::open).collect();
            return Err(told(format!("L1: no answer to {open:?}, and {} calls in ledgers", in_flight())));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for client in &mut clients {
        client.check().map_err(told)?;
        let mut input = client.input.take().expect("it was open");
        input.shutdown().await.expect("closed");
    }
    let down = system.shutdown(Grace::default()).await;
    if !matches!(down, Shutdown::InOrder) {
        return Err(told(format!("the system ended {down:?}")));
    }
    for client in &clients {
        client.check().map_err(told)?;
    }
    laws(&tools).map_err(told)?;
    let digest = digest(&clients);
    let excused = faults.fired().iter().any(|fired| fired.rule.ends_with("hang"));
    if digest.contains("deadline_exceeded") && !excused {
        return Err(told(format!("a call was forgotten until its deadline: {digest}")));
    }
    let broken = system.health().gauges.broken_laws();
    if !broken.is_empty() {
        return Err(told(format!("at the end: {broken:?}")));
    }
    Ok(Ran { digest, fired: faults.fired().into_iter().map(|fired| fired.rule).collect() })
}

async fn step(client: &mut TestClient, n: usize, rng: &mut Rng) {
    let wait = [0, 0, 1, 5, 40][rng.usize(0..5)];
    let arguments = json!({"n": n, "wait_ms": wait});
    let tool = match rng.usize(0..100) {
        0..30 => "echo",
        30..50 => "slow",
        50..65 => "counter",
        65..80 => "probed",
        80..86 => "host",
        86..90 => {
            client.request("ping", json!({}), String::new()).await;
            return;
        }
        90..92 => {
            client.request("tools/list", json!({}), String::new()).await;
            return;
        }
        92..94 => {
            client.request("no/such/method", json!({}), String::new()).await;
            return;
        }
        94..96 => {
            client.line("this is no message").await;
            return;
        }
        _ => {
            let open = client.open();
            if let Some(id) = open.get(rng.usize(0..open.len().max(1))).copied().filter(|id| *id > 0) {
                let params = json!({"requestId": id});
                let note = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params});
                client.line(&note.to_string()).await;
                if !client.is_answered(id) {
                    client.cancelled.insert(id);
                }
            }
            return;
        }
    };
    let expected = arguments.to_string();
    client.request("tools/call", json!({"name": tool, "arguments": arguments}), expected).await;
}

fn laws(tools: &Tools) -> Result<(), String> {
    for tool in [&tools.echo, &tools.slow, &tools.counter, &tools.probed] {
        let generations: Vec<u64> = tool.attempts().entries().iter().map(|entry| entry.generation.0).collect();
        invariant_generations_never_go_back(&generations).map_err(|violation| violation.to_string())?;
    }
    let contracts = [
        (ReplayContract::Convergent, &tools.echo),
        (ReplayContract::Convergent, &tools.slow),
        (ReplayContract::NeverReplay, &tools.counter),
    ];
    for (contract, tool) in contracts {
        invariant_attempts_follow_their_contract(contract, &tool.attempts())
            .map_err(|violation| violation.to_string())?;
    }
    for effects in &tools.effects {
        invariant_effects_happen_once(effects).map_err(|violation| violation.to_string())?;
    }
    Ok(())
}

fn digest(clients: &[TestClient]) -> String {
    let mut digest = String::new();
    for client in clients {
        look(&client.heard, |heard| {
            for id in client.sent.keys() {
                let outcome = match heard.answers.get(id) {
                    // Whether an answer or a cancel is first is decided in the same order each time.
                    Some(answers) => outcome(&answers[0]),
                    None => "silence".to_owned(),
                };
                let _ = write!(digest, "{id}:{outcome} ");
            }
        });
        digest.push('\n');
    }
    digest
}

/// A run on a runtime of its own, after which nothing is left of it.
fn alone(seed: u64) -> Result<Ran, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    let ran = runtime.block_on(async {
        let ran = run(seed, Duration::from_secs(30)).await?;
        // Whoever was told to end has its turn to do so.
        for _ in 0..1000 {
            if tokio::runtime::Handle::current().metrics().num_alive_tasks() == 0 {
                return Ok(ran);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let left = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        Err(format!("seed {seed}: {left} tasks are left"))
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    ran
}

/// Panics by the hundred are what is wanted here; each would print its place.
fn quietly() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let planned = info.payload_as_str().is_some_and(|text| text.starts_with("fault point"));
            if !planned {
                hook(info);
            }
        }));
    });
}

#[test]
fn two_thousand_seeds_of_random_faults_break_no_law_and_come_out_the_same_twice() {
    quietly();
    let one = std::env::var("PHONE_OPUS_MODEL_SEED").ok().and_then(|text| text.parse().ok());
    if let Some(seed) = one {
        // One seed, with everything the parts say about it.
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).without_time().init();
        println!("{}", alone(seed).unwrap_or_else(|law| panic!("{law}")).digest);
        return;
    }
    let began = Instant::now();
    let seeds: u64 = std::env::var("PHONE_OPUS_MODEL_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let threads = std::thread::available_parallelism().map_or(2, |threads| threads.get().min(8)) as u64;
    let run_all = |thread: u64| {
        let mut fired: BTreeMap<String, usize> = BTreeMap::new();
        let mine = SEEDS_THAT_FAILED.iter().copied().chain(0..seeds).filter(|seed| seed % threads == thread);
        for seed in mine {
            let first = alone(seed).unwrap_or_else(|law| panic!("{law}"));
            let second = alone(seed).unwrap_or_else(|law| panic!("{law}"));
            assert_eq!(first.digest, second.digest, "seed {seed} came out differently");
            for rule in first.fired {
                *fired.entry(point(&rule).to_owned()).or_default() += 1;
            }
        }
        fired
    };
    let fired = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run_all(thread))).collect();
        let mut fired: BTreeMap<String, usize> = BTreeMap::new();
        for thread in running {
            for (point, count) in thread.join().expect("no law was broken") {
                *fired.entry(point).or_default() += count;
            }
        }
        fired
    });
    println!("{seeds} seeds x {REQUESTS} requests, twice, in {:?}; rules that fired: {fired:?}", began.elapsed());
    for rule in RULES {
        assert!(seeds < SEEDS || fired.contains_key(point(rule)), "{} never fired", point(rule));
    }
}

/// The point of a rule.
fn point(rule: &str) -> &str {
    rule.split(['@', '#', '=']).next().unwrap_or_default()
}

#[test]
fn the_same_laws_hold_on_two_threads_and_in_real_time() {
    quietly();
    for seed in 0..40 {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let ran = runtime.block_on(async { tokio::spawn(run(seed, Duration::from_secs(1))).await });
        runtime.shutdown_timeout(Duration::from_secs(1));
        let ran = ran.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        ran.unwrap_or_else(|law| panic!("{law}"));
    }
}
