//! Whose directory, environment and configuration a consult gets, when one host serves callers with different ones.
//!
//! Laws: L3, L13, L17.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use phone_opus::internals::actors::callers::{CallerContext, HostSide, context_of};
use phone_opus::internals::agents::{AgentRegistry, Environment};
use phone_opus::internals::base::ids::ChainId;
use phone_opus::internals::config::{Config, Settings};
use phone_opus::internals::daemon::control::Opening;
use phone_opus::internals::jobs::{JobRecord, JobState};
use phone_opus::internals::system::{Grace, System, SystemBuilder};
use phone_opus::internals::worker::{Isolation, WorkerCommand};
use phone_opus::testkit::{Rig, Role, TestClient, tried_program, until};
use serde_json::{Value, json};

/// A world whose host has variables of its own, each with `of-host` in it.
fn new_rig() -> Rig {
    let rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")));
    ["LC_ALL", "HTTPS_PROXY", "XDG_CONFIG_HOME", "ANTHROPIC_MODEL"]
        .into_iter()
        .fold(rig, |rig, name| rig.with(name, if name.starts_with("XDG") { "/of-host" } else { "of-host" }))
}

fn config(rig: &Rig) -> Config {
    Config { wait: Some(Duration::from_secs(300)), workspaces: vec![rig.path("shared")], ..Config::default() }
}

fn builder(rig: &Rig) -> SystemBuilder {
    rig.system().config(config(rig))
}

fn host(rig: &Rig) -> HostSide {
    let agents = AgentRegistry::standard(None, rig.program().to_owned());
    HostSide::new(Arc::new(config(rig)), rig.environment(), agents)
}

/// What a client says that opens a session in `dir` with these variables.
fn opening(rig: &Rig, dir: &Path, variables: &[(&str, &str)]) -> Opening {
    let own: Environment = variables.iter().copied().collect();
    Opening {
        protocol: 1,
        build: None,
        session: "key".to_owned(),
        cwd: dir.to_owned(),
        environment: own.with("HOME", rig.path("home")),
        key_withheld: false,
        nesting: (None, 0),
        catalog: None,
        settings: Settings { claude_bin: Some(rig.player()), ..Settings::default() },
        host_settings: BTreeMap::new(),
    }
}

fn context(rig: &Rig, opening: &Opening) -> CallerContext {
    context_of(opening, &host(rig)).expect("it can be had")
}

/// A directory of the world for one caller.
fn place(rig: &Rig, name: &str) -> PathBuf {
    let dir = rig.path(name);
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::canonicalize(dir).expect("a path")
}

/// A caller in a directory of its name, each of whose variables has the name in it.
fn caller(rig: &Rig, name: &str) -> CallerContext {
    let dir = place(rig, name);
    let value = |prefix: &str| format!("{prefix}{name}");
    let variables = [
        ("PATH", value("/usr/bin:/bin:/")),
        ("CLAUDE_CONFIG_DIR", value("/")),
        ("HTTPS_PROXY", value("http://user:pass@")),
        ("LANG", value("")),
        ("SECRET_OF_MINE", value("")),
    ];
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    context(rig, &opening(rig, &dir, &variables))
}

/// The environment of the agent that ran in this directory.
fn environment_in(rig: &Rig, dir: &Path) -> Value {
    let runs = rig.runs();
    let mut there = runs.iter().filter(|run| run.start["cwd"].as_str().map(Path::new) == Some(dir));
    let run = there.next().expect("a run in this directory");
    assert!(there.next().is_none(), "two runs in {}", dir.display());
    run.start["env"].clone()
}

/// Expects that an agent ran in the directory of this caller with its environment, and with nothing of these others'.
#[track_caller]
fn expect_own(rig: &Rig, name: &str, others: &[&str]) {
    let env = environment_in(rig, &place(rig, name));
    let has = |variable: &str| env[variable].as_str().is_some_and(|value| value.contains(name));
    for variable in ["PATH", "CLAUDE_CONFIG_DIR", "HTTPS_PROXY", "LANG"] {
        assert!(has(variable), "{variable} of {name}: {env:#}");
    }
    let text = env.to_string();
    assert!(env["SECRET_OF_MINE"].is_null() && env["LC_ALL"].is_null(), "{env:#}");
    for other in others.iter().chain(&["of-host"]) {
        assert!(!text.contains(other), "something of {other} in that of {name}: {env:#}");
    }
}

