//! `consult`: the same engine, from the command line.

use std::cell::Cell;
use std::io::{IsTerminal, Read};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use phone_opus::internals::agents::MAX_PROMPT_BYTES;
use phone_opus::internals::base::fault::{Fault, FaultCode};
use phone_opus::internals::base::ids::JobId;
use phone_opus::internals::config::Config;
use phone_opus::internals::jobs::client::News;
use phone_opus::internals::jobs::{JobRecord, JobState};
use phone_opus::internals::protocol::wire::ReplyText;
use phone_opus::internals::system::{Grace, System};
use phone_opus::internals::tools::consult::Caller;
use phone_opus::internals::tools::reply::{self, Context, Detail, Reader, Render, Shape};
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::begin::{self, Kind};
use crate::cli::ConsultFlags;
use crate::logging;
use crate::output::{is_lost, print, say};
use crate::settings::{SetupError, prepare, refused, runtime, say_never_met};

/// Characters of an answer on the command line: all of any answer we keep.
const EVERYTHING: usize = 64 * 1024 * 1024;

/// How long a consult that is given up may take to be over.
const CANCEL_WAIT: Duration = Duration::from_secs(10);

/// How often the progress line is renewed.
const PROGRESS: Duration = Duration::from_secs(1);

/// Asks, shows progress on stderr and the answer on stdout.
pub(crate) fn run(options: &ConsultFlags) -> ExitCode {
    logging::start();
    match ask(options) {
        Ok(code) => code,
        Err(error) => refused(&error),
    }
}

fn ask(options: &ConsultFlags) -> Result<ExitCode, SetupError> {
    let prepared = prepare(&options.common, &options.overrides)?;
    let prompt = if options.prompt == "-" {
        let mut bytes = Vec::new();
        // A little more than is accepted, so that too much is seen to be too much.
        let most = MAX_PROMPT_BYTES as u64 + 4096;
        std::io::stdin().take(most).read_to_end(&mut bytes).map_err(SetupError::Prompt)?;
        // A diff has the bytes of its files in it; what is no text is shown as such, as MCP clients' prompts are.
        String::from_utf8_lossy(&bytes).into_owned()
    } else {
        options.prompt.clone()
    };
    let runtime = runtime()?;
    let code = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(SetupError::Runtime)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(SetupError::Runtime)?;
        let mut quit = signal(SignalKind::quit()).map_err(SetupError::Runtime)?;
        begin::ignore(Kind::Consult)?;
        let faults = prepared.faults.clone();
        let system = match prepared.system().start().await {
            Ok(system) => system,
            Err(fault) => return Ok(failed(&fault)),
        };
        let asked = Cell::new(None);
        let stopped = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = quit.recv() => {}
            }
        };
        let code = tokio::select! {
            code = consult(&system, options, prompt, &asked) => code.unwrap_or_else(|fault| failed(&fault)),
            () = stopped => {
                cancelled(&system, asked.get()).await;
                ExitCode::from(3)
            }
        };
        system.shutdown(Grace::default()).await;
        say_never_met(&faults);
        Ok(code)
    });
    runtime.shutdown_timeout(Duration::from_millis(100));
    code
}

fn failed(fault: &Fault) -> ExitCode {
    say(&format!("phone-opus: {fault}"));
    ExitCode::from(if fault.code == FaultCode::InvalidInput { 2 } else { 1 })
}

/// The options as the tool's arguments: one reader checks both.
fn arguments(options: &ConsultFlags, config: &Config, prompt: String) -> Result<Value, Fault> {
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            object.insert(name.to_owned(), value);
        }
    };
    let cwd = if config.agents.contains_key(options.agent.as_ref().unwrap_or(&config.agent)) {
        // A directory of another machine: nothing of this one says where it is.
        options.cwd.clone()
    } else {
        let cwd = options.cwd.as_ref().map(|dir| std::path::absolute(dir).unwrap_or_else(|_| dir.clone()));
        // The shell's directory is a directory the caller chose, whatever it is.
        cwd.or_else(|| std::env::current_dir().ok())
    };
    let text = |dir: std::path::PathBuf| {
        dir.into_os_string().into_string().map_err(|_| {
            let detail = "`cwd` is not UTF-8; accepted: a directory whose path is (give another one with --cwd).";
            Fault::new(FaultCode::InvalidInput, detail)
        })
    };
    put("prompt", json!(prompt));
    put("cwd", json!(cwd.map(text).transpose()?));
    put("session_id", json!(options.session));
    put("background", json!(options.background));
    put("max_turns", json!(options.max_turns));
    put("model", json!(options.model));
    put("effort", json!(options.effort));
    put("agent", json!(options.agent));
    put("timeout_s", json!(options.timeout_s));
    put("request_key", json!(options.request_key));
    put("max_budget_usd", json!(options.max_budget_usd));
    Ok(Value::Object(object))
}

