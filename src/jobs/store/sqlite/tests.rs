//! The store against its callers, its disk and other processes.
//!
//! Laws: L3, L4, L13, L16.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Barrier;

use rusqlite::params;

use super::*;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{AgentSessionId, ChainId, HostId, InvocationId, RunToken, SessionNumber};
use crate::jobs::hosts::{HostKind, HostRow, HostSaid};
use crate::jobs::journal::AgentEvent;
use crate::jobs::store::{
    Accept, AcceptLimits, Adoption, Ages, CancelState, JobFilter, LIMIT_MOST, RetentionPolicy, StartOutcome, Store,
    Transition,
};
use crate::jobs::{
    Billing, CancelReason, ConsultRequest, JobMode, JobOutcome, JobState, JournalEvent, NewJob, RunProcess,
};

const LIMITS: AcceptLimits = AcceptLimits { max_queued: 100_000 };

/// A moment, in milliseconds after the first one a clock may show.
fn at(ms: i64) -> UnixMillis {
    UnixMillis(verbs::WRITTEN + ms)
}

fn new_job(workspace: &str, prompt: &str) -> NewJob {
    NewJob {
        id: JobId::random(),
        invocation: None,
        request_key: None,
        given: None,
        workspace: workspace.into(),
        mode: JobMode::Sync,
        request: ConsultRequest::new(prompt).cwd(workspace).timeout_s(60),
        chain: ChainId::random(),
        depth: 0,
        accepted_at: at(1),
        environment: None,
        account: String::new(),
        host: None,
        trace: None,
    }
}

fn keyed(workspace: &str, prompt: &str, key: &str) -> NewJob {
    NewJob { request_key: Some(key.to_owned()), ..new_job(workspace, prompt) }
}

fn resuming(workspace: &str, session: AgentSessionId) -> NewJob {
    let mut job = new_job(workspace, "go on");
    job.request.session_id = Some(session);
    job
}

fn memory() -> SqliteStore {
    SqliteStore::in_memory().expect("a store in memory")
}

fn scratch() -> (tempfile::TempDir, StateDir) {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let dir = StateDir::at(scratch.path().join("state"));
    (scratch, dir)
}

fn open(dir: &StateDir) -> SqliteStore {
    SqliteStore::in_dir(dir).expect("the store opens")
}

fn insert(store: &mut SqliteStore, job: &NewJob) -> JobId {
    match store.accept(job, LIMITS).expect("accepted") {
        Accept::Inserted(record) => record.id,
        other => panic!("{other:?}"),
    }
}

fn started(store: &mut SqliteStore, job: &NewJob) -> JobId {
    let id = insert(store, job);
    assert_eq!(store.start(id, at(2)), Ok(StartOutcome::Started));
    id
}

fn finished(store: &mut SqliteStore, job: &NewJob, when: i64) -> JobId {
    let id = started(store, job);
    assert_eq!(store.finish(id, JobState::Succeeded, &JobOutcome::default(), at(when)), Ok(Transition::Done));
    id
}

fn event(text: &str) -> (UnixMillis, JournalEvent) {
    (at(5), JournalEvent::Agent { event: AgentEvent::Text { text: text.to_owned() } })
}

#[test]
fn an_accepted_job_reads_back_as_it_was_asked() {
    let mut store = memory();
    let mut job = keyed("/w", "  why\n\tnot?\u{7} ", "k");
    job.invocation = Some(InvocationId { host: HostId::random(), session: SessionNumber(1), call: 7 });
    job.request.max_budget_usd = Some(0.5);
    let Ok(Accept::Inserted(record)) = store.accept(&job, LIMITS) else { panic!("not inserted") };
    assert_eq!(store.job(job.id), Ok(record.clone()));
    assert_eq!((record.id, record.sequence, record.state), (job.id, 1, JobState::Queued));
    assert_eq!(record.request, job.request);
    assert_eq!(record.invocation, job.invocation.map(|i| i.to_string()));
    assert_eq!((record.chain, record.depth, record.mode), (job.chain, 0, JobMode::Sync));
    assert_eq!((record.outcome, record.process, record.last_event), (None, None, 0));
    let all = store.list(&JobFilter { workspace: None, state: None, limit: 9 }).expect("listed");
    assert_eq!(all[0].prompt_head, "why not?");
    let unknown = JobId::random();
    assert_eq!(store.job(unknown), Err(StoreError::UnknownJob(unknown)));
}

#[test]
fn the_same_invocation_is_the_same_job() {
    let mut store = memory();
    let mut job = new_job("/w", "p");
    let invocation = InvocationId { host: HostId::random(), session: SessionNumber(1), call: 1 };
    job.invocation = Some(invocation);
    assert_eq!(store.find_invocation(&invocation), Ok(None));
    let id = insert(&mut store, &job);
    job.id = JobId::random();
    assert!(matches!(store.accept(&job, LIMITS), Ok(Accept::Joined(record)) if record.id == id));
    assert_eq!(store.find_invocation(&invocation), Ok(Some(id)));
    assert_eq!(store.find_invocation(&InvocationId { call: 2, ..invocation }), Ok(None));
}

#[test]
fn an_accept_whose_answer_was_lost_can_be_repeated() {
    let mut store = memory();
    let job = new_job("/w", "p");
    insert(&mut store, &job);
    assert!(matches!(store.accept(&job, LIMITS), Ok(Accept::Joined(record)) if record.id == job.id));
}

#[test]
fn a_request_key_joins_with_the_same_arguments_and_conflicts_with_others() {
    let mut store = memory();
    let id = finished(&mut store, &keyed("/w", "p", "k"), 3);
    assert!(matches!(store.accept(&keyed("/w", "p", "k"), LIMITS), Ok(Accept::Joined(r)) if r.id == id));
    assert_eq!(store.accept(&keyed("/w", "other", "k"), LIMITS), Ok(Accept::Conflict { job: id }));
    assert!(matches!(store.accept(&keyed("/w2", "p", "k"), LIMITS), Ok(Accept::Inserted(_))), "keys are per workspace");
    assert!(matches!(store.accept(&new_job("/w", "p"), LIMITS), Ok(Accept::Inserted(_))), "no key, no joining");
}

