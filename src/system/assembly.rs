//! What a system's parts are made from, and what clients are offered.
//!
//! Owns: what follows from the settings before any part runs; which tools a system has, in which order, and what they and the
//! connections share. May not know: actors, but for where they are reached; whether the system will run.
//!
//! Invariant: nothing is opened, started or written here.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::handover::HostSnapshot;
use super::own_tools::{HealthTool, TelemetryTool};
use super::{INSTRUCTIONS, OwnTools, SystemBuilder};
use crate::actors::connections::Served;
use crate::actors::current::Current;
use crate::actors::exec::links::ExecLinks;
use crate::actors::health::HealthSource;
use crate::actors::jobs::host_life::{Adopts, HostLife};
use crate::actors::jobs::jobs_of;
use crate::actors::rollout::{RolloutHandle, RolloutMsg};
use crate::actors::root::Names;
use crate::actors::session::Gauges;
use crate::actors::supervision::slot::RestartPolicy;
use crate::agents::{AgentRegistry, Environment};
#[cfg(any(test, feature = "otlp"))]
use crate::base::ids::UnixMillis;
use crate::base::ids::{FleetJobId, HostId, InvocationId};
use crate::base::state_dir::StateDir;
use crate::base::trace::{TRACEPARENT_VARIABLE, TraceContext};
use crate::config::Config;
use crate::config::clients::{self, Clients};
use crate::failpoints::Faults;
use crate::fleet::Fleet;
#[cfg(any(test, feature = "fleet"))]
use crate::fleet::postgres::LazyFleet;
use crate::jobs::ConsultRequest;
use crate::jobs::client::JobsHandle;
use crate::jobs::fleet_runs::local;
use crate::jobs::hosts::HostKind;
use crate::jobs::store::StoreHandle;
use crate::places::Places;
use crate::protocol::catalog::{CallRoom, Catalog, Define};
use crate::protocol::session::SessionLimits;
use crate::protocol::wire::Identity;
use crate::rollout::{Carried, RolloutSetup, Status, Trigger};
use crate::runner::{RunnerCommand, nesting};
use crate::telemetry::collector::Collector;
#[cfg(any(test, feature = "otlp"))]
use crate::telemetry::otlp::OtlpCollector;
#[cfg(any(test, feature = "otlp"))]
use crate::telemetry::otlp::settings::OtlpSettings;
use crate::telemetry::traces::sampling::Sampler;
use crate::telemetry::traces::{Telling, Traces};
use crate::telemetry::{Record, RolloutRecord, TelemetryHandle};
use crate::tools::callers::{CallerContext, CallerOrigin, Callers};
use crate::tools::consult::{ConsultTool, Consults};
use crate::tools::placed::placing::Placing;
use crate::tools::placed::waiters::Waiters;
use crate::tools::placed::{FleetDesk, Home};
use crate::tools::readers::{CancelTool, JobTool, JobsTool};
use crate::tools::roots::RootsHandle;
use crate::tools::tasks::TaskDesk;
use crate::tools::{Target, Tool};
use crate::worker::{Isolation, WorkerPolicy};

/// Stands for a directory where there is none.
pub(super) const NOWHERE: &str = "/nonexistent";

