//! The identifiers of the system, one newtype each.
//!
//! Owns: how each id is made, written and read. Knows nothing of what it names.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A string was not a lower-case canonical UUID (`xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a lower-case canonical UUID")]
pub struct NotAUuid;

/// Reads a UUID in the one spelling we hand out: lower case, with dashes.
///
/// Other spellings are refused because the agents themselves look ids up by their text.
fn canonical_uuid(text: &str) -> Result<Uuid, NotAUuid> {
    let id = Uuid::parse_str(text).map_err(|_| NotAUuid)?;
    let mut buffer = Uuid::encode_buffer();
    if id.hyphenated().encode_lower(&mut buffer) == text { Ok(id) } else { Err(NotAUuid) }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(#[schemars(with = "String")] Uuid);

        impl $name {
            /// A new random id (UUID v4).
            #[must_use]
            #[doc(hidden)]
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = NotAUuid;

            fn from_str(text: &str) -> Result<Self, NotAUuid> {
                canonical_uuid(text).map(Self)
            }
        }
    };
}

uuid_id! {
    /// A waiting process, by the lock it holds.
    WaiterId
}

uuid_id! {
    /// One life of a daemon, new at each start and the same through upgrades.
    DaemonId
}

uuid_id! {
    /// A job: one accepted consult. Unguessable, because it is the only key to its answer.
    JobId
}

uuid_id! {
    /// One running system (host), new at each start.
    HostId
}

uuid_id! {
    /// A job of a queue of several machines. The host that runs it accepts a job of its own for it, with this as its request key.
    FleetJobId
}

impl JobId {
    /// The id that a fleet's job has in a machine's own store.
    #[must_use]
    pub(crate) const fn of_fleet(job: FleetJobId) -> Self {
        Self(job.0)
    }

    /// The job of a fleet that has this id, if there is one.
    #[must_use]
    pub(crate) const fn in_fleet(self) -> FleetJobId {
        FleetJobId(self.0)
    }
}

/// Characters of an agent's session id. Real ones have 30 to 40.
const SESSION_ID_MOST: usize = 64;

/// A conversation kept by an agent, which a later consult may resume. Its agent chooses the id: a UUID, or a word of its own such as
/// `ses_1a2B3c`. [`AgentProfile`](crate::AgentProfile) says which ids are an agent's.
///
/// It is a word of 1 to 64 letters, digits and `-_.:`, the first a letter or a digit: no option, no path and no pattern, wherever it
/// is put.
///
/// ```
/// use phone_opus::AgentSessionId;
///
/// assert!("ses_1a2B3c".parse::<AgentSessionId>().is_ok());
/// assert!("../x".parse::<AgentSessionId>().is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, JsonSchema)]
#[schemars(transparent)]
pub struct AgentSessionId(#[schemars(with = "String")] SessionWord);

/// The text of a session id, held in place: the id is copied wherever it is needed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct SessionWord {
    /// Zeros after the text.
    bytes: [u8; SESSION_ID_MOST],
    length: u8,
}

/// A string was not the id of an agent's session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a session's id: 1 to {} letters, digits and -_.:, the first a letter or a digit", SESSION_ID_MOST)]
pub struct NotASessionId;

impl AgentSessionId {
    /// What is accepted.
    pub(crate) const ACCEPTED: &'static str = "a session's id as it was handed out: up to 64 letters, digits and -_.:";

    /// A new random id (UUID v4).
    #[must_use]
    #[doc(hidden)]
    pub fn random() -> Self {
        Self::of(Uuid::new_v4())
    }

    /// The id that these random bytes are.
    #[must_use]
    pub(crate) fn from_random_bytes(bytes: [u8; 16]) -> Self {
        Self::of(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }

    fn of(id: Uuid) -> Self {
        let mut bytes = [0; SESSION_ID_MOST];
        let length = id.hyphenated().encode_lower(&mut bytes).len();
        // A buffer's rest is left as it was.
        Self(SessionWord { bytes, length: u8::try_from(length).unwrap_or(0) })
    }

    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Of ASCII alone, whichever way it was made.
        std::str::from_utf8(&self.0.bytes[..usize::from(self.0.length)]).unwrap_or_default()
    }

    /// Whether it is a UUID in lower case, with dashes.
    #[must_use]
    pub(crate) fn is_uuid(&self) -> bool {
        canonical_uuid(self.as_str()).is_ok()
    }
}

