//! A listening socket in the file system.
//!
//! Owns: making it so that nobody can come in before it is closed to others, putting it in the place of one that was left
//! behind, knowing it again, taking it away. May not know: who accepts, which paths are tried (`paths.rs`).
//!
//! ```text
//! bind PATH.xxxxxx ─▶ mode 0600 ─▶ listen ─▶ rename to PATH
//! ```
//!
//! A socket that is bound and does not listen yet refuses everybody, so no umask is needed and there is no moment in which
//! others could connect. The rename is atomic: a client finds the old one, which refuses, or the new one, which serves.
//!
//! Invariants, for the one process that may listen there (a daemon holds its lock): (1) nothing is replaced but a socket of ours nobody listens on, or a link;
//! (2) nothing is unlinked but the very socket that was bound here, by device and inode.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketType, bind, listen, sockopt};
use serde::{Deserialize, Serialize};

use super::paths::{self, PathError};
use super::reach::{self, Reached};
use crate::base::ids::JobId;

/// Clients that may wait at the door. As many as may be connected; the system cuts it to what it allows.
const BACKLOG: i32 = 1024;

/// Letters of the name a socket is bound under.
const PASSING: usize = 6;

/// A socket that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The place cannot have one.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Another process listens there.
    #[error("listen at {}: another process does", path.display())]
    Taken {
        /// Where.
        path: PathBuf,
    },
    /// Something that is not ours to replace has the name.
    #[error("listen at {}: {what} has this name, and is not replaced", path.display())]
    Occupied {
        /// Where.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// What was passed on is no socket of ours to listen at.
    #[error("use the socket that was passed on: it {why}")]
    Passed {
        /// What is wrong with it.
        why: &'static str,
    },
    /// The system refused.
    #[error("{doing} {}: {errno}", path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's word.
        errno: Errno,
    },
    /// No path could be used.
    #[error("listen anywhere: {}", tried.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Nowhere {
        /// What was tried, in this order, and what came of each.
        tried: Vec<ListenError>,
    },
}

impl ListenError {
    /// Whether another path may do: the directory cannot be had, or its file system has no sockets.
    fn is_of_the_place(&self) -> bool {
        match self {
            Self::Path(_) => true,
            Self::Io { errno, .. } => {
                // Two names of one number here, two numbers elsewhere.
                *errno == Errno::NOTSUP || matches!(*errno, Errno::OPNOTSUPP | Errno::IO | Errno::NAMETOOLONG)
            }
            Self::Taken { .. } | Self::Occupied { .. } | Self::Passed { .. } | Self::Nowhere { .. } => false,
        }
    }
}

/// A socket in the file system, by what it is known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketPlace {
    /// Its path, absolute.
    pub path: PathBuf,
    /// The device it lies on.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

impl SocketPlace {
    /// What lies at this path.
    fn of(path: PathBuf) -> io::Result<Self> {
        let found = fs::symlink_metadata(&path)?;
        Ok(Self { device: found.dev(), inode: found.ino(), path })
    }

    /// Whether this very socket is still there. What keeps us from looking is no proof that it is gone.
    #[must_use]
    pub fn is_there(&self) -> bool {
        match Self::of(self.path.clone()) {
            Ok(found) => found == *self,
            Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        }
    }

    /// Takes this very socket away. What somebody else put in its place stays.
    ///
    /// Between the look and the unlinking only who holds the daemon's lock could put another one there, which is us.
    pub fn unlink(&self) {
        if Self::of(self.path.clone()).is_ok_and(|found| found == *self) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A listening socket. Closing it takes nothing away from the file system.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    place: SocketPlace,
}

impl Listener {
    /// Listens at the first of these paths that can have a socket. Only for who holds the daemon's lock. The socket does not
    /// block and closes on `exec`.
    ///
    /// # Errors
    ///
    /// Another process listens at one of them, something else has the name, the system refused, or none can have a socket.
    pub fn bind_first(paths: &[PathBuf]) -> Result<Self, ListenError> {
        Self::bind_first_where(paths, || Ok(()))
    }

