//! The state directory: where everything that outlives a process is kept.
//!
//! Owns: which directory it is, the names inside it, and that nobody but its owner can reach them. May not know: what
//! is in the files, the configuration, the process's environment (whoever resolves a directory hands the variables in).
//!
//! ```text
//! phone-opus.db (-wal, -shm, .opening)   the job store
//! jobs/ID/lock                 held by the runner of the job
//! jobs/ID/runner.log           the last words of a runner that had any
//! jobs/ID/outcome.json         an outcome the store does not take yet
//! clones/ID/lock               held by the host that keeps the clone a job of the fleet runs in
//! clones/ID/tree               that clone
//! slots/N                      held by a runner while its agent runs
//! waiting/ID (and ID.bell)     held by a process that waits with jobs, and how it is woken
//! hosts/ID/lock                held by a host whose jobs may be adopted when it is gone
//! secret                       what digests of environments are keyed by
//! daemon.lock                  held by the daemon of this directory
//! daemon.json                  how that daemon is reached
//! daemon.sock                  where it listens, unless the path is too long for a socket
//! daemon.log                   what daemons that nobody watches had to say
//! start.lock                   held by whoever starts a daemon
//! telemetry.jsonl
//! handover-*.json              nothing, for the moment between its making and its unlinking; see `remove_remnants`
//! reserve                      room that is given up on a full disk
//! ```
//!
//! Invariants: (1) directories are 0700 and files are made 0600, whatever the umask; (2) a directory that somebody else
//! owns, can write to, or leads to by a link of theirs is refused, never repaired: what was put there before us cannot be
//! trusted; (3) what lies in a directory that is ours alone is closed without a word: nobody else gets there.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;

use crate::base::ids::{HostId, JobId, UnixMillis, WaiterId};

/// The directory's name under the user's state directory.
const NAME: &str = "phone_opus";

/// Read, write and enter for the owner, nothing for anybody else.
const PRIVATE_DIR: u32 = 0o700;

/// Read and write for the owner, nothing for anybody else.
pub(crate) const PRIVATE_FILE: u32 = 0o600;

/// How the name of a file begins in which a server's state is passed on. It has one for a moment only; in versions before
/// 0.1.0 was released it kept it, and prompts were in it.
pub(crate) const HANDOVER: &str = "handover-";

/// How long such a file is left alone: the one it is for takes it within milliseconds, and a candidate that is to try it has
/// 5 s. What is older is of an image that died.
const ABANDONED: Duration = Duration::from_secs(60);

/// Bytes of the daemons' log beyond which the next daemon begins it anew. Each adds 64 KiB at most.
const DAEMON_LOG: u64 = 256 * 1024;

/// Why a state directory cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateDirError {
    /// Nothing says where it is.
    #[error("find a state directory: neither XDG_STATE_HOME nor HOME is an absolute path")]
    Unknown,
    /// `PHONE_OPUS_STATE_DIR` depends on the directory a process happens to be in.
    #[error("use {} as the state directory: PHONE_OPUS_STATE_DIR must be an absolute path", path.display())]
    Relative {
        /// What was given.
        path: PathBuf,
    },
    /// Something else than a directory has the name.
    #[error("use {}: it is not a directory", path.display())]
    NotADirectory {
        /// What is in its place.
        path: PathBuf,
    },
    /// Somebody else owns it.
    #[error("use {}: it belongs to user id {owner} and this is user id {ours}", path.display())]
    ForeignOwner {
        /// The directory or file of another user.
        path: PathBuf,
        /// The uid that owns it.
        owner: u32,
        /// The uid of this process.
        ours: u32,
    },
    /// Its group or everybody can write to it.
    #[error("use {}: others can write to it (mode {mode:04o})", path.display())]
    WritableByOthers {
        /// The directory or file that others can write to.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else's link leads to it, or a link is where a file of ours should be.
    #[error("use {}: it is a link that is not to be followed", path.display())]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{doing} {}: {reason}", path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// The path that was refused.
        path: PathBuf,
        /// The kind of refusal.
        kind: io::ErrorKind,
        /// The system's words.
        reason: String,
    },
}

