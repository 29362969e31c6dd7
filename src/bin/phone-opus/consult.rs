//! `consult`: the same engine, from the command line.

use std::cell::Cell;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use phone_opus::internals::base::fault::{Fault, FaultCode};
use phone_opus::internals::base::ids::JobId;
use phone_opus::internals::config::Config;
use phone_opus::internals::fleet::Placement;
use phone_opus::internals::jobs::JobRecord;
use phone_opus::internals::jobs::client::News;
use phone_opus::internals::system::{Grace, System};
use phone_opus::internals::tools::consult::Caller;
use phone_opus::internals::tools::reply::Context;
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

use crate::answer::{self, Form};
use crate::begin::{self, Kind};
use crate::cli::ConsultFlags;
use crate::job_word::short;
use crate::logging;
use crate::output::{err, is_lost, say};
use crate::piped;
use crate::placed;
use crate::progress::{FRAME, Progress};
use crate::settings::{SetupError, prepare, refused, runtime, say_never_met};
use crate::several;

/// How long a consult that is given up may take to be over.
pub(crate) const CANCEL_WAIT: Duration = Duration::from_secs(10);

/// What was asked, and is to be ended when it is given up.
#[derive(Debug, Clone, Copy)]
pub(crate) enum AskedJob {
    /// A job of this machine.
    Here(JobId),
    /// A job of the fleet.
    OfFleet(JobId),
}

/// Asks, shows progress on stderr and the answer on stdout.
pub(crate) fn run(options: &ConsultFlags) -> ExitCode {
    logging::start();
    ask(options).unwrap_or_else(|error| refused(&error))
}

fn ask(options: &ConsultFlags) -> Result<ExitCode, SetupError> {
    let prepared = prepare(&options.common, &options.overrides)?;
    let prompt = piped::prompt(&options.prompt, !options.no_stdin)?;
    let runtime = runtime()?;
    let code = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(SetupError::Runtime)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(SetupError::Runtime)?;
        let mut quit = signal(SignalKind::quit()).map_err(SetupError::Runtime)?;
        begin::ignore(Kind::Consult)?;
        let faults = prepared.faults.clone();
        let system = match prepared.system().claims(false).start().await {
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
        let form = Form::of(options.json, options.no_pager);
        if !options.agents.is_empty() {
            let code = several::consult(&system, options, prompt, form, stopped).await;
            system.shutdown(Grace::default()).await;
            say_never_met(&faults);
            return Ok(code);
        }
        // What is shown is shown after it: who pages through an answer has no consult any more that could be ended.
        let ended = tokio::select! {
            ended = consult(&system, options, prompt, &asked) => Some(ended),
            () = stopped => None,
        };
        let code = match ended {
            Some(Ok(reply)) => show(&system, reply, form).await,
            Some(Err(fault)) => failed(&fault),
            None => cancelled(&system, asked.get(), form).await,
        };
        system.shutdown(Grace::default()).await;
        say_never_met(&faults);
        Ok(code)
    });
    runtime.shutdown_timeout(Duration::from_millis(100));
    code
}

pub(crate) fn failed(fault: &Fault) -> ExitCode {
    say(&format!("phone-opus: {fault}"));
    ExitCode::from(if fault.code == FaultCode::InvalidInput { 2 } else { 1 })
}

/// The options as the tool's arguments: one reader checks both.
pub(crate) fn arguments(options: &ConsultFlags, config: &Config, prompt: String) -> Result<Value, Fault> {
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            object.insert(name.to_owned(), value);
        }
    };
    let mut asked = options.agents.iter().peekable();
    let one = options.agent.as_ref().unwrap_or(&config.agent);
    let elsewhere = match asked.peek() {
        Some(_) => asked.any(|agent| config.agents.contains_key(agent)),
        None => config.agents.contains_key(one),
    };
    let cwd = if elsewhere {
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
    put("agents", if options.agents.is_empty() { Value::Null } else { json!(options.agents) });
    put("timeout_s", json!(options.timeout_s));
    put("request_key", json!(options.request_key));
    put("max_budget_usd", json!(options.max_budget_usd));
    put("diff", json!(options.diff));
    put("placement", json!(options.placement));
    Ok(Value::Object(object))
}

