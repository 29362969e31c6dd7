//! The fields of a reply about a job.
//!
//! Owns: which fields there are, when each is told, and where it comes from. May not know: how a text says it.
//!
//! Invariants: (1) every reply has the fields that are no `Option` of a part, a failure as well; (2) what a field's own
//! `skip_serializing_if` leaves out says nothing about the job, what is told as null is not known.

use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::{Context, Detail, Reader, Shape};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{ChainId, JobId, UnixMillis};
use crate::config::LeftOut;
use crate::jobs::{JobMode, JobOutcome, JobRecord, JobState, JournalEntry, JournalEvent, PermissionDenial, RunExit};
use crate::tools::callers::CallerOrigin;

/// What is answered about one job. Structured content is this type as JSON, with its members in the order of their names.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct JobReply {
    /// What is told about the job beside its answer.
    #[serde(flatten)]
    pub(crate) facts: JobFacts,
    /// The answer, cut to the budget; of a job that is not over, what the agent has said so far.
    pub(crate) response: Option<String>,
    /// What happened since the event the caller had seen.
    #[serde(flatten)]
    pub(crate) news: Option<NewEvents>,
}

/// What is told about a job beside its answer.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct JobFacts {
    /// Whether somebody waits for the answer.
    pub(crate) mode: JobMode,
    /// Where the job stands.
    pub(crate) status: JobState,
    /// The job.
    pub(crate) job_id: JobId,
    /// The agent's session: the one that was used, else the one that is to be resumed.
    pub(crate) session_id: Option<String>,
    /// Whether an older session was resumed.
    pub(crate) session_mode: SessionMode,
    /// The agent.
    pub(crate) agent: String,
    /// The model that answered, else the one that was asked for.
    pub(crate) model: Option<String>,
    /// The directory the agent ran in.
    pub(crate) cwd: String,
    /// The machine of the directory, where that is another one: how it is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) machine: Option<String>,
    /// Why that machine of the fleet, or for which one the job waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) placed_because: Option<String>,
    /// Who paid: where the agent said its key came from, and whether the plan was enough.
    pub(crate) billing: Option<String>,
    /// What it cost in US dollars.
    pub(crate) cost_usd: Option<f64>,
    /// Milliseconds from acceptance to the end, or until now.
    pub(crate) duration_ms: u64,
    /// Turns the agent took.
    pub(crate) num_turns: Option<u64>,
    /// Why the model stopped.
    pub(crate) stop_reason: Option<String>,
    /// Token counts by the agent's names for them: the four most people ask for, all under `full`.
    pub(crate) usage: Option<Value>,
    /// Tool uses that were refused.
    pub(crate) permission_denial_count: usize,
    /// Whether our fixed line stood before the prompt.
    pub(crate) prompt_prefix_injected: bool,
    /// Whether `response` is less than the whole answer.
    pub(crate) truncated: bool,
    /// What to do now, if anything.
    pub(crate) next: Option<String>,
    /// Whether the store has the outcome; told only where it has not.
    #[serde(skip_serializing_if = "is_true")]
    pub(crate) stored: bool,
    /// Whether this call joined a job it did not begin. An answer is the same for everybody who asked for it; a failure has
    /// to say that it is not this call's.
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) joined: bool,
    /// Whether anything in the directory was different after the run. Not judged is told, so that a directory cannot switch
    /// the look off unseen; left out is unchanged, or nothing ran.
    #[serde(skip_serializing_if = "Fact::is_left_out")]
    pub(crate) workspace_changed: Fact<bool>,
    /// The pages of an answer that has more than one.
    #[serde(flatten)]
    pub(crate) pages: Option<Pages>,
    /// What the agent is doing, while the job is not over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) phase: Option<String>,
    /// The job's place in the queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) queue_position: Option<usize>,
    /// How the agent's process ended, where that was no ordinary end.
    #[serde(skip_serializing_if = "Fact::is_left_out")]
    pub(crate) exit: Fact<RunExit>,
    /// Why the job did not succeed.
    #[serde(flatten)]
    pub(crate) failure: Option<Failure>,
    /// The last of the agent's standard error, for failures.
    #[serde(skip_serializing_if = "Fact::is_left_out")]
    pub(crate) stderr_tail: Fact<String>,
    /// Finished jobs of the workspace that nobody has read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) unread_jobs: Vec<JobId>,
    /// The project's configuration file, where it could not be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) project_file_left_out: Option<LeftOut>,
    /// Whose environment and configuration the caller's consults have; told only where they are not this server's own.
    #[serde(skip_serializing_if = "is_the_hosts")]
    pub(crate) environment: CallerOrigin,
    /// What is told under `full` only.
    #[serde(flatten)]
    pub(crate) full: Option<FullFacts>,
    /// When this is told: what is to come is a while away from here.
    #[serde(skip)]
    pub(crate) told_at: UnixMillis,
}

