//! Reading what pages show: the store, the hosts' locks, a daemon, the log.
//!
//! Owns: what is read, how often, and what was read last. May not know: pages, connections.
//!
//! Nothing is read while nobody looks. While somebody does, the store's stamp is asked for each time, and the rest of the store only
//! when that differs; what has no stamp is read when it is due.
//!
//! Invariants: (1) nothing is made or changed; where there is no store yet, none is made; (2) a part that cannot be read is shown as
//! such, and the others as they are; (3) each question has a bound.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::feed::Picture;
use super::happened::Happened;
use super::known::KnownJobs;
use super::picture::{self, CLIENT};
use crate::base::fault::{Fault, chain};
use crate::base::ids::UnixMillis;
use crate::base::state_dir::StateDir;
use crate::base::tasks;
use crate::daemon::ask::{ANSWER, ask_line};
use crate::daemon::control::DaemonStatus;
use crate::daemon::start::{DaemonLook, look};
use crate::jobs::host_lock::HostLock;
use crate::jobs::hosts::HostRow;
use crate::jobs::store::{DataVersion, JobFilter, MOST_LISTED, StoreError, StoreHandle};
use crate::seen::live::{self, Live};

/// How often a daemon is asked how it is, and whether hosts live.
const HOSTS: Duration = Duration::from_secs(2);

/// How often a daemon is asked for its health, which is a session of its own there, and the log is looked at.
const SLOW: Duration = Duration::from_secs(10);

/// Days of cost that are shown.
const COST: i64 = 14 * 24 * 60 * 60 * 1000;

/// What was read last.
#[derive(Debug)]
pub struct Looking {
    store: StoreHandle,
    dir: StateDir,
    about: Value,
    picture: Picture,
    known: KnownJobs,
    version: Option<DataVersion>,
    live: Option<Live>,
    daemon: Option<DaemonStatus>,
    health: Option<Value>,
    happened: Happened,
    hosts_due: Option<Instant>,
    slow_due: Option<Instant>,
}

impl Looking {
    /// Reads this store and its directory.
    #[must_use]
    pub fn new(store: StoreHandle, dir: StateDir, about: Value) -> Self {
        Self {
            happened: Happened::of(&dir),
            store,
            dir,
            about,
            picture: Picture::default(),
            known: KnownJobs::default(),
            version: None,
            live: None,
            daemon: None,
            health: None,
            hosts_due: None,
            slow_due: None,
        }
    }

    /// Reads what is due, and returns the picture.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was read stays, and what was not is read the next time.
    pub async fn look(&mut self, now: Instant) -> Picture {
        let due = |at: Option<Instant>| at.is_none_or(|at| at <= now);
        let slow_due = due(self.slow_due);
        let mut another = false;
        if slow_due || due(self.hosts_due) {
            let places = |daemon: &Option<DaemonStatus>| daemon.as_ref().map(|daemon| daemon.max_running);
            let before = places(&self.daemon);
            another = self.ask_daemon(slow_due).await;
            if before != places(&self.daemon) {
                // What waits for what follows from it.
                self.version = None;
            }
            self.hosts_due = Some(now + HOSTS);
        }
        if slow_due {
            self.happened.look().await;
            self.picture.sections.insert("happened", self.happened.shown());
            self.slow_due = Some(now + SLOW);
        } else if another {
            // Its health is asked for the next time, and not only when that is due.
            self.slow_due = None;
        }
        let store = match self.read_store().await {
            Ok(()) => json!({"status": "ok"}),
            Err(error) => {
                self.version = None;
                let fault = Fault::from(&error);
                json!({"status": "unavailable", "why": chain(&error), "hint": fault.hint})
            }
        };
        let wall = UnixMillis::now();
        let hosts = self.live.as_ref().map_or(&[][..], |live| &live.hosts);
        let alive: Vec<HostRow> = hosts.iter().filter(|row| HostLock::lives(&self.dir, row.host)).cloned().collect();
        let servers = picture::servers(&alive, self.daemon.as_ref(), self.health.as_ref(), wall);
        let sections = &mut self.picture.sections;
        sections.insert("store", store);
        sections.insert("about", self.about.clone());
        sections.insert("servers", servers);
        self.picture.clone()
    }

    async fn read_store(&mut self) -> Result<(), StoreError> {
        if !self.dir.database().exists() {
            return Ok(());
        }
        // Asked before the rest is read: what is written meanwhile is read the next time.
        let version = self.store.data_version().await?;
        if self.version == Some(version) {
            return Ok(());
        }
        let wall = UnixMillis::now();
        let filter = JobFilter { workspace: None, state: None, limit: MOST_LISTED };
        let rows = self.store.list(filter).await?;
        self.known.read(&self.store, &rows).await?;
        let live = Live::look(&self.store, &self.dir, self.daemon.clone(), wall).await?;
        let counts = self.store.counts().await?;
        let cost = self.store.cost_by_day(UnixMillis(wall.0 - COST)).await?;
        let line = |row| picture::row(row, self.known.of(row));
        self.picture.jobs = Arc::new(rows.iter().map(|row| (row.id.to_string(), line(row))).collect());
        let sections = &mut self.picture.sections;
        sections.insert("counts", json!(counts));
        sections.insert("places", json!({"used": live.running(), "of": live.places()}));
        sections.insert("queue", picture::queue(&live));
        sections.insert("limits", picture::limits(&live.limits));
        sections.insert("cost", json!(cost));
        self.live = Some(live);
        self.version = Some(version);
        Ok(())
    }

    /// Whether it is another one than before.
    async fn ask_daemon(&mut self, and_health: bool) -> bool {
        let dir = self.dir.clone();
        let question = tasks::spawn_blocking(move || {
            let status = live::daemon(&dir);
            let health = if and_health && status.is_some() { tool(&dir, "health_snapshot") } else { None };
            (status, health)
        });
        let (status, health) = question.await.unwrap_or_default();
        let life = |daemon: &Option<DaemonStatus>| daemon.as_ref().map(|daemon| daemon.generation);
        let another = life(&status) != life(&self.daemon);
        if and_health || another {
            self.health = health.map(picture::steady);
        }
        self.daemon = status;
        another
    }
}

/// What a tool of the daemon's own answers that needs no arguments: one request of the stateless revision, in a session that ends
/// with it. Blocks.
#[must_use]
pub fn tool(dir: &StateDir, name: &str) -> Option<Value> {
    let DaemonLook::There(stream) = look(dir, None) else { return None };
    let request = json!({
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {
            "name": name,
            "arguments": {"render": "json", "detail": "full"},
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {},
                "io.modelcontextprotocol/clientInfo": {"name": CLIENT, "version": env!("CARGO_PKG_VERSION")},
            },
        },
    });
    let answer: Value = serde_json::from_slice(&ask_line(&stream, &request.to_string(), ANSWER).ok()?).ok()?;
    let result = answer.get("result")?;
    if result.get("isError") == Some(&Value::Bool(true)) {
        return None;
    }
    if let Some(structured) = result.get("structuredContent").filter(|structured| structured.is_object()) {
        return Some(structured.clone());
    }
    serde_json::from_str(result.get("content")?.get(0)?.get("text")?.as_str()?).ok()
}
