//! What a world's store can run into: another program that holds it, a disk that is full, a cleaner. What can become of the
//! program's own file while it runs.
//!
//! Owns: making the trouble, and ending it. May not know: what the program makes of it.

#![expect(clippy::expect_used, reason = "what goes wrong in a rig fails the case")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::rig::Rig;
pub use crate::jobs::store::HeldWrites;
use crate::jobs::store::hold_writes;

/// A disk of its own under a world's state directory; unmounted when it is dropped. Declare it after the rig.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Takes all the room there is. Whatever is freed is taken again by the next call.
    ///
    /// # Panics
    ///
    /// When the file that takes it cannot be made.
    pub fn fill(&self) {
        let open = std::fs::OpenOptions::new().create(true).append(true).open(self.filler());
        let mut file = open.expect("a file");
        for size in [64 * 1024, 4096, 512, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
        private(&self.filler());
    }

    /// Gives the room back.
    ///
    /// # Panics
    ///
    /// When it was not taken.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).expect("removed");
    }

    fn filler(&self) -> PathBuf {
        self.at.join("telemetry.filler")
    }
}

fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("a mode");
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What still has a file of it open keeps it until it ends.
        let _ = Command::new("umount").arg("-l").arg(&self.at).stderr(Stdio::null()).status();
    }
}

impl Rig {
    /// Another program holds a write transaction on the store, until this is dropped.
    ///
    /// # Panics
    ///
    /// When there is no store, or it is held already.
    #[must_use]
    pub fn hold_store(&self) -> HeldWrites {
        hold_writes(&self.state_dir().database()).expect("the store is held")
    }

    /// A cleaner removes everything in the state directory.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn empty_state(&self) {
        // Somebody may make something while it goes.
        for _ in 0..10 {
            if std::fs::remove_dir_all(self.state_dir().root()).is_ok() {
                return;
            }
        }
        assert!(!self.state_dir().database().exists(), "the state directory cannot be removed");
    }

    /// The state directory, on a disk of this many bytes; `None` where this user may not mount one. Before the first process.
    ///
    /// # Panics
    ///
    /// When there is a state directory already.
    #[must_use]
    pub fn small_disk(&self, bytes: u64) -> Option<SmallDisk> {
        let at = self.state_dir().root().to_owned();
        std::fs::create_dir(&at).expect("no state directory yet");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=700"), "tmpfs"])
            .arg(&at)
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(SmallDisk { at })
    }
}

/// What can become of the file of a program while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFate {
    /// It loses the permission to be run.
    NotRun,
    /// It loses every permission.
    Closed,
    /// Another program is put in its place.
    Replaced,
    /// A directory is.
    BecameADirectory,
    /// A file is written over it in place, where the system lets a running program's file be written to.
    WrittenOver,
    /// It is removed.
    Removed,
    /// It is removed and loses the permission to be run, which its other name has kept until then.
    RemovedAndNotRun,
}

impl FileFate {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::NotRun,
        Self::Closed,
        Self::Replaced,
        Self::BecameADirectory,
        Self::WrittenOver,
        Self::Removed,
        Self::RemovedAndNotRun,
    ];
}

/// A program's file with another name beside it, so that whatever becomes of it can be undone.
#[derive(Debug)]
pub struct ProgramFile {
    at: PathBuf,
    aside: PathBuf,
}

impl ProgramFile {
    /// The file at this path.
    ///
    /// # Panics
    ///
    /// When its directory is not ours to write to.
    #[must_use]
    pub fn new(at: &Path) -> Self {
        let aside = at.with_extension("aside");
        std::fs::hard_link(at, &aside).expect("another name");
        Self { at: at.to_owned(), aside }
    }

    /// Has this become of it. Whether the system let it.
    ///
    /// # Panics
    ///
    /// When its directory is not ours to write to.
    #[must_use]
    pub fn befall(&self, fate: FileFate) -> bool {
        match fate {
            FileFate::NotRun => self.mode(0o644),
            FileFate::Closed => self.mode(0o000),
            FileFate::Replaced => {
                let new = self.at.with_extension("new");
                std::fs::write(&new, "#!/bin/sh\nexit 7\n").expect("a file");
                super::places::remove(&self.at);
                std::fs::rename(new, &self.at).expect("renamed");
            }
            FileFate::BecameADirectory => {
                super::places::remove(&self.at);
                std::fs::create_dir(&self.at).expect("a directory");
            }
            FileFate::WrittenOver => {
                let open = std::fs::OpenOptions::new().write(true).truncate(true).open(&self.at);
                return open.is_ok_and(|mut file| file.write_all(b"nothing").is_ok());
            }
            FileFate::Removed => super::places::remove(&self.at),
            FileFate::RemovedAndNotRun => {
                super::places::remove(&self.at);
                self.mode(0o644);
            }
        }
        true
    }

    /// The same file at its place again, as it was.
    ///
    /// # Panics
    ///
    /// When its directory is not ours to write to.
    pub fn undo(&self) {
        super::places::remove(&self.at);
        self.mode(0o755);
        std::fs::hard_link(&self.aside, &self.at).expect("its name");
    }

    fn mode(&self, mode: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&self.aside, std::fs::Permissions::from_mode(mode)).expect("a mode");
    }
}

/// A directory on a file system of its own; unmounted when it is dropped.
#[derive(Debug)]
pub struct OwnFileSystem(PathBuf);

impl OwnFileSystem {
    /// Over this empty directory; `None` where this user may not mount one.
    #[must_use]
    pub fn at(dir: &Path) -> Option<Self> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(dir).stderr(Stdio::null()).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(dir.to_owned()))
    }

    /// Nothing that lies there may be run from now on, or everything again. Whether the system let it.
    #[must_use]
    pub fn let_run(&self, run: bool) -> bool {
        let options = if run { "remount,exec" } else { "remount,noexec" };
        let done = Command::new("mount").args(["-o", options]).arg(&self.0).stderr(Stdio::null()).status();
        done.is_ok_and(|status| status.success())
    }
}

impl Drop for OwnFileSystem {
    fn drop(&mut self) {
        // What still has a file of it open keeps it until it ends.
        let _ = Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status();
    }
}