#[test]
fn a_key_is_given_back_by_a_job_for_which_nothing_ran_and_by_no_other() {
    let exit = Some(crate::jobs::RunExit { code: 1, signal: None, reaped: 0 });
    let run = |pid| Some(RunProcess { pid, start_time: 1, token: RunToken::random(), session: 1, numbering: 1 });
    // How the job ended, what was recorded of its process, its exit; and whether its key is free.
    let cases = [
        (JobState::Failed, None, None, true),
        (JobState::Failed, run(0), None, true),
        (JobState::Failed, run(7), exit, false),
        (JobState::Failed, run(7), None, false),
        (JobState::Succeeded, run(7), exit, false),
        (JobState::Cancelled, None, None, true),
        (JobState::Cancelled, run(0), None, false),
        (JobState::Cancelled, run(7), exit, false),
        (JobState::Interrupted, None, None, true),
        (JobState::Interrupted, run(0), None, false),
        (JobState::Interrupted, run(7), None, false),
    ];
    for (state, process, exit, free) in cases {
        let mut store = memory();
        let job = started(&mut store, &keyed("/w", "p", "k"));
        if let Some(process) = process {
            assert_eq!(store.set_process(job, process), Ok(Transition::Done));
        }
        assert!(matches!(store.accept(&keyed("/w", "p", "k"), LIMITS), Ok(Accept::Joined(_))), "it is not over");
        let outcome = JobOutcome { exit, ..JobOutcome::default() };
        assert_eq!(store.finish(job, state, &outcome, at(3)), Ok(Transition::Done));
        let again = store.accept(&keyed("/w", "p", "k"), LIMITS);
        let what = format!("{state:?}, {process:?}, {exit:?}");
        match again.expect("accepted") {
            Accept::Inserted(record) => {
                assert!(free, "{what}");
                assert_eq!(record.request_key.as_deref(), Some("k"));
                assert_eq!(store.job(job).expect("kept").request_key, None);
            }
            Accept::Joined(record) => assert!(!free && record.id == job, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn a_key_compares_what_callers_named_and_not_what_defaults_made_of_the_rest() {
    let named = |timeout: u64, agent: &str, given: &[&str]| {
        let mut job = keyed("/w", "p", "k");
        job.request.timeout_s = timeout;
        job.request.agent = agent.to_owned();
        job.given = Some(given.iter().map(|name| (*name).to_owned()).collect());
        job
    };
    let first = named(60, "claude", &["agent"]);
    let cases = [
        ("the same", named(60, "claude", &["agent"]), true),
        ("another default", named(99, "claude", &["agent"]), true),
        ("the default of the first, named", named(60, "claude", &["agent", "timeout_s"]), true),
        ("another value, named", named(99, "claude", &["agent", "timeout_s"]), false),
        ("another named value", named(60, "offline", &["agent"]), false),
        ("nothing named, another default", named(99, "claude", &[]), false),
        ("a caller of whom that is not known", NewJob { given: None, ..named(99, "claude", &[]) }, false),
    ];
    for (what, again, joins) in cases {
        let mut store = memory();
        let id = insert(&mut store, &first);
        let found = store.accept(&again, LIMITS).expect("accepted");
        match joins {
            true => assert!(matches!(&found, Accept::Joined(record) if record.id == id), "{what}: {found:?}"),
            false => assert_eq!(found, Accept::Conflict { job: id }, "{what}"),
        }
    }
    let mut store = memory();
    let id = insert(&mut store, &first);
    let other = NewJob { request: ConsultRequest { prompt: "q".into(), ..first.request.clone() }, ..first.clone() };
    let other = NewJob { id: JobId::random(), ..other };
    assert_eq!(store.accept(&other, LIMITS), Ok(Accept::Conflict { job: id }));
}

#[test]
fn answers_are_announced_first_and_what_its_own_caller_cancelled_never() {
    let mut store = memory();
    let mut ended = |state, reason: Option<CancelReason>| {
        let job = started(&mut store, &new_job("/w", "p"));
        if let Some(reason) = reason {
            let _ = store.request_cancel(job, reason).expect("requested");
        }
        assert_eq!(store.finish(job, state, &JobOutcome::default(), at(3)), Ok(Transition::Done));
        job
    };
    let answer = ended(JobState::Succeeded, None);
    // Too late to be cancelled: it is an answer.
    let late = ended(JobState::Succeeded, Some(CancelReason::Requested));
    let failed = ended(JobState::Failed, None);
    let deadline = ended(JobState::Cancelled, None);
    for reason in [CancelReason::Requested, CancelReason::CallerLost] {
        (0..4).for_each(|_| _ = ended(JobState::Cancelled, Some(reason)));
    }
    let interrupted = ended(JobState::Interrupted, None);
    assert_eq!(store.unread(Path::new("/w"), 9), Ok(vec![late, answer, interrupted, deadline, failed]));
    assert_eq!(store.unread(Path::new("/w"), 3), Ok(vec![late, answer, interrupted]));
    assert_eq!(store.unread(Path::new("/w"), 1), Ok(vec![late]));
}

#[test]
fn no_jump_of_the_clock_stores_an_end_before_what_is_known_or_forgets_an_answer() {
    const DAY: i64 = 86_400_000;
    const YEAR: i64 = 365 * DAY;
    let policy = RetentionPolicy::default();
    // Where the clock stands when the job ends, and when the next host starts.
    let jumps = [
        ("it stood at 1970", -verbs::WRITTEN, 100),
        ("it stood a day before", -DAY, 100),
        ("it went ten years ahead", 100, 10 * YEAR),
        ("it stood ten years ahead", 10 * YEAR, 200),
        ("it went ten years ahead and back", 10 * YEAR, 10 * YEAR),
    ];
    for (what, ended, next) in jumps {
        let mut store = memory();
        let older = finished(&mut store, &new_job("/w", "p"), 50);
        let job = finished(&mut store, &new_job("/w", "p"), ended);
        let finished_at = |store: &mut SqliteStore, job| store.job(job).expect("kept").finished_at.expect("over");
        assert!(finished_at(&mut store, job) >= at(50), "{what}");
        for hour in 0..3 {
            assert_eq!(store.prune(policy, at(next + hour)).expect("pruned").jobs, [], "{what}");
        }
        // A month of hourly looks later, both have been there for long enough to go unless nobody has read them.
        store.mark_read(older, at(next)).expect("read");
        let mut gone = Vec::new();
        for hour in 0..24 * 31 {
            gone.extend(store.prune(policy, at(next + hour * DAY / 24)).expect("pruned").jobs);
        }
        assert_eq!(gone, [older], "{what}");
        store.job(job).expect("nobody has read it");
    }
}

#[test]
fn one_day_with_a_clock_that_is_years_ahead_does_not_date_what_ends_after_it() {
    const YEAR: i64 = 365 * 86_400_000;
    let mut store = memory();
    finished(&mut store, &new_job("/w", "p"), 10 * YEAR);
    let job = finished(&mut store, &new_job("/w", "p"), 500);
    assert_eq!(store.job(job).expect("there").finished_at, Some(at(500)));
    // Before the program was written the clock cannot be right, so then it is the best there is.
    let job = finished(&mut store, &new_job("/w", "p"), -verbs::WRITTEN);
    assert_eq!(store.job(job).expect("there").finished_at, Some(at(10 * YEAR)));
}

#[test]
fn what_is_forgotten_cannot_be_read_in_any_file() {
    let (_scratch, dir) = scratch();
    let mut store = open(&dir);
    let marks = ["CANARY-PROMPT", "CANARY-EVENT", "CANARY-ANSWER"];
    for n in 0..20 {
        let prompt = format!("{}-{n}-{}", marks[0], "p".repeat(n * 700));
        let job = started(&mut store, &new_job("/w", &prompt));
        store.append(job, &[event(&format!("{}-{n}", marks[1]))]).expect("appended");
        let answer =
            JobOutcome { response: Some(format!("{}-{n}-{}", marks[2], "a".repeat(n * 700))), ..Default::default() };
        assert_eq!(store.finish(job, JobState::Succeeded, &answer, at(3)), Ok(Transition::Done));
    }
    let found = || {
        let entries = fs::read_dir(dir.root()).expect("a directory").map(|entry| entry.expect("an entry").path());
        let mut found = Vec::new();
        for path in entries.filter(|path| path.is_file()) {
            let bytes = fs::read(&path).expect("read");
            let is_in = |mark: &&&str| memchr::memmem::find(&bytes, mark.as_bytes()).is_some();
            found.extend(marks.iter().filter(is_in).map(|mark| format!("{mark} in {}", path.display())));
        }
        found
    };
    assert!(!found().is_empty(), "it is there before");
    let all = RetentionPolicy { max_bytes: 0, ..RetentionPolicy::default() };
    assert_eq!(store.prune(all, at(4)).expect("pruned").jobs.len(), 20);
    let left = found();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_database_behind_a_link_is_refused_and_what_it_leads_to_keeps_its_mode() {
    let (scratch, dir) = scratch();
    dir.create().expect("made");
    let target = scratch.path().join("target");
    fs::write(&target, "").expect("written");
    fs::set_permissions(&target, Permissions::from_mode(0o644)).expect("set");
    std::os::unix::fs::symlink(&target, dir.database()).expect("linked");
    let refused = SqliteStore::in_dir(&dir).expect_err("refused");
    assert_eq!(refused, StateDirError::Link { path: dir.database() }.into());
    assert_eq!(fs::metadata(&target).expect("there").mode() & 0o777, 0o644);
}

#[test]
fn a_pipe_in_the_place_of_the_database_is_refused_and_keeps_its_mode() {
    let (_scratch, dir) = scratch();
    dir.create().expect("made");
    nix::unistd::mkfifo(&dir.database(), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    fs::set_permissions(dir.database(), Permissions::from_mode(0o644)).expect("set");
    let refused = SqliteStore::in_dir(&dir).expect_err("refused").to_string();
    assert!(refused.contains("not a plain file"), "{refused}");
    assert_eq!(fs::metadata(dir.database()).expect("there").mode() & 0o777, 0o644);
}

#[test]
fn a_usage_limit_refuses_whoever_would_run_into_it_until_it_is_over_or_proved_wrong() {
    const HOUR: i64 = 3_600_000;
    let mut store = memory();
    let waiting = insert(&mut store, &new_job("/w", "p"));
    let refused = job_in(&mut store, JobState::Running);
    let until = at(HOUR);
    let exit = Some(crate::jobs::RunExit { code: 1, signal: None, reaped: 1 });
    let fault = |until| Some(Fault::new(FaultCode::AgentRateLimited, "refused.").retry_at(until));
    let outcome = JobOutcome { exit, fault: fault(until), ..JobOutcome::default() };
    assert_eq!(store.finish(refused, JobState::Failed, &outcome, at(9)), Ok(Transition::Done));
    let limits = store.limits(at(10)).expect("read");
    let [limit] = &limits[..] else { panic!("{limits:?}") };
    assert_eq!((limit.until, limit.job, limit.billing), (until, refused, Billing::Subscription));
    // Who asks now is refused, and so is who waits already; another way of paying is another limit.
    let new = NewJob { accepted_at: at(10), ..new_job("/w", "p") };
    assert_eq!(store.accept(&new, LIMITS), Ok(Accept::Limited(limit.clone())));
    assert_eq!(store.start(waiting, at(10)), Ok(StartOutcome::Limited(limit.clone())));
    let mut by_key = new.clone();
    by_key.request.billing = Billing::ApiKey;
    assert!(matches!(store.accept(&by_key, LIMITS), Ok(Accept::Inserted(_))));
    // It is over when its time has come, and when a run that was under way proves it wrong.
    let later = NewJob { accepted_at: at(HOUR + 1), ..new_job("/w", "p") };
    assert!(matches!(store.accept(&later, LIMITS), Ok(Accept::Inserted(_))));
    assert_eq!(store.start(waiting, at(HOUR + 1)), Ok(StartOutcome::Started));
    assert_eq!(store.finish(waiting, JobState::Succeeded, &JobOutcome::default(), at(HOUR + 2)), Ok(Transition::Done));
    assert_eq!(store.limits(at(10)), Ok(Vec::new()));
    // A time nobody can mean, and a refusal by ourselves, teach nothing.
    let years = at(9 + i64::try_from(LIMIT_MOST).expect("fits") + 1);
    for outcome in [
        JobOutcome { exit, fault: fault(years), ..JobOutcome::default() },
        JobOutcome { exit: None, fault: fault(until), ..JobOutcome::default() },
    ] {
        let job = job_in(&mut store, JobState::Running);
        assert_eq!(store.finish(job, JobState::Failed, &outcome, at(9)), Ok(Transition::Done));
        assert_eq!(store.limits(at(10)), Ok(Vec::new()));
    }
}

#[test]
fn a_limit_is_of_an_account_and_where_it_says_so_of_a_family_of_models() {
    const HOUR: i64 = 60 * 60 * 1000;
    let mut store = memory();
    let asked = |account: &str, model: Option<&str>| {
        let mut new = NewJob { accepted_at: at(10), account: account.into(), ..new_job("/w", "p") };
        new.request.model = model.map(str::to_owned);
        new
    };
    let ended = |store: &mut SqliteStore, new: &NewJob, state, outcome: &JobOutcome| {
        let job = insert(store, new);
        assert_eq!(store.start(job, at(10)), Ok(StartOutcome::Started));
        assert_eq!(store.finish(job, state, outcome, at(11)), Ok(Transition::Done));
    };
    let refused = |limit: &str| JobOutcome {
        exit: Some(crate::jobs::RunExit { code: 1, signal: None, reaped: 1 }),
        fault: Some(Fault::new(FaultCode::AgentRateLimited, "refused.").retry_at(at(HOUR))),
        limit: Some(limit.into()),
        ..JobOutcome::default()
    };
    let is_refused = |store: &mut SqliteStore, account: &str, model: Option<&str>| {
        matches!(store.accept(&asked(account, model), LIMITS), Ok(Accept::Limited(_)))
    };
    let answered = |model: &str| JobOutcome { model: Some(model.into()), ..JobOutcome::default() };

    ended(&mut store, &asked("one", Some("opus")), JobState::Failed, &refused("seven_day_opus"));
    for (account, model, expected) in [
        ("one", Some("opus"), true),
        ("one", Some("claude-opus-4-5"), true),
        ("one", Some("sonnet"), false),
        ("one", None, false),
        ("two", Some("opus"), false),
    ] {
        assert_eq!(is_refused(&mut store, account, model), expected, "{account} {model:?}");
    }
    // A default that is of the family is told by a refusal of one who named none.
    ended(&mut store, &asked("one", None), JobState::Failed, &refused("seven_day_opus"));
    assert!(is_refused(&mut store, "one", None) && is_refused(&mut store, "one", Some("opus")));
    // Another family that answers says nothing about this one.
    ended(&mut store, &asked("one", Some("sonnet")), JobState::Succeeded, &answered("claude-sonnet-4-5"));
    assert!(is_refused(&mut store, "one", Some("opus")));
    // A limit of the whole account is one of every model, and the answer of any ends it.
    ended(&mut store, &asked("one", Some("sonnet")), JobState::Failed, &refused("five_hour"));
    for model in [None, Some("opus"), Some("sonnet"), Some("my-own")] {
        assert!(is_refused(&mut store, "one", model), "{model:?}");
    }
    assert_eq!(store.limits(at(12)).map(|limits| limits.len()), Ok(2));
    assert!(!is_refused(&mut store, "two", None));
    assert_eq!(store.clear_limits(), Ok(2));
    assert!(!is_refused(&mut store, "one", Some("opus")));
}

#[test]
fn a_full_queue_refuses_new_jobs_and_still_lets_old_ones_be_joined() {
    let mut store = memory();
    let limits = AcceptLimits { max_queued: 2 };
    let first = keyed("/w", "p", "k");
    insert(&mut store, &first);
    let second = insert(&mut store, &new_job("/w", "p"));
    assert_eq!(store.accept(&new_job("/w", "p"), limits), Ok(Accept::QueueFull { queued: 2 }));
    assert!(matches!(store.accept(&keyed("/w", "p", "k"), limits), Ok(Accept::Joined(_))));
    assert_eq!(store.start(second, at(2)), Ok(StartOutcome::Started));
    assert!(matches!(store.accept(&new_job("/w", "p"), limits), Ok(Accept::Inserted(_))), "running ones do not count");
}

#[test]
fn of_fifty_concurrent_accepts_with_one_key_one_inserts_and_the_rest_join() {
    let (_scratch, dir) = scratch();
    dir.create().expect("made");
    let together = Barrier::new(2);
    let answers: Vec<Accept> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    together.wait();
                    // Opening is part of the race: the first one makes the database.
                    let mut store = open(&dir);
                    (0..25).map(|_| store.accept(&keyed("/w", "p", "k"), LIMITS).expect("usable")).collect::<Vec<_>>()
                })
            })
            .collect();
        callers.into_iter().flat_map(|caller| caller.join().expect("no panic")).collect()
    });
    let inserted: Vec<JobId> =
        answers.iter().filter_map(|a| if let Accept::Inserted(r) = a { Some(r.id) } else { None }).collect();
    assert_eq!(inserted.len(), 1);
    assert_eq!(answers.iter().filter(|a| matches!(a, Accept::Joined(r) if r.id == inserted[0])).count(), 49);
    assert_eq!(open(&dir).counts().expect("counted").queued, 1);
}

