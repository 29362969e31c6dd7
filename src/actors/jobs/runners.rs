//! How the runners of each caller's jobs are started.
//!
//! Owns: one [`RunnerCommand`] for each session that has asked for a job in an environment of its own, and the digests by which
//! they are compared. May not know: jobs, who waits for one.
//!
//! Invariant: a job is run with the environment and under the settings of its caller, or of somebody for whom both have the
//! same digest, or not at all.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use crate::base::ids::SessionNumber;
use crate::base::state_dir::StateDir;
use crate::base::tasks;
use crate::runner::{RunnerCommand, manner_digest};
use crate::tools::callers::{CallerContext, CallerOrigin, Callers};

/// How a job of some caller is run.
#[derive(Debug, Clone)]
pub(super) struct RunAs {
    pub(super) runner: Arc<RunnerCommand>,
    /// [`manner_digest`] of it. Without one, a job is run by nobody else.
    pub(super) digest: Option<Arc<str>>,
}

/// The digest of a context's environment and settings, made once, on the thread of whoever asks first.
#[derive(Clone)]
struct LazyDigest {
    secret: Option<Arc<str>>,
    context: Arc<CallerContext>,
    made: Arc<OnceLock<Option<Arc<str>>>>,
}

impl LazyDigest {
    fn get(&self) -> Option<Arc<str>> {
        let make = |secret: &str| manner_digest(&self.context.environment, &self.context.config, secret);
        self.made.get_or_init(|| self.secret.as_deref().map(make).map(Arc::from)).clone()
    }
}

/// Whose environments are here at this moment.
pub(super) struct Present {
    hosts: Option<Arc<str>>,
    sessions: Vec<LazyDigest>,
}

impl Present {
    /// The digests of everybody by whom a job may be run that was left alone. Those of many sessions take a while when nobody
    /// has asked for them yet, so they are made beside.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub(super) async fn digests(self) -> HashSet<Option<String>> {
        if self.sessions.is_empty() {
            return self.made();
        }
        tasks::spawn_blocking(|| self.made()).await.unwrap_or_default()
    }

    fn made(self) -> HashSet<Option<String>> {
        let text = |digest: Arc<str>| Some(digest.as_ref().to_owned());
        // Whose cannot be told is nobody else's, and nobody's own: it may have been another caller's.
        self.hosts.into_iter().chain(self.sessions.iter().filter_map(LazyDigest::get)).map(text).collect()
    }
}

/// What was made for a session with a context of its own.
struct Made {
    digest: LazyDigest,
    /// Once it has asked for a job.
    runner: Option<Arc<RunnerCommand>>,
}

/// The runners of all callers.
pub(super) struct Runners {
    /// `None` in a system without consults.
    own: Option<Arc<RunnerCommand>>,
    dir: StateDir,
    callers: Callers,
    /// The secret of the state directory, once it was asked for.
    secret: Option<Option<Arc<str>>>,
    /// The host's own digest, once it was asked for.
    own_digest: Option<Option<Arc<str>>>,
    made: HashMap<SessionNumber, Made>,
}

impl Runners {
    pub(super) fn new(own: Option<Arc<RunnerCommand>>, dir: StateDir, callers: Callers) -> Self {
        Self { own, dir, callers, secret: None, own_digest: None, made: HashMap::new() }
    }

    /// Whether jobs are run here at all.
    pub(super) const fn are_there(&self) -> bool {
        self.own.is_some()
    }

    /// How the host itself starts a child of its own.
    pub(super) const fn own(&self) -> Option<&Arc<RunnerCommand>> {
        self.own.as_ref()
    }

    /// How the host's own jobs are run.
    fn hosts(&mut self) -> Option<RunAs> {
        let runner = self.own.clone()?;
        if self.own_digest.is_none() {
            self.own_digest = Some(self.secret().and_then(|secret| runner.digest(&secret)).map(Arc::from));
        }
        Some(RunAs { runner, digest: self.own_digest.clone().flatten() })
    }

