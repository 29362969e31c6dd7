//! What a world's store can run into: another program that holds it, a disk that is full, a cleaner.
//!
//! Owns: making the trouble, and ending it. May not know: what the program makes of it.

#![expect(clippy::expect_used, reason = "what goes wrong in a rig fails the case")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::rig::Rig;
use crate::jobs::store::{HeldWrites, hold_writes};

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
