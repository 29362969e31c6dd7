//! Each arm of [`CustodyCore::step`], as tables of events and what follows.
//!
//! Laws: L3, L7.

use super::CustodyEffect as F;
use super::CustodyEvent as E;
use super::*;

/// A core that is spoken to in events, with a clock of its own.
struct Rig {
    core: CustodyCore,
    now: Instant,
}

impl Rig {
    fn new() -> Self {
        Self { core: CustodyCore::new(Duration::from_secs(600)), now: Instant::now() }
    }

    fn on(&mut self, event: E) -> (Vec<F>, CustodyWait) {
        let mut effects = Vec::new();
        let awaited = self.core.step(event, self.now, &mut effects);
        (effects, awaited)
    }

    /// The events one after the other; what follows from the last.
    fn after(&mut self, events: &[E]) -> (Vec<F>, CustodyWait) {
        let mut last = self.on(E::Began);
        for event in events {
            last = self.on(event.clone());
        }
        last
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }
}

fn fault() -> Box<Fault> {
    Box::new(Fault::new(FaultCode::RunnerSpawnFailed, "it broke."))
}

fn read(state: JobState) -> E {
    E::Read(StoreAnswer::State(state))
}

/// What leads to each stage.
fn to(stage: CustodyStage) -> Vec<E> {
    match stage {
        CustodyStage::Waiting(_) => vec![E::HandedIn],
        CustodyStage::Starting => vec![E::Turn],
        CustodyStage::Following => vec![E::Turn, E::Started, E::Connected],
        CustodyStage::Leaving => vec![E::Turn, E::Started, E::Connected, E::PipesOver(None)],
        CustodyStage::Judging => vec![E::Turn, E::NotStarted(fault())],
        CustodyStage::Watching => unreachable!("a job is adopted or it is not"),
    }
}

