//! The numbers, as Prometheus reads them.
//!
//! Owns: the names, what each means, the text. Pure. May not know: where the numbers are from.
//!
//! Invariant: of a person's work there is no prompt, answer, path, client or id in it (L13): labels are words of our own lists, and
//! names of tools.

use std::fmt::Write as _;

use serde_json::Value;

use crate::daemon::control::DaemonStatus;
use crate::jobs::JobState;
use crate::jobs::hosts::{HostKind, HostRow};
use crate::jobs::store::{DayCost, JobCounts};

/// What the numbers are made of.
#[derive(Debug, Default)]
pub struct Measured<'a> {
    /// Jobs by state; `None` where the store does not say.
    pub counts: Option<JobCounts>,
    /// Agents that may run at once.
    pub places: usize,
    /// The servers that live, the daemon among them.
    pub hosts: &'a [HostRow],
    /// The daemon.
    pub daemon: Option<&'a DaemonStatus>,
    /// What it says by `telemetry_snapshot`.
    pub telemetry: Option<&'a Value>,
    /// What it says by `health_snapshot`.
    pub health: Option<&'a Value>,
    /// What was spent today.
    pub today: Option<&'a DayCost>,
    /// Streams that are open here.
    pub streams: usize,
}

/// The media type.
pub const MEDIA: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The text.
#[must_use]
pub fn text(of: &Measured<'_>) -> String {
    let mut out = Exposition::default();
    out.one("up", "gauge", "Whether the job store could be read.", if of.counts.is_some() { 1.0 } else { 0.0 });
    if let Some(counts) = of.counts {
        out.head("jobs", "gauge", "Jobs of the state directory by state.");
        for state in JobState::ALL {
            out.line("jobs", &[("state", state.as_str())], counts.of(state) as f64);
        }
        out.one("queue_depth", "gauge", "Jobs that wait.", counts.queued as f64);
        out.one("permits_in_use", "gauge", "Agents that run.", counts.running as f64);
    }
    out.one("permits", "gauge", "Agents that may run at once.", of.places as f64);
    if let Some(today) = of.today {
        out.one("cost_today_usd", "gauge", "Known cost of the jobs that ended today (UTC).", today.cost_usd);
        out.one(
            "cost_today_unknown_jobs",
            "gauge",
            "Jobs that ended today and whose cost is not known.",
            today.unknown as f64,
        );
    }
    out.head("hosts", "gauge", "Servers that live, by kind.");
    for kind in [HostKind::Server, HostKind::Daemon, HostKind::Bridge] {
        let count = of.hosts.iter().filter(|row| row.kind == kind).count();
        out.line("hosts", &[("kind", kind.as_str())], count as f64);
    }
    out.one("dashboard_streams", "gauge", "Pages and tools that follow the dashboard.", of.streams as f64);
    out.one("daemon_up", "gauge", "Whether a daemon answers.", if of.daemon.is_some() { 1.0 } else { 0.0 });
    if let Some(daemon) = of.daemon {
        out.one("daemon_uptime_seconds", "gauge", "Since the daemon began.", daemon.uptime_s as f64);
        out.one("daemon_clients", "gauge", "Clients of the daemon.", daemon.connections.saturating_sub(1) as f64);
    }
    if let Some(health) = of.health {
        let number = |name: &str| health.get(name).and_then(Value::as_f64);
        if let Some(generation) = number("worker_generation") {
            out.one("worker_generation", "gauge", "Generation of the daemon's worker.", generation);
        }
        if let Some(restarts) = number("restart_count") {
            out.one("worker_restarts_total", "counter", "Restarts of the daemon's worker.", restarts);
        }
        let ready = health.get("ready").and_then(Value::as_bool).unwrap_or_default();
        out.one("daemon_ready", "gauge", "Whether the daemon says that it is ready.", if ready { 1.0 } else { 0.0 });
    }
    if let Some(telemetry) = of.telemetry {
        daemon_telemetry(&mut out, telemetry);
    }
    out.0
}

