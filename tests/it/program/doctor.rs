//! `doctor --live` and `doctor --fix` with the real program: a turn of each agent, and what is put right.
//!
//! Laws: L3, L7, L13, L18.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use phone_opus::internals::base::ids::UnixMillis;
use phone_opus::internals::jobs::JobState;
use phone_opus::testkit::outputs::Keyboard;
use phone_opus::testkit::{ForkPlace, Rig, Role, Script, Signal, Step, tried_program, until};
use phone_opus::{Agent as _, CliAgent};
use serde_json::{Map, Value, json};

use super::clients::{at_the_keyboard, program_in};

fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus"))).with("PHONE_OPUS_LOG", "error").with("NO_COLOR", "1")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

#[track_caller]
fn parsed(output: &Output, code: i32) -> Value {
    let said = stdout(output);
    assert_eq!(output.status.code(), Some(code), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON and nothing else on stdout")
}

fn fields(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

/// Writes a program. Another process does it: a file that is open for writing here while something forks could not be run.
fn written(path: &Path, body: &str) {
    let mut writer = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 700 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    writer.stdin.take().expect("its stdin").write_all(body.as_bytes()).expect("written");
    assert!(writer.wait().expect("its end").success());
}

/// Has an agent behave so, whatever it is asked: nobody can put a script into the question of `doctor`.
fn play(rig: &mut Rig, agent: &str, script: Script) {
    let (program, words) = (rig.path(&format!("{agent}-program")), rig.path(&format!("{agent}-script")));
    fs::write(&words, rig.prompt(script)).expect("written");
    let (player, words) = (rig.player().display().to_string(), words.display().to_string());
    let body = format!(
        "#!/bin/sh\ncase \"$1 $2\" in --version*|--help*|auth*|features*|'exec --help'*|'run --help'*) exec '{player}' \"$@\" ;; esac\n\
         cat - '{words}' | '{player}' \"$@\"\n"
    );
    written(&program, &body);
    rig.set(&format!("PHONE_OPUS_{}_BIN", agent.to_uppercase()), program.display().to_string());
}

/// Takes an agent away.
fn remove(rig: &mut Rig, agent: &str) {
    rig.set(&format!("PHONE_OPUS_{}_BIN", agent.to_uppercase()), "/no/such/program");
}

/// What was found of each agent by asking it.
fn live(report: &Value) -> Vec<Value> {
    let checks = report["checks"].as_array().expect("checks").iter();
    checks.filter(|check| check["check"] == "live").cloned().collect()
}

fn of<'a>(live: &'a [Value], agent: &str) -> &'a Value {
    live.iter().find(|check| check["data"]["agent"] == agent).expect("its row")
}

/// How often each agent was run, by a word that its command line has and no other's.
fn runs(rig: &Rig) -> usize {
    rig.runs().len()
}

#[tokio::test]
async fn every_agent_that_is_installed_has_one_turn_and_says_what_was_proven() {
    let mut rig = new_rig();
    let agents: Vec<String> = CliAgent::all().map(|agent| agent.name().to_owned()).collect();
    for agent in &agents {
        play(&mut rig, agent, Script { answer: Some("here".to_owned()), ..Script::default() });
    }
    let report = parsed(&rig.run(&["doctor", "--live", "--yes", "--json"]).await, 0);
    assert_eq!((&report["ok"], &report["version"]), (&json!(true), &json!(1)));
    let live = live(&report);
    let asked: Vec<&str> = live.iter().filter_map(|check| check["data"]["agent"].as_str()).collect();
    let all: Vec<&str> = agents.iter().map(String::as_str).chain(["offline"]).collect();
    assert_eq!(asked, all);
    for check in &live {
        let data = &check["data"];
        assert_eq!(
            (&check["ok"], &data["status"], &data["login"], &data["code"]),
            (&json!(true), &json!("succeeded"), &json!("proven"), &Value::Null),
            "{check:#}"
        );
        assert!(data["round_trip_ms"].is_u64() && data["job_id"].is_string(), "{check:#}");
    }
    let claude = &of(&live, "claude")["data"];
    assert_eq!(
        (&claude["payer"], &claude["model"], &claude["agent_version"], &claude["cost_usd"]),
        (&json!("subscription"), &json!("scripted-model"), &json!("2.1.329"), &json!(0.001))
    );
    for silent in agents.iter().filter(|agent| *agent != "claude") {
        assert_eq!(of(&live, silent)["data"]["payer"], "unproven", "{silent}");
    }
    assert_eq!(of(&live, "offline")["data"]["payer"], "nobody");
    // One run of each, of a job of its own that was read; what may be spent is bounded where an agent knows such a bound.
    assert_eq!(runs(&rig), agents.len());
    let jobs = rig.jobs().await;
    assert_eq!(jobs.len(), all.len());
    assert!(jobs.iter().all(|job| job.state == JobState::Succeeded && job.read_at.is_some()));
    let bounded: Vec<&str> =
        jobs.iter().filter(|job| job.request.max_budget_usd.is_some()).map(|job| job.request.agent.as_str()).collect();
    assert_eq!(bounded, ["claude"]);
    rig.check_invariants().await;
}