/// One row each: the stage, what happened, what is done at once, what is waited for, the stage then.
#[test]
fn the_table_of_stages_and_events() {
    use CustodyStage::{Following, Judging, Leaving, Starting, Waiting};
    const NEW: CustodyStage = Waiting(HandIn::New);
    let loss = CustodyWait::Pause(Duration::from_millis(100));
    let settling = CustodyWait::Settling(fault());
    let rows: Vec<(CustodyStage, E, Vec<F>, CustodyWait, CustodyStage)> = vec![
        // Waiting.
        (NEW, E::HandedIn, vec![], CustodyWait::Turn, NEW),
        (NEW, E::Turn, vec![F::Show(ShownPhase::Starting)], CustodyWait::Start, Starting),
        (NEW, E::OverMeanwhile, vec![], CustodyWait::Store, Judging),
        (NEW, E::WaitingLost, vec![F::ShowCare], loss.clone(), NEW),
        (NEW, E::NotHandedIn(fault()), vec![F::ShowCare], loss, NEW),
        (NEW, E::NoRoom(fault()), vec![F::ShowCare], CustodyWait::Room(Duration::from_millis(50)), NEW),
        (NEW, E::EndAsked, vec![], CustodyWait::Turn, NEW),
        (NEW, E::EndDue, vec![F::KillWaiting], CustodyWait::Turn, NEW),
        (NEW, E::Paused, vec![], CustodyWait::HandIn(HandIn::New), NEW),
        // Starting.
        (Starting, E::Started, vec![F::TakeFromRoom], CustodyWait::Greeting, Following),
        (Starting, E::NoRoom(fault()), vec![F::ShowCare], CustodyWait::Room(Duration::from_millis(50)), Starting),
        (Starting, E::Paused, vec![], CustodyWait::Start, Starting),
        (Starting, E::EndAsked, vec![F::TakeFromRoom], CustodyWait::Store, Judging),
        (Starting, E::NotStarted(fault()), vec![F::TakeFromRoom], CustodyWait::Store, Judging),
        // Following.
        (Following, E::Connected, vec![], CustodyWait::Runner, Following),
        (Following, E::AgentOver, vec![], CustodyWait::Runner, Following),
        (Following, E::PipesOver(None), vec![F::LetGoOfPipes], CustodyWait::Store, Leaving),
        (Following, E::PipesOver(Some(fault())), vec![F::LetGoOfPipes], CustodyWait::Store, Leaving),
        (Following, E::EndAsked, vec![F::AskToEnd], CustodyWait::Runner, Following),
        (Following, E::EndDue, vec![F::AskOutcome], CustodyWait::Runner, Following),
        (Following, E::Answered(RunnerAnswer::Outcome), vec![F::TellUnstored], CustodyWait::Runner, Following),
        (Following, E::Answered(RunnerAnswer::Nothing), vec![], CustodyWait::Runner, Following),
        (Following, E::Answered(RunnerAnswer::Silence), vec![], CustodyWait::Runner, Following),
        (Following, E::Looked { cancelled: false }, vec![], CustodyWait::Runner, Following),
        (Following, E::Looked { cancelled: true }, vec![], CustodyWait::Runner, Following),
        (Following, E::LookDue, vec![], CustodyWait::Runner, Following),
        // Leaving.
        (Leaving, read(JobState::Succeeded), vec![F::SeeOut], CustodyWait::Over(CustodyEnd::Stored), Judging),
        (Leaving, read(JobState::Running), vec![], CustodyWait::Exit, Leaving),
        (Leaving, E::Read(StoreAnswer::Silence), vec![], CustodyWait::Exit, Leaving),
        (Leaving, E::Read(StoreAnswer::Unknown), vec![], CustodyWait::Exit, Leaving),
        (Leaving, E::Exited(Some(0)), vec![], CustodyWait::Store, Judging),
        (Leaving, E::Exited(None), vec![], CustodyWait::Store, Judging),
        (Leaving, E::Exited(Some(i32::from(NOT_YET))), vec![F::Show(ShownPhase::Queued)], CustodyWait::Store, Judging),
        (Leaving, E::NotExited, vec![], CustodyWait::Store, Judging),
        // Judging, after one runner that could not be started.
        (Judging, read(JobState::Cancelled), vec![], CustodyWait::Over(CustodyEnd::Stored), Judging),
        (Judging, read(JobState::Queued), vec![], CustodyWait::HandIn(HandIn::New), NEW),
        (Judging, read(JobState::Running), vec![F::LeaveRoom], settling, Judging),
        (Judging, E::Read(StoreAnswer::Unknown), vec![], CustodyWait::Over(CustodyEnd::LeftToOthers), Judging),
        (
            Judging,
            E::Read(StoreAnswer::Silence),
            vec![F::Show(ShownPhase::Storing)],
            CustodyWait::Pause(Duration::from_millis(250)),
            Judging,
        ),
        (Judging, E::Settled, vec![], CustodyWait::Over(CustodyEnd::Stored), Judging),
        (Judging, E::Elsewhere, vec![], CustodyWait::Over(CustodyEnd::LeftToOthers), Judging),
        (
            Judging,
            E::NotSettled,
            vec![F::Show(ShownPhase::Storing)],
            CustodyWait::Pause(Duration::from_millis(250)),
            Judging,
        ),
        (Judging, E::Paused, vec![], CustodyWait::Store, Judging),
    ];
    for (stage, event, effects, awaited, then) in rows {
        let mut rig = Rig::new();
        rig.after(&to(stage));
        assert_eq!(rig.core.stage(), stage, "the way to {stage:?}");
        assert_eq!(rig.on(event.clone()), (effects, awaited), "{stage:?} {event:?}");
        assert_eq!(rig.core.stage(), then, "{stage:?} {event:?}");
    }
}

#[test]
fn another_incarnation_begins_each_stage_again_and_so_does_an_event_that_belongs_to_none() {
    use CustodyStage::{Following, Judging, Leaving, Starting, Waiting};
    let rows = [
        (Waiting(HandIn::New), CustodyWait::HandIn(HandIn::New), E::Settled),
        (Starting, CustodyWait::Start, E::Settled),
        (Following, CustodyWait::Greeting, E::Settled),
        (Leaving, CustodyWait::Store, E::Turn),
        (Judging, CustodyWait::Store, E::Turn),
    ];
    for (stage, awaited, stray) in rows {
        for event in [E::Began, stray] {
            let mut rig = Rig::new();
            rig.after(&to(stage));
            assert_eq!(rig.on(event.clone()), (vec![], awaited.clone()), "{stage:?} {event:?}");
            assert_eq!(rig.core.stage(), stage);
        }
    }
}

