//! One request and its answer.
//!
//! Owns: the connection, encrypted where the URL says so, and the bound of an answer. May not know: what is sent. Whoever asks bounds
//! the time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::settings::Header;
use crate::config::CollectorUrl;

/// Bytes of an answer that are read; one says how many spans were rejected, and why.
const ANSWER: usize = 64 * 1024;

/// What was answered.
pub(super) struct Answer {
    pub(super) status: u16,
    /// When to try again, where it says so in seconds.
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Bytes,
}

/// There was no answer, and this is why; nothing of what was sent or of a header is in it.
pub(super) struct NoAnswer(pub(super) String);

impl NoAnswer {
    fn to(what: &str, error: &dyn std::error::Error) -> Self {
        let mut said = format!("failed to {what}: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            said = format!("{said}: {cause}");
            source = cause.source();
        }
        Self(said)
    }
}

/// Sends a message.
///
/// # Cancel safety
///
/// Dropping the future closes the connection; whether the message was taken is not known then.
pub(super) async fn post(
    url: &CollectorUrl,
    tls: Option<Arc<ClientConfig>>,
    headers: &[Header],
    body: Bytes,
) -> Result<Answer, NoAnswer> {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(&url.path)
        .header(HOST, url.authority())
        .header(CONTENT_TYPE, "application/x-protobuf")
        .header(USER_AGENT, concat!("phone-opus/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close");
    for Header { name, value } in headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(body)).map_err(|error| NoAnswer::to("write a request", &error))?;
    let connected = TcpStream::connect((url.host.as_str(), url.port)).await;
    let socket = connected.map_err(|error| NoAnswer::to(&format!("connect to {}", url.authority()), &error))?;
    match tls {
        None => exchange(socket, request).await,
        Some(tls) => {
            let name = ServerName::try_from(url.host.clone())
                .map_err(|error| NoAnswer::to("verify the collector's name", &error))?;
            let secured = TlsConnector::from(tls).connect(name, socket).await;
            exchange(secured.map_err(|error| NoAnswer::to("verify the collector", &error))?, request).await
        }
    }
}

async fn exchange<S>(socket: S, request: Request<Full<Bytes>>) -> Result<Answer, NoAnswer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| NoAnswer::to("have an answer", &error);
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(failed)?;
    let asking = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status().as_u16();
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let body = Limited::new(response.into_body(), ANSWER).collect().await;
        // An answer without an end, or a longer one, still has a status.
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Ok(Answer { status, retry_after: seconds.map(Duration::from_secs), body })
    };
    let mut asking = std::pin::pin!(asking);
    // The connection does the reading and writing for as long as somebody asks by it.
    tokio::select! {
        biased;
        answer = &mut asking => answer,
        ended = connection => {
            ended.map_err(failed)?;
            asking.await
        }
    }
}
