//! The text of a reply about a job.
//!
//! Owns: how each field is said. May not know: where a field comes from, when it is told.
//!
//! Invariant: (1) the text says everything that the structured content has.

use std::fmt::Write as _;

use serde_json::Value;

use super::fields::{Fact, JobFacts, JobReply, Pages};
use super::structured;
use crate::agents::UNPROVEN;
use crate::base::local_time;
use crate::jobs::{JobState, JournalEvent, RunExit};
use crate::tools::callers::CallerOrigin;

/// Characters of the agent's standard error that a text shows.
const LAST_WORDS: usize = 600;

/// The text of a reply, for people and for models that are shown nothing else.
pub(super) fn porcelain(reply: &JobReply) -> String {
    let facts = &reply.facts;
    let mut text = heading(facts, reply.response.is_some());
    text.push_str(reply.response.as_deref().unwrap_or_default());
    let _ = write!(text, "\n\n[{}]", in_brief(facts).join(" · "));
    if let Some(next) = &facts.next {
        let _ = write!(text, "\n{next}");
    }
    if let Some(left_out) = &facts.project_file_left_out {
        let _ = write!(text, "\nThe project's file {} was left out: it {}.", left_out.place, left_out.why);
    }
    if !facts.unread_jobs.is_empty() {
        let ids: Vec<String> = facts.unread_jobs.iter().map(ToString::to_string).collect();
        let _ = write!(text, "\nFinished and not read yet: {}.", ids.join(", "));
    }
    if facts.full.is_some() {
        // The rest of the projection, where a reader of the text finds it too.
        let _ = write!(text, "\n\n{:#}", structured(facts));
    }
    if let Some(news) = &reply.news {
        text.push_str("\n\nEvents:");
        for entry in &news.events {
            let _ = write!(text, "\n{:>4} {}", entry.seq, described(&entry.event));
        }
    }
    text
}

/// One line about an event. Everything it says is in the structured form too.
fn described(event: &JournalEvent) -> String {
    match event {
        JournalEvent::Agent { event } => serde_json::to_string(event).unwrap_or_default(),
        other => serde_json::to_string(other).unwrap_or_default(),
    }
}

/// What stands before the answer, where there is more to say than the answer.
fn heading(facts: &JobFacts, answered: bool) -> String {
    let mut text = String::new();
    match (facts.status, &facts.failure) {
        (JobState::Succeeded, _) => {}
        (state, Some(failure)) => {
            let verb = match state {
                JobState::Cancelled => "was cancelled",
                JobState::Interrupted => "was interrupted",
                _ => "failed",
            };
            let fault = &failure.fault;
            let _ = write!(text, "The consult {verb} ({}): {}", fault.code, fault.detail);
            if let Some(hint) = &fault.hint {
                let _ = write!(text, " {hint}");
            }
            if let Some(stderr) = facts.stderr_tail.known().map(|tail| tail.trim_end()).filter(|tail| !tail.is_empty())
            {
                let last: String = stderr.chars().skip(stderr.chars().count().saturating_sub(LAST_WORDS)).collect();
                let _ = write!(text, "\n\nThe agent's last words on standard error:\n{last}");
            }
            if answered {
                text.push_str("\n\nWhat it had said:\n");
            }
        }
        (JobState::Queued, None) => text.push_str("The consult waits for its turn."),
        (_, None) => {
            let phase = facts.phase.as_deref().unwrap_or("at work");
            let _ = write!(text, "The consult is still running ({phase}).");
            if answered {
                text.push_str(" So far it has said:\n\n");
            }
        }
    }
    text
}

