//! The loop that works for a [`RemoteCore`], and who starts it again.
//!
//! Owns: the streams of the current generation, the timer, the order of reading. May not know: what lines mean.
//!
//! What has to go on when the loop fails is only lent to it: the core behind its lock, and the queues of those who call. So a
//! panic costs the connection, which is the next generation, and no session.
//!
//! Invariants: (1) one loop at a time; (2) the core's lock is never held over an await; (3) nothing is read while the core
//! [holds](RemoteCore::holds) the connection, and everything else goes on meanwhile; (4) a line is taken from the reader when the
//! core is told of it, so a turn that ends leaves none behind.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::core::{Asked, RemoteCore, RemoteEffect, RemoteEvent, RemoteState, Reply, Retry};
use crate::base::fault::Fault;
use crate::base::tasks::{self, TaskSet};
use crate::exec::client::ExecError;
use crate::exec::lines::{LineReader, Waited};
use crate::failpoints::{Broken, FaultPoint, Faults, Operation};

/// Lines that may wait for the server to read them: everything in flight, three times over.
const OUTBOX_LINES: usize = 256;

/// Lines heard before everything else is looked at again.
const LINES_AT_ONCE: usize = 64;

/// What the writer gets for the lines that are queued when a connection is closed.
const LAST_LINES: Duration = Duration::from_secs(1);

/// A loop that fails more often than this within [`CRASH_PERIOD`] is not started again.
const CRASHES: usize = 5;
const CRASH_PERIOD: Duration = Duration::from_secs(60);

/// The longest line of a server: a file of 16 MiB in base64 is over the usual bound, and servers have sent more.
const LINE_MOST: usize = 64 * 1024 * 1024;

/// The two streams of a connection to an exec server, and what ends with them.
pub struct Streams {
    /// Lines of the server.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// Lines to the server.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// Ends what the streams belong to, after both are closed. Dropping it ends that at once.
    pub ending: Option<BoxFuture<'static, ()>>,
}

/// Why there are no streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoStreams {
    /// One sentence for people.
    pub reason: String,
    /// Whether it may be tried again.
    pub retry: Retry,
}

/// Makes connections to one server; told which generation it makes.
pub type Connector = Box<dyn Fn(u64) -> BoxFuture<'static, Result<Streams, NoStreams>> + Send + Sync>;

/// How a call's answer reaches its caller.
pub(super) type AnswerTo = oneshot::Sender<Result<Box<RawValue>, ExecError>>;

impl Reply for AnswerTo {
    fn is_gone(&self) -> bool {
        self.is_closed()
    }
}

/// What is told without an answer.
#[derive(Debug)]
pub(super) enum Note {
    Released(String),
    Killed(String),
    Closing,
}

/// The queues, lent to one loop at a time.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) asks: mpsc::Receiver<Asked<AnswerTo>>,
    pub(super) notes: mpsc::UnboundedReceiver<Note>,
}

/// Everything that outlives a loop.
pub(super) struct Shared {
    core: Mutex<RemoteCore<AnswerTo>>,
    inbox: tokio::sync::Mutex<Inbox>,
    connector: Connector,
    /// Told when a tap has room.
    room: Arc<Notify>,
    state: watch::Sender<RemoteState>,
    faults: Faults,
}

impl Shared {
    pub(super) fn new(core: RemoteCore<AnswerTo>, inbox: Inbox, connector: Connector, faults: Faults) -> Self {
        let state = watch::Sender::new(core.state());
        Self {
            core: Mutex::new(core),
            inbox: tokio::sync::Mutex::new(inbox),
            connector,
            room: Arc::default(),
            state,
            faults,
        }
    }

    pub(super) fn room(&self) -> Arc<Notify> {
        Arc::clone(&self.room)
    }

    pub(super) fn state(&self) -> watch::Receiver<RemoteState> {
        self.state.subscribe()
    }

    pub(super) fn core(&self) -> MutexGuard<'_, RemoteCore<AnswerTo>> {
        // A turn that panicked has done part of what it was to do; the next connection reads everything again.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, event: RemoteEvent<AnswerTo>) -> Vec<RemoteEffect<AnswerTo>> {
        let (effects, state) = {
            let mut core = self.core();
            (core.step(event, Instant::now()), core.state())
        };
        self.state.send_if_modified(|known| std::mem::replace(known, state) != state);
        effects
    }

    /// The loop will not be started again.
    pub(super) fn give_up(&self, reason: &str) {
        let mut effects = self.step(RemoteEvent::Abandoned { reason: reason.to_owned() });
        // Whoever calls from here on finds the queue closed; who did before is answered.
        if let Ok(mut inbox) = self.inbox.try_lock() {
            inbox.asks.close();
            while let Ok(asked) = inbox.asks.try_recv() {
                effects.extend(self.step(RemoteEvent::Asked(asked)));
            }
        }
        for effect in effects {
            if let RemoteEffect::Answer(reply, outcome) = effect {
                let _ = reply.send(outcome);
            }
        }
    }
}

