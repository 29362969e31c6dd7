//! Waiting for a condition, with a deadline.

#![expect(clippy::panic, reason = "a wait in vain fails the case, and says what was last seen")]

use std::fmt::Display;
use std::time::{Duration, Instant};

/// How long a case waits for what normally takes milliseconds. Other builds may run on the machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often it looks.
const LOOK: Duration = Duration::from_millis(10);

/// One wait: looks again and again, until it is in vain.
///
/// ```
/// # use phone_opus::testkit::wait::Waiting;
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let waiting = Waiting::until("the file is there", Duration::from_secs(60));
/// # let path = std::env::current_exe().unwrap();
/// while !path.exists() {
///     waiting.again(|| "no file").await;
/// }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Waiting {
    what: String,
    began: Instant,
    patience: Duration,
}

impl Waiting {
    /// A wait that begins now.
    #[must_use]
    pub fn until(what: impl Into<String>, patience: Duration) -> Self {
        Self { what: what.into(), began: Instant::now(), patience }
    }

    /// The pause before the next look.
    ///
    /// # Panics
    ///
    /// When patience is over, with what was last `seen`.
    pub fn again<S: Display>(&self, seen: impl FnOnce() -> S) -> tokio::time::Sleep {
        if self.began.elapsed() > self.patience {
            panic!("waited {:?} in vain until {}; last seen: {}", self.patience, self.what, seen());
        }
        tokio::time::sleep(LOOK)
    }
}

/// Waits until `check` finds something, for [`PATIENCE`] at most. In a task that may change its thread, use [`Waiting`]:
/// the compiler cannot see that an async closure that lends is `Send`.
///
/// # Panics
///
/// When it was in vain.
///
/// # Cancel safety
///
/// As safe as `check`.
pub async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    until_seen(what, async || check().await.ok_or("nothing")).await
}

/// Waits until `look` gives `Ok`, for [`PATIENCE`] at most; an `Err` is what was seen instead.
///
/// # Panics
///
/// When it was in vain, with what was last seen.
///
/// # Cancel safety
///
/// As safe as `look`.
pub async fn until_seen<T, S: Display>(what: &str, mut look: impl AsyncFnMut() -> Result<T, S>) -> T {
    let waiting = Waiting::until(what, PATIENCE);
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) => waiting.again(|| seen).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    #[should_panic(expected = "waited 30ms in vain until it rains; last seen: cloud")]
    async fn a_wait_in_vain_says_what_was_last_seen() {
        let waiting = Waiting::until("it rains", Duration::from_millis(30));
        for looks in 0.. {
            waiting.again(|| format!("cloud {looks}")).await;
        }
    }

    #[tokio::test]
    async fn a_wait_ends_with_what_was_looked_for() {
        let mut looks = 0;
        let found = until_seen("three looks", async || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(looks) }
        });
        assert_eq!(found.await, 3);
    }
}
