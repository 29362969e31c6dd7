//! Turns: in which order waiting jobs are taken, whoever keeps the queue.
//!
//! Owns: the order among rows that wait, and the rule that one agent session is one run at a time. May not know: what a row is
//! besides its turn, how many may run, where the rows are kept. A machine's own queue (`admission`) and that of several machines
//! (`fleet`) are the same order over rows of their own.
//!
//! Workspaces take turns. Every acceptance and every start draws the next number of one counter (its *turn*); a workspace is due
//! since the later of its last start and the acceptance of its first waiting job, and the one that has been due longest goes next.
//! Within a workspace the order is that of acceptance.
//!
//! Invariants: (1) never two runs of one agent session at once, the earlier accepted first; (2) the first job of a workspace is
//! overtaken at most once by each other workspace, unless its session is busy or there is no room for it.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;

/// A conversation of an agent, across which runs are serial. Ids are only unique within one kind of agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// The agent's name.
    pub agent: String,
    /// The session's id, as the agent spells it.
    pub session: String,
}

/// A waiting job, as far as its turn depends on it.
pub trait InLine {
    /// Its place in the order of acceptance; no two are equal.
    fn sequence(&self) -> u64;
    /// Whose turn it takes.
    fn workspace(&self) -> &OsStr;
    /// The agent session it resumes.
    fn session(&self) -> Option<&SessionKey>;
    /// The turn it was accepted in.
    fn turn(&self) -> u64;
    /// The turn in which its workspace last started a run, 0 when it never did.
    fn workspace_served(&self) -> u64;
}

/// What has to be free for one more run.
pub trait Capacity<R> {
    /// Whether this one fits.
    fn fits(&self, row: &R) -> bool;
    /// It was taken, and holds its part from now on.
    fn take(&mut self, row: &R);
}

/// The waiting jobs nobody has taken yet, by workspace.
#[derive(Debug)]
pub struct TurnOrder<'a, R> {
    lanes: Vec<Lane<'a, R>>,
    /// The turn the next taken job would start in.
    turn: u64,
}

#[derive(Debug)]
struct Lane<'a, R> {
    /// The turn in which the workspace last started a run, the ones taken from here included.
    served: u64,
    /// In the order of acceptance.
    waiting: Vec<&'a R>,
}

impl<'a, R: InLine> TurnOrder<'a, R> {
    /// These rows, in whatever order they come.
    #[must_use]
    pub fn new(rows: impl IntoIterator<Item = &'a R>) -> Self {
        let mut waiting: Vec<&R> = rows.into_iter().collect();
        waiting.sort_by_key(|row| row.sequence());
        let turn = waiting.iter().map(|row| row.turn().max(row.workspace_served())).max().unwrap_or(0) + 1;

        let mut lanes: Vec<Lane<'a, R>> = Vec::new();
        let mut lane_of: HashMap<&OsStr, usize> = HashMap::new();
        for row in waiting {
            let index = *lane_of.entry(row.workspace()).or_insert_with(|| {
                lanes.push(Lane { served: 0, waiting: Vec::new() });
                lanes.len() - 1
            });
            if let Some(lane) = lanes.get_mut(index) {
                lane.served = lane.served.max(row.workspace_served());
                lane.waiting.push(row);
            }
        }
        Self { lanes, turn }
    }

    /// Takes those that may start, in their turn, as long as one fits whose session is not `busy`.
    pub fn take_starts(&mut self, mut busy: HashSet<&'a SessionKey>, capacity: &mut impl Capacity<R>) -> Vec<&'a R> {
        let mut starts = Vec::new();
        while let Some(row) =
            self.take_next(|row| capacity.fits(row) && row.session().is_none_or(|session| !busy.contains(session)))
        {
            capacity.take(row);
            busy.extend(row.session());
            starts.push(row);
        }
        starts
    }

    /// Takes the one that is due next among those that are `eligible` and have no earlier one of their session here.
    pub fn take_next(&mut self, eligible: impl Fn(&R) -> bool) -> Option<&'a R> {
        let mut first_of_session: HashMap<&SessionKey, u64> = HashMap::new();
        for row in self.lanes.iter().flat_map(|lane| &lane.waiting) {
            if let Some(session) = row.session() {
                let first = first_of_session.entry(session).or_insert(row.sequence());
                *first = row.sequence().min(*first);
            }
        }
        let leads = |row: &R| {
            row.session().and_then(|session| first_of_session.get(session)).is_none_or(|&at| at == row.sequence())
        };
        let mut due: Option<(u64, u64, usize, usize)> = None;
        for (lane_index, lane) in self.lanes.iter().enumerate() {
            let candidate = lane.waiting.iter().enumerate().find(|(_, row)| leads(row) && eligible(row));
            if let Some((index, row)) = candidate {
                let since = (lane.served.max(row.turn()), row.sequence(), lane_index, index);
                due = Some(due.map_or(since, |best| best.min(since)));
            }
        }
        let (_, _, lane_index, index) = due?;
        let lane = self.lanes.get_mut(lane_index)?;
        lane.served = self.turn;
        self.turn += 1;
        Some(lane.waiting.remove(index))
    }
}