#[tokio::test]
async fn each_failure_says_what_it_is_and_what_to_do_and_one_that_was_not_named_is_a_note() {
    let mut rig = new_rig().with("PHONE_OPUS_TIMEOUT_S", "4");
    // In two hours: what lies further ahead than any limit does is not believed.
    let until_ms = UnixMillis(UnixMillis::now().0 / 1000 * 1000 + 7_200_000);
    let limited_until = u64::try_from(until_ms.0 / 1000).expect("a time");
    let limited = Script {
        steps: vec![Step::ApiError("rate_limit".to_owned()), Step::RateLimit(limited_until)],
        result: fields(json!({"is_error": true, "result": "API Error: 429", "api_error_status": 429})),
        ..Script::default()
    };
    let refused = Script {
        result: fields(json!({"is_error": true, "message": "unexpected status 401 Unauthorized: no, url: http://x"})),
        ..Script::default()
    };
    play(&mut rig, "claude", limited);
    play(&mut rig, "codex", refused);
    play(&mut rig, "copilot", Script { answer: Some("here".to_owned()), ..Script::default() });
    remove(&mut rig, "gemini");
    remove(&mut rig, "opencode");
    // It says nothing and has started something.
    play(&mut rig, "qwen", Script { steps: vec![Step::Fork(ForkPlace::Group), Step::Hang], ..Script::default() });
    let words = ["doctor", "--live", "--yes", "--json"];
    let named = ["claude", "codex", "copilot", "gemini", "qwen"].map(|agent| ["--agent", agent]).concat();
    let report = parsed(&rig.run(&[&words[..], &named].concat()).await, 1);
    assert_eq!(report["ok"], false);
    let seen = live(&report);
    assert_eq!(seen.len(), 5);
    for (agent, ok, status, code, login, words) in [
        ("claude", false, "failed", json!("agent_rate_limited"), "", "It answers again from 20"),
        ("codex", false, "failed", json!("agent_not_logged_in"), "no", "codex login"),
        ("copilot", true, "succeeded", Value::Null, "proven", "who pays is unproven"),
        ("gemini", false, "failed", json!("agent_missing"), "", "PHONE_OPUS_GEMINI_BIN"),
        ("qwen", false, "cancelled", json!("deadline_exceeded"), "", "did not finish"),
    ] {
        let (check, data) = (of(&seen, agent), &of(&seen, agent)["data"]);
        assert_eq!((&check["ok"], &data["status"], &data["code"]), (&json!(ok), &json!(status), &code), "{check:#}");
        assert!(login.is_empty() || data["login"] == login, "{check:#}");
        assert!(check["text"].as_str().is_some_and(|text| text.contains(words)), "{check:#}");
    }
    assert_eq!(of(&seen, "claude")["data"]["retry_at"], until_ms.to_iso8601());
    assert_eq!(of(&seen, "gemini")["data"]["payer"], "nobody");
    assert_eq!(runs(&rig), 4, "each that is there, once");

    // Nobody asked for those; the default is limited by now, and is not started again for it.
    let report = parsed(&rig.run(&words).await, 1);
    let seen = live(&report);
    for (agent, ok) in
        [("claude", json!(false)), ("codex", Value::Null), ("copilot", json!(true)), ("qwen", Value::Null)]
    {
        assert_eq!(of(&seen, agent)["ok"], ok, "{agent}");
    }
    assert!(seen.iter().all(|check| check["data"]["agent"] != "gemini"), "one that is not installed is not asked");
    assert_eq!(of(&seen, "claude")["data"]["code"], "agent_rate_limited");
    assert_eq!(runs(&rig), 4 + 3);
    rig.check_invariants().await;
}

