//! The program as an exec server: the protocol over each transport, and what goes wrong with other servers of it.
//!
//! Laws: L7, L9, L18, L20.

#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::kit::{ALL, Over, PATIENCE, Served, Whole, at, marked, soon, until};

#[tokio::test]
async fn a_process_is_started_written_read_and_ended_over_every_transport() {
    for over in ALL {
        let served = Served::start(over).await;
        let mut peer = served.connect().await;
        let opened = peer.call("initialize", json!({"clientName": "tests", "new": 1})).await.expect("a session");
        let lease = opened.get("leaseMs").and_then(Value::as_u64);
        assert_eq!(lease, (over != Over::Stdio).then_some(30_000), "{over:?}");
        let capabilities = &opened["environmentInfo"]["capabilities"];
        for named in ["processCloseStdin", "processResize", "terminateGrace", "endsWithLeader", "markedBy"] {
            assert_eq!(capabilities[named], json!(true), "{named}");
        }
        peer.notify("initialized").await;
        let mut params = peer.shell("ä p", "read line; printf \"got $line\"; printf err >&2; exit 7");
        params["pipeStdin"] = json!(true);
        let started = peer.call("process/start", params.clone()).await.expect("it starts");
        assert_eq!(started, json!({"processId": "ä p", "sandboxType": "none"}));
        assert_eq!(peer.call("process/start", params.clone()).await, Err(-32600), "the name is taken");
        assert_eq!(peer.write("ä p", "hello\n").await, Ok(json!("accepted")));
        let whole = peer.whole("ä p").await;
        assert_eq!((whole.text().as_str(), whole.err.as_slice(), whole.exit), ("got hello", &b"err"[..], Some(7)));
        let read =
            peer.call("process/read", json!({"processId": "ä p", "waitMs": 60_000})).await.expect("it is remembered");
        assert_eq!(
            (&read["closed"], &read["exitCode"], &read["nextSeq"]),
            (&json!(true), &json!(7), &json!(whole.last + 1))
        );
        assert_eq!(peer.call("process/start", params).await, Err(-32600), "the name is still its own");
        assert_eq!(peer.write("ä p", "late").await, Ok(json!("stdinClosed")));
        assert_eq!(peer.write("other", "x").await, Ok(json!("unknownProcess")));
        assert_eq!(peer.call("process/terminate", json!({"processId": "ä p"})).await, Ok(json!({"running": false})));
        assert_eq!(peer.call("process/signal", json!({"processId": "x", "signal": "interrupt"})).await, Ok(json!({})));
        let info = peer.call("environment/info", Value::Null).await.expect("it says");
        assert_eq!(info["platformOs"], json!(std::env::consts::OS));
        peer.leave().await;
        served.end().await;
    }
}

