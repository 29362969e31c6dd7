//! What custody of a job decides: when a runner is started, when one has had its time, what becomes of one that is gone.
//!
//! Owns: the stage, the starts, the limits. May not know: processes, pipes, the store, the clock. [`CustodyCore::step`]
//! takes what happened, adds what is to be done at once, and returns the one thing that is waited for next.
//!
//! ```text
//!  Waiting ──its turn──▶ Starting ──spawned──▶ Following ──pipes over──▶ Leaving ──exited──▶ Judging ──over──▶ done
//!      ▲                                                                   └── over already ──────┼─────────▶ done
//!      │                                                                                        ├── still queued
//!      └────────────────────────────────────────────────────────────────────────────────────────┘── else: settle
//!  Watching ── over ─────────────────────────────────────────────────────────────────────────────────────▶ done
//!     └── nobody works at it any more ──▶ Judging ── somebody does after all ──▶ Watching
//! ```
//!
//! A job that another host began is watched in the store: its runner, or who waits with it, has no pipe to us, and finds a
//! request to end there.
//!
//! Invariants: (1) a runner is started only for a job whose turn has come, and again only while the store says that the job
//! is queued; (2) the pipe's end is not the truth: custody is over when the store says so, or when the job is in other
//! hands; (3) a runner that was asked to end its job and neither does nor answers is killed, once; (4) every stage goes on
//! from itself: whatever was under way when a consult actor was lost is begun again by [`CustodyEvent::Began`].

use std::time::{Duration, Instant};

use crate::base::fault::{Fault, FaultCode};
use crate::jobs::JobState;
use crate::jobs::live::Phase;
use crate::runner::NOT_YET;

/// Runners started for one job as long as none of them got to start the agent.
pub(super) const RUNNER_STARTS: u32 = 2;

/// How long a runner that has said everything may take to exit.
pub const EXIT_LIMIT: Duration = Duration::from_secs(5);

/// How long a runner that was asked to end its job may take. It needs the agent's grace (300 ms), a kill and one commit; a
/// store that is busy takes seconds. One that takes longer stands still, and is ended itself.
const END_LIMIT: Duration = Duration::from_secs(15);

/// How often the loss of who waited with a job is borne, one after the other; then the job is settled.
const LOSSES: u32 = 8;

/// The pause after the first of them; it doubles with each.
const LOSS_PAUSE: Duration = Duration::from_millis(50);

/// Who waited with a job for this long was no bad one, and the losses before it are forgotten: a job may wait for days.
const LOSSES_FORGOTTEN: Duration = Duration::from_secs(60);

/// How often a job that has a runner is looked at: an ended one's outcome, whether a running one should be over.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long an accepted job waits for a runner because the system has nothing to start one with. Those that run give back
/// what they have within their own deadlines, an hour by default; what is not free by then is not ours to wait for.
const ROOM_LIMIT: Duration = Duration::from_secs(3600);

/// Looks between two at the store for a cancel by another process. The runner finds one itself within 250 ms.
const CANCEL_LOOKS: u32 = 5;

/// How long a store that refuses is asked what became of a job whose runner is gone, before a sweep is left with it.
const JUDGE_LIMIT: Duration = Duration::from_secs(15 * 60);

/// The pauses between, from the first to the longest.
const JUDGE_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// How a job is handed in to whoever waits with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandIn {
    /// For the first time.
    New,
    /// By an image that does not know what was said to the one before.
    Again,
}

/// Where custody of a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CustodyStage {
    /// The job waits for its turn.
    Waiting(HandIn),
    /// A runner is started.
    Starting,
    /// A runner is followed over its pipes.
    Following,
    /// The pipes are over; the runner's process is to exit.
    Leaving,
    /// There is no runner: the store says what became of the job.
    Judging,
    /// Somebody whom another host started works at the job, which was adopted.
    Watching,
}

