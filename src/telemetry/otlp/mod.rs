//! A collector that speaks OTLP: protobuf over HTTP.
//!
//! Owns: one request for each batch, what an answer's status means. May not know: what is in a span, when something is sent.
//!
//! Reading order: [`settings`] for where and by which words of the user's, [`wire`] for the messages, [`http`] for the bytes.
//!
//! The messages are OpenTelemetry's own crate; its SDK is not used for them. That draws ids, keeps open spans in one process and
//! exports from a thread of its own, and a consult outlives processes, images and hosts.

mod http;
pub mod settings;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use prost::Message as _;
use tokio::sync::OnceCell;
use tokio_rustls::rustls::ClientConfig;

use self::http::{Answer, NoAnswer};
use self::settings::{Header, OtlpSettings};
use super::collector::{Collector, ExportAnswer};
use super::metrics::Metric;
use super::traces::spans::Span;
use crate::base::ids::UnixMillis;
use crate::base::tasks;
use crate::config::CollectorUrl;
use crate::exec::transport::{client_config, client_config_by};

/// A collector at the other end of an HTTP connection. Each request has a connection of its own: there is one in seconds at most.
pub struct OtlpCollector {
    settings: OtlpSettings,
    /// Since when counters count.
    since: UnixMillis,
    /// Since when what jobs add up to is added up.
    began: UnixMillis,
    /// Read once, when the first connection needs it.
    tls: OnceCell<Arc<ClientConfig>>,
}

impl OtlpCollector {
    /// One that is not reached before it is sent something. `since` is when this host began, over all its images.
    #[must_use]
    pub fn new(settings: OtlpSettings, since: UnixMillis) -> Self {
        Self { settings, since, began: UnixMillis::now(), tls: OnceCell::new() }
    }

    /// Asks whether a collector is there, by sending it nothing. What it answers, in words.
    ///
    /// # Errors
    ///
    /// It does not answer, or refuses.
    pub async fn examine(settings: OtlpSettings) -> Result<String, String> {
        let collector = Self::new(settings, UnixMillis::now());
        let (sent, url) = match (&collector.settings.traces, &collector.settings.metrics) {
            (Some(url), _) => (collector.spans(&[]).await, url),
            (None, Some(url)) => (collector.metrics(&[]).await, url),
            (None, None) => return Err("neither traces nor metrics are to be sent".to_owned()),
        };
        match sent {
            ExportAnswer::Taken { .. } => Ok(url.shown()),
            ExportAnswer::Later { why, .. } | ExportAnswer::Refused { why } => Err(format!("{}: {why}", url.shown())),
        }
    }

    async fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let config = self.tls.get_or_try_init(|| async {
            let file = self.settings.certificate.clone();
            // Files are read: not on the runtime's thread.
            let read = tasks::spawn_blocking(move || match file {
                None => client_config().map_err(|error| error.to_string()),
                Some(file) => client_config_by(&file)
                    .map_err(|error| format!("failed to read OTEL_EXPORTER_OTLP_CERTIFICATE: {error}")),
            });
            read.await.map_err(|error| error.to_string())?.map(Arc::new)
        });
        config.await.cloned()
    }

    async fn post(&self, url: &CollectorUrl, body: Vec<u8>, rejected: fn(&[u8]) -> u64) -> ExportAnswer {
        let later = |why: String| ExportAnswer::Later { after: None, why };
        let tls = match url.secure {
            true => match self.tls().await {
                Ok(tls) => Some(tls),
                Err(why) => return later(why),
            },
            false => None,
        };
        let headers: &[Header] = &self.settings.headers;
        let posted = http::post(url, tls, headers, Bytes::from(body));
        match tokio::time::timeout(self.settings.timeout, posted).await {
            Err(_) => later(format!("it did not answer within {} ms", self.settings.timeout.as_millis())),
            Ok(Err(NoAnswer(why))) => later(why),
            Ok(Ok(Answer { status, retry_after, body })) => match status {
                200..=299 => ExportAnswer::Taken { rejected: rejected(&body) },
                // Those that the protocol says to try again.
                429 | 502 | 503 | 504 => {
                    ExportAnswer::Later { after: retry_after, why: format!("it answered with status {status}") }
                }
                _ => ExportAnswer::Refused { why: format!("it answered with status {status}") },
            },
        }
    }
}

impl Collector for OtlpCollector {
    fn spans<'a>(&'a self, spans: &'a [Span]) -> BoxFuture<'a, ExportAnswer> {
        async move {
            let Some(url) = &self.settings.traces else { return ExportAnswer::Taken { rejected: 0 } };
            let request = wire::traces(spans, &self.settings.resource);
            self.post(url, request.encode_to_vec(), wire::rejected_spans).await
        }
        .boxed()
    }

    fn metrics<'a>(&'a self, metrics: &'a [Metric]) -> BoxFuture<'a, ExportAnswer> {
        async move {
            let Some(url) = &self.settings.metrics else { return ExportAnswer::Taken { rejected: 0 } };
            let when = wire::When { since: self.since, began: self.began, now: UnixMillis::now() };
            let request = wire::metrics(metrics, when, &self.settings.resource);
            self.post(url, request.encode_to_vec(), wire::rejected_points).await
        }
        .boxed()
    }

    fn metrics_every(&self) -> Option<Duration> {
        self.settings.metrics.as_ref().map(|_| self.settings.every)
    }
}