#[tokio::test]
async fn each_refusal_has_its_code_and_costs_nothing_else() {
    let served = Served::start(Over::Ws).await;
    let mut peer = served.connect().await;
    assert_eq!(peer.call("process/read", json!({"processId": "p"})).await, Err(-32600));
    assert_eq!(peer.call("fs/readFile", json!({"path": "/"})).await, Err(-32600));
    assert_eq!(peer.call("no/such", json!({})).await, Err(-32601));
    assert_eq!(peer.call("initialize", json!({})).await, Err(-32602));
    let unknown = json!({"clientName": "c", "resumeSessionId": "none"});
    assert_eq!(peer.call("initialize", unknown).await, Err(-32600), "it may try again");
    assert!(peer.call("initialize", json!({"clientName": "c"})).await.is_ok());
    assert_eq!(peer.call("initialize", json!({"clientName": "c"})).await, Err(-32600));
    assert_eq!(peer.call("process/terminate", json!({"processId": "p"})).await, Err(-32600), "not initialized yet");
    peer.notify("initialized").await;
    peer.notify("initialized").await;
    for unreadable in ["{", "[]", "{\"id\":null,\"method\":\"x\"}", "{\"id\":1.5,\"method\":\"x\"}"] {
        peer.raw(unreadable).await;
        assert_eq!(peer.answer(-1).await, Err(-32600), "{unreadable}");
    }
    let fine = peer.shell("p", "true");
    let with = |key: &str, value: Value| {
        let mut params = fine.clone();
        params[key] = value;
        params
    };
    for (params, code) in [
        (with("argv", json!([])), -32602),
        (with("argv", json!([""])), -32602),
        (with("argv", json!(["/no/such/program"])), -32603),
        (with("argv", json!(["a\0b"])), -32603),
        (with("env", json!({"A": "b\0c"})), -32603),
        (with("cwd", json!("file:///no/such/directory")), -32603),
        (with("cwd", json!("relative")), -32602),
        (with("cwd", json!("file://elsewhere/")), -32602),
        (with("cwd", json!("file:///tmp?x")), -32602),
        (with("sandbox", json!({"mode": "strict"})), -32602),
        (with("managedNetwork", json!({})), -32602),
        (with("enforceManagedNetwork", json!(true)), -32602),
        (with("envPolicy", json!({"inherit": "some"})), -32602),
        (with("tty", json!("yes")), -32602),
    ] {
        assert_eq!(peer.call("process/start", params.clone()).await, Err(code), "{params}");
    }
    // The name is free after all that, and `..` is read as a URI's.
    let mut params = with("cwd", json!("file:///no/such/../../tmp"));
    params["sandbox"] = Value::Null;
    params["managedNetwork"] = Value::Null;
    assert!(peer.call("process/start", params).await.is_ok());
    assert_eq!(peer.whole("p").await.exit, Some(0));
    assert_eq!(peer.call("process/signal", json!({"processId": "p", "signal": "hup"})).await, Err(-32602));
    assert_eq!(peer.call("process/read", json!({"processId": "p", "afterSeq": -1})).await, Err(-32602));
    assert_eq!(peer.call("process/read", json!({"processId": "q"})).await, Err(-32600));
    assert_eq!(peer.call("process/write", json!({"processId": "p", "chunk": "!", "writeId": "w"})).await, Err(-32602));
    assert_eq!(peer.call("process/write", json!({"processId": "p", "chunk": "", "writeId": ""})).await, Err(-32602));
    assert_eq!(peer.call("fs/getMetadata", json!({"path": "file:///no/such/file"})).await, Err(-32004));
    peer.cut();
    served.end().await;
}

#[tokio::test]
async fn the_older_dialect_is_served() {
    let served = Served::start(Over::Ws).await;
    let mut peer = served.open().await;
    let start = json!({
        "processId": "p", "argv": ["/bin/sh", "-c", "pwd; cat"], "cwd": "/tmp", "env": {}, "tty": false, "pipeStdin": true,
    });
    peer.call("process/start", start).await.expect("it starts");
    let write = json!({"processId": "p", "chunk": "aGk="});
    assert_eq!(peer.call("process/write", write).await, Ok(json!({"status": "accepted"})));
    peer.call("process/closeStdin", json!({"processId": "p"})).await.expect("it closes");
    let whole = peer.whole("p").await;
    assert_eq!((whole.text().as_str(), whole.exit), ("/tmp\nhi", Some(0)));
    peer.cut();
    served.end().await;
}

/// B1: a task that both reads and writes its socket stops answering for good.
#[tokio::test]
async fn five_hundred_starts_at_once_are_all_answered() {
    let served = Served::start(Over::Ws).await;
    let mut peer = served.open().await;
    let mut ids = Vec::new();
    for n in 0..500 {
        let params = peer.shell(&n.to_string(), "echo $0");
        ids.push(peer.ask("process/start", params).await);
    }
    for id in ids {
        peer.answer(id).await.expect("it starts");
    }
    for n in 0..500 {
        let whole = peer.whole(&n.to_string()).await;
        assert_eq!((whole.text().as_str(), whole.exit), ("/bin/sh\n", Some(0)), "{n}");
    }
    peer.cut();
    served.end().await;
}

/// B1, with calls that are answered at once.
#[tokio::test]
async fn three_thousand_requests_in_a_row_are_all_answered() {
    for over in ALL {
        let served = Served::start(over).await;
        let mut peer = served.open().await;
        let mut ids = Vec::new();
        for _ in 0..3000 {
            ids.push(peer.ask("process/terminate", json!({"processId": "nobody"})).await);
        }
        for id in ids {
            assert_eq!(peer.answer(id).await, Ok(json!({"running": false})));
        }
        peer.leave().await;
        served.end().await;
    }
}

