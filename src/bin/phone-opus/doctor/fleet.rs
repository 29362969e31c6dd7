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
    std::iter::once(there).chain(found).collect()
}
