//! The serving side of the exec protocol, over any pair of byte streams.
//!
//! Owns: one connection's handshake, its requests, and pushing events to its peer.
//! May not know: what the processes are; the [`ProcessTable`] does.
//!
//! Two tasks: the *dispatcher* reads lines and answers or hands on each request; the *writer* alone writes. Events are not
//! queued for the writer: it walks the sessions' rings itself, so the order on the wire is the order of the positions, and
//! a peer that reads slowly misses events it can read back, while the process never feels it.
//!
//! Invariants:
//! 1. The dispatcher waits for input and for finished work, never for the writer.
//! 2. Each request gets one answer. Requests that may wait do so outside the dispatcher, so none is behind another, but
//!    starts and writes of one process keep their order.
//! 3. The end of input is known at once, whatever is in flight.
//! 4. [`Server::finish`] writes what has been published, the terminal events above all, before it closes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::lines::LineReader;
use super::session::{EventStream, ProcessSession};
use super::wire::{
    self, InitializeParams, InitializeResult, ReadAnswer, ReadParams, SignalParams, StartParams, StartResult,
    TerminateAnswer, TerminateParams, WireError, WireId, WireIncoming, WireOutgoing, WireSignal, WireWriteStatus,
    WriteAnswer, WriteParams, code, method,
};
use super::{Cursor, ProcessEvent};

/// Requests of one connection that may be waiting at once. Ours keep to 64; four such clients' worth is refused beyond.
const WAITING_REQUESTS: usize = 256;

/// Bytes of starts and writes that may queue behind others of their process; one of the longest lines.
const LANE_BYTES: usize = 16 * 1024 * 1024;

/// Answers that may wait for the peer to read them. A peer that asks so much and reads nothing is cut off.
const OUTBOX_LINES: usize = 4096;

/// Bytes of such answers: the 64 requests of a well-behaved client, each answered by a full ring.
const OUTBOX_BYTES: usize = 96 * 1024 * 1024;

/// The longest wait of one read. A peer that wants more asks again.
const READ_WAIT: Duration = Duration::from_secs(300);

/// What [`serve`] gives the writer to get rid of the last answers.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The processes a server shows its peer.
///
/// The synchronous methods are called on the connection's task and must not block.
pub trait ProcessTable: Send + Sync + 'static {
    /// Processes that exist without having been started through this connection; their events are pushed from the first.
    fn exposed(&self) -> Vec<String> {
        Vec::new()
    }

    /// The session of a process.
    fn session(&self, process_id: &str) -> Option<ProcessSession>;

    /// Asks for the end of a process; returns whether there was anything to end.
    fn terminate(&self, process_id: &str) -> bool;

    /// Starts a process. Its session must be there when this returns.
    ///
    /// # Errors
    /// What the peer is told.
    fn start(&self, params: StartParams) -> impl Future<Output = Result<StartResult, WireError>> + Send {
        let _ = params;
        async { Err(refused(method::START)) }
    }

    /// Writes to a process's standard input.
    ///
    /// # Errors
    /// What the peer is told.
    fn write(&self, params: WriteParams) -> impl Future<Output = Result<WireWriteStatus, WireError>> + Send {
        let _ = params;
        async { Err(refused(method::WRITE)) }
    }

    /// Signals a process.
    ///
    /// # Errors
    /// What the peer is told.
    fn signal(&self, process_id: &str, signal: WireSignal) -> Result<(), WireError> {
        let _ = (process_id, signal);
        Err(refused(method::SIGNAL))
    }
}

fn refused(method: &str) -> WireError {
    WireError::new(code::INVALID_REQUEST, format!("this server refuses {method}"))
}

/// Why a connection takes no more requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerEnd {
    /// The input ended: the peer is gone.
    Gone,
    /// The peer broke the protocol in a way that cannot be answered.
    Broke { reason: String },
    /// The peer asked without reading the answers until they went over their bound.
    Overrun,
}

/// Whether a finished connection's last words were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// Everything was written, or the peer does not read any more.
    Done,
    /// The time was over first.
    Cut,
}