/// What there is to show.
pub(crate) struct ShownReply {
    pub(crate) record: Arc<JobRecord>,
    pub(crate) context: Context,
}

/// Shows a reply, and notes that it was read.
pub(crate) async fn show(system: &System, reply: ShownReply, form: Form) -> ExitCode {
    let ShownReply { record, context } = reply;
    // Of a job of the fleet nobody here keeps whether it was read.
    let kept = context.placed.is_none() && !context.unstored;
    let (job, read) = (record.id, record.state.is_terminal() && kept);
    // A pager takes as long as its reader; jobs that depend on this process go on meanwhile.
    let shown = tokio::task::spawn_blocking(move || answer::of_consult(&record, &context, form)).await;
    // An answer that could not be printed has no reader.
    if read && !is_lost() {
        system.jobs().mark_read(job).await;
    }
    shown.unwrap_or(ExitCode::FAILURE)
}

/// Ends the consult that is given up from the keyboard, and shows what is known of it. Whoever ended it knows that it is over:
/// it is no news to anybody.
async fn cancelled(system: &System, asked: Option<AskedJob>, form: Form) -> ExitCode {
    let job = match asked {
        Some(AskedJob::Here(job)) => job,
        Some(AskedJob::OfFleet(job)) => {
            placed::cancelled(system, job, form).await;
            return ExitCode::from(3);
        }
        None => {
            say("phone-opus: cancelled before anything was asked");
            return ExitCode::from(3);
        }
    };
    say(&format!("phone-opus: cancelled job {job}"));
    let ended = async {
        let mut follow = system.jobs().follow(job).await?;
        let _ = system.jobs().cancel(job).await?;
        loop {
            if let News::Finished(record) = follow.next().await? {
                system.jobs().mark_read(job).await;
                return Ok::<_, Fault>(record);
            }
        }
    };
    match tokio::time::timeout(CANCEL_WAIT, ended).await {
        Ok(Ok(record)) => {
            let context = system.desk().context(&record, None).await;
            show(system, ShownReply { record, context }, form).await;
            if form != Form::Json {
                say(&format!("Read it again: phone-opus jobs show {}", short(job)));
            }
        }
        _ => {
            say(&format!("phone-opus: it is being ended; how it ended: phone-opus jobs show {} --wait 60", short(job)))
        }
    }
    ExitCode::from(3)
}

async fn consult(
    system: &System,
    options: &ConsultFlags,
    prompt: String,
    asked: &Cell<Option<AskedJob>>,
) -> Result<ShownReply, Fault> {
    let desk = system.desk();
    let read = arguments(options, &desk.config, prompt)?.to_string();
    let read = desk.read_placed(read.as_bytes(), Caller::Owner).await?;
    let shown = !options.quiet && !options.json && err().terminal;
    if read.placement != Placement::Local {
        return placed::consult(system, read, shown, asked).await;
    }
    let record = system.jobs().accept(desk.job(&read, None), None).await?.record;
    if options.background {
        let context = desk.context(&record, None).await;
        return Ok(ShownReply { record: Arc::new(record), context });
    }
    asked.set(Some(AskedJob::Here(record.id)));
    let mut follow = system.jobs().follow(record.id).await?;
    let began = Instant::now();
    let mut progress = shown.then(|| Progress::begin(record.id, &record.request.agent));
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (record, unstored) = loop {
        tokio::select! {
            news = follow.next() => match news? {
                News::Finished(record) => break (record, false),
                // Its runner goes on trying to store it; who asked need not wait for that.
                News::Unstored(record) => break (record, true),
                News::Changed => {}
            },
            _ = frames.tick(), if shown => if let Some(progress) = &mut progress {
                let said = follow.glimpse().await.map(|live| live.text).unwrap_or_default();
                progress.show(began.elapsed(), &follow.describe(), &said);
            }
        }
    };
    let context = Context { unstored, ..desk.context(&record, None).await };
    Ok(ShownReply { record, context })
}