/// What a runner had to say when it was asked for an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunnerAnswer {
    /// It has one that the store does not take.
    Outcome,
    /// It has none.
    Nothing,
    /// It did not answer.
    Silence,
}

/// What the store has to say about the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreAnswer {
    /// It stands so.
    State(JobState),
    /// The store has no such job.
    Unknown,
    /// Nothing: it cannot be read.
    Silence,
}

/// Everything that can happen to a job in custody.
#[derive(Debug, Clone, PartialEq)]
pub enum CustodyEvent {
    /// A consult actor begins to work with it, the first or another.
    Began,
    /// Nobody works any more at a job that was adopted.
    NobodyThere,
    /// It was handed in, and waits.
    HandedIn,
    /// It could not be handed in.
    NotHandedIn(Box<Fault>),
    /// Its turn has come.
    Turn,
    /// Who waits with it says that it is over, or in other hands.
    OverMeanwhile,
    /// Who waited with it is gone.
    WaitingLost,
    /// A runner was started and told whose job it is.
    Started,
    /// There is nothing to start one with at this moment, or somebody who would wait with the job.
    NoRoom(Box<Fault>),
    /// One could not be started.
    NotStarted(Box<Fault>),
    /// The runner has greeted, or its pipes were taken up again.
    Connected,
    /// The agent is over; its outcome may not be stored.
    AgentOver,
    /// The runner's pipes are over; in disorder where there is a fault.
    PipesOver(Option<Box<Fault>>),
    /// Somebody asked for the job's end; the store knows.
    EndAsked,
    /// The store was looked at for such a request by another process; whether there is one.
    Looked {
        /// There is.
        cancelled: bool,
    },
    /// The time is over in which the job was to end.
    EndDue,
    /// The runner was asked for an outcome.
    Answered(RunnerAnswer),
    /// It is time to look after a job that runs.
    LookDue,
    /// The runner's process has exited, with this code where the system told it.
    Exited(Option<i32>),
    /// It has not, in [`EXIT_LIMIT`].
    NotExited,
    /// The store was read.
    Read(StoreAnswer),
    /// A job whose runner is gone was settled here.
    Settled,
    /// It is in other hands: somebody holds its lock.
    Elsewhere,
    /// It could not be settled yet.
    NotSettled,
    /// A pause is over.
    Paused,
}

/// What is to be done at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CustodyEffect {
    /// Show that the job waits in the queue, or that a runner is started for it.
    Show(ShownPhase),
    /// Show other hosts that the job is looked after, although nobody holds a lock for it.
    ShowCare,
    /// Take the job from those that wait: a runner has it.
    TakeFromRoom,
    /// Take the job from those that wait: nobody is to wait with it any more.
    LeaveRoom,
    /// End the process that waits with it, which does not do as it is told.
    KillWaiting,
    /// Tell the runner to end the job.
    AskToEnd,
    /// Ask the runner for an outcome.
    AskOutcome,
    /// Look at the store for a request to end.
    LookForCancel,
    /// Tell the outcome that is not stored.
    TellUnstored,
    /// Let go of the pipes; the process stays.
    LetGoOfPipes,
    /// Kill the runner's process.
    KillRunner,
    /// Let the process exit beside.
    SeeOut,
}

/// What is shown of a job whose agent has said nothing yet, and while the store does not take an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShownPhase {
    /// It is queued.
    Queued,
    /// A runner is started.
    Starting,
    /// The store is waited for.
    Storing,
}

impl From<ShownPhase> for Phase {
    fn from(shown: ShownPhase) -> Self {
        match shown {
            ShownPhase::Queued => Self::Queued(None),
            ShownPhase::Starting => Self::Starting,
            ShownPhase::Storing => Self::Storing,
        }
    }
}

/// How custody ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CustodyEnd {
    /// The job is terminal, as it was read or settled last.
    Stored,
    /// It is in other hands, or the store cannot say what became of it.
    LeftToOthers,
}

