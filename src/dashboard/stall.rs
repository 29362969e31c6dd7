//! A connection whose peer has to read.
//!
//! Owns: how long a write may wait. May not know: what is written.
//!
//! Invariant: what a peer does not take within the limit ends its connection, and with it everything that was kept for it.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How long a peer may take nothing while something is there for it. A page takes what it is sent in milliseconds; one whose
/// machine sleeps comes again.
pub const STALL: Duration = Duration::from_secs(10);

/// The connection.
#[derive(Debug)]
pub struct Stalling<S> {
    inner: S,
    limit: Duration,
    since: Option<Pin<Box<Sleep>>>,
}

impl<S> Stalling<S> {
    /// One with this limit.
    pub const fn new(inner: S, limit: Duration) -> Self {
        Self { inner, limit, since: None }
    }
}

impl<S: Unpin> Stalling<S> {
    /// Passes on what a write came to; fails once it has waited too long.
    fn judged<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.since = None;
            return written;
        }
        let limit = self.limit;
        let since = self.since.get_or_insert_with(|| Box::pin(sleep(limit)));
        since.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.judged(written, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(context);
        self.judged(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(context);
        self.judged(shut, context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_is_dropped_after_the_limit_and_who_reads_slowly_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut ours = Stalling::new(ours, STALL);
        let reads = tokio::spawn(async move {
            let mut part = [0; 8];
            for _ in 0..8 {
                sleep(STALL - Duration::from_millis(1)).await;
                theirs.read_exact(&mut part).await.expect("read");
            }
            theirs
        });
        ours.write_all(&[7; 64]).await.expect("it is taken, in pieces");
        let _theirs = reads.await.expect("no panic");
        let began = tokio::time::Instant::now();
        let error = ours.write_all(&[7; 64]).await.expect_err("nobody reads");
        assert_eq!((error.kind(), began.elapsed().as_secs()), (io::ErrorKind::TimedOut, STALL.as_secs()));
    }
}
