//! A WebSocket as two streams of lines: a message of the peer is a line, and a line is a message to it.
//!
//! Owns: that translation, its bounds, answers to pings, the keepalive, and marks by which a writer learns what its peer has read.
//! May not know: what the lines say, who the peer is.
//!
//! Both halves use one socket behind a lock that is held for one poll. Who waits for the socket to take more is whoever wanted to
//! write; either half may, and then both are woken, so that neither takes the other's place in the socket.
//!
//! Invariants:
//! 1. The reading half never waits for the writing one, and the other way round.
//! 2. A ping is answered as soon as the socket takes the answer, whether or not anything else is written.
//! 3. What is buffered for writing is at most [`WRITE_BYTES`] and one message.
//! 4. A mark that came back was preceded by everything that was written before it was asked for.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Instant;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Bytes as FrameBytes, Error, Message, Utf8Bytes};

use super::keepalive::{Due, Keepalive};
use super::marks::Marks;

/// The largest message a server takes, in pieces or whole; what the protocol's servers take.
pub const MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// The largest single frame a server takes; as [`MESSAGE_BYTES`].
pub const FRAME_BYTES: usize = 16 * 1024 * 1024;

/// The largest message a client takes: a server of another make answers with a file of 512 MiB in one message, and whoever asks us
/// for files asks for blocks of 1 MiB. A quarter of it covers what has been seen (140 MB).
pub const CLIENT_MESSAGE_BYTES: usize = 192 * 1024 * 1024;

/// Bytes that are gathered before they are written, when nobody flushes: two full output chunks as they look on the wire.
const WRITE_BYTES: usize = 192 * 1024;

/// What a read asks the socket for; one full pipe.
const READ_BYTES: usize = 64 * 1024;

/// Which bounds a side has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It asks.
    Client,
    /// It serves.
    Server,
}

/// The bounds of a WebSocket.
#[must_use]
pub fn bounds(side: Side) -> WebSocketConfig {
    let message = match side {
        Side::Client => CLIENT_MESSAGE_BYTES,
        Side::Server => MESSAGE_BYTES,
    };
    let frame = match side {
        Side::Client => CLIENT_MESSAGE_BYTES,
        Side::Server => FRAME_BYTES,
    };
    WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(WRITE_BYTES)
        // A message is taken only when what was before it has left but for `WRITE_BYTES`. The longest line of either side fits.
        .max_write_buffer_size(WRITE_BYTES + CLIENT_MESSAGE_BYTES)
        .max_message_size(Some(message))
        .max_frame_size(Some(frame))
}

/// A WebSocket's two halves.
pub fn split<S: AsyncRead + AsyncWrite + Unpin>(socket: WebSocketStream<S>) -> (WsReader<S>, WsWriter<S>) {
    let shared = Arc::new(Shared {
        socket: Mutex::new(socket),
        wakers: Arc::new(Wakers::default()),
        marks: Arc::default(),
        doubted: AtomicBool::new(false),
    });
    let reader = WsReader {
        shared: Arc::clone(&shared),
        line: Bytes::new(),
        line_end: false,
        ended: false,
        keepalive: None,
        timer: None,
        flush: false,
    };
    (reader, WsWriter { shared, line: BytesMut::new(), waiting: None, marked: 0 })
}

/// By which somebody says that a peer may be gone.
#[derive(Debug, Clone)]
pub struct Doubt {
    say: Arc<dyn Doubted>,
}

impl Doubt {
    /// Has the peer asked at once. When it does not answer in three seconds, the connection ends.
    pub fn say(&self) {
        self.say.doubt();
    }
}

trait Doubted: std::fmt::Debug + Send + Sync {
    fn doubt(&self);
}

impl<S: Send> Doubted for Shared<S> {
    fn doubt(&self) {
        self.doubted.store(true, Ordering::Relaxed);
        self.wakers.reader.wake();
    }
}

struct Shared<S> {
    socket: Mutex<WebSocketStream<S>>,
    wakers: Arc<Wakers>,
    marks: Arc<Marks>,
    doubted: AtomicBool,
}

