use std::os::unix::ffi::OsStringExt;

use super::*;

fn parsed(text: &str) -> FaultPlan {
    FaultPlan::parse(text, 0).unwrap_or_else(|error| panic!("{text:?} is refused: {error}"))
}

fn refused(text: &str) -> PlanError {
    FaultPlan::parse(text, 0).map_or_else(|error| error, |plan| panic!("{text:?} is accepted as {plan}"))
}

#[test]
fn a_forced_rollout_is_counted_like_a_rule() {
    let plan = |rules: usize| {
        let text = vec!["stdio.read=error"; rules].join(";");
        FaultPlan::from_environment(|name| match name {
            FAULTS => Some(text.clone().into()),
            FORCE_ROLLOUT_KEY => Some("ping".into()),
            _ => None,
        })
    };
    assert!(plan(MAX_RULES - 1).is_ok());
    let error = plan(MAX_RULES).expect_err("one too many");
    assert_eq!(error.problems.len(), 1, "{error}");
    assert_eq!(error.problems[0].place.variable, Some(FORCE_ROLLOUT_KEY));
}

#[test]
fn what_a_plan_displays_parses_to_the_same_plan() {
    let cases = [
        ("", ""),
        (" ; ;", ""),
        ("worker.start=panic", "worker.start=panic"),
        ("worker.start#1=panic;", "worker.start=panic"),
        (
            " worker.before_execute @ ping # 3 = exit : 7 ;; store.commit = hang ",
            "worker.before_execute@ping#3=exit:7;store.commit=hang",
        ),
        ("worker.before_execute@tools/call:consult#*=kill", "worker.before_execute@tools/call:consult#*=kill"),
        ("stdio.write#p1e-3=torn", "stdio.write#p0.001=torn"),
        ("stdio.write#p1=torn", "stdio.write#p1=torn"),
        ("stdio.write#p0.0000001=torn", "stdio.write#p0.0000001=torn"),
        (
            "store.commit@finish#18446744073709551615=delay:600000",
            "store.commit@finish#18446744073709551615=delay:600000",
        ),
        ("runner.start=exit:1", "runner.start=exit"),
        ("runner.start=exit:0;runner.start=exit:255", "runner.start=exit:0;runner.start=exit:255"),
        ("unix.accept#2=drop", "unix.accept#2=drop"),
        ("worker.before_reply@tools/call:größe/x y=drop", "worker.before_reply@tools/call:größe/x y=drop"),
        (
            "worker.before_reply=garbage;worker.start=silence;worker.after_reply=stop_reading;ledger.record=abort;consult.attend=error",
            "worker.before_reply=garbage;worker.start=silence;worker.after_reply=stop_reading;ledger.record=abort;consult.attend=error",
        ),
    ];
    for (text, shown) in cases {
        let plan = parsed(text);
        assert_eq!(plan.to_string(), shown);
        assert_eq!(parsed(shown), plan);
    }
}

#[test]
fn a_rule_says_where_when_and_what() {
    let plan = parsed("worker.before_reply@tools/call:consult#3=delay:250");
    assert_eq!(
        plan.rules(),
        [FaultRule {
            point: FaultPoint::WorkerBeforeReply,
            operation: Some("tools/call:consult".into()),
            when: When::Nth(NonZeroU64::new(3).expect("not zero")),
            action: FaultAction::Delay(Duration::from_millis(250)),
        }]
    );
    let plan = parsed("stdio.read#p0.25=exit");
    assert_eq!(plan.rules()[0].when, When::Drawn(0.25));
    assert_eq!(plan.rules()[0].action, FaultAction::Exit(1));
    assert_eq!(parsed("unix.accept=drop;stdio.read=panic").unreached().count(), 0);
}

