//! An agent's machine, when that is another one: it is reached, asked about the directory, and let go of.
//!
//! Owns: what has to be true there before anything is started, and until when something may live there once it is lost. May not know:
//! what an agent is run with, what its output means.
//!
//! ```text
//! reached ──▶ `elsewhere` in the store ──▶ directory asked about ──▶ program asked ──▶ agent started ──▶ let go of
//!                                                                                       └── lost ──▶ held until it is over there
//! ```
//!
//! Invariants: (1) nothing is started there before the store says how long it may live there without us, so that a sweep settles no
//! job too early (L7); (2) a directory is judged as its machine resolves it, and none is entered that the agent's `workspaces` do not
//! name; (3) what was lost is over there before this runner lets its job end.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::join_all;

use super::Runner;
use super::patience::insist;
use super::waking::LOOK_EVERY;
use crate::agents::{Agent, AgentSite, Environment, There};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::UnixMillis;
use crate::exec::backend::{EnvironmentInfo, ExecBackend, ExecFiles, FilesError};
use crate::exec::machine::{Machine, OwnMachine};
use crate::exec::remote::{Connector, NoStreams, RemoteExec, RemoteOptions, Retry, connector};
use crate::exec::server::core_of;
use crate::exec::target::AfterACut;
use crate::exec::{ExecError, ExecTarget};
use crate::failpoints::Faults;
use crate::jobs::lock::JobLock;
use crate::places::{self, PlaceRefused};

/// How long a machine may take to be reached and to say what it is like. A login over `ssh` takes seconds.
pub(super) const REACH: Duration = Duration::from_secs(45);

/// How long a socket is tried before it is said that nobody answers there.
const CONNECT: Duration = Duration::from_secs(8);

/// How long it may take to say what is at a path.
const LOOK: Duration = Duration::from_secs(20);

/// How long it may take to hear that we are done with it.
const LEAVE: Duration = Duration::from_secs(3);

/// How long a server that hears nothing on a socket takes its peer to be there.
const SILENCE: Duration = Duration::from_secs(45);

/// How long a server that does not say it keeps what runs while nobody is connected; that of Codex.
const LEASE_UNSAID: Duration = Duration::from_secs(80);

/// For the end itself: KILL, and a group that empties.
const MARGIN: Duration = Duration::from_secs(2);

/// How long the store is asked to note where the agent runs.
const STORE_MOMENT: Duration = Duration::from_secs(5);

/// How often a runner that only waits shows that it lives.
const SIGN_EVERY: Duration = Duration::from_secs(5);

/// Bytes of a file with a token.
const TOKEN_BYTES: usize = 4 * 1024;

/// What a server must be able to do.
const CLOSES_STDIN: &str = "processCloseStdin";

/// A machine that was reached.
pub(super) struct Reached {
    pub(super) backend: Arc<dyn ExecBackend>,
    site: AgentSite,
    home: Option<PathBuf>,
    /// How long something there may live without us.
    pub(super) over_within: Duration,
}

impl Reached {
    pub(super) fn there(&self) -> There<'_> {
        There { backend: &*self.backend, site: &self.site, home: self.home.as_deref() }
    }

    /// Lets go of it: whatever may still run there for us is ended.
    pub(super) async fn leave(self) {
        let _ = tokio::time::timeout(LEAVE, self.backend.shutdown()).await;
    }
}

impl Runner {
    /// Has something done and heeds what wakes a runner; `None` when the job must end meanwhile.
    pub(super) async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                () = self.pause(LOOK_EVERY) => {}
            }
            self.heed().await;
            if self.look().await {
                return None;
            }
        }
    }

    /// Reaches the machine of an agent and sees to it that the consult may be run in this directory there; `None` when the job must
    /// end meanwhile. Nothing of the agent is started by it.
    pub(super) async fn reach(
        &mut self,
        agent: &dyn Agent,
        site: &AgentSite,
        cwd: &Path,
    ) -> Option<Result<Reached, Fault>> {
        let (faults, own) = (self.options.faults.clone(), agent.machine());
        let environment = self.options.environment.clone();
        let reaching = async {
            if let Some(machine) = own {
                return Ok(own_machine(site, machine, &environment));
            }
            tokio::time::timeout(REACH, reach(site, faults)).await.unwrap_or_else(|_| Err(too_late(site)))
        };
        let reached = match self.meanwhile(reaching).await? {
            Ok(reached) => reached,
            Err(fault) => return Some(Err(fault)),
        };
        let (store, job, over_within) = (self.store.clone(), self.options.job, reached.over_within);
        if let Err(error) = insist(STORE_MOMENT, || store.set_elsewhere(job, over_within)).await {
            reached.leave().await;
            return Some(Err(error.into()));
        }
        let looking = async {
            let looked = tokio::time::timeout(LOOK, check_place(&reached, cwd)).await;
            looked.unwrap_or_else(|_| Err(too_late(site)))
        };
        match self.meanwhile(looking).await {
            Some(Ok(())) => Some(Ok(reached)),
            Some(Err(fault)) => {
                reached.leave().await;
                Some(Err(fault))
            }
            None => {
                reached.leave().await;
                None
            }
        }
    }

    /// What was started there is lost: this job does not end before that machine has ended it.
    pub(super) fn lost(&mut self, over_within: Duration) {
        self.over_there = Some(Instant::now() + over_within);
    }
}