#[test]
fn a_job_whose_waiting_is_lost_again_and_again_is_settled_and_the_pauses_grow() {
    let mut rig = Rig::new();
    rig.on(E::Began);
    let mut pauses = Vec::new();
    loop {
        rig.on(E::HandedIn);
        match rig.on(E::WaitingLost).1 {
            CustodyWait::Pause(pause) => pauses.push(pause.as_millis()),
            awaited => break assert_eq!(awaited, CustodyWait::Store),
        }
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 3200, 3200]);
    let (effects, awaited) = rig.on(read(JobState::Queued));
    assert_eq!(effects, [F::LeaveRoom], "no runner is started for it any more");
    assert!(matches!(awaited, CustodyWait::Settling(_)));
}

/// An order no process had been brought into: losses were added up over the whole wait, so a job that waited for days was settled when the
/// process that waited with it had died for the ninth time, however long it had waited between.
#[test]
fn losses_that_are_far_apart_do_not_end_a_job_that_waits() {
    let mut rig = Rig::new();
    rig.on(E::Began);
    for _ in 0..100 {
        rig.on(E::HandedIn);
        rig.pass(LOSSES_FORGOTTEN);
        assert_eq!(rig.on(E::WaitingLost).1, CustodyWait::Pause(Duration::from_millis(100)));
    }
}

#[test]
fn a_request_to_end_is_borne_for_so_long_and_the_time_is_not_put_off_by_asking_again() {
    let mut rig = Rig::new();
    rig.after(&to(CustodyStage::Waiting(HandIn::New)));
    assert_eq!(rig.core.end_by(), None);
    rig.on(E::EndAsked);
    let end = rig.now + END_LIMIT;
    rig.pass(Duration::from_secs(3));
    rig.on(E::EndAsked);
    assert_eq!(rig.core.end_by(), Some(end));
    rig.pass(END_LIMIT);
    assert_eq!(rig.on(E::EndDue).0, [F::KillWaiting]);
    assert_eq!(rig.core.end_by(), Some(rig.now + END_LIMIT), "and again, if that did not help");
    rig.on(E::Turn);
    rig.on(E::Started);
    assert_eq!(
        rig.on(E::Connected),
        (vec![F::AskToEnd], CustodyWait::Runner),
        "a runner that came all the same is told"
    );
}

#[test]
fn a_job_waits_for_room_up_to_a_bound_and_ends_at_once_when_it_is_not_wanted() {
    let mut rig = Rig::new();
    rig.after(&to(CustodyStage::Starting));
    let mut pauses = Vec::new();
    for waited in [0, 1, 100] {
        rig.pass(Duration::from_secs(waited));
        let CustodyWait::Room(pause) = rig.on(E::NoRoom(fault())).1 else { panic!("it waits") };
        pauses.push(pause.as_millis());
        rig.on(E::Paused);
    }
    assert_eq!(pauses, [50, 250, 2000]);
    let mut unwanted = Rig { core: rig.core.clone(), now: rig.now };
    unwanted.on(E::EndAsked);
    let (_, awaited) = unwanted.on(read(JobState::Queued));
    assert!(
        matches!(awaited, CustodyWait::Settling(why) if why.code == FaultCode::RunnerLost),
        "nobody else can end it"
    );
    rig.pass(ROOM_LIMIT);
    assert_eq!(rig.on(E::NoRoom(fault())), (vec![F::TakeFromRoom], CustodyWait::Store));
    assert_eq!(rig.on(read(JobState::Queued)).1, CustodyWait::Settling(fault()), "and it says why");

    let mut rig = Rig::new();
    rig.after(&to(CustodyStage::Starting));
    rig.on(E::NoRoom(fault()));
    rig.pass(ROOM_LIMIT);
    rig.on(E::Started);
    rig.after(&[E::PipesOver(None), E::Exited(Some(i32::from(NOT_YET))), read(JobState::Queued), E::Turn]);
    assert!(matches!(rig.on(E::NoRoom(fault())).1, CustodyWait::Room(_)), "the bound is of one wait");
}

#[test]
fn as_many_runners_are_started_as_never_got_to_the_agent_and_no_more() {
    let mut rig = Rig::new();
    rig.on(E::Began);
    for runner in 1..=RUNNER_STARTS {
        let (_, awaited) =
            rig.after(&[E::Turn, E::Started, E::Connected, E::PipesOver(Some(fault())), E::Exited(Some(1))]);
        assert_eq!(awaited, CustodyWait::Store);
        let (_, awaited) = rig.on(read(JobState::Queued));
        match runner {
            RUNNER_STARTS => assert_eq!(awaited, CustodyWait::Settling(fault())),
            _ => assert_eq!(awaited, CustodyWait::HandIn(HandIn::New)),
        }
    }
}