/// B3: a request that waits holds up every later one.
#[tokio::test]
async fn a_terminate_overtakes_a_read_that_waits_and_a_write_that_has_no_room() {
    let served = Served::start(Over::Ws).await;
    let mut peer = served.open().await;
    let mut params = peer.shell("p", "sleep 1000");
    params["pipeStdin"] = json!(true);
    peer.call("process/start", params).await.expect("it starts");
    let read = peer.ask("process/read", json!({"processId": "p", "waitMs": 300_000})).await;
    let block = "x".repeat(300_000);
    let mut writes = Vec::new();
    for n in 0..8 {
        let params = json!({"processId": "p", "chunk": block, "writeId": n.to_string()});
        writes.push(peer.ask("process/write", params).await);
    }
    let asked = Instant::now();
    assert_eq!(peer.call("process/terminate", json!({"processId": "p"})).await, Ok(json!({"running": true})));
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!(peer.answer(read).await.expect("an answer")["exited"], json!(true));
    let mut closed = 0;
    for write in writes {
        closed += usize::from(peer.answer(write).await.expect("an answer")["status"] == json!("stdinClosed"));
    }
    assert!(closed > 0, "there was room for everything");
    assert_eq!(peer.whole("p").await.exit, Some(137));
    peer.cut();
    served.end().await;
}

/// B4: requests of one process are performed in another order.
#[tokio::test]
async fn what_is_asked_of_one_process_without_waiting_keeps_its_order() {
    let served = Served::start(Over::Ws).await;
    let mut peer = served.open().await;
    let mut params = peer.shell("p", "cat");
    params["pipeStdin"] = json!(true);
    let mut ids = vec![peer.ask("process/start", params).await];
    let mut sent = String::new();
    for n in 0..300 {
        let line = format!("{n}\n");
        let chunk = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &line);
        let params = json!({"processId": "p", "chunk": chunk, "writeId": n.to_string()});
        ids.push(peer.ask("process/write", params.clone()).await);
        // Once more, as after a lost answer.
        ids.push(peer.ask("process/write", params).await);
        sent.push_str(&line);
    }
    ids.push(peer.ask("process/closeStdin", json!({"processId": "p"})).await);
    for id in ids {
        peer.answer(id).await.expect("it is done");
    }
    let whole = peer.whole("p").await;
    assert_eq!((whole.text(), whole.exit), (sent, Some(0)));
    peer.cut();
    served.end().await;
}

/// B5 and B6: events out of order, and what is lost for it. Each event comes in its place, so nobody has to hold any.
#[tokio::test]
async fn two_busy_streams_arrive_whole_and_in_order() {
    const EACH: usize = 6_000_000;
    for over in ALL {
        let served = Served::start(over).await;
        let mut peer = served.open().await;
        let script = format!("yes 0123456 | head -c {EACH} & yes 6543210 | head -c {EACH} >&2; wait");
        peer.start("p", &script).await;
        // `take` of each event is what says that none is out of its place.
        let whole = peer.whole("p").await;
        assert_eq!((whole.out.len(), whole.err.len(), whole.exit), (EACH, EACH, Some(0)), "{over:?}");
        assert!(whole.out.chunks(8).all(|line| b"0123456\n".starts_with(line)));
        assert!(whole.err.chunks(8).all(|line| b"6543210\n".starts_with(line)));
        peer.leave().await;
        served.end().await;
    }
}

/// B2: a peer that is wedged and then cut is never noticed, and its processes leak.
#[tokio::test]
async fn a_peer_that_reads_nothing_and_is_cut_has_its_processes_ended_when_its_lease_is_over() {
    for over in [Over::Ws, Over::Unix] {
        let served = Served::start_with(over, &["--lease-s", "1"]).await;
        let mut peer = served.connect().await;
        let session =
            peer.call("initialize", json!({"clientName": "c"})).await.expect("a session")["sessionId"].clone();
        peer.notify("initialized").await;
        for n in 0..4 {
            peer.start(&n.to_string(), "setsid sleep 1000 & yes").await;
        }
        for _ in 0..500 {
            peer.ask("process/terminate", json!({"processId": "nobody"})).await;
        }
        assert!(marked(&served.word).len() >= 10, "it runs");
        let cut = Instant::now();
        peer.cut();
        // The leaders end with their session; what left its group is the server's to end with itself.
        until("its processes end", || {
            let all = marked(&served.word);
            let busy =
                |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.starts_with(b"yes"));
            !all.iter().any(busy)
        })
        .await;
        assert!(cut.elapsed() >= Duration::from_millis(900), "ended before its lease was over: {:?}", cut.elapsed());
        let mut again = served.connect().await;
        let resume = json!({"clientName": "c", "resumeSessionId": session});
        assert_eq!(again.call("initialize", resume).await, Err(-32600));
        again.cut();
        served.end().await;
    }
}

