//! `report`: each figure is what SQL says of the same store, the page obeys nothing and names nobody, and no file is lost.
//!
//! Laws: L13.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use phone_opus::internals::base::fault::{Fault, FaultCode};
use phone_opus::internals::base::ids::{ChainId, JobId, UnixMillis};
use phone_opus::internals::jobs::store::SqliteStore;
use phone_opus::testkit::{Rig, tried_program};
use rusqlite::{Connection, params};
use serde_json::{Value, json};

/// Jobs of the generated store: as many as the report is promised for.
const JOBS: i64 = 10_000;

const DAY: i64 = 24 * 60 * 60 * 1000;

/// What a hostile client may name and ask, and what an agent may answer.
const HOSTILE: &str = "<script>alert(1)</script>\u{1b}[2J\u{202e}\"'&";

fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A store of this many jobs of the last twenty days, the same for each run but for the moment and the ids.
fn generate(database: &Path, jobs: i64) -> Connection {
    drop(SqliteStore::open(database).expect("a store with its tables"));
    let mut random = fastrand::Rng::with_seed(7);
    let mut connection = Connection::open(database).expect("opened");
    let now = UnixMillis::now().0;
    let write = connection.transaction().expect("begun");
    let states = ["succeeded", "succeeded", "succeeded", "failed", "cancelled", "interrupted", "queued", "running"];
    let workspaces: Vec<String> = (0..30).map(|n| format!("/work/{n:02}")).chain([format!("/w/{HOSTILE}")]).collect();
    let mut chain = ChainId::random();
    for sequence in 1..=jobs {
        let state = states[random.usize(..states.len())];
        let over = !["queued", "running"].contains(&state);
        // Long enough ago that all that is over has ended by now.
        let accepted = now - 6_000_000 - random.i64(0..20 * DAY);
        let started = (state != "queued").then(|| accepted + random.i64(0..120_000));
        let finished = over.then(|| started.unwrap_or(accepted) + random.i64(10..5_000_000));
        let cost = (over && random.u8(..4) > 0).then(|| f64::from(random.u32(..10_000)) / 10_000.0);
        if random.u8(..3) > 0 {
            chain = ChainId::random();
        }
        let prompt = format!("{HOSTILE} {sequence}");
        write
            .execute(
                "INSERT INTO jobs (sequence, id, workspace, mode, state, agent, prompt_head, chain, depth, accepted_at, started_at,
                 finished_at, unread, turn, cost_usd, bytes) VALUES (?1, ?2, ?3, 'sync', ?4, ?5, ?6, ?7, 0, ?8, ?9, ?10, 0, ?1, ?11, 9)",
                params![
                    sequence,
                    JobId::random().to_string(),
                    workspaces[random.usize(..workspaces.len())],
                    state,
                    ["claude", "codex", "gemini"][random.usize(..3)],
                    prompt,
                    chain.to_string(),
                    accepted,
                    started,
                    finished,
                    cost
                ],
            )
            .expect("a job");
        let request = json!({
            "prompt": prompt, "cwd": "/work", "agent": "claude", "timeout_s": 60, "billing": "subscription",
        });
        write
            .execute("INSERT INTO requests VALUES (?1, ?2)", params![sequence, request.to_string()])
            .expect("a request");
        if over {
            let code = [FaultCode::AgentStalled, FaultCode::DeadlineExceeded][random.usize(..2)];
            let fault = (state == "failed").then(|| Fault::new(code, HOSTILE));
            let outcome = json!({"response": format!("{HOSTILE} answer {sequence}"), "fault": fault});
            write
                .execute("INSERT INTO outcomes VALUES (?1, ?2)", params![sequence, outcome.to_string()])
                .expect("an outcome");
        }
    }
    write.commit().expect("committed");
    connection
}

fn one(connection: &Connection, sql: &str, since: i64) -> Value {
    let value = connection.query_row(sql, [since], |row| {
        Ok(match row.get_ref(0)? {
            rusqlite::types::ValueRef::Integer(number) => json!(number),
            rusqlite::types::ValueRef::Real(number) => json!(number),
            rusqlite::types::ValueRef::Text(text) => json!(String::from_utf8_lossy(text)),
            _ => Value::Null,
        })
    });
    value.expect(sql)
}

fn same(figure: &Value, sql: &Value, what: &str) {
    let close = |a: f64, b: f64| (a - b).abs() < 1e-6;
    let equal = figure == sql || matches!((figure.as_f64(), sql.as_f64()), (Some(a), Some(b)) if close(a, b));
    assert!(equal, "{what}: {figure} and not {sql}");
}

