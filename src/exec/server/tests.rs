//! The server against a peer that writes raw lines.

use std::sync::Mutex;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::time::Instant;

use super::super::OutputStream;
use super::super::lines::LineReader;
use std::collections::HashMap;
use std::sync::atomic::Ordering;

use tokio::io::AsyncWriteExt as _;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// One process `p` that exists, and others that can be started.
#[derive(Clone, Default)]
struct Table {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    session: ProcessSession,
    terminated: AtomicUsize,
    started: Mutex<HashMap<String, ProcessSession>>,
    /// What was written, in order.
    written: Mutex<Vec<(String, Bytes)>>,
    /// Writes to `slow` wait for this.
    gate: tokio::sync::Notify,
}

impl ProcessTable for Table {
    fn exposed(&self) -> Vec<String> {
        vec!["p".to_owned()]
    }

    fn session(&self, process_id: &str) -> Option<ProcessSession> {
        if process_id == "p" {
            return Some(self.shared.session.clone());
        }
        self.shared.started.lock().unwrap().get(process_id).cloned()
    }

    fn terminate(&self, _process_id: &str) -> bool {
        self.shared.terminated.fetch_add(1, Ordering::Relaxed);
        !self.shared.session.has_ended()
    }

    async fn start(&self, params: StartParams) -> Result<StartResult, WireError> {
        assert_ne!(params.process_id, "broken", "a start that panics");
        let session = ProcessSession::new();
        session.publish_output(OutputStream::Stdout, Bytes::from_static(b"started")).unwrap();
        self.shared.started.lock().unwrap().insert(params.process_id.clone(), session);
        Ok(StartResult { process_id: params.process_id, sandbox_type: None })
    }

    async fn write(&self, params: WriteParams) -> Result<WireWriteStatus, WireError> {
        if params.process_id == "slow" {
            self.shared.gate.notified().await;
        }
        assert_ne!(params.chunk.0, "broken", "a write that panics");
        self.shared.written.lock().unwrap().push((params.process_id, params.chunk.0));
        Ok(WireWriteStatus::Accepted)
    }

    fn extra(&self, name: &str, params: &RawValue) -> Option<Extra> {
        let lane = serde_json::from_str(params.get()).ok()?;
        (name == "broken").then(|| Extra { lane, size: 0, work: Box::pin(async { panic!("work that panics") }) })
    }
}

/// A table that only shows its process.
struct Shown(ProcessSession);

impl ProcessTable for Shown {
    fn session(&self, _process_id: &str) -> Option<ProcessSession> {
        Some(self.0.clone())
    }

    fn terminate(&self, _process_id: &str) -> bool {
        false
    }
}

struct Peer {
    lines: LineReader<ReadHalf<DuplexStream>>,
    writer: WriteHalf<DuplexStream>,
}

impl Peer {
    fn serve(table: impl ProcessTable, buffer: usize) -> (Server, Self) {
        let (ours, theirs) = tokio::io::duplex(buffer);
        let (reader, writer) = tokio::io::split(theirs);
        let server = Server::start(reader, writer, table);
        let (reader, writer) = tokio::io::split(ours);
        (server, Self { lines: LineReader::after(&[], reader), writer })
    }

    async fn ready(table: impl ProcessTable, buffer: usize) -> (Server, Self) {
        let (server, mut peer) = Self::serve(table, buffer);
        peer.send(json!({"id": 0, "method": "initialize", "params": {"clientName": "t"}})).await;
        assert!(peer.message().await["result"]["sessionId"].is_string());
        peer.send(json!({"method": "initialized"})).await;
        (server, peer)
    }

    async fn send(&mut self, message: Value) {
        self.raw(&format!("{message}\n")).await;
    }

    async fn raw(&mut self, text: &str) {
        tokio::time::timeout(PATIENCE, self.writer.write_all(text.as_bytes()))
            .await
            .expect("the server reads")
            .unwrap();
    }

