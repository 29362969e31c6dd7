//! The tools as clients see them.
//!
//! Owns: tool definitions and their `tools/list` texts per revision, built once, on first use. May not know: how a
//! tool is executed.

use std::fmt;
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value, json};

use super::version::Version;

/// Promises about a tool that clients act on: a read-only tool runs in parallel and without approval in several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Annotations {
    /// It changes nothing.
    pub read_only: bool,
    /// What it changes cannot be undone.
    pub destructive: bool,
    /// Doing it twice is doing it once.
    pub idempotent: bool,
    /// It talks to something beyond this machine's own state.
    pub open_world: bool,
}

/// One tool as clients see it.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolDefinition {
    /// Its name: snake_case, at most 40 characters.
    pub name: String,
    /// Its name for people.
    pub title: String,
    /// What it does and when to use it; the first sentence decides whether a model finds it.
    pub description: String,
    /// The JSON schema of its arguments: a plain object.
    pub input_schema: Value,
    /// Its promises.
    pub annotations: Annotations,
    /// Members of `_meta`.
    pub meta: Option<Map<String, Value>>,
}

impl ToolDefinition {
    fn render(&self, version: Version) -> Value {
        let mut tool = Map::new();
        tool.insert("name".into(), json!(self.name));
        if version >= Version::V2025_06_18 {
            tool.insert("title".into(), json!(self.title));
        }
        tool.insert("description".into(), json!(self.description));
        tool.insert("inputSchema".into(), self.input_schema.clone());
        if version >= Version::V2025_03_26 {
            let a = self.annotations;
            tool.insert(
                "annotations".into(),
                json!({"readOnlyHint": a.read_only, "destructiveHint": a.destructive,
                       "idempotentHint": a.idempotent, "openWorldHint": a.open_world}),
            );
        }
        if let Some(meta) = self.meta.as_ref().filter(|_| version >= Version::V2025_06_18) {
            tool.insert("_meta".into(), Value::Object(meta.clone()));
        }
        Value::Object(tool)
    }
}

/// Makes a tool's definition when it is first asked for, so that start-up does not pay for schemas.
pub type Define = Arc<dyn Fn() -> ToolDefinition + Send + Sync>;

/// Which places a tool's calls may take among those a connection has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Those all tools share.
    Shared,
    /// Also the few that are kept: it is needed most when the others are taken.
    Kept,
}

/// All tools, in the order they are listed.
pub struct Catalog {
    entries: Vec<(String, Room, Define)>,
    /// The `"tools":[…]` member per revision, in the order of [`Version::ALL`].
    lists: [OnceLock<String>; Version::ALL.len()],
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|(name, ..)| name)).finish()
    }
}

impl Catalog {
    /// A catalogue of these tools, in this order.
    #[must_use]
    pub fn new(entries: Vec<(String, Room, Define)>) -> Self {
        Self { entries, lists: std::array::from_fn(|_| OnceLock::new()) }
    }

    /// The position of a tool.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|(known, ..)| known == name)
    }

    /// The name of the tool at a position.
    #[must_use]
    pub fn name(&self, position: usize) -> &str {
        self.entries.get(position).map_or("", |(name, ..)| name)
    }

    /// Which places the tool at a position may take.
    #[must_use]
    pub fn room(&self, position: usize) -> Room {
        self.entries.get(position).map_or(Room::Shared, |(_, room, _)| *room)
    }

    /// The tools' names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, ..)| name.as_str())
    }

    /// The `"tools":[…]` member of a `tools/list` result.
    #[must_use]
    pub fn list(&self, version: Version) -> &str {
        let index = Version::ALL.iter().position(|known| *known == version).unwrap_or(0);
        self.lists[index].get_or_init(|| {
            let tools: Vec<Value> = self.entries.iter().map(|(.., define)| define().render(version)).collect();
            format!("\"tools\":{}", Value::Array(tools))
        })
    }
}
