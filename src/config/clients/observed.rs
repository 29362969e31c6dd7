//! What was observed about clients: after which time each gives up a call.
//!
//! Owns: which cancels say something, how often one must be seen before it is believed, what takes it back, and the file all
//! servers of a state directory share. May not know: how long a client is waited for without it.
//!
//! A client that withdraws a call after a round number of seconds may have a limit of its own; then a consult that would reach
//! it must be handed over before. Or a person pressed a key in that moment. So:
//!
//! Invariants: (1) a limit is believed when it was seen twice, at different times: one key can withdraw many calls at once; (2)
//! none is under [`SHORTEST`]; (3) a call that was answered later than a limit takes it back; (4) what was seen is forgotten
//! after [`REMEMBERED`]; (5) the file is read only when it has changed, and a file that cannot be read or written costs nothing
//! but what was observed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::base::ids::UnixMillis;

/// The shortest limit a client is believed to have. People cancel in the first seconds; no client is known whose limit is
/// below, and one that has it says so in the configuration.
pub const SHORTEST: Duration = Duration::from_secs(20);

/// A limit of this many seconds would be somebody's setting: a multiple of five up to half a minute, of ten or fifteen up to
/// two minutes, of thirty beyond. A timer fires late, never early, and its message travels a little.
pub(super) fn round(after: Duration) -> Option<Duration> {
    let after = u64::try_from(after.as_millis()).ok()?;
    let seconds = (after + EARLY_MS) / 1000;
    let late = (after + EARLY_MS) % 1000;
    let steps: &[u64] = match seconds {
        ..20 => return None,
        20..=30 => &[5],
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

/// Times a limit must be seen.
const TIMES: u32 = 2;

/// Observations closer to each other than this are one: the calls were withdrawn together.
const APART: Duration = Duration::from_secs(2);

/// Clients remembered. A machine has a handful; whoever makes up names displaces the oldest ones.
const CLIENTS: usize = 64;

/// Limits remembered of one client: one is its own, the others are cancels by hand that fell on a round number.
const LIMITS: usize = 8;

/// Bytes of the file that are believed to be ours.
const FILE_MOST: u64 = 64 * 1024;

/// How often a limit was seen, and when last.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
struct Sighting {
    times: u32,
    at: UnixMillis,
}

/// By the limit in seconds.
type Limits = BTreeMap<u64, Sighting>;

#[derive(Debug, Clone)]
pub(super) struct Observed(Arc<File>);

#[derive(Debug)]
struct File {
    path: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    stamp: Option<(SystemTime, u64)>,
    clients: BTreeMap<String, Limits>,
    /// Something of it is not in the file yet.
    unsaved: bool,
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
    pub(super) fn new(path: PathBuf) -> Self {
        Self(Arc::new(File { path, seen: Mutex::default() }))
    }

    /// Where they are kept.
    pub(super) fn path(&self) -> &std::path::Path {
        &self.0.path
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
        let read: Option<BTreeMap<String, Limits>> = read.and_then(|text| serde_json::from_slice(&text).ok());
        let read = read.unwrap_or_default();
        if !seen.unsaved {
            // What others took back is no longer in it.
            seen.clients = read;
            return;
        }
        for (client, limits) in read {
            let known = seen.clients.entry(client).or_default();
            for (limit, found) in limits {
                known.entry(limit).and_modify(|known| *known = known.merged(found)).or_insert(found);
            }
        }
    }

    /// The shortest limit that is believed of this client.
    pub(super) fn limit(&self, client: &str, now: UnixMillis) -> Option<Duration> {
        let mut seen = self.seen();
        self.refresh(&mut seen);
        let limits = seen.clients.get(client)?;
        let believed = limits.iter().find(|(_, found)| found.times >= TIMES && found.counts(now));
        believed.map(|(limit, _)| Duration::from_secs(*limit))
    }

    /// A client gave up after this limit. What to save, unless it was known already as being seen in this moment.
    pub(super) fn note(&self, client: &str, limit: Duration, now: UnixMillis) -> Option<Unsaved> {
        let mut seen = self.seen();
        self.refresh(&mut seen);
        seen.forget(now);
        let limits = seen.clients.entry(client.to_owned()).or_default();
        let found = limits.entry(limit.as_secs()).or_insert(Sighting { times: 0, at: now });
        if found.times > 0 && now.since(found.at) < u64::try_from(APART.as_millis()).unwrap_or(u64::MAX) {
            return None;
        }
        *found = Sighting { times: found.times.saturating_add(1), at: now };
        seen.bound(client);
        seen.unsaved = true;
        Some(Unsaved(self.clone()))
    }

    /// A client's call was answered after so long. What to save, if that says something new.
    pub(super) fn take_back(&self, client: &str, so_long: Duration, now: UnixMillis) -> Option<Unsaved> {
        let mut seen = self.seen();
        self.refresh(&mut seen);
        let limits = seen.clients.get_mut(client)?;
        let before = limits.len();
        limits.retain(|limit, _| Duration::from_secs(*limit) >= so_long);
        if limits.len() == before {
            return None;
        }
        seen.forget(now);
        seen.unsaved = true;
        Some(Unsaved(self.clone()))
    }

    fn save(&self) -> io::Result<()> {
        let text = {
            let mut seen = self.seen();
            seen.unsaved = false;
            serde_json::to_vec_pretty(&seen.clients)?
        };
        let mut name = self.0.path.clone().into_os_string();
        // Other processes may save at the same time, and a reader never sees half a file.
        name.push(format!(".{}", std::process::id()));
        let new = PathBuf::from(name);
        let written = crate::base::state_dir::open_private(&new).and_then(|mut file| {
            file.set_len(0)?;
            file.write_all(&text)
        });
        let put = written.and_then(|()| fs::rename(&new, &self.0.path));
        if put.is_err() {
            let _ = fs::remove_file(&new);
            self.seen().unsaved = true;
        }
        put
    }
}

impl Sighting {
    fn counts(&self, now: UnixMillis) -> bool {
        now.since(self.at) < u64::try_from(REMEMBERED.as_millis()).unwrap_or(u64::MAX)
    }

    fn merged(self, other: Self) -> Self {
        Self { times: self.times.max(other.times), at: self.at.max(other.at) }
    }
}

impl Seen {
    /// Lets go of what counts no more.
    fn forget(&mut self, now: UnixMillis) {
        self.clients.retain(|_, limits| {
            limits.retain(|_, found| found.counts(now));
            !limits.is_empty()
        });
    }

    /// Keeps the bounds after something was noted about this client: the oldest goes.
    fn bound(&mut self, noted: &str) {
        if let Some(limits) = self.clients.get_mut(noted).filter(|limits| limits.len() > LIMITS) {
            let oldest =
                limits.iter().min_by_key(|(_, found)| (found.times >= TIMES, found.at)).map(|(limit, _)| *limit);
            oldest.and_then(|limit| limits.remove(&limit));
        }
        if self.clients.len() > CLIENTS {
            let last = |limits: &Limits| limits.values().map(|found| found.at).max();
            let oldest = self.clients.iter().min_by_key(|(_, limits)| last(limits)).map(|(name, _)| name.clone());
            oldest.and_then(|name| self.clients.remove(&name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten seconds after the other, before now.
    fn at(n: i64) -> UnixMillis {
        UnixMillis(UnixMillis::now().0 - 1_000_000 + n * 10_000)
    }

    fn seconds(limit: u64) -> Duration {
        Duration::from_secs(limit)
    }

    fn observed(dir: &tempfile::TempDir) -> Observed {
        Observed::new(dir.path().join("clients.json"))
    }

    #[test]
    fn only_round_numbers_of_seconds_say_something_and_none_under_twenty() {
        for (ms, want) in [
            (0, None),
            (1000, None),
            (5_000, None),
            (10_050, None),
            (15_000, None),
            (19_979, None),
            (19_990, Some(20)),
            (20_000, Some(20)),
            (20_180, Some(20)),
            (20_181, None),
            (22_000, None),
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
    fn a_limit_is_believed_when_it_was_seen_twice_at_different_times() {
        let now = UnixMillis::now();
        // What is seen, in seconds and at which moment; what is believed then.
        for (sightings, want) in [
            (&[(60, 0)][..], None),
            (&[(60, 0), (60, 1)], Some(60)),
            (&[(60, 0), (60, 1), (60, 2)], Some(60)),
            // One key withdraws many calls in one moment.
            (&[(60, 0), (60, 0), (60, 0)], None),
            (&[(60, 0), (45, 1), (30, 2)], None),
            (&[(60, 0), (45, 1), (60, 2)], Some(60)),
            (&[(60, 0), (60, 1), (45, 2), (45, 3)], Some(45)),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            let ours = observed(&dir);
            for (limit, n) in sightings {
                if let Some(unsaved) = ours.note("x", seconds(*limit), at(*n)) {
                    unsaved.save().expect("saved");
                }
            }
            for clients in [&ours, &observed(&dir)] {
                assert_eq!(clients.limit("x", now), want.map(seconds), "{sightings:?}");
                assert_eq!(clients.limit("y", now), None);
            }
        }
    }

    #[test]
    fn a_limit_is_taken_back_by_a_longer_wait_that_was_answered_for_every_process_and_forgotten_in_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ours, theirs) = (observed(&dir), observed(&dir));
        let now = UnixMillis::now();
        for n in 0..2 {
            for limit in [30, 60] {
                ours.note("x", seconds(limit), at(n)).expect("news").save().expect("saved");
            }
        }
        assert_eq!(theirs.limit("x", now), Some(seconds(30)));
        assert!(theirs.take_back("x", seconds(25), now).is_none(), "shorter than any");
        assert!(theirs.take_back("y", seconds(100), now).is_none(), "somebody else");
        theirs.take_back("x", seconds(45), now).expect("news").save().expect("saved");
        for clients in [&ours, &theirs] {
            assert_eq!(clients.limit("x", now), Some(seconds(60)));
        }
        let later = UnixMillis(now.0 + 31 * 24 * 60 * 60 * 1000);
        assert_eq!(ours.limit("x", later), None);
        let names: Vec<_> =
            fs::read_dir(dir.path()).expect("read").map(|entry| entry.expect("one").file_name()).collect();
        assert_eq!(names, ["clients.json"], "nothing else is left");
    }

    #[test]
    fn a_file_that_is_damaged_or_old_or_cannot_be_written_costs_nothing_else() {
        for text in [&b"{\"x\":"[..], b"{\"x\": {\"limit_s\": 30, \"at\": 1}}"] {
            let dir = tempfile::tempdir().expect("a directory");
            fs::write(dir.path().join("clients.json"), text).expect("written");
            let damaged = observed(&dir);
            assert_eq!(damaged.limit("x", UnixMillis::now()), None);
            for n in 0..2 {
                damaged.note("x", seconds(20), at(n)).expect("news").save().expect("saved");
            }
            assert_eq!(observed(&dir).limit("x", UnixMillis::now()), Some(seconds(20)));
        }
        let dir = tempfile::tempdir().expect("a directory");
        let nowhere = Observed::new(dir.path().join("nowhere/clients.json"));
        for n in 0..2 {
            assert!(nowhere.note("x", seconds(20), at(n)).expect("news").save().is_err());
        }
        assert_eq!(nowhere.limit("x", UnixMillis::now()), Some(seconds(20)), "it counts while the process lives");
    }

    #[test]
    fn names_and_limits_that_are_made_up_displace_the_oldest() {
        let dir = tempfile::tempdir().expect("a directory");
        let clients = observed(&dir);
        let now = UnixMillis::now();
        for n in 0..200 {
            let noted = clients.note(&format!("client {n}"), seconds(20), UnixMillis(now.0 + n));
            assert!(noted.is_some());
        }
        let known = |name: &str| clients.seen().clients.contains_key(name);
        assert_eq!(clients.seen().clients.len(), CLIENTS);
        assert!(known("client 199") && !known("client 0"));
        for n in 0..2 {
            let _ = clients.note("one", seconds(20), UnixMillis(now.0 + 1000 + 5000 * n));
        }
        for limit in 0..50 {
            let _ = clients.note("one", seconds(30 * (limit + 1)), UnixMillis(now.0 + 20_000));
        }
        assert_eq!(clients.seen().clients["one"].len(), LIMITS);
        assert_eq!(clients.limit("one", now), Some(seconds(20)), "what is believed goes last");
    }
}
