//! `selftest`: the fault scoreboard on this very program.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use phone_opus::internals::config::WorkerIsolation;
use phone_opus::testkit::custody_board::{self, AgentPart, CustodyRow};
use phone_opus::testkit::invariants::Violation;
use phone_opus::testkit::processes;
use phone_opus::testkit::rig::Through;
use phone_opus::testkit::scoreboard::rows::{controls, place};
use phone_opus::testkit::scoreboard::{self, Draw, FaultRow, Score, rows};
use serde_json::{Value, json};

use crate::cli::{EVERY_AGENT, SelftestOptions};
use crate::end_signals::EndSignals;
use crate::output::{out, print, print_json, print_lines, say, say_over};
use crate::screen::layout::{CellFit, Column, table};
use crate::screen::{self, markdown, paint};
use crate::settings::{SetupError, program, refused, runtime};

/// What is to be played.
enum Game {
    Rows(Vec<FaultRow>),
    Soak(Duration),
    Replay,
}

/// Plays the rows, or random plans, and says which laws were broken; exit code 1 when one was.
pub(crate) fn run(options: &SelftestOptions) -> ExitCode {
    // A case that panics is a broken law, which is told with its row.
    std::panic::set_hook(Box::new(|_| {}));
    play(options).unwrap_or_else(|error| refused(&error))
}

fn play(options: &SelftestOptions) -> Result<ExitCode, SetupError> {
    if options.custody {
        return Ok(match custody_rows(options)? {
            Ok(rows) => custody(&rows, options.json),
            Err(ended) => ended,
        });
    }
    let chosen = chosen(options);
    if chosen.is_empty() {
        say("phone-opus: no row has that in its name; `phone-opus selftest --list` shows them all");
        return Ok(ExitCode::from(2));
    }
    if options.list {
        list(&chosen, options.json);
        return Ok(ExitCode::SUCCESS);
    }
    if !processes::are_visible() {
        say("phone-opus: other processes cannot be seen here, so nothing is said about what is left alive");
    }
    let (game, seed) = match (options.replay, options.soak) {
        (Some(seed), _) => (Game::Replay, seed),
        (None, Some(minutes)) => {
            let seed = options.seed.unwrap_or_else(scoreboard::soak::any_seed);
            (Game::Soak(Duration::from_secs_f64((minutes * 60.0).max(0.0))), seed)
        }
        (None, None) => (Game::Rows(chosen), options.seed.unwrap_or(0)),
    };
    let program = program();
    let runtime = runtime()?;
    let began = Instant::now();
    let mut board = Board { lines: Vec::new(), json: options.json, seed, began };
    let played = runtime.block_on(unless_ended(async {
        match game {
            Game::Rows(rows) => board.rows(&program, rows, options.at_once).await,
            Game::Soak(time) => board.soak(&program, time, options.at_once).await,
            Game::Replay => board.replay(&program).await,
        }
    }))?;
    Ok(played.err().unwrap_or_else(|| board.verdict()))
}

/// Plays until it is over or a signal ends this program, which then says so by its exit code. What was under way is dropped: a
/// world that goes ends the processes in it, and those of a program that is just killed have nobody to do that.
async fn unless_ended<T>(played: impl Future<Output = T>) -> Result<Result<T, ExitCode>, SetupError> {
    let mut signals = EndSignals::begin().map_err(SetupError::Runtime)?;
    tokio::select! {
        played = played => Ok(Ok(played)),
        signal = signals.any() => {
            let number = signal.as_raw();
            say(&format!("phone-opus: ended by signal {number}; what was being tried is ended as well"));
            Ok(Err(ExitCode::from(u8::try_from(128 + number).unwrap_or(u8::MAX))))
        }
    }
}

/// Asks the cells of the custody scoreboard, for one agent after the other.
fn custody_rows(options: &SelftestOptions) -> Result<Result<Vec<CustodyRow>, ExitCode>, SetupError> {
    let shown = !options.json && std::io::stderr().is_terminal();
    let parts: Vec<AgentPart> = match options.agent.as_str() {
        EVERY_AGENT => AgentPart::all().collect(),
        name => AgentPart::named(name).into_iter().collect(),
    };
    let (runtime, count) = (runtime()?, parts.len());
    let mut rows = Vec::new();
    for (done, part) in parts.into_iter().enumerate() {
        if shown {
            say_over(&format!("{}, {} of {count} agents", part.name(), done + 1));
        }
        let asked = custody_board::run_as(program(), options.through, part, options.only.clone());
        match runtime.block_on(unless_ended(asked))? {
            Ok(asked) => rows.extend(asked),
            Err(ended) => return Ok(Err(ended)),
        }
    }
    if shown {
        say_over("");
    }
    Ok(Ok(rows))
}

