//! Each way to a server, with a peer that speaks raw WebSocket frames where it has to be odd.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use super::super::target::TargetWords;
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

fn target(text: &str) -> ExecTarget {
    ExecTarget::parse(&TargetWords::Text(text.to_owned())).expect("a target")
}

#[tokio::test]
async fn a_unix_socket_and_a_childs_streams_carry_lines_both_ways() {
    let scratch = tempfile::tempdir().expect("a directory");
    let path = scratch.path().join("s");
    let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
    let echo = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a client");
        let (mut read, mut write) = socket.split();
        tokio::io::copy(&mut read, &mut write).await.expect("an echo");
    });
    let unix = target(&format!("unix:{}", path.display()));
    let cat = ExecTarget::parse(&TargetWords::Program(vec!["cat".to_owned()])).expect("a program");
    for target in [unix, cat] {
        let (read, mut write, guard) = soon(connect(&target, Some("not for these"))).await.expect("a connection");
        write.write_all(b"{\"id\":1}\n").await.expect("it writes");
        write.flush().await.expect("it flushes");
        let mut lines = BufReader::new(read).lines();
        assert_eq!(soon(lines.next_line()).await.expect("it reads").as_deref(), Some("{\"id\":1}"), "{target}");
        drop((lines, write));
        soon(guard.end()).await;
    }
    soon(echo).await.expect("the echo ends");
}

