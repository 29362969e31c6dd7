//! Every event in every state, and what a look at the launch path comes to.
//!
//! Laws: L15, L16.

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
        program: None,
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

    fn step(&mut self, event: RolloutEvent) -> Vec<RolloutEffect> {
        self.rollout.step(event, self.now).expect("it belongs to the state")
    }

    /// Has the launch path looked at until the file is read.
    fn settle_on(&mut self, begin: RolloutEvent, seen: Fingerprint) {
        assert_eq!(self.step(begin), [RolloutEffect::Look]);
        assert_eq!(self.step(RolloutEvent::Looked(Some(seen))), [RolloutEffect::Rest]);
        assert_eq!(self.step(RolloutEvent::Rested), [RolloutEffect::Look]);
        assert_eq!(self.step(RolloutEvent::Looked(Some(seen))), [RolloutEffect::Read]);
    }

    /// Has a file checked.
    fn check(&mut self, begin: RolloutEvent, inode: u64, text: &str) -> Candidate {
        self.settle_on(begin, file(inode));
        let candidate = Candidate { fingerprint: file(inode), digest: content(text) };
        let read = RolloutEvent::Read { file: Some(content(text)), running: Some(content("running")) };
        assert_eq!(self.step(read), [RolloutEffect::Check(candidate)]);
        candidate
    }

    fn refuse(&mut self, begin: RolloutEvent, inode: u64, text: &str, verdict: Verdict) {
        self.check(begin, inode, text);
        let ended = self.step(RolloutEvent::Checked(Err(verdict.clone())));
        assert_eq!(ended, [RolloutEffect::Ended(self.rollout.trigger(), NotAdopted::Rejected(verdict))]);
    }

    fn idle(&self) {
        assert_eq!(self.rollout.state(), "idle");
    }
}

const NOTHING: [RolloutEffect; 0] = [];

fn unchanged() -> [RolloutEffect; 1] {
    [RolloutEffect::Ended(Trigger::Watch, NotAdopted::Unchanged)]
}

#[test]
fn a_good_file_is_settled_on_checked_and_handed_over_to() {
    let mut told = Told::new(RolloutMode::Auto, true);
    let candidate = told.check(RolloutEvent::LookDue, 2, "new");
    assert_eq!(told.rollout.state(), "checking");
    assert_eq!(told.step(RolloutEvent::Checked(Ok(passed()))), [RolloutEffect::HandOver(candidate, passed())]);
    assert_eq!(told.rollout.state(), "handing_over");
}

#[test]
fn what_is_no_candidate_costs_a_look_and_nothing_more() {
    let mut told = Told::new(RolloutMode::Auto, true);
    assert_eq!(told.step(RolloutEvent::LookDue), [RolloutEffect::Look]);
    assert_eq!(told.step(RolloutEvent::Looked(Some(file(1)))), unchanged(), "the running one");
    assert_eq!(told.step(RolloutEvent::LookDue), [RolloutEffect::Look]);
    assert_eq!(told.step(RolloutEvent::Looked(None)), [RolloutEffect::Ended(Trigger::Watch, NotAdopted::Vanished)]);
    // Touched: read once, and known from then on.
    told.settle_on(RolloutEvent::LookDue, file(2));
    let read = RolloutEvent::Read { file: Some(content("running")), running: Some(content("running")) };
    assert_eq!(told.step(read), unchanged());
    assert_eq!(told.step(RolloutEvent::LookDue), [RolloutEffect::Look]);
    assert_eq!(told.step(RolloutEvent::Looked(Some(file(2)))), unchanged());
    told.idle();
}

