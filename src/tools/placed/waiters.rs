//! The calls of this host that wait for jobs of the fleet.
//!
//! Owns: which job loses its last caller, and is cancelled. [`WaitersCore`] decides. May not know: how a job is cancelled, sessions.
//!
//! ```text
//!  asked ──▶ waits ── answered, told to go on in the background ──▶ forgotten
//!              └── withdrawn, its session over ──▶ the job's last caller? ── yes ──▶ cancelled
//! ```
//!
//! The database knows no callers. A host that is killed therefore cancels nothing: what it asked for goes on, as a job in the background.
//!
//! Invariants: (1) a job is cancelled only where this host put it into the queue, and once; (2) a call that was withdrawn before
//! it asked puts nothing into the queue; (3) what lets its jobs go, for another image or host, cancels none.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::base::ids::{FleetJobId, InvocationId, SessionNumber};

/// Withdrawn calls and sessions that are remembered: a call that was withdrawn on its way asks within a few messages.
const REMEMBERED: usize = 256;

/// What changes who waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitersEvent {
    /// A call was withdrawn.
    Withdrawn(InvocationId),
    /// A session is over.
    SessionOver(SessionNumber),
    /// A session goes on with these calls open, and no others.
    Resumed {
        /// The session.
        session: SessionNumber,
        /// Its calls.
        open: HashSet<u64>,
    },
    /// Another image takes over, and the calls with it.
    LetGo,
    /// It did not: this one goes on.
    Resume,
    /// This host ends; the callers of these sessions come back to another one.
    Left {
        /// The sessions.
        returning: HashSet<SessionNumber>,
    },
    /// This host ends, and its callers with it.
    Ends,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gone {
    Call(InvocationId),
    Session(SessionNumber),
}

/// The rules.
#[derive(Debug, Default)]
pub struct WaitersCore {
    /// Calls are bounded by the ledgers of their sessions, so these are.
    waiting: HashMap<InvocationId, FleetJobId>,
    gone: VecDeque<Gone>,
    lets_go: bool,
}

impl WaitersCore {
    /// A call is about to ask for a job under this id. The id it asks with: that of an earlier attempt, where there was one.
    /// `None` for a call that was withdrawn already.
    pub fn asks(&mut self, call: InvocationId, job: FleetJobId) -> Option<FleetJobId> {
        if self.gone.contains(&Gone::Call(call)) || self.gone.contains(&Gone::Session(call.session)) {
            return None;
        }
        Some(*self.waiting.entry(call).or_insert(job))
    }

    /// It joined this job, which is its own or somebody else's.
    pub fn joined(&mut self, call: InvocationId, job: FleetJobId, own: bool) {
        match self.waiting.get_mut(&call) {
            Some(waits) if own => *waits = job,
            Some(waits) if *waits != job => drop(self.waiting.remove(&call)),
            _ => {}
        }
    }

    /// A call was answered, or its job goes on without it.
    pub fn settled(&mut self, call: InvocationId) {
        self.waiting.remove(&call);
    }

    /// A job was asked for in the background: it depends on nobody any more.
    pub fn background(&mut self, job: FleetJobId) {
        self.waiting.retain(|_, waits| *waits != job);
    }

    /// The jobs that are to be cancelled.
    #[must_use]
    pub fn step(&mut self, event: WaitersEvent) -> Vec<FleetJobId> {
        match event {
            WaitersEvent::Withdrawn(call) => {
                self.remember(Gone::Call(call));
                self.lost(|waits| *waits == call)
            }
            WaitersEvent::SessionOver(session) => {
                self.remember(Gone::Session(session));
                self.lost(|waits| waits.session == session)
            }
            WaitersEvent::Resumed { session, open } => {
                self.lost(|waits| waits.session == session && !open.contains(&waits.call))
            }
            WaitersEvent::LetGo => {
                self.lets_go = true;
                Vec::new()
            }
            WaitersEvent::Resume => {
                self.lets_go = false;
                Vec::new()
            }
            WaitersEvent::Left { returning } => {
                self.waiting.retain(|call, _| !returning.contains(&call.session));
                Vec::new()
            }
            WaitersEvent::Ends => self.lost(|_| true),
        }
    }

    fn remember(&mut self, gone: Gone) {
        if self.gone.len() == REMEMBERED {
            self.gone.pop_front();
        }
        self.gone.push_back(gone);
    }

    fn lost(&mut self, is_lost: impl Fn(&InvocationId) -> bool) -> Vec<FleetJobId> {
        if self.lets_go {
            return Vec::new();
        }
        let mut lost: Vec<FleetJobId> = self.waiting.extract_if(|call, _| is_lost(call)).map(|(_, job)| job).collect();
        lost.sort_unstable();
        lost.dedup();
        lost.retain(|job| !self.waiting.values().any(|waits| waits == job));
        lost
    }
}

