//! A world with an exec server in it, the ways to it, and a wire that can be cut.
//!
//! Laws: L7.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use phone_opus::internals::base::fault::FaultCode;
use phone_opus::internals::jobs::JobRecord;
use phone_opus::testkit::{PATIENCE, Process, Rig, Role, tried_program, until};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::process::Child;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How the server is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Unix,
    Ws,
    Child,
}

impl Way {
    pub(super) const ALL: [Self; 3] = [Self::Unix, Self::Ws, Self::Child];
    pub(super) const SOCKETS: [Self; 2] = [Self::Unix, Self::Ws];
}

/// A world of its own, whose agent `box` runs behind a server.
pub(super) struct House {
    pub(super) rig: Rig,
    way: Way,
    server: Option<Child>,
    /// Where the server listens.
    at: String,
    /// The file of the token its server knows.
    token: Option<PathBuf>,
}

/// Seconds a server keeps what runs without its client, where a case waits for it.
pub(super) const SHORT_LEASE: u64 = 3;

impl House {
    /// A server that keeps what runs for `lease` seconds, and an agent that is reached at it.
    pub(super) async fn new(way: Way, lease: u64) -> Self {
        let mut house = Self::without_an_agent(way, lease).await;
        house.name_agent(&house.exec());
        house
    }

    async fn without_an_agent(way: Way, lease: u64) -> Self {
        let rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")));
        let mut house = Self { rig, way, server: None, at: String::new(), token: None };
        house.serve(lease).await;
        house
    }

    /// A server on a port that knows this token, and no agent yet.
    pub(super) async fn behind_a_token(token: &str) -> Self {
        let rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")));
        let file = rig.path("token");
        write_token(&file, token, 0o600);
        let mut house = Self { rig, way: Way::Ws, server: None, at: String::new(), token: Some(file) };
        house.serve(30).await;
        house
    }

    /// The same with a wire between that can be cut.
    pub(super) async fn with_a_wire(way: Way, lease: u64) -> (Self, Wire) {
        let mut house = Self::without_an_agent(way, lease).await;
        let wire = match way {
            Way::Unix => {
                Wire::over_unix(&house.rig.path("wire"), PathBuf::from(house.at.trim_start_matches("unix:"))).await
            }
            _ => Wire::over_tcp(house.at.trim_start_matches("ws://").trim_end_matches('/')).await,
        };
        house.name_agent(&format!("{:?}", wire.target));
        (house, wire)
    }

    /// Starts the server.
    pub(super) async fn serve(&mut self, lease: u64) {
        let listen = match self.way {
            Way::Child => return,
            Way::Unix => {
                // A directory nobody else can enter, or it does not listen there.
                let dir = self.rig.path("box");
                let _ = std::fs::DirBuilder::new().mode(0o700).create(&dir);
                format!("unix:{}", dir.join("server").display())
            }
            Way::Ws => "ws://127.0.0.1:0".to_owned(),
        };
        let mut command = self.rig.command(&["exec-server", "--listen", &listen, "--lease-s", &lease.to_string()]);
        if let Some(file) = &self.token {
            command.arg("--token-file").arg(file);
        }
        // Not what its client has.
        command.env_remove("CLAUDE_CONFIG_DIR").env("BOX_SECRET_KEY", "of the machine");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a server");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("in time").expect("read");
        self.at = line.expect("it says where it listens").trim().to_owned();
        if self.way == Way::Unix {
            self.at = listen;
        }
        self.server = Some(child);
    }

    /// What a configuration writes.
    pub(super) fn exec(&self) -> String {
        match self.way {
            Way::Child => format!("[{:?}, \"exec-server\", \"--listen\", \"stdio\"]", self.rig.program()),
            Way::Unix | Way::Ws => format!("{:?}", self.at),
        }
    }

    /// Has the configuration name the agent there.
    pub(super) fn name_agent(&mut self, exec: &str) {
        self.name_agent_by(exec, None);
    }

    /// Has the configuration name the agent there, and the file of the token that is brought.
    pub(super) fn name_agent_by(&mut self, exec: &str, token: Option<&Path>) {
        let (work, program) = (self.rig.work(), self.rig.player());
        let token = token.map(|file| format!("exec_token_file = {file:?}\n")).unwrap_or_default();
        self.rig.configure(&format!(
            "agent = \"box\"\n[agents.box]\nagent = \"claude\"\nexec = {exec}\nprogram = {program:?}\nworkspaces = [{work:?}]\n{token}\
             [agents.words]\nagent = \"offline\"\nexec = {exec}\nprogram = {:?}\nworkspaces = [{work:?}]\n",
            self.rig.program()
        ));
    }

