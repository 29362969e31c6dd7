//! What every place must do.
//!
//! Laws: L7, L9, L20.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use phone_opus::internals::exec::backend::{ProcessStartError, StdinKind};
use phone_opus::internals::exec::client::ExecError;
use phone_opus::internals::exec::local::{TerminalSize, WriteStatus};
use phone_opus::internals::exec::{OutputCursor, OutputStream, ProcessEvent, ProcessSession, ReadExit, SpawnError};
use phone_opus::testkit::wait::Waiting;

use super::place::{Difference, PATIENCE, Place, Running, in_time};

fn text_of(events: &[ProcessEvent], wanted: OutputStream) -> String {
    let mut text = Vec::new();
    for event in events {
        if let ProcessEvent::Output { stream, bytes, .. } = event
            && *stream == wanted
        {
            text.extend_from_slice(bytes);
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

pub(super) async fn case_01_events_are_numbered_from_one_and_ordered(place: &Place) {
    let running = place.run("p", "echo out; echo err >&2; exit 3").await;
    let events = running.all().await;
    assert_eq!(text_of(&events, OutputStream::Stdout), "out\n");
    assert_eq!(text_of(&events, OutputStream::Stderr), "err\n");
    let last = events.len() as u64;
    assert_eq!(events.last(), Some(&ProcessEvent::Closed { seq: last }));
    assert!(events.iter().any(|event| matches!(event, ProcessEvent::Exited { code: 3, .. })), "{events:?}");
    assert_eq!(running.code().await, 3);
}

pub(super) async fn case_02_output_may_follow_the_exit_and_closed_follows_the_output(place: &Place) {
    let running = place.run("p", "(while kill -0 $$; do :; done 2>/dev/null; echo late) & exit 1").await;
    let events = running.all().await;
    assert_eq!(text_of(&events, OutputStream::Stdout), "late\n");
    assert!(matches!(events.last(), Some(ProcessEvent::Closed { .. })), "{events:?}");
}

pub(super) async fn case_03a_exit_codes_and_deaths_by_signal(place: &Place) {
    for (number, (script, code)) in
        [("exit 0", 0), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137)].into_iter().enumerate()
    {
        let running = place.run(&format!("p{number}"), script).await;
        let events = running.all().await;
        let seen = events.iter().find_map(|event| match event {
            ProcessEvent::Exited { code, .. } => Some(*code),
            _ => None,
        });
        assert_eq!((seen, running.code().await), (Some(code), code), "{script}");
        let died_of = (code > 128 && code < 255 && !place.differs(Difference::SignalsAreCodes)).then_some(code - 128);
        let end = in_time("the end", running.process.0.end()).await.expect("an end");
        assert_eq!(end.signal, died_of, "{script}");
    }
}

pub(super) async fn case_03c_a_terminal_takes_another_size_and_a_pipe_has_none(place: &Place) {
    let size = TerminalSize { cols: 132, rows: 50 };
    let mut request = place.shell("p", "read a; stty size; read a; exit 0");
    request.tty = true;
    request.stdin = StdinKind::Piped;
    let mut running = place.start(request).await;
    let resized = in_time("a size", running.process.0.resize(size)).await;
    if place.differs(Difference::SizesStay) {
        assert!(matches!(resized, Err(ExecError::NotDone { .. })), "{resized:?}");
        return;
    }
    assert_eq!(resized, Ok(true));
    running.write("\n").await;
    running.until("50 132").await;
    running.write("\n").await;
    assert_eq!(running.code().await, 0);

    let mut request = place.shell("q", "read a; exit 0");
    request.stdin = StdinKind::Piped;
    let piped = place.start(request).await;
    assert_eq!(in_time("a size", piped.process.0.resize(size)).await, Ok(false), "it has no terminal");
    piped.write("\n").await;
    assert_eq!(piped.code().await, 0);
}

pub(super) async fn case_03b_a_terminal_is_one(place: &Place) {
    let mut request = place.shell("p", "test -t 0 && test -t 1 && test -t 2 && read a && echo \"got $a\"; exit 5");
    request.tty = true;
    request.stdin = StdinKind::Piped;
    request.env.push(("TERM".into(), "dumb".into()));
    let session = ProcessSession::new();
    let started = in_time("a start", place.backend.start(request, session.clone())).await;
    let mut running = Running { process: started.expect("a terminal"), session };
    running.write("hello\n").await;
    let (out, err) = running.output().await;
    let out = String::from_utf8_lossy(&out).into_owned();
    assert!(out.contains("got hello") && err.is_empty(), "{out:?}");
    assert_eq!(running.code().await, 5);
}

pub(super) async fn case_04_a_taken_name_a_failed_start_and_a_missing_directory_are_told(place: &Place) {
    let mut first = place.shell("taken", "read a");
    first.stdin = StdinKind::Piped;
    let first = place.start(first).await;
    let refused = |request| async {
        in_time("a refusal", place.backend.start(request, ProcessSession::new())).await.expect_err("refused")
    };
    if !place.differs(Difference::NamesAreFreed) {
        let error = refused(place.shell("taken", "exit 0")).await;
        assert!(matches!(error, ProcessStartError::DuplicateId { .. }), "{error:?}");
    }
    first.write("\n").await;
    first.all().await;
    let mut missing = place.shell("free", "exit 0");
    missing.program = "/no/such/program".into();
    let error = refused(missing).await;
    assert!(matches!(error, ProcessStartError::Spawn(SpawnError::ProgramMissing { .. })), "{error:?}");
    let mut elsewhere = place.shell("free", "exit 0");
    elsewhere.cwd = "/no/such/directory".into();
    let error = refused(elsewhere).await;
    assert!(matches!(error, ProcessStartError::Spawn(SpawnError::CwdMissing { .. })), "{error:?}");
    let file = place.dir.path().join("file");
    std::fs::write(&file, "not a program").expect("a file");
    let mut odd = place.shell("free", "exit 0");
    odd.program = file;
    let error = refused(odd).await;
    assert!(matches!(error, ProcessStartError::Spawn(SpawnError::NotExecutable { .. })), "{error:?}");
    // A name whose start failed is free.
    let running = place.run("free", "exit 4").await;
    assert_eq!(running.code().await, 4);
}

pub(super) async fn case_05_environment_directory_names_and_argument_zero_are_exact(place: &Place) {
    let dir = place.dir.path().join("a ü %20?#");
    std::fs::create_dir(&dir).expect("a directory");
    let mut request = place.shell("ü/日本 %", "exec env");
    request.env.push(("ODD".into(), "a=b c\"ü".into()));
    request.cwd.clone_from(&dir);
    let mut running = place.start(request).await;
    let (out, _) = running.output().await;
    let mut names: Vec<_> = String::from_utf8(out).expect("text").lines().map(ToOwned::to_owned).collect();
    // A shell has variables of its own.
    names.retain(|line| !["PWD=", "OLDPWD=", "SHLVL=", "_="].iter().any(|own| line.starts_with(own)));
    names.sort();
    let mark = format!("EXEC_CASE={}", place.dir.path().display());
    assert_eq!(names, [mark.as_str(), "ODD=a=b c\"ü", "PATH=/usr/local/bin:/usr/bin:/bin"]);

    let mut request = place.shell("cwd", "pwd -P");
    request.cwd.clone_from(&dir);
    let (out, _) = place.start(request).await.output().await;
    let real = dir.canonicalize().expect("it is there");
    assert_eq!(String::from_utf8_lossy(&out).trim_end(), real.to_string_lossy());

    let mut request = place.shell("arg0", "echo $0");
    request.arg0 = Some("another".into());
    if place.differs(Difference::NamesAreTheirOwn) {
        let refused = in_time("a refusal", place.backend.start(request, ProcessSession::new())).await;
        assert!(matches!(refused, Err(ProcessStartError::Unsupported { .. })));
        return;
    }
    let (out, _) = place.start(request).await.output().await;
    assert_eq!(String::from_utf8_lossy(&out), "another\n");
}

pub(super) async fn case_06_reads_follow_the_cursor_and_wait(place: &Place) {
    let mut request = place.shell("p", "printf one; read a; printf two >&2; exit 0");
    request.stdin = StdinKind::Piped;
    let running = place.start(request).await;
    let session = &running.session;
    let first = in_time("a read", session.read(0, None, PATIENCE)).await;
    assert_eq!((first.chunks[0].bytes.as_ref(), first.next_seq), (&b"one"[..], 2));
    let lapsed = session.read(1, Some(10), Duration::from_millis(5)).await;
    assert_eq!((lapsed.chunks.len(), lapsed.next_seq, lapsed.exit), (0, 2, ReadExit::NotYet));
    let (second, ()) = tokio::join!(session.read(1, None, PATIENCE), running.write("\n"));
    assert_eq!((second.chunks[0].bytes.as_ref(), second.chunks[0].stream), (&b"two"[..], OutputStream::Stderr));
    running.all().await;
    let last = in_time("a read after the end", session.read(99, None, PATIENCE)).await;
    // The last output may follow the exit.
    assert!(last.closed && matches!(last.exit, ReadExit::Exited { code: Some(0), seq: Some(2 | 3), .. }), "{last:?}");
    let least = session.read(0, Some(0), Duration::ZERO).await;
    assert_eq!((least.chunks.len(), least.next_seq), (1, 2));
}

pub(super) async fn case_07a_writes_arrive_in_order_and_say_when_nobody_reads(place: &Place) {
    let mut request = place.shell("p", "i=0; while [ $i -lt 200 ]; do read a; echo $a; i=$((i+1)); done");
    request.stdin = StdinKind::Piped;
    let mut running = place.start(request).await;
    let mut wanted = String::new();
    for number in 0..200 {
        wanted.push_str(&format!("line {number}\n"));
    }
    for number in 0..200 {
        let written = running.process.0.write(Bytes::from(format!("line {number}\n")));
        assert_eq!(in_time("a write", written).await, Ok(WriteStatus::Accepted));
    }
    let (out, _) = running.output().await;
    assert_eq!(String::from_utf8_lossy(&out), wanted);
    running.code().await;
    // In the moment of the exit a write may still be taken, and by some for as long as they know the process.
    let waiting = Waiting::until("a late write is refused", PATIENCE);
    loop {
        let late = in_time("a late write", running.process.0.write(Bytes::from_static(b"x"))).await;
        if late == Ok(WriteStatus::StdinClosed) || place.differs(Difference::LateWritesAreTaken) {
            break;
        }
        waiting.again(|| format!("{late:?}")).await;
    }
    // Without a standard input there is nothing to write to.
    let running = place.run("q", "sleep 0.2; exit 0").await;
    let refused = in_time("a write", running.process.0.write(Bytes::from_static(b"x"))).await;
    assert_eq!(refused, Ok(WriteStatus::StdinClosed));
    running.all().await;
}

pub(super) async fn case_07b_four_hundred_kilobytes_go_through_standard_input(place: &Place) {
    let mut request = place.shell("p", "head -c 400000 | cksum");
    request.stdin = StdinKind::Piped;
    let mut running = place.start(request).await;
    let bytes: Vec<u8> = (0..400_000_u32).map(|number| u8::try_from(number % 251).unwrap_or(0)).collect();
    let written = in_time("a write", running.process.0.write(Bytes::from(bytes.clone()))).await;
    assert_eq!(written, Ok(WriteStatus::Accepted));
    let (out, _) = running.output().await;
    std::fs::write(place.dir.path().join("same"), &bytes).expect("a file");
    let (expected, _) = place.run("q", "cksum < same").await.output().await;
    assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&expected));
}

