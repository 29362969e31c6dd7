//! A runner that was started beside its job's accept, and is held until the job is durable.
//!
//! Owns: how it learns that, which is by its host's first word, and how long it waits. May not know: jobs, the protocol.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::oneshot;

use crate::exec::server::Server;
use crate::jobs::store::StoreHandle;

/// How long its host may take: twice what an accept may. One that lives and says nothing does not want it any more.
const HELD_MOST: Duration = Duration::from_secs(60);

/// A reader that tells of the first bytes it reads.
pub(super) struct Heeding<R> {
    reader: R,
    heard: Option<oneshot::Sender<()>>,
}

/// The reader, and the word of its first bytes.
pub(super) fn heeding<R>(reader: R) -> (Heeding<R>, oneshot::Receiver<()>) {
    let (heard, word) = oneshot::channel();
    (Heeding { reader, heard: Some(heard) }, word)
}

impl<R: AsyncRead + Unpin> AsyncRead for Heeding<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.reader).poll_read(cx, buf);
        if buf.filled().len() > before
            && let Some(heard) = self.heard.take()
        {
            let _ = heard.send(());
        }
        read
    }
}

/// Waits for the host's first word, with the store opened meanwhile; whether it came.
pub(super) async fn wait(word: oneshot::Receiver<()>, server: &mut Server, store: &StoreHandle) -> bool {
    let said = async {
        tokio::select! {
            biased;
            said = word => said.is_ok(),
            _ = server.peer_gone() => false,
        }
    };
    // What cannot be opened now is tried again by whoever asks for something.
    let (said, _) = tokio::join!(tokio::time::timeout(HELD_MOST, said), store.data_version());
    said.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn the_first_bytes_are_told_of_and_none_is_lost() {
        let (mut host, pipe) = tokio::io::duplex(64);
        let (mut reader, mut word) = heeding(pipe);
        let mut read = [0; 16];
        assert!(futures_util::future::poll_immediate(reader.read(&mut read)).await.is_none());
        assert!(word.try_recv().is_err(), "nothing was said");
        host.write_all(b"hello").await.expect("written");
        assert_eq!(reader.read(&mut read).await.expect("read"), 5);
        assert_eq!((&read[..5], word.try_recv()), (&b"hello"[..], Ok(())));
    }

    #[tokio::test]
    async fn the_end_without_a_word_is_none() {
        let (host, pipe) = tokio::io::duplex(64);
        let (mut reader, mut word) = heeding(pipe);
        drop(host);
        assert_eq!(reader.read(&mut [0; 16]).await.expect("read"), 0);
        assert!(word.try_recv().is_err());
    }
}