/// Puts a new job into any state by legal steps.
fn job_in(store: &mut SqliteStore, state: JobState) -> JobId {
    let job = new_job("/w", "p");
    match state {
        JobState::Queued => insert(store, &job),
        JobState::Running => started(store, &job),
        terminal => {
            let id = started(store, &job);
            assert_eq!(store.finish(id, terminal, &JobOutcome::default(), at(3)), Ok(Transition::Done));
            id
        }
    }
}

#[test]
fn the_store_allows_exactly_the_transitions_that_are_drawn() {
    let mut store = memory();
    for from in JobState::ALL {
        for to in JobState::ALL {
            let id = job_in(&mut store, from);
            let before = store.job(id).expect("there");
            let done = if to == JobState::Running {
                match store.start(id, at(9)).expect("usable") {
                    StartOutcome::Started => Transition::Done,
                    StartOutcome::Refused { current } => Transition::Refused { current },
                    other => panic!("no session is shared, no limit reached: {other:?}"),
                }
            } else {
                store.finish(id, to, &JobOutcome::default(), at(9)).expect("usable")
            };
            let after = store.job(id).expect("there");
            match from.advance(to) {
                Ok(next) => {
                    assert_eq!(done, Transition::Done, "{from:?} to {to:?}");
                    assert_eq!(after.state, next);
                    assert_eq!(after.outcome.is_some(), next.is_terminal());
                    assert_eq!(after.finished_at.is_some(), next.is_terminal());
                }
                Err(_) => {
                    assert_eq!(done, Transition::Refused { current: from }, "{from:?} to {to:?}");
                    assert_eq!(after, before, "a refusal changes nothing");
                }
            }
        }
    }
}