/// Ends the consult that is given up from the keyboard. Whoever ended it knows that it is over: it is no news to anybody.
async fn cancelled(system: &System, asked: Option<JobId>) {
    say("phone-opus: cancelled");
    let Some(job) = asked else { return };
    let ended = async {
        let mut follow = system.jobs().follow(job).await?;
        let _ = system.jobs().cancel(job).await?;
        while !matches!(follow.next().await?, News::Finished(_)) {}
        system.jobs().mark_read(job).await;
        Ok::<_, Fault>(())
    };
    if !matches!(tokio::time::timeout(CANCEL_WAIT, ended).await, Ok(Ok(()))) {
        say(&format!("phone-opus: job {job} is being ended"));
    }
}

async fn consult(
    system: &System,
    options: &ConsultFlags,
    prompt: String,
    asked: &Cell<Option<JobId>>,
) -> Result<ExitCode, Fault> {
    let desk = system.desk();
    let (read, _) =
        desk.read(arguments(options, &desk.config, prompt)?.to_string().as_bytes(), None, Caller::Owner).await?;
    let record = system.jobs().accept(desk.job(&read, None), None).await?.record;
    if options.background {
        let context = desk.context(&record, None).await;
        show(&record, &context, options.json);
        return Ok(ExitCode::SUCCESS);
    }
    asked.set(Some(record.id));
    let mut follow = system.jobs().follow(record.id).await?;
    let began = Instant::now();
    let shown = !options.quiet && !options.json && std::io::stderr().is_terminal();
    let mut ticks = tokio::time::interval(PROGRESS);
    ticks.reset();
    let mut last = String::new();
    let (record, unstored) = loop {
        tokio::select! {
            news = follow.next() => match news? {
                News::Finished(record) => break (record, false),
                // Its runner goes on trying to store it; who asked need not wait for that.
                News::Unstored(record) => break (record, true),
                News::Changed => {}
            },
            _ = ticks.tick(), if shown => {
                let phase = follow.describe();
                if phase != last {
                    say(&format!("[{:>4} s] {phase}", began.elapsed().as_secs()));
                    last = phase;
                }
            }
        }
    };
    let context = Context { unstored, ..desk.context(&record, None).await };
    let code = show(&record, &context, options.json);
    // An answer that could not be printed has no reader.
    if !unstored && !is_lost() {
        system.jobs().mark_read(record.id).await;
    }
    Ok(code)
}

/// Shows a job's answer; facts about it go to stderr, so that stdout is the answer alone.
pub(crate) fn show(record: &JobRecord, context: &Context, as_json: bool) -> ExitCode {
    let shape = Shape {
        render: if as_json { Render::Json } else { Render::Porcelain },
        detail: Detail::Concise,
        budget: EVERYTHING,
        structured: true,
    };
    let context = &Context { reader: Reader::Person, ..context.clone() };
    let reply = reply::job(record, context, shape);
    let ReplyText::Plain(text) = &reply.text else { return ExitCode::FAILURE };
    match (as_json, record.state, &record.outcome) {
        (false, JobState::Succeeded, Some(outcome)) => {
            let answer = outcome.response.as_deref().unwrap_or_default();
            print(answer);
            say(text.strip_prefix(answer).unwrap_or(text).trim_start());
        }
        (false, state, _) if state.is_terminal() => say(text),
        _ => print(text),
    }
    match record.state {
        JobState::Failed => ExitCode::FAILURE,
        JobState::Cancelled | JobState::Interrupted => ExitCode::from(3),
        JobState::Succeeded | JobState::Queued | JobState::Running => ExitCode::SUCCESS,
    }
}
