//! Puts the configuration together: flags over environment over files over defaults.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use phone_opus::internals::agents::{AgentRegistry, Environment, MAX_PROMPT_BYTES};
pub(crate) use phone_opus::internals::base::fault::chain;
use phone_opus::internals::base::ids::HostId;
pub(crate) use phone_opus::internals::base::image::own_program as program;
use phone_opus::internals::base::image::running as image;
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::checkout::plain;
use phone_opus::internals::config::{
    Config, ConfigError, FILE_BYTES, Key, LeftOut, PROJECT_FILE, Settings, WorkerIsolation,
};
use phone_opus::internals::failpoints::{
    ArmError, Ends, FAULT_COUNTERS, FaultCounters, FaultPlan, Faults, PlanError, Tools,
};
use phone_opus::internals::process;
use phone_opus::internals::rollout::{Fingerprint, LOOK_EVERY, LaunchPath, RolloutSetup};
use phone_opus::internals::system::handover::{HostSnapshot, SnapshotError};
use phone_opus::internals::system::{System, SystemBuilder};
use phone_opus::internals::tools;
use phone_opus::internals::tools::consult::default_cwd;
use phone_opus::internals::worker::{Isolation, WorkerCommand};

use crate::begin;
use crate::cli::{Common, Overrides};
use crate::output::say;

/// Everything a command needs to begin.
#[derive(Clone)]
pub(crate) struct Prepared {
    /// The numbers.
    pub(crate) config: Config,
    /// Where jobs are kept.
    pub(crate) dir: StateDir,
    pub(crate) program: PathBuf,
    /// The environment as it was at the start.
    pub(crate) environment: Environment,
    /// Fault plan.
    pub(crate) faults: Faults,
    /// What could not be had as it was to be, for health.
    pub(crate) notices: Vec<String>,
}

