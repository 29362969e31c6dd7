//! Configuration: every number and path a user may choose, where each comes from, and what is accepted.
//!
//! Owns: the keys, their defaults and bounds, the order of precedence (flags > environment > user file > defaults), and what a
//! project's file may do. May not know: who uses a value. Nothing here reads the process's environment; it is passed in.
//!
//! Invariants: (1) an unknown key or a bad value of the user's is an error that names its place and the nearest known key; (2) a
//! project's file is no layer: it lowers limits, and can neither raise one nor name a program, an agent, a directory, a key or
//! who pays; (3) one that cannot be used is left out whole, which is told with its place and never with its text.

pub mod clients;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agents::ExtraUsage;
use crate::base::nearest::nearest;
use crate::checkout::plain::Unusable;
use crate::config::clients::ClientSettings;
use crate::jobs::Billing;

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ConfigError {
    /// The file, variable or flag.
    pub place: String,
    /// What is wrong with it and what is accepted.
    pub problem: String,
}

/// One source's values; what it does not set is left to the sources below it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Path of Claude Code's program.
    pub claude_bin: Option<PathBuf>,
    /// Names of variables that are handed on to agents besides those that always are. As a variable: separated by commas.
    pub agent_env: Option<Vec<String>>,
    /// Who pays: `subscription` or `api_key`.
    pub billing: Option<Billing>,
    /// What becomes of a run that would be paid for beyond its plan: `allow` or `stop`.
    pub extra_usage: Option<ExtraUsage>,
    /// The agent that answers when none is named.
    pub agent: Option<String>,
    /// Agent runs at once in this state directory, 1 to 64.
    pub max_running: Option<u64>,
    /// Jobs that may wait, 1 to 10 000.
    pub max_queued: Option<u64>,
    /// Seconds an agent may run, 1 to 86 400.
    pub timeout_s: Option<u64>,
    /// Seconds without any output after which an agent is taken for stuck, 10 to 86 400.
    pub stall_s: Option<u64>,
    /// Seconds a synchronous consult is waited for, unless its client's table says otherwise, 1 to 3 600.
    pub wait_s: Option<u64>,
    /// Characters of a reply's answer, 1 000 to 400 000.
    pub response_chars: Option<u64>,
    /// Seconds between progress notifications, 1 to 60.
    pub progress_s: Option<u64>,
    /// Where tools run: `in_process` or `process`.
    pub isolation: Option<WorkerIsolation>,
    /// Restarts of a lost worker within `restart_period_s`, 0 to 10 000.
    pub restart_intensity: Option<u64>,
    /// Seconds in which so many restarts are allowed, 1 to 86 400.
    pub restart_period_s: Option<u64>,
    /// Milliseconds before the second restart in a row, 0 to 2 000.
    pub restart_backoff_ms: Option<u64>,
    /// When a new file at the launch path is adopted: `auto`, `on_request` or `off`.
    pub rollout: Option<RolloutMode>,
    /// Directories a consult may look into beside the session's own: absolute ones. In the environment with colons between.
    pub workspaces: Option<Vec<PathBuf>>,
    /// What is different for single clients, by the names they give themselves. In files only: a table is no variable.
    pub clients: Option<BTreeMap<String, ClientSettings>>,
}

/// Every key, in the order it is documented.
pub const KEYS: [&str; 19] = [
    "claude_bin",
    "agent_env",
    "billing",
    "extra_usage",
    "agent",
    "max_running",
    "max_queued",
    "timeout_s",
    "stall_s",
    "wait_s",
    "response_chars",
    "progress_s",
    "isolation",
    "restart_intensity",
    "restart_period_s",
    "restart_backoff_ms",
    "rollout",
    WORKSPACES,
    CLIENTS,
];

/// The key that is a table.
const CLIENTS: &str = "clients";

/// The key that lists directories.
const WORKSPACES: &str = "workspaces";

/// Keys of a project's file: limits of the user's that it may lower.
const LIMITS: [&str; 4] = ["timeout_s", "stall_s", "wait_s", "response_chars"];

