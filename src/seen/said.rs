//! Telemetry's file, read back: what was started again, what was replaced, what failed.
//!
//! Owns: which lines are read, and what of them. May not know: who writes them, jobs.
//!
//! Lines of other versions are read as far as they are known. A line that is none is counted and left out: it is half of one that a
//! crash has cut, or somebody else's.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::past::Period;
use crate::base::ids::UnixMillis;

/// Old files telemetry keeps beside the current one.
const OLD: u32 = 4;

/// Longest line that is read: telemetry's own have a tenth of it. A longer one is none of ours.
const LONGEST: usize = 64 * 1024;

/// Most entries of one kind; the first ones of a period with more are left out and counted.
pub const SAID_MOST: usize = 10_000;

/// What the file says of a period, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogSaid {
    /// Workers that were started again.
    pub restarts: Vec<RestartSaid>,
    /// Rollouts that ended.
    pub rollouts: Vec<RolloutSaid>,
    /// Faults.
    pub faults: Vec<FaultSaid>,
    /// Lines that could not be read, and entries beyond [`SAID_MOST`].
    pub left_out: u64,
}

/// A worker was started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartSaid {
    /// When.
    #[serde(rename(deserialize = "ts_unix_ms"))]
    pub at: UnixMillis,
    /// The new incarnation.
    pub generation: u64,
}

/// A rollout has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutSaid {
    /// When.
    #[serde(rename(deserialize = "ts_unix_ms"))]
    pub at: UnixMillis,
    /// `adopted`, `rejected` or `failed`.
    pub outcome: String,
    /// What was wrong, as one word.
    #[serde(default)]
    pub verdict: Option<String>,
    /// Who began it.
    pub trigger: String,
    /// The version that serves.
    #[serde(default)]
    pub version: String,
    /// How long nobody served while the images changed, where that was noted.
    #[serde(default)]
    pub gap_ms: Option<u64>,
}

/// Something failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultSaid {
    /// When.
    #[serde(rename(deserialize = "ts_unix_ms"))]
    pub at: UnixMillis,
    /// The fault's code.
    pub code: String,
    /// The part that was at work.
    #[serde(default)]
    pub stage: String,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line {
    WorkerRestart(RestartSaid),
    Rollout(RolloutSaid),
    Fault(FaultSaid),
    #[serde(other)]
    Other,
}

/// Reads the file and those that were moved aside. Blocks; a file that is not there, or cannot be read, says nothing.
#[must_use]
pub fn read(current: &Path, period: Period) -> LogSaid {
    let mut said = LogSaid::default();
    let old = (1..=OLD).rev().map(|n| current.with_extension(format!("jsonl.{n}")));
    for path in old.chain([current.to_owned()]) {
        if let Ok(file) = File::open(&path) {
            said.read_lines(BufReader::new(file), period);
        }
    }
    said.keep_the_last();
    said
}

impl LogSaid {
    fn read_lines(&mut self, mut lines: impl std::io::BufRead, period: Period) {
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut lines).take_line(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => self.take(&line, period),
            }
        }
    }

    fn take(&mut self, line: &[u8], period: Period) {
        // Nine lines in ten are these, and nothing of them is wanted.
        if line.starts_with(br#"{"type":"tool_call""#) || line.starts_with(br#"{"type":"job_state""#) {
            return;
        }
        match serde_json::from_slice(line) {
            Ok(Line::WorkerRestart(restart)) if period.has(restart.at) => self.restarts.push(restart),
            Ok(Line::Rollout(rollout)) if period.has(rollout.at) => self.rollouts.push(rollout),
            Ok(Line::Fault(fault)) if period.has(fault.at) => self.faults.push(fault),
            Ok(_) => {}
            Err(_) => self.left_out += 1,
        }
    }

    fn keep_the_last(&mut self) {
        fn last<T>(all: &mut Vec<T>, at: impl Fn(&T) -> UnixMillis) -> u64 {
            all.sort_by_key(at);
            let more = all.len().saturating_sub(SAID_MOST);
            all.drain(..more);
            more as u64
        }
        self.left_out += last(&mut self.restarts, |restart| restart.at);
        self.left_out += last(&mut self.rollouts, |rollout| rollout.at);
        self.left_out += last(&mut self.faults, |fault| fault.at);
    }
}

