//! A job of the fleet: its states, what is frozen of it, who holds it.
//!
//! Owns: the states and the one function between them, the ticket of a claim, and what passes the room's door in either
//! direction. May not know: the machine's own store, SQL, how a run is made.
//!
//! ```text
//!             claimed by a host        its start was committed       outcome
//!   queued ───────────────────▶ claimed ────────────────▶ running ─────────▶ succeeded | failed | cancelled | interrupted
//!     ▲                           │ │                         └── host gone ──▶ interrupted
//!     └──────── host gone ────────┘ └── cancelled, could not start ──▶ cancelled | failed
//!   queued ── cancelled, nobody took it in its time ──▶ cancelled | failed
//! ```
//!
//! A host whose start the database has lost with a part of its history says so again, and the job is `running` from wherever it was.
//!
//! Invariants: (1) no edge leads back from `running` (L19); (2) every change of state passes [`FleetState::advance`], or a
//! statement whose condition is one of its edges; (3) a fence is drawn for one claim, and never again.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::labels::Needs;
use super::rows::{BadRow, KEY_BYTES, REQUEST_BYTES, WORKSPACE_BYTES, digest, text, word, word_or_nothing, written};
use crate::base::ids::{FleetJobId, HostId, UnixMillis};
use crate::base::trace::TraceContext;
use crate::jobs::turns::SessionKey;
use crate::jobs::{CloneOf, ConsultRequest, JobOutcome};

/// What counts of a request whoever named it. The directory is among them: many lie in one workspace.
const ALWAYS: [&str; 6] = ["prompt", "cwd", "machine", "billing", "diff", "clone_of"];

/// The longest a job may wait or run, in seconds. Longer ones hold their place among the caps of a fleet for too long.
pub const TIMEOUT_MOST_S: u64 = 7 * 24 * 60 * 60;

/// Where a job of the fleet stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FleetState {
    /// Accepted and durable; any host it may run at can claim it.
    Queued,
    /// A host has it and has started nothing for it.
    Claimed,
    /// Its host may have started an agent for it.
    Running,
    /// The agent answered.
    Succeeded,
    /// The agent or the run failed, or nobody took it in its time.
    Failed,
    /// Stopped by request.
    Cancelled,
    /// Its host is gone, and what it did is not known; or its host says that what ran the agent is gone, and has an outcome for it.
    Interrupted,
}

impl FleetState {
    /// Every state.
    pub const ALL: [Self; 7] =
        [Self::Queued, Self::Claimed, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled, Self::Interrupted];

    /// The stable text of the state.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Claimed => "claimed",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }

    /// The state with this text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether the state is final.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        match self {
            Self::Queued | Self::Claimed | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Interrupted => true,
        }
    }

    /// Whether a host has the job.
    #[must_use]
    pub const fn is_held(self) -> bool {
        matches!(self, Self::Claimed | Self::Running)
    }

    /// The one function every change of state passes; the match is the diagram above. `None` for an edge that is not drawn.
    #[must_use]
    pub const fn advance(self, to: Self) -> Option<Self> {
        match (self, to) {
            (Self::Queued, Self::Claimed | Self::Cancelled | Self::Failed)
            | (Self::Claimed, Self::Queued | Self::Running | Self::Cancelled | Self::Failed)
            | (Self::Running, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Interrupted) => Some(to),
            _ => None,
        }
    }
}

/// The number of a claim: it grows from claim to claim over the whole fleet, and none is drawn twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(pub u64);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a host shows to say that a job is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub job: FleetJobId,
    pub host: HostId,
    pub fence: Fence,
}

/// A job to be accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct NewFleetJob {
    /// The id it will have unless it joins an older one.
    pub id: FleetJobId,
    /// The workspace's id: whose turn it takes.
    pub workspace: String,
    /// By which it is known when its caller asks again. Every job has one.
    pub request_key: String,
    /// What was asked.
    pub request: ConsultRequest,
    /// The options of the request that its caller named itself; the others are defaults, and are none of what was asked when it is
    /// asked again. Where that is not known, all of it counts.
    pub given: Option<Vec<String>>,
    /// Whose usage it is, as a digest; empty where any account of the host that runs it may be used.
    pub account: String,
    /// What a host must have to run it.
    pub needs: Needs,
    /// The state directory that has the agent session it resumes.
    pub pin_state: Option<String>,
    /// What is above it in its caller's trace. It is none of what was asked: no digest has it, and who joins a job stays in a trace of
    /// its own.
    pub trace: Option<TraceContext>,
}

/// The parts of a [`NewFleetJob`] as they are kept, each within its bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrozenJob {
    pub id: FleetJobId,
    pub workspace: String,
    /// A digest of the workspace, by which rows are found: no index of PostgreSQL's takes the longest paths.
    pub lane: String,
    pub request_key: String,
    /// The request as JSON.
    pub request: String,
    /// By which two requests are told to be the same.
    pub digest: String,
    pub agent: String,
    pub account: String,
    /// The needs as JSON.
    pub needs: String,
    /// The agent session it resumes.
    pub session: Option<String>,
    pub pin_state: Option<String>,
    /// How long it may wait, and how long it may run.
    pub timeout_s: u64,
    pub trace: Option<TraceContext>,
}