impl<S> std::fmt::Debug for Shared<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// Whoever waits for the socket to take more.
#[derive(Debug, Default)]
struct Wakers {
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.reader.wake();
        self.writer.wake();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, WebSocketStream<S>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A waker for polls that write: it wakes both halves.
    fn both(&self) -> Waker {
        Waker::from(Arc::clone(&self.wakers))
    }
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    }
}

/// The reading half: each message of the peer is a line. A message without text is skipped.
#[derive(Debug)]
pub struct WsReader<S> {
    shared: Arc<Shared<S>>,
    /// What was read and not handed out.
    line: Bytes,
    /// Its end is still to be handed out.
    line_end: bool,
    ended: bool,
    keepalive: Option<Keepalive>,
    timer: Option<Pin<Box<Sleep>>>,
    /// A ping of ours is not flushed yet.
    flush: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WsReader<S> {
    /// Has it find out whether a silent peer is still there; a peer that is gone is an error of the kind `TimedOut`.
    #[must_use]
    pub fn with_keepalive(mut self) -> Self {
        self.keepalive = Some(Keepalive::new(Instant::now()));
        self
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            // The socket's own answers to pings are written by this poll too.
            let message = Pin::new(&mut *self.shared.lock()).poll_next(cx);
            match message {
                Poll::Pending => return self.poll_silence(cx),
                Poll::Ready(None) => return Poll::Ready(Ok(None)),
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(match error {
                        // The peer went without a word, as the protocol's servers do.
                        Error::Protocol(
                            tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
                        ) => Ok(None),
                        other => Err(broken(other)),
                    });
                }
                Poll::Ready(Some(Ok(message))) => {
                    if let Some(keepalive) = &mut self.keepalive {
                        keepalive.heard(Instant::now());
                    }
                    match message {
                        Message::Text(text) => return Poll::Ready(Ok(Some(one_line(text.into())))),
                        Message::Binary(bytes) => return Poll::Ready(Ok(Some(one_line(bytes)))),
                        Message::Pong(mark) => {
                            if let Ok(mark) = <[u8; 8]>::try_from(mark.as_ref()) {
                                self.shared.marks.come_back(u64::from_be_bytes(mark));
                            }
                        }
                        Message::Ping(_) | Message::Close(_) | Message::Frame(_) => {}
                    }
                }
            }
        }
    }

    /// Nothing came: asks the peer when it is time. Ready only with an error.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        self.shared.wakers.reader.register(cx.waker());
        let Some(keepalive) = &mut self.keepalive else { return Poll::Pending };
        loop {
            let now = Instant::now();
            if self.shared.doubted.swap(false, Ordering::Relaxed) {
                keepalive.doubt(now);
            }
            if self.flush {
                let both = self.shared.both();
                match Pin::new(&mut *self.shared.lock()).poll_flush(&mut Context::from_waker(&both)) {
                    Poll::Ready(Ok(())) => self.flush = false,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(broken(error))),
                    Poll::Pending => {}
                }
            }
            let until = match keepalive.due(now) {
                Due::Gone => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not answer")));
                }
                Due::Ask => {
                    let both = self.shared.both();
                    let mut socket = self.shared.lock();
                    match Pin::new(&mut *socket).poll_ready(&mut Context::from_waker(&both)) {
                        Poll::Ready(Ok(())) => {
                            Pin::new(&mut *socket).start_send(Message::Ping(FrameBytes::new())).map_err(broken)?;
                            self.flush = true;
                            keepalive.asked(now);
                            continue;
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(broken(error))),
                        // It reads nothing. It is asked when the socket takes more; looked at again in any case.
                        Poll::Pending => now + super::keepalive::DOUBT,
                    }
                }
                Due::Wait(until) => until,
            };
            let until = tokio::time::Instant::from_std(until);
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            if timer.deadline() != until {
                timer.as_mut().reset(until);
            }
            ready!(timer.as_mut().poll(cx));
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> WsReader<S> {
    /// By which somebody says that the peer may be gone.
    #[must_use]
    pub fn doubt(&self) -> Doubt {
        Doubt { say: Arc::clone(&self.shared) as Arc<dyn Doubted> }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WsReader<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.line.is_empty() && !this.line_end {
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            match ready!(this.poll_message(cx)) {
                Ok(Some(line)) => (this.line, this.line_end) = (line, true),
                Ok(None) => this.ended = true,
                Err(error) => {
                    this.ended = true;
                    return Poll::Ready(Err(error));
                }
            }
        }
        let size = this.line.len().min(buf.remaining());
        buf.put_slice(&this.line[..size]);
        this.line.advance(size);
        if this.line.is_empty() {
            // Lets go of the message's memory.
            this.line = Bytes::new();
            if buf.remaining() > 0 {
                buf.put_slice(b"\n");
                this.line_end = false;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The message without line ends: inside of it they become spaces, which they are worth in JSON.
fn one_line(message: FrameBytes) -> Bytes {
    let Some(first) = memchr::memchr2(b'\n', b'\r', &message) else { return message };
    let mut line = BytesMut::from(message.as_ref());
    for byte in &mut line[first..] {
        if matches!(*byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    line.freeze()
}

/// The writing half: each line becomes a text message. What is no UTF-8 is an error, for no JSON is.
#[derive(Debug)]
pub struct WsWriter<S> {
    shared: Arc<Shared<S>>,
    /// A line whose end was not written yet.
    line: BytesMut,
    /// A message for which the socket has no room yet.
    waiting: Option<Message>,
    /// The last mark that went out.
    marked: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WsWriter<S> {
    /// The marks of this connection.
    #[must_use]
    pub fn marks(&self) -> Arc<Marks> {
        Arc::clone(&self.shared.marks)
    }

    /// Hands over what waits: the message, then the mark that was asked for.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let asked = self.shared.marks.asked();
        if self.waiting.is_none() && asked == self.marked {
            return Poll::Ready(Ok(()));
        }
        self.shared.wakers.writer.register(cx.waker());
        let both = self.shared.both();
        let mut socket = self.shared.lock();
        if let Some(message) = self.waiting.take() {
            match Pin::new(&mut *socket).poll_ready(&mut Context::from_waker(&both)) {
                Poll::Pending => {
                    self.waiting = Some(message);
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(broken(error))),
                Poll::Ready(Ok(())) => Pin::new(&mut *socket).start_send(message).map_err(broken)?,
            }
        }
        if asked > self.marked {
            match Pin::new(&mut *socket).poll_ready(&mut Context::from_waker(&both)) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(broken(error))),
                Poll::Ready(Ok(())) => {
                    let mark = FrameBytes::copy_from_slice(&asked.to_be_bytes());
                    Pin::new(&mut *socket).start_send(Message::Ping(mark)).map_err(broken)?;
                    self.marked = asked;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WsWriter<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_room(cx))?;
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            if this.line.len() + bytes.len() > CLIENT_MESSAGE_BYTES {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the line is too long for a message",
                )));
            }
            this.line.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        };
        let text = if this.line.is_empty() {
            FrameBytes::copy_from_slice(&bytes[..end])
        } else {
            this.line.extend_from_slice(&bytes[..end]);
            this.line.split().freeze()
        };
        if !text.is_empty() {
            let text = Utf8Bytes::try_from(text)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the line is no UTF-8"))?;
            this.waiting = Some(Message::Text(text));
            // Not waited for: the line is taken, and the next write or flush waits.
            if let Poll::Ready(Err(error)) = this.poll_room(cx) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(end + 1))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_room(cx))?;
        this.shared.wakers.writer.register(cx.waker());
        let both = this.shared.both();
        Pin::new(&mut *this.shared.lock()).poll_flush(&mut Context::from_waker(&both)).map_err(broken)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_room(cx))?;
        this.shared.wakers.writer.register(cx.waker());
        let both = this.shared.both();
        Pin::new(&mut *this.shared.lock()).poll_close(&mut Context::from_waker(&both)).map_err(broken)
    }
}
