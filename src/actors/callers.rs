//! The contexts of a host's sessions: how one is made of what a caller says, and what of it the next image is told.
//!
//! Owns: which of a caller's words are believed, what a connection has that said nothing, the form in which a context is passed
//! on. May not know: connections, who asks. The table is in [`tools::callers`](crate::tools::callers), where tools find it.
//!
//! Invariants: (1) what cannot be had as it was asked for is refused by its name, all of it at once, and no value is shown;
//! (2) a context leaves this process for the next image only, over a file that has no name.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::agents::{AgentPrograms, AgentRegistry, Environment, PassedEnvironment};
use crate::base::base64::Base64;
use crate::base::ids::ChainId;
use crate::checkout::plain;
use crate::config::{Config, FILE_BYTES, Key, PROGRAM_KEYS, PROJECT_FILE, Settings};
use crate::daemon::context::{Account, base, of_caller};
use crate::daemon::control::{ControlRefusal, Opening};
pub use crate::tools::callers::{CallerContext, CallerCounts, CallerOrigin, Callers};
use crate::tools::consult::{LOOK_BOUND, resolved, within};

/// The message a context is made of.
const SESSION_OPEN: &str = "session_open";

/// What a host makes the contexts of its callers with.
#[derive(Debug, Clone)]
pub struct HostSide {
    /// The user's configuration, with no project's file over it.
    pub config: Arc<Config>,
    /// The host's own environment: where it says itself who the user is, callers may say the same.
    pub environment: Environment,
    /// The user, as the system knows it.
    pub account: Option<Account>,
    /// The agents there are.
    pub agents: AgentRegistry,
}

impl HostSide {
    /// Of this process's user. Asks the system who that is, which may take a while.
    #[must_use]
    pub fn new(config: Arc<Config>, environment: Environment, agents: AgentRegistry) -> Self {
        Self { config, environment, account: Account::ours(), agents }
    }

    /// What a connection has that has not said whose session it is: the user's environment as the system says it, no directory,
    /// and the configured `workspaces` to look into.
    #[must_use]
    pub fn base(&self) -> CallerContext {
        CallerContext {
            cwd: None,
            environment: base(self.account.as_ref()),
            config: Arc::clone(&self.config),
            nesting: (None, 0),
            key_withheld: false,
            origin: CallerOrigin::Base,
        }
    }

    /// The configuration of a session that brings these settings.
    fn config_under(&self, settings: &Settings, problem: &mut impl FnMut(String)) -> Config {
        let names = || self.agents.names().join(", ");
        if let Some(agent) = &settings.agent
            && !self.agents.names().contains(&agent.as_str())
        {
            problem(format!("the value of agent in `settings` is no agent of this daemon; accepted: {}", names()));
        }
        for (row, path) in settings.programs() {
            let key = row.key.name;
            if !self.agents.names().contains(&row.agent) {
                let has = names();
                problem(format!("{key} in `settings` is for an agent this daemon does not have; it has: {has}"));
            }
            if path.is_relative() && path.components().count() > 1 {
                problem(format!(
                    "the value of {key} in `settings` is a relative path; accepted: a name or an absolute path"
                ));
            }
        }
        let programs = |name: &&str| PROGRAM_KEYS.iter().any(|row| row.agent == *name);
        if settings.agent_env.is_some() && !self.agents.names().iter().any(programs) {
            let (key, has) = (Key::agent_env.name, names());
            problem(format!("{key} in `settings` is for an agent this daemon does not have; it has: {has}"));
        }
        match Config::clone(&self.config).under(settings) {
            Ok(config) => config,
            Err(refused) => {
                for key in refused {
                    problem(format!(
                        "the value of {} in `settings` is none that is accepted; accepted: {}",
                        key.name,
                        key.accepted()
                    ));
                }
                Config::clone(&self.config)
            }
        }
    }
}