impl NewFleetJob {
    /// Checks it and freezes it.
    ///
    /// # Errors
    ///
    /// The first field that is out of its bounds.
    pub fn freeze(&self) -> Result<FrozenJob, BadRow> {
        let request = written("request", &self.request, REQUEST_BYTES)?;
        if self.request.timeout_s == 0 || self.request.timeout_s > TIMEOUT_MOST_S {
            return Err(BadRow::new("timeout_s", "is out of bounds"));
        }
        let digest = self.digest()?;
        Ok(FrozenJob {
            id: self.id,
            workspace: text("workspace", &self.workspace, WORKSPACE_BYTES)?.to_owned(),
            lane: hex_digest(&[&self.workspace]),
            request_key: text("request_key", &self.request_key, KEY_BYTES)?.to_owned(),
            digest,
            agent: word("agent", &self.request.agent)?.to_owned(),
            account: word_or_nothing("account", &self.account)?.to_owned(),
            needs: self.needs.write()?,
            session: self.request.session_id.map(|session| session.to_string()),
            pin_state: self.pin_state.as_deref().map(|pin| word("pin_state", pin).map(str::to_owned)).transpose()?,
            timeout_s: self.request.timeout_s,
            request,
            trace: self.trace.clone(),
        })
    }

    /// By which two requests are told to be the same. As on one machine: of a prompt with a diff the caller's words count, for the
    /// diff may have become another one since, and of the options those that its caller named. What is asked for elsewhere, or of
    /// another account, is something else.
    fn digest(&self) -> Result<String, BadRow> {
        // So may the commit a clone is made of.
        let clone_of = self.request.clone_of.as_ref().map(CloneOf::asked);
        let words = ConsultRequest { prompt: self.request.words().to_owned(), clone_of, ..self.request.clone() };
        let whole = written("request", &words, REQUEST_BYTES)?;
        // Who shares its files is as good as who owns them.
        let mut needs = Needs { owner: String::new(), ..self.needs.clone() };
        let Some(given) = &self.given else { return Ok(hex_digest(&[&whole, &self.account, &needs.write()?])) };
        let mut options: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&whole).map_err(|_| BadRow::new("request", "is no object"))?;
        options.retain(|name, _| ALWAYS.contains(&name.as_str()) || given.contains(name));
        let same = written("request", &options, REQUEST_BYTES)?;
        let agent_is_named = given.iter().any(|name| name == "agent");
        // Account and needs name the agent as well.
        let account = if agent_is_named { &self.account } else { "" };
        if !agent_is_named {
            needs.agents.clear();
        }
        Ok(hex_digest(&[&same, &given.join(","), account, &needs.write()?]))
    }
}

impl FrozenJob {
    /// The conversation across which its runs are serial.
    #[must_use]
    pub fn session_key(&self) -> Option<SessionKey> {
        let session = self.session.clone()?;
        Some(SessionKey { agent: self.agent.clone(), session })
    }

    /// Whether a digest that was read is this one's.
    ///
    /// # Errors
    ///
    /// It is no digest at all.
    pub fn is_same_as(&self, stored: &str) -> Result<bool, BadRow> {
        Ok(digest("digest", stored)? == self.digest)
    }
}

fn hex_digest(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        digest.update(part);
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A job a host has claimed, with all it needs to accept it in its own store. Nothing may be started for it before
/// [`Fleet::start`](super::Fleet::start) has said so.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimedJob {
    pub ticket: Ticket,
    pub workspace: String,
    pub account: String,
    pub request: ConsultRequest,
    /// What is above it in its caller's trace.
    pub trace: Option<TraceContext>,
}

/// An outcome that came after its job was somebody else's, or over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LateOutcome {
    pub fence: Fence,
    pub host: HostId,
    /// How the run ended, as its host says.
    pub end: FleetState,
    pub outcome: JobOutcome,
    pub at: UnixMillis,
}

