//! What `top` knows, and what each event means to it.
//!
//! Owns: the jobs that are shown, what is selected, followed, filtered and asked; what happened lately. Pure: it is given each look and the
//! time. May not know: terminals, stores, how anything is drawn.
//!
//! ```text
//!  Browsing ──/──▶ Filtering ──Enter, Esc──▶ Browsing
//!     ├──c──▶ Confirming ──y──▶ (cancel) ──▶ Browsing; any other key ──▶ Browsing
//!     └──Enter──▶ follows the job until Esc, beside each of them
//! ```
//!
//! Invariants: (1) one look is under way at a time; (2) what is kept is bounded: [`EVENTS_MOST`] lines, a live picture for jobs that are
//! shown; (3) a job is cancelled only after the key that says so.

use std::collections::{HashMap, HashSet, VecDeque};

use phone_opus::internals::agents::AgentEvent;
use phone_opus::internals::base::ids::{HostId, JobId, UnixMillis};
use phone_opus::internals::jobs::hosts::{TreeSaid, WaitsFor};
use phone_opus::internals::jobs::live::JobLive;
use phone_opus::internals::jobs::row::JobRow;
use phone_opus::internals::jobs::{JobState, JournalEvent};
use phone_opus::internals::seen::live::Live;

use crate::job_word::short;

/// Lines of what happened: more than any window has.
pub(crate) const EVENTS_MOST: usize = 500;

/// Characters of a filter: an id has fewer.
const FILTER_MOST: usize = 80;

/// Jobs whose journal is read in one look: as many as run at once on a large machine.
const READ_MOST: usize = 32;

/// Jobs that ended a while ago and are still shown.
pub(crate) const ENDED_MOST: usize = 100;

/// A look at everything.
#[derive(Debug)]
pub(crate) struct TopLook {
    pub(crate) live: Live,
    /// Jobs that are not over or ended lately.
    pub(crate) rows: Vec<JobRow>,
    /// What was journalled since the last look.
    pub(crate) news: Vec<(JobId, Vec<Noted>)>,
}

/// An entry of a job's journal.
#[derive(Debug, Clone)]
pub(crate) struct Noted {
    pub(crate) seq: u64,
    pub(crate) at: UnixMillis,
    pub(crate) event: JournalEvent,
}

/// A key, as far as it means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TopKey {
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
    Enter,
    Escape,
    Backspace,
    Char(char),
    /// Ctrl-C.
    Interrupt,
}

/// What can wake it.
#[derive(Debug)]
pub(crate) enum TopEvent {
    Pressed(TopKey),
    Looked(Box<TopLook>),
    /// The store could not be looked at.
    LookFailed(String),
    /// A cancel was asked for; how the job stood.
    CancelAsked(JobId, Result<JobState, String>),
    /// Time for another look.
    LookDue,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TopEffect {
    /// Look, and read these journals behind these numbers.
    Look(Vec<(JobId, u64)>),
    Cancel(JobId),
    Quit,
}

/// What the keys mean at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TopMode {
    Browsing,
    Filtering,
    /// Whether this job is to be cancelled.
    Confirming(JobId),
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopNews {
    pub(crate) at: UnixMillis,
    pub(crate) text: String,
}

/// What is known of a job while it runs.
#[derive(Debug, Default)]
pub(crate) struct Pursued {
    seq: u64,
    pub(crate) news: JobLive,
}

#[derive(Debug)]
pub(crate) struct TopCore {
    pub(crate) live: Option<Live>,
    rows: Vec<JobRow>,
    pursued: HashMap<JobId, Pursued>,
    pub(crate) events: VecDeque<TopNews>,
    pub(crate) mode: TopMode,
    pub(crate) filter: String,
    pub(crate) selected: Option<JobId>,
    pub(crate) followed: Option<JobId>,
    /// What is said below, until the next key.
    pub(crate) message: Option<String>,
    /// Why the last look failed.
    pub(crate) failure: Option<String>,
    looking: bool,
}

impl TopCore {
    pub(crate) fn new() -> Self {
        Self {
            live: None,
            rows: Vec::new(),
            pursued: HashMap::new(),
            events: VecDeque::new(),
            mode: TopMode::Browsing,
            filter: String::new(),
            selected: None,
            followed: None,
            message: None,
            failure: None,
            looking: false,
        }
    }

