//! `report`: what was asked in a period, as a page to keep, or as data.
//!
//! Owns: what the command does, in which order. May not know: how a figure comes about, how a plot is drawn.
//!
//! Invariants: (1) it reads, and changes nothing but the file it is told to write; (2) no prompt and no answer is read without
//! `--with-text` (L13).

mod file;
mod page;
mod plots;
mod table;

use std::borrow::Cow;
use std::path::Path;
use std::process::ExitCode;

use phone_opus::internals::base::ids::{JobId, UnixMillis};
use phone_opus::internals::base::lenient;
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::jobs::row::JobRow;
use phone_opus::internals::jobs::store::{StoreError, StoreHandle};
use phone_opus::internals::seen::figures::Figures;
use phone_opus::internals::seen::past::{Past, Period, past};
use serde_json::{Value, json};

use crate::cli::report::ReportOptions;
use crate::logging;
use crate::output::{out, print, print_json, print_prose, say};
use crate::screen::ages;
use crate::settings::{chain, refused, runtime, state_dir};

/// What a page begins with. A file that begins otherwise is none of ours.
pub(crate) const MARK: &str = "<!doctype html>\n<!-- written by phone-opus report -->";

/// Jobs whose text one report has, the newest: as many as a person may look through, and a page a browser still opens.
const TEXTS_MOST: usize = 1_000;

/// Bytes of all texts together, beyond which no older one is read.
const TEXT_BYTES: usize = 64 << 20;

/// What was asked and answered.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    /// The newest first.
    pub(crate) all: Vec<JobText>,
    /// Jobs of the period whose text is not among them.
    pub(crate) more: usize,
}

/// The text of one job.
#[derive(Debug)]
pub(crate) struct JobText {
    pub(crate) job: JobId,
    pub(crate) prompt: String,
    pub(crate) answer: Option<String>,
}

impl Texts {
    fn of(&self, job: JobId) -> Option<&JobText> {
        self.all.iter().find(|text| text.job == job)
    }
}

/// Writes it.
pub(crate) fn run(options: &ReportOptions) -> ExitCode {
    logging::start();
    let dir = match state_dir(&options.common) {
        Ok(dir) => dir,
        Err(error) => return refused(&error),
    };
    let target = match options.output.as_deref().map(|path| file::Target::of(path, options.force)).transpose() {
        Ok(target) => target,
        Err(error) => return failed(&error),
    };
    let now = UnixMillis::now();
    let (past, texts) = match read(&dir, Period { since: options.since.from(now), until: now }, options.with_text) {
        Ok(read) => read,
        Err(why) => return failed(&why),
    };
    let figures = Figures::of(&past);
    if target.is_none() && options.json {
        print_json(data(&figures, &past.jobs, &texts));
        return ExitCode::SUCCESS;
    }
    if target.is_none() && !options.csv && out().terminal {
        print_prose(&in_words(&figures));
        return ExitCode::SUCCESS;
    }
    let written = if options.csv {
        table::csv(&past.jobs, options.with_text.then_some(&texts))
    } else if options.json {
        format!("{}\n", versioned(data(&figures, &past.jobs, &texts)))
    } else {
        match page::page(&figures, &past.jobs, &texts) {
            Ok(page) => page,
            Err(error) => return failed(&format!("draw a plot: {error}")),
        }
    };
    match target {
        None => print(written.trim_end_matches('\n')),
        Some(target) => {
            if let Err(error) = target.write(written.as_bytes()) {
                return failed(&error);
            }
            let (jobs, path) = (ages::counted(figures.jobs, "job"), target.path().display());
            print_prose(&format!("A report of {jobs} is in {path}."));
        }
    }
    ExitCode::SUCCESS
}

fn failed(why: &str) -> ExitCode {
    say(&format!("phone-opus: failed to {why}"));
    ExitCode::FAILURE
}

/// Reads what happened, and the texts where they are asked for.
fn read(dir: &StateDir, period: Period, with_text: bool) -> Result<(Past, Texts), String> {
    let runtime = runtime().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let store = StoreHandle::sqlite(dir.clone());
        let read = async {
            let past = past(&store, dir, period).await?;
            let texts = if with_text { texts(&store, &past.jobs).await? } else { Texts::default() };
            Ok((past, texts))
        };
        let read = read.await;
        store.close().await;
        read.map_err(|error: StoreError| chain(&error))
    })
}

