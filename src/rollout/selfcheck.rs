//! What a program says when it is asked about itself, and the trial of serving and of restoring it makes before it does.
//!
//! Owns: the one line of `mcp selfcheck --json`, which a program of an earlier or a later version has to understand. May
//! not know: who asks, and what the answer is good for.
//!
//! Invariants: (1) nothing is written, locked or started that a running server could notice; (2) members may be added to
//! the lines, and none is renamed or taken away.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader, Lines};

use super::fingerprint::Digest;
use crate::fault::Fault;
use crate::handover::{self, Restore, Snapshot, SnapshotError};
use crate::store;
use crate::system::{Grace, Shutdown, System, SystemBuilder};

/// The version of the snapshots this program writes and reads.
pub const SNAPSHOT_FORMAT: u32 = handover::FORMAT;

/// Longest the trial of serving may take by itself; who asks has a bound of its own.
const TRIAL: Duration = Duration::from_secs(4);

/// The line a program says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfCheck {
    /// Always `phone-opus`: another program at the same path is no candidate.
    pub selfcheck: String,
    /// Its version.
    pub version: String,
    /// Snapshots of this version it restores, and no others.
    pub snapshot_format: u32,
    /// Whether it restores a snapshot from an open file that has no name. Absent where it looks for a path.
    #[serde(default)]
    pub takes_descriptor: bool,
    /// The latest version of the job store it speaks.
    pub store_schema: i64,
    /// Tells its tools from those of another version; nothing is decided by it.
    pub catalog: String,
    /// Whether it has restored the snapshot it was given, without serving from it. Absent when it was given none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<bool>,
}

/// The name in [`SelfCheck::selfcheck`].
pub const NAME: &str = "phone-opus";

/// The line of a program that cannot do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why, as one of a few words.
    pub refused: RefusalCode,
    /// Why, in words that hold nothing of the snapshot's content.
    pub reason: String,
    /// The version of a snapshot that was refused for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<u32>,
}

/// Why a program cannot do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// It cannot serve a client.
    Serve,
    /// The snapshot is of another version.
    SnapshotFormat,
    /// The snapshot cannot be restored.
    Restore,
}

/// What went wrong in the trial.
#[derive(Debug, thiserror::Error)]
pub enum SelfCheckError {
    /// The system did not start, or ended by itself.
    #[error("start: {0}")]
    Start(Box<Fault>),
    /// It did not answer a client as it should.
    #[error("answer a client's {method}")]
    Answer {
        /// What was asked.
        method: &'static str,
    },
    /// It did not end in order.
    #[error("end in order")]
    End,
    /// A snapshot is of another format.
    #[error("restore a snapshot of format {found}; accepted: {SNAPSHOT_FORMAT}")]
    Format {
        /// Of which.
        found: u32,
    },
    /// A snapshot cannot be read or restored. More is not said, since what cannot be read may be quoted in the reason, and it
    /// holds prompts.
    #[error("restore the snapshot")]
    Restore,
}

impl SelfCheckError {
    /// The line that says so.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let (refused, found) = match self {
            Self::Start(_) | Self::Answer { .. } | Self::End => (RefusalCode::Serve, None),
            Self::Format { found } => (RefusalCode::SnapshotFormat, Some(*found)),
            Self::Restore => (RefusalCode::Restore, None),
        };
        Refusal { refused, reason: format!("failed to {self}"), found }
    }
}

