//! What the hosts of a state directory say of themselves, for whoever looks at all of them.
//!
//! Owns: the row of a host, and what a queued job waits for. May not know: who writes a row and when, what is done with it.
//!
//! A row is as true as its host's lock is held: that of a host which is gone is removed by whoever sweeps.
//!
//! Invariants: (1) nothing in a row was said by a client but its own name and version, which are bounded; of a directory there
//! is its last part only (L13); (2) what is waited for follows from the queue alone.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::admission::{Contender, Position, QueueRow, plan};
use super::{JobMode, JobState};
use crate::base::ids::{HostId, JobId, SessionNumber, UnixMillis};

/// Sessions one row or answer tells of: as many as a person reads. The others are counted.
pub const SESSIONS: usize = 100;

/// Bytes of a name or a version.
const WORD: usize = 100;

/// What kind of host it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostKind {
    /// One client's, or an embedding program.
    #[default]
    Server,
    /// The daemon.
    Daemon,
    /// A bridge that serves its client itself.
    Bridge,
}

impl HostKind {
    /// The word for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Daemon => "daemon",
            Self::Bridge => "bridge",
        }
    }
}

/// Whether a host begins jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// It does.
    #[default]
    Serving,
    /// Not until it is told.
    Paused,
    /// It takes no new ones.
    Draining,
}

/// A host's row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRow {
    /// Which one.
    pub host: HostId,
    /// What kind.
    pub kind: HostKind,
    /// Its process, for people.
    pub pid: u32,
    /// The program's version.
    pub build: String,
    /// When it began.
    pub started_at: UnixMillis,
    /// When it last had something else to say.
    pub changed_at: UnixMillis,
    /// What it said.
    #[serde(flatten)]
    pub seen: HostSaid,
}

/// What changes of a host. A later version may say more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostSaid {
    /// Whether it begins jobs.
    pub state: HostState,
    /// Agents that may run at once, as it has it.
    pub max_running: usize,
    /// Its sessions, oldest first.
    pub sessions: Vec<SessionSeen>,
    /// Sessions beyond those.
    pub more_sessions: usize,
    /// The jobs it looks after.
    pub jobs: Vec<AttachedJob>,
    /// What became of the last version that was looked at, where it was not adopted.
    pub rollout_rejected: Option<String>,
    /// How its parts are.
    pub tree: TreeSaid,
}

/// How a host's parts are: what was started again, what was replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TreeSaid {
    /// The newest generation of its worker; 0 before the first, and where it does not say.
    pub worker_generation: u64,
    /// Whether a worker is there.
    pub worker_alive: bool,
    /// How often one was started again.
    pub worker_restarts: u64,
    /// Calls are refused because of too many losses.
    pub worker_gave_up: bool,
    /// How often the program was replaced since it began.
    pub upgrades: u64,
    /// What its rollout does: `idle`, `settling`, `checking` or `handing_over`; empty where it does not say.
    pub rollout: String,
    /// The last fault of a worker, by its code.
    pub last_fault: Option<String>,
    /// When that was.
    pub last_fault_at: Option<UnixMillis>,
}

impl TreeSaid {
    /// In a few words; empty where nothing is known.
    #[must_use]
    pub fn in_words(&self) -> String {
        let mut words = Vec::new();
        let counted = |count: u64, thing: &str| format!("{count} {thing}{}", if count == 1 { "" } else { "s" });
        if self.worker_generation > 0 {
            let lost = if self.worker_alive { "" } else { ", not there" };
            words.push(format!("worker of generation {}{lost}", self.worker_generation));
        }
        if self.worker_gave_up {
            words.push("workers given up".to_owned());
        }
        if self.worker_restarts > 0 {
            words.push(counted(self.worker_restarts, "restart"));
        }
        if self.upgrades > 0 {
            words.push(counted(self.upgrades, "upgrade"));
        }
        if !self.rollout.is_empty() && self.rollout != "idle" {
            words.push(format!("a new version is {}", self.rollout.replace('_', " ")));
        }
        if let Some(code) = &self.last_fault {
            words.push(format!("last fault {}", shown_word(code)));
        }
        words.join(", ")
    }
}

/// A session of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSeen {
    /// Its number at this host.
    pub session: SessionNumber,
    /// The client's name.
    #[serde(default)]
    pub client: Option<String>,
    /// Its version.
    #[serde(default)]
    pub version: Option<String>,
    /// The revision of the protocol it speaks.
    #[serde(default)]
    pub protocol: Option<String>,
    /// The last part of the directory it works in.
    #[serde(default)]
    pub directory: Option<String>,
    /// Since when it is connected, as far as this image of the host knows.
    pub since: UnixMillis,
    /// Calls in flight.
    #[serde(default)]
    pub calls: usize,
    /// Whose environment its consults have.
    #[serde(default)]
    pub environment: String,
}

/// A job a host looks after, and whose calls wait for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedJob {
    /// The job.
    pub job_id: JobId,
    /// Whether it depends on who waits.
    pub mode: JobMode,
    /// The sessions whose calls wait for it.
    #[serde(default)]
    pub sessions: Vec<SessionNumber>,
}

/// The last part of a directory, as it may be shown.
#[must_use]
pub fn shown_directory(path: &Path) -> Option<String> {
    path.file_name().map(|name| shown_word(&name.to_string_lossy()))
}

