//! The two doors, and the connections that came in by them.
//!
//! Owns: the port, the socket's name, how many are served and how long a head may take, the order of the end. May not know: what is
//! asked.
//!
//! Invariants: (1) the port is one of 127.0.0.1, and nothing else is listened at but a socket of ours; (2) a process that the kernel
//! says is another user's gets nothing, by either door; where the kernel does not say, the socket refuses and the port leaves it to
//! the gate; (3) connections, heads, bodies and waiting are bounded; (4) the end: nobody new, the socket's name goes, streams end,
//! what is being answered is answered, within [`END`].

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::desk::{Asks, Desk};
use super::gate::CameBy;
use super::keys::{Keys, PassedKeys};
use super::routes::router;
use super::stall::{STALL, Stalling};
use crate::base::descriptors::PassedPipe;
use crate::base::ids::UnixMillis;
use crate::base::socket::listener::{ListenError, Listener, SocketPlace};
use crate::base::socket::peer::admit;
use crate::base::state_dir::{StateDir, StateDirError};
use crate::base::tasks::{self, TaskSet};
use crate::exec::server::admission::{BearerToken, peer_uid};
use crate::jobs::store::StoreHandle;

/// Connections at a time, by both doors: a browser keeps six, and a person has a few pages. Beyond it one is closed as it comes.
const CONNECTIONS: usize = 96;

/// How long a request's head may take, and how long a connection may say nothing between two requests.
const HEAD: Duration = Duration::from_secs(20);

/// Bytes of a head; cookies of whatever else runs on this machine are among them.
const HEAD_BYTES: usize = 32 * 1024;

/// How long the end may take.
const END: Duration = Duration::from_secs(2);

/// The pause after a connection that could not be accepted, as when there are no descriptors.
const REST: Duration = Duration::from_millis(100);

