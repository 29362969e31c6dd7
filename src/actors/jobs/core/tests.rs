//! Each arm of [`JobsCore::step`], and the table of what can come between an accept and its answer.

use super::*;
use crate::base::ids::HostId;

fn host() -> HostId {
    "00000000-0000-4000-8000-000000000001".parse().expect("an id")
}

fn call(session: u64, call: u64) -> InvocationId {
    InvocationId { host: host(), session: SessionNumber(session), call }
}

/// A core that is spoken to in verbs.
#[derive(Default)]
struct Rig {
    core: JobsCore,
    asks: u64,
}

impl Rig {
    fn on(&mut self, event: JobsEvent) -> Vec<JobsEffect> {
        let mut effects = Vec::new();
        self.core.step(event, &mut effects);
        effects
    }

    fn ask(&mut self, caller: Option<InvocationId>, mode: JobMode) -> (AskId, Vec<JobsEffect>) {
        self.asks += 1;
        let ask = AskId(self.asks);
        (ask, self.on(JobsEvent::Asked { ask, caller, mode }))
    }

    fn find(&mut self, ask: AskId, found: Found) -> Vec<JobsEffect> {
        self.on(JobsEvent::Stored { ask, found: Some(found) })
    }

    /// A synchronous job of this caller, attached.
    fn accepted(&mut self, caller: InvocationId) -> JobId {
        let (ask, _) = self.ask(Some(caller), JobMode::Sync);
        let found = fresh(JobMode::Sync);
        self.find(ask, found);
        found.job
    }
}

fn fresh(mode: JobMode) -> Found {
    Found { job: JobId::random(), mode, state: JobState::Queued, custodian: Custodian::Inserted }
}

fn joined(job: JobId, mode: JobMode) -> Found {
    Found { job, mode, state: JobState::Running, custodian: Custodian::Somebody }
}

#[test]
fn an_accepted_job_is_attached_attended_and_answered_in_this_order() {
    let mut rig = Rig::default();
    let (ask, asked) = rig.ask(Some(call(1, 1)), JobMode::Sync);
    assert_eq!(asked, [JobsEffect::Accept(ask)]);
    let found = fresh(JobMode::Sync);
    let effects = rig.find(ask, found);
    assert_eq!(effects, [JobsEffect::Attach(found.job), JobsEffect::Attend(found.job), JobsEffect::Answer(ask)]);
    assert_eq!(rig.core.claim(found.job).map(|claim| claim.callers().collect()), Some(vec![call(1, 1)]));
    assert!(!rig.core.is_accepting());
}

#[test]
fn what_the_store_refused_is_refused_and_claims_nothing() {
    let mut rig = Rig::default();
    let (ask, _) = rig.ask(Some(call(1, 1)), JobMode::Sync);
    assert_eq!(rig.on(JobsEvent::Stored { ask, found: None }), [JobsEffect::Refuse(ask)]);
    assert_eq!(rig.core.claims().count(), 0);
}

#[test]
fn a_call_that_was_withdrawn_before_it_asked_starts_nothing() {
    for over in [JobsEvent::Withdrawn(call(1, 1)), JobsEvent::SessionOver(SessionNumber(1))] {
        let mut rig = Rig::default();
        assert_eq!(rig.on(over.clone()), []);
        let (ask, asked) = rig.ask(Some(call(1, 1)), JobMode::Sync);
        assert_eq!(asked, [JobsEffect::RefuseWithdrawn(ask)], "{over:?}");
    }
}

#[test]
fn the_oldest_withdrawn_call_is_forgotten_first_and_their_number_is_bounded() {
    let mut rig = Rig::default();
    for number in 0..=LATE as u64 {
        rig.on(JobsEvent::Withdrawn(call(1, number)));
    }
    assert_eq!(rig.core.late.len(), LATE);
    let (ask, asked) = rig.ask(Some(call(1, 0)), JobMode::Sync);
    assert_eq!(asked, [JobsEffect::Accept(ask)], "the first one is forgotten");
    assert_eq!(rig.ask(Some(call(1, LATE as u64)), JobMode::Sync).1.len(), 1);
}

