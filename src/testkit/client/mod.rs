//! One client of a session: writes requests, keeps everything it is sent.
//!
//! Owns: the numbers of its requests, its inbox, and whether it reads. May not know: what a system is made of; it has
//! a pair of byte streams, to a host's process or to a system in this one.
//!
//! Invariants: (1) every message it is sent is kept, whatever it is, for the laws at the end; (2) an id is compared as
//! the text that was sent, byte for byte; (3) a client that was told not to read takes nothing from its stream.

#![expect(clippy::panic, clippy::expect_used, reason = "what a client waits for in vain fails the case")]

mod asking;
mod connecting;
mod ending;
mod inbox;
mod reply;
mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader};
use tokio::process::Child;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

pub use self::connecting::{Connecting, Reading};
use self::inbox::Inbox;
pub use self::reply::Reply;
use super::wait::PATIENCE;
use crate::actors::sessions::messages::SessionEnd;
use crate::base::fault::Fault;
use crate::system::System;

/// Bytes between a client and a system in this process, each way, when nothing else is asked for.
const BUFFER: usize = 64 * 1024;

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

/// A request that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sent(pub u64);

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
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

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
