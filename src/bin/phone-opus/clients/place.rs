//! A client's file on disk: found, read and replaced.
//!
//! Owns: which file it is, whose it may be, and that it is there whole or as it was. May not know: what is in it.
//!
//! Invariants: (1) a file is replaced by a rename in its own directory, after what is new was synced, with the mode and the group
//! of the old one; (2) what is replaced is what was read, byte for byte, and two of us take turns: the directory is locked from
//! the last look to the rename; (3) a user's link is followed, and its file is replaced where that lies; of a project nothing is
//! read or written outside of its directory, whatever links lead there meanwhile; (4) a file of somebody else, one with another
//! name, one that is too large and one that is no file are left alone.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Gid, Mode, OFlags, Stat, fchmod, fchown, flock, fstat, mkdirat, openat,
    renameat, unlinkat,
};
use rustix::io::Errno;

/// Bytes a client's file may have. Claude Code's grows with its history, to some hundred kilobytes; what is larger is no file
/// that people edit.
pub(super) const MOST: usize = 4 * 1024 * 1024;

/// How long another one of us may take for its own rename.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a client's file is looked for.
#[derive(Debug, Clone)]
pub(super) enum Where {
    /// An absolute path.
    User(PathBuf),
    /// A path below a project's directory.
    Project { root: PathBuf, below: PathBuf },
}

impl Where {
    /// As people write it.
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::User(path) => path.clone(),
            Self::Project { root, below } => root.join(below),
        }
    }

    /// Whether something is there, if only a link.
    pub(super) fn is_there(&self) -> bool {
        self.path().symlink_metadata().is_ok()
    }
}

/// Why a file is left alone.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    #[error("use {}: it is a link that leads nowhere", .0.display())]
    Dangling(PathBuf),
    #[error("use {}: a link leads out of the project", .0.display())]
    OutOfProject(PathBuf),
    #[error("use {}: it is no file", .0.display())]
    NoFile(PathBuf),
    #[error("use {}: it belongs to another user", .0.display())]
    Foreign(PathBuf),
    #[error("use {}: the file has another name elsewhere (a hard link), and the two would become different files", .0.display())]
    Linked(PathBuf),
    #[error("use {}: it has more than {MOST} bytes", .0.display())]
    TooLarge(PathBuf),
    #[error("read {}: it is not UTF-8, from byte {at} on", path.display())]
    NotText { path: PathBuf, at: usize },
    #[error("change {}: somebody has changed it meanwhile; nothing was written, so run this again", .0.display())]
    Changed(PathBuf),
    #[error("change {}: another process keeps its directory locked", .0.display())]
    Busy(PathBuf),
    #[error("{verb} {}: {source}", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
}

/// A file that was found, and the directory it is in.
pub(super) struct Found {
    /// As people write it.
    path: PathBuf,
    /// The file itself, with all links followed.
    real: PathBuf,
    /// The deepest directory on the way that is there.
    dir: OwnedFd,
    /// Directories below it that are not there yet.
    missing: Vec<OsString>,
    name: OsString,
    /// Mode of what is made anew.
    fresh: Fresh,
    /// What the file says, if there is one.
    pub(super) text: Option<String>,
}

/// The modes of a new file and of new directories.
#[derive(Debug, Clone, Copy)]
struct Fresh {
    file: Mode,
    dir: Mode,
}

impl Fresh {
    /// The user's alone.
    const PRIVATE: Self = Self { file: ALONE, dir: Mode::RWXU };
    /// As the user's mask has it.
    const SHARED: Self = Self {
        file: ALONE.union(Mode::RGRP).union(Mode::WGRP).union(Mode::ROTH).union(Mode::WOTH),
        dir: Mode::RWXU.union(Mode::RWXG).union(Mode::RWXO),
    };
}

const ALONE: Mode = Mode::RUSR.union(Mode::WUSR);