pub(super) async fn case_07c_input_given_with_the_start_arrives_whole_and_ends(place: &Place) {
    let mut request = place.shell("p", "wc -c");
    request.stdin = StdinKind::Bytes(Bytes::from(vec![b'x'; 3_000_000]));
    let session = ProcessSession::new();
    let started = in_time("a start", place.backend.start(request, session.clone())).await;
    if place.differs(Difference::StdinStaysOpen) {
        assert!(matches!(started, Err(ProcessStartError::Unsupported { .. })));
        return;
    }
    let (out, _) = Running { process: started.expect("a process"), session }.output().await;
    assert_eq!(String::from_utf8_lossy(&out).trim(), "3000000");
    let mut request = place.shell("q", "cat; echo over");
    request.stdin = StdinKind::Piped;
    let mut running = place.start(request).await;
    running.write("last").await;
    in_time("the end of input", running.process.0.close_stdin()).await.expect("closed");
    let (out, _) = running.output().await;
    assert_eq!(String::from_utf8_lossy(&out), "lastover\n");
}

pub(super) async fn case_08a_an_interrupt_reaches_the_group(place: &Place) {
    let script = "trap 'echo int; exit 9' INT; echo set; while :; do sleep 0.02; done";
    let mut running = place.run("p", script).await;
    running.until("set\n").await;
    in_time("an interrupt", running.process.0.interrupt()).await.expect("interrupted");
    running.until("int\n").await;
    assert_eq!(running.code().await, 9);
    drop(running);
}

