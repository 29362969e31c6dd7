//! Calls by the mailbox: as the lines', with an answer by the mailbox and not by the client's bytes.

use super::*;

impl Rig {
    /// Calls a tool by the mailbox; how it comes out is told there.
    fn direct(&mut self, tool: &str, number: u64) -> (Vec<String>, oneshot::Receiver<CallOutcome>) {
        let (reply, told) = oneshot::channel();
        let call = DirectCall {
            number: CallNumber(number),
            tool: tool.to_owned(),
            arguments: Bytes::from_static(b"{}"),
            client: ClientInfo::Unknown,
            progress: ProgressSink::closed(),
            reply,
        };
        (self.heard(SessionEvent::Invoked(Box::new(call))), told)
    }
}

/// What was told: `ok`, the code of a fault, or nothing yet.
fn told(told: &mut oneshot::Receiver<CallOutcome>) -> String {
    match told.try_recv() {
        Ok(CallOutcome::Reply(_)) => "ok".to_owned(),
        Ok(CallOutcome::Fault(fault)) => fault.code.as_str().to_owned(),
        Err(oneshot::error::TryRecvError::Empty) => "nothing".to_owned(),
        Err(oneshot::error::TryRecvError::Closed) => "dropped".to_owned(),
    }
}

#[test]
fn a_call_by_the_mailbox_is_run_by_its_contract_and_answered_there() {
    let table: [(&str, &[&str], &str); 3] = [
        (AGAIN, &[], "ok"),
        (
            ONCE,
            &["jobs: withdraw 1", "count once Failed(OutcomeUnknown) of 1 after 0", "answer directly"],
            "outcome_unknown",
        ),
        (ASKED, &["probe 1"], "nothing"),
    ];
    for (tool, lost, last) in table {
        let mut rig = Rig::served();
        let (sent, mut answer) = rig.direct(tool, 1);
        assert_eq!(sent, ["send to 1: 1#1"], "{tool}");
        assert_eq!(rig.gone(G1), lost, "{tool}");
        if tool == AGAIN {
            assert_eq!(rig.up(G2), ["send to 2: 1#2"]);
            assert_eq!(rig.settled(G2, 1), ["count again Success of 2 after 1", "answer directly"]);
            assert_eq!(rig.settled(G2, 1), ["stale"]);
        }
        assert_eq!(told(&mut answer), last, "{tool}");
        assert_eq!(rig.said(), "", "{tool}: no line tells of it");
    }
    let mut rig = Rig::new();
    let (run, mut answer) = rig.direct(HERE, 7);
    assert_eq!(run, ["run 7"]);
    assert_eq!(rig.host_settled(7), ["count here Success of 0 after 0", "answer directly"]);
    assert_eq!((told(&mut answer).as_str(), rig.turn.in_flight()), ("ok", 0));
}

#[test]
fn one_that_may_not_be_taken_in_is_answered_at_once() {
    let mut rig = Rig::served();
    let (done, mut answer) = rig.direct("agian", 1);
    assert_eq!((done, told(&mut answer).as_str()), (vec!["answer directly".to_owned()], "invalid_input"));
    let most = SessionLimits::default().calls as u64;
    let _open: Vec<_> = (1..=most).map(|number| rig.direct(AGAIN, number).1).collect();
    let (_, mut answer) = rig.direct(AGAIN, most + 1);
    assert_eq!(told(&mut answer), "busy");
    rig.heard(SessionEvent::Stop);
    let (_, mut answer) = rig.direct(AGAIN, most + 2);
    assert_eq!(told(&mut answer), "stopping");
}

#[test]
fn it_is_left_late_cut_off_and_stopped_like_any_other() {
    let mut rig = Rig::served();
    let (_, mut left) = rig.direct(AGAIN, 1);
    let done = ["worker: withdraw 1", "jobs: withdraw 1", "count again Cancelled of 0 after 0"];
    assert_eq!(rig.heard(SessionEvent::Left(CallNumber(1))), done);
    assert_eq!(told(&mut left), "dropped");
    assert_eq!(rig.heard(SessionEvent::Left(CallNumber(1))), NOTHING, "once");

    let (_, mut late) = rig.direct(QUICK, 2);
    rig.pass(Duration::from_secs(6));
    assert!(rig.turn.wakes().is_some_and(|at| at <= rig.now), "its deadline wakes the session");
    let done = rig.step(TurnEvent::Woke);
    assert_eq!(
        (&done[..], told(&mut late).as_str()),
        (
            &["abort", "count quick Failed(DeadlineExceeded) of 0 after 0", "answer directly"].map(str::to_owned)[..],
            "deadline_exceeded"
        )
    );

    let (_, mut kept) = rig.direct(AGAIN, 3);
    let (_, mut lost) = rig.direct(HERE, 4);
    // The last run broke off before the call of the host was begun.
    rig.turn.host_calls.get_mut(&CallNumber(4)).expect("held").task = None;
    rig.step(TurnEvent::Interrupted);
    let done = rig.step(TurnEvent::Resumed);
    assert!(done.contains(&"jobs: open [3]".to_owned()), "{done:?}");
    assert_eq!((told(&mut kept).as_str(), told(&mut lost).as_str()), ("nothing", "internal"));

    rig.heard(SessionEvent::Stop);
    assert_eq!((told(&mut kept).as_str(), rig.turn.in_flight()), ("stopping", 0));
}

#[test]
fn a_session_whose_handle_is_gone_waits_for_its_calls_and_is_over() {
    let mut rig = Rig::served();
    let (_, mut answer) = rig.direct(AGAIN, 1);
    rig.step(TurnEvent::ReadAll);
    assert!(!rig.turn.is_over());
    rig.settled(G1, 1);
    assert!(rig.turn.is_over());
    assert_eq!(told(&mut answer), "ok");
}
