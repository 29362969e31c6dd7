//! Connections under their supervisor, in memory.
//!
//! Laws: L5, L8.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use super::*;
use crate::actors::current::Naming;
use crate::exec::backend::{ExecBackend as _, ProcessStartError, StartRequest};
use crate::exec::client::ExecError;
use crate::exec::remote::{Connector, RemoteState, Streams};
use crate::exec::target::AfterACut;
use crate::exec::{OutputCursor, ProcessEvent, ProcessSession};
use crate::failpoints::Faults;

const PATIENCE: Duration = Duration::from_secs(20);

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// A server of one process, which has said as many lines as it was connected to.
fn server(connections: Arc<AtomicU64>) -> Connector {
    Box::new(move |generation| {
        let connections = Arc::clone(&connections);
        async move {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            let (reader, mut writer) = tokio::io::split(theirs);
            connections.store(generation, Ordering::Release);
            tokio::spawn(async move {
                let mut lines = BufReader::new(reader).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let request: Value = serde_json::from_str(&line).unwrap();
                    let chunks: Vec<Value> =
                        (1..=generation).map(|seq| json!({"seq": seq, "stream": "stdout", "chunk": "aGk="})).collect();
                    let result = match request["method"].as_str().unwrap() {
                        "initialize" => json!({"sessionId": "s", "environmentInfo": {}}),
                        "process/read" => json!({"chunks": chunks, "nextSeq": generation + 1, "exited": false,
                                                 "exitCode": null, "closed": false}),
                        "initialized" => continue,
                        _ => json!({"processId": "p", "running": true}),
                    };
                    let answer = format!("{}\n", json!({"id": request["id"], "result": result}));
                    if writer.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
            let (reader, writer) = tokio::io::split(ours);
            Ok(Streams { reader: Box::new(reader), writer: Box::new(writer), ending: None })
        }
        .boxed()
    })
}

struct Tree {
    links: ExecLinks,
    execs: ActorRef<ExecMsg>,
}

async fn tree(faults: &str) -> Tree {
    let (naming, root) = (Naming::new(), Naming::new());
    let links = ExecLinks::new(naming.current(), root.current(), Faults::armed(faults).unwrap());
    let (execs, _) = Execs::spawn(None, Execs, links.clone()).await.unwrap();
    naming.set(&execs);
    Tree { links, execs }
}

async fn connect(tree: &Tree, connections: &Arc<AtomicU64>) -> Result<crate::exec::RemoteExec, ExecError> {
    let connected = tree.links.connect_by("memory".to_owned(), server(Arc::clone(connections)), AfterACut::Resumed);
    in_time("a connection", connected).await
}

#[tokio::test]
async fn a_crash_of_a_connection_is_a_generation_and_its_sessions_go_on() {
    // The third line is the answer to the first look at the process.
    let tree = tree("exec.read#3=panic; exec.read#6=panic").await;
    let connections = Arc::new(AtomicU64::new(0));
    let remote = connect(&tree, &connections).await.unwrap();
    let session = ProcessSession::new();
    let start = remote.start(StartRequest::new("p", "/bin/program", "/"), session.clone());
    let started = in_time("a start", start).await.unwrap();
    let mut events = session.subscribe(OutputCursor::start());
    for wanted in 1..=3 {
        let event = in_time("an event", events.next()).await;
        assert!(matches!(&event, Some(ProcessEvent::Output { seq, .. }) if *seq == wanted), "{event:?}");
    }
    assert_eq!(connections.load(Ordering::Acquire), 3);
    let rows = tree.links.rows();
    assert_eq!((rows.len(), rows[0].health.state, rows[0].health.generation), (1, RemoteState::Up, 3));
    let shown = serde_json::to_value(&rows[0]).unwrap();
    assert_eq!((&shown["target"], &shown["state"]), (&json!("memory"), &json!("up")));
    drop((started, remote));
    in_time("the connection is forgotten", async {
        while !tree.links.numbers().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    tree.execs.stop(None);
}

#[tokio::test]
async fn a_connection_that_crashes_again_and_again_is_given_up_and_everything_on_it_fails() {
    // The first line is the greeting; every later one, on whatever connection, is the end of its actor.
    let plan: Vec<String> = (2..=12).map(|line| format!("exec.read#{line}=panic")).collect();
    let tree = tree(&plan.join("; ")).await;
    let connections = Arc::new(AtomicU64::new(0));
    let remote = connect(&tree, &connections).await.unwrap();
    let start = remote.start(StartRequest::new("p", "/bin/program", "/"), ProcessSession::new());
    let refused = in_time("an answer", start).await.err().unwrap();
    assert!(matches!(refused, ProcessStartError::Ambiguous { .. }), "{refused:?}");
    assert_eq!(remote.health().state, RemoteState::Down);
    let later = in_time("an answer", remote.start(StartRequest::new("q", "/bin/program", "/"), ProcessSession::new()));
    assert!(matches!(later.await.err(), Some(ProcessStartError::Unreachable { .. })));
    assert!(tree.links.numbers().is_empty());
    tree.execs.stop(None);
}

#[tokio::test]
async fn a_crash_of_the_supervisor_costs_no_session() {
    let (naming, root) = (Naming::new(), Naming::new());
    let links = ExecLinks::new(naming.current(), root.current(), Faults::default());
    let (first, joined) = Execs::spawn(None, Execs, links.clone()).await.unwrap();
    naming.set(&first);
    let tree = Tree { links: links.clone(), execs: first.clone() };
    let connections = Arc::new(AtomicU64::new(0));
    let remote = connect(&tree, &connections).await.unwrap();
    let session = ProcessSession::new();
    let start = remote.start(StartRequest::new("p", "/bin/program", "/"), session.clone());
    let (process, _tap) = in_time("a start", start).await.unwrap();
    first.kill();
    let _ = joined.await;
    let (second, _) = Execs::spawn(None, Execs, links).await.unwrap();
    naming.set(&second);
    let written = in_time("a write", process.write(Bytes::from_static(b"x"))).await;
    assert!(written.is_err() || !session.has_ended(), "{written:?}");
    assert!(!session.has_ended() && remote.health().generation == 2, "{:?}", remote.health());
    second.stop(None);
}

#[tokio::test]
async fn without_anybody_to_work_for_it_a_connection_is_refused() {
    let (naming, root) = (Naming::<ExecMsg>::new(), Naming::new());
    let links = ExecLinks::new(naming.current(), root.current(), Faults::default());
    let refused =
        in_time("an answer", links.connect_by("nowhere".to_owned(), server(Arc::default()), AfterACut::Over)).await;
    assert!(matches!(refused, Err(ExecError::Disconnected { .. })), "{refused:?}");
    assert!(links.rows().is_empty());
}
