//! The log file: one JSON object per line, rotated, shared by all processes of a state directory.
//!
//! Invariants: (1) records are appended whole, many per write, so lines of two processes never mix; (2) the file is
//! 0600; (3) a write that fails costs its records, which are counted, and nothing else.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek as _, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use super::{Record, ToolCallRecord};
use crate::base::fault::FaultCode;
use crate::base::ids::{Generation, UnixMillis};
use crate::protocol::session::FinishedAs;

/// Size at which the file is moved aside.
const ROTATE_AT: u64 = 8 * 1024 * 1024;

/// Old files kept.
const KEPT: u32 = 4;

/// Batches that may wait for the disk; then they are dropped and counted.
const WAITING_BATCHES: usize = 16;

/// Bytes of whole lines that are written at once: more is memory that stays with the thread, less is more system calls.
const WRITTEN_AT: usize = 16 * 1024;

/// Characters of a request's id that are logged.
const ID_SHOWN: usize = 64;

/// Bytes a line has room for that says nothing beyond numbers and names: the longest id, and a name longer than most.
const PLAIN_LINE: usize = 512;

/// The schema of the lines; additions do not change it.
pub const SCHEMA: u32 = 1;

/// A line of the file. The names are stable.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LogLine {
    /// A finished tool call.
    ToolCall {
        /// When it was finished.
        ts_unix_ms: i64,
        /// The version of these lines.
        schema: u32,
        /// The repository `path_hint` lies in.
        repo_root: Option<String>,
        /// The session's number within its host process.
        session: u64,
        /// The request's id as the client wrote it.
        request_id: String,
        tool_name: String,
        /// The directory it was about.
        path_hint: Option<String>,
        /// From the line's arrival to its answer.
        latency_ms: f64,
        /// Attempts after the first.
        replay_attempts: u32,
        /// `success`, `error` or `cancelled`.
        outcome: &'static str,
        /// The fault's code.
        error_code: Option<&'static str>,
        /// The fault's class.
        error_kind: Option<crate::base::fault::FaultClass>,
        /// The code in words. Never the fault's own text: an agent's error may quote the prompt.
        error_message: Option<String>,
        /// The worker it ran in, when known.
        generation: Option<u64>,
        /// The job it was about.
        job_id: Option<String>,
    },
    /// A worker was started again.
    WorkerRestart {
        ts_unix_ms: i64,
        /// The new incarnation.
        generation: u64,
    },
    /// A job changed its state.
    JobState {
        ts_unix_ms: i64,
        /// Which job.
        job_id: String,
        /// To which state.
        state: &'static str,
        /// Why it did not succeed.
        error_code: Option<&'static str>,
        /// What it cost in US dollars.
        cost_usd: Option<f64>,
    },
    /// A rollout has ended.
    Rollout {
        ts_unix_ms: i64,
        /// `adopted`, `rejected` or `failed`.
        outcome: &'static str,
        /// What was wrong, as one word.
        verdict: Option<&'static str>,
        /// Who began it: `watch`, `reload`, `signal` or `variable`.
        trigger: &'static str,
        /// The version that serves.
        version: &'static str,
        /// From the first look to the end; 0 for the image that took over.
        took_ms: u64,
        /// How long nobody served while the images changed; only where one was adopted.
        #[serde(skip_serializing_if = "Option::is_none")]
        gap_ms: Option<u64>,
    },
    /// Something failed.
    Fault {
        ts_unix_ms: i64,
        /// The fault's code.
        code: &'static str,
        class: crate::base::fault::FaultClass,
        /// The part at work.
        stage: crate::base::fault::Stage,
        /// The worker it happened in.
        generation: Option<u64>,
        /// What was being done.
        operation: Option<String>,
    },
    /// The directories asked about most.
    HotPathsSnapshot {
        ts_unix_ms: i64,
        /// Directory and calls, most first.
        paths: Vec<(String, u64)>,
    },
}

/// What is handed to the writing thread.
#[derive(Debug)]
pub enum LogEntry {
    Record(Record),
    /// A hot-path snapshot.
    HotPaths(Vec<(String, u64)>),
}