/// Has the system serve a client of our own once, ends it, and says what it is.
///
/// # Errors
///
/// It does not do what every client asks of it.
///
/// # Cancel safety
///
/// Not safe: the system may be left running.
pub async fn serve_once(system: System) -> Result<SelfCheck, SelfCheckError> {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (input, sink) = tokio::io::split(theirs);
    let (from, mut to) = tokio::io::split(ours);
    let mut lines = BufReader::new(from).lines();
    let client = async {
        let params =
            r#"{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"selfcheck","version":"1"}}"#;
        ask(&mut to, &mut lines, "initialize", 1, params).await?;
        let tools = ask(&mut to, &mut lines, "tools/list", 2, "{}").await?;
        ask(&mut to, &mut lines, "ping", 3, "{}").await?;
        Ok(tools)
    };
    let tools = tokio::select! {
        tools = client => tools,
        served = system.serve(input, sink) => Err(match served {
            Err(fault) => SelfCheckError::Start(Box::new(fault)),
            Ok(_) => SelfCheckError::Answer { method: "initialize" },
        }),
        () = tokio::time::sleep(TRIAL) => Err(SelfCheckError::Answer { method: "ping" }),
    };
    let ended = system.shutdown(Grace::default()).await;
    let tools = tools?;
    if !matches!(ended, Shutdown::InOrder) {
        return Err(SelfCheckError::End);
    }
    Ok(SelfCheck {
        selfcheck: NAME.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        snapshot_format: SNAPSHOT_FORMAT,
        takes_descriptor: true,
        store_schema: store::schema_known(),
        catalog: Digest::of(&tools).to_string(),
        restored: None,
    })
}

/// The line a request is answered with, which holds a result.
async fn ask<R: AsyncRead + Unpin>(
    to: &mut (impl AsyncWriteExt + Unpin),
    from: &mut Lines<BufReader<R>>,
    method: &'static str,
    id: u32,
    params: &str,
) -> Result<String, SelfCheckError> {
    let failed = || SelfCheckError::Answer { method };
    let line = format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"{method}\",\"params\":{params}}}\n");
    to.write_all(line.as_bytes()).await.map_err(|_| failed())?;
    let answer = from.next_line().await.ok().flatten().ok_or_else(failed)?;
    let whole: serde_json::Value = serde_json::from_str(&answer).map_err(|_| failed())?;
    if whole["id"] == id && whole["result"].is_object() { Ok(answer) } else { Err(failed()) }
}

/// Restores a snapshot as far as that is possible without touching what it is about: descriptors, processes, the store.
///
/// Blocks. The file stays where it is.
///
/// # Errors
///
/// A restore would fail too.
pub fn restore(into: SystemBuilder, from: &Restore) -> Result<(), SelfCheckError> {
    let restored = Snapshot::read(from).and_then(|snapshot| into.check(&snapshot));
    restored.map_err(|error| match error {
        SnapshotError::Format { format, .. } => SelfCheckError::Format { found: format },
        _ => SelfCheckError::Restore,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_later_program_is_understood_and_one_of_another_program_is_not() {
        let later = r#"{"selfcheck":"phone-opus","version":"9.0.0","snapshot_format":7,"store_schema":12,
                        "catalog":"00","restored":true,"and_more":{"x":1}}"#;
        let read: SelfCheck = serde_json::from_str(later).expect("understood");
        assert_eq!((read.snapshot_format, read.store_schema, read.restored), (7, 12, Some(true)));
        let without = r#"{"selfcheck":"phone-opus","version":"9.0.0"}"#;
        assert!(serde_json::from_str::<SelfCheck>(without).is_err());
    }

    #[test]
    fn a_snapshot_of_another_format_is_told_from_what_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("snapshot");
        let restored = |text: &str| {
            std::fs::write(&path, text).expect("written");
            restore(System::builder(), &Restore::Path(path.clone()))
                .map_err(|error| (error.refusal().refused, error.refusal().found))
        };
        assert_eq!(restored(r#"{"format":0,"program":"0"}"#), Err((RefusalCode::SnapshotFormat, Some(0))));
        assert_eq!(restored(r#"{"format":99,"program":"9"}"#), Err((RefusalCode::SnapshotFormat, Some(99))));
        for text in ["", "{", "[]", r#"{"format":"1"}"#, r#"{"format":1,"program":"0","session":"a prompt"}"#] {
            assert_eq!(restored(text), Err((RefusalCode::Restore, None)), "{text}");
        }
        std::fs::remove_file(&path).expect("removed");
        let none = restore(System::builder(), &Restore::Path(path.clone())).map_err(|error| error.refusal());
        assert!(none.is_err_and(|refusal| !refusal.reason.contains("prompt")));
    }
}
