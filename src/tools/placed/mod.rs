//! A consult that any machine of the fleet may answer that has its workspace, or a clone of its commit where the caller wants that.
//!
//! Owns: what such a job is for the queue, how its caller waits, what the reply says of the machine, and how a job of another machine
//! becomes one of this machine's own. May not know: how claims are made, runners.
//!
//! Accepting is idempotent by key, the caller's or one made of the invocation: another attempt at the same call joins the job.
//!
//! Reading order: [`placing`] for what a consult asks of a fleet, this file for who answers at a host, [`waiters`] for whose last
//! caller is gone, [`look`] for how a job is seen.

mod asked;
mod clones;
mod fetch;
mod home;
pub mod look;
pub mod placing;
mod reached;
pub mod waiters;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use self::clones::Clones;
pub use self::home::{DirectorySeen, Home};
pub(super) use self::look::{consult, end, read};
use self::placing::{PlaceAsk, PlacedJob, PlacingBackend};
use self::reached::Reached;
pub use self::reached::WorkspaceThere;
use self::waiters::{Waiters, WaitersEvent};
use super::consult::{ConsultOptions, Consults, look_at};
use crate::agents::AgentSites;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{FleetJobId, InvocationId, JobId};
use crate::base::trace::{JobTrace, TraceContext};
use crate::fleet::labels::AgentLabel;
use crate::fleet::{ClaimedJob, Fleet, FleetAccept, FleetCancel, FleetError, FleetView, Labels, NewFleetJob, POLL};
use crate::jobs::fleet_runs::local;
use crate::jobs::store::StoreHandle;
use crate::jobs::{ConsultRequest, JobMode, NewJob};
use crate::places::{self, Places};

/// What begins the key of a job whose caller gave none: its call is asked again by the same.
const KEY_OF_CALL: &str = "phone-opus-call:";

/// How often a job without a caller is cancelled in vain because the queue does not have it: its accept may be on its way.
const UNKNOWN_MOST: usize = 3;

/// Whose usage a request is, where another machine can tell; else empty.
pub type AccountOf = Arc<dyn Fn(&ConsultRequest) -> String + Send + Sync>;

/// What is above a job in the trace of its call, by its invocation.
pub type AskersTrace = Arc<dyn Fn(Option<InvocationId>, FleetJobId) -> Option<TraceContext> + Send + Sync>;