/// Waits until whatever was lost is over, and shows meanwhile that this runner lives. A signal to end cuts it short: the store knows
/// how long a sweep has to wait.
pub(super) async fn over_there(moment: Option<Instant>, lock: &JobLock, terminate: &mut tokio::signal::unix::Signal) {
    let Some(moment) = moment else { return };
    loop {
        let left = moment.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        lock.touch();
        tokio::select! {
            () = tokio::time::sleep(left.min(SIGN_EVERY)) => {}
            _ = terminate.recv() => {}
        }
    }
}

/// A connection to the machine. A socket nobody listens at is tried for a moment: its server may be about to start.
async fn connected(site: &AgentSite, token: Option<String>, faults: Faults) -> Result<RemoteExec, Fault> {
    let said: Arc<Mutex<Option<NoStreams>>> = Arc::default();
    let (connect, hears) = (connector(site.target.clone(), token), Arc::clone(&said));
    let told: Connector = Box::new(move |generation| {
        let (streams, hears) = (connect(generation), Arc::clone(&hears));
        async move {
            let made = streams.await;
            let failed = made.as_ref().err();
            let failed = failed.map(|no| NoStreams { reason: no.reason.clone(), retry: no.retry });
            *hears.lock().unwrap_or_else(PoisonError::into_inner) = failed;
            made
        }
        .boxed()
    });
    let options = RemoteOptions { seed: UnixMillis::now().0.unsigned_abs(), faults, ..RemoteOptions::default() };
    let connecting = RemoteExec::connect_by(told, site.target.after_a_cut(), options);
    let within = match site.target.after_a_cut() {
        AfterACut::Resumed => CONNECT,
        AfterACut::Over => REACH,
    };
    let connected = tokio::time::timeout(within, connecting).await;
    let said = said.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (connected, said) {
        (Ok(Ok(backend)), _) => Ok(backend),
        (_, Some(NoStreams { reason, retry: Retry::Never })) => Err(not_reached(site, FaultCode::ExecRefused, &reason)),
        (_, Some(NoStreams { reason, .. })) => Err(not_reached(site, FaultCode::ExecUnreachable, &reason)),
        (Ok(Err(error)), None) => Err(exec_fault(site, &error)),
        (Err(_), None) => Err(too_late(site)),
    }
}

/// A machine of the program's own is there as soon as it is asked.
fn own_machine(site: &AgentSite, machine: Arc<dyn Machine>, environment: &Environment) -> Reached {
    let own: Vec<_> = environment.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let over_within = machine.over_within();
    let backend = Arc::new(OwnMachine::new(machine, core_of(&own)));
    Reached { backend, site: site.clone(), home: None, over_within }
}

pub(super) async fn reach(site: &AgentSite, faults: Faults) -> Result<Reached, Fault> {
    let token = match &site.token_file {
        Some(file) => Some(token(file).map_err(|wrong| {
            let detail = format!("the token for {} cannot be read: {} {wrong}.", site.target, file.display());
            Fault::new(FaultCode::ExecRefused, detail)
                .hint("The file must be yours alone (mode 0600) and hold the token.")
        })?),
        None => None,
    };
    let backend = connected(site, token, faults).await?;
    let info = match backend.environment().await {
        Ok(info) => info,
        Err(error) => return Err(exec_fault(site, &error)),
    };
    if !info.can(CLOSES_STDIN) {
        let detail = format!(
            "the exec server at {} cannot close a program's standard input ({CLOSES_STDIN}), and an agent reads its prompt to the end.",
            site.target
        );
        return Err(Fault::new(FaultCode::ExecRefused, detail).hint("Run `phone-opus exec-server` on that machine."));
    }
    let over_within = over_within(&site.target, &info);
    let home = info.user_home_dir.map(PathBuf::from).filter(|home| home.is_absolute());
    Ok(Reached { backend: Arc::new(backend), site: site.clone(), home, over_within })
}

