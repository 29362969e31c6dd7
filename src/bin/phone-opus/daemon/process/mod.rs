//! `daemon run`: the process that serves.
//!
//! Owns: putting a daemon together in the order of its start, and the loop that tells its life what happens and does what follows.
//! May not know: what follows from what ([`Life`]), how clients are served (the system).
//!
//! ```text
//! alone ─▶ settings ─▶ lock ─▶ system ─▶ socket ─▶ door ─▶ record ─▶ "ready" ─▶ loop ─▶ end
//! ```
//!
//! Invariants: (1) nothing is made in a state directory of another user; (2) who cannot start says why where it is waited for, and
//! leaves nothing behind; (3) every step of a stop is done by [`Life`]'s word, in its order.

mod answers;
mod keys;
mod passed;
mod signals;
mod words;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phone_opus::internals::actors::callers::HostSide;
use phone_opus::internals::actors::doors::desk::ControlReply;
use phone_opus::internals::actors::doors::handle::{DoorHandle, ListenOptions};
use phone_opus::internals::actors::jobs::room::Beginning;
use phone_opus::internals::base::descriptors::PassedPipe;
use phone_opus::internals::base::fault::Fault;
use phone_opus::internals::base::ids::DaemonId;
use phone_opus::internals::base::signals::let_through;
use phone_opus::internals::base::state_dir::{StateDir, StateDirError};
use phone_opus::internals::daemon::control::{self, About, ControlRefusal};
use phone_opus::internals::daemon::idle::IDLE;
use phone_opus::internals::daemon::life::{
    Farewell, LOOK_EVERY, Life, LifeEffect, LifeEvent, LifeVerb, Sighting, SocketOwner,
};
use phone_opus::internals::daemon::listener::{ListenError, Listener, SocketPlace};
use phone_opus::internals::daemon::lock::DaemonLock;
use phone_opus::internals::daemon::paths::{self, PathError};
use phone_opus::internals::daemon::record::{DaemonRecord, DaemonRecordError};
use phone_opus::internals::daemon::start::{READY, TAKEN};
use phone_opus::internals::failpoints::{FaultPoint, Faults, Operation};
use phone_opus::internals::jobs::host_lock::ORPHAN_GRACE;
use phone_opus::internals::jobs::hosts::HostKind;
use phone_opus::internals::jobs::lock::LockError;
use phone_opus::internals::rollout::Trigger;
use phone_opus::internals::system::handover::{HostSnapshot, Luggage, NewImage, Restore};
use phone_opus::internals::system::{Grace, Shutdown, System};
use rustix::io::Errno;
use sd_notify::NotifyState;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::keys::Keys;
use self::passed::{PassedDaemon, Trunk};
use self::signals::Signals;
use self::words::{begin_environment, named, words};
use super::asking::overriding;
use super::desk::{Desk, Request};
use super::detach::Ready;
use super::page::{Page, PassedPage};
use super::{activation, detach, place};
use crate::begin::{self, Image, Kind};
use crate::cli::DaemonRunOptions;
use crate::logging;
use crate::output::say;
use crate::settings::{SetupError, chain, prepare_daemon, prepare_daemon_after, rollout_with, runtime, say_never_met};

/// How long a runtime's own threads may take to end; what is stuck in one does not keep the process.
const RUNTIME_END: Duration = Duration::from_millis(100);

/// How long a part may take to say how it is. One that does not answer counts as busy.
const ASK: Duration = Duration::from_secs(2);

