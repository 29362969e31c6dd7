//! Files of a server's machine.
//!
//! Owns: the `fs/*` calls: what each does, its bounds, its errors; streamed files and their handles. May not know: connections,
//! processes, who may see what; a peer is the server's own user.
//!
//! Invariants: (1) nothing here runs on the runtime's thread; (2) no answer is larger than a message; (3) a file that is replaced
//! in pieces has its old content until it is closed, and its new one then, at once; what is not closed leaves nothing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use self::stream::OpenFile;
use super::server::Extra;
use super::wire::{self, WireError, code, read_cwd};
use crate::base::base64::Base64;
use crate::base::tasks;

mod plain;
mod stream;

/// The largest file one call reads: in base64 it still fits into the 64 MiB of a message. Larger ones are read in blocks.
pub const READ_BYTES: u64 = 45 * 1024 * 1024;

/// The largest block of a streamed file.
pub const BLOCK_BYTES: usize = 1024 * 1024;

/// Streamed files of one session: a descriptor each.
pub const HANDLES: usize = 64;

/// The streamed files of one session.
#[derive(Debug, Default)]
pub struct FileHandles(Mutex<HashMap<String, Arc<OpenFile>>>);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OnPath {
    path: String,
    #[serde(default)]
    sandbox: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WriteFile {
    path: String,
    data_base64: String,
    #[serde(default)]
    sandbox: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreateDirectory {
    path: String,
    #[serde(default)]
    recursive: Option<bool>,
    #[serde(default)]
    sandbox: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Remove {
    path: String,
    #[serde(default)]
    recursive: Option<bool>,
    #[serde(default)]
    force: Option<bool>,
    #[serde(default)]
    sandbox: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Copy {
    source_path: String,
    destination_path: String,
    recursive: bool,
    #[serde(default)]
    sandbox: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Open {
    handle_id: String,
    path: String,
    #[serde(default)]
    mode: FileMode,
    #[serde(default)]
    sandbox: Option<Value>,
}

/// What a streamed file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FileMode {
    #[default]
    Read,
    Replace,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadBlock {
    handle_id: String,
    offset: u64,
    len: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WriteBlock {
    handle_id: String,
    offset: u64,
    chunk: Base64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OnHandle {
    handle_id: String,
}

#[derive(Serialize)]
struct Nothing {}

/// A call of this module; `None` for other methods.
pub(super) fn call(name: &str, params: &RawValue, handles: &Arc<FileHandles>) -> Option<Extra> {
    let is_streamed = matches!(name, "fs/open" | "fs/readBlock" | "fs/writeBlock" | "fs/close");
    // Those of one handle keep their order, so that they need not be waited for.
    let lane = is_streamed
        .then(|| serde_json::from_str::<OnHandle>(params.get()).ok())
        .flatten()
        .map(|on| format!("\0file {}", on.handle_id));
    let size = params.get().len();
    let work = perform(name, params, handles)?;
    let work = Box::pin(async move {
        // Not cancelled with the connection: what was begun is finished.
        match tasks::spawn_blocking(work).await {
            Ok(outcome) => outcome,
            Err(error) => Err(WireError::new(code::INTERNAL, error.to_string())),
        }
    });
    Some(Extra { lane, size, work })
}

type Work = Box<dyn FnOnce() -> Result<Box<RawValue>, WireError> + Send>;

fn perform(name: &str, params: &RawValue, handles: &Arc<FileHandles>) -> Option<Work> {
    let params = params.to_owned();
    let handles = Arc::clone(handles);
    Some(match name {
        "fs/readFile" => work(params, |on: OnPath| plain::read_file(&place(&on.path, &on.sandbox)?)),
        "fs/writeFile" => work(params, |write: WriteFile| {
            plain::write_file(&place(&write.path, &write.sandbox)?, &write.data_base64).map(|()| Nothing {})
        }),
        "fs/createDirectory" => work(params, |create: CreateDirectory| {
            let path = place(&create.path, &create.sandbox)?;
            plain::create_directory(&path, create.recursive.unwrap_or(true)).map(|()| Nothing {})
        }),
        "fs/getMetadata" => work(params, |on: OnPath| plain::metadata(&place(&on.path, &on.sandbox)?)),
        "fs/readDirectory" => work(params, |on: OnPath| plain::read_directory(&place(&on.path, &on.sandbox)?)),
        "fs/canonicalize" => work(params, |on: OnPath| plain::canonicalize(&place(&on.path, &on.sandbox)?)),
        "fs/remove" => work(params, |remove: Remove| {
            let path = place(&remove.path, &remove.sandbox)?;
            let (recursive, force) = (remove.recursive.unwrap_or(true), remove.force.unwrap_or(true));
            plain::remove(&path, recursive, force).map(|()| Nothing {})
        }),
        "fs/copy" => work(params, |copy: Copy| {
            let (from, to) = (place(&copy.source_path, &copy.sandbox)?, place(&copy.destination_path, &None)?);
            plain::copy(&from, &to, copy.recursive).map(|()| Nothing {})
        }),
        "fs/open" => work(params, move |open: Open| {
            let path = place(&open.path, &open.sandbox)?;
            handles.open(open.handle_id, &path, open.mode)
        }),
        "fs/readBlock" => {
            work(params, move |read: ReadBlock| handles.get(&read.handle_id)?.read(read.offset, read.len))
        }
        "fs/writeBlock" => work(params, move |write: WriteBlock| {
            handles.get(&write.handle_id)?.write(write.offset, &write.chunk.0).map(|()| Nothing {})
        }),
        "fs/close" => work(params, move |on: OnHandle| handles.close(&on.handle_id).map(|()| Nothing {})),
        _ => return None,
    })
}

fn work<P, A, F>(params: Box<RawValue>, call: F) -> Work
where
    P: DeserializeOwned,
    A: Serialize,
    F: FnOnce(P) -> Result<A, WireError> + Send + 'static,
{
    Box::new(move || {
        let answer = call(wire::read_params(&params)?)?;
        serde_json::value::to_raw_value(&answer).map_err(|error| WireError::new(code::INTERNAL, error.to_string()))
    })
}

/// The path of either dialect. A sandbox cannot be enforced here, so what asks for one is refused.
fn place(path: &str, sandbox: &Option<Value>) -> Result<PathBuf, WireError> {
    if sandbox.is_some() {
        return Err(WireError::new(code::INVALID_PARAMS, "this server has no sandbox to enforce"));
    }
    read_cwd(path).map_err(|error| WireError::new(code::INVALID_PARAMS, error.to_string()))
}

/// What the system refused.
fn refused(error: &std::io::Error) -> WireError {
    let code = if error.kind() == std::io::ErrorKind::NotFound { code::NOT_FOUND } else { code::INTERNAL };
    WireError::new(code, error.to_string())
}

impl FileHandles {
    fn open(&self, id: String, path: &Path, mode: FileMode) -> Result<Value, WireError> {
        let refuse = |text: String| Err(WireError::new(code::INVALID_REQUEST, text));
        {
            let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if open.contains_key(&id) {
                return refuse(format!("file handle `{id}` already exists"));
            }
            if open.len() >= HANDLES {
                return refuse(format!("{HANDLES} files are open already"));
            }
        }
        let file = match mode {
            FileMode::Read => OpenFile::to_read(path)?,
            FileMode::Replace => OpenFile::to_replace(path)?,
        };
        let answer = serde_json::json!({ "handleId": id });
        // The lane of the handle keeps another one of this name away meanwhile.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::new(file));
        Ok(answer)
    }

    fn get(&self, id: &str) -> Result<Arc<OpenFile>, WireError> {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(id).cloned().ok_or_else(|| WireError::new(code::NOT_FOUND, format!("unknown file handle `{id}`")))
    }

    fn close(&self, id: &str) -> Result<(), WireError> {
        let closed = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        closed.map_or(Ok(()), |file| file.close())
    }
}

#[cfg(test)]
mod tests;
