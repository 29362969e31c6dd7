//! The protocol's messages.
//!
//! Owns: how a span and a metric are written. Pure. May not know: how a message is sent.

use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value as ProtoValue;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric as ProtoMetric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link, SpanKind as ProtoKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as ProtoSpan, Status};
use prost::Message as _;

use crate::base::ids::UnixMillis;
use crate::telemetry::metrics::{Metric, MetricValue};
use crate::telemetry::traces::spans::{Attributes, Span, SpanKind, Value};

/// The flag of a sampled span.
const SAMPLED: u32 = 1;

fn value(value: &Value) -> AnyValue {
    let value = match value {
        Value::Text(text) => ProtoValue::StringValue(text.clone()),
        Value::Int(number) => ProtoValue::IntValue(*number),
        Value::Real(number) => ProtoValue::DoubleValue(*number),
        Value::Bool(yes) => ProtoValue::BoolValue(*yes),
    };
    AnyValue { value: Some(value) }
}

fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a Value)>) -> Vec<KeyValue> {
    let pair = |(name, said): (&str, &Value)| KeyValue {
        key: name.to_owned(),
        value: Some(value(said)),
        ..KeyValue::default()
    };
    pairs.into_iter().map(pair).collect()
}

fn attributes(attributes: &Attributes) -> Vec<KeyValue> {
    pairs(attributes.iter().map(|(name, value)| (*name, value)))
}

fn resource(said: &[(String, Value)]) -> Option<Resource> {
    let attributes = pairs(said.iter().map(|(name, value)| (name.as_str(), value)));
    Some(Resource { attributes, ..Resource::default() })
}

fn scope() -> Option<InstrumentationScope> {
    let (name, version) = ("phone-opus".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    Some(InstrumentationScope { name, version, ..InstrumentationScope::default() })
}

fn span(span: &Span) -> ProtoSpan {
    let kind = match span.kind {
        SpanKind::Internal => ProtoKind::Internal,
        SpanKind::Server => ProtoKind::Server,
        SpanKind::Client => ProtoKind::Client,
    };
    let event = |event: &crate::telemetry::traces::spans::SpanEvent| Event {
        time_unix_nano: event.at,
        name: event.name.to_owned(),
        attributes: attributes(&event.attributes),
        ..Event::default()
    };
    let link = |(trace, id): &(crate::base::trace::TraceId, crate::base::trace::SpanId)| Link {
        trace_id: trace.bytes().to_vec(),
        span_id: id.bytes().to_vec(),
        ..Link::default()
    };
    let code = if span.failed { StatusCode::Error } else { StatusCode::Unset };
    ProtoSpan {
        trace_id: span.trace.bytes().to_vec(),
        span_id: span.id.bytes().to_vec(),
        trace_state: span.state.clone().unwrap_or_default(),
        parent_span_id: span.parent.map(|parent| parent.bytes().to_vec()).unwrap_or_default(),
        flags: SAMPLED,
        name: span.name.clone(),
        kind: kind.into(),
        start_time_unix_nano: span.start,
        end_time_unix_nano: span.end,
        attributes: attributes(&span.attributes),
        events: span.events.iter().map(event).collect(),
        links: span.links.iter().map(link).collect(),
        // No message: an error's text may quote what was asked.
        status: Some(Status { message: String::new(), code: code.into() }),
        ..ProtoSpan::default()
    }
}

/// The request that exports spans.
pub(super) fn traces(spans: &[Span], of: &[(String, Value)]) -> ExportTraceServiceRequest {
    let scope = ScopeSpans { scope: scope(), spans: spans.iter().map(span).collect(), ..ScopeSpans::default() };
    let spans = ResourceSpans { resource: resource(of), scope_spans: vec![scope], ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![spans] }
}

/// How many spans of a request were rejected.
pub(super) fn rejected_spans(answer: &[u8]) -> u64 {
    let answer = ExportTraceServiceResponse::decode(answer).unwrap_or_default();
    let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
    u64::try_from(rejected).unwrap_or(0)
}

/// The times of a metric's values.
#[derive(Debug, Clone, Copy)]
pub(super) struct When {
    /// Since when counters count.
    pub(super) since: UnixMillis,
    /// Since when distributions are added up.
    pub(super) began: UnixMillis,
    /// When it was looked.
    pub(super) now: UnixMillis,
}

fn nanos(at: UnixMillis) -> u64 {
    u64::try_from(at.0).unwrap_or(0).saturating_mul(1_000_000)
}

fn number((said, measured): &(Attributes, MetricValue), since: UnixMillis, now: UnixMillis) -> Option<NumberDataPoint> {
    let (MetricValue::Count(number) | MetricValue::Level(number)) = measured else { return None };
    Some(NumberDataPoint {
        attributes: attributes(said),
        start_time_unix_nano: nanos(since),
        time_unix_nano: nanos(now),
        value: Some(Number::AsInt(i64::try_from(*number).unwrap_or(i64::MAX))),
        ..NumberDataPoint::default()
    })
}

fn spread((said, measured): &(Attributes, MetricValue), when: When) -> Option<HistogramDataPoint> {
    let MetricValue::Distribution(spread) = measured else { return None };
    Some(HistogramDataPoint {
        attributes: attributes(said),
        start_time_unix_nano: nanos(when.began),
        time_unix_nano: nanos(when.now),
        count: spread.count(),
        sum: Some(spread.sum),
        bucket_counts: spread.counts.clone(),
        explicit_bounds: spread.bounds.to_vec(),
        ..HistogramDataPoint::default()
    })
}

fn metric(metric: &Metric, when: When) -> ProtoMetric {
    let cumulative: i32 = AggregationTemporality::Cumulative.into();
    let numbers = |since| -> Vec<NumberDataPoint> {
        metric.points.iter().filter_map(|point| number(point, since, when.now)).collect()
    };
    let data = match metric.points.first() {
        Some((_, MetricValue::Distribution(_))) => {
            let data_points = metric.points.iter().filter_map(|point| spread(point, when)).collect();
            Data::Histogram(Histogram { data_points, aggregation_temporality: cumulative })
        }
        Some((_, MetricValue::Level(_))) => Data::Gauge(Gauge { data_points: numbers(when.now) }),
        Some((_, MetricValue::Count(_))) | None => {
            Data::Sum(Sum { data_points: numbers(when.since), aggregation_temporality: cumulative, is_monotonic: true })
        }
    };
    ProtoMetric {
        name: metric.name.to_owned(),
        description: metric.what.to_owned(),
        unit: metric.unit.to_owned(),
        data: Some(data),
        ..ProtoMetric::default()
    }
}

/// The request that exports metrics.
pub(super) fn metrics(all: &[Metric], when: When, of: &[(String, Value)]) -> ExportMetricsServiceRequest {
    let metrics = all.iter().map(|one| metric(one, when)).collect();
    let scope = ScopeMetrics { scope: scope(), metrics, ..ScopeMetrics::default() };
    let metrics = ResourceMetrics { resource: resource(of), scope_metrics: vec![scope], ..ResourceMetrics::default() };
    ExportMetricsServiceRequest { resource_metrics: vec![metrics] }
}

/// How many values of a request were rejected.
pub(super) fn rejected_points(answer: &[u8]) -> u64 {
    let answer = ExportMetricsServiceResponse::decode(answer).unwrap_or_default();
    let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_data_points);
    u64::try_from(rejected).unwrap_or(0)
}