/// What happens between the ask and the store's answer, and what becomes of a job that is new, joined here or joined
/// elsewhere.
#[test]
fn whatever_comes_between_an_accept_and_its_answer_a_job_has_a_caller_or_is_ended() {
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Between {
        Nothing,
        Withdrawn,
        SessionOver,
        ResumedWithout,
        ResumedWith,
        Restart,
    }
    use Between::{Nothing, Restart, ResumedWith, ResumedWithout, SessionOver, Withdrawn};
    let caller = call(1, 1);
    for between in [Nothing, Withdrawn, SessionOver, ResumedWithout, ResumedWith, Restart] {
        for custodian in [Custodian::Inserted, Custodian::Unattended, Custodian::Orphan, Custodian::Somebody] {
            for mode in [JobMode::Sync, JobMode::Background] {
                let mut rig = Rig::default();
                let (ask, _) = rig.ask(Some(caller), mode);
                match between {
                    Nothing => {}
                    Withdrawn => drop(rig.on(JobsEvent::Withdrawn(caller))),
                    SessionOver => drop(rig.on(JobsEvent::SessionOver(caller.session))),
                    ResumedWithout => {
                        drop(rig.on(JobsEvent::Resumed { session: caller.session, open: HashSet::from([7]) }));
                    }
                    ResumedWith => {
                        drop(rig.on(JobsEvent::Resumed { session: caller.session, open: HashSet::from([1]) }));
                    }
                    Restart => drop(rig.on(JobsEvent::Restarted)),
                }
                let found = Found { custodian, ..fresh(mode) };
                let effects = rig.find(ask, found);
                let place = format!("{between:?} {custodian:?} {mode:?}: {effects:?}");
                let ours = custodian != Custodian::Somebody;
                assert_eq!(effects.contains(&JobsEffect::Attach(found.job)), ours, "{place}");
                assert_eq!(effects.contains(&JobsEffect::Answer(ask)), between != Restart, "{place}");
                let has_caller = matches!(between, Nothing | ResumedWith);
                let ended = effects.contains(&JobsEffect::EndForLostCaller(found.job));
                assert_eq!(ended, ours && mode == JobMode::Sync && !has_caller, "{place}");
                let elsewhere = !ours && mode == JobMode::Sync && between != Restart;
                assert_eq!(effects.contains(&JobsEffect::HandOver(found.job)), elsewhere, "{place}");
            }
        }
    }
}

#[test]
fn the_last_caller_takes_a_synchronous_job_along_and_a_background_job_never() {
    let mut rig = Rig::default();
    let job = rig.accepted(call(1, 1));
    let (ask, _) = rig.ask(Some(call(2, 1)), JobMode::Sync);
    rig.find(ask, joined(job, JobMode::Sync));
    assert_eq!(rig.on(JobsEvent::Withdrawn(call(1, 1))), [], "another one waits");
    assert_eq!(rig.on(JobsEvent::Withdrawn(call(2, 1))), [JobsEffect::EndForLostCaller(job)]);
    assert_eq!(rig.on(JobsEvent::Withdrawn(call(2, 1))), [], "once");
    assert!(rig.core.claim(job).is_some_and(Claim::is_lost));

    let handed = rig.accepted(call(3, 1));
    assert_eq!(rig.on(JobsEvent::HandedOver(handed)), []);
    assert_eq!(rig.on(JobsEvent::SessionOver(SessionNumber(3))), []);
}

#[test]
fn a_job_whose_last_caller_leaves_while_another_asks_waits_for_that_answer() {
    for joins in [true, false] {
        let mut rig = Rig::default();
        let job = rig.accepted(call(1, 1));
        let (ask, _) = rig.ask(Some(call(2, 1)), JobMode::Sync);
        assert_eq!(rig.on(JobsEvent::Withdrawn(call(1, 1))), [], "the one who asks may join");
        let found = if joins { joined(job, JobMode::Sync) } else { fresh(JobMode::Sync) };
        let ended = rig.find(ask, found).contains(&JobsEffect::EndForLostCaller(job));
        assert_eq!(ended, !joins);
        assert_eq!(rig.core.claim(job).map(Claim::is_lost), Some(!joins));
    }
}

