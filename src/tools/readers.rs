//! The tools that read jobs, and the one that cancels. They run in the host, so they answer even
//! when no worker can be started.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::arguments::ArgumentReader;
use super::consult::{Caller, Consults, Until, WAIT_MOST, Waited, Watch, finished, look_at, shape, unstored};
use super::placed;
use super::reply::{self, Context, Detail, Shape};
use super::{Annotations, ToolCall, ToolDefinition, ToolReply};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{JobId, UnixMillis};
use crate::jobs::store::{CancelState, JobFilter, MOST_LISTED};
use crate::jobs::{JobMode, JobRecord, JobState, JobSummary};

/// Journal entries one reply shows.
const EVENTS_SHOWN: usize = 50;

/// The schema of an argument type: a plain object without anything a client would pay for and not use.
pub(super) fn schema<T: JsonSchema>() -> Value {
    let schema: Schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>();
    let mut value = schema.to_value();
    if let Value::Object(object) = &mut value {
        object.remove("$schema");
        object.remove("title");
        object.remove("description");
        object.insert("additionalProperties".to_owned(), Value::Bool(false));
        if let Some(Value::Object(properties)) = object.get_mut("properties") {
            properties.values_mut().for_each(plain);
        }
    }
    value
}

/// An optional argument may be left out; that it may also be null need not be said.
fn plain(property: &mut Value) {
    let Value::Object(property) = property else { return };
    property.remove("format");
    property.remove("minimum");
    if let Some(Value::Array(types)) = property.get("type")
        && let Some(first) = types.iter().find(|kind| *kind != "null").cloned()
    {
        property.insert("type".to_owned(), first);
    }
}

/// Lets a client that would move a long answer into a file keep it in the conversation.
pub(super) fn size_hint(desk: &Consults) -> Map<String, Value> {
    // The answer, escaped, and what is said about it; the client takes no more than 500 000.
    let budget = desk.clients.profile(Some("claude-code")).response_chars;
    let most = (budget * 5 / 4 + 20_000).clamp(200_000, 500_000);
    Map::from_iter([("anthropic/maxResultSizeChars".to_owned(), json!(most))])
}

pub(crate) const READS: Annotations =
    Annotations { read_only: true, destructive: false, idempotent: true, open_world: false };

pub(crate) fn definition<T: JsonSchema>(
    name: &str,
    title: &str,
    description: &str,
    annotations: Annotations,
) -> ToolDefinition {
    ToolDefinition {
        name: name.to_owned(),
        title: title.to_owned(),
        description: description.to_owned(),
        input_schema: schema::<T>(),
        annotations,
        meta: None,
    }
}

/// Longest a tool that waits for nothing may take: as long as an accept. It takes milliseconds unless the disk hangs.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(30);

