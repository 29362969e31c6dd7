//! What a session has said and not written yet.
//!
//! Owns: the bytes, how many of them are whole lines, the jobs whose end they tell, the change of the tools the client has yet
//! to hear of. May not know: what a line says, sinks.
//!
//! Invariants: (1) `whole` moves only past whole lines, so that a panic in a line leaves none half written; (2) that a job's
//! end was shown is told only when nothing written is held back any more.

use bytes::{Buf, BytesMut};

use super::TurnEffect;
use crate::base::ids::JobId;

/// Unwritten bytes at which reading stops: one pipe's worth many times over, small beside a process.
const BACKLOG: usize = 1024 * 1024;

/// Room kept for output between turns; more is given back.
const OUTPUT_KEPT: usize = 256 * 1024;

/// The output of one session.
#[derive(Debug, Default)]
pub(in super::super) struct Outgoing {
    pub(super) out: BytesMut,
    /// Whole lines of `out`; what follows them was being written when a panic struck.
    whole: usize,
    /// Whether something was written that the sink may still hold.
    unflushed: bool,
    /// Jobs whose end is told by what is not written yet; no more than there are answers in it.
    shown: Vec<JobId>,
    /// The client has not heard yet that the tools differ.
    pub(in super::super) owes_change: bool,
}

impl Outgoing {
    /// Goes on where another image stood.
    pub(in super::super) fn resumed(unwritten: &[u8], shown: Vec<JobId>, owes_change: bool) -> Self {
        Self {
            out: BytesMut::from(unwritten),
            whole: unwritten.len(),
            unflushed: !unwritten.is_empty() || !shown.is_empty(),
            shown,
            owes_change,
        }
    }

    /// Everything that is to be written.
    pub(in super::super) fn bytes(&self) -> &[u8] {
        &self.out
    }

    /// Jobs whose end it tells.
    pub(in super::super) fn shown(&self) -> &[JobId] {
        &self.shown
    }

    /// Whether there is something to write or to flush.
    pub(in super::super) fn is_due(&self) -> bool {
        self.unflushed || !self.out.is_empty()
    }

    /// Whether the client is so far behind that nothing more is read from it.
    pub(super) fn is_backlogged(&self) -> bool {
        self.out.len() > BACKLOG
    }

    /// Whether the client is behind far enough to miss what it can miss.
    pub(super) fn is_slow(&self) -> bool {
        self.out.len() > BACKLOG / 4
    }

    /// What was appended ends a line.
    pub(super) fn line_ended(&mut self) {
        self.whole = self.out.len();
    }

    /// Takes back what a panic left half written.
    pub(super) fn drop_torn(&mut self) {
        self.out.truncate(self.whole);
    }

    /// Bytes that belong to no whole line; there are none between two turns.
    pub(in super::super) fn torn(&self) -> usize {
        self.out.len() - self.whole
    }

    /// The end of these jobs is told by what was appended last.
    pub(super) fn shows(&mut self, jobs: impl IntoIterator<Item = JobId>) {
        self.shown.extend(jobs);
    }

    /// So many bytes were taken. Whether nothing is left to write.
    pub(super) fn written(&mut self, count: usize) -> bool {
        self.unflushed = true;
        if count < self.out.len() {
            self.out.advance(count);
            self.whole = self.out.len();
            return false;
        }
        // The room of what was written is not given up first, to be taken back by the next line.
        self.whole = 0;
        if self.out.capacity() > OUTPUT_KEPT {
            self.out = BytesMut::new();
        } else {
            self.out.clear();
        }
        true
    }

    /// Gives back what is kept for the next output, where nothing waits.
    pub(super) fn rest(&mut self) {
        if self.out.is_empty() {
            self.out = BytesMut::new();
        }
    }

    /// Nothing written is held back any more: the jobs that were shown are told of.
    pub(super) fn flushed(&mut self, effects: &mut impl Extend<TurnEffect>) {
        self.unflushed = false;
        // Told only now, so that an answer which reached nobody is still announced as unread.
        if !self.shown.is_empty() {
            effects.extend(self.shown.drain(..).map(TurnEffect::Shown));
        }
    }

    /// There is nobody to write to.
    pub(super) fn clear(&mut self) {
        self.forget_bytes();
        self.unflushed = false;
        self.shown.clear();
    }

    /// Gives up what could not be written in time.
    pub(super) fn forget_bytes(&mut self) {
        self.out.clear();
        self.whole = 0;
    }

    /// Leaves half of the first line, as a write that broke off would.
    #[cold]
    pub(in super::super) fn tear(&mut self) {
        let line = memchr::memchr(b'\n', &self.out).unwrap_or(self.out.len());
        self.out.truncate(line / 2);
        self.whole = self.out.len();
    }
}
