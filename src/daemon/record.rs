//! What says how the daemon of a state directory is reached: `daemon.json`.
//!
//! Owns: what is in it, how it gets there whole, and what of it is believed. May not know: sockets, locks, processes.
//!
//! Clients read the record and compute no path from their own environment: a client of another shell, of `cron`, or with
//! another `TMPDIR` comes to the same daemon.
//!
//! Invariants: (1) a reader finds a whole record or none; (2) what is not a plain file of ours, or was written on another
//! machine, leads nowhere; (3) the pid in it is for people, and nothing is decided by it.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::listener::SocketPlace;
use crate::base::base64::Base64;
use crate::base::ids::{DaemonId, JobId};
use crate::base::procfs;
use crate::base::state_dir::{StateDir, open_private};
use crate::checkout::plain::{self, Unusable};

/// Bytes of a record that are read; real ones have a few hundred, and a path has 4096 at most.
const MOST: usize = 16 * 1024;

/// A record that leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum DaemonRecordError {
    /// It is no plain file, or too large, or cannot be read.
    #[error("read {}: it {unusable}", path.display())]
    Unusable {
        /// Where.
        path: PathBuf,
        /// Why.
        unusable: Unusable,
    },
    /// Somebody else wrote it.
    #[error("believe {}: it belongs to user id {owner}", path.display())]
    Foreign {
        /// Where.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// It says something else than how a daemon is reached.
    #[error("read {}: it is no record of a daemon", path.display())]
    Broken {
        /// Where.
        path: PathBuf,
    },
    /// Its daemon runs, or ran, where a socket of ours does not lead: on another machine, or before the last start of this one.
    #[error("reach the daemon of {}: it was started on another machine, or before this one was started last", path.display())]
    Elsewhere {
        /// Where.
        path: PathBuf,
    },
    /// It could not be written.
    #[error("write {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
}

/// How a daemon is reached. Another version may have written it: what it says beyond this is left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonRecord {
    /// The version of what is said beside JSON-RPC.
    pub protocol: u32,
    /// The program's version.
    pub build: String,
    /// Which life of which daemon this is.
    pub generation: DaemonId,
    /// Its socket's path.
    #[serde(rename = "socket")]
    path: Written,
    /// The device its socket lies on.
    pub device: u64,
    /// Its socket's number there.
    pub inode: u64,
    /// Where it runs: see [`machine`].
    pub host: String,
    /// Its process, for people who look.
    pub pid: u32,
}

/// A path in JSON, whatever its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Bytes { base64: Base64 },
}

impl DaemonRecord {
    /// That of this process.
    #[must_use]
    pub fn of_this(generation: DaemonId, place: &SocketPlace) -> Self {
        let path = match place.path.to_str() {
            Some(text) => Written::Text(text.to_owned()),
            None => Written::Bytes { base64: Base64(Bytes::copy_from_slice(place.path.as_os_str().as_bytes())) },
        };
        Self {
            protocol: super::PROTOCOL,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            generation,
            path,
            device: place.device,
            inode: place.inode,
            host: machine(),
            pid: std::process::id(),
        }
    }

    /// Its socket's path.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        match &self.path {
            Written::Text(text) => PathBuf::from(text),
            Written::Bytes { base64 } => PathBuf::from(OsString::from_vec(base64.0.to_vec())),
        }
    }

    /// That of a state directory's daemon, if there is one; whether the daemon lives is another question.
    ///
    /// # Errors
    ///
    /// There is something that leads nowhere.
    pub fn read(dir: &StateDir) -> Result<Option<Self>, DaemonRecordError> {
        Self::read_at(&dir.daemon_record(), &machine())
    }

    fn read_at(path: &Path, here: &str) -> Result<Option<Self>, DaemonRecordError> {
        let path = || path.to_owned();
        let found = plain::read_with(&path(), MOST);
        let found = found.map_err(|unusable| DaemonRecordError::Unusable { path: path(), unusable })?;
        let Some((bytes, about)) = found else { return Ok(None) };
        if about.uid() != rustix::process::geteuid().as_raw() {
            return Err(DaemonRecordError::Foreign { path: path(), owner: about.uid() });
        }
        let record: Self = serde_json::from_slice(&bytes).map_err(|_| DaemonRecordError::Broken { path: path() })?;
        if !record.socket().is_absolute() {
            return Err(DaemonRecordError::Broken { path: path() });
        }
        if record.host != here {
            return Err(DaemonRecordError::Elsewhere { path: path() });
        }
        Ok(Some(record))
    }

    /// Writes it down. Only for who holds the daemon's lock: what was there before is replaced.
    ///
    /// # Errors
    ///
    /// The system refused.
    pub fn write(&self, dir: &StateDir) -> Result<(), DaemonRecordError> {
        let path = dir.daemon_record();
        let nameless = dir.root().join(format!("daemon.json.new-{}", JobId::random()));
        let written = serde_json::to_vec(self)
            .map_err(io::Error::from)
            .and_then(|text| open_private(&nameless).and_then(|mut file| file.write_all(&text)))
            .and_then(|()| fs::rename(&nameless, &path));
        written.map_err(|source| {
            let _ = fs::remove_file(&nameless);
            DaemonRecordError::Write { path, source }
        })
    }

    /// Removes the record of a daemon that stops. Only for who holds the daemon's lock; a record of another life stays.
    pub fn forget(generation: DaemonId, dir: &StateDir) {
        if Self::read(dir).is_ok_and(|found| found.is_some_and(|found| found.generation == generation)) {
            let _ = fs::remove_file(dir.daemon_record());
        }
    }
}

