//! What a peer's lines become.
//!
//! Owns: the handshake, which request is answered at once and which is handed on, the lanes, which process's events are pushed from
//! when on. May not know: how lines travel, what processes are.
//!
//! A resumed session's events wait until its peer has read what it missed ([`RESUME_HOLD`] at most): pushed before that, they would
//! be events behind a gap, which other clients hold in a small buffer and lose the process over.
//!
//! Invariants: (1) it waits for input and for finished work, never for the writer; (2) each request gets one answer, also when its
//! work panics; (3) the requests of one lane are performed in the order in which they came, and everything else overtakes them.

use crate::base::tasks::TaskSet;
use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::io::AsyncRead;
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::OutputCursor;
use super::super::lines::LineReader;
use super::super::wire::{
    self, InitializeParams, ReadAnswer, ReadParams, SignalParams, StartParams, StartResult, TerminateAnswer,
    TerminateParams, WireError, WireId, WireIncoming, WireOutgoing, WireStream, WireWriteStatus, WriteAnswer,
    WriteParams, code, method,
};
use super::outbox::{Out, Outbox, Push};
use super::{Begun, ConnectionTraits, Extra, PeerEnd, ProcessTable};

/// Bytes that may queue in one lane; one of the longest lines of the usual bound.
const LANE_BYTES: usize = 16 * 1024 * 1024;

/// Bytes that may queue in all lanes: some of the longest messages a server takes.
const QUEUED_BYTES: usize = 256 * 1024 * 1024;

/// The longest wait of one read. A peer that wants more asks again.
const READ_WAIT: Duration = Duration::from_secs(300);

/// How long a resumed session's events wait for its peer's first read. A peer that does not read within a round trip or two means
/// to go on by what is pushed.
const RESUME_HOLD: Duration = Duration::from_secs(1);

/// Where the handshake stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Fresh,
    /// `initialize` was answered.
    Greeted,
    /// `initialized` was received.
    Ready,
}

/// Work that was handed on and is finished.
enum Done {
    Read { id: WireId, outcome: Result<ReadAnswer, WireError> },
    Started { process_id: String, id: WireId, outcome: Result<StartResult, WireError> },
    Written { process_id: String, id: WireId, outcome: Result<WireWriteStatus, WireError> },
    Extra { lane: Option<String>, id: WireId, outcome: Result<Box<RawValue>, WireError> },
}

/// What waits in a lane.
enum LaneJob {
    Start(WireId, StartParams),
    Write(WireId, WriteParams),
    Extra(WireId, Extra),
}

