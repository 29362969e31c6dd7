//! A server in memory whose processes are played by the test and outlive its connections.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::exec::lines::LineReader;
use crate::exec::remote::{Connector, Streams};
use crate::exec::wire::{self, WireError};
use crate::exec::{OutputStream, ProcessEvent};

#[derive(Debug, Default)]
struct Played {
    events: Vec<ProcessEvent>,
    write_ids: Vec<String>,
    written: Vec<u8>,
    terminated: bool,
    input_ended: bool,
}

#[derive(Debug, Default)]
struct State {
    processes: BTreeMap<String, Played>,
    connection: Option<AbortHandle>,
    connections: usize,
    sent: usize,
    held: bool,
    refusal: Option<WireError>,
    files: BTreeMap<String, Vec<u8>>,
    handles: BTreeMap<String, String>,
    opened: usize,
}

/// The server; clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Scripted {
    state: Arc<Mutex<State>>,
    news: Arc<Notify>,
}

impl Scripted {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections to it, one at a time.
    pub(super) fn connector(&self) -> Connector {
        let server = self.clone();
        Box::new(move |_| {
            let server = server.clone();
            async move {
                let (ours, theirs) = tokio::io::duplex(64 * 1024);
                server.cut();
                let (reader, writer) = tokio::io::split(theirs);
                server.state().connections += 1;
                let serving = server.clone();
                let gone = Gone(serving.clone());
                let task = tokio::spawn(async move {
                    let _gone = gone;
                    serving.serve(LineReader::after(&[], reader), writer).await;
                });
                server.state().connection = Some(task.abort_handle());
                let (reader, writer) = tokio::io::split(ours);
                Ok(Streams { reader: Box::new(reader), writer: Box::new(writer), ending: None })
            }
            .boxed()
        })
    }

    /// Ends the connection there is, and forgets what was on its way.
    pub(super) fn cut(&self) {
        if let Some(connection) = self.state().connection.take() {
            connection.abort();
        }
    }

    fn happen(&self, process_id: &str, make: impl FnOnce(u64) -> ProcessEvent) {
        if let Some(played) = self.state().processes.get_mut(process_id) {
            let event = make(played.events.len() as u64 + 1);
            played.events.push(event);
        }
        self.news.notify_one();
    }

    pub(super) fn output(&self, process_id: &str, bytes: &[u8]) {
        let bytes = Bytes::copy_from_slice(bytes);
        self.happen(process_id, |seq| ProcessEvent::Output { seq, stream: OutputStream::Stdout, bytes });
    }

    pub(super) fn end(&self, process_id: &str, code: i32) {
        self.happen(process_id, |seq| ProcessEvent::Exited { seq, code, signal: None });
        self.happen(process_id, |seq| ProcessEvent::Closed { seq });
    }

    pub(super) fn written(&self, process_id: &str) -> Vec<u8> {
        self.state().processes.get(process_id).map(|played| played.written.clone()).unwrap_or_default()
    }

    pub(super) fn terminated(&self, process_id: &str) -> bool {
        self.state().processes.get(process_id).is_some_and(|played| played.terminated)
    }

    pub(super) fn input_ended(&self, process_id: &str) -> bool {
        self.state().processes.get(process_id).is_some_and(|played| played.input_ended)
    }

    pub(super) fn connections(&self) -> usize {
        self.state().connections
    }

    /// Bytes of events written.
    pub(super) fn sent(&self) -> usize {
        self.state().sent
    }

    pub(super) fn opened(&self) -> usize {
        self.state().opened
    }

    /// Whether starts are left unanswered; those that were left are answered afterwards.
    pub(super) fn hold_starts(&self, hold: bool) {
        self.state().held = hold;
        self.news.notify_one();
    }

    pub(super) fn refuse_starts(&self, refusal: Option<WireError>) {
        self.state().refusal = refusal;
    }

    async fn serve(
        &self,
        mut lines: LineReader<ReadHalf<DuplexStream>>,
        mut writer: WriteHalf<DuplexStream>,
    ) -> Option<()> {
        // What was pushed on this connection. One that resumes gets what happened before by reading.
        let mut pushed: BTreeMap<String, usize> =
            self.state().processes.iter().map(|(id, played)| (id.clone(), played.events.len())).collect();
        let mut held: Vec<Value> = Vec::new();
        loop {
            let news = loop {
                let next = {
                    let state = self.state();
                    state.processes.iter().find_map(|(id, played)| {
                        let done = pushed.get(id).copied().unwrap_or(0);
                        played.events.get(done).map(|event| (id.clone(), event.clone(), done))
                    })
                };
                let Some((id, event, done)) = next else { break Some(()) };
                let line = wire::event_line(&id, &event).unwrap().unwrap();
                writer.write_all(&line).await.ok()?;
                self.state().sent += line.len();
                pushed.insert(id, done + 1);
                if let Some(line) = lines.ready() {
                    self.take(&line, &mut held, &mut writer).await?;
                }
            };
            news?;
            if !self.state().held {
                for request in std::mem::take(&mut held) {
                    self.answer(&request, &mut writer).await?;
                }
            }
            tokio::select! {
                line = lines.next() => {
                    let line = line.ok()??;
                    self.take(&line, &mut held, &mut writer).await?;
                }
                () = self.news.notified() => {}
            }
        }
    }