#[test]
fn a_doubt_ends_with_the_last_ask_that_may_join_whatever_becomes_of_it() {
    let mut rig = Rig::default();
    let job = rig.accepted(call(1, 1));
    let (first, _) = rig.ask(Some(call(2, 1)), JobMode::Sync);
    let (second, _) = rig.ask(Some(call(3, 1)), JobMode::Sync);
    rig.on(JobsEvent::Withdrawn(call(1, 1)));
    assert_eq!(rig.on(JobsEvent::Stored { ask: first, found: None }), [JobsEffect::Refuse(first)]);
    let effects = rig.on(JobsEvent::Stored { ask: second, found: None });
    assert_eq!(effects, [JobsEffect::EndForLostCaller(job), JobsEffect::Refuse(second)]);

    let job = rig.accepted(call(1, 2));
    rig.ask(Some(call(2, 2)), JobMode::Sync);
    rig.on(JobsEvent::Withdrawn(call(1, 2)));
    assert!(rig.on(JobsEvent::Restarted).contains(&JobsEffect::EndForLostCaller(job)), "nobody answers that ask");
}

#[test]
fn who_joins_in_the_background_makes_it_a_background_job() {
    let mut rig = Rig::default();
    let job = rig.accepted(call(1, 1));
    let (ask, _) = rig.ask(None, JobMode::Background);
    let effects = rig.find(ask, joined(job, JobMode::Sync));
    assert_eq!(effects, [JobsEffect::HandOver(job), JobsEffect::Answer(ask)]);
    assert_eq!(rig.on(JobsEvent::Withdrawn(call(1, 1))), [], "it goes on without its first caller");
}

#[test]
fn an_embedding_programs_own_consult_has_no_caller_and_is_not_ended_for_it() {
    let mut rig = Rig::default();
    let (ask, _) = rig.ask(None, JobMode::Sync);
    let found = fresh(JobMode::Sync);
    let effects = rig.find(ask, found);
    assert_eq!(effects, [JobsEffect::Attach(found.job), JobsEffect::Attend(found.job), JobsEffect::Answer(ask)]);
}

#[test]
fn a_job_is_attached_once_and_let_go_once() {
    let mut rig = Rig::default();
    let job = JobId::random();
    let orphan = JobsEvent::Orphaned { job, mode: JobMode::Background };
    assert_eq!(rig.on(orphan.clone()), [JobsEffect::Attach(job), JobsEffect::Attend(job)]);
    assert_eq!(rig.on(orphan.clone()), []);
    assert_eq!(rig.on(JobsEvent::Ended(job)), [JobsEffect::Release(job)]);
    assert_eq!(rig.on(JobsEvent::Ended(job)), []);
}

#[test]
fn only_the_runner_of_an_attached_job_is_asked_to_end_it() {
    let mut rig = Rig::default();
    let job = rig.accepted(call(1, 1));
    assert_eq!(rig.on(JobsEvent::Terminate(job)), [JobsEffect::Terminate(job)]);
    assert_eq!(rig.on(JobsEvent::Terminate(JobId::random())), []);
}

#[test]
fn while_attention_is_withdrawn_jobs_are_taken_in_and_not_attended_to() {
    let mut rig = Rig::default();
    let before = rig.accepted(call(1, 1));
    let (ask, _) = rig.ask(Some(call(1, 2)), JobMode::Sync);
    assert_eq!(rig.on(JobsEvent::LetGo), [JobsEffect::SetAside(before)], "an accept is under way");
    let found = fresh(JobMode::Sync);
    let effects = rig.find(ask, found);
    assert_eq!(effects, [JobsEffect::Attach(found.job), JobsEffect::Answer(ask), JobsEffect::Still]);
    let mut attended = rig.on(JobsEvent::Resume);
    attended.sort_by_key(|effect| format!("{effect:?}"));
    let mut all = vec![JobsEffect::Attend(before), JobsEffect::Attend(found.job)];
    all.sort_by_key(|effect| format!("{effect:?}"));
    assert_eq!(attended, all);
    assert_eq!(rig.on(JobsEvent::LetGo).last(), Some(&JobsEffect::Still), "nothing is under way");
}