#[test]
fn a_runner_that_found_no_permit_is_none_of_those_and_its_words_are_forgotten() {
    let mut rig = Rig::new();
    rig.on(E::Began);
    for _ in 0..5 {
        rig.after(&[E::Turn, E::Started, E::Connected, E::PipesOver(Some(fault()))]);
        rig.on(read(JobState::Queued));
        rig.on(E::Exited(Some(i32::from(NOT_YET))));
        assert_eq!(rig.on(read(JobState::Queued)).1, CustodyWait::HandIn(HandIn::New));
    }
    assert_eq!(rig.core.past().why, None);
}

/// Who is asked after its time is killed if it is silent, and asked again later if it answers.
#[test]
fn the_table_of_a_runner_whose_time_is_over() {
    for (answer, killed) in
        [(RunnerAnswer::Outcome, false), (RunnerAnswer::Nothing, false), (RunnerAnswer::Silence, true)]
    {
        let mut rig = Rig::new();
        rig.after(&to(CustodyStage::Following));
        rig.on(E::EndAsked);
        rig.pass(END_LIMIT);
        assert_eq!(rig.on(E::EndDue).0, [F::AskOutcome]);
        assert_eq!(rig.on(E::EndDue).0, [], "one question at a time");
        let (effects, awaited) = rig.on(E::Answered(answer));
        assert_eq!(effects.contains(&F::KillRunner), killed, "{answer:?}");
        assert_eq!(awaited, if killed { CustodyWait::Exit } else { CustodyWait::Runner }, "{answer:?}");
        if killed {
            // Another incarnation, which does not know whether the last one got to do it.
            assert_eq!(rig.on(E::Began), (vec![F::KillRunner], CustodyWait::Exit));
            rig.on(E::NotExited);
            let (_, awaited) = rig.on(read(JobState::Running));
            assert!(matches!(awaited, CustodyWait::Settling(why) if why.code == FaultCode::RunnerLost));
        } else {
            rig.pass(END_LIMIT);
            assert_eq!(rig.on(E::EndDue).0, [F::AskOutcome], "{answer:?}");
        }
    }
}

#[test]
fn a_running_job_is_looked_after_its_agent_its_cancel_and_its_time() {
    let mut rig = Rig::new();
    rig.after(&to(CustodyStage::Following));
    for look in 1..=2 * CANCEL_LOOKS {
        let (effects, _) = rig.on(E::LookDue);
        let cancels = look % CANCEL_LOOKS == 0;
        assert_eq!(effects, if cancels { vec![F::LookForCancel] } else { vec![] }, "look {look}");
        if cancels {
            assert_eq!(rig.on(E::LookDue).0, [], "one look at a time");
            for _ in 1..CANCEL_LOOKS - 1 {
                rig.on(E::LookDue);
            }
            assert_eq!(rig.on(E::LookDue).0, [], "and none while one is under way");
            rig.on(E::Looked { cancelled: false });
            break;
        }
    }
    rig.on(E::AgentOver);
    assert_eq!(rig.on(E::LookDue).0, [F::AskOutcome], "its outcome may not be stored");
    assert_eq!(rig.on(E::LookDue).0, [], "one question at a time");
    rig.on(E::Answered(RunnerAnswer::Nothing));
    assert_eq!(rig.core.end_by(), None);
    rig.pass(rig.core.timeout() + END_LIMIT);
    rig.on(E::LookDue);
    assert_eq!(rig.core.end_by(), Some(rig.now), "it should have ended the job itself by now");

    let mut unknown = Rig { core: CustodyCore::new(Duration::ZERO), now: rig.now };
    unknown.after(&to(CustodyStage::Following));
    unknown.on(E::LookDue);
    unknown.pass(Duration::from_secs(1_000_000));
    unknown.on(E::LookDue);
    assert_eq!(unknown.core.end_by(), None, "whose time is not known has no end");
}

#[test]
fn a_cancel_by_another_process_is_a_request_to_end_that_the_runner_finds_itself() {
    let mut rig = Rig::new();
    rig.after(&to(CustodyStage::Following));
    assert_eq!(rig.on(E::Looked { cancelled: true }).0, [], "it needs not to be told");
    assert_eq!(rig.core.end_by(), Some(rig.now + END_LIMIT));
    for _ in 0..2 * CANCEL_LOOKS {
        assert_eq!(rig.on(E::LookDue).0, [], "nobody looks for what is known");
    }
}