/// The line of facts under the answer.
fn in_brief(facts: &JobFacts) -> Vec<String> {
    let mut said =
        vec![format!("job {}", facts.job_id), facts.status.as_str().to_owned(), facts.mode.as_str().to_owned()];
    said.extend(facts.queue_position.map(|place| format!("place {place} in the queue")));
    let model = facts.model.as_ref().map_or(String::new(), |model| format!(" ({model})"));
    said.push(format!("{}{model}", facts.agent));
    if let Some(session) = &facts.session_id {
        said.push(format!("session {session} ({})", facts.session_mode.as_str()));
    }
    let machine = facts.machine.as_ref().map_or(String::new(), |machine| format!(" on {machine}"));
    said.push(format!("cwd {}{machine}", facts.cwd));
    said.extend(facts.placed_because.clone());
    if facts.environment != CallerOrigin::Host {
        said.push(format!("environment {}", facts.environment.as_str()));
    }
    said.push(format!("{:.1} s", facts.duration_ms as f64 / 1000.0));
    if facts.status.is_terminal() {
        said.extend(of_the_end(facts));
    }
    if !facts.stored {
        said.push("NOT STORED YET".to_owned());
    }
    said
}

/// What there is to say of a job that is over.
fn of_the_end(facts: &JobFacts) -> Vec<String> {
    let mut said = vec![facts.cost_usd.map_or("cost unknown".to_owned(), |cost| format!("${cost:.4}"))];
    said.extend(facts.billing.as_ref().map(|billing| match billing.as_str() {
        UNPROVEN => format!("payer {UNPROVEN}"),
        source => format!("key source {source}"),
    }));
    said.extend(facts.exit.known().and_then(exit_in_words));
    said.extend(facts.num_turns.map(|turns| format!("{turns} turn{}", if turns == 1 { "" } else { "s" })));
    let denied = Some(facts.permission_denial_count).filter(|count| *count > 0);
    said.extend(denied.map(|count| format!("{count} tool uses denied")));
    said.extend(facts.stop_reason.as_ref().map(|stop| format!("stopped by {stop}")));
    said.extend(facts.usage.as_ref().and_then(tokens));
    if let Some(failure) = &facts.failure {
        let fault = &failure.fault;
        if fault.retryable {
            said.push(format!("{} may pass: the same call can succeed later", fault.code));
        }
        let words = |resumable| if resumable { "resumable" } else { "not resumable" }.to_owned();
        said.extend(failure.resumable.map(words));
        said.extend(fault.retry_at.map(|at| format!("try again at {}", local_time::to_come(at, facts.told_at))));
    }
    match facts.workspace_changed {
        Fact::Told(Some(true)) => said.push("files in the directory changed meanwhile".to_owned()),
        Fact::Told(None) if facts.machine.is_some() => {
            said.push("whether files changed is not looked at on another machine".to_owned());
        }
        Fact::Told(None) => said.push("whether files changed is not known".to_owned()),
        Fact::Told(Some(false)) | Fact::LeftOut => {}
    }
    if facts.truncated {
        said.push("answer cut".to_owned());
    }
    match facts.pages {
        Some(Pages { page: Some(page), pages }) => said.push(format!("page {page} of {pages}")),
        Some(Pages { page: None, pages }) => said.push(format!("{pages} pages")),
        None => {}
    }
    said
}

/// How the agent's process ended, where that was no ordinary end.
fn exit_in_words(exit: &RunExit) -> Option<String> {
    match (exit.code, exit.signal) {
        (_, Some(signal)) => Some(format!("agent ended by signal {signal}")),
        (0, None) => None,
        (code, None) => Some(format!("agent exited with code {code}")),
    }
}

/// What was read and written, with what the cache had of it: the counts are read by the names that agents give them.
fn tokens(usage: &Value) -> Option<String> {
    let (input, output) = (usage["input_tokens"].as_u64()?, usage["output_tokens"].as_u64()?);
    let cached = [("cache_read_input_tokens", "read from"), ("cache_creation_input_tokens", "put into")];
    let cached =
        cached.iter().filter_map(|(name, what)| Some((usage[*name].as_u64().filter(|count| *count > 0)?, what)));
    let cached: Vec<String> = cached.map(|(count, what)| format!("{count} {what} the cache")).collect();
    let cached = if cached.is_empty() { String::new() } else { format!(" ({})", cached.join(", ")) };
    Some(format!("{input} tokens in{cached}, {output} out"))
}