#[test]
fn what_the_last_image_knew_is_attended_to_and_its_callers_still_count() {
    let mut rig = Rig::default();
    let job = JobId::random();
    let inherited = JobsEvent::Inherited { job, mode: JobMode::Sync, callers: vec![call(1, 1)], awaited: false };
    assert_eq!(rig.on(inherited), [JobsEffect::Attend(job)]);
    assert_eq!(rig.on(JobsEvent::Withdrawn(call(1, 1))), [JobsEffect::EndForLostCaller(job)]);
}

#[test]
fn a_new_incarnation_attends_to_all_and_refuses_who_withdrew_from_the_last_one() {
    let mut rig = Rig::default();
    let job = rig.accepted(call(1, 1));
    rig.ask(Some(call(1, 2)), JobMode::Sync);
    rig.on(JobsEvent::Withdrawn(call(1, 2)));
    assert_eq!(rig.on(JobsEvent::Restarted), [JobsEffect::Attend(job)]);
    let (ask, asked) = rig.ask(Some(call(1, 2)), JobMode::Sync);
    assert_eq!(asked, [JobsEffect::RefuseWithdrawn(ask)], "it withdrew, and its question came again all the same");
}

#[test]
fn attention_that_was_withdrawn_from_the_last_incarnation_is_paid_by_the_next() {
    for accepting in [false, true] {
        let mut rig = Rig::default();
        let job = rig.accepted(call(1, 1));
        if accepting {
            rig.ask(Some(call(1, 2)), JobMode::Sync);
        }
        rig.on(JobsEvent::LetGo);
        assert!(!rig.core.is_attentive());
        assert_eq!(rig.on(JobsEvent::Restarted), [JobsEffect::Attend(job)], "nobody may be there to say `Resume`");
        assert!(rig.core.is_attentive());
    }
}

/// Whichever way the last caller of a job goes, and whoever stays.
#[test]
fn the_table_of_how_a_caller_leaves() {
    let caller = call(1, 1);
    let rows = [
        (JobsEvent::Withdrawn(caller), true),
        (JobsEvent::Withdrawn(call(1, 2)), false),
        (JobsEvent::Withdrawn(call(2, 1)), false),
        (JobsEvent::SessionOver(SessionNumber(1)), true),
        (JobsEvent::SessionOver(SessionNumber(2)), false),
        (JobsEvent::Resumed { session: SessionNumber(1), open: HashSet::new() }, true),
        (JobsEvent::Resumed { session: SessionNumber(1), open: HashSet::from([1]) }, false),
        (JobsEvent::Resumed { session: SessionNumber(2), open: HashSet::new() }, false),
    ];
    for (event, ended) in rows {
        let mut rig = Rig::default();
        let job = rig.accepted(caller);
        let want = if ended { vec![JobsEffect::EndForLostCaller(job)] } else { vec![] };
        assert_eq!(rig.on(event.clone()), want, "{event:?}");
    }
}

#[test]
fn what_the_last_image_knew_is_not_attended_to_while_attention_is_withdrawn() {
    let mut rig = Rig::default();
    rig.on(JobsEvent::LetGo);
    let job = JobId::random();
    assert_eq!(rig.on(JobsEvent::Inherited { job, mode: JobMode::Background, callers: vec![], awaited: false }), []);
    assert_eq!(rig.on(JobsEvent::Resume), [JobsEffect::Attend(job)]);
}

