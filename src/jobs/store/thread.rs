//! The store's thread: the asynchronous side of a store that blocks.
//!
//! Owns: one thread, the one store it opened, the queue in front of it. May not know: what the verbs do, SQL.
//!
//! Invariants: (1) nothing touches the disk before the first verb; (2) a verb that cannot be queued fails at once, it
//! never makes its caller wait; (3) a panic costs the verb it happened in, and the store is opened anew for the next one;
//! (4) the thread ends when the last handle is dropped or one is closed, after the verbs that were queued; (5) a verb that
//! does not come back costs its thread: it is left behind, and another one opens the store.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{
    Accept, AcceptLimits, Adoption, BUSY_BOUND, CancelState, ChainCost, DataVersion, DayCost, Glance, JobCounts,
    JobFilter, Limit, Pruned, QueueRow, RetentionPolicy, SqliteStore, StartOutcome, Store, StoreError, Transition,
};
use crate::base::ids::{AgentSessionId, FleetJobId, HostId, InvocationId, JobId, UnixMillis, WaiterId};
use crate::base::signals;
use crate::base::state_dir::StateDir;
use crate::failpoints::{Broken, FaultPoint, Faults, Operation};
use crate::jobs::fleet_runs::FleetRun;
use crate::jobs::hosts::HostRow;
use crate::jobs::row::JobRow;
use crate::jobs::{
    CancelReason, JobOutcome, JobRecord, JobState, JobSummary, JournalEntry, JournalEvent, NewJob, RunProcess,
};

/// Verbs that may wait for the thread. Sixteen sessions of 64 calls; at some 10,000 verbs a second the last one waits a
/// tenth of a second. When it is reached a verb fails with `Overloaded`.
const QUEUED_VERBS: usize = 1_024;

/// How long a verb is waited for. An opening may wait twice [`BUSY_BOUND`] for other processes and a verb once, so what
/// takes longer stands still: a disk that does not answer, a lock that nobody gives back.
const STUCK_AFTER: Duration = BUSY_BOUND.saturating_mul(3);

/// Threads one handle may leave behind. What holds up that many holds up the next one too; then each verb fails after its
/// time, and nothing piles up.
const LEFT_BEHIND: u32 = 4;

/// A store that could not be opened is not tried again for so long; verbs in between get the same error at once.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

type Factory = Arc<dyn Fn() -> Result<Box<dyn Store>, StoreError> + Send + Sync>;

/// Sends the verbs of a [`Store`] to the thread that owns it. Clones share the thread.
///
/// # Cancel safety
///
/// A verb whose future is dropped is carried out all the same once it was queued, which happens at the first poll; only
/// its answer is lost. All verbs may be repeated, except `append`, which would append twice. The same is true of a verb that
/// failed with [`StoreError::Stuck`].
#[derive(Clone)]
pub struct StoreHandle {
    shared: Arc<Shared>,
}

struct Shared {
    factory: Factory,
    faults: Faults,
    /// How long a verb is waited for: [`STUCK_AFTER`].
    patience: Duration,
    /// Held for the length of a `try_send` or of starting the thread; never across anything that waits.
    life: Mutex<Life>,
}

enum Life {
    /// Nobody has asked for anything yet.
    Unstarted,
    Running(StoreThread),
    Closed,
}

struct StoreThread {
    /// Counts the threads of a handle, from 0.
    number: u32,
    commands: SyncSender<Command>,
    thread: JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

impl StoreHandle {
    /// A handle to the store of a state directory. Directory, database and thread are made at the first verb.
    #[must_use]
    pub fn sqlite(dir: StateDir) -> Self {
        Self::sqlite_with(dir, Faults::none())
    }

    /// The same, with a plan of what is to break.
    #[must_use]
    pub fn sqlite_with(dir: StateDir, faults: Faults) -> Self {
        Self::with(move || SqliteStore::in_dir(&dir), faults)
    }

    /// A handle to whatever the factory makes. It is called in the store's thread, at the first verb and again after a
    /// failure or a panic.
    pub fn new<S: Store + 'static>(factory: impl Fn() -> Result<S, StoreError> + Send + Sync + 'static) -> Self {
        Self::with(factory, Faults::none())
    }

