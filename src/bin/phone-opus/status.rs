//! `status`: who serves here, what is asked, and who waits for what.
//!
//! Owns: what people and scripts are shown. May not know: how a queue is ordered, how a daemon answers, who writes a host's row.
//!
//! Everything is looked up where it lies: the queue and the hosts in the store, the daemon by its own word. So it says the same of
//! the queue with a daemon and without one, and starts and makes nothing.

use std::process::ExitCode;

use phone_opus::internals::base::ids::{HostId, UnixMillis};
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::jobs::JobMode;
use phone_opus::internals::jobs::admission::QueueRow;
use phone_opus::internals::jobs::hosts::{HostRow, SessionSeen, TreeSaid, WaitsFor};
use phone_opus::internals::jobs::store::{ChainCost, DayCost, Limit, StoreHandle};
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

/// Lines of servers, of their sessions, of jobs and of chains: with one for each of the other facts no more than twenty.
const SERVERS: usize = 3;
const SESSIONS: usize = 3;
const JOBS: usize = 4;
const LIMITS: usize = 1;
const CHAINS: usize = 1;

/// The same for people.
fn shown(live: &Live, now: UnixMillis) -> String {
    let mut lines = Vec::new();
    servers(&mut lines, live, now);
    let (running, of) = (live.running(), live.places());
    lines.push(format!("{running} of {of} places are used, {} wait", live.queue.len() - running));
    let waits = live.waits();
    let job = |row: &QueueRow| {
        let waits_for = waits.iter().find(|(job, _)| *job == row.job).map(|(_, waits_for)| *waits_for);
        job(live, row, waits_for, now)
    };
    shortened(&mut lines, live.queue.iter().map(job), JOBS, "jobs");
    let limit = |limit: &Limit| {
        let of = limit.scope.family.map(|family| format!(" for {family}")).unwrap_or_default();
        format!("the usage limit of {}{of} is reached until {}", limit.agent, limit.until_in_words(now))
    };
    shortened(&mut lines, live.limits.iter().map(limit), LIMITS, "usage limits");
    if let Some(DayCost { jobs, cost_usd, unknown, .. }) = &live.today {
        let unknown = if *unknown > 0 { format!("; of {unknown} it is not known") } else { String::new() };
        lines.push(format!("today (UTC) {} ended and cost ${cost_usd:.2}{unknown}", ages::counted(*jobs, "job")));
    }
    let chain = |chain: &ChainCost| {
        let id = chain.chain.get(..8).unwrap_or(&chain.chain);
        format!("  chain {id}: {} for ${:.2}", ages::counted(chain.jobs, "job"), chain.cost_usd)
    };
    shortened(&mut lines, live.chains.iter().map(chain), CHAINS, "chains");
    if live.queue.is_empty() {
        lines.push("nothing is asked".to_owned());
    }
    lines.join("\n")
}

/// So many of these lines, and how many more there are.
fn shortened(lines: &mut Vec<String>, all: impl ExactSizeIterator<Item = String>, most: usize, what: &str) {
    let more = all.len().saturating_sub(most);
    lines.extend(all.take(most));
    if more > 0 {
        lines.push(format!("  and {more} more {what} (--json has all of them)"));
    }
}

/// Each server, and its sessions under it.
fn servers(lines: &mut Vec<String>, live: &Live, now: UnixMillis) {
    let mut sessions: Vec<String> = Vec::new();
    match &live.daemon {
        Some(status) => {
            let (clients, pid) = (status.connections.saturating_sub(1), status.pid);
            let (state, lives) = (json!(status.state), ages::elapsed(status.uptime_s));
            let state = state.as_str().unwrap_or_default();
            let parts = parts(status.host, &status.tree, status.rollout_rejected.as_deref());
            lines.push(format!(
                "a daemon serves {clients} clients for {lives} (process {pid}, {} {state}){parts}",
                status.build
            ));
            // Who asks this is no client.
            let clients = status.sessions.iter().filter(|seen| seen.client.is_some());
            sessions.extend(clients.map(|seen| session(seen, now)));
        }
        None => lines.push("no daemon is running".to_owned()),
    }
    let server = |row: &HostRow| {
        let HostRow { host, kind, pid, build, started_at, seen, .. } = row;
        let (state, lives) = (json!(seen.state), ages::elapsed(now.since(*started_at) / 1000));
        let (kind, state) = (kind.as_str(), state.as_str().unwrap_or_default());
        let parts = parts(Some(*host), &seen.tree, seen.rollout_rejected.as_deref());
        format!("a {kind} serves for {lives} (process {pid}, {build} {state}){parts}")
    };
    shortened(lines, live.hosts.iter().map(server), SERVERS, "servers");
    let more: usize = live.hosts.iter().map(|row| row.seen.more_sessions).sum();
    sessions.extend(live.hosts.iter().flat_map(|row| &row.seen.sessions).map(|seen| session(seen, now)));
    let hidden = sessions.len().saturating_sub(SESSIONS) + more;
    lines.extend(sessions.into_iter().take(SESSIONS));
    if hidden > 0 {
        lines.push(format!("  and {hidden} more sessions (--json has all of them)"));
    }
}

