//! A front door: the bytes of one connection, in and out.
//!
//! Owns: the reading task, the writing task, the room between them and the session. May not know: what a line means.
//!
//! Invariants: (1) reading stops while the session is behind or the client does not read its answers, so a stalled
//! client stalls itself and nothing is buffered without a bound (L9, L14); (2) one task writes, whole lines at a time
//! (L11); (3) what was handed to the writer before the end is written, within a bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::session::SessionMsg;
use super::sessions::SessionsMsg;
use crate::ids::SessionNumber;
use crate::protocol::frame::FrameReader;

/// Unwritten bytes at which reading stops: one pipe's worth many times over, small beside a process.
const BACKLOG: usize = 1024 * 1024;

/// Blocks of lines the session may be behind by. Two: one being handled, one ready.
const TURNS: usize = 2;

/// Longest the last answers may take to be written once the session is over.
const DRAIN: Duration = Duration::from_secs(1);

/// Blocks gathered into one write.
const GATHER: usize = 64;

/// Where a session's output goes. Dropping it ends the writer after what was handed over.
#[derive(Debug)]
pub struct Output {
    blocks: mpsc::UnboundedSender<Bytes>,
    room: Arc<Room>,
}

/// The room for unwritten bytes. The channel itself needs no bound: the session produces only answers to calls that
/// are bounded in number, and reading stops at [`BACKLOG`].
#[derive(Debug, Default)]
struct Room {
    unwritten: AtomicUsize,
    freed: Notify,
}

impl Output {
    /// Hands on a block of whole lines. When the client is gone it is dropped.
    pub fn send(&self, block: Bytes) {
        self.room.unwritten.fetch_add(block.len(), Ordering::Relaxed);
        let _ = self.blocks.send(block);
    }

    /// Whether the client is slow to read; news that can be missed is left out then.
    #[must_use]
    pub fn is_backed_up(&self) -> bool {
        self.room.unwritten.load(Ordering::Relaxed) > BACKLOG / 4
    }
}

/// The far ends of an [`Output`].
#[derive(Debug)]
pub struct OutputEnd {
    blocks: mpsc::UnboundedReceiver<Bytes>,
    room: Arc<Room>,
}

/// An output and the end its door takes.
#[must_use]
pub fn output() -> (Output, OutputEnd) {
    let (sender, blocks) = mpsc::unbounded_channel();
    let room = Arc::new(Room::default());
    (Output { blocks: sender, room: Arc::clone(&room) }, OutputEnd { blocks, room })
}

/// What a connection reads from.
pub type Input = Box<dyn AsyncRead + Send + Unpin>;

/// What a connection writes to.
pub type Sink = Box<dyn AsyncWrite + Send + Unpin>;

/// The door actor.
pub struct Door;

/// What it is started with.
pub struct DoorArguments {
    /// The session behind it.
    pub number: SessionNumber,
    /// That session.
    pub session: ActorRef<SessionMsg>,
    /// Told when the connection is over.
    pub sessions: ActorRef<SessionsMsg>,
    /// The client's bytes.
    pub input: Input,
    /// Ours.
    pub sink: Sink,
    /// What the session hands on.
    pub output: OutputEnd,
    /// Longest line taken.
    pub line_limit: usize,
}

/// Everything that can wake a door.
pub enum DoorMsg {
    /// The client sends nothing more.
    InputEnded,
    /// Everything was written, or the client reads nothing more.
    OutputEnded,
}

/// The door's state; dropping it ends both tasks.
pub struct DoorState {
    number: SessionNumber,
    session: ActorRef<SessionMsg>,
    sessions: ActorRef<SessionsMsg>,
    _tasks: JoinSet<()>,
}

impl Actor for Door {
    type Msg = DoorMsg;
    type State = DoorState;
    type Arguments = DoorArguments;