/// B7: a resume under load fails. What the cut connection swallowed is still there, and what follows waits for the read.
#[tokio::test]
async fn a_session_that_is_cut_again_and_again_while_it_floods_loses_nothing() {
    const LINES: usize = 1_000_000;
    for over in [Over::Ws, Over::Unix] {
        let served = Served::start(over).await;
        let mut peer = served.connect().await;
        let session =
            peer.call("initialize", json!({"clientName": "c"})).await.expect("a session")["sessionId"].clone();
        peer.notify("initialized").await;
        peer.start("p", &format!("seq 1 {LINES}; exit 3")).await;
        let mut whole = Whole::default();
        let mut cuts = 0;
        let mut over_already = false;
        while !over_already {
            // Some of it, then a cut in the middle of the flood.
            for _ in 0..20 {
                let (method, params) = peer.event("p").await;
                over_already = whole.take(&method, &params);
                if over_already {
                    break;
                }
            }
            if over_already || cuts == 5 {
                break;
            }
            cuts += 1;
            peer.cut();
            peer = resumed(&served, &session).await;
            peer.notify("initialized").await;
            let read = json!({"processId": "p", "afterSeq": whole.last, "waitMs": 0});
            let answer = peer.call("process/read", read).await.expect("it is known");
            let first = answer["chunks"].as_array().and_then(|chunks| chunks.first()).cloned().unwrap_or_default();
            if let Some(first) = first["seq"].as_u64() {
                assert_eq!(first, whole.last + 1, "what was on its way is gone");
            }
        }
        if !over_already {
            whole = peer.rest("p", whole).await;
        }
        let wanted: String = (1..=LINES).map(|line| format!("{line}\n")).collect();
        assert!(cuts == 5 && whole.text() == wanted, "{over:?}: {} of {} bytes", whole.out.len(), wanted.len());
        assert_eq!(whole.exit, Some(3));
        peer.cut();
        served.end().await;
    }
}

/// A new connection with the session of one that was cut a moment ago.
async fn resumed(served: &Served, session: &Value) -> super::kit::Peer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut peer = served.connect().await;
        match peer.call("initialize", json!({"clientName": "c", "resumeSessionId": session})).await {
            Ok(_) => return peer,
            // The server has not seen the cut yet.
            Err(-32010) => assert!(Instant::now() < deadline, "still attached"),
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn a_session_is_attached_once_and_the_one_who_has_it_keeps_it() {
    let served = Served::start(Over::Ws).await;
    let mut peer = served.connect().await;
    let session = peer.call("initialize", json!({"clientName": "c"})).await.expect("a session")["sessionId"].clone();
    peer.notify("initialized").await;
    for n in 0..3 {
        let mut other = served.connect().await;
        let resume = json!({"clientName": "c", "resumeSessionId": session});
        assert_eq!(other.call("initialize", resume).await, Err(-32010));
        // It was asked whether it is there, and is.
        peer.start(&n.to_string(), "true").await;
        other.cut();
    }
    peer.start("after", "echo here").await;
    assert_eq!(peer.whole("after").await.text(), "here\n");
    peer.cut();
    let mut peer = resumed(&served, &session).await;
    peer.notify("initialized").await;
    // Who reads nothing is pushed what there is.
    assert_eq!(peer.whole("after").await.text(), "here\n");
    peer.cut();
    served.end().await;
}

/// B2, where nothing says that the peer is gone: a network that swallows everything.
#[tokio::test]
async fn a_peer_that_does_not_answer_loses_its_session_to_who_comes_back_with_its_name() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let served = Served::start(Over::Ws).await;
    let mut silent = tokio::net::TcpStream::connect(served.address()).await.expect("it listens");
    let head = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    // A text of one frame, masked with zeros.
    let hello = br#"{"id":1,"method":"initialize","params":{"clientName":"c"}}"#;
    let mut bytes = head.as_bytes().to_vec();
    bytes.extend([0x81, 0x80 | u8::try_from(hello.len()).expect("short"), 0, 0, 0, 0]);
    bytes.extend(hello);
    silent.write_all(&bytes).await.expect("it takes it");
    let mut said = Vec::new();
    let session = loop {
        soon("the answer", silent.read_buf(&mut said)).await.expect("it answers");
        let text = String::from_utf8_lossy(&said).into_owned();
        if let Some((_, rest)) = text.split_once("\"sessionId\":\"")
            && let Some((session, _)) = rest.split_once('"')
        {
            break json!(session);
        }
    };
    // From here on it is silent, and its connection stands.
    let came = Instant::now();
    let mut peer = resumed(&served, &session).await;
    assert!(came.elapsed() >= Duration::from_millis(2500), "it had no time to answer: {:?}", came.elapsed());
    assert!(came.elapsed() < Duration::from_secs(20), "{:?}", came.elapsed());
    peer.notify("initialized").await;
    peer.start("p", "echo here").await;
    assert_eq!(peer.whole("p").await.text(), "here\n");
    peer.cut();
    drop(silent);
    served.end().await;
}

