//! Where a consult may look, and what a checkout can do to us.
//!
//! Laws: L9, L17.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use phone_opus::testkit::client::{REVISION, envelope};
use phone_opus::testkit::places::{self, Stand, give_away};
use phone_opus::testkit::{Reply, Rig, Sent, Signal, TestClient, Waiting, processes, tried_program};
use serde_json::json;

/// The revision with tasks.
const TASKS: &str = "2025-11-25";

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

/// More memory than any process of ours needs for a small directory, in a build without optimisation.
const PLENTY: u64 = 200 << 20;

/// Watches the memory of every process of the world until a call is answered, for at least so long.
async fn peak_until_answered(rig: &Rig, client: &TestClient, call: Sent, at_least: Duration, go: Option<&str>) -> u64 {
    let (mut peak, began, mut go) = (0, Instant::now(), go);
    loop {
        let now = rig.processes().into_iter().filter_map(|process| processes::peak(process.pid)).max();
        peak = peak.max(now.unwrap_or_default());
        if began.elapsed() >= at_least
            && let Some(sign) = go.take()
        {
            rig.give_sign(sign);
        }
        if client.is_answered(call) || peak > PLENTY {
            return peak;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "no answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A repository below `dir`, as far as its ignore files are concerned.
#[expect(clippy::expect_used, reason = "what goes wrong in a rig fails the case")]
fn repository(dir: &Path) {
    fs::create_dir_all(dir.join(".git")).expect("made");
    fs::write(dir.join(".git/HEAD"), "ref: refs/heads/main\n").expect("written");
}

#[tokio::test]
async fn ignore_files_that_are_no_reasonable_files_cost_no_memory_and_are_told_as_not_judged() {
    type Plant = fn(&Path) -> bool;
    let plants: [(&str, Plant); 6] = [
        ("a link to /dev/zero", |work| Stand::LinkToZero.put(&work.join(".gitignore"))),
        ("ten sparse gigabytes", |work| Stand::SparseGiant.put(&work.join(".gitignore"))),
        ("a pipe", |work| Stand::Fifo.put(&work.join(".gitignore"))),
        ("200 000 patterns", |work| {
            let patterns: String = (0..200_000).map(|n| format!("pattern-{n}-of-many/**/x\n")).collect();
            fs::write(work.join(".gitignore"), patterns).is_ok()
        }),
        ("one in a directory below", |work| Stand::LinkToZero.put(&work.join("other/.gitignore"))),
        ("what is excluded besides", |work| {
            fs::create_dir_all(work.join(".git/info")).expect("made");
            Stand::LinkToZero.put(&work.join(".git/info/exclude"))
        }),
    ];
    for (what, plant) in plants {
        let mut rig = new_rig();
        repository(&rig.work());
        assert!(plant(&rig.work()), "{what} was planted");
        let mut host = rig.serve().await;
        let prompt = rig.waiting("begun", "go");
        let call = host.start("consult", json!({ "prompt": prompt })).await;
        let peak = peak_until_answered(&rig, &host, call, Duration::from_secs(1), Some("go")).await;
        assert!(peak < PLENTY, "{what}: {} MB", peak >> 20);
        let reply = host.reply(call).await.expect_success();
        assert!(reply["workspace_changed"].is_null() && reply.has("workspace_changed"), "{what}: {:#}", reply.0);
        assert!(reply.text().contains("whether files changed is not known"), "{what}: {}", reply.text());
        fs::write(rig.work().join("main.rs"), "fn the_needle() {}\n").expect("written");
        let call = host.start("consult", json!({"prompt": "where is the_needle?", "agent": "offline"})).await;
        let peak = peak_until_answered(&rig, &host, call, Duration::ZERO, None).await;
        assert!(peak < PLENTY, "{what}, offline: {} MB", peak >> 20);
        let reply = host.reply(call).await.expect_success();
        assert!(reply.text().contains("main.rs"), "{what}: {}", reply.text());
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn nobody_else_says_what_is_ignored_above_or_within_a_directory() {
    let mut rig = new_rig();
    // A directory everybody may write to, above the one that is asked about, and one within a repository of ours.
    symlink("/dev/zero", rig.path(".gitignore")).expect("a link");
    let mut host = rig.serve().await;
    let call = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    let peak = peak_until_answered(&rig, &host, call, Duration::from_secs(1), Some("go")).await;
    assert!(peak < PLENTY, "{} MB", peak >> 20);
    let reply = host.reply(call).await.expect_success();
    assert!(!reply.has("workspace_changed"), "what is above is nobody's business: {:#}", reply.0);
    repository(&rig.work());
    fs::write(rig.work().join(".gitignore"), "*.rs\n").expect("written");
    if give_away(&rig.work().join(".gitignore"), 65_533) {
        fs::write(rig.work().join("main.rs"), "fn the_needle() {}\n").expect("written");
        let reply = host.call("consult", json!({"prompt": "the_needle?", "agent": "offline"})).await.expect_success();
        assert!(reply.text().contains("main.rs") && reply.text().contains("another user's): 1"), "{}", reply.text());
        assert!(reply["workspace_changed"].is_null(), "{:#}", reply.0);
    }
    places::remove(&rig.path(".gitignore"));
    rig.stop_and_check_invariants([host]).await;
}

/// What a word search for the marker says.
async fn searched(host: &mut TestClient, cwd: &Path) -> Reply {
    host.call("consult", json!({"prompt": "where is the_needle?", "agent": "offline", "cwd": cwd})).await
}

/// A directory with something to be found in it.
#[expect(clippy::expect_used, reason = "what goes wrong in a rig fails the case")]
fn place(rig: &Rig, name: &str) -> PathBuf {
    let dir = rig.path(name);
    fs::create_dir_all(&dir).expect("made");
    fs::write(dir.join("main.rs"), "fn the_needle() {}\n").expect("written");
    dir
}

#[track_caller]
fn assert_refused(reply: &Reply, part: &str) {
    let detail = reply.0.to_string();
    assert!(reply.is_error() && detail.contains(part), "{part}: {:#}", reply.0);
}

const OUTSIDE: &str = "is outside of what this server may look into";
const SECRETS: &str = "is a store of secrets";

#[tokio::test]
async fn a_client_looks_where_the_server_was_started_and_where_the_configuration_says() {
    for isolation in ["in_process", "process"] {
        let mut rig = new_rig().with("PHONE_OPUS_ISOLATION", isolation);
        let (elsewhere, inside, listed) = (place(&rig, "elsewhere"), place(&rig, "work/src"), place(&rig, "listed"));
        let keys = place(&rig, "work/.ssh");
        symlink(&elsewhere, rig.work().join("link")).expect("a link");
        symlink(&keys, rig.work().join("keys")).expect("a link");
        rig.set("PHONE_OPUS_WORKSPACES", listed.display().to_string());
        let mut host = rig.serve().await;
        for allowed in [&inside, &rig.work(), &listed, &rig.work().join("src/../src")] {
            searched(&mut host, allowed).await.expect_success();
        }
        for outside in
            [&elsewhere, &rig.path(""), &rig.work().join("link"), &rig.work().join("../elsewhere"), &rig.path("home")]
        {
            let reply = searched(&mut host, outside).await;
            assert_refused(&reply, OUTSIDE);
            assert_refused(&reply, "PHONE_OPUS_WORKSPACES");
        }
        for secret in [&keys, &rig.work().join("keys"), &rig.path("state")] {
            assert_refused(&searched(&mut host, secret).await, SECRETS);
        }
        assert_refused(&host.call("consult_jobs", json!({"cwd": elsewhere})).await, OUTSIDE);
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn what_was_asked_in_one_place_is_not_read_from_another() {
    let mut rig = new_rig();
    let (one, two) = (place(&rig, "one"), place(&rig, "two"));
    let mut first = rig.host_in(&one);
    first.handshake(REVISION).await;
    let job = first.consult(&rig.answering("42")).await.expect_success().str("job_id").to_owned();
    let running = first.consult_in_background(&rig.hanging("begun")).await;
    rig.wait_for_sign("begun").await;
    let mut second = rig.host_in(&two);
    second.handshake(TASKS).await;
    let listed = second.call("consult_jobs", json!({"scope": "all"})).await;
    assert_eq!(listed["jobs"], json!([]), "{:#}", listed.0);
    for job in [&job, &running] {
        assert_refused(&second.call("consult_job", json!({"job_id": job})).await, "workspaces");
        assert_refused(&second.call("consult_cancel", json!({"job_id": job})).await, "workspaces");
        for method in ["tasks/get", "tasks/result", "tasks/cancel"] {
            let answer = second.request(method, json!({"taskId": job})).await;
            assert!(answer["error"]["message"].to_string().contains("outside"), "{method}: {answer}");
        }
    }
    assert_eq!(second.request("tasks/list", json!({})).await["result"]["tasks"], json!([]));
    let listed = first.call("consult_jobs", json!({"scope": "all"})).await;
    assert_eq!(listed["jobs"].as_array().map(Vec::len), Some(2), "its own are there: {:#}", listed.0);
    first.call("consult_job", json!({"job_id": job})).await.expect_success();
    let ended = first.call("consult_cancel", json!({"job_id": running})).await;
    assert_eq!(ended["status"], "cancelled", "{:#}", ended.0);
    rig.stop_and_check_invariants([first, second]).await;
}

#[tokio::test]
async fn roots_are_asked_for_once_declared_and_count_until_they_change() {
    for isolation in ["in_process", "process"] {
        let mut rig = new_rig().with("PHONE_OPUS_ISOLATION", isolation);
        let (one, two) = (place(&rig, "a root"), place(&rig, "two"));
        let mut host = rig.host();
        host.handshake_with_roots(REVISION).await;
        host.ping().await;
        host.answer_roots(1, &[&one]).await;
        searched(&mut host, &one).await.expect_success();
        assert_refused(&searched(&mut host, &two).await, OUTSIDE);
        host.notify("notifications/roots/list_changed", json!({})).await;
        // The consult waits for the answer; the question is not in its way.
        let asked = json!({"prompt": "the_needle?", "agent": "offline", "cwd": two});
        let call = host.start("consult", asked).await;
        host.answer_roots(2, &[&two]).await;
        host.reply(call).await.expect_success();
        assert_refused(&searched(&mut host, &one).await, OUTSIDE);
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_answer_for_its_roots_has_none_and_holds_nothing_up() {
    let mut rig = new_rig();
    let (one, mut host) = (place(&rig, "one"), rig.host());
    host.handshake_with_roots(REVISION).await;
    host.consult(&rig.answering("42")).await.expect_success();
    let began = Instant::now();
    assert_refused(&searched(&mut host, &one).await, OUTSIDE);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    // The stateless era has no requests of ours, and an answer nobody asked for is none.
    let mut other = rig.host();
    other.line(&json!({"jsonrpc": "2.0", "id": "phone-opus-roots-1", "result": {"roots": [{"uri": format!("file://{}", one.display())}]}}).to_string()).await;
    let arguments = json!({"prompt": "the_needle?", "agent": "offline", "cwd": one});
    let call = json!({"name": "consult", "arguments": arguments, "_meta": envelope()});
    let answer = other.request("tools/call", call).await;
    assert!(answer.to_string().contains(OUTSIDE), "{answer}");
    assert!(other.notifications("roots/list").is_empty());
    rig.stop_and_check_invariants([host, other]).await;
}

#[tokio::test]
async fn a_server_started_where_everything_begins_takes_roots_or_what_lies_below_the_home() {
    for start in ["/", "home"] {
        let mut rig = new_rig();
        let (project, elsewhere) = (rig.at_home("project"), place(&rig, "elsewhere"));
        fs::write(project.join("main.rs"), "fn the_needle() {}\n").expect("written");
        rig.at_home(".config/gcloud");
        let start = if start == "/" { PathBuf::from("/") } else { rig.path(start) };
        let mut host = rig.host_in(&start);
        host.handshake(REVISION).await;
        assert_refused(&host.consult(&rig.answering("never")).await, "`cwd` is missing");
        searched(&mut host, &project).await.expect_success();
        for outside in [&elsewhere, &rig.path("home"), Path::new("/etc")] {
            assert_refused(&searched(&mut host, outside).await, OUTSIDE);
        }
        assert_refused(&searched(&mut host, &rig.path("home/.config/gcloud")).await, SECRETS);
        let mut rooted = rig.host_in(&start);
        rooted.handshake_with_roots(REVISION).await;
        rooted.answer_roots(1, &[&elsewhere]).await;
        let reply = rooted.call("consult", json!({"prompt": "the_needle?", "agent": "offline"})).await.expect_success();
        assert_eq!(reply["cwd"], json!(elsewhere), "its one root is no guess");
        assert_refused(&searched(&mut rooted, &project).await, OUTSIDE);
        rig.stop_and_check_invariants([host, rooted]).await;
    }
}

/// Asks for an upgrade and waits until it was the last one of so many.
async fn upgrade(host: &mut TestClient, count: u64) {
    host.signal(Signal::USR2);
    let waiting = Waiting::until("the upgrade", Duration::from_secs(60));
    loop {
        let health = host.health().await;
        if health["rollout"]["adopted"].as_u64() >= Some(count) {
            return;
        }
        waiting.again(|| format!("{:#}", health.0)).await;
    }
}

#[tokio::test]
async fn what_a_client_works_on_goes_through_an_upgrade() {
    let mut rig = new_rig();
    let (one, two) = (place(&rig, "one"), place(&rig, "two"));
    let mut host = rig.host();
    host.handshake_with_roots(REVISION).await;
    host.answer_roots(1, &[&one]).await;
    searched(&mut host, &one).await.expect_success();
    upgrade(&mut host, 1).await;
    searched(&mut host, &one).await.expect_success();
    assert_eq!(host.notifications("roots/list").len(), 1, "what is known is not asked again");
    host.notify("notifications/roots/list_changed", json!({})).await;
    host.ping().await;
    upgrade(&mut host, 2).await;
    host.answer_roots(2, &[&two]).await;
    searched(&mut host, &two).await.expect_success();
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn the_command_line_is_bound_by_secrets_alone_and_the_offline_agent_passes_them_over() {
    let rig = new_rig().with("PHONE_OPUS_LOG", "warn");
    let elsewhere = place(&rig, "elsewhere");
    let ask = async |dir: &Path| {
        rig.run(&["consult", "--agent", "offline", "--cwd", dir.to_str().unwrap_or_default(), "the_needle?"]).await
    };
    let output = ask(&elsewhere).await;
    assert!(output.status.success(), "{output:?}");
    for secret in ["elsewhere/.ssh", "elsewhere/snap/firefox", "elsewhere/.config/gcloud", "elsewhere/visible-state"] {
        place(&rig, secret);
    }
    fs::write(elsewhere.join("visible-state/phone-opus.db"), "the_needle").expect("written");
    for secret in [".ssh", "snap/firefox/", ".config/gcloud", "visible-state"] {
        let output = ask(&elsewhere.join(secret)).await;
        assert_eq!(output.status.code(), Some(2), "{secret}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(SECRETS), "{secret}: {output:?}");
    }
    for around in [elsewhere.clone(), elsewhere.join(".config")] {
        let output = ask(&around).await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        for secret in ["snap/firefox/main.rs", "gcloud/main.rs", "visible-state/main.rs", ".ssh/main.rs"] {
            assert!(!said.contains(secret), "{secret}: {said}");
        }
    }
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_project_file_that_is_anything_at_all_stops_and_hangs_nothing_and_shows_nothing() {
    for stand in Stand::ALL {
        let mut rig = new_rig();
        let file = rig.work().join(".phone-opus.toml");
        if !stand.put(&file) {
            continue;
        }
        left_out(&mut rig, &format!("{stand:?}")).await;
        rig.stop_and_check_invariants([]).await;
    }
    for text in [
        "x",
        "unknown_key = 1",
        "aws_secret_access_key = wJalr-canary-secret",
        "claude_bin = \"/bin/false\"",
        "timeout_s = \"wJalr-canary-secret\"",
    ] {
        let mut rig = new_rig();
        fs::write(rig.work().join(".phone-opus.toml"), text).expect("written");
        left_out(&mut rig, text).await;
        rig.stop_and_check_invariants([]).await;
    }
}

#[tokio::test]
async fn a_users_configuration_that_is_no_file_of_a_reasonable_size_is_named_and_hangs_nothing() {
    // A secret of the user's own is no secret to them; what is somebody's input is nobody's configuration.
    let others = Stand::ALL.into_iter().filter(|stand| !matches!(stand, Stand::LinkToSecret));
    for stand in others {
        let mut rig = new_rig();
        let file = rig.user_configuration();
        if !stand.put(&file) {
            continue;
        }
        for arguments in [&["mcp", "serve"][..], &["consult", "what?"], &["doctor"]] {
            let output = rig.run(arguments).await;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{stand:?}, {arguments:?}: {output:?}");
            assert!(said.contains("config.toml"), "{stand:?}, {arguments:?}: {said}");
        }
        // What needs no configuration works without.
        let listed = rig.run(&["jobs", "list"]).await;
        assert!(listed.status.success(), "{stand:?}: {listed:?}");
        rig.stop_and_check_invariants([]).await;
    }
}

/// A server, a consult from a shell and `doctor` do as they would without the project's file, and say that it was left out.
#[expect(clippy::expect_used, reason = "what goes wrong in a rig fails the case")]
async fn left_out(rig: &mut Rig, what: &str) {
    let mut host = rig.serve().await;
    let reply = host.consult(&rig.answering("42")).await.expect_success();
    let place = reply["project_file_left_out"]["place"].as_str().unwrap_or_default().to_owned();
    assert!(place.ends_with("work/.phone-opus.toml"), "{what}: {:#}", reply.0);
    assert!(reply.text().contains("was left out: it "), "{what}: {}", reply.text());
    let health = host.health().await;
    assert_eq!(health["project_file_left_out"]["place"], json!(place), "{what}: {:#}", health.0);
    host.finish().await;
    let asked = rig.run(&["consult", &rig.answering("42")]).await;
    assert!(asked.status.success(), "{what}: {asked:?}");
    rig.run(&["doctor"]).await;
    for shown in [reply.0.to_string(), health.0.to_string(), String::from_utf8_lossy(&asked.stderr).into_owned()] {
        assert!(!shown.contains("wJalr"), "{what}: {shown}");
    }
    let log = fs::read_to_string(rig.path("host-1.stderr")).expect("a log");
    assert!(!log.contains("wJalr"), "{what}: {log}");
}

#[tokio::test]
async fn a_project_lowers_the_users_limits_and_raises_none() {
    let mut rig = new_rig();
    rig.configure("timeout_s = 2\n");
    fs::write(rig.work().join(".phone-opus.toml"), "timeout_s = 86400\nstall_s = 86400\n").expect("written");
    let mut host = rig.serve().await;
    let reply = host.consult(&rig.hanging("one")).await;
    assert_eq!(reply.code(), "deadline_exceeded", "{:#}", reply.0);
    host.finish().await;
    rig.configure("timeout_s = 300\n");
    fs::write(rig.work().join(".phone-opus.toml"), "timeout_s = 1\n").expect("written");
    let mut host = rig.serve().await;
    let reply = host.consult(&rig.hanging("two")).await;
    assert_eq!(reply.code(), "deadline_exceeded", "{:#}", reply.0);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_users_configuration_that_is_no_file_stops_the_start_and_hangs_nothing() {
    for stand in [Stand::Fifo, Stand::LinkToZero, Stand::LinkToItself, Stand::SparseGiant, Stand::Directory] {
        let mut rig = new_rig();
        for file in rig.configuration() {
            assert!(stand.put(&file), "{stand:?}");
        }
        let output = rig.run(&["mcp", "serve"]).await;
        assert_eq!(output.status.code(), Some(2), "{stand:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("config.toml"), "{stand:?}: {output:?}");
        rig.stop_and_check_invariants([]).await;
    }
}

#[tokio::test]
async fn a_server_serves_wherever_it_was_started() {
    use std::os::unix::ffi::OsStrExt as _;
    let mut rig = new_rig();
    let listed = place(&rig, "listed");
    rig.set("PHONE_OPUS_WORKSPACES", listed.display().to_string());
    let bytes = rig.path("work").join(OsStr::from_bytes(b"caf\xe9"));
    let gone = rig.path("gone");
    // Some file systems take no such name.
    let mut starts: Vec<(&str, PathBuf)> = Vec::new();
    if fs::create_dir(&bytes).is_ok() {
        starts.push(("not UTF-8", bytes.clone()));
    }
    fs::create_dir(&gone).expect("made");
    starts.push(("removed", gone.clone()));
    for (what, start) in starts {
        let mut host = rig.host_in(&start);
        if start == gone {
            fs::remove_dir(&gone).expect("removed");
        }
        host.handshake(REVISION).await;
        let reply = host.consult(&rig.answering("never")).await;
        assert_eq!(reply.code(), "invalid_input", "{what}: {:#}", reply.0);
        assert_refused(&reply, "`cwd` is missing");
        searched(&mut host, &listed).await.expect_success();
        let listed = host.call("consult_jobs", json!({})).await;
        assert!(!listed.is_error(), "{what}: {:#}", listed.0);
        host.finish().await;
    }
    if bytes.exists() {
        symlink(&bytes, rig.path("work/plain")).expect("a link");
        let mut host = rig.serve().await;
        assert_refused(&searched(&mut host, &rig.path("work/plain")).await, "is not UTF-8");
        host.finish().await;
        let mut command = rig.command(&["consult", "--agent", "offline", "the_needle?"]);
        let output = command.current_dir(&bytes).output().await.expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("is not UTF-8"), "{output:?}");
    }
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_prompt_on_stdin_may_hold_any_bytes() {
    use tokio::io::AsyncWriteExt as _;
    let rig = new_rig().with("PHONE_OPUS_LOG", "warn");
    let mut command = rig.command(&["consult", "-"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    let mut prompt = rig.answering("42").into_bytes();
    prompt.extend(b"\n+caf\xe9\n");
    stdin.write_all(&prompt).await.expect("taken");
    drop(stdin);
    let output = child.wait_with_output().await.expect("it ends");
    assert!(output.status.success() && output.stdout.starts_with(b"42"), "{output:?}");
    rig.expect_runs(1);
    rig.stop_and_check_invariants([]).await;
}
