//! Ignore files, read as if whoever wrote them wished us ill.
//!
//! A pattern costs some eight kilobytes once it is made ready to be matched, so a file of a few megabytes would take gigabytes.
//! Whatever is left out makes a walk see more, never less.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::plain;

/// Bytes of one ignore file. Those of large projects have a few.
const FILE_BYTES: usize = 64 * 1024;
/// Patterns of one ignore file.
const FILE_PATTERNS: usize = 2_000;
/// Characters of one pattern: a path has few more.
const PATTERN_BYTES: usize = 1024;
/// Patterns held at a time, over all directories above the one that is looked at: some 32 MB.
const HELD_PATTERNS: usize = 4_000;
/// Bytes of all ignore files of a walk: making patterns ready takes time as well.
const ALL_BYTES: usize = 4 << 20;

/// Reads ignore files within the bounds of one walk.
#[derive(Debug)]
pub(crate) struct IgnoreReader {
    /// Whose files count: ours, root's, and those of whoever owns the directory that is walked. In a directory everybody may
    /// write to, anybody may have left one.
    owners: BTreeSet<u32>,
    held: usize,
    bytes: usize,
    left_out: usize,
}

/// The patterns of one file, for what lies below its directory.
#[derive(Debug)]
pub(crate) struct Patterns {
    set: Gitignore,
    count: usize,
}

impl IgnoreReader {
    /// A reader for a walk below this directory.
    pub(crate) fn new(directory: &Metadata) -> Self {
        let owners = BTreeSet::from([rustix::process::geteuid().as_raw(), 0, directory.uid()]);
        Self { owners, held: 0, bytes: 0, left_out: 0 }
    }

    /// Whether what belongs to this user counts.
    pub(crate) fn trusts(&self, found: &Metadata) -> bool {
        self.owners.contains(&found.uid())
    }

    /// Ignore files that were there and did not count.
    pub(crate) fn left_out(&self) -> usize {
        self.left_out
    }

    /// The patterns of this file, which count from this directory on. `None` when there are none, or they do not count.
    pub(crate) fn read(&mut self, file: &Path, from: &Path) -> Option<Patterns> {
        match plain::read_with(file, FILE_BYTES) {
            Ok(None) => None,
            Ok(Some((bytes, found))) if self.trusts(&found) => {
                let patterns = self.patterns(&bytes, from);
                self.left_out += usize::from(patterns.is_none());
                patterns.filter(|patterns| patterns.count > 0)
            }
            Ok(Some(_)) | Err(_) => {
                self.left_out += 1;
                None
            }
        }
    }

    /// Patterns that are not needed any more make room for others.
    pub(crate) fn give_back(&mut self, patterns: &Patterns) {
        self.held -= patterns.count;
    }

    fn patterns(&mut self, bytes: &[u8], from: &Path) -> Option<Patterns> {
        self.bytes += bytes.len();
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_start_matches('\u{feff}');
        let lines = || text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        // The rest of a file whose beginning is dropped may mean the opposite, so it counts as a whole or not at all.
        let count = lines().count();
        let fits = count <= FILE_PATTERNS && self.held + count <= HELD_PATTERNS && self.bytes <= ALL_BYTES;
        if !fits || lines().any(|line| line.len() > PATTERN_BYTES) {
            return None;
        }
        let mut builder = GitignoreBuilder::new(from);
        for line in lines() {
            // A pattern that cannot be read matches nothing, as for git.
            let _ = builder.add_line(None, line);
        }
        let set = builder.build().ok()?;
        self.held += count;
        Some(Patterns { set, count })
    }
}

impl Patterns {
    /// Whether a path is left out (`true`), kept by name (`false`), or not spoken of.
    pub(crate) fn say(&self, path: &Path, is_dir: bool) -> Option<bool> {
        let said = self.set.matched(path, is_dir);
        if said.is_ignore() {
            Some(true)
        } else if said.is_whitelist() {
            Some(false)
        } else {
            None
        }
    }
}

#[cfg(test)]
#[cfg(feature = "testkit")]
mod tests {
    use std::fs;

    use super::*;
    use crate::testkit::places::{Stand, give_away};

    fn reader(dir: &Path) -> IgnoreReader {
        IgnoreReader::new(&fs::metadata(dir).expect("a directory"))
    }

    #[test]
    fn whatever_is_no_reasonable_ignore_file_is_left_out_and_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join(".gitignore");
        let mut texts = vec![
            ("too many bytes", format!("#{}\n", "x".repeat(FILE_BYTES))),
            ("too many patterns", "a\n".repeat(FILE_PATTERNS + 1)),
            ("too long a pattern", "x".repeat(PATTERN_BYTES + 1)),
        ];
        for (what, text) in texts.drain(..) {
            fs::write(&file, text).expect("written");
            let mut reader = reader(dir.path());
            assert!(reader.read(&file, dir.path()).is_none(), "{what}");
            assert_eq!(reader.left_out(), 1, "{what}");
        }
        for stand in Stand::ALL {
            if stand.put(&file) {
                let mut reader = reader(dir.path());
                assert!(reader.read(&file, dir.path()).is_none(), "{stand:?}");
                assert_eq!(reader.left_out(), 1, "{stand:?}");
            }
        }
        crate::testkit::places::remove(&file);
        fs::write(&file, "a\n").expect("written");
        if give_away(&file, 65_533) {
            let mut reader = reader(dir.path());
            assert!(reader.read(&file, dir.path()).is_none() && reader.left_out() == 1, "another user's");
        }
    }

    #[test]
    fn what_is_held_at_a_time_is_bounded_and_given_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join(".gitignore");
        let patterns: String = (0..1500).map(|n| format!("pattern-{n}/**/x\n")).collect();
        fs::write(&file, patterns).expect("written");
        let mut reader = reader(dir.path());
        let first = reader.read(&file, dir.path()).expect("it fits");
        let _second = reader.read(&file, dir.path()).expect("it fits");
        assert!(reader.read(&file, dir.path()).is_none());
        reader.give_back(&first);
        assert!(reader.read(&file, dir.path()).is_some());
        assert_eq!(reader.left_out(), 1);
    }
}
