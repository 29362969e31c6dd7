//! The laws as functions: what was seen goes in, the first thing that breaks the law comes out.
//!
//! Owns: one `invariant_*` per law and viewpoint. May not know: how what they are given was collected (that is
//! [`super::rig`]), or when they are called. They are plain functions on values, so a model, a rig's teardown and a
//! self-test use the same ones.
//!
//! | law | checked by | seen from |
//! | --- | --- | --- |
//! | L1 one response per id | [`invariant_one_answer_each`], [`SessionCore::invariant_calls_are_consistent_and_bounded`] | a client; inside a session |
//! | L2 restart is not replay | [`invariant_attempts_follow_their_contract`] | a tool's tally |
//! | L3 at most one run | [`invariant_one_run_each`], [`invariant_one_job_per_request`], [`invariant_effects_happen_once`] | the agent's log and the store; a tool's tally |
//! | L4 durable, one end, told after | [`invariant_jobs_are_over`], [`invariant_journal_is_whole`], [`invariant_what_was_told_is_stored`] | the store; a client and the store |
//! | L5 stale is dropped | [`invariant_generations_never_go_back`] (that nothing stale is answered is L1) | health |
//! | L6 recorded before dispatch | [`invariant_recorded_before_dispatch`], [`invariant_journal_is_whole`] | the agent's log and the store |
//! | L7 nothing outlives its owner | [`invariant_nothing_is_left_alive`] | the process table |
//! | L8 faults stay below | [`invariant_the_connection_was_not_dropped`] | a client |
//! | L9 bounds | [`invariant_at_most_so_many_run_at_once`], [`invariant_core_is_bounded`] | the agent's log; inside a process session |
//! | L10 telemetry | [`invariant_telemetry_is_whole_records`], [`invariant_totals_add_up`] | the log file; a client |
//! | L11 stdout | [`invariant_stdout_is_messages_only`] | a client |
//! | L12 no globals | [`invariant_surroundings_are_untouched`] (directory and environment; the rest is `tests/house_rules.rs`) | this process |
//! | L13 privacy | [`invariant_files_are_private`], [`invariant_secrets_stay_where_they_belong`] | the disk, the agent's log |
//! | L16 illegal transitions | [`invariant_no_illegal_transition`] | the store, the log file |
//!
//! Not to be checked at the end of a case, because they are about what happens meanwhile: L14 (a stalled client; use
//! [`super::client::Connecting::not_reading`]), that telemetry never waits (L10), the time a refusal takes (L9), and that an
//! upgrade loses nothing (L15), which is all of these over a host that was upgraded. The laws of process sessions are in [`crate::exec::invariants`] and are handed on from here.
//!
//! [`SessionCore::invariant_calls_are_consistent_and_bounded`]: crate::protocol::session::SessionCore::invariant_calls_are_consistent_and_bounded

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::client::Exchange;
use super::processes::Process;
use super::rig::Run;
use super::tools::Tally;
use crate::actors::session::replay::ATTEMPTS;
use crate::base::fault::FaultCode;
pub use crate::exec::invariants::*;
use crate::jobs::{JobRecord, JobState, JournalEntry, JournalEvent};
use crate::tools::ReplayContract;

fn violated(law: &'static str, detail: impl Into<String>) -> Result<(), Violation> {
    Err(Violation { law, detail: detail.into() })
}

/// L1: every request got exactly one answer, those that nobody may answer none, and nothing else was answered.
///
/// # Errors
///
/// The first request of which it does not hold.
pub fn invariant_one_answer_each(exchange: &Exchange) -> Result<(), Violation> {
    const LAW: &str = "L1: every request gets exactly one response, and none after it was cancelled";
    for id in 1..=exchange.asked {
        let answers = exchange.answers.get(&id.to_string()).map_or(0, Vec::len);
        if answers != usize::from(!exchange.silent.contains(&id)) {
            return violated(LAW, format!("{answers} answers to request {id} of {}", exchange.asked));
        }
    }
    let asked = |id: &&String| id.parse().is_ok_and(|id: u64| (1..=exchange.asked).contains(&id));
    let strangers: Vec<&String> = exchange.answers.keys().filter(|id| !asked(id)).collect();
    if strangers.is_empty() {
        Ok(())
    } else {
        violated(LAW, format!("answers to nothing that was asked: {strangers:?}"))
    }
}