#[test]
fn every_problem_is_told_with_its_place_and_what_is_accepted() {
    let when = "accepted: #N with N from 1 to 18446744073709551615, #* for always, #pP with P above 0 and at most 1";
    let delay = "accepted: delay:MS with MS from 1 to 600000";
    let exit = "accepted: exit (1), or exit:CODE with CODE from 0 to 255";
    let operation = "accepted: text without `#`, `=`, `;` and `@`, such as tools/call:consult or ping";
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "worker.befor_execute=panic",
            "rule 1, column 1: \"worker.befor_execute\" is not a fault point (did you mean `worker.before_execute`?); \
             accepted: stdio.read, stdio.write, session.dispatch, ledger.record, worker.start,",
            &["worker.before_execute", "unix.accept"],
        ),
        ("xyzzy=panic", "rule 1, column 1: \"xyzzy\" is not a fault point; accepted: stdio.read,", &[]),
        ("=panic", "rule 1, column 1: \"\" is not a fault point; accepted: stdio.read,", &[]),
        ("Worker.Start=panic", "\"Worker.Start\" is not a fault point (did you mean `worker.start`?)", &[]),
        (
            "worker.start",
            "rule 1, column 1: \"worker.start\" has no action; accepted: point[@operation][#n]=action[:argument]",
            &[],
        ),
        (
            "stdio.read=panik",
            "rule 1, column 12: \"panik\" is not an action (did you mean `panic`?); \
             accepted: panic, error, exit, kill, abort, delay, hang",
            &[],
        ),
        ("stdio.read=", "rule 1, column 12: \"\" is not an action; accepted: panic,", &[]),
        ("stdio.read=panic=error", "column 12: \"panic=error\" is not an action", &[]),
        (
            "store.commit=hang;  stdio.read     =torn",
            "rule 2, column 37: \"torn\" cannot happen at stdio.read; accepted: panic, error, exit, kill, abort, delay, hang",
            &[],
        ),
        (
            "ledger.record=delay:5",
            "\"delay\" cannot happen at ledger.record; accepted: panic, error, exit, kill, abort",
            &[],
        ),
        ("stdio.read@=panic", "rule 1, column 12: \"\" is no operation; ", &[operation]),
        ("stdio.read@a@b=panic", "rule 1, column 12: \"a@b\" is no operation: it has a character", &[operation]),
        (
            "store.commit@acept=panic",
            "rule 1, column 14: \"acept\" is never met at store.commit (did you mean `accept`?); accepted: ",
            &["finish"],
        ),
        (
            "worker.before_execute@pign=panic",
            "\"pign\" is never met at worker.before_execute (did you mean `ping`?); accepted: ",
            &["tools/call:NAME"],
        ),
        ("stdio.read@ping=panic", "\"ping\" is never met at stdio.read; accepted: no operation here", &[]),
        ("stdio.read#0=panic", "rule 1, column 12: \"0\" does not say when; ", &[when]),
        ("stdio.read#=panic", "rule 1, column 12: \"\" does not say when; ", &[when]),
        ("stdio.read#-1=panic", "\"-1\" does not say when; ", &[when]),
        ("stdio.read#+1=panic", "\"+1\" does not say when; ", &[when]),
        ("stdio.read#1.5=panic", "\"1.5\" does not say when; ", &[when]),
        ("stdio.read#18446744073709551616=panic", "\"18446744073709551616\" does not say when; ", &[when]),
        ("stdio.read#**=panic", "\"**\" does not say when; ", &[when]),
        ("stdio.read#p=panic", "\"p\" does not say when; ", &[when]),
        ("stdio.read#p0=panic", "\"p0\" does not say when; ", &[when]),
        ("stdio.read#p1.01=panic", "\"p1.01\" does not say when; ", &[when]),
        ("stdio.read#p-1=panic", "\"p-1\" does not say when; ", &[when]),
        ("stdio.read#pNaN=panic", "\"pNaN\" does not say when; ", &[when]),
        ("stdio.read#pinf=panic", "\"pinf\" does not say when; ", &[when]),
        ("stdio.read#1#2=panic", "column 12: \"1#2\" does not say when; ", &[when]),
        ("stdio.read#2@ping=panic", "\"2@ping\" does not say when: the operation stands before the `#`; ", &[when]),
        ("stdio.read=delay", "rule 1, column 12: \"delay\" has no time; ", &[delay]),
        ("stdio.read=delay:", "\"delay:\" has no such time; ", &[delay]),
        ("stdio.read=delay:0", "\"delay:0\" has no such time; ", &[delay]),
        ("stdio.read=delay:600001", "\"delay:600001\" has no such time; ", &[delay]),
        ("stdio.read=delay:5s", "\"delay:5s\" has no such time; ", &[delay]),
        ("stdio.read=delay:+5", "\"delay:+5\" has no such time; ", &[delay]),
        ("stdio.read=exit:256", "\"exit:256\" has no such code; ", &[exit]),
        ("stdio.read=exit:", "\"exit:\" has no such code; ", &[exit]),
        ("stdio.read=exit:-1", "\"exit:-1\" has no such code; ", &[exit]),
        ("stdio.read=panic:now", "\"panic:now\" gives panic an argument it does not take; accepted: panic", &[]),
        ("worker.start=stop_reading:", "\"stop_reading:\" gives stop_reading an argument it does not take", &[]),
    ];
    for (text, start, parts) in cases {
        let error = refused(text);
        assert_eq!(error.problems.len(), 1, "{text}: {error}");
        let shown = error.to_string();
        for part in [start].into_iter().chain(*parts) {
            assert!(shown.contains(part), "{text}\n   {part}\nin {shown}");
        }
    }
}

