//! The custody scoreboard: what becomes of prompts, secrets and processes, asked of the real program with the scripted
//! agent.
//!
//! Owns: the cells, what is right in each, the table. May not know: how a program gets them right, or who asks. They are
//! the questions that other servers of this kind were asked with a fake agent: one that starts a process of its own, says
//! something, and sleeps.
//!
//! Invariants: (1) each cell has a world of its own, in which the laws are checked as well when it is over; (2) a cell that
//! fails is a row that says why, and the others are asked all the same; (3) what cannot be seen on a machine is said to be
//! unseen, not to be right.

#![expect(clippy::expect_used, reason = "what goes wrong in a cell fails the cell")]

mod adopted;
mod bridged;
mod inherited;
mod keys;
mod part;
mod trouble;

use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use rustix::process::Signal;
use serde_json::json;

use super::client::{Exchange, Sent, TestClient};
use super::processes::{self, Role};
use super::rig::{KEY, Rig, Run, Through};
use super::scripted_agent::{ForkPlace, Script, Step};
use super::wait::{PATIENCE, Waiting};
use crate::agents::MAX_PROMPT_BYTES;
use crate::jobs::Billing;

#[doc(hidden)]
pub use self::part::AgentPart;

/// How long what a consult started may outlive it before it counts as left alive: what others were given.
const LEFT_ALIVE: Duration = Duration::from_secs(6);

/// The long answer, in bytes; shorter for an agent that is given no prompt with such an answer in it.
const LONG_ANSWER: usize = 400_000;
const SHORTER_ANSWER: usize = 40_000;

/// The agent of a board that names none.
const USUAL: &str = "claude";

/// Bytes a reply about it may have: two shows (text and structured) of the 24,000 characters that are given at a time, and
/// the fields around them. Clients cut or refuse what is longer.
const LONG_REPLY: usize = 60_000;

/// What was planted in the host's environment and has no place in an agent's.
const PLANTED: [(&str, &str, &str); 3] = [
    ("key", "ANTHROPIC_API_KEY", KEY),
    ("marker", "CLAUDECODE", "1"),
    ("secret", "DATABASE_PASSWORD", "planted-secret-9c41"),
];

/// One cell of the scoreboard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustodyRow {
    /// The agent that answered, or was played.
    pub agent: String,
    /// What was asked.
    pub cell: &'static str,
    /// What was seen.
    pub seen: String,
    /// Whether that is right; `None` when this machine does not show it.
    pub right: Option<bool>,
}

/// How a consult that is under way is taken from under the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Withdrawn,
    Cancelled,
    Disconnect,
    Host(Signal),
    Runner,
    HostAndRunner,
}

/// What a cell has seen: in words, and whether it is right.
type Seen = (String, Option<bool>);

/// What is asked: a program, how its clients come to it, and who answers.
struct Tried {
    program: PathBuf,
    through: Through,
    part: AgentPart,
    /// Words a cell has to have in its name to be asked.
    only: Vec<String>,
}

/// Asks the program every question, and returns a row for each. Takes about a minute.
///
/// The program must be able to play the scripted agent (built with the feature `testkit`).
///
/// # Cancel safety
///
/// Safe: a world that is dropped ends its processes.
pub async fn run(program: impl Into<PathBuf>, through: Through) -> Vec<CustodyRow> {
    match AgentPart::named(USUAL) {
        Some(part) => run_as(program, through, part, Vec::new()).await,
        None => Vec::new(),
    }
}

/// The same with an agent that is chosen, and of the cells those that have all of these words in their names.
///
/// # Cancel safety
///
/// As [`run`].
#[doc(hidden)]
pub async fn run_as(
    program: impl Into<PathBuf>,
    through: Through,
    part: AgentPart,
    only: Vec<String>,
) -> Vec<CustodyRow> {
    let tried = &Tried { program: program.into(), through, part, only };
    let rows = of_any_door(tried).await.into_iter().chain(match through {
        Through::Streams => of_streams(tried).await,
        Through::Daemon => bridged::rows(tried).await,
    });
    rows.flatten().collect()
}

