//! The trial a program makes of itself before it says that it can serve and restore.
//!
//! Owns: a client of our own, and what is asked of a system and of a snapshot. May not know: who asks, what the answer is good
//! for.
//!
//! Invariant: nothing is written, locked or started that a running server could notice.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader, Lines};

use super::{Grace, Shutdown, System, SystemBuilder};
use crate::jobs::store;
use crate::rollout::Digest;
use crate::rollout::selfcheck::{NAME, SNAPSHOT_FORMAT, SelfCheck, SelfCheckError};
use crate::system::handover::{HostSnapshot, Restore, SnapshotError};

/// Longest the trial of serving may take by itself; who asks has a bound of its own.
const TRIAL: Duration = Duration::from_secs(4);

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
        program: None,
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
    let restored = HostSnapshot::read(from).and_then(|snapshot| into.check(&snapshot));
    restored.map_err(|error| match error {
        SnapshotError::Format { format, .. } => SelfCheckError::Format { found: format },
        _ => SelfCheckError::Restore,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::selfcheck::RefusalCode;

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
