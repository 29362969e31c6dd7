//! The sessions' supervisor: one session per connection.
//!
//! Owns: who serves which connection, and when a session that failed is started again. May not know: protocol state. The
//! connections themselves are not its own ([`Connections`]): its next incarnation finds them there and goes on.
//!
//! A dynamic supervisor: one transient child per connection, each for itself. A session that keeps failing loses its
//! connection; nobody else notices.

pub mod messages;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};

use self::messages::{SessionEnd, SessionsMsg};
use super::child;
use super::connections::Connections;
use super::current::Current;
use super::jobs::messages::JobsMsg;
use super::session::{SessionActor, SessionArguments};
use super::supervision::driver::{ChildDriver, ChildReport, Spawned};
use super::supervision::dynamic::DynamicChildren;
use super::supervision::slot::RestartPolicy;
use super::supervision::{ChildEvent, ChildSpec, RestartType};
use super::workers::messages::WorkersMsg;
use crate::base::ids::SessionNumber;
use crate::base::tasks::TaskSet;
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

/// What a session is to its supervisor.
const SESSION: ChildSpec =
    ChildSpec { name: "a session", restart: RestartType::Transient, policy: RESTARTS, shutdown: STOP };

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
    /// Fault plan.
    pub faults: Faults,
}

/// The supervisor's state.
pub struct SessionsState {
    arguments: SessionsArguments,
    sessions: ChildDriver<DynamicChildren<SessionNumber>, SessionsMsg>,
    /// Last words of sessions that were given up.
    endings: TaskSet<()>,
}

#[cfg_attr(feature = "ractor-async-trait", ractor::async_trait)]
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
        let sessions = ChildDriver::new(DynamicChildren::new(SESSION), SessionsMsg::Child);
        Ok(SessionsState { arguments, sessions, endings: TaskSet::new() })
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
        state.sessions.note(&event);
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        // All at once. When the system stops, each withdraws what it has open and writes its last answers; when only this
        // supervisor is started again, each gives its connection back.
        let served = state.sessions.forget_all();
        for (_, session) in &served {
            session.ask_to_stop();
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
                SessionsMsg::Child(news) => news.name(),
            };
            child::meet(&self.arguments.faults, FaultPoint::SessionsSupervise, operation).await?;
        }
        match message {
            SessionsMsg::Opened(number) if self.sessions.children().has(number) => {}
            SessionsMsg::Opened(number) => self.handle(&me, ChildEvent::Wanted(number)).await,
            SessionsMsg::Over(number, end) => self.over(number, end),
            SessionsMsg::Child(news) => {
                let event = self.sessions.event(news);
                self.handle(&me, event).await;
            }
        }
        while self.endings.try_join_next().is_some() {}
        Ok(())
    }

    /// Does what follows from an event.
    async fn handle(&mut self, me: &ActorRef<SessionsMsg>, event: ChildEvent<SessionNumber>) {
        let connections = &self.arguments.connections;
        let spawn = |number, _| spawn(number, connections.clone(), me.clone());
        for report in self.sessions.handle(me, event, spawn).await {
            match report {
                // It said itself that its connection is over, and nothing is left to be said.
                ChildReport::LeftOut(number) => self.over(number, SessionEnd::Closed),
                ChildReport::GaveUp(number) => self.gave_up(me, number),
                ChildReport::NotStarted(..) => {}
            }
        }
    }

    /// A connection is over: nobody waits for anything it had open.
    fn over(&mut self, number: SessionNumber, end: SessionEnd) {
        drop(self.sessions.forget(number));
        if self.arguments.connections.over(number, end) {
            let _ = self.arguments.workers.cast(WorkersMsg::SessionOver(number));
            let _ = self.arguments.jobs.cast(JobsMsg::SessionOver(number));
        }
    }

    /// A session failed too often and loses its connection.
    fn gave_up(&mut self, me: &ActorRef<SessionsMsg>, number: SessionNumber) {
        let Some(kept) = self.arguments.connections.session(number) else { return };
        let told = me.clone();
        self.endings.spawn(async move {
            // What is open is answered first, if that much still works.
            if let Some(mut lent) = kept.lend().await
                && let Some(session) = lent.get()
            {
                let ending = AssertUnwindSafe(session.end()).catch_unwind();
                let _ = tokio::time::timeout(STOP, ending).await;
            }
            let _ = told.cast(SessionsMsg::Over(number, SessionEnd::Failed));
        });
    }
}

/// Starts the session of a connection that is open.
async fn spawn(
    number: SessionNumber,
    connections: Connections,
    sessions: ActorRef<SessionsMsg>,
) -> Result<Spawned, String> {
    let Some(kept) = connections.session(number) else { return Ok(Spawned::NotNeeded) };
    let supervisor = sessions.get_cell();
    let session = SessionArguments { number, kept, connections, sessions };
    Spawned::up(SessionActor::spawn_linked(None, SessionActor, session, supervisor).await)
}
