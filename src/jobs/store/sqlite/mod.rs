//! The job store on SQLite.
//!
//! Owns: the connection: how it is opened, how safe a commit is, what happens to a damaged database. The statements are in
//! `verbs`, the tables in `schema`, the translation of values in `rows`. May not know: threads, actors.
//!
//! Invariants: (1) the database and its companions are 0600 before anything is in them; (2) a database of a later version
//! is not touched; (3) a damaged one is moved aside under a new name, by one process, and never deleted; (4) nothing is
//! written to a file that has lost its name: when the path leads elsewhere (or nowhere), the store is opened anew first;
//! (5) the database is never reached through a link; (6) what is forgotten is written over.

mod rows;
mod schema;
mod verbs;

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use crate::base::ids::{JobId, UnixMillis};
use crate::base::state_dir::{NOT_PLAIN, PRIVATE_FILE, StateDir, StateDirError, open_private};
use crate::jobs::lock::{HeldLock, LockError};
use crate::jobs::store::{BUSY_BOUND, StoreError};

/// The page cache of one connection: enough for the upper levels of every index of 10,000 jobs. Every runner has one.
const CACHE_KIB: i64 = 256;

/// The write-ahead log is cut back to this after a checkpoint, so that one burst does not keep its size for ever.
const LOG_BYTES: i64 = 4 << 20;

/// Prepared statements kept; there are about forty.
const STATEMENTS: usize = 64;

/// A connection on which damage was reported checks the whole file when it is opened anew, but not more often than this:
/// for 1 GiB the check takes seconds.
const CHECK_PAUSE: Duration = Duration::from_secs(60);

/// What follows the database's name in that of its write-ahead log.
const LOG: &str = "-wal";

/// What follows the database's name in that of the lock which is shared to open it and held alone to move it aside.
const OPENING: &str = ".opening";

/// The latest version of a database this program speaks.
#[must_use]
pub fn schema_known() -> i64 {
    schema::known()
}

/// The version of the database at this path; `None` when there is none that can be read. Blocks; changes nothing.
#[must_use]
pub fn schema_of(path: &Path) -> Option<i64> {
    if !path.is_file() {
        return None;
    }
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
    connection.busy_timeout(BUSY_BOUND).ok()?;
    schema::version(&connection).ok()
}

/// A write transaction that is held, so that nobody else can write.
#[cfg(feature = "testkit")]
#[derive(Debug)]
pub struct HeldWrites {
    /// Its end ends the transaction.
    _connection: Connection,
}

/// Holds the database at this path as another program would, for trials. Waits for [`BUSY_BOUND`] at most.
///
/// # Errors
///
/// There is no database, or it is held.
#[cfg(feature = "testkit")]
pub fn hold_writes(path: &Path) -> Result<HeldWrites, StoreError> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(BUSY_BOUND)?;
    connection.execute_batch("BEGIN IMMEDIATE")?;
    Ok(HeldWrites { _connection: connection })
}

/// How safe a commit is against the loss of power. Against the death of processes every commit is safe.
///
/// In WAL mode `FULL` syncs the log at each commit and `NORMAL` only at checkpoints, so a `FULL` commit also brings every
/// earlier one to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    /// On disk before the verb returns: an acceptance is a promise, a start must not be forgotten lest the job be run
    /// twice, an end must not change after somebody was told.
    Full,
    /// What a power failure makes pointless anyway: it ends every process that would care.
    Normal,
}

#[derive(Debug)]
enum Place {
    /// In a directory that is made, and checked, each time the database is opened.
    Dir(StateDir),
    File(PathBuf),
    Memory,
}

impl Place {
    fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Dir(dir) => Some(dir.database()),
            Self::File(path) => Some(path.clone()),
            Self::Memory => None,
        }
    }
}

/// A job store in a SQLite database.
#[derive(Debug)]
pub struct SqliteStore {
    place: Place,
    /// Where the file is, for stores that have one.
    path: Option<PathBuf>,
    open: Option<Open>,
    /// Counts openings, for [`DataVersion`](crate::jobs::store::DataVersion).
    opened: u64,
    /// Damage was reported since the file was last checked.
    suspect: bool,
    checked: Option<Instant>,
    moved_aside: Option<PathBuf>,
}

#[derive(Debug)]
struct Open {
    connection: Connection,
    durability: Durability,
    /// Device and inode of the database, for files.
    identity: Option<(u64, u64)>,
}

impl SqliteStore {
    /// Opens the store of a state directory, making both as needed.
    ///
    /// # Errors
    ///
    /// The directory or the database cannot be used.
    pub fn in_dir(dir: &StateDir) -> Result<Self, StoreError> {
        Self::at(Place::Dir(dir.clone()))
    }

