//! What processes cost through an exec server: ours beside `codex exec-server`, by the same client, in turns.
//!
//! Starts a second, the time to a first output, 100 MB through one process, 20 processes at once, memory at rest and under a client
//! that does not read, 500 starts at once. Figures are for reading; nothing here passes or fails. Codex is left out, with the reason,
//! where there is none (`BENCH_CODEX`, or `--codex PATH`).
//!
//! ```sh
//! cargo bench --bench exec
//! cargo bench --bench exec -- --ours target/release/phone-opus --codex PATH --rounds 3 --only E3,E7
//! ```

#![expect(clippy::print_stdout, reason = "what a bench tells")]

#[path = "common/shipped.rs"]
mod shipped;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use phone_opus::internals::exec::transport::{self, BoxRead, BoxWrite};
use phone_opus::internals::exec::{ExecTarget, TargetWords};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};

/// Anything that went wrong; the figure is left out with its words.
type Trouble = Box<dyn std::error::Error>;

/// What any one figure may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a server may be silent with requests open before it counts as stuck.
const STUCK: Duration = Duration::from_secs(10);

const MEGABYTE: usize = 1_000_000;

struct Options {
    only: Vec<String>,
    program: Option<PathBuf>,
    codex: Option<PathBuf>,
    rounds: usize,
}

impl Options {
    fn read() -> Self {
        let codex = std::env::var_os("BENCH_CODEX").map(PathBuf::from);
        let mut options = Self { only: Vec::new(), program: None, codex, rounds: 5 };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_default();
            match word.as_str() {
                "--only" => options.only = value().split(',').map(str::to_owned).collect(),
                "--program" | "--ours" => options.program = Some(value().into()),
                "--codex" => options.codex = Some(value().into()),
                "--rounds" => options.rounds = value().parse().unwrap_or(5),
                _ => {}
            }
        }
        options
    }
}

/// A figure: its name, its unit, whether more is better, and how it is taken.
struct Row {
    id: &'static str,
    name: &'static str,
    unit: &'static str,
    better: Better,
}

#[derive(Clone, Copy, PartialEq)]
enum Better {
    More,
    Less,
}

const ROWS: &[Row] = &[
    Row { id: "E1", name: "starts, one after the other", unit: "1/s", better: Better::More },
    Row { id: "E2", name: "starts, 64 in flight", unit: "1/s", better: Better::More },
    Row { id: "E3", name: "start to first output, p50", unit: "ms", better: Better::Less },
    Row { id: "E4", name: "start to first output, p99", unit: "ms", better: Better::Less },
    Row { id: "E5", name: "100 MB through one process", unit: "MB/s", better: Better::More },
    Row { id: "E6", name: "20 processes at once, 5 MB each", unit: "MB/s", better: Better::More },
    Row { id: "E7", name: "memory at rest", unit: "MB", better: Better::Less },
    Row { id: "E8", name: "memory, client does not read", unit: "MB", better: Better::Less },
    Row { id: "E9", name: "500 starts at once, to the last end", unit: "s", better: Better::Less },
];