/// One connection being served. Dropping it ends the connection at once.
#[derive(Debug)]
pub struct Server {
    ended: watch::Receiver<Option<PeerEnd>>,
    finish: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// Serves until the peer is gone or breaks the protocol, then writes what is left to be said, for a second at most.
///
/// # Cancel safety
/// Dropping the future ends the connection.
pub async fn serve<R, W, T>(reader: R, writer: W, table: T) -> PeerEnd
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
    T: ProcessTable,
{
    let mut server = Server::start(reader, writer, table);
    let end = server.peer_gone().await;
    server.finish(LAST_WORDS).await;
    end
}

impl Server {
    /// Begins to serve one connection on the current runtime.
    pub fn start<R, W, T>(reader: R, writer: W, table: T) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
        T: ProcessTable,
    {
        let (end_sender, ended) = watch::channel(None);
        let (finish, finish_receiver) = watch::channel(false);
        let (queue, queue_receiver) = mpsc::channel(OUTBOX_LINES);
        let queued = Arc::new(AtomicUsize::new(0));
        let dispatcher = Dispatcher {
            table: Arc::new(table),
            stage: Stage::Fresh,
            outbox: Outbox { queue, queued: Arc::clone(&queued) },
            work: JoinSet::new(),
            lanes: HashMap::new(),
            finish: finish_receiver,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(dispatcher.run(LineReader::after(&[], reader), end_sender));
        tasks.spawn(Writer { writer, queued, pushes: Vec::new() }.run(queue_receiver));
        Self { ended, finish, tasks }
    }

    /// Waits until no more requests come, and says why.
    ///
    /// # Cancel safety
    /// It only waits; call it again at will.
    pub async fn peer_gone(&mut self) -> PeerEnd {
        match self.ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(end)) => end.clone(),
            // The dispatcher is gone without a word, which only the end of the runtime can do.
            _ => PeerEnd::Gone,
        }
    }

    /// Answers what waits, writes every event published so far, and closes; for `within` at most.
    ///
    /// # Cancel safety
    /// Dropping the future ends the connection at once.
    pub async fn finish(mut self, within: Duration) -> Flush {
        self.finish.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        match tokio::time::timeout(within, all).await {
            Ok(()) => Flush::Done,
            Err(_) => Flush::Cut,
        }
    }
}

/// Where the handshake stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Fresh,
    /// `initialize` was answered.
    Greeted,
    /// `initialized` was received.
    Ready,
}

enum Out {
    Line(Vec<u8>),
    Push(String, EventStream),
    Finish,
}

/// The dispatcher's end of the writer's queue.
struct Outbox {
    queue: mpsc::Sender<Out>,
    /// Bytes of lines in the queue.
    queued: Arc<AtomicUsize>,
}

impl Outbox {
    /// Queues without waiting.
    fn send(&self, out: Out) -> Result<(), PeerEnd> {
        let size = match &out {
            Out::Line(line) => line.len(),
            Out::Push(..) | Out::Finish => 0,
        };
        let before = self.queued.fetch_add(size, Ordering::Relaxed);
        if before > 0 && before + size > OUTBOX_BYTES {
            return Err(PeerEnd::Overrun);
        }
        match self.queue.try_send(out) {
            // A writer that has ended had nobody to write to; that the peer is gone shows at the input.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(PeerEnd::Overrun),
        }
    }

    fn answer<T: Serialize>(&self, id: &WireId, outcome: Result<T, WireError>) -> Result<(), PeerEnd> {
        let line = match outcome {
            Ok(result) => WireOutgoing::Result { id, result }.to_line(),
            Err(error) => wire::error_line(id, error),
        };
        match line {
            Ok(line) => self.send(Out::Line(line)),
            Err(error) => Err(PeerEnd::Broke { reason: format!("an answer could not be written down: {error}") }),
        }
    }
}

/// Work that was handed on and is finished.
enum Done {
    Read { id: WireId, answer: ReadAnswer },
    Started { process_id: String, id: WireId, outcome: Result<StartResult, WireError> },
    Written { process_id: String, id: WireId, outcome: Result<WireWriteStatus, WireError> },
}

