//! What this host says of itself in the store, where people see all hosts of a state directory.
//!
//! Owns: when the host's row is written, what is in it. May not know: who reads it, jobs' rules, sessions' protocol.
//!
//! ```text
//!  nothing was asked here ──first job──▶ still ──something changed──▶ waits [`PACE`] ──▶ looks, writes if it differs ──▶ still
//! ```
//!
//! Invariants: (1) a host that was never asked for a job, and one in which nothing changes, write nothing and have no timer; (2)
//! however much changes, one row is written in [`PACE`]; (3) whoever changes something sets a mark and waits for nothing; (4) a
//! row is written by who holds the host's lock, so that it is known for what it is when the host is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};

use super::attachments::Attachments;
use super::host_life::HostLife;
use super::room::Beginning;
use crate::actors::connections::Connections;
use crate::actors::current::Current;
use crate::actors::rollout::RolloutHandle;
use crate::actors::workers::messages::{WorkersMsg, WorkersSnapshot};
use crate::base::ids::{SessionNumber, UnixMillis};
use crate::base::state_dir::StateDir;
use crate::base::tasks;
use crate::jobs::host_lock::HostLock;
use crate::jobs::hosts::{AttachedJob, HostKind, HostRow, HostSaid, HostState, SESSIONS, TreeSaid};
use crate::jobs::store::StoreHandle;

/// Time from the first change to the row that has it, and all that came meanwhile. A person does not see less; a consult that is
/// answered at once costs one row.
const PACE: Duration = Duration::from_millis(250);

/// How long sessions may take to say who their client is. One that is in a long turn is shown without.
const ASK: Duration = Duration::from_millis(500);

/// Where what is said of this host comes from. Cheap to clone.
#[derive(Clone)]
pub struct HostView {
    /// Its sessions.
    pub connections: Connections,
    /// Its jobs, and who waits for them.
    pub attachments: Attachments,
    /// Its rollouts.
    pub rollout: RolloutHandle,
    /// Its workers.
    pub workers: Current<WorkersMsg>,
    /// Agents that may run at once.
    pub max_running: usize,
}

impl HostView {
    /// How it is now.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn look(&self) -> HostSaid {
        let state = match self.attachments.room().beginning() {
            Beginning::AsUsual => HostState::Serving,
            Beginning::Paused => HostState::Paused,
            Beginning::Refused => HostState::Draining,
        };
        let attached = self.attachments.all();
        let jobs = attached.into_iter().map(|(job_id, attachment)| {
            let (mode, callers) = attachment.claim();
            let mut sessions: Vec<SessionNumber> = callers.into_iter().map(|caller| caller.session).collect();
            sessions.dedup();
            AttachedJob { job_id, mode, sessions }
        });
        let jobs = jobs.collect();
        let (sessions, all) = self.connections.seen(SESSIONS, ASK).await;
        let rollout = self.rollout.status();
        let tree = tree(self.workers().await, rollout.adopted, rollout.state);
        let rollout_rejected = rollout.rejected.map(|rejected| rejected.verdict.to_owned());
        let more_sessions = all.saturating_sub(sessions.len());
        HostSaid { state, max_running: self.max_running, sessions, more_sessions, jobs, rollout_rejected, tree }
    }

    /// Its workers; `None` where they do not answer.
    async fn workers(&self) -> Option<WorkersSnapshot> {
        let (reply, answer) = oneshot::channel();
        self.workers.cast(WorkersMsg::Snapshot(reply)).ok()?;
        tokio::time::timeout(ASK, answer).await.ok()?.ok()
    }
}

fn tree(workers: Option<WorkersSnapshot>, upgrades: u64, rollout: &str) -> TreeSaid {
    let mut tree = TreeSaid { upgrades, rollout: rollout.to_owned(), ..TreeSaid::default() };
    if let Some(workers) = workers {
        tree.worker_generation = workers.generation.0;
        (tree.worker_alive, tree.worker_gave_up) = (workers.alive, workers.gave_up);
        tree.worker_restarts = workers.restarts;
        let last = workers.losses.last();
        tree.last_fault = last.map(|(_, fault)| fault.code.as_str().to_owned());
        tree.last_fault_at = last.map(|(at, _)| *at);
    }
    tree
}