    /// Opens the database at this path, making it as needed; its directory must exist. Waits up to two times
    /// [`BUSY_BOUND`] for others.
    ///
    /// # Errors
    ///
    /// The database cannot be used.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::at(Place::File(path.to_owned()))
    }

    /// A store that is gone when it is dropped.
    ///
    /// # Errors
    ///
    /// Out of memory.
    pub fn in_memory() -> Result<Self, StoreError> {
        Self::at(Place::Memory)
    }

    fn at(place: Place) -> Result<Self, StoreError> {
        let path = place.path();
        let mut store = Self { place, path, open: None, opened: 0, suspect: false, checked: None, moved_aside: None };
        store.connection()?;
        Ok(store)
    }

    /// The connection, opened anew when the path does not lead to its file any more.
    fn connection(&mut self) -> Result<&mut Open, StoreError> {
        let replaced = self.is_replaced();
        let check_due = self.suspect && self.checked.is_none_or(|at| at.elapsed() >= CHECK_PAUSE);
        if replaced || check_due {
            self.open = None;
        }
        if self.open.is_none() {
            self.open = Some(self.reopen(check_due)?);
            self.opened += 1;
        }
        self.open.as_mut().ok_or(StoreError::Closed)
    }

    /// Whether the path leads to another file than the one that is open, or to none.
    fn is_replaced(&self) -> bool {
        match (&self.path, &self.open) {
            (Some(path), Some(open)) => identity(path) != open.identity,
            _ => false,
        }
    }

    fn reopen(&mut self, check: bool) -> Result<Open, StoreError> {
        let Some(path) = &self.path else {
            return Ok(Open::new(set_up(Connection::open_in_memory()?, Check::Skip)?, None));
        };
        if let Place::Dir(dir) = &self.place {
            dir.create()?;
        }
        if check {
            self.checked = Some(Instant::now());
        }
        let check = if check { Check::Whole } else { Check::Skip };
        // Nobody moves the file while somebody opens it: SQLite finds the database and its log by name, one after the
        // other, and would write the log of a new database into an old one.
        let opening = HeldLock::try_share(&beside(path, OPENING), BUSY_BOUND)
            .map_err(|error| lock_error(&error))?
            .ok_or(StoreError::Busy)?;
        let opened = open_file(path, check);
        drop(opening);
        let open = match opened {
            Err(StoreError::Corrupt { .. }) => {
                let (open, moved) = replace_damaged(path, check)?;
                self.moved_aside = moved.or(self.moved_aside.take());
                open
            }
            other => other?,
        };
        self.suspect = false;
        Ok(open)
    }

    /// Runs `body` in a transaction that excludes other writers from its first statement on.
    fn write<T>(
        &mut self,
        durability: Durability,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let done = self.connection().and_then(|open| {
            open.set_durability(durability)?;
            let transaction = open.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            // Dropping the transaction on an error rolls it back.
            let value = body(&transaction)?;
            transaction.commit()?;
            Ok(value)
        });
        if done.is_ok() && self.is_replaced() {
            // Durable, but in a file that nobody will look at any more.
            return Err(StoreError::Io { detail: "the database was replaced while it was written".to_owned() });
        }
        self.note(done)
    }

    /// Runs `body` on one state of the database.
    fn read<T>(&mut self, body: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let done = self.connection().and_then(|open| {
            let transaction = open.connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
            body(&transaction)
        });
        self.note(done)
    }

    fn note<T>(&mut self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        self.suspect |= matches!(done, Err(StoreError::Corrupt { .. }));
        done
    }
}

impl Open {
    const fn new(connection: Connection, identity: Option<(u64, u64)>) -> Self {
        Self { connection, durability: Durability::Full, identity }
    }

    fn set_durability(&mut self, durability: Durability) -> Result<(), StoreError> {
        if self.durability != durability {
            let statement = match durability {
                Durability::Full => "PRAGMA synchronous = FULL",
                Durability::Normal => "PRAGMA synchronous = NORMAL",
            };
            self.connection.execute_batch(statement)?;
            self.durability = durability;
        }
        Ok(())
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Skip,
    Whole,
}

fn open_file(path: &Path, check: Check) -> Result<Open, StoreError> {
    let until = Instant::now() + BUSY_BOUND;
    loop {
        make_private(path)?;
        let file = identity(path);
        let log_is_begun = fs::metadata(beside(path, LOG)).is_ok_and(|log| log.len() > 0);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(path, flags).map_err(StoreError::from);
        match opened.and_then(|connection| set_up(connection, check)) {
            // Somebody may have removed the whole directory in the meantime.
            Ok(_) if identity(path) != file && Instant::now() < until => {}
            Ok(connection) => {
                // The name of a new log has to last as long as what is committed to it. Whoever wrote to one that is begun
                // found it empty, or not there, and came by here first.
                if !log_is_begun {
                    sync_directory_of(path)?;
                }
                return Ok(Open::new(connection, file));
            }
            // Two processes that make a database at once may be told `busy` without having been made to wait.
            Err(StoreError::Busy) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => return Err(error),
        }
    }
}

fn set_up(mut connection: Connection, check: Check) -> Result<Connection, StoreError> {
    connection.busy_timeout(BUSY_BOUND)?;
    schema::refuse_newer(&connection)?;
    if check == Check::Whole {
        let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(StoreError::Corrupt { detail: "the check of the whole file failed".to_owned() });
        }
    }
    connection.pragma_update(None, "foreign_keys", true)?;
    // What is forgotten is written over: the file outlives many prompts.
    connection.query_row("PRAGMA secure_delete = ON", [], |_| Ok(()))?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // Only macOS knows a difference: its plain sync leaves the data in the drive's cache.
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
    if schema::is_new(&connection)? {
        // Has to come before the first table. On an older database it would be a write at every opening.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" && mode != "memory" {
        return Err(StoreError::Io { detail: "the file system cannot hold a database shared by processes".to_owned() });
    }
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    schema::migrate(&mut connection)?;
    Ok(connection)
}