/// The one thing that is waited for.
#[derive(Debug, Clone, PartialEq)]
pub enum CustodyWait {
    /// Look whether the job has to wait, and hand it in if so: `Turn`, `HandedIn`, `NoRoom`, `NotHandedIn`.
    HandIn(HandIn),
    /// Its turn: `Turn`, `OverMeanwhile`, `WaitingLost`, `EndAsked`, `EndDue`.
    Turn,
    /// Start a runner: `Started`, `NoRoom`, `NotStarted`.
    Start,
    /// Room to start one: `Paused`, `EndAsked`.
    Room(Duration),
    /// The runner's greeting: `Connected`, `PipesOver`.
    Greeting,
    /// News of a job that was adopted: `Read`, `NobodyThere`, `EndAsked`.
    News,
    /// What the runner does next: `AgentOver`, `PipesOver`, `EndAsked`, `EndDue`, `Answered`, `Looked`, `LookDue`.
    Runner,
    /// The exit of its process: `Exited`, `NotExited`.
    Exit,
    /// The store: `Read`.
    Store,
    /// That the job is settled, for this reason: `Settled`, `Elsewhere`, `NotSettled`.
    Settling(Box<Fault>),
    /// `Paused`.
    Pause(Duration),
    /// Nothing any more.
    Over(CustodyEnd),
}

/// Whether a job stays in the custody of this host whoever runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ours {
    /// Its row names us, so its runner lives by our lock where it has no pipe to us.
    ByItsRow,
    /// By the pipes to its runner alone.
    ByItsPipes,
}

/// Whether a job that was adopted may be started here, where whoever was to start it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunHere {
    /// Its environment is one of ours.
    Allowed,
    /// It is not, so nobody has what it is to run with.
    Refused,
}

/// What another image of the program knew.
#[derive(Debug, Clone, PartialEq)]
pub struct CustodyPast {
    /// The job's row names this host.
    pub ours: Ours,
    /// Where custody stood.
    pub stage: CustodyStage,
    /// Runners started.
    pub starts: u32,
    /// Why the last one was no success.
    pub why: Option<Fault>,
    /// Its runner did not end the job in time.
    pub overdue: bool,
}

/// Custody of one job, as far as it decides.
#[derive(Debug, Clone, PartialEq)]
pub struct CustodyCore {
    ours: Ours,
    stage: CustodyStage,
    starts: u32,
    why: Option<Fault>,
    /// How often who waited with it was lost, one after the other.
    losses: u32,
    /// Since when somebody waits with it.
    handed_in: Option<Instant>,
    /// When a runner that was asked to end its job must have done so.
    end_by: Option<Instant>,
    /// Somebody wants the job's end. Else a runner has only had its time.
    end_wanted: bool,
    /// A runner had to have ended its job, and has not.
    overdue: bool,
    /// Since when there is nothing to start a runner with.
    no_room_since: Option<Instant>,
    /// How long its agent may run; zero when that is not known.
    timeout: Duration,
    /// Since when the job is known to run.
    running: Option<Instant>,
    /// The agent is known to be over, or may be: its outcome is asked for.
    agent_over: bool,
    /// The runner's time is over: if it does not answer, it is ended.
    due: bool,
    /// An outcome is being asked for.
    asking: bool,
    /// The store is being looked at.
    looking: bool,
    looks: u32,
    /// Since when the store has been asked in vain, and the last pause.
    in_vain: Option<(Instant, Duration)>,
}

impl CustodyCore {
    /// Of a job that was just accepted, or that nobody looks after.
    #[must_use]
    pub const fn new(timeout: Duration) -> Self {
        Self {
            ours: Ours::ByItsPipes,
            stage: CustodyStage::Waiting(HandIn::New),
            starts: 0,
            why: None,
            losses: 0,
            handed_in: None,
            end_by: None,
            end_wanted: false,
            overdue: false,
            no_room_since: None,
            timeout,
            running: None,
            agent_over: false,
            due: false,
            asking: false,
            looking: false,
            looks: 0,
            in_vain: None,
        }
    }

