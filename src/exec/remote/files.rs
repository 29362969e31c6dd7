//! The files of another machine.
//!
//! Owns: the calls about files and when one is read or written in blocks. May not know: connections.
//!
//! Reading is sent again after a lost connection, writing is not: what became of it is then not known.

use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::core::CallKind;
use super::{RemoteExec, uri};
use crate::base::base64::Base64;
use crate::exec::backend::{Depth, DirectoryEntry, ExecFiles, FileMetadata, FilesError};
use crate::exec::client::{CALL_DEADLINE, ExecError};
use crate::exec::wire::{WireError, code};

/// Files above this are read and written in blocks: in base64 a larger one nears the 16 MiB that one line may have.
const WHOLE_MOST: usize = 8 * 1024 * 1024;

/// One block, the most the protocol allows.
const BLOCK_BYTES: usize = 1024 * 1024;

const READ_FILE: &str = "fs/readFile";
const WRITE_FILE: &str = "fs/writeFile";
const CREATE_DIRECTORY: &str = "fs/createDirectory";
const GET_METADATA: &str = "fs/getMetadata";
const READ_DIRECTORY: &str = "fs/readDirectory";
const REMOVE: &str = "fs/remove";
const COPY: &str = "fs/copy";
const OPEN: &str = "fs/open";
const READ_BLOCK: &str = "fs/readBlock";
const WRITE_BLOCK: &str = "fs/writeBlock";
const CLOSE: &str = "fs/close";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Whole {
    data_base64: Base64,
}

#[derive(Deserialize)]
struct Block {
    chunk: Base64,
    eof: bool,
}

#[derive(Deserialize)]
struct Entries {
    entries: Vec<DirectoryEntry>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WriteFileParams {
    path: String,
    data_base64: Base64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WriteBlockParams<'a> {
    handle_id: &'a str,
    offset: usize,
    chunk: Base64,
}

impl RemoteExec {
    async fn about_file<T: DeserializeOwned>(
        &self,
        method: &'static str,
        path: &Path,
        params: &impl Serialize,
        kind: CallKind,
    ) -> Result<T, FilesError> {
        match self.call(method, params, kind, Some(CALL_DEADLINE)).await {
            Err(ExecError::Refused { error: WireError { code: code::NOT_FOUND, .. }, .. }) => {
                Err(FilesError::Missing { path: path.to_owned() })
            }
            other => Ok(other?),
        }
    }

    async fn change_file(&self, method: &'static str, path: &Path, params: Value) -> Result<(), FilesError> {
        let _: IgnoredAny = self.about_file(method, path, &params, CallKind::Once).await?;
        Ok(())
    }

    /// Opens a file to be read or replaced in blocks; `None` where the server knows no blocks.
    async fn open(&self, path: &Path, mode: &str) -> Result<Option<OpenFile<'_>>, FilesError> {
        let handle_id = Uuid::new_v4().to_string();
        let params = json!({"handleId": handle_id, "path": uri(path)?, "mode": mode});
        match self.change_file(OPEN, path, params).await {
            Err(FilesError::Exec(ExecError::Refused {
                error: WireError { code: code::UNKNOWN_METHOD, .. }, ..
            })) => Ok(None),
            other => other.map(|()| Some(OpenFile { remote: self, path: path.to_owned(), handle_id })),
        }
    }
}

/// A file that is open there.
struct OpenFile<'a> {
    remote: &'a RemoteExec,
    path: PathBuf,
    handle_id: String,
}

impl OpenFile<'_> {
    async fn read(&self) -> Result<Bytes, FilesError> {
        let mut read = BytesMut::new();
        loop {
            let params = json!({"handleId": self.handle_id, "offset": read.len(), "len": BLOCK_BYTES});
            let block: Block = self.remote.about_file(READ_BLOCK, &self.path, &params, CallKind::Harmless).await?;
            read.extend_from_slice(&block.chunk.0);
            // A block that is empty and not the last would be asked for again for ever.
            if block.eof || block.chunk.0.is_empty() {
                return Ok(read.freeze());
            }
        }
    }

    async fn write(&self, bytes: &Bytes) -> Result<(), FilesError> {
        for offset in (0..bytes.len()).step_by(BLOCK_BYTES) {
            let chunk = Base64(bytes.slice(offset..bytes.len().min(offset + BLOCK_BYTES)));
            // The same bytes at the same place: it may be sent again.
            let params = WriteBlockParams { handle_id: &self.handle_id, offset, chunk };
            let _: IgnoredAny = self.remote.about_file(WRITE_BLOCK, &self.path, &params, CallKind::Harmless).await?;
        }
        Ok(())
    }

    async fn close(self) -> Result<(), FilesError> {
        self.remote.change_file(CLOSE, &self.path, json!({"handleId": self.handle_id})).await
    }
}

impl ExecFiles for RemoteExec {
    fn read_file<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Bytes, FilesError>> {
        async move {
            let size = ExecFiles::metadata(self, path).await?.size;
            if usize::try_from(size).unwrap_or(usize::MAX) > WHOLE_MOST
                && let Some(file) = self.open(path, "read").await?
            {
                let read = file.read().await;
                file.close().await?;
                return read;
            }
            let params = json!({"path": uri(path)?});
            let whole: Whole = self.about_file(READ_FILE, path, &params, CallKind::Harmless).await?;
            Ok(whole.data_base64.0)
        }
        .boxed()
    }

    fn write_file<'a>(&'a self, path: &'a Path, bytes: Bytes) -> BoxFuture<'a, Result<(), FilesError>> {
        async move {
            if bytes.len() > WHOLE_MOST
                && let Some(file) = self.open(path, "replace").await?
            {
                let written = file.write(&bytes).await;
                let closed = file.close().await;
                return written.and(closed);
            }
            let params = WriteFileParams { path: uri(path)?, data_base64: Base64(bytes) };
            let _: IgnoredAny = self.about_file(WRITE_FILE, path, &params, CallKind::Once).await?;
            Ok(())
        }
        .boxed()
    }

    fn create_directory<'a>(&'a self, path: &'a Path, depth: Depth) -> BoxFuture<'a, Result<(), FilesError>> {
        async move {
            let params = json!({"path": uri(path)?, "recursive": depth == Depth::Whole});
            self.change_file(CREATE_DIRECTORY, path, params).await
        }
        .boxed()
    }

    fn metadata<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<FileMetadata, FilesError>> {
        async move {
            let params = json!({"path": uri(path)?});
            self.about_file(GET_METADATA, path, &params, CallKind::Harmless).await
        }
        .boxed()
    }

    fn read_directory<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Vec<DirectoryEntry>, FilesError>> {
        async move {
            let params = json!({"path": uri(path)?});
            let read: Entries = self.about_file(READ_DIRECTORY, path, &params, CallKind::Harmless).await?;
            Ok(read.entries)
        }
        .boxed()
    }

    fn remove<'a>(&'a self, path: &'a Path, depth: Depth) -> BoxFuture<'a, Result<(), FilesError>> {
        async move {
            let params = json!({"path": uri(path)?, "recursive": depth == Depth::Whole, "force": false});
            self.change_file(REMOVE, path, params).await
        }
        .boxed()
    }

    fn copy<'a>(&'a self, from: &'a Path, to: &'a Path, depth: Depth) -> BoxFuture<'a, Result<(), FilesError>> {
        async move {
            let params = json!({
                "sourcePath": uri(from)?, "destinationPath": uri(to)?, "recursive": depth == Depth::Whole,
            });
            self.change_file(COPY, from, params).await
        }
        .boxed()
    }
}