#[tokio::test]
async fn a_detached_process_is_not_slowed_and_its_end_is_remembered() {
    let served = Served::start(Over::Ws).await;
    let mut peer = served.connect().await;
    let session = peer.call("initialize", json!({"clientName": "c"})).await.expect("a session")["sessionId"].clone();
    peer.notify("initialized").await;
    let done = at(&served.scratch, "done");
    peer.start("p", &format!("sleep 0.3; yes | head -c 8000000; touch {}; exit 5", done.display())).await;
    peer.cut();
    until("it ran to its end with nobody there", || done.exists()).await;
    let mut peer = resumed(&served, &session).await;
    peer.notify("initialized").await;
    let read = json!({"processId": "p", "waitMs": 60_000, "maxBytes": 1});
    let answer = peer.call("process/read", read).await.expect("it is known");
    let chunks = answer["chunks"].as_array().expect("chunks");
    assert_eq!(chunks.len(), 1, "one chunk at least, whatever its size");
    assert!(chunks[0]["seq"].as_u64() > Some(1), "more than it retains was written");
    soon("its end", async {
        while peer
            .call("process/read", json!({"processId": "p", "afterSeq": 1_000_000, "waitMs": 100}))
            .await
            .expect("known")["exitCode"]
            != json!(5)
        {}
    })
    .await;
    peer.cut();
    served.end().await;
}

#[tokio::test]
async fn a_peer_that_does_not_read_holds_up_its_own_processes_and_nobody_else() {
    let served = Served::start(Over::Ws).await;
    let mut slow = served.open().await;
    for n in 0..10 {
        slow.start(&n.to_string(), "yes").await;
    }
    let mut other = served.open().await;
    for n in 0..20 {
        other.start(&n.to_string(), "echo quick").await;
        assert_eq!(other.whole(&n.to_string()).await.text(), "quick\n");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.inner_pid())).expect("its status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let resident: u64 = resident.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(resident < 120_000, "{resident} kB for a peer that does not read");
    // It is served on when it reads.
    for n in 0..10 {
        assert_eq!(
            slow.call("process/terminate", json!({"processId": n.to_string()})).await,
            Ok(json!({"running": true}))
        );
        assert_eq!(slow.whole(&n.to_string()).await.exit, Some(137));
    }
    slow.cut();
    other.cut();
    served.end().await;
}