/// The file of a project.
pub const PROJECT_FILE: &str = ".phone-opus.toml";

/// Bytes of a configuration file; real ones have a few hundred.
pub const FILE_BYTES: usize = 64 * 1024;

/// A project's file that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeftOut {
    /// The file.
    pub place: String,
    /// Why, without a word of what is in it.
    pub why: String,
}

/// Where tools run that a worker executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerIsolation {
    /// In the host's own process: fastest; a panic is survived.
    #[default]
    InProcess,
    /// In a process of their own: an abort, a stack overflow, a blocked thread are survived too.
    Process,
}

impl WorkerIsolation {
    /// The word of the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InProcess => "in_process",
            Self::Process => "process",
        }
    }
}

/// When a new file at the launch path is adopted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutMode {
    /// When it is there and passes the check, and when somebody asks.
    #[default]
    Auto,
    /// Only when somebody asks.
    OnRequest,
    /// Never.
    Off,
}

impl RolloutMode {
    /// The words of the configuration.
    const WORDS: [(&str, Self); 3] = [("auto", Self::Auto), ("on_request", Self::OnRequest), ("off", Self::Off)];

    fn parse(text: &str) -> Result<Self, String> {
        let known = Self::WORDS.map(|(word, _)| word);
        Self::WORDS.iter().find(|(word, _)| *word == text).map(|(_, mode)| *mode).ok_or_else(|| {
            let meant = nearest(text, &known).map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
            format!("{text:?}{meant}; accepted: {}", known.join(", "))
        })
    }
}

/// The configuration in force.
///
/// Written down for a worker process and for the image that takes over, it may be read by another version: what that one does
/// not know is left out, and what it adds is as by default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Path of Claude Code's program, if configured.
    pub claude_bin: Option<PathBuf>,
    /// Names of variables that are handed on to agents besides those that always are. None of them can spend money.
    #[serde(default)]
    pub agent_env: Vec<String>,
    /// Who pays.
    pub billing: Billing,
    /// What becomes of a run that would be paid for beyond its plan.
    pub extra_usage: ExtraUsage,
    /// The agent that answers when none is named.
    pub agent: String,
    /// Agent runs at once. Three: what a laptop and a subscription's limit bear.
    pub max_running: usize,
    /// Jobs that may wait. Each waiting job is a small process.
    pub max_queued: usize,
    /// How long an agent may run.
    pub timeout: Duration,
    /// Silence after which an agent is taken for stuck. Claude Code itself waits 300 s for a silent stream and 360 s for an
    /// answer to begin, and then tries again: it must have the time to.
    pub stall: Duration,
    /// How long a synchronous consult is waited for; by client when not set.
    pub wait: Option<Duration>,
    /// Characters of a reply's answer before it is cut; by client when not set.
    pub response_chars: Option<usize>,
    /// Time between progress notifications; by client when not set.
    pub progress: Option<Duration>,
    /// What is different for single clients.
    pub clients: BTreeMap<String, ClientSettings>,
    /// Where tools run.
    pub isolation: WorkerIsolation,
    /// Restarts of a lost worker within [`Config::restart_period`]; after one more, calls that need a worker are refused
    /// until the period has passed.
    pub restart_intensity: usize,
    /// The sliding window of [`Config::restart_intensity`].
    pub restart_period: Duration,
    /// The wait before the second restart in a row; it doubles up to 2 s. The first restart never waits.
    pub restart_backoff: Duration,
    /// When a new file at the launch path is adopted.
    pub rollout: RolloutMode,
    /// Directories a consult may look into beside the session's own.
    #[serde(default)]
    pub workspaces: Vec<PathBuf>,
    /// How long a project's file lets a synchronous consult be waited for, whatever else is said.
    #[serde(default)]
    pub most_wait: Option<Duration>,
    /// How many characters of an answer it lets a reply have.
    #[serde(default)]
    pub most_response_chars: Option<usize>,
    /// The project's file, where it could not be used.
    #[serde(default)]
    pub left_out: Option<LeftOut>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            claude_bin: None,
            agent_env: Vec::new(),
            billing: Billing::Subscription,
            extra_usage: ExtraUsage::Allow,
            agent: "claude".to_owned(),
            max_running: 3,
            max_queued: 64,
            timeout: Duration::from_secs(3600),
            stall: Duration::from_secs(420),
            wait: None,
            response_chars: None,
            progress: None,
            clients: BTreeMap::new(),
            isolation: WorkerIsolation::InProcess,
            restart_intensity: 6,
            restart_period: Duration::from_secs(30),
            restart_backoff: Duration::from_millis(50),
            rollout: RolloutMode::Auto,
            workspaces: Vec::new(),
            most_wait: None,
            most_response_chars: None,
            left_out: None,
        }
    }
}

