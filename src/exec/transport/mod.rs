//! Ways to an exec server, each as two streams of lines.
//!
//! Owns: connecting (a WebSocket on this machine, a verified one, a Unix socket, a child's standard streams), the bounds of each,
//! and the child that is started for one. May not know: what the lines say, sessions, whether a connection is made again.
//!
//! Invariants: (1) a connection is two halves, and neither waits for the other; (2) connecting takes [`CONNECT_BOUND`] at most;
//! (3) a child that was started for a connection is ended with its guard, and reaped; (4) a token is in no error and no log.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use self::child::Child;
use super::target::ExecTarget;

mod child;
#[cfg(feature = "ws")]
mod dial;
#[cfg(feature = "ws")]
pub mod keepalive;
pub mod marks;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "ws")]
pub mod ws;

#[cfg(any(feature = "fleet", feature = "otlp"))]
pub(crate) use self::tls::client_config;
#[cfg(feature = "otlp")]
pub(crate) use self::tls::client_config_by;

/// How long a connection may take to be made, name, handshake and certificate included: shorter than the 25 s in which a client may
/// resume, so that a second attempt has its time too.
pub const CONNECT_BOUND: Duration = Duration::from_secs(10);

/// The reading half: lines of the peer.
pub type BoxRead = Box<dyn AsyncRead + Unpin + Send>;

/// The writing half: whole lines to the peer.
pub type BoxWrite = Box<dyn AsyncWrite + Unpin + Send>;

/// A connection that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Nobody answers there, or the system refused.
    #[error("connect to {target}")]
    Unreachable {
        /// Where.
        target: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("connect to {target}: nothing within {} s", CONNECT_BOUND.as_secs())]
    TimedOut {
        /// Where.
        target: String,
    },
    /// Somebody answers and takes nobody in: no exec server, or the token is missing or wrong.
    #[error("connect to {target}: {why}")]
    Refused {
        /// Where.
        target: String,
        /// What was said.
        why: String,
    },
    /// This program cannot do that.
    #[error(
        "connect to {target}: this program was built without the feature `{feature}`; build it with \
         `cargo install --path . --features {feature}`, or use \"unix:/PATH\" or [\"ssh\", \"HOST\", …]"
    )]
    NotBuilt {
        /// Where.
        target: String,
        /// What it lacks.
        feature: &'static str,
    },
}

/// What lives as long as the connection: the child whose standard streams it is. Dropping it kills the child's group.
#[derive(Debug)]
pub struct TransportGuard {
    child: Option<Child>,
}

impl TransportGuard {
    const fn none() -> Self {
        Self { child: None }
    }

    /// Ends what was started for the connection, and reaps it: in order where it ends by itself once its streams are closed.
    /// Drop both halves first.
    ///
    /// # Cancel safety
    /// Dropping the future kills it.
    pub async fn end(self) {
        if let Some(child) = self.child {
            child.end().await;
        }
    }

    /// What a child said on its standard error last; empty for a socket.
    #[must_use]
    pub fn last_words(&self) -> String {
        self.child.as_ref().map(Child::last_words).unwrap_or_default()
    }
}

/// Says whether this program can reach such a target at all, for whoever reads a configuration.
///
/// # Errors
/// [`TransportError::NotBuilt`].
pub fn check(target: &ExecTarget) -> Result<(), TransportError> {
    let lacks = |feature| Err(TransportError::NotBuilt { target: target.to_string(), feature });
    match target {
        ExecTarget::Ws { .. } if cfg!(not(feature = "ws")) => lacks("ws"),
        ExecTarget::Wss { .. } if cfg!(not(feature = "tls")) => lacks("tls"),
        ExecTarget::Own { .. } => {
            let why = "it is a machine of another program's own".to_owned();
            Err(TransportError::Refused { target: target.to_string(), why })
        }
        _ => Ok(()),
    }
}

/// Connects. The token is sent to a WebSocket and to nobody else.
///
/// # Errors
/// A [`TransportError`]; nothing of the connection is left.
///
/// # Cancel safety
/// Dropping the future leaves nothing.
pub async fn connect(
    target: &ExecTarget,
    token: Option<&str>,
) -> Result<(BoxRead, BoxWrite, TransportGuard), TransportError> {
    check(target)?;
    let unreachable = |source| TransportError::Unreachable { target: target.to_string(), source };
    let connecting = async {
        match target {
            #[cfg(feature = "ws")]
            ExecTarget::Ws { url } => {
                dial::plain(url, token).await.map(|(read, write)| (read, write, TransportGuard::none()))
            }
            #[cfg(feature = "tls")]
            ExecTarget::Wss { url } => {
                dial::secure(url, token).await.map(|(read, write)| (read, write, TransportGuard::none()))
            }
            // What was not built was refused by `check`.
            #[cfg(not(feature = "ws"))]
            ExecTarget::Ws { .. } => Err(TransportError::NotBuilt { target: target.to_string(), feature: "ws" }),
            #[cfg(not(feature = "tls"))]
            ExecTarget::Wss { .. } => Err(TransportError::NotBuilt { target: target.to_string(), feature: "tls" }),
            // Refused by `check`.
            ExecTarget::Own { .. } => Err(TransportError::TimedOut { target: target.to_string() }),
            ExecTarget::Unix { path } => {
                let socket = tokio::net::UnixStream::connect(path).await.map_err(unreachable)?;
                let (read, write) = socket.into_split();
                Ok((Box::new(read) as BoxRead, Box::new(write) as BoxWrite, TransportGuard::none()))
            }
            ExecTarget::Child { argv } => {
                let (read, write, child) = Child::start(argv).map_err(unreachable)?;
                Ok((read, write, TransportGuard { child: Some(child) }))
            }
        }
    };
    #[cfg(not(feature = "ws"))]
    let _ = token;
    match tokio::time::timeout(CONNECT_BOUND, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(TransportError::TimedOut { target: target.to_string() }),
    }
}

#[cfg(test)]
mod tests;
