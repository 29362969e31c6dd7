//! The sessions' supervisor: one session per connection.
//!
//! Owns: who serves which connection, and when a session that failed is started again. May not know: protocol state. The
//! connections themselves are not its own ([`Connections`]): its next incarnation finds them there and goes on.
//!
//! A dynamic supervisor: one transient child per connection, each in a slot of its own. A session that keeps failing
//! loses its connection; nobody else notices.

pub mod messages;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::task::JoinSet;

use self::messages::{SessionEnd, SessionsMsg};
use super::child::{self, Child, reason};
use super::connections::Connections;
use super::current::Current;
use super::jobs::messages::JobsMsg;
use super::session::{Session, SessionArguments, SessionMsg};
use super::supervision::slot::{RestartPolicy, Slot, SlotEffect};
use super::supervision::{Exit, RestartType};
use super::workers::messages::WorkersMsg;
use crate::actors::clock;
use crate::base::ids::{Generation, SessionNumber};
use crate::failpoints::{FaultPoint, Faults};

/// Longest a session may take to stop: its last answers have a second to be written.
const STOP: Duration = Duration::from_millis(1500);

/// A session that failed goes on at once with what the client sends next. One whose client makes it fail again and again
/// is given up: twice in a minute is an accident, three times is not.
const RESTARTS: RestartPolicy = RestartPolicy {
    intensity: 2,
    period: Duration::from_secs(60),
    backoff: Duration::from_millis(50),
    backoff_most: Duration::from_secs(2),
    settled_after: Duration::from_secs(10),
};

/// The supervisor actor.
pub struct Sessions;

/// What it is started with.
#[derive(Clone)]
pub struct SessionsArguments {
    /// The connections.
    pub connections: Connections,
    /// Who hears that a session is over.
    pub workers: Current<WorkersMsg>,
    /// Who hears of lost callers.
    pub jobs: Current<JobsMsg>,
    /// What is to break.
    pub faults: Faults,
}

struct Served {
    slot: Slot,
    session: Option<Child<SessionMsg>>,
    /// How it went, as its death notice says; acted on when its task has been joined.
    exit: Option<Exit>,
}

/// The supervisor's state.
pub struct SessionsState {
    arguments: SessionsArguments,
    served: BTreeMap<SessionNumber, Served>,
    /// Join watches and backoff timers; they end with the supervisor.
    tasks: JoinSet<()>,
}

impl Actor for Sessions {
    type Msg = SessionsMsg;
    type State = SessionsState;
    type Arguments = SessionsArguments;

    async fn pre_start(
        &self,
        me: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        // Left by an earlier incarnation, or opened while there was none.
        for number in arguments.connections.numbers() {
            me.cast(SessionsMsg::Opened(number))?;
        }
        Ok(SessionsState { arguments, served: BTreeMap::new(), tasks: JoinSet::new() })
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        child::in_time(state.act(me, message)).await?
    }

    async fn handle_supervisor_evt(
        &self,
        _me: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, error) => {
                tracing::error!(why = reason(&error), "a session failed");
                state.note(cell.get_id(), Exit::Failed);
            }
            SupervisionEvent::ActorTerminated(cell, _, why) => {
                state.note(cell.get_id(), Exit::from_reason(why.as_deref()));
            }
            _ => {}
        }
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        // All at once. When the system stops, each withdraws what it has open and writes its last answers; when only this
        // supervisor is started again, each gives its connection back.
        let served: Vec<(SessionNumber, Child<SessionMsg>)> = std::mem::take(&mut state.served)
            .into_iter()
            .filter_map(|(number, served)| served.session.map(|session| (number, session)))
            .collect();
        for (_, session) in &served {
            session.actor().stop(None);
        }
        let closing = state.arguments.connections.are_closing();
        for (number, session) in served {
            session.stop(STOP).await;
            if closing {
                state.arguments.connections.over(number, SessionEnd::Closed);
            }
        }
        Ok(())
    }
}

