//! What the jobs' supervisor decides: who waits for which job, and what becomes of a job nobody waits for.
//!
//! Owns: the accepts under way, the claim of every attached job (its mode, its callers), which calls and sessions are over,
//! whether jobs are attended to. May not know: the store, runners, actors, the clock. [`JobsCore::step`] takes what
//! happened and says what is to be done; it never waits.
//!
//! ```text
//!  Asked ──▶ Ask the store ──Stored──▶ Attach · Attend · Answer        a job this host looks after
//!                               ├────▶ AttachByStore · Attend · Answer  a job this host has just adopted
//!                               ├────▶ Answer                      a job of this host, whose caller claims it once it is attached
//!                               └────▶ HandOver · Answer               a job another host looks after
//!  Withdrawn · SessionOver · Resumed ──▶ the last caller is gone ──▶ EndForLostCaller
//!                                             ├── an accept is under way, which may join: decided when it is stored
//!                                             └── its callers may still come back: decided when their time is over
//!  Adopted ──▶ AttachByStore · Attend · AwaitCallers ──CallersDue──▶ nobody came back ──▶ EndForLostCaller
//! ```
//!
//! Invariants: (1) an ask is answered, refused or, with its incarnation, dropped, exactly once; (2) L7: a synchronous job
//! without a caller is asked to end, once, and no other job is; (3) L3: a job is attached at most once at a time, so one
//! host never starts two runners for it; (4) a job somebody joined in the background is a background job from then on;
//! (5) while attention is withdrawn no job is attended to, and `Still` is said once no accept is under way; (6) a synchronous
//! job that was adopted is ended for want of callers when the time is over in which all it had may come back, and not before.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use crate::base::ids::{InvocationId, JobId, SessionNumber};
use crate::jobs::{JobMode, JobState};

/// Withdrawn calls and sessions that are remembered. A consult that was withdrawn on its way arrives within a few messages;
/// these are many times the calls that can be on their way, and the oldest is forgotten for the newest.
const LATE: usize = 4096;

/// One accept that was asked for; numbers are never reused within a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AskId(pub u64);

/// Who looks after a job that was accepted or joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Custodian {
    /// This host: it inserted the job just now.
    Inserted,
    /// This host: the job is of the very invocation that asks, and its host's supervisor ended before it had a runner.
    Unattended,
    /// Nobody, and it may be run here: its host died between accepting it and starting its runner.
    Orphan,
    /// This host, which has just adopted it: the one that had it is gone, and somebody whom that one started works at it.
    Adopted,
    /// This host, by the job's row; word of it is on its way to the one who makes custody of it.
    Here,
    /// This host already, or another one.
    Somebody,
}

/// A job the store has accepted or found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The job.
    pub job: JobId,
    /// Whether a caller waits for it, as the store has it.
    pub mode: JobMode,
    /// Where it stands.
    pub state: JobState,
    /// Who looks after it.
    pub custodian: Custodian,
}

