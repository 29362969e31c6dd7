//! `agents`: who can answer here.
//!
//! Owns: how it is shown. May not know: how a program is found, what an agent is.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use phone_opus::internals::agents::Agent;
use phone_opus::internals::base::fault::{Fault, FaultCode};
use serde_json::{Value, json};

use crate::cli::AgentsOptions;
use crate::logging;
use crate::output::{out, print_json, print_lines};
use crate::screen::layout::{CellFit, Column, paragraph, table, wrap};
use crate::screen::{Face, Line, paint};
use crate::settings::{Prepared, configure, refused};

/// The columns; in a pipe the same, with tabs between and no header.
const COLUMNS: [Column; 5] = [
    Column::new("AGENT", CellFit::Whole),
    Column::new("STATUS", CellFit::Whole),
    Column::new("PROGRAM", CellFit::Wrap(7)),
    Column::new("PLACE", CellFit::Wrap(16)),
    Column::new("READS", CellFit::Wrap(24)),
];

/// One agent, as it is shown.
struct Row {
    name: String,
    title: &'static str,
    is_default: bool,
    /// Its program, or why there is none.
    found: Result<String, Fault>,
    /// The machine it runs on, when that is not this one.
    on: Option<String>,
    /// What keeps it to reading.
    reads: String,
    resumes: bool,
    payer: &'static str,
}

/// Lists every agent: where it is, what keeps it to reading. Starts none of them.
pub(crate) fn run(options: &AgentsOptions) -> ExitCode {
    logging::start();
    let prepared = match configure(&options.common, &options.overrides) {
        Ok(prepared) => prepared,
        Err(error) => return refused(&error),
    };
    let registry = prepared.agents();
    let names = registry.names();
    let rows: Vec<Row> =
        names.into_iter().filter_map(|name| Some(row(&prepared, name, registry.get(name).ok()?.as_ref()))).collect();
    if options.json {
        let agents: Vec<Value> = rows.iter().map(Row::json).collect();
        print_json(json!({"build": env!("CARGO_PKG_VERSION"), "agents": agents}));
        return ExitCode::SUCCESS;
    }
    let face = out();
    let home = dirs::home_dir();
    let cells: Vec<Vec<Line>> = rows.iter().map(|row| row.cells(face, home.as_deref())).collect();
    let mut lines = table(&COLUMNS, &cells, face);
    if face.terminal {
        lines.extend(beneath(&rows, face));
    }
    print_lines(&lines);
    ExitCode::SUCCESS
}

fn row(prepared: &Prepared, name: &str, agent: &dyn Agent) -> Row {
    let profile = agent.profile();
    let said = prepared.config.customs.get(name).and_then(|custom| custom.reads.as_deref());
    Row {
        name: name.to_owned(),
        title: profile.title(),
        is_default: prepared.config.agent == name,
        found: agent.locate(&prepared.environment).map(|path| own(path).display().to_string()),
        on: agent.site().map(|site| site.target.to_string()),
        reads: match said {
            Some(said) => format!("unproven, by your word: {said}"),
            None => profile.reading().to_owned(),
        },
        resumes: profile.resumes(),
        payer: profile.payer_told(),
    }
}

/// A program's path as it can be found again: this very program is known to itself by a name that is another one's for others.
fn own(path: PathBuf) -> PathBuf {
    if path.starts_with("/proc/self") { std::env::current_exe().unwrap_or(path) } else { path }
}

impl Row {
    /// `found`, or the code of why it is not.
    fn status(&self) -> &'static str {
        self.found.as_ref().map_or_else(|fault| fault.code.as_str(), |_| "found")
    }

    fn json(&self) -> Value {
        let place = self.found.as_ref().map_or_else(|fault| fault.detail.clone(), Clone::clone);
        json!({
            "agent": self.name, "status": self.status(), "title": self.title, "default": self.is_default,
            "found": self.found.is_ok(), "place": place, "exec": self.on, "reads": self.reads, "resumes": self.resumes,
            "payer": self.payer,
        })
    }

    fn cells(&self, face: Face, home: Option<&Path>) -> Vec<Line> {
        let (look, status) = match &self.found {
            Ok(_) => (paint::GOOD, "found"),
            Err(_) => (paint::DIM, "none"),
        };
        let place = match (&self.found, &self.on) {
            (Ok(path), None) => shortened(path, home.filter(|_| face.terminal)),
            (Ok(path), Some(on)) => format!("{path} on {on}"),
            // For people it stands under the table.
            (Err(_), _) if face.terminal => String::new(),
            (Err(fault), _) => fault.detail.clone(),
        };
        let name = if self.found.is_ok() { paint::BOLD } else { paint::DIM };
        vec![
            Line::of(name, &self.name),
            Line::of(look, status),
            Line::of(paint::PLAIN, self.title),
            Line::of(paint::PLAIN, &place),
            Line::of(paint::PLAIN, &self.reads),
        ]
    }
}

/// A path below the home as people write it.
fn shortened(path: &str, home: Option<&Path>) -> String {
    let below = home.and_then(|home| Path::new(path).strip_prefix(home).ok());
    below.map_or_else(|| path.to_owned(), |below| format!("~/{}", below.display()))
}

/// Who answers when nobody is named, and what to do about those that are not there.
fn beneath(rows: &[Row], face: Face) -> Vec<Line> {
    let mut lines = vec![Line::default()];
    for row in rows.iter().filter(|row| row.is_default) {
        lines.extend(wrap(&Line::of(paint::PLAIN, &format!("{} answers when none is named.", row.name)), face.width));
    }
    let mut is_told = false;
    for row in rows {
        let Err(fault) = &row.found else { continue };
        let hint = fault.hint.as_deref().unwrap_or_default();
        // Where programs are looked for is said once; after that only what to do.
        let said = if is_told && fault.code == FaultCode::AgentMissing {
            format!("{}: {}.", row.name, hint.split(';').next().unwrap_or_default().trim_end_matches('.'))
        } else {
            format!("{}: {} {hint}", row.name, fault.detail)
        };
        is_told |= fault.code == FaultCode::AgentMissing;
        lines.extend(paragraph(paint::DIM, &said, face.width));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_below_the_home_is_written_as_people_do() {
        let home = Path::new("/home/ada");
        for (path, want) in [
            ("/home/ada/.local/bin/claude", "~/.local/bin/claude"),
            ("/home/adam/bin/claude", "/home/adam/bin/claude"),
            ("/usr/bin/claude", "/usr/bin/claude"),
        ] {
            assert_eq!(shortened(path, Some(home)), want);
        }
        assert_eq!(shortened("/home/ada/x", None), "/home/ada/x");
    }
}
