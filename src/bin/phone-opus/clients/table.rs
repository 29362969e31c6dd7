//! The clients that `install` knows: where each keeps its servers, and what an entry there looks like.
//!
//! Owns: files, keys, shapes and limits of each client, as a table. May not know: how a file is read or changed.
//!
//! What was looked up where is in `docs/clients.md`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Value, json};

use super::text::Format;

/// The name of our entry.
pub(super) const ENTRY: &str = "phone-opus";

/// Seconds a client has to wait for a call, so that none that phone-opus lets a caller ask for is cut short: the longest
/// `wait_s` is an hour, and the reply needs a moment.
const LIMIT_S: u64 = 3660;

/// A client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClientName {
    /// Claude Code.
    Claude,
    /// Codex.
    Codex,
    /// Gemini CLI.
    Gemini,
    /// Cursor.
    Cursor,
    /// Visual Studio Code.
    Vscode,
    /// OpenCode.
    Opencode,
    /// Zed.
    Zed,
    /// Windsurf.
    Windsurf,
    /// Claude Desktop.
    ClaudeDesktop,
}

/// For whom a client is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SetupScope {
    /// You, everywhere.
    User,
    /// Everybody who works in this directory.
    Project,
}

impl SetupScope {
    /// As the command line says it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Project => "project",
        }
    }
}

/// What of the surroundings decides where a user's file lies.
pub(super) struct Surroundings<'a> {
    /// The home directory.
    pub(super) home: &'a Path,
    /// The environment.
    pub(super) variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// Whether this is macOS.
    pub(super) macos: bool,
}

impl Surroundings<'_> {
    /// A directory that a variable names, where it names one.
    fn named(&self, variable: &str) -> Option<PathBuf> {
        (self.variable)(variable).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    fn named_or(&self, variable: &str, below_home: &str) -> PathBuf {
        self.named(variable).unwrap_or_else(|| self.home.join(below_home))
    }

    /// `$XDG_CONFIG_HOME`, also on macOS.
    fn xdg(&self) -> PathBuf {
        self.named_or("XDG_CONFIG_HOME", ".config")
    }

    /// Where programs of a desktop keep their settings.
    fn desktop(&self) -> PathBuf {
        if self.macos { self.home.join("Library/Application Support") } else { self.xdg() }
    }
}

/// How an entry says what is to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// `command` and `args`.
    Plain,
    /// The same, and `type`.
    Stdio,
    /// `type`, and all words in `command`.
    Local,
}