    async fn next(&mut self) -> Option<Value> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next()).await.expect("the server says something");
        line.unwrap().map(|line| serde_json::from_slice(&line).unwrap())
    }

    async fn message(&mut self) -> Value {
        self.next().await.expect("the connection is open")
    }

    /// The answer to `id`; notifications before it are skipped.
    async fn answer(&mut self, id: impl Into<Value>) -> Value {
        let id = id.into();
        loop {
            let message = self.message().await;
            if message["id"] == id {
                return message;
            }
            assert!(message["id"].is_null(), "an answer to something else: {message}");
        }
    }
}

#[tokio::test]
async fn the_handshake_is_kept_and_may_be_tried_again() {
    let (server, mut peer) = Peer::serve(Table::default(), 1 << 16);
    let hello = json!({"clientName": "t"});
    for (message, id, code) in [
        (json!({"id": 1, "method": "process/read", "params": {"processId": "p"}}), json!(1), -32600),
        (json!({"id": 2, "method": "what/ever"}), json!(2), -32601),
        (json!({"id": 3, "method": "initialize", "params": {}}), json!(3), -32602),
        (json!({"id": 4, "method": "initialize"}), json!(4), -32602),
        (
            json!({"id": 5, "method": "initialize", "params": {"clientName": "t", "resumeSessionId": "x"}}),
            json!(5),
            -32600,
        ),
        (json!({"id": null, "method": "initialize", "params": hello}), json!(-1), -32600),
        (json!({"id": 1.5, "method": "initialize", "params": hello}), json!(-1), -32600),
        (json!({"method": null}), json!(-1), -32600),
        (json!([{"id": 6, "method": "initialize", "params": hello}]), json!(-1), -32600),
        (json!("text"), json!(-1), -32600),
    ] {
        peer.send(message.clone()).await;
        let answer = peer.message().await;
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&id, &json!(code)), "{message} gave {answer}");
    }
    peer.raw("{broken\n\n \r\n").await;
    assert_eq!(peer.message().await["id"], -1);
    peer.send(json!({"id": "sesame", "method": "initialize", "params": hello})).await;
    assert!(peer.answer("sesame").await["result"]["sessionId"].is_string());
    // Greeted, but not ready.
    peer.send(json!({"id": 7, "method": "process/terminate", "params": {"processId": "p"}})).await;
    assert_eq!(peer.answer(7).await["error"]["code"], -32600);
    peer.send(json!({"id": 8, "method": "initialize", "params": hello})).await;
    assert_eq!(peer.answer(8).await["error"]["code"], -32600);
    for _ in 0..2 {
        peer.send(json!({"method": "initialized", "params": [1, 2]})).await;
    }
    peer.send(json!({"id": 9, "method": "process/terminate", "params": {"processId": "p"}})).await;
    assert_eq!(peer.answer(9).await["result"], json!({"running": true}));
    assert_eq!(server.finish(PATIENCE).await, Flush::Done);
}

#[tokio::test]
async fn what_cannot_be_answered_ends_the_connection() {
    let too_long = format!("\"{}\"\n", "x".repeat(17 * 1024 * 1024));
    for stray in [
        "{\"method\":\"initialized\"}\n",
        "{\"method\":\"process/exploded\"}\n",
        "{\"id\":1,\"result\":null}\n",
        "{\"id\":1,\"error\":{\"code\":1,\"message\":\"m\"}}\n",
        too_long.as_str(),
    ] {
        let (mut server, mut peer) = Peer::serve(Table::default(), 1 << 16);
        // The server stops reading in the middle of a line that is too long.
        let writing = async {
            let _ = peer.writer.write_all(stray.as_bytes()).await;
            std::future::pending::<()>().await
        };
        let ended = tokio::select! {
            () = writing => continue,
            ended = tokio::time::timeout(PATIENCE, server.peer_gone()) => ended,
        };
        let ended = ended.expect("the server gives up");
        assert!(matches!(ended, PeerEnd::Broke { .. }), "{ended:?}");
        assert_eq!(server.finish(PATIENCE).await, Flush::Done);
        assert_eq!(peer.next().await, None);
    }
}

