//! What is asked of a daemon from a shell, and its start.
//!
//! Owns: the questions, what people and scripts are told, the exit codes. May not know: how a daemon is found and started
//! (`phone_opus::internals::daemon::start`).
//!
//! Invariant: nothing but `start` starts a daemon or makes a file.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use phone_opus::internals::agents::Environment;
use phone_opus::internals::base::ids::DaemonId;
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::daemon::ask::{ANSWER, AskError, ask};
use phone_opus::internals::daemon::control::{DaemonAnswer, DaemonStatus, ShutdownMode};
use phone_opus::internals::daemon::life::LifeVerb;
use phone_opus::internals::daemon::lock::DaemonLock;
use phone_opus::internals::daemon::record::DaemonRecord;
use phone_opus::internals::daemon::start::{DaemonLook, DaemonStart, DaemonStarter, PATIENCE, look};
use serde_json::{Value, json};

use super::{NONE_RUNS, place};
use crate::cli::{DaemonAsked, DaemonServes, DaemonStartOptions};
use crate::logging;
use crate::output::{print, print_json, print_prose, say};
use crate::settings::{chain, program, refused, rollout_with};

/// How long a daemon that was told to stop may take to give up its place. It does so before anything that takes long.
const GIVES_UP: Duration = Duration::from_secs(5);

/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(10);

/// Who are you?
const HELLO: &str = r#"{"type":"hello"}"#;

/// The options of how a daemon serves, as words.
pub(super) fn serving(serves: &DaemonServes) -> Vec<OsString> {
    let mut words = overriding(serves);
    for (name, time) in [("--idle-s", serves.idle_s), ("--look-s", serves.look_s)] {
        if let Some(time) = time {
            words.extend([name.into(), time.as_secs_f64().to_string().into()]);
        }
    }
    words
}

/// Those of them that `mcp serve` has as well.
pub(super) fn overriding(serves: &DaemonServes) -> Vec<OsString> {
    let mut words = Vec::new();
    let overrides = &serves.overrides;
    if let Some(program) = &overrides.claude_bin {
        // A name is looked for on the path; what lies below this directory is meant from here.
        let of_here = program.components().count() > 1;
        let program = if of_here { std::path::absolute(program).ok() } else { None }.unwrap_or_else(|| program.clone());
        words.extend(["--claude-bin".into(), program.into_os_string()]);
    }
    if let Some(billing) = overrides.billing {
        words.extend(["--billing", billing.as_str()].map(OsString::from));
    }
    if let Some(most) = overrides.max_running {
        words.extend(["--max-running".into(), most.to_string().into()]);
    }
    if let Some(isolation) = serves.isolation {
        words.extend(["--isolation", isolation.as_str()].map(OsString::from));
    }
    words
}

/// Starts one, where none runs.
pub(super) fn start(options: &DaemonStartOptions) -> ExitCode {
    logging::start();
    let (dir, socket) = match place(&options.place) {
        Ok(place) => place,
        Err(error) => return refused(&error),
    };
    if let Err(error) = dir.refuse_foreign_owner() {
        say(&format!("phone-opus: the state directory: failed to {}", chain(&error)));
        return ExitCode::FAILURE;
    }
    let launch = rollout_with(Vec::new()).map(|setup| setup.launch.path);
    let start = DaemonStart::new(dir, program(), &Environment::capture(), DaemonStarter::Person)
        .at(socket)
        .called(launch)
        .with(serving(&options.serves));
    let (ran, hello) = match start.find(PATIENCE) {
        Ok(found) => (!found.started, ask(&found.stream, HELLO, ANSWER).map_err(|error| chain(&error))),
        Err(error) => (false, Err(chain(&error))),
    };
    match hello {
        Ok(DaemonAnswer::Hello { build, generation, pid, .. }) => {
            if options.json {
                let told = json!({"started": !ran, "build": build, "generation": generation, "pid": pid});
                print_json(told);
            } else {
                let how = if ran { "runs already" } else { "serves" };
                print(&format!("a daemon {how} (phone-opus {build}, process {pid})"));
            }
            ExitCode::SUCCESS
        }
        Ok(DaemonAnswer::Error { message, .. }) => failed("start", &format!("start one: {message}")),
        Ok(_) => failed("start", "keep one: it was ended as soon as it served"),
        Err(error) => failed("start", &error),
    }
}

/// Says that it failed.
fn failed(command: &str, why: &str) -> ExitCode {
    say(&format!("phone-opus: daemon {command}: failed to {why}"));
    ExitCode::FAILURE
}

/// Nobody is there to be asked.
fn none_runs(json: bool) -> ExitCode {
    if json {
        print_json(json!({"running": false}));
    } else {
        say("phone-opus: no daemon is running");
    }
    ExitCode::from(NONE_RUNS)
}

/// Connects to the daemon, or says that there is none.
fn reach(command: &str, of: &DaemonAsked) -> Result<(StateDir, OwnedFd), ExitCode> {
    logging::start();
    let (dir, socket): (_, Option<PathBuf>) = place(&of.place).map_err(|error| refused(&error))?;
    match look(&dir, socket.as_deref()) {
        DaemonLook::There(stream) => Ok((dir, stream)),
        DaemonLook::Absent => Err(match DaemonLock::is_held(&dir) {
            Ok(true) => failed(command, "reach it: a daemon lives here and does not listen; it does again within 30 s"),
            _ => none_runs(of.json),
        }),
        DaemonLook::Denied(path) => {
            Err(failed(command, &format!("connect to {}: this process may not", path.display())))
        }
        DaemonLook::Failed(path, errno) => Err(failed(command, &format!("connect to {}: {errno}", path.display()))),
    }
}

