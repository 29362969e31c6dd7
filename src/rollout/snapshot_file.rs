//! The file a snapshot is passed on in, and the words by which the next image finds it.
//!
//! Owns: a file that has no name while there is anything in it, the words for it on a command line, taking it once. May not
//! know: what is in it.
//!
//! Invariants: (1) no directory ever lists a byte of a snapshot: memory where the system has files there, sealed once it is
//! written; elsewhere a file that loses its name before it is written; (2) whatever becomes of an image, the file is gone
//! with the last descriptor of it; (3) the next image reads a descriptor only if the file behind it is the one that was
//! named.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags};
use rustix::io::{Errno, FdFlags};

use crate::base::descriptors::device;
use crate::base::state_dir::{HANDOVER, PRIVATE_FILE};

/// Longest snapshot that is read. What a session may hold is bounded well below it.
const MOST_BYTES: usize = 1 << 30;

/// Bytes read at a time.
const PIECE: usize = 64 * 1024;

/// What stands before a descriptor on a command line; anything else is a path, as an image of an older version names it.
const DESCRIPTOR: &str = "fd:";

/// Where a file without a name lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nameless {
    /// In memory, where that can be had; else in the directory.
    Anywhere,
    /// In the directory, as on a system without files in memory.
    InDirectory,
}

/// A snapshot in a file without a name.
#[derive(Debug, Clone)]
pub struct SnapshotFile {
    file: Arc<File>,
    device: u64,
    inode: u64,
}

impl SnapshotFile {
    /// One that holds these bytes, for as long as somebody has it open. Nobody can change them where it lies in memory.
    ///
    /// # Errors
    ///
    /// There is no room for it, or the directory cannot be used; nothing is left of it.
    pub fn holding(bytes: &[u8], dir: &Path, place: Nameless) -> io::Result<Self> {
        let in_memory = if place == Nameless::Anywhere { sealed(bytes) } else { Err(Errno::NOSYS.into()) };
        let file = match in_memory {
            Ok(file) => file,
            Err(error) => {
                tracing::debug!(%error, "a snapshot is not held in memory");
                unlinked(bytes, dir)?
            }
        };
        let found = rustix::fs::fstat(&file)?;
        Ok(Self { file: Arc::new(file), device: device(found.st_dev), inode: found.st_ino })
    }

    /// The file, for a process that has it as its standard input.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// What names it to a process that has it at this number: to be given after `--restore`.
    #[must_use]
    pub fn at(&self, fd: RawFd) -> Restore {
        Restore::Descriptor { fd, device: self.device, inode: self.inode }
    }

    /// What names it to the next image of this process.
    pub(crate) fn here(&self) -> Restore {
        self.at(self.file.as_raw_fd())
    }

    /// Lets it go through an `exec`, or not.
    pub(crate) fn set_passing(&self, through: bool) -> io::Result<()> {
        let flags = if through { FdFlags::empty() } else { FdFlags::CLOEXEC };
        Ok(rustix::io::fcntl_setfd(&*self.file, flags)?)
    }
}

/// In memory, and never changed again.
#[cfg(target_os = "linux")]
fn sealed(bytes: &[u8]) -> io::Result<File> {
    use rustix::fs::{MemfdFlags, SealFlags};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = match rustix::fs::memfd_create(c"phone-opus-snapshot", flags | MemfdFlags::NOEXEC_SEAL) {
        // Kernels before 6.3 do not know that nobody runs it.
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"phone-opus-snapshot", flags),
        made => made,
    };
    let mut file = File::from(made?);
    file.set_permissions(Permissions::from_mode(PRIVATE_FILE))?;
    file.write_all(bytes)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

#[cfg(not(target_os = "linux"))]
fn sealed(_bytes: &[u8]) -> io::Result<File> {
    Err(Errno::NOSYS.into())
}

/// In this directory, without a name from before the first byte. What is left by an image that dies in between is empty, and
/// the sweep of the state directory removes it.
fn unlinked(bytes: &[u8], dir: &Path) -> io::Result<File> {
    let path = dir.join(format!("{HANDOVER}{}.json", uuid::Uuid::new_v4()));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(PRIVATE_FILE)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(&path)?;
    fs::remove_file(&path)?;
    file.write_all(bytes)?;
    // It is not synced: whoever reads it does so before this machine could be switched off and on.
    Ok(file)
}

/// Where the snapshot lies that a program was started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restore {
    /// In an open file without a name.
    Descriptor {
        /// Its number in this process.
        fd: RawFd,
        /// The device it lies on.
        device: u64,
        /// Its number there.
        inode: u64,
    },
    /// In a file with a name: a version that was replaced by this one still wrote such files.
    Path(PathBuf),
}