#[test]
fn of_two_ends_the_first_stays() {
    let (_scratch, dir) = scratch();
    let (mut runner, mut sweeper) = (open(&dir), open(&dir));
    let id = started(&mut runner, &new_job("/w", "p"));
    let answer = JobOutcome { response: Some("42".into()), cost_usd: Some(0.25), ..JobOutcome::default() };
    assert_eq!(runner.finish(id, JobState::Succeeded, &answer, at(3)), Ok(Transition::Done));
    let lost = sweeper.finish(id, JobState::Interrupted, &JobOutcome::default(), at(4));
    assert_eq!(lost, Ok(Transition::Refused { current: JobState::Succeeded }));
    assert_eq!(sweeper.job(id).expect("there").outcome, Some(answer));
}

#[test]
fn a_second_run_of_a_session_cannot_start_before_the_first_is_over() {
    let mut store = memory();
    let session = AgentSessionId::random();
    let first = insert(&mut store, &resuming("/a", session));
    let second = insert(&mut store, &resuming("/b", session));
    let mut other_agent = resuming("/b", session);
    other_agent.request.agent = "codex".into();
    let other_agent = insert(&mut store, &other_agent);
    assert_eq!(store.start(first, at(2)), Ok(StartOutcome::Started));
    assert_eq!(store.start(second, at(2)), Ok(StartOutcome::SessionBusy { by: first }));
    assert_eq!(store.start(first, at(2)), Ok(StartOutcome::Refused { current: JobState::Running }));
    assert_eq!(store.start(other_agent, at(2)), Ok(StartOutcome::Started));
    assert_eq!(store.finish(first, JobState::Failed, &JobOutcome::default(), at(3)), Ok(Transition::Done));
    assert_eq!(store.start(second, at(4)), Ok(StartOutcome::Started));
}

#[test]
fn a_session_that_a_run_has_begun_is_busy_before_the_run_has_ended() {
    let mut store = memory();
    let first = started(&mut store, &new_job("/a", "p"));
    let session = AgentSessionId::random();
    let begun =
        AgentEvent::Started { session_id: Some(session.to_string()), model: None, key_source: None, version: None };
    store.append(first, &[(at(3), JournalEvent::Agent { event: begun })]).expect("appended");
    let second = insert(&mut store, &resuming("/a", session));
    assert_eq!(store.start(second, at(4)), Ok(StartOutcome::SessionBusy { by: first }));
}

#[test]
fn a_journal_is_numbered_from_one_without_gaps_whoever_writes_it() {
    let (_scratch, dir) = scratch();
    let mut store = open(&dir);
    let job = started(&mut store, &new_job("/w", "p"));
    let other = started(&mut store, &new_job("/w", "p"));
    store.append(other, &[event("elsewhere")]).expect("appended");
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let dir = &dir;
            scope.spawn(move || {
                let mut store = open(dir);
                for batch in 0..20 {
                    let events: Vec<_> = (0..=batch % 3).map(|n| event(&format!("{writer}.{batch}.{n}"))).collect();
                    store.append(job, &events).expect("appended");
                }
            });
        }
    });
    let last = store.glance(job).expect("there").last_event;
    assert_eq!(store.append(job, &[]), Ok(last), "nothing appended, nothing changed");
    let all = store.events(job, 0, usize::MAX, usize::MAX).expect("read");
    assert_eq!(all.iter().map(|entry| entry.seq).collect::<Vec<_>>(), (1..=last).collect::<Vec<_>>());
    assert_eq!(all.iter().map(|entry| format!("{:?}", entry.event)).collect::<HashSet<_>>().len(), all.len());
}

#[test]
fn a_journal_is_read_on_from_a_number_in_bounded_pieces() {
    let mut store = memory();
    let job = started(&mut store, &new_job("/w", "p"));
    let events: Vec<_> = (0..10).map(|n| event(&format!("{n}{}", "x".repeat(1_000)))).collect();
    assert_eq!(store.append(job, &events), Ok(10));
    let seqs = |found: Result<Vec<crate::jobs::JournalEntry>, StoreError>| {
        found.expect("read").iter().map(|entry| entry.seq).collect::<Vec<_>>()
    };
    assert_eq!(seqs(store.events(job, 7, 100, usize::MAX)), [8, 9, 10]);
    assert_eq!(seqs(store.events(job, 2, 3, usize::MAX)), [3, 4, 5]);
    assert_eq!(seqs(store.events(job, 0, 100, 2_500)), [1, 2]);
    assert_eq!(seqs(store.events(job, 4, 100, 1)), [5], "one that is too large is given all the same");
    assert_eq!(seqs(store.events(job, u64::MAX, 100, usize::MAX)), [0_u64; 0]);
    let unknown = JobId::random();
    assert_eq!(store.events(unknown, 0, 1, 1), Err(StoreError::UnknownJob(unknown)));
    assert_eq!(store.append(unknown, &[event("x")]), Err(StoreError::UnknownJob(unknown)));
}

#[test]
fn a_journal_ends_with_its_job() {
    let mut store = memory();
    let job = finished(&mut store, &new_job("/w", "p"), 3);
    let ended = StoreError::Ended { job, state: JobState::Succeeded };
    assert_eq!(store.append(job, &[event("late")]), Err(ended));
}

#[test]
fn an_event_of_a_later_version_keeps_its_number() {
    let mut store = memory();
    let job = started(&mut store, &new_job("/w", "p"));
    store.append(job, &[event("a"), event("b")]).expect("appended");
    let later = "UPDATE events SET event = '{\"kind\":\"dreamt\"}' WHERE seq = 1";
    store.connection().expect("open").connection.execute(later, []).expect("changed");
    let found = store.events(job, 0, 9, usize::MAX).expect("read");
    assert!(matches!(&found[0].event, JournalEvent::Agent { event: AgentEvent::Other { .. } }));
    assert_eq!((found[0].seq, found[1].seq), (1, 2));
}

#[test]
fn the_first_reason_to_cancel_stays_and_an_ended_job_cannot_be_cancelled() {
    let mut store = memory();
    let job = started(&mut store, &new_job("/w", "p"));
    let state = JobState::Running;
    assert_eq!(store.request_cancel(job, CancelReason::CallerLost), Ok(CancelState::Requested { state }));
    let reason = CancelReason::CallerLost;
    let again = store.request_cancel(job, CancelReason::Requested);
    assert_eq!(again, Ok(CancelState::AlreadyRequested { state, reason }));
    assert_eq!(store.glance(job).expect("there").cancel_requested, Some(reason));
    assert_eq!(store.finish(job, JobState::Cancelled, &JobOutcome::default(), at(3)), Ok(Transition::Done));
    let late = store.request_cancel(job, CancelReason::Requested);
    assert_eq!(late, Ok(CancelState::Ended { state: JobState::Cancelled }));
}

