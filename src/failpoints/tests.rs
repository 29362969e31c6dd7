use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::poll_immediate;

use super::*;

const POINT: FaultPoint = FaultPoint::WorkerBeforeReply;

fn armed(text: &str) -> Faults {
    let plan = FaultPlan::parse(text, 0).unwrap_or_else(|error| panic!("{error}"));
    Faults::arm(plan, Ends::Process, FaultCounters::Memory).unwrap_or_else(|error| panic!("{error}"))
}

fn draw(faults: &Faults, hits: usize) -> Vec<Option<FaultAction>> {
    (0..hits).map(|_| faults.drawn(POINT, Operation::Tool("consult"))).collect()
}

#[test]
fn nothing_fires_without_a_plan() {
    let empty = FaultPlan::parse(" ; ", 7).expect("a plan of nothing");
    let empty = Faults::arm(empty, Ends::Nothing, FaultCounters::Memory).expect("armed");
    for faults in [Faults::none(), Faults::default(), empty] {
        assert!(!faults.is_armed());
        for &point in FaultPoint::ALL {
            assert_eq!(faults.drawn(point, Operation::None), None);
            assert_eq!(faults.meet(point, Operation::Method("ping")).now_or_never(), Some(None));
            assert_eq!(faults.meet_blocking(point, Operation::Tool("consult")), None);
        }
        assert!(!faults.crash_key_matches(Operation::Method("ping")));
        assert!(faults.fired().is_empty() && faults.variables().is_empty() && faults.plan().is_none());
    }
}

#[test]
fn a_rule_fires_at_its_time_and_no_other() {
    let (no, yes) = (None, Some(FaultAction::Drop));
    let cases = [
        ("worker.before_reply=drop", [yes, no, no, no]),
        ("worker.before_reply#3=drop", [no, no, yes, no]),
        ("worker.before_reply#*=drop", [yes, yes, yes, yes]),
        ("worker.before_reply#p1=drop", [yes, yes, yes, yes]),
        ("worker.before_reply@tools/call:consult#2=drop", [no, yes, no, no]),
        ("worker.before_reply@tools/call:other#*=drop", [no, no, no, no]),
        ("worker.before_execute#*=drop", [no, no, no, no]),
    ];
    for (plan, expected) in cases {
        assert_eq!(draw(&armed(plan), 4), expected, "{plan}");
    }
}

#[test]
fn a_rule_counts_only_its_own_point_and_operation() {
    let faults = armed("worker.before_reply@tools/call:ping#2=drop");
    for _ in 0..5 {
        assert_eq!(faults.drawn(POINT, Operation::Tool("initialize")), None);
        assert_eq!(faults.drawn(POINT, Operation::None), None);
        assert_eq!(faults.drawn(FaultPoint::StdioRead, Operation::Tool("ping")), None);
    }
    assert_eq!(faults.drawn(POINT, Operation::Tool("ping")), None);
    assert_eq!(faults.drawn(POINT, Operation::Tool("ping")), Some(FaultAction::Drop));
}

#[test]
fn a_rule_nobody_has_met_is_named_and_one_that_was_met_is_not() {
    let faults = Faults::armed("worker.before_reply#2=drop;stdio.read=error;store.commit@accept=hang").expect("armed");
    assert_eq!(faults.never_met(), ["worker.before_reply#2=drop", "stdio.read=error", "store.commit@accept=hang"]);
    let _ = faults.drawn(POINT, Operation::Tool("x"));
    let _ = faults.drawn(FaultPoint::StoreCommit, Operation::Method("finish"));
    assert_eq!(faults.never_met(), ["stdio.read=error", "store.commit@accept=hang"], "met once is met");
    assert_eq!(Faults::none().never_met(), [""; 0]);
}

#[test]
fn a_plan_is_armed_from_its_text_and_refused_in_its_words() {
    assert!(Faults::armed("").expect("nothing").plan().is_none());
    let refused = |plan: &str| Faults::armed(plan).expect_err("refused").to_string();
    assert!(
        refused("store.commit@acept=panic").contains("did you mean `accept`?"),
        "{}",
        refused("store.commit@acept=panic")
    );
    assert!(refused("worker.start=kill").contains("would end the embedding process"));
    let plan: FaultPlan = "stdio.read=error".parse().expect("a plan");
    assert_eq!(plan, FaultPlan::parse("stdio.read=error", 0).expect("the same"));
}

