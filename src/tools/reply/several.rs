//! What is told about the consult of several agents: an answer of each, and what there is to say of all of them.
//!
//! Owns: the fields beside the answers, how an agent without a job is told, the text. May not know: how they were asked.
//!
//! Invariants: (1) each answer has the fields a reply about its job alone would have; (2) it is an error when none of them
//! succeeded and none is under way, and otherwise it is none; (3) what holds for all of them is told once.

use std::fmt::Write as _;

use serde::Serialize;

use super::fields::JobReply;
use super::porcelain::porcelain;
use super::{Context, Reader, Render, Shape, structured};
use crate::base::fault::Fault;
use crate::base::ids::{JobId, UnixMillis};
use crate::config::LeftOut;
use crate::jobs::{JobMode, JobRecord, JobState};
use crate::protocol::wire::{ReplyText, ToolReply};
use crate::tools::callers::CallerOrigin;
use crate::tools::several::{Consulted, Standing};

/// What is known for all of them.
#[derive(Debug, Clone)]
pub struct SeveralContext {
    /// Whether somebody waits for the answers.
    pub mode: JobMode,
    /// A soft deadline turned those that are not over into background jobs.
    pub handed_over: bool,
    /// After so long the client was seen to give up, which is why the soft deadline came before the usual one.
    pub gave_up_after: Option<std::time::Duration>,
    /// Finished jobs of the workspace that nobody has read, without these.
    pub unread: Vec<JobId>,
    /// The project's configuration file, where it could not be used.
    pub left_out: Option<LeftOut>,
    /// Whose environment and configuration the caller's consults have.
    pub environment: CallerOrigin,
    /// Who is told what to do next.
    pub reader: Reader,
}

/// What is answered about several jobs.
#[derive(Debug, Serialize)]
struct SeveralReply {
    /// Whether somebody waits for the answers.
    mode: JobMode,
    /// `running` while any of them is not over; then `succeeded` when any of them did.
    status: JobState,
    /// Theirs, in the order they were named.
    answers: Vec<Told>,
    /// What they cost together, where it is known of each that ran.
    cost_usd: Option<f64>,
    /// The longest of them.
    duration_ms: u64,
    /// How the answers that are not there are read.
    next: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unread_jobs: Vec<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    project_file_left_out: Option<LeftOut>,
    #[serde(skip_serializing_if = "is_the_hosts")]
    environment: CallerOrigin,
}

fn is_the_hosts(origin: &CallerOrigin) -> bool {
    *origin == CallerOrigin::Host
}

/// What is told of one of them.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Told {
    Job(Box<JobReply>),
    Without(Box<WithoutJob>),
}

/// Of one that has no job, or none that can be looked at.
#[derive(Debug, Serialize)]
struct WithoutJob {
    agent: String,
    status: &'static str,
    job_id: Option<JobId>,
    session_id: Option<String>,
    response: Option<String>,
    cost_usd: Option<f64>,
    fault: Fault,
    next: Option<String>,
}

impl Told {
    fn new(consulted: &Consulted, context: &Context, shape: Shape, now: UnixMillis) -> Self {
        let job = |record: &JobRecord| Self::Job(Box::new(JobReply::new(record, context, shape, now)));
        let without = |status, record: Option<&JobRecord>, fault: &Fault| {
            Self::Without(Box::new(WithoutJob {
                agent: consulted.agent.clone(),
                status,
                job_id: record.map(|record| record.id),
                session_id: None,
                response: None,
                cost_usd: None,
                fault: fault.clone(),
                next: record.map(|record| format!("It may go on: consult_job {{\"job_id\":\"{}\"}}.", record.id)),
            }))
        };
        match &consulted.standing {
            Standing::Open(record) => job(record),
            Standing::Over { record, .. } => job(record),
            Standing::Refused(fault) => without("refused", None, fault),
            Standing::Lost { record, fault } => without("unknown", Some(record), fault),
            Standing::Unasked => without("refused", None, &unasked()),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Job(reply) => porcelain(reply),
            Self::Without(told) => {
                let verb = if told.job_id.is_some() { "is out of sight" } else { "was refused" };
                let fault = &told.fault;
                let mut text = format!("The consult {verb} ({}): {}", fault.code, fault.detail);
                if let Some(hint) = &fault.hint {
                    let _ = write!(text, " {hint}");
                }
                let job = told.job_id.map_or_else(|| "no job".to_owned(), |job| format!("job {job}"));
                let _ = write!(text, "\n\n[{job} · {} · {}]", told.status, told.agent);
                if let Some(next) = &told.next {
                    let _ = write!(text, "\n{next}");
                }
                text
            }
        }
    }
}

fn unasked() -> Fault {
    Fault::new(crate::base::fault::FaultCode::Cancelled, "the consult was ended before this agent was asked.")
}

/// The state of all of them together.
fn status(agents: &[Consulted]) -> JobState {
    let states: Vec<Option<JobState>> = agents
        .iter()
        .map(|told| match &told.standing {
            Standing::Open(record) => Some(record.state),
            Standing::Over { record, .. } => Some(record.state),
            Standing::Unasked | Standing::Refused(_) | Standing::Lost { .. } => None,
        })
        .collect();
    let any = |wanted: fn(JobState) -> bool| states.iter().flatten().any(|state| wanted(*state));
    if any(|state| !state.is_terminal()) {
        JobState::Running
    } else if any(|state| state == JobState::Succeeded) {
        JobState::Succeeded
    } else {
        JobState::Failed
    }
}

