//! Did the working directory change while an agent ran? Our agents are read-only by their options; this is the check on it.
//!
//! Owns: what is looked at and how far. May not know: who changed it: the caller's own edits during a background consult are
//! changes too, so what is found is a fact for the reply and accuses nobody.
//!
//! A look goes over names, sizes, modes, inodes and times of everything git would tell of, hidden files included: what is
//! tracked is looked at whatever ignore files say, and where there is no repository, or it is not known what it tracks, nothing
//! is left out. Of a repository's own data everything counts that says what git does or where the repository stands (`HEAD`,
//! `index`, `config`, `hooks`, `info`, `refs`, ...), where a `.git` file leads elsewhere as well; no ignore file is asked about
//! that. It reads no contents: the time of the last status change cannot be set back by whoever writes a file. Rejected:
//! asking `git status`, which runs a program, may write the index, and sees nothing that happens to an already changed file.
//!
//! Invariant: a look that met a bound, an ignore file that does not count, or a directory that cannot be listed says
//! nothing. `None` is told as not judged, never as unchanged.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::base::beside::{Beside, beside};
use crate::checkout::walk::{Omitted, RepositoryDirs, Walk, WalkEntry, Way};

/// Entries looked at; a directory with more is not judged. A large repository has some ten thousand.
const ENTRIES: usize = 50_000;

/// Longest one look may take; a slow or huge file system is not judged, and holds nothing up.
const LIMIT: Duration = Duration::from_millis(500);

/// What a repository keeps that changes nothing for whoever uses it, or by the mere use of it.
const BULK: [&str; 8] = ["objects", "lfs", "logs", "rr-cache", "FETCH_HEAD", "gc.log", "gc.pid", "worktrees"];

/// A directory that is being watched over a run.
pub(super) struct Watch {
    root: PathBuf,
    /// `None` when there is no thread to be had: nothing is judged then.
    before: Option<Beside<Option<u64>>>,
    /// The agent was at work before the first look was over.
    late: bool,
}

impl Watch {
    /// Begins with a first look, beside the caller.
    pub(super) fn begin(root: &Path) -> Self {
        let at = root.to_owned();
        let before = beside("look", move || look(&at, ENTRIES, LIMIT));
        Self { root: root.to_owned(), before, late: false }
    }

    /// The agent has begun to use tools: a first look that is not over says nothing about what was before.
    pub(super) fn at_work(&mut self) {
        self.late |= self.before.as_ref().is_some_and(|look| !look.is_finished());
    }

    /// Looks again. Whether anything is different; `None` when that is not known.
    pub(super) async fn end(self) -> Option<bool> {
        let before = within(self.before?).await.filter(|_| !self.late)?;
        let after = within(beside("look", move || look(&self.root, ENTRIES, LIMIT))?).await?;
        Some(before != after)
    }
}

/// A look that hangs in the kernel, on a file system that is gone, must not keep a job from its end.
async fn within(look: Beside<Option<u64>>) -> Option<u64> {
    tokio::time::timeout(LIMIT * 2, look).await.ok()??
}

/// One look. `None` when there is too much to look at, or something cannot be looked at.
fn look(root: &Path, most: usize, limit: Duration) -> Option<u64> {
    let until = Instant::now() + limit;
    let way = Way {
        left_out: Omitted::Untracked,
        skips_hidden: false,
        one_file_system: false,
        passes_over: |_, _| false,
        entries: most,
        until,
    };
    let mut walk = Walk::new(root, way.clone())?;
    let mut sum = 0_u64;
    add(&mut sum, root, std::fs::symlink_metadata(root).ok().as_ref());
    for entry in walk.by_ref() {
        add(&mut sum, &entry.path, std::fs::symlink_metadata(&entry.path).ok().as_ref());
    }
    if walk.ended().is_some() || walk.missed_a_directory() || walk.ignores_left_out() > 0 {
        return None;
    }
    for RepositoryDirs { git, data } in walk.repositories() {
        add(&mut sum, git, std::fs::symlink_metadata(git).ok().filter(|found| !found.is_dir()).as_ref());
        for own in data {
            sum = sum.wrapping_add(own_data(own, &way)?);
        }
    }
    Some(sum)
}

/// One look at a repository's own data. Its directories count by what is in them: git makes and removes files of its own there
/// whenever it is asked something.
fn own_data(own: &Path, way: &Way) -> Option<u64> {
    let mut walk = Walk::new(own, Way { left_out: Omitted::Nothing, passes_over: is_bulk, ..way.clone() })?;
    let root = walk.root().to_owned();
    let mut sum = 0_u64;
    for entry in walk.by_ref() {
        if !entry.kind.is_dir() {
            add(&mut sum, &entry.path, std::fs::symlink_metadata(&entry.path).ok().as_ref());
        }
    }
    let alternates = root.join("objects/info/alternates");
    add(&mut sum, &alternates, std::fs::symlink_metadata(&alternates).ok().as_ref());
    (walk.ended().is_none() && !walk.missed_a_directory()).then_some(sum)
}

