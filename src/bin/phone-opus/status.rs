//! `status`: who serves here, what is asked, and who waits for what.
//!
//! Owns: what people and scripts are shown. May not know: how a queue is ordered, how a daemon answers, who writes a host's row.
//!
//! Everything is looked up where it lies: the queue and the hosts in the store, the daemon by its own word. So it says the same of
//! the queue with a daemon and without one, and starts and makes nothing.

use std::fmt::Write as _;
use std::process::ExitCode;

use phone_opus::internals::base::ids::{HostId, JobId, SessionNumber, UnixMillis};
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::config::Config;
use phone_opus::internals::daemon::ask::{ANSWER, ask};
use phone_opus::internals::daemon::control::{DaemonAnswer, DaemonStatus};
use phone_opus::internals::daemon::start::{DaemonLook, look};
use phone_opus::internals::jobs::admission::QueueRow;
use phone_opus::internals::jobs::host_lock::HostLock;
use phone_opus::internals::jobs::hosts::{AttachedJob, HostKind, HostRow, SessionSeen, WaitsFor, waits};
use phone_opus::internals::jobs::store::StoreHandle;
use phone_opus::internals::jobs::{JobMode, JobState};
use serde_json::{Value, json};

use crate::cli::StatusOptions;
use crate::job_word::short;
use crate::logging;
use crate::output::{print_json, print_prose, say};
use crate::screen::ages;
use crate::settings::{chain, refused, runtime, state_dir};

/// Shows it. Exit code 1 when the store does not say.
pub(crate) fn run(options: &StatusOptions) -> ExitCode {
    logging::start();
    let dir = match state_dir(&options.common) {
        Ok(dir) => dir,
        Err(error) => return refused(&error),
    };
    let daemon = daemon(&dir);
    let (queue, mut hosts) = match stored(&dir) {
        Ok(stored) => stored,
        Err(why) => {
            say(&format!("phone-opus: failed to {why}"));
            return ExitCode::FAILURE;
        }
    };
    // What a daemon says itself is newer than its row.
    let itself = daemon.as_ref().and_then(|daemon| daemon.host);
    hosts.retain(|row| Some(row.host) != itself && HostLock::lives(&dir, row.host));
    let whole = Whole { daemon, hosts, queue };
    if options.json {
        print_json(whole.json());
    } else {
        print_prose(&whole.shown(UnixMillis::now()));
    }
    ExitCode::SUCCESS
}

/// The daemon, where one answers.
fn daemon(dir: &StateDir) -> Option<DaemonStatus> {
    let DaemonLook::There(stream) = look(dir, None) else { return None };
    match ask(&stream, r#"{"type":"status"}"#, ANSWER) {
        Ok(DaemonAnswer::Status(status)) => Some(status),
        _ => None,
    }
}

/// What waits and what runs, in the order of acceptance, and what hosts said. Where nothing was ever asked there is no store, and
/// none is made.
fn stored(dir: &StateDir) -> Result<(Vec<QueueRow>, Vec<HostRow>), String> {
    if !dir.database().exists() {
        return Ok((Vec::new(), Vec::new()));
    }
    let runtime = runtime().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let store = StoreHandle::sqlite(dir.clone());
        let (queue, hosts) = (store.queue().await, store.hosts().await);
        store.close().await;
        queue.and_then(|queue| Ok((queue, hosts?))).map_err(|error| chain(&error))
    })
}

/// All there is to say.
struct Whole {
    daemon: Option<DaemonStatus>,
    /// The other hosts that live.
    hosts: Vec<HostRow>,
    queue: Vec<QueueRow>,
}

/// Whose call waits for a job.
struct Caller<'a> {
    host: Option<HostId>,
    kind: HostKind,
    pid: u32,
    session: SessionNumber,
    seen: Option<&'a SessionSeen>,
}

impl Whole {
    /// Agents that may run at once: as the daemon has it, else as the other hosts do.
    fn places(&self) -> usize {
        let daemon = self.daemon.as_ref().map(|daemon| daemon.max_running).filter(|most| *most > 0);
        let hosts = self.hosts.iter().map(|row| row.seen.max_running).max().filter(|most| *most > 0);
        daemon.or(hosts).unwrap_or_else(|| Config::default().max_running)
    }

    fn running(&self) -> usize {
        self.queue.iter().filter(|row| row.state == JobState::Running).count()
    }

