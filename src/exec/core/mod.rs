//! The session's rules: numbering, order, retention, gaps and the end.
//!
//! Owns: which event is published next, what is retained, and when a gap must be read from the peer.
//! May not know: time, tasks, pipes, sockets, the wire. Whoever feeds it waits, reads and retries.
//!
//! A core is fed from one side only: by `append_*` where the process is ours (positions are assigned here), or by
//! `receive*` where a peer numbered the events and they come late, twice, out of order or not at all.
//!
//! Invariants:
//! 1. Every position up to `published` was published or is lost, and that never changes again.
//! 2. After the terminal event no input changes anything.
//! 3. `outputs` holds at most what its [`Retention`] says (or one chunk); `pending` at most
//!    [`REORDER_EVENTS`] and [`REORDER_BYTES`].
//! 4. The wake counter grows with every visible change and never goes back.
//!
//! Lost positions are not stored: a subscriber sees them as the distance between two retained events.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::{CHUNK_BYTES, OutputChunk, OutputStream, ProcessEvent, RING_BYTES, RING_EVENTS, ReadExit, ReadResult};

/// Output events retained: the ring without the two places kept for the exit and the terminal event.
pub const RING_OUTPUTS: usize = RING_EVENTS - 2;

/// Remote events that may wait for an earlier one.
///
/// Peers have been seen 755 positions and 279 events apart; this is thirty times that. When it is reached the newest output
/// is discarded, because it can be read again; the session never fails for it.
pub const REORDER_EVENTS: usize = 8192;

/// Bytes that may wait for an earlier event; like [`REORDER_EVENTS`]. The most ever seen was 2.2 MB.
pub const REORDER_BYTES: usize = 8 * 1024 * 1024;

/// Events that may wait while everything after the last published position is being read again.
///
/// What arrives then is live and in order, so discarding it would only have it read once more; the read is answered within
/// a round trip. This is the bound for a peer that never answers it.
pub const RECOVERY_EVENTS: usize = 8 * REORDER_EVENTS;

/// Bytes that may wait then; like [`RECOVERY_EVENTS`].
pub const RECOVERY_BYTES: usize = 8 * REORDER_BYTES;

/// So many waiting events make a gap urgent: at this pace waiting for the missing one costs more than asking.
pub const URGENT_EVENTS: usize = 64;

/// So many waiting bytes make a gap urgent; like [`URGENT_EVENTS`].
pub const URGENT_BYTES: usize = 256 * 1024;

/// An event that cannot happen where the session stands. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    /// The session has its terminal event.
    #[error("publish after the end of the session")]
    AfterEnd,
    /// The exit was published before.
    #[error("publish a second exit")]
    SecondExit,
}

/// A gap to be filled by reading from the peer, without a byte limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeedRead {
    /// Read what follows this position.
    pub after: u64,
    /// Whether to ask now or to give the missing event a moment to arrive by itself.
    pub urgency: Urgency,
}

/// How soon a gap must be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// The missing event is probably on its way.
    Patient,
    /// Too much waits behind the gap, or nothing more will come by itself.
    Now,
}

/// How much output a log retains: whole chunks, the oldest dropped first, and never the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// At most so many chunks.
    pub chunks: usize,
    /// At most so many bytes.
    pub bytes: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self { chunks: RING_OUTPUTS, bytes: RING_BYTES }
    }
}

/// The ordered events of one process. See the module's text.
#[derive(Debug, Default)]
pub struct ProcessLog {
    retention: Retention,
    /// Every position up to here is published or lost.
    published: u64,
    /// Retained output, positions ascending.
    outputs: VecDeque<OutputChunk>,
    output_bytes: usize,
    exit: Option<Exit>,
    terminal: Option<Terminal>,
    /// Received ahead of an earlier position.
    pending: BTreeMap<u64, Pending>,
    pending_bytes: usize,
    /// The peer was asked about everything up to here: what is neither published nor pending is lost.
    asked: u64,
    /// The highest position the peer is known to have given out.
    highest: u64,
    /// The peer said that it exited or closed, and that event is still missing.
    owed: bool,
    wake: u64,
    discarded: u64,
    /// The peer is about to be asked for everything that follows; see [`RECOVERY_EVENTS`].
    recovering: bool,
    /// What a tap has not been given yet; `None` where there is no tap.
    tapped: Option<Vec<Tapped>>,
}