/// An order no process had been brought into: a runner found no permit and its job waited for longer than its agent may run. The next runner
/// was taken for one whose time is over, and a consult actor that was started again asked it to end the job, which nobody had
/// wanted.
#[test]
fn a_second_runner_has_the_whole_time_of_its_agent() {
    let mut rig = Rig::new();
    rig.after(&to(CustodyStage::Following));
    rig.on(E::LookDue);
    rig.after(&[
        E::PipesOver(None),
        read(JobState::Queued),
        E::Exited(Some(i32::from(NOT_YET))),
        read(JobState::Queued),
    ]);
    rig.on(E::HandedIn);
    rig.pass(rig.core.timeout() * 3);
    for event in [E::Turn, E::Started, E::Connected, E::LookDue] {
        rig.on(event);
    }
    assert_eq!(rig.core.end_by(), None);
    rig.on(E::Began);
    assert_eq!(rig.on(E::Connected), (vec![], CustodyWait::Runner), "nobody wants its end");
}

/// An order no process had been brought into: a runner that was killed because it stood still before it began left its mark, and the one
/// after it was killed as soon as its pipes were over.
#[test]
fn a_runner_that_follows_one_that_was_killed_is_let_exit_by_itself() {
    let mut rig = Rig::new();
    rig.after(&to(CustodyStage::Following));
    rig.on(E::EndDue);
    assert_eq!(rig.on(E::Answered(RunnerAnswer::Silence)).0, [F::LetGoOfPipes, F::KillRunner]);
    for event in [E::Exited(None), read(JobState::Queued), E::Turn, E::Started, E::Connected] {
        rig.on(event);
    }
    assert_eq!(rig.on(E::PipesOver(None)), (vec![F::LetGoOfPipes], CustodyWait::Store));
}

#[test]
fn a_store_that_says_nothing_is_asked_for_long_and_then_left_to_a_sweep() {
    for silence in [E::Read(StoreAnswer::Silence), E::NotSettled] {
        let mut rig = Rig::new();
        rig.after(&to(CustodyStage::Judging));
        let began = rig.now;
        let mut pauses = Vec::new();
        while let (effects, CustodyWait::Pause(pause)) = rig.on(silence.clone()) {
            assert_eq!(effects, [F::Show(ShownPhase::Storing)]);
            pauses.push(pause.as_millis());
            rig.pass(pause);
            assert_eq!(rig.on(E::Paused).1, CustodyWait::Store);
        }
        assert_eq!(pauses[..6], [250, 500, 1000, 2000, 4000, 5000]);
        assert!(rig.now - began >= JUDGE_LIMIT);
        // Another incarnation has its own patience.
        rig.on(E::Began);
        assert!(matches!(rig.on(silence).1, CustodyWait::Pause(_)));
    }
}

#[test]
fn what_another_image_knew_goes_on_from_its_stage_and_an_agent_may_be_over_since() {
    let mut rig = Rig::new();
    rig.after(&to(CustodyStage::Following));
    let past = rig.core.past();
    assert_eq!((past.stage, past.starts, past.overdue), (CustodyStage::Following, 1, false));
    let mut next = Rig { core: CustodyCore::inherited(past, Duration::from_secs(600)), now: rig.now };
    assert_eq!(next.on(E::Began), (vec![], CustodyWait::Greeting));
    next.on(E::Connected);
    assert_eq!(next.on(E::LookDue).0, [F::AskOutcome]);
}

#[test]
fn who_would_wait_with_a_job_needs_room_as_well_and_the_wait_for_it_ends_when_it_is_there_or_not_wanted() {
    let mut rig = Rig::new();
    rig.on(E::Began);
    assert!(matches!(rig.on(E::NoRoom(fault())).1, CustodyWait::Room(_)));
    let mut unwanted = Rig { core: rig.core.clone(), now: rig.now };
    assert_eq!(unwanted.on(E::EndAsked), (vec![F::TakeFromRoom], CustodyWait::Store));
    assert_eq!(rig.on(E::Paused).1, CustodyWait::HandIn(HandIn::New));
    rig.on(E::HandedIn);
    assert_eq!(rig.on(E::EndAsked), (vec![], CustodyWait::Turn), "somebody waits with it, and ends it");
}

