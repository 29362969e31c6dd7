//! The order of a rollout, as a pure state machine.
//!
//! Owns: when a look is worth a check, what is waited out, what is remembered of a candidate that was refused, how long a
//! hand-over that failed is left alone. May not know: files, processes, clocks; it is told what was found and says what
//! to find out next.
//!
//! ```text
//! idle ──look due, or asked──▶ looking ──differs──▶ settling ─1 s─▶ looking ──equal twice──▶ reading
//!  ▲                             │ the running one, a refused one, none                        │ another content
//!  ├─────────────────────────────┘                                                             ▼
//!  ├──────────── refused ◀────────────────────────────────────────────────────────────────  checking
//!  └──────────── failed ◀── handing over ◀──passed─────────────────────────────────────────────┘
//! ```
//!
//! Invariants: (1) one rollout at a time: who asks during one joins it; (2) one thing is found out at a time, so an event
//! that does not belong to the state is an error of ours and changes nothing; (3) a file that was refused is not checked
//! again before it differs, unless somebody asks; (4) without an event nothing happens: idle holds no timer.

use std::time::{Duration, Instant};

use super::candidate::Verdict;
use super::fingerprint::{Digest, Fingerprint};
use super::selfcheck::SelfCheck;
use super::{NotAdopted, Trigger};
use crate::base::fault::{Fault, FaultCode};
use crate::config::RolloutMode;

/// Between two looks at a file that differs. Installers write in well under a second, or rename.
pub const SETTLE: Duration = Duration::from_secs(1);

/// Looks at one file before it counts as one that does not come to rest; the next request begins anew.
const MOST_LOOKS: u32 = 30;

/// How long a rollout that broke off is left alone at first; it doubles.
const BACKOFF: Duration = Duration::from_secs(60);

/// The longest it is left alone.
const BACKOFF_MOST: Duration = Duration::from_secs(30 * 60);

/// A file that is worth a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// How it looked, twice.
    pub fingerprint: Fingerprint,
    /// What is in it.
    pub digest: Digest,
}

/// A candidate that did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedCandidate {
    pub candidate: Candidate,
    pub verdict: Verdict,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RolloutEvent {
    /// A request was handled, and the last look is long enough ago.
    LookDue,
    /// Somebody wants a rollout.
    Asked(Trigger),
    /// A look was taken: the file, if there is one.
    Looked(Option<Fingerprint>),
    /// The pause between two looks is over.
    Rested,
    /// The file was read, and the running image too where that was possible.
    Read {
        /// The file; `None` when it could not be read.
        file: Option<Digest>,
        /// The running image.
        running: Option<Digest>,
    },
    /// The candidate was checked.
    Checked(Result<SelfCheck, Verdict>),
    /// The running image serves on.
    NotHandedOver(NotAdopted),
    /// Whoever carried this out was lost, with what was under way.
    Lost,
}

/// What is to be done. After each but [`RolloutEffect::Ended`] exactly one event is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RolloutEffect {
    /// Look at the launch path: [`RolloutEvent::Looked`].
    Look,
    /// Wait for [`SETTLE`]: [`RolloutEvent::Rested`].
    Rest,
    /// Read the file: [`RolloutEvent::Read`].
    Read,
    /// Check this: [`RolloutEvent::Checked`].
    Check(Candidate),
    /// Hand over to this: [`RolloutEvent::NotHandedOver`], or nothing ever again.
    HandOver(Candidate, SelfCheck),
    /// It is over, and nothing was adopted.
    Ended(Trigger, NotAdopted),
}

/// Where a rollout stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Idle,
    /// A look is being taken. `before` is how the file looked the last time.
    Looking {
        before: Option<Fingerprint>,
        looks: u32,
    },
    Settling {
        seen: Fingerprint,
        looks: u32,
    },
    Reading {
        seen: Fingerprint,
        looks: u32,
    },
    Checking {
        candidate: Candidate,
        looks: u32,
    },
    HandingOver,
}

/// When and whether there is a rollout.
#[derive(Debug, Clone)]
pub struct Rollout {
    mode: RolloutMode,
    /// Whether a difference is enough, where the mode allows it.
    stable: bool,
    /// The running image.
    running: Option<Fingerprint>,
    phase: Phase,
    /// Why there is a rollout; of an idle one, of the last.
    trigger: Trigger,
    /// Another file, or the same at another time, with the running image's content.
    same: Option<Fingerprint>,
    refused: Option<RefusedCandidate>,
    /// Rollouts that broke off, in a row.
    broken_off: u32,
    not_before: Option<Instant>,
}

