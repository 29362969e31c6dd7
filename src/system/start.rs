//! How a system starts.
//!
//! Owns: the order in which a system's parts come to be, new or from a snapshot, and the dry run of it. May not know: how a
//! running system is used.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::Actor;
use tokio::sync::watch;

use super::assembly::Assembly;
use super::{Inner, OwnTools, System, SystemBuilder};
use crate::actors::child;
use crate::actors::connections::{Connections, Door, Served};
use crate::actors::current::{Current, Naming};
use crate::actors::jobs::attachments::Attachments;
use crate::actors::jobs::means::Means;
use crate::actors::jobs::messages::JobsMsg;
use crate::actors::jobs::{JobsArguments, jobs_of};
use crate::actors::kept::Kept;
use crate::actors::rollout::{RolloutArguments, RolloutHandle, RolloutMsg};
use crate::actors::root::{Names, Root, RootArguments};
use crate::actors::session::ClientOutput;
use crate::actors::sessions::SessionsArguments;
use crate::actors::supervision::slot::RestartPolicy;
use crate::actors::workers::WorkersArguments;
use crate::actors::workers::backend::Backend;
use crate::actors::workers::messages::WorkersMsg;
use crate::actors::workers::process::ProcessBackend;
use crate::actors::workers::roster::Roster;
use crate::agents::Environment;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::HostId;
use crate::base::image::StandIn;
use crate::base::state_dir::StateDir;
use crate::config::Config;
use crate::failpoints::{Broken, FaultPoint, Faults, Operation};
use crate::jobs::client::JobsHandle;
use crate::jobs::store::{AcceptLimits, StoreHandle};
use crate::places::Places;
use crate::rollout::{Carried, Fingerprint, Rollout, RolloutSetup, Status, Trigger};
use crate::runner::{RunnerCommand, nesting};
use crate::system::handover::{self, HostSnapshot, SnapshotError};
use crate::telemetry::counters::Counters;
use crate::telemetry::{Record, RolloutRecord, TelemetryHandle};
use crate::tools::Target;
use crate::tools::consult::Consults;
use crate::worker::settings::{DeskSettings, WorkerSettings};
use crate::worker::{Isolation, WorkerCommand, WorkerPolicy, wire};

impl SystemBuilder {
    /// A dry run of [`SystemBuilder::restore`]: makes every state machine again, and touches no descriptor, process or disk.
    ///
    /// # Errors
    ///
    /// Something in the snapshot makes no sense to this program.
    pub fn check(self, snapshot: &HostSnapshot) -> Result<(), SnapshotError> {
        let workers = Naming::<WorkersMsg>::new();
        let jobs = Naming::<JobsMsg>::new();
        let host = snapshot.host;
        let telemetry = TelemetryHandle::new();
        let dir = StateDir::at("/nonexistent");
        let store = StoreHandle::sqlite(dir.clone());
        let environment = Environment::default();
        let runner = self.runner.map(|program| {
            let config = self.config.clone();
            Arc::new(RunnerCommand::new(program, dir.clone(), config, self.agents.clone(), None, Vec::new()))
        });
        let assembly = Assembly {
            host,
            started: Instant::now(),
            config: Arc::new(self.config),
            agents: self.agents,
            nesting: nesting(&environment),
            default_cwd: self.default_cwd,
            places: Places::default(),
            telemetry: telemetry.clone(),
            observed: None,
            extra: self.tools,
            offered: self.own_tools,
            consults: self.own_tools == OwnTools::All && self.state_dir.is_some() && runner.is_some(),
            session_limits: self.session_limits,
            line_limit: self.line_limit,
            faults: Faults::none(),
            rollout: rollouts(None, None, &Config::default(), Naming::new().current(), &telemetry),
            notices: Vec::new(),
        };
        let handle = jobs_of(jobs.current(), store.clone());
        let (served, _) = assembly.served(workers.current(), handle, jobs.current());
        let connections = Connections::new(served);
        connections.inherit(snapshot.next_session, snapshot.session.as_ref(), snapshot.catalog, snapshot.age())?;
        if snapshot.session.is_some() {
            let sink: ClientOutput = Box::new(tokio::io::sink());
            let opened = connections.open(Door::Standard, Box::new(tokio::io::empty()), sink);
            opened.map_err(|fault| SnapshotError::NoSystem { reason: fault.detail })?;
        }
        if let Some(counters) = &snapshot.telemetry {
            drop(Counters::restored(counters));
        }
        Ok(())
    }

