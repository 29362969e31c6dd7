//! The ledger: every movement of a jar, in the order in which it happened.
//!
//! A movement is one line with a checksum at its end. After a crash the last line may be torn; it is cut off when the ledger is
//! opened again, and everything before it counts.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use crate::shelf::Shelves;

/// The file, open for appending.
pub struct Ledger {
    file: File,
}

impl Ledger {
    /// Opens it, without a torn last line.
    pub fn open(path: &Path) -> io::Result<Self> {
        let whole = whole_lines(path)?;
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        file.set_len(whole)?;
        Ok(Self { file })
    }

    /// Writes a movement and waits until the disk has it.
    pub fn append(&mut self, movement: &str) -> io::Result<()> {
        writeln!(self.file, "{movement} {:08x}", checksum(movement))?;
        self.file.sync_data()
    }
}

/// Shelves as the ledger leaves them.
pub fn replay(path: &Path) -> io::Result<Shelves> {
    let mut shelves = Shelves::default();
    for line in BufReader::new(File::open(path)?).lines() {
        apply(&mut shelves, &line?);
    }
    Ok(shelves)
}

fn whole_lines(path: &Path) -> io::Result<u64> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at as u64 + 1))
}

fn apply(_shelves: &mut Shelves, _movement: &str) {}

fn checksum(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