    /// The same of a job that is ours in this way.
    #[must_use]
    pub const fn held(mut self, ours: Ours) -> Self {
        self.ours = ours;
        self
    }

    /// Of a job that was adopted, and at which somebody works whom another host started.
    #[must_use]
    pub fn adopted(timeout: Duration, run_here: RunHere) -> Self {
        let starts = if run_here == RunHere::Allowed { 0 } else { RUNNER_STARTS };
        Self { stage: CustodyStage::Watching, starts, ..Self::new(timeout).held(Ours::ByItsRow) }
    }

    /// Of a job whose custody another image of the program passed on.
    #[must_use]
    pub fn inherited(past: CustodyPast, timeout: Duration) -> Self {
        let CustodyPast { ours, stage, starts, why, overdue } = past;
        // What the agent did between the two images is not known.
        Self { stage, starts, why, overdue, agent_over: true, ..Self::new(timeout).held(ours) }
    }

    /// What the next image has to know.
    #[must_use]
    pub fn past(&self) -> CustodyPast {
        let Self { ours, stage, starts, why, overdue, .. } = self;
        CustodyPast { ours: *ours, stage: *stage, starts: *starts, why: why.clone(), overdue: *overdue }
    }

    /// Where it stands.
    #[must_use]
    pub const fn stage(&self) -> CustodyStage {
        self.stage
    }

    /// How long the agent may run.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// When [`CustodyEvent::EndDue`] is to be told; `None` while nobody wants the job's end.
    #[must_use]
    pub const fn end_by(&self) -> Option<Instant> {
        self.end_by
    }

    /// Whether somebody wants the job's end. Else its runner has only had its time.
    #[must_use]
    pub const fn is_end_wanted(&self) -> bool {
        self.end_wanted
    }

    /// Takes what happened; adds what is to be done at once, in this order. An event that does not belong to what is waited
    /// for changes nothing, and the same is waited for as after [`CustodyEvent::Began`].
    pub fn step(&mut self, event: CustodyEvent, now: Instant, effects: &mut Vec<CustodyEffect>) -> CustodyWait {
        match (self.stage, event) {
            (_, CustodyEvent::Began) => self.begin(effects),
            (CustodyStage::Waiting(_), event) => self.waits(event, now, effects),
            (CustodyStage::Starting, event) => self.starts(event, now, effects),
            (CustodyStage::Following, event) => self.follows(event, now, effects),
            (CustodyStage::Leaving, event) => self.leaves(event, effects),
            (CustodyStage::Judging, event) => self.judges(event, now, effects),
            (CustodyStage::Watching, event) => self.watches(event, effects),
        }
    }

    /// Somebody wants the job's end, which is to come within a limit.
    fn want_end(&mut self, now: Instant) {
        self.end_wanted = true;
        self.end_by.get_or_insert(now + END_LIMIT);
    }

    /// Whatever was under way is begun again.
    fn begin(&mut self, effects: &mut Vec<CustodyEffect>) -> CustodyWait {
        self.in_vain = None;
        match self.stage {
            CustodyStage::Waiting(hand_in) => CustodyWait::HandIn(hand_in),
            CustodyStage::Starting => CustodyWait::Start,
            CustodyStage::Following => CustodyWait::Greeting,
            CustodyStage::Leaving => self.leave(effects),
            CustodyStage::Judging => CustodyWait::Store,
            CustodyStage::Watching => CustodyWait::News,
        }
    }

    fn watches(&mut self, event: CustodyEvent, effects: &mut Vec<CustodyEffect>) -> CustodyWait {
        match event {
            CustodyEvent::Read(StoreAnswer::State(state)) if state.is_terminal() => {
                self.stage = CustodyStage::Judging;
                CustodyWait::Over(CustodyEnd::Stored)
            }
            CustodyEvent::Read(StoreAnswer::Unknown) => CustodyWait::Over(CustodyEnd::LeftToOthers),
            CustodyEvent::NobodyThere => {
                let detail = "who worked at the job when it was adopted is gone.";
                self.judge(Some(Box::new(Fault::new(FaultCode::RunnerLost, detail))))
            }
            // The request is in the store, where whoever works at it finds it. One that stands still is found by the sweep.
            CustodyEvent::EndAsked | CustodyEvent::Read(_) => CustodyWait::News,
            _ => self.begin(effects),
        }
    }

