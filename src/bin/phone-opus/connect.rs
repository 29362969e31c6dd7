//! `mcp connect`: one client on the standard streams, served by the daemon of its state directory.
//!
//! Owns: what of this process goes to the daemon as the client's own: directory, environment, settings, place in a chain of
//! consults. May not know: what is said to whom.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use phone_opus::internals::base::stdio::{Input, Output};
use phone_opus::internals::bridge::core::BridgeSetup;
use phone_opus::internals::bridge::{self, BridgeEnd, BridgeOptions};
use phone_opus::internals::config::clients::Clients;
use phone_opus::internals::config::{Key, Settings};
use phone_opus::internals::daemon::PROTOCOL;
use phone_opus::internals::daemon::context;
use phone_opus::internals::daemon::control::{OF_A_SESSION, Opening};
use phone_opus::internals::daemon::start::{DaemonStart, DaemonStarter};
use phone_opus::internals::jobs::host_lock::ORPHAN_GRACE;
use phone_opus::internals::jobs::hosts::HostKind;
use phone_opus::internals::protocol::session::{SessionCore, SessionLimits};
use phone_opus::internals::runner::nesting;
use phone_opus::internals::system::Offer;
use phone_opus::internals::tools::consult::KEY_OF_BRIDGE;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use crate::begin::{self, Kind};
use crate::cli::{ConnectOptions, Overrides};
use crate::logging;
use crate::output::say;
use crate::serve::say_who_is_waited_for;
use crate::settings::{Prepared, SetupError, chain, prepare, refused, rollout_with, runtime, say_never_met};

/// How long a runtime's own threads may take to end; one that starts a daemon does not keep the process.
const RUNTIME_END: Duration = Duration::from_millis(100);

const BUILD: &str = env!("CARGO_PKG_VERSION");

/// Serves one client on the standard streams until it closes them or a signal comes.
pub(crate) fn connect(options: &ConnectOptions) -> ExitCode {
    logging::start();
    connect_client(options).unwrap_or_else(|error| refused(&error))
}

fn connect_client(options: &ConnectOptions) -> Result<ExitCode, SetupError> {
    let mut prepared = prepare(&options.common, &options.overrides)?;
    if let Some(isolation) = options.isolation {
        prepared.config.isolation = isolation;
    }
    let chosen = chosen(&options.overrides)?;
    let faults = prepared.faults.clone();
    say_who_is_waited_for("connect");
    let runtime = runtime()?;
    let code = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(SetupError::Runtime)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(SetupError::Runtime)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(SetupError::Runtime)?;
        let mut quit = signal(SignalKind::quit()).map_err(SetupError::Runtime)?;
        begin::ignore(Kind::Bridge)?;
        let (input, output) =
            (Input::stdin().map_err(SetupError::Runtime)?, Output::stdout().map_err(SetupError::Runtime)?);
        // Clients stop a server by any of these, some within milliseconds of each other.
        let stop = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
                _ = quit.recv() => {}
            }
        };
        let ended = bridge::serve(bridge_options(options, prepared, chosen), input, output, stop).await;
        say_never_met(&faults);
        Ok(match ended {
            BridgeEnd::InOrder => ExitCode::SUCCESS,
            BridgeEnd::AfterFault(fault) => {
                say(&format!("phone-opus: {fault}"));
                ExitCode::FAILURE
            }
        })
    });
    runtime.shutdown_timeout(RUNTIME_END);
    code
}

/// The settings whoever started this process chose for it. What is in files of the user's is the daemon's too.
fn chosen(overrides: &Overrides) -> Result<Settings, SetupError> {
    let mut settings = Settings::from_environment(|name| std::env::var_os(name))?;
    if overrides.claude_bin.is_some() {
        settings.claude_bin.clone_from(&overrides.claude_bin);
    }
    settings.billing = overrides.billing.or(settings.billing);
    settings.max_running = overrides.max_running.or(settings.max_running);
    Ok(settings)
}

/// Those of them that are a host's own, by name: the daemon says which it has otherwise.
fn of_a_host(settings: &Settings) -> BTreeMap<String, Value> {
    let from_variable = |key: &&Key| {
        let value = std::env::var(key.variable()).ok()?;
        let value = serde_json::from_str(&value).unwrap_or(Value::String(value));
        Some((key.name.to_owned(), value))
    };
    let of_hosts = Key::ALL.iter().filter(|key| !OF_A_SESSION.contains(&key.name));
    let mut named: BTreeMap<String, Value> = of_hosts.filter_map(|key| from_variable(&key)).collect();
    if let Some(max_running) = settings.max_running {
        named.insert(Key::max_running.name.to_owned(), max_running.into());
    }
    named
}

/// Everything the bridge is given of this process.
fn bridge_options(options: &ConnectOptions, prepared: Prepared, chosen: Settings) -> BridgeOptions {
    let Offer { catalog, identity, contracts } = prepared.clone().system().offer();
    let (opening, unfit) = match opening(&prepared, catalog.digest_text(), chosen) {
        Ok(opening) => (opening.line(), None),
        Err(why) => (String::new(), Some(why)),
    };
    let dir = prepared.dir.clone();
    let clients = Clients::new(Arc::new(prepared.config.clone()), Some(dir.clients()));
    // Where its next version will lie is known to whoever was called by that path.
    let launch = rollout_with(Vec::new()).map(|setup| setup.launch.path);
    let start = DaemonStart::new(dir.clone(), prepared.program.clone(), &prepared.environment, DaemonStarter::Client)
        .called(launch);
    BridgeOptions {
        setup: BridgeSetup {
            local: SessionCore::new(catalog, Arc::clone(&identity), SessionLimits::default()),
            identity,
            contracts,
            opening: opening.into(),
            own: format!("bridge-{}-", Uuid::new_v4()),
            key: Box::new(|| format!("{KEY_OF_BRIDGE}{}", Uuid::new_v4())),
            wait: Box::new(move |client| clients.profile(client).wait),
        },
        build: BUILD,
        dir,
        socket: options.socket.clone(),
        start: start.at(options.socket.clone()).with(words(&options.overrides)),
        unfit,
        host: Box::new(move |notice| {
            let mut prepared = prepared.clone();
            prepared.notices.push(notice);
            // What a daemon that was stopped had of this client goes on here.
            prepared.system().kind(HostKind::Bridge).callers_grace(ORPHAN_GRACE)
        }),
    }
}

/// What a daemon is started with of what a host would be.
fn words(overrides: &Overrides) -> Vec<OsString> {
    let max_running = overrides.max_running.map(|most| ["--max-running".into(), most.to_string().into()]);
    max_running.into_iter().flatten().collect()
}

/// Whose session it is, or why a daemon cannot be told.
fn opening(prepared: &Prepared, catalog: String, settings: Settings) -> Result<Opening, String> {
    let cwd = std::env::current_dir().map_err(|error| format!("the current directory cannot be named: {error}."))?;
    if cwd.to_str().is_none() {
        return Err("the current directory's name is no text, and a daemon is told of it in text.".to_owned());
    }
    let (agents, billing) = (prepared.agents(), prepared.config.billing);
    let environment = context::to_send(&prepared.environment, &agents, billing)
        .map_err(|error| format!("failed to {}.", chain(&error)))?;
    Ok(Opening {
        protocol: PROTOCOL,
        build: Some(BUILD.to_owned()),
        session: Uuid::new_v4().to_string(),
        cwd,
        key_withheld: agents.withholds(&prepared.environment, &environment),
        environment,
        nesting: nesting(&prepared.environment),
        catalog: Some(catalog),
        host_settings: of_a_host(&settings),
        settings,
    })
}