/// Asks for something.
pub(super) fn request(verb: LifeVerb, of: &DaemonAsked) -> ExitCode {
    let (command, mode) = match verb {
        LifeVerb::Shutdown(ShutdownMode::WhenFree) => ("stop", None),
        LifeVerb::Shutdown(ShutdownMode::Drain) => ("stop", Some("drain")),
        LifeVerb::Shutdown(ShutdownMode::Force) => ("stop", Some("force")),
        verb => (verb.as_str(), None),
    };
    let (dir, stream) = match reach(command, of) {
        Ok(found) => found,
        Err(code) => return code,
    };
    let mut line = json!({"type": verb.as_str()});
    if let Some(mode) = mode {
        line["mode"] = mode.into();
    }
    let ends = matches!(verb, LifeVerb::Shutdown(_) | LifeVerb::Drain);
    let life = match ask(&stream, HELLO, ANSWER) {
        Ok(DaemonAnswer::Hello { generation, .. }) => Some(generation),
        // Its answer may still come, and would be taken for that to the next question.
        Err(error @ AskError::Silent { .. }) => return failed(command, &chain(&error)),
        _ => None,
    };
    match ask(&stream, &line.to_string(), ANSWER) {
        Ok(DaemonAnswer::Ok { .. }) => {}
        // It is under way, or was.
        Ok(DaemonAnswer::Restarting) | Err(AskError::Closed) if ends => {}
        Ok(DaemonAnswer::Error { message, .. }) => {
            if of.json {
                print_json(json!({"running": true, "done": false, "message": message}));
            } else {
                say(&format!("phone-opus: daemon {command}: {message}"));
            }
            return ExitCode::FAILURE;
        }
        Ok(_) => return failed(command, "understand the daemon's answer"),
        Err(error) => return failed(command, &chain(&error)),
    }
    if ends && !has_given_up(&dir, life) {
        return failed(command, "see it go: it holds its place still");
    }
    if of.json {
        print_json(json!({"running": !ends, "done": true}));
    } else {
        print(match verb {
            LifeVerb::Pause => "no job is begun until `phone-opus daemon resume`",
            LifeVerb::Resume => "jobs are begun again",
            LifeVerb::Reload => "it looks for its next version, and for its socket",
            LifeVerb::Drain | LifeVerb::Shutdown(ShutdownMode::Drain) => {
                "it serves nobody new, and ends with its last call"
            }
            LifeVerb::Shutdown(_) => "it has stopped serving",
        });
    }
    ExitCode::SUCCESS
}

/// Waits until another daemon may start, or has.
fn has_given_up(dir: &StateDir, life: Option<DaemonId>) -> bool {
    let until = Instant::now() + GIVES_UP;
    let is_another =
        || DaemonRecord::read(dir).is_ok_and(|found| found.is_some_and(|found| Some(found.generation) != life));
    loop {
        match DaemonLock::is_held(dir) {
            Ok(true) if is_another() => return true,
            Ok(true) if Instant::now() < until => std::thread::sleep(LOOK),
            Ok(held) => return !held,
            Err(_) => return true,
        }
    }
}

/// Says how it is.
pub(super) fn status(of: &DaemonAsked) -> ExitCode {
    let (_, stream) = match reach("status", of) {
        Ok(found) => found,
        Err(code) => return code,
    };
    match ask(&stream, r#"{"type":"status"}"#, ANSWER) {
        Ok(DaemonAnswer::Status(status)) => {
            if of.json {
                let mut told = json!(status);
                told["running_daemon"] = Value::Bool(true);
                print_json(told);
            } else {
                print_prose(&shown(&status));
            }
            ExitCode::SUCCESS
        }
        Ok(DaemonAnswer::Restarting) => none_runs(of.json),
        Ok(DaemonAnswer::Error { message, .. }) => failed("status", &format!("hear how it is: {message}")),
        Ok(_) => failed("status", "understand the daemon's answer"),
        Err(error) => failed("status", &chain(&error)),
    }
}

/// A status for people.
fn shown(status: &DaemonStatus) -> String {
    let DaemonStatus {
        build, pid, state, uptime_s, connections, attached_jobs, queued, running, idle_s, scope, ..
    } = status;
    let scope = scope.as_ref().map(|scope| format!(", in a unit that is {scope}")).unwrap_or_default();
    let state = json!(state);
    let state = state.as_str().unwrap_or_default();
    let ends = match idle_s {
        Some(idle) => format!("ends after {idle} s without clients and jobs"),
        None => "stays".to_owned(),
    };
    // The one who asks is no client.
    let clients = connections.saturating_sub(1);
    format!(
        "phone-opus {build} is {state}, for {uptime_s} s (process {pid}, {ends}{scope})\n\
         {clients} clients, {attached_jobs} jobs of theirs; of the whole state directory {running} run and {queued} wait"
    )
}
