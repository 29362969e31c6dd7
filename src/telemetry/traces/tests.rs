//! Tests of what is remembered and told.

use super::*;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn brought() -> Option<Box<TraceContext>> {
    TraceContext::parse(PARENT).map(|context| Box::new(context.with_state("a=1")))
}

fn told() -> Traces {
    Traces::new(Telling::Exporter(Sampler::default()), None)
}

const S: SessionNumber = SessionNumber(3);

fn invocation(host: HostId, call: u64) -> InvocationId {
    InvocationId { host, session: S, call }
}

#[test]
fn where_nobody_exports_only_what_a_client_brings_is_remembered_and_reaches_its_job() {
    let (traces, host, job) = (Traces::default(), HostId::random(), JobId::random());
    traces.begin(S, CallNumber(1), None);
    assert_eq!(traces.of_job(host, Some(invocation(host, 1)), job, None), None);
    traces.begin(S, CallNumber(2), brought());
    let found = traces.of_job(host, Some(invocation(host, 2).part(3)), job, None).expect("a trace");
    assert_eq!(found.for_agent(job).map(|context| context.traceparent()).as_deref(), Some(PARENT));
    assert_eq!((found.state.as_deref(), found.told), (Some("a=1"), false));
    traces.tell(TraceFact::Job(job));
    assert!(traces.end(S, CallNumber(2)).is_none() && traces.is_empty(), "nobody is told");
    assert_eq!(traces.of_job(host, Some(invocation(host, 2)), job, None), None, "it is over");
}

#[test]
fn all_jobs_of_a_call_are_below_it_and_of_one_trace() {
    let (traces, host) = (told(), HostId::random());
    for (call, brought) in [(1, None), (2, brought())] {
        traces.begin(S, CallNumber(call), brought.clone());
        let of = |part: InvocationId| traces.of_job(host, Some(part), JobId::random(), None).expect("a trace");
        let (whole, part) = (of(invocation(host, call)), of(invocation(host, call).part(2)));
        assert_eq!((whole.trace, whole.parent), (part.trace, part.parent));
        let trace = traces.end(S, CallNumber(call)).expect("it is told");
        let place = traces.place(host, S, &trace);
        assert_eq!((Some(place.span), place.trace), (whole.parent, whole.trace));
        assert_eq!(place.parent, brought.as_ref().map(|context| context.span));
        assert!(place.sampled && whole.told);
    }
    assert!(traces.of_job(host, None, JobId::random(), None).is_some_and(|alone| alone.parent.is_none()));
}

#[test]
fn the_host_of_an_agent_that_is_in_a_trace_is_below_it() {
    let above = TraceContext::parse(PARENT);
    let traces = Traces::new(Telling::Exporter(Sampler::default()), above.clone());
    let host = HostId::random();
    traces.begin(S, CallNumber(1), None);
    let trace = traces.end(S, CallNumber(1)).expect("it is told");
    assert_eq!(traces.place(host, S, &trace).parent, above.as_ref().map(|above| above.span));
    let job = traces.of_job(host, None, JobId::random(), None).expect("a trace");
    assert_eq!(job.parent, above.map(|above| above.span));
}

#[test]
fn a_job_of_another_machine_is_below_what_it_brings_and_sampled_as_that_is() {
    for (traces, told) in [(told(), true), (Traces::default(), false)] {
        let (host, job) = (HostId::random(), JobId::random());
        for flags in ["00", "01"] {
            let above = TraceContext::parse(&format!("{}{flags}", &PARENT[..53])).expect("good").with_state("a=1");
            let found = traces.of_job(host, None, job, Some(above.clone())).expect("a trace");
            assert_eq!((found.above(), found.told), (Some(above), told));
        }
    }
}

#[test]
fn a_call_is_remembered_over_an_upgrade_with_its_attempts() {
    let (traces, host) = (told(), HostId::random());
    traces.begin(S, CallNumber(7), brought());
    traces.begin(SessionNumber(4), CallNumber(7), None);
    traces.attempt(S, CallNumber(7), Generation(1), UnixMillis(10));
    let before = traces.of_job(host, Some(invocation(host, 7)), JobId::random(), None);
    let text = serde_json::to_string(&traces.passed(S)).expect("JSON");
    let next = told();
    next.inherit(S, &serde_json::from_str::<Vec<CallTrace>>(&text).expect("it is read"), UnixMillis(20));
    next.attempt(S, CallNumber(7), Generation(2), UnixMillis(30));
    assert_eq!(next.of_job(host, Some(invocation(host, 7)), JobId::random(), None), before);
    let trace = next.end(S, CallNumber(7)).expect("it is told");
    let generations: Vec<u64> = trace.attempts.iter().map(|attempt| attempt.generation.0).collect();
    assert_eq!((generations, trace.upgrades), (vec![1, 2], vec![UnixMillis(20)]));
    assert!(next.end(SessionNumber(4), CallNumber(7)).is_none(), "another session's");
}

#[test]
fn a_full_intake_refuses_and_counts_and_what_was_in_hand_is_passed_on() {
    let traces = told();
    for _ in 0..FACTS + 3 {
        traces.tell(TraceFact::Job(JobId::random()));
    }
    assert_eq!(traces.lost(), 3);
    let taken = traces.take(100, |_| 1);
    let passed = traces.passed_facts();
    assert_eq!((passed.facts.len(), passed.lost), (PASSED, (FACTS + 3 - PASSED) as u64));
    assert_eq!(passed.facts[..100], taken[..]);
    traces.exported();
    let more = traces.take(10, |_| 1);
    assert!(!taken.contains(&more[0]));
    traces.give_up();
    assert_eq!(traces.lost(), 13);
    let _ = traces.take(5, |_| 1);
    let _ = traces.take(5, |_| 1);
    assert_eq!(traces.lost(), 18, "an incarnation ended with five in hand");
    traces.put_back();
    let again = traces.take(64, |_| 30);
    assert_eq!((again.len(), traces.lost()), (2, 18), "by weight");
    traces.put_back();
    assert_eq!(traces.take(1, |_| 30), again[..1], "one at least");
    let next = told();
    next.inherit_facts(&passed);
    assert_eq!((next.take(usize::MAX, |_| 1).len(), next.lost()), (PASSED, passed.lost));
}

#[test]
fn a_session_that_ends_leaves_nothing() {
    let traces = told();
    traces.begin(S, CallNumber(1), None);
    traces.begin(SessionNumber(4), CallNumber(1), None);
    traces.over(S);
    assert!(traces.end(S, CallNumber(1)).is_none());
    assert!(traces.end(SessionNumber(4), CallNumber(1)).is_some());
    for call in 0..CALLS as u64 + 2 {
        traces.begin(S, CallNumber(call), None);
    }
    assert_eq!(traces.lost(), 2, "what is remembered is bounded");
}
