//! A report as one page that needs nothing else: no script, no other host.
//!
//! Owns: the page. May not know: how a figure comes about, where the page goes.
//!
//! Invariants: (1) every text from elsewhere is text: what a browser or a terminal would obey is written out or escaped ([`shown`]); (2) the
//! page names no address, and its own policy forbids whatever it does not need; (3) each plot has its figures in a table behind it.

use std::fmt::Write as _;

use phone_opus::internals::base::ids::UnixMillis;
use phone_opus::internals::jobs::JobState;
use phone_opus::internals::jobs::row::JobRow;
use phone_opus::internals::seen::figures::{Cost, Counted, DayFigures, EDGES_MS, Figures, GroupFigures, Spread};
use phone_opus::internals::seen::said::RolloutSaid;

use super::plots::{self, BAD, CALM, DOUBT, GOOD, LOST, PlotError, Series, lying, standing};
use super::{MARK, Texts, shown};
use crate::screen::ages;

/// The newest jobs that the page lists. All of them are in `--csv` and `--json`.
const LISTED: usize = 200;

/// Upgrades that are drawn: the last ones.
const UPGRADES: usize = 60;

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#57606a;--paper:#fff;--line:#d0d7de}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--dim:#9aa4af;--paper:#0f1318;--line:#343b44}}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0 auto;padding:1.5rem 1rem;max-width:52rem}
h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.15rem;margin:2.2rem 0 .5rem}
p,summary,caption{color:var(--dim)}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.75rem;margin:1.2rem 0}
dl div{border:1px solid var(--line);border-radius:.5rem;padding:.5rem .75rem}dt{color:var(--dim);font-size:.85rem}
dd{margin:0;font-size:1.25rem;font-variant-numeric:tabular-nums}
svg{width:100%;height:auto;color:var(--ink);display:block}
svg [fill='#000000']{fill:currentColor}svg [stroke='#000000']{stroke:currentColor}
ul.key{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1rem;margin:.25rem 0;padding:0}
ul.key svg{width:.8rem;height:.8rem;display:inline-block;margin-right:.35rem}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.25rem .6rem .25rem 0;border-bottom:1px solid var(--line);vertical-align:top;unicode-bidi:isolate;\
overflow-wrap:anywhere}
td.n,th.n{text-align:right}
pre{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate;border-left:3px solid var(--line);padding-left:.75rem;margin:.5rem 0}
@media print{details{display:none}}
";

/// The page.
pub(super) fn page(figures: &Figures, jobs: &[JobRow], texts: &Texts) -> Result<String, PlotError> {
    let mut page = String::with_capacity(256 * 1024);
    let (since, until) = (minute(figures.period.since), minute(figures.period.until));
    let _ = write!(
        page,
        "{MARK}\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>phone-opus, {since} to {until}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>What was asked</h1>\n<p>{since} to {until}, in UTC; by phone-opus {}.</p>\n",
        env!("CARGO_PKG_VERSION"),
    );
    left_out(&mut page, figures);
    heads(&mut page, figures);
    outcomes(&mut page, figures)?;
    times(&mut page, "How long they ran", "From the start of the agent's run to its end.", &figures.ran)?;
    times(
        &mut page,
        "How long they waited",
        "From acceptance to the start: for a place, or for their turn.",
        &figures.waited,
    )?;
    costs(&mut page, figures)?;
    troubles(&mut page, figures)?;
    upgrades(&mut page, &figures.rollouts)?;
    list(&mut page, jobs);
    texts_of(&mut page, texts);
    page.push_str("</main>\n</body>\n</html>\n");
    Ok(page)
}

/// What the figures lack, if anything.
fn left_out(page: &mut String, figures: &Figures) {
    if figures.more_jobs {
        let _ = writeln!(page, "<p><strong>There are more jobs than these: the newest are left out.</strong></p>");
    }
    if figures.left_out > 0 {
        let _ = writeln!(page, "<p>{} lines of the telemetry are left out.</p>", figures.left_out);
    }
}