/// An order no process had been brought into: a call has its job, its worker is lost, it asks again, leaves while that is
/// under way, and the store refuses, or the supervisor is lost. The first attempt's job went on without a caller for good.
#[test]
fn a_call_that_leaves_while_its_second_ask_comes_to_nothing_takes_its_job_along() {
    for restart in [false, true] {
        let mut rig = Rig::default();
        let caller = call(1, 1);
        let job = rig.accepted(caller);
        let (ask, _) = rig.ask(Some(caller), JobMode::Sync);
        assert_eq!(rig.on(JobsEvent::Withdrawn(caller)), [], "it may join");
        let event = if restart { JobsEvent::Restarted } else { JobsEvent::Stored { ask, found: None } };
        assert!(rig.on(event.clone()).contains(&JobsEffect::EndForLostCaller(job)), "{event:?}");
    }
}

/// An order no process had been brought into: an embedding program waits for a job by its key, a session's call waits for the
/// same one, in either order, and the call leaves. The job was ended under the program's hands.
#[test]
fn a_job_that_an_embedding_program_waits_for_is_not_ended_for_a_call_that_leaves() {
    for programs_first in [false, true] {
        let mut rig = Rig::default();
        let callers = if programs_first { [None, Some(call(1, 1))] } else { [Some(call(1, 1)), None] };
        let (ask, _) = rig.ask(callers[0], JobMode::Sync);
        let found = fresh(JobMode::Sync);
        rig.find(ask, found);
        let (ask, _) = rig.ask(callers[1], JobMode::Sync);
        rig.find(ask, joined(found.job, JobMode::Sync));
        assert_eq!(rig.on(JobsEvent::Withdrawn(call(1, 1))), [], "program first: {programs_first}");
    }
}

/// The same with the program still asking when the last call leaves.
#[test]
fn a_program_that_joins_a_job_in_doubt_keeps_it() {
    let mut rig = Rig::default();
    let job = rig.accepted(call(1, 1));
    let (ask, _) = rig.ask(None, JobMode::Sync);
    assert_eq!(rig.on(JobsEvent::Withdrawn(call(1, 1))), []);
    assert_eq!(rig.find(ask, joined(job, JobMode::Sync)), [JobsEffect::Answer(ask)]);
    assert!(!rig.core.claim(job).is_some_and(Claim::is_lost));
}

fn adopted(job: JobId, mode: JobMode) -> JobsEvent {
    JobsEvent::Adopted { job, mode }
}

#[test]
fn an_adopted_job_is_followed_by_the_store_and_its_callers_have_their_time_to_come_back() {
    let mut rig = Rig::default();
    let (sync, background) = (JobId::random(), JobId::random());
    let effects = rig.on(adopted(sync, JobMode::Sync));
    assert_eq!(effects, [JobsEffect::AttachByStore(sync), JobsEffect::Attend(sync), JobsEffect::AwaitCallers(sync)]);
    assert_eq!(rig.on(adopted(sync, JobMode::Sync)), [], "once");
    let effects = rig.on(adopted(background, JobMode::Background));
    assert_eq!(effects, [JobsEffect::AttachByStore(background), JobsEffect::Attend(background)]);
    assert_eq!(rig.on(JobsEvent::CallersDue(background)), [], "it depends on nobody");
    assert_eq!(rig.on(JobsEvent::CallersDue(sync)), [JobsEffect::EndForLostCaller(sync)], "nobody came back");
    assert_eq!(rig.on(JobsEvent::CallersDue(sync)), [], "once");
    assert_eq!(rig.on(JobsEvent::Ended(sync)), [JobsEffect::Release(sync)]);
}