fn io_error<'p>(verb: &'static str, path: &'p Path) -> impl Fn(Errno) -> PlaceError + 'p {
    move |error| PlaceError::Io { verb, path: path.to_owned(), source: error.into() }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Found {
    /// Finds and reads it.
    pub(super) fn find(place: &Where) -> Result<Self, PlaceError> {
        let path = place.path();
        let (existing, missing, name) = resolve(&path)?;
        let (dir, fresh) = match place {
            Where::User(_) => (open_dir(&existing)?, Fresh::PRIVATE),
            Where::Project { root, .. } => {
                let root = root.canonicalize().map_err(|source| PlaceError::Io {
                    verb: "find",
                    path: root.clone(),
                    source,
                })?;
                let below = existing.strip_prefix(&root).map_err(|_| PlaceError::OutOfProject(path.clone()))?;
                (walk(&root, below, &path)?, Fresh::SHARED)
            }
        };
        let real = missing.iter().fold(existing, |path, part| path.join(part)).join(&name);
        let mut found = Self { path, real, dir, missing, name, fresh, text: None };
        if found.missing.is_empty() {
            found.text = found.read()?.map(|(text, _)| text);
        }
        Ok(found)
    }

    /// As people write it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file itself, which a link may lead to.
    pub(super) fn real(&self) -> &Path {
        &self.real
    }

    /// What it says now, and what it is.
    fn read(&self) -> Result<Option<(String, Stat)>, PlaceError> {
        let io = io_error("read", &self.path);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match openat(&self.dir, &self.name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(PlaceError::Changed(self.path.clone())),
            Err(Errno::NXIO) => return Err(PlaceError::NoFile(self.path.clone())),
            Err(error) => return Err(io(error)),
        };
        let stat = fstat(&file).map_err(&io)?;
        self.is_usable(&stat)?;
        let mut bytes = Vec::new();
        let most = u64::try_from(MOST + 1).unwrap_or(u64::MAX);
        File::from(file).take(most).read_to_end(&mut bytes).map_err(|source| PlaceError::Io {
            verb: "read",
            path: self.path.clone(),
            source,
        })?;
        if bytes.len() > MOST {
            return Err(PlaceError::TooLarge(self.path.clone()));
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Some((text, stat))),
            Err(error) => Err(PlaceError::NotText { path: self.path.clone(), at: error.utf8_error().valid_up_to() }),
        }
    }

    /// What the file is, which still says what was read at first.
    fn as_shown(&self) -> Result<Option<Stat>, PlaceError> {
        let now = self.read()?;
        if now.as_ref().map(|(text, _)| text) != self.text.as_ref() {
            return Err(PlaceError::Changed(self.path.clone()));
        }
        Ok(now.map(|(_, stat)| stat))
    }

    fn is_usable(&self, stat: &Stat) -> Result<(), PlaceError> {
        let path = || self.path.clone();
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            Err(PlaceError::NoFile(path()))
        } else if stat.st_uid != rustix::process::geteuid().as_raw() {
            Err(PlaceError::Foreign(path()))
        } else if stat.st_nlink > 1 {
            Err(PlaceError::Linked(path()))
        } else if usize::try_from(stat.st_size).is_ok_and(|size| size > MOST) {
            Err(PlaceError::TooLarge(path()))
        } else {
            Ok(())
        }
    }

    /// Puts a text in its place, or takes the file away. `about_to` is called when nothing but the disk can go wrong any more.
    pub(super) fn replace(
        mut self,
        new: Option<&str>,
        about_to: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), PlaceError> {
        self.make_directories()?;
        let lock = self.lock()?;
        let old = self.as_shown()?;
        let announce = || {
            about_to().map_err(|source| PlaceError::Io {
                verb: "remember what is written to",
                path: self.path.clone(),
                source,
            })
        };
        match new {
            Some(text) => self.write(text, old.as_ref(), announce)?,
            None => {
                announce()?;
                self.as_shown()?;
                unlinkat(&self.dir, &self.name, AtFlags::empty()).map_err(io_error("remove", &self.path))?;
            }
        }
        // Without this the rename may be lost with the power, and then the old file is there: no reason to fail.
        let _ = rustix::fs::fsync(&self.dir);
        drop(lock);
        Ok(())
    }

    fn write(
        &self,
        text: &str,
        old: Option<&Stat>,
        announce: impl FnOnce() -> Result<(), PlaceError>,
    ) -> Result<(), PlaceError> {
        let io = io_error("write", &self.path);
        let mut name = OsString::from(".");
        name.push(&self.name);
        name.push(format!(".phone-opus-{}", uuid::Uuid::new_v4().simple()));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Its mode is set before anybody can read it.
        let mode = old.map_or(self.fresh.file, |_| ALONE);
        let file = openat(&self.dir, &name, flags, mode).map_err(&io)?;
        let filled = self.fill(file, text, old).and_then(|()| announce());
        // Both wait for the disk, and a client may write its own file meanwhile.
        let written = filled.and_then(|()| self.as_shown()).and_then(|_| self.put_in_place(&name, old.is_some()));
        if written.is_err() {
            let _ = unlinkat(&self.dir, &name, AtFlags::empty());
        }
        written
    }

    fn fill(&self, file: OwnedFd, text: &str, old: Option<&Stat>) -> Result<(), PlaceError> {
        let io = io_error("write", &self.path);
        if let Some(old) = old {
            let is = fstat(&file).map_err(&io)?;
            if is.st_gid != old.st_gid {
                fchown(&file, None, Some(Gid::from_raw(old.st_gid)))
                    .map_err(io_error("keep the group of", &self.path))?;
            }
            fchmod(&file, Mode::from_raw_mode(old.st_mode)).map_err(&io)?;
        }
        let mut file = File::from(file);
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|source| PlaceError::Io {
            verb: "write",
            path: self.path.clone(),
            source,
        })
    }

    /// The rename. Where there was no file, one that has come meanwhile is not replaced.
    fn put_in_place(&self, name: &OsStr, replaces: bool) -> Result<(), PlaceError> {
        let renamed = if replaces {
            renameat(&self.dir, name, &self.dir, &self.name)
        } else {
            match rename_to_nobodys(&self.dir, name, &self.name) {
                // A file system without this: it was looked at a moment ago, under the lock.
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => renameat(&self.dir, name, &self.dir, &self.name),
                renamed => renamed,
            }
        };
        match renamed {
            Err(Errno::EXIST) => Err(PlaceError::Changed(self.path.clone())),
            other => other.map_err(io_error("write", &self.path)),
        }
    }

    fn make_directories(&mut self) -> Result<(), PlaceError> {
        for part in std::mem::take(&mut self.missing) {
            let io = io_error("make the directory of", &self.path);
            match mkdirat(&self.dir, &part, self.fresh.dir) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(io(error)),
            }
            self.dir = openat(&self.dir, &part, DIRECTORY, Mode::empty()).map_err(io)?;
        }
        Ok(())
    }

    /// Waits for its turn. Where a file system has no such locks, the look before the rename is all there is.
    fn lock(&self) -> Result<Option<OwnedFd>, PlaceError> {
        let until = Instant::now() + PATIENCE;
        let io = io_error("lock the directory of", &self.path);
        // A lock belongs to the open directory, so it is opened once more for this.
        let dir = openat(&self.dir, ".", DIRECTORY, Mode::empty()).map_err(&io)?;
        loop {
            match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(dir)),
                Err(Errno::WOULDBLOCK) if Instant::now() >= until => return Err(PlaceError::Busy(self.path.clone())),
                Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(5)),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::BADF | Errno::INVAL) => return Ok(None),
                Err(error) => return Err(io(error)),
            }
        }
    }
}

