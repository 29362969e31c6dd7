//! Who alone writes.
//!
//! Owns: the order of answers and events on the wire, gathering small ones, and what of the output its peer has. May not know: what
//! was asked, what processes are.
//!
//! For a lossless connection the output that was taken from a process stays counted until the peer has it: until its mark came back,
//! where the transport has marks, else until it was written. So what a cut connection swallowed is still retained.
//!
//! Invariants: (1) answers go before events; (2) the events of a process leave in the order of their positions; (3) processes take
//! turns, one piece each; (4) nothing stays unwritten while there is nothing else to do.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::super::ProcessEvent;
use super::super::session::ProcessSession;
use super::super::transport::marks::Marks;
use super::super::wire;
use super::Delivery;
use super::outbox::{Out, Push};

/// Lines are gathered up to so many bytes before they are written: one full output chunk as it looks on the wire.
const GATHERED: usize = 96 * 1024;

/// Small events of one process before it is another one's turn.
const TURN_EVENTS: usize = 32;

/// Bytes of output between two marks: an eighth of what may be ahead of a reader, so that it is never waited for in vain.
const MARK_BYTES: usize = 64 * 1024;

/// How long the first mark may take before it is taken for a peer that sends none back.
const MARK_PATIENCE: Duration = Duration::from_secs(2);

type Waiting = Pin<Box<dyn Future<Output = Push> + Send>>;

pub(super) struct Writer<W> {
    writer: W,
    /// Bytes of answers in the queue.
    queued: Arc<AtomicUsize>,
    delivery: Delivery,
    /// Gathered lines.
    text: Vec<u8>,
    /// Processes that may have something to say.
    ready: VecDeque<Push>,
    /// Processes that have nothing to say now.
    waiting: FuturesUnordered<Waiting>,
    receipts: Receipts,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    pub(super) fn new(writer: W, queued: Arc<AtomicUsize>, delivery: Delivery, marks: Option<Arc<Marks>>) -> Self {
        Self {
            writer,
            queued,
            delivery,
            text: Vec::new(),
            ready: VecDeque::new(),
            waiting: FuturesUnordered::new(),
            receipts: Receipts::new(marks),
        }
    }

    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Out>) {
        if let Err(error) = self.write_all(&mut queue).await {
            tracing::debug!(%error, "the peer of an exec connection does not read any more");
        }
    }

    async fn write_all(&mut self, queue: &mut mpsc::Receiver<Out>) -> std::io::Result<()> {
        loop {
            // What can be said at once.
            match queue.try_recv() {
                Ok(Out::Finish) => break,
                Ok(out) => {
                    self.take(out).await?;
                    continue;
                }
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    return self.flush().await;
                }
                Err(mpsc::error::TryRecvError::Empty) => {}
            }
            while let Some(Some(push)) = self.waiting.next().now_or_never() {
                self.ready.push_back(push);
            }
            self.receipts.collect();
            if let Some(push) = self.ready.pop_front() {
                self.turn(push).await?;
                continue;
            }
            self.flush().await?;
            tokio::select! {
                biased;
                out = queue.recv() => match out {
                    Some(Out::Finish) => break,
                    Some(out) => self.take(out).await?,
                    None => return Ok(()),
                },
                Some(push) = self.waiting.next(), if !self.waiting.is_empty() => self.ready.push_back(push),
                () = self.receipts.changed() => {}
            }
        }
        while let Some(Some(push)) = self.waiting.next().now_or_never() {
            self.ready.push_back(push);
        }
        while let Some(mut push) = self.ready.pop_front() {
            while let Some(event) = push.stream.try_next() {
                wire::append_event(&mut self.text, &push.process_id, push.output, &event);
                self.write_when_full().await?;
            }
        }
        self.flush().await?;
        self.writer.shutdown().await
    }

    async fn take(&mut self, out: Out) -> std::io::Result<()> {
        match out {
            Out::Line(line) => {
                self.queued.fetch_sub(line.len(), Ordering::Relaxed);
                if line.len() < GATHERED {
                    self.text.extend_from_slice(&line);
                    self.write_when_full().await
                } else {
                    self.write().await?;
                    self.writer.write_all(&line).await
                }
            }
            Out::Push(push) => {
                self.ready.push_back(push);
                Ok(())
            }
            Out::Finish => Ok(()),
        }
    }

    /// One process says what it has to say, up to a piece.
    async fn turn(&mut self, mut push: Push) -> std::io::Result<()> {
        for _ in 0..TURN_EVENTS {
            let Some(event) = push.stream.try_next() else {
                if !push.stream.has_ended() {
                    self.waiting.push(Box::pin(async move {
                        push.stream.changed().await;
                        push
                    }));
                }
                return Ok(());
            };
            wire::append_event(&mut self.text, &push.process_id, push.output, &event);
            if self.delivery == Delivery::Lossless
                && let ProcessEvent::Output { seq, bytes, .. } = &event
            {
                self.receipts.taken(push.stream.session(), *seq, bytes.len());
            }
            if self.text.len() >= GATHERED {
                break;
            }
        }
        self.ready.push_back(push);
        self.write_when_full().await
    }

    async fn write_when_full(&mut self) -> std::io::Result<()> {
        if self.text.len() >= GATHERED { self.write().await } else { Ok(()) }
    }

    async fn write(&mut self) -> std::io::Result<()> {
        if !self.text.is_empty() {
            self.writer.write_all(&self.text).await?;
            self.text.clear();
            self.receipts.written();
        }
        Ok(())
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        self.write().await?;
        self.receipts.flushing();
        self.writer.flush().await
    }
}