/// Whether an older session of the agent was resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SessionMode {
    /// It began with this job.
    New,
    /// It was there before.
    Resumed,
}

impl SessionMode {
    /// The word of the mode.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Resumed => "resumed",
        }
    }
}

/// Where an answer of several pages was cut.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub(crate) struct Pages {
    /// The page that `response` is; null when it is head and tail.
    pub(crate) page: Option<usize>,
    /// How many there are.
    pub(crate) pages: usize,
}

/// Why a job did not succeed.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Failure {
    /// The fault record.
    pub(crate) fault: Fault,
    /// Whether the agent's session can be resumed after it.
    pub(crate) resumable: Option<bool>,
}

/// What is told of a job under `full` only.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct FullFacts {
    /// The caller's text, cut to the budget.
    pub(crate) prompt: String,
    /// What the agent was asked, with the prompt's place in it: the prompt itself stands beside it, once.
    pub(crate) effective_prompt: String,
    /// Token counts and cost by model, as the agent reported them.
    pub(crate) model_usage: Option<Value>,
    /// The tool uses that were refused.
    pub(crate) permission_denials: Option<Vec<PermissionDenial>>,
    /// The usage limit that was reached, by the provider's name for it.
    pub(crate) limit: Option<String>,
    /// When what happened, and how long it took.
    pub(crate) timings: Timings,
    /// The nested consults the job belongs to.
    pub(crate) chain: Chain,
}

/// When what happened to a job, and how long it took.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub(crate) struct Timings {
    /// When it was accepted.
    pub(crate) accepted_at: UnixMillis,
    /// When a runner took it.
    pub(crate) started_at: Option<UnixMillis>,
    /// When it was over.
    pub(crate) finished_at: Option<UnixMillis>,
    /// Milliseconds from acceptance to the start of the agent.
    pub(crate) queued_ms: Option<u64>,
    /// Milliseconds from the agent's start to the end of its process group.
    pub(crate) run_ms: Option<u64>,
}

/// Consults that started each other.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub(crate) struct Chain {
    /// The chain.
    pub(crate) id: ChainId,
    /// How deep in it the job is.
    pub(crate) depth: u32,
}

/// Events that the caller had not seen; at least one.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct NewEvents {
    /// The events, in order.
    pub(crate) events: Vec<NewEvent>,
    /// The number of the last one, to ask for what comes after it.
    pub(crate) last_seq: u64,
}

/// One of them.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct NewEvent {
    /// Its place in the job's journal.
    pub(crate) seq: u64,
    /// When it was written down.
    pub(crate) at: UnixMillis,
    /// What happened.
    #[schemars(with = "serde_json::Map<String, Value>")]
    pub(crate) event: JournalEvent,
}

/// A field that is left out where it would say nothing, and is null where it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Fact<T> {
    /// There is nothing to be said.
    #[default]
    LeftOut,
    /// It is told, as null when it is not known.
    Told(Option<T>),
}

impl<T> Fact<T> {
    fn is_left_out(&self) -> bool {
        matches!(self, Self::LeftOut)
    }

    /// What is told and known.
    #[must_use]
    pub(crate) const fn known(&self) -> Option<&T> {
        match self {
            Self::Told(Some(value)) => Some(value),
            Self::Told(None) | Self::LeftOut => None,
        }
    }
}

impl<T: Serialize> Serialize for Fact<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.known().serialize(to)
    }
}

impl<T: JsonSchema> JsonSchema for Fact<T> {
    fn inline_schema() -> bool {
        Option::<T>::inline_schema()
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        Option::<T>::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Option::<T>::json_schema(generator)
    }
}

fn is_true(value: &bool) -> bool {
    *value
}

fn is_false(value: &bool) -> bool {
    !*value
}