/// Reaches an agent's machine and looks at its directories, as a consult would before anything is started; what was seen.
///
/// # Errors
///
/// What a consult would be told.
pub async fn try_site(site: &AgentSite) -> Result<String, Fault> {
    let reached =
        tokio::time::timeout(REACH, reach(site, Faults::none())).await.unwrap_or_else(|_| Err(too_late(site)))?;
    let mut seen = format!("its server keeps what runs for up to {} s without us", reached.over_within.as_secs());
    for workspace in &site.workspaces {
        let looked = tokio::time::timeout(LOOK, check_place(&reached, workspace)).await;
        if let Err(fault) = looked.unwrap_or_else(|_| Err(too_late(site))) {
            reached.leave().await;
            return Err(Fault { detail: format!("{}: {}", workspace.display(), fault.detail), ..fault });
        }
    }
    seen.push_str(", and its workspaces are there");
    reached.leave().await;
    Ok(seen)
}

/// How long after we are lost to a machine something we started there may live.
fn over_within(target: &ExecTarget, info: &EnvironmentInfo) -> Duration {
    let lease = info.lease_ms.map_or(LEASE_UNSAID, Duration::from_millis);
    match target {
        // Its standard input ends with us, and it ends what it runs with that.
        // A machine of the program's own says it itself.
        ExecTarget::Child { .. } | ExecTarget::Own { .. } => MARGIN,
        // The kernel tells it at once that we are gone.
        ExecTarget::Unix { .. } => lease + MARGIN,
        // What is in between may tell it nothing.
        ExecTarget::Ws { .. } | ExecTarget::Wss { .. } => SILENCE + lease + MARGIN,
    }
}

/// Whether the directory is one of that machine which the agent may look into, as that machine says.
async fn check_place(reached: &Reached, cwd: &Path) -> Result<(), Fault> {
    let Reached { backend, site, home, .. } = reached;
    let refused = |wrong: &str| {
        let listed = site.workspaces.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ");
        let detail = format!(
            "`cwd` {wrong}; accepted: a directory of {}, below {listed}. Nothing was started there.",
            site.target
        );
        Fault::new(FaultCode::InvalidInput, detail)
    };
    // The configuration may be another one than when the job was accepted.
    places::judge_elsewhere(cwd, &site.workspaces, home.as_deref()).map_err(|no| refused(no.wrong_elsewhere()))?;
    let Some(files) = backend.files() else { return Ok(()) };
    match files.metadata(cwd).await {
        Ok(found) if found.is_directory => {}
        Ok(_) => return Err(refused("is no directory there")),
        Err(FilesError::Missing { .. }) => return Err(refused("does not exist there")),
        Err(FilesError::Unnameable { .. }) => return Err(refused("cannot be named to that machine")),
        Err(FilesError::Exec(error)) => return Err(exec_fault(site, &error)),
    }
    let Some(granted) = site.workspaces.iter().find(|granted| cwd.starts_with(granted)) else {
        return Err(refused(PlaceRefused::Outside.wrong_elsewhere()));
    };
    let within: Vec<PathBuf> = cwd.ancestors().take_while(|dir| dir.starts_with(granted)).map(Path::to_owned).collect();
    // The directory that is granted may be a link: the user named it.
    let below = within.iter().filter(|dir| *dir != granted);
    if let Some(link) = first_of(files, below, |found| found.is_symlink).await? {
        let wrong = format!("leads through {}, a link that may lead out of what is granted", link.display());
        return Err(refused(&wrong));
    }
    let stores: Vec<PathBuf> = within.iter().map(|dir| dir.join(places::DATABASE)).collect();
    if first_of(files, stores.iter(), |_| true).await?.is_some() {
        return Err(refused(PlaceRefused::Secrets.wrong_elsewhere()));
    }
    Ok(())
}

/// The first of these paths of which this is so; what is not there is none.
async fn first_of<'a>(
    files: &dyn ExecFiles,
    paths: impl Iterator<Item = &'a PathBuf>,
    is: impl Fn(&crate::exec::backend::FileMetadata) -> bool,
) -> Result<Option<&'a Path>, Fault> {
    let paths: Vec<&PathBuf> = paths.collect();
    let looks = join_all(paths.iter().map(|path| files.metadata(path))).await;
    for (path, look) in paths.into_iter().zip(looks) {
        match look {
            Ok(found) if is(&found) => return Ok(Some(path)),
            Ok(_) | Err(FilesError::Missing { .. }) => {}
            Err(error) => {
                let detail = format!("`cwd` cannot be judged: failed to {error}.");
                return Err(Fault::new(FaultCode::ExecUnreachable, detail));
            }
        }
    }
    Ok(None)
}

