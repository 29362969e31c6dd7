//! How a job of the fleet is seen from here: by the call that waits for it, by who reads it, by who ends it.
//!
//! Owns: how long is waited, and what is told of the machine. May not know: what such a job is for the queue, where the queue is.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use super::placing::{PlaceAsk, PlacedJob, Placing};
use super::{asked, home};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{ChainId, FleetJobId, JobId};
use crate::fleet::{FleetCancel, FleetState, FleetView};
use crate::jobs::fleet_runs::local;
use crate::jobs::{ConsultRequest, JobMode, JobOutcome, JobRecord, JobState};
use crate::tools::consult::{Caller, ConsultOptions, Consults};
use crate::tools::reply::{self, Context, MachineTold, Shape};
use crate::tools::{ToolCall, ToolReply};

/// How often who waits is told how the job stands, where that is wanted.
const LOOKS: Duration = Duration::from_secs(1);

/// What asks the fleet, on the heap: hardly a call does, and each would have room for it.
pub type LookFuture<'a, T> = BoxFuture<'a, Result<T, Fault>>;

/// A job of the fleet as its own machine would tell it, and what is told beside that.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The job. What is not known here is left out.
    pub record: JobRecord,
    /// Its machine, why that one, and what it waits for.
    pub context: Context,
}

/// A consult that was put into the queue by whoever runs this program.
pub struct Asking<'a> {
    desk: &'a Consults,
    fleet: &'a Placing,
    job: FleetJobId,
    asked: Asked,
    /// How it stood when it was looked at last.
    seen: Option<FleetView>,
}

impl<'a> Asking<'a> {
    /// Puts a consult into the queue. Nobody ends it but by [`end`], or [`Asking::end`].
    ///
    /// # Errors
    ///
    /// As [`Placing::place`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not undo it.
    pub async fn begin(desk: &'a Consults, options: ConsultOptions) -> Result<Self, Fault> {
        let fleet = desk.fleet.as_ref().ok_or_else(no_fleet)?;
        let options = asked::with_commit(desk, options, Caller::Owner).await?;
        let placed = fleet.place(PlaceAsk { options: options.clone(), call: None }).await?;
        let mode = if options.background { JobMode::Background } else { JobMode::Sync };
        Ok(Self { desk, fleet, job: placed.job, asked: Asked::for_it(options, placed, mode), seen: None })
    }

    /// Its id.
    #[must_use]
    pub fn job(&self) -> JobId {
        local(self.job)
    }

    /// What it waits for or where it is, when it was looked at last.
    #[must_use]
    pub fn phase(&self) -> String {
        let tied = self.asked.tied == Some(true);
        let said = self.seen.as_ref().map(|view| phase(view, tied, self.fleet.machine()));
        said.unwrap_or_else(|| "put into the fleet's queue".to_owned())
    }

    /// Looks how it stands; waits for its end a moment. Whether it is over.
    ///
    /// # Errors
    ///
    /// `store_unavailable`, `unknown_job`.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn looked(&mut self) -> Result<bool, Fault> {
        let most = if self.seen.is_some() { LOOKS } else { Duration::ZERO };
        let view = self.fleet.view(self.job, most).await?.ok_or_else(gone)?;
        let over = view.state.is_terminal();
        self.seen = Some(view);
        Ok(over)
    }

    /// The job as it was seen last.
    ///
    /// # Errors
    ///
    /// It was never looked at, and is not to be seen now.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn told(&mut self) -> Result<Seen, Fault> {
        if self.seen.is_none() {
            self.looked().await?;
        }
        let view = self.seen.as_ref().ok_or_else(gone)?;
        Ok(self.asked.seen(self.desk, self.fleet, view, false).await)
    }

    /// Has it ended, and waits for that.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    ///
    /// # Cancel safety
    ///
    /// Safe; what was asked of its machine stays asked.
    pub async fn end(&mut self) -> Result<(), Fault> {
        let _ = self.fleet.cancel(self.job).await?;
        while !self.looked().await? {}
        Ok(())
    }
}

