//! The table of configuration keys: each is written here and nowhere else.
//!
//! Owns: for each key its name, how it is written (`kinds`), its field in [`Config`] with the default, its bounds, whether a
//! project's file may lower it, and what a user is told about it. From the table come [`Settings`], [`Config`], the sources'
//! reading and laying, the help of flags, and the table in `docs/configuration.md`, which a test holds to it. May not know: who
//! uses a value.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clients::ClientSettings;
use super::kinds::{
    Address, Collector, Count, Directories, Fill, Helpers, Kind, Lay, Lower, Millis, Names, PerClient, Program,
    Remotes, Seconds, Tags, Text, Users, Word,
};
use super::otlp::OtlpTarget;
use super::sites::{AgentSettings, PerAgent, lay_customs};
use super::{AGENT_ENV_MOST, ConfigError, LeftOut, RolloutMode, WorkerIsolation};
use crate::agents::{AgentSites, CustomAgents, ExtraUsage};
use crate::fleet::{FleetAddress, Placement};
use crate::jobs::Billing;

/// What is known of a key.
#[derive(Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it is about, for users.
    pub what: &'static str,
    /// The numbers that are accepted, where it is one.
    bounds: Option<RangeInclusive<u64>>,
    /// Whether a project's file may lower it.
    lowered: bool,
    /// Whether it has an environment variable.
    variable: bool,
    accepted: fn(Option<&RangeInclusive<u64>>) -> String,
    default: fn() -> String,
}

