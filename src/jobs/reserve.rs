//! A little room on the disk that is kept to be given up: for an answer on a full disk, and for the pruning that makes room.
//!
//! Owns: the reserve's file. May not know: who is in need of it.

use std::fs;
use std::io::{self, Write as _};

use crate::base::state_dir::{StateDir, open_private};

/// What is kept: the commit of a usual outcome (some 100 KiB) several times over, or of a batch of a pruning.
pub const RESERVE_BYTES: u64 = 1 << 20;

/// The reserve is made only where so many times its size is free: it must not be what fills a disk.
const ROOM: u64 = 16;

/// Makes the reserve, unless it is there or there is little room. Blocks for a millisecond.
///
/// # Errors
///
/// The disk refused; nothing is left of the attempt.
pub fn keep(dir: &StateDir) -> io::Result<()> {
    let path = dir.reserve();
    if fs::symlink_metadata(&path).is_ok_and(|found| found.len() >= RESERVE_BYTES) {
        return Ok(());
    }
    let disk = rustix::fs::statvfs(dir.root())?;
    if disk.f_bavail.saturating_mul(disk.f_frsize) < ROOM * RESERVE_BYTES {
        return Ok(());
    }
    let written = write(&path);
    if written.is_err() {
        let _ = fs::remove_file(&path);
    }
    written
}

fn write(path: &std::path::Path) -> io::Result<()> {
    let mut file = open_private(path)?;
    let mut block = [0_u8; 64 * 1024];
    // Bytes a file system cannot compress away: what is not stored is no room.
    let mut last = 0x9E37_79B9_u32;
    let mut left = RESERVE_BYTES;
    while left > 0 {
        for bytes in block.chunks_exact_mut(4) {
            last ^= last << 13;
            last ^= last >> 17;
            last ^= last << 5;
            bytes.copy_from_slice(&last.to_le_bytes());
        }
        file.write_all(&block)?;
        left = left.saturating_sub(block.len() as u64);
    }
    Ok(())
}

/// Gives the reserve up where the disk is full; whether that made room.
///
/// The disk itself is asked: what a program is told that could not make a file larger has many names.
#[must_use]
pub fn give_up(dir: &StateDir) -> bool {
    let full =
        rustix::fs::statvfs(dir.root()).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < RESERVE_BYTES);
    full && fs::remove_file(dir.reserve()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_made_once_holds_its_room_and_is_kept_while_there_is_room() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        keep(&dir).expect_err("there is no directory");
        dir.create().expect("a directory");
        let room = rustix::fs::statvfs(dir.root()).expect("a disk");
        if room.f_bavail.saturating_mul(room.f_frsize) < ROOM * RESERVE_BYTES {
            return println!("skipped: there is no room on this disk");
        }
        keep(&dir).expect("kept");
        keep(&dir).expect("kept already");
        assert_eq!(fs::metadata(dir.reserve()).expect("there").len(), RESERVE_BYTES);
        assert!(!give_up(&dir), "the disk is not full");
        assert!(dir.reserve().exists());
    }
}
