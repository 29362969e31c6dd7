//! A process session as its owners and subscribers hold it.
//!
//! Owns: the one [`ProcessLog`] behind a lock held for the time of a push or a look, and the wake-up of those who wait.
//! May not know: where events come from and where they go.
//!
//! Invariants: the lock is never held over an await; a subscriber only ever looks at the shared ring, so a slow one costs
//! nothing and loses only its own view, but for the one reader that may ask to miss nothing ([`ProcessSession::attach`]): for
//! it whoever publishes waits for [`ProcessSession::room`]; the wake value never goes back, watched or not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::core::{Misplaced, ProcessLog};
use super::{OutputCursor, OutputStream, ProcessEvent, ReadResult};

/// Output that may be published ahead of a reader that must miss nothing: half of what is retained, so that what was on its way
/// to it when its connection was cut can be read again.
const AHEAD_BYTES: usize = super::RING_BYTES / 2;

/// Chunks of such output; half of what a server retains (50,000), for a process that writes byte by byte.
const AHEAD_CHUNKS: usize = 25_000;

/// A shared handle on one session; clones are the same session.
#[derive(Debug, Clone)]
pub struct ProcessSession {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    core: Mutex<ProcessLog>,
    wake: watch::Sender<u64>,
    /// Whether the terminal event is published, for who waits for nothing else.
    over: watch::Sender<bool>,
    /// The reader that must miss nothing. Taken after `core`, never before it.
    ahead: Mutex<Option<Ahead>>,
    /// The last position that a reader was known to have.
    released: AtomicU64,
    /// Told when there may be room again.
    room: Notify,
}

/// What was published and not yet released by the reader that must miss nothing.
#[derive(Debug, Clone, Copy, Default)]
struct Ahead {
    chunks: usize,
    bytes: usize,
}

impl Default for ProcessSession {
    fn default() -> Self {
        Self::new()
    }
}

impl ProcessSession {
    /// A session in which nothing has happened.
    #[must_use]
    pub fn new() -> Self {
        Self::over(ProcessLog::new())
    }

    /// A session over a core that may already hold events.
    #[must_use]
    pub fn over(core: ProcessLog) -> Self {
        let wake = watch::Sender::new(core.wake());
        let shared = Shared {
            over: watch::Sender::new(core.has_ended()),
            core: Mutex::new(core),
            wake,
            ahead: Mutex::new(None),
            released: AtomicU64::new(0),
            room: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Publishes output.
    ///
    /// # Errors
    /// After the end of the session; nothing is published.
    pub fn publish_output(&self, stream: OutputStream, bytes: Bytes) -> Result<(), Misplaced> {
        let size = bytes.len();
        self.change(|core| {
            core.append_output(stream, bytes)?;
            if let Some(ahead) = &mut *self.ahead() {
                ahead.bytes += size;
                ahead.chunks += size.div_ceil(super::CHUNK_BYTES);
            }
            Ok(())
        })
    }

    /// From now on, whoever publishes output waits while so much lies after position `seen` that its reader could miss some.
    pub(crate) fn attach(&self, seen: u64) {
        self.look(|core| {
            let (chunks, bytes) = core.retained_after(seen);
            *self.ahead() = Some(Ahead { chunks, bytes });
        });
        self.shared.room.notify_waiters();
    }

    /// Nobody waits for a reader any more.
    pub(crate) fn detach(&self) {
        *self.ahead() = None;
        self.shared.room.notify_waiters();
    }

    /// The reader that must miss nothing has what there is up to `seq`, so much more than before.
    pub(crate) fn release(&self, seq: u64, chunks: usize, bytes: usize) {
        if let Some(ahead) = &mut *self.ahead() {
            ahead.chunks = ahead.chunks.saturating_sub(chunks);
            ahead.bytes = ahead.bytes.saturating_sub(bytes);
        }
        self.shared.released.fetch_max(seq, Ordering::Relaxed);
        if self.has_room() {
            self.shared.room.notify_waiters();
        }
    }

    /// The last position that a reader was known to have; where the next one begins that does not say where it stands.
    pub(crate) fn released(&self) -> u64 {
        self.shared.released.load(Ordering::Relaxed)
    }

    /// Whether this is a handle on the same session.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Waits until output may be published. At once where no reader must miss nothing.
    ///
    /// # Cancel safety
    /// It only waits.
    pub(crate) async fn room(&self) {
        while !self.has_room() {
            let told = self.shared.room.notified();
            tokio::pin!(told);
            // Registered before the second look, so that room that is made in between is heard of.
            told.as_mut().enable();
            if self.has_room() {
                return;
            }
            told.await;
        }
    }

    fn has_room(&self) -> bool {
        self.ahead().is_none_or(|ahead| ahead.bytes < AHEAD_BYTES && ahead.chunks < AHEAD_CHUNKS)
    }

    fn ahead(&self) -> MutexGuard<'_, Option<Ahead>> {
        self.shared.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes the exit: the code, and the signal it died of where that is known.
    ///
    /// # Errors
    /// After the end of the session, or for a second exit; nothing is published.
    pub fn publish_exited(&self, code: i32, signal: Option<i32>) -> Result<(), Misplaced> {
        self.change(|core| core.append_exited(code, signal))
    }

    /// Publishes the end.
    ///
    /// # Errors
    /// After the end of the session; nothing is published.
    pub fn publish_closed(&self) -> Result<(), Misplaced> {
        self.change(ProcessLog::append_closed)
    }

    /// Publishes that the session failed. Does nothing after its end.
    pub fn publish_failed(&self, message: impl Into<String>) {
        self.change(|core| core.fail(message));
    }

    /// Lets `change` work on the core, then wakes everybody who waits if something became visible.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut ProcessLog) -> T) -> T {
        let (answer, wake, ended) = {
            let mut core = self.lock();
            let answer = change(&mut core);
            (answer, core.wake(), core.has_ended())
        };
        // Two changers may arrive here in the other order than they left the lock; the value still only grows.
        self.shared.wake.send_if_modified(|value| {
            let grown = *value < wake;
            *value = wake.max(*value);
            grown
        });
        if ended {
            self.shared.over.send_if_modified(|over| !std::mem::replace(over, true));
        }
        answer
    }

    /// Waits for the terminal event, and is woken for nothing else.
    ///
    /// # Cancel safety
    /// It only waits.
    pub(crate) async fn its_end(&self) {
        let _ = self.shared.over.subscribe().wait_for(|over| *over).await;
    }

    /// Lets `look` see the core.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&ProcessLog) -> T) -> T {
        look(&self.lock())
    }

