//! A server of the real program, and a peer that speaks its wire by hand.
//!
//! Everything that is started carries a word of its own in its environment, by which is shown that nothing of it is left.
//!
//! Laws: L7, L20.

#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use phone_opus::internals::exec::transport::{self, BoxRead, BoxWrite, TransportGuard};
use phone_opus::internals::exec::{ExecTarget, TargetWords};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, Command};

/// What anything here may take before it counts as stuck; a debug build on a busy machine is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_phone-opus");

/// How a server is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Ws,
    Unix,
    Stdio,
}

pub(crate) const ALL: [Over; 3] = [Over::Ws, Over::Unix, Over::Stdio];

/// Waits for something, with a deadline.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain: {what}"),
    }
}

/// Looks until it holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A server and everything it started.
pub(crate) struct Served {
    /// The outer process; none over the standard streams, where each connection has its own.
    pub(crate) outer: Option<Child>,
    target: ExecTarget,
    pub(crate) word: String,
    pub(crate) scratch: tempfile::TempDir,
}

impl Served {
    pub(crate) async fn start(over: Over) -> Self {
        Self::start_with(over, &[]).await
    }

    pub(crate) async fn start_with(over: Over, more: &[&str]) -> Self {
        let scratch = tempfile::tempdir().expect("a directory");
        let word = format!("exec-{}-{:x}", std::process::id(), fastrand::u64(..));
        let socket = scratch.path().join("own").join("s");
        let listen = match over {
            Over::Ws => "ws://127.0.0.1:0".to_owned(),
            Over::Unix => format!("unix:{}", socket.display()),
            Over::Stdio => {
                let set = format!("WORD={word}");
                let argv = ["env", &set, PROGRAM, "exec-server", "--listen", "stdio"];
                let argv = argv.iter().chain(more).map(|word| (*word).to_owned()).collect();
                let target = ExecTarget::parse(&TargetWords::Program(argv)).expect("a target");
                return Self { outer: None, target, word, scratch };
            }
        };
        let mut command = Command::new(PROGRAM);
        command.args(["exec-server", "--listen", &listen]).args(more).env("WORD", &word);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut outer = command.spawn().expect("the program starts");
        let mut said = BufReader::new(outer.stdout.take().expect("its output")).lines();
        let url = soon("where it listens", said.next_line()).await.expect("a line").expect("a line");
        let target = ExecTarget::parse(&TargetWords::Text(url)).expect("a target");
        Self { outer: Some(outer), target, word, scratch }
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        match &self.target {
            ExecTarget::Ws { url } => url.authority().parse().expect("an address"),
            other => panic!("{other}"),
        }
    }

    pub(crate) fn outer_pid(&self) -> i32 {
        self.outer.as_ref().and_then(Child::id).expect("it runs").try_into().expect("a pid")
    }

    /// The process that serves, inside the one around it.
    pub(crate) fn inner_pid(&self) -> i32 {
        let outer = self.outer_pid();
        let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).expect("its children");
        children.split_whitespace().next().expect("one child").parse().expect("a pid")
    }

    pub(crate) async fn connect(&self) -> Peer {
        let (read, write, guard) =
            soon("a connection", transport::connect(&self.target, None)).await.expect("it connects");
        Peer {
            lines: BufReader::new(read).lines(),
            write,
            guard: Some(guard),
            last: 0,
            answers: Vec::new(),
            events: VecDeque::new(),
            word: self.word.clone(),
        }
    }

    /// A connection with a new session.
    pub(crate) async fn open(&self) -> Peer {
        let mut peer = self.connect().await;
        peer.call("initialize", json!({"clientName": "tests"})).await.expect("a session");
        peer.notify("initialized").await;
        peer
    }

    /// Ends it and shows that nothing of it is left.
    pub(crate) async fn end(mut self) {
        if let Some(outer) = &mut self.outer {
            let pid = rustix::process::Pid::from_raw(outer.id().expect("it runs").cast_signed()).expect("a pid");
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is there");
            let status = soon("the server ends", outer.wait()).await.expect("it ends");
            assert!(status.success(), "{status}");
        }
        self.nothing_is_left().await;
    }

    pub(crate) async fn nothing_is_left(&self) {
        until("nothing that was started is left", || marked(&self.word).is_empty()).await;
    }
}

/// The processes that carry a word in their environment.
pub(crate) fn marked(word: &str) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.windows(word.len()).any(|part| part == word.as_bytes())
    };
    pids.filter(has).collect()
}

/// One connection, by hand.
pub(crate) struct Peer {
    lines: Lines<BufReader<BoxRead>>,
    write: BoxWrite,
    guard: Option<TransportGuard>,
    last: i64,
    answers: Vec<Value>,
    pub(crate) events: VecDeque<Value>,
    word: String,
}

impl Peer {
    pub(crate) async fn raw(&mut self, line: &str) {
        soon("it takes a line", self.write.write_all(format!("{line}\n").as_bytes())).await.expect("it writes");
        soon("it takes a line", self.write.flush()).await.expect("it writes");
    }

    pub(crate) async fn notify(&mut self, method: &str) {
        self.raw(&json!({ "method": method }).to_string()).await;
    }

    /// Sends a request and does not wait.
    pub(crate) async fn ask(&mut self, method: &str, params: Value) -> i64 {
        self.last += 1;
        let id = self.last;
        self.raw(&json!({"id": id, "method": method, "params": params}).to_string()).await;
        id
    }

