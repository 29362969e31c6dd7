//! Files in blocks.
//!
//! Owns: one open file: read at any place, or written beside the old one and put in its place when it is closed. May not know: handles.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::{Value, json};

use super::super::wire::{WireError, code};
use super::{BLOCK_BYTES, refused};
use crate::base::base64::Base64;
use crate::base::ids::JobId;

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: File,
    replaces: Option<Mutex<Passing>>,
}

/// A file that is to take another one's name.
#[derive(Debug)]
struct Passing {
    path: PathBuf,
    name: PathBuf,
    /// It has the name now.
    named: bool,
}

impl Drop for Passing {
    fn drop(&mut self) {
        if !self.named {
            // Made by us, under a name nobody guesses.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn not_a_file() -> WireError {
    WireError::new(code::INVALID_REQUEST, "it is not a regular file")
}

impl OpenFile {
    pub(super) fn to_read(path: &Path) -> Result<Self, WireError> {
        // A pipe must not be waited for.
        let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
        let file = file.map_err(|error| refused(&error))?;
        if !file.metadata().map_err(|error| refused(&error))?.is_file() {
            return Err(not_a_file());
        }
        Ok(Self { file, replaces: None })
    }

    pub(super) fn to_replace(path: &Path) -> Result<Self, WireError> {
        // A link stays one: what it leads to is replaced.
        let name = match std::fs::canonicalize(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(refused(&error)),
        };
        let before = match std::fs::metadata(&name) {
            Ok(found) if found.is_file() => Some(found.permissions()),
            Ok(_) => return Err(not_a_file()),
            Err(_) => None,
        };
        let Some(last) = name.file_name() else { return Err(not_a_file()) };
        let mut passing = std::ffi::OsString::from(".");
        passing.push(last);
        passing.push(format!(".{}", JobId::random()));
        let passing = name.with_file_name(passing);
        let file = OpenOptions::new().write(true).create_new(true).open(&passing).map_err(|error| refused(&error))?;
        let passing = Passing { path: passing, name, named: false };
        if let Some(before) = before {
            let mode = std::fs::Permissions::from_mode(before.mode() & 0o7777);
            file.set_permissions(mode).map_err(|error| refused(&error))?;
        }
        Ok(Self { file, replaces: Some(Mutex::new(passing)) })
    }

    pub(super) fn read(&self, offset: u64, length: usize) -> Result<Value, WireError> {
        if !(1..=BLOCK_BYTES).contains(&length) {
            return Err(WireError::new(code::INVALID_PARAMS, format!("accepted for `len`: 1 to {BLOCK_BYTES}")));
        }
        if self.replaces.is_some() {
            return Err(WireError::new(code::INVALID_REQUEST, "it is open for writing"));
        }
        let mut block = vec![0; length];
        let mut filled = 0;
        while filled < length {
            let at = offset.saturating_add(filled as u64);
            match self.file.read_at(&mut block[filled..], at).map_err(|error| refused(&error))? {
                0 => break,
                read => filled += read,
            }
        }
        block.truncate(filled);
        let end = self.file.metadata().map_err(|error| refused(&error))?.len();
        let eof = filled < length || offset.saturating_add(filled as u64) >= end;
        Ok(json!({ "chunk": Base64(block.into()), "eof": eof }))
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), WireError> {
        if self.replaces.is_none() {
            return Err(WireError::new(code::INVALID_REQUEST, "it is open for reading"));
        }
        if bytes.len() > BLOCK_BYTES {
            return Err(WireError::new(code::INVALID_PARAMS, format!("a block has at most {BLOCK_BYTES} bytes")));
        }
        self.file.write_all_at(bytes, offset).map_err(|error| refused(&error))
    }

    pub(super) fn close(&self) -> Result<(), WireError> {
        let Some(passing) = &self.replaces else { return Ok(()) };
        let mut passing = passing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // On the disk before it has the name: after a loss of power there is the old one or the whole new one.
        self.file.sync_all().map_err(|error| refused(&error))?;
        std::fs::rename(&passing.path, &passing.name).map_err(|error| refused(&error))?;
        passing.named = true;
        Ok(())
    }
}
