//! Sessions of the embedding program itself: what a client has over a connection, without bytes in between.
//!
//! Owns: how one is opened, what is asked by it, and what follows when nobody waits any more. May not know: how a consult or a
//! tool is run, what a client may look into (`tools`).
//!
//! Such a session is one of the system's: it has a number, a context, a place among the connections and in health, and its end
//! is a session's end. Its connection has no bytes; it is held open by the handle. Tools are called by the session's mailbox, so
//! contract, replay and deadline are those of any call. A consult goes to the jobs at once, and no worker is needed for it.
//!
//! Invariants: (1) what is asked here passes the same checks as a client's arguments; (2) a wait that is dropped withdraws its
//! call, as a client's cancel does; (3) when the last handle is dropped the session is over, and its synchronous consults with it.

use std::future::{Future, IntoFuture};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::io::DuplexStream;
use tokio::sync::{Notify, oneshot};

use super::System;
use super::consult::{Consult, ConsultFault, ConsultOutcome};
use super::job_events::{Cursor, JobEvents};
use crate::actors::callers::{CallerContext, CallerOrigin, HostSide, context_of};
use crate::actors::connections::{Arrived, StreamKind};
use crate::actors::jobs::messages::JobsMsg;
use crate::actors::reply::SessionMailbox;
use crate::actors::session::{DirectCall, SessionEvent};
use crate::actors::sessions::messages::SessionsMsg;
use crate::agents::Environment;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{CallNumber, InvocationId, JobId, SessionNumber};
use crate::config::Settings;
use crate::daemon::control::Opening;
use crate::jobs::client::{Follow, News};
use crate::jobs::store::CancelState;
use crate::jobs::{Billing, JobMode, JobRecord};
use crate::protocol::session::{CallOutcome, ClientInfo};
use crate::tools::ToolReply;
use crate::tools::consult::{Caller, LOOK_BOUND, within};
use crate::tools::progress::{Latest, ProgressListener, ProgressSink};

/// Room in a stream that nobody writes to; its end is all that is ever told by it.
const NO_BYTES: usize = 1;

/// Tries of a store that is busy for a moment, and the time between them.
const TRIES: u32 = 4;
const BETWEEN_TRIES: Duration = Duration::from_millis(200);

/// Who opens a session, and what its consults get of it.
///
/// Without a directory, an environment or settings of its own a session has the system's. With any of them it is a caller's: its
/// consults run in its directory and with the allowlisted part of its environment, it may have what lies below that directory
/// looked into and nothing else, and nothing of it reaches another session.
///
/// ```
/// use phone_opus::{Billing, Client, Environment};
///
/// let environment: Environment = [("HOME", "/home/me"), ("PATH", "/usr/bin")].into_iter().collect();
/// let client = Client::new("my-runtime").cwd("/repository").environment(environment).agent("claude").billing(Billing::Subscription);
/// # let _ = client;
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    name: Arc<str>,
    cwd: Option<PathBuf>,
    environment: Option<Environment>,
    settings: Settings,
}

impl Client {
    /// A client that calls itself so; health and tools are told.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into().into(), cwd: None, environment: None, settings: Settings::default() }
    }

    /// The directory it works in: absolute and there. A project's configuration there holds for its consults.
    #[must_use]
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cwd = Some(dir.into());
        self
    }

    /// Its environment; the system's where it is not said. Agents get what is on the allowlist.
    #[must_use]
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }

    /// Who answers its consults that name nobody.
    #[must_use]
    pub fn agent(mut self, name: impl Into<String>) -> Self {
        self.settings.agent = Some(name.into());
        self
    }

    /// Where the money of its consults may come from.
    #[must_use]
    pub fn billing(mut self, billing: Billing) -> Self {
        self.settings.billing = Some(billing);
        self
    }

    /// Whether it has anything that is not the system's.
    fn brings_its_own(&self) -> bool {
        self.cwd.is_some() || self.environment.is_some() || self.settings != Settings::default()
    }
}

struct Opened {
    system: System,
    number: SessionNumber,
    client: Arc<str>,
    mailbox: SessionMailbox,
    /// Numbers of tools' calls; no line comes in that would take one.
    calls: AtomicU64,
    /// Numbers of consults.
    consults: AtomicU64,
    /// Its other end is the session's input: dropped, the client has hung up.
    _line: DuplexStream,
}

