//! A run of the scripted agent, as its log tells it.

use serde_json::Value;

use crate::agents::RUN_TOKEN_VARIABLE;

/// One run of the scripted agent, by its log.
#[derive(Debug, Clone)]
pub struct Run {
    /// What it said when it started: `pid`, `pgid`, `argv`, `env`, `cwd`, `prompt_bytes`, `prompt_head`, `ts_ms`.
    pub start: Value,
    /// The same when it ended by itself; absent when it was ended.
    pub end: Option<Value>,
}

impl Run {
    /// A variable of its environment.
    #[must_use]
    pub fn env(&self, name: &str) -> Option<&str> {
        self.start["env"][name].as_str()
    }

    /// Its arguments.
    #[must_use]
    pub fn argv(&self) -> Vec<&str> {
        self.start["argv"].as_array().map(|words| words.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
    }

    /// The token of the run it is; absent when no runner started it.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.env(RUN_TOKEN_VARIABLE)
    }

    /// When it began, in milliseconds since 1970.
    #[must_use]
    pub fn began(&self) -> i64 {
        self.start["ts_ms"].as_i64().unwrap_or_default()
    }

    /// When it ended by itself, in milliseconds since 1970.
    #[must_use]
    pub fn end_at(&self) -> Option<i64> {
        self.end.as_ref()?["ts_ms"].as_i64()
    }

    /// When it ended by itself, in milliseconds since 1970.
    ///
    /// # Panics
    ///
    /// When it did not.
    #[must_use]
    pub fn ended(&self) -> i64 {
        self.end_at().expect("the run has ended by itself")
    }
}