    fn waits(&mut self, event: CustodyEvent, now: Instant, effects: &mut Vec<CustodyEffect>) -> CustodyWait {
        match event {
            CustodyEvent::HandedIn => {
                (self.handed_in, self.no_room_since) = (Some(now), None);
                CustodyWait::Turn
            }
            CustodyEvent::Turn => {
                effects.push(CustodyEffect::Show(ShownPhase::Starting));
                self.stage = CustodyStage::Starting;
                CustodyWait::Start
            }
            CustodyEvent::OverMeanwhile => self.judge(None),
            CustodyEvent::NoRoom(fault) => self.wait_for_room(fault, now, effects),
            // Nobody runs it, nobody waits with it, so nobody else can end it.
            CustodyEvent::EndAsked if self.no_room_since.is_some() => self.give_up_starting(None, effects),
            CustodyEvent::WaitingLost => {
                let waited = |since: Instant| now.saturating_duration_since(since) >= LOSSES_FORGOTTEN;
                if self.handed_in.take().is_some_and(waited) {
                    self.losses = 0;
                }
                self.lost(effects)
            }
            CustodyEvent::NotHandedIn(fault) => {
                self.why = Some(*fault);
                self.lost(effects)
            }
            // The request is in the store, and whoever waits was woken for it.
            CustodyEvent::EndAsked => {
                self.want_end(now);
                CustodyWait::Turn
            }
            CustodyEvent::EndDue => {
                self.end_by = Some(now + END_LIMIT);
                effects.push(CustodyEffect::KillWaiting);
                CustodyWait::Turn
            }
            _ => self.begin(effects),
        }
    }

    /// Hands the job in anew after a while.
    fn lost(&mut self, effects: &mut Vec<CustodyEffect>) -> CustodyWait {
        self.losses += 1;
        if self.losses > LOSSES {
            self.starts = RUNNER_STARTS;
            return self.judge(None);
        }
        effects.push(CustodyEffect::ShowCare);
        self.stage = CustodyStage::Waiting(HandIn::New);
        CustodyWait::Pause(LOSS_PAUSE * (1 << self.losses.min(6)))
    }

    fn starts(&mut self, event: CustodyEvent, now: Instant, effects: &mut Vec<CustodyEffect>) -> CustodyWait {
        match event {
            CustodyEvent::Started => {
                self.starts += 1;
                self.no_room_since = None;
                // What was known of an earlier runner says nothing about this one.
                (self.running, self.agent_over, self.overdue) = (None, false, false);
                effects.push(CustodyEffect::TakeFromRoom);
                self.stage = CustodyStage::Following;
                CustodyWait::Greeting
            }
            CustodyEvent::NoRoom(fault) => self.wait_for_room(fault, now, effects),
            // Nobody runs it, so nobody else can end it.
            CustodyEvent::EndAsked => self.give_up_starting(None, effects),
            CustodyEvent::NotStarted(fault) => {
                self.starts += 1;
                effects.push(CustodyEffect::TakeFromRoom);
                self.judge(Some(fault))
            }
            _ => self.begin(effects),
        }
    }

    /// Waits a moment for descriptors, processes or memory to come free. The job is accepted, so it stays in the queue.
    fn wait_for_room(&mut self, fault: Box<Fault>, now: Instant, effects: &mut Vec<CustodyEffect>) -> CustodyWait {
        let waited = now.saturating_duration_since(*self.no_room_since.get_or_insert(now));
        if waited >= ROOM_LIMIT {
            return self.give_up_starting(Some(fault), effects);
        }
        effects.push(CustodyEffect::ShowCare);
        // Soon at first, then as rarely as it takes for nobody to notice.
        CustodyWait::Room((waited / 4).clamp(Duration::from_millis(50), Duration::from_secs(2)))
    }

