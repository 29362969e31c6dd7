//! What a rig sees of what was done and of what lives, and how it strikes at that.
//!
//! Owns: looks at the agent's log, the store and the system's processes. May not know: laws.

use serde_json::Value;

use super::{Rig, Run};
use crate::base::ids::JobId;
use crate::jobs::store::{JobFilter, StoreHandle};
use crate::jobs::{JobRecord, JournalEntry};
use crate::testkit::client::TestClient;
use crate::testkit::processes::{self, Process, Role};
use crate::testkit::wait::Waiting;

/// What the store hands out of a journal at a time.
const JOURNAL_ENTRIES: usize = 1000;
const JOURNAL_BYTES: usize = 8 * 1024 * 1024;

impl Rig {
    /// The agent's runs in the order of their starts.
    ///
    /// # Panics
    ///
    /// When its log holds something else.
    #[must_use]
    pub fn runs(&self) -> Vec<Run> {
        let log = std::fs::read_to_string(self.path("agent.log")).unwrap_or_default();
        let mut runs: Vec<Run> = Vec::new();
        for line in log.lines() {
            let line: Value = serde_json::from_str(line).expect("a line of the log");
            if line["event"] == "start" {
                runs.push(Run { start: line, end: None });
            } else if let Some(run) = runs.iter_mut().find(|run| run.start["pid"] == line["pid"] && run.end.is_none()) {
                run.end = Some(line);
            }
        }
        runs
    }

    /// Expects the agent to have been run so often until now.
    ///
    /// # Panics
    ///
    /// When it was not.
    #[track_caller]
    pub fn expect_runs(&self, count: usize) {
        let runs = self.runs();
        let shown: Vec<_> = runs.iter().map(|run| (run.token(), run.began(), run.end_at())).collect();
        assert_eq!(runs.len(), count, "runs of the agent (token, begin, end): {shown:?}");
    }

    /// Every job of the store, as another process reads it.
    ///
    /// # Panics
    ///
    /// When the store cannot be read.
    pub async fn jobs(&self) -> Vec<JobRecord> {
        if !self.state_dir().database().exists() {
            return Vec::new();
        }
        let store = StoreHandle::sqlite(self.state_dir());
        let rows = store.list(JobFilter { workspace: None, state: None, limit: 1000 }).await.expect("listed");
        let mut records = Vec::new();
        for row in rows {
            records.push(store.job(row.id).await.expect("a job"));
        }
        store.close().await;
        records
    }

    /// A job's journal, as another process reads it.
    ///
    /// # Panics
    ///
    /// When the store cannot be read.
    pub async fn journal(&self, job: JobId) -> Vec<JournalEntry> {
        let store = StoreHandle::sqlite(self.state_dir());
        let mut journal: Vec<JournalEntry> = Vec::new();
        loop {
            let after = journal.last().map_or(0, |entry| entry.seq);
            let more = store.events(job, after, JOURNAL_ENTRIES, JOURNAL_BYTES).await.expect("a journal");
            if more.is_empty() {
                break;
            }
            journal.extend(more);
        }
        store.close().await;
        journal
    }

    /// The one job of the store, once it is over.
    ///
    /// # Panics
    ///
    /// When there are more, or it does not end.
    pub async fn only_job_over(&self) -> JobRecord {
        let waiting = Waiting::until("the only job is over", self.patience);
        loop {
            let mut jobs = self.jobs().await;
            assert!(jobs.len() < 2, "more than one job: {jobs:?}");
            match jobs.pop() {
                Some(job) if job.state.is_terminal() => return job,
                job => waiting.again(|| format!("{job:?} and {:?}", self.processes())).await,
            }
        }
    }

    /// Live processes of this world; none where `/proc` does not show them.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        processes::marked(self.scratch.path())
    }

    /// Those of one role.
    #[must_use]
    pub fn all(&self, role: Role) -> Vec<Process> {
        self.processes().into_iter().filter(|process| process.role == role).collect()
    }

    /// The runners.
    #[must_use]
    pub fn runners(&self) -> Vec<Process> {
        self.all(Role::Runner)
    }

    /// The agents, and what they started.
    #[must_use]
    pub fn agents(&self) -> Vec<Process> {
        let agent = |process: &Process| matches!(process.role, Role::Agent | Role::Offspring);
        self.processes().into_iter().filter(agent).collect()
    }

    /// The worker process of this client's host, if it has one at this moment.
    ///
    /// # Panics
    ///
    /// When the host is no process of its own.
    #[must_use]
    pub fn worker_of(&self, client: &TestClient) -> Option<Process> {
        let host = client.host_pid();
        self.all(Role::Worker).into_iter().find(|worker| worker.parent == Some(host))
    }

    /// The one process of a role, once there is exactly one.
    ///
    /// # Panics
    ///
    /// When there is none, or there are more.
    pub async fn the(&self, role: Role) -> Process {
        let waiting = Waiting::until(format!("there is one {role:?}"), self.patience);
        loop {
            let mut found = self.all(role);
            match found.pop() {
                Some(process) if found.is_empty() => return process,
                other => {
                    found.extend(other);
                    waiting.again(|| format!("{found:?} among {:?}", self.processes())).await;
                }
            }
        }
    }

    /// Ends every process of a role on the spot (SIGKILL), and returns them. One that has just ended by itself is not
    /// among them. Announce a host's end to its client: [`TestClient::expect_end`].
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn kill(&self, role: Role) -> Vec<Process> {
        self.signal(role, rustix::process::Signal::KILL)
    }

    /// Stops every process of a role where it stands (SIGSTOP), and returns them.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn freeze(&self, role: Role) -> Vec<Process> {
        self.signal(role, rustix::process::Signal::STOP)
    }

    /// Lets every process of a role go on (SIGCONT), and returns them.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn thaw(&self, role: Role) -> Vec<Process> {
        self.signal(role, rustix::process::Signal::CONT)
    }

    /// Stops every process of this world where it stands, as a frozen machine does: hosts, runners, agents.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn freeze_everything(&self) -> Vec<Process> {
        self.signal_everything(rustix::process::Signal::STOP)
    }

    /// Lets every process of this world go on.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn thaw_everything(&self) -> Vec<Process> {
        self.signal_everything(rustix::process::Signal::CONT)
    }

    fn signal_everything(&self, signal: rustix::process::Signal) -> Vec<Process> {
        let reached: Vec<Process> = self.processes().into_iter().filter(|process| process.send(signal)).collect();
        assert!(!reached.is_empty(), "there is no process to signal");
        reached
    }

    /// Signals every process of a role, and returns those that were still there.
    ///
    /// # Panics
    ///
    /// When there was none.
    pub fn signal(&self, role: Role, signal: rustix::process::Signal) -> Vec<Process> {
        let reached: Vec<Process> = self.all(role).into_iter().filter(|process| process.send(signal)).collect();
        assert!(!reached.is_empty(), "no {role:?} to signal among {:?}", self.processes());
        reached
    }

    /// Waits until no agent is left, nor anything one started.
    ///
    /// # Panics
    ///
    /// When something stays.
    pub async fn expect_no_agent_left(&self) {
        let waiting = Waiting::until("no agent is left", self.patience);
        while !self.agents().is_empty() {
            waiting.again(|| format!("{:?}", self.agents())).await;
        }
    }
}
