//! How a connection stands still and is passed on to the next image of the program.
//!
//! Owns: what of a session's loop is passed on, when it may be, how it goes on from there. May not know: descriptors,
//! files, when an upgrade is wanted.
//!
//! ```text
//!  Moving ──freeze──▶ Quieting ──nothing is open that cannot be passed on, told──▶ ──hold still──▶ Still ──▶ the next image
//!    ▲                   │                                                                          │
//!    └──────thaw─────────┴──────────────────────────────────thaw────────────────────────────────────┘
//! ```
//!
//! Invariants: (1) from `freeze` on nothing is read; what was read of a line is passed on; (2) while it is still nothing is
//! written and nothing is decided, so that the snapshot stays true; what is heard meanwhile is kept for a thaw; (3) each
//! call in flight is passed on in exactly one place, as it was held in one.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::SessionEvent;
use super::ledger::PassedCall;
use super::turn::{
    ControlsSnapshot, Following, HostWork, Outgoing, Payload, Serving, SessionStage, SessionTurn, TurnEffect,
    TurnEffects,
};
use crate::base::base64::Base64;
use crate::base::ids::{CallNumber, Generation, JobId, SessionNumber};
use crate::protocol::frame::FrameReader;
use crate::protocol::session::{Call, ClientInfo, ClientSnapshot, CoreSnapshot, Wanted};
use crate::protocol::tasks::TaskAsk;
use crate::telemetry::traces::CallTrace;
use crate::tools::ReplayContract;

/// A connection, passed on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionSnapshot {
    /// Its number.
    pub number: SessionNumber,
    /// The state machine.
    pub core: CoreSnapshot,
    /// The ledger.
    calls: Vec<CallSnapshot>,
    /// What the host does for it.
    beside: Vec<BesideSnapshot>,
    /// Tasks that are followed.
    follows: Vec<FollowSnapshot>,
    /// What was read and belongs to no whole line.
    unread: Base64,
    /// The head of the line that is being skipped, because it is too long.
    skipping: Option<Base64>,
    /// What was said and not written.
    unwritten: Base64,
    /// Jobs whose end is told by it.
    shown: Vec<JobId>,
    /// The client has yet to hear that the tools differ.
    owes_change: bool,
    /// The newest worker that is known to be gone.
    dead: Generation,
    /// What is said beside JSON-RPC.
    #[serde(default)]
    controls: ControlsSnapshot,
    /// What is remembered of its calls for traces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    traces: Vec<CallTrace>,
}

impl SessionSnapshot {
    /// What is remembered of its calls for traces.
    pub(super) fn traces(&self) -> &[CallTrace] {
        &self.traces
    }