/// L11: stdout carried whole protocol messages only.
///
/// # Errors
///
/// The lines that were none.
pub fn invariant_stdout_is_messages_only(exchange: &Exchange) -> Result<(), Violation> {
    if exchange.broken.is_empty() {
        return Ok(());
    }
    violated("L11: stdout carries protocol messages only, one whole line at a time", format!("{:?}", exchange.broken))
}

/// L8: the connection lasted until the client hung up, or until its end was announced.
///
/// # Errors
///
/// It did not.
pub fn invariant_the_connection_was_not_dropped(exchange: &Exchange) -> Result<(), Violation> {
    if !exchange.dropped {
        return Ok(());
    }
    violated("L8: no fault below the session closes the client's transport", "it was closed before the client hung up")
}

/// L5: the worker's generation never goes back.
///
/// # Errors
///
/// The first step back.
pub fn invariant_generations_never_go_back(generations: &[u64]) -> Result<(), Violation> {
    match generations.windows(2).find(|pair| pair[1] < pair[0]) {
        None => Ok(()),
        Some(pair) => violated("L5: generations are never reused", format!("{} came after {}", pair[1], pair[0])),
    }
}

/// L10: what telemetry counted adds up.
///
/// # Errors
///
/// The totals that do not, or that went back.
pub fn invariant_totals_add_up(totals: &[Value]) -> Result<(), Violation> {
    const LAW: &str = "L10: telemetry counts every request once";
    let mut earlier = 0;
    for totals in totals {
        let count = |name: &str| totals[name].as_u64().unwrap_or(u64::MAX / 8);
        let parts = count("successes") + count("response_errors") + count("cancelled");
        let requests = count("requests");
        if requests != parts || count("transport_faults") > count("response_errors") || requests < earlier {
            return violated(LAW, format!("{totals}, after {earlier} requests"));
        }
        earlier = requests;
    }
    Ok(())
}

/// L10: each line of the telemetry log is one whole record.
///
/// # Errors
///
/// The first line that is none.
pub fn invariant_telemetry_is_whole_records(log: &str) -> Result<(), Violation> {
    let whole = |line: &&str| serde_json::from_str::<Value>(line).is_ok_and(|record| record["type"].is_string());
    match log.lines().find(|line| !whole(line)) {
        None if log.is_empty() || log.ends_with('\n') => Ok(()),
        None => violated("L10: a record is written whole or not at all", "the last line has no end"),
        Some(line) => {
            violated("L10: a record is written whole or not at all", line.chars().take(300).collect::<String>())
        }
    }
}

/// L2: no call was attempted more often than its contract allows, never twice by one generation, and by later
/// generations only after earlier ones.
///
/// # Errors
///
/// The first call of which it does not hold.
pub fn invariant_attempts_follow_their_contract(contract: ReplayContract, attempts: &Tally) -> Result<(), Violation> {
    const LAW: &str = "L2: restarting a worker never by itself authorises running a request again";
    let most = match contract {
        ReplayContract::NeverReplay => Some(1),
        ReplayContract::Convergent => Some(ATTEMPTS as usize),
        // Attaching needs no budget: it starts nothing, which `invariant_effects_happen_once` sees.
        ReplayContract::ProbeRequired => None,
    };
    let mut calls: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for entry in attempts.entries() {
        calls.entry(entry.invocation).or_default().push(entry.generation.0);
    }
    for (call, generations) in calls {
        let rising = generations.windows(2).all(|pair| pair[0] < pair[1]);
        if !rising || most.is_some_and(|most| generations.len() > most) {
            return violated(LAW, format!("{call} ({contract:?}) was attempted by generations {generations:?}"));
        }
    }
    Ok(())
}

/// L3, for any tool with evidence: no call had its effect twice.
///
/// # Errors
///
/// The first call that had.
pub fn invariant_effects_happen_once(effects: &Tally) -> Result<(), Violation> {
    let mut seen = BTreeSet::new();
    match effects.entries().into_iter().find(|entry| !seen.insert(entry.invocation.clone())) {
        None => Ok(()),
        Some(again) => violated("L3: what was accepted is never run twice", format!("{again:?} is a second effect")),
    }
}

