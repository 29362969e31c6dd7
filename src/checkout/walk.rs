//! Walks a tree depth first, within bounds, following no link.

use std::collections::VecDeque;
use std::fs::{self, FileType, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::ignores::{IgnoreReader, Patterns};
use super::repository;

/// How a walk goes.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    /// What is left out because of ignore files.
    pub(crate) left_out: Omitted,
    /// Whether names that begin with a dot are passed over.
    pub(crate) skips_hidden: bool,
    /// Whether other file systems below are passed over.
    pub(crate) one_file_system: bool,
    /// Whether something below the root is passed over, a directory with all that is in it.
    pub(crate) passes_over: fn(root: &Path, entry: &WalkEntry) -> bool,
    /// Entries listed at most.
    pub(crate) entries: usize,
    /// When it ends in any case.
    pub(crate) until: Instant,
}

/// What is left out because of ignore files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Omitted {
    /// Whatever a `.gitignore` or `.ignore` names, in a repository or not.
    Named,
    /// What git leaves out: what a `.gitignore` of a repository names and its index does not.
    Untracked,
    /// Nothing: no ignore file is read.
    Nothing,
}

/// The bound that ended a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    /// Too many entries.
    Entries,
    /// Too long.
    Time,
}

/// Something that was met.
#[derive(Debug)]
pub(crate) struct WalkEntry {
    /// Below the walk's root.
    pub(crate) path: PathBuf,
    /// What it is, no link followed.
    pub(crate) kind: FileType,
}

/// A repository a walk came by.
#[derive(Debug)]
pub(crate) struct RepositoryDirs {
    pub(crate) git: PathBuf,
    /// Where it keeps its own data.
    pub(crate) data: Vec<PathBuf>,
}

/// A directory that is being walked.
#[derive(Debug, Default)]
struct Level {
    /// What was listed and not met yet.
    rest: VecDeque<WalkEntry>,
    patterns: Vec<(Kind, Patterns)>,
    /// The repository whose root it is.
    repository: Option<repository::Repository>,
    /// It is left out itself, and walked for what git tracks in it.
    outside: bool,
}

/// Which file a pattern stood in; the first one that speaks of a path decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ignore,
    GitIgnore,
    Exclude,
}

/// A walk. Met entries come out of the iterator.
#[derive(Debug)]
pub(crate) struct Walk {
    way: Way,
    root: PathBuf,
    device: u64,
    reader: IgnoreReader,
    /// Those above the root first.
    levels: Vec<Level>,
    listed: usize,
    ended: Option<Bound>,
    unlisted: bool,
    repositories: Vec<RepositoryDirs>,
}

impl Walk {
    /// A walk below this directory. `None` when it cannot be looked at.
    pub(crate) fn new(root: &Path, way: Way) -> Option<Self> {
        let root = fs::canonicalize(root).ok()?;
        let found = fs::metadata(&root).ok().filter(Metadata::is_dir)?;
        let mut walk = Self {
            way,
            root: root.clone(),
            device: found.dev(),
            reader: IgnoreReader::new(&found),
            levels: Vec::new(),
            listed: 0,
            ended: None,
            unlisted: false,
            repositories: Vec::new(),
        };
        walk.look_above();
        walk.enter(&root, false);
        Some(walk)
    }

    /// The directory, as its entries' paths begin.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The bound that ended it.
    pub(crate) fn ended(&self) -> Option<Bound> {
        self.ended
    }

    /// Ignore files that were there and did not count.
    pub(crate) fn ignores_left_out(&self) -> usize {
        self.reader.left_out()
    }

    /// Whether a directory could not be listed for another reason than that it is closed to us, or gone.
    pub(crate) fn missed_a_directory(&self) -> bool {
        self.unlisted
    }

    /// The repositories it came by, one around it included.
    pub(crate) fn repositories(&self) -> &[RepositoryDirs] {
        &self.repositories
    }

    /// What the directories between a repository's root and the walk's say.
    fn look_above(&mut self) {
        if self.way.left_out == Omitted::Nothing {
            return;
        }
        let Some(repository) = repository::Repository::around(&self.root, &self.reader) else { return };
        if repository.root == self.root {
            return;
        }
        let above: Vec<PathBuf> = self
            .root
            .ancestors()
            .skip(1)
            .take_while(|dir| dir.starts_with(&repository.root))
            .map(Path::to_owned)
            .collect();
        let mut repository = Some(repository);
        for dir in above.into_iter().rev() {
            self.open(&dir, repository.take());
        }
        // What is walked was named by its caller, whatever is said about it.
    }