    /// What follows from an event.
    pub(crate) fn step(&mut self, event: TopEvent, now: UnixMillis) -> Vec<TopEffect> {
        match event {
            TopEvent::Pressed(key) => self.pressed(key),
            TopEvent::Looked(look) => {
                self.looking = false;
                self.failure = None;
                self.looked(*look, now);
                Vec::new()
            }
            TopEvent::LookFailed(why) => {
                self.looking = false;
                self.failure = Some(why);
                Vec::new()
            }
            TopEvent::CancelAsked(job, asked) => {
                self.message = Some(match asked {
                    Ok(state) if state.is_terminal() => format!("job {} is {}", short(job), state.as_str()),
                    Ok(_) => format!("job {} was asked to end", short(job)),
                    Err(why) => why,
                });
                Vec::new()
            }
            TopEvent::LookDue if self.looking => Vec::new(),
            TopEvent::LookDue => {
                self.looking = true;
                vec![TopEffect::Look(self.journals())]
            }
        }
    }

    /// The jobs that are shown: what runs, what waits, what ended, the newest end first.
    pub(crate) fn jobs(&self) -> Vec<&JobRow> {
        let rank = |row: &JobRow| match row.state {
            JobState::Running => 0,
            JobState::Queued => 1,
            _ => 2,
        };
        let mut shown: Vec<&JobRow> = self.rows.iter().filter(|row| self.passes(row)).collect();
        shown.sort_by_key(|row| {
            let ended = row.finished_at.map_or(0, |at| i64::MAX - at.0);
            (rank(row), ended, row.sequence)
        });
        let over = shown.iter().position(|row| row.state.is_terminal()).unwrap_or(shown.len());
        shown.truncate(over + ENDED_MOST);
        shown
    }

    /// Where the selected job stands among those that are shown.
    pub(crate) fn position(&self) -> Option<usize> {
        let selected = self.selected?;
        self.jobs().iter().position(|row| row.id == selected)
    }

    /// What is known live of a job.
    pub(crate) fn news(&self, job: JobId) -> Option<&JobLive> {
        self.pursued.get(&job).map(|pursued| &pursued.news)
    }

    /// A job that is shown.
    pub(crate) fn row(&self, job: JobId) -> Option<&JobRow> {
        self.rows.iter().find(|row| row.id == job)
    }

    /// What a job waits for.
    pub(crate) fn waits(&self) -> HashMap<JobId, WaitsFor> {
        self.live.as_ref().map(Live::waits).unwrap_or_default().into_iter().collect()
    }

    fn passes(&self, row: &JobRow) -> bool {
        let filter = self.filter.to_lowercase();
        filter.is_empty()
            || [
                row.id.to_string(),
                row.agent.clone(),
                row.state.as_str().to_owned(),
                row.workspace.display().to_string(),
            ]
            .iter()
            .any(|text| text.to_lowercase().contains(&filter))
    }

    /// The journals to be read: of what runs, and of what is followed.
    fn journals(&self) -> Vec<(JobId, u64)> {
        let wanted = |row: &&JobRow| {
            let seen = self.pursued.get(&row.id).map_or(0, |pursued| pursued.seq);
            let live = row.state == JobState::Running || Some(row.id) == self.followed;
            // Behind the last number that is known there is nothing, but for what runs.
            live && (row.state == JobState::Running || seen < row.last_event)
        };
        let mut wanted: Vec<&JobRow> = self.rows.iter().filter(wanted).collect();
        // What is followed comes first.
        wanted.sort_by_key(|row| Some(row.id) != self.followed);
        wanted.truncate(READ_MOST);
        wanted.iter().map(|row| (row.id, self.pursued.get(&row.id).map_or(0, |pursued| pursued.seq))).collect()
    }