/// Which host a server is, and how its parts are.
fn parts(host: Option<HostId>, tree: &TreeSaid, rejected: Option<&str>) -> String {
    let host = host.map(|host| host.to_string());
    let host = host.as_deref().and_then(|host| host.get(..8)).map(|host| format!("host {host}"));
    let tree = Some(tree.in_words()).filter(|words| !words.is_empty());
    let rejected = rejected.map(|verdict| format!("a new version was refused: {verdict}"));
    let words: Vec<String> = [host, tree, rejected].into_iter().flatten().collect();
    if words.is_empty() { String::new() } else { format!(": {}", words.join(", ")) }
}

/// A job that is not over.
fn job(live: &Live, row: &QueueRow, waits_for: Option<WaitsFor>, now: UnixMillis) -> String {
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
    let asked = ages::elapsed(now.since(row.accepted_at) / 1000);
    format!("{} {stands}, for {asked}, {who}: {}", short(row.job), row.workspace.display())
}

fn caller(caller: &WaitingCaller<'_>) -> String {
    let client = caller.seen.and_then(|seen| seen.client.as_deref()).unwrap_or("a client");
    format!("{client} ({} {}, session {})", caller.kind.as_str(), caller.pid, caller.session.0)
}

fn session(seen: &SessionSeen, now: UnixMillis) -> String {
    let SessionSeen { session, client, version, protocol, directory, since, calls, environment } = seen;
    let or = |word: &Option<String>, otherwise: &str| word.as_deref().unwrap_or(otherwise).to_owned();
    let (client, version) = (or(client, "a client"), version.as_ref().map(|word| format!(" {word}")));
    let version = version.unwrap_or_default();
    let protocol = protocol.as_ref().map(|word| format!(", {word}")).unwrap_or_default();
    let (directory, seconds) = (or(directory, "no directory"), ages::elapsed(now.since(*since) / 1000));
    format!(
        "  session {}: {client}{version}{protocol} in {directory}, for {seconds}, {calls} calls, environment {environment}",
        session.0
    )
}

#[cfg(test)]
mod tests {
    use phone_opus::internals::base::ids::{JobId, SessionNumber};
    use phone_opus::internals::jobs::hosts::{HostKind, HostSaid};
    use phone_opus::internals::jobs::{Billing, JobState};

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_900_000_000_000);

    fn host(sessions: u64) -> HostRow {
        let seen = |number: u64| SessionSeen {
            session: SessionNumber(number),
            client: Some("claude-code".to_owned()),
            version: None,
            protocol: None,
            directory: Some("work".to_owned()),
            since: NOW,
            calls: 1,
            environment: "own".to_owned(),
        };
        let tree = TreeSaid {
            worker_generation: 3,
            worker_alive: true,
            worker_restarts: 2,
            upgrades: 1,
            ..TreeSaid::default()
        };
        HostRow {
            host: HostId::random(),
            kind: HostKind::Server,
            pid: 7,
            build: "0.1.0".to_owned(),
            started_at: NOW,
            changed_at: NOW,
            seen: HostSaid { sessions: (0..sessions).map(seen).collect(), tree, ..HostSaid::default() },
        }
    }

    fn waiting(sequence: u64) -> QueueRow {
        QueueRow {
            job: JobId::random(),
            sequence,
            workspace: "/work".into(),
            session: None,
            state: JobState::Queued,
            mode: JobMode::Sync,
            accepted_at: NOW,
            turn: sequence,
            workspace_served: 0,
            cancel_requested: None,
            waiter: None,
            environment: None,
            host: None,
        }
    }

    fn live(many: u64) -> Live {
        let limit = |n: u64| Limit {
            agent: format!("agent{n}"),
            billing: Billing::Subscription,
            account: String::new(),
            scope: phone_opus::internals::jobs::limits::Scope { family: Some("opus"), by_default: false },
            until: UnixMillis(NOW.0 + 60_000),
            job: JobId::random(),
        };
        let chain = |n: u64| ChainCost { chain: format!("{n:08}-rest"), jobs: 2, cost_usd: 1.5, unknown: 0 };
        Live {
            at: NOW,
            daemon: None,
            hosts: (0..many).map(|_| host(many)).collect(),
            queue: (0..many).map(waiting).collect(),
            limits: (0..many).map(limit).collect(),
            today: Some(DayCost { day: "2030-03-17".to_owned(), jobs: many, cost_usd: 1.0, unknown: 1 }),
            chains: (0..many).map(chain).collect(),
        }
    }

    #[test]
    fn however_much_there_is_it_is_told_in_twenty_lines_and_what_is_left_out_is_counted() {
        for many in [1, 2, 5, 100] {
            let text = shown(&live(many), NOW);
            assert!(text.lines().count() <= 20, "{many}: {} lines:\n{text}", text.lines().count());
        }
        let text = shown(&live(100), NOW);
        for left_out in
            ["97 more servers", "9997 more sessions", "96 more jobs", "99 more usage limits", "99 more chains"]
        {
            assert!(text.contains(left_out), "{left_out}:\n{text}");
        }
        let one = shown(&live(1), NOW);
        assert!(one.contains("worker of generation 3, 2 restarts, 1 upgrade"), "{one}");
        assert!(one.contains("today (UTC) 1 job ended and cost $1.00; of 1 it is not known"), "{one}");
        assert!(one.contains("the usage limit of agent0 for opus is reached until"), "{one}");
        assert!(one.contains("chain 00000000: 2 jobs for $1.50"), "{one}");
        assert!(shown(&live(0), NOW).ends_with("nothing is asked"));
    }
}
