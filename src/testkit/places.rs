//! What can stand in the place of a file that is read by its name: a checkout may hold any of it.

#![expect(clippy::expect_used, reason = "what goes wrong in a rig fails the case")]

use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;

/// A thing that is no plain file of a reasonable size, or that is nobody's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stand {
    /// A pipe nobody writes to.
    Fifo,
    /// A link to a device that never ends.
    LinkToZero,
    /// A link to the reader's own input.
    LinkToStdin,
    /// A link to a file of somebody's secrets.
    LinkToSecret,
    /// A link to itself.
    LinkToItself,
    /// Ten gigabytes without content.
    SparseGiant,
    /// A directory.
    Directory,
    /// A plain file nobody may read. Root may read everything, so nothing is put there for it.
    Unreadable,
}

/// What [`Stand::LinkToSecret`] leads to; may be seen nowhere.
pub const SECRET: &str = "aws_secret_access_key = wJalr-canary-secret";

impl Stand {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Fifo,
        Self::LinkToZero,
        Self::LinkToStdin,
        Self::LinkToSecret,
        Self::LinkToItself,
        Self::SparseGiant,
        Self::Directory,
        Self::Unreadable,
    ];

    /// Puts it at this path, in place of what is there. Whether it could be put.
    ///
    /// # Panics
    ///
    /// When the directory is not ours to write to.
    #[must_use]
    pub fn put(self, path: &Path) -> bool {
        remove(path);
        match self {
            Self::Fifo => {
                nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o644)).expect("a pipe");
            }
            Self::LinkToZero => symlink("/dev/zero", path).expect("a link"),
            Self::LinkToStdin => symlink("/dev/stdin", path).expect("a link"),
            Self::LinkToSecret => {
                let secret = path.with_file_name("credentials-elsewhere");
                std::fs::write(&secret, SECRET).expect("a file");
                symlink(&secret, path).expect("a link");
            }
            Self::LinkToItself => symlink(path, path).expect("a link"),
            Self::SparseGiant => {
                let file = std::fs::File::create(path).expect("a file");
                // A file system without sparse files has no such giant either.
                return file.set_len(10 << 30).is_ok();
            }
            Self::Directory => std::fs::create_dir(path).expect("a directory"),
            Self::Unreadable => {
                std::fs::write(path, "").expect("a file");
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o000)).expect("its mode");
                return !rustix::process::geteuid().is_root();
            }
        }
        true
    }
}

/// Gives a file to another user. Whether that is possible: only root may.
#[must_use]
pub fn give_away(path: &Path, uid: u32) -> bool {
    chown(path, Some(uid), Some(uid)).is_ok()
}

/// Takes away whatever is at this path.
///
/// # Panics
///
/// When it cannot be taken away.
pub fn remove(path: &Path) {
    match std::fs::symlink_metadata(path) {
        Err(_) => {}
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path).expect("removed"),
        Ok(_) => std::fs::remove_file(path).expect("removed"),
    }
}