/// How callers come back to an adopted job and leave it, and when it is ended for that.
#[test]
fn who_comes_back_to_an_adopted_job_keeps_it_and_takes_it_along_like_any_other() {
    let (one, two) = (call(1, 1), call(2, 1));
    let joins = |rig: &mut Rig, job, caller| {
        let (ask, _) = rig.ask(Some(caller), JobMode::Sync);
        rig.find(ask, joined(job, JobMode::Sync))
    };
    // Back in time, and it goes after it.
    let (mut rig, job) = (Rig::default(), JobId::random());
    rig.on(adopted(job, JobMode::Sync));
    assert!(joins(&mut rig, job, one).iter().all(|effect| matches!(effect, JobsEffect::Answer(_))));
    assert_eq!(rig.on(JobsEvent::CallersDue(job)), []);
    assert_eq!(rig.on(JobsEvent::Withdrawn(one)), [JobsEffect::EndForLostCaller(job)]);
    // It leaves while the other one may still come back, which does or does not.
    for comes in [true, false] {
        let (mut rig, job) = (Rig::default(), JobId::random());
        rig.on(adopted(job, JobMode::Sync));
        joins(&mut rig, job, one);
        assert_eq!(rig.on(JobsEvent::Withdrawn(one)), [], "the other one is not known yet");
        if comes {
            joins(&mut rig, job, two);
        }
        let due = rig.on(JobsEvent::CallersDue(job));
        assert_eq!(due.contains(&JobsEffect::EndForLostCaller(job)), !comes);
    }
    // It is asking when the time is over.
    for finds in [true, false] {
        let (mut rig, job) = (Rig::default(), JobId::random());
        rig.on(adopted(job, JobMode::Sync));
        let (ask, _) = rig.ask(Some(one), JobMode::Sync);
        assert_eq!(rig.on(JobsEvent::CallersDue(job)), [], "it may join");
        let found = if finds { joined(job, JobMode::Sync) } else { fresh(JobMode::Sync) };
        assert_eq!(rig.find(ask, found).contains(&JobsEffect::EndForLostCaller(job)), !finds);
    }
    // Whoever goes on in the background, or is an embedding program, frees it of its callers.
    for mode in [JobMode::Background, JobMode::Sync] {
        let (mut rig, job) = (Rig::default(), JobId::random());
        rig.on(adopted(job, JobMode::Sync));
        let (ask, _) = rig.ask(None, mode);
        rig.find(ask, joined(job, JobMode::Sync));
        assert_eq!(rig.on(JobsEvent::CallersDue(job)), [], "{mode:?}");
    }
}

#[test]
fn a_call_that_joins_what_is_adopted_for_it_claims_it() {
    for mode in [JobMode::Sync, JobMode::Background] {
        let mut rig = Rig::default();
        let (ask, _) = rig.ask(Some(call(1, 1)), JobMode::Sync);
        let found = Found { custodian: Custodian::Adopted, state: JobState::Running, ..fresh(mode) };
        let effects = rig.find(ask, found);
        assert_eq!(effects[..2], [JobsEffect::AttachByStore(found.job), JobsEffect::Attend(found.job)]);
        assert_eq!(effects.last(), Some(&JobsEffect::Answer(ask)));
        assert_eq!(effects.contains(&JobsEffect::AwaitCallers(found.job)), mode == JobMode::Sync);
        assert!(!effects.contains(&JobsEffect::HandOver(found.job)), "it is ours: {effects:?}");
        assert_eq!(rig.core.claim(found.job).map(|claim| claim.callers().count()), Some(1));
    }
}

#[test]
fn a_call_that_joins_before_its_job_is_attached_claims_it_then_and_does_not_make_it_a_background_job() {
    for attached in ["accepted", "adopted"] {
        for withdrawn in [false, true] {
            let (mut rig, job) = (Rig::default(), JobId::random());
            let (first, _) = rig.ask(Some(call(1, 1)), JobMode::Sync);
            let (second, _) = rig.ask(Some(call(2, 1)), JobMode::Sync);
            let here = Found { custodian: Custodian::Here, ..joined(job, JobMode::Sync) };
            assert_eq!(rig.find(second, here), [JobsEffect::Answer(second)], "{attached}");
            if withdrawn {
                assert_eq!(rig.on(JobsEvent::SessionOver(SessionNumber(2))), []);
            }
            match attached {
                "accepted" => drop(rig.find(first, Found { job, ..fresh(JobMode::Sync) })),
                _ => drop(rig.on(adopted(job, JobMode::Sync))),
            }
            let callers: Vec<_> = rig.core.claim(job).expect("attached").callers().collect();
            assert_eq!(callers.contains(&call(2, 1)), !withdrawn, "{attached}");
            assert_eq!(rig.core.claim(job).map(Claim::mode), Some(JobMode::Sync));
            assert!(rig.core.early.is_empty());
        }
    }
    // Whoever goes on in the background, and a program's own, are nobody's callers, as elsewhere.
    let (mut rig, job) = (Rig::default(), JobId::random());
    let (ask, _) = rig.ask(None, JobMode::Background);
    let here = Found { custodian: Custodian::Here, ..joined(job, JobMode::Sync) };
    assert_eq!(rig.find(ask, here), [JobsEffect::HandOver(job), JobsEffect::Answer(ask)]);
}