/// The context of a session that is opened so. Looks at its directory and reads the project's file there, and may hang with a
/// file system that does: [`opened`] has it done beside.
///
/// # Errors
///
/// Everything of it that this host cannot do, by name.
pub fn context_of(opening: &Opening, host: &HostSide) -> Result<CallerContext, ControlRefusal> {
    let mut problems = Vec::new();
    let mut problem = |problem: String| problems.push(problem);
    let cwd = resolved(opening.cwd.clone())
        .map_err(|wrong| problem(format!("`cwd` {wrong}; accepted: the absolute path of an existing directory")));
    let config = host.config_under(&opening.settings, &mut problem);
    let Some(cwd) = cwd.ok().filter(|_| problems.is_empty()) else {
        return Err(ControlRefusal { to: SESSION_OPEN, problems });
    };
    let project = cwd.join(PROJECT_FILE);
    let config = config.lowered(&project, plain::read(&project, FILE_BYTES));
    let agents = host.agents.under(&config.programs(), &config.agent_env);
    let environment =
        of_caller(&opening.environment, &host.environment, host.account.as_ref(), &agents, config.billing);
    Ok(CallerContext {
        cwd: Some(cwd),
        environment,
        config: Arc::new(config),
        nesting: opening.nesting,
        key_withheld: opening.key_withheld,
        origin: CallerOrigin::Caller,
    })
}

/// The same beside, within the time any look at a directory has.
///
/// # Errors
///
/// As [`context_of`]; the directory does not answer.
///
/// # Cancel safety
///
/// Safe: the look is not ended, but nobody waits for it.
pub async fn opened(opening: Opening, host: Arc<HostSide>) -> Result<CallerContext, ControlRefusal> {
    let looked = within(LOOK_BOUND, move || Ok(context_of(&opening, &host))).await;
    looked.unwrap_or_else(|wrong| Err(ControlRefusal::new(SESSION_OPEN, format!("`cwd` {wrong}"))))
}

/// A context on its way to the next image of this program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallerSnapshot {
    cwd: Option<Base64>,
    environment: PassedEnvironment,
    /// Without its paths, which need not be text.
    config: Config,
    /// As versions before several agents read it and pass it on.
    #[serde(default)]
    claude_bin: Option<Base64>,
    #[serde(default)]
    programs: BTreeMap<String, Base64>,
    workspaces: Vec<Base64>,
    nesting: (Option<ChainId>, u32),
    key_withheld: bool,
    origin: CallerOrigin,
}

fn bytes(path: &Path) -> Base64 {
    Base64(Bytes::copy_from_slice(path.as_os_str().as_bytes()))
}

fn path(Base64(bytes): Base64) -> PathBuf {
    OsString::from_vec(bytes.into()).into()
}

impl From<&CallerContext> for CallerSnapshot {
    fn from(context: &CallerContext) -> Self {
        let CallerContext { cwd, environment, config, nesting, key_withheld, origin } = context;
        Self {
            cwd: cwd.as_deref().map(bytes),
            environment: environment.into(),
            claude_bin: config.claude_bin.as_deref().map(bytes),
            programs: config.programs().iter().map(|(agent, path)| (agent.clone(), bytes(path))).collect(),
            workspaces: config.workspaces.iter().map(|dir| bytes(dir)).collect(),
            config: Config { workspaces: Vec::new(), ..Config::clone(config) }.with_programs(&AgentPrograms::new()),
            nesting: *nesting,
            key_withheld: *key_withheld,
            origin: *origin,
        }
    }
}

