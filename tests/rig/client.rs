//! One client of a session: writes requests, keeps everything it is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Index;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::Notify;

use super::PATIENCE;

/// The envelope of the revision without a handshake.
pub(crate) fn envelope() -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    })
}

/// Everything a client was sent.
#[derive(Default)]
struct Inbox {
    answers: BTreeMap<String, Vec<Value>>,
    notifications: Vec<Value>,
    /// What broke the rule that stdout carries whole protocol messages only.
    broken: Vec<String>,
    closed: bool,
}

/// A request that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sent(pub(crate) u64);

/// The answer to a tool call.
#[derive(Debug, Clone)]
pub(crate) struct Reply(pub(crate) Value);

impl Reply {
    /// The text block.
    pub(crate) fn text(&self) -> &str {
        self.0["result"]["content"][0]["text"].as_str().unwrap_or_default()
    }

    pub(crate) fn is_error(&self) -> bool {
        self.0["result"]["isError"] == true || self.0.get("error").is_some()
    }

    /// The code of the fault: of a call, of a failed job, of a protocol error.
    pub(crate) fn code(&self) -> &str {
        let structured = &self.0["result"]["structuredContent"];
        [&structured["fault"]["code"], &structured["code"], &self.0["error"]["data"]["code"]]
            .into_iter()
            .find_map(Value::as_str)
            .unwrap_or("none")
    }