/// Whether a batch is written whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Torn {
    /// It is.
    No,
    /// A fault plan wants its first half only.
    InHalf,
}

/// A moment by both clocks, from which the times of day of a batch are told: reading the clock once for a batch is cheaper
/// than once for each call.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// By the runtime's clock.
    pub at: Instant,
    /// By the wall's.
    pub wall: UnixMillis,
}

impl Moment {
    /// The time of day at an instant not long before this moment.
    #[must_use]
    pub fn wall_at(self, at: Instant) -> UnixMillis {
        let ago = self.at.saturating_duration_since(at).as_millis();
        UnixMillis(self.wall.0.saturating_sub(i64::try_from(ago).unwrap_or(0)))
    }
}

/// Records that are written at once, how, and when they were taken.
type Batch = (Vec<LogEntry>, Torn, Moment);

/// The thread that writes the file. Started by the first batch; ends when this is dropped.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    lost: Arc<AtomicU64>,
    thread: Option<(SyncSender<Batch>, JoinHandle<()>)>,
}

impl LogWriter {
    /// A writer that has not touched the disk yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, lost: Arc::new(AtomicU64::new(0)), thread: None }
    }

    /// Records that could not be written.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Hands a batch to the disk's thread; never waits.
    pub fn write(&mut self, batch: Vec<LogEntry>, torn: Torn, taken: Moment) {
        let count = batch.len() as u64;
        if self.thread.is_none() {
            let (batches, handed) = sync_channel::<Batch>(WAITING_BATCHES);
            let mut file = LogFile::new(self.path.clone());
            let lost = Arc::clone(&self.lost);
            let work = move || {
                crate::base::signals::leave_to_others();
                while let Ok((batch, torn, taken)) = handed.recv() {
                    lost.fetch_add(file.append(batch, torn, taken), Ordering::Relaxed);
                }
            };
            match std::thread::Builder::new().name("telemetry".into()).stack_size(128 * 1024).spawn(work) {
                Ok(thread) => self.thread = Some((batches, thread)),
                Err(_) => {
                    self.lost.fetch_add(count, Ordering::Relaxed);
                    return;
                }
            }
        }
        let Some((batches, _)) = &self.thread else { return };
        match batches.try_send((batch, torn, taken)) {
            Ok(()) => {}
            Err(TrySendError::Full((batch, ..))) => drop(self.lost.fetch_add(batch.len() as u64, Ordering::Relaxed)),
            Err(TrySendError::Disconnected((batch, ..))) => {
                // It panicked, with a batch or more that nobody can count; the next batch starts another one.
                self.lost.fetch_add(batch.len() as u64, Ordering::Relaxed);
                self.thread = None;
            }
        }
    }

    /// Ends the thread after it has written what it was given. Blocks for that long. How many records were lost.
    pub fn close(mut self) -> u64 {
        if let Some((batches, thread)) = self.thread.take() {
            drop(batches);
            let _ = thread.join();
        }
        self.lost()
    }
}

struct LogFile {
    path: PathBuf,
    open: Option<File>,
    repositories: std::collections::HashMap<String, Option<String>>,
    /// Whole lines that are to be written; kept from batch to batch for its room.
    text: Vec<u8>,
}

impl LogFile {
    fn new(path: PathBuf) -> Self {
        Self { path, open: None, repositories: std::collections::HashMap::new(), text: Vec::new() }
    }

    /// Writes a batch. How many of its records were lost.
    fn append(&mut self, batch: Vec<LogEntry>, torn: Torn, taken: Moment) -> u64 {
        let mut text = std::mem::take(&mut self.text);
        let (mut waiting, mut lost) = (0, 0);
        for entry in &batch {
            self.line_of(&mut text, entry, taken);
            waiting += 1;
            if text.len() >= WRITTEN_AT && torn == Torn::No {
                lost += self.write_out(&mut text).map_or(waiting, |()| 0);
                waiting = 0;
            }
        }
        if torn == Torn::InHalf {
            text.truncate(text.len() / 2);
            let _ = self.write_out(&mut text);
            lost = waiting;
        } else {
            lost += self.write_out(&mut text).map_or(waiting, |()| 0);
        }
        self.text = text;
        lost
    }

