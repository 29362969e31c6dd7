//! Where a daemon's socket may lie.
//!
//! Owns: the paths that are tried, in which order, and which directories a socket may lie in. May not know: sockets, the
//! process's environment (whoever asks hands the runtime directory in).
//!
//! ```text
//! --socket PATH                                     that and nothing else
//! <state directory>/daemon.sock                     unless it is too long for a socket
//! $XDG_RUNTIME_DIR/phone_opus-UID/HASH.sock         then, or where the file system has no sockets
//! /tmp/phone_opus-UID/HASH.sock                     then
//! ```
//!
//! HASH is made from the state directory's path, so that two daemons of one user never meet. Nobody else computes it: clients
//! read the record.
//!
//! Invariant: a socket lies in a directory that is ours, is no link, and that nobody else can enter. That is its guard; its
//! own mode is the second.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::base::state_dir::StateDir;

/// Bytes of a socket's path. The system takes 107 (103 on macOS), and silently cuts what is longer on some; a socket is bound
/// under a name that is 7 bytes longer before it gets its own.
pub const LONGEST: usize = if cfg!(target_os = "linux") { 100 } else { 96 };

/// Where a socket lies when neither the state directory nor a runtime directory can have it.
const LAST: &str = "/tmp";

/// A place that cannot have a socket.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// Sockets have short names.
    #[error("listen at {}: the path has {} bytes, and a socket's at most {LONGEST}", path.display(), path.as_os_str().len())]
    TooLong {
        /// Where.
        path: PathBuf,
    },
    /// It depends on the directory a process happens to be in.
    #[error("listen at {}: the path is not absolute", path.display())]
    Relative {
        /// Where.
        path: PathBuf,
    },
    /// The directory is no directory of ours alone.
    #[error("keep a socket in {}: {why}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// The paths to try, in this order.
///
/// # Errors
///
/// The path that was asked for cannot be a socket's.
pub fn candidates(
    state: &StateDir,
    asked: Option<&Path>,
    runtime: Option<&Path>,
    uid: u32,
) -> Result<Vec<PathBuf>, PathError> {
    if let Some(path) = asked {
        let path = path.to_owned();
        return match () {
            () if !path.is_absolute() => Err(PathError::Relative { path }),
            () if path.as_os_str().len() > LONGEST => Err(PathError::TooLong { path }),
            () => Ok(vec![path]),
        };
    }
    let alias = |base: &Path| base.join(format!("phone_opus-{uid}")).join(format!("{}.sock", hash(state.root())));
    let runtime = runtime.filter(|runtime| runtime.is_absolute());
    let all = [Some(state.daemon_socket()), runtime.map(alias), Some(alias(Path::new(LAST)))];
    Ok(all.into_iter().flatten().filter(|path| path.as_os_str().len() <= LONGEST).collect())
}

