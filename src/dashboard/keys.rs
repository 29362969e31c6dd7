//! The secrets a page is opened by: what was given out, what it was exchanged for, until when.
//!
//! Owns: tokens and sessions, by their digests and in memory only. Pure: time and fresh secrets are handed in. May not know:
//! headers, cookies, who asks.
//!
//! ```text
//! offered ── exchanged once ──▶ a session: cookie and key ── 12 h, or pushed out by newer ones ──▶ over
//! ```
//!
//! Invariants: (1) a token opens one session; (2) a session is a cookie *and* a key, which belong together; (3) no secret is kept
//! as it is; (4) all of it ends with the process, but for the digests that a daemon
//! passes on to the image that takes its place.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::gate::Shown;

/// How long a session lasts: a working day with its evening. Then a new address is needed.
pub const SESSION: Duration = Duration::from_secs(12 * 60 * 60);

/// How long an address waits to be opened.
const TOKEN: Duration = SESSION;

/// Addresses that wait; the oldest makes room, since whoever asks for so many has lost it.
const TOKENS: usize = 16;

/// Sessions at a time: more browsers than anybody has. The oldest makes room.
const SESSIONS: usize = 32;

/// Two hundred and forty-four random bits, as text.
pub struct Secret(String);

impl Secret {
    /// One that nobody knows.
    #[must_use]
    pub fn fresh() -> Self {
        Self(format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()))
    }

    /// Its text, for the one it is for.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

type Print = [u8; 32];

fn print(said: &str) -> Print {
    Sha256::digest(said.as_bytes()).into()
}

/// Takes as long wherever they differ.
fn same(one: &Print, other: &Print) -> bool {
    let differing = one.iter().zip(other).fold(0, |all, (one, other)| all | (one ^ other));
    std::hint::black_box(differing) == 0
}

#[derive(Debug)]
struct OpenSession {
    cookie: Print,
    key: Print,
    until: Instant,
}

/// All of them, for the next image: digests, and the seconds that each is still worth something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedKeys {
    tokens: Vec<(Print, u64)>,
    sessions: Vec<(Print, Print, u64)>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Keys {
    tokens: Vec<(Print, Instant)>,
    sessions: Vec<OpenSession>,
}

impl Keys {
    /// Gives a token out.
    pub fn offer(&mut self, token: &Secret, now: Instant) {
        self.forget(now);
        if self.tokens.len() >= TOKENS {
            self.tokens.remove(0);
        }
        self.tokens.push((print(token.text()), now + TOKEN));
    }

    /// Exchanges a token for a session of this cookie and this key. False where it is none of ours, or was used.
    #[must_use]
    pub fn exchange(&mut self, said: &str, cookie: &Secret, key: &Secret, now: Instant) -> bool {
        self.forget(now);
        let said = print(said);
        let Some(at) = self.tokens.iter().position(|(token, _)| same(token, &said)) else { return false };
        self.tokens.remove(at);
        if self.sessions.len() >= SESSIONS {
            self.sessions.remove(0);
        }
        let until = now + SESSION;
        self.sessions.push(OpenSession { cookie: print(cookie.text()), key: print(key.text()), until });
        true
    }

    /// What a cookie and a key are worth: the cookie by itself, the key as the one that belongs to it.
    #[must_use]
    pub fn standing(&self, cookie: Option<&str>, key: Option<&str>, now: Instant) -> (Shown, Shown) {
        let wrong = |said: Option<&str>| if said.is_some() { Shown::Wrong } else { Shown::Nothing };
        let found = cookie.map(print).and_then(|cookie| {
            self.sessions.iter().find(|session| session.until > now && same(&session.cookie, &cookie))
        });
        let Some(session) = found else { return (wrong(cookie), wrong(key)) };
        let fits = key.is_some_and(|key| same(&session.key, &print(key)));
        (Shown::Right, if fits { Shown::Right } else { wrong(key) })
    }

    /// For the next image.
    #[must_use]
    pub fn passed(&self, now: Instant) -> PassedKeys {
        let left = |until: Instant| until.saturating_duration_since(now).as_secs();
        PassedKeys {
            tokens: self.tokens.iter().map(|(token, until)| (*token, left(*until))).collect(),
            sessions: self.sessions.iter().map(|open| (open.cookie, open.key, left(open.until))).collect(),
        }
    }

    /// Those of the image before. None is worth anything for longer than a new one.
    #[must_use]
    pub fn gone_on_with(passed: PassedKeys, now: Instant) -> Self {
        let until = |left: u64| now + Duration::from_secs(left).min(SESSION);
        let open = |(cookie, key, left)| OpenSession { cookie, key, until: until(left) };
        Self {
            tokens: passed.tokens.into_iter().take(TOKENS).map(|(token, left)| (token, until(left))).collect(),
            sessions: passed.sessions.into_iter().take(SESSIONS).map(open).collect(),
        }
    }