/// Everything the supervisor decides about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobsEvent {
    /// Somebody asks for a consult to be accepted; `caller` waits for it.
    Asked {
        /// The ask.
        ask: AskId,
        /// Who waits; `None` for a background job, and for an embedding program's own consult.
        caller: Option<InvocationId>,
        /// Whether what is asked for depends on a caller.
        mode: JobMode,
    },
    /// The store has answered an ask; `None` when it accepted nothing.
    Stored {
        /// The ask.
        ask: AskId,
        /// What it found or made.
        found: Option<Found>,
    },
    /// A call was withdrawn.
    Withdrawn(InvocationId),
    /// A session goes on after an interruption with these calls open, and no others.
    Resumed {
        /// The session.
        session: SessionNumber,
        /// Its calls.
        open: HashSet<u64>,
    },
    /// A session is over.
    SessionOver(SessionNumber),
    /// A job goes on without a caller: its call was answered at the soft deadline.
    HandedOver(JobId),
    /// Somebody asked for the end of a job, and the store knows.
    Terminate(JobId),
    /// A job's custody is over: the job is terminal, or in other hands, or its consult actor failed too often.
    Ended(JobId),
    /// The sweep found a job that nobody runs and that may be run here.
    Orphaned {
        /// The job.
        job: JobId,
        /// Its mode.
        mode: JobMode,
    },
    /// The sweep adopted a job whose host is gone and at which somebody works.
    Adopted {
        /// The job.
        job: JobId,
        /// Its mode.
        mode: JobMode,
    },
    /// The time is over in which the callers of an adopted job may come back.
    CallersDue(JobId),
    /// A job is attached with what the previous image of the program knew of it.
    Inherited {
        /// The job.
        job: JobId,
        /// Its mode.
        mode: JobMode,
        /// Who waits.
        callers: Vec<InvocationId>,
        /// Whether callers of the host it was adopted from may still come back.
        awaited: bool,
    },
    /// This host ends, and the callers of these sessions may come back to another one.
    Left {
        /// The sessions.
        returning: HashSet<SessionNumber>,
    },
    /// Attend to no job any more.
    LetGo,
    /// Attend to them again.
    Resume,
    /// The supervisor was started again. Whoever asked its last incarnation asks again.
    Restarted,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobsEffect {
    /// Ask the store to accept.
    Accept(AskId),
    /// Answer that the caller withdrew before the consult was accepted; nothing was started.
    RefuseWithdrawn(AskId),
    /// Answer with the store's refusal.
    Refuse(AskId),
    /// Make custody of this job.
    Attach(JobId),
    /// Make custody of this job, at which somebody works whom another host started: it is followed by the store.
    AttachByStore(JobId),
    /// Tell when the time is over in which this job's callers may come back.
    AwaitCallers(JobId),
    /// Put a consult actor to this attached job, unless it has one.
    Attend(JobId),
    /// Answer with the job.
    Answer(AskId),
    /// Make it a background job in the store.
    HandOver(JobId),
    /// Record `caller_lost` in the store; unless the store says that the job goes on, ask its runner to end it.
    EndForLostCaller(JobId),
    /// Ask its runner to end it.
    Terminate(JobId),
    /// Take the consult actor from this job; its custody stays.
    SetAside(JobId),
    /// Let go of its custody.
    Release(JobId),
    /// Tell whoever had attention withdrawn that no accept is under way.
    Still,
}

/// Who a job is run for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    mode: JobMode,
    callers: BTreeSet<InvocationId>,
    /// Accepts that were under way when the last caller left: one of them may join.
    doubt: BTreeSet<AskId>,
    /// Somebody waits who is no call of a session, so whoever else leaves is not the last.
    kept: bool,
    /// Its end was asked for because nobody waits.
    lost: bool,
    /// It was adopted, and callers it had may still come back.
    awaited: bool,
}

impl Claim {
    fn new(mode: JobMode) -> Self {
        let (callers, doubt) = (BTreeSet::new(), BTreeSet::new());
        Self { mode, callers, doubt, kept: false, lost: false, awaited: false }
    }

    /// Whether a caller waits for it.
    #[must_use]
    pub const fn mode(&self) -> JobMode {
        self.mode
    }

    /// Who waits.
    pub fn callers(&self) -> impl Iterator<Item = InvocationId> {
        self.callers.iter().copied()
    }

    /// Whether its end was asked for because nobody waits.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether callers it had when it was adopted may still come back.
    #[must_use]
    pub const fn is_awaited(&self) -> bool {
        self.awaited
    }