    fn looked(&mut self, look: TopLook, now: UnixMillis) {
        let at = self.position();
        self.compare(&look, now);
        for (job, entries) in look.news {
            self.read(job, &entries);
        }
        self.live = Some(look.live);
        self.rows = look.rows;
        let shown: HashSet<JobId> = self.rows.iter().map(|row| row.id).collect();
        self.pursued.retain(|job, _| shown.contains(job));
        let followed_is_gone = self.followed.is_some_and(|job| !shown.contains(&job));
        if followed_is_gone {
            self.followed = None;
        }
        self.select_again(at);
    }

    /// Tells what is different from the look before.
    fn compare(&mut self, look: &TopLook, now: UnixMillis) {
        let Some(before) = &self.live else { return };
        let mut told: Vec<String> = Vec::new();
        for row in &look.rows {
            let earlier = self.rows.iter().find(|earlier| earlier.id == row.id).map(|earlier| earlier.state);
            if earlier != Some(row.state) {
                let code = row.code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default();
                let cost = row.cost_usd.map(|cost| format!(", ${cost:.4}")).unwrap_or_default();
                told.push(format!("{} {} is {}{code}{cost}", short(row.id), row.agent, row.state.as_str()));
            }
        }
        let (were, are) = (trees(before), trees(&look.live));
        for (host, name, tree) in &are {
            match were.iter().find(|(known, ..)| known == host) {
                None => told.push(format!("{name} is there")),
                Some((.., was)) => {
                    if tree.worker_restarts > was.worker_restarts {
                        let code = tree.last_fault.as_ref().map(|code| format!(" after {code}")).unwrap_or_default();
                        told.push(format!("{name}: worker of generation {} begins{code}", tree.worker_generation));
                    }
                    if tree.upgrades > was.upgrades {
                        told.push(format!("{name} was upgraded"));
                    }
                }
            }
        }
        let gone = were.iter().filter(|(host, ..)| !are.iter().any(|(known, ..)| known == host));
        told.extend(gone.map(|(_, name, _)| format!("{name} is gone")));
        told.into_iter().for_each(|text| self.happened(now, text));
    }

    /// Takes in what was journalled of a job.
    fn read(&mut self, job: JobId, entries: &[Noted]) {
        let mut told = Vec::new();
        let pursued = self.pursued.entry(job).or_default();
        for entry in entries {
            if entry.seq <= pursued.seq {
                continue;
            }
            pursued.seq = entry.seq;
            match &entry.event {
                JournalEvent::Agent { event } => {
                    pursued.news.fold(event);
                    if let Some(text) = in_a_word(event) {
                        told.push((entry.at, format!("{} {text}", short(job))));
                    }
                }
                JournalEvent::ProcessStarted { .. } => {
                    told.push((entry.at, format!("{} its agent started", short(job))))
                }
                JournalEvent::ProcessExited { code } => {
                    told.push((entry.at, format!("{} its agent exited with code {code}", short(job))));
                }
                _ => {}
            }
        }
        told.into_iter().for_each(|(at, text)| self.happened(at, text));
    }

    fn happened(&mut self, at: UnixMillis, text: String) {
        if self.events.len() >= EVENTS_MOST {
            self.events.pop_front();
        }
        self.events.push_back(TopNews { at, text });
    }

    fn pressed(&mut self, key: TopKey) -> Vec<TopEffect> {
        self.message = None;
        if key == TopKey::Interrupt {
            return vec![TopEffect::Quit];
        }
        match self.mode {
            TopMode::Browsing => return self.browse(key),
            TopMode::Filtering => self.type_filter(key),
            TopMode::Confirming(job) => {
                self.mode = TopMode::Browsing;
                if key == TopKey::Char('y') {
                    return vec![TopEffect::Cancel(job)];
                }
            }
        }
        Vec::new()
    }

