//! What an agent reports, as it is stored: the one vocabulary that every agent's output is translated into.
//!
//! Owns: the events and the result. May not know: how an agent writes them, who stores or shows them.

use serde::{Deserialize, Serialize};

use super::PermissionDenial;
use crate::base::ids::UnixMillis;

/// Something an agent reported on its output. One line may give several.
///
/// This is the one vocabulary all agents are translated into; unknown lines become [`AgentEvent::Other`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum AgentEvent {
    /// The agent introduced itself.
    Started {
        /// The session it works in, by the id it is resumed with.
        session_id: Option<String>,
        /// The model it will use.
        model: Option<String>,
        /// Where it says its key comes from (`none` = a login).
        key_source: Option<String>,
        /// Its program's version.
        version: Option<String>,
    },
    /// The model is thinking.
    Thinking,
    /// The model said something.
    Text {
        /// What it said.
        text: String,
    },
    /// The agent uses a tool.
    ToolUse {
        /// Its name.
        tool: String,
    },
    /// A tool gave its result.
    ToolResult,
    /// A tool use was refused.
    Denied {
        /// Which, and for what.
        denial: PermissionDenial,
    },
    /// The agent waits before it asks its provider again.
    Retrying {
        /// Which try comes next.
        attempt: u64,
        /// How many there are.
        max: u64,
        /// How long it waits, in milliseconds.
        delay_ms: u64,
        /// The provider's status, when there was an answer.
        status: Option<u64>,
    },
    /// The provider answered with an error; the agent may go on or end with it.
    ProviderError {
        /// The agent's word for it: `rate_limit`, `authentication_failed`, …
        class: String,
    },
    /// The provider refused because a usage limit is reached.
    Limited {
        /// When trying again makes sense.
        retry_at: Option<UnixMillis>,
        /// Which limit, by the provider's name for it: `five_hour`, `seven_day_opus`, …
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<String>,
    },
    /// The plan is used up, and what is used from here on is paid for besides.
    ExtraUsage,
    /// A result: the answer, once the process has ended. Boxed because it is large and rare.
    Result {
        /// Everything in it.
        result: Box<AgentResult>,
    },
    /// A line that is well-formed and of no interest.
    Other {
        /// Its type, as far as it could be read.
        kind: String,
    },
    /// A line that is not what this agent writes.
    Garbage {
        /// How many bytes it had; its text is not kept, it may hold anything.
        bytes: u64,
    },
}

impl AgentEvent {
    /// The result of a run that has answered this. More is known of some agents: see [`AgentResult`].
    #[must_use]
    pub fn answer(text: impl Into<String>) -> Self {
        Self::Result { result: Box::new(AgentResult { text: Some(text.into()), ..AgentResult::default() }) }
    }

    /// Whether the model has been at work when this is said: from then on something is paid for.
    #[must_use]
    #[doc(hidden)]
    pub fn is_of_a_turn(&self) -> bool {
        match self {
            Self::Text { .. } | Self::Thinking | Self::ToolUse { .. } | Self::ToolResult => true,
            // A helper of the agent that speaks, a piece of an answer.
            Self::Other { kind } => kind.starts_with("assistant/") || kind == "stream_event",
            Self::Started { .. }
            | Self::Denied { .. }
            | Self::Retrying { .. }
            | Self::ProviderError { .. }
            | Self::Limited { .. }
            | Self::ExtraUsage
            | Self::Result { .. }
            | Self::Garbage { .. } => false,
        }
    }
}

/// What an agent's result line says.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AgentResult {
    /// `success` or one of the agent's error kinds.
    pub subtype: Option<String>,
    /// The field to trust about success.
    pub is_error: bool,
    /// The answer.
    pub text: Option<String>,
    /// The session it was given in.
    pub session_id: Option<String>,
    /// Turns taken.
    pub num_turns: Option<u64>,
    /// Why the model stopped.
    pub stop_reason: Option<String>,
    /// Why the agent stopped.
    pub terminal_reason: Option<String>,
    /// The provider's status.
    pub api_error_status: Option<u64>,
    /// The provider's error type.
    pub api_error_type: Option<String>,
    /// The error class of the last assistant event.
    pub error: Option<String>,
    /// Error texts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    /// What it cost in US dollars.
    pub cost_usd: Option<f64>,
    /// Token counts.
    pub usage: Option<serde_json::Value>,
    /// Token counts by model.
    pub model_usage: Option<serde_json::Value>,
    /// Refused tool uses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub permission_denials: Vec<PermissionDenial>,
}