#[test]
fn those_who_wait_for_jobs_that_are_never_attached_are_bounded() {
    let mut rig = Rig::default();
    for number in 0..=LATE as u64 {
        let (ask, _) = rig.ask(Some(call(1, number)), JobMode::Sync);
        let here = Found { custodian: Custodian::Here, ..joined(JobId::random(), JobMode::Sync) };
        rig.find(ask, here);
    }
    assert_eq!(rig.core.early.len(), LATE);
    rig.on(JobsEvent::SessionOver(SessionNumber(1)));
    assert!(rig.core.early.is_empty());
}

#[test]
fn a_host_that_ends_lets_go_of_what_others_may_adopt_and_the_rest_loses_its_callers() {
    let mut rig = Rig::default();
    let bridged = rig.accepted(call(1, 1));
    let plain = rig.accepted(call(2, 1));
    let both = rig.accepted(call(3, 1));
    let (ask, _) = rig.ask(Some(call(1, 2)), JobMode::Sync);
    rig.find(ask, joined(both, JobMode::Sync));
    let background = rig.accepted(call(2, 2));
    rig.on(JobsEvent::HandedOver(background));
    let awaited = JobId::random();
    rig.on(adopted(awaited, JobMode::Sync));
    let lost = rig.accepted(call(1, 3));
    rig.on(JobsEvent::Withdrawn(call(1, 3)));
    let returning = HashSet::from([SessionNumber(1), SessionNumber(9)]);
    let released: BTreeSet<JobId> = rig
        .on(JobsEvent::Left { returning })
        .into_iter()
        .map(|effect| match effect {
            JobsEffect::Release(job) => job,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(released, BTreeSet::from([bridged, both, background, awaited]));
    // What ends afterwards ends nothing of theirs.
    assert_eq!(rig.on(JobsEvent::SessionOver(SessionNumber(1))), []);
    assert_eq!(rig.on(JobsEvent::SessionOver(SessionNumber(3))), []);
    assert_eq!(rig.on(JobsEvent::SessionOver(SessionNumber(2))), [JobsEffect::EndForLostCaller(plain)]);
    assert!(rig.core.claim(lost).is_some_and(Claim::is_lost), "its end is on its way");
}

#[test]
fn whoever_is_started_again_tells_when_the_callers_of_adopted_jobs_are_due() {
    let (mut rig, job) = (Rig::default(), JobId::random());
    rig.on(adopted(job, JobMode::Sync));
    assert_eq!(rig.on(JobsEvent::Restarted), [JobsEffect::Attend(job), JobsEffect::AwaitCallers(job)]);
    rig.on(JobsEvent::CallersDue(job));
    assert_eq!(rig.on(JobsEvent::Restarted), [JobsEffect::Attend(job)]);
    // The next image begins with that, too: its supervisor is started.
    let (mut rig, job) = (Rig::default(), JobId::random());
    rig.on(JobsEvent::Inherited { job, mode: JobMode::Sync, callers: vec![], awaited: true });
    assert_eq!(rig.on(JobsEvent::Restarted), [JobsEffect::Attend(job), JobsEffect::AwaitCallers(job)]);
    assert_eq!(rig.on(JobsEvent::CallersDue(job)), [JobsEffect::EndForLostCaller(job)]);
}