#[tokio::test]
async fn nothing_is_asked_without_a_yes_and_what_is_free_needs_none() {
    let mut rig = new_rig();
    let unasked = rig.run(&["doctor", "--live"]).await;
    assert_eq!(unasked.status.code(), Some(2), "{}", stdout(&unasked));
    let said = String::from_utf8_lossy(&unasked.stderr).into_owned();
    assert!(said.contains("paid for") && said.contains("claude, codex") && said.contains("--yes"), "{said}");
    assert!(stdout(&unasked).contains("ok   state"), "what can be looked at was looked at");
    let unasked = parsed(&rig.run(&["doctor", "--live", "--json"]).await, 2);
    assert_eq!(live(&unasked), [] as [Value; 0]);
    let strange = rig.run(&["doctor", "--live", "--yes", "--agent", "cluade"]).await;
    assert_eq!(strange.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&strange.stderr).contains("did you mean `claude`"), "{strange:?}");
    assert_eq!((runs(&rig), rig.jobs().await.len()), (0, 0));

    let free = parsed(&rig.run(&["doctor", "--live", "--json", "--agent", "offline"]).await, 0);
    assert_eq!(live(&free)[0]["data"]["status"], "succeeded");

    play(&mut rig, "claude", Script { answer: Some("here".to_owned()), ..Script::default() });
    let words = ["doctor", "--live", "--agent", "claude"];
    let (seen, code) = at_the_keyboard(&rig, &words, || (), "n\n").await;
    assert_eq!((code, runs(&rig)), (Some(3), 0), "{seen}");
    let (seen, code) = at_the_keyboard(&rig, &words, || (), "y\n").await;
    assert_eq!((code, runs(&rig)), (Some(0), 1), "{seen}");
    assert!(seen.contains("claude: answers in ") && seen.contains("paid by subscription"), "{seen}");
    rig.check_invariants().await;
}

#[tokio::test]
async fn ctrl_c_ends_what_was_asked_with_everything_it_started() {
    let mut rig = new_rig();
    for agent in ["claude", "codex"] {
        let steps = vec![Step::Fork(ForkPlace::Session), Step::Touch(rig.sign(agent)), Step::Hang];
        play(&mut rig, agent, Script { steps, ..Script::default() });
    }
    let words = ["doctor", "--live", "--yes", "--agent", "claude", "--agent", "codex"];
    let asking = rig.begin_on_a_terminal(&words, Some((80, 24)), Keyboard::Away);
    for agent in ["claude", "codex"] {
        rig.wait_for_sign(agent).await;
    }
    asking.signal(Signal::INT);
    let (status, seen) = asking.ended().await;
    assert_eq!(status.code(), Some(3), "{seen}");
    assert!(seen.contains("interrupted"), "{seen}");
    rig.expect_no_agent_left().await;
    assert!(rig.jobs().await.iter().all(|job| job.state == JobState::Cancelled));
    rig.check_invariants().await;
}

/// What `--fix` says it would do, or did: which fix, and what became of it.
fn fixes(report: &Value) -> Vec<(String, String)> {
    let fixes = report["fixes"].as_array().expect("fixes").iter();
    let word = |fix: &Value, name: &str| fix[name].as_str().unwrap_or_default().to_owned();
    fixes.map(|fix| (word(fix, "fix"), word(fix, "status"))).collect()
}

const DRY_RUN: [&str; 4] = ["doctor", "--fix", "--dry-run", "--json"];
const FIX: [&str; 4] = ["doctor", "--fix", "--yes", "--json"];

