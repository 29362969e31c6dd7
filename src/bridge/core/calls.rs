//! A client's requests that somebody else answers.
//!
//! Owns: each from its line to its answer: in which order they go out, which may go out again after a loss, how much may be
//! held. May not know: connections, who answers, what is said of those that fail.
//!
//! ```text
//!  waiting ──its turn──▶ sent ──answered, withdrawn──▶ gone
//!     ▲                   │ lost
//!     └── may go again ◀──┴──▶ fails: fate unknown, or sent as often as may be
//! ```
//!
//! Invariants: (1) a request is in the table until its one answer, or until its client withdrew it; (2) one whose contract
//! forbids it leaves once at most; (3) they go out in the order in which they came.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::LinkNumber;
use crate::base::lenient;
use crate::bridge::line;
use crate::protocol::catalog::CallRoom;
use crate::protocol::envelope::{self, IdToken};
use crate::protocol::version::Version;

/// Requests held at once: as many as a session takes, and the few places that are kept there.
const HELD: usize = 1024;

/// Bytes of their lines; see [`HELD`]. They are held so that they can be sent again.
const HELD_BYTES: usize = 64 * 1024 * 1024;

/// Requests that wait while nobody serves: some full bursts of the busiest client. Nobody answers them before somebody does,
/// so there are fewer places.
const WAITING: usize = 256;

/// Bytes of their lines.
const WAITING_BYTES: usize = 16 * 1024 * 1024;

/// Places beyond these bounds for what reads and cancels.
const KEPT: usize = 64;

/// Bytes beyond these bounds for what reads and cancels.
const KEPT_BYTES: usize = 1024 * 1024;

/// Times a request leaves in all. One that has ended this many daemons would end the next.
pub(super) const SENDS: u32 = 5;

/// Whether a request may leave again after whoever had it was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// Twice is once: by its contract, or because its key joins it to what it began.
    Yes,
    /// It may have taken effect, and would again.
    No,
}

/// What a request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A call of a tool.
    Call(Again),
    /// A question about a task, or its cancellation: twice is once.
    Ask,
    /// The tools as whoever serves lists them.
    List,
    /// A subscription. It has no answer while it stands.
    Listen {
        /// Whether it hears when the tools differ.
        tools: bool,
        /// Whether its client knows that it stands.
        acknowledged: bool,
    },
}

impl Kind {
    /// Whether it stands until its client ends it.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Listen { .. })
    }
}

/// How a call is told that it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailsAs {
    /// As a reply of its tool, which a model sees.
    Reply,
    /// As an error: what it asked for is no reply of a tool.
    Error,
}

/// One request.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) id: IdToken,
    pub(super) line: Bytes,
    pub(super) kind: Kind,
    /// The revision its failure is told in.
    pub(super) version: Version,
    pub(super) fails_as: FailsAs,
    pub(super) room: CallRoom,
    /// The batch it came in.
    pub(super) batch: Option<u64>,
    /// Under which token its progress is told, and the last value that was.
    pub(super) progress: Option<(Box<str>, f64)>,
    /// How long its client is kept waiting, where that is known.
    pub(super) waits: Option<Waits>,
}

/// How long a client waits for a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    /// When the call came.
    pub(super) since: Instant,
    pub(super) total: Duration,
}

/// What is not worth being taken from a wait.
const AT_ONCE: Duration = Duration::from_secs(1);

impl Held {
    /// Its line as it goes out now: whoever is given the call later keeps its client waiting for the rest only.
    fn line_at(&self, now: Instant) -> Bytes {
        let Some(Waits { since, total }) = self.waits else { return self.line.clone() };
        let waited = now.saturating_duration_since(since);
        if waited < AT_ONCE {
            return self.line.clone();
        }
        let rest = total.saturating_sub(waited).max(AT_ONCE).as_secs();
        let text = lenient::text(&self.line);
        let params = envelope::object(&text, ["params"]).ok().and_then(|[params]| params);
        match params.and_then(|params| envelope::object(params, ["arguments"]).ok()) {
            Some([Some(arguments)]) => line::with_argument(&text, arguments, WAIT, &rest.into()),
            _ => self.line.clone(),
        }
    }
}

