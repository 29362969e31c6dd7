//! The running image as the program its children are started from.
//!
//! Owns: the system's name for it, the file it was called by where the system has none, and what stands in for it when its
//! file may not be run any more. May not know: what is started, or why.
//!
//! `/proc/self/exe` names what this process runs, whatever lies at its path by now: a file that was deleted, replaced or moved
//! is still the image. One thing it does not outlast: the file itself may lose the permission to be run (its mode, the options
//! of the file system it lies on). Its content can be read even then, so what is started is a copy of it in memory.
//!
//! Invariants: (1) as long as the image can be run, nothing is read, copied or compared; (2) nothing but the image's own content
//! is ever run in its place; (3) there is one copy, however many are started from it, and none once the image can be run again.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The running image, whatever lies at its path by now.
pub const IMAGE: &str = "/proc/self/exe";

/// This program, as its children are started from it: the running image itself where the system names it. A file that was put
/// in its place may be broken, or half written, or of a version that speaks otherwise to its children.
///
/// Where nothing names it (no `/proc`), it is the file that was called, found as a shell finds it.
#[must_use]
pub fn own_program() -> PathBuf {
    let called = || {
        let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        called(&std::env::args_os().next()?, std::env::var_os("PATH").as_deref(), &here)
    };
    let named = || std::env::current_exe().ok().or_else(called);
    running().or_else(named).unwrap_or_else(|| PathBuf::from(IMAGE))
}

/// The running image, where the system names it.
#[must_use]
pub fn running() -> Option<PathBuf> {
    Some(PathBuf::from(IMAGE)).filter(|image| image.exists())
}

/// The file of a program that was called by this word.
fn called(word: &OsStr, search: Option<&OsStr>, here: &Path) -> Option<PathBuf> {
    let path = Path::new(word);
    if path.components().count() > 1 || path.is_absolute() {
        return Some(here.join(path)).filter(|file| file.is_file());
    }
    std::env::split_paths(search?).map(|dir| here.join(dir).join(path)).find(|file| file.is_file())
}

/// Stands in for the image while it cannot be run. Clones share the copy.
#[derive(Debug, Clone, Default)]
pub struct StandIn(Arc<Mutex<Option<Arc<File>>>>);

impl StandIn {
    /// Starts something from this program by `start`, which is told the path to run. When the program is the running image
    /// and may not be run, `start` is called once more with another path to the same content. Reads the image then, some
    /// milliseconds long.
    ///
    /// # Errors
    ///
    /// What `start` says; where there can be no copy, what it said about the image.
    pub fn start<T>(&self, program: &Path, start: impl FnMut(&Path) -> io::Result<T>) -> io::Result<T> {
        self.start_where(may_be_run, program, start)
    }

    /// What else may be refused, such as the directory a child is to begin in, is refused in the same word.
    fn start_where<T>(
        &self,
        may_be_run: impl FnOnce(&Path) -> bool,
        program: &Path,
        mut start: impl FnMut(&Path) -> io::Result<T>,
    ) -> io::Result<T> {
        let refused = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        let failed = match start(program) {
            Err(error) if refused(&error) && program == Path::new(IMAGE) && !may_be_run(program) => error,
            started => {
                if started.is_ok() {
                    self.let_go();
                }
                return started;
            }
        };
        match self.copy() {
            // Resolved by the child, which has the descriptor until it runs the file.
            Ok(copy) => start(&path_of(&copy)),
            Err(error) => {
                tracing::warn!(%error, "the program's file may not be run any more, and there is no copy of it in memory");
                Err(failed)
            }
        }
    }

