//! The fleet's database, where one is configured.
//!
//! Owns: how what was found is told. May not know: what is looked at, what follows from it (`phone_opus::internals::fleet::people`).

use phone_opus::internals::fleet::postgres::PgFleet;
use serde_json::json;

use super::Finding;
use crate::settings::{Prepared, runtime};

const NAME: &str = "fleet";

/// Looks at it; nothing where there is none. It makes no tables.
pub(super) fn look(prepared: &Prepared) -> Vec<Finding> {
    let Some(address) = &prepared.config.fleet else { return Vec::new() };
    let examined = match runtime() {
        Ok(runtime) => runtime.block_on(PgFleet::examine(address.as_str())).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let exam = match examined {
        Ok(exam) => exam,
        Err(error) => {
            let text = format!("{}: failed to {error}; this machine's own consults go on without it", address.shown());
            return vec![Finding {
                name: NAME.to_owned(),
                good: Some(false),
                text,
                data: json!({"address": address.shown()}),
            }];
        }
    };
    let found = exam.findings().into_iter().map(|finding| Finding {
        name: NAME.to_owned(),
        good: finding.good,
        text: finding.text,
        data: json!({"check": finding.check}),
    });
    let there = Finding {
        name: NAME.to_owned(),
        good: Some(true),
        text: format!("{} answers", address.shown()),
        data: json!({"address": address.shown(), "exam": exam}),
    };
    std::iter::once(there).chain(found).chain(clones(prepared)).collect()
}

/// Whether git is there, where this machine makes clones for others.
fn clones(prepared: &Prepared) -> Option<Finding> {
    let listed = &prepared.config.fleet_clone;
    if listed.is_empty() {
        return None;
    }
    let answer = std::process::Command::new("git").arg("version").stdin(std::process::Stdio::null()).output();
    let said = answer.ok().filter(|answer| answer.status.success());
    let version = said.map(|said| String::from_utf8_lossy(&said.stdout).trim().chars().take(80).collect::<String>());
    let good = version.as_deref().and_then(version_of).is_some_and(|version| version >= LEAST_GIT);
    let text = match &version {
        Some(version) if good => format!("clones for others are made by {version}, of {}", listed.join(", ")),
        Some(version) => format!("fleet_clone is set, and {version} is older than git {}.{}", LEAST_GIT.0, LEAST_GIT.1),
        None => "fleet_clone is set, and there is no git on PATH; consults that need a clone fail here".to_owned(),
    };
    Some(Finding { name: NAME.to_owned(), good: Some(good), text, data: json!({"check": "git", "version": version}) })
}

/// The first git that makes a repository of a hash that is named.
const LEAST_GIT: (u32, u32) = (2, 29);

/// The two first numbers of what `git version` says.
fn version_of(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.strip_prefix("git version ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_of_git_is_its_two_first_numbers() {
        for (said, version) in [
            ("git version 2.47.3", Some((2, 47))),
            ("git version 2.39.5 (Apple Git-154)", Some((2, 39))),
            ("git version 2.9.windows.1", Some((2, 9))),
            ("git version x", None),
            ("", None),
        ] {
            assert_eq!(version_of(said), version, "{said}");
        }
    }
}