/// Expects this text in no file of the state directory.
#[track_caller]
fn expect_nowhere_stored(rig: &Rig, text: &str) {
    let mut dirs = vec![rig.path("state")];
    let mut files = 0;
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("a directory").flatten() {
            let path = entry.path();
            match entry.file_type().expect("a kind") {
                kind if kind.is_dir() => dirs.push(path),
                kind if kind.is_file() => {
                    files += 1;
                    // The lock of a host that is gone is removed by whoever looks for it.
                    let Ok(found) = std::fs::read(&path) else { continue };
                    let found = found.windows(text.len()).any(|part| part == text.as_bytes());
                    assert!(!found, "{text} in {}", path.display());
                }
                _ => {}
            }
        }
    }
    assert!(files > 2, "a state directory with {files} files");
}

async fn record(rig: &Rig, job: &str) -> JobRecord {
    rig.jobs().await.into_iter().find(|one| one.id.to_string() == job).expect("an accepted job")
}

async fn becomes(rig: &Rig, job: &str, state: JobState) {
    until(&format!("{job} is {}", state.as_str()), async || (record(rig, job).await.state == state).then_some(()))
        .await;
}

fn worker(rig: &Rig) -> Isolation {
    Isolation::Process(WorkerCommand {
        program: rig.program().to_owned(),
        args: vec!["mcp".into(), "worker".into()],
        env: Some(rig.environment()),
    })
}

#[tokio::test]
async fn two_callers_of_one_host_at_once_get_each_its_own_environment_and_directory_and_nothing_else() {
    for isolated in [false, true] {
        let rig = new_rig();
        let isolation = if isolated { worker(&rig) } else { Isolation::InProcess };
        let system = builder(&rig).isolation(isolation).start().await.expect("a system");
        let mut one = TestClient::of(&system).from(caller(&rig, "of-one")).greet().await;
        let mut two = TestClient::of(&system).from(caller(&rig, "of-two")).greet().await;
        let mut own = TestClient::of(&system).greet().await;
        let first = one.start("consult", json!({"prompt": rig.waiting("one", "go")})).await;
        let second = two.start("consult", json!({"prompt": rig.waiting("two", "go")})).await;
        let third = own.start("consult", json!({"prompt": rig.waiting("own", "go")})).await;
        for sign in ["one", "two", "own"] {
            rig.wait_for_sign(sign).await;
        }
        rig.give_sign("go");
        let (first, second) = (one.reply(first).await.expect_success(), two.reply(second).await.expect_success());
        let third = own.reply(third).await.expect_success();
        assert_eq!(first["cwd"], json!(place(&rig, "of-one")));
        assert_eq!((&first["environment"], &second["environment"]), (&json!("caller"), &json!("caller")));
        assert!(first.text().contains("environment caller"), "{}", first.text());
        assert!(!third.has("environment") && !third.text().contains("environment"), "{:#}", third.0);
        expect_own(&rig, "of-one", &["of-two"]);
        expect_own(&rig, "of-two", &["of-one"]);
        let hosts = environment_in(&rig, &std::fs::canonicalize(rig.work()).expect("a path"));
        assert_eq!((&hosts["LC_ALL"], &hosts["CLAUDE_CONFIG_DIR"]), (&json!("of-host"), &Value::Null), "{hosts:#}");
        // Part of each caller's HTTPS_PROXY; the directories have the callers' names.
        expect_nowhere_stored(&rig, "user:pass");
        let digests: Vec<_> = rig.jobs().await.into_iter().filter_map(|job| job.environment).collect();
        let different: BTreeSet<_> = digests.iter().collect();
        assert_eq!((digests.len(), different.len()), (3, 3), "{digests:?}");
        let health = two.call("health_snapshot", json!({"detail": "full"})).await;
        assert_eq!(health["environment"], "caller");
        assert_eq!(health["sessions"], json!({"own": 1, "caller": 2, "base": 0}), "{:#}", health.0);
        assert_eq!(own.health().await["environment"], "own");
        rig.stop_system_and_check_invariants(system, [one, two, own]).await;
    }
}

#[tokio::test]
async fn values_of_any_bytes_reach_the_agent_and_what_the_caller_does_not_have_is_absent() {
    let rig = new_rig();
    let system = builder(&rig).start().await.expect("a system");
    let dir = place(&rig, "odd");
    let mut opening =
        opening(&rig, &dir, &[("LC_LINES", "a\nb\"c\\ \u{1}"), ("LC_EMPTY", ""), ("LC_CANARY", "c4n4ry-value")]);
    opening.environment = opening.environment.with("LC_ODD", OsString::from_vec(b"x\xffy".to_vec()));
    let mut client = TestClient::of(&system).from(context(&rig, &opening)).greet().await;
    client.consult(&rig.answering("done")).await.expect_success();
    let env = environment_in(&rig, &dir);
    assert_eq!((&env["LC_LINES"], &env["LC_EMPTY"]), (&json!("a\nb\"c\\ \u{1}"), &json!("")), "{env:#}");
    assert_eq!((&env["LC_ODD"], &env["LC_CANARY"]), (&json!("x\u{fffd}y"), &json!("c4n4ry-value")), "{env:#}");
    for absent in ["LANG", "LC_ALL", "HTTPS_PROXY", "XDG_CONFIG_HOME", "ANTHROPIC_MODEL"] {
        assert_eq!(env[absent], Value::Null, "{absent}: {env:#}");
    }
    expect_nowhere_stored(&rig, "c4n4ry-value");
    rig.stop_system_and_check_invariants(system, [client]).await;
}

