//! A host behind a socket, in a process of its own that can be upgraded in place and given little to live on.
//!
//! Owns: the process, which is this program again (`host_process` is its entry; a shell stands between the images, because the
//! test harness takes no option of ours), and what a test asks of it. May not know: what a test is about.
//!
//! Laws: L15.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "helpers of tests")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use phone_opus::internals::actors::callers::CallerContext;
use phone_opus::internals::actors::doors::desk::{ControlDesk, ControlReply};
use phone_opus::internals::actors::doors::handle::ListenOptions;
use phone_opus::internals::agents::{AgentRegistry, Environment};
use phone_opus::internals::base::descriptors::PassedPipe;
use phone_opus::internals::base::ids::SessionNumber;
use phone_opus::internals::base::signals;
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::config::Config;
use phone_opus::internals::daemon::control::ControlMessage;
use phone_opus::internals::daemon::listener::Listener;
use phone_opus::internals::system::handover::{HostSnapshot, Luggage, NewImage, Packed, Restore};
use phone_opus::internals::system::{Grace, System};
use phone_opus::testkit::processes::resident;
use phone_opus::testkit::{PATIENCE, Rig, Signal, TestClient, Waiting};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};

use super::kit::LineClient;

const SOCKET: &str = "DOORS_TEST_SOCKET";
const STATE: &str = "DOORS_TEST_STATE";
const PROGRAM: &str = "DOORS_TEST_PROGRAM";
const WORK: &str = "DOORS_TEST_WORK";
const RESTORED: &str = "DOORS_TEST_RESTORE";

/// The harness knows no `--restore WHERE`, which follows the arguments of an image: the shell makes a variable of it.
const IMAGE: &str = "DOORS_TEST_RESTORE=$2 exec \"$0\" --exact doors::host::host_process --ignored --nocapture";

/// Says how many images there were before, keeps the answer to `status`, and answers the rest with its type.
struct Desk {
    images: u64,
}

impl ControlDesk for Desk {
    fn control(&self, session: SessionNumber, message: ControlMessage, reply: ControlReply) {
        match message {
            // Nobody will answer: whoever asked hears so from the next image.
            ControlMessage::Status => std::mem::forget(reply),
            message => {
                reply.answer(json!({"type": message.name(), "session": session.0, "images": self.images}).to_string())
            }
        }
    }
}

/// A file that goes along, and the number of images.
struct Carried {
    file: std::fs::File,
    images: u64,
}

impl Luggage for Carried {
    fn pack(&self) -> Packed {
        let file = PassedPipe::of(&self.file).expect("a file");
        Packed { state: json!({"images": self.images + 1, "file": file}), files: vec![file] }
    }
}

#[test]
#[ignore = "the host process of the other tests"]
fn host_process() {
    let Some(socket) = std::env::var_os(SOCKET).map(PathBuf::from) else {
        println!("no test has started this");
        return;
    };
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).expect("a variable");
    let restored = std::env::var(RESTORED).ok().filter(|restored| !restored.is_empty());
    let mut snapshot = restored
        .map(|word| HostSnapshot::take(&Restore::parse(word.as_ref())).expect("a snapshot of the image before"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut upgrade = signal(SignalKind::user_defined2()).expect("a signal");
        let mut terminate = signal(SignalKind::terminate()).expect("a signal");
        signals::let_through();
        let (images, file) = match &mut snapshot {
            None => (0, tempfile::tempfile().expect("a file")),
            Some(snapshot) => {
                let state = snapshot.luggage().expect("what was packed").clone();
                let file: PassedPipe = serde_json::from_value(state["file"].clone()).expect("a descriptor");
                let kept = snapshot.take_file(&file).expect("it went along");
                assert!(snapshot.take_file(&file).is_none(), "once");
                (state["images"].as_u64().expect("a number"), std::fs::File::from(kept))
            }
        };
        let environment = Environment::capture();
        let claude = environment.get("PHONE_OPUS_CLAUDE_BIN").map(PathBuf::from);
        let mut builder = System::builder()
            .state_dir(StateDir::at(variable(STATE)))
            .agents(AgentRegistry::standard(claude, variable(PROGRAM)))
            .runner(variable(PROGRAM))
            .default_cwd(Some(variable(WORK)))
            .environment(environment)
            .config(Config { wait: Some(Duration::from_secs(300)), ..Config::default() });
        let again = snapshot.is_some();
        if let Some(snapshot) = snapshot {
            builder = builder.restore(snapshot);
        }
        let system = builder.start().await.expect("a system");
        system.carry(Arc::new(Carried { file, images }));
        let options =
            ListenOptions { desk: Arc::new(Desk { images }), context: CallerContext::clone(system.callers().host()) };
        if again {
            let doors = system.listen_again(&options).expect("the doors of the image before");
            assert_eq!(doors.len(), 1);
            assert_eq!(doors[0].1.as_ref().map(|place| place.path.as_path()), Some(socket.as_path()));
        } else {
            let listener = Listener::bind(&socket).expect("it listens");
            drop(system.listen_at(listener, options).expect("a door"));
        }
        let exe = std::env::current_exe().expect("this program");
        let words = ["sh".into(), "-c".into(), IMAGE.into(), exe.into_os_string()];
        let image = NewImage::new("/bin/sh", words, std::env::vars_os().filter(|(name, _)| name != RESTORED));
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = upgrade.recv() => {
                    let system = system.clone();
                    let image = image.clone();
                    tokio::spawn(async move {
                        let error = system.hand_over(&image).await;
                        eprintln!("not handed over: {error}");
                    });
                }
            }
        }
        system.shutdown(Grace::default()).await;
    });
    runtime.shutdown_timeout(Duration::from_millis(100));
    std::process::exit(0);
}