/// B8: no grace, no end for what outlives its leader, no end of standard input, no size of a terminal.
#[tokio::test]
async fn terminate_gives_grace_and_reaches_a_group_without_its_leader() {
    let served = Served::start(Over::Ws).await;
    let mut peer = served.open().await;
    peer.start("asked", "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.02; done").await;
    assert_eq!(peer.event("asked").await.0, "output");
    let asked = json!({"processId": "asked", "graceMs": 60_000});
    assert_eq!(peer.call("process/terminate", asked).await, Ok(json!({"running": true})));
    let whole = peer.rest("asked", Whole { last: 1, ..Whole::default() }).await;
    assert_eq!((whole.text().as_str(), whole.exit), ("bye\n", Some(4)));
    peer.start("deaf", "trap '' TERM; echo up; while :; do sleep 0.02; done").await;
    assert_eq!(peer.event("deaf").await.0, "output");
    let asked = json!({"processId": "deaf", "graceMs": 50});
    assert_eq!(peer.call("process/terminate", asked).await, Ok(json!({"running": true})));
    assert_eq!(peer.rest("deaf", Whole { last: 1, ..Whole::default() }).await.exit, Some(137));
    // The leader is gone, and others of its group have its pipes.
    peer.start("led", "sleep 1000 & echo up; exit 0").await;
    while peer.event("led").await.0 != "exited" {}
    assert_eq!(peer.call("process/terminate", json!({"processId": "led"})).await, Ok(json!({"running": true})));
    assert_eq!(peer.event("led").await.0, "closed");
    // What left the group has the pipes, and does not keep it open.
    peer.start("left", "setsid sleep 1000 & echo up; sleep 1000").await;
    assert_eq!(peer.event("left").await.0, "output");
    peer.call("process/terminate", json!({"processId": "left"})).await.expect("it is known");
    assert_eq!(peer.rest("left", Whole { last: 1, ..Whole::default() }).await.exit, Some(137));
    peer.cut();
    served.end().await;
}

#[tokio::test]
async fn what_a_leader_leaves_lives_on_unless_it_ends_with_it() {
    let served = Served::start(Over::Ws).await;
    let mut peer = served.open().await;
    let late = at(&served.scratch, "late");
    // Output after the exit, then the end.
    peer.start("writes", "(sleep 1; echo late) & exit 3").await;
    let whole = peer.whole("writes").await;
    assert_eq!((whole.text().as_str(), whole.exit), ("late\n", Some(3)));
    // In the background with nothing of it: closed at once, and alive.
    let script = format!("(sleep 1; touch {}; exec sleep 1000) </dev/null >/dev/null 2>&1 & exit 0", late.display());
    peer.start("silent", &script).await;
    assert_eq!(peer.whole("silent").await.exit, Some(0));
    assert!(!late.exists());
    until("what was left in the background goes on", || late.exists()).await;
    assert_eq!(peer.call("process/terminate", json!({"processId": "silent"})).await, Ok(json!({"running": true})));
    until("it is ended when it is asked for", || !any_sleeper(&served.word)).await;
    let mut params = peer.shell("agent", "sleep 1000 & sleep 1000 </dev/null >/dev/null 2>&1 & exit 0");
    params["endsWithLeader"] = json!(true);
    peer.call("process/start", params).await.expect("it starts");
    assert_eq!(peer.whole("agent").await.exit, Some(0));
    assert!(!any_sleeper(&served.word), "closed before its group was empty");
    peer.cut();
    served.end().await;
}

fn any_sleeper(word: &str) -> bool {
    let sleeps =
        |pid: i32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.starts_with(b"sleep"));
    marked(word).into_iter().any(sleeps)
}

#[tokio::test]
async fn a_terminal_has_a_size_that_changes_an_end_of_input_and_a_ctrl_c() {
    let served = Served::start(Over::Ws).await;
    let mut peer = served.open().await;
    let script = "stty size; read line; stty size; cat >/dev/null; echo end; trap 'echo stopped; exit 6' INT; echo on; \
                  while :; do sleep 0.02; done";
    let mut params = peer.shell("t", script);
    params["tty"] = json!(true);
    peer.call("process/start", params).await.expect("it starts");
    let mut whole = Whole::default();
    let mut until_said = async |peer: &mut super::kit::Peer, wanted: &str| {
        while !whole.text().contains(wanted) {
            let (method, params) = peer.event("t").await;
            assert_eq!((method.as_str(), &params["stream"]), ("output", &json!("pty")));
            whole.take(&method, &params);
        }
        whole.last
    };
    until_said(&mut peer, "24 80").await;
    let resize = json!({"processId": "t", "cols": 101, "rows": 33});
    assert_eq!(peer.call("process/resize", resize).await, Ok(json!({})));
    peer.write("t", "\n").await.expect("it takes it");
    until_said(&mut peer, "33 101").await;
    peer.write("t", "\u{4}").await.expect("it takes it");
    until_said(&mut peer, "on").await;
    let read = peer.call("process/read", json!({"processId": "t"})).await.expect("it is known");
    assert_eq!(read["chunks"][0]["stream"], json!("pty"));
    peer.call("process/signal", json!({"processId": "t", "signal": "interrupt"})).await.expect("it is known");
    let last = until_said(&mut peer, "stopped").await;
    assert_eq!(peer.rest("t", Whole { last, ..Whole::default() }).await.exit, Some(6));
    peer.start("p", "sleep 1000").await;
    let resize = json!({"processId": "p", "cols": 101, "rows": 33});
    assert_eq!(peer.call("process/resize", resize).await, Err(-32600), "it has no terminal");
    peer.cut();
    served.end().await;
}