    /// Starts the system. Nothing touches the disk before it is needed.
    ///
    /// # Errors
    ///
    /// A part did not start; whatever had started is stopped.
    ///
    /// # Cancel safety
    ///
    /// Not safe: a dropped future may leave a started tree behind that nobody stops.
    pub async fn start(self) -> Result<System, Fault> {
        let restore = self.restore;
        if restore.is_some() {
            let met = child::in_time(self.faults.meet(FaultPoint::RolloutAfterRestore, Operation::None)).await?;
            if let Some(Broken::Error(fault)) = met {
                return Err(*fault);
            }
        }
        let host = restore.as_ref().map_or_else(HostId::random, |snapshot| snapshot.host);
        let telemetry = TelemetryHandle::new();
        let log = self.state_dir.as_ref().filter(|_| self.telemetry_log).map(StateDir::telemetry);
        let config = Arc::new(self.config);
        let environment = self.environment.unwrap_or_else(Environment::capture);
        let trial = environment.clone();
        let environment = Some(environment);
        // A system without a directory has no consults; its store is never opened.
        let dir = self.state_dir.clone().unwrap_or_else(|| StateDir::at("/nonexistent"));
        let faults = self.faults;
        let store = StoreHandle::sqlite_with(dir.clone(), faults.clone());
        let runner = match (&self.state_dir, self.runner) {
            (Some(dir), Some(program)) => Some(Arc::new(RunnerCommand::new(
                program,
                dir.clone(),
                (*config).clone(),
                self.agents.clone(),
                environment.clone(),
                faults.variables(),
            ))),
            _ => None,
        };
        let offered = self.own_tools;
        let consults = offered == OwnTools::All && runner.is_some();
        let (down_tx, down) = watch::channel(None);
        let now = Instant::now();
        let uptime = restore.as_ref().map_or(Duration::ZERO, |snapshot| snapshot.uptime + snapshot.age());
        let started = now.checked_sub(uptime).unwrap_or(now);
        let names = Names::default();
        let setup = self.rollout.map(Arc::new);
        let carried = restore.as_ref().map(|snapshot| snapshot.rollout.clone());
        let rollout = rollouts(setup.as_deref(), carried, &config, names.rollout.current(), &telemetry);
        let assembly = Assembly {
            host,
            started,
            config: Arc::clone(&config),
            agents: self.agents.clone(),
            nesting: environment.as_ref().map_or((None, 0), nesting),
            places: Places {
                start: self.start_dir.or_else(|| self.default_cwd.clone()),
                home: environment.as_ref().and_then(|env| env.get("HOME")).map(PathBuf::from).or_else(dirs::home_dir),
                workspaces: config.workspaces.clone(),
                state: self.state_dir.as_ref().map(|dir| dir.root().to_owned()),
            },
            default_cwd: self.default_cwd,
            telemetry: telemetry.clone(),
            observed: self.state_dir.as_ref().map(StateDir::clients),
            extra: self.tools,
            offered,
            consults,
            session_limits: self.session_limits,
            line_limit: self.line_limit,
            faults: faults.clone(),
            rollout: rollout.clone(),
            notices: self.notices,
        };
        let handle = jobs_of(names.jobs.current(), store.clone());
        let worker = handle.clone();
        let (served, (desk, health)) = assembly.served(names.workers.current(), handle, names.jobs.current());
        let backend = match self.isolation {
            Isolation::InProcess => Backend::InProcess(faults.clone()),
            Isolation::Process(command) => {
                let desk = consults.then_some(&desk);
                Backend::Process(Arc::new(process_backend(command, self.worker_policy, worker, &served, desk)))
            }
        };
        let gauges = Arc::clone(&served.gauges);
        let connections = Connections::new(served);
        let attachments = Attachments::default();
        let mut counters = Counters::default();
        let mut past = None;
        if let Some(snapshot) = restore {
            let means = runner.clone().map(|runner| Means { store: store.clone(), dir: dir.clone(), runner });
            snapshot.restore_into(&connections, &attachments, &gauges, &telemetry, means.as_ref());
            if let Some(counted) = &snapshot.telemetry {
                counters = Counters::restored(counted);
            }
            past = Some(Arc::new(snapshot.workers));
        }
        let jobs = JobsArguments {
            store: store.clone(),
            dir,
            runner,
            limits: AcceptLimits { max_queued: config.max_queued },
            attachments: attachments.clone(),
            connections: connections.clone(),
            faults: faults.clone(),
            telemetry: telemetry.clone(),
        };
        let sessions = SessionsArguments {
            connections: connections.clone(),
            workers: names.workers.current(),
            jobs: names.jobs.current(),
            faults: faults.clone(),
        };
        let supervisor = names.sessions.current();
        let workers = WorkersArguments {
            policy: self.restart.unwrap_or_else(|| restarts(&config)),
            backend,
            roster: Arc::new(Roster::default()),
            past,
            telemetry: telemetry.clone(),
            faults: faults.clone(),
        };
        let image = |setup: &Arc<RolloutSetup>| setup.image.clone().unwrap_or_else(|| setup.launch.path.clone());
        let running = setup.as_ref().and_then(|setup| Fingerprint::look(&image(setup)));
        let stable = setup.as_ref().is_some_and(|setup| setup.launch.stable);
        let rollout = RolloutArguments {
            setup,
            kept: Kept::new(Rollout::new(config.rollout, stable, running)),
            handle: rollout,
            environment: trial,
            database: self.state_dir.as_ref().map(StateDir::database),
            telemetry: telemetry.clone(),
        };
        let handing = handover::HandOverDesk {
            rollout: rollout.handle.clone(),
            underway: handover::Underway::default(),
            host,
            started,
            dir: self.state_dir.clone(),
            config: Arc::clone(&config),
            connections: connections.clone(),
            workers: names.workers.current(),
            jobs: names.jobs.current(),
            attachments,
            store: store.clone(),
            telemetry: telemetry.clone(),
            gauges,
            faults: faults.clone(),
        };
        let arguments = RootArguments {
            counters: Kept::new(counters),
            store,
            connections: connections.clone(),
            jobs,
            workers,
            rollout,
            sessions,
            telemetry,
            log,
            names,
            faults,
            down: down_tx,
        };
        let (root, _) = Root::spawn(None, Root, arguments)
            .await
            .map_err(|error| Fault::new(FaultCode::Internal, format!("the system did not start: {error}.")))?;
        Ok(System {
            inner: Arc::new(Inner {
                root,
                connections,
                sessions: supervisor,
                desk,
                health,
                handing: Arc::new(handing),
                down,
            }),
        })
    }
}