/// A dashboard that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DashboardError {
    /// The state directory cannot be used.
    #[error("use the state directory")]
    StateDir(#[from] StateDirError),
    /// The port cannot be had.
    #[error("listen at 127.0.0.1:{port}")]
    Port {
        /// Which; 0 for any.
        port: u16,
        /// The system's word.
        #[source]
        cause: io::Error,
    },
    /// The socket cannot be had.
    #[error(transparent)]
    Socket(#[from] ListenError),
    /// The system refused the socket.
    #[error("listen at the socket")]
    Io(#[source] io::Error),
}

/// One that listens and does not serve yet.
pub struct Dashboard {
    desk: Desk,
    asks: Asks,
    port: TcpListener,
    socket: UnixListener,
    place: SocketPlace,
    stop: watch::Sender<bool>,
}

/// Where tools find the dashboard of a state directory.
#[must_use]
pub fn socket_of(dir: &StateDir) -> PathBuf {
    dir.root().join("dashboard.sock")
}

impl Dashboard {
    /// Listens at this port of 127.0.0.1 (0: any that is free) and at the socket. `token` is what Prometheus brings to the port.
    /// In a runtime.
    ///
    /// # Errors
    ///
    /// The port or the socket cannot be had: another process has it, or the system refused.
    pub async fn listen(dir: StateDir, port: u16, token: Option<BearerToken>) -> Result<Self, DashboardError> {
        let asked = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = TcpListener::bind(asked).await.map_err(|cause| DashboardError::Port { port, cause })?;
        Self::over(dir, listener, token)
    }

    /// Goes on at the port of another image, with the keys that were good there. The socket is made again. In a runtime.
    ///
    /// # Errors
    ///
    /// What was passed on is no port of 127.0.0.1; the socket cannot be had.
    pub fn go_on(dir: StateDir, port: OwnedFd, keys: PassedKeys) -> Result<Self, DashboardError> {
        let listener = std::net::TcpListener::from(port);
        listener.set_nonblocking(true).map_err(DashboardError::Io)?;
        if !listener.local_addr().map_err(DashboardError::Io)?.ip().is_loopback() {
            return Err(DashboardError::Io(io::ErrorKind::AddrNotAvailable.into()));
        }
        let dashboard = Self::over(dir, TcpListener::from_std(listener).map_err(DashboardError::Io)?, None)?;
        *dashboard.desk.keys() = Keys::gone_on_with(keys, Instant::now());
        Ok(dashboard)
    }

    fn over(dir: StateDir, listener: TcpListener, token: Option<BearerToken>) -> Result<Self, DashboardError> {
        dir.create()?;
        let at = listener.local_addr().map_err(DashboardError::Io)?;
        let socket = Listener::bind(&socket_of(&dir))?;
        let place = socket.place().clone();
        let socket = std::os::unix::net::UnixListener::from(socket.into_socket());
        let socket = UnixListener::from_std(socket).map_err(DashboardError::Io)?;
        let (stop, stopped) = watch::channel(false);
        let (desk, asks) = Desk::new(StoreHandle::sqlite(dir.clone()), dir, at.port(), token, stopped);
        Ok(Self { desk, asks, port: listener, socket, place, stop })
    }

    /// An address that opens the page once.
    #[must_use]
    pub fn link(&self) -> String {
        self.desk.link()
    }

    /// What its routes share.
    #[must_use]
    pub fn desk(&self) -> &Desk {
        &self.desk
    }

    /// The port, for the next image.
    ///
    /// # Errors
    ///
    /// The system does not say what it is.
    pub fn passed_port(&self) -> io::Result<PassedPipe> {
        PassedPipe::of(&self.port)
    }

    /// The socket for tools.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.place.path
    }

    /// Serves until `end`, and then ends in order.
    pub async fn serve(self, end: impl Future<Output = ()>) {
        let Self { desk, asks, port, socket, place, stop } = self;
        let about = json!({
            "build": env!("CARGO_PKG_VERSION"),
            "state_dir": desk.dir().root().to_string_lossy(),
            "pid": std::process::id(),
            "started_at": UnixMillis::now(),
        });
        let ours = rustix::process::geteuid().as_raw();
        let by = CameBy::Port(desk.port());
        let serving = Serving {
            desk: desk.clone(),
            router: router(desk.clone()),
            room: Arc::new(Semaphore::new(CONNECTIONS)),
            stop: desk.stop(),
        };
        let mut tasks = TaskSet::new();
        let reading = desk.clone();
        tasks.spawn(async move { reading.read(asks, about).await });
        let mut end = std::pin::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => break,
                came = port.accept() => match came {
                    Ok((stream, peer)) => {
                        let at = stream.local_addr();
                        serving.take(&mut tasks, stream, by, move || {
                            // Reads the kernel's table, which is quick, and rests where it has to look again.
                            let theirs = at.ok().and_then(|at| peer_uid(peer, at));
                            theirs.is_none_or(|theirs| theirs == ours)
                        });
                    }
                    Err(_) => sleep(REST).await,
                },
                came = socket.accept() => match came {
                    Ok((stream, _)) => {
                        let theirs = stream.peer_cred().ok().map(|peer| peer.uid());
                        serving.take(&mut tasks, stream, CameBy::Socket, move || admit(theirs, ours).is_ok());
                    }
                    Err(_) => sleep(REST).await,
                },
                Some(_) = tasks.join_next() => {}
            }
        }
        drop((port, socket));
        place.unlink();
        let _ = stop.send(true);
        let _ = timeout(END, async { while tasks.join_next().await.is_some() {} }).await;
        tasks.shutdown().await;
        desk.store().close().await;
    }
}

struct Serving {
    desk: Desk,
    router: Router,
    room: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

/// What somebody is told whom the kernel calls a stranger.
const STRANGER: &[u8] = b"HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

impl Serving {
    /// Serves one connection in a task of its own, where there is room. `admitted` may block for a moment.
    fn take<S>(
        &self,
        tasks: &mut TaskSet<()>,
        mut stream: S,
        by: CameBy,
        admitted: impl FnOnce() -> bool + Send + 'static,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else { return };
        let (router, stop, open) = (self.router.clone(), self.stop.clone(), self.desk.connected());
        tasks.spawn(async move {
            let admitted = tasks::spawn_blocking(admitted).await.unwrap_or(false);
            if admitted {
                connection(Stalling::new(stream, STALL), by, router, stop).await;
            } else {
                let _ = timeout(STALL, stream.write_all(STRANGER)).await;
            }
            drop((room, open));
        });
    }
}

/// Serves one connection until it or the server ends. How it ends is its peer's matter.
async fn connection<S>(stream: Stalling<S>, by: CameBy, router: Router, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(by);
        let router = router.clone();
        async move { Ok::<_, Infallible>(answer(router, request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES).half_close(false);
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = serving.as_mut() => return,
        _ = stop.wait_for(|stop| *stop) => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}

async fn answer(router: Router, request: Request<Incoming>) -> axum::response::Response {
    use tower_service::Service as _;
    let mut router = router;
    match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