pub(super) async fn case_08b_terminate_ends_the_group(place: &Place) {
    let script = "trap 'echo asked; exit 9' TERM; sleep 1000 & echo set; while :; do sleep 0.02; done";
    let mut running = place.run("p", script).await;
    running.until("set\n").await;
    let ended = in_time("an end", running.process.0.terminate(None)).await;
    assert_eq!(ended, Ok(true));
    let (out, _) = running.output().await;
    let code = running.code().await;
    if place.differs(Difference::NoGrace) {
        assert_eq!((out.as_slice(), code), (&b""[..], 137));
    } else {
        assert_eq!((out.as_slice(), code), (&b"asked\n"[..], 9));
    }
    assert_eq!(in_time("another end", running.process.0.terminate(None)).await, Ok(false));
    place.is_empty().await;
}

pub(super) async fn case_09_the_ring_is_a_bounded_tail_and_the_tap_is_complete(place: &Place) {
    let mut running = place.run("p", "yes 0123456789 | head -c 5000000; exit 0").await;
    let (out, _) = running.output().await;
    assert_eq!(out.len(), 5_000_000);
    assert!(out.chunks(11).all(|line| b"0123456789\n".starts_with(line)));
    let kept = running.session.read(0, None, Duration::ZERO).await;
    let bytes: usize = kept.chunks.iter().map(|chunk| chunk.bytes.len()).sum();
    assert!((1..=1024 * 1024).contains(&bytes), "{bytes} bytes are retained");
    let tail: Vec<u8> = kept.chunks.iter().flat_map(|chunk| chunk.bytes.to_vec()).collect();
    assert!(out.ends_with(&tail));
}

