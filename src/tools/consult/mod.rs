//! The tool `consult`: accept, follow, wait.
//!
//! Owns: the tool, and what all tools about consults share. May not know: runners, processes.
//!
//! Accepting is idempotent by invocation, so another attempt at the same call (after a worker was lost) joins the job
//! of the first: the caller loses nothing and the agent is not run twice.
//!
//! Reading order: [`asked`] for what the arguments mean, [`consult`] for what is done with them, [`waiting`] for how long its caller
//! is kept, [`told`] for what the reply says beyond the job's record, [`looking`] for directories.

mod asked;
mod looking;
mod told;
mod waiting;

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemars::JsonSchema;

pub(crate) use self::asked::shape;
pub use self::asked::{ConsultOptions, KEY_OF_BRIDGE};
pub use self::looking::default_cwd;
pub(in crate::tools) use self::looking::look_at;
pub(crate) use self::looking::{LOOK_BOUND, resolved, within};
pub(in crate::tools) use self::told::{finished, unstored};
pub(in crate::tools) use self::waiting::{Until, Waited, Watch, hand_over};
use super::callers::{CallerOrigin, Callers, session_over};
pub use super::grounds::Caller;
use super::placed::{self, placing::Placing};
use super::reply::{self, Context};
use super::several;
use super::{
    Annotations, Evidence, ProbeFuture, ReplayContract, TaskSupport, Tool, ToolCall, ToolDefinition, ToolFuture,
    ToolReply,
};
use crate::agents::AgentNames;
use crate::base::fault::Fault;
use crate::base::ids::{ChainId, InvocationId, UnixMillis};
use crate::config::Config;
use crate::config::clients::Clients;
use crate::fleet::Placement;
use crate::jobs::JobMode;
use crate::jobs::client::JobsHandle;
use crate::places::Places;
use crate::tools::roots::RootsHandle;

/// How many agents a consult of several asks.
const SEVERAL: RangeInclusive<usize> = 2..=5;

/// What is said of `cwd`.
const CWD_TOLD: &str = "Absolute directory to answer from, in this project. Default: where this server runs.";

/// Agents of other machines that are named beside it; the list of agents has them all.
const SITES_TOLD: usize = 4;

/// Longest a caller may ask to be kept waiting.
pub const WAIT_MOST: u64 = 3600;

/// The arguments of `consult`, as clients are told about them.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "the schema is generated from it; arguments are read by the argument reader")]
struct ConsultArguments {
    /// The question, self-contained: the agent sees the directory, not this conversation.
    prompt: String,
    /// Absolute directory to answer from, in this project. Default: where this server runs.
    cwd: Option<String>,
    /// Continue the agent session of an earlier reply.
    session_id: Option<String>,
    /// Return a job id at once instead of waiting.
    background: Option<bool>,
    /// Most agent turns.
    max_turns: Option<u32>,
    /// Model name or alias.
    model: Option<String>,
    /// Where the agent knows it.
    #[schemars(extend("enum" = ["low", "medium", "high", "xhigh", "max"]))]
    effort: Option<String>,
    /// Who answers; offline is a word search without a model.
    agent: Option<String>,
    /// Instead of agent: ask 2 to 5 at once, each by itself.
    #[schemars(extend("items" = {"type": "string"}))]
    agents: Option<Vec<String>>,
    /// Seconds the agent may run.
    timeout_s: Option<u32>,
    /// Seconds to wait here before the consult goes on in the background.
    wait_s: Option<u32>,
    /// Your own key: the same key and arguments join the same job, never a second run.
    request_key: Option<String>,
    /// Most US dollars.
    max_budget_usd: Option<f64>,
    /// Add git diff of this commit; true: HEAD.
    diff: Option<String>,
    /// Where it may run: here, on a machine of the fleet that has the directory, or on one that clones its commit.
    #[schemars(extend("enum" = ["local", "fleet", "clone"]))]
    placement: Option<String>,
    /// With clone: uncommitted changes go along.
    changes: Option<bool>,
    /// How the text looks; porcelain when left out.
    #[schemars(extend("enum" = ["porcelain", "json"]))]
    render: Option<String>,
    /// How much is told; concise when left out.
    #[schemars(extend("enum" = ["concise", "full"]))]
    detail: Option<String>,
}

