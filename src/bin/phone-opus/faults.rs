//! `faults list`: what a fault plan may say.

use std::process::ExitCode;

use phone_opus::internals::failpoints::{FaultPoint, Operations, Tools};
use phone_opus::internals::tools;
use serde_json::{Value, json};

use crate::cli::FaultsCommand;
use crate::output::{out, print_json, print_lines, print_prose};
use crate::screen::layout::{CellFit, laid_out};
use crate::screen::{Line, paint};

/// Runs one of the commands.
pub(crate) fn run(command: &FaultsCommand) -> ExitCode {
    let FaultsCommand::List { json: as_json } = command;
    if *as_json {
        let points: Vec<Value> = FaultPoint::ALL.iter().map(|point| as_value(*point)).collect();
        print_json(json!({ "points": points }));
        return ExitCode::SUCCESS;
    }
    print_prose("PHONE_OPUS_FAULTS = point[@operation][#when]=action[:argument];…\n");
    let face = out();
    // A pipe has no width.
    let width = if face.terminal { face.width } else { usize::MAX };
    for point in FaultPoint::ALL {
        let reached = if point.is_reached() { "" } else { " (not in this version)" };
        print_prose(&format!("{point}: {}{reached}", point.meaning()));
        let actions: Vec<String> = point.accepted().iter().map(|kind| kind.as_str().to_owned()).collect();
        let told = [("actions", actions), ("operations", operations(*point))];
        let rows: Vec<Vec<Line>> =
            told.iter().filter(|(_, words)| !words.is_empty()).map(|(name, words)| row(name, words)).collect();
        print_lines(&laid_out(&[CellFit::Whole, CellFit::Wrap(20)], rows.iter(), width).concat());
    }
    print_prose(
        "\nwhen: #N the N-th time (#1 if left out), #* each time, #pX each time with probability X; exit:CODE, delay:MS",
    );
    ExitCode::SUCCESS
}

/// What may follow, set in under its point.
fn row(name: &str, words: &[String]) -> Vec<Line> {
    vec![Line::of(paint::PLAIN, &format!("    {name:<10}")), Line::of(paint::PLAIN, &words.join(" "))]
}

fn operations(point: FaultPoint) -> Vec<String> {
    point.operations().names(Tools::These(&tools::NAMES))
}

fn as_value(point: FaultPoint) -> Value {
    let actions: Vec<&str> = point.accepted().iter().map(|kind| kind.as_str()).collect();
    json!({
        "point": point.as_str(), "meaning": point.meaning(), "reached": point.is_reached(), "actions": actions,
        "operations": operations(point), "any_operation": point.operations() == Operations::Any,
    })
}