/// What a system's parts are made from. A system that starts and the dry run of a hand-over are put together from the same.
pub(super) struct Assembly {
    pub(super) host: HostId,
    /// How others see that it lives.
    pub(super) life: HostLife,
    pub(super) kind: HostKind,
    pub(super) started: Instant,
    pub(super) names: Names,
    pub(super) config: Arc<Config>,
    pub(super) agents: AgentRegistry,
    /// What runners and candidates are run with.
    pub(super) environment: Environment,
    pub(super) state_dir: Option<StateDir>,
    /// Never opened where there is no state directory: such a system has no consults.
    pub(super) store: StoreHandle,
    /// Only where there is a state directory.
    pub(super) runner: Option<Arc<RunnerCommand>>,
    pub(super) default_cwd: Option<PathBuf>,
    pub(super) places: Places,
    pub(super) callers: Callers,
    pub(super) isolation: Isolation,
    pub(super) worker_policy: WorkerPolicy,
    pub(super) restart: Option<RestartPolicy>,
    pub(super) telemetry: TelemetryHandle,
    /// Where telemetry is written; `None` counts only.
    pub(super) log: Option<PathBuf>,
    pub(super) extra: Vec<Arc<dyn Tool>>,
    pub(super) offered: OwnTools,
    pub(super) session_limits: SessionLimits,
    pub(super) line_limit: usize,
    pub(super) faults: Faults,
    pub(super) setup: Option<Arc<RolloutSetup>>,
    pub(super) rollout: RolloutHandle,
    /// The queue that is shared with other machines; not reached before the first of its verbs.
    pub(super) fleet: Option<Arc<dyn Fleet>>,
    /// Whether it claims jobs of its fleet.
    pub(super) claims: bool,
    /// Which of its calls wait for jobs of the fleet.
    waiters: Waiters,
    /// Who takes traces and metrics.
    pub(super) collector: Option<Arc<dyn Collector>>,
    /// Connections to exec servers.
    pub(super) exec: ExecLinks,
    /// For health.
    pub(super) notices: Vec<String>,
}

impl Assembly {
    /// From what the embedding program said, and from where an earlier image stood.
    pub(super) fn new(said: SystemBuilder, earlier: Option<&HostSnapshot>) -> Self {
        let names = Names::default();
        let host = earlier.map_or_else(HostId::random, |snapshot| snapshot.host);
        let mut notices = said.notices;
        // Where agents run is known in two places: the configuration names exec servers, the program has machines of its own.
        let mut config = said.config;
        let agents = said.agents.configured(&config.customs, &config.programs(), &config.agent_env, &config.agents);
        config.agents.extend(agents.own_sites());
        let config = Arc::new(config);
        let environment = said.environment.unwrap_or_else(Environment::capture);
        let uptime = earlier.map_or(Duration::ZERO, |snapshot| snapshot.uptime + snapshot.age());
        let (telling, collector) = match collector_of(&config, &environment, host, uptime) {
            Ok(Some((sampler, collector))) => (Telling::Exporter(sampler), Some(collector)),
            Ok(None) => (Telling::Nobody, None),
            Err(why) => {
                tracing::warn!("traces and metrics are not exported: {why}");
                notices.push(format!("traces and metrics are not exported: {why}"));
                (Telling::Nobody, None)
            }
        };
        let telemetry = TelemetryHandle::with_traces(Traces::new(telling, above(&environment)));
        let store = StoreHandle::sqlite_with(dir_of(said.state_dir.as_ref()), said.faults.clone());
        let runner = said.state_dir.as_ref().zip(said.runner).map(|(dir, program)| {
            let command = RunnerCommand::new(
                program,
                dir.clone(),
                &config,
                agents.clone(),
                Some(environment.clone()),
                said.faults.variables(),
            );
            Arc::new(command.with_orphan_grace(said.orphan_grace))
        });
        let callers = Callers::new(CallerContext {
            cwd: said.default_cwd.clone(),
            environment: environment.clone(),
            config: Arc::clone(&config),
            nesting: nesting(&environment),
            key_withheld: false,
            origin: CallerOrigin::Host,
        });
        let now = Instant::now();
        let setup = said.rollout.map(Arc::new);
        let carried = earlier.map(|snapshot| (snapshot.rollout.clone(), snapshot.age()));
        Self {
            host,
            kind: said.kind,
            life: match said.orphan_grace {
                Duration::ZERO => {
                    HostLife::adopting(dir_of(said.state_dir.as_ref()), host, said.callers_grace, Adopts::WhatIsAsked)
                }
                grace => HostLife::new(dir_of(said.state_dir.as_ref()), host, grace),
            },
            exec: ExecLinks::new(names.exec.current(), names.root.current(), said.faults.clone()),
            fleet: said.fleet.or_else(|| fleet_of(&config)),
            claims: said.claims,
            waiters: Waiters::default(),
            started: now.checked_sub(uptime).unwrap_or(now),
            rollout: rollouts(setup.as_deref(), carried, &config, names.rollout.current(), &telemetry),
            places: Places {
                start: said.start_dir.or_else(|| said.default_cwd.clone()),
                home: environment.get("HOME").map(PathBuf::from).or_else(dirs::home_dir),
                workspaces: config.workspaces.clone(),
                state: said.state_dir.as_ref().map(|dir| dir.root().to_owned()),
                clone_tree: None,
            },
            log: said.state_dir.as_ref().filter(|_| said.telemetry_log).map(StateDir::telemetry),
            names,
            callers,
            config,
            agents,
            environment,
            state_dir: said.state_dir,
            store,
            runner,
            default_cwd: said.default_cwd,
            isolation: said.isolation,
            worker_policy: said.worker_policy,
            restart: said.restart,
            telemetry,
            extra: said.tools,
            offered: said.own_tools,
            session_limits: said.session_limits,
            line_limit: said.line_limit,
            faults: said.faults,
            setup,
            notices,
            collector,
        }
    }

