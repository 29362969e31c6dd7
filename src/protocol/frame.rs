//! Splits a byte stream into lines.
//!
//! Owns: the partial line. Knows nothing of JSON.
//!
//! Invariants: (1) input is kept in `self`, so a dropped read loses nothing; (2) a line longer than the limit is
//! skipped while it arrives and costs only its head; (3) the last line counts even without a newline.

use bytes::{Buf, Bytes, BytesMut};

/// Bytes asked for at a time when much is waiting. One pipe's worth on Linux.
const CHUNK: usize = 64 * 1024;

/// Bytes asked for at first: most clients send a short line at a time, and a buffer's memory stays with each connection.
const FIRST_CHUNK: usize = 8 * 1024;

/// Reads of a client that was silent until room is kept for what it sends: as many as open a session. Each costs an allocation
/// of its own size.
const SPARE: u8 = 4;

/// What is kept of a line that is too long: enough to find its id, which clients write near the front.
const HEAD: usize = 4 * 1024;

/// Longest line a client may send. Several clients close the connection on lines over 10 MiB, and our own are far shorter:
/// answers are cut to a budget.
pub const LINE_LIMIT: usize = 8 * 1024 * 1024;

/// One line of input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A whole line without its line ending; never blank.
    Line(Bytes),
    /// A line over the limit; its beginning, up to 4 KiB.
    TooLong {
        /// The first bytes of the line.
        head: Bytes,
    },
}

impl Frame {
    /// Bytes of the line that are there.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Line(line) => line.len(),
            Self::TooLong { head } => head.len(),
        }
    }

    /// Never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Splits what is read into [`Frame`]s.
#[derive(Debug)]
pub struct FrameReader {
    buffer: BytesMut,
    /// Bytes of `buffer` known to hold no newline.
    scanned: usize,
    /// Bytes asked for at a time; doubled, up to [`CHUNK`], whenever a read has filled all the room there was.
    chunk: usize,
    limit: usize,
    /// Reads that keep no room for the next one, since the client was last silent.
    spare: u8,
    /// The head of the over-long line being skipped.
    skipping: Option<Bytes>,
}

