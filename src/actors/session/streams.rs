//! The client's two streams: how output is written, how either end of the connection is noticed.
//!
//! Owns: the streams. May not know: what a line means, what is to be written.
//!
//! A session that nobody speaks to keeps no room for the next line: the first bytes of one come by the stack.

use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Poll, ready};

use futures_util::future::poll_immediate;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::SessionLoop;
use super::turn::TurnEvent;
use crate::failpoints::{FaultPoint, Operation};
use crate::protocol::frame::FrameReader;

/// Bytes that are read by the stack; what opens a session is shorter, and of a longer line the rest follows at once.
const FIRST: usize = 4096;

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
        self.look_around();
        self.decide(if more { TurnEvent::Read } else { TurnEvent::ReadAll });
    }

    /// Goes on with lines that were read before.
    pub(super) fn read_on(&mut self) {
        self.look_around();
        self.decide(TurnEvent::Read);
    }

    /// Whether others are served, who wait for this session's turn to end.
    fn look_around(&mut self) {
        self.turn.incoming.alone = self.neighbours.gauges.connections.load(Ordering::Relaxed) <= 1;
    }
}

/// Reads what is there.
///
/// # Cancel safety
///
/// Safe: what was read is in the reader.
pub(super) async fn read(input: &mut ClientInput, reader: &mut FrameReader) -> std::io::Result<usize> {
    if !reader.is_spare() {
        return input.read_buf(reader.space()).await;
    }
    std::future::poll_fn(|cx| {
        let mut first = [const { MaybeUninit::uninit() }; FIRST];
        let mut first = ReadBuf::uninit(&mut first);
        ready!(Pin::new(&mut *input).poll_read(cx, &mut first))?;
        reader.take_spare(first.filled());
        Poll::Ready(Ok(first.filled().len()))
    })
    .await
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