    /// The same, where something else than the system may refuse each of them first, with the system's word for it.
    ///
    /// # Errors
    ///
    /// As [`Listener::bind_first`].
    pub fn bind_first_where(
        paths: &[PathBuf],
        mut may: impl FnMut() -> Result<(), Errno>,
    ) -> Result<Self, ListenError> {
        let mut tried = Vec::new();
        for path in paths {
            let refused = |errno| ListenError::Io { doing: "listen at", path: path.clone(), errno };
            match may().map_err(refused).and_then(|()| Self::bind(path)) {
                Err(error) if error.is_of_the_place() => tried.push(error),
                bound => return bound,
            }
        }
        match tried.pop() {
            Some(only) if tried.is_empty() => Err(only),
            Some(last) => {
                tried.push(last);
                Err(ListenError::Nowhere { tried })
            }
            None => Err(ListenError::Nowhere { tried }),
        }
    }

    /// Listens at this path. As [`Listener::bind_first`].
    ///
    /// # Errors
    ///
    /// As [`Listener::bind_first`].
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        paths::prepare(path)?;
        make_way(path)?;
        let mut passing = path.as_os_str().to_owned();
        passing.push(".");
        passing.push(&JobId::random().to_string()[..PASSING]);
        let passing = PathBuf::from(passing);
        let io = |doing| move |errno: Errno| ListenError::Io { doing, path: path.to_owned(), errno };
        let socket = reach::stream_socket().map_err(io("make a socket for"))?;
        let address = SocketAddrUnix::new(&passing).map_err(io("listen at"))?;
        bind(&socket, &address).map_err(io("listen at"))?;
        let named = rustix::fs::chmod(&passing, Mode::from_raw_mode(0o600))
            .map_err(io("set the mode of"))
            .and_then(|()| listen(&socket, BACKLOG).map_err(io("listen at")))
            .and_then(|()| rustix::io::ioctl_fionbio(&socket, true).map_err(io("listen at")))
            .and_then(|()| SocketPlace::of(passing.clone()).map_err(|error| io("look at")(errno(&error))))
            .and_then(|place| match fs::rename(&passing, path) {
                Ok(()) => Ok(SocketPlace { path: path.to_owned(), ..place }),
                Err(error) => Err(io("give its name to")(errno(&error))),
            });
        match named {
            Ok(place) => Ok(Self { socket, place }),
            Err(error) => {
                // Bound by us a moment ago, under a name nobody guesses.
                let _ = fs::remove_file(&passing);
                Err(error)
            }
        }
    }

    /// A socket that a service manager made, named and passed on; its name is that one's to look after.
    ///
    /// # Errors
    ///
    /// It is no Unix stream socket, does not listen, or has no name a client could connect to.
    pub fn passed(socket: OwnedFd) -> Result<Self, ListenError> {
        let wrong = |why| ListenError::Passed { why };
        let address = rustix::net::getsockname(&socket).map_err(|_| wrong("is no socket"))?;
        let address = SocketAddrUnix::try_from(address).map_err(|_| wrong("is no Unix socket"))?;
        if sockopt::socket_type(&socket) != Ok(SocketType::STREAM) {
            return Err(wrong("is no stream socket"));
        }
        if !is_listening(&socket) {
            return Err(wrong("does not listen"));
        }
        let path = address.path_bytes().map(|bytes| PathBuf::from(OsStr::from_bytes(bytes)));
        let Some(path) = path.filter(|path| path.is_absolute()) else {
            return Err(wrong("has no path"));
        };
        rustix::io::ioctl_fionbio(&socket, true)
            .and_then(|()| rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC))
            .map_err(|errno| ListenError::Io { doing: "listen at", path: path.clone(), errno })?;
        // It may have been removed; whoever made it makes it again.
        let place = SocketPlace::of(path.clone()).unwrap_or(SocketPlace { path, device: 0, inode: 0 });
        Ok(Self { socket, place })
    }

    /// Where it lies.
    #[must_use]
    pub const fn place(&self) -> &SocketPlace {
        &self.place
    }

    /// The same socket once more.
    ///
    /// # Errors
    ///
    /// The system refused.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, place: self.place.clone() })
    }

    /// The socket, for who accepts.
    #[must_use]
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether a socket listens, where the system says.
#[cfg(target_os = "linux")]
fn is_listening(socket: &OwnedFd) -> bool {
    sockopt::socket_acceptconn(socket) == Ok(true)
}