/// Shows the custody scoreboard; exit code 1 when a cell is wrong.
fn custody(rows: &[CustodyRow], as_json: bool) -> ExitCode {
    if rows.is_empty() {
        say("phone-opus: no cell has that in its name; `phone-opus selftest --custody` shows them all");
        return ExitCode::from(2);
    }
    let wrong = rows.iter().filter(|row| row.right == Some(false)).count();
    if as_json {
        let cell =
            |row: &CustodyRow| json!({"agent": row.agent, "cell": row.cell, "seen": row.seen, "right": row.right});
        let cells: Vec<Value> = rows.iter().map(cell).collect();
        print_json(json!({"build": env!("CARGO_PKG_VERSION"), "ok": wrong == 0, "cells": cells}));
    } else {
        let (shown, face) = (custody_board::markdown(rows), out());
        if face.terminal {
            print_lines(&markdown::lines(shown.trim_end(), face.width));
        } else {
            print(shown.trim_end());
        }
        let unseen = rows.iter().filter(|row| row.right.is_none()).count();
        print(&format!("{} cells: {wrong} wrong, {unseen} not to be seen on this machine", rows.len()));
    }
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The rows that are asked for.
fn chosen(options: &SelftestOptions) -> Vec<FaultRow> {
    let all = if options.control { controls() } else { rows(options.through) };
    let only = |row: &FaultRow| options.only.iter().all(|text| row.name().contains(text.as_str()));
    all.into_iter().filter(only).collect()
}

fn list(rows: &[FaultRow], as_json: bool) {
    if as_json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|row| {
                json!({"name": row.name(), "plan": row.plan(), "answer": row.expect.answer.to_string(),
                       "generation": row.expect.generation, "runs": [row.expect.runs.0, row.expect.runs.1]})
            })
            .collect();
        return print_json(json!({ "rows": rows }));
    }
    let width = rows.iter().map(|row| row.name().len()).max().unwrap_or(0);
    for row in rows {
        print(&format!("{:width$}  {}, generation {}", row.name(), row.expect.answer, row.expect.generation));
    }
}

/// One thing that was played.
struct Line {
    name: String,
    plan: String,
    isolation: WorkerIsolation,
    score: Score,
    replay: String,
}

/// The columns of the table on a terminal.
const COLUMNS: [Column; 8] = [
    Column::new("", CellFit::Whole),
    Column::new("FAULT", CellFit::Wrap(20)),
    Column::new("ANSWERED", CellFit::Wrap(8)),
    Column::new("RECOVERED", CellFit::Wrap(9)),
    Column::new("GENERATION", CellFit::Whole),
    Column::new("RUNS", CellFit::Whole),
    Column::new("ORPHANS", CellFit::Whole),
    Column::new("TIME", CellFit::Whole),
];

impl Line {
    fn cells(&self) -> Vec<screen::Line> {
        let score = &self.score;
        let (look, mark) = if score.holds() { (paint::GOOD, "ok") } else { (paint::BAD, "FAIL") };
        let plain = |text: &str| screen::Line::of(paint::PLAIN, text);
        let generation = score.generation.map_or_else(|| "-".to_owned(), |generation| generation.to_string());
        vec![
            screen::Line::of(look, mark),
            plain(&self.name),
            plain(&score.answered),
            plain(score.recovered.as_str()),
            plain(&generation),
            plain(&score.runs.to_string()),
            plain(&score.left.to_string()),
            plain(&format!("{:.1} s", score.took.as_secs_f64())),
        ]
    }

    fn as_json(&self) -> Value {
        let broken: Vec<Value> =
            self.score.broken.iter().map(|Violation { law, detail }| json!({"law": law, "detail": detail})).collect();
        json!({
            "name": self.name,
            "plan": self.plan,
            "isolation": place(self.isolation),
            "answered": self.score.answered,
            "recovered": self.score.recovered.as_str(),
            "generation": self.score.generation,
            "runs": self.score.runs,
            "left": self.score.left,
            "fired": self.score.fired,
            "ms": u64::try_from(self.score.took.as_millis()).unwrap_or(u64::MAX),
            "holds": self.score.holds(),
            "broken": broken,
            "replay": self.replay,
        })
    }
}

/// What was played so far, and how it is shown.
struct Board {
    lines: Vec<Line>,
    json: bool,
    seed: u64,
    began: Instant,
}

