//! A terminal instead of pipes.
//!
//! Owns: the pair of ends, our side as a stream, its size, and what a Ctrl-C is. May not know: the process.
//!
//! Invariants: (1) we hold no end of the process's side, so that the terminal closes when the last process that has it ends; (2) our
//! side never blocks the runtime.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe::{Receiver, Sender};

use super::TerminalSize;

/// What a terminal takes for the end of its input, at the beginning of a line.
pub(super) const END_OF_FILE: &[u8] = &[4];

/// Both ends of a new terminal.
#[derive(Debug)]
pub(super) struct Pty {
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl Pty {
    pub(super) fn open(size: TerminalSize) -> io::Result<Self> {
        let ours = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC)?;
        rustix::pty::grantpt(&ours)?;
        rustix::pty::unlockpt(&ours)?;
        let name = rustix::pty::ptsname(&ours, Vec::new())?;
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let theirs = rustix::fs::open(&name, flags, rustix::fs::Mode::empty())?;
        set_size(&ours, size)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok(Self { ours, theirs })
    }

    /// The process's end once more.
    pub(super) fn end(&self) -> io::Result<Stdio> {
        Ok(Stdio::from(self.theirs.try_clone()?))
    }

    /// Our end, once the process has its own.
    pub(super) fn ours(self) -> io::Result<Terminal> {
        Ok(Terminal { ours: self.ours })
    }
}

fn set_size(terminal: &OwnedFd, size: TerminalSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// Our end of a terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    ours: OwnedFd,
}

impl Terminal {
    /// What the process writes.
    pub(super) fn reader(&self) -> io::Result<TerminalReader> {
        // It is none, and is read and written like one.
        Ok(TerminalReader(Receiver::from_owned_fd_unchecked(self.ours.try_clone()?)?))
    }

    /// What the process reads.
    pub(super) fn writer(&self) -> io::Result<Sender> {
        Sender::from_owned_fd_unchecked(self.ours.try_clone()?)
    }

    pub(super) fn resize(&self, size: TerminalSize) -> bool {
        set_size(&self.ours, size).is_ok()
    }

    /// Types Ctrl-C: whichever group has the terminal in front is interrupted, or reads it where the program wants that. Ahead of
    /// what waits to be typed. Returns whether it was taken.
    pub(super) fn interrupt(&self) -> bool {
        rustix::io::write(&self.ours, &[3]) == Ok(1)
    }
}

/// A stream over our end, to be read or to be written.
#[derive(Debug)]
pub(super) struct TerminalReader(Receiver);

impl AsyncRead for TerminalReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.0).poll_read(cx, buf)) {
            // Nobody holds the other end: its end of file.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => Poll::Ready(Ok(())),
            other => Poll::Ready(other),
        }
    }
}
