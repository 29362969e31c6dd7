//! The tools as clients see them.
//!
//! Owns: tool definitions and their `tools/list` pages per revision, built once, on first use. May not know: how a
//! tool is executed.
//!
//! Invariant: the order is the same for everybody and depends on nothing a client said before.

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
    fn render(&self, version: Version, tasks: TaskSupport) -> Value {
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
        if version == Version::V2025_11_25 && tasks.is_offered() {
            tool.insert("execution".into(), json!({"taskSupport": "optional"}));
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
pub enum CallRoom {
    /// Those all tools share.
    Shared,
    /// Also the few that are kept: it is needed most when the others are taken.
    Kept,
}

/// Whether a tool's calls may become tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum TaskSupport {
    /// They may not.
    #[default]
    Forbidden,
    /// They may: with the argument `background` set, the tool answers at once and its reply names a job.
    Optional,
    /// The same, unless this argument is given, a list: then there is no one job that the task could be.
    OptionalWithout(&'static str),
}

impl TaskSupport {
    /// Whether any of its calls may.
    #[must_use]
    pub(crate) const fn is_offered(self) -> bool {
        !matches!(self, Self::Forbidden)
    }
}

#[cfg(any(test, feature = "testkit"))]
impl Catalog {
    /// Two tools that nobody runs: `echo`, and `look`, whose calls have places of their own. For what tries the state machine.
    pub(crate) fn of_echo_and_look(tasks: TaskSupport) -> Self {
        let define = || ToolDefinition {
            name: "echo".into(),
            title: "Echo".into(),
            description: "Echoes.".into(),
            input_schema: json!({"type": "object"}),
            annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
            meta: None,
        };
        let tools = vec![
            ("echo".into(), CallRoom::Shared, Arc::new(define) as Define),
            ("look".into(), CallRoom::Kept, Arc::new(define) as Define),
        ];
        Self::new(tools).with_tasks([tasks])
    }
}

/// Tools in one page of the list. Ours are far fewer; an embedding program's may be many.
const PAGE_TOOLS: usize = 100;

/// Bytes of one page of the list, unless one tool alone has more.
const PAGE_BYTES: usize = 256 * 1024;

/// All tools, in the order they are listed.
pub struct Catalog {
    entries: Vec<(String, CallRoom, Define)>,
    tasks: Vec<TaskSupport>,
    /// The pages per revision, in the order of [`Version::ALL`].
    lists: [OnceLock<Vec<Page>>; Version::ALL.len()],
}

struct Page {
    /// The position of its first tool.
    first: usize,
    /// The members `"tools":[…]` and, where another page follows, `"nextCursor"`.
    members: String,
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|(name, ..)| name)).finish()
    }
}

impl Catalog {
    /// A catalogue of these tools, in this order; no call becomes a task.
    #[must_use]
    pub fn new(entries: Vec<(String, CallRoom, Define)>) -> Self {
        let tasks = vec![TaskSupport::Forbidden; entries.len()];
        Self { entries, tasks, lists: std::array::from_fn(|_| OnceLock::new()) }
    }

    /// The same catalogue, with what each tool says about tasks, in the same order.
    #[must_use]
    pub fn with_tasks(mut self, tasks: impl IntoIterator<Item = TaskSupport>) -> Self {
        for (known, tasks) in self.tasks.iter_mut().zip(tasks) {
            *known = tasks;
        }
        self
    }