/// The rules, shared by who asks and who hears that a caller is gone. Cheap to clone; its lock is private to this file and never
/// held over an await.
#[derive(Debug, Clone, Default)]
pub struct Waiters(Arc<Mutex<WaitersCore>>);

impl Waiters {
    pub(super) fn core(&self) -> MutexGuard<'_, WaitersCore> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::HostId;

    fn call(host: HostId, session: u64, call: u64) -> InvocationId {
        InvocationId { host, session: SessionNumber(session), call }
    }

    #[test]
    fn a_job_is_cancelled_when_its_last_caller_is_gone_and_what_goes_on_is_not() {
        let (host, job) = (HostId::random(), FleetJobId::random());
        let (one, other, elsewhere) = (call(host, 1, 1), call(host, 1, 2), call(host, 2, 1));
        let over = |session| WaitersEvent::SessionOver(SessionNumber(session));
        let resumed =
            |open: &[u64]| WaitersEvent::Resumed { session: SessionNumber(1), open: open.iter().copied().collect() };
        // Who waits, what happens, how often the job is cancelled by it.
        let left = |session| WaitersEvent::Left { returning: HashSet::from([SessionNumber(session)]) };
        let cases: [(&str, &[InvocationId], &[WaitersEvent], usize); 12] = [
            ("withdrawn", &[one], &[WaitersEvent::Withdrawn(one)], 1),
            ("withdrawn twice", &[one], &[WaitersEvent::Withdrawn(one), WaitersEvent::Withdrawn(one)], 1),
            ("another one waits", &[one, other], &[WaitersEvent::Withdrawn(one)], 0),
            ("both go", &[one, elsewhere], &[WaitersEvent::Withdrawn(one), over(2)], 1),
            ("its session is over", &[one, other], &[over(1)], 1),
            ("another session is over", &[one], &[over(2)], 0),
            ("its session goes on without it", &[one], &[resumed(&[2])], 1),
            ("its session goes on with it", &[one], &[resumed(&[1])], 0),
            ("its host ends", &[one], &[WaitersEvent::Ends], 1),
            ("its host ends and it comes back", &[one], &[left(1), WaitersEvent::Ends], 0),
            ("its host ends and another one comes back", &[one], &[left(2), WaitersEvent::Ends], 1),
            ("its host lets go and ends", &[one], &[WaitersEvent::LetGo, over(1), WaitersEvent::Ends], 0),
        ];
        for (what, callers, events, cancelled) in cases {
            let mut core = WaitersCore::default();
            for caller in callers {
                assert_eq!(core.asks(*caller, job), Some(job), "{what}");
            }
            let told: Vec<FleetJobId> = events.iter().flat_map(|event| core.step(event.clone())).collect();
            assert_eq!(told, vec![job; cancelled], "{what}");
        }
    }

    #[test]
    fn what_was_answered_or_goes_on_or_is_somebody_elses_is_cancelled_by_nobody() {
        let (host, job, theirs) = (HostId::random(), FleetJobId::random(), FleetJobId::random());
        let one = call(host, 1, 1);
        type Change = fn(&mut WaitersCore, InvocationId, FleetJobId, FleetJobId);
        // What becomes of its job, and which is cancelled when it is withdrawn: none, the one it asked for, the other.
        let changes: [(&str, Change, Option<FleetJobId>); 5] = [
            ("answered", |core, one, _, _| core.settled(one), None),
            ("asked for in the background", |core, _, job, _| core.background(job), None),
            ("joined another caller's", |core, one, _, theirs| core.joined(one, theirs, false), None),
            ("joined its own of an earlier image", |core, one, _, theirs| core.joined(one, theirs, true), Some(theirs)),
            ("joined its own", |core, one, job, _| core.joined(one, job, false), Some(job)),
        ];
        for (what, change, cancelled) in changes {
            let mut core = WaitersCore::default();
            assert_eq!(core.asks(one, job), Some(job));
            change(&mut core, one, job, theirs);
            let told = core.step(WaitersEvent::Withdrawn(one));
            assert_eq!(told, cancelled.into_iter().collect::<Vec<_>>(), "{what}");
        }
    }

    #[test]
    fn a_call_that_was_withdrawn_first_asks_for_nothing_and_another_attempt_asks_for_the_same() {
        let (host, mut core) = (HostId::random(), WaitersCore::default());
        let (gone, goes_on, job) = (call(host, 1, 1), call(host, 1, 2), FleetJobId::random());
        assert_eq!(core.step(WaitersEvent::Withdrawn(gone)), []);
        assert_eq!(core.asks(gone, job), None);
        assert_eq!(core.asks(goes_on, job), Some(job));
        assert_eq!(core.asks(goes_on, FleetJobId::random()), Some(job), "its worker was lost, and it asks again");
        for other in 0..u64::try_from(2 * REMEMBERED).expect("few") {
            let _ = core.step(WaitersEvent::Withdrawn(call(host, 9, other)));
        }
        assert_eq!(core.gone.len(), REMEMBERED);
    }
}
