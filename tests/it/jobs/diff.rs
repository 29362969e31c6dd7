//! The argument `diff`: what git shows of a repository's changes, behind the caller's words. What a repository can name, and that
//! nothing of it is run, is tried where it is made (`src/tools/diff`).
//!
//! Laws: L3, L13.

#![expect(clippy::expect_used, clippy::print_stderr, reason = "helpers of tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use phone_opus::testkit::{Rig, tried_program};
use serde_json::{Value, json};

/// A world with git in it, and a repository with a change in its directory `work`; `None` where there is no git, said loudly.
fn new_rig() -> Option<Rig> {
    let path = std::env::var("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|dir| dir.is_absolute() && dir.join("git").is_file()) {
        eprintln!("SKIPPED: there is no git");
        return None;
    }
    let rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus"))).with("PATH", path);
    git(&rig.work(), &["init", "-q", "-b", "main"]);
    write(&rig.work().join("file.txt"), "one\n");
    git(&rig.work(), &["add", "file.txt"]);
    git(&rig.work(), &["commit", "-q", "-m", "so"]);
    write(&rig.work().join("file.txt"), "two\n");
    Some(rig)
}

fn write(file: &Path, text: &str) {
    std::fs::write(file, text).expect("written");
}

fn git(dir: &Path, words: &[&str]) {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=a", "-c", "user.email=a@b"]).args(words).current_dir(dir);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    assert!(command.status().expect("git is run").success(), "{words:?}");
}

#[tokio::test]
async fn the_changes_stand_behind_the_words_in_what_every_agent_is_asked() {
    for place in ["in_process", "process"] {
        let Some(rig) = new_rig() else { return };
        let mut rig = rig.with("PHONE_OPUS_ISOLATION", place);
        let mut host = rig.serve().await;
        let words = rig.answering("42");
        for (more, base) in [
            (json!({"diff": true}), "HEAD"),
            (json!({"diff": "true", "cwd": rig.path("work/other")}), "HEAD"),
            (json!({"diff": "main"}), "main"),
            (json!({"diff": "HEAD", "agents": ["claude", "codex"]}), "HEAD"),
        ] {
            let known: Vec<_> = rig.jobs().await.into_iter().map(|job| job.id).collect();
            let mut arguments = json!({"prompt": words});
            arguments.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            host.call("consult", arguments).await.expect_success();
            for job in rig.jobs().await.into_iter().filter(|job| !known.contains(&job.id)) {
                let (prompt, heading) = (&job.request.prompt, format!("{words}\n\n## git diff {base}\n\ndiff --git "));
                assert!(prompt.starts_with(&heading) && prompt.contains("-one\n+two\n"), "{more}: {prompt}");
                let asked = job.request.diff.as_ref().map(|diff| (diff.base.as_str(), diff.at));
                assert_eq!((asked, job.request.words()), (Some((base, words.len())), words.as_str()));
            }
        }
        host.call("consult", json!({"prompt": words, "diff": false})).await.expect_success();
        rig.expect_runs(6);
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn the_same_key_is_the_same_consult_whatever_has_changed_since() {
    let Some(mut rig) = new_rig() else { return };
    let mut host = rig.serve().await;
    let words = rig.answering("42");
    let asked = |base: &str| json!({"prompt": words, "diff": base, "request_key": "k"});
    let first = host.call("consult", asked("HEAD")).await.expect_success();
    write(&rig.work().join("file.txt"), "three\n");
    let again = host.call("consult", asked("HEAD")).await.expect_success();
    assert_eq!(first["job_id"], again["job_id"]);
    host.call("consult", asked("main")).await.expect_fault("request_key_conflict");
    host.call("consult", json!({"prompt": words, "request_key": "k"})).await.expect_fault("request_key_conflict");
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_diff_that_is_not_to_be_had_is_told_before_anything_is_started() {
    let Some(mut rig) = new_rig() else { return };
    rig.configure("[agents.far]\nagent = \"claude\"\nexec = \"unix:/no/such\"\nworkspaces = [\"/far\"]\n");
    let canary = rig.path("sung");
    let elsewhere: PathBuf = rig.path("elsewhere");
    let mut host = rig.serve().await;
    let words = rig.answering("42");
    for (laid, more, part) in [
        ("", json!({"diff": "nothing"}), "`diff` names \"nothing\", which is no commit of the repository"),
        ("", json!({"diff": "--output=x"}), "`diff` is \"--output=x\"; accepted: true for what is not committed"),
        ("", json!({"diff": 7}), "`diff` is 7"),
        ("", json!({"diff": true, "agent": "far"}), "`diff` is made on this machine, and \"far\" looks at"),
        ("", json!({"diff": true, "cwd": elsewhere}), "`cwd` does not exist"),
        ("filter", json!({"diff": true}), "configuration names a program that git would run (filter.x.clean)"),
        ("same", json!({"diff": true}), "`diff` shows nothing: what git tracks is as it is in HEAD"),
        ("none", json!({"diff": true}), "`diff` is of a repository, and there is none at or above"),
    ] {
        match laid {
            "filter" => git(&rig.work(), &["config", "filter.x.clean", &format!("touch {}", canary.display())]),
            "same" => {
                git(&rig.work(), &["config", "--unset", "filter.x.clean"]);
                write(&rig.work().join("file.txt"), "one\n");
            }
            "none" => std::fs::remove_dir_all(rig.work().join(".git")).expect("it was there"),
            _ => {}
        }
        let mut arguments = json!({"prompt": words});
        arguments.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let reply = host.call("consult", arguments).await.expect_fault("invalid_input");
        assert!(reply.text().contains(part), "{part} in {}", reply.text());
    }
    assert!(rig.jobs().await.is_empty() && rig.runs().is_empty() && !canary.exists());
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_repository_is_shown_only_where_all_of_it_may_be_looked_into() {
    let Some(mut rig) = new_rig() else { return };
    let mut host = rig.host_in(&rig.path("work/other"));
    host.handshake("2025-11-25").await;
    let reply = host.call("consult", json!({"prompt": rig.answering("42"), "diff": true})).await;
    let reply = reply.expect_fault("invalid_input");
    assert!(reply.text().contains("`diff` is of the whole repository, whose root is "), "{}", reply.text());
    assert!(rig.jobs().await.is_empty());
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn from_the_command_line_a_diff_is_an_option_with_a_base_or_without() {
    let Some(rig) = new_rig() else { return };
    for (option, base) in [("--diff", "HEAD"), ("--diff=main", "main")] {
        let words = rig.answering("42");
        let run = rig.run(&["consult", "--no-stdin", option, &words]).await;
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let heading = format!("{words}\n\n## git diff {base}\n\n");
        assert!(rig.jobs().await.iter().any(|job| job.request.prompt.starts_with(&heading)), "{base}");
    }
    let run = rig.run(&["consult", "--no-stdin", "--json", "--diff=nothing", "what?"]).await;
    assert_eq!(run.status.code(), Some(2));
    let said: Value = serde_json::from_slice(&run.stdout).unwrap_or_default();
    assert!(said.is_null(), "{said}");
    rig.check_invariants().await;
}