    /// Where jobs are kept, or a place where nothing is.
    pub(super) fn dir(&self) -> StateDir {
        dir_of(self.state_dir.as_ref())
    }

    /// Whether the consult tools are offered.
    pub(super) fn consults(&self) -> bool {
        self.offered == OwnTools::All && self.runner.is_some()
    }

    /// What connections are served with, and what the embedding program asks itself.
    pub(super) fn served(&self) -> (Served, (Consults, HealthSource)) {
        let gauges = Arc::new(Gauges::default());
        let jobs = jobs_of(self.names.jobs.current(), self.store.clone());
        let health = self.health(&gauges, &jobs);
        let desk = self.desk(jobs);
        let tools = self.tools(&desk, &health);
        // They tell when to use `consult`; where it is not offered there is nothing to tell.
        let instructions = if self.consults() { INSTRUCTIONS } else { "" };
        let entries = tools
            .iter()
            .map(|tool| {
                let define: Define = {
                    let tool = Arc::clone(tool);
                    Arc::new(move || tool.definition())
                };
                // What tells how a stuck worker is, and ends what it does, must not wait behind its calls.
                let room = if tool.target() == Target::Host { CallRoom::Kept } else { CallRoom::Shared };
                (tool.name().to_owned(), room, define)
            })
            .collect();
        let served = Served {
            host: self.host,
            catalog: Arc::new(Catalog::new(entries).with_tasks(tools.iter().map(|tool| tool.tasks()))),
            tools: tools.into(),
            identity: Arc::new(Identity::new("phone-opus", env!("CARGO_PKG_VERSION"), instructions)),
            limits: SessionLimits { structured: clients::tells_structured, ..self.session_limits },
            line_limit: self.line_limit,
            workers: self.names.workers.current(),
            jobs: self.names.jobs.current(),
            telemetry: self.telemetry.clone(),
            gauges,
            faults: self.faults.clone(),
            clients: desk.clients.clone(),
            roots: desk.roots.clone(),
            callers: self.callers.clone(),
            tasks: self.consults().then(|| TaskDesk::new(desk.clone())),
            rollout: self.rollout.clone(),
        };
        (served, (desk, health))
    }

    fn health(&self, gauges: &Arc<Gauges>, jobs: &JobsHandle) -> HealthSource {
        HealthSource {
            gauges: Arc::clone(gauges),
            host: self.host,
            started: self.started,
            workers: self.names.workers.current(),
            jobs: jobs.clone(),
            telemetry: self.telemetry.clone(),
            config: Arc::clone(&self.config),
            faults: self.faults.clone(),
            rollout: self.rollout.clone(),
            notices: self.notices.clone().into(),
            callers: self.callers.clone(),
            life: self.life.clone(),
            exec: self.exec.clone(),
        }
    }