/// What stops a command before it begins. Printed with its place and what is accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// A value cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state directory cannot be used.
    #[error("the state directory: failed to {}", chain(.0))]
    StateDir(#[from] phone_opus::internals::base::state_dir::StateDirError),
    /// A fault plan cannot be used.
    #[error(transparent)]
    FaultPlan(#[from] PlanError),
    /// A fault plan cannot be armed.
    #[error("failed to {}", chain(.0))]
    FaultArm(#[from] ArmError),
    /// What the image before passed on cannot be used.
    #[error("failed to {}", chain(.0))]
    Restore(#[from] SnapshotError),
    /// The prompt on stdin cannot be read.
    #[error("the prompt on stdin: {0}; accepted: at most {MAX_PROMPT_BYTES} bytes")]
    Prompt(std::io::Error),
    /// What stdin brings does not fit beside the prompt.
    #[error(
        "the prompt and what stdin brings are too long together; accepted: at most {MAX_PROMPT_BYTES} bytes (--no-stdin leaves \
         stdin out)"
    )]
    TooMuchPiped,
    /// The runtime could not be started.
    #[error("failed to start the runtime: {0}")]
    Runtime(std::io::Error),
}

/// Says why a command did not begin.
pub(crate) fn refused(error: &dyn std::error::Error) -> ExitCode {
    say(&format!("phone-opus: {error}"));
    ExitCode::from(2)
}

/// Where jobs are kept.
pub(crate) fn state_dir(common: &Common) -> Result<StateDir, SetupError> {
    let variable = std::env::var_os("PHONE_OPUS_STATE_DIR");
    let environment = |name: &str| {
        std::env::var_os(name).or_else(|| (name == "HOME").then(dirs::home_dir).flatten().map(OsString::from))
    };
    Ok(StateDir::resolve(common.state_dir.as_deref(), variable, environment)?)
}

/// Reads every source and lays one over the other, and arms what is to break.
pub(crate) fn prepare(common: &Common, overrides: &Overrides) -> Result<Prepared, SetupError> {
    let prepared = configure(common, overrides)?;
    let faults = armed(&prepared.dir, None)?;
    Ok(Prepared { faults, ..prepared })
}

/// The same for a program that takes the place of another image. That one's client is connected, so nothing stops this one
/// that the image before could do without: what cannot be read any more is as it was, and health says so.
pub(crate) fn prepare_after(
    before: &HostSnapshot,
    common: &Common,
    overrides: &Overrides,
) -> Result<Prepared, SetupError> {
    after(before, config(overrides), || state_dir(common))
}

/// The same for a daemon.
pub(crate) fn prepare_daemon_after(
    before: &HostSnapshot,
    dir: &StateDir,
    overrides: &Overrides,
) -> Result<Prepared, SetupError> {
    after(before, users_config(overrides), || Ok(dir.clone()))
}

fn after(
    before: &HostSnapshot,
    read: Result<Config, SetupError>,
    state_dir: impl FnOnce() -> Result<StateDir, SetupError>,
) -> Result<Prepared, SetupError> {
    let mut notices = Vec::new();
    let config = match (read, before.config()) {
        (Ok(config), _) => config,
        (Err(error), Some(in_force)) => {
            notices.push(format!(
                "the configuration could not be read when this version took over ({}); the one that was in force before \
                 stays in force until it is read again, at the next start or upgrade.",
                first_line(&error)
            ));
            in_force
        }
        // What an older version passes on has none.
        (Err(error), None) => return Err(error),
    };
    let dir = match before.state_dir() {
        Some(dir) => dir,
        None => state_dir()?,
    };
    let faults = match armed(&dir, before.fault_counts()) {
        Ok(faults) => faults,
        Err(error) => {
            notices
                .push(format!("the fault plan could not be armed again ({}); nothing is armed.", first_line(&error)));
            Faults::none()
        }
    };
    for notice in &notices {
        tracing::warn!(notice, "this image goes on without something");
    }
    Ok(Prepared { config, dir, program: program(), environment: environment(), faults, notices })
}

/// Of an error: its place and what is wrong. What follows may be a line of the file, and there may be secrets in it.
fn first_line(error: &SetupError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The same, with nothing armed.
pub(crate) fn configure(common: &Common, overrides: &Overrides) -> Result<Prepared, SetupError> {
    let (config, dir) = (config(overrides)?, state_dir(common)?);
    Ok(Prepared {
        config,
        dir,
        program: program(),
        environment: environment(),
        faults: Faults::none(),
        notices: Vec::new(),
    })
}

/// The same for a daemon, which is nobody's project's: what a directory's file says holds for the sessions that work there.
pub(crate) fn prepare_daemon(dir: StateDir, overrides: &Overrides) -> Result<Prepared, SetupError> {
    let (config, faults) = (users_config(overrides)?, armed(&dir, None)?);
    Ok(Prepared { config, dir, program: program(), environment: environment(), faults, notices: Vec::new() })
}

/// The environment as it was at the start, and what our runners are told beside it.
fn environment() -> Environment {
    match begin::told() {
        Some((name, value)) => Environment::capture().with(name, value),
        None => Environment::capture(),
    }
}

/// Every source, one laid over the other.
fn config(overrides: &Overrides) -> Result<Config, SetupError> {
    // The checkout may be anybody's work: whatever it holds, the user's configuration is in force.
    let project = std::path::absolute(PROJECT_FILE).unwrap_or_else(|_| PathBuf::from(PROJECT_FILE));
    let read = plain::read(Path::new(PROJECT_FILE), FILE_BYTES);
    Ok(users_config(overrides)?.lowered(&project, read))
}

/// The user's own sources, one laid over the other.
fn users_config(overrides: &Overrides) -> Result<Config, SetupError> {
    Ok(Config::from_sources(&users_sources(overrides)?)?)
}

/// One key of the configuration in force.
pub(crate) struct Told {
    pub(crate) key: &'static Key,
    pub(crate) value: String,
    /// The file, the variable or the flags it is from.
    pub(crate) from: String,
}

/// Every key with its value and where that is from, and the project's file where it was left out.
pub(crate) fn told(overrides: &Overrides) -> Result<(Vec<Told>, Option<LeftOut>), SetupError> {
    let sources = users_sources(overrides)?;
    let (users, lowered) = (Config::from_sources(&sources)?, config(overrides)?);
    let told = |key: &'static Key| {
        let limit = lowered.shown_limit(key);
        if limit != users.shown_limit(key) {
            return Told { key, value: limit.unwrap_or_default(), from: format!("./{PROJECT_FILE}, which lowers it") };
        }
        match sources.iter().rev().find(|(_, settings)| settings.sets(key)) {
            None => Told { key, value: key.default(), from: "default".to_owned() },
            Some((place, _)) => {
                let from = if place == ENVIRONMENT { key.variable() } else { place.clone() };
                Told { key, value: users.shown(key), from }
            }
        }
    };
    Ok((Key::ALL.iter().map(told).collect(), lowered.left_out.clone()))
}

/// What the environment is called as a source.
const ENVIRONMENT: &str = "the environment";

/// The user's own sources, the strongest last.
fn users_sources(overrides: &Overrides) -> Result<Vec<(String, Settings)>, SetupError> {
    let mut sources = Vec::new();
    if let Some(dir) = dirs::config_dir() {
        from_file(&dir.join("phone_opus").join("config.toml"), &mut sources)?;
    }
    sources.push((ENVIRONMENT.to_owned(), Settings::from_environment(|name| std::env::var_os(name))?));
    let flags = Settings {
        claude_bin: overrides.claude_bin.clone(),
        billing: overrides.billing,
        max_running: overrides.max_running,
        ..Settings::default()
    };
    sources.push(("the command line".to_owned(), flags));
    Ok(sources)
}

/// The fault plan of the environment, armed. All processes of one host count together, in a file beside the jobs.
pub(crate) fn armed(dir: &StateDir, counts: Option<&Path>) -> Result<Faults, SetupError> {
    let lookup = |name: &str| std::env::var_os(name);
    let Some(plan) = FaultPlan::from_environment_with(lookup, Tools::These(&tools::NAMES))? else {
        return Ok(Faults::none());
    };
    for rule in plan.rules().iter().filter(|rule| !rule.point.is_reached()) {
        say(&format!("phone-opus: {rule}: nothing meets this point in this version"));
    }
    let told = std::env::var_os(FAULT_COUNTERS).map(PathBuf::from);
    let counters = match told.or_else(|| counts.map(Path::to_owned)) {
        Some(path) => path,
        None => {
            dir.create()?;
            dir.root().join(format!("faults-{}", HostId::random()))
        }
    };
    Ok(Faults::arm(plan, Ends::Process, FaultCounters::File(counters))?)
}

/// Names the rules of a plan that nobody has met: a test whose fault did not happen has shown nothing.
pub(crate) fn say_never_met(faults: &Faults) {
    let unmet = faults.never_met();
    if !unmet.is_empty() {
        say(&format!("phone-opus: armed and never met: {}", unmet.join("; ")));
    }
}

/// The fault plan of a process that was started by a host: it counts where its host counts.
pub(crate) fn inherited() -> Result<Faults, SetupError> {
    let lookup = |name: &str| std::env::var_os(name);
    let Some(plan) = FaultPlan::from_environment_with(lookup, Tools::These(&tools::NAMES))? else {
        return Ok(Faults::none());
    };
    let counters = match std::env::var_os(FAULT_COUNTERS) {
        Some(path) => FaultCounters::File(path.into()),
        None => FaultCounters::Memory,
    };
    Ok(Faults::arm(plan, Ends::Process, counters)?)
}

/// The user's own file. It may be a link, as people keep such files elsewhere; a pipe or a device is an error and no wait.
fn from_file(path: &Path, sources: &mut Vec<(String, Settings)>) -> Result<(), SetupError> {
    let failed = |problem: String| ConfigError { place: path.display().to_string(), problem };
    let resolved = match std::fs::canonicalize(path) {
        Ok(resolved) => resolved,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(failed(error.to_string()).into()),
    };
    let Some(bytes) = plain::read(&resolved, FILE_BYTES).map_err(|unusable| failed(unusable.to_string()))? else {
        return Ok(());
    };
    let text = String::from_utf8(bytes).map_err(|_| failed("is not UTF-8".to_owned()))?;
    sources.push((path.display().to_string(), Settings::from_toml(path, &text)?));
    Ok(())
}

/// How a server finds and checks the version that replaces it. `None` where the system names no file for it.
pub(crate) fn rollout() -> Option<RolloutSetup> {
    // After `mcp serve`, and without what an earlier image passed on: that was for one image alone.
    let mut words = std::env::args_os().skip(3);
    let mut arguments = Vec::new();
    while let Some(word) = words.next() {
        if word == "--restore" {
            words.next();
        } else if !word.to_string_lossy().starts_with("--restore=") {
            arguments.push(word);
        }
    }
    rollout_with(arguments)
}

/// The same for a server that a candidate is to be checked as with these arguments, those of `mcp serve`.
pub(crate) fn rollout_with(arguments: Vec<OsString>) -> Option<RolloutSetup> {
    let here = std::env::current_dir().ok()?;
    let image = image();
    let called = std::env::args_os().next();
    let search = std::env::var_os("PATH");
    let path = std::env::current_exe().ok();
    let running = image.as_deref().or(path.as_deref()).and_then(Fingerprint::look);
    let launch = LaunchPath::find(called.as_deref(), search.as_deref(), &here, path.as_deref(), running)?;
    let keeper = image.clone();
    Some(RolloutSetup {
        launch,
        image,
        keeper,
        arguments,
        here,
        look_every: LOOK_EVERY,
        program: None,
        environment: None,
    })
}

impl Prepared {
    /// The agents of this installation.
    pub(crate) fn agents(&self) -> AgentRegistry {
        let config = &self.config;
        let (programs, variables) = (config.programs(), &config.agent_env);
        AgentRegistry::installed(&programs, variables, self.program.clone()).configured(
            &config.customs,
            &programs,
            variables,
            &config.agents,
        )
    }

    /// Where worker tools run.
    fn isolation(&self) -> Isolation {
        match self.config.isolation {
            WorkerIsolation::Process => Isolation::Process(WorkerCommand {
                program: self.program.clone(),
                args: WorkerCommand::WORDS.map(OsString::from).into(),
                env: Some(self.environment.clone()),
            }),
            _ => Isolation::InProcess,
        }
    }

    /// A system with everything this program offers.
    pub(crate) fn system(self) -> SystemBuilder {
        let here = std::env::current_dir().ok();
        let home = dirs::home_dir();
        System::builder()
            .state_dir(self.dir.clone())
            .agents(self.agents())
            .runner(self.program.clone())
            .default_cwd(default_cwd(here.as_deref(), home.as_deref()))
            .start_dir(here)
            .environment(self.environment.clone())
            .isolation(self.isolation())
            .faults(self.faults)
            .notices(self.notices)
            .config(self.config)
    }
}

/// A runtime on this thread. One thread: a message between actors is then a function call away, and what blocks has a
/// thread of its own.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, SetupError> {
    process::runtime().map_err(SetupError::Runtime)
}
