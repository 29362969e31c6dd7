//! Served: a server of the bench, and clients connected to it.
//!
//! Owns: how it is started and ended, and the handshake. May not know: what is sent then.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Trouble;
use crate::flow::Connection;

/// How clients reach a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// All reach one, over its socket.
    Socket,
    /// Each has one of its own, over standard streams.
    Streams,
}

/// One server or several, and who is connected.
pub(crate) struct Served {
    servers: Vec<Child>,
    /// The clients' ends.
    pub(crate) connections: Vec<Connection>,
    _scratch: tempfile::TempDir,
}

const HELLO: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}"#;
const READY: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

impl Served {
    /// Starts a server, or as many as there are clients, and greets.
    pub(crate) fn start(program: &Path, way: Way, clients: usize) -> Result<Self, Trouble> {
        let scratch = tempfile::tempdir()?;
        let mut served = Self { servers: Vec::new(), connections: Vec::new(), _scratch: scratch };
        match way {
            Way::Socket => {
                let socket = served._scratch.path().join("s");
                let mut command = Command::new(program);
                command.env("BENCH_LISTEN", &socket).stdin(Stdio::piped()).stdout(Stdio::null());
                served.servers.push(command.spawn()?);
                for _ in 0..clients {
                    served.connections.push(over(connect(&socket)?)?);
                }
            }
            Way::Streams => {
                for _ in 0..clients {
                    let mut server = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
                    let (to, from) = (server.stdin.take(), server.stdout.take());
                    served.servers.push(server);
                    let (Some(to), Some(from)) = (to, from) else { return Err("no pipes".into()) };
                    served.connections.push(Connection::new(to.into(), from.into())?);
                }
            }
        }
        for connection in &mut served.connections {
            connection.ask(HELLO)?;
            connection.tell(READY)?;
        }
        Ok(served)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // Ours, and not waited for yet.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// A connection over a socket.
pub(crate) fn over(stream: UnixStream) -> Result<Connection, Trouble> {
    let other = stream.try_clone()?;
    Ok(Connection::new(stream.into(), other.into())?)
}

/// Connects as soon as somebody listens.
pub(crate) fn connect(socket: &Path) -> Result<UnixStream, Trouble> {
    let began = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if began.elapsed() > Duration::from_secs(10) => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}