impl SessionsState {
    /// Handles one message.
    async fn act(&mut self, me: ActorRef<SessionsMsg>, message: SessionsMsg) -> Result<(), ActorProcessingErr> {
        if self.arguments.faults.is_armed() {
            let operation = match &message {
                SessionsMsg::Opened(_) => "opened",
                SessionsMsg::Over(..) => "over",
                SessionsMsg::Gone(..) => "gone",
                SessionsMsg::Due(..) => "due",
            };
            child::meet(&self.arguments.faults, FaultPoint::SessionsSupervise, operation).await?;
        }
        match message {
            SessionsMsg::Opened(number) => {
                if !self.served.contains_key(&number) {
                    let slot = Slot::new(RestartType::Transient, RESTARTS);
                    let served = self.served.entry(number).or_insert(Served { slot, session: None, exit: None });
                    let effect = served.slot.wanted(clock::now());
                    self.perform(&me, number, effect).await;
                }
            }
            SessionsMsg::Over(number, end) => self.over(number, end),
            SessionsMsg::Gone(number, generation) => {
                if let Some(served) = self.served.get_mut(&number) {
                    let exit = served.exit.take().unwrap_or(Exit::Normal);
                    let effect = served.slot.gone(generation, exit, clock::now());
                    self.perform(&me, number, effect).await;
                }
            }
            SessionsMsg::Due(number, generation) => {
                if let Some(served) = self.served.get_mut(&number) {
                    let effect = served.slot.due(generation);
                    self.perform(&me, number, effect).await;
                }
            }
        }
        while self.tasks.try_join_next().is_some() {}
        Ok(())
    }

    fn note(&mut self, id: ActorId, exit: Exit) {
        let session = |served: &&mut Served| served.session.as_ref().is_some_and(|session| session.id() == id);
        if let Some(served) = self.served.values_mut().find(session) {
            served.exit = Some(exit);
        }
    }

    /// A connection is over: nobody waits for anything it had open.
    fn over(&mut self, number: SessionNumber, end: SessionEnd) {
        self.served.remove(&number);
        if self.arguments.connections.over(number, end) {
            let _ = self.arguments.workers.cast(WorkersMsg::SessionOver(number));
            let _ = self.arguments.jobs.cast(JobsMsg::SessionOver(number));
        }
    }

    async fn perform(&mut self, me: &ActorRef<SessionsMsg>, number: SessionNumber, mut effect: SlotEffect) {
        loop {
            match effect {
                SlotEffect::Nothing => return,
                SlotEffect::Wait(generation, wait) => {
                    let told = me.clone();
                    self.tasks.spawn(async move {
                        tokio::time::sleep(wait).await;
                        let _ = told.cast(SessionsMsg::Due(number, generation));
                    });
                    return;
                }
                SlotEffect::GiveUp => {
                    tracing::error!(session = %number, "a session failed too often and loses its connection");
                    let Some(kept) = self.arguments.connections.session(number) else { return };
                    let told = me.clone();
                    self.tasks.spawn(async move {
                        // What is open is answered first, if that much still works.
                        if let Some(mut lent) = kept.lend().await
                            && let Some(session) = lent.get()
                        {
                            let ending = AssertUnwindSafe(session.end()).catch_unwind();
                            let _ = tokio::time::timeout(STOP, ending).await;
                        }
                        let _ = told.cast(SessionsMsg::Over(number, SessionEnd::Failed));
                    });
                    return;
                }
                // It said itself that its connection is over, and nothing is left to be said.
                SlotEffect::Finished => return self.over(number, SessionEnd::Closed),
                SlotEffect::Start(generation) => {
                    let Some(kept) = self.arguments.connections.session(number) else {
                        return self.over(number, SessionEnd::Closed);
                    };
                    let connections = self.arguments.connections.clone();
                    let session = SessionArguments { number, kept, connections, sessions: me.clone() };
                    let started = Session::spawn_linked(None, Session, session, me.get_cell()).await;
                    let Some(served) = self.served.get_mut(&number) else { return };
                    match started {
                        Ok((session, joined)) => {
                            served.session = Some(Child::new(session));
                            served.slot.up(generation, clock::now());
                            let told = me.clone();
                            self.tasks.spawn(async move {
                                let _ = joined.await;
                                let _ = told.cast(SessionsMsg::Gone(number, generation));
                            });
                            return;
                        }
                        Err(error) => {
                            tracing::error!(%error, "a session could not be started");
                            effect = served.slot.gone(generation, Exit::NotStarted, clock::now());
                        }
                    }
                }
            }
        }
    }
}
