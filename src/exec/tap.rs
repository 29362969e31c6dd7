//! Everything a process writes, for the one who parses it.
//!
//! Owns: the end of it that is read, and how whoever fills it learns that it is full. May not know: where output comes from.
//!
//! Invariants: (1) nothing is lost silently: what a tap did not get is counted; (2) a tap that is not read stops whoever fills
//! it, one that was dropped does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use super::OutputStream;

/// Everything the process writes, for the one who parses it. Lossless: when it is full, the process waits.
#[derive(Debug)]
pub struct OutputTap {
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// Who fills it waits for room.
    Bounded(mpsc::Receiver<(OutputStream, Bytes)>),
    /// Who fills it looks at the level.
    Levelled { receiver: mpsc::UnboundedReceiver<(OutputStream, Bytes)>, level: Arc<TapLevel> },
}

impl OutputTap {
    pub(super) const fn bounded(receiver: mpsc::Receiver<(OutputStream, Bytes)>) -> Self {
        Self { source: Source::Bounded(receiver) }
    }

    /// A tap that never refuses output; whoever fills it must not read on while it is [`TapFeed::is_full`].
    pub(super) fn levelled(most: usize, room: Arc<Notify>) -> (TapFeed, Self) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let level = Arc::new(TapLevel {
            bytes: AtomicUsize::new(0),
            most,
            lost: AtomicU64::new(0),
            dropped: AtomicBool::new(false),
            room,
        });
        (TapFeed { sender, level: Arc::clone(&level) }, Self { source: Source::Levelled { receiver, level } })
    }

    /// The next output of either stream; `None` when both pipes are closed or abandoned and everything was read.
    ///
    /// # Cancel safety
    /// Output is taken only by the poll that returns it.
    pub async fn next(&mut self) -> Option<(OutputStream, Bytes)> {
        match &mut self.source {
            Source::Bounded(receiver) => receiver.recv().await,
            Source::Levelled { receiver, level } => {
                let output = receiver.recv().await?;
                level.taken(output.1.len());
                Some(output)
            }
        }
    }

    /// The next output if there is some now.
    pub fn try_next(&mut self) -> Option<(OutputStream, Bytes)> {
        match &mut self.source {
            Source::Bounded(receiver) => receiver.try_recv().ok(),
            Source::Levelled { receiver, level } => {
                let output = receiver.try_recv().ok()?;
                level.taken(output.1.len());
                Some(output)
            }
        }
    }

    /// How many pieces of output this tap did not get: the session's `Lagged` that could not be helped. 0 for a process of
    /// this machine.
    #[must_use]
    pub fn lost(&self) -> u64 {
        match &self.source {
            Source::Bounded(_) => 0,
            Source::Levelled { level, .. } => level.lost.load(Ordering::Acquire),
        }
    }
}

impl Drop for OutputTap {
    fn drop(&mut self) {
        if let Source::Levelled { level, .. } = &self.source {
            level.dropped.store(true, Ordering::Release);
            level.room.notify_one();
        }
    }
}

/// How full a tap is.
#[derive(Debug)]
struct TapLevel {
    bytes: AtomicUsize,
    most: usize,
    lost: AtomicU64,
    dropped: AtomicBool,
    room: Arc<Notify>,
}

impl TapLevel {
    fn taken(&self, bytes: usize) {
        let before = self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        if before >= self.most && before - bytes < self.most {
            self.room.notify_one();
        }
    }
}

/// The end of a tap that is filled. Dropping all of it ends the tap after what was given.
#[derive(Debug, Clone)]
pub(super) struct TapFeed {
    sender: mpsc::UnboundedSender<(OutputStream, Bytes)>,
    level: Arc<TapLevel>,
}

impl TapFeed {
    pub(super) fn give(&self, stream: OutputStream, bytes: Bytes) {
        self.level.bytes.fetch_add(bytes.len(), Ordering::AcqRel);
        // A tap that was dropped takes nothing, and is never full.
        let _ = self.sender.send((stream, bytes));
    }

    /// So many positions will never come.
    pub(super) fn lose(&self, positions: u64) {
        self.level.lost.fetch_add(positions, Ordering::AcqRel);
    }

    pub(super) fn is_full(&self) -> bool {
        self.level.bytes.load(Ordering::Acquire) >= self.level.most && !self.level.dropped.load(Ordering::Acquire)
    }

    /// Whether it holds so much.
    pub(super) fn is_over(&self, bytes: usize) -> bool {
        self.level.bytes.load(Ordering::Acquire) >= bytes
    }

    /// Whether everything given was read, so that more may come from elsewhere.
    pub(super) fn is_empty(&self) -> bool {
        self.level.bytes.load(Ordering::Acquire) == 0
    }

    pub(super) fn is_dropped(&self) -> bool {
        self.level.dropped.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_tap_says_so_until_it_is_read_or_dropped() {
        let room = Arc::new(Notify::new());
        let (feed, mut tap) = OutputTap::levelled(10, Arc::clone(&room));
        for text in ["123456", "7890", "more"] {
            feed.give(OutputStream::Stdout, Bytes::from_static(text.as_bytes()));
        }
        assert!(feed.is_full() && !feed.is_empty());
        assert_eq!(tap.next().await, Some((OutputStream::Stdout, Bytes::from_static(b"123456"))));
        assert!(!feed.is_full());
        room.notified().await;
        feed.give(OutputStream::Stderr, Bytes::from_static(b"0123456789"));
        feed.lose(3);
        assert!(feed.is_full());
        assert_eq!(tap.lost(), 3);
        drop(tap);
        room.notified().await;
        assert!(!feed.is_full() && feed.is_dropped());
    }

    #[tokio::test]
    async fn a_tap_ends_after_what_was_given() {
        let (feed, mut tap) = OutputTap::levelled(10, Arc::default());
        feed.give(OutputStream::Stdout, Bytes::from_static(b"last"));
        drop(feed);
        assert_eq!(tap.next().await, Some((OutputStream::Stdout, Bytes::from_static(b"last"))));
        assert_eq!((tap.next().await, tap.try_next()), (None, None));
    }
}
