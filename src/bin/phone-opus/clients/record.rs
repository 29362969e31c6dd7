//! What was written into which file, remembered in the state directory until it is taken back.
//!
//! Owns: where a record lies and that it is whole. May not know: what its units mean ([`super::plan`]).
//!
//! Without a record an uninstall still works, but it cannot tell an empty table that was there before from one that was made.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use phone_opus::internals::base::state_dir::StateDir;
use sha2::{Digest as _, Sha256};

use super::plan::Record;

/// The records' folder in the state directory.
const FOLDER: &str = "installed";

/// Bytes a record may have; ours have one or two thousand. What is larger is none.
const MOST: u64 = 256 * 1024;

/// The record of one client's file.
pub(super) struct Kept {
    folder: PathBuf,
    path: PathBuf,
}

impl Kept {
    /// Where it is, of the file with this path.
    pub(super) fn of(dir: &StateDir, client: &str, file: &Path) -> Self {
        let mut name = Sha256::new();
        name.update(client.as_bytes());
        name.update([0]);
        name.update(file.as_os_str().as_encoded_bytes());
        let name: String = name.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        let folder = dir.root().join(FOLDER);
        Self { path: folder.join(format!("{name}.json")), folder }
    }

    /// Whether it is the record of the same file.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.path == other.path
    }

    /// What it says; `None` where there is none that can be read.
    pub(super) fn read(&self) -> Option<Record> {
        let length = fs::metadata(&self.path).ok()?.len();
        let text = (length <= MOST).then(|| fs::read_to_string(&self.path))?.ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Keeps this one instead, or none.
    pub(super) fn write(&self, dir: &StateDir, record: Option<&Record>) -> io::Result<()> {
        let Some(record) = record else {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        };
        dir.create().map_err(io::Error::other)?;
        match DirBuilder::new().mode(0o700).create(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let new = self.path.with_extension(format!("new-{}", std::process::id()));
        let text = serde_json::to_string(record).map_err(io::Error::other)?;
        let written =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()?;
                fs::rename(&new, &self.path)
            });
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }
}

/// Every record that can be read, with its place, in an order that stays.
pub(super) fn all(dir: &StateDir) -> Vec<(Kept, Record)> {
    let folder = dir.root().join(FOLDER);
    let entries = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "json")).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let kept = Kept { folder: folder.clone(), path };
        kept.read().map(|record| (kept, record))
    };
    paths.into_iter().filter_map(read).collect()
}
