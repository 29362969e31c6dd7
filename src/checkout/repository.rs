//! Where a repository begins, where it keeps its own data, and what it tracks.
//!
//! Everything is read from files, within bounds; git itself is never run, because a repository says what git runs.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::hash::{BuildHasher as _, RandomState};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::ignores::IgnoreReader;
use super::plain;

/// Directories above one that are looked at for a repository.
const PARENTS: usize = 64;
/// Bytes of a file that says where something is.
const POINTER_BYTES: usize = 8 * 1024;
/// Bytes of an index; one of a hundred thousand files has ten million.
const INDEX_BYTES: usize = 16 << 20;

/// A repository, as far as it concerns a walk.
#[derive(Debug)]
pub(crate) struct Repository {
    /// The directory with the `.git` in it.
    pub(crate) root: PathBuf,
    /// Where it keeps its own data: `.git` itself, and for a linked worktree or a submodule where that file points, with what
    /// worktrees share.
    pub(crate) data: Vec<PathBuf>,
    /// What it tracks. `None` when that cannot be known.
    tracked: Option<Tracked>,
}

impl Repository {
    /// The nearest repository at or above this directory, if it belongs to somebody the reader trusts.
    pub(crate) fn around(directory: &Path, reader: &IgnoreReader) -> Option<Self> {
        directory.ancestors().take(PARENTS).find_map(|root| Self::at(root, reader))
    }

    /// The repository whose root this directory is.
    pub(crate) fn at(root: &Path, reader: &IgnoreReader) -> Option<Self> {
        let git = root.join(".git");
        let found = fs::symlink_metadata(&git).ok().filter(|found| reader.trusts(found))?;
        let mut data = Vec::new();
        let own = own_data(&git, &found)?;
        if let Some(shared) = pointer(&own.join("commondir"), "") {
            data.push(own.join(shared));
        }
        let tracked = Tracked::read(&own.join("index"));
        data.insert(0, own);
        Some(Self { root: root.to_owned(), data, tracked })
    }

    /// Whether git would leave this path out where an ignore file says so: what is tracked is not, nor what holds anything
    /// tracked, and where that is not known nothing is.
    pub(crate) fn may_leave_out(&self, path: &Path) -> bool {
        let Ok(path) = path.strip_prefix(&self.root) else { return false };
        self.tracked.as_ref().is_some_and(|tracked| !tracked.has(path))
    }
}

/// Where a `.git` leads.
fn own_data(git: &Path, found: &Metadata) -> Option<PathBuf> {
    if found.is_file() {
        let path = pointer(git, "gitdir:")?;
        return Some(git.parent()?.join(path));
    }
    // A link to a directory is as good as one for git.
    fs::metadata(git).ok().filter(Metadata::is_dir)?;
    Some(git.to_owned())
}

/// The path a small file holds, after a word.
fn pointer(file: &Path, word: &str) -> Option<PathBuf> {
    let bytes = plain::read(file, POINTER_BYTES).ok()??;
    let path = bytes.strip_prefix(word.as_bytes())?.trim_ascii();
    (!path.is_empty() && !path.contains(&0)).then(|| PathBuf::from(OsStr::from_bytes(path)))
}

/// The tracked paths and the directories they lie in, as hashes.
#[derive(Debug)]
struct Tracked {
    hashes: RandomState,
    paths: HashSet<u64>,
}

impl Tracked {
    /// `None` when there is an index that cannot be understood; a repository without one tracks nothing.
    fn read(index: &Path) -> Option<Self> {
        let mut tracked = Self { hashes: RandomState::new(), paths: HashSet::new() };
        if let Some(bytes) = plain::read(index, INDEX_BYTES).ok()? {
            // A repository does not say in its index how long its hashes are.
            let names = names(&bytes, 20).or_else(|| names(&bytes, 32))?;
            names.iter().for_each(|name| tracked.add(name));
        }
        Some(tracked)
    }

    fn add(&mut self, name: &[u8]) {
        let path = Path::new(OsStr::from_bytes(name));
        for path in path.ancestors() {
            // What lies in the same directory has the same ones above it.
            if !self.paths.insert(self.hashes.hash_one(path)) {
                break;
            }
        }
    }

    fn has(&self, path: &Path) -> bool {
        self.paths.contains(&self.hashes.hash_one(path))
    }
}