#[test]
fn handing_over_and_the_process_are_recorded_while_the_job_lives() {
    let mut store = memory();
    let job = insert(&mut store, &new_job("/w", "p"));
    let process = RunProcess { pid: 12, start_time: 99, token: RunToken::random(), session: 11, numbering: u64::MAX };
    assert_eq!(store.set_process(job, process), Ok(Transition::Refused { current: JobState::Queued }));
    assert_eq!(store.hand_over(job), Ok(Transition::Done));
    assert_eq!(store.start(job, at(2)), Ok(StartOutcome::Started));
    assert_eq!(store.set_process(job, process), Ok(Transition::Done));
    let record = store.job(job).expect("there");
    assert_eq!((record.mode, record.process), (JobMode::Background, Some(process)));
    assert_eq!(store.finish(job, JobState::Failed, &JobOutcome::default(), at(3)), Ok(Transition::Done));
    assert_eq!(store.hand_over(job), Ok(Transition::Refused { current: JobState::Failed }));
}

/// L3: who adopts a job first has it, and nobody adopts one that was not left to others or is over.
#[test]
fn a_job_is_adopted_once_by_whoever_knows_whose_it_was() {
    let mut store = memory();
    let [first, second, third] = [(); 3].map(|()| HostId::random());
    let job = insert(&mut store, &NewJob { host: Some(first), ..new_job("/w", "p") });
    assert_eq!(store.job(job).expect("there").host, Some(first));
    assert_eq!(store.adopt(job, second, third), Ok(Adoption::Elsewhere), "it was never the second one's");
    assert_eq!(store.adopt(job, first, second), Ok(Adoption::Adopted));
    assert_eq!(store.adopt(job, first, third), Ok(Adoption::Elsewhere), "somebody was quicker");
    assert_eq!(store.start(job, at(2)), Ok(StartOutcome::Started));
    assert_eq!(store.glance(job).expect("there").host, Some(second));
    assert_eq!(store.adopt(job, second, third), Ok(Adoption::Adopted), "and it is lost again");
    assert_eq!(store.queue().expect("a queue")[0].host, Some(third));
    assert_eq!(store.finish(job, JobState::Failed, &JobOutcome::default(), at(3)), Ok(Transition::Done));
    assert_eq!(store.adopt(job, third, first), Ok(Adoption::Over { state: JobState::Failed }));
    assert_eq!(store.job(job).expect("there").host, Some(third));
    let nobodys = insert(&mut store, &new_job("/w", "p"));
    assert_eq!(store.adopt(nobodys, first, second), Ok(Adoption::Elsewhere));
    let unknown = JobId::random();
    assert_eq!(store.adopt(unknown, first, second), Err(StoreError::UnknownJob(unknown)));
}

#[test]
fn of_many_hosts_that_adopt_a_job_at_once_one_does() {
    const HOSTS: usize = 8;
    let (_scratch, dir) = scratch();
    let gone = HostId::random();
    let job = insert(&mut open(&dir), &NewJob { host: Some(gone), ..new_job("/w", "p") });
    let together = Barrier::new(HOSTS);
    let adopted: Vec<HostId> = std::thread::scope(|scope| {
        let adopt = || {
            let (mut store, host) = (open(&dir), HostId::random());
            together.wait();
            (store.adopt(job, gone, host).expect("tried") == Adoption::Adopted).then_some(host)
        };
        let adopting: Vec<_> = (0..HOSTS).map(|_| scope.spawn(adopt)).collect();
        adopting.into_iter().filter_map(|one| one.join().expect("no panic")).collect()
    });
    assert_eq!(adopted.len(), 1);
    assert_eq!(open(&dir).job(job).expect("there").host, Some(adopted[0]));
}

