//! The connections to whoever serves: the one that is used, and those to daemons that answer what they have.
//!
//! Owns: their streams, what of a line is written, what of one has been read. May not know: what a line says.
//!
//! Invariants: (1) everything is in `self`, so a dropped wait loses nothing; (2) a connection is asked for its next line only
//! when all of the last one was taken, so that what never left is known not to have; (3) that it is over is told once, after
//! its last line.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::core::{BridgeEvent, LinkNumber};
use crate::protocol::frame::FrameReader;

/// Longest line that is taken of whoever serves; twice what a system of ours writes at most.
const LINE: usize = 16 * 1024 * 1024;

/// Bytes read at a time.
const CHUNK: usize = 16 * 1024;

/// Both directions of a connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Whether something is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Open,
    /// What is there, and then nothing more.
    Ending,
    Over,
}

struct Link {
    number: LinkNumber,
    stream: Box<dyn Stream>,
    reader: FrameReader,
    unwritten: BytesMut,
    sending: Sending,
    /// Its other end has said that it is over.
    ended: bool,
    /// It is closed when what is there is written, and nothing more is told of it.
    closing: bool,
}

/// All of them.
#[derive(Default)]
pub(super) struct Links {
    open: Vec<Link>,
    /// Whose turn it is to be looked at first.
    turn: usize,
}

impl Links {
    /// A new one.
    pub(super) fn add(&mut self, number: LinkNumber, stream: Box<dyn Stream>) {
        let reader = FrameReader::new(LINE);
        let unwritten = BytesMut::new();
        self.open.push(Link {
            number,
            stream,
            reader,
            unwritten,
            sending: Sending::Open,
            ended: false,
            closing: false,
        });
    }

    /// Sends this.
    pub(super) fn send(&mut self, number: LinkNumber, bytes: &Bytes) {
        if let Some(link) = self.link(number) {
            link.unwritten.extend_from_slice(bytes);
        }
    }

    /// Sends nothing more.
    pub(super) fn end_input(&mut self, number: LinkNumber) {
        if let Some(link) = self.link(number).filter(|link| link.sending == Sending::Open) {
            link.sending = Sending::Ending;
        }
    }

    /// Closes one, once what is there is written. Nothing more is told of it.
    pub(super) fn close(&mut self, number: LinkNumber) {
        if let Some(link) = self.link(number) {
            link.closing = true;
        }
        self.open.retain(|link| !link.closing || !link.unwritten.is_empty());
    }

    fn link(&mut self, number: LinkNumber) -> Option<&mut Link> {
        self.open.iter_mut().find(|link| link.number == number)
    }

    /// What happens next; `wanted` is whom a line is waiting for.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub(super) async fn next(&mut self, wanted: Option<LinkNumber>) -> BridgeEvent {
        std::future::poll_fn(|cx| self.poll_next(wanted, cx)).await
    }

    fn poll_next(&mut self, wanted: Option<LinkNumber>, cx: &mut Context<'_>) -> Poll<BridgeEvent> {
        self.open.retain_mut(|link| !link.closing || link.poll_write(cx).is_pending());
        let count = self.open.len();
        for at in 0..count {
            let at = (self.turn + at) % count;
            let link = &mut self.open[at];
            if link.closing {
                continue;
            }
            let event = match link.poll_write(cx) {
                // What comes next of it was asked for before this line is sent.
                Poll::Ready(()) if wanted == Some(link.number) && link.sending == Sending::Open => {
                    BridgeEvent::Room(link.number)
                }
                Poll::Ready(()) | Poll::Pending => match link.poll_line(cx) {
                    Poll::Ready(event) => event,
                    Poll::Pending => continue,
                },
            };
            self.turn = at + 1;
            if matches!(event, BridgeEvent::Lost(_)) {
                self.open.remove(at);
            }
            return Poll::Ready(event);
        }
        Poll::Pending
    }
}