    /// The events after `cursor`, retained ones first.
    #[must_use]
    pub fn subscribe(&self, cursor: OutputCursor) -> EventStream {
        EventStream {
            wake: self.shared.wake.subscribe(),
            session: self.clone(),
            seen: cursor.seen(),
            state: StreamState::Open,
        }
    }

    /// A value that grows with every visible change of the session.
    #[must_use]
    pub fn wake(&self) -> watch::Receiver<u64> {
        self.shared.wake.subscribe()
    }

    /// Retained output after position `after`, waiting up to `wait` for some.
    ///
    /// Returns early for output, for the exit when it lies after `after`, and for the end. A lapsed wait is an answer
    /// without chunks.
    ///
    /// # Cancel safety
    /// Reading changes nothing; it may be dropped at any point.
    pub async fn read(&self, after: u64, max_bytes: Option<u64>, wait: Duration) -> ReadResult {
        let mut wake = self.shared.wake.subscribe();
        // A wait too long to be represented is no deadline at all.
        let deadline = Instant::now().checked_add(wait);
        loop {
            wake.borrow_and_update();
            let due = self.look(|core| core.read_is_due(after));
            if due || wait.is_zero() {
                return self.look(|core| core.read(after, max_bytes));
            }
            let changed = wake.changed();
            let lapsed = match deadline {
                Some(deadline) => tokio::time::timeout_at(deadline, changed).await.is_err(),
                None => changed.await.is_err(),
            };
            if lapsed {
                return self.look(|core| core.read(after, max_bytes));
            }
        }
    }

    /// The last position published.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.look(ProcessLog::last_seq)
    }

    /// Whether the terminal event is published.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.look(ProcessLog::has_ended)
    }

    /// Whether this is the only handle: nobody subscribed, nobody else publishes.
    pub(crate) fn is_alone(&self) -> bool {
        Arc::strong_count(&self.shared) == 1
    }

    fn lock(&self) -> MutexGuard<'_, ProcessLog> {
        // A panic inside the core's short synchronous functions leaves at worst one event out; the session must still end.
        self.shared.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One subscriber's way through a session.
#[derive(Debug)]
pub struct EventStream {
    session: ProcessSession,
    wake: watch::Receiver<u64>,
    /// The last position delivered or reported lost.
    seen: u64,
    state: StreamState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamState {
    Open,
    /// The terminal event was delivered.
    Ended,
}

impl EventStream {
    /// The next event; after the terminal one, `None` for ever.
    ///
    /// # Cancel safety
    /// An event is taken only by the poll that returns it; dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<ProcessEvent> {
        loop {
            self.wake.borrow_and_update();
            if self.state == StreamState::Ended {
                return None;
            }
            if let Some(event) = self.try_next() {
                return Some(event);
            }
            // The sender lives in the session this stream holds, so this only ever returns for a change.
            if self.wake.changed().await.is_err() {
                return None;
            }
        }
    }

    /// The next event if it has happened.
    pub fn try_next(&mut self) -> Option<ProcessEvent> {
        if self.state == StreamState::Ended {
            return None;
        }
        let event = self.session.look(|core| core.next_event(self.seen))?;
        if let Some(reached) = event.reached() {
            self.seen = reached;
        }
        if event.is_terminal() {
            self.state = StreamState::Ended;
        }
        Some(event)
    }

    /// Where this subscriber stands, to subscribe again from there.
    #[must_use]
    pub fn cursor(&self) -> OutputCursor {
        OutputCursor::after(self.seen)
    }

    /// Waits until something after what was delivered may have happened.
    ///
    /// # Cancel safety
    /// It only waits.
    pub(crate) async fn changed(&mut self) {
        self.wake.borrow_and_update();
        if self.state == StreamState::Ended || self.session.look(|core| core.next_event(self.seen)).is_some() {
            return;
        }
        // The sender lives in the session this stream holds.
        let _ = self.wake.changed().await;
    }

    /// Whether the terminal event was delivered.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.state == StreamState::Ended
    }

    /// The session this stream follows.
    #[must_use]
    pub fn session(&self) -> &ProcessSession {
        &self.session
    }
}