#[test]
fn one_rule_fires_per_hit_and_each_counts_it() {
    let faults = armed("worker.before_reply#2=drop;worker.before_reply#*=error;worker.before_reply#3=torn");
    let (drop, error) = (Some(FaultAction::Drop), Some(FaultAction::Error));
    // The third rule was due at the third hit, which the second one took.
    assert_eq!(draw(&faults, 5), [error, drop, error, error, error]);
    let fired: Vec<(String, u64)> = faults.fired().into_iter().map(|fired| (fired.rule, fired.count)).collect();
    assert_eq!(fired, [("worker.before_reply#2=drop".to_owned(), 1), ("worker.before_reply#*=error".to_owned(), 4)]);
}

#[test]
fn draws_are_the_plans_own_whatever_else_is_met() {
    const HITS: usize = 10_000;
    let alone = draw(&armed("worker.before_reply#p0.01=drop"), HITS);
    let busy = armed("worker.before_reply#p0.01=drop;worker.start#*=error");
    let beside: Vec<_> = (0..HITS)
        .map(|n| {
            if n % 3 == 0 {
                let _ = busy.drawn(FaultPoint::WorkerStart, Operation::None);
            }
            busy.drawn(POINT, Operation::Tool("consult"))
        })
        .collect();
    assert_eq!(alone, beside);
    let fired = alone.iter().flatten().count();
    println!("seed 0: {fired} of {HITS}");
    assert!((50..=150).contains(&fired), "{fired}");
}

#[test]
fn clones_count_together_and_two_plans_do_not() {
    let (one, other) = (armed("worker.before_reply#2=drop"), armed("worker.before_reply#2=drop"));
    assert_eq!(draw(&one.clone(), 1), [None]);
    assert_eq!(draw(&other, 1), [None]);
    assert_eq!(draw(&one, 1), [Some(FaultAction::Drop)]);
    assert_eq!((one.fired().len(), other.fired().len()), (1, 0));
}

#[test]
fn an_embedding_program_is_never_ended() {
    let text = "stdio.read=exit;store.commit#*=kill;worker.start=abort;worker.start=panic;runner.start#*=kill";
    let plan = FaultPlan::parse(text, 0).expect("a plan");
    let error = Faults::arm(plan.clone(), Ends::Nothing, FaultCounters::Memory).expect_err("it would end the program");
    let rules = ["stdio.read=exit", "store.commit#*=kill", "worker.start=abort"];
    assert_eq!(error, ArmError::EndsProcess { rules: rules.map(str::to_owned).to_vec() });
    let shown = error.to_string();
    assert!(rules.iter().all(|rule| shown.contains(rule)) && !shown.contains("runner.start"), "{shown}");
    Faults::arm(plan, Ends::Process, FaultCounters::Memory).expect("a process of our own may end");

    for &point in FaultPoint::ALL {
        for action in ["exit", "kill", "abort"] {
            let plan = FaultPlan::parse(&format!("{point}={action}"), 0).expect("a plan");
            let accepted = Faults::arm(plan, Ends::Nothing, FaultCounters::Memory).is_ok();
            assert_eq!(accepted, point.as_str().starts_with("runner."), "{point}={action}");
        }
    }
    // Runners are processes of their own; met here nevertheless, it is an error and not our end.
    let plan = FaultPlan::parse("runner.start#*=kill", 0).expect("a plan");
    let faults = Faults::arm(plan, Ends::Nothing, FaultCounters::Memory).expect("armed");
    let met = faults.meet_blocking(FaultPoint::RunnerStart, Operation::None);
    assert!(matches!(met, Some(Broken::Error(_))), "{met:?}");
}

#[test]
fn an_error_names_its_point_and_operation() {
    let faults = armed("store.commit#*=error");
    let Some(Broken::Error(fault)) = faults.meet_blocking(FaultPoint::StoreCommit, Operation::Method("accept")) else {
        panic!("an error");
    };
    assert_eq!(fault.code, FaultCode::Injected);
    assert_eq!(fault.stage, crate::base::fault::Stage::Store);
    assert_eq!(fault.operation.as_deref(), Some("accept"));
    assert_eq!(fault.detail, "the fault point store.commit was met in accept.");
    let Some(Broken::Error(fault)) = faults.meet_blocking(FaultPoint::StoreCommit, Operation::None) else {
        panic!("an error");
    };
    assert_eq!((fault.operation, fault.detail.as_str()), (None, "the fault point store.commit was met."));
}