impl Link {
    /// Ready when everything is written that is there.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.unwritten.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.unwritten)) {
                Ok(count) if count > 0 => self.unwritten.advance(count),
                // What it has said before it went is still read, and says that it is over.
                Ok(_) | Err(_) => {
                    self.unwritten.clear();
                    self.sending = Sending::Over;
                }
            }
        }
        if self.sending == Sending::Ending {
            // One that cannot be told hears it when the connection is closed.
            let _ = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
            self.sending = Sending::Over;
        }
        ready!(self.poll_flush(cx));
        Poll::Ready(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.sending == Sending::Open && ready!(Pin::new(&mut self.stream).poll_flush(cx)).is_err() {
            self.sending = Sending::Over;
        }
        Poll::Ready(())
    }

    /// Its next line, or that it is over.
    fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<BridgeEvent> {
        loop {
            let frame = self.reader.next_frame();
            if let Some(frame) = frame.or_else(|| self.ended.then(|| self.reader.finish()).flatten()) {
                return Poll::Ready(BridgeEvent::Line(self.number, frame));
            }
            if self.ended {
                return Poll::Ready(BridgeEvent::Lost(self.number));
            }
            // A connection that fails is over.
            self.ended = !ready!(self.poll_read(cx)).unwrap_or(false);
        }
    }

    /// Whether something was read.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut chunk = [0; CHUNK];
        let mut read = ReadBuf::new(&mut chunk);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
        self.reader.extend(read.filled());
        Poll::Ready(Ok(!read.filled().is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::protocol::frame::Frame;

    const ONE: LinkNumber = LinkNumber(1);
    const TWO: LinkNumber = LinkNumber(2);

    fn text(event: &BridgeEvent) -> String {
        match event {
            BridgeEvent::Line(link, Frame::Line(line)) => format!("{} says {}", link.0, String::from_utf8_lossy(line)),
            BridgeEvent::Lost(link) => format!("{} is lost", link.0),
            BridgeEvent::Room(link) => format!("{} takes a line", link.0),
            other => format!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_line_is_asked_for_when_the_last_one_has_left_and_not_before() {
        let (ours, mut theirs) = tokio::io::duplex(8);
        let mut links = Links::default();
        links.add(ONE, Box::new(ours));
        assert_eq!(text(&links.next(Some(ONE)).await), "1 takes a line");
        links.send(ONE, &Bytes::from_static(b"0123456789\n"));
        let waits = futures_util::future::poll_immediate(std::pin::pin!(links.next(Some(ONE)))).await;
        assert!(waits.is_none(), "three bytes have not left: {waits:?}");
        let mut taken = [0; 11];
        let (event, read) = tokio::join!(links.next(Some(ONE)), theirs.read_exact(&mut taken));
        assert_eq!((text(&event), read.expect("it is sent")), ("1 takes a line".to_owned(), 11));
        assert_eq!(&taken, b"0123456789\n");
    }

    #[tokio::test]
    async fn the_end_comes_after_the_last_line_and_once() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let (others, _kept) = tokio::io::duplex(64);
        let mut links = Links::default();
        links.add(ONE, Box::new(ours));
        links.add(TWO, Box::new(others));
        theirs.write_all(b"a\nb").await.expect("it is taken");
        drop(theirs);
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(text(&links.next(None).await));
        }
        assert_eq!(seen, ["1 says a", "1 says b", "1 is lost"]);
        assert!(futures_util::future::poll_immediate(std::pin::pin!(links.next(None))).await.is_none());
        links.send(ONE, &Bytes::from_static(b"nobody hears this\n"));
        assert_eq!(text(&links.next(Some(TWO)).await), "2 takes a line");
    }

    #[tokio::test]
    async fn nothing_is_sent_after_the_end_of_input_and_answers_are_still_read() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut links = Links::default();
        links.add(ONE, Box::new(ours));
        links.send(ONE, &Bytes::from_static(b"last\n"));
        links.end_input(ONE);
        let mut heard = Vec::new();
        let answer = async {
            theirs.read_to_end(&mut heard).await.expect("it ends");
            theirs.write_all(b"answer\n").await.expect("it is taken");
        };
        let (event, ()) = tokio::join!(links.next(Some(ONE)), answer);
        assert_eq!((text(&event), &heard[..]), ("1 says answer".to_owned(), &b"last\n"[..]));
    }

    #[tokio::test]
    async fn one_that_is_closed_gets_what_it_was_sent_and_is_not_heard_of_again() {
        let (ours, mut theirs) = tokio::io::duplex(2);
        let mut links = Links::default();
        links.add(ONE, Box::new(ours));
        links.send(ONE, &Bytes::from_static(b"last\n"));
        links.close(ONE);
        let mut heard = Vec::new();
        let silent = async {
            tokio::select! {
                event = links.next(Some(ONE)) => Some(text(&event)),
                read = theirs.read_to_end(&mut heard) => read.err().map(|error| error.to_string()),
            }
        };
        assert_eq!(silent.await, None);
        assert_eq!(heard, b"last\n");
    }

    #[tokio::test]
    async fn one_that_says_much_does_not_keep_the_others_from_being_heard() {
        let (ours, mut loud) = tokio::io::duplex(1024);
        let (others, mut quiet) = tokio::io::duplex(64);
        let mut links = Links::default();
        links.add(ONE, Box::new(ours));
        links.add(TWO, Box::new(others));
        loud.write_all("x\n".repeat(500).as_bytes()).await.expect("it is taken");
        quiet.write_all(b"y\n").await.expect("it is taken");
        let mut seen = Vec::new();
        for _ in 0..2 {
            seen.push(text(&links.next(None).await));
        }
        seen.sort();
        assert_eq!(seen, ["1 says x", "2 says y"]);
    }
}
