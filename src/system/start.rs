//! How a system starts.
//!
//! Owns: the order in which a system's parts come to be, new or from a snapshot, and the dry run of it. May not know: how a
//! running system is used.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ractor::Actor;
use tokio::sync::watch;

use super::assembly::{Assembly, NOWHERE};
use super::{Inner, JobDesk, System, SystemBuilder, Ways};
use crate::actors::child;
use crate::actors::connections::{Arrived, Connections, Served, StreamKind};
use crate::actors::doors::DoorsArguments;
use crate::actors::doors::table::{DoorTable, Entrance};
use crate::actors::exporter::ExporterArguments;
use crate::actors::fleet::FleetArguments;
use crate::actors::jobs::JobsArguments;
use crate::actors::jobs::attachments::Attachments;
use crate::actors::jobs::board::{HostBoard, HostView};
use crate::actors::jobs::means::Means;
use crate::actors::kept::Kept;
use crate::actors::rollout::RolloutArguments;
use crate::actors::root::{Down, Root, RootArguments};
use crate::actors::session::{ClientOutput, Gauges};
use crate::actors::sessions::SessionsArguments;
use crate::actors::supervision::slot::RestartPolicy;
use crate::actors::workers::WorkersArguments;
use crate::actors::workers::backend::Backend;
use crate::actors::workers::process::ProcessBackend;
use crate::actors::workers::roster::Roster;
use crate::agents::Environment;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::UnixMillis;
use crate::base::image::StandIn;
use crate::base::state_dir::StateDir;
use crate::config::Config;
use crate::failpoints::{Broken, FaultPoint, Faults, Operation};
use crate::jobs::client::JobsHandle;
use crate::jobs::store::AcceptLimits;
use crate::rollout::{Fingerprint, Rollout, RolloutSetup};
use crate::system::handover::{self, HostSnapshot, SnapshotError};
use crate::telemetry::counters::Counters;
use crate::tools::Target;
use crate::tools::consult::Consults;
use crate::worker::settings::{DeskSettings, WorkerSettings, search_path, told_config};
use crate::worker::{Isolation, WorkerCommand, WorkerPolicy, wire};

impl SystemBuilder {
    /// A dry run of [`SystemBuilder::restore`]: makes every state machine again, and touches no descriptor, process or disk.
    ///
    /// # Errors
    ///
    /// Something in the snapshot makes no sense to this program.
    #[doc(hidden)]
    pub fn check(self, snapshot: &HostSnapshot) -> Result<(), SnapshotError> {
        let assembly = Assembly::new(self.dry(), Some(snapshot));
        let (served, _) = assembly.served();
        let connections = Connections::new(served);
        snapshot.try_connections(&connections)?;
        let standard = snapshot.session.iter().map(|_| (StreamKind::Standard, None));
        let sockets = connections.passed_sockets();
        let by_sockets = sockets.into_iter().map(|(number, _)| (StreamKind::Socket(None), Some(number)));
        for (kind, resumes) in standard.chain(by_sockets) {
            let sink: ClientOutput = Box::new(tokio::io::sink());
            let input = Box::new(tokio::io::empty());
            let opened =
                connections.open(Arrived { kind, input, sink, ended: None, context: None, desk: None, resumes });
            opened.map_err(|fault| SnapshotError::NoSystem { reason: fault.detail })?;
        }
        if let Some(counters) = &snapshot.telemetry {
            drop(Counters::restored(counters));
        }
        Ok(())
    }

    /// The same settings without what reaches outside: no directory, environment, plan of faults or rollout of the real ones.
    pub(super) fn dry(self) -> Self {
        Self {
            state_dir: self.state_dir.map(|_| StateDir::at(NOWHERE)),
            // Without a home in it the user's would be looked up.
            environment: Some(Environment::default().with("HOME", NOWHERE)),
            faults: Faults::none(),
            rollout: None,
            restore: None,
            notices: Vec::new(),
            parent: None,
            fleet: None,
            config: Config { fleet: None, otlp: None, ..self.config },
            ..self
        }
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
        // Everything a system is made of passes through it, and nothing of it is needed afterwards: it takes no part of the
        // caller's stack.
        Box::pin(self.begin()).await
    }