    /// Calls that are open with a worker or in the host.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls.len() + self.beside.len()
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct CallSnapshot {
    #[serde(flatten)]
    passed: PassedCall,
    tool: String,
    arguments: Base64,
    client: ClientSnapshot,
    progress: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum BesideSnapshot {
    Tool { call: u64, tool: String, arguments: Base64, client: ClientSnapshot, progress: bool },
    Ask { call: u64, ask: TaskAsk, client: ClientSnapshot },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct FollowSnapshot {
    number: u64,
    jobs: Vec<JobId>,
    wanted: Wanted,
    client: ClientSnapshot,
}

/// Whether a session moves.
#[derive(Debug, Default)]
pub(super) enum Stillness {
    /// It does.
    #[default]
    Moving,
    /// It reads nothing more; told when it may be held still.
    Quieting(Option<oneshot::Sender<()>>),
    /// It does nothing; what it heard since.
    Still(VecDeque<SessionEvent>),
}

impl PartialEq for Stillness {
    fn eq(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl Stillness {
    pub(super) fn is_still(&self) -> bool {
        matches!(self, Self::Still(_))
    }

    /// The event, unless it has to wait for a thaw.
    pub(super) fn admit(&mut self, event: SessionEvent) -> Option<SessionEvent> {
        match (self, event) {
            (Self::Still(_), event @ (SessionEvent::Thaw(_) | SessionEvent::Stop)) => Some(event),
            (Self::Still(kept), event) => {
                kept.push_back(event);
                None
            }
            (_, event) => Some(event),
        }
    }
}

/// What another image passed on for this one to begin again.
#[derive(Debug, Default)]
pub(super) struct TakenOver {
    tools: Vec<Call>,
    asks: Vec<(CallNumber, TaskAsk, ClientInfo)>,
    follows: Vec<(CallNumber, Vec<JobId>, Wanted, ClientInfo)>,
}

impl SessionTurn {
    /// What is passed on, if it is done now.
    pub(super) fn snapshot(&self, now: Instant) -> SessionSnapshot {
        let name = |tool: usize| self.tools[tool].name.to_string();
        let call = |(passed, payload): (PassedCall, &Payload)| CallSnapshot {
            passed,
            tool: name(payload.tool),
            arguments: Base64(payload.arguments.clone()),
            client: (&payload.client).into(),
            progress: payload.wants_progress,
        };
        let mut beside: Vec<(u64, BesideSnapshot)> = Vec::new();
        for (number, held) in &self.host_calls {
            let call = number.0;
            let passed = match &held.work {
                HostWork::Tool(held) => BesideSnapshot::Tool {
                    call,
                    tool: name(held.tool),
                    arguments: Base64(held.arguments.clone()),
                    client: (&held.client).into(),
                    progress: held.wants_progress,
                },
                HostWork::Ask(ask, client) => BesideSnapshot::Ask { call, ask: ask.clone(), client: client.into() },
                HostWork::Refused => continue,
            };
            beside.push((call, passed));
        }
        beside.sort_unstable_by_key(|(call, _)| *call);
        let follow = |(number, following): (&CallNumber, &Following)| FollowSnapshot {
            number: number.0,
            jobs: following.jobs.clone(),
            wanted: following.wanted,
            client: (&following.client).into(),
        };
        let (unread, skipping) = self.incoming.reader.unread();
        SessionSnapshot {
            number: self.number,
            core: self.core.snapshot(now),
            calls: self.ledger.passed_on().into_iter().map(call).collect(),
            beside: beside.into_iter().map(|(_, passed)| passed).collect(),
            follows: self.follows.iter().map(follow).collect(),
            unread: Base64(unread.to_vec().into()),
            skipping: skipping.cloned().map(Base64),
            unwritten: Base64(Bytes::copy_from_slice(self.outgoing.bytes())),
            shown: self.outgoing.shown().to_vec(),
            owes_change: self.outgoing.owes_change,
            dead: self.dead,
            controls: self.controls.snapshot(),
            traces: self.traces.passed(self.number),
        }
    }

    /// Reads nothing more.
    pub(super) fn freeze(&mut self, reply: oneshot::Sender<()>) {
        // A connection that is ending is not passed on; the dropped reply says so.
        if self.stage == SessionStage::Open {
            self.stillness = Stillness::Quieting(Some(reply));
        }
    }

    /// Tells whoever froze it once nothing is in flight that another image could not go on with as well. `busy` says that
    /// something besides calls is under way.
    pub(super) fn tell_when_quiet(&mut self, busy: bool, effects: &mut TurnEffects) {
        let Stillness::Quieting(told) = &mut self.stillness else { return };
        if self.stage != SessionStage::Open {
            *told = None;
            return;
        }
        let waits = |tool: usize| self.tools[tool].waits;
        let quiet = !busy
            && self.controls.are_quiet()
            && self.ledger.in_flight().all(|payload| waits(payload.tool))
            && self.host_calls.values().all(|held| match &held.work {
                HostWork::Tool(call) => waits(call.tool),
                HostWork::Ask(ask, _) => matches!(ask, TaskAsk::Wait(_)),
                HostWork::Refused => false,
            });
        if quiet {
            effects.extend(told.take().map(TurnEffect::TellQuiet));
        }
    }

    /// Stands still and says what is passed on; says nothing when the connection is ending.
    pub(super) fn hold_still(
        &mut self,
        reply: oneshot::Sender<SessionSnapshot>,
        now: Instant,
        effects: &mut TurnEffects,
    ) {
        if self.stage == SessionStage::Open && matches!(self.stillness, Stillness::Quieting(_)) {
            self.stillness = Stillness::Still(VecDeque::new());
            effects.push_back(TurnEffect::PassOn(reply, Box::new(self.snapshot(now))));
        }
    }

    /// Goes on after all. Calls of workers that were ended for the upgrade are decided about.
    pub(super) fn thaw(&mut self, ended: Generation, now: Instant, effects: &mut TurnEffects) {
        let kept = match std::mem::take(&mut self.stillness) {
            Stillness::Still(kept) => kept,
            Stillness::Moving | Stillness::Quieting(_) => VecDeque::new(),
        };
        if ended > Generation::NONE {
            self.dead = self.dead.max(ended);
            self.serving = Serving::Unasked;
            self.release(ended, now, effects);
            if !self.ledger.is_empty() {
                self.want_worker(effects);
            }
        }
        for event in kept {
            self.on_heard(event, now, effects);
        }
    }

    /// Decides about calls whose worker was ended to make room.
    pub(super) fn release(&mut self, ended: Generation, now: Instant, effects: &mut TurnEffects) {
        for effect in self.ledger.released(ended) {
            self.decided(effect, now, effects);
        }
    }

    /// Takes in what another image passed on. What can only be begun by a running session waits for its first turn.
    pub(super) fn take_over(&mut self, snapshot: &SessionSnapshot) {
        let position = |name: &str| self.tools.iter().position(|tool| &*tool.name == name);
        let mut taken_over = TakenOver::default();
        for call in &snapshot.calls {
            // The call of a tool that is no more is in nobody's hands, and answered as such.
            let Some(tool) = position(&call.tool) else { continue };
            let payload = Payload {
                tool,
                arguments: call.arguments.0.clone(),
                client: (&call.client).into(),
                wants_progress: call.progress,
            };
            self.ledger.restore(&call.passed, self.tools[tool].contract, payload);
        }
        for held in &snapshot.beside {
            match held {
                BesideSnapshot::Tool { call, tool, arguments, client, progress } => {
                    let again = |tool: &usize| self.tools[*tool].contract == ReplayContract::Convergent;
                    let Some(tool) = position(tool).filter(again) else { continue };
                    taken_over.tools.push(Call {
                        number: CallNumber(*call),
                        tool,
                        arguments: arguments.0.clone(),
                        client: client.into(),
                        wants_progress: *progress,
                        trace: None,
                    });
                }
                BesideSnapshot::Ask { call, ask, client } => {
                    // The task may have ended by the cancel that was asked for; to ask again would be refused then.
                    let ask = if let TaskAsk::Cancel(job) = ask { TaskAsk::Wait(*job) } else { ask.clone() };
                    taken_over.asks.push((CallNumber(*call), ask, client.into()));
                }
            }
        }
        for follow in &snapshot.follows {
            let FollowSnapshot { number, jobs, wanted, client } = follow;
            taken_over.follows.push((CallNumber(*number), jobs.clone(), *wanted, client.into()));
        }
        let skipping = snapshot.skipping.as_ref().map(|head| head.0.clone());
        self.incoming.reader = FrameReader::resumed(self.incoming.line_limit, &snapshot.unread.0, skipping);
        self.outgoing = Outgoing::resumed(&snapshot.unwritten.0, snapshot.shown.clone(), snapshot.owes_change);
        self.dead = snapshot.dead;
        self.controls.take_over(&snapshot.controls, &mut self.outgoing);
        self.taken_over = Some(taken_over);
    }

    /// Begins what another image passed on.
    pub(super) fn begin_again(&mut self, taken_over: TakenOver, now: Instant, effects: &mut TurnEffects) {
        for call in taken_over.tools {
            let since = self.core.open_calls().find(|(number, ..)| *number == call.number).map(|(.., since)| since);
            let waited = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            self.begin_here(&call);
            effects.push_back(TurnEffect::RunAgain(call, waited));
        }
        for (number, ask, client) in taken_over.asks {
            self.ask(number, ask, client, effects);
        }
        for (number, jobs, wanted, client) in taken_over.follows {
            self.follow(number, jobs, wanted, client, effects);
        }
        if self.outgoing.owes_change {
            self.say_change();
        }
    }
}