    /// A text of the structured content.
    pub(crate) fn str(&self, field: &str) -> &str {
        self[field].as_str().unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn expect_success(self) -> Self {
        assert!(!self.is_error() && self.str("status") == "succeeded", "{:#}", self.0);
        self
    }

    #[track_caller]
    pub(crate) fn expect_fault(self, code: &str) -> Self {
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

/// One connection.
pub(crate) struct Client {
    input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    inbox: Arc<(Mutex<Inbox>, Notify)>,
    last: u64,
    /// Requests nobody may answer any more.
    silent: BTreeSet<u64>,
    /// The host's process, where it is one of its own.
    pub(crate) host: Option<tokio::process::Child>,
}

impl Client {
    pub(crate) fn new(
        output: impl AsyncRead + Send + Unpin + 'static,
        input: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        let inbox: Arc<(Mutex<Inbox>, Notify)> = Arc::default();
        let filled = Arc::clone(&inbox);
        tokio::spawn(async move {
            let mut lines = BufReader::with_capacity(64 * 1024, output);
            let mut line = Vec::new();
            loop {
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
        Self { input: Some(Box::new(input)), inbox, last: 0, silent: BTreeSet::new(), host: None }
    }

    fn inbox<T>(&self, look: impl FnOnce(&Inbox) -> T) -> T {
        look(&self.inbox.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until something the client was sent satisfies `look`.
    async fn wait_for<T>(&self, what: &str, look: impl Fn(&Inbox) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            let heard = self.inbox.1.notified();
            if let Some(found) = self.inbox(&look) {
                return found;
            }
            assert!(Instant::now() < until, "waited in vain for {what}");
            // A message between look and wait is found at the next look.
            let _ = tokio::time::timeout(Duration::from_millis(50), heard).await;
        }
    }

    /// Writes one line.
    pub(crate) async fn line(&mut self, line: &str) {
        let Some(input) = &mut self.input else { panic!("the client has hung up") };
        // A host that is gone is what some tests are about; the missing answer tells.
        let _ = input.write_all(format!("{line}\n").as_bytes()).await;
        let _ = input.flush().await;
    }

    /// Sends a request.
    pub(crate) async fn send(&mut self, method: &str, params: Value) -> Sent {
        self.last += 1;
        let request = json!({"jsonrpc": "2.0", "id": self.last, "method": method, "params": params});
        self.line(&request.to_string()).await;
        Sent(self.last)
    }

    /// Sends a tool call.
    pub(crate) async fn start(&mut self, tool: &str, arguments: Value) -> Sent {
        self.send("tools/call", json!({"name": tool, "arguments": arguments})).await
    }

    pub(crate) async fn notify(&mut self, method: &str, params: Value) {
        self.line(&json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string()).await;
    }

    /// The answer to a request.
    pub(crate) async fn answer(&self, sent: Sent) -> Value {
        let key = sent.0.to_string();
        self.wait_for(&format!("the answer to request {key}"), |inbox| inbox.answers.get(&key)?.first().cloned()).await
    }

    /// The reply to a tool call.
    pub(crate) async fn reply(&self, sent: Sent) -> Reply {
        Reply(self.answer(sent).await)
    }

    pub(crate) async fn request(&mut self, method: &str, params: Value) -> Value {
        let sent = self.send(method, params).await;
        self.answer(sent).await
    }

    pub(crate) async fn call(&mut self, tool: &str, arguments: Value) -> Reply {
        let sent = self.start(tool, arguments).await;
        self.reply(sent).await
    }

    /// A consult with nothing but a prompt.
    pub(crate) async fn consult(&mut self, prompt: &str) -> Reply {
        self.call("consult", json!({"prompt": prompt})).await
    }

    /// A background consult; returns its job.
    pub(crate) async fn consult_in_background(&mut self, prompt: &str) -> String {
        let reply = self.call("consult", json!({"prompt": prompt, "background": true})).await;
        assert!(!reply.is_error() && reply.str("mode") == "background", "{:#}", reply.0);
        reply.str("job_id").to_owned()
    }

    /// Waits for a job's end.
    pub(crate) async fn job(&mut self, job: &str) -> Reply {
        self.call("consult_job", json!({"job_id": job, "wait_s": 60})).await
    }

    /// The legacy handshake; returns the answer to `initialize`.
    pub(crate) async fn handshake(&mut self, version: &str) -> Value {
        let client = json!({"name": "rig", "version": "1"});
        let params = json!({"protocolVersion": version, "capabilities": {}, "clientInfo": client});
        let answer = self.request("initialize", params).await;
        self.notify("notifications/initialized", json!({})).await;
        answer
    }

    /// The session is alive: it answers at once.
    pub(crate) async fn ping(&mut self) {
        let answer = self.request("ping", json!({})).await;
        assert_eq!(answer["result"], json!({}));
    }

    /// Cancels a request, which nobody may answer from here on.
    pub(crate) async fn cancel(&mut self, sent: Sent) {
        self.notify("notifications/cancelled", json!({"requestId": sent.0})).await;
        self.expect_silence_about(sent).await;
    }

    /// Nobody answers this request, now or until the connection is over.
    pub(crate) async fn expect_silence_about(&mut self, sent: Sent) {
        self.silent.insert(sent.0);
        self.ping().await;
        self.inbox(|inbox| assert_eq!(inbox.answers.get(&sent.0.to_string()), None));
    }

    /// Takes the answers to a request whose id the test chose itself, by its JSON text.
    pub(crate) fn answers_to(&mut self, id: &str) -> Vec<Value> {
        self.inbox.0.lock().unwrap_or_else(PoisonError::into_inner).answers.remove(id).unwrap_or_default()
    }

    /// Notifications of this method so far.
    pub(crate) fn notifications(&self, method: &str) -> Vec<Value> {
        self.inbox(|inbox| inbox.notifications.iter().filter(|note| note["method"] == method).cloned().collect())
    }

    /// Writes bytes as they are.
    pub(crate) async fn bytes(&mut self, bytes: &[u8]) {
        let Some(input) = &mut self.input else { panic!("the client has hung up") };
        let _ = input.write_all(bytes).await;
        let _ = input.flush().await;
    }

    /// The codes of the errors that could not be tied to a request, once there are this many; they are taken.
    pub(crate) async fn errors_without_id(&mut self, count: usize) -> Vec<i64> {
        self.wait_for(&format!("{count} errors without an id"), |inbox| {
            (inbox.answers.get("null").map_or(0, Vec::len) >= count).then_some(())
        })
        .await;
        let mut inbox = self.inbox.0.lock().unwrap_or_else(PoisonError::into_inner);
        let errors = inbox.answers.remove("null").unwrap_or_default();
        errors.iter().filter_map(|error| error["error"]["code"].as_i64()).collect()
    }

    /// Ends the input.
    pub(crate) async fn hang_up(&mut self) {
        if let Some(mut input) = self.input.take() {
            // Whoever is gone needs no end of input.
            let _ = input.shutdown().await;
        }
    }

    /// Waits until the host says nothing more.
    pub(crate) async fn silence(&self) {
        self.wait_for("the end of the output", |inbox| inbox.closed.then_some(())).await;
    }

    /// Signals the host.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.host.as_ref().and_then(tokio::process::Child::id).and_then(|pid| i32::try_from(pid).ok());
        let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) else { panic!("no host to signal") };
        rustix::process::kill_process(pid, signal).expect("signalled");
    }

    /// Waits for the host's end.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        let host = self.host.as_mut().expect("a host process");
        tokio::time::timeout(PATIENCE, host.wait()).await.expect("the host ends").expect("waited")
    }

    /// Requests whose caller is gone: the connection ends before their answer.
    pub(crate) fn give_up_on(&mut self, sent: Sent) {
        self.silent.insert(sent.0);
    }

    /// L1 and L11, as the client sees them: every request got exactly one answer, the silent ones none, and every line
    /// was a whole message.
    pub(crate) fn invariant_one_answer_each(&self) {
        self.inbox(|inbox| {
            assert_eq!(inbox.broken, Vec::<String>::new());
            for id in 1..=self.last {
                let answers = inbox.answers.get(&id.to_string()).map_or(0, Vec::len);
                assert_eq!(answers, usize::from(!self.silent.contains(&id)), "answers to request {id}");
            }
            let strangers: Vec<&String> =
                inbox.answers.keys().filter(|id| id.parse().map_or(true, |id: u64| id > self.last)).collect();
            assert!(strangers.is_empty(), "answers to nothing that was asked: {strangers:?}");
        });
    }
}

impl Inbox {
    fn take(&mut self, line: &[u8]) {
        let message: Value = match serde_json::from_slice(line) {
            Ok(message) if line.ends_with(b"\n") => message,
            _ => return self.broken.push(String::from_utf8_lossy(line).chars().take(200).collect()),
        };
        if message["jsonrpc"] != "2.0" {
            self.broken.push(message.to_string());
        } else if message.get("method").is_some() {
            self.notifications.push(message);
        } else {
            self.answers.entry(message["id"].to_string()).or_default().push(message);
        }
    }
}