#[tokio::test]
async fn a_directory_that_went_after_the_session_was_opened_is_told_with_the_call_that_needs_it() {
    let rig = new_rig();
    let system = builder(&rig).start().await.expect("a system");
    let dir = place(&rig, "leaving");
    let mut client = TestClient::of(&system).from(context(&rig, &opening(&rig, &dir, &[]))).greet().await;
    std::fs::remove_dir(&dir).expect("removed");
    let refused = client.consult(&rig.answering("never")).await.expect_fault("invalid_input");
    assert!(refused.text().contains("the directory of this session does not exist"), "{}", refused.text());
    // Nor may it look elsewhere instead.
    let arguments = json!({"prompt": rig.answering("never"), "cwd": rig.work()});
    let refused = client.call("consult", arguments).await.expect_fault("invalid_input");
    assert!(refused.text().contains("the one this session works in"), "{}", refused.text());
    std::fs::create_dir(&dir).expect("a directory");
    client.consult(&rig.answering("back")).await.expect_success();
    rig.expect_runs(1);
    rig.stop_system_and_check_invariants(system, [client]).await;
}

#[tokio::test]
async fn who_has_told_no_directory_names_one_of_the_configured_and_has_the_environment_of_the_system() {
    let rig = new_rig();
    let shared = place(&rig, "shared");
    let system = builder(&rig).start().await.expect("a system");
    let mut base = host(&rig).base();
    base.config = Arc::new(Config { claude_bin: Some(rig.player()), ..Config::clone(&base.config) });
    let mut client = TestClient::of(&system).from(base).open();
    // What it names itself as its roots grants nothing.
    client.handshake_with_roots("2025-11-25").await;
    let consult = client.start("consult", json!({"prompt": rig.answering("never")})).await;
    let refused = client.reply(consult).await.expect_fault("invalid_input");
    assert!(refused.text().contains("`cwd` is missing"), "{}", refused.text());
    for outside in [rig.work(), rig.path("home"), "/".into()] {
        let arguments = json!({"prompt": rig.answering("never"), "cwd": outside});
        let refused = client.call("consult", arguments).await.expect_fault("invalid_input");
        assert!(refused.text().contains("`workspaces`"), "{}", refused.text());
    }
    let reply = client.call("consult", json!({"prompt": rig.answering("there"), "cwd": shared})).await.expect_success();
    assert_eq!(reply["environment"], "base", "{:#}", reply.0);
    let env = environment_in(&rig, &shared);
    assert_eq!(env["LANG"], "C.UTF-8", "{env:#}");
    assert!(!env.to_string().contains("of-host") && env["HOME"] != json!(rig.path("home")), "{env:#}");
    assert_eq!(client.health().await["environment"], "base");
    rig.stop_system_and_check_invariants(system, [client]).await;
}

