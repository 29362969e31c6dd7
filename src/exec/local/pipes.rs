//! The three pipes of a process.
//!
//! Owns: carrying output to the session and the tap, and input to the process. May not know: signals, and when the process
//! ends; it is told until when output counts.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::super::session::ProcessSession;
use super::super::{CHUNK_BYTES, OutputStream};
use super::STDIN_BYTES;

/// Below this much free space a new buffer is taken, so that small chunks do not each pin a large one.
const MIN_READ: usize = 8 * 1024;

/// What may still be read from a pipe after [`PIPE_BOUND`](super::PIPE_BOUND): the most a Linux pipe holds by default
/// limits.
const LATE_BYTES: usize = 1024 * 1024;

/// Carries one pipe to the session and the tap.
pub(in crate::exec) struct Pump {
    stream: OutputStream,
    session: ProcessSession,
    /// `None` once nobody reads the tap.
    tap: Option<mpsc::Sender<(OutputStream, Bytes)>>,
    /// Set when the group is empty: from then on nobody legitimate writes.
    until: watch::Receiver<Option<Instant>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::exec) enum PumpEnd {
    Closed,
    Abandoned,
}

impl Pump {
    pub(in crate::exec) fn new(
        stream: OutputStream,
        session: &ProcessSession,
        tap: &mpsc::Sender<(OutputStream, Bytes)>,
        until: &watch::Sender<Option<Instant>>,
    ) -> Self {
        Self { stream, session: session.clone(), tap: Some(tap.clone()), until: until.subscribe() }
    }

    pub(in crate::exec) async fn run(mut self, mut pipe: impl AsyncRead + Unpin) -> PumpEnd {
        let mut buffer = BytesMut::new();
        let mut late = 0;
        loop {
            if buffer.capacity() < MIN_READ {
                buffer = BytesMut::with_capacity(CHUNK_BYTES);
            }
            // What is in the pipe goes first, so that a slow tap never makes us abandon output of the group itself.
            let read = tokio::select! {
                biased;
                read = pipe.read_buf(&mut buffer) => read,
                () = passed(&mut self.until) => return PumpEnd::Abandoned,
            };
            match read {
                Ok(0) => return PumpEnd::Closed,
                Ok(size) => {
                    if (*self.until.borrow()).is_some_and(|until| until <= Instant::now()) {
                        late += size;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::warn!(%error, "a pipe of a process could not be read");
                    return PumpEnd::Closed;
                }
            }
            let chunk = buffer.split().freeze();
            // A session that has ended takes nothing more; the tap still does.
            let _ = self.session.publish_output(self.stream, chunk.clone());
            if let Some(tap) = &self.tap
                && tap.send((self.stream, chunk)).await.is_err()
            {
                self.tap = None;
            }
            if late > LATE_BYTES {
                return PumpEnd::Abandoned;
            }
            self.session.room().await;
        }
    }
}

/// Returns when the set time has passed.
async fn passed(until: &mut watch::Receiver<Option<Instant>>) {
    loop {
        let set = *until.borrow_and_update();
        match set {
            Some(until) => return tokio::time::sleep_until(until).await,
            None => {
                if until.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Writes everything, then closes. A process that does not read it all has simply decided so.
pub(in crate::exec) async fn feed_bytes(mut pipe: impl AsyncWrite + Unpin, bytes: Bytes) {
    if let Err(error) = pipe.write_all(&bytes).await {
        tracing::debug!(%error, "a process did not read all of its input");
    }
}

/// Writes what is queued. At the end of the queue writes `last_words`, and closes.
pub(in crate::exec) async fn feed_queue(
    mut pipe: impl AsyncWrite + Unpin,
    mut queue: mpsc::UnboundedReceiver<Bytes>,
    room: Arc<Semaphore>,
    last_words: &'static [u8],
) {
    /// Whoever waits for room learns that there will be none, also when this task is aborted.
    struct CloseOnDrop(Arc<Semaphore>);
    impl Drop for CloseOnDrop {
        fn drop(&mut self) {
            self.0.close();
        }
    }
    let room = CloseOnDrop(room);
    while let Some(bytes) = queue.recv().await {
        if let Err(error) = pipe.write_all(&bytes).await {
            tracing::debug!(%error, "a process closed its input");
            return;
        }
        room.0.add_permits(bytes.len().min(STDIN_BYTES));
    }
    let _ = pipe.write_all(last_words).await;
}