    fn browse(&mut self, key: TopKey) -> Vec<TopEffect> {
        match key {
            TopKey::Up | TopKey::Char('k') => self.move_by(-1),
            TopKey::Down | TopKey::Char('j') => self.move_by(1),
            TopKey::PageUp => self.move_by(-10),
            TopKey::PageDown => self.move_by(10),
            TopKey::First | TopKey::Char('g') => self.move_by(isize::MIN / 2),
            TopKey::Last | TopKey::Char('G') => self.move_by(isize::MAX / 2),
            TopKey::Enter | TopKey::Char('f') => {
                self.followed = if self.followed == self.selected { None } else { self.selected };
            }
            TopKey::Escape if self.followed.is_some() => self.followed = None,
            TopKey::Escape => {
                self.filter.clear();
                self.select_again(None);
            }
            TopKey::Char('/') => self.mode = TopMode::Filtering,
            TopKey::Char('c') => self.ask_to_cancel(),
            TopKey::Char('q') => return vec![TopEffect::Quit],
            TopKey::Char(_) | TopKey::Backspace | TopKey::Interrupt => {}
        }
        Vec::new()
    }

    fn ask_to_cancel(&mut self) {
        let row = self.selected.and_then(|job| self.row(job)).map(|row| (row.id, row.state));
        match row {
            Some((job, state)) if !state.is_terminal() => self.mode = TopMode::Confirming(job),
            Some((job, state)) => self.message = Some(format!("job {} is already {}", short(job), state.as_str())),
            None => self.message = Some("no job is selected".to_owned()),
        }
    }

    fn type_filter(&mut self, key: TopKey) {
        let at = self.position();
        match key {
            TopKey::Enter => self.mode = TopMode::Browsing,
            TopKey::Escape => {
                self.filter.clear();
                self.mode = TopMode::Browsing;
            }
            TopKey::Backspace => {
                self.filter.pop();
            }
            TopKey::Char(c) if self.filter.chars().count() < FILTER_MOST => self.filter.push(c),
            _ => {}
        }
        self.select_again(at);
    }

    fn move_by(&mut self, by: isize) {
        let jobs = self.jobs();
        let at = self.position().unwrap_or(0);
        let next = at.saturating_add_signed(by).min(jobs.len().saturating_sub(1));
        self.selected = jobs.get(next).map(|row| row.id);
    }

    /// Where the selected job is not shown any more, selects the one in its place.
    fn select_again(&mut self, before: Option<usize>) {
        if self.position().is_none() {
            let jobs = self.jobs();
            let at = before.unwrap_or(0).min(jobs.len().saturating_sub(1));
            self.selected = jobs.get(at).map(|row| row.id);
        }
    }
}

/// Each server by its host, with a name for people and how its parts are.
fn trees(live: &Live) -> Vec<(Option<HostId>, String, TreeSaid)> {
    let daemon = live.daemon.iter().map(|d| (d.host, format!("daemon {}", d.pid), d.tree.clone()));
    let hosts = live
        .hosts
        .iter()
        .map(|row| (Some(row.host), format!("{} {}", row.kind.as_str(), row.pid), row.seen.tree.clone()));
    daemon.chain(hosts).collect()
}

/// What an agent did, where it is news; nothing of what it said.
fn in_a_word(event: &AgentEvent) -> Option<String> {
    Some(match event {
        AgentEvent::ToolUse { tool } => format!("uses {tool}"),
        AgentEvent::Denied { denial } => format!("was refused {}", denial.tool),
        AgentEvent::Retrying { attempt, max, .. } => format!("asks its provider again, {attempt} of {max}"),
        AgentEvent::ProviderError { class } => format!("its provider failed: {class}"),
        AgentEvent::Limited { .. } => "its provider's usage limit is reached".to_owned(),
        AgentEvent::Result { result } if result.is_error => "ends with an error".to_owned(),
        AgentEvent::Result { .. } => "has answered".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
pub(crate) mod tests;
