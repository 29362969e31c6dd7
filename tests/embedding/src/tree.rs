//! The program's own ractor tree: a supervisor that has a system under it, hears of its end, and starts the next one.
//!
//! Owns: the supervisor. May not know: what the system does.

use phone_opus::{Client, Down, System};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::mpsc;

use crate::tools::{Book, Charge};
use crate::{PATIENCE, Problem};

/// Has one system at a time.
struct Supervisor;

/// What the program hears of it.
enum News {
    Started(System),
    /// Of this actor, and whether it had failed.
    Ended(ActorCell, bool),
}

async fn start_under(me: &ActorRef<()>, news: &mpsc::UnboundedSender<News>) -> Result<(), ActorProcessingErr> {
    let system = System::builder().tool(Charge(Book::default())).supervised_by(me.get_cell()).start().await?;
    Ok(news.send(News::Started(system))?)
}

#[cfg_attr(feature = "async-trait", ractor::async_trait)]
impl Actor for Supervisor {
    type Msg = ();
    type State = mpsc::UnboundedSender<News>;
    type Arguments = mpsc::UnboundedSender<News>;

    async fn pre_start(&self, me: ActorRef<()>, news: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        start_under(&me, &news).await?;
        Ok(news)
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<()>,
        event: SupervisionEvent,
        news: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let (who, failed) = match event {
            SupervisionEvent::ActorTerminated(who, ..) => (who, false),
            SupervisionEvent::ActorFailed(who, _) => (who, true),
            _ => return Ok(()),
        };
        news.send(News::Ended(who, failed))?;
        start_under(&me, news).await
    }
}

struct Heard(mpsc::UnboundedReceiver<News>);

impl Heard {
    async fn next(&mut self) -> Result<News, Problem> {
        Ok(tokio::time::timeout(PATIENCE, self.0.recv()).await?.ok_or("the supervisor is gone")?)
    }

    async fn started(&mut self) -> Result<System, Problem> {
        match self.next().await? {
            News::Started(system) => Ok(system),
            News::Ended(who, failed) => Err(format!("{who:?} ended, failed: {failed}").into()),
        }
    }

    async fn ended(&mut self, system: &System) -> Result<bool, Problem> {
        match self.next().await? {
            News::Ended(who, failed) if who.get_id() == system.actor().get_id() => Ok(failed),
            News::Ended(..) => Err("something else ended".into()),
            News::Started(_) => Err("one was started that nobody missed".into()),
        }
    }
}

pub async fn a_supervisor_of_ones_own_restarts_a_system() -> Result<(), Problem> {
    let (news, heard) = mpsc::unbounded_channel();
    let mut heard = Heard(heard);
    let (supervisor, ended) = Actor::spawn(None, Supervisor, news).await?;

    // Stopped by somebody of the program's own tree: in order, heard of, and there is a next one.
    let first = heard.started().await?;
    works(&first).await?;
    first.actor().stop(None);
    if heard.ended(&first).await? || !matches!(first.down().await, Down::Stopped) {
        return Err("a system that was stopped has failed".into());
    }

    // Killed: heard of as well.
    let second = heard.started().await?;
    works(&second).await?;
    second.actor().kill();
    heard.ended(&second).await?;

    // And stopped with its supervisor's other children.
    let third = heard.started().await?;
    works(&third).await?;
    supervisor.stop_children_and_wait(None, Some(PATIENCE)).await;
    supervisor.stop(None);
    ended.await?;
    match third.down().await {
        Down::Stopped => Ok(()),
        other => Err(format!("the third system: {other:?}").into()),
    }
}

async fn works(system: &System) -> Result<(), Problem> {
    let session = system.open_session(Client::new("tree")).await?;
    session.call("charge", serde_json::json!({"cents": 1})).await?;
    Ok(())
}