    /// Reads what a directory says about what lies in it.
    fn open(&mut self, dir: &Path, repository: Option<repository::Repository>) {
        let mut level = Level { repository, ..Level::default() };
        if let Some(repository) = &level.repository {
            self.repositories.push(RepositoryDirs { git: repository.root.join(".git"), data: repository.data.clone() });
        }
        let mut files = vec![(Kind::GitIgnore, dir.join(".gitignore"))];
        if self.way.left_out == Omitted::Named {
            files.insert(0, (Kind::Ignore, dir.join(".ignore")));
        }
        // Worktrees share one.
        files.extend(
            level
                .repository
                .iter()
                .filter_map(|own| own.data.last())
                .map(|own| (Kind::Exclude, own.join("info/exclude"))),
        );
        // Without a repository git leaves nothing out.
        let counts = match self.way.left_out {
            Omitted::Nothing => false,
            Omitted::Named => true,
            Omitted::Untracked => {
                level.repository.is_some() || self.levels.iter().any(|level| level.repository.is_some())
            }
        };
        if counts {
            for (kind, file) in files {
                level.patterns.extend(self.reader.read(&file, dir).map(|patterns| (kind, patterns)));
            }
        }
        self.levels.push(level);
    }

    /// Lists a directory.
    fn enter(&mut self, dir: &Path, outside: bool) {
        let repository = match self.way.left_out {
            Omitted::Nothing => None,
            Omitted::Named | Omitted::Untracked => repository::Repository::at(dir, &self.reader),
        };
        self.open(dir, repository);
        let mut entries = Vec::new();
        match fs::read_dir(dir) {
            Ok(list) => {
                for entry in list {
                    self.listed += 1;
                    if self.listed > self.way.entries {
                        self.ended = Some(Bound::Entries);
                        return;
                    }
                    if self.listed.is_multiple_of(256) && Instant::now() >= self.way.until {
                        self.ended = Some(Bound::Time);
                        return;
                    }
                    // What vanishes between two looks has changed the directory it was in.
                    let Ok(entry) = entry else { continue };
                    let Ok(kind) = entry.file_type() else { continue };
                    entries.push(WalkEntry { path: entry.path(), kind });
                }
            }
            Err(error) => {
                self.unlisted |= !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied);
            }
        }
        entries.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        if let Some(level) = self.levels.last_mut() {
            level.rest = entries.into();
            level.outside = outside;
        }
    }

    fn leave(&mut self) {
        if let Some(level) = self.levels.pop() {
            level.patterns.iter().for_each(|(_, patterns)| self.reader.give_back(patterns));
        }
    }

    /// Whether ignore files name it, or what it lies in.
    fn is_named(&self, entry: &WalkEntry) -> bool {
        if self.levels.last().is_some_and(|level| level.outside) {
            return true;
        }
        // What a repository around another one says does not concern that one.
        let own = self.levels.iter().rposition(|level| level.repository.is_some()).unwrap_or(0);
        let levels = self.levels.get(own..).unwrap_or_default();
        [Kind::Ignore, Kind::GitIgnore, Kind::Exclude].into_iter().find_map(|kind| {
            let patterns = levels.iter().rev().flat_map(|level| &level.patterns).filter(|(of, _)| *of == kind);
            patterns.map(|(_, patterns)| patterns.say(&entry.path, entry.kind.is_dir())).find_map(|said| said)
        }) == Some(true)
    }

    /// Whether what is named is left out: for git, what is tracked is not.
    fn may_leave_out(&self, entry: &WalkEntry) -> bool {
        match self.way.left_out {
            Omitted::Nothing => false,
            Omitted::Named => true,
            Omitted::Untracked => {
                let repository = self.levels.iter().rev().find_map(|level| level.repository.as_ref());
                repository.is_some_and(|repository| repository.may_leave_out(&entry.path))
            }
        }
    }

    fn is_passed_over(&self, entry: &WalkEntry) -> bool {
        let Some(name) = entry.path.file_name() else { return true };
        let hidden = self.way.skips_hidden && name.as_encoded_bytes().starts_with(b".");
        // What belongs to a repository is not part of the tree; any other `.git` is.
        let own = name == ".git" && self.levels.last().is_some_and(|level| level.repository.is_some());
        hidden || own || (self.way.passes_over)(&self.root, entry)
    }

    fn is_elsewhere(&self, dir: &Path) -> bool {
        self.way.one_file_system && fs::symlink_metadata(dir).map_or(true, |found| found.dev() != self.device)
    }
}

impl Iterator for Walk {
    type Item = WalkEntry;

