use std::io;

use super::*;
use crate::rollout::selfcheck::NAME;

fn file(inode: u64) -> Fingerprint {
    Fingerprint { size: 100, modified_unix_ns: 1, inode, device: 1, mode: 0o755, owner: 0, group: 0 }
}

fn content(text: &str) -> Digest {
    Digest::of(text)
}

fn passed() -> SelfCheck {
    SelfCheck {
        takes_descriptor: true,
        selfcheck: NAME.to_owned(),
        version: "0.2.0".to_owned(),
        snapshot_format: 1,
        store_schema: 2,
        catalog: String::new(),
        restored: Some(true),
    }
}

/// A rollout and the time by which it is told things.
struct Told {
    rollout: Rollout,
    now: Instant,
}

impl Told {
    fn new(mode: RolloutMode, stable: bool) -> Self {
        Self { rollout: Rollout::new(mode, stable, Some(file(1))), now: Instant::now() }
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        self.rollout.step(event, self.now).expect("it belongs to the state")
    }

    /// Has the launch path looked at until the file is read.
    fn settle_on(&mut self, begin: Event, seen: Fingerprint) {
        assert_eq!(self.step(begin), [Effect::Look]);
        assert_eq!(self.step(Event::Looked(Some(seen))), [Effect::Rest]);
        assert_eq!(self.step(Event::Rested), [Effect::Look]);
        assert_eq!(self.step(Event::Looked(Some(seen))), [Effect::Read]);
    }

    /// Has a file checked.
    fn check(&mut self, begin: Event, inode: u64, text: &str) -> Candidate {
        self.settle_on(begin, file(inode));
        let candidate = Candidate { fingerprint: file(inode), digest: content(text) };
        let read = Event::Read { file: Some(content(text)), running: Some(content("running")) };
        assert_eq!(self.step(read), [Effect::Check(candidate)]);
        candidate
    }

    fn refuse(&mut self, begin: Event, inode: u64, text: &str, verdict: Verdict) {
        self.check(begin, inode, text);
        let ended = self.step(Event::Checked(Err(verdict.clone())));
        assert_eq!(ended, [Effect::Ended(self.rollout.trigger(), NotAdopted::Rejected(verdict))]);
    }

    fn idle(&self) {
        assert_eq!(self.rollout.state(), "idle");
    }
}

const NOTHING: [Effect; 0] = [];

fn unchanged() -> [Effect; 1] {
    [Effect::Ended(Trigger::Watch, NotAdopted::Unchanged)]
}

#[test]
fn a_good_file_is_settled_on_checked_and_handed_over_to() {
    let mut told = Told::new(RolloutMode::Auto, true);
    let candidate = told.check(Event::LookDue, 2, "new");
    assert_eq!(told.rollout.state(), "checking");
    assert_eq!(told.step(Event::Checked(Ok(passed()))), [Effect::HandOver(candidate, passed())]);
    assert_eq!(told.rollout.state(), "handing_over");
}

#[test]
fn what_is_no_candidate_costs_a_look_and_nothing_more() {
    let mut told = Told::new(RolloutMode::Auto, true);
    assert_eq!(told.step(Event::LookDue), [Effect::Look]);
    assert_eq!(told.step(Event::Looked(Some(file(1)))), unchanged(), "the running one");
    assert_eq!(told.step(Event::LookDue), [Effect::Look]);
    assert_eq!(told.step(Event::Looked(None)), [Effect::Ended(Trigger::Watch, NotAdopted::Vanished)]);
    // Touched: read once, and known from then on.
    told.settle_on(Event::LookDue, file(2));
    let read = Event::Read { file: Some(content("running")), running: Some(content("running")) };
    assert_eq!(told.step(read), unchanged());
    assert_eq!(told.step(Event::LookDue), [Effect::Look]);
    assert_eq!(told.step(Event::Looked(Some(file(2)))), unchanged());
    told.idle();
}

