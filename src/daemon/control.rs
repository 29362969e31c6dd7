//! What is said to a daemon beside JSON-RPC.
//!
//! Owns: which lines these are, what each may hold, what is wrong with one that cannot be used, and every byte of the answers.
//! May not know: who acts on them, sessions, sockets.
//!
//! A line with a member `jsonrpc` is a client's message, whatever else it holds, and so is a line whose `type` is none of
//! ours: only the session answers those. Each control message is answered with one line of JSON.
//!
//! ```text
//! hello  status  shutdown          frozen: every version understands them, so that an old daemon can be found and ended
//! session_open                     whose session this is: directory, environment, settings; at most once, before the first call
//! pause  resume  drain  reload     requests; whoever owns the state changes it
//! dashboard                        serve the page, or serve it no longer
//! ```
//!
//! Invariants: (1) everything that is wrong is named at once, by its name and never by a value; (2) what one line holds is
//! bounded: 64 KiB of environment, and each name and word.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::PROTOCOL;
use crate::agents::Environment;
use crate::base::base64::Base64;
use crate::base::ids::{ChainId, DaemonId, HostId};
use crate::base::nearest::nearest;
use crate::config::{Config, Key, Settings};
use crate::jobs::hosts::{AttachedJob, SessionSeen, TreeSaid};

/// Bytes of names and values an environment may have. A shell's whole environment has a tenth of it.
pub const ENVIRONMENT: usize = 64 * 1024;

/// Bytes of a session's key, and of the words a bridge says about itself and its client.
const WORD: usize = 200;

/// Settings of its own host that a caller may name; there are fewer.
const HOST_SETTINGS: usize = 64;

/// Settings that may differ from session to session. The others are the daemon's: it has one of each.
pub const OF_A_SESSION: [&str; 15] = [
    "claude_bin",
    "codex_bin",
    "copilot_bin",
    "gemini_bin",
    "opencode_bin",
    "qwen_bin",
    "agent_env",
    "billing",
    "extra_usage",
    "agent",
    "timeout_s",
    "stall_s",
    "wait_s",
    "response_chars",
    "progress_s",
];

/// A control message.
#[derive(Debug, Clone, PartialEq)]
pub enum ControlMessage {
    /// Who are you?
    Hello,
    /// How are you?
    Status,
    /// This is my session.
    SessionOpen(Box<Opening>),
    /// Begin no job until told.
    Pause,
    /// Begin jobs again.
    Resume,
    /// Let what is in flight end, and begin nothing new.
    Drain,
    /// Look for the next version, and for the socket.
    Reload,
    /// Serve the page, or serve it no longer.
    Dashboard(PageAsk),
    /// End.
    Shutdown(ShutdownMode),
}

/// What is asked about the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageAsk {
    /// An address that opens it once, by this port; 0 for any.
    Open {
        /// The port.
        port: u16,
    },
    /// That it ends.
    Close,
}

/// How a daemon is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownMode {
    /// Only when no job of anybody else runs.
    WhenFree,
    /// When what is in flight has ended.
    Drain,
    /// At once, as a signal would have it.
    Force,
}

/// The types, as they are written.
const TYPES: [&str; 9] =
    ["hello", "status", "session_open", "pause", "resume", "drain", "reload", "dashboard", "shutdown"];

impl ControlMessage {
    /// Its type, as it is written.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Status => "status",
            Self::SessionOpen(_) => "session_open",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Drain => "drain",
            Self::Reload => "reload",
            Self::Dashboard(_) => "dashboard",
            Self::Shutdown(_) => "shutdown",
        }
    }
}

/// The type of this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static str> {
    TYPES.into_iter().find(|known| *known == name)
}

/// Whose session a connection is.
#[derive(Debug, Clone, PartialEq)]
pub struct Opening {
    /// The version of this message.
    pub protocol: u32,
    /// The version of the program that sends it, where it says.
    pub build: Option<String>,
    /// What the session is known by when it is opened again over another connection.
    pub session: String,
    /// The directory it works in, absolute.
    pub cwd: PathBuf,
    /// The caller's environment, as far as its agents may see it.
    pub environment: Environment,
    /// Whether a way to pay was in the caller's environment and was left out.
    pub key_withheld: bool,
    /// The chain of nested consults the caller is part of, and how deep.
    pub nesting: (Option<ChainId>, u32),
    /// The tools the client was told of, by their digest.
    pub catalog: Option<String>,
    /// The settings the caller chose itself.
    pub settings: Settings,
    /// What the caller chose of the settings that are the host's own, as a host of its own would have them. A daemon has one of
    /// each for all its clients, and names those it has otherwise.
    pub host_settings: BTreeMap<String, Value>,
}