/// Where a Unix socket leads: this machine since it was started last. On a shared file system others have the same record.
#[must_use]
pub fn machine() -> String {
    procfs::boot_id().unwrap_or_else(|| {
        let name = nix::unistd::gethostname().unwrap_or_default();
        format!("host:{}", name.to_string_lossy())
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use serde_json::{Value, json};

    use super::*;

    fn scratch() -> (tempfile::TempDir, StateDir) {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        dir.create().expect("a state directory");
        (scratch, dir)
    }

    fn place(path: &str) -> SocketPlace {
        SocketPlace { path: path.into(), device: 7, inode: u64::MAX }
    }

    #[test]
    fn what_is_written_is_read_and_is_private() {
        let (_scratch, dir) = scratch();
        assert!(DaemonRecord::read(&dir).expect("it can be looked for").is_none());
        for path in ["/run/user/1000/x.sock", "/tmp/größe/daemon.sock", "/with \"quotes\"\n"] {
            let record = DaemonRecord::of_this(DaemonId::random(), &place(path));
            record.write(&dir).expect("it is written");
            assert_eq!(DaemonRecord::read(&dir).expect("it is read"), Some(record.clone()));
            assert_eq!(record.socket(), Path::new(path));
        }
        let bytes = PathBuf::from(OsString::from_vec(b"/tmp/\xff\xfe.sock".to_vec()));
        let record =
            DaemonRecord::of_this(DaemonId::random(), &SocketPlace { path: bytes.clone(), device: 1, inode: 2 });
        record.write(&dir).expect("it is written");
        assert_eq!(DaemonRecord::read(&dir).expect("it is read").expect("it is there").socket(), bytes);
        let mode = fs::metadata(dir.daemon_record()).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let left: Vec<_> = fs::read_dir(dir.root()).expect("a directory").flatten().map(|e| e.file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("new-")), "{left:?}");
    }

    #[test]
    fn only_the_record_of_the_same_life_is_forgotten() {
        let (_scratch, dir) = scratch();
        let ours = DaemonId::random();
        DaemonRecord::of_this(ours, &place("/a")).write(&dir).expect("it is written");
        DaemonRecord::forget(DaemonId::random(), &dir);
        assert!(DaemonRecord::read(&dir).expect("it is read").is_some(), "another's was forgotten");
        DaemonRecord::forget(ours, &dir);
        assert!(DaemonRecord::read(&dir).expect("it is read").is_none());
    }

    #[test]
    fn whatever_lies_there_instead_leads_nowhere_and_is_said() {
        let (_scratch, dir) = scratch();
        let path = dir.daemon_record();
        let good = serde_json::to_value(DaemonRecord::of_this(DaemonId::random(), &place("/a"))).expect("JSON");
        let with = |key: &str, value: Value| {
            let mut record = good.clone();
            record[key] = value;
            record.to_string()
        };
        let cases: [(String, &str); 9] = [
            (String::new(), "no record"),
            ("{".to_owned(), "no record"),
            ("[]".to_owned(), "no record"),
            ("\u{0}\u{1}".to_owned(), "no record"),
            (with("socket", json!("daemon.sock")), "no record"),
            (with("generation", json!("1")), "no record"),
            (with("inode", json!(-1)), "no record"),
            (with("host", json!("another")), "another machine"),
            (format!("{}{}", " ".repeat(MOST), with("pid", json!(1))), "larger than"),
        ];
        for (text, why) in &cases {
            fs::write(&path, text).expect("it is written");
            let said = DaemonRecord::read(&dir).expect_err(text).to_string();
            assert!(said.contains(why) && said.contains("daemon.json"), "{text:.60}: {said}");
        }
        fs::remove_file(&path).expect("it was there");
        // What is no file is not waited for.
        fs::create_dir(&path).expect("a directory");
        assert!(DaemonRecord::read(&dir).expect_err("a directory").to_string().contains("no plain file"));
        fs::remove_dir(&path).expect("it was there");
        let elsewhere = dir.root().join("elsewhere");
        fs::write(&elsewhere, good.to_string()).expect("it is written");
        symlink(&elsewhere, &path).expect("a link");
        assert!(DaemonRecord::read(&dir).expect_err("a link").to_string().contains("no plain file"));
        fs::remove_file(&path).expect("it was there");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert!(DaemonRecord::read(&dir).expect_err("a pipe").to_string().contains("no plain file"));
    }

    #[test]
    fn a_pid_in_it_means_nothing_and_what_is_unknown_is_left_alone() {
        let (_scratch, dir) = scratch();
        let record = DaemonRecord::of_this(DaemonId::random(), &place("/a"));
        // Nobody's, a stranger's, no number a process could have.
        for pid in [0, 1, u32::MAX] {
            let mut written = serde_json::to_value(&record).expect("JSON");
            written["pid"] = json!(pid);
            written["of_a_later_version"] = json!({"x": [1]});
            fs::write(dir.daemon_record(), written.to_string()).expect("it is written");
            let read = DaemonRecord::read(&dir).expect("it is read").expect("it is there");
            assert_eq!(read, DaemonRecord { pid, ..record.clone() });
        }
    }
}
