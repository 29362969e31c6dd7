//! The doors' supervisor: one actor per way in.
//!
//! Owns: which doors have an actor, and when one that failed is started again. May not know: what comes in, protocol state. The
//! doors themselves are not its own ([`DoorTable`]): its next incarnation finds them there and goes on.
//!
//! ```text
//! stream   opens the one connection that it was made with, and is over with it: standard streams, or what an embedder brings
//! unix     accepts whoever connects to a socket, and is over when it is closed
//! ```
//!
//! A door opens connections and owns nothing of them: they belong to the system ([`Connections`](super::connections)), and
//! the sessions serve them. So a door that crashes loses none, and what it was made with (a listening socket, a stream nobody
//! serves yet) is lent to it ([`Kept`](super::kept)).

pub mod desk;
mod door;
pub mod handle;
pub mod messages;
mod stream;
pub mod table;
pub mod unix;

use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};

use self::door::{Door, DoorArguments};
use self::messages::DoorsMsg;
pub(crate) use self::stream::StreamDoor;
use self::table::{DoorTable, Entrance};
use super::child;
use super::supervision::driver::{ChildDriver, ChildReport, Spawned};
use super::supervision::dynamic::DynamicChildren;
use super::supervision::slot::RestartPolicy;
use super::supervision::{ChildEvent, ChildSpec, RestartType};
use crate::base::ids::DoorNumber;

/// Longest a door may take to stop: it gives back what it was lent.
const STOP: Duration = Duration::from_millis(250);

/// A door that failed goes on at once. What makes it fail again and again is its socket, which does not get well by waiting.
const RESTARTS: RestartPolicy = RestartPolicy {
    intensity: 5,
    period: Duration::from_secs(60),
    backoff: Duration::from_millis(50),
    backoff_most: Duration::from_secs(1),
    settled_after: Duration::from_secs(10),
};

/// What a door is to its supervisor.
const DOOR: ChildSpec = ChildSpec { name: "a door", restart: RestartType::Transient, policy: RESTARTS, shutdown: STOP };

/// The supervisor actor.
pub struct Doors;

/// What it is started with.
#[derive(Clone)]
pub struct DoorsArguments {
    /// The doors.
    pub doors: DoorTable,
    /// What they open connections with.
    pub entrance: Entrance,
}

/// The supervisor's state.
pub struct DoorsState {
    arguments: DoorsArguments,
    doors: ChildDriver<DynamicChildren<DoorNumber>, DoorsMsg>,
}

#[cfg_attr(feature = "ractor-async-trait", ractor::async_trait)]
impl Actor for Doors {
    type Msg = DoorsMsg;
    type State = DoorsState;
    type Arguments = DoorsArguments;

    async fn pre_start(
        &self,
        me: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        // Left by an earlier incarnation, or made while there was none.
        for number in arguments.doors.numbers() {
            me.cast(DoorsMsg::Opened(number))?;
        }
        let doors = ChildDriver::new(DynamicChildren::new(DOOR), DoorsMsg::Child);
        Ok(DoorsState { arguments, doors })
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
        state.doors.note(&event);
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        let open = state.doors.forget_all();
        for (_, door) in &open {
            door.ask_to_stop();
        }
        for (_, door) in open {
            door.stop(STOP).await;
        }
        if state.arguments.entrance.connections.are_closing() {
            // The system stops: who waits at a door is told, and no connection comes in any more.
            state.arguments.doors.close_all().await;
        }
        Ok(())
    }
}

impl DoorsState {
    /// Handles one message.
    async fn act(&mut self, me: ActorRef<DoorsMsg>, message: DoorsMsg) {
        match message {
            DoorsMsg::Opened(number) if self.doors.children().has(number) => {}
            DoorsMsg::Opened(number) => self.handle(&me, ChildEvent::Wanted(number)).await,
            DoorsMsg::Over(number) => {
                drop(self.doors.forget(number));
                self.arguments.doors.over(number);
            }
            DoorsMsg::Child(news) => {
                let event = self.doors.event(news);
                self.handle(&me, event).await;
            }
        }
    }

    /// Does what follows from an event.
    async fn handle(&mut self, me: &ActorRef<DoorsMsg>, event: ChildEvent<DoorNumber>) {
        let arguments = &self.arguments;
        let spawn = |number, _| spawn(number, arguments.clone(), me.clone());
        for report in self.doors.handle(me, event, spawn).await {
            match report {
                ChildReport::LeftOut(number) => self.arguments.doors.over(number),
                ChildReport::GaveUp(number) => {
                    // Connections that came in by it are served on; only nobody comes in any more.
                    drop(self.doors.forget(number));
                    self.arguments.doors.over(number);
                }
                ChildReport::NotStarted(..) => {}
            }
        }
    }
}

/// Starts the actor of a door that is open.
async fn spawn(number: DoorNumber, arguments: DoorsArguments, doors: ActorRef<DoorsMsg>) -> Result<Spawned, String> {
    let Some(kept) = arguments.doors.door(number) else { return Ok(Spawned::NotNeeded) };
    let supervisor = doors.get_cell();
    let door = DoorArguments { number, kept, entrance: arguments.entrance, doors };
    Spawned::up(Door::spawn_linked(None, Door, door, supervisor).await)
}