/// One client.
pub(super) struct Client {
    pub(super) name: ClientName,
    /// As its makers write it.
    pub(super) title: &'static str,
    pub(super) format: Format,
    /// The key of its table of servers.
    pub(super) servers: &'static str,
    shape: Shape,
    /// The key of a call's limit, and a limit no consult reaches; where its own would cut one short.
    limit: Option<(&'static str, u64)>,
    /// The user's file: the first of these that is there, else the last one.
    user: fn(&Surroundings<'_>) -> Vec<PathBuf>,
    /// The same of a project's, where it has any.
    project: &'static [&'static str],
    /// What is to be done after a change.
    pub(super) then: &'static str,
}

/// Every client. `docs/clients.md` shows this table and says where it is from.
pub(super) const CLIENTS: [Client; 9] = [
    Client {
        name: ClientName::Claude,
        title: "Claude Code",
        format: Format::Json,
        servers: "mcpServers",
        shape: Shape::Stdio,
        limit: None,
        // The older name, where it is still in use, is the one that is read.
        user: |at| match at.named("CLAUDE_CONFIG_DIR") {
            Some(dir) => vec![dir.join(".config.json"), dir.join(".claude.json")],
            None => vec![at.home.join(".claude/.config.json"), at.home.join(".claude.json")],
        },
        project: &[".mcp.json"],
        then: "sessions that run need a restart; `claude mcp list` shows it, and asks before it starts a project's server",
    },
    Client {
        name: ClientName::Codex,
        title: "Codex",
        format: Format::Toml,
        servers: "mcp_servers",
        shape: Shape::Plain,
        limit: Some(("tool_timeout_sec", LIMIT_S)),
        user: |at| vec![at.named_or("CODEX_HOME", ".codex").join("config.toml")],
        project: &[".codex/config.toml"],
        then: "sessions that run need a restart; `codex mcp list` shows it; a project's file counts where the project is trusted",
    },
    Client {
        name: ClientName::Gemini,
        title: "Gemini CLI",
        format: Format::Json,
        servers: "mcpServers",
        shape: Shape::Plain,
        limit: Some(("timeout", LIMIT_S * 1000)),
        user: |at| vec![at.home.join(".gemini/settings.json")],
        project: &[".gemini/settings.json"],
        then: "sessions that run need a restart; `gemini mcp list` shows it",
    },
    Client {
        name: ClientName::Cursor,
        title: "Cursor",
        format: Format::Json,
        servers: "mcpServers",
        shape: Shape::Plain,
        limit: None,
        user: |at| vec![at.home.join(".cursor/mcp.json")],
        project: &[".cursor/mcp.json"],
        then: "switch it on in Cursor's settings, under MCP",
    },
    Client {
        name: ClientName::Vscode,
        title: "Visual Studio Code",
        format: Format::Json,
        servers: "servers",
        shape: Shape::Stdio,
        limit: None,
        user: |at| vec![at.desktop().join("Code/User/mcp.json")],
        project: &[".vscode/mcp.json"],
        then: "`MCP: List Servers` in its command palette shows it",
    },
    Client {
        name: ClientName::Opencode,
        title: "OpenCode",
        format: Format::Json,
        servers: "mcp",
        shape: Shape::Local,
        limit: None,
        user: |at| {
            let dir = at.xdg().join("opencode");
            vec![dir.join("opencode.jsonc"), dir.join("opencode.json")]
        },
        project: &["opencode.jsonc", "opencode.json"],
        then: "sessions that run need a restart; `opencode mcp list` shows it",
    },
    Client {
        name: ClientName::Zed,
        title: "Zed",
        format: Format::Json,
        servers: "context_servers",
        shape: Shape::Plain,
        limit: None,
        user: |at| vec![at.xdg().join("zed/settings.json")],
        project: &[".zed/settings.json"],
        then: "the settings of its agent panel show it",
    },
    Client {
        name: ClientName::Windsurf,
        title: "Windsurf",
        format: Format::Json,
        servers: "mcpServers",
        shape: Shape::Plain,
        limit: None,
        user: |at| vec![at.home.join(".codeium/windsurf/mcp_config.json")],
        project: &[],
        then: "refresh the MCP servers in Cascade's toolbar",
    },
    Client {
        name: ClientName::ClaudeDesktop,
        title: "Claude Desktop",
        format: Format::Json,
        servers: "mcpServers",
        shape: Shape::Plain,
        limit: None,
        user: |at| vec![at.desktop().join("Claude/claude_desktop_config.json")],
        project: &[],
        then: "quit Claude Desktop and start it again",
    },
];

impl Client {
    /// The client of this name.
    pub(super) fn named(name: ClientName) -> &'static Self {
        let found = CLIENTS.iter().find(|client| client.name == name);
        // The table has a row for each name, as a test shows.
        found.unwrap_or(&CLIENTS[0])
    }

    /// The client's name on the command line.
    pub(super) fn word(&self) -> String {
        self.name.to_possible_value().map(|word| word.get_name().to_owned()).unwrap_or_default()
    }

    /// Where a user's file may lie, by preference; the last one is where a new one is made.
    pub(super) fn user_files(&self, at: &Surroundings<'_>) -> Vec<PathBuf> {
        (self.user)(at)
    }

    /// The same below a project's directory; none where the client has no such file.
    pub(super) fn project_files(&self) -> Vec<PathBuf> {
        self.project.iter().map(PathBuf::from).collect()
    }

    /// Our entry, as it is written for this client.
    pub(super) fn entry(&self, program: &str, arguments: &[&str]) -> Vec<(String, Value)> {
        let words: Vec<&str> = [program].into_iter().chain(arguments.iter().copied()).collect();
        let mut entry = match self.shape {
            Shape::Plain => vec![("command", json!(program)), ("args", json!(arguments))],
            Shape::Stdio => vec![("type", json!("stdio")), ("command", json!(program)), ("args", json!(arguments))],
            Shape::Local => vec![("type", json!("local")), ("command", json!(words)), ("enabled", json!(true))],
        };
        entry.extend(self.limit.map(|(key, limit)| (key, json!(limit))));
        entry.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Which keys of an entry say what is started.
    pub(super) fn starts(&self) -> &'static [&'static str] {
        match self.shape {
            Shape::Plain | Shape::Stdio => &["command", "args"],
            Shape::Local => &["command"],
        }
    }
}