    fn desk(&self, jobs: JobsHandle) -> Consults {
        Consults {
            jobs,
            agents: self.agents.known(),
            clients: Clients::new(Arc::clone(&self.config), self.state_dir.as_ref().map(StateDir::clients)),
            config: Arc::clone(&self.config),
            default_cwd: self.default_cwd.clone(),
            places: Arc::new(self.places.clone()),
            roots: RootsHandle::default(),
            nesting: nesting(&self.environment),
            callers: self.callers.clone(),
            origin: CallerOrigin::Host,
            fleet: self.fleet_desk().map(Placing::new),
        }
    }

    /// This host's side of its fleet. Nothing is looked at for it.
    pub(super) fn fleet_desk(&self) -> Option<FleetDesk> {
        let (fleet, dir, runner) = (self.fleet.clone()?, self.state_dir.clone()?, self.runner.clone()?);
        let name = nix::unistd::gethostname().unwrap_or_default().into_string().unwrap_or_default();
        let name = if name.is_empty() { "localhost".to_owned() } else { name };
        let home = Home { name, dir, places: Arc::new(self.places.clone()) };
        let account = Arc::new(move |request: &ConsultRequest| runner.account_anywhere(request));
        let agents = self.agents.names().into_iter().map(str::to_owned);
        let (telemetry, host) = (self.telemetry.clone(), self.host);
        let traces = Arc::new(move |call: Option<InvocationId>, job: FleetJobId| {
            telemetry.traces().of_job(host, call, local(job), None)?.above()
        });
        Some(FleetDesk::new(fleet, home, account, agents, &self.config, self.waiters.clone(), traces))
    }

    fn tools(&self, desk: &Consults, health: &HealthSource) -> Vec<Arc<dyn Tool>> {
        let mut tools: Vec<Arc<dyn Tool>> = Vec::new();
        if self.consults() {
            tools.push(Arc::new(ConsultTool::new(desk.clone())));
            tools.push(Arc::new(JobTool::new(desk.clone())));
            tools.push(Arc::new(JobsTool::new(desk.clone())));
            tools.push(Arc::new(CancelTool::new(desk.clone())));
        }
        if self.offered == OwnTools::All {
            tools.push(Arc::new(HealthTool::new(health.clone())));
            tools.push(Arc::new(TelemetryTool::new(health.clone())));
        }
        tools.extend(self.extra.iter().cloned());
        tools
    }
}

/// The fleet that is configured.
#[cfg(any(test, feature = "fleet"))]
fn fleet_of(config: &Config) -> Option<Arc<dyn Fleet>> {
    let address = config.fleet.clone()?;
    Some(Arc::new(LazyFleet::new(address)))
}

/// None: a program without the feature refuses to be configured for one.
#[cfg(not(any(test, feature = "fleet")))]
fn fleet_of(_: &Config) -> Option<Arc<dyn Fleet>> {
    None
}

/// A collector, and which traces it gets.
type Collecting = (Sampler, Arc<dyn Collector>);

/// The collector that is configured.
#[cfg(any(test, feature = "otlp"))]
fn collector_of(
    config: &Config,
    environment: &Environment,
    host: HostId,
    uptime: Duration,
) -> Result<Option<Collecting>, String> {
    let Some(target) = &config.otlp else { return Ok(None) };
    let began = UnixMillis(UnixMillis::now().0 - i64::try_from(uptime.as_millis()).unwrap_or(0));
    let Some(settings) = OtlpSettings::read(target, environment, host)? else { return Ok(None) };
    Ok(Some((settings.sampler, Arc::new(OtlpCollector::new(settings, began)))))
}

/// None: a program without the feature refuses to be configured for one.
#[cfg(not(any(test, feature = "otlp")))]
fn collector_of(_: &Config, _: &Environment, _: HostId, _: Duration) -> Result<Option<Collecting>, String> {
    Ok(None)
}

/// What this host is part of as a whole: where an agent that we started has started it, that agent's run. Of a server that somebody else
/// started, what its environment says was true when that began, and is not of calls that come hours later.
fn above(environment: &Environment) -> Option<TraceContext> {
    nesting(environment).0?;
    TraceContext::parse(environment.get(TRACEPARENT_VARIABLE)?.to_str()?)
}