/// A start or a write. Those of one process run one after the other.
enum LaneJob {
    Start(WireId, StartParams),
    Write(WireId, WriteParams),
}

impl LaneJob {
    fn size(&self) -> usize {
        match self {
            Self::Start(_, params) => params.argv.iter().map(String::len).sum(),
            Self::Write(_, params) => params.chunk.0.len(),
        }
    }
}

struct Dispatcher<T> {
    table: Arc<T>,
    stage: Stage,
    outbox: Outbox,
    work: JoinSet<Done>,
    /// Jobs behind the one that runs; a lane is here exactly while one runs.
    lanes: HashMap<String, VecDeque<LaneJob>>,
    finish: watch::Receiver<bool>,
}

impl<T: ProcessTable> Dispatcher<T> {
    async fn run<R: AsyncRead + Unpin>(mut self, mut lines: LineReader<R>, ended: watch::Sender<Option<PeerEnd>>) {
        let mut finish = self.finish.clone();
        let mut reading = true;
        loop {
            let stepped = tokio::select! {
                biased;
                _ = finish.wait_for(|finish| *finish) => break,
                Some(done) = self.work.join_next() => done.map_or(Ok(()), |done| self.finished(done)),
                line = lines.next(), if reading => match line {
                    Ok(Some(line)) => self.accept(&line),
                    Ok(None) => Err(PeerEnd::Gone),
                    Err(error) => Err(PeerEnd::Broke { reason: error.to_string() }),
                },
            };
            if let Err(end) = stepped {
                reading = false;
                ended.send_if_modified(|ended| ended.is_none() && ended.replace(end).is_none());
            }
        }
        // Waiting reads see `finish` and answer with what there is.
        while let Some(done) = self.work.join_next().await {
            if let Ok(done) = done
                && self.finished(done).is_err()
            {
                break;
            }
        }
        let _ = self.outbox.queue.send(Out::Finish).await;
        ended.send_if_modified(|ended| ended.is_none() && ended.replace(PeerEnd::Gone).is_none());
    }

    fn accept(&mut self, line: &[u8]) -> Result<(), PeerEnd> {
        let broke = |reason: String| Err(PeerEnd::Broke { reason });
        match WireIncoming::parse(line) {
            Err(error) => {
                let error = WireError::new(code::INVALID_REQUEST, error.to_string());
                self.outbox.answer::<()>(&wire::UNREADABLE_ID, Err(error))
            }
            Ok(WireIncoming::Response { .. }) => broke("an answer to nothing".to_owned()),
            Ok(WireIncoming::Notification { method, .. }) if method == method::INITIALIZED => match self.stage {
                Stage::Fresh => broke("initialized came before initialize".to_owned()),
                Stage::Greeted => {
                    self.stage = Stage::Ready;
                    for process_id in self.table.exposed() {
                        self.push(process_id)?;
                    }
                    Ok(())
                }
                Stage::Ready => Ok(()),
            },
            Ok(WireIncoming::Notification { method, .. }) => broke(format!("the notification {method:?} is unknown")),
            Ok(WireIncoming::Request { id, method, params }) => match self.request(&id, &method, &params) {
                Ok(Answer::Now(line)) => self.outbox.send(Out::Line(line)),
                Ok(Answer::Later) => Ok(()),
                Err(error) => self.outbox.answer::<()>(&id, Err(error)),
            },
        }
    }