fn both(word: &str, status: &str) -> (String, String) {
    (word.to_owned(), status.to_owned())
}

#[tokio::test]
async fn what_a_killed_daemon_and_a_killed_runner_left_is_put_right_and_no_job_is_forgotten() {
    let mut rig = new_rig();
    let made = rig.run(&DRY_RUN).await;
    assert_eq!(fixes(&parsed(&made, 0)), []);
    assert!(!rig.state_dir().root().exists(), "looking made something");
    let steps = vec![Step::Fork(ForkPlace::Session), Step::Touch(rig.sign("begun")), Step::Hang];
    rig.run(&["consult", "--background", "--json", &rig.doing(steps)]).await;
    rig.wait_for_sign("begun").await;
    rig.kill(Role::Runner);
    let mut daemon = rig.daemon(&[]).await;
    daemon.kill().await.expect("killed");
    // The daemon may have settled the job before it was killed: it looks for such jobs when it starts.
    until("no process of ours but the agent is left", async || rig.all(Role::Host).is_empty().then_some(())).await;
    let (record, socket) = (rig.state_dir().daemon_record(), rig.state_dir().daemon_socket());
    assert!(record.exists() && socket.exists());

    let shown = parsed(&rig.run(&DRY_RUN).await, 0);
    assert!(fixes(&shown).contains(&both("daemon", "would_fix")), "{shown:#}");
    assert!(record.exists() && socket.exists(), "it was only shown");
    let unasked = parsed(&rig.run(&["doctor", "--fix", "--json"]).await, 2);
    assert!(fixes(&unasked).contains(&both("daemon", "needs_yes")), "{unasked:#}");
    assert!(record.exists(), "nobody agreed");

    let done = parsed(&rig.run(&FIX).await, 0);
    assert!(fixes(&done).iter().all(|(_, status)| status == "fixed"), "{done:#}");
    assert!(!record.exists() && !socket.exists());
    assert_eq!((&done["ok"], &done["version"]), (&json!(true), &json!(1)), "and then it is looked at");
    assert_eq!(fixes(&parsed(&rig.run(&FIX).await, 0)), []);
    rig.expect_no_agent_left().await;
    assert_eq!(rig.only_job_over().await.state, JobState::Interrupted);
    rig.check_invariants().await;
}

#[tokio::test]
async fn a_job_whose_runner_was_killed_is_settled_and_what_is_left_of_its_agent_is_ended() {
    let rig = new_rig();
    let steps = vec![Step::Fork(ForkPlace::Session), Step::Touch(rig.sign("begun")), Step::Hang];
    rig.run(&["consult", "--background", "--json", &rig.doing(steps)]).await;
    rig.wait_for_sign("begun").await;
    // What lives is left alone.
    assert_eq!(fixes(&parsed(&rig.run(&FIX).await, 0)), []);
    rig.kill(Role::Runner);
    until("its lock is free", async || rig.runners().is_empty().then_some(())).await;
    let shown = parsed(&rig.run(&DRY_RUN).await, 0);
    assert_eq!(fixes(&shown), [both("jobs", "would_fix")], "{shown:#}");
    assert_eq!(rig.jobs().await[0].state, JobState::Running, "it was only shown");
    let done = parsed(&rig.run(&FIX).await, 0);
    assert_eq!(fixes(&done), [both("jobs", "fixed")], "{done:#}");
    rig.expect_no_agent_left().await;
    assert_eq!(rig.only_job_over().await.state, JobState::Interrupted);
    rig.check_invariants().await;
}