impl From<CallerSnapshot> for CallerContext {
    fn from(passed: CallerSnapshot) -> Self {
        let CallerSnapshot { cwd, environment, config, claude_bin, mut programs, workspaces, .. } = passed;
        let CallerSnapshot { nesting, key_withheld, origin, .. } = passed;
        programs.extend(claude_bin.map(|path| ("claude".to_owned(), path)));
        let programs = programs.into_iter().map(|(agent, bytes)| (agent, path(bytes))).collect();
        let workspaces = workspaces.into_iter().map(path).collect();
        Self {
            cwd: cwd.map(path),
            environment: environment.into(),
            config: Arc::new(Config { workspaces, ..config }.with_programs(&programs)),
            nesting,
            key_withheld,
            origin,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::jobs::Billing;

    const SECRET: &str = "s3cr3t-value";

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables.iter().copied().collect()
    }

    fn host() -> HostSide {
        HostSide {
            config: Arc::new(Config { timeout: Duration::from_secs(50), max_running: 2, ..Config::default() }),
            environment: environment(&[("PATH", "/host/bin"), ("LANG", "host"), ("HOME", "/host")]),
            account: Some(Account { name: "me".into(), home: "/home/me".into(), shell: "/bin/sh".into() }),
            agents: AgentRegistry::standard(None, "/bin/phone-opus".into()),
        }
    }

    fn opening(cwd: &Path) -> Opening {
        Opening {
            protocol: 1,
            build: None,
            session: "key".to_owned(),
            cwd: cwd.to_owned(),
            environment: environment(&[("PATH", "/caller/bin"), ("SECRET_OF_MINE", SECRET), ("HOME", "/root")]),
            key_withheld: true,
            nesting: (None, 1),
            catalog: None,
            settings: Settings::default(),
            host_settings: BTreeMap::new(),
        }
    }

    #[test]
    fn a_session_has_its_callers_directory_environment_and_settings_over_the_hosts_configuration() {
        let dir = tempfile::tempdir().expect("a directory");
        let real = fs::canonicalize(dir.path()).expect("a path");
        let link = real.join("link");
        fs::create_dir(real.join("work")).expect("a directory");
        std::os::unix::fs::symlink(real.join("work"), &link).expect("a link");
        let mut opening = opening(&link);
        let plain = context_of(&opening, &host()).expect("it can be had");
        assert_eq!(plain.cwd, Some(real.join("work")), "canonical");
        assert_eq!((plain.nesting, plain.key_withheld, plain.origin), ((None, 1), true, CallerOrigin::Caller));
        // Nothing of the host's, nothing that is not listed, and the user's own home.
        assert_eq!(plain.environment, environment(&[("PATH", "/caller/bin"), ("HOME", "/home/me")]));
        assert_eq!(plain.config, host().config);
        opening.settings = Settings {
            claude_bin: Some("/caller/claude".into()),
            agent_env: Some(vec!["SECRET_OF_MINE".to_owned()]),
            billing: Some(Billing::ApiKey),
            agent: Some("offline".to_owned()),
            timeout_s: Some(70),
            stall_s: Some(20),
            ..Settings::default()
        };
        opening.environment = opening.environment.with("ANTHROPIC_API_KEY", "k");
        let chosen = context_of(&opening, &host()).expect("it can be had");
        assert_eq!(chosen.environment.get("SECRET_OF_MINE"), Some(SECRET.as_ref()));
        assert_eq!(chosen.environment.get("ANTHROPIC_API_KEY"), Some("k".as_ref()));
        let config = Config {
            claude_bin: Some("/caller/claude".into()),
            agent_env: vec!["SECRET_OF_MINE".to_owned()],
            billing: Billing::ApiKey,
            agent: "offline".to_owned(),
            timeout: Duration::from_secs(70),
            stall: Duration::from_secs(20),
            ..Config::clone(&host().config)
        };
        assert_eq!(*chosen.config, config);
    }

    #[test]
    fn a_project_lowers_the_limits_of_the_sessions_in_it_and_one_that_cannot_be_used_is_left_out_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = |text: &[u8]| {
            fs::write(dir.path().join(PROJECT_FILE), text).expect("written");
            context_of(&opening(dir.path()), &host()).expect("it can be had").config
        };
        let lowered = config(b"timeout_s = 7\nstall_s = 4000\n");
        assert_eq!((lowered.timeout, lowered.stall), (Duration::from_secs(7), host().config.stall));
        let large = format!("# {}", "x".repeat(FILE_BYTES));
        for unusable in [b"timeout_s = 7\nbilling = \"api_key\"".as_slice(), b"timeout_s = 7\n\xff", large.as_bytes()] {
            let config = config(unusable);
            assert_eq!(config.timeout, Duration::from_secs(50));
            let left_out = config.left_out.as_ref().expect("it is told");
            assert!(left_out.place.ends_with(PROJECT_FILE) && !left_out.why.contains("7"), "{left_out:?}");
        }
    }