fn dir_of(state_dir: Option<&StateDir>) -> StateDir {
    state_dir.cloned().unwrap_or_else(|| StateDir::at(NOWHERE))
}

/// How rollouts are reached, and what is known about them before the first.
fn rollouts(
    setup: Option<&RolloutSetup>,
    carried: Option<(Carried, Duration)>,
    config: &Config,
    actor: Current<RolloutMsg>,
    telemetry: &TelemetryHandle,
) -> RolloutHandle {
    let mut status = Status::new(config.rollout, setup.map(|setup| &setup.launch));
    if let Some((carried, gap)) = carried {
        let by = Trigger::parse(&carried.by).unwrap_or(Trigger::Reload);
        status.taken_over(&carried, by);
        telemetry.record(Record::Rollout(RolloutRecord {
            outcome: "adopted",
            verdict: None,
            by: by.as_str(),
            took: Duration::ZERO,
            gap: Some(gap),
        }));
    }
    RolloutHandle::new(actor, setup, status)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    use super::*;
    use crate::protocol::wire::ToolReply;
    use crate::system::{Grace, Shutdown, System};
    use crate::tools::{Annotations, ToolCall, ToolDefinition, ToolFuture};

    struct Own;

    impl Tool for Own {
        fn name(&self) -> &str {
            "own"
        }

        fn definition(&self) -> ToolDefinition {
            ToolDefinition {
                name: "own".to_owned(),
                title: String::new(),
                description: String::new(),
                input_schema: serde_json::json!({"type": "object"}),
                annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
                meta: None,
            }
        }

        fn call(&self, _call: ToolCall) -> ToolFuture {
            Box::pin(async { Ok(ToolReply::text("done")) })
        }
    }

    /// What the handshake and the list say.
    async fn said(builder: SystemBuilder) -> (serde_json::Value, Vec<String>) {
        let system = builder.tool(Own).start().await.expect("it starts");
        let (client, server) = tokio::io::duplex(64 * 1024);
        let (reader, writer) = tokio::io::split(server);
        let serving = tokio::spawn({
            let system = system.clone();
            async move { system.serve(reader, writer).await }
        });
        let (from, mut to) = tokio::io::split(client);
        let requests = concat!(
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":2,"method":"tools/list"}"#,
            "\n"
        );
        to.write_all(requests.as_bytes()).await.expect("it is taken");
        let mut lines = BufReader::new(from).lines();
        let mut reply = async || -> serde_json::Value {
            let line = lines.next_line().await.expect("it answers").expect("a line");
            serde_json::from_str(&line).expect("JSON")
        };
        let (initialized, listed) = (reply().await, reply().await);
        let tools = listed["result"]["tools"].as_array().expect("a list");
        let names = tools.iter().filter_map(|tool| tool["name"].as_str().map(str::to_owned)).collect();
        assert!(matches!(system.shutdown(Grace::default()).await, Shutdown::InOrder));
        serving.await.expect("no panic").expect("it was served");
        (initialized["result"].clone(), names)
    }

    #[tokio::test]
    async fn an_embedder_may_offer_its_own_tools_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let whole = || System::builder().state_dir(StateDir::at(dir.path())).runner("phone-opus");
        let (all, names) = said(whole()).await;
        assert!(all["instructions"].as_str().is_some_and(|text| text.contains("consult")), "{all}");
        assert_eq!(names[..6], crate::tools::NAMES);
        assert_eq!(names[6..], ["own"]);
        let (none, names) = said(whole().own_tools(OwnTools::None)).await;
        assert_eq!(names, ["own"]);
        assert!(none.get("instructions").is_none(), "{none}");
        let (no_consults, names) = said(System::builder()).await;
        assert_eq!(names, ["health_snapshot", "telemetry_snapshot", "own"]);
        assert!(no_consults.get("instructions").is_none(), "{no_consults}");
    }
}