    /// A number that differs when what clients are told about the tools does.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for version in Version::ALL {
            let index = Version::ALL.iter().position(|known| *known == version).unwrap_or(0);
            for page in self.lists[index].get_or_init(|| self.pages(version)) {
                let bytes = page.members.bytes();
                hash = bytes.fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
            }
        }
        hash
    }

    /// [`Catalog::digest`] as it is told to other processes: sixteen hexadecimal digits.
    #[must_use]
    pub fn digest_text(&self) -> String {
        format!("{:016x}", self.digest())
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
    pub fn room(&self, position: usize) -> CallRoom {
        self.entries.get(position).map_or(CallRoom::Shared, |(_, room, _)| *room)
    }

    /// Whether calls of the tool at a position may become tasks.
    #[must_use]
    pub fn tasks(&self, position: usize) -> TaskSupport {
        self.tasks.get(position).copied().unwrap_or_default()
    }

    /// Whether any tool's calls may become tasks.
    #[must_use]
    pub fn offers_tasks(&self) -> bool {
        self.tasks.iter().any(|tasks| tasks.is_offered())
    }

    /// The tools' names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, ..)| name.as_str())
    }

    /// The members `"tools":[…]` and `"nextCursor"` of a page of `tools/list`: the first one, or the one a cursor names.
    /// `None` when the cursor is not one of ours.
    #[must_use]
    pub fn list(&self, version: Version, cursor: Option<&str>) -> Option<&str> {
        let index = Version::ALL.iter().position(|known| *known == version).unwrap_or(0);
        let pages = self.lists[index].get_or_init(|| self.pages(version));
        let page = match cursor {
            None => pages.first(),
            Some(cursor) => {
                let first = cursor.strip_prefix(CURSOR)?;
                pages.iter().skip(1).find(|page| page.first.to_string() == first)
            }
        };
        page.map(|page| page.members.as_str())
    }

    fn pages(&self, version: Version) -> Vec<Page> {
        let mut pages = Vec::new();
        let mut page = Page { first: 0, members: "\"tools\":[".to_owned() };
        for (at, (.., define)) in self.entries.iter().enumerate() {
            let tool = define().render(version, self.tasks(at)).to_string();
            let count = at - page.first;
            if count > 0 {
                if count >= PAGE_TOOLS || page.members.len() + tool.len() > PAGE_BYTES {
                    page.members.push_str(&format!("],\"nextCursor\":\"{CURSOR}{at}\""));
                    pages.push(std::mem::replace(&mut page, Page { first: at, members: "\"tools\":[".to_owned() }));
                } else {
                    page.members.push(',');
                }
            }
            page.members.push_str(&tool);
        }
        page.members.push(']');
        pages.push(page);
        pages
    }
}

/// What a cursor begins with; the rest is the position of the page's first tool.
const CURSOR: &str = "tools-from-";

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(tools: usize, bytes: usize) -> Catalog {
        let entries = (0..tools).map(|n| {
            let name = format!("tool_{n}");
            let define: Define = {
                let name = name.clone();
                Arc::new(move || ToolDefinition {
                    name: name.clone(),
                    title: "A tool".into(),
                    description: "x".repeat(bytes),
                    input_schema: json!({"type": "object"}),
                    annotations: Annotations {
                        read_only: true,
                        destructive: false,
                        idempotent: true,
                        open_world: false,
                    },
                    meta: None,
                })
            };
            (name, CallRoom::Shared, define)
        });
        Catalog::new(entries.collect())
    }

    /// The tools of all pages, and how many pages there were.
    fn walk(catalog: &Catalog) -> (Vec<String>, usize) {
        let (mut names, mut pages, mut cursor) = (Vec::new(), 0, None::<String>);
        loop {
            let members = catalog.list(Version::MODERN, cursor.as_deref()).expect("a page");
            let page: Value = serde_json::from_str(&format!("{{{members}}}")).expect("JSON");
            names.extend(page["tools"].as_array().expect("tools").iter().map(|tool| tool["name"].to_string()));
            pages += 1;
            match page.get("nextCursor") {
                Some(next) => cursor = Some(next.as_str().expect("a text").to_owned()),
                None => return (names, pages),
            }
        }
    }

    #[test]
    fn the_pages_hold_every_tool_once_in_order_and_few_tools_are_one_page() {
        for (tools, bytes, want) in [(0, 10, 1), (6, 10, 1), (100, 10, 1), (101, 10, 2), (250, 10, 3), (10, 100_000, 5)]
        {
            let catalog = catalog(tools, bytes);
            let (names, pages) = walk(&catalog);
            assert_eq!(names, (0..tools).map(|n| format!("\"tool_{n}\"")).collect::<Vec<_>>());
            assert_eq!(pages, want, "{tools} tools of {bytes} bytes");
        }
    }

    #[test]
    fn a_cursor_that_is_not_ours_is_none() {
        let catalog = catalog(250, 10);
        for cursor in ["", "x", "tools-from-0", "tools-from-1", "tools-from-0100", "tools-from-+100", "100"] {
            assert_eq!(catalog.list(Version::MODERN, Some(cursor)), None, "{cursor}");
        }
        assert!(catalog.list(Version::MODERN, Some("tools-from-200")).is_some());
    }
}
