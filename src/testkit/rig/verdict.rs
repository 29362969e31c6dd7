//! The end of a case: everything is ended in order, and every law that can be seen from outside is looked at.
//!
//! Owns: which laws are looked at, and what is told of a broken one. May not know: what a case is about.

use std::path::PathBuf;
use std::time::Duration;

use super::{KEY, Rig, Run, Through};
use crate::system::{Grace, Shutdown, System};
use crate::testkit::client::{Exchange, TestClient};
use crate::testkit::invariants::{self, Surroundings, Violation};
use crate::testkit::tools::{Tally, TestTool};
use crate::tools::Tool as _;

/// Agents that run at once when nothing else was configured.
const MAX_RUNNING: usize = 3;

/// Characters of a host's log that are shown when a law is broken.
const LOG_SHOWN: usize = 2000;

impl Rig {
    /// Ends the hosts in order and checks every law that can be seen from outside.
    ///
    /// # Panics
    ///
    /// When a host does not end well, or a law is broken.
    pub async fn stop_and_check_invariants(self, clients: impl IntoIterator<Item = TestClient>) {
        let mut exchanges = Vec::new();
        for mut client in clients {
            client.finish().await;
            exchanges.push(client.exchange());
        }
        self.expect_laws(&exchanges).await;
    }

    /// Ends the clients and then the system in this process, in order, and checks every law that can be seen from
    /// outside.
    ///
    /// # Panics
    ///
    /// When it does not end in order, or a law is broken.
    pub async fn stop_system_and_check_invariants(self, system: System, clients: impl IntoIterator<Item = TestClient>) {
        let mut exchanges = Vec::new();
        for mut client in clients {
            client.finish().await;
            exchanges.push(client.exchange());
        }
        let down = system.shutdown(Grace::default()).await;
        assert!(matches!(down, Shutdown::InOrder), "the system's stop: {down:?}");
        self.expect_laws(&exchanges).await;
    }

    /// Checks every law that can be seen without a client.
    ///
    /// # Panics
    ///
    /// When one is broken.
    pub async fn check_invariants(&self) {
        self.expect_laws(&[]).await;
    }

    /// Holds what this tool does to its contract, and its effects to happening once, when the case is over. Only a tool that
    /// was made with these effects has any.
    pub fn watch(&mut self, tool: &TestTool, effects: &Tally) {
        self.watched.push((tool.contract(), tool.attempts(), effects.clone()));
    }

    async fn expect_laws(&self, exchanges: &[Exchange]) {
        let broken = self.violations(exchanges).await;
        if !broken.is_empty() {
            let broken: Vec<String> = broken.iter().map(ToString::to_string).collect();
            panic!("{} laws are broken:\n{}\n{}", broken.len(), broken.join("\n"), self.last_words());
        }
    }

    /// Every law that is broken, by what can be seen from outside once the clients are done. Waits for what may take a
    /// moment: that nothing is left alive.
    ///
    /// # Panics
    ///
    /// When the store or the agent's log cannot be read.
    pub async fn violations(&self, exchanges: &[Exchange]) -> Vec<Violation> {
        let mut broken = Broken(Vec::new());
        if self.through == Through::Daemon {
            // It stays when its clients go, and is nothing that a case has left.
            self.end_daemon().await;
        }
        broken.note(self.nothing_is_left_alive().await);
        let (jobs, runs, telemetry) = (self.jobs().await, self.runs(), self.telemetry());
        for exchange in exchanges {
            broken.note(invariants::invariant_one_answer_each(exchange));
            broken.note(invariants::invariant_what_was_told_is_stored(exchange, &jobs));
            broken.note(invariants::invariant_generations_never_go_back(&exchange.generations));
            broken.note(invariants::invariant_the_connection_was_not_dropped(exchange));
            broken.note(invariants::invariant_totals_add_up(&exchange.totals));
            broken.note(invariants::invariant_stdout_is_messages_only(exchange));
        }
        broken.note(invariants::invariant_one_run_each(&jobs, &runs));
        broken.note(invariants::invariant_one_job_per_request(&jobs));
        broken.note(invariants::invariant_jobs_are_over(&jobs));
        for job in &jobs {
            broken.note(invariants::invariant_journal_is_whole(job, &self.journal(job.id).await));
        }
        broken.note(invariants::invariant_recorded_before_dispatch(&jobs, &runs));
        let limit = self.env.get("PHONE_OPUS_MAX_RUNNING").and_then(|limit| limit.parse().ok());
        broken.note(invariants::invariant_at_most_so_many_run_at_once(&runs, limit.unwrap_or(MAX_RUNNING)));
        if !self.tears_telemetry {
            broken.note(invariants::invariant_telemetry_is_whole_records(&telemetry));
        }
        broken.note(invariants::invariant_surroundings_are_untouched(&self.before, &Surroundings::look()));
        broken.note(invariants::invariant_files_are_private(&self.path("state")));
        broken.note(self.nothing_is_left_at_home());
        broken.note(self.secrets_stay_where_they_belong(&runs, telemetry.clone()));
        broken.note(invariants::invariant_no_illegal_transition(&jobs, &telemetry));
        for (contract, attempts, effects) in &self.watched {
            broken.note(invariants::invariant_attempts_follow_their_contract(*contract, attempts));
            broken.note(invariants::invariant_effects_happen_once(effects));
        }
        broken.0
    }