/// What they cost together: what is not known of one that ran is not known of all.
fn cost(agents: &[Consulted]) -> Option<f64> {
    let ran = agents.iter().filter_map(|told| match &told.standing {
        Standing::Over { record, .. } if record.nothing_ran() => None,
        Standing::Over { record, .. } => Some(record.outcome.as_ref().and_then(|outcome| outcome.cost_usd)),
        Standing::Open(_) | Standing::Lost { .. } => Some(None),
        Standing::Unasked | Standing::Refused(_) => None,
    });
    ran.sum()
}

/// How the answers are read that are not there yet.
fn next(agents: &[Consulted], context: &SeveralContext) -> Option<String> {
    let open = agents.iter().filter_map(|told| match &told.standing {
        Standing::Open(record) => Some((record.id, told.agent.as_str())),
        _ => None,
    });
    let calls: Vec<String> = open
        .map(|(id, agent)| match context.reader {
            Reader::Model => format!("consult_job {{\"job_id\":\"{id}\",\"wait_s\":45}} ({agent})"),
            Reader::Person => format!("phone-opus jobs show {id} --wait 600 ({agent})"),
        })
        .collect();
    if calls.is_empty() {
        return None;
    }
    let kept = match (context.handed_over, context.gave_up_after) {
        (false, _) => String::new(),
        (true, None) => "What is not over goes on in the background. ".to_owned(),
        (true, Some(after)) => format!(
            "What is not over goes on in the background already, because this client was seen to give up calls after \
             {} s; `wait_s` asks for a longer wait. ",
            after.as_secs()
        ),
    };
    let each = match context.reader {
        Reader::Model => "Read each answer with one blocking call",
        Reader::Person => "Read each answer",
    };
    Some(format!("{kept}{each}: {}.", calls.join(", ")))
}

/// The line about all of them.
fn in_brief(reply: &SeveralReply, agents: &[Consulted]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for told in agents {
        let state = match &told.standing {
            Standing::Open(record) => record.state.as_str(),
            Standing::Over { record, .. } => record.state.as_str(),
            Standing::Unasked | Standing::Refused(_) => "refused",
            Standing::Lost { .. } => "unknown",
        };
        match counts.iter_mut().find(|(known, _)| *known == state) {
            Some((_, count)) => *count += 1,
            None => counts.push((state, 1)),
        }
    }
    let counts: Vec<String> = counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let mut said = vec![format!("{} agents", agents.len()), counts.join(", "), reply.mode.as_str().to_owned()];
    said.push(format!("{:.1} s", reply.duration_ms as f64 / 1000.0));
    if reply.status.is_terminal() {
        said.push(reply.cost_usd.map_or("cost unknown".to_owned(), |cost| format!("${cost:.4}")));
    }
    if reply.environment != CallerOrigin::Host {
        said.push(format!("environment {}", reply.environment.as_str()));
    }
    said.join(" · ")
}

fn text(reply: &SeveralReply, agents: &[Consulted]) -> String {
    let mut text = String::new();
    for (told, consulted) in reply.answers.iter().zip(agents) {
        let _ = write!(text, "## {}\n\n{}\n\n", consulted.agent, told.text());
    }
    let _ = write!(text, "[{}]", in_brief(reply, agents));
    if let Some(next) = &reply.next {
        let _ = write!(text, "\n{next}");
    }
    if let Some(left_out) = &reply.project_file_left_out {
        let _ = write!(text, "\nThe project's file {} was left out: it {}.", left_out.place, left_out.why);
    }
    if !reply.unread_jobs.is_empty() {
        let ids: Vec<String> = reply.unread_jobs.iter().map(ToString::to_string).collect();
        let _ = write!(text, "\nFinished and not read yet: {}.", ids.join(", "));
    }
    text
}

/// The reply about several agents; what is known of each stands in `told`, in the same order.
#[must_use]
pub(crate) fn several(agents: &[Consulted], told: &[Context], context: &SeveralContext, shape: Shape) -> ToolReply {
    let now = UnixMillis::now();
    let beside = agents.len().saturating_sub(1);
    let answer = |(consulted, known): (&Consulted, &Context)| {
        Told::new(consulted, &Context { beside, ..known.clone() }, shape, now)
    };
    let records = || agents.iter().filter_map(|told| told.standing.record());
    let reply = SeveralReply {
        mode: context.mode,
        status: status(agents),
        answers: agents.iter().zip(told).map(answer).collect(),
        cost_usd: cost(agents),
        duration_ms: records()
            .map(|record| record.finished_at.unwrap_or(now).since(record.accepted_at))
            .max()
            .unwrap_or(0),
        next: next(agents, context),
        unread_jobs: context.unread.clone(),
        project_file_left_out: context.left_out.clone(),
        environment: context.environment,
    };
    let json = structured(&reply).to_string();
    let text = if shape.render == Render::Json { json.clone() } else { text(&reply, agents) };
    let failed = reply.answers.iter().find_map(|told| match told {
        Told::Job(job) => job.facts.failure.as_ref().map(|failure| failure.fault.code),
        Told::Without(told) => Some(told.fault.code),
    });
    let ends = agents.iter().filter_map(|told| match &told.standing {
        Standing::Over { record, stored: true } => Some(record.id),
        _ => None,
    });
    ToolReply {
        text: ReplyText::Plain(text),
        structured: shape.structured.then_some(json),
        fault: failed.filter(|_| reply.status == JobState::Failed),
        ends: ends.collect(),
        path_hint: records().next().map(|record| record.request.cwd.display().to_string()),
        ..ToolReply::default()
    }
}