impl JobReply {
    /// The reply about a job of which this is known, as it stands at that time.
    #[must_use]
    pub(crate) fn new(record: &JobRecord, context: &Context, shape: Shape, now: UnixMillis) -> Self {
        let unknown = JobOutcome::default();
        let outcome = record.outcome.as_ref();
        let known = outcome.unwrap_or(&unknown);
        let full = shape.detail == Detail::Full;
        let room = shape.budget / (context.beside + 1);
        let answer = match outcome {
            Some(outcome) => outcome.response.as_deref(),
            None => Some(context.text_so_far.as_str()).filter(|text| !text.is_empty()),
        };
        let (response, cut, pages) = answer.map_or((None, false, 1), |answer| {
            let (text, cut) = cut(answer, room, context.page);
            // Pages are read one by one, each with the whole budget for itself.
            (Some(text), cut, answer.chars().count().div_ceil(shape.budget).max(1))
        });
        let truncated = cut || known.response_cut;
        let resumes = record.request.session_id;
        let session_id = known.session_id.clone().or_else(|| resumes.map(|session| session.to_string()));
        let over = record.state.is_terminal();
        let ordinary = |exit: &RunExit| exit.code == 0 && exit.signal.is_none();
        let exit = known.exit.filter(|exit| full || !ordinary(exit));
        let failure = known.fault.clone().map(|fault| Failure { fault, resumable: known.resumable });
        let unjudged = known.workspace_changed.is_none() && known.exit.is_some();
        let changes_told = known.workspace_changed == Some(true) || unjudged || (full && outcome.is_some());
        let facts = JobFacts {
            mode: record.mode,
            status: record.state,
            job_id: record.id,
            session_mode: if resumes.is_some() { SessionMode::Resumed } else { SessionMode::New },
            agent: record.request.agent.clone(),
            model: known.model.clone().or_else(|| record.request.model.clone()),
            cwd: record.request.cwd.display().to_string(),
            machine: context
                .placed
                .as_ref()
                .map_or_else(|| record.request.machine.clone(), |placed| placed.machine.clone()),
            placed_because: context.placed.as_ref().map(|placed| placed.because.clone()),
            billing: billing(known),
            cost_usd: known.cost_usd,
            duration_ms: record.finished_at.unwrap_or(now).since(record.accepted_at),
            num_turns: known.num_turns,
            stop_reason: known.stop_reason.clone(),
            usage: known.usage.as_ref().map(|usage| if full { usage.clone() } else { brief_usage(usage) }),
            permission_denial_count: known.permission_denials.len(),
            prompt_prefix_injected: known.prompt_prefix_injected,
            truncated,
            next: next(record, context, session_id.as_deref(), truncated, pages),
            stored: !context.unstored,
            joined: context.joined && over && record.state != JobState::Succeeded,
            workspace_changed: told_if(changes_told, known.workspace_changed),
            pages: (pages > 1).then_some(Pages { page: context.page, pages }),
            phase: context.phase.clone().filter(|_| !over),
            queue_position: context.place,
            exit: told_if(full || exit.is_some(), exit),
            stderr_tail: told_if(full || failure.is_some(), known.stderr_tail.clone()),
            failure,
            unread_jobs: context.unread.clone(),
            project_file_left_out: context.left_out.clone(),
            environment: context.environment,
            full: full.then(|| FullFacts {
                prompt: self::cut(&record.request.prompt, room, None).0,
                effective_prompt: effective_prompt(known.prompt_prefix_injected),
                model_usage: known.model_usage.clone(),
                permission_denials: outcome.map(|outcome| outcome.permission_denials.clone()),
                limit: known.limit.clone(),
                timings: Timings {
                    accepted_at: record.accepted_at,
                    started_at: record.started_at,
                    finished_at: record.finished_at,
                    queued_ms: known.queued_ms,
                    run_ms: known.run_ms,
                },
                chain: Chain { id: record.chain, depth: record.depth },
            }),
            told_at: now,
            session_id,
        };
        Self { facts, response, news: new_events(&context.events) }
    }
}

fn is_the_hosts(origin: &CallerOrigin) -> bool {
    *origin == CallerOrigin::Host
}

fn told_if<T>(told: bool, value: Option<T>) -> Fact<T> {
    if told { Fact::Told(value) } else { Fact::LeftOut }
}

fn new_events(events: &[JournalEntry]) -> Option<NewEvents> {
    let last_seq = events.last()?.seq;
    let new = |entry: &JournalEntry| NewEvent { seq: entry.seq, at: entry.at, event: entry.event.clone() };
    Some(NewEvents { events: events.iter().map(new).collect(), last_seq })
}