    /// How the jobs of this session are run, or those of no session; `None` when the session is over.
    pub(super) fn of(&mut self, session: Option<SessionNumber>) -> Option<RunAs> {
        let Some(session) = session else { return self.hosts() };
        let context = self.callers.of(session)?;
        if context.origin == CallerOrigin::Host { self.hosts() } else { self.run_as(session, &context) }
    }

    fn run_as(&mut self, session: SessionNumber, context: &Arc<CallerContext>) -> Option<RunAs> {
        let own = self.own.clone()?;
        let made = self.made(session, context);
        let runner = made.runner.get_or_insert_with(|| Arc::new(own.for_caller(context)));
        Some(RunAs { runner: Arc::clone(runner), digest: made.digest.get() })
    }

    fn made(&mut self, session: SessionNumber, context: &Arc<CallerContext>) -> &mut Made {
        let secret = self.secret();
        let new = || {
            let (context, made) = (Arc::clone(context), Arc::default());
            Made { digest: LazyDigest { secret, context, made }, runner: None }
        };
        match self.made.entry(session) {
            Entry::Vacant(none) => none.insert(new()),
            Entry::Occupied(known) => {
                let known = known.into_mut();
                if !Arc::ptr_eq(&known.digest.context, context) {
                    *known = new();
                }
                known
            }
        }
    }

    /// Whose environments are here now.
    pub(super) fn present(&mut self) -> Present {
        let present: HashMap<SessionNumber, Arc<CallerContext>> = self.callers.own().into_iter().collect();
        self.made.retain(|session, _| present.contains_key(session));
        let hosts = self.hosts().and_then(|hosts| hosts.digest);
        let sessions = present.iter().map(|(session, context)| self.made(*session, context).digest.clone()).collect();
        Present { hosts, sessions }
    }

    /// How a job is run that was accepted with this environment; `None` when nobody is there who has it.
    pub(super) fn with(&mut self, digest: Option<&str>) -> Option<RunAs> {
        digest?;
        if let Some(hosts) = self.hosts().filter(|hosts| hosts.digest.as_deref() == digest) {
            return Some(hosts);
        }
        let present = self.callers.own();
        let (session, context) =
            present.iter().find(|(session, context)| self.made(*session, context).digest.get().as_deref() == digest)?;
        self.run_as(*session, context)
    }

    /// A session is over.
    pub(super) fn forget(&mut self, session: SessionNumber) {
        self.made.remove(&session);
    }

    fn secret(&mut self) -> Option<Arc<str>> {
        let dir = &self.dir;
        let read = || {
            dir.secret()
                .inspect_err(|error| tracing::warn!(%error, "environments cannot be compared"))
                .ok()
                .map(Arc::from)
        };
        self.secret.get_or_insert_with(read).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::agents::{AgentRegistry, AgentSite, Environment, ExtraUsage};
    use crate::config::Config;
    use crate::exec::{ExecTarget, TargetWords};

    fn environment(path: &str) -> Environment {
        [("PATH", path)].into_iter().collect()
    }

    fn context(origin: CallerOrigin, path: &str) -> CallerContext {
        CallerContext {
            cwd: Some("/w".into()),
            environment: environment(path),
            config: Arc::default(),
            nesting: (None, 0),
            key_withheld: false,
            origin,
        }
    }

    #[test]
    fn where_environments_cannot_be_compared_nobody_has_anybodys() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = StateDir::at(dir.path());
        std::fs::create_dir(dir.root().join("secret")).expect("something else in its place");
        let agents = AgentRegistry::standard(None, "/p".into());
        let own = RunnerCommand::new(
            "/p".into(),
            dir.clone(),
            &Arc::default(),
            agents,
            Some(environment("/host")),
            Vec::new(),
        );
        let callers = Callers::new(context(CallerOrigin::Host, "/host"));
        callers.admit_as(SessionNumber(2), context(CallerOrigin::Caller, "/two"));
        let mut runners = Runners::new(Some(Arc::new(own)), dir, callers);
        let of_two = runners.of(Some(SessionNumber(2))).expect("its own");
        assert!(of_two.digest.is_none() && of_two.runner.caller().is_some(), "it is run all the same");
        assert!(runners.with(None).is_none() && runners.present().made().is_empty());
    }

