//! Descriptors that outlive the image of the program.
//!
//! Owns: which descriptors go through an `exec`, and how the next image knows that it got the same. May not know: what is
//! spoken through them; what is done about those the program was started with, when its main function asks.
//!
//! Invariants: (1) exactly what is named goes through, and only from just before the `exec`: a child started in between
//! inherits none; (2) the next image takes a number only if what is behind it is what was named, and only once; (3) nothing is
//! opened by a path.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::FileType;
use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};

/// An open pipe, socket or file in the next image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedPipe {
    fd: RawFd,
    #[serde(default)]
    kind: PassedKind,
    device: u64,
    inode: u64,
}

/// What is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PassedKind {
    #[default]
    Pipe,
    Socket,
    File,
}

impl PassedKind {
    fn of(kind: FileType) -> io::Result<Self> {
        match kind {
            FileType::Fifo => Ok(Self::Pipe),
            FileType::Socket => Ok(Self::Socket),
            FileType::RegularFile => Ok(Self::File),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

impl PassedPipe {
    /// This one.
    ///
    /// # Errors
    ///
    /// It cannot be looked at, or is neither pipe nor socket nor file.
    pub fn of(pipe: &impl AsFd) -> io::Result<Self> {
        let fd = pipe.as_fd();
        let found = rustix::fs::fstat(fd)?;
        let kind = PassedKind::of(FileType::from_raw_mode(found.st_mode))?;
        Ok(Self { fd: fd.as_raw_fd(), kind, device: device(found.st_dev), inode: found.st_ino })
    }

    fn is_at(&self, fd: BorrowedFd<'_>) -> bool {
        rustix::fs::fstat(fd).is_ok_and(|found| {
            PassedKind::of(FileType::from_raw_mode(found.st_mode)).is_ok_and(|kind| kind == self.kind)
                && (device(found.st_dev), found.st_ino) == (self.device, self.inode)
        })
    }

    /// Lets it go through an `exec`, or not.
    pub(crate) fn set_passing(&self, passing: Passing) -> io::Result<()> {
        let flags = if passing == Passing::Through { FdFlags::empty() } else { FdFlags::CLOEXEC };
        // SAFETY: whoever made this holds the pipe, and keeps it until the `exec` or until it is thawed.
        #[expect(unsafe_code, reason = "a descriptor is known by its number only, on either side of an exec")]
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd) };
        if !self.is_at(fd) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(rustix::io::fcntl_setfd(fd, flags)?)
    }
}

/// The number of a device, as wide as any platform has it.
#[allow(clippy::unnecessary_cast, clippy::cast_sign_loss, reason = "its type differs between platforms")]
pub(crate) fn device(number: rustix::fs::Dev) -> u64 {
    number as u64
}

/// Whether a pipe goes through an `exec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passing {
    Through,
    Closed,
}

/// The descriptors from 3 on that are open in this process.
fn open_descriptors() -> Vec<RawFd> {
    // Where nothing lists them (no `/proc`), the numbers that are given out first are asked one by one.
    const ASKED: RawFd = 1024;
    let listed = ["/proc/self/fd", "/dev/fd"].iter().find_map(|dir| std::fs::read_dir(dir).ok());
    match listed {
        Some(entries) => entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect(),
        None => (3..ASKED).collect::<Vec<RawFd>>(),
    }
    .into_iter()
    .filter(|fd| *fd > 2)
    .collect()
}

/// Keeps what this process was started with from its children: every descriptor from 3 on is closed when a child's program
/// begins. Whoever started us waits for the end of a pipe that a background job would hold for an hour.
///
/// For the main function of a program, before it opens anything.
pub fn keep_from_children() {
    for fd in open_descriptors() {
        // SAFETY: only the flag of whatever has the number is changed, while nothing else runs; nothing is closed or kept.
        #[expect(unsafe_code, reason = "a descriptor one was started with is known by its number only")]
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let _ = rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC);
    }
}

/// Closes what this process was started with beyond its three streams.
///
/// For the main function of a program that is passed nothing else and outlives whoever started it, before it opens
/// anything.
pub fn close_foreign() {
    close_foreign_but(&[]);
}

/// The same for a program that is passed these as well.
pub fn close_foreign_but(passed: &[RawFd]) {
    for fd in open_descriptors().into_iter().filter(|fd| !passed.contains(fd)) {
        let _ = nix::unistd::close(fd);
    }
}

/// Takes a descriptor that a service manager passed on by its number; `None` when it is not open. It closes on `exec` from here
/// on.
///
/// For the main function of a program, once for each number, before it opens anything.
#[must_use]
pub fn take_passed(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: nothing was opened by this process yet, so whatever has the number was passed on.
    #[expect(unsafe_code, reason = "a descriptor that was passed on is known by its number only")]
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open, as its flags could be set; the caller takes each number once, and nobody else knows it.
    #[expect(unsafe_code, reason = "as above")]
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The pipes an earlier image passed on, to be taken once each.
#[derive(Debug)]
pub struct InheritedPipes {
    left: HashSet<RawFd>,
}

impl InheritedPipes {
    /// These. For the process that was started with them, once; what is not there is left out.
    #[must_use]
    pub(crate) fn these<'a>(pipes: impl Iterator<Item = &'a PassedPipe>) -> Self {
        let mut left = HashSet::new();
        for pipe in pipes.filter(|pipe| pipe.fd > 2) {
            // From here on no child of ours inherits it.
            if pipe.set_passing(Passing::Closed).is_ok() {
                left.insert(pipe.fd);
            }
        }
        Self { left }
    }

    /// None, for a dry run.
    #[must_use]
    pub fn none() -> Self {
        Self { left: HashSet::new() }
    }

    /// Takes one.
    pub fn take(&mut self, pipe: &PassedPipe) -> Option<OwnedFd> {
        if !self.left.remove(&pipe.fd) {
            return None;
        }
        // SAFETY: it was open and the named pipe when the table was made, which is done once, at the start; nobody else
        // knows the number, and it leaves the table with this.
        #[expect(unsafe_code, reason = "a descriptor is known by its number only, on either side of an exec")]
        Some(unsafe { OwnedFd::from_raw_fd(pipe.fd) })
    }
}

impl Drop for InheritedPipes {
    fn drop(&mut self) {
        for fd in self.left.drain() {
            // SAFETY: as in `take`.
            #[expect(unsafe_code, reason = "what nobody took is closed, so that its other end notices")]
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}
