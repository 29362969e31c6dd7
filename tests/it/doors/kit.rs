//! A socket's door in this process, and clients of it that speak in lines.
//!
//! Owns: the scratch directory with the socket, a desk that answers every control message with its type and session.
//!
//! Laws: L11.

#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use phone_opus::internals::actors::callers::{CallerContext, HostSide};
use phone_opus::internals::actors::doors::desk::{ControlDesk, ControlReply};
use phone_opus::internals::actors::doors::handle::{DoorHandle, ListenOptions};
use phone_opus::internals::agents::{AgentRegistry, Environment};
use phone_opus::internals::base::ids::SessionNumber;
use phone_opus::internals::daemon::control::{ControlMessage, ControlRefusal};
use phone_opus::internals::daemon::listener::Listener;
use phone_opus::internals::system::{Grace, Shutdown, System, SystemBuilder};
use phone_opus::testkit::PATIENCE;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Answers `hello` with the session it was sent on, keeps the answer to `status` until it is told, panics at `drain`, loses
/// `pause`, and refuses to open a session in the directory `/refused`.
#[derive(Default)]
pub(super) struct Desk {
    kept: Mutex<Vec<ControlReply>>,
}

impl Desk {
    /// Answers every `status` so far.
    pub(super) fn answer_kept(&self) {
        for reply in self.kept.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            reply.answer(json!({"type": "status"}).to_string());
        }
    }
}

impl ControlDesk for Desk {
    fn control(&self, session: SessionNumber, message: ControlMessage, reply: ControlReply) {
        match message {
            ControlMessage::Status => self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(reply),
            ControlMessage::Pause => drop(reply),
            ControlMessage::Drain => panic!("fault point of a test: a desk that panics"),
            ControlMessage::SessionOpen(opening) if opening.cwd.ends_with("refused") => {
                reply.refuse(&ControlRefusal::new("session_open", "not there"));
            }
            message => reply.answer(json!({"type": message.name(), "session": session.0}).to_string()),
        }
    }
}

/// Whose a connection is that has not said so.
fn context() -> CallerContext {
    let agents = AgentRegistry::standard(None, "/nonexistent".into());
    HostSide::new(Arc::default(), Environment::default(), agents).base()
}

/// A system behind a socket.
pub(super) struct House {
    pub(super) system: System,
    pub(super) door: DoorHandle,
    pub(super) desk: Arc<Desk>,
    pub(super) path: PathBuf,
    scratch: tempfile::TempDir,
}

impl House {
    pub(super) async fn of(builder: SystemBuilder) -> Self {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let path = scratch.path().join("ours").join("daemon.sock");
        let system = builder.start().await.expect("a system");
        let desk = Arc::new(Desk::default());
        let listener = Listener::bind(&path).expect("it listens");
        let answering: Arc<dyn ControlDesk> = Arc::<Desk>::clone(&desk);
        let door = system.listen_at(listener, ListenOptions { desk: answering, context: context() }).expect("a door");
        Self { system, door, desk, path, scratch }
    }

    pub(super) async fn new() -> Self {
        Self::of(System::builder()).await
    }

    pub(super) async fn connect(&self) -> LineClient {
        LineClient::over(UnixStream::connect(&self.path).await.expect("it listens"))
    }

    /// Waits until there are so many connections.
    pub(super) async fn has(&self, connections: usize) {
        let mut count = self.door.connections();
        let counted = tokio::time::timeout(PATIENCE, count.wait_for(|count| *count == connections)).await;
        assert!(counted.is_ok(), "{} connections instead of {connections}", *self.door.connections().borrow());
    }

    pub(super) async fn stop(self) {
        let ended = self.system.shutdown(Grace::default()).await;
        assert!(matches!(ended, Shutdown::InOrder), "{ended:?}");
        assert_eq!(*self.door.connections().borrow(), 0);
        assert_eq!(self.system.health().gauges.broken_laws(), Vec::<String>::new());
        drop(self.scratch);
    }
}

/// A client that writes and reads lines.
pub(super) struct LineClient {
    to: OwnedWriteHalf,
    from: Lines<BufReader<OwnedReadHalf>>,
    last: u64,
}

impl LineClient {
    pub(super) fn over(stream: UnixStream) -> Self {
        let (from, to) = stream.into_split();
        Self { to, from: BufReader::new(from).lines(), last: 0 }
    }

    pub(super) async fn bytes(&mut self, bytes: &[u8]) {
        self.to.write_all(bytes).await.expect("it is taken");
    }

    pub(super) async fn line(&mut self, line: &str) {
        self.bytes(format!("{line}\n").as_bytes()).await;
    }

    /// The next line; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Value> {
        let line = tokio::time::timeout(PATIENCE, self.from.next_line()).await.expect("a line in time");
        // A peer that goes away with something unread says so in this way.
        let line = line.unwrap_or_default()?;
        Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line:?}")))
    }

    pub(super) async fn said(&mut self) -> Value {
        self.next().await.expect("it is not over")
    }

    /// Whether nothing comes for a while; for what must not come.
    pub(super) async fn is_silent(&mut self, for_so_long: Duration) -> bool {
        tokio::time::timeout(for_so_long, self.from.next_line()).await.is_err()
    }

    /// What is answered to this line.
    pub(super) async fn ask(&mut self, line: &str) -> Value {
        self.line(line).await;
        self.said().await
    }

    /// The same where one may be turned away: then the answer comes, and the door is closed, before anything was asked.
    pub(super) async fn knock(&mut self, line: &str) -> Value {
        let _ = self.to.write_all(format!("{line}\n").as_bytes()).await;
        self.said().await
    }

    pub(super) async fn ping(&mut self) {
        self.last += 1;
        let id = self.last;
        let answer = self.ask(&json!({"jsonrpc": "2.0", "id": id, "method": "ping"}).to_string()).await;
        assert_eq!(answer, json!({"jsonrpc": "2.0", "id": id, "result": {}}));
    }

    pub(super) async fn hello(&mut self) -> u64 {
        let answer = self.ask(r#"{"type":"hello"}"#).await;
        assert_eq!(answer["type"], "hello", "{answer}");
        answer["session"].as_u64().expect("a number")
    }

    /// Closes its own end, and reads to the other one.
    pub(super) async fn finish(mut self) -> Vec<Value> {
        self.to.shutdown().await.expect("it is open");
        let mut rest = Vec::new();
        while let Some(line) = self.next().await {
            rest.push(line);
        }
        rest
    }
}

/// A client that sends as much as is taken, and counts what it is answered.
pub(super) struct Flood {
    answered: Arc<AtomicUsize>,
    writing: tokio::task::JoinHandle<()>,
    reading: tokio::task::JoinHandle<()>,
}

impl Flood {
    pub(super) fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    pub(super) fn stop(self) {
        self.writing.abort();
        self.reading.abort();
    }
}

impl LineClient {
    /// Pings without end.
    pub(super) fn flood(self) -> Flood {
        let Self { mut to, mut from, .. } = self;
        let answered = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&answered);
        let writing = tokio::spawn(async move {
            let burst = format!("{}\n", json!({"jsonrpc": "2.0", "id": 1, "method": "ping"})).repeat(1000);
            while to.write_all(burst.as_bytes()).await.is_ok() {}
        });
        let reading = tokio::spawn(async move {
            while let Ok(Some(_)) = from.next_line().await {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Flood { answered, writing, reading }
    }
}