/// Works until the connection is down for good, and starts again what panics; for a process without a tree of actors.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut crashes: VecDeque<Instant> = VecDeque::new();
    loop {
        if AssertUnwindSafe(run(&shared)).catch_unwind().await.is_ok() {
            return;
        }
        let now = Instant::now();
        crashes.push_back(now);
        while crashes.front().is_some_and(|at| *at + CRASH_PERIOD < now) {
            crashes.pop_front();
        }
        tracing::warn!(crashes = crashes.len(), "the loop of an exec connection panicked and is started again");
        if crashes.len() > CRASHES {
            return shared.give_up("the loop of the connection panicked again and again");
        }
    }
}

/// Works until the connection is down for good.
///
/// # Cancel safety
/// Dropping the future closes the connection; another run makes the next one.
pub(super) async fn run(shared: &Shared) {
    let mut inbox = shared.inbox.lock().await;
    let mut work = Work { shared, link: None, connecting: None, ends: TaskSet::new(), over: false };
    let begun = shared.step(RemoteEvent::Begun);
    work.perform(begun);
    while !work.over {
        work.turn(&mut inbox).await;
    }
    inbox.asks.close();
    while let Some(asked) = inbox.asks.recv().await {
        let effects = shared.step(RemoteEvent::Asked(asked));
        work.perform(effects);
    }
    while work.ends.join_next().await.is_some() {}
}

/// One connection.
struct Link {
    generation: u64,
    lines: LineReader<Box<dyn AsyncRead + Send + Unpin>>,
    outbox: mpsc::Sender<Vec<u8>>,
    writer: JoinHandle<()>,
    ending: Option<BoxFuture<'static, ()>>,
}

impl Link {
    fn over(generation: u64, streams: Streams) -> Self {
        let Streams { reader, writer, ending } = streams;
        let (outbox, queue) = mpsc::channel(OUTBOX_LINES);
        let writer = tasks::spawn(write_lines(writer, queue));
        Self { generation, lines: LineReader::after(&[], reader).up_to(LINE_MOST), outbox, writer, ending }
    }

    /// Closes both streams, the writing one after what is queued.
    async fn end(mut self) {
        drop(std::mem::replace(&mut self.outbox, mpsc::channel(1).0));
        if tokio::time::timeout(LAST_LINES, &mut self.writer).await.is_err() {
            self.writer.abort();
        }
        let ending = self.ending.take();
        drop(self);
        if let Some(ending) = ending {
            ending.await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

type Connecting = BoxFuture<'static, (u64, Result<Streams, NoStreams>)>;

/// What a loop works with.
struct Work<'a> {
    shared: &'a Shared,
    link: Option<Link>,
    connecting: Option<Connecting>,
    /// Connections that are being closed.
    ends: TaskSet<()>,
    over: bool,
}

impl Work<'_> {
    /// Waits for one thing and does everything that follows from it.
    async fn turn(&mut self, inbox: &mut Inbox) {
        let (due, holds) = {
            let mut core = self.shared.core();
            let holds = core.holds(Instant::now());
            (core.due(), holds)
        };
        let room = self.shared.room();
        let outbox = self.link.as_ref().map(|link| (link.generation, link.outbox.clone()));
        let event = tokio::select! {
            // Who let go of a process may start another of its name, so what was told before a call goes before it; and a
            // server that never pauses must not keep the rest from its turn.
            biased;
            Some(note) = inbox.notes.recv() => match note {
                Note::Released(process_id) => RemoteEvent::Released { process_id },
                Note::Killed(process_id) => RemoteEvent::Killed { process_id },
                Note::Closing => RemoteEvent::Closing,
            },
            asked = inbox.asks.recv() => asked.map_or(RemoteEvent::Closing, RemoteEvent::Asked),
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => RemoteEvent::Tick,
            (generation, streams) = made(&mut self.connecting), if self.connecting.is_some() => {
                self.connecting = None;
                match streams {
                    Ok(streams) => {
                        self.link = Some(Link::over(generation, streams));
                        RemoteEvent::Connected { generation }
                    }
                    Err(NoStreams { reason, retry }) => RemoteEvent::Unreachable { generation, reason, retry },
                }
            }
            () = room.notified() => RemoteEvent::Tick,
            came = came(&mut self.link), if !holds && self.link.is_some() => return self.hear(came).await,
            // Last: what it said before it went is heard.
            generation = unread(outbox), if self.link.is_some() => {
                RemoteEvent::Lost { generation, reason: "it does not read any more".to_owned() }
            }
        };
        // Once everybody has gone the queue of calls says so again and again; there is nothing else to wait for but the end.
        if matches!(event, RemoteEvent::Closing) && inbox.asks.is_closed() {
            let effects = self.shared.step(RemoteEvent::Closing);
            self.perform(effects);
            return self.close(inbox).await;
        }
        let effects = self.shared.step(event);
        self.perform(effects);
    }

    /// Works on without callers, until what ran has ended or has had its time.
    async fn close(&mut self, inbox: &mut Inbox) {
        while !self.over {
            let due = self.shared.core().due();
            let event = tokio::select! {
                Some(note) = inbox.notes.recv() => match note {
                    Note::Released(process_id) | Note::Killed(process_id) => RemoteEvent::Released { process_id },
                    Note::Closing => RemoteEvent::Tick,
                },
                came = came(&mut self.link), if self.link.is_some() => {
                    self.hear(came).await;
                    continue;
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)) => RemoteEvent::Tick,
            };
            let effects = self.shared.step(event);
            self.perform(effects);
        }
    }

