//! `agents`: who can answer here.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::cli::AgentsOptions;
use crate::logging;
use crate::output::print;
use crate::settings::{configure, refused};

/// Lists every agent: where it is, what keeps it to reading. Starts none of them.
pub(crate) fn run(options: &AgentsOptions) -> ExitCode {
    logging::start();
    let prepared = match configure(&options.common, &options.overrides) {
        Ok(prepared) => prepared,
        Err(error) => return refused(&error),
    };
    let registry = prepared.agents();
    let row = |name: &str| {
        let agent = registry.get(name).ok()?;
        let profile = agent.profile();
        let custom = prepared.config.customs.get(name);
        let reading = match custom.and_then(|custom| custom.reads.as_deref()) {
            Some(said) => format!("unproven, by your word: {said}"),
            None => profile.reading().to_owned(),
        };
        let found = agent.locate(&prepared.environment);
        let on = agent.site().map(|site| site.target.to_string());
        let (is_there, place) = match &found {
            Ok(path) => (true, path.display().to_string()),
            Err(fault) => (false, fault.detail.clone()),
        };
        let is_default = prepared.config.agent == name;
        let data = json!({
            "agent": name, "title": profile.title(), "default": is_default, "found": is_there, "place": place, "exec": on,
            "reads": reading, "resumes": profile.resumes(), "payer": profile.payer_told(),
        });
        let mark = if is_there { "    " } else { "none" };
        let default = if is_default { " (answers when none is named)" } else { "" };
        let on = on.map_or_else(String::new, |on| format!(" on {on}"));
        let text = format!(
            "{mark} {name:<9} {}{default}\n     {:<9} {place}{on}\n     {:<9} {}",
            profile.title(),
            "",
            "",
            reading
        );
        Some((data, text))
    };
    let rows: Vec<(Value, String)> = registry.names().into_iter().filter_map(row).collect();
    if options.json {
        let agents: Vec<&Value> = rows.iter().map(|(data, _)| data).collect();
        print(&json!({"version": env!("CARGO_PKG_VERSION"), "agents": agents}).to_string());
    } else {
        rows.iter().for_each(|(_, text)| print(text));
    }
    ExitCode::SUCCESS
}