    fn forget(&mut self, now: Instant) {
        self.tokens.retain(|(_, until)| *until > now);
        self.sessions.retain(|session| session.until > now);
    }
}

#[cfg(test)]
mod tests {
    use super::Shown::{Nothing, Right, Wrong};
    use super::*;

    #[test]
    fn a_token_opens_one_session_and_a_session_is_two_secrets_for_twelve_hours() {
        let [token, cookie, key, other] = [(); 4].map(|()| Secret::fresh());
        let now = Instant::now();
        let mut keys = Keys::default();
        assert!(!keys.exchange(token.text(), &cookie, &key, now), "it was not given out");
        keys.offer(&token, now);
        assert!(!keys.exchange(other.text(), &cookie, &key, now), "another one");
        assert!(keys.exchange(token.text(), &cookie, &key, now));
        assert!(!keys.exchange(token.text(), &other, &other, now), "it was used");
        let shown = |cookie: Option<&Secret>, key: Option<&Secret>, at| {
            keys.standing(cookie.map(Secret::text), key.map(Secret::text), at)
        };
        let (late, over) = (now + SESSION - Duration::from_millis(1), now + SESSION);
        for (shows, at, worth) in [
            ((Some(&cookie), Some(&key)), late, (Right, Right)),
            ((Some(&cookie), Some(&other)), now, (Right, Wrong)),
            ((Some(&cookie), None), now, (Right, Nothing)),
            ((None, Some(&key)), now, (Nothing, Wrong)),
            ((Some(&key), Some(&cookie)), now, (Wrong, Wrong)),
            ((Some(&token), Some(&token)), now, (Wrong, Wrong)),
            ((None, None), now, (Nothing, Nothing)),
            ((Some(&cookie), Some(&key)), over, (Wrong, Wrong)),
        ] {
            assert_eq!(shown(shows.0, shows.1, at), worth);
        }
        assert!(!format!("{keys:?} {token:?}").contains(token.text()));
    }

    #[test]
    fn of_too_many_the_oldest_is_forgotten_and_what_waits_too_long_opens_nothing() {
        let now = Instant::now();
        let mut keys = Keys::default();
        let tokens: Vec<Secret> = (0..=TOKENS).map(|_| Secret::fresh()).collect();
        tokens.iter().for_each(|token| keys.offer(token, now));
        let (cookie, key) = (Secret::fresh(), Secret::fresh());
        assert!(!keys.exchange(tokens[0].text(), &cookie, &key, now));
        assert!(keys.exchange(tokens[1].text(), &cookie, &key, now));
        assert!(!keys.exchange(tokens[2].text(), &cookie, &key, now + TOKEN));
        for _ in 0..SESSIONS {
            let token = Secret::fresh();
            keys.offer(&token, now);
            assert!(keys.exchange(token.text(), &Secret::fresh(), &Secret::fresh(), now));
        }
        assert_eq!(keys.standing(Some(cookie.text()), Some(key.text()), now).0, Wrong);
        assert_eq!(keys.sessions.len(), SESSIONS);
    }

    #[test]
    fn what_the_next_image_is_told_is_worth_the_same_and_has_no_secret_in_it() {
        let [token, used, cookie, key] = [(); 4].map(|()| Secret::fresh());
        let now = Instant::now();
        let mut keys = Keys::default();
        keys.offer(&token, now);
        keys.offer(&used, now);
        assert!(keys.exchange(used.text(), &cookie, &key, now));
        let told = serde_json::to_string(&keys.passed(now)).expect("JSON");
        for secret in [&token, &used, &cookie, &key] {
            assert!(!told.contains(secret.text()));
        }
        let passed: PassedKeys = serde_json::from_str(&told).expect("read");
        let mut next = Keys::gone_on_with(passed, now);
        assert_eq!(next.standing(Some(cookie.text()), Some(key.text()), now), (Right, Right));
        assert_eq!(next.standing(Some(cookie.text()), Some(key.text()), now + SESSION), (Wrong, Wrong));
        assert!(!next.exchange(used.text(), &Secret::fresh(), &Secret::fresh(), now), "it was used before");
        assert!(next.exchange(token.text(), &Secret::fresh(), &Secret::fresh(), now));
        let long = PassedKeys { tokens: Vec::new(), sessions: vec![([1; 32], [2; 32], u64::MAX)] };
        assert_eq!(Keys::gone_on_with(long, now).sessions[0].until, now + SESSION);
    }
}