/// The process.
pub(super) struct HostProcess {
    child: Child,
    pub(super) socket: PathBuf,
    log: PathBuf,
}

impl HostProcess {
    /// In the world of this rig.
    pub(super) async fn start(rig: &Rig) -> Self {
        let (socket, log) = (rig.path("sockets").join("host.sock"), rig.path("doors.stderr"));
        let variables = [
            (SOCKET, socket.clone()),
            (STATE, rig.path("state")),
            (PROGRAM, rig.program().to_owned()),
            (WORK, rig.work()),
        ];
        let said = std::fs::File::create(&log).expect("a file");
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "doors::host::host_process", "--ignored", "--nocapture"])
            .env_clear()
            .envs(rig.environment().iter())
            .envs(variables)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .expect("a host");
        let host = Self { child, socket, log };
        let waiting = Waiting::until("the host listens", PATIENCE);
        while UnixStream::connect(&host.socket).await.is_err() {
            waiting.again(|| host.said()).await;
        }
        host
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(super) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Bytes it has resident.
    pub(super) fn resident(&self) -> u64 {
        resident(self.pid()).expect("it lives")
    }

    /// Descriptors it has open.
    pub(super) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid().as_raw_nonzero())).expect("it lives").count()
    }

    /// Ticks of the processor it has used.
    pub(super) fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid().as_raw_nonzero())).expect("it lives");
        let after = stat.rsplit(')').next().expect("its name").split_whitespace();
        after.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
    }

    /// A client that speaks in lines.
    pub(super) async fn connect(&self) -> LineClient {
        LineClient::over(UnixStream::connect(&self.socket).await.expect("it listens"))
    }

    /// A client that speaks MCP.
    pub(super) async fn client(&self) -> TestClient {
        let (from, to) = UnixStream::connect(&self.socket).await.expect("it listens").into_split();
        TestClient::new(from, to)
    }

    /// Asks for an upgrade, and waits until it was done: another image answers.
    pub(super) async fn upgrade(&self) {
        let before = image(self.pid());
        self.ask_for_upgrade();
        let waiting = Waiting::until("another image runs", PATIENCE);
        while image(self.pid()).is_none_or(|image| before.as_ref() == Some(&image)) {
            waiting.again(|| self.said()).await;
        }
    }

    pub(super) fn ask_for_upgrade(&self) {
        rustix::process::kill_process(self.pid(), Signal::USR2).expect("it lives");
    }

    /// Ends it in order, and says that nothing was wrong.
    pub(super) async fn stop(mut self) {
        rustix::process::kill_process(self.pid(), Signal::TERM).expect("it lives");
        let waiting = Waiting::until("the host ends", PATIENCE);
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            waiting.again(|| "it lives").await;
        };
        assert!(status.success(), "{status}: {}", self.said());
        assert!(!self.said().contains("panicked"), "{}", self.said());
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        // A case that failed leaves none behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an image was restored from: another word for each. A shell that is on its way to one has none of its own.
fn image(pid: rustix::process::Pid) -> Option<Vec<u8>> {
    let place = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
    let environment = std::fs::read(place.join("environ")).ok()?;
    let mut variables = environment.split(|byte| *byte == 0);
    variables.find(|pair| pair.starts_with(RESTORED.as_bytes())).map(<[u8]>::to_vec)
}
