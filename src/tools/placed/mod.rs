//! A consult that any machine of the fleet may answer that has its workspace.
//!
//! Owns: what such a job is for the queue, how its caller waits, what the reply says of the machine, and how a job of another machine
//! becomes one of this machine's own. May not know: how claims are made, runners.
//!
//! Accepting is idempotent by key, the caller's or one made of the invocation: another attempt at the same call joins the job.

mod home;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::home::Home;
use super::consult::{Caller, ConsultOptions, Consults};
use super::reply::{self, Context, MachineTold, Shape};
use super::{ToolCall, ToolReply};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{ChainId, FleetJobId, InvocationId, JobId, UnixMillis};
use crate::fleet::labels::AgentLabel;
use crate::fleet::{
    ClaimedJob, Fleet, FleetAccept, FleetCancel, FleetError, FleetState, FleetView, Labels, NewFleetJob,
};
use crate::jobs::fleet_runs::local;
use crate::jobs::{ConsultRequest, JobMode, JobOutcome, JobRecord, JobState, NewJob};

/// What begins the key of a job whose caller gave none: its call is asked again by the same.
const KEY_OF_CALL: &str = "phone-opus-call:";

/// Whose usage a request is, where another machine can tell; else empty.
pub type AccountOf = Arc<dyn Fn(&ConsultRequest) -> String + Send + Sync>;

/// This host's side of a fleet. Cheap to clone.
#[derive(Clone)]
pub struct FleetDesk {
    fleet: Arc<dyn Fleet>,
    home: Home,
    account: AccountOf,
    accepts: Arc<[String]>,
    /// What does not change of the labels.
    labels: Labels,
}

impl fmt::Debug for FleetDesk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetDesk").field("home", &self.home).finish_non_exhaustive()
    }
}

/// What a host says of itself.
pub struct FleetHostSaid {
    /// The machine's name.
    pub name: String,
    /// What its state directory is called.
    pub state_id: String,
    /// What it can do.
    pub labels: Labels,
}

impl FleetDesk {
    /// One over this queue, with these agents, paid for in this way.
    #[must_use]
    pub fn new(
        fleet: Arc<dyn Fleet>,
        home: Home,
        account: AccountOf,
        agents: impl Iterator<Item = String>,
        config: &crate::config::Config,
    ) -> Self {
        let agent = |name: String| {
            let request = ConsultRequest { billing: config.billing, ..ConsultRequest::new("").agent(&name) };
            let accounts = Some(account(&request)).filter(|account| !account.is_empty());
            let billing = config.billing.as_str().to_owned();
            (name, AgentLabel { version: String::new(), accounts: accounts.into_iter().collect(), billing })
        };
        let labels = Labels {
            os: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            // What runs elsewhere is its site's.
            agents: agents.filter(|name| !config.agents.contains_key(name)).map(agent).collect(),
            tags: config.fleet_labels.clone(),
            ..Labels::default()
        };
        Self { fleet, home, account, accepts: config.fleet_accept.clone().into(), labels }
    }

    /// The queue.
    #[must_use]
    pub fn fleet(&self) -> &Arc<dyn Fleet> {
        &self.fleet
    }

    /// Users whose jobs it takes beside those of its own.
    #[must_use]
    pub fn accepts(&self) -> &[String] {
        &self.accepts
    }

    /// What this host says of itself.
    ///
    /// # Errors
    ///
    /// The state directory cannot be used.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn said(&self, slots: usize) -> Result<FleetHostSaid, FleetError> {
        let (state_id, workspaces) =
            self.home.told().await.map_err(|fault| FleetError::Unavailable { detail: fault.detail })?;
        let slots = u32::try_from(slots).unwrap_or(crate::fleet::labels::SLOTS);
        let labels = home::with_workspaces(Labels { slots, ..self.labels.clone() }, workspaces);
        Ok(FleetHostSaid { name: self.home.name.clone(), state_id, labels })
    }
}