macro_rules! host_tool {
    ($(#[$doc:meta])* $tool:ident($state:ident: $type:ty), $name:literal, $within:expr, $waits:literal, |$me:ident| $definition:expr, $run:ident) => {
        $(#[$doc])*
        pub struct $tool {
            $state: $type,
        }

        impl $tool {
            /// The tool.
            #[must_use]
            pub fn new($state: $type) -> Self {
                Self { $state }
            }
        }

        impl $crate::tools::Tool for $tool {
            fn name(&self) -> &str {
                $name
            }

            fn definition(&self) -> $crate::tools::ToolDefinition {
                let $me = self;
                $definition
            }

            fn contract(&self) -> $crate::tools::ReplayContract {
                $crate::tools::ReplayContract::Convergent
            }

            fn target(&self) -> $crate::tools::Target {
                $crate::tools::Target::Host
            }

            fn deadline(&self) -> Option<std::time::Duration> {
                Some($within)
            }

            fn waits(&self) -> bool {
                $waits
            }

            fn call(&self, call: $crate::tools::ToolCall) -> $crate::tools::ToolFuture {
                let state = self.$state.clone();
                Box::pin(async move { $run(&state, call).await })
            }
        }
    };
}
pub(crate) use host_tool;

/// The arguments of `consult_job`.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "the schema is generated from it")]
struct JobArguments {
    /// The job.
    job_id: String,
    /// Seconds to block until it is over (or, with after_seq, has news).
    wait_s: Option<u32>,
    /// Also return events after this number.
    after_seq: Option<u32>,
    /// Page of a long answer, from 1.
    page: Option<u32>,
    /// How the text looks; porcelain when left out.
    #[schemars(extend("enum" = ["porcelain", "json"]))]
    render: Option<String>,
    /// How much is told; concise when left out.
    #[schemars(extend("enum" = ["concise", "full"]))]
    detail: Option<String>,
}

host_tool! {
    /// `consult_job`: reads one job, waiting for it if asked to.
    JobTool(desk: Consults), "consult_job", Duration::from_secs(WAIT_MOST) + AT_ONCE, true,
    |me| ToolDefinition {
        meta: Some(size_hint(&me.desk)),
        ..definition::<JobArguments>(
            me.name(),
            "Read a consult",
            "Read one consult job: blocks up to wait_s until it is over, then gives its answer. One call is enough; do not poll.",
            READS,
        )
    },
    read_job
}

/// When the journal is looked at again by somebody who was told live of what is not in it yet.
///
/// The live news come by the runner's pipe, the journal by its store, in batches: which is the later one, and by how much, is
/// up to the disk. Nobody is told when the journal has caught up, so who waits for an entry looks again, and the less often
/// the longer it takes. Until something was heard of there is nothing to look for.
#[derive(Debug, Default)]
struct CatchingUp(Option<Duration>);

impl CatchingUp {
    const FIRST: Duration = Duration::from_millis(50);
    const MOST: Duration = Duration::from_secs(1);

    /// Something was heard of that the journal does not have yet, or it was looked at in vain.
    fn note(&mut self) {
        self.0 = Some(self.0.map_or(Self::FIRST, |pause| (pause * 2).min(Self::MOST)));
    }

    /// How long to wait for something else.
    fn at_most(&self, left: Duration) -> Duration {
        self.0.map_or(left, |pause| pause.min(left))
    }
}

async fn read_job(desk: &Consults, call: ToolCall) -> Result<ToolReply, Fault> {
    let caller = Caller::Client(call.invocation.session);
    let desk = &*desk.of(caller)?;
    let mut args = ArgumentReader::parse(&call.arguments)?;
    let job = args.uuid::<JobId>("job_id");
    let job = args.require("job_id", job, "the job_id of a consult");
    let wait = args.integer("wait_s", 0..=WAIT_MOST).map_or(Duration::ZERO, Duration::from_secs);
    let after = args.integer("after_seq", 0..=u64::from(u32::MAX));
    let page = args.integer("page", 1..=100_000).and_then(|page| usize::try_from(page).ok());
    let shape = shape(&mut args, desk.clients.profile(call.client.name().as_deref()));
    args.finish()?;
    let Some(job) = job else { return Err(Fault::new(FaultCode::Internal, "a job id went missing.")) };

    let mut record = match desk.jobs.record(job).await {
        Err(fault) if fault.code == FaultCode::UnknownJob => {
            // Another machine may have it.
            let found = placed::read(desk, &call, job, caller, wait, shape).await?;
            return found.ok_or(fault);
        }
        record => record?,
    };
    desk.check_job(&record, caller).await?;
    let began = Instant::now().checked_sub(call.waited).unwrap_or_else(Instant::now);
    let mut follow = desk.jobs.follow(job).await?;
    if !record.state.is_terminal() && !wait.is_zero() {
        let until = match after {
            // News the caller has not seen are an answer at once.
            Some(after) if record.last_event > after => None,
            Some(_) => Some(Until::Anything),
            None => Some(Until::Finished),
        };
        if let Some(until) = until {
            let mut watch = Watch::new(&call, desk, began);
            let seen = record.last_event;
            let mut catching_up = CatchingUp::default();
            loop {
                let left = wait.saturating_sub(began.elapsed());
                let waited = watch.until(&mut follow, catching_up.at_most(left), until).await?;
                if let (Waited::Unstored(record), None, None) = (&waited, after, page) {
                    return Ok(unstored(desk, record, shape).await);
                }
                record = desk.jobs.record(job).await?;
                let news = until == Until::Anything && record.last_event > seen;
                if matches!(waited, Waited::Over(_)) || news || began.elapsed() >= wait {
                    break;
                }
                catching_up.note();
                // News may come thick and fast, and most of them are in the journal by then.
                tokio::time::sleep(CatchingUp::FIRST.min(wait.saturating_sub(began.elapsed()))).await;
            }
        }
    }
    let events = match after {
        Some(after) => desk.jobs.events(job, after, EVENTS_SHOWN).await?,
        None => Vec::new(),
    };
    if !record.state.is_terminal() && events.is_empty() && !wait.is_zero() {
        return Ok(unchanged(&record.state, job, &follow.describe(), began.elapsed(), shape));
    }
    if record.state.is_terminal() && after.is_none() && page.is_none() {
        return Ok(finished(desk, &record, shape).await);
    }
    let pages = reply::pages(&record, shape.budget);
    if let Some(page) = page.filter(|page| *page > pages) {
        let detail = format!("`page` is {page}; accepted: 1 to {pages}.");
        return Err(Fault::new(FaultCode::InvalidInput, detail).job(job));
    }
    let context = Context { page, events, ..desk.context(&record, Some(&follow)).await };
    Ok(reply::job(&record, &context, shape))
}

/// A job about which there is nothing new.
#[derive(Serialize)]
struct Unchanged<'a> {
    status: &'a JobState,
    phase: &'a str,
}

/// A lapsed wait costs next to nothing to read.
fn unchanged(state: &JobState, job: JobId, phase: &str, waited: Duration, shape: Shape) -> ToolReply {
    let told = Unchanged { status: state, phase };
    let text = format!("Still {} after {} s: {phase}.", state.as_str(), waited.as_secs());
    ToolReply { job: Some(job), ..reply::object(&told, text, shape) }
}

/// The arguments of `consult_jobs`.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "the schema is generated from it")]
struct JobsArguments {
    /// 1 to 50, default 10.
    limit: Option<u32>,
    /// Only these.
    #[schemars(extend("enum" = ["queued", "running", "succeeded", "failed", "cancelled", "interrupted"]))]
    state: Option<String>,
    /// This workspace when left out; `all` this server may look into.
    #[schemars(extend("enum" = ["workspace", "all"]))]
    scope: Option<String>,
    /// The workspace's directory. Default: where this server runs.
    cwd: Option<String>,
    /// How the text looks; porcelain when left out.
    #[schemars(extend("enum" = ["porcelain", "json"]))]
    render: Option<String>,
    /// How much is told; concise when left out.
    #[schemars(extend("enum" = ["concise", "full"]))]
    detail: Option<String>,
}

host_tool! {
    /// `consult_jobs`: lists jobs.
    JobsTool(desk: Consults), "consult_jobs", AT_ONCE, false,
    |me| definition::<JobsArguments>(
        me.name(),
        "List consults",
        "List consult jobs of this workspace, unread answers first.",
        READS,
    ),
    list_jobs
}

async fn list_jobs(desk: &Consults, call: ToolCall) -> Result<ToolReply, Fault> {
    let caller = Caller::Client(call.invocation.session);
    let desk = &*desk.of(caller)?;
    let mut args = ArgumentReader::parse(&call.arguments)?;
    let limit = args.integer("limit", 1..=50).unwrap_or(10);
    let states: Vec<(&str, JobState)> = JobState::ALL.iter().map(|state| (state.as_str(), *state)).collect();
    let state = args.choice("state", &states);
    let all = args.choice("scope", &[("workspace", false), ("all", true)]).unwrap_or(false);
    let cwd = args.string("cwd").map(PathBuf::from);
    let workspace = match (cwd, &desk.default_cwd) {
        (Some(dir), _) => {
            let looked = desk.place(dir, caller).await;
            looked.map_err(|(wrong, accepted)| args.problem("cwd", wrong, accepted)).ok()
        }
        (None, Some(dir)) => Some(look_at(dir.clone()).await.unwrap_or_else(|_| dir.clone())),
        (None, None) => None,
    };
    // What is no text is no job's directory.
    let workspace = workspace.filter(|dir| !all && dir.to_str().is_some());
    let shape = shape(&mut args, desk.clients.profile(call.client.name().as_deref()));
    args.finish()?;
    let scope = if workspace.is_some() { "workspace" } else { "all" };
    let limit = usize::try_from(limit).unwrap_or(10);
    // Of all jobs those are shown that the caller may read, so more have to be looked at.
    let listed = if workspace.is_some() { limit } else { MOST_LISTED };
    let filter = JobFilter { workspace: workspace.clone(), state, limit: listed };
    let rows = desk.jobs.list(filter).await?;
    let mut rows = if workspace.is_some() { rows } else { desk.allowed(rows, caller).await };
    rows.truncate(limit);
    let where_ = workspace.as_ref().map_or("all workspaces".to_owned(), |dir| dir.display().to_string());
    let told = Listing {
        scope,
        workspace: workspace.map(|dir| dir.display().to_string()),
        jobs: rows.iter().map(|row| ListedJob::new(row, shape.detail)).collect(),
    };
    let mut text = if rows.is_empty() { format!("No jobs in {where_}.") } else { format!("Jobs in {where_}:\n") };
    let now = UnixMillis::now();
    for row in &rows {
        let age = now.since(row.accepted_at) / 1000;
        let unread = if row.unread { " UNREAD" } else { "" };
        let _ =
            writeln!(text, "{} {}{unread} {age} s ago {}: {}", row.id, row.state.as_str(), row.agent, row.prompt_head);
    }
    if shape.detail == Detail::Full {
        let _ = write!(text, "\n{:#}", reply::structured(&told));
    }
    Ok(reply::object(&told, text.trim_end().to_owned(), shape))
}

/// What a listing tells.
#[derive(Serialize)]
struct Listing<'a> {
    scope: &'a str,
    workspace: Option<String>,
    jobs: Vec<ListedJob<'a>>,
}

