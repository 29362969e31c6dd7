//! The client's two streams: how output is written, how either end of the connection is noticed.
//!
//! Owns: the streams. May not know: what a line means, what is to be written.

use futures_util::future::poll_immediate;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::SessionLoop;
use super::turn::TurnEvent;
use crate::failpoints::{FaultPoint, Operation};

/// What a connection reads from.
pub type ClientInput = Box<dyn AsyncRead + Send + Unpin>;

/// What a connection writes to.
pub type ClientOutput = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection's streams.
pub(super) struct Streams {
    pub(super) input: ClientInput,
    pub(super) sink: ClientOutput,
}

impl SessionLoop {
    /// Writes what the client takes at once.
    pub(super) async fn write_now(&mut self) {
        while self.turn.outgoing.is_due() {
            match poll_immediate(push(&mut self.streams.sink, self.turn.outgoing.bytes())).await {
                Some(pushed) => self.on_pushed(pushed),
                None => return,
            }
        }
    }

    pub(super) fn on_pushed(&mut self, pushed: std::io::Result<Pushed>) {
        match pushed {
            Ok(Pushed::Flushed) => self.decide_as_before(TurnEvent::Flushed),
            Ok(Pushed::Written(count)) if count > 0 => self.decide_as_before(TurnEvent::Written(count)),
            Ok(Pushed::Written(_)) => self.decide(TurnEvent::HungUp),
            Err(error) => {
                tracing::debug!(%error, "the client reads nothing more");
                self.decide(TurnEvent::HungUp);
            }
        }
    }

    pub(super) fn on_read(&mut self, read: std::io::Result<usize>) {
        let more = match read {
            Ok(count) => count > 0,
            Err(error) => {
                tracing::debug!(%error, "the input failed");
                false
            }
        };
        if more
            && let Some(met) = self.faults.meet_in_turn(FaultPoint::StdioRead, Operation::None)
            && self.hold_up(met).is_some()
        {
            return self.on_read(Err(std::io::Error::other("a fault point was met")));
        }
        self.decide(if more { TurnEvent::Read } else { TurnEvent::ReadAll });
    }
}

/// What became of output.
pub(super) enum Pushed {
    /// So many bytes were taken.
    Written(usize),
    /// Nothing is held back any more.
    Flushed,
}

/// Writes, or makes sure that nothing written is held back: a sink of an embedding program may buffer.
///
/// # Cancel safety
///
/// Safe: what was not taken is still in `out`.
pub(super) async fn push(sink: &mut ClientOutput, out: &[u8]) -> std::io::Result<Pushed> {
    if out.is_empty() {
        sink.flush().await.map(|()| Pushed::Flushed)
    } else {
        sink.write(out).await.map(Pushed::Written)
    }
}