/// The job of this machine's store that a claimed job becomes. It is checked as a client's consult is, and looks into a
/// workspace of this machine.
///
/// # Errors
///
/// What is wrong with it.
///
/// # Cancel safety
///
/// Safe: nothing is changed.
pub async fn own_job(desk: &Consults, fleet: &FleetDesk, claimed: &ClaimedJob) -> Result<NewJob, Fault> {
    let mut request = claimed.request.clone();
    if request.machine.is_some() || request.billing != desk.config.billing {
        let detail = "the job is paid for in another way than this machine's, or names a machine of its own.";
        return Err(Fault::new(FaultCode::InvalidInput, detail));
    }
    let (cwd, root) = fleet.home.here(&claimed.workspace, request.cwd.clone()).await?;
    request.cwd = cwd;
    let mut options = desk.check(&request, JobMode::Background).await?;
    if !options.workspace.starts_with(&root) {
        return Err(Fault::new(FaultCode::InvalidInput, "the job's directory leads out of its workspace."));
    }
    options.request_key = Some(claimed.ticket.job.to_string());
    Ok(NewJob { id: local(claimed.ticket.job), given: None, ..desk.job(&options, None) })
}

/// Asks the fleet, and waits.
pub(super) async fn consult(
    desk: &Consults,
    fleet: &FleetDesk,
    call: &ToolCall,
    options: ConsultOptions,
    shape: Shape,
) -> Result<ToolReply, Fault> {
    let job = new_job(fleet, &options, call.invocation).await?;
    let tied = job.pin_state.is_some();
    let id = match fleet.fleet.accept(&job).await.map_err(|error| away(&error))? {
        FleetAccept::Inserted(id) | FleetAccept::Joined(id) => id,
        FleetAccept::Conflict(id) => {
            let detail = "`request_key` was used in this workspace for another consult; accepted: a key of its own.";
            return Err(Fault::new(FaultCode::RequestKeyConflict, detail).job(local(id)));
        }
        FleetAccept::QueueFull { queued } => {
            return Err(Fault::new(FaultCode::QueueFull, format!("{queued} jobs are waiting in the fleet already."))
                .hint("Wait for one of them, or ask with placement = local."));
        }
    };
    let (most, _) = desk.wait(options.wait, call.client.name().as_deref());
    let most = if options.background { Duration::ZERO } else { most };
    let view = watched(desk, fleet, call, id, most).await.map_err(|fault| fault.job(local(id)))?;
    let mode = if options.background || !view.state.is_terminal() { JobMode::Background } else { JobMode::Sync };
    let told = Asked { request: Some(job.request), workspace: options.workspace, mode, tied: Some(tied) };
    Ok(told.reply(desk, fleet, view, !options.background, shape).await)
}

/// The reply about a job that this machine's store does not have and the fleet does; `None` where the fleet has none either.
pub(super) async fn read(
    desk: &Consults,
    call: &ToolCall,
    job: JobId,
    caller: Caller,
    most: Duration,
    shape: Shape,
) -> Result<Option<ToolReply>, Fault> {
    let Some(fleet) = &desk.fleet else { return Ok(None) };
    let Some(asked) = allowed(desk, fleet, job, caller).await? else { return Ok(None) };
    let view = watched(desk, fleet, call, job.in_fleet(), most).await.map_err(|fault| fault.job(job))?;
    Ok(Some(asked.reply(desk, fleet, view, false, shape).await))
}

/// Cancels such a job; how it stands then, and how it stood where it was over already.
pub(super) async fn cancel(
    desk: &Consults,
    call: &ToolCall,
    job: JobId,
    caller: Caller,
    most: Duration,
) -> Result<Option<(JobRecord, Option<JobState>)>, Fault> {
    let Some(fleet) = &desk.fleet else { return Ok(None) };
    let Some(asked) = allowed(desk, fleet, job, caller).await? else { return Ok(None) };
    let was = match fleet.fleet.cancel(job.in_fleet()).await.map_err(|error| away(&error).job(job))? {
        FleetCancel::Over { state } => Some(of_state(state)),
        FleetCancel::Ended | FleetCancel::Asked => None,
        FleetCancel::NoJob => return Ok(None),
    };
    let most = if was.is_none() { most } else { Duration::ZERO };
    let view = watched(desk, fleet, call, job.in_fleet(), most).await.map_err(|fault| fault.job(job))?;
    Ok(Some((asked.record(&view), was)))
}