/// How a job stands that this machine's store does not have, when it is over or after so long. `None` where the fleet has none either,
/// or there is no fleet.
///
/// # Errors
///
/// `store_unavailable`; `invalid_input` where its caller may not look into its directory.
///
/// # Cancel safety
///
/// Safe.
pub fn see(desk: &Consults, job: JobId, caller: Caller, most: Duration) -> LookFuture<'_, Option<Seen>> {
    Box::pin(async move {
        let Some(fleet) = &desk.fleet else { return Ok(None) };
        let Some(asked) = allowed(desk, fleet, job, caller).await? else { return Ok(None) };
        let view = fleet.view(job.in_fleet(), most).await?.ok_or_else(gone)?;
        Ok(Some(asked.seen(desk, fleet, &view, false).await))
    })
}

/// Ends such a job, and waits so long for its end. How it stands then, and how it stood where it was over already.
///
/// # Errors
///
/// As [`see`].
///
/// # Cancel safety
///
/// Safe; what was asked of its machine stays asked.
pub fn end(
    desk: &Consults,
    job: JobId,
    caller: Caller,
    most: Duration,
) -> LookFuture<'_, Option<(JobRecord, Option<JobState>)>> {
    Box::pin(async move {
        let Some(fleet) = &desk.fleet else { return Ok(None) };
        let Some(asked) = allowed(desk, fleet, job, caller).await? else { return Ok(None) };
        let was = match fleet.cancel(job.in_fleet()).await? {
            FleetCancel::Over { state } => Some(of_state(state)),
            FleetCancel::Ended | FleetCancel::Asked => None,
            FleetCancel::NoJob => return Ok(None),
        };
        let most = if was.is_none() { most } else { Duration::ZERO };
        let view = fleet.view(job.in_fleet(), most).await?.ok_or_else(gone)?;
        Ok(Some((asked.record(&view), was)))
    })
}

/// Asks the fleet for a call, and waits.
pub(in crate::tools) fn consult<'a>(
    desk: &'a Consults,
    fleet: &'a Placing,
    call: &'a ToolCall,
    options: ConsultOptions,
    shape: Shape,
) -> LookFuture<'a, ToolReply> {
    Box::pin(async move {
        let options = asked::with_commit(desk, options, Caller::Client(call.invocation.session)).await?;
        let placed = fleet.place(PlaceAsk { options: options.clone(), call: Some(call.invocation) }).await?;
        let job = placed.job;
        let keyed = options.is_keyed_by_caller() && call.evidence.is_none();
        let (most, _) = desk.wait(options.wait, call.client.name().as_deref());
        let most = if options.background { Duration::ZERO } else { most };
        let waits = !options.background;
        let mut asked = Asked::for_it(options, placed, JobMode::Background);
        let view = watched(desk, fleet, call, &asked, job, most).await;
        if waits {
            // Whatever comes of the reply: the job is over, or goes on in the background.
            fleet.settle(call.invocation).await;
        }
        let view = view.map_err(|fault| fault.job(local(job)))?;
        if waits && view.state.is_terminal() {
            asked.mode = JobMode::Sync;
        }
        let seen = asked.seen(desk, fleet, &view, waits).await;
        let joined = placed.joined && keyed && seen.record.state.is_terminal();
        Ok(reply::job(&seen.record, &Context { joined, ..seen.context }, shape))
    })
}

/// The reply about a job that this machine's store does not have and the fleet does; `None` where the fleet has none either.
pub(in crate::tools) fn read<'a>(
    desk: &'a Consults,
    call: &'a ToolCall,
    job: JobId,
    caller: Caller,
    most: Duration,
    shape: Shape,
) -> LookFuture<'a, Option<ToolReply>> {
    Box::pin(async move {
        let Some(fleet) = &desk.fleet else { return Ok(None) };
        let Some(asked) = allowed(desk, fleet, job, caller).await? else { return Ok(None) };
        let view = watched(desk, fleet, call, &asked, job.in_fleet(), most).await.map_err(|fault| fault.job(job))?;
        let seen = asked.seen(desk, fleet, &view, false).await;
        Ok(Some(reply::job(&seen.record, &seen.context, shape)))
    })
}

async fn allowed(desk: &Consults, fleet: &Placing, job: JobId, caller: Caller) -> Result<Option<Asked>, Fault> {
    let Some(view) = fleet.view(job.in_fleet(), Duration::ZERO).await? else { return Ok(None) };
    let workspace = home::path_of(&view.workspace);
    let asked = Asked { request: None, workspace, mode: JobMode::Background, tied: None };
    desk.check_job(&asked.record(&view), caller).await?;
    Ok(Some(asked))
}