#[test]
fn what_the_site_has_to_do_is_given_back() {
    let cases = [
        ("drop", Broken::Drop),
        ("torn", Broken::Torn),
        ("garbage", Broken::Garbage),
        ("silence", Broken::Silence),
        ("stop_reading", Broken::StopReading),
    ];
    for (action, broken) in cases {
        let faults = armed(&format!("worker.before_reply#*={action}"));
        assert_eq!(faults.meet(POINT, Operation::None).now_or_never(), Some(Some(broken.clone())));
        assert_eq!(faults.meet_blocking(POINT, Operation::None), Some(broken));
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic.downcast_ref::<String>().map_or("no text", String::as_str)
}

#[test]
fn a_panic_names_its_point_and_the_rule_is_spent_by_it() {
    let faults = armed("worker.before_execute=panic;worker.before_reply=panic");
    let met = catch_unwind(AssertUnwindSafe(|| {
        faults.meet(FaultPoint::WorkerBeforeExecute, Operation::Tool("consult")).now_or_never()
    }));
    assert_eq!(panic_text(&*met.expect_err("it panics")), "fault point worker.before_execute");
    let met = catch_unwind(AssertUnwindSafe(|| faults.meet_blocking(POINT, Operation::None)));
    assert_eq!(panic_text(&*met.expect_err("it panics")), "fault point worker.before_reply");
    assert_eq!(faults.fired().len(), 2);
    assert_eq!(faults.meet_blocking(FaultPoint::WorkerBeforeExecute, Operation::Tool("consult")), None);
    assert_eq!(faults.meet_blocking(POINT, Operation::None), None);
}

#[tokio::test(start_paused = true)]
async fn a_delay_takes_its_time_and_a_hang_never_ends() {
    let faults = armed("session.dispatch=delay:600000;session.dispatch#2=hang");
    let meet = || faults.meet(FaultPoint::SessionDispatch, Operation::None);
    let began = tokio::time::Instant::now();
    assert_eq!(meet().await, None);
    assert_eq!(began.elapsed(), Duration::from_secs(600));
    let year = Duration::from_secs(365 * 86_400);
    tokio::time::timeout(year, meet()).await.expect_err("it hangs");
    assert_eq!(meet().await, None, "both are spent");
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_dropped_is_over_and_stays_counted() {
    let faults = armed("session.dispatch=delay:5");
    assert_eq!(poll_immediate(faults.meet(FaultPoint::SessionDispatch, Operation::None)).await, None);
    assert_eq!(faults.fired()[0].count, 1);
    assert_eq!(faults.meet(FaultPoint::SessionDispatch, Operation::None).now_or_never(), Some(None));
}

#[test]
fn a_site_pays_little_for_a_point_it_may_never_meet() {
    fn sendable<T: Send>(value: &T) -> usize {
        size_of_val(value)
    }
    let faults = Faults::none();
    let bytes = sendable(&faults.meet(POINT, Operation::Tool("consult")));
    assert_eq!(bytes, 2 * size_of::<usize>());
    assert_eq!(size_of::<Faults>(), size_of::<usize>());
}

#[test]
fn a_thread_that_meets_a_delay_sleeps_and_one_that_meets_a_hang_never_returns() {
    let faults = armed("store.commit@accept=delay:30;store.commit@finish=hang");
    let began = std::time::Instant::now();
    assert_eq!(faults.meet_blocking(FaultPoint::StoreCommit, Operation::Method("accept")), None);
    assert!(began.elapsed() >= Duration::from_millis(30));
    let hung = faults.clone();
    let thread = std::thread::spawn(move || hung.meet_blocking(FaultPoint::StoreCommit, Operation::Method("finish")));
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while faults.fired().len() < 2 {
        assert!(std::time::Instant::now() < until, "never met: {:?}", faults.fired());
        std::thread::yield_now();
    }
    for _ in 0..1_000 {
        thread.thread().unpark();
        std::thread::yield_now();
    }
    assert!(!thread.is_finished());
}

#[test]
fn a_crash_key_takes_the_worker_once_also_for_what_no_worker_executes() {
    let faults = armed("worker.before_execute@ping=panic;worker.before_execute@tools/call:health_snapshot#2=kill");
    assert!(!faults.crash_key_matches(Operation::Method("initialize")));
    assert!(!faults.crash_key_matches(Operation::None));
    assert!(faults.crash_key_matches(Operation::Method("ping")));
    assert!(!faults.crash_key_matches(Operation::Method("ping")), "it is spent");
    let health = Operation::Tool("health_snapshot");
    assert_eq!([(); 3].map(|()| faults.crash_key_matches(health)), [false, true, false]);
    assert_eq!(faults.drawn(FaultPoint::WorkerBeforeExecute, Operation::Method("ping")), None, "one count for both");
    let fired: Vec<u64> = faults.fired().iter().map(|fired| fired.count).collect();
    assert_eq!(fired, [1, 1]);
}

#[test]
fn only_a_rule_that_names_the_operation_and_ends_a_worker_takes_one_away() {
    for plan in [
        "worker.before_execute#*=panic",
        "worker.before_execute@ping#*=error",
        "worker.before_reply@tools/call:ping#*=panic",
    ] {
        let faults = armed(plan);
        assert!(!faults.crash_key_matches(Operation::Method("ping")), "{plan}");
        assert!(faults.fired().is_empty());
    }
}

#[test]
fn a_process_armed_by_the_variables_follows_the_same_plan_and_counts() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let plan = FaultPlan::parse("worker.before_reply#3=drop;stdio.read#p0.5=error", 11).expect("a plan");
    let counters = FaultCounters::new_file_in(dir.path()).expect("made");
    let host = Faults::arm(plan.clone(), Ends::Process, counters).expect("armed");
    let variables = host.variables();
    let lookup = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
    let told = FaultPlan::from_environment(lookup).expect("good").expect("a plan");
    assert_eq!(told, plan);
    let child =
        Faults::arm(told, Ends::Process, FaultCounters::from_environment(lookup).expect("a path")).expect("armed");
    assert_eq!(child.counters_file(), host.counters_file());
    assert_eq!((draw(&child, 1), draw(&host, 1)), (vec![None], vec![None]));
    assert_eq!(draw(&child, 1), [Some(FaultAction::Drop)]);
    assert_eq!(host.fired(), child.fired());
    assert_eq!(host.fired(), [Fired { rule: "worker.before_reply#3=drop".into(), count: 1 }]);
    assert!(armed("stdio.read=error").variables().iter().all(|(name, _)| *name != FAULT_COUNTERS));
}

const CHILD: &str = "PHONE_OPUS_TEST_FAULTS_CHILD";

/// The other process of the test below: meets the point once and says that it lives.
#[test]
fn child_that_meets_a_point() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let plan = FaultPlan::from_environment(|name| std::env::var_os(name)).expect("good").expect("a plan");
    let counters = FaultCounters::from_environment(|name| std::env::var_os(name)).expect("a path");
    let faults = Faults::arm(plan, Ends::Process, counters).expect("armed");
    let _ = faults.meet_blocking(POINT, Operation::Tool("consult"));
    println!("\nalive");
}