/// The argument that says how long a caller is kept waiting.
pub(super) const WAIT: &str = "wait_s";

/// Why a request fails that was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LostAs {
    Unknown,
    Exhausted,
}

#[derive(Debug)]
struct Entry {
    held: Held,
    sends: u32,
    sent: Option<LinkNumber>,
}

/// All of them, by the number of their arrival.
#[derive(Debug, Default)]
pub(super) struct Calls {
    entries: BTreeMap<u64, Entry>,
    by_id: HashMap<IdToken, u64>,
    waiting: BTreeSet<u64>,
    bytes: usize,
    waiting_bytes: usize,
    count: u64,
}

impl Calls {
    /// Whether one may go out.
    pub(super) fn may_send(&self, barred: impl Fn(&IdToken) -> bool) -> bool {
        self.next(barred).is_some()
    }

    /// The next one to go out.
    fn next(&self, barred: impl Fn(&IdToken) -> bool) -> Option<u64> {
        let may_go = |number: &u64| self.entries.get(number).is_some_and(|entry| !barred(&entry.held.id));
        self.waiting.iter().copied().find(may_go)
    }

    pub(super) fn number(&self, id: &IdToken) -> Option<u64> {
        self.by_id.get(id).copied()
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Held> {
        self.entries.get_mut(&number).map(|entry| &mut entry.held)
    }

    /// Who has it.
    pub(super) fn sent_to(&self, number: u64) -> Option<LinkNumber> {
        self.entries.get(&number).and_then(|entry| entry.sent)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (u64, &Held)> {
        self.entries.iter().map(|(number, entry)| (*number, &entry.held))
    }

    /// The last progress that was told under a token, while its request is held.
    pub(super) fn told_under(&mut self, token: &str) -> Option<&mut f64> {
        let told = self.entries.values_mut().filter_map(|entry| entry.held.progress.as_mut());
        told.filter(|(known, _)| &**known == token).map(|(_, last)| last).next()
    }

    /// Whether one more of so many bytes may be held; `served` while somebody takes them.
    pub(super) fn has_room(&self, room: CallRoom, bytes: usize, served: bool) -> bool {
        let (kept, kept_bytes) = match room {
            CallRoom::Shared => (0, 0),
            CallRoom::Kept => (KEPT, KEPT_BYTES),
        };
        let all = self.entries.len() < HELD + kept && self.bytes + bytes <= HELD_BYTES + kept_bytes;
        let waiting = self.waiting.len() < WAITING + kept && self.waiting_bytes + bytes <= WAITING_BYTES + kept_bytes;
        all && (served || waiting)
    }

    /// Takes one in.
    pub(super) fn hold(&mut self, held: Held) -> u64 {
        self.count += 1;
        let (number, bytes) = (self.count, held.line.len());
        self.by_id.insert(held.id.clone(), number);
        self.bytes += bytes;
        self.waiting_bytes += bytes;
        self.waiting.insert(number);
        self.entries.insert(number, Entry { held, sends: 0, sent: None });
        number
    }

    /// The next one that goes out to this connection, but for those whose id is `barred`: from here on it counts as sent.
    pub(super) fn send(&mut self, to: LinkNumber, now: Instant, barred: impl Fn(&IdToken) -> bool) -> Option<Bytes> {
        let number = self.next(barred)?;
        let entry = self.entries.get_mut(&number)?;
        self.waiting.remove(&number);
        self.waiting_bytes -= entry.held.line.len();
        entry.sends += 1;
        entry.sent = Some(to);
        Some(entry.held.line_at(now))
    }

    /// Lets go of one.
    pub(super) fn take(&mut self, number: u64) -> Option<Held> {
        let entry = self.entries.remove(&number)?;
        self.by_id.remove(&entry.held.id);
        self.bytes -= entry.held.line.len();
        if self.waiting.remove(&number) {
            self.waiting_bytes -= entry.held.line.len();
        }
        Some(entry.held)
    }

    /// A connection is gone: those of its requests that may go again wait again; the others, and why they do not.
    pub(super) fn lost(&mut self, link: LinkNumber) -> Vec<(u64, LostAs)> {
        let had = |(number, entry): (&u64, &Entry)| (entry.sent == Some(link)).then_some(*number);
        let numbers: Vec<u64> = self.entries.iter().filter_map(had).collect();
        numbers.into_iter().filter_map(|number| Some((number, self.again(number)?))).collect()
    }

    /// Whoever has this request will not answer it: it waits again, where it may, else why it does not.
    pub(super) fn again(&mut self, number: u64) -> Option<LostAs> {
        let entry = self.entries.get_mut(&number)?;
        let fails = after_loss(&entry.held.kind, entry.sends);
        if fails.is_none() && entry.sent.take().is_some() {
            self.waiting.insert(number);
            self.waiting_bytes += entry.held.line.len();
        }
        fails
    }

    /// L9, and that the table agrees with itself.
    ///
    /// # Errors
    ///
    /// What is broken, in words.
    #[cfg(test)]
    pub(super) fn invariant_held_is_consistent_and_bounded(&self) -> Result<(), String> {
        let bytes: usize = self.entries.values().map(|entry| entry.held.line.len()).sum();
        let waiting: usize = self.waiting.iter().filter_map(|n| self.entries.get(n)).map(|e| e.held.line.len()).sum();
        let checks = [
            (self.by_id.len() == self.entries.len(), "ids and entries differ in number"),
            (bytes == self.bytes && waiting == self.waiting_bytes, "bytes are counted wrongly"),
            (self.entries.len() <= HELD + KEPT && self.bytes <= HELD_BYTES + KEPT_BYTES, "too much is held"),
            (
                self.entries.iter().all(|(number, entry)| entry.sent.is_none() == self.waiting.contains(number)),
                "one waits and is sent, or neither",
            ),
        ];
        checks.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, broken)| Err(broken.to_owned()))
    }
}