/// This host's side of a fleet. Cheap to clone.
#[derive(Clone)]
pub struct FleetDesk {
    fleet: Arc<dyn Fleet>,
    home: Home,
    account: AccountOf,
    accepts: Arc<[String]>,
    clones: Clones,
    traces: AskersTrace,
    /// Agents on machines that are reached by an exec server.
    sites: AgentSites,
    billing: String,
    reached: Reached,
    /// What does not change of the labels.
    labels: Labels,
    waiters: Waiters,
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
        waiters: Waiters,
        traces: AskersTrace,
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
            clones: config.fleet_clone.clone(),
            ..Labels::default()
        };
        let clones = Clones::new(home.dir.clone(), config);
        let sites = config.agents.iter().filter(|(_, site)| !site.is_own());
        let sites = sites.map(|(name, site)| (name.clone(), site.clone())).collect();
        let (accepts, billing) = (config.fleet_accept.clone().into(), config.billing.as_str().to_owned());
        let reached = Reached::default();
        Self { fleet, home, account, accepts, clones, traces, sites, billing, reached, labels, waiters }
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

    /// Lets go of the clones an earlier incarnation looked after: those whose jobs run go on being followed, the others are swept.
    pub fn begin_anew(&self) {
        self.clones.let_go();
    }

    /// Agents on machines that are reached by an exec server, by the names callers use.
    #[must_use]
    pub const fn sites(&self) -> &AgentSites {
        &self.sites
    }

    /// Takes note of the workspaces the machine of such an agent was seen to have; none where it was not reached.
    pub fn note_site(&self, name: &str, workspaces: Vec<WorkspaceThere>) {
        self.reached.note(name, workspaces);
    }

    /// Removes the clone of a job that is over.
    ///
    /// # Cancel safety
    ///
    /// Safe: what is left is swept.
    pub async fn remove_clone(&self, job: JobId) {
        self.clones.remove(job).await;
    }

    /// Removes clones that hosts of this machine have left.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn sweep_clones(&self, store: &StoreHandle) {
        self.clones.sweep(store).await;
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
        let reach = self.reached.labels(&self.sites, &self.billing);
        let labels = home::with_workspaces(Labels { slots, reach, ..self.labels.clone() }, workspaces);
        Ok(FleetHostSaid { name: self.home.name.clone(), state_id, labels })
    }

    /// Its callers changed; the jobs that are to be cancelled.
    #[must_use]
    pub fn callers_changed(&self, event: WaitersEvent) -> Vec<FleetJobId> {
        self.waiters.core().step(event)
    }

    /// Cancels a job whose last caller is gone; while the database is away, again and again.
    ///
    /// # Cancel safety
    ///
    /// Safe: a job that was not cancelled goes on.
    pub async fn cancel_for_lost_caller(self, job: FleetJobId) {
        let mut unknown = 0;
        loop {
            match self.fleet.cancel(job).await {
                Ok(FleetCancel::NoJob) if unknown < UNKNOWN_MOST => unknown += 1,
                Ok(_) => return,
                Err(error) => tracing::debug!(%error, %job, "a job without a caller is cancelled later"),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn put(&self, options: &ConsultOptions, call: Option<InvocationId>) -> Result<PlacedJob, Fault> {
        let mut job = new_job(self, options, call).await?;
        let tied = job.pin_state.is_some() && job.needs.clone.is_empty();
        let waits = call.filter(|_| !options.background);
        if let Some(call) = waits {
            // Before it is asked: who is withdrawn meanwhile is heard of by this id.
            let withdrawn =
                || Fault::new(FaultCode::CallerLost, "the call was withdrawn before the consult was accepted.");
            job.id = self.waiters.core().asks(call, job.id).ok_or_else(withdrawn)?;
        }
        job.trace = (self.traces)(call, job.id);
        let accepted = self.accepted(&job).await;
        match (&accepted, waits) {
            (Ok((id, true)), Some(call)) => self.waiters.core().joined(call, *id, !options.is_keyed_by_caller()),
            // Somebody may wait for it whom it must not depend on any more.
            (Ok((id, _)), None) => self.waiters.core().background(*id),
            (Err(_), Some(call)) => self.waiters.core().settled(call),
            _ => {}
        }
        accepted.map(|(job, joined)| PlacedJob { job, tied, joined })
    }

    /// The id a job has in the queue, and whether it was there before.
    async fn accepted(&self, job: &NewFleetJob) -> Result<(FleetJobId, bool), Fault> {
        match self.fleet.accept(job).await.map_err(|error| away(&error))? {
            FleetAccept::Inserted(id) => Ok((id, false)),
            FleetAccept::Joined(id) => Ok((id, true)),
            FleetAccept::Conflict(id) => {
                let detail =
                    "`request_key` was used in this workspace for another consult; accepted: a key of its own.";
                Err(Fault::new(FaultCode::RequestKeyConflict, detail).job(local(id)))
            }
            FleetAccept::Hidden => {
                let detail = "`request_key` was used in this workspace by another user of the fleet; accepted: a key of its own.";
                Err(Fault::new(FaultCode::RequestKeyConflict, detail))
            }
            FleetAccept::QueueFull { queued } => {
                Err(Fault::new(FaultCode::QueueFull, format!("{queued} jobs are waiting in the fleet already."))
                    .hint("Wait for one of them, or ask with placement = local."))
            }
        }
    }
}

impl PlacingBackend for FleetDesk {
    fn machine(&self) -> &str {
        &self.home.name
    }

    fn place(&self, PlaceAsk { options, call }: PlaceAsk) -> BoxFuture<'_, Result<PlacedJob, Fault>> {
        Box::pin(async move { self.put(&options, call).await })
    }

    fn view(&self, job: FleetJobId, most: Duration) -> BoxFuture<'_, Result<Option<FleetView>, Fault>> {
        Box::pin(async move { self.fleet.wait(job, most).await.map_err(|error| away(&error).job(local(job))) })
    }

    fn settle(&self, call: InvocationId) -> BoxFuture<'_, ()> {
        self.waiters.core().settled(call);
        Box::pin(std::future::ready(()))
    }

    fn cancel(&self, job: FleetJobId) -> BoxFuture<'_, Result<FleetCancel, Fault>> {
        Box::pin(async move { self.fleet.cancel(job).await.map_err(|error| away(&error).job(local(job))) })
    }
}