impl FrameReader {
    /// A reader that refuses lines of more than `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        // The first look finds no room, and doubles the chunk.
        Self { buffer: BytesMut::new(), scanned: 0, chunk: FIRST_CHUNK / 2, limit, spare: SPARE, skipping: None }
    }

    /// A reader that goes on where another one stood: with what it had read of a line, or with the head of the line it was
    /// skipping.
    #[must_use]
    pub fn resumed(limit: usize, unread: &[u8], skipping: Option<Bytes>) -> Self {
        Self { buffer: BytesMut::from(unread), skipping, ..Self::new(limit) }
    }

    /// What was read and belongs to no frame yet, and the head of the line that is being skipped.
    #[must_use]
    pub fn unread(&self) -> (&[u8], Option<&Bytes>) {
        (&self.buffer, self.skipping.as_ref())
    }

    /// Whether no memory is kept for what comes next.
    #[must_use]
    pub fn keeps_nothing(&self) -> bool {
        self.buffer.capacity() == 0
    }

    /// Whether the next bytes are to be read elsewhere and taken by [`FrameReader::take_spare`]: no room is kept for them.
    #[must_use]
    pub fn is_spare(&self) -> bool {
        self.spare > 0 && self.buffer.is_empty()
    }

    /// Appends bytes that were read elsewhere, for which no room was kept.
    pub fn take_spare(&mut self, bytes: &[u8]) {
        self.spare = self.spare.saturating_sub(1);
        self.buffer.extend_from_slice(bytes);
    }

    /// Gives the memory back that is kept for what comes next, unless a part of a line is in it.
    pub fn rest(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
            self.chunk = FIRST_CHUNK / 2;
            self.spare = SPARE;
        }
    }

    /// Where the next bytes go; there is room for half a chunk at least.
    pub fn space(&mut self) -> &mut BytesMut {
        let room = self.buffer.capacity() - self.buffer.len();
        if room == 0 {
            self.chunk = (self.chunk * 2).min(CHUNK);
        }
        if room < self.chunk / 2 {
            // A long line grows in large steps, so that it is not copied once per chunk.
            self.buffer.reserve(self.chunk.max(self.buffer.len()));
        }
        &mut self.buffer
    }

    /// Appends bytes that were read elsewhere.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next line, if a whole one is there.
    pub fn next_frame(&mut self) -> Option<Frame> {
        loop {
            match memchr::memchr(b'\n', &self.buffer[self.scanned..]) {
                Some(at) => {
                    let end = self.scanned + at;
                    self.scanned = 0;
                    if let Some(head) = self.skipping.take() {
                        self.buffer.advance(end + 1);
                        return Some(Frame::TooLong { head });
                    }
                    let mut line = self.buffer.split_to(end + 1);
                    line.truncate(end);
                    if let Some(frame) = self.whole(line.freeze()) {
                        return Some(frame);
                    }
                }
                None => {
                    self.scanned = self.buffer.len();
                    if self.skipping.is_some() {
                        self.buffer.clear();
                        self.scanned = 0;
                    } else if self.buffer.len() > self.limit + 1 {
                        // One more than may be: the last byte could belong to the line ending.
                        self.skipping = Some(Bytes::copy_from_slice(&self.buffer[..HEAD.min(self.buffer.len())]));
                        // The memory of the part already read goes back at once.
                        self.buffer = BytesMut::new();
                        self.scanned = 0;
                    }
                    return None;
                }
            }
        }
    }

    /// The rest after the end of input: a last line without newline counts.
    pub fn finish(&mut self) -> Option<Frame> {
        if let Some(head) = self.skipping.take() {
            return Some(Frame::TooLong { head });
        }
        let rest = self.buffer.split().freeze();
        self.scanned = 0;
        self.whole(rest)
    }

    fn whole(&self, mut line: Bytes) -> Option<Frame> {
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        if line.len() > self.limit {
            return Some(Frame::TooLong { head: line.slice(..HEAD.min(line.len())) });
        }
        if line.first().is_none_or(u8::is_ascii_whitespace) && line.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        Some(Frame::Line(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(input: &[u8], chunk: usize, limit: usize) -> Vec<Frame> {
        let mut reader = FrameReader::new(limit);
        let mut out = Vec::new();
        for part in input.chunks(chunk.max(1)) {
            reader.extend(part);
            while let Some(frame) = reader.next_frame() {
                out.push(frame);
            }
        }
        out.extend(reader.finish());
        out
    }

    fn line(text: &str) -> Frame {
        Frame::Line(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_arrive() {
        let input = b"one\r\n\n  \t\ntwo\nthree";
        for chunk in 1..input.len() {
            assert_eq!(frames(input, chunk, 100), [line("one"), line("two"), line("three")], "chunk {chunk}");
        }
    }

    #[test]
    fn a_line_over_the_limit_is_skipped_and_the_next_one_served() {
        for chunk in [1, 3, 7, 50] {
            let got = frames(b"0123456789ab\nok\n", chunk, 10);
            let Frame::TooLong { head } = &got[0] else { panic!("{got:?}") };
            assert!(b"0123456789ab".starts_with(head), "{head:?}");
            assert_eq!(got[1..], [line("ok")]);
        }
    }

    #[test]
    fn an_over_long_line_costs_its_head_only() {
        let mut reader = FrameReader::new(1024 * 1024);
        let part = [b'x'; CHUNK];
        for _ in 0..512 {
            reader.space().extend_from_slice(&part);
            assert_eq!(reader.next_frame(), None);
            assert!(reader.buffer.capacity() <= 4 * 1024 * 1024, "{}", reader.buffer.capacity());
        }
        reader.extend(b"\n");
        let Some(Frame::TooLong { head }) = reader.next_frame() else { panic!("a frame is there") };
        assert_eq!(head.len(), HEAD);
    }

    #[test]
    fn room_grows_with_what_is_waiting_and_only_then() {
        let mut reader = FrameReader::new(1024 * 1024);
        let room = |reader: &mut FrameReader| {
            let space = reader.space();
            space.capacity() - space.len()
        };
        for _ in 0..1_000 {
            reader.space().extend_from_slice(b"a short line\n");
            assert!(reader.next_frame().is_some());
            assert!((FIRST_CHUNK / 2..=2 * FIRST_CHUNK).contains(&room(&mut reader)));
        }
        reader.rest();
        assert!(reader.keeps_nothing());
        reader.extend(b"half a");
        reader.rest();
        assert!(!reader.keeps_nothing());
        reader.extend(b" line\n");
        assert_eq!(reader.next_frame(), Some(line("half a line")));
        for _ in 0..10 {
            let filled = vec![b'\n'; room(&mut reader)];
            reader.space().extend_from_slice(&filled);
            assert_eq!(reader.next_frame(), None);
        }
        assert!((CHUNK..=2 * CHUNK).contains(&room(&mut reader)), "{}", room(&mut reader));
    }

    #[test]
    fn a_client_that_was_silent_has_room_kept_only_once_it_goes_on_speaking() {
        let mut reader = FrameReader::new(1024);
        for _ in 0..2 {
            for _ in 0..SPARE {
                assert!(reader.is_spare());
                reader.take_spare(b"a line\n");
                assert_eq!(reader.next_frame(), Some(line("a line")));
            }
            assert!(reader.buffer.capacity() < 64 && !reader.is_spare());
            reader.space().extend_from_slice(b"a line\n");
            assert_eq!(reader.next_frame(), Some(line("a line")));
            assert!(reader.buffer.capacity() > 1024);
            reader.rest();
        }
        reader.take_spare(b"half");
        assert!(!reader.is_spare(), "the rest of it goes where its beginning is");
    }

    #[test]
    fn an_over_long_last_line_is_still_reported() {
        assert!(matches!(frames(b"0123456789abcdef", 4, 10)[..], [Frame::TooLong { .. }]));
    }
}
