//! How a system is and what it did, as one answer each.
//!
//! Owns: the two snapshots' shape. May not know: how the parts it asks do their work. Every question has a bound, so a
//! part that does not answer is shown as such and delays nothing else.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::actors::current::Current;
use crate::actors::exec::links::ExecLinks;
use crate::actors::jobs::host_life::HostLife;
use crate::actors::rollout::RolloutHandle;
use crate::actors::session::gauges::Gauges;
use crate::actors::workers::messages::{WorkersMsg, WorkersSnapshot};
use crate::agents::{AgentSite, AgentSites};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{HostId, UnixMillis};
use crate::config::Config;
use crate::failpoints::Faults;
use crate::jobs::client::JobsHandle;
use crate::jobs::store::{JobFilter, MOST_LISTED};
use crate::jobs::{JobState, JobSummary};
use crate::places::of_elsewhere;
use crate::telemetry::TelemetryHandle;
use crate::tools::callers::{CallerContext, Callers};
use crate::tools::reply::Detail;

/// Longest one part may take to answer; a healthy one takes microseconds, the store milliseconds.
const ASK: Duration = Duration::from_secs(2);

/// A day, for the cost of the last ones.
const WEEK: i64 = 7 * 24 * 60 * 60 * 1000;

/// Where the snapshots come from. Cheap to clone.
#[derive(Clone)]
pub struct HealthSource {
    /// This system.
    #[doc(hidden)]
    pub host: HostId,
    /// What all sessions add up to.
    #[doc(hidden)]
    pub gauges: Arc<Gauges>,
    /// When it started.
    #[doc(hidden)]
    pub started: Instant,
    /// Who runs worker tools.
    #[doc(hidden)]
    pub workers: Current<WorkersMsg>,
    /// Jobs.
    #[doc(hidden)]
    pub jobs: JobsHandle,
    /// Telemetry.
    #[doc(hidden)]
    pub telemetry: TelemetryHandle,
    /// The numbers.
    #[doc(hidden)]
    pub config: Arc<Config>,
    /// Fault plan.
    #[doc(hidden)]
    pub faults: Faults,
    /// What is known about rollouts.
    #[doc(hidden)]
    pub rollout: RolloutHandle,
    /// What is not as the user asked for it.
    #[doc(hidden)]
    pub notices: Arc<[String]>,
    /// Whose sessions there are.
    #[doc(hidden)]
    pub callers: Callers,
    /// How others see that this system lives.
    #[doc(hidden)]
    pub life: HostLife,
    /// Connections to exec servers.
    #[doc(hidden)]
    pub exec: ExecLinks,
}

async fn within<T>(question: impl Future<Output = Option<T>>) -> Option<T> {
    tokio::time::timeout(ASK, question).await.ok().flatten()
}

impl HealthSource {
    /// The workers as they are; `None` when they do not answer.
    #[doc(hidden)]
    pub async fn workers(&self) -> Option<WorkersSnapshot> {
        let (reply, answer) = oneshot::channel();
        self.workers.cast(WorkersMsg::Snapshot(reply)).ok()?;
        within(async { answer.await.ok() }).await
    }

