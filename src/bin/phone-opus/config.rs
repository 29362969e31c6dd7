//! `config show`: every setting, its value, and where that is from.
//!
//! Owns: how it is shown. May not know: where settings lie. Of a table it shows the names alone; the one secret, a
//! password in `fleet`, is shown by no value (`FleetAddress::shown`).

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::cli::ConfigCommand;
use crate::output::{out, print_json, print_lines, say};
use crate::screen::layout::{CellFit, Column, table};
use crate::screen::{Line, paint};
use crate::settings::{Told, refused, told};

/// The columns; in a pipe the same, with tabs between and no header.
const COLUMNS: [Column; 3] = [
    Column::new("KEY", CellFit::Whole),
    Column::new("VALUE", CellFit::Wrap(16)),
    Column::new("FROM", CellFit::Wrap(12)),
];

/// Runs one of the commands.
pub(crate) fn run(command: &ConfigCommand) -> ExitCode {
    let ConfigCommand::Show { json: as_json, overrides } = command;
    let (settings, left_out) = match told(overrides) {
        Ok(told) => told,
        Err(error) => return refused(&error),
    };
    if *as_json {
        let settings: Vec<Value> = settings.iter().map(as_value).collect();
        print_json(json!({"settings": settings, "project_file_left_out": left_out}));
        return ExitCode::SUCCESS;
    }
    let face = out();
    let rows: Vec<Vec<Line>> = settings.iter().map(row).collect();
    print_lines(&table(&COLUMNS, &rows, face));
    if let Some(left_out) = left_out {
        say(&format!("The project's file {} was left out: it {}.", left_out.place, left_out.why));
    }
    ExitCode::SUCCESS
}

/// What is shown of a value; the marks around words are for pages.
fn plain(value: &str) -> String {
    value.replace('`', "")
}

fn as_value(told: &Told) -> Value {
    let value = plain(&told.value);
    let value = value.parse::<u64>().map_or_else(|_| json!(value), |number| json!(number));
    json!({"key": told.key.name, "value": value, "from": told.from})
}

fn row(told: &Told) -> Vec<Line> {
    let chosen = told.from != "default";
    let from = if chosen { paint::GOOD } else { paint::DIM };
    let value = if chosen { paint::BOLD } else { paint::PLAIN };
    vec![Line::of(paint::PLAIN, told.key.name), Line::of(value, &plain(&told.value)), Line::of(from, &told.from)]
}