impl LaneJob {
    fn size(&self) -> usize {
        match self {
            Self::Start(_, params) => params.argv.iter().map(String::len).sum(),
            Self::Write(_, params) => params.chunk.0.len(),
            Self::Extra(_, extra) => extra.size,
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

pub(super) struct Dispatcher<T> {
    table: Arc<T>,
    traits: ConnectionTraits,
    stage: Stage,
    outbox: Outbox,
    work: TaskSet<Done>,
    /// Jobs behind the one that runs; a lane is here exactly while one runs.
    lanes: HashMap<String, VecDeque<LaneJob>>,
    /// Jobs in all lanes, and their bytes.
    queued: (usize, usize),
    /// Processes of a resumed session whose events wait for a read, and until when.
    held: HashSet<String>,
    held_until: Option<Instant>,
    finish: watch::Receiver<bool>,
}

impl<T: ProcessTable> Dispatcher<T> {
    pub(super) fn new(table: Arc<T>, traits: ConnectionTraits, outbox: Outbox, finish: watch::Receiver<bool>) -> Self {
        Self {
            table,
            traits,
            stage: Stage::Fresh,
            outbox,
            work: TaskSet::new(),
            lanes: HashMap::new(),
            queued: (0, 0),
            held: HashSet::new(),
            held_until: None,
            finish,
        }
    }

    pub(super) async fn run<R: AsyncRead + Unpin>(
        mut self,
        mut lines: LineReader<R>,
        ended: watch::Sender<Option<PeerEnd>>,
    ) {
        let mut finish = self.finish.clone();
        let mut reading = true;
        loop {
            let held_until = self.held_until;
            let stepped = tokio::select! {
                biased;
                _ = finish.wait_for(|finish| *finish) => break,
                Some(done) = self.work.join_next() => done.map_or(Ok(()), |done| self.finished(done)),
                line = lines.next(), if reading => match line {
                    Ok(Some(line)) => self.accept(&line),
                    Ok(None) => Err(PeerEnd::Gone),
                    Err(error) => Err(PeerEnd::Broke { reason: error.to_string() }),
                },
                () = tokio::time::sleep_until(held_until.unwrap_or_else(Instant::now)), if held_until.is_some() => {
                    self.held_until = None;
                    let held = std::mem::take(&mut self.held);
                    held.into_iter().try_for_each(|process_id| self.push(process_id, 0))
                }
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
        self.outbox.finish().await;
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
                    if self.held_until.is_some() {
                        self.held_until = Some(Instant::now() + RESUME_HOLD);
                        return Ok(());
                    }
                    self.table.exposed().into_iter().try_for_each(|process_id| self.push(process_id, 0))
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

    fn request(&mut self, id: &WireId, name: &str, params: &RawValue) -> Result<Answer, WireError> {
        match (name, self.stage) {
            (method::INITIALIZE, Stage::Fresh) => self.initialize(id, wire::read_params(params)?),
            (method::INITIALIZE, _) => Err(WireError::new(code::INVALID_REQUEST, "this connection is initialized")),
            (
                method::START | method::READ | method::WRITE | method::SIGNAL | method::TERMINATE,
                Stage::Fresh | Stage::Greeted,
            ) => Err(WireError::new(code::INVALID_REQUEST, format!("{name} came before initialized"))),
            (method::READ, Stage::Ready) => self.read(id, wire::read_params(params)?),
            (method::TERMINATE, Stage::Ready) => {
                let params: TerminateParams = wire::read_params(params)?;
                let grace = params.grace_ms.map(Duration::from_millis);
                Answer::now(id, TerminateAnswer { running: self.table.terminate_within(&params.process_id, grace) })
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
            (_, stage) => match (self.table.extra(name, params), stage) {
                (None, _) => Err(WireError::new(code::UNKNOWN_METHOD, format!("the method {name:?} is unknown"))),
                (Some(_), Stage::Fresh | Stage::Greeted) => {
                    Err(WireError::new(code::INVALID_REQUEST, format!("{name} came before initialized")))
                }
                (Some(extra), Stage::Ready) => match extra.lane.clone() {
                    Some(lane) => self.enqueue(lane, LaneJob::Extra(id.clone(), extra)),
                    None => {
                        self.check_room(extra.size)?;
                        self.perform(LaneJob::Extra(id.clone(), extra));
                        Ok(Answer::Later)
                    }
                },
            },
        }
    }

    fn initialize(&mut self, id: &WireId, params: InitializeParams) -> Result<Answer, WireError> {
        let opened = self.table.open(params)?;
        self.stage = Stage::Greeted;
        if opened.begun == Begun::Resumed {
            self.held = self.table.exposed().into_iter().collect();
            // For who never says `initialized` as well.
            self.held_until = Some(Instant::now() + READ_WAIT);
        }
        Answer::now(id, opened.answer)
    }

    fn read(&mut self, id: &WireId, params: ReadParams) -> Result<Answer, WireError> {
        let Some(session) = self.table.session(&params.process_id) else {
            let text = format!("unknown process id {}", params.process_id);
            return Err(WireError::new(code::INVALID_REQUEST, text));
        };
        let after = params.after_seq.unwrap_or(0);
        let output = self.output_of(&params.process_id);
        if self.held.remove(&params.process_id) {
            // The read says what the peer has.
            self.push(params.process_id.clone(), after)
                .map_err(|_| WireError::new(code::INTERNAL, "too much waits to be read"))?;
        }
        let wait = Duration::from_millis(params.wait_ms.unwrap_or(0)).min(READ_WAIT);
        if wait.is_zero() || session.look(|core| core.read_is_due(after)) {
            let result = session.look(|core| core.read(after, params.max_bytes));
            return Answer::now(id, named(result.into(), output));
        }
        self.check_room(0)?;
        let id = id.clone();
        let mut finish = self.finish.clone();
        self.work.spawn(async move {
            let reading = async {
                let result = tokio::select! {
                    result = session.read(after, params.max_bytes, wait) => result,
                    _ = finish.wait_for(|finish| *finish) => session.look(|core| core.read(after, params.max_bytes)),
                };
                Ok(named(result.into(), output))
            };
            Done::Read { id, outcome: told(reading).await }
        });
        Ok(Answer::Later)
    }

    fn output_of(&self, process_id: &str) -> WireStream {
        if self.table.is_on_terminal(process_id) { WireStream::Pty } else { WireStream::Stdout }
    }

    fn check_room(&self, size: usize) -> Result<(), WireError> {
        let (jobs, bytes) = self.queued;
        let waiting = self.traits.waiting;
        if self.work.len() + jobs >= waiting {
            return Err(WireError::new(code::INTERNAL, format!("{waiting} requests are waiting already")));
        }
        if bytes > 0 && bytes + size > QUEUED_BYTES {
            return Err(WireError::new(code::INTERNAL, "too much is queued on this connection already"));
        }
        Ok(())
    }

    fn enqueue(&mut self, lane: String, job: LaneJob) -> Result<Answer, WireError> {
        let size = job.size();
        self.check_room(size)?;
        match self.lanes.get_mut(&lane) {
            Some(waiting) => {
                let before: usize = waiting.iter().map(LaneJob::size).sum();
                if before > 0 && before + size > LANE_BYTES {
                    return Err(WireError::new(code::INTERNAL, "too much is queued for this process already"));
                }
                waiting.push_back(job);
                self.queued.0 += 1;
                self.queued.1 += size;
            }
            None => {
                self.lanes.insert(lane, VecDeque::new());
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
                    Done::Started { outcome: told(table.start(params)).await, process_id, id }
                }
                LaneJob::Write(id, params) => {
                    let process_id = params.process_id.clone();
                    Done::Written { outcome: told(table.write(params)).await, process_id, id }
                }
                LaneJob::Extra(id, extra) => Done::Extra { lane: extra.lane, id, outcome: told(extra.work).await },
            }
        });
    }

    fn finished(&mut self, done: Done) -> Result<(), PeerEnd> {
        match done {
            Done::Read { id, outcome } => self.outbox.answer(&id, outcome),
            Done::Started { process_id, id, outcome } => {
                self.advance(&process_id);
                if outcome.is_ok() {
                    self.push(process_id, 0)?;
                }
                self.outbox.answer(&id, outcome)
            }
            Done::Written { process_id, id, outcome } => {
                self.advance(&process_id);
                self.outbox.answer(&id, outcome.map(|status| WriteAnswer { status }))
            }
            Done::Extra { lane, id, outcome } => {
                if let Some(lane) = lane {
                    self.advance(&lane);
                }
                self.outbox.answer(&id, outcome)
            }
        }
    }

    /// Runs the next job of a lane, or closes the lane.
    fn advance(&mut self, lane: &str) {
        match self.lanes.get_mut(lane).and_then(VecDeque::pop_front) {
            Some(job) => {
                self.queued.0 -= 1;
                self.queued.1 -= job.size();
                self.perform(job);
            }
            None => _ = self.lanes.remove(lane),
        }
    }

    /// Pushes what follows position `seen`.
    fn push(&self, process_id: String, seen: u64) -> Result<(), PeerEnd> {
        match self.table.session(&process_id) {
            Some(session) => {
                self.table.pushes_from(&process_id, seen);
                let stream = session.subscribe(OutputCursor::after(seen));
                let output = self.output_of(&process_id);
                self.outbox.send(Out::Push(Push { process_id: process_id.into(), stream, output }))
            }
            None => Ok(()),
        }
    }
}

/// The outcome of work that may panic: who asked is told, and what waits behind it in its lane has its turn.
async fn told<T>(work: impl Future<Output = Result<T, WireError>>) -> Result<T, WireError> {
    let panicked = |_| Err(WireError::new(code::INTERNAL, "the server panicked at this request"));
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(panicked)
}

/// A terminal's output has its own name.
fn named(mut answer: ReadAnswer, output: WireStream) -> ReadAnswer {
    if output == WireStream::Pty {
        for chunk in &mut answer.chunks {
            chunk.stream = WireStream::Pty;
        }
    }
    answer
}
