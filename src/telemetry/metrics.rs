//! What is measured, as a collector is told it.
//!
//! Owns: the names, units and meanings of metrics; what is added up of jobs that ended (`RunMeter`). Pure. May not know: who is told.
//!
//! Invariant (L13): attributes are words of our own lists, and names of tools, agents and models.

use std::collections::BTreeMap;

use super::counters::CountersReport;
use super::traces::spans::{Attributes, Tokens, provider, tokens};
use crate::jobs::store::JobCounts;
use crate::jobs::{JobRecord, JobState};

/// Agents and ends told apart; more share one row.
const ROWS: usize = 64;

/// Bounds of durations, in seconds: those the conventions for generative AI name, and two more, since a consult takes minutes.
const SECONDS: [f64; 16] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 300.0, 1200.0];

/// Bounds of counts of tokens, by the conventions.
const TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// One value, or several.
#[derive(Debug, Clone, PartialEq)]
pub enum MetricValue {
    /// A count that only grows.
    Count(u64),
    /// What is now.
    Level(u64),
    /// How often values lay between bounds.
    Distribution(Distribution),
}

/// A distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// The upper bounds.
    pub bounds: &'static [f64],
    /// How many values were at most each bound and more than the one before; one more for those above all.
    pub counts: Vec<u64>,
    /// All values.
    pub sum: f64,
}

