//! Processes over a connection that breaks in every way, at random: nothing hangs, nothing ends twice, nothing is lost without
//! being said, nothing is left alive.
//!
//! `PHONE_OPUS_EXEC_FAULTS` and `PHONE_OPUS_EXEC_SEED` ask for more and for others; `.ci/long exec-faults` for ten thousand.
//!
//! Laws: L7, L9, L20.

#![expect(clippy::panic, reason = "helpers of tests")]

use std::sync::Arc;

use bytes::Bytes;
use phone_opus::internals::exec::backend::{ProcessStartError, StdinKind};
use phone_opus::internals::exec::invariants::{
    invariant_exactly_one_terminal_and_last, invariant_positions_have_no_gap,
};
use phone_opus::internals::exec::local::WriteStatus;
use phone_opus::internals::exec::remote::{RemoteExec, RemoteOptions};
use phone_opus::internals::exec::{OutputCursor, ProcessEvent, ProcessSession};
use phone_opus::testkit::exec_proxy::{FaultyProxy, WireFault};

use super::place::{Place, Running, in_time, scratch};

/// Faults made by default; some seconds.
const FAULTS: u64 = 300;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What came of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    /// Its whole output, and its end.
    Whole,
    /// It was not started, surely or perhaps.
    NotStarted,
}

/// Runs one process, whatever happens to its connection.
async fn one(place: &Place, number: u64) -> Came {
    let id = format!("p{number}");
    let (script, expected) = match number % 3 {
        0 => {
            let expected: String = (0..60).map(|line| format!("line {line}\n")).collect();
            ("i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); done; exit 3".to_owned(), expected)
        }
        1 => {
            let expected: String = (0..20).map(|line| format!("said {line}\n")).collect();
            ("i=0; while [ $i -lt 20 ]; do read a; echo said $a; i=$((i+1)); done; exit 3".to_owned(), expected)
        }
        _ => ("yes abcdefg | head -c 400000; exit 3".to_owned(), "abcdefg\n".repeat(50_000)),
    };
    let mut request = place.shell(&id, &script);
    if number % 3 == 1 {
        request.stdin = StdinKind::Piped;
    }
    let session = ProcessSession::new();
    let process = match in_time("a start", place.backend.start(request, session.clone())).await {
        Ok(process) => process,
        Err(ProcessStartError::Ambiguous { .. } | ProcessStartError::Unreachable { .. }) => return Came::NotStarted,
        Err(error) => panic!("{id}: {error:?}"),
    };
    let mut running = Running { process, session };
    let writer = Arc::clone(&running.process.0);
    let writing = async {
        if number % 3 == 1 {
            for line in 0..20 {
                let written = in_time("a write", writer.write(Bytes::from(format!("{line}\n")))).await;
                assert_eq!(written, Ok(WriteStatus::Accepted), "{id}");
            }
        }
    };
    let ((out, err), ()) = tokio::join!(running.output(), writing);
    drop(writer);
    assert!(err.is_empty());
    assert!(String::from_utf8_lossy(&out) == expected, "{id}: {} bytes, not {}", out.len(), expected.len());
    assert_eq!(running.code().await, 3, "{id}");
    let mut events = Vec::new();
    let mut stream = running.session.subscribe(OutputCursor::start());
    while let Some(event) = in_time("an event", stream.next()).await {
        events.push(event);
    }
    invariant_positions_have_no_gap(&events).unwrap_or_else(|error| panic!("{id}: {error}"));
    invariant_exactly_one_terminal_and_last(&events).unwrap_or_else(|error| panic!("{id}: {error}"));
    assert!(matches!(events.last(), Some(ProcessEvent::Closed { .. })), "{id}: {:?}", events.last());
    Came::Whole
}

#[tokio::test]
async fn whatever_happens_to_the_connection_every_process_is_heard_whole_and_ends_once() {
    let (faults, seed) = (number("PHONE_OPUS_EXEC_FAULTS", FAULTS), number("PHONE_OPUS_EXEC_SEED", 14));
    println!("PHONE_OPUS_EXEC_FAULTS={faults} PHONE_OPUS_EXEC_SEED={seed}");
    let Some(mut place) = Place::unix().await else { return };
    let apart = scratch();
    let proxy = FaultyProxy::start(&apart.path().join("proxy"), place.target(), seed, 12).expect("a proxy");
    let options = RemoteOptions { seed, ..RemoteOptions::default() };
    let mut connected = None;
    // The first connection is tried once, and this one may break in its greeting.
    while connected.is_none() {
        let target = proxy.target().expect("a target");
        connected = in_time("a connection", RemoteExec::connect(target, None, options.clone())).await.ok();
    }
    let remote = connected.expect("a connection");
    in_time("the place's own connection ends", place.backend.shutdown()).await;
    place.backend = Arc::new(remote.clone());
    let (mut next, mut whole, mut not_started) = (0, 0, 0);
    while proxy.made_in_all() < faults {
        let batch = (next..next + 8).map(|number| one(&place, number));
        for came in futures_util::future::join_all(batch).await {
            match came {
                Came::Whole => whole += 1,
                Came::NotStarted => not_started += 1,
            }
        }
        next += 8;
    }
    proxy.calm();
    let made: Vec<_> = WireFault::ALL.into_iter().map(|fault| (fault, proxy.made(fault))).collect();
    println!("{whole} processes whole, {not_started} not started; {made:?}; {:?}", remote.health());
    assert!(made.iter().all(|(_, made)| *made > 0), "every fault is made: {made:?}");
    // A cut may take along all starts that are under way, and none of them is repeated.
    assert!(whole > 2 * not_started, "{whole} whole, {not_started} not started");
    assert!(remote.health().generation > 2);
    drop(remote);
    place.close().await;
}