/// What becomes of a request that was sent so often, when whoever had it is lost: `None` when it goes out again.
fn after_loss(kind: &Kind, sends: u32) -> Option<LostAs> {
    match kind {
        Kind::Call(Again::No) => Some(LostAs::Unknown),
        // It begins nothing, and its client would never hear again.
        Kind::Listen { .. } => None,
        Kind::Call(Again::Yes) | Kind::Ask | Kind::List if sends < SENDS => None,
        Kind::Call(Again::Yes) | Kind::Ask | Kind::List => Some(LostAs::Exhausted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: LinkNumber = LinkNumber(1);

    fn held(id: &str, kind: Kind, bytes: usize) -> Held {
        Held {
            id: IdToken::from_json(id).expect("an id"),
            line: Bytes::from(vec![b'x'; bytes]),
            kind,
            version: Version::MODERN,
            fails_as: FailsAs::Reply,
            room: CallRoom::Shared,
            batch: None,
            progress: None,
            waits: None,
        }
    }

    #[test]
    fn only_what_may_goes_out_again_and_only_so_often() {
        let listen = Kind::Listen { tools: false, acknowledged: true };
        for (kind, sends, expected) in [
            (Kind::Call(Again::No), 1, Some(LostAs::Unknown)),
            (Kind::Call(Again::Yes), 1, None),
            (Kind::Call(Again::Yes), SENDS - 1, None),
            (Kind::Call(Again::Yes), SENDS, Some(LostAs::Exhausted)),
            (Kind::List, SENDS - 1, None),
            (Kind::List, SENDS, Some(LostAs::Exhausted)),
            (listen.clone(), 1, None),
            (listen, 1000, None),
        ] {
            assert_eq!(after_loss(&kind, sends), expected, "{kind:?} after {sends}");
        }
    }

    #[test]
    fn they_go_out_in_the_order_of_their_arrival_also_after_a_loss() {
        let mut calls = Calls::default();
        let again = || Kind::Call(Again::Yes);
        for (id, kind) in [("1", again()), ("2", Kind::Call(Again::No)), ("3", again()), ("4", Kind::Call(Again::No))] {
            calls.hold(held(id, kind, id.parse().expect("a number")));
        }
        let sent = |calls: &mut Calls| calls.send(LINK, Instant::now(), |_| false).map(|line| line.len());
        assert_eq!([sent(&mut calls), sent(&mut calls), sent(&mut calls)], [Some(1), Some(2), Some(3)]);
        // Two was sent and may not go again; four never left.
        assert!(calls.lost(LinkNumber(2)).is_empty(), "another's");
        assert_eq!(calls.lost(LINK), [(2, LostAs::Unknown)]);
        calls.take(2).expect("it is told, then let go of");
        calls.invariant_held_is_consistent_and_bounded().expect("consistent");
        assert_eq!(
            [sent(&mut calls), sent(&mut calls), sent(&mut calls), sent(&mut calls)],
            [Some(1), Some(3), Some(4), None]
        );
    }

    #[test]
    fn whoever_gets_a_call_later_keeps_its_client_waiting_for_the_rest() {
        let since = Instant::now();
        let text = r#"{"id":1,"params":{"arguments":{"wait_s":50},"name":"consult"}}"#;
        for (waited, expected) in [
            (0, r#"{"wait_s":50}"#),
            (999, r#"{"wait_s":50}"#),
            (12_900, r#"{"wait_s":50,"wait_s":37}"#),
            (49_500, r#"{"wait_s":50,"wait_s":1}"#),
            (999_999, r#"{"wait_s":50,"wait_s":1}"#),
        ] {
            let waits = Some(Waits { since, total: Duration::from_secs(50) });
            let line = Bytes::from_static(text.as_bytes());
            let held = Held { waits, line, ..held("1", Kind::Call(Again::Yes), 0) };
            let line = held.line_at(since + Duration::from_millis(waited));
            assert_eq!(line, text.replace(r#"{"wait_s":50}"#, expected), "{waited}");
        }
    }

    #[test]
    fn a_barred_id_lets_the_others_pass() {
        let mut calls = Calls::default();
        calls.hold(held("1", Kind::List, 1));
        calls.hold(held("2", Kind::List, 2));
        assert_eq!(calls.send(LINK, Instant::now(), |id| id.as_str() == "1").map(|line| line.len()), Some(2));
        assert_eq!(calls.send(LINK, Instant::now(), |id| id.as_str() == "1"), None);
        assert_eq!(calls.send(LINK, Instant::now(), |_| false).map(|line| line.len()), Some(1));
    }

    #[test]
    fn what_is_held_is_bounded_and_less_of_it_while_nobody_serves() {
        let mut calls = Calls::default();
        for number in 0..WAITING {
            assert!(calls.has_room(CallRoom::Shared, 10, false), "{number}");
            calls.hold(held(&number.to_string(), Kind::List, 10));
        }
        assert!(!calls.has_room(CallRoom::Shared, 10, false) && calls.has_room(CallRoom::Kept, 10, false));
        assert!(calls.has_room(CallRoom::Shared, 10, true));
        assert!(!calls.has_room(CallRoom::Shared, HELD_BYTES, true));
        while calls.send(LINK, Instant::now(), |_| false).is_some() {}
        assert!(calls.has_room(CallRoom::Shared, WAITING_BYTES, false));
        assert!(!calls.has_room(CallRoom::Shared, WAITING_BYTES + 1, false));
    }
}