impl StateDirError {
    fn io(doing: &'static str, path: &Path, error: &io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), kind: error.kind(), reason: error.to_string() }
    }
}

/// A state directory, by its absolute path. Making the value touches nothing.
///
/// ```
/// use phone_opus::StateDir;
///
/// let own = StateDir::at("/var/lib/my-runtime");
/// assert_eq!(own.root().to_str(), Some("/var/lib/my-runtime"));
/// // The one the program uses for this user: jobs are shared with it.
/// let shared = StateDir::resolve(None, None, |name| (name == "HOME").then(|| "/home/me".into()))?;
/// assert!(shared.root().ends_with(".local/state/phone_opus"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// The directory at this path.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Decides which directory to use: `explicit` (the flag), else `variable` (the value of `PHONE_OPUS_STATE_DIR`),
    /// else `phone_opus` in `$XDG_STATE_HOME`, else in `~/.local/state`, which is also what the platforms we run on name.
    ///
    /// `env` looks up environment variables; nothing else is asked. Empty variables count as unset, and so does a
    /// relative `XDG_STATE_HOME`, as its specification demands. A relative `explicit` path is taken from the current
    /// directory, since whoever typed it was there.
    ///
    /// # Errors
    ///
    /// `Relative` for a relative `variable`, `Unknown` when nothing names a directory.
    pub fn resolve(
        explicit: Option<&Path>,
        variable: Option<OsString>,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, StateDirError> {
        if let Some(path) = explicit {
            let root = std::path::absolute(path).map_err(|error| StateDirError::io("resolve", path, &error))?;
            return Ok(Self { root });
        }
        if let Some(root) = variable.filter(|value| !value.is_empty()).map(PathBuf::from) {
            return if root.is_absolute() { Ok(Self { root }) } else { Err(StateDirError::Relative { path: root }) };
        }
        let absolute = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
        base.map(|base| Self { root: base.join(NAME) }).ok_or(StateDirError::Unknown)
    }

    /// Makes the directory and its fixed sub-directories, or checks the ones that are there. Doing it twice is harmless.
    ///
    /// A directory of our own that others could only read is closed to them, and so is everything in it.
    ///
    /// # Errors
    ///
    /// What is there cannot be trusted, or the system refused.
    pub fn create(&self) -> Result<(), StateDirError> {
        private_dir(&self.root, Place::Root)?;
        private_dir(&self.jobs(), Place::Inside)?;
        private_dir(&self.slots(), Place::Inside)
    }

    /// Refuses a directory of another user, and, where it is still to be made, one that would lie in another user's: what
    /// root makes there, as after `sudo`, its owner cannot use. Makes nothing.
    ///
    /// # Errors
    ///
    /// It is another user's.
    #[doc(hidden)]
    pub fn refuse_foreign_owner(&self) -> Result<(), StateDirError> {
        let ours = rustix::process::geteuid();
        let mut there = self.root.ancestors().filter_map(|path| Some((path, fs::metadata(path).ok()?.uid())));
        match there.next() {
            // Whoever is not root can make nothing where it is not allowed to.
            Some((path, owner)) if owner != ours.as_raw() && (path == self.root || ours.is_root()) => {
                Err(StateDirError::ForeignOwner { path: path.to_owned(), owner, ours: ours.as_raw() })
            }
            _ => Ok(()),
        }
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The job store's database.
    #[must_use]
    #[doc(hidden)]
    pub fn database(&self) -> PathBuf {
        self.root.join("phone-opus.db")
    }

    /// What was observed about clients.
    #[must_use]
    #[doc(hidden)]
    pub fn clients(&self) -> PathBuf {
        self.root.join("clients.json")
    }

    /// The telemetry log.
    #[must_use]
    #[doc(hidden)]
    pub fn telemetry(&self) -> PathBuf {
        self.root.join("telemetry.jsonl")
    }

    /// Where the jobs' directories are.
    #[must_use]
    #[doc(hidden)]
    pub fn jobs(&self) -> PathBuf {
        self.root.join("jobs")
    }

    /// One job's directory.
    #[must_use]
    #[doc(hidden)]
    pub fn job_dir(&self, job: JobId) -> PathBuf {
        self.jobs().join(job.to_string())
    }

    /// The file whose lock is the ownership of a job.
    #[must_use]
    #[doc(hidden)]
    pub fn job_lock(&self, job: JobId) -> PathBuf {
        self.job_dir(job).join("lock")
    }

    /// What the runner of a job said last, if it said anything.
    #[must_use]
    #[doc(hidden)]
    pub fn job_log(&self, job: JobId) -> PathBuf {
        self.job_dir(job).join("runner.log")
    }

    /// A job's outcome while the store does not take it.
    #[must_use]
    #[doc(hidden)]
    pub fn job_outcome(&self, job: JobId) -> PathBuf {
        self.job_dir(job).join("outcome.json")
    }

    /// Room that is given up on a full disk.
    #[must_use]
    #[doc(hidden)]
    pub fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    /// Opens a job's log to write on at its end, making it and its directory.
    ///
    /// # Errors
    ///
    /// As for [`StateDir::create`].
    pub(crate) fn open_job_log(&self, job: JobId) -> Result<File, StateDirError> {
        self.create_job_dir(job)?;
        let path = self.job_log(job);
        let mut log = open_private(&path).map_err(|error| StateDirError::io("open", &path, &error))?;
        // An earlier runner of the job may have said something.
        log.seek(SeekFrom::End(0)).map_err(|error| StateDirError::io("open", &path, &error))?;
        Ok(log)
    }

    /// A job's log, where there is something in it.
    #[must_use]
    #[doc(hidden)]
    pub fn job_words(&self, job: JobId) -> Option<PathBuf> {
        let path = self.job_log(job);
        fs::metadata(&path).is_ok_and(|found| found.len() > 0).then_some(path)
    }

    /// Where clones are that jobs of the fleet run in.
    #[must_use]
    #[doc(hidden)]
    pub fn clones(&self) -> PathBuf {
        self.root.join("clones")
    }

    /// The files of one job's clone.
    #[must_use]
    #[doc(hidden)]
    pub fn clone_tree(&self, job: JobId) -> PathBuf {
        self.clones().join(job.to_string()).join("tree")
    }

    /// The file whose lock says that a host looks after a clone.
    #[must_use]
    #[doc(hidden)]
    pub fn clone_lock(&self, job: JobId) -> PathBuf {
        self.clones().join(job.to_string()).join("lock")
    }

    /// Makes the directory of one job's clone, and what it lies in; that of the clone.
    ///
    /// # Errors
    ///
    /// As for [`StateDir::create`].
    #[doc(hidden)]
    pub fn create_clone_dir(&self, job: JobId) -> Result<PathBuf, StateDirError> {
        let dir = self.clones().join(job.to_string());
        self.create()?;
        private_dir(&self.clones(), Place::Inside)?;
        private_dir(&dir, Place::Inside)?;
        Ok(dir)
    }

    /// Where the permits' locks are.
    #[must_use]
    #[doc(hidden)]
    pub fn slots(&self) -> PathBuf {
        self.root.join("slots")
    }

    /// The file whose lock is one permit to run an agent; they are numbered from 0.
    #[must_use]
    #[doc(hidden)]
    pub fn slot_lock(&self, slot: usize) -> PathBuf {
        self.slots().join(slot.to_string())
    }

    /// Where the locks and bells of waiting processes are.
    #[must_use]
    #[doc(hidden)]
    pub fn waiting(&self) -> PathBuf {
        self.root.join("waiting")
    }

    /// The file whose lock says that a waiting process lives.
    #[must_use]
    #[doc(hidden)]
    pub fn waiter_lock(&self, waiter: WaiterId) -> PathBuf {
        self.waiting().join(waiter.to_string())
    }

    /// The FIFO by which a waiting process is woken.
    #[must_use]
    #[doc(hidden)]
    pub fn waiter_bell(&self, waiter: WaiterId) -> PathBuf {
        self.waiting().join(format!("{waiter}.bell"))
    }

    /// Makes the directory of waiting processes, and what it lies in.
    ///
    /// # Errors
    ///
    /// As for [`StateDir::create`].
    #[doc(hidden)]
    pub fn create_waiting(&self) -> Result<(), StateDirError> {
        self.create()?;
        private_dir(&self.waiting(), Place::Inside)
    }

    /// Where hosts say how they are, and that they live.
    #[must_use]
    #[doc(hidden)]
    pub fn hosts(&self) -> PathBuf {
        self.root.join("hosts")
    }

    /// Makes the directory of hosts, and what it lies in.
    ///
    /// # Errors
    ///
    /// As for [`StateDir::create`].
    #[doc(hidden)]
    pub fn create_hosts(&self) -> Result<(), StateDirError> {
        self.create()?;
        private_dir(&self.hosts(), Place::Inside)
    }

    /// The file whose lock says that a host lives.
    #[must_use]
    #[doc(hidden)]
    pub fn host_lock(&self, host: HostId) -> PathBuf {
        self.hosts().join(host.to_string()).join("lock")
    }

    /// Makes the directory of one host for its lock, and what it lies in.
    ///
    /// # Errors
    ///
    /// As for [`StateDir::create`].
    #[doc(hidden)]
    pub fn create_host_dir(&self, host: HostId) -> Result<(), StateDirError> {
        self.create_hosts()?;
        private_dir(&self.hosts().join(host.to_string()), Place::Inside)
    }

    /// The file whose lock says that a daemon of this directory lives.
    #[must_use]
    #[doc(hidden)]
    pub fn daemon_lock(&self) -> PathBuf {
        self.root.join("daemon.lock")
    }

    /// How that daemon is reached.
    #[must_use]
    #[doc(hidden)]
    pub fn daemon_record(&self) -> PathBuf {
        self.root.join("daemon.json")
    }

    /// Where it listens, unless the path is too long for a socket.
    #[must_use]
    #[doc(hidden)]
    pub fn daemon_socket(&self) -> PathBuf {
        self.root.join("daemon.sock")
    }

    /// What daemons that nobody watches had to say.
    #[must_use]
    #[doc(hidden)]
    pub fn daemon_log(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// Opens it for another daemon's words, which come after those of the ones before as far as there is room.
    ///
    /// # Errors
    ///
    /// The system refused.
    pub(crate) fn open_daemon_log(&self) -> Result<File, StateDirError> {
        let path = self.daemon_log();
        let io = |error: io::Error| StateDirError::io("open", &path, &error);
        let whole = open_private(&path).map_err(io)?;
        if whole.metadata().is_ok_and(|found| found.len() > DAEMON_LOG) {
            whole.set_len(0).map_err(io)?;
        }
        // One that drains and the next one both write at the end.
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        OpenOptions::new().append(true).custom_flags(flags).open(&path).map_err(io)
    }

    /// The file whose lock is held by whoever starts a daemon.
    #[must_use]
    #[doc(hidden)]
    pub fn start_lock(&self) -> PathBuf {
        self.root.join("start.lock")
    }

    /// What digests of environments are keyed by: random, made by whoever asks first, the same for all from then on.
    ///
    /// # Errors
    ///
    /// As for [`StateDir::create`]; what is there is no secret of ours.
    #[doc(hidden)]
    pub fn secret(&self) -> Result<String, StateDirError> {
        let path = self.root.join("secret");
        let io = |doing, error: io::Error| StateDirError::io(doing, &path, &error);
        if !path.exists() {
            self.create()?;
            // It gets its name when it is whole; whoever comes second takes the first one's.
            let nameless = self.root.join(format!("secret.new-{}", JobId::random()));
            let text = format!("{}{}", JobId::random(), JobId::random());
            let written = open_private(&nameless).and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
            let named = written.and_then(|()| {
                fs::hard_link(&nameless, &path).or_else(|error| match error.kind() {
                    io::ErrorKind::AlreadyExists => Ok(()),
                    _ => fs::rename(&nameless, &path),
                })
            });
            let _ = fs::remove_file(&nameless);
            named.map_err(|error| io("write", error))?;
        }
        let mut text = String::new();
        let file = File::open(&path).map_err(|error| io("open", error))?;
        io::Read::read_to_string(&mut io::Read::take(file, 256), &mut text).map_err(|error| io("read", error))?;
        Ok(text)
    }

    /// Makes one job's directory, and what it lies in.
    ///
    /// # Errors
    ///
    /// As for [`StateDir::create`].
    #[doc(hidden)]
    pub fn create_job_dir(&self, job: JobId) -> Result<PathBuf, StateDirError> {
        let dir = self.job_dir(job);
        if !self.jobs().is_dir() {
            self.create()?;
        }
        private_dir(&dir, Place::Inside)?;
        Ok(dir)
    }

    /// Gives a job's directory the present time: somebody is about to look after the job and cannot yet. It needs no
    /// descriptor, of which there may be none.
    pub(crate) fn touch_job_dir(&self, job: JobId) {
        use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let touched = self.create_job_dir(job).map(|dir| utimensat(CWD, &dir, &times, AtFlags::SYMLINK_NOFOLLOW));
        if !matches!(touched, Ok(Ok(()))) {
            tracing::debug!(%job, "no sign can be given that a job is looked after");
        }
    }

    /// When a job's directory was given a time last, or something was put into it.
    pub(crate) fn job_dir_touched(&self, job: JobId) -> Option<UnixMillis> {
        fs::symlink_metadata(self.job_dir(job)).and_then(|found| found.modified()).ok().map(UnixMillis::at)
    }

    /// Removes what images that died while they were replaced left here. Returns how many files that were.
    #[doc(hidden)]
    pub fn remove_remnants(&self) -> usize {
        let Ok(entries) = fs::read_dir(&self.root) else { return 0 };
        let now = SystemTime::now();
        // Whichever way the clock was set since.
        let is_old = |at: SystemTime| now.duration_since(at).unwrap_or_else(|ahead| ahead.duration()) > ABANDONED;
        let abandoned = |entry: &fs::DirEntry| {
            let ours =
                entry.file_name().to_str().is_some_and(|name| name.starts_with(HANDOVER) && name.ends_with(".json"));
            ours && entry.metadata().and_then(|found| found.modified()).is_ok_and(is_old)
        };
        entries.flatten().filter(abandoned).filter(|entry| fs::remove_file(entry.path()).is_ok()).count()
    }

    /// Removes one job's directory and all in it; one that is not there is no error.
    ///
    /// Only for jobs the store has forgotten: removing a lock that may still be taken would give it two owners.
    ///
    /// # Errors
    ///
    /// The system refused.
    #[doc(hidden)]
    pub fn remove_job_dir(&self, job: JobId) -> Result<(), StateDirError> {
        let dir = self.job_dir(job);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StateDirError::io("remove", &dir, &error)),
            _ => Ok(()),
        }
    }
}

