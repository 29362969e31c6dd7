//! One client of a session: writes requests, keeps everything it is sent.
//!
//! Owns: the numbers of its requests, its inbox, and whether it reads. May not know: what a system is made of; it has
//! a pair of byte streams, to a host's process or to a system in this one.
//!
//! Invariants: (1) every message it is sent is kept, whatever it is, for the laws at the end; (2) an id is compared as
//! the text that was sent, byte for byte; (3) a client that was told not to read takes nothing from its stream.

#![expect(clippy::panic, clippy::expect_used, reason = "what a client waits for in vain fails the case")]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Index;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::process::Child;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::wait::{PATIENCE, Waiting};
use crate::actors::sessions::messages::SessionEnd;
use crate::base::fault::Fault;
use crate::system::System;
use crate::tools::callers::CallerContext;

/// Bytes between a client and a system in this process, each way, when nothing else is asked for.
const BUFFER: usize = 64 * 1024;

/// Characters of a message shown when a wait was in vain.
const SHOWN: usize = 300;

/// The protocol revision a client greets with when none is named.
pub const REVISION: &str = "2025-11-25";

/// The envelope of the revision without a handshake: `params._meta` of every request.
#[must_use]
pub fn envelope() -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    })
}

/// Everything a client was sent.
#[derive(Default)]
struct Inbox {
    /// By the JSON text of the id.
    answers: BTreeMap<String, Vec<Value>>,
    notifications: Vec<Value>,
    /// What broke the rule that stdout carries whole protocol messages only.
    broken: Vec<String>,
    /// The beginning of the last line.
    last: String,
    closed: bool,
}

/// A request that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sent(pub u64);

/// The answer to a tool call: the whole JSON-RPC response. Its index is a field of the structured content.
#[derive(Debug, Clone)]
pub struct Reply(pub Value);

impl Reply {
    /// The text block.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0["result"]["content"][0]["text"].as_str().unwrap_or_default()
    }

    /// Whether it is an error: of the tool or of the protocol.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.0["result"]["isError"] == true || self.0.get("error").is_some()
    }

    /// The code of the fault: of a call, of a failed job, of a protocol error; `none` without one.
    #[must_use]
    pub fn code(&self) -> &str {
        let structured = &self.0["result"]["structuredContent"];
        [&structured["fault"]["code"], &structured["code"], &self.0["error"]["data"]["code"]]
            .into_iter()
            .find_map(Value::as_str)
            .unwrap_or("none")
    }

    /// Whether the structured content has this field at all.
    #[must_use]
    pub fn has(&self, field: &str) -> bool {
        self.0["result"]["structuredContent"].get(field).is_some()
    }

    /// A text of the structured content; empty when it is not there.
    #[must_use]
    pub fn str(&self, field: &str) -> &str {
        self[field].as_str().unwrap_or_default()
    }

    /// A number of the structured content.
    ///
    /// # Panics
    ///
    /// When it is not there.
    #[must_use]
    #[track_caller]
    pub fn number(&self, field: &str) -> u64 {
        self[field].as_u64().unwrap_or_else(|| panic!("no number `{field}` in {:#}", self.0))
    }

    /// The reply, which must be no error; and, when it is about a job, of one that succeeded.
    ///
    /// # Panics
    ///
    /// When it is not.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        let as_hoped = !self.has("job_id") || self["status"] == "succeeded";
        assert!(self.is_result() && as_hoped, "not a success: {:#}", self.0);
        self
    }

    /// Whether it is the result of a tool, and no error of either kind.
    #[must_use]
    pub fn is_result(&self) -> bool {
        self.0["result"].is_object() && !self.is_error()
    }

    /// The reply, which must be this fault.
    ///
    /// # Panics
    ///
    /// When it is not.
    #[track_caller]
    pub fn expect_fault(self, code: &str) -> Self {
        assert!(self.is_error() && self.code() == code, "not {code}: {:#}", self.0);
        self
    }
}

/// A field of the structured content.
impl Index<&str> for Reply {
    type Output = Value;

    fn index(&self, field: &str) -> &Value {
        &self.0["result"]["structuredContent"][field]
    }
}

