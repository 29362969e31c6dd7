//! Cells about what processes take over: from whoever started the server, and from the server itself.
//!
//! Owns: those cells. May not know: the others.

use rustix::fs::{Mode, OFlags};
use serde_json::json;

use super::super::processes::Role;
use super::super::starts::Start;
use super::{PLANTED, Seen, Tried, over, world};

/// What the runner, which its agent can look at first, holds of what is withheld from the agent.
pub(super) async fn in_the_runner(tried: &Tried) -> Seen {
    let mut rig = world(tried);
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    let environ = rig.runners().pop().and_then(|runner| runner.environment());
    rig.give_sign("go");
    host.reply(sent).await.expect_success();
    let seen = match environ {
        None => ("it cannot be read here".to_owned(), None),
        Some(text) => {
            let held = |name: &str, value: &str| {
                text.split('\0')
                    .any(|entry| entry.starts_with(&format!("{name}=")) || value.len() > 1 && entry.contains(value))
            };
            let words = PLANTED.map(|(_, name, value)| if held(name, value) { "yes" } else { "no" });
            let right = words.iter().all(|word| *word == "no");
            (words.join(", "), Some(right))
        }
    };
    over(&rig, host, seen).await
}

/// What the agent holds of a server that was started with a pipe of somebody else's.
pub(super) async fn descriptors(tried: &Tried) -> Seen {
    let rig = world(tried);
    let pipe = rig.path("foreign");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().is_ok_and(|made| made.success());
    // Read without waiting for the writer, which opens it without waiting for a reader then.
    let reader = rustix::fs::open(&pipe, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    if !made || reader.is_err() {
        return ("no pipe can be made here".to_owned(), None);
    }
    let mut rig = rig.with_start(Start::plain().holding(&pipe, 7));
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    let held = rig.all(Role::Agent).pop().and_then(|agent| {
        let dir = std::fs::read_dir(format!("/proc/{}/fd", agent.pid.as_raw_nonzero())).ok()?;
        let mut held: Vec<u32> = dir.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        held.sort_unstable();
        Some(held)
    });
    rig.give_sign("go");
    host.reply(sent).await.expect_success();
    let seen = match held {
        None => ("it cannot be seen here".to_owned(), None),
        Some(held) if held == [0, 1, 2] => ("its three streams".to_owned(), Some(true)),
        Some(held) => (format!("{held:?}"), Some(false)),
    };
    over(&rig, host, seen).await
}
