//! `doctor --live`: a real turn of each agent.
//!
//! Owns: what is asked, of whom, for how long, and at whose word. May not know: what a turn means ([`super::verdict`]).
//!
//! Each turn is a consult like any other: accepted into the store, run by a runner, bound by the limits and the turns of this state
//! directory, and found in `jobs list`. So what works here works there.
//!
//! Invariants: (1) nothing that may be paid for is asked without a yes; (2) each agent is asked once; (3) everything ends: a turn
//! that takes too long is ended with what it started, and so is everything when this is interrupted.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt as _;
use phone_opus::internals::agents::{CliAgent, Environment, PayerKnown};
use phone_opus::internals::base::fault::Fault;
use phone_opus::internals::base::ids::{JobId, UnixMillis};
use phone_opus::internals::jobs::client::{Follow, News};
use phone_opus::internals::jobs::{ConsultRequest, JobRecord};
use phone_opus::internals::system::{Grace, System};
use phone_opus::internals::tools::consult::Caller;
use phone_opus::{AgentEvent, AgentRegistry, JournalEvent};
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::verdict::{Known, PayerWord, Turn, Verdict, judge};
use crate::agreement::{Agreement, agreed};
use crate::begin::{self, Kind};
use crate::output::{err, say, say_lines};
use crate::screen::layout::wrap;
use crate::screen::{Line, paint};
use crate::settings::{Prepared, SetupError, runtime};

/// What each agent is asked. It needs no tool and one word of an answer.
const PROMPT: &str =
    "This is a check of the connection. Use no tools and read nothing. Answer with this one word: here";

/// Seconds the agent may take. A model that is slow to begin needs some tens.
const RUN_S: u64 = 120;

/// How long it is waited for a turn that has not ended: a minute more, since other consults may have to end before it begins.
const WAITED: Duration = Duration::from_secs(RUN_S + 60);

/// How long a turn that is given up may take to be over.
const GIVEN_UP: Duration = Duration::from_secs(10);

/// The most one turn may cost, in US dollars, where an agent takes a limit. One word costs a cent or two, but an agent sends its model
/// some thousand words beside the question.
const MOST_USD: f64 = 0.5;

/// Agents that are asked at the same time, whatever the configuration allows: each is a program of some hundred megabytes.
const AT_ONCE: usize = 3;

/// What came of it, and the jobs that were begun for it.
pub(super) struct Turns {
    pub(super) live: Live,
    pub(super) jobs: Vec<JobId>,
}

/// What came of it.
pub(super) enum Live {
    /// Everybody was asked.
    Asked(Vec<Verdict>),
    /// The user said no.
    Declined,
    /// It needs a yes, and there was nobody who could have given it.
    NobodyToAsk,
    /// It was interrupted; what was begun is ended.
    Interrupted,
    /// There is no engine to ask with.
    Failed(Fault),
}

impl Turns {
    fn nobody(live: Live) -> Self {
        Self { live, jobs: Vec::new() }
    }
}

/// Asks the agents of these names, when that is agreed to.
pub(super) fn ask(
    prepared: &Prepared,
    known: &[Known],
    names: &[String],
    yes: bool,
    json: bool,
) -> Result<Turns, SetupError> {
    let registry = prepared.agents();
    let of = |name: &String| {
        known.iter().find(|known| known.agent == *name).cloned().unwrap_or_else(|| Known::nothing(name))
    };
    let asked: Vec<(Known, PayerWord)> = names.iter().map(|name| (of(name), payer_word(&registry, name))).collect();
    let paid: Vec<&str> =
        asked.iter().filter(|(_, word)| *word != PayerWord::Free).map(|(known, _)| known.agent.as_str()).collect();
    if !paid.is_empty() {
        let billing = prepared.config.billing.as_str();
        let cost = format!(
            "A live check asks {} one short question each, a consult that is paid for like any other (billing: {billing}).",
            paid.join(", ")
        );
        say_lines(&wrap(&Line::of(paint::PLAIN, &cost), err().width));
        match agreed("Ask?", yes, json) {
            Agreement::Yes => {}
            Agreement::No => return Ok(Turns::nobody(Live::Declined)),
            Agreement::NobodyToAsk => return Ok(Turns::nobody(Live::NobodyToAsk)),
        }
    }
    let runtime = runtime()?;
    let live = runtime.block_on(turns(prepared, asked));
    runtime.shutdown_timeout(Duration::from_millis(100));
    live
}

/// What an agent's stream says of who pays.
fn payer_word(registry: &AgentRegistry, name: &str) -> PayerWord {
    let Ok(agent) = registry.get(name) else { return PayerWord::Silent };
    match (agent.payer(), agent.profile().names_payer()) {
        (PayerKnown::InStream, _) => PayerWord::Says,
        // Nothing can be said of it otherwise before it starts than that nothing is paid.
        (_, true) => PayerWord::Free,
        (_, false) => PayerWord::Silent,
    }
}