impl Config {
    /// Lays sources over the defaults, the strongest last.
    ///
    /// # Errors
    ///
    /// The first value that is out of bounds, with its place.
    pub fn from_sources(sources: &[(String, Settings)]) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        for (place, settings) in sources {
            config.lay(place, settings)?;
        }
        Ok(config)
    }

    fn lay(&mut self, place: &str, settings: &Settings) -> Result<(), ConfigError> {
        let within = |key: &str, value: Option<u64>, least: u64, most: u64| match value {
            Some(value) if (least..=most).contains(&value) => Ok(Some(value)),
            None => Ok(None),
            Some(value) => Err(ConfigError {
                place: place.to_owned(),
                problem: format!("{key} is {value}; accepted: {least} to {most}"),
            }),
        };
        let count = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        if let Some(value) = within("max_running", settings.max_running, 1, 64)? {
            self.max_running = count(value);
        }
        if let Some(value) = within("max_queued", settings.max_queued, 1, 10_000)? {
            self.max_queued = count(value);
        }
        if let Some(value) = within("timeout_s", settings.timeout_s, 1, 86_400)? {
            self.timeout = Duration::from_secs(value);
        }
        if let Some(value) = within("stall_s", settings.stall_s, 10, 86_400)? {
            self.stall = Duration::from_secs(value);
        }
        if let Some(value) = within("wait_s", settings.wait_s, 1, 3_600)? {
            self.wait = Some(Duration::from_secs(value));
        }
        if let Some(value) = within("response_chars", settings.response_chars, 1_000, 400_000)? {
            self.response_chars = Some(count(value));
        }
        if let Some(value) = within("progress_s", settings.progress_s, 1, 60)? {
            self.progress = Some(Duration::from_secs(value));
        }
        for (name, own) in settings.clients.iter().flatten() {
            let place = |key: &str| format!("{CLIENTS}.{name}.{key}");
            let known = self.clients.entry(name.clone()).or_default();
            if let Some(value) = within(&place("wait_s"), own.wait_s, 1, 3_600)? {
                known.wait_s = Some(value);
            }
            if let Some(value) = within(&place("progress_s"), own.progress_s, 1, 60)? {
                known.progress_s = Some(value);
            }
            let chars = own.response_chars.map(|chars| u64::try_from(chars).unwrap_or(u64::MAX));
            if let Some(value) = within(&place("response_chars"), chars, 1_000, 400_000)? {
                known.response_chars = Some(count(value));
            }
        }
        if let Some(value) = within("restart_intensity", settings.restart_intensity, 0, 10_000)? {
            self.restart_intensity = count(value);
        }
        if let Some(value) = within("restart_period_s", settings.restart_period_s, 1, 86_400)? {
            self.restart_period = Duration::from_secs(value);
        }
        if let Some(value) = within("restart_backoff_ms", settings.restart_backoff_ms, 0, 2_000)? {
            self.restart_backoff = Duration::from_millis(value);
        }
        if let Some(listed) = &settings.workspaces {
            if let Some(wrong) = listed.iter().find(|dir| !dir.is_absolute()) {
                let problem = format!("{WORKSPACES} holds {}; accepted: absolute directories", wrong.display());
                return Err(ConfigError { place: place.to_owned(), problem });
            }
            self.workspaces.clone_from(listed);
        }
        if let Some(path) = &settings.claude_bin {
            self.claude_bin = Some(path.clone());
        }
        if let Some(names) = &settings.agent_env {
            self.agent_env = agent_env(place, names)?;
        }
        if let Some(billing) = settings.billing {
            self.billing = billing;
        }
        if let Some(extra) = settings.extra_usage {
            self.extra_usage = extra;
        }
        if let Some(isolation) = settings.isolation {
            self.isolation = isolation;
        }
        if let Some(rollout) = settings.rollout {
            self.rollout = rollout;
        }
        if let Some(agent) = &settings.agent {
            self.agent.clone_from(agent);
        }
        Ok(())
    }
}