/// Why a control message is not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlRefusal {
    /// What was asked.
    pub to: &'static str,
    /// What is wrong with it, by name.
    pub problems: Vec<String>,
}

impl ControlRefusal {
    /// For one reason.
    #[must_use]
    pub fn new(to: &'static str, problem: impl Into<String>) -> Self {
        Self { to, problems: vec![problem.into()] }
    }

    /// The line it is answered with, without its end.
    #[must_use]
    pub fn line(&self) -> String {
        let message = self.problems.join("; ");
        json!({"type": "error", "to": self.to, "message": message}).to_string()
    }
}

/// Who a daemon says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Which life of which daemon.
    pub generation: DaemonId,
    /// Its process, for people.
    pub pid: u32,
}

impl About {
    /// The answer to `hello`, without its line's end.
    #[must_use]
    pub fn line(&self) -> String {
        let Self { generation, pid } = self;
        let build = env!("CARGO_PKG_VERSION");
        json!({"type": "hello", "proto": PROTOCOL, "build": build, "generation": generation, "pid": pid}).to_string()
    }
}

/// What a client at the door of a daemon that stops is told, without its line's end: there will be another.
#[must_use]
pub fn restarting() -> String {
    json!({"type": "restarting"}).to_string()
}

/// What a daemon's bridges are told last when somebody wants it to stop, without its line's end: nobody is to start another
/// one for them. To whoever knows no more it is [`restarting`].
#[must_use]
pub fn stopped() -> String {
    json!({"type": "restarting", "stopped": true}).to_string()
}

/// Whether a line is [`stopped`].
#[must_use]
pub fn says_stopped(line: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Said {
        stopped: bool,
    }
    let stopped = || serde_json::from_slice(line).is_ok_and(|said: Said| said.stopped);
    DaemonAnswer::read(line) == Some(DaemonAnswer::Restarting) && stopped()
}

/// That what was asked is under way or done, without its line's end.
#[must_use]
pub fn done(to: &'static str) -> String {
    json!({"type": "ok", "to": to}).to_string()
}

/// The answer to `session_open`: the session is the caller's from here on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOpened {
    /// The version of what is said beside JSON-RPC.
    #[serde(rename = "proto")]
    pub protocol: u32,
    /// The program's version.
    pub build: String,
    /// Which life of which daemon.
    pub generation: DaemonId,
    /// The digest of the tools this daemon offers.
    pub catalog: String,
    /// Whether a session of this key was open in this daemon before.
    pub resumed: bool,
    /// The settings of [`Opening::host_settings`] that this daemon has otherwise, by name.
    #[serde(default)]
    pub settings_ignored: Vec<String>,
}

/// How a daemon is: the answer to `status`. A later version may say more; what an earlier one did not say is as by default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// The version of what is said beside JSON-RPC.
    #[serde(rename = "proto")]
    pub protocol: u32,
    /// The program's version.
    pub build: String,
    /// Which life of which daemon.
    pub generation: DaemonId,
    /// Its process, for people.
    #[serde(default)]
    pub pid: u32,
    /// Whether it begins jobs.
    #[serde(default)]
    pub state: ServingState,
    /// Seconds since it began.
    #[serde(default)]
    pub uptime_s: u64,
    /// Clients that are connected, the asking one included.
    #[serde(default)]
    pub connections: usize,
    /// Jobs it looks after.
    #[serde(default)]
    pub attached_jobs: usize,
    /// Jobs of the whole state directory that wait.
    #[serde(default)]
    pub queued: u64,
    /// Jobs of the whole state directory whose agent runs.
    #[serde(default)]
    pub running: u64,
    /// When it ends by itself if nobody needs it: seconds without connections and jobs; `None` when it stays.
    #[serde(default)]
    pub idle_s: Option<u64>,
    /// Whose unit of a service manager it is in, and why not in one of its own, where that is known.
    #[serde(default)]
    pub scope: Option<String>,
    /// Which host it is among those of its state directory.
    #[serde(default)]
    pub host: Option<HostId>,
    /// Agents that may run at once.
    #[serde(default)]
    pub max_running: usize,
    /// Its sessions, the oldest first and at most a hundred; who asks is one of them.
    #[serde(default)]
    pub sessions: Vec<SessionSeen>,
    /// The jobs it looks after, and whose calls wait for them.
    #[serde(default)]
    pub jobs: Vec<AttachedJob>,
    /// How its parts are.
    #[serde(default)]
    pub tree: TreeSaid,
    /// What became of the last version that was looked at, where it was not adopted.
    #[serde(default)]
    pub rollout_rejected: Option<String>,
}

