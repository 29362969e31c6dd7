//! Fault points: how crashes are made to happen where they matter, on purpose and on the real program.
//!
//! Owns: what an armed plan does when a point is met: who fires, what is carried out here, what is given back to the
//! site. May not know: the actors and processes that meet the points; the process's environment, which is passed in.
//!
//! A plan is a value a system is given. A site asks at its point and does what it is told:
//!
//! ```text
//! match faults.meet(FaultPoint::WorkerBeforeReply, Operation::Tool(name)).await {
//!     None => {}                                  // unarmed, not met, not due, or only a delay
//!     Some(Broken::Error(fault)) => return Err(fault),
//!     Some(other) => …                            // what the table of `point` accepts here
//! }
//! ```
//!
//! Invariants: (1) unarmed, a point costs one branch; (2) at most one rule fires per hit, the first that is due, and a
//! hit is counted by every rule it meets that is not spent; (3) a rule is counted, and a once-rule spent, before its action is carried
//! out; (4) only a process that said so is ended (L12).

mod counters;
mod plan;
mod point;

use std::ffi::OsString;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use rustix::process::{Signal, getpid, kill_process};
use serde::Serialize;

pub use counters::{CountersError, FAULT_COUNTERS, FaultCounters};
pub use plan::{
    CRASH_ONCE_KEY, FAULT_SEED, FAULTS, FORCE_ROLLOUT_KEY, FaultPlan, FaultRule, MAX_RULES, PlanError, PlanPlace,
    PlanProblem, When,
};
pub use point::{ActionKind, FaultAction, FaultPoint, Operation, Operations, Tools};

use crate::base::fault::{Fault, FaultCode};
use counters::Tally;

/// Whether `exit`, `kill` and `abort` may end this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// They may: it is a process of our own.
    Process,
    /// They may not: it belongs to an embedding program. Rules that could do it are refused; those of runners, which
    /// are always processes of their own, are not.
    Nothing,
}

/// Why a plan cannot be armed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArmError {
    /// It is no plan.
    #[error("arm a fault plan: {0}")]
    Plan(#[from] PlanError),
    /// Some of its rules would end a process that may not be ended.
    #[error(
        "arm a plan that would end the embedding process: {}; accepted at these points: any other action",
        rules.join("; ")
    )]
    EndsProcess {
        /// The rules as they are written.
        rules: Vec<String>,
    },
    /// The counts have no place.
    #[error("arm a fault plan")]
    Counters(#[from] CountersError),
}

/// What a site has to do because of a fault. The rest was done before it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// Fail with this.
    Error(Box<Fault>),
    /// Lose the message.
    Drop,
    /// Write the first half of the bytes and no more.
    Torn,
    /// Write a line that is no message.
    Garbage,
    /// Say nothing ever again.
    Silence,
    /// Read nothing ever again.
    StopReading,
}

/// What is left to do for a site that met a point inside a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InTurn {
    /// Do this.
    Do(Broken),
    /// Do nothing else before so much time has passed; `None` is for ever.
    Wait(Option<std::time::Duration>),
}

/// A rule that has fired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Fired {
    /// The rule as it is written.
    pub rule: String,
    /// How often.
    pub count: u64,
}

/// The armed plan of a system, if it has one. Cheap to clone; all clones count together.
///
/// ```
/// use phone_opus::Faults;
///
/// let faults = Faults::armed("worker.before_reply@tools/call:charge=panic")?;     // for `SystemBuilder::faults`
/// assert!(faults.plan().is_some() && Faults::none().plan().is_none());
/// // After the test: the call was struck, or the test has shown nothing. Here nobody has called.
/// assert!(faults.fired().is_empty() && faults.never_met().len() == 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Faults(Option<Arc<Armed>>);

/// A point being met; see [`Faults::meet`].
///
/// By hand rather than `async`: it is two words in a site's future and a branch in its poll when nothing happens.
#[must_use = "nothing happens unless it is awaited"]
pub struct Meeting<'a>(Option<Pin<Box<dyn Future<Output = Option<Broken>> + Send + 'a>>>);

impl Future for Meeting<'_> {
    type Output = Option<Broken>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            None => Poll::Ready(None),
            Some(met) => met.as_mut().poll(cx),
        }
    }
}

#[derive(Debug)]
struct Armed {
    plan: FaultPlan,
    ends: Ends,
    /// A bit for each point a rule is about.
    points: u32,
    tally: Tally,
    /// Whether anything has fired in this process.
    fired: AtomicBool,
}