/// Makes what a claimed job needs before it may be started: a clone, where its caller wants one and its workspace is not here. A job
/// that is no longer this host's is ready as well: its start is refused.
///
/// # Errors
///
/// `workspace_unavailable`: why there is no clone.
///
/// # Cancel safety
///
/// May be dropped at any time: nothing of it is left.
pub async fn prepare(desk: &Consults, fleet: &FleetDesk, claimed: &ClaimedJob) -> Result<(), Fault> {
    let (Some(asked), request) = (&claimed.request.clone_of, &claimed.request) else { return Ok(()) };
    let here = fleet.home.here(&claimed.workspace, request.cwd.clone()).await.is_ok();
    if here || fleet.reached.find(&fleet.sites, &request.agent, &claimed.workspace, &request.cwd).is_some() {
        return Ok(());
    }
    if fleet.clones.tree(local(claimed.ticket.job)).is_some() {
        // Made before, and nobody heard of it.
        return Ok(());
    }
    let context = Arc::clone(desk.callers.host());
    let within = Duration::from_secs(claimed.request.timeout_s);
    tokio::select! {
        made = fleet.clones.make(local(claimed.ticket.job), asked, &context.environment, within) => made,
        () = taken_back(fleet, claimed) => Ok(()),
    }
}

/// Waits until a claimed job is over, or somebody else's.
async fn taken_back(fleet: &FleetDesk, claimed: &ClaimedJob) {
    loop {
        match fleet.fleet.wait(claimed.ticket.job, POLL).await {
            Ok(Some(view)) if !view.state.is_terminal() && view.host == Some(claimed.ticket.host) => {}
            Ok(_) => return,
            Err(_) => tokio::time::sleep(POLL).await,
        }
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
    let (desk, root) = match (fleet.clones.tree(local(claimed.ticket.job)), request.clone_of.take()) {
        (Some(tree), Some(of)) => {
            request.cwd = tree.join(&of.below);
            request.clone_of = Some(of.without_patch());
            let root = look_at(tree).await.map_err(|wrong| {
                Fault::new(FaultCode::WorkspaceUnavailable, format!("the clone it was to run in {wrong}."))
            })?;
            let places = Places { clone_tree: Some(root.clone()), ..Places::clone(&desk.places) };
            (Cow::Owned(Consults { places: Arc::new(places), ..desk.clone() }), root)
        }
        _ => match fleet.home.here(&claimed.workspace, request.cwd.clone()).await {
            Ok((cwd, root)) => {
                request.cwd = cwd;
                (Cow::Borrowed(desk), root)
            }
            Err(refused) => {
                let there = fleet.reached.find(&fleet.sites, &request.agent, &claimed.workspace, &request.cwd);
                let (agent, root, cwd) = there.ok_or(refused)?;
                let root = places::elsewhere(&agent, &root);
                (request.agent, request.cwd) = (agent, cwd);
                (Cow::Borrowed(desk), root)
            }
        },
    };
    let mut options = desk.check(&request, JobMode::Background).await?;
    if !options.workspace.starts_with(&root) {
        return Err(Fault::new(FaultCode::InvalidInput, "the job's directory leads out of its workspace."));
    }
    options.request_key = Some(claimed.ticket.job.to_string());
    // Whether its spans are told of is this machine's to say.
    let trace = claimed.trace.clone().map(|above| JobTrace::below(above, false));
    Ok(NewJob { id: local(claimed.ticket.job), given: None, trace, ..desk.job(&options, None) })
}

async fn new_job(
    fleet: &FleetDesk,
    options: &ConsultOptions,
    call: Option<InvocationId>,
) -> Result<NewFleetJob, Fault> {
    // The agent's session lies in files of the machine that had it.
    let tied = options.request.session_id.is_some();
    let placed = fleet.home.place(options.workspace.clone(), tied).await?;
    let mut request = options.request.clone();
    request.cwd.clone_from(&options.workspace);
    let mut needs = placed.needs;
    // Which commit that is was looked for where the call is.
    needs.clone = request.clone_of.as_ref().map(|of| of.remote.clone()).unwrap_or_default();
    let billing = request.billing.as_str().to_owned();
    needs.agents = BTreeMap::from([(request.agent.clone(), AgentLabel { billing, ..AgentLabel::default() })]);
    let id = FleetJobId::random();
    let own_key = || match call {
        Some(call) => format!("{KEY_OF_CALL}{call}"),
        // Nobody asks a second time.
        None => format!("{KEY_OF_CALL}{id}"),
    };
    Ok(NewFleetJob {
        id,
        workspace: placed.workspace,
        request_key: options.request_key.clone().unwrap_or_else(own_key),
        given: Some(options.named()),
        account: (fleet.account)(&request),
        request,
        needs,
        pin_state: placed.pin_state,
        trace: None,
    })
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