/// What all consult tools share.
#[derive(Clone)]
pub struct Consults {
    /// Jobs.
    pub jobs: JobsHandle,
    /// Who can answer.
    pub agents: AgentNames,
    /// The numbers.
    pub config: Arc<Config>,
    /// What is known about clients.
    pub clients: Clients,
    /// Where a consult runs that names no directory; `None` when that is no place to run one.
    pub default_cwd: Option<PathBuf>,
    /// Where clients may look.
    pub places: Arc<Places>,
    /// What they work on.
    pub roots: RootsHandle,
    /// The chain the caller is part of, and how deep.
    pub nesting: (Option<ChainId>, u32),
    /// Whose sessions there are.
    pub callers: Callers,
    /// Whose directory, configuration and environment the above are.
    pub origin: CallerOrigin,
    /// The queue that is shared with other machines, where one is configured.
    pub fleet: Option<Placing>,
}

impl Consults {
    /// The same for the caller of a call: in its directory, under its configuration, as deep in a chain as it is. The tools of
    /// a client's call work with this and with nothing else.
    ///
    /// # Errors
    ///
    /// `caller_lost`: its session is over, and what it brought with it.
    pub fn of(&self, caller: Caller) -> Result<Cow<'_, Self>, Fault> {
        let Caller::Client(session) = caller else { return Ok(Cow::Borrowed(self)) };
        let context = self.callers.of(session).ok_or_else(session_over)?;
        if context.origin == CallerOrigin::Host {
            return Ok(Cow::Borrowed(self));
        }
        let home = context.home();
        Ok(Cow::Owned(Self {
            config: Arc::clone(&context.config),
            clients: self.clients.under(Arc::clone(&context.config)),
            default_cwd: default_cwd(context.cwd.as_deref(), home.as_deref()),
            places: Arc::new(Places { start: context.cwd.clone(), home, ..Places::clone(&self.places) }),
            nesting: context.nesting,
            origin: context.origin,
            jobs: self.jobs.clone(),
            agents: self.agents.clone(),
            roots: self.roots.clone(),
            callers: self.callers.clone(),
            fleet: self.fleet.clone(),
        }))
    }
}

/// The tool.
pub struct ConsultTool {
    desk: Consults,
}

impl ConsultTool {
    /// The tool over these jobs.
    #[must_use]
    pub fn new(desk: Consults) -> Self {
        Self { desk }
    }

    /// The schema of the arguments, with the agents this system has.
    fn schema(&self) -> serde_json::Value {
        let mut schema = super::readers::schema::<ConsultArguments>();
        if let Some(agent) = schema.pointer_mut("/properties/agent").and_then(serde_json::Value::as_object_mut) {
            agent.insert("enum".to_owned(), serde_json::json!(self.desk.agents.iter().collect::<Vec<_>>()));
        }
        if let Some(items) = schema.pointer_mut("/properties/agents").and_then(serde_json::Value::as_object_mut) {
            items.insert("minItems".to_owned(), serde_json::json!(SEVERAL.start()));
            items.insert("maxItems".to_owned(), serde_json::json!(SEVERAL.end()));
        }
        if self.desk.fleet.is_none()
            && let Some(all) = schema.pointer_mut("/properties").and_then(serde_json::Value::as_object_mut)
        {
            // There is one place.
            all.remove("placement");
            all.remove("changes");
        }
        let away: Vec<&str> = self.desk.config.agents.keys().map(String::as_str).take(SITES_TOLD).collect();
        if !away.is_empty()
            && let Some(cwd) = schema.pointer_mut("/properties/cwd").and_then(serde_json::Value::as_object_mut)
        {
            let told = format!("{CWD_TOLD} Of agents on other machines ({}): a directory there.", away.join(", "));
            cwd.insert("description".to_owned(), serde_json::Value::String(told));
        }
        schema
    }
}

