//! What the clients of a system work on, by session: told by sessions, asked by tools wherever they run.
//!
//! Owns: the table, and how long an answer is waited for. May not know: how a client is asked, what a root grants.
//!
//! The table's lock is private to this file and never held over an await.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::base::ids::SessionNumber;
use crate::places;
use crate::protocol::session::Roots;

/// Longest a client's answer is waited for. Clients answer from memory; one that does not has none.
const WAIT: Duration = Duration::from_secs(2);

/// The roots of a system's sessions. Cheap to clone. There are no more entries than connections.
#[derive(Debug, Clone)]
pub struct RootsHandle(Where);

#[derive(Clone)]
enum Where {
    Here(Arc<Mutex<HashMap<SessionNumber, watch::Sender<Roots>>>>),
    /// Another process has it.
    Elsewhere(Arc<dyn AskRoots>),
}

/// A way to a table that another process has.
pub trait AskRoots: Send + Sync {
    /// [`RootsHandle::uris`].
    fn uris(&self, session: SessionNumber) -> BoxFuture<'_, Vec<String>>;
}

impl fmt::Debug for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Here(_) => "Here",
            Self::Elsewhere(_) => "Elsewhere",
        })
    }
}

impl Default for RootsHandle {
    fn default() -> Self {
        Self(Where::Here(Arc::default()))
    }
}

impl RootsHandle {
    /// A table that another process has.
    pub fn elsewhere(way: impl AskRoots + 'static) -> Self {
        Self(Where::Elsewhere(Arc::new(way)))
    }

    fn table(&self) -> Option<MutexGuard<'_, HashMap<SessionNumber, watch::Sender<Roots>>>> {
        match &self.0 {
            Where::Here(table) => Some(table.lock().unwrap_or_else(PoisonError::into_inner)),
            Where::Elsewhere(_) => None,
        }
    }

    /// A session tells what is known.
    pub fn set(&self, session: SessionNumber, roots: Roots) {
        let Some(mut table) = self.table() else { return };
        match table.get(&session) {
            Some(known) => drop(known.send_replace(roots)),
            None if roots == Roots::None => {}
            None => drop(table.insert(session, watch::Sender::new(roots))),
        }
    }

    /// A session is over.
    pub fn forget(&self, session: SessionNumber) {
        if let Some(mut table) = self.table() {
            table.remove(&session);
        }
    }

    /// The URIs of a session's roots; none when its client has none, cannot be asked, or does not answer in time.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn uris(&self, session: SessionNumber) -> Vec<String> {
        if let Where::Elsewhere(way) = &self.0 {
            return way.uris(session).await;
        }
        let known = self.table().and_then(|table| table.get(&session).map(watch::Sender::subscribe));
        let Some(mut known) = known else { return Vec::new() };
        let answered = known.wait_for(|roots| *roots != Roots::Awaited);
        match tokio::time::timeout(WAIT, answered).await {
            Ok(Ok(roots)) => match &*roots {
                Roots::Known(uris) => uris.clone(),
                Roots::None | Roots::Awaited => Vec::new(),
            },
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }

    /// The same as paths of this machine.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn paths(&self, session: SessionNumber) -> Vec<PathBuf> {
        self.uris(session).await.iter().filter_map(|uri| places::of_uri(uri)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_waited_for_and_one_that_does_not_come_is_none() {
        let handle = RootsHandle::default();
        let session = SessionNumber(1);
        assert!(handle.paths(session).await.is_empty(), "nobody said anything");
        handle.set(session, Roots::Awaited);
        let asked = {
            let handle = handle.clone();
            tokio::spawn(async move { handle.paths(session).await })
        };
        tokio::task::yield_now().await;
        handle.set(session, Roots::Known(vec!["file:///srv/p".into(), "https://x".into()]));
        assert_eq!(asked.await.expect("no panic"), [PathBuf::from("/srv/p")]);
        handle.set(session, Roots::Awaited);
        let began = tokio::time::Instant::now();
        assert!(handle.paths(session).await.is_empty());
        assert_eq!(began.elapsed(), WAIT);
        handle.forget(session);
        assert!(handle.table().expect("here").is_empty());
    }
}