    fn in_background(&mut self) {
        self.mode = JobMode::Background;
        self.awaited = false;
        self.callers.clear();
        self.doubt.clear();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ask {
    caller: Option<InvocationId>,
    mode: JobMode,
    withdrawn: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Attention {
    #[default]
    Paid,
    /// Withdrawn, and whoever had it withdrawn waits for the accepts under way.
    Withdrawing,
    Withdrawn,
}

/// The state. It outlives every incarnation of the supervisor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobsCore {
    asks: BTreeMap<AskId, Ask>,
    claims: BTreeMap<JobId, Claim>,
    /// Who waits for jobs of this host of which there is no custody yet.
    early: BTreeMap<JobId, BTreeSet<InvocationId>>,
    /// Calls and sessions that were withdrawn before their consult arrived here: the two take different ways.
    late: VecDeque<InvocationId>,
    over: VecDeque<SessionNumber>,
    attention: Attention,
    /// How many asks there were.
    asked: u64,
}

impl JobsCore {
    /// The claim of an attached job.
    #[must_use]
    pub fn claim(&self, job: JobId) -> Option<&Claim> {
        self.claims.get(&job)
    }

    /// The attached jobs and their claims.
    pub fn claims(&self) -> impl Iterator<Item = (JobId, &Claim)> {
        self.claims.iter().map(|(job, claim)| (*job, claim))
    }

    /// Whether an accept is under way.
    #[must_use]
    pub fn is_accepting(&self) -> bool {
        !self.asks.is_empty()
    }

    /// Whether jobs are attended to.
    #[must_use]
    pub fn is_attentive(&self) -> bool {
        self.attention == Attention::Paid
    }

    /// The number of a new ask.
    pub fn next_ask(&mut self) -> AskId {
        self.asked += 1;
        AskId(self.asked)
    }

    /// Takes what happened; adds what is to be done, in this order.
    pub fn step(&mut self, event: JobsEvent, effects: &mut Vec<JobsEffect>) {
        match event {
            JobsEvent::Asked { ask, caller, mode } => self.asked(ask, caller, mode, effects),
            JobsEvent::Stored { ask, found } => self.stored(ask, found, effects),
            JobsEvent::Withdrawn(caller) => self.withdrawn(caller, effects),
            JobsEvent::Resumed { session, open } => {
                let open = |caller: &InvocationId| caller.is_embedders() || open.contains(&caller.call);
                self.all_withdrawn(|caller| caller.session == session && !open(caller), effects);
            }
            JobsEvent::SessionOver(session) => {
                self.all_withdrawn(|caller| caller.session == session, effects);
                remember(&mut self.over, session);
            }
            JobsEvent::HandedOver(job) => {
                if let Some(claim) = self.claims.get_mut(&job) {
                    claim.in_background();
                }
            }
            JobsEvent::Terminate(job) => {
                if self.claims.contains_key(&job) {
                    effects.push(JobsEffect::Terminate(job));
                }
            }
            JobsEvent::Ended(job) => {
                if self.claims.remove(&job).is_some() {
                    effects.push(JobsEffect::Release(job));
                }
            }
            JobsEvent::Orphaned { job, mode } => self.attach(job, mode, JobsEffect::Attach(job), effects),
            JobsEvent::Adopted { job, mode } => self.adopt(job, mode, effects),
            JobsEvent::CallersDue(job) => self.callers_due(job, effects),
            JobsEvent::Inherited { job, mode, callers, awaited } => {
                let claim = self.claims.entry(job).or_insert_with(|| Claim::new(mode));
                claim.callers.extend(callers);
                claim.awaited |= awaited && mode == JobMode::Sync;
                if self.attention == Attention::Paid {
                    effects.push(JobsEffect::Attend(job));
                }
            }
            JobsEvent::Left { returning } => self.left(&returning, effects),
            JobsEvent::LetGo => {
                self.attention = Attention::Withdrawing;
                effects.extend(self.claims.keys().map(|job| JobsEffect::SetAside(*job)));
            }
            JobsEvent::Resume => {
                self.attention = Attention::Paid;
                effects.extend(self.claims.keys().map(|job| JobsEffect::Attend(*job)));
            }
            JobsEvent::Restarted => self.restarted(effects),
        }
        if self.attention == Attention::Withdrawing && self.asks.is_empty() {
            self.attention = Attention::Withdrawn;
            effects.push(JobsEffect::Still);
        }
    }

    fn asked(&mut self, ask: AskId, caller: Option<InvocationId>, mode: JobMode, effects: &mut Vec<JobsEffect>) {
        let is_over = |caller: InvocationId| self.late.contains(&caller) || self.over.contains(&caller.session);
        if caller.is_some_and(is_over) {
            // Nobody waits for it any more, so nothing is started.
            effects.push(JobsEffect::RefuseWithdrawn(ask));
            return;
        }
        self.asks.insert(ask, Ask { caller, mode, withdrawn: false });
        effects.push(JobsEffect::Accept(ask));
    }

    fn stored(&mut self, ask: AskId, found: Option<Found>, effects: &mut Vec<JobsEffect>) {
        // An ask of an earlier incarnation is not answered, but what the store made of it has to be looked after.
        let asked = self.asks.remove(&ask);
        if let Some(found) = found {
            match found.custodian {
                Custodian::Inserted | Custodian::Unattended | Custodian::Orphan => {
                    self.attach(found.job, found.mode, JobsEffect::Attach(found.job), effects);
                }
                Custodian::Adopted => self.adopt(found.job, found.mode, effects),
                Custodian::Here | Custodian::Somebody => {}
            }
            if let Some(ask) = asked {
                self.joined(found, ask, effects);
            } else {
                self.unclaimed(found, effects);
            }
        }
        // Also when nothing was accepted: an earlier attempt of the same call may have a job.
        if let Some(Ask { withdrawn: true, caller: Some(caller), .. }) = asked {
            self.withdrawn(caller, effects);
        }
        self.settle_doubts(ask, effects);
        if asked.is_some() {
            effects.push(if found.is_some() { JobsEffect::Answer(ask) } else { JobsEffect::Refuse(ask) });
        }
    }

    /// Notes that somebody has this job.
    fn joined(&mut self, found: Found, ask: Ask, effects: &mut Vec<JobsEffect>) {
        let depends = found.mode == JobMode::Sync && !found.state.is_terminal();
        match (ask.caller, self.claims.get_mut(&found.job)) {
            (Some(caller), Some(claim)) => {
                claim.callers.insert(caller);
                claim.doubt.clear();
            }
            // Who asked for a background job may go; the caller it was accepted for must not take it along.
            // One that is being ended is not taken over: its end is on its way.
            (None, Some(claim)) if claim.mode == JobMode::Sync && ask.mode == JobMode::Background && !claim.lost => {
                claim.in_background();
                effects.push(JobsEffect::HandOver(found.job));
            }
            // An embedding program's own consult waits like a call, and is never withdrawn.
            (None, Some(claim)) if ask.mode == JobMode::Sync => {
                claim.kept = true;
                claim.doubt.clear();
            }
            // It runs under this host, and its caller is this host's to tell of: it claims the job once that is attached.
            (Some(caller), None) if depends && found.custodian == Custodian::Here => {
                self.early.entry(found.job).or_default().insert(caller);
                while self.early.len() > LATE {
                    self.early.pop_first();
                }
            }
            // It runs under another host, whose own callers must not end it for ours.
            (_, None) if depends => effects.push(JobsEffect::HandOver(found.job)),
            _ => {}
        }
    }

    /// A synchronous job that was accepted for an incarnation that is gone waits for its caller to ask again, and has none
    /// until then.
    fn unclaimed(&mut self, found: Found, effects: &mut Vec<JobsEffect>) {
        if let Some(claim) = self.claims.get_mut(&found.job)
            && claim.mode == JobMode::Sync
            && claim.callers.is_empty()
        {
            lose(found.job, claim, &self.asks, effects);
        }
    }

    /// Looks after a job whose host is gone. Its callers, if it depends on any, are given time to come back.
    fn adopt(&mut self, job: JobId, mode: JobMode, effects: &mut Vec<JobsEffect>) {
        let is_new = !self.claims.contains_key(&job);
        self.attach(job, mode, JobsEffect::AttachByStore(job), effects);
        if let Some(claim) = self.claims.get_mut(&job).filter(|_| is_new && mode == JobMode::Sync) {
            claim.awaited = true;
            effects.push(JobsEffect::AwaitCallers(job));
        }
    }

    /// Whoever has not come back by now has lost its job.
    fn callers_due(&mut self, job: JobId, effects: &mut Vec<JobsEffect>) {
        let Some(claim) = self.claims.get_mut(&job) else { return };
        if std::mem::take(&mut claim.awaited) && claim.callers.is_empty() {
            lose(job, claim, &self.asks, effects);
        }
    }

    fn attach(&mut self, job: JobId, mode: JobMode, made: JobsEffect, effects: &mut Vec<JobsEffect>) {
        if self.claims.contains_key(&job) {
            return;
        }
        let mut claim = Claim::new(mode);
        claim.callers.extend(self.early.remove(&job).unwrap_or_default());
        self.claims.insert(job, claim);
        effects.push(made);
        if self.attention == Attention::Paid {
            effects.push(JobsEffect::Attend(job));
        }
    }

    fn withdrawn(&mut self, caller: InvocationId, effects: &mut Vec<JobsEffect>) {
        if let Some(ask) = self.asks.values_mut().find(|ask| ask.caller == Some(caller)) {
            ask.withdrawn = true;
            return;
        }
        remember(&mut self.late, caller);
        self.early.retain(|_, callers| {
            callers.remove(&caller);
            !callers.is_empty()
        });
        for (job, claim) in &mut self.claims {
            if claim.callers.remove(&caller) && claim.callers.is_empty() && claim.mode == JobMode::Sync {
                lose(*job, claim, &self.asks, effects);
            }
        }
    }

    fn all_withdrawn(&mut self, lost: impl Fn(&InvocationId) -> bool, effects: &mut Vec<JobsEffect>) {
        let asking = self.asks.values().filter_map(|ask| ask.caller);
        let waiting = self.claims.values().flat_map(Claim::callers).chain(self.early.values().flatten().copied());
        let callers: BTreeSet<InvocationId> = asking.chain(waiting).filter(lost).collect();
        for caller in callers {
            self.withdrawn(caller, effects);
        }
    }

    /// An ask is over: a job that was kept for it is asked to end when nobody joined it.
    fn settle_doubts(&mut self, ask: AskId, effects: &mut Vec<JobsEffect>) {
        for (job, claim) in &mut self.claims {
            if claim.doubt.remove(&ask) && claim.doubt.is_empty() && claim.callers.is_empty() && !claim.kept {
                claim.lost = true;
                effects.push(JobsEffect::EndForLostCaller(*job));
            }
        }
    }

    /// Lets go of every job that others may adopt: one in the background, and one whose callers may come back or are waited for.
    /// The others have lost theirs.
    fn left(&mut self, returning: &HashSet<SessionNumber>, effects: &mut Vec<JobsEffect>) {
        let may_return = |caller: &InvocationId| returning.contains(&caller.session);
        let goes =
            |claim: &Claim| claim.mode == JobMode::Background || claim.awaited || claim.callers.iter().any(may_return);
        let left = self.claims.extract_if(.., |_, claim| !claim.lost && goes(claim));
        effects.extend(left.map(|(job, _)| JobsEffect::Release(job)));
    }

    fn restarted(&mut self, effects: &mut Vec<JobsEffect>) {
        let asks = std::mem::take(&mut self.asks);
        for ask in asks.values().filter(|ask| ask.withdrawn) {
            // It does not ask again, but its ask may be on its way, and an earlier attempt of it may have a job.
            if let Some(caller) = ask.caller {
                self.withdrawn(caller, effects);
            }
        }
        for ask in asks.keys() {
            self.settle_doubts(*ask, effects);
        }
        // Whoever had it withdrawn asked the last incarnation, and may not reach this one to give it back: the hand-over that
        // was under way fails on a job that is attended to, and is tried again.
        self.attention = Attention::Paid;
        effects.extend(self.claims.keys().map(|job| JobsEffect::Attend(*job)));
        // Whoever was to tell is gone with the last incarnation.
        let awaited = self.claims.iter().filter(|(_, claim)| claim.awaited);
        effects.extend(awaited.map(|(job, _)| JobsEffect::AwaitCallers(*job)));
    }
}

/// The last caller of a job is gone. While an accept is under way, it may join.
fn lose(job: JobId, claim: &mut Claim, asks: &BTreeMap<AskId, Ask>, effects: &mut Vec<JobsEffect>) {
    if claim.lost || claim.kept || claim.awaited {
        return;
    }
    claim.doubt = asks.iter().filter(|(_, ask)| !ask.withdrawn).map(|(ask, _)| *ask).collect();
    if claim.doubt.is_empty() {
        claim.lost = true;
        effects.push(JobsEffect::EndForLostCaller(job));
    }
}

fn remember<T>(remembered: &mut VecDeque<T>, new: T) {
    if remembered.len() == LATE {
        remembered.pop_front();
    }
    remembered.push_back(new);
}

#[cfg(test)]
mod tests;