    fn give_up_starting(&mut self, why: Option<Box<Fault>>, effects: &mut Vec<CustodyEffect>) -> CustodyWait {
        self.starts = RUNNER_STARTS;
        effects.push(CustodyEffect::TakeFromRoom);
        self.judge(why)
    }

    fn follows(&mut self, event: CustodyEvent, now: Instant, effects: &mut Vec<CustodyEffect>) -> CustodyWait {
        match event {
            CustodyEvent::Connected => {
                if self.end_by.is_some() {
                    // Asked while the job waited, or of the last incarnation.
                    effects.push(CustodyEffect::AskToEnd);
                }
            }
            CustodyEvent::AgentOver => self.agent_over = true,
            CustodyEvent::PipesOver(fault) => {
                if let Some(fault) = fault {
                    self.why = Some(*fault);
                }
                return self.let_go(effects);
            }
            CustodyEvent::EndAsked => {
                self.want_end(now);
                effects.push(CustodyEffect::AskToEnd);
            }
            CustodyEvent::EndDue => {
                // One that answers is asked again later: it ends its job, or waits for the store.
                self.end_by = Some(now + END_LIMIT);
                self.due = true;
                self.ask(effects);
            }
            CustodyEvent::Answered(answer) => {
                self.asking = false;
                let due = std::mem::take(&mut self.due);
                match answer {
                    RunnerAnswer::Outcome => effects.push(CustodyEffect::TellUnstored),
                    RunnerAnswer::Silence if due => {
                        self.overdue = true;
                        let detail = "the job's runner did not end it in time.";
                        self.why = Some(Fault::new(FaultCode::RunnerLost, detail));
                        return self.let_go(effects);
                    }
                    RunnerAnswer::Nothing | RunnerAnswer::Silence => {}
                }
            }
            CustodyEvent::Looked { cancelled } => {
                self.looking = false;
                if cancelled {
                    self.want_end(now);
                }
            }
            CustodyEvent::LookDue => self.look(now, effects),
            _ => return self.begin(effects),
        }
        CustodyWait::Runner
    }

    /// The pipes go here; a runner that has ended its job exits then.
    fn let_go(&mut self, effects: &mut Vec<CustodyEffect>) -> CustodyWait {
        (self.asking, self.looking, self.due) = (false, false, false);
        if !self.end_wanted {
            // It was this runner's time, not the job's.
            self.end_by = None;
        }
        effects.push(CustodyEffect::LetGoOfPipes);
        self.stage = CustodyStage::Leaving;
        self.leave(effects)
    }

    fn ask(&mut self, effects: &mut Vec<CustodyEffect>) {
        if !std::mem::replace(&mut self.asking, true) {
            effects.push(CustodyEffect::AskOutcome);
        }
    }

    /// Looks after a running job.
    fn look(&mut self, now: Instant, effects: &mut Vec<CustodyEffect>) {
        let since = *self.running.get_or_insert(now);
        self.looks = self.looks.wrapping_add(1);
        if self.agent_over {
            self.ask(effects);
        }
        if self.end_by.is_none() && self.looks.is_multiple_of(CANCEL_LOOKS) && !self.looking {
            self.looking = true;
            effects.push(CustodyEffect::LookForCancel);
        }
        // The runner's own deadline has been over for so long that it should have ended the job.
        let limit = since.checked_add(self.timeout).and_then(|end| end.checked_add(END_LIMIT));
        if !self.timeout.is_zero() && limit.is_some_and(|limit| limit <= now) {
            self.end_by.get_or_insert(now);
        }
    }