/// Whether a daemon begins jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServingState {
    /// It does.
    #[default]
    Serving,
    /// Not until it is told.
    Paused,
    /// Not any more: what is in flight ends, and then the daemon does.
    Draining,
}

/// What a daemon answers, as its client reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "one is read for each question, and none is kept")]
pub enum DaemonAnswer {
    /// Who it is.
    Hello {
        /// The version of what is said beside JSON-RPC.
        proto: u32,
        /// The program's version.
        build: String,
        /// Which life of which daemon.
        generation: DaemonId,
        /// Its process, for people.
        #[serde(default)]
        pid: u32,
    },
    /// How it is.
    Status(DaemonStatus),
    /// The session is the caller's.
    SessionOpened(SessionOpened),
    /// The page is served.
    Dashboard {
        /// An address that opens it once. It is a secret.
        url: String,
    },
    /// What was asked is under way or done.
    Ok {
        /// What was asked.
        to: String,
    },
    /// What was asked is not followed.
    Error {
        /// What was asked.
        to: String,
        /// Why.
        message: String,
    },
    /// It stops, and there will be another.
    Restarting,
}

impl DaemonAnswer {
    /// Reads a line. `None` when it is none of these, as a line of JSON-RPC or of a later version is.
    #[must_use]
    pub fn read(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// The line, without its end.
    #[must_use]
    pub fn line(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| {
            // Nothing in it can fail; who asked gets a line in any case.
            ControlRefusal::new("?", error.to_string()).line()
        })
    }
}

/// Reads a line. `None` when it is no control message: then it is a client's, and its session answers it.
#[must_use]
pub fn read(line: &[u8]) -> Option<Result<ControlMessage, ControlRefusal>> {
    let members: Map<String, Value> = serde_json::from_slice(line).ok()?;
    if members.contains_key("jsonrpc") {
        return None;
    }
    let kind = members.get("type").and_then(Value::as_str);
    let kind = TYPES.into_iter().find(|known| kind == Some(known))?;
    Some(match kind {
        "hello" => Ok(ControlMessage::Hello),
        "status" => Ok(ControlMessage::Status),
        "pause" => Ok(ControlMessage::Pause),
        "resume" => Ok(ControlMessage::Resume),
        "drain" => Ok(ControlMessage::Drain),
        "reload" => Ok(ControlMessage::Reload),
        "dashboard" => page(&members).map(ControlMessage::Dashboard),
        "shutdown" => shutdown(&members).map(ControlMessage::Shutdown),
        _ => Opening::read(&members).map(|opening| ControlMessage::SessionOpen(Box::new(opening))),
    })
}

fn page(members: &Map<String, Value>) -> Result<PageAsk, ControlRefusal> {
    if members.get("stop") == Some(&Value::Bool(true)) {
        return Ok(PageAsk::Close);
    }
    match members.get("port").map_or(Some(0), Value::as_u64).and_then(|port| u16::try_from(port).ok()) {
        Some(port) => Ok(PageAsk::Open { port }),
        None => Err(ControlRefusal::new("dashboard", "`port` is no port; accepted: 0 to 65535")),
    }
}

fn shutdown(members: &Map<String, Value>) -> Result<ShutdownMode, ControlRefusal> {
    match members.get("mode").map(Value::as_str) {
        None => Ok(ShutdownMode::WhenFree),
        Some(Some("drain")) => Ok(ShutdownMode::Drain),
        Some(Some("force")) => Ok(ShutdownMode::Force),
        Some(_) => Err(ControlRefusal::new("shutdown", "`mode` is not known; accepted: drain, force, or none")),
    }
}