// A bit for each point must fit.
const _: () = assert!(FaultPoint::ALL.len() <= u32::BITS as usize);

const fn bit(point: FaultPoint) -> u32 {
    1 << point as u32
}

impl Faults {
    /// Nothing is armed and nothing ever fires.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// Arms a plan. An empty one arms nothing.
    ///
    /// # Errors
    ///
    /// The plan would end a process that may not be ended, or the counters cannot be used.
    #[doc(hidden)]
    pub fn arm(plan: FaultPlan, ends: Ends, counters: FaultCounters) -> Result<Self, ArmError> {
        if plan.is_empty() {
            return Ok(Self::none());
        }
        if ends == Ends::Nothing {
            let here = |rule: &&FaultRule| rule.action.kind().ends_process() && !rule.point.is_runners_own();
            let rules: Vec<String> = plan.rules().iter().filter(here).map(ToString::to_string).collect();
            if !rules.is_empty() {
                return Err(ArmError::EndsProcess { rules });
            }
        }
        // The forced upgrade has a count of its own behind those of the rules: it is spent across upgrades, too.
        let counts = plan.rules().len() + usize::from(plan.force_rollout().is_some());
        let tally = Tally::new(counters, plan.fingerprint(), counts)?;
        let points = plan.rules().iter().fold(0, |points, rule| points | bit(rule.point));
        Ok(Self(Some(Arc::new(Armed { plan, ends, points, tally, fired: AtomicBool::new(false) }))))
    }

    /// Arms a plan as it is written, for a system in this process: `Faults::armed("worker.before_reply=panic")?`. It is
    /// counted in memory, and a rule that would end the process is refused.
    ///
    /// # Errors
    ///
    /// It is no plan, or would end this process.
    pub fn armed(plan: &str) -> Result<Self, ArmError> {
        Self::arm(plan.parse()?, Ends::Nothing, FaultCounters::Memory)
    }

    /// Whether anything can fire.
    #[inline]
    #[must_use]
    #[doc(hidden)]
    pub const fn is_armed(&self) -> bool {
        self.0.is_some()
    }

    /// Whether any rule is about this point and operation, spent or not. Unarmed, and for other points, one branch.
    #[inline]
    #[must_use]
    #[doc(hidden)]
    pub fn concern(&self, point: FaultPoint, operation: Operation<'_>) -> bool {
        match &self.0 {
            Some(armed) if armed.points & bit(point) != 0 => {
                armed.plan.rules().iter().any(|rule| rule.is_met(point, operation))
            }
            _ => false,
        }
    }

    /// Whether anything has fired in this process. From then on parts look after their own laws.
    #[inline]
    #[must_use]
    #[doc(hidden)]
    pub fn have_fired(&self) -> bool {
        self.0.as_ref().is_some_and(|armed| armed.fired.load(Ordering::Relaxed))
    }

    /// The plan that is armed.
    #[must_use]
    pub fn plan(&self) -> Option<&FaultPlan> {
        self.0.as_deref().map(|armed| &armed.plan)
    }

    /// Counts the hit and says what is to happen, for a site that carries all of it out itself. Others use
    /// [`Faults::meet`].
    ///
    /// With counters in a file it blocks for some microseconds, and at worst for two seconds, when a rule is met.
    #[inline]
    #[must_use]
    #[doc(hidden)]
    pub fn drawn(&self, point: FaultPoint, operation: Operation<'_>) -> Option<FaultAction> {
        match &self.0 {
            Some(armed) if armed.points & bit(point) != 0 => armed.drawn(point, operation),
            _ => None,
        }
    }

    /// Meets a point: panics, ends the process, waits, or says what the site must do. A delay ends in `None`.
    ///
    /// # Panics
    ///
    /// When the plan says so, with the text `fault point NAME`.
    ///
    /// # Cancel safety
    ///
    /// Safe: the hit is counted by the call, and a wait that is dropped is over.
    #[inline]
    #[doc(hidden)]
    pub fn meet<'a>(&'a self, point: FaultPoint, operation: Operation<'a>) -> Meeting<'a> {
        Meeting(self.drawn(point, operation).map(|action| self.carried_out(action, point, operation)))
    }