    /// Writes these lines and empties the buffer they stand in. All of them, or none.
    fn write_out(&mut self, text: &mut Vec<u8>) -> std::io::Result<()> {
        let written = if text.is_empty() { Ok(()) } else { self.ready().and_then(|file| write_whole(file, text)) };
        text.clear();
        written
    }

    /// Puts an entry's line, if it has one, behind the others.
    fn line_of(&mut self, text: &mut Vec<u8>, entry: &LogEntry, taken: Moment) {
        if let LogEntry::Record(Record::ToolCall(call)) = entry
            && let Some(outcome) = plain_outcome(call)
        {
            plain_tool_call(text, call, taken.wall_at(call.at), outcome);
            return;
        }
        let Some(line) = self.line(entry, taken) else { return };
        let start = text.len();
        match serde_json::to_writer(&mut *text, &line) {
            Ok(()) => text.push(b'\n'),
            Err(_) => text.truncate(start),
        }
    }

    /// The file, reopened when another process has moved it aside, moved aside when it is full.
    fn ready(&mut self) -> std::io::Result<&mut File> {
        let current = self.open.as_ref().and_then(|file| file.metadata().ok());
        let named = fs::metadata(&self.path).ok();
        let same = matches!((&current, &named), (Some(a), Some(b)) if a.ino() == b.ino() && a.dev() == b.dev());
        if !same {
            self.open = None;
        }
        if named.is_some_and(|file| file.len() >= ROTATE_AT) {
            self.rotate()?;
        }
        match &mut self.open {
            Some(file) => Ok(file),
            closed => {
                let open = || {
                    let no_links = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
                    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(no_links).open(&self.path)
                };
                let file = match open() {
                    // Nothing else may have used the state directory yet.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        let parent = self.path.parent().unwrap_or(Path::new("/"));
                        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
                        open()?
                    }
                    opened => opened?,
                };
                Ok(closed.insert(file))
            }
        }
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        let guard = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.with_extension("lock"))?;
        flock(&guard, FlockOperation::LockExclusive)?;
        // Another process may have done it while we waited.
        if fs::metadata(&self.path).is_ok_and(|file| file.len() >= ROTATE_AT) {
            let old = |n: u32| self.path.with_extension(format!("jsonl.{n}"));
            for n in (1..KEPT).rev() {
                let _ = fs::rename(old(n), old(n + 1));
            }
            fs::rename(&self.path, old(1))?;
        }
        self.open = None;
        Ok(())
    }

    fn line(&mut self, entry: &LogEntry, taken: Moment) -> Option<LogLine> {
        let now = taken.wall.0;
        Some(match entry {
            LogEntry::HotPaths(paths) => LogLine::HotPathsSnapshot { ts_unix_ms: now, paths: paths.clone() },
            LogEntry::Record(Record::Request { .. }) => return None,
            LogEntry::Record(Record::ToolCall(call)) => {
                let at = taken.wall_at(call.at);
                self.tool_call(call, at)
            }
            LogEntry::Record(Record::WorkerRestart { generation }) => {
                LogLine::WorkerRestart { ts_unix_ms: now, generation: generation.0 }
            }
            LogEntry::Record(Record::JobState { job, state, code, cost_usd }) => LogLine::JobState {
                ts_unix_ms: now,
                job_id: job.to_string(),
                state: state.as_str(),
                error_code: code.map(FaultCode::as_str),
                cost_usd: *cost_usd,
            },
            LogEntry::Record(Record::Rollout(rollout)) => LogLine::Rollout {
                ts_unix_ms: now,
                outcome: rollout.outcome,
                verdict: rollout.verdict,
                trigger: rollout.by,
                version: env!("CARGO_PKG_VERSION"),
                took_ms: u64::try_from(rollout.took.as_millis()).unwrap_or(u64::MAX),
                gap_ms: rollout.gap.map(|gap| u64::try_from(gap.as_millis()).unwrap_or(u64::MAX)),
            },
            LogEntry::Record(Record::Fault(fault)) => LogLine::Fault {
                ts_unix_ms: now,
                code: fault.code.as_str(),
                class: fault.class,
                stage: fault.stage,
                generation: fault.generation.map(|generation| generation.0),
                operation: fault.operation.clone(),
            },
        })
    }

    fn tool_call(&mut self, call: &ToolCallRecord, at: UnixMillis) -> LogLine {
        let code = match call.result {
            FinishedAs::Failed(code) => Some(code),
            FinishedAs::Success | FinishedAs::Cancelled => None,
        };
        LogLine::ToolCall {
            ts_unix_ms: at.0,
            schema: SCHEMA,
            repo_root: call.path_hint.as_deref().and_then(|path| self.repository(path)),
            session: call.session.0,
            request_id: request_id(call).to_owned(),
            tool_name: call.tool.to_string(),
            path_hint: call.path_hint.clone(),
            latency_ms: latency_ms(call.latency),
            replay_attempts: call.replays,
            outcome: match call.result {
                FinishedAs::Success => "success",
                FinishedAs::Failed(_) => "error",
                FinishedAs::Cancelled => "cancelled",
            },
            error_code: code.map(FaultCode::as_str),
            error_kind: code.map(FaultCode::class),
            error_message: code.map(|code| code.as_str().replace('_', " ")),
            generation: (call.generation != Generation::NONE).then_some(call.generation.0),
            job_id: call.job.map(|job| job.to_string()),
        }
    }

    fn repository(&mut self, path: &str) -> Option<String> {
        if self.repositories.len() > 256 {
            self.repositories.clear();
        }
        self.repositories
            .entry(path.to_owned())
            .or_insert_with(|| {
                let root = Path::new(path).ancestors().find(|dir| dir.join(".git").exists())?;
                Some(root.display().to_string())
            })
            .clone()
    }
}