impl Rollout {
    /// Idle. `running` is the running image's fingerprint, where it could be taken.
    #[must_use]
    pub const fn new(mode: RolloutMode, stable: bool, running: Option<Fingerprint>) -> Self {
        Self {
            mode,
            stable,
            running,
            phase: Phase::Idle,
            trigger: Trigger::Watch,
            same: None,
            refused: None,
            broken_off: 0,
            not_before: None,
        }
    }

    /// Whether looks are ever due.
    #[must_use]
    pub fn watches(&self) -> bool {
        self.mode == RolloutMode::Auto && self.stable
    }

    /// One word for where it stands.
    #[must_use]
    pub const fn state(&self) -> &'static str {
        match self.phase {
            Phase::Idle => "idle",
            Phase::Looking { .. } | Phase::Settling { .. } | Phase::Reading { .. } => "settling",
            Phase::Checking { .. } => "checking",
            Phase::HandingOver => "handing_over",
        }
    }

    /// Who began the rollout that is under way; of an idle one, the last.
    #[must_use]
    pub const fn trigger(&self) -> Trigger {
        self.trigger
    }

    /// The candidate that was refused last, as long as it is remembered.
    #[must_use]
    pub const fn refused(&self) -> Option<&RefusedCandidate> {
        self.refused.as_ref()
    }

    /// The one place where anything changes.
    ///
    /// # Errors
    ///
    /// `illegal_transition` for an event that does not belong to the state; nothing is changed.
    pub fn step(&mut self, event: RolloutEvent, now: Instant) -> Result<Vec<RolloutEffect>, Fault> {
        match (self.phase.clone(), event) {
            (Phase::Idle, RolloutEvent::LookDue) => Ok(self.look_due(now)),
            // A look is taken already.
            (_, RolloutEvent::LookDue) => Ok(Vec::new()),
            (Phase::Idle, RolloutEvent::Asked(trigger)) => Ok(self.begin(trigger)),
            (_, RolloutEvent::Asked(trigger)) => {
                if trigger.is_forced() {
                    self.trigger = trigger;
                }
                Ok(Vec::new())
            }
            (Phase::Looking { before, looks }, RolloutEvent::Looked(seen)) => Ok(self.looked(before, seen, looks)),
            (Phase::Settling { seen, looks }, RolloutEvent::Rested) => {
                self.phase = Phase::Looking { before: Some(seen), looks };
                Ok(vec![RolloutEffect::Look])
            }
            (Phase::Reading { seen, looks }, RolloutEvent::Read { file, running }) => {
                Ok(self.read(seen, looks, file, running, now))
            }
            (Phase::Checking { candidate, looks }, RolloutEvent::Checked(checked)) => {
                Ok(self.checked(candidate, looks, checked, now))
            }
            (Phase::HandingOver, RolloutEvent::NotHandedOver(why)) => Ok(self.broke_off(why, now)),
            (Phase::Idle, RolloutEvent::Lost) => Ok(Vec::new()),
            (_, RolloutEvent::Lost) => Ok(self.broke_off(NotAdopted::Interrupted, now)),
            (phase, event) => {
                Err(Fault::new(FaultCode::IllegalTransition, format!("a rollout in {phase:?} was told {event:?}.")))
            }
        }
    }

    fn look_due(&mut self, now: Instant) -> Vec<RolloutEffect> {
        if !self.watches() || self.not_before.is_some_and(|not_before| now < not_before) {
            return Vec::new();
        }
        self.begin(Trigger::Watch)
    }

    fn begin(&mut self, trigger: Trigger) -> Vec<RolloutEffect> {
        if self.mode == RolloutMode::Off {
            return vec![RolloutEffect::Ended(trigger, NotAdopted::Off)];
        }
        self.trigger = trigger;
        self.phase = Phase::Looking { before: None, looks: 0 };
        vec![RolloutEffect::Look]
    }

    fn looked(&mut self, before: Option<Fingerprint>, seen: Option<Fingerprint>, looks: u32) -> Vec<RolloutEffect> {
        let forced = self.trigger.is_forced();
        let Some(seen) = seen else {
            // Some installers remove the old file first.
            return match before {
                Some(before) => self.settle(before, looks),
                None => self.end(NotAdopted::Vanished),
            };
        };
        if Some(seen) == self.running && before.is_none() {
            // Nobody has touched it since it was started, so there is nothing to wait out.
            return if forced { self.read_now(seen, looks) } else { self.end(NotAdopted::Unchanged) };
        }
        let known = Some(seen) == self.same || self.refused.as_ref().is_some_and(|r| r.candidate.fingerprint == seen);
        if known && !forced {
            return self.end(NotAdopted::Unchanged);
        }
        if before == Some(seen) { self.read_now(seen, looks) } else { self.settle(seen, looks) }
    }

    fn settle(&mut self, seen: Fingerprint, looks: u32) -> Vec<RolloutEffect> {
        if looks >= MOST_LOOKS {
            return self.end(NotAdopted::Unsettled);
        }
        self.phase = Phase::Settling { seen, looks: looks + 1 };
        vec![RolloutEffect::Rest]
    }

    fn read_now(&mut self, seen: Fingerprint, looks: u32) -> Vec<RolloutEffect> {
        self.phase = Phase::Reading { seen, looks };
        vec![RolloutEffect::Read]
    }

    fn read(
        &mut self,
        seen: Fingerprint,
        looks: u32,
        file: Option<Digest>,
        running: Option<Digest>,
        now: Instant,
    ) -> Vec<RolloutEffect> {
        let Some(digest) = file else {
            // Its mode forbids it, or it is gone again.
            return self.refuse_unread(seen, now);
        };
        let candidate = Candidate { fingerprint: seen, digest };
        if !self.trigger.is_forced() {
            if running == Some(digest) {
                self.same = Some(seen);
                return self.end(NotAdopted::Unchanged);
            }
            // Touched, or copied over itself: what was refused is refused still. Its mode or owner may be
            // what was wrong with it.
            if let Some(refused) = &mut self.refused
                && refused.candidate.digest == digest
                && refused.candidate.fingerprint.has_same_access(&seen)
            {
                refused.candidate.fingerprint = seen;
                return self.end(NotAdopted::Unchanged);
            }
        }
        self.phase = Phase::Checking { candidate, looks };
        vec![RolloutEffect::Check(candidate)]
    }

    /// A file that cannot be read cannot be told from itself later, but by how it looks.
    fn refuse_unread(&mut self, seen: Fingerprint, now: Instant) -> Vec<RolloutEffect> {
        let candidate = Candidate { fingerprint: seen, digest: Digest::of("") };
        let verdict = Verdict::Unreadable(std::io::ErrorKind::PermissionDenied);
        self.checked(candidate, 0, Err(verdict), now)
    }

    fn checked(
        &mut self,
        candidate: Candidate,
        looks: u32,
        checked: Result<SelfCheck, Verdict>,
        now: Instant,
    ) -> Vec<RolloutEffect> {
        match checked {
            Ok(said) => {
                self.phase = Phase::HandingOver;
                vec![RolloutEffect::HandOver(candidate, said)]
            }
            Err(Verdict::Replaced) => self.settle(candidate.fingerprint, looks),
            Err(verdict) if verdict.condemns() => {
                self.refused = Some(RefusedCandidate { candidate, verdict: verdict.clone() });
                self.end(NotAdopted::Rejected(verdict))
            }
            Err(verdict) => self.broke_off(NotAdopted::Rejected(verdict), now),
        }
    }

    /// Through no fault of the file: it is left alone for a while, and longer each time.
    fn broke_off(&mut self, why: NotAdopted, now: Instant) -> Vec<RolloutEffect> {
        let wait = BACKOFF.saturating_mul(1 << self.broken_off.min(16)).min(BACKOFF_MOST);
        self.broken_off += 1;
        self.not_before = now.checked_add(wait);
        self.end(why)
    }

    fn end(&mut self, why: NotAdopted) -> Vec<RolloutEffect> {
        self.phase = Phase::Idle;
        vec![RolloutEffect::Ended(self.trigger, why)]
    }
}

#[cfg(test)]
mod tests;
