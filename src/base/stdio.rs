//! Standard streams without the blocking pool.
//!
//! Owns: how a descriptor is read and written without making anybody else's copy of it non-blocking. Pipes are opened
//! once more, so that they have a description of their own; sockets (what clients on Node hand out) are asked not to
//! wait call by call; anything else, a file or a terminal, gets a thread.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::sync::mpsc;

/// Bytes a reading thread takes at a time.
const CHUNK: usize = 64 * 1024;

/// Chunks a reading thread may be ahead by.
const AHEAD: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pipe,
    Socket,
    Other,
}

fn kind(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    let mode = rustix::fs::fstat(fd)?.st_mode;
    Ok(match FileType::from_raw_mode(mode) {
        FileType::Fifo => Kind::Pipe,
        FileType::Socket => Kind::Socket,
        _ => Kind::Other,
    })
}

/// A description of a pipe's end that belongs to us alone, where the system can make one.
fn own_pipe(fd: BorrowedFd<'_>, access: OFlags) -> io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if let Ok(own) = rustix::fs::open(path.as_str(), flags, Mode::empty()) {
            return Ok(own);
        }
    }
    let _ = (access, Mode::empty());
    let own = fd.try_clone_to_owned()?;
    rustix::io::ioctl_fionbio(&own, true)?;
    Ok(own)
}

