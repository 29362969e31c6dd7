//! Files and directories, a call at a time.
//!
//! Owns: what each call does and refuses. May not know: the wire's envelope, handles.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::super::wire::{WireError, code, cwd_uri};
use super::{READ_BYTES, refused};
use crate::base::base64::Base64;

/// Entries of a directory that are listed, or copied in one call: larger trees are for a program on that machine.
const ENTRIES: usize = 100_000;

fn invalid(text: impl Into<String>) -> WireError {
    WireError::new(code::INVALID_REQUEST, text)
}

pub(super) fn read_file(path: &Path) -> Result<Value, WireError> {
    // A pipe must not be waited for.
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let file = file.map_err(|error| refused(&error))?;
    let found = file.metadata().map_err(|error| refused(&error))?;
    if !found.is_file() {
        return Err(invalid("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    if found.len() <= READ_BYTES {
        file.take(READ_BYTES + 1).read_to_end(&mut bytes).map_err(|error| refused(&error))?;
    }
    if found.len() > READ_BYTES || bytes.len() as u64 > READ_BYTES {
        return Err(invalid(format!("it has more than {READ_BYTES} bytes; read it by fs/open and fs/readBlock")));
    }
    Ok(json!({ "dataBase64": Base64(bytes.into()) }))
}

pub(super) fn write_file(path: &Path, text: &str) -> Result<(), WireError> {
    let bytes = STANDARD.decode(text).map_err(|error| invalid(format!("dataBase64: {error}")))?;
    fs::write(path, bytes).map_err(|error| refused(&error))
}

pub(super) fn create_directory(path: &Path, recursive: bool) -> Result<(), WireError> {
    let made = if recursive { fs::create_dir_all(path) } else { fs::create_dir(path) };
    made.map_err(|error| refused(&error))
}

pub(super) fn metadata(path: &Path) -> Result<Value, WireError> {
    let is_link = fs::symlink_metadata(path).map_err(|error| refused(&error))?.is_symlink();
    let found = fs::metadata(path).map_err(|error| refused(&error))?;
    Ok(json!({
        "isDirectory": found.is_dir(),
        "isFile": found.is_file(),
        "isSymlink": is_link,
        "size": found.len(),
        "createdAtMs": found.created().map_or(0, milliseconds),
        "modifiedAtMs": found.modified().map_or(0, milliseconds),
    }))
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}

pub(super) fn read_directory(path: &Path) -> Result<Value, WireError> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| refused(&error))? {
        let entry = entry.map_err(|error| refused(&error))?;
        // A link that leads nowhere is left out, as is what went meanwhile.
        let Ok(found) = fs::metadata(entry.path()) else { continue };
        if entries.len() >= ENTRIES {
            return Err(invalid(format!("it has more than {ENTRIES} entries")));
        }
        entries.push(json!({
            "fileName": entry.file_name().to_string_lossy(),
            "isDirectory": found.is_dir(),
            "isFile": found.is_file(),
        }));
    }
    Ok(json!({ "entries": entries }))
}

pub(super) fn canonicalize(path: &Path) -> Result<Value, WireError> {
    let found = fs::canonicalize(path).map_err(|error| refused(&error))?;
    Ok(json!({ "path": cwd_uri(&found) }))
}

pub(super) fn remove(path: &Path, recursive: bool, force: bool) -> Result<(), WireError> {
    let removed = fs::symlink_metadata(path).and_then(|found| match () {
        () if !found.is_dir() => fs::remove_file(path),
        () if recursive => fs::remove_dir_all(path),
        () => fs::remove_dir(path),
    });
    match removed {
        Err(error) if force && error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|error| refused(&error)),
    }
}

pub(super) fn copy(from: &Path, to: &Path, recursive: bool) -> Result<(), WireError> {
    let found = fs::symlink_metadata(from).map_err(|error| refused(&error))?;
    if found.is_dir() {
        if !recursive {
            return Err(invalid("a directory is copied with `recursive` only"));
        }
        if is_within(to, from).map_err(|error| refused(&error))? {
            return Err(invalid("a directory is not copied into itself"));
        }
    }
    let mut waiting = vec![(from.to_owned(), to.to_owned())];
    let mut copied = 0;
    while let Some((from, to)) = waiting.pop() {
        copied += 1;
        if copied > ENTRIES {
            return Err(invalid(format!("there are more than {ENTRIES} entries to be copied")));
        }
        copy_one(&from, &to, &mut waiting)?;
    }
    Ok(())
}

fn copy_one(from: &Path, to: &Path, waiting: &mut Vec<(PathBuf, PathBuf)>) -> Result<(), WireError> {
    let found = fs::symlink_metadata(from).map_err(|error| refused(&error))?;
    if found.is_symlink() {
        let leads = fs::read_link(from).map_err(|error| refused(&error))?;
        return std::os::unix::fs::symlink(leads, to).map_err(|error| refused(&error));
    }
    if found.is_dir() {
        match fs::create_dir(to) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && to.is_dir() => {}
            other => other.map_err(|error| refused(&error))?,
        }
        for entry in fs::read_dir(from).map_err(|error| refused(&error))? {
            let entry = entry.map_err(|error| refused(&error))?;
            waiting.push((entry.path(), to.join(entry.file_name())));
        }
        return Ok(());
    }
    if !found.is_file() {
        return Err(invalid("only files, directories and links are copied"));
    }
    fs::copy(from, to).map(|_| ()).map_err(|error| refused(&error))
}

/// Whether a path, which need not be there yet, lies in a directory.
fn is_within(path: &Path, dir: &Path) -> io::Result<bool> {
    let dir = fs::canonicalize(dir)?;
    let mut at = path;
    loop {
        match fs::canonicalize(at) {
            Ok(found) => return Ok(found.starts_with(&dir)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match at.parent() {
                Some(parent) => at = parent,
                None => return Ok(false),
            },
            Err(error) => return Err(error),
        }
    }
}