/// An open session of the embedding program. Clones are handles on the same one; the session is over when the last is dropped,
/// with whatever is open in it. A handle keeps its system, as a clone of [`System`] does.
///
/// ```no_run
/// # async fn ask(session: &phone_opus::Session) -> Result<(), Box<dyn std::error::Error>> {
/// use phone_opus::Consult;
///
/// let reply = session.call("charge", serde_json::json!({"cents": 500})).on_progress(|value, doing| println!("{value} {doing}")).await?;
/// let job = session.start(Consult::new("review this")).await?;        // it needs neither session nor process
/// if !session.job(job).await?.state.is_terminal() {
///     session.cancel(job).await?;
/// }
/// # let _ = reply;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Session {
    opened: Arc<Opened>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("number", &self.opened.number).finish_non_exhaustive()
    }
}

impl System {
    /// Opens a session for the embedding program: what an MCP client has over a connection, typed. Several may be open, and each
    /// runs what it is asked concurrently.
    ///
    /// # Errors
    ///
    /// `invalid_input`: something of the client cannot be had, all of it by name; `busy`: as many connections as there may be; the
    /// system is stopping.
    ///
    /// # Cancel safety
    ///
    /// Safe: no session is open.
    pub async fn open_session(&self, client: Client) -> Result<Session, Fault> {
        let name = Arc::clone(&client.name);
        let context = if client.brings_its_own() { Some(self.context_of(client).await?) } else { None };
        let (line, input) = tokio::io::duplex(NO_BYTES);
        let entrance = &self.inner.doors.entrance;
        let (number, _) = entrance.connections.open(Arrived {
            kind: StreamKind::Elsewhere,
            input: Box::new(input),
            sink: Box::new(tokio::io::sink()),
            ended: None,
            context,
            desk: None,
            resumes: None,
        })?;
        // When there is no supervisor at this moment, its next incarnation finds the connection.
        let _ = entrance.sessions.cast(SessionsMsg::Opened(number));
        let mailbox = entrance.connections.mailbox(number).ok_or_else(stopping)?;
        let _ = mailbox.send(SessionEvent::Embedded(Arc::clone(&name)));
        let opened = Opened {
            system: self.clone(),
            number,
            client: name,
            mailbox,
            calls: AtomicU64::new(1),
            consults: AtomicU64::new(InvocationId::EMBEDDERS),
            _line: line,
        };
        Ok(Session { opened: Arc::new(opened) })
    }

    /// What the sessions of a client get that brings something of its own: by the same rules as a caller's that opens its session
    /// over a socket.
    async fn context_of(&self, client: Client) -> Result<CallerContext, Fault> {
        let host = Arc::clone(self.inner.desk.consults.callers.host());
        let agents = self.inner.runner.as_ref().map(|runner| runner.agents().clone()).unwrap_or_default();
        let Some(cwd) = client.cwd.or_else(|| host.cwd.clone()) else {
            let detail = "`cwd` is missing, and the system has no directory of its own; accepted: the absolute path of an \
                          existing directory.";
            return Err(Fault::new(FaultCode::InvalidInput, detail));
        };
        let opening = Opening {
            protocol: 1,
            build: None,
            session: client.name.to_string(),
            cwd,
            environment: client.environment.unwrap_or_else(|| host.environment.clone()),
            key_withheld: false,
            nesting: host.nesting,
            catalog: None,
            settings: client.settings,
            host_settings: std::collections::BTreeMap::new(),
        };
        let look = move || {
            let side = HostSide::new(Arc::clone(&host.config), host.environment.clone(), agents);
            Ok(context_of(&opening, &side))
        };
        let looked = within(LOOK_BOUND, look).await;
        match looked {
            Ok(Ok(context)) => Ok(context),
            Ok(Err(refusal)) => Err(Fault::new(FaultCode::InvalidInput, format!("{}.", refusal.problems.join("; ")))),
            Err(wrong) => Err(Fault::new(FaultCode::InvalidInput, format!("`cwd` {wrong}."))),
        }
    }
}

fn stopping() -> Fault {
    Fault::new(FaultCode::Stopping, "the system is stopping.")
}

/// Withdraws a consult whose caller does not wait for its end.
struct Waiting<'a> {
    session: &'a Session,
    invocation: InvocationId,
    waits: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.waits {
            let _ = self.session.opened.system.inner.jobs.cast(JobsMsg::Withdrawn(self.invocation));
        }
    }
}

impl Session {
    /// Its number, as health and telemetry show it.
    #[must_use]
    #[doc(hidden)]
    pub fn number(&self) -> u64 {
        self.opened.number.0
    }

    fn caller(&self) -> Caller {
        Caller::Client(self.opened.number)
    }

    fn invocation(&self) -> InvocationId {
        let call = self.opened.consults.fetch_add(1, Ordering::Relaxed);
        InvocationId { host: self.opened.system.inner.health.host, session: self.opened.number, call }
    }