/// The questions that are the same whichever way a client comes.
async fn of_any_door(tried: &Tried) -> Vec<Option<CustodyRow>> {
    let deaf = [Step::IgnoreTerm];
    vec![
        row(tried, "where the prompt goes", prompt_channel(tried)).await,
        row(tried, "prompt of 200 KB", long_prompt(tried, 200_000)).await,
        row(tried, "prompt of 1 MB", long_prompt(tried, MAX_PROMPT_BYTES)).await,
        row(tried, "leaked to the agent: key, marker, secret", environment(tried)).await,
        row(tried, "keys of every agent: in the agent, by subscription", keys::reaching(tried, Billing::Subscription))
            .await,
        row(tried, "keys of every agent: in the agent, paid by key", keys::reaching(tried, Billing::ApiKey)).await,
        row(tried, "held by its runner: key, marker, secret", inherited::in_the_runner(tried)).await,
        row(tried, "descriptors in the agent, of a server that was given more", inherited::descriptors(tried)).await,
        row(tried, "alive after the call was cancelled", alive(tried, Loss::Withdrawn, &[])).await,
        row(tried, "alive after `consult_cancel`", alive(tried, Loss::Cancelled, &[])).await,
        row(tried, "the same, an agent deaf to SIGTERM", alive(tried, Loss::Cancelled, &deaf)).await,
        row(tried, "alive after disconnect", alive(tried, Loss::Disconnect, &[])).await,
        row(tried, "alive after SIGKILL of the runner", alive(tried, Loss::Runner, &[])).await,
        row(tried, "answer of 400 KB, bytes of the reply", long_answer(tried)).await,
        row(tried, "exit code 3 with output", exit_code(tried, true)).await,
        row(tried, "exit code 3 with a whole answer", exit_code(tried, false)).await,
        row(tried, "a whole answer, then it hangs", hangs_after_its_answer(tried)).await,
        row(tried, "another payer, behind a byte order mark", payer(tried, Some("\u{feff}"))).await,
        row(tried, "at work, and no word of who pays", payer(tried, None)).await,
        row(tried, "an answer while another program holds the store", trouble::held_store(tried)).await,
        row(tried, "an answer on a full disk", trouble::full_disk(tried)).await,
        row(tried, "alive after `consult_cancel` of a job whose runner stands still", trouble::frozen_runner(tried))
            .await,
    ]
}

/// The questions about a server that ends with its client, and about what is no server.
async fn of_streams(tried: &Tried) -> Vec<Option<CustodyRow>> {
    let deaf = [Step::IgnoreTerm];
    vec![
        row(tried, "alive after SIGTERM to the server", alive(tried, Loss::Host(Signal::TERM), &[])).await,
        row(tried, "alive after SIGKILL of the server", alive(tried, Loss::Host(Signal::KILL), &[])).await,
        row(tried, "the same, an agent deaf to SIGTERM", alive(tried, Loss::Host(Signal::KILL), &deaf)).await,
        row(tried, "background consult after SIGKILL of the server", goes_on(tried)).await,
        row(tried, "alive after SIGKILL of server and runner", alive(tried, Loss::HostAndRunner, &[])).await,
        row(
            tried,
            "a consult after SIGKILL of a server, asked of the next one that adopts it",
            adopted::asked_again(tried),
        )
        .await,
        row(tried, "alive after SIGKILL of three such servers in a row", adopted::three_in_a_row(tried)).await,
        row(tried, "alive after the trial of a new version", trouble::trial(tried)).await,
        row(tried, "listed of a server's state during its upgrade", trouble::snapshot(tried)).await,
        row(tried, "a consult after `chmod -x` of the running program", trouble::not_run(tried)).await,
        row(tried, "an answer shown to a closed pipe", trouble::closed_output(tried)).await,
    ]
}