fn generation(faults: &Faults, dir: &Path) -> (ExitStatus, bool) {
    let output = Command::new(std::env::current_exe().expect("our own path"))
        .args(["--exact", "failpoints::tests::child_that_meets_a_point", "--nocapture", "--test-threads=1"])
        .envs(faults.variables())
        .env(CHILD, "1")
        // Where an abort may leave its core.
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .expect("the test binary runs and is reaped");
    (output.status, String::from_utf8_lossy(&output.stdout).contains("\nalive\n"))
}

#[test]
fn a_rule_that_ended_a_process_is_spent_for_the_next_generation() {
    let cases = [
        ("exit:7", Some(7), None),
        ("exit", Some(1), None),
        ("kill", None, Some(Signal::KILL)),
        ("abort", None, Some(Signal::ABORT)),
    ];
    for (action, code, signal) in cases {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let rule = format!("worker.before_reply@tools/call:consult#2={action}");
        let plan = FaultPlan::parse(&rule, 0).expect("a plan");
        let counters = FaultCounters::new_file_in(dir.path()).expect("made");
        let host = Faults::arm(plan, Ends::Process, counters).expect("armed");

        let (status, alive) = generation(&host, dir.path());
        assert!(status.success() && alive, "{action}: the first time is not yet: {status}");
        let (status, alive) = generation(&host, dir.path());
        assert_eq!((status.code(), status.signal()), (code, signal.map(Signal::as_raw)), "{action}");
        assert!(!alive, "{action}");
        assert_eq!(host.fired(), [Fired { rule, count: 1 }], "the host sees what a child did");
        let (status, alive) = generation(&host, dir.path());
        assert!(status.success() && alive, "{action}: it is spent: {status}");
    }
}