    /// Asks an agent and waits for its answer. Accepted means durable: the agent then runs at most once, whatever crashes.
    ///
    /// # Errors
    ///
    /// [`ConsultFault`]: refused, ended without an answer, or lost sight of.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future is a client's cancel: a consult nobody else waits for is ended, with every process it started. A
    /// consult that joined another's by `request_key` ends with its last caller. To have it go on, ask by [`Session::start`].
    pub async fn consult(&self, consult: Consult) -> Result<ConsultOutcome, ConsultFault> {
        let invocation = self.invocation();
        let mut waiting = Waiting { session: self, invocation, waits: false };
        let (record, joined) = self.accept(&consult, JobMode::Sync, invocation, &mut waiting).await?;
        let id = record.id;
        if record.state.is_terminal() {
            waiting.waits = false;
            return self.told(Arc::new(record), joined, true);
        }
        let lost = |fault: Fault| ConsultFault::Lost { job_id: id, fault: fault.job(id) };
        let mut follow = self.opened.system.inner.desk.consults.jobs.follow(id).await.map_err(lost)?;
        let (record, stored) = ended(&mut follow).await.map_err(lost)?;
        waiting.waits = false;
        self.told(record, joined, stored)
    }

    /// Asks an agent in the background: returns when the job is accepted and durable. It goes on without this session and
    /// without this process; follow it with [`Session::subscribe`].
    ///
    /// # Errors
    ///
    /// [`ConsultFault::Refused`]: nothing was started.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not undo an accept. A [`Consult::request_key`] finds it again.
    pub async fn start(&self, consult: Consult) -> Result<JobId, ConsultFault> {
        let invocation = self.invocation();
        let mut nobody = Waiting { session: self, invocation, waits: false };
        let (record, _) = self.accept(&consult, JobMode::Background, invocation, &mut nobody).await?;
        if record.mode == JobMode::Sync && !record.state.is_terminal() {
            // It joined a job somebody waits for; from now on it must not depend on them.
            let jobs = &self.opened.system.inner.desk.consults.jobs;
            let mut tries = 1;
            while let Err(fault) = jobs.hand_over(record.id).await {
                if tries >= TRIES || !fault.retryable {
                    return Err(ConsultFault::Lost { job_id: record.id, fault: fault.job(record.id) });
                }
                tries += 1;
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
        }
        Ok(record.id)
    }

    async fn accept(
        &self,
        consult: &Consult,
        mode: JobMode,
        invocation: InvocationId,
        waiting: &mut Waiting<'_>,
    ) -> Result<(JobRecord, bool), ConsultFault> {
        consult.check()?;
        let desk = self.opened.system.inner.desk.consults.of(self.caller())?;
        let arguments = consult.arguments(mode);
        let (options, _) = desk.read(&arguments, Some(&self.opened.client), self.caller()).await?;
        let caller = (mode == JobMode::Sync).then_some(invocation);
        waiting.waits = caller.is_some();
        let accepted = desk.jobs.accept(desk.job(&options, Some(invocation)), caller).await;
        if accepted.is_err() {
            waiting.waits = false;
        }
        let accepted = accepted?;
        Ok((accepted.record, accepted.joined))
    }

    /// What a caller is told of a job that is over; whoever was told has read it.
    fn told(&self, record: Arc<JobRecord>, joined: bool, stored: bool) -> Result<ConsultOutcome, ConsultFault> {
        if stored {
            let _ = self.opened.system.inner.jobs.cast(JobsMsg::Shown(record.id));
        }
        ConsultOutcome::of(record, joined, stored)
    }

    /// Everything about a job of a directory this session may look into.
    ///
    /// # Errors
    ///
    /// `unknown_job`, `invalid_input`: it may not read that one; `store_unavailable`.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn job(&self, job: JobId) -> Result<JobRecord, Fault> {
        let desk = self.opened.system.inner.desk.consults.of(self.caller())?;
        let record = desk.jobs.record(job).await?;
        desk.check_job(&record, self.caller()).await?;
        Ok(record)
    }

    /// The events of such a job, from `cursor` on.
    ///
    /// # Errors
    ///
    /// As [`Session::job`].
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn subscribe(&self, job: JobId, cursor: Cursor) -> Result<JobEvents, Fault> {
        self.job(job).await?;
        Ok(JobEvents::of(self.opened.system.inner.desk.consults.jobs.clone(), job, cursor))
    }

