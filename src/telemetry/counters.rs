//! Counters and histograms.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{Record, ToolCallRecord};
use crate::base::fault::FaultCode;
use crate::protocol::method::Method;
use crate::protocol::session::FinishedAs;

/// Tools or methods counted apart; more (an embedder's) share one row.
const ROWS: usize = 64;

/// Directories counted for the hot-path snapshots; more are not told apart.
const PATHS: usize = 256;

/// Totals since the system started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Requests finished.
    pub requests: u64,
    /// Answered with a result.
    pub successes: u64,
    /// Answered with an error, or an error result.
    pub response_errors: u64,
    /// Withdrawn by their client.
    pub cancelled: u64,
    /// Of the errors: a worker or pipe was lost.
    pub transport_faults: u64,
    /// Attempts after a first one.
    pub retries: u64,
    /// Workers started again.
    pub restarts: u64,
    /// Binaries replaced.
    pub rollouts: u64,
    /// Records telemetry had no room for.
    pub dropped: u64,
    /// Facts for traces that were not exported: no room, or a collector that did not take them.
    #[serde(default)]
    pub traces_dropped: u64,
}

/// One method or tool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MethodRow {
    /// `ping`, `tools/list`, `tools/call:consult`, ….
    pub method: String,
    /// Requests finished.
    pub count: u64,
    /// Of them with an error.
    pub errors: u64,
    /// Median latency in milliseconds; absent for methods answered on the spot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<f64>,
    /// 99th percentile in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
    /// Longest in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ms: Option<f64>,
}

/// Everything counted so far.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CountersReport {
    pub totals: Totals,
    /// By method and tool.
    pub methods: Vec<MethodRow>,
}

#[derive(Default)]
struct Row {
    count: u64,
    errors: u64,
    latency: Option<Histogram<u32>>,
}

/// The counters of one system.
#[derive(Default)]
pub struct Counters {
    totals: Totals,
    methods: BTreeMap<&'static str, Row>,
    tools: BTreeMap<String, Row>,
    paths: BTreeMap<String, u64>,
    tool_calls: u64,
}

impl Counters {
    /// Counts one record.
    pub fn count(&mut self, record: &Record) {
        match record {
            Record::Request { method, result } => {
                self.total(*result);
                let row = self.methods.entry(method).or_default();
                row.count += 1;
                row.errors += u64::from(matches!(result, FinishedAs::Failed(_)));
            }
            Record::ToolCall(call) => self.tool_call(call),
            Record::WorkerRestart { .. } => self.totals.restarts += 1,
            Record::Rollout(rollout) => self.totals.rollouts += u64::from(rollout.outcome == "adopted"),
            Record::JobState { .. } | Record::Fault(_) => {}
        }
    }

    fn total(&mut self, result: FinishedAs) {
        self.totals.requests += 1;
        match result {
            FinishedAs::Success => self.totals.successes += 1,
            FinishedAs::Cancelled => self.totals.cancelled += 1,
            FinishedAs::Failed(code) => {
                self.totals.response_errors += 1;
                let lost = [
                    FaultCode::WorkerLost,
                    FaultCode::WorkerSpawnFailed,
                    FaultCode::OutcomeUnknown,
                    FaultCode::ReplayExhausted,
                    FaultCode::RunnerLost,
                ];
                self.totals.transport_faults += u64::from(lost.contains(&code));
            }
        }
    }

    fn tool_call(&mut self, call: &ToolCallRecord) {
        self.total(call.result);
        self.tool_calls += 1;
        self.totals.retries += u64::from(call.replays);
        if let Some(row) = self.tools.get_mut(&*call.tool) {
            row.tool_call(call);
        } else {
            let name = if self.tools.len() < ROWS { call.tool.to_string() } else { "other".to_owned() };
            self.tools.entry(name).or_default().tool_call(call);
        }
        if let Some(path) = &call.path_hint {
            if let Some(count) = self.paths.get_mut(path) {
                *count += 1;
            } else if self.paths.len() < PATHS {
                self.paths.insert(path.clone(), 1);
            }
        }
    }

    /// After each hundredth tool call: the directories asked about most, most first.
    #[must_use]
    pub fn hot_paths(&self) -> Option<Vec<(String, u64)>> {
        if self.paths.is_empty() || self.tool_calls == 0 || !self.tool_calls.is_multiple_of(100) {
            return None;
        }
        let mut paths: Vec<(String, u64)> = self.paths.iter().map(|(path, count)| (path.clone(), *count)).collect();
        paths.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        paths.truncate(10);
        Some(paths)
    }

    /// Everything counted so far.
    #[must_use]
    pub fn snapshot(&self) -> CountersReport {
        let plain = self.methods.iter().map(|(method, row)| row.shown((*method).to_owned()));
        let tools = self.tools.iter().map(|(tool, row)| row.shown(format!("tools/call:{tool}")));
        CountersReport { totals: self.totals.clone(), methods: plain.chain(tools).collect() }
    }
}

/// The counters as they are passed on to the next image of the program.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CountersSnapshot {
    pub totals: Totals,
    methods: Vec<RowSnapshot>,
    tools: Vec<RowSnapshot>,
    paths: BTreeMap<String, u64>,
    tool_calls: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct RowSnapshot {
    name: String,
    count: u64,
    errors: u64,
    /// Latencies in microseconds and how often each was seen; none where none is measured.
    latency: Option<Vec<(u64, u32)>>,
}