/// What a client asked and was told, for the laws.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exchange {
    /// Requests it numbered itself: 1 to this.
    pub asked: u64,
    /// Those nobody may answer: cancelled, or given up on.
    pub silent: BTreeSet<u64>,
    /// Answers by the JSON text of their id, but for those that were taken.
    pub answers: BTreeMap<String, Vec<Value>>,
    /// Lines that were no whole protocol message.
    pub broken: Vec<String>,
    /// The other side ended the connection, and nobody had asked for it.
    pub dropped: bool,
    /// Generations of the worker, in the order in which health said them to this client.
    pub generations: Vec<u64>,
    /// What telemetry said to this client, oldest first.
    pub totals: Vec<Value>,
}

/// A connection to be made to a system in this process.
#[derive(Clone)]
pub struct Connecting<'a> {
    system: &'a System,
    context: Option<CallerContext>,
    buffer: usize,
    reads: bool,
}

impl Connecting<'_> {
    /// With room for this many bytes each way.
    #[must_use]
    pub fn buffer(mut self, bytes: usize) -> Self {
        self.buffer = bytes;
        self
    }

    /// As a client that takes nothing from its stream until it is told to ([`TestClient::read_on`]).
    #[must_use]
    pub fn not_reading(mut self) -> Self {
        self.reads = false;
        self
    }

    /// As a client with a directory, an environment and a configuration of its own.
    #[must_use]
    #[doc(hidden)]
    pub fn from(mut self, context: CallerContext) -> Self {
        self.context = Some(context);
        self
    }

    /// Connects without a word.
    #[must_use]
    pub fn open(self) -> TestClient {
        let (ours, theirs) = tokio::io::duplex(self.buffer);
        let (input, output) = tokio::io::split(theirs);
        let system = self.system.clone();
        let context = self.context;
        let serving = tokio::spawn(async move {
            match context {
                Some(context) => system.serve_as(context, input, output).await,
                None => system.serve(input, output).await,
            }
        });
        let (output, input) = tokio::io::split(ours);
        let mut client = TestClient::over(output, input, self.reads);
        client.serving = Some(serving);
        client
    }

    /// Connects and greets. A client that does not read cannot hear the answer: open it and write the greeting.
    pub async fn greet(self) -> TestClient {
        let mut client = self.open();
        client.handshake(REVISION).await;
        client
    }
}

/// Makes a client read or not, while the client itself is busy elsewhere.
#[derive(Debug, Clone)]
pub struct Reading(Arc<watch::Sender<bool>>);

impl Reading {
    /// Takes nothing more from the stream; a line that is being read is read to its end.
    pub fn pause(&self) {
        self.0.send_replace(false);
    }

    /// Reads on.
    pub fn go_on(&self) {
        self.0.send_replace(true);
    }
}

/// One connection.
pub struct TestClient {
    input: Option<Box<dyn AsyncWrite + Send + Sync + Unpin>>,
    inbox: Arc<(Mutex<Inbox>, Notify)>,
    reading: Reading,
    last: u64,
    /// Requests nobody may answer any more.
    silent: BTreeSet<u64>,
    /// The host's process, where it is one of its own.
    host: Option<Child>,
    /// The connection's end, where the system is in this process.
    serving: Option<JoinHandle<Result<SessionEnd, Fault>>>,
    patience: Duration,
    generations: Vec<u64>,
    totals: Vec<Value>,
    end: End,
    /// It was cut off before it had hung up, and nobody had announced it.
    dropped: bool,
}

/// How the other side may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// After this client has hung up, and well.
    AfterUs,
    /// At any time, but well.
    Well,
    /// At any time and in any way.
    Anyhow,
}

impl TestClient {
    /// A client of whoever is at the other end of these streams.
    #[must_use]
    pub fn new(
        output: impl AsyncRead + Send + Unpin + 'static,
        input: impl AsyncWrite + Send + Sync + Unpin + 'static,
    ) -> Self {
        Self::over(output, input, true)
    }