    fn request(&mut self, id: &WireId, name: &str, params: &serde_json::value::RawValue) -> Result<Answer, WireError> {
        match (name, self.stage) {
            (method::INITIALIZE, Stage::Fresh) => {
                let params: InitializeParams = wire::read_params(params)?;
                if let Some(session) = params.resume_session_id {
                    let text = format!("unknown session id {session}");
                    return Err(WireError::new(code::INVALID_REQUEST, text));
                }
                self.stage = Stage::Greeted;
                let session_id = Uuid::new_v4().to_string();
                Answer::now(id, InitializeResult { session_id, environment_info: None })
            }
            (method::INITIALIZE, _) => Err(WireError::new(code::INVALID_REQUEST, "this connection is initialized")),
            (
                method::START | method::READ | method::WRITE | method::SIGNAL | method::TERMINATE,
                Stage::Fresh | Stage::Greeted,
            ) => Err(WireError::new(code::INVALID_REQUEST, format!("{name} came before initialized"))),
            (method::READ, Stage::Ready) => self.read(id, wire::read_params(params)?),
            (method::TERMINATE, Stage::Ready) => {
                let params: TerminateParams = wire::read_params(params)?;
                Answer::now(id, TerminateAnswer { running: self.table.terminate(&params.process_id) })
            }
            (method::SIGNAL, Stage::Ready) => {
                let params: SignalParams = wire::read_params(params)?;
                self.table.signal(&params.process_id, params.signal)?;
                Answer::now(id, serde_json::Map::new())
            }
            (method::START, Stage::Ready) => {
                let params: StartParams = wire::read_params(params)?;
                self.enqueue(params.process_id.clone(), LaneJob::Start(id.clone(), params))
            }
            (method::WRITE, Stage::Ready) => {
                let params: WriteParams = wire::read_params(params)?;
                self.enqueue(params.process_id.clone(), LaneJob::Write(id.clone(), params))
            }
            _ => Err(WireError::new(code::UNKNOWN_METHOD, format!("the method {name:?} is unknown"))),
        }
    }

    fn read(&mut self, id: &WireId, params: ReadParams) -> Result<Answer, WireError> {
        let Some(session) = self.table.session(&params.process_id) else {
            let text = format!("unknown process id {}", params.process_id);
            return Err(WireError::new(code::INVALID_REQUEST, text));
        };
        let after = params.after_seq.unwrap_or(0);
        let wait = Duration::from_millis(params.wait_ms.unwrap_or(0)).min(READ_WAIT);
        if wait.is_zero() || session.look(|core| core.read_is_due(after)) {
            let result = session.look(|core| core.read(after, params.max_bytes));
            return Answer::now(id, ReadAnswer::from(result));
        }
        self.check_room()?;
        let id = id.clone();
        let mut finish = self.finish.clone();
        self.work.spawn(async move {
            let result = tokio::select! {
                result = session.read(after, params.max_bytes, wait) => result,
                _ = finish.wait_for(|finish| *finish) => session.look(|core| core.read(after, params.max_bytes)),
            };
            Done::Read { id, answer: result.into() }
        });
        Ok(Answer::Later)
    }

    fn check_room(&self) -> Result<(), WireError> {
        let queued: usize = self.lanes.values().map(VecDeque::len).sum();
        if self.work.len() + queued < WAITING_REQUESTS {
            Ok(())
        } else {
            Err(WireError::new(code::INTERNAL, format!("{WAITING_REQUESTS} requests are waiting already")))
        }
    }

    fn enqueue(&mut self, process_id: String, job: LaneJob) -> Result<Answer, WireError> {
        self.check_room()?;
        match self.lanes.get_mut(&process_id) {
            Some(lane) => {
                if lane.iter().map(LaneJob::size).sum::<usize>() + job.size() > LANE_BYTES {
                    return Err(WireError::new(code::INTERNAL, "too much is queued for this process already"));
                }
                lane.push_back(job);
            }
            None => {
                self.lanes.insert(process_id, VecDeque::new());
                self.perform(job);
            }
        }
        Ok(Answer::Later)
    }

    fn perform(&mut self, job: LaneJob) {
        let table = Arc::clone(&self.table);
        self.work.spawn(async move {
            match job {
                LaneJob::Start(id, params) => {
                    let process_id = params.process_id.clone();
                    Done::Started { outcome: table.start(params).await, process_id, id }
                }
                LaneJob::Write(id, params) => {
                    let process_id = params.process_id.clone();
                    Done::Written { outcome: table.write(params).await, process_id, id }
                }
            }
        });
    }

