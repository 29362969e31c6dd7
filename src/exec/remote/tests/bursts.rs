//! The client against a server whose lines come many at once, as a busy one's do.
//!
//! The clock stands still, and only goes on when nobody has anything to do: whoever waits for a line that was lost is found at once.
//!
//! Laws: L7, L9, L20.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};

use super::*;
use crate::exec::backend::Depth;
use crate::exec::lines::LineReader;
use crate::exec::wire;

/// Lengths of bursts around what a client takes in one turn, once and twice.
const LENGTHS: [usize; 12] = [1, 2, 62, 63, 64, 65, 66, 127, 128, 129, 192, 400];

/// Schedules.
const SEEDS: u64 = 10;

/// What the server and its test both see.
#[derive(Debug, Default)]
struct Seen {
    /// How often each method was asked for.
    asked: BTreeMap<String, usize>,
    started: BTreeSet<String>,
    terminated: BTreeSet<String>,
}

/// A process there.
#[derive(Debug, Default)]
struct There {
    seq: u64,
    over: bool,
    /// What is said of it, in this order.
    says: VecDeque<String>,
}

impl There {
    fn happen(&mut self, process_id: &str, make: impl FnOnce(u64) -> ProcessEvent) {
        self.seq += 1;
        let line = wire::event_line(process_id, &make(self.seq)).unwrap().unwrap();
        self.says.push_back(String::from_utf8(line).unwrap());
    }

    fn output(&mut self, process_id: &str) {
        let bytes = Bytes::from(format!("[{}]", self.seq + 1));
        self.happen(process_id, |seq| ProcessEvent::Output { seq, stream: OutputStream::Stdout, bytes });
    }

    fn end(&mut self, process_id: &str) {
        if !std::mem::replace(&mut self.over, true) {
            self.happen(process_id, |seq| ProcessEvent::Exited { seq, code: 0, signal: None });
            self.happen(process_id, |seq| ProcessEvent::Closed { seq });
        }
    }
}

/// A server for one connection that gathers what it has to say. Its processes end by themselves but for those whose names begin
/// with `s`, which end when they are told to.
struct Gathering {
    seen: Arc<Mutex<Seen>>,
    random: fastrand::Rng,
    answers: VecDeque<String>,
    there: BTreeMap<String, There>,
}

