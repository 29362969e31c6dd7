//! Connecting to a WebSocket.
//!
//! Owns: finding the address, the handshake, who may be asked for the token. May not know: what the connection is for.
//!
//! Invariant: what is not encrypted goes to a loopback address and to no other.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::http::Uri;
use tokio_tungstenite::tungstenite::{ClientRequestBuilder, Error};

use super::super::target::ServerUrl;
use super::{BoxRead, BoxWrite, TransportError, ws};

/// A WebSocket on this machine.
pub(super) async fn plain(url: &ServerUrl, token: Option<&str>) -> Result<(BoxRead, BoxWrite), TransportError> {
    let target = format!("ws://{url}");
    let unreachable = |source| TransportError::Unreachable { target: target.clone(), source };
    let addresses = url
        .loopback()
        .ok_or_else(|| unreachable(io::Error::new(io::ErrorKind::InvalidInput, "it is not on this machine")))?;
    let addresses: Vec<_> = addresses.into_iter().map(|address| (address, url.port()).into()).collect();
    let socket = TcpStream::connect(addresses.as_slice()).await.map_err(unreachable)?;
    let _ = socket.set_nodelay(true);
    shake_hands(&target, socket, token).await
}

/// A WebSocket whose server is verified.
#[cfg(feature = "tls")]
pub(super) async fn secure(url: &ServerUrl, token: Option<&str>) -> Result<(BoxRead, BoxWrite), TransportError> {
    let target = format!("wss://{url}");
    let unreachable = |source| TransportError::Unreachable { target: target.clone(), source };
    let socket = TcpStream::connect((url.host(), url.port())).await.map_err(unreachable)?;
    let _ = socket.set_nodelay(true);
    let socket = super::tls::secure(url.host(), socket).await.map_err(|source| {
        // Another attempt proves no more than this one.
        if super::tls::is_unproven(&source) {
            TransportError::Refused { target: target.clone(), why: format!("it does not prove who it is: {source}") }
        } else {
            unreachable(source)
        }
    })?;
    shake_hands(&target, socket, token).await
}

async fn shake_hands<S>(target: &str, socket: S, token: Option<&str>) -> Result<(BoxRead, BoxWrite), TransportError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let refused = |why: String| TransportError::Refused { target: target.to_owned(), why };
    let address: Uri = target.parse().map_err(|_| refused("this is no address".to_owned()))?;
    let mut request = ClientRequestBuilder::new(address);
    if let Some(token) = token {
        request = request.with_header("Authorization", format!("Bearer {token}"));
    }
    match client_async_with_config(request, socket, Some(ws::bounds(ws::Side::Client))).await {
        Ok((socket, _)) => {
            let (read, write) = ws::split(socket);
            Ok((Box::new(read.with_keepalive()), Box::new(write)))
        }
        Err(Error::Http(answer)) => Err(refused(match answer.status().as_u16() {
            401 => "it asks for a token, and ours is missing or wrong (401)".to_owned(),
            403 => "it refuses us (403)".to_owned(),
            other => format!("it answers with {other}, so it is no exec server"),
        })),
        Err(Error::Io(source)) => Err(TransportError::Unreachable { target: target.to_owned(), source }),
        Err(other) => Err(refused(other.to_string())),
    }
}