/// A job's row in a listing.
#[derive(Serialize)]
struct ListedJob<'a> {
    job_id: JobId,
    status: JobState,
    unread: bool,
    agent: &'a str,
    prompt: &'a str,
    accepted_at: UnixMillis,
    #[serde(flatten)]
    full: Option<ListedInFull<'a>>,
}

/// What a row has under `full` only.
#[derive(Serialize)]
struct ListedInFull<'a> {
    mode: JobMode,
    workspace: String,
    session_id: Option<&'a str>,
    finished_at: Option<UnixMillis>,
}

impl<'a> ListedJob<'a> {
    fn new(row: &'a JobSummary, detail: Detail) -> Self {
        let full = ListedInFull {
            mode: row.mode,
            workspace: row.workspace.display().to_string(),
            session_id: row.session_id.as_deref(),
            finished_at: row.finished_at,
        };
        Self {
            job_id: row.id,
            status: row.state,
            unread: row.unread,
            agent: &row.agent,
            prompt: &row.prompt_head,
            accepted_at: row.accepted_at,
            full: (detail == Detail::Full).then_some(full),
        }
    }
}

/// A job's row as JSON.
#[must_use]
pub fn summary(row: &JobSummary, detail: Detail) -> Value {
    reply::structured(&ListedJob::new(row, detail))
}

