//! Where a server listens, and how what comes in becomes a connection.
//!
//! Owns: the words for it, the listening socket, how many may be at the door and for how long, the answers to those who are not let
//! in. May not know: sessions; who may come in is `admission.rs`'s.
//!
//! Invariants: (1) nobody is served before they are judged; (2) a failed accept or a slow stranger costs nobody else anything;
//! (3) off this machine nobody is listened to without a token; (4) a socket's file is taken away only if it is our own.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixListener;

use super::admission::{BearerToken, is_loopback};
use super::host::ExecServer;
use crate::base::socket::accept::{Accepting, Arrival, Next};
use crate::base::socket::listener::{ListenError, Listener, SocketPlace};
use crate::base::socket::{paths, peer};
use crate::base::tasks::TaskSet;

#[cfg(feature = "ws")]
mod upgrade;

/// Connections at once, those that are still at the door included: each session's one, and as many again for who comes back before
/// the old one is known to be gone.
const CONNECTIONS: usize = 2 * super::sessions::SESSIONS;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAt {
    /// A WebSocket at this address.
    Ws(SocketAddr),
    /// A Unix socket with this file.
    Unix(PathBuf),
    /// The standard streams.
    Stdio,
}

/// The forms that are accepted, as an error tells them.
pub const LISTEN_FORMS: &str = "ws://IP:PORT (an address, not a name; port 0 for any), unix:/PATH, stdio";

impl ListenAt {
    /// The place these words mean.
    ///
    /// # Errors
    /// What is wrong with them and what is accepted.
    pub fn parse(words: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("{why}; accepted: {LISTEN_FORMS}"));
        if matches!(words, "stdio" | "stdio://") {
            return Ok(Self::Stdio);
        }
        if let Some(path) = words.strip_prefix("unix:") {
            let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
            return match () {
                () if !path.is_absolute() => wrong("the path is not absolute"),
                () if path.as_os_str().len() > paths::LONGEST => wrong("the path is too long for a socket"),
                () => Ok(Self::Unix(path)),
            };
        }
        match words.strip_prefix("ws://") {
            Some(address) => match address.strip_suffix('/').unwrap_or(address).parse() {
                Ok(address) => Ok(Self::Ws(address)),
                Err(_) => wrong("this is no address and port"),
            },
            None if words.starts_with("wss://") => {
                wrong("this server does not encrypt: put a proxy with a certificate before it, or use ssh")
            }
            None => wrong("it is not known where that is"),
        }
    }

    /// Whether this place is used only with a token: others than this machine's can reach it.
    #[must_use]
    pub fn needs_a_token(&self) -> bool {
        matches!(self, Self::Ws(address) if !is_loopback(address.ip()))
    }
}

/// A door that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The file of a socket could not be had.
    #[error(transparent)]
    Socket(#[from] ListenError),
    /// The system refused.
    #[error("listen at {at}")]
    Io {
        /// Where.
        at: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others could come in.
    #[error("listen at {at}: others than this machine's processes can reach it, so it needs --token-file")]
    NeedsAToken {
        /// Where.
        at: SocketAddr,
    },
    /// The program was built without it.
    #[error("listen at {at}: this program was built without the feature `ws`")]
    NotBuilt {
        /// Where.
        at: SocketAddr,
    },
}

/// An open door.
#[derive(Debug)]
pub struct ExecDoor {
    kind: DoorKind,
    token: Option<BearerToken>,
}

#[derive(Debug)]
enum DoorKind {
    #[cfg(feature = "ws")]
    Ws(tokio::net::TcpListener),
    Unix(UnixListener, Place),
}

/// Takes a socket's file away when the door goes.
#[derive(Debug)]
struct Place(SocketPlace);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.unlink();
    }
}

impl ExecDoor {
    /// Opens a door; `None` for the standard streams, which are none. In a runtime.
    ///
    /// # Errors
    /// A [`DoorError`]; nothing is left.
    pub async fn open(at: &ListenAt, token: Option<BearerToken>) -> Result<Option<Self>, DoorError> {
        let kind = match at {
            ListenAt::Stdio => return Ok(None),
            #[cfg(not(feature = "ws"))]
            ListenAt::Ws(at) => return Err(DoorError::NotBuilt { at: *at }),
            #[cfg(feature = "ws")]
            ListenAt::Ws(address) => {
                if token.is_none() && at.needs_a_token() {
                    return Err(DoorError::NeedsAToken { at: *address });
                }
                let io = |source| DoorError::Io { at: format!("ws://{address}"), source };
                DoorKind::Ws(tokio::net::TcpListener::bind(address).await.map_err(io)?)
            }
            ListenAt::Unix(path) => {
                let io = |source| DoorError::Io { at: format!("unix:{}", path.display()), source };
                let listener = Listener::bind(path)?;
                let place = Place(listener.place().clone());
                let socket = std::os::unix::net::UnixListener::from(listener.into_socket());
                DoorKind::Unix(UnixListener::from_std(socket).map_err(io)?, place)
            }
        };
        Ok(Some(Self { kind, token }))
    }

