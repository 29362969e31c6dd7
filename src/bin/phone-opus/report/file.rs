//! The file a report goes to.
//!
//! Owns: what may be written over, and how it is written. May not know: what is in it.
//!
//! Invariants: (1) the file is there whole or as it was before; (2) it is 0600 from its first byte; (3) what is no report is not written
//! over without `--force`, and what is no plain file never is.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use phone_opus::internals::base::ids::JobId;

use super::{is_ours, named};

/// Bytes by which a report is known.
const BEGINNING: usize = 256;

/// A file that may be written.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
}

impl Target {
    /// This one, after a look at what is there. The error is a fragment behind "failed to".
    pub(super) fn of(path: &Path, force: bool) -> Result<Self, String> {
        let refuse = |why: &str| {
            Err(format!(
                "write {}: {why}. Accepted: a new file, or one that `phone-opus report` has written",
                named(path)
            ))
        };
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(format!("write {}: {error}", named(path))),
            Ok(found) if found.is_dir() => return refuse("it is a directory"),
            Ok(found) if !found.is_file() => return refuse("it is no plain file"),
            Ok(_) if force => {}
            Ok(_) => {
                let mut beginning = Vec::new();
                let read = File::open(path).and_then(|file| file.take(BEGINNING as u64).read_to_end(&mut beginning));
                read.map_err(|error| format!("look at {}: {error}", named(path)))?;
                if !beginning.is_empty() && !is_ours(&beginning) {
                    return refuse("it is there, and no report (--force writes over it)");
                }
            }
        }
        Ok(Self { path: path.to_owned() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes it beside its place and moves it there. The error is a fragment behind "failed to".
    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), String> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".partial-{}", JobId::random()));
        let beside = self.path.with_file_name(name);
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside);
        let written = open().and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&beside, &self.path)
        });
        written.map_err(|error| {
            let _ = fs::remove_file(&beside);
            format!("write {}: {error}", named(&self.path))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::MARK;
    use super::*;

    #[test]
    fn what_is_no_report_is_left_as_it_is_and_a_report_is_replaced() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let path = dir.path().join("report.html");
        let write = |text: &str| Target::of(&path, false).and_then(|target| target.write(text.as_bytes()));
        assert_eq!(write(MARK), Ok(()));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(write("{\"jobs\":[]}"), Ok(()), "over a page");
        assert_eq!(write("notes"), Ok(()), "over data");
        let refused = write(MARK).expect_err("no report");
        assert!(refused.contains("--force") && refused.contains("Accepted: "), "{refused}");
        assert_eq!(fs::read_to_string(&path).expect("there"), "notes");
        Target::of(&path, true).and_then(|target| target.write(b"x")).expect("forced");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        for (other, force) in [(link.as_path(), true), (dir.path(), true), (Path::new("/dev/null"), true)] {
            assert!(Target::of(other, force).is_err(), "{}", other.display());
        }
        let nowhere = dir.path().join("none/report.html");
        assert!(Target::of(&nowhere, false).and_then(|target| target.write(b"x")).is_err());
        let left: Vec<_> =
            fs::read_dir(dir.path()).expect("read").map(|entry| entry.expect("entry").file_name()).collect();
        assert_eq!(left.len(), 2, "nothing half written is left: {left:?}");
    }
}