/// Where a directory lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Wherever the user wants it; what it lies in is made.
    Root,
    /// In a directory that was found to be ours alone.
    Inside,
}

/// Links on one path that are looked at; the system follows forty.
const LINKS_MOST: usize = 40;

/// Refuses a path that leads through a link of somebody else, who could lead it elsewhere tomorrow. Our own and root's links
/// are the user's choice.
fn refuse_foreign_links(path: &Path, ours: u32) -> Result<(), StateDirError> {
    let mut at = PathBuf::new();
    let mut rest: Vec<OsString> = path.iter().rev().map(OsString::from).collect();
    let mut links = 0;
    while let Some(name) = rest.pop() {
        at.push(&name);
        // What is not there yet is made by us, and what cannot be looked at fails in words of its own.
        let Ok(found) = fs::symlink_metadata(&at) else { return Ok(()) };
        if !found.is_symlink() {
            continue;
        }
        links += 1;
        if links > LINKS_MOST || (found.uid() != ours && found.uid() != 0) {
            return Err(StateDirError::Link { path: at });
        }
        let target = fs::read_link(&at).map_err(|error| StateDirError::io("look at", &at, &error))?;
        at.pop();
        rest.extend(target.iter().rev().map(OsString::from));
    }
    Ok(())
}

fn private_dir(path: &Path, place: Place) -> Result<(), StateDirError> {
    let ours = rustix::process::geteuid().as_raw();
    let mut builder = DirBuilder::new();
    builder.mode(PRIVATE_DIR);
    if place == Place::Root {
        refuse_foreign_links(path, ours)?;
        if let Some(parent) = path.parent() {
            builder
                .recursive(true)
                .create(parent)
                .map_err(|error| StateDirError::io("create the directory", parent, &error))?;
            builder.recursive(false);
        }
    }
    match builder.create(path) {
        // A umask can only have taken bits away, so nobody can have come in between making and opening up.
        Ok(()) => {
            return fs::set_permissions(path, Permissions::from_mode(PRIVATE_DIR))
                .map_err(|error| StateDirError::io("set the mode of", path, &error));
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(StateDirError::io("create the directory", path, &error)),
    }
    let looked = match place {
        Place::Root => fs::metadata(path),
        Place::Inside => fs::symlink_metadata(path),
    };
    let found = looked.map_err(|error| StateDirError::io("look at", path, &error))?;
    if found.is_symlink() {
        return Err(StateDirError::Link { path: path.to_owned() });
    }
    if !found.is_dir() {
        return Err(StateDirError::NotADirectory { path: path.to_owned() });
    }
    if found.uid() != ours {
        return Err(StateDirError::ForeignOwner { path: path.to_owned(), owner: found.uid(), ours });
    }
    let mode = found.mode() & 0o7777;
    if place == Place::Root && mode & 0o022 != 0 {
        return Err(StateDirError::WritableByOthers { path: path.to_owned(), mode });
    }
    if mode & 0o077 != 0 {
        close_to_others(path, place).map_err(|error| StateDirError::io("set the mode of", path, &error))?;
    }
    Ok(())
}

/// Sets the mode of the directory that was looked at, and of nothing somebody puts in its place meanwhile.
fn close_to_others(path: &Path, place: Place) -> io::Result<()> {
    let link = if place == Place::Inside { OFlags::NOFOLLOW } else { OFlags::empty() };
    let flags = (OFlags::DIRECTORY | link).bits().cast_signed();
    let dir = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if dir.metadata()?.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    dir.set_permissions(Permissions::from_mode(PRIVATE_DIR))
}

/// Why a file of ours cannot be what has its name.
pub(crate) const NOT_PLAIN: &str = "it is not a plain file";

/// Opens a file of ours for reading and writing, making it 0600 whatever the umask, and never through a link. A device or a pipe of
/// that name is refused and keeps its mode: it is everybody's.
///
/// The descriptor closes on exec, so that no agent inherits it.
pub(crate) fn open_private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE_FILE)
        // Nobody waits for the other end of a pipe or a line; of a plain file it means nothing.
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, NOT_PLAIN));
    }
    if found.mode() & 0o777 != PRIVATE_FILE {
        file.set_permissions(Permissions::from_mode(PRIVATE_FILE))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it exists").mode() & 0o7777
    }

    #[test]
    fn the_most_explicit_choice_wins() {
        let env = |known: &'static [(&'static str, &'static str)]| {
            move |name: &str| known.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        let both: &[_] = &[("XDG_STATE_HOME", "/xdg"), ("HOME", "/home/u")];
        let cases = [
            (Some("/flag"), Some("/var"), both, "/flag"),
            (None, Some("/var"), both, "/var"),
            (None, Some(""), both, "/xdg/phone_opus"),
            (None, None, both, "/xdg/phone_opus"),
            (None, None, &[("XDG_STATE_HOME", "rel"), ("HOME", "/home/u")], "/home/u/.local/state/phone_opus"),
            (None, None, &[("XDG_STATE_HOME", ""), ("HOME", "/home/u")], "/home/u/.local/state/phone_opus"),
        ];
        for (explicit, variable, known, expected) in cases {
            let dir = StateDir::resolve(explicit.map(Path::new), variable.map(OsString::from), env(known));
            assert_eq!(dir, Ok(StateDir::at(expected)), "{explicit:?} {variable:?} {known:?}");
        }
        assert_eq!(StateDir::resolve(None, None, env(&[])), Err(StateDirError::Unknown));
        assert_eq!(
            StateDir::resolve(None, Some("rel".into()), env(both)),
            Err(StateDirError::Relative { path: "rel".into() })
        );
        let typed = StateDir::resolve(Some(Path::new("rel")), None, env(both)).expect("a typed path may be relative");
        assert!(typed.root().is_absolute());
    }

    #[test]
    fn creating_makes_private_directories_and_is_repeatable() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("a/b/state"));
        dir.create().expect("first");
        dir.create().expect("again");
        let job = JobId::random();
        dir.create_job_dir(job).expect("a job's directory");
        for path in [dir.root().to_owned(), dir.jobs(), dir.slots(), dir.job_dir(job)] {
            assert_eq!(mode(&path), 0o700, "{path:?}");
        }
        dir.remove_job_dir(job).expect("removed");
        dir.remove_job_dir(job).expect("removed already");
        assert!(!dir.job_dir(job).exists());
    }

    #[test]
    fn what_an_image_that_died_left_is_removed_in_time_and_nothing_else() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path());
        let now = SystemTime::now();
        let cases = [
            ("handover-old.json", Some(now - 2 * ABANDONED), false),
            ("handover-from-the-future.json", Some(now + 2 * ABANDONED), false),
            ("handover-new.json", None, true),
            ("handover-of-somebody.txt", Some(now - 2 * ABANDONED), true),
            ("phone-opus.db", Some(now - 2 * ABANDONED), true),
        ];
        for (name, at, _) in cases {
            let file = File::create(scratch.path().join(name)).expect("made");
            if let Some(at) = at {
                file.set_modified(at).expect("set");
            }
        }
        symlink("/nonexistent", scratch.path().join("handover-link.json")).expect("a link");
        assert_eq!(dir.remove_remnants(), 2);
        for (name, _, stays) in cases {
            assert_eq!(scratch.path().join(name).exists(), stays, "{name}");
        }
        assert_eq!(StateDir::at("/nonexistent").remove_remnants(), 0);
    }

    #[test]
    fn a_directory_others_can_write_to_is_refused_and_a_readable_one_is_closed() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let root = scratch.path().join("state");
        fs::create_dir(&root).expect("made");
        for bad in [0o777, 0o720, 0o702, 0o1777] {
            fs::set_permissions(&root, Permissions::from_mode(bad)).expect("mode set");
            let error = StateDir::at(&root).create().expect_err("refused");
            assert_eq!(error, StateDirError::WritableByOthers { path: root.clone(), mode: bad });
            assert_eq!(mode(&root), bad, "it is not repaired");
        }
        fs::set_permissions(&root, Permissions::from_mode(0o755)).expect("mode set");
        StateDir::at(&root).create().expect("accepted");
        assert_eq!(mode(&root), 0o700);
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let ours = rustix::process::geteuid().as_raw();
        let (path, owner) = if ours == 0 {
            let path = scratch.path().join("theirs");
            fs::create_dir(&path).expect("made");
            std::os::unix::fs::chown(&path, Some(12_345), None).expect("given away");
            (path, 12_345)
        } else {
            (PathBuf::from("/"), 0)
        };
        let error = StateDir::at(&path).create().expect_err("refused");
        assert_eq!(error, StateDirError::ForeignOwner { path, owner, ours });
    }

    #[test]
    fn what_lies_in_a_directory_of_ours_alone_is_closed_and_one_command_is_enough() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        let job = JobId::random();
        dir.create().expect("made");
        dir.create_job_dir(job).expect("made");
        let all = [dir.root().to_owned(), dir.jobs(), dir.slots(), dir.job_dir(job)];
        // What a restart of a pod with an `fsGroup` does.
        for path in &all {
            fs::set_permissions(path, Permissions::from_mode(0o2770)).expect("mode set");
        }
        let refused = dir.create().expect_err("refused");
        assert_eq!(refused, StateDirError::WritableByOthers { path: all[0].clone(), mode: 0o2770 });
        fs::set_permissions(dir.root(), Permissions::from_mode(0o2700)).expect("mode set");
        dir.create().expect("accepted");
        dir.create_job_dir(job).expect("accepted");
        for path in &all {
            assert_eq!(mode(path) & 0o077, 0, "{path:?}");
        }
    }

    #[test]
    fn a_link_of_somebody_else_is_not_followed_and_what_it_leads_to_keeps_its_mode() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let target = scratch.path().join("target");
        fs::create_dir(&target).expect("made");
        fs::set_permissions(&target, Permissions::from_mode(0o755)).expect("mode set");
        let link = scratch.path().join("link");
        symlink(&target, &link).expect("linked");
        for path in [link.clone(), link.join("state")] {
            StateDir::at(&path).create().expect("our own link is our own choice");
        }
        fs::set_permissions(&target, Permissions::from_mode(0o755)).expect("mode set");
        if !rustix::process::geteuid().is_root() {
            return println!("skipped: only root can make a link of somebody else's");
        }
        std::os::unix::fs::lchown(&link, Some(12_345), None).expect("given away");
        // Seen by whoever owns neither: root's own rule is the same as everybody's.
        for path in [link.clone(), link.join("state"), link.join("deeper/state")] {
            assert_eq!(StateDir::at(&path).create(), Err(StateDirError::Link { path: link.clone() }), "{path:?}");
        }
        let inner = scratch.path().join("inner");
        StateDir::at(&inner).create().expect("made");
        fs::remove_dir(inner.join("jobs")).expect("removed");
        symlink(&target, inner.join("jobs")).expect("linked");
        assert_eq!(StateDir::at(&inner).create(), Err(StateDirError::Link { path: inner.join("jobs") }));
        assert_eq!(mode(&target), 0o755);
    }

    #[test]
    fn a_file_in_the_way_and_a_planted_link_are_refused() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let path = scratch.path().join("state");
        fs::write(&path, "").expect("written");
        assert_eq!(StateDir::at(&path).create(), Err(StateDirError::NotADirectory { path: path.clone() }));
        let link = scratch.path().join("link");
        symlink(&path, &link).expect("linked");
        open_private(&link).expect_err("links are not followed");
        assert_eq!(mode(&path) & 0o600, 0o600);
    }

    #[test]
    fn what_is_no_plain_file_is_no_file_of_ours_and_keeps_its_mode() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let pipe = scratch.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        fs::set_permissions(&pipe, Permissions::from_mode(0o644)).expect("mode set");
        let socket = scratch.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        let directory = scratch.path().join("directory");
        fs::create_dir(&directory).expect("a directory");
        // Root could take a device from everybody else.
        for path in [pipe, socket, directory, PathBuf::from("/dev/null"), PathBuf::from("/dev/full")] {
            let before = mode(&path);
            open_private(&path).expect_err("no plain file");
            assert_eq!(mode(&path), before, "{path:?}");
        }
    }
}