impl Distribution {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    fn add(&mut self, value: f64) {
        self.counts[self.bounds.partition_point(|bound| *bound < value)] += 1;
        self.sum += value;
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// One metric. All its points are of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its unit, by UCUM.
    pub unit: &'static str,
    /// What it says.
    pub what: &'static str,
    /// Its values.
    pub points: Vec<(Attributes, MetricValue)>,
}

/// What jobs that ended add up to, since whoever adds began.
#[derive(Debug, Default)]
pub struct RunMeter {
    durations: BTreeMap<(String, Option<&'static str>), Distribution>,
    tokens: BTreeMap<(String, &'static str), Distribution>,
}

impl RunMeter {
    /// Adds a job that ended.
    pub fn add(&mut self, record: &JobRecord) {
        let Some(outcome) = &record.outcome else { return };
        let agent = record.request.agent.clone();
        if let Some(run_ms) = outcome.run_ms {
            let code = match record.state {
                JobState::Succeeded | JobState::Cancelled => None,
                _ => Some(outcome.fault.as_ref().map_or("error", |fault| fault.code.as_str())),
            };
            let key = (agent.clone(), code);
            if self.durations.len() < ROWS || self.durations.contains_key(&key) {
                let spread = self.durations.entry(key).or_insert_with(|| Distribution::new(&SECONDS));
                spread.add(run_ms as f64 / 1000.0);
            }
        }
        let Some(usage) = &outcome.usage else { return };
        for (which, kind) in [(Tokens::Input, "input"), (Tokens::Output, "output")] {
            let key = (agent.clone(), kind);
            if let Some(count) = tokens(usage, which)
                && (self.tokens.len() < ROWS || self.tokens.contains_key(&key))
            {
                self.tokens.entry(key).or_insert_with(|| Distribution::new(&TOKENS)).add(count as f64);
            }
        }
    }

    fn metrics(&self) -> [Metric; 2] {
        let named = |agent: &str| -> Attributes {
            let mut said = vec![("gen_ai.operation.name", "invoke_agent".into()), ("gen_ai.agent.name", agent.into())];
            said.extend(provider(agent).map(|provider| ("gen_ai.provider.name", provider.into())));
            said
        };
        let durations = self.durations.iter().map(|((agent, code), spread)| {
            let mut said = named(agent);
            said.extend(code.map(|code| ("error.type", code.into())));
            (said, MetricValue::Distribution(spread.clone()))
        });
        let tokens = self.tokens.iter().map(|((agent, kind), spread)| {
            let mut said = named(agent);
            said.push(("gen_ai.token.type", (*kind).into()));
            (said, MetricValue::Distribution(spread.clone()))
        });
        [
            Metric {
                name: "gen_ai.client.operation.duration",
                unit: "s",
                what: "From an agent's start to the end of its process group.",
                points: durations.collect(),
            },
            Metric {
                name: "gen_ai.client.token.usage",
                unit: "{token}",
                what: "Tokens of a run, as its agent reported them.",
                points: tokens.collect(),
            },
        ]
    }
}

/// All metrics. `counts` is `None` where the store does not say, or there is none.
#[must_use]
pub fn metrics(report: &CountersReport, counts: Option<&JobCounts>, runs: &RunMeter) -> Vec<Metric> {
    let totals = &report.totals;
    let one =
        |name, unit, what, value| Metric { name, unit, what, points: vec![(Vec::new(), MetricValue::Count(value))] };
    let by = |name: &'static str, values: Vec<(String, u64)>| -> Vec<(Attributes, MetricValue)> {
        values.into_iter().map(|(word, value)| (vec![(name, word.into())], MetricValue::Count(value))).collect()
    };
    let ends = [("success", totals.successes), ("error", totals.response_errors), ("cancelled", totals.cancelled)];
    let ends = ends.map(|(word, value)| (word.to_owned(), value)).to_vec();
    let methods = |value: fn(&super::counters::MethodRow) -> u64| {
        report.methods.iter().map(|row| (row.method.clone(), value(row))).collect::<Vec<_>>()
    };
    let mut all = vec![
        Metric {
            name: "phone_opus.requests",
            unit: "{request}",
            what: "Requests of clients, by how they ended.",
            points: by("phone_opus.outcome", ends),
        },
        Metric {
            name: "phone_opus.method.requests",
            unit: "{request}",
            what: "Requests by method and tool.",
            points: by("phone_opus.method", methods(|row| row.count)),
        },
        Metric {
            name: "phone_opus.method.errors",
            unit: "{request}",
            what: "Of them with an error.",
            points: by("phone_opus.method", methods(|row| row.errors)),
        },
        one(
            "phone_opus.transport_faults",
            "{fault}",
            "Requests whose worker or pipe was lost.",
            totals.transport_faults,
        ),
        one("phone_opus.retries", "{attempt}", "Attempts after a first one.", totals.retries),
        one("phone_opus.worker.restarts", "{restart}", "Workers started again.", totals.restarts),
        one("phone_opus.rollouts", "{rollout}", "Programs replaced.", totals.rollouts),
        one("phone_opus.telemetry.dropped", "{record}", "Records that found no room.", totals.dropped),
        one("phone_opus.traces.dropped", "{record}", "What traces lost on its way here.", totals.traces_dropped),
    ];
    if let Some(counts) = counts {
        let level = |state: JobState| {
            (vec![("phone_opus.job.state", state.as_str().into())], MetricValue::Level(counts.of(state)))
        };
        all.push(Metric {
            name: "phone_opus.jobs",
            unit: "{job}",
            what: "Jobs of the state directory, by state.",
            points: JobState::ALL.into_iter().map(level).collect(),
        });
    }
    all.extend(runs.metrics());
    all.retain(|metric| !metric.points.is_empty());
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fault::{Fault, FaultCode};
    use crate::jobs::{ConsultRequest, JobOutcome};
    use crate::telemetry::counters::{Counters, MethodRow, Totals};

    fn ended(agent: &str, run_ms: u64, fault: Option<FaultCode>) -> JobRecord {
        let state = if fault.is_some() { JobState::Failed } else { JobState::Succeeded };
        let mut record = JobRecord::plain(state, ConsultRequest::new("PROMPT").agent(agent));
        record.outcome = Some(JobOutcome {
            response: Some("ANSWER".to_owned()),
            run_ms: Some(run_ms),
            usage: Some(serde_json::json!({"input_tokens": 1024, "output_tokens": 5})),
            fault: fault.map(|code| Fault::new(code, "SECRET")),
            ..JobOutcome::default()
        });
        record
    }

    #[test]
    fn what_jobs_add_up_to_is_told_by_the_conventions() {
        let mut meter = RunMeter::default();
        meter.add(&ended("claude", 2_000, None));
        meter.add(&ended("claude", 700_000, None));
        meter.add(&ended("claude", 10, Some(FaultCode::AgentRateLimited)));
        let [durations, tokens] = meter.metrics();
        let spreads = |metric: &Metric| -> Vec<(u64, f64)> {
            let spread = |(_, measured): &(Attributes, MetricValue)| match measured {
                MetricValue::Distribution(spread) => (spread.count(), spread.sum),
                _ => panic!("{measured:?}"),
            };
            metric.points.iter().map(spread).collect()
        };
        assert_eq!(spreads(&durations), [(2, 702.0), (1, 0.01)]);
        assert_eq!(spreads(&tokens), [(3, 3072.0), (3, 15.0)]);
        assert!(format!("{durations:?}").contains("agent_rate_limited"));
        let all = format!("{:?}", metrics(&Counters::default().snapshot(), None, &meter));
        for word in ["PROMPT", "ANSWER", "SECRET"] {
            assert!(!all.contains(word), "{word}");
        }
    }

    #[test]
    fn a_value_on_a_bound_is_below_it() {
        let mut spread = Distribution::new(&TOKENS);
        for value in [1.0, 1024.0, 1025.0, 1e12] {
            spread.add(value);
        }
        let counts: Vec<(usize, u64)> =
            spread.counts.iter().copied().enumerate().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counts, [(0, 1), (5, 1), (6, 1), (14, 1)]);
    }

    #[test]
    fn counters_have_stable_names() {
        let row =
            MethodRow { method: "ping".to_owned(), count: 3, errors: 1, p50_ms: None, p99_ms: None, max_ms: None };
        let totals = Totals { requests: 3, successes: 2, response_errors: 1, traces_dropped: 9, ..Totals::default() };
        let counts = JobCounts { queued: 4, ..JobCounts::default() };
        let report = CountersReport { totals, methods: vec![row] };
        let names: Vec<&str> =
            metrics(&report, Some(&counts), &RunMeter::default()).iter().map(|metric| metric.name).collect();
        assert_eq!(
            names,
            [
                "phone_opus.requests",
                "phone_opus.method.requests",
                "phone_opus.method.errors",
                "phone_opus.transport_faults",
                "phone_opus.retries",
                "phone_opus.worker.restarts",
                "phone_opus.rollouts",
                "phone_opus.telemetry.dropped",
                "phone_opus.traces.dropped",
                "phone_opus.jobs",
            ]
        );
    }
}