/// What a tap is given, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tapped {
    /// Output.
    Output(OutputStream, Bytes),
    /// So many positions will never come.
    Lost(u64),
}

#[derive(Debug, Clone, Copy)]
struct Exit {
    seq: u64,
    code: i32,
    signal: Option<i32>,
}

#[derive(Debug, Clone)]
enum Terminal {
    Closed { seq: u64 },
    Failed { message: String },
}

#[derive(Debug)]
enum Pending {
    Output(OutputStream, Bytes),
    Exited { code: i32, signal: Option<i32> },
    Closed,
}

impl Pending {
    fn weight(&self) -> usize {
        match self {
            Self::Output(_, bytes) => bytes.len(),
            Self::Exited { .. } | Self::Closed => 0,
        }
    }
}

impl ProcessLog {
    /// A session in which nothing has happened.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A session in which nothing has happened, that retains so much.
    #[must_use]
    pub fn retaining(retention: Retention) -> Self {
        Self { retention, ..Self::default() }
    }

    /// A session whose events up to `seq` were published before, by another core.
    #[must_use]
    pub fn resumed_after(seq: u64) -> Self {
        Self { published: seq, asked: seq, highest: seq, ..Self::default() }
    }

    /// From now on keeps everything that is published for a tap, until it is taken.
    pub(super) fn tap(&mut self) {
        self.tapped.get_or_insert_default();
    }