#[test]
fn listings_put_unread_outcomes_first_and_then_the_newest() {
    let mut store = memory();
    let read = finished(&mut store, &new_job("/w", "p"), 3);
    let unread = finished(&mut store, &new_job("/w", "p"), 4);
    let elsewhere = finished(&mut store, &new_job("/x", "p"), 5);
    let running = started(&mut store, &new_job("/w", "p"));
    let queued = insert(&mut store, &new_job("/w", "p"));
    assert_eq!(store.unread(Path::new("/w"), 9), Ok(vec![unread, read]));
    store.mark_read(read, at(6)).expect("marked");
    store.mark_read(read, at(7)).expect("marked again");
    store.mark_read(running, at(7)).expect("not over, left alone");
    assert_eq!(store.job(read).expect("there").read_at, Some(at(6)));
    assert_eq!(store.job(running).expect("there").read_at, None);
    let mut ids = |workspace: Option<&str>, state| {
        let filter = JobFilter { workspace: workspace.map(PathBuf::from), state, limit: 9 };
        store.list(&filter).expect("listed").iter().map(|job| job.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(None, None), [elsewhere, unread, queued, running, read]);
    assert_eq!(ids(Some("/w"), None), [unread, queued, running, read]);
    assert_eq!(ids(None, Some(JobState::Succeeded)), [elsewhere, unread, read]);
    assert_eq!(ids(Some("/w"), Some(JobState::Succeeded)), [unread, read]);
    assert_eq!(store.unread(Path::new("/w"), 9), Ok(vec![unread]));
    assert_eq!(store.unread(Path::new("/x"), 9), Ok(vec![elsewhere]));
    let unknown = JobId::random();
    assert_eq!(store.mark_read(unknown, at(1)), Err(StoreError::UnknownJob(unknown)));
}

#[test]
fn jobs_are_found_by_how_their_id_begins_and_the_newest_of_a_workspace_by_nothing_else() {
    let mut store = memory();
    assert_eq!(store.newest(Path::new("/w")), Ok(None));
    let with_id = |id: &str, workspace: &str| {
        let mut job = new_job(workspace, "p");
        job.id = id.parse().expect("an id");
        job
    };
    let one = insert(&mut store, &with_id("3f2504e0-4f89-41d3-9a0c-0305e82c3301", "/w"));
    let other = insert(&mut store, &with_id("3f2504e1-4f89-41d3-9a0c-0305e82c3301", "/w"));
    let third = insert(&mut store, &with_id("40000000-4f89-41d3-9a0c-0305e82c3301", "/x"));
    for (start, limit, want) in [
        ("3f25", 9, &[other, one][..]),
        ("3f25", 1, &[other]),
        ("3f2504e0", 9, &[one]),
        ("3f2504e0-4f89", 9, &[one]),
        (&one.to_string(), 9, &[one]),
        ("4000", 9, &[third]),
        ("3f26", 9, &[]),
        ("%", 9, &[]),
        ("", 9, &[third, other, one]),
    ] {
        assert_eq!(store.beginning_with(start, limit).as_deref(), Ok(want), "{start:?}");
    }
    assert_eq!(store.newest(Path::new("/w")), Ok(Some(other)));
    assert_eq!(store.newest(Path::new("/x")), Ok(Some(third)));
    // Unread ones come first in a listing, and are no newer for it.
    let unread = finished(&mut store, &new_job("/w", "p"), 4);
    assert_eq!(store.newest(Path::new("/w")), Ok(Some(unread)));
    let newest = insert(&mut store, &new_job("/w", "p"));
    assert_eq!(store.newest(Path::new("/w")), Ok(Some(newest)));
    for sql in [verbs::BEGINNING_WITH, verbs::NEWEST] {
        let plan = query_plan(&mut store, sql);
        assert!(!plan.contains("SCAN jobs") && plan.contains("SEARCH"), "{plan}");
    }
}

#[test]
fn a_workspace_need_not_be_utf8() {
    use std::os::unix::ffi::OsStringExt;
    let mut store = memory();
    let mut job = new_job("/w", "p");
    job.workspace = OsString::from_vec(b"/w\xff".to_vec()).into();
    let id = insert(&mut store, &job);
    let filter = JobFilter { workspace: Some(job.workspace.clone()), state: None, limit: 1 };
    assert_eq!(store.list(&filter).expect("listed")[0].id, id);
    assert_eq!(store.queue().expect("read")[0].workspace, job.workspace);
    job.id = JobId::random();
    job.request.cwd = job.workspace.clone();
    assert_eq!(store.accept(&job, LIMITS), Err(StoreError::Unstorable { what: "the request" }));
}

#[test]
fn the_queue_tells_turns_and_whom_a_workspace_was_last_served_by() {
    let mut store = memory();
    let session = AgentSessionId::random();
    let done = finished(&mut store, &new_job("/a", "p"), 3);
    let waiting = insert(&mut store, &resuming("/a", session));
    let other = insert(&mut store, &new_job("/b", "p"));
    let queue = store.queue().expect("read");
    assert_eq!(queue.iter().map(|row| row.job).collect::<Vec<_>>(), [waiting, other]);
    assert_eq!(queue.iter().map(|row| (row.turn, row.workspace_served)).collect::<Vec<_>>(), [(3, 2), (4, 0)]);
    assert_eq!(queue[0].session.as_ref().map(|key| key.session.clone()), Some(session.to_string()));
    assert!(queue.iter().all(|row| row.job != done));
}

#[test]
fn counts_and_costs_add_up_and_unknown_is_not_zero() {
    const DAY: i64 = 86_400_000;
    let mut store = memory();
    for (cost, when) in [(Some(0.5), 10), (Some(0.25), 20), (None, 30), (None, DAY + 1)] {
        let id = started(&mut store, &new_job("/w", "p"));
        let outcome = JobOutcome { cost_usd: cost, ..JobOutcome::default() };
        assert_eq!(store.finish(id, JobState::Failed, &outcome, at(when)), Ok(Transition::Done));
    }
    insert(&mut store, &new_job("/w", "p"));
    let counts = store.counts().expect("counted");
    assert_eq!(JobState::ALL.map(|state| counts.of(state)), [1, 0, 0, 4, 0, 0]);
    let days = store.cost_by_day(at(0)).expect("summed");
    assert_eq!(days.len(), 2);
    assert_eq!((days[0].day.as_str(), days[0].jobs, days[0].cost_usd, days[0].unknown), ("2026-11-01", 3, 0.75, 1));
    assert_eq!((days[1].day.as_str(), days[1].jobs, days[1].unknown), ("2026-11-02", 1, 1));
    assert_eq!(store.cost_by_day(at(DAY)).expect("summed").len(), 1);
}

#[test]
fn what_consults_that_started_each_other_cost_is_summed_by_chain() {
    let mut store = memory();
    let nested = |chain, depth| NewJob { chain, depth, ..new_job("/w", "p") };
    let (cheap, dear, alone) = (ChainId::random(), ChainId::random(), ChainId::random());
    let spent =
        [(cheap, 0, Some(0.25)), (cheap, 1, None), (dear, 0, Some(1.0)), (dear, 1, Some(0.5)), (alone, 0, Some(9.0))];
    for (chain, depth, cost_usd) in spent {
        let id = started(&mut store, &nested(chain, depth));
        let outcome = JobOutcome { cost_usd, ..JobOutcome::default() };
        assert_eq!(store.finish(id, JobState::Succeeded, &outcome, at(10)), Ok(Transition::Done));
    }
    let chains = store.cost_by_chain(at(0)).expect("summed");
    let seen: Vec<_> = chains.iter().map(|sum| (sum.chain.clone(), sum.jobs, sum.cost_usd, sum.unknown)).collect();
    assert_eq!(seen, [(dear.to_string(), 2, 1.5, 0), (cheap.to_string(), 2, 0.25, 1)]);
    assert_eq!(store.cost_by_chain(at(11)).expect("summed"), []);
}

#[test]
fn pruning_forgets_by_age_then_by_size_unread_last_and_nothing_unfinished() {
    let mut store = memory();
    let policy = RetentionPolicy {
        max_age: Duration::from_millis(100),
        max_unread_age: Duration::from_millis(300),
        max_bytes: u64::MAX,
        ages: Ages::Clock,
    };
    let old_read = finished(&mut store, &keyed("/w", "p", "k"), 100);
    store.mark_read(old_read, at(150)).expect("marked");
    let old_unread = finished(&mut store, &new_job("/w", "p"), 100);
    let queued = insert(&mut store, &new_job("/w", "p"));
    let running = started(&mut store, &new_job("/w", "p"));
    let size = |store: &mut SqliteStore| store.finished_bytes().expect("summed");

    assert!(store.prune(policy, at(200)).expect("pruned").jobs.is_empty(), "not older than the limit");
    assert_eq!(store.prune(policy, at(201)).expect("pruned").jobs, [old_read]);
    assert_eq!(store.job(old_read), Err(StoreError::UnknownJob(old_read)));
    assert!(matches!(store.accept(&keyed("/w", "other", "k"), LIMITS), Ok(Accept::Inserted(_))), "the key is free");
    assert_eq!(store.prune(policy, at(401)).expect("pruned").jobs, [old_unread]);

    let mut jobs = Vec::new();
    for n in 0..4 {
        let job = started(&mut store, &new_job("/w", "p"));
        store.append(job, &[event(&"x".repeat(10_000))]).expect("appended");
        let answer = JobOutcome { response: Some("y".repeat(10_000)), ..JobOutcome::default() };
        assert_eq!(store.finish(job, JobState::Succeeded, &answer, at(500 + n)), Ok(Transition::Done));
        jobs.push(job);
    }
    store.mark_read(jobs[2], at(600)).expect("marked");
    assert!(size(&mut store) > 80_000, "requests, journals and outcomes are counted");
    let fit = |bytes| RetentionPolicy { max_bytes: bytes, ..policy };
    let pruned = store.prune(fit(50_000), at(500)).expect("pruned");
    assert_eq!(pruned.jobs, [jobs[2], jobs[0]], "the read one first, then the oldest");
    assert!(pruned.bytes > 40_000 && size(&mut store) <= 50_000);
    assert_eq!(store.prune(fit(0), at(500)).expect("pruned").jobs, [jobs[1], jobs[3]]);
    for kept in [queued, running] {
        store.job(kept).expect("unfinished jobs stay");
    }
    let open = store.connection().expect("open");
    let orphans: i64 = open
        .connection
        .query_row("SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM outcomes)", [], |row| row.get(0))
        .expect("counted");
    assert_eq!(orphans, 0);
}

#[test]
fn pruning_many_gives_their_space_back() {
    let (_scratch, dir) = scratch();
    let mut store = open(&dir);
    store.connection().expect("open").set_durability(Durability::Normal).expect("set");
    for _ in 0..120 {
        let job = started(&mut store, &new_job("/w", "p"));
        store.append(job, &[event(&"x".repeat(10_000))]).expect("appended");
        assert_eq!(store.finish(job, JobState::Failed, &JobOutcome::default(), at(3)), Ok(Transition::Done));
    }
    let pages = |store: &mut SqliteStore| -> i64 {
        let open = store.connection().expect("open");
        open.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).expect("counted")
    };
    let before = pages(&mut store);
    let all = RetentionPolicy { max_bytes: 0, ..RetentionPolicy::default() };
    assert_eq!(store.prune(all, at(4)).expect("pruned").jobs.len(), 120, "more than one batch");
    assert!(pages(&mut store) < before / 4, "{before} pages before, {} after", pages(&mut store));
}

#[test]
fn the_stamp_changes_exactly_when_something_was_written() {
    let (_scratch, dir) = scratch();
    let (mut ours, mut theirs) = (open(&dir), open(&dir));
    let before = ours.data_version().expect("read");
    assert_eq!(ours.data_version(), Ok(before));
    ours.counts().expect("read");
    assert_eq!(ours.data_version(), Ok(before), "reading changes nothing");
    let job = started(&mut theirs, &new_job("/w", "p"));
    let after_theirs = ours.data_version().expect("read");
    assert_ne!(after_theirs, before);
    ours.append(job, &[event("x")]).expect("appended");
    assert_ne!(ours.data_version().expect("read"), after_theirs);
}

#[test]
fn what_was_accepted_is_there_after_opening_again() {
    let (_scratch, dir) = scratch();
    let job = new_job("/w", "p");
    insert(&mut open(&dir), &job);
    let before = fs::read(dir.database()).expect("read");
    let mut again = open(&dir);
    assert!(fs::read(dir.database()).expect("read") == before, "opening alone writes nothing");
    assert_eq!(again.job(job.id).expect("there").request, job.request);
    assert_eq!(again.moved_aside(), None);
}