/// B9: silence after a message that cannot be answered.
#[tokio::test]
async fn a_message_that_cannot_be_answered_ends_the_connection() {
    for over in ALL {
        for stray in [
            "{\"method\":\"no/such\"}",
            "{\"id\":7,\"result\":{}}",
            "{\"id\":7,\"error\":{\"code\":1,\"message\":\"x\"}}",
        ] {
            let served = Served::start_with(over, if over == Over::Stdio { &[] } else { &["--lease-s", "0"] }).await;
            let mut peer = served.open().await;
            peer.start("p", "sleep 1000").await;
            peer.raw(stray).await;
            while peer.next().await.is_some() {}
            peer.leave().await;
            until("what it started ends", || !any_sleeper(&served.word)).await;
            served.end().await;
        }
    }
}

#[tokio::test]
async fn the_end_of_a_server_leaves_nothing_however_it_comes() {
    use rustix::process::{Pid, Signal, kill_process};
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Killed {
        Outer,
        Inner,
    }
    for (who, signal) in [
        (Killed::Outer, Signal::TERM),
        (Killed::Outer, Signal::INT),
        (Killed::Outer, Signal::KILL),
        (Killed::Inner, Signal::TERM),
        (Killed::Inner, Signal::KILL),
    ] {
        for over in [Over::Ws, Over::Unix] {
            let mut served = Served::start(over).await;
            let mut peer = served.open().await;
            // Deaf ones, ones that left their group, ones whose parents are gone.
            peer.start("a", "trap '' TERM HUP INT; setsid sh -c 'trap \"\" TERM; echo up; sleep 1000' & sleep 1000")
                .await;
            peer.start("b", "(setsid sleep 1000 >/dev/null 2>&1 &) ; echo up; sleep 1000").await;
            let mut params = peer.shell("c", "echo up; sleep 1000");
            params["tty"] = json!(true);
            peer.call("process/start", params).await.expect("it starts");
            for process in ["a", "b", "c"] {
                assert_eq!(peer.event(process).await.0, "output");
            }
            let pid = if who == Killed::Outer { served.outer_pid() } else { served.inner_pid() };
            kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("it is there");
            served.nothing_is_left().await;
            let status =
                soon("the server ends", served.outer.as_mut().expect("it has one").wait()).await.expect("it ends");
            assert_eq!(status.success(), signal != Signal::KILL, "{who:?} {signal:?}: {status}");
            if over == Over::Unix && signal != Signal::KILL {
                assert!(!at(&served.scratch, "own/s").exists(), "its socket is there");
            }
            peer.cut();
        }
    }
    // The standard streams: their end is the end of everything.
    let served = Served::start(Over::Stdio).await;
    let mut peer = served.open().await;
    peer.start("a", "trap '' TERM HUP; setsid sleep 1000 & echo up; sleep 1000").await;
    assert_eq!(peer.event("a").await.0, "output");
    peer.leave().await;
    served.nothing_is_left().await;
}

