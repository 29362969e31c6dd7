//! Cells about clients that share a daemon: it is killed, alone and with the runner, and a client goes while another stays.
//!
//! Owns: those cells. May not know: the others.

use rustix::process::Signal;
use serde_json::json;

use super::super::processes::Role;
use super::super::scripted_agent::Step;
use super::super::wait::{PATIENCE, Waiting};
use super::{CustodyRow, Loss, Seen, Tried, alive, begun, goes_on, lawful, leaving, listed, over, row, world};

/// The questions, asked.
pub(super) async fn rows(tried: &Tried) -> Vec<Option<CustodyRow>> {
    let deaf = [Step::IgnoreTerm];
    vec![
        row(tried, "alive after SIGTERM to its bridge", alive(tried, Loss::Host(Signal::TERM), &[])).await,
        row(tried, "alive after SIGKILL of its bridge", alive(tried, Loss::Host(Signal::KILL), &[])).await,
        row(tried, "the same, an agent deaf to SIGTERM", alive(tried, Loss::Host(Signal::KILL), &deaf)).await,
        row(tried, "background consult after SIGKILL of its bridge", goes_on(tried)).await,
        row(tried, "a consult after SIGKILL of the daemon", daemon_killed(tried, 1)).await,
        row(tried, "the same, killed three times", daemon_killed(tried, 3)).await,
        row(tried, "alive after SIGKILL of daemon and runner", daemon_and_runner(tried)).await,
        row(tried, "alive after SIGKILL of everything but the agent", everything(tried)).await,
        row(tried, "another client's consult after a disconnect", another_goes(tried)).await,
    ]
}

/// Killed so often in the middle of a synchronous consult, which its client has asked for once.
async fn daemon_killed(tried: &Tried, times: usize) -> Seen {
    let mut rig = world(tried);
    let mut client = rig.serve().await;
    let sent = client.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    for _ in 0..times {
        rig.kill(Role::Host);
        // Answered by the next one, which has the consult by then.
        client.call("consult_jobs", json!({})).await;
    }
    rig.give_sign("go");
    let reply = client.reply(sent).await;
    let runs = rig.runs().len();
    let right = !reply.is_error() && reply["response"] == "done" && runs == 1;
    let word = if right { "answered".to_owned() } else { format!("`{}`", reply.code()) };
    over(&rig, client, (format!("{word}, {runs} run"), Some(right))).await
}

/// Nobody is left who could end the agent but the next daemon.
async fn daemon_and_runner(tried: &Tried) -> Seen {
    let mut rig = world(tried);
    let mut client = rig.serve().await;
    let (sent, _) = begun(&rig, &mut client, &[]).await;
    // The runner first: it would end the agent when it heard that nobody comes.
    rig.kill(Role::Runner);
    rig.kill(Role::Host);
    let told = match sent {
        Some(sent) => client.reply(sent).await.code().to_owned(),
        None => String::new(),
    };
    let (kept, took) = leaving(&rig, |left| left.is_empty()).await;
    let job = rig.only_job_over().await;
    let seen = format!(
        "{} {:.1} s after its client was told `{}`; {}",
        listed(&kept),
        took.as_secs_f64(),
        told,
        job.state.as_str()
    );
    over(&rig, client, (seen, Some(kept.is_empty() && told == "runner_lost"))).await
}

/// The client's own process too. The next daemon, whoever starts it, finds what is left.
async fn everything(tried: &Tried) -> Seen {
    let mut rig = world(tried);
    let mut client = rig.serve().await;
    let (sent, _) = begun(&rig, &mut client, &[]).await;
    sent.into_iter().for_each(|sent| client.give_up_on(sent));
    client.expect_end();
    for role in [Role::Bridge, Role::Host, Role::Runner] {
        rig.kill(role);
    }
    client.exit().await;
    client.silence().await;
    let mut next = rig.serve().await;
    // It looks for a daemon when it is asked for what one has.
    next.call("consult_jobs", json!({})).await;
    let (kept, took) = leaving(&rig, |left| left.is_empty()).await;
    let job = rig.only_job_over().await;
    next.finish().await;
    let seen =
        format!("{} {:.1} s after the next client came; {}", listed(&kept), took.as_secs_f64(), job.state.as_str());
    lawful(&rig, &[client.exchange(), next.exchange()], (seen, Some(kept.is_empty()))).await
}

/// One of two clients of a daemon hangs up in the middle of its consult.
async fn another_goes(tried: &Tried) -> Seen {
    let mut rig = world(tried);
    let (mut first, mut second) = (rig.serve().await, rig.serve().await);
    let asked =
        first.start("consult", json!({"prompt": rig.doing(vec![Step::Touch(rig.sign("first")), Step::Hang])})).await;
    rig.wait_for_sign("first").await;
    let sent = second.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    first.give_up_on(asked);
    first.finish().await;
    let waiting = Waiting::until("one agent is left", PATIENCE);
    while rig.agents().len() > 1 {
        waiting.again(|| format!("{:?}", rig.agents())).await;
    }
    rig.give_sign("go");
    let reply = second.reply(sent).await;
    second.finish().await;
    let right = !reply.is_error() && reply["response"] == "done";
    let seen = if right { "answered; the one of who left is ended".to_owned() } else { format!("`{}`", reply.code()) };
    lawful(&rig, &[first.exchange(), second.exchange()], (seen, Some(right))).await
}