impl Opening {
    fn read(members: &Map<String, Value>) -> Result<Self, ControlRefusal> {
        let mut problems = Vec::new();
        let mut problem = |problem: String| problems.push(problem);
        let protocol = match members.get("proto").and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok())
        {
            Some(number) if number >= 1 => number,
            _ => {
                problem("`proto` is missing or no version; accepted: a whole number from 1".to_owned());
                PROTOCOL
            }
        };
        let build = word(members, "build", &mut problem);
        let catalog = word(members, "catalog", &mut problem);
        let session = match members.get("session") {
            None | Some(Value::Null) => {
                problem("`session` is missing; accepted: a key of your own".to_owned());
                String::new()
            }
            Some(_) => word(members, "session", &mut problem).unwrap_or_default(),
        };
        let cwd = match members.get("cwd") {
            Some(Value::String(text)) if text.starts_with('/') && !text.contains('\0') => PathBuf::from(text),
            Some(Value::String(text)) if !text.contains('\0') => {
                problem("`cwd` is not absolute; accepted: an absolute path".to_owned());
                PathBuf::new()
            }
            _ => {
                problem("`cwd` is missing or no path; accepted: an absolute path".to_owned());
                PathBuf::new()
            }
        };
        let environment = environment(members, &mut problem);
        let key_withheld = match members.get("key_withheld") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(withheld)) => *withheld,
            Some(_) => {
                problem("`key_withheld` is neither true nor false".to_owned());
                false
            }
        };
        let nesting = nesting(members).unwrap_or_else(|wrong| {
            problem(wrong.to_owned());
            (None, 0)
        });
        let settings = settings(members, &mut problem);
        let host_settings = match members.get("host_settings") {
            None | Some(Value::Null) => BTreeMap::new(),
            Some(Value::Object(listed)) if listed.len() <= HOST_SETTINGS => {
                // Only names are said again, and names of ours are short.
                let named = listed.iter().filter(|(name, _)| name.len() <= WORD);
                named.map(|(name, value)| (name.clone(), value.clone())).collect()
            }
            Some(_) => {
                problem(format!("`host_settings` is unusable; accepted: at most {HOST_SETTINGS} names and values"));
                BTreeMap::new()
            }
        };
        if !problems.is_empty() {
            return Err(ControlRefusal { to: "session_open", problems });
        }
        Ok(Self { protocol, build, session, cwd, environment, key_withheld, nesting, catalog, settings, host_settings })
    }

    /// The names of [`Opening::host_settings`] that this configuration has otherwise; one it does not know is one of them.
    #[must_use]
    pub fn settings_ignored(&self, config: &Config) -> Vec<String> {
        let differs = |name: &str, value: &Value| {
            let asked: Option<Settings> = serde_json::from_value(json!({name: value})).ok();
            asked.is_none_or(|asked| config.differs_from(&asked))
        };
        self.host_settings.iter().filter(|(name, value)| differs(name, value)).map(|(name, _)| name.clone()).collect()
    }
}

/// A short text, where there is one.
fn word(members: &Map<String, Value>, name: &str, problem: &mut impl FnMut(String)) -> Option<String> {
    match members.get(name)? {
        Value::Null => None,
        Value::String(text) if (1..=WORD).contains(&text.len()) && !text.chars().any(char::is_control) => {
            Some(text.clone())
        }
        _ => {
            problem(format!("`{name}` is no word; accepted: 1 to {WORD} bytes without control characters"));
            None
        }
    }
}

/// The environment in `env` (text) and `env_b64` (whatever is none).
fn environment(members: &Map<String, Value>, problem: &mut impl FnMut(String)) -> Environment {
    let mut variables: BTreeMap<OsString, OsString> = BTreeMap::new();
    let mut bytes = 0_usize;
    for member in ["env", "env_b64"] {
        let listed = match members.get(member) {
            None | Some(Value::Null) => continue,
            Some(Value::Object(listed)) => listed,
            Some(_) => {
                problem(format!("`{member}` is no object; accepted: names and values"));
                continue;
            }
        };
        for (name, value) in listed {
            let shown: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
            if name.is_empty() || name.contains(['=', '\0']) {
                problem(format!("`{member}` holds {shown:?}, which is no name of a variable"));
                continue;
            }
            if name.starts_with("PHONE_OPUS_") {
                problem(format!(
                    "`{member}` holds {shown}, which is a setting; accepted: what is chosen, in `settings`"
                ));
                continue;
            }
            let value = match value {
                Value::String(text) if member == "env" => Some(text.as_bytes().to_vec()),
                Value::String(_) => serde_json::from_value::<Base64>(value.clone()).ok().map(|value| value.0.to_vec()),
                _ => None,
            };
            let Some(value) = value else {
                problem(format!(
                    "the value of {shown} in `{member}` is no {}",
                    if member == "env" { "text" } else { "base64" }
                ));
                continue;
            };
            if value.contains(&0) {
                problem(format!("the value of {shown} in `{member}` holds a NUL, which no environment can"));
                continue;
            }
            bytes = bytes.saturating_add(name.len() + value.len());
            if variables.insert(name.into(), OsString::from_vec(value)).is_some() {
                problem(format!("{shown} is in `env` and in `env_b64`"));
            }
        }
    }
    if bytes > ENVIRONMENT {
        problem(format!("the environment has {bytes} bytes; accepted: at most {ENVIRONMENT}"));
    }
    variables.into_iter().collect()
}