    #[test]
    fn everything_that_cannot_be_had_is_named_at_once_and_no_value_is_shown() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("file"), "").expect("written");
        let fine = Settings::default();
        let cases: Vec<(PathBuf, Settings, &[&str])> = vec![
            (dir.path().join("gone"), fine.clone(), &["`cwd` does not exist"]),
            (dir.path().join("file"), fine.clone(), &["`cwd` is not a directory"]),
            (dir.path().into(), Settings { agent: Some(SECRET.into()), ..fine.clone() }, &["agent in `settings`"]),
            (dir.path().into(), Settings { timeout_s: Some(0), ..fine.clone() }, &["timeout_s in `settings`"]),
            (
                dir.path().into(),
                Settings { claude_bin: Some(format!("{SECRET}/claude").into()), ..fine.clone() },
                &["claude_bin in `settings`"],
            ),
            (
                dir.path().into(),
                Settings { agent_env: Some(vec!["ANTHROPIC_API_KEY".into()]), ..fine.clone() },
                &["agent_env in `settings`"],
            ),
            (
                dir.path().join("gone"),
                Settings { agent: Some(SECRET.into()), stall_s: Some(1), ..fine.clone() },
                &["`cwd`", "agent", "stall_s"],
            ),
        ];
        for (cwd, settings, expected) in cases {
            let refused = context_of(&Opening { settings, ..opening(&cwd) }, &host()).expect_err("it cannot be had");
            let problems = &refused.problems;
            assert_eq!((refused.to, problems.len()), ("session_open", expected.len()), "{problems:?}");
            assert!(expected.iter().zip(problems).all(|(part, problem)| problem.contains(part)), "{problems:?}");
            assert!(!problems.concat().contains(SECRET), "a value was shown: {problems:?}");
        }
        let without = HostSide { agents: AgentRegistry::new(), ..host() };
        let settings = Settings { claude_bin: Some("claude".into()), agent_env: Some(Vec::new()), ..fine };
        let refused =
            context_of(&Opening { settings, ..opening(dir.path()) }, &without).expect_err("there is no claude");
        assert_eq!(refused.problems.len(), 2, "{:?}", refused.problems);
    }

    #[test]
    fn who_says_nothing_has_the_users_environment_no_directory_and_the_hosts_configuration() {
        let base = host().base();
        assert_eq!((base.cwd.clone(), base.origin, base.nesting), (None, CallerOrigin::Base, (None, 0)));
        assert_eq!(base.config, host().config);
        assert_eq!(base.environment.get("HOME"), Some("/home/me".as_ref()));
        assert!(!base.environment.iter().any(|(_, value)| value == "host"));
    }

    #[test]
    fn a_context_is_passed_on_as_it_is_and_shows_nothing_on_the_way() {
        let odd = |text: &[u8]| OsString::from_vec(text.to_vec());
        let variables =
            [("PATH", "/bin".into()), ("ODD", odd(b"\xff\x80")), ("EMPTY", "".into()), ("S", SECRET.into())];
        let context = CallerContext {
            cwd: Some(odd(b"/w/\xff").into()),
            environment: variables.into_iter().collect(),
            config: Arc::new(Config {
                claude_bin: Some(odd(b"/bin/\xfe").into()),
                workspaces: vec!["/a".into(), odd(b"/\xfd").into()],
                timeout: Duration::from_secs(3),
                ..Config::default()
            }),
            nesting: (Some(ChainId::random()), 1),
            key_withheld: true,
            origin: CallerOrigin::Caller,
        };
        let snapshot = CallerSnapshot::from(&context);
        assert!(!format!("{snapshot:?}").contains(SECRET));
        let text = serde_json::to_string(&snapshot).expect("JSON");
        let passed: CallerSnapshot = serde_json::from_str(&text).expect("a snapshot");
        assert_eq!(CallerContext::from(passed), context);
        let base = host().base();
        assert_eq!(CallerContext::from(CallerSnapshot::from(&base)), base);
    }
}
