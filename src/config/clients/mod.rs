//! What is known about clients by their names: how long they wait, how much they show, how often they want to hear.
//!
//! Owns: the table of known clients, what the configuration says instead, and which of it is stronger. What was observed
//! about clients is `observed`'s. May not know: sessions, tools.
//!
//! ```text
//!  weakest ── the table ── observed ── the configuration for everybody ── for this client ── what a call asks ── strongest
//! ```
//!
//! Invariants: (1) an unknown client gets the numbers that suit the most cautious one known; (2) an observation only ever
//! lowers a wait.

mod observed;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::ids::UnixMillis;
use crate::config::Config;
use observed::{Observed, round};
pub use observed::{REMEMBERED, SHORTEST, Unsaved};

/// How one client is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientProfile {
    /// How long a synchronous consult is waited for before it becomes a background job.
    pub wait: Duration,
    /// Time between progress notifications.
    pub progress: Duration,
    /// Characters of an answer in one reply.
    pub response_chars: usize,
    /// Whether it is given structured content that nobody asked for.
    pub structured: Structured,
}

/// When a client is given structured content beside the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Structured {
    /// With every reply.
    Always,
    /// With `render = json` only: such a client shows its model the structured content instead of the text, and a model would
    /// read its answer as a JSON string, with an envelope of some 170 tokens around it.
    WhenAsked,
}

/// What is known of a client. Each wait is under the time after which that client drops the call, each size under what it
/// shows its model: Claude Code moves a call to the background after 120 s and a result over 50 000 characters into a file;
/// Codex drops a call after 300 s and cuts the middle out of what is longer than about 12 000; most others wait 60 s.
#[must_use]
pub fn known(client: Option<&str>) -> ClientProfile {
    let (wait, response_chars, structured) = match client {
        Some("claude-code") => (110, 24_000, Structured::WhenAsked),
        Some("codex-mcp-client") => (280, 9_000, Structured::WhenAsked),
        _ => (50, 24_000, Structured::Always),
    };
    ClientProfile { wait: Duration::from_secs(wait), progress: Duration::from_secs(5), response_chars, structured }
}

/// Whether a client of this name is given structured content that it did not ask for.
#[must_use]
pub fn tells_structured(client: Option<&str>) -> bool {
    known(client).structured == Structured::Always
}

/// What the configuration says about one client, in its table `clients.NAME`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientSettings {
    /// Seconds a synchronous consult is waited for, 1 to 3 600.
    pub wait_s: Option<u64>,
    /// Seconds between progress notifications, 1 to 60.
    pub progress_s: Option<u64>,
    /// Characters of a reply's answer, 1 000 to 400 000.
    pub response_chars: Option<usize>,
}

/// All that is known about clients. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Clients {
    config: Arc<Config>,
    observed: Option<Observed>,
}

impl Clients {
    /// The table under this configuration; what is observed is kept in that file, or not at all.
    #[must_use]
    pub fn new(config: Arc<Config>, observed: Option<PathBuf>) -> Self {
        Self { config, observed: observed.map(Observed::new) }
    }

    /// The same under another configuration.
    #[must_use]
    pub fn under(&self, config: Arc<Config>) -> Self {
        Self { config, observed: self.observed.clone() }
    }

    /// Where observations are kept.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.observed.as_ref().map(Observed::path)
    }

    /// How this client is treated.
    #[must_use]
    pub fn profile(&self, client: Option<&str>) -> ClientProfile {
        let mut profile = known(client);
        if let Some(limit) = self.limit(client) {
            profile.wait = profile.wait.min(within(limit));
        }
        let config = &self.config;
        let own = client.and_then(|name| config.clients.get(name));
        if let Some(wait) = self.configured_wait(client) {
            profile.wait = wait;
        }
        if let Some(progress) = own.and_then(|own| own.progress_s).map(Duration::from_secs).or(config.progress) {
            profile.progress = progress;
        }
        if let Some(chars) = own.and_then(|own| own.response_chars).or(config.response_chars) {
            profile.response_chars = chars;
        }
        // A project lowers what everybody else has said.
        profile.wait = config.most_wait.map_or(profile.wait, |most| profile.wait.min(most));
        profile.response_chars =
            config.most_response_chars.map_or(profile.response_chars, |most| profile.response_chars.min(most));
        profile
    }

    fn configured_wait(&self, client: Option<&str>) -> Option<Duration> {
        let own = client.and_then(|name| self.config.clients.get(name)).and_then(|own| own.wait_s);
        own.map(Duration::from_secs).or(self.config.wait)
    }

    fn limit(&self, client: Option<&str>) -> Option<Duration> {
        self.observed.as_ref()?.limit(client?, UnixMillis::now())
    }

    /// After which time this client was seen to give up, where that is why it is waited for less than usually.
    #[must_use]
    pub fn shortened_by(&self, client: Option<&str>) -> Option<Duration> {
        let limit = self.limit(client)?;
        (self.configured_wait(client).is_none() && within(limit) < known(client).wait).then_some(limit)
    }

    /// A client withdrew a call after this time. What to save, when that says something about it.
    #[must_use]
    pub fn gave_up(&self, client: Option<&str>, after: Duration) -> Option<Unsaved> {
        let (client, limit) = (client?, round(after)?);
        self.observed.as_ref()?.note(client, limit, UnixMillis::now())
    }

    /// A call of this client was answered after this time, so it has no limit below that. What to save, when one was
    /// believed.
    #[must_use]
    pub fn waited(&self, client: Option<&str>, so_long: Duration) -> Option<Unsaved> {
        if so_long < SHORTEST {
            return None;
        }
        self.observed.as_ref()?.take_back(client?, so_long, UnixMillis::now())
    }
}