fn heads(page: &mut String, figures: &Figures) {
    let adopted = figures.rollouts.iter().filter(|rollout| rollout.outcome == "adopted").count();
    let heads = [
        ("jobs", figures.jobs.to_string()),
        ("succeeded", figures.states.succeeded.to_string()),
        ("failed", figures.states.failed.to_string()),
        ("cancelled", figures.states.cancelled.to_string()),
        ("interrupted", figures.states.interrupted.to_string()),
        ("not over", (figures.states.queued + figures.states.running).to_string()),
        ("known cost", dollars(figures.cost.cost_usd)),
        ("half ran within", figures.ran.p50_ms.map_or_else(|| "–".to_owned(), span)),
        ("worker restarts", figures.restarts.to_string()),
        ("upgrades", adopted.to_string()),
    ];
    page.push_str("<dl>\n");
    for (name, value) in heads {
        let _ = writeln!(page, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    page.push_str("</dl>\n");
}

fn outcomes(page: &mut String, figures: &Figures) -> Result<(), PlotError> {
    let days: Vec<String> = figures.days.iter().map(|day| short_day(&day.day)).collect();
    let of = |state: JobState| figures.days.iter().map(move |day| day.ended.of(state) as f64);
    let series = [
        Series::new("succeeded", GOOD, of(JobState::Succeeded)),
        Series::new("failed", BAD, of(JobState::Failed)),
        Series::new("cancelled", DOUBT, of(JobState::Cancelled)),
        Series::new("interrupted", LOST, of(JobState::Interrupted)),
    ];
    page.push_str("<h2>How they ended, by day</h2>\n");
    page.push_str(&standing("Jobs by the day on which they ended and by how", "jobs", &days, &series)?);
    key(page, &series);
    let row = |day: &DayFigures| {
        let count = |state: JobState| day.ended.of(state).to_string();
        let ended = [JobState::Succeeded, JobState::Failed, JobState::Cancelled, JobState::Interrupted].map(count);
        [vec![day.day.clone()], ended.to_vec()].concat()
    };
    let head = ["day", "succeeded", "failed", "cancelled", "interrupted"];
    table(page, "Jobs by day", &head, figures.days.iter().map(row));
    counted(page, "Why they did not succeed", &figures.codes);
    Ok(())
}

fn times(page: &mut String, title: &str, what: &str, spread: &Spread) -> Result<(), PlotError> {
    let labels: Vec<String> =
        EDGES_MS.iter().map(|edge| format!("< {}", span(*edge))).chain(["more".to_owned()]).collect();
    let series = [Series::new("jobs", CALM, spread.buckets.iter().map(|count| *count as f64))];
    let _ = writeln!(page, "<h2>{title}</h2>\n<p>{what}</p>");
    page.push_str(&standing(title, "jobs", &labels, &series)?);
    let ranks =
        [("half", spread.p50_ms), ("9 of 10", spread.p90_ms), ("99 of 100", spread.p99_ms), ("all", spread.max_ms)];
    let rank = |(name, ms): (&str, Option<u64>)| vec![name.to_owned(), ms.map_or_else(|| "–".to_owned(), span)];
    table(page, &format!("{title}: of {} jobs", spread.count), &["so many", "within"], ranks.into_iter().map(rank));
    Ok(())
}

fn costs(page: &mut String, figures: &Figures) -> Result<(), PlotError> {
    let Cost { cost_usd, cost_unknown } = figures.cost;
    let _ = writeln!(
        page,
        "<h2>What they cost</h2>\n<p>{} in all, as the agents said it; of {cost_unknown} jobs that ended it is not known.</p>",
        dollars(cost_usd)
    );
    let days: Vec<String> = figures.days.iter().map(|day| short_day(&day.day)).collect();
    let by_day = Series::new("US dollars", CALM, figures.days.iter().map(|day| day.cost.cost_usd));
    page.push_str(&standing("Cost by day in US dollars", "US$", &days, std::slice::from_ref(&by_day))?);
    let row = |day: &DayFigures| vec![day.day.clone(), dollars(day.cost.cost_usd), day.cost.cost_unknown.to_string()];
    table(page, "Cost by day", &["day", "cost", "not known"], figures.days.iter().map(row));
    for (title, groups) in [("agent", &figures.agents), ("workspace", &figures.workspaces)] {
        let names: Vec<String> = groups.iter().map(|group| group.name.clone()).collect();
        let by = Series::new("US dollars", CALM, groups.iter().map(|group| group.cost.cost_usd));
        let _ = writeln!(page, "<h2>Cost by {title}</h2>");
        page.push_str(&lying(&format!("Cost by {title} in US dollars"), &names, &by)?);
        let row = |group: &GroupFigures| {
            let ended = [JobState::Succeeded, JobState::Failed, JobState::Cancelled, JobState::Interrupted];
            let states = ended.map(|state| group.states.of(state).to_string());
            let known = [dollars(group.cost.cost_usd), group.cost.cost_unknown.to_string(), group.jobs.to_string()];
            [vec![group.name.clone()], known.to_vec(), states.to_vec()].concat()
        };
        let head = [title, "cost", "not known", "jobs", "succeeded", "failed", "cancelled", "interrupted"];
        table(page, &format!("By {title}"), &head, groups.iter().map(row));
    }
    Ok(())
}

fn troubles(page: &mut String, figures: &Figures) -> Result<(), PlotError> {
    let days: Vec<String> = figures.days.iter().map(|day| short_day(&day.day)).collect();
    let series = [
        Series::new("workers started again", DOUBT, figures.days.iter().map(|day| day.restarts as f64)),
        Series::new("faults", BAD, figures.days.iter().map(|day| day.faults as f64)),
        Series::new("upgrades", GOOD, figures.days.iter().map(|day| day.upgrades as f64)),
    ];
    page.push_str("<h2>What broke and came back</h2>\n<p>As far as the telemetry that is kept goes back.</p>\n");
    page.push_str(&standing("Restarts, faults and upgrades by day", "times", &days, &series)?);
    key(page, &series);
    let row = |day: &DayFigures| {
        vec![day.day.clone(), day.restarts.to_string(), day.faults.to_string(), day.upgrades.to_string()]
    };
    table(page, "By day", &["day", "restarts", "faults", "upgrades"], figures.days.iter().map(row));
    counted(page, "Faults", &figures.faults);
    Ok(())
}

fn upgrades(page: &mut String, rollouts: &[RolloutSaid]) -> Result<(), PlotError> {
    if rollouts.is_empty() {
        return Ok(());
    }
    let adopted: Vec<&RolloutSaid> = rollouts.iter().filter(|rollout| rollout.gap_ms.is_some()).collect();
    let drawn = adopted.get(adopted.len().saturating_sub(UPGRADES)..).unwrap_or_default();
    page.push_str(
        "<h2>Upgrades, and the gap</h2>\n<p>How long nobody served while one version took over from another.</p>\n",
    );
    let labels: Vec<String> = drawn.iter().map(|rollout| short_day(&minute(rollout.at))).collect();
    let gaps = Series::new("ms", CALM, drawn.iter().map(|rollout| rollout.gap_ms.unwrap_or(0) as f64));
    page.push_str(&standing("The gap of each upgrade in milliseconds", "ms", &labels, std::slice::from_ref(&gaps))?);
    let row = |rollout: &RolloutSaid| {
        let gap = rollout.gap_ms.map_or_else(|| "–".to_owned(), |gap| format!("{gap} ms"));
        let why = rollout.verdict.clone().unwrap_or_default();
        vec![minute(rollout.at), rollout.version.clone(), rollout.outcome.clone(), why, rollout.trigger.clone(), gap]
    };
    let head = ["when", "version that serves", "outcome", "verdict", "begun by", "gap"];
    table(page, "Upgrades", &head, rollouts.iter().map(row));
    Ok(())
}

fn list(page: &mut String, jobs: &[JobRow]) {
    let newest = jobs.iter().rev().take(LISTED);
    let _ = writeln!(page, "<h2>The newest jobs</h2>\n<p>{} of {}.</p>", jobs.len().min(LISTED), jobs.len());
    let row = |row: &JobRow| {
        let none = || "–".to_owned();
        vec![
            row.id.to_string(),
            row.state.as_str().to_owned(),
            row.code.clone().unwrap_or_default(),
            row.agent.clone(),
            minute(row.accepted_at),
            row.waited_ms().map_or_else(none, span),
            row.ran_ms().map_or_else(none, span),
            row.cost_usd.map_or_else(none, dollars),
            row.workspace.display().to_string(),
        ]
    };
    let head = ["job", "status", "code", "agent", "asked", "waited", "ran", "cost", "workspace"];
    table(page, "Jobs", &head, newest.map(row));
}

fn texts_of(page: &mut String, texts: &Texts) {
    if texts.all.is_empty() {
        return;
    }
    page.push_str("<h2>What was asked and answered</h2>\n");
    if texts.more > 0 {
        let _ = writeln!(page, "<p>Of {} older jobs the text is left out.</p>", texts.more);
    }
    for text in &texts.all {
        let _ = writeln!(
            page,
            "<details><summary>{}</summary>\n<pre>{}</pre>\n<pre>{}</pre>\n</details>",
            text.job,
            shown(&text.prompt),
            shown(text.answer.as_deref().unwrap_or("(no answer)"))
        );
    }
}

fn counted(page: &mut String, title: &str, counts: &[Counted]) {
    if !counts.is_empty() {
        let row = |counted: &Counted| vec![counted.code.clone(), counted.count.to_string()];
        table(page, title, &["code", "count"], counts.iter().map(row));
    }
}

/// What the colours of a plot mean.
fn key(page: &mut String, series: &[Series]) {
    page.push_str("<ul class=\"key\">\n");
    for Series { name, colour: plots::Colour(r, g, b), .. } in series {
        let square = format!(
            "<svg viewBox=\"0 0 1 1\" aria-hidden=\"true\"><rect width=\"1\" height=\"1\" fill=\"#{r:02X}{g:02X}{b:02X}\"/></svg>"
        );
        let _ = writeln!(page, "<li>{square}{name}</li>");
    }
    page.push_str("</ul>\n");
}

/// Figures behind a plot. Columns but the first are numbers as far as they look like it.
fn table(page: &mut String, title: &str, head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let _ = writeln!(page, "<details><summary>{}</summary>\n<div class=\"wide\"><table>\n<thead><tr>", shown(title));
    for name in head {
        let _ = write!(page, "<th scope=\"col\">{}</th>", shown(name));
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        page.push_str("<tr>");
        for cell in row {
            let number = cell.starts_with(|c: char| c.is_ascii_digit() || c == '$') && !cell.contains('-');
            let _ = write!(page, "<td{}>{}</td>", if number { " class=\"n\"" } else { "" }, shown(&cell));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody>\n</table></div>\n</details>\n");
}

/// `2026-11-27 10:20`.
fn minute(at: UnixMillis) -> String {
    let text = at.to_iso8601();
    text.get(..16).unwrap_or(&text).replace('T', " ")
}

/// The day without its year.
fn short_day(day: &str) -> String {
    day.get(5..).unwrap_or(day).to_owned()
}

fn dollars(cost: f64) -> String {
    if cost != 0.0 && cost.abs() < 0.1 { format!("${cost:.4}") } else { format!("${cost:.2}") }
}

/// A time in words, to a tenth of a second where that says something.
fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..10_000 if ms % 1_000 >= 100 => format!("{:.1} s", ms as f64 / 1_000.0),
        _ => ages::elapsed(ms / 1_000).replace(" min 00 s", " min").replace(" h 00 min", " h"),
    }
}