async fn allowed(desk: &Consults, fleet: &FleetDesk, job: JobId, caller: Caller) -> Result<Option<Asked>, Fault> {
    let view = fleet.fleet.wait(job.in_fleet(), Duration::ZERO).await.map_err(|error| away(&error).job(job))?;
    let Some(view) = view else { return Ok(None) };
    let workspace = home::path_of(&view.workspace);
    let asked = Asked { request: None, workspace, mode: JobMode::Background, tied: None };
    desk.check_job(&asked.record(&view), caller).await?;
    Ok(Some(asked))
}

async fn new_job(fleet: &FleetDesk, options: &ConsultOptions, call: InvocationId) -> Result<NewFleetJob, Fault> {
    // The agent's session lies in files of the machine that had it.
    let tied = options.request.session_id.is_some();
    let placed = fleet.home.place(options.workspace.clone(), tied).await?;
    let mut request = options.request.clone();
    request.cwd.clone_from(&options.workspace);
    let mut needs = placed.needs;
    let billing = request.billing.as_str().to_owned();
    needs.agents = BTreeMap::from([(request.agent.clone(), AgentLabel { billing, ..AgentLabel::default() })]);
    Ok(NewFleetJob {
        id: FleetJobId::random(),
        workspace: placed.workspace,
        request_key: options.request_key.clone().unwrap_or_else(|| format!("{KEY_OF_CALL}{call}")),
        account: (fleet.account)(&request),
        request,
        needs,
        pin_state: placed.pin_state,
    })
}

/// Waits until a job is over, or for so long, and reports progress.
async fn watched(
    desk: &Consults,
    fleet: &FleetDesk,
    call: &ToolCall,
    job: FleetJobId,
    most: Duration,
) -> Result<FleetView, Fault> {
    let (began, profile) = (Instant::now(), desk.clients.profile(call.client.name().as_deref()));
    let mut ticks = tokio::time::interval(profile.progress);
    ticks.reset();
    let mut waiting = fleet.fleet.wait(job, most);
    loop {
        tokio::select! {
            view = &mut waiting => {
                let gone = || Fault::new(FaultCode::UnknownJob, "the fleet has no such job any more.");
                return view.map_err(|error| away(&error))?.ok_or_else(gone);
            }
            _ = ticks.tick(), if call.progress.is_wanted() => {
                let elapsed = began.elapsed();
                call.progress.report(elapsed.as_secs_f64().round(), format!("in the fleet, {} s", elapsed.as_secs()));
            }
        }
    }
}

fn away(error: &FleetError) -> Fault {
    let hint = match error {
        FleetError::Bad(_) | FleetError::Settings { .. } | FleetError::TooOld { .. } => "Ask with placement = local.",
        FleetError::Unavailable { .. } | FleetError::Unsure { .. } => {
            "Ask again with the same `request_key`, which joins what was accepted; or ask with placement = local."
        }
    };
    error.fault().hint(hint)
}

const fn of_state(state: FleetState) -> JobState {
    match state {
        FleetState::Queued | FleetState::Claimed => JobState::Queued,
        FleetState::Running => JobState::Running,
        FleetState::Succeeded => JobState::Succeeded,
        FleetState::Failed => JobState::Failed,
        FleetState::Cancelled => JobState::Cancelled,
        FleetState::Interrupted => JobState::Interrupted,
    }
}

/// What is known here of a job of the fleet beside the fleet's own view.
struct Asked {
    request: Option<ConsultRequest>,
    /// The directory here.
    workspace: PathBuf,
    mode: JobMode,
    /// Whether it may run on this machine only; where that is known.
    tied: Option<bool>,
}