    /// `health_snapshot`, as this caller is told: with whose environment its consults have, and its limits.
    #[doc(hidden)]
    pub async fn health(&self, caller: &CallerContext, detail: Detail) -> Value {
        let workers = self.workers().await;
        let counts = match tokio::time::timeout(ASK, self.jobs.counts()).await {
            Ok(counts) => counts,
            Err(_) => Err(Fault::new(FaultCode::StoreUnavailable, "the store did not answer in time.")),
        };
        let attached = within(async { Some(self.jobs.attached().await) }).await;
        let moved = within(async { self.jobs.moved_aside().await.ok().flatten() }).await;
        let store = match &counts {
            Ok(_) => match moved {
                None => json!({"status": "ok"}),
                Some(aside) => json!({"status": "ok", "damaged_store_moved_to": aside.display().to_string()}),
            },
            Err(fault) => json!({"status": "unavailable", "fault": fault}),
        };
        // A worker that was never needed is not missing.
        let ready = counts.is_ok() && workers.as_ref().is_some_and(|workers| !workers.gave_up);
        let last = workers.as_ref().and_then(|workers| workers.losses.last().cloned());
        let rollout = self.rollout.status();
        let mut value = json!({
            "ready": ready,
            "version": env!("CARGO_PKG_VERSION"),
            "worker_generation": workers.as_ref().map(|w| w.generation),
            "worker_alive": workers.as_ref().map(|w| w.alive),
            "restart_count": workers.as_ref().map(|w| w.restarts),
            "consecutive_failures": workers.as_ref().map(|w| w.consecutive_failures),
            "last_fault": last.map(|(at, fault)| json!({"at": at, "fault": fault})),
            "rollout": rollout,
            "launch_path_stable": rollout.launch_path_stable,
            "jobs": counts.as_ref().ok(),
            "queue_depth": counts.as_ref().ok().map(|counts| counts.queued),
            "store": store,
            "uptime_s": self.started.elapsed().as_secs(),
            "permits": {"in_use": counts.as_ref().ok().map(|counts| counts.running), "of": self.config.max_running},
            "calls_in_flight": self.gauges.in_flight.load(Ordering::Relaxed),
            "attached_jobs": attached,
            "environment": caller.origin,
        });
        if let (Value::Object(object), Some(grace)) = (&mut value, self.life.grace()) {
            object.insert("adopted_jobs".into(), json!(self.life.adopted()));
            object.insert("orphan_grace_s".into(), json!(grace.as_secs()));
        }
        if let (Value::Object(object), false) = (&mut value, self.notices.is_empty()) {
            object.insert("notices".into(), json!(self.notices.as_ref()));
        }
        if let (Value::Object(object), Some(left_out)) = (&mut value, &caller.config.left_out) {
            object.insert("project_file_left_out".into(), json!(left_out));
        }
        if self.faults.is_armed()
            && let Value::Object(object) = &mut value
        {
            object.insert("fault_rules_never_met".into(), json!(self.faults.never_met()));
        }
        if let (Value::Object(object), Detail::Full) = (&mut value, detail) {
            object.insert("host".into(), json!(self.host));
            object.insert("isolation".into(), json!(workers.as_ref().map(|w| w.isolation)));
            object.insert("worker_pid".into(), json!(workers.as_ref().and_then(|w| w.pid)));
            object.insert("replays".into(), json!(self.gauges.replays.load(Ordering::Relaxed)));
            object.insert("stale_messages".into(), json!(self.gauges.stale.load(Ordering::Relaxed)));
            let losses = workers.map(|w| w.losses).unwrap_or_default();
            let losses: Vec<Value> = losses.iter().map(|(at, fault)| json!({"at": at, "fault": fault})).collect();
            object.insert("faults".into(), Value::Array(losses));
            if self.faults.is_armed() {
                object.insert("fired_fault_points".into(), json!(self.faults.fired()));
                object.insert("broken_laws".into(), json!(self.gauges.broken_laws()));
            }
            object.insert(
                "limits".into(),
                json!({"max_running": self.config.max_running, "max_queued": self.config.max_queued,
                       "timeout_s": caller.config.timeout.as_secs(), "stall_s": caller.config.stall.as_secs()}),
            );
            object.insert("sessions".into(), json!(self.callers.counts()));
            if !caller.config.agents.is_empty() {
                object.insert("exec_agents".into(), self.elsewhere(&caller.config.agents).await);
            }
            let exec = self.exec.rows();
            if !exec.is_empty() {
                object.insert("exec_connections".into(), json!(exec));
            }
        }
        value
    }

    /// The agents of other machines. The connections are those of the runners, one a consult, and end with them: this process has
    /// none of them, so what is told is where they lead and how many there are.
    async fn elsewhere(&self, agents: &AgentSites) -> Value {
        let filter = JobFilter { workspace: None, state: Some(JobState::Running), limit: MOST_LISTED };
        let running = within(async { self.jobs.list(filter).await.ok() }).await;
        let of = |name: &str| {
            let there = |job: &&JobSummary| of_elsewhere(&job.workspace).is_some_and(|(agent, _)| agent == name);
            running.as_ref().map(|running| running.iter().filter(there).count())
        };
        let row = |(name, site): (&String, &AgentSite)| {
            json!({"agent": name, "target": site.target.to_string(), "running": of(name),
                   "connections": "each consult's runner has one of its own"})
        };
        agents.iter().map(row).collect()
    }

    /// `telemetry_snapshot`.
    ///
    /// # Errors
    ///
    /// Telemetry does not answer.
    pub async fn telemetry(&self) -> Result<Value, Fault> {
        let snapshot = within(self.telemetry.snapshot())
            .await
            .ok_or_else(|| Fault::new(FaultCode::Internal, "telemetry did not answer in time."))?;
        let since = UnixMillis(UnixMillis::now().0 - WEEK);
        let cost = within(async { self.jobs.cost_by_day(since).await.ok() }).await;
        let chains = within(async { self.jobs.cost_by_chain(since).await.ok() }).await;
        Ok(
            json!({"totals": snapshot.totals, "methods": snapshot.methods, "cost_by_day": cost, "cost_by_chain": chains}),
        )
    }
}