    /// A client of a system in this process.
    #[must_use]
    pub fn of(system: &System) -> Connecting<'_> {
        Connecting { system, context: None, buffer: BUFFER, reads: true }
    }

    /// A client of a host's process, whose pipes it takes.
    ///
    /// # Panics
    ///
    /// When stdin and stdout of the process are no pipes.
    #[must_use]
    pub fn of_process(mut host: Child) -> Self {
        let (output, input) = (host.stdout.take().expect("a piped stdout"), host.stdin.take().expect("a piped stdin"));
        let mut client = Self::new(output, input);
        client.host = Some(host);
        client
    }

    fn over(
        output: impl AsyncRead + Send + Unpin + 'static,
        input: impl AsyncWrite + Send + Sync + Unpin + 'static,
        reads: bool,
    ) -> Self {
        let inbox: Arc<(Mutex<Inbox>, Notify)> = Arc::default();
        let filled = Arc::clone(&inbox);
        let (gate, mut open) = watch::channel(reads);
        tokio::spawn(async move {
            let mut lines = BufReader::with_capacity(64 * 1024, output);
            let mut line = Vec::new();
            // Nobody can tell it to read on any more when the client is gone.
            while open.wait_for(|open| *open).await.is_ok() {
                line.clear();
                let read = lines.read_until(b'\n', &mut line).await.unwrap_or(0);
                let mut inbox = filled.0.lock().unwrap_or_else(PoisonError::into_inner);
                if read == 0 {
                    inbox.closed = true;
                } else {
                    inbox.take(&line);
                }
                drop(inbox);
                filled.1.notify_waiters();
                if read == 0 {
                    return;
                }
            }
        });
        Self {
            input: Some(Box::new(input)),
            inbox,
            reading: Reading(Arc::new(gate)),
            last: 0,
            silent: BTreeSet::new(),
            host: None,
            serving: None,
            patience: PATIENCE,
            generations: Vec::new(),
            totals: Vec::new(),
            end: End::AfterUs,
            dropped: false,
        }
    }

    /// With another patience than [`PATIENCE`].
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something the client was sent satisfies `look`.
    async fn wait_for<T>(&self, what: &str, look: impl Fn(&Inbox) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            let heard = self.inbox.1.notified();
            if let Some(found) = look(&self.inbox()) {
                return found;
            }
            if began.elapsed() > self.patience {
                panic!("waited {:?} in vain for {what}; last seen: {}", self.patience, self.seen());
            }
            // A message between look and wait is found at the next look.
            let _ = tokio::time::timeout(Duration::from_millis(50), heard).await;
        }
    }

    /// What a wait in vain has seen instead.
    fn seen(&self) -> String {
        let inbox = self.inbox();
        let answers: usize = inbox.answers.values().map(Vec::len).sum();
        format!(
            "{answers} answers to {} requests and {} notifications, {}{}; the last line was {:?}",
            self.last,
            inbox.notifications.len(),
            if inbox.closed { "the output has ended" } else { "the output is open" },
            if *self.reading.0.borrow() { "" } else { " and nobody reads it" },
            inbox.last,
        )
    }

    // --- writing -------------------------------------------------------------------------------------------------

    /// Writes bytes as they are.
    ///
    /// # Panics
    ///
    /// When the client has hung up.
    pub async fn bytes(&mut self, bytes: &[u8]) {
        let Some(input) = &mut self.input else { panic!("the client has hung up") };
        // A host that is gone is what some cases are about; the missing answer tells.
        let _ = input.write_all(bytes).await;
        let _ = input.flush().await;
    }

    /// Writes one line.
    ///
    /// # Panics
    ///
    /// When the client has hung up.
    pub async fn line(&mut self, line: &str) {
        self.bytes(format!("{line}\n").as_bytes()).await;
    }

    /// Sends a request.
    ///
    /// # Panics
    ///
    /// When the client has hung up.
    pub async fn send(&mut self, method: &str, params: Value) -> Sent {
        self.last += 1;
        let request = json!({"jsonrpc": "2.0", "id": self.last, "method": method, "params": params});
        self.line(&request.to_string()).await;
        Sent(self.last)
    }

    /// Sends a tool call.
    ///
    /// # Panics
    ///
    /// When the client has hung up.
    pub async fn start(&mut self, tool: &str, arguments: Value) -> Sent {
        self.send("tools/call", json!({"name": tool, "arguments": arguments})).await
    }

    /// Sends a notification.
    ///
    /// # Panics
    ///
    /// When the client has hung up.
    pub async fn notify(&mut self, method: &str, params: Value) {
        self.line(&json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string()).await;
    }

    /// Sends the greeting of the legacy revisions and waits for nothing.
    ///
    /// # Panics
    ///
    /// When the client has hung up.
    pub async fn send_greeting(&mut self, version: &str) -> Sent {
        let client = json!({"name": "rig", "version": "1"});
        self.send("initialize", json!({"protocolVersion": version, "capabilities": {}, "clientInfo": client})).await
    }

    /// The handshake of a client that has roots; whoever is asked for them answers by [`TestClient::answer_roots`].
    ///
    /// # Panics
    ///
    /// When no answer comes.
    pub async fn handshake_with_roots(&mut self, version: &str) -> Value {
        let client = json!({"name": "rig", "version": "1"});
        let capabilities = json!({"roots": {"listChanged": true}});
        let params = json!({"protocolVersion": version, "capabilities": capabilities, "clientInfo": client});
        let answer = self.request("initialize", params).await;
        self.notify("notifications/initialized", json!({})).await;
        answer
    }

    /// Waits until the host has asked for the roots this many times, and answers the last question with these directories.
    ///
    /// # Panics
    ///
    /// When it does not ask.
    pub async fn answer_roots(&mut self, asked: usize, roots: &[&Path]) {
        let look = |inbox: &Inbox| {
            let questions = inbox.notifications.iter().filter(|note| note["method"] == "roots/list");
            questions.clone().nth(asked - 1).map(|question| question["id"].clone())
        };
        let id = self.wait_for(&format!("question {asked} for the roots"), look).await;
        let roots: Vec<Value> = roots.iter().map(|root| json!({"uri": format!("file://{}", root.display())})).collect();
        self.line(&json!({"jsonrpc": "2.0", "id": id, "result": {"roots": roots}}).to_string()).await;
    }

    // --- asking --------------------------------------------------------------------------------------------------

    /// The answer to a request.
    ///
    /// # Panics
    ///
    /// When none comes.
    pub async fn answer(&self, sent: Sent) -> Value {
        let answer = self.answer_or_end(sent).await;
        answer.unwrap_or_else(|| panic!("no answer to request {} came; last seen: {}", sent.0, self.seen()))
    }

    /// The answer to a request; `None` when the connection ends without one.
    ///
    /// # Panics
    ///
    /// When neither comes.
    pub async fn answer_or_end(&self, sent: Sent) -> Option<Value> {
        let key = sent.0.to_string();
        let look = |inbox: &Inbox| match inbox.answers.get(&key).and_then(|answers| answers.first()) {
            Some(answer) => Some(Some(answer.clone())),
            None => inbox.closed.then_some(None),
        };
        self.wait_for(&format!("the answer to request {key}"), look).await
    }

    /// Whether a request has been answered by now.
    #[must_use]
    pub fn is_answered(&self, sent: Sent) -> bool {
        self.inbox().answers.contains_key(&sent.0.to_string())
    }

    /// Whether the other side has ended the connection.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.inbox().closed
    }

    /// The reply to a tool call.
    ///
    /// # Panics
    ///
    /// When none comes.
    pub async fn reply(&self, sent: Sent) -> Reply {
        Reply(self.answer(sent).await)
    }

    /// The reply to a tool call, once: what it says is given away, and only that it came is kept for the laws. For cases
    /// whose answers are more than memory should hold.
    ///
    /// # Panics
    ///
    /// When none comes.
    pub async fn take(&self, sent: Sent) -> Reply {
        let key = sent.0.to_string();
        let look = |inbox: &Inbox| inbox.answers.contains_key(&key).then_some(());
        self.wait_for(&format!("the answer to request {key}"), look).await;
        let mut inbox = self.inbox();
        Reply(
            inbox.answers.get_mut(&key).and_then(|answers| answers.first_mut()).map(std::mem::take).unwrap_or_default(),
        )
    }

    /// The answer to a request, if it has come by now.
    #[must_use]
    pub fn answered(&self, sent: Sent) -> Option<Reply> {
        self.inbox().answers.get(&sent.0.to_string())?.first().cloned().map(Reply)
    }

    /// The answer to a request, if it comes within this time.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn answered_within(&self, sent: Sent, limit: Duration) -> Option<Reply> {
        let until = Instant::now() + limit;
        loop {
            let heard = self.inbox.1.notified();
            if let Some(reply) = self.answered(sent) {
                return Some(reply);
            }
            let left = until.checked_duration_since(Instant::now())?;
            let _ = tokio::time::timeout(left, heard).await;
        }
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Panics
    ///
    /// When none comes.
    pub async fn request(&mut self, method: &str, params: Value) -> Value {
        let sent = self.send(method, params).await;
        self.answer(sent).await
    }

    /// Calls a tool and waits for its reply.
    ///
    /// # Panics
    ///
    /// When none comes.
    pub async fn call(&mut self, tool: &str, arguments: Value) -> Reply {
        let sent = self.start(tool, arguments).await;
        self.reply(sent).await
    }

    /// A consult with nothing but a prompt.
    ///
    /// # Panics
    ///
    /// When no reply comes.
    pub async fn consult(&mut self, prompt: &str) -> Reply {
        self.call("consult", json!({"prompt": prompt})).await
    }

    /// A background consult; returns its job.
    ///
    /// # Panics
    ///
    /// When it is not accepted.
    pub async fn consult_in_background(&mut self, prompt: &str) -> String {
        let reply = self.call("consult", json!({"prompt": prompt, "background": true})).await;
        assert!(!reply.is_error() && reply.str("mode") == "background", "not accepted: {:#}", reply.0);
        reply.str("job_id").to_owned()
    }

    /// Waits for a job's end.
    ///
    /// # Panics
    ///
    /// When no reply comes.
    pub async fn job(&mut self, job: &str) -> Reply {
        self.call("consult_job", json!({"job_id": job, "wait_s": 60})).await
    }

    /// The legacy handshake; returns the answer to `initialize`.
    ///
    /// # Panics
    ///
    /// When no answer comes.
    pub async fn handshake(&mut self, version: &str) -> Value {
        let sent = self.send_greeting(version).await;
        let answer = self.answer(sent).await;
        self.notify("notifications/initialized", json!({})).await;
        answer
    }

    /// The session is alive: it answers at once.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub async fn ping(&mut self) {
        let answer = self.request("ping", json!({})).await;
        assert_eq!(answer["result"], json!({}), "the answer to a ping: {answer}");
    }

    /// `health_snapshot`, in full.
    ///
    /// # Panics
    ///
    /// When no reply comes.
    pub async fn health(&mut self) -> Reply {
        let reply = self.call("health_snapshot", json!({"detail": "full"})).await;
        self.keep(&reply);
        reply
    }

    /// Keeps what a reply says of generations and totals, for the laws.
    pub fn keep(&mut self, reply: &Reply) {
        self.generations.extend(reply["worker_generation"].as_u64());
        self.totals
            .extend(reply.0["result"]["structuredContent"].get("totals").filter(|totals| totals.is_object()).cloned());
    }

    /// The newest generation of the worker, by health; 0 while none was needed.
    ///
    /// # Panics
    ///
    /// When health does not say.
    pub async fn generation(&mut self) -> u64 {
        self.health().await.number("worker_generation")
    }

    /// Waits until a worker of this generation or a later one is there, and returns the health that said so.
    ///
    /// # Panics
    ///
    /// When none comes.
    pub async fn wait_for_generation(&mut self, generation: u64) -> Reply {
        let waiting = Waiting::until(format!("a worker of generation {generation} is there"), self.patience);
        loop {
            let health = self.health().await;
            if health["worker_alive"] == true && health["worker_generation"].as_u64() >= Some(generation) {
                return health;
            }
            waiting.again(|| format!("{:#}", health.0)).await;
        }
    }

    /// The totals of `telemetry_snapshot`: requests, successes, retries, restarts, dropped, ….
    ///
    /// # Panics
    ///
    /// When there are none.
    pub async fn totals(&mut self) -> Value {
        let reply = self.call("telemetry_snapshot", json!({})).await;
        let totals = reply["totals"].clone();
        assert!(totals.is_object(), "no totals in {:#}", reply.0);
        self.keep(&reply);
        totals
    }

    // --- silence and the end -------------------------------------------------------------------------------------

    /// Cancels a request, which nobody may answer from here on.
    ///
    /// # Panics
    ///
    /// When it has been answered.
    pub async fn cancel(&mut self, sent: Sent) {
        self.notify("notifications/cancelled", json!({"requestId": sent.0})).await;
        self.expect_silence_about(sent).await;
    }

    /// Nobody answers this request, now or until the connection is over.
    ///
    /// # Panics
    ///
    /// When it has been answered.
    pub async fn expect_silence_about(&mut self, sent: Sent) {
        self.silent.insert(sent.0);
        self.ping().await;
        assert_eq!(self.inbox().answers.get(&sent.0.to_string()), None, "an answer to a cancelled request");
    }

    /// Expects no answer to a request: the connection or the host ends before it.
    pub fn give_up_on(&mut self, sent: Sent) {
        self.silent.insert(sent.0);
    }

    /// Takes the answers to a request whose id the case chose itself, by the JSON text of the id.
    pub fn answers_to(&mut self, id: &str) -> Vec<Value> {
        self.inbox().answers.remove(id).unwrap_or_default()
    }

    /// Notifications of this method so far.
    #[must_use]
    pub fn notifications(&self, method: &str) -> Vec<Value> {
        self.inbox().notifications.iter().filter(|note| note["method"] == method).cloned().collect()
    }

    /// The codes of the errors that could not be tied to a request, once there are this many; they are taken.
    ///
    /// # Panics
    ///
    /// When there are fewer.
    pub async fn errors_without_id(&mut self, count: usize) -> Vec<i64> {
        self.wait_for(&format!("{count} errors without an id"), |inbox| {
            (inbox.answers.get("null").map_or(0, Vec::len) >= count).then_some(())
        })
        .await;
        let errors = self.answers_to("null");
        errors.iter().filter_map(|error| error["error"]["code"].as_i64()).collect()
    }

    /// Lets the client read, or not, while it is busy elsewhere.
    #[must_use]
    pub fn reading(&self) -> Reading {
        self.reading.clone()
    }

    /// Takes nothing more from the stream until [`TestClient::read_on`].
    pub fn stop_reading(&self) {
        self.reading.pause();
    }

    /// Reads on.
    pub fn read_on(&self) {
        self.reading.go_on();
    }

    /// Ends the input.
    pub async fn hang_up(&mut self) {
        if let Some(mut input) = self.input.take() {
            self.dropped = self.end == End::AfterUs && self.inbox().closed;
            // Whoever is gone needs no end of input.
            let _ = input.shutdown().await;
        }
    }

    /// Waits until nothing more is said.
    ///
    /// # Panics
    ///
    /// When the output stays open.
    pub async fn silence(&self) {
        self.wait_for("the end of the output", |inbox| inbox.closed.then_some(())).await;
    }

    /// The host may end at any time and in any way from here on: a fault plan or a signal takes it.
    pub fn expect_end(&mut self) {
        self.end = End::Anyhow;
    }

    /// The host's pid.
    ///
    /// # Panics
    ///
    /// When it has none: it is this process, or it has ended and was waited for.
    #[must_use]
    pub fn host_pid(&self) -> Pid {
        let pid = self.host.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        pid.expect("a host in a process of its own")
    }

    /// Signals the host, which may end from here on; after SIGKILL and its like, in any way.
    ///
    /// # Panics
    ///
    /// When there is no host's process.
    pub fn signal(&mut self, signal: Signal) {
        let asked = [Signal::TERM, Signal::INT, Signal::HUP];
        let harmless = [Signal::STOP, Signal::CONT];
        if !harmless.contains(&signal) {
            self.end = self.end.max(if asked.contains(&signal) { End::Well } else { End::Anyhow });
        }
        kill_process(self.host_pid(), signal).expect("the host is signalled");
    }

    /// Waits for the host's end.
    ///
    /// # Panics
    ///
    /// When it does not end.
    pub async fn exit(&mut self) -> ExitStatus {
        let host = self.host.as_mut().expect("a host in a process of its own");
        let ended = tokio::time::timeout(self.patience, host.wait()).await;
        let Ok(ended) = ended else { panic!("the host did not end in {:?}; {}", self.patience, self.seen()) };
        ended.expect("the host is waited for")
    }

    /// Waits for the end of the connection, as a system in this process tells it.
    ///
    /// # Panics
    ///
    /// When it does not end, or is a process's.
    pub async fn served(&mut self) -> Result<SessionEnd, Fault> {
        let serving = self.serving.as_mut().expect("a system in this process");
        let ended = tokio::time::timeout(self.patience, serving).await.expect("the connection ends");
        self.serving = None;
        ended.expect("serving does not panic")
    }

    /// Hangs up, waits for the end of the output and of the host, and expects both to be well unless something else
    /// was announced.
    ///
    /// # Panics
    ///
    /// When they do not end, or end badly.
    pub async fn finish(&mut self) {
        self.hang_up().await;
        if self.host.is_some() {
            let status = self.exit().await;
            assert!(status.success() || self.end == End::Anyhow, "the host ended with {status}");
        }
        self.silence().await;
    }

    /// What was asked and told so far, for the laws.
    #[must_use]
    pub fn exchange(&self) -> Exchange {
        let inbox = self.inbox();
        Exchange {
            asked: self.last,
            silent: self.silent.clone(),
            answers: inbox.answers.clone(),
            broken: inbox.broken.clone(),
            dropped: self.dropped,
            generations: self.generations.clone(),
            totals: self.totals.clone(),
        }
    }
}

