//! Did the working directory change while an agent ran? Our agents are read-only by their options; this is the check on it.
//!
//! Owns: what is looked at and how far. May not know: who changed it: the caller's own edits during a background consult are
//! changes too, so what is found is a fact for the reply and accuses nobody.
//!
//! A look goes over names, sizes, modes, inodes and times of everything the directory's ignore files do not exclude, hidden
//! files included; of a repository's own data it sees where it stands (`HEAD`, `index`, `config`). It reads no contents: the
//! time of the last status change cannot be set back by whoever writes a file. Rejected: asking `git status`, which runs a
//! program, may write the index, and sees nothing that happens to an ignored or an already changed file.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ignore::WalkBuilder;
use tokio::task::JoinHandle;

/// Entries looked at; a directory with more is not judged. A large repository has some ten thousand.
const ENTRIES: usize = 50_000;

/// Longest one look may take; a slow or huge file system is not judged, and holds nothing up.
const LIMIT: Duration = Duration::from_millis(500);

/// What is looked at of a repository's own data.
const REPOSITORY: [&str; 3] = [".git/HEAD", ".git/index", ".git/config"];

/// A directory that is being watched over a run.
pub(super) struct Watch {
    root: PathBuf,
    before: JoinHandle<Option<u64>>,
    /// The agent was at work before the first look was over.
    late: bool,
}

impl Watch {
    /// Begins with a first look, beside the caller.
    pub(super) fn begin(root: &Path) -> Self {
        let at = root.to_owned();
        let before = tokio::task::spawn_blocking(move || look(&at, ENTRIES, LIMIT));
        Self { root: root.to_owned(), before, late: false }
    }

    /// The agent has begun to use tools: a first look that is not over says nothing about what was before.
    pub(super) fn at_work(&mut self) {
        self.late |= !self.before.is_finished();
    }

    /// Looks again. Whether anything is different; `None` when that is not known.
    pub(super) async fn end(self) -> Option<bool> {
        let before = within(self.before).await.filter(|_| !self.late)?;
        let after = within(tokio::task::spawn_blocking(move || look(&self.root, ENTRIES, LIMIT))).await?;
        Some(before != after)
    }
}

/// A look that hangs in the kernel, on a file system that is gone, must not keep a job from its end.
async fn within(look: JoinHandle<Option<u64>>) -> Option<u64> {
    tokio::time::timeout(LIMIT * 2, look).await.ok()?.ok()?
}

/// One look. `None` when there is too much to look at, or something cannot be looked at.
fn look(root: &Path, most: usize, limit: Duration) -> Option<u64> {
    let until = Instant::now() + limit;
    let mut sum = 0_u64;
    let walk = WalkBuilder::new(root)
        .hidden(false)
        .require_git(false)
        .filter_entry(|entry| entry.file_name() != ".git")
        .build();
    for (count, entry) in walk.enumerate() {
        if count >= most || Instant::now() >= until {
            return None;
        }
        // A file that vanishes between listing and look has changed the directory it was in.
        let Ok(entry) = entry else { continue };
        add(&mut sum, entry.path(), entry.metadata().ok().as_ref());
    }
    for part in REPOSITORY {
        let path = root.join(part);
        add(&mut sum, &path, std::fs::symlink_metadata(&path).ok().as_ref());
    }
    Some(sum)
}

/// The order of a walk is not fixed, so that of the sum must not matter.
fn add(sum: &mut u64, path: &Path, found: Option<&std::fs::Metadata>) {
    let mut hash = DefaultHasher::new();
    path.hash(&mut hash);
    if let Some(found) = found {
        let times = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
        (found.ino(), found.len(), found.mode(), times).hash(&mut hash);
    }
    *sum = sum.wrapping_add(hash.finish());
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn seen(root: &Path) -> u64 {
        look(root, ENTRIES, Duration::from_secs(60)).expect("a small directory is judged")
    }

    #[test]
    fn every_kind_of_change_is_seen_and_reading_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        fs::create_dir_all(root.join("src/.hidden")).expect("made");
        fs::create_dir(root.join(".git")).expect("made");
        fs::write(root.join("src/a"), "one").expect("written");
        fs::write(root.join(".git/HEAD"), "main").expect("written");
        fs::write(root.join(".gitignore"), "built/\n").expect("written");
        fs::create_dir(root.join("built")).expect("made");
        let mut last = seen(root);
        fs::read(root.join("src/a")).expect("read");
        assert_eq!(seen(root), last);
        type Change = (&'static str, fn(&Path) -> std::io::Result<()>);
        let changes: [Change; 7] = [
            ("a new file", |root| fs::write(root.join("src/b"), "")),
            ("a new hidden file", |root| fs::write(root.join("src/.hidden/c"), "")),
            ("the same length again", |root| fs::write(root.join("src/a"), "two")),
            ("a mode", |root| {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(root.join("src/a"), fs::Permissions::from_mode(0o600))
            }),
            ("a name", |root| fs::rename(root.join("src/a"), root.join("src/d"))),
            ("a file that is gone", |root| fs::remove_file(root.join("src/b"))),
            ("a commit", |root| fs::write(root.join(".git/HEAD"), "next")),
        ];
        for (what, change) in changes {
            change(root).expect(what);
            let now = seen(root);
            assert_ne!(now, last, "{what}");
            last = now;
        }
        fs::write(root.join("built/x"), "").expect("written");
        fs::write(root.join(".git/objects"), "").expect("written");
        assert_eq!(seen(root), last, "what is ignored is not looked at");
    }

    #[test]
    fn what_is_too_large_is_not_judged() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in 0..20 {
            fs::write(dir.path().join(name.to_string()), "").expect("written");
        }
        assert_eq!(look(dir.path(), 10, Duration::from_secs(60)), None);
        assert_eq!(look(dir.path(), ENTRIES, Duration::ZERO), None);
    }
}
