//! The client's bytes: lines in, answers out.
//!
//! Owns: what is read and becomes of it, what is written and when it counts as written, how either end of the connection
//! is noticed. May not know: what a line means, when the loop reads.
//!
//! Invariants: (1) `whole` moves only past whole lines, so that a panic in a line leaves none half written; (2) that a job's
//! end was shown is told only when nothing written is held back any more.

use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use futures_util::future::poll_immediate;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{SessionLoop, SessionStage};
use crate::actors::clock;
use crate::actors::jobs::messages::JobsMsg;
use crate::failpoints::{FaultPoint, Operation};
use crate::protocol::frame::Frame;

/// How long calls may still answer after the client has closed its end. Fast calls do; whoever waits longer is gone.
const LINGER: Duration = Duration::from_millis(500);

/// Room kept for output between turns; more is given back.
const OUTPUT_KEPT: usize = 256 * 1024;

/// What a connection reads from.
pub type ClientInput = Box<dyn AsyncRead + Send + Unpin>;

/// What a connection writes to.
pub type ClientOutput = Box<dyn AsyncWrite + Send + Unpin>;

impl SessionLoop {
    /// Writes what the client takes at once.
    pub(super) async fn write_now(&mut self) {
        while self.unflushed || !self.out.is_empty() {
            match poll_immediate(push(&mut self.sink, &self.out)).await {
                Some(pushed) => self.on_pushed(pushed),
                None => return,
            }
        }
    }

    pub(super) fn on_pushed(&mut self, pushed: std::io::Result<Pushed>) {
        match pushed {
            Ok(Pushed::Flushed) => {
                self.unflushed = false;
                for job in self.shown.drain(..) {
                    // Told only now, so that an answer which reached nobody is still announced as unread.
                    let _ = self.jobs.cast(JobsMsg::Shown(job));
                }
            }
            Ok(Pushed::Written(count)) if count > 0 => {
                self.unflushed = true;
                self.out.advance(count);
                self.whole = self.out.len();
                if self.out.is_empty() {
                    if self.out.capacity() > OUTPUT_KEPT {
                        self.out = BytesMut::new();
                    } else {
                        self.out.clear();
                    }
                    if self.owes_change {
                        self.say_change();
                    }
                }
            }
            Ok(Pushed::Written(_)) => self.hung_up(),
            Err(error) => {
                tracing::debug!(%error, "the client reads nothing more");
                self.hung_up();
            }
        }
    }

    /// The client reads nothing more: there is nobody to answer.
    pub(super) fn hung_up(&mut self) {
        self.out.clear();
        self.whole = 0;
        self.unflushed = false;
        self.shown.clear();
        self.close();
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
        self.take_lines();
        if !more {
            // The last line counts even without a newline.
            if let Some(frame) = self.reader.finish() {
                self.take(frame, clock::now());
            }
            if self.stage == SessionStage::Open {
                self.stage = SessionStage::Lingering(tokio::time::Instant::now() + LINGER);
            }
        }
        self.perform(None);
    }

    pub(super) fn take_lines(&mut self) {
        let now = clock::now();
        while let Some(frame) = self.reader.next_frame() {
            self.take(frame, now);
        }
        self.rollout.handled(now);
    }

    fn take(&mut self, frame: Frame, now: Instant) {
        let frame = self.reading.insert(frame);
        self.core.on_frame(frame, now, &mut self.out, &mut self.effects);
        self.reading = None;
        self.whole = self.out.len();
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