#[test]
fn a_file_that_is_being_written_or_replaced_again_is_waited_out() {
    let mut told = Told::new(RolloutMode::Auto, true);
    assert_eq!(told.step(Event::LookDue), [Effect::Look]);
    for inode in 2..6 {
        assert_eq!(told.step(Event::Looked(Some(file(inode)))), [Effect::Rest]);
        assert_eq!(told.step(Event::Rested), [Effect::Look]);
    }
    // Gone for a moment.
    assert_eq!(told.step(Event::Looked(None)), [Effect::Rest]);
    assert_eq!(told.step(Event::Rested), [Effect::Look]);
    assert_eq!(told.step(Event::Looked(Some(file(6)))), [Effect::Rest]);
    assert_eq!(told.step(Event::Rested), [Effect::Look]);
    assert_eq!(told.step(Event::Looked(Some(file(6)))), [Effect::Read]);
    let candidate = Candidate { fingerprint: file(6), digest: content("new") };
    let read = Event::Read { file: Some(content("new")), running: None };
    assert_eq!(told.step(read), [Effect::Check(candidate)]);
    // And once more while it was checked.
    assert_eq!(told.step(Event::Checked(Err(Verdict::Replaced))), [Effect::Rest]);
    assert_eq!(told.step(Event::Rested), [Effect::Look]);
    assert_eq!(told.step(Event::Looked(Some(file(7)))), [Effect::Rest]);
    assert_eq!(told.rollout.refused(), None);
}

#[test]
fn a_file_that_never_rests_is_given_up_until_the_next_request() {
    let mut told = Told::new(RolloutMode::Auto, true);
    assert_eq!(told.step(Event::LookDue), [Effect::Look]);
    let mut rests = 0;
    for inode in 2.. {
        match &told.step(Event::Looked(Some(file(inode))))[..] {
            [Effect::Rest] => rests += 1,
            ended => {
                assert_eq!(ended, [Effect::Ended(Trigger::Watch, NotAdopted::Unsettled)]);
                break;
            }
        }
        assert_eq!(told.step(Event::Rested), [Effect::Look]);
    }
    assert_eq!(rests, MOST_LOOKS);
    assert_eq!(told.step(Event::LookDue), [Effect::Look]);
}

#[test]
fn a_refused_file_is_not_checked_again_before_it_changes() {
    let mut told = Told::new(RolloutMode::Auto, true);
    told.refuse(Event::LookDue, 2, "bad", Verdict::Truncated);
    assert_eq!(told.step(Event::LookDue), [Effect::Look]);
    assert_eq!(told.step(Event::Looked(Some(file(2)))), unchanged());
    // Copied over itself: the same content is refused without a check.
    told.settle_on(Event::LookDue, file(3));
    assert_eq!(told.step(Event::Read { file: Some(content("bad")), running: None }), unchanged());
    assert_eq!(told.rollout.refused().map(|refused| refused.candidate.fingerprint), Some(file(3)));
    // Made executable, with the same content.
    let executable = Fingerprint { mode: 0o700, ..file(3) };
    told.settle_on(Event::LookDue, executable);
    // And given to another user, and to another group.
    let given = Fingerprint { owner: 7, ..executable };
    for (step, seen) in [executable, given, Fingerprint { group: 7, ..given }].into_iter().enumerate() {
        if step > 0 {
            told.settle_on(Event::LookDue, seen);
        }
        let candidate = Candidate { fingerprint: seen, digest: content("bad") };
        let read = Event::Read { file: Some(content("bad")), running: None };
        assert_eq!(told.step(read), [Effect::Check(candidate)]);
        let ended = told.step(Event::Checked(Err(Verdict::NotAProgram)));
        assert_eq!(ended, [Effect::Ended(Trigger::Watch, NotAdopted::Rejected(Verdict::NotAProgram))]);
    }
    // The next good one is adopted.
    let candidate = told.check(Event::LookDue, 4, "good");
    assert_eq!(told.step(Event::Checked(Ok(passed()))), [Effect::HandOver(candidate, passed())]);
}