async fn texts(store: &StoreHandle, jobs: &[JobRow]) -> Result<Texts, StoreError> {
    let mut texts = Texts::default();
    let mut bytes = 0;
    for row in jobs.iter().rev() {
        if texts.all.len() >= TEXTS_MOST || bytes >= TEXT_BYTES {
            break;
        }
        let record = match store.job(row.id).await {
            Ok(record) => record,
            // It was forgotten meanwhile.
            Err(StoreError::UnknownJob(_)) => continue,
            Err(error) => return Err(error),
        };
        let text = JobText {
            job: row.id,
            prompt: record.request.prompt,
            answer: record.outcome.and_then(|outcome| outcome.response),
        };
        bytes += text.prompt.len() + text.answer.as_ref().map_or(0, String::len);
        texts.all.push(text);
    }
    texts.more = jobs.len() - texts.all.len();
    Ok(texts)
}

/// The figures and every job, for a program.
fn data(figures: &Figures, jobs: &[JobRow], texts: &Texts) -> Value {
    let job = |row: &JobRow| {
        let mut value = json!(row);
        if let (Value::Object(members), Some(text)) = (&mut value, texts.of(row.id)) {
            members.insert("prompt".to_owned(), json!(text.prompt));
            members.insert("answer".to_owned(), json!(text.answer));
        }
        value
    };
    json!({"report": figures, "jobs": jobs.iter().map(job).collect::<Vec<_>>()})
}

fn versioned(mut object: Value) -> Value {
    if let Value::Object(members) = &mut object {
        members.insert("version".to_owned(), json!(crate::output::JSON_VERSION));
    }
    object
}

/// The figures for somebody at a terminal.
fn in_words(figures: &Figures) -> String {
    let Figures { states, ran, waited, cost, .. } = figures;
    let span = |ms: Option<u64>| ms.map_or_else(|| "–".to_owned(), |ms| format!("{:.1} s", ms as f64 / 1_000.0));
    let adopted = figures.rollouts.iter().filter(|rollout| rollout.outcome == "adopted").count() as u64;
    let mut lines = vec![
        format!("since {}: {}", figures.period.since.to_iso8601(), ages::counted(figures.jobs, "job")),
        format!(
            "{} succeeded, {} failed, {} cancelled, {} interrupted, {} not over",
            states.succeeded,
            states.failed,
            states.cancelled,
            states.interrupted,
            states.queued + states.running
        ),
        format!("half ran within {}, 9 of 10 within {}", span(ran.p50_ms), span(ran.p90_ms)),
        format!("half waited {} at most, 9 of 10 {}", span(waited.p50_ms), span(waited.p90_ms)),
        format!("known cost ${:.4}; of {} it is not known", cost.cost_usd, ages::counted(cost.cost_unknown, "job")),
    ];
    let by = |group: &phone_opus::internals::seen::figures::GroupFigures| {
        format!("  {}: ${:.4} for {}", group.name, group.cost.cost_usd, ages::counted(group.jobs, "job"))
    };
    lines.extend(figures.agents.iter().map(by));
    lines.push(format!(
        "{}, {}, {}",
        ages::counted(figures.restarts, "worker restart"),
        ages::counted(figures.faults.iter().map(|fault| fault.count).sum(), "fault"),
        ages::counted(adopted, "upgrade")
    ));
    lines.push("The page with its plots: phone-opus report -o report.html".to_owned());
    lines.join("\n")
}

/// A text as a page may have it: what a terminal or a browser would obey is written out, and what HTML would read is escaped.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    let visible = lenient::visible(text);
    if !visible.contains(['&', '<', '>', '"', '\'']) {
        return visible;
    }
    let mut out = String::with_capacity(visible.len() + 16);
    for c in visible.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Whether a file of this beginning is a report that was written before.
pub(crate) fn is_ours(beginning: &[u8]) -> bool {
    [MARK.as_bytes(), b"{\"jobs\":[", b"{\"report\":{", table::HEAD.as_bytes()]
        .iter()
        .any(|ours| beginning.starts_with(ours))
}

/// A path for people.
fn named(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_is_obeyed() {
        assert_eq!(shown("plain"), "plain");
        assert_eq!(
            shown("<img src=x onerror='a()'>&\"\u{1b}]0;t\u{7}\u{202e}"),
            "&lt;img src=x onerror=&#39;a()&#39;&gt;&amp;&quot;\\u001b]0;t\\u0007\\u202e"
        );
    }
}