    fn with<S: Store + 'static>(
        factory: impl Fn() -> Result<S, StoreError> + Send + Sync + 'static,
        faults: Faults,
    ) -> Self {
        let factory: Factory = Arc::new(move || Ok(Box::new(factory()?)));
        let life = Mutex::new(Life::Unstarted);
        Self { shared: Arc::new(Shared { factory, faults, patience: STUCK_AFTER, life }) }
    }

    /// Refuses further verbs of all clones, lets the queued ones finish, and returns when the thread is gone and the
    /// database closed.
    ///
    /// # Cancel safety
    ///
    /// Closing goes on when the future is dropped; only the waiting ends.
    pub async fn close(&self) {
        let life = std::mem::replace(&mut *self.shared.life(), Life::Closed);
        if let Life::Running(StoreThread { commands, thread, ended, .. }) = life {
            drop(commands);
            // Answered or dropped, either way the thread has nothing left to do but to return.
            if tokio::time::timeout(self.shared.patience, ended).await.is_ok() {
                // It never panics outside a verb; if a store's end did, there is nobody left to tell.
                let _ = thread.join();
            }
        }
    }

    /// Refuses further verbs of all clones, and waits for nothing: the thread ends by itself after the queued ones.
    pub fn abandon(&self) {
        drop(std::mem::replace(&mut *self.shared.life(), Life::Closed));
    }

    /// Waits until every verb that was queued before has been carried out. Opens nothing that is not open.
    ///
    /// # Errors
    ///
    /// The store did not come to it in time.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn settled(&self) -> Result<(), StoreError> {
        if matches!(&*self.shared.life(), Life::Running(_)) {
            self.moved_aside().await?;
        }
        Ok(())
    }

    async fn call<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Command,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let thread = self.shared.send(command(reply))?;
        match tokio::time::timeout(self.shared.patience, answer).await {
            // Dropped without an answer only by a panic.
            Ok(answer) => answer.unwrap_or(Err(StoreError::Panicked)),
            Err(_) => {
                self.shared.leave_behind(thread);
                Err(StoreError::Stuck)
            }
        }
    }
}

impl fmt::Debug for StoreHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreHandle").finish_non_exhaustive()
    }
}

impl Shared {
    fn life(&self) -> MutexGuard<'_, Life> {
        // Nothing that can panic leaves it half changed.
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a verb; returns the number of the thread that has it.
    fn send(&self, command: Command) -> Result<u32, StoreError> {
        let mut life = self.life();
        if let Life::Unstarted = &*life {
            *life = Life::Running(StoreThread::start(0, &self.factory, &self.faults)?);
        }
        let Life::Running(worker) = &mut *life else { return Err(StoreError::Closed) };
        match worker.commands.try_send(command) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(StoreError::Overloaded),
            // The thread died although it catches panics: a store panicked while it was dropped.
            Err(TrySendError::Disconnected(command)) => {
                *worker = StoreThread::start(worker.number, &self.factory, &self.faults)?;
                worker.commands.try_send(command).map_err(|_| StoreError::Panicked)?;
            }
        }
        Ok(worker.number)
    }

    /// Puts another thread in the place of one that stands still. What waits behind the verb it stands in fails in its own
    /// time, or is carried out should the thread come back.
    fn leave_behind(&self, stuck: u32) {
        let mut life = self.life();
        let Life::Running(worker) = &mut *life else { return };
        // Several verbs of one thread run out of time one after the other; the first one replaces it.
        if worker.number != stuck || stuck >= LEFT_BEHIND {
            return;
        }
        match StoreThread::start(stuck + 1, &self.factory, &self.faults) {
            Ok(next) => {
                tracing::error!("the job store did not answer in time; it is opened anew");
                *worker = next;
            }
            Err(error) => tracing::error!(%error, "the job store did not answer in time, and cannot be opened anew"),
        }
    }
}

impl StoreThread {
    fn start(number: u32, factory: &Factory, faults: &Faults) -> Result<Self, StoreError> {
        let (factory, faults) = (Arc::clone(factory), faults.clone());
        let (commands, queue) = sync_channel(QUEUED_VERBS);
        let (done, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                signals::leave_to_others();
                run(&factory, &faults, &queue);
                let _ = done.send(());
            })
            .map_err(|error| StoreError::Io { detail: error.to_string() })?;
        Ok(Self { number, commands, thread, ended })
    }
}