#[test]
fn a_file_that_cannot_be_read_is_refused_by_how_it_looks() {
    let mut told = Told::new(RolloutMode::Auto, true);
    told.settle_on(Event::LookDue, file(2));
    let verdict = Verdict::Unreadable(io::ErrorKind::PermissionDenied);
    let ended = told.step(Event::Read { file: None, running: None });
    assert_eq!(ended, [Effect::Ended(Trigger::Watch, NotAdopted::Rejected(verdict))]);
    assert_eq!(told.step(Event::LookDue), [Effect::Look]);
    assert_eq!(told.step(Event::Looked(Some(file(2)))), unchanged());
}

#[test]
fn what_is_asked_for_is_checked_even_if_it_is_the_same_or_was_refused() {
    for trigger in [Trigger::Reload, Trigger::Signal, Trigger::Variable] {
        for (mode, stable) in [(RolloutMode::Auto, true), (RolloutMode::Auto, false), (RolloutMode::OnRequest, true)] {
            let mut told = Told::new(mode, stable);
            assert_eq!(told.step(Event::Asked(trigger)), [Effect::Look]);
            // Nobody has touched it, so there is nothing to wait out.
            assert_eq!(told.step(Event::Looked(Some(file(1)))), [Effect::Read]);
            let candidate = Candidate { fingerprint: file(1), digest: content("running") };
            let read = Event::Read { file: Some(content("running")), running: Some(content("running")) };
            assert_eq!(told.step(read), [Effect::Check(candidate)]);
            assert_eq!(told.step(Event::Checked(Ok(passed()))), [Effect::HandOver(candidate, passed())]);

            let mut told = Told::new(mode, stable);
            told.refuse(Event::Asked(trigger), 2, "bad", Verdict::NotExecutable);
            told.check(Event::Asked(trigger), 2, "bad");
        }
    }
}

#[test]
fn the_mode_and_the_path_decide_whether_a_look_is_ever_due() {
    for (mode, stable, watches) in [
        (RolloutMode::Auto, true, true),
        (RolloutMode::Auto, false, false),
        (RolloutMode::OnRequest, true, false),
        (RolloutMode::Off, true, false),
    ] {
        let mut told = Told::new(mode, stable);
        assert_eq!(told.rollout.watches(), watches);
        let effects = told.step(Event::LookDue);
        assert_eq!(effects, if watches { vec![Effect::Look] } else { vec![] }, "{mode:?} {stable}");
    }
    let mut off = Told::new(RolloutMode::Off, true);
    assert_eq!(off.step(Event::Asked(Trigger::Reload)), [Effect::Ended(Trigger::Reload, NotAdopted::Off)]);
    off.idle();
}

#[test]
fn who_asks_during_a_rollout_joins_it() {
    let mut told = Told::new(RolloutMode::Auto, true);
    assert_eq!(told.step(Event::LookDue), [Effect::Look]);
    assert_eq!(told.step(Event::Asked(Trigger::Signal)), NOTHING);
    assert_eq!(told.rollout.trigger(), Trigger::Signal);
    // What would have been nothing to a watch is checked for whoever joined.
    assert_eq!(told.step(Event::Looked(Some(file(1)))), [Effect::Read]);
    let read = Event::Read { file: Some(content("running")), running: Some(content("running")) };
    assert!(matches!(told.step(read)[..], [Effect::Check(_)]));
    for during in [Event::Asked(Trigger::Reload), Event::LookDue, Event::Asked(Trigger::Watch)] {
        assert_eq!(told.step(during), NOTHING);
    }
    assert_eq!(told.rollout.trigger(), Trigger::Reload);
    assert!(matches!(told.step(Event::Checked(Ok(passed())))[..], [Effect::HandOver(..)]));
    assert_eq!(told.step(Event::Asked(Trigger::Signal)), NOTHING);
    let ended = told.step(Event::NotHandedOver(NotAdopted::NoHandOver));
    assert_eq!(ended, [Effect::Ended(Trigger::Signal, NotAdopted::NoHandOver)]);
}

