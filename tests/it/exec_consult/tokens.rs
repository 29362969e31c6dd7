//! Consults that bring a token over a socket.
//!
//! Who brings one is judged by it alone, be it our own user: so a wrong one shows that the right one was what let the other in.
//!
//! Laws: L3, L7, L13.

use std::path::{Path, PathBuf};

use phone_opus::internals::base::fault::FaultCode;
use phone_opus::internals::jobs::JobState;

use super::kit::{House, fault, write_token};

const TOKEN: &str = "3f1c9a7e5b8d4206a1b2c3d4e5f60718";

#[tokio::test]
async fn a_consult_brings_its_token_over_a_socket_and_a_wrong_one_starts_nothing() {
    let mut house = House::behind_a_token(TOKEN).await;
    let (right, wrong, open) = (house.rig.path("right"), house.rig.path("wrong"), house.rig.path("open"));
    write_token(&right, TOKEN, 0o600);
    write_token(&wrong, &TOKEN.replace('3', "4"), 0o600);
    write_token(&open, TOKEN, 0o644);
    let missing = house.rig.path("missing");

    let at = house.exec();
    house.name_agent_by(&at, Some(&right));
    let mut host = house.rig.serve().await;
    let reply = host.consult(&house.rig.answering("42")).await.expect_success();
    assert_eq!(reply["response"], "42", "{:#}", reply.0);
    host.finish().await;

    for (file, words) in [(&wrong, "missing or wrong (401)"), (&open, "cannot be read"), (&missing, "cannot be read")] {
        house.name_agent_by(&at, Some(file));
        let mut host = house.rig.serve().await;
        let said = host.consult(&house.rig.answering("43")).await.expect_fault("exec_refused");
        assert!(said.text().contains(words), "{}: {}", file.display(), said.text());
        host.finish().await;
    }
    house.rig.expect_runs(1);
    let refused = house.rig.jobs().await;
    let refused: Vec<_> = refused.iter().filter(|job| job.state == JobState::Failed).collect();
    assert_eq!(refused.len(), 3);
    for job in refused {
        assert_eq!(fault(job), Some(FaultCode::ExecRefused));
    }
    // What opens a machine is in the files it was put into, and in none of ours or the agent's.
    let mut holders = Vec::new();
    holders_below(&house.rig.path(""), &mut holders);
    holders.sort();
    assert_eq!(holders, ["open", "right", "token"].map(|name| house.rig.path(name)));
    house.close([]).await;
}

/// The files below a directory that hold the token.
fn holders_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => holders_below(&entry.path(), found),
            Ok(kind) if kind.is_file() => {
                let bytes = std::fs::read(entry.path()).unwrap_or_default();
                if bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes()) {
                    found.push(entry.path());
                }
            }
            _ => {}
        }
    }
}
