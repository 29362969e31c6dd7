//! A collector's side of the protocol: takes what is sent to it, and answers as a test wants.
//!
//! Owns: a port of this machine, every byte that came by it, the spans and metrics of them. The messages are OpenTelemetry's own crate.
//!
//! Laws: L13.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::trace::v1::Span;
use phone_opus::testkit::{PATIENCE, Waiting};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// It takes everything.
    Takes,
    /// It answers with this status.
    Status(u16),
    /// It takes a request, and never answers.
    Silent,
    /// It answers after this.
    Slow(Duration),
}

#[derive(Default)]
struct Came {
    bytes: Vec<u8>,
    requests: usize,
    spans: Vec<Span>,
    resources: Vec<Vec<KeyValue>>,
    metrics: Vec<Metric>,
    headers: Vec<HeaderMap>,
    broken: Vec<String>,
}

#[derive(Clone)]
struct Desk {
    came: Arc<Mutex<Came>>,
    manner: Arc<Mutex<Manner>>,
}

impl Desk {
    fn came<T>(&self, look: impl FnOnce(&mut Came) -> T) -> T {
        look(&mut self.came.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One that listens until it is dropped.
pub(super) struct TestCollector {
    desk: Desk,
    port: u16,
    serving: JoinHandle<()>,
}

impl Drop for TestCollector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn take(desk: Desk, request: Request<Incoming>) -> StatusCode {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return StatusCode::BAD_REQUEST };
    let body = body.to_bytes();
    let manner = *desk.manner.lock().unwrap_or_else(PoisonError::into_inner);
    desk.came(|came| {
        came.requests += 1;
        came.bytes.extend_from_slice(&body);
        came.headers.push(head.headers.clone());
    });
    match manner {
        Manner::Takes => {}
        Manner::Status(status) => return StatusCode::from_u16(status).expect("a status"),
        Manner::Silent => std::future::pending().await,
        Manner::Slow(so) => tokio::time::sleep(so).await,
    }
    desk.came(|came| match head.uri.path() {
        "/v1/traces" => match ExportTraceServiceRequest::decode(body) {
            Ok(request) => {
                for of_one in request.resource_spans {
                    came.resources.extend(of_one.resource.map(|resource| resource.attributes));
                    came.spans.extend(of_one.scope_spans.into_iter().flat_map(|scope| scope.spans));
                }
            }
            Err(error) => came.broken.push(error.to_string()),
        },
        "/v1/metrics" => match ExportMetricsServiceRequest::decode(body) {
            Ok(request) => {
                let scopes = request.resource_metrics.into_iter().flat_map(|of_one| of_one.scope_metrics);
                came.metrics = scopes.flat_map(|scope| scope.metrics).collect();
            }
            Err(error) => came.broken.push(error.to_string()),
        },
        other => came.broken.push(other.to_owned()),
    });
    StatusCode::OK
}

impl TestCollector {
    pub(super) async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let desk = Desk { came: Arc::default(), manner: Arc::new(Mutex::new(manner)) };
        let serving = tokio::spawn({
            let desk = desk.clone();
            async move {
                let mut open = JoinSet::new();
                while let Ok((socket, _)) = listener.accept().await {
                    let desk = desk.clone();
                    let service = service_fn(move |request| {
                        let desk = desk.clone();
                        async move {
                            let mut response = Response::new(Empty::<Bytes>::new());
                            *response.status_mut() = take(desk, request).await;
                            Ok::<_, Infallible>(response)
                        }
                    });
                    open.spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), service));
                }
            }
        });
        Self { desk, port, serving }
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) fn answers(&self, manner: Manner) {
        *self.desk.manner.lock().unwrap_or_else(PoisonError::into_inner) = manner;
    }

    /// Everything that came, as it came.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.desk.came(|came| came.bytes.clone())
    }

    pub(super) fn requests(&self) -> usize {
        self.desk.came(|came| came.requests)
    }

    pub(super) fn headers(&self) -> Vec<HeaderMap> {
        self.desk.came(|came| came.headers.clone())
    }

    pub(super) fn resources(&self) -> Vec<Vec<KeyValue>> {
        self.desk.came(|came| came.resources.clone())
    }

    pub(super) fn metrics(&self) -> Vec<Metric> {
        self.desk.came(|came| came.metrics.clone())
    }

    /// The spans so far, each once: what was sent again is the same.
    pub(super) fn spans(&self) -> Spans {
        let (spans, broken) = self.desk.came(|came| (came.spans.clone(), came.broken.clone()));
        assert_eq!(broken, Vec::<String>::new(), "what came is the protocol's");
        let mut known: BTreeMap<(Vec<u8>, Vec<u8>), Span> = BTreeMap::new();
        for span in spans {
            let key = (span.trace_id.clone(), span.span_id.clone());
            let first = known.entry(key).or_insert_with(|| span.clone());
            assert_eq!(*first, span, "told again it is the same");
        }
        Spans(known.into_values().collect())
    }

    /// Waits until the spans are as wanted.
    pub(super) async fn until(&self, what: &str, is_there: impl Fn(&Spans) -> bool) -> Spans {
        let waiting = Waiting::until(what.to_owned(), PATIENCE);
        loop {
            let spans = self.spans();
            if is_there(&spans) {
                return spans;
            }
            waiting.again(|| format!("{:#?}", spans.drawn())).await;
        }
    }
}

/// Spans, to be asked about.
pub(super) struct Spans(pub(super) Vec<Span>);

impl Spans {
    pub(super) fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Span> {
        self.0.iter().filter(move |span| span.name == name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.named(name).next().is_some()
    }

    /// The one span of this name.
    pub(super) fn the<'a>(&'a self, name: &'a str) -> &'a Span {
        let found: Vec<&Span> = self.named(name).collect();
        assert_eq!(found.len(), 1, "{name} among {:#?}", self.drawn());
        found[0]
    }

    pub(super) fn above(&self, span: &Span) -> Option<&Span> {
        self.0.iter().find(|above| above.span_id == span.parent_span_id && above.trace_id == span.trace_id)
    }

    /// The names from the top down to this span.
    pub(super) fn way_to<'a>(&'a self, span: &'a Span) -> Vec<&'a str> {
        let mut way = vec![span.name.as_str()];
        let mut at = span;
        while let Some(above) = self.above(at) {
            way.insert(0, &above.name);
            at = above;
        }
        way
    }

    /// How many traces they are of.
    pub(super) fn traces(&self) -> usize {
        self.0.iter().map(|span| &span.trace_id).collect::<std::collections::BTreeSet<_>>().len()
    }

    /// For a person.
    pub(super) fn drawn(&self) -> Vec<String> {
        let one = |span: &Span| format!("{} {}", hex(&span.trace_id[..4]), self.way_to(span).join(" > "));
        self.0.iter().map(one).collect()
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The text of an attribute.
pub(super) fn said(attributes: &[KeyValue], name: &str) -> Option<String> {
    let value = attributes.iter().find(|pair| pair.key == name)?.value.clone()?.value?;
    Some(match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        Value::BoolValue(yes) => yes.to_string(),
        other => format!("{other:?}"),
    })
}