#[test]
fn what_breaks_off_through_no_fault_of_the_file_is_left_alone_for_longer_each_time() {
    let fault = || NotAdopted::HandOverFailed(Box::new(Fault::new(FaultCode::Internal, "no.")));
    let ways: [(Event, bool); 4] = [
        (Event::NotHandedOver(fault()), true),
        (Event::NotHandedOver(NotAdopted::NoHandOver), true),
        (Event::Lost, true),
        (Event::Checked(Err(Verdict::NotChecked("no.".to_owned()))), false),
    ];
    for (event, handing_over) in ways {
        let mut told = Told::new(RolloutMode::Auto, true);
        let mut wait = BACKOFF;
        for round in 0..8 {
            told.check(Event::LookDue, 2 + round, &format!("new {round}"));
            if handing_over {
                told.step(Event::Checked(Ok(passed())));
            }
            assert!(matches!(told.step(event.clone())[..], [Effect::Ended(Trigger::Watch, _)]), "{event:?}");
            assert_eq!(told.rollout.refused(), None, "{event:?}");
            told.now += wait - Duration::from_millis(1);
            assert_eq!(told.step(Event::LookDue), NOTHING, "{event:?}, round {round}");
            told.now += Duration::from_millis(1);
            wait = (wait * 2).min(BACKOFF_MOST);
        }
        // Whoever asks does not wait for it.
        told.check(Event::LookDue, 50, "new");
        told.step(Event::Lost);
        assert_eq!(told.step(Event::LookDue), NOTHING);
        assert_eq!(told.step(Event::Asked(Trigger::Reload)), [Effect::Look]);
    }
}

/// Every state against every event: what does not belong to it is a fault, and changes nothing.
#[test]
fn an_event_that_does_not_belong_to_the_state_is_a_fault_and_changes_nothing() {
    let read = || Event::Read { file: Some(content("new")), running: None };
    let ways: [(&str, Vec<Event>); 6] = [
        ("idle", vec![]),
        ("looking", vec![Event::LookDue]),
        ("resting", vec![Event::LookDue, Event::Looked(Some(file(2)))]),
        ("reading", vec![Event::Asked(Trigger::Reload), Event::Looked(Some(file(1)))]),
        ("checking", vec![Event::Asked(Trigger::Reload), Event::Looked(Some(file(1))), read()]),
        (
            "handing over",
            vec![Event::Asked(Trigger::Reload), Event::Looked(Some(file(1))), read(), Event::Checked(Ok(passed()))],
        ),
    ];
    // Columns: looked, rested, read, checked, not handed over.
    let answers = || {
        [
            Event::Looked(None),
            Event::Rested,
            read(),
            Event::Checked(Err(Verdict::Truncated)),
            Event::NotHandedOver(NotAdopted::NoHandOver),
        ]
    };
    for (row, (state, way)) in ways.into_iter().enumerate() {
        for (column, answer) in answers().into_iter().enumerate() {
            let mut told = Told::new(RolloutMode::Auto, true);
            for event in &way {
                told.step(event.clone());
            }
            let before = told.rollout.phase.clone();
            let belongs = row == column + 1;
            match told.rollout.step(answer, told.now) {
                Ok(effects) => assert!(belongs && effects.len() == 1, "{state}, {column}: {effects:?}"),
                Err(fault) => {
                    assert!(!belongs, "{state}, {column}: {fault}");
                    assert_eq!(fault.code, FaultCode::IllegalTransition);
                    assert_eq!(told.rollout.phase, before);
                }
            }
            // Losing whoever carries it out ends every rollout, and an idle one does not notice.
            let lost = told.step(Event::Lost);
            assert!(lost.is_empty() || matches!(lost[..], [Effect::Ended(_, NotAdopted::Interrupted)]));
            told.idle();
        }
    }
}