    /// The server's processes.
    pub(super) fn servers(&self) -> Vec<Process> {
        // A runner's words name the server too.
        let serves = |process: &Process| process.role == Role::Other && process.command.contains("exec-server");
        self.rig.processes().into_iter().filter(serves).collect()
    }

    /// Ends the server as a machine does that loses power.
    pub(super) fn kill_servers(&self) {
        let servers = self.servers();
        assert!(!servers.is_empty(), "there is a server");
        for server in servers {
            // One may take another along.
            let _ = server.send(phone_opus::testkit::Signal::KILL);
        }
    }

    /// Nothing of the agent is alive, on whichever side.
    pub(super) async fn expect_no_agent_left(&self) {
        self.rig.expect_no_agent_left().await;
    }

    /// Ends the server, looks at everything, and shows that nothing is left.
    pub(super) async fn close(mut self, clients: impl IntoIterator<Item = phone_opus::testkit::TestClient>) {
        if let Some(mut server) = self.server.take() {
            for process in self.servers() {
                let _ = process.send(phone_opus::testkit::Signal::TERM);
            }
            let ended = tokio::time::timeout(PATIENCE, server.wait()).await;
            assert!(ended.is_ok(), "the server does not end: {:?}", self.servers());
        }
        self.rig.stop_and_check_invariants(clients).await;
    }
}

/// Writes a token's file with this mode.
pub(super) fn write_token(file: &Path, token: &str, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(file, format!("{token}\n")).expect("written");
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).expect("a mode");
}

pub(super) fn fault(job: &JobRecord) -> Option<FaultCode> {
    job.outcome.as_ref().and_then(|outcome| outcome.fault.as_ref()).map(|fault| fault.code)
}

/// A wire between client and server. It carries bytes, and can be cut.
pub(super) struct Wire {
    target: String,
    /// How often it was cut.
    cuts: watch::Sender<u64>,
    /// Connections that are open.
    open: watch::Receiver<u64>,
    _serving: JoinSet<()>,
}

impl Wire {
    async fn over_unix(path: &Path, server: PathBuf) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        let target = format!("unix:{}", path.display());
        let (listener, server) = (Arc::new(listener), Arc::new(server));
        Self::serve(target, move || {
            let (listener, server) = (Arc::clone(&listener), Arc::clone(&server));
            async move {
                let (client, _) = listener.accept().await.expect("a client");
                (client, UnixStream::connect(server.as_path()).await.ok())
            }
        })
    }

    async fn over_tcp(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let target = format!("ws://{}", listener.local_addr().expect("an address"));
        let (listener, server) = (Arc::new(listener), Arc::<str>::from(server));
        Self::serve(target, move || {
            let (listener, server) = (Arc::clone(&listener), Arc::clone(&server));
            async move {
                let (client, _) = listener.accept().await.expect("a client");
                (client, TcpStream::connect(&*server).await.ok())
            }
        })
    }

    fn serve<S, F>(target: String, mut accept: impl FnMut() -> F + Send + 'static) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = (S, Option<S>)> + Send + 'static,
    {
        let (cuts, cut) = watch::channel(0);
        let (counting, open) = watch::channel(0_u64);
        let counting = Arc::new(counting);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut client, server) = accept().await;
                let Some(mut server) = server else { continue };
                let (mut cut, counting) = (cut.clone(), Arc::clone(&counting));
                cut.mark_unchanged();
                connections.spawn(async move {
                    counting.send_modify(|open| *open += 1);
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = cut.changed() => {}
                    }
                    counting.send_modify(|open| *open -= 1);
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { target, cuts, open, _serving: serving }
    }

    /// Waits until somebody is connected, and cuts the wire in so many milliseconds after that.
    pub(super) async fn cut_after(&mut self, milliseconds: u64) {
        let connected = tokio::time::timeout(PATIENCE, self.open.wait_for(|open| *open > 0)).await;
        connected.expect("somebody connects again").expect("the wire is there");
        // The moment is the point: it may be any.
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        self.cuts.send_modify(|cuts| *cuts += 1);
        let cut = tokio::time::timeout(PATIENCE, self.open.wait_for(|open| *open == 0)).await;
        cut.expect("it is cut").expect("the wire is there");
    }
}

/// Random numbers that repeat from a seed.
pub(super) struct Draws(pub(super) u64);

impl Draws {
    pub(super) fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

/// Waits for the agent's sign, and for its process.
pub(super) async fn begun(house: &House, sign: &str) {
    house.rig.wait_for_sign(sign).await;
    until("the agent runs", async || (!house.rig.agents().is_empty()).then_some(())).await;
}