    /// Hears what came: the lines that are there, up to [`LINES_AT_ONCE`], or the end. Lines that are left are the next turn's.
    async fn hear(&mut self, came: Came) {
        if let Came::End(reason) = came {
            return self.heard(Err(reason)).await;
        }
        for _ in 0..LINES_AT_ONCE {
            let Some(line) = self.link.as_mut().and_then(|link| link.lines.ready()) else { return };
            self.heard(Ok(line)).await;
            if self.shared.core().holds(Instant::now()) {
                return;
            }
        }
        // A server that never pauses must not keep the others of this thread from their turn.
        tokio::task::yield_now().await;
    }

    /// One line was heard, or why there are no more.
    async fn heard(&mut self, read: Result<Bytes, String>) {
        let Some(generation) = self.link.as_ref().map(|link| link.generation) else { return };
        let met = self.shared.faults.meet(FaultPoint::ExecRead, Operation::None).await;
        let event = match (met, read) {
            (Some(Broken::Drop), Ok(_)) => RemoteEvent::Tick,
            (Some(broken), _) => RemoteEvent::Lost { generation, reason: said(&broken) },
            (None, Ok(line)) => RemoteEvent::Line { generation, line },
            (None, Err(reason)) => RemoteEvent::Lost { generation, reason },
        };
        let effects = self.shared.step(event);
        self.perform(effects);
    }

    fn perform(&mut self, effects: Vec<RemoteEffect<AnswerTo>>) {
        for effect in effects {
            match effect {
                RemoteEffect::Connect { generation } => {
                    let made = (self.shared.connector)(generation);
                    let faults = self.shared.faults.clone();
                    self.connecting = Some(Box::pin(async move {
                        if let Some(broken) = faults.meet(FaultPoint::ExecConnect, Operation::None).await {
                            return (generation, Err(NoStreams { reason: said(&broken), retry: Retry::Later }));
                        }
                        (generation, made.await)
                    }));
                }
                RemoteEffect::Send(line) => {
                    // A full outbox means that the server does not read; `unread` and the deadlines say so.
                    if let Some(link) = &self.link
                        && link.outbox.try_send(line).is_err()
                    {
                        link.writer.abort();
                    }
                }
                RemoteEffect::Drop => {
                    self.connecting = None;
                    if let Some(link) = self.link.take() {
                        self.ends.spawn(link.end());
                    }
                    while self.ends.try_join_next().is_some() {}
                }
                RemoteEffect::Answer(reply, outcome) => _ = reply.send(outcome),
                RemoteEffect::End => self.over = true,
            }
        }
    }
}

fn said(broken: &Broken) -> String {
    match broken {
        Broken::Error(fault) => Fault::to_string(fault),
        other => format!("a fault point: {other:?}"),
    }
}

/// What came by a connection.
enum Came {
    /// Lines, which are still to be taken.
    Lines,
    /// Its end, and why.
    End(String),
}

async fn came(link: &mut Option<Link>) -> Came {
    match link {
        Some(link) => match link.lines.wait().await {
            Ok(Waited::Lines) => Came::Lines,
            Ok(Waited::End) => Came::End("it closed the connection".to_owned()),
            Err(error) => {
                let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
                Came::End(format!("{error}{}", source.unwrap_or_default()))
            }
        },
        None => std::future::pending().await,
    }
}

/// The generation of the connection whose server reads no more.
async fn unread(outbox: Option<(u64, mpsc::Sender<Vec<u8>>)>) -> u64 {
    match outbox {
        Some((generation, outbox)) => {
            outbox.closed().await;
            generation
        }
        None => std::future::pending().await,
    }
}

async fn made(connecting: &mut Option<Connecting>) -> (u64, Result<Streams, NoStreams>) {
    match connecting {
        Some(connecting) => connecting.await,
        None => std::future::pending().await,
    }
}

/// Writes whole lines, and flushes when none is left.
async fn write_lines(mut writer: Box<dyn AsyncWrite + Send + Unpin>, mut queue: mpsc::Receiver<Vec<u8>>) {
    let written = async {
        while let Some(line) = queue.recv().await {
            writer.write_all(&line).await?;
            while let Ok(line) = queue.try_recv() {
                writer.write_all(&line).await?;
            }
            writer.flush().await?;
        }
        writer.shutdown().await
    };
    if let Err(error) = written.await {
        tracing::debug!(%error, "an exec server does not read any more");
    }
}