/// How rollouts are reached, and what is known about them before the first.
fn rollouts(
    setup: Option<&RolloutSetup>,
    carried: Option<Carried>,
    config: &Config,
    actor: Current<RolloutMsg>,
    telemetry: &TelemetryHandle,
) -> RolloutHandle {
    let mut status = Status::new(config.rollout, setup.map(|setup| &setup.launch));
    if let Some(carried) = carried {
        let by = Trigger::parse(&carried.by).unwrap_or(Trigger::Reload);
        status.taken_over(&carried, by);
        telemetry.record(Record::Rollout(RolloutRecord {
            outcome: "adopted",
            verdict: None,
            by: by.as_str(),
            took: Duration::ZERO,
        }));
    }
    RolloutHandle::new(actor, setup, status)
}

/// When workers are started again, as configured.
fn restarts(config: &Config) -> RestartPolicy {
    RestartPolicy {
        intensity: config.restart_intensity,
        period: config.restart_period,
        backoff: config.restart_backoff,
        ..RestartPolicy::default()
    }
}

/// What this system's worker processes are started with and told. They run the same tools under the same numbers.
fn process_backend(
    command: WorkerCommand,
    policy: WorkerPolicy,
    jobs: JobsHandle,
    served: &Served,
    desk: Option<&Consults>,
) -> ProcessBackend {
    // What is no text cannot be sent, and a consult could not run there either.
    let text = |path: &PathBuf| path.to_str().is_some();
    let desk = desk.map(|desk| DeskSettings {
        config: Config {
            claude_bin: desk.config.claude_bin.clone().filter(text),
            workspaces: Vec::new(),
            ..Config::clone(&desk.config)
        },
        observed: desk.clients.file().map(Path::to_owned).filter(text),
        agents: desk.agents.iter().map(str::to_owned).collect(),
        default_cwd: desk.default_cwd.clone().filter(text),
        places: desk.places.in_text(),
        nesting: desk.nesting,
    });
    ProcessBackend {
        command,
        stand_in: StandIn::default(),
        variables: served.faults.variables(),
        policy,
        settings: WorkerSettings { host: served.host, line_limit: wire::line_limit(served.line_limit), desk },
        tools: served
            .tools
            .iter()
            .filter(|tool| tool.target() == Target::Worker)
            .map(|tool| tool.name().to_owned())
            .collect(),
        jobs,
        roots: served.roots.clone(),
        gauges: Arc::clone(&served.gauges),
    }
}