#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn rename_to_nobodys(dir: &OwnedFd, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
    rustix::fs::renameat_with(dir, from, dir, to, rustix::fs::RenameFlags::NOREPLACE)
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn rename_to_nobodys(_dir: &OwnedFd, _from: &OsStr, _to: &OsStr) -> Result<(), Errno> {
    Err(Errno::NOSYS)
}

/// The deepest directory that is there, with links followed; the directories below it that are not; and the file's own name.
fn resolve(path: &Path) -> Result<(PathBuf, Vec<OsString>, OsString), PlaceError> {
    let failed = |source| PlaceError::Io { verb: "find", path: path.to_owned(), source };
    let no_name = || failed(io::ErrorKind::InvalidInput.into());
    match path.canonicalize() {
        Ok(real) => {
            let name = real.file_name().ok_or_else(no_name)?.to_owned();
            let dir = real.parent().ok_or_else(no_name)?.to_owned();
            return Ok((dir, Vec::new(), name));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let name = path.file_name().ok_or_else(no_name)?.to_owned();
    let mut missing = Vec::new();
    // Something without a way to its end is a link.
    let mut dir = path;
    loop {
        if dir.symlink_metadata().is_ok() {
            return Err(PlaceError::Dangling(dir.to_owned()));
        }
        dir = dir.parent().ok_or_else(no_name)?;
        match dir.canonicalize() {
            Ok(real) => {
                missing.reverse();
                return Ok((real, missing, name));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                missing.push(dir.file_name().ok_or_else(no_name)?.to_owned());
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, PlaceError> {
    openat(CWD, path, DIRECTORY, Mode::empty()).map_err(io_error("open the directory", path))
}

/// Goes down from a project's directory step by step: a link that was put there since the path was resolved leads nowhere.
fn walk(root: &Path, below: &Path, path: &Path) -> Result<OwnedFd, PlaceError> {
    let mut dir = open_dir(root)?;
    for part in below.components() {
        let Component::Normal(part) = part else { return Err(PlaceError::OutOfProject(path.to_owned())) };
        dir = match openat(&dir, part, DIRECTORY, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(PlaceError::OutOfProject(path.to_owned())),
            Err(error) => return Err(io_error("open", path)(error)),
        };
    }
    Ok(dir)
}