impl Board {
    async fn rows(&mut self, program: &Path, rows: Vec<FaultRow>, at_once: usize) {
        let seed = self.seed;
        let mut scores: Vec<Option<Score>> = rows.iter().map(|_| None).collect();
        let shown = !self.json && std::io::stderr().is_terminal();
        let (total, mut done) = (rows.len(), 0);
        scoreboard::run(program, seed, &rows, at_once, |at, score| {
            done += 1;
            if shown {
                say_over(&format!("{done} of {total} rows"));
            }
            scores[at] = Some(score);
        })
        .await;
        if shown {
            say_over("");
        }
        let variables = |row: &FaultRow| {
            let (host, through) = match row.through {
                Through::Streams => ("mcp serve", ""),
                Through::Daemon => ("daemon run", " --through daemon"),
            };
            format!(
                "PHONE_OPUS_FAULTS='{}' PHONE_OPUS_FAULT_SEED={seed} PHONE_OPUS_ISOLATION={} phone-opus {host}, or \
                 phone-opus selftest --seed {seed}{}{through} --only '{}'",
                row.plan(),
                if row.isolation == WorkerIsolation::Process { "process" } else { "in_process" },
                if row.control.is_some() { " --control" } else { "" },
                row.name()
            )
        };
        for (row, score) in rows.into_iter().zip(scores) {
            let Some(score) = score else { continue };
            let (name, plan, replay) = (row.name(), row.plan(), variables(&row));
            self.lines.push(Line { name, plan, isolation: row.isolation, score, replay });
        }
        if !self.json {
            self.table();
        }
    }

    async fn soak(&mut self, program: &Path, time: Duration, at_once: usize) {
        let seed = self.seed;
        if !self.json {
            print(&format!("seeds from {seed} on, for {} s", time.as_secs()));
        }
        scoreboard::soak(program, seed, time, at_once, |draw, score| self.drawn(&draw, score)).await;
    }

    async fn replay(&mut self, program: &Path) {
        let draw = Draw::of(self.seed);
        if !self.json {
            print(&draw.to_string());
        }
        let score = scoreboard::replay(program, &draw).await;
        self.drawn(&draw, score);
    }

    fn drawn(&mut self, draw: &Draw, score: Score) {
        let line = Line {
            name: format!("seed {}", draw.seed),
            plan: draw.plan.clone(),
            isolation: draw.isolation,
            replay: format!("phone-opus selftest --replay {}", draw.seed),
            score,
        };
        if !self.json {
            let score = &line.score;
            print(&format!(
                "{} {}: {} ({}), {} struck, {}, {} runs, {:.1} s",
                if score.holds() { "ok  " } else { "FAIL" },
                line.name,
                line.plan,
                place(line.isolation),
                score.fired,
                score.answered,
                score.runs,
                score.took.as_secs_f64()
            ));
            print_broken(&line);
        }
        self.lines.push(line);
    }

    fn table(&self) {
        let face = out();
        if face.terminal {
            let rows: Vec<Vec<screen::Line>> = self.lines.iter().map(Line::cells).collect();
            print_lines(&table(&COLUMNS, &rows, face));
            return self.lines.iter().for_each(print_broken);
        }
        let width = self.lines.iter().map(|line| line.name.len()).max().unwrap_or(0).max(5);
        print(&format!(
            "{:4} {:width$}  {:<20} {:<9} {:>10} {:>4} {:>7} {:>7}",
            "", "fault", "answered", "recovered", "generation", "runs", "orphans", "time"
        ));
        for line in &self.lines {
            let score = &line.score;
            print(&format!(
                "{:4} {:width$}  {:<20} {:<9} {:>10} {:>4} {:>7} {:>5.1} s",
                if score.holds() { "ok" } else { "FAIL" },
                line.name,
                score.answered,
                score.recovered.as_str(),
                score.generation.map_or_else(|| "-".to_owned(), |generation| generation.to_string()),
                score.runs,
                score.left,
                score.took.as_secs_f64()
            ));
        }
        self.lines.iter().for_each(print_broken);
    }

    /// The last word, and the exit code.
    fn verdict(&self) -> ExitCode {
        let failed = self.lines.iter().filter(|line| !line.score.holds()).count();
        let (played, seconds) = (self.lines.len(), self.began.elapsed().as_secs_f64());
        let verdict = if failed == 0 {
            format!("all laws hold: {played} played in {seconds:.1} s, seed {}", self.seed)
        } else {
            format!("{failed} of {played} broke a law, in {seconds:.1} s, seed {}", self.seed)
        };
        if self.json {
            let rows: Vec<Value> = self.lines.iter().map(Line::as_json).collect();
            let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            print_json(json!({"build": env!("CARGO_PKG_VERSION"), "seed": self.seed, "ok": failed == 0,
                              "verdict": verdict, "ms": ms, "rows": rows}));
        } else {
            print(&verdict);
        }
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// The laws a line broke, and how to see it again.
fn print_broken(line: &Line) {
    if line.score.holds() {
        return;
    }
    print(&format!("{}:", line.name));
    for violation in &line.score.broken {
        print(&format!("  {violation}"));
    }
    print(&format!("  again: {}", line.replay));
}