    #[test]
    fn a_job_is_run_with_the_environment_of_its_caller_or_of_somebody_who_has_the_same_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = StateDir::at(dir.path());
        let agents = AgentRegistry::standard(None, "/p".into());
        let own = RunnerCommand::new(
            "/p".into(),
            dir.clone(),
            &Arc::default(),
            agents,
            Some(environment("/host")),
            Vec::new(),
        );
        let callers = Callers::new(context(CallerOrigin::Host, "/host"));
        let mut runners = Runners::new(Some(Arc::new(own)), dir, callers.clone());
        let (one, two, three) = (SessionNumber(1), SessionNumber(2), SessionNumber(3));
        let host = runners.of(None).expect("the host").digest;
        assert_eq!(runners.of(Some(one)).expect("as the host").digest, host);
        callers.admit(one);
        callers.admit_as(two, context(CallerOrigin::Caller, "/two"));
        callers.admit_as(three, context(CallerOrigin::Caller, "/host"));
        let of_two = runners.of(Some(two)).expect("its own");
        assert!(of_two.digest.is_some() && of_two.digest != host);
        assert_eq!(of_two.runner.caller(), callers.of(two).as_ref());
        assert!(Arc::ptr_eq(&of_two.runner, &runners.of(Some(two)).expect("its own").runner), "made once");
        assert_eq!(runners.of(Some(three)).expect("its own").digest, host, "the same environment");
        let text = |digest: &Option<Arc<str>>| digest.as_deref().map(str::to_owned);
        assert_eq!(runners.present().made(), HashSet::from([text(&host), text(&of_two.digest)]));
        assert!(Arc::ptr_eq(&runners.with(of_two.digest.as_deref()).expect("two").runner, &of_two.runner));
        assert!(runners.with(host.as_deref()).expect("the host").runner.caller().is_none());
        callers.forget(two);
        runners.forget(two);
        assert!(runners.of(Some(two)).is_none(), "a late accept gets nobody else's");
        assert!(runners.with(of_two.digest.as_deref()).is_none() && runners.with(None).is_none());
        assert_eq!(runners.present().made(), HashSet::from([text(&host)]));
    }

    #[test]
    fn who_has_the_same_environment_and_other_settings_runs_nobody_elses_job() {
        let digest = |config: &Config| manner_digest(&environment("/host"), config, "secret");
        let host = digest(&Config::default());
        assert_eq!(digest(&Config { max_running: 9, ..Config::default() }), host, "of the host, and of no run");
        let site = AgentSite {
            agent: "claude".to_owned(),
            target: ExecTarget::parse(&TargetWords::Text("unix:/run/exec.sock".to_owned())).expect("a target"),
            token_file: None,
            program: None,
            workspaces: vec!["/srv".into()],
        };
        let others = [
            Config { claude_bin: Some("/opt/claude".into()), ..Config::default() },
            Config { extra_usage: ExtraUsage::Stop, ..Config::default() },
            Config { stall: Duration::from_secs(7), ..Config::default() },
            Config { agent_env: vec!["MINE".to_owned()], ..Config::default() },
            Config { agents: [("box".to_owned(), site)].into(), ..Config::default() },
        ];
        let others: Vec<String> = others.iter().map(digest).collect();
        assert!(!others.contains(&host), "{others:?}");
        assert_eq!(others.iter().collect::<HashSet<_>>().len(), others.len());
    }
}