    async fn pre_start(&self, me: ActorRef<Self::Msg>, a: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        let mut tasks = JoinSet::new();
        let room = Arc::clone(&a.output.room);
        let (reader, writer) = (me.clone(), me);
        let session = a.session.clone();
        tasks.spawn(async move {
            read(a.input, &session, &room, a.line_limit).await;
            let _ = reader.cast(DoorMsg::InputEnded);
        });
        let session = a.session.clone();
        tasks.spawn(async move {
            write(a.sink, a.output, &session).await;
            let _ = writer.cast(DoorMsg::OutputEnded);
        });
        Ok(DoorState { number: a.number, session: a.session, sessions: a.sessions, _tasks: tasks })
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            // A session that is over already hears nothing.
            DoorMsg::InputEnded => drop(state.session.cast(SessionMsg::InputEnded)),
            DoorMsg::OutputEnded => {
                let _ = state.session.cast(SessionMsg::Over);
                let _ = state.sessions.cast(SessionsMsg::DoorClosed(state.number));
                me.stop(None);
            }
        }
        Ok(())
    }
}

/// Reads until the end of input. What was read is in the frame reader, never in a future that could be dropped.
async fn read(mut input: Input, session: &ActorRef<SessionMsg>, room: &Room, line_limit: usize) {
    let turns = Arc::new(Semaphore::new(TURNS));
    let mut reader = FrameReader::new(line_limit);
    loop {
        // Room first: bytes that were read must have somewhere to go.
        let Ok(credit) = Arc::clone(&turns).acquire_owned().await else { return };
        room.wait().await;
        let more = match input.read_buf(reader.space()).await {
            Ok(0) => false,
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, "the input failed");
                false
            }
        };
        let mut frames = Vec::new();
        while let Some(frame) = reader.next_frame() {
            frames.push(frame);
        }
        if !more {
            frames.extend(reader.finish());
        }
        if !frames.is_empty() && session.cast(SessionMsg::Frames { frames, credit: Some(credit) }).is_err() {
            return;
        }
        if !more {
            return;
        }
    }
}

impl Room {
    async fn wait(&self) {
        while self.unwritten.load(Ordering::Relaxed) > BACKLOG {
            self.freed.notified().await;
        }
    }

    fn free(&self, bytes: usize) {
        self.unwritten.fetch_sub(bytes, Ordering::Relaxed);
        self.freed.notify_one();
    }
}

/// Writes blocks until the session lets go of its output.
async fn write(mut sink: Sink, mut output: OutputEnd, session: &ActorRef<SessionMsg>) {
    let mut blocks = Vec::with_capacity(GATHER);
    let mut joined = Vec::new();
    loop {
        if output.blocks.recv_many(&mut blocks, GATHER).await == 0 {
            break;
        }
        let bytes: usize = blocks.iter().map(Bytes::len).sum();
        let writing = async {
            match &blocks[..] {
                [one] => sink.write_all(one).await?,
                // Small blocks of several turns become one write; large ones are not copied together.
                many if bytes <= 64 * 1024 => {
                    joined.clear();
                    many.iter().for_each(|block| joined.extend_from_slice(block));
                    sink.write_all(&joined).await?;
                }
                many => {
                    for block in many {
                        sink.write_all(block).await?;
                    }
                }
            }
            sink.flush().await
        };
        // Once the session has let go, a client that does not read is not waited for.
        let written = tokio::select! {
            // In order, so that a write that needs no waiting costs no look at the session.
            biased;
            written = writing => written,
            () = abandoned(session) => return,
        };
        blocks.clear();
        output.room.free(bytes);
        if let Err(error) = written {
            tracing::debug!(%error, "the client reads nothing more");
            return;
        }
    }
    let _ = sink.shutdown().await;
}

/// Resolves when the session has been over for [`DRAIN`].
async fn abandoned(session: &ActorRef<SessionMsg>) {
    let _ = session.wait(None).await;
    tokio::time::sleep(DRAIN).await;
}