    /// Whose calls wait for a job.
    fn callers(&self, job: JobId) -> Vec<Caller<'_>> {
        let daemon = self.daemon.iter().map(|d| (d.host, HostKind::Daemon, d.pid, &d.sessions, &d.jobs));
        let hosts = self.hosts.iter().map(|r| (Some(r.host), r.kind, r.pid, &r.seen.sessions, &r.seen.jobs));
        let mut callers = Vec::new();
        for (host, kind, pid, sessions, jobs) in daemon.chain(hosts) {
            let waiting = jobs.iter().filter(|attached: &&AttachedJob| attached.job_id == job);
            for session in waiting.flat_map(|attached| attached.sessions.iter().copied()) {
                let seen = sessions.iter().find(|seen| seen.session == session);
                callers.push(Caller { host, kind, pid, session, seen });
            }
        }
        callers
    }

    fn json(&self) -> Value {
        let waits = waits(&self.queue, self.places());
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
        let running = self.running();
        json!({
            "daemon": self.daemon,
            "hosts": self.hosts,
            "places": {"used": running, "of": self.places()},
            "queue": {"running": running, "queued": self.queue.len() - running},
            "jobs": self.queue.iter().map(job).collect::<Vec<_>>(),
        })
    }

    /// The same for people.
    fn shown(&self, now: UnixMillis) -> String {
        let since = |since: UnixMillis| ages::elapsed(now.since(since) / 1000);
        let mut text = String::new();
        match &self.daemon {
            Some(status) => {
                let (clients, pid) = (status.connections.saturating_sub(1), status.pid);
                let state = json!(status.state);
                let state = state.as_str().unwrap_or_default();
                let _ = writeln!(text, "a daemon serves {clients} clients (process {pid}, {} {state})", status.build);
                // Who asks this is no client.
                let clients = status.sessions.iter().filter(|seen| seen.client.is_some());
                clients.for_each(|seen| session(&mut text, seen, now));
            }
            None => text.push_str("no daemon is running\n"),
        }
        for row in &self.hosts {
            let HostRow { kind, pid, build, started_at, seen, .. } = row;
            let (state, lives) = (json!(seen.state), since(*started_at));
            let (kind, state) = (kind.as_str(), state.as_str().unwrap_or_default());
            let _ = writeln!(text, "a {kind} serves for {lives} (process {pid}, {build} {state})");
            seen.sessions.iter().for_each(|seen| session(&mut text, seen, now));
            if seen.more_sessions > 0 {
                let _ = writeln!(text, "  and {} more", seen.more_sessions);
            }
        }
        let (running, of) = (self.running(), self.places());
        let _ = writeln!(text, "{running} of {of} places are used, {} wait", self.queue.len() - running);
        let waits = waits(&self.queue, of);
        for row in &self.queue {
            let waits_for = waits.iter().find(|(job, _)| *job == row.job).map(|(_, waits_for)| *waits_for);
            let stands = match waits_for {
                None => "runs".to_owned(),
                Some(WaitsFor::Start) => "begins".to_owned(),
                Some(WaitsFor::Place) => "waits for a place".to_owned(),
                Some(WaitsFor::Turn { place }) => format!("waits for its turn, as number {place}"),
                Some(WaitsFor::Session { job_id }) => format!("waits for {} of its conversation", short(job_id)),
            };
            let callers: Vec<String> = self.callers(row.job).iter().map(Caller::shown).collect();
            let who = match (row.mode, callers.is_empty()) {
                (_, false) => format!("{} waits", callers.join(" and ")),
                (JobMode::Sync, true) => "its caller waits for it".to_owned(),
                (JobMode::Background, true) => "in the background".to_owned(),
            };
            let (job, asked, workspace) = (short(row.job), since(row.accepted_at), row.workspace.display());
            let _ = writeln!(text, "{job} {stands}, for {asked}, {who}: {workspace}");
        }
        if self.queue.is_empty() {
            text.push_str("nothing is asked\n");
        }
        text.trim_end().to_owned()
    }
}

impl Caller<'_> {
    fn shown(&self) -> String {
        let client = self.seen.and_then(|seen| seen.client.as_deref()).unwrap_or("a client");
        format!("{client} ({} {}, session {})", self.kind.as_str(), self.pid, self.session.0)
    }
}

fn session(text: &mut String, seen: &SessionSeen, now: UnixMillis) {
    let SessionSeen { session, client, version, protocol, directory, since, calls, environment } = seen;
    let or = |word: &Option<String>, otherwise: &str| word.as_deref().unwrap_or(otherwise).to_owned();
    let (client, version) = (or(client, "a client"), version.as_ref().map(|word| format!(" {word}")));
    let version = version.unwrap_or_default();
    let protocol = protocol.as_ref().map(|word| format!(", {word}")).unwrap_or_default();
    let (directory, seconds) = (or(directory, "no directory"), ages::elapsed(now.since(*since) / 1000));
    let _ = writeln!(
        text,
        "  session {}: {client}{version}{protocol} in {directory}, for {seconds}, {calls} calls, environment {environment}",
        session.0
    );
}