macro_rules! config_keys {
    ($(
        $name:ident: $raw:ty as $kind:ty {
            $(#[doc = $doc:literal])*
            $field:ident: $type:ty = $default:expr,
            what: $what:literal,
            $(bounds: $bounds:expr,)?
            $(lowers: $lowers:ident,)?
            $(shown: $shown:literal,)?
            $(accepted: $accepted:expr,)?
        }
    )*) => {
        /// One source's values; what it does not set is left to the sources below it.
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Settings {
            $(#[doc = $what] pub $name: Option<$raw>,)*
        }

        /// The configuration in force.
        ///
        /// Written down for a worker process and for the image that takes over, it may be read by another version: what that
        /// one does not know is left out, and what it adds is as by default.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Config {
            $($(#[doc = $doc])* pub $field: $type,)*
            /// How long a project's file lets a synchronous consult be waited for, whatever else is said.
            pub most_wait: Option<Duration>,
            /// How many characters of an answer it lets a reply have.
            pub most_response_chars: Option<usize>,
            /// Agents of the user's own, of the tables of `agents` that name a command.
            pub customs: CustomAgents,
            /// The project's file, where it could not be used.
            pub left_out: Option<LeftOut>,
        }

        impl Default for Config {
            fn default() -> Self {
                Self {
                    $($field: $default,)*
                    most_wait: None,
                    most_response_chars: None,
                    customs: CustomAgents::new(),
                    left_out: None,
                }
            }
        }

        #[expect(non_upper_case_globals, reason = "a key is named as users write it")]
        impl Key {
            $(
                #[doc = $what]
                pub const $name: Self = Self {
                    name: stringify!($name),
                    what: $what,
                    bounds: config_keys!(@some $($bounds)?),
                    lowered: config_keys!(@given $($lowers)?),
                    variable: <$kind as Kind>::VARIABLE,
                    accepted: config_keys!(@accepted $kind, $($accepted)?),
                    default: config_keys!(@shown $kind, $field, $($shown)?),
                };
            )*

            /// Every key, in the order it is documented.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }

        impl Settings {
            /// Reads the variables `PHONE_OPUS_<KEY>`.
            ///
            /// # Errors
            ///
            /// The variable and what is wrong with it.
            pub fn from_environment(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
                let mut settings = Self::default();
                $(Self::read_variable::<$kind>(&Key::$name, &get, &mut settings.$name)?;)*
                Ok(settings)
            }

            /// Whether this source sets the key.
            #[must_use]
            #[doc(hidden)]
            pub fn sets(&self, key: &Key) -> bool {
                $((key.name == stringify!($name) && self.$name.is_some()) ||)* false
            }
        }

        impl Config {
            /// Lays one source over what is there. Of what is refused nothing is laid, and each key is told with why.
            pub(super) fn lay(&mut self, settings: &Settings) -> Vec<(&'static Key, String)> {
                let mut refused = Vec::new();
                $(
                    if let Some(raw) = &settings.$name
                        && let Err(why) = <$kind as Lay<$type>>::lay(&Key::$name, raw, &mut self.$field)
                    {
                        refused.push((&Key::$name, why));
                    }
                )*
                if let Some(tables) = &settings.agents
                    && let Err(why) = lay_customs(&Key::agents, tables, &mut self.customs)
                {
                    refused.push((&Key::agents, why));
                }
                refused
            }

            /// What a person is shown of this key's field. A table shows its names alone.
            #[must_use]
            #[doc(hidden)]
            pub fn shown(&self, key: &Key) -> String {
                $(
                    if key.name == stringify!($name) {
                        return <$kind as Lay<_>>::shown(&self.$field);
                    }
                )*
                String::new()
            }

            /// The limit that a project's file lowers by this key, where it may.
            #[must_use]
            #[doc(hidden)]
            pub fn shown_limit(&self, key: &Key) -> Option<String> {
                $($(
                    if key.name == stringify!($name) {
                        return Some(<$kind as Lay<_>>::shown(&self.$lowers));
                    }
                )?)*
                None
            }

            /// Lowers the limit of this key.
            pub(super) fn lower(&mut self, key: &Key, most: u64) {
                $($(
                    if key.name == stringify!($name) {
                        Lower::lower(&mut self.$lowers, <$kind as Fill>::fill(most));
                    }
                )?)*
            }
        }
    };
    (@some) => { None };
    (@some $given:expr) => { Some($given) };
    (@given) => { false };
    (@given $given:ident) => { true };
    (@accepted $kind:ty,) => { <$kind as Kind>::accepted };
    (@accepted $kind:ty, $accepted:expr) => { |_| $accepted.to_string() };
    (@shown $kind:ty, $field:ident,) => { || <$kind as Lay<_>>::shown(&Config::default().$field) };
    (@shown $kind:ty, $field:ident, $shown:literal) => { || $shown.to_owned() };
}

config_keys! {
    claude_bin: PathBuf as Program {
        /// Path of Claude Code's program, if configured.
        claude_bin: Option<PathBuf> = None,
        what: "Claude Code's program",
        shown: "`claude` on PATH, else where installers put it (`~/.local/bin`, `/opt/homebrew/bin` and the like)",
    }
    codex_bin: PathBuf as Program {
        /// Path of Codex's program, if configured.
        codex_bin: Option<PathBuf> = None,
        what: "Codex's program",
        shown: "`codex`, looked for in the same places",
    }
    copilot_bin: PathBuf as Program {
        /// Path of Copilot CLI's program, if configured.
        copilot_bin: Option<PathBuf> = None,
        what: "Copilot CLI's program",
        shown: "`copilot`, looked for in the same places",
    }
    gemini_bin: PathBuf as Program {
        /// Path of Gemini CLI's program, if configured.
        gemini_bin: Option<PathBuf> = None,
        what: "Gemini CLI's program",
        shown: "`gemini`, looked for in the same places",
    }
    opencode_bin: PathBuf as Program {
        /// Path of OpenCode's program, if configured.
        opencode_bin: Option<PathBuf> = None,
        what: "OpenCode's program",
        shown: "`opencode`, looked for in the same places",
    }
    qwen_bin: PathBuf as Program {
        /// Path of Qwen Code's program, if configured.
        qwen_bin: Option<PathBuf> = None,
        what: "Qwen Code's program",
        shown: "`qwen`, looked for in the same places",
    }
    agent_env: Vec<String> as Names {
        /// Names of variables that are handed on to agents besides those that always are. None of them can spend money.
        agent_env: Vec<String> = Vec::new(),
        what: "variables that are handed on to every agent besides the usual ones; a name that can spend money is refused",
        accepted: format!(
            "up to {AGENT_ENV_MOST} names of variables, as `[\"CORPORATE_CA\", \"NODE_OPTIONS\"]`; in the environment with \
             commas between"
        ),
    }
    billing: Billing as Word<Billing> {
        /// Who pays.
        billing: Billing = Billing::Subscription,
        what: "who pays",
    }
    extra_usage: ExtraUsage as Word<ExtraUsage> {
        /// What becomes of a run that would be paid for beyond its plan.
        extra_usage: ExtraUsage = ExtraUsage::Allow,
        what: "when the plan is used up and more is paid for besides: go on and say so in `billing`, or end the run",
    }
    agent: String as Text {
        /// The agent that answers when none is named.
        agent: String = "claude".to_owned(),
        what: "who answers when none is named",
        accepted: "the name of an agent",
    }
    max_running: u64 as Count {
        /// Agent runs at once. Three: what a laptop and a subscription's limit bear.
        max_running: usize = 3,
        what: "agents at once, over all servers of a state directory",
        bounds: 1..=64,
    }
    max_queued: u64 as Count {
        /// Jobs that may wait. Each costs its row and under a kilobyte of the waiting process.
        max_queued: usize = 64,
        what: "jobs that may wait; each costs its row and under a kilobyte of one process",
        bounds: 1..=10_000,
    }
    timeout_s: u64 as Seconds {
        /// How long an agent may run.
        timeout: Duration = Duration::from_secs(3600),
        what: "seconds an agent may run",
        bounds: 1..=86_400,
        lowers: timeout,
    }
    stall_s: u64 as Seconds {
        /// Silence after which an agent is taken for stuck. Claude Code itself waits 300 s for a silent stream and 360 s for an
        /// answer to begin, and then tries again: it must have the time to.
        stall: Duration = Duration::from_secs(420),
        what: "seconds of silence after which an agent is taken for stuck; a wait it announces is no silence",
        bounds: 10..=86_400,
        lowers: stall,
    }
    wait_s: u64 as Seconds {
        /// How long a synchronous consult is waited for; by client when not set.
        wait: Option<Duration> = None,
        what: "seconds a synchronous consult waits (Claude Code, Codex, others)",
        bounds: 1..=3_600,
        lowers: most_wait,
        shown: "by client: 110, 280, 50",
    }
    response_chars: u64 as Count {
        /// Characters of a reply's answer before it is cut; by client when not set.
        response_chars: Option<usize> = None,
        what: "characters of an answer in one reply",
        bounds: 1_000..=400_000,
        lowers: most_response_chars,
        shown: "by client: 9000 for Codex, else 24000",
    }
    progress_s: u64 as Seconds {
        /// Time between progress notifications; by client when not set.
        progress: Option<Duration> = None,
        what: "seconds between progress notifications",
        bounds: 1..=60,
        shown: "5",
    }
    isolation: WorkerIsolation as Word<WorkerIsolation> {
        /// Where tools run.
        isolation: WorkerIsolation = WorkerIsolation::InProcess,
        what: "where `consult` itself runs; a process of its own makes even an abort cost no answer",
    }
    restart_intensity: u64 as Count {
        /// Restarts of a lost worker within [`Config::restart_period`]; after one more, calls that need a worker are refused
        /// until the period has passed.
        restart_intensity: usize = 6,
        what: "restarts of a lost worker within `restart_period_s`; after one more, calls that need a worker are refused `worker_lost` until the period has passed",
        bounds: 0..=10_000,
    }
    restart_period_s: u64 as Seconds {
        /// The sliding window of [`Config::restart_intensity`].
        restart_period: Duration = Duration::from_secs(30),
        what: "see above",
        bounds: 1..=86_400,
    }
    restart_backoff_ms: u64 as Millis {
        /// The wait before the second restart in a row; it doubles up to 2 s. The first restart never waits.
        restart_backoff: Duration = Duration::from_millis(50),
        what: "the wait before the second restart in a row; it doubles up to 2 s and is forgotten when a worker lived for 10 s",
        bounds: 0..=2_000,
    }
    rollout: RolloutMode as Word<RolloutMode> {
        /// When a new file at the launch path is adopted.
        rollout: RolloutMode = RolloutMode::Auto,
        what: "`auto` adopts a new version at the path the server was started by, `on_request` only when asked, `off` never",
    }
    workspaces: Vec<PathBuf> as Directories {
        /// Directories a consult may look into beside the session's own.
        workspaces: Vec<PathBuf> = Vec::new(),
        what: "directories a consult may look into beside the session's own",
    }
    fleet: FleetAddress as Address {
        /// The database of the fleet this host is of.
        fleet: Option<FleetAddress> = None,
        what: "the queue this server shares with those of other machines ([fleet.md](fleet.md)); shown without its password",
    }
    fleet_accept: Vec<String> as Users {
        /// Users whose jobs this host takes beside those of its own.
        fleet_accept: Vec<String> = Vec::new(),
        what: "users of the database whose jobs this machine runs beside those of its own user, with its accounts",
    }
    fleet_labels: Vec<String> as Tags {
        /// What this host's owner calls it.
        fleet_labels: Vec<String> = Vec::new(),
        what: "what this machine is called in the fleet, for jobs that ask for it",
    }
    fleet_placement: Placement as Word<Placement> {
        /// Where a consult may run that says nothing of it.
        fleet_placement: Placement = Placement::Local,
        what: "where a consult may run that does not say it by `placement`",
    }
    fleet_clone: Vec<String> as Remotes {
        /// Repositories this host makes clones of for jobs of others.
        fleet_clone: Vec<String> = Vec::new(),
        what: "repositories this machine clones for consults of others that ask for a clone ([fleet.md](fleet.md)); none unless listed",
    }
    fleet_clone_credentials: Vec<String> as Helpers {
        /// Credential helpers git may ask for logins to them.
        fleet_clone_credentials: Vec<String> = Vec::new(),
        what: "git's credential helpers that may be asked for a login to them; git's own configuration is not read for it",
    }
    fleet_clone_mb: u64 as Count {
        /// Mebibytes of one clone.
        fleet_clone_mb: usize = 2_048,
        what: "mebibytes on disk that one such clone may take; a larger one is refused",
        bounds: 1..=1_000_000,
    }
    otlp: OtlpTarget as Collector {
        /// Where traces and metrics of this host go.
        otlp: Option<OtlpTarget> = None,
        what: "the OpenTelemetry collector that this server's traces and metrics go to ([telemetry.md](telemetry.md)); none without it",
    }
    agents: BTreeMap<String, AgentSettings> as PerAgent {
        /// Agents whose processes run on other machines.
        agents: AgentSites = AgentSites::new(),
        what: "an agent on another machine ([exec.md](exec.md)) or a command of your own ([agents.md](agents.md)), which callers name NAME",
    }
    clients: BTreeMap<String, ClientSettings> as PerClient {
        /// What is different for single clients.
        clients: BTreeMap<String, ClientSettings> = BTreeMap::new(),
        what: "`wait_s`, `response_chars`, `progress_s` for the client that calls itself NAME, within the bounds above",
    }
}

impl Key {
    /// The key of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|key| key.name == name)
    }

    /// The environment variable of the key.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("PHONE_OPUS_{}", self.name.to_ascii_uppercase())
    }

    /// What is accepted, as the page of keys says it.
    #[must_use]
    pub fn accepted(&self) -> String {
        (self.accepted)(self.bounds.as_ref())
    }

    /// What holds when nothing is set, as the page of keys says it.
    #[must_use]
    pub fn default(&self) -> String {
        (self.default)()
    }

    /// The help of a flag that sets the key.
    #[must_use]
    pub fn help(&self) -> String {
        let (first, rest) = self.what.split_at(1);
        let text = format!("{}{rest} [env: {}] [default: {}]", first.to_uppercase(), self.variable(), self.default());
        text.replace('`', "")
    }

    /// Whether a project's file may lower it.
    #[must_use]
    pub fn may_be_lowered(&self) -> bool {
        self.lowered
    }

    /// The smallest number that is accepted.
    pub(super) fn least(&self) -> Option<u64> {
        self.bounds.as_ref().map(|bounds| *bounds.start())
    }

    /// The largest number that is accepted.
    pub(super) fn most(&self) -> Option<u64> {
        self.bounds.as_ref().map(|bounds| *bounds.end())
    }

    /// The number, where it is within the bounds; `name` is what the source calls the key.
    pub(super) fn check(&self, name: &str, number: u64) -> Result<u64, String> {
        match &self.bounds {
            Some(bounds) if !bounds.contains(&number) => {
                Err(format!("{name} is {number}; accepted: {} to {}", bounds.start(), bounds.end()))
            }
            Some(_) | None => Ok(number),
        }
    }
}

impl Settings {
    fn read_variable<K: Kind>(
        key: &Key,
        get: &impl Fn(&str) -> Option<OsString>,
        into: &mut Option<K::Raw>,
    ) -> Result<(), ConfigError> {
        if !key.variable {
            return Ok(());
        }
        let place = key.variable();
        let Some(value) = get(&place).filter(|value| !value.is_empty()) else { return Ok(()) };
        *into = Some(K::from_variable(value).map_err(|problem| ConfigError { place, problem })?);
        Ok(())
    }
}