/// The id of a message, as it was written.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

impl Inbox {
    fn take(&mut self, line: &[u8]) {
        self.last = String::from_utf8_lossy(&line[..line.len().min(4 * SHOWN)]).chars().take(SHOWN).collect();
        let message: Value = match serde_json::from_slice(line) {
            Ok(message) if line.ends_with(b"\n") => message,
            _ => return self.broken.push(self.last.clone()),
        };
        if message["jsonrpc"] != "2.0" {
            return self.broken.push(self.last.clone());
        }
        if message.get("method").is_some() {
            return self.notifications.push(message);
        }
        // `null` is `None` to serde, and so is an id that is missing; only the first of them is one.
        match serde_json::from_slice::<Head<'_>>(line) {
            Ok(Head { id: Some(id) }) => self.answers.entry(id.get().to_owned()).or_default().push(message),
            Ok(Head { id: None }) if message.get("id").is_some() => {
                self.answers.entry("null".to_owned()).or_default().push(message);
            }
            _ => self.broken.push(self.last.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::invariants::{invariant_one_answer_each, invariant_stdout_is_messages_only};

    /// A client that was sent this.
    async fn sent(lines: &[u8]) -> TestClient {
        let (mut theirs, ours) = tokio::io::duplex(1 << 20);
        let (output, input) = tokio::io::split(ours);
        let client = TestClient::new(output, input);
        theirs.write_all(lines).await.expect("written");
        drop(theirs);
        client.silence().await;
        client
    }

    #[tokio::test]
    async fn ids_are_kept_as_they_were_written_and_what_is_no_message_is_broken() {
        let client = sent(
            b"{\"jsonrpc\":\"2.0\",\"id\":1.0,\"result\":{}}\n{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{}}\n\
              {\"jsonrpc\":\"2.0\",\"id\":\"\\u0061\",\"result\":{}}\n{\"jsonrpc\":\"2.0\",\"method\":\"x\"}\n\
              a log line\n{\"jsonrpc\":\"2.0\",\"result\":{}}\n{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{}}",
        )
        .await;
        let exchange = client.exchange();
        assert_eq!(exchange.answers.keys().collect::<Vec<_>>(), ["\"\\u0061\"", "1.0", "null"]);
        // A log line, a response without an id, and a message without a line's end.
        assert_eq!(exchange.broken.len(), 3, "{:?}", exchange.broken);
        assert!(invariant_stdout_is_messages_only(&exchange).is_err());
        assert!(invariant_one_answer_each(&exchange).is_err());
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_takes_nothing_until_it_is_told() {
        let (mut theirs, ours) = tokio::io::duplex(16);
        let (output, input) = tokio::io::split(ours);
        let client = TestClient::over(output, input, false);
        let line = b"{\"jsonrpc\":\"2.0\",\"method\":\"note\"}\n";
        // It does not fit into the stream, so the write ends when somebody reads.
        let mut writing = tokio::spawn(async move { theirs.write_all(line).await });
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut writing).await.is_err());
        assert!(client.notifications("note").is_empty());
        client.read_on();
        writing.await.expect("no panic").expect("written");
        client.silence().await;
        assert_eq!(client.notifications("note").len(), 1);
    }

    #[tokio::test]
    #[should_panic(expected = "the answer to request 1; last seen: 0 answers to 1 requests")]
    async fn a_wait_in_vain_says_what_the_client_has_seen() {
        let (_theirs, ours) = tokio::io::duplex(1024);
        let (output, input) = tokio::io::split(ours);
        let mut client = TestClient::new(output, input).patience(Duration::from_millis(60));
        client.ping().await;
    }
}