/// Cuts an answer that is over the budget: head and tail with a marker, or one page.
fn cut(answer: &str, budget: usize, page: Option<usize>) -> (String, bool) {
    let count = answer.chars().count();
    if let Some(page) = page {
        let text = answer.chars().skip((page - 1) * budget).take(budget).collect();
        return (text, count > budget);
    }
    if count <= budget {
        return (answer.to_owned(), false);
    }
    let head = budget * 2 / 3;
    let tail = budget - head;
    let start: String = answer.chars().take(head).collect();
    let end: String = answer.chars().skip(count - tail).collect();
    let left_out = count - head - tail;
    (format!("{start}\n\n[… {left_out} characters left out; read them with `page` …]\n\n{end}"), true)
}

/// Who paid: where the agent said its key came from, and whether the plan was enough.
fn billing(outcome: &JobOutcome) -> Option<String> {
    let source = outcome.billing.as_deref();
    match outcome.extra_usage {
        false => source.map(str::to_owned),
        true => Some(format!("{}, and extra usage: paid for beyond the plan", source.unwrap_or("unknown"))),
    }
}

/// The counts most people ask for.
fn brief_usage(usage: &Value) -> Value {
    let Value::Object(all) = usage else { return usage.clone() };
    let kept = ["input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"];
    Value::Object(kept.iter().filter_map(|name| Some(((*name).to_owned(), all.get(*name)?.clone()))).collect())
}

fn effective_prompt(injected: bool) -> String {
    format!("{}[prompt]", if injected { crate::agents::PROMPT_PREFIX } else { "" })
}

/// What to do now, if anything.
fn next(record: &JobRecord, context: &Context, session: Option<&str>, truncated: bool, pages: usize) -> Option<String> {
    let id = record.id;
    if !record.state.is_terminal() && context.beside > 0 {
        // It is said once, of all of them.
        return None;
    }
    if !record.state.is_terminal() {
        if context.reader == Reader::Person {
            return Some(format!("Read the answer: phone-opus jobs show {id} --wait 600"));
        }
        let kept = match (context.handed_over, context.gave_up_after) {
            (false, _) => String::new(),
            (true, None) => "The consult goes on in the background. ".to_owned(),
            (true, Some(after)) => format!(
                "The consult goes on in the background already, because this client was seen to give up calls after {} s; \
                 `wait_s` asks for a longer wait. ",
                after.as_secs()
            ),
        };
        return Some(format!(
            "{kept}Read the answer with one blocking call: consult_job {{\"job_id\":\"{id}\",\"wait_s\":45}}."
        ));
    }
    if context.unstored {
        return Some(
            "This is not stored yet: the job store refuses it (see health_snapshot; is the disk of the state directory \
             full?). Keep it. The job shows as running until it is stored, and is not run again."
                .to_owned(),
        );
    }
    if truncated && pages == 1 && context.beside > 0 {
        return Some(format!("The whole answer: consult_job {{\"job_id\":\"{id}\"}}."));
    }
    if truncated && pages > 1 {
        let page = context.page.map_or(1, |page| page + 1);
        if page <= pages {
            return Some(format!("Page {page} of {pages}: consult_job {{\"job_id\":\"{id}\",\"page\":{page}}}."));
        }
    }
    let outcome = record.outcome.as_ref();
    let code = outcome.and_then(|outcome| outcome.fault.as_ref()).map(|fault| fault.code);
    if context.joined && record.state != JobState::Succeeded {
        return Some(
            "This `request_key` belongs to that job, which is over and is not run again: use another key to ask once \
             more."
                .to_owned(),
        );
    }
    match (code, outcome.and_then(|outcome| outcome.resumable), session) {
        (Some(FaultCode::AgentMissing), ..) if context.reader == Reader::Person => {
            Some("Without any model: phone-opus consult --agent offline PROMPT".to_owned())
        }
        (Some(FaultCode::TurnLimit | FaultCode::BudgetExhausted), _, Some(session))
            if context.reader == Reader::Person =>
        {
            Some(format!(
                "Go on in the same session: phone-opus consult --session {session} PROMPT, with a higher limit"
            ))
        }
        (Some(_), Some(true), Some(session)) if context.reader == Reader::Person => {
            Some(format!("The session can be resumed: phone-opus consult --session {session} PROMPT"))
        }
        (Some(FaultCode::TurnLimit | FaultCode::BudgetExhausted), _, Some(session)) => {
            Some(format!("Go on in the same session: consult with session_id {session} and a higher limit."))
        }
        (Some(_), Some(true), Some(session)) => Some(format!("The session can be resumed: session_id {session}.")),
        _ => None,
    }
}