impl Config {
    /// Lets a project's file lower limits, or leaves it out and says so.
    #[must_use]
    pub fn lowered(mut self, place: &Path, read: Result<Option<Vec<u8>>, Unusable>) -> Self {
        let limits = match read {
            Ok(None) => return self,
            Ok(Some(bytes)) => limits(&bytes),
            Err(unusable) => Err(unusable.to_string()),
        };
        match limits {
            Ok([timeout, stall, wait, chars]) => {
                let seconds = |value: Option<u64>| value.map(Duration::from_secs);
                self.timeout = seconds(timeout).map_or(self.timeout, |most| self.timeout.min(most));
                self.stall = seconds(stall).map_or(self.stall, |most| self.stall.min(most));
                self.most_wait = seconds(wait);
                self.most_response_chars = chars.and_then(|chars| usize::try_from(chars).ok());
            }
            Err(why) => self.left_out = Some(LeftOut { place: place.display().to_string(), why }),
        }
        self
    }
}

/// The limits in a project's file, in the order of [`LIMITS`]; or what is wrong with it, without its text.
fn limits(bytes: &[u8]) -> Result<[Option<u64>; 4], String> {
    const LEAST: [u64; 4] = [1, 10, 1, 1_000];
    let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())?;
    let table: toml::Table = text.trim_start_matches('\u{feff}').parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| bytes.get(..span.start)).unwrap_or_default();
        format!("is no TOML (line {})", 1 + memchr::memchr_iter(b'\n', before).count())
    })?;
    let mut limits = [None; 4];
    for (key, value) in &table {
        let Some(at) = LIMITS.iter().position(|limit| limit == key) else {
            let accepted = LIMITS.join(", ");
            return Err(match KEYS.iter().find(|known| *known == key) {
                Some(key) => format!(
                    "sets {key}, which may not be set by a project's file (yours may, and so may {}); accepted: {accepted}",
                    variable(key)
                ),
                None => format!("sets something that is no limit; accepted: {accepted}"),
            });
        };
        let number = value.as_integer().and_then(|number| u64::try_from(number).ok());
        let Some(number) = number.filter(|number| (LEAST[at]..=400_000).contains(number)) else {
            return Err(format!("sets {key} to what is no limit; accepted: whole numbers from {}", LEAST[at]));
        };
        limits[at] = Some(number);
    }
    Ok(limits)
}