/// Whether a socket listens: launchd passes on no other.
#[cfg(not(target_os = "linux"))]
fn is_listening(_socket: &OwnedFd) -> bool {
    true
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Sees to it that what has the name may be replaced.
fn make_way(path: &Path) -> Result<(), ListenError> {
    let occupied = |what: &str| Err(ListenError::Occupied { path: path.to_owned(), what: what.to_owned() });
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ListenError::Io { doing: "look at", path: path.to_owned(), errno: errno(&error) }),
    };
    let kind = found.file_type();
    if found.uid() != rustix::process::geteuid().as_raw() {
        return occupied("something of another user");
    }
    match () {
        () if kind.is_symlink() => Ok(()),
        () if kind.is_dir() => occupied("a directory"),
        () if kind.is_fifo() => occupied("a pipe"),
        () if !kind.is_socket() => occupied("a file"),
        () => match reach::connect(path) {
            Reached::Absent => Ok(()),
            Reached::There(_) | Reached::Busy => Err(ListenError::Taken { path: path.to_owned() }),
            Reached::Denied => occupied("a socket that this process may not connect to"),
            Reached::Failed(errno) => {
                Err(ListenError::Io { doing: "find out whether anybody listens at", path: path.to_owned(), errno })
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let path = scratch.path().join("ours").join("daemon.sock");
        paths::prepare(&path).expect("a directory of ours");
        (scratch, path)
    }

    fn is_served(path: &Path) -> bool {
        matches!(reach::connect(path), Reached::There(_))
    }

    fn names(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path.parent().expect("a directory")).expect("its entries");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn it_is_ours_alone_and_leaves_nothing_behind() {
        let (_scratch, path) = scratch();
        let listener = Listener::bind(&path).expect("it listens");
        assert_eq!(fs::metadata(&path).expect("it is there").mode() & 0o777, 0o600);
        assert!(rustix::io::fcntl_getfd(&listener).expect("flags").contains(rustix::io::FdFlags::CLOEXEC));
        assert!(is_served(&path) && listener.place().is_there());
        assert_eq!(names(&path), ["daemon.sock"]);
        listener.place().unlink();
        assert!(!listener.place().is_there() && names(&path).is_empty());
    }

    #[test]
    fn what_was_left_behind_is_replaced_and_what_is_not_ours_is_not() {
        let (_scratch, path) = scratch();
        // A socket whose daemon was killed.
        drop(UnixListener::bind(&path).expect("a socket"));
        let left = SocketPlace::of(path.clone()).expect("it is there");
        let first = Listener::bind(&path).expect("it replaces what was left");
        assert_ne!(first.place().inode, left.inode);
        // One that lives.
        assert!(matches!(Listener::bind(&path), Err(ListenError::Taken { .. })));
        assert!(is_served(&path) && first.place().is_there(), "the living one was displaced");
        first.place().unlink();
        drop(first);
        // A link, even to something of value: the link goes, and what it leads to stays.
        let value = path.with_file_name("value");
        fs::write(&value, "kept").expect("a file");
        symlink(&value, &path).expect("a link");
        let second = Listener::bind(&path).expect("it replaces a link");
        assert_eq!(fs::read_to_string(&value).expect("it is there"), "kept");
        second.place().unlink();
        type Make = fn(&Path);
        let others: [(Make, &str); 3] = [
            (|path| fs::create_dir(path).expect("a directory"), "a directory"),
            (|path| fs::write(path, "").expect("a file"), "a file"),
            (|path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe"), "a pipe"),
        ];
        for (make, what) in others {
            make(&path);
            let said = Listener::bind(&path).expect_err(what).to_string();
            assert!(said.contains(what) && said.contains("is not replaced"), "{said}");
            assert_eq!(names(&path).iter().filter(|name| name.starts_with("daemon.sock.")).count(), 0);
            if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) }.expect("it was there");
        }
    }

    #[test]
    fn an_old_one_takes_nothing_of_a_new_one_away() {
        let (_scratch, path) = scratch();
        let old = Listener::bind(&path).expect("it listens");
        let gone = old.place().clone();
        drop(old);
        let new = Listener::bind(&path).expect("it listens in its place");
        assert!(!gone.is_there());
        gone.unlink();
        assert!(new.place().is_there() && is_served(&path), "the new one was taken away");
    }

    #[test]
    fn one_that_disappeared_is_seen_and_made_again() {
        let (_scratch, path) = scratch();
        let listener = Listener::bind(&path).expect("it listens");
        fs::remove_dir_all(path.parent().expect("a directory")).expect("it was there");
        assert!(!listener.place().is_there());
        let again = Listener::bind(&path).expect("directory and socket are made again");
        assert!(again.place().is_there() && is_served(&path));
    }

    #[test]
    fn where_the_first_place_cannot_have_it_the_next_one_does_and_all_are_named() {
        let (scratch, path) = scratch();
        let open = scratch.path().join("x.sock");
        fs::set_permissions(scratch.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a mode");
        let listener = Listener::bind_first(&[open.clone(), path.clone()]).expect("the second does");
        assert_eq!(listener.place().path, path);
        assert!(matches!(Listener::bind_first(&[open.clone(), path]), Err(ListenError::Taken { .. })));
        let too_long = PathBuf::from(format!("{}/{}", scratch.path().display(), "x".repeat(120)));
        let said = Listener::bind_first(&[open, too_long.join("y.sock")]).expect_err("none does").to_string();
        assert!(said.contains("others can enter") && said.contains("y.sock") || said.contains("xxx"), "{said}");
    }

    #[test]
    fn what_was_passed_on_has_to_be_a_listening_unix_socket_with_a_path() {
        let (scratch, path) = scratch();
        // As a service manager makes it, under its own name from the first.
        let listening = UnixListener::bind(&path).expect("it listens");
        let again = Listener::passed(listening.into()).expect("it is one");
        assert_eq!(again.place(), &SocketPlace::of(path.clone()).expect("it is there"));
        let refused = |fd: OwnedFd, why: &str| {
            let said = Listener::passed(fd).expect_err(why).to_string();
            assert!(said.contains(why), "{said}");
        };
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
        refused(tcp.into(), "is no Unix socket");
        refused(std::os::unix::net::UnixDatagram::unbound().expect("a socket").into(), "is no stream socket");
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        refused(one.into(), "does not listen");
        refused(fs::File::create(scratch.path().join("file")).expect("a file").into(), "is no socket");
    }

    #[test]
    fn another_path_is_tried_where_this_one_cannot_have_a_socket_and_nowhere_else() {
        let io = |errno| ListenError::Io { doing: "listen at", path: "/a".into(), errno };
        for errno in [Errno::NOTSUP, Errno::OPNOTSUPP, Errno::IO, Errno::NAMETOOLONG] {
            assert!(io(errno).is_of_the_place(), "{errno:?}");
        }
        for errno in [Errno::ACCESS, Errno::PERM, Errno::ADDRINUSE, Errno::MFILE, Errno::NOSPC, Errno::ROFS] {
            assert!(!io(errno).is_of_the_place(), "{errno:?}");
        }
        // A file system without sockets: the second path has the socket, and the first has nothing.
        for errno in [Errno::NOTSUP, Errno::OPNOTSUPP, Errno::IO] {
            let (_scratch, path) = scratch();
            let second = path.with_file_name("second.sock");
            let mut answers = [Err(errno), Ok(())].into_iter();
            let both = [path.clone(), second.clone()];
            let listener =
                Listener::bind_first_where(&both, || answers.next().unwrap_or(Ok(()))).expect("the second does");
            assert_eq!(listener.place().path, second);
            assert_eq!(names(&path), ["second.sock"]);
        }
    }

    #[test]
    fn nobody_is_let_in_before_it_is_closed_to_others() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicUsize, Ordering};

        const LOOKS: usize = 100;
        // Somebody connects to whatever is there all the while: what answers has its mode already.
        let (_scratch, path) = scratch();
        let dir = path.parent().expect("a directory").to_owned();
        let answered = Arc::new(AtomicUsize::new(0));
        let looking = std::thread::spawn({
            let answered = Arc::clone(&answered);
            move || {
                while answered.load(Ordering::Relaxed) < LOOKS {
                    for entry in fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
                        if is_served(&entry) {
                            // Looked at after it has answered; it may be gone by now, and may not be open.
                            let open = fs::symlink_metadata(&entry).is_ok_and(|found| found.mode() & 0o077 != 0);
                            answered.fetch_add(1, Ordering::Relaxed);
                            assert!(!open, "{} is open to others", entry.display());
                        }
                    }
                }
            }
        });
        while answered.load(Ordering::Relaxed) < LOOKS && !looking.is_finished() {
            let listener = Listener::bind(&path).expect("it listens");
            std::thread::yield_now();
            listener.place().unlink();
        }
        looking.join().expect("no open door");
    }
}