#[tokio::test]
async fn a_child_is_ended_with_its_guard_whatever_it_does() {
    let stubborn = ["sh", "-c", "trap '' TERM HUP; echo $$; echo 'the last words' >&2; while :; do sleep 1000; done"];
    let argv: Vec<String> = stubborn.iter().map(|word| (*word).to_owned()).collect();
    let target = ExecTarget::parse(&TargetWords::Program(argv)).expect("a program");
    for in_order in [true, false] {
        let (read, write, guard) = soon(connect(&target, None)).await.expect("a connection");
        let mut lines = BufReader::new(read).lines();
        let pid: u32 = soon(lines.next_line()).await.expect("it reads").expect("a line").parse().expect("a pid");
        while guard.last_words() != "the last words" {
            tokio::task::yield_now().await;
        }
        drop((lines, write));
        if in_order {
            soon(guard.end()).await;
        } else {
            drop(guard);
        }
        soon(async {
            while super::super::local::living_members(pid).is_some_and(|living| !living.is_empty()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn who_is_not_there_is_said_with_its_name() {
    let said =
        soon(connect(&target("unix:/nowhere/at/all.sock"), None)).await.map(|_| ()).expect_err("nobody is there");
    assert!(said.to_string().contains("unix:/nowhere/at/all.sock"), "{said}");
    let none =
        ExecTarget::parse(&TargetWords::Program(vec!["no-such-program-anywhere".to_owned()])).expect("a program");
    assert!(matches!(soon(connect(&none, None)).await, Err(TransportError::Unreachable { .. })));
    if cfg!(not(feature = "tls")) {
        let said = soon(connect(&target("wss://build.example"), None)).await.map(|_| ()).expect_err("not built");
        assert!(said.to_string().contains("--features tls") && said.to_string().contains("ssh"), "{said}");
    }
}

#[cfg(feature = "ws")]
mod sockets {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::Role;
    use tokio_tungstenite::tungstenite::{Bytes, Message};

    use super::ws::{Side, bounds, split};
    use super::*;

    /// Our end as a server, and the peer's as a client that does what it likes.
    async fn pair(room: usize) -> (WebSocketStream<DuplexStream>, WebSocketStream<DuplexStream>) {
        let (ours, theirs) = duplex(room);
        let ours = WebSocketStream::from_raw_socket(ours, Role::Server, Some(bounds(Side::Server))).await;
        (ours, WebSocketStream::from_raw_socket(theirs, Role::Client, None).await)
    }

    #[tokio::test]
    async fn a_message_is_a_line_and_a_line_is_a_message() {
        let (ours, mut peer) = pair(1 << 20).await;
        let (read, mut write) = split(ours);
        let mut lines = BufReader::new(read).lines();
        let long = "x".repeat(300_000);
        let sent = ["{\"a\":1}", "{\"a\":\n2}\r\n", "", &long];
        for text in sent {
            peer.send(Message::text(text)).await.expect("it sends");
        }
        peer.send(Message::binary(&b"{\"b\":3}"[..])).await.expect("it sends");
        for line in ["{\"a\":1}", "{\"a\": 2}  ", "", &long, "{\"b\":3}"] {
            assert_eq!(soon(lines.next_line()).await.expect("it reads").as_deref(), Some(line));
        }
        // However the bytes come, a message is a whole line; a blank one is none.
        for bytes in [&b"{\"c\""[..], b":", b"4}\n\n{\"d\":5}\n{\"e", b"\":6}\n"] {
            write.write_all(bytes).await.expect("it writes");
        }
        write.write_all(format!("{long}\n").as_bytes()).await.expect("it writes");
        write.flush().await.expect("it flushes");
        for text in ["{\"c\":4}", "{\"d\":5}", "{\"e\":6}", &long] {
            assert_eq!(soon(peer.next()).await.expect("a message").expect("whole"), Message::text(text));
        }
        let said = write.write_all(b"\xff\n").await.expect_err("no text");
        assert_eq!(said.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_ping_is_answered_by_a_side_that_writes_nothing() {
        let (ours, mut peer) = pair(1 << 16).await;
        let (mut read, _write) = split(ours);
        let reading = tokio::spawn(async move { read.read_u8().await });
        peer.send(Message::Ping(Bytes::from_static(b"there?"))).await.expect("it sends");
        let answer = soon(peer.next()).await.expect("an answer").expect("whole");
        assert_eq!(answer, Message::Pong(Bytes::from_static(b"there?")));
        peer.close(None).await.expect("it closes");
        assert!(soon(reading).await.expect("it ends").is_err(), "the end of the peer is the end of the lines");
    }

    #[tokio::test]
    async fn pieces_are_one_message_and_what_is_over_the_bounds_ends_the_connection() {
        use tokio_tungstenite::tungstenite::protocol::frame::Frame;
        use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
        let (ours, mut peer) = pair(1 << 20).await;
        let (read, _write) = split(ours);
        let mut lines = BufReader::new(read).lines();
        let piece = |text: &'static str, kind, last| Message::Frame(Frame::message(text, OpCode::Data(kind), last));
        peer.send(piece("{\"a\"", Data::Text, false)).await.expect("it sends");
        peer.send(Message::Ping(Bytes::new())).await.expect("it sends");
        peer.send(piece(":1}", Data::Continue, true)).await.expect("it sends");
        assert_eq!(soon(lines.next_line()).await.expect("it reads").as_deref(), Some("{\"a\":1}"));
        let sending = tokio::spawn(async move {
            let _ = peer.send(Message::text("x".repeat(ws::FRAME_BYTES + 1))).await;
        });
        assert!(soon(lines.next_line()).await.is_err(), "a frame over its bound was taken");
        sending.abort();
    }

    #[tokio::test]
    async fn a_peer_that_reads_nothing_is_read_all_the_same_and_holds_little() {
        let (ours, mut peer) = pair(4096).await;
        let (read, mut write) = split(ours);
        let mut lines = BufReader::new(read).lines();
        // Our writes come to a stop: the peer reads nothing.
        let line = format!("{}\n", "y".repeat(64 * 1024));
        let writing = tokio::spawn(async move {
            let mut written = 0_usize;
            loop {
                if tokio::time::timeout(Duration::from_millis(200), write.write_all(line.as_bytes())).await.is_err() {
                    return (written, write);
                }
                written += line.len();
            }
        });
        for n in 0..100 {
            let text = format!("{{\"n\":{n}}}");
            peer.send(Message::text(text.as_str())).await.expect("it sends");
            assert_eq!(soon(lines.next_line()).await.expect("it reads").as_deref(), Some(text.as_str()));
        }
        let (written, _write) = soon(writing).await.expect("it stops");
        assert!(written < 1024 * 1024, "{written} bytes were taken for a peer that reads nothing");
    }

    #[tokio::test]
    async fn a_mark_comes_back_when_everything_before_it_was_read() {
        let (ours, mut peer) = pair(1 << 20).await;
        let (mut read, mut write) = split(ours);
        let marks = write.marks();
        let mut known = marks.read();
        let reading = tokio::spawn(async move { read.read_u8().await });
        write.write_all(b"{\"a\":1}\n").await.expect("it writes");
        marks.ask(7);
        write.flush().await.expect("it flushes");
        assert_eq!(*known.borrow(), 0, "nobody has read it");
        assert_eq!(soon(peer.next()).await.expect("a message").expect("whole"), Message::text("{\"a\":1}"));
        assert!(matches!(soon(peer.next()).await, Some(Ok(Message::Ping(_)))));
        peer.flush().await.expect("it answers");
        assert_eq!(*soon(known.wait_for(|mark| *mark == 7)).await.expect("it comes back"), 7);
        // A mark nobody asked for is nobody's.
        peer.send(Message::Pong(Bytes::copy_from_slice(&99_u64.to_be_bytes()))).await.expect("it sends");
        peer.send(Message::text("x")).await.expect("it sends");
        assert_eq!(soon(reading).await.expect("it ends").expect("a byte"), b'x');
        assert_eq!(*known.borrow(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_asked_and_one_that_does_not_answer_is_gone() {
        let (ours, mut peer) = pair(1 << 16).await;
        let (read, _write) = split(ours);
        let mut read = read.with_keepalive();
        // The keepalive goes by the real clock; what is shown here is that a doubt asks at once.
        read.doubt().say();
        let reading = tokio::spawn(async move { read.read_u8().await });
        assert!(matches!(peer.next().await, Some(Ok(Message::Ping(_)))));
        drop(peer);
        assert!(reading.await.expect("it ends").is_err());
    }

    #[tokio::test]
    async fn a_client_is_told_why_it_is_not_taken_in() {
        use tokio_tungstenite::accept_hdr_async;
        use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let address = listener.local_addr().expect("an address");
        let serving = tokio::spawn(async move {
            for _ in 0..2 {
                let (socket, _) = listener.accept().await.expect("a client");
                let judge = |request: &Request, response: Response| {
                    if request.headers().get("Authorization").is_some_and(|said| said == "Bearer right") {
                        return Ok(response);
                    }
                    let mut refused = ErrorResponse::new(None);
                    *refused.status_mut() = tokio_tungstenite::tungstenite::http::StatusCode::UNAUTHORIZED;
                    Err(refused)
                };
                if let Ok(mut socket) = accept_hdr_async(socket, judge).await {
                    socket.send(Message::text("{\"in\":true}")).await.expect("it sends");
                    socket.close(None).await.expect("it closes");
                }
            }
        });
        let target = target(&format!("ws://{address}"));
        let said = soon(connect(&target, Some("s3cr3t"))).await.map(|_| ()).expect_err("a wrong token").to_string();
        assert!(said.contains("401") && !said.contains("s3cr3t"), "{said}");
        let (read, _write, _guard) = soon(connect(&target, Some("right"))).await.expect("a connection");
        let mut lines = BufReader::new(read).lines();
        assert_eq!(soon(lines.next_line()).await.expect("it reads").as_deref(), Some("{\"in\":true}"));
        assert_eq!(soon(lines.next_line()).await.expect("the end"), None);
        soon(serving).await.expect("it served");
        assert!(matches!(soon(connect(&target, None)).await, Err(TransportError::Unreachable { .. })));
    }
}
