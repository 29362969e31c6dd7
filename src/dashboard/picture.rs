//! What pages show, made of what was read.
//!
//! Owns: the shape of what is sent to pages and tools. Pure. May not know: where it was read, who looks.
//!
//! Nothing in a picture changes by the passing of time alone: times are moments, and whoever shows them counts.

use serde_json::{Map, Value, json};

use super::known::KnownJob;
use crate::base::ids::UnixMillis;
use crate::daemon::control::DaemonStatus;
use crate::jobs::admission::QueueRow;
use crate::jobs::hosts::HostRow;
use crate::jobs::store::Limit;
use crate::jobs::{JobRecord, JobSummary, JournalEntry};
use crate::seen::live::Live;

/// Bytes of an answer, a prompt or an agent's errors that a page is sent. More is read by `phone-opus jobs show`.
const TEXT_MOST: usize = 256 * 1024;

/// One job's line.
#[must_use]
pub fn row(job: &JobSummary, known: Option<&KnownJob>) -> Value {
    json!({
        "job_id": job.id,
        "status": job.state,
        "mode": job.mode,
        "agent": job.agent,
        "workspace": job.workspace.to_string_lossy(),
        "session": job.session_id,
        "prompt": job.prompt_head,
        "accepted_at": job.accepted_at,
        "started_at": known.and_then(|known| known.started_at),
        "finished_at": job.finished_at,
        "cost_usd": known.and_then(|known| known.cost_usd),
        "code": known.and_then(|known| known.code.as_deref()),
        "unread": job.unread,
    })
}

/// Who waits for what, in the order of acceptance.
#[must_use]
pub fn queue(live: &Live) -> Value {
    let waits = live.waits();
    let line = |row: &QueueRow| {
        let waits_for = waits.iter().find(|(job, _)| *job == row.job).map(|(_, waits_for)| waits_for);
        json!({"job_id": row.job, "status": row.state, "waits_for": waits_for, "cancel": row.cancel_requested})
    };
    live.queue.iter().map(line).collect()
}

/// The servers, the daemon first; what it says itself is newer than its row.
#[must_use]
pub fn servers(hosts: &[HostRow], daemon: Option<&DaemonStatus>, health: Option<&Value>, now: UnixMillis) -> Value {
    let mut all = Vec::new();
    if let Some(status) = daemon {
        let mut shown = json!(status);
        if let Value::Object(members) = &mut shown {
            // To the second, so that the moment stands still.
            let began = (now.0 / 1000).saturating_sub(i64::try_from(status.uptime_s).unwrap_or(i64::MAX));
            let row = hosts.iter().find(|row| Some(row.host) == status.host);
            let started = row.map_or(UnixMillis(began.saturating_mul(1000)), |row| row.started_at);
            members.remove("uptime_s");
            // Who asks this is no client.
            members.insert("connections".to_owned(), json!(status.connections.saturating_sub(1)));
            members.insert("kind".to_owned(), json!("daemon"));
            members.insert("started_at".to_owned(), json!(started));
            let clients =
                status.sessions.iter().filter(|seen| seen.client.as_deref().is_some_and(|name| name != CLIENT));
            members.insert("sessions".to_owned(), clients.map(|seen| json!(seen)).collect());
            members.insert("health".to_owned(), json!(health));
        }
        all.push(shown);
    }
    let itself = daemon.and_then(|daemon| daemon.host);
    all.extend(hosts.iter().filter(|row| Some(row.host) != itself).map(|row| json!(row)));
    Value::Array(all)
}

/// What the dashboard calls itself to a daemon.
pub const CLIENT: &str = "phone-opus-dashboard";

/// A health snapshot without what changes by itself.
#[must_use]
pub fn steady(mut health: Value) -> Value {
    if let Value::Object(members) = &mut health {
        for name in ["uptime_s", "calls_in_flight", "sessions", "limits"] {
            members.remove(name);
        }
        if let Some(Value::Object(rollout)) = members.get_mut("rollout") {
            rollout.retain(|name, _| !name.ends_with("_ago_s"));
        }
    }
    health
}

/// The limits of providers that were reached.
#[must_use]
pub fn limits(limits: &[Limit]) -> Value {
    let line = |limit: &Limit| json!({"agent": limit.agent, "models": limit.scope.family, "until": limit.until, "job_id": limit.job});
    limits.iter().map(line).collect()
}

/// Everything about one job that a page shows, its journal apart.
#[must_use]
pub fn record(job: &JobRecord) -> Value {
    let request = &job.request;
    let mut shown = json!({
        "job_id": job.id,
        "status": job.state,
        "mode": job.mode,
        "workspace": job.workspace.to_string_lossy(),
        "cwd": request.cwd.to_string_lossy(),
        "agent": request.agent,
        "machine": request.machine,
        "model": request.model,
        "effort": request.effort,
        "timeout_s": request.timeout_s,
        "chain": job.chain,
        "depth": job.depth,
        "accepted_at": job.accepted_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "cancel": job.cancel_requested,
        "last_event": job.last_event,
        "unread": job.state.is_terminal() && job.read_at.is_none(),
    });
    if let Value::Object(members) = &mut shown {
        text(members, "prompt", &request.prompt);
        if let Some(outcome) = &job.outcome {
            let mut told = json!(outcome);
            if let Value::Object(of) = &mut told {
                for (name, said) in [("response", &outcome.response), ("stderr_tail", &outcome.stderr_tail)] {
                    if let Some(said) = said {
                        text(of, name, said);
                    }
                }
            }
            members.insert("outcome".to_owned(), told);
        }
    }
    shown
}

/// Puts a text there, and beside it how many bytes it has where they are not all there.
fn text(members: &mut Map<String, Value>, name: &str, said: &str) {
    let end = (0..=TEXT_MOST.min(said.len())).rev().find(|at| said.is_char_boundary(*at)).unwrap_or(0);
    members.insert(name.to_owned(), json!(said.get(..end).unwrap_or_default()));
    if end < said.len() {
        members.insert(format!("{name}_bytes"), json!(said.len()));
    }
}

/// An entry of a journal.
#[must_use]
pub fn entry(entry: &JournalEntry) -> Value {
    json!({"seq": entry.seq, "at": entry.at, "event": entry.event})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::{ConsultRequest, JobState};

    #[test]
    fn a_text_is_cut_between_letters_and_says_how_long_it_was() {
        let mut job = JobRecord::plain(JobState::Queued, ConsultRequest::new("ä".repeat(TEXT_MOST)));
        let shown = record(&job);
        assert_eq!(shown["prompt"].as_str().map(str::len), Some(TEXT_MOST));
        assert_eq!(shown["prompt_bytes"], json!(2 * TEXT_MOST));
        job.request.prompt = "short".to_owned();
        assert_eq!(record(&job).get("prompt_bytes"), None);
    }

    #[test]
    fn nothing_of_a_daemon_changes_because_time_passes() {
        let status = |uptime: u64| {
            let said = json!({"proto": 1, "build": "1", "generation": "6f0c4f0e-5f0b-4c0e-9a57-0d7a1f0e8b11", "uptime_s": uptime});
            serde_json::from_value::<DaemonStatus>(said).expect("a status")
        };
        let at = |second: i64, uptime| servers(&[], Some(&status(uptime)), None, UnixMillis(second * 1000 + 10));
        assert_eq!(at(1000, 7), at(1005, 12));
        let health = |uptime: u64| steady(json!({"ready": true, "uptime_s": uptime, "rollout": {"state": "idle"}}));
        assert_eq!(health(1), health(2));
        assert_eq!(health(1)["ready"], json!(true));
    }
}