    #[cold]
    fn carried_out<'a>(
        &'a self,
        action: FaultAction,
        point: FaultPoint,
        operation: Operation<'a>,
    ) -> Pin<Box<dyn Future<Output = Option<Broken>> + Send + 'a>> {
        Box::pin(async move {
            match self.perform(action, point, operation) {
                Performed::Done(broken) => Some(broken),
                Performed::Delay(time) => {
                    tokio::time::sleep(time).await;
                    None
                }
                Performed::Hang => std::future::pending().await,
            }
        })
    }

    /// The same on a thread of its own: a delay sleeps the thread, a hang parks it for ever.
    ///
    /// # Panics
    ///
    /// When the plan says so, with the text `fault point NAME`.
    #[inline]
    #[must_use]
    #[doc(hidden)]
    pub fn meet_blocking(&self, point: FaultPoint, operation: Operation<'_>) -> Option<Broken> {
        let action = self.drawn(point, operation)?;
        match self.perform(action, point, operation) {
            Performed::Done(broken) => Some(broken),
            Performed::Delay(time) => {
                std::thread::sleep(time);
                None
            }
            Performed::Hang => loop {
                std::thread::park();
            },
        }
    }

    /// Meets a point inside a turn that must not wait: panics and ends the process at once; what is left is given back.
    ///
    /// # Panics
    ///
    /// When the plan says so, with the text `fault point NAME`.
    #[inline]
    #[must_use]
    #[doc(hidden)]
    pub fn meet_in_turn(&self, point: FaultPoint, operation: Operation<'_>) -> Option<InTurn> {
        let action = self.drawn(point, operation)?;
        Some(match self.perform(action, point, operation) {
            Performed::Done(broken) => InTurn::Do(broken),
            Performed::Delay(time) => InTurn::Wait(Some(time)),
            Performed::Hang => InTurn::Wait(None),
        })
    }

    /// Whether the worker is to be taken away because of an operation no worker executes (`ping`, a host tool): the
    /// session that serves it asks, and has the worker killed.
    ///
    /// It is what becomes of a rule `worker.before_execute@OPERATION` that panics or ends the process, be it from the
    /// plan or from the crash-once variable. The hit is counted, so it must not be asked about what a worker executes.
    #[inline]
    #[must_use]
    #[doc(hidden)]
    pub fn crash_key_matches(&self, operation: Operation<'_>) -> bool {
        match &self.0 {
            Some(armed) if armed.points & bit(FaultPoint::WorkerBeforeExecute) != 0 => armed.takes_worker(operation),
            _ => false,
        }
    }

    /// Whether an upgrade is to be forced because of this operation. The hit is counted, and the first one is it.
    #[inline]
    #[must_use]
    #[doc(hidden)]
    pub fn forces_rollout(&self, operation: Operation<'_>) -> bool {
        match &self.0 {
            Some(armed) => armed.forces_rollout(operation),
            None => false,
        }
    }

    /// The operation at which an upgrade is to be forced.
    #[must_use]
    #[doc(hidden)]
    pub fn force_rollout(&self) -> Option<&str> {
        self.plan().and_then(FaultPlan::force_rollout)
    }

    /// What has fired so far, in all processes that share the counts.
    #[must_use]
    pub fn fired(&self) -> Vec<Fired> {
        let Some(armed) = &self.0 else { return Vec::new() };
        let counts = armed.tally.counts();
        let fired = armed.plan.rules().iter().zip(counts).filter(|(_, count)| count.fired > 0);
        fired.map(|(rule, count)| Fired { rule: rule.to_string(), count: count.fired }).collect()
    }

    /// The rules nobody has met yet, in any process that shares the counts: what they were to break was not broken.
    #[must_use]
    pub fn never_met(&self) -> Vec<String> {
        let Some(armed) = &self.0 else { return Vec::new() };
        let counts = armed.tally.counts();
        let unmet = armed.plan.rules().iter().zip(&counts).filter(|(_, count)| count.hits == 0);
        let rollout = counts.get(armed.plan.rules().len()).filter(|count| count.hits == 0);
        let rollout = armed.plan.force_rollout().filter(|_| rollout.is_some());
        unmet
            .map(|(rule, _)| rule.to_string())
            .chain(rollout.map(|operation| format!("{FORCE_ROLLOUT_KEY}={operation}")))
            .collect()
    }

    /// The file the counts are kept in, if they are.
    #[must_use]
    #[doc(hidden)]
    pub fn counters_file(&self) -> Option<&Path> {
        self.0.as_deref().and_then(|armed| armed.tally.path())
    }

    /// The variables that arm a process of our own with the same plan and counts. Empty when nothing is armed.
    #[must_use]
    #[doc(hidden)]
    pub fn variables(&self) -> Vec<(&'static str, OsString)> {
        let Some(armed) = &self.0 else { return Vec::new() };
        let plan = armed.plan.variables().into_iter().map(|(name, value)| (name, value.into()));
        plan.chain(self.counters_file().map(|path| (FAULT_COUNTERS, path.into()))).collect()
    }

    #[cold]
    fn perform(&self, action: FaultAction, point: FaultPoint, operation: Operation<'_>) -> Performed {
        let may_end = self.0.as_ref().is_some_and(|armed| armed.ends == Ends::Process);
        let error = || {
            let operation = operation.text();
            let during = operation.as_deref().map_or_else(String::new, |operation| format!(" in {operation}"));
            let mut fault = Fault::new(FaultCode::Injected, format!("the fault point {point} was met{during}."));
            fault.stage = point.stage();
            fault.operation = operation;
            Performed::Done(Broken::Error(Box::new(fault)))
        };
        match action {
            FaultAction::Panic => panicked(point),
            FaultAction::Error => error(),
            // Armed in a process that was not to meet this point. It fails like an error rather than taking down what
            // is not ours.
            FaultAction::Exit(_) | FaultAction::Kill | FaultAction::Abort if !may_end => error(),
            FaultAction::Exit(code) => std::process::exit(code.into()),
            FaultAction::Kill => killed(),
            FaultAction::Abort => std::process::abort(),
            FaultAction::Delay(time) => Performed::Delay(time),
            FaultAction::Hang => Performed::Hang,
            FaultAction::Drop => Performed::Done(Broken::Drop),
            FaultAction::Torn => Performed::Done(Broken::Torn),
            FaultAction::Garbage => Performed::Done(Broken::Garbage),
            FaultAction::Silence => Performed::Done(Broken::Silence),
            FaultAction::StopReading => Performed::Done(Broken::StopReading),
        }
    }
}

