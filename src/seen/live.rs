//! How a state directory is now: who serves, who waits for what, what it costs today.
//!
//! Owns: one look at all of it, and the JSON of it. May not know: who is shown it.
//!
//! Everything is looked up where it lies: queue, limits and hosts in the store, the daemon by its own word. So it says the same of the
//! queue with a daemon and without one.
//!
//! Invariant: a host that does not live is not shown: its lock says so, not its row.

use serde_json::{Value, json};

use crate::base::ids::{HostId, JobId, SessionNumber, UnixMillis};
use crate::base::state_dir::StateDir;
use crate::config::Config;
use crate::daemon::ask::{ANSWER, ask};
use crate::daemon::control::{DaemonAnswer, DaemonStatus};
use crate::daemon::start::{DaemonLook, look as find};
use crate::jobs::JobState;
use crate::jobs::admission::QueueRow;
use crate::jobs::host_lock::HostLock;
use crate::jobs::hosts::{AttachedJob, HostKind, HostRow, SessionSeen, WaitsFor, waits};
use crate::jobs::store::{ChainCost, DayCost, Limit, StoreError, StoreHandle};

/// Milliseconds of a day.
const DAY: i64 = 24 * 60 * 60 * 1000;

/// One look at everything that lives.
#[derive(Debug, Clone, PartialEq)]
pub struct Live {
    /// When it was taken.
    pub at: UnixMillis,
    /// The daemon, where one answers.
    pub daemon: Option<DaemonStatus>,
    /// The other hosts that live.
    pub hosts: Vec<HostRow>,
    /// What waits and what runs, in the order of acceptance.
    pub queue: Vec<QueueRow>,
    /// Usage limits that were reached.
    pub limits: Vec<Limit>,
    /// What ended today (in UTC), if anything did.
    pub today: Option<DayCost>,
    /// What today's chains of more than one job cost, the dearest first.
    pub chains: Vec<ChainCost>,
}

/// Whose call waits for a job.
#[derive(Debug, Clone, PartialEq)]
pub struct WaitingCaller<'a> {
    /// At which host.
    pub host: Option<HostId>,
    /// What kind of host that is.
    pub kind: HostKind,
    /// Its process.
    pub pid: u32,
    /// Its number there.
    pub session: SessionNumber,
    /// What is known of it.
    pub seen: Option<&'a SessionSeen>,
}

/// The daemon's own word, where one answers. Blocks for [`ANSWER`] at most.
#[must_use]
pub fn daemon(dir: &StateDir) -> Option<DaemonStatus> {
    let DaemonLook::There(stream) = find(dir, None) else { return None };
    match ask(&stream, r#"{"type":"status"}"#, ANSWER) {
        Ok(DaemonAnswer::Status(status)) => Some(status),
        _ => None,
    }
}

impl Live {
    /// Looks, with what the daemon has said of itself.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn look(
        store: &StoreHandle,
        dir: &StateDir,
        daemon: Option<DaemonStatus>,
        now: UnixMillis,
    ) -> Result<Self, StoreError> {
        let mut live = Self {
            at: now,
            daemon,
            hosts: Vec::new(),
            queue: Vec::new(),
            limits: Vec::new(),
            today: None,
            chains: Vec::new(),
        };
        // Where nothing was ever asked there is no store, and none is made.
        if !dir.database().exists() {
            return Ok(live);
        }
        let midnight = UnixMillis(now.0.div_euclid(DAY) * DAY);
        live.queue = store.queue().await?;
        live.hosts = store.hosts().await?;
        live.limits = store.limits(now).await?;
        live.today = store.cost_by_day(midnight).await?.pop();
        live.chains = store.cost_by_chain(midnight).await?;
        // What a daemon says itself is newer than its row.
        let itself = live.daemon.as_ref().and_then(|daemon| daemon.host);
        live.hosts.retain(|row| Some(row.host) != itself && HostLock::lives(dir, row.host));
        Ok(live)
    }

    /// Agents that may run at once: as the daemon has it, else as the other hosts do.
    #[must_use]
    pub fn places(&self) -> usize {
        let daemon = self.daemon.as_ref().map(|daemon| daemon.max_running).filter(|most| *most > 0);
        let hosts = self.hosts.iter().map(|row| row.seen.max_running).max().filter(|most| *most > 0);
        daemon.or(hosts).unwrap_or_else(|| Config::default().max_running)
    }

    /// Jobs that run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.queue.iter().filter(|row| row.state == JobState::Running).count()
    }

    /// What each queued job waits for.
    #[must_use]
    pub fn waits(&self) -> Vec<(JobId, WaitsFor)> {
        waits(&self.queue, self.places())
    }

    /// Whose calls wait for a job.
    #[must_use]
    pub fn callers(&self, job: JobId) -> Vec<WaitingCaller<'_>> {
        let daemon = self.daemon.iter().map(|d| (d.host, HostKind::Daemon, d.pid, &d.sessions, &d.jobs));
        let hosts = self.hosts.iter().map(|r| (Some(r.host), r.kind, r.pid, &r.seen.sessions, &r.seen.jobs));
        let mut callers = Vec::new();
        for (host, kind, pid, sessions, jobs) in daemon.chain(hosts) {
            let waiting = jobs.iter().filter(|attached: &&AttachedJob| attached.job_id == job);
            for session in waiting.flat_map(|attached| attached.sessions.iter().copied()) {
                let seen = sessions.iter().find(|seen| seen.session == session);
                callers.push(WaitingCaller { host, kind, pid, session, seen });
            }
        }
        callers
    }

    /// All of it for a program.
    #[must_use]
    pub fn json(&self) -> Value {
        let waits = self.waits();
        let job = |row: &QueueRow| {
            let waits_for = waits.iter().find(|(job, _)| *job == row.job).map(|(_, waits_for)| waits_for);
            let callers = self.callers(row.job).into_iter();
            let callers: Vec<Value> =
                callers.map(|caller| json!({"host": caller.host, "session": caller.session})).collect();
            json!({
                "job_id": row.job,
                "status": row.state,
                "mode": row.mode,
                "workspace": row.workspace.display().to_string(),
                "accepted_at": row.accepted_at,
                "waits_for": waits_for,
                "callers": callers,
            })
        };
        let limit = |limit: &Limit| {
            json!({
                "agent": limit.agent,
                "billing": limit.billing,
                "family": limit.scope.family,
                "until": limit.until,
                "job_id": limit.job,
            })
        };
        let running = self.running();
        json!({
            "daemon": self.daemon,
            "hosts": self.hosts,
            "places": {"used": running, "of": self.places()},
            "queue": {"running": running, "queued": self.queue.len() - running},
            "jobs": self.queue.iter().map(job).collect::<Vec<_>>(),
            "limits": self.limits.iter().map(limit).collect::<Vec<_>>(),
            "cost_today": self.today,
            "chains_today": self.chains,
        })
    }
}
