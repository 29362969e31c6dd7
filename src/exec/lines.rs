//! One JSON text per line, with a bound on the line.
//!
//! Owns: splitting bytes into lines. May not know: what is in them.
//!
//! Waiting and taking are two things ([`LineReader::wait`], [`LineReader::ready`]): whoever takes many lines at a time takes each when
//! it is about to be dealt with, and what is not taken is still here.

use bytes::{Buf, Bytes, BytesMut};
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

/// What waiting for input gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    /// At least one line, to be taken by [`LineReader::ready`].
    Lines,
    /// There will be no more.
    End,
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

impl<R> LineReader<R> {
    /// Lines of `reader`, after bytes that were read from it before.
    pub(crate) fn after(unread: &[u8], reader: R) -> Self {
        Self { reader, buffer: BytesMut::from(unread), searched: 0, longest: LINE_BYTES }
    }

    /// The same with another bound than [`LINE_BYTES`].
    pub(crate) fn up_to(self, longest: usize) -> Self {
        Self { longest, ..self }
    }

    /// The next line without its end, where a whole one was read already. Reads nothing.
    pub(crate) fn ready(&mut self) -> Option<Bytes> {
        let end = self.first_end()?;
        let mut line = self.buffer.split_to(end).freeze();
        self.buffer.advance(1);
        self.searched = 0;
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        Some(line)
    }

    /// Where the first line ends; blank ones before it are forgotten.
    fn first_end(&mut self) -> Option<usize> {
        loop {
            let Some(found) = memchr::memchr(b'\n', &self.buffer[self.searched..]) else {
                self.searched = self.buffer.len();
                return None;
            };
            self.searched += found;
            if !self.buffer[..self.searched].trim_ascii().is_empty() {
                return Some(self.searched);
            }
            self.buffer.advance(self.searched + 1);
            self.searched = 0;
        }
    }

    /// What was read and not handed out.
    pub(crate) fn into_unread(self) -> Vec<u8> {
        self.buffer.to_vec()
    }
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    /// The next line without its end, `None` at the end of input.
    ///
    /// # Cancel safety
    /// What was read stays in `self`; nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, LineError> {
        Ok(match self.wait().await? {
            Waited::Lines => self.ready(),
            Waited::End => None,
        })
    }

    /// Waits until there is a line to take, or the end of input.
    ///
    /// # Cancel safety
    /// As [`LineReader::next`].
    pub(crate) async fn wait(&mut self) -> Result<Waited, LineError> {
        loop {
            if self.first_end().is_some() {
                return Ok(Waited::Lines);
            }
            if self.buffer.len() > self.longest {
                return Err(LineError::TooLong(self.longest));
            }
            self.buffer.reserve(READ_BYTES);
            if self.reader.read_buf(&mut self.buffer).await.map_err(LineError::Read)? == 0 {
                return Ok(Waited::End);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt as _, DuplexStream};

    use super::*;

    /// What is heard, and its lines.
    const CASES: [(&str, &[&str]); 7] = [
        ("", &[]),
        ("one\ntwo\n", &["one", "two"]),
        ("one\r\n\r\n two \r\n", &["one", " two "]),
        ("\n \n\t\r\n\none\n\n", &["one"]),
        ("one\nno end", &["one"]),
        ("\n\n \n", &[]),
        ("a\nb\nc\nd\ne\nf\n", &["a", "b", "c", "d", "e", "f"]),
    ];

    /// A reader that is given so many bytes at a time.
    fn in_pieces(text: &'static str, piece: usize) -> LineReader<DuplexStream> {
        let (ours, mut theirs) = tokio::io::duplex(piece);
        // It ends with the reader, or when everything is read.
        tokio::spawn(async move { theirs.write_all(text.as_bytes()).await });
        LineReader::after(&[], ours)
    }

    #[tokio::test]
    async fn lines_are_the_same_however_they_come_and_however_they_are_taken() {
        for (text, lines) in CASES {
            for piece in 1..=text.len().max(1) {
                for at_once in 0..4 {
                    let mut reader = in_pieces(text, piece);
                    let mut taken: Vec<String> = Vec::new();
                    let mut keep = |line: Bytes| taken.push(String::from_utf8(line.to_vec()).expect("text"));
                    // One by one, or so many after each wait.
                    if at_once == 0 {
                        while let Some(line) = reader.next().await.expect("it reads") {
                            keep(line);
                        }
                    } else {
                        while reader.wait().await.expect("it reads") == Waited::Lines {
                            let before = reader.buffer.len();
                            assert_eq!(reader.wait().await.expect("it reads"), Waited::Lines);
                            assert_eq!(reader.buffer.len(), before, "a second wait changes nothing");
                            (0..at_once).map_while(|_| reader.ready()).for_each(&mut keep);
                        }
                    }
                    assert_eq!(taken, lines, "{text:?} in pieces of {piece}, {at_once} at once");
                }
            }
        }
    }

    #[tokio::test]
    async fn what_was_waited_for_and_not_taken_is_handed_on() {
        let mut reader = LineReader::after(b"\none\ntwo\nthr", tokio::io::empty());
        assert_eq!(reader.wait().await.expect("it reads"), Waited::Lines);
        assert_eq!(reader.ready().expect("a line"), "one");
        assert_eq!(reader.wait().await.expect("it reads"), Waited::Lines);
        assert_eq!(reader.into_unread(), b"two\nthr");
    }

    #[tokio::test]
    async fn a_line_over_the_bound_is_an_error_after_the_lines_before_it() {
        let mut reader = LineReader::after(b"one\nmuch too long", tokio::io::empty()).up_to(8);
        assert_eq!(reader.next().await.expect("it reads").expect("a line"), "one");
        assert!(reader.ready().is_none());
        for _ in 0..2 {
            assert!(matches!(reader.wait().await, Err(LineError::TooLong(8))), "and stays one");
        }
    }
}