impl Settings {
    /// Reads a configuration file's text.
    ///
    /// # Errors
    ///
    /// The place (file and line) and what is wrong, with the nearest known key for an unknown one.
    pub fn from_toml(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let failed = |problem: String| ConfigError { place: path.display().to_string(), problem };
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| failed(error.to_string()))?;
        for key in table.keys() {
            if !KEYS.contains(&key.as_str()) {
                return Err(failed(unknown(key, &KEYS)));
            }
        }
        toml::from_str(text).map_err(|error| failed(error.to_string().trim_end().to_owned()))
    }

    /// Reads the variables `PHONE_OPUS_<KEY>`.
    ///
    /// # Errors
    ///
    /// The variable and what is wrong with it.
    pub fn from_environment(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
        let mut settings = Self::default();
        for key in KEYS.into_iter().filter(|key| *key != CLIENTS) {
            let name = variable(key);
            let Some(value) = get(&name).filter(|value| !value.is_empty()) else { continue };
            if key == WORKSPACES {
                settings.workspaces =
                    Some(std::env::split_paths(&value).filter(|dir| !dir.as_os_str().is_empty()).collect());
                continue;
            }
            if key == "claude_bin" {
                settings.claude_bin = Some(PathBuf::from(value));
                continue;
            }
            let failed = |problem: String| ConfigError { place: name.clone(), problem };
            let text = value.into_string().map_err(|_| failed("is not UTF-8".to_owned()))?;
            settings.set(key, &text).map_err(failed)?;
        }
        Ok(settings)
    }

    fn set(&mut self, key: &str, text: &str) -> Result<(), String> {
        let number = || text.trim().parse::<u64>().map_err(|_| format!("{text:?} is not a whole number"));
        match key {
            "billing" => {
                self.billing = Some(match text {
                    "subscription" => Billing::Subscription,
                    "api_key" => Billing::ApiKey,
                    other => return Err(format!("{other:?}; accepted: subscription, api_key")),
                });
            }
            "extra_usage" => {
                let choice = ExtraUsage::parse(text);
                self.extra_usage = Some(choice.ok_or_else(|| format!("{text:?}; accepted: allow, stop"))?);
            }
            "isolation" => {
                self.isolation = Some(match text {
                    "in_process" => WorkerIsolation::InProcess,
                    "process" => WorkerIsolation::Process,
                    other => return Err(format!("{other:?}; accepted: in_process, process")),
                });
            }
            "rollout" => self.rollout = Some(RolloutMode::parse(text)?),
            "agent" => self.agent = Some(text.to_owned()),
            "agent_env" => {
                let names = text.split([',', ' ']).filter(|name| !name.is_empty());
                self.agent_env = Some(names.map(str::to_owned).collect());
            }
            "max_running" => self.max_running = Some(number()?),
            "max_queued" => self.max_queued = Some(number()?),
            "timeout_s" => self.timeout_s = Some(number()?),
            "stall_s" => self.stall_s = Some(number()?),
            "wait_s" => self.wait_s = Some(number()?),
            "response_chars" => self.response_chars = Some(number()?),
            "progress_s" => self.progress_s = Some(number()?),
            "restart_intensity" => self.restart_intensity = Some(number()?),
            "restart_period_s" => self.restart_period_s = Some(number()?),
            "restart_backoff_ms" => self.restart_backoff_ms = Some(number()?),
            other => return Err(unknown(other, &KEYS)),
        }
        Ok(())
    }
}

/// Variables an agent may be handed by name; nobody has more than a few.
const AGENT_ENV_MOST: usize = 64;

/// The names, when each may be handed on.
fn agent_env(place: &str, names: &[String]) -> Result<Vec<String>, ConfigError> {
    let failed = |problem: String| Err(ConfigError { place: place.to_owned(), problem });
    if names.len() > AGENT_ENV_MOST {
        return failed(format!("agent_env has {} names; accepted: up to {AGENT_ENV_MOST}", names.len()));
    }
    for name in names {
        if let Some(why) = crate::agents::variable_refused(name) {
            let shown: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
            return failed(format!("agent_env: {shown} {why}"));
        }
    }
    Ok(names.to_vec())
}

/// The environment variable of a key.
#[must_use]
pub fn variable(key: &str) -> String {
    format!("PHONE_OPUS_{}", key.to_ascii_uppercase())
}

