//! The sessions' supervisor: one session per connection.
//!
//! Owns: the connections. May not know: their protocol state. A session that panics ends its own connection only; what it
//! had open loses its caller.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};

use super::child::Child;
use super::current::Current;
use super::jobs::JobsMsg;
use super::session::{Ended, Gauges, Input, Session, SessionArguments, SessionMsg, Sink};
use super::workers::{WorkersMsg, reason};
use crate::fault::{Fault, FaultCode};
use crate::ids::{HostId, SessionNumber};
use crate::protocol::catalog::Catalog;
use crate::protocol::session::{SessionCore, SessionLimits};
use crate::protocol::wire::Identity;
use crate::telemetry::TelemetryHandle;
use crate::tools::Tool;

/// Connections at once. Each costs tens of kilobytes; more is refused at the door.
const CONNECTIONS: usize = 1024;

/// Longest a session may take to stop: its last answers have a second to be written.
const STOP: Duration = Duration::from_millis(1500);

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEnd {
    /// The client closed it, or the system stopped.
    Closed,
    /// The session failed.
    Failed,
}

/// Everything that can wake the sessions' supervisor.
pub enum SessionsMsg {
    /// Serve this connection.
    Open {
        /// The client's bytes.
        input: Input,
        /// Ours.
        sink: Sink,
        /// Told when it is over.
        ended: Ended,
    },
    /// A connection is over.
    Over(SessionNumber, SessionEnd),
}

/// The supervisor actor.
pub struct Sessions;

/// What it is started with.
pub struct SessionsArguments {
    /// This system.
    pub host: HostId,
    /// What is offered.
    pub catalog: Arc<Catalog>,
    /// The same, in the same order, to be run.
    pub tools: Arc<[Arc<dyn Tool>]>,
    /// Who we say we are.
    pub identity: Arc<Identity>,
    /// Bounds of each session.
    pub limits: SessionLimits,
    /// Longest line taken.
    pub line_limit: usize,
    /// Who starts workers.
    pub workers: Current<WorkersMsg>,
    /// Who hears of lost callers.
    pub jobs: Current<JobsMsg>,
    /// Who counts.
    pub telemetry: TelemetryHandle,
    /// What all sessions add up to.
    pub gauges: Arc<Gauges>,
}

struct Connection {
    session: Child<SessionMsg>,
    ended: Ended,
}

/// The supervisor's state.
pub struct SessionsState {
    arguments: SessionsArguments,
    connections: HashMap<SessionNumber, Connection>,
    next: u64,
}

impl Actor for Sessions {
    type Msg = SessionsMsg;
    type State = SessionsState;
    type Arguments = SessionsArguments;

    async fn pre_start(
        &self,
        _me: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        // Session 0 belongs to the embedding program's own typed calls.
        Ok(SessionsState { arguments, connections: HashMap::new(), next: 1 })
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SessionsMsg::Open { input, sink, ended } => {
                if let Err((fault, ended)) = state.open(&me, input, sink, ended).await {
                    let _ = ended.send(Err(fault));
                }
            }
            SessionsMsg::Over(number, end) => state.over(number, end),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _me: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(cell, error) = event {
            tracing::error!(why = reason(&error), "a session failed");
            let id = cell.get_id();
            let number = state.connections.iter().find(|(_, c)| c.session.id() == id).map(|(number, _)| *number);
            if let Some(number) = number {
                state.over(number, SessionEnd::Failed);
            }
        }
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        // All at once: each withdraws what it has open and writes its last answers.
        let connections: Vec<(SessionNumber, Connection)> = state.connections.drain().collect();
        for (_, connection) in &connections {
            connection.session.actor().stop(None);
        }
        for (_, Connection { session, ended }) in connections {
            session.stop(STOP).await;
            let _ = ended.send(Ok(SessionEnd::Closed));
        }
        Ok(())
    }
}

impl SessionsState {
    /// A connection is over: nobody waits for anything it had open.
    fn over(&mut self, number: SessionNumber, end: SessionEnd) {
        if let Some(connection) = self.connections.remove(&number) {
            let _ = self.arguments.workers.cast(WorkersMsg::SessionOver(number));
            let _ = self.arguments.jobs.cast(JobsMsg::SessionOver(number));
            let _ = connection.ended.send(Ok(end));
        }
    }

    async fn open(
        &mut self,
        me: &ActorRef<SessionsMsg>,
        input: Input,
        sink: Sink,
        ended: Ended,
    ) -> Result<(), (Fault, Ended)> {
        if self.connections.len() >= CONNECTIONS {
            return Err((Fault::new(FaultCode::Busy, "this host serves as many connections as it may."), ended));
        }
        let number = SessionNumber(self.next);
        self.next += 1;
        let a = &self.arguments;
        let session = SessionArguments {
            host: a.host,
            number,
            core: SessionCore::new(Arc::clone(&a.catalog), Arc::clone(&a.identity), a.limits),
            tools: Arc::clone(&a.tools),
            workers: a.workers.clone(),
            jobs: a.jobs.clone(),
            sessions: me.clone(),
            telemetry: a.telemetry.clone(),
            gauges: Arc::clone(&a.gauges),
            input,
            sink,
            line_limit: a.line_limit,
        };
        match Session::spawn_linked(None, Session, session, me.get_cell()).await {
            Ok((session, _)) => {
                self.connections.insert(number, Connection { session: Child::new(session), ended });
                Ok(())
            }
            Err(error) => Err((Fault::new(FaultCode::Internal, error.to_string()), ended)),
        }
    }
}