/// What is left of an action after what can be done at once.
enum Performed {
    Done(Broken),
    Delay(std::time::Duration),
    Hang,
}

#[expect(clippy::panic, reason = "to panic is what the plan asks for")]
fn panicked(point: FaultPoint) -> ! {
    panic!("fault point {point}")
}

fn killed() -> ! {
    // Nothing may refuse a process its own end; if something does, the process ends all the same.
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}

impl Armed {
    #[cold]
    #[inline(never)]
    fn drawn(&self, point: FaultPoint, operation: Operation<'_>) -> Option<FaultAction> {
        self.fire(|rule| rule.is_met(point, operation))
    }

    #[cold]
    #[inline(never)]
    fn takes_worker(&self, operation: Operation<'_>) -> bool {
        self.fire(|rule| {
            let takes = rule.action == FaultAction::Panic || rule.action.kind().ends_process();
            // A rule for any operation is about what workers execute.
            takes && rule.operation.is_some() && rule.is_met(FaultPoint::WorkerBeforeExecute, operation)
        })
        .is_some()
    }

    #[cold]
    #[inline(never)]
    fn forces_rollout(&self, operation: Operation<'_>) -> bool {
        let index = self.plan.rules().len();
        let met = self.plan.force_rollout().is_some_and(|text| operation.is(text));
        met && self.tally.hits_known(index) == 0 && self.tally.raise(1 << index, |_, hits| hits == 1).is_some()
    }

    fn fire(&self, is_met: impl Fn(&FaultRule) -> bool) -> Option<FaultAction> {
        let rules = self.plan.rules();
        // A spent rule is left out: what was armed to happen once must not take a file's lock for ever after.
        let met = rules
            .iter()
            .enumerate()
            .filter(|(index, rule)| is_met(rule) && !self.plan.is_spent(*index, self.tally.hits_known(*index)))
            .fold(0_u64, |met, (index, _)| met | 1 << index);
        if met == 0 {
            return None;
        }
        let index = self.tally.raise(met, |index, hits| self.plan.is_due(index, hits))?;
        self.fired.store(true, Ordering::Relaxed);
        tracing::info!(rule = %rules[index], "a fault point fired");
        Some(rules[index].action)
    }
}

#[cfg(test)]
mod tests;