#[test]
fn acceptances_starts_and_ends_are_synced_and_the_log_is_write_ahead() {
    let (_scratch, dir) = scratch();
    let mut store = open(&dir);
    let pragma = |store: &mut SqliteStore, name: &str| -> String {
        let open = store.connection().expect("open");
        open.connection
            .query_row(&format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}"), [], |row| row.get(0))
            .expect("read")
    };
    let job = insert(&mut store, &new_job("/w", "p"));
    assert_eq!(pragma(&mut store, "synchronous"), "2", "after an acceptance");
    assert_eq!(store.start(job, at(2)), Ok(StartOutcome::Started));
    assert_eq!(pragma(&mut store, "synchronous"), "2", "after a start");
    store.append(job, &[event("x")]).expect("appended");
    assert_eq!(pragma(&mut store, "synchronous"), "1", "after an append");
    assert_eq!(store.finish(job, JobState::Failed, &JobOutcome::default(), at(3)), Ok(Transition::Done));
    assert_eq!(pragma(&mut store, "synchronous"), "2", "after an end");
    for (name, value) in [("journal_mode", "wal"), ("cache_size", "-256"), ("foreign_keys", "1"), ("auto_vacuum", "2")]
    {
        assert_eq!(pragma(&mut store, name), value, "{name}");
    }
}

#[test]
fn a_database_of_a_later_version_is_refused_and_left_alone() {
    let (_scratch, dir) = scratch();
    drop(open(&dir));
    let path = dir.database();
    Connection::open(&path).expect("opens").pragma_update(None, "user_version", 99).expect("set");
    let before = fs::read(&path).expect("read");
    let refused = SqliteStore::in_dir(&dir).expect_err("refused");
    assert_eq!(refused, StoreError::NewerSchema { found: 99, known: schema::known() });
    assert!(fs::read(&path).expect("read") == before, "not a byte was changed");
}

#[test]
fn migrating_twice_changes_nothing() {
    let (_scratch, dir) = scratch();
    let mut store = open(&dir);
    let open = store.connection().expect("open");
    schema::migrate(&mut open.connection).expect("again");
    let version: i64 = open.connection.query_row("PRAGMA user_version", [], |row| row.get(0)).expect("read");
    assert_eq!(version, schema::known());
}

#[test]
fn what_a_host_says_replaces_what_it_said_and_is_forgotten_by_name() {
    let (_scratch, dir) = scratch();
    let mut store = open(&dir);
    let row = |host, pid| HostRow {
        host,
        kind: HostKind::Daemon,
        pid,
        build: "1.0.0".into(),
        started_at: at(1),
        changed_at: at(2),
        seen: HostSaid::default(),
    };
    let (first, second) = (HostId::random(), HostId::random());
    for shown in [row(first, 1), row(second, 2), row(first, 3)] {
        store.show_host(&shown).expect("shown");
    }
    let connection = &store.connection().expect("open").connection;
    connection.execute("INSERT INTO hosts VALUES ('x', 'of a later version')", []).expect("inserted");
    let mut found = store.hosts().expect("read");
    found.sort_by_key(|row| row.pid);
    assert_eq!(found, [row(second, 2), row(first, 3)]);
    store.forget_hosts(&[first, HostId::random()]).expect("forgotten");
    assert_eq!(store.hosts().expect("read"), [row(second, 2)]);
}

#[test]
fn a_claim_of_a_fleets_job_is_kept_by_its_latest_fence_until_it_is_forgotten() {
    use crate::base::ids::FleetJobId;
    use crate::jobs::fleet_runs::FleetRun;
    let (_scratch, dir) = scratch();
    let mut store = open(&dir);
    let (job, host) = (FleetJobId::random(), HostId::random());
    let run = |fence| FleetRun { job, host, fence };
    store.note_fleet_run(run(1)).expect("noted");
    store.note_fleet_run(run(u64::try_from(i64::MAX).expect("a fence"))).expect("noted");
    drop(store);
    let mut store = open(&dir);
    let connection = &store.connection().expect("open").connection;
    connection.execute("INSERT INTO fleet_runs VALUES ('x', 'nobody', 1)", []).expect("inserted");
    assert_eq!(store.fleet_runs().expect("read"), [run(u64::try_from(i64::MAX).expect("a fence"))]);
    store.forget_fleet_run(job).expect("forgotten");
    store.forget_fleet_run(job).expect("once more is nothing");
    assert_eq!(store.fleet_runs().expect("read"), []);
}

fn moved_files(dir: &StateDir) -> Vec<String> {
    let mut found: Vec<String> = fs::read_dir(dir.root())
        .expect("listed")
        .map(|entry| entry.expect("read").file_name().into_string().expect("text"))
        .filter(|name| name.contains(".corrupt-"))
        .collect();
    found.sort();
    found
}

#[test]
fn a_file_that_is_no_database_is_moved_aside_once_and_kept() {
    let (_scratch, dir) = scratch();
    dir.create().expect("made");
    let garbage = b"this is not a database at all, however long you look at it".repeat(100);
    fs::write(dir.database(), &garbage).expect("written");
    let stores: Vec<SqliteStore> = std::thread::scope(|scope| {
        let openers: Vec<_> = (0..4).map(|_| scope.spawn(|| open(&dir))).collect();
        openers.into_iter().map(|opener| opener.join().expect("no panic")).collect()
    });
    let moved: Vec<PathBuf> = stores.iter().filter_map(Store::moved_aside).collect();
    assert_eq!(moved.len(), 1, "one of them moved it, the others found the new one");
    assert!(fs::read(&moved[0]).expect("kept") == garbage, "not a byte was changed");
    assert_eq!(moved_files(&dir).len(), 1);
    let job = new_job("/w", "p");
    let mut stores = stores.into_iter();
    insert(&mut stores.next().expect("four"), &job);
    for mut store in stores {
        store.job(job.id).expect("all share the new one");
    }
}

#[test]
fn damage_found_later_is_checked_and_moved_aside_at_the_next_use() {
    let (_scratch, dir) = scratch();
    let mut store = open(&dir);
    for _ in 0..50 {
        insert(&mut store, &new_job("/w", &"p".repeat(2_000)));
    }
    drop(store);
    // Everything but the header and the schema.
    let mut bytes = fs::read(dir.database()).expect("read");
    bytes[4_096..].fill(0xa5);
    fs::write(dir.database(), &bytes).expect("written");
    let mut store = open(&dir);
    let damaged = store.list(&JobFilter { workspace: None, state: None, limit: 9 }).expect_err("damaged");
    assert!(matches!(damaged, StoreError::Corrupt { .. }), "{damaged:?}");
    insert(&mut store, &new_job("/w", "p"));
    let moved = store.moved_aside().expect("moved");
    assert!(fs::read(moved).expect("kept") == bytes, "not a byte was changed");
}

#[test]
fn a_report_of_damage_without_damage_moves_nothing() {
    let (_scratch, dir) = scratch();
    let mut store = open(&dir);
    let job = new_job("/w", "p");
    insert(&mut store, &job);
    store.suspect = true;
    store.job(job.id).expect("still there");
    assert_eq!((moved_files(&dir).len(), store.suspect), (0, false));
}

#[test]
fn a_database_that_lost_its_name_is_never_written_to() {
    let (_scratch, dir) = scratch();
    let mut store = open(&dir);
    insert(&mut store, &new_job("/w", "p"));
    fs::remove_dir_all(dir.root()).expect("removed");
    let job = new_job("/w", "p");
    insert(&mut store, &job);
    open(&dir).job(job.id).expect("it is where others look");
    assert_eq!(store.counts().expect("counted").queued, 1);
}

#[test]
fn a_held_write_lock_is_waited_for_and_a_reader_is_not_held_up() {
    let (_scratch, dir) = scratch();
    let mut store = open(&dir);
    let job = insert(&mut store, &new_job("/w", "p"));
    let mut other = open(&dir);
    let held = other.connection().expect("open");
    let transaction = held.connection.transaction_with_behavior(TransactionBehavior::Immediate).expect("begun");
    store.glance(job).expect("readers go on");
    store.connection().expect("open").connection.busy_timeout(Duration::from_millis(20)).expect("set");
    assert_eq!(store.start(job, at(2)), Err(StoreError::Busy));
    transaction.rollback().expect("rolled back");
    assert_eq!(store.start(job, at(2)), Ok(StartOutcome::Started), "nothing was left half done");
}