/// L3: no job was run twice, and nothing was run that is no job.
///
/// # Errors
///
/// The first run of which it does not hold.
pub fn invariant_one_run_each(jobs: &[JobRecord], runs: &[Run]) -> Result<(), Violation> {
    const LAW: &str = "L3: one accepted consult is at most one agent run";
    let started = jobs.iter().filter(|job| job.started_at.is_some()).count();
    if runs.len() > started {
        return violated(LAW, format!("{} runs of {started} started jobs", runs.len()));
    }
    let mut seen = BTreeSet::new();
    for token in runs.iter().filter_map(Run::token) {
        if !seen.insert(token) {
            return violated(LAW, format!("two runs have the token {token}"));
        }
        if job_of(jobs, token).is_none() {
            return violated(LAW, format!("no job has the token {token} of a run"));
        }
    }
    Ok(())
}

fn job_of<'a>(jobs: &'a [JobRecord], token: &str) -> Option<&'a JobRecord> {
    jobs.iter().find(|job| job.process.is_some_and(|process| process.token.to_string() == token))
}

/// L3: one invocation is at most one job, and so is one request key of one workspace.
///
/// # Errors
///
/// The first that has two.
pub fn invariant_one_job_per_request(jobs: &[JobRecord]) -> Result<(), Violation> {
    const LAW: &str = "L3: the same request joins the same job";
    let (mut calls, mut keys) = (BTreeSet::new(), BTreeSet::new());
    for job in jobs {
        if job.invocation.as_ref().is_some_and(|call| !calls.insert(call)) {
            return violated(LAW, format!("two jobs of one call: {job:?}"));
        }
        if job.request_key.as_ref().is_some_and(|key| !keys.insert((&job.workspace, key))) {
            return violated(LAW, format!("two jobs of one request key: {job:?}"));
        }
    }
    Ok(())
}

/// L4: each job is in exactly one terminal state, with an outcome that agrees with it.
///
/// # Errors
///
/// The first job that is not.
pub fn invariant_jobs_are_over(jobs: &[JobRecord]) -> Result<(), Violation> {
    const LAW: &str = "L4: a job reaches exactly one terminal state";
    for job in jobs {
        let agrees = job.outcome.as_ref().is_some_and(|outcome| {
            outcome.fault.is_none() == (job.state == JobState::Succeeded)
                && job.finished_at.is_some()
                && (job.state != JobState::Succeeded || job.started_at.is_some())
        });
        if !job.state.is_terminal() || !agrees {
            return violated(LAW, format!("{job:?}"));
        }
    }
    Ok(())
}

/// L4 and L6: a job's journal is numbered from 1 without gaps up to the number its record names, and says that it was
/// dispatched before anything of its process.
///
/// # Errors
///
/// The first entry that is out of place.
pub fn invariant_journal_is_whole(job: &JobRecord, journal: &[JournalEntry]) -> Result<(), Violation> {
    const LAW: &str = "L4: a job's journal has no gap; L6: dispatched comes first";
    if let Some((place, entry)) = (1..).zip(journal).find(|(place, entry)| entry.seq != *place) {
        return violated(LAW, format!("{entry:?} stands at {place} in the journal of {}", job.id));
    }
    if job.last_event != journal.len() as u64 {
        return violated(LAW, format!("{} entries, and {job:?} says {}", journal.len(), job.last_event));
    }
    match journal.first() {
        None | Some(JournalEntry { event: JournalEvent::Dispatched, .. }) => Ok(()),
        Some(first) => violated(LAW, format!("{first:?} is the first entry of {}", job.id)),
    }
}