    fn finished(&mut self, done: Done) -> Result<(), PeerEnd> {
        match done {
            Done::Read { id, answer } => self.outbox.answer(&id, Ok(answer)),
            Done::Started { process_id, id, outcome } => {
                self.advance(&process_id);
                if outcome.is_ok() {
                    self.push(process_id)?;
                }
                self.outbox.answer(&id, outcome)
            }
            Done::Written { process_id, id, outcome } => {
                self.advance(&process_id);
                self.outbox.answer(&id, outcome.map(|status| WriteAnswer { status }))
            }
        }
    }

    /// Runs the next job of a lane, or closes the lane.
    fn advance(&mut self, process_id: &str) {
        match self.lanes.get_mut(process_id).and_then(VecDeque::pop_front) {
            Some(job) => self.perform(job),
            None => _ = self.lanes.remove(process_id),
        }
    }

    fn push(&self, process_id: String) -> Result<(), PeerEnd> {
        match self.table.session(&process_id) {
            Some(session) => {
                let stream = session.subscribe(Cursor::start());
                self.outbox.send(Out::Push(process_id, stream))
            }
            None => Ok(()),
        }
    }
}

enum Answer {
    Now(Vec<u8>),
    Later,
}

impl Answer {
    fn now<T: Serialize>(id: &WireId, result: T) -> Result<Self, WireError> {
        WireOutgoing::Result { id, result }
            .to_line()
            .map(Self::Now)
            .map_err(|error| WireError::new(code::INTERNAL, error.to_string()))
    }
}

struct Writer<W> {
    writer: W,
    queued: Arc<AtomicUsize>,
    pushes: Vec<(String, EventStream)>,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    async fn run(mut self, mut queue: mpsc::Receiver<Out>) {
        if let Err(error) = self.write_all(&mut queue).await {
            tracing::debug!(%error, "the peer of an exec connection does not read any more");
        }
    }

    async fn write_all(&mut self, queue: &mut mpsc::Receiver<Out>) -> std::io::Result<()> {
        loop {
            // Answers first: a peer has at most so many requests in flight, while output may never pause.
            let out = tokio::select! {
                biased;
                out = queue.recv() => out,
                (place, event) = next_event(&mut self.pushes), if !self.pushes.is_empty() => {
                    self.write_event(place, event).await?;
                    continue;
                }
            };
            match out {
                Some(Out::Line(line)) => {
                    self.write(&line).await?;
                    self.queued.fetch_sub(line.len(), Ordering::Relaxed);
                }
                Some(Out::Push(process_id, stream)) => self.pushes.push((process_id, stream)),
                Some(Out::Finish) => break,
                None => return Ok(()),
            }
        }
        while let Some((process_id, mut stream)) = self.pushes.pop() {
            while let Some(event) = stream.try_next() {
                self.write_line_of(&process_id, &event).await?;
            }
        }
        self.writer.shutdown().await
    }

    async fn write_event(&mut self, place: usize, event: Option<ProcessEvent>) -> std::io::Result<()> {
        let Some(event) = event else {
            self.pushes.remove(place);
            return Ok(());
        };
        let process_id = self.pushes[place].0.clone();
        // The next look begins behind this session, so that a busy one does not starve the others.
        self.pushes.rotate_left(place + 1);
        self.write_line_of(&process_id, &event).await
    }

    async fn write_line_of(&mut self, process_id: &str, event: &ProcessEvent) -> std::io::Result<()> {
        match wire::event_line(process_id, event) {
            Ok(Some(line)) => self.write(&line).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn write(&mut self, line: &[u8]) -> std::io::Result<()> {
        self.writer.write_all(line).await?;
        self.writer.flush().await
    }
}

/// The next event of any stream and its place. At least one stream.
async fn next_event(pushes: &mut [(String, EventStream)]) -> (usize, Option<ProcessEvent>) {
    if let [(_, only)] = pushes {
        return (0, only.next().await);
    }
    let all = pushes.iter_mut().map(|(_, stream)| Box::pin(stream.next()));
    let (event, place, _) = futures_util::future::select_all(all).await;
    (place, event)
}

#[cfg(test)]
mod tests;