    /// The next message of any kind; `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        match soon("a message", self.lines.next_line()).await {
            Ok(Some(line)) => Some(serde_json::from_str(&line).expect("json")),
            Ok(None) | Err(_) => None,
        }
    }

    /// The answer to a request. What comes meanwhile is kept.
    pub(crate) async fn answer(&mut self, id: i64) -> Result<Value, i64> {
        loop {
            if let Some(at) = self.answers.iter().position(|answer| answer["id"] == json!(id)) {
                let answer = self.answers.swap_remove(at);
                return match answer.get("error") {
                    Some(error) => Err(error["code"].as_i64().expect("a code")),
                    None => Ok(answer["result"].clone()),
                };
            }
            let message = self.next().await.expect("an answer before the end");
            if message.get("id").is_some() {
                self.answers.push(message);
            } else {
                self.events.push_back(message);
            }
        }
    }

    pub(crate) async fn call(&mut self, method: &str, params: Value) -> Result<Value, i64> {
        let id = self.ask(method, params).await;
        self.answer(id).await
    }

    /// The next event of a process: its method's last word, and its parameters.
    pub(crate) async fn event(&mut self, process: &str) -> (String, Value) {
        loop {
            let of = |event: &Value| event["params"]["processId"] == json!(process);
            if let Some(at) = self.events.iter().position(of) {
                let event = self.events.remove(at).expect("it is there");
                let method = event["method"].as_str().expect("a method").trim_start_matches("process/").to_owned();
                return (method, event["params"].clone());
            }
            let message = self.next().await.expect("an event before the end");
            if message.get("id").is_some() { self.answers.push(message) } else { self.events.push_back(message) }
        }
    }

    /// What a process needs to be started; a shell with this script.
    pub(crate) fn shell(&self, process: &str, script: &str) -> Value {
        json!({
            "processId": process, "argv": ["/bin/sh", "-c", script], "cwd": "file:///tmp", "tty": false,
            "env": {"PATH": "/usr/local/bin:/usr/bin:/bin", "WORD": self.word},
        })
    }

    pub(crate) async fn start(&mut self, process: &str, script: &str) {
        let params = self.shell(process, script);
        self.call("process/start", params).await.expect("it starts");
    }

    pub(crate) async fn write(&mut self, process: &str, text: &str) -> Result<Value, i64> {
        let id = format!("w{}", self.last + 1);
        let params = json!({"processId": process, "chunk": STANDARD.encode(text), "writeId": id});
        self.call("process/write", params).await.map(|answer| answer["status"].clone())
    }

    /// Everything of a process from its first event to its last, with the laws of a session checked.
    pub(crate) async fn whole(&mut self, process: &str) -> Whole {
        self.rest(process, Whole::default()).await
    }

    /// The same, after what came before.
    pub(crate) async fn rest(&mut self, process: &str, mut whole: Whole) -> Whole {
        loop {
            let (method, params) = self.event(process).await;
            if whole.take(&method, &params) {
                return whole;
            }
        }
    }

    /// Leaves without a word.
    pub(crate) fn cut(self) {
        drop(self);
    }

    /// Leaves and waits for what it started to end.
    pub(crate) async fn leave(self) {
        let Self { lines, write, guard, .. } = self;
        drop((lines, write));
        if let Some(guard) = guard {
            guard.end().await;
        }
    }
}

/// What a process did.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub(crate) last: u64,
    pub(crate) out: Vec<u8>,
    pub(crate) err: Vec<u8>,
    pub(crate) exit: Option<i64>,
    /// Events that had been there before.
    pub(crate) again: usize,
}

impl Whole {
    /// One event, in its place. Whether it was the last.
    pub(crate) fn take(&mut self, method: &str, params: &Value) -> bool {
        let seq = params["seq"].as_u64().expect("a position");
        if seq <= self.last {
            self.again += 1;
            return false;
        }
        assert_eq!(seq, self.last + 1, "a gap before {method} {seq}");
        self.last = seq;
        match method {
            "output" => self.add(params),
            "exited" => {
                assert!(self.exit.is_none(), "a second exit");
                self.exit = Some(params["exitCode"].as_i64().expect("a code"));
                assert_eq!(params["sandboxDenied"], json!(false));
            }
            "closed" => return true,
            other => panic!("{other}"),
        }
        false
    }

    /// A piece of output.
    pub(crate) fn add(&mut self, piece: &Value) {
        let bytes = STANDARD.decode(piece["chunk"].as_str().expect("a chunk")).expect("base64");
        assert!(!bytes.is_empty() && bytes.len() <= 64 * 1024);
        match piece["stream"].as_str() {
            Some("stderr") => self.err.extend(bytes),
            _ => self.out.extend(bytes),
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

/// A file a process makes.
pub(crate) fn at(scratch: &tempfile::TempDir, name: &str) -> PathBuf {
    Path::new(scratch.path()).join(name)
}

impl Peer {
    /// A piece of a line, which the server may not take.
    pub(crate) async fn try_raw(&mut self, piece: &str) -> std::io::Result<()> {
        soon("it takes a piece", self.write.write_all(piece.as_bytes())).await?;
        soon("it takes a piece", self.write.flush()).await
    }
}