/// L4: what a client was told about a job is what the store says: the job is there, and an end that was told is its
/// end.
///
/// # Errors
///
/// The first thing that was told and is not so.
pub fn invariant_what_was_told_is_stored(exchange: &Exchange, jobs: &[JobRecord]) -> Result<(), Violation> {
    const LAW: &str = "L4: a job is durable before it is acknowledged, and its end before anyone is told";
    for answer in exchange.answers.values().flatten() {
        let told = &answer["result"]["structuredContent"];
        let (Some(id), Some(state)) = (told["job_id"].as_str(), told["status"].as_str().and_then(JobState::parse))
        else {
            continue;
        };
        match jobs.iter().find(|job| job.id.to_string() == id) {
            None => return violated(LAW, format!("{id} was told to be {}, and no such job is stored", state.as_str())),
            Some(job) if state.is_terminal() && job.state != state => {
                return violated(LAW, format!("{id} was told to be {}, and is {}", state.as_str(), job.state.as_str()));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// L6: no agent was started before its job was recorded as running.
///
/// # Errors
///
/// The first that was.
pub fn invariant_recorded_before_dispatch(jobs: &[JobRecord], runs: &[Run]) -> Result<(), Violation> {
    for run in runs {
        let Some(job) = run.token().and_then(|token| job_of(jobs, token)) else { continue };
        if job.started_at.is_none_or(|started| run.began() < started.0) {
            let detail = format!("a run of {} began at {}, and {:?} is recorded", job.id, run.began(), job.started_at);
            return violated("L6: an attempt is recorded as dispatched before it is", detail);
        }
    }
    Ok(())
}

/// L7: no process of the world is left.
///
/// # Errors
///
/// Those that are.
pub fn invariant_nothing_is_left_alive(processes: &[Process]) -> Result<(), Violation> {
    if processes.is_empty() {
        return Ok(());
    }
    violated("L7: nothing outlives its owner", format!("left alive: {processes:?}"))
}

/// L9: never more agents at once than allowed, as far as their own log tells (an agent that was killed has no end
/// there, and is not counted).
///
/// # Errors
///
/// The moment at which there were more.
pub fn invariant_at_most_so_many_run_at_once(runs: &[Run], limit: usize) -> Result<(), Violation> {
    let ended: Vec<(i64, i64)> = runs.iter().filter_map(|run| Some((run.began(), run.end_at()?))).collect();
    for (at, _) in &ended {
        let now = ended.iter().filter(|(began, over)| began <= at && at < over).count();
        if now > limit {
            return violated("L9: every count has a bound", format!("{now} agents ran at {at}, {limit} are allowed"));
        }
    }
    Ok(())
}

/// The state of this process that a library must leave alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    cwd: Option<PathBuf>,
    environment: BTreeMap<OsString, OsString>,
}

impl Surroundings {
    /// As they are now.
    #[must_use]
    pub fn look() -> Self {
        Self { cwd: std::env::current_dir().ok(), environment: std::env::vars_os().collect() }
    }
}

/// L12: this process has the directory and the environment it had. Values are not shown: they may be secrets.
///
/// # Errors
///
/// What was changed.
pub fn invariant_surroundings_are_untouched(before: &Surroundings, after: &Surroundings) -> Result<(), Violation> {
    const LAW: &str = "L12: the library changes no globals";
    if before.cwd != after.cwd {
        return violated(LAW, format!("the directory was {:?} and is {:?}", before.cwd, after.cwd));
    }
    let (old, new) = (&before.environment, &after.environment);
    let changed: BTreeSet<_> = old.keys().chain(new.keys()).filter(|name| old.get(*name) != new.get(*name)).collect();
    if changed.is_empty() { Ok(()) } else { violated(LAW, format!("variables changed: {changed:?}")) }
}

/// L13: a directory and everything in it are for their owner only (0700 and 0600).
///
/// # Errors
///
/// The first that is not, or that cannot be looked at.
pub fn invariant_files_are_private(root: &Path) -> Result<(), Violation> {
    const LAW: &str = "L13: files are 0600, directories 0700";
    let unseen = |error: std::io::Error| Violation { law: LAW, detail: format!("{}: {error}", root.display()) };
    let found = match std::fs::symlink_metadata(root) {
        // A database's side files come and go with whoever has it open.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(unseen)?,
    };
    let (mode, want) = (found.permissions().mode() & 0o777, if found.is_dir() { 0o700 } else { 0o600 });
    if mode != want {
        return violated(LAW, format!("{} is {mode:o}", root.display()));
    }
    if found.is_dir() {
        for entry in std::fs::read_dir(root).map_err(unseen)? {
            invariant_files_are_private(&entry.map_err(unseen)?.path())?;
        }
    }
    Ok(())
}

/// L13: no secret stands in a text in which it has no place.
///
/// # Errors
///
/// The first place of the first secret; the secret itself is not shown.
pub fn invariant_secrets_stay_where_they_belong(
    secrets: &[(&str, &str)],
    places: &[(String, String)],
) -> Result<(), Violation> {
    for (name, secret) in secrets {
        if let Some((place, _)) = places.iter().find(|(_, text)| text.contains(secret)) {
            return violated(
                "L13: prompts and keys are never in argv, logs or telemetry",
                format!("{name} is in {place}"),
            );
        }
    }
    Ok(())
}

/// L16: nothing had to report an illegal transition.
///
/// # Errors
///
/// The first that did.
pub fn invariant_no_illegal_transition(jobs: &[JobRecord], telemetry: &str) -> Result<(), Violation> {
    const LAW: &str = "L16: an illegal transition is a fault of the program";
    let code = FaultCode::IllegalTransition;
    let fault = |job: &&JobRecord| {
        job.outcome.as_ref().and_then(|outcome| outcome.fault.as_ref()).is_some_and(|fault| fault.code == code)
    };
    if let Some(job) = jobs.iter().find(fault) {
        return violated(LAW, format!("{job:?}"));
    }
    match telemetry.lines().find(|line| line.contains(&format!("\"{}\"", code.as_str()))) {
        None => Ok(()),
        Some(line) => violated(LAW, line),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::fault::Fault;
    use crate::base::ids::{JobId, RunToken, UnixMillis};
    use crate::jobs::{ConsultRequest, JobOutcome, RunProcess};

    /// A job that was run from 100 to 200 and succeeded.
    fn job() -> JobRecord {
        let process = RunProcess { pid: 1, start_time: 1, token: RunToken::random(), session: 1, numbering: 1 };
        JobRecord {
            invocation: Some("host:1:1".into()),
            request_key: Some("key".into()),
            accepted_at: UnixMillis(90),
            started_at: Some(UnixMillis(100)),
            finished_at: Some(UnixMillis(200)),
            process: Some(process),
            outcome: Some(JobOutcome::default()),
            ..JobRecord::plain(JobState::Succeeded, ConsultRequest::new("why?").cwd("/w"))
        }
    }

    fn run(token: &str, began: i64, ended: Option<i64>) -> Run {
        let start = json!({"env": {"PHONE_OPUS_RUN_TOKEN": token}, "ts_ms": began});
        Run { start, end: ended.map(|at| json!({"ts_ms": at})) }
    }

    fn token(job: &JobRecord) -> String {
        job.process.map(|process| process.token.to_string()).unwrap_or_default()
    }

    fn exchange(answers: &[(&str, usize)]) -> Exchange {
        let answers = answers.iter().map(|(id, count)| ((*id).to_owned(), vec![Value::Null; *count])).collect();
        Exchange { asked: 2, answers, ..Exchange::default() }
    }

    fn entry(seq: u64, event: JournalEvent) -> JournalEntry {
        JournalEntry { seq, at: UnixMillis(1), event }
    }

    #[track_caller]
    fn expect(looked: Result<(), Violation>, kept: bool, what: &str) {
        assert_eq!(looked.is_ok(), kept, "{what}: {looked:?}");
    }

    #[test]
    fn l1_counts_answers_by_their_ids() {
        let silent = Exchange { silent: [2].into(), ..exchange(&[("1", 1)]) };
        for (what, seen, kept) in [
            ("one each", exchange(&[("1", 1), ("2", 1)]), true),
            ("one twice", exchange(&[("1", 1), ("2", 2)]), false),
            ("one missing", exchange(&[("1", 1)]), false),
            ("one cancelled", silent.clone(), true),
            ("a cancelled one answered", Exchange { silent: [2].into(), ..exchange(&[("1", 1), ("2", 1)]) }, false),
            ("a stranger", exchange(&[("1", 1), ("2", 1), ("3", 1)]), false),
            ("another spelling", exchange(&[("1", 1), ("2", 1), ("\"1\"", 1)]), false),
        ] {
            expect(invariant_one_answer_each(&seen), kept, what);
        }
        expect(invariant_the_connection_was_not_dropped(&silent), true, "open");
        expect(invariant_the_connection_was_not_dropped(&Exchange { dropped: true, ..silent }), false, "dropped");
    }

    #[test]
    fn l3_ties_each_run_to_one_started_job() {
        let one = job();
        let other = JobRecord { invocation: None, request_key: None, ..job() };
        let both = [one.clone(), other.clone()];
        let (a, b) = (run(&token(&one), 110, Some(190)), run(&token(&other), 110, None));
        expect(invariant_one_run_each(&both, &[a.clone(), b.clone()]), true, "one each");
        expect(invariant_one_run_each(&both, &[a.clone(), a.clone()]), false, "one twice");
        expect(invariant_one_run_each(&both, &[run("else", 110, None)]), false, "of no job");
        let waiting = JobRecord { started_at: None, ..one.clone() };
        expect(invariant_one_run_each(&[waiting], &[a]), false, "not started");
        expect(invariant_one_job_per_request(&both), true, "each its own");
        let same_key = JobRecord { invocation: None, ..job() };
        expect(invariant_one_job_per_request(&[one.clone(), same_key.clone()]), false, "one key");
        let elsewhere = JobRecord { workspace: "/v".into(), ..same_key };
        expect(invariant_one_job_per_request(&[one.clone(), elsewhere]), true, "another workspace");
        let same_call = JobRecord { request_key: None, ..job() };
        expect(invariant_one_job_per_request(&[one, same_call]), false, "one call");
    }

    #[test]
    fn l4_wants_an_end_that_agrees_with_its_outcome() {
        let fault = |code| Some(JobOutcome { fault: Some(Fault::new(code, "x")), ..JobOutcome::default() });
        let failed = JobRecord { state: JobState::Failed, outcome: fault(FaultCode::AgentError), ..job() };
        for (what, record, kept) in [
            ("succeeded", job(), true),
            ("failed", failed.clone(), true),
            ("still running", JobRecord { state: JobState::Running, ..job() }, false),
            ("no outcome", JobRecord { outcome: None, ..job() }, false),
            ("failed without a fault", JobRecord { outcome: job().outcome, ..failed.clone() }, false),
            ("succeeded with one", JobRecord { state: JobState::Succeeded, ..failed.clone() }, false),
            ("over at no time", JobRecord { finished_at: None, ..job() }, false),
            ("succeeded unstarted", JobRecord { started_at: None, ..job() }, false),
        ] {
            expect(invariant_jobs_are_over(&[record]), kept, what);
        }
        expect(invariant_no_illegal_transition(&[failed], "{\"code\":\"agent_error\"}\n"), true, "another fault");
        let illegal = JobRecord { outcome: fault(FaultCode::IllegalTransition), ..job() };
        expect(invariant_no_illegal_transition(&[illegal], ""), false, "L16 in a job");
        expect(invariant_no_illegal_transition(&[], "{\"code\":\"illegal_transition\"}\n"), false, "L16 in the log");
    }

    #[test]
    fn l4_compares_what_was_told_with_what_is_stored() {
        let job = job();
        let told = |id: String, status: &str| {
            let answer = json!({"result": {"structuredContent": {"job_id": id, "status": status}}});
            Exchange { answers: [("1".to_owned(), vec![answer])].into(), ..Exchange::default() }
        };
        for (id, status, kept) in [
            (job.id, "succeeded", true),
            (job.id, "running", true),
            (job.id, "failed", false),
            (JobId::random(), "running", false),
            (JobId::random(), "no state", true),
        ] {
            let exchange = told(id.to_string(), status);
            expect(invariant_what_was_told_is_stored(&exchange, std::slice::from_ref(&job)), kept, status);
        }
    }

    #[test]
    fn l4_and_l6_read_the_journal_and_the_times() {
        use JournalEvent::{Dispatched, ProcessClosed, ProcessStarted};
        let started = ProcessStarted { pid: 1 };
        for (what, journal, last_event, kept) in [
            ("whole", vec![entry(1, Dispatched), entry(2, started.clone()), entry(3, ProcessClosed)], 3, true),
            ("never dispatched", vec![], 0, true),
            ("a gap", vec![entry(1, Dispatched), entry(3, ProcessClosed)], 3, false),
            ("its end is missing", vec![entry(1, Dispatched)], 2, false),
            ("started first", vec![entry(1, started)], 1, false),
        ] {
            expect(invariant_journal_is_whole(&JobRecord { last_event, ..job() }, &journal), kept, what);
        }
        let job = job();
        let jobs = std::slice::from_ref(&job);
        expect(invariant_recorded_before_dispatch(jobs, &[run(&token(&job), 100, None)]), true, "at once");
        expect(invariant_recorded_before_dispatch(jobs, &[run(&token(&job), 99, None)]), false, "too early");
    }

    #[test]
    fn l9_counts_overlapping_runs_by_their_own_times() {
        let runs = [run("a", 0, Some(10)), run("b", 5, Some(15)), run("c", 10, Some(20)), run("killed", 6, None)];
        expect(invariant_at_most_so_many_run_at_once(&runs, 2), true, "two");
        expect(invariant_at_most_so_many_run_at_once(&runs, 1), false, "one");
    }

    #[test]
    fn l5_and_l10_read_what_the_host_says_of_itself() {
        expect(invariant_generations_never_go_back(&[0, 1, 1, 3]), true, "rising");
        expect(invariant_generations_never_go_back(&[2, 1]), false, "back");
        let totals = |requests: u64, successes: u64, lost: u64| {
            json!({"requests": requests, "successes": successes, "response_errors": 1, "cancelled": 0,
                   "transport_faults": lost})
        };
        expect(invariant_totals_add_up(&[totals(3, 2, 0), totals(5, 4, 1)]), true, "growing");
        expect(invariant_totals_add_up(&[totals(5, 4, 0), totals(3, 2, 0)]), false, "shrinking");
        expect(invariant_totals_add_up(&[totals(4, 2, 0)]), false, "one uncounted");
        expect(invariant_totals_add_up(&[totals(3, 2, 2)]), false, "more lost than failed");
        expect(invariant_totals_add_up(&[json!({})]), false, "nothing");
        let record = "{\"type\":\"fault\"}\n";
        for (log, kept) in [("", true), (record, true), ("{\"type\":\"fa", false), ("{\"type\":\"fault\"}", false)] {
            expect(invariant_telemetry_is_whole_records(log), kept, log);
        }
        expect(invariant_telemetry_is_whole_records(&format!("torn{record}{record}")), false, "torn before");
    }

    #[test]
    fn l12_and_l13_see_what_was_changed_and_never_show_a_secret() {
        let before = Surroundings::look();
        expect(invariant_surroundings_are_untouched(&before, &Surroundings::look()), true, "untouched");
        let mut changed = before.clone();
        changed.environment.insert("NEW".into(), "s3cret".into());
        let told = invariant_surroundings_are_untouched(&before, &changed).expect_err("changed").to_string();
        assert!(told.contains("NEW") && !told.contains("s3cret"), "{told}");
        let moved = Surroundings { cwd: Some("/elsewhere".into()), ..before.clone() };
        expect(invariant_surroundings_are_untouched(&before, &moved), false, "moved");

        let places = [("a log".to_owned(), "it said s3cret".to_owned())];
        let told = invariant_secrets_stay_where_they_belong(&[("the key", "s3cret")], &places).expect_err("seen");
        assert!(told.to_string().contains("the key is in a log") && !told.to_string().contains("s3cret"), "{told}");
        expect(invariant_secrets_stay_where_they_belong(&[("the key", "other")], &places), true, "not there");

        let scratch = tempfile::tempdir().expect("scratch");
        let root = scratch.path().join("state");
        expect(invariant_files_are_private(&root), true, "nothing there");
        let allow = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
        };
        std::fs::create_dir(&root).expect("a directory");
        std::fs::write(root.join("file"), "").expect("a file");
        for (directory, file, kept) in [(0o700, 0o600, true), (0o755, 0o600, false), (0o700, 0o640, false)] {
            allow(&root, directory);
            allow(&root.join("file"), file);
            expect(invariant_files_are_private(&root), kept, "modes");
        }
    }
}
