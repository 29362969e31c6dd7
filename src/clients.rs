//! What is known about clients by their names: how long they wait, how much they show, how often they want to hear.
//!
//! Owns: the table of known clients, what the configuration says instead, and what was observed: a client that withdraws a
//! call after a round number of seconds has a limit of its own, and a consult that would reach it must be handed over
//! before. May not know: sessions, tools.
//!
//! ```text
//!  weakest ── the table ── observed ── the configuration for everybody ── the configuration for this client ── strongest
//! ```
//!
//! Invariants: (1) an unknown client gets the numbers that suit the most cautious one known; (2) an observation only ever
//! lowers a wait, and is forgotten after [`REMEMBERED`]; (3) the file is read only when it has changed, and a file that
//! cannot be read or written costs nothing but what was observed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::ids::UnixMillis;

/// How one client is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientProfile {
    /// How long a synchronous consult is waited for before it becomes a background job.
    pub wait: Duration,
    /// Time between progress notifications.
    pub progress: Duration,
    /// Characters of an answer in one reply.
    pub response_chars: usize,
}

/// What is known of a client. Each wait is under the time after which that client drops the call, each size under what it
/// shows its model: Claude Code moves a call to the background after 120 s and a result over 50 000 characters into a file;
/// Codex drops a call after 300 s and cuts the middle out of what is longer than about 12 000; most others wait 60 s.
#[must_use]
pub fn known(client: Option<&str>) -> ClientProfile {
    let (wait, response_chars) = match client {
        Some("claude-code") => (110, 24_000),
        Some("codex-mcp-client") => (280, 9_000),
        _ => (50, 24_000),
    };
    ClientProfile { wait: Duration::from_secs(wait), progress: Duration::from_secs(5), response_chars }
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

    /// Where observations are kept.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.observed.as_ref().map(|observed| observed.0.path.as_path())
    }

    /// How this client is treated.
    #[must_use]
    pub fn profile(&self, client: Option<&str>) -> ClientProfile {
        let mut profile = known(client);
        if let Some(limit) = self.limit(client) {
            profile.wait = profile.wait.min(limit);
        }
        let config = &self.config;
        let own = client.and_then(|name| config.clients.get(name));
        let seconds = |own: Option<u64>, all: Option<Duration>| own.map(Duration::from_secs).or(all);
        if let Some(wait) = seconds(own.and_then(|own| own.wait_s), config.wait) {
            profile.wait = wait;
        }
        if let Some(progress) = seconds(own.and_then(|own| own.progress_s), config.progress) {
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

    /// How long a wait of this client can be at most, where it was seen to give up: nobody would hear of a longer one.
    #[must_use]
    pub fn limit(&self, client: Option<&str>) -> Option<Duration> {
        let limit = self.observed.as_ref()?.limit(client?, UnixMillis::now())?;
        Some(limit.saturating_sub((limit / 10).max(Duration::from_secs(1))))
    }

    /// A client withdrew a call after this time. What to save, when that says something about it.
    #[must_use]
    pub fn gave_up(&self, client: Option<&str>, after: Duration) -> Option<Unsaved> {
        let (client, limit) = (client?, round(after)?);
        self.observed.as_ref()?.note(client, limit, UnixMillis::now())
    }
}

/// A limit of this many seconds would be somebody's setting: a multiple of five up to half a minute, of ten or fifteen up to
/// two minutes, of thirty beyond. A timer fires late, never early, and its message travels a little.
fn round(after: Duration) -> Option<Duration> {
    let after = u64::try_from(after.as_millis()).ok()?;
    let seconds = (after + EARLY_MS) / 1000;
    let late = (after + EARLY_MS) % 1000;
    let steps: &[u64] = match seconds {
        0..=4 => return None,
        5..=30 => &[5],
        31..=120 => &[10, 15],
        121..=3600 => &[30],
        _ => return None,
    };
    let is_round = steps.iter().any(|step| seconds.is_multiple_of(*step)) && late <= EARLY_MS + LATE_MS;
    is_round.then(|| Duration::from_secs(seconds))
}

/// How much earlier than its limit a cancel may come, in milliseconds: the call took as long to arrive.
const EARLY_MS: u64 = 20;

/// How much later.
const LATE_MS: u64 = 180;

/// How long an observation counts: a client that was updated, or set up anew, is seen afresh after it.
pub const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Clients remembered. A machine has a handful; whoever makes up names displaces the oldest ones.
const CLIENTS: usize = 64;

/// Bytes of the file that are believed to be ours.
const FILE_MOST: u64 = 64 * 1024;

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
struct Observation {
    /// After so many seconds it gave up.
    limit_s: u64,
    at: UnixMillis,
}

#[derive(Debug, Clone)]
struct Observed(Arc<File>);

#[derive(Debug)]
struct File {
    path: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    stamp: Option<(SystemTime, u64)>,
    clients: BTreeMap<String, Observation>,
}

/// Observations that are not on disk yet.
#[derive(Debug)]
#[must_use]
pub struct Unsaved(Observed);

impl Unsaved {
    /// Writes them. Blocks for as long as the disk takes.
    ///
    /// # Errors
    ///
    /// The file cannot be written; what was observed counts all the same, until this process ends.
    pub fn save(self) -> io::Result<()> {
        self.0.save()
    }
}

impl Observed {
    fn new(path: PathBuf) -> Self {
        Self(Arc::new(File { path, seen: Mutex::default() }))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Nothing that can panic leaves it half changed. It is held for a look at a small file, never across an await.
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what other processes have observed meanwhile.
    fn refresh(&self, seen: &mut Seen) {
        let Ok(found) = fs::metadata(&self.0.path) else { return };
        let stamp = found.modified().ok().map(|modified| (modified, found.len()));
        if stamp == seen.stamp || found.len() > FILE_MOST {
            return;
        }
        seen.stamp = stamp;
        let read = fs::read(&self.0.path).ok();
        let read: Option<BTreeMap<String, Observation>> = read.and_then(|text| serde_json::from_slice(&text).ok());
        for (client, found) in read.unwrap_or_default() {
            seen.take(client, found);
        }
    }

    fn limit(&self, client: &str, now: UnixMillis) -> Option<Duration> {
        let mut seen = self.seen();
        self.refresh(&mut seen);
        let found = seen.clients.get(client).filter(|found| found.counts(now))?;
        Some(Duration::from_secs(found.limit_s))
    }

    fn note(&self, client: &str, limit: Duration, now: UnixMillis) -> Option<Unsaved> {
        let mut seen = self.seen();
        self.refresh(&mut seen);
        seen.clients.retain(|_, found| found.counts(now));
        let found = Observation { limit_s: limit.as_secs(), at: now };
        let news = seen.take(client.to_owned(), found);
        news.then(|| Unsaved(self.clone()))
    }

    fn save(&self) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(&self.seen().clients)?;
        let mut name = self.0.path.clone().into_os_string();
        // Other processes may save at the same time, and a reader never sees half a file.
        name.push(format!(".{}", std::process::id()));
        let new = PathBuf::from(name);
        let written = crate::state_dir::open_private(&new).and_then(|mut file| {
            file.set_len(0)?;
            file.write_all(&text)
        });
        let put = written.and_then(|()| fs::rename(&new, &self.0.path));
        if put.is_err() {
            let _ = fs::remove_file(&new);
        }
        put
    }
}

impl Observation {
    fn counts(&self, now: UnixMillis) -> bool {
        now.since(self.at) < u64::try_from(REMEMBERED.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Seen {
    /// Takes an observation in, if it lowers a limit or renews it. Whether it did.
    fn take(&mut self, client: String, found: Observation) -> bool {
        if let Some(known) = self.clients.get(&client)
            && (known.limit_s < found.limit_s || *known == found)
        {
            return false;
        }
        self.clients.insert(client, found);
        if self.clients.len() > CLIENTS {
            let oldest = self.clients.iter().min_by_key(|(_, found)| found.at).map(|(name, _)| name.clone());
            oldest.and_then(|name| self.clients.remove(&name));
        }
        true
    }
}

#[cfg(test)]
mod tests {
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
    fn only_round_numbers_of_seconds_say_something() {
        for (ms, want) in [
            (0, None),
            (1000, None),
            (4_990, Some(5)),
            (5_000, Some(5)),
            (5_180, Some(5)),
            (5_181, None),
            (4_979, None),
            (7_000, None),
            (10_050, Some(10)),
            (29_999, Some(30)),
            (35_000, None),
            (45_100, Some(45)),
            (60_003, Some(60)),
            (61_000, None),
            (120_120, Some(120)),
            (130_000, None),
            (300_010, Some(300)),
            (3_600_000, Some(3600)),
            (3_630_000, None),
        ] {
            assert_eq!(round(Duration::from_millis(ms)).map(|limit| limit.as_secs()), want, "{ms} ms");
        }
    }

    #[test]
    fn a_client_that_gives_up_is_waited_for_less_by_every_process_and_is_forgotten_in_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let ours = clients(Config::default(), dir.path());
        let theirs = clients(Config::default(), dir.path());
        assert_eq!(theirs.limit(Some("x")), None);
        assert!(ours.gave_up(Some("x"), Duration::from_millis(31_000)).is_none(), "no round number");
        assert!(ours.gave_up(None, Duration::from_secs(30)).is_none(), "nobody");
        ours.gave_up(Some("x"), Duration::from_millis(30_040)).expect("news").save().expect("saved");
        for clients in [&ours, &theirs] {
            assert_eq!(clients.profile(Some("x")).wait.as_secs(), 27);
            assert_eq!(clients.profile(Some("y")).wait.as_secs(), 50);
        }
        // A limit above what we wait anyway changes nothing, nor does one above what was seen.
        theirs.gave_up(Some("y"), Duration::from_secs(60)).expect("news").save().expect("saved");
        assert!(theirs.gave_up(Some("x"), Duration::from_secs(60)).is_none());
        assert_eq!((ours.profile(Some("x")).wait.as_secs(), ours.profile(Some("y")).wait.as_secs()), (27, 50));
        let later = UnixMillis(UnixMillis::now().0 + 31 * 24 * 60 * 60 * 1000);
        let observed = ours.observed.as_ref().expect("a file");
        assert_eq!(observed.limit("x", later), None);
        let names: Vec<_> =
            fs::read_dir(dir.path()).expect("read").map(|entry| entry.expect("one").file_name()).collect();
        assert_eq!(names, ["clients.json"], "nothing else is left");
    }

    #[test]
    fn a_file_that_is_damaged_or_cannot_be_written_costs_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("clients.json"), b"{\"x\":").expect("written");
        let damaged = clients(Config::default(), dir.path());
        assert_eq!(damaged.limit(Some("x")), None);
        damaged.gave_up(Some("x"), Duration::from_secs(10)).expect("news").save().expect("saved");
        assert_eq!(clients(Config::default(), dir.path()).limit(Some("x")), Some(Duration::from_secs(9)));
        let nowhere = clients(Config::default(), &dir.path().join("nowhere"));
        assert!(nowhere.gave_up(Some("x"), Duration::from_secs(10)).expect("news").save().is_err());
        assert_eq!(nowhere.limit(Some("x")), Some(Duration::from_secs(9)), "it counts while the process lives");
    }

    #[test]
    fn names_that_are_made_up_displace_the_oldest() {
        let dir = tempfile::tempdir().expect("a directory");
        let clients = clients(Config::default(), dir.path());
        let observed = clients.observed.as_ref().expect("a file");
        let now = UnixMillis::now();
        for n in 0..200 {
            let noted = observed.note(&format!("client {n}"), Duration::from_secs(5), UnixMillis(now.0 + n));
            assert!(noted.is_some());
        }
        assert_eq!(observed.seen().clients.len(), CLIENTS);
        assert!(observed.limit("client 199", now).is_some() && observed.limit("client 0", now).is_none());
    }
}