/// An order no process had been brought into: a runner stood still until its time was over and was killed before it began. The
/// one that took its place was told to end the job, which nobody had wanted.
#[test]
fn the_time_of_a_runner_that_was_killed_is_not_held_against_the_next() {
    for wanted in [false, true] {
        let mut rig = Rig::new();
        rig.after(&to(CustodyStage::Following));
        rig.on(E::LookDue);
        rig.pass(rig.core.timeout() + END_LIMIT);
        rig.on(E::LookDue);
        if wanted {
            rig.on(E::EndAsked);
        }
        rig.on(E::EndDue);
        rig.on(E::Answered(RunnerAnswer::Silence));
        assert_eq!(rig.core.end_by().is_some(), wanted, "what the next image is told");
        for event in [E::Exited(None), read(JobState::Queued), E::Turn, E::Started] {
            rig.on(event);
        }
        let told = if wanted { vec![F::AskToEnd] } else { vec![] };
        assert_eq!(rig.on(E::Connected), (told, CustodyWait::Runner));
    }
}

/// A job that was adopted, with a clock of its own.
fn adopted(run_here: RunHere) -> Rig {
    Rig { core: CustodyCore::adopted(Duration::from_secs(600), run_here), now: Instant::now() }
}

#[test]
fn the_table_of_a_job_that_was_adopted() {
    use CustodyStage::{Judging, Watching};
    let left = CustodyWait::Over(CustodyEnd::LeftToOthers);
    let rows = [
        (E::Began, CustodyWait::News, Watching),
        (E::EndAsked, CustodyWait::News, Watching),
        (read(JobState::Running), CustodyWait::News, Watching),
        (read(JobState::Succeeded), CustodyWait::Over(CustodyEnd::Stored), Judging),
        (E::Read(StoreAnswer::Unknown), left, Watching),
        (E::NobodyThere, CustodyWait::Store, Judging),
        // What belongs to none of this begins it again.
        (E::Exited(Some(0)), CustodyWait::News, Watching),
    ];
    for run_here in [RunHere::Allowed, RunHere::Refused] {
        for (event, awaited, then) in rows.clone() {
            let mut rig = adopted(run_here);
            assert_eq!(rig.on(E::Began).1, CustodyWait::News);
            assert_eq!(rig.on(event.clone()), (vec![], awaited), "{event:?}");
            assert_eq!(rig.core.stage(), then, "{event:?}");
        }
    }
}

#[test]
fn an_adopted_job_nobody_began_is_run_here_where_it_may_and_settled_where_it_may_not() {
    for (run_here, runs) in [(RunHere::Allowed, true), (RunHere::Refused, false)] {
        let mut rig = adopted(run_here);
        rig.on(E::Began);
        rig.on(E::NobodyThere);
        let (effects, awaited) = rig.on(read(JobState::Queued));
        assert_eq!(awaited == CustodyWait::HandIn(HandIn::New), runs, "{awaited:?}");
        assert_eq!(effects == [F::LeaveRoom], !runs);
    }
}

#[test]
fn a_job_that_is_ours_by_its_row_stays_so_whoever_runs_it() {
    for (ours, awaited) in
        [(Ours::ByItsRow, CustodyWait::News), (Ours::ByItsPipes, CustodyWait::Over(CustodyEnd::LeftToOthers))]
    {
        let mut rig = Rig { core: CustodyCore::new(Duration::from_secs(600)).held(ours), now: Instant::now() };
        rig.after(&to(CustodyStage::Judging));
        rig.on(read(JobState::Running));
        assert_eq!(rig.on(E::Elsewhere).1, awaited);
        // The next image knows it.
        let past = rig.core.past();
        assert_eq!(CustodyCore::inherited(past.clone(), Duration::ZERO).past(), past);
    }
}

/// An order no process had been brought into: a runner had its time, the program was upgraded, and the next image took that
/// for a request: it ended the job in the hands of the next runner.
#[test]
fn a_runner_that_had_its_time_is_no_request_to_end_the_job() {
    let mut rig = Rig::new();
    rig.after(&to(CustodyStage::Following));
    rig.on(E::LookDue);
    rig.pass(Duration::from_secs(600) + END_LIMIT);
    rig.on(E::LookDue);
    assert!(rig.core.end_by().is_some() && !rig.core.is_end_wanted());
    rig.on(E::EndAsked);
    assert!(rig.core.is_end_wanted());
}
