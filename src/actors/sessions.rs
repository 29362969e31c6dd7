//! The sessions' supervisor: one session and one door per connection.
//!
//! Owns: the connections. May not know: their protocol state. A session that panics ends its own connection only.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;

use super::child::Child;
use super::door::{Door, DoorArguments, DoorMsg, Input, Sink, output};
use super::session::{Session, SessionArguments, SessionMsg};
use super::workers::WorkersMsg;
use crate::fault::{Fault, FaultCode};
use crate::ids::{HostId, SessionNumber};
use crate::protocol::catalog::Catalog;
use crate::protocol::session::{SessionCore, SessionLimits};
use crate::protocol::wire::Identity;
use crate::telemetry::TelemetryHandle;
use crate::tools::Tool;

/// Connections at once. Each costs tens of kilobytes; more is refused at the door.
const CONNECTIONS: usize = 1024;

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
        ended: oneshot::Sender<Result<SessionEnd, Fault>>,
    },
    /// A door has closed.
    DoorClosed(SessionNumber),
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
    /// Who runs worker tools.
    pub workers: ActorRef<WorkersMsg>,
    /// Who counts.
    pub telemetry: TelemetryHandle,
}

struct Connection {
    session: Child<SessionMsg>,
    door: Child<DoorMsg>,
    ended: Option<oneshot::Sender<Result<SessionEnd, Fault>>>,
    failed: bool,
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
            SessionsMsg::DoorClosed(number) => {
                if let Some(mut connection) = state.connections.remove(&number) {
                    connection.session.actor().stop(None);
                    let end = if connection.failed { SessionEnd::Failed } else { SessionEnd::Closed };
                    if let Some(ended) = connection.ended.take() {
                        let _ = ended.send(Ok(end));
                    }
                }
            }
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
            tracing::error!(%error, "a connection's actor failed");
            let id = cell.get_id();
            let broken = state.connections.iter_mut().find(|(_, c)| c.session.id() == id || c.door.id() == id);
            if let Some((number, connection)) = broken {
                connection.failed = true;
                // A failed session has let go of its output, so its door closes by itself; a failed door cannot.
                if connection.door.id() == id {
                    connection.session.actor().stop(None);
                    let number = *number;
                    if let Some(ended) = state.connections.remove(&number).and_then(|c| c.ended) {
                        let _ = ended.send(Ok(SessionEnd::Failed));
                    }
                }
            }
        }
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        // All connections end at once, sessions before their doors, so that last answers are written.
        let connections: Vec<Connection> = state.connections.drain().map(|(_, connection)| connection).collect();
        for connection in &connections {
            connection.session.actor().stop(None);
        }
        for Connection { session, door, ended, .. } in connections {
            session.stop(Duration::from_millis(500)).await;
            // The door ends when all is written or the client has had its time.
            let _ = door.actor().wait(Some(Duration::from_millis(1200))).await;
            door.stop(Duration::from_millis(100)).await;
            if let Some(ended) = ended {
                let _ = ended.send(Ok(SessionEnd::Closed));
            }
        }
        Ok(())
    }
}

type Ended = oneshot::Sender<Result<SessionEnd, Fault>>;

impl SessionsState {
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
        let (out, end) = output();
        let session = SessionArguments {
            host: a.host,
            number,
            core: SessionCore::new(Arc::clone(&a.catalog), Arc::clone(&a.identity), a.limits),
            tools: Arc::clone(&a.tools),
            workers: a.workers.clone(),
            output: out,
            telemetry: a.telemetry.clone(),
        };
        let failed = |error: ractor::SpawnErr| Fault::new(FaultCode::Internal, error.to_string());
        let session = match Session::spawn_linked(None, Session, session, me.get_cell()).await {
            Ok((session, _)) => session,
            Err(error) => return Err((failed(error), ended)),
        };
        let door = DoorArguments {
            number,
            session: session.clone(),
            sessions: me.clone(),
            input,
            sink,
            output: end,
            line_limit: a.line_limit,
        };
        match Door::spawn_linked(None, Door, door, me.get_cell()).await {
            Ok((door, _)) => {
                let connection = Connection {
                    session: Child::new(session),
                    door: Child::new(door),
                    ended: Some(ended),
                    failed: false,
                };
                self.connections.insert(number, connection);
                Ok(())
            }
            Err(error) => {
                session.stop(None);
                Err((failed(error), ended))
            }
        }
    }
}