#[tokio::test]
async fn events_are_pushed_in_order_from_the_first_and_finish_writes_the_last() {
    let table = Table::default();
    let session = table.shared.session.clone();
    session.publish_output(OutputStream::Stdout, Bytes::from_static(b"early")).unwrap();
    let (mut server, mut peer) = Peer::ready(table, 1 << 16).await;
    let first = peer.message().await;
    let params = json!({"processId": "p", "seq": 1, "stream": "stdout", "chunk": "ZWFybHk="});
    assert_eq!(first, json!({"method": "process/output", "params": params}));
    session.publish_output(OutputStream::Stderr, Bytes::from_static(b"late")).unwrap();
    assert_eq!(peer.message().await["params"]["stream"], "stderr");
    session.publish_exited(143, None).unwrap();
    let exited = peer.message().await;
    let params = json!({"processId": "p", "seq": 3, "exitCode": 143, "sandboxDenied": false});
    assert_eq!(exited, json!({"method": "process/exited", "params": params}));

    // The peer closes its side, and is still told the end.
    peer.writer.shutdown().await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, server.peer_gone()).await, Ok(PeerEnd::Gone));
    session.publish_closed().unwrap();
    assert_eq!(server.finish(PATIENCE).await, Flush::Done);
    let closed = peer.message().await;
    assert_eq!(closed, json!({"method": "process/closed", "params": {"processId": "p", "seq": 4}}));
    assert_eq!(peer.next().await, None);
}

#[tokio::test]
async fn a_waiting_read_holds_nothing_up() {
    let table = Table::default();
    let session = table.shared.session.clone();
    let (server, mut peer) = Peer::ready(table, 1 << 16).await;
    let wait = json!({"processId": "p", "afterSeq": 0, "waitMs": 60_000});
    peer.send(json!({"id": 1, "method": "process/read", "params": wait})).await;
    peer.send(json!({"id": 2, "method": "process/terminate", "params": {"processId": "p"}})).await;
    assert_eq!(peer.answer(2).await["result"]["running"], true);
    session.publish_exited(0, None).unwrap();
    session.publish_closed().unwrap();
    let answer = peer.answer(1).await;
    assert_eq!((&answer["result"]["exited"], &answer["result"]["exitCode"]), (&json!(true), &json!(0)));
    // At the end, reads that still wait are answered with what there is.
    peer.send(json!({"id": 3, "method": "process/read", "params": {"processId": "q"}})).await;
    assert_eq!(peer.answer(3).await["error"]["code"], -32600);
    assert_eq!(server.finish(PATIENCE).await, Flush::Done);
}

#[tokio::test]
async fn finish_answers_reads_that_still_wait() {
    let (server, mut peer) = Peer::ready(Table::default(), 1 << 16).await;
    let wait = json!({"processId": "p", "waitMs": 60_000});
    peer.send(json!({"id": 1, "method": "process/read", "params": wait})).await;
    peer.send(json!({"id": 2, "method": "process/terminate", "params": {"processId": "p"}})).await;
    peer.answer(2).await;
    assert_eq!(server.finish(PATIENCE).await, Flush::Done);
    assert_eq!(peer.answer(1).await["result"]["chunks"], json!([]));
    assert_eq!(peer.next().await, None);
}

