//! What the routes share, and the task that reads for all of them.
//!
//! Owns: the keys, the last picture and its batches, how many follow, the cancel of a job. May not know: HTTP.
//!
//! One task reads ([`Desk::read`]); it is woken by the first who follows and by each who wants a fresh look, and reads every
//! [`PACE`] while somebody follows. The rest takes what it has read.
//!
//! Invariants: (1) while nobody looks nothing is read and no timer runs; (2) the locks here are never held over an await; (3) a job is
//! asked to end as `phone-opus jobs cancel` asks it, and nothing else is changed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::feed::{Feed, FeedFrame};
use super::keys::{Keys, Secret};
use super::looking::Looking;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::JobId;
use crate::base::state_dir::StateDir;
use crate::exec::server::admission::BearerToken;
use crate::jobs::store::{CancelState, StoreHandle};
use crate::jobs::{CancelReason, sweep};

/// How often the store's stamp is asked for while somebody follows: what a person takes for at once.
pub const PACE: Duration = Duration::from_millis(250);

/// Streams at a time: a few pages of one person, each with one or two. Beyond it a page is told to close another.
pub const STREAMS: usize = 32;

/// Looks that may be waited for at a time; more are refused as busy.
const LOOKS: usize = 64;

/// How long a look may take: the store's own bound and the daemon's together.
const LOOK: Duration = Duration::from_secs(8);

/// What the routes share. Cheap to clone.
#[derive(Clone)]
pub struct Desk {
    inner: Arc<Inner>,
}

struct Inner {
    store: StoreHandle,
    dir: StateDir,
    port: u16,
    token: Option<BearerToken>,
    keys: Mutex<Keys>,
    feed: Mutex<Feed>,
    /// The number of the last batch, for those who follow.
    told: watch::Sender<u64>,
    asks: mpsc::Sender<oneshot::Sender<()>>,
    streams: Arc<Semaphore>,
    used: watch::Sender<Used>,
    stop: watch::Receiver<bool>,
}

/// How a dashboard is used.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    /// Connections that are open.
    open: usize,
    /// Addresses that were given out.
    links: u64,
}

/// A connection that is open, for as long as this lives.
pub struct OpenConnection(Desk);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.inner.used.send_modify(|used| used.open = used.open.saturating_sub(1));
    }
}

/// Who wants a fresh look.
pub type Asks = mpsc::Receiver<oneshot::Sender<()>>;

impl Desk {
    /// One over this store, served at this port, until `stop` says so. What comes second is for [`Desk::read`].
    #[must_use]
    pub fn new(
        store: StoreHandle,
        dir: StateDir,
        port: u16,
        token: Option<BearerToken>,
        stop: watch::Receiver<bool>,
    ) -> (Self, Asks) {
        let (asks, asked) = mpsc::channel(LOOKS);
        let inner = Inner {
            store,
            dir,
            port,
            token,
            keys: Mutex::default(),
            feed: Mutex::new(Feed::new(Secret::fresh().text().chars().take(8).collect())),
            told: watch::Sender::new(0),
            asks,
            streams: Arc::new(Semaphore::new(STREAMS)),
            used: watch::Sender::default(),
            stop,
        };
        (Self { inner: Arc::new(inner) }, asked)
    }

    /// The job store.
    #[must_use]
    pub fn store(&self) -> &StoreHandle {
        &self.inner.store
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &StateDir {
        &self.inner.dir
    }

    /// The port of the page.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.inner.port
    }

    /// What Prometheus brings.
    #[must_use]
    pub fn token(&self) -> Option<&BearerToken> {
        self.inner.token.as_ref()
    }

    /// The secrets.
    pub fn keys(&self) -> MutexGuard<'_, Keys> {
        // Whoever panicked with it has not left it half changed: each of its verbs ends in one assignment.
        self.inner.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn feed(&self) -> MutexGuard<'_, Feed> {
        self.inner.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An address that opens the page once.
    #[must_use]
    pub fn link(&self) -> String {
        let token = Secret::fresh();
        self.keys().offer(&token, Instant::now());
        self.inner.used.send_modify(|used| used.links += 1);
        format!("http://127.0.0.1:{}/#{}", self.inner.port, token.text())
    }

