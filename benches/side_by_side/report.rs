//! Report: the table and the JSON.
//!
//! Owns: layout.
//! May not know: how anything was measured.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::options::{Effort, Options};
use crate::peers::{FLOOR2, Named};
use crate::sheet::{Cell, Gap, Results};
use crate::targets::{Rule, TARGETS, Target, Verdict};

/// One peer in one row.
struct Entry<'a> {
    peer: &'a str,
    cell: Cell,
    /// Times the yardstick's, or the rival's.
    ratio: Option<f64>,
    verdict: Option<Verdict>,
}

/// The entries of a row: its yardstick, which is not judged, and those it is about.
fn entries<'a>(target: &Target, peers: &'a [Named], results: &Results) -> Vec<Entry<'a>> {
    let rivals: Vec<&str> = TARGETS.iter().filter_map(|target| target.rule.rival()).collect();
    let rival = target.rule.rival();
    let at = |label: &str| peers.iter().position(|peer| peer.label == label);
    let yardstick = target.yardstick.of(peers);
    let base = rival.map_or(yardstick, at);
    let base_value =
        base.and_then(|base| results.cell(base, target.figure).value(target.figure)).filter(|value| *value > 0.0);
    let mut entries = Vec::new();
    for (index, peer) in peers.iter().enumerate() {
        let cell = results.cell(index, target.figure);
        if cell.values.is_empty() && cell.gap.is_none() {
            continue;
        }
        if !target.who.has(peer.place) && Some(index) != yardstick {
            continue;
        }
        if rival.is_some() && (base.is_none() || index == 0 || rivals.contains(&peer.label.as_str())) {
            continue;
        }
        let value = cell.value(target.figure);
        let (ratio, judged) = match target.rule {
            Rule::AtMost { .. } | Rule::AtLeast { .. } => (None, value),
            Rule::TimesOwn { other, .. } => {
                let own = results.cell(index, other).value(other);
                let ratio = value.zip(own).map(|(value, own)| value / own);
                (ratio, ratio)
            }
            _ => {
                let ratio = value.zip(base_value).map(|(value, base)| value / base);
                (ratio, ratio)
            }
        };
        let verdict =
            (Some(index) != yardstick && peer.label != FLOOR2).then(|| match (&cell.gap, judged.zip(value)) {
                (Some(Gap::Failed(_)), _) => Verdict::Missed,
                (None, Some((judged, value))) => target.rule.judge(judged, value),
                (Some(Gap::NotApplicable(_)), _) | (None, None) => Verdict::NotApplicable,
            });
        entries.push(Entry { peer: &peer.label, cell, ratio, verdict });
    }
    entries
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 10_000.0 => {
            let digits = format!("{value:.0}");
            let mut grouped = String::new();
            for (index, digit) in digits.chars().enumerate() {
                if index > 0 && (digits.len() - index).is_multiple_of(3) {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            grouped
        }
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.2}"),
    }
}

/// The table and the remarks under it.
pub(crate) fn table(options: &Options, peers: &[Named], results: &Results) -> String {
    let mut text = String::new();
    let mut remarks = Vec::new();
    let width = peers.iter().map(|peer| peer.label.chars().count()).max().unwrap_or(0).max(5);
    let _infallible = writeln!(
        text,
        "{:<4} {:<43} {:<width$} {:>11} {:>7} {:>6} {:>9} {:>8}  verdict",
        "id", "figure", "peer", "median", "ratio", "spread", "goal", "line"
    );
    for target in TARGETS.iter().filter(|target| options.wants(target.id)) {
        let entries = entries(target, peers, results);
        for (index, entry) in entries.iter().enumerate() {
            let (id, name) = if index == 0 { (target.id, target.name) } else { ("", "") };
            let value = entry.cell.value(target.figure).map_or_else(|| "-".to_owned(), number);
            let ratio = entry.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            let spread = entry.cell.spread().map_or_else(String::new, |spread| format!("{:.0} %", spread * 100.0));
            let (goal, line) = match entry.verdict {
                Some(_) => (target.rule.goal(), target.rule.line()),
                None => (String::new(), String::new()),
            };
            let mut verdict = entry.verdict.map_or(String::new(), |verdict| verdict.as_str().to_owned());
            let remark = match &entry.cell.gap {
                Some(Gap::Failed(why)) => Some(why),
                Some(Gap::NotApplicable(why)) => Some(why),
                None => entry.cell.remark.as_ref(),
            };
            if let Some(remark) = remark {
                let line = format!("{} {}: {remark}", target.id, entry.peer);
                let place = remarks.iter().position(|known| *known == line).unwrap_or_else(|| {
                    remarks.push(line);
                    remarks.len() - 1
                });
                let _infallible = write!(verdict, " [{}]", place + 1);
            }
            let line = format!(
                "{id:<4} {name:<43} {:<width$} {value:>11} {ratio:>7} {spread:>6} {goal:>9} {line:>8}  {verdict}",
                entry.peer
            );
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
    for (index, remark) in remarks.iter().enumerate() {
        let _infallible = writeln!(text, "[{}] {remark}", index + 1);
    }
    text
}

/// Everything, for programs: medians, ratios, verdicts, and the value of every round.
pub(crate) fn json(options: &Options, machine: &Value, peers: &[Named], results: &Results) -> Value {
    let rows: Vec<Value> = TARGETS
        .iter()
        .filter(|target| options.wants(target.id))
        .map(|target| (target, entries(target, peers, results)))
        .filter(|(_, entries)| !entries.is_empty())
        .map(|(target, entries)| {
            let peers: Vec<Value> = entries
                .iter()
                .map(|entry| {
                    json!({
                        "peer": entry.peer,
                        "median": entry.cell.value(target.figure),
                        "ratio": entry.ratio,
                        "verdict": entry.verdict.map(Verdict::as_str),
                        "values": entry.cell.values,
                        "failed": match &entry.cell.gap { Some(Gap::Failed(why)) => Some(why), _ => None },
                        "not_applicable": match &entry.cell.gap { Some(Gap::NotApplicable(why)) => Some(why), _ => None },
                        "remark": entry.cell.remark,
                    })
                })
                .collect();
            json!({
                "id": target.id,
                "figure": target.name.trim_start(),
                "goal": target.rule.goal(),
                "line": target.rule.line(),
                "peers": peers,
            })
        })
        .collect();
    json!({
        "machine": machine,
        "rounds": options.rounds,
        "quick": options.effort == Effort::Quick,
        "yardstick": peers.first().map(|peer| &peer.label),
        "rows": rows,
    })
}