#[test]
fn all_problems_of_a_plan_are_told_at_once_in_its_order() {
    let error = refused("nope@#0=torn:1; worker.start ;stdio.write=torn;stdio.read  =garbage:9");
    let told: Vec<(usize, usize, &str)> = error
        .problems
        .iter()
        .map(|problem| {
            let (rule, column) = problem.place.rule.expect("a rule");
            (rule, column, problem.text.as_str())
        })
        .collect();
    assert_eq!(
        told,
        [
            (1, 1, "nope"),
            (1, 6, ""),
            (1, 7, "0"),
            (1, 9, "torn:1"),
            (2, 17, "worker.start"),
            (4, 61, "garbage:9"),
            (4, 61, "garbage"),
        ]
    );
    let shown = error.to_string();
    assert!(shown.starts_with("7 problems with the fault plan: (1) rule 1, column 1: \"nope\""), "{shown}");
    assert!(
        shown.contains("; (7) rule 4, column 61: \"garbage\" cannot happen at stdio.read; accepted: panic"),
        "{shown}"
    );
}

#[test]
fn every_pair_of_point_and_action_parses_exactly_when_the_table_says_so() {
    for &point in FaultPoint::ALL {
        for &kind in ActionKind::ALL {
            let argument = if kind == ActionKind::Delay { ":10" } else { "" };
            let text = format!("{point}={kind}{argument}");
            if point.accepts(kind) {
                assert_eq!(parsed(&text).to_string(), text);
                continue;
            }
            let accepted: Vec<&str> = point.accepted().iter().map(|kind| kind.as_str()).collect();
            let expected = format!("\"{kind}\" cannot happen at {point}; accepted: {}", accepted.join(", "));
            let shown = refused(&text).to_string();
            assert!(shown.ends_with(&expected), "{shown}");
        }
    }
}

#[test]
fn a_plan_has_at_most_as_many_rules_as_are_counted() {
    let rules = |n: usize| vec!["stdio.read=panic"; n].join(";");
    assert_eq!(parsed(&rules(MAX_RULES)).rules().len(), MAX_RULES);
    let error = refused(&rules(MAX_RULES + 3));
    assert_eq!(error.problems.len(), 1, "{error}");
    let shown = error.to_string();
    assert!(
        shown.contains("rule 65, column 1089: \"stdio.read=panic\" is a rule too many; accepted: at most 64"),
        "{shown}"
    );
}

/// Texts of the grammar's own pieces: most are wrong, and many nearly right.
#[test]
fn any_text_is_either_a_plan_that_displays_itself_or_refused_where_it_is_wrong() {
    const SEED: u64 = 0x00fa_0175;
    println!("seed {SEED:#x}");
    let mut random = fastrand::Rng::with_seed(SEED);
    let pieces = [
        ";",
        "=",
        "#",
        "@",
        ":",
        "*",
        "p",
        "0.5",
        "1",
        "7",
        " ",
        "\t",
        "ß",
        "ping",
        "tools/call:consult",
        "panic",
        "exit",
        "delay",
        "torn",
        "garbage",
        "stdio.read",
        "stdio.write",
        "worker.before_reply",
        "worker.start",
        "store.commit",
        "worker.start=panic",
        "stdio.write=torn",
        "stdio.read#3=exit:2",
    ];
    let mut plans = 0;
    for _ in 0..5_000 {
        let length = random.usize(0..9);
        let text: String = (0..length).map(|_| pieces[random.usize(..pieces.len())]).collect();
        match FaultPlan::parse(&text, SEED) {
            Ok(plan) => {
                plans += usize::from(!plan.is_empty());
                assert_eq!(FaultPlan::parse(&plan.to_string(), SEED), Ok(plan), "{text:?}");
            }
            Err(error) => {
                assert!(!error.problems.is_empty());
                for problem in error.problems {
                    let (_, column) = problem.place.rule.expect("a rule");
                    let there = text.get(column - 1..).unwrap_or_else(|| panic!("column {column} of {text:?}"));
                    assert!(there.starts_with(&problem.text), "{text:?}: {problem}");
                }
            }
        }
    }
    assert!(plans > 50, "only {plans} of the texts were plans");
}