/// What `telemetry_snapshot` counts, by its own names.
const TOTALS: [(&str, &str); 10] = [
    ("requests", "Requests of the daemon's clients."),
    ("successes", "Requests that were answered."),
    ("response_errors", "Requests that were answered with an error."),
    ("cancelled", "Requests that were cancelled."),
    ("transport_faults", "Faults of connections."),
    ("retries", "Attempts after the first."),
    ("restarts", "Restarts of workers, as telemetry counted them."),
    ("rollouts", "Upgrades that ended, whichever way."),
    ("dropped", "Records of telemetry that were lost."),
    ("traces_dropped", "What traces lost on its way to a collector."),
];

fn daemon_telemetry(out: &mut Exposition, telemetry: &Value) {
    for (name, help) in TOTALS {
        if let Some(total) = telemetry.get("totals").and_then(|totals| totals.get(name)).and_then(Value::as_f64) {
            out.one(&format!("{name}_total"), "counter", help, total);
        }
    }
    let methods = telemetry.get("methods").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let rows = || methods.iter().filter_map(|row| Some((row.get("method")?.as_str()?, row)));
    for (member, name, help) in [
        ("count", "method_requests_total", "Requests by method or tool."),
        ("errors", "method_errors_total", "Errors by method or tool."),
    ] {
        out.head(name, "counter", help);
        for (method, row) in rows() {
            if let Some(value) = row.get(member).and_then(Value::as_f64) {
                out.line(name, &[("method", method)], value);
            }
        }
    }
    out.head("method_latency_milliseconds", "gauge", "Latency by method or tool, at quantiles.");
    for (method, row) in rows() {
        for (member, quantile) in [("p50_ms", "0.5"), ("p99_ms", "0.99"), ("max_ms", "1")] {
            if let Some(value) = row.get(member).and_then(Value::as_f64) {
                out.line("method_latency_milliseconds", &[("method", method), ("quantile", quantile)], value);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Exposition(String);

impl Exposition {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP phone_opus_{name} {help}\n# TYPE phone_opus_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> = labels.iter().map(|(name, word)| format!("{name}=\"{}\"", escaped(word))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "phone_opus_{name}{labels} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        self.line(name, &[], value);
    }
}

/// A label's word: what the format gives a meaning is written otherwise.
fn escaped(word: &str) -> String {
    word.chars().take(100).fold(String::new(), |mut text, letter| {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            letter => text.push(letter),
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_family_is_introduced_once_and_each_line_is_a_name_labels_and_a_number() {
        let telemetry = json!({
            "totals": {"requests": 7, "dropped": 0},
            "methods": [{"method": "tools/call:consult", "count": 3, "errors": 1, "p50_ms": 1.5, "p99_ms": null, "max_ms": 9},
                        {"method": "a\"b\\c\nd", "count": 1, "errors": 0}],
        });
        let health = json!({"ready": true, "worker_generation": 4, "restart_count": 3});
        let today = DayCost { day: "2026-01-01".into(), jobs: 2, cost_usd: 0.25, unknown: 1 };
        let measured = Measured {
            counts: Some(JobCounts { queued: 2, running: 1, ..JobCounts::default() }),
            places: 3,
            telemetry: Some(&telemetry),
            health: Some(&health),
            today: Some(&today),
            ..Measured::default()
        };
        let text = text(&measured);
        let mut known = std::collections::BTreeSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a kind");
                assert!(["gauge", "counter"].contains(&kind) && known.insert(name.to_owned()), "{line}");
            } else if !line.starts_with("# HELP ") {
                let name = line.split(['{', ' ']).next().expect("a name");
                let value = line.rsplit(' ').next().expect("a value");
                assert!(known.contains(name) && value.parse::<f64>().is_ok(), "{line}");
            }
        }
        for line in [
            "phone_opus_up 1",
            "phone_opus_jobs{state=\"queued\"} 2",
            "phone_opus_permits 3",
            "phone_opus_cost_today_usd 0.25",
            "phone_opus_daemon_up 0",
            "phone_opus_worker_restarts_total 3",
            "phone_opus_requests_total 7",
            "phone_opus_method_requests_total{method=\"tools/call:consult\"} 3",
            "phone_opus_method_latency_milliseconds{method=\"tools/call:consult\",quantile=\"0.5\"} 1.5",
            "phone_opus_method_errors_total{method=\"a\\\"b\\\\c\\nd\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(super::text(&Measured::default()).contains("phone_opus_up 0\n"));
    }
}