/// Why a daemon does not serve.
#[derive(Debug, thiserror::Error)]
enum NotServing {
    /// A setting cannot be used.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// It would be another user's.
    #[error("the state directory: failed to {}", chain(.0))]
    StateDir(#[from] StateDirError),
    /// The lock cannot be used.
    #[error("failed to {}", chain(.0))]
    Lock(#[from] LockError),
    /// Another daemon lives.
    #[error("a daemon serves {} already", .0.display())]
    Taken(PathBuf),
    /// The socket cannot be had.
    #[error("failed to {}", chain(.0))]
    Path(#[from] PathError),
    /// The socket cannot be had.
    #[error("failed to {}", chain(.0))]
    Listen(#[from] ListenError),
    /// Nobody would find it.
    #[error("failed to {}", chain(.0))]
    Record(#[from] DaemonRecordError),
    /// The system did not start, or failed.
    #[error("{0}")]
    System(String),
}

/// Serves until it is told to stop, or until nobody needs it.
pub(crate) fn run(options: &DaemonRunOptions) -> ExitCode {
    if options.detach {
        return detach::start_again();
    }
    let is_next = options.restore.is_some();
    // What an image before this one had comes with its snapshot, which wins over what a service manager passed on to that one.
    let numbers = if is_next { Vec::new() } else { activation::numbers() };
    let mut ready = if is_next { Ready::nobody() } else { detach::leave(options.detached, options.ready_fd, &numbers) };
    let activated = if is_next { None } else { activation::socket(&numbers) };
    begin::begin(Kind::Server, if is_next { Image::Next } else { Image::First });
    if options.detached {
        // Its standard error is a file that is read when something went wrong.
        logging::start_runner();
    } else {
        logging::start();
    }
    let (activated, served) = match activated {
        Some(Ok(listener)) => {
            let again = listener.try_clone().ok();
            (again, serve(options, Some(listener), &mut ready))
        }
        Some(Err(error)) => (None, Err(error.into())),
        None => (None, serve(options, None, &mut ready)),
    };
    match (served, activated) {
        (Ok(code), _) => code,
        (Err(error), activated) => {
            let why = error.to_string();
            say(&format!("phone-opus: {why}"));
            ready.say(if matches!(error, NotServing::Taken(_)) { TAKEN } else { &why });
            match (activated, error) {
                (Some(listener), _) => activation::end_slowly(&listener, &why),
                (None, NotServing::Setup(_) | NotServing::Path(_)) => ExitCode::from(2),
                (None, _) => ExitCode::FAILURE,
            }
        }
    }
}

fn serve(options: &DaemonRunOptions, passed: Option<Listener>, ready: &mut Ready) -> Result<ExitCode, NotServing> {
    let (dir, asked) = place(&options.place)?;
    dir.refuse_foreign_owner()?;
    let mut passed_on = options
        .restore
        .as_deref()
        .map(|word| HostSnapshot::take(&Restore::parse(word)))
        .transpose()
        .map_err(SetupError::from)?;
    let mut prepared = match &passed_on {
        Some(before) => prepare_daemon_after(before, &dir, &options.serves.overrides)?,
        None => prepare_daemon(dir.clone(), &options.serves.overrides)?,
    };
    if let Some(isolation) = options.serves.isolation {
        prepared.config.isolation = isolation;
    }
    prepared.environment = prepared.environment.without(activation::is_ours);
    let words = words(options, &dir, asked.as_ref());
    let checked_as = ["--state-dir".into(), dir.root().as_os_str().to_owned()];
    let launch = rollout_with(checked_as.into_iter().chain(overriding(&options.serves)).collect());
    // What is started from here on begins nowhere, and keeps no directory busy.
    std::env::set_current_dir("/")
        .map_err(|error| NotServing::System(format!("failed to leave the directory: {error}.")))?;
    let (lock, earlier) = alone(&dir, passed_on.as_mut())?;
    let page = earlier.as_ref().and_then(|earlier| earlier.page.clone());
    let page = page.zip(passed_on.as_mut()).and_then(|(page, before)| {
        let port = before.take_file(&page.port)?;
        Some((page, port))
    });
    let runtime = runtime()?;
    let code = runtime.block_on(async {
        let signals = Signals::new()?;
        if passed_on.is_some() {
            tracing::info!("going on where another image of the program stood");
            // Held since before this image began.
            let_through();
        }
        let faults = prepared.faults.clone();
        let config = Arc::new(prepared.config.clone());
        let side = Arc::new(HostSide::new(Arc::clone(&config), prepared.environment.clone(), prepared.agents()));
        let mut builder =
            prepared.system().kind(HostKind::Daemon).orphan_grace(ORPHAN_GRACE).default_cwd(None).start_dir(None);
        let mut next = None;
        if let Some(setup) = launch {
            let environment = begin_environment();
            next = Some(NewImage::new(setup.launch.path.clone(), named(&words), environment));
            builder = builder.rollout(setup);
        }
        if let Some(snapshot) = passed_on {
            builder = builder.restore(snapshot);
        }
        let system = builder.start().await.map_err(|fault| NotServing::System(fault.to_string()))?;
        let place = Place { dir, asked, passed, lock, earlier, page };
        let daemon = Daemon::open(options, place, &system, side, faults.clone());
        let code = match daemon {
            Ok(mut daemon) => {
                if let Some(next) = next {
                    system.carry(Arc::clone(&daemon.trunk) as Arc<dyn Luggage>);
                    system.hand_over_in_place(next);
                }
                ready.say(READY);
                activation::tell(&[NotifyState::Ready]);
                daemon.live(signals).await
            }
            Err(error) => {
                let _ = system.shutdown(Grace::default()).await;
                return Err(error);
            }
        };
        say_never_met(&faults);
        Ok(code)
    });
    runtime.shutdown_timeout(RUNTIME_END);
    code
}

/// Takes the lock, or goes on with that of the image before, and what that one said of itself.
fn alone(dir: &StateDir, before: Option<&mut HostSnapshot>) -> Result<(DaemonLock, Option<PassedDaemon>), NotServing> {
    let earlier = before.as_ref().and_then(|before| before.luggage()).and_then(PassedDaemon::read);
    let passed = before.zip(earlier.as_ref()).and_then(|(before, earlier)| before.take_file(&earlier.lock));
    let lock = match passed.and_then(|lock| DaemonLock::passed_on(dir, lock)) {
        Some(lock) => lock,
        None => DaemonLock::try_acquire(dir)?.ok_or_else(|| NotServing::Taken(dir.root().to_owned()))?,
    };
    Ok((lock, earlier))
}

/// Listens at the first place that can have a socket, where the fault plan lets it.
fn listen(candidates: &[PathBuf], faults: &Faults) -> Result<Listener, ListenError> {
    Listener::bind_first_where(candidates, || match faults.meet_blocking(FaultPoint::UnixBind, Operation::None) {
        None => Ok(()),
        Some(_) => Err(Errno::OPNOTSUPP),
    })
}

/// Where a daemon is, and what it was given.
struct Place {
    dir: StateDir,
    asked: Option<PathBuf>,
    passed: Option<Listener>,
    lock: DaemonLock,
    earlier: Option<PassedDaemon>,
    /// The page of the image before, and its port.
    page: Option<(PassedPage, OwnedFd)>,
}

/// A daemon that serves.
struct Daemon {
    system: System,
    dir: StateDir,
    about: About,
    /// Where its socket may lie, in this order.
    candidates: Vec<PathBuf>,
    owner: SocketOwner,
    place: SocketPlace,
    door: DoorHandle,
    lock: Option<DaemonLock>,
    life: Life,
    idle: Option<Duration>,
    /// Whose unit of a service manager it is in, where that is known.
    scope: Option<String>,
    began: Instant,
    requests: mpsc::Receiver<Request>,
    connections: watch::Receiver<usize>,
    side: Arc<HostSide>,
    faults: Faults,
    keys: Keys,
    trunk: Arc<Trunk>,
    page: Page,
    /// Answers that are being made.
    answering: JoinSet<()>,
}

impl Daemon {
    /// Listens, opens the door and writes the record.
    fn open(
        options: &DaemonRunOptions,
        Place { dir, asked, passed, lock, earlier, page: earlier_page }: Place,
        system: &System,
        side: Arc<HostSide>,
        faults: Faults,
    ) -> Result<Self, NotServing> {
        let generation = earlier.as_ref().map_or_else(DaemonId::random, |earlier| earlier.generation);
        let about = About { generation, pid: std::process::id() };
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let uid = rustix::process::geteuid().as_raw();
        let candidates = paths::candidates(&dir, asked.as_deref(), runtime.as_deref(), uid)?;
        let (desk, requests) = Desk::new(about.clone());
        let options_of_door = ListenOptions { desk: Arc::new(desk), context: side.base() };
        let failed = |fault: Fault| NotServing::System(fault.to_string());
        let mut again = system.listen_again(&options_of_door).map_err(failed)?;
        let (owner, place, door) = match (again.pop(), passed) {
            (Some((door, Some(place))), _) => (SocketOwner::Ours, place, door),
            (Some((door, None)), _) => {
                let place = earlier.as_ref().map(|earlier| earlier.place.clone());
                let place = place.unwrap_or(SocketPlace { path: dir.daemon_socket(), device: 0, inode: 0 });
                (SocketOwner::Activator, place, door)
            }
            (None, Some(listener)) => {
                let place = listener.place().clone();
                // Its name is not ours.
                (
                    SocketOwner::Activator,
                    place,
                    system.listen_at(listener.into_socket(), options_of_door).map_err(failed)?,
                )
            }
            (None, None) => {
                let listener = listen(&candidates, &faults)?;
                (
                    SocketOwner::Ours,
                    listener.place().clone(),
                    system.listen_at(listener, options_of_door).map_err(failed)?,
                )
            }
        };
        let is_activated = owner == SocketOwner::Activator;
        let idle = options.serves.idle_s.or((options.started_by_client || is_activated).then_some(IDLE));
        let now = Instant::now();
        let life = Life::new(idle, owner, options.serves.look_s.unwrap_or(LOOK_EVERY), now);
        let connections = door.connections();
        let paused = earlier.is_some_and(|earlier| earlier.paused);
        let lock_passed = PassedPipe::of(&lock)
            .map_err(|error| NotServing::System(format!("failed to look at the lock: {error}.")))?;
        let trunk = PassedDaemon {
            generation,
            lock: lock_passed,
            place: place.clone(),
            activated: is_activated,
            paused,
            page: None,
        };
        let mut page = Page::new(dir.clone());
        if let Some((passed, port)) = earlier_page {
            page.go_on(passed, port);
        }
        let mut daemon = Self {
            system: system.clone(),
            dir,
            about,
            candidates,
            owner,
            place,
            door,
            lock: Some(lock),
            life,
            idle,
            scope: options.scope.clone().or_else(|| is_activated.then(|| "a service manager's".to_owned())),
            began: now,
            requests,
            connections,
            side,
            faults,
            keys: Keys::default(),
            trunk: Arc::new(Trunk(Mutex::new(Some(trunk)), page.seen())),
            page,
            answering: JoinSet::new(),
        };
        if let Err(error) = daemon.write_record() {
            daemon.unlink();
            return Err(error.into());
        }
        if paused {
            daemon.life.step(LifeEvent::Asked { verb: LifeVerb::Pause, others: 0 }, now, &mut Vec::new());
            daemon.system.begin_jobs(Beginning::Paused);
        }
        Ok(daemon)
    }

    fn write_record(&self) -> Result<(), DaemonRecordError> {
        DaemonRecord::of_this(self.about.generation, &self.place).write(&self.dir)
    }

    /// Takes the socket's name away, where it is ours.
    fn unlink(&self) {
        if self.owner == SocketOwner::Ours {
            self.place.unlink();
        }
    }

    /// Lives until its end.
    async fn live(&mut self, mut signals: Signals) -> ExitCode {
        let sign_of_life = activation::sign_of_life();
        let mut signs = sign_of_life.map(tokio::time::interval);
        let system = self.system.clone();
        loop {
            let wake = self.life.wakes_at().map(tokio::time::Instant::from_std);
            let (event, reply) = tokio::select! {
                Some(request) = self.requests.recv() => match self.take(request).await {
                    Some((event, reply)) => (event, Some(reply)),
                    None => continue,
                },
                Ok(()) = self.connections.changed() => {
                    (LifeEvent::Connections(*self.connections.borrow_and_update()), None)
                }
                () = Signals::end(&mut signals.ends) => (LifeEvent::EndSignalled, None),
                Some(()) = signals.look.recv() => {
                    let now = NotifyState::monotonic_usec_now().ok();
                    activation::tell(&[NotifyState::Reloading].into_iter().chain(now).collect::<Vec<_>>());
                    (LifeEvent::LookSignalled, None)
                }
                Some(()) = signals.reload.recv() => {
                    self.system.rollouts().ask(Trigger::Signal);
                    continue;
                }
                () = until(wake), if wake.is_some() => (LifeEvent::Due, None),
                () = sign(&mut signs), if signs.is_some() => {
                    activation::tell(&[NotifyState::Watchdog]);
                    continue;
                }
                Some(_) = self.answering.join_next() => continue,
                Some(_) = self.page.ended() => continue,
                _ = system.down() => {
                    self.close_door(Farewell::Restarting).await;
                    self.forget();
                    break;
                }
            };
            if event == LifeEvent::LookSignalled {
                activation::tell(&[NotifyState::Ready]);
            }
            if self.handle(event, reply).await == Goes::End {
                break;
            }
        }
        self.page.close().await;
        self.system.leave_jobs().await;
        match self.system.shutdown(Grace::default()).await {
            Shutdown::AfterFault(fault) => {
                say(&format!("phone-opus: {fault}"));
                ExitCode::FAILURE
            }
            _ => ExitCode::SUCCESS,
        }
    }

    /// Takes a request; what of it is to be decided, and who is to be told.
    async fn take(&mut self, request: Request) -> Option<(LifeEvent, (LifeVerb, ControlReply))> {
        match request {
            Request::Decide(verb, reply) => {
                let others = self.jobs().await;
                Some((LifeEvent::Asked { verb, others }, (verb, reply)))
            }
            Request::Status(reply) => {
                self.status(reply);
                None
            }
            Request::Page(ask, reply) => {
                self.page.asked(ask, reply).await;
                None
            }
            Request::Open(session, opening, reply) => {
                self.open_session(session, *opening, reply);
                None
            }
        }
    }

    /// Decides, and does what follows, and what follows from that.
    async fn handle(&mut self, event: LifeEvent, reply: Option<(LifeVerb, ControlReply)>) -> Goes {
        let (mut events, mut reply) = (VecDeque::from([event]), reply);
        let mut effects = Vec::new();
        while let Some(event) = events.pop_front() {
            self.life.step(event, Instant::now(), &mut effects);
            for effect in effects.drain(..) {
                match effect {
                    LifeEffect::Confirm => {
                        if let Some((verb, reply)) = reply.take() {
                            reply.answer(control::done(verb.as_str()));
                        }
                    }
                    LifeEffect::Refuse(why) => {
                        if let Some((verb, reply)) = reply.take() {
                            reply.refuse(&ControlRefusal::new(verb.as_str(), why));
                        }
                    }
                    LifeEffect::Look => events.push_back(self.look()),
                    LifeEffect::CountJobs => events.push_back(LifeEvent::Jobs(self.jobs().await)),
                    LifeEffect::CountCalls => {
                        let calls = self.system.health().gauges.in_flight.load(Ordering::Relaxed);
                        events.push_back(LifeEvent::InFlight(calls));
                    }
                    LifeEffect::MakeSocketAgain => self.make_socket_again(),
                    LifeEffect::WriteRecordAgain => self.write_record_again(),
                    LifeEffect::LookForVersion => self.system.rollouts().ask(Trigger::Reload),
                    LifeEffect::PauseJobs => {
                        self.trunk.change(|passed| passed.paused = true);
                        self.system.begin_jobs(Beginning::Paused);
                    }
                    LifeEffect::ResumeJobs => {
                        self.trunk.change(|passed| passed.paused = false);
                        self.system.begin_jobs(Beginning::AsUsual);
                    }
                    LifeEffect::RefuseConsults => self.system.begin_jobs(Beginning::Refused),
                    LifeEffect::CloseDoor(farewell) => self.close_door(farewell).await,
                    LifeEffect::ForgetRecord => self.forget(),
                    LifeEffect::TellStopped => self.system.say_beside(&control::stopped()),
                    LifeEffect::ReleaseLock => {
                        self.trunk.empty();
                        drop(self.lock.take());
                    }
                    LifeEffect::End => return Goes::End,
                }
            }
        }
        Goes::On
    }

    /// Jobs that are not over; one where nobody says.
    async fn jobs(&self) -> usize {
        tokio::time::timeout(ASK, self.system.jobs().attached()).await.unwrap_or(1)
    }

    fn look(&self) -> LifeEvent {
        let seen = |is_there| if is_there { Sighting::There } else { Sighting::Gone };
        let record = DaemonRecord::read(&self.dir).is_ok_and(|found| {
            found.is_some_and(|found| found.generation == self.about.generation && found.socket() == self.place.path)
        });
        LifeEvent::Looked { socket: seen(self.place.is_there()), record: seen(record) }
    }

    fn make_socket_again(&mut self) {
        tracing::warn!(path = %self.place.path.display(), "the daemon's socket is gone, and is made again");
        match listen(&self.candidates, &self.faults) {
            Ok(listener) => {
                self.place = listener.place().clone();
                self.trunk.change(|passed| passed.place = listener.place().clone());
                self.door.replace(listener);
                self.write_record_again();
            }
            // Whoever is connected is served on; it is tried again.
            Err(error) => tracing::error!(error = %chain(&error), "the daemon's socket cannot be made again yet"),
        }
    }

    fn write_record_again(&self) {
        if let Err(error) = self
            .dir
            .create()
            .map_err(|error| chain(&error))
            .and_then(|()| self.write_record().map_err(|error| chain(&error)))
        {
            tracing::error!(error, "the daemon's record cannot be written yet");
        }
    }

    async fn close_door(&mut self, farewell: Farewell) {
        activation::tell(&[NotifyState::Stopping]);
        self.unlink();
        let line = match farewell {
            Farewell::Restarting => control::restarting(),
            Farewell::Stopped => control::stopped(),
        };
        self.door.close_with(line).await;
    }

    fn forget(&self) {
        DaemonRecord::forget(self.about.generation, &self.dir);
    }
}

/// Whether it goes on.
#[derive(PartialEq, Eq)]
enum Goes {
    On,
    End,
}

async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => never().await,
    }
}

async fn sign(signs: &mut Option<tokio::time::Interval>) {
    match signs {
        Some(signs) => drop(signs.tick().await),
        None => never().await,
    }
}

async fn never() {
    std::future::pending::<Infallible>().await;
}