#[tokio::test]
async fn a_peer_that_does_not_read_slows_nothing_and_still_gets_the_end() {
    let table = Table::default();
    let session = table.shared.session.clone();
    // Room for less than one event.
    let (server, mut peer) = Peer::ready(table, 256).await;
    let began = Instant::now();
    for n in 0..2000_u32 {
        session.publish_output(OutputStream::Stdout, Bytes::from(vec![n as u8; 5000])).unwrap();
        if n % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    session.publish_exited(0, None).unwrap();
    session.publish_closed().unwrap();
    assert!(began.elapsed() < PATIENCE);
    let mut seqs = Vec::new();
    loop {
        let message = peer.message().await;
        seqs.push(message["params"]["seq"].as_u64().unwrap());
        if message["method"] == "process/closed" {
            break;
        }
    }
    assert!(seqs.is_sorted() && seqs.len() < 2000, "{} events were written", seqs.len());
    assert_eq!(seqs[seqs.len() - 2..], [2001, 2002]);
    assert_eq!(server.finish(PATIENCE).await, Flush::Done);
}

#[tokio::test]
async fn the_end_of_input_is_known_at_once_whatever_is_in_flight() {
    let table = Table::default();
    let session = table.shared.session.clone();
    let (mut server, mut peer) = Peer::ready(table, 256).await;
    session.publish_output(OutputStream::Stdout, Bytes::from(vec![b'x'; 60_000])).unwrap();
    let wait = json!({"processId": "p", "afterSeq": 1, "waitMs": 60_000});
    peer.send(json!({"id": 1, "method": "process/read", "params": wait})).await;
    peer.writer.shutdown().await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, server.peer_gone()).await, Ok(PeerEnd::Gone));
    // Nobody reads: the last words are given up in time.
    assert_eq!(server.finish(Duration::from_millis(20)).await, Flush::Cut);
}

#[tokio::test]
async fn thousands_of_pipelined_requests_are_each_answered_once() {
    let (server, mut peer) = Peer::ready(Table::default(), 1 << 16).await;
    let Peer { lines, writer } = &mut peer;
    let ask = async {
        for id in 0..3000 {
            let line = json!({"id": id, "method": "process/read", "params": {"processId": "p"}});
            writer.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        }
    };
    let listen = async {
        let mut answered = vec![0_u32; 3000];
        for _ in 0..3000 {
            let line = lines.next().await.unwrap().unwrap();
            let answer: Value = serde_json::from_slice(&line).unwrap();
            answered[usize::try_from(answer["id"].as_u64().unwrap()).unwrap()] += 1;
        }
        assert!(answered.iter().all(|times| *times == 1));
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(ask, listen) }).await.expect("all are answered");
    assert_eq!(server.finish(PATIENCE).await, Flush::Done);
}

#[tokio::test]
async fn a_peer_that_asks_for_ever_and_never_reads_is_cut_off() {
    let (mut server, mut peer) = Peer::ready(Table::default(), 4096).await;
    let asking = async {
        let line = json!({"id": 1, "method": "process/terminate", "params": {"processId": "p"}}).to_string() + "\n";
        while peer.writer.write_all(line.as_bytes()).await.is_ok() {}
    };
    tokio::select! {
        () = asking => panic!("the server closed without a word"),
        end = tokio::time::timeout(PATIENCE, server.peer_gone()) => assert_eq!(end, Ok(PeerEnd::Overrun)),
    }
}

#[tokio::test]
async fn too_many_waiting_reads_are_refused() {
    let (server, mut peer) = Peer::ready(Table::default(), 1 << 20).await;
    for id in 0..=WAITING_REQUESTS {
        let wait = json!({"processId": "p", "waitMs": 60_000});
        peer.send(json!({"id": id, "method": "process/read", "params": wait})).await;
    }
    assert_eq!(peer.message().await["error"]["code"], -32603);
    assert_eq!(server.finish(PATIENCE).await, Flush::Done);
}

#[tokio::test]
async fn writes_of_one_process_keep_their_order_and_do_not_hold_up_others() {
    let table = Table::default();
    let shared = Arc::clone(&table.shared);
    let (server, mut peer) = Peer::ready(table, 1 << 16).await;
    let start = json!({"processId": "slow", "argv": ["x"], "cwd": "/", "env": {}, "tty": false});
    peer.send(json!({"id": 1, "method": "process/start", "params": start})).await;
    for (id, process, chunk) in [(2, "slow", "YQ=="), (3, "slow", "Yg=="), (4, "fast", "Yw==")] {
        let params = json!({"processId": process, "chunk": chunk, "writeId": id.to_string()});
        peer.send(json!({"id": id, "method": "process/write", "params": params})).await;
    }
    let mut seen = Vec::new();
    let mut pushed = false;
    while !(seen.contains(&json!(1)) && seen.contains(&json!(4)) && pushed) {
        let message = peer.message().await;
        pushed |= message["params"]["processId"] == "slow";
        seen.push(message["id"].clone());
    }
    assert!(!seen.contains(&json!(2)), "{seen:?}");
    for id in [2, 3] {
        shared.gate.notify_one();
        assert_eq!(peer.answer(id).await["result"]["status"], "accepted");
    }
    let written: Vec<_> = shared.written.lock().unwrap().iter().map(|(_, bytes)| bytes.clone()).collect();
    assert_eq!(written, ["c", "a", "b"]);
    assert_eq!(server.finish(PATIENCE).await, Flush::Done);
}