/// The rows as a Markdown table; with the agents where there are several.
#[must_use]
pub fn markdown(rows: &[CustodyRow]) -> String {
    let several = rows.windows(2).any(|pair| pair[0].agent != pair[1].agent);
    let first = |text: &str| if several { format!("| {text} ") } else { String::new() };
    let mut table = format!("{}| | seen | |\n{}| --- | --- | --- |\n", first("agent"), first("---"));
    for row in rows {
        let verdict = match row.right {
            Some(true) => "right",
            Some(false) => "**wrong**",
            None => "unseen",
        };
        let seen = row.seen.replace('|', "\\|");
        let _ = writeln!(table, "{}| {} | {seen} | {verdict} |", first(&row.agent), row.cell);
    }
    table
}

/// Asks a cell, if it is wanted.
async fn row(tried: &Tried, cell: &'static str, asked: impl Future<Output = Seen>) -> Option<CustodyRow> {
    if !tried.only.iter().all(|word| cell.contains(word.as_str())) {
        return None;
    }
    let (seen, right) = match AssertUnwindSafe(asked).catch_unwind().await {
        Ok(seen) => seen,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            let line = text.unwrap_or("it panicked").lines().next().unwrap_or_default();
            (line.chars().take(300).collect(), Some(false))
        }
    };
    Some(CustodyRow { agent: tried.part.name().to_owned(), cell, seen, right })
}

fn world(tried: &Tried) -> Rig {
    let rig = tried.part.in_world(Rig::new(&tried.program).with_clients(tried.through));
    PLANTED.iter().fold(rig, |rig, (_, name, value)| rig.with(name, *value))
}

/// What was seen, unless a law was broken on the way to it.
async fn lawful(rig: &Rig, told: &[Exchange], seen: Seen) -> Seen {
    let broken = rig.violations(told).await;
    match broken.first() {
        None => seen,
        Some(law) => (format!("{}; but {law}", seen.0), Some(false)),
    }
}

/// Ends the host in order, and looks at the laws.
async fn over(rig: &Rig, mut host: TestClient, seen: Seen) -> Seen {
    host.finish().await;
    lawful(rig, &[host.exchange()], seen).await
}

fn only_run(rig: &Rig) -> Run {
    let mut runs = rig.runs();
    assert_eq!(runs.len(), 1, "runs of the agent");
    runs.remove(0)
}

async fn prompt_channel(tried: &Tried) -> Seen {
    let mut rig = world(tried);
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    // The command lines of the whole machine: the agent's, the runner's, and whatever else it may take.
    let shown = processes::on_a_command_line(rig.canary());
    rig.give_sign("go");
    host.reply(sent).await.expect_success();
    let run = only_run(&rig);
    // It gave the sign its script asks for, and the script was in the prompt.
    let read = run.start["prompt_bytes"].as_u64().is_some_and(|bytes| bytes > 0);
    let logged = run.argv().iter().any(|word| word.contains(rig.canary()));
    let seen = match (shown.is_some() || logged, read) {
        (true, _) => ("argv".to_owned(), Some(false)),
        (false, true) => ("stdin, on no command line".to_owned(), Some(true)),
        (false, false) => ("nowhere".to_owned(), Some(false)),
    };
    over(&rig, host, seen).await
}

async fn long_prompt(tried: &Tried, bytes: usize) -> Seen {
    let mut rig = world(tried);
    let mut host = rig.serve().await;
    let prompt = rig.answering("42");
    let prompt = format!("{prompt}{}", "x".repeat(bytes - prompt.len()));
    let reply = host.consult(&prompt).await;
    let seen = if !tried.part.takes(bytes) {
        // An agent that would lose its answer over it is not started.
        let refused = reply.is_error() && reply.code() == "prompt_too_large" && rig.runs().is_empty();
        (format!("`{}`, nothing started", reply.code()), Some(refused))
    } else if reply.is_error() {
        (format!("refused: {}", reply.code()), Some(false))
    } else {
        let got = only_run(&rig).start["prompt_bytes"].as_u64().unwrap_or_default();
        let whole = got >= bytes as u64 && reply["response"] == "42";
        (format!("ran, the agent read {got} bytes"), Some(whole))
    };
    over(&rig, host, seen).await
}