/// The arguments of `consult_cancel`.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "the schema is generated from it")]
struct CancelArguments {
    /// The job.
    job_id: String,
    /// How the text looks; porcelain when left out.
    #[schemars(extend("enum" = ["porcelain", "json"]))]
    render: Option<String>,
    /// How much is told; concise when left out.
    #[schemars(extend("enum" = ["concise", "full"]))]
    detail: Option<String>,
}

host_tool! {
    /// `consult_cancel`: ends a job and everything it started.
    CancelTool(desk: Consults), "consult_cancel", AT_ONCE, false,
    |me| definition::<CancelArguments>(
        me.name(),
        "Cancel a consult",
        "End a consult job and every process it started. A finished job stays as it is.",
        Annotations { read_only: false, destructive: true, idempotent: true, open_world: false },
    ),
    cancel_job
}

/// How long a cancel waits for the job to be over: the agent's grace and then some.
const CANCEL_WAIT: Duration = Duration::from_secs(5);

async fn cancel_job(desk: &Consults, call: ToolCall) -> Result<ToolReply, Fault> {
    let caller = Caller::Client(call.invocation.session);
    let desk = &*desk.of(caller)?;
    let mut args = ArgumentReader::parse(&call.arguments)?;
    let job = args.uuid::<JobId>("job_id");
    let job = args.require("job_id", job, "the job_id of a consult");
    let shape = shape(&mut args, desk.clients.profile(call.client.name().as_deref()));
    args.finish()?;
    let Some(job) = job else { return Err(Fault::new(FaultCode::Internal, "a job id went missing.")) };
    let record = match desk.jobs.record(job).await {
        Err(fault) if fault.code == FaultCode::UnknownJob => {
            let (record, was) = placed::end(desk, job, caller, CANCEL_WAIT).await?.ok_or(fault)?;
            return Ok(cancelled(&record, was, shape));
        }
        record => record?,
    };
    desk.check_job(&record, caller).await?;
    let mut follow = desk.jobs.follow(job).await?;
    let asked = desk.jobs.cancel(job).await?;
    let was = match asked {
        CancelState::Ended { state } => Some(state),
        CancelState::Requested { .. } | CancelState::AlreadyRequested { .. } | CancelState::GoesOn => None,
    };
    if was.is_none() {
        let mut watch = Watch::new(&call, desk, Instant::now());
        watch.until(&mut follow, CANCEL_WAIT, Until::Finished).await?;
    }
    let record = desk.jobs.record(job).await?;
    Ok(cancelled(&record, was, shape))
}