/// A line of bounded length; what is beyond the bound is read and thrown away.
trait TakeLine {
    fn take_line(self, line: &mut Vec<u8>) -> std::io::Result<usize>;
}

impl<R: std::io::BufRead> TakeLine for &mut R {
    fn take_line(self, line: &mut Vec<u8>) -> std::io::Result<usize> {
        let mut read = 0;
        loop {
            let part = self.fill_buf()?;
            if part.is_empty() {
                return Ok(read);
            }
            let end = memchr::memchr(b'\n', part);
            let used = end.map_or(part.len(), |end| end + 1);
            let room = LONGEST.saturating_sub(line.len());
            line.extend_from_slice(&part[..end.unwrap_or(used).min(room)]);
            self.consume(used);
            read += used;
            if end.is_some() {
                return Ok(read);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Period = Period { since: UnixMillis(10), until: UnixMillis(20) };

    fn said(text: &str) -> LogSaid {
        let mut said = LogSaid::default();
        said.read_lines(text.as_bytes(), PERIOD);
        said
    }

    #[test]
    fn of_each_kind_is_read_what_lies_in_the_period_and_what_is_no_line_is_counted() {
        let said = said(concat!(
            r#"{"type":"tool_call","ts_unix_ms":15,"tool_name":"x"}"#,
            "\n",
            r#"{"type":"worker_restart","ts_unix_ms":9,"generation":2}"#,
            "\n",
            r#"{"type":"worker_restart","ts_unix_ms":10,"generation":3}"#,
            "\n",
            r#"{"type":"rollout","ts_unix_ms":20,"outcome":"adopted","verdict":null,"trigger":"watch","version":"1","took_ms":0,"gap_ms":7}"#,
            "\n",
            r#"{"type":"rollout","ts_unix_ms":12,"outcome":"rejected","verdict":"worse","trigger":"signal","version":"1","took_ms":3}"#,
            "\n",
            r#"{"type":"fault","ts_unix_ms":11,"code":"worker_lost","class":"worker","stage":"worker","generation":1,"operation":null}"#,
            "\n",
            r#"{"type":"of_a_later_version","ts_unix_ms":11}"#,
            "\n{\"type\":\"fau\n\u{0}\n",
            r#"{"type":"fault","ts_unix_ms":21,"code":"worker_lost","stage":"worker"}"#,
        ));
        assert_eq!(said.restarts, [RestartSaid { at: UnixMillis(10), generation: 3 }]);
        assert_eq!(said.rollouts.iter().map(|r| r.gap_ms).collect::<Vec<_>>(), [Some(7), None]);
        assert_eq!(said.faults.len(), 1);
        assert_eq!(said.left_out, 2);
    }

    #[test]
    fn a_line_without_an_end_costs_no_more_than_the_longest_one() {
        let said = said(&format!(
            "{}\n{{\"type\":\"worker_restart\",\"ts_unix_ms\":12,\"generation\":1}}\n",
            "x".repeat(1 << 20)
        ));
        assert_eq!((said.restarts.len(), said.left_out), (1, 1));
        let mut line = Vec::new();
        let long = "y".repeat(1 << 20);
        let mut bytes = long.as_bytes();
        assert_eq!((&mut bytes).take_line(&mut line).expect("read"), 1 << 20);
        assert_eq!(line.len(), LONGEST);
    }

    #[test]
    fn the_files_that_were_moved_aside_come_first_and_the_last_of_too_many_stay() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let path = dir.path().join("telemetry.jsonl");
        assert_eq!(read(&path, PERIOD), LogSaid::default(), "nothing is there");
        let line = |at: u64, generation: usize| {
            format!("{{\"type\":\"worker_restart\",\"ts_unix_ms\":{at},\"generation\":{generation}}}\n")
        };
        let many: String = (0..SAID_MOST).map(|n| line(11, n)).collect();
        std::fs::write(path.with_extension("jsonl.1"), many).expect("written");
        std::fs::write(&path, line(12, 77)).expect("written");
        let said = read(&path, PERIOD);
        assert_eq!((said.restarts.len(), said.left_out), (SAID_MOST, 1));
        assert_eq!(said.restarts.first().map(|r| r.generation), Some(1), "the oldest went");
        assert_eq!(said.restarts.last().map(|r| r.generation), Some(77));
    }
}