struct Marks {
    /// A job was asked for here.
    begun: AtomicBool,
    changed: AtomicBool,
    wake: Notify,
}

/// The host's row, and what it is made from. Cheap to clone.
#[derive(Clone)]
pub struct HostBoard {
    marks: Arc<Marks>,
    kind: HostKind,
    started_at: UnixMillis,
    view: HostView,
    life: HostLife,
    store: StoreHandle,
}

impl HostBoard {
    /// Of a host of this kind that began then. Nothing is touched.
    #[must_use]
    pub fn new(kind: HostKind, started_at: UnixMillis, view: HostView, life: HostLife, store: StoreHandle) -> Self {
        // Another image of this host has written one, where its lock was passed on.
        let begun = AtomicBool::new(life.passed().is_some());
        let marks = Arc::new(Marks { begun, changed: AtomicBool::new(false), wake: Notify::new() });
        Self { marks, kind, started_at, view, life, store }
    }

    /// A job was asked for: from here on what changes is written. Whether it was the first one.
    pub(super) fn begin(&self) -> bool {
        !self.marks.begun.swap(true, Ordering::Relaxed)
    }

    /// Whether what changes is written, so that somebody has to [`HostBoard::keep`] it.
    pub(super) fn has_begun(&self) -> bool {
        self.marks.begun.load(Ordering::Relaxed)
    }

    /// Something changed.
    pub(super) fn note(&self) {
        if self.marks.begun.load(Ordering::Relaxed) && !self.marks.changed.swap(true, Ordering::Relaxed) {
            self.marks.wake.notify_one();
        }
    }

    /// Writes the row whenever something changed, for as long as it is run.
    ///
    /// # Cancel safety
    ///
    /// Safe: another run writes what is missing.
    pub(super) async fn keep(self) {
        let mut last = None;
        let mut connections = self.view.connections.count();
        let mut beginning = self.view.attachments.room().beginnings();
        loop {
            self.write(&mut last).await;
            tokio::select! {
                () = self.marks.wake.notified() => {}
                () = changed(&mut connections) => {}
                () = changed(&mut beginning) => {}
                () = self.view.rollout.moved() => {}
            }
        }
    }

    /// Waits a moment for what else changes, and writes the row if it differs from the last one.
    async fn write(&self, last: &mut Option<HostSaid>) {
        tokio::time::sleep(PACE).await;
        self.marks.changed.store(false, Ordering::Relaxed);
        let seen = self.view.look().await;
        if !self.has_begun() {
            return;
        }
        if last.as_ref() == Some(&seen) || !self.life.is_seen() {
            return;
        }
        let row = HostRow {
            host: self.life.host(),
            kind: self.kind,
            pid: std::process::id(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            changed_at: UnixMillis::now(),
            seen: seen.clone(),
        };
        match self.store.show_host(row).await {
            Ok(()) => *last = Some(seen),
            // It is written with the next change.
            Err(error) => tracing::debug!(%error, "what this host does is not shown"),
        }
    }

    /// This host ends in order: nothing is left of its row.
    pub(super) async fn clear(&self) {
        if self.marks.begun.swap(false, Ordering::Relaxed)
            && let Err(error) = self.store.forget_hosts(vec![self.life.host()]).await
        {
            tracing::debug!(%error, "the row of this host stays until the next sweep");
        }
    }
}

async fn changed<T>(watched: &mut watch::Receiver<T>) {
    if watched.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Forgets what hosts said that are gone.
pub(super) async fn clear_rows(store: &StoreHandle, dir: &StateDir) {
    let rows = match store.hosts().await {
        Ok(rows) => rows,
        Err(error) => return tracing::debug!(%error, "what hosts said cannot be read"),
    };
    let dir = dir.clone();
    let gone = move || rows.iter().map(|row| row.host).filter(|host| !HostLock::lives(&dir, *host)).collect::<Vec<_>>();
    let gone = tasks::spawn_blocking(gone).await.unwrap_or_default();
    if !gone.is_empty()
        && let Err(error) = store.forget_hosts(gone).await
    {
        tracing::debug!(%error, "what hosts said that are gone stays");
    }
}