    async fn begin(mut self) -> Result<System, Fault> {
        let (restore, parent) = (self.restore.take(), self.parent.take());
        if restore.is_some() {
            let met = child::in_time(self.faults.meet(FaultPoint::RolloutAfterRestore, Operation::None)).await?;
            if let Some(Broken::Error(fault)) = met {
                return Err(*fault);
            }
        }
        let assembly = Assembly::new(self, restore.as_ref());
        let (served, (desk, health)) = assembly.served();
        let backend = assembly.backend(&served, &desk);
        let lasting = Lasting {
            gauges: Arc::clone(&served.gauges),
            connections: Connections::new(served),
            doors: DoorTable::default(),
            attachments: Attachments::default(),
        };
        if let Some(snapshot) = &restore {
            let means = assembly.means();
            let Lasting { gauges, connections, doors, attachments } = &lasting;
            let Assembly { telemetry, life, .. } = &assembly;
            snapshot.restore_into((connections, doors), attachments, gauges, telemetry, means.as_ref(), life);
        }
        let view = assembly.view(&lasting);
        let handing = Arc::new(assembly.handing(&lasting));
        let (table, supervisor) = (lasting.doors.clone(), assembly.names.doors.current());
        let entrance = assembly.entrance(&lasting);
        let (jobs, runner) = (assembly.names.jobs.current(), assembly.runner.clone());
        let (down_tx, down) = watch::channel(None);
        let arguments = assembly.arguments(&lasting, backend, restore, &desk, down_tx);
        let started = match parent {
            Some(parent) => Root::spawn_linked(None, Root, arguments, parent).await,
            None => Root::spawn(None, Root, arguments).await,
        };
        let (root, _) =
            started.map_err(|error| Fault::new(FaultCode::Internal, format!("the system did not start: {error}.")))?;
        let connections = lasting.connections;
        let doors = Ways { table, supervisor, entrance };
        let desk = JobDesk { consults: desk };
        let inner = Inner { root, connections, doors, desk, jobs, runner, health, view, handing, down };
        Ok(System { inner: Arc::new(inner) })
    }
}

/// What outlives every actor.
struct Lasting {
    gauges: Arc<Gauges>,
    connections: Connections,
    doors: DoorTable,
    attachments: Attachments,
}

/// What each part is started with.
impl Assembly {
    fn arguments(
        self,
        lasting: &Lasting,
        backend: Backend,
        restore: Option<HostSnapshot>,
        consults: &Consults,
        down: watch::Sender<Option<Down>>,
    ) -> Box<RootArguments> {
        let counted = restore.as_ref().and_then(|snapshot| snapshot.telemetry.as_ref());
        let counters = Kept::new(counted.map_or_else(Counters::default, Counters::restored));
        Box::new(RootArguments {
            exporter: self.exporter(&counters),
            counters,
            jobs: self.jobs(lasting),
            workers: WorkersArguments {
                policy: self.restart.unwrap_or_else(|| restarts(&self.config)),
                backend,
                roster: Arc::new(Roster::default()),
                past: restore.map(|snapshot| Arc::new(snapshot.workers)),
                telemetry: self.telemetry.clone(),
                faults: self.faults.clone(),
            },
            rollout: self.rollout(),
            sessions: SessionsArguments {
                connections: lasting.connections.clone(),
                workers: self.names.workers.current(),
                jobs: self.names.jobs.current(),
                faults: self.faults.clone(),
            },
            doors: DoorsArguments { doors: lasting.doors.clone(), entrance: self.entrance(lasting) },
            fleet: self.fleet_part(consults),
            exec: self.exec,
            store: self.store,
            connections: lasting.connections.clone(),
            telemetry: self.telemetry,
            log: self.log,
            names: self.names,
            faults: self.faults,
            down,
        })
    }

    /// What carries traces and metrics to the collector.
    fn exporter(&self, counters: &Arc<Kept<Counters>>) -> Option<ExporterArguments> {
        Some(ExporterArguments {
            telemetry: self.telemetry.clone(),
            store: self.store.clone(),
            has_jobs: self.state_dir.is_some(),
            collector: self.collector.clone()?,
            host: self.host,
            counters: Arc::clone(counters),
            faults: self.faults.clone(),
        })
    }

    fn backend(&self, served: &Served, desk: &Consults) -> Backend {
        match self.isolation.clone() {
            Isolation::InProcess => Backend::InProcess(self.faults.clone()),
            Isolation::Process(command) => {
                let jobs = desk.jobs.clone();
                let desk = self.consults().then_some(desk);
                Backend::Process(Arc::new(process_backend(command, self.worker_policy, jobs, served, desk)))
            }
        }
    }