#[tokio::test]
async fn each_figure_of_ten_thousand_jobs_is_what_the_store_says() {
    let rig = new_rig();
    rig.state_dir().create().expect("a state directory");
    let database = generate(&rig.state_dir().database(), JOBS);
    let said: Value =
        serde_json::from_str(&stdout(&rig.run(&["report", "--since", "7d", "--json"]).await)).expect("JSON");
    let report = &said["report"];
    let since = report["since"].as_i64().expect("a beginning");
    let of = "FROM jobs WHERE (finished_at IS NULL OR finished_at >= ?1)";
    let sql = |sql: &str| one(&database, sql, since);
    same(&report["jobs"], &sql(&format!("SELECT count(*) {of}")), "jobs");
    assert!(
        report["jobs"].as_i64() < Some(JOBS) && report["jobs"].as_i64() > Some(JOBS / 4),
        "a part of them: {}",
        report["jobs"]
    );
    for state in ["queued", "running", "succeeded", "failed", "cancelled", "interrupted"] {
        same(&report["states"][state], &sql(&format!("SELECT count(*) {of} AND state = '{state}'")), state);
    }
    same(&report["cost_usd"], &sql(&format!("SELECT total(cost_usd) {of}")), "cost");
    let unknown = sql(&format!("SELECT count(*) - count(cost_usd) {of} AND finished_at IS NOT NULL"));
    same(&report["cost_unknown"], &unknown, "unknown cost");
    for (name, time, there) in [
        ("ran", "finished_at - started_at", "started_at IS NOT NULL AND finished_at IS NOT NULL"),
        ("waited", "started_at - accepted_at", "started_at IS NOT NULL"),
    ] {
        let count = sql(&format!("SELECT count(*) {of} AND {there}"));
        same(&report[name]["count"], &count, name);
        let count = count.as_i64().expect("a count");
        for (rank, percent) in [("p50_ms", 50), ("p90_ms", 90), ("p99_ms", 99), ("max_ms", 100)] {
            let at = (count * percent + 99) / 100 - 1;
            let value = sql(&format!("SELECT {time} {of} AND {there} ORDER BY {time} LIMIT 1 OFFSET {at}"));
            same(&report[name][rank], &value, &format!("{name} {rank}"));
        }
        let edges = [0, 300, 1_000, 3_000, 10_000, 30_000, 60_000, 180_000, 600_000, 1_800_000, 3_600_000, i64::MAX];
        for (at, pair) in edges.windows(2).enumerate() {
            let (from, to) = (pair[0], pair[1]);
            let value = sql(&format!("SELECT count(*) {of} AND {there} AND {time} >= {from} AND {time} < {to}"));
            same(&report[name]["buckets"][at], &value, &format!("{name} below {to}"));
        }
    }
    let days = report["days"].as_array().expect("days");
    assert_eq!(days.len(), 8, "seven days ago and today are two parts of a day: {days:#?}");
    for day in days {
        let name = day["day"].as_str().expect("a day");
        let on = format!("{of} AND finished_at IS NOT NULL AND date(finished_at / 1000, 'unixepoch') = '{name}'");
        same(&day["cost_usd"], &sql(&format!("SELECT total(cost_usd) {on}")), name);
        same(&day["cost_unknown"], &sql(&format!("SELECT count(*) - count(cost_usd) {on}")), name);
        for state in ["succeeded", "failed", "cancelled", "interrupted"] {
            same(&day["ended"][state], &sql(&format!("SELECT count(*) {on} AND state = '{state}'")), name);
        }
    }
    let mut grouped = 0;
    for agent in report["agents"].as_array().expect("agents") {
        let name = agent["name"].as_str().expect("a name");
        same(&agent["jobs"], &sql(&format!("SELECT count(*) {of} AND agent = '{name}'")), name);
        same(&agent["cost_usd"], &sql(&format!("SELECT total(cost_usd) {of} AND agent = '{name}'")), name);
        grouped += agent["jobs"].as_i64().expect("a count");
    }
    assert_eq!(json!(grouped), report["jobs"]);
    let workspaces = report["workspaces"].as_array().expect("workspaces");
    let grouped: i64 = workspaces.iter().filter_map(|group| group["jobs"].as_i64()).sum();
    assert_eq!((workspaces.len(), json!(grouped)), (20, report["jobs"].clone()), "beyond the groups is one group");
    let dearest = sql(&format!("SELECT workspace {of} GROUP BY workspace ORDER BY total(cost_usd) DESC LIMIT 1"));
    same(&workspaces[0]["name"], &dearest, "the dearest");
    for counted in report["codes"].as_array().expect("codes") {
        let code = counted["code"].as_str().expect("a code");
        let value = sql(&format!(
            "SELECT count(*) {of} AND (SELECT json_extract(outcome, '$.fault.code') FROM outcomes WHERE job = sequence) = '{code}'"
        ));
        same(&counted["count"], &value, code);
    }
    assert_eq!(json!(said["jobs"].as_array().map(Vec::len)), report["jobs"]);
    let table = stdout(&rig.run(&["report", "--since", "7d", "--csv"]).await);
    // A moment later a few jobs more may lie before the period.
    let rows = table.lines().count().saturating_sub(1) as i64;
    assert!((report["jobs"].as_i64().expect("a count") - rows).abs() < 5, "{rows} rows");
}