/// Whether something that lies directly in a repository's own data is bulk, or a passing thing of git's.
fn is_bulk(own: &Path, entry: &WalkEntry) -> bool {
    let path = &entry.path;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    path.parent() == Some(own)
        && (BULK.contains(&name) || name.starts_with("fsmonitor--daemon") || name.ends_with(".lock"))
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
#[cfg(feature = "testkit")]
mod tests {
    use std::fs;

    use super::*;
    use crate::testkit::places::Stand;

    fn seen(root: &Path) -> u64 {
        look(root, ENTRIES, Duration::from_secs(60)).expect("a small directory is judged")
    }

    #[test]
    fn every_kind_of_change_is_seen_and_reading_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        fs::create_dir_all(root.join("src/.hidden")).expect("made");
        for dir in
            [".git/hooks", ".git/info", ".git/refs/heads", ".git/objects/info", "inner/.git/hooks", "hidden", "built"]
        {
            fs::create_dir_all(root.join(dir)).expect("made");
        }
        fs::write(root.join("src/a"), "one").expect("written");
        fs::write(root.join(".git/HEAD"), "main").expect("written");
        fs::write(root.join(".git/index"), crate::checkout::repository::tests::index(&["hidden/tracked"]))
            .expect("written");
        fs::write(root.join("hidden/tracked"), "one").expect("written");
        fs::write(root.join("hidden/.gitignore"), "*\n").expect("written");
        fs::write(root.join(".gitignore"), "built/\n").expect("written");
        let mut last = seen(root);
        fs::read(root.join("src/a")).expect("read");
        assert_eq!(seen(root), last);
        type Change = (&'static str, fn(&Path) -> std::io::Result<()>);
        let changes: [Change; 17] = [
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
            ("a hook", |root| fs::write(root.join(".git/hooks/pre-commit"), "#!/bin/sh\n")),
            ("a hook's mode", |root| {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(root.join(".git/hooks/pre-commit"), fs::Permissions::from_mode(0o755))
            }),
            ("what git ignores besides", |root| fs::write(root.join(".git/info/exclude"), "")),
            ("attributes", |root| fs::write(root.join(".git/info/attributes"), "* filter=x\n")),
            ("where the rest lies", |root| fs::write(root.join(".git/commondir"), "./\n")),
            ("a worktree's configuration", |root| fs::write(root.join(".git/config.worktree"), "[core]\n")),
            ("a branch", |root| fs::write(root.join(".git/refs/heads/logs"), "0\n")),
            ("other objects", |root| fs::write(root.join(".git/objects/info/alternates"), "/elsewhere\n")),
            ("a hook of a repository within", |root| fs::write(root.join("inner/.git/hooks/post-merge"), "")),
            ("an ignored file that is tracked", |root| fs::write(root.join("hidden/tracked"), "two")),
        ];
        for (what, change) in changes {
            change(root).expect(what);
            let now = seen(root);
            assert_ne!(now, last, "{what}");
            last = now;
        }
        fs::write(root.join("built/x"), "").expect("written");
        fs::write(root.join(".git/objects/ab"), "").expect("written");
        fs::write(root.join(".git/index.lock"), "").expect("written");
        fs::remove_file(root.join(".git/index.lock")).expect("removed");
        assert_eq!(seen(root), last, "what git leaves out, and what it does by being asked, is not looked at");
    }

    #[test]
    fn what_a_file_of_a_worktree_leads_to_is_looked_at() {
        let dir = tempfile::tempdir().expect("a directory");
        let (root, main) = (dir.path().join("tree"), dir.path().join("main/.git"));
        let own = main.join("worktrees/tree");
        for made in [&root, &own, &main.join("hooks")] {
            fs::create_dir_all(made).expect("made");
        }
        fs::write(root.join(".git"), format!("gitdir: {}\n", own.display())).expect("written");
        fs::write(own.join("commondir"), "../..\n").expect("written");
        let mut last = seen(&root);
        for written in [main.join("config"), main.join("hooks/pre-push"), own.join("config.worktree"), own.join("HEAD")]
        {
            fs::write(&written, "").expect("written");
            let now = seen(&root);
            assert_ne!(now, last, "{}", written.display());
            last = now;
        }
        fs::write(root.join(".git"), format!("gitdir: {}\n", main.display())).expect("written");
        assert_ne!(seen(&root), last, "another repository");
    }

    #[test]
    fn an_ignore_file_that_does_not_count_leaves_a_look_unjudged() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join(".git")).expect("made");
        let file = dir.path().join(".gitignore");
        for stand in Stand::ALL {
            if stand.put(&file) {
                assert_eq!(look(dir.path(), ENTRIES, Duration::from_secs(60)), None, "{stand:?}");
            }
        }
        crate::testkit::places::remove(&file);
        seen(dir.path());
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