#[test]
fn a_file_that_is_being_written_or_replaced_again_is_waited_out() {
    let mut told = Told::new(RolloutMode::Auto, true);
    assert_eq!(told.step(RolloutEvent::LookDue), [RolloutEffect::Look]);
    for inode in 2..6 {
        assert_eq!(told.step(RolloutEvent::Looked(Some(file(inode)))), [RolloutEffect::Rest]);
        assert_eq!(told.step(RolloutEvent::Rested), [RolloutEffect::Look]);
    }
    // Gone for a moment.
    assert_eq!(told.step(RolloutEvent::Looked(None)), [RolloutEffect::Rest]);
    assert_eq!(told.step(RolloutEvent::Rested), [RolloutEffect::Look]);
    assert_eq!(told.step(RolloutEvent::Looked(Some(file(6)))), [RolloutEffect::Rest]);
    assert_eq!(told.step(RolloutEvent::Rested), [RolloutEffect::Look]);
    assert_eq!(told.step(RolloutEvent::Looked(Some(file(6)))), [RolloutEffect::Read]);
    let candidate = Candidate { fingerprint: file(6), digest: content("new") };
    let read = RolloutEvent::Read { file: Some(content("new")), running: None };
    assert_eq!(told.step(read), [RolloutEffect::Check(candidate)]);
    // And once more while it was checked.
    assert_eq!(told.step(RolloutEvent::Checked(Err(Verdict::Replaced))), [RolloutEffect::Rest]);
    assert_eq!(told.step(RolloutEvent::Rested), [RolloutEffect::Look]);
    assert_eq!(told.step(RolloutEvent::Looked(Some(file(7)))), [RolloutEffect::Rest]);
    assert_eq!(told.rollout.refused(), None);
}

#[test]
fn a_file_that_never_rests_is_given_up_until_the_next_request() {
    let mut told = Told::new(RolloutMode::Auto, true);
    assert_eq!(told.step(RolloutEvent::LookDue), [RolloutEffect::Look]);
    let mut rests = 0;
    for inode in 2.. {
        match &told.step(RolloutEvent::Looked(Some(file(inode))))[..] {
            [RolloutEffect::Rest] => rests += 1,
            ended => {
                assert_eq!(ended, [RolloutEffect::Ended(Trigger::Watch, NotAdopted::Unsettled)]);
                break;
            }
        }
        assert_eq!(told.step(RolloutEvent::Rested), [RolloutEffect::Look]);
    }
    assert_eq!(rests, MOST_LOOKS);
    assert_eq!(told.step(RolloutEvent::LookDue), [RolloutEffect::Look]);
}

#[test]
fn a_refused_file_is_not_checked_again_before_it_changes() {
    let mut told = Told::new(RolloutMode::Auto, true);
    told.refuse(RolloutEvent::LookDue, 2, "bad", Verdict::Truncated);
    assert_eq!(told.step(RolloutEvent::LookDue), [RolloutEffect::Look]);
    assert_eq!(told.step(RolloutEvent::Looked(Some(file(2)))), unchanged());
    // Copied over itself: the same content is refused without a check.
    told.settle_on(RolloutEvent::LookDue, file(3));
    assert_eq!(told.step(RolloutEvent::Read { file: Some(content("bad")), running: None }), unchanged());
    assert_eq!(told.rollout.refused().map(|refused| refused.candidate.fingerprint), Some(file(3)));
    // Made executable, with the same content.
    let executable = Fingerprint { mode: 0o700, ..file(3) };
    told.settle_on(RolloutEvent::LookDue, executable);
    // And given to another user, and to another group.
    let given = Fingerprint { owner: 7, ..executable };
    for (step, seen) in [executable, given, Fingerprint { group: 7, ..given }].into_iter().enumerate() {
        if step > 0 {
            told.settle_on(RolloutEvent::LookDue, seen);
        }
        let candidate = Candidate { fingerprint: seen, digest: content("bad") };
        let read = RolloutEvent::Read { file: Some(content("bad")), running: None };
        assert_eq!(told.step(read), [RolloutEffect::Check(candidate)]);
        let ended = told.step(RolloutEvent::Checked(Err(Verdict::NotAProgram)));
        assert_eq!(ended, [RolloutEffect::Ended(Trigger::Watch, NotAdopted::Rejected(Verdict::NotAProgram))]);
    }
    // The next good one is adopted.
    let candidate = told.check(RolloutEvent::LookDue, 4, "good");
    assert_eq!(told.step(RolloutEvent::Checked(Ok(passed()))), [RolloutEffect::HandOver(candidate, passed())]);
}