    /// Sees a runner off whose pipes are over.
    fn leave(&self, effects: &mut Vec<CustodyEffect>) -> CustodyWait {
        if self.overdue {
            // Its lock is free when it is gone, and the job is settled then.
            effects.push(CustodyEffect::KillRunner);
            return CustodyWait::Exit;
        }
        // Nobody waits for the exit of a runner that has done everything.
        CustodyWait::Store
    }

    fn leaves(&mut self, event: CustodyEvent, effects: &mut Vec<CustodyEffect>) -> CustodyWait {
        match event {
            CustodyEvent::Read(StoreAnswer::State(state)) if state.is_terminal() => {
                effects.push(CustodyEffect::SeeOut);
                self.stage = CustodyStage::Judging;
                CustodyWait::Over(CustodyEnd::Stored)
            }
            CustodyEvent::Read(_) => CustodyWait::Exit,
            CustodyEvent::Exited(code) => {
                if code == Some(i32::from(NOT_YET)) {
                    // There was no permit after all, which says nothing against the runner.
                    effects.push(CustodyEffect::Show(ShownPhase::Queued));
                    self.starts = self.starts.saturating_sub(1);
                    self.why = None;
                }
                self.judge(None)
            }
            CustodyEvent::NotExited => self.judge(None),
            _ => self.begin(effects),
        }
    }

    fn judge(&mut self, why: Option<Box<Fault>>) -> CustodyWait {
        if let Some(fault) = why {
            self.why = Some(*fault);
        }
        self.stage = CustodyStage::Judging;
        CustodyWait::Store
    }

    fn judges(&mut self, event: CustodyEvent, now: Instant, effects: &mut Vec<CustodyEffect>) -> CustodyWait {
        match event {
            CustodyEvent::Read(StoreAnswer::State(state)) if state.is_terminal() => {
                CustodyWait::Over(CustodyEnd::Stored)
            }
            // No agent was started, so another runner may try.
            CustodyEvent::Read(StoreAnswer::State(JobState::Queued)) if self.starts < RUNNER_STARTS => {
                self.stage = CustodyStage::Waiting(HandIn::New);
                CustodyWait::HandIn(HandIn::New)
            }
            CustodyEvent::Read(StoreAnswer::State(_)) => {
                effects.push(CustodyEffect::LeaveRoom);
                let lost = || Fault::new(FaultCode::RunnerLost, "the job's runner ended without an outcome.");
                CustodyWait::Settling(Box::new(self.why.clone().unwrap_or_else(lost)))
            }
            CustodyEvent::Settled => CustodyWait::Over(CustodyEnd::Stored),
            // Whoever runs it goes on as long as this host lives, so its callers are still ours to speak for.
            CustodyEvent::Elsewhere if self.ours == Ours::ByItsRow => {
                self.stage = CustodyStage::Watching;
                CustodyWait::News
            }
            CustodyEvent::Read(StoreAnswer::Unknown) | CustodyEvent::Elsewhere => {
                CustodyWait::Over(CustodyEnd::LeftToOthers)
            }
            CustodyEvent::Read(StoreAnswer::Silence) | CustodyEvent::NotSettled => self.wait_for_store(now, effects),
            CustodyEvent::Paused => CustodyWait::Store,
            _ => self.begin(effects),
        }
    }

    /// Asks the store again later, until that was long enough.
    fn wait_for_store(&mut self, now: Instant, effects: &mut Vec<CustodyEffect>) -> CustodyWait {
        let (since, pause) = self.in_vain.unwrap_or((now, Duration::ZERO));
        let pause = (pause * 2).clamp(JUDGE_PAUSES.0, JUDGE_PAUSES.1);
        self.in_vain = Some((since, pause));
        if now.saturating_duration_since(since) >= JUDGE_LIMIT {
            return CustodyWait::Over(CustodyEnd::LeftToOthers);
        }
        effects.push(CustodyEffect::Show(ShownPhase::Storing));
        CustodyWait::Pause(pause)
    }
}

#[cfg(test)]
mod tests;