fn run(factory: &Factory, faults: &Faults, queue: &Receiver<Command>) {
    let mut slot = Opened::Empty;
    while let Ok(command) = queue.recv() {
        // Whatever a panic leaves behind is dropped here, and the store with it.
        let after = catch_unwind(AssertUnwindSafe(|| {
            slot.open(factory);
            if let Some(verb) = command.commits()
                && let Some(broken) = faults.meet_blocking(FaultPoint::StoreCommit, Operation::Method(verb))
            {
                let detail = match broken {
                    Broken::Error(fault) => fault.detail,
                    _ => "a fault point was met".to_owned(),
                };
                return command.refuse(StoreError::Io { detail });
            }
            command.perform(&mut slot);
        }));
        if after.is_err() {
            slot = Opened::Empty;
        }
    }
}

impl Command {
    /// The verb, when it changes what is stored.
    const fn commits(&self) -> Option<&'static str> {
        match self {
            Self::Accept { .. }
            | Self::Start { .. }
            | Self::SetProcess { .. }
            | Self::Finish { .. }
            | Self::Append { .. }
            | Self::RequestCancel { .. }
            | Self::HandOver { .. }
            | Self::Adopt { .. }
            | Self::MarkRead { .. }
            | Self::ClearLimits { .. }
            | Self::Prune { .. } => Some(self.name()),
            _ => None,
        }
    }
}

/// What the thread has in place of a store.
enum Opened {
    Empty,
    Open(Box<dyn Store>),
    Failed { error: StoreError, at: Instant },
}

impl Opened {
    fn open(&mut self, factory: &Factory) {
        match self {
            Self::Open(_) => return,
            Self::Failed { at, .. } if at.elapsed() < REOPEN_PAUSE => return,
            Self::Failed { .. } | Self::Empty => {}
        }
        *self = match factory() {
            Ok(store) => Self::Open(store),
            Err(error) => Self::Failed { error, at: Instant::now() },
        };
    }

    fn with<T>(&mut self, verb: impl FnOnce(&mut dyn Store) -> Result<T, StoreError>) -> Result<T, StoreError> {
        match self {
            Self::Open(store) => verb(store.as_mut()),
            Self::Failed { error, .. } => Err(error.clone()),
            Self::Empty => Err(StoreError::Closed),
        }
    }
}

macro_rules! verbs {
    ($($(#[$doc:meta])* $command:ident: $verb:ident($($name:ident: $type:ty),*) -> $answer:ty = |$store:ident| $body:expr;)*) => {
        /// Everything the thread can be asked for.
        enum Command {
            $($command { $($name: $type,)* reply: oneshot::Sender<Result<$answer, StoreError>> },)*
        }

        impl Command {
            fn perform(self, slot: &mut Opened) {
                match self {
                    $(Self::$command { $($name,)* reply } => {
                        // Nobody waiting any more is no reason not to do it.
                        let _ = reply.send(slot.with(|$store| $body));
                    })*
                }
            }

            /// Fails it without having done anything.
            fn refuse(self, error: StoreError) {
                match self {
                    $(Self::$command { reply, .. } => drop(reply.send(Err(error))),)*
                }
            }

            /// The verb.
            const fn name(&self) -> &'static str {
                match self {
                    $(Self::$command { .. } => stringify!($verb),)*
                }
            }
        }

        impl StoreHandle {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                ///
                /// As the [`Store`] verb of the same name, and `Overloaded`, `Panicked`, `Closed`.
                pub async fn $verb(&self $(, $name: $type)*) -> Result<$answer, StoreError> {
                    self.call(|reply| Command::$command { $($name,)* reply }).await
                }
            )*
        }
    };
}

