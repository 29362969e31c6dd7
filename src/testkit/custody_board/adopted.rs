//! Cells about servers whose consults the next one adopts, as a daemon's are: such a server is killed.
//!
//! Owns: those cells. May not know: the others.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use super::super::client::{REVISION, TestClient};
use super::super::processes;
use super::super::rig::Rig;
use super::super::wait::{PATIENCE, Waiting};
use super::{Seen, Tried, begun, lawful, leaving, listed, over, world};

/// Seconds consults wait for the next server here; a daemon's wait half a minute.
const GRACE_S: u64 = 4;

/// A server whose consults may be adopted.
async fn serve(rig: &mut Rig) -> TestClient {
    let grace = GRACE_S.to_string();
    let mut client = rig.host_with(&["mcp", "serve", "--orphan-grace-s", &grace], &rig.work());
    client.handshake(REVISION).await;
    client
}

async fn kill(host: &mut TestClient) {
    host.signal(Signal::KILL);
    host.exit().await;
    host.silence().await;
}

/// It is killed in the middle of a synchronous consult, and the call is made again at the next one.
pub(super) async fn asked_again(tried: &Tried) -> Seen {
    let mut rig = world(tried);
    let mut host = serve(&mut rig).await;
    let asked = json!({"prompt": rig.waiting("begun", "go"), "request_key": "one"});
    let sent = host.start("consult", asked.clone()).await;
    rig.wait_for_sign("begun").await;
    host.give_up_on(sent);
    kill(&mut host).await;
    let mut next = serve(&mut rig).await;
    let sent = next.start("consult", asked).await;
    let waiting = Waiting::until("the consult is adopted", PATIENCE);
    while next.call("health_snapshot", json!({})).await["adopted_jobs"] != 1 {
        waiting.again(|| "not yet".to_owned()).await;
    }
    // Longer than it waits for a server, and for its callers.
    tokio::time::sleep(Duration::from_secs(GRACE_S + 1)).await;
    rig.give_sign("go");
    let reply = next.reply(sent).await;
    let runs = rig.runs().len();
    let right = !reply.is_error() && reply["response"] == "done" && runs == 1;
    let word = if right { "answered" } else { "not answered" };
    over(&rig, next, (format!("{word}, {runs} run"), Some(right))).await
}

/// Three such servers are killed one after the other, each when it has adopted the consult, and no fourth comes.
pub(super) async fn three_in_a_row(tried: &Tried) -> Seen {
    let mut rig = world(tried);
    let mut host = serve(&mut rig).await;
    let (sent, _) = begun(&rig, &mut host, &[]).await;
    sent.into_iter().for_each(|sent| host.give_up_on(sent));
    kill(&mut host).await;
    for _ in 0..2 {
        let mut next = serve(&mut rig).await;
        let waiting = Waiting::until("the consult is adopted", PATIENCE);
        while next.call("health_snapshot", json!({})).await["adopted_jobs"] != 1 {
            waiting.again(|| "not yet".to_owned()).await;
        }
        kill(&mut next).await;
    }
    if !processes::are_visible() {
        return ("processes cannot be seen here".to_owned(), None);
    }
    let began = Instant::now();
    let (kept, took) = leaving(&rig, |left| left.is_empty()).await;
    let job = rig.only_job_over().await;
    let in_time = began.elapsed() > Duration::from_secs(GRACE_S - 1);
    let seen = format!("{} after {:.1} s; {}", listed(&kept), took.as_secs_f64(), job.state.as_str());
    lawful(&rig, &[], (seen, Some(kept.is_empty() && in_time))).await
}
