//! The client's two streams: how output is written, how either end of the connection is noticed.
//!
//! Owns: the streams. May not know: what a line means, what is to be written.
//!
//! A session that nobody speaks to keeps no room for the next line: the first bytes of one come by the stack.

use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

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
        std::future::poll_fn(|cx| {
            while self.turn.outgoing.is_due() {
                match poll_push(&mut self.streams.sink, self.turn.outgoing.bytes(), cx) {
                    Poll::Ready(pushed) => self.on_pushed(pushed),
                    Poll::Pending => break,
                }
            }
            Poll::Ready(())
        })
        .await;
    }

    pub(super) fn on_pushed(&mut self, pushed: std::io::Result<Pushed>) {
        match pushed {
            Ok(Pushed::Through) => self.decide_as_before(TurnEvent::WrittenThrough),
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
        self.handle(if more { TurnEvent::Read } else { TurnEvent::ReadAll });
    }

    /// Goes on with lines that were read before.
    pub(super) fn read_on(&mut self) {
        self.look_around();
        self.handle(TurnEvent::Read);
    }

    /// Decides about lines that were read, and says that they were handled.
    fn handle(&mut self, read: TurnEvent) {
        self.decide(read);
        self.neighbours.rollout.handled(self.now);
    }

    /// Whether others are served, who wait for this session's turn to end.
    fn look_around(&mut self) {
        self.turn.incoming.alone = self.neighbours.gauges.connections.load(Ordering::Relaxed) <= 1;
    }
}

/// Reads what is there into the reader.
pub(super) fn poll_read(
    input: &mut ClientInput,
    reader: &mut FrameReader,
    cx: &mut Context<'_>,
) -> Poll<std::io::Result<usize>> {
    if !reader.is_spare() {
        // The future holds nothing of its own between two polls.
        return std::pin::pin!(input.read_buf(reader.space())).poll(cx);
    }
    poll_first(input, reader, cx)
}

/// Reads by the stack.
#[cold]
fn poll_first(input: &mut ClientInput, reader: &mut FrameReader, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
    let mut first = [const { MaybeUninit::uninit() }; FIRST];
    let mut first = ReadBuf::uninit(&mut first);
    ready!(Pin::new(input).poll_read(cx, &mut first))?;
    reader.take_spare(first.filled());
    Poll::Ready(Ok(first.filled().len()))
}

/// What became of output.
pub(super) enum Pushed {
    /// So many bytes were taken.
    Written(usize),
    /// All bytes were taken, and nothing is held back.
    Through,
    /// Nothing is held back any more.
    Flushed,
}

/// Writes, or makes sure that nothing written is held back: a sink of an embedding program may buffer.
pub(super) fn poll_push(sink: &mut ClientOutput, out: &[u8], cx: &mut Context<'_>) -> Poll<std::io::Result<Pushed>> {
    let mut sink = Pin::new(sink);
    if out.is_empty() {
        return sink.poll_flush(cx).map_ok(|()| Pushed::Flushed);
    }
    let count = ready!(sink.as_mut().poll_write(cx, out))?;
    if count < out.len() {
        return Poll::Ready(Ok(Pushed::Written(count)));
    }
    // Nearly every sink holds nothing back. What one does is flushed by the next push: these bytes are taken, which must be known
    // before anything is waited for.
    Poll::Ready(match sink.poll_flush(cx) {
        Poll::Ready(flushed) => flushed.map(|()| Pushed::Through),
        Poll::Pending => Ok(Pushed::Written(count)),
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    type Flushes = fn() -> Poll<io::Result<()>>;

    /// Takes so many bytes at once, and flushes so.
    struct Sink {
        takes: Option<usize>,
        flushes: Flushes,
    }

    impl AsyncWrite for Sink {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.takes.map_or(Poll::Pending, |takes| Poll::Ready(Ok(takes.min(bytes.len()))))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            (self.flushes)()
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.poll_flush(cx)
        }
    }

    #[test]
    fn bytes_that_were_taken_are_known_to_be_whatever_becomes_of_the_flush() {
        let done = || Poll::Ready(Ok(()));
        let later = || Poll::Pending;
        let failed = || Poll::Ready(Err(io::Error::other("gone")));
        let rows: [(Option<usize>, &[u8], Flushes, &str); 9] = [
            (Some(9), b"line", done, "through"),
            (Some(9), b"line", later, "written 4"),
            (Some(9), b"line", failed, "error"),
            (Some(3), b"line", done, "written 3"),
            (Some(0), b"line", done, "written 0"),
            (None, b"line", done, "pending"),
            (None, b"", done, "flushed"),
            (None, b"", later, "pending"),
            (None, b"", failed, "error"),
        ];
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for (takes, out, flushes, want) in rows {
            let mut sink: ClientOutput = Box::new(Sink { takes, flushes });
            let became = match poll_push(&mut sink, out, &mut cx) {
                Poll::Pending => "pending".to_owned(),
                Poll::Ready(Err(_)) => "error".to_owned(),
                Poll::Ready(Ok(Pushed::Through)) => "through".to_owned(),
                Poll::Ready(Ok(Pushed::Flushed)) => "flushed".to_owned(),
                Poll::Ready(Ok(Pushed::Written(count))) => format!("written {count}"),
            };
            assert_eq!(became, want, "{takes:?} {out:?}");
        }
    }
}