/// Waits until a job is over, or for so long, and reports what it waits for or where it is.
async fn watched(
    desk: &Consults,
    fleet: &Placing,
    call: &ToolCall,
    asked: &Asked,
    job: FleetJobId,
    most: Duration,
) -> Result<FleetView, Fault> {
    let (began, profile) = (Instant::now(), desk.clients.profile(call.client.name().as_deref()));
    let mut ticks = tokio::time::interval(profile.progress);
    ticks.reset();
    let waiting = fleet.view(job, most);
    tokio::pin!(waiting);
    loop {
        tokio::select! {
            view = &mut waiting => return view?.ok_or_else(gone),
            _ = ticks.tick(), if call.progress.is_wanted() => {
                let tied = asked.tied == Some(true);
                let stands = match fleet.view(job, Duration::ZERO).await {
                    Ok(Some(view)) => phase(&view, tied, fleet.machine()),
                    // What keeps it from being seen is told when the wait ends.
                    Ok(None) | Err(_) => "in the fleet".to_owned(),
                };
                let elapsed = began.elapsed();
                call.progress.report(elapsed.as_secs_f64().round(), format!("{stands}, {} s", elapsed.as_secs()));
            }
        }
    }
}

fn gone() -> Fault {
    Fault::new(FaultCode::UnknownJob, "the fleet has no such job any more.")
}

fn no_fleet() -> Fault {
    Fault::new(FaultCode::InvalidInput, "no fleet is configured (`fleet` of the configuration).")
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
#[derive(Debug)]
struct Asked {
    request: Option<ConsultRequest>,
    /// The directory here.
    workspace: PathBuf,
    mode: JobMode,
    /// Whether it may run on this machine only; where that is known.
    tied: Option<bool>,
}

impl Asked {
    fn for_it(options: ConsultOptions, placed: PlacedJob, mode: JobMode) -> Self {
        let request = ConsultRequest { cwd: options.workspace.clone(), ..options.request };
        Self { request: Some(request), workspace: options.workspace, mode, tied: Some(placed.tied) }
    }

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
            accepted_at: view.accepted,
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
            trace: None,
        }
    }

    async fn seen(&self, desk: &Consults, fleet: &Placing, view: &FleetView, handed_over: bool) -> Seen {
        let record = self.record(view);
        let over = record.state.is_terminal();
        let phase = (!over).then(|| phase(view, self.tied == Some(true), fleet.machine()));
        let placed = Some(self.machine(fleet, view));
        let plain = desk.context(&record, None).await;
        let context = Context { phase, placed, handed_over: handed_over && !over, place: None, ..plain };
        Seen { record, context }
    }

    /// Which machine it was or is, and why that one.
    fn machine(&self, fleet: &Placing, view: &FleetView) -> MachineTold {
        let own = view.host_name.as_deref() == Some(fleet.machine());
        let machine = view.host_name.clone();
        if let Some(of) = view.outcome.as_ref().and_then(|outcome| outcome.clone_of.as_ref()) {
            let because = format!("it cloned commit {} of {}; {}", of.commit, of.remote, of.changes.told());
            return MachineTold { machine, because };
        }
        if let Some(target) = view.outcome.as_ref().and_then(|outcome| outcome.machine.as_ref()) {
            let because = format!("it reaches the machine of the workspace by its exec server, {target}");
            return MachineTold { machine, because };
        }
        if view.may_clone && !view.state.is_terminal() {
            let whether = match machine {
                None => "it waits for a machine of the fleet that has the same workspace or may clone",
                Some(_) => "it has the same workspace, or clones",
            };
            let what = self.request.as_ref().and_then(|request| request.clone_of.as_ref()).map_or_else(
                || "its commit".to_owned(),
                |of| format!("commit {} of {}; in a clone, {}", of.commit, of.remote, of.changes.told()),
            );
            return MachineTold { machine, because: format!("{whether} {what}") };
        }
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
        MachineTold { machine, because }
    }
}

/// What such a job waits for, or where it is.
fn phase(view: &FleetView, tied: bool, own: &str) -> String {
    let host = view.host_name.as_deref().unwrap_or("a machine of the fleet");
    match view.state {
        FleetState::Queued if tied => format!("waiting for host {own}"),
        FleetState::Queued if view.may_clone => {
            "waiting for a host of the fleet with this workspace, or one that may clone it, and a free place".to_owned()
        }
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