#[test]
fn a_full_disk_is_told_as_such_and_forgets_nothing() {
    let (_scratch, dir) = scratch();
    let mut store = open(&dir);
    let job = insert(&mut store, &new_job("/w", "p"));
    let open = store.connection().expect("open");
    let pages: i64 = open.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).expect("read");
    open.connection.pragma_update(None, "max_page_count", pages + 1).expect("set");
    assert_eq!(store.accept(&new_job("/w", &"p".repeat(100_000)), LIMITS), Err(StoreError::Full));
    assert_eq!(store.counts().expect("counted").queued, 1);
    store.job(job).expect("there");
}

#[test]
fn a_database_that_cannot_be_written_says_so() {
    let (_scratch, dir) = scratch();
    let mut store = open(&dir);
    store.connection().expect("open").connection.pragma_update(None, "query_only", true).expect("set");
    assert_eq!(store.accept(&new_job("/w", "p"), LIMITS), Err(StoreError::ReadOnly));
}

const CHILD: &str = "PHONE_OPUS_TEST_UMASK_CHILD";

/// The process of the test below: a umask belongs to a whole process.
#[test]
fn child_that_makes_a_store_under_a_umask() {
    let Some(argument) = std::env::var_os(CHILD) else { return };
    let text = argument.to_str().expect("text");
    let (umask, root) = text.split_once('|').expect("two parts");
    let bits = rustix::fs::RawMode::from_str_radix(umask, 8).expect("octal");
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(bits));
    let dir = StateDir::at(root);
    let mut store = open(&dir);
    insert(&mut store, &new_job("/w", "p"));
    for (path, expected) in [
        (dir.root().to_owned(), 0o700),
        (dir.jobs(), 0o700),
        (dir.slots(), 0o700),
        (dir.database(), 0o600),
        (beside(&dir.database(), "-wal"), 0o600),
        (beside(&dir.database(), "-shm"), 0o600),
    ] {
        let mode = fs::metadata(&path).expect("it exists").mode() & 0o7777;
        assert_eq!(mode, expected, "{path:?} under umask {umask}");
    }
}

#[test]
fn files_and_directories_are_private_whatever_the_umask() {
    for umask in ["000", "022", "077"] {
        let (_scratch, dir) = scratch();
        let output = Command::new(std::env::current_exe().expect("our own path"))
            .args(["--exact", "jobs::store::sqlite::tests::child_that_makes_a_store_under_a_umask", "--test-threads=1"])
            .env(CHILD, format!("{umask}|{}", dir.root().display()))
            .output()
            .expect("the test binary starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(dir.database().exists(), "the child did its work");
    }
}

#[test]
fn a_database_that_others_could_read_is_closed_to_them() {
    let (_scratch, dir) = scratch();
    drop(open(&dir));
    fs::set_permissions(dir.database(), Permissions::from_mode(0o644)).expect("set");
    drop(open(&dir));
    assert_eq!(fs::metadata(dir.database()).expect("there").mode() & 0o777, 0o600);
}

/// Ten thousand finished jobs in fifty workspaces, some unread, and a few live ones.
fn ten_thousand(store: &mut SqliteStore) {
    let request = serde_json::to_string(&new_job("/w", &"p".repeat(500)).request).expect("serialises");
    store
        .write(Durability::Normal, |transaction| {
            for n in 0..10_000_i64 {
                transaction
                    .prepare_cached(
                        "INSERT INTO jobs (id, workspace, mode, state, agent, prompt_head, chain, depth, accepted_at,
                        finished_at, unread, turn, start_turn, bytes)
                     VALUES (?1, ?2, 'sync', ?3, 'claude', 'p', ?4, 0, ?5, ?6, ?7, ?5, ?5, 2000)",
                    )?
                    .execute(params![
                        JobId::random().to_string(),
                        format!("/w{}", n % 50),
                        if n > 9_990 { "queued" } else { ["succeeded", "failed", "cancelled"][(n % 3) as usize] },
                        ChainId::random().to_string(),
                        n,
                        (n <= 9_990).then_some(n),
                        n % 10 == 0 && n <= 9_990,
                    ])?;
                transaction
                    .prepare_cached("INSERT INTO requests (job, request) VALUES (?1, ?2)")?
                    .execute(params![transaction.last_insert_rowid(), request])?;
            }
            Ok(())
        })
        .expect("filled");
}

fn query_plan(store: &mut SqliteStore, sql: &str) -> String {
    let open = store.connection().expect("open");
    let mut statement = open.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("explained");
    let values = vec![rusqlite::types::Value::Integer(1); statement.parameter_count()];
    let steps = statement.query_map(rusqlite::params_from_iter(values), |row| row.get::<_, String>(3)).expect("run");
    steps.map(|step| step.expect("read")).collect::<Vec<_>>().join("; ")
}

#[test]
fn no_reading_of_ten_thousand_jobs_looks_at_all_of_them_or_sorts_them() {
    let mut store = memory();
    ten_thousand(&mut store);
    for (by_workspace, by_state, index) in [
        (false, false, "jobs_by_unread"),
        (true, false, "jobs_by_workspace"),
        (false, true, "jobs_by_state"),
        (true, true, "jobs_by_workspace_state"),
    ] {
        let plan = query_plan(&mut store, &verbs::listing(by_workspace, by_state));
        assert!(plan.contains(&format!("USING INDEX {index}")) && !plan.contains("TEMP B-TREE"), "{plan}");
    }
    // Live jobs are few, so the queue may sort them; all else may only search.
    for sql in [verbs::QUEUE, verbs::UNREAD_ANSWERS, verbs::UNREAD, verbs::QUEUED, verbs::SESSION_BUSY, verbs::COSTS] {
        let plan = query_plan(&mut store, sql);
        assert!(!plan.contains("SCAN") && plan.contains("INDEX"), "{sql}: {plan}");
    }
    let counting = query_plan(&mut store, verbs::COUNTS);
    assert!(counting.contains("COVERING INDEX jobs_by_state") && !counting.contains("TEMP B-TREE"), "{counting}");

    let now = Instant::now();
    let listed = store.list(&JobFilter { workspace: None, state: None, limit: 50 }).expect("listed");
    println!("50 of 10,000 listed in {:?}", now.elapsed());
    assert_eq!(listed.len(), 50);
    assert!(listed.iter().all(|job| job.unread));
    let now = Instant::now();
    assert_eq!(store.queue().expect("read").len(), 9);
    println!("the queue of 10,000 read in {:?}", now.elapsed());
    let now = Instant::now();
    assert_eq!(store.counts().expect("counted").queued, 9);
    println!("10,000 counted in {:?}", now.elapsed());
}

#[test]
fn rows_of_a_time_are_what_lives_and_what_ended_in_it_and_of_a_broken_outcome_there_is_no_code() {
    let mut store = memory();
    let before = finished(&mut store, &new_job("/w", "before"), 100);
    let within = finished(&mut store, &new_job("/w", "within"), 200);
    let failed = started(&mut store, &new_job("/w", "failed"));
    let outcome = JobOutcome { fault: Some(Fault::new(FaultCode::AgentStalled, "x")), ..JobOutcome::default() };
    assert_eq!(store.finish(failed, JobState::Failed, &outcome, at(300)), Ok(Transition::Done));
    let runs = started(&mut store, &new_job("/w", "runs"));
    let rows = store.job_rows(at(200), 0).expect("rows");
    let found: Vec<(JobId, Option<&str>)> = rows.iter().map(|row| (row.id, row.code.as_deref())).collect();
    let code = FaultCode::AgentStalled.as_str();
    assert_eq!(found, [(within, None), (failed, Some(code)), (runs, None)]);
    assert_eq!((rows[1].ran_ms(), rows[1].waited_ms(), rows[2].ran_ms()), (Some(298), Some(1), None));
    let rest = store.job_rows(at(200), rows[1].sequence).expect("rows");
    assert_eq!(rest.iter().map(|row| row.id).collect::<Vec<_>>(), [runs], "behind the one that was named");
    assert_eq!(store.job_rows(at(0), 0).expect("rows")[0].id, before);
    let open = store.connection().expect("open");
    open.connection.execute("UPDATE outcomes SET outcome = 'no json'", []).expect("broken");
    assert_eq!(store.job_rows(at(200), 0).expect("rows")[1].code, None);
}
