//! The figures of a past: counts, times, costs, by day, agent and workspace.
//!
//! Owns: the arithmetic; pure. May not know: where a past is from, who is shown the figures.
//!
//! Invariants: (1) each job is counted once in the states, once in its agent's and once in its workspace's group, and once in its day
//! where it ended in the period; (2) a cost that is not known is counted as such and adds nothing; (3) a percentile is a value that
//! occurred (nearest rank); (4) days are those of UTC, and a day on which nothing happened is there as well.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::past::{Past, Period};
use super::said::{FaultSaid, RolloutSaid};
use crate::base::ids::UnixMillis;
use crate::jobs::row::JobRow;
use crate::jobs::store::JobCounts;

/// Milliseconds of a day.
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Days that are filled in where nothing happened. A longer period has the days on which something did.
const DAYS_FILLED: i64 = 400;

/// Agents and workspaces that have a group of their own: as many as fit under a plot. The others are one group.
pub const GROUPS_MOST: usize = 20;

/// The name of the group of all others.
pub const OTHERS: &str = "(others)";

/// Where one bucket of times ends and the next begins, in milliseconds; the last one has no end.
pub const EDGES_MS: [u64; 10] = [300, 1_000, 3_000, 10_000, 30_000, 60_000, 180_000, 600_000, 1_800_000, 3_600_000];

/// The figures of a period.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// When.
    #[serde(flatten)]
    pub period: Period,
    /// Jobs that are not over or ended in it.
    pub jobs: u64,
    /// How many of them are in each state.
    pub states: JobCounts,
    /// From start to end, of those that have both.
    pub ran: Spread,
    /// From acceptance to start, of those that were started.
    pub waited: Spread,
    /// What is known of the cost.
    #[serde(flatten)]
    pub cost: Cost,
    /// By the day on which something happened, oldest first.
    pub days: Vec<DayFigures>,
    /// By agent, the dearest first.
    pub agents: Vec<GroupFigures>,
    /// By workspace, the dearest first.
    pub workspaces: Vec<GroupFigures>,
    /// Why jobs did not succeed: code and how many, most first.
    pub codes: Vec<Counted>,
    /// Faults that telemetry noted: code and how many, most first.
    pub faults: Vec<Counted>,
    /// Workers that were started again.
    pub restarts: u64,
    /// Rollouts, oldest first.
    pub rollouts: Vec<RolloutSaid>,
    /// There are more jobs than were looked at.
    pub more_jobs: bool,
    /// Lines of telemetry that are not in these figures.
    pub left_out: u64,
}

/// How often something occurred.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// What.
    pub code: String,
    /// How often.
    pub count: u64,
}

/// What is known of the cost of some jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Cost {
    /// The sum of the known costs, in US dollars.
    pub cost_usd: f64,
    /// Jobs that ended and whose cost is not known.
    pub cost_unknown: u64,
}

/// How some times are spread, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// How many there are.
    pub count: u64,
    /// Half of them are not longer.
    pub p50_ms: Option<u64>,
    /// Nine in ten are not longer.
    pub p90_ms: Option<u64>,
    /// All but one in a hundred are not longer.
    pub p99_ms: Option<u64>,
    /// The longest.
    pub max_ms: Option<u64>,
    /// How many lie below each of [`EDGES_MS`] and not below the one before, and how many below none.
    pub buckets: Vec<u64>,
}

/// What happened on a day.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DayFigures {
    /// The day in UTC, as `YYYY-MM-DD`.
    pub day: String,
    /// How the jobs ended that ended on it.
    pub ended: JobCounts,
    /// What they cost.
    #[serde(flatten)]
    pub cost: Cost,
    /// Workers that were started again.
    pub restarts: u64,
    /// Faults.
    pub faults: u64,
    /// Versions that were adopted.
    pub upgrades: u64,
}

/// The jobs of one agent or one workspace.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GroupFigures {
    /// Its name.
    pub name: String,
    /// How many there are.
    pub jobs: u64,
    /// In which states.
    pub states: JobCounts,
    /// What they cost.
    #[serde(flatten)]
    pub cost: Cost,
}

impl Cost {
    fn add(&mut self, row: &JobRow) {
        match row.cost_usd {
            Some(cost) => self.cost_usd += cost,
            None => self.cost_unknown += u64::from(row.finished_at.is_some()),
        }
    }
}