impl FromStr for AgentSessionId {
    type Err = NotASessionId;

    fn from_str(text: &str) -> Result<Self, NotASessionId> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        let fits = text.len() <= SESSION_ID_MOST
            && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
            && text.bytes().all(plain);
        if !fits {
            return Err(NotASessionId);
        }
        let mut bytes = [0; SESSION_ID_MOST];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self(SessionWord { bytes, length: u8::try_from(text.len()).map_err(|_| NotASessionId)? }))
    }
}

impl fmt::Display for AgentSessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for AgentSessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AgentSessionId").field(&self.as_str()).finish()
    }
}

impl Serialize for AgentSessionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for AgentSessionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

uuid_id! {
    /// Put into the environment of everything an agent run starts, so that a sweep knows its own.
    RunToken
}

uuid_id! {
    /// One chain of consults that started each other; carried through the environment.
    ChainId
}

/// One tool invocation, unique across hosts and restarts: the host, its session and the call within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InvocationId {
    /// The host that took the request.
    pub host: HostId,
    /// The session it came in on.
    pub session: SessionNumber,
    /// The call within the session; numbers are never reused.
    pub call: u64,
}

impl InvocationId {
    /// From here on the numbers of calls are those of consults that an embedding program asks for without a tool's call. No
    /// session ever takes so many others.
    pub const EMBEDDERS: u64 = 1 << 62;

    /// Where the number of a part stands in `call`: above any call's own number, below the bit of [`Self::EMBEDDERS`].
    const PART: u32 = 56;

    /// Part `number` of this call, from 1: a call that asks several agents is one job for each, and each has to be found by
    /// itself. Who waits is the call as a whole.
    #[must_use]
    #[doc(hidden)]
    pub fn part(self, number: u8) -> Self {
        debug_assert!((1..64).contains(&number) && self.number_of_part() == 0, "{self} has no part {number}");
        Self { call: self.call | u64::from(number) << Self::PART, ..self }
    }

    /// The call it is a part of; itself when it is a whole one.
    #[must_use]
    #[doc(hidden)]
    pub const fn whole(self) -> Self {
        Self { call: self.call ^ self.number_of_part() << Self::PART, ..self }
    }

    /// Which part of a call it is; 0 when it is a whole one.
    const fn number_of_part(&self) -> u64 {
        (self.call & !Self::EMBEDDERS) >> Self::PART
    }

    /// Whether it is a consult of an embedding program, of which its session knows nothing.
    #[must_use]
    #[doc(hidden)]
    pub const fn is_embedders(&self) -> bool {
        self.call >= Self::EMBEDDERS
    }
}

impl fmt::Display for InvocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = self.number_of_part();
        write!(f, "{}:{}:{}", self.host, self.session, self.call ^ part << Self::PART)?;
        if part == 0 { Ok(()) } else { write!(f, "/{part}") }
    }
}

/// One incarnation of a worker. Starts at 1, grows by one per start, is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation of a slot that has started nothing yet.
    pub const NONE: Self = Self(0);

    /// The generation after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One connection's session within a system; numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionNumber(pub u64);

impl fmt::Display for SessionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One door of a system; numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DoorNumber(pub u64);

/// A connection of one system to an exec server, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecNumber(pub u64);

/// Milliseconds since the Unix epoch; the only wall-clock type that is stored or sent.
///
/// ```
/// use phone_opus::UnixMillis;
///
/// let (noon, later) = (UnixMillis(43_200_000), UnixMillis(43_201_500));
/// assert_eq!(noon.to_iso8601(), "1970-01-01T12:00:00.000Z");
/// assert_eq!(later.since(noon), 1500);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct UnixMillis(pub i64);

impl UnixMillis {
    /// The current wall-clock time. Only loops call it; deciding code is given the time.
    #[must_use]
    pub fn now() -> Self {
        Self::at(std::time::SystemTime::now())
    }

    /// A time as files have it; 1970 for what lies before.
    #[must_use]
    pub fn at(time: std::time::SystemTime) -> Self {
        let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// Milliseconds from `earlier` to `self`, zero when the clock went backwards.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }

    /// The time in UTC as ISO 8601 writes it, to the millisecond: `2026-11-21T10:00:00.000Z`.
    #[must_use]
    pub fn to_iso8601(self) -> String {
        let (days, ms) = (self.0.div_euclid(86_400_000), self.0.rem_euclid(86_400_000));
        // Days since 1 March of the year 0, so that a leap day is the last day of its year; 400 years are an era.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
    }
}

/// A call within its session; numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallNumber(pub u64);

/// A call across all sessions of a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallKey {
    /// The session it came in on.
    pub session: SessionNumber,
    /// The call within it.
    pub call: CallNumber,
}

