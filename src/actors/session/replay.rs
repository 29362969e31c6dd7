//! May a call run again? One total function of what is known, what the tool promises and what evidence says.
//!
//! May not know: why the worker is gone or whether another one will come; that is `slot`'s affair, and no type is
//! shared with it.

use crate::tools::{Evidence, ReplayContract};

/// Attempts a convergent call gets in all. Two: a call that kills two workers would kill the third.
pub const ATTEMPTS: u32 = 2;

/// What is known about a call's execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Knowledge {
    /// No worker was given it.
    NotDispatched,
    /// A worker was given it and has not reported.
    InFlight,
    /// The worker it was given to is gone.
    OutcomeUnknown,
}

/// What to do with a call after its worker was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Disposition {
    /// Give it to the next generation as if nothing had happened: no worker ever had it.
    Dispatch,
    /// Run it again.
    Replay,
    /// Look for evidence first.
    Probe,
    /// It took effect: the next attempt attaches to what is there.
    Attach,
    /// Fail it: it is not known whether it ran.
    FailUnknown,
    /// Fail it: it was tried often enough.
    FailExhausted,
}

/// The whole table. `evidence` is `None` until a probe has answered; `attempts` counts those already made.
#[must_use]
pub fn disposition(
    knowledge: Knowledge,
    contract: ReplayContract,
    evidence: Option<Evidence>,
    attempts: u32,
) -> Disposition {
    match (knowledge, contract, evidence) {
        (Knowledge::NotDispatched, _, _) => Disposition::Dispatch,
        (_, ReplayContract::NeverReplay, _) => Disposition::FailUnknown,
        (_, ReplayContract::Convergent, _) if attempts < ATTEMPTS => Disposition::Replay,
        (_, ReplayContract::Convergent, _) => Disposition::FailExhausted,
        (_, ReplayContract::ProbeRequired, None) => Disposition::Probe,
        (_, ReplayContract::ProbeRequired, Some(Evidence::Unknown)) => Disposition::FailUnknown,
        // Attaching starts nothing, so it needs no budget beyond the slot's own restart intensity.
        (_, ReplayContract::ProbeRequired, Some(Evidence::Accepted)) => Disposition::Attach,
        (_, ReplayContract::ProbeRequired, Some(Evidence::NotAccepted)) if attempts < ATTEMPTS => Disposition::Replay,
        (_, ReplayContract::ProbeRequired, Some(Evidence::NotAccepted)) => Disposition::FailExhausted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_of_contract_knowledge_evidence_and_budget() {
        use Disposition as D;
        use Evidence as E;
        use Knowledge as K;
        use ReplayContract as C;
        let evidence = [None, Some(E::Accepted), Some(E::NotAccepted), Some(E::Unknown)];
        // One row per contract and knowledge; columns: evidence as above, first with budget left, then without.
        let table = [
            (C::Convergent, K::NotDispatched, [D::Dispatch; 4], [D::Dispatch; 4]),
            (C::ProbeRequired, K::NotDispatched, [D::Dispatch; 4], [D::Dispatch; 4]),
            (C::NeverReplay, K::NotDispatched, [D::Dispatch; 4], [D::Dispatch; 4]),
            (C::Convergent, K::InFlight, [D::Replay; 4], [D::FailExhausted; 4]),
            (C::Convergent, K::OutcomeUnknown, [D::Replay; 4], [D::FailExhausted; 4]),
            (C::NeverReplay, K::InFlight, [D::FailUnknown; 4], [D::FailUnknown; 4]),
            (C::NeverReplay, K::OutcomeUnknown, [D::FailUnknown; 4], [D::FailUnknown; 4]),
            (
                C::ProbeRequired,
                K::InFlight,
                [D::Probe, D::Attach, D::Replay, D::FailUnknown],
                [D::Probe, D::Attach, D::FailExhausted, D::FailUnknown],
            ),
            (
                C::ProbeRequired,
                K::OutcomeUnknown,
                [D::Probe, D::Attach, D::Replay, D::FailUnknown],
                [D::Probe, D::Attach, D::FailExhausted, D::FailUnknown],
            ),
        ];
        assert_eq!(table.len(), C::ALL.len() * 3);
        for (contract, knowledge, fresh, spent) in table {
            for (column, evidence) in evidence.into_iter().enumerate() {
                let what = format!("{contract:?} {knowledge:?} {evidence:?}");
                assert_eq!(disposition(knowledge, contract, evidence, ATTEMPTS - 1), fresh[column], "{what}");
                assert_eq!(disposition(knowledge, contract, evidence, ATTEMPTS), spent[column], "{what}");
            }
        }
    }
}
