//! `status`: who serves here, what is asked, and who waits for what.
//!
//! Owns: what people and scripts are shown. May not know: how a queue is ordered, how a daemon answers, who writes a host's row.
//!
//! Everything is looked up where it lies: the queue and the hosts in the store, the daemon by its own word. So it says the same of
//! the queue with a daemon and without one, and starts and makes nothing.

use std::fmt::Write as _;
use std::process::ExitCode;

use phone_opus::internals::base::ids::UnixMillis;
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::jobs::JobMode;
use phone_opus::internals::jobs::hosts::{HostRow, SessionSeen, WaitsFor};
use phone_opus::internals::jobs::store::StoreHandle;
use phone_opus::internals::seen::live::{self, Live, WaitingCaller};
use serde_json::json;

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
    let live = match looked(&dir) {
        Ok(live) => live,
        Err(why) => {
            say(&format!("phone-opus: failed to {why}"));
            return ExitCode::FAILURE;
        }
    };
    if options.json {
        print_json(live.json());
    } else {
        print_prose(&shown(&live, live.at));
    }
    ExitCode::SUCCESS
}

/// What there is. Where nothing was ever asked there is no store, and none is made.
fn looked(dir: &StateDir) -> Result<Live, String> {
    let daemon = live::daemon(dir);
    let runtime = runtime().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let store = StoreHandle::sqlite(dir.clone());
        let looked = Live::look(&store, dir, daemon, UnixMillis::now()).await;
        store.close().await;
        looked.map_err(|error| chain(&error))
    })
}

/// The same for people.
fn shown(live: &Live, now: UnixMillis) -> String {
    let since = |since: UnixMillis| ages::elapsed(now.since(since) / 1000);
    let mut text = String::new();
    match &live.daemon {
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
    for row in &live.hosts {
        let HostRow { kind, pid, build, started_at, seen, .. } = row;
        let (state, lives) = (json!(seen.state), since(*started_at));
        let (kind, state) = (kind.as_str(), state.as_str().unwrap_or_default());
        let _ = writeln!(text, "a {kind} serves for {lives} (process {pid}, {build} {state})");
        seen.sessions.iter().for_each(|seen| session(&mut text, seen, now));
        if seen.more_sessions > 0 {
            let _ = writeln!(text, "  and {} more", seen.more_sessions);
        }
    }
    let (running, of) = (live.running(), live.places());
    let _ = writeln!(text, "{running} of {of} places are used, {} wait", live.queue.len() - running);
    let waits = live.waits();
    for row in &live.queue {
        let waits_for = waits.iter().find(|(job, _)| *job == row.job).map(|(_, waits_for)| *waits_for);
        let stands = match waits_for {
            None => "runs".to_owned(),
            Some(WaitsFor::Start) => "begins".to_owned(),
            Some(WaitsFor::Place) => "waits for a place".to_owned(),
            Some(WaitsFor::Turn { place }) => format!("waits for its turn, as number {place}"),
            Some(WaitsFor::Session { job_id }) => format!("waits for {} of its conversation", short(job_id)),
        };
        let callers: Vec<String> = live.callers(row.job).iter().map(caller).collect();
        let who = match (row.mode, callers.is_empty()) {
            (_, false) => format!("{} waits", callers.join(" and ")),
            (JobMode::Sync, true) => "its caller waits for it".to_owned(),
            (JobMode::Background, true) => "in the background".to_owned(),
        };
        let (job, asked, workspace) = (short(row.job), since(row.accepted_at), row.workspace.display());
        let _ = writeln!(text, "{job} {stands}, for {asked}, {who}: {workspace}");
    }
    if live.queue.is_empty() {
        text.push_str("nothing is asked\n");
    }
    text.trim_end().to_owned()
}

fn caller(caller: &WaitingCaller<'_>) -> String {
    let client = caller.seen.and_then(|seen| seen.client.as_deref()).unwrap_or("a client");
    format!("{client} ({} {}, session {})", caller.kind.as_str(), caller.pid, caller.session.0)
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
