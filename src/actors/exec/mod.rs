//! The supervisor of connections to exec servers: one actor per connection.
//!
//! Owns: which connections have an actor, and when one that failed is started again. May not know: what runs over them, and how
//! they are made again ([`exec::remote`](crate::exec::remote)).
//!
//! The connections themselves are the system's ([`ExecLinks`]): sessions, calls and generations are lent to whoever works for
//! them. So an actor that crashes costs the connection it had, which is the next generation, and no session; and so does this
//! supervisor. It is started when the first connection is wanted: a host whose agents are all its own never has one.

mod connection;
pub mod links;

use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};

use self::connection::ExecConnection;
use self::links::ExecLinks;
use super::child;
use super::supervision::driver::{ChildDriver, ChildNews, ChildReport, Spawned};
use super::supervision::dynamic::DynamicChildren;
use super::supervision::slot::RestartPolicy;
use super::supervision::{ChildEvent, ChildSpec, RestartType};
use crate::base::ids::ExecNumber;

/// Longest a connection may take to stop: it gives back what it was lent.
const STOP: Duration = Duration::from_millis(250);

/// A connection that failed is made again at once. One that fails a sixth time in a minute does so by itself and not by the
/// network, whose failures are no failures of the actor.
const RESTARTS: RestartPolicy = RestartPolicy {
    intensity: 5,
    period: Duration::from_secs(60),
    backoff: Duration::from_millis(50),
    backoff_most: Duration::from_secs(1),
    settled_after: Duration::from_secs(10),
};

/// What a connection is to its supervisor.
const CONNECTION: ChildSpec =
    ChildSpec { name: "an exec connection", restart: RestartType::Transient, policy: RESTARTS, shutdown: STOP };

/// Everything that can wake the supervisor.
#[derive(Debug)]
pub enum ExecMsg {
    /// A connection is wanted.
    Opened(ExecNumber),
    /// Connections may have been wanted while there was no supervisor.
    Look,
    /// A connection is down for good, and everything that ran over it has failed or was ended.
    Over(ExecNumber),
    /// News of a connection's actor.
    Child(ChildNews<ExecNumber>),
}

/// The supervisor actor.
pub struct Execs;

/// Its state.
pub struct ExecsState {
    links: ExecLinks,
    children: ChildDriver<DynamicChildren<ExecNumber>, ExecMsg>,
}

#[cfg_attr(feature = "ractor-async-trait", ractor::async_trait)]
impl Actor for Execs {
    type Msg = ExecMsg;
    type State = ExecsState;
    type Arguments = ExecLinks;

    async fn pre_start(&self, me: ActorRef<Self::Msg>, links: ExecLinks) -> Result<Self::State, ActorProcessingErr> {
        // Left by an earlier incarnation, or wanted while there was none.
        me.cast(ExecMsg::Look)?;
        Ok(ExecsState { links, children: ChildDriver::new(DynamicChildren::new(CONNECTION), ExecMsg::Child) })
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        child::in_time(state.act(me, message)).await?;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _me: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        state.children.note(&event);
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        let all = state.children.forget_all();
        for (_, connection) in &all {
            connection.ask_to_stop();
        }
        for (_, connection) in all {
            connection.stop(STOP).await;
        }
        Ok(())
    }
}

impl ExecsState {
    async fn act(&mut self, me: ActorRef<ExecMsg>, message: ExecMsg) {
        match message {
            ExecMsg::Opened(number) if self.children.children().has(number) => {}
            ExecMsg::Opened(number) => self.handle(&me, ChildEvent::Wanted(number)).await,
            ExecMsg::Look => {
                for number in self.links.numbers() {
                    if !self.children.children().has(number) {
                        self.handle(&me, ChildEvent::Wanted(number)).await;
                    }
                }
            }
            ExecMsg::Over(number) => {
                drop(self.children.forget(number));
                self.links.over(number);
            }
            ExecMsg::Child(news) => {
                let event = self.children.event(news);
                self.handle(&me, event).await;
            }
        }
    }

    /// Does what follows from an event.
    async fn handle(&mut self, me: &ActorRef<ExecMsg>, event: ChildEvent<ExecNumber>) {
        let links = &self.links;
        let spawn = |number, _| spawn(number, links.clone(), me.clone());
        for report in self.children.handle(me, event, spawn).await {
            match report {
                ChildReport::LeftOut(number) => self.links.over(number),
                ChildReport::GaveUp(number) => {
                    drop(self.children.forget(number));
                    self.links.give_up(number);
                }
                ChildReport::NotStarted(..) => {}
            }
        }
    }
}

/// Starts the actor of a connection that is wanted.
async fn spawn(number: ExecNumber, links: ExecLinks, execs: ActorRef<ExecMsg>) -> Result<Spawned, String> {
    let Some(work) = links.work(number) else { return Ok(Spawned::NotNeeded) };
    let supervisor = execs.get_cell();
    Spawned::up(ExecConnection::spawn_linked(None, ExecConnection, (number, work, execs), supervisor).await)
}

#[cfg(test)]
mod tests;