#[tokio::test]
async fn a_request_whose_work_panics_is_answered_and_the_next_of_its_lane_has_its_turn() {
    let (server, mut peer) = Peer::ready(Table::default(), 1 << 16).await;
    let start = |id: &str| json!({"processId": id, "argv": ["x"], "cwd": "/", "env": {}, "tty": false});
    let write = |id: &str, chunk: &str| json!({"processId": id, "chunk": chunk, "writeId": chunk});
    let requests = [
        ("process/start", start("broken"), false),
        ("process/start", start("broken"), false),
        ("broken", json!("broken"), false),
        ("process/write", write("broken", "YnJva2Vu"), false),
        ("process/write", write("broken", "YQ=="), true),
        ("process/start", start("whole"), true),
        ("process/write", write("whole", "YnJva2Vu"), false),
        ("process/write", write("whole", "YQ=="), true),
        ("broken", Value::Null, false),
    ];
    for (id, (name, params, _)) in requests.iter().enumerate() {
        peer.send(json!({"id": id, "method": name, "params": params})).await;
    }
    let mut answers = HashMap::new();
    while answers.len() < requests.len() {
        let message = peer.message().await;
        if let Some(id) = message["id"].as_u64() {
            assert!(answers.insert(id, message).is_none(), "a second answer to {id}");
        }
    }
    for (id, (name, params, is_done)) in requests.iter().enumerate() {
        let answer = &answers[&(id as u64)];
        let code = if *is_done { Value::Null } else { json!(-32603) };
        assert_eq!(answer["error"]["code"], code, "{name} {params}: {answer}");
    }
    assert_eq!(server.finish(PATIENCE).await, Flush::Done);
}

#[tokio::test]
async fn a_table_that_only_shows_refuses_everything_else() {
    let (server, mut peer) = Peer::ready(Shown(ProcessSession::new()), 1 << 16).await;
    let start = json!({"processId": "n", "argv": ["x"], "cwd": "file:///", "env": {}, "tty": false});
    let write = json!({"processId": "p", "chunk": "YQ=="});
    for (id, name, params) in [
        (1, "process/start", start),
        (2, "process/write", write),
        (3, "process/signal", json!({"processId": "p", "signal": "interrupt"})),
    ] {
        peer.send(json!({"id": id, "method": name, "params": params})).await;
        assert_eq!(peer.answer(id).await["error"]["code"], -32600, "{name}");
    }
    peer.send(json!({"id": 4, "method": "process/signal", "params": {"processId": "p", "signal": "stop"}})).await;
    assert_eq!(peer.answer(4).await["error"]["code"], -32602);
    peer.send(json!({"id": 5, "method": "process/read", "params": {"processId": "p", "afterSeq": -1}})).await;
    assert_eq!(peer.answer(5).await["error"]["code"], -32602);
    assert_eq!(server.finish(PATIENCE).await, Flush::Done);
}

#[tokio::test]
async fn serve_returns_when_the_peer_is_gone() {
    let (mut ours, theirs) = tokio::io::duplex(1024);
    let (reader, writer) = tokio::io::split(theirs);
    let serving = tokio::spawn(serve(reader, writer, Table::default()));
    ours.shutdown().await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap(), PeerEnd::Gone);
    let mut rest = Vec::new();
    assert_eq!(ours.read_to_end(&mut rest).await.unwrap(), 0);
}
