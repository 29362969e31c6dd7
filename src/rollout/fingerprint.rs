//! Which file is there: by what a directory says of it, and only where that differs, by what is in it.
//!
//! Owns: the fingerprint of a file, the digest of its content, the path a program was launched by. May not know: what a
//! difference is good for. The readers block, some microseconds for a look and some 50 ms for a digest.
//!
//! Invariants: (1) a look opens nothing; (2) two equal fingerprints are the same file in the same state, as far as the
//! system tells it; (3) what cannot be looked at is no file at all.

use std::ffi::OsStr;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use foldhash::quality::FixedState;
use serde::Serialize;

/// Bytes read of a file at a time. The digest depends on it, so it is one number for all.
const PIECE: usize = 1024 * 1024;

/// What a directory says of a file.
///
/// The mode and the owner are part of it: a file that was refused because it was not executable, or somebody else's, differs
/// once it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Fingerprint {
    /// Its length in bytes.
    pub size: u64,
    /// When it was last written, in nanoseconds since 1970.
    pub modified_unix_ns: i64,
    /// Its number in its file system.
    pub inode: u64,
    /// The file system.
    pub device: u64,
    /// Who may read, write and execute it.
    pub mode: u32,
    /// The user it belongs to.
    pub owner: u32,
    pub group: u32,
}

impl Fingerprint {
    /// Looks at a plain file; links are followed. `None` when there is none.
    #[must_use]
    pub fn look(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        Some(Self {
            size: found.len(),
            modified_unix_ns: found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec()),
            inode: found.ino(),
            device: found.dev(),
            mode: found.mode() & 0o7777,
            owner: found.uid(),
            group: found.gid(),
        })
    }

    /// Whether both belong to the same and allow the same.
    #[must_use]
    pub const fn has_same_access(&self, other: &Self) -> bool {
        self.mode == other.mode && self.owner == other.owner && self.group == other.group
    }

    /// Whether both are the same file, in whatever state.
    #[must_use]
    pub const fn is_same_file(&self, other: &Self) -> bool {
        self.inode == other.inode && self.device == other.device
    }
}