/// What a client says of itself, as it may be shown: short, and nothing that moves a terminal.
#[must_use]
pub fn shown_word(word: &str) -> String {
    let mut shown: String = word.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    let end = (0..=WORD.min(shown.len())).rev().find(|at| shown.is_char_boundary(*at)).unwrap_or(0);
    shown.truncate(end);
    shown
}

/// What a queued job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum WaitsFor {
    /// Nothing any more: it may begin.
    Start,
    /// One of the places of agents that run at once.
    Place,
    /// The end of another job of its conversation.
    Session {
        /// That job.
        job_id: JobId,
    },
    /// Its turn: others are due before.
    Turn {
        /// Its place in the order, from 1.
        place: usize,
    },
}

/// What each queued job waits for, with `limit` agents at once.
#[must_use]
pub fn waits(queue: &[QueueRow], limit: usize) -> Vec<(JobId, WaitsFor)> {
    let contenders: Vec<Contender> = queue.iter().map(|row| Contender { row: row.clone(), alive: true }).collect();
    let plan = plan(&contenders, limit);
    let before = |row: &QueueRow| {
        let session = row.session.as_ref()?;
        let same = queue.iter().filter(|other| other.session.as_ref() == Some(session) && other.job != row.job);
        let ahead = same.filter(|other| other.state == JobState::Running || other.sequence < row.sequence);
        ahead.max_by_key(|other| other.sequence).map(|other| other.job)
    };
    let waits_for = |row: &QueueRow| match (plan.position(row.job)?, before(row)) {
        (Position::Start, _) => Some(WaitsFor::Start),
        (Position::Wait { .. }, Some(job_id)) => Some(WaitsFor::Session { job_id }),
        (Position::Wait { place: 1, .. }, None) => Some(WaitsFor::Place),
        (Position::Wait { place, .. }, None) => Some(WaitsFor::Turn { place }),
    };
    let queued = queue.iter().filter(|row| row.state == JobState::Queued);
    queued.filter_map(|row| Some((row.job, waits_for(row)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::admission::SessionKey;

    fn row(sequence: u64, workspace: &str, session: Option<&str>, state: JobState) -> QueueRow {
        QueueRow {
            job: JobId::random(),
            sequence,
            workspace: workspace.into(),
            session: session.map(|session| SessionKey { agent: "claude".into(), session: session.into() }),
            state,
            mode: JobMode::Sync,
            accepted_at: UnixMillis(1),
            turn: sequence,
            workspace_served: 0,
            cancel_requested: None,
            waiter: None,
            environment: None,
            host: None,
        }
    }

    #[test]
    fn each_job_waits_for_what_keeps_it_from_beginning() {
        use JobState::{Queued, Running};
        let runs = row(1, "/a", Some("s"), Running);
        let same = row(2, "/a", Some("s"), Queued);
        let next = row(3, "/b", None, Queued);
        let later = row(4, "/b", None, Queued);
        let last = row(5, "/c", Some("s"), Queued);
        let queue = [runs.clone(), same.clone(), next.clone(), later.clone(), last.clone()];
        let of = |limit| {
            let found = waits(&queue, limit);
            assert_eq!(found.len(), 4, "what runs waits for nothing");
            [&same, &next, &later, &last].map(|row| found.iter().find(|(job, _)| *job == row.job).expect("queued").1)
        };
        let (behind, behind_that) = (WaitsFor::Session { job_id: runs.job }, WaitsFor::Session { job_id: same.job });
        let [first, second, third, fourth] = of(1);
        assert_eq!((first, fourth), (behind, behind_that));
        assert!(matches!(second, WaitsFor::Place | WaitsFor::Turn { .. }), "{second:?}");
        assert!(matches!(third, WaitsFor::Turn { place } if place > 1), "{third:?}");
        // With room, only the conversation keeps a job back.
        assert_eq!(of(9), [behind, WaitsFor::Start, WaitsFor::Start, behind_that]);
        let alone = [row(1, "/a", None, Running), row(2, "/b", None, Queued)];
        assert_eq!(waits(&alone, 1), [(alone[1].job, WaitsFor::Place)]);
    }

    #[test]
    fn nothing_of_a_client_is_long_or_moves_a_terminal_and_of_a_directory_there_is_its_name() {
        assert_eq!(shown_directory(Path::new("/home/me/secret/work")).as_deref(), Some("work"));
        assert_eq!(shown_directory(Path::new("/")), None);
        assert_eq!(shown_word("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
        assert_eq!(shown_word(&"ä".repeat(99)).len(), WORD);
        assert_eq!(shown_word(""), "");
    }

    #[test]
    fn a_row_of_another_version_is_read_as_far_as_it_is_known() {
        let host = HostId::random();
        let row: HostRow = serde_json::from_value(serde_json::json!({
            "host": host, "kind": "daemon", "pid": 7, "build": "9.9.9", "started_at": 1, "changed_at": 2, "later": [1],
            "sessions": [{"session": 3, "since": 1, "later": true}]
        }))
        .expect("it is read");
        assert_eq!((row.seen.state, row.seen.sessions.len(), row.seen.jobs.len()), (HostState::Serving, 1, 0));
        let again: HostRow = serde_json::from_str(&serde_json::to_string(&row).expect("JSON")).expect("read");
        assert_eq!(again, row);
    }
}