fn seen(seen: &Arc<Mutex<Seen>>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gathering {
    /// A connection to a new one, and what it sees.
    async fn connect(seed: u64) -> (RemoteExec, Arc<Mutex<Seen>>) {
        let all = Arc::new(Mutex::new(Seen::default()));
        let theirs = Arc::clone(&all);
        let connector: Connector = Box::new(move |_| {
            let (ours, server) = tokio::io::duplex(1024 * 1024);
            let (reader, writer) = tokio::io::split(server);
            let (random, seen) = (fastrand::Rng::with_seed(seed), Arc::clone(&theirs));
            let gathering = Self { seen, random, answers: VecDeque::new(), there: BTreeMap::new() };
            // It ends with the connection.
            tokio::spawn(gathering.serve(LineReader::after(&[], reader), writer));
            let (reader, writer) = tokio::io::split(ours);
            async { Ok(Streams { reader: Box::new(reader), writer: Box::new(writer), ending: None }) }.boxed()
        });
        let connected = RemoteExec::connect_by(connector, AfterACut::Resumed, RemoteOptions::default());
        (in_time("a connection", connected).await.unwrap(), all)
    }

    async fn serve(
        mut self,
        mut lines: LineReader<ReadHalf<DuplexStream>>,
        mut writer: WriteHalf<DuplexStream>,
    ) -> Option<()> {
        loop {
            if self.answers.is_empty() && self.there.values().all(|process| process.says.is_empty()) {
                let line = lines.next().await.ok()??;
                self.take(&line);
            }
            // Whoever asks gets the time to ask for more, so that there is more to say at once.
            for _ in 0..self.random.usize(0..4) {
                tokio::task::yield_now().await;
                while let Some(Ok(Some(line))) = lines.next().now_or_never() {
                    self.take(&line);
                }
            }
            let burst = self.burst();
            writer.write_all(burst.as_bytes()).await.ok()?;
        }
    }

    fn burst(&mut self) -> String {
        let mut burst = String::new();
        for _ in 0..*self.random.choice(&LENGTHS).unwrap() {
            let mut queues: Vec<_> =
                self.there.values_mut().map(|process| &mut process.says).filter(|queue| !queue.is_empty()).collect();
            if !self.answers.is_empty() {
                // As often as all processes together.
                let place = self.random.bool() || queues.is_empty();
                queues = if place { vec![&mut self.answers] } else { queues };
            }
            let Some(queue) = self.random.choice(&mut queues) else { break };
            burst.push_str(&queue.pop_front().unwrap_or_default());
        }
        burst
    }

    fn take(&mut self, line: &[u8]) {
        let request: Value = serde_json::from_slice(line).unwrap();
        if request["id"].is_null() {
            return;
        }
        let method = request["method"].as_str().unwrap();
        let process_id = request["params"]["processId"].as_str().unwrap_or_default();
        *seen(&self.seen).asked.entry(method.to_owned()).or_default() += 1;
        let result = match method {
            "initialize" => json!({"sessionId": "s", "environmentInfo": {
                "capabilities": {"processCloseStdin": true, "terminateGrace": true, "processResize": true}}}),
            "process/start" => {
                seen(&self.seen).started.insert(process_id.to_owned());
                let there = self.there.entry(process_id.to_owned()).or_default();
                for _ in 0..self.random.usize(0..4) {
                    there.output(process_id);
                }
                if !process_id.starts_with('s') {
                    there.end(process_id);
                }
                json!({"processId": process_id})
            }
            "process/terminate" => {
                seen(&self.seen).terminated.insert(process_id.to_owned());
                let there = self.there.entry(process_id.to_owned()).or_default();
                let running = !there.over;
                there.end(process_id);
                json!({"running": running})
            }
            "process/write" => {
                self.there.entry(process_id.to_owned()).or_default().output(process_id);
                json!({"status": "accepted"})
            }
            "fs/getMetadata" => json!({"isFile": true, "size": 1}),
            _ => json!({}),
        };
        self.answers.push_back(format!("{}\n", json!({"id": request["id"], "result": result})));
    }
}

/// Nothing was lost: nobody had to wait for anything, and no event was asked for again.
fn nothing_was_missed(seed: u64, began: Instant, all: &Arc<Mutex<Seen>>) {
    assert_eq!(began.elapsed(), Duration::ZERO, "seed {seed}: something was waited for");
    assert_eq!(seen(all).asked.get("process/read"), None, "seed {seed}");
}

#[tokio::test(start_paused = true)]
async fn however_much_comes_at_once_every_call_is_answered_and_every_event_heard() {
    for seed in 0..SEEDS {
        let (remote, all_seen) = Gathering::connect(seed).await;
        let began = Instant::now();
        let whole = (0..200).map(|number| {
            let remote = &remote;
            async move {
                let (session, (process, mut tap)) = start(remote, &format!("p{number}")).await;
                while in_time("output", tap.next()).await.is_some() {}
                assert_eq!(in_time("the end", process.end()).await.unwrap().code, 0);
                assert!(matches!(all(&session).await.last(), Some(ProcessEvent::Closed { .. })));
            }
        });
        join_all(whole).await;
        nothing_was_missed(seed, began, &all_seen);
        // One call of every kind, on each of many processes at once.
        let steered = (0..40).map(|number| {
            let remote = &remote;
            async move {
                let (session, (process, _tap)) = start(remote, &format!("s{number}")).await;
                let size = TerminalSize { cols: 80, rows: 24 };
                let files = remote.files().unwrap();
                let (written, closed, interrupted, resized, made, looked_at) = tokio::join!(
                    in_time("a write", process.write(Bytes::from_static(b"in"))),
                    in_time("the end of input", process.close_stdin()),
                    in_time("an interrupt", process.interrupt()),
                    in_time("a size", process.resize(size)),
                    in_time("a directory", files.create_directory(Path::new("/a"), Depth::One)),
                    in_time("a file", files.metadata(Path::new("/a"))),
                );
                assert_eq!((written, closed, interrupted), (Ok(WriteStatus::Accepted), Ok(()), Ok(())));
                assert!(
                    resized == Ok(true) && made == Ok(()) && looked_at.is_ok(),
                    "{resized:?} {made:?} {looked_at:?}"
                );
                assert_eq!(in_time("an end", process.terminate(None)).await, Ok(true));
                assert!(matches!(all(&session).await.last(), Some(ProcessEvent::Closed { .. })));
            }
        });
        join_all(steered).await;
        nothing_was_missed(seed, began, &all_seen);
        in_time("the end", remote.shutdown()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn starts_that_are_given_up_amid_much_that_comes_at_once_leave_no_process() {
    for seed in 0..SEEDS {
        let (remote, all_seen) = Gathering::connect(seed).await;
        let mut random = fastrand::Rng::with_seed(seed);
        let began = Instant::now();
        let starts = (0..200).map(|number| {
            let (remote, patience) = (&remote, random.usize(0..60));
            async move {
                let request = StartRequest::new(format!("s{number}"), "/bin/program", "/");
                let mut starting = remote.start(request, ProcessSession::new());
                for _ in 0..patience {
                    if (&mut starting).now_or_never().is_some() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
        });
        join_all(starts).await;
        until(&format!("seed {seed}: every process that was started is ended"), || {
            let seen = seen(&all_seen);
            seen.started == seen.terminated && remote.health().in_flight == 0
        })
        .await;
        assert_eq!(remote.health().processes, 0, "seed {seed}");
        assert!(began.elapsed() < Duration::from_millis(10), "seed {seed}: something was waited for");
        in_time("the end", remote.shutdown()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_runs_when_the_connection_is_closed_is_heard_to_its_end_however_much_comes_at_once() {
    for seed in 0..SEEDS {
        let (remote, all_seen) = Gathering::connect(seed).await;
        let began = Instant::now();
        let running = join_all((0..200).map(|number| {
            let remote = &remote;
            async move { start(remote, &format!("s{number}")).await }
        }))
        .await;
        in_time("the end", remote.shutdown()).await;
        for (session, _) in &running {
            assert!(matches!(all(session).await.last(), Some(ProcessEvent::Closed { .. })), "seed {seed}");
        }
        nothing_was_missed(seed, began, &all_seen);
    }
}
