//! Bytes of any kind, given to an exec server as what its peer writes.
//!
//! Owns: a table of processes that are none, and an account of the answers. May not know: where the bytes come from.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::exec::wire::{
    StartParams, StartResult, WireError, WireIncoming, WireSignal, WireWriteStatus, WriteParams, code, method,
};
use crate::exec::{OutputStream, ProcessSession, ProcessTable, Server};

/// What the whole of one input may take; everything that waits is answered at its end.
const BOUND: Duration = Duration::from_secs(10);

/// Processes that were started and have ended at once.
#[derive(Clone, Default)]
struct Played(Arc<Mutex<HashMap<String, ProcessSession>>>);

impl Played {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<String, ProcessSession>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProcessTable for Played {
    fn session(&self, process_id: &str) -> Option<ProcessSession> {
        self.all().get(process_id).cloned()
    }

    fn terminate(&self, process_id: &str) -> bool {
        self.all().contains_key(process_id)
    }

    async fn start(&self, params: StartParams) -> Result<StartResult, WireError> {
        if self.all().contains_key(&params.process_id) {
            return Err(WireError::new(code::INVALID_REQUEST, "the name is taken"));
        }
        let session = ProcessSession::new();
        for word in &params.argv {
            let _ = session.publish_output(OutputStream::Stdout, Bytes::from(word.clone()));
        }
        if !params.tty {
            let _ = session.publish_exited(0, None);
            let _ = session.publish_closed();
        }
        self.all().insert(params.process_id.clone(), session);
        Ok(StartResult { process_id: params.process_id, sandbox_type: None })
    }

    async fn write(&self, params: WriteParams) -> Result<WireWriteStatus, WireError> {
        let known = self.all().contains_key(&params.process_id);
        Ok(if known { WireWriteStatus::Accepted } else { WireWriteStatus::UnknownProcess })
    }

    fn signal(&self, _process_id: &str, _signal: WireSignal) -> Result<(), WireError> {
        Ok(())
    }
}

/// What is owed for a line.
enum Owed {
    /// One answer with this id, as JSON.
    Answer(String),
    /// Nothing.
    Nothing,
    /// Nothing any more, for it and for all that follows.
    Everything,
}

fn owed(line: &[u8], greeted: bool) -> Owed {
    match WireIncoming::parse(line) {
        Ok(WireIncoming::Request { id, .. }) => Owed::Answer(serde_json::to_string(&id).unwrap_or_default()),
        Ok(WireIncoming::Notification { method, .. }) if method == method::INITIALIZED && greeted => Owed::Nothing,
        Ok(WireIncoming::Notification { .. } | WireIncoming::Response { .. }) => Owed::Everything,
        Err(_) => Owed::Answer("-1".to_owned()),
    }
}

/// Gives these bytes to a server and holds what it writes to its laws.
///
/// # Panics
///
/// When a line that is owed an answer has none or two, an answer is no JSON, or the events of a process have a gap.
pub fn exec_server(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return };
    let written = runtime.block_on(async {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (reader, writer) = tokio::io::split(theirs);
        let mut server = Server::start(reader, writer, Played::default());
        let (mut read, mut write) = tokio::io::split(ours);
        let mut written = Vec::new();
        let speaking = async {
            let _ = write.write_all(data).await;
            let _ = write.shutdown().await;
            server.peer_gone().await;
            server.finish(BOUND).await;
        };
        let reading = read.read_to_end(&mut written);
        let (_, _) = tokio::join!(speaking, reading);
        written
    });
    check(data, &written);
}

fn check(data: &[u8], written: &[u8]) {
    let mut answers: HashMap<String, usize> = HashMap::new();
    let mut last: HashMap<String, u64> = HashMap::new();
    let mut greeted_by = None;
    for line in written.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let Ok(message) = serde_json::from_slice::<Value>(line) else {
            panic!("a line that is no message: {}", String::from_utf8_lossy(line));
        };
        match message.get("id") {
            Some(id) => {
                assert!(message.get("error").is_some() != message.get("result").is_some(), "{message}");
                *answers.entry(id.to_string()).or_default() += 1;
                if message["result"].get("sessionId").is_some() {
                    greeted_by.get_or_insert(id.to_string());
                }
            }
            None => {
                let process = message["params"]["processId"].to_string();
                let seq = message["params"]["seq"].as_u64().unwrap_or_default();
                let last = last.entry(process).or_default();
                assert!(seq > *last, "position {seq} after {last}: {message}");
                *last = seq;
            }
        }
    }
    // A last line without its end is no message.
    let whole = data.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines = data[..whole].split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let (mut least, mut most): (HashMap<String, usize>, HashMap<String, usize>) = Default::default();
    let mut ended = false;
    let mut greeted = false;
    for line in lines {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match owed(line, greeted) {
            Owed::Answer(id) => {
                greeted |= greeted_by.as_ref() == Some(&id);
                *most.entry(id.clone()).or_default() += 1;
                *least.entry(id).or_default() += usize::from(!ended);
            }
            Owed::Nothing => {}
            Owed::Everything => ended = true,
        }
    }
    for (id, count) in &answers {
        assert!(*count <= most.get(id).copied().unwrap_or_default(), "{count} answers with the id {id}");
    }
    for (id, count) in least {
        let had = answers.get(&id).copied().unwrap_or_default();
        assert!(had >= count, "{had} answers with the id {id}, and {count} are owed");
    }
}