async fn turns(prepared: &Prepared, asked: Vec<(Known, PayerWord)>) -> Result<Turns, SetupError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(SetupError::Runtime)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(SetupError::Runtime)?;
    let mut quit = signal(SignalKind::quit()).map_err(SetupError::Runtime)?;
    begin::ignore(Kind::Consult)?;
    let system = match prepared.clone().system().claims(false).start().await {
        Ok(system) => system,
        Err(fault) => return Ok(Turns::nobody(Live::Failed(fault))),
    };
    let jobs = RefCell::new(Vec::new());
    let stopped = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = quit.recv() => {}
        }
    };
    let billing = prepared.config.billing;
    let (asking, begun) = (&system, &jobs);
    let one = |(known, word): (Known, PayerWord)| async move {
        let turn = turn(asking, prepared, &known.agent, begun).await;
        let version = introduced(asking, &turn).await;
        let known = Known { version: version.or(known.version), ..known };
        judge(&known, word, billing, &turn, UnixMillis::now())
    };
    let all = futures_util::stream::iter(asked).map(one).buffered(AT_ONCE).collect::<Vec<_>>();
    let live = tokio::select! {
        verdicts = all => Live::Asked(verdicts),
        () = stopped => {
            say("phone-opus: interrupted; what was begun is ended");
            Live::Interrupted
        }
    };
    // Synchronous consults are ended by it, with everything that they have started.
    system.shutdown(Grace::default()).await;
    drop(system);
    Ok(Turns { live, jobs: jobs.into_inner() })
}

/// Asks one agent, as the tool would, and waits for the end.
async fn turn(system: &System, prepared: &Prepared, agent: &str, jobs: &RefCell<Vec<JobId>>) -> Turn {
    match begun(system, prepared, agent, jobs).await {
        Err(fault) => Turn::Refused(fault),
        Ok((job, mut follow)) => match tokio::time::timeout(WAITED, over(&mut follow)).await {
            Ok(Ok(record)) => Turn::Job(record),
            Ok(Err(fault)) => Turn::Refused(fault),
            Err(_) => {
                let ended = async {
                    let _ = system.jobs().cancel(job).await?;
                    over(&mut follow).await
                };
                // What takes longer is ended with the system.
                let _ = tokio::time::timeout(GIVEN_UP, ended).await;
                Turn::TooLong { waited: WAITED.as_secs(), job }
            }
        },
    }
}

async fn begun(
    system: &System,
    prepared: &Prepared,
    agent: &str,
    jobs: &RefCell<Vec<JobId>>,
) -> Result<(JobId, Follow), Fault> {
    let desk = system.desk();
    let (read, _) = desk.read(arguments(prepared, agent).to_string().as_bytes(), None, Caller::Owner).await?;
    let job = system.jobs().accept(desk.job(&read, None), None).await?.record.id;
    jobs.borrow_mut().push(job);
    Ok((job, system.jobs().follow(job).await?))
}

async fn over(follow: &mut Follow) -> Result<Box<JobRecord>, Fault> {
    loop {
        match follow.next().await? {
            News::Finished(record) | News::Unstored(record) => return Ok(Box::new(JobRecord::clone(&record))),
            News::Changed => {}
        }
    }
}

/// What it said of its version.
async fn introduced(system: &System, turn: &Turn) -> Option<String> {
    /// It introduces itself at the beginning.
    const ENTRIES: usize = 20;
    let Turn::Job(record) = turn else { return None };
    let entries = system.jobs().events(record.id, 0, ENTRIES).await.ok()?;
    entries.into_iter().find_map(|entry| match entry.event {
        JournalEvent::Agent { event: AgentEvent::Started { version, .. } } => version,
        _ => None,
    })
}

/// The tool's arguments: in the directory this is run in, as a consult of this shell.
fn arguments(prepared: &Prepared, agent: &str) -> Value {
    let config = &prepared.config;
    let site = config.agents.get(agent);
    // A directory of another machine: the first that its table lists.
    let cwd: Option<PathBuf> = match site {
        Some(site) => site.workspaces.first().cloned(),
        None => std::env::current_dir().ok(),
    };
    let mut object = Map::new();
    object.insert("prompt".to_owned(), json!(PROMPT));
    object.insert("agent".to_owned(), json!(agent));
    object.insert("timeout_s".to_owned(), json!(RUN_S.min(config.timeout.as_secs())));
    if let Some(cwd) = cwd.and_then(|dir| dir.into_os_string().into_string().ok()) {
        object.insert("cwd".to_owned(), json!(cwd));
    }
    let program = site.map_or(agent, |site| site.agent.as_str());
    if !config.customs.contains_key(agent) && takes_a_budget(program) {
        object.insert("max_budget_usd".to_owned(), json!(MOST_USD));
    }
    Value::Object(object)
}

/// Whether an agent knows such a limit; the others refuse a request with one.
fn takes_a_budget(program: &str) -> bool {
    let mut request = ConsultRequest::new(PROMPT);
    request.max_budget_usd = Some(MOST_USD);
    CliAgent::named(program).is_some_and(|agent| agent.check(&request, &Environment::default()).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_takes_a_budget_is_given_one() {
        assert!(takes_a_budget("claude"));
        for without in ["codex", "copilot", "gemini", "opencode", "qwen", "offline", "oracle"] {
            assert!(!takes_a_budget(without), "{without}");
        }
    }
}