    /// Ends such a job, and everything it started; returns at once.
    ///
    /// # Errors
    ///
    /// As [`Session::job`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it is asked for or not.
    pub async fn cancel(&self, job: JobId) -> Result<CancelState, Fault> {
        self.job(job).await?;
        self.opened.system.inner.desk.consults.jobs.cancel(job).await
    }

    /// Calls a tool with these arguments, an object. The call has its tool's contract and deadline, like any client's: await it,
    /// or hear of its progress first ([`ToolCalling::on_progress`]).
    #[must_use = "nothing is called until it is awaited"]
    pub fn call(&self, tool: impl Into<String>, arguments: Value) -> ToolCalling {
        ToolCalling { session: self.clone(), tool: tool.into(), arguments, progress: None }
    }
}

/// Waits for a job's end: the job, and whether the store has it.
async fn ended(follow: &mut Follow) -> Result<(Arc<JobRecord>, bool), Fault> {
    loop {
        match follow.next().await? {
            News::Finished(record) => return Ok((record, true)),
            News::Unstored(record) => return Ok((record, false)),
            News::Changed => {}
        }
    }
}

/// Hears of a call's progress, in the future that waits for its answer.
type OnProgress = Box<dyn FnMut(f64, &str) + Send>;

/// A call of a tool that is to be made; await it.
///
/// # Cancel safety
///
/// Dropping the future withdraws the call, as a client's cancel does: the tool's own future is dropped at its next await.
pub struct ToolCalling {
    session: Session,
    tool: String,
    arguments: Value,
    progress: Option<OnProgress>,
}

impl ToolCalling {
    /// What the tool reports on the way, the newest where it reports faster than it is heard: a value that rises, and what goes
    /// on. Called by the future itself.
    #[must_use]
    pub fn on_progress(mut self, hear: impl FnMut(f64, &str) + Send + 'static) -> Self {
        self.progress = Some(Box::new(hear));
        self
    }

    async fn run(self) -> Result<ToolReply, Fault> {
        let Self { session, tool, arguments, mut progress } = self;
        if !arguments.is_object() {
            return Err(Fault::new(FaultCode::InvalidInput, "the arguments of a tool are an object."));
        }
        let opened = &session.opened;
        let number = CallNumber(opened.calls.fetch_add(1, Ordering::Relaxed));
        let heard = Arc::new(Heard::default());
        let sink = match &progress {
            Some(_) => ProgressSink::new(Hearing(Arc::clone(&heard))),
            None => ProgressSink::closed(),
        };
        let (reply, mut answer) = oneshot::channel();
        let call = DirectCall {
            number,
            tool,
            arguments: Bytes::from(arguments.to_string()),
            client: ClientInfo::Name(Arc::clone(&opened.client)),
            progress: sink,
            reply,
        };
        let mut leaving = Leaving { session: &session, number, waits: true };
        opened.mailbox.send(SessionEvent::Invoked(Box::new(call))).map_err(|_| stopping())?;
        let outcome = loop {
            tokio::select! {
                biased;
                () = heard.told.notified() => {
                    let latest = heard.latest.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
                    if let (Some(hear), Some((value, text))) = (&mut progress, latest.and_then(|latest| latest.take())) {
                        hear(value, &text);
                    }
                }
                outcome = &mut answer => break outcome,
            }
        };
        leaving.waits = false;
        match outcome {
            Ok(CallOutcome::Reply(reply)) => Ok(*reply),
            Ok(CallOutcome::Fault(fault)) => Err(*fault),
            Err(_) => Err(Fault::new(FaultCode::Stopping, "the session is over.")),
        }
    }
}

impl IntoFuture for ToolCalling {
    type Output = Result<ToolReply, Fault>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// Withdraws a call nobody waits for.
struct Leaving<'a> {
    session: &'a Session,
    number: CallNumber,
    waits: bool,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if self.waits {
            let _ = self.session.opened.mailbox.send(SessionEvent::Left(self.number));
        }
    }
}

/// The report that waits to be heard.
#[derive(Default)]
struct Heard {
    latest: std::sync::Mutex<Option<Latest>>,
    told: Notify,
}

struct Hearing(Arc<Heard>);

impl ProgressListener for Hearing {
    fn reported(&self, latest: Latest) {
        *self.0.latest.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(latest);
        self.0.told.notify_one();
    }
}

impl Session {
    /// Whose directory and environment its consults have.
    #[must_use]
    #[doc(hidden)]
    pub fn has_its_own_context(&self) -> bool {
        let context = self.opened.system.inner.desk.consults.callers.of(self.opened.number);
        context.is_some_and(|context| context.origin != CallerOrigin::Host)
    }
}