    fn copy(&self) -> io::Result<Arc<File>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copy) = &*kept {
            return Ok(Arc::clone(copy));
        }
        let copy = Arc::new(copied()?);
        tracing::warn!("the program's file may not be run any more; children are started from a copy of it in memory");
        *kept = Some(Arc::clone(&copy));
        Ok(copy)
    }

    fn let_go(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Whether this process may run a file: its mode and the options of where it lies.
fn may_be_run(program: &Path) -> bool {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    accessat(CWD, program, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

fn path_of(copy: &File) -> PathBuf {
    use std::os::fd::AsRawFd as _;
    PathBuf::from(format!("/proc/self/fd/{}", copy.as_raw_fd()))
}

/// The image in a file without a name that may be run by this user and changed by nobody.
#[cfg(target_os = "linux")]
fn copied() -> io::Result<File> {
    use std::os::unix::fs::PermissionsExt as _;

    use rustix::fs::{MemfdFlags, SealFlags};
    use rustix::io::Errno;
    let mut image = File::open(IMAGE)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = match rustix::fs::memfd_create(c"phone-opus", flags | MemfdFlags::EXEC) {
        // Kernels before 6.3 let every such file be run.
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"phone-opus", flags),
        made => made,
    };
    let mut copy = File::from(made?);
    copy.set_permissions(std::fs::Permissions::from_mode(0o500))?;
    let whole = image.metadata()?.len();
    if io::copy(&mut image, &mut copy)? != whole {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    rustix::fs::fcntl_add_seals(&copy, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(copy)
}

#[cfg(not(target_os = "linux"))]
fn copied() -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::Command;

    use super::*;

    /// A start of the image, which may be run or not; what was tried.
    fn start(stand_in: &StandIn, runs: bool) -> (Vec<PathBuf>, io::Result<()>) {
        let mut tried = Vec::new();
        let image = Path::new(IMAGE);
        let started = stand_in.start_where(
            |_| runs,
            image,
            |path| {
                tried.push(path.to_owned());
                if runs || path != image { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
            },
        );
        (tried, started)
    }

    #[test]
    fn a_copy_is_made_once_when_the_image_may_not_be_run_and_let_go_when_it_may() {
        let stand_in = StandIn::default();
        let kept = || stand_in.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (tried, started) = start(&stand_in, true);
        assert!(started.is_ok() && tried == [Path::new(IMAGE)] && kept().is_none(), "a start that works costs nothing");
        let (tried, started) = start(&stand_in, false);
        let copy = kept().expect("a copy");
        assert!(started.is_ok() && tried == [PathBuf::from(IMAGE), path_of(&copy)], "{tried:?}");
        assert!(start(&stand_in.clone(), false).1.is_ok());
        assert!(kept().is_some_and(|again| Arc::ptr_eq(&again, &copy)), "one copy, however many are started");
        assert!(start(&stand_in, true).1.is_ok() && kept().is_none());
    }

    #[test]
    fn another_program_has_no_stand_in_and_another_reason_is_told_as_it_is() {
        use io::ErrorKind::{NotFound, OutOfMemory, PermissionDenied, WouldBlock};
        let table = [
            ("/opt/phone-opus", false, PermissionDenied),
            // Of the image, but for another reason, such as the directory it is to begin in.
            (IMAGE, true, PermissionDenied),
            (IMAGE, false, NotFound),
            (IMAGE, false, WouldBlock),
            (IMAGE, false, OutOfMemory),
        ];
        for (program, runs, kind) in table {
            let mut tried = 0;
            let failed: io::Result<()> = StandIn::default().start_where(
                |_| runs,
                Path::new(program),
                |_| {
                    tried += 1;
                    Err(kind.into())
                },
            );
            assert_eq!((failed.map_err(|error| error.kind()), tried), (Err(kind), 1), "{program}, {runs}");
        }
    }

    #[test]
    fn the_copy_is_the_image_runs_and_cannot_be_changed() {
        use std::io::Write as _;
        let copy = match copied() {
            Ok(copy) => copy,
            // `vm.memfd_noexec` forbids it where it is 2.
            Err(error) => return eprintln!("skipped: no file in memory may be run here: {error}"),
        };
        assert_eq!(std::fs::read(path_of(&copy)).expect("read"), std::fs::read(IMAGE).expect("read"));
        assert!((&copy).write_all(b"x").is_err() && copy.set_len(0).is_err(), "it is sealed");
        let ran = Command::new(path_of(&copy)).args(["--exact", "--list", "no-such-test"]).output().expect("it runs");
        assert!(ran.status.success(), "{ran:?}");
    }
}
