//! Process sessions: what a process writes and how it ends, as one ordered list of events.
//!
//! Owns: the events, their numbering and retention ([`core`]), the shared handle over them ([`session`]), processes of
//! this machine ([`local`]), the exec protocol in both directions ([`wire`], [`server`], [`client`]), and what is the same
//! about every machine that runs processes ([`backend`]).
//! May not know: jobs, agents, MCP, the store. A process is a program with bytes going in and coming out.
//!
//! A session's life, the same for a local and a remote process:
//!
//! ```text
//! Running --Exited(seq)--> Exited --Closed(seq)--> ended
//!    |                        |
//!    +--------- Failed -------+----------------->  ended
//! ```
//!
//! Invariants (as functions in [`invariants`]):
//! 1. Sequence numbers start at 1 and only grow; a number that is missing was announced by one `Lagged`.
//! 2. Exactly one terminal event (`Closed` or `Failed`) is published, and nothing after it.
//! 3. `Exited` is not the end of output; `Closed` is.
//! 4. The exit and the terminal event are never evicted, and every subscriber gets them.
//! 5. Nothing here grows without bound, and no subscriber slows the process or another subscriber.

pub mod backend;
pub mod client;
pub mod core;
pub mod files;
pub mod invariants;
pub(crate) mod lines;
pub mod local;
pub mod machine;
pub mod remote;
pub mod server;
pub mod session;
pub(crate) mod tap;
pub mod target;
pub mod transport;
pub mod wire;

pub use self::backend::{ExecBackend, ExecFiles, ExecProcess, ProcessStartError, StartRequest};
pub use self::client::{ExecClient, ExecError};
pub use self::core::ProcessLog;
pub use self::local::{Adopt, CloseBy, LocalExec, LocalProcess, OutputTap, ProcessEnd, SpawnError, SpawnSpec, Stdin};
pub use self::remote::{RemoteExec, RemoteOptions};
pub use self::server::{PeerEnd, ProcessTable, Server};
pub use self::session::{EventStream, ProcessSession};
pub use self::target::{ExecTarget, ServerUrl, TargetWords};

use bytes::Bytes;

/// Events a session retains for late and slow subscribers, the exit and the terminal event included.
///
/// The number of the protocol's first client. Reaching it evicts the oldest output; a subscriber that had not read it
/// is told so by [`ProcessEvent::Lagged`].
pub const RING_EVENTS: usize = 256;

/// Output bytes a session retains; evicted like [`RING_EVENTS`].
///
/// What the protocol's servers retain per process, so a reader that recovers through `read` finds as much here as there.
pub const RING_BYTES: usize = 1024 * 1024;

/// The largest output chunk we publish, in bytes; longer output is several events.
///
/// One full Linux pipe. In base64 it is 88 KB, so a line of the protocol never holds others up for long.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// Which pipe a process wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputStream {
    /// File descriptor 1; also everything a remote process writes to its terminal.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// Something that happened to a process, in the past tense and in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessEvent {
    /// It wrote something.
    Output {
        /// Position in the session, from 1.
        seq: u64,
        /// Where it wrote.
        stream: OutputStream,
        /// What it wrote, never empty.
        bytes: Bytes,
    },
    /// It exited. Output may follow, from its descendants or still in the pipes.
    Exited {
        /// Position in the session.
        seq: u64,
        /// Its exit code, 128 + n for death by signal n.
        code: i32,
        /// The signal it died of, where its machine says so: a code of 137 alone may be any program's own.
        signal: Option<i32>,
    },
    /// Terminal: it is over, and there is no more output.
    Closed {
        /// Position in the session, the highest there is.
        seq: u64,
    },
    /// Terminal: what became of it can no longer be learnt.
    Failed {
        /// One sentence for people.
        message: String,
    },
    /// Output was lost to this subscriber: it was too slow, came too late, or the peer no longer had it.
    Lagged {
        /// The first lost position.
        from: u64,
        /// The last lost position.
        to: u64,
    },
}

impl ProcessEvent {
    /// Whether nothing follows this event.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        matches!(self, Self::Closed { .. } | Self::Failed { .. })
    }

    /// The position a subscriber has reached with this event; `None` for [`ProcessEvent::Failed`], which has none.
    #[must_use]
    pub const fn reached(&self) -> Option<u64> {
        match self {
            Self::Output { seq, .. } | Self::Exited { seq, .. } | Self::Closed { seq } => Some(*seq),
            Self::Lagged { to, .. } => Some(*to),
            Self::Failed { .. } => None,
        }
    }
}

/// Where a subscription begins: after the last position its owner has already seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutputCursor(u64);

impl OutputCursor {
    /// Everything, from the first event on.
    #[must_use]
    pub const fn start() -> Self {
        Self(0)
    }

    /// What follows position `seq`.
    #[must_use]
    pub const fn after(seq: u64) -> Self {
        Self(seq)
    }

    /// The last position already seen, 0 for none.
    #[must_use]
    pub const fn seen(self) -> u64 {
        self.0
    }
}

/// One retained piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputChunk {
    /// Position in the session.
    pub seq: u64,
    /// Where it was written.
    pub stream: OutputStream,
    /// What was written.
    pub bytes: Bytes,
}

/// The answer to a read: retained output and how far the process has come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReadResult {
    /// Output after the asked position, oldest first. A first chunk with a higher position than asked means eviction.
    pub chunks: Vec<OutputChunk>,
    /// Without a byte limit the position the next event will get. With one, the position after the last chunk returned,
    /// or the former when none was. The next read asks after `next_seq - 1`.
    pub next_seq: u64,
    /// The exit, once seen.
    pub exit: ReadExit,
    /// Whether a terminal event was published.
    pub closed: bool,
    /// Why the session failed, if it did; `closed` is then true as well.
    pub failure: Option<String>,
}

/// What a read says about the exit. Servers that are not ours do not say where in the sequence it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadExit {
    /// Still running.
    #[default]
    NotYet,
    Exited {
        /// Its code, when the peer said it.
        code: Option<i32>,
        /// The signal it died of, when the peer said it.
        signal: Option<i32>,
        /// The position of the exit event, when the peer said it.
        seq: Option<u64>,
    },
}
