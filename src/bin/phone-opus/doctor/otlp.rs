//! The collector of traces and metrics, where one is configured.
//!
//! Owns: how what was found is told. May not know: the protocol (`phone_opus::internals::telemetry::otlp`).

use phone_opus::Environment;
use phone_opus::internals::base::ids::HostId;
use phone_opus::internals::telemetry::otlp::OtlpCollector;
use phone_opus::internals::telemetry::otlp::settings::OtlpSettings;
use serde_json::{Value, json};

use super::Finding;
use crate::settings::{Prepared, runtime};

/// Sends it nothing and hears whether it takes that; nothing is asked where none is configured.
pub(super) fn look(prepared: &Prepared) -> Vec<Finding> {
    let Some(target) = &prepared.config.otlp else { return Vec::new() };
    let finding = |good, text: String, data: Value| Finding { name: "otlp".to_owned(), good: Some(good), text, data };
    let goes_on = "consults go on without it";
    let settings = match OtlpSettings::read(target, &Environment::capture(), HostId::random()) {
        Ok(Some(settings)) => settings,
        Ok(None) => {
            let text = "switched off by the variables OTEL_…".to_owned();
            return vec![finding(true, text, Value::Null)];
        }
        Err(why) => return vec![finding(false, format!("{why}; {goes_on}"), Value::Null)],
    };
    let answer = match runtime() {
        Ok(runtime) => runtime.block_on(OtlpCollector::examine(settings)),
        Err(error) => Err(error.to_string()),
    };
    vec![match answer {
        Ok(url) => finding(true, format!("{url} answers"), json!({"collector": url})),
        Err(why) => finding(false, format!("{why}; {goes_on}"), Value::Null),
    }]
}