/// What was taken from processes and is not known to be the peer's.
struct Receipts {
    marks: Option<(Arc<Marks>, watch::Receiver<u64>)>,
    /// Since the last mark, in the order in which it was taken.
    taken: Vec<Taken>,
    taken_bytes: usize,
    /// Behind each mark that did not come back: when it was asked for, and what was taken before it.
    open: VecDeque<(u64, Instant, Vec<Taken>)>,
    last: u64,
    /// Whether the peer has ever sent a mark back.
    trusted: bool,
}

struct Taken {
    session: ProcessSession,
    seq: u64,
    chunks: usize,
    bytes: usize,
}

impl Receipts {
    fn new(marks: Option<Arc<Marks>>) -> Self {
        let marks = marks.map(|marks| {
            let read = marks.read();
            (marks, read)
        });
        Self { marks, taken: Vec::new(), taken_bytes: 0, open: VecDeque::new(), last: 0, trusted: false }
    }

    fn taken(&mut self, session: &ProcessSession, seq: u64, bytes: usize) {
        self.taken_bytes += bytes;
        match self.taken.last_mut() {
            Some(last) if last.session.is(session) => {
                last.seq = seq;
                last.chunks += 1;
                last.bytes += bytes;
            }
            _ => self.taken.push(Taken { session: session.clone(), seq, chunks: 1, bytes }),
        }
    }

    /// Everything that was taken is written.
    fn written(&mut self) {
        if self.marks.is_none() {
            release(std::mem::take(&mut self.taken));
        } else if self.taken_bytes >= MARK_BYTES {
            self.mark();
        }
    }

    /// Everything that was taken is written and about to be flushed.
    fn flushing(&mut self) {
        if !self.taken.is_empty() {
            self.mark();
        }
    }

    fn mark(&mut self) {
        let Some((marks, _)) = &self.marks else { return release(std::mem::take(&mut self.taken)) };
        self.last += 1;
        marks.ask(self.last);
        self.taken_bytes = 0;
        self.open.push_back((self.last, Instant::now(), std::mem::take(&mut self.taken)));
    }

    /// Lets go of what the peer has.
    fn collect(&mut self) {
        let Some((_, read)) = &mut self.marks else { return };
        let read = *read.borrow_and_update();
        self.trusted |= read > 0;
        while let Some((mark, at, _)) = self.open.front() {
            let lapsed = !self.trusted && at.elapsed() >= MARK_PATIENCE;
            if *mark > read && !lapsed {
                return;
            }
            if lapsed {
                // It sends none back: what is written counts as read, as it would without marks.
                self.marks = None;
                for (_, _, taken) in self.open.drain(..) {
                    release(taken);
                }
                return release(std::mem::take(&mut self.taken));
            }
            if let Some((_, _, taken)) = self.open.pop_front() {
                release(taken);
            }
        }
    }

    /// Waits until [`Receipts::collect`] has something to do.
    async fn changed(&mut self) {
        let first = self.open.front().map(|(_, at, _)| *at + MARK_PATIENCE);
        let Some((_, read)) = &mut self.marks else { return std::future::pending().await };
        match first {
            Some(lapses) if !self.trusted => {
                let _ = tokio::time::timeout_at(lapses, read.changed()).await;
            }
            // The sender lives with the connection; without it nothing comes back any more.
            _ => {
                if read.changed().await.is_err() {
                    std::future::pending().await
                }
            }
        }
    }
}

fn release(taken: Vec<Taken>) {
    for Taken { session, seq, chunks, bytes } in taken {
        session.release(seq, chunks, bytes);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::super::OutputStream;
    use super::*;

    fn room(session: &ProcessSession) -> bool {
        session.room().now_or_never().is_some()
    }

    /// A session whose reader is as far behind as it may be.
    fn full() -> ProcessSession {
        let session = ProcessSession::new();
        session.attach(0);
        while room(&session) {
            session.publish_output(OutputStream::Stdout, Bytes::from(vec![0; 4096])).expect("it takes it");
        }
        session
    }

    #[test]
    fn without_marks_what_is_written_is_the_peers() {
        let session = full();
        let mut receipts = Receipts::new(None);
        receipts.taken(&session, 1, 4096);
        assert!(!room(&session));
        receipts.written();
        assert!(room(&session));
    }

    #[tokio::test]
    async fn with_marks_what_came_back_is_the_peers() {
        let session = full();
        let marks = Arc::new(Marks::default());
        let mut receipts = Receipts::new(Some(Arc::clone(&marks)));
        receipts.taken(&session, 1, 4096);
        receipts.written();
        receipts.flushing();
        receipts.collect();
        assert!(!room(&session), "it is only written");
        receipts.taken(&session, 2, 4096);
        receipts.flushing();
        marks.come_back(1);
        receipts.changed().await;
        receipts.collect();
        assert!(room(&session));
        assert_eq!(receipts.open.len(), 1, "the second is not back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_sends_no_mark_back_is_served_as_one_without_marks() {
        let session = full();
        let mut receipts = Receipts::new(Some(Arc::new(Marks::default())));
        receipts.taken(&session, 1, 4096);
        receipts.flushing();
        receipts.changed().await;
        receipts.collect();
        assert!(room(&session) && receipts.marks.is_none());
    }
}
