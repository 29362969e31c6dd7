//! The command line: the same engine, exit codes, and what it says when it is used wrongly.
//!
//! Laws: L7, L13.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::path::Path;
use std::process::{Output, Stdio};

use phone_opus::internals::agents::offline;
use phone_opus::testkit::{KEY, Rig, Script, Step, tried_program, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::questions::{self, About, Question};

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    // What is logged is a line with a level; the rest is said to the user.
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}\n{}", stdout(output), stderr(output));
}

fn parsed(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).expect("JSON and nothing else on stdout")
}

#[tokio::test]
async fn a_consult_with_the_offline_agent_answers_from_the_directory_without_any_model() {
    let mut rig = new_rig();
    rig.set("PHONE_OPUS_LOG", "warn");
    rig.set("PHONE_OPUS_CLAUDE_BIN", "/no/such/claude");
    std::fs::create_dir(rig.path("work/src")).expect("a directory");
    std::fs::write(rig.path("work/src/kettle.rs"), "fn lid() {}\n\n/// Boils the water.\nfn boil_water() {}\n")
        .expect("a file");
    std::fs::write(rig.path("work/notes.md"), "nothing of interest\n").expect("a file");
    let output = rig.run(&["consult", "--agent", "offline", "where is water boiled?"]).await;
    code(&output, 0);
    let answer = stdout(&output);
    assert!(answer.contains("1. src/kettle.rs:") && answer.contains("   Boils the water.\n"), "{answer}");
    assert!(answer.to_lowercase().contains("no model"), "{answer}");
    assert!(stderr(&output).contains("succeeded") && stderr(&output).contains("offline"), "{}", stderr(&output));
    rig.stop_and_check_invariants([]).await;
}

/// Which place the first right file has among those that a question leads to.
fn place(root: &Path, question: &Question) -> Option<usize> {
    let leads = offline::leads(root, question.asked);
    leads.iter().position(|(path, _)| question.right.contains(&&path[..]))
}

#[test]
fn the_offline_agent_leads_to_the_file_that_answers() {
    let larder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/offline/larder");
    let (mut kept, mut kept_first) = (0, 0);
    for (number, question) in questions::all().filter(|(_, question)| question.about == About::Larder) {
        let place = place(&larder, question);
        // Of these nobody is to learn more than how many were answered.
        if questions::is_kept_apart(number) {
            kept += 1;
            kept_first += usize::from(place == Some(0));
        } else {
            assert_eq!(place, Some(0), "{}", question.asked);
        }
    }
    assert!(kept >= 3 && kept_first + 1 >= kept, "{kept_first} of {kept} by the first place");
}

#[test]
fn the_front_pages_question_to_the_offline_agent_leads_to_where_the_answer_is() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(here.join("README.md")).expect("the front page");
    let (_, question) = questions::all().next().expect("a question");
    let command = format!("cargo run -- consult --agent offline {:?}", question.asked);
    assert!(page.contains(&command), "README.md does not say: {command}");
    assert!(place(here, question).is_some_and(|place| place < 3), "{:?}", offline::leads(here, question.asked));
}