/// The environment variable that marks every process of a run with its [`RunToken`].
pub const RUN_TOKEN_VARIABLE: &str = "PHONE_OPUS_RUN_TOKEN";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_iso_8601_in_utc() {
        for (ms, want) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_795_255_445_678, "2026-11-21T10:04:05.678Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(UnixMillis(ms).to_iso8601(), want);
        }
    }

    #[test]
    fn the_parts_of_a_call_differ_from_each_other_and_from_the_call() {
        let host = HostId::random();
        for (call, embedders) in [(7, false), (InvocationId::EMBEDDERS + 7, true)] {
            let whole = InvocationId { host, session: SessionNumber(3), call };
            let told: Vec<String> = (1..=5).map(|number| whole.part(number).to_string()).collect();
            assert_eq!(told, (1..=5).map(|number| format!("{host}:3:{call}/{number}")).collect::<Vec<_>>());
            assert_eq!(whole.to_string(), format!("{host}:3:{call}"));
            assert!((1..=5).all(|number| whole.part(number).is_embedders() == embedders));
        }
    }

    #[test]
    fn only_the_canonical_spelling_of_a_uuid_is_an_id() {
        let id = JobId::random();
        assert_eq!(id.to_string().parse::<JobId>(), Ok(id));
        for wrong in [
            id.to_string().to_uppercase().replace('-', "-A").as_str(),
            "",
            "6F9619FF-8B86-D011-B42D-00C04FC964FF",
            "6f9619ff8b86d011b42d00c04fc964ff",
            "{6f9619ff-8b86-d011-b42d-00c04fc964ff}",
            "-p",
        ] {
            assert_eq!(wrong.parse::<JobId>(), Err(NotAUuid), "{wrong:?}");
        }
    }

    #[test]
    fn an_agents_session_id_is_a_short_plain_word_and_comes_back_as_it_was() {
        let uuid = AgentSessionId::random();
        let long = "s".repeat(SESSION_ID_MOST);
        for (text, is_uuid) in [
            (uuid.to_string().as_str(), true),
            ("3f2504e0-4f89-41d3-9a0c-0305e82c3301", true),
            ("3F2504E0-4F89-41D3-9A0C-0305E82C3301", false),
            ("3f2504e04f8941d39a0c0305e82c3301", false),
            ("ses_5c6b7a8dffe1Q2w3E4r5T6y7U8", false),
            ("T-01a2", false),
            ("acp:7", false),
            ("session.1", false),
            ("7", false),
            (long.as_str(), false),
        ] {
            let id: AgentSessionId = text.parse().expect(text);
            assert_eq!((id.to_string().as_str(), id.as_str(), id.is_uuid()), (text, text, is_uuid));
            let json = serde_json::to_string(&id).expect("JSON");
            assert_eq!(json, format!("\"{text}\""), "as it was stored before");
            assert_eq!(serde_json::from_str::<AgentSessionId>(&json).expect("read"), id);
            assert_eq!(serde_json::from_value::<AgentSessionId>(text.into()).expect("read"), id);
        }
        assert_eq!(uuid.to_string().parse(), Ok(uuid));
        let (a, b): (AgentSessionId, AgentSessionId) = ("a".parse().expect("a"), "ab".parse().expect("ab"));
        assert!(a < b && a != b);
        let too_long = "s".repeat(SESSION_ID_MOST + 1);
        for wrong in [
            "", "-p", "--resume", "_x", ".", "..", "../x", "a/b", "a\\b", "a b", "a\n", "a\0", "ä", "$(x)", "a*",
            "a;b", "~x", "a=b", &too_long,
        ] {
            assert_eq!(wrong.parse::<AgentSessionId>(), Err(NotASessionId), "{wrong:?}");
            assert!(serde_json::from_value::<AgentSessionId>(wrong.into()).is_err(), "{wrong:?}");
        }
        assert!(serde_json::from_str::<AgentSessionId>("7").is_err());
    }
}