    /// What doors open connections with.
    fn entrance(&self, lasting: &Lasting) -> Entrance {
        Entrance {
            connections: lasting.connections.clone(),
            sessions: self.names.sessions.current(),
            faults: self.faults.clone(),
        }
    }

    /// What jobs of an earlier image are taken over with.
    fn means(&self) -> Option<Means> {
        let runner = self.runner.clone()?;
        Some(Means { store: self.store.clone(), dir: self.dir(), runner })
    }

    fn jobs(&self, lasting: &Lasting) -> JobsArguments {
        JobsArguments {
            store: self.store.clone(),
            dir: self.dir(),
            runner: self.runner.clone(),
            callers: self.callers.clone(),
            limits: AcceptLimits { max_queued: self.config.max_queued },
            attachments: lasting.attachments.clone(),
            life: self.life.clone(),
            board: HostBoard::new(self.kind, self.began(), self.view(lasting), self.life.clone(), self.store.clone()),
            connections: lasting.connections.clone(),
            fleet: self.fleet_desk(),
            faults: self.faults.clone(),
            telemetry: self.telemetry.clone(),
        }
    }

    /// This host's part in its fleet.
    fn fleet_part(&self, consults: &Consults) -> Option<FleetArguments> {
        let desk = self.fleet_desk().filter(|_| self.claims)?;
        Some(FleetArguments {
            desk,
            consults: consults.clone(),
            jobs: consults.jobs.clone(),
            store: self.store.clone(),
            max_running: self.config.max_running,
            faults: self.faults.clone(),
        })
    }

    /// When this host began, over all its images.
    fn began(&self) -> UnixMillis {
        let uptime = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(0);
        UnixMillis(UnixMillis::now().0 - uptime)
    }

    /// Where it is seen how this host is.
    fn view(&self, lasting: &Lasting) -> HostView {
        HostView {
            connections: lasting.connections.clone(),
            attachments: lasting.attachments.clone(),
            rollout: self.rollout.clone(),
            workers: self.names.workers.current(),
            max_running: self.config.max_running,
        }
    }

    fn rollout(&self) -> RolloutArguments {
        let image = |setup: &Arc<RolloutSetup>| setup.image.clone().unwrap_or_else(|| setup.launch.path.clone());
        let running = self.setup.as_ref().and_then(|setup| Fingerprint::look(&image(setup)));
        let stable = self.setup.as_ref().is_some_and(|setup| setup.launch.stable);
        RolloutArguments {
            setup: self.setup.clone(),
            kept: Kept::new(Rollout::new(self.config.rollout, stable, running)),
            handle: self.rollout.clone(),
            environment: self.environment.clone(),
            database: self.state_dir.as_ref().map(StateDir::database),
            telemetry: self.telemetry.clone(),
        }
    }

    fn handing(&self, lasting: &Lasting) -> handover::HandOverDesk {
        handover::HandOverDesk {
            rollout: self.rollout.clone(),
            underway: handover::Underway::default(),
            host: self.host,
            started: self.started,
            dir: self.state_dir.clone(),
            config: Arc::clone(&self.config),
            connections: lasting.connections.clone(),
            doors: lasting.doors.clone(),
            callers: self.callers.clone(),
            luggage: std::sync::Mutex::default(),
            workers: self.names.workers.current(),
            jobs: self.names.jobs.current(),
            attachments: lasting.attachments.clone(),
            life: self.life.clone(),
            store: self.store.clone(),
            telemetry: self.telemetry.clone(),
            gauges: Arc::clone(&lasting.gauges),
            faults: self.faults.clone(),
        }
    }
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
    let fleet = desk.and_then(|desk| desk.fleet.clone());
    let desk = desk.map(|desk| DeskSettings {
        config: told_config(&desk.config),
        observed: desk.clients.file().map(Path::to_owned).filter(text),
        agents: desk.agents.clone(),
        default_cwd: desk.default_cwd.clone().filter(text),
        places: desk.places.in_text(),
        nesting: desk.nesting,
        search_path: search_path(&desk.callers.host().environment),
        fleet: desk.fleet.as_ref().map(|fleet| fleet.machine().to_owned()),
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
        fleet,
        callers: served.callers.clone(),
        gauges: Arc::clone(&served.gauges),
    }
}