/// The words of what an entry starts, in whichever shape.
pub(super) fn words(entry: &Value) -> Vec<&str> {
    let command = match &entry["command"] {
        Value::String(program) => vec![program.as_str()],
        listed => strings(listed),
    };
    command.into_iter().chain(strings(&entry["args"])).collect()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(name: ClientName, macos: bool, variables: &[(&str, &str)]) -> Vec<String> {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
        let at = Surroundings { home: Path::new("/home/ada"), variable: &variable, macos };
        Client::named(name).user_files(&at).iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn each_name_has_a_row_of_its_own() {
        for name in ClientName::value_variants() {
            assert_eq!(Client::named(*name).name, *name);
        }
        assert_eq!(CLIENTS.len(), ClientName::value_variants().len());
    }

    #[test]
    fn a_users_file_is_where_the_client_looks_on_each_platform() {
        use ClientName::*;
        let table: &[(ClientName, &str, &str)] = &[
            (Claude, "/home/ada/.claude.json", "/home/ada/.claude.json"),
            (Codex, "/home/ada/.codex/config.toml", "/home/ada/.codex/config.toml"),
            (Gemini, "/home/ada/.gemini/settings.json", "/home/ada/.gemini/settings.json"),
            (Cursor, "/home/ada/.cursor/mcp.json", "/home/ada/.cursor/mcp.json"),
            (
                Vscode,
                "/home/ada/.config/Code/User/mcp.json",
                "/home/ada/Library/Application Support/Code/User/mcp.json",
            ),
            (Opencode, "/home/ada/.config/opencode/opencode.json", "/home/ada/.config/opencode/opencode.json"),
            (Zed, "/home/ada/.config/zed/settings.json", "/home/ada/.config/zed/settings.json"),
            (Windsurf, "/home/ada/.codeium/windsurf/mcp_config.json", "/home/ada/.codeium/windsurf/mcp_config.json"),
            (
                ClaudeDesktop,
                "/home/ada/.config/Claude/claude_desktop_config.json",
                "/home/ada/Library/Application Support/Claude/claude_desktop_config.json",
            ),
        ];
        assert_eq!(table.len(), CLIENTS.len());
        for (name, linux, macos) in table {
            assert_eq!(files(*name, false, &[]).last().map(String::as_str), Some(*linux), "{name:?}");
            assert_eq!(files(*name, true, &[]).last().map(String::as_str), Some(*macos), "{name:?}");
        }
    }

    #[test]
    fn a_variable_moves_the_files_of_whoever_reads_it_and_of_nobody_else() {
        use ClientName::*;
        let variables =
            [("CLAUDE_CONFIG_DIR", "/c/claude"), ("CODEX_HOME", "/c/codex"), ("XDG_CONFIG_HOME", "/c/config")];
        let table = [
            (Claude, "/c/claude/.claude.json"),
            (Codex, "/c/codex/config.toml"),
            (Gemini, "/home/ada/.gemini/settings.json"),
            (Vscode, "/c/config/Code/User/mcp.json"),
            (Opencode, "/c/config/opencode/opencode.json"),
            (Zed, "/c/config/zed/settings.json"),
            (ClaudeDesktop, "/c/config/Claude/claude_desktop_config.json"),
        ];
        for (name, file) in table {
            assert_eq!(files(name, false, &variables).last().map(String::as_str), Some(file), "{name:?}");
        }
        let relative = [("CODEX_HOME", "codex"), ("CLAUDE_CONFIG_DIR", "")];
        for name in [Claude, Codex] {
            assert_eq!(files(name, false, &relative), files(name, false, &[]), "a path that depends on where one is");
        }
    }

    #[test]
    fn an_entry_has_the_shape_its_client_reads() {
        let words = ["mcp", "serve"];
        let stdio = json!({"type": "stdio", "command": "/p", "args": words});
        let plain = json!({"command": "/p", "args": words});
        use ClientName::*;
        let table = [
            (Claude, stdio.clone()),
            (Codex, json!({"command": "/p", "args": words, "tool_timeout_sec": 3660})),
            (Gemini, json!({"command": "/p", "args": words, "timeout": 3_660_000})),
            (Cursor, plain.clone()),
            (Vscode, stdio),
            (Opencode, json!({"type": "local", "command": ["/p", "mcp", "serve"], "enabled": true})),
            (Zed, plain.clone()),
            (Windsurf, plain.clone()),
            (ClaudeDesktop, plain),
        ];
        for (name, entry) in table {
            let written: serde_json::Map<String, Value> = Client::named(name).entry("/p", &words).into_iter().collect();
            assert_eq!(Value::Object(written), entry, "{name:?}");
            assert_eq!(super::words(&entry), ["/p", "mcp", "serve"], "{name:?}");
        }
    }
}
