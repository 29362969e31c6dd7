//! The two streams: what changes in the picture, and what happens in one job.
//!
//! Owns: what follows what in a stream. May not know: how it is sent; how the picture is made.
//!
//! Invariants: (1) a stream is drawn by who sends it, so a page that reads slowly has nothing kept for it but one piece; (2) what
//! comes is in order, and an id is sent with it from which the page can go on; (3) a stream says something every [`BEAT`], ends with
//! the server, and a job's ends with the job.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{Stream, unfold};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::sleep;

use super::desk::{Desk, PACE};
use super::feed::event;
use super::picture;
use crate::base::fault::Fault;
use crate::base::ids::JobId;
use crate::jobs::store::{Glance, StoreError};
use crate::jobs::{CancelReason, JobMode, JobState};

/// How often a stream says something, so that either end notices when the other is gone.
pub const BEAT: Duration = Duration::from_secs(15);

/// What is said then.
const BEAT_LINE: &[u8] = b": here\n\n";

/// What comes after a stream that broke off: the page waits so long.
const AGAIN: &[u8] = b"retry: 1000\n\n";

/// Entries of a journal, and bytes of them, that one event has.
const ENTRIES: usize = 200;
const ENTRY_BYTES: usize = 256 * 1024;

/// How long a store that does not answer is left alone.
const TROUBLED: Duration = Duration::from_secs(2);

/// A piece of a stream.
pub type Piece = Result<Bytes, Infallible>;

struct Following {
    desk: Desk,
    told: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
    heard: Option<u64>,
    pieces: VecDeque<Bytes>,
    _place: OwnedSemaphorePermit,
}

/// The picture, and its changes from what was heard. `told` is had before the look that this begins with, so that whoever reads goes
/// on with it.
pub fn picture_stream(
    desk: Desk,
    told: watch::Receiver<u64>,
    heard: Option<u64>,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Piece> + Send {
    let stop = desk.stop();
    let first = VecDeque::from([Bytes::from_static(AGAIN)]);
    let mut following = Following { desk, told, stop, heard, pieces: first, _place: place };
    following.take();
    unfold(following, async |mut me| {
        let piece = me.next().await?;
        Some((Ok(piece), me))
    })
}

impl Following {
    fn take(&mut self) {
        self.told.borrow_and_update();
        for frame in self.desk.after(self.heard) {
            self.heard = Some(frame.seq);
            self.pieces.push_back(Bytes::copy_from_slice(frame.text.as_bytes()));
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Some(piece);
            }
            tokio::select! {
                _ = self.stop.wait_for(|stop| *stop) => return None,
                changed = self.told.changed() => changed.ok()?,
                () = sleep(BEAT) => return Some(Bytes::from_static(BEAT_LINE)),
            }
            self.take();
        }
    }
}

type Standing = (JobState, JobMode, Option<CancelReason>);

struct OneJob {
    desk: Desk,
    job: JobId,
    stop: watch::Receiver<bool>,
    after: u64,
    /// How it stood when all of it had been said.
    was: Option<Glance>,
    /// How it stood when that was last said.
    said: Option<Standing>,
    pieces: VecDeque<Bytes>,
    over: bool,
    /// The store did not answer.
    troubled: bool,
    _place: OwnedSemaphorePermit,
}

/// One job: how it stands, its journal behind `after`, and its end.
pub fn job_stream(desk: Desk, job: JobId, after: u64, place: OwnedSemaphorePermit) -> impl Stream<Item = Piece> + Send {
    let stop = desk.stop();
    let pieces = VecDeque::from([Bytes::from_static(AGAIN)]);
    let one =
        OneJob { desk, job, stop, after, was: None, said: None, pieces, over: false, troubled: false, _place: place };
    unfold(one, async |mut me| {
        let piece = me.next().await?;
        Some((Ok(piece), me))
    })
}

impl OneJob {
    async fn next(&mut self) -> Option<Bytes> {
        let mut quiet = Duration::ZERO;
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Some(piece);
            }
            if self.over {
                return None;
            }
            let mut stop = self.stop.clone();
            if self.troubled {
                tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => return None,
                    () = sleep(TROUBLED) => {}
                }
            }
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return None,
                () = self.look_or_say() => {}
            }
            if self.pieces.is_empty() {
                tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => return None,
                    () = sleep(PACE) => quiet += PACE,
                }
                if quiet >= BEAT {
                    return Some(Bytes::from_static(BEAT_LINE));
                }
            }
        }
    }

    /// Looks, and says what keeps it from that.
    async fn look_or_say(&mut self) {
        let looked = self.look().await;
        self.troubled = false;
        match looked {
            Ok(()) => {}
            Err(error @ StoreError::UnknownJob(_)) => {
                self.over = true;
                self.say("lost", &json!(Fault::from(&error)));
            }
            // The store comes back, or the page is closed.
            Err(error) => {
                self.troubled = true;
                self.say("trouble", &json!(Fault::from(&error)));
            }
        }
    }

    fn say(&mut self, name: &str, data: &Value) {
        self.pieces.push_back(Bytes::from(event(&self.after.to_string(), name, data)));
    }

    async fn look(&mut self) -> Result<(), StoreError> {
        let store = self.desk.store().clone();
        // Looked at first: what was journalled before the end is then read below.
        let glance = store.glance(self.job).await?;
        if self.was == Some(glance) {
            return Ok(());
        }
        let stands = (glance.state, glance.mode, glance.cancel_requested);
        if self.said != Some(stands) && !glance.state.is_terminal() {
            let record = store.job(self.job).await?;
            self.say("record", &picture::record(&record));
            self.said = Some(stands);
        }
        let entries = store.events(self.job, self.after, ENTRIES, ENTRY_BYTES).await?;
        if let Some(last) = entries.last() {
            self.after = last.seq;
            self.say("entries", &entries.iter().map(picture::entry).collect());
        }
        if self.after < glance.last_event && !entries.is_empty() {
            // There is more; how it stands is said once all of it was.
            self.was = None.or(self.was);
            return Ok(());
        }
        if glance.state.is_terminal() {
            let record = store.job(self.job).await?;
            self.say("end", &picture::record(&record));
            self.over = true;
        }
        self.was = Some(glance);
        Ok(())
    }
}
