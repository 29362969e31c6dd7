//! The client against our server with real processes, and against a scripted peer that loses, reverses and lies.

use serde_json::{Value, json};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};

use super::super::invariants::{
    invariant_exactly_one_terminal_and_last, invariant_positions_have_no_gap, invariant_published_is_sent_minus_lagged,
};
use super::super::local::{
    Adopt, CloseBy, LocalExec, LocalProcess, ProcessControl, SpawnSpec, Stdin, WriteStatus, living_members,
};
use super::super::server::{PeerEnd, ProcessTable, Server};
use super::super::{OutputStream, ProcessEvent, ReadExit};
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

async fn all(stream: &mut EventStream) -> Vec<ProcessEvent> {
    let mut events = Vec::new();
    while let Some(event) = in_time("an event", stream.next()).await {
        events.push(event);
    }
    invariant_positions_have_no_gap(&events).unwrap();
    invariant_exactly_one_terminal_and_last(&events).unwrap();
    events
}

fn text_of(events: &[ProcessEvent]) -> String {
    let bytes: Vec<u8> = events
        .iter()
        .filter_map(|event| match event {
            ProcessEvent::Output { bytes, .. } => Some(bytes.to_vec()),
            _ => None,
        })
        .flatten()
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One real process, served as the runner serves its agent.
struct OneProcess {
    session: ProcessSession,
    control: ProcessControl,
}

impl ProcessTable for OneProcess {
    fn exposed(&self) -> Vec<String> {
        vec!["job".to_owned()]
    }

    fn session(&self, process_id: &str) -> Option<ProcessSession> {
        (process_id == "job").then(|| self.session.clone())
    }

    fn terminate(&self, process_id: &str) -> bool {
        process_id == "job" && self.control.terminate()
    }

    async fn write(&self, params: WriteParams) -> Result<WireWriteStatus, WireError> {
        Ok(match self.control.write(params.chunk.0).await {
            WriteStatus::Accepted => WireWriteStatus::Accepted,
            WriteStatus::StdinClosed => WireWriteStatus::StdinClosed,
        })
    }

    fn signal(&self, _process_id: &str, _signal: WireSignal) -> Result<(), WireError> {
        self.control.interrupt();
        Ok(())
    }
}

struct Remote {
    process: LocalProcess,
    session: ProcessSession,
    server: Server,
    client: ExecClient,
}

impl Remote {
    async fn start(script: &str, stdin: Stdin) -> Self {
        let spec = SpawnSpec {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            cwd: "/".into(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            stdin,
            adopt: Adopt::No,
            descriptors: None,
        };
        let session = ProcessSession::new();
        let (process, tap) = LocalExec::spawn(spec, session.clone(), CloseBy::Backend).unwrap();
        drop(tap);
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (reader, writer) = tokio::io::split(theirs);
        let table = OneProcess { session: session.clone(), control: process.control() };
        let server = Server::start(reader, writer, table);
        let (reader, writer) = tokio::io::split(ours);
        let client = in_time("the handshake", ExecClient::connect(reader, writer, "test")).await.unwrap();
        Self { process, session, server, client }
    }

    async fn subscribe(&self) -> EventStream {
        self.client.subscribe("job", OutputCursor::start()).await.unwrap()
    }

    /// Ends everything and proves that nothing is left.
    async fn finish(mut self) -> super::super::ProcessEnd {
        let end = in_time("the end of the process", self.process.wait_end()).await;
        assert_eq!(living_members(self.process.pid()).unwrap_or_default(), Vec::<u32>::new());
        drop(self.client);
        assert_eq!(in_time("the end of the connection", self.server.peer_gone()).await, PeerEnd::Gone);
        end
    }
}

#[tokio::test]
async fn a_remote_process_has_the_events_of_the_local_one() {
    for (script, code) in [
        ("echo out; echo err >&2; exit 3", 3),
        ("exit 0", 0),
        ("kill -KILL $$", 137),
        ("(while kill -0 $$; do :; done 2>/dev/null; echo late) & exit 1", 1),
    ] {
        let remote = Remote::start(script, Stdin::Null).await;
        let events = all(&mut remote.subscribe().await).await;
        let local = all(&mut remote.session.subscribe(OutputCursor::start())).await;
        assert_eq!(events, local, "{script}");
        assert!(events.iter().any(|event| matches!(event, ProcessEvent::Exited { code: got, .. } if *got == code)));
        assert_eq!(remote.finish().await.code, code);
    }
}

#[tokio::test]
async fn a_remote_process_is_written_to_interrupted_and_terminated() {
    let remote = Remote::start(
        "read a; echo \"got $a\"; trap 'echo int' INT; echo set; while :; do sleep 0.02; done",
        Stdin::Piped,
    )
    .await;
    let mut stream = remote.subscribe().await;
    let mut events = Vec::new();
    let wrote = remote.client.write("job", Bytes::from_static(b"hello\n")).await;
    assert_eq!(wrote, Ok(WireWriteStatus::Accepted));
    while !text_of(&events).contains("got hello\nset\n") {
        events.push(in_time("output", stream.next()).await.unwrap());
    }
    remote.client.interrupt("job").await.unwrap();
    while !text_of(&events).contains("int\n") {
        events.push(in_time("output", stream.next()).await.unwrap());
    }
    assert_eq!(remote.client.terminate("job").await, Ok(true));
    while let Some(event) = in_time("the end", stream.next()).await {
        events.push(event);
    }
    invariant_exactly_one_terminal_and_last(&events).unwrap();
    assert_eq!(remote.client.terminate("job").await, Ok(false));
    let refused = remote.client.read("other", 0, None, Duration::ZERO).await;
    assert!(matches!(refused, Err(ExecError::Refused { error: WireError { code: -32600, .. }, .. })));
    let end = remote.finish().await;
    assert_eq!((end.code, end.terminated), (143, true));
}

#[tokio::test]
async fn remote_reads_follow_the_cursor_and_wait() {
    let remote = Remote::start("printf one; read a; printf two >&2; exit 0", Stdin::Piped).await;
    let first = in_time("a read", remote.client.read("job", 0, None, PATIENCE)).await.unwrap();
    assert_eq!((first.chunks[0].bytes.as_ref(), first.next_seq), (&b"one"[..], 2));
    let lapsed = remote.client.read("job", 1, Some(10), Duration::from_millis(5)).await.unwrap();
    assert_eq!((lapsed.chunks.len(), lapsed.next_seq, lapsed.exit), (0, 2, ReadExit::NotYet));
    let waiting = remote.client.read("job", 1, None, PATIENCE);
    let (second, written) = tokio::join!(waiting, remote.client.write("job", Bytes::from_static(b"\n")));
    assert_eq!(written, Ok(WireWriteStatus::Accepted));
    let second = second.unwrap();
    assert_eq!((second.chunks[0].bytes.as_ref(), second.chunks[0].stream), (&b"two"[..], OutputStream::Stderr));
    all(&mut remote.subscribe().await).await;
    let last = in_time("a read after the end", remote.client.read("job", 99, None, PATIENCE)).await.unwrap();
    assert!(last.closed && last.exit == ReadExit::Exited { code: Some(0), signal: None, seq: Some(3) });
    remote.finish().await;
}

#[tokio::test]
async fn two_busy_streams_arrive_complete_or_say_what_they_lack() {
    let script = "yes out | head -c 20000000 & yes err | head -c 20000000 >&2 & wait; exit 2";
    let remote = Remote::start(script, Stdin::Null).await;
    let events = all(&mut remote.subscribe().await).await;
    assert!(events.iter().any(|event| matches!(event, ProcessEvent::Exited { code: 2, .. })));
    // A late subscriber gets the tail, and is told so.
    let late = all(&mut remote.subscribe().await).await;
    assert!(matches!(late[0], ProcessEvent::Lagged { from: 1, .. }));
    assert_eq!(late.last(), events.last());
    remote.finish().await;
}

#[tokio::test]
async fn the_loss_of_the_client_is_the_end_of_input_for_the_server() {
    let mut remote = Remote::start("echo ready; exec sleep 1000", Stdin::Null).await;
    let mut stream = remote.subscribe().await;
    in_time("output", stream.next()).await;
    let Remote { client, server, process, .. } = &mut remote;
    let other = client.clone();
    assert_eq!(other.terminate("nobody").await, Ok(false));
    drop(other);
    // Only the last handle closes.
    assert!(client.read("job", 0, None, Duration::ZERO).await.is_ok());
    let detached = std::mem::replace(client, dead_client().await);
    drop(detached);
    assert_eq!(in_time("the end of input", server.peer_gone()).await, PeerEnd::Gone);
    assert!(matches!(in_time("the end", stream.next()).await, Some(ProcessEvent::Failed { .. })));
    assert_eq!(stream.next().await, None);
    process.terminate();
    remote.finish().await;
}

/// A client whose connection has ended.
async fn dead_client() -> ExecClient {
    let (client, peer) = Script::connect().await;
    drop(peer);
    in_time("the loss", client.disconnected()).await;
    client
}

struct Script {
    lines: LineReader<ReadHalf<DuplexStream>>,
    writer: WriteHalf<DuplexStream>,
}

impl Script {
    async fn connect() -> (ExecClient, Self) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (reader, writer) = tokio::io::split(theirs);
        let mut script = Self { lines: LineReader::after(&[], reader), writer };
        let (reader, writer) = tokio::io::split(ours);
        let connecting = ExecClient::connect(reader, writer, "test");
        let greeting = async {
            let hello = script.request("initialize").await;
            assert_eq!(hello["params"], json!({"clientName": "test"}));
            script.send(json!({"id": hello["id"], "result": {"sessionId": "s", "later": 1}})).await;
            assert_eq!(script.line().await["method"], "initialized");
        };
        let (client, ()) = tokio::join!(connecting, greeting);
        (client.unwrap(), script)
    }

    async fn send(&mut self, message: Value) {
        self.raw(&format!("{message}\n")).await;
    }

    async fn raw(&mut self, text: &str) {
        self.writer.write_all(text.as_bytes()).await.unwrap();
    }

    async fn line(&mut self) -> Value {
        let line = in_time("a line of the client", self.lines.next()).await.unwrap().expect("the client is there");
        serde_json::from_slice(&line).unwrap()
    }

    async fn request(&mut self, method: &str) -> Value {
        let line = self.line().await;
        assert_eq!(line["method"], method, "{line}");
        line
    }

    /// Answers the next read as a server would that has `chunks` and gives `next_seq` out next.
    async fn answer_read(&mut self, chunks: Value, next_seq: u64, exit_code: Option<i32>, closed: bool) -> Value {
        let read = self.request("process/read").await;
        let result = json!({
            "chunks": chunks, "nextSeq": next_seq, "exited": exit_code.is_some(), "exitCode": exit_code,
            "closed": closed, "failure": null, "sandboxDenied": false,
        });
        self.send(json!({"id": read["id"], "result": result})).await;
        read
    }

    /// The read every new subscription begins with finds nothing.
    async fn answer_first_read(&mut self) {
        self.answer_read(json!([]), 1, None, false).await;
    }

    async fn event(&mut self, process: &str, event: &ProcessEvent) {
        let line = wire::event_line(process, event).unwrap().unwrap();
        self.raw(std::str::from_utf8(&line).unwrap()).await;
    }
}

fn output(seq: u64) -> ProcessEvent {
    ProcessEvent::Output { seq, stream: OutputStream::Stdout, bytes: Bytes::from(format!("{seq};")) }
}

fn chunk(seq: u64) -> Value {
    json!({"seq": seq, "stream": "stdout", "chunk": Base64(Bytes::from(format!("{seq};")))})
}

fn short_run() -> Vec<ProcessEvent> {
    vec![
        output(1),
        output(2),
        ProcessEvent::Exited { seq: 3, code: 0, signal: None },
        output(4),
        ProcessEvent::Closed { seq: 5 },
    ]
}

#[tokio::test]
async fn reversed_doubled_and_foreign_events_are_put_in_order() {
    let (client, mut peer) = Script::connect().await;
    let mut stream = client.subscribe("p", OutputCursor::start()).await.unwrap();
    peer.answer_first_read().await;
    for event in short_run().iter().rev() {
        peer.event("p", event).await;
        peer.event("p", event).await;
        peer.event("stranger", event).await;
        peer.send(json!({"method": "process/unheardOf", "params": {"processId": "p"}})).await;
    }
    assert_eq!(all(&mut stream).await, short_run());
}

#[tokio::test]
async fn a_lost_event_is_read_back_within_a_second() {
    let (client, mut peer) = Script::connect().await;
    let mut stream = client.subscribe("p", OutputCursor::start()).await.unwrap();
    peer.answer_first_read().await;
    peer.event("p", &output(1)).await;
    peer.event("p", &output(3)).await;
    let lost = Instant::now();
    let read = peer.answer_read(json!([chunk(2), chunk(3)]), 4, None, false).await;
    assert_eq!((&read["params"]["afterSeq"], &read["params"]["waitMs"]), (&json!(1), &json!(0)));
    for seq in 1..=3 {
        assert_eq!(in_time("an event", stream.next()).await, Some(output(seq)));
    }
    assert!(
        lost.elapsed() >= Duration::from_millis(100) && lost.elapsed() < Duration::from_secs(1),
        "{:?}",
        lost.elapsed()
    );
}

#[tokio::test]
async fn a_lost_close_is_noticed_without_another_event() {
    let (client, mut peer) = Script::connect().await;
    let mut stream = client.subscribe("p", OutputCursor::start()).await.unwrap();
    peer.answer_first_read().await;
    for event in &short_run()[..4] {
        peer.event("p", event).await;
    }
    peer.answer_read(json!([]), 6, Some(0), true).await;
    assert_eq!(all(&mut stream).await, short_run());
}

#[tokio::test]
async fn a_lost_and_evicted_stretch_is_announced_and_the_rest_goes_on() {
    let (client, mut peer) = Script::connect().await;
    let mut stream = client.subscribe("p", OutputCursor::start()).await.unwrap();
    peer.answer_first_read().await;
    let mut sent: Vec<_> = (1..=90).map(output).collect();
    sent.push(ProcessEvent::Exited { seq: 91, code: 0, signal: None });
    sent.push(ProcessEvent::Closed { seq: 92 });
    peer.event("p", &sent[0]).await;
    for event in &sent[20..90] {
        peer.event("p", event).await;
    }
    // So much behind a hole is asked for at once.
    let read = peer.answer_read((10..=90).map(chunk).collect(), 91, None, false).await;
    assert_eq!(read["params"]["afterSeq"], 1);
    peer.event("p", &sent[90]).await;
    peer.event("p", &sent[91]).await;
    let events = all(&mut stream).await;
    assert_eq!(events[1], ProcessEvent::Lagged { from: 2, to: 9 });
    invariant_published_is_sent_minus_lagged(&sent, &events).unwrap();
}

#[tokio::test]
async fn an_unreadable_event_harms_its_own_session_only_and_is_read_back() {
    let (client, mut peer) = Script::connect().await;
    let mut harmed = client.subscribe("p", OutputCursor::start()).await.unwrap();
    peer.answer_first_read().await;
    let mut other = client.subscribe("q", OutputCursor::start()).await.unwrap();
    peer.answer_first_read().await;
    let broken = json!({"processId": "p", "seq": 1, "stream": "stdout", "chunk": "%%%"});
    peer.send(json!({"method": "process/output", "params": broken})).await;
    for event in &short_run() {
        peer.event("q", event).await;
    }
    assert_eq!(all(&mut other).await, short_run());
    let read = peer.answer_read(json!([chunk(1), chunk(2), chunk(4)]), 6, Some(0), true).await;
    assert_eq!(read["params"]["processId"], "p");
    assert_eq!(all(&mut harmed).await, short_run());
}

#[tokio::test]
async fn a_process_the_peer_does_not_know_fails_alone() {
    let (client, mut peer) = Script::connect().await;
    let mut stream = client.subscribe("p", OutputCursor::start()).await.unwrap();
    let read = peer.request("process/read").await;
    peer.send(json!({"error": {"code": -32600, "message": "unknown process id p"}, "id": read["id"]})).await;
    let events = all(&mut stream).await;
    assert!(matches!(&events[..], [ProcessEvent::Failed { message }] if message.contains("unknown process id p")));
    // The connection is well, and the process may be asked for again.
    let _again = client.subscribe("p", OutputCursor::start()).await.unwrap();
    peer.answer_first_read().await;
}

#[tokio::test]
async fn the_loss_of_the_connection_fails_every_session_once_and_refuses_later_ones() {
    let (client, mut peer) = Script::connect().await;
    let mut open = client.subscribe("open", OutputCursor::start()).await.unwrap();
    peer.answer_first_read().await;
    let mut done = client.subscribe("done", OutputCursor::start()).await.unwrap();
    peer.answer_first_read().await;
    peer.event("open", &output(1)).await;
    peer.event("open", &output(3)).await;
    for event in &short_run() {
        peer.event("done", event).await;
    }
    let caller = client.clone();
    let asked = tokio::spawn(async move { caller.terminate("open").await });
    peer.request("process/terminate").await;
    drop(peer);
    assert_eq!(all(&mut done).await, short_run());
    let events = all(&mut open).await;
    assert_eq!(events[..3], [output(1), ProcessEvent::Lagged { from: 2, to: 2 }, output(3)]);
    assert!(matches!(events[3], ProcessEvent::Failed { .. }));
    assert!(matches!(asked.await.unwrap(), Err(ExecError::Disconnected { .. })));
    in_time("the reason", client.disconnected()).await;
    let late = client.subscribe("late", OutputCursor::start()).await;
    assert!(matches!(late, Err(ExecError::Disconnected { .. })));
    // What was there can still be read.
    let kept = open.session().read(0, None, Duration::ZERO).await;
    assert_eq!((kept.chunks.len(), kept.closed, kept.failure.is_some()), (2, true, true));
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_costs_a_deadline_and_not_for_ever() {
    let (ours, _theirs) = tokio::io::duplex(1 << 16);
    let (reader, writer) = tokio::io::split(ours);
    let silent = ExecClient::connect(reader, writer, "test").await.map(|_| ());
    assert_eq!(silent, Err(ExecError::Deadline { method: "initialize", within: HANDSHAKE_DEADLINE }));

    let (client, mut peer) = Script::connect().await;
    let asked = client.terminate("p").await;
    assert_eq!(asked, Err(ExecError::Deadline { method: "process/terminate", within: CALL_DEADLINE }));
    // Its answer is not somebody else's.
    let late = peer.request("process/terminate").await;
    peer.send(json!({"id": late["id"], "result": {"running": true}})).await;
    let caller = client.clone();
    let again = tokio::spawn(async move { caller.terminate("p").await });
    let second = peer.request("process/terminate").await;
    assert_ne!(second["id"], late["id"]);
    peer.send(json!({"id": second["id"], "result": {"running": false}})).await;
    assert_eq!(again.await.unwrap(), Ok(false));
}

#[tokio::test(start_paused = true)]
async fn a_read_that_is_not_answered_is_asked_again_with_growing_pauses() {
    let (client, mut peer) = Script::connect().await;
    let _stream = client.subscribe("p", OutputCursor::start()).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..4 {
        let read = peer.request("process/read").await;
        assert!(!ids.contains(&read["id"]));
        ids.push(read["id"].clone());
    }
}

#[tokio::test(start_paused = true)]
async fn a_quiet_process_is_looked_at_less_and_less_often() {
    let (client, mut peer) = Script::connect().await;
    let _stream = client.subscribe("p", OutputCursor::start()).await.unwrap();
    let began = Instant::now();
    for _ in 0..7 {
        peer.answer_first_read().await;
    }
    let elapsed = began.elapsed();
    assert!(elapsed > Duration::from_secs(31) && elapsed < Duration::from_secs(33), "{elapsed:?}");
}

#[tokio::test]
async fn no_more_than_the_agreed_calls_are_in_flight_and_terminate_overtakes_them() {
    let (client, mut peer) = Script::connect().await;
    let mut calls = JoinSetOfReads::default();
    for _ in 0..100 {
        let client = client.clone();
        calls.spawn(async move { client.read("p", 0, None, Duration::from_secs(1)).await });
    }
    let mut waiting = Vec::new();
    for _ in 0..CALLS_IN_FLIGHT {
        waiting.push(peer.request("process/read").await);
    }
    let caller = client.clone();
    let ended = tokio::spawn(async move { caller.terminate("p").await });
    // Were more reads sent, one of them would come before this.
    let end = peer.request("process/terminate").await;
    peer.send(json!({"id": end["id"], "result": {"running": true}})).await;
    assert_eq!(ended.await.unwrap(), Ok(true));
    let mut answered = 0;
    while answered < 100 {
        let read = match waiting.pop() {
            Some(read) => read,
            None => peer.request("process/read").await,
        };
        let result = json!({"chunks": [], "nextSeq": 1, "exited": false, "exitCode": null, "closed": false});
        peer.send(json!({"id": read["id"], "result": result})).await;
        answered += 1;
    }
    while let Some(call) = calls.join_next().await {
        assert!(call.unwrap().is_ok());
    }
}

type JoinSetOfReads = tokio::task::JoinSet<Result<ReadResult, ExecError>>;

#[tokio::test]
async fn a_peer_that_speaks_something_else_is_left() {
    let (client, mut peer) = Script::connect().await;
    let mut stream = client.subscribe("p", OutputCursor::start()).await.unwrap();
    peer.answer_first_read().await;
    for _ in 1..NONSENSE_LIMIT {
        peer.raw("what?\n").await;
    }
    peer.event("p", &output(1)).await;
    assert_eq!(in_time("an event", stream.next()).await, Some(output(1)), "a few are forgiven");
    for _ in 0..NONSENSE_LIMIT {
        peer.raw("what?\n").await;
    }
    assert!(in_time("the reason", client.disconnected()).await.contains("something else"));
    assert!(matches!(in_time("the end", stream.next()).await, Some(ProcessEvent::Failed { .. })));
}

#[tokio::test]
async fn a_connection_is_handed_over_in_the_middle_of_a_line() {
    let (client, mut peer) = Script::connect().await;
    let mut stream = client.subscribe("p", OutputCursor::start()).await.unwrap();
    peer.answer_first_read().await;
    peer.event("p", &output(1)).await;
    assert_eq!(in_time("an event", stream.next()).await, Some(output(1)));
    let line = wire::event_line("p", &output(2)).unwrap().unwrap();
    let (head, tail) = std::str::from_utf8(&line).unwrap().split_at(line.len() / 2);
    peer.raw(head).await;
    // An answered call shows that the client has read so far.
    let caller = client.clone();
    let asked = tokio::spawn(async move { caller.terminate("q").await });
    peer.request("process/terminate").await;
    drop(stream);
    let handover = in_time("the handover", client.detach()).await.unwrap();
    assert!(matches!(asked.await.unwrap(), Err(ExecError::Disconnected { .. })));
    assert_eq!(handover.positions, [("p".to_owned(), 1)]);
    assert!(head.as_bytes().starts_with(&handover.unread));

    // The next image has the same streams; here it gets what they would still give.
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (reader, writer) = tokio::io::split(theirs);
    let mut peer = Script { lines: LineReader::after(&[], reader), writer };
    let missing = &head[handover.unread.len()..];
    peer.raw(missing).await;
    peer.raw(tail).await;
    let (reader, writer) = tokio::io::split(ours);
    let client = ExecClient::adopt(reader, writer, &handover);
    let mut stream = client.subscribe("p", OutputCursor::after(1)).await.unwrap();
    let read = peer.answer_read(json!([chunk(2)]), 3, None, false).await;
    // The event from the handed-over bytes may have come before this read or after it; either way it counts once.
    assert!(read["params"]["afterSeq"].as_u64() >= Some(1));
    assert!(read["id"].as_i64() >= Some(handover.next_id));
    peer.event("p", &ProcessEvent::Exited { seq: 3, code: 0, signal: None }).await;
    peer.event("p", &ProcessEvent::Closed { seq: 4 }).await;
    let mut events = vec![output(1)];
    while let Some(event) = in_time("an event", stream.next()).await {
        events.push(event);
    }
    invariant_positions_have_no_gap(&events).unwrap();
    assert_eq!(events.len(), 4);
}

#[tokio::test]
async fn the_wake_value_only_grows_watched_or_not() {
    let session = ProcessSession::new();
    session.publish_output(OutputStream::Stdout, Bytes::from_static(b"a")).unwrap();
    let before = *session.wake().borrow();
    assert!(before > 0, "a change nobody watched is kept");
    session.publish_exited(0, None).unwrap();
    session.publish_closed().unwrap();
    session.publish_failed("too late");
    let after = *session.wake().borrow();
    assert!(after > before);
    assert_eq!(*session.wake().borrow(), after);
}