impl Counters {
    /// What is passed on.
    #[must_use]
    pub fn passed_on(&self) -> CountersSnapshot {
        CountersSnapshot {
            totals: self.totals.clone(),
            methods: self.methods.iter().map(|(name, row)| row.passed((*name).to_owned())).collect(),
            tools: self.tools.iter().map(|(name, row)| row.passed(name.clone())).collect(),
            paths: self.paths.clone(),
            tool_calls: self.tool_calls,
        }
    }

    /// Goes on counting where another image stood.
    #[must_use]
    pub fn restored(passed: &CountersSnapshot) -> Self {
        let method = |row: &RowSnapshot| (Method::parse(&row.name).map_or("other", Method::as_str), row.restored());
        Self {
            totals: passed.totals.clone(),
            methods: passed.methods.iter().map(method).collect(),
            tools: passed.tools.iter().map(|row| (row.name.clone(), row.restored())).collect(),
            paths: passed.paths.clone(),
            tool_calls: passed.tool_calls,
        }
    }
}

impl RowSnapshot {
    fn restored(&self) -> Row {
        let latency = self.latency.as_ref().and_then(|seen| {
            let mut latency = histogram()?;
            seen.iter().for_each(|(value, times)| latency.saturating_record_n(*value, *times));
            Some(latency)
        });
        Row { count: self.count, errors: self.errors, latency }
    }
}

impl Row {
    fn tool_call(&mut self, call: &ToolCallRecord) {
        self.count += 1;
        self.errors += u64::from(matches!(call.result, FinishedAs::Failed(_)));
        if self.latency.is_none() {
            self.latency = histogram();
        }
        if let Some(latency) = &mut self.latency {
            latency.saturating_record(micros(call.latency));
        }
    }

    fn passed(&self, name: String) -> RowSnapshot {
        let seen = |latency: &Histogram<u32>| {
            latency.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
        };
        RowSnapshot { name, count: self.count, errors: self.errors, latency: self.latency.as_ref().map(seen) }
    }

    fn shown(&self, method: String) -> MethodRow {
        let at = |quantile| self.latency.as_ref().map(|h| millis(h.value_at_quantile(quantile)));
        MethodRow {
            method,
            count: self.count,
            errors: self.errors,
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            max_ms: self.latency.as_ref().map(|h| millis(h.max())),
        }
    }
}

/// Two digits from 1 µs to a day; it fails only for bounds that make no sense.
fn histogram() -> Option<Histogram<u32>> {
    Histogram::new_with_bounds(1, 86_400_000_000, 2).ok()
}

fn micros(latency: Duration) -> u64 {
    u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1)
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of latency are far below 2^52")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::ids::SessionNumber;

    fn call(tool: &str, ms: u64, result: FinishedAs) -> Record {
        Record::ToolCall(ToolCallRecord {
            at: std::time::Instant::now(),
            session: SessionNumber(1),
            request_id: None,
            tool: Arc::from(tool),
            path_hint: Some("/w".into()),
            latency: Duration::from_millis(ms),
            result,
            job: None,
            generation: crate::base::ids::Generation(1),
            replays: 0,
            trace: None,
        })
    }

    #[test]
    fn totals_rows_and_percentiles_are_what_was_recorded() {
        let mut counters = Counters::default();
        for ms in 1..=99 {
            counters.count(&call("consult", ms, FinishedAs::Success));
        }
        assert_eq!(counters.hot_paths(), None);
        counters.count(&call("consult", 1000, FinishedAs::Failed(FaultCode::WorkerLost)));
        assert_eq!(counters.hot_paths(), Some(vec![("/w".to_owned(), 100)]));
        counters.count(&Record::Request { method: "ping", result: FinishedAs::Success });
        counters.count(&Record::WorkerRestart { generation: crate::base::ids::Generation(2) });
        let snapshot = counters.snapshot();
        assert_eq!(
            snapshot.totals,
            Totals {
                requests: 101,
                successes: 100,
                response_errors: 1,
                transport_faults: 1,
                restarts: 1,
                ..Totals::default()
            }
        );
        assert_eq!(snapshot.methods[0].method, "ping");
        let row = &snapshot.methods[1];
        assert_eq!((row.method.as_str(), row.count, row.errors), ("tools/call:consult", 100, 1));
        let within = |value: Option<f64>, want: f64| (value.expect("it was measured") - want).abs() < want * 0.02;
        assert!(within(row.p50_ms, 50.0) && within(row.p99_ms, 99.0) && within(row.max_ms, 1000.0), "{row:?}");
    }

    #[test]
    fn another_image_goes_on_counting_where_this_one_stood() {
        let mut counters = Counters::default();
        for ms in 1..=99 {
            counters.count(&call("consult", ms, FinishedAs::Success));
        }
        counters.count(&Record::Request { method: "ping", result: FinishedAs::Success });
        counters.count(&Record::Request { method: "other", result: FinishedAs::Failed(FaultCode::UnknownMethod) });
        let text = serde_json::to_string(&counters.passed_on()).expect("JSON");
        let mut next = Counters::restored(&serde_json::from_str(&text).expect("the same"));
        assert_eq!(next.snapshot(), counters.snapshot());
        counters.count(&call("consult", 100, FinishedAs::Success));
        next.count(&call("consult", 100, FinishedAs::Success));
        assert_eq!((next.hot_paths(), next.snapshot()), (counters.hot_paths(), counters.snapshot()));
    }

    #[test]
    fn rows_are_bounded() {
        let mut counters = Counters::default();
        for n in 0..200 {
            counters.count(&call(&format!("tool{n}"), 1, FinishedAs::Success));
        }
        let snapshot = counters.snapshot();
        assert!(snapshot.methods.len() <= ROWS + 1, "{}", snapshot.methods.len());
        assert_eq!(snapshot.methods.iter().map(|row| row.count).sum::<u64>(), 200);
    }
}
