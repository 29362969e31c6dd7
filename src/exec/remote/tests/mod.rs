//! The whole client in memory: its loop, its handles and its processes, against a server that keeps its processes through cuts.
//!
//! Laws: L5, L7, L8, L9, L20.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::super::invariants::{invariant_exactly_one_terminal_and_last, invariant_positions_have_no_gap};
use super::super::{EventStream, OutputCursor, OutputStream, ProcessEvent};
use super::*;

mod bursts;
mod server;

use self::server::Scripted;

const PATIENCE: Duration = Duration::from_secs(20);

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

async fn all(session: &ProcessSession) -> Vec<ProcessEvent> {
    let mut stream: EventStream = session.subscribe(OutputCursor::start());
    let mut events = Vec::new();
    while let Some(event) = in_time("an event", stream.next()).await {
        events.push(event);
    }
    invariant_positions_have_no_gap(&events).unwrap();
    invariant_exactly_one_terminal_and_last(&events).unwrap();
    events
}

async fn connect(server: &Scripted, options: RemoteOptions) -> RemoteExec {
    let connected = RemoteExec::connect_by(server.connector(), AfterACut::Resumed, options);
    in_time("a connection", connected).await.unwrap()
}

async fn start(remote: &RemoteExec, id: &str) -> (ProcessSession, StartedProcess) {
    let session = ProcessSession::new();
    let started = remote.start(StartRequest::new(id, "/bin/program", "/"), session.clone());
    (session, in_time("a start", started).await.unwrap())
}

