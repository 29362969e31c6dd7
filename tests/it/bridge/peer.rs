//! A daemon of a test's own: it listens where one does, and says what the test has it say.
//!
//! Owns: the socket, one connection at a time. May not know: what a case is about.
//!
//! Laws: L1 and L18, of which it is the other end.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use phone_opus::testkit::{PATIENCE, Rig};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

/// The digest of tools that nobody else has.
pub(super) const OTHER_TOOLS: &str = "00000000000000aa";

/// A door of a state directory.
pub(super) struct Door(UnixListener);

/// A bridge that came in.
pub(super) struct Guest {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Door {
    /// Listens where the daemon of this world would.
    pub(super) fn open(rig: &Rig) -> Self {
        let dir = rig.state_dir();
        dir.create().expect("a state directory");
        let listener = UnixListener::bind(dir.daemon_socket()).expect("a socket");
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(dir.daemon_socket(), private).expect("its mode");
        Self(listener)
    }

    /// The next one who comes.
    pub(super) async fn guest(&self) -> Guest {
        let came = tokio::time::timeout(PATIENCE, self.0.accept()).await.expect("somebody comes");
        Guest::of(came.expect("a connection").0)
    }

    /// Whether somebody comes within this time.
    pub(super) async fn is_visited_within(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.0.accept()).await.is_ok()
    }
}

impl Guest {
    fn of(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self { lines: BufReader::new(reader).lines(), writer }
    }

    /// Its next line; `None` when it has gone.
    pub(super) async fn hear(&mut self) -> Option<Value> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("a line in time");
        line.ok().flatten().map(|line| serde_json::from_str(&line).expect("JSON"))
    }

    /// Its next request of this method; what comes before it is left aside.
    pub(super) async fn asked(&mut self, method: &str) -> Value {
        loop {
            let line = self.hear().await.expect("it is there");
            if line["method"] == method {
                return line;
            }
        }
    }

    /// Its next control message of this type.
    pub(super) async fn told(&mut self, kind: &str) -> Value {
        let line = self.hear().await.expect("it is there");
        assert_eq!(line["type"], kind, "{line}");
        line
    }

    pub(super) async fn say(&mut self, line: &Value) {
        self.writer.write_all(format!("{line}\n").as_bytes()).await.expect("it is taken");
    }

    /// Answers a request with a text.
    pub(super) async fn answer(&mut self, request: &Value, text: &str) {
        let result = json!({"content": [{"type": "text", "text": text}]});
        self.say(&json!({"jsonrpc": "2.0", "id": request["id"], "result": result})).await;
    }

    /// Lets it open its session, as a daemon of this build with these tools.
    pub(super) async fn open(&mut self, build: &str, catalog: Option<&str>) -> Value {
        let opening = self.told("session_open").await;
        let catalog = catalog.map_or_else(|| opening["catalog"].clone(), Value::from);
        let generation = "65256527-361a-4d3a-9a5f-945ee374307e";
        self.say(&json!({
            "type": "session_opened", "proto": 1, "build": build, "generation": generation, "catalog": catalog,
            "resumed": false,
        }))
        .await;
        opening
    }
}