/// Hits that fire, of `hits`.
fn fires(plan: &FaultPlan, rule: usize, hits: u64) -> Vec<u64> {
    (1..=hits).filter(|&hit| plan.is_due(rule, hit)).collect()
}

#[test]
fn draws_depend_on_seed_rule_and_count_alone() {
    const HITS: u64 = 10_000;
    let text = "stdio.read#p0.01=panic;stdio.read#p0.01=error;stdio.read#p0.5=hang;stdio.read#p1=kill";
    let plan = parsed_with(text, 42);
    let first = fires(&plan, 0, HITS);
    assert_eq!(first, fires(&parsed_with(text, 42), 0, HITS), "the same seed, the same decisions");
    let mut backwards = Vec::new();
    for hit in (1..=HITS).rev() {
        let _ = plan.is_due(2, hit / 2 + 1);
        backwards.extend(plan.is_due(0, hit).then_some(hit));
    }
    backwards.reverse();
    assert_eq!(backwards, first, "the same whatever is asked in between, in whatever order");
    assert_ne!(first, fires(&plan, 1, HITS), "another rule draws for itself");
    assert_ne!(first, fires(&parsed_with(text, 43), 0, HITS), "another seed, other decisions");
    // A fixed seed, so these are facts, not chances; the ranges are five standard deviations wide.
    println!("p0.01 fired {} times, p0.5 {} times", first.len(), fires(&plan, 2, HITS).len());
    assert!((50..=150).contains(&first.len()), "{}", first.len());
    assert!((4_750..=5_250).contains(&fires(&plan, 2, HITS).len()));
    assert_eq!(fires(&plan, 3, HITS).len(), 10_000);
}

fn parsed_with(text: &str, seed: u64) -> FaultPlan {
    FaultPlan::parse(text, seed).expect("a plan")
}