/// Writes everything. Where the file may not grow that far (a full disk, a limit), what has got through is taken back, so
/// that no half of a line is left to be read.
fn write_whole(file: &mut File, text: &[u8]) -> std::io::Result<()> {
    let mut written = 0;
    while written < text.len() {
        match file.write(&text[written..]) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(more) => written += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                let end = file.stream_position()?;
                // Unless another process has written behind it meanwhile.
                if written > 0 && file.metadata()?.len() == end {
                    file.set_len(end.saturating_sub(written as u64))?;
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

/// The id as the client wrote it, shortened.
fn request_id(call: &ToolCallRecord) -> &str {
    let id = call.request_id.as_ref().map_or("", |id| id.as_str());
    if id.len() <= ID_SHOWN {
        return id;
    }
    id.char_indices().nth(ID_SHOWN).map_or(id, |(end, _)| &id[..end])
}

/// How a call came out about which there is nothing to say beyond numbers and names, as its line says it.
fn plain_outcome(call: &ToolCallRecord) -> Option<&'static str> {
    let plain = call.path_hint.is_none() && call.job.is_none();
    match call.result {
        FinishedAs::Success if plain => Some(r#","outcome":"success""#),
        FinishedAs::Cancelled if plain => Some(r#","outcome":"cancelled""#),
        _ => None,
    }
}

/// Appends the line of such a call, the same [`LogLine::ToolCall`] would be. At the rate a worker can answer, writing it
/// member by member through the serialiser would take a quarter of the host's time.
fn plain_tool_call(text: &mut Vec<u8>, call: &ToolCallRecord, at: UnixMillis, outcome: &str) {
    fn member(text: &mut Vec<u8>, name: &str, value: &(impl Serialize + ?Sized)) {
        text.extend_from_slice(name.as_bytes());
        let start = text.len();
        // Numbers and strings; writing to memory cannot fail.
        if serde_json::to_writer(&mut *text, value).is_err() {
            text.truncate(start);
            text.extend_from_slice(b"null");
        }
    }
    fn name(text: &mut Vec<u8>, name: &str, value: &str) {
        if value.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
            for part in [name, "\"", value, "\""] {
                text.extend_from_slice(part.as_bytes());
            }
        } else {
            member(text, name, value);
        }
    }
    text.reserve(PLAIN_LINE);
    member(text, "{\"type\":\"tool_call\",\"ts_unix_ms\":", &at.0);
    member(text, ",\"schema\":", &SCHEMA);
    member(text, ",\"repo_root\":null,\"session\":", &call.session.0);
    name(text, ",\"request_id\":", request_id(call));
    name(text, ",\"tool_name\":", &call.tool);
    text.extend_from_slice(b",\"path_hint\":null,\"latency_ms\":");
    milliseconds(text, call.latency);
    member(text, ",\"replay_attempts\":", &call.replays);
    text.extend_from_slice(outcome.as_bytes());
    let generation = (call.generation != Generation::NONE).then_some(call.generation.0);
    member(text, ",\"error_code\":null,\"error_kind\":null,\"error_message\":null,\"generation\":", &generation);
    text.extend_from_slice(b",\"job_id\":null}\n");
}

fn latency_ms(latency: Duration) -> f64 {
    let nanos = latency.as_secs() as f64 * 1e9 + f64::from(latency.subsec_nanos());
    nanos / 1e6
}

/// Appends [`latency_ms`] as the serialiser writes it, which first has to find out how few digits will do: here six behind the
/// point are all there are.
fn milliseconds(text: &mut Vec<u8>, latency: Duration) {
    // What is shorter is written with an exponent, and a double does not tell all that are longer apart.
    const PLAIN: std::ops::Range<u128> = 100..1_000_000_000_000_000;
    let nanos = latency.as_nanos();
    let plain = u64::try_from(nanos).ok().filter(|_| PLAIN.contains(&nanos));
    let written = match plain {
        Some(nanos) => serde_json::to_writer(&mut *text, &(nanos / 1_000_000)),
        None => serde_json::to_writer(&mut *text, &latency_ms(latency)),
    };
    // Writing a number to memory cannot fail.
    debug_assert!(written.is_ok());
    if let Some(nanos) = plain {
        let mut digits = *b".000000";
        let mut rest = nanos % 1_000_000;
        for digit in digits[1..].iter_mut().rev() {
            *digit += (rest % 10) as u8;
            rest /= 10;
        }
        let last = digits.iter().rposition(|digit| *digit > b'0').map_or(1, |last| last.max(1));
        text.extend_from_slice(&digits[..=last]);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::base::ids::JobId;

    fn moment() -> Moment {
        Moment { at: Instant::now(), wall: UnixMillis(1_234) }
    }

    fn entry() -> LogEntry {
        LogEntry::Record(Record::JobState {
            job: JobId::random(),
            state: crate::jobs::JobState::Succeeded,
            code: None,
            cost_usd: Some(0.5),
        })
    }

    #[test]
    fn lines_of_two_writers_never_mix_and_the_file_is_private() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let path = dir.path().join("telemetry.jsonl");
        let writers: Vec<LogWriter> = (0..2)
            .map(|_| {
                let mut writer = LogWriter::new(path.clone());
                for _ in 0..WAITING_BATCHES {
                    writer.write((0..50).map(|_| entry()).collect(), Torn::No, moment());
                }
                writer
            })
            .collect();
        let mut lost = 0;
        for writer in writers {
            let counted = Arc::clone(&writer.lost);
            writer.close();
            lost += counted.load(Ordering::Relaxed);
        }
        let text = fs::read_to_string(&path).expect("the file is there");
        for line in text.lines() {
            let value: serde_json::Value = serde_json::from_str(line).expect("each line is whole");
            assert_eq!(value["type"], "job_state");
        }
        assert_eq!(
            text.lines().count() as u64 + lost,
            2 * WAITING_BATCHES as u64 * 50,
            "every record is written or counted"
        );
        let mode = fs::metadata(&path).expect("the file is there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
    }

    #[test]
    fn a_time_of_day_is_told_from_the_moment_a_batch_was_taken() {
        let moment = moment();
        assert_eq!(moment.wall_at(moment.at), UnixMillis(1_234));
        assert_eq!(moment.wall_at(moment.at + Duration::from_secs(1)), UnixMillis(1_234), "not yet over");
        let before = moment.at.checked_sub(Duration::from_millis(234)).expect("the machine has run for that long");
        assert_eq!(moment.wall_at(before), UnixMillis(1_000));
    }

    #[test]
    fn the_short_way_writes_what_the_serialiser_writes() {
        let moment = moment();
        let mut file = LogFile::new(PathBuf::from("unused"));
        let ids =
            [None, Some("7".to_owned()), Some("\"a\\u00e9 é\"".to_owned()), Some(format!("\"{}\"", "é".repeat(100)))];
        for (id, result, generation) in ids.into_iter().flat_map(|id| {
            [(FinishedAs::Success, 3), (FinishedAs::Cancelled, 0)]
                .map(|(result, generation)| (id.clone(), result, generation))
        }) {
            let call = || ToolCallRecord {
                at: moment.at,
                session: crate::base::ids::SessionNumber(5),
                request_id: id.as_deref().and_then(crate::protocol::envelope::IdToken::from_json),
                tool: "a \"tool\"".into(),
                path_hint: None,
                latency: Duration::from_nanos(123_456),
                result,
                job: None,
                generation: Generation(generation),
                replays: 2,
                trace: None,
            };
            let outcome = plain_outcome(&call()).expect("nothing more to say");
            let mut text = Vec::new();
            plain_tool_call(&mut text, &call(), moment.wall, outcome);
            let line = serde_json::to_string(&file.tool_call(&call(), moment.wall)).expect("JSON");
            assert_eq!(String::from_utf8(text).expect("UTF-8"), line + "\n");
        }
    }

    #[test]
    fn a_latency_is_written_as_the_serialiser_writes_it() {
        const SEED: u64 = 0x1a7e;
        println!("seed {SEED}");
        let mut random = fastrand::Rng::with_seed(SEED);
        let edges = (0..20).map(|power| 10_u64.saturating_pow(power)).flat_map(|at| [at - 1, at, at + 1]);
        let others = (0..20_000).map(|_| random.u64(..) >> random.u32(..64));
        for nanos in edges.chain([1_500_000, 1_050_000, 123_456_000]).chain(others) {
            let latency = Duration::from_nanos(nanos);
            let mut text = Vec::new();
            milliseconds(&mut text, latency);
            let want = serde_json::to_string(&latency_ms(latency)).expect("JSON");
            assert_eq!(String::from_utf8(text).expect("UTF-8"), want, "{nanos} ns");
        }
    }

    #[test]
    fn a_batch_of_several_pieces_is_written_whole_and_counted_when_it_is_not() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let path = dir.path().join("telemetry.jsonl");
        let batch = || (0..1_000).map(|_| entry()).collect::<Vec<_>>();
        assert_eq!(LogFile::new(path.clone()).append(batch(), Torn::No, moment()), 0);
        let text = fs::read_to_string(&path).expect("the file is there");
        assert!(text.len() > 2 * WRITTEN_AT, "{} bytes are no several pieces", text.len());
        assert_eq!(text.lines().count(), 1_000);
        assert!(text.ends_with('\n'));
        // A directory cannot be written to.
        assert_eq!(LogFile::new(dir.path().into()).append(batch(), Torn::No, moment()), 1_000);
        assert_eq!(LogFile::new(path).append(batch(), Torn::InHalf, moment()), 1_000);
    }

    #[test]
    fn a_full_file_is_moved_aside_and_four_old_ones_are_kept() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let path = dir.path().join("telemetry.jsonl");
        let mut file = LogFile::new(path.clone());
        for round in 0..7_u32 {
            assert_eq!(file.append(vec![entry()], Torn::No, moment()), 0);
            OpenOptions::new()
                .append(true)
                .open(&path)
                .and_then(|file| file.set_len(ROTATE_AT + u64::from(round)))
                .expect("it grows");
        }
        assert_eq!(file.append(vec![entry()], Torn::No, moment()), 0);
        assert!(fs::metadata(&path).expect("a new file").len() < 1000);
        let old = fs::read_dir(dir.path())
            .expect("a directory")
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().contains("jsonl."))
            .count();
        assert_eq!(old, KEPT as usize);
    }
}
