//! A system in a larger tree of actors: `cargo run --example foreign_tree`.
//!
//! The parent is a supervisor of somebody else's. It starts the system under itself, hears of its end as ractor tells it, and
//! starts the next one. Here the first is stopped from the tree's side, as any child may be.

#![allow(clippy::print_stdout, reason = "an example says what it did")]

use std::error::Error;

use phone_opus::ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use phone_opus::{Annotations, Client, Grace, System, Tool, ToolCall, ToolDefinition, ToolFuture, ToolReply};
use serde_json::json;
use tokio::sync::mpsc;

/// Says hello.
struct Greet;

impl Tool for Greet {
    fn name(&self) -> &str {
        "greet"
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
            name: "greet".to_owned(),
            title: "Greet".to_owned(),
            description: "Says hello.".to_owned(),
            input_schema: json!({"type": "object"}),
            annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
            meta: None,
        }
    }

    fn call(&self, _: ToolCall) -> ToolFuture {
        Box::pin(async { Ok(ToolReply::text("Hello!")) })
    }
}

/// It knows nothing of the system but that it is an actor.
struct Parent;

enum Asked {
    /// Start one.
    Start,
    /// End the one that is up, and leave.
    Leave,
}

struct Children {
    system: Option<System>,
    /// Each that was started, for the main function.
    started: mpsc::UnboundedSender<System>,
}

// Where ractor's `async-trait` is on, this needs `#[phone_opus::ractor::async_trait]`, as any actor of such a tree does.
impl Actor for Parent {
    type Msg = Asked;
    type State = Children;
    type Arguments = mpsc::UnboundedSender<System>;

    async fn pre_start(&self, me: ActorRef<Asked>, started: Self::Arguments) -> Result<Children, ActorProcessingErr> {
        me.cast(Asked::Start)?;
        Ok(Children { system: None, started })
    }

    async fn handle(&self, me: ActorRef<Asked>, asked: Asked, state: &mut Children) -> Result<(), ActorProcessingErr> {
        match asked {
            Asked::Start => {
                let system = System::builder().tool(Greet).supervised_by(me.get_cell()).start().await?;
                let _ = state.started.send(system.clone());
                state.system = Some(system);
            }
            Asked::Leave => {
                if let Some(system) = state.system.take() {
                    system.shutdown(Grace::default()).await;
                }
                me.stop(None);
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<Asked>,
        event: SupervisionEvent,
        state: &mut Children,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(..) => println!("the parent hears that its system has ended"),
            SupervisionEvent::ActorFailed(_, error) => println!("the parent hears that its system has failed: {error}"),
            _ => return Ok(()),
        }
        if state.system.take().is_some() {
            me.cast(Asked::Start)?;
        }
        Ok(())
    }
}

/// Calls the tool in a session without bytes.
async fn ask(system: &System) -> Result<(), Box<dyn Error>> {
    let session = system.open_session(Client::new("foreign-tree")).await?;
    let reply = session.call("greet", json!({})).await?;
    if reply.fault.is_none() { Ok(()) } else { Err("it was not answered".into()) }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (started, mut systems) = mpsc::unbounded_channel();
    let (parent, ended) = Actor::spawn(None, Parent, started).await?;

    let first = systems.recv().await.ok_or("one is started")?;
    ask(&first).await?;
    first.actor().stop(Some("somebody in the tree wants it so".to_owned()));
    first.down().await;

    let second = systems.recv().await.ok_or("the next one is started")?;
    ask(&second).await?;
    println!("the next one serves");
    parent.cast(Asked::Leave)?;
    ended.await?;
    second.down().await;
    Ok(())
}
