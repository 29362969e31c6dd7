//! Which waiting jobs a host may have now.
//!
//! Owns: caps, pauses, what counts against them, and the choice. The order is that of [`turns`](crate::jobs::turns), the one
//! a machine's own queue has. May not know: where rows are kept, how a claim is written down.
//!
//! Both backends hold still what they read while they ask here (one lock over the fleet), so caps are exact.
//!
//! Invariants: (1) what is claimed, running, or held because its host is gone counts against every cap of its own (L19); (2) a host
//! is given what its labels have a way to, a better way first, what it accepts, and never more than its slots; (3) a job that this
//! host cannot serve delays none that it can, and holds no place for a host that could.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::time::Duration;

use super::job::FleetState;
use super::labels::{Labels, Needs, StateHere, WorkspaceWay};
use super::rows::{BadRow, NAME_BYTES, text, word};
use crate::base::ids::{FleetJobId, HostId};
use crate::jobs::turns::{Capacity, InLine, SessionKey, TurnOrder};

/// What a cap or a pause is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CapScope {
    /// All runs of the fleet.
    Fleet,
    /// Those whose usage is this account's.
    Account(String),
    /// Those of this agent.
    Agent(String),
    /// Those on the machine of this name, whichever process of it has them.
    Host(String),
}

impl CapScope {
    /// As it is written: `fleet`, `account:…`, `agent:…`, `host:…`.
    #[must_use]
    pub fn write(&self) -> String {
        match self {
            Self::Fleet => "fleet".to_owned(),
            Self::Account(name) => format!("account:{name}"),
            Self::Agent(name) => format!("agent:{name}"),
            Self::Host(name) => format!("host:{name}"),
        }
    }

    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    ///
    /// It is about nothing that this version knows.
    pub fn read(value: &str) -> Result<Self, BadRow> {
        if value == "fleet" {
            return Ok(Self::Fleet);
        }
        let (kind, name) = value.split_once(':').ok_or(BadRow::new("scope", "is not understood"))?;
        match kind {
            "account" => Ok(Self::Account(word("scope", name)?.to_owned())),
            "agent" => Ok(Self::Agent(word("scope", name)?.to_owned())),
            "host" => Ok(Self::Host(text("scope", name, NAME_BYTES)?.to_owned())),
            _ => Err(BadRow::new("scope", "is not understood")),
        }
    }
}

/// A time in which nothing is started for a scope: a usage limit some host has met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetPause {
    pub scope: CapScope,
    /// How long it lasts from when it is told: the queue's clock says until when, whatever that of the host says.
    pub lasts: Duration,
    /// Why, for people.
    pub why: String,
}

/// A job that waits or counts, as far as a claim depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetRow {
    pub job: FleetJobId,
    pub state: FleetState,
    /// The turn it was accepted in: its place in the order as well.
    pub turn: u64,
    pub workspace: String,
    /// The turn of its workspace's last claim, 0 when there was none.
    pub workspace_served: u64,
    pub agent: String,
    pub account: String,
    pub session: Option<SessionKey>,
    pub needs: Needs,
    pub pin_state: Option<String>,
    /// How long ago it was accepted.
    pub waited: Duration,
    /// The host that has it, or had it.
    pub host: Option<HostId>,
    /// The name of that host's machine.
    pub host_name: Option<String>,
    /// The user whose job it is.
    pub owner: String,
}

/// Everything a claim depends on, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FleetQueue {
    /// The jobs that wait, those that are claimed or running, and those that are held.
    pub rows: Vec<FleetRow>,
    /// Rows that count and were not understood. They count against the whole fleet's cap.
    pub unread: usize,
    /// Jobs of other users that count and are not shown, by what they count for.
    pub unseen: BTreeMap<CapScope, u64>,
    pub caps: BTreeMap<CapScope, u64>,
    /// The scopes for which nothing is started now.
    pub paused: HashSet<CapScope>,
}