/// Megabytes a case of much output writes; `.ci/long exec-faults` asks for a hundred.
fn megabytes() -> usize {
    std::env::var("PHONE_OPUS_EXEC_MEGABYTES").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

pub(super) async fn case_10a_much_output_has_no_gap(place: &Place) {
    let all = megabytes() * 1_000_000;
    let mut running = place.run("p", &format!("yes 0123456789abcde | head -c {all}; exit 2")).await;
    let (mut size, mut wrong) = (0_usize, 0_usize);
    let line = b"0123456789abcde\n";
    while let Some((_, bytes)) = in_time("output", running.tap().next()).await {
        wrong += bytes.iter().enumerate().filter(|(place, byte)| **byte != line[(size + place) % line.len()]).count();
        size += bytes.len();
    }
    assert_eq!((size, wrong, running.tap().lost()), (all, 0, 0));
    assert_eq!(running.code().await, 2);
}

pub(super) async fn case_10b_two_busy_streams_are_complete(place: &Place) {
    let each = megabytes() * 600_000;
    let script = format!("yes out | head -c {each} & yes err | head -c {each} >&2 & wait; exit 2");
    let mut running = place.run("p", &script).await;
    let (mut out, mut err) = (0, 0);
    while let Some((stream, bytes)) = in_time("output", running.tap().next()).await {
        match stream {
            OutputStream::Stdout => out += bytes.len(),
            OutputStream::Stderr => err += bytes.len(),
        }
    }
    assert_eq!((out, err, running.tap().lost()), (each, each, 0));
    assert_eq!(running.code().await, 2);
}

pub(super) async fn case_11_five_hundred_processes_at_once(place: &Place) {
    let starts = (0..500).map(|number| async move {
        let id = format!("p{number}");
        let mut request = place.shell(&id, "");
        request.program = "/bin/echo".into();
        request.args = vec![id.clone().into()];
        let mut running = place.start(request).await;
        let (out, _) = running.output().await;
        assert_eq!(String::from_utf8_lossy(&out).trim(), id);
        assert_eq!(running.code().await, 0);
    });
    in_time("five hundred processes", futures_util::future::join_all(starts)).await;
}

pub(super) async fn case_12_13_late_and_slow_subscribers_are_told_and_get_the_end(place: &Place) {
    let mut request = place.shell("p", "echo first; read a; yes | head -c 5000000; exit 6");
    request.stdin = StdinKind::Piped;
    let mut running = place.start(request).await;
    let mut slow = running.events();
    assert!(matches!(in_time("the first", slow.next()).await, Some(ProcessEvent::Output { seq: 1, .. })));
    running.write("\n").await;
    running.output().await;
    let end = running.all().await;
    assert!(matches!(end[0], ProcessEvent::Lagged { from: 1, .. }), "{:?}", end[0]);
    assert!(end.iter().any(|event| matches!(event, ProcessEvent::Exited { code: 6, .. })));
    assert!(matches!(in_time("a mark", slow.next()).await, Some(ProcessEvent::Lagged { from: 2, .. })));
    let mut last = None;
    while let Some(event) = in_time("an event", slow.next()).await {
        last = Some(event);
    }
    assert_eq!(last.as_ref(), end.last());
    assert_eq!(running.session.subscribe(OutputCursor::after(u64::MAX)).next().await.as_ref(), end.last());
}

pub(super) async fn case_14_a_reader_that_does_not_read_blocks_its_producer_only(place: &Place) {
    let script = "yes 0123456789abcde | head -c 60000000; echo done > finished; exit 0";
    let mut slow = place.run("slow", script).await;
    in_time("output", slow.tap().next()).await.expect("output");
    // Beside it others are started, heard and end, while nobody reads the first.
    let began = Instant::now();
    for number in 0..3 {
        let mut other = place.run(&format!("other{number}"), "echo here; exit 0").await;
        let (out, _) = other.output().await;
        assert_eq!(out, b"here\n");
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let mut size = 0;
    while let Some((_, bytes)) = in_time("output", slow.tap().next()).await {
        size += bytes.len();
    }
    // On a connection of its own it loses nothing; here it may have had to, and says so.
    assert!(size < 60_000_000, "the first piece was taken before");
    assert!(slow.tap().lost() > 0 || size > 59_000_000, "{size} bytes came, and none is said to be lost");
    assert_eq!(slow.code().await, 0);
}

pub(super) async fn case_15_the_last_handle_takes_its_process_along(place: &Place) {
    let mut running = place.run("p", "echo up; sleep 1000 & sleep 1000").await;
    running.until("up\n").await;
    assert!(!place.alive().is_empty());
    let mut events = running.events();
    drop(running.process);
    while in_time("the end", events.next()).await.is_some() {}
    place.is_empty().await;
}

pub(super) async fn case_16_a_cancelled_start_leaves_no_process(place: &Place) {
    for number in 0..20_u64 {
        let request = place.shell(&format!("p{number}"), "sleep 1000 & sleep 1000");
        let mut start = place.backend.start(request, ProcessSession::new());
        // Given up at many moments, the first poll among them.
        for _ in 0..=number {
            if (&mut start).now_or_never().is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_micros(number * 50)).await;
        }
        drop(start);
    }
    place.is_empty().await;
}