impl Tool for ConsultTool {
    fn name(&self) -> &str {
        "consult"
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
            name: "consult".to_owned(),
            title: "Consult another coding agent".to_owned(),
            description: "Ask another coding agent for a second opinion: it reads (never writes) the directory and \
                          answers. For reviews, stuck bugs and risky designs, not for what you can look up yourself. \
                          A long consult comes back as a running job."
                .to_owned(),
            input_schema: self.schema(),
            annotations: Annotations { read_only: true, destructive: false, idempotent: false, open_world: true },
            meta: Some(super::readers::size_hint(&self.desk)),
        }
    }

    fn contract(&self) -> ReplayContract {
        ReplayContract::ProbeRequired
    }

    fn tasks(&self) -> TaskSupport {
        // A task is one job.
        TaskSupport::OptionalWithout("agents")
    }

    fn waits(&self) -> bool {
        true
    }

    fn deadline(&self) -> Option<Duration> {
        // The soft deadline bounds it; this one is for a call that does not come so far.
        Some(Duration::from_secs(WAIT_MOST + 60))
    }

    fn call(&self, call: ToolCall) -> ToolFuture {
        let desk = self.desk.of(Caller::Client(call.invocation.session)).map(Cow::into_owned);
        Box::pin(async move { consult(&desk?, call).await })
    }

    fn probe(&self, invocation: InvocationId) -> ProbeFuture {
        let jobs = self.desk.jobs.clone();
        Box::pin(async move {
            // One job, or one for each agent. Another attempt joins those that are there and has the others accepted.
            let parts = several::parts(invocation, *SEVERAL.end());
            for asked in std::iter::once(invocation).chain(parts) {
                match jobs.find_invocation(asked).await {
                    Ok(Some(_)) => return Evidence::Accepted,
                    Ok(None) => {}
                    Err(fault) => {
                        tracing::warn!(%fault, "the store could not say whether a consult was accepted");
                        return Evidence::Unknown;
                    }
                }
            }
            Evidence::NotAccepted
        })
    }
}

async fn consult(desk: &Consults, call: ToolCall) -> Result<ToolReply, Fault> {
    let client = call.client.name();
    let client = client.as_deref();
    let caller = Caller::Client(call.invocation.session);
    let (mut each, shape) = desk.read_each(&call.arguments, client, caller).await?;
    if each.len() > 1 {
        return Ok(several::consult(desk, &call, &each, shape).await);
    }
    let options = each.remove(0);
    if let (Placement::Fleet | Placement::Clone, Some(fleet)) = (options.placement, &desk.fleet) {
        return placed::consult(desk, fleet, &call, options, shape).await;
    }
    let job = desk.job(&options, Some(call.invocation));
    let caller = (!options.background).then_some(call.invocation);
    let accepted = desk.jobs.accept(job, caller).await?;
    let mut record = accepted.record;
    // Another attempt at the same call joins its own job, which is nothing to be told.
    let joined = accepted.joined && options.is_keyed_by_caller() && call.evidence.is_none();
    if record.state.is_terminal() {
        let context = Context { joined, ..desk.context(&record, None).await };
        return Ok(reply::job(&record, &context, shape));
    }
    let id = record.id;
    let mut follow = desk.jobs.follow(id).await.map_err(|fault| fault.job(id))?;
    if options.background {
        if record.mode == JobMode::Sync {
            // It joined a job somebody else waits for; from now on it must not depend on them.
            hand_over(desk, record.id).await?;
            record.mode = JobMode::Background;
        }
        let context = desk.context(&record, Some(&follow)).await;
        return Ok(reply::job(&record, &context, shape));
    }
    let (wait, gave_up_after) = desk.wait(options.wait, client);
    // An attempt after a lost worker waits for the rest only; a caller who joins another's job waits its own time.
    let again = call.evidence.is_some();
    let waited = Duration::from_millis(if again { UnixMillis::now().since(record.accepted_at) } else { 0 });
    let began = Instant::now().checked_sub(waited).unwrap_or_else(Instant::now);
    let mut watch = Watch::new(&call, desk, began);
    let over = watch.until(&mut follow, wait.saturating_sub(waited), Until::Finished).await;
    match over.map_err(|fault| fault.job(id))? {
        Waited::Over(record) => {
            let context = Context { joined, ..desk.context(&record, None).await };
            Ok(reply::job(&record, &context, shape))
        }
        Waited::Unstored(record) => Ok(unstored(desk, &record, shape).await),
        Waited::Lapsed => {
            hand_over(desk, id).await?;
            let record = desk.jobs.record(id).await.map_err(|fault| fault.job(id))?;
            if record.state.is_terminal() {
                return Ok(finished(desk, &record, shape).await);
            }
            let context = Context { handed_over: true, gave_up_after, ..desk.context(&record, Some(&follow)).await };
            Ok(reply::job(&record, &context, shape))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_the_directory_is_said_in_one_place() {
        let schema = crate::tools::readers::schema::<ConsultArguments>();
        assert_eq!(schema.pointer("/properties/cwd/description").and_then(serde_json::Value::as_str), Some(CWD_TOLD));
    }
}