#[tokio::test]
async fn each_caller_is_under_its_own_settings_its_projects_limits_and_its_place_in_a_chain() {
    let rig = new_rig();
    let system = builder(&rig).start().await.expect("a system");
    let (low, broken) = (place(&rig, "low"), place(&rig, "broken"));
    std::fs::write(low.join(".phone-opus.toml"), "timeout_s = 7\n").expect("written");
    std::fs::write(broken.join(".phone-opus.toml"), "billing = \"api_key\"\n").expect("written");
    let opened = |dir: &Path, timeout: u64, depth: u32| {
        let mut opening = opening(&rig, dir, &[]);
        opening.settings.timeout_s = Some(timeout);
        opening.nesting = (Some(ChainId::random()), depth);
        (opening.nesting.0, context(&rig, &opening))
    };
    let mut lowered = TestClient::of(&system).from(opened(&low, 70, 0).1).greet().await;
    let mut plain = TestClient::of(&system).from(opened(&broken, 70, 0).1).greet().await;
    let (chain, nested) = opened(&place(&rig, "nested"), 70, 1);
    let mut nested = TestClient::of(&system).from(nested).greet().await;
    let mut deep = TestClient::of(&system).from(opened(&place(&rig, "deep"), 70, 2).1).greet().await;
    let reply = lowered.consult(&rig.answering("lowered")).await.expect_success();
    assert!(!reply.has("project_file_left_out"), "{:#}", reply.0);
    let reply = plain.consult(&rig.answering("plain")).await.expect_success();
    let left_out = broken.join(".phone-opus.toml");
    assert_eq!(reply["project_file_left_out"]["place"], json!(left_out), "{:#}", reply.0);
    assert_eq!(plain.health().await["project_file_left_out"]["place"], json!(left_out));
    assert_eq!(lowered.health().await["project_file_left_out"], Value::Null);
    nested.consult(&rig.answering("nested")).await.expect_success();
    let background = json!({"prompt": rig.answering("never"), "background": true});
    nested.call("consult", background).await.expect_fault("recursion_refused");
    deep.consult(&rig.answering("never")).await.expect_fault("recursion_refused");
    let jobs = rig.jobs().await;
    let limits = |dir: &Path| jobs.iter().find(|job| job.workspace == dir).map(|job| job.request.timeout_s);
    assert_eq!((limits(&low), limits(&broken)), (Some(7), Some(70)));
    let nested_job = jobs.iter().find(|job| job.workspace == place(&rig, "nested")).expect("accepted");
    assert_eq!((Some(nested_job.chain), nested_job.depth), (chain, 1));
    assert_eq!(environment_in(&rig, &place(&rig, "nested"))["PHONE_OPUS_DEPTH"], "2");
    rig.stop_system_and_check_invariants(system, [lowered, plain, nested, deep]).await;
}

#[tokio::test]
async fn jobs_of_one_directory_are_shown_to_its_callers_and_to_no_other() {
    let rig = new_rig();
    let system = builder(&rig).start().await.expect("a system");
    let mut one = TestClient::of(&system).from(caller(&rig, "of-one")).greet().await;
    let mut two = TestClient::of(&system).from(caller(&rig, "of-two")).greet().await;
    let job = one.consult(&rig.answering("mine")).await.expect_success().str("job_id").to_owned();
    two.call("consult_job", json!({"job_id": job})).await.expect_fault("invalid_input");
    let listed = two.call("consult_jobs", json!({"scope": "all"})).await;
    assert_eq!(listed["jobs"], json!([]), "{:#}", listed.0);
    let listed = one.call("consult_jobs", json!({})).await;
    assert_eq!(listed["workspace"], json!(place(&rig, "of-one")));
    assert_eq!(listed["jobs"][0]["job_id"], json!(job), "{:#}", listed.0);
    rig.stop_system_and_check_invariants(system, [one, two]).await;
}

#[tokio::test]
async fn the_same_request_key_is_one_run_whoever_asks_and_whatever_their_environments() {
    let rig = new_rig();
    let system = builder(&rig).start().await.expect("a system");
    let dir = place(&rig, "together");
    let one = context(&rig, &opening(&rig, &dir, &[("LANG", "of-one")]));
    let two = context(&rig, &opening(&rig, &dir, &[("LANG", "of-two")]));
    let mut one = TestClient::of(&system).from(one).greet().await;
    let mut two = TestClient::of(&system).from(two).greet().await;
    let arguments = json!({"prompt": rig.waiting("begun", "go"), "request_key": "k"});
    let first = one.start("consult", arguments.clone()).await;
    rig.wait_for_sign("begun").await;
    let second = two.start("consult", arguments).await;
    until("both wait for it", async || {
        let health = two.health().await;
        (health["calls_in_flight"] == 2).then_some(())
    })
    .await;
    rig.give_sign("go");
    let (first, second) = (one.reply(first).await.expect_success(), two.reply(second).await.expect_success());
    assert_eq!(first["job_id"], second["job_id"]);
    assert_eq!(environment_in(&rig, &dir)["LANG"], "of-one", "it runs with that of whoever asked first");
    rig.stop_system_and_check_invariants(system, [one, two]).await;
}

/// A system in which one agent runs at a time.
async fn one_at_a_time(rig: &mut Rig) -> System {
    rig.set("PHONE_OPUS_MAX_RUNNING", "1");
    let config = Config { max_running: 1, ..config(rig) };
    builder(rig).config(config).start().await.expect("a system")
}

/// Waits until somebody waits with this job.
async fn handed_in(rig: &Rig, job: &str) {
    until("it is handed in", async || record(rig, job).await.waiter.map(drop)).await;
}