    /// What a client is to be told: the place with the port that was chosen.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.kind {
            #[cfg(feature = "ws")]
            DoorKind::Ws(listener) => {
                listener.local_addr().map_or_else(|_| String::new(), |address| format!("ws://{address}"))
            }
            DoorKind::Unix(_, place) => format!("unix:{}", place.0.path.display()),
        }
    }

    /// Lets clients in until it is dropped or the socket cannot be used any more.
    ///
    /// # Errors
    /// The socket is none any more.
    ///
    /// # Cancel safety
    /// Dropping the future closes the door and ends every connection.
    pub async fn serve(self, server: ExecServer) -> io::Result<()> {
        let token = self.token.map(Arc::new);
        let mut connections = TaskSet::new();
        let mut accepting = Accepting::default();
        loop {
            // A peer that went is forgotten before the next one is counted.
            while connections.try_join_next().is_some() {}
            let accepted = match &self.kind {
                #[cfg(feature = "ws")]
                DoorKind::Ws(listener) => listener.accept().await.map(|(socket, peer)| Guest::Tcp(socket, peer)),
                DoorKind::Unix(listener, _) => listener.accept().await.map(|(socket, _)| Guest::Unix(socket)),
            };
            let arrival = match &accepted {
                Ok(_) => Arrival::Client,
                Err(error) => Arrival::Failed(rustix::io::Errno::from_io_error(error).unwrap_or(rustix::io::Errno::IO)),
            };
            match (accepting.step(arrival, Instant::now()), accepted) {
                (Next::Broken(_), Err(error)) => return Err(error),
                (Next::Rest(rest), _) => rest_for(rest, &mut connections).await,
                (_, Ok(guest)) if connections.len() < CONNECTIONS => {
                    connections.spawn(receive(guest, server.clone(), token.clone()));
                }
                // Dropped, which closes it: whoever it is may come again.
                (_, Ok(_)) => tracing::warn!("{CONNECTIONS} connections are open, and one more was turned away"),
                (_, Err(error)) => tracing::debug!(%error, "a client went before it came in"),
            }
        }
    }
}

async fn rest_for(rest: Duration, connections: &mut TaskSet<()>) {
    tracing::warn!(?rest, "no client can be let in for the moment");
    let resting = tokio::time::sleep(rest);
    tokio::pin!(resting);
    loop {
        tokio::select! {
            () = &mut resting => return,
            // What ends gives a descriptor back.
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Who came to the door.
enum Guest {
    #[cfg(feature = "ws")]
    Tcp(tokio::net::TcpStream, SocketAddr),
    Unix(tokio::net::UnixStream),
}

async fn receive(guest: Guest, server: ExecServer, token: Option<Arc<BearerToken>>) {
    #[cfg(not(feature = "ws"))]
    let _ = token;
    match guest {
        #[cfg(feature = "ws")]
        Guest::Tcp(socket, peer) => upgrade::receive(socket, peer, server, token).await,
        Guest::Unix(socket) => {
            let theirs = socket.peer_cred().ok().map(|peer| peer.uid());
            if let Err(stranger) = peer::admit(theirs, rustix::process::geteuid().as_raw()) {
                tracing::warn!(%stranger, "a client was turned away");
                return;
            }
            let (reader, writer) = socket.into_split();
            let end = server.serve(reader, writer, None, None).await;
            tracing::debug!(?end, "a connection ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_address_a_path_or_the_standard_streams() {
        assert_eq!(ListenAt::parse("stdio"), Ok(ListenAt::Stdio));
        assert_eq!(ListenAt::parse("stdio://"), Ok(ListenAt::Stdio));
        assert_eq!(ListenAt::parse("unix:/a/b"), Ok(ListenAt::Unix("/a/b".into())));
        assert_eq!(ListenAt::parse("unix:///a/b"), Ok(ListenAt::Unix("/a/b".into())));
        for (words, far) in
            [("ws://127.0.0.1:0", false), ("ws://[::1]:4/", false), ("ws://0.0.0.0:4", true), ("ws://[::]:4", true)]
        {
            assert_eq!(ListenAt::parse(words).expect(words).needs_a_token(), far, "{words}");
        }
        for wrong in [
            "",
            "ws://localhost:4",
            "ws://127.0.0.1",
            "ws://:4",
            "http://127.0.0.1:4",
            "wss://127.0.0.1:4",
            "unix:a",
            "unix:",
            "tcp:4",
            "127.0.0.1:4",
            &format!("unix:/{}", "x".repeat(200)),
        ] {
            let said = ListenAt::parse(wrong).expect_err(wrong);
            for form in ["ws://IP:PORT", "unix:/PATH", "stdio"] {
                assert!(said.contains(form), "{wrong}: {said}");
            }
        }
    }

    #[cfg(feature = "ws")]
    #[tokio::test]
    async fn off_this_machine_nobody_is_listened_to_without_a_token() {
        let at = ListenAt::parse("ws://0.0.0.0:0").expect("a place");
        let said = ExecDoor::open(&at, None).await.expect_err("no token").to_string();
        assert!(said.contains("--token-file"), "{said}");
    }
}