#[tokio::test]
async fn a_web_socket_is_for_who_is_ours_or_brings_the_token() {
    use std::io::{Read as _, Write as _};
    let scratch = tempfile::tempdir().expect("a directory");
    let token = at(&scratch, "token");
    std::fs::write(&token, "0123456789abcdef0123\n").expect("a file");
    let set = |mode: u32| {
        std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("a mode");
    };
    set(0o600);
    let served = Served::start_with(Over::Ws, &["--token-file", token.to_str().expect("a path")]).await;
    let address = served.address();
    let status = move |path: &str, headers: &str| {
        let mut socket = std::net::TcpStream::connect(address).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").expect("it writes");
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).expect("an answer");
        String::from_utf8_lossy(&answer[9..]).into_owned()
    };
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (path, headers, wanted) in [
        ("/readyz", "", "200"),
        ("/readyz", "Origin: http://evil\r\n", "403"),
        ("/", "", "400"),
        ("/other", "", "404"),
        ("/?x=1", upgrade, "101"),
        ("/", &format!("{upgrade}Origin: null\r\n"), "403"),
        ("/", &format!("{upgrade}Authorization: Bearer 0123456789abcdef0124\r\n"), "401"),
        ("/", &format!("{upgrade}Authorization: Bearer 0123456789abcdef0123\r\n"), "101"),
    ] {
        assert_eq!(status(path, headers), wanted, "{path} {headers}");
    }
    if cfg!(not(target_os = "linux")) {
        eprintln!("SKIPPED: a peer of user 65534 is refused: only Linux has threads of other users");
    } else if rustix::process::geteuid().is_root() {
        // A thread whose sockets are another user's.
        let authorized = format!("{upgrade}Authorization: Bearer 0123456789abcdef0123\r\n");
        let stranger = std::thread::spawn(move || {
            #[cfg(target_os = "linux")]
            nix::unistd::setfsuid(65_534.into());
            (status("/", upgrade), status("/", &authorized))
        });
        let seen = stranger.join().expect("it asks");
        assert_eq!(seen, ("401".to_owned(), "101".to_owned()), "user 65534 without and with the token");
    } else {
        eprintln!("SKIPPED: a peer of user 65534 is refused: only root can be somebody else");
    }
    served.end().await;
    for mode in [0o644, 0o660] {
        set(mode);
        let refused =
            refused_to_start(&["--listen", "ws://127.0.0.1:0", "--token-file", token.to_str().expect("a path")]);
        assert!(refused.contains("0600"), "{refused}");
    }
    for wrong in ["ws://localhost:1", "tcp://1", "wss://127.0.0.1:1"] {
        let refused = refused_to_start(&["--listen", wrong]);
        assert!(
            refused.contains("ws://IP:PORT") && refused.contains("unix:/PATH") && refused.contains("stdio"),
            "{refused}"
        );
    }
    assert!(refused_to_start(&["--listen", "ws://0.0.0.0:0"]).contains("--token-file"));
}

fn refused_to_start(arguments: &[&str]) -> String {
    let output = std::process::Command::new(super::kit::PROGRAM).arg("exec-server").args(arguments).output();
    let output = output.expect("the program starts");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &b""[..]));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_message_over_its_bound_ends_its_connection_alone() {
    let served = Served::start(Over::Unix).await;
    let mut other = served.open().await;
    let mut peer = served.open().await;
    // In pieces, so that the end is seen while it is written.
    let piece = "x".repeat(1 << 20);
    let mut ended = false;
    for _ in 0..80 {
        if peer.try_raw(&piece).await.is_err() {
            ended = true;
            break;
        }
    }
    assert!(ended || peer.next().await.is_none(), "80 MiB were taken");
    other.start("p", "echo here").await;
    assert_eq!(other.whole("p").await.text(), "here\n");
    other.cut();
    peer.cut();
    served.end().await;
}

#[tokio::test]
async fn files_are_read_and_replaced_in_blocks_without_waiting_for_each() {
    let served = Served::start(Over::Ws).await;
    let mut peer = served.open().await;
    let path = at(&served.scratch, "f");
    std::fs::write(&path, "old").expect("a file");
    let uri = format!("file://{}", path.display());
    let mut ids = vec![peer.ask("fs/open", json!({"handleId": "h", "path": uri, "mode": "replace"})).await];
    let block = "QUJD".repeat(1000);
    for n in 0..50 {
        let write = json!({"handleId": "h", "offset": n * 3000, "chunk": block});
        ids.push(peer.ask("fs/writeBlock", write).await);
    }
    ids.push(peer.ask("fs/close", json!({"handleId": "h"})).await);
    for id in ids {
        peer.answer(id).await.expect("it is done");
    }
    assert_eq!(std::fs::read_to_string(&path).expect("the new one"), "ABC".repeat(50_000));
    let found = peer.call("fs/getMetadata", json!({"path": uri})).await.expect("it is there");
    assert_eq!(found["size"], json!(150_000));
    peer.cut();
    served.end().await;
}