#[test]
fn a_file_that_cannot_be_read_is_refused_by_how_it_looks() {
    let mut told = Told::new(RolloutMode::Auto, true);
    told.settle_on(RolloutEvent::LookDue, file(2));
    let verdict = Verdict::Unreadable(io::ErrorKind::PermissionDenied);
    let ended = told.step(RolloutEvent::Read { file: None, running: None });
    assert_eq!(ended, [RolloutEffect::Ended(Trigger::Watch, NotAdopted::Rejected(verdict))]);
    assert_eq!(told.step(RolloutEvent::LookDue), [RolloutEffect::Look]);
    assert_eq!(told.step(RolloutEvent::Looked(Some(file(2)))), unchanged());
}

#[test]
fn what_is_asked_for_is_checked_even_if_it_is_the_same_or_was_refused() {
    for trigger in [Trigger::Reload, Trigger::Signal, Trigger::Variable] {
        for (mode, stable) in [(RolloutMode::Auto, true), (RolloutMode::Auto, false), (RolloutMode::OnRequest, true)] {
            let mut told = Told::new(mode, stable);
            assert_eq!(told.step(RolloutEvent::Asked(trigger)), [RolloutEffect::Look]);
            // Nobody has touched it, so there is nothing to wait out.
            assert_eq!(told.step(RolloutEvent::Looked(Some(file(1)))), [RolloutEffect::Read]);
            let candidate = Candidate { fingerprint: file(1), digest: content("running") };
            let read = RolloutEvent::Read { file: Some(content("running")), running: Some(content("running")) };
            assert_eq!(told.step(read), [RolloutEffect::Check(candidate)]);
            assert_eq!(told.step(RolloutEvent::Checked(Ok(passed()))), [RolloutEffect::HandOver(candidate, passed())]);

            let mut told = Told::new(mode, stable);
            told.refuse(RolloutEvent::Asked(trigger), 2, "bad", Verdict::NotExecutable);
            told.check(RolloutEvent::Asked(trigger), 2, "bad");
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
        let effects = told.step(RolloutEvent::LookDue);
        assert_eq!(effects, if watches { vec![RolloutEffect::Look] } else { vec![] }, "{mode:?} {stable}");
    }
    let mut off = Told::new(RolloutMode::Off, true);
    assert_eq!(
        off.step(RolloutEvent::Asked(Trigger::Reload)),
        [RolloutEffect::Ended(Trigger::Reload, NotAdopted::Off)]
    );
    off.idle();
}

#[test]
fn who_asks_during_a_rollout_joins_it() {
    let mut told = Told::new(RolloutMode::Auto, true);
    assert_eq!(told.step(RolloutEvent::LookDue), [RolloutEffect::Look]);
    assert_eq!(told.step(RolloutEvent::Asked(Trigger::Signal)), NOTHING);
    assert_eq!(told.rollout.trigger(), Trigger::Signal);
    // What would have been nothing to a watch is checked for whoever joined.
    assert_eq!(told.step(RolloutEvent::Looked(Some(file(1)))), [RolloutEffect::Read]);
    let read = RolloutEvent::Read { file: Some(content("running")), running: Some(content("running")) };
    assert!(matches!(told.step(read)[..], [RolloutEffect::Check(_)]));
    for during in [RolloutEvent::Asked(Trigger::Reload), RolloutEvent::LookDue, RolloutEvent::Asked(Trigger::Watch)] {
        assert_eq!(told.step(during), NOTHING);
    }
    assert_eq!(told.rollout.trigger(), Trigger::Reload);
    assert!(matches!(told.step(RolloutEvent::Checked(Ok(passed())))[..], [RolloutEffect::HandOver(..)]));
    assert_eq!(told.step(RolloutEvent::Asked(Trigger::Signal)), NOTHING);
    let ended = told.step(RolloutEvent::NotHandedOver(NotAdopted::NoHandOver));
    assert_eq!(ended, [RolloutEffect::Ended(Trigger::Signal, NotAdopted::NoHandOver)]);
}

#[test]
fn what_breaks_off_through_no_fault_of_the_file_is_left_alone_for_longer_each_time() {
    let fault = || NotAdopted::HandOverFailed(Box::new(Fault::new(FaultCode::Internal, "no.")));
    let ways: [(RolloutEvent, bool); 4] = [
        (RolloutEvent::NotHandedOver(fault()), true),
        (RolloutEvent::NotHandedOver(NotAdopted::NoHandOver), true),
        (RolloutEvent::Lost, true),
        (RolloutEvent::Checked(Err(Verdict::NotChecked("no.".to_owned()))), false),
    ];
    for (event, handing_over) in ways {
        let mut told = Told::new(RolloutMode::Auto, true);
        let mut wait = BACKOFF;
        for round in 0..8 {
            told.check(RolloutEvent::LookDue, 2 + round, &format!("new {round}"));
            if handing_over {
                told.step(RolloutEvent::Checked(Ok(passed())));
            }
            assert!(matches!(told.step(event.clone())[..], [RolloutEffect::Ended(Trigger::Watch, _)]), "{event:?}");
            assert_eq!(told.rollout.refused(), None, "{event:?}");
            told.now += wait - Duration::from_millis(1);
            assert_eq!(told.step(RolloutEvent::LookDue), NOTHING, "{event:?}, round {round}");
            told.now += Duration::from_millis(1);
            wait = (wait * 2).min(BACKOFF_MOST);
        }
        // Whoever asks does not wait for it.
        told.check(RolloutEvent::LookDue, 50, "new");
        told.step(RolloutEvent::Lost);
        assert_eq!(told.step(RolloutEvent::LookDue), NOTHING);
        assert_eq!(told.step(RolloutEvent::Asked(Trigger::Reload)), [RolloutEffect::Look]);
    }
}

/// Every state against every event: what does not belong to it is a fault, and changes nothing.
#[test]
fn an_event_that_does_not_belong_to_the_state_is_a_fault_and_changes_nothing() {
    let read = || RolloutEvent::Read { file: Some(content("new")), running: None };
    let ways: [(&str, Vec<RolloutEvent>); 6] = [
        ("idle", vec![]),
        ("looking", vec![RolloutEvent::LookDue]),
        ("resting", vec![RolloutEvent::LookDue, RolloutEvent::Looked(Some(file(2)))]),
        ("reading", vec![RolloutEvent::Asked(Trigger::Reload), RolloutEvent::Looked(Some(file(1)))]),
        ("checking", vec![RolloutEvent::Asked(Trigger::Reload), RolloutEvent::Looked(Some(file(1))), read()]),
        (
            "handing over",
            vec![
                RolloutEvent::Asked(Trigger::Reload),
                RolloutEvent::Looked(Some(file(1))),
                read(),
                RolloutEvent::Checked(Ok(passed())),
            ],
        ),
    ];
    // Columns: looked, rested, read, checked, not handed over.
    let answers = || {
        [
            RolloutEvent::Looked(None),
            RolloutEvent::Rested,
            read(),
            RolloutEvent::Checked(Err(Verdict::Truncated)),
            RolloutEvent::NotHandedOver(NotAdopted::NoHandOver),
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
            let lost = told.step(RolloutEvent::Lost);
            assert!(lost.is_empty() || matches!(lost[..], [RolloutEffect::Ended(_, NotAdopted::Interrupted)]));
            told.idle();
        }
    }
}