fn nesting(members: &Map<String, Value>) -> Result<(Option<ChainId>, u32), &'static str> {
    const WRONG: &str = "`nesting` is not usable; accepted: {\"chain\": id, \"depth\": number}";
    let nesting = match members.get("nesting") {
        None | Some(Value::Null) => return Ok((None, 0)),
        Some(Value::Object(nesting)) => nesting,
        Some(_) => return Err(WRONG),
    };
    let chain = nesting.get("chain").and_then(Value::as_str).and_then(|chain| chain.parse().ok()).ok_or(WRONG)?;
    let depth =
        nesting.get("depth").and_then(Value::as_u64).and_then(|depth| u32::try_from(depth).ok()).ok_or(WRONG)?;
    Ok((Some(chain), depth))
}

/// The settings of one session. What is the daemon's own is refused by name: it would be believed to hold.
fn settings(members: &Map<String, Value>, problem: &mut impl FnMut(String)) -> Settings {
    let listed = match members.get("settings") {
        None | Some(Value::Null) => return Settings::default(),
        Some(Value::Object(listed)) => listed,
        Some(_) => {
            problem("`settings` is no object; accepted: names and values".to_owned());
            return Settings::default();
        }
    };
    let mut settings = Settings::default();
    for (name, value) in listed {
        if !OF_A_SESSION.contains(&name.as_str()) {
            let shown: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
            problem(if Key::named(name).is_some() {
                format!("`settings` holds {shown}, which is the daemon's own and the same for all its clients")
            } else {
                let near =
                    nearest(name, &OF_A_SESSION).map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
                format!("`settings` holds {shown}, which is no setting{near}; accepted: {}", OF_A_SESSION.join(", "))
            });
            continue;
        }
        // One at a time, so that each that is wrong is named.
        match serde_json::from_value::<Settings>(json!({name: value})) {
            Ok(one) => lay(&mut settings, name, one),
            Err(_) => problem(format!("the value of {name} in `settings` is none that is accepted")),
        }
    }
    settings
}

fn lay(settings: &mut Settings, name: &str, mut one: Settings) {
    if settings.take_program(name, &mut one) {
        return;
    }
    match name {
        "agent_env" => settings.agent_env = one.agent_env,
        "billing" => settings.billing = one.billing,
        "extra_usage" => settings.extra_usage = one.extra_usage,
        "agent" => settings.agent = one.agent,
        "timeout_s" => settings.timeout_s = one.timeout_s,
        "stall_s" => settings.stall_s = one.stall_s,
        "wait_s" => settings.wait_s = one.wait_s,
        "response_chars" => settings.response_chars = one.response_chars,
        _ => settings.progress_s = one.progress_s,
    }
}

