//! What a host asks, by name, and what it is to it when there is no answer.
//!
//! Owns: the names of questions at fault points, the event that stands for a lost answer, the usage limit that an outcome tells of.
//! May not know: how anything is asked.

use std::time::{Duration, Instant};

use super::core::{HostEffect, HostEvent};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{FleetJobId, HostId, UnixMillis};
use crate::fleet::{CapScope, FleetError, FleetPause};
use crate::jobs::JobOutcome;

/// A question that is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    Renew { host: HostId, asked: Instant },
    Claim,
    Note(FleetJobId),
    Prepare(FleetJobId),
    Start(FleetJobId),
    Accept(FleetJobId),
    Tell(FleetJobId),
    Forget,
    Look(FleetJobId),
    Sweep,
    Read,
}

impl Question {
    /// What an effect asks; none where it waits for as long as it takes, or orders something.
    pub(super) const fn of(effect: &HostEffect, now: Instant) -> Option<Self> {
        Some(match effect {
            HostEffect::Renew { host, .. } => Self::Renew { host: *host, asked: now },
            HostEffect::Claim { .. } => Self::Claim,
            HostEffect::Note(run) => Self::Note(run.job),
            HostEffect::Prepare(claimed) => Self::Prepare(claimed.ticket.job),
            HostEffect::Start(ticket) => Self::Start(ticket.job),
            HostEffect::Accept(claimed) => Self::Accept(claimed.ticket.job),
            HostEffect::Tell { ticket, .. } => Self::Tell(ticket.job),
            HostEffect::Forget(_) => Self::Forget,
            HostEffect::Look(job) => Self::Look(*job),
            HostEffect::Sweep => Self::Sweep,
            HostEffect::Read => Self::Read,
            HostEffect::Follow(_) | HostEffect::Cancel(_) => return None,
        })
    }

    /// Its name at fault points.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Renew { .. } => "renew",
            Self::Claim => "claim",
            Self::Note(_) => "note",
            Self::Prepare(_) => "prepare",
            Self::Start(_) => "start",
            Self::Accept(_) => "accept",
            Self::Tell(_) => "tell",
            Self::Forget => "forget",
            Self::Look(_) => "look",
            Self::Sweep => "sweep",
            Self::Read => "read",
        }
    }

    /// What happened when nothing came of it.
    pub(super) fn failed(self, error: FleetError) -> Option<HostEvent> {
        Some(match self {
            Self::Renew { host, asked } => HostEvent::Renewed { host, asked, answer: Err(error) },
            Self::Claim => HostEvent::Claimed(Err(error)),
            Self::Note(job) => HostEvent::Noted { job, noted: false },
            Self::Start(job) => HostEvent::Started { job, answer: Err(error) },
            Self::Prepare(job) => HostEvent::Prepared { job, answer: Err(unanswered()) },
            Self::Accept(job) => HostEvent::Accepted { job, answer: Err(unanswered()) },
            Self::Tell(job) => HostEvent::Told { job, told: false },
            Self::Look(job) => HostEvent::Looked { job, cancel: false },
            Self::Sweep => HostEvent::Swept,
            Self::Read => HostEvent::Read(Vec::new()),
            // It stays noted, and is told once more.
            Self::Forget => return None,
        })
    }
}

/// Nobody answered; it is asked again.
fn unanswered() -> Fault {
    Fault::new(FaultCode::StoreUnavailable, "the store did not answer.")
}

/// The usage limit of an account that an outcome tells of. It is given as a time that is left, by this host's clock: the queue's own
/// says when it is over.
pub(super) fn pause_of(outcome: &JobOutcome, account: &str, now: UnixMillis) -> Option<FleetPause> {
    let fault = outcome.fault.as_ref().filter(|fault| fault.code == FaultCode::AgentRateLimited)?;
    let left = u64::try_from(fault.retry_at?.0.saturating_sub(now.0)).ok().filter(|left| *left > 0)?;
    (!account.is_empty()).then(|| FleetPause {
        scope: CapScope::Account(account.to_owned()),
        lasts: Duration::from_millis(left),
        why: fault.code.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failpoints::FaultPoint;

    #[test]
    fn a_limit_is_told_by_the_time_that_is_left_and_only_while_there_is_some() {
        const HOUR: i64 = 3_600_000;
        let limited = |code, retry_at: Option<i64>| {
            let fault = Fault { retry_at: retry_at.map(UnixMillis), ..Fault::new(code, "no more") };
            JobOutcome { fault: Some(fault), ..JobOutcome::default() }
        };
        let limit = FaultCode::AgentRateLimited;
        for (outcome, account, now, lasts) in [
            (limited(limit, Some(HOUR)), "a1", 0, Some(HOUR)),
            (limited(limit, Some(HOUR)), "a1", HOUR / 2, Some(HOUR / 2)),
            // A clock that is a day ahead of the database's tells as long a time.
            (limited(limit, Some(25 * HOUR)), "a1", 24 * HOUR, Some(HOUR)),
            (limited(limit, Some(HOUR)), "a1", HOUR, None),
            (limited(limit, Some(HOUR)), "a1", 2 * HOUR, None),
            (limited(limit, Some(HOUR)), "", 0, None),
            (limited(limit, None), "a1", 0, None),
            (limited(FaultCode::AgentMissing, Some(HOUR)), "a1", 0, None),
            (JobOutcome::default(), "a1", 0, None),
        ] {
            let pause = pause_of(&outcome, account, UnixMillis(now));
            let found = pause.as_ref().and_then(|pause| i64::try_from(pause.lasts.as_millis()).ok());
            assert_eq!(found, lasts, "{outcome:?} at {now}");
            assert!(pause.is_none_or(|pause| pause.scope == CapScope::Account("a1".into())));
        }
    }

    #[test]
    fn every_question_can_be_struck_by_its_name_and_its_lost_answer_is_an_event() {
        let (job, host, asked) = (FleetJobId::random(), HostId::random(), Instant::now());
        let all = [
            Question::Renew { host, asked },
            Question::Claim,
            Question::Note(job),
            Question::Prepare(job),
            Question::Start(job),
            Question::Accept(job),
            Question::Tell(job),
            Question::Forget,
            Question::Look(job),
            Question::Sweep,
            Question::Read,
        ];
        let known = FaultPoint::FleetAsk.operations().names(crate::failpoints::Tools::Any);
        assert_eq!(all.map(Question::name).map(str::to_owned).as_slice(), known);
        for question in all {
            let event = question.failed(FleetError::Unsure { detail: "cut".into() });
            assert_eq!(event.is_none(), question == Question::Forget, "{question:?}");
        }
    }
}