/// The names in an index of version 2, 3 or 4 whose hashes have so many bytes. `None` when it is none, or is only a part.
fn names(bytes: &[u8], hash: usize) -> Option<Vec<Vec<u8>>> {
    let number = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let (version, count) = (number(4)?, usize::try_from(number(8)?).ok()?);
    if !bytes.starts_with(b"DIRC") || !(2..=4).contains(&version) {
        return None;
    }
    let end = bytes.len().checked_sub(hash)?;
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut at = 12;
    for _ in 0..count {
        let flags = bytes.get(at + 40 + hash..at + 42 + hash)?;
        let extended = version >= 3 && flags[0] & 0x40 != 0;
        let mut from = at + 42 + hash + if extended { 2 } else { 0 };
        let mut name = Vec::new();
        if version == 4 {
            let (cut, next) = offset(bytes, from)?;
            let last = names.last().map_or(&[][..], Vec::as_slice);
            name.extend_from_slice(last.get(..last.len().checked_sub(cut)?)?);
            from = next;
        }
        let length = memchr::memchr(0, bytes.get(from..end)?)?;
        name.extend_from_slice(&bytes[from..from + length]);
        at = if version == 4 { from + length + 1 } else { at + ((from + length - at) / 8 + 1) * 8 };
        // They are sorted; so what was read with the wrong length of hashes is seen.
        if name.is_empty() || names.last().is_some_and(|last| *last > name) {
            return None;
        }
        names.push(name);
    }
    // A part of an index whose other part lies in another file.
    let split = memchr::memmem::find(bytes.get(at..end)?, b"link").is_some_and(|found| found == 0);
    (!split).then_some(names)
}

/// A number as version 4 writes it, and where it ends.
fn offset(bytes: &[u8], mut at: usize) -> Option<(usize, usize)> {
    let mut byte = *bytes.get(at)?;
    let mut value = usize::from(byte & 127);
    while byte & 128 != 0 {
        at += 1;
        byte = *bytes.get(at)?;
        value = value.checked_add(1)?.checked_mul(128)?.checked_add(usize::from(byte & 127))?;
    }
    Some((value, at + 1))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An index of these names, as git writes version 2.
    pub(crate) fn index(names: &[&str]) -> Vec<u8> {
        let mut bytes = b"DIRC\0\0\0\x02".to_vec();
        bytes.extend(u32::try_from(names.len()).expect("few").to_be_bytes());
        for name in names {
            let at = bytes.len();
            bytes.extend([0; 60]);
            bytes.extend(u16::try_from(name.len()).expect("short").to_be_bytes());
            bytes.extend(name.as_bytes());
            let whole = ((bytes.len() - at) / 8 + 1) * 8;
            bytes.resize(at + whole, 0);
        }
        bytes.extend([7; 20]);
        bytes
    }

    #[test]
    fn an_index_is_read_or_not_believed() {
        let whole = index(&["a", "src/deep/b.rs", "src/deep/c.rs"]);
        let read = names(&whole, 20).expect("it is one");
        assert_eq!(read, [b"a".to_vec(), b"src/deep/b.rs".to_vec(), b"src/deep/c.rs".to_vec()]);
        for cut in 0..whole.len() - 20 {
            assert!(names(&whole[..cut], 20).is_none(), "cut at {cut}");
        }
        assert!(names(&whole, 32).is_none(), "hashes of another length");
        assert!(names(&index(&["b", "a"]), 20).is_none(), "out of order");
        let mut split = index(&["a"]);
        let at = split.len() - 20;
        split.splice(at..at, *b"link\0\0\0\0");
        assert!(names(&split, 20).is_none(), "a part");
    }

    #[test]
    fn version_four_shares_the_beginnings_of_names() {
        let mut bytes = b"DIRC\0\0\0\x04\0\0\0\x02".to_vec();
        for (cut, rest) in [(0_u8, &b"src/ab"[..]), (2, b"cd/e")] {
            bytes.extend([0; 62]);
            bytes.push(cut);
            bytes.extend(rest);
            bytes.push(0);
        }
        bytes.extend([7; 20]);
        assert_eq!(names(&bytes, 20).expect("it is one"), [b"src/ab".to_vec(), b"src/cd/e".to_vec()]);
        assert_eq!(offset(&[0x80, 0x00], 0), Some((128, 2)));
    }

    #[test]
    fn what_is_tracked_is_never_left_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        fs::create_dir(root.join(".git")).expect("made");
        let reader = IgnoreReader::new(&fs::metadata(root).expect("there"));
        let left_out = |path: &str| {
            let repository = Repository::around(&root.join("src"), &reader).expect("there is one");
            repository.may_leave_out(&root.join(path))
        };
        assert!(left_out("built/x"), "a repository without an index tracks nothing");
        fs::write(root.join(".git/index"), index(&["src/deep/b.rs"])).expect("written");
        assert!(left_out("src/a") && left_out("built"));
        assert!(!left_out("src/deep/b.rs") && !left_out("src/deep") && !left_out("src"));
        fs::write(root.join(".git/index"), "anything").expect("written");
        assert!(!left_out("built"), "where it is not known what is tracked, nothing is left out");
    }

    #[test]
    fn a_worktree_is_followed_to_its_own_data_and_to_what_it_shares() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("tree");
        let own = dir.path().join("main/.git/worktrees/tree");
        fs::create_dir_all(&own).expect("made");
        fs::create_dir(&root).expect("made");
        fs::write(root.join(".git"), format!("gitdir: {}\n", own.display())).expect("written");
        fs::write(own.join("commondir"), "../..\n").expect("written");
        let reader = IgnoreReader::new(&fs::metadata(&root).expect("there"));
        let found = Repository::at(&root, &reader).expect("there is one");
        assert_eq!(found.data, [own.clone(), own.join("../..")]);
    }
}