/// The reply about a job that was to be cancelled.
fn cancelled(record: &JobRecord, was: Option<JobState>, shape: Shape) -> ToolReply {
    let told = Cancelled::new(record, was);
    let text = told.text(was);
    ToolReply { job: Some(record.id), tells_end: record.state.is_terminal(), ..reply::object(&told, text, shape) }
}

/// What became of a job that was to be cancelled.
#[derive(Serialize)]
struct Cancelled<'a> {
    job_id: JobId,
    status: JobState,
    already_over: bool,
    reaped: Option<u32>,
    session_id: Option<&'a str>,
    resumable: Option<bool>,
}

impl<'a> Cancelled<'a> {
    /// A job as it stands after a cancel that met it in this state, where it was over.
    fn new(record: &'a JobRecord, was: Option<JobState>) -> Self {
        let outcome = record.outcome.as_ref();
        Self {
            job_id: record.id,
            status: record.state,
            already_over: was.is_some(),
            reaped: outcome.and_then(|outcome| outcome.exit).map(|exit| exit.reaped),
            session_id: outcome.and_then(|outcome| outcome.session_id.as_deref()),
            resumable: outcome.and_then(|outcome| outcome.resumable),
        }
    }

    fn text(&self, was: Option<JobState>) -> String {
        let job = self.job_id;
        if let Some(state) = was {
            return format!("Job {job} was already {}; nothing was changed.", state.as_str());
        }
        if !self.status.is_terminal() {
            return format!("Job {job} is being ended; consult_job tells when it is over.");
        }
        let ended = match self.reaped.filter(|reaped| *reaped > 0) {
            Some(reaped) => format!(" ({reaped} processes had to be ended)"),
            None => String::new(),
        };
        let session = match (self.session_id, self.resumable) {
            (Some(session), Some(true)) => format!(" Its session can be resumed: session_id {session}."),
            (Some(session), _) => format!(" Its session was {session}."),
            (None, _) => String::new(),
        };
        format!("Job {job} is {}; nothing of it is left running{ended}.{session}", self.status.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::{ConsultRequest, JobOutcome, RunExit};

    #[test]
    fn a_cancel_says_what_became_of_the_job_and_of_its_session() {
        use JobState::{Cancelled as Over, Running, Succeeded};
        let ended = |reaped, session: Option<&str>, resumable| JobOutcome {
            exit: Some(RunExit { code: 143, signal: Some(15), reaped }),
            session_id: session.map(str::to_owned),
            resumable,
            ..JobOutcome::default()
        };
        let is = "is cancelled; nothing of it is left running";
        for (state, was, outcome, text) in [
            (Running, None, None, "is being ended; consult_job tells when it is over.".to_owned()),
            (Succeeded, Some(Succeeded), None, "was already succeeded; nothing was changed.".to_owned()),
            (Over, None, None, format!("{is}.")),
            (Over, None, Some(ended(0, None, None)), format!("{is}.")),
            (Over, None, Some(ended(2, None, None)), format!("{is} (2 processes had to be ended).")),
            (
                Over,
                None,
                Some(ended(0, Some("s1"), Some(true))),
                format!("{is}. Its session can be resumed: session_id s1."),
            ),
            (
                Over,
                None,
                Some(ended(1, Some("s1"), None)),
                format!("{is} (1 processes had to be ended). Its session was s1."),
            ),
        ] {
            let record = JobRecord { outcome, ..JobRecord::plain(state, ConsultRequest::new("why?").cwd("/w")) };
            let told = Cancelled::new(&record, was);
            assert_eq!(told.text(was), format!("Job {} {text}", record.id));
            let keys = ["already_over", "job_id", "reaped", "resumable", "session_id", "status"];
            let value = reply::structured(&told);
            assert_eq!(value.as_object().expect("an object").keys().collect::<Vec<_>>(), keys);
            assert_eq!(value["already_over"], was.is_some());
        }
    }

    #[test]
    fn what_was_heard_of_is_looked_for_until_it_is_there_and_ever_less_often() {
        let left = Duration::from_secs(60);
        let mut catching_up = CatchingUp::default();
        assert_eq!(catching_up.at_most(left), left, "nothing was heard of: nothing to look for");
        let mut waits = Vec::new();
        for _ in 0..8 {
            catching_up.note();
            waits.push(catching_up.at_most(left).as_millis());
        }
        assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000, 1000]);
        assert_eq!(
            catching_up.at_most(Duration::from_millis(7)),
            Duration::from_millis(7),
            "never past the caller's wait"
        );
    }
}
