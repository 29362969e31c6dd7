//! One JSON text per line, with a bound on the line.
//!
//! Owns: splitting bytes into lines. May not know: what is in them.

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest line we accept, in bytes; the protocol's own limit for one frame. A longer one ends the connection, because
/// the rest of it cannot be told from the next message.
pub(crate) const LINE_BYTES: usize = 16 * 1024 * 1024;

/// Space asked for at each read; one full pipe.
const READ_BYTES: usize = 64 * 1024;

/// Why there are no more lines.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// A line went over the bound.
    #[error("read a line of more than {0} bytes")]
    TooLong(usize),
    /// The reader failed.
    #[error("read from the peer")]
    Read(#[source] std::io::Error),
}

/// Splits what a reader gives into lines. Blank lines are skipped; a last line without its end is not a message.
#[derive(Debug)]
pub(crate) struct LineReader<R> {
    reader: R,
    /// Bytes read and not yet handed out.
    buffer: BytesMut,
    /// How much of `buffer` is known to hold no line end.
    searched: usize,
    longest: usize,
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    /// Lines of `reader`, after bytes that were read from it before.
    pub(crate) fn after(unread: &[u8], reader: R) -> Self {
        Self { reader, buffer: BytesMut::from(unread), searched: 0, longest: LINE_BYTES }
    }

    /// The same with another bound than [`LINE_BYTES`].
    pub(crate) fn up_to(self, longest: usize) -> Self {
        Self { longest, ..self }
    }

    /// The next line without its end, `None` at the end of input.
    ///
    /// # Cancel safety
    /// What was read stays in `self`; nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, LineError> {
        loop {
            while let Some(found) = memchr::memchr(b'\n', &self.buffer[self.searched..]) {
                let mut line = self.buffer.split_to(self.searched + found).freeze();
                self.buffer.advance(1);
                self.searched = 0;
                if line.last() == Some(&b'\r') {
                    line.truncate(line.len() - 1);
                }
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(line));
                }
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > self.longest {
                return Err(LineError::TooLong(self.longest));
            }
            self.buffer.reserve(READ_BYTES);
            if self.reader.read_buf(&mut self.buffer).await.map_err(LineError::Read)? == 0 {
                return Ok(None);
            }
        }
    }

    /// The next line, where a whole one was read already.
    pub(crate) fn ready(&mut self) -> Option<Bytes> {
        memchr::memchr(b'\n', &self.buffer)?;
        // A whole line is there, so nothing is waited for.
        match self.next().now_or_never() {
            Some(Ok(line)) => line,
            _ => None,
        }
    }

    /// What was read and not handed out.
    pub(crate) fn into_unread(self) -> Vec<u8> {
        self.buffer.to_vec()
    }
}