    /// What was published for the tap since the last time.
    pub(super) fn take_tapped(&mut self) -> Vec<Tapped> {
        self.tapped.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The connection to the peer was lost: the next read is of everything that follows the last published position, and
    /// what comes by itself before its answer is kept.
    pub(super) fn begin_recovery(&mut self) {
        self.recovering = self.terminal.is_none();
    }

    /// Whether the read after a lost connection is not answered yet.
    #[must_use]
    pub fn is_recovering(&self) -> bool {
        self.recovering
    }

    /// It wrote `bytes`. More than [`CHUNK_BYTES`] become several events; nothing becomes none.
    ///
    /// # Errors
    /// After the end; the bytes are dropped.
    pub fn append_output(&mut self, stream: OutputStream, mut bytes: Bytes) -> Result<(), Misplaced> {
        self.check_open()?;
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(CHUNK_BYTES));
            self.publish(self.next_seq(), Pending::Output(stream, chunk));
        }
        Ok(())
    }

    /// It exited, by a signal where there is one.
    ///
    /// # Errors
    /// After the end, or for a second exit.
    pub fn append_exited(&mut self, code: i32, signal: Option<i32>) -> Result<(), Misplaced> {
        self.check_open()?;
        if self.exit.is_some() {
            return Err(Misplaced::SecondExit);
        }
        self.publish(self.next_seq(), Pending::Exited { code, signal });
        Ok(())
    }

    /// It is over and has no more output.
    ///
    /// # Errors
    /// After the end.
    pub fn append_closed(&mut self) -> Result<(), Misplaced> {
        self.check_open()?;
        self.publish(self.next_seq(), Pending::Closed);
        Ok(())
    }

    /// The peer says that this happened.
    ///
    /// A `Failed` fails the session as [`ProcessLog::fail`] does; a `Lagged` says nothing that a read would not say better.
    pub fn receive(&mut self, event: ProcessEvent) {
        match event {
            ProcessEvent::Output { seq, stream, bytes } => self.take(seq, Pending::Output(stream, bytes)),
            ProcessEvent::Exited { seq, code, signal } => self.take(seq, Pending::Exited { code, signal }),
            ProcessEvent::Closed { seq } => self.take(seq, Pending::Closed),
            ProcessEvent::Failed { message } => self.fail(message),
            ProcessEvent::Lagged { to, .. } => self.receive_unreadable(to),
        }
    }

    /// The peer announced an event at `seq` that could not be read. It becomes a gap.
    pub fn receive_unreadable(&mut self, seq: u64) {
        if self.terminal.is_none() {
            self.highest = self.highest.max(seq);
        }
    }

    /// The peer answered a read of everything after position `after`, made without a byte limit.
    ///
    /// What the answer does not contain is explained here: between `after` and `next_seq` there are only output that was
    /// returned, output that was evicted, the exit and the close. Eviction takes the oldest, so a hole behind the first
    /// chunk is the exit. A hole before it is the exit when it is the only one and the exit is not known otherwise; of a
    /// larger hole the last position is taken for it, because the exit code is worth more than its exact place.
    pub fn receive_read(&mut self, after: u64, result: ReadResult) {
        if self.terminal.is_some() {
            return;
        }
        let through = result.next_seq.saturating_sub(1);
        let covers = after <= self.published.max(self.asked);
        let first_chunk = result.chunks.first().map(|chunk| chunk.seq);
        for chunk in result.chunks {
            if chunk.seq > self.published && !chunk.bytes.is_empty() {
                self.hold(chunk.seq, Pending::Output(chunk.stream, chunk.bytes));
            }
        }
        if result.closed
            && result.failure.is_none()
            && through > self.published
            && !self.pending.contains_key(&through)
            && !self.holds(|pending| matches!(pending, Pending::Closed))
        {
            self.hold(through, Pending::Closed);
        }
        if let ReadExit::Exited { code, signal, seq } = result.exit
            && !self.exit_known()
            && let Some(code) = code
            && let Some(place) = seq
                .filter(|seq| *seq > self.published)
                .or_else(|| if covers { self.place_of_exit(first_chunk, through) } else { None })
        {
            self.hold(place, Pending::Exited { code, signal });
        }
        if covers {
            self.asked = self.asked.max(through);
            self.recovering = false;
        }
        self.highest = self.highest.max(through);
        self.owed = result.closed || (result.exit != ReadExit::NotYet && !self.exit_known());
        self.drain();
        self.enforce_reorder_bound();
        if let Some(message) = result.failure {
            self.fail(message);
        }
    }

    /// The peer can never be asked again, or its answer made no sense: what is missing is lost, and the session failed.
    ///
    /// What waited behind a gap is published first, the close only where the exit is known. Does nothing after the end.
    pub fn fail(&mut self, message: impl Into<String>) {
        if self.terminal.is_some() {
            return;
        }
        if !self.exit_known() {
            // A close without its exit would say that it ended, and not how.
            self.pending.retain(|_, waiting| !matches!(waiting, Pending::Closed));
        }
        if let Some((&last, _)) = self.pending.last_key_value() {
            self.asked = self.asked.max(last);
            self.drain();
        }
        if self.terminal.is_none() {
            self.terminal = Some(Terminal::Failed { message: message.into() });
            self.wake += 1;
        }
        self.forget_pending();
    }

    /// The gap that must be read from the peer, if there is one.
    #[must_use]
    pub fn need_read(&self) -> Option<NeedRead> {
        if self.terminal.is_some() || (self.highest <= self.published && !self.owed) {
            return None;
        }
        let crowded = self.pending.len() > URGENT_EVENTS || self.pending_bytes > URGENT_BYTES;
        let urgency = if crowded || self.owed { Urgency::Now } else { Urgency::Patient };
        Some(NeedRead { after: self.published, urgency })
    }

    /// The event that follows position `after`: a retained one, `Lagged` up to the next retained one, or the terminal one.
    /// `None` when it has not happened yet.
    #[must_use]
    pub fn next_event(&self, after: u64) -> Option<ProcessEvent> {
        let output = self.outputs.get(self.first_output_after(after));
        let exit = self.exit.filter(|exit| exit.seq > after);
        let retained = match (output, exit) {
            (Some(output), Some(exit)) if exit.seq < output.seq => Some(exit.event()),
            (Some(output), _) => {
                Some(ProcessEvent::Output { seq: output.seq, stream: output.stream, bytes: output.bytes.clone() })
            }
            (None, Some(exit)) => Some(exit.event()),
            (None, None) => match self.terminal {
                Some(Terminal::Closed { seq }) if seq > after => Some(ProcessEvent::Closed { seq }),
                _ => None,
            },
        };
        let Some(event) = retained else {
            if after < self.published {
                return Some(ProcessEvent::Lagged { from: after + 1, to: self.published });
            }
            return self.terminal.as_ref().map(Terminal::event);
        };
        match event.reached() {
            Some(seq) if seq > after + 1 => Some(ProcessEvent::Lagged { from: after + 1, to: seq - 1 }),
            _ => Some(event),
        }
    }

    /// Retained output after position `after_seq`, and how far the process has come.
    ///
    /// Whole chunks up to `max_bytes`, at least one when there is any.
    #[must_use]
    pub fn read(&self, after_seq: u64, max_bytes: Option<u64>) -> ReadResult {
        let limit = max_bytes.map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let mut size = 0_usize;
        let mut chunks: Vec<OutputChunk> = Vec::new();
        for chunk in self.outputs.range(self.first_output_after(after_seq)..) {
            size = size.saturating_add(chunk.bytes.len());
            if size > limit && !chunks.is_empty() {
                break;
            }
            chunks.push(chunk.clone());
        }
        let next_seq = match (max_bytes, chunks.last()) {
            (Some(_), Some(last)) => last.seq.saturating_add(1),
            _ => self.next_seq(),
        };
        let exit = self.exit.map_or(ReadExit::NotYet, |exit| ReadExit::Exited {
            code: Some(exit.code),
            signal: exit.signal,
            seq: Some(exit.seq),
        });
        let failure = match &self.terminal {
            Some(Terminal::Failed { message }) => Some(message.clone()),
            _ => None,
        };
        ReadResult { chunks, next_seq, exit, closed: self.terminal.is_some(), failure }
    }

    /// Whether a waiting read after position `after_seq` has something to return.
    #[must_use]
    pub fn read_is_due(&self, after_seq: u64) -> bool {
        self.terminal.is_some()
            || self.outputs.back().is_some_and(|chunk| chunk.seq > after_seq)
            || (self.exit.is_some() && after_seq < self.published)
    }

    /// The last position that is published or lost.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.published
    }

    /// The exit code, once the exit is published.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        self.exit.map(|exit| exit.code)
    }

    /// Whether the terminal event is published.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.terminal.is_some()
    }

    /// Grows with every visible change.
    #[must_use]
    pub fn wake(&self) -> u64 {
        self.wake
    }

    /// Received events that were late, doubled or impossible.
    #[must_use]
    pub fn discarded(&self) -> u64 {
        self.discarded
    }

    /// Retained output: events and bytes.
    #[must_use]
    pub fn retained(&self) -> (usize, usize) {
        (self.outputs.len(), self.output_bytes)
    }

    /// Retained output after position `after`: events and bytes.
    #[must_use]
    pub fn retained_after(&self, after: u64) -> (usize, usize) {
        let chunks = self.outputs.range(self.first_output_after(after)..);
        chunks.fold((0, 0), |(count, bytes), chunk| (count + 1, bytes + chunk.bytes.len()))
    }

    /// Events and bytes that wait for an earlier one.
    #[must_use]
    pub fn waiting(&self) -> (usize, usize) {
        (self.pending.len(), self.pending_bytes)
    }

    fn check_open(&self) -> Result<(), Misplaced> {
        if self.terminal.is_some() { Err(Misplaced::AfterEnd) } else { Ok(()) }
    }

    fn next_seq(&self) -> u64 {
        self.published.saturating_add(1)
    }

    fn first_output_after(&self, after: u64) -> usize {
        self.outputs.partition_point(|chunk| chunk.seq <= after)
    }

    fn exit_known(&self) -> bool {
        self.exit.is_some() || self.holds(|pending| matches!(pending, Pending::Exited { .. }))
    }

    fn holds(&self, wanted: impl Fn(&Pending) -> bool) -> bool {
        self.pending.values().any(wanted)
    }

    fn take(&mut self, seq: u64, event: Pending) {
        if self.terminal.is_some() || seq <= self.published {
            self.discarded += 1;
            return;
        }
        self.highest = self.highest.max(seq);
        let twice = match &event {
            Pending::Output(_, bytes) => bytes.is_empty(),
            Pending::Exited { .. } => self.exit_known(),
            Pending::Closed => self.holds(|pending| matches!(pending, Pending::Closed)),
        };
        if twice || self.pending.contains_key(&seq) {
            self.discarded += 1;
            return;
        }
        if self.pending.is_empty() && seq == self.next_seq() {
            self.publish(seq, event);
        } else {
            self.hold(seq, event);
            self.drain();
            self.enforce_reorder_bound();
        }
    }

    /// Keeps an event for its turn. The first copy of a position wins.
    fn hold(&mut self, seq: u64, event: Pending) {
        let weight = event.weight();
        if let std::collections::btree_map::Entry::Vacant(place) = self.pending.entry(seq) {
            place.insert(event);
            self.pending_bytes += weight;
        }
    }

    /// Publishes what is next in order, or would be but for positions known to be lost.
    fn drain(&mut self) {
        while self.terminal.is_none()
            && let Some(entry) = self.pending.first_entry()
            && *entry.key() <= self.published.max(self.asked).saturating_add(1)
        {
            let (seq, event) = entry.remove_entry();
            self.pending_bytes -= event.weight();
            if seq > self.published {
                self.publish(seq, event);
            }
        }
        if self.terminal.is_none() && self.asked > self.published {
            self.tap_loss(self.asked - self.published);
            self.published = self.asked;
            self.wake += 1;
        }
    }

    fn tap_loss(&mut self, positions: u64) {
        if positions > 0
            && let Some(tapped) = &mut self.tapped
        {
            tapped.push(Tapped::Lost(positions));
        }
    }

    /// Makes an event visible. The caller has made sure that everything before it is published or lost.
    fn publish(&mut self, seq: u64, event: Pending) {
        self.tap_loss(seq.saturating_sub(self.published).saturating_sub(1));
        self.published = seq;
        self.wake += 1;
        match event {
            Pending::Output(stream, bytes) => {
                if let Some(tapped) = &mut self.tapped {
                    tapped.push(Tapped::Output(stream, bytes.clone()));
                }
                self.output_bytes += bytes.len();
                self.outputs.push_back(OutputChunk { seq, stream, bytes });
                self.evict();
            }
            Pending::Exited { code, signal } => self.exit = Some(Exit { seq, code, signal }),
            Pending::Closed => {
                self.terminal = Some(Terminal::Closed { seq });
                self.forget_pending();
            }
        }
    }

    fn evict(&mut self) {
        while self.outputs.len() > self.retention.chunks
            || (self.output_bytes > self.retention.bytes && self.outputs.len() > 1)
        {
            let Some(oldest) = self.outputs.pop_front() else { return };
            self.output_bytes -= oldest.bytes.len();
        }
    }

    /// Discards the newest waiting output over the bound; `highest` remembers that there was some.
    fn enforce_reorder_bound(&mut self) {
        let (events, bytes) =
            if self.recovering { (RECOVERY_EVENTS, RECOVERY_BYTES) } else { (REORDER_EVENTS, REORDER_BYTES) };
        while self.pending.len() > events || self.pending_bytes > bytes {
            let newest_output =
                self.pending.iter().rev().find(|(_, event)| matches!(event, Pending::Output(..))).map(|(seq, _)| *seq);
            let Some(event) = newest_output.and_then(|seq| self.pending.remove(&seq)) else { return };
            self.pending_bytes -= event.weight();
            self.discarded += 1;
        }
    }

    fn forget_pending(&mut self) {
        self.discarded += self.pending.len() as u64;
        self.pending.clear();
        self.pending_bytes = 0;
    }

    /// The position up to `through` that must be the exit's, judged by the holes a read left.
    fn place_of_exit(&self, first_chunk: Option<u64>, through: u64) -> Option<u64> {
        let mut place = None;
        let mut before = self.published;
        let held = self.pending.range(..=through).map(|(seq, _)| *seq);
        for seq in held.chain(std::iter::once(through.saturating_add(1))) {
            if seq > before.saturating_add(1) {
                place = Some(seq - 1);
                if first_chunk.is_some_and(|first| before >= first) {
                    break;
                }
            }
            before = before.max(seq);
        }
        place
    }
}

impl Exit {
    fn event(self) -> ProcessEvent {
        ProcessEvent::Exited { seq: self.seq, code: self.code, signal: self.signal }
    }
}

impl Terminal {
    fn event(&self) -> ProcessEvent {
        match self {
            Self::Closed { seq } => ProcessEvent::Closed { seq: *seq },
            Self::Failed { message } => ProcessEvent::Failed { message: message.clone() },
        }
    }
}

#[cfg(test)]
mod tests;
