//! From a TCP connection to a WebSocket.
//!
//! Owns: reading a request's head, answering it, and beginning the session. May not know: the rules, which are `admission.rs`'s.

use crate::base::tasks;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::machine::TryParse as _;
use tokio_tungstenite::tungstenite::handshake::server::{Request, create_response, write_response};
use tokio_tungstenite::tungstenite::protocol::Role;

use super::super::super::transport::ws::{self, Side};
use super::super::admission::{Admission, BearerToken, UpgradeAsked, judge, peer_uid};
use super::super::host::ExecServer;

/// Bytes of a request's head; four times what any client sends.
const HEAD_BYTES: usize = 16 * 1024;

/// What a head, or an answer to a stranger, may take.
const AT_THE_DOOR: Duration = Duration::from_secs(10);

/// What the kernel may hold of what is written and not taken by the peer: a stalled connection is felt, and little is lost with one.
const SEND_BUFFER: usize = 256 * 1024;

pub(super) async fn receive(
    mut socket: TcpStream,
    peer: SocketAddr,
    server: ExecServer,
    token: Option<Arc<BearerToken>>,
) {
    let received = tokio::time::timeout(AT_THE_DOOR, shake_hands(&mut socket, peer, token.as_deref())).await;
    let Ok(Some(rest)) = received else { return };
    let socket = WebSocketStream::from_partially_read(socket, rest, Role::Server, Some(ws::bounds(Side::Server))).await;
    let (reader, writer) = ws::split(socket);
    let marks = writer.marks();
    let doubt = reader.doubt();
    let end = server.serve(reader.with_keepalive(), writer, Some(marks), Some(Box::new(move || doubt.say()))).await;
    tracing::debug!(?end, %peer, "a connection ended");
}

/// Reads the head and answers it. What was read behind it, when a WebSocket begins.
async fn shake_hands(socket: &mut TcpStream, peer: SocketAddr, token: Option<&BearerToken>) -> Option<Vec<u8>> {
    let ours = socket.local_addr().ok()?;
    let _ = socket.set_nodelay(true);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&*socket, SEND_BUFFER);
    // Now, while the peer waits for us: its socket is its own.
    let uid = if super::is_loopback(peer.ip()) {
        tasks::spawn_blocking(move || peer_uid(peer, ours)).await.ok()?
    } else {
        None
    };
    let mut head = Vec::new();
    let (size, request) = loop {
        if head.len() >= HEAD_BYTES {
            refuse(socket, 431, "the head of the request is too long").await;
            return None;
        }
        if socket.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
        match Request::try_parse(&head) {
            Ok(Some(parsed)) => break parsed,
            Ok(None) => {}
            Err(_) => {
                refuse(socket, 400, "this is no request for a WebSocket").await;
                return None;
            }
        }
    };
    let response = create_response(&request);
    let header =
        |name: &str| request.headers().get(name).map(tokio_tungstenite::tungstenite::http::HeaderValue::as_bytes);
    let asked = UpgradeAsked {
        path: request.uri().path(),
        has_origin: request.headers().contains_key("Origin"),
        authorization: header("Authorization"),
        is_websocket: response.is_ok(),
        peer,
        uid,
    };
    match (judge(&asked, token, rustix::process::geteuid().as_raw()), response) {
        (Admission::In, Ok(response)) => {
            let mut text = Vec::new();
            write_response(&mut text, &response).ok()?;
            socket.write_all(&text).await.ok()?;
            Some(head.split_off(size))
        }
        (Admission::In, Err(_)) => None,
        (Admission::Answer(status, words), _) => {
            if status != 200 {
                tracing::warn!(%peer, status, "a client was turned away");
            }
            refuse(socket, status, words).await;
            None
        }
    }
}

async fn refuse(socket: &mut TcpStream, status: u16, words: &str) {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        _ => "Refused",
    };
    let challenge = if status == 401 { "WWW-Authenticate: Bearer\r\n" } else { "" };
    let length = words.len() + 1;
    let text = format!(
        "HTTP/1.1 {status} {reason}\r\n{challenge}Content-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{words}\n"
    );
    let _ = socket.write_all(text.as_bytes()).await;
    let _ = socket.shutdown().await;
}