impl Asked {
    /// As a job of this machine would be told.
    fn record(&self, view: &FleetView) -> JobRecord {
        let request = || ConsultRequest::new("").agent(&view.agent).cwd(&self.workspace);
        JobRecord {
            id: local(view.job),
            sequence: 0,
            invocation: None,
            request_key: None,
            workspace: self.workspace.clone(),
            mode: self.mode,
            state: of_state(view.state),
            request: self.request.clone().unwrap_or_else(request),
            chain: ChainId::random(),
            depth: 0,
            accepted_at: UnixMillis::now(),
            started_at: None,
            finished_at: None,
            cancel_requested: None,
            process: None,
            outcome: view.state.is_terminal().then(|| outcome(view)),
            read_at: None,
            last_event: 0,
            waiter: None,
            environment: None,
            host: None,
        }
    }

    async fn reply(
        self,
        desk: &Consults,
        fleet: &FleetDesk,
        view: FleetView,
        handed_over: bool,
        shape: Shape,
    ) -> ToolReply {
        let record = self.record(&view);
        let told = self.machine(fleet, &view);
        let over = record.state.is_terminal();
        let phase = (!over).then(|| phase(&view, self.tied == Some(true), &fleet.home.name));
        let plain = desk.context(&record, None).await;
        let context = Context { phase, placed: Some(told), handed_over: handed_over && !over, place: None, ..plain };
        reply::job(&record, &context, shape)
    }

    /// Which machine it was or is, and why that one.
    fn machine(&self, fleet: &FleetDesk, view: &FleetView) -> MachineTold {
        let own = view.host_name.as_deref() == Some(&fleet.home.name);
        let because = match (&view.host_name, self.tied) {
            (None, Some(true)) => "it waits for this machine, which alone has the workspace or the session".to_owned(),
            (None, _) => "it waits for a machine of the fleet that has the same workspace".to_owned(),
            (Some(_), Some(true)) => "it alone has the workspace or the session".to_owned(),
            (Some(_), _) if own => "it has the workspace".to_owned(),
            (Some(_), _) if view.workspace.starts_with("dev:") => {
                "it has the same directory, proven by the kernel".to_owned()
            }
            (Some(_), _) => "it has the same file system mounted, proven by its inodes".to_owned(),
        };
        MachineTold { machine: view.host_name.clone(), because }
    }
}

/// What such a job waits for, or where it is.
fn phase(view: &FleetView, tied: bool, own: &str) -> String {
    let host = view.host_name.as_deref().unwrap_or("a machine of the fleet");
    match view.state {
        FleetState::Queued if tied => format!("waiting for host {own}"),
        FleetState::Queued => "waiting for a host of the fleet with this workspace and a free place".to_owned(),
        FleetState::Claimed => format!("taken by host {host}"),
        _ if view.cancel_requested => format!("to be cancelled on host {host}"),
        _ => format!("running on host {host}"),
    }
}

/// How it ended; what came too late is told beside an end that nobody told in time.
fn outcome(view: &FleetView) -> JobOutcome {
    if let Some(outcome) = &view.outcome {
        return outcome.clone();
    }
    let host = view.host_name.as_deref().unwrap_or("that had it");
    let fault = match view.state {
        FleetState::Cancelled => Fault::new(FaultCode::Cancelled, "the job was cancelled before it began."),
        _ => Fault::new(
            FaultCode::RunnerLost,
            format!("host {host} is gone, and whether the agent answered is not known."),
        )
        .hint("Nothing of it is run again. What its host tells later is kept: read the job again."),
    };
    match view.late.last() {
        Some(late) => JobOutcome {
            fault: Some(Fault::new(fault.code, format!("{} What it told later stands here.", fault.detail))),
            ..late.outcome.clone()
        },
        None => JobOutcome { fault: Some(fault), ..JobOutcome::default() },
    }
}