impl FleetQueue {
    /// How many count against the cap of a scope.
    #[must_use]
    pub fn used_of(&self, scope: &CapScope) -> u64 {
        let counts = |row: &&FleetRow| {
            row.state != FleetState::Queued && scopes(row, row.host_name.as_deref()).any(|of| of == *scope)
        };
        let shown = self.rows.iter().filter(counts).count();
        let unread = if *scope == CapScope::Fleet { self.unread } else { 0 };
        u64::try_from(shown + unread).unwrap_or(u64::MAX) + self.unseen.get(scope).copied().unwrap_or(0)
    }

    /// Takes note of so many jobs that are not shown.
    pub fn count_unseen(&mut self, agent: &str, account: &str, host_name: Option<&str>, jobs: u64) {
        for scope in scopes_of(agent, account, host_name) {
            *self.unseen.entry(scope).or_default() += jobs;
        }
    }
}

/// Who asks for jobs, and for which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant<'a> {
    pub host: HostId,
    pub name: &'a str,
    /// What its state directory is called.
    pub state_id: &'a str,
    pub labels: &'a Labels,
    /// Whose jobs it takes.
    pub owners: &'a [String],
    /// At most so many.
    pub most: usize,
}

impl Claimant<'_> {
    /// How it comes to the files of a job.
    #[must_use]
    pub fn way(&self, row: &FleetRow) -> Option<WorkspaceWay> {
        let owner = Some(row.needs.owner.as_str()).filter(|owner| !owner.is_empty());
        let state = match (row.pin_state.as_deref(), owner) {
            (Some(pin), _) if pin != self.state_id => StateHere::Missing,
            (None, Some(owner)) if owner != self.state_id => StateHere::Other,
            _ => StateHere::Owner,
        };
        self.labels.way(&row.needs, &row.agent, &row.account, state)
    }
}

/// The jobs this host may have now, in the order in which they are due.
#[must_use]
pub fn choose(queue: &FleetQueue, claimant: &Claimant<'_>) -> Vec<FleetJobId> {
    let counts = |row: &&FleetRow| row.state != FleetState::Queued;
    let mut used = Used { queue, claimant, of: queue.unseen.clone(), own: 0, taken: 0 };
    *used.of.entry(CapScope::Fleet).or_default() += u64::try_from(queue.unread).unwrap_or(u64::MAX);
    for row in queue.rows.iter().filter(counts) {
        used.count(row, row.host_name.as_deref());
        // What is held has no process at its host any more.
        used.own += usize::from(row.host == Some(claimant.host) && row.state.is_held());
    }
    let busy = queue.rows.iter().filter(counts).filter_map(|row| row.session.as_ref()).collect();
    let mut line = TurnOrder::new(queue.rows.iter().filter(|row| row.state == FleetState::Queued));
    line.take_starts(busy, &mut used).into_iter().map(|row| row.job).collect()
}

/// What is used of each cap, while a claim is made.
struct Used<'a> {
    queue: &'a FleetQueue,
    claimant: &'a Claimant<'a>,
    of: BTreeMap<CapScope, u64>,
    /// Jobs the claimant has by now.
    own: usize,
    /// Jobs this claim took.
    taken: usize,
}

impl Used<'_> {
    fn count(&mut self, row: &FleetRow, host_name: Option<&str>) {
        for scope in scopes(row, host_name) {
            *self.of.entry(scope).or_default() += 1;
        }
    }
}

/// What a job at a machine of this name is counted for.
fn scopes(row: &FleetRow, host_name: Option<&str>) -> impl Iterator<Item = CapScope> + use<> {
    scopes_of(&row.agent, &row.account, host_name)
}

fn scopes_of(agent: &str, account: &str, host_name: Option<&str>) -> impl Iterator<Item = CapScope> + use<> {
    let account = (!account.is_empty()).then(|| CapScope::Account(account.to_owned()));
    let host = host_name.map(|name| CapScope::Host(name.to_owned()));
    [CapScope::Fleet, CapScope::Agent(agent.to_owned())].into_iter().chain(account).chain(host)
}