/// How long a client that gives up after this limit is waited for.
fn within(limit: Duration) -> Duration {
    limit.saturating_sub((limit / 10).max(Duration::from_secs(1)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn clients(config: Config, dir: &Path) -> Clients {
        Clients::new(Arc::new(config), Some(dir.join("clients.json")))
    }

    #[test]
    fn each_known_client_is_waited_for_less_than_it_waits_and_shown_less_than_it_shows() {
        let clients = Clients::new(Arc::default(), None);
        for (client, wait, chars) in [
            (Some("claude-code"), 110, 24_000),
            (Some("codex-mcp-client"), 280, 9_000),
            (Some("x"), 50, 24_000),
            (None, 50, 24_000),
        ] {
            let profile = clients.profile(client);
            assert_eq!((profile.wait.as_secs(), profile.response_chars), (wait, chars), "{client:?}");
            assert_eq!(profile.progress.as_secs(), 5);
        }
    }

    #[test]
    fn the_configuration_is_stronger_than_the_table_and_for_one_client_stronger_than_for_all() {
        let own = ClientSettings { wait_s: Some(9), progress_s: None, response_chars: Some(5000) };
        let config = Config {
            wait: Some(Duration::from_secs(7)),
            progress: Some(Duration::from_secs(2)),
            clients: BTreeMap::from([("x".to_owned(), own)]),
            ..Config::default()
        };
        let clients = Clients::new(Arc::new(config), None);
        let (x, y) = (clients.profile(Some("x")), clients.profile(Some("claude-code")));
        assert_eq!((x.wait.as_secs(), x.progress.as_secs(), x.response_chars), (9, 2, 5000));
        assert_eq!((y.wait.as_secs(), y.progress.as_secs(), y.response_chars), (7, 2, 24_000));
    }

    #[test]
    fn clients_that_show_only_the_structured_content_get_it_when_they_ask() {
        for (client, want) in [
            (Some("claude-code"), Structured::WhenAsked),
            (Some("codex-mcp-client"), Structured::WhenAsked),
            (Some("gemini-cli-mcp-client"), Structured::Always),
            (Some("Visual Studio Code"), Structured::Always),
            (None, Structured::Always),
        ] {
            assert_eq!(known(client).structured, want, "{client:?}");
        }
    }

    #[test]
    fn what_was_observed_is_weaker_than_what_is_configured_and_says_why_only_where_it_counts() {
        let dir = tempfile::tempdir().expect("a directory");
        let now = UnixMillis::now();
        let learnt = |config: Config, client: &str, limit: u64| {
            let clients = clients(config, dir.path());
            let observed = clients.observed.as_ref().expect("a file");
            for n in 0..2 {
                let at = UnixMillis(now.0 - 10_000 * (2 - n));
                let _ = observed.note(client, Duration::from_secs(limit), at);
            }
            let found = (clients.profile(Some(client)).wait.as_secs(), clients.shortened_by(Some(client)));
            std::fs::remove_file(dir.path().join("clients.json")).ok();
            found
        };
        let seconds = |limit: u64| Some(Duration::from_secs(limit));
        assert_eq!(learnt(Config::default(), "x", 30), (27, seconds(30)));
        assert_eq!(learnt(Config::default(), "claude-code", 60), (54, seconds(60)));
        // A limit above what it is waited for anyway changes nothing and explains nothing.
        assert_eq!(learnt(Config::default(), "x", 60), (50, None));
        let config = Config { wait: seconds(80), ..Config::default() };
        assert_eq!(learnt(config, "x", 30), (80, None));
    }
}