#[tokio::test]
async fn what_others_could_read_is_closed_and_what_was_never_finished_goes() {
    let rig = new_rig();
    rig.run(&["consult", "--quiet", &rig.answering("42")]).await;
    let root = rig.state_dir().root().to_owned();
    let job = format!("jobs/{}", rig.jobs().await[0].id);
    let mode = |name: &str| fs::metadata(root.join(name)).expect("there").mode() & 0o777;
    let open = |name: &str, mode| fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).expect("set");
    // Those of the store itself are closed by whoever opens it.
    open(&job, 0o755);
    open("secret", 0o640);
    let (old, new) = (root.join("secret.new-3f2504e0-4f89-41d3-9a0c-0305e82c3301"), root.join("daemon.json.new-1"));
    let strange = root.join("notes.txt");
    for file in [&old, &new, &strange] {
        fs::write(file, "x").expect("written");
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("set");
    }
    for file in [&old, &strange] {
        let yesterday = SystemTime::now() - Duration::from_secs(86_400);
        fs::File::options().write(true).open(file).and_then(|file| file.set_modified(yesterday)).expect("set");
    }
    let shown = parsed(&rig.run(&DRY_RUN).await, 0);
    assert_eq!(fixes(&shown), [both("modes", "would_fix"), both("partial", "would_fix")], "{shown:#}");
    let text = shown["fixes"][0]["text"].as_str().expect("a text");
    assert!(text.contains(&format!("{job} (755, to be 700), secret (640, to be 600)")), "{text}");
    assert_eq!((mode(&job), mode("secret")), (0o755, 0o640), "it was only shown");
    let (seen, code) = at_the_keyboard(&rig, &["doctor", "--fix"], || (), "n\n").await;
    assert_eq!((code, mode("secret")), (Some(3), 0o640), "{seen}");
    let (seen, code) = at_the_keyboard(&rig, &["doctor", "--fix"], || (), "y\n").await;
    assert_eq!((code, mode(&job), mode("secret")), (Some(0), 0o700, 0o600), "{seen}");
    assert_eq!((old.exists(), new.exists(), strange.exists()), (false, true, true), "{seen}");
    fs::remove_file(new).expect("removed");
    rig.check_invariants().await;
}

#[tokio::test]
async fn a_client_that_starts_what_is_gone_is_led_here_where_nobody_has_edited_it() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let (before, after) = (scratch.path().join("before"), scratch.path().join("after"));
    for dir in [&before, &after] {
        fs::create_dir(dir).expect("a directory");
    }
    let old = program_in(&before);
    let mut rig = Rig::new(program_in(&after)).with("PHONE_OPUS_LOG", "error");
    let new = rig.program().display().to_string();
    let ours = rig.at_home(".cursor").join("mcp.json");
    let edited = rig.at_home(".gemini").join("settings.json");
    let text = "{\n  // mine\n  \"mcpServers\": {\n    \"docs\": {\"command\": \"docs\"}\n  }\n}\n";
    for (client, file) in [("cursor", &ours), ("gemini", &edited)] {
        fs::write(file, text).expect("written");
        let here = rig.command(&["install", "--client", client, "--yes"]);
        let here = here.as_std();
        let mut command = Command::new(&old);
        command.args(here.get_args()).env_clear().current_dir(rig.work());
        command.envs(here.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = command.output().expect("it runs");
        assert!(output.status.success(), "{output:?}");
    }
    let read = |file: &Path| fs::read_to_string(file).expect("the file");
    let serves = read(&edited).replace("\"serve\"", "\"connect\"");
    fs::write(&edited, &serves).expect("written");
    assert_eq!(fixes(&parsed(&rig.run(&FIX).await, 0)), [], "the program is there");
    fs::remove_file(&old).expect("removed");

    let shown = parsed(&rig.run(&DRY_RUN).await, 0);
    assert_eq!(fixes(&shown), [both("client", "would_fix")], "{shown:#}");
    let written = read(&ours);
    let done = parsed(&rig.run(&FIX).await, 0);
    assert_eq!(fixes(&done), [both("client", "fixed")], "{done:#}");
    let old = old.display().to_string();
    assert_eq!(read(&ours), written.replace(&old, &new), "nothing but the program is another one");
    assert_eq!(read(&edited), serves, "what its user has edited stays");
    assert_eq!(fixes(&parsed(&rig.run(&FIX).await, 0)), []);
    // What is remembered goes with it.
    assert!(rig.run(&["uninstall", "--client", "cursor", "--yes"]).await.status.success());
    assert_eq!(read(&ours), text);
    rig.check_invariants().await;
}