#[tokio::test]
async fn the_answer_alone_is_on_stdout_and_the_facts_are_on_stderr() {
    let mut rig = new_rig();
    rig.set("PHONE_OPUS_LOG", "warn");
    let prompt = rig.answering("forty-two");
    let output = rig.run(&["consult", &prompt]).await;
    code(&output, 0);
    assert_eq!(stdout(&output), "forty-two\n");
    assert!(stderr(&output).contains("session "), "{}", stderr(&output));

    let mut child =
        rig.command(&["consult", "--json", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
    child.stdin.take().expect("stdin").write_all(prompt.as_bytes()).await.expect("written");
    let output = child.wait_with_output().await.expect("it ends");
    code(&output, 0);
    assert_eq!((&parsed(&output)["response"], &parsed(&output)["status"]), (&json!("forty-two"), &json!("succeeded")));
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn exit_codes_tell_failure_from_wrong_usage() {
    let mut rig = new_rig();
    rig.set("PHONE_OPUS_LOG", "warn");
    let failing = rig.prompt(Script {
        no_result: true,
        exit: Some(1),
        steps: vec![Step::Stderr("Not logged in\n".into())],
        ..Script::default()
    });
    let output = rig.run(&["consult", &failing]).await;
    code(&output, 1);
    assert_eq!(stdout(&output), "");
    assert!(stderr(&output).contains("agent_not_logged_in"), "{}", stderr(&output));
    for (arguments, said) in [
        (&["consult", "  "][..], "`prompt` is blank"),
        (&["consult", "--cwd", "/no/such", "x"], "`cwd` does not exist"),
        (&["consult", "--agent", "cluade", "x"], "`agent`"),
        (&["consult", "--session", "../x", "x"], "not a session's id"),
        (&["consult", "--modle", "x", "x"], "--model"),
        (&["jobs", "show", "no-uuid"], "UUID"),
        (&["jobs", "list", "--state", "done"], "succeeded"),
        (&["jbos"], "jobs"),
        // It could be an agent's, and is none of this agent's.
        (&["consult", "--session", "UPPER", "x"], "UUIDs in lower case"),
        (&["consult", "--agent", "opencode", "--session", "3f2504e0-4f89-41d3-9a0c-0305e82c3301", "x"], "`ses_`"),
        (
            &["consult", "--agent", "offline", "--session", "3f2504e0-4f89-41d3-9a0c-0305e82c3301", "x"],
            "keeps no sessions",
        ),
        (&["mcp", "serve", "--billing", "free"], "api_key"),
    ] {
        let output = rig.run(arguments).await;
        code(&output, 2);
        assert!(stderr(&output).contains(said), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
    let output = rig.run(&["jobs", "show", "3f2504e0-4f89-41d3-9a0c-0305e82c3301"]).await;
    code(&output, 1);
    rig.expect_runs(1);
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn an_interrupted_consult_takes_its_agent_along() {
    let mut rig = new_rig();
    rig.set("PHONE_OPUS_LOG", "warn");
    let prompt = rig.doing(vec![Step::IgnoreTerm, Step::Touch(rig.sign("begun")), Step::Hang]);
    let child =
        rig.command(&["consult", &prompt]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    rig.wait_for_sign("begun").await;
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).expect("a pid");
    kill_process(pid, Signal::INT).expect("interrupted");
    let output = child.wait_with_output().await.expect("it ends");
    code(&output, 3);
    assert_eq!(rig.only_job_over().await.state.as_str(), "cancelled");
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn jobs_are_listed_shown_and_cancelled() {
    let mut rig = new_rig();
    rig.set("PHONE_OPUS_LOG", "warn");
    let output = rig.run(&["jobs", "list"]).await;
    code(&output, 0);
    assert_eq!(stdout(&output), "", "a program that reads lines reads none");
    assert!(stderr(&output).contains("No jobs"), "{}", stderr(&output));

    let prompt = rig.doing(vec![Step::WaitForFile(rig.sign("go"))]);
    let output = rig.run(&["consult", "--background", "--json", &prompt]).await;
    code(&output, 0);
    let job = parsed(&output)["job_id"].as_str().expect("a job").to_owned();
    // The command has ended and its job goes on.
    until("the agent runs", async || (!rig.runs().is_empty()).then_some(())).await;
    let output = rig.run(&["jobs", "show", "--json", &job]).await;
    assert_eq!(parsed(&output)["status"], "running");
    rig.give_sign("go");
    let output = rig.run(&["jobs", "show", "--json", "--wait", "60", &job]).await;
    code(&output, 0);
    assert_eq!((&parsed(&output)["status"], &parsed(&output)["response"]), (&json!("succeeded"), &json!("done")));

    let hanging = rig.hanging("begun");
    let output = rig.run(&["consult", "--background", "--json", &hanging]).await;
    let other = parsed(&output)["job_id"].as_str().expect("a job").to_owned();
    rig.wait_for_sign("begun").await;
    let output = rig.run(&["jobs", "cancel", &other]).await;
    code(&output, 0);
    assert!(stdout(&output).contains("cancelled"), "{}", stdout(&output));
    let output = rig.run(&["jobs", "cancel", &job]).await;
    code(&output, 0);
    assert!(stdout(&output).contains("over already: it succeeded"), "{}", stdout(&output));

    let listed = parsed(&rig.run(&["jobs", "list", "--json"]).await);
    let rows = listed["jobs"].as_array().expect("rows").iter();
    let rows: Vec<(&Value, &Value)> = rows.map(|row| (&row["job_id"], &row["status"])).collect();
    assert_eq!(rows, [(&json!(other), &json!("cancelled")), (&json!(job), &json!("succeeded"))]);
    let output = rig.run(&["jobs", "list", "--state", "succeeded"]).await;
    assert!(stdout(&output).contains(&job) && !stdout(&output).contains(&other), "{}", stdout(&output));
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn the_doctor_says_what_is_there_and_fails_when_a_consult_cannot_work() {
    let mut rig = new_rig();
    rig.set("PHONE_OPUS_LOG", "warn");
    let output = rig.run(&["doctor", "--json"]).await;
    code(&output, 0);
    let report = parsed(&output);
    let check = |report: &Value, name: &str| {
        report["checks"].as_array().and_then(|all| all.iter().find(|check| check["check"] == name)).cloned()
    };
    assert_eq!(report["ok"], true);
    for name in ["state", "store", "claude", "flags", "login", "billing", "limits", "offline"] {
        assert!(check(&report, name).is_some(), "{name} in {report:#}");
    }
    assert!(check(&report, "claude").is_some_and(|check| check["data"]["version"].to_string().contains("2.1.329")));
    assert_eq!(check(&report, "flags").map(|check| check["data"]["missing"].clone()), Some(json!([])));
    assert!(!stdout(&output).contains(KEY), "a key is never shown");
    let output = rig.run(&["doctor"]).await;
    code(&output, 0);
    assert!(stdout(&output).contains("ok   state"), "{}", stdout(&output));

    rig.set("PHONE_OPUS_CLAUDE_BIN", "/no/such/claude");
    let output = rig.run(&["doctor", "--json"]).await;
    code(&output, 1);
    let claude = check(&parsed(&output), "claude").expect("a finding");
    assert_eq!((&claude["ok"], &claude["data"]["fault"]["code"]), (&json!(false), &json!("agent_missing")));
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn version_and_help_are_on_stdout_and_help_shows_examples() {
    let rig = new_rig();
    let output = rig.run(&["--version"]).await;
    code(&output, 0);
    assert_eq!(stdout(&output), format!("phone-opus {}\n", env!("CARGO_PKG_VERSION")));
    for arguments in [&["--help"][..], &["consult", "--help"], &["mcp", "serve", "--help"]] {
        let output = rig.run(arguments).await;
        code(&output, 0);
        let help = stdout(&output);
        assert!(help.contains("Examples:") || help.contains("Add it to a client:"), "{arguments:?}: {help}");
    }
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_wrong_configuration_stops_every_command_with_its_place_and_a_suggestion() {
    let mut rig = new_rig();
    rig.set("PHONE_OPUS_LOG", "warn");
    rig.set("XDG_CONFIG_HOME", rig.path("config").display().to_string());
    std::fs::create_dir_all(rig.path("config/phone_opus")).expect("a directory");
    let user = rig.path("config/phone_opus/config.toml");
    let commands: [&[&str]; 3] = [&["mcp", "serve"], &["consult", "x"], &["doctor"]];
    for (file, text, said) in [
        (&user, "max_runing = 2\n", &["config.toml", "max_runing", "max_running"][..]),
        (&user, "max_running = 0\n", &["config.toml", "max_running is 0", "1 to 64"]),
        (&user, "max_running = \"two\"\n", &["config.toml", "max_running"]),
        (&user, "billing = \n", &["config.toml", "line 1"]),
    ] {
        if cfg!(not(target_os = "linux")) {
            continue;
        }
        std::fs::write(file, text).expect("written");
        for arguments in commands {
            let output = rig.run(arguments).await;
            code(&output, 2);
            for part in said {
                assert!(stderr(&output).contains(part), "{text:?}: {part:?} is not in {}", stderr(&output));
            }
            assert_eq!(stdout(&output), "");
        }
        std::fs::remove_file(file).expect("removed");
    }
    rig.set("PHONE_OPUS_WAIT_S", "soon");
    let output = rig.run(&["mcp", "serve"]).await;
    code(&output, 2);
    assert!(stderr(&output).contains("PHONE_OPUS_WAIT_S") && stderr(&output).contains("soon"), "{}", stderr(&output));
    assert!(!rig.state_dir().root().exists(), "nothing was started");
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_state_directory_others_can_write_to_is_refused_and_said_so() {
    use std::os::unix::fs::PermissionsExt;
    let mut rig = new_rig();
    rig.set("PHONE_OPUS_LOG", "warn");
    let open = rig.path("open");
    std::fs::create_dir(&open).expect("a directory");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).expect("opened");
    let prompt = rig.answering("never");
    let output = rig.run(&["consult", "--state-dir", open.to_str().expect("text"), &prompt]).await;
    code(&output, 1);
    assert!(
        stderr(&output).contains("store_unavailable") && stderr(&output).contains("others can write"),
        "{}",
        stderr(&output)
    );
    rig.expect_runs(0);
    rig.stop_and_check_invariants([]).await;
}