impl Spread {
    /// Of these times, in any order.
    #[must_use]
    pub fn of(mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        let mut buckets = vec![0; EDGES_MS.len() + 1];
        for time in &times {
            let at = EDGES_MS.partition_point(|edge| edge <= time);
            if let Some(bucket) = buckets.get_mut(at) {
                *bucket += 1;
            }
        }
        let rank = |percent: usize| times.get((times.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        Self {
            count: times.len() as u64,
            p50_ms: rank(50),
            p90_ms: rank(90),
            p99_ms: rank(99),
            max_ms: times.last().copied(),
            buckets,
        }
    }
}

impl Figures {
    /// Of a past.
    #[must_use]
    pub fn of(past: &Past) -> Self {
        let mut states = JobCounts::default();
        let mut cost = Cost::default();
        let mut codes: HashMap<&str, u64> = HashMap::new();
        for row in &past.jobs {
            *states.of_mut(row.state) += 1;
            cost.add(row);
            if let Some(code) = &row.code {
                *codes.entry(code).or_default() += 1;
            }
        }
        let mut faults: HashMap<&str, u64> = HashMap::new();
        past.said.faults.iter().for_each(|fault| *faults.entry(&fault.code).or_default() += 1);
        Self {
            period: past.period,
            jobs: past.jobs.len() as u64,
            states,
            ran: Spread::of(past.jobs.iter().filter_map(JobRow::ran_ms).collect()),
            waited: Spread::of(past.jobs.iter().filter_map(JobRow::waited_ms).collect()),
            cost,
            days: days(past),
            agents: groups(&past.jobs, |row| row.agent.clone()),
            workspaces: groups(&past.jobs, |row| row.workspace.display().to_string()),
            codes: counted(&codes),
            faults: counted(&faults),
            restarts: past.said.restarts.len() as u64,
            rollouts: past.said.rollouts.clone(),
            more_jobs: past.more,
            left_out: past.said.left_out,
        }
    }
}

/// The day in UTC that a moment lies on.
#[must_use]
pub fn day_of(at: UnixMillis) -> String {
    let mut text = at.to_iso8601();
    text.truncate(text.find('T').unwrap_or(text.len()));
    text
}

fn days(past: &Past) -> Vec<DayFigures> {
    let Period { since, until } = past.period;
    let (first, last) = (since.0.div_euclid(DAY_MS), until.0.div_euclid(DAY_MS));
    let mut days: BTreeMap<i64, DayFigures> = BTreeMap::new();
    if last - first <= DAYS_FILLED {
        days.extend((first..=last).map(|day| (day, DayFigures::default())));
    }
    let mut on = |at: UnixMillis, note: &dyn Fn(&mut DayFigures)| {
        if past.period.has(at) {
            note(days.entry(at.0.div_euclid(DAY_MS)).or_default());
        }
    };
    for row in &past.jobs {
        if let Some(ended) = row.finished_at {
            on(ended, &|day| {
                *day.ended.of_mut(row.state) += 1;
                day.cost.add(row);
            });
        }
    }
    past.said.restarts.iter().for_each(|restart| on(restart.at, &|day| day.restarts += 1));
    past.said.faults.iter().for_each(|FaultSaid { at, .. }| on(*at, &|day| day.faults += 1));
    let adopted = past.said.rollouts.iter().filter(|rollout| rollout.outcome == "adopted");
    adopted.for_each(|rollout| on(rollout.at, &|day| day.upgrades += 1));
    days.into_iter().map(|(day, figures)| DayFigures { day: day_of(UnixMillis(day * DAY_MS)), ..figures }).collect()
}

/// The groups of these jobs, the dearest first; those beyond [`GROUPS_MOST`] are one.
fn groups(jobs: &[JobRow], name: impl Fn(&JobRow) -> String) -> Vec<GroupFigures> {
    let mut by_name: BTreeMap<String, GroupFigures> = BTreeMap::new();
    for row in jobs {
        let group = by_name.entry(name(row)).or_default();
        group.jobs += 1;
        *group.states.of_mut(row.state) += 1;
        group.cost.add(row);
    }
    let mut all: Vec<GroupFigures> =
        by_name.into_iter().map(|(name, figures)| GroupFigures { name, ..figures }).collect();
    all.sort_by(|a, b| b.cost.cost_usd.total_cmp(&a.cost.cost_usd).then(b.jobs.cmp(&a.jobs)));
    if all.len() > GROUPS_MOST {
        let mut others = GroupFigures { name: OTHERS.to_owned(), ..GroupFigures::default() };
        for group in all.drain(GROUPS_MOST - 1..) {
            others.jobs += group.jobs;
            for state in crate::jobs::JobState::ALL {
                *others.states.of_mut(state) += group.states.of(state);
            }
            others.cost.cost_usd += group.cost.cost_usd;
            others.cost.cost_unknown += group.cost.cost_unknown;
        }
        all.push(others);
    }
    all
}

fn counted(counts: &HashMap<&str, u64>) -> Vec<Counted> {
    let mut all: Vec<Counted> =
        counts.iter().map(|(code, count)| Counted { code: (*code).to_owned(), count: *count }).collect();
    all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.code.cmp(&b.code)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{ChainId, JobId};
    use crate::jobs::{JobMode, JobState};
    use crate::seen::said::{LogSaid, RestartSaid};

    fn row(agent: &str, state: JobState, times: (i64, Option<i64>, Option<i64>), cost_usd: Option<f64>) -> JobRow {
        let (accepted, started, ended) = times;
        JobRow {
            id: JobId::random(),
            sequence: 1,
            state,
            mode: JobMode::Sync,
            agent: agent.to_owned(),
            workspace: "/w".into(),
            chain: ChainId::random(),
            depth: 0,
            accepted_at: UnixMillis(accepted),
            started_at: started.map(UnixMillis),
            finished_at: ended.map(UnixMillis),
            cost_usd,
            code: (state == JobState::Failed).then(|| "agent_stalled".to_owned()),
            cancel_requested: None,
            unread: false,
            last_event: 0,
        }
    }

    fn past(jobs: Vec<JobRow>) -> Past {
        let period = Period { since: UnixMillis(DAY_MS), until: UnixMillis(3 * DAY_MS + 5) };
        Past { period, jobs, more: false, said: LogSaid::default() }
    }

    #[test]
    fn each_job_is_counted_once_in_each_view() {
        use JobState::{Failed, Queued, Running, Succeeded};
        let day = DAY_MS;
        let mut past = past(vec![
            row("a", Succeeded, (day, Some(day + 10), Some(day + 1_010)), Some(0.5)),
            row("a", Failed, (day, Some(day + 30), Some(3 * day)), None),
            row("b", Succeeded, (day - 5, Some(day - 5), Some(day)), Some(2.0)),
            row("b", Running, (3 * day, Some(3 * day + 1), None), None),
            row("b", Queued, (3 * day, None, None), None),
        ]);
        past.said.restarts.push(RestartSaid { at: UnixMillis(2 * day), generation: 2 });
        let figures = Figures::of(&past);
        assert_eq!(figures.jobs, 5);
        let total = |counts: &JobCounts| JobState::ALL.iter().map(|state| counts.of(*state)).sum::<u64>();
        assert_eq!(total(&figures.states), 5);
        assert_eq!(figures.agents.iter().map(|group| group.jobs).sum::<u64>(), 5);
        assert_eq!(figures.workspaces.iter().map(|group| group.jobs).sum::<u64>(), 5);
        let days: Vec<(&str, u64, u64)> =
            figures.days.iter().map(|day| (&day.day[..], total(&day.ended), day.restarts)).collect();
        assert_eq!(days, [("1970-01-02", 2, 0), ("1970-01-03", 0, 1), ("1970-01-04", 1, 0)]);
        assert_eq!(figures.cost, Cost { cost_usd: 2.5, cost_unknown: 1 }, "what is not over has no cost yet");
        assert_eq!(figures.agents[0].name, "b", "the dearest first");
        assert_eq!(figures.codes, [Counted { code: "agent_stalled".to_owned(), count: 1 }]);
        assert_eq!((figures.waited.count, figures.waited.max_ms, figures.waited.p50_ms), (4, Some(30), Some(1)));
        assert_eq!((figures.ran.count, figures.ran.p50_ms), (3, Some(1_000)));
    }

    #[test]
    fn a_percentile_is_a_value_that_occurred_and_every_time_is_in_one_bucket() {
        assert_eq!(Spread::of(Vec::new()).p99_ms, None);
        let hundred = Spread::of((1..=100).rev().collect());
        let ranks = (hundred.p50_ms, hundred.p90_ms, hundred.p99_ms, hundred.max_ms);
        assert_eq!(ranks, (Some(50), Some(90), Some(99), Some(100)));
        let one = Spread::of(vec![7]);
        assert_eq!((one.p50_ms, one.p90_ms, one.p99_ms), (Some(7), Some(7), Some(7)));
        let edges: Vec<u64> = EDGES_MS.iter().flat_map(|edge| [edge - 1, *edge]).collect();
        assert_eq!(Spread::of(edges).buckets, [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
    }

    #[test]
    fn what_is_beyond_the_groups_is_one_group_and_nothing_is_lost() {
        let jobs: Vec<JobRow> = (0..3 * GROUPS_MOST)
            .map(|n| row(&format!("agent{n:02}"), JobState::Succeeded, (1, Some(1), Some(2 * DAY_MS)), Some(1.0)))
            .collect();
        let figures = Figures::of(&past(jobs));
        assert_eq!(figures.agents.len(), GROUPS_MOST);
        assert_eq!(figures.agents.last().map(|group| (&group.name[..], group.jobs)), Some((OTHERS, 41)));
        assert_eq!(figures.agents.iter().map(|group| group.cost.cost_usd).sum::<f64>(), 60.0);
    }

    #[test]
    fn a_period_of_years_has_the_days_on_which_something_happened() {
        let mut past = past(vec![row("a", JobState::Succeeded, (1, Some(1), Some(500 * DAY_MS)), None)]);
        past.period = Period { since: UnixMillis(0), until: UnixMillis(5_000 * DAY_MS) };
        assert_eq!(Figures::of(&past).days.len(), 1);
    }
}