/// The token in a file that is this user's alone.
fn token(file: &Path) -> Result<String, &'static str> {
    use std::io::Read as _;
    use std::os::unix::fs::MetadataExt as _;

    // Opened first and judged by what was opened; a pipe in its place keeps nobody waiting.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    let opened = rustix::fs::open(file, flags, rustix::fs::Mode::empty()).map_err(|error| match error {
        rustix::io::Errno::NOENT => "does not exist",
        _ => "cannot be opened",
    })?;
    let mut opened = std::fs::File::from(opened);
    let found = opened.metadata().map_err(|_| "cannot be looked at")?;
    if !found.is_file() {
        return Err("is no plain file");
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err("belongs to somebody else");
    }
    if found.mode() & 0o077 != 0 {
        return Err("can be read by others");
    }
    let mut text = String::new();
    let most = u64::try_from(TOKEN_BYTES).unwrap_or(u64::MAX);
    (&mut opened).take(most + 1).read_to_string(&mut text).map_err(|_| "cannot be read as text")?;
    let token = text.trim();
    let fits = !token.is_empty() && text.len() <= TOKEN_BYTES && token.chars().all(|c| c.is_ascii_graphic());
    if fits { Ok(token.to_owned()) } else { Err("holds no token: one word of plain characters") }
}

fn exec_fault(site: &AgentSite, error: &ExecError) -> Fault {
    let refused = matches!(error, ExecError::Refused { .. });
    let code = if refused { FaultCode::ExecRefused } else { FaultCode::ExecUnreachable };
    not_reached(site, code, &error.to_string())
}

fn not_reached(site: &AgentSite, code: FaultCode, failed_to: &str) -> Fault {
    let hint = match code {
        FaultCode::ExecRefused => "Look at the exec server there, and at the token or key you reach it by.",
        _ => "Is its exec server running, and reached by what your configuration says?",
    };
    let detail = format!("{} was not reached: failed to {failed_to}. Nothing was started there.", site.target);
    Fault::new(code, detail).hint(hint)
}

pub(super) fn too_late(site: &AgentSite) -> Fault {
    let detail = format!("{} did not answer in time. Nothing was started there.", site.target);
    Fault::new(FaultCode::ExecUnreachable, detail).hint("Is its exec server running, and not busy?")
}

#[cfg(test)]
mod tests {
    //! Laws: L7, L13.

    use super::*;
    use crate::exec::TargetWords;

    #[test]
    fn what_is_lost_is_over_when_its_server_has_noticed_and_its_lease_has_run_out() {
        let target = |words: TargetWords| ExecTarget::parse(&words).expect("a target");
        let text = |text: &str| target(TargetWords::Text(text.to_owned()));
        let info = |lease_ms| EnvironmentInfo { lease_ms, ..EnvironmentInfo::default() };
        let ssh = target(TargetWords::Program(vec!["ssh".to_owned(), "b".to_owned()]));
        for (target, lease, seconds) in [
            (text("unix:/x"), Some(30_000), 32),
            (text("unix:/x"), None, 82),
            (text("ws://127.0.0.1:1"), Some(30_000), 77),
            (text("wss://b"), Some(1_000), 48),
            (text("wss://b"), None, 127),
            (ssh, None, 2),
        ] {
            assert_eq!(over_within(&target, &info(lease)), Duration::from_secs(seconds), "{target} {lease:?}");
        }
    }

    #[test]
    fn a_token_is_read_from_a_file_that_is_the_users_alone() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().expect("scratch");
        let file = dir.path().join("token");
        let with = |text: &[u8], mode: u32| {
            std::fs::write(&file, text).expect("written");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("set");
            token(&file)
        };
        assert_eq!(token(&file), Err("does not exist"));
        assert_eq!(with(b"abc.def\n", 0o600), Ok("abc.def".to_owned()));
        assert_eq!(with(b"abc", 0o400), Ok("abc".to_owned()));
        for mode in [0o640, 0o604, 0o660, 0o644] {
            assert_eq!(with(b"abc", mode), Err("can be read by others"), "{mode:o}");
        }
        for text in [&b""[..], b" \n", b"two words", &[b'x'; TOKEN_BYTES + 1]] {
            assert!(with(text, 0o600).is_err_and(|wrong| wrong.starts_with("holds no token")));
        }
        assert_eq!(with(b"\xff", 0o600), Err("cannot be read as text"));
        assert_eq!(token(dir.path()), Err("is no plain file"));
    }
}