fn unknown(key: &str, known: &[&str]) -> String {
    match nearest(key, known) {
        Some(near) => format!("unknown key {key:?} (did you mean {near}?)"),
        None => format!("unknown key {key:?}; accepted: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toml(text: &str) -> Result<Settings, ConfigError> {
        Settings::from_toml(Path::new("config.toml"), text)
    }

    #[test]
    fn stronger_sources_win_and_the_rest_stays() {
        let user = toml("max_running = 2\nbilling = \"api_key\"\n").expect("it is good");
        let environment = Settings::from_environment(|name| match name {
            "PHONE_OPUS_MAX_RUNNING" => Some("5".into()),
            "PHONE_OPUS_CLAUDE_BIN" => Some("/x/claude".into()),
            _ => None,
        })
        .expect("it is good");
        let config = Config::from_sources(&[("file".into(), user), ("environment".into(), environment)]).expect("good");
        assert_eq!(config.max_running, 5);
        assert_eq!(config.billing, Billing::ApiKey);
        assert_eq!(config.claude_bin, Some(PathBuf::from("/x/claude")));
        assert_eq!(config.timeout, Config::default().timeout);
    }

    #[test]
    fn a_bad_value_names_its_place_and_what_is_accepted() {
        let cases = [
            (toml("max_runing = 2"), "did you mean max_running?"),
            (toml("max_running = \"two\""), "line 1"),
            (toml("billing = \"free\""), "subscription"),
            (toml("rollout = \"on\""), "on_request"),
            (
                Config::from_sources(&[("file".into(), toml("workspaces = [\"src\"]").expect("it is a list"))])
                    .map(|_| Settings::default()),
                "file: workspaces holds src; accepted: absolute directories",
            ),
            (
                Settings::from_environment(|name| (name == "PHONE_OPUS_ROLLOUT").then(|| "on-request".into())),
                "PHONE_OPUS_ROLLOUT: \"on-request\" (did you mean on_request?); accepted: auto, on_request, off",
            ),
            (toml("extra_usage = \"sometimes\""), "stop"),
            (toml("agent_env = \"X\""), "line 1"),
            (
                Settings::from_environment(|name| (name == "PHONE_OPUS_BILLING").then(|| "cash".into())),
                "PHONE_OPUS_BILLING: \"cash\"; accepted: subscription, api_key",
            ),
            (
                Settings::from_environment(|name| (name == "PHONE_OPUS_STALL_S").then(|| "soon".into())),
                "\"soon\" is not a whole number",
            ),
        ];
        for (got, want) in cases {
            let error = got.expect_err(want).to_string();
            assert!(error.contains(want), "{want}\n in {error}");
        }
        let settings = Settings { max_running: Some(0), ..Settings::default() };
        let error = Config::from_sources(&[("--max-running".into(), settings)]).expect_err("zero is no limit");
        assert_eq!(error.to_string(), "--max-running: max_running is 0; accepted: 1 to 64");
    }

    #[test]
    fn variables_for_agents_are_the_users_to_name_and_what_pays_is_refused_with_the_reason() {
        let file = toml("agent_env = [\"NODE_OPTIONS\", \"CI\"]\n").expect("it is good");
        let variable = |value: &'static str| {
            Settings::from_environment(move |name| (name == "PHONE_OPUS_AGENT_ENV").then(|| value.into()))
                .expect("good")
        };
        let sources = [("file".to_owned(), file), ("environment".to_owned(), variable("A_B, C"))];
        assert_eq!(Config::from_sources(&sources[..1]).expect("good").agent_env, ["NODE_OPTIONS", "CI"]);
        assert_eq!(Config::from_sources(&sources).expect("good").agent_env, ["A_B", "C"]);
        for (names, why) in [
            ("ANTHROPIC_API_KEY", "agent_env: ANTHROPIC_API_KEY can spend money"),
            ("CI,AWS_PROFILE", "billing = \"api_key\""),
            ("PHONE_OPUS_FAULTS", "server's own"),
            ("CLAUDECODE", "session"),
            ("A=B", "no name of a variable"),
        ] {
            let wrong =
                Config::from_sources(&[("the environment".into(), variable(names))]).expect_err(names).to_string();
            assert!(wrong.starts_with("the environment: ") && wrong.contains(why), "{wrong}");
        }
    }

    #[test]
    fn a_clients_table_is_laid_key_by_key_and_checked_like_every_other_value() {
        let user = toml("[clients.x]\nwait_s = 20\nresponse_chars = 5000\n").expect("it is good");
        let other = toml("[clients.x]\nwait_s = 10\n[clients.\"a b\"]\nprogress_s = 1\n").expect("it is good");
        let config = Config::from_sources(&[("user".into(), user), ("other".into(), other)]).expect("good");
        let x = ClientSettings { wait_s: Some(10), progress_s: None, response_chars: Some(5000) };
        assert_eq!((config.clients.get("x"), config.clients.len()), (Some(&x), 2));
        let wrong = toml("[clients.x]\nwait = 20\n").expect_err("no such key").to_string();
        assert!(wrong.contains("unknown field `wait`"), "{wrong}");
        let settings = toml("[clients.x]\nwait_s = 0\n").expect("a number");
        let wrong = Config::from_sources(&[("file".into(), settings)]).expect_err("zero is no wait").to_string();
        assert_eq!(wrong, "file: clients.x.wait_s is 0; accepted: 1 to 3600");
    }

    fn with_project(user: &str, project: &[u8]) -> Config {
        let user = toml(user).expect("it is good");
        let config = Config::from_sources(&[("user".into(), user)]).expect("good");
        config.lowered(Path::new("/p/.phone-opus.toml"), Ok(Some(project.to_vec())))
    }

    #[test]
    fn a_project_lowers_limits_and_raises_none() {
        let seconds = Duration::from_secs;
        let lower =
            with_project("timeout_s = 50\n", b"timeout_s = 7\nstall_s = 20\nwait_s = 3\nresponse_chars = 2000\n");
        assert_eq!((lower.timeout, lower.stall, &lower.left_out), (seconds(7), seconds(20), &None));
        assert_eq!((lower.most_wait, lower.most_response_chars), (Some(seconds(3)), Some(2000)));
        let higher = with_project("timeout_s = 5\nstall_s = 10\n", b"timeout_s = 86400\nstall_s = 86400\n");
        assert_eq!((higher.timeout, higher.stall, &higher.left_out), (seconds(5), seconds(10), &None));
        let none = with_project("timeout_s = 5\n", b"# nothing\n");
        assert_eq!((none.timeout, none.left_out), (seconds(5), None));
    }

    #[test]
    fn a_projects_file_that_cannot_be_used_is_left_out_whole_and_never_quoted() {
        let cases: [(&[u8], &str); 13] = [
            (b"x", "is no TOML (line 1)"),
            (b"timeout_s = 5\naws_secret_access_key = wJalr/SECRET\n", "is no TOML (line 2)"),
            (b"timeout_s = \"SECRET\"", "sets timeout_s to what is no limit"),
            (b"timeout_s = 0", "sets timeout_s to what is no limit"),
            (b"timeout_s = -1", "sets timeout_s to what is no limit"),
            (b"timeout_s = 5\nSECRET = 1", "sets something that is no limit"),
            (b"\xff = 1", "is not UTF-8"),
            (b"claude_bin = \"/bin/SECRET\"", "sets claude_bin, which may not be set by a project's file"),
            (b"billing = \"api_key\"", "PHONE_OPUS_BILLING"),
            (b"workspaces = [\"/\"]", "PHONE_OPUS_WORKSPACES"),
            (b"agent = \"offline\"", "PHONE_OPUS_AGENT"),
            (b"max_running = 1", "sets max_running"),
            (b"[clients.SECRET]\nwait_s = 5\n", "sets clients"),
        ];
        for (text, want) in cases {
            let config = with_project("timeout_s = 50\n", text);
            let left_out = config.left_out.expect(want);
            assert!(left_out.why.contains(want) && !left_out.why.contains("SECRET"), "{want}: {left_out:?}");
            assert_eq!((config.timeout, left_out.place.as_str()), (Duration::from_secs(50), "/p/.phone-opus.toml"));
        }
    }
}