/// What is in a file, as a number.
///
/// It tells builds apart, nothing more: who may write our launch path needs no collision to have a program of theirs
/// adopted. So it is the hash that is in the tree already, which reads a build in a tenth of the time a cryptographic one
/// takes. Other builds may compute it otherwise, so nothing is decided by one that comes from another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut hasher = FixedState::default().build_hasher();
        let mut piece = vec![0; PIECE];
        let mut size: u64 = 0;
        loop {
            let filled = fill(&mut file, &mut piece)?;
            if filled == 0 {
                break;
            }
            hasher.write(&piece[..filled]);
            size += filled as u64;
        }
        hasher.write_u64(size);
        Ok(Self(hasher.finish()))
    }

    /// Of a text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let mut hasher = FixedState::default().build_hasher();
        hasher.write(text.as_bytes());
        Self(hasher.finish())
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Whole pieces, so that the digest does not depend on how the system cuts its reads.
fn fill(file: &mut File, piece: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < piece.len() {
        match file.read(&mut piece[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What Linux appends to the path of an image whose file has lost its name.
const DELETED: &str = " (deleted)";

/// The path a program was launched by, where the next build of it will lie.
///
/// Not the path of the running image: once that was replaced, the system calls it deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaunchPath {
    /// The file; links in it are not resolved, since a link is how many an installation changes versions.
    pub path: PathBuf,
    /// Whether a new file there is adopted without being asked for.
    pub stable: bool,
}

impl LaunchPath {
    /// Finds the file that a shell would have run for `called`, the first word of our command line.
    ///
    /// `search` is the value of `PATH`, `here` the working directory, `image` the running image as the system names it
    /// now, `running` its fingerprint. A word that does not lead to the running image was somebody's choice of a name;
    /// then the image's own path is taken, and it is not stable. `None` when not even that is there.
    #[must_use]
    pub fn find(
        called: Option<&OsStr>,
        search: Option<&OsStr>,
        here: &Path,
        image: Option<&Path>,
        running: Option<Fingerprint>,
    ) -> Option<Self> {
        let named = called.and_then(|called| which::which_in(called, search, here).ok());
        // A file that was replaced before we came to look at it is called deleted, and lies where it lay.
        let place = image.map(|image| match image.to_str().and_then(|text| text.strip_suffix(DELETED)) {
            Some(place) => PathBuf::from(place),
            None => image.to_owned(),
        });
        let resolved = |path: &PathBuf| std::fs::canonicalize(path).ok();
        let is_running = |path: &PathBuf| running.zip(Fingerprint::look(path)).is_some_and(|(a, b)| a.is_same_file(&b));
        let is_at_place = |path: &PathBuf| place.is_some() && resolved(path) == place;
        if let Some(path) = named.filter(|path| is_running(path) || is_at_place(path)) {
            let stable = is_stable(&path) && resolved(&path).as_deref().is_none_or(is_stable);
            return Some(Self { path, stable });
        }
        let path = place.filter(|path| path.is_file())?;
        Some(Self { path, stable: false })
    }
}

/// Whether a file lies where it will still lie tomorrow: a build directory is swept by the next build, and what lies
/// there for a moment is no release.
fn is_stable(path: &Path) -> bool {
    !path.components().any(|part| part.as_os_str() == "target")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn look(path: &Path) -> Fingerprint {
        Fingerprint::look(path).expect("a file")
    }

    #[test]
    fn a_fingerprint_differs_with_every_way_a_file_is_replaced_and_a_digest_with_its_content_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("phone-opus");
        assert_eq!(Fingerprint::look(&path), None);
        assert_eq!(Fingerprint::look(dir.path()), None, "a directory is no program");
        fs::write(&path, "one").expect("written");
        let (first, content) = (look(&path), Digest::read(&path).expect("read"));
        assert_eq!(look(&path), first);

        // Renamed over, with the same bytes and the same time.
        let other = dir.path().join("other");
        fs::write(&other, "one").expect("written");
        let time = fs::metadata(&path).and_then(|found| found.modified()).expect("a time");
        File::options().write(true).open(&other).and_then(|file| file.set_modified(time)).expect("set");
        fs::rename(&other, &path).expect("renamed");
        let second = look(&path);
        assert_eq!((second.size, second.modified_unix_ns), (first.size, first.modified_unix_ns));
        assert!(second != first && !second.is_same_file(&first));
        assert_eq!(Digest::read(&path).expect("read"), content);

        // Touched.
        let later = time + std::time::Duration::from_secs(1);
        File::options().write(true).open(&path).and_then(|file| file.set_modified(later)).expect("set");
        assert!(look(&path) != second && look(&path).is_same_file(&second));
        assert_eq!(Digest::read(&path).expect("read"), content);

        // Made executable.
        let before = look(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
        assert_ne!(look(&path), before);

        // Written in place: one byte, the same length.
        fs::write(&path, "two").expect("written");
        assert_ne!(Digest::read(&path).expect("read"), content);
        fs::remove_file(&path).expect("removed");
        assert_eq!(Fingerprint::look(&path), None);
        assert!(Digest::read(&path).is_err());
    }

    #[test]
    fn a_digest_tells_a_file_from_a_part_of_it_at_every_edge_of_a_piece() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        let mut seen = Vec::new();
        for size in [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1] {
            fs::write(&path, vec![0; size]).expect("written");
            let digest = Digest::read(&path).expect("read");
            assert!(!seen.contains(&digest), "{size}");
            seen.push(digest);
        }
    }

    #[test]
    fn a_launch_path_is_what_a_shell_would_have_run() {
        let dir = tempfile::tempdir().expect("a directory");
        let program = |folder: &str| {
            let path = dir.path().join(folder).join("phone-opus");
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(&path, folder).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
            path
        };
        let (bin, build) = (program("bin"), program("target/release"));
        let find = |called: &str, search: &Path, running: &Path| {
            let search = search.parent().expect("a parent").as_os_str();
            LaunchPath::find(
                Some(OsStr::new(called)),
                Some(search),
                dir.path(),
                Some(running),
                Fingerprint::look(running),
            )
        };
        let stable = |path: &Path| Some(LaunchPath { path: path.to_owned(), stable: true });
        let unstable = |path: &Path| Some(LaunchPath { path: path.to_owned(), stable: false });
        assert_eq!(find("phone-opus", &bin, &bin), stable(&bin));
        assert_eq!(find("bin/phone-opus", &build, &bin), stable(&bin));
        assert_eq!(find(&bin.display().to_string(), &build, &bin), stable(&bin));
        // In a build directory, or a link into one.
        assert_eq!(find("target/release/phone-opus", &bin, &build), unstable(&build));
        let link = dir.path().join("linked");
        std::os::unix::fs::symlink(&build, &link).expect("linked");
        assert_eq!(find("./linked", &bin, &build).map(|found| found.stable), Some(false));
        // A name somebody made up, and one that leads to another program.
        assert_eq!(find("my-server", &bin, &bin), unstable(&bin));
        assert_eq!(find("phone-opus", &build, &bin), unstable(&bin));
        // Replaced between our start and our look: the running image has lost its name, and the path is still the one.
        let place = fs::canonicalize(&bin).expect("it is there");
        let deleted = PathBuf::from(format!("{}{DELETED}", place.display()));
        let other = Fingerprint::look(&build);
        let found = LaunchPath::find(Some(bin.as_os_str()), None, dir.path(), Some(&deleted), other);
        assert_eq!(found, stable(&bin));
        // Nothing that could be run again.
        let gone = dir.path().join("gone");
        assert_eq!(LaunchPath::find(None, None, dir.path(), Some(&gone), None), None);
    }
}