    async fn nothing_is_left_alive(&self) -> Result<(), Violation> {
        let began = std::time::Instant::now();
        loop {
            let looked = invariants::invariant_nothing_is_left_alive(&self.processes());
            if looked.is_ok() || began.elapsed() > self.patience {
                return looked;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The telemetry log, whole and in order of its files.
    fn telemetry(&self) -> String {
        let mut names: Vec<PathBuf> = std::fs::read_dir(self.path("state"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("telemetry")))
            .collect();
        names.sort();
        let read = |path: &PathBuf| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        names.iter().map(read).collect()
    }

    fn nothing_is_left_at_home(&self) -> Result<(), Violation> {
        let left: Vec<PathBuf> =
            std::fs::read_dir(self.path("home")).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        let own =
            |path: &PathBuf| path.file_name().is_some_and(|name| self.own_at_home.contains(&*name.to_string_lossy()));
        let left: Vec<PathBuf> = left.into_iter().filter(|path| !own(path)).collect();
        if left.is_empty() {
            return Ok(());
        }
        Err(Violation { law: "L13: nothing is written outside the state directory", detail: format!("{left:?}") })
    }

    fn secrets_stay_where_they_belong(&self, runs: &[Run], telemetry: String) -> Result<(), Violation> {
        let mut logs = vec![("the telemetry log".to_owned(), telemetry)];
        for host in 1..=self.hosts {
            let name = format!("host-{host}.stderr");
            let bytes = std::fs::read(self.path(&name)).unwrap_or_default();
            logs.push((name, String::from_utf8_lossy(&bytes).into_owned()));
        }
        for job in std::fs::read_dir(self.state_dir().jobs()).into_iter().flatten().flatten() {
            let bytes = std::fs::read(job.path().join("runner.log")).unwrap_or_default();
            logs.push(("a runner's log".to_owned(), String::from_utf8_lossy(&bytes).into_owned()));
        }
        logs.extend(runs.iter().map(|run| ("an agent's arguments".to_owned(), run.start["argv"].to_string())));
        let (prompt, key) = (("the prompt", &self.canary[..]), ("the key", KEY));
        invariants::invariant_secrets_stay_where_they_belong(&[prompt, key], &logs)?;
        let environments: Vec<_> =
            runs.iter().map(|run| ("an agent's environment".to_owned(), run.start["env"].to_string())).collect();
        invariants::invariant_secrets_stay_where_they_belong(&[prompt], &environments)?;
        if self.env.get("PHONE_OPUS_BILLING").is_none_or(|billing| billing != "api_key") {
            return invariants::invariant_secrets_stay_where_they_belong(&[key], &environments);
        }
        if !self.env.values().any(|value| value == KEY) {
            // Of a world whose agent has no key of its own.
            return Ok(());
        }
        match environments.iter().find(|(_, env)| !env.contains(KEY)) {
            None => Ok(()),
            Some(_) => Err(Violation { law: "the key that pays reaches the agent", detail: "it did not".to_owned() }),
        }
    }

    /// The ends of the hosts' logs.
    fn last_words(&self) -> String {
        let mut words = String::new();
        for host in 1..=self.hosts {
            let bytes = std::fs::read(self.path(&format!("host-{host}.stderr"))).unwrap_or_default();
            let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_SHOWN)..]).into_owned();
            words.push_str(&format!("--- the end of host {host}'s log ---\n{tail}\n"));
        }
        words
    }
}

/// The laws that were broken.
struct Broken(Vec<Violation>);

impl Broken {
    fn note(&mut self, looked: Result<(), Violation>) {
        self.0.extend(looked.err());
    }
}