async fn environment(tried: &Tried) -> Seen {
    let mut rig = world(tried);
    let mut host = rig.serve().await;
    host.consult(&rig.answering("42")).await.expect_success();
    let run = only_run(&rig);
    let env = run.start["env"].to_string();
    let leaked = |name: &str, value: &str| run.env(name).is_some() || value.len() > 1 && env.contains(value);
    let words = PLANTED.map(|(_, name, value)| if leaked(name, value) { "yes" } else { "no" });
    let right = words.iter().all(|word| *word == "no");
    over(&rig, host, (words.join(", "), Some(right))).await
}

/// The live processes of a consult, in words; empty when there is none.
fn left(rig: &Rig) -> Vec<&'static str> {
    let name = |process: &processes::Process| match (process.role, process.leads_session) {
        (Role::Agent, _) => "agent",
        (_, true) => "grandchild of its own session",
        _ => "grandchild",
    };
    rig.agents().iter().map(name).collect()
}

/// What is left alive once nothing is, or the time is up; and how long that took.
async fn leaving(rig: &Rig, wanted: impl Fn(&[&str]) -> bool) -> (Vec<&'static str>, Duration) {
    let began = Instant::now();
    loop {
        let left = left(rig);
        if wanted(&left) || began.elapsed() > LEFT_ALIVE {
            return (left, began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Begins a consult whose agent has started one process in its group, one in a session of its own and one without an
/// environment, and sleeps.
async fn begun(rig: &Rig, host: &mut TestClient, manners: &[Step]) -> (Option<Sent>, Option<String>) {
    let mut steps = manners.to_vec();
    steps.extend([
        Step::Text("at work".into()),
        Step::Fork(ForkPlace::Group),
        Step::Fork(ForkPlace::Session),
        Step::Fork(ForkPlace::Bare),
        Step::Touch(rig.sign("begun")),
        Step::Hang,
    ]);
    let sent = host.start("consult", json!({"prompt": rig.doing(steps)})).await;
    rig.wait_for_sign("begun").await;
    if processes::are_visible() {
        let waiting = Waiting::until("the agent and its children are there, each in its place", PATIENCE);
        loop {
            let there = left(rig);
            if there.len() == 4 && there.contains(&"grandchild of its own session") {
                break;
            }
            waiting.again(|| format!("{there:?}")).await;
        }
    }
    let job = rig.jobs().await.pop().map(|job| job.id.to_string());
    (Some(sent), job)
}

async fn alive(tried: &Tried, loss: Loss, manners: &[Step]) -> Seen {
    let mut rig = world(tried);
    let mut host = rig.serve().await;
    let (sent, job) = begun(&rig, &mut host, manners).await;
    let sent = sent.expect("a call");
    // Of a host that lives on, the call is answered before its client hangs up.
    let answered = matches!(loss, Loss::Cancelled | Loss::Runner);
    match loss {
        Loss::Withdrawn => host.cancel(sent).await,
        Loss::Cancelled => drop(host.call("consult_cancel", json!({"job_id": job})).await),
        Loss::Disconnect => {
            host.give_up_on(sent);
            host.hang_up().await;
        }
        Loss::Host(signal) => {
            // Asked to end, it answers its calls; killed, it cannot.
            if signal == Signal::KILL {
                host.give_up_on(sent);
            }
            host.signal(signal);
        }
        Loss::Runner => drop(rig.kill(Role::Runner)),
        Loss::HostAndRunner => {
            host.give_up_on(sent);
            host.expect_end();
            // The runner first: it would end the agent when it heard that its host is gone.
            rig.kill(Role::Runner);
            host.signal(Signal::KILL);
        }
    }
    if !processes::are_visible() {
        return ("processes cannot be seen here".to_owned(), None);
    }
    let mut others = Vec::new();
    let seen = if loss == Loss::HostAndRunner {
        let (stayed, _) = leaving(&rig, |left| !left.contains(&"agent")).await;
        let began = Instant::now();
        let mut next = rig.serve().await;
        let (kept, _) = leaving(&rig, |left| left.is_empty()).await;
        let swept = began.elapsed().as_secs_f64();
        // It ends what was left before it settles the job, and is not to be ended in between.
        rig.only_job_over().await;
        next.finish().await;
        others.push(next.exchange());
        let stayed = if stayed.is_empty() { "nothing".to_owned() } else { stayed.join(", ") };
        (
            format!("{stayed}, until the next server starts; {} {swept:.1} s after that", listed(&kept)),
            Some(!stayed.split(", ").any(|name| name == "agent") && kept.is_empty()),
        )
    } else {
        let (kept, took) = leaving(&rig, |left| left.is_empty()).await;
        (format!("{} after {:.1} s", listed(&kept), took.as_secs_f64()), Some(kept.is_empty()))
    };
    if answered {
        host.reply(sent).await;
    }
    host.hang_up().await;
    host.exit().await;
    host.silence().await;
    // Nobody may be told anything before the job is over; then it is, for whoever asks.
    let state = rig.only_job_over().await.state.as_str();
    others.push(host.exchange());
    lawful(&rig, &others, (format!("{}; {state}", seen.0), seen.1)).await
}

fn listed(left: &[&str]) -> String {
    if left.is_empty() { "nothing".to_owned() } else { left.join(", ") }
}

async fn goes_on(tried: &Tried) -> Seen {
    let mut rig = world(tried);
    let mut host = rig.serve().await;
    let prompt = rig.waiting("begun", "go");
    let job = host.consult_in_background(&prompt).await;
    rig.wait_for_sign("begun").await;
    host.signal(Signal::KILL);
    host.exit().await;
    host.silence().await;
    let mut next = rig.serve().await;
    rig.give_sign("go");
    let reply = next.job(&job).await;
    let right = reply["response"] == "done" && rig.runs().len() == 1;
    let seen = if right { "goes on; the next server has its answer".to_owned() } else { reply.text().to_owned() };
    next.finish().await;
    lawful(&rig, &[host.exchange(), next.exchange()], (seen, Some(right))).await
}

async fn long_answer(tried: &Tried) -> Seen {
    let mut rig = world(tried);
    let mut host = rig.serve().await;
    // Every thousand bytes differ, so that a page that is missing or doubled is noticed.
    let length = if tried.part.takes(LONG_ANSWER + LONG_ANSWER / 10) { LONG_ANSWER } else { SHORTER_ANSWER };
    let answer: String = (0..length / 1000).map(|part| format!("{part:-<1000}")).collect();
    let reply = host.consult(&rig.answering(&answer)).await.expect_success();
    let bytes = reply.0.to_string().len();
    let pages = reply["pages"].as_u64().unwrap_or(1);
    let mut whole = String::new();
    for page in 1..=pages {
        let read = host.call("consult_job", json!({"job_id": reply["job_id"], "page": page})).await;
        whole.push_str(read.str("response"));
    }
    let right = bytes <= LONG_REPLY && whole == answer && reply["truncated"] == true;
    let readable = if whole == answer { "all of it" } else { "not all of it" };
    over(&rig, host, (format!("{bytes}; {readable} readable in {pages} pages"), Some(right))).await
}

async fn exit_code(tried: &Tried, cut_off: bool) -> Seen {
    let mut rig = world(tried);
    let mut host = rig.serve().await;
    let script = Script {
        steps: vec![Step::Text("so far".into()), Step::Stderr("last words".into())],
        answer: Some("42".into()),
        no_result: cut_off,
        exit: Some(3),
        ..Script::default()
    };
    let reply = host.consult(&rig.prompt(script)).await;
    if !cut_off {
        // The answer is whole; how the process ended is told beside it.
        let told = reply.0.to_string().contains("\"code\":3");
        // An agent whose words come in pieces says both in one message.
        let right = !reply.is_error() && reply.str("response").ends_with("42") && told;
        let seen = format!("{}, exit code {}", reply.str("status"), if told { "told" } else { "not told" });
        return over(&rig, host, (seen, Some(right))).await;
    }
    let kept = reply.str("response").contains("so far") && reply.str("stderr_tail").contains("last words");
    let words = if kept { "its words kept" } else { "its words lost" };
    let seen = if reply.is_error() { format!("error `{}`, {words}", reply.code()) } else { "success".to_owned() };
    let right = reply.is_error() && reply.str("status") == "failed" && kept;
    over(&rig, host, (seen, Some(right))).await
}

async fn hangs_after_its_answer(tried: &Tried) -> Seen {
    let mut rig = world(tried);
    let mut host = rig.serve().await;
    let script = Script { answer: Some("42".into()), after: vec![Step::Hang], ..Script::default() };
    let began = Instant::now();
    let reply = host.consult(&rig.prompt(script)).await;
    let seconds = began.elapsed().as_secs();
    let right = !reply.is_error() && reply.str("response") == "42" && seconds < 20;
    let seen = if right { "the answer, within 20 s".to_owned() } else { format!("{} after {seconds} s", reply.code()) };
    over(&rig, host, (seen, Some(right))).await
}

/// Who pays, asked of an agent that does not say it.
async fn unnamed_payer(rig: &Rig, mut host: TestClient) -> Seen {
    let reply = host.consult(&rig.answering("42")).await;
    let right =
        !reply.is_error() && reply["billing"] == "unproven" && !only_run(rig).start["env"].to_string().contains(KEY);
    let seen =
        if right { "it never says; told as `unproven`, its key withheld".to_owned() } else { reply.text().to_owned() };
    over(rig, host, (seen, Some(right))).await
}

/// An agent that an API key would pay for and hides its introduction behind this, or has none at all.
async fn payer(tried: &Tried, hidden_behind: Option<&str>) -> Seen {
    let mut rig = world(tried);
    let mut host = rig.serve().await;
    if !tried.part.names_its_payer() {
        return unnamed_payer(&rig, host).await;
    }
    let script = Script {
        no_init: hidden_behind.is_none(),
        before_init: hidden_behind.map(str::to_owned),
        key_source: Some("ANTHROPIC_API_KEY".into()),
        steps: vec![Step::Thinking, Step::DelayMs(1_000), Step::Touch(rig.sign("went-on"))],
        ..Script::default()
    };
    let reply = host.consult(&rig.prompt(script)).await;
    let went_on = rig.sign("went-on").exists();
    let right = reply.is_error() && reply.code() == "billing_mismatch" && !went_on;
    let seen = if right {
        "`billing_mismatch`, killed at once".to_owned()
    } else {
        format!("{}, went on: {went_on}", reply.str("status"))
    };
    over(&rig, host, (seen, Some(right))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cell_that_fails_is_a_row_that_says_why_and_one_that_is_not_wanted_is_not_asked() {
        let part = AgentPart::named(USUAL).expect("known");
        let tried = Tried { program: "/x".into(), through: Through::Streams, part, only: vec!["x".to_owned()] };
        let failed = row(&tried, "x", async { panic!("waited in vain\nand more") }).await.expect("asked");
        let of =
            |agent: &str, cell, seen: &str, right| CustodyRow { agent: agent.into(), cell, seen: seen.into(), right };
        assert_eq!(failed, of("claude", "x", "waited in vain", Some(false)));
        assert_eq!(row(&tried, "y", async { panic!("asked") }).await, None);
        let table = markdown(&[failed.clone(), of("claude", "y", "a|b", None)]);
        assert_eq!(
            table.lines().skip(2).collect::<Vec<_>>(),
            ["| x | waited in vain | **wrong** |", "| y | a\\|b | unseen |"]
        );
        let table = markdown(&[failed, of("codex", "x", "z", Some(true))]);
        assert_eq!(
            table.lines().collect::<Vec<_>>(),
            [
                "| agent | | seen | |",
                "| --- | --- | --- | --- |",
                "| claude | x | waited in vain | **wrong** |",
                "| codex | x | z | right |"
            ]
        );
    }
}