impl fmt::Display for Restore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Descriptor { fd, device, inode } => write!(f, "{DESCRIPTOR}{fd}:{device}:{inode}"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

impl Restore {
    /// What the word after `--restore` says.
    #[must_use]
    pub fn parse(word: &OsStr) -> Self {
        let numbers = word.to_str().and_then(|text| text.strip_prefix(DESCRIPTOR));
        let mut numbers = numbers.into_iter().flat_map(|text| text.split(':'));
        let fd = numbers.next().and_then(|text| text.parse::<RawFd>().ok()).filter(|fd| *fd >= 0);
        let mut next = || numbers.next().and_then(|text| text.parse::<u64>().ok());
        match (fd, next(), next()) {
            (Some(fd), Some(device), Some(inode)) => Self::Descriptor { fd, device, inode },
            _ => Self::Path(PathBuf::from(word)),
        }
    }

    /// Reads it, and leaves it for whoever takes it.
    pub(crate) fn bytes(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::Path(path) => of_path(path),
            Self::Descriptor { fd, device, inode } => with(*fd, (*device, *inode), whole),
        }
    }

    /// Reads it and makes sure that it is not read again: a name is removed, a descriptor closed.
    pub(crate) fn take(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::Path(path) => {
                let text = of_path(path);
                fs::remove_file(path)?;
                text
            }
            Self::Descriptor { fd, .. } => {
                let text = self.bytes()?;
                if *fd > 2 {
                    close(*fd);
                }
                Ok(text)
            }
        }
    }
}

/// Closes what was read: the image before this one left it for us alone, and nobody else knows the number.
fn close(fd: RawFd) {
    // SAFETY: it was open and the file that was named a moment ago, and nobody but us has heard of it since.
    #[expect(unsafe_code, reason = "a descriptor is known by its number only, on either side of an exec")]
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    drop(file);
}

/// Does something with a descriptor that is known by its number, where this file is behind it.
fn with<T>(fd: RawFd, (on, number): (u64, u64), act: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
    // SAFETY: it is borrowed for this call only; where nothing is open under the number the first look at it fails.
    #[expect(unsafe_code, reason = "a descriptor is known by its number only, on either side of an exec")]
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let found = rustix::fs::fstat(fd)?;
    let is_it = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
        && (device(found.st_dev), found.st_ino) == (on, number);
    if is_it { act(fd) } else { Err(io::Error::new(io::ErrorKind::NotFound, "another file is open there")) }
}

/// The whole of a file, wherever its descriptor stands: a trial may have shared it.
fn whole(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut piece = vec![0; PIECE];
    while text.len() < MOST_BYTES {
        match rustix::io::pread(fd.as_fd(), &mut piece[..], text.len() as u64) {
            Ok(0) => break,
            Ok(read) => text.extend_from_slice(&piece[..read]),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(text)
}

fn of_path(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no plain file"));
    }
    let mut text = Vec::new();
    let _read = file.take(MOST_BYTES as u64).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_file_without_a_name_is_private_is_listed_nowhere_and_is_read_by_its_number_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        for place in [Nameless::Anywhere, Nameless::InDirectory] {
            // More than a pipe, a page and a piece.
            let bytes: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
            let file = SnapshotFile::holding(&bytes, dir.path(), place).expect("it is held");
            assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0, "{place:?}");
            let found = file.file().metadata().expect("a file");
            assert_eq!((found.mode() & 0o777, found.nlink()), (0o600, 0), "{place:?}");
            let word = file.here().to_string();
            let read = Restore::parse(OsStr::new(&word));
            assert_eq!(read, file.here());
            assert_eq!(read.bytes().expect("read"), bytes, "{place:?}");
            assert_eq!(read.bytes().expect("read again"), bytes, "{place:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_lies_in_memory_is_never_changed_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = SnapshotFile::holding(b"it", dir.path(), Nameless::Anywhere).expect("it is held");
        let mut handle = &**file.file();
        assert!(handle.write_all(b"more").is_err());
        assert!(file.file().set_len(0).is_err());
        assert_eq!(file.here().bytes().expect("read"), b"it");
    }

    #[test]
    fn what_is_behind_a_number_is_read_only_if_it_is_the_file_that_was_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let one = SnapshotFile::holding(b"one", dir.path(), Nameless::Anywhere).expect("it is held");
        let two = SnapshotFile::holding(b"two", dir.path(), Nameless::Anywhere).expect("it is held");
        let Restore::Descriptor { fd, .. } = one.here() else { unreachable!("it has a descriptor") };
        let (pipe, _end) = rustix::pipe::pipe().expect("a pipe");
        let folder = File::open(dir.path()).expect("opened");
        let at = |file: &SnapshotFile, fd: RawFd| file.at(fd).bytes().is_ok();
        assert!(at(&one, fd));
        assert!(!at(&two, fd), "another file");
        assert!(!at(&one, pipe.as_raw_fd()) && !at(&one, folder.as_raw_fd()), "no file");
        assert!(!at(&one, 999_999), "nothing open");
    }

    #[test]
    fn a_word_is_a_descriptor_or_else_a_path() {
        let path = |text: &str| Restore::Path(PathBuf::from(text));
        for text in ["/state/handover-1.json", "", "fd:", "fd:7", "fd:7:1", "fd:x:1:2", "fd:-1:1:2", "fd", "fd:7:1:x"] {
            assert_eq!(Restore::parse(OsStr::new(text)), path(text), "{text}");
        }
        assert_eq!(Restore::parse(OsStr::new("fd:7:1:2")), Restore::Descriptor { fd: 7, device: 1, inode: 2 });
    }

    #[test]
    fn a_named_file_is_gone_once_it_is_taken_and_what_is_no_file_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("handover-old.json");
        fs::write(&path, "text").expect("written");
        let restore = Restore::Path(path.clone());
        assert_eq!(restore.bytes().expect("read"), b"text");
        assert_eq!(restore.take().expect("taken"), b"text");
        assert!(restore.take().is_err() && !path.exists());
        // A pipe would keep the one who opens it waiting for ever.
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600)).expect("a pipe");
        assert!(restore.bytes().is_err());
    }
}