/// A job as whoever waits for it sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FleetView {
    pub job: FleetJobId,
    pub state: FleetState,
    /// The agent that is to answer.
    pub agent: String,
    /// The workspace's id.
    pub workspace: String,
    /// The host that has it, or had it last.
    pub host: Option<HostId>,
    /// That host's name.
    pub host_name: Option<String>,
    /// Whether a clone of its commit will do.
    pub may_clone: bool,
    /// Whether it is to be cancelled.
    pub cancel_requested: bool,
    /// When it was accepted, by the database's clock.
    pub accepted: UnixMillis,
    /// How it ended, where its host said so in time.
    pub outcome: Option<JobOutcome>,
    /// What came too late, oldest first. It is shown beside the job's end, which it does not change.
    pub late: Vec<LateOutcome>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_edge_leads_back_from_a_start_and_what_is_over_stays_over() {
        for from in FleetState::ALL {
            assert_eq!(FleetState::parse(from.as_str()), Some(from));
            for to in FleetState::ALL {
                let drawn = from.advance(to).is_some();
                assert!(!(drawn && from.is_terminal()), "{from:?} to {to:?}");
                assert!(!(drawn && from == FleetState::Running && !to.is_terminal()), "{from:?} to {to:?}");
            }
        }
        assert_eq!(FleetState::Claimed.advance(FleetState::Queued), Some(FleetState::Queued));
        assert_eq!(FleetState::Claimed.advance(FleetState::Interrupted), None, "nothing was started");
        assert_eq!(FleetState::Queued.advance(FleetState::Running), None, "nobody claimed it");
    }

    #[test]
    fn a_job_out_of_its_bounds_is_not_frozen_and_equal_ones_have_one_digest() {
        let job = |change: &dyn Fn(&mut NewFleetJob)| {
            let mut job = NewFleetJob {
                id: FleetJobId::random(),
                workspace: "path:s:/w".into(),
                request_key: "key".into(),
                request: ConsultRequest::new("prompt \0").cwd("/w"),
                given: None,
                account: "a".into(),
                needs: Needs::default(),
                pin_state: None,
                trace: None,
            };
            change(&mut job);
            job.freeze()
        };
        let whole = job(&|_| ()).expect("frozen");
        assert!(!whole.request.contains('\0'), "no text of PostgreSQL's holds one");
        assert_eq!(whole.digest, job(&|job| job.request_key = "other".into()).expect("frozen").digest);
        let traced =
            job(&|job| job.trace = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        let owned = job(&|job| job.needs.owner = "s".into());
        assert_eq!(whole.digest, owned.expect("frozen").digest, "nor is whose the workspace is");
        assert_eq!(whole.digest, traced.expect("frozen").digest, "a trace is none of what is asked");
        for other in [
            job(&|job| job.account = "b".into()),
            job(&|job| job.request.prompt.push('x')),
            job(&|job| job.needs.tags.push("big".into())),
        ] {
            assert_ne!(whole.digest, other.expect("frozen").digest);
        }
        for (bad, field) in [
            (job(&|job| job.workspace.clear()), "workspace"),
            (job(&|job| job.workspace = "w".repeat(WORKSPACE_BYTES + 1)), "workspace"),
            (job(&|job| job.request_key = "a\nb".into()), "request_key"),
            (job(&|job| job.request.agent = "a b".into()), "agent"),
            (job(&|job| job.account = "\u{e9}".into()), "account"),
            (job(&|job| job.request.timeout_s = 0), "timeout_s"),
            (job(&|job| job.request.timeout_s = u64::MAX), "timeout_s"),
            (job(&|job| job.pin_state = Some(String::new())), "pin_state"),
            (job(&|job| job.needs.os = "a b".into()), "needs.os"),
        ] {
            assert_eq!(bad.map_err(|bad| bad.field), Err(field));
        }
    }

    #[test]
    fn an_option_that_nobody_named_is_none_of_what_was_asked() {
        type Change = fn(&mut NewFleetJob);
        let digest = |given: &[&str], change: Change| {
            let mut job = NewFleetJob {
                id: FleetJobId::random(),
                workspace: "path:s:/w".into(),
                request_key: "key".into(),
                request: ConsultRequest::new("why?").cwd("/w").agent("claude").timeout_s(60),
                given: Some(given.iter().map(|name| (*name).to_owned()).collect()),
                account: "a".into(),
                needs: Needs::default(),
                pin_state: None,
                trace: None,
            };
            change(&mut job);
            job.freeze().expect("frozen").digest
        };
        let nothing: Change = |_| ();
        let timeout: Change = |job| job.request.timeout_s = 90;
        let agent: Change = |job| {
            job.request.agent = "codex".into();
            job.account = "b".into();
            job.needs.agents.insert("codex".into(), crate::fleet::labels::AgentLabel::default());
        };
        // What the caller named, what is otherwise when it asks again, and whether that is the same.
        let cases: [(&str, &[&str], Change, bool); 8] = [
            ("a default that stayed", &[], nothing, true),
            ("a default that changed", &[], timeout, true),
            ("an option that changed", &["timeout_s"], timeout, false),
            ("a default agent that changed", &["timeout_s"], agent, true),
            ("an agent that changed", &["agent"], agent, false),
            ("other words", &[], |job| job.request.prompt.push('x'), false),
            ("another directory", &[], |job| job.request.cwd = "/w/below".into(), false),
            ("another way to pay", &[], |job| job.request.billing = crate::jobs::Billing::ApiKey, false),
        ];
        for (what, given, change, same) in cases {
            assert_eq!(digest(given, nothing) == digest(given, change), same, "{what}");
        }
        assert_ne!(digest(&[], nothing), digest(&["timeout_s"], nothing), "another option was named");
    }
}