    fn next(&mut self) -> Option<WalkEntry> {
        loop {
            if self.ended.is_some() {
                return None;
            }
            if Instant::now() >= self.way.until {
                self.ended = Some(Bound::Time);
                return None;
            }
            let level = self.levels.last_mut()?;
            let Some(entry) = level.rest.pop_front() else {
                self.leave();
                continue;
            };
            if self.is_passed_over(&entry) {
                continue;
            }
            // A directory that is left out is left out with all that is in it, but for what is tracked.
            let named = self.is_named(&entry);
            if named && self.may_leave_out(&entry) {
                continue;
            }
            if entry.kind.is_dir() {
                if self.is_elsewhere(&entry.path) {
                    continue;
                }
                self.enter(&entry.path, named);
            }
            return Some(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::repository::tests::index;
    use super::*;

    fn way(left_out: Omitted) -> Way {
        Way {
            left_out,
            skips_hidden: false,
            one_file_system: true,
            passes_over: |_, _| false,
            entries: 1000,
            until: Instant::now() + Duration::from_secs(60),
        }
    }

    fn met(root: &Path, way: Way) -> Vec<String> {
        let mut walk = Walk::new(root, way).expect("a directory");
        let from = walk.root().to_owned();
        let files = walk.by_ref().filter(|entry| !entry.kind.is_dir());
        let mut met: Vec<String> =
            files.map(|entry| entry.path.strip_prefix(&from).expect("below").display().to_string()).collect();
        met.sort();
        met
    }

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        dir
    }

    #[test]
    fn ignore_files_count_from_where_they_stand_and_the_nearest_one_decides() {
        let dir = tree(&[
            (".gitignore", "*.log\n/built/\n"),
            ("a.log", ""),
            ("built/x", ""),
            ("sub/.gitignore", "!kept.log\nown\n"),
            ("sub/kept.log", ""),
            ("sub/own", ""),
            ("sub/built/y", ""),
            ("own", ""),
            ("other/.ignore", "*\n"),
            ("other/z", ""),
        ]);
        let named = met(dir.path(), way(Omitted::Named));
        assert_eq!(named, [".gitignore", "own", "sub/.gitignore", "sub/built/y", "sub/kept.log"]);
        assert_eq!(met(dir.path(), way(Omitted::Untracked)).len(), 10, "without a repository nothing is left out");
        assert_eq!(met(dir.path(), way(Omitted::Nothing)).len(), 10);
    }

    #[test]
    fn what_git_tracks_is_met_whatever_ignore_files_say() {
        let dir = tree(&[
            (".gitignore", "*\n"),
            (".ignore", "*\n"),
            ("tracked", ""),
            ("deep/er/tracked", ""),
            ("deep/er/not", ""),
            ("not", ""),
            (".git/HEAD", ""),
        ]);
        fs::write(dir.path().join(".git/index"), index(&["deep/er/tracked", "tracked"])).expect("written");
        assert_eq!(met(dir.path(), way(Omitted::Untracked)), ["deep/er/tracked", "tracked"]);
        fs::write(dir.path().join(".git/index"), "no index").expect("written");
        assert_eq!(met(dir.path(), way(Omitted::Untracked)).len(), 6, "all but the repository's own data");
    }

    #[test]
    fn nothing_above_a_repository_is_read_and_what_is_walked_was_asked_for() {
        let dir = tree(&[
            (".gitignore", "*\n"),
            ("repo/.git/HEAD", ""),
            ("repo/.gitignore", "*.log\nbuilt\n"),
            ("repo/built/a", ""),
            ("repo/built/b.log", ""),
        ]);
        assert_eq!(met(&dir.path().join("repo/built"), way(Omitted::Named)), ["a"]);
        let inner = met(dir.path(), way(Omitted::Named));
        assert!(inner.is_empty(), "{inner:?}");
    }

    #[test]
    fn a_repository_within_another_has_its_own_say() {
        let dir = tree(&[
            (".git/HEAD", ""),
            (".gitignore", "*.log\n"),
            ("inner/.git/HEAD", ""),
            ("inner/a.log", ""),
            ("inner/.gitignore", "b\n"),
            ("inner/b", ""),
        ]);
        assert_eq!(met(dir.path(), way(Omitted::Untracked)), [".gitignore", "inner/.gitignore", "inner/a.log"]);
        let mut walk = Walk::new(dir.path(), way(Omitted::Untracked)).expect("a directory");
        walk.by_ref().for_each(drop);
        assert_eq!(walk.repositories().len(), 2, "both have data of their own");
    }

    #[test]
    fn every_bound_ends_it_and_is_told() {
        let dir = tree(&[("a", ""), ("b", ""), ("c", "")]);
        let mut few = Walk::new(dir.path(), Way { entries: 2, ..way(Omitted::Named) }).expect("a directory");
        few.by_ref().for_each(drop);
        assert_eq!(few.ended(), Some(Bound::Entries));
        let mut late =
            Walk::new(dir.path(), Way { until: Instant::now(), ..way(Omitted::Named) }).expect("a directory");
        assert!(late.next().is_none());
        assert_eq!(late.ended(), Some(Bound::Time));
        std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).expect("linked");
        assert_eq!(met(dir.path(), way(Omitted::Named)).len(), 4, "a link is met and not followed");
    }
}
