//! Where a consult may look, and what a checkout can do to us.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use phone_opus::testkit::places::{self, Stand, give_away};
use phone_opus::testkit::{Client, Rig, Sent, processes, tried_program};
use serde_json::json;

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

/// More memory than any process of ours needs for a small directory, in a build without optimisation.
const PLENTY: u64 = 200 << 20;

/// Watches the memory of every process of the world until a call is answered, for at least so long.
async fn peak_until_answered(rig: &Rig, client: &Client, call: Sent, at_least: Duration, go: Option<&str>) -> u64 {
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