verbs! {
    /// Makes a consult a job, or finds the job it already is: [`Store::accept`].
    Accept: accept(job: NewJob, limits: AcceptLimits) -> Accept = |store| store.accept(&job, limits);
    /// Everything about one job.
    Job: job(job: JobId) -> JobRecord = |store| store.job(job);
    /// The little about a job that changes.
    Glance: glance(job: JobId) -> Glance = |store| store.glance(job);
    /// The job that was accepted for an invocation.
    FindInvocation: find_invocation(invocation: InvocationId) -> Option<JobId> =
        |store| store.find_invocation(&invocation);
    /// Usage limits that were reached and are not over.
    Limits: limits(now: UnixMillis) -> Vec<Limit> = |store| store.limits(now);
    /// Forgets all usage limits.
    ClearLimits: clear_limits() -> usize = |store| store.clear_limits();
    /// The jobs that match, unread first, then newest first.
    List: list(filter: JobFilter) -> Vec<JobSummary> = |store| store.list(&filter);
    /// What is known of the jobs of a time, without their text: [`Store::job_rows`].
    JobRows: job_rows(since: UnixMillis, after: u64) -> Vec<JobRow> = |store| store.job_rows(since, after);
    /// Jobs whose id begins with this: [`Store::beginning_with`].
    BeginningWith: beginning_with(start: String, limit: usize) -> Vec<JobId> =
        |store| store.beginning_with(&start, limit);
    /// The job of a workspace that was accepted last.
    Newest: newest(workspace: PathBuf) -> Option<JobId> = |store| store.newest(&workspace);
    /// Moves a job from `queued` to `running`: [`Store::start`].
    Start: start(job: JobId, at: UnixMillis) -> StartOutcome = |store| store.start(job, at);
    /// Records the process of the agent.
    SetProcess: set_process(job: JobId, process: RunProcess) -> Transition = |store| store.set_process(job, process);
    /// Notes that a job's agent is on another machine: [`Store::set_elsewhere`].
    SetElsewhere: set_elsewhere(job: JobId, over_within: Duration) -> Transition =
        |store| store.set_elsewhere(job, over_within);
    /// When the agent of a job whose runner is lost is over: [`Store::lost_elsewhere`].
    LostElsewhere: lost_elsewhere(job: JobId, now: UnixMillis) -> Option<UnixMillis> =
        |store| store.lost_elsewhere(job, now);
    /// Moves a job to a terminal state: [`Store::finish`].
    Finish: finish(job: JobId, to: JobState, outcome: JobOutcome, at: UnixMillis) -> Transition =
        |store| store.finish(job, to, &outcome, at);
    /// Appends to a job's journal: [`Store::append`].
    Append: append(job: JobId, events: Vec<(UnixMillis, JournalEvent)>) -> u64 = |store| store.append(job, &events);
    /// The journal after a number: [`Store::events`].
    Events: events(job: JobId, after_seq: u64, limit: usize, max_bytes: usize) -> Vec<JournalEntry> =
        |store| store.events(job, after_seq, limit, max_bytes);
    /// Asks a job's runner to end it.
    RequestCancel: request_cancel(job: JobId, reason: CancelReason) -> CancelState =
        |store| store.request_cancel(job, reason);
    /// Turns a job nobody waits for any more into a background job.
    HandOver: hand_over(job: JobId) -> Transition = |store| store.hand_over(job);
    /// Gives a job into the custody of another host: [`Store::adopt`].
    Adopt: adopt(job: JobId, from: HostId, by: HostId) -> Adoption = |store| store.adopt(job, from, by);
    /// Notes what a host says of itself.
    ShowHost: show_host(row: HostRow) -> () = |store| store.show_host(&row);
    /// What hosts have said of themselves: [`Store::hosts`].
    Hosts: hosts() -> Vec<HostRow> = |store| store.hosts();
    /// Forgets what these hosts said.
    ForgetHosts: forget_hosts(hosts: Vec<HostId>) -> () = |store| store.forget_hosts(&hosts);
    /// Notes by which claim this machine has a fleet's job.
    NoteFleetRun: note_fleet_run(run: FleetRun) -> () = |store| store.note_fleet_run(run);
    /// The claims whose ends the fleet was not told: [`Store::fleet_runs`].
    FleetRuns: fleet_runs() -> Vec<FleetRun> = |store| store.fleet_runs();
    /// Forgets a claim of a fleet's job.
    ForgetFleetRun: forget_fleet_run(job: FleetJobId) -> () = |store| store.forget_fleet_run(job);
    /// Notes that somebody read the outcome.
    MarkRead: mark_read(job: JobId, at: UnixMillis) -> () = |store| store.mark_read(job, at);
    /// The finished jobs of a workspace nobody has read, newest first.
    Unread: unread(workspace: PathBuf, limit: usize) -> Vec<JobId> =
        |store| store.unread(Path::new(&workspace), limit);
    /// The queued and running jobs, in the order of acceptance.
    Queue: queue() -> Vec<QueueRow> = |store| store.queue();
    /// A queued job's place, from 1.
    QueuePlace: queue_place(job: JobId) -> Option<usize> = |store| store.queue_place(job);
    /// The last job before this one in a session: [`Store::last_of_session`].
    LastOfSession: last_of_session(job: JobId, session: AgentSessionId) -> Option<JobId> =
        |store| store.last_of_session(job, session);
    /// Notes who waits with these jobs: [`Store::wait_with`].
    WaitWith: wait_with(jobs: Vec<JobId>, waiter: WaiterId) -> Vec<JobId> =
        |store| store.wait_with(&jobs, waiter);
    /// How many jobs are in each state.
    Counts: counts() -> JobCounts = |store| store.counts();
    /// What was spent since a moment, by day.
    CostByDay: cost_by_day(since: UnixMillis) -> Vec<DayCost> = |store| store.cost_by_day(since);
    CostByChain: cost_by_chain(since: UnixMillis) -> Vec<ChainCost> = |store| store.cost_by_chain(since);
    /// Forgets finished jobs that are kept long enough.
    Prune: prune(policy: RetentionPolicy, now: UnixMillis) -> Pruned = |store| store.prune(policy, now);
    /// A stamp that differs when anything was written since.
    DataVersion: data_version() -> DataVersion = |store| store.data_version();
    /// Where a damaged database was moved, if one was.
    MovedAside: moved_aside() -> Option<PathBuf> = |store| Ok(store.moved_aside());
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;
    use crate::base::ids::ChainId;
    use crate::jobs::{ConsultRequest, JobMode};

    fn new_job(prompt: &str) -> NewJob {
        NewJob {
            id: JobId::random(),
            invocation: None,
            request_key: None,
            given: None,
            workspace: "/w".into(),
            mode: JobMode::Sync,
            request: ConsultRequest::new(prompt).cwd("/w").timeout_s(60),
            chain: ChainId::random(),
            depth: 0,
            accepted_at: UnixMillis(1),
            environment: None,
            account: String::new(),
            host: None,
            trace: None,
        }
    }

    const LIMITS: AcceptLimits = AcceptLimits { max_queued: 10 };

    /// A store whose `counts` does what a test tells it to; the other verbs are those of a real one.
    struct Scripted<F> {
        inner: SqliteStore,
        counts: F,
    }

    impl<F: FnMut() -> Result<JobCounts, StoreError> + Send> Store for Scripted<F> {
        fn accept(&mut self, job: &NewJob, limits: AcceptLimits) -> Result<Accept, StoreError> {
            self.inner.accept(job, limits)
        }
        fn job(&mut self, job: JobId) -> Result<JobRecord, StoreError> {
            self.inner.job(job)
        }
        fn glance(&mut self, job: JobId) -> Result<Glance, StoreError> {
            self.inner.glance(job)
        }
        fn find_invocation(&mut self, invocation: &InvocationId) -> Result<Option<JobId>, StoreError> {
            self.inner.find_invocation(invocation)
        }
        fn list(&mut self, filter: &JobFilter) -> Result<Vec<JobSummary>, StoreError> {
            self.inner.list(filter)
        }
        fn job_rows(&mut self, since: UnixMillis, after: u64) -> Result<Vec<JobRow>, StoreError> {
            self.inner.job_rows(since, after)
        }
        fn beginning_with(&mut self, start: &str, limit: usize) -> Result<Vec<JobId>, StoreError> {
            self.inner.beginning_with(start, limit)
        }
        fn newest(&mut self, workspace: &Path) -> Result<Option<JobId>, StoreError> {
            self.inner.newest(workspace)
        }
        fn limits(&mut self, now: UnixMillis) -> Result<Vec<Limit>, StoreError> {
            self.inner.limits(now)
        }
        fn clear_limits(&mut self) -> Result<usize, StoreError> {
            self.inner.clear_limits()
        }
        fn start(&mut self, job: JobId, at: UnixMillis) -> Result<StartOutcome, StoreError> {
            self.inner.start(job, at)
        }
        fn set_process(&mut self, job: JobId, process: RunProcess) -> Result<Transition, StoreError> {
            self.inner.set_process(job, process)
        }
        fn set_elsewhere(&mut self, job: JobId, over_within: Duration) -> Result<Transition, StoreError> {
            self.inner.set_elsewhere(job, over_within)
        }
        fn lost_elsewhere(&mut self, job: JobId, now: UnixMillis) -> Result<Option<UnixMillis>, StoreError> {
            self.inner.lost_elsewhere(job, now)
        }
        fn finish(
            &mut self,
            job: JobId,
            to: JobState,
            outcome: &JobOutcome,
            at: UnixMillis,
        ) -> Result<Transition, StoreError> {
            self.inner.finish(job, to, outcome, at)
        }
        fn append(&mut self, job: JobId, events: &[(UnixMillis, JournalEvent)]) -> Result<u64, StoreError> {
            self.inner.append(job, events)
        }
        fn events(
            &mut self,
            job: JobId,
            after_seq: u64,
            limit: usize,
            max_bytes: usize,
        ) -> Result<Vec<JournalEntry>, StoreError> {
            self.inner.events(job, after_seq, limit, max_bytes)
        }
        fn request_cancel(&mut self, job: JobId, reason: CancelReason) -> Result<CancelState, StoreError> {
            self.inner.request_cancel(job, reason)
        }
        fn hand_over(&mut self, job: JobId) -> Result<Transition, StoreError> {
            self.inner.hand_over(job)
        }
        fn adopt(&mut self, job: JobId, from: HostId, by: HostId) -> Result<Adoption, StoreError> {
            self.inner.adopt(job, from, by)
        }
        fn show_host(&mut self, row: &HostRow) -> Result<(), StoreError> {
            self.inner.show_host(row)
        }
        fn hosts(&mut self) -> Result<Vec<HostRow>, StoreError> {
            self.inner.hosts()
        }
        fn forget_hosts(&mut self, hosts: &[HostId]) -> Result<(), StoreError> {
            self.inner.forget_hosts(hosts)
        }
        fn note_fleet_run(&mut self, run: FleetRun) -> Result<(), StoreError> {
            self.inner.note_fleet_run(run)
        }
        fn fleet_runs(&mut self) -> Result<Vec<FleetRun>, StoreError> {
            self.inner.fleet_runs()
        }
        fn forget_fleet_run(&mut self, job: FleetJobId) -> Result<(), StoreError> {
            self.inner.forget_fleet_run(job)
        }
        fn mark_read(&mut self, job: JobId, at: UnixMillis) -> Result<(), StoreError> {
            self.inner.mark_read(job, at)
        }
        fn unread(&mut self, workspace: &Path, limit: usize) -> Result<Vec<JobId>, StoreError> {
            self.inner.unread(workspace, limit)
        }
        fn queue_place(&mut self, job: JobId) -> Result<Option<usize>, StoreError> {
            self.inner.queue_place(job)
        }
        fn last_of_session(&mut self, job: JobId, session: AgentSessionId) -> Result<Option<JobId>, StoreError> {
            self.inner.last_of_session(job, session)
        }
        fn wait_with(&mut self, jobs: &[JobId], waiter: WaiterId) -> Result<Vec<JobId>, StoreError> {
            self.inner.wait_with(jobs, waiter)
        }
        fn queue(&mut self) -> Result<Vec<QueueRow>, StoreError> {
            self.inner.queue()
        }
        fn counts(&mut self) -> Result<JobCounts, StoreError> {
            (self.counts)()
        }
        fn cost_by_day(&mut self, since: UnixMillis) -> Result<Vec<DayCost>, StoreError> {
            self.inner.cost_by_day(since)
        }
        fn cost_by_chain(&mut self, since: UnixMillis) -> Result<Vec<ChainCost>, StoreError> {
            self.inner.cost_by_chain(since)
        }
        fn prune(&mut self, policy: RetentionPolicy, now: UnixMillis) -> Result<Pruned, StoreError> {
            self.inner.prune(policy, now)
        }
        fn data_version(&mut self) -> Result<DataVersion, StoreError> {
            self.inner.data_version()
        }
        fn moved_aside(&self) -> Option<PathBuf> {
            self.inner.moved_aside()
        }
    }

    #[tokio::test]
    async fn nothing_touches_the_disk_before_the_first_verb() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        let store = StoreHandle::sqlite(dir.clone());
        let clone = store.clone();
        assert!(!dir.root().exists());
        let job = new_job("p");
        assert!(matches!(clone.accept(job.clone(), LIMITS).await, Ok(Accept::Inserted(_))));
        assert!(dir.database().exists());
        assert_eq!(store.job(job.id).await.expect("there").request, job.request);
        store.close().await;
        assert_eq!(clone.counts().await, Err(StoreError::Closed));
        clone.close().await;
    }

    #[tokio::test]
    async fn a_panic_costs_its_own_verb_and_the_next_finds_a_new_store() {
        let opened = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&opened);
        let store = StoreHandle::new(move || {
            let nth = count.fetch_add(1, Ordering::Relaxed);
            let counts = move || if nth == 0 { panic!("planned") } else { Ok(JobCounts::default()) };
            Ok(Scripted { inner: SqliteStore::in_memory()?, counts })
        });
        assert_eq!(store.counts().await, Err(StoreError::Panicked));
        assert_eq!(store.counts().await, Ok(JobCounts::default()));
        assert_eq!(opened.load(Ordering::Relaxed), 2);
        store.close().await;
    }

    #[tokio::test]
    async fn a_store_that_panics_even_while_it_is_dropped_is_replaced_too() {
        struct Bomb(Arc<AtomicUsize>);
        impl Drop for Bomb {
            fn drop(&mut self) {
                if self.0.fetch_add(1, Ordering::Relaxed) == 0 && !std::thread::panicking() {
                    panic!("planned, while dropping");
                }
            }
        }
        let dropped = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&dropped);
        let store = StoreHandle::new(move || {
            let bomb = Bomb(Arc::clone(&seen));
            let first = seen.load(Ordering::Relaxed) == 0;
            let counts = move || {
                let _keep = &bomb;
                if first { panic!("planned") } else { Ok(JobCounts::default()) }
            };
            Ok(Scripted { inner: SqliteStore::in_memory()?, counts })
        });
        assert_eq!(store.counts().await, Err(StoreError::Panicked));
        let until = Instant::now() + Duration::from_secs(10);
        // A verb that was queued while the thread was dying is answered like the one it died of.
        while let Err(error) = store.counts().await {
            assert_eq!(error, StoreError::Panicked);
            assert!(Instant::now() < until, "the thread was not replaced");
        }
        store.close().await;
    }

    #[tokio::test]
    async fn a_store_that_cannot_be_opened_is_not_tried_again_at_once() {
        let tried = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&tried);
        let store = StoreHandle::new(move || {
            if count.fetch_add(1, Ordering::Relaxed) == 0 { Err(StoreError::Full) } else { SqliteStore::in_memory() }
        });
        assert_eq!(store.counts().await, Err(StoreError::Full));
        assert_eq!(store.queue().await, Err(StoreError::Full), "the same answer, without another try");
        assert_eq!(tried.load(Ordering::Relaxed), 1);
        let until = Instant::now() + Duration::from_secs(10);
        while store.counts().await.is_err() {
            assert!(Instant::now() < until, "never tried again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(tried.load(Ordering::Relaxed), 2);
        store.close().await;
    }

    #[tokio::test]
    async fn a_full_queue_is_told_at_once_and_what_was_queued_is_done() {
        let (entered, at_work) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(Some((entered, gate)));
        let store = StoreHandle::new(move || {
            let mut first = gate.lock().expect("not poisoned").take();
            let counts = move || {
                if let Some((entered, gate)) = first.take() {
                    let _ = entered.send(());
                    let _ = gate.recv();
                }
                Ok(JobCounts::default())
            };
            Ok(Scripted { inner: SqliteStore::in_memory()?, counts })
        });
        let mut waiting = Vec::new();
        let ask = |wait: &mut Vec<_>| {
            let (reply, answer) = oneshot::channel();
            let sent = store.shared.send(Command::Counts { reply });
            wait.push(answer);
            sent
        };
        assert_eq!(ask(&mut waiting).map(drop), Ok(()));
        at_work.recv().expect("the thread is at work");
        for _ in 0..QUEUED_VERBS {
            assert_eq!(ask(&mut waiting).map(drop), Ok(()));
        }
        assert_eq!(ask(&mut waiting).map(drop), Err(StoreError::Overloaded));
        waiting.pop();
        release.send(()).expect("waiting");
        store.close().await;
        for answer in waiting {
            assert_eq!(answer.await, Ok(Ok(JobCounts::default())), "closing lets the queued ones finish");
        }
    }

    /// A handle that waits only so long.
    fn impatient<S: Store + 'static>(
        patience: Duration,
        factory: impl Fn() -> Result<S, StoreError> + Send + Sync + 'static,
    ) -> StoreHandle {
        let mut store = StoreHandle::new(factory);
        Arc::get_mut(&mut store.shared).expect("the only handle").patience = patience;
        store
    }

    #[tokio::test]
    async fn a_verb_that_does_not_come_back_costs_its_thread_and_what_it_did_late_is_done_once() {
        let (release, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(Some(gate));
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        let place = dir.clone();
        // Long beside what a disk takes, so that only the verb that waits for us runs out of it.
        let store = impatient(Duration::from_secs(3), move || {
            let first = gate.lock().expect("not poisoned").take();
            let counts = move || {
                if let Some(gate) = &first {
                    let _ = gate.recv();
                }
                Ok(JobCounts::default())
            };
            Ok(Scripted { inner: SqliteStore::in_dir(&place)?, counts })
        });
        let job = new_job("p");
        // The accept waits behind the verb that stands still, and runs out of time with it.
        let (stuck, behind) = tokio::join!(store.counts(), store.accept(job.clone(), LIMITS));
        assert_eq!((stuck, behind.err()), (Err(StoreError::Stuck), Some(StoreError::Stuck)));
        assert!(matches!(store.accept(job.clone(), LIMITS).await, Ok(Accept::Inserted(_))), "another thread serves");
        release.send(()).expect("the old thread is there");
        store.close().await;
        // The thread that was left behind comes back and accepts the same job: it is the same job.
        let until = Instant::now() + Duration::from_secs(10);
        while release.send(()).is_ok() {
            assert!(Instant::now() < until, "the thread that was left behind does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let after = StoreHandle::sqlite(dir);
        assert_eq!(after.queue().await.expect("a queue").len(), 1);
        after.close().await;
    }

    #[tokio::test]
    async fn threads_that_are_left_behind_have_a_bound() {
        let opened = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&opened);
        let store = impatient(Duration::from_millis(30), move || {
            count.fetch_add(1, Ordering::Relaxed);
            let counts = || -> Result<JobCounts, StoreError> {
                loop {
                    std::thread::park();
                }
            };
            Ok(Scripted { inner: SqliteStore::in_memory()?, counts })
        });
        for _ in 0..2 * LEFT_BEHIND {
            assert_eq!(store.counts().await, Err(StoreError::Stuck), "in its time, each");
        }
        assert_eq!(opened.load(Ordering::Relaxed), LEFT_BEHIND as usize + 1);
        store.close().await;
    }

    #[tokio::test]
    async fn the_thread_ends_when_the_last_handle_is_dropped() {
        let ended = Arc::new(());
        let held = Arc::clone(&ended);
        let store = StoreHandle::new(move || {
            let held = Arc::clone(&held);
            let counts = move || {
                let _ = &held;
                Ok(JobCounts::default())
            };
            Ok(Scripted { inner: SqliteStore::in_memory()?, counts })
        });
        store.counts().await.expect("counted");
        drop(store.clone());
        store.counts().await.expect("a clone was not the last one");
        drop(store);
        let until = Instant::now() + Duration::from_secs(10);
        while Arc::strong_count(&ended) > 1 {
            assert!(Instant::now() < until, "the store is still there");
            tokio::task::yield_now().await;
        }
    }
}