/// Registers a descriptor with the reactor.
#[expect(unsafe_code, reason = "the runtime's registration asks its caller to vouch for the descriptor")]
fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` gives the same open descriptor for as long as it lives, and it lives inside the `AsyncFd`.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(Into::into)
}

/// Both directions of a connected socket, over one descriptor; for within a runtime that has I/O.
///
/// # Errors
///
/// The descriptor cannot be registered.
pub fn socket(socket: OwnedFd) -> io::Result<(Input, Output)> {
    let shared = Arc::new(register(socket, Interest::READABLE | Interest::WRITABLE)?);
    Ok((Input::Socket(Arc::clone(&shared)), Output::Socket(shared)))
}

/// What a client sends us.
#[derive(Debug)]
#[non_exhaustive]
pub enum Input {
    /// A pipe.
    Pipe(AsyncFd<OwnedFd>),
    /// A socket.
    Socket(Arc<AsyncFd<OwnedFd>>),
    /// Read by a thread.
    Thread {
        /// What it has read.
        chunks: mpsc::Receiver<io::Result<Bytes>>,
        /// The rest of the chunk being handed on.
        rest: Bytes,
    },
}

impl Input {
    /// Reads from this descriptor; must be called within a runtime that has I/O.
    ///
    /// # Errors
    ///
    /// The descriptor cannot be looked at or registered.
    #[doc(hidden)]
    pub fn from_fd(fd: impl AsFd) -> io::Result<Self> {
        let fd = fd.as_fd();
        match kind(fd)? {
            Kind::Pipe => Ok(Self::Pipe(register(own_pipe(fd, OFlags::RDONLY)?, Interest::READABLE)?)),
            Kind::Socket => Ok(Self::Socket(Arc::new(register(fd.try_clone_to_owned()?, Interest::READABLE)?))),
            Kind::Other => Self::thread(fd.try_clone_to_owned()?),
        }
    }

    /// The process's standard input; must be called within a runtime that has I/O.
    ///
    /// # Errors
    ///
    /// The descriptor cannot be looked at or registered.
    pub fn stdin() -> io::Result<Self> {
        Self::from_fd(io::stdin())
    }

    /// Whether a thread reads ahead, so that bytes may be nowhere but in it.
    #[must_use]
    #[doc(hidden)]
    pub fn is_read_by_thread(&self) -> bool {
        matches!(self, Self::Thread { .. })
    }

    fn thread(fd: OwnedFd) -> io::Result<Self> {
        let (sender, chunks) = mpsc::channel(AHEAD);
        std::thread::Builder::new().name("stdin".into()).spawn(move || {
            crate::base::signals::leave_to_others();
            loop {
                let mut chunk = vec![0; CHUNK];
                let read = loop {
                    match rustix::io::read(&fd, &mut chunk[..]) {
                        Err(rustix::io::Errno::INTR) => {}
                        read => break read,
                    }
                };
                let message = match read {
                    Ok(0) => return,
                    Ok(count) => {
                        chunk.truncate(count);
                        Ok(Bytes::from(chunk))
                    }
                    Err(error) => Err(error.into()),
                };
                let failed = message.is_err();
                if sender.blocking_send(message).is_err() || failed {
                    return;
                }
            }
        })?;
        Ok(Self::Thread { chunks, rest: Bytes::new() })
    }
}

/// Reads what is there into the unfilled part of `buf`, without clearing it first: that would cost more than the read.
#[expect(unsafe_code, reason = "a buffer of 64 KiB is not to be zeroed for a message of 100 bytes")]
fn poll_fd(
    fd: &AsyncFd<OwnedFd>,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
    read: impl Fn(&OwnedFd, &mut [MaybeUninit<u8>]) -> rustix::io::Result<usize>,
) -> Poll<io::Result<()>> {
    loop {
        let mut ready = ready!(fd.poll_read_ready(cx))?;
        // SAFETY: nothing is read from the slice, and `read` writes initialised bytes only.
        let space = unsafe { buf.unfilled_mut() };
        let room = space.len();
        match read(fd.get_ref(), space) {
            Ok(count) => {
                // A short read has emptied the pipe; the next bytes will say so, and no empty read is needed to see it.
                if count > 0 && count < room {
                    ready.clear_ready();
                }
                // SAFETY: the system call has filled this many bytes from the start of the slice.
                unsafe { buf.assume_init(count) };
                buf.advance(count);
                return Poll::Ready(Ok(()));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            Err(error) => return Poll::Ready(Err(error.into())),
        }
    }
}

impl AsyncRead for Input {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Pipe(fd) => poll_fd(fd, cx, buf, |fd, space| rustix::io::read(fd, space).map(|(read, _)| read.len())),
            Self::Socket(fd) => poll_fd(fd, cx, buf, |fd, space| {
                rustix::net::recv(fd, space, RecvFlags::DONTWAIT).map(|((read, _), _)| read.len())
            }),
            Self::Thread { chunks, rest } => {
                if rest.is_empty() {
                    match ready!(chunks.poll_recv(cx)) {
                        Some(Ok(chunk)) => *rest = chunk,
                        Some(Err(error)) => return Poll::Ready(Err(error)),
                        None => return Poll::Ready(Ok(())),
                    }
                }
                let count = rest.len().min(buf.remaining());
                buf.put_slice(&rest[..count]);
                rest.advance(count);
                Poll::Ready(Ok(()))
            }
        }
    }
}

/// What we send a client.
#[derive(Debug)]
#[non_exhaustive]
pub enum Output {
    /// A pipe.
    Pipe(AsyncFd<OwnedFd>),
    /// A socket.
    Socket(Arc<AsyncFd<OwnedFd>>),
    /// A file or a terminal, written by the runtime's blocking threads.
    Blocking(tokio::io::Stdout),
}

impl Output {
    /// The process's standard output; must be called within a runtime that has I/O.
    ///
    /// # Errors
    ///
    /// The descriptor cannot be looked at or registered.
    pub fn stdout() -> io::Result<Self> {
        let stdout = io::stdout();
        let fd = stdout.as_fd();
        match kind(fd)? {
            Kind::Pipe => Ok(Self::Pipe(register(own_pipe(fd, OFlags::WRONLY)?, Interest::WRITABLE)?)),
            Kind::Socket => Ok(Self::Socket(Arc::new(register(fd.try_clone_to_owned()?, Interest::WRITABLE)?))),
            Kind::Other => Ok(Self::Blocking(tokio::io::stdout())),
        }
    }
}

impl Output {
    /// Whether a thread writes, so that bytes may be nowhere but in it.
    #[must_use]
    #[doc(hidden)]
    pub fn is_written_by_thread(&self) -> bool {
        matches!(self, Self::Blocking(_))
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let write = |fd: &AsyncFd<OwnedFd>, cx: &mut Context<'_>, socket: bool| loop {
            let mut ready = ready!(fd.poll_write_ready(cx))?;
            let attempt = ready.try_io(|fd| {
                let count = if socket {
                    rustix::net::send(fd.get_ref(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?
                } else {
                    rustix::io::write(fd.get_ref(), bytes)?
                };
                Ok(count)
            });
            match attempt {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        };
        match self.get_mut() {
            Self::Pipe(fd) => write(fd, cx, false),
            Self::Socket(fd) => write(fd, cx, true),
            Self::Blocking(stdout) => Pin::new(stdout).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Pipe(_) | Self::Socket(_) => Poll::Ready(Ok(())),
            Self::Blocking(stdout) => Pin::new(stdout).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
