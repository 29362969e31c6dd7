//! The answer to a call of a tool.
//!
//! Owns: how it is read. May not know: how it came.

#![expect(clippy::panic, reason = "what a client waits for in vain fails the case")]

use std::ops::Index;

use serde_json::Value;

/// The answer to a tool call: the whole JSON-RPC response. Its index is a field of the structured content.
#[derive(Debug, Clone)]
pub struct Reply(pub Value);

impl Reply {
    /// The text block.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0["result"]["content"][0]["text"].as_str().unwrap_or_default()
    }

    /// Whether it is an error: of the tool or of the protocol.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.0["result"]["isError"] == true || self.0.get("error").is_some()
    }

    /// The code of the fault: of a call, of a failed job, of a protocol error; `none` without one.
    #[must_use]
    pub fn code(&self) -> &str {
        let structured = &self.0["result"]["structuredContent"];
        [&structured["fault"]["code"], &structured["code"], &self.0["error"]["data"]["code"]]
            .into_iter()
            .find_map(Value::as_str)
            .unwrap_or("none")
    }

    /// Whether the structured content has this field at all.
    #[must_use]
    pub fn has(&self, field: &str) -> bool {
        self.0["result"]["structuredContent"].get(field).is_some()
    }

    /// A text of the structured content; empty when it is not there.
    #[must_use]
    pub fn str(&self, field: &str) -> &str {
        self[field].as_str().unwrap_or_default()
    }

    /// A number of the structured content.
    ///
    /// # Panics
    ///
    /// When it is not there.
    #[must_use]
    #[track_caller]
    pub fn number(&self, field: &str) -> u64 {
        self[field].as_u64().unwrap_or_else(|| panic!("no number `{field}` in {:#}", self.0))
    }

    /// The reply, which must be no error; and, when it is about a job, of one that succeeded.
    ///
    /// # Panics
    ///
    /// When it is not.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        let as_hoped = !self.has("job_id") || self["status"] == "succeeded";
        assert!(self.is_result() && as_hoped, "not a success: {:#}", self.0);
        self
    }

    /// Whether it is the result of a tool, and no error of either kind.
    #[must_use]
    pub fn is_result(&self) -> bool {
        self.0["result"].is_object() && !self.is_error()
    }

    /// The reply, which must be this fault.
    ///
    /// # Panics
    ///
    /// When it is not.
    #[track_caller]
    pub fn expect_fault(self, code: &str) -> Self {
        assert!(self.is_error() && self.code() == code, "not {code}: {:#}", self.0);
        self
    }
}

/// A field of the structured content.
impl Index<&str> for Reply {
    type Output = Value;

    fn index(&self, field: &str) -> &Value {
        &self.0["result"]["structuredContent"][field]
    }
}