/// Makes the database file, empty and 0600; SQLite gives its companions the same mode.
///
/// An existing file is never opened here: closing any descriptor of it would release the locks that other connections of
/// this process hold on it. For the same reason the new file gets its name only when it is closed.
fn make_private(path: &Path) -> Result<(), StoreError> {
    match fs::symlink_metadata(path) {
        // Whoever made the link chose the file, and its mode is not ours to set.
        Ok(found) if found.is_symlink() => return Err(StateDirError::Link { path: path.to_owned() }.into()),
        // A device is everybody's, and nothing can be kept in it.
        Ok(found) if !found.is_file() => {
            return Err(StoreError::Io { detail: format!("use {}: {NOT_PLAIN}", path.display()) });
        }
        Ok(found) if found.mode() & 0o777 == PRIVATE_FILE => return Ok(()),
        Ok(_) => return fs::set_permissions(path, Permissions::from_mode(PRIVATE_FILE)).map_err(|e| io_error(&e)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error(&error)),
    }
    let nameless = beside(path, &format!(".new-{}", JobId::random()));
    let named = open_private(&nameless).and_then(|file| file.sync_all()).and_then(|()| fs::hard_link(&nameless, path));
    let removed = fs::remove_file(&nameless);
    match named {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        // Without links SQLite makes the file itself; the directory is ours alone until the mode is set at the next open.
        Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) => {}
        Err(error) => return Err(io_error(&error)),
    }
    removed.map_err(|error| io_error(&error))?;
    sync_directory_of(path)
}

fn sync_directory_of(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(|error| io_error(&error))
}

/// Moves a damaged database aside and begins a new one, unless another process has done so in the meantime.
fn replace_damaged(path: &Path, check: Check) -> Result<(Open, Option<PathBuf>), StoreError> {
    let alone = HeldLock::try_take(&beside(path, OPENING), BUSY_BOUND)
        .map_err(|error| lock_error(&error))?
        .ok_or(StoreError::Busy)?;
    let moved = match open_file(path, check) {
        Err(StoreError::Corrupt { detail }) => {
            let aside = beside(path, &format!(".corrupt-{}", UnixMillis::now().0));
            // The log first: a new database must never meet the log of the old one.
            for companion in ["-wal", "-shm", ""] {
                match fs::rename(beside(path, companion), beside(&aside, companion)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&error)),
                    _ => {}
                }
            }
            tracing::error!(%detail, aside = %aside.display(), "the job store was damaged; it was moved aside and a new one begun");
            aside
        }
        other => return other.map(|open| (open, None)),
    };
    let open = open_file(path, Check::Skip)?;
    drop(alone);
    Ok((open, Some(moved)))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn lock_error(error: &LockError) -> StoreError {
    StoreError::Io { detail: error.to_string() }
}

fn io_error(error: &io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full,
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => StoreError::ReadOnly,
        _ => StoreError::Io { detail: error.to_string() },
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        // Never the error's own text where it may quote a value: values are prompts and answers.
        let rusqlite::Error::SqliteFailure(failure, _) = error else {
            return match error {
                rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::Utf8Error(..) => Self::Unreadable { what: "a column" },
                rusqlite::Error::QueryReturnedNoRows => Self::Unreadable { what: "an empty result" },
                _ => Self::Internal { detail: "a statement could not be run".to_owned() },
            };
        };
        let detail = format!("{failure}");
        match failure.code {
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Self::Busy,
            ErrorCode::DiskFull => Self::Full,
            ErrorCode::ReadOnly | ErrorCode::PermissionDenied => Self::ReadOnly,
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Self::Corrupt { detail },
            ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::FileLockingProtocolFailed => {
                Self::Io { detail }
            }
            ErrorCode::TooBig => Self::Unstorable { what: "a value of this size" },
            _ => Self::Internal { detail },
        }
    }
}

#[cfg(test)]
mod tests;
