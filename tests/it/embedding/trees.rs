//! A system inside a foreign ractor tree: linked, monitored, stopped and started again by a supervisor that knows nothing of it.
//!
//! Laws: L7, L8, L12.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::sync::Arc;
use std::time::Duration;

use phone_opus::internals::failpoints::{Ends, FaultCounters};
use phone_opus::ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use phone_opus::testkit::tools::echo;
use phone_opus::testkit::{Rig, until};
use phone_opus::{Client, Consult, Fault, FaultPlan, Faults, JobState, Shutdown, System};
use serde_json::json;
use tokio::sync::mpsc;

use super::new_rig;

/// What the foreign supervisor was told of a system's end.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Started,
    Terminated,
    /// Whether it was told why.
    Failed(bool),
}

/// A supervisor of somebody else: it says what it hears, and starts the system again as often as it is to.
struct Foreign;

struct ForeignState {
    hears: mpsc::UnboundedSender<Told>,
    runs: mpsc::UnboundedSender<System>,
    start: Arc<dyn Fn() -> phone_opus::SystemBuilder + Send + Sync>,
    restarts: usize,
    /// It keeps its system up.
    system: Option<System>,
}

#[cfg_attr(feature = "ractor-async-trait", phone_opus::ractor::async_trait)]
impl Actor for Foreign {
    type Msg = ();
    type State = ForeignState;
    type Arguments = ForeignState;

    async fn pre_start(&self, me: ActorRef<()>, mut a: ForeignState) -> Result<ForeignState, ActorProcessingErr> {
        a.start_system(&me).await?;
        Ok(a)
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<()>,
        event: SupervisionEvent,
        state: &mut ForeignState,
    ) -> Result<(), ActorProcessingErr> {
        let told = match event {
            SupervisionEvent::ActorStarted(_) => Told::Started,
            SupervisionEvent::ActorTerminated(..) => Told::Terminated,
            SupervisionEvent::ActorFailed(_, why) => Told::Failed(why.downcast_ref::<Fault>().is_some()),
            SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        };
        let over = told != Told::Started;
        let _ = state.hears.send(told);
        if over && state.restarts > 0 {
            state.restarts -= 1;
            state.start_system(&me).await?;
        }
        Ok(())
    }
}

impl ForeignState {
    async fn start_system(&mut self, me: &ActorRef<()>) -> Result<(), Fault> {
        let system = (self.start)().supervised_by(me.get_cell()).start().await?;
        let _ = self.runs.send(system.clone());
        self.system = Some(system);
        Ok(())
    }
}

type Heard = (ActorRef<()>, mpsc::UnboundedReceiver<Told>, mpsc::UnboundedReceiver<System>);

async fn foreign(restarts: usize, start: impl Fn() -> phone_opus::SystemBuilder + Send + Sync + 'static) -> Heard {
    let (hears, heard) = mpsc::unbounded_channel();
    let (runs, systems) = mpsc::unbounded_channel();
    let state = ForeignState { hears, runs, start: Arc::new(start), restarts, system: None };
    let (actor, _) = Actor::spawn(None, Foreign, state).await.expect("a foreign tree");
    (actor, heard, systems)
}

fn builder(rig: &Rig) -> phone_opus::SystemBuilder {
    rig.system().tool(echo())
}

async fn works(rig: &Rig, system: &System) {
    let session = system.open_session(Client::new("runtime")).await.expect("a session");
    session.call("echo", json!({"text": "x"})).await.expect("a reply");
    let outcome = session.consult(Consult::new(rig.answering("42"))).await.expect("an answer");
    assert_eq!(outcome.response, "42");
}

async fn started_again_and_again(rig: Rig) {
    let rig = Arc::new(rig);
    let building = Arc::clone(&rig);
    let (parent, mut heard, mut systems) = foreign(2, move || builder(&building)).await;
    for run in 0..3 {
        let system = systems.recv().await.expect("a system");
        assert_eq!(heard.recv().await, Some(Told::Started));
        works(&rig, &system).await;
        match run {
            // By its owner, by its supervisor, by its owner's last word.
            0 => assert!(matches!(system.shutdown(phone_opus::Grace::default()).await, Shutdown::InOrder)),
            1 => system.actor().stop(None),
            _ => parent.stop_children(None),
        }
        assert_eq!(heard.recv().await, Some(Told::Terminated));
    }
    parent.stop(None);
    parent.wait(None).await.expect("it ends");
    rig.expect_runs(3);
    drop(systems);
    let rig = Arc::into_inner(rig);
    if let Some(rig) = rig {
        rig.check_invariants().await;
    }
}

#[tokio::test]
async fn a_foreign_supervisor_hears_of_each_end_and_starts_the_system_again() {
    started_again_and_again(new_rig()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_foreign_supervisor_starts_the_system_again_on_several_threads_as_well() {
    started_again_and_again(new_rig()).await;
}

#[tokio::test]
async fn a_supervisor_is_told_why_a_system_gave_up() {
    let plan = FaultPlan::parse("jobs.supervise#*=panic", 0).expect("a plan");
    let rig = new_rig();
    let (state, program) = (rig.state_dir(), rig.program().to_owned());
    let (parent, mut heard, mut systems) = foreign(0, move || {
        let faults = Faults::arm(plan.clone(), Ends::Nothing, FaultCounters::Memory).expect("armed");
        System::builder().state_dir(state.clone()).runner(&program).faults(faults)
    })
    .await;
    let system = systems.recv().await.expect("a system");
    assert_eq!(heard.recv().await, Some(Told::Started));
    assert_eq!(heard.recv().await, Some(Told::Failed(true)));
    assert!(matches!(system.down().await, phone_opus::Down::Failed(_)));
    parent.stop(None);
    parent.wait(None).await.expect("it ends");
    rig.check_invariants().await;
}

#[tokio::test]
async fn a_supervisor_that_ends_takes_the_system_and_its_synchronous_consults_along() {
    let rig = new_rig();
    let building = rig.system();
    let building = std::sync::Mutex::new(Some(building));
    let start = move || building.lock().expect("whole").take().expect("once");
    let (parent, mut heard, mut systems) = foreign(0, start).await;
    let system = systems.recv().await.expect("a system");
    assert_eq!(heard.recv().await, Some(Told::Started));
    let session = system.open_session(Client::new("runtime")).await.expect("a session");
    let consulting = tokio::spawn({
        let (session, prompt) = (session.clone(), rig.hanging("begun"));
        async move { session.consult(Consult::new(prompt)).await }
    });
    rig.wait_for_sign("begun").await;
    parent.kill();
    let down = tokio::time::timeout(Duration::from_secs(10), system.down()).await.expect("it is down");
    assert!(matches!(down, phone_opus::Down::Failed(_)), "{down:?}");
    // Though handles of it are still held.
    until("the consult is over", async || {
        let jobs = rig.jobs().await;
        (jobs.len() == 1 && jobs[0].state == JobState::Cancelled).then_some(())
    })
    .await;
    let fault = consulting.await.expect("no panic").expect_err("no answer");
    assert!(fault.job_id().is_some(), "{fault:?}");
    rig.expect_no_agent_left().await;
    drop((session, system));
    rig.check_invariants().await;
}