#[tokio::test]
async fn the_page_needs_nothing_obeys_nothing_and_has_a_text_only_when_it_is_asked_for() {
    let rig = new_rig();
    rig.state_dir().create().expect("a state directory");
    drop(generate(&rig.state_dir().database(), 300));
    std::fs::write(
        rig.state_dir().telemetry(),
        format!(
            "{{\"type\":\"rollout\",\"ts_unix_ms\":{0},\"outcome\":\"adopted\",\"verdict\":null,\"trigger\":\"watch\",\
             \"version\":\"9.9.9\",\"took_ms\":0,\"gap_ms\":41}}\n{{\"type\":\"worker_restart\",\"ts_unix_ms\":{0},\"generation\":2}}\n",
            UnixMillis::now().0
        ),
    )
    .expect("telemetry");
    let page = stdout(&rig.run(&["report", "--since", "all"]).await);
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"), "whole");
    for never in
        ["<script", "http:", "https:", "src=", "@import", "url(", "javascript:", "\u{1b}", "\u{202e}", " answer "]
    {
        assert!(!page.contains(never), "{never:?} is in the page");
    }
    let hostile = "&lt;script&gt;alert(1)&lt;/script&gt;\\u001b[2J\\u202e";
    assert!(page.contains(hostile), "a workspace is shown as text");
    assert!(
        page.contains("default-src 'none'") && page.contains("prefers-color-scheme:dark"),
        "its own policy, and dark"
    );
    assert!(page.contains("41 ms") && page.contains("9.9.9"), "the gap of an upgrade");
    assert_eq!(page.matches("<svg viewBox=\"0 0 760").count(), 8, "each plot");
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    let with_text = stdout(&rig.run(&["report", "--since", "all", "--with-text"]).await);
    assert!(with_text.contains(&format!("{hostile}&quot;&#39;&amp; answer ")), "an answer is shown as text");
    for never in ["<script", "\u{1b}", "\u{202e}"] {
        assert!(!with_text.contains(never), "{never:?} is in the page");
    }
    let data: Value = serde_json::from_str(&stdout(&rig.run(&["report", "--json"]).await)).expect("JSON");
    assert!(!data.to_string().contains("answer") && data["version"] == 1, "no text and a version");
}

#[tokio::test]
async fn a_report_is_written_whole_for_its_user_alone_and_over_nothing_else() {
    let rig = new_rig();
    let path = rig.path("report.html");
    let at = path.to_str().expect("text");
    // Nothing was ever asked: that is a report as well, and makes no store.
    let output = rig.run(&["report", "-o", at]).await;
    assert!(stdout(&output).contains("0 jobs"), "{output:?}");
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    assert!(!rig.state_dir().database().exists(), "looking makes nothing");
    for data in ["--json", "--csv"] {
        assert!(rig.run(&["report", data, "-o", at]).await.status.success(), "over one of its own");
    }
    std::fs::write(&path, "my notes").expect("written");
    let refused = rig.run(&["report", "-o", at]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("--force"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&path).expect("there"), "my notes");
    assert!(rig.run(&["report", "-o", at, "--force"]).await.status.success());
    let refused = rig.run(&["report", "--since", "yesterday"]).await;
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("accepted: a number with m, h, d or w"), "{refused:?}");
    let seen = rig.run(&["report", "--csv", "--json"]).await;
    assert_eq!(seen.status.code(), Some(2));
}