    /// A place among those who follow. `None` when there are too many.
    #[must_use]
    pub fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.inner.streams).try_acquire_owned().ok()
    }

    /// Notes a connection.
    #[must_use]
    pub fn connected(&self) -> OpenConnection {
        self.inner.used.send_modify(|used| used.open += 1);
        OpenConnection(self.clone())
    }

    /// Waits until nobody was connected for so long, and nobody was given an address.
    ///
    /// # Cancel safety
    ///
    /// Safe: it begins anew.
    pub async fn unused(&self, limit: Duration) {
        let mut used = self.inner.used.subscribe();
        loop {
            let open = used.borrow_and_update().open;
            // Its sender is kept here, so there is no end of it.
            if open > 0 {
                let _ = used.changed().await;
            } else if timeout(limit, used.changed()).await.is_err() {
                return;
            }
        }
    }

    /// How many follow.
    #[must_use]
    pub fn streams(&self) -> usize {
        STREAMS.saturating_sub(self.inner.streams.available_permits())
    }

    /// Follows the batches' number.
    #[must_use]
    pub fn told(&self) -> watch::Receiver<u64> {
        self.inner.told.subscribe()
    }

    /// Follows whether this server ends.
    #[must_use]
    pub fn stop(&self) -> watch::Receiver<bool> {
        self.inner.stop.clone()
    }

    /// What somebody is sent who has heard so far.
    #[must_use]
    pub fn after(&self, heard: Option<u64>) -> Vec<FeedFrame> {
        self.feed().after(heard)
    }

    /// The number in an id.
    #[must_use]
    pub fn heard(&self, id: &str) -> Option<u64> {
        self.feed().heard(id)
    }

    /// The whole picture.
    #[must_use]
    pub fn whole(&self) -> Value {
        self.feed().whole()
    }

    /// Waits until everything was read once more.
    ///
    /// # Errors
    ///
    /// Too many wait for it, or it takes too long.
    ///
    /// # Cancel safety
    ///
    /// Safe: the look goes on.
    pub async fn fresh(&self) -> Result<(), Fault> {
        let (reply, done) = oneshot::channel();
        let busy = |detail: &str| Fault::new(FaultCode::Busy, detail);
        self.inner.asks.try_send(reply).map_err(|_| busy("too many wait for a look at the job store."))?;
        match timeout(LOOK, done).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(busy("the job store did not answer in time.")),
        }
    }

    /// Reads for all of them until the end. Of one desk once.
    pub async fn read(&self, mut asks: Asks, about: Value) {
        let mut looking = Looking::new(self.inner.store.clone(), self.inner.dir.clone(), about);
        let mut stop = self.stop();
        loop {
            let mut waiting: Vec<oneshot::Sender<()>> = Vec::new();
            let followed = self.inner.told.receiver_count() > 0;
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                asked = asks.recv() => match asked {
                    Some(reply) => waiting.push(reply),
                    None => return,
                },
                () = sleep(PACE), if followed => {}
            }
            while let Ok(reply) = asks.try_recv() {
                waiting.push(reply);
            }
            let picture = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                picture = looking.look(Instant::now()) => picture,
            };
            let seq = {
                let mut feed = self.feed();
                feed.show(picture);
                feed.seq()
            };
            self.inner.told.send_if_modified(|told| std::mem::replace(told, seq) != seq);
            for reply in waiting {
                let _ = reply.send(());
            }
        }
    }

    /// Asks a job's runner to end it. A job whose runner is gone has nobody to find the request, and is settled here.
    ///
    /// # Errors
    ///
    /// There is no such job; the store cannot be used.
    pub async fn cancel(&self, job: JobId) -> Result<Value, Fault> {
        let told =
            |state: crate::jobs::JobState, changed: bool| json!({"job_id": job, "status": state, "changed": changed});
        if let CancelState::Ended { state } = self.store().request_cancel(job, CancelReason::Requested).await? {
            return Ok(told(state, false));
        }
        let gone = Fault::new(FaultCode::RunnerLost, "the job's runner is gone.");
        let _ = sweep::settle(self.store(), self.dir(), job, gone).await?;
        Ok(told(self.store().glance(job).await?.state, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_is_unused_when_nobody_was_connected_for_the_whole_time() {
        let (limit, dir) = (Duration::from_secs(60), StateDir::at("/nonexistent"));
        let (stop, stopped) = watch::channel(false);
        let (desk, _asks) = Desk::new(StoreHandle::sqlite(dir.clone()), dir, 1, None, stopped);
        let began = tokio::time::Instant::now();
        let waits = {
            let desk = desk.clone();
            tokio::spawn(async move { desk.unused(limit).await })
        };
        sleep(limit / 2).await;
        let open = desk.connected();
        sleep(limit * 10).await;
        assert!(!waits.is_finished(), "a page is open");
        drop(open);
        sleep(limit / 2).await;
        let _ = desk.link();
        waits.await.expect("no panic");
        assert_eq!(began.elapsed(), limit * 12);
        drop(stop);
    }
}
