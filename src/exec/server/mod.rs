//! The serving side of the exec protocol, over any pair of byte streams.
//!
//! Owns: one connection's handshake, its requests, and pushing events to its peer.
//! May not know: what the processes are; the [`ProcessTable`] does.
//!
//! Two tasks: the *dispatcher* reads lines and answers or hands on each request; the *writer* alone writes. Events are not
//! queued for the writer: it walks the sessions' rings itself, so the order on the wire is the order of the positions. What a
//! peer that reads slowly costs is the table's choice ([`Delivery`]): it misses events it can read back, while the process never
//! feels it; or it misses nothing, while its own processes wait for it and nobody else's do.
//!
//! Invariants:
//! 1. The dispatcher waits for input and for finished work, never for the writer.
//! 2. Each request gets one answer. Requests that may wait do so outside the dispatcher, so none is behind another, but
//!    starts and writes of one process keep their order.
//! 3. The end of input is known at once, whatever is in flight.
//! 4. [`Server::finish`] writes what has been published, the terminal events above all, before it closes.

use crate::base::tasks::TaskSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use self::dispatcher::Dispatcher;
pub(crate) use self::environment::core_of;
use self::outbox::{OUTBOX_LINES, Outbox};
use self::writer::Writer;
use super::lines::{LINE_BYTES, LineReader};
use super::session::ProcessSession;
use super::transport::marks::Marks;
use super::wire::{
    InitializeParams, InitializeResult, StartParams, StartResult, WireError, WireSignal, WireWriteStatus, WriteParams,
    code, method,
};

pub mod admission;
mod dispatcher;
mod environment;
pub mod host;
pub mod house;
pub mod listen;
mod outbox;
pub mod sessions;
mod writer;

/// Requests of one connection that may be waiting at once. Ours keep to 64; four such clients' worth is refused beyond.
const WAITING_REQUESTS: usize = 256;

/// What [`serve`] gives the writer to get rid of the last answers.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What one connection may do to this side, and it to the peer.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionTraits {
    /// The longest line that is taken.
    pub line_bytes: usize,
    /// Requests that may be waiting at once; more are refused.
    pub waiting: usize,
    /// What a peer that reads slowly costs.
    pub delivery: Delivery,
}

impl Default for ConnectionTraits {
    fn default() -> Self {
        Self { line_bytes: LINE_BYTES, waiting: WAITING_REQUESTS, delivery: Delivery::Ring }
    }
}

/// What a peer that reads slowly costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Events: it may read them back as long as they are retained.
    Ring,
    /// Time, of its own processes.
    Lossless,
}

/// A session that was opened.
#[derive(Debug)]
pub struct Opened {
    /// What the peer is told.
    pub answer: InitializeResult,
    /// Whether its processes were there before.
    pub begun: Begun,
}

/// Whether a session is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// It is.
    Anew,
    /// It was taken up again: what its peer has of each process, only its peer knows.
    Resumed,
}

/// A request beyond the process methods, as its table performs it.
pub struct Extra {
    /// Requests of one lane are performed one after the other; without a lane, at once. A process's lane has its id.
    pub lane: Option<String>,
    /// Bytes it holds while it waits for its turn.
    pub size: usize,
    /// The work; it begins when it is polled.
    pub work: Pin<Box<dyn Future<Output = Result<Box<RawValue>, WireError>> + Send>>,
}

/// The processes a server shows its peer.
///
/// The synchronous methods are called on the connection's task and must not block.
pub trait ProcessTable: Send + Sync + 'static {
    /// The bounds of the connection.
    fn traits(&self) -> ConnectionTraits {
        ConnectionTraits::default()
    }

    /// Opens the connection's session.
    ///
    /// # Errors
    /// What the peer is told; it may try again.
    fn open(&self, params: InitializeParams) -> Result<Opened, WireError> {
        match params.resume_session_id {
            Some(session) => Err(WireError::new(code::INVALID_REQUEST, format!("unknown session id {session}"))),
            None => {
                let session_id = Uuid::new_v4().to_string();
                let answer = InitializeResult { session_id, environment_info: None, lease_ms: None };
                Ok(Opened { answer, begun: Begun::Anew })
            }
        }
    }

    /// Processes that exist without having been started through this connection; their events are pushed from the first.
    fn exposed(&self) -> Vec<String> {
        Vec::new()
    }

    /// The session of a process.
    fn session(&self, process_id: &str) -> Option<ProcessSession>;

    /// Asks for the end of a process; returns whether there was anything to end.
    fn terminate(&self, process_id: &str) -> bool;

    /// As [`ProcessTable::terminate`], with what it gets before it is killed.
    fn terminate_within(&self, process_id: &str, grace: Option<Duration>) -> bool {
        let _ = grace;
        self.terminate(process_id)
    }

    /// Whether a process has a terminal.
    fn is_on_terminal(&self, process_id: &str) -> bool {
        let _ = process_id;
        false
    }

    /// The peer has everything of a process up to here, and is pushed what follows.
    fn pushes_from(&self, process_id: &str, seen: u64) {
        let _ = (process_id, seen);
    }

    /// A method this module does not know; `None` when the table does not know it either.
    fn extra(&self, name: &str, params: &RawValue) -> Option<Extra> {
        let _ = (name, params);
        None
    }

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
    tasks: TaskSet<()>,
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
        Self::start_marked(reader, writer, table, None)
    }

    /// The same, by a writer that learns what its peer has read.
    pub fn start_marked<R, W, T>(reader: R, writer: W, table: T, marks: Option<Arc<Marks>>) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
        T: ProcessTable,
    {
        let traits = table.traits();
        let (end_sender, ended) = watch::channel(None);
        let (finish, finish_receiver) = watch::channel(false);
        let (queue, queue_receiver) = mpsc::channel(OUTBOX_LINES);
        let queued = Arc::new(AtomicUsize::new(0));
        let outbox = Outbox::new(queue, Arc::clone(&queued));
        let dispatcher = Dispatcher::new(Arc::new(table), traits, outbox, finish_receiver);
        let lines = LineReader::after(&[], reader).up_to(traits.line_bytes);
        let mut tasks = TaskSet::new();
        tasks.spawn(dispatcher.run(lines, end_sender));
        tasks.spawn(Writer::new(writer, queued, traits.delivery, marks).run(queue_receiver));
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

#[cfg(test)]
mod tests;
