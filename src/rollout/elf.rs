//! Whether a file can be a program of this machine, by its first bytes.
//!
//! Owns: the little of the ELF format that tells a whole program for this machine from a part of one or another's. May
//! not know: what becomes of the file.
//!
//! It is asked before the file is run, because a C library may hand what the kernel does not take to a shell, and half a
//! program is no script anybody meant. Systems with other formats are not told apart here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What the beginning of a file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A whole program for this machine, a script that names its interpreter, or a format we know nothing about.
    Runnable,
    /// A program for another machine.
    Foreign,
    /// A program whose end is missing.
    Truncated,
    /// Neither a program nor a script.
    Unknown,
}

/// The machine, the word size and the byte order of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Machine {
    class: u8,
    order: u8,
    number: u16,
}

const MAGIC: &[u8; 4] = b"\x7fELF";
/// Length of a header of a 64-bit program.
const HEADER: usize = 64;
const CLASS_64: u8 = 2;
const LITTLE: u8 = 1;
/// A part of the file that is loaded.
const LOAD: u32 = 1;
/// Program headers looked at; linkers make about a dozen.
const MOST_PARTS: u16 = 256;

/// Looks at a file; `ours` is the running image, as a file. Without it every machine passes for ours.
///
/// # Errors
///
/// The file cannot be read.
pub(super) fn kind(path: &Path, ours: Option<&Path>) -> io::Result<Kind> {
    let file = File::open(path)?;
    let mut head = [0; HEADER];
    let read = read_at(&file, &mut head, 0)?;
    let head = &head[..read];
    if head.starts_with(b"#!") {
        return Ok(Kind::Runnable);
    }
    if !cfg!(target_os = "linux") {
        return Ok(if head.is_empty() { Kind::Unknown } else { Kind::Runnable });
    }
    if !head.starts_with(MAGIC) {
        // The first byte of a download may be all there is of it.
        return Ok(if !head.is_empty() && MAGIC.starts_with(head) { Kind::Truncated } else { Kind::Unknown });
    }
    let Some(machine) = machine(head) else { return Ok(Kind::Truncated) };
    if ours.and_then(machine_of).is_some_and(|own| own != machine) {
        return Ok(Kind::Foreign);
    }
    if machine.class != CLASS_64 || machine.order != LITTLE {
        return Ok(Kind::Runnable);
    }
    Ok(if is_whole(&file, head)? { Kind::Runnable } else { Kind::Truncated })
}

fn machine_of(path: &Path) -> Option<Machine> {
    let mut head = [0; HEADER];
    let read = read_at(&File::open(path).ok()?, &mut head, 0).ok()?;
    machine(&head[..read])
}

fn machine(head: &[u8]) -> Option<Machine> {
    let &[class, order] = head.get(4..6)? else { return None };
    let number = [*head.get(18)?, *head.get(19)?];
    let number = if order == LITTLE { u16::from_le_bytes(number) } else { u16::from_be_bytes(number) };
    Some(Machine { class, order, number })
}

/// Whether everything that is to be loaded is there, and the table of sections, which linkers write last.
fn is_whole(file: &File, head: &[u8]) -> io::Result<bool> {
    let size = file.metadata()?.len();
    let (Some(at), Some(length), Some(count)) = (long(head, 32), short(head, 54), short(head, 56)) else {
        return Ok(false);
    };
    if head.len() < HEADER || count == 0 || count > MOST_PARTS || length < 56 {
        return Ok(false);
    }
    let sections = long(head, 40).zip(short(head, 58)).zip(short(head, 60));
    let last = sections.and_then(|((at, length), count)| at.checked_add(u64::from(length) * u64::from(count)));
    if last.is_none_or(|last| last > size) {
        return Ok(false);
    }
    let mut table = vec![0; usize::from(length) * usize::from(count)];
    if read_at(file, &mut table, at)? < table.len() {
        return Ok(false);
    }
    Ok(table.chunks_exact(usize::from(length)).all(|part| {
        let loaded = part.get(..4).is_some_and(|kind| kind == LOAD.to_le_bytes());
        let end = long(part, 8).zip(long(part, 32)).and_then(|(from, length)| from.checked_add(length));
        !loaded || end.is_some_and(|end| end <= size)
    }))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// As much as there is.
fn read_at(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match file.read_at(&mut into[filled..], at.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(all(test, target_os = "linux", target_pointer_width = "64", target_endian = "little"))]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_program_is_told_from_parts_of_it_and_from_what_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let ours = std::env::current_exe().expect("our own file");
        let whole = fs::read(&ours).expect("read");
        let path = dir.path().join("file");
        let kind_of = |bytes: &[u8]| {
            fs::write(&path, bytes).expect("written");
            kind(&path, Some(&ours)).expect("read")
        };
        assert_eq!(kind(&ours, Some(&ours)).expect("read"), Kind::Runnable);
        for size in [1, 4, 5, 19, 63, 64, 100, 4096, whole.len() / 2] {
            assert_eq!(kind_of(&whole[..size]), Kind::Truncated, "{size} bytes of it");
        }
        let mut foreign = whole[..4096].to_vec();
        foreign[18] ^= 0x55;
        assert_eq!(kind_of(&foreign), Kind::Foreign);
        foreign[18] ^= 0x55;
        foreign[4] = 1;
        assert_eq!(kind_of(&foreign), Kind::Foreign, "a program of 32 bits");
        assert_eq!(kind_of(b"#!/bin/sh\nexit 1\n"), Kind::Runnable);
        for other in [&b""[..], b"echo hello\n", b"PK\x03\x04", b"\x7fELG"] {
            assert_eq!(kind_of(other), Kind::Unknown, "{other:?}");
        }
        assert!(kind(&dir.path().join("gone"), None).is_err());
    }
}
