//! What outlives the message it began with: subscriptions, and the news of calls that became tasks.
//!
//! Owns: who is told what, in which words. May not know: where news come from.
//!
//! ```text
//!  a subscription:      asked ──acknowledged──▶ open ──cancelled by the client──▶ over, without a word
//!                                                 └──the server ends──▶ over, with an empty result
//!  a task of the core:  created ──▶ open ──the task is over, and said to be──▶ over
//! ```
//!
//! Invariants: (1) nothing is said on a subscription before it is acknowledged, nor after it is over; (2) each says only
//! what was asked for on it, tagged with its id; (3) their numbers are bounded.

use std::collections::BTreeMap;

use bytes::BytesMut;
use serde::{Deserialize, Serialize};

use crate::base::ids::JobId;
use crate::protocol::envelope::IdToken;
use crate::protocol::tasks::{self, TaskNews};
use crate::protocol::wire::{self, Identity};

/// Subscriptions at once. Real clients have one; whoever has this many has lost count.
pub(super) const STREAMS: usize = 32;

/// Tasks of the core that are followed at once; news of more are left out, which a client must bear anyway.
const TOLD: usize = 256;

#[derive(Debug)]
enum Standing {
    Stream {
        id: IdToken,
        tools: bool,
    },
    /// A task of the core; `token` where its client wants progress.
    Task {
        token: Option<Box<str>>,
        last: f64,
    },
}

/// What stands, by the number of the request it began with.
#[derive(Debug, Default)]
pub(super) struct Standings {
    open: BTreeMap<u64, Standing>,
    streams: usize,
}

impl Standings {
    /// Subscriptions open.
    pub(super) fn streams(&self) -> usize {
        self.streams
    }

    /// Opens a subscription, after its acknowledgement was written.
    pub(super) fn open_stream(&mut self, number: u64, id: IdToken, tools: bool) {
        self.streams += 1;
        self.open.insert(number, Standing::Stream { id, tools });
    }

    /// Goes on telling about a call that became a task. Whether there is room for it.
    pub(super) fn tell_of_task(&mut self, number: u64, token: Option<Box<str>>, last: f64) -> bool {
        let room = self.open.len() < STREAMS + TOLD;
        if room {
            self.open.insert(number, Standing::Task { token, last });
        }
        room
    }

    /// Ends one; the id of its request, if it was a subscription.
    pub(super) fn end(&mut self, number: u64) -> Option<IdToken> {
        match self.open.remove(&number)? {
            Standing::Stream { id, .. } => {
                self.streams -= 1;
                Some(id)
            }
            Standing::Task { .. } => None,
        }
    }

    /// Ends all, as the connection ends: their numbers.
    pub(super) fn end_all(&mut self) -> Vec<u64> {
        self.streams = 0;
        std::mem::take(&mut self.open).into_keys().collect()
    }

    /// The server goes away for good: every subscription is told.
    pub(super) fn say_goodbye(&self, out: &mut BytesMut, identity: &Identity) {
        for standing in self.open.values() {
            if let Standing::Stream { id, .. } = standing {
                wire::unsubscribed(out, id, identity);
            }
        }
    }

    /// The tools differ.
    pub(super) fn tools_changed(&self, out: &mut BytesMut) {
        for standing in self.open.values() {
            if let Standing::Stream { id, tools: true } = standing {
                wire::tools_changed(out, Some(id));
            }
        }
    }

    /// News of a task somebody follows. Whether that is over now.
    pub(super) fn on_task(&mut self, number: u64, news: &TaskNews, out: &mut BytesMut) -> bool {
        match (self.open.get_mut(&number), news) {
            (Some(Standing::Stream { id, .. }), TaskNews::Changed(task)) => {
                let start = out.len();
                tasks::changed(out, id, task);
                if out.len() - start > wire::LINE_MOST {
                    // News may be missed; whoever looks is told that the result is too large.
                    out.truncate(start);
                }
                false
            }
            (Some(Standing::Task { token: Some(token), last }), TaskNews::Progress { value, message }) => {
                if *value > *last {
                    *last = *value;
                    wire::progress(out, token, *value, Some(message));
                }
                false
            }
            (Some(Standing::Task { .. }), TaskNews::Changed(task)) => {
                // It was created as working, which a task in its queue is too.
                if task.status.is_final() {
                    tasks::status(out, task);
                }
                task.status.is_final()
            }
            (Some(Standing::Task { .. }), TaskNews::Lost(_)) => true,
            _ => false,
        }
    }
}

/// What stands, as it is passed on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum StandingSnapshot {
    Stream { number: u64, id: String, tools: bool },
    Task { number: u64, token: Option<String>, last: Option<f64> },
}

impl Standings {
    /// Everything that stands.
    pub(super) fn snapshot(&self) -> Vec<StandingSnapshot> {
        let passed = |(number, standing): (&u64, &Standing)| match standing {
            Standing::Stream { id, tools } => {
                StandingSnapshot::Stream { number: *number, id: id.as_str().to_owned(), tools: *tools }
            }
            Standing::Task { token, last } => StandingSnapshot::Task {
                number: *number,
                token: token.as_deref().map(str::to_owned),
                last: Some(*last).filter(|last| last.is_finite()),
            },
        };
        self.open.iter().map(passed).collect()
    }
}

/// What a subscription asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) tools: bool,
    pub(super) tasks: Option<Vec<JobId>>,
}
