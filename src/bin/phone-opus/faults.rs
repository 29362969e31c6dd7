//! `faults list`: what a fault plan may say.

use std::process::ExitCode;

use phone_opus::internals::failpoints::{FaultPoint, Operations, Tools};
use phone_opus::internals::tools;
use serde_json::{Value, json};

use crate::cli::FaultsCommand;
use crate::output::{print, print_json};

/// Runs one of the commands.
pub(crate) fn run(command: &FaultsCommand) -> ExitCode {
    let FaultsCommand::List { json: as_json } = command;
    if *as_json {
        let points: Vec<Value> = FaultPoint::ALL.iter().map(|point| as_value(*point)).collect();
        print_json(json!({ "points": points }));
        return ExitCode::SUCCESS;
    }
    print("PHONE_OPUS_FAULTS = point[@operation][#when]=action[:argument];…\n");
    for point in FaultPoint::ALL {
        let reached = if point.is_reached() { "" } else { " (not in this version)" };
        print(&format!("{point}: {}{reached}", point.meaning()));
        let actions: Vec<&str> = point.accepted().iter().map(|kind| kind.as_str()).collect();
        print(&format!("    actions     {}", actions.join(" ")));
        let operations = operations(*point);
        if !operations.is_empty() {
            print(&format!("    operations  {}", operations.join(" ")));
        }
    }
    print(
        "\nwhen: #N the N-th time (#1 if left out), #* each time, #pX each time with probability X; exit:CODE, delay:MS",
    );
    ExitCode::SUCCESS
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