/// A seed in a report of last year replays today, in every build.
#[test]
fn draws_and_fingerprints_never_change() {
    let plan = parsed_with("stdio.read#p0.01=panic;worker.before_reply@tools/call:x=torn", 0);
    assert_eq!(fires(&plan, 0, 1_000), FIRST_FIRES);
    assert_eq!(plan.fingerprint(), FINGERPRINT);
    // The generator's published first outputs for the state 1234567.
    let states = (0..3_u64).map(|n| 1_234_567_u64.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let outputs: Vec<u64> = states.map(mixed).collect();
    assert_eq!(outputs, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
}

const FIRST_FIRES: [u64; 10] = [4, 18, 193, 248, 272, 645, 677, 871, 916, 998];
const FINGERPRINT: u64 = 9_792_243_909_896_549_730;

#[test]
fn the_fingerprint_tells_plans_apart() {
    let plans = [
        parsed_with("stdio.read=panic", 0),
        parsed_with("stdio.read=panic", 1),
        parsed_with("stdio.read#2=panic", 0),
        parsed_with("stdio.read=error", 0),
        parsed_with("stdio.read=panic;stdio.read=panic", 0),
    ];
    for (n, plan) in plans.iter().enumerate() {
        let same = plans.iter().filter(|other| other.fingerprint() == plan.fingerprint()).count();
        assert_eq!(same, 1, "plan {n}");
    }
    assert_eq!(parsed("stdio.read#1=panic").fingerprint(), parsed(" stdio.read = panic;").fingerprint());
}

fn environment(variables: &[(&'static str, &str)]) -> Result<Option<FaultPlan>, PlanError> {
    FaultPlan::from_environment(|name| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
    })
}

#[test]
fn the_environment_gives_a_plan_a_seed_and_the_compatible_keys() {
    assert_eq!(environment(&[]), Ok(None));
    assert_eq!(environment(&[(FAULTS, ""), (CRASH_ONCE_KEY, " "), (FORCE_ROLLOUT_KEY, "")]), Ok(None));
    assert_eq!(environment(&[(FAULT_SEED, "7")]), Ok(None), "a seed alone asks for nothing");

    let plan = environment(&[(FAULTS, "stdio.read#p0.5=panic"), (FAULT_SEED, " 7 ")]).expect("good").expect("a plan");
    assert_eq!(plan, parsed_with("stdio.read#p0.5=panic", 7));

    let plan = environment(&[(CRASH_ONCE_KEY, "tools/call:consult")]).expect("good").expect("a plan");
    assert_eq!(plan, parsed("worker.before_execute@tools/call:consult=panic"));

    let plan = environment(&[(FAULTS, "stdio.read=error"), (CRASH_ONCE_KEY, "ping")]).expect("good").expect("a plan");
    assert_eq!(plan.to_string(), "stdio.read=error;worker.before_execute@ping=panic");

    let plan = environment(&[(FORCE_ROLLOUT_KEY, "ping")]).expect("good").expect("a plan");
    assert_eq!((plan.rules().len(), plan.force_rollout(), plan.is_empty()), (0, Some("ping"), false));
}

#[test]
fn a_child_that_inherits_the_variables_of_its_parents_plan_has_the_same_plan() {
    let own = [
        (FAULTS, "stdio.read#p0.5=panic"),
        (FAULT_SEED, "9"),
        (CRASH_ONCE_KEY, "ping"),
        (FORCE_ROLLOUT_KEY, "tools/list"),
    ];
    let plan = environment(&own).expect("good").expect("a plan");
    let told = plan.variables();
    let told: Vec<(&'static str, &str)> = told.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(environment(&told), Ok(Some(plan.clone())));
    let inherited: Vec<_> = told.iter().copied().chain([(CRASH_ONCE_KEY, "ping")]).collect();
    assert_eq!(environment(&inherited), Ok(Some(plan)), "the key is in the text already");
}

#[test]
fn problems_of_all_variables_are_told_at_once_by_name() {
    let error = environment(&[
        (FAULTS, "stdio.read=panic;stdio.raed=panic"),
        (FAULT_SEED, "-1"),
        (CRASH_ONCE_KEY, "a;b"),
        (FORCE_ROLLOUT_KEY, "a=b"),
    ])
    .expect_err("all of them are wrong");
    let shown = error.to_string();
    for part in [
        "4 problems",
        "(1) PHONE_OPUS_FAULTS, rule 2, column 18: \"stdio.raed\" is not a fault point (did you mean `stdio.read`?)",
        "(2) PHONE_OPUS_FAULT_SEED: \"-1\" is no seed; accepted: a whole number from 0 to 18446744073709551615",
        "(3) PHONE_OPUS_MCP_TEST_WORKER_CRASH_ONCE_KEY: \"a;b\" is no operation",
        "(4) PHONE_OPUS_MCP_TEST_FORCE_ROLLOUT_KEY: \"a=b\" is no operation",
    ] {
        assert!(shown.contains(part), "{part}\nin {shown}");
    }
    let full = vec!["stdio.read=panic"; MAX_RULES].join(";");
    let error = environment(&[(FAULTS, &full), (CRASH_ONCE_KEY, "ping")]).expect_err("one too many");
    assert!(error.to_string().starts_with("PHONE_OPUS_MCP_TEST_WORKER_CRASH_ONCE_KEY: "), "{error}");
    let raw = |name: &str| (name == FAULTS).then(|| OsString::from_vec(vec![b'a', 0xff]));
    let shown = FaultPlan::from_environment(raw).expect_err("no text").to_string();
    assert!(shown.starts_with("PHONE_OPUS_FAULTS: ") && shown.contains("is not UTF-8"), "{shown}");
}

#[test]
fn a_program_that_knows_its_tools_refuses_calls_of_others_and_says_which_it_has() {
    let read = |name: &'static str, value: &'static str| {
        let lookup = move |asked: &str| (asked == name).then(|| OsString::from(value));
        FaultPlan::from_environment_with(lookup, Tools::These(&["consult", "consult_job"]))
    };
    for (name, value) in [
        (FAULTS, "worker.before_reply@tools/call:consul=panic"),
        (CRASH_ONCE_KEY, "tools/call:consul"),
        (FORCE_ROLLOUT_KEY, "tools/call:consul"),
    ] {
        let shown = read(name, value).expect_err("there is no such tool").to_string();
        for part in
            [name, "\"tools/call:consul\" is never met", "did you mean `tools/call:consult`?", "tools/call:consult_job"]
        {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }
    assert!(read(FAULTS, "worker.before_reply@tools/call:consult=panic").is_ok());
}