fn main() {
    let options = Options::read();
    let mut peers: Vec<(&str, PathBuf, Vec<&str>)> = Vec::new();
    let ours = options.program.clone().map_or_else(|| shipped::build("phone-opus", &["--bin"]), Ok);
    match ours {
        Ok(program) => peers.push(("phone-opus", program, vec!["exec-server", "--listen", "ws://127.0.0.1:0"])),
        Err(error) => println!("phone-opus is left out: {error}"),
    }
    match options.codex.as_deref().filter(|path| path.exists()) {
        Some(codex) => peers.push(("codex", codex.to_owned(), vec!["exec-server", "--listen", "ws://127.0.0.1:0"])),
        None => println!("codex is left out: no program; name one by BENCH_CODEX or --codex"),
    }
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    let mut taken: HashMap<(&str, &str), Vec<Result<f64, String>>> = HashMap::new();
    for round in 0..options.rounds.max(1) {
        // In turns, and the other way round every second time.
        let order: Vec<usize> =
            if round % 2 == 0 { (0..peers.len()).collect() } else { (0..peers.len()).rev().collect() };
        for row in ROWS.iter().filter(|row| options.only.is_empty() || options.only.iter().any(|only| only == row.id)) {
            for place in &order {
                let (name, program, words) = &peers[*place];
                let figure = runtime.block_on(async {
                    let taking = take(row.id, program, words);
                    match tokio::time::timeout(PATIENCE, taking).await {
                        Ok(figure) => figure.map_err(|error| error.to_string()),
                        Err(_) => Err("took too long".to_owned()),
                    }
                });
                taken.entry((row.id, *name)).or_default().push(figure);
            }
        }
    }
    report(&peers.iter().map(|(name, ..)| *name).collect::<Vec<_>>(), &taken, options.rounds.max(1));
}

