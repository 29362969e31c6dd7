//! Whose a candidate is: a program that takes over acts with everything this server may do.
//!
//! Owns: which owners and modes of a file, and of the directory it lies in, are trusted. May not know: what is in the file,
//! what follows from a refusal.
//!
//! A file is trusted when it belongs to this user, to root, or to the owner of the running image, and when nobody else may
//! write it. Its group may where the group is its owner's alone: with the umask 002 that many systems set, every program a
//! user builds is such a file. Its directory is looked at because whoever may rename there can put another file in its place
//! between the check and the start: it must belong to one of the same, and not be open to everybody, unless names in it are
//! kept by their owners (the sticky bit). A group that may write to the directory may install there: distributions set up
//! `/usr/local/bin` and the like in this way, and a file such a member puts there is refused for its owner.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User};

use super::candidate::Verdict;

/// What its group, and what everybody, may write.
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;

/// Names in a directory are removed by their owners only.
const STICKY: u32 = 0o1000;

/// Who may do what with a file or a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    owner: u32,
    group: u32,
    mode: u32,
}

impl Access {
    fn of(path: &Path) -> io::Result<Self> {
        let found = std::fs::metadata(path)?;
        Ok(Self { owner: found.uid(), group: found.gid(), mode: found.mode() & 0o7777 })
    }
}

/// Who is trusted besides root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trusted {
    ours: u32,
    /// The owner of the running image: whatever that one can do, it does already.
    image: Option<u32>,
}

impl Trusted {
    fn includes(self, owner: u32) -> bool {
        owner == 0 || owner == self.ours || Some(owner) == self.image
    }

    /// Judges a file; `is_private` says whether a group is its owner's alone.
    pub(super) fn file(self, found: Access, is_private: impl Fn(u32, u32) -> bool) -> Result<(), Verdict> {
        let Access { owner, group, mode } = found;
        if !self.includes(owner) {
            return Err(Verdict::ForeignOwner { owner });
        }
        if mode & OTHERS_WRITE != 0 || (mode & GROUP_WRITES != 0 && !is_private(owner, group)) {
            return Err(Verdict::WritableByOthers { mode });
        }
        Ok(())
    }

    /// Judges a directory.
    pub(super) fn directory(self, dir: &Path, found: Access) -> Result<(), Verdict> {
        let open = found.mode & OTHERS_WRITE != 0 && found.mode & STICKY == 0;
        if self.includes(found.owner) && !open {
            return Ok(());
        }
        Err(Verdict::LooseDirectory { dir: dir.to_owned(), owner: found.owner, mode: found.mode })
    }
}

/// Looks at a candidate and where it lies. Blocks; a directory of users may be asked.
pub(super) fn check(program: &Path, image: Option<&Path>) -> Result<(), Verdict> {
    let gone = |_| Verdict::Replaced;
    let trusted = Trusted {
        ours: rustix::process::geteuid().as_raw(),
        image: image.and_then(|image| Access::of(image).ok()).map(|found| found.owner),
    };
    trusted.file(Access::of(program).map_err(gone)?, is_private)?;
    // The file may be reached through a link: the one lies in one directory, the other in another.
    let resolved = std::fs::canonicalize(program).map_err(gone)?;
    let dirs = [program.parent(), resolved.parent()];
    for dir in dirs.into_iter().flatten().filter(|dir| !dir.as_os_str().is_empty()) {
        trusted.directory(dir, Access::of(dir).map_err(gone)?)?;
    }
    Ok(())
}

/// Whether a group is a user's alone: it has the user's name, and no other member.
fn is_private(owner: u32, group: u32) -> bool {
    let user = User::from_uid(Uid::from_raw(owner)).ok().flatten();
    let group = Group::from_gid(Gid::from_raw(group)).ok().flatten();
    user.zip(group)
        .is_some_and(|(user, group)| group.name == user.name && group.mem.iter().all(|member| *member == user.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u32 = 1000;
    const IMAGE: u32 = 1001;
    const FOREIGN: u32 = 1002;
    const PRIVATE: u32 = 50;
    const SHARED: u32 = 60;

    fn trusted() -> Trusted {
        Trusted { ours: US, image: Some(IMAGE) }
    }

    #[test]
    fn a_file_is_trusted_by_its_owner_and_by_who_may_write_it() {
        let cases = [
            (US, SHARED, 0o755, "trusted"),
            (0, SHARED, 0o755, "trusted"),
            (IMAGE, SHARED, 0o555, "trusted"),
            (FOREIGN, SHARED, 0o755, "foreign_owner"),
            (65534, SHARED, 0o700, "foreign_owner"),
            (US, PRIVATE, 0o775, "trusted"),
            (0, PRIVATE, 0o775, "trusted"),
            (US, SHARED, 0o775, "writable_by_others"),
            (0, SHARED, 0o770, "writable_by_others"),
            (US, PRIVATE, 0o757, "writable_by_others"),
            (US, PRIVATE, 0o777, "writable_by_others"),
            // The sticky bit of a file says nothing.
            (US, PRIVATE, 0o1777, "writable_by_others"),
            (FOREIGN, SHARED, 0o777, "foreign_owner"),
        ];
        for (owner, group, mode, wants) in cases {
            let judged = trusted().file(Access { owner, group, mode }, |_, group| group == PRIVATE);
            assert_eq!(judged.map_or_else(|verdict| verdict.code(), |()| "trusted"), wants, "{owner} {group} {mode:o}");
        }
    }

    #[test]
    fn a_directory_is_trusted_unless_somebody_else_may_rename_in_it() {
        let cases = [
            (US, 0o755, true),
            (0, 0o755, true),
            (IMAGE, 0o700, true),
            (FOREIGN, 0o755, false),
            // Distributions let a group install.
            (0, 0o2775, true),
            (0, 0o777, false),
            (US, 0o757, false),
            (0, 0o1777, true),
            (FOREIGN, 0o1777, false),
        ];
        for (owner, mode, good) in cases {
            let judged = trusted().directory(Path::new("/d"), Access { owner, group: SHARED, mode });
            assert_eq!(judged.is_ok(), good, "{owner} {mode:o}");
        }
    }

    #[test]
    fn the_image_that_runs_is_trusted_where_it_lies() {
        let program = std::env::current_exe().expect("a path");
        // Whoever may write to the build directory besides us is not ours to judge here.
        let judged = check(&program, Some(&program)).map_err(|verdict| verdict.code());
        assert!(matches!(judged, Ok(()) | Err("writable_by_others" | "loose_directory")), "{judged:?}");
        assert_eq!(check(Path::new("/nonexistent/program"), None), Err(Verdict::Replaced));
    }
}