/// What tells state directories apart in one short word.
fn hash(root: &Path) -> String {
    let digest = Sha256::digest(root.as_os_str().as_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Makes the directory a socket is to lie in, or checks the one that is there. What it lies in itself has to be there.
///
/// # Errors
///
/// It is somebody else's, others can enter it, it is a link, or the system refused.
pub fn prepare(socket: &Path) -> Result<(), PathError> {
    let dir = socket.parent().unwrap_or(socket);
    let wrong = |why: String| PathError::Directory { dir: dir.to_owned(), why };
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(wrong(error.to_string())),
    }
    check(socket)
}

/// Checks the directory a socket lies in: a socket elsewhere may be anybody's, and is told nothing. Makes nothing.
///
/// # Errors
///
/// It is not there, somebody else's, others can enter it, it is a link, or the system refused.
pub fn check(socket: &Path) -> Result<(), PathError> {
    let dir = socket.parent().unwrap_or(socket);
    let wrong = |why: String| PathError::Directory { dir: dir.to_owned(), why };
    let found = fs::symlink_metadata(dir).map_err(|error| wrong(error.to_string()))?;
    let ours = rustix::process::geteuid().as_raw();
    match () {
        () if !found.is_dir() => Err(wrong("it is no directory (links are not followed)".to_owned())),
        () if found.uid() != ours => {
            Err(wrong(format!("it belongs to user id {} and this is user id {ours}", found.uid())))
        }
        () if found.mode() & 0o077 != 0 => {
            Err(wrong(format!("others can enter it (mode {:04o}); accepted: 0700", found.mode() & 0o7777)))
        }
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn state(bytes: usize) -> StateDir {
        StateDir::at(format!("/{}", "s".repeat(bytes - 1)))
    }

    #[test]
    fn a_path_too_long_for_a_socket_has_a_short_one_instead() {
        let run = Path::new("/run/user/1000");
        // `/daemon.sock` has twelve bytes.
        for (bytes, own) in [(10, true), (LONGEST - 12, true), (LONGEST - 11, false), (100, false), (300, false)] {
            let dir = state(bytes);
            let found = candidates(&dir, None, Some(run), 1000).expect("paths");
            assert_eq!(found.contains(&dir.daemon_socket()), own, "{bytes} bytes");
            assert!(found.iter().all(|path| path.as_os_str().len() <= LONGEST), "{found:?}");
            assert_eq!(found.len(), 2 + usize::from(own), "{found:?}");
            assert!(found[found.len() - 2].starts_with("/run/user/1000/phone_opus-1000"), "{found:?}");
            assert!(found[found.len() - 1].starts_with("/tmp/phone_opus-1000"), "{found:?}");
        }
    }

    #[test]
    fn short_names_differ_by_directory_and_by_nothing_else() {
        let short = |dir: &StateDir| candidates(dir, None, None, 7).expect("paths").pop().expect("one");
        assert_eq!(short(&state(200)), short(&state(200)));
        assert_ne!(short(&state(200)), short(&state(201)));
        assert_ne!(short(&StateDir::at("/größe")), short(&StateDir::at("/grosse")));
        // A runtime directory that cannot be one, or is itself too long, is passed over.
        let long = format!("/{}", "r".repeat(90));
        for runtime in ["relative", &long] {
            let found = candidates(&state(200), None, Some(Path::new(runtime)), 7).expect("paths");
            assert_eq!(found, [short(&state(200))]);
        }
    }

    #[test]
    fn a_path_that_was_asked_for_is_the_only_one() {
        let asked = |path: &str| candidates(&state(10), Some(Path::new(path)), None, 7);
        assert_eq!(asked("/a/b.sock").expect("a path"), [Path::new("/a/b.sock")]);
        assert!(matches!(asked("b.sock"), Err(PathError::Relative { .. })));
        let said = asked(&format!("/{}", "x".repeat(LONGEST))).expect_err("it is too long").to_string();
        assert!(said.contains("bytes") && said.contains("xxx"), "{said}");
    }

    #[test]
    fn a_socket_lies_where_nobody_else_can_enter() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let at = |name: &str| scratch.path().join(name).join("x.sock");
        prepare(&at("new")).expect("it is made");
        prepare(&at("new")).expect("it is there");
        assert_eq!(fs::metadata(scratch.path().join("new")).expect("it is there").mode() & 0o7777, 0o700);
        fs::create_dir(scratch.path().join("open")).expect("a directory");
        for mode in [0o755, 0o770, 0o701, 0o777] {
            fs::set_permissions(scratch.path().join("open"), Permissions::from_mode(mode)).expect("a mode");
            let said = prepare(&at("open")).expect_err("others can enter").to_string();
            assert!(said.contains("others can enter"), "{mode:o}: {said}");
        }
        symlink(scratch.path().join("new"), scratch.path().join("link")).expect("a link");
        assert!(prepare(&at("link")).expect_err("a link").to_string().contains("no directory"));
        fs::write(scratch.path().join("file"), "").expect("a file");
        assert!(prepare(&at("file")).expect_err("a file").to_string().contains("no directory"));
        assert!(prepare(&scratch.path().join("none").join("below").join("x.sock")).is_err(), "nothing is guessed");
    }
}