impl Capacity<FleetRow> for Used<'_> {
    fn fits(&self, row: &FleetRow) -> bool {
        let (queue, claimant) = (self.queue, self.claimant);
        let slots = usize::try_from(claimant.labels.slots).unwrap_or(usize::MAX);
        self.taken < claimant.most
            && self.own < slots
            && claimant.owners.contains(&row.owner)
            && claimant.way(row).is_some_and(|way| row.waited >= way.patience())
            && scopes(row, Some(claimant.name)).all(|scope| {
                let used = self.of.get(&scope).copied().unwrap_or(0);
                !queue.paused.contains(&scope) && queue.caps.get(&scope).is_none_or(|cap| used < *cap)
            })
    }

    fn take(&mut self, row: &FleetRow) {
        self.count(row, Some(self.claimant.name));
        self.own += 1;
        self.taken += 1;
    }
}

impl InLine for FleetRow {
    fn sequence(&self) -> u64 {
        self.turn
    }

    fn workspace(&self) -> &OsStr {
        OsStr::new(&self.workspace)
    }

    fn session(&self) -> Option<&SessionKey> {
        self.session.as_ref()
    }

    fn turn(&self) -> u64 {
        self.turn
    }

    fn workspace_served(&self) -> u64 {
        self.workspace_served
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(turn: u64) -> FleetRow {
        FleetRow {
            job: FleetJobId::random(),
            state: FleetState::Queued,
            turn,
            workspace: "w".into(),
            workspace_served: 0,
            agent: "claude".into(),
            account: "a".into(),
            session: None,
            needs: Needs::default(),
            pin_state: None,
            waited: Duration::ZERO,
            host: None,
            host_name: None,
            owner: "me".into(),
        }
    }

    fn labels() -> Labels {
        Labels::read(r#"{"agents":{"claude":{"accounts":["a","b"]}},"slots":4}"#).expect("labels")
    }

    fn chosen(queue: &FleetQueue, change: impl Fn(&mut Claimant<'_>)) -> Vec<u64> {
        let (labels, owners) = (labels(), ["me".to_owned()]);
        let host = queue.rows.iter().find_map(|row| row.host).unwrap_or_else(HostId::random);
        let mut claimant =
            Claimant { host, name: "box", state_id: "s", labels: &labels, owners: &owners, most: usize::MAX };
        change(&mut claimant);
        let turn = |job| queue.rows.iter().find(|row| row.job == job).expect("one of them").turn;
        choose(queue, &claimant).into_iter().map(turn).collect()
    }

    fn queue(rows: Vec<FleetRow>) -> FleetQueue {
        FleetQueue { rows, ..FleetQueue::default() }
    }

    #[test]
    fn a_host_is_given_what_it_can_serve_and_no_more_than_its_slots() {
        let mut rows: Vec<_> = (1..=10).map(row).collect();
        rows[0].agent = "codex".into();
        rows[1].account = "c".into();
        rows[2].needs.tags.push("big".into());
        rows[3].pin_state = Some("another".into());
        rows[4].owner = "you".into();
        rows[5].pin_state = Some("s".into());
        let queue = queue(rows);
        assert_eq!(chosen(&queue, |_| ()), [6, 7, 8, 9]);
        assert_eq!(chosen(&queue, |claimant| claimant.most = 1), [6]);
        assert_eq!(chosen(&queue, |claimant| claimant.state_id = "another"), [4, 7, 8, 9]);
        assert_eq!(chosen(&queue, |claimant| claimant.owners = &[]), Vec::<u64>::new());
    }

    #[test]
    fn a_job_that_may_be_cloned_is_left_to_those_that_have_its_workspace_for_a_while_and_is_nobodys_without_its_repository()
     {
        let clones = Labels { clones: vec!["ssh://git@git.example/*".into()], ..labels() };
        let owns = Labels { workspaces: vec!["w".into()], ..labels() };
        let mut rows: Vec<_> = (1..=4).map(row).collect();
        for row in &mut rows {
            row.needs = Needs { clone: "ssh://git@git.example/team/a".into(), ..Needs::default() };
        }
        rows[0].needs.workspaces = vec!["w".into()];
        rows[1].pin_state = Some("another".into());
        rows[2].needs =
            Needs { clone: "https://git.example/team/a".into(), workspaces: vec!["w".into()], ..Needs::default() };
        rows[3].needs = Needs { workspaces: vec!["w".into()], ..Needs::default() };
        for (waited, by_clone) in
            [(Duration::ZERO, &[][..]), (Duration::from_millis(4_999), &[]), (super::super::POLL, &[1, 2])]
        {
            rows.iter_mut().for_each(|row| row.waited = waited);
            let queue = queue(rows.clone());
            let by = |labels: &Labels| {
                let owners = ["me".to_owned()];
                let host = HostId::random();
                let claimant = Claimant { host, name: "box", state_id: "s", labels, owners: &owners, most: 9 };
                let turn = |job| queue.rows.iter().find(|row| row.job == job).expect("one of them").turn;
                choose(&queue, &claimant).into_iter().map(turn).collect::<Vec<_>>()
            };
            assert_eq!(by(&clones), by_clone, "{waited:?}");
            assert_eq!(by(&owns), [1, 3, 4], "{waited:?}");
        }
    }

    #[test]
    fn a_job_is_left_to_its_owner_then_to_who_shares_the_files_then_to_who_reaches_them_then_to_a_clone() {
        let (here, clones) = (r#""workspaces":["w"]"#, r#""clones":["ssh://git@git.example/*"]"#);
        let reach = r#""reach":[{"agent":"claude","workspaces":["w"]}]"#;
        let hosts = [("owner", here), ("other", here), ("other", reach), ("other", clones)];
        let needs = r#"{"workspaces":["w"],"clone":"ssh://git@git.example/team/a","owner":"owner"}"#;
        let unowned = Needs { owner: String::new(), ..Needs::read(needs).expect("needs") };
        let seconds = Duration::from_secs;
        for (needs, waited, given) in [
            (Needs::read(needs).expect("needs"), seconds(0), [true, false, false, false]),
            (Needs::read(needs).expect("needs"), seconds(1), [true, true, false, false]),
            (Needs::read(needs).expect("needs"), seconds(2), [true, true, true, false]),
            (Needs::read(needs).expect("needs"), seconds(5), [true, true, true, true]),
            // Put there by a program that does not say whose it is.
            (unowned, seconds(0), [true, true, false, false]),
        ] {
            let row = FleetRow { needs, waited, account: String::new(), ..row(1) };
            let queue = queue(vec![row]);
            let takes = hosts.map(|(state, rest)| {
                let labels = format!(r#"{{"agents":{{"claude":{{}}}},"slots":4,{rest}}}"#);
                let labels = Labels::read(&labels).expect("labels");
                !chosen_by(&queue, state, &labels).is_empty()
            });
            assert_eq!(takes, given, "{:?} after {waited:?}", queue.rows[0].needs);
        }
    }

    fn chosen_by(queue: &FleetQueue, state_id: &str, labels: &Labels) -> Vec<FleetJobId> {
        let owners = ["me".to_owned()];
        choose(queue, &Claimant { host: HostId::random(), name: "box", state_id, labels, owners: &owners, most: 9 })
    }

    #[test]
    fn claimed_running_and_held_jobs_count_against_each_of_their_caps() {
        let host = HostId::random();
        for state in [FleetState::Claimed, FleetState::Running, FleetState::Interrupted] {
            for (scope, cap, free) in [
                (CapScope::Fleet, 1, 0),
                (CapScope::Fleet, 3, 2),
                (CapScope::Account("a".into()), 1, 0),
                (CapScope::Account("b".into()), 1, 4),
                (CapScope::Agent("claude".into()), 2, 1),
                (CapScope::Host("box".into()), 1, 0),
                (CapScope::Host("other".into()), 0, 4),
            ] {
                let mut rows: Vec<_> = (1..=5).map(row).collect();
                rows[0].state = state;
                (rows[0].host, rows[0].host_name) = (Some(host), Some("box".into()));
                let mut queue = queue(rows);
                queue.caps.insert(scope.clone(), cap);
                // Its own process has a slot less, unless the run was of one that is gone.
                let free = free.min(if state == FleetState::Interrupted { 4 } else { 3 });
                assert_eq!(chosen(&queue, |_| ()).len(), free, "{state:?}, {scope:?} {cap}");
            }
        }
        let mut unread = queue((1..=3).map(row).collect());
        unread.unread = 2;
        unread.caps.insert(CapScope::Fleet, 3);
        assert_eq!(chosen(&unread, |_| ()), [1], "what is not understood may be running");
        for (agent, account, name, jobs, free) in [
            ("codex", "", None, 2, 1),
            ("codex", "", None, 3, 0),
            ("claude", "b", Some("other"), 1, 2),
            ("codex", "", Some("box"), 1, 1),
            ("codex", "a", None, 1, 1),
        ] {
            let mut unseen = queue((1..=3).map(row).collect());
            unseen.count_unseen(agent, account, name, jobs);
            unseen.caps.extend([
                (CapScope::Fleet, 3),
                (CapScope::Agent("claude".into()), 4),
                (CapScope::Account("a".into()), 2),
                (CapScope::Host("box".into()), 2),
            ]);
            // Where nothing else bounds them.
            if name.is_none() && account.is_empty() || account == "b" {
                unseen.caps.remove(&CapScope::Account("a".into()));
                unseen.caps.remove(&CapScope::Host("box".into()));
            }
            assert_eq!(chosen(&unseen, |_| ()).len(), free, "{agent} {account} {name:?} {jobs}");
        }
    }

    #[test]
    fn a_pause_stops_what_it_is_about_and_nothing_else() {
        let mut rows: Vec<_> = (1..=3).map(row).collect();
        rows[1].account = "b".into();
        let mut queue = queue(rows);
        queue.paused.insert(CapScope::Account("a".into()));
        assert_eq!(chosen(&queue, |_| ()), [2]);
        queue.paused.insert(CapScope::Fleet);
        assert_eq!(chosen(&queue, |_| ()), Vec::<u64>::new());
    }

    #[test]
    fn workspaces_take_turns_and_a_session_is_one_run() {
        let mut rows: Vec<_> = (1..=4).map(row).collect();
        rows[3].workspace = "other".into();
        assert_eq!(chosen(&queue(rows.clone()), |_| ()), [1, 4, 2, 3]);
        for row in &mut rows[..3] {
            row.session = Some(SessionKey { agent: "claude".into(), session: "s".into() });
        }
        assert_eq!(chosen(&queue(rows.clone()), |_| ()), [1, 4]);
        rows[0].state = FleetState::Interrupted;
        assert_eq!(chosen(&queue(rows), |_| ()), [4], "a cut-off agent may still be at work in it");
    }

    #[test]
    fn a_scope_is_read_as_it_was_written() {
        for scope in [
            CapScope::Fleet,
            CapScope::Account("a".into()),
            CapScope::Agent("claude".into()),
            CapScope::Host("a box".into()),
        ] {
            assert_eq!(CapScope::read(&scope.write()), Ok(scope));
        }
        for wrong in ["", "fleet:", "account:", "account:a b", "host:\n", "planet:earth", "host"] {
            assert!(CapScope::read(wrong).is_err(), "{wrong:?}");
        }
    }
}