/// One consult under way, and one of each of these callers that waits for its turn.
async fn queue(rig: &Rig, system: &System, callers: &[&str]) -> (Vec<TestClient>, Vec<String>) {
    let mut first = TestClient::of(system).from(caller(rig, "of-first")).greet().await;
    let mut jobs = vec![first.consult_in_background(&rig.waiting("begun", "go")).await];
    rig.wait_for_sign("begun").await;
    let mut clients = vec![first];
    for name in callers {
        let mut client = TestClient::of(system).from(caller(rig, name)).greet().await;
        let job = client.consult_in_background(&rig.answering(name)).await;
        handed_in(rig, &job).await;
        jobs.push(job);
        clients.push(client);
    }
    (clients, jobs)
}

#[tokio::test]
async fn callers_of_different_environments_in_one_queue_have_one_process_that_waits_and_get_each_its_own() {
    let mut rig = new_rig();
    let system = one_at_a_time(&mut rig).await;
    let (clients, jobs) = queue(&rig, &system, &["of-one", "of-two"]).await;
    let waiting = rig.the(Role::Waiting).await;
    let seen = waiting.environment().expect("it waits");
    for name in ["of-first", "of-one", "of-two"] {
        assert!(!seen.contains(name), "who waits has nothing of {name} in its environment");
    }
    rig.give_sign("go");
    for job in &jobs {
        becomes(&rig, job, JobState::Succeeded).await;
    }
    expect_own(&rig, "of-one", &["of-two", "of-first"]);
    expect_own(&rig, "of-two", &["of-one", "of-first"]);
    expect_nowhere_stored(&rig, "user:pass");
    until("nobody waits any more", async || rig.all(Role::Waiting).is_empty().then_some(())).await;
    rig.stop_system_and_check_invariants(system, clients).await;
}

#[tokio::test]
async fn jobs_whose_turn_comes_when_their_host_is_gone_are_run_with_their_callers_environments() {
    let mut rig = new_rig();
    let system = one_at_a_time(&mut rig).await;
    let (clients, jobs) = queue(&rig, &system, &["of-one", "of-two"]).await;
    for mut client in clients {
        client.finish().await;
    }
    system.shutdown(Grace::default()).await;
    drop(system);
    rig.give_sign("go");
    for job in &jobs {
        becomes(&rig, job, JobState::Succeeded).await;
    }
    expect_own(&rig, "of-one", &["of-two", "of-first"]);
    expect_own(&rig, "of-two", &["of-one", "of-first"]);
    expect_nowhere_stored(&rig, "user:pass");
    rig.expect_runs(3);
    rig.check_invariants().await;
}

#[tokio::test]
async fn a_host_hands_its_callers_jobs_in_anew_with_their_environments_when_who_waited_is_killed() {
    let mut rig = new_rig();
    let system = one_at_a_time(&mut rig).await;
    let (clients, jobs) = queue(&rig, &system, &["of-one"]).await;
    for _ in 0..2 {
        let before = rig.the(Role::Waiting).await;
        let waited = record(&rig, &jobs[1]).await.waiter;
        before.kill();
        until("another one waits", async || (record(&rig, &jobs[1]).await.waiter != waited).then_some(())).await;
    }
    for mut client in clients {
        client.finish().await;
    }
    system.shutdown(Grace::default()).await;
    drop(system);
    rig.give_sign("go");
    for job in &jobs {
        becomes(&rig, job, JobState::Succeeded).await;
    }
    expect_own(&rig, "of-one", &["of-first"]);
    rig.check_invariants().await;
}

#[tokio::test]
async fn a_callers_job_left_alone_is_run_for_a_session_with_the_same_environment_or_not_at_all() {
    for (next, end) in [("of-one", JobState::Succeeded), ("of-two", JobState::Interrupted)] {
        let mut rig = new_rig();
        let system = one_at_a_time(&mut rig).await;
        let (clients, jobs) = queue(&rig, &system, &["of-one"]).await;
        for mut client in clients {
            client.finish().await;
        }
        rig.kill(Role::Waiting);
        system.shutdown(Grace::default()).await;
        drop(system);
        // A host that looked for another one to wait with it may have found one.
        for process in rig.all(Role::Waiting) {
            process.kill();
        }
        rig.give_sign("go");
        becomes(&rig, &jobs[0], JobState::Succeeded).await;
        let after = one_at_a_time(&mut rig).await;
        let client = TestClient::of(&after).from(caller(&rig, next)).greet().await;
        becomes(&rig, &jobs[1], end).await;
        if end == JobState::Succeeded {
            expect_own(&rig, "of-one", &["of-first"]);
        }
        rig.stop_system_and_check_invariants(after, [client]).await;
    }
}