    async fn take(&self, line: &[u8], held: &mut Vec<Value>, writer: &mut WriteHalf<DuplexStream>) -> Option<()> {
        let request: Value = serde_json::from_slice(line).unwrap();
        if request["method"] == "process/start" && self.state().held {
            held.push(request);
            return Some(());
        }
        self.answer(&request, writer).await
    }

    async fn answer(&self, request: &Value, writer: &mut WriteHalf<DuplexStream>) -> Option<()> {
        if request["id"].is_null() {
            return Some(());
        }
        let answer = match self.outcome(request["method"].as_str().unwrap(), &request["params"]) {
            Ok(result) => json!({"id": request["id"], "result": result}),
            Err(error) => json!({"id": request["id"], "error": error}),
        };
        writer.write_all(format!("{answer}\n").as_bytes()).await.ok()
    }

    fn outcome(&self, method: &str, params: &Value) -> Result<Value, WireError> {
        let mut state = self.state();
        let text = |name: &str| params[name].as_str().unwrap_or_default().to_owned();
        let bytes = |name: &str| STANDARD.decode(text(name)).unwrap();
        let process_id = text("processId");
        let unknown = || WireError::new(wire::code::INVALID_REQUEST, "unknown process id");
        match method {
            "initialize" => Ok(json!({"sessionId": "s", "environmentInfo": {
                "capabilities": {"processCloseStdin": true, "terminateGrace": true}}})),
            "process/start" => {
                if let Some(refusal) = state.refusal.clone() {
                    return Err(refusal);
                }
                state.processes.insert(process_id.clone(), Played::default());
                Ok(json!({"processId": process_id}))
            }
            "process/read" => {
                let after = params["afterSeq"].as_u64().unwrap();
                let mut log = crate::exec::ProcessLog::new();
                for event in &state.processes.get(&process_id).ok_or_else(unknown)?.events {
                    log.receive(event.clone());
                }
                Ok(serde_json::to_value(wire::ReadAnswer::from(log.read(after, None))).unwrap())
            }
            "process/write" => {
                let (id, bytes) = (text("writeId"), bytes("chunk"));
                let played = state.processes.get_mut(&process_id).ok_or_else(unknown)?;
                if !played.write_ids.contains(&id) {
                    played.write_ids.push(id);
                    played.written.extend_from_slice(&bytes);
                }
                Ok(json!({"status": "accepted"}))
            }
            "process/closeStdin" => {
                state.processes.get_mut(&process_id).ok_or_else(unknown)?.input_ended = true;
                Ok(json!({}))
            }
            "process/terminate" => {
                let played = state.processes.get_mut(&process_id);
                let running = played.is_some_and(|played| !std::mem::replace(&mut played.terminated, true));
                Ok(json!({"running": running}))
            }
            _ => Self::about_files(&mut state, method, params),
        }
    }

    fn about_files(state: &mut State, method: &str, params: &Value) -> Result<Value, WireError> {
        let text = |name: &str| params[name].as_str().unwrap_or_default().to_owned();
        let bytes = |name: &str| STANDARD.decode(text(name)).unwrap();
        let missing = || WireError::new(wire::code::NOT_FOUND, "not there");
        let offset = usize::try_from(params["offset"].as_u64().unwrap_or(0)).unwrap();
        let handle = state.handles.get(&text("handleId")).cloned().unwrap_or_default();
        match method {
            "fs/writeFile" => {
                state.files.insert(text("path"), bytes("dataBase64"));
                Ok(json!({}))
            }
            "fs/readFile" => {
                let file = state.files.get(&text("path")).ok_or_else(missing)?;
                Ok(json!({"dataBase64": STANDARD.encode(file)}))
            }
            "fs/getMetadata" if text("path") == "file:///" => Ok(json!({"isDirectory": true})),
            "fs/getMetadata" => {
                let file = state.files.get(&text("path")).ok_or_else(missing)?;
                Ok(json!({"isFile": true, "size": file.len()}))
            }
            "fs/open" => {
                state.opened += 1;
                state.handles.insert(text("handleId"), text("path"));
                if text("mode") == "replace" {
                    state.files.insert(text("path"), Vec::new());
                }
                Ok(json!({"handleId": text("handleId")}))
            }
            "fs/readBlock" => {
                let file = state.files.get(&handle).ok_or_else(missing)?;
                let end = file.len().min(offset + usize::try_from(params["len"].as_u64().unwrap()).unwrap());
                Ok(json!({"chunk": STANDARD.encode(&file[offset..end]), "eof": end == file.len()}))
            }
            "fs/writeBlock" => {
                let file = state.files.get_mut(&handle).ok_or_else(missing)?;
                file.truncate(offset);
                file.extend_from_slice(&bytes("chunk"));
                Ok(json!({}))
            }
            "fs/close" => Ok(json!({})),
            _ => Err(WireError::new(wire::code::UNKNOWN_METHOD, "unknown method")),
        }
    }
}

/// Counts a connection that is over.
struct Gone(Scripted);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.state().connections -= 1;
    }
}