async fn until(what: &str, mut check: impl FnMut() -> bool) {
    in_time(what, async {
        while !check() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_process_is_heard_written_to_and_its_end_is_told() {
    let server = Scripted::default();
    let remote = connect(&server, RemoteOptions::default()).await;
    let (session, (process, mut tap)) = start(&remote, "p").await;
    server.output("p", b"hello");
    assert_eq!(in_time("output", tap.next()).await, Some((OutputStream::Stdout, Bytes::from_static(b"hello"))));
    assert_eq!(in_time("a write", process.write(Bytes::from_static(b"in"))).await, Ok(WriteStatus::Accepted));
    assert_eq!(server.written("p"), b"in");
    server.end("p", 3);
    assert_eq!(in_time("the end", process.end()).await.unwrap().code, 3);
    assert_eq!(all(&session).await.len(), 3);
    assert_eq!(in_time("the end of the tap", tap.next()).await, None);
    in_time("the end", remote.shutdown()).await;
    assert_eq!(remote.health().state, RemoteState::Down);
    let refused = remote.start(StartRequest::new("q", "/bin/program", "/"), ProcessSession::new()).await;
    assert!(matches!(refused, Err(ProcessStartError::Unreachable { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_cut_costs_nothing_and_is_the_next_generation() {
    let server = Scripted::default();
    let remote = connect(&server, RemoteOptions::default()).await;
    let (session, (process, mut tap)) = start(&remote, "p").await;
    for round in 0..4_u64 {
        server.output("p", b"before");
        server.cut();
        server.output("p", b"meanwhile");
        let written = in_time("a write", process.write(Bytes::from(vec![b'0' + round as u8]))).await;
        assert_eq!(written, Ok(WriteStatus::Accepted));
        assert_eq!(remote.health().generation, round + 2);
    }
    server.end("p", 0);
    let mut said = Vec::new();
    while let Some((_, bytes)) = in_time("output", tap.next()).await {
        said.extend_from_slice(&bytes);
    }
    assert_eq!((String::from_utf8(said).unwrap(), tap.lost()), ("beforemeanwhile".repeat(4), 0));
    assert_eq!((server.written("p"), all(&session).await.len()), (b"0123".to_vec(), 10));
}

#[tokio::test]
async fn a_panic_of_the_loop_is_a_generation_and_no_session_is_lost() {
    let server = Scripted::default();
    // The first two lines are the greeting's and the start's.
    let faults = Faults::armed("exec.read#4=panic; exec.read#9=error; exec.connect#2=error").unwrap();
    let remote = connect(&server, RemoteOptions { faults: faults.clone(), ..RemoteOptions::default() }).await;
    let (session, (_process, mut tap)) = start(&remote, "p").await;
    let mut said = Vec::new();
    for number in 0..20_u8 {
        server.output("p", &[b'a' + number]);
        let (_, bytes) = in_time("output", tap.next()).await.unwrap();
        said.extend_from_slice(&bytes);
    }
    server.end("p", 0);
    while let Some((_, bytes)) = in_time("output", tap.next()).await {
        said.extend_from_slice(&bytes);
    }
    assert_eq!(said, (b'a'..b'a' + 20).collect::<Vec<_>>());
    assert_eq!(all(&session).await.len(), 22);
    assert!(remote.health().generation >= 4, "{:?}", remote.health());
    assert!(faults.never_met().is_empty(), "{:?}", faults.never_met());
}

#[tokio::test]
async fn a_loop_that_panics_again_and_again_is_an_answer() {
    let server = Scripted::default();
    let faults = Faults::armed("exec.read#*=panic").unwrap();
    let connected = RemoteExec::connect_by(
        server.connector(),
        AfterACut::Resumed,
        RemoteOptions { faults, ..RemoteOptions::default() },
    );
    let refused = in_time("an answer", connected).await;
    assert!(matches!(refused, Err(ExecError::Disconnected { .. })), "{refused:?}");
}

#[tokio::test]
async fn the_last_handle_ends_what_runs_and_closes_the_connection() {
    let server = Scripted::default();
    let remote = connect(&server, RemoteOptions::default()).await;
    let (kept, (process, tap)) = start(&remote, "p").await;
    drop(remote);
    server.output("p", b"still heard");
    until("output", || kept.last_seq() == 1).await;
    drop((process, tap));
    until("the end of the process", || server.terminated("p")).await;
    server.end("p", 137);
    assert!(matches!(all(&kept).await.last(), Some(ProcessEvent::Closed { .. })));
    until("the end of the connection", || server.connections() == 0).await;
}

#[tokio::test]
async fn a_start_that_is_dropped_leaves_no_process() {
    let server = Scripted::default();
    server.hold_starts(true);
    let remote = connect(&server, RemoteOptions::default()).await;
    let request = StartRequest::new("p", "/bin/program", "/");
    let mut starting = remote.start(request, ProcessSession::new());
    let lapsed = tokio::time::timeout(Duration::from_millis(50), &mut starting).await;
    assert!(lapsed.is_err());
    drop(starting);
    server.hold_starts(false);
    until("the process was ended", || server.terminated("p")).await;
}

#[tokio::test]
async fn a_tap_that_is_not_read_is_felt_by_the_server_and_loses_nothing() {
    let server = Scripted::default();
    let remote = connect(&server, RemoteOptions::default()).await;
    let (_session, (_process, mut tap)) = start(&remote, "p").await;
    let piece = vec![b'x'; 64 * 1024];
    for _ in 0..200 {
        server.output("p", &piece);
    }
    server.end("p", 0);
    // What is on its way: the tap, the streams' buffers, and a line here and there.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let sent = server.sent();
    assert!(sent < 4 * 1024 * 1024, "{sent} bytes were taken for a tap nobody reads");
    let mut size = 0;
    while let Some((_, bytes)) = in_time("output", tap.next()).await {
        size += bytes.len();
    }
    assert_eq!((size, tap.lost()), (200 * piece.len(), 0));
}

#[tokio::test]
async fn input_given_with_the_start_is_written_in_pieces_and_ended() {
    let server = Scripted::default();
    let remote = connect(&server, RemoteOptions::default()).await;
    let mut request = StartRequest::new("p", "/bin/program", "/");
    let input = Bytes::from((0..1_000_000_u32).map(|number| (number % 251) as u8).collect::<Vec<_>>());
    request.stdin = StdinKind::Bytes(input.clone());
    let (_process, _tap) = in_time("a start", remote.start(request, ProcessSession::new())).await.unwrap();
    until("the end of input", || server.input_ended("p")).await;
    assert_eq!(server.written("p"), input);
}

#[tokio::test]
async fn files_are_read_whole_or_in_blocks_and_what_is_missing_is_told() {
    let server = Scripted::default();
    let remote = connect(&server, RemoteOptions::default()).await;
    let files = remote.files().unwrap();
    for size in [0, 5, 3 * 1024 * 1024, 20 * 1024 * 1024 + 7] {
        let bytes = Bytes::from((0..size).map(|number| (number % 253) as u8).collect::<Vec<_>>());
        in_time("a write", files.write_file(Path::new("/a file"), bytes.clone())).await.unwrap();
        let read = in_time("a read", files.read_file(Path::new("/a file"))).await.unwrap();
        assert!(read == bytes, "{size} bytes");
    }
    assert!(server.opened() == 2, "only the last was large");
    let missing = in_time("a refusal", files.metadata(Path::new("/missing"))).await;
    assert_eq!(missing, Err(FilesError::Missing { path: "/missing".into() }));
    let relative = in_time("a refusal", files.metadata(Path::new("relative"))).await;
    assert!(matches!(relative, Err(FilesError::Unnameable { .. })));
}

#[tokio::test]
async fn what_a_server_says_of_a_failed_start_is_told_as_a_machine_would() {
    let server = Scripted::default();
    let remote = connect(&server, RemoteOptions::default()).await;
    // (its error, what is meant)
    let cases = [
        (r#"{"code":-32603,"message":"x","data":{"kind":"notExecutable"}}"#, "NotExecutable"),
        (r#"{"code":-32603,"message":"No such file or directory (os error 2)"}"#, "ProgramMissing"),
        (r#"{"code":-32603,"message":"Permission denied (os error 13)"}"#, "NotExecutable"),
        (r#"{"code":-32603,"message":"Argument list too long (os error 7)"}"#, "ArgumentsTooLarge"),
        (r#"{"code":-32600,"message":"process p already exists"}"#, "DuplicateId"),
        (r#"{"code":-32602,"message":"no sandbox","data":17}"#, "Refused"),
        (r#"{"code":-32603,"message":"something else"}"#, "Other"),
    ];
    for (number, (error, meant)) in cases.into_iter().enumerate() {
        server.refuse_starts(Some(serde_json::from_str(error).unwrap()));
        let request = StartRequest::new(format!("p{number}"), "/bin/program", "/");
        let told = in_time("a refusal", remote.start(request, ProcessSession::new())).await.err().unwrap();
        assert!(format!("{told:?}").contains(meant), "{told:?} is not {meant}");
    }
    assert_eq!(remote.health().processes, 0);
}

#[tokio::test]
async fn a_server_that_is_not_there_or_answers_nonsense_is_an_error() {
    let away: Connector =
        Box::new(|_| async { Err(NoStreams { reason: "nobody there".to_owned(), retry: Retry::Later }) }.boxed());
    let refused =
        in_time("an answer", RemoteExec::connect_by(away, AfterACut::Resumed, RemoteOptions::default())).await;
    assert_eq!(refused.err(), Some(ExecError::Disconnected { reason: "nobody there".to_owned() }));
    let closed = AtomicUsize::new(0);
    let ends: Connector = Box::new(move |_| {
        closed.fetch_add(1, Ordering::Relaxed);
        let (reader, writer) = (Box::new(tokio::io::empty()), Box::new(tokio::io::sink()));
        async { Ok(Streams { reader, writer, ending: None }) }.boxed()
    });
    let refused =
        in_time("an answer", RemoteExec::connect_by(ends, AfterACut::Resumed, RemoteOptions::default())).await;
    assert!(matches!(refused, Err(ExecError::Disconnected { .. })), "{refused:?}");
}