fn report(peers: &[&str], taken: &HashMap<(&str, &str), Vec<Result<f64, String>>>, rounds: usize) {
    println!("\n{rounds} rounds, medians (worst); the ratio says how many times better phone-opus is\n");
    println!("| | figure | {} | ratio |", peers.join(" | "));
    println!("| --- | --- | {}--- |", "--- | ".repeat(peers.len()));
    let mut ratios = Vec::new();
    for row in ROWS {
        let mut line = format!("| {} | {}, {} |", row.id, row.name, row.unit);
        let mut medians = Vec::new();
        for peer in peers {
            let all = taken.get(&(row.id, *peer)).map(Vec::as_slice).unwrap_or_default();
            let mut good: Vec<f64> = all.iter().filter_map(|figure| figure.as_ref().ok().copied()).collect();
            good.sort_by(f64::total_cmp);
            let bad = all.iter().find_map(|figure| figure.as_ref().err());
            let worst = if row.better == Better::More { good.first() } else { good.last() };
            let median = good.get(good.len() / 2).copied().filter(|_| bad.is_none());
            let text = match (good.get(good.len() / 2), worst, bad) {
                (Some(median), Some(worst), None) => format!("{median:.2} ({worst:.2})"),
                (Some(median), _, Some(bad)) => format!("{median:.2}; {bad}"),
                (None, _, Some(bad)) => bad.clone(),
                _ => "-".to_owned(),
            };
            let _ = write!(line, " {text} |");
            medians.push(median);
        }
        let ratio = match (medians.first().copied().flatten(), medians.get(1).copied().flatten(), row.better) {
            (Some(ours), Some(theirs), Better::More) => Some(ours / theirs),
            (Some(ours), Some(theirs), Better::Less) => Some(theirs / ours),
            _ => None,
        };
        println!("{line} {} |", ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")));
        ratios.extend(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    if let Some(median) = ratios.get(ratios.len() / 2) {
        println!("\nmedian row: {median:.2}");
    }
}

async fn take(id: &str, program: &Path, words: &[&str]) -> Result<f64, Trouble> {
    let served = Served::start(program, words)?;
    let mut client = served.open().await?;
    // One process before anything is measured.
    client.run_to_end("warm", "echo", &["x"]).await?;
    match id {
        "E1" => {
            let began = Instant::now();
            for n in 0..200 {
                client.run_to_end(&n.to_string(), "true", &[]).await?;
            }
            Ok(200.0 / began.elapsed().as_secs_f64())
        }
        "E2" => {
            let began = Instant::now();
            client.many(1000, 64, "true", &[]).await?;
            Ok(1000.0 / began.elapsed().as_secs_f64())
        }
        "E3" | "E4" => {
            let mut times = Vec::new();
            for n in 0..300 {
                times.push(client.first_output(&n.to_string()).await?.as_secs_f64() * 1000.0);
            }
            times.sort_by(f64::total_cmp);
            let place = if id == "E3" { times.len() / 2 } else { times.len() * 99 / 100 };
            Ok(times[place])
        }
        "E5" => {
            let began = Instant::now();
            client.start("p", "head", &["-c", "100000000", "/dev/zero"]).await?;
            client.until_closed(1).await?;
            client.received(100 * MEGABYTE)?;
            Ok(100.0 / began.elapsed().as_secs_f64())
        }
        "E6" => {
            let began = Instant::now();
            for n in 0..20 {
                client.ask_start(&n.to_string(), "head", &["-c", "5000000", "/dev/zero"]).await?;
            }
            client.until_closed(20).await?;
            client.received(100 * MEGABYTE)?;
            Ok(100.0 / began.elapsed().as_secs_f64())
        }
        "E7" => {
            tokio::time::sleep(Duration::from_millis(500)).await;
            served.memory()
        }
        "E8" => {
            client.start("p", "yes", &[]).await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            served.memory()
        }
        _ => {
            let began = Instant::now();
            client.many(500, 500, "true", &[]).await?;
            Ok(began.elapsed().as_secs_f64())
        }
    }
}

/// A server, ended with everything it started when it is dropped.
struct Served {
    process: Child,
    url: String,
    _home: tempfile::TempDir,
}

impl Drop for Served {
    fn drop(&mut self) {
        let pid = i32::try_from(self.process.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.process.wait();
    }
}

impl Served {
    fn start(program: &Path, words: &[&str]) -> Result<Self, Trouble> {
        let home = tempfile::tempdir()?;
        let mut process = Command::new(program)
            .args(words)
            .env("HOME", home.path())
            .env("CODEX_HOME", home.path())
            // Its memory is looked at.
            .env("PHONE_OPUS_DUMPABLE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut url = String::new();
        let output = process.stdout.take().ok_or("no output")?;
        BufReader::new(output).read_line(&mut url)?;
        Ok(Self { process, url: url.trim().to_owned(), _home: home })
    }

    async fn open(&self) -> Result<Client, Trouble> {
        let target = ExecTarget::parse(&TargetWords::Text(self.url.clone()))?;
        let (read, write, _) = transport::connect(&target, None).await?;
        let mut client = Client {
            read: tokio::io::BufReader::with_capacity(256 * 1024, read),
            write,
            line: Vec::new(),
            next: 0,
            closed: 0,
            bytes: 0,
            first: None,
        };
        client.request("initialize", json!({"clientName": "bench"})).await?;
        client.send(&json!({"method": "initialized"})).await?;
        client.flush().await?;
        Ok(client)
    }

    /// Of the server's own processes: what is theirs alone, and their share of what they share.
    fn memory(&self) -> Result<f64, Trouble> {
        let mut pids = vec![self.process.id()];
        let own = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.process.id()))?;
        // A child that runs the same program is the server too; what it runs for clients is not.
        let image = std::fs::read_link(format!("/proc/{}/exe", self.process.id()))?;
        for child in own.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            if std::fs::read_link(format!("/proc/{child}/exe")).is_ok_and(|exe| exe == image) {
                pids.push(child);
            }
        }
        let mut kilobytes = 0.0;
        for pid in pids {
            let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let share = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no memory")?;
            kilobytes += share.trim().trim_end_matches(" kB").parse::<f64>()?;
        }
        Ok(kilobytes / 1000.0)
    }
}

/// The client: it parses what is short, and counts what is long.
struct Client {
    read: tokio::io::BufReader<BoxRead>,
    write: BoxWrite,
    line: Vec<u8>,
    next: u64,
    closed: usize,
    bytes: usize,
    first: Option<Instant>,
}

/// Longer lines are output, whatever the order of their keys.
const SHORT: usize = 1024;

impl Client {
    async fn send(&mut self, message: &Value) -> Result<(), Trouble> {
        self.write.write_all(format!("{message}\n").as_bytes()).await?;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Trouble> {
        Ok(self.write.flush().await?)
    }

    /// Reads one message; its id when it is an answer.
    async fn message(&mut self) -> Result<Option<u64>, Trouble> {
        self.line.clear();
        let read = self.read.read_until(b'\n', &mut self.line);
        match tokio::time::timeout(STUCK, read).await {
            Ok(Ok(0)) => return Err("the connection ended".into()),
            Ok(read) => _ = read?,
            Err(_) => return Err(format!("stopped answering; {} processes had ended", self.closed).into()),
        }
        if self.line.len() > SHORT {
            self.first.get_or_insert_with(Instant::now);
            // Base64, and some words around it.
            self.bytes += self.line.len() * 3 / 4;
            return Ok(None);
        }
        let message: Value = serde_json::from_slice(&self.line)?;
        match message["method"].as_str() {
            Some("process/closed") => self.closed += 1,
            Some("process/output") => {
                self.first.get_or_insert_with(Instant::now);
                self.bytes += message["params"]["chunk"].as_str().map_or(0, |chunk| chunk.len() * 3 / 4);
            }
            Some(_) => {}
            None if message.get("error").is_some() => return Err(message["error"].to_string().into()),
            None => return Ok(message["id"].as_u64()),
        }
        Ok(None)
    }

    async fn request(&mut self, method: &str, params: Value) -> Result<(), Trouble> {
        self.next += 1;
        let id = self.next;
        self.send(&json!({"id": id, "method": method, "params": params})).await?;
        self.flush().await?;
        while self.message().await? != Some(id) {}
        Ok(())
    }

    fn params(process: &str, program: &str, arguments: &[&str]) -> Value {
        let argv: Vec<&str> = std::iter::once(program).chain(arguments.iter().copied()).collect();
        json!({
            "processId": process, "argv": argv, "cwd": "file:///tmp", "env": {"PATH": "/usr/bin:/bin"}, "tty": false,
            "pipeStdin": false,
        })
    }

    async fn start(&mut self, process: &str, program: &str, arguments: &[&str]) -> Result<(), Trouble> {
        self.request("process/start", Self::params(process, program, arguments)).await
    }

    async fn ask_start(&mut self, process: &str, program: &str, arguments: &[&str]) -> Result<(), Trouble> {
        self.next += 1;
        let request =
            json!({"id": self.next, "method": "process/start", "params": Self::params(process, program, arguments)});
        self.send(&request).await?;
        self.flush().await
    }

    async fn until_closed(&mut self, more: usize) -> Result<(), Trouble> {
        let wanted = self.closed.max(1) - 1 + more;
        // The first one was to warm up.
        while self.closed < wanted + 1 {
            self.message().await?;
        }
        Ok(())
    }

    async fn run_to_end(&mut self, process: &str, program: &str, arguments: &[&str]) -> Result<(), Trouble> {
        let before = self.closed;
        self.start(process, program, arguments).await?;
        while self.closed == before {
            self.message().await?;
        }
        Ok(())
    }

    /// So many processes, so many of them at once.
    async fn many(&mut self, all: usize, window: usize, program: &str, arguments: &[&str]) -> Result<(), Trouble> {
        let before = self.closed;
        let mut asked = 0;
        while self.closed - before < all {
            while asked < all && asked - (self.closed - before) < window {
                self.ask_start(&asked.to_string(), program, arguments).await?;
                asked += 1;
            }
            self.message().await?;
        }
        Ok(())
    }

    async fn first_output(&mut self, process: &str) -> Result<Duration, Trouble> {
        let before = self.closed;
        self.first = None;
        let began = Instant::now();
        self.ask_start(process, "echo", &["x"]).await?;
        while self.closed == before {
            self.message().await?;
        }
        Ok(self.first.ok_or("no output")?.duration_since(began))
    }

    fn received(&self, least: usize) -> Result<(), Trouble> {
        if self.bytes >= least { Ok(()) } else { Err(format!("{} of {least} bytes came", self.bytes).into()) }
    }
}