impl Opening {
    /// The line that says it, without its end.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = json!({
            "type": "session_open",
            "proto": self.protocol,
            "session": self.session,
            "cwd": self.cwd.to_string_lossy(),
        });
        if let Some(build) = &self.build {
            line["build"] = build.as_str().into();
        }
        let (mut text, mut other) = (Map::new(), Map::new());
        for (name, value) in self.environment.iter() {
            // A name that is no text is in nobody's allowlist.
            let Some(name) = name.to_str() else { continue };
            match value.to_str() {
                Some(value) => drop(text.insert(name.to_owned(), value.into())),
                None => drop(other.insert(name.to_owned(), json!(Base64(Bytes::copy_from_slice(value.as_bytes()))))),
            }
        }
        line["env"] = Value::Object(text);
        if !other.is_empty() {
            line["env_b64"] = Value::Object(other);
        }
        if self.key_withheld {
            line["key_withheld"] = true.into();
        }
        if let (Some(chain), depth) = self.nesting {
            line["nesting"] = json!({"chain": chain, "depth": depth});
        }
        if let Some(catalog) = &self.catalog {
            line["catalog"] = catalog.as_str().into();
        }
        let s = &self.settings;
        let settings = [
            ("agent_env", s.agent_env.as_ref().map(|names| json!(names))),
            ("billing", s.billing.map(|billing| json!(billing))),
            ("extra_usage", s.extra_usage.map(|extra| json!(extra.as_str()))),
            ("agent", s.agent.as_ref().map(|agent| json!(agent))),
            ("timeout_s", s.timeout_s.map(Value::from)),
            ("stall_s", s.stall_s.map(Value::from)),
            ("wait_s", s.wait_s.map(Value::from)),
            ("response_chars", s.response_chars.map(Value::from)),
            ("progress_s", s.progress_s.map(Value::from)),
        ];
        let programs = s.programs().map(|(row, path)| (row.key.name, Some(json!(path.to_string_lossy()))));
        let settings: Map<String, Value> =
            programs.chain(settings).filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
        if !settings.is_empty() {
            line["settings"] = Value::Object(settings);
        }
        if !self.host_settings.is_empty() {
            line["host_settings"] = json!(self.host_settings);
        }
        line.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::Billing;

    fn opening() -> Value {
        json!({"type": "session_open", "proto": 1, "build": "0.1.0", "session": "key", "cwd": "/home/me/x", "env": {"A": "1"}})
    }

    fn with(name: &str, value: Value) -> Value {
        let mut opening = opening();
        opening[name] = value;
        opening
    }

    fn opened(line: &Value) -> Opening {
        match read(line.to_string().as_bytes()) {
            Some(Ok(ControlMessage::SessionOpen(opening))) => *opening,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn refused(line: &Value) -> Vec<String> {
        match read(line.to_string().as_bytes()) {
            Some(Err(refusal)) => refusal.problems,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn lines_are_told_apart_by_their_shape() {
        let controls: [(&str, ControlMessage); 13] = [
            (r#"{"type":"dashboard"}"#, ControlMessage::Dashboard(PageAsk::Open { port: 0 })),
            (r#"{"type":"dashboard","port":4100}"#, ControlMessage::Dashboard(PageAsk::Open { port: 4100 })),
            (r#"{"type":"dashboard","stop":true}"#, ControlMessage::Dashboard(PageAsk::Close)),
            (r#"{"type":"hello"}"#, ControlMessage::Hello),
            (r#" {"x":[{"jsonrpc":1}],"type":"hello"} "#, ControlMessage::Hello),
            (r#"{"type":"status","of_a_later_version":true}"#, ControlMessage::Status),
            (r#"{"type":"pause"}"#, ControlMessage::Pause),
            (r#"{"type":"resume"}"#, ControlMessage::Resume),
            (r#"{"type":"drain"}"#, ControlMessage::Drain),
            (r#"{"type":"reload"}"#, ControlMessage::Reload),
            (r#"{"type":"shutdown"}"#, ControlMessage::Shutdown(ShutdownMode::WhenFree)),
            (r#"{"type":"shutdown","mode":"drain"}"#, ControlMessage::Shutdown(ShutdownMode::Drain)),
            (r#"{"type":"shutdown","mode":"force"}"#, ControlMessage::Shutdown(ShutdownMode::Force)),
        ];
        for (line, control) in controls {
            assert_eq!(read(line.as_bytes()), Some(Ok(control)), "{line}");
        }
        let clients = [
            r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","type":"hello"}"#,
            r#"{"jsonrpc":null,"type":"hello"}"#,
            r#"{"type":"hello","type":"goodbye"}"#,
            r#"{"type":"goodbye"}"#,
            r#"{"type":"Hello"}"#,
            r#"{"type":1}"#,
            r#"{"type":null}"#,
            r#"{}"#,
            r#"[{"type":"hello"}]"#,
            r#""hello""#,
            r#"{"type":"hello""#,
            "",
            "\u{0}",
        ];
        for line in clients {
            assert_eq!(read(line.as_bytes()), None, "{line}");
        }
        assert!(read(b"{\"type\":\"hello\",\"x\":\"\xff\"}").is_none(), "no text");
        let refusal = read(br#"{"type":"shutdown","mode":"now"}"#);
        assert!(matches!(refusal, Some(Err(ControlRefusal { to: "shutdown", .. }))), "{refusal:?}");
    }

    #[test]
    fn what_a_bridge_sends_is_what_a_daemon_reads() {
        let chain: ChainId = "65256527-361a-4d3a-9a5f-945ee374307e".parse().expect("an id");
        let bytes = OsString::from_vec(b"/opt/\xff\x80".to_vec());
        let variables = [("PATH", "/bin".into()), ("EMPTY", "".into()), ("LINES", "a\nb\"c\\".into()), ("ODD", bytes)];
        let sent = Opening {
            protocol: PROTOCOL,
            build: Some("0.1.0".to_owned()),
            session: "a key".to_owned(),
            cwd: "/home/ich/größe".into(),
            environment: variables.into_iter().collect(),
            key_withheld: true,
            nesting: (Some(chain), 1),
            catalog: Some("0123".to_owned()),
            settings: Settings {
                claude_bin: Some("/opt/claude".into()),
                codex_bin: Some("/opt/codex".into()),
                copilot_bin: Some("/opt/copilot".into()),
                gemini_bin: Some("/opt/gemini".into()),
                opencode_bin: Some("/opt/opencode".into()),
                qwen_bin: Some("/opt/qwen".into()),
                agent_env: Some(vec!["FOO".to_owned()]),
                billing: Some(Billing::ApiKey),
                extra_usage: Some(crate::agents::ExtraUsage::Stop),
                agent: Some("offline".to_owned()),
                timeout_s: Some(1),
                stall_s: Some(20),
                wait_s: Some(3),
                response_chars: Some(4000),
                progress_s: Some(5),
                ..Settings::default()
            },
            host_settings: BTreeMap::from([("max_running".to_owned(), json!(7))]),
        };
        let line = sent.line();
        assert!(!line.contains('\n'));
        assert_eq!(read(line.as_bytes()), Some(Ok(ControlMessage::SessionOpen(Box::new(sent)))));
        let least = opened(&json!({"type": "session_open", "proto": 1, "session": "k", "cwd": "/"}));
        assert_eq!(opened(&serde_json::from_str(&least.line()).expect("JSON")), least);
        assert_eq!((least.nesting, least.key_withheld, least.catalog), ((None, 0), false, None));
    }

    #[test]
    fn everything_that_is_wrong_is_named_and_no_value_is_shown() {
        let secret = "s3cr3t-value";
        let long = "x".repeat(ENVIRONMENT);
        let cases: Vec<(Value, &str)> = vec![
            (with("proto", Value::Null), "`proto`"),
            (with("proto", json!(0)), "`proto`"),
            (with("proto", json!("1")), "`proto`"),
            (with("session", Value::Null), "`session` is missing"),
            (with("session", json!("")), "`session` is no word"),
            (with("session", json!("a\u{0}b")), "`session` is no word"),
            (with("session", json!("x".repeat(WORD + 1))), "`session` is no word"),
            (with("build", json!(1)), "`build` is no word"),
            (with("cwd", Value::Null), "`cwd` is missing"),
            (with("cwd", json!("x/y")), "`cwd` is not absolute"),
            (with("cwd", json!("")), "`cwd` is not absolute"),
            (with("cwd", json!("/a\u{0}b")), "`cwd` is missing or no path"),
            (with("env", json!([secret])), "`env` is no object"),
            (with("env", json!({"": secret})), "no name"),
            (with("env", json!({"A=B": secret})), "no name"),
            (with("env", json!({"A\u{0}": secret})), "no name"),
            (with("env", json!({"A": format!("{secret}\u{0}")})), "A in `env` holds a NUL"),
            (with("env", json!({"A": [secret]})), "A in `env` is no text"),
            (with("env_b64", json!({"B": format!("{secret}!")})), "B in `env_b64` is no base64"),
            (with("env_b64", json!({"A": "AAAA"})), "holds a NUL"),
            (with("env_b64", json!({"A": "QQ=="})), "A is in `env` and in `env_b64`"),
            (with("env", json!({"PHONE_OPUS_BILLING": secret})), "PHONE_OPUS_BILLING, which is a setting"),
            (with("env", json!({"A": long})), "at most 65536"),
            (with("key_withheld", json!("yes")), "`key_withheld`"),
            (with("nesting", json!({"depth": 1})), "`nesting`"),
            (with("nesting", json!({"chain": "x", "depth": 1})), "`nesting`"),
            (with("settings", json!(secret)), "`settings` is no object"),
            (with("settings", json!({"billing": secret})), "the value of billing"),
            (with("settings", json!({"timeout_s": -1})), "the value of timeout_s"),
            (with("settings", json!({"max_running": 1})), "max_running, which is the daemon's own"),
            (with("settings", json!({"workspaces": ["/"]})), "workspaces, which is the daemon's own"),
            (with("settings", json!({"biling": secret})), "did you mean billing?"),
            (with("host_settings", json!([secret])), "`host_settings` is unusable"),
        ];
        for (line, expected) in &cases {
            let problems = refused(line);
            assert!(problems.iter().any(|problem| problem.contains(expected)), "{expected}: {problems:?}");
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(!problems.concat().contains(secret), "a value was shown: {problems:?}");
        }
        let all = json!({"type": "session_open", "env": {"A": 1}, "settings": {"max_queued": 1}});
        assert_eq!(refused(&all).len(), 5, "proto, session, cwd, A, max_queued");
        let said: Value = serde_json::from_str(&ControlRefusal::new("session_open", "a\n\"b\"").line()).expect("JSON");
        assert_eq!(said, json!({"type": "error", "to": "session_open", "message": "a\n\"b\""}));
    }

    #[test]
    fn an_environment_of_just_the_size_is_taken() {
        let value = "x".repeat(ENVIRONMENT - 1);
        assert_eq!(opened(&with("env", json!({"A": value}))).environment.iter().count(), 1);
    }

    #[test]
    fn what_is_frozen_stays_as_it_is() {
        let generation: DaemonId = "65256527-361a-4d3a-9a5f-945ee374307e".parse().expect("an id");
        let hello: Value = serde_json::from_str(&About { generation, pid: 7 }.line()).expect("JSON");
        let keys: Vec<_> = hello.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(keys, ["build", "generation", "pid", "proto", "type"]);
        assert_eq!(restarting(), r#"{"type":"restarting"}"#);
        // To an older client a daemon that was stopped is one that makes room.
        assert_eq!(DaemonAnswer::read(stopped().as_bytes()), Some(DaemonAnswer::Restarting));
        assert_eq!(done("pause"), r#"{"to":"pause","type":"ok"}"#);
        // What an old daemon said of how it is, and what a later one may add.
        let frozen = json!({"type": "status", "proto": 1, "build": "0.0.1", "generation": generation, "later": [1]});
        let Some(DaemonAnswer::Status(status)) = DaemonAnswer::read(frozen.to_string().as_bytes()) else {
            panic!("{frozen}")
        };
        assert_eq!((status.state, status.connections, status.idle_s), (ServingState::Serving, 0, None));
    }

    #[test]
    fn what_a_daemon_answers_is_what_its_client_reads() {
        let generation = DaemonId::random();
        let build = env!("CARGO_PKG_VERSION").to_owned();
        let opened = SessionOpened {
            protocol: PROTOCOL,
            build: build.clone(),
            generation,
            catalog: "0123".to_owned(),
            resumed: true,
            settings_ignored: vec!["max_running".to_owned()],
        };
        let status = DaemonStatus {
            protocol: PROTOCOL,
            build: build.clone(),
            generation,
            pid: 7,
            state: ServingState::Draining,
            uptime_s: 3,
            connections: 2,
            attached_jobs: 1,
            queued: 4,
            running: 1,
            idle_s: Some(1800),
            scope: Some("its own".to_owned()),
            host: Some(HostId::random()),
            max_running: 4,
            sessions: Vec::new(),
            jobs: Vec::new(),
            tree: TreeSaid { worker_generation: 2, worker_restarts: 1, ..TreeSaid::default() },
            rollout_rejected: None,
        };
        let refusal = ControlRefusal::new("shutdown", "no");
        let cases = [
            (About { generation, pid: 7 }.line(), DaemonAnswer::Hello { proto: PROTOCOL, build, generation, pid: 7 }),
            (done("pause"), DaemonAnswer::Ok { to: "pause".to_owned() }),
            (refusal.line(), DaemonAnswer::Error { to: "shutdown".to_owned(), message: "no".to_owned() }),
            (restarting(), DaemonAnswer::Restarting),
            (DaemonAnswer::Status(status.clone()).line(), DaemonAnswer::Status(status)),
            (DaemonAnswer::SessionOpened(opened.clone()).line(), DaemonAnswer::SessionOpened(opened)),
        ];
        for (line, read) in cases {
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(DaemonAnswer::read(line.as_bytes()), Some(read), "{line}");
        }
        for line in [r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, r#"{"type":"of_a_later_version"}"#, "", "{"] {
            assert_eq!(DaemonAnswer::read(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn a_stop_that_somebody_wants_is_told_from_one_that_makes_room() {
        let cases = [
            (stopped(), true),
            (restarting(), false),
            (r#"{"type":"restarting","stopped":false}"#.to_owned(), false),
            (r#"{"type":"restarting","stopped":1}"#.to_owned(), false),
            (r#"{"type":"hello","stopped":true}"#.to_owned(), false),
            (r#"{"jsonrpc":"2.0","method":"x","stopped":true}"#.to_owned(), false),
            (String::new(), false),
        ];
        for (line, says) in cases {
            assert_eq!(says_stopped(line.as_bytes()), says, "{line}");
        }
    }

    #[test]
    fn settings_of_a_host_that_the_daemon_has_otherwise_are_named_and_nothing_is_refused_for_them() {
        let config = Config::default();
        let same = config.max_running;
        let asked =
            json!({"max_running": same, "max_queued": 1, "of_a_later_version": true, "rollout": "never heard of"});
        let found = opened(&with("host_settings", asked));
        assert_eq!(found.settings_ignored(&config), ["max_queued", "of_a_later_version", "rollout"]);
        assert!(opened(&opening()).settings_ignored(&config).is_empty());
    }
}
